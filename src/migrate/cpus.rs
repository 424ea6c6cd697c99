//! Visits to single CPUs: what only they can tell or do.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use super::resource::raw::{affinity, set_affinity};

/// Runs `work` on each of `cpus`, and then goes back to all that this thread may run on
/// (sched_setaffinity(2)). CPUs that it may not run on are left out.
pub fn visit(cpus: impl IntoIterator<Item = usize>, mut work: impl FnMut(usize)) {
    let mut cpus = cpus.into_iter().peekable();
    if cpus.peek().is_none() {
        return;
    }
    let Ok(own) = affinity(0) else { return };
    for cpu in cpus {
        let mut only = vec![0u64; cpu / 64 + 1];
        only[cpu / 64] = 1 << (cpu % 64);
        if set_affinity(0, &only).is_ok() {
            work(cpu);
        }
    }
    if let Err(e) = set_affinity(0, &own) {
        tracing::warn!("CPU affinity of the supervisor: {e}");
    }
}

/// All CPUs that a thread may be given here: those that are online and in the control group's set
/// (cpuset(7)), whatever this thread itself may run on.
///
/// # Errors
/// As sched_setaffinity(2).
pub fn machine() -> io::Result<Vec<u64>> {
    let own = affinity(0)?;
    set_affinity(0, &vec![u64::MAX; own.len()])?;
    let all = affinity(0);
    set_affinity(0, &own)?;
    all
}

thread_local! {
    /// All CPUs of the machine, in a thread that [remembers](remember) them.
    static MACHINE: RefCell<Option<Vec<u64>>> = const { RefCell::new(None) };
}

/// The calling thread, which is there for a moment only, asks once which CPUs there are.
pub fn remember() {
    MACHINE.set(machine().ok());
}

/// Are these all the CPUs that a thread may be given here?
#[must_use]
pub fn is_everywhere(mask: &[u64]) -> bool {
    let known = MACHINE.with_borrow(|all| all.as_ref().map(|all| all == mask));
    known.unwrap_or_else(|| machine().is_ok_and(|all| all == mask))
}

/// Numbers of the CPUs that a thread may be given here, whatever this thread may run on: the timers
/// of another one may be on any.
fn all() -> Vec<usize> {
    let mask = machine().unwrap_or_default();
    (0..mask.len() * 64).filter(|cpu| mask[cpu / 64] >> (cpu % 64) & 1 != 0).collect()
}

/// Sleeps as short as can be. One interrupt runs all timers of a CPU that are due
/// (hrtimer_interrupt, kernel/time/hrtimer.c), those that were due before included.
pub fn nap() {
    std::thread::sleep(Duration::from_micros(1));
}

/// Returns when every timer that was due at the call has expired: a CPU whose timer interrupt
/// is late, because it was idle or taken away by a hypervisor, has seen to it.
pub fn let_timers_expire() {
    visit(all(), |_| nap());
}
