//! A frozen process becomes a [`ProcessImage`].
//!
//! Everything is asked of the kernel now: /proc from outside, and one batch of calls in each
//! thread. The process is left as it was: registers, masks, queues, mappings.

use std::collections::BTreeMap;
use std::io;

use super::asleep::SchedulerClocks;
use super::freeze::{Frozen, FrozenProcess};
use super::gone;
use super::image::{Ids, ProcessImage, ThreadImage};
use super::near::{Fetched, Near};
use super::outside::Outside;
use super::raw::{compare_tasks, Shared};
use super::resource::aio;
use super::resource::fd::Slot;
use super::resource::ipc::choose::refusal;
use super::resource::ipc::undo::{self, Undo};
use super::resource::memory;
use super::resource::registers::{self, Registers, USER_CS};
use super::resource::signals;
use super::resource::timers::{self, Overdue};
use super::resource::{blocker, Answer, PartError, PartState, Scope, View, PARTS};
use super::settle;
use super::shares::Shares;
use crate::syscalls::translate::numbers;
use crate::tracer::inject::{
    Arg, Data, InjectError, Outcome, Program, Remote, Started, Stub, STUB_LEN,
};
use crate::tracer::memory as proc_memory;
use crate::tracer::raw as trace;
use crate::tracer::rseq;
use crate::tracer::stop::Stop;

/// What the supervisor knows of interrupted calls that it started again itself and that have
/// not returned yet: the arguments as the program gave them, and what is left.
pub type Running = BTreeMap<i32, settle::Again>;

fn io_error(what: String) -> impl FnOnce(io::Error) -> PartError {
    move |source| PartError::Io { what, source }
}

/// What a capture of processes is told of their job.
pub struct Capturing<'a> {
    /// The clocks at the freeze.
    pub scheduler_now: &'a SchedulerClocks,
    pub running: &'a Running,
    /// The job's semaphores.
    pub sets: &'a [undo::Asked],
    /// Keeps the caller and whom it asks on one CPU, if it lives.
    pub near: Option<&'a Near>,
    /// The numbers of those that have been captured, each in the pid namespace where it is, by host
    /// pid.
    pub numbers: BTreeMap<i32, i32>,
    parents: Parents,
}

impl<'a> Capturing<'a> {
    /// Without semaphores and anywhere.
    #[must_use]
    pub fn new(scheduler_now: &'a SchedulerClocks, running: &'a Running) -> Self {
        let (numbers, parents) = Default::default();
        Self { scheduler_now, running, sets: &[], near: None, numbers, parents }
    }
}

/// Captures everything of a process but the pages of its memory. `outside` is what has been read of
/// it, `table` are its descriptors.
///
/// # Errors
/// The first object that cannot move or could not be asked; the process is as before then,
/// still stopped.
pub fn capture(
    frozen: &mut FrozenProcess,
    outside: Outside,
    table: &[Slot],
    of: &mut Capturing<'_>,
) -> Result<ProcessImage, PartError> {
    let pid = frozen.pid;
    let Outside { mut memory, views, filters } = outside;
    let insn = syscall_insn(pid, &memory)?;
    let mut threads: Vec<Asked> = Vec::with_capacity(frozen.threads.len());
    let seen = views.into_iter().zip(filters);
    for (thread, (view, filters)) in frozen.threads.iter_mut().zip(seen) {
        let mut asked = Asked::open(view, thread, of.scheduler_now, of.running, insn)?;
        asked.image.filters = filters;
        threads.push(asked);
        // A signal about to be delivered is in its queue again.
        if let Stop::Signal(_) = thread.stop {
            thread.stop = Stop::Interrupt;
        }
    }
    let sets = if of.sets.is_empty() || !may_undo(frozen)? { &[] } else { of.sets };
    let outcome = ask(&mut threads, insn, of.near, sets);
    let closed: Result<(), InjectError> = threads.iter_mut().try_for_each(Asked::close);
    let ((asked, parts, overdue), undo) = outcome?;
    closed?;
    memory.layout.brk = asked.brk;
    memory.locks_future = asked.locks_future;
    let leader = &threads[0].view;
    of.numbers.insert(pid, leader.number_inside());
    let stopped = frozen.threads.iter().find_map(|t| match t.stop {
        Stop::Group(signal) => Some(signal),
        _ => None,
    });
    let mut image = ProcessImage {
        ids: of.parents.ids(leader)?,
        shares: Shares::default(),
        memory,
        table: table.to_vec(),
        locks: Vec::new(),
        parts,
        threads: threads.into_iter().map(|t| t.image).collect(),
        stopped,
        stop_taken: false,
        no_terminal: false,
        continued: false,
        undo,
    };
    timers::join(&mut image, &overdue)?;
    Ok(image)
}

/// Parents that were asked for the numbers of their children: how many numbers each has, and which
/// in the innermost namespace.
#[derive(Debug, Default)]
pub struct Parents(BTreeMap<i32, Option<(usize, i32)>>);

impl Parents {
    /// As [`ids`]; each parent is asked once.
    ///
    /// # Errors
    /// As [`ids`].
    pub fn ids(&mut self, leader: &View) -> Result<Ids, PartError> {
        let pid = leader.number("PPid:") as i32;
        let parent = *self.0.entry(pid).or_insert_with(|| {
            View::read_process(pid).ok().map(|parent| (depth(&parent), parent.job_pid))
        });
        ids_below(leader, parent)
    }
}

/// In how many pid namespaces it has a number.
fn depth(view: &View) -> usize {
    view.field("NSpid:").split_whitespace().count()
}

/// Numbers of the process as the job sees them. A session that is led from outside of the pid
/// namespace has no number there (0); on the target it can have no terminal, so one that has is
/// led by pid 1 from the move on. Pid 1 is also the parent from then on of a process in such a
/// session, or in one led by another, whose own parent is outside.
///
/// # Errors
/// When its status has none.
pub fn ids(leader: &View) -> Result<Ids, PartError> {
    Parents::default().ids(leader)
}

fn ids_below(leader: &View, parent: Option<(usize, i32)>) -> Result<Ids, PartError> {
    let last = |name: &str| -> Result<i32, PartError> {
        let word = leader.field(name).split_whitespace().last().and_then(|w| w.parse().ok());
        word.map(numbers::to_job).ok_or(PartError::State("ids of /proc status"))
    };
    // PPid is of our namespace; the parent's own status tells its number inside.
    let ppid = parent.filter(|(deep, _)| *deep >= depth(leader)).map_or(0, |(_, number)| number);
    let (mut pgid, mut sid) = (last("NSpgid:")?, last("NSsid:")?);
    if sid == 0 {
        match has_terminal_in_session(leader) {
            Some(true) => (pgid, sid) = (pgid.max(1), 1),
            Some(false) => {}
            None => {
                let pid = leader.pid;
                let now = View::read_process(pid);
                let now = now.map_err(io_error(format!("status of process {pid}")))?;
                return ids_below(&now, parent);
            }
        }
    }
    let mut ids = Ids { pid: last("NStgid:")?, ppid, pgid, sid };
    if ppid == 0 && !ids.may_come_from_outside() {
        ids.ppid = 1;
    }
    Ok(ids)
}

/// Has the process a controlling terminal (proc_pid_stat(5), `tty_nr`)?
#[must_use]
pub fn has_terminal(pid: i32) -> bool {
    session_and_terminal(pid).is_some_and(|(_, terminal)| terminal)
}

/// The same, in the session that the view shows; `None`: by now it is in another one.
fn has_terminal_in_session(view: &View) -> Option<bool> {
    let shown: Option<i32> =
        view.field("NSsid:").split_whitespace().next().and_then(|word| word.parse().ok());
    match (shown, session_and_terminal(view.pid)) {
        (Some(shown), Some((session, _))) if session != 0 && shown != session => None,
        (_, found) => Some(found.is_some_and(|(_, terminal)| terminal)),
    }
}

/// `None`: it is gone.
fn session_and_terminal(pid: i32) -> Option<(i32, bool)> {
    let stat = procfs::process::Process::new(pid).and_then(|p| p.stat()).ok()?;
    Some((stat.session, stat.tty_nr != 0))
}

/// A thread while it is being asked.
struct Asked {
    view: View,
    image: ThreadImage,
    remote: Option<Remote>,
    /// The stub that it has mapped, with the `syscall` instruction for that.
    mapped: Option<(Stub, u64)>,
    batch: Option<Batch>,
    /// It is on our CPU. After `remote`: dropped in this order.
    fetched: Option<Fetched>,
}

/// Questions under way in one thread.
struct Batch {
    started: Started,
    answers: Vec<(Scope, &'static str, Answer)>,
    memory: Option<MemoryAsked>,
}

/// Questions about the memory, in the leader: rows of brk(0), of advice for the stub that is
/// refused for locked memory, and of mincore(2), both of its last page, which nobody has touched.
struct MemoryAsked {
    brk: usize,
    locked: usize,
    there: (usize, Data),
}

/// The answers.
#[derive(Clone, Copy)]
struct Memory {
    brk: u64,
    /// As [`memory::MmImage::locks_future`].
    locks_future: Option<bool>,
}

impl MemoryAsked {
    fn ask(stub: &Stub, program: &mut Program) -> Self {
        const PAGE: u64 = proc_memory::PAGE;
        let brk = program.call(libc::SYS_brk, "brk", &[Arg::Num(0)]);
        let last = stub.base + STUB_LEN - PAGE;
        // Where there is no page, no other CPU has to hear of it.
        let args = [last, PAGE, libc::MADV_COLD as u64].map(Arg::Num);
        let locked = program.call(libc::SYS_madvise, "MADV_COLD", &args);
        let at = program.data(&[0; 8]);
        let args = [Arg::Num(last), Arg::Num(PAGE), Arg::Data(at)];
        Self { brk, locked, there: (program.call(libc::SYS_mincore, "mincore", &args), at) }
    }

    fn answer(&self, outcome: &Outcome) -> Result<Memory, PartError> {
        outcome.get(self.there.0)?;
        let there = outcome.data(self.there.1).first().is_some_and(|byte| byte & 1 != 0);
        let locked = outcome.raw(self.locked) == -i64::from(libc::EINVAL);
        Ok(Memory { brk: outcome.raw(self.brk) as u64, locks_future: locked.then_some(!there) })
    }
}

impl Asked {
    fn open(
        mut view: View,
        thread: &Frozen,
        scheduler_now: &SchedulerClocks,
        running: &Running,
        insn: u64,
    ) -> Result<Self, PartError> {
        let tid = thread.tid;
        let what = || format!("registers of thread {tid}");
        let mut regs = trace::regs(tid).map_err(io_error(what()))?;
        rseq::leave(tid, &mut regs);
        let mask = trace::sigmask(tid).map_err(io_error(what()))?;
        let extended = registers::extended(tid).map_err(io_error(what()))?;
        if regs.cs != USER_CS {
            return Err(PartError::Refused(Box::new(blocker(
                "VOS-ABI-32",
                format!("thread {}", view.job_tid),
                "it runs 32-bit code",
                "use the 64-bit build of the program",
            ))));
        }
        let known = running.get(&tid);
        let restart = settle::judge_seen(&view, &regs, mask, thread, scheduler_now, known)
            .map_err(io_error(format!("call of thread {tid}")))?;
        let (mut wanted, _) = settle::as_interrupted(&regs, known, thread.asleep.as_ref());
        if restart.is_none() {
            wanted = settle::without_restart_block(&wanted);
        }
        if settle::sleeps_on_cpu_time(wanted.orig_rax as i64, wanted.rdi) {
            return Err(PartError::Refused(Box::new(timers::sleeper(view.job_tid))));
        }
        let general = registers::words(&wanted);
        let image = ThreadImage {
            tid: view.job_tid,
            registers: Registers { general: general.to_vec(), extended, mask },
            restart,
            parts: Vec::new(),
            filters: Vec::new(),
            files: None,
        };
        let signal = match thread.stop {
            Stop::Signal(_) => {
                let info = trace::siginfo(tid);
                Some(info.map_err(io_error(format!("siginfo of thread {tid}")))?)
            }
            _ => None,
        };
        let mut remote = Remote::open_with(tid, regs, mask, view.ignores(libc::SIGTRAP))?;
        view.dispatch = remote.dispatch();
        if let Some(info) = signal {
            requeue(&mut remote, insn, &info)?;
        }
        Ok(Self { view, image, remote: Some(remote), mapped: None, batch: None, fetched: None })
    }

    /// Maps the stub, in which all threads are asked.
    fn map(&mut self, insn: u64) -> Result<Stub, PartError> {
        let stub = Stub::map(self.remote()?, insn, None)?;
        self.mapped = Some((stub, insn));
        Ok(stub)
    }

    /// Ends the loan, and takes the stub out of the process if this thread has mapped it.
    fn close(&mut self) -> Result<(), InjectError> {
        let closed = match (self.remote.take(), self.mapped.take()) {
            (Some(remote), Some((stub, insn))) => remote.close_with(&stub, insn),
            (remote, _) => remote.map_or(Ok(()), Remote::close),
        };
        self.fetched = None;
        closed
    }

    fn remote(&mut self) -> Result<&mut Remote, PartError> {
        self.remote.as_mut().ok_or(PartError::State("thread already closed"))
    }

    fn start(
        &mut self,
        stub: &Stub,
        offset: u64,
        leader: bool,
        near: Option<&Near>,
    ) -> Result<u64, PartError> {
        let mut program = Program::default();
        let memory = leader.then(|| MemoryAsked::ask(stub, &mut program));
        let mut answers = Vec::new();
        for part in PARTS.iter().filter(|p| leader || p.scope() == Scope::Thread) {
            answers.push((part.scope(), part.name(), part.ask(&self.view, &mut program)?));
        }
        let size = program.size().next_multiple_of(64) as u64;
        if self.fetched.is_none() {
            self.fetched = near.and_then(|near| near.fetch(self.view.tid));
        }
        let started = self.remote()?.start(stub, offset, program)?;
        self.batch = Some(Batch { started, answers, memory });
        Ok(offset + size)
    }

    /// What the leader says of the memory, and the states of process parts.
    fn finish(&mut self) -> Result<(Option<Memory>, Vec<PartState>), PartError> {
        let Some(batch) = self.batch.take() else { return Ok((None, Vec::new())) };
        let outcome = self.remote()?.finish(batch.started)?;
        let mut process = Vec::new();
        for (scope, name, answer) in batch.answers {
            let state = PartState { name: name.to_owned(), state: answer(&self.view, &outcome)? };
            match scope {
                Scope::Process => process.push(state),
                Scope::Thread => self.image.parts.push(state),
            }
        }
        let memory = batch.memory.map(|asked| asked.answer(&outcome)).transpose()?;
        Ok((memory, process))
    }
}

/// Puts a signal that was about to be delivered back into the thread's queue.
///
/// # Errors
/// When a call in the thread fails.
pub fn requeue(remote: &mut Remote, insn: u64, info: &trace::SigInfo) -> Result<(), PartError> {
    let stub = Stub::map(remote, insn, None)?;
    let queued = requeue_first(remote, &stub, info);
    stub.unmap(remote, insn)?;
    queued
}

/// A thread takes real-time signals of one number in their order: those that are queued for it
/// are queued again behind this one.
fn requeue_first(remote: &mut Remote, stub: &Stub, info: &trace::SigInfo) -> Result<(), PartError> {
    const FIRST_REAL_TIME: i32 = 32;
    let (tid, signal) = (remote.tid(), trace::number_of(info));
    let mut behind = Vec::new();
    if signal >= FIRST_REAL_TIME {
        let what = format!("signals queued for thread {tid}");
        let own = trace::queued_signals(tid, false).map_err(io_error(what))?;
        for _ in own.iter().filter(|queued| trace::number_of(&queued[..]) == signal) {
            behind.extend(timers::dequeue(remote, stub, signal)?);
        }
    }
    remote.queue(stub, info, true)?;
    Ok(behind.iter().try_for_each(|info| remote.queue(stub, info, true))?)
}

/// May the process have operations of semop(2) to undo? All its threads must have them in common:
/// that is how they are restored.
fn may_undo(frozen: &FrozenProcess) -> Result<bool, PartError> {
    let failed = || io_error(format!("kcmp with process {}", frozen.pid));
    let leader = undo::may_have(frozen.pid).map_err(failed())?;
    for thread in &frozen.threads {
        let same = compare_tasks(frozen.pid, thread.tid, Shared::Undo).map_err(failed())?;
        if same != std::cmp::Ordering::Equal && undo::may_have(thread.tid).map_err(failed())? {
            let cause = "one of its threads undoes semaphore operations by itself (semop(2))";
            return Err(not_known(frozen.pid, cause));
        }
    }
    Ok(leader)
}

fn not_known(pid: i32, cause: &str) -> PartError {
    PartError::Refused(Box::new(refusal(&format!("process {pid}"), cause)))
}

/// Of the memory, the process's parts, and its timers whose signals are pending.
type Answers = (Memory, Vec<PartState>, Overdue);

/// Asks all threads. Gives their answers, and what the process is to undo; the first one has the stub
/// mapped from then on.
fn ask(
    threads: &mut [Asked],
    insn: u64,
    near: Option<&Near>,
    sets: &[undo::Asked],
) -> Result<(Answers, Vec<Undo>), PartError> {
    threads[0].fetched = near.and_then(|near| near.fetch(threads[0].view.tid));
    let stub = threads[0].map(insn)?;
    // What expires during these questions is seen by those that follow.
    let undo = ask_undo(&mut threads[0], &stub, sets)?;
    Ok((ask_until_settled(threads, &stub, near)?, undo))
}

fn ask_undo(leader: &mut Asked, stub: &Stub, sets: &[undo::Asked]) -> Result<Vec<Undo>, PartError> {
    let pid = leader.view.job_pid;
    undo::ask(leader.remote()?, stub, sets).map_err(|e| not_known(pid, &e.to_string()))
}

/// Timers go on meanwhile, so all is asked again when one has expired in the middle.
fn ask_until_settled(
    threads: &mut [Asked],
    stub: &Stub,
    near: Option<&Near>,
) -> Result<Answers, PartError> {
    // A timer expires once at most while its signal is blocked.
    const MOST_TURNS: usize = 1000;
    let mut overdue = Overdue::new();
    for _ in 0..MOST_TURNS {
        for thread in threads.iter_mut() {
            thread.image.parts.clear();
            let view = thread.view.clone();
            timers::measure(&view, thread.remote()?, stub, &mut overdue)?;
        }
        let (memory, parts) = ask_with(threads, stub, near)?;
        let mut expired = false;
        for thread in threads.iter() {
            expired |= signals::timer_has_expired_since(&thread.view, &thread.image)?
                || timers::is_unmeasured(&thread.view, &overdue)?;
        }
        if !expired {
            return Ok((memory, parts, overdue));
        }
    }
    Err(PartError::State("timers that expire all the time"))
}

/// Room that the leader's questions need at most; other threads need far less.
const ROOM: u64 = 32 << 10;

/// Asks all threads at once, as many as fit the stub.
fn ask_with(
    threads: &mut [Asked],
    stub: &Stub,
    near: Option<&Near>,
) -> Result<(Memory, Vec<PartState>), PartError> {
    let mut first = None;
    let mut next = 0;
    while next < threads.len() {
        let begin = next;
        let mut offset = 0;
        while next < threads.len() && offset + ROOM < stub.capacity() {
            offset = threads[next].start(stub, offset, next == 0, near)?;
            next += 1;
        }
        for thread in &mut threads[begin..next] {
            let (memory, parts) = thread.finish()?;
            first = first.or(memory.map(|memory| (memory, parts)));
        }
    }
    first.ok_or(PartError::State("a process without threads"))
}

/// A `syscall` instruction in the process: the vdso has one.
///
/// # Errors
/// When no executable mapping has one, or memory cannot be read.
pub fn syscall_insn(pid: i32, memory: &memory::MmImage) -> Result<u64, PartError> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    if memory.mappings.is_empty() {
        // It is in the image of another process, which has the same memory.
        return syscall_insn_now(pid).map_err(io_error(format!("vdso of process {pid}")));
    }
    let find = |text: &[u8]| text.windows(2).position(|w| w == SYSCALL).map(|at| at as u64);
    let special = |m: &&memory::Mapping| matches!(&m.backing, memory::Backing::Special(name) if name == "[vdso]");
    if let Some(m) = memory.mappings.iter().find(special) {
        if let Some(at) = find(&memory.vdso) {
            return Ok(m.start + at);
        }
    }
    for m in memory.mappings.iter().filter(|m| m.prot & libc::PROT_EXEC != 0) {
        let end = m.end.min(m.start + (8 << 20));
        if let Some(at) = memory::read_range(pid, m.start, end).ok().and_then(|t| find(&t)) {
            return Ok(m.start + at);
        }
    }
    Err(io_error(format!("a syscall instruction in process {pid}"))(io::ErrorKind::NotFound.into()))
}

/// Threads of the process as /proc shows them now, for `check`.
///
/// # Errors
/// When the process is gone.
pub fn views(pid: i32) -> io::Result<Vec<View>> {
    let mut views = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?.file_name().to_str().and_then(|s| s.parse().ok()) {
            views.extend(View::read(pid, tid).ok());
        }
    }
    views.sort_by_key(|v| (v.tid != pid, v.tid));
    Ok(views)
}

/// Every mapping that cannot move, and an executable that cannot, for `check`.
///
/// # Errors
/// When the process is gone.
pub fn check_memory(
    pid: i32,
    submitted: &aio::Submitted,
    submitting: &aio::Submitting,
) -> io::Result<Vec<crate::control::Finding>> {
    let mappings = proc_memory::vmas(pid)?;
    let mut findings = aio::check(pid, &mappings, submitted, submitting)?;
    findings.extend(mappings.iter().filter_map(memory::check_vma));
    findings.extend(memory::check_exe(pid)?);
    Ok(findings)
}

/// Shared memory without a name in the file system that processes outside of the job map, too,
/// as far as one may look. `pids` are the job's processes.
///
/// # Errors
/// When the job's first process is gone, or /proc cannot be read.
pub fn check_shared_memory(pids: &[i32]) -> io::Result<Vec<crate::control::Finding>> {
    let mut ours = memory::Nameless::new();
    for (n, &pid) in pids.iter().enumerate() {
        match proc_memory::maps(pid) {
            Ok(maps) => ours.extend(memory::nameless(&maps).map(|(id, name)| (id, (pid, name)))),
            Err(e) if n == 0 => return Err(e),
            // It has ended meanwhile.
            Err(_) => {}
        }
    }
    let mut findings = Vec::new();
    let others = procfs::process::all_processes().map_err(io::Error::other)?.flatten();
    for other in others.map(|p| p.pid).filter(|pid| !pids.contains(pid)) {
        if ours.is_empty() {
            break;
        }
        // Of others one may not see everything.
        let Ok(maps) = proc_memory::maps(other) else { continue };
        let common: Vec<_> =
            memory::nameless(&maps).map(|(id, _)| id).filter(|id| ours.contains_key(id)).collect();
        if common.is_empty() || !gone::is_stranger(other) {
            continue;
        }
        let held = common.iter().filter_map(|id| ours.remove(id));
        findings.extend(held.map(|held| memory::shared_outside(&held, other)));
    }
    Ok(findings)
}

/// A `syscall` instruction in the vdso of a process as it is now.
///
/// # Errors
/// When there is none or /proc cannot be read.
pub fn syscall_insn_now(pid: i32) -> io::Result<u64> {
    let maps = proc_memory::maps(pid)?;
    let none = || io::Error::new(io::ErrorKind::NotFound, format!("no vdso in process {pid}"));
    let vdso = proc_memory::vdso(&maps).ok_or_else(none)?;
    let text = memory::read_range(pid, vdso.start, vdso.end)?;
    let at = text.windows(2).position(|w| w == [0x0f, 0x05]).ok_or_else(none)?;
    Ok(vdso.start + at as u64)
}
