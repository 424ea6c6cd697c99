//! What nodes say to each other on `node.vosrun`: one message per frame, no payload.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Peer;
use crate::ids::JobId;

/// Largest message, bytes; [`super::peers::MAX_MEMBERS`] entries fit.
pub const MAX_MESSAGE: usize = 256 << 10;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeMsg {
    /// "Let me in": the only thing a stranger may say. Answered by [`Self::Members`] or
    /// [`Self::Refused`], or, when the secret is not a valid one, by nothing.
    Join {
        secret: [u8; 16],
        entry: Peer,
    },
    /// All members that the sender knows, itself among them.
    Members(Vec<Peer>),
    /// No, and why: one sentence.
    Refused(String),
    /// Answered by [`Self::Pong`].
    Ping,
    Pong,
    /// The members that the sender knows; answered by [`Self::Members`].
    Sync(Vec<Peer>),
    /// Which job here has the end `own` of the TCP connection to `peer`? Answered by [`Self::Holder`].
    Who {
        own: SocketAddr,
        peer: SocketAddr,
    },
    Holder(Option<JobId>),
}
