//! New processes of one memory (CLONE_VM) take turns: they have one heap and one thread pointer, as
//! one thread has. Who waits for a message lets the others go on.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use super::raw;

/// Is this memory that of several processes? The supervisor's own never is.
static SHARED: AtomicBool = AtomicBool::new(false);
/// 0: nobody's turn, 1: somebody's, 2: others may wait for theirs.
static TURN: AtomicU32 = AtomicU32::new(0);

/// Another process is about to get this memory. It is this one's turn.
pub fn begin() {
    if !SHARED.swap(true, SeqCst) {
        TURN.store(1, SeqCst);
    }
}

/// Waits for a turn.
pub fn take() {
    if TURN.compare_exchange(0, 1, SeqCst, SeqCst).is_err() {
        while TURN.swap(2, SeqCst) != 0 {
            raw::futex_wait(&TURN, 2);
        }
    }
}

fn pass_on() {
    if TURN.swap(0, SeqCst) == 2 {
        raw::futex_wake(&TURN);
    }
}

/// Waits until there is something to read, in which time others have their turns.
pub fn await_readable(fd: BorrowedFd) {
    if SHARED.load(SeqCst) {
        pass_on();
        raw::await_readable(fd);
        take();
    }
}
