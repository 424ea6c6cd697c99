//! The new processes before they get their old memory: namespaces, pids, sessions, groups.
//!
//! ```text
//! supervisor ─fork─► H   unshare: user (ordinary user), pid, time, uts, ipc, mount; offsets, name,
//!                    │   controlling terminals
//!                    └─► I   pid 1: mounts proc, reaps; leads what pid 1 led before
//!                        └─► L   stands in for the session leader   (pid = sid)
//!                            ├─► G   stands in for the group leader (pid = pgid)
//!                            └─► Q   stands in for the parent       (pid = ppid)
//!                                └─► P   the root, waits for its descriptors
//!                                    └─► its children, and theirs
//! ```
//! Who coincides with another or with P is left out. H ends at once; I ends when no process of
//! the job is left, and the stand-ins with it. None holds a descriptor of the supervisor but its
//! own end of a socket. How the rest of the job is made is the plan of [`super::tree`]. A parent
//! outside of the pid namespace (ppid 0) is H itself, which stays then:
//!
//! ```text
//! supervisor ─fork─► H   ─► I ─► G
//!                        └─► P
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags,
    SockFlag, SockType,
};
use serde::{Deserialize, Serialize};

use super::building::{self, Build, Built};
pub use super::growing::Growing;
use super::heritage::{Bequest, Heritage};
use super::image::{Clocks, Ids, ProcessImage};
use super::programs::Programs;
use super::resource::creds::User;
use super::resource::fd::unix::{Cred, Deed};
use super::resource::ipc::steps::{self, Step};
use super::resource::ipc::undo::Undo;
use super::resource::ipc::{IpcImage, Kind};
use super::terminals::Terminal;
use super::tree::{Member, Tree};
use super::{newborn, raw, turns};
use crate::control::Finding;
use crate::proxy::PtyPair;
use crate::syscalls::translate::numbers;
use crate::syscalls::translate::objects::{self, Note, Objects};

/// What the frame of a job needs before its image arrives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The root comes first.
    pub members: Vec<Member>,
    pub nodename: String,
    pub domainname: String,
    /// The job's clocks when this was sent.
    pub clocks: Clocks,
    /// Controlling terminals of sessions.
    pub terminals: Vec<Terminal>,
    /// The job has ptys, which keep their numbers.
    pub ptys: bool,
    /// Whom the processes run as, by its own numbers.
    pub user: User,
    /// What processes hand down to those below them, the upper ones first.
    pub bequests: Vec<Bequest>,
    /// Without namespaces: programs of processes that share more than execve(2) keeps.
    pub programs: Programs,
}

impl Plan {
    /// The ids of the first process.
    #[must_use]
    pub fn root(&self) -> Option<Ids> {
        self.members.first().map(|m| m.ids)
    }

    /// Are the same terminals made for both?
    #[must_use]
    pub fn has_terminals_of(&self, other: &Self) -> bool {
        let (own, theirs) = (&self.terminals, &other.terminals);
        self.ptys == other.ptys
            && own.len() == theirs.len()
            && own.iter().zip(theirs).all(|(one, other)| one.is_made_as(other))
    }
}

/// What a frame is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Footing {
    /// Namespaces in which each has its old number.
    Namespaces,
    /// Plain processes with other numbers, which are translated.
    Translated,
}

/// A process that waits for what the supervisor asks of it.
#[derive(Debug)]
pub struct NewProcess {
    /// Its number in the job.
    pub job_pid: i32,
    /// Its number here.
    pub pid: i32,
    pub control: OwnedFd,
    /// The number of its own end of that.
    pub number: RawFd,
}

/// The processes of a job, waiting for descriptors and memory.
#[derive(Debug)]
pub struct Skeleton {
    /// Host pids of the root and of the namespace's pid 1.
    pub pid: i32,
    pub init: i32,
    /// proc could not be mounted: `/proc/PID` in the job shows the host's numbers.
    pub host_proc: bool,
    /// Without namespaces: by how much the job's clocks are ahead of those here, nanoseconds.
    pub ahead: Option<Clocks>,
    /// Stand-ins that are asked for nothing, where they do not end with pid 1.
    pub(super) standins: Vec<i32>,
    /// The living processes of the job, in the order of the plan's members.
    pub processes: Vec<NewProcess>,
    /// The ptys of the plan's terminals, by their place there.
    pub terminals: BTreeMap<usize, PtyPair>,
    /// What each of `processes` has of memory already.
    pub heritage: Vec<Heritage>,
    pub(super) frame: Frame,
}

/// What the supervisor needs of the rest until all are settled.
#[derive(Debug)]
pub(super) struct Frame {
    pub members: Vec<Member>,
    pub tree: Tree,
    /// pid 1, the session's leader, ghosts, and those that end again; by their place in the tree.
    pub rest: BTreeMap<usize, NewProcess>,
    /// Where a process of the tree is in [`Skeleton::processes`].
    pub living: BTreeMap<usize, usize>,
}

/// Why it could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SkeletonError {
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    /// A step failed in one of the new processes.
    #[error("{0}")]
    Step(String),
    #[error("{}: {}", .0.object, .0.cause)]
    Refused(Box<Finding>),
    #[error("the processes need {needed} descriptors here, and the hard limit is {limit} (RLIMIT_NOFILE, getrlimit(2))")]
    Descriptors { needed: u64, limit: u64 },
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
    /// From H: both sides of a terminal of the plan, by its place there.
    Terminal(u32),
    /// From a process of the plan, by its place there: it waits. Its own socket comes along, whose
    /// other end has this number.
    Born(u32, RawFd),
    /// From a process of the plan, by its place there, that waits for what it hands down over the
    /// socket that comes along. These mappings (by their places) could not be made.
    Gate(u32, Vec<u32>),
    /// The same of one that is to execute what it has open as this.
    Execute(u32, RawFd),
    /// What was asked is done.
    Ready,
    /// The same, and what the job has here now.
    Made(Objects),
    /// From a stand-in that is asked for nothing, by its place in the plan.
    StandIn(u32),
    /// From P: some of the descriptors that it hands out, or it wants more of those it is given.
    More,
    Built(Built),
    Failed(String),
    /// From P: this process is to do this with what comes along, which leaves its credentials.
    Act(Cred, Deed),
    /// From P, without namespaces: the process with the second number was the first of the job, and has
    /// ended.
    StoodFor(i32, i32),
}

/// What the supervisor asks of the new processes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// What the process hands down is there.
    Grow,
    /// The terminal that comes along is the controlling one: this is its foreground group.
    Terminal(i32),
    /// Open /dev/tty with these flags.
    OpenTerminal(i32),
    /// Join this process group.
    Join(i32),
    /// These children end; and no orphans come any more.
    Reap(Vec<i32>),
    /// End with this wait status.
    End(i32),
    /// Make objects of System V IPC. Without namespaces: what the job has here so far.
    Ipc(Vec<Step>, Option<Objects>),
    /// Pid 1 removes this at its end.
    Keep(Note),
    Build(Box<Build>),
    /// As [`Word::Act`].
    Act(Cred, Deed),
    /// How that went: an errno, or 0, and what was made. `ESRCH`: there is no such process.
    Acted(i32),
    /// More descriptors for [`Request::Build`], or more are wanted of those that P hands out.
    More,
}

/// Content up to this length is sent as it is.
const MOST_INLINE: usize = 512;

/// Sends one message with descriptors; large content goes through a memfd.
pub(super) fn send(socket: BorrowedFd, value: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
    let bytes = postcard::to_stdvec(value).map_err(io::Error::other)?;
    if bytes.len() <= MOST_INLINE {
        return send_raw(socket, &[b"i", &bytes], fds);
    }
    let content = raw::memfd("message")?;
    let mut file = fs::File::from(content.try_clone()?);
    io::Write::write_all(&mut file, &bytes)?;
    let all: Vec<RawFd> = std::iter::once(content.as_raw_fd()).chain(fds.iter().copied()).collect();
    send_raw(socket, &[b"v"], &all)
}

fn send_raw(socket: BorrowedFd, bytes: &[&[u8]], fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[] } else { rights.as_slice() };
    let bytes: Vec<IoSlice> = bytes.iter().map(|b| IoSlice::new(b)).collect();
    sendmsg::<()>(socket.as_raw_fd(), &bytes, rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Most descriptors in one message (SCM_MAX_FD of the kernel, less one for the content).
pub const MAX_FDS: usize = 252;

/// Receives one message: value, sender's pid, descriptors.
pub(super) fn receive<T: for<'a> Deserialize<'a>>(
    socket: BorrowedFd,
) -> io::Result<(T, i32, Vec<OwnedFd>)> {
    let mut inline = [0u8; MOST_INLINE + 1];
    let mut iov = [IoSliceMut::new(&mut inline)];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS + 1], libc::ucred);
    turns::await_readable(socket);
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
    let len = got.bytes;
    if len == 0 {
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
    let bad = |e| io::Error::new(io::ErrorKind::InvalidData, e);
    if let Some([b'i', bytes @ ..]) = inline.get(..len) {
        return Ok((postcard::from_bytes(bytes).map_err(bad)?, pid, fds));
    }
    if fds.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    use std::os::unix::fs::FileExt;
    let content = fs::File::from(fds.remove(0));
    let mut bytes = vec![0; content.metadata()?.len() as usize];
    content.read_exact_at(&mut bytes, 0)?;
    Ok((postcard::from_bytes(&bytes).map_err(bad)?, pid, fds))
}

/// A socket pair of whole messages.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| io_error("socketpair")(e.into()))
}

/// In a process of the frame: says `word` over `control`, with a socket on which the supervisor
/// tells when the frame is to grow on, and waits for that.
pub(super) fn await_growth(control: BorrowedFd, word: &Word) -> io::Result<()> {
    let (own, theirs) = pair().map_err(io::Error::other)?;
    send(control, word, &[theirs.as_raw_fd()])?;
    drop(theirs);
    match receive::<Request>(own.as_fd()) {
        Ok((Request::Grow, ..)) => Ok(()),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        // The supervisor is gone, or wants another frame.
        Err(_) => raw::exit_now(1),
    }
}

/// The job's clocks as they are now, nanoseconds, in the caller's time namespace: both of one moment,
/// as nearly as they can be read. What is between two readings would part them for good.
///
/// # Errors
/// When the kernel has no such clock.
pub fn own_clocks() -> io::Result<Clocks> {
    use super::resource::raw::clock;
    const TURNS: usize = 16;
    let mut best: Option<(i128, Clocks)> = None;
    for _turn in 0..TURNS {
        let before = clock(libc::CLOCK_MONOTONIC)?;
        let boottime = clock(libc::CLOCK_BOOTTIME)?;
        let between = clock(libc::CLOCK_MONOTONIC)? - before;
        if best.is_none_or(|(least, _)| between < least) {
            best = Some((between, Clocks { monotonic: before + between / 2, boottime }));
        }
    }
    best.map(|(_, clocks)| clocks).ok_or_else(|| io::ErrorKind::Unsupported.into())
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
    /// Makes the processes of a plan in which nothing is handed down; [`Skeleton::settle`] is next.
    /// The caller has one thread.
    ///
    /// # Errors
    /// The step that failed, in words.
    pub fn spawn(plan: &Plan, footing: Footing) -> Result<Self> {
        Growing::begin(plan, footing, &|_| None)?.finish()
    }

    /// Gives a process its descriptors, by its place among [`Skeleton::processes`]. `fds` stand for
    /// `build.provided`, `build.ready` and `build.shared_given`, one after the other; answered are
    /// those of `build.hand_out`.
    ///
    /// # Errors
    /// The descriptor that could not be made, in words.
    pub fn build(
        &self,
        index: usize,
        build: &Build,
        fds: &[BorrowedFd],
    ) -> Result<(Built, Vec<OwnedFd>)> {
        let process = self.processes.get(index);
        let process = process.ok_or_else(|| SkeletonError::Step("no such process".into()))?;
        let act = |by: Cred, deed: &Deed, fds: &[OwnedFd]| self.act(by, deed, fds);
        building::ask(process.control.as_fd(), build, fds, &act)
    }

    /// Has the process with this number in the job do something; the supervisor itself stands for
    /// all processes outside.
    fn act(&self, by: Cred, deed: &Deed, fds: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
        if by.pid == 0 {
            let fds: Vec<BorrowedFd> = fds.iter().map(AsFd::as_fd).collect();
            return deed.perform(Some(by), &fds);
        }
        let rest = self.frame.rest.values().filter(|process| process.pid != self.init);
        let found = self.processes.iter().chain(rest).find(|p| p.job_pid == by.pid);
        let process = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = process.control.as_fd();
        send(control, &Request::Act(by, deed.clone()), &fds)?;
        match receive::<Word>(control)? {
            (Word::Ready, _, made) => Ok(made),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sets the foreground group of `tty`, the controlling terminal of session `sid`.
    /// After [`Skeleton::settle`] and before [`Skeleton::build`].
    ///
    /// # Errors
    /// When the session leader cannot take it.
    pub fn set_terminal(&self, sid: i32, tty: BorrowedFd, foreground: i32) -> Result<()> {
        let foreground = numbers::to_host(foreground);
        ask(self.leader(sid)?, &Request::Terminal(foreground), &[tty.as_raw_fd()])
    }

    /// Opens /dev/tty in session `sid`, with these flags. As [`Skeleton::set_terminal`].
    ///
    /// # Errors
    /// When the session has no terminal.
    pub fn open_terminal(&self, sid: i32, flags: i32) -> Result<OwnedFd> {
        let fds = ask_for(self.leader(sid)?, &Request::OpenTerminal(flags), &[])?;
        fds.into_iter().next().ok_or_else(out_of_order)
    }

    fn leader(&self, sid: i32) -> Result<&NewProcess> {
        let leader = self.frame.tree.nodes.iter().position(|n| n.pid == sid);
        let gone = || SkeletonError::Step(format!("the leader of session {sid} is not there"));
        leader.and_then(|node| self.at(node)).ok_or_else(gone)
    }

    /// Makes the objects of System V IPC. After [`Skeleton::settle`] and before
    /// [`Skeleton::build`].
    ///
    /// # Errors
    /// The object that could not be made, in words.
    pub fn make_ipc(&self, ipc: &IpcImage, processes: &[ProcessImage]) -> Result<()> {
        let own = objects::are_own().then(|| with_keys(ipc)).transpose()?;
        let ipc = own.as_ref().unwrap_or(ipc);
        let undo: Vec<(i32, Undo)> =
            processes.iter().flat_map(|p| p.undo.iter().map(|undo| (p.ids.pid, *undo))).collect();
        let find = |pid: i32| self.processes.iter().find(|process| process.job_pid == pid);
        for (doer, all) in steps::plan(ipc, &undo, |pid| find(pid).is_some()) {
            let process = match doer {
                Some(pid) => find(pid),
                None => self.at(0),
            };
            let process = process
                .ok_or_else(|| SkeletonError::Step("no process that makes IPC objects".into()))?;
            make_objects(process, all)?;
        }
        Ok(())
    }

    /// Marks the segments for removal that were marked so. All that attach them have done so.
    ///
    /// # Errors
    /// When one cannot be marked.
    pub fn remove_segments(&self, ipc: &IpcImage) -> Result<()> {
        let removed = ipc.segments.iter().filter(|segment| segment.is_removed());
        let steps: Vec<Step> = removed.map(|segment| Step::Remove(segment.perm.id)).collect();
        let init = self.at(0).filter(|_| !steps.is_empty());
        init.map_or(Ok(()), |init| make_objects(init, steps))
    }

    /// A process of the tree that has a socket.
    pub(super) fn at(&self, node: usize) -> Option<&NewProcess> {
        let living = self.frame.living.get(&node).and_then(|index| self.processes.get(*index));
        living.or_else(|| self.frame.rest.get(&node))
    }

    /// Ends all processes.
    pub fn kill(&self) {
        if self.ahead.is_some() {
            let rest = self.frame.rest.values();
            let known = self.processes.iter().chain(rest).map(|process| process.pid);
            known.chain(self.standins.iter().copied()).for_each(kill);
        }
        kill(self.init);
        if self.ahead.is_some() {
            objects::remove_all();
            numbers::end();
        }
    }
}

/// The objects with the keys that they have here.
fn with_keys(ipc: &IpcImage) -> Result<IpcImage> {
    let mut own = ipc.clone();
    let segments = own.segments.iter_mut().map(|o| (Kind::Memory, &mut o.perm));
    let sets = own.sets.iter_mut().map(|o| (Kind::Semaphores, &mut o.perm));
    let queues = own.queues.iter_mut().map(|o| (Kind::Queue, &mut o.perm));
    for (kind, perm) in segments.chain(sets).chain(queues) {
        perm.key = objects::new_key(kind, perm.key).map_err(io_error("keys of IPC objects"))?;
    }
    Ok(own)
}

/// Has a process make objects, and takes down what they are here.
fn make_objects(process: &NewProcess, steps: Vec<Step>) -> Result<()> {
    let failed = |why: String| SkeletonError::Step(format!("process {}: {why}", process.job_pid));
    let control = process.control.as_fd();
    let request = Request::Ipc(steps, objects::copied());
    send(control, &request, &[]).map_err(|e| failed(e.to_string()))?;
    match receive::<Word>(control).map_err(|e| failed(e.to_string()))? {
        (Word::Ready, ..) => Ok(()),
        (Word::Made(all), ..) => {
            objects::take(Some(all));
            Ok(())
        }
        (Word::Failed(text), ..) => Err(failed(text)),
        _ => Err(failed("out of order".into())),
    }
}

/// Tells pid 1, at the other end of `control`, what it is to remove at its end.
///
/// # Errors
/// When it is gone.
pub fn keep(control: BorrowedFd, note: Note) -> io::Result<()> {
    send(control, &Request::Keep(note), &[])
}

/// By how much the clocks of the plan are ahead of those here, and one tick more, as with a time
/// namespace.
pub(super) fn ahead(plan: &Plan, now: Clocks) -> Result<Clocks> {
    let tick = coarse_tick().map_err(io_error("clock_getres"))?;
    let of = |theirs: i128, now: i128| {
        let ahead = theirs.checked_sub(now).and_then(|ahead| ahead.checked_add(tick));
        ahead.ok_or_else(|| SkeletonError::Step("clocks of the job".into()))
    };
    Ok(Clocks {
        monotonic: of(plan.clocks.monotonic, now.monotonic)?,
        boottime: of(plan.clocks.boottime, now.boottime)?,
    })
}

pub(super) fn kill(init: i32) {
    use nix::sys::signal::{kill, Signal};
    let _ = kill(nix::unistd::Pid::from_raw(init), Signal::SIGKILL);
}

/// Asks one process for something, and waits until it is done.
pub(super) fn ask(process: &NewProcess, request: &Request, fds: &[RawFd]) -> Result<()> {
    ask_for(process, request, fds).map(drop)
}

/// The same; gives the descriptors that are answered.
fn ask_for(process: &NewProcess, request: &Request, fds: &[RawFd]) -> Result<Vec<OwnedFd>> {
    let failed = |why: String| SkeletonError::Step(format!("process {}: {why}", process.job_pid));
    let control = process.control.as_fd();
    send(control, request, fds).map_err(|e| failed(e.to_string()))?;
    match receive::<Word>(control).map_err(|e| failed(e.to_string()))? {
        (Word::Ready, _, fds) => Ok(fds),
        (Word::Failed(text), ..) => Err(failed(text)),
        _ => Err(failed("out of order".into())),
    }
}

/// Room for so many sockets and what is open now, with some to spare.
pub(super) fn make_room(sockets: u64) -> Result<()> {
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    let open = fs::read_dir("/proc/self/fd").map_err(io_error("/proc/self/fd"))?.count() as u64;
    let needed = open + sockets + MAX_FDS as u64;
    let (soft, limit) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| io_error("RLIMIT_NOFILE")(e.into()))?;
    if needed <= soft {
        return Ok(());
    }
    if needed > limit {
        return Err(SkeletonError::Descriptors { needed, limit });
    }
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)
        .map_err(|e| io_error("RLIMIT_NOFILE")(e.into()))
}

pub(super) fn out_of_order() -> SkeletonError {
    SkeletonError::Step("out of order".into())
}
