//! A program that a shell started in one terminal is adopted from another one, and keeps its own
//! through moves.

use std::fs;

use anyhow::{ensure, Context, Result};

use super::common::build;
use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::pty::Terminal;
use super::shell::{ask, leave, shell, stop};
use super::LONG;

/// Answers each line; says how wide its terminal is, and that ^C was typed.
const ANSWERING: &str = "import os, signal, sys
signal.signal(signal.SIGINT, lambda *_: os.write(1, b'interrupted\\n'))
print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == 'width':
        word = 'width%d' % os.get_terminal_size().columns
    print('got-' + word, flush=True)
    if word == 'end':
        sys.exit(7)
";

/// What becomes of the vosrun that adopts the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopter {
    /// Waits in the other terminal.
    Waits,
    /// Is told by ^C in the middle not to wait any longer.
    Leaves,
    /// Supervises in the background from the start.
    Detaches,
}

/// The program in its terminal, and its pid there.
fn answering<'h>(hosts: &'h Hosts) -> Result<(Job<'h>, Terminal, String)> {
    let python = needs("python3")?;
    let (job, mut tty) = shell(hosts)?;
    fs::write(job.dir.join("answering.py"), ANSWERING)?;
    tty.type_in(&format!("{} answering.py\r", python.display()))?;
    tty.expect("ready ")?;
    let pid = tty.expect("\r\n")?;
    Ok((job, tty, pid))
}

/// Everything that a terminal does for its program.
fn use_all(tty: &mut Terminal, turn: u16) -> Result<()> {
    ask(tty, &format!("word{turn}"))?;
    tty.resize(30, 100 + turn)?;
    tty.type_in("width\r")?;
    tty.expect(&format!("got-width{}\r\n", 100 + turn))?;
    tty.type_in("\x03")?;
    tty.expect("interrupted\r\n")?;
    stop(tty)?;
    tty.type_in("fg\r")?;
    ask(tty, &format!("again{turn}"))
}

/// Adopted from another terminal: its own one goes with it.
pub fn from_another_terminal(hosts: &Hosts, adopter: Adopter) -> Result<()> {
    let (mut job, mut tty, pid) = answering(hosts)?;
    let state = hosts.hosts[0].state_dir.display().to_string();
    let mut words = vec!["--state-dir", &state, "--attach", &pid, "--name", &job.name];
    words.extend((adopter == Adopter::Detaches).then_some("--detach"));
    let program = Program::new(build::vosrun()?).args(words);
    let (mut waiting, mut other) = Job::in_terminal(hosts, Start::Native, program)?;
    if adopter == Adopter::Detaches {
        other.expect(&format!("{} ", job.name))?;
        ensure!(waiting.end(LONG)? == 0, "--detach: {}", other.shown());
    } else {
        super::until(LONG, "the adoption", || Ok(job.ps().ok()))?;
    }
    use_all(&mut tty, 0)?;
    for (turn, to) in (1..).zip([1, 2, 0, 1]) {
        job.migrate(to).with_context(|| tty.shown())?;
        use_all(&mut tty, turn).with_context(|| format!("at host {to}"))?;
        if adopter == Adopter::Leaves && turn == 2 {
            other.type_in("\x03")?;
            other.expect("goes on in the background")?;
            ensure!(waiting.end(LONG)? == 130, "^C: {}", other.shown());
        }
    }
    ask(&mut tty, "end")?;
    if adopter == Adopter::Waits {
        ensure!(waiting.end(LONG)? == 7, "the waiting: {}", other.shown());
        ensure!(other.shown().is_empty(), "in the other terminal: {}", other.shown());
    }
    leave(job, tty, 7)
}
