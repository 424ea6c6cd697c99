//! The node daemon: one thread, one event loop, no state that is not in its files.
//!
//! Each connection is one `Conn`. It begins as `Kind::Hello` and is given away, or
//! becomes a link of the daemon's own; each has a deadline by which it must get on.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{bail, Context};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token as Key, Waker};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::handover::{self, peek_service, Given};
use super::host::{Host, Reply};
use super::message::{NodeMsg, MAX_MESSAGE};
use super::peers::{self, Own};
use super::store::{self, now_ms};
use super::sync::Plan;
use super::token::Token;
use super::{client, identity, orphan, Identity};
use crate::ids::{JobId, NodeId};
use crate::migrate::transport::{Link, Service};
use crate::state::StateDir;

/// Incoming connections that may be open at once; the oldest is closed for a newer one.
const MAX_INCOMING: usize = 256;
/// Time for a connection to say what it is for, to finish its handshake and to ask.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for an exchange with another member that this node began.
const EXCHANGE: Duration = Duration::from_secs(5);
/// Between two looks whether a supervisor has taken its connection.
const LOOK: Duration = Duration::from_millis(100);
/// Pause after accept4(2) failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks for folders of jobs that have gone on.
const SWEEP: Duration = Duration::from_secs(60 * 60);

const LISTENER: Key = Key(0);
const SIGNALS: Key = Key(1);
const STOP: Key = Key(2);
const FIRST_CONN: usize = 3;

/// What `vosrun node` was told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Default: the name it has, else the host name.
    pub name: Option<String>,
    pub listen: SocketAddr,
    /// The address others reach it by, when it is not `listen`.
    pub advertise: Option<SocketAddr>,
    pub join: Option<Token>,
    /// The program that receives jobs; normally `/proc/self/exe`.
    pub receiver: PathBuf,
}

/// One connection.
struct Conn {
    kind: Kind,
    remote: String,
    deadline: Instant,
}

enum Kind {
    /// Has not said yet what it is for.
    Hello(TcpStream),
    /// Was given to a supervisor.
    Given(Given),
    /// Talks to this daemon.
    Node(Link),
    /// Asks for a job that no supervisor on this node answers for.
    Orphan(Link, JobId),
    /// Has been answered; waits for the peer to have it all.
    Closing(Link),
    /// This daemon asks the member.
    Exchange(Link, NodeId),
}

impl Kind {
    fn incoming(&self) -> bool {
        !matches!(self, Self::Exchange(..))
    }

    /// Time until it is looked at again, or closed.
    fn patience(&self) -> Duration {
        match self {
            Self::Given(_) => LOOK,
            _ => PATIENCE,
        }
    }
}

/// What is to become of a connection after an event.
enum Next {
    Keep(Kind),
    /// Changed its nature: new deadline, and new registration for its source.
    Become(Kind),
    Drop,
}

/// Why a connection is closed, for the log.
type Reason = String;

/// The daemon, listening.
pub struct Daemon {
    host: Host,
    receiver: PathBuf,
    listener: TcpListener,
    poll: Poll,
    conns: HashMap<Key, Conn>,
    next_key: usize,
    plan: Plan,
    children: Vec<Child>,
    accept_at: Option<Instant>,
    /// When folders of jobs that have gone on are looked for again.
    sweep_at: Instant,
    signals: Option<SignalFd>,
    stopper: Arc<Waker>,
    _lock: store::Lock,
}

impl Daemon {
    /// Listens, and joins when told so. Nothing is answered before [`Self::run`].
    ///
    /// # Errors
    /// When another daemon has this state folder, the address cannot be bound, or joining
    /// fails ([`client::JoinError`]) for a node that is no member yet.
    pub fn start(state: &StateDir, config: &Config) -> anyhow::Result<Self> {
        let lock = lock_daemon(state)?;
        let identity = Identity::load_or_create(state)?;
        if let Some(name) = &config.name {
            identity::set_name(state, name)?;
        }
        let listener =
            TcpListener::bind(config.listen).map_err(|e| cannot_listen(config.listen, e))?;
        listener.set_nonblocking(true)?;
        let own = note_own(state, config, listener.local_addr()?)?;
        let host = Host { state: state.clone(), tls: super::tls_as(state, &identity)?, own };
        if let Some(token) = &config.join {
            join(&host, token)?;
        }
        Self::new(host, config.receiver.clone(), listener, lock)
    }

    fn new(
        host: Host,
        receiver: PathBuf,
        listener: TcpListener,
        lock: store::Lock,
    ) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let stopper = Arc::new(Waker::new(poll.registry(), STOP)?);
        let fd = listener.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), LISTENER, Interest::READABLE)?;
        let mut daemon = Self {
            host,
            receiver,
            listener,
            poll,
            conns: HashMap::new(),
            next_key: FIRST_CONN,
            plan: Plan::default(),
            children: Vec::new(),
            accept_at: None,
            sweep_at: Instant::now(),
            signals: None,
            stopper,
            _lock: lock,
        };
        daemon.tell_all_but(None);
        Ok(daemon)
    }

    /// What the daemon says when it is ready: `node a listening on 127.0.0.1:7701 (id …)`.
    #[must_use]
    pub fn greeting(&self) -> String {
        let Own { name, listen, .. } = &self.host.own;
        format!("node {name} listening on {listen} (id {})", self.host.tls.id())
    }

    /// The address it is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.host.own.listen
    }

    /// Ends [`Self::run`] when woken.
    #[must_use]
    pub fn stopper(&self) -> Arc<Waker> {
        self.stopper.clone()
    }

    /// Takes the process' signals from `signals`: SIGCHLD reaps, any other ends
    /// [`Self::run`].
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn watch_signals(&mut self, signals: SignalFd) -> io::Result<()> {
        let fd = signals.as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), SIGNALS, Interest::READABLE)?;
        self.signals = Some(signals);
        Ok(())
    }

    /// Answers until a signal or the stopper ends it. Receivers that it has started go on.
    ///
    /// # Errors
    /// When the event loop itself fails; no single connection makes it fail.
    pub fn run(mut self) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            self.do_what_is_due();
            let timeout =
                self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, timeout) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.context("waiting for events (epoll_wait)")?,
            }
            for event in &events {
                match event.token() {
                    STOP => return Ok(()),
                    SIGNALS if self.take_signals()? => return Ok(()),
                    SIGNALS => {}
                    LISTENER => self.accept_all(),
                    key => self.on_event(key),
                }
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let conns = self.conns.values().map(|c| c.deadline);
        conns.chain(self.plan.next()).chain(self.accept_at).chain([self.sweep_at]).min()
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        if self.accept_at.take_if(|at| *at <= now).is_some() {
            self.accept_all();
        }
        if self.sweep_at <= now {
            self.sweep_at = now + SWEEP;
            if let Err(e) = orphan::sweep(&self.host.state, SystemTime::now()) {
                tracing::warn!("removing the folders of jobs that have gone on: {e}");
            }
        }
        self.close_late(now);
        for peer in self.plan.take_due(now) {
            self.begin_exchange(peer, now);
        }
    }

    /// True when it is time to end.
    fn take_signals(&mut self) -> anyhow::Result<bool> {
        let Some(signals) = &self.signals else { return Ok(false) };
        while let Some(info) = signals.read_signal().context("reading signals")? {
            if i32::try_from(info.ssi_signo) != Ok(Signal::SIGCHLD as i32) {
                return Ok(true);
            }
        }
        self.reap();
        Ok(false)
    }

    fn reap(&mut self) {
        self.children.retain_mut(|child| match child.try_wait() {
            Ok(Some(status)) if !status.success() => {
                tracing::warn!("receiver {} ended with {status}", child.id());
                false
            }
            Ok(status) => status.is_none(),
            Err(e) => {
                tracing::warn!("waiting for receiver {}: {e}", child.id());
                false
            }
        });
    }

    // ---- incoming connections ----

    fn accept_all(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, from)) => self.accepted(stream, from),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if is_of_one_connection(&e) => {}
                Err(e) => {
                    tracing::error!("accepting a connection: {e}");
                    self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn accepted(&mut self, stream: TcpStream, from: SocketAddr) {
        self.make_room();
        let kind = match stream.set_nonblocking(true) {
            Ok(()) => Kind::Hello(stream),
            Err(e) => return tracing::warn!("connection from {from} dropped: {e}"),
        };
        let deadline = Instant::now() + PATIENCE;
        self.insert(Conn { kind, remote: from.to_string(), deadline });
    }

    /// Closes the incoming connection that has the least time left, when there are too many.
    fn make_room(&mut self) {
        let incoming = self.conns.iter().filter(|(_, c)| c.kind.incoming());
        if incoming.clone().count() < MAX_INCOMING {
            return;
        }
        if let Some(oldest) = incoming.min_by_key(|(_, c)| c.deadline).map(|(key, _)| *key) {
            self.drop_conn(oldest, &format!("more than {MAX_INCOMING} connections are open"));
        }
    }

    fn insert(&mut self, mut conn: Conn) {
        let key = Key(self.next_key);
        self.next_key += 1;
        if let Err(e) = self.register(key, &mut conn.kind) {
            return self.ended(&conn.remote, &conn.kind_end(), &format!("waiting for it: {e}"));
        }
        self.conns.insert(key, conn);
        self.on_event(key);
    }

    fn register(&self, key: Key, kind: &mut Kind) -> io::Result<()> {
        let registry = self.poll.registry();
        match kind {
            Kind::Hello(stream) => {
                let fd = stream.as_raw_fd();
                registry.register(&mut SourceFd(&fd), key, Interest::READABLE)
            }
            Kind::Given(given) => {
                registry.register(&mut SourceFd(&given.as_raw_fd()), key, Interest::READABLE)
            }
            Kind::Node(link)
            | Kind::Orphan(link, _)
            | Kind::Closing(link)
            | Kind::Exchange(link, _) => {
                registry.register(link, key, Interest::READABLE | Interest::WRITABLE)
            }
        }
    }

    fn close_late(&mut self, now: Instant) {
        let late = self.conns.iter().filter(|(_, c)| c.deadline <= now).map(|(key, _)| *key);
        for key in late.collect::<Vec<_>>() {
            match self.conns.get_mut(&key) {
                Some(Conn { kind: Kind::Given(given), deadline, .. }) if given.wake() => {
                    *deadline = now + LOOK;
                }
                _ => self.drop_conn(key, "it took too long"),
            }
        }
    }

    /// Forgets a connection; the kernel forgets its registration when it is closed.
    fn drop_conn(&mut self, key: Key, why: &str) {
        if let Some(conn) = self.conns.remove(&key) {
            self.ended(&conn.remote, &conn.kind_end(), why);
        }
    }

    fn ended(&mut self, remote: &str, end: &End, why: &str) {
        match end {
            End::Exchange(peer) => self.exchange_failed(*peer, why),
            End::Quiet => {}
            End::Incoming(None) => tracing::warn!("closed the connection from {remote}: {why}"),
            End::Incoming(Some(id)) => {
                tracing::warn!("closed the connection from {remote} (key {id}): {why}");
            }
        }
    }

    fn on_event(&mut self, key: Key) {
        let Some(conn) = self.conns.remove(&key) else { return };
        let (remote, end, deadline) = (conn.remote.clone(), conn.kind_end(), conn.deadline);
        match self.step(conn.kind) {
            Ok(Next::Keep(kind)) => {
                self.conns.insert(key, Conn { kind, remote, deadline });
            }
            Ok(Next::Become(kind)) => {
                let deadline = Instant::now() + kind.patience();
                self.insert(Conn { kind, remote, deadline });
            }
            Ok(Next::Drop) => {}
            Err(why) => self.ended(&remote, &end, &why),
        }
    }

    fn step(&mut self, kind: Kind) -> Result<Next, Reason> {
        match kind {
            Kind::Hello(stream) => self.route(stream),
            Kind::Given(given) if given.is_over() => Ok(Next::Drop),
            Kind::Given(_) => Ok(Next::Keep(kind)),
            Kind::Node(link) => self.serve(link),
            Kind::Orphan(link, job) => self.answer_for_job(link, job),
            Kind::Closing(link) => Ok(finish(link)),
            Kind::Exchange(link, peer) => self.exchange(link, peer),
        }
    }

    fn route(&mut self, stream: TcpStream) -> Result<Next, Reason> {
        let Some(service) = peek_service(&stream).map_err(text)? else {
            return Ok(Next::Keep(Kind::Hello(stream)));
        };
        // What is given away or becomes a link must not be known to this loop any more.
        let fd = stream.as_raw_fd();
        self.poll.registry().deregister(&mut SourceFd(&fd)).map_err(text)?;
        match service {
            Service::Node => {
                let link = Link::accept_stranger(stream, &self.host.tls).map_err(text)?;
                Ok(Next::Become(Kind::Node(limited(link))))
            }
            Service::New => self.start_receiver(&stream),
            Service::Job(job) => self.give_to_supervisor(stream, job),
        }
    }

    fn start_receiver(&mut self, stream: &TcpStream) -> Result<Next, Reason> {
        self.reap();
        let child = handover::to_receiver(&self.receiver, &self.host.state, stream)
            .map_err(|e| format!("starting a receiver: {e}"))?;
        self.children.push(child);
        Ok(Next::Drop)
    }

    fn give_to_supervisor(&mut self, stream: TcpStream, job: JobId) -> Result<Next, Reason> {
        match handover::to_supervisor(&self.host.state.job(job).socket(), &stream) {
            Ok(given) => Ok(Next::Become(Kind::Given(given))),
            Err(e) if nobody_listens(&e) => {
                let link = Link::accept(stream, &self.host.tls).map_err(text)?;
                Ok(Next::Become(Kind::Orphan(limited(link), job)))
            }
            Err(e) => Err(format!("giving it to the supervisor of job {job}: {e}")),
        }
    }

    // ---- links of the daemon's own ----

    fn serve(&mut self, mut link: Link) -> Result<Next, Reason> {
        self.answer_all(&mut link)?;
        while link.paused() {
            self.answer_all(&mut link)?;
        }
        Ok(if link.closed() { close(link) } else { Next::Keep(Kind::Node(link)) })
    }

    fn answer_all(&mut self, link: &mut Link) -> Result<(), Reason> {
        link.drive().map_err(text)?;
        let Some(peer) = link.peer() else { return Ok(()) };
        while let Some(frame) = link.next_frame() {
            let question = frame.decode().map_err(text)?;
            self.answer(link, peer, question)?;
        }
        if link.queued() > MAX_MESSAGE {
            return Err("it asks faster than it takes the answers".to_owned());
        }
        Ok(())
    }

    fn answer(&mut self, link: &mut Link, peer: NodeId, question: NodeMsg) -> Result<(), Reason> {
        let local = link.local_addr().map_err(text)?;
        let Reply { answer, news } = self.host.answer(peer, local, question)?;
        if news {
            self.tell_all_but(Some(peer));
        }
        link.send(&answer, &[]).map_err(text)
    }

    fn answer_for_job(&mut self, mut link: Link, job: JobId) -> Result<Next, Reason> {
        link.drive().map_err(text)?;
        let Some(frame) = link.next_frame() else {
            return Ok(Next::Keep(Kind::Orphan(link, job)));
        };
        let peer = link.peer().ok_or("it has not shown who it is")?;
        let answer = orphan::answer(&self.host.state, job, peer, &frame.header)
            .ok_or_else(|| format!("job {job} has no supervisor here"))?;
        link.send_raw(&answer, &[]).map_err(text)?;
        Ok(close(link))
    }

    /// There is news for all members, except for the one it came from.
    fn tell_all_but(&mut self, source: Option<NodeId>) {
        let now = Instant::now();
        match peers::load(&self.host.state) {
            Ok(peers) => {
                peers.iter().filter(|p| Some(p.id) != source).for_each(|p| self.plan.add(p.id, now))
            }
            Err(e) => tracing::error!("{e}; the other members are not told"),
        }
    }

    fn begin_exchange(&mut self, peer: NodeId, now: Instant) {
        match self.host.call(peer) {
            Ok(Some(link)) => {
                let remote = link.remote().to_owned();
                let kind = Kind::Exchange(link, peer);
                self.insert(Conn { kind, remote, deadline: now + EXCHANGE });
            }
            Ok(None) => self.plan.forget(peer),
            Err(e) => self.exchange_failed(peer, &e.to_string()),
        }
    }

    fn exchange(&mut self, mut link: Link, peer: NodeId) -> Result<Next, Reason> {
        link.drive().map_err(text)?;
        let Some(frame) = link.next_frame() else {
            return match link.closed() {
                true => Err("closed without an answer".to_owned()),
                false => Ok(Next::Keep(Kind::Exchange(link, peer))),
            };
        };
        let news = self.host.learn(peer, frame.decode().map_err(text)?)?;
        self.plan.succeeded(peer);
        if news {
            self.tell_all_but(Some(peer));
        }
        Ok(close(link))
    }

    fn exchange_failed(&mut self, peer: NodeId, why: &str) {
        if self.plan.failed(peer, Instant::now()) == 1 {
            tracing::info!("member {peer} was not reached, trying again: {why}");
        }
    }
}

/// What has to be done when a connection ends before its time.
enum End {
    Quiet,
    Incoming(Option<NodeId>),
    Exchange(NodeId),
}

impl Conn {
    fn kind_end(&self) -> End {
        match &self.kind {
            Kind::Hello(_) | Kind::Given(_) => End::Incoming(None),
            Kind::Node(link) | Kind::Orphan(link, _) => End::Incoming(link.claimed()),
            Kind::Closing(_) => End::Quiet,
            Kind::Exchange(_, peer) => End::Exchange(*peer),
        }
    }
}

fn text(error: impl ToString) -> Reason {
    error.to_string()
}

/// A link that takes small messages only.
fn limited(mut link: Link) -> Link {
    link.limit_header(MAX_MESSAGE);
    link
}

/// Says goodbye; the peer is given time to receive what was sent.
fn close(mut link: Link) -> Next {
    match link.close() {
        Ok(()) => finish(link),
        Err(_) => Next::Drop,
    }
}

fn finish(mut link: Link) -> Next {
    let driven = link.drive();
    let unfinished = !link.closed() || link.queued() > 0;
    match driven {
        Ok(()) if unfinished && !link.paused() => Next::Keep(Kind::Closing(link)),
        _ => Next::Drop,
    }
}

fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Errors of accept4(2) that belong to the connection and not to the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied)
}

fn cannot_listen(at: SocketAddr, e: io::Error) -> anyhow::Error {
    let remedy = match e.kind() {
        io::ErrorKind::AddrInUse => "choose another port with --listen IP:PORT",
        io::ErrorKind::AddrNotAvailable => "name an address of this machine with --listen IP:PORT",
        _ => return anyhow::Error::from(e).context(format!("listening on {at}")),
    };
    anyhow::anyhow!("listening on {at}: {e}; {remedy}")
}

fn lock_daemon(state: &StateDir) -> anyhow::Result<store::Lock> {
    match store::daemon_lock(state) {
        Err(e) if e.source.kind() == io::ErrorKind::WouldBlock => {
            let at = peers::own(state)?.map_or(String::new(), |own| format!(" on {}", own.listen));
            bail!("a node daemon already runs for {}{at}", state.path().display())
        }
        other => Ok(other?),
    }
}

fn note_own(state: &StateDir, config: &Config, listen: SocketAddr) -> anyhow::Result<Own> {
    let own = Own {
        name: identity::name(state)?,
        listen,
        advertise: config.advertise,
        stamp_ms: now_ms(),
        pid: std::process::id(),
    };
    Ok(peers::set_own(state, own)?)
}

/// A node that is a member already starts also when it cannot join again.
fn join(host: &Host, token: &Token) -> Result<(), client::JoinError> {
    match client::join(&host.state, &host.tls, token, &host.own) {
        Err(e) if peers::is_member(&host.state, token.id) => {
            tracing::warn!("{e}; going on, as this node is a member already");
            Ok(())
        }
        other => other,
    }
}

/// Prints `line` on standard output; a reader that is gone is no reason to end.
pub fn announce(line: &str) {
    let mut out = io::stdout().lock();
    let _gone = writeln!(out, "{line}").and_then(|()| out.flush());
}
