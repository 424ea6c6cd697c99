//! Two nodes on loopback with state folders of their own, for `doctor` and `demo`.
//! Dropping the pair ends everything that was started and removes the folders.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{bail, Context};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use super::children::{end, output, wait_end, wait_for, wait_patiently};
use super::error::Fail;
use super::raw::interrupted;
use super::select::{survey, Life, Seen};
use crate::control::JobState;
use crate::state::StateDir;

/// How long each step of the set-up may take.
const LIMIT: Duration = Duration::from_secs(15);

/// The two nodes.
#[derive(Debug)]
pub struct Pair {
    sides: [Side; 2],
    binary: PathBuf,
    /// Holds both state folders; removed last.
    _dir: tempfile::TempDir,
}

/// One node.
#[derive(Debug)]
pub struct Side {
    pub name: &'static str,
    pub state: StateDir,
    node: Child,
    log: PathBuf,
}

impl Pair {
    /// Starts `left` and `right` and lets them join.
    ///
    /// # Errors
    /// When a node does not come up; the end of its log is part of the error.
    pub fn start() -> anyhow::Result<Self> {
        let binary = super::children::own_binary().context("cannot find the vosrun binary")?;
        let dir = tempfile::Builder::new().prefix("vosrun-").tempdir()?;
        let left = Side::start(&binary, dir.path(), "left", None)?;
        let token = left.ask(&binary, &["token"]).with_context(|| left.log_end())?;
        let right = Side::start(&binary, dir.path(), "right", Some(token.trim()))?;
        let mut pair = Self { sides: [left, right], binary, _dir: dir };
        pair.wait_joined()?;
        Ok(pair)
    }

    /// Each must see the other ready.
    fn wait_joined(&mut self) -> anyhow::Result<()> {
        let binary = &self.binary;
        let [left, right] = &mut self.sides;
        let joined = wait_patiently(LIMIT, || match right.node.try_wait() {
            Ok(None) => (left.sees(binary, right) && right.sees(binary, left)).then_some(true),
            _ => Some(false),
        });
        match joined {
            Some(true) => Ok(()),
            _ if interrupted() => Err(Fail::new(130, "interrupted").into()),
            Some(false) => bail!("node right has ended\n{}", right.log_end()),
            None => bail!("the two nodes have not joined\n{}", right.log_end()),
        }
    }

    /// Side 0 is `left`, 1 is `right`.
    pub fn side(&self, i: usize) -> &Side {
        &self.sides[i % 2]
    }

    /// A command that runs `vosrun HIDDEN` as a job of `left`.
    pub fn job_command(&self, name: &str, hidden: &str) -> Command {
        job_command(&self.binary, &self.sides[0].state, name, hidden)
    }
}

/// A command that runs `vosrun HIDDEN` as a job of the node with this state folder.
pub fn job_command(binary: &Path, state: &StateDir, name: &str, hidden: &str) -> Command {
    let mut command = vosrun(binary, state);
    command.args(["--name", name, "--"]).arg(binary).arg(hidden);
    command
}

fn vosrun(binary: &Path, state: &StateDir) -> Command {
    let mut command = Command::new(binary);
    command.arg("--state-dir").arg(state.path());
    command
}

impl Side {
    fn start(
        binary: &Path,
        dir: &Path,
        name: &'static str,
        join: Option<&str>,
    ) -> anyhow::Result<Self> {
        let state = StateDir::open(&dir.join(name))?;
        let log = dir.join(format!("{name}.log"));
        let address = free_port()?;
        let mut command = vosrun(binary, &state);
        command.args(["node", "--name", name, "--listen", &address.to_string()]);
        if let Some(token) = join {
            command.args(["--join", token]);
        }
        let file = File::create(&log)?;
        // A group of its own: ^C at the terminal is for us, who end it in order.
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let node = command.spawn().context("cannot start vosrun node")?;
        Ok(Self { name, state, node, log })
    }

    /// Is the other node in our list and does it answer?
    fn sees(&self, binary: &Path, other: &Self) -> bool {
        let Ok(text) = self.ask(binary, &["nodes", "--json"]) else { return false };
        let document: Value = serde_json::from_str(&text).unwrap_or_default();
        let ready = |n: &Value| n["name"] == other.name && n["state"] == "ready";
        document["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(ready))
    }

    fn ask(&self, binary: &Path, what: &[&str]) -> anyhow::Result<String> {
        let words = what.join(" ");
        let out = output(vosrun(binary, &self.state).args(what), LIMIT)
            .with_context(|| format!("vosrun {words} on {}", self.name))?;
        if !out.status.success() {
            bail!(
                "vosrun {words} on {}: {}",
                self.name,
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The last lines of the node's log.
    pub fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        // The greeting says nothing about what went wrong.
        let lines: Vec<&str> = text.lines().filter(|l| !l.contains(" listening on ")).collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Waits for the job that runs on this side.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn running_job(&self) -> anyhow::Result<Seen> {
        running_job(&self.state, LIMIT, |_| true)
            .with_context(|| format!("no job has come up on {}\n{}", self.name, self.log_end()))
    }

    /// Kills the programs that run on this side and waits for their supervisors to end.
    fn end_jobs(&self) {
        let all = survey(&self.state).unwrap_or_default();
        all.iter().flat_map(|seen| pids(seen, self.name)).for_each(kill_now);
        let ended = wait_for(Duration::from_secs(3), || {
            let left = survey(&self.state).unwrap_or_default();
            left.iter().all(|s| matches!(s.life, Life::Lost | Life::Away)).then_some(())
        });
        if ended.is_none() {
            survey(&self.state).unwrap_or_default().iter().for_each(kill_supervisor);
        }
    }
}

/// Waits until a job of this state folder runs here and `fits`.
pub fn running_job(
    state: &StateDir,
    limit: Duration,
    fits: impl Fn(&Seen) -> bool,
) -> Option<Seen> {
    let runs = |s: &Seen| matches!(&s.life, Life::Live(j) if j.state == JobState::Running);
    wait_patiently(limit, || survey(state).ok()?.into_iter().find(|s| runs(s) && fits(s)))
}

/// Host pids of a job's processes on a node.
fn pids(seen: &Seen, node: &str) -> Vec<i32> {
    match &seen.life {
        Life::Live(s) => {
            s.processes.iter().filter(|p| p.node == node).map(|p| p.host_pid).collect()
        }
        Life::Orphaned(pid) => vec![*pid],
        _ => Vec::new(),
    }
}

fn kill_supervisor(seen: &Seen) {
    if let Life::Live(status) = &seen.life {
        kill_now(status.supervisor_pid);
    }
}

fn kill_now(pid: i32) {
    if pid > 1 {
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// A port that was free a moment ago.
fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.node.id() as i32), Signal::SIGTERM);
        if !matches!(wait_end(&mut self.node, Duration::from_secs(2)), Ok(Some(_))) {
            end(&mut self.node);
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.sides.iter().for_each(Side::end_jobs);
    }
}
