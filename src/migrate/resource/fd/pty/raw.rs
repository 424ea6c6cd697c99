//! Every unsafe block of ptys: the requests of ioctl_tty(2) and tcflow(3).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::errno::check;

/// A request that writes one int.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Query {
    /// TIOCGSID: the session that has the terminal, by its number in our namespace.
    Session = 0x5429,
    /// TIOCGPGRP: the foreground group.
    Foreground = 0x540F,
    /// TIOCGETD: the line discipline.
    Discipline = 0x5424,
    /// TIOCGPTN: the number of the pty.
    Number = 0x8004_5430,
    /// TIOCGDEV: the device of the terminal itself.
    Device = 0x8004_5432,
    /// TIOCGPKT: packet mode.
    Packet = 0x8004_5438,
    /// TIOCGPTLCK: the slave cannot be opened.
    Locked = 0x8004_5439,
    /// TIOCGEXCL: exclusive mode.
    Exclusive = 0x8004_5440,
}

/// Asks a terminal, or the master of one.
///
/// # Errors
/// `ENOTTY` also where there is none of what was asked for; `EIO` after a hang-up.
pub fn query(tty: BorrowedFd, what: Query) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: each of these requests writes one int, which lives through the call.
    check(unsafe {
        libc::ioctl(tty.as_raw_fd(), libc::c_ulong::from(what as u32), &raw mut value)
    })?;
    Ok(value)
}

/// TIOCSPTLCK: whether the slave of this master can be opened.
///
/// # Errors
/// `ENOTTY` for anything but a master.
pub fn set_locked(master: BorrowedFd, on: bool) -> io::Result<()> {
    let on = libc::c_int::from(on);
    // SAFETY: the request reads one int, which lives through the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const on) }).map(drop)
}

/// TIOCPKT: packet mode of this master.
///
/// # Errors
/// `ENOTTY` for anything but a master.
pub fn set_packet(master: BorrowedFd, on: bool) -> io::Result<()> {
    let on = libc::c_int::from(on);
    // SAFETY: the request reads one int, which lives through the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCPKT, &raw const on) }).map(drop)
}

/// TIOCEXCL or TIOCNXCL.
///
/// # Errors
/// `EIO` after a hang-up.
pub fn set_exclusive(tty: BorrowedFd, on: bool) -> io::Result<()> {
    let request = if on { libc::TIOCEXCL } else { libc::TIOCNXCL };
    // SAFETY: a number only.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), request) }).map(drop)
}

/// TIOCGPTPEER: opens the slave of a master, whatever is mounted on /dev/pts.
///
/// # Errors
/// `EIO` when it is locked, `EBUSY` in exclusive mode, `EMFILE`, `ENFILE`.
pub fn peer(master: BorrowedFd, flags: i32) -> io::Result<OwnedFd> {
    // With O_CLOEXEC the flag would stay among those of the file (ptm_open_peer,
    // drivers/tty/pty.c), and fdinfo would show it for each of its descriptors.
    let flags = (flags | libc::O_NOCTTY) & !libc::O_CLOEXEC;
    // SAFETY: the request takes open flags by value.
    let fd = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: numbers only.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(fd)
}

/// tcflow(3): TCOOFF stops the terminal's output, TCOON undoes that.
///
/// # Errors
/// `EIO` after a hang-up.
pub fn flow(tty: BorrowedFd, action: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::tcflow(tty.as_raw_fd(), action) }).map(drop)
}
