//! Job control: an interactive shell in a terminal starts `vosrun -- PROGRAM`, stops it,
//! continues it and takes the terminal back, wherever the program is.

use anyhow::{ensure, Context, Result};

use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::procs;
use super::common::pty::Terminal;
use super::common::{until, SOON};
use super::LONG;

const PROMPT: &str = "prompt$ ";

/// A shell with job control on the first host. Its `$V` starts vosrun with the job's name.
pub fn shell(hosts: &Hosts) -> Result<(Job<'_>, Terminal)> {
    let args = ["--norc", "--noprofile", "--noediting", "-i"];
    let program = Program::new(needs("bash")?).args(args).env("PS1", PROMPT);
    let (job, mut tty) = Job::in_terminal(hosts, Start::Native, program)?;
    tty.expect(PROMPT)?;
    tty.type_in(&format!("V='{} --name {}'\r", job.vosrun_at_home(), job.name))?;
    tty.expect(PROMPT)?;
    tty.type_in("stty -g > before\r")?;
    tty.expect(PROMPT)?;
    Ok((job, tty))
}

/// The program has ended with `code`: the shell says so, and has its terminal as before.
pub fn leave(mut job: Job<'_>, mut tty: Terminal, code: i32) -> Result<()> {
    tty.expect(PROMPT)?;
    tty.type_in("echo co''de-$?; stty -g | cmp before - && echo sa''me\r")?;
    tty.expect(&format!("code-{code}\r\n"))?;
    tty.expect("same\r\n")?;
    tty.expect(PROMPT)?;
    tty.type_in("exit 0\r")?;
    let end = job.end(LONG)?;
    ensure!(end == 0, "the shell ended with {end}: {}", tty.shown());
    job.await_nothing_left()
}

/// The key ^Z gives the prompt back.
pub fn stop(tty: &mut Terminal) -> Result<()> {
    tty.type_in("\x1a")?;
    tty.expect("Stopped")?;
    tty.expect(PROMPT)?;
    tty.type_in("stty -g | cmp before - && echo sa''ne\r")?;
    tty.expect("sane\r\n")?;
    tty.expect(PROMPT).map(drop)
}

/// A line for the program, and its answer.
pub fn ask(tty: &mut Terminal, line: &str) -> Result<()> {
    tty.type_in(&format!("{line}\r"))?;
    tty.expect(&format!("got-{line}\r\n")).map(drop)
}

fn answering(tty: &mut Terminal) -> Result<()> {
    let script = "echo rea\"\"dy; while read a; do echo got-$a; test $a != end || exit 7; done";
    tty.type_in(&format!("$V -- sh -c '{script}'\r"))?;
    tty.expect("ready\r\n").map(drop)
}

/// Stopped and continued before a move, between moves and after the way home.
pub fn stop_and_continue(hosts: &Hosts, _: Start) -> Result<()> {
    let (mut job, mut tty) = shell(hosts)?;
    answering(&mut tty)?;
    stop(&mut tty)?;
    tty.type_in("fg\r")?;
    ask(&mut tty, "one")?;
    for (turn, to) in [1, 2, 0, 1].into_iter().enumerate() {
        job.migrate(to)?;
        ask(&mut tty, &format!("moved{turn}"))?;
        stop(&mut tty)?;
        tty.type_in("fg\r")?;
        ask(&mut tty, &format!("continued{turn}"))?;
    }
    ask(&mut tty, "end")?;
    leave(job, tty, 7)
}

/// Moved while it is stopped: it stays so until `fg`.
pub fn moved_while_stopped(hosts: &Hosts, _: Start) -> Result<()> {
    let (mut job, mut tty) = shell(hosts)?;
    answering(&mut tty)?;
    for (turn, to) in [1, 2, 0, 1, 0, 2].into_iter().enumerate() {
        stop(&mut tty)?;
        job.migrate(to)?;
        await_stopped(&job)?;
        tty.type_in("fg\r")?;
        ask(&mut tty, &format!("continued{turn}"))?;
    }
    ask(&mut tty, "end")?;
    leave(job, tty, 7)
}

/// The process that the shell waits for, and the program wherever it is, are stopped.
fn await_stopped(job: &Job<'_>) -> Result<()> {
    until(SOON, "vosrun and its job are stopped", || {
        let below = procs::descendants(job.child.id() as i32);
        let waiting = below.iter().find(|pid| procs::command_line(**pid).contains(&job.name));
        let stopped = |pid: i32| procs::state(pid).is_some_and(|s| matches!(s, 'T' | 't'));
        let program = program_of_shell()?;
        Ok((waiting.is_some_and(|pid| stopped(*pid)) && stopped(program)).then_some(()))
    })
}

/// The program's pid, as seen from here: the last one made that runs its script.
fn program_of_shell() -> Result<i32> {
    let all = procs::descendants(std::process::id() as i32);
    let runs = |pid: &&i32| procs::command_line(**pid).starts_with("sh -c echo");
    all.iter().rfind(runs).copied().context("the program is gone")
}

/// A stopped job is asked for from home, again and again: it stays stopped until `fg`.
pub fn asked_while_stopped(hosts: &Hosts, _: Start) -> Result<()> {
    let (mut job, mut tty) = shell(hosts)?;
    answering(&mut tty)?;
    for (turn, (to, next)) in [(1, 2), (0, 1), (2, 0)].into_iter().enumerate() {
        job.migrate(to)?;
        stop(&mut tty)?;
        for _ in 0..3 {
            hosts.run(0, &["ps", "--json"])?.good("ps")?;
            await_stopped(&job)?;
        }
        // A move that is asked for at home.
        job.at = 0;
        job.migrate(next)?;
        await_stopped(&job)?;
        tty.type_in("fg\r")?;
        ask(&mut tty, &format!("continued{turn}"))?;
    }
    ask(&mut tty, "end")?;
    leave(job, tty, 7)
}

/// A shell under vosrun, which makes a process group of its own, moved at its prompt.
pub fn inner_shell(hosts: &Hosts, _: Start) -> Result<()> {
    let (mut job, mut tty) = shell(hosts)?;
    tty.type_in("PS1='inner> ' $V -- bash --norc --noprofile --noediting -i\r")?;
    tty.expect("inner> ")?;
    tty.type_in("x=5\r")?;
    tty.expect("inner> ")?;
    for (turn, to) in [1, 2, 0, 1].into_iter().enumerate() {
        job.migrate(to)?;
        tty.type_in(&format!("x=$((x+1)); echo x=$x turn{turn}\r"))?;
        tty.expect(&format!("x={} turn{turn}\r\n", 6 + turn))?;
        tty.expect("inner> ")?;
        tty.type_in("never run\x03")?;
        tty.expect("inner> ")?;
    }
    tty.type_in("exit 3\r")?;
    leave(job, tty, 3)
}

/// Keys typed all the time while the program moves: each arrives once.
pub fn typed_while_moving(hosts: &Hosts, _: Start) -> Result<()> {
    let (mut job, mut tty) = shell(hosts)?;
    answering(&mut tty)?;
    for turn in 0..6 {
        for word in 0..5 {
            tty.type_in(&format!("w{turn}{word}\r"))?;
        }
        job.migrate((job.at + 1) % 3)?;
        for word in 0..5 {
            tty.expect(&format!("got-w{turn}{word}\r\n"))?;
        }
    }
    ask(&mut tty, "end")?;
    leave(job, tty, 7)
}
