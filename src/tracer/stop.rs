//! Wait statuses decoded, with raw signal numbers.
//!
//! nix 0.31 fails on a stop by a real-time signal and loses it; see ptrace(2) for the
//! encoding of the events.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::prctl;

use super::memory::task_state;
use super::raw;

/// What happened to a traced (or child) thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub tid: i32,
    pub stop: Stop,
}

/// One wait status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Signal-delivery-stop: the signal is not delivered yet.
    Signal(i32),
    /// Group-stop by this signal (PTRACE_EVENT_STOP with a stopping signal).
    Group(i32),
    /// PTRACE_EVENT_STOP without a group-stop: PTRACE_INTERRUPT, or a new thread's first stop.
    Interrupt,
    /// Syscall-stop under PTRACE_SYSCALL (TRACESYSGOOD).
    Syscall,
    /// seccomp RET_TRACE.
    Seccomp,
    /// PTRACE_EVENT_CLONE, FORK or VFORK: the new tid.
    Clone(i32),
    Fork(i32),
    Vfork(i32),
    VforkDone,
    /// PTRACE_EVENT_EXEC: the former tid of the thread that called execve.
    Exec(i32),
    /// PTRACE_EVENT_EXIT.
    Exiting,
    /// Plain job-control stop of an untraced child (WUNTRACED).
    ChildStopped(i32),
    Continued,
    /// The thread is gone.
    Exited(Exit),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// The shell's exit code: the code itself, or 128 + signal.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(c) => (c & 0xff) as u8,
            Self::Signal(s) => (128 + (s & 0x7f)) as u8,
        }
    }
}

/// Decodes a wait4(2) status. Reads the event message of the tid where there is one.
///
/// # Errors
/// When the event message cannot be read (the thread died meanwhile).
pub fn decode(tid: i32, status: i32) -> io::Result<Wait> {
    let stop = if libc::WIFEXITED(status) {
        Stop::Exited(Exit::Code(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Stop::Exited(Exit::Signal(libc::WTERMSIG(status)))
    } else if libc::WIFCONTINUED(status) {
        Stop::Continued
    } else {
        let sig = (status >> 8) & 0xff;
        let message = || raw::event_message(tid).map(|m| m as i32);
        match status >> 16 {
            0 if sig == libc::SIGTRAP | 0x80 => Stop::Syscall,
            0 => Stop::Signal(sig),
            libc::PTRACE_EVENT_STOP if sig == libc::SIGTRAP => Stop::Interrupt,
            libc::PTRACE_EVENT_STOP => Stop::Group(sig),
            libc::PTRACE_EVENT_SECCOMP => Stop::Seccomp,
            libc::PTRACE_EVENT_CLONE => Stop::Clone(message()?),
            libc::PTRACE_EVENT_FORK => Stop::Fork(message()?),
            libc::PTRACE_EVENT_VFORK => Stop::Vfork(message()?),
            libc::PTRACE_EVENT_VFORK_DONE => Stop::VforkDone,
            libc::PTRACE_EVENT_EXEC => Stop::Exec(message()?),
            libc::PTRACE_EVENT_EXIT => Stop::Exiting,
            _ => Stop::Signal(sig),
        }
    };
    Ok(Wait { tid, stop })
}

/// Waits until `tid` has a status. The end of a process's first thread is reported only when its
/// other threads' ends were taken (`delay_group_leader` in kernel/exit.c), so a process of several
/// threads is not waited for blindly: whoever must take those ends hears of it.
///
/// # Errors
/// `ESRCH` when it has ended and other threads' ends come first; `ECHILD` when there is nothing to
/// wait for.
pub fn await_status(tid: i32) -> io::Result<Wait> {
    await_status_of(tid, is_alone(tid))
}

/// As [`await_status`], of a thread of which is known whether it may be waited for blindly:
/// its process [has no other](is_alone), or it is not the first of it, and none of the others
/// executes a program, which would take its number away.
///
/// # Errors
/// As [`await_status`].
pub fn await_status_of(tid: i32, blindly: bool) -> io::Result<Wait> {
    let mut pause = Backoff::default();
    loop {
        if let Some(wait) = wait(tid, blindly)? {
            return Ok(wait);
        }
        if pause.is_long() && is_zombie(tid) {
            return wait(tid, false)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH));
        }
        pause.rest();
    }
}

/// Longer and longer rests between looks at what cannot be waited for.
///
/// # Failed ideas
/// 1. sched_yield(2), which is faster while nobody else wants the CPU: everybody else who does
///    gets a whole slice first (yield_task_fair, kernel/sched/fair.c), so that a stop beside 64 busy
///    threads took 50 to 100 ms instead of less than one.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

impl Backoff {
    const FIRST: Duration = Duration::from_micros(2);
    const LONGEST: Duration = Duration::from_micros(256);

    /// Rests, longer than the last time.
    pub fn rest(&mut self) {
        // The usual slack is 50 µs (PR_SET_TIMERSLACK of prctl(2)); whoever is forked must not have
        // another one. It is no more than a matter of speed.
        let _ = prctl::set_timerslack(1);
        std::thread::sleep(self.0);
        let _ = prctl::set_timerslack(0);
        self.0 = Self::LONGEST.min(2 * self.0);
    }

    /// Have the rests their full length, after half a millisecond?
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.0 == Self::LONGEST
    }
}

/// Is it the first thread of its process?
#[must_use]
pub fn is_leader(tid: i32) -> bool {
    // pidfd_open(2) wants one.
    raw::pidfd_open(tid).is_ok()
}

/// Has its process no other thread?
#[must_use]
pub fn is_alone(tid: i32) -> bool {
    threads(tid).is_ok_and(|count| count <= 1)
}

/// How many threads the process of a thread has. A folder has two links and one for each folder in
/// it.
///
/// # Errors
/// When there is no such thread.
pub fn threads(tid: i32) -> io::Result<u64> {
    std::fs::metadata(format!("/proc/{tid}/task")).map(|m| m.nlink().saturating_sub(2))
}

/// It has ended (state Z of proc_pid_stat(5)).
fn is_zombie(tid: i32) -> bool {
    task_state(tid).is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// Waits for one status of `tid` (`-1`: any), `__WALL`. `None` with `block == false` and
/// nothing to report.
///
/// # Errors
/// `ECHILD` when there is nothing to wait for.
pub fn wait(tid: i32, block: bool) -> io::Result<Option<Wait>> {
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        match raw::wait4(tid, flags) {
            Ok(Some((tid, status))) => match decode(tid, status) {
                // The thread was killed between its stop and our question; its exit follows.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                other => return other.map(Some),
            },
            Ok(None) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
