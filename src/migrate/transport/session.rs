//! One TLS session with frames in it, sans-IO: bytes from the network come in by
//! [`Session::space`] and [`Session::received`], bytes for it go out by
//! [`Session::outgoing`] and [`Session::sent`].
//!
//! Records are encrypted straight into the outgoing buffer and decrypted in the incoming
//! one, so a payload is copied once on its way out (by the cipher) and once on its way in
//! (out of its record, into its frame).

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};

use super::codec::{CodecError, Decoder, Frame, MAX_HEADER};
use super::tls::Verifier;
use crate::ids::NodeId;

/// First size of the incoming buffer, bytes: one record.
const INCOMING_MIN: usize = 18 << 10;
/// Largest size of the incoming buffer, bytes.
const INCOMING_MAX: usize = 512 << 10;
/// Smallest size of the outgoing buffer, bytes.
const OUTGOING_MIN: usize = 18 << 10;
/// The outgoing buffer is given back when it is empty and larger than this, bytes.
const OUTGOING_KEEP: usize = 2 << 20;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("TLS: {0}")]
    Encrypt(#[from] EncryptError),
    #[error("TLS: {0}")]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Frame(#[from] CodecError),
    #[error("more TLS handshake data than fits its buffer")]
    RecordTooLong,
    #[error("TLS: unexpected early data")]
    EarlyData,
    #[error("the session has been closed")]
    Closed,
}

/// A byte buffer that is filled at its end and emptied at its front; its memory stays
/// initialised, so that neither costs more than the bytes themselves.
#[derive(Debug, Default)]
struct Buffer {
    memory: Vec<u8>,
    head: usize,
    tail: usize,
}

impl Buffer {
    fn len(&self) -> usize {
        self.tail - self.head
    }

    fn filled(&mut self) -> &mut [u8] {
        &mut self.memory[self.head..self.tail]
    }

    /// At least `size` free bytes behind the filled ones.
    fn space(&mut self, size: usize) -> &mut [u8] {
        if self.memory.len() - self.tail < size {
            self.memory.copy_within(self.head..self.tail, 0);
            (self.head, self.tail) = (0, self.tail - self.head);
            let wanted = self.tail + size;
            if self.memory.len() < wanted {
                self.memory.resize(wanted.max(2 * self.tail), 0);
            }
        }
        &mut self.memory[self.tail..]
    }

    fn fill(&mut self, n: usize) {
        self.tail += n.min(self.memory.len() - self.tail);
    }

    fn consume(&mut self, n: usize) {
        self.head += n.min(self.len());
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        }
    }
}

enum Half {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What one step of TLS came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something was done; there may be more.
    Again,
    /// The handshake waits for the peer.
    Handshaking,
    /// Application data may be sent.
    Ready,
    /// The peer has ended its side in order.
    PeerClosed,
    /// Both sides have.
    Closed,
}

/// See the [module](self).
pub struct Session {
    half: Half,
    verifier: Arc<Verifier>,
    incoming: Buffer,
    read_size: usize,
    wire: Wire,
    /// Plaintext sent before the handshake was over.
    early: Vec<u8>,
    established: bool,
    peer_closed: bool,
    closing: bool,
}

/// The part of a session that a TLS state works on while it borrows the rest.
struct Wire {
    outgoing: Buffer,
    decoder: Decoder,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("established", &self.established)
            .field("peer_closed", &self.peer_closed)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn client(tls: UnbufferedClientConnection, verifier: Arc<Verifier>) -> Self {
        Self::new(Half::Client(tls), verifier)
    }

    pub(super) fn server(tls: UnbufferedServerConnection, verifier: Arc<Verifier>) -> Self {
        Self::new(Half::Server(tls), verifier)
    }

    fn new(half: Half, verifier: Arc<Verifier>) -> Self {
        Self {
            half,
            verifier,
            incoming: Buffer::default(),
            read_size: INCOMING_MIN,
            wire: Wire { outgoing: Buffer::default(), decoder: Decoder::new(MAX_HEADER) },
            early: Vec::new(),
            established: false,
            peer_closed: false,
            closing: false,
        }
    }

    /// Where the next bytes from the network go.
    pub fn space(&mut self) -> &mut [u8] {
        self.incoming.space(self.read_size)
    }

    /// `n` bytes were put in [`Self::space`]; decrypts and decodes what is complete.
    ///
    /// # Errors
    /// When the peer breaks TLS or the frame format, or is not accepted.
    pub fn received(&mut self, n: usize) -> Result<(), SessionError> {
        if n >= self.read_size {
            self.read_size = (2 * self.read_size).min(INCOMING_MAX);
        }
        self.incoming.fill(n);
        self.process()?;
        if self.incoming.len() > INCOMING_MAX {
            return Err(SessionError::RecordTooLong);
        }
        Ok(())
    }

    /// Bytes for the network.
    pub fn outgoing(&mut self) -> &[u8] {
        self.wire.outgoing.filled()
    }

    /// The first `n` bytes of [`Self::outgoing`] are on their way.
    pub fn sent(&mut self, n: usize) {
        self.wire.outgoing.consume(n);
        if self.wire.outgoing.len() == 0 && self.wire.outgoing.memory.len() > OUTGOING_KEEP {
            self.wire.outgoing = Buffer::default();
        }
    }

    /// Bytes that wait in [`Self::outgoing`] or for the end of the handshake.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.wire.outgoing.len() + self.early.len()
    }

    /// Encrypts `head` and then `body` into [`Self::outgoing`], or keeps them until the
    /// handshake is over.
    ///
    /// # Errors
    /// After [`Self::close`], and when TLS cannot encrypt any more.
    pub fn send(&mut self, head: &[u8], body: &[u8]) -> Result<(), SessionError> {
        if self.closing {
            return Err(SessionError::Closed);
        }
        if self.established {
            self.encrypt(head)?;
            return self.encrypt(body);
        }
        self.early.extend_from_slice(head);
        self.early.extend_from_slice(body);
        Ok(())
    }

    /// Ends this side in order; the peer sees that nothing is missing.
    ///
    /// # Errors
    /// When TLS cannot encrypt any more.
    pub fn close(&mut self) -> Result<(), SessionError> {
        if !std::mem::replace(&mut self.closing, true) && self.established {
            self.with_traffic(Message::CloseNotify)?;
        }
        Ok(())
    }

    /// Starts, or goes on with, what is possible without new bytes.
    ///
    /// # Errors
    /// As [`Self::received`].
    pub fn process(&mut self) -> Result<(), SessionError> {
        let end = self.run(None)?;
        if end == Step::Ready && !self.established {
            self.established = true;
            let early = std::mem::take(&mut self.early);
            self.encrypt(&early)?;
            if self.closing {
                self.with_traffic(Message::CloseNotify)?;
            }
        }
        Ok(())
    }

    /// The handshake is over, as far as this side can know.
    #[must_use]
    pub fn established(&self) -> bool {
        self.established
    }

    /// The peer has ended its side in order.
    #[must_use]
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// The identity that the peer has shown; proven only when [`Self::established`].
    #[must_use]
    pub fn shown(&self) -> Option<NodeId> {
        self.verifier.seen()
    }

    /// The oldest received frame.
    pub fn next_frame(&mut self) -> Option<Frame> {
        self.wire.decoder.next_frame()
    }

    /// What the received frames cost, bytes.
    #[must_use]
    pub fn inbox(&self) -> usize {
        self.wire.decoder.ready_cost()
    }

    /// Part of a frame has been received.
    #[must_use]
    pub fn in_frame(&self) -> bool {
        self.wire.decoder.in_frame()
    }

    /// As [`Decoder::recycle`].
    pub fn recycle(&mut self, payload: Vec<u8>) {
        self.wire.decoder.recycle(payload);
    }

    /// As [`Decoder::forget_recycled`].
    pub fn forget_recycled(&mut self) {
        self.wire.decoder.forget_recycled();
    }

    /// Refuses frames whose header is above `size` bytes.
    pub fn limit_header(&mut self, size: usize) {
        self.wire.decoder.limit_header(size);
    }

    fn encrypt(&mut self, plain: &[u8]) -> Result<(), SessionError> {
        if plain.is_empty() {
            return Ok(());
        }
        self.with_traffic(Message::Data(plain))
    }

    fn with_traffic(&mut self, message: Message<'_>) -> Result<(), SessionError> {
        match self.run(Some(message))? {
            Step::Ready => Ok(()),
            _ => Err(SessionError::Closed),
        }
    }

    /// Steps until the peer or the caller has to do something. `message` is written at the
    /// first chance.
    fn run(&mut self, mut message: Option<Message<'_>>) -> Result<Step, SessionError> {
        loop {
            let step = match self.step(&mut message)? {
                Step::Again => continue,
                Step::PeerClosed => {
                    self.peer_closed = true;
                    continue;
                }
                step => step,
            };
            return Ok(step);
        }
    }

    fn step(&mut self, message: &mut Option<Message<'_>>) -> Result<Step, SessionError> {
        let incoming = self.incoming.filled();
        let (discard, step) = match &mut self.half {
            Half::Client(tls) => self.wire.step(tls.process_tls_records(incoming), message),
            Half::Server(tls) => self.wire.step(tls.process_tls_records(incoming), message),
        };
        self.incoming.consume(discard);
        step
    }
}

/// What is to be written when TLS allows it.
#[derive(Clone, Copy)]
enum Message<'a> {
    Data(&'a [u8]),
    CloseNotify,
}

impl Wire {
    fn step<D>(
        &mut self,
        status: UnbufferedStatus<'_, '_, D>,
        message: &mut Option<Message<'_>>,
    ) -> (usize, Result<Step, SessionError>) {
        let UnbufferedStatus { mut discard, state } = status;
        let step =
            state.map_err(SessionError::from).and_then(|s| self.act(s, message, &mut discard));
        (discard, step)
    }

    fn act<D>(
        &mut self,
        state: ConnectionState<'_, '_, D>,
        message: &mut Option<Message<'_>>,
        discard: &mut usize,
    ) -> Result<Step, SessionError> {
        match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    *discard += record.discard;
                    self.decoder.push(record.payload)?;
                }
                Ok(Step::Again)
            }
            ConnectionState::EncodeTlsData(mut data) => {
                self.outgoing.write(OUTGOING_MIN, |space| data.encode(space))?;
                Ok(Step::Again)
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                Ok(Step::Again)
            }
            ConnectionState::WriteTraffic(traffic) => {
                message.take().map_or(Ok(()), |m| self.write(traffic, m))?;
                Ok(Step::Ready)
            }
            ConnectionState::BlockedHandshake => Ok(Step::Handshaking),
            ConnectionState::PeerClosed => Ok(Step::PeerClosed),
            ConnectionState::Closed => Ok(Step::Closed),
            _ => Err(SessionError::EarlyData),
        }
    }

    fn write<D>(
        &mut self,
        mut traffic: WriteTraffic<'_, D>,
        message: Message<'_>,
    ) -> Result<(), SessionError> {
        match message {
            Message::Data(plain) => {
                let guess = plain.len() + (plain.len() >> 8) + OUTGOING_MIN;
                self.outgoing.write(guess, |space| traffic.encrypt(plain, space))?;
            }
            Message::CloseNotify => {
                self.outgoing.write(OUTGOING_MIN, |space| traffic.queue_close_notify(space))?;
            }
        }
        Ok(())
    }
}

/// An error that may only mean: call again with more space.
trait WantsSpace {
    fn wanted(&self) -> Option<usize>;
}

impl WantsSpace for EncodeError {
    fn wanted(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
            Self::AlreadyEncoded => None,
        }
    }
}

impl WantsSpace for EncryptError {
    fn wanted(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
            Self::EncryptExhausted => None,
        }
    }
}

impl Buffer {
    /// Fills free space with what `f` writes; asks again when `f` wants more than `guess`.
    fn write<E: WantsSpace>(
        &mut self,
        guess: usize,
        mut f: impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let written = match f(self.space(guess)) {
            Err(e) => f(self.space(e.wanted().ok_or(e)?))?,
            Ok(written) => written,
        };
        self.fill(written);
        Ok(())
    }
}
