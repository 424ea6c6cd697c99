//! The image of a frozen job: data only, no I/O.
//!
//! ```text
//! JobImage ─┬─ job, clocks, host name
//!           ├─ FdImage: open file descriptions, of all processes together
//!           ├─ ProcessImage ─┬─ ids, memory (without pages), table of descriptors
//!           │                ├─ parts of the process
//!           │                └─ ThreadImage: registers, restart, parts of the thread
//!           └─ Zombie: processes that have ended and are not reaped
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::raw::Shared;
use super::resource::fd;
use super::resource::filters::Filter;
use super::resource::ipc::undo::Undo;
use super::resource::ipc::IpcImage;
use super::resource::memory::MmImage;
use super::resource::registers::Registers;
use super::resource::PartState;
use super::shares::{Shares, KINDS};
use super::terminals::Terminal;
use super::thread_files::Own;
use crate::control::MoveReport;
use crate::ids::JobId;

/// Version of [`JobImage`]; nodes of other versions refuse each other.
pub const IMAGE_VERSION: u32 = 4;

/// A whole frozen job, without the pages of its memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobImage {
    pub job: JobInfo,
    pub clocks: Clocks,
    /// What uname(2) gives as node name and domain name.
    pub nodename: String,
    pub domainname: String,
    /// Open file descriptions of all processes.
    pub files: FdImage,
    /// The job's first process, then the others, parents before their children.
    pub processes: Vec<ProcessImage>,
    /// Processes that have ended and wait to be reaped.
    pub zombies: Vec<Zombie>,
    /// Controlling terminals of sessions.
    pub terminals: Vec<Terminal>,
    /// Objects of System V IPC.
    pub ipc: IpcImage,
}

impl JobImage {
    /// Bytes of memory that travel.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.processes.iter().map(|process| process.memory.data_bytes()).sum()
    }

    /// Checks what the rest of this program takes for granted; the kernel judges the rest.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.processes.is_empty() {
            return Err("no process");
        }
        if self.files.identities.len() != self.files.objects.len() {
            return Err("not one identity per open file description");
        }
        let mut pids = BTreeSet::new();
        let ended = self.zombies.iter().map(|zombie| zombie.ids.pid);
        if !self.processes.iter().map(|p| p.ids.pid).chain(ended).all(|pid| pids.insert(pid)) {
            return Err("two processes of one number");
        }
        self.check_shares()?;
        self.processes.iter().try_for_each(|process| process.check(&self.files))
    }

    /// What is shared is with the first that has it, which comes before the others.
    fn check_shares(&self) -> Result<(), &'static str> {
        let mut firsts = BTreeSet::new();
        for process in &self.processes {
            for what in KINDS {
                let Some(first) = process.shares.first(what) else { continue };
                if first == process.ids.pid {
                    firsts.insert((what as i32, first));
                } else if !firsts.contains(&(what as i32, first)) {
                    return Err("a process that shares with nobody before it");
                }
            }
        }
        Ok(())
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    pub monotonic: i128,
    pub boottime: i128,
}

impl Clocks {
    /// The one that a clock of clock_gettime(2) goes with; `None`: it is the machine's.
    #[must_use]
    pub fn of(&self, clock: i32) -> Option<i128> {
        match clock {
            libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE => {
                Some(self.monotonic)
            }
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => Some(self.boottime),
            _ => None,
        }
    }
}

/// One process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessImage {
    pub ids: Ids,
    /// What it has in common with others by clone(2).
    pub shares: Shares,
    /// Empty when it is that of a process before this one.
    pub memory: MmImage,
    /// Its descriptors, which refer to [`JobImage::files`]. Empty likewise.
    pub table: Vec<fd::Slot>,
    /// Locks on files that it takes.
    pub locks: Vec<fd::lock::Lock>,
    pub parts: Vec<PartState>,
    /// The first is the process's leader.
    pub threads: Vec<ThreadImage>,
    /// Stopped by this job-control signal.
    pub stopped: Option<i32>,
    /// Its parent has been told of that stop (WUNTRACED of waitpid(2)).
    pub stop_taken: bool,
    /// It has no controlling terminal, though its session may have one (TIOCNOTTY of ioctl_tty(2)).
    pub no_terminal: bool,
    /// It goes on after a stop, of which its parent has not been told (WCONTINUED of waitpid(2)).
    pub continued: bool,
    /// What its SEM_UNDO operations have added up to (semop(2)).
    pub undo: Vec<Undo>,
}

impl ProcessImage {
    /// Has it got this from a process before it (clone(2))?
    #[must_use]
    pub fn takes(&self, what: Shared) -> bool {
        self.shares.takes(what, self.ids.pid)
    }

    /// Drops what travels with another process.
    pub fn leave_to_first(&mut self) {
        if self.takes(Shared::Memory) {
            self.memory = MmImage::default();
        }
        if self.takes(Shared::Files) {
            self.table = Vec::new();
        }
        if self.takes(Shared::Undo) {
            self.undo = Vec::new();
        }
    }

    fn check(&self, files: &FdImage) -> Result<(), &'static str> {
        if self.threads.is_empty() {
            return Err("a process without a thread");
        }
        if self.table.iter().any(|slot| slot.object as usize >= files.objects.len()) {
            return Err("a descriptor of no open file description");
        }
        if !self.threads.iter().flat_map(|thread| &thread.filters).all(Filter::is_sound) {
            return Err("a seccomp filter of no size");
        }
        if self.takes(Shared::Files) && !self.table.is_empty() {
            return Err("a table of descriptors that is another's");
        }
        match self.takes(Shared::Memory) {
            true if !self.memory.mappings.is_empty() => Err("memory that is another's"),
            true => Ok(()),
            false => self.memory.check(),
        }
    }
}

/// A process that has ended and waits to be reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zombie {
    pub ids: Ids,
    /// As wait(2) gives it.
    pub status: i32,
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

/// Open file descriptions of a job; those that several processes share are here once. The
/// tables of the processes refer to them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdImage {
    pub objects: Vec<fd::Object>,
    /// Device and inode of each object at the source: finds mappings of the same object.
    pub identities: Vec<(u64, u64)>,
}

/// One thread.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ThreadImage {
    pub tid: i32,
    pub registers: Registers,
    pub restart: Option<Restart>,
    pub parts: Vec<PartState>,
    /// Its own seccomp filters, in their order.
    pub filters: Vec<Filter>,
    /// Its descriptors, if it has a table apart from its process.
    pub files: Option<Vec<Own>>,
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
    /// Bytes that it has transferred already, and answers for: it starts again with the rest. 0:
    /// it starts again as a whole.
    pub done: u64,
}

/// Report of earlier moves, carried along.
pub type History = Vec<MoveReport>;
