//! What a job does not get at the target is said: by `check` before, and by the move itself.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use crate::common::build::{self, Flavour};
use crate::common::hosts::Hosts;
use crate::common::job::{Job, Program, Start};
use crate::common::runner::{Cell, Worker};
use crate::common::{self, procs, Who};

/// Cells `said/WHO/…`.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for who in [Who::Root, Who::User] {
        let word = who.word();
        for (way, start) in [("launched", Start::Launched), ("attached", Start::Attached)] {
            let run = move |w: &mut Worker| keyrings(start, who, w);
            cells.push(Cell::new(format!("said/{word}/{way}/keyrings"), run));
        }
        let run = move |w: &mut Worker| pinned(who, w);
        cells.push(Cell::new(format!("said/{word}/pinned-with-its-supervisor"), run));
        cells.push(Cell::new(format!("said/{word}/nice"), move |_| nice(who)));
    }
    cells.push(Cell::new("said/root/affinity", |_| affinity()));
    cells.push(Cell::new("said/user/connections", connections));
    cells
}

fn guest(name: &str) -> Result<Program> {
    Ok(Program::new(build::guest(name, Flavour::Plain)?))
}

/// Moves a job, and gives what is printed.
fn migrate(job: &mut Job<'_>, to: usize) -> Result<String> {
    let hosts = job.hosts;
    let done = hosts.run(job.at, &["migrate", &job.name, "--to", hosts.hosts[to].name])?;
    ensure!(done.code() == 0, "migrate: exit {}: {}{}", done.code(), done.stdout, done.stderr);
    job.at = to;
    job.excuse(5000.0)?;
    job.await_progress(2)?;
    Ok(done.stdout + &done.stderr)
}

/// Warnings of this code by `check`.
fn warnings(job: &Job<'_>, to: usize, code: &str) -> Result<usize> {
    let hosts = job.hosts;
    let name = hosts.hosts[to].name;
    let check = hosts.run(job.at, &["check", &job.name, "--to", name, "--json"])?;
    let text = check.good("check")?;
    let document: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let findings = document["findings"].as_array().context("no findings")?;
    Ok(findings.iter().filter(|f| f["code"] == code && f["severity"] == "warning").count())
}

/// The keyrings that a job has made are lost by its first move; there are none by the second.
fn keyrings(start: Start, who: Who, worker: &mut Worker) -> Result<()> {
    let mut job = Job::start(worker.hosts(who)?, start, guest("keyrings")?)?;
    job.await_ready()?;
    if start == Start::Launched {
        ensure!(warnings(&job, 1, "VOS-KEYRING")? == 1, "check says nothing of keyrings");
    }
    let said = migrate(&mut job, 1)?;
    for what in ["lost its keyring", "lost its session's keyring"] {
        ensure!(said.contains(what), "the move does not say {what:?}: {said}");
    }
    ensure!(warnings(&job, 2, "VOS-KEYRING")? == 0, "check tells of keyrings that are gone");
    let said = migrate(&mut job, 2)?;
    ensure!(!said.contains("has lost"), "the second move says: {said}");
    job.finish().map(drop)
}

/// A file of the job's folder in /proc where it is.
fn of_proc(job: &Job<'_>, file: &str) -> Result<String> {
    let mut cat = job.hosts.command(job.at, Path::new("/bin/cat"));
    cat.arg(format!("/proc/{}/{file}", job.host_pid()?));
    procs::run(&mut cat, common::SOON)?.good("cat")
}

/// `inspect` where the job is, as a document.
pub fn inspected(job: &Job<'_>) -> Result<Value> {
    let text = job.hosts.run(job.at, &["inspect", &job.name, "--json"])?.good("inspect")?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

/// `inspect` lists the connections: whose they are, over whom, and how much has gone over them.
fn connections(worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(Who::User)?;
    let meet = hosts.fresh_dir("meet")?.join("point");
    let program = guest("tcp_server")?.args(["any4"]).env("GUEST_MEET", &meet);
    let mut job = Job::start(hosts, Start::Launched, program)?;
    job.await_ready()?;
    let port: u16 = fs::read_to_string(&meet)?.trim().parse()?;
    let mut client = TcpStream::connect(("127.0.0.1", port))?;
    BufReader::with_capacity(1, client.try_clone()?).read_line(&mut String::new())?;
    let [own, peer] = [client.peer_addr()?, client.local_addr()?].map(|a| a.to_string());
    let check = |job: &Job<'_>, binding: &str, knows_trip: bool| -> Result<Value> {
        let document = inspected(job)?;
        let [one] = document["network"].as_array().context("no network")?.as_slice() else {
            anyhow::bail!("not one connection: {document}");
        };
        ensure!(one["own"] == own.as_str() && one["peer"] == peer.as_str(), "{one}");
        ensure!(one["binding"] == binding && one["rtt_us"].is_u64() == knows_trip, "{one}");
        Ok(one.clone())
    };
    let one = check(&job, "native", true)?;
    ensure!(one["received"] == 0 && one["sent"].as_u64() > Some(0), "{one}");
    job.migrate(1)?;
    client.write_all(b"question")?;
    client.read_exact(&mut [0; 8])?;
    let one = check(&job, &format!("forwarded via {}", job.hosts.hosts[0].name), false)?;
    ensure!(one["received"] == 8, "{one}");
    let text = job.hosts.run(1, &["inspect", &job.name])?.good("inspect")?;
    ensure!(text.contains(&format!("{own} → {peer}   forwarded via")), "{text}");
    drop(client);
    job.finish().map(drop)
}

fn allowed_cpus(job: &Job<'_>) -> Result<String> {
    let status = of_proc(job, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(line.context("no Cpus_allowed_list")?.trim().to_owned())
}

fn needs_two_cpus() -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(cpus > 1, "SKIP needs two CPUs");
    Ok(())
}

/// A job that was started with its supervisor on one CPU stays there.
fn pinned(who: Who, worker: &mut Worker) -> Result<()> {
    needs_two_cpus()?;
    let program = guest("counter")?.via(&["taskset", "-c", "1"]);
    let mut job = Job::start(worker.hosts(who)?, Start::Launched, program)?;
    job.await_ready()?;
    for to in [1, 2, 0, 1] {
        let said = migrate(&mut job, to)?;
        ensure!(!said.contains("affinity"), "the move says: {said}");
        ensure!(allowed_cpus(&job)? == "1", "CPUs {} at host {to}", allowed_cpus(&job)?);
    }
    job.finish().map(drop)
}

/// The node of host b is nicer than the job: root makes the job what it was, an ordinary user may
/// not, which is said.
fn nice(who: Who) -> Result<()> {
    ensure!(who == Who::User || common::is_root(), "SKIP needs root");
    let hosts = Hosts::bare(who, 2)?;
    for (index, via) in [(0, &[] as &[&str]), (1, &["nice", "-n", "5"])] {
        hosts.start_node_via(index, via, &|_, _| {})?;
    }
    let mut job = Job::start(&hosts, Start::Launched, guest("counter")?)?;
    job.await_ready()?;
    let before = stat_field(&job, 17)?;
    ensure!(before == "0", "nice value {before} at host a");
    let said = migrate(&mut job, 1)?;
    let refused = said.contains("nice value 0 is not granted");
    let nicer = stat_field(&job, 17)?;
    ensure!(refused == (who == Who::User), "nice value {nicer}, the move says: {said}");
    ensure!((nicer == "5") == refused, "nice value {nicer} at host b");
    job.finish().map(drop)
}

/// A field of `/proc/PID/stat` behind the name (proc_pid_stat(5)): the first is the state.
fn stat_field(job: &Job<'_>, index: usize) -> Result<String> {
    let stat = of_proc(job, "stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
    Ok(fields.split(' ').nth(index - 1).context("a short stat")?.to_owned())
}

/// A control group of CPU 0 alone (cpuset(7)), removed with it.
struct Group(PathBuf);

impl Group {
    fn of_cpu_0() -> Result<Self> {
        let first = Path::new("/sys/fs/cgroup/cpuset");
        let second = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(second.join("cgroup.subtree_control"));
        let parent = match controllers {
            _ if first.is_dir() => first,
            Ok(words) if words.split_whitespace().any(|word| word == "cpuset") => second,
            _ => anyhow::bail!("SKIP no control groups of CPUs"),
        };
        let group = Self(parent.join(format!("vosrun-test-{}", std::process::id())));
        fs::create_dir(&group.0)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            fs::write(group.0.join(file), "0").with_context(|| format!("{file} of a group"))?;
        }
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What was in it has ended, but may not be reaped yet.
        let removed = common::until(common::SOON, "the end of a control group", || {
            Ok(fs::remove_dir(&self.0).ok())
        });
        if let Err(e) = removed {
            eprintln!("{}: {e:#}", self.0.display());
        }
    }
}

/// Host b has CPU 0 only: a job of CPU 1 gets that, which is said.
fn affinity() -> Result<()> {
    ensure!(common::is_root(), "SKIP needs root");
    needs_two_cpus()?;
    let group = Group::of_cpu_0()?;
    let hosts = Hosts::bare(Who::Root, 3)?;
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.0.display());
    for index in 0..3 {
        let via = ["sh", "-c", &script, "sh"];
        let via: &[&str] = if index == 1 { &via } else { &[] };
        hosts.start_node_via(index, via, &|_, _| {})?;
    }
    let program = guest("counter")?.via(&["taskset", "-c", "1"]);
    let mut job = Job::start(&hosts, Start::Launched, program)?;
    job.await_ready()?;
    ensure!(warnings(&job, 2, "VOS-AFFINITY")? == 0, "check warns of host c");
    ensure!(warnings(&job, 1, "VOS-AFFINITY")? == 1, "check does not warn of host b");
    let said = migrate(&mut job, 1)?;
    ensure!(said.contains("CPUs 1 of its affinity are not here"), "the move says: {said}");
    ensure!(allowed_cpus(&job)? == "0", "CPUs {} at host b", allowed_cpus(&job)?);
    let end = job.finish().map(drop);
    drop(hosts);
    drop(group);
    end
}
