//! What stays of an adopted process under its old pid while the job is elsewhere.
//!
//! The process keeps one thread, one page of code that pauses for ever, and no descriptor.
//! It is still traced: a signal sent to it stops it before delivery and is passed on to the
//! job; when the job ends it ends the same way, so that its parent's wait(2) gets the true
//! status.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::migrate::capture;
use crate::migrate::freeze::FrozenProcess;
use crate::migrate::image::ProcessImage;
use crate::migrate::resource::signals::{captured, forget, is_of_timer};
use crate::migrate::resource::View;
use crate::supervisor::Supervisor;
use crate::tracer::inject::{sigbit, Arg, Program, Remote, Stub, STUB_LEN};
use crate::tracer::memory;
use crate::tracer::raw;
use crate::tracer::stop;
use crate::tracer::{Exit, Stop};

/// The stand-in of a job that was adopted on this node.
pub(super) struct StandIn {
    pid: i32,
    /// Where its `syscall` instruction is.
    insn: u64,
    /// Signals in its queue that the job has taken along.
    known: Vec<Vec<u8>>,
    /// It is about to stop by this signal, as the job did.
    stopping: Option<i32>,
    /// Masters of the job's ptys: without them a stand-in that one of them controls would get a
    /// SIGHUP.
    masters: Vec<OwnedFd>,
    gone: bool,
}

impl StandIn {
    /// Makes the frozen process, which was captured as `image`, its own stand-in. Its other
    /// threads end.
    ///
    /// # Errors
    /// When a call in it fails; the process is as useless as after success.
    pub(super) fn make(
        sup: &mut Supervisor,
        frozen: &FrozenProcess,
        image: &ProcessImage,
    ) -> Result<Self> {
        let pid = frozen.pid;
        let insn = capture::syscall_insn_now(pid)?;
        let view = View::read_process(pid).context("status")?;
        for thread in &frozen.threads[1..] {
            let mut remote = Remote::open(thread.tid, view.ignores(libc::SIGTRAP))?;
            // It does not return from there: the end of the thread is no failure.
            let _ = remote.call(insn, libc::SYS_exit, "exit", [0; 6]);
            remote.keep();
        }
        let mut remote = Remote::open(pid, view.ignores(libc::SIGTRAP))?;
        let stub = Stub::map(&mut remote, insn, None)?;
        remote.run(&stub, emptying(pid, &stub)?)?;
        remote.regs.rip = stub.idle();
        remote.regs.orig_rax = u64::MAX;
        remote.mask = 0;
        remote.close()?;
        raw::set_exitkill(pid, false)?;
        sup.foreign.insert(pid, VecDeque::new());
        raw::cont(pid, 0)?;
        let known = captured(image);
        let mut standin = Self {
            pid,
            insn: stub.syscall_insn(),
            known,
            stopping: None,
            masters: Vec::new(),
            gone: false,
        };
        if let Some(signal) = image.stopped {
            standin.stop(signal);
        }
        Ok(standin)
    }

    /// Keeps these open as long as it lives.
    pub(super) fn keep(&mut self, masters: impl Iterator<Item = OwnedFd>) {
        self.masters.extend(masters);
    }

    /// Stops it by `signal`, for whoever waits for it with WUNTRACED (waitpid(2)).
    pub(super) fn stop(&mut self, signal: i32) {
        self.stopping = Some(signal);
        if let Err(e) = raw::kill(self.pid, signal) {
            tracing::debug!("stand-in {}: {e}", self.pid);
        }
    }

    /// Takes its stops; gives the signals for the job.
    pub(super) fn take(&mut self, sup: &mut Supervisor) -> Vec<i32> {
        let Some(stops) = sup.foreign.get_mut(&self.pid) else { return Vec::new() };
        let mut signals = Vec::new();
        for stop in std::mem::take(stops) {
            let resumed = match stop {
                Stop::Signal(signal) => self.take_signal(signal, &mut signals),
                Stop::Group(_) => raw::listen(self.pid),
                Stop::Exited(exit) => {
                    self.gone = true;
                    if let Exit::Signal(signal) = exit {
                        signals.push(signal);
                    }
                    Ok(())
                }
                _ => raw::cont(self.pid, 0),
            };
            if let Err(e) = resumed {
                tracing::debug!("stand-in {}: {e}", self.pid);
            }
        }
        signals
    }

    /// A signal that it was sent: the job gets it instead, if it has not got it already.
    fn take_signal(&mut self, signal: i32, signals: &mut Vec<i32>) -> std::io::Result<()> {
        let info = raw::siginfo(self.pid)?;
        if self.stopping == Some(signal) && sender(&info) == std::process::id() as i32 {
            self.stopping = None;
            return raw::cont(self.pid, signal);
        }
        // A timer of the program that expired here has gone on with the job.
        // So have its children; theirs are the ends of their copies, by whatever signal they tell
        // them (clone(2)). It has no descriptors whose signals could look so.
        let of_child = (libc::CLD_EXITED..=libc::CLD_CONTINUED).contains(&raw::code_of(&info));
        if !forget(&mut self.known, &info) && !is_of_timer(&info) && !of_child {
            signals.push(signal);
        }
        raw::cont(self.pid, 0)
    }

    /// Ends as the job ended.
    pub(super) fn end(self, exit: Exit) {
        if self.gone {
            return;
        }
        if let Err(e) = self.try_end(exit) {
            tracing::error!("the stand-in {} did not end as the job did: {e:#}", self.pid);
            let _ = raw::kill(self.pid, libc::SIGKILL);
        }
    }

    fn try_end(&self, exit: Exit) -> Result<()> {
        if exit == Exit::Signal(libc::SIGKILL) {
            return Ok(raw::kill(self.pid, libc::SIGKILL)?);
        }
        if !self.interrupt()? {
            return Ok(());
        }
        match exit {
            Exit::Signal(signal) => {
                // Its disposition is default and its mask empty: let it be delivered.
                raw::kill(self.pid, signal)?;
                raw::cont(self.pid, 0)?;
                while let Some(wait) = stop::wait(self.pid, true)? {
                    match wait.stop {
                        Stop::Signal(got) if got == signal => raw::cont(self.pid, signal)?,
                        Stop::Exited(_) => break,
                        _ => raw::cont(self.pid, 0)?,
                    }
                }
            }
            Exit::Code(code) => {
                let mut remote = Remote::open(self.pid, false)?;
                let args = [code as u64, 0, 0, 0, 0, 0];
                // The call ends the process instead of returning.
                let _ = remote.call(self.insn, libc::SYS_exit_group, "exit_group", args);
                remote.keep();
            }
        }
        Ok(())
    }

    /// Stops it where calls can be run in it; false when it has ended.
    fn interrupt(&self) -> Result<bool> {
        raw::interrupt(self.pid)?;
        while let Some(wait) = stop::wait(self.pid, true)? {
            match wait.stop {
                Stop::Interrupt | Stop::Group(_) => break,
                Stop::Exited(_) => return Ok(false),
                _ => {
                    raw::interrupt(self.pid)?;
                    raw::cont(self.pid, 0)?;
                }
            }
        }
        Ok(true)
    }
}

/// `si_pid` of a siginfo (sigaction(2)).
fn sender(info: &raw::SigInfo) -> i32 {
    i32::from_ne_bytes([info[16], info[17], info[18], info[19]])
}

/// Calls that leave nothing of the program: timers, handlers, descriptors, memory.
fn emptying(pid: i32, stub: &Stub) -> Result<Program> {
    let mut program = Program::default();
    let rseq = raw::rseq(pid).unwrap_or_default();
    if rseq.0 != 0 {
        let args = [rseq.0, rseq.1.into(), 1, rseq.2.into()].map(Arg::Num);
        program.call(libc::SYS_rseq, "rseq", &args);
    }
    let none = program.data(&[0; 32]);
    for which in 0..3 {
        program.call(libc::SYS_setitimer, "setitimer", &[Arg::Num(which), Arg::Data(none)]);
    }
    for id in crate::migrate::resource::timers::ids(pid) {
        program.call(libc::SYS_timer_delete, "timer_delete", &[Arg::Num(id as u64)]);
    }
    let default = program.data(&[0; 32]);
    let mut ignore = [0; 32];
    ignore[..8].copy_from_slice(&(libc::SIG_IGN as u64).to_le_bytes());
    let ignore = program.data(&ignore);
    for signal in
        (1..=64).filter(|s| sigbit(*s) & (sigbit(libc::SIGKILL) | sigbit(libc::SIGSTOP)) == 0)
    {
        // Children that end are reaped by nobody (wait(2)).
        let action = if signal == libc::SIGCHLD { ignore } else { default };
        let args = [Arg::Num(signal as u64), Arg::Data(action), Arg::Num(0), Arg::Num(8)];
        program.call(libc::SYS_rt_sigaction, "rt_sigaction", &args);
    }
    program.call(libc::SYS_set_robust_list, "set_robust_list", &[Arg::Num(0), Arg::Num(24)]);
    program.call(libc::SYS_set_tid_address, "set_tid_address", &[Arg::Num(0)]);
    program.call(libc::SYS_close_range, "close_range", &[Arg::Num(0), Arg::Num(u32::MAX.into())]);
    let root = Arg::Data(program.data(b"/\0"));
    program.call(libc::SYS_chdir, "chdir", &[root]);
    for vma in memory::maps(pid).context("maps")? {
        let own = (vma.start..vma.end).contains(&stub.base);
        if !own && vma.path != "[vsyscall]" && vma.path != "[vdso]" {
            let args = [Arg::Num(vma.start), Arg::Num(vma.len())];
            program.call(libc::SYS_munmap, "munmap", &args);
        } else if own {
            // A neighbour may have grown together with the stub's mapping.
            for (start, end) in [(vma.start, stub.base), (stub.base + STUB_LEN, vma.end)] {
                if start < end {
                    let args = [Arg::Num(start), Arg::Num(end - start)];
                    program.call(libc::SYS_munmap, "munmap", &args);
                }
            }
        }
    }
    Ok(program)
}
