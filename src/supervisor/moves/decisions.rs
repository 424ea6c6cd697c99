//! The journal's word: what was decided, for whoever asks.

use std::collections::VecDeque;

use anyhow::{Context, Result};

use super::{LinkKey, Mover};
use crate::control::{Reply, Request};
use crate::ids::{MoveId, NodeId};
use crate::journal::{self, Journal, Record, Step};
use crate::migrate::message::Msg;

impl Mover {
    /// The last record of a move with the peer of this link. `Err`: the journal cannot be
    /// read, or the move is another node's; nothing is answered then.
    pub(super) fn recorded(
        &self,
        key: LinkKey,
        id: MoveId,
    ) -> std::result::Result<Option<Step>, ()> {
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
    pub(super) fn tell_decision(&mut self, key: LinkKey, id: MoveId) {
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
    pub(super) fn confirm(&mut self, key: LinkKey, id: MoveId) {
        let Ok(step) = self.recorded(key, id) else { return };
        let answer = match step {
            Some(Step::Own) if self.agent.is_some() => Msg::Done {
                processes: self.sup.board.remote.clone(),
                resumed_ns: 0,
                lost: Vec::new(),
            },
            Some(Step::Own) => {
                Msg::Done { processes: self.processes(), resumed_ns: 0, lost: Vec::new() }
            }
            None | Some(Step::Abort) => Msg::Gone { to: None, epoch: self.epoch() },
            _ => return,
        };
        self.send(key, &answer, &[]);
    }

    /// A copy that was left behind by an earlier move asks for its decision: until it has it,
    /// its node takes no new copy. Nothing else is taken from a link here.
    pub(super) fn answer_waiting_asks(&mut self) {
        for key in self.links.keys().copied().collect::<Vec<_>>() {
            let first = self.links.get(&key).and_then(|p| p.inbox.front());
            if let Some((Msg::Ask(id), _)) = first {
                let id = *id;
                self.pop(key);
                self.tell_decision(key, id);
            }
        }
    }

    /// Has a person said that the copy on node `dead` can never run again? `take_back` makes
    /// this side the owner.
    pub(super) fn recovered(
        &mut self,
        dead: &str,
        take_back: impl Fn(&Self) -> Result<()>,
    ) -> bool {
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

    pub(super) fn record(&self, id: MoveId, step: Step, peer: &(NodeId, String)) -> Record {
        Record {
            step,
            id,
            epoch: self.sup.job.meta.epoch,
            peer: peer.0,
            peer_name: peer.1.clone(),
            boot: journal::boot_id(),
        }
    }

    pub(super) fn write_journal(
        &self,
        id: MoveId,
        step: Step,
        peer: &(NodeId, String),
    ) -> Result<()> {
        self.in_journal(|journal| journal.write(&self.record(id, step, peer)))
    }

    /// As [`Self::write_journal`], without the wait for the disk.
    pub(super) fn note_journal(
        &self,
        id: MoveId,
        step: Step,
        peer: &(NodeId, String),
    ) -> Result<()> {
        self.in_journal(|journal| journal.note(&self.record(id, step, peer)))
    }

    fn in_journal(&self, put: impl FnOnce(&mut Journal) -> std::io::Result<()>) -> Result<()> {
        let path = self.sup.job.dir.journal();
        Journal::open(&path)
            .and_then(|mut journal| put(&mut journal))
            .with_context(|| format!("writing {}", path.display()))
    }
}
