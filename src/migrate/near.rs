//! Tracer and tracee on one CPU while many stops follow each other.
//!
//! A stop wakes the tracer and a resume wakes the tracee. When the two run on different CPUs,
//! each wake-up is an interrupt to the other CPU, 10 to 50 times as dear as a switch on the
//! same one. The tracee's own mask is given back before it runs as the job.

use std::cell::RefCell;

use super::resource::raw::{affinity, set_affinity};

thread_local! {
    /// What this thread was allowed before [`Near::stay`].
    static BEFORE: RefCell<Option<Vec<u64>>> = const { RefCell::new(None) };
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
        if BEFORE.with_borrow(Option::is_some) {
            return None;
        }
        let before = affinity(0).ok()?;
        let number = nix::sched::sched_getcpu().ok()?;
        let mut cpu = vec![0; before.len()];
        *cpu.get_mut(number / 64)? |= 1 << (number % 64);
        set_affinity(0, &cpu).ok()?;
        BEFORE.set(Some(before));
        Some(Self { cpu })
    }

    /// Brings a stopped thread to this CPU until the answer is dropped; with it go the threads
    /// that it makes. `None`: it was left where it is.
    #[must_use]
    pub fn fetch(&self, tid: i32) -> Option<Fetched> {
        let before = affinity(tid).ok()?;
        set_affinity(tid, &self.cpu).ok()?;
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
        give_mask(self.tid, &self.before);
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        if let Some(before) = BEFORE.take() {
            give_mask(0, &before);
        }
    }
}

fn give_mask(tid: i32, mask: &[u64]) {
    if let Err(e) = set_affinity(tid, mask) {
        tracing::debug!("affinity of thread {tid}: {e}");
    }
}

/// The CPUs that this thread is allowed, apart from [`Near`].
///
/// # Errors
/// As sched_getaffinity(2).
pub fn own_mask() -> std::io::Result<Vec<u64>> {
    BEFORE.with_borrow(Clone::clone).map_or_else(|| affinity(0), Ok)
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
        drop(fetched);
        drop(near);
        assert_eq!((affinity(0).unwrap(), affinity(tid).unwrap()), (own, theirs));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
