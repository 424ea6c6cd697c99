//! What is known here of the running job, and what the target says to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::super::{stream_key, Mover};
use super::outcome::{out_of_order, own, part_stopped, refuse_blockers, stopped, Step1};
use super::{Target, PATIENCE};
use crate::control::{Finding, MoveFailure, Severity};
use crate::ids::MoveId;
use crate::migrate::apart::Common;
use crate::migrate::files::Files;
use crate::migrate::freeze::Watched;
use crate::migrate::leaving;
use crate::migrate::message::{Msg, Verdict, PROTOCOL};
use crate::migrate::preflight::{self, Forwarded, Local};
use crate::migrate::raw::Shared;
use crate::migrate::resource::fd::inet;
use crate::migrate::resource::fd::mqueue::PASSING as MQ_BUSY;
use crate::migrate::resource::fd::pty::PASSING as PTY_BUSY;
use crate::migrate::resource::fd::regular::Named;
use crate::migrate::resource::fd::tcp::PASSING as TCP_BUSY;
use crate::migrate::resource::fd::{FdError, FdView};
use crate::migrate::resource::filters::{self, UNSEEN as UNSEEN_FILTERS};
use crate::migrate::resource::keyrings;
use crate::migrate::resource::memory::FileId;
use crate::migrate::shares::Sharing;
use crate::migrate::terminals;
use crate::migrate::thread_files;
use crate::syscalls::translate::numbers;

/// Files of /proc and /sys are open for a moment as a rule, a first thread that has ended is
/// followed by the others, requests end, messages are taken, connections are made and accepted,
/// sockets are connected, or closed when their connection is over, handlers of signals return, and
/// ptys and their sessions change: these are waited for.
pub(super) const PASSING: [&str; 12] = [
    "VOS-AIO-BUSY",
    "VOS-INOTIFY-EVENTS",
    "VOS-LEADER",
    "VOS-LEASE-BREAK",
    MQ_BUSY,
    "VOS-PROC-FD",
    "VOS-TCP",
    "VOS-UNIX-BACKLOG",
    leaving::CODE,
    PTY_BUSY,
    TCP_BUSY,
    UNSEEN_FILTERS,
];
/// Compilers and sort(1) make files that they remove again.
pub(super) const LOCAL_FILE: &str = "VOS-FILE-LOCAL";
pub(super) const MOMENT: Duration = Duration::from_secs(1);
/// A busy machine may take long for each look.
pub(super) const LOOKS: u32 = 20;

/// How long a state that passes is waited for.
pub(super) struct Patience {
    until: Instant,
    looks: u32,
}

impl Patience {
    pub(super) fn begin() -> Self {
        Self { until: Instant::now() + MOMENT, looks: 0 }
    }

    /// One more look was in vain: was it the last?
    pub(super) fn is_over(&mut self) -> bool {
        self.looks += 1;
        self.looks >= LOOKS && Instant::now() > self.until
    }
}

impl Mover {
    /// What hinders any move of the running job.
    pub(in crate::supervisor::moves) fn local_blockers(&mut self) -> Vec<Finding> {
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
    pub(super) fn look_again(&mut self) -> Step1<Local> {
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
    pub(super) fn look(&mut self) -> Step1<Local> {
        match self.look_once() {
            Err(_) if self.was_closed()? => self.look_once(),
            done => done,
        }
    }

    /// A process has closed itself while it was looked at (PR_SET_DUMPABLE): the job is frozen now.
    pub(super) fn was_closed(&mut self) -> Step1<bool> {
        let closed = self.early_freeze.is_none() && !self.are_open(&self.pids()).map_err(own)?;
        if closed {
            self.early_freeze = Some(self.freeze()?);
        }
        Ok(closed)
    }

    fn look_once(&mut self) -> Step1<Local> {
        if let Some(finding) = preflight::leader_ended(self.sup.session.root) {
            return Ok(without_leader(finding));
        }
        self.was_closed()?;
        let pids = self.pids();
        let files = match self.files(&pids) {
            Ok(files) => files,
            // What is left of a first thread that has ended since may be root's only.
            Err(e) => match pids.iter().find_map(|pid| preflight::leader_ended(*pid)) {
                Some(finding) => return Ok(without_leader(finding)),
                None => return Err(own(e)),
            },
        };
        self.learn_accepted(&files);
        let known = (!self.has_lost_relays()).then(|| self.known_forwarded());
        let common = self.common().busy(self.sup.session.submitting());
        let mut local = preflight::local(&pids, &files, known.as_ref(), &common).map_err(own)?;
        let (shared, untranslated) =
            preflight::shared_tasks(&pids, &self.settled(&pids)).map_err(part_stopped)?;
        local.findings.extend(shared);
        local.open.untranslated.extend(untranslated);
        local.findings.extend(self.check_apart(&files, &pids).map_err(own)?);
        local.findings.extend(self.made_away(&files));
        local.findings.extend(self.choose_ipc(&pids, false).err());
        local.open.untranslated.extend(filters::untranslated(self.sup.session.handles.filters()));
        local.findings.extend(self.sup.session.handles.has_keys().then(keyrings::warning));
        if let Err(FdError::Refused(finding)) = terminals::of(&files, self.sup.session.root) {
            local.findings.push(*finding);
        }
        Ok(local)
    }

    /// A connection or UDP socket that the job has made away from home, where it cannot be kept.
    pub(super) fn made_away(&self, files: &Files) -> Option<Finding> {
        if self.is_home() {
            return None;
        }
        let known = |view: &FdView| self.streams.contains_key(&stream_key(view));
        let mut all = files.views.objects.iter();
        let found = all.find(|view| !known(view) && inet::is_kept(view, files));
        found.map(inet::made_away)
    }

    /// Those of the processes that are not in the middle of vfork(2), and not too new to tell.
    pub(super) fn settled(&self, pids: &[i32]) -> Vec<i32> {
        let busy = self.sup.session.in_vfork();
        let is_settled = |pid: &i32| !busy.contains(pid) && self.sup.session.announced(*pid);
        pids.iter().copied().filter(is_settled).collect()
    }

    /// What all threads of the job have.
    pub(super) fn common(&self) -> Common {
        let like = self.init.unwrap_or(std::process::id() as i32);
        let handles = &self.sup.session.handles;
        let translated = self.sup.session.translation.is_some();
        Common::new(u64::from(self.sup.job.meta.filtered || translated), like)
            .knowing(handles.submitted().clone(), handles.filters().clone())
            .filtered_more(self.sup.session.signalfds.filters())
    }

    /// Host pids of the job's processes, the first one first.
    pub(in crate::supervisor::moves) fn pids(&self) -> Vec<i32> {
        let root = self.sup.session.root;
        let others = self.sup.session.processes().into_iter().filter(|pid| *pid != root);
        std::iter::once(root).chain(others).collect()
    }

    pub(in crate::supervisor::moves) fn files(&self, pids: &[i32]) -> std::io::Result<Files> {
        let apart: Vec<i32> = self.apart(pids)?.into_iter().map(|(_, tid)| tid).collect();
        Files::read_with(pids, &apart, |pid, fd| self.sup.session.handles.annotation(pid, fd))
    }

    /// Threads of these processes that have a descriptor table apart from their process: both.
    pub(in crate::supervisor::moves) fn apart(
        &self,
        pids: &[i32],
    ) -> std::io::Result<Vec<(i32, i32)>> {
        let threads = self.sup.session.tasks.values().map(|task| (task.pid, task.tid));
        let pids: BTreeSet<i32> = pids.iter().copied().collect();
        thread_files::apart(threads.filter(|(pid, tid)| pid != tid && pids.contains(pid)))
    }

    /// What hinders threads with a table of their own.
    pub(super) fn check_apart(
        &self,
        files: &Files,
        pids: &[i32],
    ) -> std::io::Result<Option<Finding>> {
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
    pub(in crate::supervisor::moves) fn has_lost_relays(&self) -> bool {
        self.away.is_none() && !self.is_home()
    }

    /// Descriptions that are the local ends of relays.
    pub(in crate::supervisor::moves) fn known_forwarded(&self) -> Forwarded {
        self.streams.keys().map(|(dev, ino, _)| (*dev, *ino)).collect()
    }

    /// The answer to `check`: findings, and what is fine.
    pub(in crate::supervisor::moves) fn judge(
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
    pub(super) fn ask_verdict(
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
            let hidden = pids.iter().copied().filter(|pid| numbers::is_hidden(*pid));
            hello.untranslated.extend(closed.chain(hidden).map(preflight::undumpable));
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
    pub(super) fn judged(
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
    pub(super) fn add_hashes(&self, open: &mut Vec<Named>, unsure: &[u32]) {
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
}

/// Nothing more can be told of a job when a first thread has ended.
fn without_leader(finding: Finding) -> Local {
    let (forwarded, open) = (Forwarded::new(), preflight::Open::default());
    Local { findings: vec![finding], forwarded, open }
}

/// Are there blockers, and all of these codes?
pub(super) fn is_passing(findings: &[Finding], codes: &[&str]) -> bool {
    let mut blockers = findings.iter().filter(|f| f.severity == Severity::Blocker).peekable();
    blockers.peek().is_some() && blockers.all(|f| codes.contains(&f.code.as_str()))
}
