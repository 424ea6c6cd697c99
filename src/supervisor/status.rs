//! What a job looks like from outside: the answer to [`Request::Status`].
//!
//! All of it is read from /proc when somebody asks; nothing walks page tables.
//!
//! [`Request::Status`]: crate::control::Request::Status

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use procfs::process::{Process, Stat, Status};

use super::session::Session;
use super::Supervisor;
use crate::control::{FdStatus, JobState, JobStatus, ProcessStatus};
use crate::migrate::resource::fd::{self, pty, FdView};

/// CPU time at the last question.
#[derive(Debug)]
pub(super) struct CpuMeter {
    at: Instant,
    ticks: u64,
}

impl CpuMeter {
    pub(super) fn new() -> Self {
        Self { at: Instant::now(), ticks: 0 }
    }

    /// Percent of one CPU since the last question.
    fn percent(&mut self, ticks: u64) -> f32 {
        let spent = ticks.saturating_sub(self.ticks) as f32 / procfs::ticks_per_second() as f32;
        let elapsed = self.at.elapsed().as_secs_f32().max(0.001);
        *self = Self { at: Instant::now(), ticks };
        100.0 * spent / elapsed
    }
}

/// One process as /proc shows it.
struct Seen {
    stat: Stat,
    status: Status,
}

fn look(pid: i32) -> Option<Seen> {
    let process = Process::new(pid).ok()?;
    Some(Seen { stat: process.stat().ok()?, status: process.status().ok()? })
}

impl Supervisor {
    /// The job's processes here.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessStatus> {
        let seen = self.session.processes().into_iter().filter_map(look);
        seen.map(|p| process_status(&p, &self.node)).collect()
    }

    /// Everything that `ps` and `inspect` show of this job. `bind` names what stands behind
    /// a descriptor.
    #[must_use]
    pub fn status(&mut self, bind: Bind) -> JobStatus {
        let root = self.session.root;
        let processes: Vec<Seen> = self.session.processes().into_iter().filter_map(look).collect();
        let sum = |of: fn(&Seen) -> u64| processes.iter().map(of).sum::<u64>();
        let node = self.node.clone();
        let meta = &self.job.meta;
        JobStatus {
            id: self.job.id,
            name: meta.name.clone(),
            command: meta.command.join(" "),
            state: self.board.state.unwrap_or_else(|| state_of(&self.session)),
            home: meta.home.clone(),
            epoch: meta.epoch,
            started_ms: meta.started_ms,
            cpu_percent: self.cpu.percent(sum(|p| p.stat.utime + p.stat.stime)),
            rss_bytes: 1024 * sum(|p| p.status.vmrss.unwrap_or(0)),
            private_bytes: 1024 * sum(|p| p.status.rssanon.unwrap_or(0)),
            cwd: link(root, "cwd"),
            tty: look(root).and_then(|p| terminal(p.stat.tty_nr)),
            connections: processes.iter().map(|p| connections(p.stat.pid)).sum(),
            fds: descriptors(root, bind),
            depends: self.board.depends.clone(),
            history: self.board.history.clone(),
            blockers: self.board.blockers.clone(),
            moving: self.board.moving.clone(),
            supervisor_pid: nix::unistd::getpid().as_raw(),
            attached: meta.attached,
            processes: match self.board.moved_to {
                Some(_) => self.board.remote.clone(),
                None => processes.iter().map(|p| process_status(p, &node)).collect(),
            },
            node: self.board.moved_to.clone().unwrap_or(node),
        }
    }
}

fn state_of(session: &Session) -> JobState {
    match session.root_in_stop() {
        Some(_) => JobState::Stopped,
        None => JobState::Running,
    }
}

fn process_status(seen: &Seen, node: &str) -> ProcessStatus {
    let namespaced = seen.status.nspid.as_ref().and_then(|pids| pids.last().copied());
    ProcessStatus {
        pid: namespaced.unwrap_or(seen.stat.pid),
        host_pid: seen.stat.pid,
        node: node.to_owned(),
        comm: seen.stat.comm.clone(),
        threads: u32::try_from(seen.stat.num_threads).unwrap_or(0),
    }
}

fn link(pid: i32, name: &str) -> String {
    let target = fs::read_link(format!("/proc/{pid}/{name}"));
    target.map_or_else(|_| String::new(), |t| t.to_string_lossy().into_owned())
}

/// Name of a terminal by its device number.
fn terminal(tty_nr: i32) -> Option<String> {
    let (major, minor) = pty::device(tty_nr);
    match major {
        0 => None,
        4 if minor < 64 => Some(format!("tty{minor}")),
        4 => Some(format!("ttyS{}", minor - 64)),
        136..=143 => Some(format!("pts/{}", (major - 136) * 256 + minor)),
        _ => Some(format!("tty {major}:{minor}")),
    }
}

/// Numbers of the process's descriptors, ascending.
fn numbers(pid: i32) -> BTreeSet<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// What stands behind a description: `native`, `recreated` or `forwarded via HOME`.
pub type Bind<'a> = &'a dyn Fn(&FdView) -> String;

fn descriptors(pid: i32, bind: Bind) -> Vec<FdStatus> {
    let views = numbers(pid).into_iter().filter_map(|fd| FdView::read(pid, fd).ok());
    views.map(|view| describe(view, bind)).collect()
}

fn describe(view: FdView, bind: Bind) -> FdStatus {
    let (binding, kind) = (bind(&view), kind(&view));
    FdStatus { fd: view.fd, kind, what: view.link, binding }
}

/// The kind as the table of kinds names it; sockets and others as their link tells it.
fn kind(view: &FdView) -> String {
    if fd::is_terminal(view) {
        return "terminal".into();
    }
    match fd::find(view).map(|kind| kind.name()) {
        Some(name) if !["special", "other"].contains(&name) => name.to_owned(),
        _ => by_link(&view.link),
    }
}

fn by_link(what: &str) -> String {
    match what.split_once(':') {
        Some(("anon_inode", name)) => name.trim_matches(['[', ']']).to_owned(),
        Some((kind, _)) if !what.starts_with('/') => kind.to_owned(),
        _ => "file".to_owned(),
    }
}

/// Established TCP connections of a process, each once, in whatever network namespace.
fn connections(pid: i32) -> u32 {
    let all = numbers(pid).into_iter().filter(|number| fd::tcp::is_established(pid, *number));
    all.map(|number| link(pid, &format!("fd/{number}"))).collect::<BTreeSet<_>>().len() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_have_names() {
        assert_eq!(terminal(0), None);
        assert_eq!(terminal(0x8803).as_deref(), Some("pts/3"));
        assert_eq!(terminal(0x401).as_deref(), Some("tty1"));
    }

    #[test]
    fn kinds_come_from_the_link() {
        assert_eq!(by_link("socket:[12]"), "socket");
        assert_eq!(by_link("anon_inode:[io_uring]"), "io_uring");
        assert_eq!(by_link("/proc/self/a:b"), "file");
    }

    #[test]
    fn own_descriptors_are_described() {
        let own = std::process::id() as i32;
        let (reader, _writer) = std::io::pipe().unwrap();
        let view = FdView::read(own, std::os::fd::AsRawFd::as_raw_fd(&reader)).unwrap();
        let shown = describe(view, &|_| "native".into());
        assert_eq!((shown.kind.as_str(), shown.binding.as_str()), ("pipe", "native"));
        assert!(shown.what.starts_with("pipe:["), "{}", shown.what);
    }

    #[test]
    fn own_connections_are_counted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = std::process::id() as i32;
        let before = connections(own);
        let _one = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(connections(own) > before);
    }
}
