//! Who gets signals of a descriptor: O_ASYNC, F_SETOWN, F_SETOWN_EX and F_SETSIG (fcntl(2)).
//!
//! An owner may be a thread, so it is set when the new threads exist
//! ([`crate::migrate::late`]). One that is not of the job would be somebody else at the target.

use std::os::fd::AsRawFd;

use serde::{Deserialize, Serialize};

use super::place::SETTABLE;
use super::{raw, CaptureCx, FdError, FdView};
use crate::control::Finding;
use crate::migrate::resource::View;
use crate::syscalls::translate::numbers;
use crate::tracer::inject::{Arg, Program};

const CODE: &str = "VOS-ASYNC";
const REMEDY: &str = "let the program poll instead, or let it finish here";

/// Kinds of owners (`F_OWNER_TID` and so on of fcntl(2)).
const THREAD: i32 = 0;
const PROCESS: i32 = 1;
const GROUP: i32 = 2;

/// What a description sends, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals {
    /// Kind of the owner, as for F_SETOWN_EX.
    kind: i32,
    /// Its number as the job sees it; 0: there is none (any more).
    owner: i32,
    /// F_SETSIG; 0: SIGIO.
    signal: i32,
}

/// The signals of a description; `None` when it sends none.
///
/// # Errors
/// [`FdError::Refused`] for an owner outside of the job.
pub fn capture(view: &FdView, cx: &dyn CaptureCx) -> Result<Option<Signals>, FdError> {
    if view.flags & libc::O_PATH != 0 {
        return Ok(None);
    }
    let tried = || view.failed("ask for the owner");
    let fd = cx.dup(view).map_err(tried())?;
    let signal = raw::fcntl(fd.as_raw_fd(), raw::F_GETSIG, 0).map_err(tried())?;
    let (kind, host) = raw::owner(fd.as_raw_fd()).map_err(tried())?;
    if view.flags & libc::O_ASYNC == 0 && host == 0 && signal == 0 {
        return Ok(None);
    }
    if view.file_type() == libc::S_IFDIR {
        let cause = "it tells of changes in the directory by signals (F_NOTIFY)";
        return Err(view.refuse(CODE, cause, "use a program version that uses inotify"));
    }
    let owner = match host {
        0 => 0,
        host => number(kind, host, &cx.job_pids()).ok_or_else(|| {
            let cause = format!("it sends signals to {}, outside of the job", name(kind, host));
            view.refuse(CODE, cause, REMEDY)
        })?,
    };
    Ok(Some(Signals { kind, owner, signal }))
}

/// What `check` has to say.
pub(super) fn check(view: &FdView, cx: &dyn CaptureCx) -> Option<Finding> {
    match capture(view, cx) {
        Err(FdError::Refused(finding)) => Some(*finding),
        _ => None,
    }
}

fn name(kind: i32, number: i32) -> String {
    let kind = match kind {
        THREAD => "thread",
        GROUP => "process group",
        _ => "process",
    };
    format!("{kind} {number}")
}

/// The number as the job sees it of an owner that is of the job.
fn number(kind: i32, host: i32, job_pids: &[i32]) -> Option<i32> {
    let last = |view: &View, name: &str| view.field(name).split_whitespace().last()?.parse().ok();
    match kind {
        PROCESS if job_pids.contains(&host) => View::read_process(host).ok().map(|v| v.job_pid),
        THREAD => {
            let process = View::read_process(host).ok()?.number("Tgid:") as i32;
            let view = View::read(process, host).ok()?;
            job_pids.contains(&process).then_some(view.job_tid)
        }
        GROUP => job_pids.iter().find_map(|pid| {
            let view = View::read_process(*pid).ok()?;
            let group = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(*pid))).ok()?;
            (group.as_raw() == host).then(|| last(&view, "NSpgid:").map(numbers::to_job))?
        }),
        _ => None,
    }
    .filter(|number| *number > 0)
}

impl Signals {
    /// Puts the calls into `program` that make `fd`, whose status flags are to be `flags`, send
    /// its signals.
    pub fn tell(&self, fd: i32, flags: i32, program: &mut Program) {
        const F_SETOWN_EX: u64 = 15;
        const F_SETSIG: u64 = 10;
        let fd = Arg::Num(fd as u64);
        if self.owner != 0 {
            let owner = numbers::to_host(self.owner);
            let words = [self.kind.to_le_bytes(), owner.to_le_bytes()].concat();
            let at = Arg::Data(program.data(&words));
            program.call(libc::SYS_fcntl, "F_SETOWN_EX", &[fd, Arg::Num(F_SETOWN_EX), at]);
        }
        let signal = Arg::Num(self.signal as u64);
        program.call(libc::SYS_fcntl, "F_SETSIG", &[fd, Arg::Num(F_SETSIG), signal]);
        if flags & libc::O_ASYNC != 0 {
            let flags = Arg::Num((flags & (SETTABLE | libc::O_ASYNC)) as u64);
            let command = Arg::Num(libc::F_SETFL as u64);
            program.call(libc::SYS_fcntl, "F_SETFL of O_ASYNC", &[fd, command, flags]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, Here};
    use super::*;

    #[test]
    fn owners_of_the_job() {
        let (reader, _writer) = std::io::pipe().expect("pipe");
        let found = || {
            let here = Here::of(&[&reader]);
            capture(&here.view(&reader), &here).expect("capture")
        };
        assert_eq!(found(), None);
        let me = std::process::id() as i32;
        raw::fcntl(reader.as_raw_fd(), libc::F_SETOWN, me).expect("owner");
        assert_eq!(found(), Some(Signals { kind: PROCESS, owner: me, signal: 0 }));
        let group = nix::unistd::getpgrp().as_raw();
        raw::fcntl(reader.as_raw_fd(), libc::F_SETOWN, -group).expect("owner");
        let found = found().expect("signals");
        assert_eq!((found.kind, found.owner), (GROUP, group));
    }

    #[test]
    fn others_are_refused() {
        let (reader, _writer) = std::io::pipe().expect("pipe");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        raw::fcntl(reader.as_raw_fd(), libc::F_SETOWN, child.id() as i32).expect("owner");
        assert_eq!(refusal(&reader), CODE);
        child.kill().expect("kill");
        child.wait().expect("wait");
        // Who is gone gets nothing.
        let here = Here::of(&[&reader]);
        assert_eq!(capture(&here.view(&reader), &here).expect("capture"), None);
        let directory = std::fs::File::open("/tmp").expect("open");
        let me = std::process::id() as i32;
        raw::fcntl(directory.as_raw_fd(), libc::F_SETOWN, me).expect("owner");
        assert_eq!(refusal(&directory), CODE);
    }
}
