//! A terminal that a test types into and reads from.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::fchown;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::pty::{openpty, Winsize};

use super::procs::Collected;
use super::{is_root, until, Who, ORDINARY, SOON};

/// The master side, with everything that has been shown so far.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    screen: Collected,
    /// How much of `screen` earlier waits have used up.
    seen: usize,
}

impl Terminal {
    /// A terminal of 24 lines of 80 characters, and its slave side, which belongs to the
    /// user `who`.
    pub fn open(who: Who) -> Result<(Self, File)> {
        let pty = openpty(&size(24, 80), None).context("openpty")?;
        // The program shall have the slave as its standard streams and nothing else.
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        if who == Who::User && is_root() {
            fchown(&slave, Some(ORDINARY), None)?;
        }
        let (screen, _) = Collected::start(master.try_clone()?);
        Ok((Self { master, screen, seen: 0 }, slave))
    }

    /// Changes the window size (TIOCSWINSZ): the foreground group gets SIGWINCH.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        let rows_and_columns = [rows.to_string(), columns.to_string()];
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows_and_columns[0], "cols", &rows_and_columns[1]]);
        stty.stdin(self.master.try_clone()?);
        anyhow::ensure!(stty.status()?.success(), "stty");
        Ok(())
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

    /// Types `keys` twice a second until `text` is shown.
    pub fn insist(&mut self, keys: &str, text: &str) -> Result<()> {
        let from = self.seen;
        let mut typed = None::<Instant>;
        until(SOON, &format!("{text:?} after {keys:?}"), || {
            if typed.is_none_or(|at| at.elapsed() > Duration::from_millis(500)) {
                self.master.write_all(keys.as_bytes())?;
                typed = Some(Instant::now());
            }
            Ok(find(&self.screen.bytes()[from..], text.as_bytes()).map(drop))
        })?;
        self.expect(text).map(drop)
    }

    /// Everything shown so far.
    pub fn shown(&self) -> String {
        self.screen.text()
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn find(all: &[u8], what: &[u8]) -> Option<usize> {
    all.windows(what.len()).position(|w| w == what)
}
