//! A job's folder in the hands of its supervisor.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::ids::JobId;
use crate::journal::{self, Journal, Record, Step};
use crate::state::{JobDir, JobMeta, StateDir};

/// A job whose lock is held by this process.
#[derive(Debug)]
pub struct Job {
    pub id: JobId,
    pub dir: JobDir,
    pub meta: JobMeta,
    _lock: Flock<File>,
}

impl Job {
    /// Makes a new job, named `wanted` or, if a live job has that name, `wanted-2`, …. Its
    /// process is not known yet.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create(
        state: &StateDir,
        wanted: &str,
        command: Vec<String>,
        attached: bool,
    ) -> io::Result<Self> {
        let id = JobId::random()?;
        let dir = state.job(id);
        crate::state::make_dir(&state.path().join("jobs"))?;
        let naming = open_locked(File::open(state.path().join("jobs"))?, FlockArg::LockExclusive)?;
        let name = free_name(wanted, &live_names(state)?);
        let new = JobMeta::new(name, command, node_name(state), now_ms());
        let meta = JobMeta { attached, ..new };
        dir.create()?;
        let written = lock(&dir).and_then(|lock| write_meta(&dir, &meta).map(|()| lock));
        let lock = written.inspect_err(|_| drop(dir.remove()))?;
        drop(naming);
        Ok(Self { id, dir, meta, _lock: lock })
    }

    /// Makes the folder of a job that comes from another node, or takes up the one it left
    /// behind when it was here before.
    ///
    /// # Errors
    /// `WouldBlock` when a supervisor has it; else when the folder cannot be made.
    pub fn receive(state: &StateDir, id: JobId, meta: JobMeta) -> io::Result<Self> {
        let dir = state.job(id);
        crate::state::make_dir(&state.path().join("jobs"))?;
        dir.create()?;
        let lock = lock(&dir)?;
        let job = Self { id, dir, meta, _lock: lock };
        job.save()?;
        Ok(job)
    }

    /// Takes over a job that has a folder, but no supervisor.
    ///
    /// # Errors
    /// `WouldBlock` when it has one; else when its folder cannot be read.
    pub fn take_over(id: JobId, dir: JobDir) -> io::Result<Self> {
        let lock = lock(&dir)?;
        let meta = dir.meta()?;
        Ok(Self { id, dir, meta, _lock: lock })
    }

    /// Writes the decision that a dead supervisor left open, and gives the last record.
    ///
    /// A process that lives has not been given away. One that is gone was the frozen copy
    /// when its supervisor had sealed it, or when the machine went down with it; else it has
    /// run on by itself and ended. Where only a restart of the machine could tell these two
    /// apart, and nobody knows whether there was one, nothing is decided: one answer would
    /// let the job run twice, the other would lose it.
    ///
    /// # Errors
    /// `WouldBlock` while the supervisor's end is not over: it may take the process along.
    /// Else when the journal cannot be read or written, or does not allow a decision.
    pub fn settle(&self) -> io::Result<Option<Record>> {
        let path = self.dir.journal();
        let Some(last) = journal::last(&path)? else { return Ok(None) };
        let presence = match last.step {
            Step::Intent => presence(&self.meta),
            Step::Sealed => lasting_presence(&self.meta),
            _ => return Ok(Some(last)),
        };
        let step = match (presence, last.step) {
            (Presence::Leaving, _) => return Err(io::ErrorKind::WouldBlock.into()),
            (Presence::Here, _) => Step::Abort,
            (Presence::Gone, Step::Sealed) => Step::Commit,
            (Presence::Gone, _) if last.is_of_earlier_boot()? => Step::Commit,
            (Presence::Gone, _) => Step::Abort,
        };
        let decided = Record { step, boot: journal::boot_id(), ..last };
        Journal::open(&path)?.write(&decided)?;
        Ok(Some(decided))
    }

    /// Notes which process the job is. Not synced: a crash of the machine takes the process
    /// along.
    ///
    /// # Errors
    /// When the process is gone or the folder cannot be written.
    pub fn set_process(&mut self, host_pid: i32) -> io::Result<()> {
        self.meta.pid = host_pid;
        self.meta.host = Some((host_pid, start_time(host_pid)?));
        self.note()
    }

    /// As [`Job::save`], but not synced: for what a crash of the machine makes untrue anyway.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn note(&self) -> io::Result<()> {
        write_meta(&self.dir, &self.meta)
    }

    /// Writes what the job is, durably.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self) -> io::Result<()> {
        self.dir.set_meta(&self.meta)
    }
}

/// As [`JobDir::set_meta`] without the wait for the disk, which a short program would feel.
fn write_meta(dir: &JobDir, meta: &JobMeta) -> io::Result<()> {
    let new = dir.path().join("meta.new");
    fs::write(&new, serde_json::to_vec_pretty(meta)?)?;
    fs::rename(new, dir.path().join("meta"))
}

/// Is the job's process on this host and alive?
#[must_use]
pub fn is_alive(meta: &JobMeta) -> bool {
    meta.host.is_some_and(|(pid, started)| start_time(pid).is_ok_and(|now| now == started))
}

/// A job's process as seen by one who finds no supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Here,
    /// Traced still, or about to end: a supervisor's locks and sockets are gone a little
    /// before it lets go of its job, or kills it (exit_notify() in kernel/exit.c comes last).
    Leaving,
    Gone,
}

/// Is the job's process on this host?
#[must_use]
pub fn presence(meta: &JobMeta) -> Presence {
    const PF_EXITING: u32 = 0x4;
    let Some((pid, _)) = meta.host.filter(|_| is_alive(meta)) else { return Presence::Gone };
    let process = procfs::process::Process::new(pid);
    let seen = process.and_then(|p| Ok((p.status()?, p.stat()?)));
    let Ok((status, stat)) = seen else { return Presence::Leaving };
    let killed = (status.sigpnd | status.shdpnd) & (1 << (libc::SIGKILL - 1)) != 0;
    if status.tracerpid != 0 || killed || stat.flags & PF_EXITING != 0 {
        Presence::Leaving
    } else {
        Presence::Here
    }
}

/// As [`presence`] of a process that its supervisor's end should kill. One that has taken
/// the signal and does not show it yet is not to be taken for one that stays.
#[must_use]
pub fn lasting_presence(meta: &JobMeta) -> Presence {
    const LOOKS: usize = 10;
    for _ in 0..LOOKS {
        match presence(meta) {
            Presence::Here => std::thread::sleep(Duration::from_millis(25)),
            other => return other,
        }
    }
    presence(meta)
}

/// Has the job a supervisor?
#[must_use]
pub fn is_supervised(dir: &JobDir) -> bool {
    let Ok(file) = File::open(dir.lock()) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

/// A process's start time, clock ticks since boot (field 22 of proc_pid_stat(5)).
///
/// # Errors
/// `NotFound` when there is no such process or it is a zombie.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let gone = |_| io::Error::from(io::ErrorKind::NotFound);
    let stat = procfs::process::Process::new(pid).and_then(|p| p.stat()).map_err(gone)?;
    match stat.state {
        'Z' | 'X' => Err(io::ErrorKind::NotFound.into()),
        _ => Ok(stat.starttime),
    }
}

/// This node's name: as configured, else the host's.
#[must_use]
pub fn node_name(state: &StateDir) -> String {
    let configured = fs::read_to_string(state.node().join("name")).unwrap_or_default();
    if !configured.trim().is_empty() {
        return configured.trim().to_owned();
    }
    nix::unistd::gethostname()
        .map_or_else(|_| "localhost".into(), |name| name.to_string_lossy().into_owned())
}

/// The supervisor's log, `STATE/jobs/<id>/log`; `VOSRUN_LOG` sets its level.
///
/// # Errors
/// When the file cannot be opened.
pub fn start_log(dir: &JobDir) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    let file = options.open(dir.log()).with_context(|| dir.log().display().to_string())?;
    let level = tracing_subscriber::EnvFilter::try_from_env("VOSRUN_LOG");
    let level = level.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(level).with_ansi(false);
    // A log that cannot be written is no reason to panic.
    let log = log.log_internal_errors(false);
    // A subscriber that is there already stays.
    let _ = log.with_writer(Mutex::new(file)).try_init();
    Ok(())
}

/// Unix milliseconds now.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn lock(dir: &JobDir) -> io::Result<Flock<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    open_locked(options.open(dir.lock())?, FlockArg::LockExclusiveNonblock)
}

fn open_locked(file: File, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(file, how).map_err(|(_, e)| e.into())
}

/// Names of the jobs that have a supervisor or a process.
fn live_names(state: &StateDir) -> io::Result<BTreeSet<String>> {
    let live = |dir: JobDir| {
        let meta = dir.meta().ok()?;
        (is_supervised(&dir) || is_alive(&meta)).then_some(meta.name)
    };
    Ok(state.jobs()?.into_iter().filter_map(|(_, dir)| live(dir)).collect())
}

fn free_name(wanted: &str, taken: &BTreeSet<String>) -> String {
    let numbered = (2..).map(|n| format!("{wanted}-{n}"));
    let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
    names.find(|name| !taken.contains(name)).unwrap_or_else(|| wanted.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_names_are_not_given_twice() {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(tmp.path()).unwrap();
        let first = Job::create(&state, "app", vec![], false).unwrap();
        let second = Job::create(&state, "app", vec![], false).unwrap();
        assert_eq!((first.meta.name.as_str(), second.meta.name.as_str()), ("app", "app-2"));
        assert!(is_supervised(&first.dir));
        drop(first);
        assert_eq!(Job::create(&state, "app", vec![], false).unwrap().meta.name, "app");
    }

    #[test]
    fn a_supervised_job_cannot_be_taken_over() {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(tmp.path()).unwrap();
        let mut job = Job::create(&state, "app", vec![], false).unwrap();
        let (id, dir) = (job.id, job.dir.clone());
        let refused = Job::take_over(id, dir.clone()).map(drop).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        job.set_process(std::process::id() as i32).unwrap();
        assert!(is_alive(&job.meta));
        drop(job);
        assert!(is_alive(&Job::take_over(id, dir).unwrap().meta));
    }
}
