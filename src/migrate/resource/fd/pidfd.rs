//! pidfd_open(2): descriptors of processes of the job, living, dead or reaped.
//!
//! The processes of a job have their old numbers at the target, and all are there before the
//! descriptors are made. One that has been reaped has no number any more: a process that ends
//! the same way stands for it.
//!
//! A single thread (PIDFD_THREAD, Linux 6.9) is made after the descriptors. Until then another pidfd
//! has the number, and then makes room ([`crate::migrate::late`]): what refers to the description
//! itself, another process or an epoll, would go on with the other one.

use std::os::fd::{AsRawFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView, Object};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;
use crate::migrate::preflight::is_zombie;
use crate::migrate::resource::View;
use crate::syscalls::translate::numbers;
use crate::tracer::inject::{Arg, Program};

const NAME: &str = "pidfd";

/// PIDFD_THREAD, in the status flags.
const THREAD: i32 = libc::O_EXCL;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// Of the process with this number, as the job sees it.
    Process { pid: i32, thread: bool },
    /// Of one that has been reaped, with its status as wait(2) gave it.
    Reaped { status: i32, thread: bool },
    /// Of a thread that is not the first of its process.
    Thread(i32),
}

pub(super) struct PidFd;

impl FdKind for PidFd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(Descriptors, "pidfd", "pidfds of the job's processes"),
                Capability::moves(
                    Descriptors,
                    "pidfd-thread",
                    "pidfds of single threads (PIDFD_THREAD)",
                ),
                Capability::refused(
                    Descriptors,
                    "pidfd-thread-shared",
                    "pidfds of single threads that processes share or that an epoll watches",
                    "VOS-PIDFD",
                ),
                Capability::refused(
                    Descriptors,
                    "pidfd-outside",
                    "pidfds of other processes",
                    "VOS-PIDFD",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.link == "anon_inode:[pidfd]" || view.link.starts_with("pidfd:[")
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let refuse = |cause: String| {
            let remedy = "let the program close it, or let it finish here";
            Err(view.refuse("VOS-PIDFD", cause, remedy))
        };
        let thread = view.flags & THREAD != 0;
        let host = number(view, "Pid").ok_or_else(|| super::unexpected(view.object()))?;
        let member = host != -1 && is_member(host, &cx.job_pids());
        // It may have been reaped since its number was read.
        if host == -1 || (!member && View::read_process(host).is_err()) {
            let fd = cx.dup(view).map_err(view.failed("duplicate"))?;
            // Kernels before Linux 6.15 do not tell.
            let status = raw::pidfd_exit_status(fd.as_raw_fd()).unwrap_or(0);
            return encode(&State::Reaped { status, thread });
        }
        let pid = match numbers::are_own() {
            true => Some(numbers::to_job(host)),
            false => number(view, "NSpid"),
        };
        let pid = pid.filter(|pid| *pid > 0);
        let Some(pid) = pid.filter(|_| member) else {
            return refuse(format!("it stands for process {host}, outside of the job"));
        };
        if !is_leader(host) {
            if cx.is_shared(view) || is_watched(view, cx) {
                return refuse(format!(
                    "it stands for thread {pid} alone, and processes share it or an epoll watches it"
                ));
            }
            return encode(&State::Thread(pid));
        }
        encode(&State::Process { pid, thread })
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let flags = |thread| if thread { THREAD as u32 } else { 0 };
        match decode(NAME, state)? {
            State::Process { pid, thread } => raw::pidfd(numbers::to_host(pid), flags(thread))
                .map_err(failed(format!("pidfd_open of process {pid}"))),
            State::Reaped { status, thread } => raw::pidfd_of_reaped(status, flags(thread))
                .map_err(failed("make a pidfd of a process that has ended")),
            State::Thread(_) => {
                let own = std::process::id() as i32;
                raw::pidfd(own, flags(false)).map_err(failed("make a pidfd for the time being"))
            }
        }
    }
}

/// The thread that is still to be put into an object, if it is a pidfd of one.
///
/// # Errors
/// When the state does not decode.
pub fn thread_of(object: &Object) -> Result<Option<i32>, FdError> {
    match (object.kind == NAME).then(|| decode(NAME, &object.state)).transpose()? {
        Some(State::Thread(tid)) => Ok(Some(tid)),
        _ => Ok(None),
    }
}

/// Puts the call into `program` that makes the pidfd of a thread, in a process whose descriptor is to
/// have the status flags `flags`. Gives its row.
pub fn open_thread(tid: i32, flags: i32, program: &mut Program) -> usize {
    let flags = (THREAD | flags & libc::O_NONBLOCK) as u64;
    let args = [numbers::to_host(tid) as u64, flags].map(Arg::Num);
    program.call(libc::SYS_pidfd_open, "pidfd_open", &args)
}

/// Does an epoll of the job watch it?
fn is_watched(view: &FdView, cx: &dyn CaptureCx) -> bool {
    let ino = format!("ino:{:x}", view.ino);
    let watches =
        |line: &str| line.starts_with("tfd:") && line.split_whitespace().any(|w| w == ino);
    cx.all().iter().any(|other| other.fdinfo.lines().any(watches))
}

/// The last number of a line of fdinfo.
fn number(view: &FdView, name: &str) -> Option<i32> {
    view.field(name)?.split_whitespace().last()?.parse().ok()
}

/// Is it a process or thread of the job, or one that waits to be reaped there?
fn is_member(pid: i32, job_pids: &[i32]) -> bool {
    let Ok(view) = View::read_process(pid) else { return false };
    // One that the job has made just now is traced before the supervisor has heard of it.
    super::outside::is_traced_here(pid)
        || job_pids.contains(&(view.number("Tgid:") as i32))
        || (is_zombie(pid) && job_pids.contains(&(view.number("PPid:") as i32)))
}

fn is_leader(pid: i32) -> bool {
    View::read_process(pid).is_ok_and(|view| view.number("Tgid:") as i32 == pid)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::testing::{moved, refusal, Here};
    use super::*;

    fn me() -> i32 {
        std::process::id() as i32
    }

    fn pid_of(fd: &OwnedFd) -> Option<i32> {
        number(&FdView::read(me(), fd.as_raw_fd()).expect("view"), "Pid")
    }

    #[test]
    fn of_oneself() {
        for flags in [0, THREAD as u32] {
            let copy = moved(&raw::pidfd(me(), flags).expect("pidfd"));
            assert_eq!(pid_of(&copy), Some(me()));
            let flag = raw::fcntl(copy.as_raw_fd(), libc::F_GETFL, 0).expect("flags") & THREAD;
            assert_eq!(flag as u32, flags);
        }
    }

    #[test]
    fn of_an_ended_and_of_a_reaped_child() {
        let mut child = Command::new("sh").args(["-c", "exit 7"]).spawn().expect("sh");
        let fd = raw::pidfd(child.id() as i32, 0).expect("pidfd");
        while !is_zombie(child.id() as i32) {
            std::thread::yield_now();
        }
        assert_eq!(pid_of(&moved(&fd)), Some(child.id() as i32));
        child.wait().expect("wait");
        let copy = moved(&fd);
        assert_eq!(pid_of(&copy), Some(-1));
        let status = |fd: &OwnedFd| raw::pidfd_exit_status(fd.as_raw_fd()).ok();
        assert_eq!(status(&copy), status(&fd));
    }

    #[test]
    fn one_that_was_killed() {
        let fd = raw::pidfd_of_reaped(libc::SIGTERM, 0).expect("pidfd");
        assert_eq!(pid_of(&fd), Some(-1));
        if let Ok(status) = raw::pidfd_exit_status(fd.as_raw_fd()) {
            assert_eq!(status, libc::SIGTERM);
        }
    }

    #[test]
    fn one_that_is_reaped_after_it_was_looked_at() {
        let mut child = Command::new("sh").args(["-c", "exit 7"]).spawn().expect("sh");
        let fd = raw::pidfd(child.id() as i32, 0).expect("pidfd");
        let view = FdView::read(me(), fd.as_raw_fd()).expect("view");
        child.wait().expect("wait");
        let state = PidFd.capture(&view, &Here::default()).expect("capture");
        let status = raw::pidfd_exit_status(fd.as_raw_fd()).unwrap_or(0);
        let reaped = State::Reaped { status, thread: false };
        assert_eq!(decode::<State>(NAME, &state).expect("state"), reaped);
    }

    #[test]
    fn of_an_outsider() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let fd = raw::pidfd(child.id() as i32, 0).expect("pidfd");
        assert_eq!(refusal(&fd), "VOS-PIDFD");
        child.kill().expect("kill");
        child.wait().expect("wait");
        let view = FdView { link: "pidfd:[4711]".into(), ..FdView::default() };
        assert!(PidFd.recognises(&view) && PidFd.capture(&view, &Here::default()).is_err());
    }
}
