//! Stops every thread of a process, and lets them go on as if nothing had happened.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::settle::{self, Asleep, SchedulerClocks};
use crate::tracer::raw;
use crate::tracer::stop::{self, Stop, Wait};

/// A thread in a stop from which registers and memory can be read.
#[derive(Debug, Clone, Copy)]
pub struct Frozen {
    pub tid: i32,
    /// [`Stop::Interrupt`], [`Stop::Group`] or [`Stop::Signal`].
    pub stop: Stop,
    /// What it slept in before the stop.
    pub asleep: Option<Asleep>,
}

/// A frozen process.
#[derive(Debug)]
pub struct FrozenProcess {
    pub pid: i32,
    /// The first is the leader.
    pub threads: Vec<Frozen>,
    /// Scheduler clocks just after the freeze, of CPUs on which threads slept with a timeout.
    pub scheduler_now: SchedulerClocks,
    /// It is dumpable only for the time of the freeze (PR_SET_DUMPABLE of prctl(2)).
    pub opened: bool,
}

/// A process that could not be frozen, and its threads that stand still all the same.
#[derive(Debug)]
pub struct NotFrozen {
    pub error: FreezeError,
    pub threads: Vec<Frozen>,
    /// As [`FrozenProcess::scheduler_now`].
    pub scheduler_now: SchedulerClocks,
}

/// Why a process could not be frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("{what} of thread {tid}: {source}")]
    Trace { tid: i32, what: &'static str, source: io::Error },
    #[error("process {0} ended")]
    Exited(i32),
    #[error("process {0} started a child process")]
    Forked(i32),
    #[error("process {0} executed another program")]
    Exec(i32),
    #[error("the first thread of process {0} has ended, others go on")]
    LeaderGone(i32),
}

type Result<T> = std::result::Result<T, FreezeError>;

/// tids of a process, in the order of /proc.
fn tids(pid: i32) -> io::Result<Vec<i32>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        all.extend(entry?.file_name().to_str().and_then(|s| s.parse::<i32>().ok()));
    }
    Ok(all)
}

/// Stops every thread. `stopped` are threads that are in group-stop already (a stopped job);
/// `on_event` gets every other wait status that turns up (new threads, exits, system calls
/// under watch), which it must handle as the supervisor does, resuming the thread.
///
/// # Errors
/// When the process ended, forked or executed meanwhile.
pub fn freeze(
    pid: i32,
    stopped: &BTreeMap<i32, i32>,
    on_event: &mut dyn FnMut(Wait),
) -> std::result::Result<FrozenProcess, NotFrozen> {
    let mut frozen = BTreeMap::new();
    let done = freeze_all(pid, stopped, on_event, &mut frozen);
    let leader = frozen.remove(&pid);
    let threads: Vec<Frozen> = leader.into_iter().chain(frozen.into_values()).collect();
    let scheduler_now = settle::scheduler_clocks(threads.iter().filter_map(|t| t.asleep.as_ref()));
    match done.and(leader.map(|_| ()).ok_or(FreezeError::LeaderGone(pid))) {
        Ok(()) => Ok(FrozenProcess { pid, threads, scheduler_now, opened: false }),
        Err(error) => Err(NotFrozen { error, threads, scheduler_now }),
    }
}

/// Until no thread is left that runs.
fn freeze_all(
    pid: i32,
    stopped: &BTreeMap<i32, i32>,
    on_event: &mut dyn FnMut(Wait),
    frozen: &mut BTreeMap<i32, Frozen>,
) -> Result<()> {
    loop {
        let all = tids(pid).map_err(|_| FreezeError::Exited(pid))?;
        let fresh: Vec<i32> = all.into_iter().filter(|tid| !frozen.contains_key(tid)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        freeze_threads(pid, &fresh, stopped, on_event, frozen)?;
    }
}

fn freeze_threads(
    pid: i32,
    fresh: &[i32],
    stopped: &BTreeMap<i32, i32>,
    on_event: &mut dyn FnMut(Wait),
    frozen: &mut BTreeMap<i32, Frozen>,
) -> Result<()> {
    let mut waiting = Vec::new();
    for &tid in fresh {
        let asleep = Asleep::look(pid, tid);
        match raw::interrupt(tid) {
            Ok(()) => waiting.push((tid, asleep)),
            // It ended; its status is waited for where the supervisor looks.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            Err(source) => return Err(FreezeError::Trace { tid, what: "interrupt", source }),
        }
    }
    for (tid, asleep) in waiting {
        if let Some(stop) = await_stop(pid, tid, stopped.get(&tid).copied(), on_event)? {
            let asleep = asleep.and_then(|a| a.until_stop(pid, tid));
            frozen.insert(tid, Frozen { tid, stop, asleep });
        }
    }
    Ok(())
}

/// Stops one thread where calls can be run in it. A signal on its way is delivered first. The
/// arguments are those of [`freeze`].
///
/// # Errors
/// When the thread ended or its process forked or executed meanwhile.
pub fn stop_thread(
    pid: i32,
    tid: i32,
    listening: Option<i32>,
    on_event: &mut dyn FnMut(Wait),
) -> Result<Frozen> {
    let interrupt = || {
        raw::interrupt(tid).map_err(|source| FreezeError::Trace { tid, what: "interrupt", source })
    };
    let asleep = Asleep::look(pid, tid);
    interrupt()?;
    loop {
        match await_stop(pid, tid, listening, on_event)? {
            Some(Stop::Signal(signal)) => {
                interrupt()?;
                on_event(Wait { tid, stop: Stop::Signal(signal) });
            }
            Some(stop) => {
                let asleep = asleep.and_then(|a| a.until_stop(pid, tid));
                return Ok(Frozen { tid, stop, asleep });
            }
            None => return Err(FreezeError::Exited(pid)),
        }
    }
}

/// Waits until a thread is stopped for us; `None` when it ended.
fn await_stop(
    pid: i32,
    tid: i32,
    listening: Option<i32>,
    on_event: &mut dyn FnMut(Wait),
) -> Result<Option<Stop>> {
    let fail = |what| move |source| FreezeError::Trace { tid, what, source };
    loop {
        let wait = match stop::await_status(tid) {
            Ok(wait) => wait,
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {
                return Err(FreezeError::Exited(pid))
            }
            Err(e) => return Err(fail("wait")(e)),
        };
        match wait.stop {
            // PTRACE_INTERRUPT ends PTRACE_LISTEN: a stopped job reports its group-stop again.
            Stop::Interrupt => {
                return Ok(Some(listening.map_or(Stop::Interrupt, Stop::Group)));
            }
            Stop::Group(signal) => return Ok(Some(Stop::Group(signal))),
            // SIGSTOP cannot be blocked and so not be queued again: let it take effect.
            Stop::Signal(libc::SIGSTOP) => {
                raw::cont(tid, libc::SIGSTOP).map_err(fail("resume"))?;
            }
            Stop::Signal(signal) => return Ok(Some(Stop::Signal(signal))),
            Stop::Exited(_) => {
                on_event(wait);
                return if tid == pid { Err(FreezeError::Exited(pid)) } else { Ok(None) };
            }
            Stop::Fork(_) | Stop::Vfork(_) => {
                on_event(wait);
                return Err(FreezeError::Forked(pid));
            }
            Stop::Exec(_) => {
                on_event(wait);
                return Err(FreezeError::Exec(pid));
            }
            _ => {
                // Any other stop has used up the interruption (ptrace_stop, kernel/signal.c).
                let _ = raw::interrupt(tid);
                on_event(wait);
            }
        }
    }
}
