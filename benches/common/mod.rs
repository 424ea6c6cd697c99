//! What the benches share: programs built in a scratch folder, bounded runs, paired
//! measurements and their table.
//!
//! Every figure that is judged is a ratio of two measurements taken next to each other in
//! one run, in the order A B B A …, so that a machine whose speed drifts changes both.

#![allow(dead_code, reason = "each bench uses a part of this module")]

pub mod ends;
pub mod net;
pub mod nodes;
pub mod stats;

use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// The binary under test.
pub const VOSRUN: &str = env!("CARGO_BIN_EXE_vosrun");

/// Where the benches' C programs are.
const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/guests");

/// What the command line asks for: words choose rows by a part of their name, `--repeats N`
/// sets how often each is measured.
pub struct Options {
    words: Vec<String>,
    pub repeats: Option<usize>,
}

impl Options {
    /// Reads the arguments; `--bench`, which cargo adds, is passed over.
    ///
    /// # Errors
    /// When `--repeats` has no number.
    pub fn from_args() -> Result<Self> {
        let mut options = Self { words: Vec::new(), repeats: None };
        let mut args = env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => {}
                "--repeats" => {
                    let count = args.next().context("--repeats wants a number")?;
                    options.repeats =
                        Some(count.parse().with_context(|| format!("--repeats {count}"))?);
                }
                _ => options.words.push(arg),
            }
        }
        Ok(options)
    }

    /// Is the row of this name to be measured?
    pub fn chosen(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()))
    }
}

/// A scratch folder for one bench, removed at its end.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// # Errors
    /// When no folder can be made in the system's temporary folder.
    pub fn new() -> Result<Self> {
        tempfile::Builder::new()
            .prefix("vosrun-bench-")
            .tempdir()
            .map(Self)
            .context("cannot make a scratch folder")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Compiles `benches/guests/NAME.c` and returns the program's path.
    ///
    /// # Errors
    /// With the compiler's words when it is missing or refuses.
    pub fn guest(&self, name: &str, flags: &[&str]) -> Result<PathBuf> {
        let program = self.path(name);
        let source = Path::new(GUESTS).join(format!("{name}.c"));
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-pthread", "-o"]).arg(&program).arg(&source).args(flags);
        run(&mut gcc, Duration::from_secs(60))?;
        Ok(program)
    }

    /// Makes a folder in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

/// Runs a command to its end and returns its standard output. One that is not done within
/// `limit` gets SIGTERM, five seconds later SIGKILL.
///
/// # Errors
/// When it cannot be started, runs out of time, or ends with another code than 0.
pub fn run(command: &mut Command, limit: Duration) -> Result<String> {
    let output = output(command, limit)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}: {}", words(command), output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`run`], whatever the exit code.
///
/// # Errors
/// When it cannot be started or runs out of time.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot start {}", words(command)))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).context("pid")?);
    let (done, ended) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || stop_late(pid, &ended, limit));
    let output = child.wait_with_output();
    drop(done);
    if watchdog.join().unwrap_or(true) {
        bail!("{}: not done after {} s", words(command), limit.as_secs());
    }
    output.with_context(|| words(command))
}

/// Waits for the channel's end; true when the time was up before.
fn stop_late(pid: Pid, ended: &mpsc::Receiver<()>, limit: Duration) -> bool {
    if ended.recv_timeout(limit) != Err(mpsc::RecvTimeoutError::Timeout) {
        return false;
    }
    let _ = kill(pid, Signal::SIGTERM);
    if ended.recv_timeout(Duration::from_secs(5)) == Err(mpsc::RecvTimeoutError::Timeout) {
        let _ = kill(pid, Signal::SIGKILL);
    }
    true
}

/// A command as a person would type it, for messages.
pub fn words(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A TCP port of 127.0.0.1 that nothing listened on a moment ago.
///
/// # Errors
/// When the kernel has none left.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a port")?;
    Ok(listener.local_addr().context("cannot find a port")?.port())
}

/// Asks again and again, every 20 ms, until there is an answer.
///
/// # Errors
/// With the last reason when there is none within `limit`.
pub fn retry<T>(limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let end = std::time::Instant::now() + limit;
    loop {
        match ask() {
            Err(_) if std::time::Instant::now() < end => thread::sleep(Duration::from_millis(20)),
            answer => return answer,
        }
    }
}

/// The first number that a program printed.
///
/// # Errors
/// When it printed none.
pub fn number(text: &str) -> Result<f64> {
    text.split_whitespace()
        .find_map(|word| word.parse().ok())
        .with_context(|| format!("no number in what was printed: {text:?}"))
}
