//! A [`ProcessImage`] becomes a stopped process.
//!
//! ```text
//! Skeleton ─hold──► Restoring::begin   old mappings gone, vdso in place, new mappings made
//!                   Restoring::fill    pages as they arrive
//!                   Restoring::finish  threads made, told their state, registers set
//! ```
//! All calls run in the new process through the batch stub. Until the job owns itself it has
//! PTRACE_O_EXITKILL: a copy that may not run yet dies with its supervisor.

use std::io;
use std::os::fd::RawFd;

use super::address_space::{clear, make_mappings, protect, redirect, set_layout, Free};
use super::building::Built;
use super::heritage::{joined, Heritage};
use super::image::{ProcessImage, Restart, ThreadImage};
use super::near::Near;
use super::resource::aio;
use super::resource::memory::read_common;
use super::resource::raw::write_ranges;
use super::resource::registers::{self, Registers};
use super::resource::signals::traps_matter;
use super::resource::tiles;
use super::resource::{part, Missed, PartError, Scope, Told, View, PARTS};
use super::thread_files;
use super::vdso::Vdso;
use super::{programs, reexec};
use crate::syscalls::translate::numbers;
use crate::tracer::inject::{self, Arg, InjectError, Program, Remote, Stub, STUB_LEN};
use crate::tracer::memory::{self, PAGE};
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

pub(super) type Result<T> = std::result::Result<T, RestoreError>;

pub(super) fn io_error<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T> {
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
    pub(super) remote: &'a mut Remote,
    pub(super) stub: &'a Stub,
    pub(super) program: Program,
}

impl<'a> Runner<'a> {
    pub(super) fn new(remote: &'a mut Remote, stub: &'a Stub) -> Self {
        Self { remote, stub, program: Program::default() }
    }

    /// Room for data of `len` bytes and calls in one batch.
    pub(super) fn reserve(&mut self, len: usize) -> Result<()> {
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

    pub(super) fn call_with(
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
