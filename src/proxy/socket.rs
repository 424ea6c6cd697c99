//! TCP connections: the real socket at home, and the far end of the job's socket where that is.
//!
//! ```text
//! peer ⇄ real socket ─ home half ══ link ══ away half ─ far end ⇄ job's socket
//! ```
//! * **End of file** goes along as that of any stream; the other half calls shutdown(2).
//! * **A reset** is told beside the bytes ([`RelayMsg::Reset`]), ahead of the end of file: the
//!   other half passes on what came before it as far as it is taken at once, and then resets its
//!   own socket.
//! * **Nobody reads any more** (a write met a closed peer): the writer's socket is reset when it is
//!   the job's; at home it is closed when the rest is written.
//! * **The job moves**: what it wrote is read to the last byte, and what it has not read is
//!   peeked from its socket. Bytes between the two sockets are neither here nor there, so the
//!   away half keeps those that its kernel has not delivered yet. At home the bytes that wait in
//!   the real socket are peeked, travel with the job, and are skipped when the relay begins.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::Registry;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{recv, send, MsgFlags};
use serde::{Deserialize, Serialize};

use super::away::{AwayEnd, AwayState};
use super::direct::{Direct, Key};
use super::endpoint::{Endpoint, Role};
use super::listener::Dial;
use super::local::Local;
use super::raw;
use super::stream::{Receiver, RelayMsg, Sender, StreamId, CHUNK, WINDOW};
use super::term::wait_for;

/// So long the bytes of a frozen job may be on their way between two sockets of one machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// One look at whether they have come.
const LOOK: Duration = Duration::from_millis(5);

/// Largest queue that is peeked, bytes: the kernel's own limit is lower (net.ipv4.tcp_rmem).
const MOST_UNREAD: usize = 64 << 20;

/// The state of an away half, besides what the kernel knows of the job's socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TcpState {
    tx: Sender,
    rx: Receiver,
    /// What the job has not read.
    unread: Vec<u8>,
    /// What the job has written and the relay has no room for, in the job's socket again.
    unsent: Vec<u8>,
    /// The job has a socket of it still, and that is connected to the relay.
    open: bool,
    /// It is to be dialed: the job has not accepted it.
    dial: Option<Dial>,
    reset_here: bool,
    reset_there: bool,
}

/// What a half of a connection is besides its streams.
#[derive(Debug, Default)]
pub(super) struct Socket {
    pub away: bool,
    /// Bytes that the job has got already, and that are still in the real socket.
    pub skip: usize,
    /// The job has not accepted it.
    dial: Option<Dial>,
    /// It was dialed here.
    dialed: Option<Dial>,
    /// Bytes that come behind so many more of those that the far end gives.
    late: Option<(usize, Vec<u8>)>,
    /// The last bytes written to the far end, those that are under way among them.
    sent: VecDeque<u8>,
    /// All bytes written to it.
    total: u64,
    /// This side was reset: the other one is told.
    pub reset_here: bool,
    /// The other side was reset.
    pub reset_there: bool,
    /// The away half is through.
    pub over_there: bool,
    /// The local socket was told that nothing follows.
    shut: bool,
    /// The job has ended, and its sockets with it.
    pub ending: bool,
    /// Messages of the relay, while it is not led past it.
    pub messages: u32,
    /// Nothing is read for the moment.
    pub held: bool,
    /// The key of the connection that it rests, or rested, for.
    pub joined: Option<Key>,
    /// Others carry the bytes.
    pub direct: Option<Direct>,
}

impl TcpState {
    /// Both streams, what the job has not read, and what it has written beyond the relay's room;
    /// nothing of a connection of which more is to be known.
    pub(super) fn into_open(self) -> Option<(Sender, Receiver, Vec<u8>, Vec<u8>)> {
        let Self { tx, rx, unread, unsent, open, dial, reset_here, reset_there } = self;
        let ended = tx.closed() || rx.broken() || rx.has_ended() || reset_here || reset_there;
        (open && dial.is_none() && !ended).then_some((tx, rx, unread, unsent))
    }
}

impl Socket {
    /// That of an away half.
    pub fn of_away() -> Self {
        Self { away: true, ..Self::default() }
    }

    /// Nothing is to be done but to carry bytes.
    pub fn is_plain(&self) -> bool {
        let done = self.reset_here || self.reset_there || self.over_there || self.shut;
        let waits = self.dial.is_some() || self.late.is_some() || self.skip > 0;
        !done && !waits && !self.ending && self.direct.is_none()
    }

    /// The local socket is a new one.
    pub fn renew(&mut self) {
        (self.sent, self.total, self.shut, self.messages) = (VecDeque::new(), 0, false, 0);
    }

    /// Bytes were read from the local socket.
    pub fn take(&mut self, bytes: &[u8], tx: &mut Sender) {
        let (known, bytes) = bytes.split_at(self.skip.min(bytes.len()));
        self.skip -= known.len();
        let Some((before, late)) = self.late.take() else { return tx.push(bytes) };
        let (first, rest) = bytes.split_at(before.min(bytes.len()));
        tx.push(first);
        if first.len() < before {
            self.late = Some((before - first.len(), late));
            return;
        }
        tx.push(&late);
        tx.push(rest);
    }

    /// Bytes were written to the local socket.
    pub fn note_sent(&mut self, bytes: &[u8]) {
        if self.away {
            self.total = self.total.saturating_add(bytes.len() as u64);
            self.sent.extend(bytes);
        }
    }

    /// As [`Socket::trim`], once there is much of it.
    pub fn trim_much(&mut self, local: BorrowedFd<'_>) {
        if self.sent.len() > CHUNK {
            self.trim(local);
        }
    }

    /// Gives memory back that is not needed.
    pub fn rest(&mut self, local: BorrowedFd<'_>) {
        self.trim(local);
        self.sent.shrink_to_fit();
    }

    /// Forgets what the other socket has acknowledged.
    pub fn trim(&mut self, local: BorrowedFd<'_>) {
        if self.sent.is_empty() || self.dial.is_some() {
            return;
        }
        if let Ok(under_way) = raw::unsent_bytes(local) {
            self.sent.drain(..self.sent.len().saturating_sub(under_way));
        }
    }

    /// How many bytes may be written: a connection that the job has not accepted takes a window's
    /// worth.
    pub fn room(&self) -> usize {
        match self.dial {
            Some(_) => WINDOW.saturating_sub(self.sent.len()),
            None => usize::MAX,
        }
    }

    /// What the other half must know besides the bytes.
    pub fn notices(&self, stream: StreamId) -> Vec<RelayMsg> {
        if self.reset_here {
            vec![RelayMsg::Reset { stream }]
        } else {
            Vec::new()
        }
    }
}

/// The home half of a connection: frozen, its socket, and what its away half begins with.
pub(super) fn home(id: StreamId, fd: OwnedFd) -> io::Result<(Endpoint, Local, AwayState)> {
    // Then nothing follows what waits now, and the job is not to wait for that word.
    let ended = raw::peer_has_ended(fd.as_fd())?;
    let unread = peek(fd.as_fd())?;
    let socket = Socket { skip: unread.len(), ..Socket::default() };
    let (mut own_tx, tx) = (Sender::default(), Sender::default());
    let mut rx = Receiver::default();
    if ended {
        own_tx.close();
        rx.end_here();
    }
    let state = TcpState {
        tx,
        rx,
        unread,
        unsent: Vec::new(),
        open: true,
        dial: None,
        reset_here: false,
        reset_there: false,
    };
    let role = Role::Socket(Box::new(socket));
    let half = Endpoint::new(id, role, Some(own_tx), Some(Receiver::default()));
    let away = AwayState { stream: id, end: AwayEnd::Tcp(Box::new(state)) };
    Ok((half, Local::socket(fd), away))
}

/// The home half of a connection that was just accepted, frozen.
pub(super) fn home_accepted(id: StreamId, fd: OwnedFd) -> (Endpoint, Local) {
    let (role, streams) = (Role::Socket(Box::default()), Default::default());
    let (tx, rx): (Sender, Receiver) = streams;
    (Endpoint::new(id, role, Some(tx), Some(rx)), Local::socket(fd))
}

/// The away half of a connection that is to be dialed. It is not frozen.
pub(super) fn to_be_dialed(dial: Dial) -> Endpoint {
    let stream = dial.stream;
    let (dial, dialed) = (Some(dial), Some(dial));
    let socket = Socket { away: true, dial, dialed, ..Socket::default() };
    let role = Role::Socket(Box::new(socket));
    let (tx, rx) = Default::default();
    let mut half = Endpoint::new(stream, role, Some(tx), Some(rx));
    half.frozen = false;
    half
}

/// The away half, frozen. `job_end` is the job's socket, if it has one still: it gets what the job
/// has written and the relay has no room for.
///
/// # Errors
/// When the socket does not take anything.
pub(super) fn rebuild(
    id: StreamId,
    state: TcpState,
    job_end: Option<BorrowedFd<'_>>,
) -> io::Result<Endpoint> {
    let TcpState { tx, rx, unread, unsent, dial, reset_here, reset_there, .. } = state;
    let dialed = dial;
    let socket = Socket { away: true, dial, dialed, reset_here, reset_there, ..Socket::default() };
    let mut half = Endpoint::new(id, Role::Socket(Box::new(socket)), Some(tx), Some(rx));
    match job_end {
        Some(job_end) => {
            half.backlog = unread.into();
            half.write_again(job_end, unsent)?;
        }
        None if dial.is_some() => half.backlog = unread.into(),
        // It was closed, or nobody is there to read.
        None => half.close_streams(),
    }
    Ok(half)
}

/// Is the job to have a socket?
pub(super) fn is_open(state: &TcpState) -> bool {
    state.open
}

/// Freezes an away half; see [`super::away::freeze`].
pub(super) fn freeze(half: &mut Endpoint, job_end: Option<BorrowedFd<'_>>) -> io::Result<TcpState> {
    if job_end.is_some() {
        half.note_accepted();
    } else if let Some(state) = half.undialed() {
        return Ok(state);
    }
    read_to_the_last(half, job_end)?;
    if job_end.is_none() {
        half.close_streams();
    }
    let (Role::Socket(socket), Some(tx), Some(rx)) = (&half.role, &mut half.tx, &half.rx) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut unread = match job_end {
        Some(end) => not_read(socket, end)?,
        None => Vec::new(),
    };
    unread.extend(&half.backlog);
    let open = half.local.is_some() && job_end.is_some();
    // What the job is to write again must not be told by this half any more.
    let mut again = tx.clone();
    tx.hold(open);
    let unsent = if open { again.take_excess() } else { Vec::new() };
    Ok(TcpState {
        tx: again,
        rx: rx.clone(),
        unread,
        unsent,
        open,
        dial: None,
        reset_here: socket.reset_here,
        reset_there: socket.reset_there,
    })
}

/// Takes everything that the frozen job has written, which the kernel may still be carrying from
/// its socket to the far end. Without a socket of the job the end of file comes last.
fn read_to_the_last(half: &mut Endpoint, job_end: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let waits = job_end.map(raw::unsent_bytes).transpose()?;
        half.take_all();
        let Some(local) = &half.local else { return Ok(()) };
        if waits == Some(0) || half.tx.as_ref().is_none_or(Sender::closed) {
            return Ok(());
        }
        if Instant::now() > until {
            let what = "what the job has written does not come out of its socket";
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        // An acknowledgement that is being delayed comes at once.
        raw::acknowledge(local.as_fd());
        wait_for(local.as_fd(), PollFlags::POLLIN, LOOK)?;
    }
}

/// What the job has not read: in its socket, and on the way to it.
fn not_read(socket: &Socket, job_end: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    loop {
        let arrived = raw::received_bytes(job_end)?;
        let mut bytes = peek(job_end)?;
        if raw::received_bytes(job_end)? != arrived {
            continue;
        }
        // An end of file counts as one byte more.
        let under_way = socket.total.saturating_sub(arrived);
        let under_way = usize::try_from(under_way).unwrap_or(usize::MAX);
        let known = socket.sent.len().checked_sub(under_way).ok_or_else(|| {
            io::Error::other(format!("{under_way} bytes are under way to the job's socket"))
        })?;
        bytes.extend(socket.sent.range(known..));
        return Ok(bytes);
    }
}

/// The bytes that wait in a socket, which stay there.
fn peek(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let waiting = raw::unread_bytes(socket)?;
    // Nothing to read would take an error away that waits for the job.
    if waiting == 0 {
        return Ok(Vec::new());
    }
    if waiting > MOST_UNREAD {
        return Err(io::Error::other(format!("{waiting} bytes wait in a socket")));
    }
    let mut bytes = vec![0; waiting];
    let got = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?;
    if got != waiting {
        let what = format!("MSG_PEEK gave {got} of {waiting} bytes of a socket");
        return Err(io::Error::other(what));
    }
    Ok(bytes)
}

impl Endpoint {
    /// The state of a connection that the job has not accepted: it has neither read nor written.
    fn undialed(&self) -> Option<TcpState> {
        let Role::Socket(socket) = &self.role else { return None };
        let dial = Some(socket.dial?);
        Some(TcpState {
            tx: self.tx.clone()?,
            rx: self.rx.clone()?,
            unread: socket.sent.iter().chain(&self.backlog).copied().collect(),
            unsent: Vec::new(),
            open: false,
            dial,
            reset_here: socket.reset_here,
            reset_there: socket.reset_there,
        })
    }

    /// What it is to be dialed as.
    pub(super) fn dial(&self) -> Option<Dial> {
        match &self.role {
            Role::Socket(socket) => socket.dial,
            _ => None,
        }
    }

    /// Nothing is left to be done for this half of a connection.
    fn is_over(&self) -> bool {
        let (Some(tx), Some(rx)) = (&self.tx, &self.rx) else { return false };
        self.local.is_none()
            && self.dial().is_none()
            && tx.closed()
            && tx.drained()
            && rx.finished()
    }

    /// The away half is through, and the home half has told all that it did.
    pub(super) fn is_over_away(&self) -> bool {
        let away = match &self.role {
            Role::Socket(socket) => socket.away,
            role => matches!(role, Role::AwayDatagrams(_)),
        };
        away && self.is_over()
    }

    /// Both halves are through (home side).
    pub(super) fn is_over_everywhere(&self) -> bool {
        let over_there = match &self.role {
            Role::Socket(socket) => socket.over_there,
            Role::HomeDatagrams(home) => home.over_there,
            _ => false,
        };
        over_there && self.is_over()
    }

    /// Was it dialed with these addresses of the job and the client?
    pub(super) fn was_dialed(&self, own: SocketAddr, peer: SocketAddr) -> bool {
        let same = |a: SocketAddr, b: SocketAddr| (a.ip(), a.port()) == (b.ip(), b.port());
        let Role::Socket(socket) = &self.role else { return false };
        socket.dialed.is_some_and(|dial| same(dial.own, own) && same(dial.peer, peer))
            && self.local.is_some()
    }

    /// The job has accepted it.
    pub(super) fn note_accepted(&mut self) {
        let Role::Socket(socket) = &mut self.role else { return };
        socket.dial = None;
        if let Some(local) = &self.local {
            socket.trim(local.as_fd());
        }
    }

    /// Nobody listens: the client's connection is reset.
    pub(super) fn refuse(&mut self) {
        if let Role::Socket(socket) = &mut self.role {
            socket.dial = None;
        }
        self.socket_reset();
        if let Some(tx) = &mut self.tx {
            tx.close();
        }
    }

    /// The job has no socket of this connection any more.
    pub(super) fn close_streams(&mut self) {
        self.break_reader();
        if let Some(tx) = &mut self.tx {
            tx.close();
        }
    }

    /// What the job has written stays in its socket, as far as there is room, so that it can write
    /// no more than before.
    fn write_again(&mut self, job_end: BorrowedFd<'_>, mut unsent: Vec<u8>) -> io::Result<()> {
        let mut done = 0;
        while done < unsent.len() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(job_end.as_raw_fd(), &unsent[done..], flags) {
                Ok(n) => done += n,
                Err(Errno::EAGAIN) => break,
                Err(e) => return Err(e.into()),
            }
        }
        let late = unsent.split_off(done);
        match (&mut self.role, &mut self.tx) {
            _ if late.is_empty() => {}
            (_, Some(tx)) if done == 0 => tx.push(&late),
            (Role::Socket(socket), _) => socket.late = Some((done, late)),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }

    /// The local socket says that something is wrong with the connection.
    pub(super) fn socket_failed(&mut self) {
        match self.local.as_ref().and_then(Local::take_error) {
            None => {}
            // The other side closed it, and answered more bytes with a reset (tcp_reset,
            // net/ipv4/tcp_input.c).
            Some(libc::EPIPE) => self.break_reader(),
            Some(_) => self.socket_reset(),
        }
    }

    /// The connection of the local socket was reset. What it holds can still be read.
    pub(super) fn socket_reset(&mut self) {
        if let Role::Socket(socket) = &mut self.role {
            socket.reset_here = true;
        }
        self.announce = true;
        self.readable = true;
        self.break_reader();
    }

    /// Writes what came before, as the socket of a job that is about to run.
    pub(super) fn prefill(&mut self, registry: &Registry) {
        self.drain();
        self.end_socket(registry);
    }

    /// Passes on what is over.
    pub(super) fn end_socket(&mut self, registry: &Registry) {
        let Role::Socket(socket) = &mut self.role else { return };
        let (Some(local), Some(rx), Some(tx)) = (&self.local, &mut self.rx, &mut self.tx) else {
            return;
        };
        if socket.ending && tx.closed() {
            rx.break_off();
            self.announce = true;
        }
        let written = rx.at_eof() && self.backlog.is_empty();
        if socket.reset_there && (written || rx.broken() || !self.writable) {
            local.reset_on_close();
            tx.break_off();
            rx.break_off();
            self.backlog.clear();
            // Who waits for the rest to be taken is told that it never is.
            self.announce = true;
            return self.close(registry);
        }
        if written && !socket.shut {
            local.shut();
            socket.shut = true;
            rx.consume_eof();
        }
        if rx.finished() && tx.closed() {
            if socket.away && tx.broken() {
                local.reset_on_close();
            }
            self.close(registry);
        }
    }
}
