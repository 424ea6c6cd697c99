//! A job in a window of tmux, whose server has the terminal.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::{procs, until};
use super::LONG;

/// A tmux server of its own.
struct Window<'h> {
    hosts: &'h Hosts,
    tmux: PathBuf,
    socket: PathBuf,
}

impl Window<'_> {
    fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = self.hosts.command(0, &self.tmux);
        command.arg("-S").arg(&self.socket).args(words);
        procs::run(&mut command, LONG)?.good(&format!("tmux {}", words.join(" ")))
    }

    fn type_in(&self, line: &str) -> Result<()> {
        self.ask(&["send-keys", "-l", line])?;
        self.ask(&["send-keys", "Enter"]).map(drop)
    }

    /// What the window shows, with what has left it at its top.
    fn all_shown(&self) -> Result<String> {
        self.ask(&["capture-pane", "-p", "-S", "-"])
    }

    /// Waits until the window shows this line.
    fn expect(&self, line: &str) -> Result<()> {
        let mut shown = String::new();
        until(LONG, &format!("{line:?} in the window"), || {
            shown = self.all_shown()?;
            Ok(shown.lines().any(|l| l == line).then_some(()))
        })
        .with_context(|| shown)
    }
}

/// Resized, typed into and looked at while its program moves.
pub fn tmux(hosts: &Hosts, _: Start) -> Result<()> {
    let (tmux, python) = (needs("tmux")?, needs("python3")?);
    let socket = hosts.fresh_dir("tmux")?.join("s");
    let window = Window { hosts, tmux, socket };
    let mut words: Vec<String> = ["-f", "/dev/null", "-S"].map(String::from).to_vec();
    words.push(window.socket.display().to_string());
    words.extend(["new-session", "-d", "-x", "80", "-y", "24", "sleep 1000"].map(String::from));
    let mut job = Job::start_early(hosts, Start::Native, Program::new(&window.tmux).args(words))?;
    let code = job.end(LONG)?;
    anyhow::ensure!(code == 0, "tmux new-session ended with {code}: {}", job.said());
    window.ask(&["set-option", "-g", "remain-on-exit", "on"])?;
    let python = format!("env PYTHON_BASIC_REPL=1 {} -q -i", python.display());
    let code = job.dir.join("code");
    let vosrun = format!("{} --name {} -- {python}", job.vosrun_at_home(), job.name);
    let command = format!("{vosrun}; echo $? > {}", code.display());
    window.ask(&["respawn-pane", "-k", &command])?;
    window.expect(">>>")?;
    window.type_in("import os; n = 40")?;
    for (turn, to) in (1..).zip([1, 2, 0, 1]) {
        job.migrate(to)?;
        window.type_in(&format!("n += 1; 'n is %d' % n, {turn}"))?;
        window.expect(&format!("('n is {}', {turn})", 40 + turn))?;
        let (columns, rows) = (80 + turn, 30 + turn);
        window.ask(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()])?;
        // The new size comes to the program a moment after the command's end.
        let shown = format!("os.terminal_size(columns={columns}, lines={rows})");
        until(LONG, &shown, || {
            window.type_in("os.get_terminal_size()")?;
            Ok(window.all_shown()?.lines().any(|l| l == shown).then_some(()))
        })?;
        // What was shown before the moves is still there.
        window.expect("('n is 41', 1)")?;
    }
    window.type_in("raise SystemExit(7)")?;
    let ended = until(LONG, "the end of the program", || {
        let code = std::fs::read_to_string(&code).unwrap_or_default();
        Ok(code.ends_with('\n').then_some(code))
    });
    let code = ended.with_context(|| window.all_shown().unwrap_or_default())?;
    anyhow::ensure!(code == "7\n", "vosrun ended with {code}");
    window.ask(&["kill-server"])?;
    job.await_nothing_left()
}
