//! What the kernel tells of all Unix sockets of this network namespace (sock_diag(7), UNIX_DIAG).

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    bind, recv, send, socket, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol,
    SockType,
};

/// TCP_LISTEN of net/tcp_states.h, which Unix sockets use as well.
pub const LISTEN: u8 = 10;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLM_F_REQUEST and NLM_F_DUMP.
const DUMP: u16 = 0x301;
/// UDIAG_SHOW_NAME, _VFS, _PEER, _ICONS and _RQLEN.
const SHOW: u32 = 0x1f;

/// One socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// [`LISTEN`] or another.
    pub state: u8,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: i32,
    /// What bind(2) was given as `sun_path`: an abstract name begins with a zero byte.
    pub name: Option<Vec<u8>>,
    /// Inode of the file that it is bound to, and its device.
    pub file: Option<(u32, u32)>,
    /// Inode of the socket that it is connected to; 0 when no descriptor stands for that one.
    pub peer: Option<u64>,
    /// Inodes of the sockets whose connections wait to be accepted, in their order; 0 for one
    /// that is closed.
    pub waiting: Vec<u64>,
    /// Bytes that wait to be read; of a datagram socket, those of the first message. Of a
    /// listening one the number of waiting connections.
    pub unread: u32,
    /// Bytes sent and not read; of a listening socket, its backlog.
    pub unsent: u32,
    /// Bit 0: nothing can be received any more, bit 1: nothing can be sent.
    pub shut: u8,
}

/// Reads the table of all sockets that have an inode, by that.
///
/// # Errors
/// `ENOENT` without CONFIG_UNIX_DIAG; what was tried.
pub fn read() -> io::Result<HashMap<u64, Entry>> {
    let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let netlink = socket(AddressFamily::Netlink, kind.0, kind.1, SockProtocol::NetlinkSockDiag)?;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let mut request = Vec::new();
    request.extend(40u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend([0; 8]);
    // struct unix_diag_req: family, protocol, padding, states, inode, show, cookie.
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(SHOW.to_ne_bytes());
    request.extend([0; 8]);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    answers(&netlink)
}

/// The names of all sockets.
///
/// # Errors
/// As [`read`].
pub fn names() -> io::Result<HashSet<Vec<u8>>> {
    Ok(read()?.into_values().filter_map(|entry| entry.name).collect())
}

fn answers(netlink: &OwnedFd) -> io::Result<HashMap<u64, Entry>> {
    let mut all = HashMap::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let len = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..len).unwrap_or_default();
        while !rest.is_empty() {
            let (kind, body, next) = message(rest).ok_or_else(torn)?;
            match kind {
                NLMSG_DONE => return Ok(all),
                NLMSG_ERROR => {
                    let errno = number(body, 0).map_or(libc::EIO, |n| -(n as i32));
                    return Err(io::Error::from_raw_os_error(errno));
                }
                SOCK_DIAG_BY_FAMILY => drop(entry(body).map(|(ino, e)| all.insert(ino, e))),
                _ => {}
            }
            rest = next;
        }
    }
}

fn torn() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a torn message of sock_diag")
}

/// struct nlmsghdr: length, type. Type, body and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = number(bytes, 0)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let next = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, bytes.get(16..len)?, next))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// struct unix_diag_msg (family, type, state, padding, inode, cookie) and its attributes.
fn entry(body: &[u8]) -> Option<(u64, Entry)> {
    let ino = number(body, 4)?;
    let mut entry =
        Entry { kind: i32::from(*body.get(1)?), state: *body.get(2)?, ..Entry::default() };
    let mut rest = body.get(16..)?;
    while rest.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..len)?;
        attribute(&mut entry, kind, value);
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((ino.into(), entry))
}

/// The attributes of linux/unix_diag.h.
fn attribute(entry: &mut Entry, kind: u16, value: &[u8]) {
    match kind {
        0 => entry.name = Some(value.to_vec()),
        1 => entry.file = number(value, 0).zip(number(value, 4)),
        2 => entry.peer = number(value, 0).map(u64::from),
        3 => {
            let numbers = value.chunks_exact(4).filter_map(|n| number(n, 0));
            entry.waiting = numbers.map(u64::from).collect();
        }
        4 => {
            entry.unread = number(value, 0).unwrap_or(0);
            entry.unsent = number(value, 4).unwrap_or(0);
        }
        6 => entry.shut = value.first().copied().unwrap_or(0),
        _ => {}
    }
    // A path comes with the zero byte that ends it.
    if let (0, Some(name)) = (kind, &mut entry.name) {
        if name.first() != Some(&0) && name.last() == Some(&0) {
            name.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn inode(fd: &impl AsRawFd) -> u64 {
        std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("stat").ino()
    }

    #[test]
    fn peers_names_and_waiting_connections_are_told() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("bind");
        let clients: Vec<_> =
            (0..3).map(|_| UnixStream::connect(&path).expect("connect")).collect();
        let (one, other) = UnixStream::pair().expect("pair");
        one.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let all = read().expect("sock_diag");
        let entry = &all[&inode(&listener)];
        assert_eq!((entry.state, entry.kind), (LISTEN, libc::SOCK_STREAM));
        assert_eq!(entry.waiting, clients.iter().map(inode).collect::<Vec<_>>());
        assert_eq!(entry.name.as_deref(), Some(path.as_os_str().as_encoded_bytes()));
        let meta = std::fs::metadata(&path).expect("stat");
        assert_eq!(entry.file.map(|f| u64::from(f.0)), Some(meta.ino() & 0xffff_ffff));
        assert_eq!(all[&inode(&clients[0])].peer, Some(0));
        assert_eq!(all[&inode(&one)].peer, Some(inode(&other)));
        assert_eq!((all[&inode(&one)].shut, all[&inode(&other)].shut), (2, 1));
    }
}
