//! A moved dropbear under the sessions of OpenSSH's client. Names come from nss_wrapper(1): the
//! user need not have one here, and nobody's home is touched.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{chown, PermissionsExt};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::Signal;

use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::procs::{self, Collected};
use super::common::pty::Terminal;
use super::common::{is_root, until, ORDINARY, SOON};
use super::servers::{client, free_port, move_under, serve, shut_down, verdict};
use super::{move_on, LONG};

/// What server and clients share.
struct Place {
    dir: PathBuf,
    port: u16,
    ssh: PathBuf,
}

fn wrapper() -> Result<()> {
    let folders = fs::read_dir("/usr/lib")?.flatten();
    let there = { folders }.any(|folder| folder.path().join("libnss_wrapper.so").exists());
    ensure!(there, "SKIP libnss_wrapper.so is not installed");
    Ok(())
}

impl Place {
    /// Keys, a home, and the names of its user and of root.
    fn make(hosts: &Hosts) -> Result<Self> {
        let (ssh, keygen, convert) =
            (needs("ssh")?, needs("ssh-keygen")?, needs("dropbearconvert")?);
        wrapper()?;
        let (dir, port) = (hosts.fresh_dir("ssh")?, free_port()?);
        let own = Self { dir, port, ssh };
        let uid = if is_root() { ORDINARY } else { nix::unistd::geteuid().as_raw() };
        let home = own.file("home");
        let names =
            format!("root:x:0:0::/:/bin/sh\nguest:x:{uid}:{uid}::{}:/bin/sh\n", home.display());
        fs::write(own.file("passwd"), names)?;
        fs::write(own.file("group"), format!("root:x:0:\nguest:x:{uid}:\n"))?;
        for name in ["key", "host"] {
            let mut make = Command::new(&keygen);
            make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(own.file(name));
            procs::run(&mut make, LONG)?.good("ssh-keygen")?;
        }
        let mut made = Command::new(convert);
        made.args(["openssh", "dropbear"]).args([own.file("host"), own.file("server")]);
        procs::run(&mut made, LONG)?.good("dropbearconvert")?;
        let known = format!("[127.0.0.1]:{port} {}", fs::read_to_string(own.file("host.pub"))?);
        fs::write(own.file("known"), known)?;
        fs::create_dir_all(home.join(".ssh"))?;
        fs::copy(own.file("key.pub"), home.join(".ssh/authorized_keys"))?;
        for file in [home.clone(), home.join(".ssh"), home.join(".ssh/authorized_keys")] {
            fs::set_permissions(&file, fs::Permissions::from_mode(0o700))?;
            if is_root() {
                chown(&file, Some(uid), Some(uid))?;
            }
        }
        hosts.give(&own.file("key"))?;
        hosts.give(&own.file("server"))?;
        Ok(own)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn with_names(&self, program: Program) -> Program {
        let program = program.env("LD_PRELOAD", "libnss_wrapper.so");
        let program = program.env("NSS_WRAPPER_PASSWD", self.file("passwd"));
        program.env("NSS_WRAPPER_GROUP", self.file("group"))
    }

    fn server<'h>(&self, hosts: &'h Hosts, start: Start) -> Result<Job<'h>> {
        let file = |name: &str| self.file(name).display().to_string();
        let address = format!("127.0.0.1:{}", self.port);
        let words = ["-F", "-E", "-r", &file("server"), "-P", &file("pid"), "-p", &address];
        serve(
            hosts,
            start,
            self.with_names(Program::new(needs("dropbear")?).args(words)),
            self.port,
        )
    }

    fn session(&self, words: &[&str]) -> Program {
        let file = |name: &str| self.file(name).display().to_string();
        let options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "GlobalKnownHostsFile=none"];
        let options = options.map(String::from).into_iter();
        let options = options.chain([format!("UserKnownHostsFile={}", file("known"))]);
        let options = options.flat_map(|option| ["-o".to_owned(), option]);
        let program = Program::new(&self.ssh).args(["-F", "none", "-i", &file("key")]);
        let program = program.args(options).args(["-p".to_owned(), self.port.to_string()]);
        self.with_names(program.args(["guest@127.0.0.1"]).args(words))
    }
}

/// Writes numbered lines, a part of which is under way at each time, until it is told to stop;
/// gives what it has written.
fn write_lines(mut to: ChildStdin, back: &Collected, stop: &AtomicBool) -> Result<Vec<u8>> {
    const UNDER_WAY: usize = 30_000;
    const MOST: usize = 200_000_000;
    let mut written = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) || written.len() > MOST {
            break;
        }
        let line = format!("line {number} {}\n", "x".repeat(number * 7919 % 2000));
        to.write_all(line.as_bytes())?;
        written.extend_from_slice(line.as_bytes());
        until(LONG, "lines that come back", || {
            let free = written.len() < back.count() + UNDER_WAY;
            Ok((free || stop.load(Ordering::Relaxed)).then_some(()))
        })?;
    }
    Ok(written)
}

/// Lines come back from a remote cat, while other sessions come and go.
pub fn lines(hosts: &Hosts, start: Start) -> Result<()> {
    let place = Place::make(hosts)?;
    let mut job = place.server(hosts, start)?;
    let mut cat = place.session(&["cat"]);
    cat.stdin = Stdio::piped();
    let mut cat = client(hosts, cat)?;
    let (to, back) = (cat.stdin().context("no stdin")?, cat.stdout.clone());
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writing = scope.spawn(|| write_lines(to, &back, &stop));
        let moved = move_under(&mut job, &mut [&mut cat], 5, |_, _| Ok(back.count() as u64));
        stop.store(true, Ordering::Relaxed);
        moved?;
        writing.join().map_err(|_| anyhow::anyhow!("a panic"))?
    })?;
    verdict(&mut cat)?;
    ensure!(back.bytes() == written, "{} of {} bytes are back", back.count(), written.len());
    let mut short = client(hosts, place.session(&["echo $USER; exit 7"]))?;
    let code = short.end(LONG)?;
    ensure!(code == 7 && short.stdout.text() == "guest\n", "code {code}: {}", short.said());
    shut_down(job, Signal::SIGTERM, 1)
}

/// A session with a terminal of the moved server: modes, size, ^C.
pub fn terminal(hosts: &Hosts, start: Start) -> Result<()> {
    let place = Place::make(hosts)?;
    let mut job = place.server(hosts, start)?;
    let (mut session, mut tty) =
        Job::in_terminal(hosts, Start::Native, place.session(&["-tt", "PS1=ready: exec sh"]))?;
    tty.expect("ready:")?;
    if start == Start::Attached {
        job.attach()?;
    }
    for turn in 0..5u16 {
        let used = use_terminal(&mut tty, turn, |_| move_on(&mut job));
        used.with_context(|| format!("turn {turn}: {} {}", session.said(), job.said()))?;
    }
    // The session ends by itself, perhaps after the server.
    tty.type_in("exit 7\r")?;
    job.signal(Signal::SIGTERM)?;
    let code = session.end(LONG)?;
    ensure!(code == 7, "exit code {code}: {}", tty.shown());
    let code = job.end(SOON)?;
    ensure!(code == 1, "exit code {code}: {}", job.said());
    job.await_nothing_left()
}

fn use_terminal(
    tty: &mut Terminal,
    turn: u16,
    mut move_on: impl FnMut(&mut Terminal) -> Result<()>,
) -> Result<()> {
    tty.type_in("n=$((n + 1)); echo turn''-$n; seq -s, 1 20000 | tail -c 12; cat\r")?;
    tty.expect(&format!("turn-{}\r\n", turn + 1))?;
    move_on(tty)?;
    tty.expect("19999,20000\r\n")?;
    tty.type_in(&format!("word{turn}\r"))?;
    tty.expect(&format!("word{turn}\r\nword{turn}\r\n"))?;
    tty.resize(30, 100 + turn)?;
    tty.type_in("\x03")?;
    tty.expect("ready:")?;
    tty.type_in("stty size\r")?;
    tty.expect(&format!("30 {}\r\n", 100 + turn))?;
    tty.expect("ready:").map(drop)
}

/// The server ends while a session is open, which goes on without it as long as vosrun does: a moment.
pub fn outlived(hosts: &Hosts, start: Start) -> Result<()> {
    let place = Place::make(hosts)?;
    let mut job = place.server(hosts, start)?;
    let mut cat = place.session(&["cat"]);
    cat.stdin = Stdio::piped();
    let mut cat = client(hosts, cat)?;
    let mut to = cat.stdin().context("no stdin")?;
    let mut echo = |line: &str, cat: &Job<'_>| -> Result<()> {
        let want = format!("{}{line}\n", cat.stdout.text());
        to.write_all(format!("{line}\n").as_bytes())?;
        until(LONG, line, || Ok((cat.stdout.text() == want).then_some(())))
            .with_context(|| cat.said())
    };
    echo("first", &cat)?;
    if start == Start::Attached {
        job.attach()?;
    }
    move_on(&mut job)?;
    echo("second", &cat)?;
    job.signal(Signal::SIGTERM)?;
    let wanted = if start == Start::Native {
        echo("third", &cat)?;
        drop(to);
        0
    } else {
        ensure!(job.end(SOON)? == 1, "{}", job.said());
        255
    };
    let code = cat.end(SOON)?;
    ensure!(code == wanted, "exit code {code}: {}", cat.said());
    ensure!(job.end(SOON)? == 1, "{}", job.said());
    job.await_nothing_left()
}
