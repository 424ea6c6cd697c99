//! Connections that were joined take their old ways again, or are over.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Homing, LinkKey, Mover, Partner, Side};
use crate::ids::NodeId;
use crate::migrate::message::Msg;
use crate::migrate::transport::Service;
use crate::proxy::direct::Key;
use crate::proxy::{Relays, StreamId};

/// Between two looks whether the job has closed one.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// So long it is tried to part a connection of which the other job's supervisor has spoken.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two tries to reach the other job's supervisor.
const RETRY: Duration = Duration::from_millis(500);

/// A connection of which the other job's supervisor is to hear.
#[derive(Debug)]
pub(super) struct Parting {
    stream: StreamId,
    partner: Partner,
    link: Option<LinkKey>,
    /// It was asked in vain.
    tried: bool,
    next_try: Instant,
}

impl Mover {
    /// The job has a socket of its relay again: the other side has to do the same.
    pub(in crate::supervisor::moves) fn begin_parting(&mut self, stream: StreamId) {
        let Some(partner) = self.joins.all.remove(&stream) else { return };
        let next_try = Instant::now();
        let parting = Parting { stream, partner, link: None, tried: false, next_try };
        self.joins.parting.push(parting);
        if self.is_home() {
            self.homing = Some(Homing::new());
        }
    }

    /// Tells the others, as long as they have not answered.
    pub(in crate::supervisor::moves) fn serve_parting(&mut self) {
        let mut all = std::mem::take(&mut self.joins.parting);
        all.retain_mut(|parting| !self.has_parted(parting));
        // What came meanwhile.
        all.append(&mut self.joins.parting);
        self.joins.parting = all;
    }

    fn has_parted(&mut self, parting: &mut Parting) -> bool {
        let over = |m: &Self, link: LinkKey| m.links.get(&link).is_none_or(|l| l.over.is_some());
        if parting.link.is_some_and(|link| !over(self, link)) {
            return false;
        }
        if let Some(link) = parting.link.take() {
            self.drop_link(link);
            parting.tried = true;
        }
        // Its socket is closed, and nobody is there to be told. One that has only said its last word
        // would answer.
        let is_closed = |away: &Relays| away.has_come_to_its_end(parting.stream);
        if parting.tried && self.away.as_ref().is_none_or(is_closed) {
            self.relay(Side::Away, |relays, out| relays.parted(parting.stream, out));
            return true;
        }
        if Instant::now() < parting.next_try {
            return false;
        }
        parting.next_try = Instant::now() + RETRY;
        match self.link_to(parting.partner.node, Service::Job(parting.partner.job)) {
            Ok(link) => {
                self.send(link, &Msg::Part(parting.partner.key), &[]);
                parting.link = Some(link);
            }
            Err(e) => {
                parting.tried = true;
                tracing::debug!("the other job of connection {}: {e:#}", parting.stream);
            }
        }
        false
    }

    /// The node that has not answered.
    pub(in crate::supervisor::moves) fn parts_with(&self) -> Option<NodeId> {
        self.joins.parting.first().map(|parting| parting.partner.node)
    }

    /// The other job has left the connection.
    pub(in crate::supervisor::moves) fn answer_part(&mut self, link: LinkKey, key: Key) {
        let until = Instant::now() + PATIENCE;
        while let Err(error) = self.part(key) {
            tracing::debug!("a connection is not parted: {error:#}");
            let waited = self.pump(Some(Duration::from_millis(10)));
            if waited.is_err() || Instant::now() > until {
                // It asks again.
                return self.drop_link(link);
            }
        }
        self.hear_parted(key);
        self.send(link, &Msg::Parted(key), &[]);
    }

    fn part(&mut self, key: Key) -> Result<()> {
        let all = self.joins.all.iter();
        let found = all.clone().find(|(_, partner)| partner.key == key).map(|(stream, _)| *stream);
        let Some(stream) = found else { return Ok(()) };
        let frozen = self.freeze_for_swap()?;
        let recalled = self.recall(&frozen, Some(stream));
        self.thaw(&frozen);
        recalled
    }

    /// Both have left it.
    pub(in crate::supervisor::moves) fn hear_parted(&mut self, key: Key) {
        let mut all = std::mem::take(&mut self.joins.parting);
        let done: Vec<Parting> = all.extract_if(.., |one| one.partner.key == key).collect();
        self.joins.parting = all;
        for Parting { stream, link, .. } in done {
            self.relay(Side::Away, |relays, out| relays.parted(stream, out));
            link.into_iter().for_each(|link| self.drop_link(link));
        }
    }

    /// A connection that is over is not joined any more.
    pub(in crate::supervisor::moves) fn is_over(&mut self, stream: StreamId) {
        self.joins.all.remove(&stream);
    }

    /// A connection that the job has closed is kept nowhere.
    pub(in crate::supervisor::moves) fn forget_joined(&mut self, stream: StreamId) {
        if self.joins.all.remove(&stream).is_some() {
            self.streams.retain(|_, known| *known != stream);
            self.relay(Side::Away, |relays, out| relays.forget_joined(stream, out));
        }
    }

    /// Looks whether the job has closed some, and goes on parting.
    pub(in crate::supervisor::moves) fn serve_joined(&mut self) {
        if !self.joins.parting.is_empty() {
            self.serve_parting();
        }
        if self.joins.all.is_empty() || self.joins.look_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.joins.look_at = Some(Instant::now() + LOOK);
        match open_inodes() {
            Ok(open) => self.forget_all_but(&open),
            Err(e) => tracing::debug!("the connections of this node: {e:#}"),
        }
    }

    fn forget_all_but(&mut self, open: &BTreeSet<u64>) {
        let closed: Vec<(StreamId, u64)> =
            self.directs.open().filter(|(_, inode)| !open.contains(inode)).collect();
        for (stream, inode) in closed {
            if self.joins.all.contains_key(&stream) {
                self.directs.forget(stream);
                self.sup.session.names.remove(inode);
                self.forget_joined(stream);
            }
        }
    }

    /// Time until they are looked at again.
    pub(in crate::supervisor::moves) fn joined_in(&self) -> Option<Duration> {
        let next = self.joins.parting.iter().map(|parting| parting.next_try).min();
        let look = self.joins.look_at.filter(|_| !self.joins.all.is_empty());
        let at = [next, look].into_iter().flatten().min()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// A connection goes past its relay to its home: it is carried by the relay again.
    ///
    /// # Errors
    /// When it is not in time.
    pub(in crate::supervisor::moves) fn recall_one(
        &mut self,
        stream: StreamId,
        until: Instant,
    ) -> Result<()> {
        if self.directs.open().all(|(open, _)| open != stream) {
            return Ok(());
        }
        anyhow::ensure!(!self.joins.all.contains_key(&stream), "it is joined already");
        let frozen = self.freeze_for_swap()?;
        let recalled = self.recall(&frozen, Some(stream));
        self.thaw(&frozen);
        recalled?;
        while self.away.as_ref().context("no relays")?.is_recalling() {
            anyhow::ensure!(Instant::now() < until, "its home does not answer");
            self.pump(Some(Duration::from_millis(2)))?;
        }
        Ok(())
    }
}

/// Inodes of the TCP sockets of this network namespace that somebody has open.
fn open_inodes() -> Result<BTreeSet<u64>> {
    let all = procfs::net::tcp()?.into_iter().chain(procfs::net::tcp6().unwrap_or_default());
    Ok(all.map(|one| one.inode).collect())
}
