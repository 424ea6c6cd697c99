//! How long a move stops a small program, and what a supervisor weighs:
//! `cargo bench --bench moves`.
//!
//! Two nodes on loopback; a program that holds memory goes to and fro between them. The
//! unit is one fork + exec + wait of `/bin/true`, measured after every move. See
//! benches/README.md.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use common::nodes::{tracer, Job, Nodes};
use common::stats::{median, quantile, run_bench, spread, Wanted};
use common::{number, retry, run, Options, Scratch};

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
    run_bench(bench)
}

fn bench(failures: &mut Vec<(String, anyhow::Error)>) -> Result<()> {
    let options = Options::from_args()?;
    let scratch = Scratch::new()?;
    let unit = scratch.guest("spawn", &[])?;
    let holder = scratch.guest("holder", &[])?;
    let nodes = Nodes::start(&scratch, LIMIT)?;
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
    let name = format!("holder{}-{}", guest.size, guest.threads);
    let args = [guest.size.to_string(), guest.threads.to_string()];
    let job = Job::start(nodes, &name, holder, &args.each_ref().map(String::as_str))?;
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

/// The supervisor of a job that has just moved.
fn supervisor_of(report: &Value) -> Result<i32> {
    let pid = report["processes"][0]["host_pid"].as_i64();
    tracer(i32::try_from(pid.context("migrate --json gave no host_pid")?)?)
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
