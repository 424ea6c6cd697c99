//! The frozen job gets other sockets ([`crate::migrate::swap`]).

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{ensure, Context, Result};

use super::source::Frozen;
use super::Mover;
use crate::migrate::files::Files;
use crate::migrate::freeze::FrozenProcess;
use crate::migrate::swap::{self, Swaps};
use crate::tracer::Stop;

/// A socket of the job, and the one that it is given instead.
pub(super) struct Exchange {
    pub(super) inode: u64,
    pub(super) old: OwnedFd,
    pub(super) new: OwnedFd,
    /// Status flags of the old one.
    pub(super) flags: i32,
    /// Bytes that the job has not read, and that are to come again.
    pub(super) unread: usize,
}

impl Mover {
    /// Freezes the job as it can have sockets swapped.
    pub(super) fn freeze_for_swap(&mut self) -> Result<Frozen> {
        let frozen = self.freeze().map_err(|stopped| anyhow::anyhow!("{}", stopped.text))?;
        let signalled = |process: &FrozenProcess| {
            process.threads.first().is_some_and(|first| matches!(first.stop, Stop::Signal(_)))
        };
        if frozen.job.processes.iter().any(signalled) {
            self.thaw(&frozen);
            anyhow::bail!("a signal is just being delivered");
        }
        Ok(frozen)
    }

    /// The descriptors of the frozen job, none of which is on its way or with the kernel.
    pub(super) fn all_files(&mut self, frozen: &Frozen) -> Result<Files> {
        let files = self.files(&frozen.job.pids())?;
        for view in &files.views.objects {
            let carries = view.field("scm_fds").is_some_and(|count| count != "0");
            ensure!(!carries, "descriptors are on their way in {}", view.link);
            ensure!(view.link != "anon_inode:[io_uring]", "it has an io_uring");
        }
        self.learn_accepted(&files);
        Ok(files)
    }

    /// Gives the frozen job other sockets, in all of its processes or in none.
    pub(super) fn exchange(
        &mut self,
        frozen: &Frozen,
        files: &Files,
        all: &[&Exchange],
    ) -> Result<()> {
        let pids = frozen.job.pids();
        // Threads with a table of their own are like processes here.
        let mut tables: Vec<(i32, i32)> = pids.iter().map(|pid| (*pid, *pid)).collect();
        tables.extend(self.apart(&pids)?);
        let (session, offset) = (&self.sup.session, self.vdso.syscall_offset());
        let swap_all = |files: &Files, swaps: &Swaps| {
            for (pid, tid) in &tables {
                let insn = session.insn(*pid, offset);
                let insn = insn.with_context(|| format!("no system call of {pid} is known"))?;
                swap::swap(&files.views, *tid, insn, swaps)?;
            }
            Ok(())
        };
        let inodes: Vec<u64> = all.iter().map(|exchange| exchange.inode).collect();
        swap::check(&files.views, &inodes)?;
        let swaps: Swaps = all.iter().map(|exchange| (exchange.inode, &exchange.new)).collect();
        swap_all(files, &swaps).inspect_err(|_| {
            let back = all.iter().filter_map(|e| Some((inode_of(&e.new).ok()?, &e.old)));
            let now = self.files(&pids).map_err(anyhow::Error::from);
            if let Err(error) = now.and_then(|now| swap_all(&now, &back.collect())) {
                tracing::error!("sockets that were replaced could not be put back: {error:#}");
            }
        })
    }
}

pub(super) fn inode_of(fd: &OwnedFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(fd)?.st_ino)
}

pub(super) fn set_flags(fd: &OwnedFd, flags: i32) -> io::Result<()> {
    use nix::fcntl::{fcntl, FcntlArg, OFlag};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags)))?;
    Ok(())
}
