//! The side that takes the job: a new supervisor ([`receive`]), or the home agent.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context, Result};

mod build;
mod outfit;
mod own;
mod stopping;

use super::hook::reached;
use super::{LinkKey, Mover};
use crate::control::JobState;
use crate::ids::{JobId, NodeId};
use crate::journal::Step;
use crate::migrate::image::ProcessImage;
use crate::migrate::judge;
use crate::migrate::message::{Failure, Hello, Msg, PROTOCOL};
use crate::migrate::resource::fd::lock::Lock;
use crate::migrate::resource::fd::unix::Renames;
use crate::migrate::restore::NewThread;
use crate::migrate::skeleton::{Skeleton, SkeletonError};
use crate::migrate::transport::Link;
use crate::node;
use crate::state::{JobMeta, StateDir};
use crate::supervisor::job::Job;
use crate::supervisor::session::Session;
use crate::supervisor::signals::Signals;
use crate::supervisor::{Mode, Supervisor};
use crate::syscalls::handles::Handles;
use crate::syscalls::translate::Translation;
use own::Decision;

/// Without a sign of the source for so long, before READY, the move is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same while the source captures the frozen job.
const CAPTURE_PATIENCE: Duration = Duration::from_secs(120);
/// A copy of a move that was given up asks the source within this time, and ends.
const ENDING: Duration = Duration::from_secs(5);

/// `vosrun __receive`: a connection on descriptor 3 that the node daemon accepted. Becomes
/// the supervisor of the job that comes over it.
///
/// # Errors
/// Before the job is known. Later failures are told to the source.
pub fn receive(state: &StateDir) -> Result<u8> {
    let socket = crate::migrate::raw::own(3);
    let tls = node::tls(state)?;
    let mut link = Link::accept(std::net::TcpStream::from(socket), &tls)?;
    let until = Instant::now() + PATIENCE;
    let (version, body) = loop {
        if let Some(frame) = link.next_frame() {
            match frame.decode::<Msg>()? {
                Msg::Hello(version, body) => break (version, body),
                other => bail!("{} begins with {other:?}", link.remote()),
            }
        }
        if link.closed() || Instant::now() > until {
            bail!("{} says nothing", link.remote());
        }
        link.wait(Duration::from_millis(500))?;
    };
    let hello = match read_hello(version, &body) {
        Ok(hello) => hello,
        Err(f) => return turn_away(link, f),
    };
    if hello.dry {
        return judge_only(link, hello);
    }
    let mut mover = match supervisor_for(state, &hello) {
        Ok(mover) => mover,
        Err(e) => {
            let failure = Failure { code: code_of(&e).into(), text: format!("{e:#}") };
            return turn_away(link, failure);
        }
    };
    let key = mover.add_link(link)?;
    let id = hello.id;
    let here = mover.take_in(key, hello)?;
    if !here {
        // What the journal says of earlier moves may still be asked for.
        let records = crate::journal::read(&mover.sup.job.dir.journal());
        if records.is_ok_and(|all| all.iter().all(|r| r.id == id)) {
            let _ = mover.sup.job.dir.remove();
        }
        return Ok(0);
    }
    let (supervisor, end) = mover.run()?;
    supervisor.close(end);
    Ok(0)
}

/// Says why the job is not taken.
fn turn_away(mut link: Link, failure: Failure) -> Result<u8> {
    let why = failure.text.clone();
    link.send(&Msg::Failed(failure), &[])?;
    link.close()?;
    let until = Instant::now() + PATIENCE;
    while !link.closed() && Instant::now() < until && link.wait(Duration::from_millis(500)).is_ok()
    {
        while link.next_frame().is_some() {}
    }
    bail!("the job of {} was not taken: {why}", link.remote())
}

fn read_hello(version: u32, body: &[u8]) -> std::result::Result<Hello, Failure> {
    let wrong = |text: String| Failure { code: "VOS-PROTO".into(), text };
    if version != PROTOCOL {
        return Err(wrong(format!("protocol {version} there, {PROTOCOL} here")));
    }
    postcard::from_bytes(body).map_err(|e| wrong(format!("the greeting does not decode: {e}")))
}

/// Answers `check --to`.
fn judge_only(mut link: Link, mut hello: Hello) -> Result<u8> {
    let until = Instant::now() + PATIENCE;
    loop {
        link.send(&Msg::Verdict(judge::judge(&hello)), &[])?;
        let frame = loop {
            if let Some(frame) = link.next_frame() {
                break frame;
            }
            if link.closed() || Instant::now() > until || link.wait(Duration::from_secs(1)).is_err()
            {
                return Ok(0);
            }
        };
        match frame.decode::<Msg>()? {
            Msg::Hello(version, body) => {
                hello = read_hello(version, &body).map_err(|f| anyhow!(f.text))?;
            }
            _ => return Ok(0),
        }
    }
}

/// A supervisor without a process, for the job that is coming.
fn supervisor_for(state: &StateDir, hello: &Hello) -> Result<Mover> {
    let signals = Signals::take_over().context("blocking signals")?;
    let meta = JobMeta {
        name: hello.job.name.clone(),
        command: hello.job.command.clone(),
        home: hello.job.home.clone(),
        pid: 0,
        host: None,
        epoch: hello.epoch,
        started_ms: hello.job.started_ms,
        attached: hello.job.attached,
        filtered: hello.job.filtered,
        names: None,
        agent: Some(hello.home.clone()),
        exit: None,
    };
    let job = receive_job(state, hello.job.id, &meta)?;
    crate::supervisor::job::start_log(&job.dir)?;
    let handles = Handles::open(&job.dir.handles()).context("handle table")?;
    let session = Session::new(handles);
    let sup = Supervisor::new(state.clone(), job, session, signals, Mode::Background)?;
    Mover::new(sup)
}

/// Makes the job's folder, or takes up the one it left. A copy of a move that the source has
/// given up may just be ending.
fn receive_job(state: &StateDir, id: JobId, meta: &JobMeta) -> Result<Job> {
    let until = Instant::now() + ENDING;
    loop {
        match Job::receive(state, id, meta.clone()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(e).context("another supervisor here has the job or a copy of it");
            }
            other => return other.with_context(|| format!("the folder of job {id}")),
        }
    }
}

/// A restored process, stopped.
struct Restored {
    image: ProcessImage,
    /// Its pid here.
    pid: i32,
    threads: Vec<NewThread>,
    /// Locks that it could not take yet.
    locks: Vec<Lock>,
    /// Descriptors of which its filter stops reads ([`crate::syscalls::translate::signalfd`]).
    signalfds: BTreeSet<i32>,
}

impl Restored {
    /// Tids here of the image's threads, in their order; 0 for one that is missing.
    fn host_tids(&self) -> Vec<i32> {
        let here = |tid| self.threads.iter().find(|t| t.tid == tid).map_or(0, |t| t.host_tid);
        self.image.threads.iter().map(|thread| here(thread.tid)).collect()
    }

    /// Tids here of its threads.
    fn tids(&self) -> impl Iterator<Item = i32> + '_ {
        self.threads.iter().map(|thread| thread.host_tid)
    }
}

/// A restored job that may not run yet.
struct Prepared {
    /// The job's first process comes first.
    processes: Vec<Restored>,
    skeleton: Skeleton,
    /// It has no namespaces.
    translation: Option<Translation>,
    /// As in [`Parcel`](crate::migrate::message::Parcel).
    annotations: Vec<(u32, i32, Vec<u8>)>,
    signals_taken: u64,
    /// Files of the job's sockets.
    renames: Renames,
    /// When the image of the frozen job began to arrive.
    arrived: Instant,
    /// What it does not get here; a sentence each.
    missed: Vec<String>,
}

impl Mover {
    /// The job comes back to its home: this agent takes it.
    pub(super) fn come_home(&mut self, key: LinkKey, version: u32, body: &[u8]) -> Result<()> {
        let hello = match read_hello(version, body) {
            Ok(hello) => hello,
            Err(f) => {
                self.send(key, &Msg::Failed(f), &[]);
                return Ok(());
            }
        };
        if !self.is_owner(self.peer_of(key), hello.epoch) {
            let owner = self.agent.as_ref().map_or("this node", |a| a.host_name());
            let text = format!(
                "that copy of the job (epoch {}) is not its owner: {owner} has it (epoch {})",
                hello.epoch,
                self.epoch()
            );
            self.send(key, &Msg::Abort(text), &[]);
            return Ok(());
        }
        if hello.dry {
            self.send(key, &Msg::Verdict(judge::judge(&hello)), &[]);
            return Ok(());
        }
        self.take_in(key, hello)?;
        Ok(())
    }

    /// Takes the job. True: it runs here now. False: the move was given up, nothing is left.
    ///
    /// # Errors
    /// Failures of the supervisor itself.
    fn take_in(&mut self, key: LinkKey, hello: Hello) -> Result<bool> {
        self.arriving = true;
        let here = self.try_take_in(key, hello);
        self.arriving = false;
        here
    }

    fn try_take_in(&mut self, key: LinkKey, hello: Hello) -> Result<bool> {
        let id = hello.id;
        let peer_id = self.links.get(&key).and_then(|p| p.link.peer());
        let peer = (peer_id.unwrap_or(NodeId([0; 32])), hello.source.clone());
        self.sup.board.state = Some(JobState::Migrating);
        let prepared = match self.build(key, hello, peer.clone()) {
            Ok(prepared) => prepared,
            Err(e) => {
                let text = format!("{e:#}");
                tracing::warn!("move {id} given up: {text}");
                let failure = Failure { code: code_of(&e).into(), text };
                self.send(key, &Msg::Failed(failure), &[]);
                self.say_last(key);
                self.drop_link(key);
                self.forget_away();
                return Ok(false);
            }
        };
        reached("ready");
        let ready = self.write_journal(id, Step::Prepared, &peer);
        if let Err(e) = ready {
            let failure = Failure { code: "VOS-DISK-FULL".into(), text: format!("{e:#}") };
            self.send(key, &Msg::Failed(failure), &[]);
            self.say_last(key);
            self.drop_link(key);
            prepared.skeleton.kill();
            self.forget_away();
            return Ok(false);
        }
        self.sup.board.state = Some(JobState::Prepared);
        self.send(key, &Msg::Ready, &[]);
        match self.await_decision(id, key, &peer)? {
            Decision::Commit(key) => {
                reached("commit-received");
                self.own(id, key, &peer, prepared)?;
                crate::migrate::raw::trim_heap();
                Ok(true)
            }
            Decision::Abort => {
                tracing::info!("move {id} was given up by the source");
                if let Err(e) = self.write_journal(id, Step::Abort, &peer) {
                    tracing::warn!("{e:#}");
                }
                self.drop_link(key);
                prepared.skeleton.kill();
                self.forget_away();
                Ok(false)
            }
        }
    }

    /// After a move that was given up: no trace of it.
    fn forget_away(&mut self) {
        self.away = None;
        self.dialing = None;
        self.streams.clear();
        let away = self.agent.is_some();
        self.sup.board.state = away.then_some(JobState::Away);
    }

    /// Waits a moment until the last words are sent.
    fn say_last(&mut self, key: LinkKey) {
        let until = Instant::now() + Duration::from_secs(2);
        let waits =
            |m: &Self| m.links.get(&key).is_some_and(|p| p.over.is_none() && p.link.queued() > 0);
        while waits(self) && Instant::now() < until {
            let _ = self.pump(Some(Duration::from_millis(50)));
        }
    }
}

/// The code that fits a failure here.
fn code_of(e: &anyhow::Error) -> &'static str {
    match e.downcast_ref() {
        Some(SkeletonError::Step(text)) if text.starts_with("namespaces") => return "VOS-USERNS",
        Some(SkeletonError::Step(_)) => return "VOS-TARGET",
        Some(SkeletonError::Refused(_)) => return "VOS-TREE",
        _ => {}
    }
    let failed = e.chain().find_map(|c| c.downcast_ref::<io::Error>());
    match failed.and_then(io::Error::raw_os_error) {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => "VOS-DISK-FULL",
        Some(libc::ENOMEM) => "VOS-MEMORY",
        Some(libc::EWOULDBLOCK) => "VOS-BUSY",
        _ => "VOS-TARGET",
    }
}
