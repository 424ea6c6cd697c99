//! Two nodes, on loopback or each on a host of its own, and a job that goes to and fro between them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use super::net::Net;
use super::{free_port, output, retry, run, words, Scratch, VOSRUN};

/// Two nodes, `a` and `b`, that know each other. Dropping them ends them.
pub struct Nodes {
    states: [PathBuf; 2],
    /// Words before all that runs on a node, and its address.
    places: [(Vec<String>, String); 2],
    daemons: Vec<Child>,
    /// No single command takes longer.
    limit: Duration,
}

impl Nodes {
    /// # Errors
    /// With a node's log when it does not listen.
    pub fn start(scratch: &Scratch, limit: Duration) -> Result<Self> {
        let loopback = || (Vec::new(), Ipv4Addr::LOCALHOST.to_string());
        Self::start_in(scratch, limit, [loopback(), loopback()])
    }

    /// As [`Nodes::start`], each on a host.
    ///
    /// # Errors
    /// As [`Nodes::start`].
    pub fn start_on(scratch: &Scratch, limit: Duration, nets: [&Net; 2]) -> Result<Self> {
        Self::start_in(scratch, limit, nets.map(|net| (net.enter(), net.address.clone())))
    }

    fn start_in(
        scratch: &Scratch,
        limit: Duration,
        places: [(Vec<String>, String); 2],
    ) -> Result<Self> {
        let states = [scratch.dir("a")?, scratch.dir("b")?];
        let mut nodes = Self { states, places, daemons: Vec::new(), limit };
        nodes.daemon(0, "a", None)?;
        let token = retry(Duration::from_secs(10), || {
            let text = run(nodes.vosrun(0).arg("token"), nodes.limit)?;
            ensure!(!text.trim().is_empty(), "vosrun token printed nothing");
            Ok(text.trim().to_owned())
        })?;
        nodes.daemon(1, "b", Some(&token))?;
        Ok(nodes)
    }

    /// `vosrun --state-dir STATE` of one node, the rest still to be added.
    fn vosrun(&self, node: usize) -> Command {
        let mut words = self.places[node].0.iter().map(String::as_str).chain([VOSRUN]);
        let mut command = Command::new(words.next().unwrap_or(VOSRUN));
        command.args(words).arg("--state-dir").arg(&self.states[node]);
        command
    }

    /// Starts a node and waits until it listens.
    fn daemon(&mut self, node: usize, name: &str, token: Option<&str>) -> Result<()> {
        let listen = format!("{}:{}", self.places[node].1, free_port()?);
        let mut command = self.vosrun(node);
        command.args(["node", "--name", name, "--listen", &listen]);
        command.args(token.into_iter().flat_map(|token| ["--join", token]));
        let log = self.states[node].join("bench.log");
        let stderr = fs::File::create(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = command.spawn().with_context(|| format!("cannot start {}", words(&command)))?;
        self.daemons.push(child);
        retry(Duration::from_secs(10), || self.listens(node, &listen))
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())
            .with_context(|| format!("node {name} does not listen on {listen}"))?;
        Ok(())
    }

    /// Asks the node itself where its port cannot be reached from here.
    fn listens(&self, node: usize, listen: &str) -> Result<()> {
        if self.places[node].0.is_empty() {
            TcpStream::connect(listen)?;
        } else {
            let nodes = run(self.vosrun(node).args(["nodes", "--json"]), self.limit)?;
            ensure!(nodes.contains("\"ready\""), "it is not ready");
        }
        Ok(())
    }

    /// `vosrun --name NAME -- PROGRAM` on node `a`; arguments of the program may follow.
    pub fn launch(&self, name: &str, program: &Path) -> Command {
        let mut command = self.vosrun(0);
        command.args(["--name", name, "--"]).arg(program);
        command
    }

    /// The bindings of a job's TCP connections, asked for on the node where it is.
    ///
    /// # Errors
    /// When `inspect` fails.
    pub fn bindings(&self, job: &str, node: usize) -> Result<Vec<String>> {
        let text = run(self.vosrun(node).args(["inspect", job, "--json"]), self.limit)?;
        let document: Value = serde_json::from_str(&text)?;
        let all = document["network"].as_array().context("no network")?;
        let bindings = all.iter().filter_map(|one| one["binding"].as_str());
        Ok(bindings.map(str::to_owned).collect())
    }

    /// Moves a job from one node (0 is `a`) to the other; the report of `migrate --json`.
    ///
    /// # Errors
    /// With what `migrate` says when the job has not moved.
    pub fn migrate(&self, job: &str, from: usize) -> Result<Value> {
        let mut command = self.vosrun(from);
        let to = ["b", "a"][from];
        let ended = output(command.args(["migrate", job, "--to", to, "--json"]), self.limit)?;
        let errors = String::from_utf8_lossy(&ended.stderr);
        let failure = || format!("{}: {}: {}", words(&command), ended.status, errors.trim());
        let report: Value = serde_json::from_slice(&ended.stdout).with_context(failure)?;
        ensure!(ended.status.success() && report["result"] == "moved", failure());
        Ok(report)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = terminate(daemon);
        }
    }
}

/// A program under vosrun that was started on node `a`: it prints `ready` when it is set up, and
/// at SIGTERM checks itself and prints `intact`. Dropping it ends it.
pub struct Job {
    pub name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
    program: PathBuf,
}

impl Job {
    /// Starts the program and waits until it is set up.
    ///
    /// # Errors
    /// When it cannot be started or does not say that it is ready.
    pub fn start(nodes: &Nodes, name: &str, program: &Path, args: &[&str]) -> Result<Self> {
        let mut command = nodes.launch(name, program);
        command.args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", words(&command)))?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let (send, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|l| send.send(l)));
        let job = Self { name: name.to_owned(), child, lines, program: program.to_owned() };
        job.says("ready").with_context(|| words(&command))?;
        Ok(job)
    }

    /// Waits for the job's next line, which must begin so.
    fn says(&self, expected: &str) -> Result<()> {
        let line = self.lines.recv_timeout(Duration::from_secs(30));
        let line = line.with_context(|| format!("the job does not say {expected:?}"))?;
        ensure!(line.starts_with(expected), "the job says {line:?}, not {expected:?}");
        Ok(())
    }

    /// The vosrun that was started.
    ///
    /// # Errors
    /// Never on Linux.
    pub fn pid(&self) -> Result<i32> {
        i32::try_from(self.child.id()).context("pid")
    }

    /// The process that traces the program.
    ///
    /// # Errors
    /// When the program is not to be found.
    pub fn supervisor(&self) -> Result<i32> {
        let runs_it = |pid: &i32| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.program)
        };
        let pids = fs::read_dir("/proc").context("/proc")?.flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        tracer(pids.find(runs_it).context("the program is not to be found in /proc")?)
    }

    /// Ends the program by a SIGTERM to the vosrun that was started, wherever it has moved,
    /// and asks for its verdict on itself.
    ///
    /// # Errors
    /// When it does not end, or says that it is damaged.
    pub fn end(mut self) -> Result<()> {
        terminate(&mut self.child)?;
        self.says("intact")
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = terminate(&mut self.child);
    }
}

/// SIGTERM, then, if that does not help, SIGKILL.
fn terminate(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    let ended =
        retry(Duration::from_secs(30), || child.try_wait()?.context("not ended by SIGTERM"));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ended.map(drop)
}

/// `TracerPid` of proc_pid_status(5).
///
/// # Errors
/// When the process is gone or has no tracer.
pub fn tracer(pid: i32) -> Result<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    let tracer = line.and_then(|t| t.trim().parse().ok()).context("no TracerPid")?;
    ensure!(tracer != 0, "process {pid} has no tracer");
    Ok(tracer)
}
