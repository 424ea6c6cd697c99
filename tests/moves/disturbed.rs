//! Calls that are disturbed in their sleep before their job moves.

use std::path::Path;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::build::{self, Flavour};
use crate::common::job::{Job, Program, Start};
use crate::common::runner::{Cell, Worker};
use crate::common::{procs, until, Who, SOON};
use crate::{guest, with, Guest};

/// What wakes a sleeping call before the job moves, without ending it.
#[derive(Debug, Clone, Copy)]
enum Disturbance {
    /// A signal that is ignored.
    Ignored,
    /// SIGSTOP, then SIGCONT.
    Stopped,
    /// A move that is given up in its freeze.
    GivenUp,
    /// The move before.
    Moved,
}

/// Calls with a timeout that signal(7) knows to go on after a stop.
const RESTARTED: [&[&str]; 5] = [
    &["nanosleep"],
    &["clock_nanosleep-relative"],
    &["poll"],
    &["futex-relative"],
    &["futex-bitset"],
];

fn stop_and_continue(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
    until(SOON, "the stop", || {
        // A traced process is in a tracing stop then.
        let states = procs::thread_states(pid);
        Ok(states.iter().all(|s| ['t', 'T'].contains(s)).then_some(()))
    })?;
    Ok(kill(Pid::from_raw(pid), Signal::SIGCONT)?)
}

/// A job that is stopped while its home cannot reach it stays stopped when the home comes, and
/// its stand-in stops then.
fn unheard_stop(worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(Who::Root)?;
    let program = Program::new(build::guest("sleepers", Flavour::Plain)?).args(["nanosleep"]);
    let mut job = Job::start(hosts, Start::Attached, program)?;
    job.await_ready()?;
    job.migrate(1)?;
    hosts.set_link(0, 2, false)?;
    job.migrate(2)?;
    let mut stop = hosts.command(2, Path::new("/bin/kill"));
    stop.args(["-STOP", &job.host_pid()?.to_string()]);
    procs::run(&mut stop, SOON)?.good("kill -STOP")?;
    let is_stopped = |job: &Job| Ok::<bool, anyhow::Error>(job.ps()?["state"] == "STOPPED");
    until(SOON, "the stop", || Ok(is_stopped(&job)?.then_some(())))?;
    hosts.set_link(0, 2, true)?;
    let standin = job.child.id() as i32;
    until(SOON, "the stop of the stand-in", || {
        Ok(procs::state(standin).is_some_and(|s| ['t', 'T'].contains(&s)).then_some(()))
    })?;
    let shown = job.ps()?;
    ensure!(shown["state"] == "STOPPED", "the job was let go on: {shown}");
    kill(Pid::from_raw(standin), Signal::SIGCONT)?;
    job.excuse(60_000.0)?;
    job.await_progress(2)?;
    job.finish().map(drop)
}

/// A call that was woken already ends neither with an error nor early when the job moves.
fn disturbed(how: Disturbance, of: Guest, worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(Who::User)?;
    let program = of.program()?;
    // Attached: no shell's vosrun stops along with it.
    let mut job = Job::start(hosts, Start::Attached, program)?;
    job.await_ready()?;
    job.await_progress(5)?;
    for to in [1, 2, 0, 1, 2, 0] {
        match how {
            Disturbance::Ignored => kill(Pid::from_raw(job.host_pid()?), Signal::SIGWINCH)?,
            Disturbance::Stopped => stop_and_continue(job.host_pid()?)?,
            // At home no new process takes it, which would have the limit.
            Disturbance::GivenUp if to == 0 => {}
            Disturbance::GivenUp => {
                hosts.limit_node(to, "--fsize=0:")?;
                let given_up = job.try_migrate(to);
                hosts.limit_node(to, "--fsize=unlimited:")?;
                let code = given_up?.code();
                ensure!(code == 11, "a move that should be given up ended with {code}");
            }
            // So long that a timeout which starts anew at each move is seen.
            Disturbance::Moved => std::thread::sleep(Duration::from_millis(300)),
        }
        job.migrate(to).with_context(|| format!("to host {to}"))?;
        // How long it has slept is not known after a wake-up that was none of the supervisor's.
        if matches!(how, Disturbance::Ignored | Disturbance::Stopped) {
            job.excuse(3000.0)?;
        }
    }
    job.await_progress(5)?;
    job.finish().map(drop)
}

/// The cells of this file.
pub fn cells() -> Vec<Cell> {
    let kinds = [
        ("ignored", Disturbance::Ignored),
        ("stopped", Disturbance::Stopped),
        ("given-up", Disturbance::GivenUp),
        ("moved", Disturbance::Moved),
    ];
    let mut cells = Vec::new();
    for (word, how) in kinds {
        for call in RESTARTED {
            let of = with("sleepers", call);
            let run = move |w: &mut Worker| disturbed(how, of, w);
            cells.push(Cell::new(format!("disturbed/{word}/{}", call[0]), run));
        }
    }
    for of in ["transfers_out", "transfers_in", "pipe_flow"] {
        let run = move |w: &mut Worker| disturbed(Disturbance::GivenUp, guest(of), w);
        cells.push(Cell::new(format!("disturbed/given-up/{of}"), run));
    }
    cells.push(Cell::new("disturbed/unheard-stop", unheard_stop));
    cells
}
