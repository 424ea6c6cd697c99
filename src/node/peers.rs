//! The members of the community, as this node knows them.
//!
//! `peers.json` holds the others; this node's own entry is `self.json`, which the daemon
//! writes when it listens. Each entry carries the time of its last change on its own node,
//! so that of two versions the newer one wins, whoever tells it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::identity::is_name;
use super::store::{self, now_ms, StoreError};
use crate::ids::NodeId;
use crate::state::StateDir;

/// Members that a community can have, as a bound on what a peer may send.
pub const MAX_MEMBERS: usize = 1000;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    #[serde(with = "hex_id")]
    pub id: NodeId,
    /// Where its daemon is reached: `IP:PORT`.
    pub addr: String,
    /// Unix milliseconds at which its node last changed the entry, by its own clock.
    pub stamp_ms: u64,
}

impl Peer {
    /// Name and address are such that they may be shown and used.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        is_name(&self.name) && self.addr.parse::<SocketAddr>().is_ok()
    }
}

/// This node's own entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    pub name: String,
    /// The address that the daemon is bound to.
    pub listen: SocketAddr,
    /// The address that others reach it by; None when it differs from peer to peer.
    pub advertise: Option<SocketAddr>,
    pub stamp_ms: u64,
    /// The daemon's pid.
    pub pid: u32,
}

impl Own {
    /// The entry as told to a peer. A daemon bound to all addresses is reached by the one
    /// that this host has towards the peer, `local`.
    #[must_use]
    pub fn peer(&self, id: NodeId, local: SocketAddr) -> Peer {
        let addr = match self.advertise {
            Some(addr) => addr,
            None if self.listen.ip().is_unspecified() => {
                SocketAddr::new(local.ip(), self.listen.port())
            }
            None => self.listen,
        };
        Peer { name: self.name.clone(), id, addr: addr.to_string(), stamp_ms: self.stamp_ms }
    }
}

/// Why an entry was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("another member ({id}) is named {name} already; choose one with --name")]
    NameTaken { name: String, id: NodeId },
    #[error("the community has {MAX_MEMBERS} members already")]
    TooMany,
    #[error("{0:?} is not a name with an IP:PORT address")]
    Unsound(String),
}

/// The other members, in the order of their names.
///
/// # Errors
/// When the file cannot be read.
pub fn load(state: &StateDir) -> Result<Vec<Peer>, StoreError> {
    Ok(store::read_json(&state.node().join("peers.json"))?.unwrap_or_default())
}

/// The other member with this id.
///
/// # Errors
/// When the file cannot be read.
pub fn by_id(state: &StateDir, id: NodeId) -> Result<Option<Peer>, StoreError> {
    Ok(load(state)?.into_iter().find(|p| p.id == id))
}

/// The other member that `word` names: by its name, or by the start of its id with or
/// without the dash (at least 4 digits, one match).
///
/// # Errors
/// When the file cannot be read.
pub fn find(state: &StateDir, word: &str) -> Result<Option<Peer>, StoreError> {
    let peers = load(state)?;
    if let Some(peer) = peers.iter().find(|p| p.name == word) {
        return Ok(Some(peer.clone()));
    }
    let digits = word.replace('-', "").to_ascii_lowercase();
    let mut matching =
        peers.into_iter().filter(|p| digits.len() >= 4 && p.id.hex().starts_with(&digits));
    Ok(matching.next().filter(|_| matching.next().is_none()))
}

/// Whether `id` is another member. A list that cannot be read trusts nobody.
#[must_use]
pub fn is_member(state: &StateDir, id: NodeId) -> bool {
    by_id(state, id)
        .unwrap_or_else(|e| {
            tracing::error!("{e}; no peer is trusted");
            None
        })
        .is_some()
}

/// Where this node's daemon listens, or listened last.
///
/// # Errors
/// When the file cannot be read.
pub fn own(state: &StateDir) -> Result<Option<Own>, StoreError> {
    store::read_json(&state.node().join("self.json"))
}

/// Says where this node's daemon listens. The stamp grows only when something changed.
pub(super) fn set_own(state: &StateDir, mut own_now: Own) -> Result<Own, StoreError> {
    let _lock = store::lock(state)?;
    if let Some(old) = own(state)? {
        let same = (&old.name, old.advertise, old.listen)
            == (&own_now.name, own_now.advertise, own_now.listen);
        own_now.stamp_ms = if same { old.stamp_ms } else { now_ms().max(old.stamp_ms + 1) };
    }
    store::write_json(&state.node().join("self.json"), &own_now)?;
    Ok(own_now)
}

/// Adds or replaces one entry; false when it was known so.
///
/// # Errors
/// When its name is another member's, or the file cannot be changed.
pub fn add(state: &StateDir, own_id: NodeId, peer: Peer) -> Result<bool, PeerError> {
    let _lock = store::lock(state)?;
    add_locked(state, own_id, peer)
}

/// As [`add`], by one who holds the lock.
pub(super) fn add_locked(state: &StateDir, own_id: NodeId, peer: Peer) -> Result<bool, PeerError> {
    let mut peers = load(state)?;
    let own_name = super::identity::name(state)?;
    let changed = insert(&mut peers, (own_id, &own_name), peer)?;
    if changed {
        store::write_json(&state.node().join("peers.json"), &peers)?;
    }
    Ok(changed)
}

/// Takes over what another member knows; false when nothing was new. Entries that cannot be
/// taken are left out and logged.
///
/// # Errors
/// When the file cannot be changed.
pub fn merge(state: &StateDir, own_id: NodeId, theirs: Vec<Peer>) -> Result<bool, StoreError> {
    let _lock = store::lock(state)?;
    let mut peers = load(state)?;
    let own_name = super::identity::name(state)?;
    let mut changed = false;
    for peer in theirs {
        match insert(&mut peers, (own_id, &own_name), peer) {
            Ok(new) => changed |= new,
            Err(e) => tracing::warn!("a member was not added: {e}"),
        }
    }
    if changed {
        store::write_json(&state.node().join("peers.json"), &peers)?;
    }
    Ok(changed)
}

fn insert(
    peers: &mut Vec<Peer>,
    (own_id, own_name): (NodeId, &str),
    peer: Peer,
) -> Result<bool, PeerError> {
    if !peer.is_sound() {
        return Err(PeerError::Unsound(format!("{} {}", peer.name, peer.addr)));
    }
    let known = peers.iter().position(|p| p.id == peer.id);
    let is_old = known.is_some_and(|i| peers[i].stamp_ms >= peer.stamp_ms);
    if peer.id == own_id || is_old {
        return Ok(false);
    }
    let taken = peers.iter().find(|p| p.name == peer.name && p.id != peer.id).map(|p| p.id);
    if let Some(id) = taken.or_else(|| (own_name == peer.name).then_some(own_id)) {
        return Err(PeerError::NameTaken { name: peer.name, id });
    }
    match known {
        Some(i) => peers[i] = peer,
        None if peers.len() >= MAX_MEMBERS => return Err(PeerError::TooMany),
        None => peers.push(peer),
    }
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(true)
}

/// When each member was last heard of, Unix milliseconds.
///
/// # Errors
/// When the file cannot be read.
pub fn seen(state: &StateDir) -> Result<BTreeMap<String, u64>, StoreError> {
    Ok(store::read_json(&state.node().join("seen.json"))?.unwrap_or_default())
}

/// Members were heard of now. `seen.json` is keyed by [`NodeId::hex`].
///
/// # Errors
/// When the file cannot be changed.
pub fn mark_seen(state: &StateDir, ids: &[NodeId]) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let _lock = store::lock(state)?;
    let mut seen = seen(state)?;
    seen.extend(ids.iter().map(|id| (id.hex(), now_ms())));
    store::write_json(&state.node().join("seen.json"), &seen)
}

/// A [`NodeId`] as hexadecimal text.
mod hex_id {
    use serde::{de::Error, Deserialize, Deserializer, Serializer};

    use crate::ids::NodeId;

    pub fn serialize<S: Serializer>(id: &NodeId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&id.hex())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<NodeId, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, id: u8, stamp_ms: u64) -> Peer {
        Peer { name: name.into(), id: NodeId([id; 32]), addr: "127.0.0.1:1".into(), stamp_ms }
    }

    fn state() -> (tempfile::TempDir, StateDir) {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(tmp.path()).unwrap();
        crate::node::identity::set_name(&state, "me").unwrap();
        (tmp, state)
    }

    const ME: NodeId = NodeId([0; 32]);

    #[test]
    fn newer_wins_and_names_are_unique() {
        let (_tmp, state) = state();
        assert!(add(&state, ME, peer("a", 0xaa, 5)).unwrap());
        assert!(!add(&state, ME, peer("old", 0xaa, 4)).unwrap());
        assert!(matches!(add(&state, ME, peer("a", 0xbb, 9)), Err(PeerError::NameTaken { .. })));
        assert!(matches!(add(&state, ME, peer("me", 0xbb, 9)), Err(PeerError::NameTaken { .. })));
        assert!(matches!(add(&state, ME, peer("b\n", 0xbb, 9)), Err(PeerError::Unsound(_))));
        assert!(add(&state, ME, peer("renamed", 0xaa, 6)).unwrap());
        let theirs = vec![peer("me", 0, 9), peer("renamed", 0xcc, 9), peer("c", 0xdd, 1)];
        assert!(merge(&state, ME, theirs).unwrap());
        let names: Vec<_> = load(&state).unwrap().into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["c", "renamed"]);
    }

    #[test]
    fn found_by_name_or_start_of_id() {
        let (_tmp, state) = state();
        merge(&state, ME, vec![peer("a", 0xaa, 1), peer("abab", 0xab, 1)]).unwrap();
        let found = |word| find(&state, word).unwrap().map(|p| p.name);
        assert_eq!(found("a").as_deref(), Some("a"));
        assert_eq!(found("abab-abab").as_deref(), Some("abab"));
        assert_eq!(found("aaaa").as_deref(), Some("a"));
        assert_eq!(found("aa"), None);
        assert!(is_member(&state, NodeId([0xaa; 32])) && !is_member(&state, ME));
    }

    #[test]
    fn a_damaged_list_trusts_nobody() {
        let (_tmp, state) = state();
        add(&state, ME, peer("a", 0xaa, 1)).unwrap();
        std::fs::write(state.node().join("peers.json"), "[{").unwrap();
        assert!(!is_member(&state, NodeId([0xaa; 32])));
    }
}
