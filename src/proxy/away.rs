//! The local objects that stand in for the originals where the job is, and how they move on.
//!
//! ```text
//! node B, job frozen                                node C
//!   pipe / pty ──freeze──► AwayState ═══image═══► rebuild ──► new pipe / pty ─► the job
//!       ▲                      │                     frozen until thaw
//!       └──────unfreeze────────┘  (move aborted)
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::unistd::{pipe2, read};
use serde::{Deserialize, Serialize};

use super::datagram::{self, DatagramState};
use super::endpoint::{Endpoint, Role};
use super::listener::{self, ListenerState};
use super::local::Local;
use super::raw;
use super::socket::{self, TcpState};
use super::stream::{Receiver, RelayMsg, Sender, StreamId};
use super::term::{put_input, take_input, Termios, TtyInput, WindowSize};

/// Largest capacity asked for a pipe, bytes (the default of fs.pipe-max-size).
const MAX_CAPACITY: u32 = 1 << 20;

/// The state of an away half, complete: it travels in the job's image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AwayState {
    pub stream: StreamId,
    pub end: AwayEnd,
}

/// The part of [`AwayState`] that depends on the kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum AwayEnd {
    /// The job reads: the bytes it has not read, and the pipe's capacity in bytes.
    PipeIn { rx: Receiver, unread: Vec<u8>, capacity: u32 },
    /// The job writes.
    PipeOut { tx: Sender, capacity: u32 },
    /// The job's terminal.
    Pty(Box<PtyState>),
    /// The job's TCP connection.
    Tcp(Box<TcpState>),
    /// The job's listening socket.
    Listener(ListenerState),
    /// The job's UDP socket.
    Datagrams(Box<DatagramState>),
}

/// State of the job's terminal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PtyState {
    tx: Sender,
    rx: Receiver,
    unread: TtyInput,
    /// Keys that did not fit the pty.
    backlog: Vec<u8>,
    termios: Termios,
    size: WindowSize,
    pty: Pty,
}

impl AwayState {
    /// Is it a socket that the job has, and that is made beforehand?
    #[must_use]
    pub fn wants_socket(&self) -> bool {
        match &self.end {
            AwayEnd::Tcp(state) => socket::is_open(state),
            AwayEnd::Listener(state) => listener::is_open(state),
            AwayEnd::Datagrams(state) => state.is_open(),
            _ => false,
        }
    }
}

impl PtyState {
    /// The state of a terminal that was the real one until now.
    #[must_use]
    pub fn fresh(termios: Termios, size: WindowSize) -> Self {
        Self {
            tx: Sender::default(),
            rx: Receiver::default(),
            unread: TtyInput::default(),
            backlog: Vec::new(),
            pty: Pty::new(termios.clone(), size),
            termios,
            size,
        }
    }
}

/// What is known of the job's terminal besides its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Pty {
    /// Modes when the job left home.
    start: Termios,
    /// Size last set as the home terminal's.
    size: WindowSize,
    /// The home terminal's size.
    wanted: WindowSize,
    hung: bool,
    /// Modes at the end, when they differ from `start`.
    settings: Option<Termios>,
    /// Keys below this offset were processed at home.
    typed: u64,
}

impl Pty {
    fn new(start: Termios, size: WindowSize) -> Self {
        Self { start, size, wanted: size, hung: false, settings: None, typed: 0 }
    }

    pub fn resize(&mut self, size: WindowSize) {
        self.wanted = size;
    }

    pub fn hang_up(&mut self) {
        self.hung = true;
    }

    pub fn hung_up(&self) -> bool {
        self.hung
    }

    pub fn typed(&mut self, until: u64) {
        self.typed = until;
    }

    /// Sets the home terminal's size when it changed there.
    pub fn apply_size(&mut self, master: BorrowedFd<'_>) {
        if self.wanted == self.size {
            return;
        }
        self.size = self.wanted;
        if let Err(error) = self.size.set(master) {
            tracing::warn!(%error, "the size of the job's terminal could not be set");
        }
    }

    pub fn notices(&self, stream: StreamId) -> Vec<RelayMsg> {
        let settings = self.settings.iter();
        settings
            .map(|termios| RelayMsg::Settings { stream, termios: Box::new(termios.clone()) })
            .collect()
    }
}

/// Freezes an away half and gives its state. `job_end` is a duplicate of the job's end;
/// without one a pipe counts as empty, and a pty's slave is opened anew.
///
/// # Errors
/// I/O errors of the local object. The half stays frozen.
pub(super) fn freeze(
    half: &mut Endpoint,
    job_end: Option<BorrowedFd<'_>>,
) -> io::Result<AwayState> {
    half.frozen = true;
    let end = match half.role {
        Role::AwayPty(_) => AwayEnd::Pty(Box::new(freeze_pty(half, job_end)?)),
        Role::AwayPipe { capacity } => {
            half.take_all();
            freeze_pipe(half, job_end, capacity)?
        }
        Role::Socket(ref socket) if socket.away => {
            AwayEnd::Tcp(Box::new(socket::freeze(half, job_end)?))
        }
        Role::AwayDatagrams(_) => AwayEnd::Datagrams(Box::new(datagram::freeze(half, job_end)?)),
        _ => {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    };
    Ok(AwayState { stream: half.id, end })
}

fn freeze_pipe(
    half: &Endpoint,
    job_end: Option<BorrowedFd<'_>>,
    capacity: u32,
) -> io::Result<AwayEnd> {
    if let Some(tx) = &half.tx {
        return Ok(AwayEnd::PipeOut { tx: tx.clone(), capacity });
    }
    let mut unread = job_end.map(|fd| peek(fd, capacity)).transpose()?.unwrap_or_default();
    unread.extend(&half.backlog);
    Ok(AwayEnd::PipeIn { rx: half.rx.clone().unwrap_or_default(), unread, capacity })
}

/// The bytes in a pipe, which stay there: tee(2) into a scratch pipe.
fn peek(pipe: BorrowedFd<'_>, capacity: u32) -> io::Result<Vec<u8>> {
    let (scratch, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    set_capacity(&into, capacity);
    let held = raw::unread_bytes(pipe)?;
    let copied = if held == 0 { 0 } else { raw::tee(pipe, into.as_fd(), held)? };
    if copied != held {
        let what = format!("tee(2) copied {copied} of {held} bytes of a pipe");
        return Err(io::Error::other(what));
    }
    let mut bytes = vec![0; held];
    let mut done = 0;
    while done < bytes.len() {
        done += read(&scratch, &mut bytes[done..])?;
    }
    Ok(bytes)
}

/// Best effort: a user's pipes have a limit in all (pipe(7), pipe-user-pages-soft). What
/// does not fit waits in the backlog.
fn set_capacity(pipe: &OwnedFd, capacity: u32) {
    let wanted = capacity.min(MAX_CAPACITY) as i32;
    if let Err(error) = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(wanted)) {
        tracing::debug!(%error, wanted, "F_SETPIPE_SZ");
    }
}

fn freeze_pty(half: &mut Endpoint, slave: Option<BorrowedFd<'_>>) -> io::Result<PtyState> {
    let unread = match (slave, &half.local) {
        (Some(slave), Some(_)) => take_input(slave)?,
        (None, Some(master)) => take_input(raw::pty_peer(master.as_fd())?.as_fd())?,
        (_, None) => TtyInput::default(),
    };
    // After the input: what is still to be echoed is output, too.
    half.take_all();
    let Role::AwayPty(pty) = &half.role else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let (termios, size) = match &half.local {
        Some(master) => (Termios::of(master.as_fd())?, WindowSize::of(master.as_fd())?),
        None => (pty.start.clone(), pty.size),
    };
    Ok(PtyState {
        tx: half.tx.clone().unwrap_or_default(),
        rx: half.rx.clone().unwrap_or_default(),
        unread,
        backlog: half.backlog.iter().copied().collect(),
        termios,
        size,
        pty: pty.clone(),
    })
}

/// Undoes [`freeze`], but leaves the half frozen: what was taken from the pty or socket is put back.
///
/// # Errors
/// I/O errors of the pty.
pub(super) fn put_back(half: &mut Endpoint, state: &AwayState) -> io::Result<()> {
    if let AwayEnd::Datagrams(state) = &state.end {
        datagram::put_back(half, state);
    }
    let (AwayEnd::Pty(pty), Some(master)) = (&state.end, &half.local) else { return Ok(()) };
    refill(master, &mut half.backlog, &pty.unread, &pty.termios)
}

/// Puts unread input into the pty, and in front of the backlog what lies beyond it.
fn refill(
    master: &Local,
    backlog: &mut std::collections::VecDeque<u8>,
    unread: &TtyInput,
    termios: &Termios,
) -> io::Result<()> {
    if !unread.typed.is_empty() || !unread.eofs.is_empty() {
        put_input(master.as_fd(), unread, termios)?;
    }
    for &byte in unread.beyond.iter().rev() {
        backlog.push_front(byte);
    }
    Ok(())
}

/// What was typed at home before the job left goes into the pty without a second echo. The
/// job must not run yet.
///
/// # Errors
/// I/O errors of the pty.
pub(super) fn type_ahead(half: &mut Endpoint) -> io::Result<()> {
    let (Role::AwayPty(pty), Some(master), Some(rx)) = (&mut half.role, &half.local, &mut half.rx)
    else {
        return Ok(());
    };
    pty.apply_size(master.as_fd());
    let typed = pty.typed.saturating_sub(rx.consumed()).min(rx.all_pending().len() as u64) as usize;
    if typed == 0 || !half.backlog.is_empty() {
        return Ok(());
    }
    let termios = Termios::of(master.as_fd())?;
    let input = TtyInput::from_keys(&rx.all_pending()[..typed], &termios);
    put_input(master.as_fd(), &input, &termios)?;
    rx.consume(typed);
    Ok(())
}

/// The job has ended: its last bytes, the modes it leaves, eof.
pub(super) fn finish(half: &mut Endpoint) {
    half.frozen = false;
    let waits = half.local.is_none() && half.dial().is_some();
    match &mut half.role {
        Role::AwayListener(listener) => {
            // The last one that has it open: what was not accepted is reset.
            listener.close();
            half.local = None;
            half.announce = true;
            return;
        }
        // Its end of file comes behind what is under way.
        Role::Socket(socket) if half.local.is_some() => {
            socket.ending = true;
            return;
        }
        Role::Socket(_) if waits => return half.refuse(),
        Role::Socket(_) => return,
        _ => {}
    }
    half.take_all();
    if let (Role::AwayPty(pty), Some(master)) = (&mut half.role, &half.local) {
        let last = Termios::of(master.as_fd()).ok();
        pty.settings = last.filter(|modes| *modes != pty.start);
        half.announce = true;
    }
    if let Some(tx) = &mut half.tx {
        tx.close();
    }
    half.break_reader();
}

/// Makes the local object of `state`: the frozen half, its descriptor, the job's end.
///
/// # Errors
/// When no pipe or pty can be made, or the pty does not take its unread input.
pub(super) fn rebuild(
    state: AwayState,
    pty: Option<PtyPair>,
) -> io::Result<(Endpoint, Local, OwnedFd)> {
    let id = state.stream;
    match state.end {
        AwayEnd::PipeIn { rx, unread, capacity } => {
            let (job, ours) = pipe(capacity)?;
            let mut half = Endpoint::new(id, Role::AwayPipe { capacity }, None, Some(rx));
            half.backlog = unread.into();
            Ok((half, Local::own(ours)?, job))
        }
        AwayEnd::PipeOut { tx, capacity } => {
            let (ours, job) = pipe(capacity)?;
            let half = Endpoint::new(id, Role::AwayPipe { capacity }, Some(tx), None);
            Ok((half, Local::own(ours)?, job))
        }
        AwayEnd::Pty(state) => rebuild_pty(id, *state, pty.map_or_else(PtyPair::open, Ok)?),
        // Both of its ends are made beforehand.
        AwayEnd::Tcp(_) | AwayEnd::Listener(_) | AwayEnd::Datagrams(_) => {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

fn pipe(capacity: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    set_capacity(&write, capacity);
    Ok((read, write))
}

fn rebuild_pty(
    id: StreamId,
    state: PtyState,
    PtyPair { master, slave }: PtyPair,
) -> io::Result<(Endpoint, Local, OwnedFd)> {
    let master = Local::own(master)?;
    state.termios.set(master.as_fd())?;
    state.size.set(master.as_fd())?;
    let mut half = Endpoint::new(id, Role::AwayPty(state.pty), Some(state.tx), Some(state.rx));
    half.backlog = state.backlog.into();
    refill(&master, &mut half.backlog, &state.unread, &state.termios)?;
    Ok((half, master, slave))
}

/// A pty whose slave is to be a job's terminal.
#[derive(Debug)]
pub struct PtyPair {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

impl PtyPair {
    /// A new pty by /dev/ptmx, which works also where the ptmx of devpts has mode 000.
    ///
    /// # Errors
    /// When there is no devpts or no pty is left.
    pub fn open() -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        Self::of(nix::fcntl::open("/dev/ptmx", flags, nix::sys::stat::Mode::empty())?)
    }

    /// The pty with this new master.
    ///
    /// # Errors
    /// When its slave cannot be opened.
    pub fn of(master: OwnedFd) -> io::Result<Self> {
        let slave = raw::pty_peer(master.as_fd())?;
        Ok(Self { master, slave })
    }
}
