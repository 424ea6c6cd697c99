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
//!
//! The home takes no more connections than the job's own queue has room for, and leaves the others to
//! the kernel, which treats them as it did before: the away side counts those that wait no more
//! ([`RelayMsg::Taken`]).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{getpeername, getsockname, SockaddrStorage};
use serde::{Deserialize, Serialize};

use super::away::{AwayEnd, AwayState};
use super::endpoint::{Endpoint, Out, Role};
use super::local::Local;
use super::socket;
use super::stream::{RelayMsg, StreamId};
use super::term::wait_for;
use super::{raw, RelayError, Relays};

/// Connections that the home takes at most before the job accepts them: what the queue of a new network
/// namespace has room for (net.core.somaxconn, tcp(7)).
const MOST_WAITING: u64 = 4096;

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
    /// Those that wait no more.
    taken: u64,
    /// The job has the listening socket still.
    open: bool,
}

/// The real listening socket.
#[derive(Debug)]
pub(super) struct HomeListener {
    /// Connections of which the other side has no half yet, as far as is known.
    told: BTreeMap<StreamId, (SocketAddr, SocketAddr)>,
    /// Connections that were accepted here, those of them that wait no more, and how many may wait.
    accepted: u64,
    taken: u64,
    most: u64,
    /// accept(2) has failed, and is tried again.
    failed: bool,
}

impl HomeListener {
    fn new(backlog: u32) -> Self {
        // The kernel's queue has room for one more (sk_acceptq_is_full, include/net/sock.h).
        let most = u64::from(backlog).saturating_add(1).min(MOST_WAITING);
        Self { told: BTreeMap::new(), accepted: 0, taken: 0, most, failed: false }
    }

    pub fn notices(&self, stream: StreamId) -> Vec<RelayMsg> {
        let tell = |(&new, &(own, peer)): (&StreamId, &(SocketAddr, SocketAddr))| {
            RelayMsg::Accepted { stream, new, own, peer }
        };
        self.told.iter().map(tell).collect()
    }

    fn has_room(&self) -> bool {
        self.accepted.saturating_sub(self.taken) < self.most
    }
}

/// The job's listening socket.
#[derive(Debug, Default)]
pub(super) struct AwayListener {
    /// Connections that wait to be dialed again, and then those that the job has not accepted.
    again: Vec<StreamId>,
    waiting: VecDeque<StreamId>,
    /// Those that wait no more.
    taken: u64,
    /// The job has closed it.
    closed: bool,
    /// Its state has been given: what comes now has to be told again.
    pub captured: bool,
}

impl AwayListener {
    pub fn notices(&self, stream: StreamId) -> Vec<RelayMsg> {
        let mut notices = vec![RelayMsg::Taken { stream, count: self.taken }];
        if self.closed {
            notices.push(RelayMsg::BrokenPipe { stream });
        }
        notices
    }

    /// Takes out the oldest connections, which are not in the job's queue any more.
    fn take_accepted(&mut self, listener: BorrowedFd<'_>) -> Vec<StreamId> {
        match raw::accept_queue(listener) {
            Ok((queued, _)) => {
                let accepted = self.waiting.len().saturating_sub(queued as usize);
                self.take(accepted)
            }
            Err(error) => {
                tracing::warn!(%error, "the queue of a listening socket is not told");
                Vec::new()
            }
        }
    }

    fn take(&mut self, oldest: usize) -> Vec<StreamId> {
        self.taken = self.taken.saturating_add(oldest as u64);
        self.waiting.drain(..oldest).collect()
    }

    /// Nobody accepts any more.
    pub fn close(&mut self) {
        self.closed = true;
        let all = self.waiting.len();
        self.take(all);
    }
}

/// The home half, frozen.
///
/// # Errors
/// When the socket does not tell its backlog.
pub(super) fn home(id: StreamId, fd: OwnedFd) -> io::Result<(Endpoint, Local, AwayState)> {
    let (_, backlog) = raw::accept_queue(fd.as_fd())?;
    let half = Endpoint::new(id, Role::HomeListener(HomeListener::new(backlog)), None, None);
    let state = ListenerState { waiting: Vec::new(), taken: 0, open: true };
    Ok((half, Local::socket(fd), AwayState { stream: id, end: AwayEnd::Listener(state) }))
}

/// The away half, frozen; `job_end` is a duplicate of the job's socket.
fn rebuild(id: StreamId, state: ListenerState, job_end: Option<OwnedFd>) -> Endpoint {
    let ListenerState { waiting: again, taken, .. } = state;
    let closed = job_end.is_none();
    let role = AwayListener { again, taken, closed, ..AwayListener::default() };
    let mut half = Endpoint::new(id, Role::AwayListener(role), None, None);
    half.local = job_end.map(Local::socket);
    half.announce = true;
    half
}

/// Is the job to have a listening socket?
pub(super) fn is_open(state: &ListenerState) -> bool {
    state.open
}

/// The next connection of a listening socket, if there is one: the job's address of it, and the
/// client's.
fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<(OwnedFd, SocketAddr, SocketAddr)>> {
    loop {
        // Others may have the description too, so it stays blocking.
        let ready = wait_for(listener, PollFlags::POLLIN, Duration::ZERO)?;
        if !ready.contains(PollFlags::POLLIN) {
            return Ok(None);
        }
        let fd = raw::accept(listener)?;
        // Otherwise the client has reset it, and is not there to be answered.
        if let Some((own, peer)) = addresses(&fd) {
            return Ok(Some((fd, own, peer)));
        }
    }
}

/// Both addresses of a connected socket: its own and its peer's.
#[must_use]
pub fn addresses(fd: &OwnedFd) -> Option<(SocketAddr, SocketAddr)> {
    let own = getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok()?;
    let peer = getpeername::<SockaddrStorage>(fd.as_raw_fd()).ok()?;
    inet(&own).zip(inet(&peer))
}

/// An address of IPv4 or IPv6; `None`: it is of another family.
#[must_use]
pub fn inet(found: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = found.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| found.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}

/// What every side has to do.
impl Relays {
    /// Is it a listening socket?
    #[must_use]
    pub fn is_listener(&self, stream: StreamId) -> bool {
        self.listeners.contains(&stream)
    }

    /// A message that a listening socket is the matter of. False: it is another's.
    pub(super) fn hear_listener(
        &mut self,
        msg: &RelayMsg,
        out: Out<'_>,
    ) -> Result<bool, RelayError> {
        if let RelayMsg::Resync { stream, .. } | RelayMsg::Over { stream } = msg {
            self.confirm(*stream, out);
        }
        let id = msg.stream();
        if !self.is_listener(id) {
            return Ok(false);
        }
        let Some(half) = self.halves.get_mut(&id) else { return Ok(true) };
        match (msg, &mut half.role) {
            (&RelayMsg::Accepted { stream, new, own, peer }, Role::AwayListener(_)) => {
                self.accepted(Dial { stream: new, listener: stream, own, peer }, out);
            }
            (RelayMsg::Taken { count, .. }, Role::HomeListener(listener)) => {
                listener.taken = listener.taken.max(*count);
                self.accept_all(id, out);
            }
            (RelayMsg::BrokenPipe { .. }, Role::HomeListener(listener)) => {
                listener.failed = false;
                half.close(&self.registry);
            }
            // It was frozen, and is not: what was told meanwhile was not taken.
            (RelayMsg::Resync { .. }, Role::HomeListener(_)) => {
                half.announce = true;
                half.pump(&self.registry, self.linked, out);
            }
            _ => return Err(RelayError::unexpected(msg)),
        }
        Ok(true)
    }
}

/// The home side.
impl Relays {
    /// The other side has a half for this connection.
    fn confirm(&mut self, stream: StreamId, out: Out<'_>) {
        let mut told = false;
        for id in &self.listeners {
            let role = self.halves.get_mut(id).map(|half| &mut half.role);
            if let Some(Role::HomeListener(listener)) = role {
                told |= listener.told.remove(&stream).is_some();
            }
        }
        if let Some(half) = self.halves.get_mut(&stream).filter(|_| told) {
            half.resync(out);
        }
    }

    /// Accepts what waits, as far as the job keeps up.
    pub(super) fn accept_all(&mut self, stream: StreamId, out: Out<'_>) {
        while let Some((fd, own, peer)) = self.accept_one(stream) {
            self.begin(stream, fd, own, peer);
        }
        if let Some(half) = self.halves.get_mut(&stream) {
            half.pump(&self.registry, self.linked, out);
        }
    }

    fn accept_one(&mut self, stream: StreamId) -> Option<(OwnedFd, SocketAddr, SocketAddr)> {
        let half = self.halves.get_mut(&stream).filter(|half| !half.frozen)?;
        let (Role::HomeListener(listener), Some(local)) = (&mut half.role, &half.local) else {
            return None;
        };
        if !listener.has_room() {
            return None;
        }
        let accepted = accept(local.as_fd());
        listener.failed = accepted.is_err();
        accepted.unwrap_or_else(|error| {
            tracing::warn!(stream, %error, "accept(2)");
            None
        })
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
                listener.accepted = listener.accepted.saturating_add(1);
            }
            half.announce = true;
        }
    }

    /// A number that no stream of this side has had.
    pub fn new_stream(&mut self) -> StreamId {
        self.last_stream = self.last_stream.saturating_add(1);
        self.last_stream
    }

    /// Accepts where that has failed before, for want of descriptors for one.
    pub(super) fn accept_again(&mut self, out: Out<'_>) {
        let failed = |id: &StreamId| {
            let role = self.halves.get(id).map(|half| &half.role);
            matches!(role, Some(Role::HomeListener(listener)) if listener.failed)
        };
        let all: Vec<StreamId> = self.listeners.iter().copied().filter(failed).collect();
        all.into_iter().for_each(|id| self.accept_all(id, out));
    }

    /// Something is to be looked at again in a while: connections wait in the job's listening socket,
    /// or none could be accepted at home.
    pub(super) fn looks_again(&self) -> bool {
        let mut roles = self.listeners.iter().filter_map(|id| Some(&self.halves.get(id)?.role));
        roles.any(|role| match role {
            Role::AwayListener(listener) => !listener.waiting.is_empty(),
            Role::HomeListener(listener) => listener.failed,
            _ => false,
        })
    }
}

/// The away side.
impl Relays {
    /// As [`Relays::rebuild_socket`], of a listening socket.
    ///
    /// # Errors
    /// [`RelayError::Io`] when the state is of another kind, [`RelayError::Full`] when there is such a
    /// stream.
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
        self.keep(rebuild(id, listener, job_end))
    }

    /// Connections are to be made to listening sockets of the job.
    #[must_use]
    pub fn wants_dials(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// The next connection that is to be made to a listening socket of the job;
    /// [`Relays::dialed`] tells how that went.
    pub fn next_dial(&mut self) -> Option<Dial> {
        self.wanted.pop_front()
    }

    /// The connection with these addresses of the job and the client, which the job has accepted from a
    /// listening socket on this side.
    #[must_use]
    pub fn stream_of(&self, own: SocketAddr, peer: SocketAddr) -> Option<StreamId> {
        // The addresses may have been those of an earlier one.
        self.halves.values().rev().find(|half| half.was_dialed(own, peer)).map(|half| half.id)
    }

    /// A connection was made, or nobody listens.
    pub fn dialed(&mut self, dial: Dial, far: Option<OwnedFd>, out: Out<'_>) {
        let Some(mut half) = self.halves.remove(&dial.stream) else { return };
        let made = far.and_then(|far| {
            let attached = self.attach(&mut half, Local::socket(far));
            attached.inspect_err(|error| tracing::warn!(%error, "a connection is refused")).ok()
        });
        if made.is_none() {
            half.refuse();
        }
        half.ready(true);
        half.pump(&self.registry, self.linked, out);
        self.halves.insert(dial.stream, half);
        let Some(half) = self.halves.get_mut(&dial.listener) else { return };
        let Role::AwayListener(listener) = &mut half.role else { return };
        match made {
            Some(_) => listener.waiting.push_back(dial.stream),
            None => {
                // It never was in the queue.
                listener.taken = listener.taken.saturating_add(1);
                half.announce = true;
                half.pump(&self.registry, self.linked, out);
            }
        }
    }

    /// Listening sockets of the job in which connections wait.
    pub fn with_waiting(&self) -> impl Iterator<Item = StreamId> + '_ {
        let waits = |id: &StreamId| {
            let role = self.halves.get(id).map(|half| &half.role);
            matches!(role, Some(Role::AwayListener(listener)) if !listener.waiting.is_empty())
        };
        self.listeners.iter().copied().filter(waits)
    }

    /// The job has closed this listening socket: nobody can connect any more, and who waited is reset.
    pub fn close_listener(&mut self, stream: StreamId, out: Out<'_>) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        let Role::AwayListener(listener) = &mut half.role else { return };
        let mut over = match &half.local {
            Some(local) => listener.take_accepted(local.as_fd()),
            None => Vec::new(),
        };
        over.extend(&listener.waiting);
        listener.close();
        half.local = None;
        half.announce = true;
        half.pump(&self.registry, self.linked, out);
        self.note_accepted(&over, out);
    }

    /// These have left the queue: they are connections as all others.
    fn note_accepted(&mut self, all: &[StreamId], out: Out<'_>) {
        for stream in all {
            if let Some(half) = self.halves.get_mut(stream) {
                half.note_accepted();
                half.pump(&self.registry, self.linked, out);
            }
        }
    }

    /// The home has accepted a connection. A half that has given its state takes none: it is told
    /// again.
    fn accepted(&mut self, dial: Dial, out: Out<'_>) {
        let Some(listener) = self.halves.get(&dial.listener) else { return };
        let Role::AwayListener(role) = &listener.role else { return };
        if role.captured || self.halves.contains_key(&dial.stream) {
            return;
        }
        let mut half = socket::to_be_dialed(dial);
        half.resync(out);
        half.pump(&self.registry, self.linked, out);
        if self.keep(half).is_ok() {
            self.wanted.push_back(dial);
        }
    }

    /// Finds out which connections the job has accepted since.
    pub(super) fn find_accepted(&mut self, out: Out<'_>) {
        let mut accepted = Vec::new();
        for id in &self.listeners {
            let Some(half) = self.halves.get_mut(id).filter(|half| !half.frozen) else { continue };
            let (Role::AwayListener(listener), Some(local)) = (&mut half.role, &half.local) else {
                continue;
            };
            if listener.waiting.is_empty() {
                continue;
            }
            let before = accepted.len();
            accepted.extend(listener.take_accepted(local.as_fd()));
            if accepted.len() > before {
                half.announce = true;
                half.pump(&self.registry, self.linked, out);
            }
        }
        self.note_accepted(&accepted, out);
    }

    /// Freezes a listening socket, before all connections: of those that it has in its queue the job's
    /// end is with the kernel.
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
        // Also one that the job has closed has its queue for as long as it is kept here.
        let accepted = match &half.local {
            Some(local) => listener.take_accepted(local.as_fd()),
            None => Vec::new(),
        };
        let taken = listener.taken;
        let mut waiting: Vec<StreamId> = listener.again.clone();
        waiting.extend(&listener.waiting);
        let to_dial = self.wanted.iter().filter(|dial| dial.listener == stream);
        waiting.extend(to_dial.map(|dial| dial.stream));
        for stream in accepted {
            if let Some(half) = self.halves.get_mut(&stream) {
                half.note_accepted();
            }
        }
        let state = ListenerState { waiting, taken, open: job_end.is_some() };
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
