//! What `ps`, `inspect` and the home are told of a job that moves.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use super::direct::Directs;
use super::joined::Joins;
use super::{stream_key, Class, LinkKey, Mover, StreamKey};
use crate::control::{ConnectionStatus, Finding, JobStatus, MoveEvent, MoveReport, Phase, Reply};
use crate::ids::Epoch;
use crate::migrate::message::Msg;
use crate::migrate::resource::fd::{self, FdView};
use crate::supervisor::serve::ClientKey;
use crate::supervisor::status::FORWARDED;

/// What hinders a move, and when that was found out.
#[derive(Debug)]
pub(super) struct Looked {
    at: Instant,
    cost: Duration,
    blockers: Vec<Finding>,
}

impl Looked {
    /// A look costs the job's neighbours time: it counts for a second, and for so long that
    /// looking takes at most a fiftieth of the time.
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < Duration::from_secs(1).max(self.cost * 50)
    }
}

/// A move that a person at home has asked the job's host for.
#[derive(Debug)]
pub(super) struct Asked {
    client: ClientKey,
    /// The answer comes over this link.
    pub(super) via: LinkKey,
}

impl Mover {
    /// Everything that is known of the job here.
    pub(super) fn status(&mut self) -> JobStatus {
        self.sup.board.blockers = self.blockers();
        self.sup.board.depends = self.depends();
        let (streams, restored, home) = (&self.streams, &self.restored, &self.home_node.1);
        let (directs, joins) = (&self.directs, &self.joins);
        self.sup.status(&|view| binding(view, streams, restored, home, directs, joins))
    }

    /// The job's TCP connections.
    pub(super) fn connections(&self) -> Vec<ConnectionStatus> {
        let (streams, restored, home) = (&self.streams, &self.restored, &self.home_node.1);
        let (directs, joins) = (&self.directs, &self.joins);
        self.sup.connections(&|view| binding(view, streams, restored, home, directs, joins))
    }

    /// The blockers that can be known without a target.
    fn blockers(&mut self) -> Vec<Finding> {
        let elsewhere = self.agent.is_some() || self.sup.board.state.is_some();
        if elsewhere
            || self.moving.is_some()
            || self.early_freeze.is_some()
            || self.sup.session.root == 0
        {
            return Vec::new();
        }
        if let Some(looked) = self.looked.as_ref().filter(|l| l.is_fresh()) {
            return looked.blockers.clone();
        }
        let begin = Instant::now();
        let blockers = self.local_blockers();
        let cost = begin.elapsed();
        self.looked = Some(Looked { at: Instant::now(), cost, blockers: blockers.clone() });
        blockers
    }

    /// What the job at its host needs of its home, if that is another node.
    fn depends(&self) -> Vec<String> {
        match (&self.sup.board.moved_to, self.is_home()) {
            (Some(host), _) => vec![format!("{host} needs this node ({})", self.kept)],
            (None, false) if self.agent.is_none() => {
                vec![format!("home {} ({})", self.home_node.1, needs(&self.streams))]
            }
            _ => Vec::new(),
        }
    }

    /// Notes what stays here for a job that leaves.
    pub(super) fn keep_needs(&mut self) {
        self.kept = needs(&self.streams);
    }

    /// Notes which descriptions of the job were made anew here.
    pub(super) fn note_restored(&mut self) {
        let pids: Vec<i32> = self.sup.session.processes().into_iter().collect();
        let views = fd::views(&pids).map(|views| views.objects).unwrap_or_default();
        self.restored = views.iter().map(|view| (view.dev, view.ino)).collect();
    }

    /// Puts a move into the history; a second report of the same move replaces the first.
    pub(super) fn note(&mut self, report: MoveReport) {
        let history = &mut self.sup.board.history;
        match history.iter_mut().find(|old| old.id == report.id) {
            Some(old) => *old = report,
            None => history.push(report),
        }
    }

    /// The source's report of a move that brought the job here, or of one that the host of
    /// a job that is away has made.
    pub(super) fn reported(&mut self, report: MoveReport) {
        let known = self.sup.board.history.contains(&report);
        self.note(report.clone());
        if !known && !self.is_home() {
            self.say(Msg::Report(Box::new(report.clone())), &[]);
        }
        self.answer_asked(&Reply::Moved(report));
    }

    /// Tells whoever asked for the move from home how it ended.
    pub(super) fn answer_asked(&mut self, reply: &Reply) {
        let Some(asked) = self.asked.take() else { return };
        if let Reply::Moved(report) = reply {
            if report.to == self.sup.node {
                let owns = owns_text(&report.to, report.epoch);
                for (phase, text) in
                    [(Phase::Commit, owns), (Phase::Resume, resumed_text(report.pause_ms))]
                {
                    self.sup.reply(asked.client, &Reply::Progress(event(report, phase, text)));
                }
            }
        }
        self.sup.finish(asked.client, reply);
    }

    /// Asks the job's host to move it.
    pub(super) fn ask_host(&mut self, client: ClientKey, via: LinkKey, to: &str, translate: bool) {
        self.asked = Some(Asked { client, via });
        self.send(via, &Msg::PleaseMove(to.to_owned(), translate), &[]);
    }

    /// Progress of a move that was asked for from here. The last phases of one that ends here
    /// are told by [`Self::answer_asked`]: their events may be lost when the host lets go.
    pub(super) fn show_asked(&mut self, event: MoveEvent) {
        let ends_here =
            event.to == self.sup.node && matches!(event.phase, Phase::Commit | Phase::Resume);
        if let Some(asked) = self.asked.as_ref().filter(|_| !ends_here) {
            self.sup.reply(asked.client, &Reply::Progress(event));
        }
    }

    /// The link is gone over which the end of a move would have been told.
    pub(super) fn asked_lost(&mut self, key: LinkKey) {
        if self.asked.as_ref().is_none_or(|asked| asked.via != key) {
            return;
        }
        let arrived = self.sup.board.history.last().filter(|r| r.to == self.sup.node).cloned();
        let reply = match arrived {
            Some(report) if self.agent.is_none() => Reply::Moved(report),
            _ => Reply::Failed(self.host_lost()),
        };
        self.answer_asked(&reply);
    }

    fn host_lost(&self) -> crate::control::MoveFailure {
        let name = &self.sup.job.meta.name;
        let host = self.sup.board.moved_to.clone().unwrap_or_default();
        let sentence = format!(
            "the connection to {host} was cut before it told how the move ended. {name} was last \
             known on {host}; vosrun ps here says where it is when it is found again."
        );
        crate::control::MoveFailure {
            id: None,
            exit: 12,
            code: "VOS-LINK".into(),
            sentence,
            findings: Vec::new(),
        }
    }
}

/// `native`, `recreated`, `joined`, `forwarded via a`.
fn binding(
    view: &FdView,
    streams: &BTreeMap<StreamKey, u32>,
    restored: &HashSet<(u64, u64)>,
    home: &str,
    directs: &Directs,
    joins: &Joins,
) -> String {
    if joins.has(directs.stream_of(view.ino)) {
        "joined".into()
    } else if directs.has(view.ino) {
        format!("{FORWARDED} via {home}, direct")
    } else if streams.contains_key(&stream_key(view)) {
        format!("{FORWARDED} via {home}")
    } else if restored.contains(&(view.dev, view.ino)) {
        "recreated".into()
    } else {
        "native".into()
    }
}

/// `terminal, 2 streams, connection, exit status`.
fn needs(streams: &BTreeMap<StreamKey, u32>) -> String {
    let count = |class| streams.keys().filter(|key| key.2 == class).count();
    let (terminals, connections) = (count(Class::Terminal), count(Class::Connection));
    let mut parts = Vec::new();
    for (n, one, many) in [
        (terminals, "terminal", "terminals"),
        (streams.len() - terminals - connections, "stream", "streams"),
        (connections, "connection", "connections"),
    ] {
        match n {
            0 => {}
            1 => parts.push(one.to_owned()),
            n => parts.push(format!("{n} {many}")),
        }
    }
    parts.push("exit status".into());
    parts.join(", ")
}

/// What the event of the commit says.
pub(super) fn owns_text(to: &str, epoch: Epoch) -> String {
    format!("✔ {to} owns it (epoch {epoch})")
}

/// What the last event of a move says.
pub(super) fn resumed_text(pause_ms: f64) -> String {
    match pause_ms {
        ms if ms < 999.5 => format!("✔ paused {ms:.0} ms"),
        ms => format!("✔ paused {:.1} s", ms / 1000.0),
    }
}

fn event(report: &MoveReport, phase: Phase, text: String) -> MoveEvent {
    MoveEvent {
        id: report.id,
        job: report.job.clone(),
        job_id: report.job_id,
        from: report.from.clone(),
        to: report.to.clone(),
        phase,
        text,
        bytes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_of_the_home() {
        let streams = |keys: &[StreamKey]| (1..).zip(keys).map(|(n, k)| (*k, n)).collect();
        assert_eq!(needs(&streams(&[])), "exit status");
        use Class::{Connection, Read, Terminal, Written};
        let all = [(1, 2, Terminal), (1, 3, Read), (1, 4, Written), (1, 5, Connection)];
        assert_eq!(needs(&streams(&all)), "terminal, 2 streams, connection, exit status");
    }

    #[test]
    fn bindings() {
        let view = FdView { dev: 1, ino: 2, mode: libc::S_IFIFO, ..FdView::default() };
        let key = stream_key(&view);
        let none = (BTreeMap::new(), HashSet::new());
        let (directs, joins) = (Directs::default(), Joins::default());
        let binding = |view: &FdView, streams: &_, restored: &_, home: &str| {
            binding(view, streams, restored, home, &directs, &joins)
        };
        assert_eq!(binding(&view, &none.0, &none.1, "a"), "native");
        let restored = HashSet::from([(1, 2)]);
        assert_eq!(binding(&view, &none.0, &restored, "a"), "recreated");
        assert_eq!(binding(&view, &BTreeMap::from([(key, 1)]), &restored, "a"), "forwarded via a");
    }
}
