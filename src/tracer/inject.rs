//! Calls run inside a stopped thread.
//!
//! ```text
//! Remote::open ─► call   one call at a `syscall` instruction of the vdso (two stops)
//!             └─► run    a Program through the batch stub (one stop for all its calls)
//!              ─► close  registers and signal mask as before, in a signal-stop, so that an
//!                        interrupted system call still restarts (see `settle`)
//! ```
//! While a thread is borrowed all its signals are blocked, so that none is delivered in the
//! middle; but for SIGTRAP while a batch runs that is to end by one. A SIGTRAP that is not of
//! the batch (another si_code, or another place) is the program's, and is queued again.
//!
//! A thread whose calls go to itself (PR_SET_SYSCALL_USER_DISPATCH of prctl(2)) has that switched
//! off while it is borrowed: the calls run in it are none of its own.
//!
//! # Failed ideas
//! 1. Ending a single call by single-stepping: SIGTRAP is forced (force_sig_info_to_task,
//!    kernel/signal.c), which resets a job's ignored SIGTRAP to default. Syscall-stops are no
//!    signals. The batch ends with `int3`, and where SIGTRAP is ignored or a signal is queued
//!    that [`comes_with_trap`] it is stepped by syscall-stops instead.
//! 2. Putting registers back at a syscall-exit-stop: the kernel restarts interrupted calls in
//!    get_signal only, so the job would see ERESTARTSYS. Hence the interrupt in `close`.

use std::io;

use super::memory::PAGE;
use super::raw::{self, Dispatch, Regs};
use super::rseq;
use super::stop::{self, Exit, Stop};

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

/// The batch stub: runs the table at r12 (8 words a row: number, six arguments, result) of
/// r13 rows, then traps. Position-independent, no stack, no other memory.
const STUB: [u8; 60] = [
    0x49, 0x8b, 0x04, 0x24, // batch: mov rax,[r12]
    0x49, 0x8b, 0x7c, 0x24, 0x08, // mov rdi,[r12+8]
    0x49, 0x8b, 0x74, 0x24, 0x10, // mov rsi,[r12+16]
    0x49, 0x8b, 0x54, 0x24, 0x18, // mov rdx,[r12+24]
    0x4d, 0x8b, 0x54, 0x24, 0x20, // mov r10,[r12+32]
    0x4d, 0x8b, 0x44, 0x24, 0x28, // mov r8,[r12+40]
    0x4d, 0x8b, 0x4c, 0x24, 0x30, // mov r9,[r12+48]
    0x0f, 0x05, // syscall
    0x49, 0x89, 0x44, 0x24, 0x38, // mov [r12+56],rax
    0x49, 0x83, 0xc4, 0x40, // add r12,64
    0x49, 0xff, 0xcd, // dec r13
    0x75, 0xce, // jnz batch
    0xcc, // int3
    0xb8, 0x22, 0x00, 0x00, 0x00, // idle: mov eax,SYS_pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp idle
];
/// Offset of the `syscall` instruction of the batch loop.
const STUB_SYSCALL: u64 = 0x22;
/// Offset of the loop that pauses for ever, right behind the `int3`.
const STUB_IDLE: u64 = 0x33;
/// Room for a siginfo, at the begin of the data.
const STUB_INFO: u64 = 128;

/// Bytes of a stub mapping.
pub const STUB_LEN: u64 = 256 << 10;

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

/// An argument of a call in a [`Program`].
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    Num(u64),
    /// Address of the data put in with [`Program::data`].
    Data(Data),
}

impl From<u64> for Arg {
    fn from(n: u64) -> Self {
        Self::Num(n)
    }
}

/// A piece of a program's data.
#[derive(Debug, Clone, Copy)]
pub struct Data(usize, usize);

impl Data {
    /// Bytes from the begin of the program's data.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.0 as u64
    }
}

/// A call of a [`Program`].
#[derive(Debug)]
struct Call {
    nr: i64,
    what: &'static str,
    args: [Arg; 6],
    /// The program goes on as well without it.
    optional: bool,
}

/// A list of system calls with the data their arguments point to.
#[derive(Debug, Default)]
pub struct Program {
    calls: Vec<Call>,
    data: Vec<u8>,
}

impl Program {
    /// Adds data (16-byte aligned) that calls may point to, read or written.
    pub fn data(&mut self, bytes: &[u8]) -> Data {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at, 0);
        self.data.extend_from_slice(bytes);
        Data(at, bytes.len())
    }

    /// Adds a call; missing arguments are 0. Gives its row.
    pub fn call(&mut self, nr: i64, what: &'static str, args: &[Arg]) -> usize {
        self.add(nr, what, args, false)
    }

    /// Adds a call that the kernel may refuse; [`Outcome::refused`] tells.
    pub fn call_if_granted(&mut self, nr: i64, what: &'static str, args: &[Arg]) {
        self.add(nr, what, args, true);
    }

    fn add(&mut self, nr: i64, what: &'static str, some: &[Arg], optional: bool) -> usize {
        let mut args = [Arg::Num(0); 6];
        args[..some.len()].copy_from_slice(some);
        self.calls.push(Call { nr, what, args, optional });
        self.calls.len() - 1
    }

    /// Number of calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// No call in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Bytes it needs behind the stub's code.
    #[must_use]
    pub fn size(&self) -> usize {
        self.data.len().next_multiple_of(64) + self.calls.len() * 64
    }

    /// Data and table, as they stand in the tracee at `base`.
    fn assemble(&self, base: u64) -> (Vec<u8>, u64) {
        let table = self.data.len().next_multiple_of(64);
        let mut bytes = self.data.clone();
        bytes.resize(table, 0);
        for Call { nr, args, .. } in &self.calls {
            bytes.extend_from_slice(&nr.to_le_bytes());
            for arg in args {
                let word = match arg {
                    Arg::Num(n) => *n,
                    Arg::Data(d) => base + d.0 as u64,
                };
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.extend_from_slice(&[0; 8]);
        }
        (bytes, base + table as u64)
    }
}

/// What a [`Program`] answered.
#[derive(Debug)]
pub struct Outcome {
    tid: i32,
    results: Vec<Answered>,
    data: Vec<u8>,
}

#[derive(Debug)]
struct Answered {
    value: i64,
    what: &'static str,
    optional: bool,
}

impl Outcome {
    /// The raw result of a row.
    #[must_use]
    pub fn raw(&self, row: usize) -> i64 {
        self.results[row].value
    }

    /// The result of a row.
    ///
    /// # Errors
    /// [`InjectError::Call`] with the errno.
    pub fn get(&self, row: usize) -> Result<u64> {
        let Answered { value, what, .. } = self.results[row];
        result_of(value).map_err(|source| InjectError::Call { tid: self.tid, what, source })
    }

    /// Every call succeeded that had to.
    ///
    /// # Errors
    /// The first failure.
    pub fn all_ok(&self) -> Result<()> {
        let rows = (0..self.results.len()).filter(|row| !self.results[*row].optional);
        rows.into_iter().try_for_each(|row| self.get(row).map(drop))
    }

    /// The calls of [`Program::call_if_granted`] that the kernel has refused, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, io::Error)> + '_ {
        let optional = self.results.iter().filter(|answered| answered.optional);
        optional.filter_map(|a| result_of(a.value).err().map(|e| (a.what, e)))
    }

    /// The first four bytes of data after the calls, as a number.
    #[must_use]
    pub fn int(&self, d: Data) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.data(d)[..4]);
        u32::from_ne_bytes(bytes)
    }

    /// Data after the calls.
    #[must_use]
    pub fn data(&self, d: Data) -> &[u8] {
        &self.data[d.0..d.0 + d.1]
    }
}

/// The stub's mapping in a process.
#[derive(Debug, Clone, Copy)]
pub struct Stub {
    pid: i32,
    /// First address, where its code is.
    pub base: u64,
    /// Where its data begins: behind the code, or on a page of its own.
    room: u64,
}

impl Stub {
    /// Maps the stub by one call of `remote`; anywhere, or at `at`, which must be free.
    ///
    /// # Errors
    /// When mmap(2) or the write into it fails.
    pub fn map(remote: &mut Remote, insn: u64, at: Option<u64>) -> Result<Self> {
        const CODE: u64 = STUB.len().next_multiple_of(64) as u64;
        let mut mmap = |prot: i32| {
            let fixed = if at.is_some() { libc::MAP_FIXED_NOREPLACE } else { 0 };
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
            let args = [at.unwrap_or(0), STUB_LEN, prot as u64, flags as u64, u64::MAX, 0];
            remote.call(insn, libc::SYS_mmap, "mmap of the stub", args)
        };
        match mmap(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) {
            Ok(base) => {
                let stub = Self { pid: remote.tid, base, room: base + CODE };
                stub.write(base, &STUB)?;
                Ok(stub)
            }
            Err(e) if e.is(libc::EACCES) => {
                let base = mmap(libc::PROT_READ | libc::PROT_EXEC)?;
                Self::divide(remote, insn, base)
            }
            Err(e) => Err(e),
        }
    }

    /// Nothing may be written to and executed in this process (PR_SET_MDWE of prctl(2), or a
    /// security module): the code gets a page of its own, which the tracer alone writes to.
    fn divide(remote: &mut Remote, insn: u64, base: u64) -> Result<Self> {
        let room = base + PAGE;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let args = [room, STUB_LEN - PAGE, prot, 0, 0, 0];
        remote.call(insn, libc::SYS_mprotect, "mprotect of the stub", args)?;
        for (at, piece) in (base..).step_by(8).zip(STUB.chunks(8)) {
            let mut eight = [0; 8];
            eight[..piece.len()].copy_from_slice(piece);
            trace(remote.tid, "write into the stub", raw::poke(remote.tid, at, eight))?;
        }
        Ok(Self { pid: remote.tid, base, room })
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        trace(self.pid, "write into the stub", write_all(self.pid, at, bytes))
    }

    /// Address of the data of a program that runs from the begin of the stub's room.
    #[must_use]
    pub fn data(&self) -> u64 {
        self.room + STUB_INFO
    }

    /// Bytes of programs that it has room for.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.base + STUB_LEN - self.data()
    }

    /// Address of a `syscall` instruction.
    #[must_use]
    pub fn syscall_insn(&self) -> u64 {
        self.base + STUB_SYSCALL
    }

    /// Address of the loop that pauses for ever.
    #[must_use]
    pub fn idle(&self) -> u64 {
        self.base + STUB_IDLE
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
        self.enter(insn, |r| {
            r.rax = nr as u64;
            [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
        })?;
        for _entry_then_exit in 0..2 {
            self.run_to(|tid| raw::syscall_step(tid, 0), |s| s == Stop::Syscall)?;
        }
        let rax = trace(self.tid, "read registers", raw::regs(self.tid))?.rax;
        result_of(rax as i64).map_err(|source| InjectError::Call { tid: self.tid, what, source })
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
            let mask = !sigbit(libc::SIGTRAP);
            trace(self.tid, "set signal mask", raw::set_sigmask(self.tid, mask))?;
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
            self.wait_trap(&started.stub)?;
        }
        let mut bytes = vec![0; started.program.size()];
        trace(tid, "read the stub", read_exact(tid, started.data_at, &mut bytes))?;
        let table = (started.table_at - started.data_at) as usize;
        let results = started.program.calls.iter().enumerate().map(|(row, call)| {
            let value = word(&bytes, table + row * 64 + 56) as i64;
            Answered { value, what: call.what, optional: call.optional }
        });
        let results = results.collect();
        bytes.truncate(started.program.data.len());
        Ok(Outcome { tid, results, data: bytes })
    }

    /// Waits for the trap at the end of a batch that already runs. SIGTRAPs of the program
    /// that come meanwhile wait in their queue again afterwards.
    fn wait_trap(&mut self, stub: &Stub) -> Result<()> {
        let tid = self.tid;
        let first = std::cell::Cell::new(true);
        let mut foreign = Vec::new();
        loop {
            self.run_to(
                |tid| if first.replace(false) { Ok(()) } else { raw::cont(tid, 0) },
                |s| s == Stop::Signal(libc::SIGTRAP),
            )?;
            let info = trace(tid, "read siginfo", raw::siginfo(tid))?;
            let ended = trace(tid, "read registers", raw::regs(tid))?.rip == stub.idle();
            // The signal of `int3` is not queued where one that was sent to the thread still
            // waits (legacy_queue, kernel/signal.c): then that one stands for both.
            if !ended || raw::code_of(&info) != libc::SI_KERNEL {
                foreign.push(info);
            }
            if ended {
                break;
            }
        }
        trace(tid, "set signal mask", raw::set_sigmask(tid, u64::MAX))?;
        foreign.iter().try_for_each(|info| self.queue(stub, info, false))
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
            return Ok(Outcome { tid: self.tid, results: Vec::new(), data: program.data });
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

    /// Ends the loan of a thread that is not to be put back: it gets other registers.
    pub fn keep(mut self) {
        self.open = false;
    }

    fn put_back(&mut self) -> Result<()> {
        self.open = false;
        let tid = self.tid;
        trace(tid, "set registers", raw::set_regs(tid, &self.regs))?;
        self.enter_signal_stop()?;
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
