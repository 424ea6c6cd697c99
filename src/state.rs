//! The state folder of a node: identity, peers, jobs, shipped files.
//!
//! ```text
//! STATE/node/            identity and peers (see crate::node)
//! STATE/jobs/<id>/       lock      held (flock) by the job's supervisor while it lives
//!                        ctl.sock  control socket (see crate::control)
//!                        meta      what the job is (JobMeta, JSON)
//!                        journal   decisions of the handoff protocol (see crate::journal)
//!                        handles   annotations of the handle table
//!                        log       the supervisor's log
//! STATE/files/<blake3>   mapped files shipped from other nodes
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, JobId};

/// A node's state folder.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Opens the folder, making it (mode 0700) when missing. The path is made absolute.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: &Path) -> io::Result<Self> {
        make_dir(path)?;
        Ok(Self(fs::canonicalize(path)?))
    }

    /// The default: `$XDG_STATE_HOME/vosrun`, else `~/.local/state/vosrun`.
    #[must_use]
    pub fn default_path() -> PathBuf {
        let base = std::env::var_os("XDG_STATE_HOME").map_or_else(
            || {
                let home =
                    std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
                home.join(".local/state")
            },
            PathBuf::from,
        );
        base.join("vosrun")
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Identity and peers.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        self.0.join("node")
    }

    /// The folder of one job.
    #[must_use]
    pub fn job(&self, id: JobId) -> JobDir {
        JobDir(self.0.join("jobs").join(id.hex()))
    }

    /// Where shipped files are kept, by blake3 hash of their content.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.0.join("files")
    }

    /// All jobs that have a folder here, whatever their state.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn jobs(&self) -> io::Result<Vec<(JobId, JobDir)>> {
        let entries = match fs::read_dir(self.0.join("jobs")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut jobs = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let Some(id) = entry.file_name().to_str().and_then(|s| s.parse().ok()) {
                jobs.push((id, JobDir(entry.path())));
            }
        }
        jobs.sort_by_key(|(id, _)| *id);
        Ok(jobs)
    }
}

/// The folder of one job.
#[derive(Debug, Clone)]
pub struct JobDir(PathBuf);

impl JobDir {
    /// Makes the folder (mode 0700).
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self) -> io::Result<()> {
        make_dir(&self.0)
    }

    /// Removes the folder and what is in it.
    ///
    /// # Errors
    /// When it cannot be removed; a missing folder is no error.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("ctl.sock")
    }
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }
    #[must_use]
    pub fn handles(&self) -> PathBuf {
        self.0.join("handles")
    }
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Reads what the job is.
    ///
    /// # Errors
    /// When the file is missing or does not parse.
    pub fn meta(&self) -> io::Result<JobMeta> {
        let text = fs::read(self.0.join("meta"))?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    }

    /// Replaces what the job is, atomically (rename(2)).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_meta(&self, meta: &JobMeta) -> io::Result<()> {
        write_atomic(&self.0.join("meta"), &serde_json::to_vec_pretty(meta)?)
    }
}

/// What a job is; enough to find it again after its supervisor died.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobMeta {
    pub name: String,
    pub command: Vec<String>,
    /// Node where the job started.
    pub home: String,
    /// The pid that the job sees as its own (its first process).
    pub pid: i32,
    /// That process's pid on this host, with its start time in clock ticks since boot
    /// (field 22 of proc_pid_stat(5)) so that a reused pid is not taken for it. None when
    /// the job is not on this host.
    pub host: Option<(i32, u64)>,
    pub epoch: Epoch,
    /// Unix milliseconds.
    pub started_ms: u64,
    /// Adopted (true) or launched (false).
    pub attached: bool,
    /// The supervisor's seccomp filter is in the job.
    pub filtered: bool,
    /// Node name and domain name that the job has in a namespace of its own.
    #[serde(default)]
    pub names: Option<(String, String)>,
    /// The node whose agent holds the job's relays (id and name), when it is not this one.
    #[serde(default)]
    pub agent: Option<(crate::ids::NodeId, String)>,
    /// How it ended, when its home agent did not come to be told.
    #[serde(default)]
    pub exit: Option<crate::tracer::Exit>,
}

impl JobMeta {
    /// A job that was launched at `home` and has no process yet.
    #[must_use]
    pub fn new(name: String, command: Vec<String>, home: String, started_ms: u64) -> Self {
        Self {
            name,
            command,
            home,
            pid: 0,
            host: None,
            epoch: Epoch(1),
            started_ms,
            attached: false,
            filtered: false,
            names: None,
            agent: None,
            exit: None,
        }
    }
}

/// Makes a folder and its parents, mode 0700.
///
/// # Errors
/// When it cannot be made.
pub fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file of mode 0600 whole or not at all.
///
/// # Errors
/// When it cannot be written or renamed.
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temp = tempfile::NamedTempFile::new_in(dir)?;
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o600))?;
    fs::write(temp.path(), content)?;
    temp.as_file().sync_data()?;
    temp.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_listed_by_id() {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&tmp.path().join("s")).unwrap();
        assert!(state.jobs().unwrap().is_empty());
        let id = JobId([7; 16]);
        state.job(id).create().unwrap();
        fs::create_dir(state.path().join("jobs/not-an-id")).unwrap();
        let ids: Vec<_> = state.jobs().unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [id]);
    }
}
