//! Every unsafe block of the relays: preadv2(2) and pwritev2(2) with RWF_NOWAIT, terminal
//! modes and sizes (ioctl_tty(2)), the other end of a pty.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::errno::check;

/// Position argument of preadv2(2) that means "at the file offset".
const AT_OFFSET: libc::c_long = -1;

/// read(2) that never waits, without touching the description's flags.
///
/// # Errors
/// `EAGAIN` when it would wait, `EOPNOTSUPP` when the object cannot tell.
pub fn read_nowait(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `iov` describes `buf`, which is writable for its length during the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_preadv2,
            fd.as_raw_fd(),
            &raw const iov,
            1_usize,
            AT_OFFSET,
            AT_OFFSET,
            libc::RWF_NOWAIT,
        )
    })
    .map(|n| n as usize)
}

/// write(2) that never waits, without touching the description's flags.
///
/// # Errors
/// `EAGAIN` when it would wait, `EOPNOTSUPP` when the object cannot tell, `EPIPE`.
pub fn write_nowait(fd: BorrowedFd<'_>, buf: &[u8]) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    // SAFETY: `iov` describes `buf`, which pwritev2 only reads, during the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_pwritev2,
            fd.as_raw_fd(),
            &raw const iov,
            1_usize,
            AT_OFFSET,
            AT_OFFSET,
            libc::RWF_NOWAIT,
        )
    })
    .map(|n| n as usize)
}

/// TCGETS: the terminal's modes. On a pty master: those of its slave.
///
/// # Errors
/// `ENOTTY`; `EIO` after a hang-up.
pub fn get_termios(fd: BorrowedFd<'_>) -> io::Result<libc::termios> {
    let mut termios = std::mem::MaybeUninit::<libc::termios>::zeroed();
    // SAFETY: tcgetattr writes one termios; all-zero bytes are a valid one as well.
    unsafe {
        check(libc::tcgetattr(fd.as_raw_fd(), termios.as_mut_ptr()))?;
        Ok(termios.assume_init())
    }
}

/// TCSETS (`libc::TCSANOW`) or TCSETSW (`libc::TCSADRAIN`).
///
/// # Errors
/// `ENOTTY`; `EIO` after a hang-up.
pub fn set_termios(fd: BorrowedFd<'_>, when: i32, termios: &libc::termios) -> io::Result<()> {
    // SAFETY: tcsetattr reads one termios, which the reference keeps alive.
    check(unsafe { libc::tcsetattr(fd.as_raw_fd(), when, termios) }).map(drop)
}

/// tee(2): copies at most `len` bytes from one pipe to another, without consuming them or
/// waiting.
///
/// # Errors
/// `EAGAIN` when there is nothing or no room, `EINVAL` when either is not a pipe.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: tee takes only numbers; both descriptors are open.
    check(unsafe { libc::tee(from, to, len, libc::SPLICE_F_NONBLOCK) }).map(|n| n as usize)
}

/// FIONREAD: bytes that can be read.
///
/// # Errors
/// `ENOTTY` on objects without that notion.
pub fn unread_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes = 0_i32;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })
        .map(|_| bytes as usize)
}

/// SIOCOUTQ of a TCP socket: bytes that its peer has not acknowledged, the end of file counts as
/// one (tcp(7)).
///
/// # Errors
/// `EINVAL` for a listening socket.
pub fn unsent_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes = 0_i32;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })
        .map(|_| bytes as usize)
}

/// Bytes that a TCP socket has received in order since it was connected, read or not; the end of
/// file counts as one (`tcpi_bytes_received` of `struct tcp_info`).
///
/// # Errors
/// `EOPNOTSUPP` on a kernel that does not tell (before Linux 4.1).
pub fn received_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    const AT: usize = 128;
    let info: [u8; AT + 8] = tcp_info(fd)?;
    let told = info.get(AT..).and_then(|bytes| bytes.try_into().ok());
    told.map(u64::from_ne_bytes).ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// Has the peer of a TCP socket sent its end of file, and all bytes before it have come? (`tcpi_state`
/// of `struct tcp_info`.)
///
/// # Errors
/// `ENOPROTOOPT` for what is no TCP socket.
pub fn peer_has_ended(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // include/net/tcp_states.h.
    const CLOSE_WAIT: u8 = 8;
    const LAST_ACK: u8 = 9;
    const CLOSING: u8 = 11;
    let [state] = tcp_info(fd)?;
    Ok([CLOSE_WAIT, LAST_ACK, CLOSING].contains(&state))
}

/// How many connections wait in a listening TCP socket to be accepted, and its backlog
/// (`tcpi_unacked` and `tcpi_sacked` of `struct tcp_info`, see tcp_get_info of net/ipv4/tcp.c).
///
/// # Errors
/// `ENOPROTOOPT` for what is no TCP socket.
pub fn accept_queue(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    const AT: usize = 24;
    let info: [u8; AT + 8] = tcp_info(fd)?;
    match info.get(AT..) {
        Some(&[a, b, c, d, e, f, g, h]) => {
            Ok((u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])))
        }
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

/// What has gone over a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the peer has acknowledged.
    pub sent: u64,
    /// Bytes that have come.
    pub received: u64,
    /// Smoothed round trip, microseconds.
    pub rtt_us: u32,
}

/// `tcpi_bytes_acked`, `tcpi_bytes_received` and `tcpi_rtt` of `struct tcp_info` (linux/tcp.h).
///
/// # Errors
/// `ENOPROTOOPT` for what is no TCP socket.
pub fn traffic(fd: BorrowedFd<'_>) -> io::Result<Traffic> {
    const RTT: usize = 68;
    const SENT: usize = 120;
    let info: [u8; SENT + 16] = tcp_info(fd)?;
    let (rtt, counts) = (info.get(RTT..RTT + 4), info.get(SENT..).map(<[u8]>::as_chunks::<8>));
    match (rtt, counts) {
        (Some(&[a, b, c, d]), Some(([sent, received], []))) => Ok(Traffic {
            sent: u64::from_ne_bytes(*sent),
            received: u64::from_ne_bytes(*received),
            rtt_us: u32::from_ne_bytes([a, b, c, d]),
        }),
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

/// The beginning of `struct tcp_info` (TCP_INFO of tcp(7)).
fn tcp_info<const N: usize>(fd: BorrowedFd<'_>) -> io::Result<[u8; N]> {
    let mut info = [0_u8; N];
    let mut len = N as libc::socklen_t;
    // SAFETY: info and len live through the call, and len is the size of info.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    match len as usize == N {
        true => Ok(info),
        false => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

/// SO_PEEK_OFF: where the next MSG_PEEK begins, bytes; -1: always at the first one (socket(7)).
///
/// # Errors
/// `EOPNOTSUPP` for a socket that has no such thing.
pub fn set_peek_offset(fd: BorrowedFd<'_>, offset: i32) -> io::Result<()> {
    // SAFETY: offset lives through the call and has the length told.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const offset).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// accept4(2), with close-on-exec.
///
/// # Errors
/// Those of accept4(2).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (nowhere, none) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: no address is asked for.
    let fd =
        check(unsafe { libc::accept4(listener.as_raw_fd(), nowhere, none, libc::SOCK_CLOEXEC) })?;
    // SAFETY: the kernel has just made it for this process, and nobody else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// TCP_QUICKACK: an acknowledgement that is being delayed is sent now. Does nothing else.
pub fn acknowledge(fd: BorrowedFd<'_>) {
    let on = 1_i32;
    // SAFETY: on lives through the call and has the length told.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUICKACK,
            (&raw const on).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
}

/// TIOCGWINSZ.
///
/// # Errors
/// `ENOTTY`; `EIO` after a hang-up.
pub fn get_winsize(fd: BorrowedFd<'_>) -> io::Result<libc::winsize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok(size)
}

/// TIOCSWINSZ. The kernel sends SIGWINCH to the foreground group when the size changed.
///
/// # Errors
/// `ENOTTY`; `EIO` after a hang-up.
pub fn set_winsize(fd: BorrowedFd<'_>, size: &libc::winsize) -> io::Result<()> {
    let size: *const libc::winsize = size;
    // SAFETY: TIOCSWINSZ reads one winsize, which the reference keeps alive.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, size) }).map(drop)
}

/// TIOCSPTLCK 0 and TIOCGPTPEER: unlocks a pty master and opens its slave, whatever is
/// mounted on /dev/pts.
///
/// # Errors
/// `EMFILE`, `ENFILE`; `EIO` when the slave cannot be opened.
pub fn pty_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (fd, unlock) = (master.as_raw_fd(), 0_i32);
    // SAFETY: TIOCSPTLCK reads one int.
    check(unsafe { libc::ioctl(fd, libc::TIOCSPTLCK, &raw const unlock) })?;
    // With O_CLOEXEC the flag would stay among those of the file (ptm_open_peer,
    // drivers/tty/pty.c), and fdinfo would show it for each of its descriptors.
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    // SAFETY: TIOCGPTPEER takes open flags by value.
    let peer = unsafe { libc::ioctl(fd, libc::TIOCGPTPEER, flags) };
    check(peer)?;
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    let peer = unsafe { OwnedFd::from_raw_fd(peer) };
    // SAFETY: numbers only.
    check(unsafe { libc::fcntl(peer.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(peer)
}
