//! Commands with deadlines, process trees, what /proc says.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag};
use nix::unistd::Pid;

/// A command's end.
#[derive(Debug)]
pub struct Done {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// The exit code; 128+n when ended by signal n.
    pub fn code(&self) -> i32 {
        exit_code(self.status)
    }

    /// What a JSON document of vosrun on stdout says in words, if there is one.
    fn message(&self) -> String {
        let document: serde_json::Value = serde_json::from_str(&self.stdout).unwrap_or_default();
        document["message"].as_str().unwrap_or_default().to_owned()
    }

    /// stdout, when the command ended with 0.
    pub fn good(self, what: &str) -> Result<String> {
        anyhow::ensure!(
            self.code() == 0,
            "{what}: exit {}: {}\n{} {}",
            self.code(),
            self.message(),
            self.stdout.trim(),
            self.stderr.trim()
        );
        Ok(self.stdout)
    }
}

/// The exit code; 128+n when ended by signal n.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Collects a stream while the process runs.
#[derive(Debug, Clone, Default)]
pub struct Collected(Arc<Mutex<Vec<u8>>>);

impl Collected {
    /// Starts a thread that reads `from` to its end.
    pub fn start(mut from: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let own = Self::default();
        let shared = own.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                shared.push(&buffer[..n]);
            }
        });
        (own, thread)
    }

    /// Adds bytes.
    pub fn push(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).extend_from_slice(bytes);
    }

    /// What has come so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// How many bytes have come so far.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).len()
    }

    /// The same as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

/// Runs a command to its end; kills it after `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Result<Done> {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| what.clone())?;
    let (out, out_end) = Collected::start(child.stdout.take().context("no stdout")?);
    let (err, err_end) = Collected::start(child.stderr.take().context("no stderr")?);
    match wait(&mut child, limit, &what) {
        Ok(status) => {
            // A daemon that the command left behind may hold a pipe open: do not wait for it.
            let _ = super::until(Duration::from_secs(5), "", || {
                Ok((out_end.is_finished() && err_end.is_finished()).then_some(()))
            });
            Ok(Done { status, stdout: out.text(), stderr: err.text() })
        }
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(e.context(format!("{} {}", out.text(), err.text())))
        }
    }
}

/// Runs a command to its end, as [`run`], while something else is done; gives what came of both.
pub fn run_beside<T>(
    command: &mut Command,
    limit: Duration,
    meanwhile: impl FnOnce() -> T,
) -> (Result<Done>, T) {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(command, limit));
        let other = meanwhile();
        (running.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a panic"))), other)
    })
}

/// Waits for a child's end.
pub fn wait(child: &mut Child, limit: Duration, what: &str) -> Result<ExitStatus> {
    super::until(limit, &format!("the end of {what}"), || Ok(child.try_wait()?))
}

/// Parent and state of every process, from proc_pid_stat(5).
fn all() -> HashMap<i32, (i32, char)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| Some((pid, stat(pid)?)))
        .collect()
}

fn stat(pid: i32) -> Option<(i32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

/// All living descendants of `root` (not itself), nearest first.
pub fn descendants(root: i32) -> Vec<i32> {
    let all = all();
    let mut found = Vec::new();
    let mut seen = HashSet::from([root]);
    let mut level = vec![root];
    while !level.is_empty() {
        level = all
            .iter()
            .filter(|(pid, (parent, _))| level.contains(parent) && seen.insert(**pid))
            .map(|(pid, _)| *pid)
            .collect();
        found.extend(level.iter().filter(|pid| !matches!(all[*pid].1, 'Z' | 'X')));
    }
    found
}

/// Living children of `parent`.
pub fn children(parent: i32) -> Vec<i32> {
    let living = |(other, state): (i32, char)| other == parent && !matches!(state, 'Z' | 'X');
    all().into_iter().filter(|(_, stat)| living(*stat)).map(|(pid, _)| pid).collect()
}

/// Kills `root` and all its descendants. `root` goes last: it is the subreaper that orphans
/// go to, so none can escape meanwhile.
pub fn kill_tree(root: i32) {
    kill_below(root);
    let _ = kill(Pid::from_raw(root), Signal::SIGKILL);
}

/// Kills all descendants of `root`, again and again until none lives.
pub fn kill_below(root: i32) {
    for _ in 0..200 {
        let living = descendants(root);
        if living.is_empty() {
            return;
        }
        for pid in living {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Takes the ends of processes that have come to this one, their subreaper, as they would come to
/// pid 1: else they stay, and whoever looks through /proc looks at them as well. Those of `vosrun`
/// commands are left to who has started them.
pub fn reap_orphans() {
    let own = std::process::id() as i32;
    let ended = all().into_iter().filter(|(_, stat)| *stat == (own, 'Z')).map(|(pid, _)| pid);
    for pid in ended {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim() != "vosrun" {
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// State letter of a process, None when it is gone.
pub fn state(pid: i32) -> Option<char> {
    stat(pid).map(|(_, state)| state)
}

/// Has SIGKILL been sent to it? It runs no instruction of its own any more.
pub fn is_killed(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let kill = 1 << (nix::libc::SIGKILL - 1);
    ["SigPnd:", "ShdPnd:"].iter().any(|name| pending(name).is_some_and(|set| set & kill != 0))
}

/// State letters of all threads of a process.
pub fn thread_states(pid: i32) -> Vec<char> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|t| fs::read_to_string(t.path().join("stat")).ok())
        .filter_map(|text| text.rsplit_once(") ")?.1.chars().next())
        .collect()
}

/// The command line, words joined by blanks; empty when the process is gone.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}
