//! What an adopted process leaves behind at its old pid, as its parent and other natives see it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::Signal;

use super::common::build::{self, Flavour};
use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::procs::Collected;
use super::common::{until, SOON};

/// A parent that tells on stderr what waitpid(2) says, and ends with its child.
const PARENT: &[&str] = &[
    "python3",
    "-c",
    "import os, sys\n\
     child = os.fork()\n\
     if child == 0: os.execvp(sys.argv[1], sys.argv[1:])\n\
     while True:\n\
     \tstatus = os.waitpid(child, os.WUNTRACED | os.WCONTINUED)[1]\n\
     \tend = not (os.WIFSTOPPED(status) or os.WIFCONTINUED(status))\n\
     \tword = 'ended' if end else 'continued' if os.WIFCONTINUED(status) else 'stopped'\n\
     \tprint(word, status, file=sys.stderr, flush=True)\n\
     \tif end: break\n",
];

/// Memory that a stand-in may have, KiB.
const MEMORY: u64 = 200;

fn away<'h>(hosts: &'h Hosts) -> Result<Job<'h>> {
    needs("python3")?;
    let program = Program::new(build::guest("obedient", Flavour::Plain)?).via(PARENT);
    let mut job = Job::start_early(hosts, Start::Attached, program)?;
    job.await_ready()?;
    job.attach()?;
    job.migrate(1)?;
    job.await_progress(2)?;
    Ok(job)
}

fn await_said(job: &Job<'_>, what: &str) -> Result<()> {
    until(SOON, &format!("the parent's {what:?}"), || {
        Ok(job.stderr.text().ends_with(&format!("{what}\n")).then_some(()))
    })
    .with_context(|| job.said())
}

/// It holds nothing of the program.
pub fn holds_nothing(hosts: &Hosts) -> Result<()> {
    let job = away(hosts)?;
    let pid = job.pid_at_home()?;
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    ensure!(open == 0, "the stand-in has {open} descriptors");
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count();
    ensure!(threads == 1, "the stand-in has {threads} threads");
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    for field in ["RssAnon:", "RssFile:", "RssShmem:"] {
        let line = status.lines().find_map(|l| l.strip_prefix(field)).context(field)?;
        let size: u64 = line.split_whitespace().next().context(field)?.parse()?;
        ensure!(size < MEMORY, "{field} {size} KiB");
    }
    job.signal(Signal::SIGTERM)?;
    await_said(&job, "ended 1792")
}

/// Its parent sees it stop and go on with the job, by signals sent to the old pid.
pub fn stops(hosts: &Hosts) -> Result<()> {
    let mut job = away(hosts)?;
    for _ in 0..3 {
        job.signal(Signal::SIGSTOP)?;
        await_said(&job, "stopped 4991")?;
        job.signal(Signal::SIGCONT)?;
        await_said(&job, "continued 65535")?;
        job.await_progress(3)?;
    }
    job.signal(Signal::SIGKILL)?;
    await_said(&job, "ended 9")
}

/// The wait status of a death by a signal.
pub fn dies_by_signal(hosts: &Hosts) -> Result<()> {
    for (signal, status) in [(Signal::SIGHUP, 1), (Signal::SIGINT, 2), (Signal::SIGALRM, 14)] {
        let mut job = away(hosts)?;
        job.signal(signal)?;
        await_said(&job, &format!("ended {status}"))?;
        job.end(SOON)?;
        job.await_nothing_left()?;
    }
    Ok(())
}

/// Real-time signals do not merge.
pub fn counts_realtime_signals(hosts: &Hosts) -> Result<()> {
    const COUNT: usize = 20;
    let job = away(hosts)?;
    let pid = job.pid_at_home()?.to_string();
    let script = format!("kill -RTMIN {pid}; ").repeat(COUNT);
    let mut kill = std::process::Command::new("bash");
    ensure!(kill.args(["-c", &script]).status()?.success(), "kill -RTMIN");
    let path = job.dir.join("status.usr1");
    until(SOON, "every real-time signal", || {
        let text = fs::read_to_string(&path)?;
        Ok((text.lines().nth(1) == Some(&COUNT.to_string())).then_some(()))
    })?;
    job.signal(Signal::SIGTERM)?;
    await_said(&job, "ended 1792")
}

/// A native reader sees the end of what the program has closed far away.
pub fn closes_its_output(hosts: &Hosts) -> Result<()> {
    let script =
        "echo ready; while read a; do case $a in close) exec >&-;; end) exit 3;; esac; done";
    let mut program = Program::new(Path::new("/bin/sh")).args(["-c", script]);
    let (reader, writer) = std::io::pipe()?;
    program.stdin = Stdio::piped();
    program.stdout = Some(Stdio::from(writer));
    let mut job = Job::start_early(hosts, Start::Attached, program)?;
    let (read, end) = Collected::start(reader);
    until(SOON, "ready", || Ok((read.text() == "ready\n").then_some(())))?;
    job.attach()?;
    job.migrate(1)?;
    ensure!(!end.is_finished(), "the end came with the move");
    let mut input = job.stdin().context("no stdin")?;
    input.write_all(b"close\n")?;
    until(SOON, "the end of the output", || Ok(end.is_finished().then_some(())))?;
    input.write_all(b"end\n")?;
    let code = job.end(SOON)?;
    ensure!(code == 3, "exit code {code}");
    job.await_nothing_left()
}
