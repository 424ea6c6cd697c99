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
        let insn =
            self.insn_unread(pid).with_context(|| format!("process {pid} is not dumpable"))?;
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
        process.opened = true;
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
        for pid in job.processes.iter().filter(|p| p.opened).map(|p| p.pid) {
            let dumpable = self.make_undumpable(pid)?;
            ensure!(dumpable == 1, "process {pid} was made undumpable by somebody else meanwhile");
        }
        Ok(())
    }

    /// Sets PR_SET_DUMPABLE of a stopped process to 0; gives what it was.
    ///
    /// # Errors
    /// When the job is gone.
    pub(super) fn make_undumpable(&self, pid: i32) -> Result<u64> {
        let insn = self.insn_unread(pid).with_context(|| format!("no vdso in process {pid}"))?;
        let view = View::read_process(pid).with_context(|| format!("status of process {pid}"))?;
        let mut remote = Remote::open(pid, view.ignores(libc::SIGTRAP))?;
        let before = prctl(&mut remote, insn, libc::PR_GET_DUMPABLE, 0)?;
        prctl(&mut remote, insn, libc::PR_SET_DUMPABLE, 0)?;
        remote.close()?;
        Ok(before)
    }

    /// A `syscall` instruction of a process that is known without looking into it: of the job's
    /// first one only.
    fn insn_unread(&self, pid: i32) -> Option<u64> {
        let session = &self.sup.session;
        let known = || session.insn.or_else(|| Some(session.vdso? + self.vdso.syscall_offset()?));
        (pid == session.root).then(known).flatten()
    }
}

fn prctl(remote: &mut Remote, insn: u64, option: i32, value: u64) -> Result<u64> {
    Ok(remote.call(insn, libc::SYS_prctl, "prctl", [option as u64, value, 0, 0, 0, 0])?)
}
