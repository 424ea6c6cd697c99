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
//! own ways again ([`part`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use super::direct::{names_of, Showing};
use super::exchange::{inode_of, set_flags, Exchange};
use super::homing::Homing;
use super::source::Frozen;
use super::{stream_key, Class, LinkKey, Mover, Side};
use crate::ids::{JobId, NodeId};
use crate::migrate::files::Files;
use crate::migrate::message::Msg;
use crate::migrate::resource::fd::{tcp, CaptureCx, FdView};
use crate::migrate::transport::{Link, Service};
use crate::node;
use crate::proxy::direct::{Key, HOLDS};
use crate::proxy::{Relays, StreamId};
use part::Parting;

mod answer;
mod ask;
mod part;
mod peers;

/// So long both may take before they are frozen.
const READY: Duration = Duration::from_secs(2);

/// So long both may be frozen before either has a new socket.
const FROZEN: Duration = Duration::from_millis(400);

/// And so many times as long when that was not enough.
const MOST_PATIENT: u32 = 4;

/// So long the other job's supervisor is waited for once this job has its new socket.
const HELD: Duration = Duration::from_secs(10);

/// A connection with more bytes that a job has not read stays as it is for now.
const MOST: usize = 512 << 10;

/// So many bytes any new connection takes at once; of both directions only one may have more than is
/// taken.
const FITS: usize = 48 << 10;

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
    parting: Vec<Parting>,
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
    /// Connections that are over are not tried again.
    pub(super) fn forget_all_but(&mut self, live: &BTreeSet<StreamId>) {
        self.tries.retain(|stream, _| live.contains(stream));
    }

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

/// Both.
impl Mover {
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

    /// Does the other supervisor wait as well?
    fn waits(&self, link: LinkKey, until: Instant) -> bool {
        self.links.get(&link).is_some_and(|peer| peer.over.is_none()) && Instant::now() < until
    }

    /// Until nothing is under way between this frozen job and the peer of its real socket.
    fn await_quiet(&mut self, link: LinkKey, stream: StreamId, until: Instant) -> Result<()> {
        loop {
            self.relay(Side::Away, |relays, out| relays.ask(stream, out));
            let quiet = loop {
                while !self.settle() {}
                if let Some(quiet) = self.away.as_mut().and_then(|away| away.is_quiet(stream)) {
                    break quiet;
                }
                ensure!(self.waits(link, until), "its home does not answer");
                self.pump(Some(Duration::from_millis(1)))?;
            };
            if quiet {
                return Ok(());
            }
            ensure!(self.waits(link, until), "something is under way");
            self.pump(Some(Duration::from_millis(1)))?;
        }
    }

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
        self.joins.look_at.get_or_insert_with(|| Instant::now() + part::LOOK);
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
