//! A random tree of processes that is moved about once a second for as long as one likes.
//!
//! The seed decides what the tree does (`tests/guests/soak_tree.c`, which knows what must be true)
//! and when it is moved where.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::common::build::{self, Flavour};
use super::common::hosts::Hosts;
use super::common::job::{Job, Program, Start};
use super::{Random, Who, Worker};

/// Of the run that belongs to the tests.
const SEED: u64 = 20_260;
const SECONDS: u64 = 20;
/// Between two moves, on average, µs.
const BETWEEN: u64 = 1_000_000;

/// Seconds for one tree (`VOSRUN_SOAK_SECONDS`).
pub fn seconds() -> u64 {
    let given = std::env::var("VOSRUN_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    given.unwrap_or(SECONDS)
}

/// One tree, with the seed of `VOSRUN_SEED` if there is one.
pub fn soak(start: Start, who: Who, worker: &mut Worker) -> Result<()> {
    let seed = if std::env::var_os("VOSRUN_SEED").is_some() { super::seed()? } else { SEED };
    let span = Duration::from_secs(seconds());
    run(worker.hosts(who)?, start, seed, span).with_context(|| format!("VOSRUN_SEED={seed}"))
}

fn run(hosts: &Hosts, start: Start, seed: u64, span: Duration) -> Result<()> {
    let mut random = Random(seed);
    let program = Program::new(build::guest("soak_tree", Flavour::Plain)?).args([seed]);
    let mut job = Job::start(hosts, start, program)?;
    job.await_ready()?;
    let begin = Instant::now();
    let (mut moves, mut put_off) = (0, 0);
    while begin.elapsed() < span {
        std::thread::sleep(Duration::from_micros(random.next(2 * BETWEEN)));
        let to = (job.at + 1 + random.next(2) as usize) % 3;
        moves += 1;
        let moved = job.migrate_if_possible(to);
        if moved.with_context(|| format!("move {moves}, to host {to}"))?.is_none() {
            put_off += 1;
        }
        job.await_progress(1).with_context(|| format!("after move {moves}, to host {to}"))?;
    }
    // A machine that stands still for seconds answers nobody, but not often.
    ensure!(put_off <= 1 + moves / 10, "{put_off} of {moves} moves were not possible at the time");
    let done = job.dir.join("status.done");
    job.finish().with_context(|| format!("at the end, after {moves} moves"))?;
    let done = fs::read_to_string(&done).with_context(|| done.display().to_string())?;
    ensure!(done.split_whitespace().any(|count| count != "0"), "the tree has done nothing");
    Ok(())
}
