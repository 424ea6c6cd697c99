//! What a job looks like from outside: the answer to [`Request::Status`].
//!
//! All of it is read from /proc when somebody asks; nothing walks page tables.
//!
//! [`Request::Status`]: crate::control::Request::Status

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::time::Instant;

use procfs::process::{Process, Stat, Status};

use super::session::Session;
use super::Supervisor;
use crate::control::{ConnectionStatus, FdStatus, JobState, JobStatus, ProcessStatus};
use crate::migrate::resource::fd::{self, pty, FdView};
use crate::proxy;

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

    /// The TCP connections of the job here, each once. `bind` as in [`Self::status`].
    #[must_use]
    pub fn connections(&self, bind: Bind) -> Vec<ConnectionStatus> {
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        for process in self.processes() {
            for view in views(process.host_pid) {
                if seen.insert((view.dev, view.ino)) {
                    let mut found = connection(process.pid, &view, bind);
                    if let (Some(one), Some(pair)) = (&mut found, self.session.names.get(view.ino))
                    {
                        (one.own, one.peer) = (pair.own, pair.peer);
                    }
                    all.extend(found);
                }
            }
        }
        all
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

/// What stands behind a description: `native`, `recreated` or `forwarded via HOME`.
pub type Bind<'a> = &'a dyn Fn(&FdView) -> String;

fn descriptors(pid: i32, bind: Bind) -> Vec<FdStatus> {
    views(pid).map(|view| describe(view, bind)).collect()
}

/// The descriptors of a process.
fn views(pid: i32) -> impl Iterator<Item = FdView> {
    let numbers = fd::numbers(pid).unwrap_or_default();
    numbers.into_iter().filter_map(move |fd| FdView::read(pid, fd).ok())
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
    let all = views(pid).filter(|view| fd::tcp::established(view).is_some());
    all.map(|view| view.link).collect::<BTreeSet<_>>().len() as u32
}

/// How the binding of what comes over another node begins.
pub const FORWARDED: &str = "forwarded";

/// What is to be told of a connection of the process that the job knows by the number `pid`.
fn connection(pid: i32, view: &FdView, bind: Bind) -> Option<ConnectionStatus> {
    let socket = fd::tcp::established(view)?;
    let (own, peer) = proxy::addresses(&socket)?;
    let traffic = proxy::traffic(socket.as_fd()).ok()?;
    let binding = bind(view);
    let rtt_us = (!binding.starts_with(FORWARDED)).then_some(traffic.rtt_us);
    let (sent, received) = (traffic.sent, traffic.received);
    Some(ConnectionStatus { pid, fd: view.fd, own, peer, binding, sent, received, rtt_us })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

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
        let view = FdView::read(own, reader.as_raw_fd()).unwrap();
        let shown = describe(view, &|_| "native".into());
        assert_eq!((shown.kind.as_str(), shown.binding.as_str()), ("pipe", "native"));
        assert!(shown.what.starts_with("pipe:["), "{}", shown.what);
    }

    #[test]
    fn own_connections_are_counted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = std::process::id() as i32;
        let before = connections(own);
        let one = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(connections(own) > before);
        let (mut other, _) = listener.accept().unwrap();
        (&one).write_all(b"question").unwrap();
        other.read_exact(&mut [0; 8]).unwrap();
        let view = FdView::read(own, one.as_raw_fd()).unwrap();
        let shown = connection(7, &view, &|_| "native".into()).unwrap();
        assert_eq!((shown.pid, shown.received, shown.own), (7, 0, one.local_addr().unwrap()));
        assert_eq!((shown.peer, shown.rtt_us.is_some()), (listener.local_addr().unwrap(), true));
        let forwarded = connection(7, &view, &|_| format!("{FORWARDED} via a")).unwrap();
        assert_eq!((forwarded.rtt_us, forwarded.binding.as_str()), (None, "forwarded via a"));
        let view = FdView::read(own, other.as_raw_fd()).unwrap();
        assert_eq!(connection(7, &view, &|_| String::new()).unwrap().received, 8);
    }
}
