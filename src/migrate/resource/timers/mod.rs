//! POSIX timers (timer_create(2)).
//!
//! All clocks but those of CPU time count the pause of a move. A timer on a clock that the job keeps
//! is set to the very time at which it is due, so that the kernel counts the periods that have gone
//! by since. `/proc/PID/timers` does not tell whether a timer on CLOCK_REALTIME or CLOCK_TAI was set
//! to an absolute time: that is seen when the program sets it ([`Absolute`]). Others go on with the
//! time that was left, less the pause.
//!
//! A periodic timer whose signal is pending stands still, and its overruns are counted from when it
//! was due until the signal is taken; `pending` finds out when that was.

mod absolute;
mod overrun;
mod pending;

use serde::{Deserialize, Serialize};

use super::itimers::{ask_boot_time, boot_time, time, words};
use super::{blocker, decode, encode, pause, raw, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Time;
use crate::capabilities::Capability;
use crate::control::Finding;
use crate::migrate::settle::sleeps_on_cpu_time;
use crate::migrate::skeleton::coarse_tick;
use crate::syscalls::translate::numbers;
use crate::tracer::inject::{Arg, Data, Outcome, Program};
use crate::tracer::memory::read_proc;

pub use absolute::{absolute_of, note_absolute, Absolute, SeenAbsolute};
pub use overrun::count_again;
pub(crate) use pending::{dequeue, dequeue_all};
pub use pending::{is_unmeasured, join, measure, Overdue};

const SECOND: u64 = 1_000_000_000;
/// Bytes of `struct itimerspec` and `struct timespec`.
const SPEC_LEN: usize = 32;
const TIME_LEN: usize = 16;

/// POSIX timers with their ids, clocks, notification and remaining time.
pub struct Posix;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Timer {
    id: i32,
    signal: i32,
    /// `sigev_value` as a number.
    value: u64,
    /// SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, with SIGEV_THREAD_ID as 4 added.
    notify: i32,
    /// The thread of SIGEV_THREAD_ID, as the job sees it.
    thread: i32,
    clock: i32,
    /// Nanoseconds; 0: it expires once.
    interval: u64,
    /// To the next expiry, nanoseconds; 0: it is not set.
    left: u64,
    /// Its clock when that was asked for, as the job sees it, nanoseconds.
    at: i64,
    /// When it was due first of the times for which its signal is pending.
    due: Option<i64>,
    /// The time of its clock for which it is set, however that clock is set meanwhile, nanoseconds.
    fixed: Option<i64>,
    /// What timer_getoverrun(2) tells of its last signal.
    overruns: i32,
}

/// The timers of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    timers: Vec<Timer>,
    /// The job's CLOCK_BOOTTIME when they were asked for, nanoseconds.
    at: i64,
}

/// The calling thread's and process's CPU time, as the kernel names them (`THREAD_CLOCK` and
/// `PROCESS_CLOCK`, kernel/time/posix-cpu-timers.c).
const OWN_THREAD: i32 = -2;
const OWN_PROCESS: i32 = -6;

/// What a clock of CPU time is called by whose it is: a thread (clock_getcpuclockid(3)).
fn clock_of_thread(tid: i32) -> i32 {
    (!tid << 3) | (OWN_THREAD & 7)
}

/// A clock that may be of CPU time, with another number of whose it is.
fn clock_with(clock: i32, number: fn(i32) -> i32) -> i32 {
    match !(clock >> 3) {
        whose if clock < 0 && whose > 0 => (!number(whose) << 3) | (clock & 7),
        _ => clock,
    }
}

impl Timer {
    fn is_of_cpu_time(&self) -> bool {
        self.clock < 0
    }

    /// The clock that counts for it, ALARM or not.
    fn base(&self) -> i32 {
        match self.clock {
            libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
            libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
            clock => clock,
        }
    }

    /// A clock that the job takes along.
    fn is_kept(&self) -> bool {
        [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME].contains(&self.base())
    }

    /// It tells nobody any more, and counts on.
    fn silence(&mut self) {
        (self.notify, self.thread) = (libc::SIGEV_NONE, 0);
    }

    /// Its clock has gone with who it was of: it never expires again.
    fn stop(&mut self) {
        self.silence();
        (self.clock, self.left) = (OWN_PROCESS, 0);
    }

    /// A time of its clock as the job sees that, as this kernel does.
    fn here(&self, at: u64) -> u64 {
        at.saturating_add_signed(numbers::clock_ahead(self.base()).saturating_neg()).max(1)
    }

    /// Flags and value for timer_settime(2), after `pause` (none: the job's clocks were not kept).
    /// `now` is its clock here.
    fn value(&self, pause: Option<u64>, now: i64) -> (i32, u64) {
        let absolute = |at: i64| (libc::TIMER_ABSTIME, u64::try_from(at).unwrap_or(0).max(1));
        let next = self.at.saturating_add_unsigned(self.left);
        let due = self.due.unwrap_or(next);
        if self.left == 0 {
            return (0, 0);
        }
        if self.is_of_cpu_time() {
            return (0, self.left);
        }
        if let Some(fixed) = self.fixed {
            return absolute(fixed);
        }
        if self.is_kept() && pause.is_some() {
            return absolute(due);
        }
        let then = self.at.saturating_add_unsigned(pause.unwrap_or(0));
        match u64::try_from(due.saturating_sub(then)) {
            Ok(left) if left > 0 => (0, left),
            _ if self.interval == 0 => (0, 1),
            _ => absolute(now.saturating_sub(then.saturating_sub(due))),
        }
    }
}

/// Reads `/proc/PID/timers` (proc_pid_timers(5)); the times are none yet.
fn parse(text: &str) -> Option<Vec<Timer>> {
    let mut timers: Vec<Timer> = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name == "ID" {
            timers.push(Timer { id: value.parse().ok()?, ..Timer::default() });
            continue;
        }
        let timer = timers.last_mut()?;
        match name {
            "signal" => {
                let (signal, data) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                let data = data.trim_start_matches("0x");
                timer.value = u64::from_str_radix(data, 16).unwrap_or(0);
            }
            "notify" => {
                let (kind, whom) = value.split_once('/')?;
                timer.notify = match kind {
                    "none" => libc::SIGEV_NONE,
                    "thread" => libc::SIGEV_THREAD,
                    _ => libc::SIGEV_SIGNAL,
                };
                let (how, tid) = whom.split_once('.')?;
                if how == "tid" {
                    timer.notify |= libc::SIGEV_THREAD_ID;
                    timer.thread = tid.parse().ok()?;
                }
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(timers)
}

/// Ids of a process's POSIX timers.
#[must_use]
pub fn ids(pid: i32) -> Vec<i32> {
    let text = read_proc(&format!("/proc/{pid}/timers")).unwrap_or_default();
    parse(&text).unwrap_or_default().iter().map(|timer| timer.id).collect()
}

/// The clock of one of a process's POSIX timers.
#[must_use]
pub fn clock_of(pid: i32, id: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/timers")).ok()?;
    parse(&text)?.iter().find(|timer| timer.id == id).map(|timer| timer.clock)
}

/// Questions for the times of one timer.
struct Asked {
    spec: (usize, Data),
    clock: (usize, Data),
}

/// Times are asked for twice, for the better answer: the clock is read behind, so that a timer
/// comes never early, and late by what is between.
const TURNS: usize = 2;

fn ask_times(program: &mut Program, timer: &Timer) -> [Asked; TURNS] {
    std::array::from_fn(|_| {
        let at = program.data(&[0; SPEC_LEN]);
        let args = [Arg::Num(timer.id as u64), Arg::Data(at)];
        let spec = (program.call(libc::SYS_timer_gettime, "timer_gettime", &args), at);
        let at = program.data(&[0; TIME_LEN]);
        let args = [Arg::Num(timer.base() as i64 as u64), Arg::Data(at)];
        let clock = (program.call(libc::SYS_clock_gettime, "clock_gettime", &args), at);
        Asked { spec, clock }
    })
}

impl Timer {
    fn take_times(&mut self, outcome: &Outcome, asked: &[Asked]) -> Result<(), PartError> {
        let mut best: Option<(i64, u64)> = None;
        for Asked { spec, clock } in asked {
            outcome.get(spec.0)?;
            if self.is_of_cpu_time() && outcome.raw(clock.0) < 0 {
                self.stop();
                return Ok(());
            }
            outcome.get(clock.0)?;
            let (interval, left) = outcome.data(spec.1).split_at(SPEC_LEN / 2);
            self.interval = time(interval, SECOND);
            let left = time(left, SECOND);
            let at = i64::try_from(time(outcome.data(clock.1), SECOND)).unwrap_or(i64::MAX);
            let at = at.saturating_add(numbers::clock_ahead(self.base()));
            let due = |(at, left): (i64, u64)| at.saturating_add_unsigned(left);
            // Another period has begun between the two: the later answer is right.
            let sooner = best.is_none_or(|b| {
                due((at, left)) < due(b) || due((at, left)) - due(b) > self.interval as i64 / 2
            });
            if sooner {
                best = Some((at, left));
            }
        }
        (self.at, self.left) = best.unwrap_or_default();
        Ok(())
    }
}

/// The timers of a process without their times.
fn read(view: &View) -> Result<Vec<Timer>, PartError> {
    let path = format!("/proc/{}/timers", view.pid);
    // The file is there with CONFIG_CHECKPOINT_RESTORE and CONFIG_POSIX_TIMERS only.
    let text = read_proc(&path).map_err(|source| PartError::Io { what: path, source })?;
    let mut timers = parse(&text).ok_or(PartError::State("posix timers"))?;
    for timer in timers.iter_mut().filter(|timer| timer.thread != 0) {
        match View::read(view.pid, timer.thread) {
            Ok(thread) => timer.thread = thread.job_tid,
            Err(_) => timer.silence(),
        }
    }
    Ok(timers)
}

impl Part for Posix {
    fn name(&self) -> &'static str {
        "posix timers"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Time,
                    "posix-timers",
                    "POSIX timers: clocks, ways of notification, overruns",
                ),
                Capability::moves(Time, "cpu-timers", "timers on CPU time: still with the job"),
            ]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }
    fn ask(&self, view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let mut timers = read(view)?;
        let rows: Vec<_> = timers.iter().map(|timer| ask_times(program, timer)).collect();
        let overruns: Vec<_> = timers.iter().map(|timer| overrun::ask(program, timer.id)).collect();
        let clock = ask_boot_time(program);
        Ok(Box::new(move |_, outcome| {
            for ((timer, rows), overruns) in timers.iter_mut().zip(rows).zip(overruns) {
                timer.take_times(outcome, &rows)?;
                timer.overruns = i32::try_from(outcome.get(overruns)?).unwrap_or(0);
                timer.clock = clock_with(timer.clock, numbers::to_job);
            }
            encode("posix timers", &State { timers, at: boot_time(outcome, clock)? })
        }))
    }
    fn tell(&self, state: &[u8], to: &Told, program: &mut Program) -> Result<(), PartError> {
        let State { timers, at } = decode(self.name(), state)?;
        if timers.is_empty() {
            return Ok(());
        }
        let io = |source| PartError::Io { what: "read the clocks".into(), source };
        let pause = pause::since(at, to.pid).map_err(io)?;
        // The job's clocks are ahead of the others' by this more after each move.
        let tick = u64::try_from(coarse_tick().map_err(io)?).unwrap_or(0);
        // PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15): timer_create takes the id it is given.
        let restore_ids = timers.iter().any(|t| t.id > MAX_BURNT) || kernel_restores_ids();
        let mode = |program: &mut Program, on: u64| {
            program.call(
                libc::SYS_prctl,
                "PR_TIMER_CREATE_RESTORE_IDS",
                &[Arg::Num(77), Arg::Num(on)],
            );
        };
        if restore_ids {
            mode(program, 1);
        }
        let mut next = 0;
        for timer in &timers {
            while !restore_ids && next < timer.id {
                burn(program, next);
                next += 1;
            }
            let now = match timer.is_of_cpu_time() {
                true => 0,
                false => {
                    raw::clock(timer.base()).map_err(io)?
                        + i128::from(numbers::clock_ahead(timer.base()))
                }
            };
            let pause = pause.map(|p| if timer.is_kept() { p } else { p.saturating_sub(tick) });
            create(program, timer, timer.value(pause, i64::try_from(now).unwrap_or(i64::MAX)));
            next = timer.id + 1;
        }
        if restore_ids {
            mode(program, 0);
        }
        Ok(())
    }
}

/// Which timers run on the calling thread's CPU time: `/proc/PID/timers` does not tell whose it is.
/// All other threads stand still, and so do their clocks.
pub struct OnThread;

impl Part for OnThread {
    fn name(&self) -> &'static str {
        "timers of the thread"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Time,
                    "timers-thread",
                    "POSIX timers that tell a thread, also one that has ended",
                ),
                Capability::refused(
                    Time,
                    "cpu-sleep",
                    "sleeps on a clock of CPU time (clock_nanosleep(2))",
                    "VOS-TIMER",
                ),
            ]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn check(&self, view: &View) -> Vec<Finding> {
        // That of a frozen thread is judged by its registers.
        if !view.field("State:").starts_with('S') {
            return Vec::new();
        }
        let path = format!("/proc/{}/task/{}/syscall", view.pid, view.tid);
        let text = read_proc(&path).unwrap_or_default();
        let mut words = text.split_whitespace();
        let nr = words.next().and_then(|word| word.parse().ok());
        let clock = words.next().and_then(|word| word.strip_prefix("0x"));
        let clock = clock.and_then(|word| u64::from_str_radix(word, 16).ok());
        let sleeps = nr.zip(clock).is_some_and(|(nr, clock)| sleeps_on_cpu_time(nr, clock));
        sleeps.then(|| sleeper(view.job_tid)).into_iter().collect()
    }
    fn ask(&self, view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let timers: Vec<Timer> = match view.number("Threads:") {
            0 | 1 => Vec::new(),
            _ => read(view)?.into_iter().filter(|timer| timer.clock == OWN_THREAD).collect(),
        };
        let rows: Vec<_> = timers.iter().map(|timer| ask_times(program, timer)).collect();
        Ok(Box::new(move |_, outcome| {
            let runs = |asked: &[Asked; TURNS]| {
                let [first, second] = asked.each_ref().map(|a| outcome.data(a.spec.1));
                first != second
            };
            let own = timers.iter().zip(&rows).filter(|(_, asked)| runs(asked));
            encode("timers of the thread", &own.map(|(timer, _)| timer.id).collect::<Vec<i32>>())
        }))
    }
    fn tell(&self, _state: &[u8], _to: &Told, _program: &mut Program) -> Result<(), PartError> {
        Ok(())
    }
}

/// The refusal of a thread that sleeps on a clock of CPU time.
#[must_use]
pub fn sleeper(tid: i32) -> Finding {
    blocker(
        "VOS-TIMER",
        format!("thread {tid}"),
        "it sleeps on a clock of CPU time, which begins anew at the target",
        "move it when that sleep is over",
    )
}

/// More ids than this are not counted up by making and deleting timers.
const MAX_BURNT: i32 = 1000;

/// Linux 6.15 or newer.
fn kernel_restores_ids() -> bool {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_owned()).unwrap_or_default();
    let release = release.to_string_lossy().into_owned();
    let mut parts = release.split(['.', '-']).map(|p| p.parse().unwrap_or(0u32));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (6, 15)
}

/// `struct sigevent`: value, signo, notify, thread.
fn sigevent(timer: &Timer) -> [u8; 64] {
    let mut event = [0; 64];
    event[..8].copy_from_slice(&timer.value.to_le_bytes());
    event[8..12].copy_from_slice(&timer.signal.to_le_bytes());
    event[12..16].copy_from_slice(&timer.notify.to_le_bytes());
    event[16..20].copy_from_slice(&numbers::to_host(timer.thread).to_le_bytes());
    event
}

fn create(program: &mut Program, timer: &Timer, (flags, value): (i32, u64)) {
    let event = Arg::Data(program.data(&sigevent(timer)));
    let id = Arg::Data(program.data(&timer.id.to_le_bytes()));
    let clock = Arg::Num(i64::from(clock_with(timer.clock, numbers::to_host)) as u64);
    program.call(libc::SYS_timer_create, "timer_create", &[clock, event, id]);
    set(program, timer, (flags, value));
}

fn set(program: &mut Program, timer: &Timer, (flags, value): (i32, u64)) {
    let value = match flags {
        libc::TIMER_ABSTIME => timer.here(value),
        _ => value,
    };
    let spec = [words(timer.interval, SECOND), words(value, SECOND)].concat();
    let spec = Arg::Data(program.data(&spec));
    let args = [Arg::Num(timer.id as u64), Arg::Num(flags as u64), spec, Arg::Num(0)];
    program.call(libc::SYS_timer_settime, "timer_settime", &args);
}

/// Uses up one id: kernels number a process's timers one by one.
fn burn(program: &mut Program, id: i32) {
    let made = Arg::Data(program.data(&[0; 4]));
    program.call(libc::SYS_timer_create, "timer_create", &[Arg::Num(1), Arg::Num(0), made]);
    program.call(libc::SYS_timer_delete, "timer_delete", &[Arg::Num(id as u64)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_timers_text() {
        let text = "ID: 3\nsignal: 34/0000000000abc123\nnotify: signal/tid.41\nClockID: 1\n\
                    ID: 5\nsignal: 14/0000000000000005\nnotify: none/pid.40\nClockID: -6\n";
        let timers = parse(text).unwrap();
        assert_eq!((timers[0].id, timers[0].signal, timers[0].value), (3, 34, 0xabc123));
        assert_eq!((timers[0].notify, timers[0].thread), (4, 41));
        assert_eq!((timers[1].notify, timers[1].clock), (libc::SIGEV_NONE, -6));
    }

    fn timer(clock: i32, interval: u64, left: u64) -> Timer {
        Timer {
            signal: 14,
            notify: libc::SIGEV_SIGNAL,
            clock,
            interval,
            left,
            at: 1000,
            ..Timer::default()
        }
    }

    #[test]
    fn a_kept_clock_says_when() {
        let once = timer(libc::CLOCK_MONOTONIC, 0, 50);
        assert_eq!(once.value(Some(200), 0), (libc::TIMER_ABSTIME, 1050));
        let pending = Timer { due: Some(720), ..timer(libc::CLOCK_BOOTTIME_ALARM, 100, 20) };
        assert_eq!(pending.value(Some(200), 0), (libc::TIMER_ABSTIME, 720));
        assert_eq!(timer(libc::CLOCK_MONOTONIC, 0, 0).value(Some(200), 0), (0, 0));
    }

    #[test]
    fn the_pause_is_taken_off_on_other_clocks() {
        let once = timer(libc::CLOCK_REALTIME, 0, 50);
        assert_eq!(once.value(Some(20), 7000), (0, 30));
        assert_eq!(once.value(Some(50), 7000), (0, 1));
        assert_eq!(once.value(None, 7000), (0, 50));
        let periodic = timer(libc::CLOCK_TAI, 100, 50);
        assert_eq!(periodic.value(Some(20), 7000), (0, 30));
        assert_eq!(periodic.value(Some(270), 7000), (libc::TIMER_ABSTIME, 6780));
        let pending = Timer { due: Some(850), ..periodic };
        assert_eq!(pending.value(Some(20), 7000), (libc::TIMER_ABSTIME, 6830));
        assert_eq!(timer(OWN_PROCESS, 0, 50).value(Some(20), 7000), (0, 50));
    }

    #[test]
    fn an_absolute_time_stays_what_it_is() {
        let fixed = |due| Timer { fixed: Some(due), ..timer(libc::CLOCK_REALTIME, 100, 50) };
        let late = 9_000_000;
        assert_eq!(fixed(1050).value(Some(20), 7000), (libc::TIMER_ABSTIME, 1050));
        assert_eq!(fixed(850).value(None, late), (libc::TIMER_ABSTIME, 850));
        let off = Timer { left: 0, ..fixed(1050) };
        assert_eq!(off.value(Some(20), late), (0, 0));
    }

    #[test]
    fn clocks_by_their_owner() {
        assert_eq!(clock_of_thread(0), OWN_THREAD);
        assert_eq!(clock_of_thread(5), (!5 << 3) | 6);
        let double = |n| 2 * n;
        assert_eq!(clock_with(clock_of_thread(5), double), clock_of_thread(10));
        assert_eq!(clock_with((!5 << 3) | 2, double), (!10 << 3) | 2);
        let same = [OWN_THREAD, OWN_PROCESS, libc::CLOCK_MONOTONIC];
        assert_eq!(same.map(|clock| clock_with(clock, double)), same);
    }
}
