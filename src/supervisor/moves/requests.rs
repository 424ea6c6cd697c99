//! What people ask of a supervisor, and what they are told of a move.

use std::collections::VecDeque;

use anyhow::Result;

use super::super::Pending;
use super::Mover;
use crate::control::{CheckReport, JobState, MoveEvent, MoveFailure, Phase, Reply, Request};
use crate::ids::MoveId;
use crate::migrate::message::Msg;

impl Mover {
    pub(super) fn request(&mut self, pending: Pending) -> Result<()> {
        let client = pending.client;
        match pending.request {
            Request::Connection => {
                self.sup.dismiss(client);
                self.connection(pending.fd);
            }
            Request::Migrate { to, .. } if self.moving.is_some() || self.early_freeze.is_some() => {
                let failure = self.busy(&to);
                self.sup.finish(client, &Reply::Failed(failure));
            }
            Request::Migrate { to, translate } => {
                return self.migrate(Some(client), &to, translate);
            }
            Request::Watch => self.watch(client),
            Request::Cancel { id } => {
                let reply = self.cancel(id);
                self.sup.finish(client, &reply);
            }
            Request::Check { to, translate } => {
                let report = self.check(to.as_deref(), translate)?;
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
            Request::Connections => {
                let connections = self.connections();
                self.sup.finish(client, &Reply::Connections(connections));
            }
            Request::Status => {
                let status = self.status();
                self.sup.finish(client, &Reply::Status(Box::new(status)));
            }
        }
        Ok(())
    }

    /// Takes connections of other nodes, and nothing else of what is asked.
    pub(super) fn take_connections(&mut self) -> Result<()> {
        let is_one = |pending: &Pending| matches!(pending.request, Request::Connection);
        let all = std::mem::take(&mut self.sup.pending);
        let (connections, others): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(is_one);
        self.sup.pending = others;
        connections.into_iter().try_for_each(|pending| self.request(pending))
    }

    /// Requests that may be answered in the middle of a move.
    pub(super) fn requests_while_moving(&mut self) -> Result<()> {
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

    pub(super) fn watch(&mut self, client: crate::supervisor::serve::ClientKey) {
        let Some(moving) = &mut self.moving else {
            self.sup.finish(client, &Reply::Error("no move is in progress".into()));
            return;
        };
        moving.watchers.push(client);
        if let Some(event) = moving.last.clone() {
            self.sup.reply(client, &Reply::Progress(event));
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.moving.as_ref().is_some_and(|m| m.cancelled)
    }

    pub(super) fn cancel(&mut self, id: Option<MoveId>) -> Reply {
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

    pub(super) fn busy(&self, to: &str) -> MoveFailure {
        let name = &self.sup.job.meta.name;
        let here = &self.sup.node;
        let place = match self.sup.board.state {
            Some(JobState::InDoubt) => format!("It is frozen on {here} and that move is in doubt"),
            _ => format!("It is still running on {here}"),
        };
        let other = self.moving.as_ref().map_or_else(String::new, |m| format!(" ({})", m.id));
        let why = format!("another move of it is in progress{other}");
        MoveFailure {
            id: None,
            exit: 10,
            code: "VOS-BUSY".into(),
            sentence: format!("{name} is not moved to {to}: {why}. {place}."),
            findings: Vec::new(),
        }
    }

    /// Tells everyone who watches the move.
    pub(super) fn progress(
        &mut self,
        to: &str,
        phase: Phase,
        text: String,
        bytes: Option<(u64, u64)>,
    ) {
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
    pub(super) fn conclude(&mut self, reply: &Reply) {
        self.sup.board.moving = None;
        if self.sup.board.state == Some(crate::control::JobState::Migrating) {
            self.sup.board.state = None;
        }
        for client in self.moving.take().map(|m| m.watchers).unwrap_or_default() {
            self.sup.finish(client, reply);
        }
    }

    /// An answer to `check`.
    pub(super) fn check(&mut self, to: Option<&str>, translate: bool) -> Result<Reply> {
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
        match self.judge(to, translate) {
            Ok((findings, ok)) => (report.findings, report.ok) = (findings, ok),
            Err(failure) => return Ok(Reply::Failed(*failure)),
        }
        Ok(Reply::Check(report))
    }

    /// The job's processes, for reports.
    pub(super) fn processes(&mut self) -> Vec<crate::control::ProcessStatus> {
        self.sup.processes()
    }
}
