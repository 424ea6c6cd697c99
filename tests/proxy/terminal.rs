//! The terminal of the home, with a person at its master side.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::poll::PollFlags;
use nix::pty::openpty;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use vosrun::proxy::term::{wait_for, Termios, WindowSize};
use vosrun::proxy::{HomeEnd, JobControl};

use crate::world::{read_now, write_now, World};

const TTY: u32 = 2;
const SIZE: WindowSize = WindowSize { rows: 24, cols: 80, xpixel: 0, ypixel: 0 };

/// A real terminal: the person's side, and the side that the shell's children have.
struct Desk {
    person: OwnedFd,
    tty: OwnedFd,
    screen: Vec<u8>,
}

impl Desk {
    fn new() -> Self {
        let pty = openpty(None, None).unwrap();
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        SIZE.set(pty.slave.as_fd()).unwrap();
        Self { person: pty.master, tty: pty.slave, screen: Vec::new() }
    }

    fn end(&self) -> Vec<(u32, HomeEnd)> {
        let fd = self.tty.try_clone().unwrap();
        vec![(TTY, HomeEnd::Terminal(fd, JobControl::Own))]
    }

    fn types(&self, keys: &[u8]) {
        assert_eq!(write_now(&self.person, keys), Ok(keys.len()));
    }

    fn look(&mut self) -> &[u8] {
        self.screen.extend(read_now(&self.person).unwrap_or_default());
        &self.screen
    }

    fn sees(&mut self, text: &str) -> bool {
        String::from_utf8_lossy(self.look()).contains(text)
    }

    fn modes(&self) -> Termios {
        Termios::of(self.tty.as_fd()).unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Termios)) {
        let mut modes = self.modes();
        change(&mut modes);
        modes.set(self.tty.as_fd()).unwrap();
    }
}

/// Runs a program with the job's terminal as its controlling terminal.
fn spawn(world: &World, program: &[&str]) -> Child {
    let end = || Stdio::from(world.ends[&TTY].try_clone().unwrap());
    let mut command = Command::new("setsid");
    command.arg("--ctty").args(program);
    command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
}

/// Python is at hand wherever the tests run, and knows terminals.
fn python(world: &World, script: &str) -> Child {
    spawn(world, &["python3", "-u", "-c", script])
}

fn exit_of(world: &mut World, child: &mut Child) -> ExitStatus {
    let mut status = None;
    world.until("the end of the program", |_| {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn world_at(desk: &Desk) -> World {
    World::new(desk.end())
}

#[test]
fn keys_and_output_pass_and_the_job_s_pty_interprets_them() {
    let mut desk = Desk::new();
    let before = desk.modes();
    let mut world = world_at(&desk);
    let mut child = spawn(&world, &["cat"]);
    desk.types(b"helo\x7flo\r");
    world.until("echo and answer", |_| desk.sees("helo\x08 \x08lo\r\nhello\r\n"));
    desk.types(b"\x04");
    assert!(exit_of(&mut world, &mut child).success());
    world.job_ended();
    assert_eq!(desk.modes(), before);
}

#[test]
fn control_c_is_a_sigint_to_the_job() {
    let mut desk = Desk::new();
    let mut world = world_at(&desk);
    let mut child = spawn(&world, &["cat"]);
    desk.types(b"x\r");
    world.until("cat runs", |_| desk.sees("x\r\nx\r\n"));
    desk.types(b"\x03");
    assert_eq!(exit_of(&mut world, &mut child).signal(), Some(libc::SIGINT));
    world.until("the echo", |_| desk.sees("^C"));
}

fn resize(world: &mut World, desk: &Desk, rows: u16, cols: u16) {
    WindowSize { rows, cols, ..SIZE }.set(desk.tty.as_fd()).unwrap();
    world.at_home(|home, out| home.on_winch(out));
}

#[test]
fn a_new_window_size_reaches_the_job() {
    let mut desk = Desk::new();
    let mut world = world_at(&desk);
    let mut child = python(
        &world,
        "import os, signal\n\
         size = lambda *_: print(*os.get_terminal_size())\n\
         signal.signal(signal.SIGWINCH, size)\n\
         size()\n\
         while True: signal.pause()",
    );
    world.until("the first size", |_| desk.sees("80 24"));
    resize(&mut world, &desk, 50, 132);
    world.until("the new size", |_| desk.sees("132 50"));
    resize(&mut world, &desk, 10, 20);
    world.connect();
    world.until("a size sent over a cut", |_| desk.sees("20 10"));
    desk.types(b"\x03");
    assert!(!exit_of(&mut world, &mut child).success());
}

#[test]
fn a_job_may_switch_between_raw_and_cooked() {
    let mut desk = Desk::new();
    let mut world = world_at(&desk);
    let mut child = python(
        &world,
        "import tty, termios, os\n\
         old = termios.tcgetattr(0)\n\
         tty.setraw(0)\n\
         print('raw', end='')\n\
         key = os.read(0, 1)\n\
         termios.tcsetattr(0, termios.TCSANOW, old)\n\
         print('cooked')\n\
         print(key, input())",
    );
    world.until("raw mode", |_| desk.sees("raw"));
    desk.types(b"\x03");
    world.until("cooked mode", |_| desk.sees("cooked"));
    desk.types(b"line\r");
    world.until("the answer", |_| desk.sees("b'\\x03' line"));
    assert!(exit_of(&mut world, &mut child).success());
}

#[test]
fn modes_that_the_job_leaves_stay_and_come_after_its_output() {
    let mut desk = Desk::new();
    let mut world = world_at(&desk);
    world.cut_every = 3;
    let mut child = spawn(&world, &["sh", "-c", "stty -echo erase x; echo bye"]);
    assert!(exit_of(&mut world, &mut child).success());
    world.job_ended();
    assert!(desk.sees("bye\r\n"));
    let modes = desk.modes();
    assert_eq!((modes.lflag & libc::ECHO, modes.cc[libc::VERASE]), (0, b'x'));
    assert!(modes.canonical());
}

#[test]
fn the_job_gets_sighup_when_the_terminal_goes() {
    let mut desk = Desk::new();
    let mut world = world_at(&desk);
    let mut child = spawn(&world, &["cat"]);
    desk.types(b"x\r");
    world.until("cat runs", |_| desk.sees("x\r\nx\r\n"));
    world.ends.clear();
    drop(desk);
    assert_eq!(exit_of(&mut world, &mut child).signal(), Some(libc::SIGHUP));
}

#[test]
fn suspend_gives_the_terminal_back_and_resume_takes_it_again() {
    let desk = Desk::new();
    let cooked = desk.modes();
    let mut world = world_at(&desk);
    assert!(!desk.modes().canonical());
    world.home.suspend();
    assert_eq!(desk.modes(), cooked);
    desk.types(b"for the shell\r");
    for _ in 0..5 {
        world.turn(Duration::ZERO);
    }
    assert_eq!(read_now(&desk.tty), Some(b"for the shell\n".to_vec()));
    world.at_home(|home, out| home.resume(out));
    assert!(!desk.modes().canonical());
    desk.types(b"for the job\r");
    assert_eq!(world.job_gets(TTY, 12), b"for the job\n");
}

/// Type-ahead at the moment of leaving: lines stay lines, an unfinished one can still be
/// edited, eofs stay, and nothing is echoed twice.
#[test]
fn what_was_typed_before_the_job_left_follows_it() {
    let mut desk = Desk::new();
    desk.types(b"one\rtwo\x04paX");
    let mut screen = String::new();
    while !screen.contains("paX") {
        screen = String::from_utf8_lossy(desk.look()).into_owned();
    }
    let mut world = world_at(&desk);
    assert_eq!(world.job_gets(TTY, 4), b"one\n");
    assert_eq!(world.job_gets(TTY, 3), b"two");
    assert_eq!(world.job_reads(TTY), None);
    desk.types(b"\x7frt\r");
    assert_eq!(world.job_gets(TTY, 5), b"part\n");
    world.until("the echo", |_| desk.sees("one\r\ntwopaX\x08 \x08rt\r\n"));
}

#[test]
fn unread_lines_survive_moves_and_aborted_moves() {
    let mut desk = Desk::new();
    let mut world = world_at(&desk);
    desk.types(b"one\rtwo\x04\x04pa");
    world.until("the echo", |_| desk.sees("one\r\ntwopa"));
    world.relocate();
    world.abort_move();
    world.relocate();
    world.abort_move();
    assert_eq!(world.job_reads(TTY), Some(b"one\n".to_vec()));
    assert_eq!(world.job_reads(TTY), Some(b"two".to_vec()));
    assert_eq!(world.job_reads(TTY), Some(Vec::new()));
    assert_eq!(world.job_reads(TTY), None);
    desk.types(b"rt\r");
    assert_eq!(world.job_gets(TTY, 5), b"part\n");
    world.until("no second echo", |_| desk.sees("one\r\ntwopart\r\n"));
}

#[test]
fn an_eof_as_the_last_key_survives_moves() {
    let mut desk = Desk::new();
    let mut world = world_at(&desk);
    desk.types(b"ab\x04");
    world.until("the echo", |_| desk.sees("ab"));
    world.relocate();
    world.abort_move();
    assert_eq!(world.job_gets(TTY, 2), b"ab");
    assert_eq!(world.job_reads(TTY), None);
    desk.types(b"\x04");
    world.until("eof", |w| w.job_reads(TTY).is_some());
    assert_eq!(String::from_utf8_lossy(desk.look()), "ab");
}

#[test]
fn modes_and_size_of_the_job_s_terminal_move_with_it() {
    let desk = Desk::new();
    let mut world = world_at(&desk);
    let mut modes = Termios::of(world.ends[&TTY].as_fd()).unwrap();
    modes.lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
    modes.cc[libc::VMIN] = 3;
    modes.set(world.ends[&TTY].as_fd()).unwrap();
    desk.types(b"\x03\x04\r");
    world.until("the keys", |w| readable(&w.ends[&TTY]));
    world.relocate();
    let tty = world.ends[&TTY].as_fd();
    assert_eq!(Termios::of(tty).unwrap(), modes);
    assert_eq!(WindowSize::of(tty).unwrap(), SIZE);
    assert_eq!(world.job_gets(TTY, 3), b"\x03\x04\n");
}

fn readable(tty: &OwnedFd) -> bool {
    wait_for(tty.as_fd(), PollFlags::POLLIN, Duration::ZERO).unwrap().contains(PollFlags::POLLIN)
}

#[test]
fn raw_streams_in_both_directions_with_moves_arrive_exactly() {
    let mut desk = Desk::new();
    desk.change(|modes| {
        modes.lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        modes.iflag = 0;
        modes.oflag &= !libc::OPOST;
    });
    for seed in 1..6 {
        let mut world = world_at(&desk);
        world.seed.0 = seed * 104_729;
        world.cut_every = 20;
        let typed = world.seed.bytes(100_000);
        let shown = world.seed.bytes(400_000);
        let (mut keys, mut output) = (0, 0);
        let (mut got, mut moves) = (Vec::new(), 0);
        desk.screen.clear();
        world.until("both streams", |world| {
            let piece = world.seed.below(700) as usize;
            let piece = &typed[keys..typed.len().min(keys + piece)];
            keys += write_now(&desk.person, piece).unwrap();
            let piece = &shown[output..shown.len().min(output + 4000)];
            output += write_now(&world.ends[&TTY], piece).unwrap();
            got.extend(world.job_reads(TTY).unwrap_or_default());
            desk.look();
            if world.seed.below(20) == 0 {
                moves += 1;
                if moves % 3 == 0 {
                    world.abort_move();
                } else {
                    world.relocate();
                }
            }
            got.len() >= typed.len() && desk.screen.len() >= shown.len()
        });
        assert!(got == typed, "seed {seed}: keys");
        assert!(desk.screen == shown, "seed {seed}: output");
        world.job_ended();
        assert!(moves >= 3);
    }
}

/// A shell with job control puts a program in the background of its terminal; the relay of
/// that program's terminal must not touch it until `fg`.
#[test]
fn in_the_background_the_terminal_is_left_alone() {
    let mut desk = Desk::new();
    let end = || Stdio::from(desk.tty.try_clone().unwrap());
    let script = "tail -f /dev/null & echo pid $! .; read line; fg";
    let mut shell = Command::new("setsid")
        .args(["--ctty", "sh", "-m", "-c", script])
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    let mut pid = None;
    while pid.is_none() {
        let screen = String::from_utf8_lossy(desk.look()).into_owned();
        let number = screen.split("pid ").nth(1).and_then(|rest| rest.split_once(" ."));
        pid = number.and_then(|(pid, _)| pid.parse().ok());
    }
    let pid = pid.unwrap();
    let fd = desk.tty.try_clone().unwrap();
    let cooked = desk.modes();
    let mut world = World::new(vec![(TTY, HomeEnd::Terminal(fd, JobControl::Of(pid)))]);
    assert_eq!(desk.modes(), cooked);
    assert!(world.home.tick().is_some());
    world.at_home(|home, out| home.on_tick(out));
    assert_eq!(desk.modes(), cooked);
    desk.types(b"go\r");
    world.until("the foreground", |world| {
        world.at_home(|home, out| home.on_tick(out));
        world.home.tick().is_none()
    });
    assert!(!desk.modes().canonical());
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    shell.wait().unwrap();
}

#[test]
fn dropping_the_relays_leaves_no_terminal_raw() {
    let desk = Desk::new();
    let cooked = desk.modes();
    let world = world_at(&desk);
    assert!(!desk.modes().canonical());
    drop(world);
    assert_eq!(desk.modes(), cooked);
}
