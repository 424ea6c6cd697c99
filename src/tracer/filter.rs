//! The seccomp filter of a launched program, as classic BPF (seccomp(2)).
//!
//! ```text
//! ld  arch        other than x86-64 (i386)             ─► ALLOW
//! ld  nr
//! jeq each call that is not native                     ─► TRACE or ERRNO
//!     all others, x32 among them (bit 30 of nr is set) ─► ALLOW
//! ```

use libc::{
    sock_filter, BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_TRACE,
};

use crate::syscalls::table::{Policy, Row};

/// AUDIT_ARCH_X86_64 of `linux/audit.h`: EM_X86_64, 64 bits, little endian.
pub const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
/// SECCOMP_RET_DATA of the calls that this filter stops: it tells them from those that a filter of
/// the program's own answers with SECCOMP_RET_TRACE.
pub const MARK: u32 = 0x766f;
/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn give(action: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, action)
}

/// Skips the next instruction unless the loaded value is `k`.
fn if_equal(k: u32) -> sock_filter {
    sock_filter { jf: 1, ..statement(BPF_JMP | BPF_JEQ | BPF_K, k) }
}

/// Skips the next instruction if the loaded value is `k`.
fn if_other(k: u32) -> sock_filter {
    sock_filter { jt: 1, ..statement(BPF_JMP | BPF_JEQ | BPF_K, k) }
}

/// A call that is stopped only when the low word of an argument, under a mask, has one of some
/// values.
#[derive(Debug, Clone, Copy)]
pub struct When {
    pub arg: u8,
    pub mask: u32,
    pub values: &'static [u32],
}

/// Offset of the first argument in `struct seccomp_data`.
const ARGS: u32 = 16;
const STOP: u32 = SECCOMP_RET_TRACE | MARK;

/// Stops these calls besides those of a program made by [`program`], which ends with ALLOW.
#[must_use]
pub fn with_stops(
    mut code: Vec<sock_filter>,
    stops: impl IntoIterator<Item = (u32, Option<When>)>,
) -> Vec<sock_filter> {
    code.pop();
    for (nr, when) in stops {
        let body = when.map_or_else(|| vec![give(STOP)], stop_when);
        // At most a few dozen instructions.
        let over = body.len() as u8;
        code.push(sock_filter { jf: over, ..statement(BPF_JMP | BPF_JEQ | BPF_K, nr) });
        code.extend(body);
    }
    code.push(give(SECCOMP_RET_ALLOW));
    code
}

fn stop_when(when: When) -> Vec<sock_filter> {
    let mut code = vec![load(ARGS + 8 * u32::from(when.arg))];
    code.push(statement(BPF_ALU | BPF_AND | BPF_K, when.mask));
    for value in when.values {
        code.extend([if_equal(*value), give(STOP)]);
    }
    code.push(give(SECCOMP_RET_ALLOW));
    code
}

fn action(policy: Policy) -> Option<u32> {
    match policy {
        Policy::Native => None,
        Policy::Observe => Some(SECCOMP_RET_TRACE | MARK),
        Policy::Refuse(errno) => Some(SECCOMP_RET_ERRNO | errno as u32),
    }
}

/// The filter that does what `table` says.
#[must_use]
pub fn program(table: &[Row]) -> Vec<sock_filter> {
    let mut code = vec![load(ARCH), if_other(AUDIT_ARCH_X86_64), give(SECCOMP_RET_ALLOW), load(NR)];
    for row in table {
        if let Some(action) = action(row.policy) {
            code.extend([if_equal(row.nr), give(action)]);
        }
    }
    code.push(give(SECCOMP_RET_ALLOW));
    code
}

/// A program as the bytes of its `struct sock_filter`s.
#[must_use]
pub fn bytes(program: &[sock_filter]) -> Vec<u8> {
    let one = |f: &sock_filter| {
        let mut b = f.code.to_le_bytes().to_vec();
        b.extend([f.jt, f.jf]);
        b.extend(f.k.to_le_bytes());
        b
    };
    program.iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscalls::table::TABLE;
    use crate::syscalls::translate;

    /// Runs the four instructions the filter is made of.
    fn run(code: &[sock_filter], nr: u32, arch: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let op = code[at];
            at += 1;
            match u32::from(op.code) {
                c if c == BPF_LD | BPF_W | BPF_ABS => loaded = [nr, arch][op.k as usize / 4],
                c if c == BPF_JMP | BPF_JEQ | BPF_K => {
                    at += usize::from(if loaded == op.k { op.jt } else { op.jf });
                }
                c if c == BPF_RET | BPF_K => return op.k,
                c => panic!("unknown instruction {c:#x}"),
            }
        }
    }

    #[test]
    fn does_what_the_table_says_for_every_number() {
        let code = program(TABLE);
        for nr in 0..1024 {
            let listed = TABLE.iter().find(|r| r.nr == nr).and_then(|r| action(r.policy));
            let want = listed.unwrap_or(SECCOMP_RET_ALLOW);
            assert_eq!(run(&code, nr, AUDIT_ARCH_X86_64), want, "call {nr}");
        }
    }

    #[test]
    fn leaves_other_architectures_and_x32_alone() {
        let code = program(TABLE);
        for nr in 0..1024 {
            for arch in [0x4000_0003, 0xC000_00B7, 0] {
                assert_eq!(run(&code, nr, arch), SECCOMP_RET_ALLOW);
            }
            assert_eq!(run(&code, nr | 0x4000_0000, AUDIT_ARCH_X86_64), SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn calls_are_stopped_when_an_argument_says_so() {
        let when = When { arg: 1, mask: 0xff, values: &[3, 5] };
        let code = with_stops(program(&[]), [(7, None), (9, Some(when))]);
        let run = |nr, arg| {
            let (mut at, mut loaded) = (0, 0);
            loop {
                let op = code[at];
                at += 1;
                match u32::from(op.code) {
                    c if c == BPF_LD | BPF_W | BPF_ABS => {
                        loaded = match op.k {
                            NR => nr,
                            ARCH => AUDIT_ARCH_X86_64,
                            24 => arg,
                            other => panic!("load of {other}"),
                        };
                    }
                    c if c == BPF_ALU | BPF_AND | BPF_K => loaded &= op.k,
                    c if c == BPF_JMP | BPF_JEQ | BPF_K => {
                        at += usize::from(if loaded == op.k { op.jt } else { op.jf });
                    }
                    _ => return op.k,
                }
            }
        };
        let stopped = [(7, 0), (7, 3), (9, 3), (9, 0x105)].map(|(nr, arg)| run(nr, arg));
        assert_eq!(stopped, [STOP; 4]);
        let allowed = [(8, 3), (9, 4), (10, 3)].map(|(nr, arg)| run(nr, arg));
        assert_eq!(allowed, [SECCOMP_RET_ALLOW; 3]);
    }

    #[test]
    fn fits_the_kernel() {
        let stops = translate::table::TABLE.iter().map(|row| (row.nr as u32, row.when));
        assert!(with_stops(program(TABLE), stops).len() <= 4096);
    }
}
