//! Connections between two jobs are joined when the one that is away has found the other one busy.
//!
//! ```text
//! the one that is away              the other one's supervisor
//! Join ───────────────────────────►
//!        ◄─────────────── JoinReady   connects, and shows the key
//! (freezes) JoinFreeze ────────────►  (freezes)
//!        ◄────────────── JoinFrozen   nothing is under way to its peer any more: it asks its home
//! JoinSettle ──────────────────────►  … nor to the other job
//!        ◄────────────── JoinUnread   what that job has not read
//! JoinSwap, with what this has not ►  gives its job the new socket
//!        ◄───────────── JoinWritten
//! ═══ HOLDS on the new connection ◄═  and the same bytes
//! ═══ HOLDS, and its bytes ════════►  from here on both have it; before, both go back
//! ```
//! What rests meanwhile, and how: [`crate::proxy::direct`]. Before either job moves, both take their
//! own ways again ([`super::parting`]).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use super::direct::{inode_of, names_of, set_flags, Exchange, Showing};
use super::parting::Parting;
use super::source::Frozen;
use super::{stream_key, Class, LinkKey, Mover, Side};
use crate::ids::{random_bytes, JobId, NodeId};
use crate::migrate::files::Files;
use crate::migrate::message::Msg;
use crate::migrate::resource::fd::{tcp, CaptureCx, FdView};
use crate::migrate::transport::{Link, Service};
use crate::node;
use crate::node::holder::{self, Ends};
use crate::node::message::NodeMsg;
use crate::proxy::direct::{Key, Meeting, Preface, HOLDS};
use crate::proxy::{addresses, HomeEnd, Loopback, Relays, StreamId};
use crate::syscalls::names;

/// So long both may take before they are frozen.
const READY: Duration = Duration::from_secs(2);

/// So long both may be frozen before either has a new socket.
const FROZEN: Duration = Duration::from_millis(400);

/// So long the other job's supervisor is waited for once this job has its new socket.
const HELD: Duration = Duration::from_secs(10);

/// A connection with more bytes that a job has not read stays as it is for now.
const MOST: usize = 512 << 10;

/// So many bytes any new connection takes at once; of both directions only one may have more than is
/// taken.
const FITS: usize = 48 << 10;

/// So often it is tried; then the connection goes past its relay alone.
const TRIES: u32 = 8;

/// A node that is asked for the other end of a connection answers within so long.
const ANSWER: Duration = Duration::from_millis(500);

/// The other job of a connection that is joined.
#[derive(Debug, Clone, Copy)]
pub(super) struct Partner {
    /// The node where it runs.
    pub(super) node: NodeId,
    pub(super) job: JobId,
    pub(super) key: Key,
}

/// What is known of connections between jobs.
#[derive(Debug, Default)]
pub(super) struct Joins {
    /// Those that are joined.
    pub(super) all: BTreeMap<StreamId, Partner>,
    /// Of which the other job's supervisor is to hear.
    pub(super) parting: Vec<Parting>,
    /// How often a connection was tried in vain.
    tries: BTreeMap<StreamId, u32>,
    /// The key that a connection is to show, and the one that has.
    expected: Option<(Key, Option<TcpStream>)>,
    /// The last one was refused for good.
    refused: bool,
    /// The relays at home are there for joined connections and nothing else.
    pub(super) only: bool,
    /// Connections are looked at again then.
    pub(super) look_at: Option<Instant>,
}

impl Joins {
    /// Is it joined?
    pub(super) fn has(&self, stream: Option<StreamId>) -> bool {
        stream.is_some_and(|stream| self.all.contains_key(&stream))
    }
}

/// A socket of the frozen job, to be replaced.
struct Held {
    view: FdView,
    old: OwnedFd,
    connection: tcp::Connection,
    files: Files,
}

/// An end of a connection in this job.
enum End {
    /// It is relayed.
    Relayed(StreamId),
    /// It has the real socket, by its inode.
    Native(u64),
}

/// The agent at home: who has the other end of a busy connection?
impl Mover {
    /// Answers for connections that would go past their relays.
    pub(super) fn serve_wants(&mut self) {
        let wants = self.home.as_mut().map(Relays::take_wants).unwrap_or_default();
        if wants.is_empty() {
            return;
        }
        let found = self.look_for_peers(&wants);
        for stream in wants {
            self.relay(Side::Home, |relays, out| match found.get(&stream) {
                Some((node, job)) => relays.meet((stream, *node, *job), out),
                None => relays.invite(stream, out),
            });
        }
    }

    /// Other jobs that have the other ends, with the nodes that know of them.
    fn look_for_peers(&self, streams: &[StreamId]) -> BTreeMap<StreamId, (NodeId, JobId)> {
        let Some(home) = &self.home else { return BTreeMap::new() };
        let all = streams.iter().filter_map(|stream| {
            let real = home.real_socket(*stream)?.try_clone_to_owned().ok()?;
            // As the other end has them.
            addresses(&real).map(|(own, peer)| (*stream, (peer, own)))
        });
        let (streams, ends): (Vec<StreamId>, Vec<Ends>) = all.unzip();
        let here =
            if self.is_alone() { Ok(Vec::new()) } else { holder::of(&self.sup.state, &ends) };
        let here = here.unwrap_or_else(|e| {
            tracing::debug!("the other ends of connections: {e}");
            Vec::new()
        });
        let mut found = BTreeMap::new();
        for (n, (stream, ends)) in streams.into_iter().zip(ends).enumerate() {
            let here = here.get(n).copied().flatten().map(|job| (self.here, job));
            let job = here.or_else(|| self.ask_node(ends));
            found.extend(job.filter(|(_, job)| *job != self.sup.job.id).map(|job| (stream, job)));
        }
        found
    }

    /// Are there no other jobs on this node?
    fn is_alone(&self) -> bool {
        let jobs = self.sup.state.jobs();
        jobs.is_ok_and(|jobs| jobs.iter().all(|(job, _)| *job == self.sup.job.id))
    }

    /// Asks the node that has this address.
    fn ask_node(&self, (own, peer): Ends) -> Option<(NodeId, JobId)> {
        let tls = node::tls(&self.sup.state).ok()?;
        for member in node::peers::load(&self.sup.state).ok()? {
            let Ok(at) = member.addr.parse::<SocketAddr>() else { continue };
            let (at, asked) = (at.ip().to_canonical(), own.ip().to_canonical());
            if at != asked && !(at.is_loopback() && asked.is_loopback()) {
                continue;
            }
            let question = NodeMsg::Who { own, peer };
            match node::client::call(&member.addr, &tls, member.id, &question, ANSWER) {
                Ok(NodeMsg::Holder(Some(job))) => return Some((member.id, job)),
                Ok(_) => {}
                Err(e) => tracing::debug!("{}: {e}", member.name),
            }
        }
        None
    }
}

/// The job that is away.
impl Mover {
    /// Is a connection to be led past its relay without asking who has the other end?
    pub(super) fn goes_alone(&self, stream: StreamId) -> bool {
        self.joins.tries.get(&stream).is_some_and(|tries| *tries >= TRIES)
    }

    /// Joins a connection whose other end was found.
    ///
    /// # Errors
    /// Why it stays as it is.
    pub(super) fn join(&mut self, (stream, node, job): Meeting) -> Result<()> {
        let mut at = node;
        // Its home may have to tell where it is.
        for _hop in 0..2 {
            let link = self.link_to(at, Service::Job(job))?;
            let joined =
                self.join_by(link, stream, Partner { node: at, job, key: random_bytes()? });
            self.drop_link(link);
            if joined.is_err() && std::mem::take(&mut self.joins.refused) {
                self.joins.tries.insert(stream, TRIES);
            }
            match joined? {
                None => {
                    self.joins.tries.remove(&stream);
                    return Ok(());
                }
                Some(other) => at = other,
            }
        }
        bail!("the other job is on its way")
    }

    /// Gives the node where the other job is, if that is another one.
    fn join_by(
        &mut self,
        link: LinkKey,
        stream: StreamId,
        partner: Partner,
    ) -> Result<Option<NodeId>> {
        let until = Instant::now() + READY;
        let files = self.files(&self.pids())?;
        self.learn_accepted(&files);
        let view = self.find_socket(stream, &files).context("the job has closed it")?;
        let (own, peer) = addresses(&files.dup(&view)?).context("it has no addresses")?;
        let job = self.sup.job.id;
        self.send(link, &Msg::Join { job, key: partner.key, own, peer }, &[]);
        let port = loop {
            if let Some(first) = self.other_join(link) {
                // Of two that ask each other, one waits for the other.
                ensure!(self.sup.job.id < first, "the other job asks as well");
            }
            match self.hear_join_for(link, until, Duration::from_millis(5))? {
                Some((Msg::JoinReady { port }, _)) => break port,
                Some((Msg::Gone { to: Some((node, _)), .. }, _)) => return Ok(Some(node)),
                Some((other, _)) => bail!("unexpected: {other:?}"),
                None => self.take_connections()?,
            }
        };
        let mut to = self.address_of(partner.node)?;
        port.into_iter().for_each(|port| to.set_port(port));
        let mut new = Showing::begin(to, own.is_ipv6(), partner.key)?;
        while !new.go_on(partner.job)? {
            ensure!(Instant::now() < until, "the other node does not take the connection");
            self.pump(Some(Duration::from_millis(2)))?;
        }
        *self.joins.tries.entry(stream).or_default() += 1;
        let frozen = self.freeze_for_swap()?;
        let joined = self.join_frozen(link, stream, &frozen, new.into_stream(), partner);
        if joined.is_err() {
            self.relay(Side::Away, |relays, out| relays.take_back(stream, out));
        }
        self.thaw(&frozen);
        joined.map(|()| None)
    }

    fn join_frozen(
        &mut self,
        link: LinkKey,
        stream: StreamId,
        frozen: &Frozen,
        mut new: TcpStream,
        partner: Partner,
    ) -> Result<()> {
        let until = Instant::now() + FROZEN;
        let held = self.hold_relayed(frozen, stream)?;
        self.send(link, &Msg::JoinFreeze, &[]);
        let (Msg::JoinFrozen, _) = self.hear_join(link, until)? else { bail!("no JoinFrozen") };
        self.await_quiet(stream, until)?;
        self.send(link, &Msg::JoinSettle, &[]);
        let (Msg::JoinUnread, theirs) = self.hear_join(link, until)? else {
            bail!("no JoinUnread")
        };
        self.await_quiet(stream, until)?;
        let unread = self.unread_of(stream, &held)?;
        ensure!(theirs.len().max(unread.len()) <= MOST, "the jobs have much to read");
        self.send(link, &Msg::JoinSwap, &unread);
        new.set_read_timeout(Some(FROZEN))?;
        new.set_write_timeout(Some(HELD))?;
        let (Msg::JoinWritten { all }, _) = self.hear_join(link, until)? else {
            bail!("no JoinWritten")
        };
        // One side goes on before the other has written everything.
        ensure!(all || theirs.len() <= FITS, "both jobs have much to read");
        await_holds(&mut new)?;
        let exchange = self.put_in(frozen, held, &new)?;
        let bytes = [&[HOLDS], &theirs[..]].concat();
        let begun = begin_to_write(&mut new, &bytes);
        let Ok(begun @ 1..) = begun else {
            self.put_back(frozen, exchange)?;
            bail!("the new connection takes nothing: {begun:?}");
        };
        // From here on it is the other job's as well.
        if let Err(error) = new.write_all(&bytes[begun..]) {
            tracing::error!("connection {stream} is broken: {error}");
        }
        self.is_joined(stream, exchange, partner)?;
        await_unread(&new, unread.len().min(FITS));
        Ok(())
    }

    /// The next message of the other supervisor.
    fn hear_join(&mut self, link: LinkKey, until: Instant) -> Result<(Msg, Vec<u8>)> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if let Some(got) = self.hear_join_for(link, until, left)? {
                return Ok(got);
            }
        }
    }

    /// The same; `None` when none has come for so long.
    fn hear_join_for(
        &mut self,
        link: LinkKey,
        until: Instant,
        patience: Duration,
    ) -> Result<Option<(Msg, Vec<u8>)>> {
        let pause = Instant::now() + patience;
        loop {
            match self.pop(link) {
                Some((Msg::NoJoin { why, ever }, _)) => {
                    self.joins.refused = !ever;
                    bail!("{why}");
                }
                Some(got) => return Ok(Some(got)),
                None => {}
            }
            ensure!(self.links.get(&link).is_some_and(|l| l.over.is_none()), "{}", self.why(link));
            ensure!(Instant::now() < until, "no answer in time");
            if Instant::now() >= pause {
                return Ok(None);
            }
            self.pump(Some(pause.saturating_duration_since(Instant::now())))?;
        }
    }

    /// The job of another supervisor that would join a connection, over another link.
    fn other_join(&self, link: LinkKey) -> Option<JobId> {
        let others = self.links.iter().filter(|(key, _)| **key != link);
        others.filter_map(|(_, peer)| peer.inbox.front()).find_map(|(msg, _)| match msg {
            Msg::Join { job, .. } => Some(*job),
            _ => None,
        })
    }

    /// Until nothing is under way between this frozen job and the peer of its real socket.
    fn await_quiet(&mut self, stream: StreamId, until: Instant) -> Result<()> {
        loop {
            self.relay(Side::Away, |relays, out| relays.ask(stream, out));
            let quiet = loop {
                while !self.settle() {}
                if let Some(quiet) = self.away.as_mut().and_then(|away| away.is_quiet(stream)) {
                    break quiet;
                }
                ensure!(Instant::now() < until, "its home does not answer");
                self.pump(Some(Duration::from_millis(1)))?;
            };
            if quiet {
                return Ok(());
            }
            ensure!(Instant::now() < until, "something is under way");
            self.pump(Some(Duration::from_millis(1)))?;
        }
    }
}

/// The other job.
impl Mover {
    /// Another job's supervisor would join a connection with this job.
    pub(super) fn answer_join(&mut self, link: LinkKey, by: (JobId, Key), theirs: names::Pair) {
        if let Some(agent) = &self.agent {
            let (to, epoch) = (Some(agent.host()), self.epoch());
            return self.send(link, &Msg::Gone { to, epoch }, &[]);
        }
        if let Err(error) = self.be_joined(link, by, theirs) {
            tracing::debug!("connection with {}: {error:#}", theirs.own);
            let ever = !std::mem::take(&mut self.joins.refused);
            self.send(link, &Msg::NoJoin { why: format!("{error:#}"), ever }, &[]);
        }
        self.joins.expected = None;
    }

    /// May this job's connections be joined now?
    fn may_join(&self) -> bool {
        let here = self.agent.is_none() && !self.left && !self.arriving && self.standin.is_none();
        let rests = self.moving.is_none() && !self.frozen && self.asleep.is_none();
        here && rests && self.sup.session.ended.is_none() && self.early_freeze.is_none()
    }

    /// Can this job be told its addresses?
    fn sees_calls(&self) -> bool {
        self.sup.job.meta.filtered && self.sup.session.translation.is_none()
    }

    fn be_joined(
        &mut self,
        link: LinkKey,
        (job, key): (JobId, Key),
        theirs: names::Pair,
    ) -> Result<()> {
        self.joins.refused = !self.sees_calls();
        ensure!(self.sees_calls(), "the other job's calls are not seen");
        ensure!(self.may_join(), "the other job cannot be joined now");
        let until = Instant::now() + READY;
        let node = self.peer_of(link).context("it has not shown who it is")?;
        let partner = Partner { node, job, key };
        let (end, is_v6) = self.find_end(theirs)?;
        if let End::Relayed(stream) = end {
            drop(self.forget_asked(stream));
            self.recall_one(stream, until)?;
        }
        let listener = is_v6.then(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))).transpose()?;
        let port = listener.as_ref().map(TcpListener::local_addr).transpose()?.map(|at| at.port());
        listener.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        self.joins.expected = Some((key, None));
        self.send(link, &Msg::JoinReady { port }, &[]);
        let mut waiting = Vec::new();
        let new = loop {
            if let Some((_, Some(stream))) = self.joins.expected.take_if(|(_, s)| s.is_some()) {
                break stream;
            }
            ensure!(Instant::now() < until, "no connection came");
            self.pump(Some(Duration::from_millis(2)))?;
            self.take_connections()?;
            if let Some(Ok((stream, _))) = listener.as_ref().map(TcpListener::accept) {
                stream.set_nonblocking(true)?;
                waiting.push(stream);
            }
            let shows =
                |s: &mut TcpStream| s.peek(&mut [0; Preface::LEN]).is_ok_and(|n| n == Preface::LEN);
            if let Some(n) = waiting.iter_mut().position(shows) {
                drop(self.direct_connection(waiting.swap_remove(n).into()));
            }
        };
        let (Msg::JoinFreeze, _) = self.hear_join(link, until)? else { bail!("no JoinFreeze") };
        let frozen = self.freeze_for_swap()?;
        let mut joining = None;
        let joined = self.be_joined_frozen(link, &end, &frozen, new, partner, &mut joining);
        if joined.is_err() {
            match (&end, joining) {
                (End::Relayed(stream), _) => {
                    self.relay(Side::Away, |relays, out| relays.take_back(*stream, out));
                }
                (End::Native(_), Some(stream)) => {
                    for relays in [&mut self.home, &mut self.away].into_iter().flatten() {
                        relays.remove(stream);
                    }
                }
                (End::Native(_), None) => {}
            }
        }
        self.thaw(&frozen);
        joined
    }

    fn be_joined_frozen(
        &mut self,
        link: LinkKey,
        end: &End,
        frozen: &Frozen,
        mut new: TcpStream,
        partner: Partner,
        joining: &mut Option<StreamId>,
    ) -> Result<()> {
        let until = Instant::now() + FROZEN;
        let held = match end {
            End::Relayed(stream) => self.hold_relayed(frozen, *stream)?,
            End::Native(inode) => self.hold_native(frozen, *inode)?,
        };
        self.send(link, &Msg::JoinFrozen, &[]);
        let (Msg::JoinSettle, _) = self.hear_join(link, until)? else { bail!("no JoinSettle") };
        let (stream, unread) = match end {
            End::Relayed(stream) => {
                self.await_quiet(*stream, until)?;
                (*stream, self.unread_of(*stream, &held)?)
            }
            End::Native(_) => {
                while Relays::is_under_way(held.old.as_fd())? {
                    ensure!(Instant::now() < until, "something is under way");
                    self.pump(Some(Duration::from_millis(1)))?;
                }
                self.add_joined(&held, partner.key)?
            }
        };
        *joining = Some(stream);
        self.send(link, &Msg::JoinUnread, &unread);
        let (Msg::JoinSwap, theirs) = self.hear_join(link, until)? else { bail!("no JoinSwap") };
        new.set_nonblocking(false)?;
        new.set_write_timeout(Some(HELD))?;
        new.set_read_timeout(Some(HELD))?;
        let exchange = self.put_in(frozen, held, &new)?;
        let bytes = [&[HOLDS], &theirs[..]].concat();
        let begun = begin_to_write(&mut new, &bytes).map_err(anyhow::Error::from);
        let all = begun.as_ref().is_ok_and(|begun| *begun == bytes.len());
        self.send(link, &Msg::JoinWritten { all }, &[]);
        let begun = match begun.and_then(|begun| await_holds(&mut new).map(|()| begun)) {
            Ok(begun) => begun,
            Err(error) => {
                self.put_back(frozen, exchange)?;
                return Err(error);
            }
        };
        if let Err(error) = new.write_all(&bytes[begun..]) {
            tracing::error!("connection {stream} is broken: {error}");
        }
        self.is_joined(stream, exchange, partner)?;
        await_unread(&new, unread.len().min(FITS));
        Ok(())
    }

    /// This job's end of a connection, by its addresses as the other job has them.
    fn find_end(&mut self, theirs: names::Pair) -> Result<(End, bool)> {
        let files = self.files(&self.pids())?;
        self.learn_accepted(&files);
        let same = |a: SocketAddr, b: SocketAddr| {
            (a.ip().to_canonical(), a.port()) == (b.ip().to_canonical(), b.port())
        };
        for view in files.views.objects.iter().filter(|view| tcp::is_tcp(view)) {
            let Some((own, peer)) = files.dup(view).ok().and_then(|fd| addresses(&fd)) else {
                continue;
            };
            let known = self.sup.session.names.get(view.ino);
            let (own, peer) = known.map_or((own, peer), |pair| (pair.own, pair.peer));
            if !same(own, theirs.peer) || !same(peer, theirs.own) {
                continue;
            }
            let end = match self.streams.get(&stream_key(view)) {
                Some(stream) => End::Relayed(*stream),
                None => End::Native(view.ino),
            };
            self.joins.refused = !self.is_home() && matches!(end, End::Native(_));
            ensure!(!self.joins.refused, "it was made away from home");
            return Ok((end, own.is_ipv6()));
        }
        self.joins.refused = true;
        bail!("the other job does not have it")
    }

    fn hold_native(&mut self, frozen: &Frozen, inode: u64) -> Result<Held> {
        let files = self.all_files(frozen)?;
        let view = files.views.objects.iter().find(|v| tcp::is_tcp(v) && v.ino == inode).cloned();
        hold(frozen, view.context("the job has closed it")?, files)
    }

    /// Both halves of a relay that rests, and what the job has not read of the real socket.
    fn add_joined(&mut self, held: &Held, key: Key) -> Result<(StreamId, Vec<u8>)> {
        if self.home.is_none() || self.away.is_none() {
            self.joins.only = self.home.is_none();
            let mut home = self.home.take().map_or_else(|| self.new_relays(), Ok)?;
            let mut away = self.new_relays()?;
            self.loopback = Some(Loopback::join(&mut home, &mut away));
            (self.home, self.away) = (Some(home), Some(away));
        }
        let (Some(home), Some(away)) = (&mut self.home, &mut self.away) else { bail!("no relays") };
        let end = HomeEnd::Socket(held.old.try_clone()?);
        Ok(Relays::add_joined(home, away, end, key)?)
    }

    /// Is this the connection that is waited for? It is kept then.
    pub(super) fn is_expected(&mut self, preface: &Preface, stream: &TcpStream) -> bool {
        let Some((key, taken)) = &mut self.joins.expected else { return false };
        if *key != preface.key || taken.is_some() {
            return false;
        }
        let kept = stream.try_clone().and_then(|mut stream| {
            stream.set_nodelay(true)?;
            stream.write_all(&[HOLDS])?;
            Ok(stream)
        });
        match kept {
            Ok(stream) => *taken = Some(stream),
            Err(error) => tracing::warn!(%error, "a connection to be joined"),
        }
        true
    }
}

/// Both.
impl Mover {
    fn hold_relayed(&mut self, frozen: &Frozen, stream: StreamId) -> Result<Held> {
        let files = self.all_files(frozen)?;
        let view = self.find_socket(stream, &files).context("the job has closed it")?;
        let held = hold(frozen, view, files)?;
        let open =
            self.relay(Side::Away, |relays, out| relays.freeze_open(stream, held.old.as_fd(), out));
        open.context("no relays")??.context("the relay is needed")?;
        while !self.settle() {}
        Ok(held)
    }

    fn unread_of(&mut self, stream: StreamId, held: &Held) -> Result<Vec<u8>> {
        let away = self.away.as_mut().context("no relays")?;
        let unread = away.unread(stream, held.old.as_fd())?.context("the relay is needed")?;
        Ok(unread)
    }

    /// The frozen job gets the new socket.
    fn put_in(&mut self, frozen: &Frozen, held: Held, new: &TcpStream) -> Result<Replaced> {
        let Held { view, old, connection, files } = held;
        let new = OwnedFd::from(new.try_clone()?);
        let exchange = Exchange { inode: view.ino, old, new, flags: view.flags, unread: 0 };
        self.exchange(frozen, &files, &[&exchange])?;
        Ok((exchange, connection, view))
    }

    fn put_back(&mut self, frozen: &Frozen, (exchange, ..): Replaced) -> Result<()> {
        let Exchange { old, new, flags, unread, .. } = exchange;
        let back = Exchange { inode: inode_of(&new)?, old: new, new: old, flags, unread };
        let files = self.files(&frozen.job.pids())?;
        self.exchange(frozen, &files, &[&back])
    }

    /// The new connection is that of both jobs now.
    fn is_joined(
        &mut self,
        stream: StreamId,
        (exchange, connection, view): Replaced,
        partner: Partner,
    ) -> Result<()> {
        let dressed = connection.dress(&exchange.new);
        if let Err(e) = dressed.and_then(|()| set_flags(&exchange.new, exchange.flags)) {
            tracing::error!("connection {stream}: {e}");
        }
        let stat = nix::sys::stat::fstat(&exchange.new)?;
        self.sup.session.names.insert(stat.st_ino, names_of(&connection));
        if self.streams.values().any(|known| *known == stream) {
            self.rename(stream, stat.st_ino);
        } else {
            self.streams.insert((view.dev, stat.st_ino, Class::Connection), stream);
        }
        drop(self.forget_asked(stream));
        self.directs.insert(stream, stat.st_ino);
        self.joins.all.insert(stream, partner);
        self.relay(Side::Away, |relays, out| relays.joined(stream, partner.key, out));
        while !self.settle() {}
        self.joins.look_at.get_or_insert_with(|| Instant::now() + super::parting::LOOK);
        tracing::debug!("connection {stream} is joined");
        Ok(())
    }

    /// A link to another node, or to this one.
    ///
    /// # Errors
    /// When it is no member, or cannot be connected to.
    pub(super) fn link_to(&mut self, to: NodeId, service: Service) -> Result<LinkKey> {
        let at = self.address_of(to)?;
        let tls = node::tls(&self.sup.state)?;
        let link = Link::connect(&at.to_string(), &tls, to, service)?;
        self.add_link(link)
    }

    fn address_of(&self, to: NodeId) -> Result<SocketAddr> {
        let at = if to == self.here {
            let own = node::peers::own(&self.sup.state)?.context("this node has no daemon")?;
            node::client::local_address(&own)
        } else {
            node::peers::by_id(&self.sup.state, to)?.context("it is no member")?.addr
        };
        Ok(at.parse()?)
    }
}

/// A socket that a job has got, with what it is for the job.
type Replaced = (Exchange, tcp::Connection, FdView);

fn hold(frozen: &Frozen, view: FdView, files: Files) -> Result<Held> {
    let opened = frozen.job.processes.iter().any(|process| process.opened.is_some());
    ensure!(!opened, "the job is not dumpable, and cannot be told its addresses");
    ensure!(view.flags & libc::O_ASYNC == 0, "the job is told of it by signals");
    let old = files.dup(&view)?;
    let connection = tcp::Connection::open(&old, &view)?.context("it is shut down")?;
    Ok(Held { view, old, connection, files })
}

/// Writes what is taken at once, and gives how much.
fn begin_to_write(new: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    new.set_nonblocking(true)?;
    let mut done = 0;
    let result = loop {
        match new.write(&bytes[done..]) {
            Ok(0) => break Ok(done),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break Ok(done),
            Err(e) => break Err(e),
        }
    };
    new.set_nonblocking(false)?;
    result
}

/// The other side has its new socket.
fn await_holds(new: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    new.read_exact(&mut byte).context("the new connection")?;
    ensure!(byte == [HOLDS], "the new connection does not hold");
    Ok(())
}

/// A job that was told of so many bytes finds them there.
fn await_unread(new: &TcpStream, unread: usize) {
    if let Err(error) = Relays::await_unread(new.as_fd(), unread) {
        tracing::warn!("a connection that was joined: {error}");
    }
}
