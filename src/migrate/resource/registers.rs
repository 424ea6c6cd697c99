//! Registers of a thread: general-purpose, segment bases (TLS), and the extended state
//! (x87, SSE, AVX, AVX-512, AMX) in the uncompacted XSAVE layout (Intel SDM vol. 1, ch. 13).

use std::io;

use serde::{Deserialize, Serialize};

use crate::tracer::raw::{self, Regs};

/// NT_X86_XSTATE.
const XSTATE: usize = 0x202;
/// Room for every XSAVE component known (AMX tile data ends below 11 KiB).
const XSTATE_MAX: usize = 64 << 10;
/// Offset of XSTATE_BV in the XSAVE header.
const XSTATE_BV: usize = 512;

/// The registers, as they travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// The 27 words of `user_regs_struct` in its order.
    pub general: Vec<u64>,
    pub extended: Vec<u8>,
    /// Blocked signals.
    pub mask: u64,
}

/// The words of `user_regs_struct` in their order.
#[must_use]
pub fn words(r: &Regs) -> [u64; 27] {
    [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx,
        r.rsi, r.rdi, r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds,
        r.es, r.fs, r.gs,
    ]
}

/// The inverse of [`words`].
#[must_use]
pub fn from_words(w: &[u64; 27]) -> Regs {
    let [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss, fs_base, gs_base, ds, es, fs, gs] =
        *w;
    Regs {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    }
}

/// Code segment of 64-bit user code (`__USER_CS`).
pub const USER_CS: u64 = 0x33;

/// Reads the extended state of a stopped thread.
///
/// # Errors
/// When the thread is gone.
pub fn extended(tid: i32) -> io::Result<Vec<u8>> {
    raw::regset(tid, XSTATE, XSTATE_MAX)
}

/// XSAVE components that are in use in a state (XSTATE_BV).
#[must_use]
pub fn components(extended: &[u8]) -> u64 {
    extended.get(XSTATE_BV..XSTATE_BV + 8).map_or(0, |b| {
        let mut word = [0; 8];
        word.copy_from_slice(b);
        u64::from_le_bytes(word)
    })
}

/// Gives a stopped thread its extended state. CPUs differ in the size of the area, not in
/// the place of a component, so it is cut or filled up to this CPU's size; a component in
/// use that this CPU lacks is refused by the kernel.
///
/// # Errors
/// `EINVAL` for such a component.
pub fn set_extended(tid: i32, state: &[u8]) -> io::Result<()> {
    let size = extended(tid)?.len();
    let mut state = state.to_vec();
    if state.len() > size && state[size..].iter().any(|&b| b != 0) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    state.resize(size, 0);
    raw::set_regset(tid, XSTATE, &state)
}
