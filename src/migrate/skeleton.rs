//! The new process before it gets its old memory: namespaces, pids, session, descriptors.
//!
//! ```text
//! supervisor ─fork─► H   unshare: user (ordinary user), pid, time, uts, mount; offsets, name
//!                    └─► I   pid 1: mounts proc, reaps; leads what pid 1 led before
//!                        └─► L   stands in for the session leader   (pid = sid)
//!                            ├─► G   stands in for the group leader (pid = pgid)
//!                            └─► Q   stands in for the parent       (pid = ppid)
//!                                └─► P   the process itself, waits for its descriptors
//! ```
//! Who coincides with another or with P is left out. H ends at once; the others end when P
//! does. None holds a descriptor of the supervisor but its own end of a socket. A parent outside
//! of the pid namespace (ppid 0) is H itself, which stays then:
//!
//! ```text
//! supervisor ─fork─► H   ─► I ─► G
//!                        └─► P
//! ```

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags,
    SockFlag, SockType,
};
use serde::{Deserialize, Serialize};

use super::building::{self, Build, Built};
use super::image::{Clocks, Ids};
use super::resource::creds::User;
use super::{newborn, raw};

/// What the frame of a process needs before its image arrives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub ids: Ids,
    pub nodename: String,
    pub domainname: String,
    /// The job's clocks when this was sent.
    pub clocks: Clocks,
    /// The session has a controlling terminal, which is relayed.
    pub terminal: bool,
    /// Whom the process runs as, by its own numbers.
    pub user: User,
}

/// A process that waits for its descriptors and memory.
#[derive(Debug)]
pub struct Skeleton {
    /// Host pids of the process and of its namespace's pid 1.
    pub pid: i32,
    pub init: i32,
    /// proc could not be mounted: `/proc/PID` in the job shows the host's numbers.
    pub host_proc: bool,
    control: OwnedFd,
    leader: OwnedFd,
    ids: Ids,
}

/// Why it could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SkeletonError {
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    /// A step failed in one of the new processes.
    #[error("{0}")]
    Step(String),
}

pub(super) type Result<T> = std::result::Result<T, SkeletonError>;

pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> SkeletonError {
    move |source| SkeletonError::Io { what, source }
}

/// Messages from the new processes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// From I; the kernel tells its pid. True: proc could not be mounted.
    Init(bool),
    /// From P: it waits.
    Ready,
    /// From P: some of the descriptors that it hands out, or it wants more of those it is given.
    More,
    Built(Built),
    Failed(String),
}

/// What the supervisor asks of the new processes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Make the terminal that comes along the controlling one, with this foreground group.
    Terminal(i32),
    Build(Box<Build>),
    /// More descriptors for [`Request::Build`], or more are wanted of those that P hands out.
    More,
}

/// Sends one message with descriptors; large content goes through a memfd.
pub(super) fn send(socket: BorrowedFd, value: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
    let bytes = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let content = raw::memfd("message")?;
    let mut file = fs::File::from(content.try_clone()?);
    io::Write::write_all(&mut file, &bytes)?;
    let all: Vec<RawFd> = std::iter::once(content.as_raw_fd()).chain(fds.iter().copied()).collect();
    let rights = [ControlMessage::ScmRights(&all)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"v")],
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Most descriptors in one message (SCM_MAX_FD of the kernel, less one for the content).
pub const MAX_FDS: usize = 252;

/// Receives one message: value, sender's pid, descriptors.
pub(super) fn receive<T: for<'a> Deserialize<'a>>(
    socket: BorrowedFd,
) -> io::Result<(T, i32, Vec<OwnedFd>)> {
    let mut byte = [0u8; 1];
    let mut iov = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS + 1], libc::ucred);
    let got = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut iov,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::Error::EINTR) => {}
            other => break other?,
        }
    };
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (mut pid, mut fds) = (0, Vec::new());
    for message in got.cmsgs()? {
        match message {
            ControlMessageOwned::ScmRights(list) => fds.extend(list.into_iter().map(raw::own)),
            ControlMessageOwned::ScmCredentials(creds) => pid = creds.pid(),
            _ => {}
        }
    }
    if fds.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    use std::os::unix::fs::FileExt;
    let content = fs::File::from(fds.remove(0));
    let mut bytes = vec![0; content.metadata()?.len() as usize];
    content.read_exact_at(&mut bytes, 0)?;
    let value =
        postcard::from_bytes(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok((value, pid, fds))
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| io_error("socketpair")(e.into()))
}

/// The job's clocks as they are now, nanoseconds, in the caller's time namespace.
///
/// # Errors
/// When the kernel has no such clock.
pub fn own_clocks() -> io::Result<Clocks> {
    use super::resource::raw::clock;
    Ok(Clocks { monotonic: clock(libc::CLOCK_MONOTONIC)?, boottime: clock(libc::CLOCK_BOOTTIME)? })
}

/// By how much the coarse clocks here may be behind the fine ones, nanoseconds
/// (CLOCK_MONOTONIC_COARSE of clock_getres(2)). A job's clock that is ahead by this shows no
/// coarse time that is older than one the job has seen.
///
/// # Errors
/// When the kernel does not tell.
pub fn coarse_tick() -> io::Result<i128> {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(i128::from(tick.tv_sec()) * 1_000_000_000 + i128::from(tick.tv_nsec()))
}

/// Offsets of a time namespace (`/proc/PID/timens_offsets`, time_namespaces(7)): monotonic and
/// boot time, nanoseconds.
///
/// # Errors
/// When the kernel has no time namespaces.
pub fn offsets(pid: &str) -> io::Result<(i128, i128)> {
    let text = fs::read_to_string(format!("/proc/{pid}/timens_offsets"))?;
    let get = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        let mut words = line.split_whitespace().skip(1).map(|w| w.parse::<i128>().ok());
        Some(words.next()?? * 1_000_000_000 + words.next()??)
    };
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "timens_offsets");
    Ok((get("monotonic").ok_or_else(bad)?, get("boottime").ok_or_else(bad)?))
}

/// Can the namespaces of a job of `user` be made here (user_namespaces(7))? The caller has one
/// thread.
///
/// # Errors
/// What the kernel answers when they are tried.
pub fn try_namespaces(user: User) -> io::Result<()> {
    use nix::sys::wait::{waitpid, WaitStatus};
    let child = raw::fork(None)?;
    if child == 0 {
        newborn::probe(user);
    }
    match waitpid(nix::unistd::Pid::from_raw(child), None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        other => Err(io::Error::other(format!("the process that tried it: {other:?}"))),
    }
}

impl Skeleton {
    /// Makes the processes. The caller has one thread. A session leader that is not the
    /// process itself takes `tty` as its controlling terminal at once: the others get it by
    /// fork(2), and in no other way (tty_ioctl(4), TIOCSCTTY).
    ///
    /// # Errors
    /// The step that failed, in words.
    pub fn spawn(plan: &Plan, tty: Option<BorrowedFd>) -> Result<Self> {
        let (control, theirs) = pair()?;
        let (leader, leaders) = pair()?;
        raw::pass_credentials(control.as_fd()).map_err(io_error("SO_PASSCRED"))?;
        let now = own_clocks().map_err(io_error("clock_gettime"))?;
        let h = raw::fork(None).map_err(io_error("fork"))?;
        if h == 0 {
            newborn::start(plan, now, theirs, leaders, tty.map(|fd| fd.as_raw_fd()));
        }
        drop((theirs, leaders));
        let made = Self::await_ready(control, leader, plan.ids);
        if made.is_err() || !newborn::parent_is_outside(plan.ids) {
            // H ends as soon as pid 1 is there, or has failed.
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(h), None);
        }
        made
    }

    fn await_ready(control: OwnedFd, leader: OwnedFd, ids: Ids) -> Result<Self> {
        let (mut init, mut host_proc) = (0, false);
        loop {
            let (word, sender, _) =
                receive::<Word>(control.as_fd()).map_err(io_error("start of the new process"))?;
            match word {
                Word::Init(without) => (init, host_proc) = (sender, without),
                Word::Ready => {
                    return Ok(Self { pid: sender, init, host_proc, control, leader, ids });
                }
                Word::Failed(text) => return Err(SkeletonError::Step(text)),
                Word::More | Word::Built(_) => {
                    return Err(SkeletonError::Step("out of order".into()))
                }
            }
        }
    }

    /// Gives the process its descriptors. `fds` stand for `build.provided`, `build.ready` and
    /// `build.shared_given`, one after the other; answered are those of `build.hand_out`.
    ///
    /// # Errors
    /// The descriptor that could not be made, in words.
    pub fn build(&self, build: &Build, fds: &[BorrowedFd]) -> Result<(Built, Vec<OwnedFd>)> {
        building::ask(self.control.as_fd(), build, fds)
    }

    /// Makes `tty` the controlling terminal of the job's session. Before [`Skeleton::build`].
    ///
    /// # Errors
    /// When the session leader cannot take it.
    pub fn set_terminal(&self, tty: BorrowedFd) -> Result<()> {
        let to = if self.ids.sid == self.ids.pid { &self.control } else { &self.leader };
        let ask = Request::Terminal(self.ids.pgid);
        send(to.as_fd(), &ask, &[tty.as_raw_fd()]).map_err(io_error("send the terminal"))?;
        match receive::<Word>(to.as_fd()).map_err(io_error("controlling terminal"))? {
            (Word::Ready, ..) => Ok(()),
            (Word::Failed(text), ..) => Err(SkeletonError::Step(text)),
            _ => Err(SkeletonError::Step("out of order".into())),
        }
    }

    /// Ends everything in the namespace.
    pub fn kill(&self) {
        use nix::sys::signal::{kill, Signal};
        let _ = kill(nix::unistd::Pid::from_raw(self.init), Signal::SIGKILL);
    }
}
