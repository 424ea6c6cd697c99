//! Which job is meant, and how it is: folders of the state folder, asked through their
//! supervisors' sockets.
//!
//! ```text
//! JOB on the command line ─► names and ids in STATE/jobs/*/meta ─► one folder ─► Status ─► Seen
//! ```
//! A supervisor that does not answer within [`PATIENCE`] blocks nobody.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::error::Fail;
use crate::control::{self, JobState, JobStatus, Reply, Request};
use crate::ids::JobId;
use crate::journal::{self, Step};
use crate::node::orphan::has_passed;
use crate::state::{JobDir, JobMeta, StateDir};
use crate::supervisor::job::{self, Presence};

/// How long a supervisor may take to answer a question.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a job is waited for that is not there yet: a script names it in the line after the
/// one that starts it in the background.
const APPEARING: Duration = Duration::from_secs(2);
/// Time between two looks for it, and how many there are at least: on a busy machine both commands
/// take longer.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 100;

/// What is known of a job right now.
#[derive(Debug, Clone)]
pub enum Life {
    /// Its supervisor answered.
    Live(Box<JobStatus>),
    /// Its supervisor lives but did not answer; the reason.
    Silent(String),
    /// No supervisor; the process with this host pid still runs, unmoved.
    Orphaned(i32),
    /// No home agent; the job itself is on another node.
    Away,
    /// Neither supervisor nor process.
    Lost,
}

/// One job's folder and what is known of it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub id: JobId,
    pub dir: JobDir,
    /// None when the file `meta` is missing or damaged.
    pub meta: Option<JobMeta>,
    pub life: Life,
}

impl Seen {
    /// The job's name, else its short id.
    pub fn name(&self) -> String {
        match (&self.life, &self.meta) {
            (Life::Live(status), _) => status.name.clone(),
            (_, Some(meta)) => meta.name.clone(),
            _ => self.id.to_string(),
        }
    }

    /// The supervisor's answer, or why there is none: exit code 75.
    pub fn status(&self) -> Result<&JobStatus, Fail> {
        let name = self.name();
        let why = match &self.life {
            Life::Live(status) => return Ok(status),
            Life::Silent(why) => format!("{name} ({}): its supervisor does not answer ({why}); try again", self.id),
            Life::Orphaned(pid) => format!(
                "{name} ({}) is still running here as pid {pid}, but its supervisor has died; take it up again with: vosrun adopt {name}",
                self.id
            ),
            Life::Away if self.has_passed() => {
                let to = given_to(&self.dir).unwrap_or_else(|| "another node".into());
                format!("{name} ({}) was here and has gone on to {to}; ask there, or at its home", self.id)
            }
            Life::Away => {
                let to = given_to(&self.dir).unwrap_or_else(|| "another node".into());
                format!("{name} ({}) has left for {to} and its home agent here has died; ask on the node where it runs", self.id)
            }
            Life::Lost => format!("{name} ({}) is lost: neither its supervisor nor its process is there any more", self.id),
        };
        Err(Fail::temporary(why))
    }

    /// The job has only passed this node: nothing of it is left here but its journal.
    pub fn has_passed(&self) -> bool {
        let (Life::Away, Some(meta)) = (&self.life, &self.meta) else { return false };
        journal::last(&self.dir.journal()).is_ok_and(|last| has_passed(meta, last.as_ref()))
    }

    fn runs_here(&self) -> bool {
        matches!(&self.life, Life::Live(s) if s.state != JobState::Away)
    }

    fn has_process(&self, pid: i32, node: &str) -> bool {
        let Life::Live(status) = &self.life else { return false };
        status.processes.iter().any(|p| p.pid == pid && p.node == node)
    }
}

/// Every job of the state folder, the oldest first, without those that only passed.
///
/// # Errors
/// When the folder cannot be read.
pub fn survey(state: &StateDir) -> io::Result<Vec<Seen>> {
    let mut all = observe(state.jobs()?);
    all.retain(|seen| !seen.has_passed());
    all.sort_by_key(|seen| (seen.meta.as_ref().map_or(u64::MAX, |m| m.started_ms), seen.id));
    Ok(all)
}

/// Finds the job that the command line names: by name, unique prefix of its id, or
/// `PID@NODE`; None means the only one. Waits a little for one that is just being started.
///
/// # Errors
/// [`Fail`] with exit code 2 when no job or more than one fits; I/O errors of the state folder.
pub fn find_job(state: &StateDir, job: Option<&str>) -> anyhow::Result<Seen> {
    let until = Instant::now() + APPEARING;
    let mut looks = 0;
    loop {
        let fits = fitting(state, job)?;
        looks += 1;
        if !fits.is_empty() || (looks >= LOOKS && Instant::now() >= until) {
            return one(fits, job).map_err(Into::into);
        }
        std::thread::sleep(LOOK);
    }
}

fn fitting(state: &StateDir, job: Option<&str>) -> io::Result<Vec<Seen>> {
    Ok(match job {
        None => only_running(survey(state)?),
        Some(word) => match pid_at_node(word) {
            Some((pid, node)) => {
                survey(state)?.into_iter().filter(|s| s.has_process(pid, node)).collect()
            }
            None => prefer_running(observe(named(state.jobs()?, word))),
        },
    })
}

fn one(mut fits: Vec<Seen>, job: Option<&str>) -> Result<Seen, Fail> {
    if fits.len() > 1 {
        let all: Vec<_> = fits.iter().map(|s| format!("{} {}", s.id, s.name())).collect();
        let which =
            job.map_or("there are several jobs".into(), |j| format!("`{j}` fits several jobs"));
        return Err(Fail::usage(format!("{which}: {}; say which", all.join(", "))));
    }
    fits.pop().ok_or_else(|| {
        Fail::usage(match job {
            Some(job) => format!("no job `{job}` here; vosrun ps lists them"),
            None => "no job is running here".into(),
        })
    })
}

/// `4121@gpu-lab2`.
fn pid_at_node(word: &str) -> Option<(i32, &str)> {
    let (pid, node) = word.split_once('@')?;
    Some((pid.parse().ok()?, node))
}

/// Jobs of that name; when there are none, jobs whose id starts with the word.
fn named(jobs: Vec<(JobId, JobDir)>, word: &str) -> Vec<(JobId, JobDir)> {
    let has_name = |dir: &JobDir| dir.meta().is_ok_and(|m| m.name == word);
    let (by_name, rest): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|(_, dir)| has_name(dir));
    if !by_name.is_empty() || word.is_empty() {
        return by_name;
    }
    let word = word.to_ascii_lowercase();
    rest.into_iter().filter(|(id, _)| id.hex().starts_with(&word)).collect()
}

/// Without a word on the command line: the jobs that run here, else those that ran here.
fn only_running(all: Vec<Seen>) -> Vec<Seen> {
    let gone = |s: &Seen| matches!(s.life, Life::Lost) || s.has_passed();
    let live: Vec<_> = all.into_iter().filter(|s| !gone(s)).collect();
    prefer_running(live)
}

/// Of several, those that run here, if there are any.
fn prefer_running(all: Vec<Seen>) -> Vec<Seen> {
    if all.len() > 1 && all.iter().any(Seen::runs_here) {
        return all.into_iter().filter(Seen::runs_here).collect();
    }
    all
}

/// Asks all supervisors at once, each in a thread, and waits no longer than [`PATIENCE`].
fn observe(jobs: Vec<(JobId, JobDir)>) -> Vec<Seen> {
    let (tx, rx) = mpsc::channel();
    for (i, (_, dir)) in jobs.iter().enumerate() {
        let (tx, dir) = (tx.clone(), dir.clone());
        // A thread that hangs in connect(2) ends with the process; nobody waits for it.
        std::thread::spawn(move || tx.send((i, life(&dir))));
    }
    let silent = || Life::Silent(format!("no answer in {} s", PATIENCE.as_secs()));
    let mut lives: Vec<Life> = jobs.iter().map(|_| silent()).collect();
    let deadline = Instant::now() + PATIENCE + PATIENCE / 4;
    for _ in 0..jobs.len() {
        match rx.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((i, life)) => lives[i] = life,
            Err(_) => break,
        }
    }
    let seen =
        |((id, dir), life): ((JobId, JobDir), Life)| Seen { id, meta: dir.meta().ok(), dir, life };
    jobs.into_iter().zip(lives).map(seen).collect()
}

/// Asks one supervisor; when there is none, looks for the process.
pub fn life(dir: &JobDir) -> Life {
    let until = Instant::now() + PATIENCE / 2;
    loop {
        match look(dir) {
            Ok(life) => return life,
            Err(life) if Instant::now() > until => return life,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// `Err` while it passes from one state to another: a supervisor that begins has no socket
/// yet, and one that was killed loses its socket first, then its lock, and then lets go of
/// its job or takes it along.
fn look(dir: &JobDir) -> Result<Life, Life> {
    match ask_within(&dir.socket(), &Request::Status, PATIENCE) {
        Ok(Reply::Status(status)) => return Ok(Life::Live(status)),
        Ok(Reply::Error(why)) => return Ok(Life::Silent(why)),
        Ok(_) => {
            let why = "it speaks another version of the control protocol";
            return Ok(Life::Silent(why.into()));
        }
        Err(e) if timed_out(&e) => {
            return Ok(Life::Silent(format!("no answer in {} s", PATIENCE.as_secs())))
        }
        Err(e) if lock_is_held(&dir.lock()) => return Err(Life::Silent(e.to_string())),
        Err(_) => {}
    }
    let meta = dir.meta();
    let leaving = meta.as_ref().is_ok_and(|meta| job::presence(meta) == Presence::Leaving);
    let life = match meta {
        Ok(JobMeta { host: Some((pid, start)), .. }) if is_alive(pid, start) => Life::Orphaned(pid),
        Ok(JobMeta { host: None, .. }) => Life::Away,
        _ if given_to(dir).is_some() => Life::Away,
        _ => Life::Lost,
    };
    if leaving {
        Err(life)
    } else {
        Ok(life)
    }
}

/// The node to which the journal gives a job whose supervisor and process are gone here.
pub fn given_to(dir: &JobDir) -> Option<String> {
    let last = journal::last(&dir.journal()).ok().flatten()?;
    matches!(last.step, Step::Sealed | Step::Commit | Step::Done).then_some(last.peer_name)
}

/// Asks a job's supervisor; failures name the job and exit with 75.
///
/// # Errors
/// [`Fail`] when it is gone, does not answer within `limit`, or answers with another protocol.
pub fn question(seen: &Seen, request: &Request, limit: Duration) -> Result<Reply, Fail> {
    ask_within(&seen.dir.socket(), request, limit).map_err(|e| {
        let why = if timed_out(&e) {
            format!("no answer in {} s", limit.as_secs())
        } else {
            e.to_string()
        };
        Fail::temporary(format!(
            "{} ({}): its supervisor does not answer: {why}",
            seen.name(),
            seen.id
        ))
    })
}

/// A supervisor gave a reply that does not belong to the question.
pub fn unexpected(seen: &Seen) -> Fail {
    let name = seen.name();
    Fail::temporary(format!(
        "{name} ({}): its supervisor speaks another version of the control protocol",
        seen.id
    ))
}

/// As [`control::ask`] for a question answered at once, with a limit for each read and write.
///
/// # Errors
/// As [`control::ask`]; `WouldBlock` when the limit is reached.
fn ask_within(socket: &Path, request: &Request, limit: Duration) -> io::Result<Reply> {
    let mut stream = control::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    control::write_frame(&mut stream, request)?;
    control::read_frame(&mut stream)
}

/// Did a read or write with a limit reach it? (SO_RCVTIMEO gives EAGAIN, socket(7).)
fn timed_out(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Is the supervisor's lock taken? Only asked after its socket refused, so that the
/// question cannot get in the way of one that starts.
fn lock_is_held(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(
        Flock::lock(file, FlockArg::LockSharedNonblock),
        Err((_, nix::errno::Errno::EWOULDBLOCK))
    )
}

/// Does the process live, and is it the one that started at `start` (clock ticks since
/// boot, field 22 of proc_pid_stat(5))?
fn is_alive(pid: i32, start: u64) -> bool {
    procfs::process::Process::new(pid)
        .and_then(|p| p.stat())
        .is_ok_and(|s| s.starttime == start && !matches!(s.state, 'Z' | 'X'))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cli::ps::tests::status;
    use crate::ids::Epoch;
    use std::os::unix::net::UnixListener;

    pub fn meta(name: &str, host: Option<(i32, u64)>) -> JobMeta {
        let new = JobMeta::new(name.into(), vec![name.into()], "a".into(), 1);
        JobMeta { pid: 7, host, filtered: true, ..new }
    }

    fn job(state: &StateDir, byte: u8, meta: &JobMeta) -> JobDir {
        let dir = state.job(JobId([byte; 16]));
        dir.create().unwrap();
        dir.set_meta(meta).unwrap();
        dir
    }

    fn state() -> (tempfile::TempDir, StateDir) {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(tmp.path()).unwrap();
        (tmp, state)
    }

    /// A supervisor that answers every question with one status.
    fn answer(dir: &JobDir, status: JobStatus) {
        let (_dir, short) = control::short_path(&dir.socket()).unwrap();
        let listener = UnixListener::bind(short).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _: Request = control::read_frame(&mut stream).unwrap();
                control::write_frame(&mut stream, &Reply::Status(Box::new(status.clone())))
                    .unwrap();
            }
        });
    }

    #[test]
    fn by_name_prefix_pid_and_alone() {
        let (_tmp, state) = state();
        answer(&job(&state, 0xaa, &meta("api", None)), status("api"));
        let find =
            |word| find_job(&state, word).map(|s| s.id.to_string()).map_err(|e| e.to_string());
        for word in [Some("api"), Some("aa"), Some("AAAA"), Some("7@b"), None] {
            assert_eq!(find(word).as_deref(), Ok("aaaaaaaa"), "{word:?}");
        }
        assert_eq!(find(Some("x")).unwrap_err(), "no job `x` here; vosrun ps lists them");
        assert_eq!(find(Some("7@c")).unwrap_err(), "no job `7@c` here; vosrun ps lists them");
        // A second one that is gone does not stand in the way of the one that runs.
        job(&state, 0xbb, &meta("api", Some((i32::MAX, 1))));
        assert_eq!(find(Some("api")).as_deref(), Ok("aaaaaaaa"));
        assert_eq!(find(None).as_deref(), Ok("aaaaaaaa"));
        answer(&job(&state, 0xab, &meta("db", None)), status("db"));
        assert_eq!(
            find(Some("a")).unwrap_err(),
            "`a` fits several jobs: aaaaaaaa api, abababab db; say which"
        );
        assert!(find(None).unwrap_err().starts_with("there are several jobs"));
    }

    #[test]
    fn without_a_supervisor_the_process_decides() {
        let (_tmp, state) = state();
        let me = std::process::id() as i32;
        let start = procfs::process::Process::myself().unwrap().stat().unwrap().starttime;
        let dir = job(&state, 1, &meta("x", Some((me, start))));
        assert!(matches!(life(&dir), Life::Orphaned(pid) if pid == me));
        dir.set_meta(&meta("x", Some((me, start + 1)))).unwrap();
        assert!(matches!(life(&dir), Life::Lost), "a reused pid is not the job");
        dir.set_meta(&meta("x", None)).unwrap();
        assert!(matches!(life(&dir), Life::Away));
    }

    #[test]
    fn a_job_that_only_came_by_is_told_from_one_at_home() {
        let (_tmp, state) = state();
        let home = crate::ids::NodeId([7; 32]);
        let passed = JobMeta { agent: Some((home, "a".into())), ..meta("x", None) };
        let dir = job(&state, 1, &passed);
        let record = journal::Record {
            step: Step::Done,
            id: crate::ids::MoveId([1; 4]),
            epoch: Epoch(1),
            peer: home,
            peer_name: "c".into(),
            boot: String::new(),
        };
        journal::Journal::open(&dir.journal()).unwrap().write(&record).unwrap();
        assert!(survey(&state).unwrap().is_empty());
        let e = find_job(&state, Some("x")).unwrap().status().unwrap_err();
        assert!(e.message.contains("has gone on to c"), "{}", e.message);
        assert_eq!(find_job(&state, None).unwrap_err().to_string(), "no job is running here");
    }

    #[test]
    fn a_supervisor_without_a_socket_is_silent_not_dead() {
        let (_tmp, state) = state();
        let dir = job(&state, 1, &meta("x", Some((i32::MAX, 1))));
        let lock = File::create(dir.lock()).unwrap();
        let _held = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
        assert!(matches!(life(&dir), Life::Silent(_)));
    }

    #[test]
    fn one_hung_supervisor_blocks_nobody() {
        let (_tmp, state) = state();
        let hung = job(&state, 1, &meta("hung", Some((1, 1))));
        let (_dir, short) = control::short_path(&hung.socket()).unwrap();
        let _listener = UnixListener::bind(short).unwrap();
        answer(&job(&state, 2, &meta("api", None)), status("api"));
        let all = survey(&state).unwrap();
        assert!(matches!(all[0].life, Life::Silent(_)));
        assert!(matches!(all[1].life, Life::Live(_)));
    }
}
