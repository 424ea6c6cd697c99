//! The seccomp filter of a launched program, as classic BPF (seccomp(2)).
//!
//! ```text
//! ld  arch        other than x86-64 (i386)             ─► ALLOW
//! ld  nr
//! jeq each call that is not native                     ─► TRACE or ERRNO
//!     some with certain arguments only                 ─► TRACE, else ALLOW
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

/// A low word of an argument that has this value.
#[derive(Debug, Clone, Copy)]
pub struct If {
    pub arg: u8,
    pub value: u32,
}

/// Stops this call where all of these hold, besides what a program made by [`program`] stops.
#[must_use]
pub fn with_stop(mut code: Vec<sock_filter>, nr: u32, all: &[If]) -> Vec<sock_filter> {
    let mut body = Vec::new();
    for (n, one) in all.iter().enumerate() {
        // Over the comparisons that follow, and the answer.
        let over = 2 * (all.len() - n - 1) + 1;
        body.push(load(ARGS + 8 * u32::from(one.arg)));
        body.push(sock_filter { jf: over as u8, ..if_equal(one.value) });
    }
    body.extend([give(STOP), load(NR)]);
    code.pop();
    code.push(sock_filter { jf: body.len() as u8, ..if_equal(nr) });
    code.extend(body);
    code.push(give(SECCOMP_RET_ALLOW));
    code
}

fn stop_when(when: When) -> Vec<sock_filter> {
    let mut code = vec![load(ARGS + 8 * u32::from(when.arg))];
    code.push(statement(BPF_ALU | BPF_AND | BPF_K, when.mask));
    for value in when.values {
        code.extend([if_equal(*value), give(STOP)]);
    }
    // Another stop may be for the same call.
    code.push(load(NR));
    code
}

/// What is done with a call that is not native.
fn answer(policy: Policy) -> Vec<sock_filter> {
    match policy {
        Policy::Native => Vec::new(),
        Policy::Observe => vec![give(STOP)],
        Policy::ObserveIf(first) => {
            vec![load(ARGS), if_equal(first), give(STOP), load(NR)]
        }
        Policy::ObserveWith(bits) => {
            let load_bits = [load(ARGS + 8), statement(BPF_ALU | BPF_AND | BPF_K, bits)];
            [&load_bits[..], &[if_other(0), give(STOP), load(NR)]].concat()
        }
        Policy::Refuse(errno) => vec![give(SECCOMP_RET_ERRNO | errno as u32)],
    }
}

/// The filter that does what `table` says.
#[must_use]
pub fn program(table: &[Row]) -> Vec<sock_filter> {
    let mut code = vec![load(ARCH), if_other(AUDIT_ARCH_X86_64), give(SECCOMP_RET_ALLOW), load(NR)];
    for row in table {
        let answer = answer(row.policy);
        if !answer.is_empty() {
            code.push(sock_filter { jf: answer.len() as u8, ..if_equal(row.nr) });
            code.extend(answer);
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
    use crate::tracer::bpf::answers;

    /// `word`: the first and the second argument.
    fn run(code: &[sock_filter], nr: u32, arch: u32, word: u32) -> u32 {
        let known = |at| {
            let all = [(NR, nr), (ARCH, arch), (ARGS, word), (ARGS + 8, word)];
            all.iter().find(|w| w.0 == at).map(|w| w.1)
        };
        let all = answers(code, known).expect("answers");
        assert_eq!(all.len(), 1, "call {nr}");
        all.into_iter().next().expect("an answer")
    }

    #[test]
    fn does_what_the_table_says_for_every_number() {
        let code = program(TABLE);
        for nr in 0..1024 {
            let policy = TABLE.iter().find(|r| r.nr == nr).map_or(Policy::Native, |r| r.policy);
            let (want, with) = match policy {
                Policy::Native => (SECCOMP_RET_ALLOW, 22),
                Policy::Observe => (STOP, 0),
                Policy::ObserveIf(first) => (STOP, first),
                Policy::ObserveWith(bits) => (STOP, bits | 1 << 31),
                Policy::Refuse(errno) => (SECCOMP_RET_ERRNO | errno as u32, 0),
            };
            assert_eq!(run(&code, nr, AUDIT_ARCH_X86_64, with), want, "call {nr}");
            let other = match policy {
                Policy::ObserveIf(first) => first + 1,
                Policy::ObserveWith(bits) => !bits,
                _ => continue,
            };
            assert_eq!(run(&code, nr, AUDIT_ARCH_X86_64, other), SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn leaves_other_architectures_and_x32_alone() {
        let code = program(TABLE);
        for nr in 0..1024 {
            for arch in [0x4000_0003, 0xC000_00B7, 0] {
                assert_eq!(run(&code, nr, arch, 22), SECCOMP_RET_ALLOW);
            }
            assert_eq!(run(&code, nr | 0x4000_0000, AUDIT_ARCH_X86_64, 22), SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn calls_are_stopped_when_an_argument_says_so() {
        let when = When { arg: 1, mask: 0xff, values: &[3, 5] };
        let code = with_stops(program(&[]), [(7, None), (9, Some(when))]);
        let run = |nr, arg| {
            let known = |at| {
                [(NR, nr), (ARCH, AUDIT_ARCH_X86_64), (ARGS + 8, arg)]
                    .iter()
                    .find(|word| word.0 == at)
                    .map(|word| word.1)
            };
            answers(&code, known).expect("answers").into_iter().collect::<Vec<u32>>()
        };
        let stopped = [(7, 0), (7, 3), (9, 3), (9, 0x105)].map(|(nr, arg)| run(nr, arg));
        assert_eq!(stopped, [[STOP]; 4]);
        let allowed = [(8, 3), (9, 4), (10, 3)].map(|(nr, arg)| run(nr, arg));
        assert_eq!(allowed, [[SECCOMP_RET_ALLOW]; 3]);
    }

    #[test]
    fn fits_the_kernel() {
        let stops = translate::table::TABLE.iter().map(|row| (row.nr as u32, row.when));
        assert!(with_stops(program(TABLE), stops).len() <= 4096);
    }
}
