//! Numbers of a job that has no pid namespace: what the job knows, and what this kernel knows.
//!
//! Process, thread, group and session numbers are one space, in the kernel as here. A supervisor
//! has one job and one thread, so there is one table for each thread of a process (another one that
//! reads for it takes a copy); while there is none, all numbers are the kernel's.
//!
//! As in a pid namespace, who is not of the job has no number in it (0), and a number that nobody
//! has in the job is nobody's.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::ptys::Ptys;
use crate::migrate::image::Clocks;

/// No process has this number: it is above every `kernel.pid_max`.
pub const NOBODY: i32 = i32::MAX - 1;

/// The first number that is given to a new thread whose own is taken (RESERVED_PIDS of the kernel).
const FIRST: i32 = 300;

/// The table of one job.
#[derive(Debug, Clone, Default)]
struct Numbers {
    /// By the job's number.
    to_host: BTreeMap<i32, i32>,
    /// By the kernel's number.
    to_job: BTreeMap<i32, i32>,
    /// Where the search for a free number begins.
    next: i32,
    /// By how much the job's clocks are ahead of those here, nanoseconds.
    ahead: Clocks,
    /// At this size the table is looked through for numbers that are nobody's any more.
    sweep_at: usize,
    /// The kernel's numbers of processes that are not dumpable in their own eyes.
    hidden: BTreeSet<i32>,
    ptys: Ptys,
}

thread_local! {
    static TABLE: RefCell<Option<Numbers>> = const { RefCell::new(None) };
}

impl Numbers {
    fn bind(&mut self, job: i32, host: i32) {
        self.forget(host);
        if let Some(other) = self.to_host.insert(job, host) {
            self.to_job.remove(&other);
        }
        self.to_job.insert(host, job);
    }

    fn forget(&mut self, host: i32) {
        if let Some(job) = self.to_job.remove(&host) {
            if self.to_host.get(&job) == Some(&host) {
                self.to_host.remove(&job);
            }
        }
    }

    /// A number for a new thread: its own if the job does not know that one.
    fn born(&mut self, host: i32) -> i32 {
        self.forget(host);
        let mut job = host;
        if self.to_host.contains_key(&job) {
            job = self.next.max(FIRST);
            while self.to_host.contains_key(&job) {
                job += 1;
            }
            self.next = job + 1;
        }
        self.bind(job, host);
        job
    }
}

/// Begins an empty table: the job of this supervisor has no namespaces here, and clocks that are
/// ahead by so many nanoseconds.
pub fn begin(ahead: Clocks) {
    let numbers = Numbers { sweep_at: 1000, ahead, ..Numbers::default() };
    TABLE.set(Some(numbers));
    super::objects::begin();
}

/// The job is not here any more.
pub fn end() {
    TABLE.set(None);
    super::objects::end();
}

/// Has the job of this supervisor numbers of its own?
#[must_use]
pub fn are_own() -> bool {
    TABLE.with_borrow(Option::is_some)
}

/// A copy of the table, for another thread of the supervisor.
#[derive(Debug)]
pub struct Copied(Option<Numbers>);

/// Copies the table of this thread.
#[must_use]
pub fn copied() -> Copied {
    TABLE.with_borrow(|table| Copied(table.clone()))
}

impl Copied {
    /// The calling thread reads the numbers of the same job, as they were.
    pub fn take(self) {
        TABLE.set(self.0);
    }
}

/// Notes that the job knows process or thread `host` as `job`.
pub fn bind(job: i32, host: i32) {
    TABLE.with_borrow_mut(|table| {
        if let Some(numbers) = table {
            numbers.bind(job, host);
        }
    });
}

/// Notes that `host`, which has ended, stood for process `job`, which has ended too: what it has left
/// behind tells of it (SO_PEERCRED of unix(7)).
pub fn stood_for(job: i32, host: i32) {
    TABLE.with_borrow_mut(|table| {
        if let Some(numbers) = table {
            numbers.forget(host);
            numbers.to_job.insert(host, job);
        }
    });
}

/// Notes whether process `host` is dumpable in its own eyes (PR_SET_DUMPABLE of prctl(2)). It is in
/// truth, because an ordinary user could not read what its calls carry otherwise.
pub fn hide(host: i32, hidden: bool) {
    TABLE.with_borrow_mut(|table| {
        if let Some(numbers) = table {
            if hidden {
                numbers.hidden.insert(host);
            } else {
                numbers.hidden.remove(&host);
            }
        }
    });
}

/// Do processes of this job that are not dumpable only [seem so](hide)? A privileged tracer may look
/// into any.
#[must_use]
pub fn only_seem_hidden() -> bool {
    are_own() && !nix::unistd::geteuid().is_root()
}

/// Is process `host` dumpable only in truth ([`hide`])?
#[must_use]
pub fn is_hidden(host: i32) -> bool {
    TABLE.with_borrow(|table| table.as_ref().is_some_and(|n| n.hidden.contains(&host)))
}

/// A new process or thread gets a number.
pub fn born(host: i32) {
    TABLE.with_borrow_mut(|table| {
        if let Some(numbers) = table {
            numbers.born(host);
        }
    });
}

/// The job's number of `host`; 0: it has none.
#[must_use]
pub fn to_job(host: i32) -> i32 {
    TABLE.with_borrow(|table| match table {
        Some(numbers) => numbers.to_job.get(&host).copied().unwrap_or(0),
        None => host,
    })
}

/// The kernel's number of the job's `job`; [`NOBODY`]: the job knows no such one. Numbers up to 0
/// are no numbers of anybody and stay.
#[must_use]
pub fn to_host(job: i32) -> i32 {
    TABLE.with_borrow(|table| match table {
        Some(numbers) if job > 0 => numbers.to_host.get(&job).copied().unwrap_or(NOBODY),
        _ => job,
    })
}

/// As [`to_host`] where a negative number stands for a group (kill(2)).
#[must_use]
pub fn to_host_signed(job: i32) -> i32 {
    match job {
        ..-1 => -to_host(-job),
        _ => to_host(job),
    }
}

/// As [`to_job`] where a negative number stands for a group (F_GETOWN of fcntl(2)).
#[must_use]
pub fn to_job_signed(host: i32) -> i32 {
    match host {
        ..0 => -to_job(-host),
        _ => to_job(host),
    }
}

/// By how much a clock of the job is ahead of the one here, nanoseconds; 0 for those that are the
/// machine's, or that the kernel itself keeps for the job.
#[must_use]
pub fn clock_ahead(clock: i32) -> i64 {
    let ahead = TABLE.with_borrow(|table| table.as_ref()?.ahead.of(clock));
    i64::try_from(ahead.unwrap_or(0)).unwrap_or(0)
}

/// Asks the table of the job's ptys. `None`: their numbers are the kernel's.
pub(super) fn with_ptys<R>(ask: impl FnOnce(&mut Ptys) -> R) -> Option<R> {
    TABLE.with_borrow_mut(|table| table.as_mut().map(|numbers| ask(&mut numbers.ptys)))
}

/// The table: the job's numbers and the kernel's.
#[must_use]
pub fn all() -> Vec<(i32, i32)> {
    TABLE
        .with_borrow(|table| {
            table.as_ref().map(|n| n.to_host.iter().map(|(job, host)| (*job, *host)).collect())
        })
        .unwrap_or_default()
}

/// The kernel's numbers of all that the job knows.
#[must_use]
pub fn hosts() -> Vec<i32> {
    TABLE.with_borrow(|table| {
        table.as_ref().map(|n| n.to_job.keys().copied().collect()).unwrap_or_default()
    })
}

/// Is it time to [`sweep`]?
#[must_use]
pub fn are_many() -> bool {
    TABLE.with_borrow(|table| table.as_ref().is_some_and(|n| n.to_job.len() >= n.sweep_at))
}

/// Forgets the numbers of who is gone; `used` are groups and sessions that have members.
pub fn sweep(used: &BTreeSet<i32>) {
    let lives = |host: i32| used.contains(&host) || Path::new(&format!("/proc/{host}")).exists();
    let gone: Vec<i32> = hosts().into_iter().filter(|host| !lives(*host)).collect();
    TABLE.with_borrow_mut(|table| {
        if let Some(numbers) = table {
            gone.into_iter().for_each(|host| numbers.forget(host));
            numbers.sweep_at = 1000 + 2 * numbers.to_job.len();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_table_numbers_are_the_kernels() {
        end();
        assert_eq!((to_job(7), to_host(7), to_host_signed(-7)), (7, 7, -7));
        assert!(!are_own());
    }

    #[test]
    fn numbers_go_both_ways_and_strangers_have_none() {
        begin(Clocks::default());
        bind(10, 5000);
        bind(1, 4000);
        assert_eq!((to_job(5000), to_host(10), to_job(1)), (10, 5000, 0));
        assert_eq!((to_host(5000), to_host(0), to_host(-1)), (NOBODY, 0, -1));
        assert_eq!((to_host_signed(-10), to_host_signed(-1)), (-5000, -1));
        assert_eq!((to_host_signed(-77), to_job_signed(-5000)), (-NOBODY, -10));
        end();
    }

    #[test]
    fn who_is_born_keeps_its_number_if_it_is_free() {
        begin(Clocks::default());
        bind(5000, 6000);
        born(7000);
        assert_eq!(to_job(7000), 7000);
        born(5000);
        assert_eq!((to_job(5000), to_host(FIRST), to_host(5000)), (FIRST, 5000, 6000));
        // The kernel has given the number of one that is gone to another.
        born(6000);
        assert_eq!((to_job(6000), to_host(6000), to_host(5000)), (6000, 6000, NOBODY));
        end();
    }

    #[test]
    fn the_dead_are_told_of_and_not_reached() {
        begin(Clocks::default());
        bind(10, 5000);
        for host in [6000, 7000] {
            stood_for(20, host);
        }
        assert_eq!((to_job(6000), to_job(7000), to_host(20)), (20, 20, NOBODY));
        // The kernel has given one of the numbers to another process.
        bind(11, 6000);
        assert_eq!((to_job(6000), to_host(11), to_job(7000)), (11, 6000, 20));
        sweep(&BTreeSet::from([5000, 6000]));
        assert_eq!((to_job(7000), to_job(5000)), (0, 10));
        end();
    }

    #[test]
    fn who_hides_is_known_as_long_as_there_is_a_table() {
        begin(Clocks::default());
        hide(5000, true);
        hide(6000, true);
        hide(6000, false);
        assert_eq!((is_hidden(5000), is_hidden(6000)), (true, false));
        begin(Clocks::default());
        assert!(!is_hidden(5000));
        end();
        hide(5000, true);
        assert!(!is_hidden(5000));
    }

    #[test]
    fn another_thread_knows_the_numbers_when_it_takes_a_copy() {
        begin(Clocks::default());
        bind(10, 5000);
        let copy = copied();
        let other = std::thread::spawn(|| {
            let before = to_job(5000);
            copy.take();
            (before, to_job(5000), are_own())
        });
        assert_eq!(other.join().expect("thread"), (5000, 10, true));
        end();
    }

    #[test]
    fn numbers_of_the_dead_are_forgotten_unless_a_group_has_them() {
        begin(Clocks::default());
        let own = std::process::id() as i32;
        bind(1, own);
        bind(2, NOBODY - 1);
        bind(3, NOBODY - 2);
        sweep(&BTreeSet::from([NOBODY - 2]));
        assert_eq!((to_host(1), to_host(2), to_host(3)), (own, NOBODY, NOBODY - 2));
        end();
    }
}
