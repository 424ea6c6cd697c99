//! The image of a frozen job: data only, no I/O.
//!
//! ```text
//! JobImage ─┬─ job, clocks, host name
//!           └─ ProcessImage ─┬─ ids, memory (without pages), descriptors
//!                            ├─ parts of the process
//!                            └─ ThreadImage: registers, restart, parts of the thread
//! ```

use serde::{Deserialize, Serialize};

use super::resource::fd;
use super::resource::memory::MmImage;
use super::resource::registers::Registers;
use super::resource::PartState;
use crate::control::MoveReport;
use crate::ids::JobId;

/// Version of [`JobImage`]; nodes of other versions refuse each other.
pub const IMAGE_VERSION: u32 = 1;

/// A whole frozen job, without the pages of its memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobImage {
    pub job: JobInfo,
    pub clocks: Clocks,
    /// What uname(2) gives as node name and domain name.
    pub nodename: String,
    pub domainname: String,
    pub processes: Vec<ProcessImage>,
}

impl JobImage {
    /// Checks what the rest of this program takes for granted; the kernel judges the rest.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        let [process] = self.processes.as_slice() else { return Err("not one process") };
        if process.threads.is_empty() {
            return Err("a process without a thread");
        }
        process.memory.check()
    }
}

/// What a job is, wherever it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobInfo {
    pub id: JobId,
    pub name: String,
    pub command: Vec<String>,
    /// Node where it started.
    pub home: String,
    /// Unix milliseconds.
    pub started_ms: u64,
    pub attached: bool,
    /// It has the supervisor's seccomp filter and gets it again.
    pub filtered: bool,
}

/// The job's clocks at the freeze, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    pub monotonic: i128,
    pub boottime: i128,
}

/// One process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessImage {
    pub ids: Ids,
    pub memory: MmImage,
    pub files: FdImage,
    pub parts: Vec<PartState>,
    /// The first is the process's leader.
    pub threads: Vec<ThreadImage>,
    /// Stopped by this job-control signal.
    pub stopped: Option<i32>,
}

/// Numbers of a process as the job sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    pub pid: i32,
    /// 0: the parent is outside of the pid namespace.
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
}

impl Ids {
    /// Can its parent be outside of the pid namespace? Who joins the session of another process
    /// inside is made by that one.
    #[must_use]
    pub fn may_come_from_outside(&self) -> bool {
        self.sid == 0 || self.sid == self.pid
    }
}

/// Descriptors of a process: open file descriptions, and the numbers that refer to them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdImage {
    pub objects: Vec<fd::Object>,
    /// Device and inode of each object at the source: finds mappings of the same object.
    pub identities: Vec<(u64, u64)>,
    pub table: Vec<fd::Slot>,
}

/// One thread.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ThreadImage {
    pub tid: i32,
    pub registers: Registers,
    pub restart: Option<Restart>,
    pub parts: Vec<PartState>,
}

/// An interrupted system call that the kernel of the target cannot restart by itself,
/// because its remaining time is known to the old kernel only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Its number (x86-64).
    pub nr: i64,
    /// What is left of its timeout, nanoseconds; none: it waits for ever or to an absolute
    /// time, and starts again as it was.
    pub remaining_ns: Option<u64>,
}

/// Report of earlier moves, carried along.
pub type History = Vec<MoveReport>;
