//! A supervisor is killed: at rest, or at a point of a move.

use anyhow::Result;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::gate::Gate;
use crate::common::{procs, until, Who, SOON};
use crate::scene::{expect, kill_on_host, supervisor_of, two_hosts, Scene};
use crate::scene::{ABORTED, IN_DOUBT, LOST, MOVED};

/// After the supervisor's death at rest or in a move that was not decided: the job runs on,
/// is taken up again, and moves as before.
fn adopt_and_move(mut scene: Scene<'_>, index: usize) -> Result<()> {
    scene.await_running()?;
    scene.await_state(index, "ORPHANED")?;
    let name = scene.job.name.clone();
    scene.hosts.run(index, &["adopt", &name])?.good("adopt")?;
    scene.await_running()?;
    scene.await_state(index, "RUNNING")?;
    scene.job.at = index;
    let child = scene.migrate(scene.hosts.hosts[1 - index].name)?;
    expect(&scene.ended(child)?, &[MOVED])?;
    scene.await_running()?;
    scene.finish_without_launcher()
}

pub fn killed_at_rest(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    kill_on_host(&hosts, 0, supervisor_of(&scene)?)?;
    adopt_and_move(scene, 0)
}

/// After a move, the supervisor at the target dies; the job goes on there.
pub fn killed_at_rest_away(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let mut scene = Scene::start(&hosts, "ledger", None)?;
    scene.job.migrate(1)?;
    kill_on_host(&hosts, 1, supervisor_of(&scene)?)?;
    scene.await_running()?;
    scene.await_state(1, "ORPHANED")?;
    hosts.run(1, &["adopt", &scene.job.name])?.good("adopt")?;
    scene.await_running()?;
    scene.await_state(1, "RUNNING")?;
    // Its output was relayed by the supervisor that has died: nobody reads it any more.
    scene.job.migrate(0)?;
    scene.await_running()?;
    scene.finish_without_launcher()
}

/// The source's supervisor is killed while a frame waits for memory.
pub fn source_killed_handing_down(who: Who) -> Result<()> {
    let mut gate = Gate::new("heirs")?;
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger_forked", Some(&gate))?;
    let child = scene.migrate("b")?;
    let pid = gate.reached()?;
    kill_on_host(&hosts, 0, pid)?;
    expect(&scene.ended(child)?, &[ABORTED, IN_DOUBT])?;
    adopt_and_move(scene, 0)
}

/// The target's supervisor is killed while its frame waits for memory.
pub fn target_killed_handing_down(who: Who) -> Result<()> {
    let mut gate = Gate::new("heirs")?;
    let hosts = two_hosts(who, None)?;
    let before = procs::descendants(std::process::id() as i32);
    let scene = Scene::start(&hosts, "ledger_forked", Some(&gate))?;
    let child = scene.migrate("b")?;
    gate.reached()?;
    let frame = || {
        let mut new = procs::descendants(std::process::id() as i32);
        new.retain(|pid| !before.contains(pid));
        new.retain(|pid| procs::command_line(*pid).contains("__receive"));
        new
    };
    // The supervisor is the first of them; the others are its frame.
    let all = until(SOON, "a frame", || Ok(Some(frame()).filter(|all| all.len() > 1)))?;
    kill(Pid::from_raw(all[0]), Signal::SIGKILL)?;
    until(SOON, "the end of the frame", || Ok(frame().is_empty().then_some(())))?;
    gate.release()?;
    expect(&scene.ended(child)?, &[ABORTED])?;
    scene.await_running()?;
    scene.await_state(0, "RUNNING")?;
    scene.finish()
}

/// The source's supervisor is killed at `point`.
pub fn source_killed(who: Who, point: &'static str) -> Result<()> {
    let mut gate = Gate::new(point)?;
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", Some(&gate))?;
    let child = scene.migrate("b")?;
    let pid = gate.reached()?;
    kill_on_host(&hosts, 0, pid)?;
    let done = scene.ended(child)?;
    match point {
        "committed" => {
            expect(&done, &[IN_DOUBT])?;
            // The target asks the source's node, whose journal says that it owns the job.
            scene.await_running()?;
            scene.await_state(1, "RUNNING")?;
            scene.finish_without_launcher()
        }
        "done" => {
            expect(&done, &[MOVED, IN_DOUBT])?;
            scene.await_running()?;
            scene.await_state(1, "RUNNING")?;
            scene.finish_without_launcher()
        }
        _ => {
            expect(&done, &[ABORTED, IN_DOUBT])?;
            adopt_and_move(scene, 0)
        }
    }
}

/// The frozen copy at the source is woken by a person, and goes on there.
fn recover(scene: Scene<'_>) -> Result<()> {
    scene.check_frozen()?;
    scene.await_state(0, "IN-DOUBT")?;
    let name = scene.job.name.clone();
    scene.hosts.run(0, &["recover", &name, "--dead", "b"])?.good("recover")?;
    scene.await_running()?;
    scene.await_state(0, "RUNNING")?;
    scene.finish()
}

/// The target's supervisor is killed at a point of its own.
pub fn target_killed(who: Who, point: &'static str) -> Result<()> {
    let mut gate = Gate::new(point)?;
    let hosts = two_hosts(who, Some(&gate))?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    let child = scene.migrate("b")?;
    let pid = gate.reached()?;
    kill_on_host(&hosts, 1, pid)?;
    let done = scene.ended(child)?;
    if point == "ready" {
        expect(&done, &[ABORTED])?;
        scene.await_running()?;
        scene.await_state(0, "RUNNING")?;
        return scene.finish();
    }
    expect(&done, &[IN_DOUBT, LOST])?;
    recover(scene)
}

/// The target's supervisor is killed while the source stands at `point`.
pub fn target_killed_behind(who: Who, point: &'static str) -> Result<()> {
    let mut source = Gate::new(point)?;
    let mut target = Gate::new("ready")?;
    let hosts = two_hosts(who, Some(&target))?;
    let scene = Scene::start(&hosts, "ledger", Some(&source))?;
    let child = scene.migrate("b")?;
    let pid = target.reached()?;
    target.release()?;
    source.reached()?;
    kill_on_host(&hosts, 1, pid)?;
    source.release()?;
    let done = scene.ended(child)?;
    // Before the commit the source may or may not have seen that the target is gone.
    let codes: &[i32] =
        if point == "committed" { &[IN_DOUBT, LOST] } else { &[ABORTED, IN_DOUBT, LOST] };
    expect(&done, codes)?;
    if done.code() == ABORTED {
        scene.await_running()?;
        return scene.finish();
    }
    recover(scene)
}
