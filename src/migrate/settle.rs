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

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::cpus;
use super::image::Restart;
use super::resource::View;
use super::transfer;
use crate::tracer::inject::{read_exact, sigbit, word};
use crate::tracer::memory::{read_proc, read_record, stat_field};
use crate::tracer::raw::{self, Regs};

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -(libc::EINTR as i64);

/// Where a call keeps its relative timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timeout {
    /// Argument n points to a `struct timespec`; null: none.
    Spec(usize),
    /// Argument n is a number of milliseconds; negative: none.
    Millis(usize),
}

/// The timeout of a call, when it is relative and lost with the old kernel. `args` as in
/// [`arguments`].
fn timeout_of(nr: i64, args: &[u64; 6]) -> Option<Timeout> {
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

/// A thread asleep, seen before it was stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asleep {
    /// Scheduler clock of that CPU when it last ran there, nanoseconds.
    since: u64,
    /// The CPU it last ran on.
    cpu: usize,
    switches: u64,
    /// A process that is not dumpable does not tell.
    call: Option<Call>,
}

/// A call as `/proc/PID/syscall` shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Call {
    /// Its number; when the kernel has started it again, the one of the call that it was.
    nr: i64,
    args: [u64; 6],
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

/// The scheduler's clock at the freeze, by CPU, nanoseconds.
pub type SchedulerClocks = BTreeMap<usize, u64>;

/// `field : value` of a sched file, nanoseconds for times (written in milliseconds).
fn sched_field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

/// The call of `/proc/PID/syscall`, if it has a timeout that a move would lose, or was started
/// again by the kernel. `dir` is the thread's folder in /proc.
fn call_with_timeout(text: &str, dir: &str) -> Option<Call> {
    let mut words = text.split_whitespace();
    let mut nr: i64 = words.next()?.parse().ok()?;
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
    }
    if nr == libc::SYS_restart_syscall {
        nr = started_again(&read_proc(&format!("{dir}/wchan")).ok()?, &args)?;
    } else {
        timeout_of(nr, &args)?;
    }
    Some(Call { nr, args })
}

/// Which call a thread is in that the kernel has started again, by the kernel function where it
/// waits (`/proc/PID/wchan`). Only these have a restart block of their own (`set_restart_fn` in
/// the kernel): poll, futex, nanosleep and clock_nanosleep.
fn started_again(wchan: &str, args: &[u64; 6]) -> Option<i64> {
    const MOST_CLOCKS: i32 = 16;
    match wchan.trim() {
        // It runs, or the kernel does not tell.
        "" | "0" => None,
        name if name.contains("poll") => Some(libc::SYS_poll),
        name if name.contains("futex") => Some(libc::SYS_futex),
        // The first argument is a clock (negative: of a process or a device), or an address.
        _ if args[0] >> 32 == 0 && (args[0] as i32) < MOST_CLOCKS => {
            Some(libc::SYS_clock_nanosleep)
        }
        _ => Some(libc::SYS_nanosleep),
    }
}

/// Is this a call which a stop ends, and others can count those who wait in it (`GETNCNT` and
/// `GETZCNT` of semctl(2))?
#[must_use]
pub fn is_counted(nr: i64) -> bool {
    [libc::SYS_semop, libc::SYS_semtimedop].contains(&nr)
}

/// What is seen of a thread before it is stopped.
#[derive(Debug)]
pub struct Looked {
    /// `None` when it does not sleep in a call with a timeout that a move would lose, or this
    /// kernel has no such file.
    pub asleep: Option<Asleep>,
    /// See [`is_counted`].
    pub is_counted: bool,
}

impl Looked {
    /// Looks at a running thread.
    #[must_use]
    pub fn at(pid: i32, tid: i32) -> Self {
        let dir = format!("/proc/{pid}/task/{tid}");
        let read = || read_record(&format!("{dir}/syscall"));
        let call = |text: io::Result<String>| match text {
            Ok(text) => call_with_timeout(&text, &dir).map(Some),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Some(None),
            Err(_) => None,
        };
        let first = read();
        let is_counted = first.as_ref().is_ok_and(|text| {
            let nr = text.split(' ').next().and_then(|nr| nr.parse().ok());
            nr.is_some_and(is_counted)
        });
        let asleep = || {
            // Most have no timeout.
            call(first)?;
            let before = last_run(&dir)?;
            let call = call(read())?;
            let cpu = last_cpu(&dir)?;
            // One that was woken in between may have another CPU already, and no time yet.
            let (since, switches) = last_run(&dir).filter(|now| *now == before)?;
            Some(Asleep { since, cpu, switches, call })
        };
        Self { is_counted, asleep: asleep() }
    }
}

impl Asleep {
    /// Itself, if the thread went from that sleep straight into the stop in which it is now.
    #[must_use]
    pub fn until_stop(self, pid: i32, tid: i32) -> Option<Self> {
        let (_, now) = last_run(&format!("/proc/{pid}/task/{tid}"))?;
        (now == self.switches + 1).then_some(self)
    }
}

/// Scheduler clock when a thread last ran, nanoseconds, and how often it went to sleep. The
/// clock is 0 between a wake-up on another CPU and the first run there
/// (migrate_task_rq_fair, kernel/sched/fair.c), which tells nothing.
fn last_run(dir: &str) -> Option<(u64, u64)> {
    let sched = read_record(&format!("{dir}/sched")).ok()?;
    let since = (sched_field(&sched, "se.exec_start")? * 1e6) as u64;
    let switches = sched_field(&sched, "nr_voluntary_switches")? as u64;
    (since > 0).then_some((since, switches))
}

/// `processor` of `/proc/PID/task/TID/stat`.
fn last_cpu(dir: &str) -> Option<usize> {
    let stat = read_record(&format!("{dir}/stat")).ok()?;
    stat_field(&stat, 39)?.parse().ok()
}

/// The scheduler's clocks of the CPUs on which threads fell asleep. CPUs that this process
/// may not run on are left out.
#[must_use]
pub fn scheduler_clocks<'a>(sleepers: impl Iterator<Item = &'a Asleep>) -> SchedulerClocks {
    let cpus: BTreeSet<usize> = sleepers.map(|asleep| asleep.cpu).collect();
    let mut clocks = SchedulerClocks::new();
    cpus::visit(cpus, |cpu| {
        clocks.extend(scheduler_clock().ok().map(|now| (cpu, now)));
    });
    clocks
}

/// The clock of the CPU we run on now, nanoseconds: our own `se.exec_start` just after a
/// sleep.
fn scheduler_clock() -> io::Result<u64> {
    cpus::nap();
    let text = read_record("/proc/thread-self/sched")?;
    sched_field(&text, "se.exec_start")
        .map(|ms| (ms * 1e6) as u64)
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
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
    /// [`scheduler_clocks`] at the freeze.
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
    fn calls_that_the_kernel_has_started_again() {
        let named = |wchan, first| started_again(wchan, &[first, 0, 0, 0, 0, 0]);
        assert_eq!(named("hrtimer_nanosleep", 0x7ffc_0000_0000), Some(libc::SYS_nanosleep));
        assert_eq!(named("do_syscall_64", 1), Some(libc::SYS_clock_nanosleep));
        assert_eq!(
            named("do_syscall_64", u64::from(-6i32 as u32)),
            Some(libc::SYS_clock_nanosleep)
        );
        assert_eq!(named("poll_schedule_timeout.constprop.0\n", 0), Some(libc::SYS_poll));
        assert_eq!(named("futex_do_wait", 0x7ffc_0000_0000), Some(libc::SYS_futex));
        assert_eq!(named("0", 1), None);
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

    /// It is woken again and again on the other CPU, also between two looks at it.
    #[test]
    fn a_sleeper_that_changes_its_cpu_never_seems_to_have_slept_for_long() {
        use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
        let (say, tid) = std::sync::mpsc::channel();
        let begin = std::time::Instant::now();
        let clock = move || begin.elapsed().as_nanos() as u64;
        // When it began its last sleep.
        let shared = std::sync::Arc::new((AtomicBool::new(false), AtomicU64::new(0)));
        let of_sleeper = std::sync::Arc::clone(&shared);
        let sleeper = std::thread::spawn(move || {
            say.send(nix::unistd::gettid().as_raw()).unwrap();
            while !of_sleeper.0.load(SeqCst) {
                of_sleeper.1.store(clock(), SeqCst);
                cpus::nap();
            }
        });
        let (pid, tid) = (std::process::id() as i32, tid.recv().unwrap());
        for turn in 0..20_000 {
            let _ = crate::migrate::resource::raw::set_affinity(tid, &[1 << (turn % 2)]);
            let before = shared.1.load(SeqCst);
            let Some(asleep) = Looked::at(pid, tid).asleep else { continue };
            let now = scheduler_clocks(std::iter::once(&asleep))[&asleep.cpu];
            let (slept, most) = (now.saturating_sub(asleep.since), clock() - before);
            assert!(slept < most + 1_000_000_000, "turn {turn}: {slept} ns of {most}, {asleep:?}");
        }
        shared.0.store(true, SeqCst);
        sleeper.join().unwrap();
    }

    #[test]
    fn a_sleeper_is_seen() {
        let child = std::process::Command::new("sleep").arg("100").spawn();
        let mut child = child.unwrap();
        let pid = child.id() as i32;
        let asleep = loop {
            if let Some(a) = Looked::at(pid, pid).asleep {
                break a;
            }
            std::thread::yield_now();
        };
        let now = scheduler_clocks(std::iter::once(&asleep))[&asleep.cpu];
        assert!(now.saturating_sub(asleep.since) < 20_000_000_000, "{now} {asleep:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
