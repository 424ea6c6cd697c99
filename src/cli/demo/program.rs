//! The program on show: `vosrun -- vosrun __demo-app` in a terminal of its own, whose screen
//! and keys we have.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::{bail, Context};
use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::pty::{openpty, Winsize};

use super::Event;
use crate::cli::children::{end, wait_end};
use crate::cli::pair::Pair;
use crate::cli::raw::spawn_in_terminal;
use crate::cli::toy::Frames;

/// The running program. Dropping it kills the vosrun that started it.
pub struct Program {
    vosrun: Child,
    keyboard: File,
}

impl Program {
    /// Starts the program on `left`; its frames become events.
    ///
    /// # Errors
    /// When no pseudo-terminal can be had or vosrun cannot be started.
    pub fn start(pair: &Pair, events: Sender<Event>) -> anyhow::Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("cannot open a pseudo-terminal")?;
        keep_from_children(&pty.master)?;
        keep_from_children(&pty.slave)?;
        let mut command = pair.job_command("demo", "__demo-app");
        let vosrun = spawn_in_terminal(&mut command, &pty.slave).context("cannot start vosrun")?;
        let keyboard = File::from(pty.master);
        let screen = keyboard.try_clone()?;
        std::thread::spawn(move || watch(screen, &events));
        Ok(Self { vosrun, keyboard })
    }

    /// Types a key.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn press(&mut self, key: char) -> anyhow::Result<()> {
        write!(self.keyboard, "{key}").with_context(|| format!("cannot type `{key}`"))
    }

    /// Waits for the exit code, which must be 0.
    ///
    /// # Errors
    /// When the program does not end, or ends otherwise.
    pub fn finish(mut self) -> anyhow::Result<()> {
        match wait_end(&mut self.vosrun, Duration::from_secs(10))? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the program ended with {status}"),
            None => bail!("the program did not end at its key `q`"),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !matches!(self.vosrun.try_wait(), Ok(Some(_))) {
            end(&mut self.vosrun);
        }
    }
}

fn keep_from_children(fd: &OwnedFd) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}

/// Reads the screen until the terminal's other side is closed (EIO, pty(7)).
fn watch(mut screen: File, events: &Sender<Event>) {
    let mut frames = Frames::default();
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = screen.read(&mut buf) {
        for frame in frames.take(&buf[..n]) {
            if events.send(Event::Frame(frame)).is_err() {
                return;
            }
        }
    }
    // The receiver may have left first.
    let _ = events.send(Event::Ended(frames.rest()));
}
