//! A [`ProcessImage`] becomes a stopped process.
//!
//! ```text
//! Skeleton ─hold──► Restoring::begin   old mappings gone, vdso in place, new mappings made
//!                   Restoring::fill    pages as they arrive
//!                   Restoring::finish  threads made, told their state, registers set
//! ```
//! All calls run in the new process through the batch stub. Until the job owns itself it has
//! PTRACE_O_EXITKILL: a copy that may not run yet dies with its supervisor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use super::building::Built;
use super::heritage::{joined, without, Heritage};
use super::image::{ProcessImage, Restart, ThreadImage};
use super::near::Near;
use super::resource::aio;
use super::resource::ipc::Kind;
use super::resource::memory::{read_common, Backing, Mapping, MmImage};
use super::resource::raw::write_ranges;
use super::resource::registers::{self, Registers};
use super::resource::signals::traps_matter;
use super::resource::tiles;
use super::resource::{part, Missed, PartError, Scope, Told, View, PARTS};
use super::thread_files;
use super::vdso::Vdso;
use super::{programs, reexec};
use crate::syscalls::translate::{numbers, objects};
use crate::tracer::inject::{self, Arg, InjectError, Program, Remote, Stub, STUB_LEN};
use crate::tracer::memory::{self, VmFlags, PAGE};
use crate::tracer::raw;
use crate::tracer::stop::{self, Stop};

/// Why a process could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Inject(#[from] InjectError),
    #[error(transparent)]
    Part(#[from] PartError),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("the image is inconsistent: {0}")]
    Image(&'static str),
}

type Result<T> = std::result::Result<T, RestoreError>;

fn io_error<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T> {
    result.map_err(|source| RestoreError::Io { what: what.into(), source })
}

/// A thread of the restored process, stopped.
#[derive(Debug, Clone, Copy)]
pub struct NewThread {
    pub tid: i32,
    pub host_tid: i32,
    pub restart: Option<Restart>,
}

/// A process that is getting its old memory.
#[derive(Debug)]
pub struct Restoring {
    pid: i32,
    leader: Remote,
    stub: Stub,
}

/// Runs calls in as many batches as they need, and insists that each succeeds.
pub(super) struct Runner<'a> {
    remote: &'a mut Remote,
    stub: &'a Stub,
    program: Program,
}

impl<'a> Runner<'a> {
    pub(super) fn new(remote: &'a mut Remote, stub: &'a Stub) -> Self {
        Self { remote, stub, program: Program::default() }
    }

    /// Room for data of `len` bytes and calls in one batch.
    fn reserve(&mut self, len: usize) -> Result<()> {
        if (self.program.size() + len) as u64 + PAGE > self.stub.capacity() {
            self.flush()?;
        }
        Ok(())
    }

    pub(super) fn call(&mut self, nr: i64, what: &'static str, args: &[u64]) -> Result<()> {
        self.reserve(0)?;
        let args: Vec<Arg> = args.iter().map(|&a| Arg::Num(a)).collect();
        self.program.call(nr, what, &args);
        Ok(())
    }

    fn call_with(
        &mut self,
        nr: i64,
        what: &'static str,
        data: &[u8],
        args: impl FnOnce(Arg) -> Vec<Arg>,
    ) -> Result<()> {
        self.reserve(data.len())?;
        let at = Arg::Data(self.program.data(data));
        self.program.call(nr, what, &args(at));
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        let program = std::mem::take(&mut self.program);
        Ok(self.remote.run(self.stub, program)?.all_ok()?)
    }
}

/// Free addresses: neither in the new process now nor in the image.
pub(super) struct Free {
    taken: Vec<(u64, u64)>,
}

impl Free {
    pub(super) fn new(now: &[memory::Vma], image: &MmImage) -> Self {
        let mut taken: Vec<(u64, u64)> = now.iter().map(|v| (v.start, v.end)).collect();
        taken.extend(image.mappings.iter().map(|m| (m.start, m.end)));
        taken.sort_unstable();
        Self { taken }
    }

    /// Takes `len` bytes, with a page around them free.
    pub(super) fn take(&mut self, len: u64) -> Result<u64> {
        const FIRST: u64 = 0x1000_0000;
        const LAST: u64 = 0x7fff_f000_0000;
        let mut at = FIRST;
        for &(start, end) in &self.taken {
            if start >= at + len + 2 * PAGE {
                break;
            }
            at = at.max(end);
        }
        let at = at + PAGE;
        if at + len > LAST {
            return Err(RestoreError::Image("no free addresses"));
        }
        self.taken.push((at, at + len));
        self.taken.sort_unstable();
        Ok(at)
    }
}

/// What the new process holds besides the job's descriptors: files for its mappings, the
/// control socket, and whatever it was just using when it was stopped.
fn foreign_descriptors(pid: i32, image: &ProcessImage) -> Result<Vec<RawFd>> {
    let path = format!("/proc/{pid}/fd");
    let own: std::collections::BTreeSet<RawFd> = image.table.iter().map(|s| s.fd).collect();
    let entries = io_error(path.clone(), std::fs::read_dir(&path))?;
    let mut all = Vec::new();
    for entry in entries {
        let name = io_error(path.clone(), entry)?.file_name();
        all.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    all.retain(|fd| !own.contains(fd));
    Ok(all)
}

impl Restoring {
    /// Takes hold of the process: it does nothing more by itself.
    ///
    /// # Errors
    /// When it is gone.
    pub fn hold(pid: i32) -> Result<()> {
        io_error(format!("seize process {pid}"), raw::seize(pid))?;
        io_error(format!("stop process {pid}"), raw::interrupt(pid))?;
        let stopped = io_error(format!("wait for process {pid}"), stop::wait(pid, true))?;
        if stopped.map(|w| w.stop) != Some(Stop::Interrupt) {
            return Err(RestoreError::Image("the new process ended"));
        }
        io_error("PTRACE_O_EXITKILL", raw::set_exitkill(pid, true))
    }

    /// Replaces the mappings of a process that is held ([`Restoring::hold`]) by those of the image.
    /// It keeps what it can of its `heritage`.
    ///
    /// # Errors
    /// The call that failed.
    pub fn begin(
        pid: i32,
        image: &ProcessImage,
        built: &Built,
        vdso: &Vdso,
        heritage: &Heritage,
    ) -> Result<Self> {
        let near = Near::stay();
        let _fetched = near.as_ref().and_then(|near| near.fetch(pid));
        let insn = vdso.syscall_insn().ok_or(RestoreError::Image("no vdso here"))?;
        let apart;
        let vdso = match numbers::are_own() {
            true => {
                // What is shared would be left.
                if !programs::inherits(&image.shares) {
                    reexec::become_program(pid, insn, built.exe)?;
                }
                apart = io_error("vdso", Vdso::apart(pid))?;
                &apart
            }
            false => vdso,
        };
        let rseq = raw::rseq(pid).unwrap_or_default();
        let mut leader = Remote::open(pid, false)?;
        let now = io_error(format!("maps of process {pid}"), memory::maps(pid))?;
        let mut free = Free::new(&now, &image.memory);
        let insn = vdso.syscall_insn().ok_or(RestoreError::Image("no vdso here"))?;
        let stub = Stub::map(&mut leader, insn, Some(free.take(STUB_LEN)?))?;
        let mut runner = Runner::new(&mut leader, &stub);
        let kept = heritage.kept(&image.memory);
        let ends = image.memory.mappings.iter().zip(&kept);
        let keep = joined(ends.filter_map(|(m, end)| Some((m.start, (*end)?))).collect());
        clear(&mut runner, &now, rseq, &keep, &image.memory, vdso, &mut free)?;
        make_mappings(&mut runner, &image.memory, built, (heritage, &kept), &mut free)?;
        // It has the program already where it was executed.
        let exe = if numbers::are_own() { -1 } else { built.exe };
        set_layout(&mut runner, &image.memory, exe)?;
        if numbers::are_own() {
            for slot in image.table.iter().filter(|slot| slot.cloexec) {
                let args = [slot.fd as u64, libc::F_SETFD as u64, libc::FD_CLOEXEC as u64];
                runner.call(libc::SYS_fcntl, "F_SETFD", &args)?;
            }
        }
        runner.flush()?;
        if !vdso.is_like(&image.memory) {
            redirect(&mut runner, pid, &image.memory, vdso)?;
        }
        aio::restore(&mut leader, &stub, &image.memory, |len| free.take(len).ok())?;
        Ok(Self { pid, leader, stub })
    }

    /// The same for a process that has the memory of another one, in which that has begun.
    ///
    /// # Errors
    /// When it is gone.
    pub fn beside(&self, pid: i32) -> Result<Self> {
        Ok(Self { pid, leader: Remote::open(pid, false)?, stub: self.stub })
    }

    /// Closes what is not of the table of the image. All that have the table have begun.
    ///
    /// # Errors
    /// The call that failed.
    pub fn close_others(&mut self, image: &ProcessImage) -> Result<()> {
        let mut runner = Runner::new(&mut self.leader, &self.stub);
        for fd in foreign_descriptors(self.pid, image)? {
            runner.call(libc::SYS_close, "close", &[fd as u64])?;
        }
        runner.flush()
    }

    /// Writes pages.
    ///
    /// # Errors
    /// `EFAULT` when the image does not map them.
    pub fn fill(&self, ranges: &[(u64, u64)], bytes: &[u8]) -> Result<()> {
        if write_ranges(self.pid, ranges, bytes).is_ok() {
            return Ok(());
        }
        // Piece by piece, to go on behind a short write and to name the range that fails.
        let mut at = 0_usize;
        for &(start, end) in ranges {
            let len = end.checked_sub(start).and_then(|len| usize::try_from(len).ok());
            let to = len.and_then(|len| at.checked_add(len));
            let piece = to.and_then(|to| bytes.get(at..to));
            let piece = piece.ok_or(RestoreError::Image("short pages"))?;
            io_error(
                format!("write memory {start:x}-{end:x}"),
                inject::write_all(self.pid, start, piece),
            )?;
            at += piece.len();
        }
        Ok(())
    }

    /// Writes pages as they are in `other`, which has got them.
    ///
    /// # Errors
    /// `EFAULT` when either image does not map them.
    pub fn fill_from(&self, other: &Self, ranges: &[(u64, u64)]) -> Result<()> {
        const MOST: u64 = 1 << 20;
        for &(start, end) in ranges {
            let mut at = start;
            while at < end {
                let to = end.min(at + MOST);
                let what = format!("read memory {at:x}-{to:x} of process {}", other.pid);
                let mut bytes = vec![0; (to - at) as usize];
                io_error(what, read_common(other.pid, &[(at, to)], &mut bytes))?;
                self.fill(&[(at, to)], &bytes)?;
                at = to;
            }
        }
        Ok(())
    }

    /// Makes the threads, tells everything its state, and leaves all threads stopped with
    /// their registers. `filter` is the seccomp program (`struct sock_filter`s) to put in; `missed`
    /// takes down what it does not get here. Who is the `last` of those that have the same memory
    /// leaves nothing of this in it.
    ///
    /// # Errors
    /// The call that failed.
    pub fn finish(
        mut self,
        image: &ProcessImage,
        filter: Option<&[u8]>,
        missed: &Missed,
        last: bool,
    ) -> Result<Vec<NewThread>> {
        let near = Near::stay();
        let fetched = near.as_ref().and_then(|near| near.fetch(self.pid));
        let mut runner = Runner::new(&mut self.leader, &self.stub);
        protect(&mut runner, &image.memory)?;
        for thread in image.threads.iter().skip(1) {
            clone_thread(&mut runner, thread.tid)?;
        }
        if let (true, Some(leader)) = (numbers::are_own(), image.threads.first()) {
            numbers::bind(leader.tid, self.pid);
        }
        if let Some(filter) = filter {
            install_filter(&mut runner, filter)?;
        }
        runner.flush()?;
        let found = self.collect_threads(image)?;
        let mut remotes = vec![self.leader];
        for (view, _) in found.iter().skip(1) {
            io_error("PTRACE_O_EXITKILL", raw::set_exitkill(view.tid, true))?;
            remotes.push(Remote::open(view.tid, false)?);
        }
        for (remote, (view, thread)) in remotes.iter_mut().zip(&found) {
            if traps_matter(image, thread) {
                remote.avoid_traps();
            }
            tell(remote, &self.stub, image, thread, &told(image, view, missed))?;
            if tiles::are_in_use(&thread.registers.extended) {
                self.stub.use_tiles(remote)?;
            }
            if let Some(own) = &thread.files {
                let mut program = Program::default();
                thread_files::take(own, &mut program);
                remote.run(&self.stub, program)?.all_ok()?;
            }
        }
        let mut program = Program::default();
        for own in image.threads.iter().filter_map(|thread| thread.files.as_ref()) {
            thread_files::leave(own, &mut program);
        }
        if !program.is_empty() {
            remotes[0].run(&self.stub, program)?.all_ok()?;
        }
        if last {
            let insn = super::capture::syscall_insn(self.pid, &image.memory)?;
            self.stub.unmap(&mut remotes[0], insn)?;
        }
        for (remote, (_, thread)) in remotes.into_iter().zip(&found) {
            set_registers(remote, &thread.registers)?;
        }
        drop(fetched);
        found.iter().try_for_each(|(view, thread)| conclude(thread, &told(image, view, missed)))?;
        let new = |(view, thread): &(View, &ThreadImage)| NewThread {
            tid: thread.tid,
            host_tid: view.tid,
            restart: thread.restart,
        };
        Ok(found.iter().map(new).collect())
    }

    /// Waits for the first stop of every new thread, and finds which is which. The leader
    /// comes first.
    fn collect_threads<'a>(&self, image: &'a ProcessImage) -> Result<Vec<(View, &'a ThreadImage)>> {
        let mut found = Vec::new();
        for view in io_error("threads", super::capture::views(self.pid))? {
            if view.tid != self.pid {
                let first =
                    io_error(format!("wait for thread {}", view.tid), stop::wait(view.tid, true))?;
                if first.map(|w| w.stop) != Some(Stop::Interrupt) {
                    return Err(RestoreError::Image("a new thread ended"));
                }
            }
            let thread = image.threads.iter().find(|t| t.tid == view.job_tid);
            found.push((view, thread.ok_or(RestoreError::Image("a thread too many"))?));
        }
        if !found.is_empty() && found.len() == image.threads.len() {
            Ok(found)
        } else {
            Err(RestoreError::Image("a thread is missing"))
        }
    }
}

/// Takes away what the process has of the supervisor, and what of its heritage it does not `keep`,
/// and puts the vdso in its place.
pub(super) fn clear(
    runner: &mut Runner,
    now: &[memory::Vma],
    rseq: (u64, u32, u32, u32),
    keep: &[(u64, u64)],
    image: &MmImage,
    vdso: &Vdso,
    free: &mut Free,
) -> Result<()> {
    const RSEQ_FLAG_UNREGISTER: u64 = 1;
    let (at, len, signature, _) = rseq;
    if at != 0 {
        let args = [at, len.into(), RSEQ_FLAG_UNREGISTER, signature.into()];
        runner.call(libc::SYS_rseq, "rseq", &args)?;
    }
    let stub = runner.stub.base;
    for vma in now.iter().filter(|v| !super::resource::memory::is_special(v)) {
        debug_assert!(!vma.contains(stub));
        for (start, end) in without(&[(vma.start, vma.end)], keep) {
            runner.call(libc::SYS_munmap, "munmap", &[start, end - start])?;
        }
    }
    vdso.place(
        image,
        now,
        |len| free.take(len),
        |old, len, new| {
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            runner.call(libc::SYS_mremap, "mremap of the vdso", &[old, len, len, flags, new])
        },
    )
}

/// The old vdso's text at its old address, with jumps into the new one.
pub(super) fn redirect(runner: &mut Runner, pid: i32, image: &MmImage, vdso: &Vdso) -> Result<()> {
    let special = |m: &&Mapping| matches!(&m.backing, Backing::Special(n) if n == "[vdso]");
    let Some(old) = image.mappings.iter().find(special) else { return Ok(()) };
    let now = io_error(format!("maps of process {pid}"), memory::maps(pid))?;
    let new = memory::vdso(&now);
    let new = new.ok_or(RestoreError::Image("no vdso here"))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let args = [old.start, old.len(), prot, flags as u64, u64::MAX, 0];
    runner.call(libc::SYS_mmap, "mmap of the old vdso", &args)?;
    runner.flush()?;
    let text = vdso.instead_of(&image.vdso, new.start);
    io_error("write the old vdso", inject::write_all(pid, old.start, &text))?;
    let prot = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    runner.call(libc::SYS_mprotect, "mprotect of the old vdso", &[old.start, old.len(), prot])?;
    runner.flush()
}

/// Protection while pages are written: theirs, and for private memory with content more.
fn first_prot(m: &Mapping) -> i32 {
    if m.has_data {
        m.prot | libc::PROT_READ | libc::PROT_WRITE
    } else {
        m.prot
    }
}

pub(super) fn make_mappings(
    runner: &mut Runner,
    image: &MmImage,
    built: &Built,
    (heritage, kept): (&Heritage, &[Option<u64>]),
    free: &mut Free,
) -> Result<()> {
    let anonymous = make_shared(runner, image, free)?;
    for (m, kept) in image.mappings.iter().zip(kept) {
        if let Some(end) = kept {
            keep(runner, m, *end, &heritage.absent(m.start, *end, &image.data))?;
            continue;
        }
        let flags = mmap_flags(m);
        let prot = first_prot(m) as u64;
        let fd = match &m.backing {
            Backing::Special(_) | Backing::Ring(_) => continue,
            Backing::Anonymous { .. } => u64::MAX,
            Backing::File(index) => *descriptor(&built.paths, *index)? as u64,
            Backing::Object(index) => match anonymous.get(&place(m, *index, image)) {
                Some((base, _)) => {
                    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                    // An old size of 0 gives the same shared pages a second place (mremap(2)).
                    let args = [base + m.offset, 0, m.len(), flags, m.start];
                    runner.call(libc::SYS_mremap, "mremap of shared memory", &args)?;
                    if prot as i32 != libc::PROT_READ | libc::PROT_WRITE {
                        let args = [m.start, m.len(), prot];
                        runner.call(libc::SYS_mprotect, "mprotect", &args)?;
                    }
                    advise(runner, m)?;
                    continue;
                }
                _ => *descriptor(&built.shared, *index)? as u64,
            },
        };
        let anonymous = if fd == u64::MAX { libc::MAP_ANONYMOUS } else { 0 };
        let args = [m.start, m.len(), prot, (flags | anonymous) as u64, fd, m.offset];
        let args = if fd == u64::MAX { [args[0], args[1], args[2], args[3], fd, 0] } else { args };
        runner.call(libc::SYS_mmap, "mmap", &args)?;
        name(runner, m)?;
        advise(runner, m)?;
    }
    for (base, len) in anonymous.into_values() {
        runner.call(libc::SYS_munmap, "munmap", &[base, len])?;
    }
    Ok(())
}

/// Makes a mapping of the part up to `end` that the process has inherited. `absent` are pages that
/// it does not have any more.
fn keep(runner: &mut Runner, m: &Mapping, end: u64, absent: &[(u64, u64)]) -> Result<()> {
    if end < m.end {
        let args = [m.start, end - m.start, m.len(), 0];
        runner.call(libc::SYS_mremap, "mremap of inherited memory", &args)?;
    }
    for (start, end) in absent {
        let args = [*start, end - start, libc::MADV_DONTNEED as u64];
        runner.call(libc::SYS_madvise, "MADV_DONTNEED", &args)?;
    }
    let prot = first_prot(m);
    if prot != libc::PROT_READ | libc::PROT_WRITE {
        runner.call(libc::SYS_mprotect, "mprotect", &[m.start, m.len(), prot as u64])?;
    }
    name(runner, m)?;
    advise(runner, m)
}

fn descriptor(fds: &[RawFd], index: u32) -> Result<&RawFd> {
    fds.get(index as usize).ok_or(RestoreError::Image("a mapping of no file"))
}

/// An object, and whether its mappings are to be written to; that is one for all that is no
/// System V segment.
type Place = (u32, bool);

fn place(m: &Mapping, index: u32, image: &MmImage) -> Place {
    let segment = image.objects.get(index as usize).is_some_and(|o| o.segment.is_some());
    (index, !segment || m.flags.contains(VmFlags::MAY_WRITE))
}

/// System V segments are attached, once to be read only and once to be written to as well, as the
/// mappings have them.
fn attach_segments(
    runner: &mut Runner,
    image: &MmImage,
    free: &mut Free,
) -> Result<BTreeMap<Place, (u64, u64)>> {
    let mut bases = BTreeMap::new();
    for m in &image.mappings {
        let Backing::Object(index) = m.backing else { continue };
        let Some(object) = image.objects.get(index as usize) else { continue };
        let (Some(id), place) = (object.segment, place(m, index, image)) else { continue };
        if bases.contains_key(&place) {
            continue;
        }
        let at = free.take(object.size)?;
        let flags = if place.1 { 0 } else { libc::SHM_RDONLY };
        let id = objects::to_host(Kind::Memory, id);
        runner.call(libc::SYS_shmat, "shmat", &[id as u64, at, flags as u64])?;
        bases.insert(place, (at, object.size));
    }
    Ok(bases)
}

/// Shared anonymous memory is mapped once, whole, at a free place; its mappings are made from
/// there, so that several keep sharing their pages.
fn make_shared(
    runner: &mut Runner,
    image: &MmImage,
    free: &mut Free,
) -> Result<BTreeMap<Place, (u64, u64)>> {
    let mut bases = attach_segments(runner, image, free)?;
    for (index, object) in (0..).zip(&image.objects) {
        if !object.anonymous {
            continue;
        }
        let at = free.take(object.size)?;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let args = [at, object.size, prot, flags as u64, u64::MAX, 0];
        runner.call(libc::SYS_mmap, "mmap of shared memory", &args)?;
        bases.insert((index, true), (at, object.size));
    }
    Ok(bases)
}

const MAP_DROPPABLE: i32 = 0x08;

fn mmap_flags(m: &Mapping) -> i32 {
    let mut flags = libc::MAP_FIXED_NOREPLACE;
    flags |= match (m.shared, m.flags.contains(VmFlags::DROPPABLE)) {
        (true, _) => libc::MAP_SHARED,
        (false, true) => MAP_DROPPABLE,
        (false, false) => libc::MAP_PRIVATE,
    };
    if m.flags.contains(VmFlags::GROWS_DOWN) {
        flags |= libc::MAP_GROWSDOWN;
    }
    if m.flags.contains(VmFlags::NO_RESERVE) {
        flags |= libc::MAP_NORESERVE;
    }
    flags
}

/// PR_SET_VMA_ANON_NAME (Linux 5.17); a name is no more than a help for people.
fn name(runner: &mut Runner, m: &Mapping) -> Result<()> {
    const PR_SET_VMA: u64 = 0x5356_4d41;
    let Backing::Anonymous { name: Some(name) } = &m.backing else { return Ok(()) };
    let mut name = name.clone().into_bytes();
    name.push(0);
    let (start, len) = (Arg::Num(m.start), Arg::Num(m.len()));
    runner.call_with(libc::SYS_prctl, "PR_SET_VMA", &name, |at| {
        vec![Arg::Num(PR_SET_VMA), Arg::Num(0), start, len, at]
    })
}

/// madvise(2) as the flags of the mapping tell.
fn advise(runner: &mut Runner, m: &Mapping) -> Result<()> {
    const ADVICE: [(VmFlags, i32); 8] = [
        (VmFlags::DONT_FORK, libc::MADV_DONTFORK),
        (VmFlags::WIPE_ON_FORK, libc::MADV_WIPEONFORK),
        (VmFlags::DONT_DUMP, libc::MADV_DONTDUMP),
        (VmFlags::HUGE, libc::MADV_HUGEPAGE),
        (VmFlags::NO_HUGE, libc::MADV_NOHUGEPAGE),
        (VmFlags::MERGEABLE, libc::MADV_MERGEABLE),
        (VmFlags::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (VmFlags::RANDOM, libc::MADV_RANDOM),
    ];
    for (flag, advice) in ADVICE {
        // Droppable memory is wiped on fork and not dumped of itself (mmap(2)).
        if m.flags.contains(flag) && !m.flags.contains(VmFlags::DROPPABLE) {
            runner.call(libc::SYS_madvise, "madvise", &[m.start, m.len(), advice as u64])?;
        }
    }
    Ok(())
}

/// After the pages: final protection, guard regions, locks.
pub(super) fn protect(runner: &mut Runner, image: &MmImage) -> Result<()> {
    const MADV_GUARD_INSTALL: u64 = 102;
    const MLOCK_ONFAULT: u64 = 1;
    for m in image.mappings.iter().filter(|m| !matches!(m.backing, Backing::Special(_))) {
        for (start, end) in &m.guards {
            let args = [*start, end - start, MADV_GUARD_INSTALL];
            runner.call(libc::SYS_madvise, "MADV_GUARD_INSTALL", &args)?;
        }
        if m.flags.contains(VmFlags::LOCKED) {
            let flags = if m.flags.contains(VmFlags::LOCK_ON_FAULT) { MLOCK_ONFAULT } else { 0 };
            runner.call(libc::SYS_mlock2, "mlock2", &[m.start, m.len(), flags])?;
        }
        if first_prot(m) != m.prot {
            runner.call(libc::SYS_mprotect, "mprotect", &[m.start, m.len(), m.prot as u64])?;
        }
    }
    let Some(on_fault) = image.locks_future else { return Ok(()) };
    let flags = libc::MCL_FUTURE | if on_fault { libc::MCL_ONFAULT } else { 0 };
    runner.call(libc::SYS_mlockall, "mlockall", &[flags as u64])
}

/// PR_SET_MM_MAP (prctl(2), `struct prctl_mm_map`): brk, arguments, environment, auxv, exe.
pub(super) fn set_layout(runner: &mut Runner, image: &MmImage, exe: RawFd) -> Result<()> {
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    const STRUCT_LEN: u64 = 104;
    runner.reserve(image.auxv.len() + 512)?;
    let auxv = runner.program.data(&image.auxv);
    let l = &image.layout;
    let auxv_at = runner.stub.data() + auxv.offset();
    let words = [
        l.start_code,
        l.end_code,
        l.start_data,
        l.end_data,
        l.start_brk,
        l.brk,
        l.start_stack,
        l.arg_start,
        l.arg_end,
        l.env_start,
        l.env_end,
        auxv_at,
    ];
    let mut map: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    map.extend_from_slice(&(image.auxv.len() as u32).to_le_bytes());
    map.extend_from_slice(&exe.to_le_bytes());
    runner.call_with(libc::SYS_prctl, "PR_SET_MM_MAP", &map, |at| {
        vec![Arg::Num(PR_SET_MM), Arg::Num(PR_SET_MM_MAP), at, Arg::Num(STRUCT_LEN)]
    })
}

/// clone3(2) of a thread with its old tid. It stops before its first instruction.
fn clone_thread(runner: &mut Runner, tid: i32) -> Result<()> {
    const FLAGS: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    runner.reserve(512)?;
    let wanted = runner.program.data(&tid.to_le_bytes());
    let set_tid = runner.stub.data() + wanted.offset();
    let (set_tid, count) = if numbers::are_own() { (0, 0) } else { (set_tid, 1) };
    let words = [FLAGS as u64, 0, 0, 0, 0, 0, 0, 0, set_tid, count, 0];
    let args: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let len = args.len() as u64;
    if !numbers::are_own() {
        return runner.call_with(libc::SYS_clone3, "clone3", &args, |at| vec![at, Arg::Num(len)]);
    }
    runner.flush()?;
    let mut program = Program::default();
    let at = Arg::Data(program.data(&args));
    let row = program.call(libc::SYS_clone3, "clone3", &[at, Arg::Num(len)]);
    let made = runner.remote.run(runner.stub, program)?.get(row)?;
    numbers::bind(tid, made as i32);
    Ok(())
}

/// seccomp(2) in all threads. Without CAP_SYS_ADMIN, which it has in a user namespace of its own,
/// the kernel wants PR_SET_NO_NEW_PRIVS before.
fn install_filter(runner: &mut Runner, filter: &[u8]) -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: u64 = 1;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let tid = runner.remote.tid();
    let view = io_error(format!("status of thread {tid}"), View::read_process(tid))?;
    if view.hex("CapEff:") & CAP_SYS_ADMIN == 0 {
        let set = libc::PR_SET_NO_NEW_PRIVS as u64;
        runner.call(libc::SYS_prctl, "PR_SET_NO_NEW_PRIVS", &[set, 1])?;
    }
    runner.reserve(filter.len() + 512)?;
    let code = runner.program.data(filter);
    let mut prog = ((filter.len() / 8) as u64).to_le_bytes().to_vec();
    prog.extend_from_slice(&(runner.stub.data() + code.offset()).to_le_bytes());
    let tsync = Arg::Num(libc::SECCOMP_FILTER_FLAG_TSYNC);
    runner.call_with(libc::SYS_seccomp, "seccomp", &prog, |at| {
        vec![Arg::Num(SECCOMP_SET_MODE_FILTER), tsync, at]
    })
}

/// Tells a thread everything of [`PARTS`], in that order.
fn tell(
    remote: &mut Remote,
    stub: &Stub,
    image: &ProcessImage,
    thread: &ThreadImage,
    to: &Told,
) -> Result<()> {
    let leader = to.tid == to.pid;
    let run = |remote: &mut Remote, program| {
        let outcome = remote.run(stub, program)?;
        for (what, e) in outcome.refused() {
            to.missed.add(format!("thread {}: {what} is not granted: {e}", to.job_tid));
        }
        outcome.all_ok()
    };
    for state in &thread.parts {
        part(Scope::Thread, &state.name)?;
    }
    let mut program = Program::default();
    for part in PARTS {
        let states = match part.scope() {
            Scope::Process if leader => &image.parts,
            Scope::Process => continue,
            Scope::Thread => &thread.parts,
        };
        let Some(state) = states.iter().find(|s| s.name == part.name()) else { continue };
        if program.size() as u64 > STUB_LEN / 2 {
            run(remote, std::mem::take(&mut program))?;
        }
        part.tell(&state.state, to, &mut program)?;
    }
    Ok(run(remote, program)?)
}

/// What comes last of everything that [`tell`] has told.
fn conclude(thread: &ThreadImage, to: &Told) -> Result<()> {
    for state in &thread.parts {
        part(Scope::Thread, &state.name)?.conclude(&state.state, to)?;
    }
    Ok(())
}

fn told<'a>(image: &ProcessImage, view: &'a View, missed: &'a Missed) -> Told<'a> {
    let (pid, tid) = (view.pid, view.tid);
    Told { pid, tid, job_pid: image.ids.pid, job_tid: view.job_tid, view, missed }
}

pub(super) fn set_registers(mut remote: Remote, wanted: &Registers) -> Result<()> {
    let words = wanted.general.as_slice().try_into();
    let words = words.map_err(|_| RestoreError::Image("registers"))?;
    io_error(
        format!("extended registers of thread {}", remote.tid()),
        registers::set_extended(remote.tid(), &wanted.extended),
    )?;
    remote.regs = registers::from_words(words);
    remote.mask = wanted.mask;
    Ok(remote.close()?)
}

/// Checks that the new process is what the image says, before it may run.
///
/// # Errors
/// When the numbers differ.
pub fn verify(pid: i32, image: &ProcessImage) -> Result<()> {
    let view = io_error("status", View::read_process(pid))?;
    if super::capture::ids(&view)? == image.ids {
        Ok(())
    } else {
        Err(RestoreError::Image("the new process has other ids"))
    }
}
