//! Connections between nodes: authenticated, encrypted, framed.
//!
//! ```text
//! send(header, payload) ─► codec ─► session (TLS 1.3) ─► Transport ═══► the peer's
//! next_frame()          ◄─ codec ◄─ session           ◄─ Transport ◄═══
//! ```
//!
//! [`codec`] and [`Session`] do no I/O; [`Link`] joins them to a [`Transport`], which is a
//! TCP connection today and may be any nonblocking byte stream.
//!
//! What a connection is for is said in its first bytes, as TLS server name ([`Service`]),
//! so that a node can hand it on before anything was decrypted.

pub mod codec;
mod service;
pub mod session;
mod tls;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mio::net::TcpStream;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;

pub use codec::{encode, encode_raw, CodecError, Decoder, Frame, MAX_HEADER, MAX_PAYLOAD};
pub use service::Service;
pub use session::{Session, SessionError};
pub use tls::{certificate_id, TlsConfig, Trusted};

use crate::ids::NodeId;

/// [`Link::drive`] stops reading while received frames of more bytes than this wait.
pub const INBOX_LIMIT: usize = 1 << 20;
/// One [`Link::drive`] reads about this many bytes at most, so that one busy link does not
/// starve the others of an event loop.
const DRIVE_LIMIT: usize = 16 << 20;
/// A payload below this size is encrypted together with its header, bytes.
const SMALL_PAYLOAD: usize = 4 << 10;
/// Small frames of so many bytes are encrypted, the largest content of a record (RFC 8446, 5.1).
const RECORD: usize = 16 << 10;
/// [`Link::queue`] writes when so many encrypted bytes wait.
const QUEUE: usize = 64 << 10;

/// A nonblocking byte stream that can be waited for.
pub trait Transport: io::Read + io::Write + mio::event::Source + AsFd {}

impl<T: io::Read + io::Write + mio::event::Source + AsFd> Transport for T {}

/// Why a link failed, and to whom.
#[derive(Debug, thiserror::Error)]
#[error("connection with {peer}: {kind}")]
pub struct LinkError {
    /// The other side's address.
    pub peer: String,
    pub kind: LinkErrorKind,
}

/// See [`LinkError`].
#[derive(Debug, thiserror::Error)]
pub enum LinkErrorKind {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("not an address (HOST:PORT)")]
    Address,
    #[error("its key {0} is not the one of a trusted node")]
    UnknownPeer(NodeId),
    #[error("it has the key {shown} and not {expected}")]
    WrongPeer { expected: NodeId, shown: NodeId },
    #[error("it closed the connection in the middle of the session")]
    Cut,
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl LinkErrorKind {
    fn at(self, peer: &str) -> LinkError {
        LinkError { peer: peer.to_owned(), kind: self }
    }
}

/// What one read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// Nothing is there now, or ever.
    Nothing,
    /// Bytes that left space.
    Short,
    /// There may be more.
    Full,
}

/// An authenticated connection that carries frames.
#[derive(Debug)]
pub struct Link<T = TcpStream> {
    io: T,
    session: Session,
    /// Frames that are to be encrypted together.
    small: Vec<u8>,
    remote: String,
    /// The peer that this side insists on (client side).
    expected: Option<NodeId>,
    /// Nothing more can be read.
    eof: bool,
    /// Why, when the end was not in order; told once the frames before it are taken.
    broken: Option<LinkErrorKind>,
    /// The last [`Self::drive`] read its share and left the rest.
    left_some: bool,
    bytes_sent: u64,
    bytes_received: u64,
}

impl Link<TcpStream> {
    /// Starts to connect to `peer` at `addr` (`HOST:PORT`) for `service`; [`Self::drive`] or
    /// [`Self::wait`] goes on. Only a host given by name, not by number, blocks, until it is
    /// resolved.
    ///
    /// # Errors
    /// When the address does not resolve or no socket can be made.
    pub fn connect(
        addr: &str,
        tls: &TlsConfig,
        peer: NodeId,
        service: Service,
    ) -> Result<Self, LinkError> {
        let target = resolve(addr).map_err(|kind| kind.at(addr))?;
        let stream = TcpStream::connect(target).map_err(|e| LinkErrorKind::from(e).at(addr))?;
        let link = Self::client(stream, addr.to_owned(), tls, peer, service)?;
        link.no_delay()?;
        Ok(link)
    }

    /// The server's side of an accepted connection, whatever of it is already on its way.
    /// Peers that are not trusted are refused in the handshake.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn accept(stream: std::net::TcpStream, tls: &TlsConfig) -> Result<Self, LinkError> {
        Self::accept_tcp(stream, tls, false)
    }

    /// As [`Self::accept`], but for anyone who holds the key that [`Self::peer`] then names:
    /// the caller has to ask [`TlsConfig::trusts`].
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn accept_stranger(
        stream: std::net::TcpStream,
        tls: &TlsConfig,
    ) -> Result<Self, LinkError> {
        Self::accept_tcp(stream, tls, true)
    }

    fn accept_tcp(
        stream: std::net::TcpStream,
        tls: &TlsConfig,
        strangers: bool,
    ) -> Result<Self, LinkError> {
        let remote =
            stream.peer_addr().map_or_else(|_| "unknown address".to_owned(), |a| a.to_string());
        stream.set_nonblocking(true).map_err(|e| LinkErrorKind::from(e).at(&remote))?;
        let link = Self::server(TcpStream::from_std(stream), remote, tls, strangers)?;
        link.no_delay()?;
        Ok(link)
    }

    /// Gives up on a silent peer: first probe after `idle` without traffic, and an error once
    /// something sent was not acknowledged for `timeout` (tcp(7): TCP_KEEPIDLE,
    /// TCP_KEEPINTVL, TCP_USER_TIMEOUT). Both are rounded to what the kernel can hold.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_timeouts(&self, idle: Duration, timeout: Duration) -> Result<(), LinkError> {
        let idle = u32::try_from(idle.as_secs().max(1)).unwrap_or(u32::MAX);
        let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        setsockopt(&self.io, sockopt::KeepAlive, &true)
            .and_then(|()| setsockopt(&self.io, sockopt::TcpKeepIdle, &idle))
            .and_then(|()| setsockopt(&self.io, sockopt::TcpKeepInterval, &idle))
            .and_then(|()| setsockopt(&self.io, sockopt::TcpUserTimeout, &millis))
            .map_err(|e| self.error(io::Error::from(e)))
    }

    /// This side's address.
    ///
    /// # Errors
    /// When the socket is not connected.
    pub fn local_addr(&self) -> Result<SocketAddr, LinkError> {
        self.io.local_addr().map_err(|e| self.error(e))
    }

    /// Frames leave at once (tcp(7): TCP_NODELAY). The buffers' sizes are left to the kernel,
    /// which lets them grow further (tcp_rmem, tcp_wmem) than an unprivileged setsockopt(2).
    fn no_delay(&self) -> Result<(), LinkError> {
        self.io.set_nodelay(true).map_err(|e| self.error(e))
    }
}

impl<T: Transport> Link<T> {
    /// The client's side of a session over `io`; `remote` names the other side in errors.
    ///
    /// # Errors
    /// When TLS cannot start.
    pub fn client(
        io: T,
        remote: String,
        tls: &TlsConfig,
        peer: NodeId,
        service: Service,
    ) -> Result<Self, LinkError> {
        let (half, verifier) = tls.client(peer, service).map_err(|e| tls_error(e, &remote))?;
        let mut link = Self::new(io, remote, Session::client(half, verifier), Some(peer));
        link.session.process().map_err(|e| link.session_error(e))?;
        Ok(link)
    }

    /// The server's side of a session over `io`, for `strangers` too or only for trusted peers.
    ///
    /// # Errors
    /// When TLS cannot start.
    pub fn server(
        io: T,
        remote: String,
        tls: &TlsConfig,
        strangers: bool,
    ) -> Result<Self, LinkError> {
        let (half, verifier) = tls.server(strangers).map_err(|e| tls_error(e, &remote))?;
        Ok(Self::new(io, remote, Session::server(half, verifier), None))
    }

    fn new(io: T, remote: String, session: Session, expected: Option<NodeId>) -> Self {
        Self {
            io,
            session,
            small: Vec::new(),
            remote,
            expected,
            eof: false,
            broken: None,
            left_some: false,
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    /// Does all I/O that is possible now: call it whenever the transport is ready, and again
    /// after taking frames when [`Self::paused`]. Never blocks.
    ///
    /// # Errors
    /// When the connection or the session has failed; the link is of no further use. That the
    /// peer's end is missing is told only when all frames before it have been taken.
    pub fn drive(&mut self) -> Result<(), LinkError> {
        self.drive_until(false)
    }

    /// As [`Self::drive`], just after the transport has told of bytes and not of its end: a read
    /// that leaves space has taken all, and what comes later is told anew.
    ///
    /// # Errors
    /// As [`Self::drive`].
    pub fn drive_bytes(&mut self) -> Result<(), LinkError> {
        self.drive_until(true)
    }

    fn drive_until(&mut self, short: bool) -> Result<(), LinkError> {
        self.flush()?;
        let stop = self.bytes_received + DRIVE_LIMIT as u64;
        self.left_some = false;
        while !self.eof {
            // The transport may be ready without ever telling so again.
            self.left_some = self.inbox_full() || self.bytes_received >= stop;
            if self.left_some {
                break;
            }
            let read = self.read()?;
            if read != Read::Nothing {
                self.flush()?;
            }
            if read == Read::Nothing || (short && read == Read::Short) {
                break;
            }
        }
        match &mut self.broken {
            Some(kind) if self.session.inbox() == 0 => {
                Err(std::mem::replace(kind, LinkErrorKind::Cut).at(&self.remote))
            }
            _ => Ok(()),
        }
    }

    /// Encrypts one frame, queues it and writes as much as the transport takes now. Frames
    /// sent before the handshake is over wait for it.
    ///
    /// # Errors
    /// When a size is above [`MAX_HEADER`] or [`MAX_PAYLOAD`], or the link has failed.
    pub fn send(&mut self, header: &impl Serialize, payload: &[u8]) -> Result<(), LinkError> {
        let head = encode(header, payload.len()).map_err(|e| self.session_error(e.into()))?;
        self.send_frame(head, payload)
    }

    /// As [`Self::send`], for a header that is serialized already.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_raw(&mut self, header: &[u8], payload: &[u8]) -> Result<(), LinkError> {
        let head = encode_raw(header, payload.len()).map_err(|e| self.session_error(e.into()))?;
        self.send_frame(head, payload)
    }

    /// As [`Self::send`], but small frames may wait for [`Self::flush`], so that several leave in one
    /// record and by one call.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn queue(&mut self, header: &impl Serialize, payload: &[u8]) -> Result<(), LinkError> {
        let head = encode(header, payload.len()).map_err(|e| self.session_error(e.into()))?;
        self.queue_frame(&head, payload)?;
        if self.session.queued() < QUEUE {
            return Ok(());
        }
        self.flush()
    }

    fn send_frame(&mut self, head: Vec<u8>, payload: &[u8]) -> Result<(), LinkError> {
        self.queue_frame(&head, payload)?;
        self.flush()
    }

    fn queue_frame(&mut self, head: &[u8], payload: &[u8]) -> Result<(), LinkError> {
        self.small.extend_from_slice(head);
        if payload.len() >= SMALL_PAYLOAD {
            return self.encrypt(payload);
        }
        self.small.extend_from_slice(payload);
        if self.small.len() < RECORD {
            return Ok(());
        }
        self.encrypt(&[])
    }

    /// Encrypts what was queued, and then `payload`.
    fn encrypt(&mut self, payload: &[u8]) -> Result<(), LinkError> {
        if self.small.is_empty() && payload.is_empty() {
            return Ok(());
        }
        let sent = self.session.send(&self.small, payload);
        self.small.clear();
        self.small.shrink_to(2 * RECORD);
        sent.map_err(|e| self.session_error(e))
    }

    /// Bytes that the kernel has not taken yet; a sender bounds its memory by waiting while
    /// this is large.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.small.len() + self.session.queued()
    }

    /// The oldest received frame.
    pub fn next_frame(&mut self) -> Option<Frame> {
        self.session.next_frame()
    }

    /// The last [`Self::drive`] has left something to be done: because frames of
    /// [`INBOX_LIMIT`] bytes wait to be taken, to give others their turn, or because an error is
    /// to be told after the frames. An event loop has to take the frames and drive again
    /// without waiting for the transport.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.left_some || self.broken.is_some()
    }

    fn inbox_full(&self) -> bool {
        self.session.inbox() > INBOX_LIMIT
    }

    /// The handshake is over. A client knows then who the server is; whether the server
    /// accepted the client shows only in the first frame that comes back (TLS 1.3).
    #[must_use]
    pub fn established(&self) -> bool {
        self.session.established()
    }

    /// Who the other side is, once it has proven it.
    #[must_use]
    pub fn peer(&self) -> Option<NodeId> {
        self.session.shown().filter(|_| self.established())
    }

    /// Whom the other side has claimed to be, proven or not: for the log.
    #[must_use]
    pub fn claimed(&self) -> Option<NodeId> {
        self.session.shown()
    }

    /// The other side's address, as text.
    #[must_use]
    pub fn remote(&self) -> &str {
        &self.remote
    }

    /// The other side has ended the session in order and every frame has been received;
    /// some may still wait in [`Self::next_frame`].
    #[must_use]
    pub fn closed(&self) -> bool {
        self.session.peer_closed()
    }

    /// Ends this side in order, after what is queued; go on with [`Self::drive`] until
    /// [`Self::queued`] is 0. Nothing can be sent afterwards.
    ///
    /// # Errors
    /// When the link has failed.
    pub fn close(&mut self) -> Result<(), LinkError> {
        self.encrypt(&[])?;
        self.session.close().map_err(|e| self.session_error(e))?;
        self.flush()
    }

    /// Takes a payload back that is done with: later frames use its memory.
    pub fn recycle(&mut self, payload: Vec<u8>) {
        self.session.recycle(payload);
    }

    /// Many payloads of about `payload` bytes are to be sent or received: takes the memory for
    /// them now, page faults included.
    pub fn expect_many(&mut self, payload: usize) {
        self.session.expect_many(payload);
    }

    /// Gives the memory of [`Self::recycle`] and [`Self::expect_many`] back to the system.
    pub fn expect_few(&mut self) {
        self.session.expect_few();
    }

    /// Refuses frames whose header is above `size` bytes (default [`MAX_HEADER`]).
    pub fn limit_header(&mut self, size: usize) {
        self.session.limit_header(size);
    }

    /// Bytes written to the transport.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// Bytes read from the transport.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// For callers without an event loop: drives, and when nothing was to be done waits for
    /// the transport (poll(2)) and drives again. `true` when something may have changed,
    /// `false` when `timeout` went by. While the inbox is full it waits for the queue only.
    ///
    /// # Errors
    /// As [`Self::drive`].
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, LinkError> {
        let before = self.progress();
        self.drive()?;
        if self.progress() != before || (self.broken.is_some() && self.queued() == 0) {
            return Ok(true);
        }
        let ready = self.poll(timeout).map_err(|e| self.error(e))?;
        if ready {
            self.drive()?;
        }
        Ok(ready)
    }

    fn progress(&self) -> (u64, u64, bool) {
        (self.bytes_sent, self.bytes_received, self.eof)
    }

    fn poll(&self, timeout: Duration) -> io::Result<bool> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, !self.eof && !self.inbox_full());
        events.set(PollFlags::POLLOUT, self.queued() > 0);
        let millis = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.io.as_fd(), events)], timeout) {
            Ok(n) => Ok(n > 0),
            Err(nix::errno::Errno::EINTR) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes what is queued, as far as the transport takes it now.
    ///
    /// # Errors
    /// When the link has failed.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        self.encrypt(&[])?;
        loop {
            let bytes = self.session.outgoing();
            if bytes.is_empty() {
                return Ok(());
            }
            match self.io.write(bytes) {
                Ok(0) => return Err(self.error(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.session.sent(n);
                    self.bytes_sent += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.error(e)),
            }
        }
    }

    fn read(&mut self) -> Result<Read, LinkError> {
        let space = self.session.space();
        let size = space.len();
        match self.io.read(space) {
            Ok(0) => self.end(LinkErrorKind::Cut),
            Ok(n) => {
                self.bytes_received += n as u64;
                self.session.received(n).map_err(|e| self.session_error(e))?;
                return Ok(if n < size { Read::Short } else { Read::Full });
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Read::Full),
            Err(e) => self.end(e.into()),
        }
        Ok(Read::Nothing)
    }

    /// Nothing comes any more; an error unless the peer has said so before.
    fn end(&mut self, why: LinkErrorKind) {
        self.eof = true;
        if !self.closed() || self.session.in_frame() {
            self.broken = Some(why);
        }
    }

    fn error(&self, error: io::Error) -> LinkError {
        LinkErrorKind::from(error).at(&self.remote)
    }

    /// Says who the peer is when that is what is wrong.
    fn session_error(&self, error: SessionError) -> LinkError {
        use rustls::{CertificateError::ApplicationVerificationFailure, Error};
        let refused = matches!(
            &error,
            SessionError::Tls(Error::InvalidCertificate(ApplicationVerificationFailure))
        );
        let kind = match (self.session.shown().filter(|_| refused), self.expected) {
            (Some(shown), Some(expected)) => LinkErrorKind::WrongPeer { expected, shown },
            (Some(shown), None) => LinkErrorKind::UnknownPeer(shown),
            (None, _) => error.into(),
        };
        kind.at(&self.remote)
    }
}

impl<T: Transport> AsFd for Link<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl<T: Transport> mio::event::Source for Link<T> {
    fn register(
        &mut self,
        registry: &mio::Registry,
        token: mio::Token,
        interests: mio::Interest,
    ) -> io::Result<()> {
        self.io.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &mio::Registry,
        token: mio::Token,
        interests: mio::Interest,
    ) -> io::Result<()> {
        self.io.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &mio::Registry) -> io::Result<()> {
        self.io.deregister(registry)
    }
}

fn resolve(addr: &str) -> Result<SocketAddr, LinkErrorKind> {
    if let Ok(addr) = addr.parse() {
        return Ok(addr);
    }
    addr.to_socket_addrs()?.next().ok_or(LinkErrorKind::Address)
}

fn tls_error(error: rustls::Error, remote: &str) -> LinkError {
    LinkErrorKind::from(SessionError::from(error)).at(remote)
}
