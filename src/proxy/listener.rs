//! Listening TCP sockets: the real one at home, which goes on accepting, and the job's.
//!
//! ```text
//! client ─► real listener ─ accept ─► real socket ═══ relay ═══ far end ─► the job's listener
//!                │                                                 ▲          └─ accept, in the job
//!                └──────────── Accepted, with both addresses ──────┘ dial
//! ```
//! The home numbers a new connection, tells both of its addresses until the other side has a half
//! for it, and relays it as any other. The away side wants it dialed ([`Dial`]): from the client's
//! address to the job's listener, in the envelope of both. What the job has not accepted yet
//! travels as a connection to be dialed again, with all that was sent on it: such a connection
//! gets a window's worth of bytes at most.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mio::Token;
use nix::poll::PollFlags;
use nix::sys::socket::{accept4, getpeername, getsockname, SockFlag, SockaddrStorage};
use serde::{Deserialize, Serialize};

use super::away::{AwayEnd, AwayState};
use super::endpoint::{Endpoint, Out, Role};
use super::local::Local;
use super::socket;
use super::stream::{RelayMsg, StreamId};
use super::term::wait_for;
use super::{raw, RelayError, Relays};

/// Connections that the home accepts ahead of the other side.
const MOST_AHEAD: usize = 64;

/// A connection that is to be made to the job's listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    pub stream: StreamId,
    pub listener: StreamId,
    /// The job's address of it, and the client's.
    pub own: SocketAddr,
    pub peer: SocketAddr,
}

/// The state of an away half.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListenerState {
    /// Connections that the job has not accepted, oldest first.
    waiting: Vec<StreamId>,
    /// The job has the listening socket still.
    open: bool,
}

/// The real listening socket.
#[derive(Debug, Default)]
pub(super) struct HomeListener {
    /// Connections of which the other side has no half yet, as far as is known.
    told: BTreeMap<StreamId, (SocketAddr, SocketAddr)>,
}

impl HomeListener {
    pub fn notices(&self, stream: StreamId) -> Vec<RelayMsg> {
        let tell = |(&new, &(own, peer)): (&StreamId, &(SocketAddr, SocketAddr))| {
            RelayMsg::Accepted { stream, new, own, peer }
        };
        self.told.iter().map(tell).collect()
    }
}

/// The job's listening socket.
#[derive(Debug, Default)]
pub(super) struct AwayListener {
    /// Connections that wait to be dialed again, and then those that the job has not accepted.
    again: Vec<StreamId>,
    waiting: VecDeque<StreamId>,
    /// The job has closed it.
    pub closed: bool,
    /// Its state has been given: what comes now has to be told again.
    pub captured: bool,
}

/// The home half, frozen.
pub(super) fn home(id: StreamId, fd: OwnedFd) -> (Endpoint, Local, AwayState) {
    let half = Endpoint::new(id, Role::HomeListener(HomeListener::default()), None, None);
    let state = ListenerState { waiting: Vec::new(), open: true };
    (half, Local::socket(fd), AwayState { stream: id, end: AwayEnd::Listener(state) })
}

/// The away half, frozen; `job_end` is a duplicate of the job's socket.
fn rebuild(id: StreamId, state: ListenerState, job_end: Option<OwnedFd>) -> Endpoint {
    let closed = job_end.is_none();
    let role = AwayListener { again: state.waiting, closed, ..AwayListener::default() };
    let mut half = Endpoint::new(id, Role::AwayListener(role), None, None);
    half.local = job_end.map(Local::socket);
    half.announce = closed;
    half
}

/// The next connection of a listening socket that others may share, if there is one.
fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<(OwnedFd, SocketAddr, SocketAddr)>> {
    let ready = wait_for(listener, PollFlags::POLLIN, std::time::Duration::ZERO)?;
    if !ready.contains(PollFlags::POLLIN) {
        return Ok(None);
    }
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    let fd = raw::own(fd);
    let own = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    let peer = match getpeername::<SockaddrStorage>(fd.as_raw_fd()) {
        // The client has reset it.
        Err(nix::Error::ENOTCONN) => return accept(listener),
        other => other?,
    };
    match (address(&own), address(&peer)) {
        (Some(own), Some(peer)) => Ok(Some((fd, own, peer))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn address(found: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = found.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| found.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}

impl Relays {
    /// As [`Relays::rebuild_socket`], of a listening socket.
    ///
    /// # Errors
    /// [`RelayError::Io`] when the state is of another kind.
    pub fn rebuild_listener(
        &mut self,
        state: AwayState,
        job_end: Option<OwnedFd>,
    ) -> Result<(), RelayError> {
        let id = state.stream;
        let AwayEnd::Listener(listener) = state.end else {
            let kind = io::ErrorKind::InvalidInput.into();
            return Err(RelayError::io(id, "make the job's listening socket", kind));
        };
        let half = rebuild(id, listener, job_end);
        self.halves.insert(id, half);
        self.listeners.push(id);
        Ok(())
    }

    /// Is it a listening socket?
    #[must_use]
    pub fn is_listener(&self, stream: StreamId) -> bool {
        self.listeners.contains(&stream)
    }

    /// The next connection that is to be made to a listening socket of the job (away side);
    /// [`Relays::dialed`] tells how that went.
    pub fn next_dial(&mut self) -> Option<Dial> {
        self.wanted.pop_front()
    }

    /// The connection with these addresses of the job and the client, which the job has accepted from a
    /// listening socket on this side.
    #[must_use]
    pub fn stream_of(&self, own: SocketAddr, peer: SocketAddr) -> Option<StreamId> {
        self.halves.values().find(|half| half.was_dialed(own, peer)).map(|half| half.id)
    }

    /// A connection was made, or nobody listens.
    pub fn dialed(&mut self, dial: Dial, far: Option<OwnedFd>, out: Out<'_>) {
        let Some(mut half) = self.halves.remove(&dial.stream) else { return };
        let token = self.tokens.next().map(Token);
        let attached = far.zip(token).map(|(far, token)| {
            self.by_token.insert(token, dial.stream);
            half.attach(Local::socket(far), &self.registry, token)
        });
        match attached {
            Some(Ok(())) => self.note_waiting(dial),
            _ => half.refuse(),
        }
        half.ready();
        half.pump(&self.registry, self.linked, out);
        self.halves.insert(dial.stream, half);
    }

    fn note_waiting(&mut self, dial: Dial) {
        let role = self.halves.get_mut(&dial.listener).map(|half| &mut half.role);
        if let Some(Role::AwayListener(listener)) = role {
            listener.waiting.push_back(dial.stream);
        }
    }

    /// The job has closed this listening socket: nobody can connect any more.
    pub fn close_listener(&mut self, stream: StreamId, out: Out<'_>) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        half.local = None;
        if let Role::AwayListener(listener) = &mut half.role {
            listener.closed = true;
        }
        half.announce = true;
        half.pump(&self.registry, self.linked, out);
    }

    /// A message about a listening socket. False: it is another's.
    pub(super) fn hear_listener(
        &mut self,
        msg: &RelayMsg,
        out: Out<'_>,
    ) -> Result<bool, RelayError> {
        if let RelayMsg::Resync { stream, .. } = msg {
            self.confirm(*stream, out);
        }
        if !self.listeners.contains(&msg.stream()) {
            // What the home says of a connection that has to be told again.
            return Ok(!self.listeners.is_empty() && !self.halves.contains_key(&msg.stream()));
        }
        match *msg {
            RelayMsg::Accepted { stream, new, own, peer } => {
                self.accepted(Dial { stream: new, listener: stream, own, peer }, out);
            }
            RelayMsg::BrokenPipe { stream } => {
                if let Some(half) = self.halves.get_mut(&stream) {
                    half.close(&self.registry);
                }
            }
            // It was frozen, and is not: what was told meanwhile was not taken.
            RelayMsg::Resync { stream, .. } => {
                if let Some(half) = self.halves.get_mut(&stream) {
                    half.announce = true;
                    half.pump(&self.registry, self.linked, out);
                }
            }
            _ => return Err(RelayError::unexpected(msg)),
        }
        Ok(true)
    }

    /// The other side has a half for this connection.
    fn confirm(&mut self, stream: StreamId, out: Out<'_>) {
        for id in self.listeners.clone() {
            let role = self.halves.get_mut(&id).map(|half| &mut half.role);
            if let Some(Role::HomeListener(listener)) = role {
                if listener.told.remove(&stream).is_some() {
                    if let Some(half) = self.halves.get_mut(&stream) {
                        half.resync(out);
                    }
                    return self.accept_all(id, out);
                }
            }
        }
    }

    /// The home has accepted a connection (away side). One that has given its state takes none: it is
    /// told again.
    fn accepted(&mut self, dial: Dial, out: Out<'_>) {
        let Some(listener) = self.halves.get(&dial.listener) else { return };
        let Role::AwayListener(role) = &listener.role else { return };
        let closed = role.closed;
        if role.captured || self.halves.contains_key(&dial.stream) {
            return;
        }
        let mut half = socket::to_be_dialed(dial);
        half.resync(out);
        if closed {
            half.refuse();
        } else {
            self.wanted.push_back(dial);
        }
        half.pump(&self.registry, self.linked, out);
        self.halves.insert(dial.stream, half);
    }

    /// Accepts what waits (home side), as far as the other side keeps up.
    pub(super) fn accept_all(&mut self, stream: StreamId, out: Out<'_>) {
        loop {
            let Some(half) = self.halves.get(&stream).filter(|half| !half.frozen) else { return };
            let (Role::HomeListener(listener), Some(local)) = (&half.role, &half.local) else {
                return;
            };
            if listener.told.len() >= MOST_AHEAD {
                return;
            }
            match accept(local.as_fd()) {
                Ok(Some((fd, own, peer))) => self.begin(stream, fd, own, peer),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(stream, %error, "accept(2)");
                    break;
                }
            }
        }
        if let Some(half) = self.halves.get_mut(&stream) {
            half.pump(&self.registry, self.linked, out);
        }
    }

    fn begin(&mut self, listener: StreamId, fd: OwnedFd, own: SocketAddr, peer: SocketAddr) {
        let new = self.new_stream();
        let (mut half, local) = socket::home_accepted(new, fd);
        half.thaw();
        if let Err(error) = self.insert(half, local) {
            tracing::warn!(%error, "a connection from {peer} is closed");
            return;
        }
        if let Some(half) = self.halves.get_mut(&listener) {
            if let Role::HomeListener(listener) = &mut half.role {
                listener.told.insert(new, (own, peer));
            }
            half.announce = true;
        }
    }

    /// A number that no stream of this side has.
    pub fn new_stream(&mut self) -> StreamId {
        let last = self.halves.keys().last().copied().unwrap_or(0).max(self.last_stream);
        self.last_stream = last.saturating_add(1);
        self.last_stream
    }

    /// Finds out which connections the job has accepted since.
    pub(super) fn find_accepted(&mut self, out: Out<'_>) {
        let mut accepted = Vec::new();
        for id in &self.listeners {
            let Some(half) = self.halves.get_mut(id).filter(|half| !half.frozen) else { continue };
            if let (Role::AwayListener(listener), Some(local)) = (&mut half.role, &half.local) {
                if !listener.waiting.is_empty() {
                    accepted.extend(listener.take_accepted(local.as_fd()));
                }
            }
        }
        for stream in accepted {
            if let Some(half) = self.halves.get_mut(&stream) {
                half.note_accepted();
                half.pump(&self.registry, self.linked, out);
            }
        }
    }

    /// Connections wait in the job's listening socket.
    pub(super) fn has_waiting(&self) -> bool {
        let mut roles = self.listeners.iter().filter_map(|id| Some(&self.halves.get(id)?.role));
        roles.any(
            |role| matches!(role, Role::AwayListener(listener) if !listener.waiting.is_empty()),
        )
    }

    /// Freezes a listening socket of the away side, before all connections.
    pub(super) fn freeze_listener(
        &mut self,
        stream: StreamId,
        job_end: Option<BorrowedFd<'_>>,
    ) -> io::Result<AwayState> {
        let missing = || io::Error::from(io::ErrorKind::InvalidInput);
        let half = self.halves.get_mut(&stream).ok_or_else(missing)?;
        half.frozen = true;
        let Role::AwayListener(listener) = &mut half.role else { return Err(missing()) };
        listener.captured = true;
        let accepted = match job_end {
            Some(end) => listener.take_accepted(end),
            None => Vec::new(),
        };
        let mut waiting: Vec<StreamId> = listener.again.clone();
        waiting.extend(&listener.waiting);
        let to_dial = self.wanted.iter().filter(|dial| dial.listener == stream);
        waiting.extend(to_dial.map(|dial| dial.stream));
        for stream in accepted {
            if let Some(half) = self.halves.get_mut(&stream) {
                half.note_accepted();
            }
        }
        let state = ListenerState { waiting, open: job_end.is_some() };
        Ok(AwayState { stream, end: AwayEnd::Listener(state) })
    }

    /// The job is about to run: what it has not accepted is dialed again.
    pub(super) fn dial_again(&mut self) {
        let mut again = Vec::new();
        for id in &self.listeners {
            let role = self.halves.get_mut(id).map(|half| &mut half.role);
            if let Some(Role::AwayListener(listener)) = role {
                again.append(&mut listener.again);
            }
        }
        let dials = again.iter().filter_map(|stream| self.halves.get(stream)?.dial());
        self.wanted.extend(dials);
    }
}

impl AwayListener {
    /// The oldest connections that are not in the job's queue any more.
    fn take_accepted(&mut self, listener: BorrowedFd<'_>) -> Vec<StreamId> {
        match raw::accept_queue(listener) {
            Ok(waiting) => {
                let accepted = self.waiting.len().saturating_sub(waiting);
                self.waiting.drain(..accepted).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "the queue of a listening socket is not told");
                Vec::new()
            }
        }
    }
}

/// Is the job to have a listening socket?
pub(super) fn is_open(state: &ListenerState) -> bool {
    state.open
}
