//! What timer_getoverrun(2) tells between two signals of a timer: the overruns of the last one.
//!
//! timer_settime(2) makes it 0, and it becomes another number only when a signal is taken. So the
//! timer is set so far in the past that one signal stands for as many periods, and this is taken.
//! The timer goes on with the period in which it was.

use std::collections::VecDeque;

use super::super::signals::in_queue;
use super::pending::{ask_one, dequeue, is_queued, periods, timer_of};
use super::{decode, set, Part, PartError, Posix, State, Timer};
use crate::migrate::image::ProcessImage;
use crate::migrate::resource::View;
use crate::tracer::inject::{comes_with_trap, sigbit, Arg, Program, Remote, Stub};
use crate::tracer::raw::{number_of, SigInfo};

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
    let Some(part) = image.parts.iter().find(|part| part.name == Posix.name()) else {
        return Ok(Vec::new());
    };
    let State { timers, .. } = decode(Posix.name(), &part.state)?;
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
    let private =
        in_queue(view, false)?.iter().filter(|i| number_of(&i[..]) == timer.signal).count();
    let mut others: VecDeque<(SigInfo, bool)> = VecDeque::new();
    while let Some(info) = dequeue(remote, stub, timer.signal)? {
        let place = others.len();
        others.push_back((info, place < private));
    }
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
    let wanted = Arg::Data(program.data(&sigbit(timer.signal).to_le_bytes()));
    let patience = [PATIENCE_S.to_le_bytes(), [0; 8]].concat();
    let patience = Arg::Data(program.data(&patience));
    let mut info = [0; 128];
    let at = program.data(&info);
    let args = [wanted, Arg::Data(at), patience, Arg::Num(8)];
    let row = program.call(libc::SYS_rt_sigtimedwait, "rt_sigtimedwait", &args);
    let outcome = remote.run(stub, program)?;
    if outcome.raw(row) == -i64::from(libc::EAGAIN) {
        return Ok(None);
    }
    outcome.all_ok()?;
    info.copy_from_slice(outcome.data(at));
    Ok(Some(info))
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
