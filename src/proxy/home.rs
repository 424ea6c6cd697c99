//! The real ends at home, and the real terminal above all.
//!
//! While the job is away its terminal at home is raw: keys are interpreted by the job's pty.
//! That holds only as long as vosrun's process group is the terminal's foreground group. In
//! the background the terminal belongs to somebody else, and neither its modes nor its keys
//! are touched. No event says that a group came to the foreground: see
//! [`HomeTty::wants_tick`].

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{getpgrp, tcgetpgrp, tcsetpgrp};

use super::away::{AwayEnd, AwayState, PtyState};
use super::datagram;
use super::endpoint::{Endpoint, Role};
use super::listener;
use super::local::Local;
use super::socket;
use super::stream::{Receiver, RelayMsg, Sender, StreamId};
use super::term::{take_input, Termios, TtyInput, WindowSize};

/// Capacity of a pipe made for an original that is none, bytes (pipe(7)).
const PIPE_CAPACITY: u32 = 64 << 10;

/// A duplicate of an original description.
#[derive(Debug)]
pub enum HomeEnd {
    /// The job reads from it: pipe, socket, file.
    Input(OwnedFd),
    /// The job writes to it: pipe, socket, file.
    Output(OwnedFd),
    /// A terminal.
    Terminal(OwnedFd, JobControl),
    /// A connected TCP socket.
    Socket(OwnedFd),
    /// A listening one.
    Listener(OwnedFd),
    /// A UDP socket with an address.
    Datagrams(OwnedFd),
}

/// Whose process group tells whether the terminal may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobControl {
    /// That of this process; also for a terminal that is not its controlling one.
    Own,
    /// That of this process, in the place of a group that the job had made for itself: where
    /// that one was in the foreground, this process takes over.
    OwnFor(i32),
    /// That of this process id: the stand-in of an adopted job.
    Of(i32),
}

impl JobControl {
    fn foreground(self, tty: BorrowedFd<'_>) -> bool {
        match self {
            Self::Own => match tcgetpgrp(tty) {
                Ok(group) => group == getpgrp(),
                // Not our controlling terminal: job control does not apply.
                Err(e) => e == Errno::ENOTTY,
            },
            Self::OwnFor(job) => {
                let left = tcgetpgrp(tty).is_ok_and(|group| group.as_raw() == job);
                if left {
                    if let Err(error) = take_foreground(tty) {
                        tracing::warn!(%error, "tcsetpgrp");
                    }
                }
                Self::Own.foreground(tty)
            }
            Self::Of(pid) => procfs::process::Process::new(pid)
                .and_then(|process| process.stat())
                .is_ok_and(|stat| stat.tpgid == stat.pgrp),
        }
    }

    /// The process to be asked is no more.
    fn gone(self) -> bool {
        match self {
            Self::Own | Self::OwnFor(_) => false,
            Self::Of(pid) => !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        }
    }
}

/// Makes this process's group the foreground one. SIGTTOU is for those in the background.
fn take_foreground(tty: BorrowedFd<'_>) -> io::Result<()> {
    let mut ttou = SigSet::empty();
    ttou.add(Signal::SIGTTOU);
    let before = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let result = tcsetpgrp(tty, getpgrp());
    before.thread_set_mask()?;
    Ok(result?)
}

/// Modes of a terminal that is in use: before, and as the kernel took them.
#[derive(Debug)]
struct Raw {
    before: Termios,
    now: Termios,
}

/// The terminal at home.
#[derive(Debug)]
pub(super) struct HomeTty {
    control: JobControl,
    /// The job uses the terminal (it has left, and is not stopped).
    wanted: bool,
    /// Raw now.
    raw: Option<Raw>,
    size: WindowSize,
    hung: bool,
    /// Modes that the job left its terminal with.
    settings: Option<Termios>,
    /// Keys below this offset were processed by the terminal here.
    typed: u64,
}

impl HomeTty {
    /// Keys may be read now. Called before each read: the foreground can change any time.
    pub fn may_read(&mut self, tty: BorrowedFd<'_>) -> bool {
        if self.raw.is_some() && !self.control.foreground(tty) {
            self.lost();
        }
        self.raw.is_some()
    }

    /// The terminal is somebody else's now, with modes of his own.
    pub fn lost(&mut self) {
        self.raw = None;
    }

    /// The terminal is gone.
    pub fn hang_up(&mut self) {
        self.hung = true;
        self.raw = None;
    }

    /// The job left these modes behind; they are set when its output is written.
    pub fn leave_with(&mut self, termios: &Termios) {
        self.settings = Some(termios.clone());
    }

    /// [`HomeTty::activate`] should be tried from time to time.
    pub fn wants_tick(&self) -> bool {
        self.wanted && self.raw.is_none() && !self.hung
    }

    /// The job uses the terminal from now on, as soon as it is in the foreground. Somebody
    /// may have changed its modes meanwhile.
    pub fn resume(&mut self, tty: BorrowedFd<'_>) {
        self.wanted = true;
        let now = Termios::of(tty).ok();
        self.raw = self.raw.take().filter(|raw| Some(&raw.now) == now.as_ref());
    }

    /// Makes the terminal raw when it is wanted and in the foreground. What was typed before
    /// goes to `tx` first. True when that happened.
    pub fn activate(&mut self, tty: BorrowedFd<'_>, tx: &mut Sender) -> io::Result<bool> {
        if !self.wants_tick() || !self.control.foreground(tty) {
            return Ok(false);
        }
        let before = Termios::of(tty)?;
        let input = take_input(tty)?;
        self.push_typed(&input, &before, tx);
        before.raw().set(tty)?;
        self.raw = Some(Raw { before, now: Termios::of(tty)? });
        Ok(true)
    }

    fn push_typed(&mut self, input: &TtyInput, termios: &Termios, tx: &mut Sender) {
        tx.push(&input.to_keys(termios));
        self.typed = tx.end();
        tx.push(&input.beyond);
    }

    /// Gives the terminal its own modes back: the job is stopped.
    pub fn suspend(&mut self, tty: BorrowedFd<'_>) {
        self.wanted = false;
        let modes = self.raw.take().map(|raw| raw.before);
        self.leave(tty, modes);
    }

    /// The job has ended: the modes it left, or else those from before.
    pub fn finish(&mut self, tty: BorrowedFd<'_>) {
        self.wanted = false;
        let before = self.raw.take().map(|raw| raw.before);
        let modes = self.settings.take().or(before);
        self.leave(tty, modes);
    }

    fn leave(&self, tty: BorrowedFd<'_>, modes: Option<Termios>) {
        let ours = self.control.gone() || self.control.foreground(tty);
        let Some(modes) = modes.filter(|_| ours) else { return };
        if let Err(error) = modes.set_after_output(tty) {
            tracing::warn!(%error, "the terminal's modes could not be restored");
        }
    }

    /// Reads the size; true when it changed.
    pub fn measure(&mut self, tty: BorrowedFd<'_>) -> bool {
        let Ok(size) = WindowSize::of(tty) else { return false };
        std::mem::replace(&mut self.size, size) != size
    }

    pub fn notices(&self, stream: StreamId) -> Vec<RelayMsg> {
        let mut notices = vec![
            RelayMsg::Winsize { stream, size: self.size },
            RelayMsg::Typed { stream, until: self.typed },
        ];
        if self.hung {
            notices.push(RelayMsg::Hangup { stream });
        }
        notices
    }
}

/// Makes the frozen home half of `end`, its descriptor, and what its away half starts from.
pub(super) fn build(id: StreamId, end: HomeEnd) -> io::Result<(Endpoint, Local, AwayState)> {
    match end {
        HomeEnd::Input(fd) => {
            let away = AwayEnd::PipeIn {
                rx: Receiver::default(),
                unread: Vec::new(),
                capacity: capacity(&fd),
            };
            let half = Endpoint::new(id, Role::HomePipe, Some(Sender::default()), None);
            Ok((half, Local::shared(fd)?, AwayState { stream: id, end: away }))
        }
        HomeEnd::Output(fd) => {
            let away = AwayEnd::PipeOut { tx: Sender::default(), capacity: capacity(&fd) };
            let half = Endpoint::new(id, Role::HomePipe, None, Some(Receiver::default()));
            Ok((half, Local::shared(fd)?, AwayState { stream: id, end: away }))
        }
        HomeEnd::Terminal(fd, control) => terminal(id, fd, control),
        HomeEnd::Socket(fd) => socket::home(id, fd),
        HomeEnd::Listener(fd) => listener::home(id, fd),
        HomeEnd::Datagrams(fd) => datagram::home(id, fd),
    }
}

fn capacity(fd: &OwnedFd) -> u32 {
    fcntl(fd, FcntlArg::F_GETPIPE_SZ)
        .ok()
        .and_then(|size| u32::try_from(size).ok())
        .unwrap_or(PIPE_CAPACITY)
}

fn terminal(
    id: StreamId,
    fd: OwnedFd,
    control: JobControl,
) -> io::Result<(Endpoint, Local, AwayState)> {
    let local = Local::shared(fd)?;
    let tty = std::os::fd::AsFd::as_fd(&local);
    let (termios, size) = (Termios::of(tty)?, WindowSize::of(tty)?);
    let role =
        HomeTty { control, wanted: false, raw: None, size, hung: false, settings: None, typed: 0 };
    let half =
        Endpoint::new(id, Role::HomeTty(role), Some(Sender::default()), Some(Receiver::default()));
    let away = AwayEnd::Pty(Box::new(PtyState::fresh(termios, size)));
    Ok((half, local, AwayState { stream: id, end: away }))
}
