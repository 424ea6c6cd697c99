//! Tracer and tracee on one CPU while many stops follow each other.
//!
//! A stop wakes the tracer and a resume wakes the tracee. When the two run on different CPUs,
//! each wake-up is an interrupt to the other CPU, 10 to 50 times as dear as a switch on the
//! same one. The tracee's own mask is given back before it runs as the job.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use super::cpus;
use super::resource::raw::{affinity, set_affinity};

/// What is known while a [`Near`] lives.
#[derive(Debug)]
struct Stay {
    /// What this thread was allowed before.
    before: Vec<u64>,
    /// What threads that are fetched were allowed.
    fetched: BTreeMap<i32, Vec<u64>>,
    /// All CPUs of the machine, once they have been asked for.
    machine: Option<Vec<u64>>,
}

thread_local! {
    static STAY: RefCell<Option<Stay>> = const { RefCell::new(None) };
}

/// As long as it lives, the calling thread stays on the CPU where it was. Where the kernel
/// refuses, nothing changes but the speed.
#[derive(Debug)]
pub struct Near {
    cpu: Vec<u64>,
}

impl Near {
    /// Stays on the present CPU. `None` when a [`Near`] lives already or the kernel refuses.
    #[must_use]
    pub fn stay() -> Option<Self> {
        if STAY.with_borrow(Option::is_some) {
            return None;
        }
        let before = affinity(0).ok()?;
        let number = nix::sched::sched_getcpu().ok()?;
        let mut cpu = vec![0; before.len()];
        *cpu.get_mut(number / 64)? |= 1 << (number % 64);
        set_affinity(0, &cpu).ok()?;
        STAY.set(Some(Stay { before, fetched: BTreeMap::new(), machine: None }));
        Some(Self { cpu })
    }

    /// Brings a stopped thread to this CPU until the answer is dropped; with it go the threads
    /// that it makes. `None`: it was left where it is.
    #[must_use]
    pub fn fetch(&self, tid: i32) -> Option<Fetched> {
        let before = affinity(tid).ok()?;
        set_affinity(tid, &self.cpu).ok()?;
        with_stay(|stay| stay.fetched.insert(tid, before.clone()));
        Some(Fetched { tid, before })
    }
}

/// A thread away from its own CPUs.
#[derive(Debug)]
pub struct Fetched {
    tid: i32,
    before: Vec<u64>,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        with_stay(|stay| stay.fetched.remove(&self.tid));
        give_mask(self.tid, &self.before);
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        if let Some(stay) = STAY.take() {
            give_mask(0, &stay.before);
        }
    }
}

fn give_mask(tid: i32, mask: &[u64]) {
    if let Err(e) = set_affinity(tid, mask) {
        tracing::debug!("affinity of thread {tid}: {e}");
    }
}

fn with_stay<T>(change: impl FnOnce(&mut Stay) -> T) -> Option<T> {
    STAY.with_borrow_mut(|stay| stay.as_mut().map(change))
}

/// The CPUs that this thread is allowed, apart from [`Near`].
///
/// # Errors
/// As sched_getaffinity(2).
pub fn own_mask() -> io::Result<Vec<u64>> {
    with_stay(|stay| stay.before.clone()).map_or_else(|| affinity(0), Ok)
}

/// The CPUs that a thread is allowed, apart from [`Near::fetch`].
///
/// # Errors
/// As sched_getaffinity(2).
pub fn mask_of(tid: i32) -> io::Result<Vec<u64>> {
    let known = with_stay(|stay| stay.fetched.get(&tid).cloned()).flatten();
    known.map_or_else(|| affinity(tid), Ok)
}

/// Are these all CPUs of the machine? That is found out once while a [`Near`] lives.
#[must_use]
pub fn is_everywhere(mask: &[u64]) -> bool {
    let known = with_stay(|stay| stay.machine.as_ref().map(|all| all == mask)).flatten();
    known.unwrap_or_else(|| {
        let Ok(all) = cpus::machine() else { return false };
        let everywhere = all == mask;
        with_stay(|stay| stay.machine = Some(all));
        everywhere
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_come_back() {
        let own = affinity(0).unwrap();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let tid = child.id() as i32;
        let theirs = affinity(tid).unwrap();
        let near = Near::stay().unwrap();
        assert!(Near::stay().is_none());
        let ones = |mask: &[u64]| mask.iter().map(|w| w.count_ones()).sum::<u32>();
        assert_eq!((ones(&affinity(0).unwrap()), own_mask().unwrap()), (1, own.clone()));
        let fetched = near.fetch(tid).unwrap();
        assert_eq!(ones(&affinity(tid).unwrap()), 1);
        assert_eq!(mask_of(tid).unwrap(), theirs);
        let all = cpus::machine().unwrap();
        assert!(is_everywhere(&all) && is_everywhere(&all) && !is_everywhere(&all[1..]));
        drop(fetched);
        drop(near);
        assert_eq!((affinity(0).unwrap(), affinity(tid).unwrap()), (own, theirs));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
