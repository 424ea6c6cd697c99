//! Prepared: the wait for the decision, and the job's first moments here.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use super::super::hook::reached;
use super::super::signals::Forward;
use super::super::{LinkKey, Mover, Peer, Side};
use super::stopping::Ways;
use super::{Prepared, Restored};
use crate::control::{MoveReport, ProcessStatus};
use crate::ids::{MoveId, NodeId};
use crate::journal::Step;
use crate::migrate::capture;
use crate::migrate::late;
use crate::migrate::message::Msg;
use crate::migrate::resource::attributes::is_dumpable;
use crate::migrate::resource::{timers, PartError};
use crate::migrate::restore::NewThread;
use crate::migrate::transport::{Link, Service};
use crate::node;
use crate::proxy::Loopback;
use crate::supervisor::job::{now_ms, start_time};
use crate::supervisor::moves::dumpable::make_undumpable;
use crate::supervisor::moves::homing::Homing;
use crate::supervisor::session::{Session, Way};
use crate::syscalls::translate::numbers;

/// In doubt: pause between two questions to the source.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// In doubt: a source that has said nothing for so long is asked again over a new connection.
const SILENCE: Duration = Duration::from_secs(5);

/// How a wait for the decision ended.
pub(super) enum Decision {
    Commit(LinkKey),
    Abort,
}

/// A job that is to stop, or to enter its calls again, does so in far less.
const SOON: Duration = Duration::from_secs(1);

impl Mover {
    /// PREPARED: only the source's word counts, for ever.
    pub(super) fn await_decision(
        &mut self,
        id: MoveId,
        first: LinkKey,
        peer: &(NodeId, String),
    ) -> Result<Decision> {
        let prepared = Instant::now();
        let mut next_ask = prepared;
        let mut asking: Option<(LinkKey, Instant)> = None;
        loop {
            for key in self.links.keys().copied().collect::<Vec<_>>() {
                while let Some((msg, payload)) = self.pop(key) {
                    match msg {
                        Msg::Commit if key == first => return Ok(Decision::Commit(key)),
                        Msg::Relay(_) => self.early.push_back((msg, payload)),
                        Msg::Decided { id: of, commit }
                            if of == id && self.peer_of(key) == Some(peer.0) =>
                        {
                            return Ok(match commit {
                                true => Decision::Commit(key),
                                false => Decision::Abort,
                            });
                        }
                        Msg::Abort(_) if key == first => return Ok(Decision::Abort),
                        other => self.hear(key, other)?,
                    }
                }
            }
            if self.recovered(&peer.1, |_| Ok(())) {
                return Ok(Decision::Commit(first));
            }
            let lost = self.links.get(&first).is_none_or(|p| p.over.is_some());
            let silent = lost || prepared.elapsed() > SILENCE;
            let over = |key| self.links.get(&key).is_none_or(|p: &Peer| p.over.is_some());
            let waits = asking.is_some_and(|(key, since)| !over(key) && since.elapsed() < SILENCE);
            if silent && !waits && Instant::now() >= next_ask {
                next_ask = Instant::now() + ASK_EVERY;
                if let Some((old, _)) = asking.take() {
                    self.drop_link(old);
                }
                asking = self.ask(id, peer).map(|key| (key, Instant::now()));
            }
            self.pump(Some(Duration::from_millis(200)))?;
            self.requests_while_moving()?;
        }
    }

    /// Asks the source what it decided, over a new connection.
    fn ask(&mut self, id: MoveId, peer: &(NodeId, String)) -> Option<LinkKey> {
        let known = node::peers::by_id(&self.sup.state, peer.0).ok()??;
        let tls = node::tls(&self.sup.state).ok()?;
        let service = Service::Job(self.sup.job.id);
        let link = Link::connect(&known.addr, &tls, known.id, service).ok()?;
        let key = self.add_link(link).ok()?;
        self.send(key, &Msg::Ask(id), &[]);
        Some(key)
    }

    /// The commit has come: this node owns the job, which runs.
    pub(super) fn own(
        &mut self,
        id: MoveId,
        key: LinkKey,
        peer: &(NodeId, String),
        prepared: Prepared,
    ) -> Result<()> {
        let Prepared {
            mut processes,
            skeleton,
            translation,
            annotations,
            signals_taken,
            renames,
            arrived,
            missed,
        } = prepared;
        let Some(root) = processes.first() else { bail!("an image without a process") };
        let pid = root.pid;
        // Who looks after this supervisor's death finds by this whether the job lives.
        self.sup.job.meta.pid = root.image.ids.pid;
        self.sup.job.meta.host = start_time(pid).ok().map(|start| (pid, start));
        if let Err(e) = self.sup.job.note() {
            tracing::warn!("{}: {e}", self.sup.job.dir.path().display());
        }
        // A journal that cannot be written does not stop a job that has no other copy.
        if let Err(e) = self.write_journal(id, Step::Own, peer) {
            tracing::error!("{e:#}");
        }
        reached("owned");
        let lost = [missed, take_locks(&mut processes)].concat();
        let Some(root) = processes.first() else { bail!("an image without a process") };
        let home = self.is_home();
        self.agent = None;
        self.sup.away = false;
        self.sup.board.state = None;
        self.sup.board.moved_to = None;
        self.sup.board.remote.clear();
        self.init = Some(skeleton.init);
        self.sup.session.leave();
        self.sup.session.translation = translation;
        self.sup.session.begin(pid, root.tids());
        for process in &processes[1..] {
            self.sup.session.add_process(process.pid, process.tids());
        }
        if self.sup.session.translation.is_some() {
            let of = |p: &Restored| (p.pid, p.signalfds.clone());
            self.sup.session.signalfds = processes.iter().map(of).collect();
        }
        self.take_up_seen(&processes);
        for process in &processes {
            let insn = capture::syscall_insn(process.pid, &process.image.memory);
            insn.into_iter().for_each(|at| self.sup.session.note_insn(process.pid, at));
        }
        for (index, fd, annotation) in annotations {
            let holder = processes.get(index as usize);
            if let (Some(holder), Ok(annotation)) = (holder, postcard::from_bytes(&annotation)) {
                self.sup.session.handles.take_up(holder.pid, fd, annotation);
            }
        }
        self.join_relays(home, key, peer);
        self.forward.taken(signals_taken);
        let waiting = self.forward.rest();
        self.forward = Forward::at(signals_taken + waiting.len() as u64);
        self.sup.job.meta.epoch = self.sup.job.meta.epoch.next();
        for e in renames.apply() {
            tracing::error!("{e}");
        }
        self.resume_all(&processes)?;
        let resumed = Instant::now();
        waiting.into_iter().for_each(|signal| self.signal_job(signal));
        if let Err(e) = self.sup.job.save() {
            tracing::warn!("{}: {e}", self.sup.job.dir.path().display());
        }
        self.await_entries()?;
        let statuses = self.statuses(&processes);
        let resumed_ns = u64::try_from(resumed.elapsed().as_nanos()).unwrap_or(0);
        let report = self.own_report(id, peer, &processes, arrived);
        let report = MoveReport { processes: statuses.clone(), lost: lost.clone(), ..report };
        self.send(key, &Msg::Done { processes: statuses, resumed_ns, lost }, &[]);
        self.note(report);
        self.note_restored();
        self.stop_again(root.image.stopped, home)
    }

    /// What AIO contexts are asked for from here on, filters that are installed, and timers that are
    /// set to absolute times, are seen if the job has vosrun's filter.
    fn take_up_seen(&mut self, processes: &[Restored]) {
        if !self.sup.job.meta.filtered {
            return;
        }
        for process in processes {
            let handles = &mut self.sup.session.handles;
            let rings = process.image.memory.rings();
            rings.for_each(|(at, ring)| handles.add_context(process.pid, at, ring.tail.into()));
            let absolute = timers::absolute_of(&process.image).into_iter();
            absolute.for_each(|(id, to)| handles.add_timer(process.pid, id, to));
            for (thread, tid) in process.image.threads.iter().zip(process.host_tids()) {
                handles.take_up_filters(tid, &thread.filters);
            }
        }
    }

    /// Until the calls that are started again are under way. A thread whose supervisor dies while
    /// it stops at the entry of one gets EINTR from some (`__ptrace_unlink`, kernel/ptrace.c):
    /// nobody hears that the job is here before that is over.
    fn await_entries(&mut self) -> Result<()> {
        self.pump_until(|session| !session.starts_calls())
    }

    /// Serves everybody until the job has come so far, but no longer than [`SOON`].
    pub(super) fn pump_until(&mut self, there: impl Fn(&Session) -> bool) -> Result<()> {
        let until = Instant::now() + SOON;
        while !there(&self.sup.session) && Instant::now() < until {
            self.pump(Some(Duration::from_millis(1)))?;
        }
        Ok(())
    }

    /// A job that was stopped comes to its stop again, of which the home knows. One that goes on
    /// wakes who waits for it.
    fn stop_again(&mut self, stopped: Option<i32>, home: bool) -> Result<()> {
        let Some(signal) = stopped else {
            if self.asleep.is_some() {
                self.awake();
            }
            return Ok(());
        };
        self.pump_until(|session| session.root_in_stop().is_some())?;
        if self.sup.session.root_stopped.take().is_some() && home {
            self.stop_with_far_job(signal);
        }
        Ok(())
    }

    /// The move as this side saw it: kept if the source's own figures do not come.
    fn own_report(
        &self,
        id: MoveId,
        peer: &(NodeId, String),
        restored: &[Restored],
        arrived: Instant,
    ) -> MoveReport {
        let ms = arrived.elapsed().as_secs_f64() * 1e3;
        MoveReport {
            id,
            job: self.sup.job.meta.name.clone(),
            job_id: self.sup.job.id,
            from: peer.1.clone(),
            to: self.sup.node.clone(),
            epoch: self.sup.job.meta.epoch,
            at_ms: now_ms(),
            pause_ms: ms,
            total_ms: ms,
            parts: Vec::new(),
            bytes_memory: restored.iter().map(|p| p.image.memory.data_bytes()).sum(),
            bytes_wire: 0,
            processes: Vec::new(),
            lost: Vec::new(),
        }
    }

    fn statuses(&self, restored: &[Restored]) -> Vec<ProcessStatus> {
        let status = |process: &Restored| {
            let comm = fs::read_to_string(format!("/proc/{}/comm", process.pid));
            ProcessStatus {
                pid: process.image.ids.pid,
                host_pid: process.pid,
                node: self.sup.node.clone(),
                comm: comm.unwrap_or_default().trim().to_owned(),
                threads: process.threads.len() as u32,
            }
        };
        restored.iter().map(status).collect()
    }

    /// Connects both halves of the relays, the job being still stopped.
    fn join_relays(&mut self, home: bool, key: LinkKey, peer: &(NodeId, String)) {
        if home {
            if let Some(asked) = &mut self.asked {
                // The source reports over its own link.
                asked.via = key;
            }
            if let Some(old) = self.relay_link.take().filter(|old| *old != key) {
                self.drop_link(old);
            }
            if self.away.is_none() {
                self.lose_relays();
            }
            if let (Some(home), Some(away)) = (&mut self.home, &mut self.away) {
                home.disconnected();
                self.loopback = Some(Loopback::join(home, away));
                self.homing = Some(Homing::new());
            }
        } else if peer.0 == self.home_node.0 {
            self.relay_link = Some(key);
            self.relay(Side::Away, |relays, out| relays.resync(out));
            // What the home said before the go is taken first.
            let early = std::mem::take(&mut self.early);
            if let Some(peer) = self.links.get_mut(&key) {
                early.into_iter().rev().for_each(|m| peer.inbox.push_front(m));
            }
            self.take_relayed(key);
            self.drive(key);
        }
        self.relay(Side::Away, |relays, out| relays.thaw(out));
    }

    /// Lets all threads go, once nothing more can fail. Those of stopped processes come to their
    /// stop before the others run: SIGCONT would take a stop away that is on its way, and the
    /// parent would wait for a continued child (WCONTINUED of waitpid(2)) that never was stopped.
    fn resume_all(&mut self, processes: &[Restored]) -> Result<()> {
        let mut all: Vec<Ways> = Vec::with_capacity(processes.len());
        for process in processes {
            let mut ways = Ways::with_capacity(process.threads.len());
            for thread in &process.threads {
                self.sup.session.runs_here(thread.host_tid).context("PTRACE_SETOPTIONS")?;
                ways.push((thread.host_tid, self.way_of(thread)?));
            }
            all.push(ways);
        }
        for process in processes.iter().filter(|process| !is_dumpable(&process.image)) {
            if numbers::only_seem_hidden() {
                numbers::hide(process.pid, true);
                continue;
            }
            let insn = self.sup.session.insn(process.pid, self.vdso.syscall_offset());
            let done = insn.context("no system call is known in it");
            if let Err(e) = done.and_then(|insn| make_undumpable(process.pid, insn)) {
                tracing::error!("process {} stays dumpable: {e:#}", process.image.ids.pid);
            }
        }
        self.stop_processes(processes, &all)?;
        let running = processes.iter().zip(&all).filter(|(p, _)| p.image.stopped.is_none());
        self.resume(&running.flat_map(|(_, ways)| ways).copied().collect())
    }

    fn way_of(&mut self, thread: &NewThread) -> Result<Way> {
        let Some(restart) = thread.restart else { return Ok(Way::Cont(0)) };
        let ready = self.sup.session.make_ready(thread.host_tid, restart);
        ready.with_context(|| format!("the call of thread {}", thread.tid))?;
        Ok(Way::Step(0))
    }
}

/// Takes the locks that the source's copy has let go. Another program may have been faster and
/// is waited for a moment; a lock that it keeps is lost, of which the sentences tell. Longest is
/// waited for one that has a lease on a file which is to be opened: the kernel ends that.
fn take_locks(processes: &mut [Restored]) -> Vec<String> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const LEASE_BREAK: Duration = Duration::from_secs(60);
    const PAUSE: Duration = Duration::from_millis(5);
    let begin = Instant::now();
    loop {
        let mut lost = Vec::new();
        for process in processes.iter_mut().filter(|process| !process.locks.is_empty()) {
            let pid = process.image.ids.pid;
            let text = |(lock, e)| format!("process {pid} has lost its {lock}: {e}");
            match take_locks_of(process) {
                Ok(missed) => lost.extend(missed.into_iter().map(text)),
                Err(e) => lost.push(format!("process {pid} has lost its locks: {e}")),
            }
        }
        let closed = processes.iter().flat_map(|p| &p.locks).any(|lock| lock.opened.is_some());
        let patience = if closed { LEASE_BREAK } else { PATIENCE };
        if lost.is_empty() || begin.elapsed() > patience {
            lost.iter().for_each(|text| tracing::error!("{text}"));
            return lost;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Takes what a process can have now; the others stay to be taken.
fn take_locks_of(process: &mut Restored) -> std::result::Result<Vec<late::Missed>, PartError> {
    let mut missed = late::open(process.pid, &process.image, &mut process.locks)?;
    process.locks.retain(|lock| lock.opened.is_none());
    missed.extend(late::take(process.pid, &process.image, &process.locks)?);
    process.locks = missed.iter().map(|(lock, _)| lock.clone()).collect();
    Ok(missed)
}
