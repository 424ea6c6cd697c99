//! The side that takes the job: a new supervisor ([`receive`]), or the home agent.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context, Result};

use super::hook::reached;
use super::signals::Forward;
use super::{LinkKey, Mover, Side, StreamKey};
use crate::control::{MoveReport, ProcessStatus};
use crate::ids::{JobId, MoveId, NodeId};
use crate::journal::Step;
use crate::migrate::capture;
use crate::migrate::image::ProcessImage;
use crate::migrate::message::{Failure, Hello, Msg, Parcel, PROTOCOL};
use crate::migrate::preflight;
use crate::migrate::resource::attributes::is_dumpable;
use crate::migrate::resource::fd::{self, BulkId};
use crate::migrate::resource::memory::{Backing, FileId, MmImage};
use crate::migrate::restore::{verify, NewThread, Restoring};
use crate::migrate::skeleton::{own_clocks, Build, Skeleton};
use crate::migrate::transport::{Link, Service};
use crate::node;
use crate::proxy::{AwayEnd, Loopback, PtyPair};
use crate::state::{JobMeta, StateDir};
use crate::supervisor::job::{start_time, Job};
use crate::supervisor::session::{Session, Way};
use crate::supervisor::signals::Signals;
use crate::supervisor::{Mode, Supervisor};
use crate::syscalls::handles::Handles;
use crate::syscalls::table::TABLE;
use crate::tracer::memory::VmFlags;
use crate::tracer::{filter, raw};

/// Without a sign of the source for so long, before READY, the move is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// A copy of a move that was given up asks the source within this time, and ends.
const ENDING: Duration = Duration::from_secs(5);
/// In doubt: pause between two questions to the source.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// In doubt: a source that has said nothing for so long is asked again over a new connection.
const SILENCE: Duration = Duration::from_secs(5);
/// A job that is to stop does so in far less.
const STOPS_WITHIN: Duration = Duration::from_secs(1);
/// Largest image taken, bytes (pages are not in it).
const MOST_IMAGE: usize = 256 << 20;

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
    let (supervisor, _) = mover.run()?;
    supervisor.close();
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
        link.send(&Msg::Verdict(preflight::judge(&hello)), &[])?;
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

/// What is being built while messages come in.
struct Arriving {
    hello: Hello,
    peer: (NodeId, String),
    /// Where the source's files are found here.
    files: BTreeMap<FileId, PathBuf>,
    /// The file whose content is coming.
    incoming: Option<Incoming>,
    skeleton: Option<Skeleton>,
    /// Pieces of the image, then the image.
    image: Vec<u8>,
    parcel: Option<Parcel>,
    /// Files that carry the content of deleted files and memfds.
    vessels: BTreeMap<BulkId, File>,
    content_done: bool,
    restoring: Option<Restoring>,
    names: (String, String),
    /// Becomes the controlling terminal of the job's session.
    pty: Option<PtyPair>,
    /// When the image of the frozen job began to arrive.
    arrived: Option<Instant>,
}

struct Incoming {
    id: FileId,
    hash: [u8; 32],
    mode: u32,
    hasher: blake3::Hasher,
    file: tempfile::NamedTempFile,
}

/// A restored process that may not run yet.
struct Prepared {
    process: ProcessImage,
    skeleton: Skeleton,
    threads: Vec<NewThread>,
    annotations: Vec<(i32, Vec<u8>)>,
    signals_taken: u64,
    /// When the image of the frozen job began to arrive.
    arrived: Instant,
}

/// How a wait for the decision ended.
enum Decision {
    Commit(LinkKey),
    Abort,
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
            self.send(key, &Msg::Abort("that copy of the job is not its owner".into()), &[]);
            return Ok(());
        }
        if hello.dry {
            self.send(key, &Msg::Verdict(preflight::judge(&hello)), &[]);
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
        self.sup.board.state = Some(crate::control::JobState::Migrating);
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
        self.sup.board.state = Some(crate::control::JobState::Prepared);
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
        self.streams.clear();
        let away = self.agent.is_some();
        self.sup.board.state = away.then_some(crate::control::JobState::Away);
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

    /// Everything up to a stopped process that is whole.
    fn build(&mut self, key: LinkKey, hello: Hello, peer: (NodeId, String)) -> Result<Prepared> {
        let mut arriving = Arriving {
            hello,
            peer,
            files: BTreeMap::new(),
            incoming: None,
            skeleton: None,
            image: Vec::new(),
            parcel: None,
            vessels: BTreeMap::new(),
            content_done: false,
            restoring: None,
            names: Default::default(),
            pty: None,
            arrived: None,
        };
        let built = self.build_from(key, &mut arriving);
        if built.is_err() {
            if let Some(skeleton) = &arriving.skeleton {
                skeleton.kill();
            }
        }
        built
    }

    fn build_from(&mut self, key: LinkKey, a: &mut Arriving) -> Result<Prepared> {
        let verdict = preflight::judge(&a.hello);
        let foreign = std::env::var_os("VOSRUN_TEST_FOREIGN_VDSO").is_some();
        let other_kernel = verdict.findings.iter().any(|f| f.code == "VOS-KERNEL");
        let verdict =
            crate::migrate::message::Verdict { foreign_vdso: foreign || other_kernel, ..verdict };
        self.send(key, &Msg::Verdict(verdict), &[]);
        loop {
            let got = self.next(key, Instant::now() + PATIENCE)?;
            let Some((msg, payload)) = got else {
                bail!("the source {} is gone: {}", a.peer.1, self.why(key));
            };
            match msg {
                Msg::Hello(version, body) => {
                    a.hello = read_hello(version, &body).map_err(|f| anyhow!(f.text))?;
                    self.send(key, &Msg::Verdict(preflight::judge(&a.hello)), &[]);
                }
                Msg::File { index, hash, mode, size } => {
                    let id: FileId = postcard::from_bytes(&payload).context("a file's name")?;
                    let send = self.want_file(a, id, hash, mode, size)?;
                    self.send(key, &Msg::FileAnswer { index, send }, &[]);
                    self.begin_if_complete(a)?;
                }
                Msg::Chunk { last, .. } => {
                    take_chunk(&self.sup.state, a, &payload, last)?;
                    if last {
                        self.begin_if_complete(a)?;
                    }
                }
                Msg::Prepare(_) if a.skeleton.is_some() => bail!("a second frame"),
                Msg::Prepare(plan) => {
                    a.names = (plan.nodename.clone(), plan.domainname.clone());
                    a.pty = plan.terminal.then(PtyPair::open).transpose().context("terminal")?;
                    a.skeleton = Some(Skeleton::spawn(&plan, a.pty.as_ref().map(slave))?);
                    // After the fork, which would make every page be copied again.
                    if let Some(peer) = self.links.get_mut(&key) {
                        peer.link.expect_many(super::CHUNK);
                    }
                    self.send(key, &Msg::Prepared, &[]);
                }
                Msg::Image { .. } if a.parcel.is_some() => bail!("a second image"),
                Msg::Image { last } => {
                    a.arrived.get_or_insert_with(Instant::now);
                    if a.image.len() + payload.len() > MOST_IMAGE {
                        bail!("an image of more than {} MiB", MOST_IMAGE >> 20);
                    }
                    a.image.extend_from_slice(&payload);
                    if last {
                        self.take_image(key, a)?;
                    }
                }
                Msg::Bulk { id, offset } => {
                    let vessel = a.vessels.get(&id).ok_or_else(|| anyhow!("content of nothing"))?;
                    vessel.write_all_at(&payload, offset).context("content of a deleted file")?;
                }
                Msg::Pages(ranges) => {
                    self.content_is_done(a)?;
                    let restoring = a.restoring.as_ref();
                    restoring
                        .ok_or_else(|| anyhow!("pages before the image"))?
                        .fill(&ranges, &payload)?;
                    if let Some(peer) = self.links.get_mut(&key) {
                        peer.link.recycle(payload);
                    }
                }
                Msg::PagesEnd => {
                    self.content_is_done(a)?;
                    if let Some(peer) = self.links.get_mut(&key) {
                        peer.link.expect_few();
                    }
                    return self.complete(a);
                }
                Msg::Abort(why) => bail!("given up by the source: {why}"),
                other => bail!("unexpected from the source: {other:?}"),
            }
        }
    }

    /// A file that the source has described: is its content needed?
    fn want_file(
        &self,
        a: &mut Arriving,
        id: FileId,
        hash: [u8; 32],
        mode: u32,
        size: u64,
    ) -> Result<bool> {
        let same_size = fs::metadata(&id.path).is_ok_and(|m| m.is_file() && m.size() == size);
        let here = PathBuf::from(&id.path);
        if same_size && preflight::hash_file(&here).is_ok_and(|h| h == hash) {
            a.files.insert(id, here);
            return Ok(false);
        }
        let kept = self.sup.state.files().join(crate::ids::hex(&hash));
        if preflight::hash_file(&kept).is_ok_and(|h| h == hash) {
            a.files.insert(id, kept);
            return Ok(false);
        }
        crate::state::make_dir(&self.sup.state.files())?;
        let file = tempfile::NamedTempFile::new_in(self.sup.state.files())
            .context("a file in the state folder")?;
        a.incoming = Some(Incoming { id, hash, mode, hasher: blake3::Hasher::new(), file });
        Ok(true)
    }

    /// The image is whole: says which of its files are unknown here, or begins to restore.
    fn take_image(&mut self, key: LinkKey, a: &mut Arriving) -> Result<()> {
        let bytes = std::mem::take(&mut a.image);
        let parcel: Parcel = postcard::from_bytes(&bytes).context("the image does not decode")?;
        parcel.image.check().map_err(|why| anyhow!("the image is inconsistent: {why}"))?;
        let process = parcel.image.processes.first().context("an image without a process")?;
        let unknown: Vec<FileId> = process
            .memory
            .files
            .iter()
            .filter(|f| !a.files.contains_key(f) && !preflight::is_same_file(f, &a.hello.boot_id))
            .cloned()
            .collect();
        for object in &process.files.objects {
            let kind = fd::by_name(&object.kind).context("a descriptor of an unknown kind")?;
            let Some(id) = kind.bulk_id(&object.state)? else { continue };
            if let Some(vessel) = kind.vessel(&object.state)? {
                a.vessels.entry(id).or_insert_with(|| File::from(vessel));
            }
        }
        a.parcel = Some(parcel);
        self.send(key, &Msg::Unknown(unknown), &[]);
        self.begin_if_complete(a)
    }

    /// Pages come: all content of deleted files has come before.
    fn content_is_done(&mut self, a: &mut Arriving) -> Result<()> {
        a.content_done = true;
        self.begin_if_complete(a)
    }

    /// Begins to restore when the image and all its files are here.
    fn begin_if_complete(&mut self, a: &mut Arriving) -> Result<()> {
        let Some(parcel) = &a.parcel else { return Ok(()) };
        // Content of deleted files comes first: a memfd's seals would keep it out.
        let content_first = !a.vessels.is_empty() && !a.content_done;
        if a.restoring.is_some() || a.incoming.is_some() || content_first {
            return Ok(());
        }
        let boot = a.hello.boot_id.clone();
        let mut paths = Vec::new();
        for file in &parcel.image.processes[0].memory.files {
            match a.files.get(file) {
                Some(path) => paths.push(path.to_string_lossy().into_owned()),
                None if preflight::is_same_file(file, &boot) => paths.push(file.path.clone()),
                None => return Ok(()),
            }
        }
        let parcel = a.parcel.clone().context("no image")?;
        let restoring = self.begin(a, &parcel, &paths)?;
        a.restoring = Some(restoring);
        Ok(())
    }

    fn begin(&mut self, a: &mut Arriving, parcel: &Parcel, paths: &[String]) -> Result<Restoring> {
        let skeleton = a.skeleton.as_ref().context("an image before the frame")?;
        let process = &parcel.image.processes[0];
        let mut ends: BTreeMap<u32, OwnedFd> = BTreeMap::new();
        let mut away = self.new_relays()?;
        for state in &parcel.relays {
            let terminal = matches!(state.end, AwayEnd::Pty(_));
            let pty = if terminal { a.pty.take() } else { None };
            let controlling = pty.is_some();
            let end = away.rebuild_on(state.clone(), pty)?;
            if controlling {
                skeleton.set_terminal(end.as_fd())?;
            }
            ends.insert(state.stream, end);
        }
        self.away = (!parcel.relays_lost).then_some(away);
        self.idle_terminal = a.pty.take();
        self.streams.clear();
        let mut provided: Vec<(u32, BorrowedFd)> = Vec::new();
        for (object, stream) in &parcel.streams {
            let end = ends.get(stream).context("a descriptor of no relay")?;
            provided.push((*object, end.as_fd()));
            self.streams.insert(key_of(end)?, *stream);
        }
        for (object, o) in (0..).zip(&process.files.objects) {
            let kind = fd::by_name(&o.kind).context("a descriptor of an unknown kind")?;
            let vessel = kind.bulk_id(&o.state)?.and_then(|id| a.vessels.get(&id));
            provided.extend(vessel.map(|v| (object, v.as_fd())));
        }
        if provided.len() > crate::migrate::skeleton::MAX_FDS {
            bail!("more than {} deleted files and relays", crate::migrate::skeleton::MAX_FDS);
        }
        let build = Build {
            files: process.files.clone(),
            paths: mapped_paths(&process.memory, paths),
            exe: paths[process.memory.exe as usize].clone(),
            shared: process
                .memory
                .objects
                .iter()
                .map(|o| (o.dev, o.ino, o.name.clone(), o.size))
                .collect(),
            provided: provided.iter().map(|(object, _)| *object).collect(),
        };
        let fds: Vec<BorrowedFd> = provided.iter().map(|(_, fd)| *fd).collect();
        let built = skeleton.build(&build, &fds)?;
        Ok(Restoring::begin(skeleton.pid, process, &built, &self.vdso)?)
    }

    /// All pages are here: the rest.
    fn complete(&mut self, a: &mut Arriving) -> Result<Prepared> {
        let restoring = a.restoring.take().context("an image without its files")?;
        let parcel = a.parcel.take().context("no image")?;
        let Parcel { image, annotations, signals_taken, .. } = parcel;
        let process = image.processes.into_iter().next().context("no process")?;
        let program = image.job.filtered.then(|| filter::bytes(&filter::program(TABLE)));
        let threads = restoring.finish(&process, program.as_deref())?;
        let skeleton = a.skeleton.take().context("no frame")?;
        verify(skeleton.pid, &process)?;
        self.sup.job.meta.names = Some(std::mem::take(&mut a.names));
        self.sup.board.history = a.hello.history.clone();
        self.sup.job.meta.epoch = a.hello.epoch;
        // The job's clock never goes back; the frame's was set when the plan was made.
        wait_for_clock(skeleton.pid, image.clocks.monotonic)?;
        let arrived = a.arrived.unwrap_or_else(Instant::now);
        Ok(Prepared { process, skeleton, threads, annotations, signals_taken, arrived })
    }

    /// PREPARED: only the source's word counts, for ever.
    fn await_decision(
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
            let over = |key| self.links.get(&key).is_none_or(|p: &super::Peer| p.over.is_some());
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
    fn own(
        &mut self,
        id: MoveId,
        key: LinkKey,
        peer: &(NodeId, String),
        prepared: Prepared,
    ) -> Result<()> {
        let Prepared { process, skeleton, threads, annotations, signals_taken, arrived } = prepared;
        let pid = skeleton.pid;
        // Who looks after this supervisor's death finds by this whether the job lives.
        self.sup.job.meta.pid = process.ids.pid;
        self.sup.job.meta.host = start_time(pid).ok().map(|start| (pid, start));
        if let Err(e) = self.sup.job.note() {
            tracing::warn!("{}: {e}", self.sup.job.dir.path().display());
        }
        // A journal that cannot be written does not stop a job that has no other copy.
        if let Err(e) = self.write_journal(id, Step::Own, peer) {
            tracing::error!("{e:#}");
        }
        reached("owned");
        let home = self.is_home();
        self.agent = None;
        self.sup.away = false;
        self.sup.board.state = None;
        self.sup.board.moved_to = None;
        self.sup.board.remote.clear();
        self.init = Some(skeleton.init);
        self.sup.session.leave();
        self.sup.session.begin(pid, threads.iter().map(|t| t.host_tid));
        self.sup.session.insn = capture::syscall_insn(pid, &process.memory).ok();
        for (fd, annotation) in annotations {
            if let Ok(watches) = postcard::from_bytes(&annotation) {
                self.sup.session.handles.take_up(pid, fd, watches);
            }
        }
        self.join_relays(home, key, peer);
        self.forward.taken(signals_taken);
        let waiting = self.forward.rest();
        self.forward = Forward::at(signals_taken + waiting.len() as u64);
        self.sup.job.meta.epoch = self.sup.job.meta.epoch.next();
        self.resume_all(&process, pid, &threads)?;
        let resumed = Instant::now();
        waiting.into_iter().for_each(|signal| self.signal_job(signal));
        if let Err(e) = self.sup.job.save() {
            tracing::warn!("{}: {e}", self.sup.job.dir.path().display());
        }
        let processes = self.statuses(&process, pid);
        let resumed_ns = u64::try_from(resumed.elapsed().as_nanos()).unwrap_or(0);
        self.send(key, &Msg::Done { processes: processes.clone(), resumed_ns }, &[]);
        self.note(self.own_report(id, peer, &process, processes, arrived));
        self.note_restored(pid);
        self.stop_again(process.stopped, home)
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
        let until = Instant::now() + STOPS_WITHIN;
        while self.sup.session.root_in_stop().is_none() && Instant::now() < until {
            self.pump(Some(Duration::from_millis(10)))?;
        }
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
        process: &ProcessImage,
        processes: Vec<ProcessStatus>,
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
            at_ms: crate::supervisor::job::now_ms(),
            pause_ms: ms,
            total_ms: ms,
            parts: Vec::new(),
            bytes_memory: process.memory.data_bytes(),
            bytes_wire: 0,
            processes,
        }
    }

    fn statuses(&self, process: &ProcessImage, host_pid: i32) -> Vec<ProcessStatus> {
        let comm = fs::read_to_string(format!("/proc/{host_pid}/comm")).unwrap_or_default();
        vec![ProcessStatus {
            pid: process.ids.pid,
            host_pid,
            node: self.sup.node.clone(),
            comm: comm.trim().to_owned(),
            threads: process.threads.len() as u32,
        }]
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

    fn resume_all(
        &mut self,
        process: &ProcessImage,
        pid: i32,
        threads: &[NewThread],
    ) -> Result<()> {
        if let Some(signal) = process.stopped {
            raw::kill(pid, signal).context("stopping the job as it was")?;
        }
        for thread in threads {
            raw::set_exitkill(thread.host_tid, false).context("PTRACE_SETOPTIONS")?;
        }
        let mut ways = Vec::with_capacity(threads.len());
        for thread in threads {
            ways.push(match thread.restart {
                Some(restart) => {
                    let ready = self.sup.session.make_ready(thread.host_tid, restart);
                    ready.with_context(|| format!("the call of thread {}", thread.tid))?;
                    Way::Step(0)
                }
                None => Way::Cont(0),
            });
        }
        if !is_dumpable(process) {
            if let Err(e) = self.make_undumpable(pid) {
                tracing::error!("process {} stays dumpable: {e:#}", process.ids.pid);
            }
        }
        for (thread, way) in threads.iter().zip(ways) {
            let resumed = self.sup.session.go(thread.host_tid, way);
            resumed.with_context(|| format!("resuming thread {}", thread.tid))?;
        }
        Ok(())
    }
}

fn slave(pty: &PtyPair) -> BorrowedFd<'_> {
    pty.slave.as_fd()
}

fn is_tty(fd: &OwnedFd) -> bool {
    std::io::IsTerminal::is_terminal(fd)
}

/// How the job's end of a relay is recognised later.
fn key_of(end: &OwnedFd) -> Result<StreamKey> {
    let m = File::from(end.try_clone()?).metadata()?;
    let flags = nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_GETFL)?;
    let class = match (is_tty(end), flags & libc::O_ACCMODE) {
        (true, _) => 0,
        (false, libc::O_RDONLY) => 1,
        (false, _) => 2,
    };
    Ok((m.dev(), m.ino(), class))
}

/// Paths here of the mapped files, and whether a mapping may write to them.
fn mapped_paths(memory: &MmImage, paths: &[String]) -> Vec<(String, bool)> {
    let writes = |index: usize| {
        memory.mappings.iter().any(|m| {
            m.shared
                && m.flags.contains(VmFlags::MAY_WRITE)
                && m.backing == Backing::File(index as u32)
        })
    };
    paths.iter().enumerate().map(|(i, path)| (path.clone(), writes(i))).collect()
}

/// Content of a shipped file; the last piece puts it in its place, if it is what was promised.
fn take_chunk(state: &StateDir, a: &mut Arriving, bytes: &[u8], last: bool) -> Result<()> {
    let incoming = a.incoming.as_mut().context("content of no file")?;
    incoming.hasher.update(bytes);
    incoming.file.write_all(bytes).context("a shipped file")?;
    if !last {
        return Ok(());
    }
    let Some(done) = a.incoming.take() else { return Ok(()) };
    if *done.hasher.finalize().as_bytes() != done.hash {
        bail!("{} arrived with another content", done.id.path);
    }
    let place = state.files().join(crate::ids::hex(&done.hash));
    let mode = done.mode & 0o555 | 0o400;
    done.file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    done.file.persist(&place).with_context(|| place.display().to_string())?;
    a.files.insert(done.id, place);
    Ok(())
}

/// Waits until the job's monotonic clock has passed `reached`.
fn wait_for_clock(pid: i32, reached: i128) -> Result<()> {
    let own = crate::migrate::skeleton::offsets("self").context("time namespace")?;
    let theirs = crate::migrate::skeleton::offsets(&pid.to_string()).context("time namespace")?;
    let now = own_clocks()?.monotonic + theirs.0 - own.0;
    if now < reached {
        let missing = u64::try_from(reached - now).unwrap_or(0).min(1_000_000_000);
        std::thread::sleep(Duration::from_nanos(missing));
    }
    Ok(())
}

/// The code that fits a failure here.
fn code_of(e: &anyhow::Error) -> &'static str {
    use crate::migrate::skeleton::SkeletonError;
    if let Some(SkeletonError::Step(text)) = e.downcast_ref() {
        return if text.starts_with("namespaces") { "VOS-USERNS" } else { "VOS-TARGET" };
    }
    let io = e.chain().filter_map(|c| c.downcast_ref::<std::io::Error>()).next();
    match io.and_then(std::io::Error::raw_os_error) {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => "VOS-DISK-FULL",
        Some(libc::ENOMEM) => "VOS-MEMORY",
        Some(libc::EWOULDBLOCK) => "VOS-BUSY",
        _ => "VOS-TARGET",
    }
}
