//! The side that gives the job up. See [`crate::migrate::message`] for the order of messages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

mod commit;
mod ipc;
mod send;

use super::hook::reached;
use super::{LinkKey, Mover, Moving, Side, CHUNK};
use crate::control::{Finding, MoveFailure, MoveReport, Phase, Reply, Severity};
use crate::ids::{MoveId, NodeId};
use crate::journal::Step;
use crate::migrate::apart::Common;
use crate::migrate::family;
use crate::migrate::files::Files;
use crate::migrate::freeze::{self, FreezeError, FrozenJob, Watched};
use crate::migrate::image::JobImage;
use crate::migrate::leaving;
use crate::migrate::message::{Msg, Verdict, PROTOCOL};
use crate::migrate::preflight::{self, Forwarded, Local};
use crate::migrate::raw::Shared;
use crate::migrate::resource::creds::User;
use crate::migrate::resource::fd::mqueue::PASSING as MQ_BUSY;
use crate::migrate::resource::fd::pty::queues::Taken;
use crate::migrate::resource::fd::pty::{self, PASSING as PTY_BUSY};
use crate::migrate::resource::fd::regular::Named;
use crate::migrate::resource::fd::{FdError, FdView};
use crate::migrate::resource::filters::{self, UNSEEN as UNSEEN_FILTERS};
use crate::migrate::resource::ipc::Id;
use crate::migrate::resource::keyrings;
use crate::migrate::resource::memory::FileId;
use crate::migrate::resource::{PartError, View};
use crate::migrate::shares::Sharing;
use crate::migrate::skeleton::{own_clocks, Plan};
use crate::migrate::terminals;
use crate::migrate::thread_files;
use crate::migrate::transport::{Link, Service};
use crate::migrate::tree;
use crate::node;
use crate::proxy::AwayState;
use crate::supervisor::serve::ClientKey;
use crate::supervisor::session::Session;
use crate::tracer::raw;

/// Without a sign of the target for so long a move is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The target may take longer to build a large job.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// Files of /proc and /sys are open for a moment as a rule, a first thread that has ended is
/// followed by the others, requests end, messages are taken, connections are accepted, handlers of
/// signals return, and ptys and their sessions change: these are waited for.
const PASSING: [&str; 10] = [
    "VOS-AIO-BUSY",
    "VOS-INOTIFY-EVENTS",
    "VOS-LEADER",
    "VOS-LEASE-BREAK",
    MQ_BUSY,
    "VOS-PROC-FD",
    "VOS-UNIX-BACKLOG",
    leaving::CODE,
    PTY_BUSY,
    UNSEEN_FILTERS,
];
/// Compilers and sort(1) make files that they remove again.
const LOCAL_FILE: &str = "VOS-FILE-LOCAL";
const MOMENT: Duration = Duration::from_secs(1);
/// A busy machine may take long for each look.
const LOOKS: u32 = 20;

/// How long a state that passes is waited for.
struct Patience {
    until: Instant,
    looks: u32,
}

impl Patience {
    fn begin() -> Self {
        Self { until: Instant::now() + MOMENT, looks: 0 }
    }

    /// One more look was in vain: was it the last?
    fn is_over(&mut self) -> bool {
        self.looks += 1;
        self.looks >= LOOKS && Instant::now() > self.until
    }
}

/// A move that ended without the job having moved.
pub(super) struct Stopped {
    exit: u8,
    code: &'static str,
    text: String,
    findings: Vec<Finding>,
}

type Step1<T> = std::result::Result<T, Box<Stopped>>;

fn stopped(exit: u8, code: &'static str, text: impl Into<String>) -> Box<Stopped> {
    Box::new(Stopped { exit, code, text: text.into(), findings: Vec::new() })
}

fn cancelled() -> Box<Stopped> {
    stopped(11, "VOS-CANCELLED", "the move was cancelled")
}

/// Errors of this supervisor itself.
fn own(e: impl std::fmt::Display) -> Box<Stopped> {
    stopped(11, "VOS-SUPERVISOR", format!("{e:#}"))
}

/// Where the time of a move went.
struct Laps {
    begin: Instant,
    frozen: Option<Instant>,
    last: Instant,
    parts: Vec<(String, f64)>,
}

impl Laps {
    fn new() -> Self {
        let now = Instant::now();
        Self { begin: now, frozen: None, last: now, parts: Vec::new() }
    }

    fn freeze(&mut self) {
        let now = Instant::now();
        (self.frozen, self.last) = (Some(now), now);
    }

    /// The job has run again for `since`, which is no part of the pause nor of its last part.
    fn pause(&mut self, since: Duration) -> f64 {
        if let Some((_, last)) = self.parts.last_mut() {
            *last = (*last - millis(since)).max(0.0);
        }
        let frozen = self.frozen.unwrap_or(self.begin);
        millis(self.last.saturating_duration_since(frozen).saturating_sub(since))
    }

    fn lap(&mut self, name: &str) {
        let now = Instant::now();
        self.parts.push((name.to_owned(), millis(now - self.last)));
        self.last = now;
    }
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// The frozen job and what must be undone if it does not go.
pub(super) struct Frozen {
    job: FrozenJob,
    /// Away halves that were frozen.
    states: Vec<AwayState>,
    /// Home halves were made for this move.
    new_home: bool,
    /// Objects of System V IPC that nobody else uses, in this node's namespace.
    ipc: Vec<Id>,
    /// POSIX message queues, likewise: their names.
    queues: Vec<Vec<u8>>,
    /// Ptys of the job whose unread bytes were taken.
    ptys: Vec<Taken>,
}

/// What the preflight came to.
struct Agreed {
    /// What the job's standard streams are relayed of.
    forwarded: Forwarded,
    /// Mapped files that the target has.
    mapped: Vec<FileId>,
    foreign_vdso: bool,
    /// The job will have no namespaces.
    translated: bool,
}

/// Who the target is.
struct Target {
    name: String,
    id: NodeId,
    addr: String,
    key: LinkKey,
}

impl Mover {
    /// Moves the job to the node called `to`, telling `client`.
    ///
    /// # Errors
    /// Failures that end the supervision.
    pub(super) fn migrate(
        &mut self,
        client: Option<ClientKey>,
        to: &str,
        translate: bool,
    ) -> Result<()> {
        if self.agent.is_some() {
            self.pass_on(client, to, translate);
            return Ok(());
        }
        self.translate = translate;
        let id = MoveId::random()?;
        let from_home = client.is_none();
        let watchers = client.into_iter().collect();
        self.moving =
            Some(Moving { id, watchers, cancelled: false, decided: false, last: None, from_home });
        self.sup.board.state = Some(crate::control::JobState::Migrating);
        self.moving_on(to, "preflight");
        let tried = self.try_migrate(id, to);
        self.thaw_early();
        let reply = match tried {
            Ok(report) => Reply::Moved(report),
            Err(s) => Reply::Failed(self.failure(id, *s)),
        };
        if let (true, Reply::Failed(failure)) = (from_home, &reply) {
            self.say(Msg::NotMoved(Box::new(failure.clone())), &[]);
        }
        self.conclude(&reply);
        crate::migrate::raw::trim_heap();
        Ok(())
    }

    /// What `ps` shows of the move in progress.
    fn moving_on(&mut self, to: &str, phase: &str) {
        let id = self.moving.as_ref().map_or_else(String::new, |m| m.id.to_string());
        self.sup.board.moving = Some(format!("{id} to {to}: {phase}"));
    }

    /// The home agent asks for a move, on behalf of a person there.
    pub(super) fn please_move(&mut self, key: LinkKey, to: &str, translate: bool) -> Result<()> {
        if self.moving.is_some() {
            let busy = self.busy(to);
            self.send(key, &Msg::NotMoved(Box::new(busy)), &[]);
            return Ok(());
        }
        self.migrate(None, to, translate)
    }

    fn failure(&self, id: MoveId, s: Stopped) -> MoveFailure {
        let name = &self.sup.job.meta.name;
        let here = &self.sup.node;
        let sentence = match (s.exit, self.sup.end) {
            (_, Some(_)) => format!("{}. {name} has ended.", s.text),
            (10, _) => {
                format!("{}. Nothing was touched: {name} is still running on {here}.", s.text)
            }
            _ => format!("{}. {name} is still running on {here}, untouched.", s.text),
        };
        MoveFailure {
            id: Some(id),
            exit: s.exit,
            code: s.code.to_owned(),
            sentence,
            findings: s.findings,
        }
    }

    fn try_migrate(&mut self, id: MoveId, to: &str) -> Step1<MoveReport> {
        let mut laps = Laps::new();
        let local = self.look_again()?;
        if self.early_freeze.is_some() {
            laps.freeze();
        }
        refuse_blockers(&local.findings)?;
        self.progress(to, Phase::Preflight, format!("asking {to}"), None);
        let target = self.connect_to(to)?;
        let moved = self.move_to(id, &target, local, &mut laps);
        if moved.is_err() && self.agent.is_none() {
            self.drop_link(target.key);
        }
        moved
    }

    /// What hinders any move of the running job.
    pub(super) fn local_blockers(&mut self) -> Vec<Finding> {
        let looked = self.look();
        self.thaw_early();
        let findings = match looked {
            Ok(local) => local.findings,
            Err(s) => vec![crate::migrate::resource::blocker(
                s.code,
                format!("process {}", self.sup.job.meta.pid),
                &s.text,
                "",
            )],
        };
        findings.into_iter().filter(|f| f.severity == Severity::Blocker).collect()
    }

    /// As [`Mover::look`]; what is [`PASSING`] as a rule is waited for.
    fn look_again(&mut self) -> Step1<Local> {
        let mut patience = Patience::begin();
        loop {
            let local = self.look()?;
            let passes = is_passing(&local.findings, &PASSING);
            if !passes || self.early_freeze.is_some() || patience.is_over() {
                return Ok(local);
            }
            self.pump(Some(Duration::from_millis(10))).map_err(own)?;
        }
    }

    /// What is known here, of the running job.
    fn look(&mut self) -> Step1<Local> {
        if let Some(finding) = preflight::leader_ended(self.sup.session.root) {
            let (forwarded, open) = (Forwarded::new(), preflight::Open::default());
            return Ok(Local { findings: vec![finding], forwarded, open });
        }
        let pids = self.pids();
        if !self.are_open(&pids).map_err(own)? {
            self.early_freeze = Some(self.freeze()?);
        }
        let pids = self.pids();
        let files = self.files(&pids).map_err(own)?;
        let known = (!self.has_lost_relays()).then(|| self.known_forwarded());
        let mut local =
            preflight::local(&pids, &files, known.as_ref(), &self.common()).map_err(own)?;
        let (shared, untranslated) =
            preflight::shared_tasks(&pids, &self.settled(&pids)).map_err(part_stopped)?;
        local.findings.extend(shared);
        local.open.untranslated.extend(untranslated);
        local.findings.extend(self.check_apart(&files, &pids).map_err(own)?);
        match self.choose_ipc(&pids, false) {
            Ok(chosen) => local.open.untranslated.extend(ipc::untranslated(&chosen)),
            Err(refused) => local.findings.push(refused),
        }
        local.open.untranslated.extend(filters::untranslated(self.sup.session.handles.filters()));
        local.findings.extend(self.sup.session.handles.has_keys().then(keyrings::warning));
        if let Err(FdError::Refused(finding)) = terminals::of(&files, self.sup.session.root) {
            local.findings.push(*finding);
        }
        Ok(local)
    }

    /// Those of the processes that are not in the middle of vfork(2), and not too new to tell.
    fn settled(&self, pids: &[i32]) -> Vec<i32> {
        let busy = self.sup.session.in_vfork();
        let is_settled = |pid: &i32| !busy.contains(pid) && self.sup.session.announced(*pid);
        pids.iter().copied().filter(is_settled).collect()
    }

    /// What all threads of the job have.
    fn common(&self) -> Common {
        let like = self.init.unwrap_or(std::process::id() as i32);
        let handles = &self.sup.session.handles;
        let translated = self.sup.session.translation.is_some();
        Common::new(u64::from(self.sup.job.meta.filtered || translated), like)
            .knowing(handles.submitted().clone(), handles.filters().clone())
    }

    /// Host pids of the job's processes, the first one first.
    fn pids(&self) -> Vec<i32> {
        let root = self.sup.session.root;
        let others = self.sup.session.processes().into_iter().filter(|pid| *pid != root);
        std::iter::once(root).chain(others).collect()
    }

    fn files(&self, pids: &[i32]) -> std::io::Result<Files> {
        let apart: Vec<i32> = self.apart(pids)?.into_iter().map(|(_, tid)| tid).collect();
        Files::read_with(pids, &apart, |pid, fd| self.sup.session.handles.annotation(pid, fd))
    }

    /// Threads of these processes that have a descriptor table apart from their process: both.
    fn apart(&self, pids: &[i32]) -> std::io::Result<Vec<(i32, i32)>> {
        let threads = self.sup.session.tasks.values().map(|task| (task.pid, task.tid));
        let pids: BTreeSet<i32> = pids.iter().copied().collect();
        thread_files::apart(threads.filter(|(pid, tid)| pid != tid && pids.contains(pid)))
    }

    /// What hinders threads with a table of their own.
    fn check_apart(&self, files: &Files, pids: &[i32]) -> std::io::Result<Option<Finding>> {
        let mut all: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for (pid, tid) in self.apart(pids)? {
            all.entry(pid).or_default().push(tid);
        }
        if all.is_empty() {
            return Ok(None);
        }
        let sharing = Sharing::of(pids);
        let shares = |pid: i32| sharing.shares(&[(pid, pid)]).remove(&pid).unwrap_or_default();
        Ok(all.into_iter().find_map(|(pid, apart)| {
            thread_files::check(files, pid, &apart, shares(pid).first(Shared::Files).is_some())
        }))
    }

    /// The job is away from home, but nothing is relayed: its supervisor has died once.
    pub(super) fn has_lost_relays(&self) -> bool {
        self.away.is_none() && !self.is_home()
    }

    /// Descriptions that are the local ends of relays.
    pub(super) fn known_forwarded(&self) -> Forwarded {
        self.streams.keys().map(|(dev, ino, _)| (*dev, *ino)).collect()
    }

    /// Finds the node, waiting a little for one that is just joining, and connects.
    fn connect_to(&mut self, to: &str) -> Step1<Target> {
        let already = || stopped(10, "VOS-HERE", format!("the job is on {to} already"));
        if to == self.sup.node {
            return Err(already());
        }
        let until = Instant::now() + Duration::from_secs(5);
        let peer = loop {
            match node::peers::find(&self.sup.state, to).map_err(own)? {
                Some(peer) => break peer,
                None if Instant::now() > until => {
                    let text = format!("no node {to} is known here (vosrun nodes lists them)");
                    return Err(stopped(75, "VOS-NO-PEER", text));
                }
                None => {
                    self.pump(Some(Duration::from_millis(50))).map_err(own)?;
                    self.requests_while_moving().map_err(own)?;
                }
            }
        };
        let tls = node::tls(&self.sup.state).map_err(own)?;
        if peer.id == tls.id() {
            return Err(already());
        }
        // At its home the job's agent takes it; elsewhere a new supervisor does.
        let home = peer.id == self.home_node.0;
        let service = if home { Service::Job(self.sup.job.id) } else { Service::New };
        let unreachable = |e: &dyn std::fmt::Display| {
            stopped(75, "VOS-UNREACHABLE", format!("{to} ({}) cannot be reached: {e}", peer.addr))
        };
        let link = Link::connect(&peer.addr, &tls, peer.id, service);
        let mut link = link.map_err(|e| unreachable(&e))?;
        link.limit_header(1 << 20);
        let key = self.add_link(link).map_err(own)?;
        let until = Instant::now() + Duration::from_secs(10);
        while self.links.get(&key).is_some_and(|p| p.over.is_none() && !p.link.established()) {
            if Instant::now() > until {
                self.drop_link(key);
                return Err(unreachable(&"no answer"));
            }
            self.pump(Some(Duration::from_millis(200))).map_err(own)?;
            self.requests_while_moving().map_err(own)?;
        }
        if self.links.get(&key).is_none_or(|p| p.over.is_some()) {
            let why = self.why(key);
            self.drop_link(key);
            return Err(unreachable(&why));
        }
        Ok(Target { name: peer.name, id: peer.id, addr: peer.addr, key })
    }

    /// The answer to `check`: findings, and what is fine.
    pub(super) fn judge(
        &mut self,
        to: Option<&str>,
        translate: bool,
    ) -> std::result::Result<(Vec<Finding>, Vec<String>), Box<MoveFailure>> {
        let id = MoveId([0; 4]);
        self.translate = translate;
        let judged = self.look_again().and_then(|local| {
            let mut findings = local.findings.clone();
            let Some(to) = to else { return Ok((findings, Vec::new())) };
            if findings.iter().any(|finding| finding.code == "VOS-LEADER") {
                // Nothing can be told to the target of a process without a first thread.
                return Ok((findings, Vec::new()));
            }
            let target = self.connect_to(to)?;
            let verdict = self.ask_verdict(id, &target, local.open, true);
            self.drop_link(target.key);
            let (verdict, _) = verdict?;
            findings.extend(verdict.findings);
            Ok((findings, verdict.ok))
        });
        self.thaw_early();
        judged.map_err(|s| {
            let failure = self.failure(id, *s);
            Box::new(MoveFailure { id: None, ..failure })
        })
    }

    /// Says hello, with hashes of open files where the target wants them. Gives the target's
    /// judgement, and the mapped files that it tells of.
    fn ask_verdict(
        &mut self,
        id: MoveId,
        target: &Target,
        mut open: preflight::Open,
        dry: bool,
    ) -> Step1<(Verdict, Vec<FileId>)> {
        let pids = self.pids();
        for _round in 0..2 {
            let of = preflight::Move {
                id,
                job: self.job_info(),
                epoch: self.sup.job.meta.epoch,
                dry,
                translate: self.translate,
                source: &self.sup.node,
                home: self.home_node.clone(),
                history: self.sup.board.history.clone(),
            };
            let mut hello = preflight::hello(&pids, of, open.clone()).map_err(own)?;
            let early = self.early_freeze.iter().flat_map(|frozen| &frozen.job.processes);
            let closed =
                early.filter(|process| process.opened.is_some()).map(|process| process.pid);
            hello.untranslated.extend(closed.map(preflight::undumpable));
            let body = postcard::to_stdvec(&hello).map_err(own)?;
            self.send(target.key, &Msg::Hello(PROTOCOL, body), &[]);
            let verdict = match self.answer(target, PATIENCE)? {
                (Msg::Verdict(verdict), _) => verdict,
                (other, _) => return Err(out_of_order(&other)),
            };
            if verdict.unsure.is_empty() {
                return Ok((verdict, hello.mapped));
            }
            self.add_hashes(&mut open.files, &verdict.unsure);
        }
        Err(stopped(11, "VOS-TARGET", "the target cannot decide about an open file"))
    }

    /// The target's judgement of a job that is to move. Files that a running job makes for a moment
    /// and removes are waited for: the target does not find them.
    fn judged(
        &mut self,
        id: MoveId,
        target: &Target,
        mut local: Local,
    ) -> Step1<(Local, Verdict, Vec<FileId>)> {
        let mut patience = Patience::begin();
        loop {
            let (verdict, mapped) = self.ask_verdict(id, target, local.open.clone(), false)?;
            let runs = self.early_freeze.is_none();
            let passes = is_passing(&verdict.findings, &[LOCAL_FILE]);
            if !runs || !passes || patience.is_over() {
                return Ok((local, verdict, mapped));
            }
            self.pump(Some(Duration::from_millis(10))).map_err(own)?;
            self.requests_while_moving().map_err(own)?;
            local = self.look_again()?;
            refuse_blockers(&local.findings)?;
        }
    }

    /// Adds the hashes of the content that the target wants. Files that the running job has closed
    /// meanwhile are left out.
    fn add_hashes(&self, open: &mut Vec<Named>, unsure: &[u32]) {
        let mut closed = Vec::new();
        for &index in unsure {
            let Some(named) = open.get_mut(index as usize) else { continue };
            let file = (named.identity.dev, named.identity.ino);
            let is_it = |view: &FdView| (view.dev, view.ino) == file;
            let mut place = FdView::read(named.pid, named.fd).ok().filter(is_it);
            if place.is_none() {
                let files = self.files(&self.pids()).ok();
                place = files.and_then(|f| f.views.objects.into_iter().find(is_it));
            }
            match place {
                Some(view) => named.identity.hash = preflight::hash_file(&view.proc_path()).ok(),
                None => closed.push(index as usize),
            }
        }
        for index in closed.into_iter().rev() {
            open.remove(index);
        }
    }

    /// The next message of the target; its refusals and failures are errors.
    fn answer(&mut self, target: &Target, patience: Duration) -> Step1<(Msg, Vec<u8>)> {
        let got = self.next(target.key, Instant::now() + patience).map_err(own)?;
        match got {
            Some((Msg::Abort(why), _)) => Err(stopped(10, "VOS-BUSY", why)),
            Some((Msg::Failed(f), _)) => {
                let code = crate::codes::find(&f.code).map_or("VOS-TARGET", |c| c.code);
                Err(stopped(
                    if code == "VOS-BUSY" { 75 } else { 11 },
                    code,
                    format!("{} could not take the job: {}", target.name, f.text),
                ))
            }
            Some((Msg::Gone { .. }, _)) => {
                Err(stopped(11, "VOS-TARGET", format!("the home agent on {} is gone", target.name)))
            }
            Some(got) => Ok(got),
            None if self.is_cancelled() => Err(cancelled()),
            None => {
                let text = format!("the link to {} failed: {}", target.name, self.why(target.key));
                Err(stopped(11, "VOS-LINK", text))
            }
        }
    }

    fn move_to(
        &mut self,
        id: MoveId,
        target: &Target,
        local: Local,
        laps: &mut Laps,
    ) -> Step1<MoveReport> {
        reached("before-hello");
        let peer = (target.id, target.name.clone());
        self.write_journal(id, Step::Intent, &peer).map_err(own)?;
        let mut frozen = None;
        let decided = self
            .until_ready(id, target, local, laps, &mut frozen)
            .and_then(|image| self.decide(id, &peer, target, frozen.as_ref()).map(|()| image));
        match (decided, frozen) {
            (Ok(image), Some(frozen)) => self.commit(id, target, frozen, image, laps),
            (Ok(_), None) => Err(own("nothing was frozen")),
            (Err(s), frozen) => {
                // First the journal, then the job, then the target.
                if let Err(e) = self.write_journal(id, Step::Abort, &peer) {
                    tracing::warn!("{e:#}");
                }
                if let Some(frozen) = frozen {
                    self.thaw(&frozen);
                }
                self.send(target.key, &Msg::Abort(s.text.clone()), &[]);
                Err(s)
            }
        }
    }

    /// Everything before the commit. The job is frozen when it is put into `held`.
    fn until_ready(
        &mut self,
        id: MoveId,
        target: &Target,
        local: Local,
        laps: &mut Laps,
        held: &mut Option<Frozen>,
    ) -> Step1<JobImage> {
        let to = &target.name;
        let (local, verdict, mapped) = self.judged(id, target, local)?;
        let named = local.open;
        refuse_blockers(&verdict.findings)?;
        let ok: Vec<String> = verdict.ok.iter().map(|w| format!("✔ {w}")).collect();
        self.progress(to, Phase::Preflight, ok.join(" "), None);
        reached("copy");
        self.moving_on(&target.name, "copying files");
        let wanted: Vec<FileId> =
            verdict.mapped.iter().filter_map(|i| mapped.get(*i as usize)).cloned().collect();
        if !wanted.is_empty() {
            let text = format!("{} mapped files compared, shipped where they differ", wanted.len());
            self.progress(to, Phase::Copy, text, None);
        }
        self.ship(target, &wanted)?;
        let mut plan = self.plan()?;
        if verdict.translated && plan.ptys {
            // It has come since the target was asked.
            let text = "the job has a terminal of its own, which needs namespaces at the target";
            return Err(stopped(10, "VOS-TRANSLATE", text));
        }
        self.prepare(target, &plan)?;
        let mut forwarded = local.forwarded;
        forward_files(&verdict, &named.files, &mut forwarded);
        self.moving_on(&target.name, "frozen");
        if let Some(peer) = self.links.get_mut(&target.key) {
            peer.link.expect_many(CHUNK);
        }
        let threads = self.sup.session.tasks.len();
        let text = counted(self.sup.session.processes().len(), threads);
        self.progress(to, Phase::Freeze, text, None);
        let Verdict { foreign_vdso, translated, .. } = verdict;
        let agreed = Agreed { forwarded, mapped, foreign_vdso, translated };
        let mut patience = Patience::begin();
        loop {
            let early = self.early_freeze.take();
            if early.is_none() {
                laps.freeze();
            }
            let frozen = held.insert(early.map_or_else(|| self.freeze(), Ok)?);
            laps.lap("freeze");
            // The tree may have grown or lost members since.
            let pids = frozen.job.pids();
            let members = family::members(&pids, &Sharing::of(&pids)).map_err(part_stopped)?;
            if members != plan.members {
                tree::unshareable(&members).map_or(Ok(()), |finding| Err(refused(finding)))?;
                let clocks = job_clocks(&self.sup.session).map_err(own)?;
                plan = Plan { members, clocks, ..plan };
                self.prepare(target, &plan)?;
            }
            match self.send_frozen(target, frozen, &agreed, &plan, laps) {
                // Nothing has been sent yet; the program is about to close it.
                Err(s) if PASSING.contains(&s.code) && !patience.is_over() => {}
                done => return done,
            }
            if let Some(frozen) = held.take() {
                self.thaw(&frozen);
            }
            laps.parts.clear();
            self.pump(Some(Duration::from_millis(10))).map_err(own)?;
            self.requests_while_moving().map_err(own)?;
            // The ptys are no longer those of the frame, perhaps.
            let now = self.plan()?;
            if !now.has_terminals_of(&plan) {
                plan = now;
                self.prepare(target, &plan)?;
            }
        }
    }

    /// The commit point: with the record COMMIT the job is the target's.
    fn decide(
        &mut self,
        id: MoveId,
        peer: &(NodeId, String),
        target: &Target,
        frozen: Option<&Frozen>,
    ) -> Step1<()> {
        // What came meanwhile: the end of the link, a wish to cancel.
        self.pump(Some(Duration::ZERO)).map_err(own)?;
        self.requests_while_moving().map_err(own)?;
        if self.is_cancelled() {
            return Err(cancelled());
        }
        if self.links.get(&target.key).is_none_or(|p| p.over.is_some()) {
            let text = format!("the link to {} failed: {}", target.name, self.why(target.key));
            return Err(stopped(11, "VOS-LINK", text));
        }
        let disk = |e| stopped(11, "VOS-DISK-FULL", format!("{e:#}"));
        self.note_journal(id, Step::Sealed, peer).map_err(disk)?;
        // From here a copy whose supervisor dies must not run on.
        for thread in frozen.iter().flat_map(|f| f.job.threads()) {
            raw::set_exitkill(thread.tid, true).map_err(own)?;
        }
        self.write_journal(id, Step::Commit, peer).map_err(disk)?;
        if let Some(moving) = &mut self.moving {
            moving.decided = true;
        }
        Ok(())
    }

    /// Node name and domain name as the job sees them: those of its home (uname(2)).
    fn names(&self) -> Result<(String, String)> {
        if let Some(names) = &self.sup.job.meta.names {
            return Ok(names.clone());
        }
        let u = nix::sys::utsname::uname().context("uname")?;
        let domain = std::fs::read_to_string("/proc/sys/kernel/domainname").unwrap_or_default();
        let domain = if domain.trim() == "(none)" { "" } else { domain.trim() };
        Ok((u.nodename().to_string_lossy().into_owned(), domain.to_owned()))
    }

    /// Lets the target make the frame of the job's processes.
    fn prepare(&mut self, target: &Target, plan: &Plan) -> Step1<()> {
        self.send(target.key, &Msg::Prepare(plan.clone()), &[]);
        match self.answer(target, PATIENCE)? {
            (Msg::Prepared, _) => Ok(()),
            (other, _) => Err(out_of_order(&other)),
        }
    }

    /// The frame as the running job is now.
    fn plan(&self) -> Step1<Plan> {
        let root = self.sup.session.root;
        let view = View::read_process(root).map_err(own)?;
        let pids = self.pids();
        let sharing = Sharing::of(&self.settled(&pids));
        let members = family::members(&pids, &sharing).map_err(part_stopped)?;
        let (nodename, domainname) = self.names().map_err(own)?;
        let files = self.files(&pids).map_err(own)?;
        let terminals = terminals::of(&files, root).map_err(fd_stopped)?;
        let ptys = pty::has_any(&files.views.objects);
        let clocks = job_clocks(&self.sup.session).map_err(own)?;
        let user = User::of(&view).map_err(own)?.unwrap_or_else(User::own);
        Ok(Plan { members, nodename, domainname, clocks, terminals, ptys, user })
    }

    /// Stops every thread.
    fn freeze(&mut self) -> Step1<Frozen> {
        let session = &mut self.sup.session;
        let frozen = freeze::freeze(session);
        session.settle_births();
        let frozen = frozen.map_err(|failed| {
            let ways = session.ways_on(&failed.threads, &failed.scheduler_now);
            session.go_all(ways);
            let e = failed.error;
            let code = match e {
                FreezeError::Exited(_) => "VOS-EXITED",
                FreezeError::LeaderGone(_) => "VOS-LEADER",
                FreezeError::Vfork(_) => "VOS-VFORK",
                _ => "VOS-SUPERVISOR",
            };
            stopped(11, code, e.to_string())
        });
        self.sup.end = self.sup.end.or(self.sup.session.ended.map(super::End::Exited));
        self.frozen = frozen.is_ok();
        let mut job = frozen?;
        // What a launched job makes is seen.
        let keys = self.sup.job.meta.attached || self.sup.session.handles.has_keys();
        job.processes.iter_mut().for_each(|process| process.keys = keys);
        let mut frozen = Frozen {
            job,
            states: Vec::new(),
            new_home: false,
            ipc: Vec::new(),
            queues: Vec::new(),
            ptys: Vec::new(),
        };
        if let Err(e) = self.open_up(&mut frozen.job) {
            self.thaw(&frozen);
            return Err(own(format!("{e:#}")));
        }
        Ok(frozen)
    }

    /// Ends a freeze that was only for looking.
    fn thaw_early(&mut self) {
        if let Some(frozen) = self.early_freeze.take() {
            self.thaw(&frozen);
        }
    }

    /// The job goes on here as if nothing had happened.
    fn thaw(&mut self, frozen: &Frozen) {
        for state in &frozen.states {
            let put_back = self.relay(Side::Away, |relays, out| relays.unfreeze(state, out));
            if let Some(Err(e)) = put_back {
                tracing::error!("{e}");
            }
        }
        for pty in &frozen.ptys {
            if let Err(e) = pty.put_back() {
                tracing::error!("unread bytes of a pty are lost: {e}");
            }
        }
        if frozen.new_home {
            self.home = None;
        }
        for thread in frozen.job.threads() {
            if let Err(e) = self.sup.session.runs_here(thread.tid) {
                tracing::debug!("thread {}: {e}", thread.tid);
            }
        }
        let ways = self.sup.session.ways_on(frozen.job.threads(), &frozen.job.scheduler_now);
        // Nothing of it is looked into from here on.
        if let Err(e) = self.close_up(&frozen.job) {
            tracing::error!("{e:#}");
        }
        self.sup.session.go_all(ways);
        self.take_held();
    }

    /// A person at home wants a job moved that is elsewhere: its host is asked.
    fn pass_on(&mut self, client: Option<ClientKey>, to: &str, translate: bool) {
        let Some(client) = client else { return };
        match self.relay_link {
            Some(link) if self.asked.is_none() => self.ask_host(client, link, to, translate),
            Some(_) => {
                let busy = self.busy(to);
                self.sup.finish(client, &Reply::Failed(busy));
            }
            None => {
                let host = self.sup.board.moved_to.clone().unwrap_or_default();
                let name = &self.sup.job.meta.name;
                let sentence = format!(
                    "{name} runs on {host}, which cannot be reached from here: try again, or move it from there"
                );
                let failure = stopped(75, "VOS-UNREACHABLE", String::new()).said(sentence);
                self.sup.finish(client, &Reply::Failed(failure));
            }
        }
    }
}

/// Standard streams that are files of this node only are relayed too.
fn forward_files(verdict: &Verdict, open: &[Named], forwarded: &mut Forwarded) {
    for place in &verdict.relay {
        let named = open.iter().find(|named| (named.pid, named.fd) == *place);
        forwarded.extend(named.map(|named| (named.identity.dev, named.identity.ino)));
    }
}

impl Stopped {
    /// A failure that has a sentence already.
    fn said(self, sentence: String) -> MoveFailure {
        let code = self.code.to_owned();
        MoveFailure { id: None, exit: self.exit, code, sentence, findings: self.findings }
    }
}

/// Are there blockers, and all of these codes?
fn is_passing(findings: &[Finding], codes: &[&str]) -> bool {
    let mut blockers = findings.iter().filter(|f| f.severity == Severity::Blocker).peekable();
    blockers.peek().is_some() && blockers.all(|f| codes.contains(&f.code.as_str()))
}

fn refuse_blockers(findings: &[Finding]) -> Step1<()> {
    let blockers: Vec<&Finding> =
        findings.iter().filter(|f| f.severity == Severity::Blocker).collect();
    let Some(first) = blockers.first() else { return Ok(()) };
    let code = crate::codes::find(&first.code).map_or("VOS-SUPERVISOR", |c| c.code);
    let text = match blockers.len() {
        1 => format!("{}: {}", first.object, first.cause),
        n => format!("{}: {}; {} more", first.object, first.cause, n - 1),
    };
    Err(Box::new(Stopped { exit: 10, code, text, findings: findings.to_vec() }))
}

fn out_of_order(msg: &Msg) -> Box<Stopped> {
    let text: String = format!("{msg:?}").chars().take(40).collect();
    stopped(11, "VOS-PROTO", format!("the target answered out of order: {text}"))
}

fn fd_stopped(e: FdError) -> Box<Stopped> {
    match e {
        FdError::Refused(finding) => refused(*finding),
        other => own(other),
    }
}

fn part_stopped(e: PartError) -> Box<Stopped> {
    match e {
        PartError::Refused(finding) => refused(*finding),
        other => own(other),
    }
}

/// A refusal that came up at the freeze: undone, and said.
fn refused(finding: Finding) -> Box<Stopped> {
    let code = crate::codes::find(&finding.code).map_or("VOS-SUPERVISOR", |c| c.code);
    let text = format!("{}: {}", finding.object, finding.cause);
    Box::new(Stopped { exit: 11, code, text, findings: vec![finding] })
}

/// `✔ 3 processes, 14 threads`; one process is not counted.
fn counted(processes: usize, threads: usize) -> String {
    let threads = match threads {
        1 => "1 thread".into(),
        n => format!("{n} threads"),
    };
    match processes {
        0 | 1 => format!("✔ {threads}"),
        n => format!("✔ {n} processes, {threads}"),
    }
}

/// The job's clocks now.
fn job_clocks(session: &Session) -> std::io::Result<crate::migrate::image::Clocks> {
    use crate::migrate::skeleton::offsets;
    let mut now = own_clocks()?;
    let ahead = match &session.translation {
        Some(translation) => (translation.ahead.monotonic, translation.ahead.boottime),
        None => {
            let (own, theirs) = (offsets("self")?, offsets(&session.root.to_string())?);
            (theirs.0 - own.0, theirs.1 - own.1)
        }
    };
    now.monotonic += ahead.0;
    now.boottime += ahead.1;
    Ok(now)
}
