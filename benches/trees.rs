//! What many processes cost: `cargo bench --bench trees`.
//!
//! A tree of idle processes goes to and fro between two nodes on loopback; the unit is one tree of
//! the same size that is forked, killed and reaped, measured after every move. See
//! benches/README.md.

mod common;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use common::nodes::{Job, Nodes};
use common::stats::{median, run_bench, spread, Wanted};
use common::{number, retry, run, Options, Scratch, VOSRUN};

/// No single command takes longer.
const LIMIT: Duration = Duration::from_secs(300);

/// A tree of the first table.
struct Tree {
    name: &'static str,
    /// Processes, the first one included.
    processes: u32,
    moves: usize,
    wanted: Wanted,
}

const TREES: &[Tree] = &[
    Tree { name: "100 processes", processes: 100, moves: 12, wanted: Wanted::Nothing },
    Tree { name: "1000 processes", processes: 1000, moves: 8, wanted: Wanted::AtMost(3.0) },
    Tree { name: "3000 processes", processes: 3000, moves: 4, wanted: Wanted::Nothing },
    Tree { name: "5000 processes", processes: 5000, moves: 4, wanted: Wanted::Nothing },
];

/// Idle siblings in the second table.
const SIBLINGS: &[(&str, u32, Wanted)] = &[
    ("signal, 100 idle siblings", 100, Wanted::Nothing),
    ("signal, 1000 idle siblings", 1000, Wanted::AtMost(1.1)),
    ("signal, 4000 idle siblings", 4000, Wanted::Nothing),
];

fn main() -> ExitCode {
    run_bench(bench)
}

fn bench(failures: &mut Vec<(String, anyhow::Error)>) -> Result<()> {
    let options = Options::from_args()?;
    let scratch = Scratch::new()?;
    let forest = scratch.guest("forest", &[])?;
    let nodes = Nodes::start(&scratch, LIMIT)?;
    println!(
        "{:<18}{:>4}{:>12}{:>12}{:>14}{:>12}  {:<22}wanted",
        "a tree at rest", "n", "freeze ms", "capture ms", "µs / process", "fork ms", "ratio"
    );
    for tree in TREES.iter().filter(|tree| options.chosen(tree.name)) {
        if let Err(e) = freeze(&nodes, &forest, tree, options.repeats.unwrap_or(tree.moves)) {
            failures.push((tree.name.to_owned(), e));
        }
    }
    println!(
        "\n{:<28}{:>4}{:>14}{:>14}  {:<22}wanted",
        "stops of one process", "n", "none ns", "siblings ns", "ratio"
    );
    for (name, siblings, wanted) in SIBLINGS.iter().filter(|row| options.chosen(row.0)) {
        let pairs = stops(&scratch, &forest, *siblings, options.repeats.unwrap_or(9));
        match pairs {
            Ok((none, all)) => print_stops(name, &none, &all, *wanted),
            Err(e) => failures.push(((*name).to_owned(), e)),
        }
    }
    Ok(())
}

/// Moves one tree to and fro, with an unmeasured move each way before.
fn freeze(nodes: &Nodes, forest: &Path, tree: &Tree, moves: usize) -> Result<()> {
    let children = (tree.processes - 1).to_string();
    let job = Job::start(nodes, &format!("forest{children}"), forest, &["idle", &children])?;
    // The nodes may not know each other yet: the first move is tried again.
    retry(Duration::from_secs(10), || nodes.migrate(&job.name, 0))?;
    nodes.migrate(&job.name, 1)?;
    let (mut freezes, mut captures, mut units) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..moves.max(1).next_multiple_of(2) {
        let report = nodes.migrate(&job.name, turn % 2)?;
        freezes.push(part(&report, "freeze")?);
        captures.push(part(&report, "capture")?);
        units.push(number(&run(Command::new(forest).args(["unit", &children]), LIMIT)?)?);
    }
    job.end()?;
    let sums: Vec<f64> = freezes.iter().zip(&captures).map(|(f, c)| f + c).collect();
    let ratios: Vec<f64> = sums.iter().zip(&units).map(|(sum, unit)| sum / unit).collect();
    println!(
        "{:<18}{:>4}{:>12.2}{:>12.2}{:>14.1}{:>12.2}  {:<22}{}",
        tree.name,
        ratios.len(),
        median(&freezes),
        median(&captures),
        median(&sums) * 1e3 / f64::from(tree.processes),
        median(&units),
        spread(&ratios, 2),
        tree.wanted.verdict(median(&ratios))
    );
    Ok(())
}

/// A part of the pause that `migrate --json` reports, ms.
fn part(report: &Value, name: &str) -> Result<f64> {
    let ms = report["pause_parts_ms"][name].as_f64();
    ms.with_context(|| format!("migrate --json gave no pause_parts_ms of {name}"))
}

/// A signal with a handler in a job without and with idle siblings, in turns, ns.
fn stops(
    scratch: &Scratch,
    forest: &Path,
    siblings: u32,
    repeats: usize,
) -> Result<(Vec<f64>, Vec<f64>)> {
    const TIMES: &str = "20000";
    let state = scratch.dir(&format!("signals{siblings}"))?;
    let figure = |siblings: u32| {
        let mut command = Command::new(VOSRUN);
        command.arg("--state-dir").arg(&state).arg("--").arg(forest);
        command.args(["signals", &siblings.to_string(), TIMES]);
        number(&run(&mut command, LIMIT)?)
    };
    figure(0)?;
    let (mut none, mut all) = (Vec::new(), Vec::new());
    for round in 0..repeats {
        if round % 2 == 0 {
            none.push(figure(0)?);
            all.push(figure(siblings)?);
        } else {
            all.push(figure(siblings)?);
            none.push(figure(0)?);
        }
    }
    Ok((none, all))
}

fn print_stops(name: &str, none: &[f64], all: &[f64], wanted: Wanted) {
    let ratios: Vec<f64> = none.iter().zip(all).map(|(none, all)| all / none).collect();
    println!(
        "{name:<28}{:>4}{:>14.0}{:>14.0}  {:<22}{}",
        ratios.len(),
        median(none),
        median(all),
        spread(&ratios, 3),
        wanted.verdict(median(&ratios))
    );
}
