//! What a person's command and a job's supervisor say to each other over the job's unix
//! socket (`STATE/jobs/<id>/ctl.sock`).
//!
//! Frame: `u32` little-endian length, then postcard. One [`Request`] per connection; the
//! supervisor answers with zero or more [`Reply::Progress`] and one final reply.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, JobId, MoveId};

/// Largest frame accepted, bytes.
pub const MAX_FRAME: u32 = 4 << 20;

/// A request to a supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// What the job is and where; answered by [`Reply::Status`].
    Status,
    /// Would a move work? Without a target only what is known locally. [`Reply::Check`].
    Check { to: Option<String>, translate: bool },
    /// Move the job; [`Reply::Progress`]… then [`Reply::Moved`] or [`Reply::Failed`].
    Migrate {
        to: String,
        /// Without namespaces, also where the target could make them.
        translate: bool,
    },
    /// Watch a move in progress (same replies as `Migrate`).
    Watch,
    /// Cancel the move in progress if it is not decided yet.
    Cancel { id: Option<MoveId> },
    /// An incoming TLS connection for this job; its socket follows by SCM_RIGHTS in the
    /// same message. Sent by the node daemon only. No reply.
    Connection,
    /// A person says that the copy on node `dead` can never run again: wake the frozen copy
    /// held here ([`JobState::InDoubt`] or [`JobState::Prepared`]). [`Reply::Ok`].
    Recover { dead: String },
    /// Every TCP connection of the job here; [`Reply::Connections`].
    Connections,
}

/// A supervisor's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    Status(Box<JobStatus>),
    Check(CheckReport),
    Progress(MoveEvent),
    Moved(MoveReport),
    Failed(MoveFailure),
    Ok,
    /// The request could not be carried out: one sentence.
    Error(String),
    Connections(Vec<ConnectionStatus>),
}

/// Where a job is in its life, as seen by this supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobState {
    Running,
    /// Stopped by a job-control signal.
    Stopped,
    Migrating,
    /// Frozen with a move in doubt: runs only when the move is resolved.
    InDoubt,
    /// Moved away; this supervisor is its home agent.
    Away,
    /// Frozen at the target, waiting for the source's commit.
    Prepared,
}

/// One process of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// The pid that the job sees.
    pub pid: i32,
    /// The pid on the host it runs on now.
    pub host_pid: i32,
    /// The name of the node it runs on now.
    pub node: String,
    pub comm: String,
    pub threads: u32,
}

/// One descriptor and its binding (design section 6).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FdStatus {
    pub fd: i32,
    /// Kind as registered in `migrate::resource`, e.g. `pipe`.
    pub kind: String,
    /// What the fd's /proc link says, e.g. `/var/log/x` or `pipe:[123]`.
    pub what: String,
    /// `native`, `recreated`, `forwarded via a`.
    pub binding: String,
}

/// A TCP connection of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// The pid that the job sees of a process which has it.
    pub pid: i32,
    /// Its number there.
    pub fd: i32,
    /// The addresses that the program sees.
    pub own: SocketAddr,
    pub peer: SocketAddr,
    /// As in [`FdStatus`].
    pub binding: String,
    /// Bytes that the peer has acknowledged, and bytes that have come. Those of a forwarded connection
    /// are counted since the job came to this node.
    pub sent: u64,
    pub received: u64,
    /// Smoothed round trip, microseconds; none is known of a forwarded connection.
    pub rtt_us: Option<u32>,
}

/// Everything `ps` and `inspect` show of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobStatus {
    pub id: JobId,
    pub name: String,
    /// Command line, words joined by spaces.
    pub command: String,
    pub state: JobState,
    /// Node where it runs now.
    pub node: String,
    /// Node where it started.
    pub home: String,
    pub epoch: Epoch,
    /// Unix milliseconds of the job's start.
    pub started_ms: u64,
    pub processes: Vec<ProcessStatus>,
    /// CPU use since the last question, percent of one CPU.
    pub cpu_percent: f32,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// Private (anonymous) resident memory, bytes.
    pub private_bytes: u64,
    pub cwd: String,
    pub tty: Option<String>,
    pub connections: u32,
    pub fds: Vec<FdStatus>,
    /// What is still needed from other nodes, one sentence each.
    pub depends: Vec<String>,
    /// Oldest first.
    pub history: Vec<MoveReport>,
    /// Blockers known locally; empty means movable.
    pub blockers: Vec<Finding>,
    /// The move in progress, in words: `round 1, 40%`.
    pub moving: Option<String>,
    /// The supervisor's own pid.
    pub supervisor_pid: i32,
    /// Attached (true) or launched (false).
    pub attached: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Blocker,
    Warning,
}

/// One thing `check` has to say, also the body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// A code of [`crate::codes`], e.g. `VOS-DEV`.
    pub code: String,
    /// The object: `fd 9 → /dev/nvidia0`.
    pub object: String,
    /// One line of cause.
    pub cause: String,
    /// One line of remedy.
    pub remedy: String,
}

/// The answer of `check`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CheckReport {
    pub job: String,
    pub id: String,
    /// Target, when one was asked.
    pub to: Option<String>,
    pub findings: Vec<Finding>,
    /// What is fine, short: `cpu`, `kernel`, `2 maps identical`.
    pub ok: Vec<String>,
}

impl CheckReport {
    /// No blocker among the findings.
    #[must_use]
    pub fn movable(&self) -> bool {
        self.findings.iter().all(|f| f.severity != Severity::Blocker)
    }
}

/// Phases of a move, in their order (`ux.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Preflight,
    Copy,
    Freeze,
    Commit,
    Resume,
}

/// Progress of a move.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MoveEvent {
    pub id: MoveId,
    pub job: String,
    pub job_id: JobId,
    pub from: String,
    pub to: String,
    pub phase: Phase,
    /// `✔ cpu ✔ kernel …` and the like: what there is to say of the phase.
    pub text: String,
    /// Bytes sent and to be sent, while copying.
    pub bytes: Option<(u64, u64)>,
}

/// A finished move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveReport {
    pub id: MoveId,
    pub job: String,
    pub job_id: JobId,
    pub from: String,
    pub to: String,
    pub epoch: Epoch,
    /// Unix milliseconds of the end.
    pub at_ms: u64,
    /// From the first stopped thread to the first running one, milliseconds.
    pub pause_ms: f64,
    /// The whole move, milliseconds.
    pub total_ms: f64,
    /// The pause's parts, milliseconds: freeze, capture, transfer, restore, commit.
    pub parts: Vec<(String, f64)>,
    pub bytes_memory: u64,
    pub bytes_wire: u64,
    pub processes: Vec<ProcessStatus>,
    /// What the job does not have any more, a sentence each: locks that others took, keyrings, what
    /// the target does not grant.
    pub lost: Vec<String>,
}

/// A move that did not end in [`MoveReport`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MoveFailure {
    pub id: Option<MoveId>,
    /// Exit code of `ux.md`: 10, 11, 12, 13, 75, 77.
    pub exit: u8,
    pub code: String,
    /// Whole sentences; says where the job is running now.
    pub sentence: String,
    pub findings: Vec<Finding>,
}

/// Writes one frame.
///
/// # Errors
/// I/O errors, or `InvalidInput` when the value does not fit a frame.
pub fn write_frame(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let len = u32::try_from(body.len())
        .ok()
        .filter(|&n| n <= MAX_FRAME)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    to.write_all(&len.to_le_bytes())?;
    to.write_all(&body)
}

/// Reads one frame.
///
/// # Errors
/// I/O errors, or `InvalidData` for an absurd size or a value that does not decode.
pub fn read_frame<T: for<'a> Deserialize<'a>>(from: &mut impl Read) -> io::Result<T> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {len} bytes")));
    }
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body)?;
    postcard::from_bytes(&body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Reads what a supervisor says. One that stops with its job just before it sees its client is
/// woken again.
struct Waking<'a>(&'a UnixStream);

impl Read for Waking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    crate::supervisor::wake(self.0);
                }
                other => return other,
            }
        }
    }
}

/// Connects to a supervisor's socket, whatever the length of its path (unix(7) limits
/// `sun_path` to 108 bytes; `/proc/self/fd` gives a short name for the folder).
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when no supervisor listens there.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (_dir, short) = short_path(socket)?;
    let stream = UnixStream::connect(short)?;
    crate::supervisor::wake(&stream);
    Ok(stream)
}

/// A name below 108 bytes for `path`, valid as long as the returned file is open.
///
/// # Errors
/// When the folder of `path` cannot be opened.
pub fn short_path(path: &Path) -> io::Result<(std::fs::File, std::path::PathBuf)> {
    use std::os::fd::AsRawFd;
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let dir = std::fs::File::open(dir)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((dir, short))
}

/// Sends `request` and gives every reply to `on_progress` until the final one, which is
/// returned.
///
/// # Errors
/// I/O errors, among them `UnexpectedEof` when the supervisor died.
pub fn ask(
    socket: &Path,
    request: &Request,
    mut on_progress: impl FnMut(MoveEvent),
) -> io::Result<Reply> {
    let mut stream = connect(socket)?;
    write_frame(&mut stream, request)?;
    stream.set_read_timeout(Some(Duration::from_millis(250)))?;
    loop {
        match read_frame(&mut Waking(&stream))? {
            Reply::Progress(event) => on_progress(event),
            reply => return Ok(reply),
        }
    }
}
