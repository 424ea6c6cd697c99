//! The controlling terminals of a job's sessions.
//!
//! A process has the controlling terminal of its parent, or, as the leader of a session, takes
//! one; there is no other way to it (tty_ioctl(4), TIOCSCTTY). So the terminals are made with
//! the frame, and each leader takes its own before it forks:
//!
//! ```text
//! source: of() ─► Plan ─► H: make() ─► leaders of sessions
//!                            └► supervisor: the relay's ends, masters of the job
//! ```
//! All have the numbers that they had, in a devpts of the job's own, or by translation
//! ([`ptys`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use nix::unistd::{getpgid, Pid};
use serde::{Deserialize, Serialize};

use super::capture::has_terminal;
use super::files::Files;
use super::gone;
use super::image::ProcessImage;
use super::resource::creds::User;
use super::resource::fd::pty::raw::{query, Query};
use super::resource::fd::{is_terminal, pty, CaptureCx, FdError, FdView};
use super::resource::View;
use crate::proxy::term::WindowSize;
use crate::proxy::PtyPair;
use crate::syscalls::translate::{numbers, ptys};

/// The controlling terminal of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// The session's number in the job.
    pub sid: i32,
    /// N of /dev/pts/N.
    pub number: u32,
    /// Its master is in the job: the index of that object. None: it is relayed.
    pub master: Option<u32>,
    /// Number of its foreground group in the job; none: a group that is not in the job.
    pub foreground: Option<i32>,
    pub size: WindowSize,
}

impl Terminal {
    /// Is the same made of both in a frame?
    #[must_use]
    pub fn is_made_as(&self, other: &Self) -> bool {
        let made = |t: &Self| (t.sid, t.number, t.master.is_some());
        made(self) == made(other)
    }
}

/// The controlling terminals of the job, that of the first process's session first if it is
/// relayed.
///
/// # Errors
/// [`FdError::Refused`] for one that cannot move, [`FdError::Io`] for what was tried.
pub fn of(files: &Files, root: i32) -> Result<Vec<Terminal>, FdError> {
    let processes = || files.job_pids().into_iter().collect();
    pty::all_numbers(&files.views.objects).for_each(|number| ptys::born(number, &processes));
    let mut found = Vec::new();
    for (object, view, (_, number)) in pty::masters(&files.views.objects) {
        let tried = |source| FdError::Io { what: format!("ask {}", view.object()), source };
        let master = match files.dup(view) {
            // A running program has closed it meanwhile.
            Err(e) if gone::is_closed(&e) => continue,
            other => other.map_err(tried)?,
        };
        let session = match query(master.as_fd(), Query::Session) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => continue,
            other => other.map_err(tried)?,
        };
        let foreground = query(master.as_fd(), Query::Foreground).unwrap_or(0);
        found.push(Terminal {
            sid: number_in_job(files, session).ok_or_else(|| not_ours(view))?,
            number: ptys::to_job(number),
            master: Some(object),
            foreground: group_in_job(files, foreground),
            size: WindowSize::of(master.as_fd()).map_err(tried)?,
        });
    }
    if let Some(relayed) = relayed(files, root, &found) {
        found.insert(0, relayed);
    }
    Ok(found)
}

fn not_ours(view: &FdView) -> FdError {
    let cause = "it controls a session that is led from outside of the job";
    let remedy = "let the program close that terminal";
    FdError::Refused(Box::new(view.blocker("VOS-PTY", cause, remedy)))
}

/// The terminal of the first process, if it leads to the home.
fn relayed(files: &Files, root: i32, inside: &[Terminal]) -> Option<Terminal> {
    let stat = procfs::process::Process::new(root).and_then(|p| p.stat()).ok()?;
    let (major, minor) = pty::device(stat.tty_nr);
    let all = &files.views.objects;
    let is_it = |view: &&FdView| {
        (libc::major(view.rdev), libc::minor(view.rdev)) == (major, minor)
            && is_terminal(view)
            && !pty::is_inside(view, all)
            && !pty::has_hung_up(view)
    };
    let sid = super::capture::ids(&View::read_process(root).ok()?).ok()?.sid;
    if major == 0 || inside.iter().any(|t| t.sid == sid) {
        return None;
    }
    let view = all.iter().find(is_it)?;
    let size = files.dup(view).and_then(|tty| WindowSize::of(tty.as_fd())).unwrap_or_default();
    let used: BTreeSet<u32> = pty::all_numbers(all).map(ptys::to_job).collect();
    let number = pty::slave_number(major, minor).map(ptys::to_job);
    let number = number.filter(|number| !used.contains(number));
    let free = || (0..).find(|number| !used.contains(number));
    let foreground = group_in_job(files, stat.tpgid);
    Some(Terminal { sid, number: number.or_else(free)?, master: None, foreground, size })
}

/// The number that a process of the job has there.
fn number_in_job(files: &Files, pid: i32) -> Option<i32> {
    files.job_pids().contains(&pid).then(|| View::read_process(pid).ok().map(|v| v.job_pid))?
}

/// A process of the job that is in this group.
#[must_use]
pub fn member_of_group(pids: &[i32], group: i32) -> Option<i32> {
    let is_in = |pid: &&i32| getpgid(Some(Pid::from_raw(**pid))) == Ok(Pid::from_raw(group));
    pids.iter().find(is_in).copied()
}

/// The number of a group in the job, of which a process there is a member.
fn group_in_job(files: &Files, group: i32) -> Option<i32> {
    let member = member_of_group(&files.job_pids(), group)?;
    let view = View::read_process(member).ok()?;
    let number = view.field("NSpgid:").split_whitespace().last()?.parse().ok()?;
    Some(numbers::to_job(number))
}

/// Notes which of these processes (host pids) have no controlling terminal.
pub fn note_without(pids: &[i32], images: &mut [ProcessImage]) {
    for (pid, image) in pids.iter().zip(images) {
        image.no_terminal = !has_terminal(*pid);
    }
}

/// Has a new process (host pid) a terminal that it is not to have? The leader of a session has that
/// of all.
#[must_use]
pub fn is_too_much(pid: i32, image: &ProcessImage) -> bool {
    image.no_terminal && image.ids.sid != image.ids.pid && has_terminal(pid)
}

/// Gives this mount namespace a devpts of its own, if it may have one.
pub(super) fn mount_own() -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = "newinstance,ptmxmode=0666,mode=0620";
    let all = format!("{options},gid={TTY_GROUP}");
    // A user namespace may not have that group.
    match mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, Some(all.as_str())) {
        Err(Errno::EINVAL | Errno::EPERM) => {}
        other => return Ok(other?),
    }
    Ok(mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, Some(options))?)
}

/// Group `tty` of most systems (pts(4)).
const TTY_GROUP: u32 = 5;

/// Makes the ptys of these terminals, in the same order.
///
/// # Errors
/// What was tried. Without a devpts of its own (`own`) the job's numbers are translated, or a number
/// may be taken.
pub(super) fn make(terminals: &[Terminal], own: bool, user: User) -> Result<Vec<PtyPair>, FdError> {
    let mut spare = BTreeMap::new();
    terminals.iter().map(|t| make_one(t, own, user, &mut spare)).collect()
}

fn make_one(
    terminal: &Terminal,
    own: bool,
    user: User,
    spare: &mut BTreeMap<u32, OwnedFd>,
) -> Result<PtyPair, FdError> {
    let tried = |e: io::Error| FdError::Io {
        what: format!("make terminal {}", terminal.number),
        source: e,
    };
    let pair = if own || terminal.master.is_some() {
        let master = pty::open_numbered(terminal.number, spare)?;
        PtyPair::of(master).map_err(tried)?
    } else {
        PtyPair::open().map_err(tried)?
    };
    terminal.size.set(pair.master.as_fd()).map_err(tried)?;
    // As far as we may: then it has our number already.
    let _ = std::os::unix::fs::fchown(&pair.slave, Some(user.uid), None);
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_master_whose_process_has_ended_has_no_terminal() {
        let pair = PtyPair::open().expect("pty");
        let mut child = Command::new("cat")
            .stdin(Stdio::from(pair.master.try_clone().expect("dup")))
            .stdout(Stdio::null())
            .spawn()
            .expect("cat");
        let pid = i32::try_from(child.id()).expect("pid");
        let files = Files::read(&[pid], |_, _| None).expect("files");
        assert_eq!(pty::masters(&files.views.objects).count(), 1);
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert_eq!(of(&files, pid).expect("terminals"), []);
    }
}
