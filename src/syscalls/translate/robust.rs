//! Robust mutexes of a thread that ends: the kernel finds them by the thread's number in a word of
//! theirs (get_robust_list(2)), where the program has written the job's.

use std::io;

use libc::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};

use super::numbers;
use crate::migrate::resource::raw::robust_list;
use crate::tracer::inject::{read_exact, write_all};

/// The bit of a pointer to a mutex with priority inheritance.
const INHERITING: u64 = 1;
/// Most mutexes that the kernel looks at (ROBUST_LIST_LIMIT).
const MOST: usize = 2048;

fn word(tid: i32, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    read_exact(tid, at, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// A thread is about to end, and its mutexes get the number that the kernel will look for. An
/// end of the list that cannot be read is the kernel's end of it too.
pub fn leave(tid: i32) {
    if let Err(e) = give_numbers(tid) {
        tracing::debug!("robust mutexes of thread {tid}: {e}");
    }
}

fn give_numbers(tid: i32) -> io::Result<()> {
    let (head, _) = robust_list(tid)?;
    if head == 0 {
        return Ok(());
    }
    let (first, offset, pending) = (word(tid, head)?, word(tid, head + 8)?, word(tid, head + 16)?);
    if pending != 0 {
        give_number(tid, pending & !INHERITING, offset)?;
        let_kernel_wake(tid, head + 16, pending)?;
    }
    let (mut place, mut entry) = (head, first);
    for _ in 0..MOST {
        let_kernel_wake(tid, place, entry)?;
        entry &= !INHERITING;
        if entry == 0 || entry == head {
            break;
        }
        give_number(tid, entry, offset)?;
        (place, entry) = (entry, word(tid, entry)?);
    }
    Ok(())
}

/// The kernel would not wake those that wait for a mutex with priority inheritance: it looks for
/// them in its own books, where they are not. Without the mark at `place` it does.
fn let_kernel_wake(tid: i32, place: u64, entry: u64) -> io::Result<()> {
    match entry & INHERITING {
        0 => Ok(()),
        _ => write_all(tid, place, &(entry & !INHERITING).to_le_bytes()),
    }
}

fn give_number(tid: i32, entry: u64, offset: u64) -> io::Result<()> {
    let at = entry.wrapping_add(offset);
    let mut bytes = [0; 4];
    read_exact(tid, at, &mut bytes)?;
    let now = u32::from_le_bytes(bytes);
    if now & FUTEX_TID_MASK != numbers::to_job(tid) as u32 {
        return Ok(());
    }
    // Others may just be setting the bit for those that wait; waking nobody does no harm.
    let then = tid as u32 | now & FUTEX_OWNER_DIED | FUTEX_WAITERS;
    write_all(tid, at, &then.to_le_bytes())
}
