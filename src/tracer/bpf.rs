//! What a seccomp filter (classic BPF, seccomp(2)) may answer to a call of which not everything is
//! known.
//!
//! Classic BPF jumps forward only, so that all ways through a program can be followed: where a jump
//! depends on something unknown, both.

use std::collections::BTreeSet;

use libc::{
    sock_filter, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_DIV, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JGE,
    BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_LEN, BPF_LSH, BPF_MEM, BPF_MISC,
    BPF_MUL, BPF_NEG, BPF_OR, BPF_RET, BPF_RSH, BPF_ST, BPF_STX, BPF_SUB, BPF_TAX, BPF_TXA, BPF_W,
    BPF_X, BPF_XOR,
};

/// BPF_A of a return, and the scratch memory (linux/filter.h).
const BPF_A: u32 = 0x10;
const SLOTS: usize = 16;
/// Bytes of `struct seccomp_data`.
const DATA_LEN: u32 = 64;
/// States that are followed before it is given up.
const MOST: usize = 1 << 16;

/// A place in a program with what is known there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    at: usize,
    a: Option<u32>,
    x: Option<u32>,
    memory: [Option<u32>; SLOTS],
}

/// A program of seccomp(2) out of its bytes (`struct sock_filter`s).
#[must_use]
pub fn program(bytes: &[u8]) -> Vec<sock_filter> {
    let (all, _) = bytes.as_chunks::<8>();
    let one = |b: &[u8; 8]| sock_filter {
        code: u16::from_le_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    };
    all.iter().map(one).collect()
}

/// All answers that `code` may give. `data` tells the words of `struct seccomp_data` by offset that
/// are known. `None` when it is no program, answers something computed, or has too many ways.
#[must_use]
pub fn answers(code: &[sock_filter], data: impl Fn(u32) -> Option<u32>) -> Option<BTreeSet<u32>> {
    let mut answers = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let begin = State { at: 0, a: Some(0), x: Some(0), memory: [Some(0); SLOTS] };
    let mut open = vec![begin];
    while let Some(mut state) = open.pop() {
        if seen.len() > MOST || !seen.insert(state.clone()) {
            if seen.len() > MOST {
                return None;
            }
            continue;
        }
        let op = code.get(state.at)?;
        state.at += 1;
        let full = u32::from(op.code);
        match full & 7 {
            BPF_RET if full == BPF_RET | BPF_K => drop(answers.insert(op.k)),
            BPF_RET if full == BPF_RET | BPF_A => drop(answers.insert(state.a?)),
            BPF_JMP => open.extend(jump(op, &state)?),
            _ => {
                step(op, &mut state, &data)?;
                open.push(state);
            }
        }
    }
    Some(answers)
}

/// The states behind a jump.
fn jump(op: &sock_filter, state: &State) -> Option<Vec<State>> {
    let to = |skip: u32| State { at: state.at + skip as usize, ..state.clone() };
    let full = u32::from(op.code);
    if full & 0xf0 == BPF_JA {
        return Some(vec![to(op.k)]);
    }
    let with = if full & BPF_X != 0 { state.x } else { Some(op.k) };
    let (yes, no) = (to(op.jt.into()), to(op.jf.into()));
    let (Some(a), Some(with)) = (state.a, with) else { return Some(vec![yes, no]) };
    let holds = match full & 0xf0 {
        BPF_JEQ => a == with,
        BPF_JGT => a > with,
        BPF_JGE => a >= with,
        BPF_JSET => a & with != 0,
        _ => return None,
    };
    Some(vec![if holds { yes } else { no }])
}

/// Does what is no jump and no return.
fn step(op: &sock_filter, s: &mut State, data: &impl Fn(u32) -> Option<u32>) -> Option<()> {
    let full = u32::from(op.code);
    let slot = op.k as usize;
    const LD_ABS: u32 = BPF_LD | BPF_W | BPF_ABS;
    match full {
        LD_ABS if op.k < DATA_LEN => s.a = data(op.k),
        c if c == BPF_LD | BPF_W | BPF_LEN => s.a = Some(DATA_LEN),
        c if c == BPF_LDX | BPF_W | BPF_LEN => s.x = Some(DATA_LEN),
        c if c == BPF_LD | BPF_IMM => s.a = Some(op.k),
        c if c == BPF_LDX | BPF_IMM => s.x = Some(op.k),
        c if c == BPF_LD | BPF_MEM => s.a = *s.memory.get(slot)?,
        c if c == BPF_LDX | BPF_MEM => s.x = *s.memory.get(slot)?,
        BPF_ST => *s.memory.get_mut(slot)? = s.a,
        BPF_STX => *s.memory.get_mut(slot)? = s.x,
        c if c == BPF_MISC | BPF_TAX => s.x = s.a,
        c if c == BPF_MISC | BPF_TXA => s.a = s.x,
        c if c & 7 == BPF_ALU => {
            let with = if c & BPF_X != 0 { s.x } else { Some(op.k) };
            s.a = match s.a.zip(with) {
                Some((a, with)) => Some(compute(c & 0xf0, a, with)?),
                None => None,
            };
        }
        _ => return None,
    }
    Some(())
}

fn compute(op: u32, a: u32, with: u32) -> Option<u32> {
    Some(match op {
        BPF_ADD => a.wrapping_add(with),
        BPF_SUB => a.wrapping_sub(with),
        BPF_MUL => a.wrapping_mul(with),
        BPF_DIV => a.checked_div(with)?,
        BPF_AND => a & with,
        BPF_OR => a | with,
        BPF_XOR => a ^ with,
        BPF_LSH => a.checked_shl(with)?,
        BPF_RSH => a.checked_shr(with)?,
        BPF_NEG => a.wrapping_neg(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
        sock_filter { code: code as u16, jt, jf, k }
    }

    fn load(at: u32) -> sock_filter {
        op(BPF_LD | BPF_W | BPF_ABS, 0, 0, at)
    }

    fn jeq(k: u32, jt: u8, jf: u8) -> sock_filter {
        op(BPF_JMP | BPF_JEQ | BPF_K, jt, jf, k)
    }

    fn ret(k: u32) -> sock_filter {
        op(BPF_RET | BPF_K, 0, 0, k)
    }

    fn all(code: &[sock_filter], nr: u32) -> Option<Vec<u32>> {
        let known = |at| (at == 0).then_some(nr);
        answers(code, known).map(|found| found.into_iter().collect())
    }

    #[test]
    fn what_depends_on_an_argument_has_both_answers() {
        let code = [load(0), jeq(7, 0, 2), load(16), jeq(1, 1, 0), ret(1), ret(2)];
        assert_eq!(all(&code, 7), Some(vec![1, 2]));
        let code = [load(0), jeq(7, 0, 1), ret(1), load(16), jeq(1, 0, 1), ret(2), ret(3)];
        assert_eq!(all(&code, 7), Some(vec![1]));
        assert_eq!(all(&code, 8), Some(vec![2, 3]));
    }

    #[test]
    fn arithmetic_and_memory() {
        let alu = |what, k| op(BPF_ALU | what | BPF_K, 0, 0, k);
        let code = [
            load(0),
            alu(BPF_ADD, 5),
            alu(BPF_LSH, 4),
            op(BPF_ST, 0, 0, 3),
            op(BPF_MISC | BPF_TAX, 0, 0, 0),
            alu(BPF_AND, 0),
            op(BPF_ALU | BPF_OR | BPF_X, 0, 0, 0),
            op(BPF_JMP | BPF_JSET | BPF_K, 0, 1, 0x80),
            ret(1),
            op(BPF_LD | BPF_MEM, 0, 0, 3),
            op(BPF_RET | BPF_A, 0, 0, 0),
        ];
        assert_eq!(all(&code, 3), Some(vec![1]));
        assert_eq!(all(&code, 11), Some(vec![0x100]));
        // An unknown value stays so through arithmetic.
        let code = [load(24), alu(BPF_AND, 1), jeq(0, 1, 0), ret(1), ret(2)];
        assert_eq!(all(&code, 0), Some(vec![1, 2]));
    }

    #[test]
    fn what_is_no_program_has_no_answers() {
        assert_eq!(all(&[], 0), None);
        assert_eq!(all(&[load(0)], 0), None);
        assert_eq!(all(&[load(64), ret(0)], 0), None);
        assert_eq!(all(&[op(0xffff, 0, 0, 0), ret(0)], 0), None);
        assert_eq!(all(&[load(16), op(BPF_RET | BPF_A, 0, 0, 0)], 0), None);
    }
}
