//! Stops every thread of a job.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use super::asleep::{scheduler_clocks, Asleep, Looked, SchedulerClocks};
use super::resource::View;
use super::stops;
use crate::tracer::inject::sigbit;
use crate::tracer::raw;
use crate::tracer::stop::{self, Backoff, Stop, Wait};

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
    /// It is dumpable only for the time of the freeze (PR_SET_DUMPABLE of prctl(2)): a `syscall`
    /// instruction in it.
    pub opened: Option<u64>,
    /// It may have keyrings of its own (keyrings(7)).
    pub keys: bool,
}

/// A job of which no thread runs.
#[derive(Debug)]
pub struct FrozenJob {
    /// The job's first process comes first.
    pub processes: Vec<FrozenProcess>,
    /// Scheduler clocks just after the freeze, of CPUs on which threads slept with a timeout.
    pub scheduler_now: SchedulerClocks,
}

impl FrozenJob {
    /// All threads of all processes.
    pub fn threads(&self) -> impl Iterator<Item = &Frozen> {
        self.processes.iter().flat_map(|process| &process.threads)
    }

    /// Host pids of the processes.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.processes.iter().map(|process| process.pid).collect()
    }
}

/// A job that could not be frozen, and its threads that stand still all the same.
#[derive(Debug)]
pub struct NotFrozen {
    pub error: FreezeError,
    pub threads: Vec<Frozen>,
    /// As [`FrozenJob::scheduler_now`].
    pub scheduler_now: SchedulerClocks,
}

/// The threads of a job as their supervisor knows them.
pub trait Watched {
    /// Host pid of the first process.
    fn root(&self) -> i32;
    /// Host pids of all processes.
    fn processes(&self) -> BTreeSet<i32>;
    /// Threads that wait in vfork(2), which nothing can stop, and the processes for which they
    /// wait, which must go on.
    fn in_vfork(&self) -> BTreeSet<i32>;
    /// Takes a wait status as at any other time, and lets the thread go on.
    fn take(&mut self, wait: Wait);
    /// Lets a thread go on that was stopped, as if it had not been.
    fn release(&mut self, thread: &Frozen);
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
    #[error("thread {0} cannot be stopped: it waits in the kernel and cannot be interrupted")]
    Stuck(i32),
    #[error("thread {0} waits in vfork(2) for a child that neither ends nor executes a program")]
    Vfork(i32),
}

type Result<T> = std::result::Result<T, FreezeError>;

/// As [`tids`], of a process of which so many threads stand still: none when it has no others.
fn tids_beside(pid: i32, frozen: u64) -> io::Result<Vec<i32>> {
    match frozen > 0 && stop::threads(pid)? == frozen {
        true => Ok(Vec::new()),
        false => tids(pid),
    }
}

/// tids of a process, in the order of /proc.
fn tids(pid: i32) -> io::Result<Vec<i32>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        all.extend(entry?.file_name().to_str().and_then(|s| s.parse::<i32>().ok()));
    }
    Ok(all)
}

/// A thread that was asked to stop.
struct Asked {
    pid: i32,
    asleep: Option<Asleep>,
}

/// What has been stopped so far.
struct Freezing<'a> {
    watched: &'a mut dyn Watched,
    /// By tid, with its process.
    frozen: BTreeMap<i32, (i32, Frozen)>,
    waiting: BTreeMap<i32, Asked>,
}

/// Stops every thread of every process. Forks, execs, exits and new threads on the way are taken
/// as at any other time; what is new is stopped as well.
///
/// # Errors
/// When the first process has ended, or a thread cannot be stopped; those that were stand still.
pub fn freeze(watched: &mut dyn Watched) -> std::result::Result<FrozenJob, NotFrozen> {
    let root = watched.root();
    let mut freezing = Freezing { watched, frozen: BTreeMap::new(), waiting: BTreeMap::new() };
    let done = freezing.all();
    let frozen = freezing.frozen;
    let asleep = frozen.values().filter_map(|(_, thread)| thread.asleep.as_ref());
    let scheduler_now = scheduler_clocks(asleep);
    match done.and_then(|()| by_process(root, &frozen)) {
        Ok(processes) => Ok(FrozenJob { processes, scheduler_now }),
        Err(error) => {
            let threads = frozen.into_values().map(|(_, thread)| thread).collect();
            Err(NotFrozen { error, threads, scheduler_now })
        }
    }
}

/// Threads by process, each leader first, and the root before all others.
fn by_process(root: i32, frozen: &BTreeMap<i32, (i32, Frozen)>) -> Result<Vec<FrozenProcess>> {
    let mut processes: BTreeMap<i32, Vec<Frozen>> = BTreeMap::new();
    for (pid, thread) in frozen.values() {
        processes.entry(*pid).or_default().push(*thread);
    }
    let mut all = Vec::with_capacity(processes.len());
    for (pid, mut threads) in processes {
        let leader = threads.iter().position(|t| t.tid == pid);
        threads.swap(0, leader.ok_or(FreezeError::LeaderGone(pid))?);
        all.push(FrozenProcess { pid, threads, opened: None, keys: true });
    }
    let first = all.iter().position(|p| p.pid == root).ok_or(FreezeError::Exited(root))?;
    all[..=first].rotate_right(1);
    Ok(all)
}

impl Freezing<'_> {
    /// Until no thread is left that runs.
    fn all(&mut self) -> Result<()> {
        loop {
            let busy = self.watched.in_vfork();
            // A child may be stopped before its parent's vfork(2) is reported.
            self.release(&busy);
            // Who waits in a call where others can count it does so until they stand still.
            let mut counted = Vec::new();
            let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
            self.frozen.values().for_each(|(pid, _)| *counts.entry(*pid).or_default() += 1);
            for pid in self.watched.processes() {
                let frozen = counts.get(&pid).copied().unwrap_or(0);
                // One that has just ended is reported where its threads are waited for.
                for tid in tids_beside(pid, frozen).unwrap_or_default() {
                    if self.frozen.contains_key(&tid) || busy.contains(&tid) {
                        continue;
                    }
                    match Looked::at(pid, tid) {
                        Looked { is_counted: true, .. } => counted.push((pid, tid)),
                        looked => self.ask(pid, tid, looked.asleep)?,
                    }
                }
            }
            if self.waiting.is_empty() {
                for (pid, tid) in counted {
                    self.ask(pid, tid, Looked::at(pid, tid).asleep)?;
                }
            }
            if !self.waiting.is_empty() {
                self.collect()?;
            } else if busy.is_empty() {
                if !self.let_signals_come() && !self.let_faults_come()? {
                    self.end_stops();
                    return Ok(());
                }
            } else {
                self.await_vfork(&busy)?;
            }
        }
    }

    /// Lets those of these threads go on that stand still.
    fn release(&mut self, tids: &BTreeSet<i32>) {
        for tid in tids {
            if let Some((_, thread)) = self.frozen.remove(tid) {
                self.watched.release(&thread);
            }
        }
    }

    fn ask(&mut self, pid: i32, tid: i32, asleep: Option<Asleep>) -> Result<()> {
        match raw::interrupt(tid) {
            Ok(()) => {
                self.waiting.insert(tid, Asked { pid, asleep });
                Ok(())
            }
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {
                self.reap(tid);
                self.root_lives()
            }
            Err(source) => Err(FreezeError::Trace { tid, what: "interrupt", source }),
        }
    }

    /// It has ended: its status, if it is there yet.
    fn reap(&mut self, tid: i32) {
        if let Ok(Some(wait)) = stop::wait(tid, false) {
            self.watched.take(wait);
        }
    }

    fn root_lives(&self) -> Result<()> {
        let root = self.watched.root();
        match self.watched.processes().contains(&root) {
            true => Ok(()),
            false => Err(FreezeError::Exited(root)),
        }
    }

    /// Waits until all that were asked have stopped or ended. No single one is waited for alone:
    /// its end may depend on another's (`delay_group_leader` in kernel/exit.c, `de_thread` in
    /// fs/exec.c).
    fn collect(&mut self) -> Result<()> {
        let mut pause = Pause::new();
        while !self.waiting.is_empty() {
            let tids: Vec<i32> = self.waiting.keys().copied().collect();
            let mut progress = false;
            for tid in tids {
                progress |= self.look_at(tid)?;
            }
            if progress {
                pause = Pause::new();
            } else if pause.is_long() {
                self.bury();
                self.root_lives()?;
            }
            let stuck = self.waiting.keys().next().copied();
            if let (true, Some(tid)) = (pause.is_over(), stuck) {
                return Err(FreezeError::Stuck(tid));
            }
            pause.rest();
        }
        Ok(())
    }

    /// Frozen threads die when their process is killed or another thread of it executes a program.
    fn bury(&mut self) {
        let tids: Vec<i32> = self.frozen.keys().copied().collect();
        for tid in tids {
            if let Ok(Some(wait)) = stop::wait(tid, false) {
                self.frozen.remove(&tid);
                self.watched.take(wait);
            }
        }
    }

    /// Takes one status of a thread that was asked to stop; false when there is none.
    fn look_at(&mut self, tid: i32) -> Result<bool> {
        let wait = match stop::wait(tid, false) {
            Ok(Some(wait)) => wait,
            Ok(None) => return Ok(false),
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => {
                self.waiting.remove(&tid);
                return Ok(true);
            }
            Err(source) => return Err(FreezeError::Trace { tid, what: "wait", source }),
        };
        match wait.stop {
            // PTRACE_INTERRUPT ends PTRACE_LISTEN: a stopped thread reports its group-stop again
            // (do_jobctl_trap, kernel/signal.c), unless SIGCONT has come meanwhile.
            Stop::Interrupt => self.stopped(tid, Stop::Interrupt),
            // SIGSTOP cannot be blocked and so not be queued again: let it take effect.
            Stop::Signal(libc::SIGSTOP) => {
                let resumed = raw::cont(tid, libc::SIGSTOP);
                resumed.map_err(|source| FreezeError::Trace { tid, what: "resume", source })?;
            }
            stop @ (Stop::Group(_) | Stop::Signal(_)) => self.stopped(tid, stop),
            Stop::Exited(_) => {
                self.waiting.remove(&tid);
                self.watched.take(wait);
                self.root_lives()?;
            }
            // It cannot stop before its child has let it go.
            Stop::Vfork(_) => {
                self.waiting.remove(&tid);
                self.watched.take(wait);
            }
            _ => {
                // Any other stop has used up the interruption (ptrace_stop, kernel/signal.c).
                let _ = raw::interrupt(tid);
                self.watched.take(wait);
            }
        }
        Ok(true)
    }

    fn stopped(&mut self, tid: i32, stop: Stop) {
        let Some(Asked { pid, asleep }) = self.waiting.remove(&tid) else { return };
        let stop = if is_repeated(tid, stop) { Stop::Interrupt } else { stop };
        let asleep = asleep.and_then(|a| a.until_stop(pid, tid));
        self.frozen.insert(tid, (pid, Frozen { tid, stop, asleep }));
    }

    /// Threads that are about to take a signal while one more of its number waits take it: put back
    /// into the queue, the two would be one. False when there is none.
    fn let_signals_come(&mut self) -> bool {
        let is_doubled =
            |thread: &Frozen| matches!(thread.stop, Stop::Signal(s) if is_queued(thread.tid, s));
        let threads = self.frozen.values().map(|(_, thread)| thread);
        let doubled: BTreeSet<i32> = threads.filter(|t| is_doubled(t)).map(|t| t.tid).collect();
        self.release(&doubled);
        !doubled.is_empty()
    }

    /// Threads that were stopped after a fault and before its signal come to its delivery: see
    /// [`is_repeated`]. False when there is none.
    fn let_faults_come(&mut self) -> Result<bool> {
        let has_fault = |thread: &Frozen| thread.stop == Stop::Interrupt && has_fault(thread.tid);
        let all = self.frozen.values().filter(|(_, thread)| has_fault(thread));
        let faulted: Vec<(i32, i32)> = all.map(|(pid, thread)| (*pid, thread.tid)).collect();
        for (pid, tid) in &faulted {
            // Without an interruption, which would come first again.
            if raw::cont(*tid, 0).is_ok() {
                self.frozen.remove(tid);
                self.waiting.insert(*tid, Asked { pid: *pid, asleep: None });
            }
        }
        if !faulted.is_empty() {
            self.collect()?;
        }
        Ok(!faulted.is_empty())
    }

    /// Who was frozen in a group-stop, and has got SIGCONT since from one that still ran, is stopped no
    /// more. That signal waits then: another stop would have taken it away (prepare_signal in
    /// kernel/signal.c), and nobody ignores it who is traced.
    fn end_stops(&mut self) {
        let in_stop = |thread: &Frozen| matches!(thread.stop, Stop::Group(_));
        let goes_on = |thread: &Frozen| {
            let waits = |view: View| stops::waits(&view, libc::SIGCONT);
            thread.stop == Stop::Signal(libc::SIGCONT)
                || View::read(thread.tid, thread.tid).is_ok_and(waits)
        };
        let stopped = self.frozen.values().filter(|(_, thread)| in_stop(thread));
        let mut pids: BTreeSet<i32> = stopped.map(|(pid, _)| *pid).collect();
        let all = || self.frozen.values();
        pids.retain(|pid| all().any(|(of, thread)| of == pid && goes_on(thread)));
        for (pid, thread) in self.frozen.values_mut() {
            if pids.contains(pid) && in_stop(thread) {
                thread.stop = Stop::Interrupt;
            }
        }
    }

    /// Serves those that cannot be stopped yet, until one more can be.
    fn await_vfork(&mut self, busy: &BTreeSet<i32>) -> Result<()> {
        let mut pause = Pause::new();
        loop {
            let mut progress = false;
            for tid in busy {
                while let Ok(Some(wait)) = stop::wait(*tid, false) {
                    self.watched.take(wait);
                    progress = true;
                }
            }
            if progress && self.watched.in_vfork() != *busy {
                return self.root_lives();
            }
            if progress {
                pause = Pause::new();
            }
            if let (true, Some(tid)) = (pause.is_over(), busy.first()) {
                return Err(FreezeError::Vfork(*tid));
            }
            pause.rest();
        }
    }
}

/// Has the thread one more signal of this number waiting, besides the one that is about to be
/// delivered? Those up to 31 are not queued more than once (signal(7)).
fn is_queued(tid: i32, signal: i32) -> bool {
    const FIRST_QUEUED: i32 = 32;
    signal < FIRST_QUEUED
        && View::read(tid, tid).is_ok_and(|view| view.hex("SigPnd:") & sigbit(signal) != 0)
}

/// Is the signal that is about to be delivered a fault of the instruction at which the thread stands
/// (force_sig_fault, kernel/signal.c)? It comes again by itself, with all that a handler may ask of
/// the processor: cr2, error code and trap number, which no queue keeps.
fn is_repeated(tid: i32, stop: Stop) -> bool {
    let Stop::Signal(signal) = stop else { return false };
    FAULTS.contains(&signal)
        && raw::siginfo(tid).is_ok_and(|info| is_fault(&info))
        && is_in_no_call(tid)
}

/// The same, of a signal that is still in the thread's queue.
fn has_fault(tid: i32) -> bool {
    raw::queued_signals(tid, false).is_ok_and(|all| all.iter().any(is_fault)) && is_in_no_call(tid)
}

/// Has the kernel sent it, for an instruction?
fn is_fault(info: &raw::SigInfo) -> bool {
    FAULTS.contains(&raw::number_of(info)) && raw::code_of(info) > 0
}

/// What comes in a call is sent by the thread itself.
fn is_in_no_call(tid: i32) -> bool {
    raw::regs(tid).is_ok_and(|regs| (regs.orig_rax as i64) < 0)
}

/// Signals of faults.
const FAULTS: [i32; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

/// Rests between two looks at threads that cannot be waited for.
struct Pause {
    since: Instant,
    backoff: Backoff,
}

impl Pause {
    const LONG: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(10);

    fn new() -> Self {
        Self { since: Instant::now(), backoff: Backoff::default() }
    }

    fn rest(&mut self) {
        self.backoff.rest();
    }

    fn is_long(&self) -> bool {
        self.since.elapsed() > Self::LONG
    }

    fn is_over(&self) -> bool {
        self.since.elapsed() > Self::LONGEST
    }
}

/// Stops one thread where calls can be run in it. A signal on its way is delivered first. The
/// arguments are those of [`freeze`].
///
/// # Errors
/// When the thread ended or its process forked or executed meanwhile.
pub fn stop_thread(pid: i32, tid: i32, on_event: &mut dyn FnMut(Wait)) -> Result<Frozen> {
    let interrupt = || {
        raw::interrupt(tid).map_err(|source| FreezeError::Trace { tid, what: "interrupt", source })
    };
    let asleep = Looked::at(pid, tid).asleep;
    interrupt()?;
    loop {
        match await_stop(pid, tid, on_event)? {
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
fn await_stop(pid: i32, tid: i32, on_event: &mut dyn FnMut(Wait)) -> Result<Option<Stop>> {
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
            Stop::Interrupt => return Ok(Some(Stop::Interrupt)),
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
