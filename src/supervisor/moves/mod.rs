//! A job that moves: the supervisor as source, as target, and as home agent.
//!
//! ```text
//!        Local ──migrate──► Agent (job elsewhere) ──job comes home──► Local, relayed
//! receive ─► Host ──migrate──► ends, leaving its journal
//! ```
//! [`Mover`] wraps the [`Supervisor`] and adds links to other supervisors and the relays.
//! A move runs as straight code (`source`, `target`) that calls `Mover::pump` while it
//! waits, so that the job, its relays and its clients are served all the time.

mod agent;
mod decisions;
mod dialing;
mod direct;
mod dumpable;
mod end;
mod exchange;
mod homing;
mod hook;
mod joined;
mod links;
mod requests;
mod signals;
mod source;
mod standin;
mod status;
mod stops;
mod target;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use anyhow::{Context, Result};
use mio::Token;

use super::{End, Supervisor, FIRST_FOREIGN_TOKEN};
use crate::control::MoveEvent;
use crate::ids::{MoveId, NodeId};
use crate::migrate::image::JobInfo;
use crate::migrate::message::Msg;
use crate::migrate::resource::fd::{self, FdView};
use crate::migrate::resource::View;
use crate::migrate::transport::{Link, INBOX_LIMIT};
use crate::migrate::vdso::Vdso;
use crate::node;
use crate::proxy::{Loopback, PtyPair, RelayMsg, Relays};
use agent::{Agent, Seeker};
use dialing::Dialing;
use direct::Directs;
use homing::Homing;
use joined::Joins;
use signals::Forward;
use standin::StandIn;
use status::{Asked, Looked};

pub use target::receive;

/// Bytes of one payload: what stays in a CPU's cache from reading it to its encryption.
const CHUNK: usize = 256 << 10;

/// Names a link; never used again for another one.
type LinkKey = usize;

/// What a forwarded description is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Terminal,
    Read,
    Written,
    Connection,
}

impl Class {
    /// By its type (S_IFMT), status flags, and whether it is a terminal.
    fn of(file_type: u32, flags: i32, terminal: bool) -> Self {
        match (terminal, flags & libc::O_ACCMODE) {
            (true, _) => Self::Terminal,
            _ if file_type == libc::S_IFSOCK => Self::Connection,
            (false, libc::O_RDONLY) => Self::Read,
            (false, _) => Self::Written,
        }
    }
}

/// How a forwarded description is recognised in the job: device, inode, and what it is.
type StreamKey = (u64, u64, Class);

/// The key of a description.
fn stream_key(view: &FdView) -> StreamKey {
    let class = Class::of(view.file_type(), view.flags, fd::is_terminal(view));
    (view.dev, view.ino, class)
}

/// A link to another supervisor.
struct Peer {
    link: Link,
    token: Token,
    inbox: VecDeque<(Msg, Vec<u8>)>,
    /// Why nothing more will come.
    over: Option<String>,
    /// More may be received at once, without a word of the event loop.
    more: bool,
    /// The last word of the event loop told of bytes and nothing else.
    bytes_only: bool,
}

impl Peer {
    /// There may be something to be read or written now.
    fn wants_drive(&self) -> bool {
        self.more || self.link.paused() || self.link.queued() > 0
    }

    /// Messages wait that nobody takes at the moment: the rest stays in the network.
    fn is_full(&self) -> bool {
        self.inbox.iter().map(|(_, payload)| payload.len() + MESSAGE).sum::<usize>() > INBOX_LIMIT
    }
}

/// What a message costs that waits, besides its payload, bytes.
const MESSAGE: usize = 4 << 10;

/// Which side's relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Home,
    Away,
}

/// The move in progress.
struct Moving {
    id: MoveId,
    watchers: Vec<super::serve::ClientKey>,
    cancelled: bool,
    /// Too late to cancel.
    decided: bool,
    last: Option<MoveEvent>,
    /// Asked for by a person at home, who is told as well.
    from_home: bool,
}

/// The supervisor of a job that can move.
pub struct Mover {
    sup: Supervisor,
    vdso: Vdso,
    home: Option<Relays>,
    away: Option<Relays>,
    loopback: Option<Loopback>,
    links: BTreeMap<LinkKey, Peer>,
    next_link: LinkKey,
    next_tokens: usize,
    /// The link to the other half of the relays.
    relay_link: Option<LinkKey>,
    streams: BTreeMap<StreamKey, u32>,
    /// This node.
    here: NodeId,
    /// The node whose agent holds the job's relays.
    home_node: (NodeId, String),
    agent: Option<Agent>,
    seeker: Seeker,
    standin: Option<StandIn>,
    /// Signals from home to the job.
    forward: Forward,
    /// Signals that came while the job was frozen: link, number, signal.
    held: VecDeque<(LinkKey, u64, i32)>,
    /// The job is frozen and may have been captured.
    frozen: bool,
    /// The job, frozen already for the first look at it (see [`dumpable`]).
    early_freeze: Option<source::Frozen>,
    moving: Option<Moving>,
    /// The move that is asked for is one without namespaces.
    translate: bool,
    /// The job is just coming here.
    arriving: bool,
    /// Host pid of the job's pid 1, when it has a namespace.
    init: Option<i32>,
    /// The job has gone to a node that is not its home, and nothing here is its home.
    left: bool,
    /// Relay messages that came before the commit.
    early: VecDeque<(Msg, Vec<u8>)>,
    /// The job's controlling terminal, which no description leads to any more.
    idle_terminal: Option<PtyPair>,
    /// None of the job's sockets listens for the home without it.
    dialing: Option<Dialing>,
    /// Connections that are led past their relays.
    directs: Directs,
    /// Connections that are joined with other jobs.
    joins: Joins,
    /// The job has come home, and has relayed connections perhaps.
    homing: Option<Homing>,
    /// Device and inode of descriptions that were made anew here.
    restored: HashSet<(u64, u64)>,
    /// What this node keeps for a job that is away, in words.
    kept: String,
    looked: Option<Looked>,
    asked: Option<Asked>,
    /// The job was stopped by this signal, and who waits for it here stops as well; see
    /// [`Mover::rest`].
    asleep: Option<i32>,
    /// A stop of the job is told to its home only when all signals before this number have come.
    tell_stop_from: u64,
}

impl Mover {
    /// Takes over a supervisor.
    ///
    /// # Errors
    /// When the node has no identity and none can be made.
    pub fn new(sup: Supervisor) -> Result<Self> {
        let identity = node::identity::Identity::load_or_create(&sup.state)?;
        let here = (identity.id(), sup.node.clone());
        let home_node = sup.job.meta.agent.clone().unwrap_or(here.clone());
        let init = namespace_init(sup.session.root);
        Ok(Self {
            sup,
            vdso: Vdso::own().context("reading the own vdso")?,
            home: None,
            away: None,
            loopback: None,
            links: BTreeMap::new(),
            next_link: 0,
            next_tokens: FIRST_FOREIGN_TOKEN,
            relay_link: None,
            streams: BTreeMap::new(),
            here: here.0,
            home_node,
            agent: None,
            seeker: Seeker::new(),
            standin: None,
            forward: Forward::default(),
            held: VecDeque::new(),
            frozen: false,
            early_freeze: None,
            moving: None,
            translate: false,
            arriving: false,
            init,
            left: false,
            early: VecDeque::new(),
            idle_terminal: None,
            dialing: None,
            directs: Directs::default(),
            joins: Joins::default(),
            homing: None,
            restored: HashSet::new(),
            kept: String::new(),
            looked: None,
            asked: None,
            asleep: None,
            tell_stop_from: 0,
        })
    }

    /// Serves the job, here or elsewhere, to its end. Gives the supervisor back.
    ///
    /// # Errors
    /// Failures that end the supervision; the job runs on where it is.
    pub fn run(mut self) -> Result<(Supervisor, End)> {
        self.sup.drain_waits()?;
        loop {
            if let Some(end) = self.ended()? {
                return Ok((self.sup, end));
            }
            while let Some(pending) = self.sup.pending.pop_front() {
                self.request(pending)?;
            }
            self.take_arrived();
            self.take_stops()?;
            self.serve_links()?;
            self.serve_agent();
            self.seek_home();
            self.serve_wants();
            self.serve_directs();
            self.serve_joined();
            self.serve_homing()?;
            if self.rest()? {
                continue;
            }
            let timeout = self.timeout();
            if self.idle() {
                self.pump(timeout)?;
            }
        }
    }

    /// Nothing is left that `run` would do at once.
    fn idle(&self) -> bool {
        self.sup.pending.is_empty() && self.links.values().all(|p| p.inbox.is_empty())
    }

    fn timeout(&self) -> Option<Duration> {
        if self.agent.as_ref().is_some_and(Agent::has_lost) {
            return Some(Duration::ZERO);
        }
        let tick = self.home.iter().chain(&self.away).filter_map(Relays::tick).min();
        let retry = self.agent.as_ref().and_then(|a| a.retry_in(self.relay_link.is_some()));
        let seek = self.is_lost().then(|| self.seeker.in_time());
        let direct = self.directs.due_in();
        [tick, retry, seek, direct, self.homing_in(), self.joined_in()].into_iter().flatten().min()
    }

    /// One round of events: the supervisor's, the relays', the links'.
    fn pump(&mut self, timeout: Option<Duration>) -> Result<()> {
        // What a move has left to be dialed is waited for by no event.
        self.dial_wanted();
        let settled = self.settle();
        // A link with more to read than it was given room for reports no new event.
        let held_back = |p: &Peer| p.over.is_none() && (p.link.paused() || p.more) && !p.is_full();
        let more = self.home.as_ref().is_some_and(Relays::has_more);
        let at_once = !settled || more || self.has_to_dial() || self.links.values().any(held_back);
        self.sup.step(if at_once { Some(Duration::ZERO) } else { timeout })?;
        while let Some(ready) = self.sup.ready.pop_front() {
            if self.link_ready(&ready) {
                continue;
            }
            for side in [Side::Home, Side::Away] {
                self.relay_soon(side, |r, out| r.on_event(ready.token, ready.closed, out));
            }
        }
        self.flush_relayed();
        let wants = |(key, peer): (&LinkKey, &Peer)| peer.wants_drive().then_some(*key);
        let keys: Vec<LinkKey> = self.links.iter().filter_map(wants).collect();
        for key in keys {
            self.drive(key);
        }
        self.relay(Side::Home, |relays, out| relays.on_tick(out));
        self.relay(Side::Away, |relays, out| relays.on_tick(out));
        self.dial_wanted();
        self.serve_standin();
        Ok(())
    }

    /// Carries messages of a job at home between both halves; false when more are left.
    fn settle(&mut self) -> bool {
        let (Some(link), Some(home), Some(away)) =
            (&mut self.loopback, &mut self.home, &mut self.away)
        else {
            return true;
        };
        match link.settle(home, away) {
            Ok(more) => !more,
            Err(e) => {
                tracing::error!("relays at home: {e}");
                true
            }
        }
    }

    /// Calls one side's relays and puts what they say on its way.
    fn relay<R>(
        &mut self,
        side: Side,
        call: impl FnOnce(&mut Relays, &mut dyn FnMut(RelayMsg, &[u8])) -> R,
    ) -> Option<R> {
        let result = self.relay_soon(side, call);
        self.flush_relayed();
        result
    }

    /// As [`Mover::relay`]; what they say leaves at the latest by [`Mover::flush_relayed`].
    fn relay_soon<R>(
        &mut self,
        side: Side,
        call: impl FnOnce(&mut Relays, &mut dyn FnMut(RelayMsg, &[u8])) -> R,
    ) -> Option<R> {
        // Taken out, as nothing that is said goes back to them.
        let mut relays = match side {
            Side::Home => self.home.take()?,
            Side::Away => self.away.take()?,
        };
        let result = call(&mut relays, &mut |msg, payload| match &mut self.loopback {
            Some(link) if side == Side::Home => link.from_home()(msg, payload),
            Some(link) => link.from_away()(msg, payload),
            None => self.say_soon(&Msg::Relay(msg), payload),
        });
        match side {
            Side::Home => self.home = Some(relays),
            Side::Away => self.away = Some(relays),
        }
        Some(result)
    }

    /// What the job is, wherever it runs.
    fn job_info(&self) -> JobInfo {
        let meta = &self.sup.job.meta;
        JobInfo {
            id: self.sup.job.id,
            name: meta.name.clone(),
            command: meta.command.clone(),
            home: meta.home.clone(),
            started_ms: meta.started_ms,
            attached: meta.attached,
            filtered: meta.filtered,
        }
    }

    /// Tokens for one more set of relays.
    fn new_relays(&mut self) -> Result<Relays> {
        use_all_descriptors();
        let first = self.next_tokens;
        self.next_tokens += 1 << 20;
        Ok(Relays::new(self.sup.registry()?, first..self.next_tokens))
    }

    /// This node's agent is, or would be, the job's home agent.
    fn is_home(&self) -> bool {
        self.home_node.0 == self.here
    }
}

/// Host pid of pid 1 of the pid namespace that the process was restored in; `None` for a
/// process in this one's namespace (`NSpid` of proc_pid_status(5)). It need not be an ancestor.
fn namespace_init(pid: i32) -> Option<i32> {
    let space = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let of_process = space(pid)?;
    if space(std::process::id() as i32)? == of_process {
        return None;
    }
    let all = procfs::process::all_processes().ok()?.flatten().map(|p| p.pid);
    let leads = |pid: &i32| View::read_process(*pid).is_ok_and(|view| view.job_pid == 1);
    all.filter(|pid| space(*pid).as_ref() == Some(&of_process)).find(leads)
}

/// A relayed connection takes a descriptor here: as many as may be (RLIMIT_NOFILE, getrlimit(2)). The
/// job's processes have limits of their own.
fn use_all_descriptors() {
    use nix::sys::resource::{getrlimit, setrlimit, Resource::RLIMIT_NOFILE};
    let raised =
        getrlimit(RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "RLIMIT_NOFILE");
    }
}
