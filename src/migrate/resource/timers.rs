//! Interval timers (setitimer(2)) and POSIX timers (timer_create(2)).

use serde::{Deserialize, Serialize};

use super::{decode, encode, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Time;
use crate::capabilities::Capability;
use crate::syscalls::translate::numbers;
use crate::tracer::inject::{Arg, Program};

/// ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF with their remaining times.
///
/// Each time a CPU-time timer is set the kernel adds one tick (set_cpu_itimer,
/// kernel/time/itimer.c), which is taken off before.
pub struct Intervals;

/// One tick of this kernel, microseconds: the resolution of the coarse clocks.
fn tick_us() -> u64 {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    tick.map_or(4000, |t| t.tv_nsec() as u64 / 1000)
}

/// A `struct itimerval` with its remaining time (the second timeval) less one tick.
fn less_a_tick(value: &[u8]) -> Vec<u8> {
    let word = |at: usize| {
        let mut w = [0; 8];
        w.copy_from_slice(&value[at..at + 8]);
        u64::from_le_bytes(w)
    };
    let remaining = word(16) * 1_000_000 + word(24);
    let remaining = remaining.saturating_sub(tick_us()).max(u64::from(remaining > 0));
    let mut less = value[..16].to_vec();
    less.extend((remaining / 1_000_000).to_le_bytes());
    less.extend((remaining % 1_000_000).to_le_bytes());
    less
}

/// Bytes of `struct itimerval` and `struct itimerspec`.
const SPEC_LEN: usize = 32;

impl Part for Intervals {
    fn name(&self) -> &'static str {
        "itimers"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const { &[Capability::moves(Time, "itimers", "alarm(2) and interval timers")] }
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }
    fn ask(&self, _view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let rows = [0u64, 1, 2].map(|which| {
            let at = program.data(&[0; SPEC_LEN]);
            let args = [Arg::Num(which), Arg::Data(at)];
            (program.call(libc::SYS_getitimer, "getitimer", &args), at)
        });
        Ok(Box::new(move |_, outcome| {
            let mut state = Vec::new();
            for (row, at) in rows {
                outcome.get(row)?;
                state.extend_from_slice(outcome.data(at));
            }
            Ok(state)
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        if state.len() != 3 * SPEC_LEN {
            return Err(PartError::State(self.name()));
        }
        for (which, value) in state.chunks(SPEC_LEN).enumerate() {
            if value.iter().any(|&b| b != 0) {
                let of_cpu = which != libc::ITIMER_REAL as usize;
                let value = if of_cpu { less_a_tick(value) } else { awaiting_signal(value) };
                let at = Arg::Data(program.data(&value));
                program.call(
                    libc::SYS_setitimer,
                    "setitimer",
                    &[Arg::Num(which as u64), at, Arg::Num(0)],
                );
            }
        }
        Ok(())
    }
}

/// POSIX timers with their ids, clocks, notification and remaining time.
pub struct Posix;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// `struct itimerspec`: interval, remaining.
    spec: Vec<u8>,
}

/// Reads `/proc/PID/timers` (proc_pid_timers(5)); `spec` is empty yet.
fn parse(text: &str) -> Option<Vec<Timer>> {
    let mut timers: Vec<Timer> = Vec::new();
    for line in text.lines() {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name == "ID" {
            timers.push(Timer {
                id: value.parse().ok()?,
                signal: 0,
                value: 0,
                notify: 0,
                thread: 0,
                clock: 0,
                spec: Vec::new(),
            });
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
    let text = std::fs::read_to_string(format!("/proc/{pid}/timers")).unwrap_or_default();
    parse(&text).unwrap_or_default().iter().map(|timer| timer.id).collect()
}

/// The clock of one of a process's POSIX timers.
#[must_use]
pub fn clock_of(pid: i32, id: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/timers")).ok()?;
    parse(&text)?.iter().find(|timer| timer.id == id).map(|timer| timer.clock)
}

impl Part for Posix {
    fn name(&self) -> &'static str {
        "posix timers"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::moves(
                Time,
                "posix-timers",
                "POSIX timers: clocks, ways of notification, overruns",
            )]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }
    fn ask(&self, view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let path = format!("/proc/{}/timers", view.pid);
        // The file is there with CONFIG_CHECKPOINT_RESTORE and CONFIG_POSIX_TIMERS only.
        let text = std::fs::read_to_string(&path)
            .map_err(|source| PartError::Io { what: path, source })?;
        let mut timers = parse(&text).ok_or(PartError::State("posix timers"))?;
        for timer in &mut timers {
            if timer.thread != 0 {
                timer.thread = View::read(view.pid, timer.thread)
                    .map_or(timer.thread, |thread| thread.job_tid);
            }
        }
        let rows: Vec<_> = timers
            .iter()
            .map(|timer| {
                let at = program.data(&[0; SPEC_LEN]);
                let args = [Arg::Num(timer.id as u64), Arg::Data(at)];
                (program.call(libc::SYS_timer_gettime, "timer_gettime", &args), at)
            })
            .collect();
        Ok(Box::new(move |_, outcome| {
            for (timer, (row, at)) in timers.iter_mut().zip(rows) {
                outcome.get(row)?;
                timer.spec = outcome.data(at).to_vec();
            }
            encode("posix timers", &timers)
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let timers: Vec<Timer> = decode(self.name(), state)?;
        let mut next = 0;
        // PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15): timer_create takes the id it is given.
        let restore_ids = timers.iter().any(|t| t.id > MAX_BURNT) || kernel_restores_ids();
        let mode = |program: &mut Program, on: u64| {
            program.call(
                libc::SYS_prctl,
                "PR_TIMER_CREATE_RESTORE_IDS",
                &[Arg::Num(77), Arg::Num(on)],
            );
        };
        if restore_ids && !timers.is_empty() {
            mode(program, 1);
        }
        for timer in &timers {
            while !restore_ids && next < timer.id {
                burn(program, next);
                next += 1;
            }
            create(program, timer);
            next = timer.id + 1;
        }
        if restore_ids && !timers.is_empty() {
            mode(program, 0);
        }
        Ok(())
    }
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

fn create(program: &mut Program, timer: &Timer) {
    let event = Arg::Data(program.data(&sigevent(timer)));
    let id = Arg::Data(program.data(&timer.id.to_le_bytes()));
    let clock = Arg::Num(timer.clock as i64 as u64);
    program.call(libc::SYS_timer_create, "timer_create", &[clock, event, id]);
    let spec = Arg::Data(program.data(&timer.spec));
    let args = [Arg::Num(timer.id as u64), Arg::Num(0), spec, Arg::Num(0)];
    program.call(libc::SYS_timer_settime, "timer_settime", &args);
}

/// Uses up one id: kernels number a process's timers one by one.
fn burn(program: &mut Program, id: i32) {
    let made = Arg::Data(program.data(&[0; 4]));
    program.call(libc::SYS_timer_create, "timer_create", &[Arg::Num(1), Arg::Num(0), made]);
    program.call(libc::SYS_timer_delete, "timer_delete", &[Arg::Num(id as u64)]);
}

/// ITIMER_REAL with an interval and nothing remaining has expired, and starts anew when its
/// signal is taken (itimer_get_remtime, kernel/time/itimer.c). Set to nothing it would be
/// off: it expires at once, while its signal is pending.
fn awaiting_signal(value: &[u8]) -> Vec<u8> {
    let mut value = value.to_vec();
    let (interval, remaining) = value.split_at_mut(16);
    if interval.iter().any(|&b| b != 0) && remaining.iter().all(|&b| b == 0) {
        remaining[8] = 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_taken_off_what_remains() {
        let of = |interval: [u64; 2], value: [u64; 2]| -> Vec<u8> {
            interval.iter().chain(&value).flat_map(|w| w.to_le_bytes()).collect()
        };
        let tick = tick_us();
        assert_eq!(less_a_tick(&of([1, 2], [1, 0])), of([1, 2], [0, 1_000_000 - tick]));
        assert_eq!(less_a_tick(&of([0, 9], [0, 1])), of([0, 9], [0, 1]));
        assert_eq!(less_a_tick(&of([0, 9], [0, 0])), of([0, 9], [0, 0]));
    }

    #[test]
    fn proc_timers_text() {
        let text = "ID: 3\nsignal: 34/0000000000abc123\nnotify: signal/tid.41\nClockID: 1\n\
                    ID: 5\nsignal: 14/0000000000000005\nnotify: none/pid.40\nClockID: -6\n";
        let timers = parse(text).unwrap();
        assert_eq!((timers[0].id, timers[0].signal, timers[0].value), (3, 34, 0xabc123));
        assert_eq!((timers[0].notify, timers[0].thread), (4, 41));
        assert_eq!((timers[1].notify, timers[1].clock), (libc::SIGEV_NONE, -6));
    }
}
