//! A program that the job executes.

use crate::tracer::inject::{read_exact, write_all};
use crate::tracer::raw;

/// Most of a new stack that is looked at: arguments and environment are pointers there.
const MOST: usize = 1 << 20;
/// An entry of the auxiliary vector that says nothing (getauxval(3)).
const AT_IGNORE: u64 = 1;

/// Hides the vdso from a program that has just been executed, so that it asks the kernel for the
/// time, where the job's clocks are answered. `None`: it has no vdso, or its stack cannot be read.
pub fn hide_vdso(tid: i32) -> Option<()> {
    let auxv = std::fs::read(format!("/proc/{tid}/auxv")).ok()?;
    let (pairs, _) = auxv.as_chunks::<16>();
    let entry = |pair: &&[u8; 16]| pair[..8] == libc::AT_SYSINFO_EHDR.to_le_bytes();
    let wanted = pairs.iter().find(entry)?;
    let top = raw::regs(tid).ok()?.rsp;
    let mut at = top;
    while at < top + MOST as u64 {
        let mut piece = [0; 4096];
        let len = 4096 - (at % 4096) as usize;
        read_exact(tid, at, &mut piece[..len]).ok()?;
        // The vector is aligned to 16 bytes only by chance: it may lie across two pages.
        for offset in (0..len).step_by(8) {
            let mut pair = [0; 16];
            if piece[offset..len.min(offset + 8)] != wanted[..8] {
                continue;
            }
            read_exact(tid, at + offset as u64, &mut pair).ok()?;
            if pair == *wanted {
                return write_all(tid, at + offset as u64, &AT_IGNORE.to_le_bytes()).ok();
            }
        }
        at += len as u64;
    }
    None
}
