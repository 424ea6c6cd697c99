//! Capture and restore, one module per kind of kernel object.
//!
//! ```text
//! frozen thread ─► Part::ask puts calls into a Program ─► one batch ─► Part state (postcard)
//! new thread    ◄─ Part::tell puts calls into a Program ◄───────────── Part state
//! ```
//! Descriptors have an interface of their own ([`fd`]), memory is in [`memory`], registers
//! in [`registers`]. To add a kind: one file and one line in [`PARTS`].

pub mod aio;
pub mod attributes;
pub mod creds;
pub mod directory;
pub mod fd;
pub mod filters;
pub mod ipc;
pub mod itimers;
pub mod keyrings;
pub mod limits;
pub mod memory;
pub mod pause;
pub mod raw;
pub mod registers;
pub mod schedule;
pub mod signals;
pub mod switches;
pub mod thread;
pub mod tiles;
pub mod timers;

use std::cell::RefCell;
use std::io;

use serde::{Deserialize, Serialize};

use crate::capabilities::Capability;
use crate::control::{Finding, Severity};
use crate::syscalls::translate::numbers;
use crate::tracer::inject::{InjectError, Outcome, Program};
use crate::tracer::memory::read_record;
use crate::tracer::raw::Dispatch;

/// Whose state a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One state per process; asked and told in its first thread.
    Process,
    /// One state per thread.
    Thread,
}

/// A frozen thread as its parts see it.
#[derive(Debug, Clone)]
pub struct View {
    /// Host pid of the process and host tid of the thread.
    pub pid: i32,
    pub tid: i32,
    /// Pid and tid as the job sees them.
    pub job_pid: i32,
    pub job_tid: i32,
    /// The process is dumpable only because it is frozen, see `FrozenProcess`; or only in truth
    /// ([`numbers::hide`]).
    pub opened: bool,
    /// It may have keyrings of its own; see `FrozenProcess`.
    pub keys: bool,
    /// Where its calls go when it is not borrowed.
    pub dispatch: Option<Dispatch>,
    /// States of its parts that have been read, by their names.
    parts: Vec<(&'static str, Vec<u8>)>,
    status: String,
    /// Its lines: begin of the name, of the value, end of the line.
    lines: Vec<(usize, usize, usize)>,
}

impl View {
    /// Reads `/proc/TID/status`.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn read(pid: i32, tid: i32) -> io::Result<Self> {
        let status = read_record(&format!("/proc/{pid}/task/{tid}/status"))?;
        let lines = index(&status);
        let mut view = Self {
            pid,
            tid,
            job_pid: pid,
            job_tid: tid,
            opened: numbers::is_hidden(pid),
            keys: true,
            dispatch: None,
            parts: Vec::new(),
            status,
            lines,
        };
        if numbers::are_own() {
            (view.job_pid, view.job_tid) = (numbers::to_job(pid), numbers::to_job(tid));
        } else {
            view.job_pid = view.number_inside();
            view.job_tid = view.last_number("NSpid:").unwrap_or(tid);
        }
        Ok(view)
    }

    /// Reads the [parts](Part::read) of a frozen thread that need not be asked in it.
    ///
    /// # Errors
    /// The first that cannot be read.
    pub fn read_parts(&mut self) -> Result<(), PartError> {
        let first = self.tid == self.pid;
        for part in PARTS.iter().filter(|part| first || part.scope() == Scope::Thread) {
            let state = part.read(self)?;
            self.parts.extend(state.map(|state| (part.name(), state)));
        }
        Ok(())
    }

    /// Of a process's leader.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn read_process(pid: i32) -> io::Result<Self> {
        Self::read(pid, pid)
    }

    /// A line of the status, without its name and outer blanks; empty when missing.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        let is_it = |(from, to, _): &&(usize, usize, usize)| self.status[*from..*to] == *name;
        self.lines.iter().find(is_it).map_or("", |(_, from, to)| self.status[*from..*to].trim())
    }

    /// A line that is one hexadecimal number (masks and capability sets).
    #[must_use]
    pub fn hex(&self, name: &str) -> u64 {
        u64::from_str_radix(self.field(name), 16).unwrap_or(0)
    }

    /// A line that is one decimal number.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        self.field(name).split_whitespace().next().and_then(|w| w.parse().ok()).unwrap_or(0)
    }

    /// The number of its process in the pid namespace where it is.
    #[must_use]
    pub fn number_inside(&self) -> i32 {
        self.last_number("NStgid:").unwrap_or(self.pid)
    }

    fn last_number(&self, name: &str) -> Option<i32> {
        self.field(name).split_whitespace().last()?.parse().ok()
    }

    /// Signals that are ignored, bit n-1 for signal n.
    #[must_use]
    pub fn ignores(&self, signal: i32) -> bool {
        self.hex("SigIgn:") & crate::tracer::inject::sigbit(signal) != 0
    }
}

/// The lines of a status file; the colon belongs to the name.
fn index(status: &str) -> Vec<(usize, usize, usize)> {
    let mut lines = Vec::with_capacity(64);
    let mut from = 0;
    for line in status.split_inclusive('\n') {
        let end = from + line.len();
        lines.extend(line.find(':').map(|colon| (from, from + colon + 1, end)));
        from = end;
    }
    lines
}

/// The second half of asking: reads the answers of a part's calls.
pub type Answer = Box<dyn FnOnce(&View, &Outcome) -> Result<Vec<u8>, PartError>>;

/// What a part may need to know of the new process when it is told its state.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// Host pid and tid of the new thread.
    pub pid: i32,
    pub tid: i32,
    /// The pid and tid the job sees.
    pub job_pid: i32,
    pub job_tid: i32,
    /// The new thread as it was made, before it was told anything.
    pub view: &'a View,
    /// Takes down what the job does not get here.
    pub missed: &'a Missed,
}

/// What a job does not get at the target, for the report of the move: a sentence each, once.
#[derive(Debug, Default)]
pub struct Missed(RefCell<Vec<String>>);

impl Missed {
    /// Takes a sentence down.
    pub fn add(&self, text: String) {
        let mut all = self.0.borrow_mut();
        if !all.contains(&text) {
            tracing::warn!("{text}");
            all.push(text);
        }
    }

    /// All of them.
    #[must_use]
    pub fn into_all(self) -> Vec<String> {
        self.0.into_inner()
    }
}

/// One kind of state of a process or thread that is asked and told by calls in it, or from
/// outside.
pub trait Part: Sync {
    /// Stable name on the wire.
    fn name(&self) -> &'static str;
    /// Whose state it is.
    fn scope(&self) -> Scope;
    /// Its rows in the table of what moves.
    fn capabilities(&self) -> &'static [Capability];
    /// What cannot move, from /proc alone; the thread runs.
    fn check(&self, _view: &View) -> Vec<Finding> {
        Vec::new()
    }
    /// The state, of a part of which nothing is asked in the thread itself: any thread of the
    /// supervisor may read it, and does so ahead of the one that asks ([`View::read_parts`]).
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, _view: &View) -> Result<Option<Vec<u8>>, PartError> {
        Ok(None)
    }
    /// Puts the questions into `program`; the answer makes the state. That of a part that is read
    /// makes what has been.
    ///
    /// # Errors
    /// When /proc cannot be read.
    fn ask(&self, view: &View, _program: &mut Program) -> Result<Answer, PartError> {
        let state = match view.parts.iter().find(|(name, _)| *name == self.name()) {
            Some((_, state)) => state.clone(),
            None => self.read(view)?.ok_or(PartError::State(self.name()))?,
        };
        Ok(Box::new(move |_, _| Ok(state)))
    }
    /// Puts the calls into `program` that give the state to the new thread, or gives it from
    /// outside.
    ///
    /// # Errors
    /// When the state does not decode or cannot be given.
    fn tell(&self, state: &[u8], to: &Told, program: &mut Program) -> Result<(), PartError>;
    /// Gives from outside what comes last: the thread has its registers, no call runs in it
    /// any more.
    ///
    /// # Errors
    /// As [`Part::tell`].
    fn conclude(&self, _state: &[u8], _to: &Told) -> Result<(), PartError> {
        Ok(())
    }
}

/// Every part, in the order in which the new thread is told. Credentials come late: what
/// stands before them may need a capability of the new namespace; dumpable and the
/// parent-death signal come after, because a change of credentials resets them. Signals are queued
/// before RLIMIT_SIGPENDING may be too low for them.
pub const PARTS: &[&dyn Part] = &[
    &tiles::Tiles,
    &signals::Actions,
    &itimers::Intervals,
    &timers::Posix,
    &timers::OnThread,
    &thread::Pointers,
    &thread::AltStack,
    &thread::Name,
    &schedule::Schedule,
    &keyrings::Keyrings,
    &attributes::Files,
    &signals::Pending,
    &limits::Limits,
    &attributes::Process,
    &switches::OfMemory,
    &switches::OfThread,
    &directory::OwnDirectory,
    &creds::Creds,
    &attributes::AfterCreds,
    &switches::Barriers,
    &thread::Rseq,
];

/// State of one part, as it travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PartState {
    pub name: String,
    pub state: Vec<u8>,
}

/// Why a part could not be captured or restored.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    #[error("{}: {}", .0.object, .0.cause)]
    Refused(Box<Finding>),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{0}: state does not decode")]
    State(&'static str),
    #[error("the image has state of an unknown kind: {0}")]
    Unknown(String),
    #[error(transparent)]
    Inject(#[from] InjectError),
}

/// Encodes a state.
///
/// # Errors
/// When postcard refuses the type.
pub fn encode(name: &'static str, state: &impl Serialize) -> Result<Vec<u8>, PartError> {
    postcard::to_stdvec(state).map_err(|_| PartError::State(name))
}

/// Decodes a state.
///
/// # Errors
/// When the bytes are not of the type.
pub fn decode<'a, T: Deserialize<'a>>(name: &'static str, state: &'a [u8]) -> Result<T, PartError> {
    postcard::from_bytes(state).map_err(|_| PartError::State(name))
}

/// Finds a part of a scope by name.
///
/// # Errors
/// [`PartError::Unknown`].
pub fn part(scope: Scope, name: &str) -> Result<&'static dyn Part, PartError> {
    let found = PARTS.iter().find(|p| p.scope() == scope && p.name() == name);
    found.copied().ok_or_else(|| PartError::Unknown(name.to_owned()))
}

/// A finding that stops a move.
#[must_use]
pub fn blocker(code: &str, object: String, cause: &str, remedy: &str) -> Finding {
    Finding {
        severity: Severity::Blocker,
        code: code.to_owned(),
        object,
        cause: cause.to_owned(),
        remedy: remedy.to_owned(),
    }
}
