//! A descriptor on this node that is read and written without ever waiting.
//!
//! Descriptions that the job's other holders share (the shell's pipe, the terminal) must
//! not become non-blocking, so O_NONBLOCK is not for them:
//!
//! | object | way |
//! |---|---|
//! | pipe or pty made here | O_NONBLOCK on our own description |
//! | pipe, socket, /dev/null of others | RWF_NOWAIT (preadv2(2)) |
//! | terminal, named pipe of others | a description of our own, from /proc/self/fd |
//! | the same where that is refused | poll(2), then a read or a short write |
//! | TCP socket, also of others | MSG_DONTWAIT (recv(2)) |
//! | regular file | plain read and write, which do not wait for anybody |

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::PollFlags;
use nix::sys::socket::{recv, send, MsgFlags};

use super::raw;
use super::term::wait_for;

/// Bytes that a write may have where only poll(2) says that it will not wait.
const SHORT_WRITE: usize = 512;

/// Major number of /dev/tty and /dev/console, whose meaning depends on who opens them.
const TTYAUX_MAJOR: u64 = 5;

/// How to keep from waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    NonBlocking,
    NoWait,
    Poll,
    Plain,
    Socket,
}

/// What became of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    Bytes(usize),
    /// Nothing now; an event will come.
    Later,
    Eof,
    /// The other side of a terminal is not there, or the terminal is not ours to read.
    Refused,
    /// The connection was reset, or timed out.
    Reset,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Bytes(usize),
    /// No room now; an event will come.
    Later,
    /// Nobody will ever read it.
    Broken,
    /// The connection was reset, or timed out.
    Reset,
}

/// See the module.
#[derive(Debug)]
pub struct Local {
    fd: OwnedFd,
    way: Cell<Way>,
    registered: bool,
}

impl AsFd for Local {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Local {
    /// An end made here: O_NONBLOCK is set on its description.
    ///
    /// # Errors
    /// When fcntl(2) fails.
    pub fn own(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self::with(fd, Way::NonBlocking))
    }

    /// A duplicate of a description that others use.
    ///
    /// # Errors
    /// When fcntl(2) or fstat(2) fails.
    pub fn shared(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        let file = std::fs::File::from(fd);
        let meta = file.metadata()?;
        let kind = meta.file_type();
        let fd = OwnedFd::from(file);
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if kind.is_file() || kind.is_block_device() {
            return Ok(Self::with(fd, Way::Plain));
        }
        if kind.is_socket() || link.as_os_str().as_bytes().starts_with(b"pipe:[") {
            return Ok(Self::with(fd, Way::NoWait));
        }
        let fixed = u64::from(libc::major(meta.rdev())) != TTYAUX_MAJOR;
        let again = (fixed && (kind.is_fifo() || fd.is_terminal())).then(|| reopen(&fd, flags));
        Ok(match again {
            Some(Ok(own)) => Self::with(own, Way::NonBlocking),
            _ => Self::with(fd, Way::Poll),
        })
    }

    /// A TCP socket; its description may be one that others use.
    #[must_use]
    pub fn socket(fd: OwnedFd) -> Self {
        Self::with(fd, Way::Socket)
    }

    /// Tells the peer of a socket that nothing follows.
    pub fn shut(&self) {
        use nix::sys::socket::{shutdown, Shutdown};
        match shutdown(self.fd.as_raw_fd(), Shutdown::Write) {
            // Its peer has gone meanwhile.
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(error) => tracing::warn!(fd = self.fd.as_raw_fd(), %error, "shutdown(2)"),
        }
    }

    /// The peer of a socket sees a reset when it is closed.
    pub fn reset_on_close(&self) {
        use nix::sys::socket::{setsockopt, sockopt::Linger};
        if let Err(error) = setsockopt(&self.fd, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })
        {
            tracing::warn!(fd = self.fd.as_raw_fd(), %error, "SO_LINGER");
        }
    }

    /// The error that waits in a socket, which is taken out (SO_ERROR).
    #[must_use]
    pub fn take_error(&self) -> Option<i32> {
        use nix::sys::socket::{getsockopt, sockopt::SocketError};
        getsockopt(&self.fd, SocketError).ok().filter(|error| *error != 0)
    }

    fn with(fd: OwnedFd, way: Way) -> Self {
        Self { fd, way: Cell::new(way), registered: false }
    }

    /// Asks for edge-triggered events. Regular files have none and need none.
    ///
    /// # Errors
    /// epoll_ctl(2), save `EPERM`.
    pub fn register(&mut self, to: &Registry, token: Token, what: Interest) -> io::Result<()> {
        match to.register(&mut SourceFd(&self.fd.as_raw_fd()), token, what) {
            Ok(()) => self.registered = true,
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Ends the events and closes the descriptor. The description may live on elsewhere,
    /// and epoll(7) would go on reporting it.
    pub fn close(self, from: &Registry) {
        if self.registered {
            let result = from.deregister(&mut SourceFd(&self.fd.as_raw_fd()));
            if let Err(e) = result {
                tracing::debug!(fd = self.fd.as_raw_fd(), %e, "epoll deregistration");
            }
        }
    }

    /// Reads what is there.
    pub fn read(&self, buf: &mut [u8]) -> Got {
        let result = match self.way.get() {
            Way::NoWait => raw::read_nowait(self.as_fd(), buf),
            Way::Socket => {
                recv(self.fd.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT).map_err(Into::into)
            }
            Way::Poll if !self.ready(PollFlags::POLLIN) => Err(Errno::EAGAIN.into()),
            _ => nix::unistd::read(&self.fd, buf).map_err(Into::into),
        };
        match result {
            Ok(0) => Got::Eof,
            Ok(n) => Got::Bytes(n),
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => Got::Later,
                Some(libc::EINTR) => self.read(buf),
                Some(libc::EOPNOTSUPP) if self.fall_back() => self.read(buf),
                Some(libc::EPIPE) if self.way.get() == Way::Socket => Got::Eof,
                _ if self.way.get() == Way::Socket => Got::Reset,
                Some(libc::EIO) => Got::Refused,
                _ => self.failed("read", &e, Got::Eof),
            },
        }
    }

    /// Writes what there is room for.
    pub fn write(&self, bytes: &[u8]) -> Put {
        let result = match self.way.get() {
            Way::NoWait => raw::write_nowait(self.as_fd(), bytes),
            Way::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                send(self.fd.as_raw_fd(), bytes, flags).map_err(Into::into)
            }
            Way::Poll if !self.ready(PollFlags::POLLOUT) => Err(Errno::EAGAIN.into()),
            Way::Poll => {
                let short = bytes.get(..SHORT_WRITE).unwrap_or(bytes);
                nix::unistd::write(&self.fd, short).map_err(Into::into)
            }
            _ => nix::unistd::write(&self.fd, bytes).map_err(Into::into),
        };
        match result {
            Ok(n) => Put::Bytes(n),
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => Put::Later,
                Some(libc::EINTR) => self.write(bytes),
                Some(libc::EOPNOTSUPP) if self.fall_back() => self.write(bytes),
                Some(libc::EPIPE) => Put::Broken,
                _ if self.way.get() == Way::Socket => Put::Reset,
                _ => self.failed("write", &e, Put::Broken),
            },
        }
    }

    /// An object that does not know RWF_NOWAIT (pipes before Linux 6.5) is polled.
    fn fall_back(&self) -> bool {
        self.way.replace(Way::Poll) == Way::NoWait
    }

    fn failed<T>(&self, what: &str, error: &io::Error, outcome: T) -> T {
        tracing::warn!(fd = self.fd.as_raw_fd(), %error, "{what} on a relayed descriptor failed");
        outcome
    }

    fn ready(&self, what: PollFlags) -> bool {
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
        wait_for(self.as_fd(), what, Duration::ZERO).is_ok_and(|r| r.intersects(what | gone))
    }

    /// The other side is gone: a pipe without readers, a socket or terminal hung up.
    #[must_use]
    pub fn hung_up(&self) -> bool {
        wait_for(self.as_fd(), PollFlags::empty(), Duration::ZERO)
            .is_ok_and(|r| r.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
    }
}

/// The same object with a description of our own.
fn reopen(fd: &OwnedFd, flags: OFlag) -> io::Result<OwnedFd> {
    let access = flags & OFlag::O_ACCMODE;
    OpenOptions::new()
        .read(access != OFlag::O_WRONLY)
        .write(access != OFlag::O_RDONLY)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;

    fn status(fd: &impl AsFd) -> OFlag {
        OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap())
    }

    #[test]
    fn a_shared_pipe_stays_blocking() {
        let (read, write) = pipe().unwrap();
        let local = Local::shared(read.try_clone().unwrap()).unwrap();
        assert_eq!(local.way.get(), Way::NoWait);
        assert_eq!(local.read(&mut [0; 8]), Got::Later);
        assert!(!status(&read).contains(OFlag::O_NONBLOCK));
        nix::unistd::write(&write, b"abc").unwrap();
        assert_eq!(local.read(&mut [0; 8]), Got::Bytes(3));
        drop(write);
        assert_eq!(local.read(&mut [0; 8]), Got::Eof);
    }

    #[test]
    fn a_full_pipe_does_not_wait() {
        let (read, write) = pipe().unwrap();
        let local = Local::shared(write).unwrap();
        while local.write(&[0; 1 << 16]) != Put::Later {}
        assert!(!local.hung_up());
        drop(read);
        assert!(local.hung_up());
        assert_eq!(local.write(b"x"), Put::Broken);
    }

    #[test]
    fn a_named_pipe_gets_a_description_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let fifo = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let local = Local::shared(fifo.try_clone().unwrap().into()).unwrap();
        assert_eq!(local.way.get(), Way::NonBlocking);
        assert_eq!(local.read(&mut [0; 8]), Got::Later);
        assert!(!status(&fifo).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn only_polling_works_where_nothing_else_does() {
        let (read, write) = pipe().unwrap();
        let local = |fd| Local::with(fd, Way::Poll);
        let (read, write) = (local(read), local(write));
        assert_eq!(read.read(&mut [0; 8]), Got::Later);
        assert_eq!(write.write(&[7; 4096]), Put::Bytes(SHORT_WRITE));
        assert_eq!(read.read(&mut [0; 4096]), Got::Bytes(SHORT_WRITE));
    }
}
