//! Adopting a running process: what its parent and those who know its pid see afterwards.

mod common;
#[path = "attached/standin.rs"]
mod standin;

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{ensure, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use common::build::{self, Flavour};
use common::hosts::Hosts;
use common::job::{Job, Program, Start};
use common::procs::{self, Done};
use common::runner::{Cell, Worker};
use common::{until, Who, SOON};

fn obedient<'h>(hosts: &'h Hosts, start: Start) -> Result<Job<'h>> {
    let mut job =
        Job::start(hosts, start, Program::new(build::guest("obedient", Flavour::Plain)?))?;
    job.await_ready()?;
    Ok(job)
}

fn signals_seen(job: &Job<'_>) -> Result<u32> {
    let text = fs::read_to_string(job.dir.join("status.usr1"))?;
    Ok(text.lines().next().unwrap_or("0").parse()?)
}

fn await_signals(job: &Job<'_>, count: u32) -> Result<()> {
    until(SOON, &format!("signal {count}"), || Ok((signals_seen(job)? >= count).then_some(())))?;
    ensure!(signals_seen(job)? == count, "signals came twice");
    Ok(())
}

/// The parent's wait() gives the job's own exit code, wherever it ends.
fn status(hosts: &Hosts, places: &[usize], signal: Signal, want: i32) -> Result<()> {
    let mut job = obedient(hosts, Start::Attached)?;
    for to in places {
        job.migrate(*to)?;
        job.await_progress(2)?;
    }
    job.signal(signal)?;
    let code = job.end(SOON)?;
    ensure!(code == want, "the parent sees {code}, wanted {want}: {}", job.said());
    job.await_nothing_left()
}

/// A signal to the old pid reaches the job, at home, away, further away and back.
fn signals(hosts: &Hosts) -> Result<()> {
    let mut job = obedient(hosts, Start::Attached)?;
    job.signal(Signal::SIGUSR1)?;
    await_signals(&job, 1)?;
    for (i, to) in [1, 2, 0, 1].into_iter().enumerate() {
        job.migrate(to)?;
        job.signal(Signal::SIGUSR1)?;
        await_signals(&job, i as u32 + 2)?;
    }
    job.finish().map(drop)
}

/// SIGSTOP and SIGCONT to the old pid stop the job and let it go on.
fn stop_and_continue(hosts: &Hosts) -> Result<()> {
    let mut job = obedient(hosts, Start::Attached)?;
    job.migrate(1)?;
    job.await_progress(2)?;
    job.signal(Signal::SIGSTOP)?;
    let mut last = 0;
    let mut same = 0;
    until(SOON, "the job stands", || {
        let now = job.progress()?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        Ok((same > 200).then_some(()))
    })?;
    job.signal(Signal::SIGCONT)?;
    if hosts.who == Who::Root {
        // nsenter stops with its child, and sees no further than that then.
        kill(Pid::from_raw(job.child.id() as i32), Signal::SIGCONT)?;
    }
    job.await_progress(5)?;
    job.finish().map(drop)
}

/// A launched job: signals to vosrun are the job's, its end is vosrun's.
fn launched(hosts: &Hosts) -> Result<()> {
    let mut job = obedient(hosts, Start::Launched)?;
    job.migrate(1)?;
    job.signal(Signal::SIGUSR1)?;
    await_signals(&job, 1)?;
    job.migrate(2)?;
    job.signal(Signal::SIGTERM)?;
    let code = job.end(SOON)?;
    ensure!(code == 7, "vosrun ended with {code}, wanted 7: {}", job.said());
    job.await_nothing_left()
}

/// One line on stderr that names the pid, and this exit code.
fn refused(done: &Done, code: i32, words: &str) -> Result<()> {
    let said = done.stderr.trim();
    ensure!(done.code() == code, "exit {}, wanted {code}: {said}", done.code());
    ensure!(said.contains(words), "{words:?} is not in: {said}");
    ensure!(said.lines().count() <= 3, "more than a sentence: {said}");
    Ok(())
}

fn already_traced(hosts: &Hosts) -> Result<()> {
    let job = obedient(hosts, Start::Attached)?;
    let pid = job.pid_on_host(job.pid_at_home()?.as_raw())?.to_string();
    let done = hosts.run(0, &["--attach", &pid, "--detach", "--name", "twice"])?;
    ensure!(done.code() != 0, "a process was adopted twice");
    refused(&done, done.code(), &pid)?;
    job.finish().map(drop)
}

/// A process of another user: the kernel's rule is named, nothing is touched.
fn other_user(hosts: &Hosts) -> Result<()> {
    if !common::is_root() {
        anyhow::bail!("SKIP needs root to start a process of another user");
    }
    let mut other = Command::new("sleep").arg("1000").spawn()?;
    let pid = other.id().to_string();
    let done = hosts.run(0, &["--attach", &pid, "--detach"]);
    let state = procs::state(other.id() as i32);
    other.kill()?;
    other.wait()?;
    ensure!(state == Some('S'), "the process is in state {state:?}");
    refused(&done?, 77, &pid)
}

fn no_process(hosts: &Hosts) -> Result<()> {
    let mut gone = Command::new("true").spawn()?;
    gone.wait()?;
    let pid = gone.id().to_string();
    let done = hosts.run(0, &["--attach", &pid, "--detach"])?;
    ensure!(done.code() != 0, "a process that is gone was adopted");
    refused(&done, done.code(), &pid)
}

fn ten_moves(hosts: &Hosts) -> Result<()> {
    let mut job = obedient(hosts, Start::Attached)?;
    for turn in 1..=10 {
        job.migrate(turn % 3)?;
    }
    job.await_progress(3)?;
    job.finish().map(drop)
}

/// Where a cell runs: what does not move needs no daemon.
fn hosts_for(worker: &mut Worker, who: Who, still: bool) -> Result<&Hosts> {
    match still {
        true => worker.bare_hosts(who),
        false => worker.hosts(who),
    }
}

type Plain = fn(&Hosts) -> Result<()>;

/// Cells with no more to them than a name.
const PLAIN: [(&str, Plain); 9] = [
    ("signals", signals),
    ("stop-and-continue", stop_and_continue),
    ("launched-signals", launched),
    ("ten-moves", ten_moves),
    ("refused/already-traced", already_traced),
    ("stand-in/holds-nothing", standin::holds_nothing),
    ("stand-in/stops", standin::stops),
    ("stand-in/dies-by-signal", standin::dies_by_signal),
    ("stand-in/counts-realtime-signals", standin::counts_realtime_signals),
];

fn cells_of(who: Who) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (name, run) in PLAIN {
        let still = name.starts_with("refused");
        let run = move |w: &mut Worker| run(hosts_for(w, who, still)?);
        cells.push(Cell::new(format!("{}/{name}", who.word()), run));
    }
    let places: [(&str, &'static [usize]); 3] =
        [("home", &[]), ("away", &[1]), ("back", &[1, 2, 0])];
    let ends = [
        ("code", Signal::SIGTERM, 7),
        ("killed", Signal::SIGKILL, 137),
        ("signal", Signal::SIGINT, 130),
    ];
    for (place, route) in places {
        for (end, signal, code) in ends {
            let run = move |w: &mut Worker| {
                status(hosts_for(w, who, route.is_empty())?, route, signal, code)
            };
            cells.push(Cell::new(format!("{}/status/{place}/{end}", who.word()), run));
        }
    }
    cells
}

fn cells() -> Vec<Cell> {
    let mut cells: Vec<Cell> = [Who::Root, Who::User].into_iter().flat_map(cells_of).collect();
    // nsenter, which starts a program on a host with namespaces, keeps its output open.
    let run = |w: &mut Worker| standin::closes_its_output(hosts_for(w, Who::User, false)?);
    cells.push(Cell::new("user/stand-in/closes-its-output", run));
    // Their processes run where the tests do, on no host.
    let refusals: [(&str, Plain); 2] = [("other-user", other_user), ("no-process", no_process)];
    for (name, run) in refusals {
        let run = move |w: &mut Worker| run(hosts_for(w, Who::User, true)?);
        cells.push(Cell::new(format!("user/refused/{name}"), run));
    }
    cells
}

fn main() -> ExitCode {
    common::runner::main(cells())
}
