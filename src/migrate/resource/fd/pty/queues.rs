//! What a pty holds in both directions: keys that the slave has not read, output that the
//! master has not read.
//!
//! A terminal cannot be peeked into. So the bytes of a frozen job are taken, and put back when it
//! is to go on here. Nobody of the job sees the pty in between.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::super::raw as fd_raw;
use super::raw::{self, Query};
use crate::proxy::term::{put_input, take_input, wait_for, Termios, TtyInput};

/// The kernel moves bytes from one side to the other in a moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// Is output on its way from the slave to the master?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flow {
    #[default]
    Running,
    /// By the key ^S (VSTOP of termios(3)).
    Key,
    /// By tcflow(3).
    Call,
}

/// The bytes in a pty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queues {
    /// What the slave can read.
    pub input: TtyInput,
    /// What the master can read.
    pub output: Vec<u8>,
    pub flow: Flow,
}

/// What is known of a pty whose bytes have been taken.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub queues: Queues,
    /// It was in packet mode.
    pub packet: bool,
    /// Permissions and owner of the slave's name.
    pub mode: u32,
    pub owner: (u32, u32),
}

/// A pty of a frozen job whose bytes have been taken.
#[derive(Debug)]
pub struct Taken {
    master: OwnedFd,
    slave: OwnedFd,
    pub seen: Snapshot,
}

/// The master without O_NONBLOCK gets it for a while.
struct NonBlocking<'a>(BorrowedFd<'a>, i32);

impl<'a> NonBlocking<'a> {
    fn make(fd: BorrowedFd<'a>) -> io::Result<Self> {
        let flags = fd_raw::fcntl(fd.as_raw_fd(), libc::F_GETFL, 0)?;
        fd_raw::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)?;
        Ok(Self(fd, flags))
    }
}

impl Drop for NonBlocking<'_> {
    fn drop(&mut self) {
        // What was set before can be set again.
        let _ = fd_raw::fcntl(self.0.as_raw_fd(), libc::F_SETFL, self.1);
    }
}

/// Takes the bytes of a pty. The job is frozen and reads none meanwhile. `slave` is one of its
/// descriptions for both directions, if it has any.
///
/// # Errors
/// What the kernel refuses; the pty is as before then.
pub fn take(master: OwnedFd, slave: Option<OwnedFd>) -> io::Result<Taken> {
    let packet = raw::query(master.as_fd(), Query::Packet)? != 0;
    let open = || open_slave(master.as_fd(), libc::O_RDWR);
    let slave = slave.map_or_else(open, Ok)?;
    let node = std::fs::File::from(slave.try_clone()?).metadata()?;
    let (mode, owner) = (node.mode() & 0o7777, (node.uid(), node.gid()));
    let seen = Snapshot { packet, mode, owner, queues: Queues::default() };
    let mut taken = Taken { master, slave, seen };
    match taken.empty() {
        Ok(()) => Ok(taken),
        Err(e) => {
            taken.put_back()?;
            Err(e)
        }
    }
}

/// Opens the slave once more, also where it is locked.
///
/// # Errors
/// `EBUSY` in exclusive mode; `EMFILE`, `ENFILE`.
pub fn open_slave(master: BorrowedFd, flags: i32) -> io::Result<OwnedFd> {
    let locked = raw::query(master, Query::Locked)? != 0;
    if locked {
        raw::set_locked(master, false)?;
    }
    let opened = raw::peer(master, flags);
    if locked {
        raw::set_locked(master, true)?;
    }
    opened
}

impl Taken {
    fn empty(&mut self) -> io::Result<()> {
        let (master, slave) = (self.master.as_fd(), self.slave.as_fd());
        if self.seen.packet {
            // Else each read begins with a byte that tells what follows.
            raw::set_packet(master, false)?;
        }
        let _both = (NonBlocking::make(master)?, NonBlocking::make(slave)?);
        self.seen.queues.input = take_input(slave)?;
        // After the input: what is still to be echoed is output, too.
        drain(master, &mut self.seen.queues.output)?;
        self.seen.queues.flow = flow_of(slave)?;
        drain(master, &mut self.seen.queues.output)
    }

    /// Puts the bytes back, for the job to go on here.
    ///
    /// # Errors
    /// What the kernel refuses; some bytes are lost then.
    pub fn put_back(&self) -> io::Result<()> {
        let filled = fill(self.master.as_fd(), self.slave.as_fd(), &self.seen.queues);
        if self.seen.packet {
            raw::set_packet(self.master.as_fd(), true)?;
        }
        filled
    }

    /// The master: as long as it is open, nobody gets a hangup.
    #[must_use]
    pub fn into_master(self) -> OwnedFd {
        self.master
    }
}

/// Puts bytes into a pty that holds none, has its modes, and is not in packet mode.
///
/// # Errors
/// What the kernel refuses; `TimedOut` when it does not move the bytes.
pub fn fill(master: BorrowedFd, slave: BorrowedFd, queues: &Queues) -> io::Result<()> {
    let _both = (NonBlocking::make(master)?, NonBlocking::make(slave)?);
    let termios = Termios::of(slave)?;
    let input = &queues.input;
    if !writable(slave)? {
        // The key ^S means nothing without IXON, and output goes on.
        Termios { iflag: termios.iflag & !libc::IXON, ..termios.clone() }.set(slave)?;
        termios.set(slave)?;
    }
    if !input.typed.is_empty() || !input.eofs.is_empty() {
        put_input(master, input, &termios)?;
    }
    if !queues.output.is_empty() {
        // It has been processed already (OPOST of termios(3)).
        Termios { oflag: termios.oflag & !libc::OPOST, ..termios.clone() }.set(slave)?;
        let written = write_all(slave, &queues.output);
        termios.set(slave)?;
        written?;
    }
    match queues.flow {
        Flow::Running => {}
        Flow::Call => raw::flow(slave, libc::TCOOFF)?,
        Flow::Key => stop_by_key(master, slave, &termios)?,
    }
    write_all(master, &input.beyond)
}

fn writable(fd: BorrowedFd) -> io::Result<bool> {
    Ok(wait_for(fd, PollFlags::POLLOUT, Duration::ZERO)?.contains(PollFlags::POLLOUT))
}

/// Reads everything that is there.
fn drain(master: BorrowedFd, to: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 4096];
    // poll(2) waits until the kernel has brought what was written (n_tty_poll).
    while wait_for(master, PollFlags::POLLIN, Duration::ZERO)?.contains(PollFlags::POLLIN) {
        match nix::unistd::read(master, &mut piece) {
            Ok(0) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EIO) => return Ok(()),
            Ok(n) => to.extend(&piece[..n]),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Writes to one side of a pty that does not wait, as room comes. It takes as much as it ever can in
/// pieces that fill its smallest buffers, of which the last may go beyond its limit by a buffer of the
/// largest size (drivers/tty/tty_buffer.c).
fn write_all(fd: BorrowedFd, mut bytes: &[u8]) -> io::Result<()> {
    const SMALLEST: usize = 256;
    const LARGEST: usize = 1792;
    let until = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        let piece = match bytes.len() {
            left @ ..=LARGEST => left,
            left => SMALLEST.min(left - LARGEST),
        };
        match nix::unistd::write(fd, &bytes[..piece]) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(nix::errno::Errno::EAGAIN) if Instant::now() < until => {
                wait_for(fd, PollFlags::POLLOUT, Duration::from_millis(20))?;
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Has output been stopped? Only then is there no room to write to an empty pty. Output that
/// tcflow(3) has stopped goes on from here.
fn flow_of(slave: BorrowedFd) -> io::Result<Flow> {
    if writable(slave)? {
        return Ok(Flow::Running);
    }
    raw::flow(slave, libc::TCOON)?;
    Ok(if writable(slave)? { Flow::Call } else { Flow::Key })
}

/// Types the key that stops output.
fn stop_by_key(master: BorrowedFd, slave: BorrowedFd, termios: &Termios) -> io::Result<()> {
    let Some(key) = termios.special(libc::VSTOP) else { return Ok(()) };
    if termios.iflag & libc::IXON == 0 || !writable(slave)? {
        return Ok(());
    }
    write_all(master, &[key])?;
    let until = Instant::now() + PATIENCE;
    while writable(slave)? {
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes pieces of `len` bytes until there is no room for a time.
    fn fill_up(fd: BorrowedFd, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(50) {
            let piece: Vec<u8> = (0..len).map(|n| b'a' + ((all.len() + n) % 25) as u8).collect();
            match nix::unistd::write(fd, &piece) {
                Ok(n) => {
                    all.extend(&piece[..n]);
                    last = Instant::now();
                }
                Err(nix::errno::Errno::EAGAIN) => std::thread::yield_now(),
                Err(e) => panic!("write: {e}"),
            }
        }
        all
    }

    fn read_all(fd: BorrowedFd, want: usize) -> Vec<u8> {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        while all.len() < want {
            let ready = wait_for(fd, PollFlags::POLLIN, Duration::from_secs(2)).expect("poll");
            assert!(!ready.is_empty(), "{} bytes of {want}", all.len());
            match nix::unistd::read(fd, &mut piece) {
                Ok(n) => all.extend(&piece[..n]),
                Err(nix::errno::Errno::EAGAIN) => {}
                Err(e) => panic!("read: {e}"),
            }
        }
        all
    }

    #[test]
    fn a_pty_full_of_output_takes_it_back() {
        for len in [1, 7, 100, 300, 1500, 1791, 4000] {
            let pty = nix::pty::openpty(None, None).expect("openpty");
            let mut raw = nix::sys::termios::tcgetattr(&pty.slave).expect("tcgetattr");
            nix::sys::termios::cfmakeraw(&mut raw);
            let now = nix::sys::termios::SetArg::TCSANOW;
            nix::sys::termios::tcsetattr(&pty.slave, now, &raw).expect("tcsetattr");
            let dup = |fd: &OwnedFd| fd.try_clone().expect("dup");
            let both = [&pty.master, &pty.slave].map(|fd| NonBlocking::make(fd.as_fd()));
            let all = fill_up(pty.slave.as_fd(), len);
            let taken = take(dup(&pty.master), Some(dup(&pty.slave))).expect("take");
            taken.put_back().unwrap_or_else(|e| panic!("pieces of {len} bytes: {e}"));
            assert!(read_all(pty.master.as_fd(), all.len()) == all, "pieces of {len} bytes");
            drop(both);
        }
    }
}
