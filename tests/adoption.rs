//! What adopting leaves alone, and jobs that lose their supervisor.

mod common;
#[path = "adoption/tree.rs"]
mod tree;

use std::fs;
use std::process::{ExitCode, Stdio};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use common::build::{self, Flavour};
use common::gate::Gate;
use common::hosts::Hosts;
use common::job::{Job, Program, Start};
use common::procs;
use common::runner::{Cell, Worker};
use common::snapshot::{await_same, snapshot, Snapshot};
use common::{until, Who, SOON};

/// A process in its first sleeps, which is not adopted yet.
fn sleeping<'h>(hosts: &'h Hosts, args: &[&str]) -> Result<(Job<'h>, i32, Snapshot)> {
    let program = Program::new(build::guest("untouched", Flavour::Plain)?).args(args);
    let mut job = Job::start_early(hosts, Start::Attached, program)?;
    job.await_ready()?;
    let pid = job.program_pid().context("the program")?;
    until(SOON, "all threads sleep", || {
        let states = procs::thread_states(pid);
        Ok((states.len() == 5 && states.iter().all(|s| *s == 'S')).then_some(()))
    })?;
    Ok((job, pid, snapshot(pid)?))
}

fn attach(hosts: &Hosts) -> Result<()> {
    let (job, pid, before) = sleeping(hosts, &[])?;
    job.attach()?;
    await_same(pid, &before)?;
    job.finish().map(drop)
}

fn check(hosts: &Hosts) -> Result<()> {
    let (job, pid, before) = sleeping(hosts, &[])?;
    job.attach()?;
    hosts.run(0, &["check", &job.name, "--to", "b"])?.good("check")?;
    await_same(pid, &before)?;
    job.finish().map(drop)
}

fn refused(hosts: &Hosts) -> Result<()> {
    let (job, pid, before) = sleeping(hosts, &["socket"])?;
    job.attach()?;
    let done = job.try_migrate(1)?;
    ensure!(done.code() == 10, "exit {}: {}", done.code(), done.stderr);
    await_same(pid, &before)?;
    job.finish().map(drop)
}

/// The supervisor of a job that came to a host: the receiver that the daemon has started.
fn receiver(hosts: &Hosts, index: usize) -> Result<i32> {
    let node = hosts.node_pid(index).context("no node")?;
    let mut receivers = procs::descendants(node);
    receivers.retain(|pid| procs::command_line(*pid).contains("__receive"));
    receivers.first().copied().context("no receiver")
}

/// The target is killed when it has the whole image.
fn aborted(who: Who) -> Result<()> {
    ensure!(who == Who::User || common::is_root(), "SKIP needs root");
    let mut gate = Gate::new("ready")?;
    let hosts = Hosts::start_with(who, 2, |index, command| {
        if index == 1 {
            command.envs([gate.variable()]);
        }
    })?;
    let (job, pid, before) = sleeping(&hosts, &[])?;
    job.attach()?;
    let mut command = hosts.vosrun(0);
    command.args(["migrate", &job.name, "--to", "b"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut mover = command.spawn()?;
    gate.reached()?;
    kill(Pid::from_raw(receiver(&hosts, 1)?), Signal::SIGKILL)?;
    let code = procs::exit_code(procs::wait(&mut mover, SOON, "migrate")?);
    ensure!(code == 11, "migrate ended with {code}");
    await_same(pid, &before)?;
    job.finish().map(drop)
}

fn obedient<'h>(hosts: &'h Hosts, start: Start) -> Result<Job<'h>> {
    let mut job =
        Job::start(hosts, start, Program::new(build::guest("obedient", Flavour::Plain)?))?;
    job.await_ready()?;
    Ok(job)
}

fn signals_seen(job: &Job<'_>, count: u32) -> Result<()> {
    let path = job.dir.join("status.usr1");
    let text = until(SOON, &format!("signal {count}"), || {
        let text = fs::read_to_string(&path)?;
        let seen: u32 = text.lines().next().unwrap_or("0").parse()?;
        Ok((seen >= count).then_some(seen))
    })?;
    ensure!(text == count, "signals came twice: {text}");
    Ok(())
}

/// Kills a supervisor and waits until it is gone.
fn kill_supervisor(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    until(SOON, "the supervisor's end", || {
        Ok(procs::state(pid).is_none_or(|s| s == 'Z').then_some(()))
    })
}

/// The supervisor at home dies at rest, before any move.
fn orphaned_at_home(hosts: &Hosts) -> Result<()> {
    let mut job = obedient(hosts, Start::Attached)?;
    let pid = job.pid_at_home()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let tracer = status.lines().find_map(|l| l.strip_prefix("TracerPid:"));
    kill_supervisor(tracer.context("no TracerPid")?.trim().parse()?)?;
    job.await_progress(2)?;
    hosts.run(0, &["adopt", &job.name])?.good("adopt")?;
    for to in [1, 2, 0, 1] {
        job.migrate(to)?;
        job.await_progress(2)?;
    }
    job.signal(Signal::SIGUSR1)?;
    signals_seen(&job, 1)?;
    job.signal(Signal::SIGTERM)?;
    let code = job.end(SOON)?;
    ensure!(code == 7, "the parent sees {code}: {}", job.said());
    job.await_nothing_left()
}

/// The supervisor of the host that the job has moved to dies: the job goes on there, can be
/// adopted there, moves on and comes home.
fn orphaned_away(hosts: &Hosts, start: Start, places: &[usize]) -> Result<()> {
    let mut job = obedient(hosts, start)?;
    job.migrate(1)?;
    job.await_progress(2)?;
    kill_supervisor(receiver(hosts, 1)?)?;
    job.await_progress(2)?;
    hosts.run(1, &["adopt", &job.name])?.good("adopt")?;
    job.await_progress(2)?;
    for (n, to) in (1..).zip(places) {
        job.migrate(*to).with_context(|| hosts.diagnosis())?;
        job.await_progress(2)?;
        job.signal(Signal::SIGUSR1)?;
        signals_seen(&job, n)?;
    }
    job.signal(Signal::SIGTERM)?;
    let code = job.end(SOON)?;
    ensure!(code == 7, "the parent sees {code}: {}", job.said());
    job.await_nothing_left()
}

type Plain = fn(&Hosts) -> Result<()>;

/// Cells with no more to them than a name.
const PLAIN: [(&str, Plain); 6] = [
    ("untouched/attach", attach),
    ("untouched/check", check),
    ("untouched/refused", refused),
    ("orphaned/home", orphaned_at_home),
    ("orphaned/watches", watches),
    ("orphaned/restarted-calls", restarted_calls),
];

/// Starts vosrun and outlives it, until the program is told to end.
const OUTLIVING: &[&str] = &[
    "perl",
    "-e",
    "my $p = fork; exec @ARGV if !$p; waitpid($p, 0); sleep 1 until -e $ENV{GUEST_STOP}",
];

/// A launched job loses its supervisor and is adopted: what the handle table says of its watches
/// holds for later moves.
fn watches(hosts: &Hosts) -> Result<()> {
    let program = Program::new(build::guest("fd_inotify", Flavour::Plain)?).via(OUTLIVING);
    let mut job = Job::start(hosts, Start::Launched, program)?;
    job.await_ready()?;
    let below = procs::descendants(job.child.id() as i32);
    let own = |pid: &&i32| procs::command_line(**pid).contains("vosrun --state-dir");
    let of_perl = |pid: &&i32| procs::command_line(**pid).starts_with("perl");
    let supervisor = below.iter().filter(own).find(|pid| !of_perl(pid));
    kill_supervisor(*supervisor.context("no supervisor")?)?;
    hosts.run(0, &["adopt", &job.name])?.good("adopt")?;
    for to in [1, 2, 0] {
        job.migrate(to)?;
        job.await_progress(2)?;
    }
    job.finish().map(drop)
}

/// The supervisor dies while calls of the job go on that it has started again after a move.
fn restarted_calls(hosts: &Hosts) -> Result<()> {
    for guest in ["sleepers", "blocked"] {
        let program = Program::new(build::guest(guest, Flavour::Plain)?);
        let mut job = Job::start(hosts, Start::Launched, program)?;
        job.await_ready()?;
        for to in [1, 2] {
            job.migrate(to)?;
            let died = std::time::Instant::now();
            kill_supervisor(receiver(hosts, to)?)?;
            let status = || fs::read_to_string(job.dir.join("status")).unwrap_or_default();
            let adopted = hosts.run(to, &["adopt", &job.name])?.good("adopt");
            adopted.with_context(|| format!("{guest} at host {to}: {}", status()))?;
            job.excuse(died.elapsed().as_secs_f64() * 1e3)?;
            job.await_progress(3).with_context(|| format!("{guest} at host {to}"))?;
        }
        // Its pipes have ended with the supervisor: only the status file tells how it ends.
        fs::write(job.dir.join("stop"), "")?;
        job.end(SOON)?;
        let status = fs::read_to_string(job.dir.join("status"))?;
        ensure!(status.contains("done"), "{guest}: {status} {}", job.said());
        job.await_nothing_left()?;
    }
    Ok(())
}

fn cells_of(who: Who) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (name, run) in PLAIN {
        let run = move |w: &mut Worker| run(w.hosts(who)?);
        cells.push(Cell::new(format!("{}/{name}", who.word()), run));
    }
    let run = move |_: &mut Worker| aborted(who);
    cells.push(Cell::new(format!("{}/untouched/aborted", who.word()), run));
    let starts = [("launched", Start::Launched), ("attached", Start::Attached)];
    let routes: [(&str, &'static [usize]); 3] =
        [("stays", &[]), ("home", &[0]), ("on", &[2, 0, 1])];
    for (word, start) in starts {
        for (route, places) in routes {
            let run = move |w: &mut Worker| orphaned_away(w.hosts(who)?, start, places);
            cells.push(Cell::new(format!("{}/orphaned/away/{word}/{route}", who.word()), run));
        }
    }
    cells
}

fn cells() -> Vec<Cell> {
    [Who::Root, Who::User]
        .into_iter()
        .flat_map(|who| {
            let mut cells = cells_of(who);
            cells.extend(tree::cells(who));
            cells
        })
        .collect()
}

fn main() -> ExitCode {
    common::runner::main(cells())
}
