//! How long a job stood still: its CLOCK_BOOTTIME goes on from machine to machine, and counts the
//! pause of a move.

use std::fs;
use std::io;

use super::raw;
use crate::syscalls::translate::numbers;

const SECOND: i64 = 1_000_000_000;
/// A longer pause means that the target could not keep the job's clock, nanoseconds.
const LONGEST: i64 = 600 * SECOND;

/// How far the CLOCK_BOOTTIME of a process is ahead of ours, nanoseconds (time_namespaces(7));
/// 0 on kernels without time namespaces.
#[must_use]
pub fn clock_offset(pid: i32) -> i64 {
    if numbers::are_own() {
        return numbers::clock_ahead(libc::CLOCK_BOOTTIME);
    }
    let offset = |pid: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/timens_offsets")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("boottime"))?;
        let mut words = line.split_whitespace().map(|word| word.parse::<i64>().ok());
        words.next()??.checked_mul(SECOND)?.checked_add(words.next()??)
    };
    offset(&pid.to_string()).unwrap_or(0).saturating_sub(offset("self").unwrap_or(0))
}

/// The time that has gone by in a job between `at`, by its CLOCK_BOOTTIME, and `now`; `None` when
/// that clock was not kept. Nanoseconds.
#[must_use]
pub fn between(at: i64, now: i64) -> Option<u64> {
    let pause = now.saturating_sub(at);
    (0..=LONGEST).contains(&pause).then_some(pause as u64)
}

/// [`between`] `at` and now, in process `pid`.
///
/// # Errors
/// When the kernel has no CLOCK_BOOTTIME.
pub fn since(at: i64, pid: i32) -> io::Result<Option<u64>> {
    let own = i64::try_from(raw::clock(libc::CLOCK_BOOTTIME)?).unwrap_or(i64::MAX);
    Ok(between(at, own.saturating_add(clock_offset(pid))))
}

/// The job's CLOCK_BOOTTIME, nanoseconds, asked for in a process of it.
///
/// # Errors
/// When the kernel has no such clock.
pub fn own_boot_time() -> io::Result<i64> {
    let own = i64::try_from(raw::clock(libc::CLOCK_BOOTTIME)?).unwrap_or(i64::MAX);
    Ok(own.saturating_add(numbers::clock_ahead(libc::CLOCK_BOOTTIME)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_not_kept_says_nothing() {
        assert_eq!(between(10, 12), Some(2));
        assert_eq!(between(12, 10), None);
        assert_eq!(between(0, i64::MAX), None);
        assert_eq!(between(i64::MIN, i64::MAX), None);
    }
}
