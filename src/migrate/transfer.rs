//! Transfers that were interrupted in the middle.
//!
//! A write(2) to a pipe that blocks writes everything, unless a signal comes: then it answers how much
//! it has written (pipe(7)). A stop of the tracer looks like a signal to the kernel, but a program
//! without a handler never sees such a short count. So the call goes on with the rest, and answers
//! the sum in the end.
//!
//! The rest of a vector (writev(2)) is transferred piece by piece, from where the program has it:
//! nothing is put into its memory. As in the kernel, an error after a part is no error.
//!
//! These are left as they are, because natively they answer short counts at any time: what has no
//! fixed amount to wait for (read(2) of a pipe, splice(2), tee(2), vmsplice(2), sendfile(2) to a
//! pipe), and whatever does not block (O_NONBLOCK, MSG_DONTWAIT).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::stat::{major, minor};
use nix::sys::termios::{tcgetattr, LocalFlags, SpecialCharacterIndices};

use super::gone;
use super::resource::fd::raw::socket_option;
use super::resource::fd::FdView;
use super::resource::View;
use super::settle::arguments;
use crate::tracer::inject::{read_exact, word};
use crate::tracer::memory::{read_proc, tgid};
use crate::tracer::raw::{self, Regs};

/// Most that one call transfers, bytes (MAX_RW_COUNT, include/linux/fs.h).
const MOST: u64 = 0x7fff_f000;
/// Most pieces of a vector (UIO_MAXIOV).
const MOST_PIECES: u64 = 1024;
/// Bytes of `struct iovec` and `struct msghdr`.
const IOVEC_LEN: u64 = 16;
const MSGHDR_LEN: usize = 56;

/// A call for the rest of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    pub nr: i64,
    pub args: [u64; 6],
    /// Bytes that it is to transfer.
    pub len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Receive,
    Send,
    /// From file to file; the kernel keeps the positions.
    Copy,
    Random,
}

/// Where the bytes are in the program's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Buffer(u64, u64),
    /// Of `struct iovec`.
    Vector(u64, u64),
    /// In a `struct msghdr`.
    Message(u64),
    /// So many bytes are nowhere.
    Nowhere(u64),
}

/// A call that transfers bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Transfer {
    nr: i64,
    args: [u64; 6],
    kind: Kind,
    /// Read from, or written to.
    fd: i32,
    memory: Memory,
    /// In the file, if the call gives it.
    position: Option<u64>,
    /// MSG_… of a socket's call, GRND_… of getrandom(2).
    flags: u64,
}

/// What a descriptor leads to, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    Pipe,
    Socket,
    Terminal,
    /// /dev/zero, full, random, urandom: a large transfer ends when a signal is there.
    Device,
    Regular,
    Other,
}

impl Transfer {
    /// `None`: the call is none that an interruption may leave in the middle.
    fn of(nr: i64, args: &[u64; 6]) -> Option<Self> {
        use Memory::{Buffer, Message, Nowhere, Vector};
        const RWF_NOWAIT: u64 = 8;
        let [a, b, c, d, e, f] = *args;
        let (kind, fd, memory, position, flags) = match nr {
            libc::SYS_read => (Kind::Read, a, Buffer(b, c), None, 0),
            libc::SYS_write => (Kind::Write, a, Buffer(b, c), None, 0),
            libc::SYS_pread64 => (Kind::Read, a, Buffer(b, c), Some(d), 0),
            libc::SYS_pwrite64 => (Kind::Write, a, Buffer(b, c), Some(d), 0),
            libc::SYS_readv => (Kind::Read, a, Vector(b, c), None, 0),
            libc::SYS_writev => (Kind::Write, a, Vector(b, c), None, 0),
            libc::SYS_preadv => (Kind::Read, a, Vector(b, c), Some(d), 0),
            libc::SYS_pwritev => (Kind::Write, a, Vector(b, c), Some(d), 0),
            libc::SYS_preadv2 | libc::SYS_pwritev2 if f & RWF_NOWAIT == 0 => {
                let kind = if nr == libc::SYS_preadv2 { Kind::Read } else { Kind::Write };
                (kind, a, Vector(b, c), (d != u64::MAX).then_some(d), 0)
            }
            libc::SYS_recvfrom => (Kind::Receive, a, Buffer(b, c), None, d),
            libc::SYS_sendto => (Kind::Send, a, Buffer(b, c), None, d),
            libc::SYS_recvmsg => (Kind::Receive, a, Message(b), None, c),
            libc::SYS_sendmsg => (Kind::Send, a, Message(b), None, c),
            libc::SYS_sendfile => (Kind::Copy, a, Nowhere(d), None, 0),
            libc::SYS_copy_file_range => (Kind::Copy, c, Nowhere(e), None, 0),
            libc::SYS_getrandom => (Kind::Random, 0, Buffer(a, b), None, c),
            _ => return None,
        };
        Some(Self { nr, args: *args, kind, fd: fd as i32, memory, position, flags })
    }

    /// Address and length of each piece.
    fn pieces(&self, pid: i32) -> io::Result<Vec<(u64, u64)>> {
        let (at, count) = match self.memory {
            Memory::Buffer(at, len) => return Ok(vec![(at, len)]),
            Memory::Nowhere(len) => return Ok(vec![(0, len)]),
            Memory::Vector(at, count) => (at, count),
            Memory::Message(at) => {
                let header = message(pid, at)?;
                (word(&header, 16), word(&header, 24))
            }
        };
        let mut bytes = vec![0; (count.min(MOST_PIECES) * IOVEC_LEN) as usize];
        read_exact(pid, at, &mut bytes)?;
        let pieces = bytes.chunks_exact(IOVEC_LEN as usize);
        Ok(pieces.map(|piece| (word(piece, 0), word(piece, 8))).collect())
    }

    /// For how many bytes of `len` the call waits: with fewer it does not return natively, unless
    /// a signal, an error or the end of the stream comes. 0: it is not known, or there is no such
    /// number.
    fn awaited(&self, pid: i32, len: u64) -> io::Result<u64> {
        if self.kind == Kind::Random {
            return Ok(len);
        }
        let Some(behind) = self.blocks_on(pid)? else { return Ok(0) };
        Ok(match (self.kind, behind) {
            (Kind::Write | Kind::Read | Kind::Copy, Behind::Device) => len,
            (Kind::Write, Behind::Pipe | Behind::Terminal) => len,
            (Kind::Write | Kind::Send | Kind::Copy, Behind::Socket) if self.waits() => len,
            (Kind::Copy, Behind::Terminal) => len,
            (Kind::Copy, Behind::Regular) if has_no_limit(pid)? => len,
            (Kind::Receive, Behind::Socket) if !self.waits() || self.has_control(pid)? => 0,
            (Kind::Receive, Behind::Socket) if self.has(libc::MSG_WAITALL) => len,
            (Kind::Read | Kind::Receive, Behind::Socket) => {
                let low = socket_option(duplicate(pid, self.fd)?.as_raw_fd(), libc::SO_RCVLOWAT)?;
                len.min(u64::try_from(low).unwrap_or(0))
            }
            (Kind::Read, Behind::Terminal) => len.min(least(&duplicate(pid, self.fd)?)?),
            _ => 0,
        })
    }

    fn has(&self, flag: i32) -> bool {
        self.flags & flag as u64 != 0
    }

    fn waits(&self) -> bool {
        const NOT: [i32; 4] =
            [libc::MSG_DONTWAIT, libc::MSG_PEEK, libc::MSG_OOB, libc::MSG_ERRQUEUE];
        !NOT.into_iter().any(|flag| self.has(flag))
    }

    /// Has it room for what comes beside the bytes (cmsg(3))? How much of it was used is not
    /// known after a part.
    fn has_control(&self, pid: i32) -> io::Result<bool> {
        let Memory::Message(at) = self.memory else { return Ok(false) };
        Ok(word(&message(pid, at)?, 32) != 0)
    }

    /// What it waits for; `None`: it never waits, or the descriptor is closed.
    fn blocks_on(&self, pid: i32) -> io::Result<Option<Behind>> {
        let file = match FdView::read(pid, self.fd) {
            Err(e) if gone::is_closed(&e) => return Ok(None),
            other => other?,
        };
        let behind = match (file.file_type(), major(file.rdev), minor(file.rdev)) {
            (libc::S_IFIFO, ..) => Behind::Pipe,
            (libc::S_IFSOCK, ..) => Behind::Socket,
            (libc::S_IFREG, ..) => Behind::Regular,
            (libc::S_IFCHR, 1, 5 | 7 | 8 | 9) => Behind::Device,
            (libc::S_IFCHR, 4 | 5 | 136..=143, _) => Behind::Terminal,
            _ => Behind::Other,
        };
        let waits = file.flags & libc::O_NONBLOCK == 0 || behind == Behind::Device;
        Ok(waits.then_some(behind))
    }

    /// The call for `len` bytes at `at`, after `done`. Natively a stream whose reader is gone
    /// raises SIGPIPE only when nothing was sent.
    fn call(&self, pid: i32, at: u64, len: u64, done: u64) -> io::Result<(i64, [u64; 6])> {
        let fd = self.fd as u64;
        let silent = self.flags | libc::MSG_NOSIGNAL as u64;
        let there = self.position.map_or(0, |position| position.wrapping_add(done));
        let is_socket = || Ok::<_, io::Error>(self.blocks_on(pid)? == Some(Behind::Socket));
        let mut same = self.args;
        Ok(match (self.kind, self.position) {
            (Kind::Copy, _) => {
                same[if self.nr == libc::SYS_sendfile { 3 } else { 4 }] = len;
                (self.nr, same)
            }
            (Kind::Random, _) => (self.nr, [at, len, self.flags, 0, 0, 0]),
            (Kind::Write, None) if is_socket()? => (libc::SYS_sendto, [fd, at, len, silent, 0, 0]),
            (Kind::Write, None) => (libc::SYS_write, [fd, at, len, 0, 0, 0]),
            (Kind::Write, Some(_)) => (libc::SYS_pwrite64, [fd, at, len, there, 0, 0]),
            (Kind::Read, None) => (libc::SYS_read, [fd, at, len, 0, 0, 0]),
            (Kind::Read, Some(_)) => (libc::SYS_pread64, [fd, at, len, there, 0, 0]),
            (Kind::Send, _) => (libc::SYS_sendto, [fd, at, len, silent, 0, 0]),
            (Kind::Receive, _) => (libc::SYS_recvfrom, [fd, at, len, self.flags, 0, 0]),
        })
    }
}

fn message(pid: i32, at: u64) -> io::Result<[u8; MSGHDR_LEN]> {
    let mut header = [0; MSGHDR_LEN];
    read_exact(pid, at, &mut header)?;
    Ok(header)
}

/// `tid` may be any thread of the process.
fn duplicate(tid: i32, fd: i32) -> io::Result<OwnedFd> {
    raw::pidfd_getfd(&raw::pidfd_open(tgid(tid)?)?, fd)
}

/// For how many bytes a read of a terminal waits (termios(3), "Canonical and noncanonical mode").
/// One that a timer ends may answer fewer at any time.
fn least(terminal: &OwnedFd) -> io::Result<u64> {
    let modes = tcgetattr(terminal)?;
    let value = |index| u64::from(modes.control_chars[index as usize]);
    let fixed = !modes.local_flags.contains(LocalFlags::ICANON)
        && value(SpecialCharacterIndices::VTIME) == 0;
    Ok(if fixed { value(SpecialCharacterIndices::VMIN) } else { 0 })
}

/// May the process make files of any size? Else a write at the limit raises SIGXFSZ.
fn has_no_limit(pid: i32) -> io::Result<bool> {
    let limits = read_proc(&format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"));
    Ok(line.is_some_and(|line| line.trim_start().starts_with("unlimited")))
}

/// May the thread have seccomp filters of its own, to which another call is not the same? One of them
/// may be vosrun's.
fn may_have_filters(tid: i32) -> io::Result<bool> {
    Ok(View::read_process(tid)?.number("Seccomp_filters:") > 1)
}

/// Has the thread come out of a call that may have been interrupted in the middle? A first look, at
/// the registers only.
#[must_use]
pub fn may_be_part(regs: &Regs) -> bool {
    let nr = regs.orig_rax as i64;
    regs.rax as i64 > 0 && nr >= 0 && Transfer::of(nr, &arguments(regs)).is_some()
}

/// How much a call has transferred that would natively go on; `None`: it is whole, or none of
/// these.
#[must_use]
pub fn part(pid: i32, regs: &Regs) -> Option<u64> {
    if !may_be_part(regs) {
        return None;
    }
    rest(pid, regs, regs.rax).map(|_| regs.rax)
}

/// The call that goes on after `done` bytes with the next piece; `None`: it is whole. Where its
/// arguments or its descriptor cannot be looked at, it ends with its part.
#[must_use]
pub fn rest(pid: i32, regs: &Regs, done: u64) -> Option<Rest> {
    find_rest(pid, regs, done).unwrap_or_else(|e| {
        tracing::warn!("call {} of thread {pid} ends with {done} bytes: {e}", regs.orig_rax as i64);
        None
    })
}

fn find_rest(pid: i32, regs: &Regs, done: u64) -> io::Result<Option<Rest>> {
    let transfer = Transfer::of(regs.orig_rax as i64, &arguments(regs));
    let Some(transfer) = transfer else { return Ok(None) };
    let pieces = transfer.pieces(pid)?;
    let len = pieces.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len)).min(MOST);
    let left = match done < len {
        true => transfer.awaited(pid, len)?.saturating_sub(done),
        false => 0,
    };
    let mut before = done;
    for (at, len) in pieces {
        if before >= len {
            before -= len;
            continue;
        }
        let (at, len) = (at + before, (len - before).min(left));
        if len == 0 {
            break;
        }
        let (nr, args) = transfer.call(pid, at, len, done)?;
        if nr != transfer.nr && may_have_filters(pid)? {
            return Ok(None);
        }
        return Ok(Some(Rest { nr, args, len }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn regs(nr: i64, args: [u64; 6]) -> Regs {
        let mut regs = crate::migrate::resource::registers::from_words(&[0; 27]);
        regs.orig_rax = nr as u64;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        regs
    }

    fn of(fd: &impl AsRawFd) -> u64 {
        fd.as_raw_fd() as u64
    }

    #[test]
    fn the_rest_of_a_vector_begins_in_the_middle_of_a_piece() {
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        let own = std::process::id() as i32;
        let vector: [u64; 8] = [0x1000, 10, 0, 0, 0x2000, 20, 0x3000, 5];
        let call = regs(libc::SYS_writev, [of(&writer), vector.as_ptr() as u64, 4, 0, 0, 0]);
        let next = |done| rest(own, &call, done).map(|r| (r.nr, r.args[1], r.len));
        assert_eq!(next(3), Some((libc::SYS_write, 0x1003, 7)));
        assert_eq!(next(10), Some((libc::SYS_write, 0x2000, 20)));
        assert_eq!(next(31), Some((libc::SYS_write, 0x3001, 4)));
        assert_eq!(next(35), None);
    }

    #[test]
    fn what_does_not_block_answers_short_counts() {
        let own = std::process::id() as i32;
        let (one, _other) = UnixStream::pair().unwrap();
        let call = |nr, flags: i32| regs(nr, [of(&one), 0x1000, 100, flags as u64, 0, 0]);
        let goes_on = |regs| rest(own, &regs, 40).is_some();
        assert!(goes_on(call(libc::SYS_sendto, 0)) && goes_on(call(libc::SYS_write, 0)));
        assert!(!goes_on(call(libc::SYS_sendto, libc::MSG_DONTWAIT)));
        assert!(!goes_on(call(libc::SYS_recvfrom, 0)) && !goes_on(call(libc::SYS_read, 0)));
        assert!(goes_on(call(libc::SYS_recvfrom, libc::MSG_WAITALL)));
        one.set_nonblocking(true).unwrap();
        assert!(!goes_on(call(libc::SYS_write, 0)));
        let sent = rest(own, &call(libc::SYS_sendto, 0), 40);
        assert_eq!(sent, None);
    }

    #[test]
    fn a_terminal_is_read_until_there_is_enough() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let own = std::process::id() as i32;
        let call = regs(libc::SYS_read, [of(&pty.slave), 0x1000, 100, 0, 0, 0]);
        assert_eq!(rest(own, &call, 3), None);
        let mut modes = tcgetattr(pty.slave.as_fd()).unwrap();
        modes.local_flags.remove(LocalFlags::ICANON);
        modes.control_chars[SpecialCharacterIndices::VMIN as usize] = 10;
        modes.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        nix::sys::termios::tcsetattr(pty.slave.as_fd(), nix::sys::termios::SetArg::TCSANOW, &modes)
            .unwrap();
        assert_eq!(rest(own, &call, 3).map(|r| r.len), Some(7));
    }
}
