//! What runs in the new processes (see [`super::skeleton`] for who is who).
//!
//! Each function here is the whole life of one process; none returns to the supervisor's
//! code. Errors are told over the control socket, then the process ends.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::mount::{mount, MsFlags};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{setpgid, setsid, Pid};

use super::image::{Clocks, Ids};
use super::resource::creds::User;
use super::skeleton::{coarse_tick, offsets, receive, send, Plan, Request, Word};
use super::{building, raw};
use crate::tracer::raw::pidfd_open;

/// Ends of the sockets that the new processes hold.
struct Ends {
    control: OwnedFd,
    leader: OwnedFd,
    /// The session's terminal.
    tty: Option<OwnedFd>,
}

impl Ends {
    fn fail(&self, what: &str, error: &dyn std::fmt::Display) -> ! {
        let _ = send(self.control.as_fd(), &Word::Failed(format!("{what}: {error}")), &[]);
        raw::exit_now(1)
    }

    /// This process leads a new session, which gets the terminal if there is one.
    fn lead_session(&mut self) {
        self.must("setsid", setsid());
        if let Some(tty) = self.tty.take() {
            self.must("controlling terminal", raw::set_controlling_terminal(tty.as_fd()));
        }
    }

    /// G: a stand-in for the leader of the process's group, if that is none of the others.
    fn make_group(&self, ids: Ids) {
        if ids.pgid <= 1 || [ids.pid, ids.sid, ids.ppid].contains(&ids.pgid) {
            return;
        }
        let group = self.must("group leader", raw::fork(Some(ids.pgid)));
        if group == 0 {
            group_leader();
        }
        let own = setpgid(Pid::from_raw(group), Pid::from_raw(group));
        self.must("group of the stand-in", own);
    }

    /// The value, or the end of this process.
    fn must<T, E: std::fmt::Display>(&self, what: &str, result: Result<T, E>) -> T {
        result.unwrap_or_else(|e| self.fail(what, &e))
    }
}

/// Is the process's parent outside of its pid namespace, and so H?
pub(super) fn parent_is_outside(ids: Ids) -> bool {
    ids.ppid == 0 && ids.may_come_from_outside()
}

/// H: makes the namespaces and pid 1.
pub(super) fn start(
    plan: &Plan,
    now: Clocks,
    control: OwnedFd,
    leader: OwnedFd,
    tty: Option<RawFd>,
) -> ! {
    let mut keep = vec![control.as_raw_fd(), leader.as_raw_fd()];
    keep.extend(tty);
    close_others(&keep);
    let ends = Ends { control, leader, tty: tty.map(raw::own) };
    ends.must("namespaces", unshare(plan.user));
    ends.must("clock offsets", set_clocks(plan, now));
    ends.must("host name", nix::unistd::sethostname(&plan.nodename));
    if !plan.domainname.is_empty() {
        ends.must("domain name", raw::set_domain_name(&plan.domainname));
    }
    // Held by H and P together, by pid 1 the other end.
    let (outside, inside) = ends.must("socketpair", UnixStream::pair());
    let outside = parent_is_outside(plan.ids).then_some(outside);
    match ends.must("fork", raw::fork_sibling()) {
        0 => init(plan, ends, outside.map(|_| inside)),
        _ => drop(inside),
    }
    let Some(mut outside) = outside else { raw::exit_now(0) };
    // Nothing comes when pid 1 has failed; it has said so.
    match outside.read_exact(&mut [0]) {
        Ok(()) => parent(plan, ends),
        Err(_) => raw::exit_now(1),
    }
}

/// Closes every descriptor but these.
fn close_others(keep: &[RawFd]) {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut next = 0;
    for fd in keep {
        raw::close_range(next, fd - 1);
        next = fd + 1;
    }
    raw::close_range(next, RawFd::MAX);
}

/// Tries the namespaces in a process that ends at once; its exit code is the error number.
pub(super) fn probe(user: User) -> ! {
    raw::exit_now(unshare(user).err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO)))
}

/// New namespaces: with the privilege to make them directly where there is one, else within a
/// user namespace in which this node's user is the job's.
fn unshare(user: User) -> io::Result<()> {
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | raw::CLONE_NEWTIME;
    if user.is_givable() {
        match raw::unshare(flags) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            other => return other,
        }
    }
    let own = User::own();
    raw::unshare(flags | libc::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{} {} 1", user.uid, own.uid))?;
    fs::write("/proc/self/gid_map", format!("{} {} 1", user.gid, own.gid))
}

/// Sets the offsets so that the job's clocks go on from where they were when the plan was
/// sent, and by [`coarse_tick`] ahead of that. Offsets count from the initial time namespace,
/// ours may be another.
fn set_clocks(plan: &Plan, now: Clocks) -> io::Result<()> {
    let own = offsets("self")?;
    let tick = coarse_tick()?;
    let text = |name: &str, nanoseconds: i128| {
        let (sec, nsec) =
            (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
        format!("{name} {sec} {nsec}\n")
    };
    let ahead = |theirs: i128, now: i128, own: i128| {
        let offset = theirs.checked_sub(now).and_then(|o| o.checked_add(own + tick));
        offset.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    let monotonic = ahead(plan.clocks.monotonic, now.monotonic, own.0)?;
    let boottime = ahead(plan.clocks.boottime, now.boottime, own.1)?;
    fs::write(
        "/proc/self/timens_offsets",
        text("monotonic", monotonic) + &text("boottime", boottime),
    )
}

/// I: pid 1 of the job's namespace. Leads the session or the group that pid 1 led where the
/// job comes from; a session or group of 0 is led by nobody in the namespace. `outside` leads to a
/// parent that is not in it.
fn init(plan: &Plan, mut ends: Ends, outside: Option<UnixStream>) -> ! {
    let none: Option<&str> = None;
    let slave = mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none);
    ends.must("mount propagation", slave);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let without_proc = mount(Some("proc"), "/proc", Some("proc"), flags, none).is_err();
    ends.must("init", send(ends.control.as_fd(), &Word::Init(without_proc), &[]));
    let ids = plan.ids;
    if ids.sid == 1 {
        ends.lead_session();
    } else if ids.pgid == 1 {
        ends.must("group of pid 1", setpgid(Pid::from_raw(0), Pid::from_raw(0)));
    }
    // The session leader, where it is neither the process itself nor us.
    let session = (ids.sid > 1 && ids.sid != ids.pid).then_some(ids.sid);
    if session.is_none() {
        ends.make_group(ids);
    }
    match outside {
        Some(outside) => await_process_of(outside, ends, ids.pid),
        None => make_below(plan, ends, session),
    }
    for stand_in in [session, (ids.pgid > 1).then_some(ids.pgid)].into_iter().flatten() {
        if stand_in != ids.pid {
            let _ =
                nix::sys::signal::kill(Pid::from_raw(stand_in), nix::sys::signal::Signal::SIGKILL);
        }
    }
    while raw::reap().is_some() {}
    raw::exit_now(0)
}

/// Lets H make the process, and waits until it has ended.
fn await_process_of(mut outside: UnixStream, ends: Ends, pid: i32) {
    ends.must("the parent outside", outside.write_all(&[0]));
    drop(ends);
    // The end of the other side: the process is there, or has failed.
    let _ = outside.read(&mut [0]);
    drop(outside);
    close_others(&[]);
    let Ok(process) = pidfd_open(pid) else { return };
    let mut wait = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    while poll(&mut wait, PollTimeout::NONE).is_err() {}
}

/// Makes the process, or those between it and pid 1, and waits for its end.
fn make_below(plan: &Plan, ends: Ends, session: Option<i32>) {
    let ids = plan.ids;
    let parent_is_us = ids.ppid <= 1;
    let first = match session {
        Some(sid) => match ends.must("session leader", raw::fork(Some(sid))) {
            0 => session_leader(plan, ends, parent_is_us),
            pid => pid,
        },
        None if parent_is_us => match ends.must("process", raw::fork(Some(ids.pid))) {
            0 => process(plan, ends),
            pid => pid,
        },
        None => match ends.must("parent", raw::fork(Some(ids.ppid))) {
            0 => parent(plan, ends),
            pid => pid,
        },
    };
    if ids.sid == 1 {
        serve_terminal(ends.leader.as_fd());
    }
    // Holds nothing: a socket's end must go with the process it belongs to.
    close_others(&[]);
    let last = if parent_is_us { ids.pid } else { first };
    reap_until(last);
}

/// Reaps until this child has ended, or none is left.
fn reap_until(pid: i32) {
    while let Some((ended, _)) = raw::reap() {
        if ended == pid {
            return;
        }
    }
}

/// L: leads the session in the place of the shell that stayed at home.
fn session_leader(plan: &Plan, mut ends: Ends, orphan: bool) -> ! {
    ends.lead_session();
    let ids = plan.ids;
    ends.make_group(ids);
    let child = if orphan {
        // Its parent is pid 1: through one that ends at once.
        match ends.must("fork", raw::fork(None)) {
            0 => match ends.must("process", raw::fork(Some(ids.pid))) {
                0 => process(plan, ends),
                _ => raw::exit_now(0),
            },
            pid => pid,
        }
    } else if ids.ppid == ids.sid {
        match ends.must("process", raw::fork(Some(ids.pid))) {
            0 => process(plan, ends),
            pid => pid,
        }
    } else {
        match ends.must("parent", raw::fork(Some(ids.ppid))) {
            0 => parent(plan, ends),
            pid => pid,
        }
    };
    let Ends { control, leader, .. } = ends;
    drop(control);
    serve_terminal(leader.as_fd());
    drop(leader);
    if orphan {
        group_leader();
    }
    reap_until(child);
    raw::exit_now(0)
}

/// Takes the controlling terminal when asked, until the supervisor closes the socket.
fn serve_terminal(socket: BorrowedFd) {
    while let Ok((Request::Terminal(group), _, fds)) = receive(socket) {
        let Some(tty) = fds.first() else { continue };
        let _ = send(socket, &answer(take_terminal(tty.as_fd(), group)), &[]);
    }
}

fn take_terminal(tty: BorrowedFd, group: i32) -> io::Result<()> {
    raw::set_controlling_terminal(tty)?;
    raw::set_foreground(tty, group)
}

fn answer(result: io::Result<()>) -> Word {
    match result {
        Ok(()) => Word::Ready,
        Err(e) => Word::Failed(format!("controlling terminal: {e}")),
    }
}

/// G, or a session leader whose process is a child of pid 1: there as long as pid 1 is.
fn group_leader() -> ! {
    close_others(&[]);
    loop {
        nix::unistd::pause();
    }
}

/// Q, or H: the parent of the process, reaps it.
fn parent(plan: &Plan, ends: Ends) -> ! {
    let ids = plan.ids;
    if ids.pgid == ids.ppid && ids.sid != ids.ppid {
        ends.must("group of the parent", setpgid(Pid::from_raw(0), Pid::from_raw(0)));
    }
    let child = ends.must("process", raw::fork(Some(ids.pid)));
    if child == 0 {
        process(plan, ends);
    }
    close_others(&[]);
    reap_until(child);
    raw::exit_now(0)
}

/// P: the process itself, until it is given its old memory.
fn process(plan: &Plan, ends: Ends) -> ! {
    let ids = plan.ids;
    if ids.sid == ids.pid {
        ends.must("setsid", setsid());
    } else if ids.pgid == ids.pid {
        ends.must("setpgid", setpgid(Pid::from_raw(0), Pid::from_raw(0)));
    } else if ids.pgid > 1 && nix::unistd::getpgrp().as_raw() != ids.pgid {
        ends.must("setpgid", setpgid(Pid::from_raw(0), Pid::from_raw(ids.pgid)));
    }
    raw::set_dumpable();
    close_others(&[ends.control.as_raw_fd()]);
    let control = ends.control;
    let _ = send(control.as_fd(), &Word::Ready, &[]);
    loop {
        match receive(control.as_fd()) {
            Ok((Request::Terminal(group), _, fds)) => {
                let result = fds.first().map_or(Ok(()), |tty| take_terminal(tty.as_fd(), group));
                let _ = send(control.as_fd(), &answer(result), &[]);
            }
            Ok((Request::Build(plan), _, fds)) => building::build_and_wait(&plan, control, fds),
            Ok((Request::More, ..)) => {}
            Err(_) => raw::exit_now(1),
        }
    }
}
