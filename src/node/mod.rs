//! A machine as a member of its community: who it is, whom it trusts, and the daemon that
//! answers for it.
//!
//! ```text
//!                 ┌ node.vosrun      ─► the daemon: join, ping, lists of members
//! TLS connection ─┤ new.vosrun       ─► a fresh receiver process, which does the handshake
//!                 └ <id>.job.vosrun  ─► the job's supervisor, through its control socket
//! ```
//!
//! The daemon reads only the name that a connection asks for and hands the connection on
//! untouched, so no job's bytes ever pass through it and no job needs it to go on.
//!
//! ```text
//! STATE/node/lock         held (flock(2)) while one of the files below is changed
//!            daemon.lock  held by the daemon while it lives
//!            key, cert    this node's identity (PKCS #8, X.509; DER)
//!            name         this node's name
//!            self.json    where the daemon listens, and its pid
//!            peers.json   the other members
//!            tokens.json  hashes of join tokens not used yet
//!            seen.json    when each member was last heard of
//!            receive.log  what the receivers have to say
//! ```

pub mod client;
pub mod daemon;
mod handover;
pub mod holder;
mod host;
pub mod identity;
pub mod message;
pub mod orphan;
pub mod peers;
pub mod raw;
mod store;
mod sync;
pub mod token;

pub use identity::Identity;
pub use peers::Peer;

use std::sync::Arc;

use crate::migrate::transport::TlsConfig;
use crate::state::StateDir;

/// TLS as this node, with the members of its community as trusted peers. The list of
/// members is read anew in each handshake.
///
/// # Errors
/// When the identity cannot be read or made.
pub fn tls(state: &StateDir) -> anyhow::Result<TlsConfig> {
    tls_as(state, &Identity::load_or_create(state)?)
}

/// As [`tls`], for an identity that is loaded already.
///
/// # Errors
/// When the identity's key cannot be used.
pub fn tls_as(state: &StateDir, identity: &Identity) -> anyhow::Result<TlsConfig> {
    let (state, own) = (state.clone(), identity.id());
    let trusted = move |id| id == own || peers::is_member(&state, id);
    Ok(TlsConfig::new(identity, Arc::new(trusted))?)
}
