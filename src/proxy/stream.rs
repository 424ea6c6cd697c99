//! One direction of a relayed stream: bytes in order, then eof, whatever the link does.
//!
//! Nothing here does I/O. A [`Sender`] keeps every byte until the other half says that it
//! was *consumed* (handed to a kernel object), so each half alone can be rebuilt from its
//! serialized state, and the link between them may be cut at any point:
//!
//! ```text
//!      acked            next              limit
//!  ─────┼────────────────┼─────────────────┼────────►  offset
//!       │ sent, kept     │ may be sent     │ not yet
//!
//!      consumed         Receiver::next
//!  ─────┼────────────────┼─────────────────►
//!       │ pending        │ expected
//! ```
//! As in TCP the eof takes one offset of its own: it is acknowledged like a byte.

use std::collections::VecDeque;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::term::{Termios, WindowSize};
use crate::ids::{JobId, NodeId};

/// Names one relayed object of a job: a pipe end, a file, a terminal or a connection. Both
/// halves use the same number; the two directions of a terminal or connection share it.
pub type StreamId = u32;

/// Bytes that may be on their way in one direction of one stream.
pub const WINDOW: usize = 256 << 10;

/// Consumed bytes that are acknowledged at once; fewer wait for bytes the other way, or for some
/// milliseconds.
pub const ACK: u64 = WINDOW as u64 / 4;

/// Largest payload of one [`RelayMsg::Data`], bytes.
pub const CHUNK: usize = 64 << 10;

/// What the two halves of a relay say to each other. [`RelayMsg::Data`] is followed by its
/// payload, every other message by none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayMsg {
    /// The payload stands at `offset`; with `eof`, nothing follows it.
    Data { stream: StreamId, offset: u64, eof: bool },
    /// Everything below `offset` was consumed; `window` more bytes are taken.
    Ack { stream: StreamId, offset: u64, window: u32 },
    /// The sender shall go on at `next`. First word of each receiver on a new link.
    Resync { stream: StreamId, next: u64 },
    /// Nobody will read this stream any more: its writer shall see EPIPE.
    BrokenPipe { stream: StreamId },
    /// The home terminal's size.
    Winsize { stream: StreamId, size: WindowSize },
    /// The home terminal hung up.
    Hangup { stream: StreamId },
    /// The job ended and left its terminal with these modes.
    Settings { stream: StreamId, termios: Box<Termios> },
    /// The home's listening socket has accepted a connection, which is the stream `new`: the job's
    /// address of it, and the client's.
    Accepted { stream: StreamId, new: StreamId, own: SocketAddr, peer: SocketAddr },
    /// So many connections of the job's listening socket wait no more, since it is relayed: the job
    /// has accepted them, or nobody will.
    Taken { stream: StreamId, count: u64 },
    /// The away half of a connection has nothing to do any more, and knows all that the home half did.
    Over { stream: StreamId },
    /// The home half has nothing to do either, and is gone.
    Forgotten { stream: StreamId },
    /// The connection was reset on this side.
    Reset { stream: StreamId },
    /// The away half would lead a connection past the relay; when `alone`, to its home only.
    Want { stream: StreamId, alone: bool },
    /// Its other end is that of a job, of which this node knows ([`super::direct`]).
    Meet { stream: StreamId, node: NodeId, job: JobId },
    /// The job is frozen, and its stream ends at `sent`: is anything under way? No two have the same
    /// number.
    Ask { stream: StreamId, number: u64, sent: u64 },
    /// The answer: when `quiet`, not at home, nor to or from the peer, whose stream ends at `sent`.
    Quiet { stream: StreamId, number: u64, quiet: bool, sent: u64 },
    /// The job has a connection of its own, made with this key: the relay rests until it is recalled.
    Rest { stream: StreamId, key: [u8; 32] },
    /// The job has closed it.
    Closed { stream: StreamId },
    /// It may connect to the home's node with this key ([`super::direct`]).
    Invite { stream: StreamId, key: [u8; 32] },
    /// The relay shall carry it again.
    Recall { stream: StreamId },
    /// It will, when both sides have said their last word past it.
    Recalling { stream: StreamId },
    /// It does, from offset 0 both ways; with `eof`, nothing follows what came before.
    Recalled { stream: StreamId, eof: bool },
    /// Keys below this offset were typed, edited and echoed at home before the relay took
    /// the terminal over.
    Typed { stream: StreamId, until: u64 },
}

impl RelayMsg {
    /// The stream that the message is about.
    #[must_use]
    pub fn stream(&self) -> StreamId {
        match *self {
            Self::Data { stream, .. }
            | Self::Ack { stream, .. }
            | Self::Resync { stream, .. }
            | Self::BrokenPipe { stream }
            | Self::Winsize { stream, .. }
            | Self::Hangup { stream }
            | Self::Settings { stream, .. }
            | Self::Reset { stream }
            | Self::Accepted { stream, .. }
            | Self::Taken { stream, .. }
            | Self::Over { stream }
            | Self::Forgotten { stream }
            | Self::Want { stream, .. }
            | Self::Meet { stream, .. }
            | Self::Ask { stream, .. }
            | Self::Quiet { stream, .. }
            | Self::Rest { stream, .. }
            | Self::Closed { stream }
            | Self::Invite { stream, .. }
            | Self::Recall { stream }
            | Self::Recalling { stream }
            | Self::Recalled { stream, .. }
            | Self::Typed { stream, .. } => stream,
        }
    }
}

/// A peer that breaks the rules of the stream; the link should be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("data at offset {got}, expected {expected}: bytes are missing")]
    Gap { expected: u64, got: u64 },
    #[error("data up to offset {end} is beyond the window, which ends at {limit}")]
    Overrun { end: u64, limit: u64 },
    #[error("data or eof at offset {end} contradicts the eof at {eof}")]
    AfterEof { end: u64, eof: u64 },
    #[error("acknowledgement of offset {got}, but only {from}..={to} make sense")]
    BadAck { from: u64, to: u64, got: u64 },
}

/// The half of a stream into which local bytes go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sender {
    /// Offset of the first byte of `buffer`.
    acked: u64,
    /// Bytes that the peer has not consumed yet.
    buffer: VecDeque<u8>,
    eof: bool,
    eof_acked: bool,
    /// The peer takes bytes below this offset.
    limit: u64,
    /// The reader is gone.
    broken: bool,
    /// Next offset to put on the link; none until the peer has said where it stands.
    #[serde(skip)]
    next: Option<u64>,
    /// Nothing from this offset on is put on the link.
    #[serde(skip)]
    held: Option<u64>,
}

impl Default for Sender {
    fn default() -> Self {
        Self {
            acked: 0,
            buffer: VecDeque::new(),
            eof: false,
            eof_acked: false,
            limit: WINDOW as u64,
            broken: false,
            next: None,
            held: None,
        }
    }
}

impl Sender {
    /// How many bytes should be read locally, at most: 0 after eof or without a reader.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.eof || self.broken {
            return 0;
        }
        WINDOW.saturating_sub(self.buffer.len())
    }

    /// Appends local bytes. Not bounded by [`Sender::room`], so that a freeze can take
    /// everything a pipe holds. Dropped when the reader is gone or the stream has ended.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.eof && !self.broken {
            self.buffer.extend(bytes);
        }
    }

    /// Puts nothing more on the link than what [`Sender::take_excess`] leaves now; or, with false,
    /// all again.
    pub fn hold(&mut self, held: bool) {
        let kept = WINDOW.min(self.buffer.len()) as u64;
        let excess = self.buffer.len() > WINDOW;
        self.held = (held && excess).then(|| self.acked.saturating_add(kept));
    }

    /// Takes out what lies beyond the window, and so was never put on the link, with the end that
    /// follows it.
    pub fn take_excess(&mut self) -> Vec<u8> {
        let kept = WINDOW.min(self.buffer.len());
        let excess: Vec<u8> = self.buffer.drain(kept..).collect();
        self.eof &= excess.is_empty();
        excess
    }

    /// Gives memory back that nothing is in.
    pub fn rest(&mut self) {
        self.buffer.shrink_to_fit();
    }

    /// Nothing follows what was pushed so far.
    pub fn close(&mut self) {
        self.eof = true;
    }

    /// The reader is gone: nothing is kept or sent any more.
    pub fn break_off(&mut self) {
        self.broken = true;
        self.buffer.clear();
    }

    /// Offset behind the last byte pushed.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.acked.saturating_add(self.buffer.len() as u64)
    }

    /// [`Sender::end`], and one more for the eof.
    fn fin(&self) -> u64 {
        self.end().saturating_add(self.eof.into())
    }

    /// All that the peer has not consumed, and the offset where it begins.
    #[must_use]
    pub fn kept(&self) -> (u64, Vec<u8>) {
        (self.acked, self.buffer.iter().copied().collect())
    }

    /// What stands from this offset on; `None` for one that was given up, or never pushed.
    #[must_use]
    pub fn kept_from(&self, offset: u64) -> Option<Vec<u8>> {
        let from = usize::try_from(offset.checked_sub(self.acked)?).ok()?;
        (from <= self.buffer.len()).then(|| self.buffer.range(from..).copied().collect())
    }

    /// No local byte is wanted any more.
    #[must_use]
    pub fn closed(&self) -> bool {
        self.eof || self.broken
    }

    /// The reader is gone.
    #[must_use]
    pub fn broken(&self) -> bool {
        self.broken
    }

    /// Everything pushed (and the eof, if there was one) was consumed, or nobody will.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.broken || (self.buffer.is_empty() && (!self.eof || self.eof_acked))
    }

    /// The link is gone: nothing is sent until the next [`Sender::on_resync`].
    pub fn disconnect(&mut self) {
        self.next = None;
    }

    /// The peer expects `next`.
    ///
    /// # Errors
    /// When that offset was given up already or never pushed.
    pub fn on_resync(&mut self, next: u64) -> Result<(), StreamError> {
        self.plausible(next)?;
        self.next = Some(next);
        Ok(())
    }

    /// The peer consumed everything below `offset` and takes `window` bytes from there.
    ///
    /// # Errors
    /// When `offset` is beyond what was pushed.
    pub fn on_ack(&mut self, offset: u64, window: u32) -> Result<(), StreamError> {
        if self.broken || offset < self.acked {
            return Ok(());
        }
        self.plausible(offset)?;
        let bytes = (offset - self.acked).min(self.buffer.len() as u64);
        // `bytes` is at most the buffer's length.
        self.buffer.drain(..bytes as usize);
        self.acked += bytes;
        self.eof_acked |= self.eof && offset > self.acked;
        self.limit = self.limit.max(offset.saturating_add(window.into()));
        self.next = self.next.map(|next| next.max(offset));
        Ok(())
    }

    fn plausible(&self, got: u64) -> Result<(), StreamError> {
        let (from, to) = (self.acked, self.fin());
        if self.broken || (from..=to).contains(&got) {
            return Ok(());
        }
        Err(StreamError::BadAck { from, to, got })
    }

    /// The next piece to put on the link, at most [`CHUNK`] bytes, fewer when they wrap around in
    /// memory: offset, bytes, eof.
    pub fn poll(&mut self) -> Option<(u64, &[u8], bool)> {
        let offset = self.next.filter(|&next| !self.broken && next < self.fin())?;
        let limit = self.limit.min(self.held.unwrap_or(self.limit));
        // Both ends lie in the buffer: acked <= offset, as on_ack sees to it, and next < fin.
        let from = usize::try_from(offset.checked_sub(self.acked)?).ok()?;
        let most = usize::try_from(limit.saturating_sub(offset)).unwrap_or(CHUNK).min(CHUNK);
        let (front, back) = self.buffer.as_slices();
        let rest = match from.checked_sub(front.len()) {
            None => &front[from..],
            Some(behind) => back.get(behind..)?,
        };
        let piece = &rest[..rest.len().min(most)];
        let eof = self.eof && from + piece.len() == self.buffer.len();
        if piece.is_empty() && !eof {
            return None;
        }
        self.next = Some(offset.saturating_add(piece.len() as u64).saturating_add(eof.into()));
        Some((offset, piece, eof))
    }
}

/// The half of a stream from which bytes go to a local object.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Receiver {
    consumed: u64,
    pending: VecDeque<u8>,
    eof: bool,
    eof_consumed: bool,
    broken: bool,
}

impl Receiver {
    /// The offset expected next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.end().saturating_add(self.eof.into())
    }

    fn end(&self) -> u64 {
        self.consumed.saturating_add(self.pending.len() as u64)
    }

    /// Takes a piece; what is known already is trimmed.
    ///
    /// # Errors
    /// A gap, more than the window, or bytes behind the eof.
    pub fn on_data(&mut self, offset: u64, bytes: &[u8], eof: bool) -> Result<(), StreamError> {
        if self.broken {
            return Ok(());
        }
        let expected = self.end();
        let end = offset.saturating_add(bytes.len() as u64);
        if offset > expected {
            return Err(StreamError::Gap { expected, got: offset });
        }
        if (self.eof && end > expected) || (eof && end < expected) {
            return Err(StreamError::AfterEof { end, eof: expected.min(end) });
        }
        let limit = self.consumed.saturating_add(WINDOW as u64);
        if end > limit {
            return Err(StreamError::Overrun { end, limit });
        }
        // Less than the window, as both lie within it.
        let known = (expected - offset) as usize;
        self.pending.extend(bytes.get(known..).unwrap_or_default());
        self.eof |= eof;
        Ok(())
    }

    /// Would a piece at `offset` be consumed next, if it were taken?
    #[must_use]
    pub fn is_next(&self, offset: u64) -> bool {
        self.pending.is_empty() && offset == self.consumed && !self.eof && !self.broken
    }

    /// The first `n` bytes of a piece that [`Receiver::is_next`] were handed over at once.
    pub fn pass(&mut self, n: usize) {
        self.consumed = self.consumed.saturating_add(n as u64);
    }

    /// The bytes to be consumed next; a part of them when they wrap around in memory.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.pending.as_slices().0
    }

    /// All that was not consumed.
    #[must_use]
    pub fn into_pending(self) -> Vec<u8> {
        self.pending.into()
    }

    /// Nothing follows what is here.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.eof
    }

    /// All pending bytes in one slice.
    pub fn all_pending(&mut self) -> &[u8] {
        self.pending.make_contiguous()
    }

    /// Offset of the first pending byte.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// `n` of the pending bytes were handed over.
    pub fn consume(&mut self, n: usize) {
        let n = n.min(self.pending.len());
        self.pending.drain(..n);
        self.consumed = self.consumed.saturating_add(n as u64);
    }

    /// Gives memory back that nothing is in.
    pub fn rest(&mut self) {
        self.pending.shrink_to_fit();
    }

    /// Every byte was consumed and nothing follows: the local object shall see eof.
    #[must_use]
    pub fn at_eof(&self) -> bool {
        self.eof && self.pending.is_empty()
    }

    /// The local object has seen the eof.
    pub fn consume_eof(&mut self) {
        self.eof_consumed = self.at_eof();
    }

    /// The sender is gone: nothing follows what has come.
    pub fn end_here(&mut self) {
        self.eof = true;
    }

    /// Nobody reads locally any more.
    pub fn break_off(&mut self) {
        self.broken = true;
        self.pending.clear();
    }

    /// Nobody reads locally any more.
    #[must_use]
    pub fn broken(&self) -> bool {
        self.broken
    }

    /// Nothing is to be done any more.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.broken || self.eof_consumed
    }

    /// Offset and window of the acknowledgement that is true now.
    #[must_use]
    pub fn ack(&self) -> (u64, u32) {
        (self.consumed.saturating_add(self.eof_consumed.into()), WINDOW as u32)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
