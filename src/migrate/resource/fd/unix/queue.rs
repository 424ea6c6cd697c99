//! The messages that wait in a socket, looked at and not taken (MSG_PEEK and SO_PEEK_OFF of
//! socket(7)), with who sent them and the descriptors that they bring.
//!
//! While a queue is read, some options of the socket are changed, which is frozen with its job:
//! without SO_PASSCRED the kernel tells nobody's credentials. All are set back.
//!
//! A message without bytes is seen once: the kernel marks it, and passes over it from then on
//! when an offset is set. Hence a socket is looked at once per freeze, and never while it runs.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    recvmsg, send, socketpair, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr,
};

use super::super::raw;
use super::options;

/// `SO_PASSPIDFD` and `SO_PASSRIGHTS` of asm-generic/socket.h.
pub const SO_PASSPIDFD: i32 = 76;
pub const SO_PASSRIGHTS: i32 = 83;

/// Most descriptors of one message (SCM_MAX_FD of the kernel).
const MAX_FDS: usize = 253;

/// A message, or a piece of a stream.
#[derive(Debug)]
pub struct Peeked {
    pub bytes: Vec<u8>,
    /// Who sent it: pid, uid and gid as this process sees them; none if the kernel kept none.
    pub sender: Option<(i32, u32, u32)>,
    /// Duplicates of the descriptors that come with its first byte.
    pub rights: Vec<OwnedFd>,
    /// Address of the sender of a datagram, if it has one.
    pub from: Option<Vec<u8>>,
}

/// Everything that waits in the socket, which belongs to a frozen job. `unread` is what
/// sock_diag(7) tells.
///
/// # Errors
/// What the kernel refuses.
pub fn peek(fd: BorrowedFd, kind: i32, unread: u32) -> io::Result<Vec<Peeked>> {
    let events = events(fd, PollFlags::POLLIN)?;
    // A read would take an error that waits, a stream's only when there is nothing else.
    let error = events.contains(PollFlags::POLLERR) && (kind != libc::SOCK_STREAM || unread == 0);
    if error || unread == 0 && !events.contains(PollFlags::POLLIN) {
        return Ok(Vec::new());
    }
    let _changed = Changed::options(fd.as_raw_fd())?;
    match kind {
        libc::SOCK_STREAM => stream(fd, unread as usize),
        _ => messages(fd.as_raw_fd(), (unread as usize).max(1 << 16)),
    }
}

fn events(fd: BorrowedFd, asked: PollFlags) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(fd, asked)];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
}

/// Options that are set back at the end.
struct Changed {
    fd: RawFd,
    old: Vec<(i32, i32)>,
}

impl Changed {
    fn options(fd: RawFd) -> io::Result<Self> {
        let mut changed = Self { fd, old: Vec::new() };
        let wanted = [
            (libc::SO_PASSCRED, 1),
            (libc::SO_PASSSEC, 0),
            (SO_PASSPIDFD, 0),
            (SO_PASSRIGHTS, 1),
            (libc::SO_PEEK_OFF, 0),
        ];
        for (option, value) in wanted {
            // The later ones are unknown to older kernels.
            let Ok(old) = raw::socket_option(fd, option) else { continue };
            if old != value {
                raw::set_socket_option(fd, option, &value.to_ne_bytes())?;
                changed.old.push((option, old));
            }
        }
        Ok(changed)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        for (option, old) in &self.old {
            let _ = raw::set_socket_option(self.fd, *option, &old.to_ne_bytes());
        }
    }
}

fn seek(fd: RawFd, offset: usize) -> io::Result<()> {
    let offset = i32::try_from(offset).map_err(io::Error::other)?;
    raw::set_socket_option(fd, libc::SO_PEEK_OFF, &offset.to_ne_bytes())
}

/// Runs of bytes of one sender; descriptors come with the first byte of a run.
fn stream(socket: BorrowedFd, unread: usize) -> io::Result<Vec<Peeked>> {
    let fd = socket.as_raw_fd();
    let mut all = Vec::new();
    let mut at = 0;
    while at < unread {
        let seen = look(fd, at, unread - at)?.filter(|(piece, _)| !piece.bytes.is_empty());
        let Some((mut piece, _)) = seen else {
            match has_urgent(socket)? {
                // Refused where the socket is examined.
                true => return Ok(all),
                false => return Err(io::Error::other("it tells more bytes than it shows")),
            }
        };
        if !piece.rights.is_empty() {
            let before = bytes_before_rights(fd, at, piece.bytes.len())?;
            if before > 0 {
                piece.bytes.truncate(before);
                piece.rights.clear();
            }
        }
        at += piece.bytes.len();
        all.push(piece);
    }
    Ok(all)
}

/// Does out-of-band data wait in it (MSG_OOB)?
///
/// # Errors
/// That of poll(2).
pub fn has_urgent(fd: BorrowedFd) -> io::Result<bool> {
    Ok(events(fd, PollFlags::POLLPRI)?.contains(PollFlags::POLLPRI))
}

/// A look ends with the write that brings descriptors, however short it is, and begins before. That
/// this one write does not fit tells where it begins.
fn bytes_before_rights(fd: RawFd, at: usize, len: usize) -> io::Result<usize> {
    seek(fd, at)?;
    raw::peek_writes_before(fd, len)
}

/// Messages of a datagram or seqpacket socket; `room` is a first guess at the largest, bytes.
fn messages(fd: RawFd, mut room: usize) -> io::Result<Vec<Peeked>> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some((message, whole)) = look(fd, at, room)? {
        if !whole {
            room = room.saturating_mul(2);
            continue;
        }
        at += message.bytes.len();
        all.push(message);
    }
    Ok(all)
}

/// What messages of these lengths cost their sender while nobody reads them (SIOCOUTQ), bytes.
///
/// # Errors
/// When they cannot be sent here.
pub fn cost(kind: i32, lengths: impl Iterator<Item = usize>) -> io::Result<u32> {
    let kind = SockType::try_from(kind)?;
    let (from, _to) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
    options::widen(from.as_raw_fd())?;
    for length in lengths {
        send(from.as_raw_fd(), &vec![0; length], MsgFlags::MSG_DONTWAIT)?;
    }
    raw::unsent_bytes(from.as_raw_fd())
}

/// What a read of `len` bytes would give behind the first `at`, and whether that was the whole
/// message; nothing at the end.
fn look(fd: RawFd, at: usize, len: usize) -> io::Result<Option<(Peeked, bool)>> {
    seek(fd, at)?;
    let mut bytes = vec![0; len];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS], libc::ucred, [u8; 64]);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let got = match recvmsg::<UnixAddr>(fd, &mut parts, Some(&mut space), flags) {
        Err(nix::Error::EAGAIN) => return Ok(None),
        other => other?,
    };
    let mut peeked = Peeked { bytes: Vec::new(), sender: None, rights: Vec::new(), from: None };
    let mut is_message = false;
    for control in got.cmsgs()? {
        match control {
            ControlMessageOwned::ScmRights(fds) => {
                peeked.rights.extend(fds.into_iter().map(crate::migrate::raw::own));
            }
            ControlMessageOwned::ScmCredentials(c) => {
                is_message = true;
                peeked.sender = Some((c.pid(), c.uid(), c.gid())).filter(|c| c.0 != 0);
            }
            _ => {}
        }
    }
    let name = got.address.as_ref().map(super::names::of_address);
    peeked.from = name.filter(|name| !name.is_empty());
    let (n, whole) = (got.bytes, !got.flags.contains(MsgFlags::MSG_TRUNC));
    if got.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::other("what comes with a message does not fit"));
    }
    bytes.truncate(n);
    peeked.bytes = bytes;
    // The end of a connection is no message: it has no credentials.
    Ok((n > 0 || is_message).then_some((peeked, whole)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use nix::sys::socket::{sendmsg, ControlMessage};

    use super::*;

    fn send_fd(to: &impl AsRawFd, bytes: &[u8], fd: &impl AsRawFd) {
        let fds = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let bytes = [io::IoSlice::new(bytes)];
        sendmsg::<()>(to.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).expect("send");
    }

    fn unread(fd: &impl AsRawFd) -> u32 {
        raw::readable_bytes(fd.as_raw_fd()).expect("FIONREAD") as u32
    }

    #[test]
    fn a_stream_is_seen_whole_and_stays() {
        let (mut one, other) = UnixStream::pair().expect("pair");
        one.write_all(b"before ").expect("write");
        send_fd(&one, b"with", &io::stdin());
        one.write_all(b" after").expect("write");
        let saved = raw::socket_option(other.as_raw_fd(), libc::SO_PEEK_OFF).expect("offset");
        for _ in 0..2 {
            let all = peek(other.as_fd(), libc::SOCK_STREAM, unread(&other)).expect("peek");
            let seen: Vec<_> = all.iter().map(|p| (&p.bytes[..], p.rights.len())).collect();
            assert_eq!(seen, [(&b"before "[..], 0), (b"with", 1), (b" after", 0)]);
            assert!(all.iter().all(|p| p.sender.is_none()), "nobody had asked for credentials");
        }
        let after = raw::socket_option(other.as_raw_fd(), libc::SO_PEEK_OFF).expect("offset");
        assert_eq!((after, unread(&other)), (saved, 17));
    }

    #[test]
    fn the_cost_of_messages_tells_of_one_that_hides() {
        let (one, other) = UnixDatagram::pair().expect("pair");
        for message in [&b"one"[..], b"", b"", &[7; 50_000]] {
            one.send(message).expect("send");
        }
        let unsent = raw::unsent_bytes(one.as_raw_fd()).expect("SIOCOUTQ");
        let mut costs = Vec::new();
        for _ in 0..2 {
            let all = peek(other.as_fd(), libc::SOCK_DGRAM, unread(&other)).expect("peek");
            costs.push(cost(libc::SOCK_DGRAM, all.iter().map(|m| m.bytes.len())).expect("cost"));
        }
        assert_eq!(costs[0], unsent);
        assert!(costs[1] < unsent, "the second look misses the empty ones");
    }

    #[test]
    fn datagrams_are_seen_one_by_one_with_their_senders() {
        let dir = tempfile::tempdir().expect("dir");
        let to = UnixDatagram::bind(dir.path().join("to")).expect("bind");
        raw::set_socket_option(to.as_raw_fd(), libc::SO_PASSCRED, &1i32.to_ne_bytes()).expect("on");
        let from = UnixDatagram::bind(dir.path().join("from")).expect("bind");
        for socket in [&from, &UnixDatagram::unbound().expect("socket")] {
            socket.connect(dir.path().join("to")).expect("connect");
        }
        let big = vec![7; 150_000];
        for message in [&b"one"[..], b"", &big, b"", b""] {
            from.send(message).expect("send");
        }
        send_fd(&from, b"", &io::stdin());
        let all = peek(to.as_fd(), libc::SOCK_DGRAM, unread(&to)).expect("peek");
        let lens: Vec<_> = all.iter().map(|p| (p.bytes.len(), p.rights.len())).collect();
        assert_eq!(lens, [(3, 0), (0, 0), (150_000, 0), (0, 0), (0, 0), (0, 1)]);
        let name = dir.path().join("from").into_os_string().into_encoded_bytes();
        assert!(all.iter().all(|p| p.from.as_ref() == Some(&name)));
        let own = std::process::id() as i32;
        assert!(all.iter().all(|p| p.sender.is_some_and(|s| s.0 == own)));
        assert_eq!(to.recv(&mut [0; 10]).expect("receive"), 3);
    }
}
