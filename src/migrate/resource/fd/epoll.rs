//! epoll(7): the interest list.
//!
//! An entry belongs to a pair of number and open file description, and lives on when the
//! number is closed or used for something else as long as another descriptor keeps the
//! description (questions 1 and 6 of epoll(7)). kcmp(2) KCMP_EPOLL_TFD tells which descriptor
//! that is; restore puts a duplicate of it at the old number for the moment.
//!
//! The lists are filled in `finish`, when all descriptors are at their numbers. Readiness is
//! found out anew: an edge-triggered entry that is ready reports so once more.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};

use super::content::reopen;
use super::view::numbers;
use super::{decode, encode, failed, raw, unexpected, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;

/// Its name on the wire.
pub const NAME: &str = "epoll";

/// Bits that say how to report, not what (EP_PRIVATE_BITS of fs/eventpoll.c).
const HOW: u32 =
    (libc::EPOLLWAKEUP | libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLEXCLUSIVE) as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
const ANY: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32;

/// So often the list of a running program may change while it is looked at.
const MOST_TURNS: usize = 100;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// The number it was added by.
    tfd: i32,
    /// Another descriptor of the description, when `tfd` is not one (any more).
    alias: Option<i32>,
    events: u32,
    data: u64,
}

/// One entry as fdinfo shows it (proc_pid_fdinfo(5)).
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    /// The number it was added by.
    pub tfd: i32,
    /// Of `struct epoll_event`.
    pub events: u32,
    /// Of `struct epoll_event`.
    pub data: u64,
    /// Inode of what it watches.
    pub ino: u64,
}

pub(super) struct Epoll;

impl FdKind for Epoll {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Descriptors,
                    "epoll",
                    "epoll: nested, one-shot, edge-triggered, duplicates",
                ),
                Capability::refused(
                    Descriptors,
                    "epoll-orphan",
                    "epoll entries without a descriptor",
                    "VOS-EPOLL-ORPHAN",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.link == "anon_inode:[eventpoll]"
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let mut seen = view.clone();
        for _turn in 0..MOST_TURNS {
            match entries(&seen) {
                Err(FdError::Refused(_)) => {}
                found => return encode(&found?),
            }
            // A program that runs may have closed what was in the list a moment ago.
            let now = FdView::read(view.host_pid, view.fd).map_err(view.failed("read fdinfo"))?;
            if shown(&now)? == shown(&seen)? {
                break;
            }
            seen = now;
        }
        encode(&entries(&seen)?)
    }

    fn make(&self, _state: &[u8]) -> Result<OwnedFd, FdError> {
        raw::epoll().map_err(failed("make an epoll instance"))
    }

    fn finish(&self, state: &[u8], fd: i32) -> Result<(), FdError> {
        let entries: Vec<Entry> = decode(NAME, state)?;
        // Disarmed entries first: only as long as they are alone, what they report is known.
        let (disarmed, armed): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(Entry::disarmed);
        disarmed.iter().try_for_each(|entry| entry.place(|| entry.add_disarmed(fd)))?;
        armed.iter().try_for_each(|entry| {
            entry.place(|| entry.control(fd, libc::EPOLL_CTL_ADD, entry.events))
        })
    }
}

/// The list, each entry with a descriptor of what it watches.
fn entries(view: &FdView) -> Result<Vec<Entry>, FdError> {
    let mut seen: HashMap<i32, u32> = HashMap::new();
    let mut entries = Vec::new();
    for shown in shown(view)? {
        let nth = seen.entry(shown.tfd).or_default();
        entries.push(locate(view, &shown, *nth)?);
        *nth += 1;
    }
    Ok(entries)
}

/// The entries of an instance: lines `tfd:  5 events:  1d data:  5  pos:0 ino:61af sdev:7`; tfd and pos are decimal.
///
/// # Errors
/// When a line has another form.
pub fn shown(view: &FdView) -> Result<Vec<Shown>, FdError> {
    let parse = |line: &str| {
        let number = |key: &str, base| {
            let text = line.split_once(key)?.1.trim_start().split(' ').next()?;
            u64::from_str_radix(text, base).ok()
        };
        Some(Shown {
            tfd: i32::try_from(number("tfd:", 10)?).ok()?,
            events: u32::try_from(number("events:", 16)?).ok()?,
            data: number("data:", 16)?,
            ino: number("ino:", 16)?,
        })
    };
    let lines = view.fdinfo.lines().filter(|line| line.starts_with("tfd:"));
    lines
        .map(|line| parse(line).ok_or_else(|| unexpected(format!("{}: `{line}`", view.object()))))
        .collect()
}

/// Finds a descriptor of the description that the entry watches.
fn locate(view: &FdView, shown: &Shown, nth: u32) -> Result<Entry, FdError> {
    let Shown { tfd, events, data, .. } = *shown;
    let entry = |alias| Ok(Entry { tfd, alias, events, data });
    if watches(view, shown, nth, tfd)? {
        return entry(None);
    }
    for fd in numbers(view.host_pid).map_err(view.failed("list the descriptors"))? {
        if fd != tfd && watches(view, shown, nth, fd)? {
            return entry(Some(fd));
        }
    }
    let cause = format!("it watches what was fd {tfd}, and no descriptor of that is left");
    let remedy = "let the program use EPOLL_CTL_DEL before it closes descriptors";
    Err(view.refuse("VOS-EPOLL-ORPHAN", cause, remedy))
}

/// Is `fd` a descriptor of what the entry watches? A socket has an inode of its own, so that
/// kcmp need not be asked; it takes longer the longer the list. Without kcmp the inode
/// decides.
fn watches(view: &FdView, shown: &Shown, nth: u32, fd: i32) -> Result<bool, FdError> {
    let Ok(meta) = fs::metadata(format!("/proc/{}/fd/{fd}", view.host_pid)) else {
        return Ok(false);
    };
    if meta.ino() != shown.ino || meta.file_type().is_socket() {
        return Ok(meta.ino() == shown.ino);
    }
    match raw::epoll_watches(view.host_pid, fd, view.fd, shown.tfd, nth) {
        // One of the two is gone.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EBADF | libc::ENOENT)) => Ok(false),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(true),
        other => other.map_err(view.failed("compare an entry")),
    }
}

impl Entry {
    /// EPOLLONESHOT that has fired.
    fn disarmed(&self) -> bool {
        self.events & ONESHOT != 0 && self.events & !HOW == 0
    }

    fn control(&self, epoll: RawFd, op: i32, events: u32) -> Result<(), FdError> {
        raw::epoll_ctl(epoll, op, self.tfd, events, self.data)
            .map_err(failed(format!("watch fd {} by epoll {epoll}", self.tfd)))
    }

    /// Runs `add` while the description is at its old number.
    fn place(&self, add: impl FnOnce() -> Result<(), FdError>) -> Result<(), FdError> {
        let Some(alias) = self.alias else { return add() };
        let tried = || failed(format!("put fd {alias} at {} for the moment", self.tfd));
        let saved = match raw::dup_from(self.tfd, 0) {
            Err(e) if e.raw_os_error() == Some(libc::EBADF) => None,
            other => Some(other.map_err(tried())?),
        };
        let fd_flags = raw::fcntl(self.tfd, libc::F_GETFD, 0).unwrap_or(0);
        raw::dup_onto(alias, self.tfd, true).map_err(tried())?;
        let added = add();
        match saved {
            Some(fd) => raw::dup_onto(fd.as_raw_fd(), self.tfd, fd_flags & libc::FD_CLOEXEC != 0),
            None => raw::close_range(self.tfd as u32, self.tfd as u32),
        }
        .map_err(tried())?;
        added
    }

    /// Adds the entry and lets it fire, so that it is disarmed as it was. What cannot be made
    /// to fire is left waiting for errors and hangups, which the kernel always adds.
    fn add_disarmed(&self, epoll: RawFd) -> Result<(), FdError> {
        let tried = || failed(format!("disarm fd {} in epoll {epoll}", self.tfd));
        self.control(epoll, libc::EPOLL_CTL_ADD, self.events | ANY)?;
        if raw::epoll_poll(epoll).map_err(tried())?.is_some() {
            return Ok(());
        }
        let meta = fs::metadata(format!("/proc/self/fd/{}", self.tfd)).map_err(tried())?;
        if meta.file_type().is_fifo() && self.poke(epoll)? {
            return Ok(());
        }
        self.control(epoll, libc::EPOLL_CTL_MOD, self.events)
    }

    /// The read end of an empty pipe: makes it ready for a moment.
    fn poke(&self, epoll: RawFd) -> Result<bool, FdError> {
        let tried = || failed(format!("make pipe end {} ready", self.tfd));
        let open = |flags| reopen(self.tfd, flags | libc::O_NONBLOCK, 0).map(File::from);
        let (mut reader, mut writer) = (open(libc::O_RDONLY)?, open(libc::O_WRONLY)?);
        writer.write_all(&[0]).map_err(tried())?;
        let fired = raw::epoll_poll(epoll).map_err(tried());
        reader.read_exact(&mut [0]).map_err(tried())?;
        Ok(fired?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{TcpListener, TcpStream};

    use super::super::testing::{refusal, Here, Restored};
    use super::*;

    const IN: u32 = libc::EPOLLIN as u32;
    const OUT: u32 = libc::EPOLLOUT as u32;
    const ET: u32 = libc::EPOLLET as u32;

    fn add(epoll: &OwnedFd, fd: &dyn AsRawFd, events: u32, data: u64) {
        let (epoll, op) = (epoll.as_raw_fd(), libc::EPOLL_CTL_ADD);
        raw::epoll_ctl(epoll, op, fd.as_raw_fd(), events, data).expect("add");
    }

    /// What fdinfo tells, without the positions.
    fn list(epoll: &OwnedFd) -> Vec<Shown> {
        shown(&Here::of(&[epoll]).view(epoll)).expect("list")
    }

    fn moved(epoll: &OwnedFd) -> OwnedFd {
        super::super::testing::moved(epoll)
    }

    #[test]
    fn the_interest_list_comes_back() {
        let epoll = raw::epoll().expect("epoll");
        let inner = raw::epoll().expect("epoll");
        let event = raw::eventfd(false).expect("eventfd");
        let (reader, mut writer) = io::pipe().expect("pipe");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        add(&epoll, &event, IN | libc::EPOLLEXCLUSIVE as u32, u64::MAX);
        add(&epoll, &reader, IN | ET, 7);
        add(&epoll, &inner, IN, 8);
        add(&epoll, &stream, OUT | ONESHOT, 9);
        add(&epoll, &listener, IN | libc::EPOLLPRI as u32, 10);
        let copy = moved(&epoll);
        assert_eq!(list(&copy), list(&epoll));
        assert_eq!(list(&copy).len(), 5);
        writer.write_all(b"x").expect("write");
        let mut fired = [raw::epoll_poll(copy.as_raw_fd()), raw::epoll_poll(copy.as_raw_fd())]
            .map(|data| data.expect("poll"));
        fired.sort_unstable();
        assert!(fired.contains(&Some(9)) || fired.contains(&Some(10)), "{fired:?}");
    }

    #[test]
    fn disarmed_entries_stay_disarmed() {
        let epoll = raw::epoll().expect("epoll");
        let event = raw::eventfd(false).expect("eventfd");
        let (reader, mut writer) = io::pipe().expect("pipe");
        writer.write_all(b"x").expect("write");
        add(&epoll, &event, OUT | ONESHOT, 1);
        add(&epoll, &reader, IN | ONESHOT, 2);
        while raw::epoll_poll(epoll.as_raw_fd()).expect("poll").is_some() {}
        File::from(reopen(reader.as_raw_fd(), libc::O_RDONLY, 0).expect("open"))
            .read_exact(&mut [0])
            .expect("read");
        let copy = moved(&epoll);
        assert_eq!(list(&copy), list(&epoll));
        assert!(list(&copy).iter().all(|shown| shown.events == ONESHOT));
        assert_eq!(raw::readable_bytes(reader.as_raw_fd()).expect("FIONREAD"), 0);
        writer.write_all(b"y").expect("write");
        assert_eq!(raw::epoll_poll(copy.as_raw_fd()).expect("poll"), None);
    }

    #[test]
    fn an_entry_outlives_its_number() {
        let epoll = raw::epoll().expect("epoll");
        let (reader, _writer) = io::pipe().expect("pipe");
        let second = reader.try_clone().expect("dup");
        let number = reader.as_raw_fd();
        add(&epoll, &reader, IN, 5);
        drop(reader);
        let object = Here::of(&[&epoll]).capture(&epoll);
        let entries: Vec<Entry> = decode(NAME, &object.state).expect("state");
        assert_eq!((entries[0].tfd, entries[0].data), (number, 5));
        assert_eq!(entries[0].alias, Some(second.as_raw_fd()));
    }

    #[test]
    fn a_number_used_twice_has_two_entries() {
        let epoll = raw::epoll().expect("epoll");
        let (reader, _writer) = io::pipe().expect("pipe");
        let (other, _writer) = io::pipe().expect("pipe");
        let second = reader.try_clone().expect("dup");
        add(&epoll, &reader, IN, 5);
        raw::dup_onto(other.as_raw_fd(), reader.as_raw_fd(), true).expect("dup3");
        add(&epoll, &reader, IN, 6);
        let object = Here::of(&[&epoll]).capture(&epoll);
        let mut entries: Vec<Entry> = decode(NAME, &object.state).expect("state");
        entries.sort_by_key(|entry| entry.data);
        let found: Vec<_> = entries.iter().map(|e| (e.tfd, e.alias, e.data)).collect();
        let number = reader.as_raw_fd();
        assert_eq!(found, [(number, Some(second.as_raw_fd()), 5), (number, None, 6)]);
        assert_eq!(list(&moved(&epoll)).len(), 2);
        let view = FdView::read(std::process::id() as i32, number).expect("view");
        assert_eq!(view.ino, Here::of(&[&other]).view(&other).ino, "the number was given back");
    }

    #[test]
    fn an_entry_without_any_descriptor_is_refused() {
        let epoll = raw::epoll().expect("epoll");
        let (reader, _writer) = io::pipe().expect("pipe");
        add(&epoll, &reader, IN, 5);
        // In flight in a unix socket, the description has no descriptor.
        let (a, _b) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        let fds = [reader.as_raw_fd()];
        let rights = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
        let text = [io::IoSlice::new(b"x")];
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::sendmsg::<()>(a.as_raw_fd(), &text, &rights, flags, None).expect("send");
        drop(reader);
        assert_eq!(refusal(&epoll), "VOS-EPOLL-ORPHAN");
    }

    #[test]
    fn what_is_closed_meanwhile_is_no_orphan() {
        let epoll = raw::epoll().expect("epoll");
        let (reader, _writer) = io::pipe().expect("pipe");
        add(&epoll, &reader, IN, 5);
        let here = Here::of(&[&epoll]);
        drop(reader);
        assert_eq!(here.capture(&epoll).state, encode(&Vec::<Entry>::new()).expect("state"));
    }

    #[test]
    fn an_alias_is_placed_and_taken_away() {
        let dir = tempfile::tempdir().expect("dir");
        let (reader, _writer) = io::pipe().expect("pipe");
        raw::in_child(&dir.path().join("complaints"), || {
            let run = || -> Result<(), FdError> {
                let tried = || failed("test");
                let number = 700;
                let alias = Some(reader.as_raw_fd());
                let entry = Entry { tfd: number, alias, events: IN | 0x18, data: 3 };
                for taken in [false, true] {
                    let epoll = raw::epoll().map_err(tried())?;
                    if taken {
                        raw::dup_onto(epoll.as_raw_fd(), number, true).map_err(tried())?;
                    }
                    let state = encode(&vec![entry.clone()])?;
                    Epoll.finish(&state, epoll.as_raw_fd())?;
                    let view = FdView::read(std::process::id() as i32, epoll.as_raw_fd());
                    let view = view.map_err(tried())?;
                    let list = shown(&view)?;
                    let located = locate(&view, &list[0], 0)?;
                    if located != entry && located.alias.is_none() {
                        return Err(unexpected(format!("{located:?}")));
                    }
                    if raw::fcntl(number, libc::F_GETFD, 0).is_ok() != taken {
                        return Err(unexpected(format!("number taken is not {taken}")));
                    }
                }
                Ok(())
            };
            run().map_err(|e| e.to_string())
        });
    }

    #[test]
    fn a_damaged_list_is_an_error() {
        let view = FdView { fdinfo: "tfd: x events: 1\n".into(), ..FdView::default() };
        assert!(shown(&view).is_err());
        assert!(Restored::default()
            .try_restore(
                &super::super::Object { kind: NAME.into(), state: vec![], flags: 0, signals: None },
                0,
            )
            .is_ok());
        assert!(matches!(Epoll.finish(&[9], 0), Err(FdError::State(NAME))));
    }
}
