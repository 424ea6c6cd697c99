//! How threads go on after they were stopped, and the calls that go on with them.
//!
//! A stop interrupts the call that a thread sleeps in. Some the kernel starts again by itself, others
//! are started again with what is left of their timeout or of their bytes ([`settle`],
//! [`transfer`]); those are followed to their return, where the program's arguments are put back.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{forgive, process_of, Session, TaskState};
use crate::migrate::asleep::{is_counted, scheduler_clocks, SchedulerClocks};
use crate::migrate::capture::Running;
use crate::migrate::freeze::{self, Frozen, Watched};
use crate::migrate::image::Restart;
use crate::migrate::resource::View;
use crate::migrate::settle::{self, Again, Asked, Place};
use crate::migrate::transfer;
use crate::tracer::inject::Remote;
use crate::tracer::memory::task_state;
use crate::tracer::{raw, stop, Stop};

/// How long threads wait for others that fall asleep in calls which are started again.
const ASLEEP: Duration = Duration::from_millis(100);

/// A system call that goes on after it was interrupted.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    /// Registers at the interruption, with the program's arguments.
    regs: raw::Regs,
    restart: Restart,
    /// When its timeout ends.
    deadline: Option<Instant>,
    pub(super) stage: Stage,
    /// The call that is made for it.
    asked: Asked,
}

/// How far a call is that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The kernel starts it again by itself: nothing is to be put back.
    ByKernel,
    /// Started again with other arguments, for what is left of its timeout; the program's are
    /// put back when it returns. The thread has not got to it.
    Asked,
    /// The kernel works on it.
    Entered,
    /// It has returned with the program's arguments, but by a stop only; see
    /// [`settle::cut_short`] and [`settle::starts_again`]. The stop that comes next tells whether
    /// it is started again.
    CutShort,
}

/// How a thread goes on after it was stopped for a move or a borrow.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// It stays in group-stop.
    Listen(i32),
    /// To the return of a call that was started again, with this signal (0: none).
    Step(i32),
    Cont(i32),
}

impl Way {
    /// As if nobody had looked.
    fn as_stopped(stop: Stop) -> Self {
        match stop {
            Stop::Group(signal) => Self::Listen(signal),
            Stop::Signal(signal) => Self::Cont(signal),
            _ => Self::Cont(0),
        }
    }
}

impl InFlight {
    pub(super) fn again(&self) -> Again {
        let left = self.deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let remaining_ns = left.map(|d| d.as_nanos() as u64);
        let by_kernel = self.stage == Stage::ByKernel;
        let restart = Restart { remaining_ns, ..self.restart };
        Again { regs: self.regs, restart, by_kernel, nr: self.asked.nr }
    }
}

impl Session {
    /// How all threads go on, for [`Session::go`]. One that cannot be asked goes on as the kernel
    /// has it: its call may answer EINTR.
    pub fn ways_on<'a>(
        &mut self,
        threads: impl IntoIterator<Item = &'a Frozen>,
        now: &SchedulerClocks,
    ) -> Vec<(i32, Way)> {
        self.settle_births();
        let running = self.running_restarts();
        let mut ways = Vec::new();
        for thread in threads {
            match self.way_on(thread, now, running.get(&thread.tid)) {
                Ok(way) => ways.push((thread.tid, way)),
                Err(e) => {
                    tracing::error!("thread {} goes on, but not its call: {e}", thread.tid);
                    ways.push((thread.tid, Way::as_stopped(thread.stop)));
                }
            }
        }
        ways
    }

    /// [`Session::go`] of many. Those that wait where others can count them ([`is_counted`])
    /// wait there again before the others go on.
    ///
    /// # Errors
    /// The first thread that was not resumed; the others were, if they could be.
    pub fn go_all(&mut self, ways: &[(i32, Way)]) -> Result<(), (i32, io::Error)> {
        let waits = |tid| self.in_flight.get(&tid).is_some_and(|call| is_counted(call.restart.nr));
        let (waiting, others): (Vec<_>, Vec<_>) =
            ways.iter().copied().partition(|(tid, _)| waits(*tid));
        let mut first = Ok(());
        let mut go = |session: &mut Self, ways: &[(i32, Way)]| {
            for &(tid, way) in ways {
                let gone = session.go(tid, way).map_err(|e| (tid, e));
                first = std::mem::replace(&mut first, Ok(())).and(gone);
            }
        };
        go(self, &waiting);
        if !others.is_empty() {
            self.await_sleep(&waiting);
        }
        go(self, &others);
        first
    }

    /// [`Session::go_all`]; what was not resumed is only said.
    pub fn go_on_all(&mut self, ways: &[(i32, Way)]) {
        if let Err((tid, e)) = self.go_all(ways) {
            tracing::error!("thread {tid} was not resumed: {e}");
        }
    }

    /// Until these threads, which enter calls again, sleep in them or have returned from them.
    fn await_sleep(&mut self, waiting: &[(i32, Way)]) {
        let until = Instant::now() + ASLEEP;
        for &(tid, _) in waiting {
            while self.enters_call(tid) && Instant::now() < until {
                match stop::wait(tid, false) {
                    Ok(Some(wait)) => Watched::take(self, wait),
                    Ok(None) => std::thread::yield_now(),
                    Err(_) => break,
                }
            }
        }
    }

    /// Is a thread on its way into a call that was started again?
    fn enters_call(&self, tid: i32) -> bool {
        let is_stopped =
            || self.tasks.get(&tid).is_some_and(|task| matches!(task.state, TaskState::Group(_)));
        let is_awake = || matches!(task_state(tid), Some('R' | 't'));
        self.in_flight.contains_key(&tid) && !is_stopped() && is_awake()
    }

    /// How a thread of a move that was given up goes on as if nothing had happened. A call
    /// that only the supervisor can restart (see [`settle`]) is made ready to be restarted;
    /// the kernel does the others, also those that wait with a restart block of its own.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that the thread is gone.
    pub fn way_on(
        &mut self,
        thread: &Frozen,
        scheduler_now: &SchedulerClocks,
        again: Option<&Again>,
    ) -> io::Result<Way> {
        let tid = thread.tid;
        let signal = match Way::as_stopped(thread.stop) {
            Way::Cont(signal) | Way::Step(signal) => signal,
            listen @ Way::Listen(_) => {
                self.hand_over(tid)?;
                return Ok(listen);
            }
        };
        let pid = self.tasks.get(&tid).map_or(tid, |t| t.pid);
        let restart = settle::judge_stopped(pid, thread, scheduler_now, again)?;
        let regs = raw::regs(tid)?;
        let Some(restart) = restart else { return self.way_with(tid, signal, &regs) };
        if self.place(tid, &regs) == Some(Place::Before) {
            return Ok(Way::Step(signal));
        }
        let (wanted, _) = settle::as_interrupted(&regs, again, thread.asleep.as_ref());
        raw::set_regs(tid, &wanted)?;
        if settle::cut_short(&wanted) || restart.done > 0 {
            self.make_ready(tid, restart)?;
            return Ok(Way::Step(signal));
        }
        self.goes_on(tid, wanted, restart, Stage::ByKernel, Asked::whole(&restart));
        Ok(Way::Cont(signal))
    }

    /// How a thread goes on with a signal (0: none) that may end its call.
    pub(super) fn way_with(&mut self, tid: i32, signal: i32, regs: &raw::Regs) -> io::Result<Way> {
        match self.place(tid, regs) {
            None | Some(Place::Elsewhere) => {
                self.in_flight.remove(&tid);
                self.note_restart(tid, regs);
            }
            Some(Place::Inside) => self.hand_over(tid)?,
            Some(Place::Before) => {
                let pid = self.tasks.get(&tid).map_or_else(|| process_of(tid), |t| t.pid);
                let ends = signal != 0 && settle::ends_call(&View::read(pid, tid)?, signal);
                let ours = self.in_flight.get(&tid).filter(|c| c.stage != Stage::ByKernel);
                match (ours.map(|c| c.regs), ends) {
                    (Some(interrupted), true) => {
                        // As if the signal had found the thread in the call.
                        raw::set_regs(tid, &settle::without_restart_block(&interrupted))?;
                        self.in_flight.remove(&tid);
                    }
                    (Some(_), false) => return Ok(Way::Step(signal)),
                    (None, _) => {}
                }
            }
        }
        Ok(Way::Cont(signal))
    }

    /// A stop that is none of the supervisor's has interrupted a call that the kernel will start
    /// again: afterwards nothing would tell which it was.
    pub(super) fn note_restart(&mut self, tid: i32, regs: &raw::Regs) {
        if self.in_flight.contains_key(&tid) {
            return;
        }
        match settle::kernel_restart(tid, regs) {
            Ok(Some(restart)) => {
                self.goes_on(tid, *regs, restart, Stage::ByKernel, Asked::whole(&restart));
            }
            Ok(None) => {}
            Err(e) => tracing::debug!("the call of thread {tid}: {e}"),
        }
    }

    /// Where a stopped thread is with a call that goes on; `None`: there is none.
    fn place(&self, tid: i32, regs: &raw::Regs) -> Option<Place> {
        self.in_flight.get(&tid).map(|call| call.again().place(regs))
    }

    /// A call that was entered with other arguments than the program's, and is interrupted now,
    /// gets the program's back: from here on the kernel starts it again, or a handler ends it.
    pub(super) fn hand_over(&mut self, tid: i32) -> io::Result<()> {
        let Some(call) = self.in_flight.get_mut(&tid) else { return Ok(()) };
        let regs = raw::regs(tid)?;
        let ours = call.stage != Stage::ByKernel && call.again().place(&regs) == Place::Inside;
        if ours && !settle::cut_short(&regs) {
            raw::set_regs(tid, &settle::with_arguments(&regs, &call.regs))?;
            call.stage = Stage::ByKernel;
        }
        Ok(())
    }

    /// Lets a stopped thread go on.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that the thread is gone.
    pub fn go(&mut self, tid: i32, way: Way) -> io::Result<()> {
        forgive(match way {
            Way::Listen(signal) => {
                self.set_state(tid, TaskState::Group(signal));
                raw::listen(tid)
            }
            Way::Step(signal) => {
                self.tell_sender(tid, signal).and_then(|()| raw::syscall_step(tid, signal))
            }
            Way::Cont(signal) => {
                self.tell_sender(tid, signal).and_then(|()| raw::cont(tid, signal))
            }
        })
    }

    /// Runs `work` in the first thread of a process, which sees nothing of it.
    ///
    /// # Errors
    /// When the thread cannot be stopped or borrowed, and those of `work`.
    pub fn borrow<R>(
        &mut self,
        pid: i32,
        work: impl FnOnce(&mut Remote) -> Result<R>,
    ) -> Result<R> {
        let thread = freeze::stop_thread(pid, pid, &mut |wait| {
            if let Err(e) = self.take(wait) {
                tracing::warn!("thread {}: {e}", wait.tid);
            }
        })?;
        let now = scheduler_clocks(thread.asleep.iter());
        let again = self.in_flight.get(&pid).map(InFlight::again);
        let worked = run_in(pid, work);
        let way = self.way_on(&thread, &now, again.as_ref())?;
        self.go(pid, way)?;
        worked
    }

    /// Gives a stopped thread the registers with which its interrupted call starts again with
    /// what is left of its timeout; it is to go on by [`Way::Step`].
    ///
    /// # Errors
    /// When registers or memory of the thread cannot be written.
    pub fn make_ready(&mut self, tid: i32, restart: Restart) -> io::Result<()> {
        let regs = raw::regs(tid)?;
        let Some(asked) = settle::restart(tid, &regs, &restart)? else { return Ok(()) };
        self.goes_on(tid, regs, restart, Stage::Asked, asked);
        Ok(())
    }

    fn goes_on(&mut self, tid: i32, regs: raw::Regs, restart: Restart, stage: Stage, asked: Asked) {
        let deadline = restart.remaining_ns.map(|ns| Instant::now() + Duration::from_nanos(ns));
        self.in_flight.insert(tid, InFlight { regs, restart, deadline, stage, asked });
    }

    /// Calls that go on after an interruption and have not returned, as far as is known, with
    /// what is left of them.
    #[must_use]
    pub fn running_restarts(&self) -> Running {
        self.in_flight.iter().map(|(tid, call)| (*tid, call.again())).collect()
    }

    /// Is there a thread that has yet to enter a call that was started again?
    #[must_use]
    pub fn starts_calls(&self) -> bool {
        self.in_flight.values().any(|call| call.stage == Stage::Asked)
    }

    /// The call for the rest of a transfer has returned: with the next piece of its vector it goes
    /// on, else it is over, for better or worse.
    fn step_transfer(&mut self, tid: i32, now: &raw::Regs) -> io::Result<()> {
        let Some(InFlight { regs, restart, asked, .. }) = self.in_flight.remove(&tid) else {
            return raw::cont(tid, 0);
        };
        let whole = settle::with_part(now, &regs, restart.done);
        raw::set_regs(tid, &whole)?;
        if now.rax == asked.len && transfer::part(tid, &whole).is_some() {
            self.make_ready(tid, Restart { done: whole.rax, ..restart })?;
            return raw::syscall_step(tid, 0);
        }
        raw::cont(tid, 0)
    }

    /// A syscall-stop of a thread whose call was started again: at its return the program's
    /// arguments are put back.
    pub(super) fn step_restarted(&mut self, tid: i32) -> io::Result<()> {
        let Some(call) = self.in_flight.get_mut(&tid) else { return raw::cont(tid, 0) };
        let now = raw::regs(tid)?;
        let of_ours = (now.rip, now.rsp) == (call.regs.rip, call.regs.rsp);
        match call.stage {
            Stage::Entered if of_ours && call.restart.done > 0 => {
                return self.step_transfer(tid, &now);
            }
            Stage::Entered if of_ours => {
                raw::set_regs(tid, &settle::with_arguments(&now, &call.regs))?;
                if settle::cut_short(&now) || settle::starts_again(&now) {
                    call.stage = Stage::CutShort;
                    return raw::syscall_step(tid, 0);
                }
            }
            Stage::Asked if of_ours => {
                call.stage = Stage::Entered;
                return raw::syscall_step(tid, 0);
            }
            Stage::CutShort if of_ours && settle::is_restart(&now) => {
                call.stage = Stage::ByKernel;
                return raw::cont(tid, 0);
            }
            Stage::Asked | Stage::Entered | Stage::CutShort => {}
            // Nobody steps it.
            Stage::ByKernel => return raw::cont(tid, 0),
        }
        self.in_flight.remove(&tid);
        raw::cont(tid, 0)
    }
}

/// Runs `work` in a stopped thread, which stays stopped.
fn run_in<R>(pid: i32, work: impl FnOnce(&mut Remote) -> Result<R>) -> Result<R> {
    let view = View::read_process(pid)?;
    let mut remote = Remote::open(pid, view.ignores(libc::SIGTRAP))?;
    let worked = work(&mut remote);
    remote.close()?;
    worked
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::syscalls::handles::Handles;

    /// A session of one stopped process, of which it looks for `looked_for` in /proc.
    fn stopped(pid: i32, looked_for: i32) -> (Session, Frozen) {
        raw::seize(pid).expect("seize");
        raw::interrupt(pid).expect("interrupt");
        let stop = stop::wait(pid, true).expect("wait").expect("stop").stop;
        let dir = tempfile::tempdir().expect("dir");
        let handles = Handles::open(&dir.path().join("handles")).expect("handles");
        let mut session = Session::new(handles);
        session.begin(looked_for, [pid]);
        (session, Frozen { tid: pid, stop, asleep: None })
    }

    #[test]
    fn a_thread_that_cannot_be_asked_goes_on() {
        let mut child = Command::new("sleep").arg("100").spawn().expect("sleep");
        let pid = child.id() as i32;
        let (mut session, frozen) = stopped(pid, i32::MAX);
        let ways = session.ways_on(&[frozen], &SchedulerClocks::new());
        session.go_all(&ways).expect("resumed");
        let status = View::read_process(pid).expect("status");
        assert!(!status.field("State:").starts_with('t'), "{}", status.field("State:"));
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}
