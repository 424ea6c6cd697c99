//! Stops a supervisor at a chosen point of a move.
//!
//! A supervisor with `VOSRUN_TEST_PAUSE=POINT:PATH` in its environment opens the FIFO `PATH`
//! for writing when it reaches that point, writes its pid and a newline, and then reads one
//! byte from the FIFO `PATH.go`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::stat::Mode;

use super::hosts::unique;
use super::{until, SOON};

/// One point of one supervisor.
#[derive(Debug)]
pub struct Gate {
    point: &'static str,
    path: PathBuf,
    reader: File,
}

impl Gate {
    /// Makes the two FIFOs.
    pub fn new(point: &'static str) -> Result<Self> {
        let name = format!("gate-{}-{}", std::process::id(), unique());
        let path = super::run_dir().join(name);
        for fifo in [path.clone(), path.with_extension("go")] {
            nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).context("mkfifo")?;
            // The umask must not keep the ordinary user out.
            std::fs::set_permissions(&fifo, std::fs::Permissions::from_mode(0o666))?;
        }
        let reader =
            OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path)?;
        Ok(Self { point, path, reader })
    }

    /// The variable for the supervisor's environment, and its value.
    pub fn variable(&self) -> (&'static str, String) {
        ("VOSRUN_TEST_PAUSE", format!("{}:{}", self.point, self.path.display()))
    }

    /// Waits until a supervisor has come to the point; gives its pid in its own namespace.
    pub fn reached(&mut self) -> Result<i32> {
        let mut text = Vec::new();
        until(SOON, &format!("a supervisor at the point {}", self.point), || {
            let mut buffer = [0; 64];
            if let Ok(n) = self.reader.read(&mut buffer) {
                text.extend_from_slice(&buffer[..n]);
            }
            Ok(text.ends_with(b"\n").then_some(()))
        })?;
        let text = String::from_utf8(text)?;
        text.trim().parse().with_context(|| format!("a supervisor wrote {text:?}"))
    }

    /// Lets the supervisor go on.
    pub fn release(&self) -> Result<()> {
        let mut to = until(SOON, "a supervisor that waits", || {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(nix::libc::O_NONBLOCK);
            // ENXIO: nobody reads yet.
            Ok(options.open(self.path.with_extension("go")).ok())
        })?;
        Ok(to.write_all(b"x")?)
    }
}
