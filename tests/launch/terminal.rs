//! The job keeps the person's own terminal: keys, job control, window size.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::pty::{openpty, Winsize};

use crate::support::*;

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, Winsize);

/// A program in a terminal of its own, as a session leader.
struct Screen {
    master: File,
    seen: String,
    child: Child,
}

impl Screen {
    fn start(mut command: Command) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        command.stdin(pty.slave.try_clone().unwrap());
        command.stdout(pty.slave.try_clone().unwrap()).stderr(pty.slave);
        let lead = || {
            nix::unistd::setsid()?;
            // SAFETY: stdin is the terminal; numbers only.
            match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: only async-signal-safe calls.
        unsafe { command.pre_exec(lead) };
        let child = command.spawn().unwrap();
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Self { master: File::from(pty.master), seen: String::new(), child }
    }

    fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn expect(&mut self, text: &str) {
        expect(&mut self.master, text, &mut self.seen);
    }

    fn code(&mut self) -> Option<i32> {
        self.status().code()
    }

    fn status(&mut self) -> ExitStatus {
        until("the end", || {
            !std::path::Path::new(&format!("/proc/{}/exe", self.child.id())).exists()
        });
        self.child.wait().unwrap()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        kill_session(self.child.id());
        let _ = self.child.wait();
    }
}

/// An interactive shell with job control.
fn shell(host: &Host) -> Screen {
    let mut bash = host.command("bash");
    bash.args(["--norc", "--noprofile", "--noediting", "-i"]).env("PS1", "prompt$ ");
    let vosrun = host.vosrun(&[]).get_program().to_owned();
    bash.env("V", vosrun)
        .env("TERM", "dumb")
        .env("HOME", host.dir.path())
        .current_dir(host.dir.path());
    let mut screen = Screen::start(bash);
    screen.expect("prompt$ ");
    screen
}

#[test]
fn interrupt_key_ends_the_job() {
    for host in everyone().into_iter().map(Host::new) {
        let mut screen = Screen::start(host.launch("sh", &["-c", "echo ready; exec sleep 1000"]));
        screen.expect("ready");
        screen.keys("\x03");
        assert_eq!(screen.status().signal(), Some(libc::SIGINT), "as {:?}", host.user);
    }
}

#[test]
fn interrupt_key_ends_the_shells_loop() {
    let host = Host::new(As::Self_);
    let mut screen = shell(&host);
    screen.keys(
        "for i in 1 2 3; do $V -- sh -c 'echo rea\"\"dy; exec sleep 1000'; echo next; done\n",
    );
    screen.expect("ready");
    screen.keys("\x03");
    screen.expect("prompt$ ");
    screen.keys("echo code-$?\n");
    screen.expect("code-130");
}

#[test]
fn window_size_and_keys_reach_a_handler_once() {
    let host = Host::new(As::Self_);
    let mut screen = Screen::start(host.launch(guest("window"), &[]));
    screen.expect("ready");
    let size = Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: size lives through the call.
    unsafe { set_size(std::os::fd::AsRawFd::as_raw_fd(&screen.master), &size) }.unwrap();
    screen.expect("size 132x50");
    screen.keys("\x03");
    screen.expect("interrupted");
    assert!(!screen.seen.contains("size"), "{}", screen.seen);
    assert_eq!(screen.code(), Some(3));
}

#[test]
fn a_shell_stops_and_continues_the_job() {
    for host in everyone().into_iter().map(Host::new) {
        let mut screen = shell(&host);
        let script = "echo rea\"\"dy; while read a; do echo got-$a; test $a != end || exit 7; done";
        screen.keys(&format!("$V -- sh -c '{script}'\n"));
        screen.expect("ready");
        for round in 0..5 {
            screen.keys("\x1a");
            screen.expect("Stopped");
            screen.expect("prompt$ ");
            screen.keys(&format!("fg\n{round}\n"));
            // An answer shows that the job has the terminal and runs.
            screen.expect(&format!("got-{round}"));
        }
        screen.keys("end\n");
        screen.expect("got-end");
        screen.expect("prompt$ ");
        screen.keys("echo code-$?\n");
        screen.expect("code-7");
    }
}

#[test]
fn a_job_in_the_background_stops_when_it_reads() {
    let host = Host::new(As::Self_);
    let mut screen = shell(&host);
    screen.keys("$V -- sh -c 'read a; echo got-$a' &\n");
    screen.expect("prompt$ ");
    screen.keys("while ! jobs | grep -i stopped; do :; done\n");
    screen.expect("Stopped");
    screen.keys("fg\n");
    screen.expect("read a");
    screen.keys("x2\n");
    screen.expect("got-x2");
}

#[test]
fn a_stopped_job_goes_on_in_the_background() {
    let host = Host::new(As::Self_);
    let mut screen = shell(&host);
    screen.keys("$V -- sh -c 'echo rea\"\"dy; until test -e stop; do :; done; echo do\"\"ne'\n");
    screen.expect("ready");
    screen.keys("\x1a");
    screen.expect("Stopped");
    screen.keys("bg; touch stop; wait; echo all-$?\n");
    screen.expect("done");
    screen.expect("all-0");
}

#[test]
fn a_shell_kills_the_job() {
    let host = Host::new(As::Self_);
    let mut screen = shell(&host);
    screen.keys("$V -- sleep 1000 &\n");
    screen.expect("prompt$ ");
    host.status();
    screen.keys("kill %1; wait %1; echo code-$?\n");
    screen.expect("code-143");
}

#[test]
fn a_stopped_job_still_answers() {
    let host = Host::new(As::Self_);
    let mut screen = shell(&host);
    screen.keys("$V -- sh -c 'echo rea\"\"dy; read a; echo got-$a'\n");
    screen.expect("ready");
    screen.keys("\x1a");
    screen.expect("Stopped");
    for _ in 0..3 {
        let status = host.status();
        assert_eq!(status.state, vosrun::control::JobState::Stopped);
        let supervisor = status.supervisor_pid;
        until("it stops again", || field(supervisor, "State").is_some_and(|s| s.starts_with('T')));
    }
    screen.keys("fg\nx3\n");
    screen.expect("got-x3");
}

#[test]
fn a_shell_under_vosrun_controls_its_own_jobs() {
    let host = Host::new(As::Self_);
    let mut screen = shell(&host);
    screen.keys("$V -- bash --norc --noediting -i\n");
    screen.expect("$V -- bash");
    screen.expect("prompt$ ");
    screen.keys("cat\n");
    screen.expect("cat");
    screen.keys("hello\n");
    screen.expect("hello\r\nhello");
    screen.keys("\x1a");
    screen.expect("Stopped");
    screen.keys("fg\n");
    screen.keys("again\n");
    screen.expect("again");
    screen.expect("again");
    screen.keys("\x03");
    screen.expect("prompt$ ");
    screen.keys("exit 5\n");
    screen.expect("prompt$ ");
    screen.keys("echo code-$?\n");
    screen.expect("code-5");
}
