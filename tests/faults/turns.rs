//! What the job itself, or another move, does while a move is made.

use std::fs;
use std::time::Duration;

use anyhow::{bail, ensure, Result};

use crate::common::gate::Gate;
use crate::common::procs;
use crate::common::runner::Worker;
use crate::common::{until, Who, SOON};
use crate::scene::{expect, two_hosts, Scene, ABORTED, MOVED, PATIENCE, REFUSED, TEMPORARY};

/// The job ends while its move has begun.
pub fn job_exits(who: Who, point: &'static str) -> Result<()> {
    let mut gate = Gate::new(point)?;
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", Some(&gate))?;
    let child = scene.migrate("b")?;
    gate.reached()?;
    fs::write(scene.job.dir.join("stop"), "")?;
    if point == "before-hello" {
        until(SOON, "the end of the guest", || {
            let text = fs::read_to_string(scene.job.dir.join("status"))?;
            Ok(text.trim().ends_with("done").then_some(()))
        })?;
    }
    gate.release()?;
    let done = scene.ended(child)?;
    // A job that was frozen by then moves and ends at the target.
    expect(&done, if point == "frozen" { &[MOVED] } else { &[REFUSED, ABORTED] })?;
    scene.finish_ended()
}

/// The job calls exec or fork when its move has begun.
pub fn job_turns(who: Who, what: &str) -> Result<()> {
    let mut gate = Gate::new("before-hello")?;
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "turncoat", Some(&gate))?;
    let child = scene.migrate("b")?;
    gate.reached()?;
    fs::write(scene.job.dir.join(format!("status.{what}")), "")?;
    // The supervisor stands still: an event stop of the job lasts until the release.
    let waits = scene.job.dir.join("status.did");
    let _ = until(Duration::from_secs(2), "", || Ok(waits.exists().then_some(())));
    gate.release()?;
    let mut child = child;
    procs::wait(&mut child, PATIENCE, "vosrun migrate")?;
    let code = procs::exit_code(child.wait()?);
    let codes = [MOVED, REFUSED, ABORTED];
    ensure!(codes.contains(&code), "exit {code} of {codes:?}");
    until(SOON, "the guest did it", || Ok(waits.exists().then_some(())))?;
    scene.job.finish().map(drop)
}

/// Two moves of one job at once: one at most is made at a time, and the job is where the
/// successful one says.
pub fn two_moves(worker: &mut Worker, who: Who) -> Result<()> {
    let hosts = worker.hosts(who)?;
    let mut scene = Scene::start(hosts, "ledger", None)?;
    for _ in 0..5 {
        let at = scene.job.at;
        let others: Vec<usize> = (0..3).filter(|i| *i != at).collect();
        let first = scene.migrate(hosts.hosts[others[0]].name)?;
        let second = scene.migrate(hosts.hosts[others[1]].name)?;
        let ends = [scene.ended(first)?.code(), scene.ended(second)?.code()];
        match ends {
            [MOVED, REFUSED | ABORTED | TEMPORARY] => scene.job.at = others[0],
            [REFUSED | ABORTED | TEMPORARY, MOVED] => scene.job.at = others[1],
            _ => bail!("exit codes {ends:?}: one of two moves must succeed"),
        }
        scene.await_running()?;
        scene.await_state(scene.job.at, "RUNNING")?;
    }
    scene.finish()
}
