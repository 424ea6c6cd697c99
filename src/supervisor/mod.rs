//! One job, one supervisor, one event loop.
//!
//! ```text
//!            ┌── signalfd ── SIGCHLD ─► Waits ─► wait4 ─► Session (or a foreign owner)
//!            │          └─── others ─► Signals: has the job it? ─► forward
//! poll ─► step ── ctl.sock ─► clients ─► `pending`
//!            └── registered by others ─► `ready`
//! ```
//!
//! Whoever moves a job runs sequentially and calls [`Supervisor::step`] while it waits for
//! the network, so `step` keeps nothing borrowed and may be called from inside a handler.

pub mod job;
pub mod moves;
mod raw;
pub mod serve;
pub mod session;
pub mod signals;
pub mod status;
mod waits;
mod waker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mio::net::UnixListener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{getpgid, getpgrp, Pid};

use crate::control::{Finding, JobState, MoveReport, Reply, Request};
use crate::state::StateDir;
use crate::tracer::{stop, Exit, Stop, Wait};
use job::Job;
use serve::{Client, ClientKey, Clients};
use session::Session;
use signals::{Arrived, Reach, Signals};
use status::CpuMeter;
use waits::Waits;
use waker::Waker;

/// Wait statuses are taken for so long before others have a turn: a job may stop all the time.
const MOST_WAITS: Duration = Duration::from_millis(5);

/// Clients served at the same time; more are turned away.
const MAX_CLIENTS: usize = 64;

/// Tokens from here on belong to others, who register with [`Supervisor::registry`].
pub const FIRST_FOREIGN_TOKEN: usize = 1 << 40;

/// Who waits for this supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A shell, for a program that vosrun launched: vosrun stops when the job stops.
    Launched,
    /// Nobody.
    Background,
}

/// What a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Signals,
    ControlListener,
    ControlClient(ClientKey),
    /// Registered by [`Supervisor::register`]; events appear in [`Supervisor::ready`].
    Other,
}

/// An event of a source registered by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub token: Token,
    pub readable: bool,
    pub writable: bool,
    /// The other end is closed or in error, or there is urgent data.
    pub closed: bool,
}

/// A request that waits for whoever can answer it.
#[derive(Debug)]
pub struct Pending {
    pub client: ClientKey,
    pub request: Request,
    /// What came by SCM_RIGHTS: the socket of [`Request::Connection`].
    pub fd: Option<OwnedFd>,
}

/// What the movers have to say in [`crate::control::JobStatus`].
#[derive(Debug, Default)]
pub struct Board {
    /// Overrides what the supervisor sees by itself.
    pub state: Option<JobState>,
    pub moving: Option<String>,
    pub depends: Vec<String>,
    pub history: Vec<MoveReport>,
    pub blockers: Vec<Finding>,
    /// The node that the job has moved to, with its processes there.
    pub moved_to: Option<String>,
    pub remote: Vec<crate::control::ProcessStatus>,
}

/// Why the supervision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The first process ended.
    Exited(Exit),
    /// The job has died with the machine that it ran on; nobody knows how it ended.
    Lost,
}

/// The supervisor of one job.
pub struct Supervisor {
    pub state: StateDir,
    pub job: Job,
    pub session: Session,
    /// This node's name.
    pub node: String,
    pub mode: Mode,
    pub board: Board,
    /// Requests that wait for whoever can answer them, oldest first.
    pub pending: VecDeque<Pending>,
    /// Events of sources registered by others, oldest first.
    pub ready: VecDeque<Ready>,
    /// Threads whose stops belong to somebody else (processes under construction). They
    /// are put here instead of into the session.
    pub foreign: BTreeMap<i32, VecDeque<Stop>>,
    /// Ends the loop when set.
    pub end: Option<End>,
    /// Stops are answered after the end as well: other processes of the job have something to say.
    pub sees_out: bool,
    /// The job has gone on: its journal stays, for whoever asks where it is.
    pub keep_folder: bool,
    /// The job is on another node: signals for it are put into `arrived`.
    pub away: bool,
    pub arrived: VecDeque<Arrived>,
    /// The person's terminal, for what vosrun itself has to say.
    pub notice: Option<File>,
    /// vosrun's own signals.
    pub signals: Signals,
    poll: Poll,
    events: Option<Events>,
    sources: BTreeMap<usize, Source>,
    next_token: usize,
    listener: UnixListener,
    clients: Clients,
    cpu: CpuMeter,
    waits: Waits,
    /// Woken for the control socket while the job is stopped.
    pub(crate) woken: bool,
}

impl Supervisor {
    /// The supervisor of a job. Its threads, traced by this process, may be put into the
    /// session later.
    ///
    /// # Errors
    /// When the control socket or epoll cannot be made.
    pub fn new(
        state: StateDir,
        job: Job,
        session: Session,
        signals: Signals,
        mode: Mode,
    ) -> Result<Self> {
        let socket = job.dir.socket();
        let listener =
            serve::listen(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        let mut supervisor = Self {
            node: job::node_name(&state),
            state,
            job,
            session,
            mode,
            board: Board::default(),
            pending: VecDeque::new(),
            ready: VecDeque::new(),
            foreign: BTreeMap::new(),
            end: None,
            sees_out: false,
            keep_folder: false,
            away: false,
            arrived: VecDeque::new(),
            notice: None,
            signals,
            poll: Poll::new().context("epoll_create")?,
            events: None,
            sources: BTreeMap::new(),
            next_token: 0,
            listener,
            clients: Clients::new(),
            cpu: CpuMeter::new(),
            waits: Waits::new(),
            woken: false,
        };
        supervisor.watch_own().context("registering with epoll")?;
        Ok(supervisor)
    }

    fn watch_own(&mut self) -> io::Result<()> {
        let signals = self.token(Source::Signals);
        let listener = self.token(Source::ControlListener);
        let fd = self.signals.fd().as_fd().as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), signals, Interest::READABLE)?;
        self.poll.registry().register(&mut self.listener, listener, Interest::READABLE)
    }

    fn token(&mut self, source: Source) -> Token {
        let token = self.next_token;
        self.next_token += 1;
        self.sources.insert(token, source);
        Token(token)
    }

    /// Watches a descriptor of somebody else, edge-triggered; its events are put into
    /// [`Supervisor::ready`].
    ///
    /// # Errors
    /// When epoll_ctl(2) refuses.
    pub fn register(&mut self, fd: RawFd, interest: Interest) -> io::Result<Token> {
        let token = self.token(Source::Other);
        self.poll.registry().register(&mut SourceFd(&fd), token, interest)?;
        Ok(token)
    }

    /// A handle to epoll for tokens from [`FIRST_FOREIGN_TOKEN`] on.
    ///
    /// # Errors
    /// When it cannot be duplicated.
    pub fn registry(&self) -> io::Result<mio::Registry> {
        self.poll.registry().try_clone()
    }

    /// Changes what a registered descriptor is watched for; reports it anew if it is ready.
    ///
    /// # Errors
    /// When epoll_ctl(2) refuses.
    pub fn reregister(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.poll.registry().reregister(&mut SourceFd(&fd), token, interest)
    }

    /// Ends the watching of a descriptor; call before it is closed.
    ///
    /// # Errors
    /// When epoll_ctl(2) refuses.
    pub fn deregister(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        self.sources.remove(&token.0);
        self.ready.retain(|r| r.token != token);
        self.poll.registry().deregister(&mut SourceFd(&fd))
    }

    /// One round: waits for events, at most `timeout` (`None`: for ever), and takes them.
    ///
    /// # Errors
    /// Failures that end the supervision: of epoll, of wait4, of ptrace. The job runs on.
    pub fn step(&mut self, timeout: Option<Duration>) -> Result<()> {
        let mut events = self.events.take().unwrap_or_else(|| Events::with_capacity(64));
        let timeout = self.waits.timeout().into_iter().chain(timeout).min();
        let polled = self.poll.poll(&mut events, timeout);
        let ready: Vec<Ready> = events.iter().map(readiness).collect();
        self.events = Some(events);
        match polled {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                return Err(e).context("epoll_wait")
            }
            _ => {}
        }
        ready.into_iter().try_for_each(|r| self.dispatch(r))?;
        self.take_waits()
    }

    fn dispatch(&mut self, ready: Ready) -> Result<()> {
        match self.sources.get(&ready.token.0) {
            Some(Source::Signals) => self.take_signals()?,
            Some(Source::ControlListener) => self.accept(),
            Some(Source::ControlClient(key)) => self.hear(*key),
            Some(Source::Other) => self.ready.push_back(ready),
            None if ready.token.0 >= FIRST_FOREIGN_TOKEN => self.ready.push_back(ready),
            None => {}
        }
        Ok(())
    }

    /// Takes every wait status there is; when they do not end, what is left is for the next
    /// [`Supervisor::step`].
    ///
    /// # Errors
    /// When wait4(2) or ptrace(2) fail for another reason than that a thread is gone.
    pub fn drain_waits(&mut self) -> Result<()> {
        self.waits.doubt();
        self.take_waits()
    }

    /// Takes the wait statuses of threads that have said so, and, when it is time for that, of all
    /// others; see [`waits`].
    fn take_waits(&mut self) -> Result<()> {
        let until = Instant::now() + MOST_WAITS;
        for tid in self.waits.candidates(self.session.tasks.len()) {
            while self.take_one(tid)?.is_some() {
                if Instant::now() > until {
                    self.waits.doubt();
                    return Ok(());
                }
            }
        }
        if self.waits.is_due(self.session.tasks.len()) {
            self.look_at_all(until)?;
        }
        Ok(())
    }

    /// Takes what any thread has to tell. When many have, each is asked: a wait for any begins at
    /// the first one each time.
    fn look_at_all(&mut self, until: Instant) -> Result<()> {
        const MANY: usize = 16;
        let (mut begin, mut found) = (Instant::now(), BTreeSet::new());
        loop {
            let told = self.take_round()?;
            if told.is_empty() {
                break;
            }
            found.extend(told);
            if found.len() > MANY && self.session.translation.is_none() {
                found.clear();
                for tid in self.session.tasks.keys().copied().collect::<Vec<_>>() {
                    while self.take_one(tid)?.is_some() {}
                }
            }
            begin = Instant::now();
            if begin > until {
                self.waits.doubt();
                return Ok(());
            }
        }
        self.waits.looked_at_all(begin);
        Ok(())
    }

    /// Takes the next wait status of any thread. Of a job whose calls are translated all that there
    /// are: its threads may stop all the time, and the kernel tells of those first that were
    /// attached last. Gives whose they were.
    fn take_round(&mut self) -> Result<Vec<i32>> {
        if self.session.translation.is_none() {
            return Ok(self.take_one(-1)?.into_iter().collect());
        }
        let mut round = Vec::new();
        while !self.is_over() {
            match stop::wait(-1, false) {
                Ok(Some(wait)) => round.push(wait),
                Ok(None) => break,
                Err(e) if e.raw_os_error() == Some(libc::ECHILD) => break,
                Err(e) => return Err(e).context("wait4"),
            }
        }
        // A new thread goes on when its creator has told of it.
        round.sort_by_key(|wait| wait.stop == Stop::Interrupt);
        let tids = round.iter().map(|wait| wait.tid).collect();
        round.into_iter().try_for_each(|wait| self.take_wait(wait).context("ptrace"))?;
        Ok(tids)
    }

    /// Takes one wait status of a thread (-1: of any), if there is one; which thread it was.
    fn take_one(&mut self, tid: i32) -> Result<Option<i32>> {
        if self.is_over() {
            return Ok(None);
        }
        match stop::wait(tid, false) {
            Ok(Some(wait)) => {
                self.take_wait(wait).context("ptrace")?;
                Ok(Some(wait.tid))
            }
            Ok(None) => Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            Err(e) => Err(e).context("wait4"),
        }
    }

    /// No stop is answered any more.
    fn is_over(&self) -> bool {
        self.end.is_some() && !self.sees_out
    }

    fn take_wait(&mut self, wait: Wait) -> io::Result<()> {
        match wait.stop {
            Stop::Exited(_) => self.waits.gone(wait.tid),
            _ => self.waits.active(wait.tid),
        }
        if let Stop::Clone(new) | Stop::Fork(new) | Stop::Vfork(new) = wait.stop {
            self.waits.active(new);
        }
        if Some(wait.tid) == self.signals.witness() {
            self.signals.witness_stopped(wait.tid, wait.stop);
            return Ok(());
        }
        if let Some(stops) = self.foreign.get_mut(&wait.tid) {
            stops.push_back(wait.stop);
            return Ok(());
        }
        self.session.take(wait)?;
        self.end = self.end.or(self.session.ended.map(End::Exited));
        Ok(())
    }

    fn take_signals(&mut self) -> Result<()> {
        let mut arrived = self.read_signals()?;
        while !(arrived.is_empty() && self.signals.is_settled()) {
            let decided = self.signals.decide(arrived).context("wait4")?;
            decided.into_iter().for_each(|(signal, reach)| self.obey(signal, reach));
            arrived = self.read_signals()?;
        }
        Ok(())
    }

    /// Whatever reads the signalfd may take a SIGCHLD, so the waits are taken each time.
    fn read_signals(&mut self) -> Result<Vec<Arrived>> {
        let arrived = self.signals.read().context("signalfd")?;
        self.signals.take_children().for_each(|pid| self.waits.heard(pid));
        self.take_waits()?;
        Ok(arrived)
    }

    /// Passes a signal on if the job has not got it.
    fn obey(&mut self, arrived: Arrived, reach: Reach) {
        if arrived.is_wake() {
            self.woken = true;
            self.arrived.extend(self.signals.merged_with(&arrived));
            return;
        }
        if self.away || matches!(arrived.signal, libc::SIGWINCH | libc::SIGCONT) {
            self.arrived.push_back(arrived);
            if self.away {
                return;
            }
        }
        tracing::debug!("{arrived:?} reached {reach:?}");
        let root = self.session.root;
        let same_group = getpgid(Some(Pid::from_raw(root))).is_ok_and(|group| group == getpgrp());
        if reach == Reach::Group && (same_group || self.mode == Mode::Background) {
            return;
        }
        if let Err(e) = arrived.forward(root) {
            tracing::warn!("signal {} for process {root}: {e}", arrived.signal);
        }
    }

    /// A launched job was stopped: its shell has to see vosrun stop.
    pub(crate) fn stop_with_job(&mut self) -> Result<()> {
        let again = self.woken && self.clients.is_empty();
        let stopped = self.session.root_stopped.take();
        let Some(signal) = stopped.or_else(|| self.session.root_in_stop().filter(|_| again)) else {
            return Ok(());
        };
        if self.mode != Mode::Launched || self.end.is_some() {
            return Ok(());
        }
        self.woken = false;
        let waker = Waker::start(self.session.root);
        if let Err(e) = &waker {
            tracing::warn!("only the shell can continue the job: {e}");
        }
        Signals::stop_self(signal).context("stopping with the job")
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= MAX_CLIENTS {
                continue;
            }
            let key = self.next_token;
            let token = self.token(Source::ControlClient(key));
            let mut client = Client::new(stream);
            let both = Interest::READABLE | Interest::WRITABLE;
            if self.poll.registry().register(&mut client.stream, token, both).is_ok() {
                self.clients.insert(key, client);
                self.hear(key);
            }
        }
    }

    /// Does anybody wait for an answer?
    #[must_use]
    pub fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// A client can be read or written.
    fn hear(&mut self, key: ClientKey) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        client.flush();
        if let Some((request, fd)) = client.read() {
            self.pending.push_back(Pending { client: key, request, fd });
        }
        self.sweep(key);
    }

    /// Sends a reply that is not the last one. A client that is gone is no error.
    pub fn reply(&mut self, client: ClientKey, reply: &Reply) {
        self.say(client, reply, false);
    }

    /// Sends the last reply to a client.
    pub fn finish(&mut self, client: ClientKey, reply: &Reply) {
        self.say(client, reply, true);
    }

    /// A client that gets no reply has said all.
    pub fn dismiss(&mut self, client: ClientKey) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.dismiss();
        }
        self.sweep(client);
    }

    fn say(&mut self, key: ClientKey, reply: &Reply, last: bool) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.say(reply, last);
        }
        self.sweep(key);
    }

    /// Forgets a client that is over.
    fn sweep(&mut self, key: ClientKey) {
        if self.clients.get(&key).is_some_and(Client::is_over) {
            self.sources.remove(&key);
            if let Some(mut client) = self.clients.remove(&key) {
                let _ = self.poll.registry().deregister(&mut client.stream);
            }
        }
    }

    /// After the supervision: tells the clients, ends the witness and, if the job has
    /// ended, removes its folder.
    pub fn close(mut self, end: End) {
        let sentence = match end {
            End::Exited(_) => "the job has ended",
            End::Lost => "the job was lost with the node that it ran on",
        };
        for key in self.clients.keys().copied().collect::<Vec<_>>() {
            self.finish(key, &Reply::Error(sentence.into()));
        }
        self.signals.dismiss_witness();
        if self.keep_folder {
            return;
        }
        let removed = self.job.dir.remove();
        if let Err(e) = removed {
            tracing::warn!("{}: {e}", self.job.dir.path().display());
        }
    }
}

fn readiness(event: &mio::event::Event) -> Ready {
    Ready {
        token: event.token(),
        readable: event.is_readable(),
        writable: event.is_writable(),
        closed: event.is_read_closed()
            || event.is_write_closed()
            || event.is_error()
            || event.is_priority(),
    }
}

/// A supervisor that has stopped together with its job serves nobody. Wakes it for the
/// client connected by `stream`; it stops again when it has served, and the job stays
/// stopped.
pub fn wake(stream: &UnixStream) {
    let Ok(peer) = getsockopt(stream, PeerCredentials) else { return };
    let stat = procfs::process::Process::new(peer.pid()).and_then(|p| p.stat());
    if stat.is_ok_and(|s| s.state == 'T') {
        // It may have died meanwhile; then the connection says so.
        let _ = crate::tracer::raw::queue(peer.pid(), libc::SIGCONT, signals::WAKE as usize);
    }
}
