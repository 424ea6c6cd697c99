//! Calls run inside a stopped thread.
//!
//! ```text
//! Remote::open ─► call   one call at a `syscall` instruction of the vdso (two stops; one by a step)
//!             └─► run    a Program through the batch stub (one stop for all its calls)
//!              ─► close  registers and signal mask as before, in a signal-stop, so that an
//!                        interrupted system call still restarts (see `settle`)
//! ```
//! While a thread is borrowed all its signals are blocked, so that none is delivered in the
//! middle; but for SIGTRAP while a batch or a single step is to end by one. A SIGTRAP that is not of
//! these (another si_code, or another place) is the program's, and is queued again.
//!
//! A thread whose calls go to itself (PR_SET_SYSCALL_USER_DISPATCH of prctl(2)) has that switched
//! off while it is borrowed: the calls run in it are none of its own.
//!
//! # Failed ideas
//! 1. Ending calls by a SIGTRAP always: it is forced (force_sig_info_to_task, kernel/signal.c),
//!    which resets a job's ignored SIGTRAP to default. Syscall-stops are no signals. Where SIGTRAP
//!    is ignored or a signal is queued that [`comes_with_trap`], calls are stepped by these instead.
//! 2. Putting registers back at a syscall-exit-stop: the kernel restarts interrupted calls in
//!    get_signal only, so the job would see ERESTARTSYS. Hence the interrupt in `close`.

use std::io;

pub use program::{Arg, Data, Outcome, Program};
pub use stub::{Stub, STUB_LEN};

use super::raw::{self, Dispatch, Regs};
use super::rseq;
use super::stop::{self, Exit, Stop};

mod program;
mod stub;

/// Bit of a signal in a kernel mask.
#[must_use]
pub const fn sigbit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Would a trap bring this queued signal out as well? A SIGTRAP because it is unblocked for the
/// trap; the other signals of faults because the kernel gives the first of them in the queue,
/// blocked or not, when one is unblocked (dequeue_synchronous_signal, kernel/signal.c).
#[must_use]
pub fn comes_with_trap(info: &[u8]) -> bool {
    use libc::{SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
    [SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS].contains(&raw::number_of(info))
}

/// Bytes of a `syscall` instruction.
const SYSCALL_LEN: u64 = 2;
/// `si_code` of a single step (send_sigtrap, arch/x86/kernel/ptrace.c).
const TRAP_BRKPT: i32 = 1;

/// Why an injected call failed.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The thread ended while calls ran in it.
    #[error("thread {tid} ended ({exit:?})")]
    Died { tid: i32, exit: Exit },
    /// The thread stopped in a way that cannot happen with all signals blocked.
    #[error("thread {tid} stopped unexpectedly: {stop:?}")]
    Unexpected { tid: i32, stop: Stop },
    /// An injected system call failed.
    #[error("{what} in thread {tid}: {source}")]
    Call { tid: i32, what: &'static str, source: io::Error },
    /// A ptrace request failed.
    #[error("{what} of thread {tid}: {source}")]
    Trace { tid: i32, what: &'static str, source: io::Error },
    /// The program is larger than the stub mapping.
    #[error("a batch of {0} bytes does not fit the stub")]
    TooLong(usize),
}

type Result<T> = std::result::Result<T, InjectError>;

impl InjectError {
    /// An injected call has failed with this errno.
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Call { source, .. } if source.raw_os_error() == Some(errno))
    }
}

fn trace<T>(tid: i32, what: &'static str, r: io::Result<T>) -> Result<T> {
    r.map_err(|source| InjectError::Trace { tid, what, source })
}

/// Turns a raw result into a value or an errno.
///
/// # Errors
/// The errno that the kernel answered.
pub fn result_of(value: i64) -> io::Result<u64> {
    if (-4095..0).contains(&value) {
        Err(io::Error::from_raw_os_error(-value as i32))
    } else {
        Ok(value as u64)
    }
}

/// One call at a `syscall` instruction of the process.
struct Single {
    insn: u64,
    nr: i64,
    what: &'static str,
    args: [u64; 6],
}

impl Single {
    fn load(&self, regs: &mut Regs) {
        regs.rax = self.nr as u64;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = self.args;
    }
}

/// A batch that is under way in one thread.
#[derive(Debug)]
#[must_use]
pub struct Started {
    stub: Stub,
    program: Program,
    data_at: u64,
    table_at: u64,
    /// By syscall-stops, instead of running to a trap.
    stepped: bool,
}

/// A stopped thread, borrowed to run calls in it.
#[derive(Debug)]
pub struct Remote {
    tid: i32,
    /// Registers as they will be put back by [`Remote::close`].
    pub regs: Regs,
    /// Signal mask as it will be put back.
    pub mask: u64,
    /// Signals that arrived although blocked (SIGSTOP); sent again at the end.
    deferred: Vec<i32>,
    /// No `int3`: it would reset an ignored SIGTRAP.
    steps: bool,
    /// Where its calls go, if not to the kernel.
    dispatch: Option<Dispatch>,
    /// It may be waited for blindly ([`stop::await_status_of`]), once that was asked.
    blindly: Option<bool>,
    open: bool,
}

impl Remote {
    /// Borrows a stopped thread, out of a restartable sequence that it may be in.
    /// `ignores_sigtrap` as in `SigIgn` of its status.
    ///
    /// # Errors
    /// When the thread is not stopped any more.
    pub fn open(tid: i32, ignores_sigtrap: bool) -> Result<Self> {
        let mut regs = trace(tid, "read registers", raw::regs(tid))?;
        rseq::leave(tid, &mut regs);
        let mask = trace(tid, "read signal mask", raw::sigmask(tid))?;
        Self::open_with(tid, regs, mask, ignores_sigtrap)
    }

    /// [`Remote::open`] of a thread whose registers and mask are known, and that is in no
    /// restartable sequence ([`rseq::leave`]).
    ///
    /// # Errors
    /// As [`Remote::open`].
    pub fn open_with(tid: i32, regs: Regs, mask: u64, ignores_sigtrap: bool) -> Result<Self> {
        trace(tid, "set signal mask", raw::set_sigmask(tid, u64::MAX))?;
        // Kernels before Linux 6.4 do not tell.
        let dispatch = raw::dispatch(tid).unwrap_or_default();
        let deferred = Vec::new();
        let remote = Self {
            tid,
            regs,
            mask,
            deferred,
            steps: ignores_sigtrap,
            dispatch,
            blindly: None,
            open: true,
        };
        if dispatch.is_some() {
            trace(tid, "stop the dispatch of calls", raw::set_dispatch(tid, None))?;
        }
        Ok(remote)
    }

    /// Where the calls of the thread go when it is not borrowed.
    #[must_use]
    pub fn dispatch(&self) -> Option<Dispatch> {
        self.dispatch
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Lets no batch end by a SIGTRAP from here on, because a call in one queues that signal
    /// or has it ignored.
    pub fn avoid_traps(&mut self) {
        self.steps = true;
    }

    fn enter(&self, rip: u64, change: impl FnOnce(&mut Regs)) -> Result<()> {
        let mut regs = self.regs;
        regs.rip = rip;
        regs.orig_rax = u64::MAX;
        change(&mut regs);
        trace(self.tid, "set registers", raw::set_regs(self.tid, &regs))
    }

    /// Goes on until `wanted`; keeps other stops from being lost.
    fn run_to(
        &mut self,
        resume: impl Fn(i32) -> io::Result<()>,
        wanted: impl Fn(Stop) -> bool,
    ) -> Result<()> {
        let tid = self.tid;
        loop {
            trace(tid, "resume", resume(tid))?;
            let alone = || stop::is_alone(tid) || !stop::is_leader(tid);
            let blindly = *self.blindly.get_or_insert_with(alone);
            match trace(tid, "wait", stop::await_status_of(tid, blindly))?.stop {
                s if wanted(s) => return Ok(()),
                Stop::Clone(_) => self.blindly = None,
                // A call that the supervisor observes or translates is stopped here as well.
                Stop::Interrupt | Stop::Group(_) | Stop::Seccomp => {}
                Stop::Signal(signal) if signal != libc::SIGTRAP => self.deferred.push(signal),
                Stop::Exited(exit) => return Err(InjectError::Died { tid, exit }),
                stop => return Err(InjectError::Unexpected { tid, stop }),
            }
        }
    }

    /// Runs one call at the `syscall` instruction `insn`.
    ///
    /// # Errors
    /// [`InjectError::Call`] with the errno it answered.
    pub fn call(&mut self, insn: u64, nr: i64, what: &'static str, args: [u64; 6]) -> Result<u64> {
        let call = Single { insn, nr, what, args };
        self.enter_call(&call)?;
        self.run_to(|tid| raw::syscall_step(tid, 0), |s| s == Stop::Syscall)?;
        self.answer(&call)
    }

    /// Runs one call as [`Remote::call`] does, but in one stop instead of two, where a SIGTRAP may end
    /// it: a single step over the instruction. SIGTRAPs of the program that come meanwhile are added
    /// to `foreign`; they are to be queued again.
    fn call_at_once(&mut self, call: &Single, foreign: &mut Vec<raw::SigInfo>) -> Result<u64> {
        if self.steps || self.is_disturbed()? {
            return self.call(call.insn, call.nr, call.what, call.args);
        }
        self.enter(call.insn, |regs| call.load(regs))?;
        self.allow_traps()?;
        foreign.extend(self.run_to_trap(raw::single_step, call.insn + SYSCALL_LEN, TRAP_BRKPT)?);
        self.answer(call)
    }

    /// Goes on to the entry of a call.
    fn enter_call(&mut self, call: &Single) -> Result<()> {
        self.enter(call.insn, |regs| call.load(regs))?;
        self.run_to(|tid| raw::syscall_step(tid, 0), |s| s == Stop::Syscall)
    }

    /// What a call has answered that has just ended.
    fn answer(&self, call: &Single) -> Result<u64> {
        let rax = trace(self.tid, "read registers", raw::regs(self.tid))?.rax;
        let failed = |source| InjectError::Call { tid: self.tid, what: call.what, source };
        result_of(rax as i64).map_err(failed)
    }

    /// Starts a program in the stub's room from `offset` on; it runs until
    /// [`Remote::finish`].
    ///
    /// # Errors
    /// [`InjectError::TooLong`].
    pub fn start(&mut self, stub: &Stub, offset: u64, program: Program) -> Result<Started> {
        let data_at = stub.data() + offset;
        if offset + program.size() as u64 > stub.capacity() {
            return Err(InjectError::TooLong(program.size()));
        }
        let (bytes, table_at) = program.assemble(data_at);
        stub.write(data_at, &bytes)?;
        self.enter(stub.base, |r| {
            r.r12 = table_at;
            r.r13 = program.len() as u64;
        })?;
        let stepped = self.steps || self.is_disturbed()?;
        if !stepped {
            self.allow_traps()?;
            trace(self.tid, "resume", raw::cont(self.tid, 0))?;
        }
        Ok(Started { stub: *stub, program, data_at, table_at, stepped })
    }

    /// Is a signal queued that [`comes_with_trap`]?
    fn is_disturbed(&self) -> Result<bool> {
        let queued = |shared| {
            let all = trace(self.tid, "signals queued", raw::queued_signals(self.tid, shared))?;
            Ok(all.iter().any(|info| comes_with_trap(info)))
        };
        Ok(queued(false)? || queued(true)?)
    }

    /// Waits for the end of a program.
    ///
    /// # Errors
    /// When the thread dies or stops otherwise; not for calls that failed.
    pub fn finish(&mut self, started: Started) -> Result<Outcome> {
        let tid = self.tid;
        if started.stepped {
            for _stop in 0..2 * started.program.len() {
                self.run_to(|tid| raw::syscall_step(tid, 0), |s| s == Stop::Syscall)?;
            }
            // The last result is still in rax: the loop's store has not run.
            let rax = trace(tid, "read registers", raw::regs(tid))?.rax;
            let last = started.table_at + 64 * (started.program.len() as u64 - 1) + 56;
            trace(tid, "write into the stub", write_all(tid, last, &rax.to_le_bytes()))?;
        } else {
            let first = std::cell::Cell::new(true);
            let resume = |tid| if first.replace(false) { Ok(()) } else { raw::cont(tid, 0) };
            let foreign = self.run_to_trap(resume, started.stub.idle(), libc::SI_KERNEL)?;
            foreign.iter().try_for_each(|info| self.queue(&started.stub, info, false))?;
        }
        let mut bytes = vec![0; started.program.size()];
        trace(tid, "read the stub", read_exact(tid, started.data_at, &mut bytes))?;
        let table = (started.table_at - started.data_at) as usize;
        Ok(started.program.answered(tid, bytes, table))
    }

    /// Lets SIGTRAP be delivered, and nothing else.
    fn allow_traps(&self) -> Result<()> {
        let mask = !sigbit(libc::SIGTRAP);
        trace(self.tid, "set signal mask", raw::set_sigmask(self.tid, mask))
    }

    /// Goes on to a trap with this `si_code` at `rip`, and blocks all signals again. Gives the SIGTRAPs
    /// of the program that came meanwhile: they are to be queued again.
    fn run_to_trap(
        &mut self,
        resume: impl Fn(i32) -> io::Result<()>,
        rip: u64,
        code: i32,
    ) -> Result<Vec<raw::SigInfo>> {
        let tid = self.tid;
        let mut foreign = Vec::new();
        loop {
            self.run_to(&resume, |s| s == Stop::Signal(libc::SIGTRAP))?;
            let info = trace(tid, "read siginfo", raw::siginfo(tid))?;
            let ended = trace(tid, "read registers", raw::regs(tid))?.rip == rip;
            // The signal of the trap is not queued where one that was sent to the thread still
            // waits (legacy_queue, kernel/signal.c): then that one stands for both.
            if !ended || raw::code_of(&info) != code {
                foreign.push(info);
            }
            if ended {
                break;
            }
        }
        trace(tid, "set signal mask", raw::set_sigmask(tid, u64::MAX))?;
        Ok(foreign)
    }

    /// Queues a signal with its siginfo, as it had been queued: by the thread itself, which
    /// alone may give any si_code (rt_sigqueueinfo(2)). It goes to the thread if `directed` or
    /// if tgkill(2) has sent it, else to the process.
    ///
    /// # Errors
    /// When a call in the thread fails.
    pub fn queue(&mut self, stub: &Stub, info: &raw::SigInfo, directed: bool) -> Result<()> {
        stub.write(stub.room, info)?;
        let (insn, at) = (stub.syscall_insn(), stub.room);
        let signal = raw::number_of(info) as u64;
        let pid = self.call(insn, libc::SYS_getpid, "getpid", [0; 6])?;
        let tid = self.call(insn, libc::SYS_gettid, "gettid", [0; 6])?;
        // Of the process's threads only the first may queue what kill(2) has sent.
        let own = directed || raw::code_of(info) == libc::SI_TKILL || pid != tid;
        let (nr, what, args) = if own {
            (libc::SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo", [pid, tid, signal, at, 0, 0])
        } else {
            (libc::SYS_rt_sigqueueinfo, "rt_sigqueueinfo", [pid, signal, at, 0, 0, 0])
        };
        self.call(insn, nr, what, args).map(drop)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// As [`Remote::start`] and [`Remote::finish`].
    pub fn run(&mut self, stub: &Stub, program: Program) -> Result<Outcome> {
        if program.is_empty() {
            return Ok(program.unasked(self.tid));
        }
        let started = self.start(stub, 0, program)?;
        self.finish(started)
    }

    /// Ends the loan: registers and mask as in [`Remote::regs`] and [`Remote::mask`]. The
    /// thread stays stopped, in a signal-stop.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn close(mut self) -> Result<()> {
        self.put_back()
    }

    /// Takes the stub out of the process by a call at the `syscall` instruction `insn`, and ends the
    /// loan as [`Remote::close`] does.
    ///
    /// # Errors
    /// When the thread is gone or the call fails.
    pub fn close_with(mut self, stub: &Stub, insn: u64) -> Result<()> {
        let call = stub.unmapping(insn);
        self.enter_call(&call)?;
        // The stop of which the loan ends is that of the call's exit as well.
        self.enter_signal_stop()?;
        let unmapped = self.answer(&call);
        self.give_back()?;
        unmapped.map(drop)
    }

    /// Ends the loan of a thread that is not to be put back: it gets other registers.
    pub fn keep(mut self) {
        self.open = false;
    }

    fn put_back(&mut self) -> Result<()> {
        self.open = false;
        trace(self.tid, "set registers", raw::set_regs(self.tid, &self.regs))?;
        self.enter_signal_stop()?;
        self.give_back()
    }

    /// What the thread had, in a signal-stop.
    fn give_back(&mut self) -> Result<()> {
        self.open = false;
        let tid = self.tid;
        trace(tid, "set registers", raw::set_regs(tid, &self.regs))?;
        if self.dispatch.is_some() {
            trace(tid, "dispatch calls", raw::set_dispatch(tid, self.dispatch))?;
        }
        trace(tid, "set signal mask", raw::set_sigmask(tid, self.mask))?;
        for signal in std::mem::take(&mut self.deferred) {
            trace(tid, "send a signal again to", raw::tgkill(tid, signal))?;
        }
        Ok(())
    }

    /// From whatever stop into a signal-stop, where the kernel looks at restarts on the way on.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn enter_signal_stop(&mut self) -> Result<()> {
        self.run_to(
            // Any other stop would use the interruption up (ptrace_stop, kernel/signal.c).
            |tid| raw::interrupt(tid).and_then(|()| raw::cont(tid, 0)),
            |s| s == Stop::Interrupt || matches!(s, Stop::Group(_)),
        )
    }
}

impl Drop for Remote {
    /// A loan that ended by an error is put back as far as the thread still can be.
    fn drop(&mut self) {
        if self.open {
            if let Err(e) = self.put_back() {
                tracing::debug!("{e}");
            }
        }
    }
}

/// Writes all of `bytes` with process_vm_writev(2).
///
/// # Errors
/// `EFAULT` when a part is not writable.
pub fn write_all(pid: i32, addr: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        done += match raw::write_memory(pid, addr + done as u64, &bytes[done..])? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => n,
        };
    }
    Ok(())
}

/// The eight bytes of a thread's memory from `at` as one number.
///
/// # Panics
/// When they are not all there.
#[must_use]
pub fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Reads all of `buf` with process_vm_readv(2).
///
/// # Errors
/// `EFAULT` when a part is not readable.
pub fn read_exact(pid: i32, addr: u64, buf: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        done += match raw::read_memory(pid, addr + done as u64, &mut buf[done..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => n,
        };
    }
    Ok(())
}
