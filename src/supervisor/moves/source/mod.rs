//! The side that gives the job up. See [`crate::migrate::message`] for the order of messages.

use std::time::{Duration, Instant};

use anyhow::Result;

mod bequeath;
mod commit;
mod freezing;
mod ipc;
mod look;
mod outcome;
mod send;

use super::hook::reached;
use super::{LinkKey, Mover, Moving, CHUNK};
use crate::control::{MoveFailure, MoveReport, Phase, Reply};
use crate::ids::{MoveId, NodeId};
use crate::journal::Step;
use crate::migrate::family;
use crate::migrate::image::JobImage;
use crate::migrate::message::{Msg, Verdict};
use crate::migrate::preflight::{Forwarded, Local};
use crate::migrate::resource::fd::regular::Named;
use crate::migrate::resource::memory::FileId;
use crate::migrate::transport::{Link, Service};
use crate::migrate::tree;
use crate::node;
use crate::supervisor::serve::ClientKey;
use crate::tracer::raw;
use freezing::job_clocks;
pub(in crate::supervisor::moves) use freezing::Frozen;
use look::{Patience, PASSING};
use outcome::{
    cancelled, fd_stopped, millis, out_of_order, part_stopped, refuse_blockers, refused, Laps,
};
pub(in crate::supervisor::moves) use outcome::{own, stopped, Step1, Stopped};

/// Without a sign of the target for so long a move is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The target may take longer to build a large job.
const READY_PATIENCE: Duration = Duration::from_secs(120);

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
        self.recall_all()?;
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
        let until = Instant::now() + PATIENCE;
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
        self.be_patient(target.key, self.sup.session.processes().len());
        let mut frozen = None;
        let decided = self.until_ready(id, target, local, laps, &mut frozen).and_then(|image| {
            still_leased(frozen.as_ref(), &image)?;
            self.decide(id, &peer, target, frozen.as_ref()).map(|()| image)
        });
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
        let mut plan = self.plan(laps)?;
        let mut handed = self.prepare(target, &mut plan, verdict.translated)?;
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
            let members = family::members_and_shares(&pids).map_err(part_stopped)?;
            if members != plan.members {
                tree::unshareable(&members).map_or(Ok(()), |finding| Err(refused(finding)))?;
                plan.members = members;
                handed = self.prepare(target, &mut plan, translated)?;
            }
            match self.send_frozen(target, frozen, &agreed, (&plan, &handed), laps) {
                // Nothing has been sent yet; the program is about to close it.
                Err(s)
                    if (PASSING.contains(&s.code) || s.code == send::KILLED)
                        && !patience.is_over() => {}
                done => return done,
            }
            if let Some(frozen) = held.take() {
                self.thaw(&frozen);
            }
            laps.parts.clear();
            self.pump(Some(Duration::from_millis(10))).map_err(own)?;
            self.requests_while_moving().map_err(own)?;
            // The ptys are no longer those of the frame, perhaps.
            let now = self.plan(laps)?;
            if !now.has_terminals_of(&plan) {
                plan = now;
                handed = self.prepare(target, &mut plan, translated)?;
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

/// Nobody has opened the file of a lease since the job was frozen: who did waits for the program.
fn still_leased(frozen: Option<&Frozen>, image: &JobImage) -> Step1<()> {
    let processes = frozen.into_iter().flat_map(|frozen| &frozen.job.processes);
    for (process, image) in processes.zip(&image.processes) {
        if let Some(lock) = image.locks.iter().find(|lock| lock.is_being_broken(process.pid)) {
            let text = format!("another program wants the file: the {lock} is being broken");
            return Err(stopped(11, "VOS-LEASE-BREAK", text));
        }
    }
    Ok(())
}

/// Standard streams that are files of this node only are relayed too.
fn forward_files(verdict: &Verdict, open: &[Named], forwarded: &mut Forwarded) {
    for place in &verdict.relay {
        let named = open.iter().find(|named| (named.pid, named.fd) == *place);
        forwarded.extend(named.map(|named| (named.identity.dev, named.identity.ino)));
    }
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
