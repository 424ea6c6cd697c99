//! The small files under `STATE/node`: read whole, replaced whole, changed under one lock.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::state::{make_dir, write_atomic, StateDir};

/// Why one of the node's files could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct StoreError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Names the file in an error.
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, StoreError> {
        self.map_err(|e| StoreError { path: path.to_owned(), source: e.into() })
    }
}

/// Held while files are changed; dropped to let others.
pub(crate) type Lock = Flock<File>;

/// Waits until no one else changes the node's files.
pub(crate) fn lock(state: &StateDir) -> Result<Lock, StoreError> {
    take_lock(state, "lock", FlockArg::LockExclusive)
}

/// Claims to be the only daemon of this state folder.
///
/// # Errors
/// `WouldBlock` when there is one.
pub(crate) fn daemon_lock(state: &StateDir) -> Result<Lock, StoreError> {
    take_lock(state, "daemon.lock", FlockArg::LockExclusiveNonblock)
}

fn take_lock(state: &StateDir, name: &str, how: FlockArg) -> Result<Lock, StoreError> {
    let path = state.node().join(name);
    make_dir(&state.node()).at(&path)?;
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(&path).at(&path)?;
    Flock::lock(file, how).map_err(|(_, e)| e).at(&path)
}

/// The file's bytes; None when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).at(path),
    }
}

/// The file's JSON value; None when there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    read(path)?.map(|text| serde_json::from_slice(&text).at(path)).transpose()
}

/// Replaces the file (mode 0600), making its folder when missing.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    make_dir(path.parent().unwrap_or(Path::new("."))).at(path)?;
    write_atomic(path, content).at(path)
}

/// As [`write`], with a JSON value.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    write(path, &serde_json::to_vec_pretty(value).at(path)?)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
