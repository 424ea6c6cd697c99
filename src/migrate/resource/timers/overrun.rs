//! What timer_getoverrun(2) tells between two signals of a timer: the overruns of the last one.
//!
//! timer_settime(2) makes it 0, and it becomes another number only when a signal is taken. So the
//! timer is set so far in the past that one signal stands for as many periods, and this is taken.
//! The timer goes on with the period in which it was.

use super::absolute::state_of;
use super::pending::{ask_one, dequeue_all, is_queued, periods, take_signal, taken, timer_of};
use super::{set, PartError, State, Timer};
use crate::migrate::image::ProcessImage;
use crate::migrate::resource::View;
use crate::tracer::inject::{comes_with_trap, Arg, Program, Remote, Stub};
use crate::tracer::raw::SigInfo;

/// Puts the question into `program`; gives its row.
pub(super) fn ask(program: &mut Program, id: i32) -> usize {
    program.call(libc::SYS_timer_getoverrun, "timer_getoverrun", &[Arg::Num(id as u64)])
}

impl Timer {
    /// Is there something to count, and can it be? A timer on CPU time would have to have been
    /// running for as long.
    fn counts(&self) -> bool {
        let tells = self.notify != libc::SIGEV_NONE && self.signal > 0;
        let trap = comes_with_trap(&self.signal.to_le_bytes());
        self.overruns > 0
            && self.left > 0
            && self.interval > 0
            && self.due.is_none()
            && !self.is_of_cpu_time()
            && tells
            && !trap
    }
}

/// The timers of a new process that have something to count, each with the thread (host tid) that
/// takes its signals.
fn counting(pid: i32, image: &ProcessImage, tids: &[i32]) -> Result<Vec<(Timer, i32)>, PartError> {
    let Some((_, State { timers, .. })) = state_of(image)? else { return Ok(Vec::new()) };
    let told = |timer: &Timer| {
        let place = image.threads.iter().position(|thread| thread.tid == timer.thread);
        place.and_then(|place| tids.get(place)).copied().unwrap_or(pid)
    };
    let counting = timers.into_iter().filter(Timer::counts);
    Ok(counting.map(|timer| (timer.clone(), told(&timer))).collect())
}

/// Has the timers of a stopped new process (host pid; its threads in the order of the image) tell
/// their overruns again. `with` borrows a thread of it.
///
/// # Errors
/// When a call cannot be made in it.
pub fn count_again(
    pid: i32,
    image: &ProcessImage,
    tids: &[i32],
    with: impl Fn(
        i32,
        &mut dyn FnMut(&mut Remote, &Stub) -> Result<(), PartError>,
    ) -> Result<(), PartError>,
) -> Result<(), PartError> {
    for (timer, tid) in counting(pid, image, tids)? {
        let what = || format!("status of thread {tid}");
        let view = View::read(pid, tid).map_err(|source| PartError::Io { what: what(), source })?;
        with(tid, &mut |remote, stub| count(&view, &timer, remote, stub))?;
    }
    Ok(())
}

/// One timer. What else waits of the same signal is queued again as it was.
fn count(view: &View, timer: &Timer, remote: &mut Remote, stub: &Stub) -> Result<(), PartError> {
    if is_queued(view, timer.id)? {
        // It has expired again: its next signal tells another number.
        return Ok(());
    }
    let others = dequeue_all(view, remote, stub, timer.signal)?;
    let counted = expire(timer, remote, stub);
    for (info, private) in others {
        remote.queue(stub, &info, private)?;
    }
    counted
}

/// Lets the timer expire with its overruns, and takes the signal. If it does so with others, the
/// next time has come meanwhile: that is made as if nothing had been tried.
fn expire(timer: &Timer, remote: &mut Remote, stub: &Stub) -> Result<(), PartError> {
    let mut now = timer.clone();
    ask_one(&mut now, remote, stub)?;
    let next = now.at.saturating_add_unsigned(now.left);
    let wanted = 1 + u64::from(timer.overruns.unsigned_abs());
    let since = wanted.checked_mul(timer.interval).and_then(|since| i64::try_from(since).ok());
    let Some(begin) = since.map(|since| next.saturating_sub(since)).filter(|begin| *begin > 0)
    else {
        return Ok(());
    };
    let taken = take_one(&now, begin, remote, stub)?;
    let is_it = |info: &SigInfo| timer_of(info) == Some(timer.id) && periods(info) == wanted;
    if taken.is_none_or(|info| !is_it(&info)) {
        let mut program = Program::default();
        set(&mut program, &now, (libc::TIMER_ABSTIME, next as u64));
        remote.run(stub, program)?.all_ok()?;
    }
    Ok(())
}

/// Sets the timer to a time that is over, and waits for its signal.
fn take_one(
    timer: &Timer,
    begin: i64,
    remote: &mut Remote,
    stub: &Stub,
) -> Result<Option<SigInfo>, PartError> {
    // It comes at once; this is how long a busy machine may take for it.
    const PATIENCE_S: u64 = 5;
    let mut program = Program::default();
    set(&mut program, timer, (libc::TIMER_ABSTIME, begin as u64));
    let asked = take_signal(&mut program, timer.signal, PATIENCE_S);
    let outcome = remote.run(stub, program)?;
    let info = taken(&outcome, asked)?;
    if info.is_some() {
        outcome.all_ok()?;
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_timers_count() {
        let timer = Timer {
            signal: libc::SIGALRM,
            clock: libc::CLOCK_MONOTONIC,
            interval: 100,
            left: 50,
            overruns: 3,
            ..Timer::default()
        };
        assert!(timer.counts());
        let others = [
            Timer { overruns: 0, ..timer.clone() },
            Timer { left: 0, ..timer.clone() },
            Timer { due: Some(7), ..timer.clone() },
            Timer { clock: -6, ..timer.clone() },
            Timer { notify: libc::SIGEV_NONE, ..timer.clone() },
            Timer { signal: libc::SIGSEGV, ..timer.clone() },
        ];
        others.iter().for_each(|other| assert!(!other.counts(), "{other:?}"));
    }
}
