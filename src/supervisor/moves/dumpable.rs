//! A job that is not dumpable (PR_SET_DUMPABLE of prctl(2)): its /proc folder belongs to root,
//! and its memory is closed to an ordinary user, its tracer included (ptrace_may_access and
//! ptrace_access_vm in kernel/ptrace.c).
//!
//! Its registers stay open to the tracer, so it can be made dumpable by a call run in it. It
//! must not see that, so it stays frozen for as long as it is: from the first look at it to the
//! end of the move.

use std::fs;
use std::io;

use anyhow::{ensure, Context, Result};

use super::Mover;
use crate::migrate::capture::requeue;
use crate::migrate::freeze::{FrozenJob, FrozenProcess};
use crate::migrate::gone;
use crate::migrate::resource::registers::USER_CS;
use crate::migrate::resource::View;
use crate::tracer::inject::Remote;
use crate::tracer::{raw, Stop};

impl Mover {
    /// May this supervisor look into a process as it is?
    ///
    /// # Errors
    /// When the job is gone.
    pub(super) fn is_open(&self, pid: i32) -> Result<bool> {
        let path = format!("/proc/{pid}/exe");
        match fs::read_link(&path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            Err(e) => Err(e).context(path),
        }
    }

    /// [`Mover::is_open`] of many; those that have ended are no matter.
    ///
    /// # Errors
    /// When one cannot be asked.
    pub(super) fn are_open(&self, pids: &[i32]) -> Result<bool> {
        for pid in pids {
            if gone::look(*pid, || self.is_open(*pid))? == Some(false) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the processes of the frozen job dumpable that are not; `opened` tells which.
    ///
    /// # Errors
    /// When the call fails, or an executable may not be read, which no call can change.
    pub(super) fn open_up(&self, job: &mut FrozenJob) -> Result<()> {
        for process in &mut job.processes {
            if !self.is_open(process.pid)? {
                self.open_process(process)?;
            }
        }
        Ok(())
    }

    fn open_process(&self, process: &mut FrozenProcess) -> Result<()> {
        let pid = process.pid;
        let leader_regs = raw::regs(pid).with_context(|| format!("registers of process {pid}"))?;
        let insn = self.sup.session.insn(pid, self.vdso.syscall_offset()).or_else(|| insn_passed(&leader_regs)).with_context(|| {
            format!("process {pid} is not dumpable (PR_SET_DUMPABLE), and is in no system call by which it could be made so: try again")
        })?;
        let view = View::read_process(pid).with_context(|| format!("status of process {pid}"))?;
        let leader = &mut process.threads[0];
        let signal = match leader.stop {
            Stop::Signal(_) => Some(raw::siginfo(pid)?),
            _ => None,
        };
        let mut remote = Remote::open(pid, view.ignores(libc::SIGTRAP))?;
        let dumpable = prctl(&mut remote, insn, libc::PR_GET_DUMPABLE, 0)?;
        ensure!(
            dumpable == 0,
            "process {pid} has an executable that may not be read (PR_GET_DUMPABLE is {dumpable})"
        );
        prctl(&mut remote, insn, libc::PR_SET_DUMPABLE, 1)?;
        process.opened = Some(insn);
        if let Some(info) = signal {
            requeue(&mut remote, insn, &info)?;
            leader.stop = Stop::Interrupt;
        }
        Ok(remote.close()?)
    }

    /// Undoes [`Mover::open_up`].
    ///
    /// # Errors
    /// When the job is gone, or is not as it was left.
    pub(super) fn close_up(&self, job: &FrozenJob) -> Result<()> {
        for (pid, insn) in job.processes.iter().filter_map(|p| Some((p.pid, p.opened?))) {
            let dumpable = make_undumpable(pid, insn)?;
            ensure!(dumpable == 1, "process {pid} was made undumpable by somebody else meanwhile");
        }
        Ok(())
    }
}

/// The `syscall` instruction by which a stopped thread has entered the kernel, if it has.
fn insn_passed(regs: &raw::Regs) -> Option<u64> {
    (regs.orig_rax as i64 >= 0 && regs.cs == USER_CS).then(|| regs.rip - 2)
}

/// Sets PR_SET_DUMPABLE of a stopped process, in which `insn` is a `syscall` instruction, to 0; gives
/// what it was.
///
/// # Errors
/// When the process is gone.
pub(super) fn make_undumpable(pid: i32, insn: u64) -> Result<u64> {
    let view = View::read_process(pid).with_context(|| format!("status of process {pid}"))?;
    let mut remote = Remote::open(pid, view.ignores(libc::SIGTRAP))?;
    let before = prctl(&mut remote, insn, libc::PR_GET_DUMPABLE, 0)?;
    prctl(&mut remote, insn, libc::PR_SET_DUMPABLE, 0)?;
    remote.close()?;
    Ok(before)
}

fn prctl(remote: &mut Remote, insn: u64, option: i32, value: u64) -> Result<u64> {
    Ok(remote.call(insn, libc::SYS_prctl, "prctl", [option as u64, value, 0, 0, 0, 0])?)
}
