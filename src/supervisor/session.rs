//! The traced threads of one job, and what each stop does to them.
//!
//! ```text
//! Wait ─► note (who is there) ─► resume: cont / deliver / listen / step to exit
//! ```
//! A stop is answered at once: a job never waits for anything but a move.
//!
//! The kernel reports a new thread twice, by an event of its creator and by its own first
//! stop, in either order; ptrace(2) says what execve does to the other threads.

mod calls;
mod translated;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

pub use calls::Way;
use calls::{InFlight, Stage};

use crate::migrate::asleep::SchedulerClocks;
use crate::migrate::freeze::{Frozen, Watched};
use crate::migrate::resource::aio::Submitting;
use crate::migrate::settle;
use crate::migrate::transfer;
use crate::syscalls::handles::Handles;
use crate::syscalls::names::Names;
use crate::syscalls::translate::signalfd::Signalfds;
use crate::syscalls::translate::{self, numbers, Translation};
use crate::syscalls::{self, AtExit};
use crate::tracer::inject::InjectError;
use crate::tracer::memory::stat_field;
use crate::tracer::{filter, raw, stop, Exit, Stop, Wait};

/// What a thread is doing, as far as the supervisor is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    Running,
    /// In group-stop by this signal, listened to (PTRACE_LISTEN).
    Group(i32),
}

/// One traced thread.
#[derive(Debug, Clone)]
pub struct Task {
    pub tid: i32,
    /// Its process (tgid).
    pub pid: i32,
    pub state: TaskState,
    /// Between vfork(2) and this child's exec or exit: cannot be stopped.
    pub in_vfork: Option<i32>,
    /// Its creator's event has come, or there is none to come.
    announced: bool,
    at_exit: Option<AtExit>,
}

/// The threads of one job.
#[derive(Debug)]
pub struct Session {
    pub tasks: BTreeMap<i32, Task>,
    /// Host pid of the first process; the job ends with it.
    pub root: i32,
    /// Where processes have their vdso (vdso(7)), as far as it is known.
    vdsos: BTreeMap<i32, u64>,
    /// A `syscall` instruction of processes that were restored here.
    insns: BTreeMap<i32, u64>,
    pub handles: Handles,
    /// The addresses of connections as the job knows them, where the kernel has others.
    pub names: Names,
    /// The job has no namespaces here.
    pub translation: Option<Translation>,
    /// Signalfds of a translated job.
    pub signalfds: Signalfds,
    /// How the first process ended.
    pub ended: Option<Exit>,
    /// The first process has come to a group-stop by this signal since this was last taken.
    pub root_stopped: Option<i32>,
    /// Calls that go on after an interruption, by thread.
    in_flight: BTreeMap<i32, InFlight>,
    /// Threads that were gone before their creator's event came.
    early_dead: BTreeSet<i32>,
    /// New threads of a translated job that have not stopped for the first time, and where their
    /// number is written in their memory.
    births: BTreeMap<i32, u64>,
}

impl Session {
    /// A session without a process; see [`Session::begin`].
    #[must_use]
    pub fn new(handles: Handles) -> Self {
        Self {
            tasks: BTreeMap::new(),
            root: 0,
            vdsos: BTreeMap::new(),
            insns: BTreeMap::new(),
            handles,
            names: Names::default(),
            translation: None,
            signalfds: Signalfds::default(),
            ended: None,
            root_stopped: None,
            in_flight: BTreeMap::new(),
            early_dead: BTreeSet::new(),
            births: BTreeMap::new(),
        }
    }

    /// The job's first process, whose threads are traced already and in no stop that was
    /// reported.
    pub fn begin(&mut self, root: i32, tids: impl IntoIterator<Item = i32>) {
        self.root = root;
        self.add_process(root, tids);
    }

    /// Adds the threads of one more process, as [`Session::begin`].
    pub fn add_process(&mut self, pid: i32, tids: impl IntoIterator<Item = i32>) {
        self.has_new_code(pid);
        for tid in tids {
            self.add(tid, pid, true);
            self.set_vfork(tid, vfork_child(pid, tid));
        }
    }

    /// The code of a process is another one than before.
    fn has_new_code(&mut self, pid: i32) {
        self.insns.remove(&pid);
        self.handles.forget_own(pid);
        match vdso(pid) {
            Some(at) => self.vdsos.insert(pid, at),
            None => self.vdsos.remove(&pid),
        };
    }

    /// A restored process has a `syscall` instruction there.
    pub fn note_insn(&mut self, pid: i32, at: u64) {
        self.insns.insert(pid, at);
    }

    /// A `syscall` instruction of a process, without looking into it. `offset`: where the vdso of
    /// this machine has one.
    #[must_use]
    pub fn insn(&self, pid: i32, offset: Option<u64>) -> Option<u64> {
        let in_vdso = || Some(self.vdsos.get(&pid)? + offset?);
        self.insns.get(&pid).copied().or_else(in_vdso)
    }

    /// All processes, ascending.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<i32> {
        self.tasks.values().map(|task| task.pid).collect()
    }

    /// AIO contexts to which a thread submits something just now: it is between the entry of the call
    /// and its exit.
    #[must_use]
    pub fn submitting(&self) -> Submitting {
        let context = |task: &Task| match task.at_exit {
            Some(AtExit::Submit { context }) => Some((task.pid, context)),
            _ => None,
        };
        self.tasks.values().filter_map(context).collect()
    }

    /// Processes that their creators' events have told of: a child that shares its parent's memory
    /// for vfork(2) is known as one.
    #[must_use]
    pub fn announced(&self, pid: i32) -> bool {
        self.tasks.get(&pid).is_none_or(|task| task.announced)
    }

    /// Is the whole first process in group-stop, and by which signal?
    #[must_use]
    pub fn root_in_stop(&self) -> Option<i32> {
        self.in_stop(self.root)
    }

    /// Is a whole process in group-stop, and by which signal?
    #[must_use]
    pub fn in_stop(&self, pid: i32) -> Option<i32> {
        let mut threads = self.tasks.values().filter(|t| t.pid == pid).map(|t| t.state);
        let signal = |state| match state {
            TaskState::Group(signal) => Some(signal),
            TaskState::Running => None,
        };
        let first = threads.next().and_then(signal)?;
        threads.all(|state| signal(state).is_some()).then_some(first)
    }

    /// Takes one wait status.
    ///
    /// # Errors
    /// When the kernel refuses a ptrace request for another reason than that the thread is
    /// gone.
    pub fn take(&mut self, wait: Wait) -> io::Result<()> {
        let Wait { tid, stop } = wait;
        if let Stop::Exited(exit) = stop {
            self.gone(tid, exit);
            return Ok(());
        }
        self.note(tid, stop);
        let answered = self.resume(tid, stop);
        if let Stop::Group(signal) = stop {
            let of_root = self.tasks.get(&tid).is_some_and(|t| t.pid == self.root);
            if of_root && self.root_in_stop().is_some() {
                self.root_stopped = self.root_stopped.or(Some(signal));
            }
        }
        forgive(answered)
    }

    /// Waits for a thread that has been continued out of its group-stop, and does not let it run.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn hold(&mut self, tid: i32) -> io::Result<()> {
        loop {
            let wait = stop::await_status(tid)?;
            match wait.stop {
                Stop::Interrupt => {
                    self.set_state(tid, TaskState::Running);
                    return Ok(());
                }
                Stop::Exited(_) => return self.take(wait),
                _ => self.take(wait)?,
            }
        }
    }

    /// The job has left: its threads are not here any more.
    pub fn leave(&mut self) {
        self.tasks.clear();
        self.in_flight.clear();
        self.births.clear();
        self.translation = None;
        self.signalfds.clear();
        self.vdsos.clear();
        self.insns.clear();
        self.root = 0;
        self.ended = None;
        self.root_stopped = None;
        self.handles.forget_keys();
        self.handles.forget_seen();
    }

    fn add(&mut self, tid: i32, pid: i32, announced: bool) {
        let state = TaskState::Running;
        let task = Task { tid, pid, state, in_vfork: None, announced, at_exit: None };
        self.tasks.insert(tid, task);
    }

    fn set_state(&mut self, tid: i32, state: TaskState) {
        if let Some(task) = self.tasks.get_mut(&tid) {
            task.state = state;
        }
    }

    /// Who is there: threads appear, vanish, change their tid.
    fn note(&mut self, tid: i32, stop: Stop) {
        if !self.tasks.contains_key(&tid) {
            self.add(tid, process_of(tid), false);
            self.number(tid);
        }
        match stop {
            Stop::Clone(new) | Stop::Fork(new) => self.announce(tid, new),
            Stop::Vfork(new) => {
                self.announce(tid, new);
                self.set_vfork(tid, Some(new));
            }
            Stop::VforkDone => self.set_vfork(tid, None),
            Stop::Exec(former) => self.executed(tid, former),
            _ => {}
        }
    }

    fn set_vfork(&mut self, tid: i32, child: Option<i32>) {
        if let Some(task) = self.tasks.get_mut(&tid) {
            task.in_vfork = child;
        }
    }

    /// The event of a creator: `new` exists, or did.
    fn announce(&mut self, creator: i32, new: i32) {
        if self.early_dead.remove(&new) {
            return;
        }
        self.handles.inherit_filters(creator, new);
        let parent = self.tasks.get(&creator).map_or(creator, |t| t.pid);
        if let Some(task) = self.tasks.get_mut(&new) {
            task.announced = true;
            self.note_birth(creator, new);
        } else {
            self.number(new);
            self.note_birth(creator, new);
            let is_thread = Path::new(&format!("/proc/{parent}/task/{new}")).exists();
            self.add(new, if is_thread { parent } else { new }, true);
        }
        if self.tasks.get(&new).is_some_and(|task| task.pid == new) {
            numbers::hide(new, numbers::is_hidden(parent));
            for known in [&mut self.vdsos, &mut self.insns] {
                if let Some(inherited) = known.get(&parent).copied() {
                    known.entry(new).or_insert(inherited);
                }
            }
            self.signalfds.inherit(parent, new);
        }
    }

    /// After execve the process has one thread, under the tgid, whoever called.
    fn executed(&mut self, pid: i32, caller: i32) {
        if caller != pid {
            self.handles.forget_filters(caller, Some(pid));
        }
        for gone in self.tasks.values().filter(|t| t.pid == pid && ![pid, caller].contains(&t.tid))
        {
            self.handles.forget_filters(gone.tid, None);
        }
        self.tasks.retain(|tid, task| *tid == pid || task.pid != pid);
        self.in_flight.retain(|tid, _| *tid != pid && self.tasks.contains_key(tid));
        self.add(pid, pid, true);
        self.has_new_code(pid);
        numbers::hide(pid, false);
        if self.translation.is_some() && translate::hide_vdso(pid).is_none() {
            tracing::warn!("process {pid} reads the clocks of this machine (vdso(7))");
        }
    }

    fn gone(&mut self, tid: i32, exit: Exit) {
        self.in_flight.remove(&tid);
        self.births.remove(&tid);
        self.vdsos.remove(&tid);
        self.insns.remove(&tid);
        self.signalfds.forget(tid);
        self.handles.forget_own(tid);
        self.handles.forget_filters(tid, None);
        numbers::hide(tid, false);
        if tid == self.root {
            self.ended = Some(exit);
        }
        // Its number is kept until the next sweep: its creator may not have been told it yet, a
        // process is waited for, and a number may be a group's.
        if self.tasks.remove(&tid).is_some_and(|task| !task.announced) {
            self.early_dead.insert(tid);
        }
    }

    /// Answers a stop.
    fn resume(&mut self, tid: i32, stop: Stop) -> io::Result<()> {
        if let Stop::Group(signal) = stop {
            self.hand_over(tid)?;
            self.note_restart(tid, &raw::regs(tid)?);
            self.set_state(tid, TaskState::Group(signal));
            return raw::listen(tid);
        }
        self.set_state(tid, TaskState::Running);
        if self.translation.is_some() && stop == Stop::Interrupt {
            self.first_stop(tid)?;
        }
        if self.translation.is_some() && stop == Stop::Exiting {
            translate::leave(tid);
        }
        match stop {
            Stop::Interrupt => self.go_on(tid),
            Stop::Signal(signal) => self.deliver(tid, signal),
            Stop::Seccomp => self.enter_syscall(tid),
            Stop::Syscall => self.leave_syscall(tid),
            // In the middle of a call whose return is waited for: clone(2), vfork(2).
            _ if self.tasks.get(&tid).is_some_and(|task| task.at_exit.is_some()) => {
                raw::syscall_step(tid, 0)
            }
            _ => raw::cont(tid, 0),
        }
    }

    /// After a stop that means nothing (PTRACE_INTERRUPT, SIGCONT).
    fn go_on(&mut self, tid: i32) -> io::Result<()> {
        self.hand_over(tid)?;
        match self.in_flight.get(&tid).map(|call| call.stage) {
            None | Some(Stage::ByKernel) => raw::cont(tid, 0),
            Some(_) => raw::syscall_step(tid, 0),
        }
    }

    /// Delivers a signal. One that is ignored must not end a call that only the supervisor
    /// can restart.
    fn deliver(&mut self, tid: i32, signal: i32) -> io::Result<()> {
        let regs = raw::regs(tid)?;
        if settle::cut_short(&regs) || transfer::may_be_part(&regs) {
            let thread = Frozen { tid, stop: Stop::Signal(signal), asleep: None };
            let again = self.in_flight.get(&tid).map(InFlight::again);
            let way = self.way_on(&thread, &SchedulerClocks::new(), again.as_ref())?;
            return self.go(tid, way);
        }
        let way = self.way_with(tid, signal, &regs)?;
        self.go(tid, way)
    }

    /// SECCOMP_RET_TRACE of vosrun's filter, or of one that the program has put in: that call
    /// answers what it would without a tracer.
    fn enter_syscall(&mut self, tid: i32) -> io::Result<()> {
        if raw::event_message(tid)? != u64::from(filter::MARK) {
            syscalls::answer(tid, libc::ENOSYS)?;
            return raw::cont(tid, 0);
        }
        if self.names.answer(tid)? {
            return raw::cont(tid, 0);
        }
        let at_exit = match self.translate(tid)? {
            Some(call) => Some(AtExit::Translated(call)),
            None => syscalls::at_entry(tid)?,
        };
        if let (Some(AtExit::Install(filter)), true) = (&at_exit, self.translation.is_some()) {
            if let Some(cause) = filter.sees_translated() {
                tracing::warn!("seccomp(2) of thread {tid} answers EINVAL: {cause}");
                syscalls::answer(tid, libc::EINVAL)?;
                return raw::cont(tid, 0);
            }
        }
        // A call that was started again with other arguments is seen to its return.
        let ours = self.in_flight.get(&tid).is_some_and(|call| call.stage != Stage::ByKernel);
        if at_exit.is_none() && !ours {
            return raw::cont(tid, 0);
        }
        if let Some(task) = self.tasks.get_mut(&tid) {
            task.at_exit = at_exit;
        }
        raw::syscall_step(tid, 0)
    }

    fn leave_syscall(&mut self, tid: i32) -> io::Result<()> {
        if let Some(task) = self.tasks.get_mut(&tid) {
            if let Some(at_exit) = task.at_exit.take() {
                let signalfd =
                    matches!(&at_exit, AtExit::Translated(call) if call.makes_signalfd());
                at_exit.finish(tid, task.pid, &mut self.handles)?;
                let added = if signalfd { self.signalfds.add(task.pid, tid) } else { Ok(()) };
                match added {
                    Ok(()) => {}
                    // It was killed meanwhile.
                    Err(InjectError::Died { exit, .. }) => {
                        self.gone(tid, exit);
                        return Ok(());
                    }
                    Err(InjectError::Unexpected { stop: Stop::Exiting, .. }) => {
                        return self.resume(tid, Stop::Exiting);
                    }
                    Err(InjectError::Trace { source, .. } | InjectError::Call { source, .. }) => {
                        return Err(source);
                    }
                    Err(e) => return Err(io::Error::other(e)),
                }
            }
        }
        self.step_restarted(tid)
    }
}

impl Watched for Session {
    fn root(&self) -> i32 {
        self.root
    }

    fn processes(&self) -> BTreeSet<i32> {
        self.processes()
    }

    fn in_vfork(&self) -> BTreeSet<i32> {
        let waiting = self.tasks.values().filter_map(|t| Some((t.tid, t.in_vfork?)));
        waiting.flat_map(|(tid, child)| [tid, child]).collect()
    }

    fn take(&mut self, wait: Wait) {
        if let Err(e) = self.take(wait) {
            tracing::warn!("thread {}: {e}", wait.tid);
        }
    }

    fn release(&mut self, thread: &Frozen) {
        let ways = self.ways_on([thread], &SchedulerClocks::new());
        self.go_on_all(&ways);
    }
}

/// ESRCH: the thread was killed; its exit is reported by itself.
fn forgive(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// The child for which a thread waits in vfork(2), which it began before it was traced: such a
/// wait cannot be interrupted (`wait_for_vfork_done`, kernel/fork.c).
fn vfork_child(pid: i32, tid: i32) -> Option<i32> {
    let read = |name| std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/{name}")).ok();
    let call: i64 = read("syscall")?.split(' ').next()?.parse().ok()?;
    let makes = [libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3].contains(&call);
    let stat = read("stat")?;
    let waits = stat_field(&stat, 3) == Some("D");
    let children = read("children")?;
    let newest = children.split_whitespace().next_back()?.parse().ok();
    newest.filter(|_| makes && waits)
}

/// AT_SYSINFO_EHDR of a process (getauxval(3)).
fn vdso(pid: i32) -> Option<u64> {
    let auxv = std::fs::read(format!("/proc/{pid}/auxv")).ok()?;
    let (words, _) = auxv.as_chunks::<8>();
    let pair = words.chunks(2).find(|p| u64::from_ne_bytes(p[0]) == libc::AT_SYSINFO_EHDR);
    pair?.get(1).map(|value| u64::from_ne_bytes(*value))
}

/// The tgid of a thread; itself when it is gone already.
fn process_of(tid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let tgid = status.lines().find_map(|l| l.strip_prefix("Tgid:"));
    tgid.and_then(|t| t.trim().parse().ok()).unwrap_or(tid)
}
