//! Terminal modes, sizes and unread input, as values.
//!
//! Unread input is the hard part. It sits in the line discipline, already edited and echoed,
//! with line ends and eofs (^D) marked. [`take_input`] reads it away as the job would, and
//! [`put_input`] writes it to a pty master under plain modes, which keep the
//! marks but interpret nothing. Processing is asynchronous in the kernel (drivers/tty/
//! tty_buffer.c); its end is known by the echo, which is switched on for that and swallowed.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use serde::{Deserialize, Serialize};

use super::raw;

/// What one line discipline holds, bytes (`N_TTY_BUF_SIZE`, drivers/tty/n_tty.c, less one).
pub const LINE_BUFFER: usize = 4095;

/// c_cc value that switches a special character off.
const DISABLED: u8 = 0;

/// `struct termios` (termios(3)) as a value that travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termios {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; libc::NCCS],
    pub ispeed: u32,
    pub ospeed: u32,
}

impl From<&libc::termios> for Termios {
    fn from(t: &libc::termios) -> Self {
        Self {
            iflag: t.c_iflag,
            oflag: t.c_oflag,
            cflag: t.c_cflag,
            lflag: t.c_lflag,
            line: t.c_line,
            cc: t.c_cc,
            ispeed: t.c_ispeed,
            ospeed: t.c_ospeed,
        }
    }
}

impl From<&Termios> for libc::termios {
    fn from(t: &Termios) -> Self {
        Self {
            c_iflag: t.iflag,
            c_oflag: t.oflag,
            c_cflag: t.cflag,
            c_lflag: t.lflag,
            c_line: t.line,
            c_cc: t.cc,
            c_ispeed: t.ispeed,
            c_ospeed: t.ospeed,
        }
    }
}

impl Termios {
    /// The modes of the terminal `fd`.
    ///
    /// # Errors
    /// `ENOTTY`; `EIO` after a hang-up.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        raw::get_termios(fd).map(|t| Self::from(&t))
    }

    /// Sets the modes of `fd` at once, also from a background process group: SIGTTOU is
    /// blocked meanwhile (tcsetattr(3) then succeeds).
    ///
    /// # Errors
    /// `ENOTTY`; `EIO` after a hang-up.
    pub fn set(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.set_when(fd, libc::TCSANOW)
    }

    /// As [`Termios::set`], after all output was transmitted.
    ///
    /// # Errors
    /// `ENOTTY`; `EIO` after a hang-up.
    pub fn set_after_output(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.set_when(fd, libc::TCSADRAIN)
    }

    fn set_when(&self, fd: BorrowedFd<'_>, when: i32) -> io::Result<()> {
        let mut ttou = SigSet::empty();
        ttou.add(Signal::SIGTTOU);
        let before = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let result = raw::set_termios(fd, when, &self.into());
        before.thread_set_mask()?;
        result
    }

    /// Every byte passes as it is, in both directions; a read never waits (VMIN 0, VTIME 0).
    #[must_use]
    pub fn raw(&self) -> Self {
        let mut t = self.clone();
        t.iflag &= libc::IUTF8;
        t.oflag &= !libc::OPOST;
        t.lflag &= !(libc::ECHO | libc::ECHONL | libc::ISIG | libc::IEXTEN);
        t.cflag = t.cflag & !(libc::CSIZE | libc::PARENB) | libc::CS8;
        t.unwaiting()
    }

    /// A read takes what is there, also of an unfinished line.
    fn unwaiting(&self) -> Self {
        let mut t = self.clone();
        t.lflag &= !libc::ICANON;
        t.cc[libc::VMIN] = 0;
        t.cc[libc::VTIME] = 0;
        t
    }

    /// Lines stay lines and their delimiters stay, but nothing else means anything; `eof` is
    /// the character that ends a read.
    fn plain(&self, eof: u8) -> Self {
        let mut t = self.clone();
        t.iflag &= libc::IUTF8;
        t.oflag &= !libc::OPOST;
        t.lflag &= libc::ICANON | libc::IEXTEN | libc::EXTPROC;
        t.cc = [DISABLED; libc::NCCS];
        for kept in [libc::VEOL, libc::VEOL2] {
            t.cc[kept] = self.cc[kept];
        }
        if self.canonical() {
            t.cc[libc::VEOF] = eof;
        } else {
            t.cc[libc::VMIN] = 1;
        }
        t
    }

    /// Input comes by lines.
    #[must_use]
    pub fn canonical(&self) -> bool {
        self.lflag & libc::ICANON != 0
    }

    /// The special character at `index` of c_cc, unless it is switched off.
    #[must_use]
    pub fn special(&self, index: usize) -> Option<u8> {
        self.cc.get(index).copied().filter(|&c| c != DISABLED)
    }

    fn delimits(&self, byte: u8) -> bool {
        byte == b'\n' || [libc::VEOL, libc::VEOL2].iter().any(|&i| self.special(i) == Some(byte))
    }
}

/// A terminal's size, characters and pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub rows: u16,
    pub cols: u16,
    pub xpixel: u16,
    pub ypixel: u16,
}

impl WindowSize {
    /// The size of the terminal `fd`.
    ///
    /// # Errors
    /// `ENOTTY`; `EIO` after a hang-up.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let size = raw::get_winsize(fd)?;
        Ok(Self {
            rows: size.ws_row,
            cols: size.ws_col,
            xpixel: size.ws_xpixel,
            ypixel: size.ws_ypixel,
        })
    }

    /// Sets the size of `fd`; its foreground group gets SIGWINCH when it differs.
    ///
    /// # Errors
    /// `ENOTTY`; `EIO` after a hang-up.
    pub fn set(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let size = libc::winsize {
            ws_row: self.rows,
            ws_col: self.cols,
            ws_xpixel: self.xpixel,
            ws_ypixel: self.ypixel,
        };
        raw::set_winsize(fd, &size)
    }
}

/// Input that a line discipline held, unread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtyInput {
    /// At most [`LINE_BUFFER`] bytes, edited and echoed.
    pub typed: Vec<u8>,
    /// Places in `typed`, ascending, at which a read ends without a line delimiter (^D).
    pub eofs: Vec<u32>,
    /// What lay before the line discipline, as it came from the keyboard.
    pub beyond: Vec<u8>,
}

impl TtyInput {
    /// Reads `keys` as typed under `termios`: its VEOF characters become eofs.
    #[must_use]
    pub fn from_keys(keys: &[u8], termios: &Termios) -> Self {
        let mut input = Self::default();
        let eof = termios.special(libc::VEOF).filter(|_| termios.canonical());
        for &key in keys {
            if Some(key) == eof {
                input.eofs.push(input.typed.len() as u32);
            } else {
                input.typed.push(key);
            }
        }
        input
    }

    /// The keys that [`TtyInput::from_keys`] reads back.
    #[must_use]
    pub fn to_keys(&self, termios: &Termios) -> Vec<u8> {
        self.with_eofs(termios.special(libc::VEOF))
    }

    fn with_eofs(&self, eof: Option<u8>) -> Vec<u8> {
        let mut keys = Vec::with_capacity(self.typed.len() + self.eofs.len());
        let mut eofs = self.eofs.iter().peekable();
        for at in 0..=self.typed.len() {
            while eofs.next_if(|&&place| place as usize == at).is_some() {
                keys.extend(eof);
            }
            keys.extend(self.typed.get(at));
        }
        keys
    }

    fn ends_with_eof(&self) -> bool {
        self.eofs.last().is_some_and(|&place| place as usize == self.typed.len())
    }

    fn split_beyond(&mut self) {
        if self.typed.len() > LINE_BUFFER {
            self.beyond = self.typed.split_off(LINE_BUFFER);
            self.eofs.retain(|&place| place as usize <= LINE_BUFFER);
        }
    }
}

/// Waits at most `timeout` for `events` on `fd`; what poll(2) says.
///
/// # Errors
/// `ENOMEM`.
pub fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, timeout: Duration) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(fd, events)];
    let millis = u16::try_from(timeout.as_millis()).unwrap_or(u16::MAX);
    match poll(&mut fds, millis) {
        Ok(_) => Ok(fds[0].revents().unwrap_or(PollFlags::empty())),
        Err(nix::errno::Errno::EINTR) => Ok(PollFlags::empty()),
        Err(e) => Err(e.into()),
    }
}

/// Takes the unread input of the terminal `tty` (a slave, or a real one) away without
/// waiting, and leaves its modes as they were. Nobody else may be reading. Keys that the
/// kernel has not processed yet are processed first: they may echo, or raise signals.
///
/// # Errors
/// I/O errors of the terminal; `EIO` after a hang-up.
pub fn take_input(tty: BorrowedFd<'_>) -> io::Result<TtyInput> {
    let termios = Termios::of(tty)?;
    let mut input = TtyInput::default();
    read_lines(tty, &termios, &mut input)?;
    termios.unwaiting().set(tty)?;
    let result = read_rest(tty, &mut input);
    termios.set(tty)?;
    input.split_beyond();
    result.map(|()| input)
}

fn readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let ready = wait_for(fd, PollFlags::POLLIN, Duration::ZERO)?;
    Ok(ready.contains(PollFlags::POLLIN) && !ready.contains(PollFlags::POLLHUP))
}

fn read_lines(tty: BorrowedFd<'_>, termios: &Termios, input: &mut TtyInput) -> io::Result<()> {
    let mut line = [0; LINE_BUFFER + 1];
    while termios.canonical() && readable(tty)? {
        let n = match nix::unistd::read(tty, &mut line) {
            Err(nix::errno::Errno::EAGAIN) => return Ok(()),
            result => result?,
        };
        input.typed.extend(&line[..n]);
        if !line[..n].last().is_some_and(|&byte| termios.delimits(byte)) {
            input.eofs.push(input.typed.len() as u32);
        }
    }
    Ok(())
}

fn read_rest(tty: BorrowedFd<'_>, input: &mut TtyInput) -> io::Result<()> {
    let mut piece = [0; LINE_BUFFER + 1];
    loop {
        match nix::unistd::read(tty, &mut piece) {
            Ok(0) | Err(nix::errno::Errno::EAGAIN) => return Ok(()),
            Ok(n) => input.typed.extend(&piece[..n]),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Puts `input.typed` into the line discipline behind the non-blocking pty `master`, as
/// unread input of a terminal with the modes `termios`, which are set at the end. Output of
/// the slave must have been read, and nobody may be writing it. `input.beyond` is left to
/// the caller.
///
/// # Errors
/// I/O errors of the pty; `TimedOut` when the kernel does not process it.
pub fn put_input(master: BorrowedFd<'_>, input: &TtyInput, termios: &Termios) -> io::Result<()> {
    let mut unused = (1..=u8::MAX).filter(|c| !termios.delimits(*c) && !input.typed.contains(c));
    let (eof, erase, mark) = (unused.next(), unused.next(), unused.next());
    let mut plain = termios.plain(eof.unwrap_or(DISABLED));
    plain.lflag |= libc::ECHO;
    let mut keys = input.with_eofs(eof);
    let mut echo = input.typed.len();
    if let (true, Some(erase), Some(mark)) = (input.ends_with_eof(), erase, mark) {
        // An eof has no echo of its own; a character that is typed and erased has.
        plain.cc[libc::VERASE] = erase;
        keys.extend([mark, erase]);
        echo += 2;
    }
    plain.set(master)?;
    let result = write_swallowing_echo(master, &keys, echo);
    termios.set(master)?;
    result
}

fn write_swallowing_echo(master: BorrowedFd<'_>, keys: &[u8], mut echo: usize) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut written = 0;
    let mut sink = [0; 512];
    while written < keys.len() || echo > 0 {
        match nix::unistd::write(master, &keys[written..]) {
            Ok(n) => written += n,
            Err(nix::errno::Errno::EAGAIN) => {}
            Err(e) => return Err(e.into()),
        }
        let want = echo.min(sink.len());
        match nix::unistd::read(master, &mut sink[..want]) {
            Ok(n) => echo -= n,
            Err(nix::errno::Errno::EAGAIN) => {
                wait_for(master, PollFlags::POLLIN, Duration::from_millis(20))?;
            }
            Err(e) => return Err(e.into()),
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::{openpty, OpenptyResult};
    use std::os::fd::AsFd;

    fn pty() -> OpenptyResult {
        use nix::fcntl::{fcntl, FcntlArg, OFlag};
        let pty = openpty(None, None).unwrap();
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).unwrap();
        pty
    }

    fn input(typed: &[u8], eofs: &[u32]) -> TtyInput {
        TtyInput { typed: typed.to_vec(), eofs: eofs.to_vec(), beyond: Vec::new() }
    }

    /// Puts `wanted` in, takes it out, under the default modes with `change`.
    fn round_trip(wanted: &TtyInput, change: impl FnOnce(&mut Termios)) {
        let pty = pty();
        let (master, slave) = (pty.master.as_fd(), pty.slave.as_fd());
        let mut modes = Termios::of(slave).unwrap();
        change(&mut modes);
        put_input(master, wanted, &modes).unwrap();
        assert_eq!(Termios::of(slave).unwrap(), modes);
        assert_eq!(take_input(slave).unwrap(), *wanted);
        assert_eq!(Termios::of(slave).unwrap(), modes);
        assert_eq!(nix::unistd::read(master, &mut [0; 8]), Err(nix::errno::Errno::EAGAIN));
    }

    #[test]
    fn lines_eofs_and_an_unfinished_line_keep_their_form() {
        round_trip(&input(b"one\n\ntwothr", &[4, 8, 8]), |_| {});
        round_trip(&input(b"one\n", &[4]), |_| {});
        round_trip(&input(b"", &[0, 0]), |_| {});
        round_trip(&input(b"\x03\x04\x16\x7f\r\0\xff\n\t\x13", &[]), |_| {});
        round_trip(&input(b"a;b", &[]), |t| t.cc[libc::VEOL] = b';');
    }

    #[test]
    fn uncooked_input_keeps_every_byte() {
        let all: Vec<u8> = (0..=255).cycle().take(4000).collect();
        round_trip(&input(&all, &[]), |t| t.lflag &= !libc::ICANON);
        round_trip(&input(&all, &[]), |t| *t = t.raw());
    }

    #[test]
    fn more_than_the_line_discipline_holds_is_taken_too() {
        let pty = pty();
        let line = [b'x'; 99];
        let text: Vec<u8> = [&line[..], b"\n"].concat().repeat(100);
        assert_eq!(nix::unistd::write(&pty.master, &text), Ok(text.len()));
        let taken = take_input(pty.slave.as_fd()).unwrap();
        assert_eq!([&taken.typed[..], &taken.beyond].concat(), text);
        assert_eq!((taken.typed.len(), taken.eofs.len()), (LINE_BUFFER, 0));
    }

    #[test]
    fn keys_and_input_are_two_forms_of_the_same() {
        let pty = pty();
        let modes = Termios::of(pty.slave.as_fd()).unwrap();
        let typed = input(b"ab\nc", &[0, 2, 4]);
        assert_eq!(typed.to_keys(&modes), b"\x04ab\x04\nc\x04");
        assert_eq!(TtyInput::from_keys(&typed.to_keys(&modes), &modes), typed);
        assert_eq!(TtyInput::from_keys(b"\x04", &modes.raw()), input(b"\x04", &[]));
    }
}
