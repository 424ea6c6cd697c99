//! The guest `ledger` on two hosts, and what must hold of it at every moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::build::{self, Flavour};
use crate::common::gate::Gate;
use crate::common::hosts::{unique, Hosts};
use crate::common::job::{Job, Program, Start};
use crate::common::procs::{self, Done};
use crate::common::{self, until, Who, SOON};

/// Exit codes of `vosrun migrate`.
pub const MOVED: i32 = 0;
pub const REFUSED: i32 = 10;
pub const ABORTED: i32 = 11;
pub const IN_DOUBT: i32 = 12;
pub const LOST: i32 = 13;
pub const TEMPORARY: i32 = 75;

/// How long a move with a dead peer or a cut link may take to say so.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The guest with a word in its command line that no other process has.
pub struct Scene<'h> {
    pub hosts: &'h Hosts,
    pub job: Job<'h>,
    word: String,
    ledger: PathBuf,
}

/// Adds a gate to a command's environment.
fn guard(command: &mut Command, gate: Option<&Gate>) {
    if let Some(gate) = gate {
        let (name, value) = gate.variable();
        command.env(name, value);
    }
}

/// Two hosts; supervisors at the second stop at `gate`.
pub fn two_hosts(who: Who, gate: Option<&Gate>) -> Result<Hosts> {
    ensure!(who == Who::User || common::is_root(), "SKIP needs root");
    Hosts::start_with(who, 2, |index, command| {
        if index == 1 {
            guard(command, gate);
        }
    })
}

impl<'h> Scene<'h> {
    pub fn start(hosts: &'h Hosts, guest: &str, gate: Option<&Gate>) -> Result<Self> {
        let word = format!("scene-{}-{}", std::process::id(), unique());
        let ledger = hosts.fresh_dir("ledger")?.join("ledger");
        let path = build::guest(guest, Flavour::Plain)?;
        let mut program = Program::new(path).args([&word]).env("GUEST_LEDGER", &ledger);
        if let Some(gate) = gate {
            let (name, value) = gate.variable();
            program = program.env(name, value);
        }
        let mut job = Job::start(hosts, Start::Launched, program)?;
        job.await_ready()?;
        Ok(Self { hosts, job, word, ledger })
    }

    /// Starts `vosrun migrate` and does not wait for it.
    pub fn migrate(&self, to: &str) -> Result<Child> {
        let mut command = self.hosts.vosrun(self.job.at);
        command.args(["migrate", &self.job.name, "--to", to, "--json"]);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// Waits for the end of a `vosrun migrate`. Meanwhile no two copies may run.
    pub fn ended(&self, mut child: Child) -> Result<Done> {
        let status = until(PATIENCE, "the end of vosrun migrate", || {
            self.check_single()?;
            Ok(child.try_wait()?)
        });
        if status.is_err() {
            let _ = child.kill();
        }
        let out = child.wait_with_output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let done = Done { status: status?, stdout: text(&out.stdout), stderr: text(&out.stderr) };
        self.check_words(&done)?;
        Ok(done)
    }

    /// A failure has a code, and a sentence that says where the job is.
    fn check_words(&self, done: &Done) -> Result<()> {
        if done.code() == MOVED {
            return Ok(());
        }
        let said = format!("exit {}: {} {}", done.code(), done.stdout, done.stderr);
        let document: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        let other = document["code"] == "VOS-BUSY" && !document["move"].is_null();
        ensure!(!other, "the other move is called refused: {said}");
        let whole = format!("{}{}", document["message"].as_str().unwrap_or(""), done.stderr);
        let names_job = whole.contains(&self.job.name) || whole.contains("ledger");
        ensure!(names_job, "the failure does not name the job: {said}");
        let places =
            ["running on", "runs on", "frozen", "a has given", "will NOT run", "ended", "exited"];
        ensure!(places.iter().any(|p| whole.contains(p)), "nothing says where it runs: {said}");
        if document["exit"].is_number() {
            ensure!(document["exit"] == done.code(), "the document has another code: {said}");
            ensure!(document["code"].as_str().is_some_and(|c| c.starts_with("VOS-")), "{said}");
        }
        Ok(())
    }

    /// Pids of all copies of the guest on this machine, and whether each can run.
    fn copies(&self) -> Vec<(i32, bool)> {
        let own = std::process::id() as i32;
        procs::descendants(own)
            .into_iter()
            .filter(|pid| {
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                let line = procs::command_line(*pid);
                matches!(comm.trim(), "ledger" | "turncoat" | "unmovable" | "mem_big")
                    && line.contains(&self.word)
            })
            .map(|pid| {
                let frozen = |s: &char| matches!(s, 't' | 'T' | 'Z' | 'X');
                (pid, !procs::is_killed(pid) && !procs::thread_states(pid).iter().all(frozen))
            })
            .collect()
    }

    fn running(&self) -> Vec<i32> {
        self.copies().into_iter().filter(|(_, runs)| *runs).map(|(pid, _)| pid).collect()
    }

    /// At most one copy runs, and the ledger has each number once, in order.
    ///
    /// The copies are looked at one after the other, and one that is being restored runs the
    /// supervisor's calls: only copies that are seen to run again and again count.
    fn check_single(&self) -> Result<()> {
        const LOOKS: usize = 4;
        let mut running = self.running();
        for _ in 1..LOOKS {
            if running.len() <= 1 {
                break;
            }
            // A copy that is being built or killed is through with that in less time.
            std::thread::sleep(Duration::from_millis(25));
            let again = self.running();
            running.retain(|pid| again.contains(pid));
        }
        ensure!(running.len() <= 1, "{} copies run at once: {running:?}", running.len());
        self.check_ledger().map(drop)
    }

    /// The number of lines.
    fn check_ledger(&self) -> Result<usize> {
        let Ok(text) = fs::read_to_string(&self.ledger) else { return Ok(0) };
        let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
        for (i, line) in whole.lines().enumerate() {
            ensure!(line == i.to_string(), "line {i} of the ledger is {line:?}");
        }
        Ok(whole.lines().count())
    }

    /// The guest goes on, as one copy.
    pub fn await_running(&self) -> Result<()> {
        let from = self.turns()?;
        until(PATIENCE, "the job runs", || {
            self.check_single()?;
            Ok((self.turns()? > from + 5).then_some(()))
        })
    }

    fn turns(&self) -> Result<u64> {
        let text = fs::read_to_string(self.job.dir.join("status"))?;
        let (count, word) = text.split_once(' ').context("status")?;
        ensure!(word.trim() != "FAIL", "the guest failed: {}", self.job.said());
        Ok(count.parse()?)
    }

    /// No copy runs now or soon.
    pub fn check_frozen(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let running = self.running();
            ensure!(running.is_empty(), "a copy runs while the move is in doubt: {running:?}");
            self.check_ledger()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// State of the job in `vosrun ps` on a host; None when it is not listed.
    pub fn state_on(&self, index: usize) -> Result<Option<String>> {
        let text = self.hosts.run(index, &["ps", "--json"])?.good("ps")?;
        let document: Value = serde_json::from_str(&text)?;
        let jobs = document["jobs"].as_array().context("no jobs in ps --json")?;
        let own = jobs.iter().find(|j| j["name"] == self.job.name.as_str());
        Ok(own.and_then(|j| j["state"].as_str()).map(str::to_owned))
    }

    pub fn await_state(&self, index: usize, wanted: &str) -> Result<()> {
        let mut last = None;
        until(SOON, "", || {
            last = self.state_on(index)?;
            Ok((last.as_deref() == Some(wanted)).then_some(()))
        })
        .map_err(|_| anyhow::anyhow!("the job is {last:?} on host {index}, wanted {wanted}"))
    }

    /// Asks the guest to end; the launcher gives its code.
    pub fn finish(self) -> Result<()> {
        self.check_single()?;
        let ledger = self.ledger.clone();
        let text = self.job.finish()?;
        ensure!(text.contains("EXIT-SUCCESS"), "{text}");
        ensure!(!ledger.exists() || fs::metadata(ledger)?.len() > 0, "an empty ledger");
        Ok(())
    }

    /// The end of a job that was asked to end already.
    pub fn finish_ended(mut self) -> Result<()> {
        let code = self.job.end(SOON)?;
        ensure!(code == 0, "exit code {code}: {}", self.job.said());
        let out = self.job.stdout.text();
        ensure!(out.ends_with("EXIT-SUCCESS\n"), "no EXIT-SUCCESS: {}", self.job.said());
        self.check_ledger()?;
        self.job.await_nothing_left()
    }

    /// The end of a job whose launcher was killed.
    pub fn finish_without_launcher(mut self) -> Result<()> {
        fs::write(self.job.dir.join("stop"), "")?;
        until(SOON, "the end of the guest", || Ok(self.copies().is_empty().then_some(())))?;
        let text = fs::read_to_string(self.job.dir.join("status"))?;
        ensure!(text.trim().ends_with("done"), "the guest ended with {text}");
        let _ = self.job.end(SOON)?;
        self.check_ledger()?;
        self.job.await_nothing_left()
    }
}

pub fn expect(done: &Done, codes: &[i32]) -> Result<()> {
    ensure!(
        codes.contains(&done.code()),
        "exit {} of {codes:?}: {} {}",
        done.code(),
        done.stdout,
        done.stderr
    );
    Ok(())
}

/// SIGKILL to a process given by its number inside one of the hosts.
pub fn kill_on_host(hosts: &Hosts, index: usize, pid: i32) -> Result<()> {
    if hosts.who == Who::User {
        return Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?);
    }
    let mut command = hosts.command(index, Path::new("/bin/kill"));
    procs::run(command.args(["-KILL", &pid.to_string()]), SOON)?.good("kill").map(drop)
}

pub fn supervisor_of(scene: &Scene<'_>) -> Result<i32> {
    let job = scene.job.ps()?;
    let pid = job["supervisor_pid"].as_i64().context("no supervisor_pid in ps --json")?;
    Ok(i32::try_from(pid)?)
}
