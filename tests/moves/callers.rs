//! Ten thousand connections to a job that is away leave nothing behind, neither at its host nor at its
//! home.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{ensure, Context, Result};

use super::common::hosts::Hosts;
use super::common::job::{Job, Start};
use super::common::{until, SOON};
use super::{with, Who, Worker};

const THREADS: usize = 4;

/// What a supervisor has: descriptors, and KiB of memory.
#[derive(Debug, Clone, Copy)]
struct Used {
    descriptors: usize,
    memory: u64,
}

fn used(pid: i32) -> Result<Used> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let memory = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no RssAnon")?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(Used { descriptors, memory: memory.parse()? })
}

/// The supervisors at the home and at the host of a job.
fn supervisors(hosts: &Hosts, job: &Job<'_>) -> Result<[i32; 2]> {
    let own = |index: usize| -> Result<i32> {
        let text = hosts.run(index, &["ps", "--json"])?.good("ps")?;
        let document: serde_json::Value = serde_json::from_str(&text)?;
        let jobs = document["jobs"].as_array().context("no jobs in ps --json")?;
        let of_job = jobs.iter().find(|known| known["name"] == job.name.as_str());
        let pid = of_job.and_then(|known| known["supervisor_pid"].as_i64());
        Ok(i32::try_from(pid.with_context(|| format!("no supervisor_pid in {text}"))?)?)
    };
    Ok([own(0)?, own(job.at)?])
}

fn call(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let mut greeting = String::new();
    BufReader::with_capacity(1, stream.try_clone()?).read_line(&mut greeting)?;
    ensure!(greeting.contains(&format!(" {port}\n")), "{greeting:?}");
    let mut answer = [0; 8];
    stream.write_all(b"question")?;
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"question", "{answer:?}");
    Ok(())
}

fn call_all(port: u16, times: usize) -> Result<()> {
    let call_some = || (0..times / THREADS).try_for_each(|_| call(port));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(call_some)).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.into_iter().try_for_each(|end| end.map_err(|_| anyhow::anyhow!("a panic"))?)
    })
}

/// See the module.
pub fn ten_thousand(worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(Who::User)?;
    let meet = hosts.fresh_dir("meet")?.join("point");
    let program = with("tcp_server", &["any4"]).program()?.env("GUEST_MEET", &meet);
    let mut job = Job::start(hosts, Start::Launched, program)?;
    job.await_ready()?;
    job.migrate(1)?;
    let port = fs::read_to_string(&meet)?.trim().parse()?;
    call_all(port, 400)?;
    let pids = supervisors(hosts, &job)?;
    let before = [used(pids[0])?, used(pids[1])?];
    call_all(port, 10_000)?;
    for (pid, before) in pids.into_iter().zip(before) {
        let mut after = before;
        until(SOON, "no descriptor more", || {
            after = used(pid)?;
            Ok((after.descriptors <= before.descriptors).then_some(()))
        })
        .with_context(|| format!("{before:?} before, {after:?} after"))?;
        ensure!(after.memory < before.memory + 1024, "{before:?} before, {after:?} after");
    }
    job.migrate(0)?;
    call_all(port, 400)?;
    job.finish().map(drop)
}
