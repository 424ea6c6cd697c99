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

use libc::{
    FUTEX_CLOCK_REALTIME, FUTEX_LOCK_PI, FUTEX_PRIVATE_FLAG, FUTEX_TID_MASK, FUTEX_TRYLOCK_PI,
    FUTEX_UNLOCK_PI, FUTEX_WAITERS, FUTEX_WAIT_BITSET, FUTEX_WAKE, FUTEX_WAKE_OP,
};

use super::{numbers, read_word, Entry, Making, Then, Translation};
use crate::migrate::settle::{starts_again, ERESTARTNOINTR};
use crate::tracer::inject::write_all;
use crate::tracer::raw::Regs;

/// FUTEX_OP(FUTEX_OP_OR | FUTEX_OP_OPARG_SHIFT, 31, FUTEX_OP_CMP_EQ, -2048), which sets
/// [`FUTEX_WAITERS`]; no word is -2048, so that nobody is woken.
const SET_WAITERS: u64 = 0xa << 28 | 31 << 12 | 0x800;
/// FUTEX_BITSET_MATCH_ANY.
const ANY: u64 = u32::MAX as u64;
/// Bytes of the instruction that makes a call.
const SYSCALL: u64 = 2;

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
fn decide(operation: i32, word: u32, own: u32, exists: impl Fn(i32) -> bool) -> Decision {
    let owner = word & FUTEX_TID_MASK;
    let errno = |errno: i32| Decision::Answer(-i64::from(errno));
    match operation & !FUTEX_CLOCK_REALTIME {
        FUTEX_UNLOCK_PI if owner == own => Decision::Release,
        FUTEX_UNLOCK_PI => errno(libc::EPERM),
        _ if owner == own => errno(libc::EDEADLK),
        _ if owner == 0 && word & FUTEX_WAITERS != 0 => Decision::Take(word | own),
        _ if owner != 0 && !exists(owner.cast_signed()) => errno(libc::ESRCH),
        FUTEX_TRYLOCK_PI if owner != 0 => errno(libc::EAGAIN),
        _ if word & FUTEX_WAITERS == 0 => Decision::Mark,
        _ => Decision::Wait,
    }
}

/// The entry of FUTEX_LOCK_PI, FUTEX_LOCK_PI2, FUTEX_TRYLOCK_PI and FUTEX_UNLOCK_PI.
pub(super) fn begin(it: &Translation, call: &mut Making) -> Option<Entry> {
    let (at, operation) = (call.arg(0), call.arg(1) as i32);
    if at % 4 != 0 {
        return Some(Entry::errno(libc::EINVAL));
    }
    let Some(word) = call.read::<4>(at).map(u32::from_le_bytes) else {
        return Some(Entry::errno(libc::EFAULT));
    };
    let own = numbers::to_job(call.caller.tid).cast_unsigned();
    let private = operation & FUTEX_PRIVATE_FLAG;
    let operation = operation & !FUTEX_PRIVATE_FLAG;
    let exists = |number| numbers::to_host(number) != numbers::NOBODY;
    match decide(operation, word, own, exists) {
        Decision::Answer(value) => Some(Entry::Answer(value)),
        Decision::Take(word) => {
            let taken = write_all(call.caller.tid, at, &word.to_le_bytes());
            Some(taken.map_or_else(|_| Entry::errno(libc::EFAULT), |()| Entry::Answer(0)))
        }
        Decision::Mark => {
            // The one who waits at the first of its two words would be woken.
            let Some(nobody) = call.place(&[0; 4]) else {
                return Some(Entry::errno(libc::EFAULT));
            };
            replace(call, Step::Mark, FUTEX_WAKE_OP | private, [nobody, 0, 0, at, SET_WAITERS])
        }
        Decision::Wait => {
            // FUTEX_LOCK_PI has the time of day without saying so.
            let realtime = match operation {
                FUTEX_LOCK_PI => FUTEX_CLOCK_REALTIME,
                _ => operation & FUTEX_CLOCK_REALTIME,
            };
            if realtime == 0 && call.arg(3) != 0 {
                if let Some(failed) = super::clocks::monotonic(it, call, 3) {
                    return Some(failed);
                }
            }
            let args = [at, word.into(), call.arg(3), 0, ANY];
            replace(call, Step::Wait, FUTEX_WAIT_BITSET | realtime | private, args)
        }
        Decision::Release => {
            if write_all(call.caller.tid, at, &FUTEX_WAITERS.to_le_bytes()).is_err() {
                return Some(Entry::errno(libc::EFAULT));
            }
            replace(call, Step::Release, FUTEX_WAKE | private, [at, 1, 0, 0, 0])
        }
    }
}

/// Makes another operation; `others` are the arguments besides that.
fn replace(call: &mut Making, step: Step, operation: i32, others: [u64; 5]) -> Option<Entry> {
    call.set(1, operation.cast_unsigned().into());
    [0, 2, 3, 4, 5].into_iter().zip(others).for_each(|(index, value)| call.set(index, value));
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
            if word & (FUTEX_WAITERS | FUTEX_TID_MASK) == FUTEX_WAITERS {
                let own = numbers::to_job(tid).cast_unsigned();
                write_all(tid, at, &(word | own).to_le_bytes())?;
            } else {
                again();
            }
        }
        // No signal ends FUTEX_LOCK_PI.
        Step::Wait if starts_again(regs) => regs.rax = ERESTARTNOINTR.cast_unsigned(),
        Step::Release => {
            if result <= 0 && read_word(tid, at)?.cast_unsigned() == FUTEX_WAITERS {
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
    use libc::{FUTEX_LOCK_PI2, FUTEX_OWNER_DIED};

    use super::*;

    #[test]
    fn who_gets_a_lock() {
        let to = |operation, word| decide(operation, word, 7, |number| number == 9);
        let errno = |errno: i32| Decision::Answer(-i64::from(errno));
        assert_eq!(to(FUTEX_LOCK_PI, 0), Decision::Mark);
        assert_eq!(to(FUTEX_LOCK_PI, 9), Decision::Mark);
        assert_eq!(to(FUTEX_LOCK_PI2 | FUTEX_CLOCK_REALTIME, 9 | FUTEX_WAITERS), Decision::Wait);
        assert_eq!(to(FUTEX_LOCK_PI, FUTEX_WAITERS), Decision::Take(7 | FUTEX_WAITERS));
        assert_eq!(
            to(FUTEX_TRYLOCK_PI, FUTEX_WAITERS | FUTEX_OWNER_DIED),
            Decision::Take(7 | FUTEX_WAITERS | FUTEX_OWNER_DIED)
        );
        assert_eq!(to(FUTEX_TRYLOCK_PI, 0), Decision::Mark);
        assert_eq!(to(FUTEX_TRYLOCK_PI, 9), errno(libc::EAGAIN));
        assert_eq!(to(FUTEX_LOCK_PI, 7 | FUTEX_WAITERS), errno(libc::EDEADLK));
        assert_eq!(to(FUTEX_LOCK_PI, 8), errno(libc::ESRCH));
        assert_eq!(to(FUTEX_UNLOCK_PI, 9 | FUTEX_WAITERS), errno(libc::EPERM));
        assert_eq!(to(FUTEX_UNLOCK_PI, 7), Decision::Release);
    }
}
