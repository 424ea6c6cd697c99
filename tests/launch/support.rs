//! Harness: guests compiled once, a state folder per test, deadlines instead of sleeps.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{channel, Receiver};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vosrun::control::{self, JobStatus, Reply, Request};
use vosrun::state::StateDir;

/// Nothing here takes longer, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Where guests and a world-readable copy of the binary are.
fn bin() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::Builder::new().prefix("vosrun-launch").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_vosrun"), dir.path().join("vosrun")).unwrap();
        dir
    });
    dir.path()
}

/// Compiles `tests/guests_launch/NAME.c`; `None`, with a printed reason, when the compiler
/// cannot.
pub fn guest_by(compiler: &str, name: &str, flags: &[&str]) -> Option<PathBuf> {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = LOCK.lock().unwrap_or_else(|e| e.into_inner());
    let out = bin().join(format!("{name}{}", flags.concat())).with_extension(compiler);
    if out.exists() {
        return Some(out);
    }
    let source = Path::new("tests/guests_launch").join(name).with_extension("c");
    let mut made = Command::new(compiler);
    made.args(["-O1", "-pthread", "-o"]).arg(&out).arg(source);
    match made.args(flags).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Some(out),
        other => {
            println!("skipped: {compiler} {flags:?} {name}: {other:?}");
            None
        }
    }
}

/// A guest made by the system's C compiler, which the tests need.
pub fn guest(name: &str) -> PathBuf {
    guest_by("cc", name, &[]).expect("cc works")
}

/// Who runs vosrun in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    Self_,
    /// An ordinary user without a name.
    User,
}

/// The users to test with: an ordinary one as well where this process may become it.
pub fn everyone() -> Vec<As> {
    match nix::unistd::geteuid().is_root() {
        true => vec![As::Self_, As::User],
        false => vec![As::Self_],
    }
}

/// A state folder and the user it belongs to.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub user: As,
}

impl Host {
    pub fn new(user: As) -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        if user == As::User {
            chown(dir.path(), Some(1234), Some(1234)).unwrap();
            chown(dir.path().join("state"), Some(1234), Some(1234)).unwrap();
        }
        Self { dir, user }
    }

    /// A command run as this host's user.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        if self.user == As::User {
            command.uid(1234).gid(1234);
        }
        command.env("VOSRUN_STATE_DIR", self.dir.path().join("state")).env("VOSRUN_LOG", "debug");
        command
    }

    pub fn vosrun(&self, args: &[&str]) -> Command {
        let mut command = self.command(bin().join("vosrun"));
        command.args(args);
        command
    }

    /// `vosrun -- PROGRAM`
    pub fn launch(&self, program: impl AsRef<Path>, args: &[&str]) -> Command {
        let mut command = self.vosrun(&["--"]);
        command.arg(program.as_ref()).args(args);
        command
    }

    pub fn state(&self) -> StateDir {
        StateDir::open(&self.dir.path().join("state")).unwrap()
    }

    /// The status of the only job.
    pub fn status(&self) -> JobStatus {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            let jobs = self.state().jobs().unwrap();
            let Some((_, job)) = jobs.first() else { continue };
            match control::ask(&job.socket(), &Request::Status, |_| {}) {
                Ok(Reply::Status(status)) if !status.processes.is_empty() => return *status,
                _ => std::thread::yield_now(),
            }
        }
        panic!("no job answers");
    }
}

/// Runs to the end, at most for the deadline.
pub fn output(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(DEADLINE) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            kill(pid, libc::SIGKILL);
            panic!("{command:?} does not end");
        }
    }
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn kill(pid: u32, signal: i32) {
    kill_any(pid as i32, signal);
}

pub fn kill_any(pid: i32, signal: i32) {
    vosrun::tracer::raw::kill(pid, signal).unwrap();
}

/// A child whose output is read line by line with a deadline; killed when dropped.
pub struct Talk {
    pub child: Child,
    lines: Receiver<String>,
}

impl Talk {
    /// Starts with stdin and stdout piped, in a process group of its own.
    pub fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line in time")
    }

    /// A line that has come already.
    pub fn line_now(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// The output has ended.
    pub fn at_end(&self) -> bool {
        self.lines.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Kills vosrun, not the job.
    pub fn kill(&mut self) {
        let stdin = self.child.stdin.take();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child.stdin = stdin;
    }

    /// Closes stdin and gives the exit code.
    pub fn code(&mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("does not end");
    }
}

impl Drop for Talk {
    /// The job would outlive vosrun: the whole group has to go.
    fn drop(&mut self) {
        let _ = vosrun::tracer::raw::kill(-(self.pid() as i32), libc::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Kills every process of a session.
pub fn kill_session(leader: u32) {
    let all = procfs::process::all_processes().into_iter().flatten().flatten();
    let stats = all.filter_map(|p| p.stat().ok());
    for stat in stats.filter(|s| s.session == leader as i32) {
        let _ = vosrun::tracer::raw::kill(stat.pid, libc::SIGKILL);
    }
}

fn lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Waits until `condition` holds.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A field of /proc/PID/status.
pub fn field(pid: i32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.map(|l| l.trim().to_owned())
}

/// Reads from `from` until `wanted` has come, or panics at the deadline.
pub fn expect(from: &mut impl Read, wanted: &str, buffer: &mut String) {
    let deadline = Instant::now() + DEADLINE;
    while !buffer.contains(wanted) {
        assert!(Instant::now() < deadline, "{wanted:?} not in {buffer:?}");
        let mut bytes = [0; 4096];
        match from.read(&mut bytes) {
            Ok(n) if n > 0 => buffer.push_str(&String::from_utf8_lossy(&bytes[..n])),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => panic!("{other:?} before {wanted:?} in {buffer:?}"),
        }
    }
    let end = buffer.find(wanted).unwrap() + wanted.len();
    buffer.drain(..end);
}
