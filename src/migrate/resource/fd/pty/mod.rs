//! Ptys whose master is in the job (pty(7)): terminal emulators, tmux, script(1).
//!
//! A pty keeps its number, so that the name of its slave stays true: the frame of a job has a
//! devpts of its own where that is needed. Who makes what:
//!
//! ```text
//! frame           ptys that control a session, which takes them before it forks
//!                 (`crate::migrate::terminals`)
//! session leader  descriptions that were opened as /dev/tty
//! first process   all others; modes, unread bytes
//! ```
//! The bytes in both directions are taken from the frozen job and put back if it stays
//! ([`queues`]).

use std::collections::btree_map::Entry;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::content::{open_at, OPEN_FLAGS};
use super::outside::Place;
use super::raw as fd_raw;
use super::{decode, encode, failed, CaptureCx, FdError, FdKind, FdView, RestoreCx};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;
use crate::control::Finding;
use crate::migrate::resource::View;
use crate::proxy::term::{wait_for, Termios, WindowSize};
use crate::syscalls::translate::{numbers, ptys};

pub mod queues;
pub mod raw;

use queues::{fill, open_slave, take, Queues, Taken};
use raw::Query;

pub(super) const NAME: &str = "pty";

const PTMX: (u32, u32) = (5, 2);
const TTY: (u32, u32) = (5, 0);
/// Majors of slaves; each has 256 of them, and the first has all beyond
/// (admin-guide/devices.txt).
const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;

/// Which pty: st_dev of its devpts, and its number there.
pub type PtyId = (u64, u32);

/// A code for what passes by itself as a rule, and is waited for.
pub const PASSING: &str = "VOS-PTY-BUSY";

#[derive(Debug, Serialize, Deserialize)]
enum State {
    Master(Box<Master>),
    /// With the index of its master among the objects; none: that is closed, and the terminal
    /// has hung up.
    Slave {
        id: PtyId,
        master: Option<u32>,
        flags: i32,
        exclusive: bool,
    },
    /// Opened as /dev/tty, of this pty; of none: the terminal that is relayed.
    Name {
        id: Option<PtyId>,
        flags: i32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Master {
    id: PtyId,
    flags: i32,
    termios: Termios,
    size: WindowSize,
    locked: bool,
    packet: bool,
    exclusive: bool,
    queues: Queues,
    /// Of the slave's name: permissions, and owner where his number means the same there.
    mode: u32,
    owner: Option<(u32, u32)>,
}

/// Both sides of a pty while the objects of a job are made.
#[derive(Debug)]
pub(super) struct Ends {
    master: OwnedFd,
    /// Keeps the master from being told that the slave is closed.
    slave: OwnedFd,
}

/// What the objects of a job have in common.
#[derive(Debug, Default)]
pub(super) struct Ptys {
    ends: BTreeMap<PtyId, Ends>,
    /// Opened on the way to a higher number.
    spare: BTreeMap<u32, OwnedFd>,
}

fn device_of(view: &FdView) -> (u32, u32) {
    (libc::major(view.rdev), libc::minor(view.rdev))
}

fn is_device(view: &FdView) -> bool {
    view.file_type() == libc::S_IFCHR && view.flags & libc::O_PATH == 0
}

fn is_master(view: &FdView) -> bool {
    is_device(view) && device_of(view) == PTMX
}

fn is_name(view: &FdView) -> bool {
    is_device(view) && device_of(view) == TTY
}

/// The pty that this description is the master of; none also for one that was opened in an
/// unusual place.
#[must_use]
pub fn master_id(view: &FdView) -> Option<PtyId> {
    let number = view.number("tty-index", 10).ok().filter(|_| is_master(view))?;
    let number = u32::try_from(number).ok()?;
    match view.link.as_str() {
        "/dev/pts/ptmx" => Some((view.dev, number)),
        "/dev/ptmx" => {
            let beside = fs::metadata(format!("/proc/{}/root/dev/pts", view.host_pid)).ok()?;
            Some((beside.dev(), number))
        }
        _ => None,
    }
}

/// Major and minor number in the form of `tty_nr` of proc_pid_stat(5) and of TIOCGDEV.
#[must_use]
pub fn device(number: i32) -> (u32, u32) {
    let number = number as u32;
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

/// The number of the pty whose slave has this device number.
#[must_use]
pub fn slave_number(major: u32, minor: u32) -> Option<u32> {
    SLAVES.contains(&major).then(|| (major - SLAVES.start()) * 256 + minor)
}

fn slave_id(view: &FdView) -> Option<PtyId> {
    let (major, minor) = device_of(view);
    let number = slave_number(major, minor).filter(|_| is_device(view))?;
    Some((view.dev, number))
}

/// The same pty by the number that the job knows.
fn in_job((dev, number): PtyId) -> PtyId {
    (dev, ptys::to_job(number))
}

/// The kernel's numbers of the ptys whose master is among `all`, or whose slave without a master.
pub fn all_numbers(all: &[FdView]) -> impl Iterator<Item = u32> + '_ {
    let hung_up = all.iter().filter(|view| has_hung_up(view)).filter_map(slave_id);
    masters(all).map(|(.., id)| id).chain(hung_up).map(|(_, number)| number)
}

/// Is this a slave whose master is among `all`?
#[must_use]
pub fn is_inside(view: &FdView, all: &[FdView]) -> bool {
    let id = slave_id(view);
    id.is_some() && all.iter().any(|other| is_master(other) && master_id(other) == id)
}

/// Is this a slave whose master is closed? It keeps its number as long as it is open.
#[must_use]
pub fn has_hung_up(view: &FdView) -> bool {
    slave_id(view).is_some() && view.says_deleted()
}

/// Is there anything that keeps the number of a pty?
#[must_use]
pub fn has_any(all: &[FdView]) -> bool {
    all.iter().any(|view| is_master(view) || has_hung_up(view))
}

/// The masters among the descriptions: index and pty.
pub fn masters(all: &[FdView]) -> impl Iterator<Item = (u32, &FdView, PtyId)> {
    (0..).zip(all).filter_map(|(n, view)| Some((n, view, master_id(view)?)))
}

/// A master whose slave has this number.
fn by_number(all: &[FdView], number: u32) -> Option<PtyId> {
    masters(all).map(|(.., id)| id).find(|id| id.1 == number)
}

fn refuse(view: &FdView, cause: &str) -> FdError {
    view.refuse("VOS-PTY", cause, "let the program close that terminal")
}

/// Takes the bytes of the pty of this master, of a frozen job.
///
/// # Errors
/// [`FdError::Refused`] for a pty in a state that cannot be made anew; what was tried.
pub fn take_queues(view: &FdView, cx: &dyn CaptureCx) -> Result<(PtyId, Taken), FdError> {
    let (id, master) = examine(view, cx)?;
    let both = |v: &&FdView| slave_id(v) == Some(id) && v.flags & libc::O_ACCMODE == libc::O_RDWR;
    let slave = cx.all().iter().find(both).map(|v| cx.dup(v));
    let slave = slave.transpose().map_err(view.failed("duplicate the slave"))?;
    match take(master, slave) {
        Ok(taken) => Ok((id, taken)),
        // An attempt to open a locked slave leaves it so.
        Err(e) if e.raw_os_error() == Some(libc::EIO) => {
            Err(refuse(view, "its slave answers every call with EIO"))
        }
        Err(e) => Err(view.failed("take the unread bytes")(e)),
    }
}

/// Which pty it is, if that can be moved, and a duplicate of its master.
fn examine(view: &FdView, cx: &dyn CaptureCx) -> Result<(PtyId, OwnedFd), FdError> {
    let id = master_id(view).ok_or_else(|| refuse(view, "its number cannot be found out"))?;
    let asked = || view.failed("ask for the state");
    let master = cx.dup(view).map_err(view.failed("duplicate"))?;
    if raw::query(master.as_fd(), Query::Discipline).map_err(asked())? != 0 {
        return Err(refuse(view, "it has a line discipline of its own"));
    }
    let wanted = PollFlags::POLLPRI;
    let ready = wait_for(master.as_fd(), wanted, Duration::ZERO).map_err(asked())?;
    let wait = |cause: &str| {
        view.refuse(PASSING, cause, "move again when the program has gone on a little")
    };
    if ready.contains(PollFlags::POLLPRI) {
        return Err(wait("a change of its state is not read yet (packet mode)"));
    }
    let closed = ready.contains(PollFlags::POLLHUP);
    if !closed && !cx.all().iter().any(|v| slave_id(v) == Some(id)) && !has_name(id, cx) {
        return Err(wait("nobody in the job has opened its slave"));
    }
    Ok((id, master))
}

/// Has the job the pty open as /dev/tty?
fn has_name(id: PtyId, cx: &dyn CaptureCx) -> bool {
    let number = |view: &FdView| real_number(view, cx).ok().flatten();
    cx.all().iter().any(|view| is_name(view) && number(view) == Some(id.1))
}

fn controls_session(id: PtyId, cx: &dyn CaptureCx) -> bool {
    let master = masters(cx.all()).find(|(.., other)| *other == id);
    let session = |view| raw::query(cx.dup(view)?.as_fd(), Query::Session);
    master.is_some_and(|(_, view, _)| session(view).is_ok())
}

/// The number of the pty behind a description of /dev/tty.
fn real_number(view: &FdView, cx: &dyn CaptureCx) -> io::Result<Option<u32>> {
    let (major, minor) = device(raw::query(cx.dup(view)?.as_fd(), Query::Device)?);
    Ok(slave_number(major, minor))
}

/// Does a process outside of the job have either side open?
fn used_outside(view: &FdView, cx: &dyn CaptureCx) -> io::Result<bool> {
    let slave = master_id(view).and_then(|id| cx.all().iter().find(|v| slave_id(v) == Some(id)));
    let outside = cx.outside()?;
    let slaves = slave.map_or(&[][..], |slave| outside.named(&slave.link));
    let has_slave = slave.is_some_and(|slave| slaves.iter().any(|place| place.is_on(slave)));
    Ok(has_slave || outside.ending_with("ptmx").any(|place| is_same(place, view)))
}

/// Is it this description?
fn is_same(at: &Place, view: &FdView) -> bool {
    let fd = at.path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
    let Some(place) = fd.map(|fd| (at.pid, fd)) else { return false };
    // A supervisor holds descriptors of the job itself for a moment, as a child does that has just
    // been made, which is traced before the supervisor has heard of it.
    let own = std::process::id() as i32;
    let traced =
        View::read_process(place.0).is_ok_and(|view| view.number("TracerPid:") == own as u64);
    place.0 != own
        && !traced
        && fd_raw::compare_files(place, (view.host_pid, view.fd))
            .is_ok_and(|order| order == std::cmp::Ordering::Equal)
}

pub(super) struct Pty;

impl FdKind for Pty {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Descriptors,
                    "pty",
                    "ptys whose master is in the job: number, modes, unread bytes, sessions",
                ),
                Capability::refused(
                    Descriptors,
                    "pty-master",
                    "a pty whose slave nobody has opened yet",
                    PASSING,
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        is_master(view) || is_name(view) || slave_id(view).is_some()
    }

    fn check(&self, view: &FdView, cx: &dyn CaptureCx) -> Vec<Finding> {
        let found = if is_master(view) {
            examine(view, cx).and_then(|_| match used_outside(view, cx) {
                Ok(true) => Err(refuse(view, "a process outside of the job has it open as well")),
                _ => Ok(()),
            })
        } else {
            self.capture(view, cx).map(drop)
        };
        match found {
            Err(FdError::Refused(finding)) => vec![*finding],
            _ => Vec::new(),
        }
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        if is_master(view) {
            return encode(&State::Master(Box::new(capture_master(view, cx)?)));
        }
        if is_name(view) {
            let number = real_number(view, cx).map_err(view.failed("ask for the terminal"))?;
            let id = number.and_then(|number| by_number(cx.all(), number));
            if id.is_some_and(|id| !controls_session(id, cx)) {
                return Err(refuse(view, "it was opened as /dev/tty, and controls no session now"));
            }
            return encode(&State::Name { id: id.map(in_job), flags: view.flags });
        }
        if let (true, Some(id)) = (has_hung_up(view), slave_id(view)) {
            let (id, master, exclusive) = (in_job(id), None, false);
            return encode(&State::Slave { id, master, flags: view.flags, exclusive });
        }
        let found = masters(cx.all()).find(|(.., id)| Some(*id) == slave_id(view));
        let Some((master, id)) = found.map(|(object, _, id)| (Some(object), id)) else {
            let cause = "it is a terminal that vosrun does not relay";
            let remedy = "start the program in one terminal, or without it";
            return Err(view.refuse("VOS-TTY", cause, remedy));
        };
        let slave = cx.dup(view).map_err(view.failed("duplicate"))?;
        let exclusive = raw::query(slave.as_fd(), Query::Exclusive);
        let exclusive = exclusive.map_err(view.failed("ask for the state"))? != 0;
        encode(&State::Slave { id: in_job(id), master, flags: view.flags, exclusive })
    }

    fn restore(
        &self,
        object: u32,
        state: &[u8],
        cx: &mut dyn RestoreCx,
    ) -> Result<OwnedFd, FdError> {
        match decode(NAME, state)? {
            State::Master(master) => {
                let ends = ends(master.id, Some(object), cx)?;
                let tried = || failed(format!("restore pty {}", master.id.1));
                restore_master(&master, ends).map_err(tried())?;
                ends.master.try_clone().map_err(tried())
            }
            State::Slave { id, master, flags, .. } => {
                let ends = ends(id, master, cx)?;
                let opened = open_slave(ends.master.as_fd(), flags & OPEN_FLAGS);
                opened.map_err(failed(format!("open the slave of pty {}", id.1)))
            }
            State::Name { flags, .. } => match cx.provided(object) {
                Some(fd) => Ok(fd),
                None => open_at(Path::new("/dev/tty"), flags & OPEN_FLAGS, 0),
            },
        }
    }

    fn finish(&self, state: &[u8], fd: i32) -> Result<(), FdError> {
        let tried = |e| failed(format!("set the modes of pty descriptor {fd}"))(e);
        let own = fd_raw::dup_from(fd, 0).map_err(tried)?;
        let fd = own.as_fd();
        match decode(NAME, state)? {
            State::Master(master) => {
                raw::set_packet(fd, master.packet).map_err(tried)?;
                raw::set_exclusive(fd, master.exclusive).map_err(tried)?;
                raw::set_locked(fd, master.locked).map_err(tried)
            }
            State::Slave { exclusive: true, .. } => raw::set_exclusive(fd, true).map_err(tried),
            State::Slave { .. } | State::Name { .. } => Ok(()),
        }
    }
}

/// A description that was opened as /dev/tty: with what flags, and of which pty ([`PtyId`]); of
/// none: of the terminal that is relayed. `None` for every other object.
///
/// # Errors
/// When the state does not decode.
pub fn opened_by_name(object: &super::Object) -> Result<Option<(i32, Option<PtyId>)>, FdError> {
    if object.kind != NAME {
        return Ok(None);
    }
    Ok(match decode(NAME, &object.state)? {
        State::Name { id, flags } => Some((flags & OPEN_FLAGS, id)),
        _ => None,
    })
}

/// The pty of a master.
///
/// # Errors
/// When the state does not decode.
pub fn id_of(object: &super::Object) -> Result<Option<PtyId>, FdError> {
    if object.kind != NAME {
        return Ok(None);
    }
    Ok(match decode(NAME, &object.state)? {
        State::Master(master) => Some(master.id),
        _ => None,
    })
}

fn capture_master(view: &FdView, cx: &dyn CaptureCx) -> Result<Master, FdError> {
    let id = master_id(view).ok_or_else(|| refuse(view, "its number cannot be found out"))?;
    let tried = || view.failed("ask for the state");
    let seen = cx.queues(id).ok_or(io::ErrorKind::NotFound.into()).map_err(tried())?;
    let fd = cx.dup(view).map_err(view.failed("duplicate"))?;
    let ask = |what| raw::query(fd.as_fd(), what).map(|n| n != 0);
    let state = || {
        let same = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let known = same("self").is_some_and(|ns| same(&view.host_pid.to_string()) == Some(ns));
        Ok(Master {
            id: in_job(id),
            flags: view.flags,
            termios: Termios::of(fd.as_fd())?,
            size: WindowSize::of(fd.as_fd())?,
            locked: ask(Query::Locked)?,
            packet: seen.packet,
            exclusive: ask(Query::Exclusive)?,
            queues: seen.queues.clone(),
            mode: seen.mode,
            owner: known.then_some(seen.owner),
        })
    };
    state().map_err(tried())
}

/// Modes, permissions and bytes of a pty.
fn restore_master(state: &Master, ends: &Ends) -> io::Result<()> {
    let (master, slave) = (ends.master.as_fd(), ends.slave.as_fd());
    state.termios.set(slave)?;
    if WindowSize::of(master)? != state.size {
        state.size.set(master)?;
    }
    let node = fs::File::from(ends.slave.try_clone()?);
    if let Some((uid, gid)) = state.owner {
        // As far as the user may.
        let _ = std::os::unix::fs::fchown(&node, Some(uid), Some(gid));
    }
    node.set_permissions(fs::Permissions::from_mode(state.mode))?;
    fill(master, slave, &state.queues)
}

/// Both sides of a pty: its master may have been made with the frame, and is provided then.
fn ends(id: PtyId, master: Option<u32>, cx: &mut dyn RestoreCx) -> Result<&Ends, FdError> {
    if !cx.shared().ptys.ends.contains_key(&id) {
        let master = match master.and_then(|object| cx.provided(object)) {
            Some(fd) => fd,
            None => open_numbered(id.1, &mut cx.shared().ptys.spare)?,
        };
        let slave = open_slave(master.as_fd(), libc::O_RDWR);
        let slave = slave.map_err(failed(format!("open the slave of pty {}", id.1)))?;
        cx.shared().ptys.ends.insert(id, Ends { master, slave });
    }
    match cx.shared().ptys.ends.entry(id) {
        Entry::Occupied(found) => Ok(found.into_mut()),
        Entry::Vacant(_) => Err(FdError::State(NAME)),
    }
}

/// Opens the master of the pty with this number, by opening all below it that are free: the
/// kernel gives the lowest. Those are kept in `spare`. Where the job's numbers are translated, any
/// pty gets that number.
///
/// # Errors
/// `EEXIST` when the number is taken; what was tried.
pub fn open_numbered(number: u32, spare: &mut BTreeMap<u32, OwnedFd>) -> Result<OwnedFd, FdError> {
    if let Some(fd) = spare.remove(&number) {
        return Ok(fd);
    }
    let tried = || failed(format!("make pty {number}"));
    loop {
        let master = open_at(Path::new("/dev/ptmx"), libc::O_RDWR, 0)?;
        let got = raw::query(master.as_fd(), Query::Number).map_err(tried())? as u32;
        if numbers::are_own() {
            ptys::bind(number, got);
            return Ok(master);
        }
        if got == number {
            return Ok(master);
        }
        if got > number {
            return Err(tried()(io::Error::from_raw_os_error(libc::EEXIST)));
        }
        spare.insert(got, master);
    }
}
