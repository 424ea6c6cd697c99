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
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{bail, Context, Result};

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

/// A small random generator (splitmix64), so that a seed gives the same run everywhere.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `below`.
    pub fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % below
    }
}

/// `VOSRUN_SEED`, else a new one.
pub fn seed() -> Result<u64> {
    match std::env::var("VOSRUN_SEED") {
        Ok(text) => text.parse().context("VOSRUN_SEED is not a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            Ok(u64::from(now.subsec_nanos()) ^ now.as_secs())
        }
    }
}
