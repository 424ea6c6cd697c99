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
mod dumpable;
mod hook;
mod signals;
mod source;
mod standin;
mod status;
mod target;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mio::{Interest, Token};

use super::{End, Mode, Pending, Supervisor, FIRST_FOREIGN_TOKEN};
use crate::control::{CheckReport, JobState, MoveEvent, MoveFailure, Phase, Reply, Request};
use crate::ids::{Epoch, MoveId, NodeId};
use crate::journal::{self, Journal, Record, Step};
use crate::migrate::image::JobInfo;
use crate::migrate::message::Msg;
use crate::migrate::resource::fd::{self, FdView};
use crate::migrate::resource::View;
use crate::migrate::transport::{Link, Service, INBOX_LIMIT};
use crate::migrate::vdso::Vdso;
use crate::node;
use crate::proxy::{Loopback, PtyPair, RelayMsg, Relays};
use crate::tracer::Exit;
use agent::{Agent, Seeker};
use signals::Forward;
use standin::StandIn;
use status::{Asked, Looked};

pub use target::receive;

/// Bytes of one payload: what stays in a CPU's cache from reading it to its encryption.
const CHUNK: usize = 256 << 10;

/// Names a link; never used again for another one.
type LinkKey = usize;

/// How a forwarded description is recognised in the job: device, inode, and whether it is
/// read (1), written (2) or a terminal (0).
type StreamKey = (u64, u64, u8);

/// The key of a description.
fn stream_key(view: &FdView) -> StreamKey {
    let class = match (fd::is_terminal(view), view.flags & libc::O_ACCMODE) {
        (true, _) => 0,
        (false, libc::O_RDONLY) => 1,
        (false, _) => 2,
    };
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
}

impl Peer {
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
    /// Device and inode of descriptions that were made anew here.
    restored: HashSet<(u64, u64)>,
    /// What this node keeps for a job that is away, in words.
    kept: String,
    looked: Option<Looked>,
    asked: Option<Asked>,
    /// The job was stopped by this signal, and who waits for it here stops as well; see
    /// [`Mover::rest`].
    asleep: Option<i32>,
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
            arriving: false,
            init,
            left: false,
            early: VecDeque::new(),
            idle_terminal: None,
            restored: HashSet::new(),
            kept: String::new(),
            looked: None,
            asked: None,
            asleep: None,
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
        let tick = self.home.as_ref().and_then(Relays::tick);
        let retry = self.agent.as_ref().and_then(|a| a.retry_in(self.relay_link.is_some()));
        let seek = self.is_lost().then(|| self.seeker.in_time());
        [tick, retry, seek].into_iter().flatten().min()
    }

    /// One round of events: the supervisor's, the relays', the links'.
    fn pump(&mut self, timeout: Option<Duration>) -> Result<()> {
        let settled = self.settle();
        // A link with more to read than it was given room for reports no new event.
        let held_back = |p: &Peer| p.over.is_none() && (p.link.paused() || p.more) && !p.is_full();
        let at_once = !settled || self.links.values().any(held_back);
        self.sup.step(if at_once { Some(Duration::ZERO) } else { timeout })?;
        while let Some(ready) = self.sup.ready.pop_front() {
            for side in [Side::Home, Side::Away] {
                self.relay(side, |relays, out| relays.on_ready(ready.token, out));
            }
        }
        let keys: Vec<LinkKey> = self.links.keys().copied().collect();
        for key in keys {
            self.drive(key);
        }
        self.relay(Side::Home, |relays, out| relays.on_tick(out));
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

    /// Calls one side's relays and puts what they say on their way.
    fn relay<R>(
        &mut self,
        side: Side,
        call: impl FnOnce(&mut Relays, &mut dyn FnMut(RelayMsg, &[u8])) -> R,
    ) -> Option<R> {
        let mut said: Vec<(RelayMsg, Vec<u8>)> = Vec::new();
        let relays = match side {
            Side::Home => self.home.as_mut()?,
            Side::Away => self.away.as_mut()?,
        };
        let result = call(relays, &mut |msg, payload| said.push((msg, payload.to_vec())));
        for (msg, payload) in said {
            match &mut self.loopback {
                Some(link) if side == Side::Home => link.from_home()(msg, &payload),
                Some(link) => link.from_away()(msg, &payload),
                None => self.say(Msg::Relay(msg), &payload),
            }
        }
        Some(result)
    }

    /// Sends to the other half of the relays, if it is connected.
    fn say(&mut self, msg: Msg, payload: &[u8]) {
        if let Some(key) = self.relay_link {
            self.send(key, &msg, payload);
        }
    }

    /// Sends on a link; a failure shows as the link being over.
    fn send(&mut self, key: LinkKey, msg: &Msg, payload: &[u8]) {
        let Some(peer) = self.links.get_mut(&key) else { return };
        if let Err(e) = peer.link.send(msg, payload) {
            peer.over.get_or_insert(e.to_string());
        }
    }

    fn add_link(&mut self, mut link: Link) -> Result<LinkKey> {
        // A peer that is gone without a word is noticed within 15 seconds.
        let _ = link.set_timeouts(Duration::from_secs(3), Duration::from_secs(10));
        let fd = std::os::fd::AsFd::as_fd(&link).as_raw_fd();
        let token = self.sup.register(fd, Interest::READABLE | Interest::WRITABLE)?;
        let key = self.next_link;
        self.next_link += 1;
        let over = link.drive().err().map(|e| e.to_string());
        self.links.insert(key, Peer { link, token, inbox: VecDeque::new(), over, more: true });
        Ok(key)
    }

    fn drop_link(&mut self, key: LinkKey) {
        if let Some(mut peer) = self.links.remove(&key) {
            let _ = peer.link.close();
            let _ = peer.link.drive();
            let fd = std::os::fd::AsFd::as_fd(&peer.link).as_raw_fd();
            let _ = self.sup.deregister(fd, peer.token);
        }
        self.asked_lost(key);
        if self.relay_link == Some(key) {
            self.relay_link = None;
            self.seeker.wait();
            self.forward.relinked();
            for relays in [&mut self.home, &mut self.away].into_iter().flatten() {
                relays.disconnected();
            }
        }
    }

    /// Does the I/O of a link, and sorts what came. Reads on only when all of it was taken, so
    /// that a fast peer fills no memory.
    fn drive(&mut self, key: LinkKey) {
        loop {
            let Some(peer) = self.links.get_mut(&key) else { return };
            if peer.is_full() {
                return;
            }
            if let Err(e) = peer.link.drive() {
                peer.over.get_or_insert(e.to_string());
            }
            if peer.link.closed() {
                peer.over.get_or_insert("closed by the other side".into());
            }
            while let Some(frame) = peer.link.next_frame() {
                match frame.decode::<Msg>() {
                    Ok(msg) => peer.inbox.push_back((msg, frame.payload)),
                    Err(e) => {
                        peer.over.get_or_insert(format!("a message does not decode: {e}"));
                        break;
                    }
                }
            }
            peer.more = peer.link.paused() && peer.over.is_none();
            if self.relay_link == Some(key) {
                self.take_relayed(key);
            }
            if self.links.get(&key).is_none_or(|p| !p.more || !p.inbox.is_empty()) {
                return;
            }
        }
    }

    /// Relay messages and signals are taken at once, whatever else goes on.
    fn take_relayed(&mut self, key: LinkKey) {
        // Between commit and confirmation the source has no away half any more.
        let side = if self.away.is_none() { Side::Home } else { Side::Away };
        let Some(peer) = self.links.get_mut(&key) else { return };
        let (taken, rest): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut peer.inbox).into_iter().partition(|(msg, _)| is_relayed(msg));
        peer.inbox = rest;
        for (msg, payload) in taken {
            let failed = match msg {
                Msg::Relay(msg) => {
                    self.relay(side, |relays, out| relays.on_message(&msg, &payload, out))
                }
                Msg::Signal { seq, signal } => {
                    self.take_signal(key, seq, signal);
                    None
                }
                Msg::SignalsTaken(next) => {
                    self.forward.taken(next);
                    None
                }
                Msg::Progress(event) => {
                    self.show_asked(*event);
                    None
                }
                _ => None,
            };
            if let Some(Err(e)) = failed {
                tracing::error!("{e}");
                if let Some(peer) = self.links.get_mut(&key) {
                    peer.over.get_or_insert(e.to_string());
                }
            }
        }
    }

    /// Sends a signal to the job, which is here.
    fn signal_job(&self, signal: i32) {
        if self.agent.is_none() && self.sup.session.root != 0 {
            if let Err(e) = crate::tracer::raw::kill(self.sup.session.root, signal) {
                tracing::debug!("signal {signal} for the job: {e}");
            }
        }
    }

    /// A signal from home. One that comes when the job is frozen waits: if the job goes on
    /// here it gets it then, and if not the home sends it to where the job is.
    fn take_signal(&mut self, key: LinkKey, seq: u64, signal: i32) {
        if self.agent.is_some() || self.sup.session.root == 0 {
            return;
        }
        if self.frozen {
            self.held.push_back((key, seq, signal));
            return;
        }
        if self.forward.take(seq) {
            self.signal_job(signal);
        }
        self.send(key, &Msg::SignalsTaken(self.forward.next()), &[]);
    }

    /// The job goes on here.
    fn take_held(&mut self) {
        self.frozen = false;
        for (key, seq, signal) in std::mem::take(&mut self.held) {
            self.take_signal(key, seq, signal);
        }
    }

    /// Sends a signal to the job, wherever it is.
    fn signal_anywhere(&mut self, signal: i32) {
        if self.agent.is_none() {
            self.signal_job(signal);
            return;
        }
        self.forward.post(signal);
        self.send_signals();
    }

    /// Sends what waits for the job, if it can be reached.
    fn send_signals(&mut self) {
        while let Some(key) = self.relay_link.filter(|_| self.agent.is_some()) {
            let Some((seq, signal)) = self.forward.next_to_send() else { return };
            self.send(key, &Msg::Signal { seq, signal }, &[]);
        }
    }

    /// Signals that came for vosrun, but belong to a job elsewhere or to the relays.
    fn take_arrived(&mut self) {
        while let Some(arrived) = self.sup.arrived.pop_front() {
            match arrived.signal {
                libc::SIGWINCH => {
                    self.relay(Side::Home, |relays, out| relays.on_winch(out));
                }
                libc::SIGCONT => self.awake(),
                signal if self.sup.away && !arrived.is_from_kernel() => {
                    self.signal_anywhere(signal);
                }
                _ => {}
            }
        }
    }

    /// Passes on what the stand-in got.
    fn serve_standin(&mut self) {
        let Some(standin) = &mut self.standin else { return };
        for signal in standin.take(&mut self.sup) {
            if signal == libc::SIGWINCH && self.home.is_some() {
                // The job's own terminal raises it when it gets the new size.
                self.relay(Side::Home, |relays, out| relays.on_winch(out));
            } else {
                self.signal_anywhere(signal);
            }
        }
    }

    /// The job was stopped: whoever watches from a shell has to stop too.
    fn take_stops(&mut self) -> Result<()> {
        if self.agent.is_some() {
            return Ok(());
        }
        if self.home.is_none() && self.away.is_none() && self.asleep.is_none() {
            return self.sup.stop_with_job();
        }
        if self.loopback.is_none() && self.relay_link.is_none() {
            // Told when the home is there again, if the job is still stopped then.
            return Ok(());
        }
        let stopped = self.sup.session.root_stopped.take();
        let Some(signal) = stopped.and_then(|_| self.sup.session.root_in_stop()) else {
            return Ok(());
        };
        if self.loopback.is_none() {
            self.say(Msg::Stopped(signal), &[]);
        } else {
            self.stop_with_far_job(signal);
        }
        Ok(())
    }

    /// The job was stopped, and whoever waits for it at home has to see that.
    fn stop_with_far_job(&mut self, signal: i32) {
        if self.sup.mode != Mode::Launched {
            if let Some(standin) = &mut self.standin {
                standin.stop(signal);
            }
        } else if self.asleep.replace(signal).is_none() {
            self.relay(Side::Home, |relays, _| relays.suspend());
        }
    }

    /// Stops this process as a shell expects of its job, when the job is stopped and nobody needs
    /// an answer. A shell lets both go on; a client or another node only wakes this process, which
    /// stops again when it has served them ([`super::wake`]). True: it was stopped.
    fn rest(&mut self) -> Result<bool> {
        let Some(signal) = self.asleep.filter(|_| !self.is_needed()) else { return Ok(false) };
        self.sup.woken = false;
        super::Signals::stop_self(signal).context("stopping with the job")?;
        // Who woke it has connected before.
        self.pump(Some(Duration::ZERO))?;
        let continued = self.sup.arrived.iter().any(|a| a.signal == libc::SIGCONT);
        if !self.sup.woken && !continued {
            // It did not stop: nobody is there who could let it go on (setpgid(2), orphaned
            // process groups).
            self.awake();
            self.signal_job(libc::SIGCONT);
        }
        Ok(true)
    }

    /// Is there somebody to be served before this process may stop?
    fn is_needed(&self) -> bool {
        let waits = |key: &LinkKey| self.relay_link != Some(*key) && !self.is_trying(*key);
        // A job that has come home stopped has to get there first.
        let stopping = self.agent.is_none() && self.sup.session.root_in_stop().is_none();
        stopping || !self.idle() || self.sup.has_clients() || self.links.keys().any(waits)
    }

    /// This process goes on, and a job elsewhere with it. One that is here has got the signal
    /// already.
    fn awake(&mut self) {
        self.asleep = None;
        self.relay(Side::Home, |relays, out| relays.resume(out));
        if self.agent.is_some() {
            self.signal_anywhere(libc::SIGCONT);
        }
    }

    /// New links: the first message tells what they are for. Dead ones go.
    fn serve_links(&mut self) -> Result<()> {
        let keys: Vec<LinkKey> = self.links.keys().copied().collect();
        for key in keys {
            while let Some((msg, _)) = self.pop(key) {
                self.hear(key, msg)?;
            }
            if self.links.get(&key).is_some_and(|p| p.over.is_some() && p.inbox.is_empty()) {
                self.drop_link(key);
            }
        }
        Ok(())
    }

    fn pop(&mut self, key: LinkKey) -> Option<(Msg, Vec<u8>)> {
        self.links.get_mut(&key)?.inbox.pop_front()
    }

    fn hear(&mut self, key: LinkKey, msg: Msg) -> Result<()> {
        match msg {
            Msg::Hello(version, body)
                if self.agent.is_some() && self.moving.is_none() && !self.arriving =>
            {
                self.come_home(key, version, &body)?;
            }
            Msg::Hello(..) => {
                let why = "the job is here already, or another move is in progress";
                self.send(key, &Msg::Abort(why.into()), &[]);
            }
            Msg::Ask(id) => self.tell_decision(key, id),
            Msg::Decided { id, commit: true } => self.confirm(key, id),
            Msg::Attach { epoch, stopped } => self.attached(key, epoch, stopped),
            Msg::LateSignal(signal) => self.signal_anywhere(signal),
            Msg::PleaseMove(to) if self.agent.is_none() && self.relay_link == Some(key) => {
                self.please_move(key, &to)?;
            }
            Msg::Report(report) => self.reported(*report),
            other if self.agent.is_some() => self.hear_host(key, other)?,
            other => tracing::debug!("unexpected: {other:?}"),
        }
        Ok(())
    }

    /// The home agent has come.
    fn attached(&mut self, key: LinkKey, epoch: Epoch, stopped: bool) {
        let own = self.sup.job.meta.epoch;
        if self.agent.is_some() || epoch > own {
            self.send(key, &Msg::Gone { to: None, epoch: own }, &[]);
            return;
        }
        let processes = self.processes();
        if let Some(old) = self.relay_link.filter(|old| *old != key) {
            self.drop_link(old);
        }
        self.relay_link = Some(key);
        let history = self.sup.board.history.clone();
        self.send(key, &Msg::Attached { epoch: own, processes, history }, &[]);
        if self.away.is_none() {
            self.send(key, &Msg::RelaysLost, &[]);
        }
        self.relay(Side::Away, |relays, out| relays.resync(out));
        // A home agent stops with the job. One that says nothing of it was continued while there
        // was no link to say so.
        self.sup.session.root_stopped = None;
        if !stopped && self.sup.session.root_in_stop().is_some() {
            self.signal_job(libc::SIGCONT);
        }
    }

    /// Who is at the other end of a link.
    fn peer_of(&self, key: LinkKey) -> Option<NodeId> {
        self.links.get(&key).and_then(|p| p.link.peer())
    }

    /// The last record of a move with the peer of this link. `Err`: the journal cannot be
    /// read, or the move is another node's; nothing is answered then.
    fn recorded(&self, key: LinkKey, id: MoveId) -> std::result::Result<Option<Step>, ()> {
        let path = self.sup.job.dir.journal();
        let records =
            journal::read(&path).map_err(|e| tracing::error!("reading {}: {e}", path.display()))?;
        let last = journal::last_of(&records, id);
        if last.is_some_and(|r| Some(r.peer) != self.peer_of(key)) {
            tracing::warn!("asked for the move {id} of another node");
            return Err(());
        }
        Ok(last.map(|r| r.step))
    }

    /// A target in doubt asks. A move that is not known was given up; one that is not decided
    /// is answered when it is.
    fn tell_decision(&mut self, key: LinkKey, id: MoveId) {
        let Ok(step) = self.recorded(key, id) else { return };
        let commit = match step {
            Some(Step::Commit | Step::Done) => true,
            None | Some(Step::Abort) => false,
            Some(Step::Intent | Step::Sealed) => match &self.moving {
                Some(moving) if moving.id == id => return,
                // The job went on here when its end could not be written.
                _ => false,
            },
            Some(Step::Prepared | Step::Own) => return,
        };
        self.send(key, &Msg::Decided { id, commit }, &[]);
    }

    /// A source repeats its COMMIT, because it has not heard our DONE.
    fn confirm(&mut self, key: LinkKey, id: MoveId) {
        let Ok(step) = self.recorded(key, id) else { return };
        let answer = match step {
            Some(Step::Own) if self.agent.is_some() => {
                Msg::Done { processes: self.sup.board.remote.clone(), resumed_ns: 0 }
            }
            Some(Step::Own) => Msg::Done { processes: self.processes(), resumed_ns: 0 },
            None | Some(Step::Abort) => Msg::Gone { to: None, epoch: self.epoch() },
            _ => return,
        };
        self.send(key, &answer, &[]);
    }

    /// The job's processes, for reports.
    fn processes(&mut self) -> Vec<crate::control::ProcessStatus> {
        self.sup.processes()
    }

    fn request(&mut self, pending: Pending) -> Result<()> {
        let client = pending.client;
        match pending.request {
            Request::Connection => {
                self.sup.dismiss(client);
                self.connection(pending.fd);
            }
            Request::Migrate { to } if self.moving.is_some() || self.early_freeze.is_some() => {
                let failure = self.busy(&to);
                self.sup.finish(client, &Reply::Failed(failure));
            }
            Request::Migrate { to } => return self.migrate(Some(client), &to),
            Request::Watch => self.watch(client),
            Request::Cancel { id } => {
                let reply = self.cancel(id);
                self.sup.finish(client, &reply);
            }
            Request::Check { to } => {
                let report = self.check(to.as_deref())?;
                self.sup.finish(client, &report);
            }
            Request::Recover { dead } if self.is_away_on(&dead) => {
                self.job_lost();
                self.sup.finish(client, &Reply::Ok);
            }
            Request::Recover { .. } => {
                let why = "there is no frozen copy of it here".into();
                self.sup.finish(client, &Reply::Error(why));
            }
            Request::Status => {
                let status = self.status();
                self.sup.finish(client, &Reply::Status(Box::new(status)));
            }
        }
        Ok(())
    }

    /// Requests that may be answered in the middle of a move.
    fn requests_while_moving(&mut self) -> Result<()> {
        let mut later = VecDeque::new();
        while let Some(pending) = self.sup.pending.pop_front() {
            match pending.request {
                Request::Recover { .. } | Request::Check { .. } => later.push_back(pending),
                _ => self.request(pending)?,
            }
        }
        self.sup.pending = later;
        self.answer_waiting_asks();
        Ok(())
    }

    /// A copy that was left behind by an earlier move asks for its decision: until it has it,
    /// its node takes no new copy. Nothing else is taken from a link here.
    fn answer_waiting_asks(&mut self) {
        for key in self.links.keys().copied().collect::<Vec<_>>() {
            let first = self.links.get(&key).and_then(|p| p.inbox.front());
            if let Some((Msg::Ask(id), _)) = first {
                let id = *id;
                self.pop(key);
                self.tell_decision(key, id);
            }
        }
    }

    /// A connection that the node daemon hands over.
    fn connection(&mut self, fd: Option<OwnedFd>) {
        let Some(fd) = fd else { return };
        let accepted = node::tls(&self.sup.state)
            .and_then(|tls| Ok(Link::accept(std::net::TcpStream::from(fd), &tls)?))
            .and_then(|link| self.add_link(link));
        if let Err(e) = accepted {
            tracing::warn!("an incoming connection was refused: {e:#}");
        }
    }

    fn watch(&mut self, client: super::serve::ClientKey) {
        let Some(moving) = &mut self.moving else {
            self.sup.finish(client, &Reply::Error("no move is in progress".into()));
            return;
        };
        moving.watchers.push(client);
        if let Some(event) = moving.last.clone() {
            self.sup.reply(client, &Reply::Progress(event));
        }
    }

    fn is_cancelled(&self) -> bool {
        self.moving.as_ref().is_some_and(|m| m.cancelled)
    }

    fn cancel(&mut self, id: Option<MoveId>) -> Reply {
        match &mut self.moving {
            Some(moving) if moving.decided && id.is_none_or(|id| id == moving.id) => {
                let name = &self.sup.job.meta.name;
                let sentence = format!(
                    "{name} belongs to the target already: too late to cancel {}",
                    moving.id
                );
                Reply::Failed(MoveFailure {
                    id: Some(moving.id),
                    exit: 10,
                    code: "VOS-COMMIT-SENT".into(),
                    sentence,
                    findings: Vec::new(),
                })
            }
            Some(moving) if id.is_none_or(|id| id == moving.id) => {
                moving.cancelled = true;
                Reply::Ok
            }
            _ => Reply::Error("no such move is in progress".into()),
        }
    }

    /// Has a person said that the copy on node `dead` can never run again? `take_back` makes
    /// this side the owner.
    fn recovered(&mut self, dead: &str, take_back: impl Fn(&Self) -> Result<()>) -> bool {
        let mut later = VecDeque::new();
        let mut recovered = false;
        while let Some(pending) = self.sup.pending.pop_front() {
            let reply = match &pending.request {
                Request::Recover { dead: named } if named == dead => {
                    let taken = take_back(self);
                    recovered |= taken.is_ok();
                    taken.map_or_else(|e| Reply::Error(format!("{e:#}")), |()| Reply::Ok)
                }
                Request::Recover { .. } => Reply::Error(format!("the other copy is on {dead}")),
                _ => {
                    later.push_back(pending);
                    continue;
                }
            };
            self.sup.finish(pending.client, &reply);
        }
        self.sup.pending = later;
        recovered
    }

    fn busy(&self, to: &str) -> MoveFailure {
        let name = &self.sup.job.meta.name;
        let here = &self.sup.node;
        let place = match self.sup.board.state {
            Some(JobState::InDoubt) => format!("It is frozen on {here} and that move is in doubt"),
            _ => format!("It is still running on {here}"),
        };
        let why = "another move of it is in progress";
        MoveFailure {
            id: self.moving.as_ref().map(|m| m.id),
            exit: 10,
            code: "VOS-BUSY".into(),
            sentence: format!("{name} is not moved to {to}: {why}. {place}."),
            findings: Vec::new(),
        }
    }

    /// Tells everyone who watches the move.
    fn progress(&mut self, to: &str, phase: Phase, text: String, bytes: Option<(u64, u64)>) {
        let Some(moving) = &mut self.moving else { return };
        let event = MoveEvent {
            id: moving.id,
            job: self.sup.job.meta.name.clone(),
            job_id: self.sup.job.id,
            from: self.sup.node.clone(),
            to: to.to_owned(),
            phase,
            text,
            bytes,
        };
        moving.last = Some(event.clone());
        if moving.from_home {
            self.say(Msg::Progress(Box::new(event.clone())), &[]);
        }
        let Some(moving) = &self.moving else { return };
        for client in moving.watchers.clone() {
            self.sup.reply(client, &Reply::Progress(event.clone()));
        }
    }

    /// Ends a move for everyone who watches it.
    fn conclude(&mut self, reply: &Reply) {
        self.sup.board.moving = None;
        if self.sup.board.state == Some(crate::control::JobState::Migrating) {
            self.sup.board.state = None;
        }
        for client in self.moving.take().map(|m| m.watchers).unwrap_or_default() {
            self.sup.finish(client, reply);
        }
    }

    /// Waits for the next message of a link; `None` when it is over.
    fn next(&mut self, key: LinkKey, until: Instant) -> Result<Option<(Msg, Vec<u8>)>> {
        loop {
            if let Some(got) = self.pop(key) {
                return Ok(Some(got));
            }
            if self.links.get(&key).is_none_or(|p| p.over.is_some()) {
                return Ok(None);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if let Some(peer) = self.links.get_mut(&key) {
                    peer.over = Some("no answer in time".into());
                }
                return Ok(None);
            }
            if self.is_cancelled() {
                return Ok(None);
            }
            self.pump(Some(left.min(Duration::from_millis(500))))?;
            self.requests_while_moving()?;
        }
    }

    /// Why a link is over.
    fn why(&self, key: LinkKey) -> String {
        let over = self.links.get(&key).and_then(|p| p.over.clone());
        over.unwrap_or_else(|| "the connection is gone".into())
    }

    fn record(&self, id: MoveId, step: Step, peer: &(NodeId, String)) -> Record {
        Record {
            step,
            id,
            epoch: self.sup.job.meta.epoch,
            peer: peer.0,
            peer_name: peer.1.clone(),
            boot: journal::boot_id(),
        }
    }

    fn write_journal(&self, id: MoveId, step: Step, peer: &(NodeId, String)) -> Result<()> {
        let path = self.sup.job.dir.journal();
        let record = self.record(id, step, peer);
        Journal::open(&path)
            .and_then(|mut journal| journal.write(&record))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// As [`Self::write_journal`], without the wait for the disk.
    fn note_journal(&self, id: MoveId, step: Step, peer: &(NodeId, String)) -> Result<()> {
        let path = self.sup.job.dir.journal();
        let record = self.record(id, step, peer);
        Journal::open(&path)
            .and_then(|mut journal| journal.note(&record))
            .with_context(|| format!("writing {}", path.display()))
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
        let first = self.next_tokens;
        self.next_tokens += 1 << 20;
        Ok(Relays::new(self.sup.registry()?, first..self.next_tokens))
    }

    /// The job's end: has it come, and is all of it told? Gives how vosrun ends.
    fn ended(&mut self) -> Result<Option<End>> {
        if let Some(agent) = &self.agent {
            if agent.has_lost() {
                if let Some(standin) = self.standin.take() {
                    // Its parent has to be told something: nothing else was asked to end it.
                    standin.end(Exit::Signal(libc::SIGKILL));
                }
                return Ok(Some(End::Lost));
            }
            let Some(exit) = agent.exited() else { return Ok(self.sup.end) };
            if self.home.as_ref().is_some_and(|home| !home.is_finished()) {
                return Ok(None);
            }
            if let Some(standin) = self.standin.take() {
                standin.end(exit);
            }
            return Ok(Some(End::Exited(exit)));
        }
        let Some(end) = self.sup.end else { return Ok(None) };
        if self.left {
            return Ok(Some(end));
        }
        if let End::Exited(exit) = end {
            self.farewell(exit)?;
        }
        Ok(Some(end))
    }

    /// Sends the job's last words home and waits until they are taken.
    fn farewell(&mut self, exit: Exit) -> Result<()> {
        /// A home that does not come back for so long is gone for good.
        const PATIENCE: Duration = Duration::from_secs(60);
        /// Home agents connect anew twice a second; one that does not is asked for.
        const ABSENT: Duration = Duration::from_secs(3);
        self.relay(Side::Away, |relays, out| relays.job_ended(out));
        if self.loopback.is_some() {
            let drained = |m: &Self| m.home.as_ref().is_none_or(Relays::is_finished);
            let until = Instant::now() + PATIENCE;
            while !drained(self) && Instant::now() < until {
                self.pump(Some(Duration::from_millis(100)))?;
                if self.away.as_ref().is_none_or(Relays::is_drained) {
                    self.relay(Side::Home, |relays, out| relays.host_ended(out));
                }
            }
        }
        if self.is_home() {
            if let Some(standin) = self.standin.take() {
                standin.end(exit);
            }
            return Ok(());
        }
        let until = Instant::now() + PATIENCE;
        let mut told = None;
        let (mut seen, mut probe) = (Instant::now(), None);
        while Instant::now() < until {
            self.requests_while_moving()?;
            if self.relay_link.is_some() {
                seen = Instant::now();
            } else if seen.elapsed() > ABSENT {
                seen = Instant::now();
                probe = self.call_home();
            }
            let drained = self.away.as_ref().is_none_or(Relays::is_drained);
            if drained && told != self.relay_link {
                told = self.relay_link;
                self.say(Msg::Exited(exit), &[]);
            }
            for key in self.links.keys().copied().collect::<Vec<_>>() {
                while let Some((msg, _)) = self.pop(key) {
                    match msg {
                        Msg::ExitTaken => return Ok(()),
                        // The node answers for its dead agent: the job is said to be here.
                        Msg::Gone { to: Some((node, _)), .. }
                            if probe == Some(key) && node == self.here =>
                        {
                            tracing::error!("the home agent is dead; the job ended: {exit:?}");
                            return Ok(());
                        }
                        other => self.hear(key, other)?,
                    }
                }
                if self.links.get(&key).is_some_and(|p| p.over.is_some()) {
                    self.drop_link(key);
                }
            }
            if self.idle() {
                self.pump(Some(Duration::from_millis(500)))?;
            }
        }
        tracing::error!("the home agent did not come for the end of the job ({exit:?})");
        // The node will tell it.
        self.sup.job.meta.exit = Some(exit);
        self.sup.keep_folder = self.sup.job.save().is_ok();
        Ok(())
    }

    /// Asks at home whether the agent is there.
    fn call_home(&mut self) -> Option<LinkKey> {
        let home = node::peers::by_id(&self.sup.state, self.home_node.0).ok()??;
        let tls = node::tls(&self.sup.state).ok()?;
        let service = Service::Job(self.sup.job.id);
        let link = Link::connect(&home.addr, &tls, home.id, service).ok()?;
        let key = self.add_link(link).ok()?;
        let epoch = self.epoch();
        self.send(key, &Msg::Attach { epoch, stopped: false }, &[]);
        Some(key)
    }

    /// This node's agent is, or would be, the job's home agent.
    fn is_home(&self) -> bool {
        self.home_node.0 == self.here
    }

    /// An answer to `check`.
    fn check(&mut self, to: Option<&str>) -> Result<Reply> {
        if self.agent.is_some() {
            let node = self.sup.board.moved_to.clone().unwrap_or_default();
            return Ok(Reply::Error(format!("it runs on {node}; ask there")));
        }
        let meta = &self.sup.job.meta;
        let mut report = CheckReport {
            job: meta.name.clone(),
            id: self.sup.job.id.to_string(),
            to: to.map(str::to_owned),
            ..CheckReport::default()
        };
        match self.judge(to) {
            Ok((findings, ok)) => (report.findings, report.ok) = (findings, ok),
            Err(failure) => return Ok(Reply::Failed(*failure)),
        }
        Ok(Reply::Check(report))
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

fn is_relayed(msg: &Msg) -> bool {
    use Msg::{Progress, Relay, Signal, SignalsTaken};
    matches!(msg, Relay(_) | Signal { .. } | SignalsTaken(_) | Progress(_))
}
