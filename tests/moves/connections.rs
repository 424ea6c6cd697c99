//! Connections of a job on links that are cut for a while or slow, and through a hundred moves: nothing
//! is lost, doubled, or comes in another order.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::common::hosts::Hosts;
use super::common::is_root;
use super::common::job::Start;
use super::common::runner::{Cell, Worker};
use super::{called, random_moves, seed, tcp, Guest, Talk, Who};

/// At five seconds a link that is cut lives on; after fifteen both sides have given it up and make a new
/// one.
const CUTS: [u64; 2] = [5, 15];

/// The link's rate, as in tc(8).
const SLOW: &str = "10mbit";

const MANY: usize = 100;

fn own_hosts(count: usize) -> Result<Hosts> {
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
