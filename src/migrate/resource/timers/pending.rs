//! Timers whose signals are pending when the job is frozen.
//!
//! The kernel tells of such a timer neither when it was due nor how many periods its signal stands
//! for, until that is taken. So the signal is taken, and the timer is set to the time at which it
//! was due: it expires again at once, with the same overruns.

use std::collections::{BTreeMap, BTreeSet};

use super::super::signals::{in_queue, without};
use super::{ask_times, OWN_THREAD};
use super::{blocker, clock_of_thread, decode, encode, read, set, OnThread, Posix, State, Timer};
use crate::migrate::image::{ProcessImage, ThreadImage};
use crate::migrate::resource::{Part, PartError, View};
use crate::tracer::inject::{sigbit, Arg, Data, InjectError, Outcome, Program, Remote, Stub};
use crate::tracer::raw::{code_of, number_of, SigInfo};

/// When timers with a pending signal were due, by their id: on their clock, as the job sees it,
/// nanoseconds; `None`: the timer has no period, or is of CPU time.
pub type Overdue = BTreeMap<i32, Option<i64>>;

/// The timer that has sent a signal (`si_timerid` of sigaction(2)).
pub(super) fn timer_of(info: &[u8]) -> Option<i32> {
    let id = info.get(16..20)?.try_into().ok()?;
    (code_of(info) == libc::SI_TIMER).then_some(i32::from_le_bytes(id))
}

/// For how many periods it stands (`si_overrun`).
pub(super) fn periods(info: &[u8]) -> u64 {
    let overruns = info.get(20..24).and_then(|b| b.try_into().ok()).map_or(0, i32::from_le_bytes);
    1 + u64::try_from(overruns).unwrap_or(0)
}

/// Signals of timers that are queued for a thread, or, if it is the leader, for its process: ids by
/// signal.
fn queued_timers(view: &View) -> Result<BTreeMap<i32, BTreeSet<i32>>, PartError> {
    let mut all = in_queue(view, false)?;
    if view.pid == view.tid {
        all.extend(in_queue(view, true)?);
    }
    let mut found: BTreeMap<i32, BTreeSet<i32>> = BTreeMap::new();
    for info in &all {
        if let Some(id) = timer_of(info) {
            found.entry(number_of(info)).or_default().insert(id);
        }
    }
    Ok(found)
}

/// Is a signal of this timer pending for the thread, or for its process if it is the leader?
pub(super) fn is_queued(view: &View, id: i32) -> Result<bool, PartError> {
    Ok(queued_timers(view)?.values().flatten().any(|queued| *queued == id))
}

/// Is a signal of a timer pending for the thread, or for its process, that has not been measured?
///
/// # Errors
/// When the thread is gone.
pub fn is_unmeasured(view: &View, known: &Overdue) -> Result<bool, PartError> {
    let queued = queued_timers(view)?;
    Ok(queued.values().flatten().any(|id| !known.contains_key(id)))
}

/// Finds out about the timers whose signals are pending for this thread (`view`, in which `remote`
/// runs calls), or for its process if it is the leader, and are not known yet.
///
/// # Errors
/// When the thread is gone, or a call in it fails.
pub fn measure(
    view: &View,
    remote: &mut Remote,
    stub: &Stub,
    known: &mut Overdue,
) -> Result<(), PartError> {
    let mut queued = queued_timers(view)?;
    queued.retain(|_, ids| ids.iter().any(|id| !known.contains_key(id)));
    if queued.is_empty() {
        return Ok(());
    }
    let timers = read(view)?;
    for (signal, ids) in queued {
        let mut periodic = Vec::new();
        for mut timer in timers.iter().filter(|t| ids.contains(&t.id)).cloned() {
            if !timer.is_of_cpu_time() {
                ask_one(&mut timer, remote, stub)?;
                periodic.extend((timer.interval > 0).then_some(timer));
            }
        }
        known.extend(ids.iter().map(|id| (*id, None)));
        if !periodic.is_empty() {
            measure_signal(view, signal, &periodic, remote, stub, known)?;
        }
    }
    Ok(())
}

/// All timers that have sent `signal`.
fn measure_signal(
    view: &View,
    signal: i32,
    timers: &[Timer],
    remote: &mut Remote,
    stub: &Stub,
    known: &mut Overdue,
) -> Result<(), PartError> {
    let own = in_queue(view, false)?;
    let private = own.iter().filter(|info| number_of(&info[..]) == signal).count();
    let mut taken: BTreeMap<i32, u64> = BTreeMap::new();
    let mut others = Vec::new();
    let mut place = 0;
    let mut drain = |remote: &mut Remote, taken: &mut BTreeMap<i32, u64>| {
        while let Some(info) = dequeue(remote, stub, signal)? {
            let id = timer_of(&info).filter(|id| timers.iter().any(|t| t.id == *id));
            match id {
                Some(id) => *taken.entry(id).or_default() += periods(&info),
                None => others.push((info, place < private)),
            }
            place += 1;
        }
        Ok::<(), PartError>(())
    };
    drain(remote, &mut taken)?;
    for timer in timers {
        let mut timer = timer.clone();
        // It may expire once more before its time is asked for.
        let next = loop {
            let before = taken.clone();
            ask_one(&mut timer, remote, stub)?;
            drain(remote, &mut taken)?;
            if before == taken {
                break timer.at.saturating_add_unsigned(timer.left);
            }
        };
        let Some(periods) = taken.get(&timer.id) else { continue };
        let since = periods.saturating_mul(timer.interval);
        let due = next.saturating_sub_unsigned(since).max(1);
        let mut program = Program::default();
        set(&mut program, &timer, (libc::TIMER_ABSTIME, due as u64));
        remote.run(stub, program)?.all_ok()?;
        known.insert(timer.id, Some(due));
    }
    for (info, private) in others {
        remote.queue(stub, &info, private)?;
    }
    Ok(())
}

pub(super) fn ask_one(
    timer: &mut Timer,
    remote: &mut Remote,
    stub: &Stub,
) -> Result<(), PartError> {
    let mut program = Program::default();
    let asked = ask_times(&mut program, timer);
    let outcome = remote.run(stub, program)?;
    timer.take_times(&outcome, &asked)
}

/// Takes a blocked signal out of the queues, the thread's own before the process's; `None`: there
/// is none.
///
/// # Errors
/// When the call in the thread fails.
pub(crate) fn dequeue(
    remote: &mut Remote,
    stub: &Stub,
    signal: i32,
) -> Result<Option<SigInfo>, InjectError> {
    let mut program = Program::default();
    let asked = take_signal(&mut program, signal, 0);
    taken(&remote.run(stub, program)?, asked)
}

/// Puts the call into `program` that takes a signal, for which it waits so many seconds.
pub(super) fn take_signal(program: &mut Program, signal: i32, seconds: u64) -> (usize, Data) {
    let set = Arg::Data(program.data(&sigbit(signal).to_le_bytes()));
    let patience = Arg::Data(program.data(&[seconds.to_le_bytes(), [0; 8]].concat()));
    let at = program.data(&[0; 128]);
    let args = [set, Arg::Data(at), patience, Arg::Num(8)];
    (program.call(libc::SYS_rt_sigtimedwait, "rt_sigtimedwait", &args), at)
}

/// What [`take_signal`] has taken, if anything.
pub(super) fn taken(
    outcome: &Outcome,
    (row, at): (usize, Data),
) -> Result<Option<SigInfo>, InjectError> {
    if outcome.raw(row) == -i64::from(libc::EAGAIN) {
        return Ok(None);
    }
    outcome.get(row)?;
    let mut info = [0; 128];
    info.copy_from_slice(outcome.data(at));
    Ok(Some(info))
}

/// Takes all of a blocked signal that waits for the thread of `view` and its process, each with whether
/// it is the thread's own.
///
/// # Errors
/// When the queue cannot be read, or the call in the thread fails.
pub(crate) fn dequeue_all(
    view: &View,
    remote: &mut Remote,
    stub: &Stub,
    signal: i32,
) -> Result<Vec<(SigInfo, bool)>, PartError> {
    let own = in_queue(view, false)?;
    let private = own.iter().filter(|info| number_of(&info[..]) == signal).count();
    let mut all = Vec::new();
    while let Some(info) = dequeue(remote, stub, signal)? {
        all.push((info, all.len() < private));
    }
    Ok(all)
}

/// Puts into an image what the threads have told of the process's timers, and `overdue`. The signals
/// of those timers are left out: the timers will send them again.
///
/// # Errors
/// When a timer runs on the CPU time of a thread that is not known.
pub fn join(image: &mut ProcessImage, overdue: &Overdue) -> Result<(), PartError> {
    let ProcessImage { parts, threads, .. } = image;
    let Some(part) = parts.iter_mut().find(|part| part.name == Posix.name()) else {
        return Ok(());
    };
    let mut state: State = decode(Posix.name(), &part.state)?;
    if state.timers.is_empty() {
        return Ok(());
    }
    let mut owners: BTreeMap<i32, i32> = BTreeMap::new();
    for thread in threads.iter() {
        let own = thread.parts.iter().find(|part| part.name == OnThread.name());
        let own: Vec<i32> =
            own.map_or(Ok(Vec::new()), |part| decode(OnThread.name(), &part.state))?;
        owners.extend(own.into_iter().map(|id| (id, thread.tid)));
    }
    for timer in &mut state.timers {
        timer.due = overdue.get(&timer.id).copied().flatten();
        if timer.clock == OWN_THREAD && threads.len() > 1 {
            timer.clock = clock_of_thread(owner_of(timer, &owners, threads)?);
        }
    }
    part.state = encode(Posix.name(), &state)?;
    threads.iter_mut().try_for_each(|thread| {
        let again = |id| overdue.get(&id).is_some_and(Option::is_some);
        without(thread, |info| timer_of(info).is_some_and(again))
    })
}

/// The thread on whose CPU time a timer runs. One that is not set says it by nothing but the thread
/// that it tells.
fn owner_of(
    timer: &Timer,
    owners: &BTreeMap<i32, i32>,
    threads: &[ThreadImage],
) -> Result<i32, PartError> {
    let told = || threads.iter().map(|t| t.tid).find(|tid| *tid == timer.thread);
    // It told a thread that is gone, and nobody can set it any more.
    let gone = timer.notify == libc::SIGEV_NONE && timer.left == 0;
    let leader = || threads.first().filter(|_| gone).map(|t| t.tid);
    owners.get(&timer.id).copied().or_else(told).or_else(leader).ok_or_else(|| {
        PartError::Refused(Box::new(blocker(
            "VOS-TIMER",
            format!("timer {}", timer.id),
            "it is not set, and the kernel does not tell on which thread's CPU time it runs",
            "let the program set the timer, or delete it",
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_timer_says_in_its_signal() {
        let mut info = [0u8; 128];
        assert_eq!(timer_of(&info), None);
        info[8..12].copy_from_slice(&libc::SI_TIMER.to_le_bytes());
        info[16..20].copy_from_slice(&7i32.to_le_bytes());
        info[20..24].copy_from_slice(&3i32.to_le_bytes());
        assert_eq!((timer_of(&info), periods(&info)), (Some(7), 4));
    }
}
