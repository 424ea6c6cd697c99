//! Busy connections are led past their relays, and back before the job moves on.
//!
//! ```text
//! Want ─► Invite ─► connect to home's node, show the key ─► taken ─► (job frozen) hand over, swap
//! ```
//! See [`crate::proxy::direct`] for what is said, and [`crate::migrate::swap`] for how the job gets
//! another socket.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use mio::{Interest, Token};

use super::exchange::{inode_of, set_flags, Exchange};
use super::source::{own, stopped, Frozen, Step1};
use super::{stream_key, Mover, Side, StreamKey};
use crate::ids::JobId;
use crate::migrate::files::Files;
use crate::migrate::resource::fd::tcp::envelope::Envelopes;
use crate::migrate::resource::fd::{tcp, CaptureCx, FdView};
use crate::node;
use crate::proxy::direct::{Key, Preface};
use crate::proxy::{addresses, Relays, StreamId};
use crate::syscalls::names;

/// A connection that is not answered for so long stays with its relay.
const PATIENCE: Duration = Duration::from_secs(5);

/// Those that are taken within this time are handed over together.
const TOGETHER: Duration = Duration::from_millis(20);

/// After a failure all stay with their relays for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// So long the home may take what comes before the bytes of the frozen job.
const FROZEN: Duration = Duration::from_secs(2);

/// Who waits at the home for a job that was stopped is stopped as well, and woken by a connection.
const WAKE: Duration = Duration::from_millis(200);

/// So long the home may take to carry connections again.
const RECALLED: Duration = Duration::from_secs(10);

/// Ways past relays.
#[derive(Debug, Default)]
pub(super) struct Directs {
    asked: BTreeMap<StreamId, Asked>,
    /// The sockets that the job has got, by their inodes.
    open: BTreeMap<StreamId, u64>,
    /// Nothing is begun before.
    not_before: Option<Instant>,
}

/// A way that is being made.
#[derive(Debug)]
struct Asked {
    since: Instant,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// No invitation has come.
    Wanted,
    /// The key is to be shown, or its answer is awaited.
    Connecting(Connecting),
    /// The home has taken it.
    Taken(TcpStream),
}

#[derive(Debug)]
struct Connecting {
    showing: Showing,
    token: Token,
}

/// A connection to another node, at which a key is shown.
#[derive(Debug)]
pub(super) struct Showing {
    stream: TcpStream,
    key: Key,
    shown: bool,
}

impl Directs {
    /// The job has got the socket with this inode.
    pub(super) fn insert(&mut self, stream: StreamId, inode: u64) {
        self.open.insert(stream, inode);
    }

    /// The stream of which this is the socket that the job has got, by its inode.
    pub(super) fn stream_of(&self, inode: u64) -> Option<StreamId> {
        self.open.iter().find(|(_, open)| **open == inode).map(|(stream, _)| *stream)
    }

    /// The sockets that the job has got, by their inodes.
    pub(super) fn open(&self) -> impl Iterator<Item = (StreamId, u64)> + '_ {
        self.open.iter().map(|(stream, inode)| (*stream, *inode))
    }

    /// Forgets one.
    pub(super) fn forget(&mut self, stream: StreamId) {
        self.open.remove(&stream);
    }

    /// Is this one of the sockets that the job has got? By its inode.
    pub(super) fn has(&self, inode: u64) -> bool {
        self.open.values().any(|open| *open == inode)
    }

    /// Time until something is to be looked at without an event.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let due = |asked: &Asked| match asked.step {
            Step::Taken(_) => asked.since + TOGETHER,
            _ => asked.since + PATIENCE,
        };
        let first = self.asked.values().map(due).min()?;
        let first = self.not_before.map_or(first, |at| first.max(at));
        Some(first.saturating_duration_since(Instant::now()))
    }
}

impl Mover {
    /// May connections be led past their relays now?
    fn goes_direct(&self) -> bool {
        let here = self.agent.is_none() && !self.left && !self.arriving && !self.is_home();
        let rests = self.moving.is_none() && !self.frozen && self.asleep.is_none();
        let session = &self.sup.session;
        let seen = self.sup.job.meta.filtered && session.translation.is_none();
        here && rests && seen && session.ended.is_none() && self.relay_link.is_some()
    }

    /// Begins, goes on with and ends what there is to do for busy connections.
    pub(super) fn serve_directs(&mut self) {
        if !self.goes_direct() {
            return self.give_up_asked(&"not now");
        }
        if self.directs.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let busy = self.away.as_mut().map(Relays::take_busy).unwrap_or_default();
        for stream in busy {
            let asked = Asked { since: Instant::now(), step: Step::Wanted };
            if !self.directs.open.contains_key(&stream)
                && self.directs.asked.insert(stream, asked).is_none()
            {
                let alone = self.goes_alone(stream);
                self.relay(Side::Away, |relays, out| relays.want(stream, alone, out));
            }
        }
        self.accept_meetings();
        self.accept_invitations();
        self.go_on_connecting();
        let taken = |asked: &Asked| matches!(asked.step, Step::Taken(_));
        let all = self.directs.asked.values();
        let due = all.clone().any(|a| taken(a) && a.since.elapsed() >= TOGETHER);
        if due || (all.len() > 0 && all.clone().all(taken)) {
            self.hand_over_taken();
        }
    }

    /// Joins connections whose other end was found.
    fn accept_meetings(&mut self) {
        let meetings = self.away.as_mut().map(Relays::take_meetings).unwrap_or_default();
        for meeting in meetings {
            let stream = meeting.0;
            let open = self.directs.open.contains_key(&stream);
            if self.forget_wanted(stream) && !open {
                if let Err(error) = self.join(meeting) {
                    self.stays(stream, &error);
                    self.directs.not_before = Some(Instant::now() + PAUSE);
                }
            }
        }
    }

    /// Was another way wanted, and none begun?
    fn forget_wanted(&mut self, stream: StreamId) -> bool {
        let wanted = |asked: &Asked| matches!(asked.step, Step::Wanted);
        self.directs.asked.get(&stream).is_some_and(wanted)
            && self.directs.asked.remove(&stream).is_some()
    }

    fn accept_invitations(&mut self) {
        let invitations = self.away.as_mut().map(Relays::take_invitations).unwrap_or_default();
        let is_wanted = |asked: &Asked| matches!(asked.step, Step::Wanted);
        let wanted = |stream: &StreamId| self.directs.asked.get(stream).is_some_and(is_wanted);
        let wanted: Vec<_> = invitations.into_iter().filter(|(stream, _)| wanted(stream)).collect();
        if wanted.is_empty() {
            return;
        }
        self.forget_closed();
        let files = self.files(&self.pids());
        for (stream, key) in wanted {
            let accepted = match &files {
                Ok(files) => self.accept_invitation(stream, key, files),
                Err(e) => Err(anyhow::anyhow!("its descriptors: {e}")),
            };
            if let Err(error) = accepted {
                self.stays(stream, &error);
            }
        }
    }

    /// Connections that are over have no names here any more.
    fn forget_closed(&mut self) {
        let Some(away) = &self.away else { return };
        let live: BTreeSet<StreamId> = away.streams().collect();
        self.joins.forget_all_but(&live);
        let names = &mut self.sup.session.names;
        self.directs.open.retain(|stream, inode| {
            let lives = live.contains(stream);
            if !lives {
                names.remove(*inode);
            }
            lives
        });
    }

    /// Connects to where the invitation came from.
    fn accept_invitation(&mut self, stream: StreamId, key: Key, files: &Files) -> Result<()> {
        self.learn_accepted(files);
        let view = self.find_socket(stream, files).context("the job has closed it")?;
        let (own, _) = addresses(&files.dup(&view)?).context("it has no addresses")?;
        let home = node::peers::by_id(&self.sup.state, self.home_node.0)?;
        let home = home.context("the home is no member any more")?;
        let to = home.addr.to_socket_addrs()?.next().context("the home has no address")?;
        let showing = Showing::begin(to, own.is_ipv6(), key)?;
        let fd = showing.stream.as_raw_fd();
        let token = self.sup.register(fd, Interest::READABLE | Interest::WRITABLE)?;
        let step = Step::Connecting(Connecting { showing, token });
        self.directs.asked.insert(stream, Asked { since: Instant::now(), step });
        Ok(())
    }

    pub(super) fn find_socket(&self, stream: StreamId, files: &Files) -> Option<FdView> {
        let key = self.streams.iter().find(|(_, of)| **of == stream)?.0;
        files.views.objects.iter().find(|view| stream_key(view) == *key).cloned()
    }

    fn go_on_connecting(&mut self) {
        let job = self.sup.job.id;
        let mut done = Vec::new();
        for (stream, asked) in &mut self.directs.asked {
            if let Step::Connecting(connecting) = &mut asked.step {
                match connecting.showing.go_on(job) {
                    Ok(false) if asked.since.elapsed() < PATIENCE => {}
                    Ok(false) => done.push((*stream, Err(io::ErrorKind::TimedOut.into()))),
                    Ok(true) => done.push((*stream, Ok(()))),
                    Err(e) => done.push((*stream, Err(e))),
                }
            } else if asked.since.elapsed() >= PATIENCE {
                done.push((*stream, Err(io::ErrorKind::TimedOut.into())));
            }
        }
        for (stream, result) in done {
            if let Err(e) = result {
                self.stays(stream, &e);
                continue;
            }
            let Some(socket) = self.forget_asked(stream) else { continue };
            let step = Step::Taken(socket);
            self.directs.asked.insert(stream, Asked { since: Instant::now(), step });
        }
    }

    /// The socket of a way that was being made, which nothing is waited for on any more.
    pub(super) fn forget_asked(&mut self, stream: StreamId) -> Option<TcpStream> {
        match self.directs.asked.remove(&stream)?.step {
            Step::Wanted => None,
            Step::Taken(socket) => Some(socket),
            Step::Connecting(Connecting { showing: Showing { stream: socket, .. }, token }) => {
                if let Err(e) = self.sup.deregister(socket.as_raw_fd(), token) {
                    tracing::debug!("epoll: {e}");
                }
                Some(socket)
            }
        }
    }

    fn give_up_asked(&mut self, why: &dyn std::fmt::Display) {
        for stream in self.directs.asked.keys().copied().collect::<Vec<_>>() {
            self.stays(stream, why);
        }
    }

    /// A connection stays with its relay for now.
    fn stays(&mut self, stream: StreamId, why: &dyn std::fmt::Display) {
        tracing::debug!("connection {stream} stays with its relay: {why:#}");
        drop(self.forget_asked(stream));
        if let Some(away) = &mut self.away {
            away.not_now(stream);
        }
    }

    /// Gives the job the sockets that the home has taken.
    fn hand_over_taken(&mut self) {
        let is_taken = |asked: &Asked| matches!(asked.step, Step::Taken(_));
        let all = self.directs.asked.iter().filter(|(_, asked)| is_taken(asked));
        let streams: Vec<StreamId> = all.map(|(stream, _)| *stream).collect();
        let frozen = match self.freeze_for_swap() {
            Ok(frozen) => frozen,
            Err(error) => {
                streams.iter().for_each(|stream| self.stays(*stream, &error));
                self.directs.not_before = Some(Instant::now() + PAUSE);
                return;
            }
        };
        let taken = streams.iter().filter_map(|id| Some((*id, self.forget_asked(*id)?))).collect();
        if let Err(error) = self.hand_over(&frozen, taken) {
            tracing::debug!("connections stay with their relays: {error:#}");
            self.directs.not_before = Some(Instant::now() + PAUSE);
        }
        for stream in streams {
            if !self.directs.open.contains_key(&stream) {
                self.stays(stream, &"not this time");
            }
        }
        self.thaw(&frozen);
    }

    fn hand_over(&mut self, frozen: &Frozen, taken: BTreeMap<StreamId, TcpStream>) -> Result<()> {
        let opened = frozen.job.processes.iter().any(|process| process.opened.is_some());
        ensure!(!opened, "the job is not dumpable, and cannot be told its addresses");
        let files = self.all_files(frozen)?;
        let mut ready = Vec::new();
        for (stream, mut socket) in taken {
            let prepared = self
                .find_socket(stream, &files)
                .context("the job has closed it")
                .and_then(|view| self.prepare_direct(stream, &mut socket, &view, &files));
            match prepared {
                Ok((exchange, connection)) => ready.push((stream, socket, exchange, connection)),
                Err(error) => self.stays(stream, &error),
            }
        }
        let exchanges: Vec<&Exchange> = ready.iter().map(|(_, _, exchange, _)| exchange).collect();
        if let Err(error) = self.exchange(frozen, &files, &exchanges) {
            for (stream, ..) in ready {
                self.relay(Side::Away, |relays, out| relays.take_back(stream, out));
                self.stays(stream, &error);
            }
            return Err(error);
        }
        let mut refilled = Vec::new();
        for (stream, mut socket, exchange, connection) in ready {
            if let Err(e) = Relays::confirm_direct(&mut socket).and_then(|()| {
                connection.dress(&exchange.new)?;
                set_flags(&exchange.new, exchange.flags)
            }) {
                tracing::error!("connection {stream}: {e}");
            }
            let inode = inode_of(&exchange.new)?;
            self.sup.session.names.insert(inode, names_of(&connection));
            self.rename(stream, inode);
            self.directs.open.insert(stream, inode);
            tracing::debug!("connection {stream} goes past its relay");
            if let Some(away) = &mut self.away {
                away.handed_over(stream);
            }
            refilled.push((exchange.new, exchange.unread));
        }
        for (socket, unread) in refilled {
            Relays::await_unread(socket.as_fd(), unread)?;
        }
        Ok(())
    }

    /// Writes what the other end is to have before the bytes of the job.
    fn prepare_direct(
        &mut self,
        stream: StreamId,
        socket: &mut TcpStream,
        view: &FdView,
        files: &Files,
    ) -> Result<(Exchange, tcp::Connection)> {
        ensure!(view.flags & libc::O_ASYNC == 0, "the job is told of it by signals");
        let old = files.dup(view)?;
        let connection = tcp::Connection::open(&old, view)?.context("it is shut down")?;
        let new = OwnedFd::from(socket.try_clone()?);
        let away = self.away.as_mut().context("no relays")?;
        let handed = away.hand_over(stream, old.as_fd())?;
        let (begin, unread) = handed.context("the relay is needed")?;
        socket.set_write_timeout(Some(FROZEN))?;
        if let Err(e) = socket.write_all(&begin) {
            self.relay(Side::Away, |relays, out| relays.take_back(stream, out));
            return Err(e.into());
        }
        let exchange = Exchange { inode: view.ino, old, new, flags: view.flags, unread };
        Ok((exchange, connection))
    }

    /// The job's socket of a stream is another one now.
    pub(super) fn rename(&mut self, stream: StreamId, inode: u64) {
        let key = self.streams.iter().find(|(_, of)| **of == stream).map(|(key, _)| *key);
        let Some(key) = key else { return };
        self.streams.remove(&key);
        let new: StreamKey = (key.0, inode, key.2);
        self.streams.insert(new, stream);
        if self.restored.remove(&(key.0, key.1)) {
            self.restored.insert((key.0, inode));
        }
    }

    /// All connections are carried by their relays again, as the job is about to move.
    pub(super) fn recall_all(&mut self) -> Step1<()> {
        self.give_up_asked(&"the job is about to move");
        self.directs.not_before = Some(Instant::now() + PAUSE);
        let until = Instant::now() + RECALLED;
        while !self.directs.open.is_empty() {
            let recalled = self.freeze_for_swap().and_then(|frozen| {
                let recalled = self.recall(&frozen, None);
                self.thaw(&frozen);
                recalled
            });
            match recalled {
                Err(error) if Instant::now() > until => return Err(own(format!("{error:#}"))),
                Err(error) => tracing::debug!("connections are not with their relays: {error:#}"),
                Ok(()) => {}
            }
            self.wait_a_little()?;
        }
        let (mut waking, mut wake_at) = (None, Instant::now() + WAKE);
        while self.away.as_ref().is_some_and(Relays::is_recalling) {
            self.serve_parting();
            if Instant::now() > wake_at && !self.is_home() {
                wake_at += WAKE;
                waking.into_iter().for_each(|key| self.drop_link(key));
                waking = self.connect_job(&self.home_node.clone()).ok();
            }
            if Instant::now() > until {
                let who = match self.parts_with() {
                    Some(node) => format!("node {node}, where a job is that this one talks to,"),
                    None => format!("{}, which has the job's connections,", self.home_node.1),
                };
                return Err(stopped(11, "VOS-LINK", format!("{who} does not answer")));
            }
            self.wait_a_little()?;
        }
        waking.into_iter().for_each(|key| self.drop_link(key));
        Ok(())
    }

    pub(super) fn wait_a_little(&mut self) -> Step1<()> {
        self.pump(Some(Duration::from_millis(10))).map_err(own)?;
        self.serve_links().map_err(own)?;
        self.requests_while_moving().map_err(own)
    }

    /// All of them, or this one.
    pub(super) fn recall(&mut self, frozen: &Frozen, only: Option<StreamId>) -> Result<()> {
        let files = self.all_files(frozen)?;
        let mut envelopes = Envelopes::default();
        let mut ready = Vec::new();
        let wanted = |stream: &StreamId| only.is_none_or(|only| only == *stream);
        for (stream, inode) in self.directs.open.clone().into_iter().filter(|(s, _)| wanted(s)) {
            let Some(view) = self.find_socket(stream, &files) else {
                // The job has closed it: what it wrote goes its way.
                self.directs.open.remove(&stream);
                self.sup.session.names.remove(inode);
                self.forget_joined(stream);
                continue;
            };
            let old = files.dup(&view)?;
            let Some(mut connection) = tcp::Connection::any(&old, &view)? else {
                self.directs.open.remove(&stream);
                self.is_over(stream);
                continue;
            };
            if let Some(pair) = self.sup.session.names.get(inode) {
                connection.rename(pair.own, pair.peer);
            }
            let pair = envelopes.connect(&connection)?;
            tcp::dress(&pair.job, &tcp::State::Connection(connection))?;
            set_flags(&pair.job, view.flags)?;
            let exchange = Exchange { inode, old, new: pair.job, flags: view.flags, unread: 0 };
            ready.push((stream, exchange, pair.far));
        }
        let exchanges: Vec<&Exchange> = ready.iter().map(|(_, exchange, _)| exchange).collect();
        self.exchange(frozen, &files, &exchanges)?;
        for (stream, exchange, far) in ready {
            self.directs.open.remove(&stream);
            self.sup.session.names.remove(exchange.inode);
            self.rename(stream, inode_of(&exchange.new)?);
            let was = exchange.old;
            let recalled =
                self.relay(Side::Away, |relays, out| relays.recall(stream, far, was, out));
            recalled.context("no relays")??;
            self.begin_parting(stream);
        }
        Ok(())
    }

    /// Takes a connection that shows the key of an invitation; gives any other back.
    pub(super) fn direct_connection(&mut self, fd: OwnedFd) -> Option<OwnedFd> {
        let mut stream = TcpStream::from(fd);
        let mut first = [0; Preface::LEN];
        let got = stream.peek(&mut first).unwrap_or(0);
        if !Preface::is_begun(&first[..got]) {
            return Some(stream.into());
        }
        let shown = Preface::read(&mut stream);
        let id = self.sup.job.id;
        let taken = match shown {
            Ok(preface) if preface.job == id && self.is_expected(&preface, &stream) => Ok(()),
            Ok(preface) if preface.job == id => self
                .relay(Side::Home, |relays, _| relays.connected(&preface.key, stream))
                .map_or(Ok(()), |taken| taken.map_err(anyhow::Error::from)),
            Ok(_) => Err(anyhow::anyhow!("it is of another job")),
            Err(e) => Err(e.into()),
        };
        if let Err(error) = taken {
            tracing::warn!("a connection past a relay was refused: {error:#}");
        }
        None
    }
}

impl Showing {
    /// Begins to connect, by a socket of IPv6 if so.
    pub(super) fn begin(to: SocketAddr, v6: bool, key: Key) -> io::Result<Self> {
        Ok(Self { stream: tcp::start_connecting(to, v6)?, key, shown: false })
    }

    /// The connection, once it is taken.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// True when it is taken by who waits for this job's.
    pub(super) fn go_on(&mut self, job: JobId) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        if !self.shown {
            match self.stream.peer_addr() {
                Err(e) if e.kind() == io::ErrorKind::NotConnected => return Ok(false),
                other => drop(other?),
            }
            self.stream.write_all(&Preface { job, key: self.key }.bytes())?;
            self.shown = true;
        }
        match self.stream.read(&mut [0]) {
            Ok(1) => {
                self.stream.set_nonblocking(false)?;
                Ok(true)
            }
            Ok(_) => Err(io::ErrorKind::ConnectionReset.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }
}

pub(super) fn names_of(connection: &tcp::Connection) -> names::Pair {
    let (own, peer) = connection.names();
    names::Pair { own, peer }
}
