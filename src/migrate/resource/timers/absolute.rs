//! Timers that are set to an absolute time of a clock that can be set (TIMER_ABSTIME of
//! timer_settime(2), CLOCK_REALTIME and CLOCK_TAI).
//!
//! The kernel does not tell of them, so the supervisor sees them being set. It does not see one
//! being set to a relative time afterwards: what it has seen holds only of a timer that is due
//! when it says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{decode, encode, Part, PartError, Posix, State, Timer};
use crate::migrate::image::ProcessImage;

/// What a timer was set to, nanoseconds of its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absolute {
    /// When it is due first.
    pub first: u64,
    /// 0: once.
    pub interval: u64,
}

/// What was seen of timers, by host pid and timer id; some may be gone.
pub type SeenAbsolute = BTreeMap<(i32, i32), Absolute>;

/// A timer and its clock cannot be asked at once: they may be apart by this much, nanoseconds.
const MOST_APART: i64 = 10_000_000;

impl Absolute {
    /// The time nearest to `due` for which the timer is set, if it is near enough to be meant.
    fn meant(self, due: i64) -> Option<i64> {
        let interval = i64::try_from(self.interval).ok()?;
        let late = due.checked_sub(i64::try_from(self.first).ok()?)?;
        let apart = match interval {
            0 => late,
            _ => (late + interval / 2).rem_euclid(interval) - interval / 2,
        };
        let most = if interval > 0 { MOST_APART.min(interval / 4) } else { MOST_APART };
        (apart.abs() <= most && late - apart >= 0).then_some(due - apart)
    }
}

impl Timer {
    /// Notes what it was seen to be set to, if it is of a clock that can be set and not set anew.
    fn fix(&mut self, seen: Option<&Absolute>) {
        let can_be_set = [libc::CLOCK_REALTIME, libc::CLOCK_TAI].contains(&self.base());
        let due = self.due.unwrap_or(self.at.saturating_add_unsigned(self.left));
        let seen = seen.filter(|seen| can_be_set && seen.interval == self.interval);
        self.fixed = seen.and_then(|seen| seen.meant(due));
    }
}

/// The timers of a process, with the place of that part in the image.
pub(super) fn state_of(image: &ProcessImage) -> Result<Option<(usize, State)>, PartError> {
    let Some(at) = image.parts.iter().position(|part| part.name == Posix.name()) else {
        return Ok(None);
    };
    Ok(Some((at, decode(Posix.name(), &image.parts[at].state)?)))
}

/// Notes in the images of frozen processes (host pids) which timers are set to absolute times.
///
/// # Errors
/// When a state does not decode.
pub fn note_absolute(
    pids: &[i32],
    images: &mut [ProcessImage],
    seen: &SeenAbsolute,
) -> Result<(), PartError> {
    if seen.is_empty() {
        return Ok(());
    }
    for (pid, image) in pids.iter().zip(images) {
        let Some((at, mut state)) = state_of(image)? else { continue };
        state.timers.iter_mut().for_each(|timer| timer.fix(seen.get(&(*pid, timer.id))));
        image.parts[at].state = encode(Posix.name(), &state)?;
    }
    Ok(())
}

/// The timers of an image that are set to absolute times, by their ids.
#[must_use]
pub fn absolute_of(image: &ProcessImage) -> Vec<(i32, Absolute)> {
    let timers = state_of(image).ok().flatten().map_or_else(Vec::new, |(_, state)| state.timers);
    let absolute = |timer: Timer| {
        let first = u64::try_from(timer.fixed?).ok()?;
        Some((timer.id, Absolute { first, interval: timer.interval }))
    };
    timers.into_iter().filter_map(absolute).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn fixed(seen: Absolute, clock: i32, interval: u64, due: i64) -> Option<i64> {
        let mut timer = Timer { clock, interval, at: due - 5, left: 5, ..Timer::default() };
        timer.fix(Some(&seen));
        timer.fixed
    }

    #[test]
    fn a_timer_is_due_when_it_was_set_to() {
        let once = Absolute { first: 7_000_000_000, interval: 0 };
        let due = once.first as i64;
        assert_eq!(fixed(once, libc::CLOCK_REALTIME, 0, due + MS), Some(due));
        assert_eq!(fixed(once, libc::CLOCK_TAI, 0, due - MS), Some(due));
        assert_eq!(fixed(once, libc::CLOCK_REALTIME_ALARM, 0, due), Some(due));
        assert_eq!(fixed(once, libc::CLOCK_MONOTONIC, 0, due), None, "it is kept anyway");
    }

    #[test]
    fn a_periodic_one_is_due_again_and_again() {
        let seen = Absolute { first: 7_000_000_000, interval: 100_000_000 };
        let of = |due| fixed(seen, libc::CLOCK_REALTIME, seen.interval, due);
        let third = 7_300_000_000;
        assert_eq!([third, third + MS, third - MS].map(of), [Some(third); 3]);
        assert_eq!(of(third + 50 * MS), None);
        assert_eq!(of(6_900_000_000), None, "before the first time");
    }

    #[test]
    fn one_that_was_set_anew_is_another() {
        let seen = Absolute { first: 7_000_000_000, interval: 0 };
        assert_eq!(fixed(seen, libc::CLOCK_REALTIME, 0, 7_000_000_000 + 20 * MS), None);
        assert_eq!(fixed(seen, libc::CLOCK_REALTIME, 3, 7_000_000_000), None);
        let mut timer = Timer { fixed: Some(1), ..Timer::default() };
        timer.fix(None);
        assert_eq!(timer.fixed, None);
    }
}
