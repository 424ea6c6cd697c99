//! File descriptors: the interface of a kind, and the table of kinds.
//!
//! ```text
//! source: /proc/PID/fd/N ─► FdView ─► find ─► FdKind::capture ─► Object (postcard bytes)
//!                                               └► FdKind::bulk ─► content, streamed apart
//! target: FdKind::vessel ─► file to fill ─► RestoreCx::provided
//!         in the new process: Object ─► FdKind::restore ─► fd at its number ─► FdKind::finish
//! ```
//! Descriptors that share an open file description (kcmp) are captured once. One module per
//! kind; `view` reads /proc, `place` puts descriptors at their numbers, `content` carries
//! files that exist nowhere else, `raw` holds every unsafe block.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;
use crate::control::{Finding, Severity};
use crate::migrate::cpus;
use crate::tracer::inject::{Arg, Program};

pub mod content;
mod deleted;
mod device;
mod directory;
pub mod epoll;
mod eventfd;
pub mod inet;
mod inotify;
pub mod kernel_file;
pub mod lock;
mod memfd;
pub mod mqueue;
mod opath;
mod outside;
mod owner;
pub mod pidfd;
mod pipe;
pub mod place;
pub mod pty;
pub mod raw;
mod refused;
pub mod regular;
pub mod signalfd;
mod socket;
pub mod tcp;
#[cfg(test)]
pub(in crate::migrate) mod testing;
mod timerfd;
pub mod udp;
pub mod unix;
mod view;

pub use content::{BulkId, BulkSource};
pub use deleted::NAME as DELETED;
pub use device::is_terminal;
pub use epoll::NAME as EPOLL;
pub use outside::Outside;
pub use owner::Signals;
pub use pipe::outside_holders;
pub use place::{Making, PROVIDED};
pub use view::{numbers, views, FdView, Views};

/// A captured open file description, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// [`FdKind::name`], or [`PROVIDED`] for what the target's supervisor hands in.
    pub kind: String,
    /// What [`FdKind::capture`] gave.
    pub state: Vec<u8>,
    /// Status flags as fcntl(F_GETFL) shows them, without O_CLOEXEC.
    pub flags: i32,
    /// Signals that it sends when it is ready.
    pub signals: Option<Signals>,
}

/// One descriptor of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its number.
    pub fd: i32,
    /// Index of its description among the objects.
    pub object: u32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
}

impl Slot {
    /// Puts the call into `program` that makes this a duplicate of descriptor `of`.
    pub fn put(&self, of: i32, program: &mut Program) {
        let flags = if self.cloexec { libc::O_CLOEXEC } else { 0 };
        let args = [of as u64, self.fd as u64, flags as u64].map(Arg::Num);
        program.call(libc::SYS_dup3, "dup3", &args);
    }
}

/// What is known already, or else made, and known from then on.
///
/// # Errors
/// Those of `make`.
pub fn known_or<T>(known: &OnceCell<T>, make: impl FnOnce() -> io::Result<T>) -> io::Result<&T> {
    if let Some(known) = known.get() {
        return Ok(known);
    }
    let made = make()?;
    Ok(known.get_or_init(|| made))
}

/// What capture may ask.
pub trait CaptureCx {
    /// A duplicate of a job's descriptor (pidfd_getfd) in the view's process, sharing its
    /// description.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn dup(&self, view: &FdView) -> io::Result<OwnedFd>;
    /// Every description of the job.
    fn all(&self) -> &[FdView];
    /// Annotations of the handle table for this descriptor (e.g. inotify watches), postcard.
    fn annotation(&self, view: &FdView) -> Option<&[u8]>;
    /// Have several processes of the job, or a message on its way, this description?
    fn is_shared(&self, _view: &FdView) -> bool {
        false
    }
    /// Host pids of all processes of the job.
    fn job_pids(&self) -> Vec<i32>;
    /// The bytes of a pty, which have been taken for this capture ([`pty::take_queues`]).
    fn queues(&self, _id: pty::PtyId) -> Option<&pty::queues::Snapshot> {
        None
    }
    /// What processes outside of the job have open, once it has been looked for.
    ///
    /// # Errors
    /// When /proc cannot be read.
    fn outside(&self) -> io::Result<&Outside>;
    /// The Unix sockets of the job.
    ///
    /// # Errors
    /// When the kernel does not tell of them.
    fn sockets(&self) -> io::Result<&unix::Sockets>;
    /// Returns when every timer has expired that was due when [`CaptureCx::all`] was read.
    fn let_timers_expire(&self) {
        cpus::let_timers_expire();
    }
}

/// What restore may ask. Runs inside the new process, before it gets its old memory.
pub trait RestoreCx {
    /// A descriptor that the supervisor made beforehand for this description: the local
    /// end of a relay, or a filled vessel. Taken once.
    fn provided(&mut self, object: u32) -> Option<OwnedFd>;
    /// What several objects of the job have in common while they are made.
    fn shared(&mut self) -> &mut Shared;
    /// Has the process of the job that `by` names do something that leaves its credentials in a
    /// socket.
    ///
    /// # Errors
    /// Those of the call.
    fn act(
        &mut self,
        by: Option<unix::Cred>,
        deed: &unix::Deed,
        fds: &[BorrowedFd],
    ) -> io::Result<Vec<OwnedFd>>;
}

/// Kernel objects behind several descriptions, by their identity at the source. Emptied by
/// [`Making::make`] when all objects are there.
#[derive(Debug, Default)]
pub struct Shared {
    /// By st_dev and st_ino of the source.
    pipes: HashMap<(u64, u64), pipe::Ends>,
    queues: mqueue::Queues,
    ptys: pty::Ptys,
}

/// Why an object cannot move or could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum FdError {
    #[error("{}: {}", .0.object, .0.cause)]
    Refused(Box<Finding>),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{0}: state does not decode")]
    State(&'static str),
}

/// One kind of object behind descriptors. Stateless; lives in [`KINDS`].
pub trait FdKind: Sync {
    /// Stable name on the wire and in `inspect`.
    fn name(&self) -> &'static str;
    /// Its rows in the table of what moves.
    fn capabilities(&self) -> &'static [Capability];
    /// Is this description of my kind?
    fn recognises(&self, view: &FdView) -> bool;
    /// What `check` has to say, without touching anything. By default it is the refusal that
    /// a capture would give now; what goes wrong because the job runs on meanwhile is no
    /// finding.
    fn check(&self, view: &FdView, cx: &dyn CaptureCx) -> Vec<Finding> {
        match self.capture(view, cx) {
            Err(FdError::Refused(finding)) => vec![*finding],
            _ => Vec::new(),
        }
    }
    /// Why it cannot be where the job's numbers are translated ([`crate::syscalls::translate`]).
    fn untranslated(&self, _view: &FdView, _cx: &dyn CaptureCx) -> Option<&'static str> {
        None
    }
    /// Is the object itself relayed to the home, though it has a state that travels?
    fn is_relayed(&self) -> bool {
        false
    }
    /// The state, of a frozen job, without changing it.
    ///
    /// # Errors
    /// [`FdError::Refused`] with the finding that `check` would have given.
    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError>;
    /// Content that exists nowhere else and travels apart from the state. Descriptions with
    /// the same [`BulkSource::id`] have the same content: send it once.
    ///
    /// # Errors
    /// As [`FdKind::capture`].
    fn bulk(&self, _view: &FdView, _cx: &dyn CaptureCx) -> Result<Option<BulkSource>, FdError> {
        Ok(None)
    }
    /// The id that [`FdKind::bulk`] gave at the source, out of the state.
    ///
    /// # Errors
    /// When the state does not decode.
    fn bulk_id(&self, _state: &[u8]) -> Result<Option<BulkId>, FdError> {
        Ok(None)
    }
    /// Target's supervisor: makes the empty file, of the right size, that is to be filled
    /// and then handed to every object with this [`FdKind::bulk_id`] as
    /// [`RestoreCx::provided`].
    ///
    /// # Errors
    /// What was tried on which object.
    fn vessel(&self, _state: &[u8]) -> Result<Option<OwnedFd>, FdError> {
        Ok(None)
    }
    /// Makes the object anew out of nothing but its state. A kind that only refuses makes
    /// none.
    ///
    /// # Errors
    /// When the state does not decode; what was tried on which object.
    fn make(&self, _state: &[u8]) -> Result<OwnedFd, FdError> {
        Err(FdError::State(self.name()))
    }
    /// As [`FdKind::make`], for a kind that needs more than its state; by default that is
    /// all. The caller moves the descriptor to its number and sets the status flags that
    /// fcntl(F_SETFL) can set.
    ///
    /// # Errors
    /// As [`FdKind::make`].
    fn restore(
        &self,
        _object: u32,
        state: &[u8],
        _cx: &mut dyn RestoreCx,
    ) -> Result<OwnedFd, FdError> {
        self.make(state)
    }
    /// After all descriptors of the process have their numbers (epoll interest lists, seals).
    /// Of the processes that share the description, it is the first one, whose numbers
    /// [`FdKind::capture`] has seen.
    ///
    /// # Errors
    /// What was tried on which object.
    fn finish(&self, _state: &[u8], _fd: i32) -> Result<(), FdError> {
        Ok(())
    }
}

/// Every kind, first match wins.
pub const KINDS: &[&dyn FdKind] = &[
    &kernel_file::KernelFile,
    &refused::Special,
    &opath::OPath,
    &memfd::MemFd,
    &mqueue::MQueue,
    &regular::Regular,
    &deleted::Deleted,
    &directory::Directory,
    &pty::Pty,
    &device::Device,
    &pipe::Pipe,
    &eventfd::EventFd,
    &timerfd::TimerFd,
    &signalfd::SignalFd,
    &epoll::Epoll,
    &pidfd::PidFd,
    &inotify::Inotify,
    &unix::Unix,
    &tcp::Tcp,
    &udp::Udp,
    &socket::Socket,
    &refused::Rest,
    &place::Provided,
];

/// Rows of what descriptors of any kind can have.
pub const CAPABILITIES: &[Capability] = &[
    Capability::moves(Descriptors, "fd-table", "numbers and flags, also of closed ones"),
    Capability::moves(
        Descriptors,
        "fd-shared",
        "descriptions shared by dup(2) or fork(2), with their offset",
    ),
    Capability::moves(Descriptors, "lock-flock", "locks of flock(2)"),
    Capability::moves(Descriptors, "lock-posix", "record locks of fcntl(2)"),
    Capability::moves(Descriptors, "lock-ofd", "open file description locks"),
    Capability::refused(
        Descriptors,
        "lock-wanted",
        "locks that a program outside of the job waits for",
        "VOS-LOCK",
    ),
    Capability::moves(Descriptors, "lease", "leases of fcntl(2)"),
    Capability::refused(
        Descriptors,
        "lease-write",
        "write leases that several processes have, on a mapped file, or on one without a name",
        "VOS-LEASE",
    ),
    Capability::moves(
        Descriptors,
        "async-owner",
        "signals when ready (O_ASYNC, F_SETOWN, F_SETSIG) to the job",
    ),
    Capability::refused(
        Descriptors,
        "async-outside",
        "signals when ready to processes outside of the job",
        "VOS-ASYNC",
    ),
];

/// The kind of a description; always some, if only one that refuses.
#[must_use]
pub fn find(view: &FdView) -> Option<&'static dyn FdKind> {
    KINDS.iter().copied().find(|kind| kind.recognises(view))
}

/// The kind with this wire name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static dyn FdKind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}

/// Is the description of a kind that is relayed and has a state ([`FdKind::is_relayed`])?
#[must_use]
pub fn is_relayed(view: &FdView) -> bool {
    find(view).is_some_and(FdKind::is_relayed)
}

/// Everything that `check` has to say of one description: its kind's findings and those
/// that any kind can have (locks, signal-driven I/O).
#[must_use]
pub fn check(view: &FdView, cx: &dyn CaptureCx) -> Vec<Finding> {
    let mut findings = find(view).map_or_else(Vec::new, |kind| kind.check(view, cx));
    findings.extend(lock::check(view, cx));
    findings.extend(owner::check(view, cx));
    findings
}

/// The refusal of a description that cannot be where the job's numbers are translated.
#[must_use]
pub fn untranslated(view: &FdView, cx: &dyn CaptureCx) -> Option<Finding> {
    let cause = find(view)?.untranslated(view, cx)?;
    Some(view.blocker("VOS-TRANSLATE", cause, crate::syscalls::translate::REMEDY))
}

/// Captures one description of a frozen job; its locks are apart ([`lock::held`]).
///
/// # Errors
/// [`FdError::Refused`] with the first blocker, [`FdError::Io`] with what was tried.
pub fn capture(view: &FdView, cx: &dyn CaptureCx) -> Result<Object, FdError> {
    let kind = find(view).unwrap_or(&refused::Rest);
    let state = kind.capture(view, cx)?;
    let signals = owner::capture(view, cx)?;
    Ok(Object { kind: kind.name().to_owned(), state, flags: view.flags, signals })
}

/// Captures what is known here of a description that the target's supervisor provides.
///
/// # Errors
/// As [`capture`]; a lock cannot come along.
pub fn capture_provided(view: &FdView, cx: &dyn CaptureCx) -> Result<Object, FdError> {
    if let Some(refused) = lock::stays_behind(view) {
        return Err(refused);
    }
    let signals = owner::capture(view, cx)?;
    Ok(Object { kind: PROVIDED.to_owned(), state: Vec::new(), flags: view.flags, signals })
}

/// Does a description send signals, or is it said to whom (fcntl(2), F_SETOWN)?
#[must_use]
pub fn sends_signals(view: &FdView, cx: &dyn CaptureCx) -> bool {
    !matches!(owner::capture(view, cx), Ok(None))
}

impl FdView {
    /// `fd 9 → /dev/nvidia0`, the object of findings and errors.
    #[must_use]
    pub fn object(&self) -> String {
        format!("fd {} → {}", self.fd, self.link)
    }

    /// A finding that prevents the move.
    #[must_use]
    pub fn blocker(&self, code: &str, cause: impl Into<String>, remedy: &str) -> Finding {
        Finding {
            severity: Severity::Blocker,
            code: code.to_owned(),
            object: self.object(),
            cause: cause.into(),
            remedy: remedy.to_owned(),
        }
    }

    /// The same as an error of capture.
    fn refuse(&self, code: &str, cause: impl Into<String>, remedy: &str) -> FdError {
        FdError::Refused(Box::new(self.blocker(code, cause, remedy)))
    }

    /// An error of a system call on this descriptor.
    fn failed(&self, tried: &str) -> impl FnOnce(io::Error) -> FdError {
        failed(format!("{tried} of {} of process {}", self.object(), self.host_pid))
    }
}

/// Names what was tried: `.map_err(failed("open /x"))`.
fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> FdError {
    let what = what.into();
    |source| FdError::Io { what, source }
}

/// A kernel's answer that has not the form its documentation promises.
fn unexpected(what: impl Into<String>) -> FdError {
    FdError::Io { what: what.into(), source: io::ErrorKind::InvalidData.into() }
}

fn encode(state: &impl Serialize) -> Result<Vec<u8>, FdError> {
    postcard::to_stdvec(state).map_err(|e| failed("encode a state")(io::Error::other(e)))
}

fn decode<'a, T: Deserialize<'a>>(kind: &'static str, state: &'a [u8]) -> Result<T, FdError> {
    postcard::from_bytes(state).map_err(|_| FdError::State(kind))
}
