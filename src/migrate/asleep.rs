//! Threads that sleep in a call, seen before they are stopped, and for how long they have.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::cpus;
use super::settle::timeout_of;
use crate::tracer::memory::{read_proc, read_record, stat_field};

/// A thread asleep, seen before it was stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asleep {
    /// Scheduler clock of that CPU when it last ran there, nanoseconds.
    pub(super) since: u64,
    /// The CPU it last ran on.
    pub(super) cpu: usize,
    switches: u64,
    /// A process that is not dumpable does not tell.
    pub(super) call: Option<Call>,
}

/// A call as `/proc/PID/syscall` shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Call {
    /// Its number; when the kernel has started it again, the one of the call that it was.
    pub(super) nr: i64,
    pub(super) args: [u64; 6],
}

/// The scheduler's clock at the freeze, by CPU, nanoseconds.
pub type SchedulerClocks = BTreeMap<usize, u64>;

/// `field : value` of a sched file, nanoseconds for times (written in milliseconds).
fn sched_field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

/// The call of `/proc/PID/syscall`, if it has a timeout that a move would lose, or was started
/// again by the kernel. `dir` is the thread's folder in /proc.
fn call_with_timeout(text: &str, dir: &str) -> Option<Call> {
    let mut words = text.split_whitespace();
    let mut nr: i64 = words.next()?.parse().ok()?;
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
    }
    if nr == libc::SYS_restart_syscall {
        nr = started_again(&read_proc(&format!("{dir}/wchan")).ok()?, &args)?;
    } else {
        timeout_of(nr, &args)?;
    }
    Some(Call { nr, args })
}

/// Which call a thread is in that the kernel has started again, by the kernel function where it
/// waits (`/proc/PID/wchan`). Only these have a restart block of their own (`set_restart_fn` in
/// the kernel): poll, futex, nanosleep and clock_nanosleep.
fn started_again(wchan: &str, args: &[u64; 6]) -> Option<i64> {
    const MOST_CLOCKS: i32 = 16;
    match wchan.trim() {
        // It runs, or the kernel does not tell.
        "" | "0" => None,
        name if name.contains("poll") => Some(libc::SYS_poll),
        name if name.contains("futex") => Some(libc::SYS_futex),
        // The first argument is a clock (negative: of a process or a device), or an address.
        _ if args[0] >> 32 == 0 && (args[0] as i32) < MOST_CLOCKS => {
            Some(libc::SYS_clock_nanosleep)
        }
        _ => Some(libc::SYS_nanosleep),
    }
}

/// Is this a call which a stop ends, and others can count those who wait in it (`GETNCNT` and
/// `GETZCNT` of semctl(2))?
#[must_use]
pub fn is_counted(nr: i64) -> bool {
    [libc::SYS_semop, libc::SYS_semtimedop].contains(&nr)
}

/// What is seen of a thread before it is stopped.
#[derive(Debug)]
pub struct Looked {
    /// `None` when it does not sleep in a call with a timeout that a move would lose, or this
    /// kernel has no such file.
    pub asleep: Option<Asleep>,
    /// See [`is_counted`].
    pub is_counted: bool,
}

impl Looked {
    /// Looks at a running thread.
    #[must_use]
    pub fn at(pid: i32, tid: i32) -> Self {
        let dir = format!("/proc/{pid}/task/{tid}");
        let read = || read_record(&format!("{dir}/syscall"));
        let call = |text: io::Result<String>| match text {
            Ok(text) => call_with_timeout(&text, &dir).map(Some),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Some(None),
            Err(_) => None,
        };
        let first = read();
        let is_counted = first.as_ref().is_ok_and(|text| {
            let nr = text.split(' ').next().and_then(|nr| nr.parse().ok());
            nr.is_some_and(is_counted)
        });
        let asleep = || {
            // Most have no timeout.
            call(first)?;
            let before = last_run(&dir)?;
            let call = call(read())?;
            let cpu = cpu_of_sleeper(&dir)?;
            // One that is just woken has another CPU already and the old one's time, which is made
            // anew when it is there (TASK_WAKING, ENQUEUE_MIGRATED in kernel/sched): it is asleep no
            // more, and was not when the CPU was read, maybe.
            cpu_of_sleeper(&dir).filter(|now| *now == cpu)?;
            let (since, switches) = last_run(&dir).filter(|now| *now == before)?;
            Some(Asleep { since, cpu, switches, call })
        };
        Self { is_counted, asleep: asleep() }
    }
}

impl Asleep {
    /// Itself, if the thread went from that sleep straight into the stop in which it is now.
    #[must_use]
    pub fn until_stop(self, pid: i32, tid: i32) -> Option<Self> {
        let (_, now) = last_run(&format!("/proc/{pid}/task/{tid}"))?;
        (now == self.switches + 1).then_some(self)
    }
}

/// Scheduler clock when a thread last ran, nanoseconds, and how often it went to sleep. The
/// clock is 0 between a wake-up on another CPU and the first run there
/// (migrate_task_rq_fair, kernel/sched/fair.c), which tells nothing.
fn last_run(dir: &str) -> Option<(u64, u64)> {
    let sched = read_record(&format!("{dir}/sched")).ok()?;
    let since = (sched_field(&sched, "se.exec_start")? * 1e6) as u64;
    let switches = sched_field(&sched, "nr_voluntary_switches")? as u64;
    (since > 0).then_some((since, switches))
}

/// `processor` of `/proc/PID/task/TID/stat`, if the thread sleeps. The state is read first.
fn cpu_of_sleeper(dir: &str) -> Option<usize> {
    let stat = read_record(&format!("{dir}/stat")).ok()?;
    let sleeps = matches!(stat_field(&stat, 3), Some("S" | "D"));
    stat_field(&stat, 39)?.parse().ok().filter(|_| sleeps)
}

/// The scheduler's clocks of the CPUs on which threads fell asleep. CPUs that this process
/// may not run on are left out.
#[must_use]
pub fn scheduler_clocks<'a>(sleepers: impl Iterator<Item = &'a Asleep>) -> SchedulerClocks {
    let cpus: BTreeSet<usize> = sleepers.map(|asleep| asleep.cpu).collect();
    let mut clocks = SchedulerClocks::new();
    cpus::visit(cpus, |cpu| {
        clocks.extend(scheduler_clock().ok().map(|now| (cpu, now)));
    });
    clocks
}

/// The clock of the CPU we run on now, nanoseconds: our own `se.exec_start` just after a
/// sleep.
fn scheduler_clock() -> io::Result<u64> {
    cpus::nap();
    let text = read_record("/proc/thread-self/sched")?;
    sched_field(&text, "se.exec_start")
        .map(|ms| (ms * 1e6) as u64)
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_the_kernel_has_started_again() {
        let named = |wchan, first| started_again(wchan, &[first, 0, 0, 0, 0, 0]);
        assert_eq!(named("hrtimer_nanosleep", 0x7ffc_0000_0000), Some(libc::SYS_nanosleep));
        assert_eq!(named("do_syscall_64", 1), Some(libc::SYS_clock_nanosleep));
        assert_eq!(
            named("do_syscall_64", u64::from(-6i32 as u32)),
            Some(libc::SYS_clock_nanosleep)
        );
        assert_eq!(named("poll_schedule_timeout.constprop.0\n", 0), Some(libc::SYS_poll));
        assert_eq!(named("futex_do_wait", 0x7ffc_0000_0000), Some(libc::SYS_futex));
        assert_eq!(named("0", 1), None);
    }

    /// It is woken again and again on the other CPU, also between two looks at it.
    #[test]
    fn a_sleeper_that_changes_its_cpu_never_seems_to_have_slept_for_long() {
        use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
        let (say, tid) = std::sync::mpsc::channel();
        let begin = std::time::Instant::now();
        let clock = move || begin.elapsed().as_nanos() as u64;
        // When it began its last sleep.
        let shared = std::sync::Arc::new((AtomicBool::new(false), AtomicU64::new(0)));
        let of_sleeper = std::sync::Arc::clone(&shared);
        let sleeper = std::thread::spawn(move || {
            say.send(nix::unistd::gettid().as_raw()).unwrap();
            while !of_sleeper.0.load(SeqCst) {
                of_sleeper.1.store(clock(), SeqCst);
                cpus::nap();
            }
        });
        let (pid, tid) = (std::process::id() as i32, tid.recv().unwrap());
        for turn in 0..20_000 {
            let _ = crate::migrate::resource::raw::set_affinity(tid, &[1 << (turn % 2)]);
            let before = shared.1.load(SeqCst);
            let Some(asleep) = Looked::at(pid, tid).asleep else { continue };
            let now = scheduler_clocks(std::iter::once(&asleep))[&asleep.cpu];
            let (slept, most) = (now.saturating_sub(asleep.since), clock() - before);
            assert!(slept < most + 100_000_000, "turn {turn}: {slept} ns of {most}, {asleep:?}");
        }
        shared.0.store(true, SeqCst);
        sleeper.join().unwrap();
    }

    #[test]
    fn a_sleeper_is_seen() {
        let child = std::process::Command::new("sleep").arg("100").spawn();
        let mut child = child.unwrap();
        let pid = child.id() as i32;
        let asleep = loop {
            if let Some(a) = Looked::at(pid, pid).asleep {
                break a;
            }
            std::thread::yield_now();
        };
        let now = scheduler_clocks(std::iter::once(&asleep))[&asleep.cpu];
        assert!(now.saturating_sub(asleep.since) < 20_000_000_000, "{now} {asleep:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
