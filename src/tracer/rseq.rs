//! Restartable sequences (rseq(2)) of stopped threads.
//!
//! The kernel ends a sequence that it has interrupted when the thread goes on: in the middle of
//! one, it lets it go on at the abort handler. It forgets the sequence instead when the thread
//! goes on somewhere else, as it does for a call that is run in it, or when the area is
//! registered anew.

use std::io;

use super::inject::{read_exact, word};
use super::raw::{self, Regs};

/// `struct rseq_cs` of linux/rseq.h.
struct Section {
    version: u32,
    start: u64,
    len: u64,
    abort: u64,
}

impl Section {
    const LEN: usize = 32;

    fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at| word(bytes, at);
        Self { version: word(0) as u32, start: word(8), len: word(16), abort: word(24) }
    }

    fn contains(&self, rip: u64) -> bool {
        rip.wrapping_sub(self.start) < self.len
    }
}

/// Takes a stopped thread with these registers out of a sequence that it is in, as the kernel
/// does: to the abort handler. One that the kernel would not accept is left to it.
pub fn leave(tid: i32, regs: &mut Regs) {
    if let Ok(Some(abort)) = abort_handler(tid, regs.rip) {
        regs.rip = abort;
    }
}

/// Where a sequence that the thread is in at `rip` has its abort handler.
fn abort_handler(tid: i32, rip: u64) -> io::Result<Option<u64>> {
    const POINTER_AT: u64 = 8;
    let (area, _, signature, _) = raw::rseq(tid)?;
    if area == 0 {
        return Ok(None);
    }
    let mut pointer = [0; 8];
    read_exact(tid, area + POINTER_AT, &mut pointer)?;
    let pointer = u64::from_le_bytes(pointer);
    if pointer == 0 {
        return Ok(None);
    }
    let mut bytes = [0; Section::LEN];
    read_exact(tid, pointer, &mut bytes)?;
    let section = Section::parse(&bytes);
    if section.version != 0 || !section.contains(rip) || section.contains(section.abort) {
        return Ok(None);
    }
    let mut found = [0; 4];
    read_exact(tid, section.abort.wrapping_sub(4), &mut found)?;
    Ok((u32::from_le_bytes(found) == signature).then_some(section.abort))
}
