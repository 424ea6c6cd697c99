//! Connections between two jobs, wherever each of them is: every byte once and in order, by a
//! connection that leads straight from one to the other.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::common::hosts::Hosts;
use super::common::job::{Job, Program, Start};
use super::common::runner::{Cell, Worker};
use super::connections::{await_binding, own_hosts};
use super::{build, tcp, Flavour, Guest, Who};

/// TCP lives through that.
const CUT: Duration = Duration::from_secs(5);

/// Both are busy, and go on so.
fn await_joined(job: &mut Job<'_>, peer: &mut Job<'_>) -> Result<()> {
    await_binding(job, "joined")?;
    await_binding(peer, "joined").context("at the other end")?;
    job.await_progress(20)
}

/// The job, and the program that it talks to, which is a job as well.
fn start<'h>(guest: Guest, hosts: &'h Hosts) -> Result<(Job<'h>, Job<'h>)> {
    start_at(guest, hosts, &hosts.fresh_dir("meet")?.join("point"))
}

fn start_at<'h>(guest: Guest, hosts: &'h Hosts, meet: &Path) -> Result<(Job<'h>, Job<'h>)> {
    let source = guest.peer.context("a guest with a peer")?;
    let other = Program::new(build::guest(source, Flavour::Plain)?).env("GUEST_MEET", meet);
    let mut peer = Job::start(hosts, Start::Launched, other)?;
    peer.await_ready()?;
    let program = guest.program()?.env("GUEST_MEET", meet);
    let mut job = Job::start(hosts, Start::Launched, program)?;
    job.await_ready()?;
    Ok((job, peer))
}

fn joined(guest: Guest, who: Who, worker: &mut Worker) -> Result<()> {
    let (mut job, mut peer) = start(guest, worker.hosts(who)?)?;
    job.migrate(1).context("the job alone")?;
    await_joined(&mut job, &mut peer).context("one is away")?;
    peer.migrate(2).context("its peer")?;
    await_joined(&mut job, &mut peer).context("both are away")?;
    job.migrate(2).context("to its peer")?;
    await_joined(&mut job, &mut peer).context("on one node")?;
    for turn in 0..3 {
        let (to, peer_to) = ((turn + 1) % 3, turn);
        job.migrate_both(to, &mut peer, peer_to).with_context(|| format!("both, turn {turn}"))?;
        await_joined(&mut job, &mut peer).with_context(|| format!("after turn {turn}"))?;
    }
    peer.migrate(0).context("its peer, home")?;
    await_binding(&mut job, "native").context("at home")?;
    await_binding(&mut peer, "native").context("both at home")?;
    job.await_progress(20)?;
    job.end_well()?;
    peer.finish().map(drop)
}

/// The connection stalls while the link is cut, and nothing is lost.
fn cut() -> Result<()> {
    let hosts = own_hosts(2)?;
    let (mut job, mut peer) = start(tcp("tcp_stream", &["4"]), &hosts)?;
    job.migrate(1)?;
    await_joined(&mut job, &mut peer)?;
    hosts.set_link(0, 1, false)?;
    std::thread::sleep(CUT);
    hosts.set_link(0, 1, true)?;
    job.await_progress(20).context("after the cut")?;
    job.migrate(0).context("home")?;
    await_binding(&mut job, "native")?;
    job.await_progress(20)?;
    job.end_well()?;
    peer.finish().map(drop)
}

/// Both end while they are joined: what was kept in reserve is no reason to stay.
fn ended(who: Who, worker: &mut Worker) -> Result<()> {
    let (mut job, mut peer) = start(tcp("tcp_stream", &["4"]), worker.hosts(who)?)?;
    job.migrate(1)?;
    peer.migrate(2)?;
    await_joined(&mut job, &mut peer)?;
    job.end_well()?;
    // Its other end is over, and the job goes on and moves.
    peer.await_progress(5)?;
    peer.migrate(1)?;
    peer.await_progress(5)?;
    peer.finish().map(drop)
}

/// One direction is shut down while they are joined; the other goes on, wherever both go.
fn halved(who: Who, worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(who)?;
    let meet = hosts.fresh_dir("meet")?.join("point");
    let (mut job, mut peer) = start_at(tcp("tcp_halved", &[]), hosts, &meet)?;
    job.migrate(1)?;
    await_joined(&mut job, &mut peer)?;
    std::fs::write(meet.with_extension("half"), "")?;
    job.await_progress(20)?;
    job.migrate(2).context("the one that has shut down")?;
    job.await_progress(20)?;
    peer.migrate(1).context("its peer")?;
    job.await_progress(20)?;
    job.end_well()?;
    peer.finish().map(drop)
}

pub fn cells() -> Vec<Cell> {
    let mut cells = vec![Cell::new("joined/root/cut", |_| cut()).limit(120)];
    for who in [Who::Root, Who::User] {
        for guest in [
            tcp("tcp_stream", &["4"]),
            tcp("tcp_stream", &["6"]),
            tcp("tcp_stream", &["mapped"]),
            tcp("tcp_names", &["4"]),
            tcp("tcp_shared", &[]),
        ] {
            let name = format!("joined/{}/{}", who.word(), guest.name());
            cells.push(Cell::new(name, move |w| joined(guest, who, w)).limit(120));
        }
        let name = format!("joined/{}/halved", who.word());
        cells.push(Cell::new(name, move |w| halved(who, w)));
        let name = format!("joined/{}/ended", who.word());
        cells.push(Cell::new(name, move |w| ended(who, w)));
    }
    cells
}
