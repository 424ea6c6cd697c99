//! All processes of a frame are there: they join their groups, those that had ended end again,
//! and `/proc` is asked whether each is what it shall be.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::newborn::dumps_core;
use super::skeleton::{ask, io_error, send, NewProcess, Request, Result, Skeleton, SkeletonError};
use super::tree::{parent_is_outside, Member, Step};
use crate::syscalls::translate::numbers;
use crate::tracer::memory::stat_field;
use crate::tracer::raw::pidfd_open;

fn wrong(pid: i32, what: &str) -> SkeletonError {
    SkeletonError::Step(format!("process {pid} of the new tree: {what}"))
}

impl Skeleton {
    /// Joins groups, ends ghosts and zombies, and checks the whole tree. Once, before the first
    /// [`Skeleton::build`].
    ///
    /// # Errors
    /// The process that is not what it shall be.
    pub fn settle(&self) -> Result<()> {
        let tree = &self.frame.tree;
        for (node, group) in &tree.joins {
            ask(self.process(*node)?, &Request::Join(numbers::to_host(*group)), &[])?;
        }
        self.end_ghosts()?;
        for (member, node) in self.frame.members.iter().zip(&tree.members) {
            if let (Some(status), Some(node)) = (member.ended, node) {
                end(self.process(*node)?, status)?;
            }
        }
        self.check()
    }

    fn process(&self, node: usize) -> Result<&NewProcess> {
        let pid = self.frame.tree.nodes.get(node).map_or(0, |n| n.pid);
        self.at(node).ok_or_else(|| wrong(pid, "it is not there"))
    }

    /// Ghosts end and are reaped; nobody is a subreaper for their sake any more.
    fn end_ghosts(&self) -> Result<()> {
        let tree = &self.frame.tree;
        // Pid 1 always: it may end from here on, when no process is left.
        let mut children: BTreeMap<usize, Vec<i32>> = BTreeMap::from([(0, Vec::new())]);
        let adopting = |(node, n): (usize, &super::tree::Node)| {
            n.steps.contains(&Step::Adopt).then_some((node, Vec::new()))
        };
        children.extend(tree.nodes.iter().enumerate().filter_map(adopting));
        for (ghost, parent) in &tree.ghosts {
            let ghost = self.process(*ghost)?;
            end(ghost, 0)?;
            children.entry(*parent).or_default().push(numbers::to_host(ghost.job_pid));
        }
        for (parent, ghosts) in children {
            ask(self.process(parent)?, &Request::Reap(ghosts), &[])?;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        for (member, node) in self.frame.members.iter().zip(&self.frame.tree.members) {
            let Some(node) = node else { continue };
            let process = self.process(*node)?;
            let status = Status::read(process.pid)
                .map_err(|e| wrong(process.job_pid, &format!("its status: {e}")))?;
            self.check_one(member, process, &status)?;
        }
        Ok(())
    }

    fn check_one(&self, member: &Member, process: &NewProcess, status: &Status) -> Result<()> {
        let ids = member.ids;
        let is = ["NSpid:", "NSpgid:", "NSsid:"].map(|name| status.last(name).map(numbers::to_job));
        if is != [Some(ids.pid), Some(ids.pgid), Some(ids.sid)] {
            let text = format!("its pid, group and session are {is:?} instead of {ids:?}");
            return Err(wrong(ids.pid, &text));
        }
        if !self.is_child_of(status, member) {
            return Err(wrong(ids.pid, &format!("its parent is not process {}", ids.ppid)));
        }
        let zombie = status.field("State:").starts_with('Z');
        if zombie != member.ended.is_some() {
            let text = if zombie { "it has ended" } else { "it has not ended" };
            return Err(wrong(ids.pid, text));
        }
        if let Some(wanted) = member.ended {
            // No core file is written a second time.
            let wanted = wanted & !CORE_DUMPED;
            let got = exit_status(process.pid).map_err(io_error("wait status"))?;
            // An ordinary user is not shown the status of a process that is not dumpable.
            let hidden = got == 0 && dumps_core(libc::WTERMSIG(wanted));
            if got != wanted && !hidden {
                let text = format!("it has ended with status {got:#x} instead of {wanted:#x}");
                return Err(wrong(ids.pid, &text));
            }
        }
        Ok(())
    }

    fn is_child_of(&self, status: &Status, member: &Member) -> bool {
        let Some(parent) = status.last("PPid:") else { return false };
        let ppid = member.ids.ppid;
        let node = self.frame.tree.nodes.iter().position(|n| n.pid == ppid);
        if parent_is_outside(member.ids) {
            return parent != self.init;
        }
        match node.and_then(|node| self.at(node)) {
            _ if ppid <= 1 => parent == self.init,
            Some(process) => parent == process.pid,
            // A stand-in without a socket.
            None => Status::read(parent)
                .is_ok_and(|s| s.last("NSpid:").map(numbers::to_job) == Some(ppid)),
        }
    }
}

/// Bit of a wait status: a core file was written (wait(2), WCOREDUMP).
const CORE_DUMPED: i32 = 0x80;

/// Lets a process end, and waits until it has.
fn end(process: &NewProcess, status: i32) -> Result<()> {
    let failed = |e: io::Error| wrong(process.job_pid, &format!("its end: {e}"));
    let pidfd: OwnedFd = pidfd_open(process.pid).map_err(failed)?;
    send(process.control.as_fd(), &Request::End(status), &[]).map_err(failed)?;
    loop {
        let mut wait = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wait, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => {}
            other => return other.map(drop).map_err(|e| failed(e.into())),
        }
    }
}

/// Lines of `/proc/PID/status` (proc_pid_status(5)).
struct Status(String);

impl Status {
    fn read(pid: i32) -> io::Result<Self> {
        fs::read_to_string(format!("/proc/{pid}/status")).map(Self)
    }

    fn field(&self, name: &str) -> &str {
        self.0.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim()
    }

    /// The last number of a line: that of the innermost namespace.
    fn last(&self, name: &str) -> Option<i32> {
        self.field(name).split_whitespace().last()?.parse().ok()
    }
}

/// The wait status of a zombie (proc_pid_stat(5), `exit_code`).
fn exit_status(pid: i32) -> io::Result<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let code = stat_field(&stat, 52).and_then(|word| word.parse().ok());
    code.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
