//! The home agent: what the supervisor at home is while the job is elsewhere.
//!
//! It keeps a link to the host where the job is, connecting anew whenever the link is lost
//! and wherever the job goes, relays what stays at home, and ends as the job ends.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{LinkKey, Mover, Side};
use crate::control::Reply;
use crate::ids::{Epoch, NodeId};
use crate::migrate::message::Msg;
use crate::migrate::transport::{Link, Service};
use crate::node;
use crate::tracer::Exit;

/// Between two tries to reach the job's host.
const RETRY: Duration = Duration::from_millis(500);

/// So long a host waits for the home agent before it looks for it.
const SEEK: Duration = Duration::from_secs(1);

/// A host that the home agent does not come to: it may have missed a move.
pub(super) struct Seeker {
    next: Instant,
    /// The connection of the last try.
    link: Option<LinkKey>,
}

impl Seeker {
    pub(super) fn new() -> Self {
        Self { next: Instant::now() + SEEK, link: None }
    }

    /// The home agent was here just now.
    pub(super) fn wait(&mut self) {
        self.next = Instant::now() + SEEK;
    }

    /// Time until the next try.
    pub(super) fn in_time(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }
}

/// What a home agent knows.
pub(super) struct Agent {
    host: (NodeId, String),
    /// A connection that is not answered yet.
    trying: Option<LinkKey>,
    next_try: Instant,
    exit: Option<Exit>,
    /// The job has died with its host.
    lost: bool,
}

impl Agent {
    pub(super) fn new(host: NodeId, name: String) -> Self {
        Self { host: (host, name), trying: None, next_try: Instant::now(), exit: None, lost: false }
    }

    /// How the job ended, when it has.
    pub(super) fn exited(&self) -> Option<Exit> {
        self.exit
    }

    /// Has the job died with its host?
    pub(super) fn has_lost(&self) -> bool {
        self.lost
    }

    /// The job's host.
    pub(super) fn host(&self) -> (NodeId, String) {
        self.host.clone()
    }

    /// The name of the job's host.
    pub(super) fn host_name(&self) -> &str {
        &self.host.1
    }

    /// Time until the next try to connect, if one is due.
    pub(super) fn retry_in(&self, linked: bool) -> Option<Duration> {
        let waiting = !linked && self.exit.is_none() && !self.lost;
        waiting.then(|| self.next_try.saturating_duration_since(Instant::now()))
    }
}

impl Mover {
    /// Connects to the job's host when there is no link.
    pub(super) fn serve_agent(&mut self) {
        let linked = self.relay_link.is_some();
        let Some(agent) = &mut self.agent else { return };
        if linked || agent.exit.is_some() || Instant::now() < agent.next_try {
            return;
        }
        agent.next_try = Instant::now() + RETRY;
        let (host, trying) = (agent.host.clone(), agent.trying.take());
        if let Some(old) = trying {
            self.drop_link(old);
        }
        match self.try_host(&host) {
            Ok(key) => {
                if let Some(agent) = &mut self.agent {
                    agent.trying = Some(key);
                }
            }
            Err(e) => tracing::debug!("{}: {e:#}", host.1),
        }
    }

    /// The job runs here, away from home, and no agent is connected.
    pub(super) fn is_lost(&self) -> bool {
        let here = self.agent.is_none() && !self.left && self.sup.session.root != 0;
        here && !self.is_home() && self.relay_link.is_none()
    }

    /// Tells the home where the job is. It comes as soon as it knows.
    pub(super) fn seek_home(&mut self) {
        if !self.is_lost() || !self.seeker.in_time().is_zero() {
            return;
        }
        self.seeker.wait();
        if let Some(old) = self.seeker.link.take() {
            self.drop_link(old);
        }
        let home = self.home_node.clone();
        match self.connect_job(&home) {
            Ok(key) => {
                self.tell_home(key);
                self.seeker.link = Some(key);
            }
            Err(e) => tracing::debug!("{}: {e:#}", home.1),
        }
    }

    /// Says over a link to the home that the job is here.
    pub(super) fn tell_home(&mut self, key: LinkKey) {
        let to = Some((self.here, self.sup.node.clone()));
        self.send(key, &Msg::Gone { to, epoch: self.epoch() }, &[]);
    }

    fn try_host(&mut self, host: &(NodeId, String)) -> Result<LinkKey> {
        let key = self.connect_job(host)?;
        let epoch = self.sup.job.meta.epoch;
        let (stopped, next) = (self.asleep.is_some(), self.forward.end());
        self.send(key, &Msg::Attach { epoch, stopped, next }, &[]);
        Ok(key)
    }

    /// A connection to whoever has this job on another node.
    pub(super) fn connect_job(&mut self, host: &(NodeId, String)) -> Result<LinkKey> {
        let peer = node::peers::by_id(&self.sup.state, host.0)?;
        let peer = peer.ok_or_else(|| anyhow::anyhow!("is no member any more"))?;
        let tls = node::tls(&self.sup.state)?;
        let link = Link::connect(&peer.addr, &tls, peer.id, Service::Job(self.sup.job.id))?;
        self.add_link(link)
    }

    /// The job is on this node since that epoch.
    fn follow(&mut self, id: NodeId, name: String, epoch: Epoch) {
        self.sup.job.meta.epoch = epoch;
        self.sup.board.moved_to = Some(name.clone());
        self.agent = Some(Agent::new(id, name));
    }

    /// A message of the job's host, or of one that was it.
    pub(super) fn hear_host(&mut self, key: LinkKey, msg: Msg) -> Result<()> {
        let host = self.agent.as_ref().map(|a| a.host.0);
        let peer = self.peer_of(key);
        match msg {
            // The job has gone on, and nobody could tell it here ([`Mover::seek_home`]).
            Msg::Gone { to: Some((id, name)), epoch }
                if peer == Some(id) && epoch > self.sup.job.meta.epoch =>
            {
                self.drop_link(key);
                if let Some(old) = self.relay_link {
                    self.drop_link(old);
                }
                self.follow(id, name, epoch);
            }
            msg if peer != host => tracing::warn!("a node that does not have the job says {msg:?}"),
            Msg::Attached { epoch, processes, history } if epoch >= self.sup.job.meta.epoch => {
                self.sup.job.meta.epoch = epoch;
                self.sup.board.remote = processes;
                history.into_iter().for_each(|report| self.note(report));
                self.relay_link = Some(key);
                if let Some(agent) = &mut self.agent {
                    agent.trying = None;
                }
                self.relay(Side::Home, |relays, out| relays.resync(out));
                // The host's own words about the relays may have come in the same breath.
                self.take_relayed(key);
                self.forward.relinked();
                self.send_signals();
            }
            Msg::Gone { to: Some((id, name)), epoch } if epoch >= self.sup.job.meta.epoch => {
                self.drop_link(key);
                self.follow(id, name, epoch);
            }
            Msg::Progress(event) => self.show_asked(*event),
            Msg::NotMoved(failure) => self.answer_asked(&Reply::Failed(*failure)),
            Msg::Stopped(signal) => self.stop_with_far_job(signal),
            Msg::RelaysLost => self.lose_relays(),
            // Only a node says so that has no supervisor of the job.
            Msg::Lost if self.relay_link.is_none() => self.job_lost(),
            Msg::Exited(exit) => {
                self.send(key, &Msg::ExitTaken, &[]);
                // What is relayed was taken before; the rest of it is written before the end.
                self.relay(Side::Home, |relays, out| relays.host_ended(out));
                if let Some(agent) = &mut self.agent {
                    agent.exit = Some(exit);
                }
                self.flush_link(key)?;
            }
            other => tracing::debug!("unexpected from the job's host: {other:?}"),
        }
        Ok(())
    }

    /// Is the job away, on this node?
    pub(super) fn is_away_on(&self, node: &str) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.host.1 == node)
    }

    /// The job has died with its host, by the word of its node or of a person.
    pub(super) fn job_lost(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        tracing::error!("the job was lost with {}", agent.host.1);
        agent.lost = true;
        // Terminals are given back as they were.
        self.home = None;
    }

    /// The job goes on without what was relayed: the ends that are kept here are closed.
    pub(super) fn lose_relays(&mut self) {
        if self.home.take().is_some_and(|home| home.streams().next().is_some()) {
            tracing::error!(
                "the terminal and pipes of the job were lost with the supervisor that has died"
            );
        }
    }

    /// Sends what waits on a link before this process may end.
    fn flush_link(&mut self, key: LinkKey) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(2);
        let waits =
            |m: &Self| m.links.get(&key).is_some_and(|p| p.over.is_none() && p.link.queued() > 0);
        while waits(self) && Instant::now() < until {
            self.pump(Some(Duration::from_millis(50)))?;
        }
        Ok(())
    }

    /// Is the link of a try to reach the job's host?
    pub(super) fn is_trying(&self, key: LinkKey) -> bool {
        self.agent.as_ref().is_some_and(|a| a.trying == Some(key))
    }

    /// May this peer, with a job of this epoch, give the job back? The owner may, and a
    /// later one, of whom this agent has not heard yet.
    pub(super) fn is_owner(&self, peer: Option<NodeId>, epoch: Epoch) -> bool {
        let host = self.agent.as_ref().map(|a| a.host.0);
        epoch > self.epoch() || (epoch == self.epoch() && peer == host)
    }

    /// The epoch that this agent knows, for messages.
    pub(super) fn epoch(&self) -> Epoch {
        self.sup.job.meta.epoch
    }
}
