//! timerfd_create(2): clock, remaining time, interval and unread expiries.
//!
//! A periodic timer with an unread expiry stands still until it is read or asked; the kernel
//! catches up on the missed ticks then. Capture asks (timerfd_gettime), which the program
//! could do as well, so that neither the phase nor a tick is lost. Restore sets the ticks
//! by TFD_IOC_SET_TICKS, or starts a periodic timer so far in the past that the kernel
//! counts them.
//!
//! The time between capture and restore counts, as the job's CLOCK_BOOTTIME shows it, unless
//! that clock could not be kept. An absolute CLOCK_REALTIME timer keeps its wall-clock time.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::super::pause;
use super::{decode, encode, failed, raw, unexpected, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;
use crate::migrate::skeleton::coarse_tick;

const NAME: &str = "timerfd";
const ABSTIME: i32 = libc::TFD_TIMER_ABSTIME;
const SECOND: u64 = 1_000_000_000;
/// How often an interval timer is looked at to see it while it runs.
const MOST_LOOKS: u32 = 100;

/// All times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    clock: i32,
    /// Of the last timerfd_settime.
    flags: i32,
    /// Unread expiries.
    ticks: u64,
    /// To the next expiry; 0 when disarmed.
    left: u64,
    interval: u64,
    /// The job's CLOCK_BOOTTIME at capture.
    at: i64,
    /// CLOCK_REALTIME at capture.
    wall: i64,
}

pub(super) struct TimerFd;

impl FdKind for TimerFd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::moves(
                Descriptors,
                "timerfd",
                "timerfd: clocks, intervals, unread expirations",
            )]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.link == "anon_inode:[timerfd]"
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let seen = State::read(view)?;
        let armed = seen.left > 0;
        if !armed && seen.ticks == 0 {
            // Off, or due when it was seen.
            cx.let_timers_expire();
        }
        let mut state = State::settled(view)?;
        if armed && state.left == 0 && state.ticks == 0 {
            // Due just now.
            state.left = 1;
        }
        if state.waits_for_a_look() {
            let fd = cx.dup(view).map_err(view.failed("duplicate"))?;
            // One that has expired again before it is seen is looked at once more.
            for _turn in 0..MOST_LOOKS {
                raw::timerfd_remaining(fd.as_raw_fd()).map_err(view.failed("ask the time"))?;
                state = State::settled(view)?;
                if !state.waits_for_a_look() {
                    break;
                }
            }
            if state.waits_for_a_look() {
                // Nobody can see ticks of less than a microsecond or two.
                state.left = state.interval;
            }
        }
        encode(&state)
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let state: State = decode(NAME, state)?;
        let tried = || failed(format!("make a timerfd on clock {}", state.clock));
        let fd = raw::timerfd(state.clock).map_err(tried())?;
        let now = pause::own_boot_time().map_err(tried())?;
        let tick = u64::try_from(coarse_tick().map_err(tried())?).unwrap_or(0);
        let state = state.after(state.passed(now, tick));
        state.arm(fd.as_raw_fd())?;
        if state.ticks > 0 && raw::timerfd_set_ticks(fd.as_raw_fd(), state.ticks).is_err() {
            state.arm_in_the_past(fd.as_raw_fd())?;
        }
        Ok(fd)
    }
}

impl State {
    /// A state as in `view` or later, in which ticks and remaining time belong together:
    /// fdinfo shows the remaining time first, and the timer may expire before the ticks are
    /// shown (timerfd_show, fs/timerfd.c).
    fn settled(view: &FdView) -> Result<Self, FdError> {
        let again = || FdView::read(view.host_pid, view.fd).map_err(view.failed("read fdinfo"));
        let mut state = Self::read(view)?;
        loop {
            let next = Self::read(&again()?)?;
            if next.ticks == state.ticks {
                return Ok(next);
            }
            state = next;
        }
    }

    fn read(view: &FdView) -> Result<Self, FdError> {
        let number = |key, base| view.number(key, base).map_err(view.failed("read fdinfo"));
        let now = |clock| raw::clock(clock).map_err(view.failed("read the clock"));
        Ok(Self {
            clock: number("clockid", 10)? as i32,
            flags: number("settime flags", 8)? as i32,
            ticks: number("ticks", 10)?,
            left: time(view, "it_value")?,
            interval: time(view, "it_interval")?,
            at: now(libc::CLOCK_BOOTTIME)?.saturating_add(pause::clock_offset(view.host_pid)),
            wall: now(libc::CLOCK_REALTIME)?,
        })
    }

    /// An interval timer that has expired does not go on before it is asked or read.
    fn waits_for_a_look(&self) -> bool {
        self.left == 0 && self.interval > 0 && self.ticks > 0
    }

    fn on_wall_clock(&self) -> bool {
        self.flags & ABSTIME != 0
            && matches!(self.clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM)
    }

    /// How long the job has stood still by the timer's clock. The job's CLOCK_BOOTTIME is `now`, and
    /// has gone on by `tick` more than clocks that the job does not take along.
    fn passed(&self, now: i64, tick: u64) -> u64 {
        let pause = pause::between(self.at, now).unwrap_or(0);
        match self.clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => pause.saturating_sub(tick),
            _ => pause,
        }
    }

    /// The state when `pause` has gone by. The kernel itself sees to absolute wall-clock
    /// times, which are therefore left as they are.
    fn after(&self, pause: u64) -> Self {
        let mut new = self.clone();
        if self.left == 0 || self.on_wall_clock() {
            return new;
        }
        new.left = self.left.saturating_sub(pause);
        if new.left == 0 && self.interval > 0 {
            let late = pause - self.left;
            new.ticks = self.ticks.saturating_add(1 + late / self.interval);
            new.left = self.interval - late % self.interval;
        }
        new.left = new.left.max(1);
        new
    }

    /// The value for timerfd_settime that expires when the state says.
    fn value(&self) -> Result<u64, FdError> {
        if self.left == 0 || self.flags & ABSTIME == 0 {
            return Ok(self.left);
        }
        let now = if self.on_wall_clock() { Ok(self.wall) } else { self.now() };
        let now = now.map_err(failed(format!("read clock {}", self.clock)))?;
        Ok(self.left.saturating_add(u64::try_from(now).unwrap_or(0)))
    }

    /// The clocks of alarms cannot be read where there is no RTC; they run like the others.
    fn now(&self) -> std::io::Result<i64> {
        raw::clock(match self.clock {
            libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
            libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
            other => other,
        })
    }

    fn arm(&self, fd: RawFd) -> Result<(), FdError> {
        let value = self.value()?;
        if self.left == 0 && self.interval == 0 && self.flags == 0 {
            return Ok(());
        }
        raw::timerfd_set(fd, self.flags, value, self.interval)
            .map_err(failed(format!("set a timerfd to {value} ns")))
    }

    /// Without TFD_IOC_SET_TICKS: lets the kernel count the ticks itself. A one-shot timer
    /// expires once more, now.
    fn arm_in_the_past(&self, fd: RawFd) -> Result<(), FdError> {
        let tried = || failed(format!("start a timerfd {} ticks ago", self.ticks));
        if self.interval == 0 {
            return raw::timerfd_set(fd, 0, 1, 0).map_err(tried());
        }
        let now = u64::try_from(self.now().map_err(tried())?).unwrap_or(0);
        let ago = self.ticks.saturating_mul(self.interval);
        let start = now.saturating_add(self.left).saturating_sub(ago).max(1);
        raw::timerfd_set(fd, self.flags | ABSTIME, start, self.interval).map_err(tried())
    }
}

/// `(seconds, nanoseconds)` of fdinfo.
fn time(view: &FdView, key: &str) -> Result<u64, FdError> {
    let parse = |text: &str| {
        let (s, ns) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(", ")?;
        s.parse::<u64>().ok()?.checked_mul(SECOND)?.checked_add(ns.parse().ok()?)
    };
    let missing = || unexpected(format!("{}: no time `{key}` in fdinfo", view.object()));
    view.field(key).and_then(parse).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use std::os::fd::AsFd;

    use super::super::testing::{moved, Here};
    use super::*;
    use crate::migrate::cpus;

    const MS: u64 = 1_000_000;

    fn timer(clock: i32, flags: i32, value: u64, interval: u64) -> OwnedFd {
        let fd = raw::timerfd(clock).expect("timerfd");
        raw::timerfd_set(fd.as_raw_fd(), flags, value, interval).expect("settime");
        fd
    }

    fn state(fd: &OwnedFd) -> State {
        State::read(&Here::of(&[fd]).view(fd)).expect("state")
    }

    fn wait(fd: &OwnedFd) {
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).expect("poll"), 1);
    }

    fn read(fd: &OwnedFd) -> u64 {
        let mut ticks = [0; 8];
        let mut file = File::from(fd.try_clone().expect("dup"));
        file.read_exact(&mut ticks).expect("read");
        u64::from_ne_bytes(ticks)
    }

    #[test]
    fn relative_and_absolute_timers_go_on() {
        let hour = 3600 * SECOND;
        for (clock, flags) in [
            (libc::CLOCK_MONOTONIC, 0),
            (libc::CLOCK_REALTIME, 0),
            (libc::CLOCK_BOOTTIME, ABSTIME),
            (libc::CLOCK_MONOTONIC, ABSTIME),
            (libc::CLOCK_REALTIME, ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET),
        ] {
            let now =
                if flags & ABSTIME == 0 { 0 } else { raw::clock(clock).expect("clock") as u64 };
            let fd = timer(clock, flags, now + hour, 7 * SECOND);
            let (old, new) = (state(&fd), state(&moved(&fd)));
            assert_eq!((new.clock, new.flags, new.interval), (clock, flags, 7 * SECOND));
            assert_eq!((new.ticks, old.ticks), (0, 0));
            let passed = (new.at - old.at) as u64;
            let drift = (new.left + passed).abs_diff(old.left);
            assert!(drift < 50 * MS, "clock {clock} drifts {drift} ns");
        }
    }

    #[test]
    fn a_disarmed_timer_stays_disarmed() {
        let fd = raw::timerfd(libc::CLOCK_MONOTONIC).expect("timerfd");
        let copy = state(&moved(&fd));
        assert_eq!((copy.left, copy.interval, copy.ticks), (0, 0, 0));
    }

    #[test]
    fn an_unread_expiry_is_kept() {
        let fd = timer(libc::CLOCK_MONOTONIC, 0, 1, 0);
        wait(&fd);
        let copy = moved(&fd);
        assert_eq!((read(&copy), read(&fd)), (1, 1));
    }

    #[test]
    fn a_periodic_timer_with_an_unread_expiry_keeps_its_ticks_and_fires_again() {
        let start = raw::clock(libc::CLOCK_MONOTONIC).expect("clock") as u64;
        let fd = timer(libc::CLOCK_MONOTONIC, 0, MS, MS);
        wait(&fd);
        let copy = moved(&fd);
        wait(&copy);
        let ticks = read(&copy);
        let passed = raw::clock(libc::CLOCK_MONOTONIC).expect("clock") as u64 - start;
        assert!(ticks >= 1 && ticks <= passed / MS, "{ticks} ticks in {passed} ns");
        wait(&copy);
        assert!(read(&copy) >= 1);
        assert!(read(&fd) >= ticks);
    }

    /// The timer is armed on another CPU, which idles and sees late that it is due.
    #[test]
    fn a_timer_that_is_due_at_the_capture_is_not_lost() {
        let now = || raw::clock(libc::CLOCK_MONOTONIC).expect("clock") as u64;
        let mut armed = None;
        for turn in 0..1000u64 {
            let due = now() + MS / 2;
            let interval = turn % 2 * SECOND;
            cpus::visit([1], |_| {
                armed = Some(timer(libc::CLOCK_MONOTONIC, ABSTIME, due, interval));
            });
            // Only one CPU here: there is nothing to see.
            let Some(fd) = armed.take() else { return };
            cpus::visit([0], |_| {
                while now() + MS / 10 < due + turn * 100 {
                    std::hint::spin_loop();
                }
                let copy = moved(&fd);
                wait(&copy);
                assert_eq!((read(&copy), read(&fd)), (1, 1), "in turn {turn}");
            });
        }
    }

    #[test]
    fn no_tick_comes_early() {
        let now = || raw::clock(libc::CLOCK_MONOTONIC).expect("clock") as u64;
        for interval in [MS / 50, MS / 15, MS / 10, MS / 8, MS / 5, MS / 3] {
            let begin = now();
            let mut fd = timer(libc::CLOCK_MONOTONIC, 0, interval, interval);
            for _move in 0..200 {
                fd = moved(&fd);
            }
            let ticks = read(&fd);
            let took = now() - begin;
            assert!(ticks * interval <= took, "{ticks} ticks of {interval} ns in {took} ns");
        }
    }

    #[test]
    fn many_unread_ticks_are_counted_by_either_way() {
        let hour = 3600 * SECOND;
        let set = State {
            clock: libc::CLOCK_MONOTONIC,
            flags: 0,
            ticks: 41,
            left: hour / 2,
            interval: SECOND,
            at: 0,
            wall: 0,
        };
        let past = State { left: SECOND / 2, ..set.clone() };
        let fd = raw::timerfd(set.clock).expect("timerfd");
        set.arm(fd.as_raw_fd()).expect("arm");
        raw::timerfd_set_ticks(fd.as_raw_fd(), set.ticks).expect("ticks");
        let moved = moved(&fd);
        assert_eq!(read(&moved), 41);
        if raw::clock(set.clock).expect("clock") as u64 > 60 * SECOND {
            past.arm_in_the_past(fd.as_raw_fd()).expect("arm");
            wait(&fd);
            assert!((41..45).contains(&read(&fd)));
        }
    }

    #[test]
    fn the_time_of_day_does_not_jump_with_the_clocks_of_the_job() {
        let on = |clock| State { clock, flags: 0, ticks: 0, left: 30, interval: 0, at: 7, wall: 0 };
        assert_eq!(on(libc::CLOCK_MONOTONIC).passed(27, 4), 20);
        assert_eq!(on(libc::CLOCK_REALTIME).passed(27, 4), 16);
        assert_eq!(on(libc::CLOCK_REALTIME).passed(8, 4), 0);
    }

    #[test]
    fn a_pause_longer_than_the_period_counts_its_ticks() {
        let before = State {
            clock: libc::CLOCK_MONOTONIC,
            flags: 0,
            ticks: 2,
            left: 30,
            interval: 100,
            at: 0,
            wall: 0,
        };
        let after = before.after(250);
        assert_eq!((after.ticks, after.left), (2 + 3, 80));
        let once = State { interval: 0, ..before.clone() };
        assert_eq!((once.after(250).ticks, once.after(250).left), (2, 1));
    }
}
