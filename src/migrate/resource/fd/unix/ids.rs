//! Process, user and group ids that the kernel tells the supervisor, as the job sees them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::path::Path;

use nix::sched::{setns, CloneFlags};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::super::raw;
use super::Cred;
use crate::migrate::raw::{exit_now, fork};
use crate::syscalls::translate::numbers;

/// Ids of a job's namespaces (pid_namespaces(7), user_namespaces(7)).
#[derive(Debug)]
pub struct Ids {
    /// Pids of the job's processes by those that the supervisor sees.
    pids: HashMap<i32, i32>,
    /// The job is in the supervisor's pid namespace.
    same_pids: bool,
    uids: Map,
    gids: Map,
    /// Host pid of the first process.
    first: i32,
}

impl Ids {
    /// Of the job of these processes (host pids).
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn read(job: &[i32]) -> io::Result<Self> {
        let mut pids = HashMap::new();
        for &pid in job {
            let status = fs::read_to_string(format!("/proc/{pid}/status"));
            let inside = status.ok().and_then(|text| inner_pid(&text));
            pids.extend(inside.map(|inside| (pid, numbers::to_job(inside))));
        }
        let first = job.first().copied().unwrap_or_default();
        let same = |name: &str| -> io::Result<bool> {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{name}"));
            Ok(of(&first.to_string())? == of("self")?)
        };
        let map = |name: &str| -> io::Result<Map> {
            match same("user")? {
                true => Ok(Map::default()),
                false => fs::read_to_string(format!("/proc/{first}/{name}")).map(|t| Map::of(&t)),
            }
        };
        let (uids, gids) = (map("uid_map")?, map("gid_map")?);
        Ok(Self { pids, same_pids: same("pid")?, uids, gids, first })
    }

    /// As the job sees them.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn inside(&self, (pid, uid, gid): (i32, u32, u32)) -> Result<Cred, &'static str> {
        let pid = match self.pids.get(&pid) {
            Some(inside) => *inside,
            None if pid == 0 || Path::new(&format!("/proc/{pid}")).exists() => 0,
            None if self.same_pids => numbers::to_job(pid),
            None => return Err("a process that has ended, and is numbered in the job, sent it"),
        };
        Ok(Cred { pid, uid: self.uids.inside(uid), gid: self.gids.inside(gid) })
    }

    /// SO_PEERCRED of a socket; none if it has no peer.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peer_of(&self, fd: RawFd) -> io::Result<Option<Cred>> {
        let Some(seen) = ucred(&raw::socket_option_bytes(fd, libc::SO_PEERCRED)?) else {
            return Ok(None);
        };
        if let Ok(cred) = self.inside(seen) {
            return Ok(Some(cred));
        }
        let inside = ask_inside(self.first, fd)?;
        Ok(inside.map(|(pid, uid, gid)| Cred { pid, uid, gid }))
    }

    /// A process of the job, given by one of its threads, with its effective ids.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn holder(&self, host_pid: i32) -> io::Result<Cred> {
        let status = fs::read_to_string(format!("/proc/{host_pid}/status"))?;
        let effective = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        };
        let ids = effective("Uid:").zip(effective("Gid:"));
        let (uid, gid) = ids.ok_or(io::ErrorKind::InvalidData)?;
        let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
        let process = process.and_then(|text| text.trim().parse().ok()).unwrap_or(host_pid);
        let pid = self.pids.get(&process).copied().unwrap_or_default();
        Ok(Cred { pid, uid: self.uids.inside(uid), gid: self.gids.inside(gid) })
    }
}

/// The last number of `NSpid:` (proc_pid_status(5)).
fn inner_pid(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Ranges of ids: first inside, first outside, length. Empty: the same.
#[derive(Debug, Default)]
struct Map(Vec<(u32, u32, u32)>);

impl Map {
    fn of(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|n| n.parse().ok());
            Some((numbers.next()??, numbers.next()??, numbers.next()??))
        });
        Self(lines.collect())
    }

    /// Ids that have no number inside are left as they are.
    fn inside(&self, id: u32) -> u32 {
        let found = self.0.iter().find_map(|(inside, outside, len)| {
            let at = id.checked_sub(*outside).filter(|at| at < len)?;
            inside.checked_add(at)
        });
        found.unwrap_or(id)
    }
}

/// SO_PEERCRED as a process in the namespaces of `pid` sees it, which is made for that. Only in
/// there the number of a process that has ended can be asked.
fn ask_inside(pid: i32, fd: RawFd) -> io::Result<Option<(i32, u32, u32)>> {
    let (mut reader, writer) = io::pipe()?;
    let child = fork(None)?;
    if child == 0 {
        let told = enter(pid).and_then(|()| match fork(None)? {
            0 => {
                let bytes = raw::socket_option_bytes(fd, libc::SO_PEERCRED)?;
                (&writer).write_all(&bytes)
            }
            inner => wait_for(inner),
        });
        exit_now(i32::from(told.is_err()));
    }
    drop(writer);
    let mut bytes = Vec::new();
    let read = reader.read_to_end(&mut bytes);
    wait_for(child)?;
    match read? {
        12 => Ok(ucred(&bytes)),
        _ => Err(io::Error::other("it could not be asked in the namespaces of the job")),
    }
}

fn enter(pid: i32) -> io::Result<()> {
    for (name, kind) in [("user", CloneFlags::CLONE_NEWUSER), ("pid", CloneFlags::CLONE_NEWPID)] {
        let path = |who: &str| format!("/proc/{who}/ns/{name}");
        let theirs = path(&pid.to_string());
        if fs::read_link(&theirs)? != fs::read_link(path("self"))? {
            setns(fs::File::open(theirs)?, kind)?;
        }
    }
    Ok(())
}

fn wait_for(pid: i32) -> io::Result<()> {
    Ok(waitpid(Pid::from_raw(pid), None).map(drop)?)
}

/// struct ucred, which says nothing without a process and a user.
fn ucred(bytes: &[u8]) -> Option<(i32, u32, u32)> {
    let word = |n: usize| {
        let four = bytes.get(4 * n..4 * n + 4)?;
        Some(u32::from_ne_bytes(four.try_into().ok()?))
    };
    let (pid, uid, gid) = (word(0)? as i32, word(1)?, word(2)?);
    (pid != 0 || uid != u32::MAX).then_some((pid, uid, gid))
}
