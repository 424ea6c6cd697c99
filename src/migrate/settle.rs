//! Interrupted system calls: how they go on after the freeze.
//!
//! A stop wakes a sleeping thread. What it finds in rax then (kernel, `arch_do_signal_or_restart`
//! in arch/x86/kernel/signal.c) decides:
//!
//! * `ERESTARTSYS`, `ERESTARTNOINTR`, `ERESTARTNOHAND`: any kernel repeats the call with its
//!   arguments; the registers travel as they are.
//! * `ERESTART_RESTARTBLOCK`: the deadline is in the old kernel's task. The remaining time is
//!   computed from the moment the thread fell asleep, and the call starts again with it.
//! * A count of bytes, of a call that waits for more of them: see [`transfer`].
//! * `EINTR` of a call that never restarts (epoll_wait and others, signal(7)) although no
//!   signal is there but ignored ones: natively the thread would still sleep, so the call
//!   starts again with its remaining time.
//!
//! The moment of falling asleep is `se.exec_start` of `/proc/PID/task/TID/sched`, the
//! scheduler's clock when the thread last ran. It is taken before the stop and counts only
//! when the thread has not run since (its voluntary switches tell). Each CPU has a clock of
//! its own, which stands still while the hypervisor or an interrupt has the CPU
//! (update_rq_clock_task, kernel/sched/core.c): it is compared with itself only, and a sleep
//! may become a little longer, but never shorter.
//! Nothing is known of a sleep that an ignored signal or a stop has disturbed: such a call gets
//! its whole timeout once more, and what is left of that when it is disturbed again.
//!
//! A call that the kernel has started again by itself shows as restart_syscall(2), which means
//! nothing to another kernel. Which call it was is what the supervisor has noted ([`Again`]), or
//! what the thread was seen waiting in.

use std::io;

use super::asleep::{Asleep, Call, SchedulerClocks};
use super::image::Restart;
use super::resource::View;
use super::transfer;
use crate::tracer::inject::{read_exact, sigbit, word};
use crate::tracer::raw::{self, Regs};

const ERESTARTSYS: i64 = -512;
/// The kernel makes the call again, also after a handler (linux/errno.h).
pub const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -(libc::EINTR as i64);

/// Where a call keeps its relative timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timeout {
    /// Argument n points to a `struct timespec`; null: none.
    Spec(usize),
    /// Argument n is a number of milliseconds; negative: none.
    Millis(usize),
}

/// The timeout of a call, when it is relative and lost with the old kernel. `args` as in
/// [`arguments`].
pub(super) fn timeout_of(nr: i64, args: &[u64; 6]) -> Option<Timeout> {
    const FUTEX_WAIT: u64 = 0;
    const FUTEX_CMD: u64 = !(128 | 256);
    match nr {
        libc::SYS_nanosleep => Some(Timeout::Spec(0)),
        libc::SYS_clock_nanosleep if args[1] & libc::TIMER_ABSTIME as u64 == 0 => {
            Some(Timeout::Spec(2))
        }
        libc::SYS_poll => Some(Timeout::Millis(2)),
        libc::SYS_futex if args[1] & FUTEX_CMD == FUTEX_WAIT => Some(Timeout::Spec(3)),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Some(Timeout::Millis(3)),
        SYS_EPOLL_PWAIT2 | libc::SYS_semtimedop => Some(Timeout::Spec(3)),
        libc::SYS_rt_sigtimedwait => Some(Timeout::Spec(2)),
        libc::SYS_io_getevents => Some(Timeout::Spec(4)),
        _ => None,
    }
}

const SYS_EPOLL_PWAIT2: i64 = 441;

/// Calls that answer EINTR when a stop wakes them: those of sockets do with a timeout of
/// SO_RCVTIMEO or SO_SNDTIMEO (signal(7)), fallocate(2) on tmpfs.
fn answers_eintr(nr: i64) -> bool {
    matches!(
        nr,
        libc::SYS_read
            | libc::SYS_readv
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg
            | libc::SYS_write
            | libc::SYS_writev
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_sendmmsg
            | libc::SYS_sendfile
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_connect
            | libc::SYS_fallocate
            | libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | SYS_EPOLL_PWAIT2
            | libc::SYS_semop
            | libc::SYS_semtimedop
            | libc::SYS_rt_sigtimedwait
            | libc::SYS_io_getevents
    )
}

/// System-call arguments in their order.
#[must_use]
pub fn arguments(r: &Regs) -> [u64; 6] {
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]
}

fn set_argument(r: &mut Regs, n: usize, value: u64) {
    *[&mut r.rdi, &mut r.rsi, &mut r.rdx, &mut r.r10, &mut r.r8, &mut r.r9][n] = value;
}

/// A call that was interrupted and goes on, which the program does not see.
#[derive(Debug, Clone, Copy)]
pub struct Again {
    /// Registers as they were at the interruption, with the arguments of the program.
    pub regs: Regs,
    /// With what is left of it now.
    pub restart: Restart,
    /// The kernel has started it again, with the program's arguments; else the supervisor, with
    /// its own.
    pub by_kernel: bool,
    /// The number of the call that is made for it.
    pub nr: i64,
}

/// Where a thread is with a call that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// About to enter the kernel.
    Before,
    /// In the call, or just out of it.
    Inside,
    /// The call is over.
    Elsewhere,
}

impl Again {
    /// Where the thread is, by its registers.
    #[must_use]
    pub fn place(&self, now: &Regs) -> Place {
        if now.rsp != self.regs.rsp {
            return Place::Elsewhere;
        }
        let in_call = match self.by_kernel {
            true => now.orig_rax as i64 == libc::SYS_restart_syscall,
            false => now.orig_rax as i64 >= 0,
        };
        if now.rip == self.regs.rip && in_call {
            return Place::Inside;
        }
        let nr = if self.by_kernel { libc::SYS_restart_syscall } else { self.nr };
        if now.rip + 2 == self.regs.rip && now.rax as i64 == nr {
            return Place::Before;
        }
        Place::Elsewhere
    }
}

/// Registers of a stopped thread as the program has them: the arguments are its own, and a call
/// that goes on is the one it made. `again` when the call that it tells of goes on.
#[must_use]
pub fn as_interrupted<'a>(
    now: &Regs,
    again: Option<&'a Again>,
    asleep: Option<&Asleep>,
) -> (Regs, Option<&'a Again>) {
    let mut regs = *now;
    let again = match again.map(|a| (a, a.place(now))) {
        Some((again, Place::Before)) => {
            regs = again.regs;
            Some(again)
        }
        Some((again, Place::Inside)) => {
            regs = with_arguments(now, &again.regs);
            Some(again)
        }
        _ => None,
    };
    if regs.orig_rax as i64 == libc::SYS_restart_syscall {
        let nr =
            again.map(|a| a.restart.nr).or_else(|| asleep.and_then(|a| a.call).map(|call| call.nr));
        regs.orig_rax = nr.map_or(regs.orig_rax, |nr| nr as u64);
    }
    (regs, again)
}

/// Reads a `struct timespec`, nanoseconds.
fn timespec(pid: i32, at: u64) -> io::Result<u64> {
    let mut raw = [0; 16];
    read_exact(pid, at, &mut raw)?;
    Ok(word(&raw, 0).saturating_mul(1_000_000_000).saturating_add(word(&raw, 8)))
}

/// The whole timeout of a call, nanoseconds; `None`: it has none.
fn whole(pid: i32, timeout: Timeout, args: &[u64; 6]) -> io::Result<Option<u64>> {
    match timeout {
        Timeout::Spec(n) if args[n] == 0 => Ok(None),
        Timeout::Spec(n) => timespec(pid, args[n]).map(Some),
        Timeout::Millis(n) if (args[n] as i32) < 0 => Ok(None),
        Timeout::Millis(n) => Ok(Some(u64::from(args[n] as u32) * 1_000_000)),
    }
}

/// What is known of a thread when its interrupted call is judged.
#[derive(Debug, Clone, Copy)]
pub struct Interrupted<'a> {
    pub pid: i32,
    pub regs: &'a Regs,
    /// A signal is pending that is not blocked, or about to be delivered.
    pub signal: bool,
    /// It is in group-stop, which natively interrupts a call.
    pub in_group_stop: bool,
    /// Seen before the stop.
    pub asleep: Option<Asleep>,
    /// [`scheduler_clocks`](super::asleep::scheduler_clocks) at the freeze.
    pub now: &'a SchedulerClocks,
    /// What is known of an earlier interruption.
    pub again: Option<&'a Again>,
}

/// How the call of a stopped thread goes on at the target; `None`: the registers, as
/// [`as_interrupted`] gives them, say all.
///
/// # Errors
/// When its timeout cannot be read.
pub fn judge(it: &Interrupted) -> io::Result<Option<Restart>> {
    let (regs, again) = as_interrupted(it.regs, it.again, it.asleep.as_ref());
    let result = regs.rax as i64;
    let nr = regs.orig_rax as i64;
    let in_call = nr >= 0;
    let woken = result == ERESTART_RESTARTBLOCK || (result == EINTR && answers_eintr(nr));
    let restarts = in_call && woken && !it.signal;
    if in_call && !it.signal && (!it.in_group_stop || again.is_some()) {
        if let Some(done) = transfer::part(it.pid, &regs) {
            return Ok(Some(Restart { nr, remaining_ns: None, done }));
        }
    }
    if let Some(again) = again {
        let interrupted = [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND].contains(&result);
        return Ok((restarts || (in_call && interrupted)).then_some(again.restart));
    }
    if !restarts {
        return Ok(None);
    }
    let args = arguments(&regs);
    let Some(timeout) = timeout_of(nr, &args) else {
        return Ok(Some(Restart { nr, remaining_ns: None, done: 0 }));
    };
    let Some(whole) = whole(it.pid, timeout, &args)? else {
        return Ok(Some(Restart { nr, remaining_ns: None, done: 0 }));
    };
    let same = |call: Call| call.nr == nr && call.args == arguments(it.regs);
    let seen = it.asleep.filter(|a| a.call.is_none_or(same));
    let slept = seen.and_then(|a| Some(it.now.get(&a.cpu)?.saturating_sub(a.since)));
    let slept = slept.unwrap_or(0);
    Ok(Some(Restart { nr, remaining_ns: Some(whole.saturating_sub(slept)), done: 0 }))
}

/// The call of a stopped thread that the kernel will start again by a restart block, with its
/// whole timeout: when it fell asleep is not known.
///
/// # Errors
/// When its timeout cannot be read.
pub fn kernel_restart(pid: i32, regs: &Regs) -> io::Result<Option<Restart>> {
    let nr = regs.orig_rax as i64;
    if regs.rax as i64 != ERESTART_RESTARTBLOCK || nr < 0 || nr == libc::SYS_restart_syscall {
        return Ok(None);
    }
    let args = arguments(regs);
    let timeout = timeout_of(nr, &args).map_or(Ok(None), |t| whole(pid, t, &args))?;
    Ok(Some(Restart { nr, remaining_ns: timeout, done: 0 }))
}

/// Does this call sleep on a clock of CPU time, which begins anew at the target
/// (clock_nanosleep(2))?
#[must_use]
pub fn sleeps_on_cpu_time(nr: i64, clock: u64) -> bool {
    // The last three bits of a negative number tell what it stands for (CPUCLOCK_WHICH and
    // CLOCKFD, kernel/time/posix-timers.h); 3 is a device's clock.
    let clock = clock as i32;
    let of_cpu = clock == libc::CLOCK_PROCESS_CPUTIME_ID || (clock < 0 && clock & 3 != 3);
    nr == libc::SYS_clock_nanosleep && of_cpu
}

/// [`judge`] of a thread that is stopped now.
///
/// # Errors
/// When the thread is gone, or its timeout cannot be read.
pub fn judge_stopped(
    pid: i32,
    thread: &super::freeze::Frozen,
    now: &SchedulerClocks,
    again: Option<&Again>,
) -> io::Result<Option<Restart>> {
    let view = View::read(pid, thread.tid)?;
    judge_seen(&view, &raw::regs(thread.tid)?, view.hex("SigBlk:"), thread, now, again)
}

/// [`judge_stopped`] with what has been read already. `blocked` are the signals that the thread
/// will block: the call goes on for others, and lets them come by a mask of its own
/// (epoll_pwait(2)).
///
/// # Errors
/// When the timeout of its call cannot be read.
pub fn judge_seen(
    view: &View,
    regs: &Regs,
    blocked: u64,
    thread: &super::freeze::Frozen,
    now: &SchedulerClocks,
    again: Option<&Again>,
) -> io::Result<Option<Restart>> {
    let ignored = ignored(view.hex("SigIgn:"), view.hex("SigCgt:"));
    let pending = (view.hex("SigPnd:") | view.hex("ShdPnd:")) & !ignored;
    let stopped_by = match thread.stop {
        crate::tracer::Stop::Signal(signal) => sigbit(signal) & !ignored & !blocked,
        _ => 0,
    };
    judge(&Interrupted {
        pid: view.pid,
        regs,
        signal: stopped_by != 0 || has_deliverable(pending, blocked),
        in_group_stop: matches!(thread.stop, crate::tracer::Stop::Group(_)),
        asleep: thread.asleep,
        now,
        again,
    })
}

/// Signals that natively wake nobody, by the masks of proc_pid_status(5): ignored ones, and
/// those whose default is to be ignored (signal(7)). A tracer is shown them all the same
/// (`sig_ignored`, kernel/signal.c), which ends the call of a sleeping thread. Not SIGCONT:
/// the stop that it ends has natively interrupted the call.
fn ignored(ignored: u64, caught: u64) -> u64 {
    const BY_DEFAULT: [i32; 3] = [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH];
    let by_default = BY_DEFAULT.into_iter().map(sigbit).fold(0, |all, bit| all | bit);
    (ignored | by_default & !caught) & !sigbit(libc::SIGCONT)
}

/// Has a stop ended the call, which the kernel will not restart?
#[must_use]
pub fn cut_short(regs: &Regs) -> bool {
    regs.rax as i64 == EINTR && answers_eintr(regs.orig_rax as i64)
}

/// Has a stop interrupted the call, which the kernel will start again unless a handler runs?
#[must_use]
pub fn starts_again(regs: &Regs) -> bool {
    const CODES: [i64; 4] = [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK];
    CODES.contains(&(regs.rax as i64)) && regs.orig_rax as i64 >= 0
}

/// Is it in a call that the kernel has started again with what is left of its timeout?
#[must_use]
pub fn is_restart(regs: &Regs) -> bool {
    regs.orig_rax as i64 == libc::SYS_restart_syscall
}

/// The call that [`restart`] has made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub nr: i64,
    /// Bytes that it is to transfer, of a transfer that goes on.
    pub len: u64,
}

impl Asked {
    /// A call that starts again as a whole.
    #[must_use]
    pub fn whole(restart: &Restart) -> Self {
        Self { nr: restart.nr, len: 0 }
    }
}

/// Gives a stopped thread the registers with which its call starts again with what is left of
/// its timeout, or of its bytes; `None`: nothing is left, nothing is changed. The old arguments must
/// be put back when the call returns: the kernel keeps argument registers, and compilers count on
/// it. A timespec goes below the red zone, where signal frames go too.
///
/// # Errors
/// When registers or stack cannot be written.
pub fn restart(tid: i32, regs: &Regs, restart: &Restart) -> io::Result<Option<Asked>> {
    let mut regs = *regs;
    let mut asked = Asked::whole(restart);
    if restart.done > 0 {
        let Some(rest) = transfer::rest(tid, &regs, restart.done) else { return Ok(None) };
        asked = Asked { nr: rest.nr, len: rest.len };
        rest.args.into_iter().enumerate().for_each(|(n, value)| set_argument(&mut regs, n, value));
    } else if let (Some(ns), Some(timeout)) =
        (restart.remaining_ns, timeout_of(restart.nr, &arguments(&regs)))
    {
        match timeout {
            Timeout::Millis(n) => {
                let ms = ns.div_ceil(1_000_000).min(i32::MAX as u64);
                set_argument(&mut regs, n, ms);
            }
            Timeout::Spec(n) => {
                let at = (regs.rsp - 128 - 64) & !15;
                let mut spec = (ns / 1_000_000_000).to_le_bytes().to_vec();
                spec.extend_from_slice(&(ns % 1_000_000_000).to_le_bytes());
                crate::tracer::inject::write_all(tid, at, &spec)?;
                set_argument(&mut regs, n, at);
            }
        }
    }
    regs.rip -= 2;
    regs.rax = asked.nr as u64;
    regs.orig_rax = u64::MAX;
    raw::set_regs(tid, &regs)?;
    Ok(Some(asked))
}

/// Registers at the return of the call for the rest of a transfer, as if the call of the program
/// (`interrupted`) had made it all.
#[must_use]
pub fn with_part(now: &Regs, interrupted: &Regs, done: u64) -> Regs {
    let mut regs = with_arguments(now, interrupted);
    regs.rax = done.saturating_add(u64::try_from(now.rax as i64).unwrap_or(0));
    regs.orig_rax = interrupted.orig_rax;
    regs
}

/// Has the process a handler for this signal, or is its default more than to be ignored or to
/// stop: will the signal end an interrupted call?
#[must_use]
pub fn ends_call(view: &View, signal: i32) -> bool {
    let caught = view.hex("SigCgt:");
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal);
    let ignored = ignored(view.hex("SigIgn:"), caught) & sigbit(signal) != 0;
    let cont = signal == libc::SIGCONT;
    caught & sigbit(signal) != 0 || !(ignored || stops || cont)
}

/// Registers with the system-call arguments of `original`.
#[must_use]
pub fn with_arguments(regs: &Regs, original: &Regs) -> Regs {
    let mut regs = *regs;
    for (n, value) in arguments(original).into_iter().enumerate() {
        set_argument(&mut regs, n, value);
    }
    regs
}

/// Registers for an interrupted call that a signal is about to end: the kernel of the target
/// has no restart block, so the call is to be repeated only if no handler runs.
#[must_use]
pub fn without_restart_block(regs: &Regs) -> Regs {
    let mut regs = *regs;
    if regs.rax as i64 == ERESTART_RESTARTBLOCK && (regs.orig_rax as i64) >= 0 {
        regs.rax = ERESTARTNOHAND as u64;
    }
    regs
}

/// Does the thread have a signal that would be delivered now?
#[must_use]
pub fn has_deliverable(pending: u64, blocked: u64) -> bool {
    pending & !blocked & !sigbit(libc::SIGCONT) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_timeouts() {
        let args = [0, 0, 500, 7, 0, 0];
        assert_eq!(timeout_of(libc::SYS_poll, &args), Some(Timeout::Millis(2)));
        assert_eq!(timeout_of(libc::SYS_futex, &[0, 128, 0, 7, 0, 0]), Some(Timeout::Spec(3)));
        // FUTEX_WAIT_BITSET and TIMER_ABSTIME are absolute.
        assert_eq!(timeout_of(libc::SYS_futex, &[0, 128 | 9, 0, 7, 0, 0]), None);
        assert_eq!(timeout_of(libc::SYS_clock_nanosleep, &[1, 1, 0, 0, 0, 0]), None);
        let pid = std::process::id() as i32;
        assert_eq!(whole(pid, Timeout::Millis(2), &args).unwrap(), Some(500_000_000));
        assert_eq!(whole(pid, Timeout::Millis(2), &[0, 0, u64::MAX, 0, 0, 0]).unwrap(), None);
    }

    #[test]
    fn sleeps_on_clocks_of_cpu_time() {
        let on = |clock: i32| sleeps_on_cpu_time(libc::SYS_clock_nanosleep, clock as u64);
        // Of a process: of this one, and of process 5 by its number.
        assert!(on(libc::CLOCK_PROCESS_CPUTIME_ID) && on(-6) && on((!5 << 3) | 2));
        assert!(!on(libc::CLOCK_MONOTONIC) && !on(libc::CLOCK_TAI) && !on((!5 << 3) | 3));
        assert!(!sleeps_on_cpu_time(libc::SYS_nanosleep, 2));
    }

    #[test]
    fn where_a_call_that_goes_on_is() {
        let nr = libc::SYS_nanosleep;
        let mut regs = Regs {
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            rbp: 0,
            rbx: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rax: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            orig_rax: 0,
            rip: 0,
            cs: 0,
            eflags: 0,
            rsp: 0,
            ss: 0,
            fs_base: 0,
            gs_base: 0,
            ds: 0,
            es: 0,
            fs: 0,
            gs: 0,
        };
        (regs.rip, regs.rsp, regs.orig_rax) = (0x1002, 0x8000, nr as u64);
        regs.rax = ERESTART_RESTARTBLOCK as u64;
        regs.rdi = 0x5000;
        let restart = Restart { nr, remaining_ns: Some(7), done: 0 };
        let ours = Again { regs, restart, by_kernel: false, nr };
        let mut now = regs;
        (now.rip, now.rax, now.orig_rax, now.rdi) = (0x1000, nr as u64, u64::MAX, 0x7f00);
        assert_eq!(ours.place(&now), Place::Before);
        let (seen, again) = as_interrupted(&now, Some(&ours), None);
        assert_eq!((seen.rip, seen.rdi, again.is_some()), (0x1002, 0x5000, true));
        let kernels = Again { by_kernel: true, ..ours };
        assert_eq!(kernels.place(&now), Place::Elsewhere);
        (now.rip, now.orig_rax) = (0x1002, libc::SYS_restart_syscall as u64);
        now.rax = ERESTART_RESTARTBLOCK as u64;
        assert_eq!(kernels.place(&now), Place::Inside);
        let (seen, _) = as_interrupted(&now, Some(&kernels), None);
        assert_eq!(seen.orig_rax as i64, nr);
        // The same call made once more is not the one that was started again.
        now.orig_rax = nr as u64;
        assert_eq!(kernels.place(&now), Place::Elsewhere);
    }

    #[test]
    fn ignored_signals() {
        let (chld, winch, usr1) = (sigbit(libc::SIGCHLD), sigbit(libc::SIGWINCH), sigbit(10));
        let cont = sigbit(libc::SIGCONT);
        assert_eq!(ignored(0, 0), chld | winch | sigbit(libc::SIGURG));
        assert_eq!(ignored(usr1 | cont, chld | cont), winch | sigbit(libc::SIGURG) | usr1);
    }
}
