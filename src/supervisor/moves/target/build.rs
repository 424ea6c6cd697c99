//! The way to a stopped process that is whole: the files that are missing here, the frame,
//! the image, the pages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};

use super::super::dialing::Dialing;
use super::super::hook::reached;
use super::super::{Class, LinkKey, Mover, StreamKey, CHUNK};
use super::outfit::{join_shared, size_segments, Outfit};
use super::{read_hello, Prepared, Restored, CAPTURE_PATIENCE, PATIENCE};
use crate::ids::NodeId;
use crate::migrate::image::ProcessImage;
use crate::migrate::late;
use crate::migrate::message::{Hello, Msg, Parcel, Verdict};
use crate::migrate::raw::Shared;
use crate::migrate::resource::fd::tcp::{self, envelope::Envelopes};
use crate::migrate::resource::fd::udp;
use crate::migrate::resource::fd::unix::Renames;
use crate::migrate::resource::fd::{self, signalfd, BulkId};
use crate::migrate::resource::memory::FileId;
use crate::migrate::resource::Missed;
use crate::migrate::restore::{verify, Restoring};
use crate::migrate::skeleton::{
    coarse_tick, offsets, own_clocks, Footing, Growing, Plan, Skeleton,
};
use crate::migrate::terminals::{self, Terminal};
use crate::migrate::{judge, preflight};
use crate::proxy::{AwayEnd, AwayState, PtyPair, Relays};
use crate::state::StateDir;
use crate::syscalls::table::TABLE;
use crate::syscalls::translate::{self, Translation};
use crate::tracer::filter;

/// Largest image taken, bytes (pages are not in it).
const MOST_IMAGE: usize = 256 << 20;

/// What is being built while messages come in.
struct Arriving {
    hello: Hello,
    peer: (NodeId, String),
    /// Where the source's files are found here.
    files: BTreeMap<FileId, PathBuf>,
    /// The file whose content is coming.
    incoming: Option<Incoming>,
    /// By the last verdict.
    footing: Footing,
    /// Until it is complete, the frame.
    growing: Option<Growing>,
    skeleton: Option<Skeleton>,
    /// Pieces of the image, then the image.
    image: Vec<u8>,
    parcel: Option<Parcel>,
    /// Files that carry the content of deleted files and memfds.
    vessels: BTreeMap<BulkId, File>,
    content_done: bool,
    /// One for each process of the image.
    restoring: Vec<Restoring>,
    /// Files of the job's sockets.
    renames: Renames,
    names: (String, String),
    /// Becomes the controlling terminal of the job's session.
    pty: Option<PtyPair>,
    /// Those of the frame.
    terminals: Vec<Terminal>,
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

impl Mover {
    /// Everything up to a stopped process that is whole.
    pub(super) fn build(
        &mut self,
        key: LinkKey,
        hello: Hello,
        peer: (NodeId, String),
    ) -> Result<Prepared> {
        let mut arriving = Arriving {
            hello,
            peer,
            files: BTreeMap::new(),
            incoming: None,
            footing: Footing::Namespaces,
            growing: None,
            skeleton: None,
            image: Vec::new(),
            parcel: None,
            vessels: BTreeMap::new(),
            content_done: false,
            restoring: Vec::new(),
            renames: Renames::default(),
            names: Default::default(),
            pty: None,
            terminals: Vec::new(),
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

    /// Judges the job by its greeting, and decides how it would live here.
    fn send_verdict(&mut self, key: LinkKey, a: &mut Arriving) {
        let verdict = judge::judge(&a.hello);
        a.footing = match verdict.translated {
            true => Footing::Translated,
            false => Footing::Namespaces,
        };
        let foreign = std::env::var_os("VOSRUN_TEST_FOREIGN_VDSO").is_some();
        let other_kernel = verdict.findings.iter().any(|f| f.code == "VOS-KERNEL");
        let foreign_vdso = foreign || other_kernel || verdict.translated;
        self.send(key, &Msg::Verdict(Verdict { foreign_vdso, ..verdict }), &[]);
    }

    fn build_from(&mut self, key: LinkKey, a: &mut Arriving) -> Result<Prepared> {
        self.send_verdict(key, a);
        loop {
            // A large job is captured before the source says anything more.
            let begun = a.skeleton.is_some() || a.growing.is_some();
            let patience = if begun { CAPTURE_PATIENCE } else { PATIENCE };
            let got = self.next(key, Instant::now() + patience)?;
            let Some((msg, payload)) = got else {
                bail!("the source {} is gone: {}", a.peer.1, self.why(key));
            };
            match msg {
                Msg::Hello(version, body) => {
                    a.hello = read_hello(version, &body).map_err(|f| anyhow!(f.text))?;
                    self.send_verdict(key, a);
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
                Msg::Prepare(_) if a.arrived.is_some() => bail!("a frame after the image"),
                Msg::Prepare(plan) => self.begin_frame(key, a, plan)?,
                Msg::Heirs { member, ranges, last } => {
                    let growing = a.growing.as_mut().context("memory of no frame")?;
                    growing.fill(member, &ranges, &payload, last)?;
                    if let Some(peer) = self.links.get_mut(&key) {
                        peer.link.recycle(payload);
                    }
                    self.finish_frame(key, a)?;
                }
                Msg::Image { .. } if a.parcel.is_some() => bail!("a second image"),
                Msg::Image { .. } if a.growing.is_some() => bail!("an image before the frame"),
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
                Msg::Pages { process, ranges } => {
                    self.content_is_done(a)?;
                    let restoring = a.restoring.get(process as usize);
                    restoring.context("pages of no process")?.fill(&ranges, &payload)?;
                    if let Some(peer) = self.links.get_mut(&key) {
                        peer.link.recycle(payload);
                    }
                }
                Msg::Same { process, from, ranges } => {
                    let at = |n: u32| a.restoring.get(n as usize).context("pages of no process");
                    at(process)?.fill_from(at(from)?, &ranges)?;
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

    /// Begins the frame; it is complete when its processes have what they hand down.
    fn begin_frame(&mut self, key: LinkKey, a: &mut Arriving, plan: Plan) -> Result<()> {
        reached("plan");
        a.growing = None;
        if let Some(outdated) = a.skeleton.take() {
            outdated.kill();
        }
        a.names = (plan.nodename.clone(), plan.domainname.clone());
        let path = |file: &FileId| found_here(a, file);
        a.growing = Some(Growing::begin(&plan, a.footing, &path)?);
        a.terminals = plan.terminals;
        // After the fork, which would make every page be copied again.
        if let Some(peer) = self.links.get_mut(&key) {
            peer.link.expect_many(CHUNK);
        }
        self.finish_frame(key, a)
    }

    /// Completes the frame, unless its processes wait for something.
    fn finish_frame(&mut self, key: LinkKey, a: &mut Arriving) -> Result<()> {
        let Some(growing) = a.growing.take_if(|growing| !growing.waits()) else { return Ok(()) };
        let refused = growing.refused();
        let skeleton = a.skeleton.insert(growing.finish()?);
        skeleton.settle()?;
        let relayed = a.terminals.iter().position(|t| t.master.is_none());
        a.pty = relayed.and_then(|place| skeleton.terminals.remove(&place));
        self.send(key, &Msg::Prepared(refused), &[]);
        Ok(())
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
        let mut parcel: Parcel =
            postcard::from_bytes(&bytes).context("the image does not decode")?;
        parcel.image.check().map_err(|why| anyhow!("the image is inconsistent: {why}"))?;
        join_shared(&mut parcel.image.processes);
        size_segments(&mut parcel.image.processes, &parcel.image.ipc)?;
        let mapped = parcel.image.processes.iter().flat_map(|p| &p.memory.files);
        let unknown: BTreeSet<FileId> = mapped
            .filter(|f| !a.files.contains_key(f) && !judge::is_same_file(f, &a.hello.boot_id))
            .cloned()
            .collect();
        let unknown = unknown.into_iter().collect();
        for object in &parcel.image.files.objects {
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
        if !a.restoring.is_empty() || a.incoming.is_some() || content_first {
            return Ok(());
        }
        let mut paths = Vec::new();
        for process in &parcel.image.processes {
            let mut own = Vec::new();
            for file in &process.memory.files {
                match found_here(a, file) {
                    Some(path) => own.push(path),
                    None => return Ok(()),
                }
            }
            paths.push(own);
        }
        let parcel = a.parcel.clone().context("no image")?;
        (a.restoring, a.renames) = self.begin(a, &parcel, &paths)?;
        Ok(())
    }

    /// Gives all processes of the frame their descriptors, and their old mappings.
    fn begin(
        &mut self,
        a: &mut Arriving,
        parcel: &Parcel,
        paths: &[Vec<String>],
    ) -> Result<(Vec<Restoring>, Renames)> {
        let ends = self.join_streams(a, parcel)?;
        let skeleton = a.skeleton.as_ref().context("an image before the frame")?;
        let image = &parcel.image;
        // The job's clock never goes back; the frame's was set when the plan was made. What is to come
        // after some time counts from the capture on.
        wait_for_clock(skeleton, image.clocks.monotonic)?;
        if skeleton.processes.len() != image.processes.len() {
            bail!("{} processes in a frame of {}", image.processes.len(), skeleton.processes.len());
        }
        let mut outfit = Outfit::new(&image.files);
        for (object, stream) in &parcel.streams {
            let end = ends.get(stream).context("a descriptor of no relay")?;
            outfit.provide(*object, end.try_clone()?);
        }
        for (object, o) in (0..).zip(&image.files.objects) {
            let kind = fd::by_name(&o.kind).context("a descriptor of an unknown kind")?;
            let vessel = kind.bulk_id(&o.state)?.and_then(|id| a.vessels.get(&id));
            if let Some(vessel) = vessel {
                outfit.provide(object, vessel.try_clone()?.into());
            }
        }
        outfit.provide_terminals(skeleton, image, &a.terminals)?;
        skeleton.make_ipc(&image.ipc, &image.processes)?;
        fd::mqueue::take_names(&image.files.objects)?;
        let restoring = outfit.equip(skeleton, &image.processes, paths, &self.vdso)?;
        skeleton.remove_segments(&image.ipc)?;
        // Only the job's own descriptions of a slave keep it open.
        if let Some(skeleton) = &mut a.skeleton {
            skeleton.terminals.clear();
        }
        Ok(restoring)
    }

    /// Joins the relays that come along to this side. Gives the job's end of each stream.
    fn join_streams(
        &mut self,
        a: &mut Arriving,
        parcel: &Parcel,
    ) -> Result<BTreeMap<u32, OwnedFd>> {
        let skeleton = a.skeleton.as_ref().context("an image before the frame")?;
        let mut ends: BTreeMap<u32, OwnedFd> = BTreeMap::new();
        let mut away = self.new_relays()?;
        let mut sockets = sockets(parcel)?;
        let mut envelopes = Envelopes::default();
        for state in &parcel.relays {
            if matches!(state.end, AwayEnd::Tcp(_) | AwayEnd::Listener(_) | AwayEnd::Datagrams(_)) {
                let socket = sockets.remove(&state.stream).filter(|_| state.wants_socket());
                let job = rebuild_socket(&mut away, &mut envelopes, state, socket)?;
                ends.extend(job.map(|job| (state.stream, job)));
                continue;
            }
            let terminal = matches!(state.end, AwayEnd::Pty(_));
            let pty = if terminal { a.pty.take() } else { None };
            let controlling = pty.is_some();
            let end = away.rebuild_on(state.clone(), pty)?;
            if controlling {
                let root = parcel.image.processes.first().context("no process")?.ids;
                let terminal = parcel.image.terminals.iter().find(|t| t.master.is_none());
                let foreground = terminal.and_then(|t| t.foreground).unwrap_or(root.pgid);
                skeleton.set_terminal(root.sid, end.as_fd(), foreground)?;
            }
            ends.insert(state.stream, end);
        }
        let envelopes = envelopes.settled();
        self.dialing = envelopes.listens().then(|| Dialing::new(envelopes));
        self.away = (!parcel.relays_lost).then_some(away);
        self.idle_terminal = a.pty.take();
        self.streams.clear();
        for (_, stream) in &parcel.streams {
            let end = ends.get(stream).context("a descriptor of no relay")?;
            self.streams.insert(key_of(end)?, *stream);
        }
        Ok(ends)
    }

    /// All pages are here: the rest.
    fn complete(&mut self, a: &mut Arriving) -> Result<Prepared> {
        let parcel = a.parcel.take().context("no image")?;
        let Parcel { image, annotations, signals_taken, .. } = parcel;
        let restoring = std::mem::take(&mut a.restoring);
        ensure!(!restoring.is_empty(), "an image without its files");
        let skeleton = a.skeleton.as_ref().context("no frame")?;
        let filtered = image.job.filtered;
        let program = |signalfds: &BTreeSet<i32>| match skeleton.ahead {
            Some(_) => Some(filter::bytes(&translate::program(filtered, signalfds))),
            None => filtered.then(|| filter::bytes(&filter::program(TABLE))),
        };
        let mut processes = Vec::with_capacity(restoring.len());
        let missed = Missed::default();
        let places = skeleton.processes.iter().map(|place| place.pid);
        let last = last_of_memories(&image.processes);
        let files = &image.files;
        let each = restoring.into_iter().zip(image.processes).zip(places).zip(last);
        for (((restoring, image), pid), last) in each {
            let signalfds = signalfd::numbers(&files.objects, &image.table);
            let program = program(&signalfds);
            let threads = restoring.finish(&image, program.as_deref(), &missed, last)?;
            verify(pid, &image)?;
            processes.push(Restored { image, pid, threads, locks: Vec::new(), signalfds });
        }
        let all: Vec<_> = processes.iter().map(|p| (p.pid, &p.image)).collect();
        late::finish(&all, &image.files)?;
        late::drive(&all, &image.files)?;
        for process in &processes {
            late::count_overruns(process.pid, &process.image, &process.host_tids())?;
            give_up_terminal(process, &missed);
        }
        processes.iter_mut().try_for_each(take_locks)?;
        for process in &processes {
            let own = u64::from(image.job.filtered || skeleton.ahead.is_some());
            late::install_filters(process.pid, &process.image, &process.host_tids(), own)?;
        }
        let names = std::mem::take(&mut a.names);
        let translation = skeleton.ahead.map(|ahead| Translation {
            ahead,
            nodename: names.0.clone(),
            domainname: names.1.clone(),
        });
        self.sup.job.meta.names = Some(names);
        self.sup.board.history = a.hello.history.clone();
        self.sup.job.meta.epoch = a.hello.epoch;
        let skeleton = a.skeleton.take().context("no frame")?;
        let arrived = a.arrived.unwrap_or_else(Instant::now);
        let renames = std::mem::take(&mut a.renames);
        let missed = missed.into_all();
        Ok(Prepared {
            processes,
            skeleton,
            translation,
            annotations,
            signals_taken,
            renames,
            arrived,
            missed,
        })
    }
}

/// The path here of a file that the job maps.
fn found_here(a: &Arriving, file: &FileId) -> Option<String> {
    match a.files.get(file) {
        Some(path) => Some(path.to_string_lossy().into_owned()),
        None => judge::is_same_file(file, &a.hello.boot_id).then(|| file.path.clone()),
    }
}

/// Of each process: is it the last of those that have the same memory?
fn last_of_memories(processes: &[ProcessImage]) -> Vec<bool> {
    let memory = |p: &ProcessImage| p.shares.first(Shared::Memory).unwrap_or(p.ids.pid);
    let mut seen = BTreeSet::new();
    let mut last: Vec<bool> = processes.iter().rev().map(|p| seen.insert(memory(p))).collect();
    last.reverse();
    last
}

/// A socket whose real end is at home.
enum Socket {
    Tcp(tcp::State),
    Udp(udp::Bound),
}

/// The sockets of an image that are relayed, by their streams.
fn sockets(parcel: &Parcel) -> Result<BTreeMap<u32, Socket>> {
    let mut all = BTreeMap::new();
    for (object, stream) in &parcel.streams {
        let object = parcel.image.files.objects.get(*object as usize);
        let object = object.context("a relay of no descriptor")?;
        let tcp = tcp::State::of(object)?.map(Socket::Tcp);
        let udp = udp::State::bound(object)?.map(Socket::Udp);
        all.extend(tcp.or(udp).map(|socket| (*stream, socket)));
    }
    Ok(all)
}

/// Makes the job's socket, if it has one still, and the away half of its relay.
fn rebuild_socket(
    away: &mut Relays,
    envelopes: &mut Envelopes,
    state: &AwayState,
    socket: Option<Socket>,
) -> Result<Option<OwnedFd>> {
    match (&state.end, socket) {
        (AwayEnd::Listener(_), Some(Socket::Tcp(tcp::State::Listener(listener)))) => {
            let job = envelopes.listen(state.stream, &listener)?;
            away.rebuild_listener(state.clone(), Some(job.try_clone()?))?;
            Ok(Some(job))
        }
        (AwayEnd::Tcp(_), Some(Socket::Tcp(tcp::State::Connection(connection)))) => {
            let pair = envelopes.connect(&connection)?;
            away.rebuild_socket(state.clone(), Some((pair.job.as_fd(), pair.far)))?;
            Ok(Some(pair.job))
        }
        (AwayEnd::Datagrams(datagrams), Some(Socket::Udp(bound))) => {
            let made = udp::envelope::make(&bound, datagrams.usual())?;
            away.rebuild_datagrams(state.clone(), Some(made.wires))?;
            Ok(Some(made.job))
        }
        (AwayEnd::Datagrams(_), None) => {
            away.rebuild_datagrams(state.clone(), None)?;
            Ok(None)
        }
        (AwayEnd::Listener(_), None) => {
            away.rebuild_listener(state.clone(), None)?;
            Ok(None)
        }
        (AwayEnd::Tcp(_), None) => {
            away.rebuild_socket(state.clone(), None)?;
            Ok(None)
        }
        _ => bail!("a relay of another kind than its socket"),
    }
}

fn is_tty(fd: &OwnedFd) -> bool {
    std::io::IsTerminal::is_terminal(fd)
}

/// How the job's end of a relay is recognised later.
fn key_of(end: &OwnedFd) -> Result<StreamKey> {
    let m = File::from(end.try_clone()?).metadata()?;
    let flags = nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_GETFL)?;
    Ok((m.dev(), m.ino(), Class::of(m.mode() & libc::S_IFMT, flags, is_tty(end))))
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

/// The clock of a frame is behind by as long as its plan was on the way: milliseconds, or more if the
/// machine is busy.
const MOST_BEHIND: Duration = Duration::from_secs(10);

/// Waits until the job's monotonic clock has passed `reached`, the coarse one too.
fn wait_for_clock(skeleton: &Skeleton, reached: i128) -> Result<()> {
    let ahead = match skeleton.ahead {
        Some(ahead) => ahead.monotonic,
        None => {
            let own = offsets("self").context("time namespace")?;
            let theirs = offsets(&skeleton.pid.to_string()).context("time namespace")?;
            theirs.0 - own.0
        }
    };
    wait_until_past(ahead, reached)
}

/// Waits until this clock, moved on by `ahead` nanoseconds, has passed `reached`.
fn wait_until_past(ahead: i128, reached: i128) -> Result<()> {
    let reached = reached + coarse_tick().context("clock_getres")?;
    let now = own_clocks()?.monotonic + ahead;
    if now < reached {
        let missing = Duration::from_nanos(u64::try_from(reached - now)?);
        ensure!(missing <= MOST_BEHIND, "the job's clock is behind by {missing:?}: try again");
        std::thread::sleep(missing);
    }
    Ok(())
}

/// A process that has no controlling terminal, in a session that has one, gives it up again.
fn give_up_terminal(Restored { pid, image, .. }: &Restored, missed: &Missed) {
    if !terminals::is_too_much(*pid, image) {
        return;
    }
    if let Err(e) = late::give_up_terminal(*pid, image) {
        let pid = image.ids.pid;
        missed.add(format!("process {pid} has the terminal of its session again: {e}"));
    }
}

/// Takes the locks that nobody holds. The source's copy may hold those on a file of both nodes;
/// any other that is not to be had is held by a program here.
fn take_locks(process: &mut Restored) -> Result<()> {
    late::try_to_open(process.pid, &process.image)
        .with_context(|| format!("a leased file of process {}", process.image.ids.pid))?;
    let missed = match process.image.locks.is_empty() {
        true => Vec::new(),
        false => late::take(process.pid, &process.image, &process.image.locks)?,
    };
    for (lock, e) in missed {
        let of_source = lock.is_of_source(process.pid).unwrap_or(false);
        ensure!(of_source, "process {} cannot take its {lock}: {e}", process.image.ids.pid);
        process.locks.push(lock);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_far_behind_is_waited_for() {
        let reached = own_clocks().expect("clock").monotonic + 1_200_000_000;
        wait_until_past(0, reached).expect("wait");
        assert!(own_clocks().expect("clock").monotonic >= reached);
        assert!(wait_until_past(0, reached + 3_600_000_000_000).is_err());
    }
}
