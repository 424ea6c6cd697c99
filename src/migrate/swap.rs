//! Puts other sockets in the place of those that a frozen job has, at all their numbers and in all
//! epoll instances that watch them.
//!
//! ```text
//! supervisor                              a stopped process
//!     ◄── pidfd_getfd of one end ───────  socketpair
//!     ─── SCM_RIGHTS ──────────────────►  recvmsg: the new ones, at any numbers
//!                                         epoll_ctl DEL, dup3 onto each old number, ADD; close
//! ```
//! Calls that wait in an old socket were interrupted by the freeze, and look the number up anew when
//! they are started again. Nothing has been changed in a process when the transfer into it fails.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{ensure, Context, Result};
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};

use crate::migrate::resource::fd::{epoll, Views};
use crate::migrate::resource::View;
use crate::tracer::inject::{Arg, Program, Remote, Stub};
use crate::tracer::raw;

/// New sockets by the inodes of the old ones.
pub type Swaps<'a> = BTreeMap<u64, &'a OwnedFd>;

/// Descriptors that one message carries (less than SCM_MAX_FD of linux/net/scm.h).
const AT_ONCE: usize = 64;

/// A number of a process that is given another description.
struct Place {
    number: RawFd,
    inode: u64,
    cloexec: bool,
}

/// An entry of an epoll instance that is made again.
struct Watch {
    epoll: RawFd,
    entry: epoll::Shown,
}

/// Where a process has the old sockets.
struct Found {
    places: Vec<Place>,
    watches: Vec<Watch>,
}

/// Can these sockets of the frozen processes be swapped?
///
/// # Errors
/// When an epoll instance watches one by a number that leads elsewhere now (questions 1 and 6 of
/// epoll(7)); when its list has another form.
pub fn check(views: &Views, inodes: &[u64]) -> Result<()> {
    for &pid in views.tables.keys() {
        let found = find(views, pid, |inode| inodes.contains(&inode))?;
        for Watch { epoll, entry } in &found.watches {
            let own = |place: &Place| (place.number, place.inode) == (entry.tfd, entry.ino);
            ensure!(
                found.places.iter().any(own),
                "epoll {epoll} of process {pid} watches a socket by what was fd {}",
                entry.tfd
            );
        }
    }
    Ok(())
}

/// Swaps in one process, whose first thread is stopped, or for a stopped thread (host tid) that has a
/// table of its own; `insn` is a `syscall` instruction in it. What `views` show of a table that was
/// swapped for another process does no harm.
///
/// # Errors
/// What was tried; when a number was not given its new description, which none but a lack of memory
/// can bring about, the process has some of the new ones.
pub fn swap(views: &Views, pid: i32, insn: u64, swaps: &Swaps) -> Result<()> {
    let found = find(views, pid, |inode| swaps.contains_key(&inode))?;
    if found.places.is_empty() {
        return Ok(());
    }
    let view = View::read(pid, pid).with_context(|| format!("status of process {pid}"))?;
    let mut remote = Remote::open(pid, view.ignores(libc::SIGTRAP))?;
    let stub = Stub::map(&mut remote, insn, None)?;
    let done = swap_in(&mut remote, &stub, pid, &found, swaps);
    remote.close_with(&stub, insn)?;
    done.with_context(|| format!("replace sockets of process {pid}"))
}

fn swap_in(remote: &mut Remote, stub: &Stub, pid: i32, found: &Found, swaps: &Swaps) -> Result<()> {
    let mut wanted: Vec<u64> = found.places.iter().map(|place| place.inode).collect();
    wanted.sort_unstable();
    wanted.dedup();
    for some in wanted.chunks(AT_ONCE) {
        let fds = some.iter().filter_map(|inode| Some(swaps.get(inode)?.as_raw_fd())).collect();
        let given = give(remote, stub, pid, fds)?;
        let given: BTreeMap<u64, RawFd> = some.iter().copied().zip(given).collect();
        put(remote, stub, found, &given)?;
    }
    Ok(())
}

/// Gives descriptors to a process. The numbers that they have there.
fn give(remote: &mut Remote, stub: &Stub, pid: i32, fds: Vec<RawFd>) -> Result<Vec<RawFd>> {
    let mut program = Program::default();
    let both = program.data(&[0; 8]);
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    let args =
        [Arg::Num(libc::AF_UNIX as u64), Arg::Num(kind as u64), Arg::Num(0), Arg::Data(both)];
    program.call(libc::SYS_socketpair, "socketpair", &args);
    let outcome = remote.run(stub, program)?;
    outcome.all_ok()?;
    let ends = numbers_of(outcome.data(both));
    let received = send(pid, ends[1], &fds)
        .with_context(|| format!("send sockets to process {pid}"))
        .and_then(|()| receive(remote, stub, ends[0], fds.len()));
    let mut closing = Program::default();
    let others = match &received {
        Ok(all) if all.len() != fds.len() => all.as_slice(),
        _ => &[],
    };
    for number in ends.iter().chain(others) {
        closing.call(libc::SYS_close, "close", &[Arg::Num(*number as u64)]);
    }
    remote.run(stub, closing)?.all_ok()?;
    let received = received?;
    ensure!(received.len() == fds.len(), "process {pid} has no room for {} sockets", fds.len());
    Ok(received)
}

fn send(pid: i32, end: RawFd, fds: &[RawFd]) -> io::Result<()> {
    let table = raw::pidfd_open_thread(pid).or_else(|_| raw::pidfd_open(pid))?;
    let end = raw::pidfd_getfd(&table, end)?;
    let rights = [ControlMessage::ScmRights(fds)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(end.as_raw_fd(), &[IoSlice::new(&[1])], &rights, flags, None)?;
    Ok(())
}

/// recvmsg(2) in the process, with `struct msghdr` and `struct cmsghdr` as cmsg(3) has them.
fn receive(remote: &mut Remote, stub: &Stub, from: RawFd, count: usize) -> Result<Vec<RawFd>> {
    const HEADER: usize = 16;
    let mut program = Program::default();
    let byte = program.data(&[0]);
    let control = program.data(&vec![0; HEADER + count.next_multiple_of(2) * 4]);
    let at = |data: crate::tracer::inject::Data| stub.data() + data.offset();
    let words = |all: &[u64]| all.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let vector = program.data(&words(&[at(byte), 1]));
    let room = (HEADER + count * 4) as u64;
    let message = program.data(&words(&[0, 0, at(vector), 1, at(control), room, 0]));
    let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
    let args = [Arg::Num(from as u64), Arg::Data(message), Arg::Num(flags)];
    program.call(libc::SYS_recvmsg, "recvmsg", &args);
    let outcome = remote.run(stub, program)?;
    outcome.all_ok()?;
    let bytes = outcome.data(control);
    let (len, rest) = bytes.split_at(8);
    let len = u64::from_le_bytes(len.try_into()?) as usize;
    let some = len.checked_sub(HEADER).and_then(|some| rest.get(HEADER - 8..HEADER - 8 + some));
    Ok(some.map(numbers_of).unwrap_or_default())
}

fn numbers_of(bytes: &[u8]) -> Vec<RawFd> {
    let (all, _) = bytes.as_chunks::<4>();
    all.iter().map(|number| i32::from_le_bytes(*number)).collect()
}

/// Puts the new descriptions at the old numbers.
fn put(
    remote: &mut Remote,
    stub: &Stub,
    found: &Found,
    given: &BTreeMap<u64, RawFd>,
) -> Result<()> {
    let mut program = Program::default();
    let num = |number: i32| Arg::Num(number as u64);
    let watches = || found.watches.iter().filter(|watch| given.contains_key(&watch.entry.ino));
    for Watch { epoll, entry } in watches() {
        let args = [num(*epoll), num(libc::EPOLL_CTL_DEL), num(entry.tfd), Arg::Num(0)];
        program.call_if_granted(libc::SYS_epoll_ctl, "epoll_ctl", &args);
    }
    for place in &found.places {
        let Some(new) = given.get(&place.inode) else { continue };
        let flags = if place.cloexec { libc::O_CLOEXEC } else { 0 };
        program.call(libc::SYS_dup3, "dup3", &[num(*new), num(place.number), num(flags)]);
    }
    for Watch { epoll, entry } in watches() {
        let mut event = entry.events.to_le_bytes().to_vec();
        event.extend(entry.data.to_le_bytes());
        let event = program.data(&event);
        let args = [num(*epoll), num(libc::EPOLL_CTL_ADD), num(entry.tfd), Arg::Data(event)];
        program.call_if_granted(libc::SYS_epoll_ctl, "epoll_ctl", &args);
    }
    for new in given.values() {
        program.call(libc::SYS_close, "close", &[num(*new)]);
    }
    let outcome = remote.run(stub, program)?;
    outcome.all_ok()?;
    // Another number of the instance, or another process that has it, has done it.
    let known = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EEXIST));
    let failed = outcome.refused().find(|(_, e)| !known(e));
    failed.map_or(Ok(()), |(what, e)| Err(e).context(what))
}

fn find(views: &Views, pid: i32, wanted: impl Fn(u64) -> bool) -> Result<Found> {
    let mut found = Found { places: Vec::new(), watches: Vec::new() };
    for slot in views.tables.get(&pid).into_iter().flatten() {
        let Some(view) = views.objects.get(slot.object as usize) else { continue };
        if view.link == "anon_inode:[eventpoll]" {
            let entries = epoll::shown(view)?.into_iter().filter(|entry| wanted(entry.ino));
            found.watches.extend(entries.map(|entry| Watch { epoll: slot.fd, entry }));
        }
        if view.file_type() == libc::S_IFSOCK && wanted(view.ino) {
            found.places.push(Place { number: slot.fd, inode: view.ino, cloexec: slot.cloexec });
        }
    }
    Ok(found)
}
