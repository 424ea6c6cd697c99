//! The job's clocks: those of this machine, and how far the job's are ahead.

use super::{inheriting, numbers, Entry, Making, Translation};
use crate::migrate::resource::{raw, timers};

/// Nanoseconds of a second.
const SECOND: i128 = 1_000_000_000;
/// TIMER_ABSTIME and TFD_TIMER_ABSTIME.
const ABSOLUTE: u64 = 1;

/// A `struct timespec`.
fn timespec(ns: i128) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(ns.div_euclid(SECOND) as i64).to_le_bytes());
    bytes[8..].copy_from_slice(&(ns.rem_euclid(SECOND) as i64).to_le_bytes());
    bytes
}

/// What a `struct timespec` says; none when the kernel would not take it.
fn nanoseconds(bytes: &[u8]) -> Option<i128> {
    let (words, _) = bytes.as_chunks::<8>();
    let (sec, nsec) = (i64::from_le_bytes(*words.first()?), i64::from_le_bytes(*words.get(1)?));
    let valid = sec >= 0 && (0..SECOND).contains(&nsec.into());
    valid.then(|| i128::from(sec) * SECOND + i128::from(nsec))
}

/// A time of the job's clock on this machine's. One that is past stays so, and a time that
/// stands for none (0) too.
fn to_host(bytes: &[u8], ahead: i128) -> Option<[u8; 16]> {
    let ns = nanoseconds(bytes)?;
    Some(timespec(if ns == 0 { 0 } else { (ns - ahead).max(1) }))
}

/// clock_gettime(2).
pub(super) fn read(it: &Translation, call: &mut Making) -> Option<Entry> {
    let clock = call.arg(0) as i32;
    let Some(ahead) = it.ahead.of(clock) else { return named(call) };
    let now = match raw::clock(clock) {
        Ok(now) => timespec(now + ahead),
        Err(e) => return Some(Entry::errno(e.raw_os_error().unwrap_or(libc::EINVAL))),
    };
    let written = crate::tracer::inject::write_all(call.caller.tid, call.arg(1), &now);
    Some(written.map_or_else(|_| Entry::errno(libc::EFAULT), |()| Entry::Answer(0)))
}

/// Clocks of processes and threads have their numbers in them (clock_getcpuclockid(3)).
pub(super) fn named(call: &mut Making) -> Option<Entry> {
    const FILE: i32 = 3;
    let clock = call.arg(0) as i32;
    let whose = !(clock >> 3);
    if clock >= 0 || clock & 7 == FILE || whose <= 0 {
        return None;
    }
    match numbers::to_host(whose) {
        numbers::NOBODY => Some(Entry::errno(libc::EINVAL)),
        host => {
            call.set(0, i64::from((!host << 3) | (clock & 7)) as u64);
            None
        }
    }
}

/// clock_nanosleep(2).
pub(super) fn sleep(it: &Translation, call: &mut Making) -> Option<Entry> {
    let ahead = it.ahead.of(call.arg(0) as i32);
    match ahead.filter(|_| call.arg(1) & ABSOLUTE != 0) {
        Some(ahead) => time(call, 2, ahead),
        None => named(call),
    }
}

/// An argument that points to a time on a clock.
fn time(call: &mut Making, arg: u8, ahead: i128) -> Option<Entry> {
    let at = call.arg(arg);
    let here = call.read::<16>(at).and_then(|time| to_host(&time, ahead));
    // What the kernel would not take it refuses itself.
    put(call, arg, here.map(|time| time.to_vec()))
}

fn put(call: &mut Making, arg: u8, content: Option<Vec<u8>>) -> Option<Entry> {
    let content = content?;
    call.point(arg, &content).is_none().then(|| Entry::errno(libc::EFAULT))
}

/// timer_create(2): the clock, and whom SIGEV_THREAD_ID names.
pub(super) fn create(call: &mut Making) -> Option<Entry> {
    let at = call.arg(1);
    let event = if at == 0 { None } else { call.read::<64>(at) };
    if let Some(mut event) = event {
        let word =
            |at: usize| event[at..at + 4].iter().rev().fold(0, |n, byte| n << 8 | i32::from(*byte));
        let (notify, thread) = (word(12), word(16));
        if notify & libc::SIGEV_THREAD_ID != 0 {
            event[16..20].copy_from_slice(&numbers::to_host(thread).to_le_bytes());
            if let Some(failed) = put(call, 1, Some(event.to_vec())) {
                return Some(failed);
            }
        }
    }
    named(call)
}

/// timerfd_settime(2) and timer_settime(2).
pub(super) fn set_timer(it: &Translation, call: &mut Making, is_file: bool) -> Option<Entry> {
    if call.arg(1) & ABSOLUTE == 0 {
        return None;
    }
    let (pid, number) = (call.caller.pid, call.arg(0) as i32);
    let clock = match is_file {
        true => timerfd_clock(call.caller.tid, number),
        false => timers::clock_of(pid, number),
    };
    let ahead = it.ahead.of(clock?)?;
    let at = call.arg(2);
    let spec = call.read::<32>(at).and_then(|mut spec| {
        let value = to_host(&spec[16..], ahead)?;
        spec[16..].copy_from_slice(&value);
        Some(spec.to_vec())
    });
    put(call, 2, spec)
}

/// The clock of a timerfd (proc_pid_fdinfo(5)).
fn timerfd_clock(tid: i32, fd: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("clockid:"))?.trim().parse().ok()
}

/// futex(2).
pub(super) fn futex(it: &Translation, call: &mut Making) -> Option<Entry> {
    use libc::{
        FUTEX_CLOCK_REALTIME, FUTEX_CMP_REQUEUE_PI, FUTEX_LOCK_PI, FUTEX_LOCK_PI2,
        FUTEX_PRIVATE_FLAG, FUTEX_TRYLOCK_PI, FUTEX_UNLOCK_PI, FUTEX_WAIT_BITSET,
        FUTEX_WAIT_REQUEUE_PI,
    };
    match call.arg(1) as i32 & !(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME) {
        FUTEX_WAIT_BITSET if call.arg(3) != 0 => monotonic(it, call, 3),
        FUTEX_WAIT_REQUEUE_PI | FUTEX_CMP_REQUEUE_PI => Some(Entry::errno(libc::ENOSYS)),
        FUTEX_LOCK_PI | FUTEX_LOCK_PI2 | FUTEX_TRYLOCK_PI | FUTEX_UNLOCK_PI => {
            inheriting::begin(it, call)
        }
        _ => None,
    }
}

/// An argument that points to a time of CLOCK_MONOTONIC.
pub(super) fn monotonic(it: &Translation, call: &mut Making, arg: u8) -> Option<Entry> {
    time(call, arg, it.ahead.monotonic)
}

/// futex_wait(2) and futex_waitv(2).
pub(super) fn futex_time(it: &Translation, call: &mut Making, arg: u8, clock: u8) -> Option<Entry> {
    let ahead = it.ahead.of(call.arg(clock) as i32)?;
    match call.arg(arg) {
        0 => None,
        _ => time(call, arg, ahead),
    }
}

/// Whole seconds that the job's CLOCK_BOOTTIME is ahead.
pub(super) fn uptime_ahead(it: &Translation) -> i64 {
    it.ahead.boottime.div_euclid(SECOND) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_back_by_what_the_job_is_ahead() {
        let of = |ns| to_host(&timespec(ns), 5 * SECOND + 1);
        assert_eq!(of(7 * SECOND), Some(timespec(2 * SECOND - 1)));
        assert_eq!(of(0), Some(timespec(0)));
        assert_eq!(of(3 * SECOND), Some(timespec(1)));
        assert_eq!(to_host(&timespec(-1), 0), None);
        assert_eq!(to_host(&timespec(3), -SECOND), Some(timespec(SECOND + 3)));
    }
}
