//! Connections of a job on links that are cut for a while or slow, past their relays and back, and
//! through a hundred moves: nothing is lost, doubled, or comes in another order.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use super::common::hosts::Hosts;
use super::common::job::{Job, Start};
use super::common::runner::{Cell, Worker};
use super::common::{is_root, procs, until, SOON};
use super::said::inspected;
use super::{called, random_moves, seed, tcp, Guest, Talk, Who};

/// At five seconds a link that is cut lives on; after fifteen both sides have given it up and make a new
/// one.
const CUTS: [u64; 2] = [5, 15];

/// The link's rate, as in tc(8).
const SLOW: &str = "10mbit";

const MANY: usize = 100;

pub fn own_hosts(count: usize) -> Result<Hosts> {
    ensure!(is_root(), "SKIP needs root: only hosts with links of their own");
    Hosts::start(Who::Root, count)
}

fn cut(guest: Guest, seconds: u64) -> Result<()> {
    let hosts = own_hosts(2)?;
    let mut talk = Talk::start(&hosts, Start::Launched, guest)?;
    talk.job.await_ready()?;
    talk.job.migrate(1)?;
    talk.job.await_progress(3)?;
    hosts.set_link(0, 1, false)?;
    std::thread::sleep(Duration::from_secs(seconds));
    hosts.set_link(0, 1, true)?;
    talk.job.await_progress(3)?;
    talk.job.migrate(0)?;
    talk.job.await_progress(3)?;
    talk.finish().map(drop)
}

fn slow(guest: Guest) -> Result<()> {
    let hosts = own_hosts(2)?;
    hosts.slow_link(0, 1, SLOW)?;
    let mut talk = Talk::start(&hosts, Start::Launched, guest)?;
    talk.job.await_ready()?;
    for turn in 0..4 {
        talk.job.migrate((turn + 1) % 2).with_context(|| format!("move {turn}"))?;
        talk.job.await_progress(3).with_context(|| format!("after move {turn}"))?;
    }
    talk.finish().map(drop)
}

fn many(guest: Guest, who: Who, worker: &mut Worker) -> Result<()> {
    let seed = seed()?;
    let mut talk = Talk::start(worker.hosts(who)?, Start::Launched, guest)?;
    talk.job.await_ready()?;
    random_moves(&mut talk.job, seed, MANY).with_context(|| format!("VOSRUN_SEED={seed}"))?;
    talk.finish().map(drop)
}

/// Each time the connection is led past its relay, and back for the next move.
fn direct(guest: Guest, who: Who, worker: &mut Worker) -> Result<()> {
    let mut talk = Talk::start(worker.hosts(who)?, Start::Launched, guest)?;
    talk.job.await_ready()?;
    for (turn, to) in [1, 2, 1, 0, 2].into_iter().enumerate() {
        talk.job.migrate(to).with_context(|| format!("move {turn}"))?;
        if to > 0 {
            await_binding(&mut talk.job, "direct").with_context(|| format!("after move {turn}"))?;
        }
        talk.job.await_progress(20).with_context(|| format!("after move {turn}"))?;
    }
    talk.finish().map(drop)
}

/// Each time the job comes home its connection is a native one again.
fn native_again(guest: Guest, start: Start, who: Who, worker: &mut Worker) -> Result<()> {
    let mut talk = Talk::start(worker.hosts(who)?, start, guest)?;
    talk.job.await_ready()?;
    for turn in 0..3 {
        talk.job.migrate(1).with_context(|| format!("move {turn} away"))?;
        talk.job.await_progress(20)?;
        talk.job.migrate(0).with_context(|| format!("move {turn} home"))?;
        await_binding(&mut talk.job, "native").with_context(|| format!("after move {turn}"))?;
        talk.job.await_progress(20)?;
    }
    talk.finish().map(drop)
}

/// To the job, from a program on its host.
fn signal(job: &Job<'_>, how: &str) -> Result<()> {
    let mut kill = job.hosts.command(job.at, Path::new("/bin/kill"));
    kill.args([how, &job.host_pid()?.to_string()]);
    procs::run(&mut kill, SOON)?.good("kill").map(drop)
}

/// A stopped job is led back and moves as well, and goes on when it is continued.
fn direct_stopped(who: Who, worker: &mut Worker) -> Result<()> {
    let mut talk = Talk::start(worker.hosts(who)?, Start::Launched, tcp("tcp_stream", &["4"]))?;
    talk.job.await_ready()?;
    talk.job.migrate(1)?;
    await_binding(&mut talk.job, "direct")?;
    signal(&talk.job, "-STOP")?;
    let is_stopped = |job: &Job<'_>| Ok::<bool, anyhow::Error>(job.ps()?["state"] == "STOPPED");
    until(SOON, "the stop", || Ok(is_stopped(&talk.job)?.then_some(())))?;
    // Who waits for it at home is stopped as well, and has the other ends of its connections.
    let standin = talk.job.child.id() as i32;
    until(SOON, "the stop at home", || {
        Ok(procs::state(standin).is_some_and(|s| ['t', 'T'].contains(&s)).then_some(()))
    })?;
    talk.job.migrate(2)?;
    ensure!(is_stopped(&talk.job)?, "it was let go on");
    signal(&talk.job, "-CONT")?;
    kill(Pid::from_raw(standin), Signal::SIGCONT)?;
    talk.job.await_progress(20)?;
    talk.finish().map(drop)
}

/// Until all connections have a binding that ends so.
pub fn await_binding(job: &mut Job<'_>, binding: &str) -> Result<()> {
    let until = Instant::now() + SOON;
    loop {
        let document = inspected(job)?;
        let all = document["network"].as_array().context("no network")?;
        let is_it = |one: &Value| one["binding"].as_str().is_some_and(|b| b.ends_with(binding));
        if !all.is_empty() && all.iter().all(is_it) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "not {binding}: {}", document["network"]);
        job.await_progress(1)?;
    }
}

pub fn cells() -> Vec<Cell> {
    let stream = |family: &'static [&'static str]| tcp("tcp_stream", family);
    let server = called("tcp_server", &[], "tcp_client");
    let datagrams = called("udp_server", &["one"], "udp_client");
    let mut cells = Vec::new();
    for guest in [stream(&["4"]), server, datagrams] {
        for seconds in CUTS {
            let name = format!("cut/{seconds}s/{}", guest.name());
            cells.push(Cell::new(name, move |_| cut(guest, seconds)).limit(120));
        }
        let name = format!("slow/root/{}", guest.name());
        cells.push(Cell::new(name, move |_| slow(guest)).limit(240));
    }
    for who in [Who::Root, Who::User] {
        for guest in [
            stream(&["4"]),
            stream(&["6"]),
            stream(&["mapped"]),
            tcp("tcp_names", &["4"]),
            tcp("tcp_names", &["6"]),
            tcp("tcp_shared", &[]),
        ] {
            let name = format!("direct/{}/{}", who.word(), guest.name());
            cells.push(Cell::new(name, move |w| direct(guest, who, w)).limit(120));
        }
        for (way, start) in [("launched", Start::Launched), ("attached", Start::Attached)] {
            for guest in
                [stream(&["4"]), stream(&["6"]), tcp("tcp_names", &["4"]), tcp("tcp_shared", &[])]
            {
                let name = format!("home/{way}/{}/{}", who.word(), guest.name());
                cells.push(Cell::new(name, move |w| native_again(guest, start, who, w)));
            }
        }
        let name = format!("direct/{}/stopped", who.word());
        cells.push(Cell::new(name, move |w| direct_stopped(who, w)));
    }
    for (guest, who) in [
        (stream(&["4"]), Who::User),
        (stream(&["6"]), Who::Root),
        (server, Who::User),
        (datagrams, Who::User),
    ] {
        let name = format!("hundred/{}/{}", who.word(), guest.name());
        cells.push(Cell::new(name, move |w| many(guest, who, w)).limit(240));
    }
    cells
}
