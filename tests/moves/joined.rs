//! Connections between two jobs, wherever each of them is: every byte once and in order, by a
//! connection that leads straight from one to the other.

use anyhow::{Context, Result};

use super::common::job::{Job, Program, Start};
use super::common::runner::{Cell, Worker};
use super::connections::await_binding;
use super::{build, tcp, Flavour, Guest, Who};

/// Both are busy, and go on so.
fn await_joined(job: &mut Job<'_>, peer: &mut Job<'_>) -> Result<()> {
    await_binding(job, "joined")?;
    await_binding(peer, "joined").context("at the other end")?;
    job.await_progress(20)
}

/// The job, and the program that it talks to, which is a job as well.
fn joined(guest: Guest, who: Who, worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(who)?;
    let meet = hosts.fresh_dir("meet")?.join("point");
    let source = guest.peer.context("a guest with a peer")?;
    let other = Program::new(build::guest(source, Flavour::Plain)?).env("GUEST_MEET", &meet);
    let mut peer = Job::start(hosts, Start::Launched, other)?;
    peer.await_ready()?;
    let program = guest.program()?.env("GUEST_MEET", &meet);
    let mut job = Job::start(hosts, Start::Launched, program)?;
    job.await_ready()?;
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

pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
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
    }
    cells
}
