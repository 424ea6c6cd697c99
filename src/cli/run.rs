//! `vosrun -- PROGRAM`, `vosrun --attach PID`, `vosrun adopt JOB`.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::human::clean;
use super::{background, error};
use crate::ids::JobId;
use crate::journal::Step;
use crate::state::{JobDir, JobMeta, StateDir};
use crate::supervisor::job::{self, Job};
use crate::supervisor::moves::Mover;
use crate::supervisor::session::Session;
use crate::supervisor::signals::Signals;
use crate::supervisor::{End, Mode, Supervisor};
use crate::syscalls::handles::Handles;
use crate::syscalls::table::TABLE;
use crate::tracer::attach::{self, AttachError};
use crate::tracer::launch::{launch, Outcome, Plan};
use crate::tracer::{filter, raw, Exit};

/// `vosrun [--name NAME] -- PROGRAM ARGS…`
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Name of the job [default: the program's]
    #[arg(long)]
    pub name: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub program: Vec<OsString>,
}

/// `vosrun --attach PID`
#[derive(Debug, Clone, clap::Args)]
pub struct AttachArgs {
    /// Process to adopt
    #[arg(long = "attach", value_name = "PID")]
    pub pid: i32,
    /// Supervise in the background instead of waiting for the process to end
    #[arg(long)]
    pub detach: bool,
    /// Put the seccomp filter in; it can never be taken out again
    #[arg(long)]
    pub filter: bool,
    /// Name of the job [default: the program's]
    #[arg(long)]
    pub name: Option<String>,
}

/// `vosrun adopt JOB`
#[derive(Debug, Clone, clap::Args)]
pub struct AdoptArgs {
    /// Name or id of a job whose supervisor has died
    pub job: String,
    /// Wait for the job to end and exit with its code
    #[arg(long)]
    pub wait: bool,
}

/// Exit codes of vosrun itself (chroot(1), sysexits.h).
pub(super) const FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const NO_PERMISSION: u8 = 77;
pub(super) const LOST: u8 = 13;
/// Another node owns the job.
const FENCED: u8 = 14;
/// The end of a killed supervisor takes far less.
const DYING: Duration = Duration::from_secs(5);
/// The node's daemon answers for a job faster than that.
const ANSWERING: Duration = Duration::from_secs(1);

/// A sentence for stderr and an exit code.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: u8,
    pub(super) sentence: String,
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        Self { exit: FAILED, sentence: error::sentence(&e) }
    }
}

impl From<AttachError> for Failure {
    fn from(e: AttachError) -> Self {
        let exit = if e.is_permission() { NO_PERMISSION } else { FAILED };
        Self { exit, sentence: e.to_string() }
    }
}

pub(super) fn failure(exit: u8, sentence: impl Into<String>) -> Failure {
    Failure { exit, sentence: sentence.into() }
}

fn code(result: Result<u8, Failure>, json: bool) -> u8 {
    result.unwrap_or_else(|f| {
        error::say(f.exit, &f.sentence, json);
        f.exit
    })
}

/// Runs a program in the foreground and returns its exit code, 128 + signal, or 125 to
/// 127 when it could not be run.
#[must_use]
pub fn run(state: &StateDir, args: &RunArgs) -> u8 {
    code(try_run(state, args), false)
}

fn try_run(state: &StateDir, args: &RunArgs) -> Result<u8, Failure> {
    let argv = arguments(&args.program)?;
    let mut signals = Signals::take_over().context("blocking signals")?;
    signals.start_witness()?;
    let command: Vec<String> = args.program.iter().map(|w| w.to_string_lossy().into()).collect();
    let job = make_job(state, args.name.as_deref(), command, false)?;
    let dir = job.dir.clone();
    // All that can fail is done before the program runs.
    let prepared = prepare(state, job, signals, Mode::Launched);
    launch_into(prepared.inspect_err(|_| drop(dir.remove()))?, &argv)
}

fn make_job(
    state: &StateDir,
    wanted: Option<&str>,
    command: Vec<String>,
    attached: bool,
) -> Result<Job, Failure> {
    let name = wanted.map_or_else(|| base_name(&command[0]), str::to_owned);
    let job = Job::create(state, &name, command, attached)
        .with_context(|| format!("making a job in {}", state.path().display()))?;
    if wanted.is_some() && job.meta.name != name {
        let own = &job.meta.name;
        eprintln!("vosrun: another job is named {}; this one is {}", clean(&name), clean(own));
    }
    Ok(job)
}

/// A supervisor with its log, handle table and control socket, and no process yet.
fn prepare(
    state: &StateDir,
    job: Job,
    signals: Signals,
    mode: Mode,
) -> Result<Supervisor, Failure> {
    job::start_log(&job.dir)?;
    let handles = Handles::open(&job.dir.handles()).context("reading the handle table")?;
    Ok(Supervisor::new(state.clone(), job, Session::new(handles), signals, mode)?)
}

fn launch_into(mut supervisor: Supervisor, argv: &[CString]) -> Result<u8, Failure> {
    let started = start(argv, &supervisor.signals);
    let (pid, filtered) = match started {
        Ok(Ok(started)) => started,
        Ok(Err(exit)) => return Ok(give_up(supervisor, exit)),
        Err(failure) => {
            give_up(supervisor, failure.exit);
            return Err(failure);
        }
    };
    supervisor.session.begin(pid, [pid]);
    raw::cont(pid, 0).or_else(gone).context("resuming the program")?;
    supervisor.notice = let_go_of_stdio().context("opening /dev/null")?;
    supervisor.job.meta.filtered = filtered;
    note_process(&mut supervisor.job, pid);
    supervise(supervisor)
}

/// Started: pid and filter. Else the exit code of a program that never was.
type Launched = Result<(i32, bool), u8>;

fn start(argv: &[CString], signals: &Signals) -> Result<Launched, Failure> {
    let plan = Plan { argv, mask: signals.inherited_mask(), filter: &filter::program(TABLE) };
    let name = argv[0].to_string_lossy();
    match launch(&plan).map_err(|e| failure(FAILED, format!("{name} cannot be traced: {e}")))? {
        Outcome::Started { pid, filtered } => Ok(Ok((pid, filtered))),
        Outcome::Died(exit) => Ok(Err(exit.shell_code())),
        Outcome::NotExecuted(errno) => Err(not_executed(&name, errno)),
    }
}

fn not_executed(name: &str, errno: i32) -> Failure {
    let reason = Errno::from_raw(errno).desc().to_lowercase();
    let name = if name.is_empty() { "''" } else { name };
    match errno {
        libc::ENOENT if Path::new(name).exists() => {
            failure(NOT_FOUND, format!("{name}: its interpreter is not found"))
        }
        libc::ENOENT => failure(NOT_FOUND, format!("{name}: not found")),
        libc::EACCES if !is_in_path(name) => failure(NOT_FOUND, format!("{name}: not found")),
        _ => failure(NOT_EXECUTABLE, format!("{name}: {reason}")),
    }
}

/// execvp(3) answers EACCES also when it found nothing, but may not search one of the
/// folders of PATH.
fn is_in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    name.contains('/') || std::env::split_paths(&path).any(|dir| dir.join(name).exists())
}

/// Leaves nothing behind of a program that was not started.
fn give_up(mut supervisor: Supervisor, exit: u8) -> u8 {
    supervisor.signals.dismiss_witness();
    let _ = supervisor.job.dir.remove();
    exit
}

/// Adopts a running process.
#[must_use]
pub fn attach(state: &StateDir, args: &AttachArgs, json: bool) -> u8 {
    let adopt = || try_attach(state, args);
    let ended = match args.detach {
        true => background::detach(adopt, json),
        false => background::watch(adopt, |_| Ok(())),
    };
    code(ended, json)
}

fn try_attach(state: &StateDir, args: &AttachArgs) -> Result<Supervisor, Failure> {
    let signals = Signals::take_over().context("blocking signals")?;
    let tree = attach::seize_tree(args.pid)?;
    let command = command_line(args.pid);
    let job = make_job(state, args.name.as_deref(), command, true)?;
    let dir = job.dir.clone();
    let adopted = prepare(state, job, signals, Mode::Background).and_then(|mut supervisor| {
        begin(&mut supervisor, tree);
        if args.filter {
            attach::install_filters(&mut supervisor.session)?;
            supervisor.job.meta.filtered = true;
        }
        note_process(&mut supervisor.job, args.pid);
        Ok(supervisor)
    });
    adopted.inspect_err(|_| drop(dir.remove()))
}

/// Adopts a job whose supervisor has died.
#[must_use]
pub fn adopt(state: &StateDir, args: &AdoptArgs, json: bool) -> u8 {
    let adopt = || try_adopt(state, args);
    let ended = match args.wait {
        true => background::watch(adopt, |job| job.announce(json)),
        false => background::detach(adopt, json),
    };
    code(ended, json)
}

fn try_adopt(state: &StateDir, args: &AdoptArgs) -> Result<Supervisor, Failure> {
    let (id, dir, meta) = find(state, &args.job)?;
    let name = &meta.name;
    let job = take_over(id, &dir).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => failure(FAILED, format!("{name} {id} has a supervisor")),
        _ => failure(FAILED, format!("{name} {id}: {e}")),
    })?;
    if let Some(node) = given_to(&job)? {
        let why = format!("{name} {id} was given to {node} and does not run here any more");
        return Err(failure(FENCED, why));
    }
    let Some((pid, _)) = job.meta.host.filter(|_| job::is_alive(&job.meta)) else {
        return Err(failure(FAILED, format!("{name} {id}: its process is gone")));
    };
    let signals = Signals::take_over().context("blocking signals")?;
    let tree = attach::seize_tree(pid)?;
    let mut supervisor = prepare(state, job, signals, Mode::Background)?;
    begin(&mut supervisor, tree);
    Ok(supervisor)
}

/// The job is these seized processes, the first one first.
fn begin(supervisor: &mut Supervisor, tree: Vec<(i32, BTreeSet<i32>)>) {
    let mut tree = tree.into_iter();
    if let Some((root, tids)) = tree.next() {
        supervisor.session.begin(root, tids);
    }
    tree.for_each(|(pid, tids)| supervisor.session.add_process(pid, tids));
}

/// Takes the job's folder. The node's daemon has it for a moment when it answers for the job.
fn take_over(id: JobId, dir: &JobDir) -> io::Result<Job> {
    let until = Instant::now() + ANSWERING;
    loop {
        match Job::take_over(id, dir.clone()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// The node that owns the job, when this one has given it away. A move that the dead
/// supervisor left open is given up, as long as the job's process is here.
fn given_to(job: &Job) -> Result<Option<String>, Failure> {
    let until = Instant::now() + DYING;
    let last = loop {
        match job.settle() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => break other.with_context(|| job.dir.journal().display().to_string())?,
        }
    };
    let given = last.filter(|r| matches!(r.step, Step::Commit | Step::Done));
    Ok(given.map(|r| r.peer_name))
}

/// The job called `wanted`: its name, or a prefix of its id.
fn find(state: &StateDir, wanted: &str) -> Result<(JobId, JobDir, JobMeta), Failure> {
    let jobs = state.jobs().context("listing jobs")?;
    let readable = |(id, dir): (JobId, JobDir)| dir.meta().ok().map(|meta| (id, dir, meta));
    let all: Vec<_> = jobs.into_iter().filter_map(readable).collect();
    let mut found: Vec<_> = all.iter().filter(|j| j.2.name == wanted).cloned().collect();
    if found.is_empty() && !wanted.is_empty() {
        found = all.iter().filter(|j| j.0.hex().starts_with(wanted)).cloned().collect();
    }
    if found.len() > 1 {
        found.retain(|(_, dir, meta)| job::is_alive(meta) && !job::is_supervised(dir));
    }
    match found.len() {
        0 => Err(failure(FAILED, format!("there is no job {wanted}"))),
        1 => Ok(found.swap_remove(0)),
        _ => Err(failure(FAILED, format!("{wanted} names several jobs; use more of the id"))),
    }
}

/// Serves the job to its end, here or elsewhere, and gives vosrun's exit code.
pub(super) fn supervise(supervisor: Supervisor) -> Result<u8, Failure> {
    let run = Mover::new(supervisor).and_then(Mover::run);
    let (mut supervisor, end) = run.inspect_err(|e| tracing::error!("{e:#}"))?;
    let name = supervisor.job.meta.name.clone();
    let notice = supervisor.notice.take();
    let by_key = supervisor.mode == Mode::Launched && supervisor.signals.was_interrupted();
    supervisor.close(end);
    if by_key && end == End::Exited(Exit::Signal(libc::SIGINT)) {
        // A shell ends its loop or script when ^C has ended a command, not when one exits with 130.
        Signals::raise_default(libc::SIGINT).context("ending by SIGINT")?;
    }
    Ok(match end {
        End::Exited(exit) => exit.shell_code(),
        End::Lost => {
            say_last(notice, &format!("{name} was lost with the node that it ran on (VOS-LOST)"));
            LOST
        }
    })
}

/// Says why vosrun ends before or without the job: to the terminal that it was started in, if
/// it has let go of its stderr (see [`let_go_of_stdio`]).
fn say_last(terminal: Option<File>, text: &str) {
    let line = format!("vosrun: {text}\n");
    let said = match terminal {
        Some(mut terminal) => terminal.write_all(line.as_bytes()),
        None => io::stderr().write_all(line.as_bytes()),
    };
    if let Err(e) = said {
        tracing::warn!("{text} (not told on stderr: {e})");
    }
}

/// Puts /dev/null in the place of stdin, stdout and stderr and closes what else vosrun was
/// started with, so that a reader of the job's pipes sees their end when the job closes
/// them. What vosrun itself has opened is close-on-exec, what it has inherited is not. If
/// stderr is a terminal, a duplicate is returned.
pub(super) fn let_go_of_stdio() -> anyhow::Result<Option<File>> {
    let stderr = io::stderr();
    let kept = match stderr.is_terminal() {
        true => Some(File::from(stderr.as_fd().try_clone_to_owned()?)),
        false => None,
    };
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let fd = entry.file_name().to_str().and_then(|name| name.parse().ok());
        fd.filter(|fd| *fd > 2 && is_inherited(*fd)).into_iter().for_each(raw::close);
    }
    Ok(kept)
}

fn is_inherited(fd: i32) -> bool {
    let path = format!("/proc/self/fdinfo/{fd}");
    let fdinfo = std::fs::read_to_string(path).unwrap_or_default();
    let flags = fdinfo.lines().find_map(|l| l.strip_prefix("flags:"));
    let flags = flags.and_then(|f| i32::from_str_radix(f.trim(), 8).ok());
    flags.is_some_and(|f| f & libc::O_CLOEXEC == 0)
}

/// The job is running: a full disk is no reason to leave it alone now, and a process that
/// has ended already is found by wait4(2) next.
fn note_process(job: &mut Job, pid: i32) {
    if let Err(e) = job.set_process(pid) {
        tracing::warn!("{}: {e}; adopt will not find process {pid}", job.dir.path().display());
    }
}

fn gone(e: io::Error) -> io::Result<()> {
    match e.raw_os_error() {
        Some(libc::ESRCH) => Ok(()),
        _ => Err(e),
    }
}

fn arguments(program: &[OsString]) -> Result<Vec<CString>, Failure> {
    let word = |w: &OsString| CString::new(w.clone().into_vec());
    let argv: Result<Vec<_>, _> = program.iter().map(word).collect();
    let argv = argv.map_err(|_| failure(FAILED, "an argument contains a NUL byte"))?;
    if argv.is_empty() {
        return Err(failure(FAILED, "no program is named"));
    }
    Ok(argv)
}

fn base_name(program: &str) -> String {
    let name = Path::new(program).file_name().map(|n| n.to_string_lossy().into_owned());
    name.filter(|n| !n.is_empty()).unwrap_or_else(|| "job".into())
}

/// The words of a running process's command line; its comm in brackets when it has none.
fn command_line(pid: i32) -> Vec<String> {
    let process = procfs::process::Process::new(pid);
    let words = process.as_ref().ok().and_then(|p| p.cmdline().ok()).unwrap_or_default();
    if !words.is_empty() {
        return words;
    }
    let comm = process.and_then(|p| p.stat()).map_or_else(|_| pid.to_string(), |s| s.comm);
    vec![comm]
}
