//! The descriptors of the new processes, made by the first of them and handed to the others.
//!
//! ```text
//! supervisor                      first process                     another process
//! Build, provided ──────────────► make all objects of the job
//!        ◄─────────────────────── those that others hold
//!                                 place, finish
//!        ◄───────────────── Built
//! Build, ready ───────────────────────────────────────────────────► place, finish
//!        ◄─────────────────────────────────────────────────────────── Built
//! ```
//! [`shares`] says who makes, hands out, takes and finishes what.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::image::FdImage;
use super::raw;
use super::resource::fd::unix::{Cred, Deed, Renames};
use super::resource::fd::{self, FdError, Making, Object, RestoreCx, Slot};
use super::resource::memory::SharedObject;
use super::skeleton::{
    io_error, pair, receive, send, Request, Result, SkeletonError, Word, MAX_FDS,
};
use crate::syscalls::translate::objects::{self, Objects};
use crate::syscalls::translate::{numbers, ptys};

/// What a process makes of the image before it loses its old memory. Objects are counted as in
/// `objects`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Build {
    pub objects: Vec<Object>,
    /// Device and inode of each object at the source.
    pub identities: Vec<(u64, u64)>,
    pub table: Vec<Slot>,
    /// Files to open for mappings: path, for writing.
    pub paths: Vec<(String, bool)>,
    /// The executable; empty when another process has the same memory and opens it.
    pub exe: String,
    /// Shared memory that it maps.
    pub shared: Vec<SharedObject>,
    /// Objects that are made of a descriptor that comes along ([`RestoreCx::provided`]).
    pub provided: Vec<u32>,
    /// Objects that another process of the job has made, and that come along.
    pub ready: Vec<u32>,
    /// Which of `shared` come along: what other processes map as well, or hold.
    pub shared_given: Vec<u32>,
    /// Objects that other processes hold, to be answered.
    pub hand_out: Vec<u32>,
    /// Objects that nobody holds: they are on their way inside of sockets.
    pub carried: Vec<u32>,
    /// Objects of `table` that are finished by this process ([`fd::FdKind::finish`]).
    pub finish: Vec<u32>,
    /// Descriptors of other processes that have the same table, which stay open.
    pub others: Vec<RawFd>,
    /// The table is that of another process, which fills it: nothing is closed.
    pub takes_table: bool,
    /// Without namespaces: the job's number of each process, and the one here.
    pub numbers: Vec<(i32, i32)>,
    /// Without namespaces: names of message queues.
    pub names: Option<Objects>,
}

impl Build {
    /// How many descriptors come along: for `provided`, `ready` and `shared_given`.
    fn given(&self) -> usize {
        self.provided.len() + self.ready.len() + self.shared_given.len()
    }
}

/// Descriptors that a new process holds for its mappings.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Built {
    pub paths: Vec<RawFd>,
    pub exe: RawFd,
    pub shared: Vec<RawFd>,
    /// Files of sockets that take their places when the job runs.
    pub renames: Renames,
    /// Without namespaces: the job's number of each pty, and the one here.
    pub ptys: Vec<(u32, u32)>,
}

/// The part of one process in making the descriptors of a job.
#[derive(Debug, Clone, Default)]
pub struct Share {
    /// Without mappings, `provided` and `shared_given`. The objects of the first process are
    /// those of the job, each other process knows only its own.
    pub build: Build,
    /// The objects of the job that stand for `build.ready`.
    pub ready: Vec<u32>,
}

/// Divides the work among the processes of a job, given by their tables: the first makes all
/// objects, and the first that holds an object finishes it.
#[must_use]
pub fn shares(files: &FdImage, tables: &[&[Slot]]) -> Vec<Share> {
    let mut finished = BTreeSet::new();
    let mut all = Vec::with_capacity(tables.len());
    for table in tables {
        let own: BTreeSet<u32> = table.iter().map(|slot| slot.object).collect();
        let finish = own.iter().copied().filter(|object| finished.insert(*object)).collect();
        all.push(if all.is_empty() {
            maker(files, tables, finish)
        } else {
            taker(files, table, own, &finish)
        });
    }
    all
}

fn maker(files: &FdImage, tables: &[&[Slot]], finish: Vec<u32>) -> Share {
    let others = tables.iter().skip(1).copied().flatten();
    let hand_out: BTreeSet<u32> = others.map(|slot| slot.object).collect();
    let held: BTreeSet<u32> = tables.iter().copied().flatten().map(|slot| slot.object).collect();
    let carried = (0..files.objects.len() as u32).filter(|object| !held.contains(object));
    let build = Build {
        objects: files.objects.clone(),
        identities: files.identities.clone(),
        table: tables.first().map(|table| table.to_vec()).unwrap_or_default(),
        hand_out: hand_out.into_iter().collect(),
        carried: carried.collect(),
        finish,
        ..Build::default()
    };
    Share { build, ready: Vec::new() }
}

/// The state of an object goes only to who finishes it.
fn taker(files: &FdImage, table: &[Slot], own: BTreeSet<u32>, finish: &[u32]) -> Share {
    let number: HashMap<u32, u32> = own.iter().copied().zip(0..).collect();
    let mut build = Build { ready: (0..own.len() as u32).collect(), ..Build::default() };
    for index in &own {
        let mut object = files.objects[*index as usize].clone();
        if finish.binary_search(index).is_err() {
            object.state = Vec::new();
        }
        build.objects.push(object);
        build.identities.push(files.identities[*index as usize]);
    }
    build.table = table.iter().map(|slot| Slot { object: number[&slot.object], ..*slot }).collect();
    build.finish = finish.iter().map(|index| number[index]).collect();
    Share { build, ready: own.into_iter().collect() }
}

/// Has a process of the job do something with descriptors; gives what was made.
pub(super) type Act<'a> = dyn Fn(Cred, &Deed, &[OwnedFd]) -> io::Result<Vec<OwnedFd>> + 'a;

/// The supervisor's side of [`build_and_wait`]: gives `fds`, and gets what is handed out.
pub(super) fn ask(
    control: BorrowedFd,
    build: &Build,
    fds: &[BorrowedFd],
    act: &Act,
) -> Result<(Built, Vec<OwnedFd>)> {
    let answer = || receive::<Word>(control).map_err(io_error("descriptors of the new process"));
    let tell =
        |request, fds: &[RawFd]| send(control, &request, fds).map_err(io_error("send descriptors"));
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut pieces = fds.chunks(MAX_FDS);
    let mut handed = Vec::new();
    tell(Request::Build(Box::new(build.clone())), pieces.next().unwrap_or_default())?;
    loop {
        match answer()? {
            (Word::More, _, some) if !some.is_empty() => {
                handed.extend(some);
                tell(Request::More, &[])?;
            }
            (Word::More, ..) => tell(Request::More, pieces.next().unwrap_or_default())?,
            (Word::Built(built), ..) if handed.len() == build.hand_out.len() => {
                return Ok((built, handed));
            }
            (Word::Built(_), ..) => {
                let what = "descriptors from the new process were lost: the limit of open files";
                return Err(SkeletonError::Step(what.into()));
            }
            (Word::Act(by, deed), _, fds) => {
                let done = act(by, &deed, &fds);
                let errno = done.as_ref().err().map_or(0, errno);
                let made = done.unwrap_or_default();
                let made: Vec<RawFd> = made.iter().map(AsRawFd::as_raw_fd).collect();
                tell(Request::Acted(errno), &made)?;
            }
            (Word::StoodFor(job, host), ..) => numbers::stood_for(job, host),
            (Word::Failed(text), ..) => return Err(SkeletonError::Step(text)),
            _ => return Err(SkeletonError::Step("out of order".into())),
        }
    }
}

/// In the new process: makes all descriptors, answers, and waits to be stopped for ever.
pub(super) fn build_and_wait(build: &Build, control: OwnedFd, fds: Vec<OwnedFd>) -> ! {
    build.numbers.iter().for_each(|(job, host)| numbers::bind(*job, *host));
    objects::take(build.names.clone());
    let mut keep = [control.into_raw_fd()];
    let making = Making::begin(&build.objects, &build.table, build.given(), &mut keep);
    // Either where it was, or where it has been moved.
    let control = raw::own(keep[0]);
    let built = match making {
        Ok(making) => make(build, making, control.as_fd(), fds),
        Err(e) => Err(e.to_string()),
    };
    let word = match built {
        Ok(built) => Word::Built(built),
        Err(text) => Word::Failed(text),
    };
    let _ = send(control.as_fd(), &word, &[]);
    // The supervisor stops this process here; it goes on only as the job.
    loop {
        if receive::<Request>(control.as_fd()).is_err() {
            raw::exit_now(1);
        }
    }
}

fn make(
    build: &Build,
    mut making: Making,
    control: BorrowedFd,
    fds: Vec<OwnedFd>,
) -> std::result::Result<Built, String> {
    let text = |e: FdError| e.to_string();
    if let Some(slot) = build.table.iter().find(|slot| build.others.contains(&slot.fd)) {
        return Err(format!("descriptor {} is in use while the table is shared", slot.fd));
    }
    let fds = take_all(control, build.given(), fds)?;
    let mut fds = fds.into_iter();
    let mut cx = Provided { fds: HashMap::new(), shared: fd::Shared::default(), control };
    for (object, fd) in build.provided.iter().zip(&mut fds) {
        cx.fds.insert(*object, making.lift(fd).map_err(text)?);
    }
    for (object, fd) in build.ready.iter().zip(&mut fds) {
        making.take(*object, fd).map_err(text)?;
    }
    let mut memory = BTreeMap::new();
    for (index, fd) in build.shared_given.iter().zip(&mut fds) {
        memory.insert(*index as usize, making.lift(fd).map_err(text)?);
    }
    making.make(&build.hand_out, &build.carried, &mut cx).map_err(text)?;
    hand_out(build, &making, control)?;
    for (index, object) in mapped_only(build) {
        let fd = making.get(object).and_then(|fd| making.lift_copy(fd)).map_err(text)?;
        memory.entry(index).or_insert(fd);
    }
    making.place().map_err(text)?;
    making.finish(&build.finish).map_err(text)?;
    let renames = making.take_renames();
    if !build.takes_table {
        let kept = memory.values().map(AsRawFd::as_raw_fd).chain([control.as_raw_fd()]);
        let keep: Vec<RawFd> = kept.chain(build.others.iter().copied()).collect();
        making.close_others(&keep).map_err(text)?;
    }
    Ok(Built { renames, ptys: ptys::all(), ..for_mappings(build, &memory)? })
}

/// Memory that this process maps and holds no descriptor of, while another one does: places in
/// `build.shared`, and the objects.
fn mapped_only(build: &Build) -> impl Iterator<Item = (usize, u32)> + '_ {
    build.shared.iter().enumerate().filter_map(|(index, memory)| {
        let object = object_of(&build.identities, memory)?;
        let handed = build.hand_out.contains(&object);
        (handed && build.table.iter().all(|slot| slot.object != object)).then_some((index, object))
    })
}

/// The description of this memory, if there is one.
#[must_use]
pub fn object_of(identities: &[(u64, u64)], memory: &SharedObject) -> Option<u32> {
    let at = identities.iter().position(|id| *id == (memory.dev, memory.ino));
    at.map(|at| at as u32)
}

/// Asks for the descriptors that did not come with the first message.
fn take_all(
    control: BorrowedFd,
    wanted: usize,
    mut fds: Vec<OwnedFd>,
) -> std::result::Result<Vec<OwnedFd>, String> {
    let tried = |e: io::Error| format!("receive {wanted} descriptors: {e}");
    // All messages but the last are full.
    let mut some = fds.len();
    while fds.len() < wanted && some == MAX_FDS {
        send(control, &Word::More, &[]).map_err(tried)?;
        let (_, _, more) = receive::<Request>(control).map_err(tried)?;
        some = more.len();
        fds.extend(more);
    }
    if fds.len() != wanted {
        return Err(format!("{} of {wanted} descriptors have come", fds.len()));
    }
    Ok(fds)
}

/// Gives the supervisor what other processes hold.
fn hand_out(
    build: &Build,
    making: &Making,
    control: BorrowedFd,
) -> std::result::Result<(), String> {
    let tried = |e: io::Error| format!("hand out descriptors: {e}");
    for piece in build.hand_out.chunks(MAX_FDS) {
        let fds = piece.iter().map(|object| making.get(*object).map(|fd| fd.as_raw_fd()));
        let fds = fds.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
        send(control, &Word::More, &fds).map_err(tried)?;
        // Only then the next: descriptors on their way are limited (unix(7), ETOOMANYREFS).
        receive::<Request>(control).map_err(tried)?;
    }
    Ok(())
}

fn open(path: &str, write: bool) -> std::result::Result<RawFd, String> {
    let file = fs::OpenOptions::new().read(true).write(write).open(path);
    file.map(IntoRawFd::into_raw_fd).map_err(|e| format!("open {path} for a mapping: {e}"))
}

/// Opens what the mappings need. These descriptors are closed when the mappings are made.
fn for_mappings(
    build: &Build,
    given: &BTreeMap<usize, OwnedFd>,
) -> std::result::Result<Built, String> {
    let mut built = Built::default();
    for (path, write) in &build.paths {
        built.paths.push(open(path, *write)?);
    }
    built.exe = if build.exe.is_empty() { -1 } else { open(&build.exe, false)? };
    for (index, memory) in build.shared.iter().enumerate() {
        let name = &memory.name;
        let object = object_of(&build.identities, memory);
        let slot = build.table.iter().find(|s| Some(s.object) == object);
        let held = given.get(&index).map(AsRawFd::as_raw_fd).or(slot.map(|slot| slot.fd));
        built.shared.push(match held {
            Some(fd) => for_writing(fd)?,
            // Attached, not mapped.
            None if memory.segment.is_some() => -1,
            // Its content is not with the pages.
            None if memory.held => return Err(format!("memory {name}: held elsewhere")),
            None => shared_memory(name, memory.size)
                .map(IntoRawFd::into_raw_fd)
                .map_err(|e| format!("memory {name}: {e}"))?,
        });
    }
    Ok(built)
}

/// The object of this descriptor for a mapping, which may write where the descriptor may not:
/// opened through /proc then.
fn for_writing(fd: RawFd) -> std::result::Result<RawFd, String> {
    let path = format!("/proc/self/fd/{fd}");
    open(&path, true).or_else(|_| open(&path, false))
}

/// Shared memory that no descriptor holds, as a memfd.
///
/// # Errors
/// When the kernel has no memory for it.
pub fn shared_memory(name: &str, size: u64) -> io::Result<OwnedFd> {
    let name: String = name.rsplit('/').next().unwrap_or("").chars().take(200).collect();
    let fd = raw::memfd(&name)?;
    fs::File::from(fd.try_clone()?).set_len(size)?;
    Ok(fd)
}

/// Descriptors that came with the message, by the object they stand for.
struct Provided<'a> {
    fds: HashMap<u32, OwnedFd>,
    shared: fd::Shared,
    control: BorrowedFd<'a>,
}

impl RestoreCx for Provided<'_> {
    fn provided(&mut self, object: u32) -> Option<OwnedFd> {
        self.fds.remove(&object)
    }
    fn shared(&mut self) -> &mut fd::Shared {
        &mut self.shared
    }
    fn act(
        &mut self,
        by: Option<Cred>,
        deed: &Deed,
        fds: &[BorrowedFd],
    ) -> io::Result<Vec<OwnedFd>> {
        let own = std::process::id() as i32;
        let other = by.filter(|by| numbers::to_host(by.pid) != own);
        let Some(by) = other else { return deed.perform(by, fds) };
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        send(self.control, &Word::Act(by, deed.clone()), &numbers)?;
        match receive::<Request>(self.control)? {
            (Request::Acted(0), _, made) => Ok(made),
            (Request::Acted(libc::ESRCH), ..) => act_as_the_dead(self.control, by, deed, fds),
            (Request::Acted(errno), ..) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// In a process that is there for this only, with the number of one that has ended, or that the
/// supervisor is told to be that one.
fn act_as_the_dead(
    control: BorrowedFd,
    by: Cred,
    deed: &Deed,
    fds: &[BorrowedFd],
) -> io::Result<Vec<OwnedFd>> {
    let (own, theirs) = pair().map_err(io::Error::other)?;
    let child = match raw::fork(Some(by.pid).filter(|_| !numbers::are_own())) {
        // A process that only stands in for one of another job has this number now.
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => return deed.perform(Some(by), fds),
        other => other?,
    };
    if child == 0 {
        let done = deed.perform(Some(by), fds);
        let errno = done.as_ref().err().map_or(0, errno);
        let made = done.unwrap_or_default();
        let numbers: Vec<RawFd> = made.iter().map(AsRawFd::as_raw_fd).collect();
        let _ = send(theirs.as_fd(), &Request::Acted(errno), &numbers);
        raw::exit_now(0);
    }
    drop(theirs);
    let answer = receive::<Request>(own.as_fd());
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None)?;
    if numbers::are_own() {
        send(control, &Word::StoodFor(by.pid, child), &[])?;
    }
    match answer? {
        (Request::Acted(0), _, made) => Ok(made),
        (Request::Acted(errno), ..) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// As another process can be told it.
pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::unix::fs::MetadataExt;

    use nix::sys::signal::{kill, Signal};
    use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};
    use nix::sys::wait::{waitpid, WaitPidFlag};
    use nix::unistd::Pid;

    use super::super::files::Files;
    use super::super::resource::fd::raw as fd_raw;
    use super::super::resource::fd::{testing::Here, FdView};
    use super::*;

    /// A process that waits for its descriptors.
    struct Process {
        pid: i32,
        control: OwnedFd,
    }

    impl Process {
        fn new() -> Self {
            let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
            let (control, theirs) =
                socketpair(AddressFamily::Unix, kind, None, flags).expect("socketpair");
            let pid = fd_raw::forked(move || match receive::<Request>(theirs.as_fd()) {
                Ok((Request::Build(build), _, fds)) => build_and_wait(&build, theirs, fds),
                _ => raw::exit_now(1),
            });
            Self { pid, control }
        }

        fn build(&self, build: &Build, fds: &[BorrowedFd]) -> Result<(Built, Vec<OwnedFd>)> {
            let own = |by: Cred, deed: &Deed, fds: &[OwnedFd]| {
                let fds: Vec<BorrowedFd> = fds.iter().map(AsFd::as_fd).collect();
                deed.perform(Some(by), &fds)
            };
            ask(self.control.as_fd(), build, fds, &own)
        }

        fn fd(&self, fd: i32) -> fs::File {
            let process = crate::tracer::raw::pidfd_open(self.pid).expect("pidfd_open");
            crate::tracer::raw::pidfd_getfd(&process, fd).expect("pidfd_getfd").into()
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            let pid = Pid::from_raw(self.pid);
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }

    /// Two processes with these tables, made as the supervisor does it.
    fn two(files: &FdImage, tables: [&[Slot]; 2]) -> [Process; 2] {
        let processes = [Process::new(), Process::new()];
        let mut handed: BTreeMap<u32, OwnedFd> = BTreeMap::new();
        for (process, mut share) in processes.iter().zip(shares(files, &tables)) {
            share.build.exe = "/proc/self/exe".into();
            let fds: Vec<_> = share.ready.iter().map(|object| handed[object].as_fd()).collect();
            let (_, given) = process.build(&share.build, &fds).expect("build");
            handed.extend(share.build.hand_out.into_iter().zip(given));
        }
        processes
    }

    fn slots(list: &[(i32, u32)]) -> Vec<Slot> {
        list.iter().map(|&(fd, object)| Slot { fd, object, cloexec: fd % 2 == 1 }).collect()
    }

    /// The descriptors of two processes that have these numbers, captured.
    fn captured(processes: &[Process; 2], wanted: [&[Slot]; 2]) -> (FdImage, [Vec<Slot>; 2]) {
        let pids = processes.each_ref().map(|process| process.pid);
        for pid in pids.map(Pid::from_raw) {
            kill(pid, Signal::SIGSTOP).expect("stop");
            waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("wait");
        }
        let files = Files::read(&pids, |_, _| None).expect("files");
        assert_eq!(files.views.warnings, []);
        // The control sockets.
        let socket = |view: &FdView| view.file_type() == libc::S_IFSOCK;
        let (mut image, _) = files.capture(socket).expect("capture");
        // No supervisor makes them anew: anything will do.
        let event = image.objects.iter().find(|o| o.kind == "eventfd").cloned().expect("eventfd");
        for object in
            image.objects.iter_mut().filter(|o| o.kind == crate::migrate::resource::fd::PROVIDED)
        {
            *object = event.clone();
        }
        let table = |at: usize| {
            let wanted = |slot: &Slot| wanted[at].iter().any(|w| w.fd == slot.fd);
            files.table(pids[at]).iter().copied().filter(wanted).collect()
        };
        (image, [table(0), table(1)])
    }

    /// Who shares what: the objects, numbered as they come.
    fn pattern(tables: &[Vec<Slot>; 2]) -> Vec<(i32, u32, bool)> {
        let mut seen: HashMap<u32, u32> = HashMap::new();
        let all = tables.iter().flatten();
        all.map(|slot| {
            let next = seen.len() as u32;
            (slot.fd, *seen.entry(slot.object).or_insert(next), slot.cloexec)
        })
        .collect()
    }

    #[test]
    fn two_processes_share_what_they_shared() {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("f"), "0123456789").expect("write");
        let mut file = fs::File::open(dir.path().join("f")).expect("open");
        file.seek(SeekFrom::Start(4)).expect("seek");
        let (reader, mut writer) = io::pipe().expect("pipe");
        writer.write_all(b"in flight").expect("write");
        let event = fd_raw::eventfd(false).expect("eventfd");
        let epoll = fd_raw::epoll().expect("epoll");
        let (number, add) = (event.as_raw_fd(), libc::EPOLL_CTL_ADD);
        let events = libc::EPOLLIN as u32;
        fd_raw::epoll_ctl(epoll.as_raw_fd(), add, number, events, 77).expect("epoll_ctl");
        let here = Here::of(&[&reader, &writer, &event, &file, &epoll]);
        let objects = vec![
            here.capture(&reader),
            here.capture(&writer),
            here.capture(&event),
            here.capture(&file),
            here.capture(&epoll),
        ];
        let image = FdImage { identities: vec![(0, 0); objects.len()], objects };
        // The interest list speaks of the second's own numbers.
        let high = number + 10;
        let first = slots(&[(0, 1), (3, 3), (4, 3), (high + 1, 2)]);
        let second = slots(&[(0, 0), (number, 2), (high + 2, 3), (high + 3, 4)]);
        let made = two(&image, [&first, &second]);
        let (image, tables) = captured(&made, [&first, &second]);
        assert_eq!(pattern(&tables), pattern(&[first, second]));
        drop(made);

        // Once more, now that the source are two processes.
        let [a, b] = two(&image, [&tables[0], &tables[1]]);
        let mut text = [0; 9];
        b.fd(0).read_exact(&mut text).expect("read");
        assert_eq!(&text, b"in flight");
        a.fd(0).write_all(b"more").expect("write");
        b.fd(0).read_exact(&mut text[..4]).expect("read");
        assert_eq!(&text[..4], b"more");
        a.fd(3).read_exact(&mut text[..2]).expect("read");
        b.fd(high + 2).read_exact(&mut text[2..4]).expect("read");
        assert_eq!(&text[..4], b"4567");
        let ready = || fd_raw::epoll_poll(b.fd(high + 3).as_raw_fd()).expect("epoll_wait");
        assert_eq!(ready(), None);
        a.fd(high + 1).write_all(&1u64.to_ne_bytes()).expect("write");
        assert_eq!(ready(), Some(77));
        // Nobody but the first holds the write end.
        let mut reader = b.fd(0);
        drop(a);
        assert_eq!(reader.read(&mut text).expect("read"), 0);
    }

    #[test]
    fn more_than_one_message_of_descriptors() {
        let event = fd_raw::eventfd(false).expect("eventfd");
        let object = Here::of(&[&event]).capture(&event);
        let count = 2 * MAX_FDS as u32 + 3;
        let objects = vec![object; count as usize];
        let image = FdImage { identities: vec![(0, 0); objects.len()], objects };
        let table = slots(&(0..count).map(|n| (2 * n as i32, n)).collect::<Vec<_>>());
        let reverse = slots(&(0..count).map(|n| (n as i32, count - 1 - n)).collect::<Vec<_>>());
        let made = two(&image, [&table, &reverse]);
        let pids = made.each_ref().map(|process| process.pid);
        let files = Files::read(&pids, |_, _| None).expect("files");
        for slot in table {
            let theirs = count - 1 - slot.object;
            let find = |pid, fd| files.table(pid).iter().find(|slot| slot.fd == fd);
            let one = find(pids[0], slot.fd).expect("in the first").object;
            let other = find(pids[1], theirs as i32).expect("in the second").object;
            assert_eq!(one, other);
        }
    }

    fn memory(name: &str, held: bool) -> SharedObject {
        let name = name.to_owned();
        SharedObject { dev: 1, ino: 2, name, size: 8192, anonymous: true, held, segment: None }
    }

    #[test]
    fn memory_that_comes_along_is_one_object() {
        let given = shared_memory("/dev/zero (deleted)", 8192).expect("memory");
        let build = Build {
            exe: "/proc/self/exe".into(),
            shared: vec![memory("/dev/zero (deleted)", false); 2],
            shared_given: vec![1],
            ..Build::default()
        };
        let inodes = [Process::new(), Process::new()].map(|process| {
            let (built, _) = process.build(&build, &[given.as_fd()]).expect("build");
            let file = |at: usize| process.fd(built.shared[at]);
            file(1).set_len(4096 + 8192).expect("writable");
            [0, 1].map(|at| file(at).metadata().expect("stat").ino())
        });
        assert_ne!(inodes[0][0], inodes[1][0]);
        assert_eq!(inodes[0][1], inodes[1][1]);
        assert_eq!(fs::File::from(given).metadata().expect("stat").ino(), inodes[0][1]);
    }

    #[test]
    fn what_cannot_be_built_is_said() {
        let exe = || "/proc/self/exe".to_owned();
        let failures = [
            Build { table: slots(&[(3, 0)]), ..Build::default() },
            Build { exe: exe(), hand_out: vec![0], ..Build::default() },
            Build { exe: exe(), finish: vec![0], ..Build::default() },
            Build { exe: exe(), ready: vec![0], ..Build::default() },
            Build { exe: exe(), shared: vec![memory("held", true)], ..Build::default() },
            Build { exe: "/no such file".into(), ..Build::default() },
        ];
        for build in failures {
            let failed = Process::new().build(&build, &[]);
            assert!(matches!(failed, Err(SkeletonError::Step(_))), "{build:?}: {failed:?}");
        }
    }

    #[test]
    fn each_object_is_made_once_and_finished_once() {
        let object = |n: u8| Object {
            kind: "eventfd".into(),
            state: vec![n; 3],
            flags: i32::from(n),
            signals: None,
        };
        let image = FdImage {
            objects: (0..5).map(object).collect(),
            identities: (0..5).map(|n| (n, n)).collect(),
        };
        let tables = [slots(&[(0, 1), (1, 1)]), slots(&[(5, 3), (6, 1)]), slots(&[(7, 3), (8, 4)])];
        let tables = tables.each_ref().map(Vec::as_slice);
        let [maker, second, third] = shares(&image, &tables).try_into().expect("three");
        assert_eq!(maker.build.objects, image.objects);
        assert_eq!((maker.build.hand_out, maker.build.finish), (vec![1, 3, 4], vec![1]));
        assert_eq!((maker.ready, maker.build.ready), (vec![], vec![]));
        assert_eq!((second.ready, second.build.ready), (vec![1, 3], vec![0, 1]));
        assert_eq!(second.build.identities, [(1, 1), (3, 3)]);
        assert_eq!(second.build.table, slots(&[(5, 1), (6, 0)]));
        // Object 3 of the job; who does not finish an object need not know its state.
        assert_eq!(second.build.finish, [1]);
        assert!(second.build.objects[0].state.is_empty());
        assert_eq!(second.build.objects[1], image.objects[3]);
        assert_eq!((third.ready, third.build.finish), (vec![3, 4], vec![1]));
        assert!(second.build.hand_out.is_empty() && third.build.hand_out.is_empty());
    }
}
