//! What the source sends: files ahead of the freeze, then the frozen job.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::unistd::{getpgid, getpgrp, Pid};

use super::super::hook::reached;
use super::super::{stream_key, Class, Mover, StreamKey, CHUNK};
use super::{
    cancelled, fd_stopped, job_clocks, out_of_order, own, part_stopped, refused, stopped, Agreed,
    Frozen, Laps, Step1, Target, PATIENCE, READY_PATIENCE,
};
use crate::control::Phase;
use crate::migrate::capture::{self, Capturing};
use crate::migrate::family;
use crate::migrate::files::Files;
use crate::migrate::freeze::FrozenJob;
use crate::migrate::heritage::Handed;
use crate::migrate::image::{JobImage, ProcessImage};
use crate::migrate::leaving;
use crate::migrate::message::{Msg, Parcel};
use crate::migrate::near::Near;
use crate::migrate::outside::{read_ahead, Subject};
use crate::migrate::preflight::{self, Forwarded};
use crate::migrate::programs;
use crate::migrate::raw::Shared;
use crate::migrate::resource::fd::{self, pty, BulkSource, FdView};
use crate::migrate::resource::filters;
use crate::migrate::resource::memory::{read_common, read_pages, FileId};
use crate::migrate::resource::timers;
use crate::migrate::sharing::{perhaps_shared, send_objects_once, Divided, Sent};
use crate::migrate::skeleton::Plan;
use crate::migrate::stops;
use crate::migrate::terminals::{self, Terminal};
use crate::migrate::thread_files;
use crate::proxy::{AwayState, HomeEnd, JobControl};
use crate::tracer::memory::{task_state, PageMap};

/// Bytes that may wait for the network.
const WINDOW: usize = 1 << 20;

/// Which object of an image is the job's end of which stream.
type Streams = Vec<(u32, u32)>;

/// A member of the job was killed just before it was frozen, or while it is.
pub(super) const KILLED: &str = "VOS-EXITED";

/// A process of the frozen job that has ended.
fn ended(job: &FrozenJob) -> Option<i32> {
    let is_alive = |pid: i32| !matches!(task_state(pid), None | Some('Z' | 'X'));
    job.processes.iter().map(|process| process.pid).find(|pid| !is_alive(*pid))
}

impl Mover {
    /// Sends the content of files that the target lacks.
    pub(super) fn ship(&mut self, target: &Target, files: &[FileId]) -> Step1<()> {
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
    pub(super) fn flow(&mut self, target: &Target) -> Step1<()> {
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
            if self.is_cancelled() {
                return Err(cancelled());
            }
        }
    }

    /// Captures the frozen job, sends everything, and waits for READY. `plan` is the frame that
    /// the target has made, with the memory that was `handed` down through it.
    pub(super) fn send_frozen(
        &mut self,
        target: &Target,
        frozen: &mut Frozen,
        agreed: &Agreed,
        (plan, handed): (&Plan, &Handed),
        laps: &mut Laps,
    ) -> Step1<JobImage> {
        reached("frozen");
        let leave = if agreed.foreign_vdso { leaving::leave_vdso } else { leaving::finish_clocks };
        let left = frozen.job.processes.iter_mut().try_for_each(leave).map_err(part_stopped);
        let captured = left.and_then(|()| self.capture(frozen, agreed, plan));
        let (parcel, bulk) = captured.map_err(|failed| match ended(&frozen.job) {
            Some(pid) => stopped(11, KILLED, format!("process {pid} was killed meanwhile")),
            None => failed,
        })?;
        laps.lap("capture");
        let mut files = parcel.image.processes.iter().flat_map(|p| &p.memory.files);
        let ahead = files.all(|file| agreed.mapped.contains(file));
        self.send_parcel(target, &parcel)?;
        if !ahead {
            self.answer_unknown(target)?;
        }
        self.send_bulk(target, &bulk)?;
        self.send_memory(target, &frozen.job, &parcel.image, (plan, handed))?;
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
        Ok(parcel.image)
    }

    /// The image of the frozen job with what belongs to it, and the content that travels apart.
    /// Its processes are in the order of the plan; those of `frozen` are brought into it.
    fn capture(
        &mut self,
        frozen: &mut Frozen,
        agreed: &Agreed,
        plan: &Plan,
    ) -> Step1<(Parcel, Vec<BulkSource>)> {
        let mut files = self.files(&frozen.job.pids()).map_err(own)?;
        let apart = self.check_apart(&files, &frozen.job.pids()).map_err(own)?;
        apart.map_or(Ok(()), |finding| Err(refused(finding)))?;
        files.look_into_sockets().map_err(fd_stopped)?;
        self.learn_accepted(&files);
        let forwarded = self.still_forwarded(&files, agreed).map_err(own)?;
        let chosen = self.choose_ipc(&frozen.job.pids(), true).map_err(refused)?;
        if agreed.translated {
            let is_forwarded = |v: &FdView| forwarded.contains(&(v.dev, v.ino));
            let mut come = files.untranslated(is_forwarded);
            come.extend(filters::untranslated(self.sup.session.handles.filters()));
            come.extend(programs::untranslated(&plan.members, &plan.programs));
            come.into_iter().next().map_or(Ok(()), |finding| Err(refused(finding)))?;
        }
        let terminals = self.terminals(&files, plan)?;
        files.take_queues(&mut frozen.ptys).map_err(fd_stopped)?;
        let is_forwarded = |v: &FdView| forwarded.contains(&(v.dev, v.ino));
        let (relays, streams) = self.freeze_relays(frozen, &files, &is_forwarded)?;
        let (fds, bulk) = files.capture(is_forwarded).map_err(fd_stopped)?;
        let sets = self.semaphores(&chosen)?;
        let mut locks = files.locks().map_err(fd_stopped)?;
        let running = self.sup.session.running_restarts();
        let FrozenJob { processes, scheduler_now } = &mut frozen.job;
        let common = self.common();
        let subjects: Vec<Subject> = processes.iter().map(Subject::from).collect();
        let one_memory = plan.members.iter().any(|m| m.shares.first(Shared::Memory).is_some());
        let images = read_ahead(&subjects, &fds.identities, &common, one_memory, |next| {
            let near = Near::stay();
            let mut of = Capturing::new(scheduler_now, &running);
            (of.sets, of.near) = (&sets, near.as_ref());
            let mut images = BTreeMap::new();
            for process in processes.iter_mut() {
                let table = files.table(process.pid);
                let image = capture::capture(process, next()?, table, &mut of)?;
                let locks = locks.remove(&process.pid).unwrap_or_default();
                images.insert(process.pid, ProcessImage { locks, ..image });
            }
            Ok((images, of.numbers))
        });
        let (mut images, numbers) = images.map_err(part_stopped)?;
        let places: BTreeMap<i32, usize> =
            plan.members.iter().zip(0..).map(|(member, n)| (member.ids.pid, n)).collect();
        let place = |image: &ProcessImage| places.get(&image.ids.pid);
        processes.sort_by_cached_key(|process| images.get(&process.pid).map(place));
        let handles = &self.sup.session.handles;
        let mut annotations = Vec::new();
        for (n, process) in (0..).zip(processes.iter()) {
            for slot in files.table(process.pid) {
                let annotation = handles.annotation(process.pid, slot.fd);
                annotations.extend(annotation.map(|known| (n, slot.fd, known)));
            }
            let Some(image) = images.get_mut(&process.pid) else { continue };
            for (thread, image_of) in process.threads.iter().zip(&mut image.threads) {
                if !files.is_apart(thread.tid) {
                    continue;
                }
                let parked = thread_files::park(&mut image.table, files.table(thread.tid));
                let parked = parked.map_err(own)?;
                for slot in &parked {
                    let annotation = handles.annotation(thread.tid, slot.fd);
                    annotations.extend(annotation.map(|known| (n, slot.parked, known)));
                }
                image_of.files = Some(parked);
            }
        }
        let mut images: Vec<ProcessImage> =
            processes.iter().filter_map(|process| images.remove(&process.pid)).collect();
        let pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
        if !terminals.is_empty() {
            terminals::note_without(&pids, &mut images);
        }
        stops::note_taken(&pids, &numbers, &mut images).map_err(part_stopped)?;
        timers::note_absolute(&pids, &mut images, self.sup.session.handles.timers())
            .map_err(part_stopped)?;
        family::adopt(&mut images, plan).map_err(own)?;
        let ipc = self.capture_ipc(&chosen, &frozen.job, &mut images)?;
        self.note_left_behind(&chosen, &files, frozen).map_err(own)?;
        send_objects_once(&mut images);
        let (nodename, domainname) = self.names().map_err(own)?;
        let parcel = Parcel {
            annotations,
            image: JobImage {
                job: self.job_info(),
                clocks: job_clocks(&self.sup.session).map_err(own)?,
                nodename,
                domainname,
                files: fds,
                processes: images,
                zombies: family::zombies(plan),
                ipc,
                terminals,
            },
            relays,
            relays_lost: self.has_lost_relays(),
            streams,
            signals_taken: self.forward.next(),
        };
        Ok((parcel, bulk))
    }

    /// The controlling terminals of the frozen job, which are those of the frame.
    fn terminals(&self, files: &Files, plan: &Plan) -> Step1<Vec<Terminal>> {
        let terminals = terminals::of(files, self.sup.session.root).map_err(fd_stopped)?;
        let ptys = pty::has_any(&files.views.objects);
        let now = Plan { terminals, ptys, ..plan.clone() };
        if now.has_terminals_of(plan) {
            return Ok(now.terminals);
        }
        Err(stopped(11, pty::PASSING, "the job's terminals have changed during the move"))
    }

    fn still_forwarded(&self, files: &Files, agreed: &Agreed) -> std::io::Result<Forwarded> {
        match self.has_lost_relays() {
            true => Ok(agreed.forwarded.clone()),
            false => preflight::still_forwarded(files, &self.known_forwarded(), &agreed.forwarded),
        }
    }

    /// Freezes what is relayed, or begins to relay it. Gives the states of the away halves,
    /// and which object is which stream.
    fn freeze_relays(
        &mut self,
        frozen: &mut Frozen,
        files: &Files,
        is_forwarded: &dyn Fn(&FdView) -> bool,
    ) -> Step1<(Vec<AwayState>, Streams)> {
        if let Some(finding) = self.made_away(files) {
            return Err(refused(finding));
        }
        let mut ends: BTreeMap<StreamKey, OwnedFd> = BTreeMap::new();
        let mut keys = Vec::new();
        for (object, view) in (0..).zip(&files.views.objects) {
            if is_forwarded(view) {
                let fd = files.duplicate(view).map_err(own)?;
                ends.entry(stream_key(view)).or_insert(fd);
                keys.push((object, stream_key(view)));
            }
        }
        self.freeze_away(frozen, &ends)?;
        if self.is_home() {
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
        let mut all: Vec<u32> = away.streams().collect();
        // They tell which connections the job has accepted.
        all.sort_by_key(|stream| !away.is_listener(*stream));
        for stream in all {
            let end = self.streams.iter().find(|(_, s)| **s == stream);
            let end = end.and_then(|(key, _)| ends.get(key)).map(AsFd::as_fd);
            frozen.states.push(away.freeze(stream, end).map_err(own)?);
        }
        Ok(())
    }

    /// Begins to relay what is not relayed yet: everything, or connections that the job has made
    /// since it came home.
    fn begin_home(&mut self, frozen: &mut Frozen, ends: BTreeMap<StreamKey, OwnedFd>) -> Step1<()> {
        let first = self.away.is_none();
        if first {
            self.home = Some(self.new_relays().map_err(own)?);
            frozen.new_home = true;
            self.streams.clear();
        }
        let all = first || self.joins.only;
        let new = |(key, _): &(StreamKey, OwnedFd)| {
            (all || key.2 == Class::Connection) && !self.streams.contains_key(key)
        };
        let new: Vec<_> = ends.into_iter().filter(new).collect();
        let control = match new.iter().any(|(key, _)| key.2 == Class::Terminal) {
            true => self.job_control(frozen).map_err(own)?,
            false => JobControl::Own,
        };
        // Lost with a supervisor.
        let Some(home) = &mut self.home else { return Ok(()) };
        for (key, fd) in new {
            let end = match key.2 {
                Class::Terminal => HomeEnd::Terminal(fd, control),
                Class::Read => HomeEnd::Input(fd),
                Class::Written => HomeEnd::Output(fd),
                Class::Connection => socket_end(fd),
            };
            let stream = home.new_stream();
            if !first {
                frozen.begun.push(stream);
            }
            frozen.states.push(home.add_home(stream, end).map_err(own)?);
            self.streams.insert(key, stream);
        }
        Ok(())
    }

    fn job_control(&self, frozen: &Frozen) -> std::io::Result<JobControl> {
        let group = self.group_at_terminal(&frozen.job.pids())?;
        Ok(match self.sup.job.meta.attached {
            true => JobControl::Of(self.sup.session.root),
            false if group == getpgrp() => JobControl::Own,
            false => JobControl::OwnFor(group.as_raw()),
        })
    }

    /// The foreground group of the job's terminal if that is a group of the job, else that of
    /// its first process.
    fn group_at_terminal(&self, pids: &[i32]) -> std::io::Result<Pid> {
        let root = self.sup.session.root;
        let stat = procfs::process::Process::new(root).and_then(|p| p.stat());
        let foreground = stat.map_err(std::io::Error::other)?.tpgid;
        if foreground > 0 && terminals::member_of_group(pids, foreground).is_some() {
            return Ok(Pid::from_raw(foreground));
        }
        Ok(getpgid(Some(Pid::from_raw(root)))?)
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

    fn send_memory(
        &mut self,
        target: &Target,
        job: &FrozenJob,
        image: &JobImage,
        (plan, handed): (&Plan, &Handed),
    ) -> Step1<()> {
        let total = image.data_bytes();
        let (mut done, mut shown) = (0, 0);
        let mut buf = vec![0; CHUNK];
        let moved = self.init.is_some();
        let mut sent = (image.processes.len() > 1).then(Sent::default);
        let members = plan.members.iter().enumerate().filter(|(_, m)| m.ended.is_none());
        let places: Vec<usize> = members.map(|(place, _)| place).collect();
        for (n, (frozen, process)) in (0..).zip(job.processes.iter().zip(&image.processes)) {
            let place = places.get(n as usize).copied().unwrap_or(plan.members.len());
            let inherited = handed.inherited(place, &process.memory);
            let map = PageMap::open(frozen.pid).map_err(own)?;
            for ranges in chunks(&process.memory.data) {
                let len: u64 = ranges.iter().map(|(s, e)| e - s).sum();
                let piece = &mut buf[..len as usize];
                let mut shared = match &sent {
                    Some(_) => perhaps_shared(&map, &ranges).map_err(own)?,
                    None => Vec::new(),
                };
                let read = if shared.contains(&true) { read_common } else { read_pages };
                read(frozen.pid, &ranges, piece)
                    .map_err(|e| own(format!("reading memory of {}: {e}", frozen.pid)))?;
                match &mut sent {
                    Some(sent) => {
                        if moved {
                            // Each process has got pages of its own, but of the same content.
                            shared.fill(true);
                        }
                        let divided = sent.divide(n, &ranges, piece, &shared, &inherited);
                        self.send_divided(target, n, divided, &buf);
                    }
                    None => self.send(target.key, &Msg::Pages { process: n, ranges }, piece),
                }
                done += len;
                if done - shown > 64 << 20 {
                    shown = done;
                    self.progress(&target.name, Phase::Copy, String::new(), Some((done, total)));
                }
                self.flow(target)?;
            }
        }
        self.send(target.key, &Msg::PagesEnd, &[]);
        self.progress(&target.name, Phase::Copy, String::new(), Some((done, total)));
        Ok(())
    }

    fn send_divided(&mut self, target: &Target, process: u32, divided: Divided, bytes: &[u8]) {
        let Divided { ranges, len, same } = divided;
        if !ranges.is_empty() {
            self.send(target.key, &Msg::Pages { process, ranges }, &bytes[..len]);
        }
        for (from, ranges) in same {
            self.send(target.key, &Msg::Same { process, from, ranges }, &[]);
        }
    }
}

/// The real end of a socket.
fn socket_end(fd: OwnedFd) -> HomeEnd {
    match (fd::udp::is_datagram(&fd), fd::tcp::is_listening(&fd)) {
        (true, _) => HomeEnd::Datagrams(fd),
        (false, true) => HomeEnd::Listener(fd),
        (false, false) => HomeEnd::Socket(fd),
    }
}

/// Ranges in pieces of at most [`CHUNK`] bytes.
pub(super) fn chunks(ranges: &[(u64, u64)]) -> Vec<Vec<(u64, u64)>> {
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
