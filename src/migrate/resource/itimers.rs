//! Interval timers (setitimer(2), alarm(2)).
//!
//! ITIMER_REAL counts the pause of a move, as it counts every other time. Where a periodic one has
//! expired in the pause, its signal is queued and its phase is kept. Those of CPU time stand still
//! with the job.

use serde::{Deserialize, Serialize};

use super::{decode, encode, pause, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Time;
use crate::capabilities::Capability;
use crate::syscalls::translate::numbers;
use crate::tracer::inject::{Arg, Data, Outcome, Program};

/// ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF with their remaining times.
///
/// Each time a CPU-time timer is set the kernel adds one tick (set_cpu_itimer,
/// kernel/time/itimer.c), which is taken off before.
pub struct Intervals;

/// Bytes of `struct itimerval` and `struct timespec`.
const VALUE_LEN: usize = 32;
const SPEC_LEN: usize = 16;
const SECOND: u64 = 1_000_000;
/// `si_code` of what the kernel sends.
const SI_KERNEL: i32 = 0x80;

/// One timer, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Value {
    interval: u64,
    left: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    values: [Value; 3],
    /// The job's CLOCK_BOOTTIME when they were asked for, nanoseconds.
    at: i64,
}

/// One tick of this kernel, microseconds: the resolution of the coarse clocks.
fn tick_us() -> u64 {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    tick.map_or(4000, |t| t.tv_nsec() as u64 / 1000)
}

/// Two words as a number of units, `per_second` of them.
pub(super) fn time(bytes: &[u8], per_second: u64) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    match words {
        [s, rest, ..] => {
            let seconds = u64::from_le_bytes(*s).saturating_mul(per_second);
            seconds.saturating_add(u64::from_le_bytes(*rest))
        }
        _ => 0,
    }
}

/// The inverse of [`time`].
pub(super) fn words(units: u64, per_second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(units / per_second).to_le_bytes());
    bytes[8..].copy_from_slice(&(units % per_second).to_le_bytes());
    bytes
}

/// clock_gettime(2) of CLOCK_BOOTTIME in the job; read by [`boot_time`].
pub(super) fn ask_boot_time(program: &mut Program) -> (usize, Data) {
    let at = program.data(&[0; SPEC_LEN]);
    let args = [Arg::Num(libc::CLOCK_BOOTTIME as u64), Arg::Data(at)];
    (program.call(libc::SYS_clock_gettime, "clock_gettime", &args), at)
}

/// Nanoseconds.
pub(super) fn boot_time(outcome: &Outcome, asked: (usize, Data)) -> Result<i64, PartError> {
    outcome.get(asked.0)?;
    let here = i64::try_from(time(outcome.data(asked.1), 1_000_000_000)).unwrap_or(i64::MAX);
    Ok(here.saturating_add(numbers::clock_ahead(libc::CLOCK_BOOTTIME)))
}

impl Value {
    /// As set anew, that of a CPU-time timer; see [`Intervals`].
    fn less_a_tick(self) -> Self {
        let left = self.left.saturating_sub(tick_us()).max(u64::from(self.left > 0));
        Self { left, ..self }
    }

    /// ITIMER_REAL after `pause` microseconds, and whether it has expired in them.
    ///
    /// With an interval and nothing left it has expired before, and starts anew when its signal is
    /// taken (itimer_get_remtime, kernel/time/itimer.c): it expires at once, while that signal is
    /// pending.
    fn after(self, pause: u64) -> (Self, bool) {
        let Self { interval, left } = self;
        match (left, interval) {
            (0, 0) => (self, false),
            (0, _) => (Self { left: 1, ..self }, false),
            (left, _) if left > pause => (Self { left: left - pause, ..self }, false),
            (_, 0) => (Self { left: 1, ..self }, false),
            (left, _) => (Self { left: interval - (pause - left) % interval, ..self }, true),
        }
    }

    fn bytes(self) -> Vec<u8> {
        [words(self.interval, SECOND), words(self.left, SECOND)].concat()
    }
}

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
            let at = program.data(&[0; VALUE_LEN]);
            let args = [Arg::Num(which), Arg::Data(at)];
            (program.call(libc::SYS_getitimer, "getitimer", &args), at)
        });
        let clock = ask_boot_time(program);
        Ok(Box::new(move |_, outcome| {
            let mut values = [Value { interval: 0, left: 0 }; 3];
            for (value, (row, at)) in values.iter_mut().zip(rows) {
                outcome.get(row)?;
                let bytes = outcome.data(at);
                let (interval, left) = bytes.split_at(VALUE_LEN / 2);
                *value = Value { interval: time(interval, SECOND), left: time(left, SECOND) };
            }
            encode("itimers", &State { values, at: boot_time(outcome, clock)? })
        }))
    }
    fn tell(&self, state: &[u8], to: &Told, program: &mut Program) -> Result<(), PartError> {
        let State { values: [real, virt, prof], at } = decode(self.name(), state)?;
        let io = |source| PartError::Io { what: "read CLOCK_BOOTTIME".into(), source };
        let pause = pause::since(at, to.pid).map_err(io)?.unwrap_or(0);
        let (real, expired) = real.after(pause / 1000);
        let values = [real, virt.less_a_tick(), prof.less_a_tick()];
        for (which, value) in (0u64..).zip(values) {
            if (value.interval, value.left) != (0, 0) {
                let at = Arg::Data(program.data(&value.bytes()));
                let args = [Arg::Num(which), at, Arg::Num(0)];
                program.call(libc::SYS_setitimer, "setitimer", &args);
            }
        }
        if expired {
            let mut info = [0; 128];
            info[..4].copy_from_slice(&libc::SIGALRM.to_le_bytes());
            info[8..12].copy_from_slice(&SI_KERNEL.to_le_bytes());
            let at = Arg::Data(program.data(&info));
            let pid = numbers::to_host(to.job_pid);
            let args = [Arg::Num(pid as u64), Arg::Num(libc::SIGALRM as u64), at];
            program.call(libc::SYS_rt_sigqueueinfo, "rt_sigqueueinfo", &args);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn of(interval: u64, left: u64) -> Value {
        Value { interval, left }
    }

    #[test]
    fn a_tick_is_taken_off_what_remains() {
        let tick = tick_us();
        assert_eq!(of(1_000_002, SECOND).less_a_tick(), of(1_000_002, SECOND - tick));
        assert_eq!(of(9, 1).less_a_tick(), of(9, 1));
        assert_eq!(of(9, 0).less_a_tick(), of(9, 0));
    }

    #[test]
    fn the_pause_is_counted() {
        assert_eq!(of(0, 0).after(5), (of(0, 0), false));
        assert_eq!(of(0, 7).after(5), (of(0, 2), false));
        assert_eq!(of(0, 7).after(7), (of(0, 1), false));
        assert_eq!(of(10, 7).after(7), (of(10, 10), true));
        assert_eq!(of(10, 7).after(29), (of(10, 8), true));
        assert_eq!(of(10, 0).after(29), (of(10, 1), false));
    }

    #[test]
    fn words_and_back() {
        assert_eq!(time(&words(1_234_567, SECOND), SECOND), 1_234_567);
        assert_eq!(of(3, 5).bytes().len(), VALUE_LEN);
    }
}
