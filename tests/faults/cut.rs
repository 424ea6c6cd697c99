//! The network goes away in the middle of a move.

use anyhow::{ensure, Result};

use crate::common::gate::Gate;
use crate::common::hosts::Hosts;
use crate::common::{is_root, Who};
use crate::scene::{expect, two_hosts, Scene, ABORTED, IN_DOUBT};

/// The link is cut while one side stands at `point`; it is mended after the command has given
/// up.
pub fn link_cut(at_target: bool, point: &'static str) -> Result<()> {
    let mut gate = Gate::new(point)?;
    let hosts = two_hosts(Who::Root, at_target.then_some(&gate))?;
    let scene = Scene::start(&hosts, "ledger", (!at_target).then_some(&gate))?;
    let child = scene.migrate("b")?;
    gate.reached()?;
    hosts.set_link(0, 1, false)?;
    gate.release()?;
    let done = scene.ended(child)?;
    // With READY the source has heard all it needs, and decides. At `image-sent` READY may be
    // on its way already.
    let codes: &[i32] = match point {
        "image-sent" => &[ABORTED, IN_DOUBT],
        "ready-received" | "committed" | "commit-received" | "owned" => &[IN_DOUBT],
        _ => &[ABORTED],
    };
    expect(&done, codes)?;
    if done.code() == IN_DOUBT {
        if !at_target {
            scene.check_frozen()?;
        }
        hosts.set_link(0, 1, true)?;
        scene.await_running()?;
        scene.await_state(1, "RUNNING")?;
    } else {
        scene.await_running()?;
        scene.await_state(0, "RUNNING")?;
        hosts.set_link(0, 1, true)?;
    }
    scene.finish()
}

/// The job goes on from a host that its home cannot reach any more: the next host tells the home.
pub fn home_misses_a_move() -> Result<()> {
    ensure!(is_root(), "SKIP needs root");
    let hosts = Hosts::start(Who::Root, 3)?;
    let mut scene = Scene::start(&hosts, "ledger", None)?;
    scene.job.migrate(1)?;
    hosts.set_link(0, 1, false)?;
    scene.job.migrate(2)?;
    scene.await_running()?;
    // Who waits at home hears of the end.
    scene.finish()
}
