//! How long a move stops a small program, and what a supervisor weighs:
//! `cargo bench --bench moves`.
//!
//! Two nodes on loopback; a program that holds memory goes to and fro between them. The
//! unit is one fork + exec + wait of `/bin/true`, measured after every move. See
//! benches/README.md.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use common::stats::{conclude, median, quantile, spread, Wanted};
use common::{free_port, number, output, retry, run, words, Options, Scratch, VOSRUN};

/// No single command takes longer.
const LIMIT: Duration = Duration::from_secs(30);

/// One row.
struct Guest {
    name: &'static str,
    /// MiB of touched memory beyond what any C program has.
    size: u32,
    /// Threads that sleep, besides the first.
    threads: u32,
    wanted: Wanted,
}

const GUESTS: &[Guest] = &[
    Guest { name: "small", size: 1, threads: 0, wanted: Wanted::AtMost(10.0) },
    Guest { name: "16 MiB resident", size: 14, threads: 0, wanted: Wanted::AtMost(10.0) },
    Guest { name: "100 threads", size: 1, threads: 100, wanted: Wanted::Nothing },
    Guest { name: "1000 threads", size: 1, threads: 1000, wanted: Wanted::Nothing },
];

fn main() -> ExitCode {
    let mut failures = Vec::new();
    if let Err(e) = bench(&mut failures) {
        failures.push(("every row".into(), e));
    }
    conclude(&failures)
}

fn bench(failures: &mut Vec<(String, anyhow::Error)>) -> Result<()> {
    let options = Options::from_args()?;
    let scratch = Scratch::new()?;
    let unit = scratch.guest("spawn", &[])?;
    let holder = scratch.guest("holder", &[])?;
    let nodes = Nodes::start(&scratch)?;
    println!(
        "{:<18}{:>4}{:>10}{:>10}{:>10}{:>12}  {:<22}wanted",
        "pause of a move", "n", "median ms", "p10", "p90", "spawn ms", "pause / spawn"
    );
    let mut weights = Vec::new();
    for guest in GUESTS.iter().filter(|guest| options.chosen(guest.name)) {
        let moves = options.repeats.unwrap_or(24);
        match measure(&nodes, &holder, &unit, guest, moves) {
            Ok(series) => {
                series.print(guest);
                weights.push((guest.name, series.weights));
            }
            Err(e) => failures.push((guest.name.to_owned(), e)),
        }
    }
    for (name, weights) in weights {
        print_weights(name, &weights);
    }
    Ok(())
}

/// Moves one job `moves` times, with an unmeasured move to and fro before.
fn measure(
    nodes: &Nodes,
    holder: &Path,
    unit: &Path,
    guest: &Guest,
    moves: usize,
) -> Result<Series> {
    let job = Job::start(nodes, holder, guest)?;
    let mut series = Series::default();
    series.weigh("supervisor of a job that never moved", job.supervisor()?)?;
    // The nodes may not know each other yet: the first move is tried again.
    let first = retry(Duration::from_secs(10), || nodes.migrate(&job.name, 0))?;
    series.weigh("home agent", job.pid()?)?;
    series.weigh("supervisor at the target", supervisor_of(&first)?)?;
    nodes.migrate(&job.name, 1)?;
    for turn in 0..moves.max(1).next_multiple_of(2) {
        let report = nodes.migrate(&job.name, turn % 2)?;
        let spawn = number(&run(Command::new(unit).arg("11"), LIMIT)?)? / 1e3;
        series.add(&report, spawn)?;
    }
    job.end()?;
    Ok(series)
}

/// What the moves of one guest took, milliseconds.
#[derive(Default)]
struct Series {
    pauses: Vec<f64>,
    spawns: Vec<f64>,
    parts: BTreeMap<String, Vec<f64>>,
    totals: Vec<f64>,
    /// Private memory of vosrun's processes, KiB.
    weights: Vec<(&'static str, u64)>,
}

impl Series {
    fn add(&mut self, report: &Value, spawn: f64) -> Result<()> {
        let pause = report["pause_ms"].as_f64().context("migrate --json gave no pause_ms")?;
        self.pauses.push(pause);
        self.spawns.push(spawn);
        self.totals.extend(report["total_ms"].as_f64());
        for (name, took) in report["pause_parts_ms"].as_object().into_iter().flatten() {
            self.parts.entry(name.clone()).or_default().extend(took.as_f64());
        }
        Ok(())
    }

    fn weigh(&mut self, what: &'static str, pid: i32) -> Result<()> {
        self.weights.push((what, private_kib(pid)?));
        Ok(())
    }

    fn print(&self, guest: &Guest) {
        let ratios: Vec<f64> = self.pauses.iter().zip(&self.spawns).map(|(p, s)| p / s).collect();
        println!(
            "{:<18}{:>4}{:>10.2}{:>10.2}{:>10.2}{:>12.3}  {:<22}{}",
            guest.name,
            self.pauses.len(),
            median(&self.pauses),
            quantile(&self.pauses, 0.1),
            quantile(&self.pauses, 0.9),
            median(&self.spawns),
            spread(&ratios, 1),
            guest.wanted.verdict(median(&ratios))
        );
        for (part, took) in &self.parts {
            println!("  {part:<20}{:>10.2}{:>22.2}", median(took), quantile(took, 0.9));
        }
        if !self.totals.is_empty() {
            let worst = quantile(&self.totals, 0.9);
            println!("  {:<20}{:>10.2}{worst:>22.2}", "whole move", median(&self.totals));
        }
    }
}

fn print_weights(name: &str, weights: &[(&str, u64)]) {
    for (what, kib) in weights {
        let mib = *kib as f64 / 1024.0;
        let verdict = Wanted::AtMost(8.0).verdict(mib);
        println!("{:<58}{mib:>10.2}  MiB private{:>10}{verdict}", format!("{what} ({name})"), "");
    }
}

/// Two nodes, `a` and `b`, that know each other. Dropping them ends them.
struct Nodes {
    states: [PathBuf; 2],
    daemons: Vec<Child>,
}

impl Nodes {
    fn start(scratch: &Scratch) -> Result<Self> {
        let states = [scratch.dir("a")?, scratch.dir("b")?];
        let mut nodes = Self { states, daemons: Vec::new() };
        nodes.daemon(0, "a", None)?;
        let token = retry(Duration::from_secs(10), || {
            let text = run(nodes.vosrun(0).arg("token"), LIMIT)?;
            ensure!(!text.trim().is_empty(), "vosrun token printed nothing");
            Ok(text.trim().to_owned())
        })?;
        nodes.daemon(1, "b", Some(&token))?;
        Ok(nodes)
    }

    /// `vosrun --state-dir STATE` of one node, the rest still to be added.
    fn vosrun(&self, node: usize) -> Command {
        let mut command = Command::new(VOSRUN);
        command.arg("--state-dir").arg(&self.states[node]);
        command
    }

    /// Starts a node and waits until it listens.
    fn daemon(&mut self, node: usize, name: &str, token: Option<&str>) -> Result<()> {
        let port = free_port()?;
        let mut command = self.vosrun(node);
        command.args(["node", "--name", name, "--listen", &format!("127.0.0.1:{port}")]);
        command.args(token.into_iter().flat_map(|token| ["--join", token]));
        let log = self.states[node].join("bench.log");
        let stderr = fs::File::create(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = command.spawn().with_context(|| format!("cannot start {}", words(&command)))?;
        self.daemons.push(child);
        retry(Duration::from_secs(10), || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?))
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())
            .with_context(|| format!("node {name} does not listen on 127.0.0.1:{port}"))?;
        Ok(())
    }

    /// Moves a job from one node (0 is `a`) to the other; the report of `migrate --json`.
    fn migrate(&self, job: &str, from: usize) -> Result<Value> {
        let mut command = self.vosrun(from);
        let to = ["b", "a"][from];
        let ended = output(command.args(["migrate", job, "--to", to, "--json"]), LIMIT)?;
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

/// A holder under vosrun, started on node `a`. Dropping it ends it.
struct Job {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
    guest: PathBuf,
}

impl Job {
    /// Starts the holder and waits until its memory is filled.
    fn start(nodes: &Nodes, holder: &Path, guest: &Guest) -> Result<Self> {
        let name = format!("holder{}-{}", guest.size, guest.threads);
        let mut command = nodes.vosrun(0);
        command.args(["--name", &name, "--"]).arg(holder);
        command.args([guest.size.to_string(), guest.threads.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", words(&command)))?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let (send, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|l| send.send(l)));
        let job = Self { name, child, lines, guest: holder.to_owned() };
        job.says("ready").with_context(|| words(&command))?;
        Ok(job)
    }

    /// Waits for the job's next line, which must begin so.
    fn says(&self, expected: &str) -> Result<()> {
        let line = self.lines.recv_timeout(Duration::from_secs(10));
        let line = line.with_context(|| format!("the job does not say {expected:?}"))?;
        ensure!(line.starts_with(expected), "the job says {line:?}, not {expected:?}");
        Ok(())
    }

    fn pid(&self) -> Result<i32> {
        i32::try_from(self.child.id()).context("pid")
    }

    /// The process that traces the holder.
    fn supervisor(&self) -> Result<i32> {
        let runs_guest = |pid: &i32| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.guest)
        };
        let pids = fs::read_dir("/proc").context("/proc")?.flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        tracer(pids.find(runs_guest).context("the holder is not to be found in /proc")?)
    }

    /// Ends the holder by a SIGTERM to the vosrun that was started, wherever it has moved,
    /// and asks for its verdict on its memory.
    fn end(mut self) -> Result<()> {
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
    let ended = retry(Duration::from_secs(5), || child.try_wait()?.context("not ended by SIGTERM"));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ended.map(drop)
}

/// The supervisor of a job that has just moved.
fn supervisor_of(report: &Value) -> Result<i32> {
    let pid = report["processes"][0]["host_pid"].as_i64();
    tracer(i32::try_from(pid.context("migrate --json gave no host_pid")?)?)
}

/// `TracerPid` of proc_pid_status(5).
fn tracer(pid: i32) -> Result<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    let tracer = line.and_then(|t| t.trim().parse().ok()).context("no TracerPid")?;
    ensure!(tracer != 0, "process {pid} has no tracer");
    Ok(tracer)
}

/// Private_Clean + Private_Dirty of proc_pid_smaps(5): what the system gets back when only
/// this process ends, KiB.
fn private_kib(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let sizes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(sizes.sum())
}
