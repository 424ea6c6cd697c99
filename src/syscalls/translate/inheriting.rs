//! Priority-inheriting futexes (FUTEX_LOCK_PI of futex(2)): the kernel compares the number of a
//! thread in the program's memory with its own. Here other operations do their work, and the
//! supervisor compares; who waits does not lend his priority.
//!
//! ```text
//! word             what changes it                         FUTEX_LOCK_PI
//! n, 0             the program: 0 ─► n, n ─► 0             FUTEX_WAKE_OP sets WAITERS; once more
//! 0 | WAITERS      the supervisor only                     n | WAITERS
//! m | WAITERS      the supervisor only                     FUTEX_WAIT_BITSET; once more
//!
//! FUTEX_UNLOCK_PI  n ─► WAITERS, FUTEX_WAKE; nobody woke: WAITERS ─► 0
//! ```
//! Who wakes sees to the word before he runs, so that a lock never stays with nobody while another
//! one waits for it. "Once more" is the program's call made again, as the kernel does it after a
//! signal (ERESTARTNOINTR): there is no other state than the word, and a move may come in between.

use std::io;

use super::{numbers, read_word, Entry, Making, Then, Translation};
use crate::tracer::inject::write_all;
use crate::tracer::raw::Regs;

/// FUTEX_TID_MASK, FUTEX_OWNER_DIED and FUTEX_WAITERS of linux/futex.h.
pub(super) const NUMBER: u32 = 0x3fff_ffff;
pub(super) const OWNER_DIED: u32 = 1 << 30;
pub(super) const WAITERS: u32 = 1 << 31;

/// FUTEX_LOCK_PI, FUTEX_UNLOCK_PI, FUTEX_TRYLOCK_PI, FUTEX_LOCK_PI2.
const LOCK: u32 = 6;
const UNLOCK: u32 = 7;
const TRYLOCK: u32 = 8;
#[cfg(test)]
const LOCK2: u32 = 13;

const FUTEX_WAKE: u32 = 1;
const FUTEX_WAKE_OP: u32 = 5;
const FUTEX_WAIT_BITSET: u32 = 9;
const PRIVATE: u32 = 128;
const REALTIME: u32 = 256;
const ANY: u64 = u32::MAX as u64;
/// FUTEX_OP(FUTEX_OP_OR | FUTEX_OP_OPARG_SHIFT, 31, FUTEX_OP_CMP_EQ, -2048), which sets
/// [`WAITERS`]; no word is -2048, so that nobody is woken.
const SET_WAITERS: u64 = 0xa << 28 | 31 << 12 | 0x800;
/// Bytes of the instruction that makes a call.
const SYSCALL: u64 = 2;
/// `-ERESTARTSYS` to `-ERESTART_RESTARTBLOCK`, and the one of calls that no signal ends.
const INTERRUPTED: std::ops::RangeInclusive<i64> = -516..=-512;
const ERESTARTNOINTR: i64 = -513;

/// What is made in place of a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Mark,
    Wait,
    Release,
}

/// What becomes of a call.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Answer(i64),
    /// The word becomes this one, and it is answered.
    Take(u32),
    Mark,
    Wait,
    Release,
}

/// `exists` tells whether the job has a thread of this number.
///
/// FUTEX_LOCK_PI2 differs from FUTEX_LOCK_PI in its clock.
fn decide(operation: u32, word: u32, own: u32, exists: impl Fn(i32) -> bool) -> Decision {
    let owner = word & NUMBER;
    let errno = |errno: i32| Decision::Answer(-i64::from(errno));
    match operation & !REALTIME {
        UNLOCK if owner == own => Decision::Release,
        UNLOCK => errno(libc::EPERM),
        _ if owner == own => errno(libc::EDEADLK),
        _ if owner == 0 && word & WAITERS != 0 => Decision::Take(word | own),
        _ if owner != 0 && !exists(owner.cast_signed()) => errno(libc::ESRCH),
        TRYLOCK if owner != 0 => errno(libc::EAGAIN),
        _ if word & WAITERS == 0 => Decision::Mark,
        _ => Decision::Wait,
    }
}

/// The entry of FUTEX_LOCK_PI, FUTEX_LOCK_PI2, FUTEX_TRYLOCK_PI and FUTEX_UNLOCK_PI.
pub(super) fn begin(it: &Translation, call: &mut Making) -> Option<Entry> {
    let (at, operation) = (call.arg(0), call.arg(1) as u32);
    if at % 4 != 0 {
        return Some(Entry::errno(libc::EINVAL));
    }
    let Some(word) = call.read::<4>(at).map(u32::from_le_bytes) else {
        return Some(Entry::errno(libc::EFAULT));
    };
    let own = numbers::to_job(call.caller.tid).cast_unsigned();
    let private = operation & PRIVATE;
    let operation = operation & !PRIVATE;
    let exists = |number| numbers::to_host(number) != numbers::NOBODY;
    match decide(operation, word, own, exists) {
        Decision::Answer(value) => Some(Entry::Answer(value)),
        Decision::Take(word) => {
            let taken = write_all(call.caller.tid, at, &word.to_le_bytes());
            Some(taken.map_or_else(|_| Entry::errno(libc::EFAULT), |()| Entry::Answer(0)))
        }
        Decision::Mark => {
            // The one who waits at the first of its two words would be woken.
            let nobody = call.place(&[0; 4])?;
            let args = [nobody, (FUTEX_WAKE_OP | private).into(), 0, 0, at, SET_WAITERS];
            replace(call, Step::Mark, args)
        }
        Decision::Wait => {
            // FUTEX_LOCK_PI has the time of day without saying so.
            let realtime = if operation == LOCK { REALTIME } else { operation & REALTIME };
            if realtime == 0 && call.arg(3) != 0 {
                super::clocks::monotonic(it, call, 3);
            }
            let operation = FUTEX_WAIT_BITSET | realtime | private;
            let args = [at, operation.into(), word.into(), call.arg(3), 0, ANY];
            replace(call, Step::Wait, args)
        }
        Decision::Release => {
            if write_all(call.caller.tid, at, &WAITERS.to_le_bytes()).is_err() {
                return Some(Entry::errno(libc::EFAULT));
            }
            replace(call, Step::Release, [at, (FUTEX_WAKE | private).into(), 1, 0, 0, 0])
        }
    }
}

fn replace(call: &mut Making, step: Step, args: [u64; 6]) -> Option<Entry> {
    (0..).zip(args).for_each(|(index, value)| call.set(index, value));
    call.then = Then::Inheriting(step);
    None
}

/// The return of what was made; `regs` have the arguments of the program's call and its result.
pub(super) fn end(tid: i32, step: Step, regs: &mut Regs) -> io::Result<()> {
    let (at, result) = (regs.rdi, regs.rax as i64);
    let mut again = || {
        regs.rip -= SYSCALL;
        regs.rax = regs.orig_rax;
    };
    match step {
        Step::Mark if result >= 0 => again(),
        Step::Wait if result == -i64::from(libc::EAGAIN) => again(),
        Step::Wait if result == 0 => {
            let word = read_word(tid, at)?.cast_unsigned();
            if word & (WAITERS | NUMBER) == WAITERS {
                let own = numbers::to_job(tid).cast_unsigned();
                write_all(tid, at, &(word | own).to_le_bytes())?;
            } else {
                again();
            }
        }
        Step::Wait if INTERRUPTED.contains(&result) => {
            regs.rax = ERESTARTNOINTR.cast_unsigned();
        }
        Step::Release => {
            if result <= 0 && read_word(tid, at)?.cast_unsigned() == WAITERS {
                write_all(tid, at, &[0; 4])?;
            }
            regs.rax = 0;
        }
        Step::Mark | Step::Wait => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_a_lock() {
        let to = |operation, word| decide(operation, word, 7, |number| number == 9);
        let errno = |errno: i32| Decision::Answer(-i64::from(errno));
        assert_eq!(to(LOCK, 0), Decision::Mark);
        assert_eq!(to(LOCK, 9), Decision::Mark);
        assert_eq!(to(LOCK2 | REALTIME, 9 | WAITERS), Decision::Wait);
        assert_eq!(to(LOCK, WAITERS), Decision::Take(7 | WAITERS));
        assert_eq!(to(TRYLOCK, WAITERS | OWNER_DIED), Decision::Take(7 | WAITERS | OWNER_DIED));
        assert_eq!(to(TRYLOCK, 0), Decision::Mark);
        assert_eq!(to(TRYLOCK, 9), errno(libc::EAGAIN));
        assert_eq!(to(LOCK, 7 | WAITERS), errno(libc::EDEADLK));
        assert_eq!(to(LOCK, 8), errno(libc::ESRCH));
        assert_eq!(to(UNLOCK, 9 | WAITERS), errno(libc::EPERM));
        assert_eq!(to(UNLOCK, 7), Decision::Release);
    }
}
