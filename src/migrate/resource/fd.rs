//! File descriptors: the interface of a kind, and the table of kinds.
//!
//! ```text
//! source: /proc/PID/fd/N ─► FdView ─► FdKind::capture ─► state (postcard bytes)
//! target, in the new process: state ─► FdKind::restore ─► fd at its number ─► FdKind::finish
//! ```
//! Descriptors that share an open file description (kcmp) are captured once.

use std::io;
use std::os::fd::OwnedFd;

use crate::control::Finding;

/// One open file description of the job, as /proc shows it.
#[derive(Debug, Clone)]
pub struct FdView {
    /// Host pid of a process that holds it.
    pub host_pid: i32,
    /// The lowest descriptor that refers to it in that process.
    pub fd: i32,
    /// Target of the link `/proc/PID/fd/N`, e.g. `pipe:[1234]` or `/tmp/x (deleted)`.
    pub link: String,
    /// The whole text of `/proc/PID/fdinfo/N`.
    pub fdinfo: String,
    /// Status flags (`flags:` of fdinfo, without O_CLOEXEC).
    pub flags: i32,
    /// File position (`pos:` of fdinfo).
    pub pos: u64,
    /// st_mode, st_ino, st_dev, st_rdev, st_size of the object.
    pub mode: u32,
    pub ino: u64,
    pub dev: u64,
    pub rdev: u64,
    pub size: u64,
}

/// What capture may ask.
pub trait CaptureCx {
    /// A duplicate of a job's descriptor (pidfd_getfd), sharing its description.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn dup(&self, view: &FdView) -> io::Result<OwnedFd>;
    /// Every description of the job.
    fn all(&self) -> &[FdView];
    /// Annotations of the handle table for this descriptor (e.g. inotify watches), postcard.
    fn annotation(&self, view: &FdView) -> Option<&[u8]>;
}

/// What restore may ask. Runs inside the new process, before it gets its old memory.
pub trait RestoreCx {
    /// A descriptor that the supervisor made beforehand for this description: the local
    /// end of a relay. Taken once.
    fn provided(&mut self, object: u32) -> Option<OwnedFd>;
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
    /// Is this description of my kind?
    fn recognises(&self, view: &FdView) -> bool;
    /// What `check` has to say, without touching anything.
    fn check(&self, view: &FdView, cx: &dyn CaptureCx) -> Vec<Finding>;
    /// The state, of a frozen job, without changing it.
    ///
    /// # Errors
    /// [`FdError::Refused`] with the finding that `check` would have given.
    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError>;
    /// Makes the object anew; the caller moves it to its number and sets the status flags
    /// that fcntl(F_SETFL) can set.
    ///
    /// # Errors
    /// What was tried on which object.
    fn restore(
        &self,
        object: u32,
        state: &[u8],
        cx: &mut dyn RestoreCx,
    ) -> Result<OwnedFd, FdError>;
    /// After all descriptors have their numbers (epoll interest lists).
    ///
    /// # Errors
    /// What was tried on which object.
    fn finish(&self, _state: &[u8], _fd: i32) -> Result<(), FdError> {
        Ok(())
    }
}

/// Every kind, first match wins.
pub const KINDS: &[&dyn FdKind] = &[];
