//! The side that gives the job up. See [`crate::migrate::message`] for the order of messages.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::{getpgid, getpgrp, Pid};

use super::agent::Agent;
use super::hook::reached;
use super::signals;
use super::standin::StandIn;
use super::{stream_key, LinkKey, Mover, Moving, Side, StreamKey, CHUNK};
use crate::control::{Finding, MoveFailure, MoveReport, Phase, ProcessStatus, Reply, Severity};
use crate::ids::{MoveId, NodeId};
use crate::journal::Step;
use crate::migrate::files::Files;
use crate::migrate::freeze::{self, FreezeError, FrozenProcess};
use crate::migrate::image::{JobImage, ProcessImage};
use crate::migrate::message::{Msg, Parcel, Verdict, PROTOCOL};
use crate::migrate::preflight::{self, Forwarded, Local};
use crate::migrate::resource::fd::{BulkSource, FdError, FdView};
use crate::migrate::resource::memory::{read_pages, FileId};
use crate::migrate::resource::PartError;
use crate::migrate::skeleton::{own_clocks, Plan};
use crate::migrate::transport::{Link, Service};
use crate::migrate::{capture, image::Ids};
use crate::node;
use crate::proxy::{AwayState, HomeEnd, JobControl};
use crate::supervisor::job::now_ms;
use crate::supervisor::serve::ClientKey;
use crate::supervisor::session::TaskState;
use crate::tracer::{raw, Exit, Stop};

/// Without a sign of the target for so long a move is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The target may take longer to build a large job.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// After the commit: so long the command waits before it says "in doubt".
const DONE_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that may wait for the network.
const WINDOW: usize = 1 << 20;

/// A move that ended without the job having moved.
pub(super) struct Stopped {
    exit: u8,
    code: &'static str,
    text: String,
    findings: Vec<Finding>,
}

/// Which object of an image is the job's end of which stream.
type Streams = Vec<(u32, u32)>;

type Step1<T> = std::result::Result<T, Box<Stopped>>;

fn stopped(exit: u8, code: &'static str, text: impl Into<String>) -> Box<Stopped> {
    Box::new(Stopped { exit, code, text: text.into(), findings: Vec::new() })
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
    process: FrozenProcess,
    /// Away halves that were frozen.
    states: Vec<AwayState>,
    /// Home halves were made for this move.
    new_home: bool,
}

/// What the target said after the commit.
enum Heard {
    /// It runs there, for so long already.
    Done(Vec<ProcessStatus>, Duration),
    /// It does not have the job (any more).
    Lost,
    Nothing,
}

/// What the preflight came to.
struct Agreed {
    /// What the job's standard streams are relayed of.
    forwarded: Forwarded,
    /// Mapped files that the target has.
    mapped: Vec<FileId>,
    foreign_vdso: bool,
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
    pub(super) fn migrate(&mut self, client: Option<ClientKey>, to: &str) -> Result<()> {
        if self.agent.is_some() {
            self.pass_on(client, to);
            return Ok(());
        }
        let id = MoveId::random()?;
        let from_home = client.is_none();
        let watchers = client.into_iter().collect();
        self.moving =
            Some(Moving { id, watchers, cancelled: false, decided: false, last: None, from_home });
        self.sup.board.moving = Some("preflight".into());
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

    /// The home agent asks for a move, on behalf of a person there.
    pub(super) fn please_move(&mut self, key: LinkKey, to: &str) -> Result<()> {
        if self.moving.is_some() {
            let busy = self.busy(to);
            self.send(key, &Msg::NotMoved(Box::new(busy)), &[]);
            return Ok(());
        }
        self.migrate(None, to)
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
        let local = self.look()?;
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

    /// What is known here, of the running job.
    fn look(&mut self) -> Step1<Local> {
        let pid = self.sup.session.root;
        if !self.is_open().map_err(own)? {
            self.early_freeze = Some(self.freeze()?);
        }
        let files = self.files(pid).map_err(own)?;
        let filters = u64::from(self.sup.job.meta.filtered);
        let known = (!self.has_lost_relays()).then(|| self.known_forwarded());
        preflight::local(pid, &files, known.as_ref(), filters).map_err(own)
    }

    fn files(&self, pid: i32) -> std::io::Result<Files> {
        Files::read(pid, |fd| self.sup.session.handles.annotation(pid, fd))
    }

    /// The job is away from home, but nothing is relayed: its supervisor has died once.
    fn has_lost_relays(&self) -> bool {
        self.away.is_none() && !self.is_home()
    }

    /// Descriptions that are the local ends of relays.
    fn known_forwarded(&self) -> Forwarded {
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
    ) -> std::result::Result<(Vec<Finding>, Vec<String>), Box<MoveFailure>> {
        let id = MoveId([0; 4]);
        let judged = self.look().and_then(|local| {
            let mut findings = local.findings.clone();
            let Some(to) = to else { return Ok((findings, Vec::new())) };
            let target = self.connect_to(to)?;
            let verdict = self.ask_verdict(id, &target, local.open, true);
            self.drop_link(target.key);
            let verdict = verdict?;
            findings.extend(verdict.findings);
            Ok((findings, verdict.ok))
        });
        self.thaw_early();
        judged.map_err(|s| {
            let failure = self.failure(id, *s);
            Box::new(MoveFailure { id: None, ..failure })
        })
    }

    /// Says hello, with hashes of open files where the target wants them.
    fn ask_verdict(
        &mut self,
        id: MoveId,
        target: &Target,
        mut open: Vec<crate::migrate::resource::fd::regular::Named>,
        dry: bool,
    ) -> Step1<Verdict> {
        for _round in 0..2 {
            let of = preflight::Move {
                id,
                job: self.job_info(),
                epoch: self.sup.job.meta.epoch,
                dry,
                source: &self.sup.node,
                home: self.home_node.clone(),
                history: self.sup.board.history.clone(),
            };
            let hello = preflight::hello(self.sup.session.root, of, open.clone()).map_err(own)?;
            let body = postcard::to_stdvec(&hello).map_err(own)?;
            self.send(target.key, &Msg::Hello(PROTOCOL, body), &[]);
            let verdict = match self.answer(target, PATIENCE)? {
                (Msg::Verdict(verdict), _) => verdict,
                (other, _) => return Err(out_of_order(&other)),
            };
            if verdict.unsure.is_empty() {
                return Ok(verdict);
            }
            let pid = self.sup.session.root;
            for index in &verdict.unsure {
                let Some(named) = open.get_mut(*index as usize) else { continue };
                let path = format!("/proc/{pid}/fd/{}", named.fd);
                named.identity.hash = preflight::hash_file(path.as_ref()).ok();
            }
        }
        Err(stopped(11, "VOS-TARGET", "the target cannot decide about an open file"))
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
            None if self.moving.as_ref().is_some_and(|m| m.cancelled) => {
                Err(stopped(11, "VOS-CANCELLED", "the move was cancelled"))
            }
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
    ) -> Step1<ProcessImage> {
        let to = &target.name;
        let verdict = self.ask_verdict(id, target, local.open, false)?;
        refuse_blockers(&verdict.findings)?;
        let ok: Vec<String> = verdict.ok.iter().map(|w| format!("✔ {w}")).collect();
        self.progress(to, Phase::Preflight, ok.join(" "), None);
        reached("copy");
        self.sup.board.moving = Some("copying files".into());
        let (mapped, _) = preflight::mapped_files(self.sup.session.root).map_err(own)?;
        let wanted: Vec<FileId> =
            verdict.mapped.iter().filter_map(|i| mapped.get(*i as usize)).cloned().collect();
        if !wanted.is_empty() {
            let text = format!("{} mapped files compared, shipped where they differ", wanted.len());
            self.progress(to, Phase::Copy, text, None);
        }
        self.ship(target, &wanted)?;
        self.send(target.key, &Msg::Prepare(self.plan()?), &[]);
        match self.answer(target, PATIENCE)? {
            (Msg::Prepared, _) => {}
            (other, _) => return Err(out_of_order(&other)),
        }
        let mut forwarded = local.forwarded;
        self.forward_files(&verdict, &mut forwarded)?;
        self.sup.board.moving = Some("frozen".into());
        if let Some(peer) = self.links.get_mut(&target.key) {
            peer.link.expect_many(CHUNK);
        }
        let threads = self.sup.session.tasks.len();
        let text =
            if threads == 1 { "✔ 1 thread".into() } else { format!("✔ {threads} threads") };
        self.progress(to, Phase::Freeze, text, None);
        let early = self.early_freeze.take();
        if early.is_none() {
            laps.freeze();
        }
        let frozen = held.insert(early.map_or_else(|| self.freeze(), Ok)?);
        laps.lap("freeze");
        let agreed = Agreed { forwarded, mapped, foreign_vdso: verdict.foreign_vdso };
        self.send_frozen(target, frozen, &agreed, laps)
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
        if self.moving.as_ref().is_some_and(|m| m.cancelled) {
            return Err(stopped(11, "VOS-CANCELLED", "the move was cancelled"));
        }
        if self.links.get(&target.key).is_none_or(|p| p.over.is_some()) {
            let text = format!("the link to {} failed: {}", target.name, self.why(target.key));
            return Err(stopped(11, "VOS-LINK", text));
        }
        let disk = |e| stopped(11, "VOS-DISK-FULL", format!("{e:#}"));
        self.note_journal(id, Step::Sealed, peer).map_err(disk)?;
        // From here a copy whose supervisor dies must not run on.
        for thread in frozen.iter().flat_map(|f| &f.process.threads) {
            raw::set_exitkill(thread.tid, true).map_err(own)?;
        }
        self.write_journal(id, Step::Commit, peer).map_err(disk)?;
        if let Some(moving) = &mut self.moving {
            moving.decided = true;
        }
        Ok(())
    }

    /// Standard streams that are files of this node only are relayed too.
    fn forward_files(&self, verdict: &Verdict, forwarded: &mut Forwarded) -> Step1<()> {
        for fd in &verdict.relay {
            let view = FdView::read(self.sup.session.root, *fd).map_err(own)?;
            forwarded.insert((view.dev, view.ino));
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

    fn plan(&self) -> Step1<Plan> {
        let pid = self.sup.session.root;
        let view = crate::migrate::resource::View::read_process(pid).map_err(own)?;
        let ids: Ids = capture::ids(&view).map_err(own)?;
        let (nodename, domainname) = self.names().map_err(own)?;
        let files = self.files(pid).map_err(own)?;
        let terminal = crate::supervisor::status::controlling_terminal(pid)
            .is_some_and(|tty| files.views.objects.iter().any(|v| is_same_terminal(v, tty)));
        let clocks = job_clocks(pid).map_err(own)?;
        Ok(Plan { ids, nodename, domainname, clocks, terminal })
    }

    /// Sends the content of files that the target lacks.
    fn ship(&mut self, target: &Target, files: &[FileId]) -> Step1<()> {
        let pid = self.sup.session.root;
        for (index, file) in (0..).zip(files) {
            let path = preflight::through_root(pid, &file.path);
            let broken = |e| own(format!("{}: {e}", file.path));
            let hash = preflight::hash_file(&path).map_err(broken)?;
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &std::fs::metadata(&path).map_err(broken)?.permissions(),
            );
            let body = Msg::File { index, hash, mode, size: file.size };
            let id = postcard::to_stdvec(file).map_err(own)?;
            self.send(target.key, &body, &id);
            match self.answer(target, PATIENCE)? {
                (Msg::FileAnswer { send: true, .. }, _) => {
                    self.send_file(target, index, file, &path)?;
                }
                (Msg::FileAnswer { .. }, _) => {}
                (other, _) => return Err(out_of_order(&other)),
            }
        }
        Ok(())
    }

    fn send_file(
        &mut self,
        target: &Target,
        index: u32,
        file: &FileId,
        path: &std::path::Path,
    ) -> Step1<()> {
        let broken = |e| own(format!("{}: {e}", file.path));
        let mut content = std::fs::File::open(path).map_err(broken)?;
        let mut buf = vec![0; CHUNK];
        loop {
            let got = content.read(&mut buf).map_err(broken)?;
            self.send(target.key, &Msg::Chunk { index, last: got == 0 }, &buf[..got]);
            self.flow(target)?;
            if got == 0 {
                return Ok(());
            }
        }
    }

    /// Waits until little is left to send.
    fn flow(&mut self, target: &Target) -> Step1<()> {
        let mut until = Instant::now() + PATIENCE;
        let mut before = usize::MAX;
        loop {
            let queued = match self.links.get(&target.key) {
                Some(peer) if peer.over.is_none() => peer.link.queued(),
                _ => {
                    // Perhaps it said why before it went.
                    self.answer(target, Duration::ZERO)?;
                    return Ok(());
                }
            };
            if queued <= WINDOW {
                return Ok(());
            }
            if queued < before {
                (before, until) = (queued, Instant::now() + PATIENCE);
            }
            if Instant::now() > until {
                let text = format!("{} takes nothing for {} s", target.name, PATIENCE.as_secs());
                return Err(stopped(11, "VOS-TIMEOUT", text));
            }
            self.pump(Some(Duration::from_millis(200))).map_err(own)?;
            self.requests_while_moving().map_err(own)?;
        }
    }

    /// Stops every thread.
    fn freeze(&mut self) -> Step1<Frozen> {
        let pid = self.sup.session.root;
        let group = |state| match state {
            TaskState::Group(signal) => Some(signal),
            _ => None,
        };
        let tasks = self.sup.session.tasks.values();
        let stopped_tids: BTreeMap<i32, i32> =
            tasks.filter_map(|t| Some((t.tid, group(t.state)?))).collect();
        let session = &mut self.sup.session;
        let frozen = freeze::freeze(pid, &stopped_tids, &mut |wait| {
            if let Err(e) = session.take(wait) {
                tracing::warn!("thread {}: {e}", wait.tid);
            }
        });
        let process = frozen.map_err(|e| {
            let code = match e {
                FreezeError::Exited(_) => "VOS-EXITED",
                FreezeError::Forked(_) => "VOS-CHILDREN",
                FreezeError::Exec(_) => "VOS-EXEC-CHANGED",
                _ => "VOS-SUPERVISOR",
            };
            stopped(11, code, e.to_string())
        });
        self.sup.end = self.sup.end.or(self.sup.session.ended);
        self.frozen = process.is_ok();
        let mut frozen = Frozen { process: process?, states: Vec::new(), new_home: false };
        if let Err(e) = self.open_up(&mut frozen.process) {
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
        if frozen.new_home {
            self.home = None;
        }
        let running = self.sup.session.running_restarts();
        let session = &mut self.sup.session;
        let now = &frozen.process.scheduler_now;
        let ways: Vec<_> = frozen
            .process
            .threads
            .iter()
            .map(|thread| {
                if let Err(e) = raw::set_exitkill(thread.tid, false) {
                    tracing::debug!("thread {}: {e}", thread.tid);
                }
                session.way_on(thread, now, &running)
            })
            .collect();
        // Nothing of it is looked into from here on.
        if let Err(e) = self.close_up(&frozen.process) {
            tracing::error!("{e:#}");
        }
        for (thread, way) in frozen.process.threads.iter().zip(ways) {
            if let Err(e) = way.and_then(|way| self.sup.session.go(thread.tid, way)) {
                tracing::error!("thread {} was not resumed: {e}", thread.tid);
            }
        }
        self.take_held();
    }

    /// Captures the frozen job, sends everything, and waits for READY.
    fn send_frozen(
        &mut self,
        target: &Target,
        frozen: &mut Frozen,
        agreed: &Agreed,
        laps: &mut Laps,
    ) -> Step1<ProcessImage> {
        reached("frozen");
        let pid = frozen.process.pid;
        if !preflight::children(pid).is_empty() {
            return Err(stopped(11, "VOS-CHILDREN", "the job has started a child process"));
        }
        if agreed.foreign_vdso {
            capture::leave_vdso(&mut frozen.process).map_err(own)?;
        }
        let files = self.files(pid).map_err(own)?;
        let is_forwarded = |v: &FdView| agreed.forwarded.contains(&(v.dev, v.ino));
        let (relays, streams) = self.freeze_relays(frozen, &files, &is_forwarded)?;
        let (fds, bulk) = files.capture(is_forwarded).map_err(fd_stopped)?;
        let running = self.sup.session.running_restarts();
        let process = capture::capture(&mut frozen.process, fds, &running).map_err(part_stopped)?;
        laps.lap("capture");
        let (nodename, domainname) = self.names().map_err(own)?;
        let handles = &self.sup.session.handles;
        let annotations =
            files.views.table.iter().filter_map(|s| Some((s.fd, handles.annotation(pid, s.fd)?)));
        let parcel = Parcel {
            annotations: annotations.collect(),
            image: JobImage {
                job: self.job_info(),
                clocks: job_clocks(pid).map_err(own)?,
                nodename,
                domainname,
                processes: vec![process],
            },
            relays,
            relays_lost: self.has_lost_relays(),
            streams,
            signals_taken: self.forward.next(),
        };
        let mut files = parcel.image.processes.iter().flat_map(|p| &p.memory.files);
        let ahead = files.all(|file| agreed.mapped.contains(file));
        self.send_parcel(target, &parcel)?;
        if !ahead {
            self.answer_unknown(target)?;
        }
        self.send_bulk(target, &bulk)?;
        let Some(process) = parcel.image.processes.into_iter().next() else {
            return Err(own("an image without a process"));
        };
        self.send_memory(target, pid, &process)?;
        if ahead {
            self.expect_known(target)?;
        }
        reached("image-sent");
        match self.answer(target, READY_PATIENCE)? {
            (Msg::Ready, _) => {}
            (other, _) => return Err(out_of_order(&other)),
        }
        laps.lap("transfer and restore");
        reached("ready-received");
        Ok(process)
    }

    /// Freezes what is relayed, or begins to relay it. Gives the states of the away halves,
    /// and which object is which stream.
    fn freeze_relays(
        &mut self,
        frozen: &mut Frozen,
        files: &Files,
        is_forwarded: &dyn Fn(&FdView) -> bool,
    ) -> Step1<(Vec<AwayState>, Streams)> {
        let mut ends: BTreeMap<StreamKey, OwnedFd> = BTreeMap::new();
        let mut keys = Vec::new();
        for (object, view) in (0..).zip(&files.views.objects) {
            if is_forwarded(view) {
                let fd = files.duplicate(view).map_err(own)?;
                ends.entry(stream_key(view)).or_insert(fd);
                keys.push((object, stream_key(view)));
            }
        }
        if self.away.is_some() || !self.is_home() {
            self.freeze_away(frozen, &ends)?;
        } else {
            self.begin_home(frozen, ends)?;
        }
        let mut streams = Vec::new();
        for (object, key) in keys {
            let stream = self.streams.get(&key).ok_or_else(|| {
                stopped(11, "VOS-TTY", "a terminal or pipe was opened after the job had moved")
            })?;
            streams.push((object, *stream));
        }
        Ok((frozen.states.clone(), streams))
    }

    fn freeze_away(
        &mut self,
        frozen: &mut Frozen,
        ends: &BTreeMap<StreamKey, OwnedFd>,
    ) -> Step1<()> {
        let Some(away) = &mut self.away else { return Ok(()) };
        let all: Vec<u32> = away.streams().collect();
        for stream in all {
            let end = self.streams.iter().find(|(_, s)| **s == stream);
            let end = end.and_then(|(key, _)| ends.get(key)).map(AsFd::as_fd);
            frozen.states.push(away.freeze(stream, end).map_err(own)?);
        }
        Ok(())
    }

    fn begin_home(&mut self, frozen: &mut Frozen, ends: BTreeMap<StreamKey, OwnedFd>) -> Step1<()> {
        let mut home = self.new_relays().map_err(own)?;
        let pid = frozen.process.pid;
        let group = getpgid(Some(Pid::from_raw(pid))).map_err(own)?;
        let control = match self.sup.job.meta.attached {
            true => JobControl::Of(pid),
            false if group == getpgrp() => JobControl::Own,
            false => JobControl::OwnFor(group.as_raw()),
        };
        self.streams.clear();
        for (stream, (key, fd)) in (1..).zip(ends) {
            let end = match key.2 {
                0 => HomeEnd::Terminal(fd, control),
                1 => HomeEnd::Input(fd),
                _ => HomeEnd::Output(fd),
            };
            frozen.states.push(home.add_home(stream, end).map_err(own)?);
            self.streams.insert(key, stream);
        }
        self.home = Some(home);
        frozen.new_home = true;
        Ok(())
    }

    fn send_parcel(&mut self, target: &Target, parcel: &Parcel) -> Step1<()> {
        let bytes = postcard::to_stdvec(parcel).map_err(own)?;
        let pieces = bytes.chunks(CHUNK).count();
        for (n, piece) in bytes.chunks(CHUNK).enumerate() {
            self.send(target.key, &Msg::Image { last: n + 1 == pieces }, piece);
        }
        Ok(())
    }

    /// After memory was sent without waiting for this answer: the target knew all files.
    fn expect_known(&mut self, target: &Target) -> Step1<()> {
        match self.answer(target, PATIENCE)? {
            (Msg::Unknown(files), _) if files.is_empty() => Ok(()),
            (Msg::Unknown(files), _) => {
                let path = files.first().map_or("", |f| f.path.as_str());
                let text = format!("{path} changed on {} during the move", target.name);
                Err(stopped(11, "VOS-TARGET", text))
            }
            (other, _) => Err(out_of_order(&other)),
        }
    }

    /// Ships the mapped files that the target does not know: opened since the preflight.
    fn answer_unknown(&mut self, target: &Target) -> Step1<()> {
        match self.answer(target, PATIENCE)? {
            (Msg::Unknown(files), _) => {
                self.ship(target, &files)?;
                Ok(())
            }
            (other, _) => Err(out_of_order(&other)),
        }
    }

    fn send_bulk(&mut self, target: &Target, all: &[BulkSource]) -> Step1<()> {
        use std::os::unix::fs::FileExt;
        let mut buf = vec![0; CHUNK];
        for source in all {
            let content = std::fs::File::from(source.fd.try_clone().map_err(own)?);
            for &(start, len) in &source.extents {
                let mut at = start;
                while at < start + len {
                    let want = ((start + len - at) as usize).min(CHUNK);
                    let got = content.read_at(&mut buf[..want], at).map_err(own)?;
                    if got == 0 {
                        break;
                    }
                    let msg = Msg::Bulk { id: source.id, offset: at };
                    self.send(target.key, &msg, &buf[..got]);
                    self.flow(target)?;
                    at += got as u64;
                }
            }
        }
        Ok(())
    }

    fn send_memory(&mut self, target: &Target, pid: i32, process: &ProcessImage) -> Step1<()> {
        let total = process.memory.data_bytes();
        let (mut done, mut shown) = (0, 0);
        let mut buf = vec![0; CHUNK];
        for ranges in chunks(&process.memory.data) {
            let len: u64 = ranges.iter().map(|(s, e)| e - s).sum();
            let piece = &mut buf[..len as usize];
            read_pages(pid, &ranges, piece).map_err(|e| own(format!("reading memory: {e}")))?;
            self.send(target.key, &Msg::Pages(ranges), piece);
            done += len;
            if done - shown > 64 << 20 {
                shown = done;
                self.progress(&target.name, Phase::Copy, String::new(), Some((done, total)));
            }
            self.flow(target)?;
        }
        self.send(target.key, &Msg::PagesEnd, &[]);
        self.progress(&target.name, Phase::Copy, String::new(), Some((done, total)));
        Ok(())
    }

    /// What follows the commit point.
    fn commit(
        &mut self,
        id: MoveId,
        target: &Target,
        frozen: Frozen,
        image: ProcessImage,
        laps: &mut Laps,
    ) -> Step1<MoveReport> {
        let to = target.name.clone();
        reached("committed");
        if self.home.is_some() && self.is_home() {
            // What was typed before reaches the target ahead of the go.
            self.loopback = None;
            self.away = None;
            self.relay_link = Some(target.key);
            if let Some(home) = &mut self.home {
                home.disconnected();
            }
            self.relay(Side::Home, |relays, out| relays.resync(out));
            self.relay(Side::Home, |relays, out| relays.thaw(out));
        }
        self.send(target.key, &Msg::Commit, &[]);
        let text = format!("✔ {to} owns it (epoch {})", self.sup.job.meta.epoch.next());
        self.progress(&to, Phase::Commit, text, None);
        let (processes, resumed) = match self.await_done(id, target) {
            Heard::Done(processes, resumed) => (processes, resumed),
            heard => return self.in_doubt(id, target, frozen, image, heard),
        };
        laps.lap("commit");
        let pause_ms = laps.pause(resumed);
        let wire = self.links.get(&target.key).map_or(0, |p| p.link.bytes_sent());
        self.progress(&to, Phase::Resume, format!("✔ paused {pause_ms:.0} ms"), None);
        let report = MoveReport {
            id,
            job: self.sup.job.meta.name.clone(),
            job_id: self.sup.job.id,
            from: self.sup.node.clone(),
            to,
            epoch: self.sup.job.meta.epoch.next(),
            at_ms: now_ms(),
            pause_ms,
            total_ms: millis(laps.begin.elapsed()),
            parts: laps.parts.clone(),
            bytes_memory: image.memory.data_bytes(),
            bytes_wire: wire,
            processes,
        };
        self.let_go(id, target, &frozen, &image, &report);
        reached("done");
        Ok(report)
    }

    /// Waits for DONE, on this link or on new ones.
    fn await_done(&mut self, id: MoveId, target: &Target) -> Heard {
        let until = Instant::now() + DONE_PATIENCE;
        match self.next(target.key, until) {
            Ok(Some((Msg::Done { processes, resumed_ns }, _))) => {
                return Heard::Done(processes, Duration::from_nanos(resumed_ns));
            }
            Ok(Some((other, _))) => tracing::warn!("instead of DONE: {other:?}"),
            Ok(None) | Err(_) => {}
        }
        while Instant::now() < until {
            match self.repeat_commit(id, target) {
                Heard::Nothing => {}
                heard => return heard,
            }
            let _ = self.pump(Some(Duration::from_millis(300)));
            let _ = self.requests_while_moving();
            self.answer_asks();
        }
        Heard::Nothing
    }

    /// Says the decision again, to whoever has the job at the target.
    fn repeat_commit(&mut self, id: MoveId, target: &Target) -> Heard {
        let service = Service::Job(self.sup.job.id);
        let key = node::tls(&self.sup.state)
            .and_then(|tls| Ok(Link::connect(&target.addr, &tls, target.id, service)?))
            .and_then(|link| self.add_link(link));
        let Ok(key) = key else { return Heard::Nothing };
        let until = Instant::now() + Duration::from_secs(2);
        self.send(key, &Msg::Decided { id, commit: true }, &[]);
        let heard = match self.next(key, until) {
            Ok(Some((Msg::Done { processes, .. }, _))) => Heard::Done(processes, Duration::ZERO),
            Ok(Some((Msg::Gone { .. }, _))) => Heard::Lost,
            _ => Heard::Nothing,
        };
        self.drop_link(key);
        heard
    }

    /// The target has not confirmed: the frozen copy stays, and the decision is repeated for
    /// ever, or until a person decides.
    fn in_doubt(
        &mut self,
        id: MoveId,
        target: &Target,
        frozen: Frozen,
        image: ProcessImage,
        heard: Heard,
    ) -> Step1<MoveReport> {
        let failure = self.doubt(id, target, &heard);
        self.sup.board.state = Some(crate::control::JobState::InDoubt);
        self.sup.board.moving = Some(format!("in doubt: given to {}", target.name));
        for client in
            self.moving.as_mut().map(|m| std::mem::take(&mut m.watchers)).unwrap_or_default()
        {
            self.sup.finish(client, &Reply::Failed(failure.clone()));
        }
        let resolved = self.resolve(id, target);
        self.sup.board.state = None;
        match resolved.map_err(own)? {
            Some(processes) => {
                let report = self.plain_report(id, target, processes);
                self.let_go(id, target, &frozen, &image, &report);
                Ok(report)
            }
            None => {
                // A person knows that the target's copy is dead.
                self.sup.job.meta.epoch = self.sup.job.meta.epoch.next().next();
                if let Err(e) = self.sup.job.save() {
                    tracing::error!("{}: {e}", self.sup.job.dir.path().display());
                }
                self.thaw(&frozen);
                let text = format!("{} was said to be dead, and the move undone", target.name);
                Err(stopped(11, "VOS-COMMIT-SENT", text))
            }
        }
    }

    /// The words of a move in doubt.
    fn doubt(&self, id: MoveId, target: &Target, heard: &Heard) -> MoveFailure {
        let (name, here) = (&self.sup.job.meta.name, &self.sup.node);
        let to = &target.name;
        let sentence = match heard {
            Heard::Lost => format!(
                "{here} has given {name} to {to}, and {to} does not hold it any more: its supervisor there has died, or {name} has ended there. The copy on {here} is frozen; it will run again only after: vosrun recover {name} --dead {to}"
            ),
            _ => format!(
                "{here} has given {name} to {to}, which has not confirmed. It will NOT run on {here} again by itself; {to} runs it when it hears from {here}."
            ),
        };
        let code = "VOS-COMMIT-SENT".into();
        MoveFailure { id: Some(id), exit: 12, code, sentence, findings: Vec::new() }
    }

    /// Repeats the decision until the target confirms (its processes) or `recover` is asked.
    fn resolve(&mut self, id: MoveId, target: &Target) -> Result<Option<Vec<ProcessStatus>>> {
        let peer = (target.id, target.name.clone());
        loop {
            if let Heard::Done(processes, _) = self.repeat_commit(id, target) {
                return Ok(Some(processes));
            }
            let until = Instant::now() + Duration::from_secs(1);
            while Instant::now() < until {
                self.pump(Some(Duration::from_millis(200)))?;
                // The journal says so before the person is told.
                if self.recovered(&peer.1, |m| m.write_journal(id, Step::Abort, &peer)) {
                    return Ok(None);
                }
                self.requests_while_moving()?;
                self.answer_asks();
            }
        }
    }

    /// Targets in doubt may ask while we repeat; whoever is not needed any more goes.
    fn answer_asks(&mut self) {
        for key in self.links.keys().copied().collect::<Vec<_>>() {
            while let Some((msg, _)) = self.pop(key) {
                match msg {
                    Msg::Ask(id) => self.tell_decision(key, id),
                    other => tracing::debug!("while in doubt: {other:?}"),
                }
            }
            if self.links.get(&key).is_some_and(|p| p.over.is_some()) {
                self.drop_link(key);
            }
        }
    }

    fn plain_report(
        &self,
        id: MoveId,
        target: &Target,
        processes: Vec<ProcessStatus>,
    ) -> MoveReport {
        MoveReport {
            id,
            job: self.sup.job.meta.name.clone(),
            job_id: self.sup.job.id,
            from: self.sup.node.clone(),
            to: target.name.clone(),
            epoch: self.sup.job.meta.epoch.next(),
            at_ms: now_ms(),
            pause_ms: 0.0,
            total_ms: 0.0,
            parts: Vec::new(),
            bytes_memory: 0,
            bytes_wire: 0,
            processes,
        }
    }

    /// The target owns the job: the copy here goes, and this supervisor becomes the home
    /// agent or ends.
    fn let_go(
        &mut self,
        id: MoveId,
        target: &Target,
        frozen: &Frozen,
        image: &ProcessImage,
        report: &MoveReport,
    ) {
        let peer = (target.id, target.name.clone());
        if let Err(e) = self.write_journal(id, Step::Done, &peer) {
            tracing::warn!("{e:#}");
        }
        if let Some(peer) = self.links.get_mut(&target.key) {
            peer.link.expect_few();
        }
        self.note(report.clone());
        self.send(target.key, &Msg::Report(Box::new(report.clone())), &[]);
        let pid = frozen.process.pid;
        let stays = self.sup.job.meta.attached && self.init.is_none() && self.standin.is_none();
        // Nothing runs here any more that could take them.
        let mut late = Vec::new();
        if stays {
            self.standin = StandIn::make(&mut self.sup, &frozen.process, image)
                .inspect_err(|e| tracing::error!("stand-in of process {pid}: {e:#}"))
                .ok();
        } else {
            late = signals::late(pid, image);
            self.kill_copy(&frozen.process);
        }
        if self.sup.session.ended == Some(Exit::Signal(libc::SIGKILL)) {
            late.push(libc::SIGKILL);
        }
        self.held.clear();
        self.frozen = false;
        self.sup.session.leave();
        self.sup.end = None;
        self.init = None;
        self.keep_needs();
        self.streams.clear();
        self.restored.clear();
        self.sup.job.meta.epoch = self.sup.job.meta.epoch.next();
        self.sup.job.meta.host = None;
        if let Err(e) = self.sup.job.save() {
            tracing::warn!("{}: {e}", self.sup.job.dir.path().display());
        }
        if self.is_home() {
            self.become_agent(target, report.processes.clone());
            if let Some(signal) = image.stopped.filter(|_| self.standin.is_none()) {
                self.stop_with_far_job(signal);
            }
            late.into_iter().for_each(|signal| self.signal_anywhere(signal));
        } else {
            late.into_iter().for_each(|s| self.send(target.key, &Msg::LateSignal(s), &[]));
            let to = Some((target.id, target.name.clone()));
            let epoch = self.sup.job.meta.epoch;
            self.say(Msg::Report(Box::new(report.clone())), &[]);
            self.say(Msg::Gone { to, epoch }, &[]);
            self.drop_link(target.key);
            self.away = None;
            // Its clients get their answers; then there is nothing to do here.
            self.sup.end = Some(Exit::Code(0));
            self.left = true;
            self.sup.keep_folder = true;
        }
    }

    fn become_agent(&mut self, target: &Target, processes: Vec<ProcessStatus>) {
        self.sup.away = true;
        self.sup.board.state = Some(crate::control::JobState::Away);
        self.sup.board.moved_to = Some(target.name.clone());
        self.sup.board.remote = processes;
        self.relay_link = self.links.contains_key(&target.key).then_some(target.key);
        self.agent = Some(Agent::new(target.id, target.name.clone()));
        self.forward.relinked();
    }

    /// Ends the copy that stayed behind, and waits until nothing is left of it. A leader's end
    /// is reported after those of its other threads.
    fn kill_copy(&mut self, frozen: &FrozenProcess) {
        let victim = self.init.unwrap_or(frozen.pid);
        if let Err(e) = raw::kill(victim, libc::SIGKILL) {
            tracing::warn!("process {victim} was not ended: {e}");
        }
        for thread in frozen.threads.iter().rev() {
            while let Ok(Some(wait)) = crate::tracer::stop::wait(thread.tid, true) {
                if matches!(wait.stop, Stop::Exited(_)) {
                    break;
                }
            }
        }
    }

    /// A person at home wants a job moved that is elsewhere: its host is asked.
    fn pass_on(&mut self, client: Option<ClientKey>, to: &str) {
        let Some(client) = client else { return };
        match self.relay_link {
            Some(link) if self.asked.is_none() => self.ask_host(client, link, to),
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

impl Stopped {
    /// A failure that has a sentence already.
    fn said(self, sentence: String) -> MoveFailure {
        let code = self.code.to_owned();
        MoveFailure { id: None, exit: self.exit, code, sentence, findings: self.findings }
    }
}

fn is_same_terminal(view: &FdView, (major, minor): (u32, u32)) -> bool {
    let same = (libc::major(view.rdev), libc::minor(view.rdev)) == (major, minor);
    same && crate::migrate::resource::fd::is_terminal(view)
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
    let mut text = format!("{msg:?}");
    text.truncate(40);
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

/// The clocks as the job sees them: ours, moved by the difference of the time namespaces.
fn job_clocks(pid: i32) -> std::io::Result<crate::migrate::image::Clocks> {
    use crate::migrate::skeleton::offsets;
    let mut now = own_clocks()?;
    let (own, theirs) = (offsets("self")?, offsets(&pid.to_string())?);
    now.monotonic += theirs.0 - own.0;
    now.boottime += theirs.1 - own.1;
    Ok(now)
}

/// Ranges in pieces of at most [`CHUNK`] bytes.
fn chunks(ranges: &[(u64, u64)]) -> Vec<Vec<(u64, u64)>> {
    const MOST_RANGES: usize = 512;
    let mut all = Vec::new();
    let (mut piece, mut len) = (Vec::new(), 0u64);
    for &(start, end) in ranges {
        let mut at = start;
        while at < end {
            let to = end.min(at + (CHUNK as u64 - len));
            piece.push((at, to));
            len += to - at;
            at = to;
            if len == CHUNK as u64 || piece.len() == MOST_RANGES {
                all.push(std::mem::take(&mut piece));
                len = 0;
            }
        }
    }
    if !piece.is_empty() {
        all.push(piece);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_into_chunks() {
        let all = chunks(&[(0, 4096), (8192, 8192 + (3 << 20))]);
        let bytes: u64 = all.iter().flatten().map(|(s, e)| e - s).sum();
        assert_eq!(bytes, 4096 + (3 << 20));
        assert!(all.iter().all(|c| c.iter().map(|(s, e)| e - s).sum::<u64>() <= CHUNK as u64));
        assert!(chunks(&[]).is_empty());
    }
}
