//! Before a move threads leave the vdso, in the middle of which they would read two clocks as one.
//!
//! A target with another vdso must find no trace of the source's. One that is inside is let out step by step. One that a signal has interrupted inside, and that
//! is in the handler now, would return into code that the target does not have: the frame which
//! the kernel has put on its stack (`setup_rt_frame`, arch/x86/kernel/signal_64.c) tells of that.

use std::io;

use super::freeze::{Frozen, FrozenProcess};
use super::resource::registers::USER_CS;
use super::resource::{blocker, PartError, View};
use crate::tracer::inject::{read_exact, sigbit};
use crate::tracer::memory::{self, Vma, PAGE};
use crate::tracer::raw::{self, SigInfo};
use crate::tracer::stop::{self, Stop};

/// Handlers of signals that have interrupted the vdso.
pub const CODE: &str = "VOS-VDSO";

/// Lets every thread that is inside the vdso leave it.
///
/// # Errors
/// With [`CODE`] when a handler is to return there; when a thread is gone, does not leave within
/// many steps, or its memory cannot be read.
pub fn leave_vdso(frozen: &mut FrozenProcess) -> Result<(), PartError> {
    let pid = frozen.pid;
    let failed = |source| PartError::Io { what: format!("vdso of process {pid}"), source };
    let maps = memory::maps(pid).map_err(failed)?;
    let Some(vdso) = memory::vdso(&maps) else { return Ok(()) };
    let handles = View::read_process(pid).map_err(failed)?.hex("SigCgt:") != 0;
    for thread in frozen.threads.iter().filter(|_| handles) {
        if returns_into(thread.tid, vdso, &maps).map_err(failed)? {
            let own = View::read(pid, thread.tid).map_err(failed)?.job_tid;
            return Err(PartError::Refused(Box::new(blocker(
                CODE,
                format!("thread {own}"),
                "it handles a signal that has interrupted it in the vdso, and the target has \
                 another one",
                "try again when the handler has returned",
            ))));
        }
    }
    // A thread in a system call made there is left alone: it returns to its caller's restart, by
    // the kernel or by `settle`.
    frozen.threads.iter_mut().try_for_each(|thread| let_out(thread, vdso)).map_err(failed)
}

/// Lets threads leave the vdso that are in it, whatever handlers return there. A clock that has been
/// read there before a move, and its offset after it (`do_hres_timens`, lib/vdso/gettimeofday.c),
/// would be behind.
///
/// # Errors
/// As [`leave_vdso`], but for handlers.
pub fn finish_clocks(frozen: &mut FrozenProcess) -> Result<(), PartError> {
    /// The kernel puts the vdso above the stack (`vdso_addr`, arch/x86/entry/vdso/vma.c).
    const TOP: u64 = 0x7ff0_0000_0000;
    let pid = frozen.pid;
    let failed = |source| PartError::Io { what: format!("vdso of process {pid}"), source };
    let mut maps = None;
    for thread in &mut frozen.threads {
        let rip = raw::regs(thread.tid).map_err(failed)?.rip;
        // To step, it would have to leave a group-stop.
        if rip < TOP || matches!(thread.stop, Stop::Group(_)) {
            continue;
        }
        if maps.is_none() {
            maps = Some(memory::maps(pid).map_err(failed)?);
        }
        let vdso = maps.as_deref().and_then(memory::vdso);
        vdso.map_or(Ok(()), |vdso| let_out(thread, vdso)).map_err(failed)?;
    }
    Ok(())
}

fn let_out(thread: &mut Frozen, vdso: &Vma) -> io::Result<()> {
    if !vdso.contains(raw::regs(thread.tid)?.rip) {
        return Ok(());
    }
    let mask = raw::sigmask(thread.tid)?;
    raw::set_sigmask(thread.tid, !sigbit(libc::SIGTRAP))?;
    let left = step_out(thread, vdso);
    raw::set_sigmask(thread.tid, mask)?;
    left
}

/// Steps a thread out of the vdso, all signals but the steps' own being blocked. A signal that is
/// about to be delivered waits for that.
fn step_out(thread: &mut Frozen, vdso: &Vma) -> io::Result<()> {
    const MOST_STEPS: u32 = 100_000;
    let tid = thread.tid;
    let mut held = match thread.stop {
        Stop::Signal(signal) => Some((signal, raw::siginfo(tid)?)),
        _ => None,
    };
    let mut steps = 0;
    while vdso.contains(raw::regs(tid)?.rip) {
        steps += 1;
        if steps > MOST_STEPS {
            return Err(io::Error::other("a thread does not leave the vdso"));
        }
        raw::single_step(tid)?;
        match stop::wait(tid, true)?.map(|wait| wait.stop) {
            Some(Stop::Exited(_)) => return Err(io::ErrorKind::NotFound.into()),
            Some(Stop::Signal(signal)) => {
                let info = raw::siginfo(tid)?;
                if !is_step(signal, &info) {
                    hold(tid, &mut held, (signal, info))?;
                    thread.stop = Stop::Signal(signal);
                }
            }
            _ => {}
        }
    }
    // It stands at the last step's own signal, in whose place it gets that one.
    held.map_or(Ok(()), |(_, info)| raw::set_siginfo(tid, &info))
}

/// One more signal is about to be delivered, a SIGTRAP, which the steps cannot do without. Of two
/// of the same number one is enough (signal(7)); else the first goes back to those that wait.
fn hold(tid: i32, held: &mut Option<(i32, SigInfo)>, new: (i32, SigInfo)) -> io::Result<()> {
    if let Some((signal, info)) = held.filter(|(signal, _)| *signal != new.0) {
        raw::set_sigmask(tid, u64::MAX)?;
        raw::set_siginfo(tid, &info)?;
        raw::interrupt(tid)?;
        // Blocked, it is queued again (`ptrace_signal`, kernel/signal.c).
        raw::cont(tid, signal)?;
        stop::await_status(tid)?;
        raw::set_sigmask(tid, !sigbit(libc::SIGTRAP))?;
    }
    *held = Some(new);
    Ok(())
}

/// A SIGTRAP of the kernel, not of a program (sigaction(2), `si_code`).
fn is_step(signal: i32, info: &SigInfo) -> bool {
    signal == libc::SIGTRAP && raw::code_of(info) > 0
}

/// A stack is looked at so far from where a handler is, bytes.
const MOST: u64 = 1 << 20;
/// A thread may be on so many stacks at once (sigaltstack(2)).
const STACKS: usize = 8;

/// Is a thread in a handler of a signal that has found it in the vdso?
fn returns_into(tid: i32, vdso: &Vma, maps: &[Vma]) -> io::Result<bool> {
    let mut begin = vec![raw::regs(tid)?.rsp];
    let mut next = 0;
    while let Some(&at) = begin.get(next).filter(|_| next < STACKS) {
        next += 1;
        let Some(stack) = maps.iter().find(|v| v.contains(at)) else { continue };
        for (rip, rsp) in interrupted(&read_from(tid, at & !7, stack.end)) {
            if vdso.contains(rip) {
                return Ok(true);
            }
            // On another stack?
            if !stack.contains(rsp) && !begin.contains(&rsp) {
                begin.push(rsp);
            }
        }
    }
    Ok(false)
}

/// Words of memory from `at` up to `end`, as far as they can be read.
fn read_from(tid: i32, at: u64, end: u64) -> Vec<u64> {
    let end = end.min(at.saturating_add(MOST));
    let mut bytes = Vec::new();
    let mut from = at;
    while from < end {
        let to = end.min((from | (PAGE - 1)).saturating_add(1));
        let mut piece = vec![0; (to - from) as usize];
        if read_exact(tid, from, &mut piece).is_err() {
            break;
        }
        bytes.append(&mut piece);
        from = to;
    }
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// Where the code and the stack of those are that signals have interrupted, by the frames on this
/// stack.
fn interrupted(stack: &[u64]) -> impl Iterator<Item = (u64, u64)> + '_ {
    // `struct ucontext`: flags, link, three words of a stack; then `struct sigcontext`: fifteen
    // registers, rsp, rip, flags, and cs with three more segments.
    const WORDS: usize = 24;
    const KNOWN_FLAGS: u64 = 7;
    const ALWAYS_SET: u64 = 2;
    stack.windows(WORDS).filter_map(|frame| {
        let (rsp, rip, flags, segments) = (frame[20], frame[21], frame[22], frame[23]);
        let is_one = frame[0] <= KNOWN_FLAGS
            && frame[1] == 0
            && segments & 0xffff == USER_CS
            && flags & ALWAYS_SET != 0
            && flags < 1 << 22;
        is_one.then_some((rip, rsp))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_signals_are_found() {
        let mut stack = vec![7; 60];
        stack[10..34].fill(0);
        (stack[10], stack[30], stack[31], stack[32]) = (7, 0x7000, 0x1234, 0x246);
        stack[33] = 0x2b << 48 | USER_CS;
        assert_eq!(interrupted(&stack).collect::<Vec<_>>(), [(0x1234, 0x7000)]);
        stack[33] = 0;
        assert_eq!(interrupted(&stack).count(), 0);
        assert_eq!(interrupted(&[]).count(), 0);
    }
}
