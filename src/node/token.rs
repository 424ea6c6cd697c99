//! Join tokens: one string, good for one new member, for one hour.
//!
//! ```text
//! vosrun-join-<hex of: version 1 │ secret 16 │ node id 32 │ address … │ checksum 4>
//! ```
//!
//! It holds all that a new node needs: where to go, whom to believe there (the full
//! fingerprint) and a secret that says it was invited. The issuing node keeps only the
//! secret's hash.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{bail, Context};
use serde::{Deserialize, Serialize};

use super::peers::{self, Own, Peer, PeerError};
use super::store::{self, now_ms, StoreError};
use crate::ids::{hex, random_bytes, NodeId};
use crate::state::StateDir;

const PREFIX: &str = "vosrun-join-";
const VERSION: u8 = 1;
const CHECKSUM: usize = 4;
/// Version, secret and node id.
const FIXED: usize = 1 + 16 + 32;

/// How long a token is good for.
pub const LIFETIME: Duration = Duration::from_secs(3600);
/// Tokens that may be open at once.
const MAX_OPEN: usize = 1000;

/// An invitation.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub addr: SocketAddr,
    /// The node at `addr`.
    pub id: NodeId,
    pub secret: [u8; 16],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("addr", &self.addr).field("id", &self.id).finish()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        bytes.extend(self.secret);
        bytes.extend(self.id.0);
        bytes.extend(self.addr.to_string().bytes());
        bytes.extend(checksum(&bytes));
        write!(f, "{PREFIX}{}", hex(&bytes))
    }
}

/// A string that is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a whole join token: `vosrun token` prints one, starting with {PREFIX}")]
pub struct BadToken;

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(BadToken)?;
        let bytes = decode_hex(digits).filter(|b| b.len() > FIXED + CHECKSUM).ok_or(BadToken)?;
        let (body, sum) = bytes.split_at(bytes.len() - CHECKSUM);
        let (fixed, addr) = body.split_at(FIXED);
        if fixed[0] != VERSION || checksum(body) != sum {
            return Err(BadToken);
        }
        let addr = std::str::from_utf8(addr).ok().and_then(|a| a.parse().ok());
        Ok(Self {
            addr: addr.ok_or(BadToken)?,
            id: NodeId(fixed[17..].try_into().map_err(|_| BadToken)?),
            secret: fixed[1..17].try_into().map_err(|_| BadToken)?,
        })
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let [a, b, c, d, ..] = *blake3::hash(bytes).as_bytes();
    [a, b, c, d]
}

fn decode_hex(digits: &str) -> Option<Vec<u8>> {
    let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

/// What is kept of a token that has not been used.
#[derive(Debug, Serialize, Deserialize)]
struct Open {
    /// blake3 of the secret, hexadecimal.
    hash: String,
    expires_ms: u64,
}

/// Makes a token that sends new members to `addr`.
///
/// # Errors
/// When it cannot be noted.
pub fn issue(state: &StateDir, id: NodeId, addr: SocketAddr) -> anyhow::Result<Token> {
    let secret = random_bytes().context("reading /dev/urandom")?;
    let lifetime = u64::try_from(LIFETIME.as_millis())?;
    let _lock = store::lock(state)?;
    let mut open = load_open(state)?;
    if open.len() >= MAX_OPEN {
        bail!("{MAX_OPEN} join tokens are open already; the oldest expires within the hour");
    }
    open.push(Open { hash: hash(&secret), expires_ms: now_ms() + lifetime });
    save_open(state, &open)?;
    Ok(Token { addr, id, secret })
}

/// Why a secret did not let anyone in.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    #[error("the secret is not the one of an open token")]
    NotOpen,
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Uses up the token with this secret and adds the new member, both or neither.
///
/// # Errors
/// When there is no such token or the member cannot be added.
pub fn redeem(
    state: &StateDir,
    own_id: NodeId,
    secret: &[u8; 16],
    member: Peer,
) -> Result<(), RedeemError> {
    let _lock = store::lock(state)?;
    let mut open = load_open(state)?;
    let hash = hash(secret);
    let at = open.iter().position(|o| o.hash == hash).ok_or(RedeemError::NotOpen)?;
    let used = open.remove(at);
    save_open(state, &open)?;
    if let Err(e) = peers::add_locked(state, own_id, member) {
        open.push(used);
        save_open(state, &open)?;
        return Err(e.into());
    }
    Ok(())
}

/// Only hashes of the secrets are compared, so the time it takes tells nothing.
fn hash(secret: &[u8; 16]) -> String {
    blake3::hash(secret).to_hex().to_string()
}

/// The tokens that are neither used nor expired.
fn load_open(state: &StateDir) -> Result<Vec<Open>, StoreError> {
    let mut open: Vec<Open> =
        store::read_json(&state.node().join("tokens.json"))?.unwrap_or_default();
    let now = now_ms();
    open.retain(|o| o.expires_ms > now);
    Ok(open)
}

fn save_open(state: &StateDir, open: &[Open]) -> Result<(), StoreError> {
    store::write_json(&state.node().join("tokens.json"), &open)
}

/// The address to put in a token for `own`.
///
/// # Errors
/// When the daemon listens on all addresses and none that others could use is known.
pub fn public_address(own: &Own) -> anyhow::Result<SocketAddr> {
    if let Some(addr) = own.advertise {
        return Ok(addr);
    }
    if !own.listen.ip().is_unspecified() {
        return Ok(own.listen);
    }
    let ip = outward_ip().context(
        "the node listens on all addresses and has no default route to tell which one others reach: start it with --advertise IP:PORT",
    )?;
    Ok(SocketAddr::new(ip, own.listen.port()))
}

/// The address that this host has towards others: the one the kernel picks for a packet to
/// a documentation network (RFC 5737). Nothing is sent.
fn outward_ip() -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ME: NodeId = NodeId([1; 32]);

    fn state() -> (tempfile::TempDir, StateDir) {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(tmp.path()).unwrap();
        (tmp, state)
    }

    fn peer(name: &str, id: u8) -> Peer {
        let addr = "127.0.0.1:1".to_owned();
        Peer { name: name.into(), id: NodeId([id; 32]), addr, stamp_ms: 1 }
    }

    fn addr() -> SocketAddr {
        "10.0.0.1:7701".parse().unwrap()
    }

    #[test]
    fn a_token_is_good_once() {
        let (_tmp, state) = state();
        let token = issue(&state, ME, addr()).unwrap();
        let text = std::fs::read_to_string(state.node().join("tokens.json")).unwrap();
        assert!(!text.contains(&hex(&token.secret)));
        redeem(&state, ME, &token.secret, peer("b", 2)).unwrap();
        let again = redeem(&state, ME, &token.secret, peer("c", 3));
        assert!(matches!(again, Err(RedeemError::NotOpen)));
        assert!(!peers::is_member(&state, NodeId([3; 32])));
    }

    #[test]
    fn a_refused_member_does_not_use_it_up() {
        let (_tmp, state) = state();
        let token = issue(&state, ME, addr()).unwrap();
        peers::add(&state, ME, peer("b", 9)).unwrap();
        let taken = redeem(&state, ME, &token.secret, peer("b", 2));
        assert!(matches!(taken, Err(RedeemError::Peer(PeerError::NameTaken { .. }))));
        redeem(&state, ME, &token.secret, peer("c", 2)).unwrap();
    }

    #[test]
    fn an_expired_token_is_none() {
        let (_tmp, state) = state();
        let secret = [7; 16];
        save_open(&state, &[Open { hash: hash(&secret), expires_ms: now_ms() - 1 }]).unwrap();
        let late = redeem(&state, ME, &secret, peer("b", 2));
        assert!(matches!(late, Err(RedeemError::NotOpen)));
    }

    proptest! {
        #[test]
        fn text_round_trip(secret: [u8; 16], id: [u8; 32], v4: [u8; 4], port: u16) {
            let token = Token { addr: (v4, port).into(), id: NodeId(id), secret };
            prop_assert_eq!(token.to_string().parse::<Token>(), Ok(token.clone()));
            let mut cut = token.to_string();
            cut.pop();
            prop_assert_eq!(cut.parse::<Token>(), Err(BadToken));
        }

        #[test]
        fn any_text_is_refused_without_panic(text in ".*") {
            prop_assert_eq!(text.parse::<Token>(), Err(BadToken));
            prop_assert_eq!(format!("{PREFIX}{text}").parse::<Token>(), Err(BadToken));
        }
    }
}
