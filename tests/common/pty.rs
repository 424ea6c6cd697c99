//! A terminal that a test types into and reads from.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::pty::{openpty, Winsize};

use super::procs::Collected;
use super::until;

/// The master side, with everything that has been shown so far.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    screen: Collected,
    /// How much of `screen` earlier waits have used up.
    seen: usize,
}

impl Terminal {
    /// A terminal of 24 lines of 80 characters, and its slave side.
    pub fn open() -> Result<(Self, OwnedFd)> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).context("openpty")?;
        let master = File::from(pty.master);
        let (screen, _) = Collected::start(master.try_clone()?);
        Ok((Self { master, screen, seen: 0 }, pty.slave))
    }

    /// Starts `command` as the leader of a session with this terminal.
    pub fn spawn(slave: OwnedFd, command: &Command) -> Result<Child> {
        let mut leader = Command::new("setsid");
        leader.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        leader.env_clear();
        for (name, value) in command.get_envs() {
            leader.env(name, value.unwrap_or_default());
        }
        if let Some(dir) = command.get_current_dir() {
            leader.current_dir(dir);
        }
        let slave = File::from(slave);
        leader.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?));
        leader.stderr(Stdio::from(slave));
        leader.spawn().with_context(|| format!("start {leader:?}"))
    }

    /// Types bytes.
    pub fn type_in(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("type into the terminal")
    }

    /// Waits until `text` is shown after what earlier waits have found; gives what came
    /// before it.
    pub fn expect(&mut self, text: &str) -> Result<String> {
        let from = self.seen;
        let found = until(Duration::from_secs(60), &format!("{text:?} on the terminal"), || {
            let all = self.screen.bytes();
            let at = find(&all[from..], text.as_bytes());
            Ok(at.map(|at| (at, String::from_utf8_lossy(&all[from..from + at]).into_owned())))
        });
        let (at, before) = found.with_context(|| {
            let all = self.screen.bytes();
            format!("shown: {:?}", String::from_utf8_lossy(&all[from..]))
        })?;
        self.seen = from + at + text.len();
        Ok(before)
    }

    /// Everything shown so far.
    pub fn shown(&self) -> String {
        self.screen.text()
    }
}

fn find(all: &[u8], what: &[u8]) -> Option<usize> {
    all.windows(what.len()).position(|w| w == what)
}
