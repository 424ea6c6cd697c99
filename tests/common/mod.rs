//! What the tests with real programs share.
//!
//! ```text
//! runner   cells ─► two workers (processes of their own) ─► table, exit code
//! build    tests/guests/*.c ─► executables, compiled once per content
//! hosts    two or three hosts: namespaces and veth (root), or nodes on loopback (user)
//! job      one program on them: launch or attach, move, wait, end
//! gate     stops a supervisor at a point of a move
//! pty      a terminal that a test types into
//! snapshot what /proc shows of processes
//! procs    commands with deadlines, process trees, /proc
//! ```

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod build;
pub mod gate;
pub mod hosts;
pub mod job;
pub mod procs;
pub mod pty;
pub mod runner;
pub mod snapshot;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};

/// The user that stands for an ordinary one when the tests run as root.
pub const ORDINARY: u32 = 1234;

/// How long anything that should happen soon may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// As which user the programs of a cell run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Hosts are namespaces.
    Root,
    /// Hosts are nodes on loopback.
    User,
}

impl Who {
    /// The word in cell names.
    pub fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::User => "user",
        }
    }
}

/// Do the tests run as root?
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Asks again and again until `question` has an answer; fails with `what` after `limit`.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = question()? {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Where all temporary files of one run are; made by the runner, removed at its end.
pub fn run_dir() -> PathBuf {
    std::env::var_os("VOSRUN_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}
