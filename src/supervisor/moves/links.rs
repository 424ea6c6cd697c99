//! Connections with other supervisors: messages in and out.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Result;
use mio::Interest;

use super::super::Ready;
use super::{LinkKey, Mover, Peer, Side};
use crate::ids::{Epoch, NodeId};
use crate::migrate::message::Msg;
use crate::migrate::transport::{Link, LinkError};
use crate::node;
use crate::syscalls::names;

/// A peer that says nothing is asked after so long (TCP_KEEPIDLE of tcp(7)).
const KEEPALIVE: Duration = Duration::from_secs(3);
/// A peer that takes nothing is gone after so long (TCP_USER_TIMEOUT of tcp(7)).
const LINK_PATIENCE: Duration = Duration::from_secs(10);
/// A target reads nothing while it makes processes, for at most so long each.
const PATIENCE_PER_PROCESS: Duration = Duration::from_millis(20);

impl Mover {
    /// What is sent on a link may wait until so many processes have been made (0: none).
    pub(super) fn be_patient(&mut self, key: LinkKey, processes: usize) {
        if let Some(peer) = self.links.get(&key) {
            let _ = peer.link.set_timeouts(KEEPALIVE, patience(processes));
        }
    }

    /// Sends to the other half of the relays, if it is connected.
    pub(super) fn say(&mut self, msg: Msg, payload: &[u8]) {
        self.say_soon(&msg, payload);
        self.flush_relayed();
    }

    /// As [`Mover::say`], at the latest by [`Mover::flush_relayed`].
    pub(super) fn say_soon(&mut self, msg: &Msg, payload: &[u8]) {
        self.on_relay_link(|link| link.queue(msg, payload));
    }

    /// Puts on its way what was said to the other half of the relays.
    pub(super) fn flush_relayed(&mut self) {
        self.on_relay_link(Link::flush);
    }

    /// A failure shows as the link being over.
    fn on_relay_link(&mut self, call: impl FnOnce(&mut Link) -> Result<(), LinkError>) {
        let Some(peer) = self.relay_link.and_then(|key| self.links.get_mut(&key)) else { return };
        if let Err(e) = call(&mut peer.link) {
            peer.over.get_or_insert(e.to_string());
        }
    }

    /// Sends on a link; a failure shows as the link being over.
    pub(super) fn send(&mut self, key: LinkKey, msg: &Msg, payload: &[u8]) {
        let Some(peer) = self.links.get_mut(&key) else { return };
        if let Err(e) = peer.link.send(msg, payload) {
            peer.over.get_or_insert(e.to_string());
        }
    }

    pub(super) fn add_link(&mut self, mut link: Link) -> Result<LinkKey> {
        let _ = link.set_timeouts(KEEPALIVE, LINK_PATIENCE);
        let fd = std::os::fd::AsFd::as_fd(&link).as_raw_fd();
        let token = self.sup.register(fd, Interest::READABLE | Interest::WRITABLE)?;
        let key = self.next_link;
        self.next_link += 1;
        let over = link.drive().err().map(|e| e.to_string());
        self.links.insert(
            key,
            Peer { link, token, inbox: VecDeque::new(), over, more: true, bytes_only: false },
        );
        Ok(key)
    }

    pub(super) fn drop_link(&mut self, key: LinkKey) {
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

    /// An event of a link. False when it is not of one.
    pub(super) fn link_ready(&mut self, ready: &Ready) -> bool {
        let Some(peer) = self.links.values_mut().find(|p| p.token == ready.token) else {
            return false;
        };
        (peer.more, peer.bytes_only) = (true, !ready.closed);
        true
    }

    /// Does the I/O of a link, and sorts what came. Reads on only when all of it was taken, so
    /// that a fast peer fills no memory.
    pub(super) fn drive(&mut self, key: LinkKey) {
        loop {
            let Some(peer) = self.links.get_mut(&key) else { return };
            if peer.is_full() {
                return;
            }
            let driven = match std::mem::take(&mut peer.bytes_only) {
                true => peer.link.drive_bytes(),
                false => peer.link.drive(),
            };
            if let Err(e) = driven {
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
    pub(super) fn take_relayed(&mut self, key: LinkKey) {
        // A home agent hears the job's host, also while the job is coming home and its away halves are
        // here already, which that host still has in use. Between commit and confirmation the source
        // has no away half any more.
        let at_home = self.agent.is_some() || self.away.is_none();
        let side = if at_home { Side::Home } else { Side::Away };
        let Some(peer) = self.links.get_mut(&key) else { return };
        let (taken, rest): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut peer.inbox).into_iter().partition(|(msg, _)| is_relayed(msg));
        peer.inbox = rest;
        for (msg, payload) in taken {
            let failed = match msg {
                Msg::Relay(msg) => {
                    self.relay_soon(side, |relays, out| relays.on_message(&msg, &payload, out))
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
            if let Some(peer) = self.links.get_mut(&key) {
                peer.link.recycle(payload);
            }
        }
        self.flush_relayed();
    }

    /// New links: the first message tells what they are for. Dead ones go.
    pub(super) fn serve_links(&mut self) -> Result<()> {
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

    pub(super) fn pop(&mut self, key: LinkKey) -> Option<(Msg, Vec<u8>)> {
        self.links.get_mut(&key)?.inbox.pop_front()
    }

    pub(super) fn hear(&mut self, key: LinkKey, msg: Msg) -> Result<()> {
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
            Msg::Attach { epoch, stopped, next } => self.attached(key, epoch, stopped, next),
            Msg::LateSignal { pid, signal } => self.signal_late(pid, signal),
            Msg::PleaseMove(to, translate)
                if self.agent.is_none() && self.relay_link == Some(key) =>
            {
                self.please_move(key, &to, translate)?;
            }
            Msg::Report(report) => self.reported(*report),
            Msg::Join { job, key: with, own, peer } => {
                self.answer_join(key, (job, with), names::Pair { own, peer });
            }
            Msg::Part(with) => self.answer_part(key, with),
            Msg::Parted(with) => self.hear_parted(with),
            other if self.agent.is_some() => self.hear_host(key, other)?,
            other => tracing::debug!("unexpected: {other:?}"),
        }
        Ok(())
    }

    /// The home agent has come.
    pub(super) fn attached(&mut self, key: LinkKey, epoch: Epoch, stopped: bool, next: u64) {
        let own = self.sup.job.meta.epoch;
        if self.agent.is_some() || epoch > own {
            self.send(key, &Msg::Gone { to: None, epoch: own }, &[]);
            return;
        }
        if self.left || self.arriving {
            // The job is not here any more, or not yet. The agent asks again, and this node
            // answers for a supervisor that has ended.
            self.drop_link(key);
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
        // One that says nothing of a stop has not heard of it, or was continued since: then
        // SIGCONT is among the signals that it is about to send.
        let untold = self.sup.session.root_in_stop().filter(|_| !stopped);
        self.sup.session.root_stopped = untold;
        self.tell_stop_from = next;
    }

    /// Who is at the other end of a link.
    pub(super) fn peer_of(&self, key: LinkKey) -> Option<NodeId> {
        self.links.get(&key).and_then(|p| p.link.peer())
    }

    /// Waits for the next message of a link; `None` when it is over.
    pub(super) fn next(&mut self, key: LinkKey, until: Instant) -> Result<Option<(Msg, Vec<u8>)>> {
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
    pub(super) fn why(&self, key: LinkKey) -> String {
        let over = self.links.get(&key).and_then(|p| p.over.clone());
        over.unwrap_or_else(|| "the connection is gone".into())
    }

    /// A connection that the node daemon hands over.
    pub(super) fn connection(&mut self, fd: Option<OwnedFd>) {
        let Some(fd) = fd else { return };
        let fd = match self.direct_connection(fd) {
            Some(fd) => fd,
            None => return,
        };
        let accepted = node::tls(&self.sup.state)
            .and_then(|tls| Ok(Link::accept(std::net::TcpStream::from(fd), &tls)?))
            .and_then(|link| self.add_link(link));
        if let Err(e) = accepted {
            tracing::warn!("an incoming connection was refused: {e:#}");
        }
    }
}

fn patience(processes: usize) -> Duration {
    let made = u32::try_from(processes).unwrap_or(u32::MAX);
    PATIENCE_PER_PROCESS.saturating_mul(made).saturating_add(LINK_PATIENCE)
}

fn is_relayed(msg: &Msg) -> bool {
    use Msg::{Progress, Relay, Signal, SignalsTaken};
    matches!(msg, Relay(_) | Signal { .. } | SignalsTaken(_) | Progress(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 5,000 processes took a target longer than it may be away from its link otherwise.
    #[test]
    fn a_source_waits_for_a_target_that_makes_many_processes() {
        assert_eq!(patience(0), LINK_PATIENCE);
        assert!(patience(5_000) > Duration::from_secs(60));
    }
}
