//! Options of a socket (socket(7), unix(7)) that are not as a new one has them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};

use super::super::raw;
use super::queue::{SO_PASSPIDFD, SO_PASSRIGHTS};

/// All that a Unix socket can have, in the order in which they are set.
const OPTIONS: [i32; 22] = [
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_PASSCRED,
    libc::SO_PASSSEC,
    SO_PASSPIDFD,
    SO_PASSRIGHTS,
    libc::SO_PEEK_OFF,
    libc::SO_TIMESTAMP,
    libc::SO_TIMESTAMPNS,
    libc::SO_LINGER,
    libc::SO_KEEPALIVE,
    libc::SO_OOBINLINE,
    libc::SO_BROADCAST,
    libc::SO_DONTROUTE,
    libc::SO_REUSEADDR,
    libc::SO_PRIORITY,
    libc::SO_MARK,
    libc::SO_RXQ_OVFL,
    libc::SO_NO_CHECK,
];

/// A socket of this kind, without a name.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn fresh(kind: i32) -> io::Result<OwnedFd> {
    let kind = SockType::try_from(kind)?;
    Ok(socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?)
}

/// The options that differ from those of a new socket.
///
/// # Errors
/// When no socket can be made to compare with.
pub fn differing(fd: RawFd, kind: i32) -> io::Result<Vec<(i32, Vec<u8>)>> {
    let plain = fresh(kind)?;
    let mut all = Vec::new();
    for option in OPTIONS {
        // Some kernels lack some of them.
        let Ok(usual) = raw::socket_option_bytes(plain.as_raw_fd(), option) else { continue };
        let value = raw::socket_option_bytes(fd, option)?;
        if value != usual {
            all.push((option, value));
        }
    }
    Ok(all)
}

/// Sets one. Buffers become as large as this machine allows.
///
/// # Errors
/// `EPERM` for what needs a capability.
pub fn set(fd: RawFd, option: i32, value: &[u8]) -> io::Result<()> {
    match (option, <[u8; 4]>::try_from(value)) {
        // The kernel doubles what it is told.
        (libc::SO_SNDBUF | libc::SO_RCVBUF, Ok(bytes)) => {
            let half = i32::from_ne_bytes(bytes) / 2;
            raw::set_socket_option(fd, option, &half.to_ne_bytes())
        }
        _ if OPTIONS.contains(&option) => raw::set_socket_option(fd, option, value),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Lets a socket hold as much as the kernel allows, for a while. Gives the value to go back to.
///
/// # Errors
/// `ENOTSOCK`.
pub fn widen(fd: RawFd) -> io::Result<Vec<u8>> {
    let old = raw::socket_option_bytes(fd, libc::SO_SNDBUF)?;
    let most = (i32::MAX / 4).to_ne_bytes();
    raw::set_socket_option(fd, libc::SO_SNDBUF, &most)?;
    // With CAP_NET_ADMIN beyond net.core.wmem_max.
    let _ = raw::set_socket_option(fd, libc::SO_SNDBUFFORCE, &most);
    Ok(old)
}
