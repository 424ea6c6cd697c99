//! Connections past their relays: the job's socket becomes one end of a TCP connection between the
//! two nodes, whose other end the home agent joins with the real socket.
//!
//! ```text
//! peer ⇄ real socket ─ home agent ─ far ═══ node to node ═══ the job's socket
//! ```
//! * **There**: the away half of a busy connection asks ([`RelayMsg::Want`]); the home half invites
//!   it with a key that is good for once; a connection that shows the key ([`Preface`]) becomes the
//!   home's `far`. With the job frozen the away half writes there what the relay has not carried
//!   ([`Relays::hand_over`]), and last one byte, with which it holds.
//! * **Back** ([`Relays::recall`]): once both know of it, both sides shut down what they write, and
//!   read what there still is to its end; then the relay begins anew.
//!
//! * **Between two jobs** (`joined`) the connection leads from one job's node to the other's.
//!
//! Ends of file, resets, full windows, keepalive and timeouts are those of TCP: nothing here keeps
//! bytes but what one end does not take at the moment.

use std::io::{self, Read};
use std::net::TcpStream;

use mio::Token;
use serde::{Deserialize, Serialize};

use super::endpoint::{Endpoint, Out, Role};
use super::local::Local;
use super::stream::{RelayMsg, Sender, StreamId};
use super::Relays;
use crate::ids::JobId;

mod away;
mod homing;
mod joined;
mod pump;

pub use joined::Meeting;
pub(super) use pump::Pump;

use away::Recalling;

/// What shows that a connection belongs to an invitation.
pub type Key = [u8; 32];

/// Messages after which a connection is worth a way past its relay.
const BUSY: u32 = 32;

/// Bytes of the length in front of a [`Begin`].
const LENGTH: usize = 4;

/// The last byte before those of the job.
pub const HOLDS: u8 = 1;

/// The first bytes of such a connection, which no TLS record begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preface {
    /// Whose connection it is.
    pub job: JobId,
    /// Of the invitation.
    pub key: Key,
}

impl Preface {
    const MAGIC: &[u8; 16] = b"vosrun-direct-1\n";
    /// Its length, bytes.
    pub const LEN: usize = 64;

    /// As it is sent.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(Self::MAGIC);
        bytes[16..32].copy_from_slice(&self.job.0);
        bytes[32..].copy_from_slice(&self.key);
        bytes
    }

    /// Could these be the first bytes of one?
    #[must_use]
    pub fn is_begun(bytes: &[u8]) -> bool {
        !bytes.is_empty() && Self::MAGIC.starts_with(&bytes[..bytes.len().min(16)])
    }

    /// Out of the first bytes of a connection.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.get(..Self::LEN)?.try_into().ok()?;
        let (magic, rest) = bytes.split_at(16);
        let (job, key) = rest.split_at(16);
        (magic == Self::MAGIC)
            .then_some(Self { job: JobId(job.try_into().ok()?), key: key.try_into().ok()? })
    }

    /// Takes it out of a connection at whose begin it waits.
    ///
    /// # Errors
    /// When it is not there.
    pub fn read(from: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = [0; Self::LEN];
        from.read_exact(&mut bytes)?;
        Self::parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// What the away half says first. `written` bytes follow, then [`HOLDS`], then those of the job.
#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    /// Offset of the first byte that follows, in the relay's stream of the job's bytes.
    from: u64,
    written: u64,
    /// Offset of what the relay has not brought here, in the stream of the peer's bytes.
    next: u64,
    /// What it has brought, and the job has not read.
    unread: Vec<u8>,
}

/// A half of a relay that leaves its bytes to others.
#[derive(Debug)]
pub(super) enum Direct {
    /// They go past it.
    Past,
    /// It takes them over again.
    Recalling(Box<Recalling>),
}

impl Endpoint {
    /// Bytes of the connection are not its matter now.
    pub(super) fn is_dormant(&self) -> bool {
        matches!(&self.role, Role::Socket(socket) if socket.direct.is_some())
    }

    fn recalling(&mut self) -> Option<&mut Recalling> {
        match &mut self.role {
            Role::Socket(socket) => match &mut socket.direct {
                Some(Direct::Recalling(recalling)) => Some(recalling),
                _ => None,
            },
            _ => None,
        }
    }

    fn recalling_ref(&self) -> Option<&Recalling> {
        match &self.role {
            Role::Socket(socket) => match &socket.direct {
                Some(Direct::Recalling(recalling)) => Some(recalling),
                _ => None,
            },
            _ => None,
        }
    }

    fn set_direct(&mut self, direct: Option<Direct>) {
        if let Role::Socket(socket) = &mut self.role {
            socket.direct = direct;
        }
    }

    /// Open in both directions, with nothing told of an end.
    fn may_be_direct(&self) -> bool {
        let Role::Socket(socket) = &self.role else { return false };
        let open = self.tx.as_ref().is_some_and(|tx| !tx.closed())
            && self.rx.as_ref().is_some_and(|rx| !rx.broken() && !rx.has_ended());
        open && self.local.is_some() && socket.is_plain() && !self.frozen
    }

    /// A message has passed. True for the one that makes it busy.
    pub(super) fn note_message(&mut self) -> bool {
        match &mut self.role {
            Role::Socket(socket) if socket.away => {
                socket.messages = socket.messages.saturating_add(1);
                socket.messages == BUSY
            }
            _ => false,
        }
    }
}

/// Both sides.
impl Relays {
    /// A message that is about the way past a relay. False: it is another's.
    pub(super) fn hear_direct(&mut self, msg: &RelayMsg, out: Out<'_>) -> bool {
        let stream = msg.stream();
        match *msg {
            RelayMsg::Want { alone: true, .. } => self.invite(stream, out),
            RelayMsg::Want { .. } => self.wants.push(stream),
            RelayMsg::Meet { node, job, .. } => self.meetings.push((stream, node, job)),
            RelayMsg::Ask { number, sent, .. } => self.answer_ask(stream, number, sent, out),
            // An earlier question's may come late.
            RelayMsg::Quiet { number, quiet, sent, .. } if number == self.asked => {
                self.quiet.insert(stream, (quiet, sent));
            }
            RelayMsg::Quiet { .. } => {}
            RelayMsg::Rest { key, .. } => self.hear_rest(stream, key),
            RelayMsg::Closed { .. } => self.remove(stream),
            RelayMsg::Invite { key, .. } => self.invitations.push((stream, key)),
            RelayMsg::Recall { .. } => self.hear_recall(stream, out),
            RelayMsg::Recalling { .. } => self.hear_recalling(stream, out),
            RelayMsg::Recalled { eof, .. } => {
                if let Some(recalling) = self.halves.get_mut(&stream).and_then(Endpoint::recalling)
                {
                    recalling.answer = Some(eof);
                    self.go_on_recalling(stream, out);
                }
            }
            RelayMsg::Forgotten { .. } => {
                let Some(half) = self.halves.get_mut(&stream).filter(|half| half.is_dormant())
                else {
                    return false;
                };
                let Some(recalling) = half.recalling() else {
                    self.remove(stream);
                    return true;
                };
                recalling.gone = true;
                self.go_on_recalling(stream, out);
            }
            // Left of what was under way before.
            _ => return self.halves.get(&stream).is_some_and(Endpoint::is_dormant),
        }
        true
    }

    /// The other side knows that an end is not the job's own word.
    fn hear_recalling(&mut self, stream: StreamId, out: Out<'_>) {
        if let Some(recalling) = self.halves.get_mut(&stream).and_then(Endpoint::recalling) {
            recalling.told = true;
            recalling.was.iter().for_each(Local::shut);
            self.go_on_recalling(stream, out);
        }
    }

    fn hear_recall(&mut self, stream: StreamId, out: Out<'_>) {
        if let Some(pump) = self.pumps.get_mut(&stream).filter(|pump| pump.near.is_some()) {
            pump.recalled = true;
            out(RelayMsg::Recalling { stream }, &[]);
            return self.go_on_pumping(stream, out);
        }
        match self.halves.get_mut(&stream) {
            // It rested.
            Some(half) if half.is_dormant() => {
                half.begin_anew();
                out(RelayMsg::Recalled { stream, eof: false }, &[]);
                half.pump(&self.registry, self.linked, out);
            }
            // It was answered, and the answer was lost with a link.
            Some(half) => {
                let eof = half.tx.as_ref().is_some_and(Sender::closed);
                out(RelayMsg::Recalled { stream, eof }, &[]);
            }
            None => out(RelayMsg::Forgotten { stream }, &[]),
        }
    }

    /// An event of a socket between the nodes. False when the token is of none.
    pub(super) fn far_ready(&mut self, token: Token, closed: bool, out: Out<'_>) -> bool {
        let Some(stream) = self.far_tokens.get(&token).copied() else { return false };
        if !self.pump_ready(stream, true, closed, out) {
            self.go_on_recalling(stream, out);
        }
        true
    }

    /// The other side is asked again, on a new link.
    pub(super) fn recall_again(&mut self, out: Out<'_>) {
        for (stream, half) in &mut self.halves {
            if half.recalling().is_some_and(|recalling| recalling.answer.is_none()) {
                out(RelayMsg::Recall { stream: *stream }, &[]);
            }
        }
    }
}
