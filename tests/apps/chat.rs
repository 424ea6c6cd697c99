//! A chat between two jobs that are both moved, which verify all that they hear of each other.

use std::process::Stdio;

use anyhow::{ensure, Context, Result};

use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::{seed, until, Random};
use super::servers::{free_port, lines_of, serve, verdict};
use super::{source, LONG};

/// In each turn the server moves, or the client, or both at the same time.
const TURNS: usize = 12;

/// Waits until both have heard more.
fn go_on(server: &mut Job<'_>, client: &mut Job<'_>) -> Result<()> {
    let before = [lines_of(server), lines_of(client)];
    until(LONG, "lines that are heard", || {
        for child in [&mut server.child, &mut client.child] {
            ensure!(child.try_wait()?.is_none(), "an early end");
        }
        Ok((lines_of(server) > before[0] && lines_of(client) > before[1]).then_some(()))
    })
    .with_context(|| format!("server {}, client {}", server.said(), client.said()))
}

fn moves(server: &mut Job<'_>, client: &mut Job<'_>, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    for turn in 0..TURNS {
        let [first, second] = [&*server, &*client].map(|job| job.at + 1 + random.next(2) as usize);
        let (to, client_to) = (first % 3, second % 3);
        match turn % 3 {
            0 => server.migrate(to).map(drop),
            1 => client.migrate(client_to).map(drop),
            _ => server.migrate_both(to, client, client_to),
        }
        .with_context(|| format!("turn {turn}: {} {}", server.said(), client.said()))?;
        // Sometimes the next move comes before anything is heard.
        if random.next(3) > 0 {
            go_on(server, client).with_context(|| format!("after turn {turn}"))?;
        }
    }
    go_on(server, client)
}

fn chat(hosts: &Hosts, start: Start, address: &str, client_home: usize) -> Result<()> {
    let (python, file, port) = (needs("python3")?, source("chat.py")?, free_port()?);
    let program = |what: &str| {
        let words = [&file.display().to_string(), what, address, &port.to_string()];
        Program::new(&python).args(words)
    };
    let mut server = serve(hosts, start, program("serve"), port)?;
    let mut talk = program("talk").at(client_home);
    talk.stdin = Stdio::piped();
    let mut client = Job::start_early(hosts, start, talk)?;
    go_on(&mut server, &mut client)?;
    if start == Start::Attached {
        server.attach()?;
        client.attach()?;
    }
    if start != Start::Native {
        let seed = seed()?;
        moves(&mut server, &mut client, seed).with_context(|| format!("VOSRUN_SEED={seed}"))?;
    }
    drop(client.stdin());
    verdict(&mut client)?;
    verdict(&mut server)?;
    server.await_nothing_left()
}

/// The client is started on another host than the server.
pub fn apart(hosts: &Hosts, start: Start) -> Result<()> {
    chat(hosts, start, &hosts.hosts[0].address, 1)
}

/// Both are started on the same host, and speak over loopback.
pub fn together(hosts: &Hosts, start: Start) -> Result<()> {
    chat(hosts, start, "127.0.0.1", 0)
}
