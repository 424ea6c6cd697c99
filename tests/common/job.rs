//! One program on the hosts: launched, attached or without vosrun.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use super::hosts::{unique, Hosts};
use super::procs::{self, Collected, Done};
use super::pty::Terminal;
use super::{until, SOON};

/// How long a move may take.
const MOVING: Duration = Duration::from_secs(60);

/// How a job comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Without vosrun: what the guest does by itself.
    Native,
    /// `vosrun -- PROGRAM`, to be moved.
    Launched,
    /// `vosrun -- PROGRAM`, left where it is.
    Still,
    /// Started natively, then `vosrun --attach PID --detach`.
    Attached,
}

/// A program with its arguments and surroundings.
#[derive(Debug)]
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Words of a command that starts it.
    pub via: &'static [&'static str],
    pub stdin: Stdio,
    /// None: a pipe that the test reads.
    pub stdout: Option<Stdio>,
    /// Index of the host it is started on.
    pub home: usize,
}

impl Program {
    /// The program with no arguments and no input.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let (args, env) = (Vec::new(), Vec::new());
        Self { path, args, env, via: &[], stdin: Stdio::null(), stdout: None, home: 0 }
    }

    /// With these arguments.
    pub fn args<S: ToString>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.to_string()));
        self
    }

    /// Started by these words, which stand before it.
    pub fn via(self, via: &'static [&'static str]) -> Self {
        Self { via, ..self }
    }

    /// Started on another host than the first.
    pub fn at(self, home: usize) -> Self {
        Self { home, ..self }
    }

    /// With a variable more in its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.env.push((name.into(), value.as_ref().display().to_string()));
        self
    }
}

/// A running job. Dropping it kills what is left of its program.
#[derive(Debug)]
pub struct Job<'h> {
    /// It moves without namespaces.
    pub translate: bool,
    pub hosts: &'h Hosts,
    pub name: String,
    pub start: Start,
    /// Index of the host it runs on.
    pub at: usize,
    /// `vosrun`, or the program itself when it was not launched by it.
    pub child: Child,
    pub dir: PathBuf,
    pub stdout: Collected,
    pub stderr: Collected,
    readers: Vec<JoinHandle<()>>,
    /// Sum of the pauses so far, milliseconds.
    pub pauses_ms: f64,
    /// All processes of the worker before the job started.
    before: Vec<i32>,
    /// Programs that have the program as their child.
    wrappers: Vec<&'static str>,
}

/// What `migrate --json` said.
#[derive(Debug)]
pub struct Moved {
    pub pause_ms: f64,
    pub document: Value,
}

impl<'h> Job<'h> {
    /// Starts `program` on its host. Does not wait for anything but an attach.
    pub fn start(hosts: &'h Hosts, start: Start, program: Program) -> Result<Self> {
        let mut job = Self::start_early(hosts, start, program)?;
        if start == Start::Attached {
            job.await_ready()?;
            job.attach()?;
        }
        Ok(job)
    }

    /// As [`Job::start`], but the caller attaches when it is time to.
    pub fn start_early(hosts: &'h Hosts, start: Start, program: Program) -> Result<Self> {
        Self::start_on(hosts, start, program, None)
    }

    /// Starts `program` as the leader of a session with a terminal of its own. The caller
    /// attaches.
    pub fn in_terminal(
        hosts: &'h Hosts,
        start: Start,
        program: Program,
    ) -> Result<(Self, Terminal)> {
        let (terminal, slave) = Terminal::open(hosts.who)?;
        Ok((Self::start_on(hosts, start, program, Some(slave))?, terminal))
    }

    fn start_on(
        hosts: &'h Hosts,
        start: Start,
        mut program: Program,
        tty: Option<File>,
    ) -> Result<Self> {
        let label = program.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = format!("{label}-{}", unique());
        let dir = hosts.fresh_dir(&label)?;
        let before = procs::descendants(std::process::id() as i32);
        let via = if tty.is_some() { &["setsid", "--ctty", "--wait"] } else { program.via };
        let wrappers = via.first().into_iter().copied().chain(["nsenter"]).collect();
        let mut command = match start {
            Start::Launched | Start::Still => {
                let mut command = hosts.vosrun_in(program.home, &dir, via);
                command.args(["--name", &name, "--"]).arg(&program.path);
                command
            }
            _ => hosts.command_in(program.home, &dir, via, &program.path),
        };
        command.args(&program.args).envs(program.env.drain(..));
        command.env("GUEST_STATUS", dir.join("status")).env("GUEST_STOP", dir.join("stop"));
        command.env("GUEST_PAUSES", dir.join("pauses"));
        match tty {
            Some(tty) => {
                command.stdin(tty.try_clone()?).stdout(tty.try_clone()?).stderr(tty);
            }
            None => {
                let stdout = program.stdout.take().unwrap_or_else(Stdio::piped);
                command.stdin(program.stdin).stdout(stdout).stderr(Stdio::piped());
            }
        }
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        // The command keeps this side's copies of the program's descriptors.
        drop(command);
        let mut readers = Vec::new();
        let stdout = child.stdout.take().map(|from| collect(from, &mut readers));
        let stderr = child.stderr.take().map(|from| collect(from, &mut readers));
        let (stdout, stderr) = (stdout.unwrap_or_default(), stderr.unwrap_or_default());
        Ok(Self {
            translate: false,
            hosts,
            name,
            start,
            at: program.home,
            child,
            dir,
            stdout,
            stderr,
            readers,
            pauses_ms: 0.0,
            before,
            wrappers,
        })
    }

    /// Takes the pipe to the program's stdin, when it has one.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Adopts the program, which was started natively.
    pub fn attach(&self) -> Result<()> {
        let pid = self.program_pid().context("the program to attach to")?;
        let inside = self.pid_on_host(pid)?;
        let args = ["--attach", &inside.to_string(), "--detach", "--name", &self.name];
        self.hosts.run(self.at, &args)?.good("attach")?;
        Ok(())
    }

    /// The pid of the program itself when it was not launched by vosrun, as seen from here.
    pub fn program_pid(&self) -> Option<i32> {
        // With namespaces the child is nsenter, which has forked; `via` may have forked as well.
        let comm = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let mut pid = self.child.id() as i32;
        while self.wrappers.contains(&comm(pid).trim_end()) {
            pid = procs::children(pid).first().copied()?;
        }
        Some(pid)
    }

    /// `vosrun --state-dir …` as typed on the first host.
    pub fn vosrun_at_home(&self) -> String {
        let state = self.hosts.hosts[0].state_dir.display();
        format!("{} --state-dir {state}", self.hosts.vosrun_path().display())
    }

    /// The pid that a person at home sends the job's signals to: the program's own or its
    /// stand-in's, or that of the vosrun that has launched it.
    pub fn pid_at_home(&self) -> Result<Pid> {
        let pid = match (self.start, self.hosts.who) {
            (Start::Launched | Start::Still, super::Who::User) => Some(self.child.id() as i32),
            (Start::Launched | Start::Still, super::Who::Root) => {
                procs::children(self.child.id() as i32).first().copied()
            }
            _ => self.program_pid(),
        };
        Ok(Pid::from_raw(pid.context("the program is gone")?))
    }

    /// Sends the job a signal as a person at home does.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid_at_home()?, signal)?)
    }

    /// The number that a process has in the innermost pid namespace.
    pub fn pid_on_host(&self, pid: i32) -> Result<i32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|l| l.starts_with("NSpid:")).context("no NSpid")?;
        Ok(line.split_whitespace().last().context("no pid")?.parse()?)
    }

    fn status(&self) -> Option<(u64, String)> {
        let text = fs::read_to_string(self.dir.join("status")).ok()?;
        let (count, word) = text.lines().next()?.split_once(' ')?;
        Some((count.parse().ok()?, word.trim().to_owned()))
    }

    /// Why it has failed: the second line of its status file.
    fn why(&self) -> String {
        let text = fs::read_to_string(self.dir.join("status")).unwrap_or_default();
        text.lines().nth(1).unwrap_or_default().trim_end_matches('\0').to_owned()
    }

    /// How many checks the guest has made; fails when it has failed or is gone.
    pub fn progress(&mut self) -> Result<u64> {
        let status = self.status();
        if let Some((_, word)) = &status {
            ensure!(word != "FAIL", "the guest failed: {} {}", self.why(), self.said());
        }
        if let Some(end) = self.child.try_wait()? {
            self.await_outputs();
            match procs::exit_code(end) {
                77 => bail!("{}", self.stdout.text().trim()),
                code => bail!("ended too early with {code}: {}", self.said()),
            }
        }
        Ok(status.map_or(0, |(count, _)| count))
    }

    /// Waits until the guest has its state set up.
    pub fn await_ready(&mut self) -> Result<()> {
        until(SOON, "READY", || Ok((self.progress()? >= 1).then_some(())))
            .with_context(|| self.said())
    }

    /// Waits until the guest has made `more` further checks.
    pub fn await_progress(&mut self, more: u64) -> Result<()> {
        let from = self.progress()?;
        until(SOON, "progress of the guest", || Ok((self.progress()? >= from + more).then_some(())))
            .with_context(|| self.said())
    }

    /// `vosrun migrate` with whatever end it has.
    pub fn try_migrate(&self, to: usize) -> Result<Done> {
        procs::run(&mut self.migration(to), MOVING)
    }

    fn migration(&self, to: usize) -> Command {
        let mut command = self.hosts.vosrun(self.at);
        command.args(["migrate", &self.name, "--to", self.hosts.hosts[to].name, "--json"]);
        command.args(self.translate.then_some("--translate"));
        command
    }

    /// Moves two jobs at the same time, this one first, and checks both answers.
    pub fn migrate_both(&mut self, to: usize, other: &mut Job<'_>, other_to: usize) -> Result<()> {
        let (mut first, mut second) = (self.migration(to), other.migration(other_to));
        let (first, second) =
            procs::run_beside(&mut first, MOVING, || procs::run(&mut second, MOVING));
        self.moved(to, first?)?;
        other.moved(other_to, second?).map(drop)
    }

    /// Moves the job and checks the answer.
    pub fn migrate(&mut self, to: usize) -> Result<Moved> {
        let done = self.try_migrate(to)?;
        self.moved(to, done)
    }

    /// As [`Job::migrate`]; `None` if it cannot be done now, and the guest is where it was (exit
    /// code 75).
    pub fn migrate_if_possible(&mut self, to: usize) -> Result<Option<Moved>> {
        const NOT_NOW: i32 = 75;
        let done = self.try_migrate(to)?;
        match done.code() {
            NOT_NOW => Ok(None),
            _ => self.moved(to, done).map(Some),
        }
    }

    fn moved(&mut self, to: usize, done: Done) -> Result<Moved> {
        let route = format!("{}→{}", self.hosts.hosts[self.at].name, self.hosts.hosts[to].name);
        if done.code() != 0 {
            let _ = self.progress()?;
        }
        let text = done.good(&format!("move {route}"))?;
        let document: Value = serde_json::from_str(&text)
            .with_context(|| format!("migrate --json printed: {text}"))?;
        ensure!(document["result"] == "moved", "result of the move: {text}");
        let pause_ms = document["pause_ms"].as_f64().context("no pause_ms")?;
        let processes = document["processes"].as_array().context("no processes")?;
        ensure!(!processes.is_empty(), "no processes in {text}");
        let there = |p: &Value| p["node"] == self.hosts.hosts[to].name;
        ensure!(processes.iter().all(there), "not all processes are at the target: {text}");
        self.at = to;
        self.excuse(pause_ms)?;
        Ok(Moved { pause_ms, document })
    }

    /// The guest may find itself later than planned by so much more.
    pub fn excuse(&mut self, ms: f64) -> Result<()> {
        self.pauses_ms += ms;
        let part = self.dir.join("pauses.part");
        fs::write(&part, format!("{}\n", self.pauses_ms.ceil()))?;
        Ok(fs::rename(part, self.dir.join("pauses"))?)
    }

    /// Asks the guest to end and checks that it does so well.
    pub fn finish(mut self) -> Result<String> {
        let out = self.end_well()?;
        self.await_nothing_left()?;
        Ok(out)
    }

    /// As [`Job::finish`], while other jobs that were started later may go on.
    pub fn end_well(&mut self) -> Result<String> {
        self.progress()?;
        fs::write(self.dir.join("stop"), "")?;
        let code = self.end(SOON)?;
        let said = self.said();
        ensure!(code == 0, "exit code {code}: {said}");
        let out = self.stdout.text();
        ensure!(out.ends_with("EXIT-SUCCESS\n"), "no EXIT-SUCCESS: {said}");
        Ok(out)
    }

    /// Waits for the end of the program; gives its exit code.
    pub fn end(&mut self, limit: Duration) -> Result<i32> {
        let what = format!("the job {}", self.name);
        let status = procs::wait(&mut self.child, limit, &what).with_context(|| self.said())?;
        ensure!(self.await_outputs(), "an output pipe stays open");
        Ok(procs::exit_code(status))
    }

    /// The supervisor of a job that is away, as seen from here.
    pub fn supervisor(&self) -> Result<i32> {
        let all = procs::descendants(std::process::id() as i32);
        let away = all.into_iter().find(|pid| procs::command_line(*pid).contains("__receive"));
        away.context("no supervisor away from home")
    }

    /// Waits until all output of an ended program is read; false when a pipe stays open.
    fn await_outputs(&self) -> bool {
        let all = || self.readers.iter().all(JoinHandle::is_finished);
        until(SOON, "", || Ok(all().then_some(()))).is_ok()
    }

    /// No process of the job, no supervisor and no home agent may be left.
    pub fn await_nothing_left(&self) -> Result<()> {
        let mut left = Vec::new();
        let clean = until(SOON, "nothing left", || {
            left = procs::descendants(std::process::id() as i32);
            left.retain(|pid| !self.before.contains(pid));
            Ok(left.is_empty().then_some(()))
        });
        let names: Vec<_> = left.iter().map(|pid| procs::command_line(*pid)).collect();
        clean.with_context(|| format!("left behind: {}", names.join("; ")))
    }

    /// What the program has printed, cut short.
    pub fn said(&self) -> String {
        let cut = |text: String| {
            let from = text.len().saturating_sub(1500);
            let from = (from..).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            text[from..].trim().to_owned()
        };
        format!("stdout: {} stderr: {}", cut(self.stdout.text()), cut(self.stderr.text()))
    }

    /// The document of `ps --json` for this job, as the host it runs on gives it.
    pub fn ps(&self) -> Result<Value> {
        let text = self.hosts.run(self.at, &["ps", "--json"])?.good("ps")?;
        let document: Value = serde_json::from_str(&text)?;
        let jobs = document["jobs"].as_array().context("no jobs in ps --json")?;
        let own = jobs.iter().find(|j| j["name"] == self.name.as_str());
        own.cloned().with_context(|| format!("{} is not in {text}: {}", self.name, self.said()))
    }

    /// The pid of the program on the host where it runs (without namespaces: as seen from here).
    pub fn host_pid(&self) -> Result<i32> {
        let pid = self.ps()?["processes"][0]["host_pid"].as_i64().context("no host_pid")?;
        Ok(i32::try_from(pid)?)
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.dir.join("stop"), "");
        for pid in procs::descendants(std::process::id() as i32) {
            if !self.before.contains(&pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(
    from: impl std::io::Read + Send + 'static,
    readers: &mut Vec<JoinHandle<()>>,
) -> Collected {
    let (collected, reader) = Collected::start(from);
    readers.push(reader);
    collected
}

/// Is the program there? For tests that need one of Debian's packages.
pub fn needs(program: &str) -> Result<PathBuf> {
    super::build::find_program(program).with_context(|| format!("SKIP {program} is not installed"))
}
