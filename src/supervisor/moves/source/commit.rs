//! From the decision on: the target is told, for ever if need be, and the copy here goes.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::agent::Agent;
use super::super::hook::reached;
use super::super::signals;
use super::super::standin::StandIn;
use super::super::status::{owns_text, resumed_text};
use super::super::{Mover, Side};
use super::{millis, own, stopped, Frozen, Laps, Step1, Target};
use crate::control::{MoveFailure, MoveReport, Phase, ProcessStatus, Reply};
use crate::ids::MoveId;
use crate::journal::Step;
use crate::migrate::freeze::FrozenProcess;
use crate::migrate::image::{JobImage, ProcessImage};
use crate::migrate::late;
use crate::migrate::message::Msg;
use crate::migrate::resource::fd::pty::queues::Taken;
use crate::migrate::transport::{Link, Service};
use crate::node;
use crate::supervisor::job::now_ms;
use crate::syscalls::translate::numbers;
use crate::tracer::{raw, Exit, Stop};

/// After the commit: so long the command waits before it says "in doubt".
const DONE_PATIENCE: Duration = Duration::from_secs(10);

/// What the target said after the commit.
enum Heard {
    /// It runs there, for so long already, without what these sentences tell.
    Done(Vec<ProcessStatus>, Duration, Vec<String>),
    /// It does not have the job (any more).
    Lost,
    Nothing,
}

impl Mover {
    /// What follows the commit point.
    pub(super) fn commit(
        &mut self,
        id: MoveId,
        target: &Target,
        frozen: Frozen,
        image: JobImage,
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
        release_locks(&frozen, &image);
        self.be_patient(target.key, 0);
        self.send(target.key, &Msg::Commit, &[]);
        let text = owns_text(&to, self.sup.job.meta.epoch.next());
        self.progress(&to, Phase::Commit, text, None);
        let (processes, resumed, lost) = match self.await_done(id, target) {
            Heard::Done(processes, resumed, lost) => (processes, resumed, lost),
            heard => return self.in_doubt(id, target, frozen, image, heard),
        };
        laps.lap("commit");
        let pause_ms = laps.pause(resumed);
        let wire = self.links.get(&target.key).map_or(0, |p| p.link.bytes_sent());
        self.progress(&to, Phase::Resume, resumed_text(pause_ms), None);
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
            bytes_memory: image.data_bytes(),
            bytes_wire: wire,
            processes,
            lost,
        };
        self.let_go(id, target, frozen, &image, &report);
        reached("done");
        Ok(report)
    }

    /// Waits for DONE, on this link or on new ones.
    fn await_done(&mut self, id: MoveId, target: &Target) -> Heard {
        let until = Instant::now() + DONE_PATIENCE;
        match self.next(target.key, until) {
            Ok(Some((Msg::Done { processes, resumed_ns, lost }, _))) => {
                return Heard::Done(processes, Duration::from_nanos(resumed_ns), lost);
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
            Ok(Some((Msg::Done { processes, lost, .. }, _))) => {
                Heard::Done(processes, Duration::ZERO, lost)
            }
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
        image: JobImage,
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
            Some((processes, lost)) => {
                let report = self.plain_report(id, target, processes, lost);
                self.let_go(id, target, frozen, &image, &report);
                Ok(report)
            }
            None => {
                // A person knows that the target's copy is dead.
                self.sup.job.meta.epoch = self.sup.job.meta.epoch.next().next();
                if let Err(e) = self.sup.job.save() {
                    tracing::error!("{}: {e}", self.sup.job.dir.path().display());
                }
                take_locks_back(&frozen, &image);
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

    /// Repeats the decision until the target confirms (its processes, and what they have lost) or
    /// `recover` is asked.
    fn resolve(
        &mut self,
        id: MoveId,
        target: &Target,
    ) -> Result<Option<(Vec<ProcessStatus>, Vec<String>)>> {
        let peer = (target.id, target.name.clone());
        loop {
            if let Heard::Done(processes, _, lost) = self.repeat_commit(id, target) {
                return Ok(Some((processes, lost)));
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
        lost: Vec<String>,
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
            lost,
        }
    }

    /// The target owns the job: the copy here goes, and this supervisor becomes the home
    /// agent or ends.
    fn let_go(
        &mut self,
        id: MoveId,
        target: &Target,
        frozen: Frozen,
        image: &JobImage,
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
        let root = image.processes.first().zip(frozen.job.processes.first());
        let stays = self.sup.job.meta.attached && self.init.is_none() && self.standin.is_none();
        // Nothing runs here any more that could take them.
        let mut late = Vec::new();
        for (image, process) in image.processes.iter().zip(&frozen.job.processes).skip(1) {
            let pid = Some(image.ids.pid);
            for signal in signals::late(process.pid, image) {
                self.send(target.key, &Msg::LateSignal { pid, signal }, &[]);
            }
        }
        match root.filter(|_| stays) {
            Some((image, process)) => {
                self.standin = StandIn::make(&mut self.sup, process, image)
                    .inspect_err(|e| tracing::error!("stand-in of process {}: {e:#}", process.pid))
                    .ok();
                self.kill_copy(&frozen.job.processes[1..]);
                if let Some(standin) = &mut self.standin {
                    standin.keep(frozen.ptys.into_iter().map(Taken::into_master));
                }
            }
            None => {
                late = root.map_or_else(Vec::new, |(image, p)| signals::late(p.pid, image));
                self.kill_copy(&frozen.job.processes);
            }
        }
        // What would be found here is the job's no more.
        super::ipc::remove(&frozen.ipc, &frozen.queues);
        if self.sup.session.ended == Some(Exit::Signal(libc::SIGKILL)) {
            late.push(libc::SIGKILL);
        }
        self.held.clear();
        self.frozen = false;
        self.sup.session.leave();
        numbers::end();
        self.sup.end = None;
        self.init = None;
        self.keep_needs();
        self.streams.clear();
        self.dialing = None;
        self.restored.clear();
        self.sup.job.meta.epoch = self.sup.job.meta.epoch.next();
        self.sup.job.meta.host = None;
        if let Err(e) = self.sup.job.save() {
            tracing::warn!("{}: {e}", self.sup.job.dir.path().display());
        }
        if self.is_home() {
            self.become_agent(target, report.processes.clone());
            let stopped = root.and_then(|(image, _)| image.stopped);
            if let Some(signal) = stopped.filter(|_| self.standin.is_none()) {
                self.stop_with_far_job(signal);
            }
            late.into_iter().for_each(|signal| self.signal_anywhere(signal));
        } else {
            for signal in late {
                self.send(target.key, &Msg::LateSignal { pid: None, signal }, &[]);
            }
            let to = Some((target.id, target.name.clone()));
            let epoch = self.sup.job.meta.epoch;
            self.say(Msg::Report(Box::new(report.clone())), &[]);
            self.say(Msg::Gone { to, epoch }, &[]);
            self.drop_link(target.key);
            self.away = None;
            // Its clients get their answers; then there is nothing to do here.
            self.sup.end = Some(super::super::End::Exited(Exit::Code(0)));
            self.left = true;
            self.sup.keep_folder = true;
        }
    }

    fn become_agent(&mut self, target: &Target, processes: Vec<ProcessStatus>) {
        self.joins.only = false;
        self.sup.away = true;
        self.sup.board.state = Some(crate::control::JobState::Away);
        self.sup.board.moved_to = Some(target.name.clone());
        self.sup.board.remote = processes;
        self.relay_link = self.links.contains_key(&target.key).then_some(target.key);
        self.agent = Some(Agent::new(target.id, target.name.clone()));
        self.forward.relinked();
    }

    /// Ends processes of the copy that stayed behind, and waits until nothing is left of them. A
    /// leader's end is reported after those of its other threads.
    fn kill_copy(&mut self, processes: &[FrozenProcess]) {
        let all = processes.iter().map(|process| process.pid);
        let victims: Vec<i32> = self.init.into_iter().chain(all).collect();
        for victim in victims {
            match raw::kill(victim, libc::SIGKILL) {
                // The end of its pid 1 has ended it.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(e) => tracing::warn!("process {victim} was not ended: {e}"),
                Ok(()) => {}
            }
        }
        for thread in processes.iter().flat_map(|process| process.threads.iter().rev()) {
            while let Ok(Some(wait)) = crate::tracer::stop::wait(thread.tid, true) {
                if matches!(wait.stop, Stop::Exited(_)) {
                    break;
                }
            }
        }
    }
}

/// The copy here lets its locks go, so that the job can take them at the target. One that it
/// keeps goes with it.
fn release_locks(frozen: &Frozen, image: &JobImage) {
    for (process, image) in with_locks(frozen, image) {
        if let Err(e) = late::release(process.pid, image) {
            tracing::warn!("{e}");
        }
    }
}

/// The copy here is the job again. The end of a lease has ended its signals as well.
fn take_locks_back(frozen: &Frozen, image: &JobImage) {
    let all: Vec<_> = frozen.job.processes.iter().map(|p| p.pid).zip(&image.processes).collect();
    if let Err(e) = late::drive(&all, &image.files) {
        tracing::error!("signals of descriptors: {e}");
    }
    for (process, image) in with_locks(frozen, image) {
        let mut locks = image.locks.clone();
        let taken = late::open(process.pid, image, &mut locks)
            .and_then(|_| late::take(process.pid, image, &locks));
        match taken {
            Ok(missed) => missed.iter().for_each(|(lock, e)| {
                tracing::error!("process {} has lost its {lock}: {e}", image.ids.pid);
            }),
            Err(e) => tracing::error!("process {} has lost its locks: {e}", image.ids.pid),
        }
    }
}

fn with_locks<'a>(
    frozen: &'a Frozen,
    image: &'a JobImage,
) -> impl Iterator<Item = (&'a FrozenProcess, &'a ProcessImage)> {
    let all = frozen.job.processes.iter().zip(&image.processes);
    all.filter(|(_, image)| !image.locks.is_empty())
}
