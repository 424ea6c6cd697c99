//! System V objects and message queues that a job without namespaces has made end with it, as they
//! would with an IPC namespace of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::build::{self, Flavour};
use crate::common::gate::Gate;
use crate::common::hosts::Hosts;
use crate::common::job::{Job, Program, Start};
use crate::common::runner::{Cell, Worker};
use crate::common::{self, procs, Who};

/// How the job leaves the node.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    Ends,
    Moves,
    /// Its supervisor is killed.
    Dies,
}

/// Cells `left/WHO/…`.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for who in [Who::Root, Who::User] {
        let ways = [("ends", Leaving::Ends), ("moves", Leaving::Moves), ("dies", Leaving::Dies)];
        for (word, leaving) in ways {
            let run = move |w: &mut Worker| left(who, leaving, w);
            cells.push(Cell::new(format!("left/{}/ipc-{word}", who.word()), run));
        }
    }
    for (word, dies) in [("given-up", false), ("prepared-dies", true)] {
        cells.push(Cell::new(format!("left/root/ipc-{word}"), move |_| given_up(dies)));
    }
    cells
}

/// How many objects of the guest there are on a host: they have a mode of their own.
fn objects(hosts: &Hosts, index: usize) -> Result<usize> {
    const LOOK: &str = "awk '$3 == 646' /proc/sysvipc/*; \
                        mount -t mqueue none /mnt && find /mnt -type f -perm 0646";
    let mut command = match hosts.who {
        Who::Root => hosts.command(index, Path::new("unshare")),
        Who::User => Command::new("unshare"),
    };
    let done = procs::run(command.args(["-m", "sh", "-c", LOOK]), Duration::from_secs(20))?;
    Ok(done.good("look at the objects")?.lines().count())
}

fn await_objects(hosts: &Hosts, index: usize, wanted: usize) -> Result<()> {
    let mut seen = 0;
    let same = common::until(common::SOON, "the objects of the job", || {
        seen = objects(hosts, index)?;
        Ok((seen == wanted).then_some(()))
    });
    same.with_context(|| format!("{seen} objects on host {index} instead of {wanted}"))
}

fn program() -> Result<Program> {
    Ok(Program::new(build::guest("ipc_left", Flavour::Plain)?))
}

/// A copy that is whole and may not run yet is given up, or loses its supervisor.
fn given_up(dies: bool) -> Result<()> {
    ensure!(common::is_root(), "SKIP needs root");
    let mut gate = Gate::new("ready")?;
    let hosts = Hosts::start_with(Who::Root, 2, |index, command| {
        if index == 1 {
            let (name, value) = gate.variable();
            command.env(name, value);
        }
    })?;
    let mut job = Job::start(&hosts, Start::Launched, program()?)?;
    job.await_ready()?;
    job.await_progress(60)?;
    let before = objects(&hosts, 0)?;
    let mut migrate = hosts.vosrun(0);
    migrate.args(["migrate", &job.name, "--to", "b", "--translate", "--json"]);
    let mut to_b = migrate.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    gate.reached()?;
    await_objects(&hosts, 1, before)?;
    if dies {
        kill(Pid::from_raw(job.supervisor()?), Signal::SIGKILL)?;
    } else {
        let moving = job.ps()?["moving"].as_str().context("ps shows no move")?.to_owned();
        let id = moving.split(' ').next().unwrap_or_default().to_owned();
        hosts.run(0, &["migrate", "--cancel", &id])?.good("cancel")?;
        gate.release()?;
    }
    to_b.wait()?;
    await_objects(&hosts, 1, 0)?;
    job.await_progress(3)?;
    ensure!(objects(&hosts, 0)? == before, "objects have gone at home");
    job.finish().map(drop)
}

fn left(who: Who, leaving: Leaving, worker: &mut Worker) -> Result<()> {
    ensure!(common::is_root(), "SKIP needs root");
    let hosts = match who {
        Who::Root => worker.hosts(who)?,
        Who::User => worker.refusing_hosts()?,
    };
    let mut job = Job::start(hosts, Start::Launched, program()?)?;
    job.translate = who == Who::Root;
    job.await_ready()?;
    job.migrate(1)?;
    // Some were made before, the others are here.
    job.await_progress(60)?;
    ensure!(objects(hosts, 1)? >= 84, "{} objects are here", objects(hosts, 1)?);
    if let Leaving::Dies = leaving {
        let supervisor = job.supervisor()?;
        kill(Pid::from_raw(supervisor), Signal::SIGKILL)?;
        let code = job.end(common::SOON)?;
        ensure!(code == 13, "exit {code}");
        job.await_nothing_left()?;
    } else {
        if let Leaving::Moves = leaving {
            job.migrate(2)?;
            if who == Who::Root {
                await_objects(hosts, 1, 0)?;
            }
            job.await_progress(2)?;
        }
        job.finish()?;
    }
    (0..3).try_for_each(|index| await_objects(hosts, index, 0))
}
