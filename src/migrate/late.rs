//! What a new process can be told only when all else is there: to whom its descriptors send
//! signals, because that may be a thread; which message queues notify it, because that is its own
//! call; pidfds of threads; and its locks, because the copy at the source holds them until the move
//! is decided.
//!
//! ```text
//! target  threads made ─► finish, drive, take (what nobody holds) ─► READY ─► OWN ─► take the rest ─► run
//! source  frozen with its locks ──────────────────────────── COMMIT ─► release
//! ```

use std::collections::BTreeSet;
use std::io;

use super::capture::{syscall_insn, unmap};
use super::image::{FdImage, ProcessImage};
use super::resource::fd::lock::Lock;
use super::resource::fd::mqueue::Registration;
use super::resource::fd::{pidfd, FdError};
use super::resource::{filters, PartError, View};
use crate::tracer::inject::{Arg, Outcome, Program, Remote, Stub};

type Result<T> = std::result::Result<T, PartError>;

/// Calls of one batch at most: each needs about 100 bytes.
const BATCH: usize = 512;

/// A lock that was not taken, and why.
pub type Missed = (Lock, io::Error);

/// Makes in new processes (host pids) what needs all their threads and descriptors: pidfds of threads,
/// and registrations with message queues.
///
/// # Errors
/// The call that failed.
pub fn finish(processes: &[(i32, &ProcessImage)], files: &FdImage) -> Result<()> {
    let mut queues = BTreeSet::new();
    for (pid, image) in processes {
        open_threads(*pid, image, files)?;
        let mut program = Program::default();
        for slot in &image.table {
            let Some(object) = files.objects.get(slot.object as usize) else { continue };
            let registration = Registration::of(object).map_err(|e| broken(slot.object, e))?;
            let own = registration.filter(|r| r.pid == image.ids.pid && queues.insert(r.queue));
            if let Some(registration) = own {
                registration.tell(slot.fd, &mut program);
            }
            if program.len() > BATCH {
                run(*pid, image, std::mem::take(&mut program))?.all_ok()?;
            }
        }
        if !program.is_empty() {
            run(*pid, image, program)?.all_ok()?;
        }
    }
    Ok(())
}

/// Lets the descriptors of stopped processes (host pids) send signals as they did. Each
/// description is told once.
///
/// # Errors
/// The call that failed.
pub fn drive(processes: &[(i32, &ProcessImage)], files: &FdImage) -> Result<()> {
    let mut told = BTreeSet::new();
    for (pid, image) in processes {
        let mut program = Program::default();
        for slot in &image.table {
            let Some(object) = files.objects.get(slot.object as usize) else { continue };
            if let Some(signals) = object.signals.filter(|_| told.insert(slot.object)) {
                signals.tell(slot.fd, object.flags, &mut program);
            }
            if program.len() > BATCH {
                run(*pid, image, std::mem::take(&mut program))?.all_ok()?;
            }
        }
        if !program.is_empty() {
            run(*pid, image, program)?.all_ok()?;
        }
    }
    Ok(())
}

/// Puts the pidfds of threads in their places in a stopped process (host pid).
fn open_threads(pid: i32, image: &ProcessImage, files: &FdImage) -> Result<()> {
    let mut wanted = Vec::new();
    let mut program = Program::default();
    for (index, object) in (0..).zip(&files.objects) {
        let slots = || image.table.iter().filter(|slot| slot.object == index);
        let tid = pidfd::thread_of(object).map_err(|e| broken(index, e))?;
        if let Some(tid) = tid.filter(|_| slots().next().is_some()) {
            let row = pidfd::open_thread(tid, object.flags, &mut program);
            wanted.push((row, slots().copied().collect::<Vec<_>>()));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let opened = run(pid, image, program)?;
    let mut program = Program::default();
    for (row, slots) in wanted {
        let made = Arg::Num(opened.get(row)?);
        for slot in slots {
            let flags = if slot.cloexec { libc::O_CLOEXEC } else { 0 };
            let args = [made, Arg::Num(slot.fd as u64), Arg::Num(flags as u64)];
            program.call(libc::SYS_dup3, "dup3", &args);
        }
        program.call(libc::SYS_close, "close", &[made]);
    }
    Ok(run(pid, image, program)?.all_ok()?)
}

fn broken(object: u32, e: FdError) -> PartError {
    PartError::Io { what: format!("open file description {object}"), source: io::Error::other(e) }
}

/// Gives the threads (host tids, in the order of the image) of a new process their own seccomp
/// filters, to which all further calls in them are subject.
///
/// # Errors
/// The call that failed, or a thread that has not the filters it should have.
pub fn install_filters(pid: i32, image: &ProcessImage, tids: &[i32], own: u64) -> Result<()> {
    let insn = syscall_insn(pid, &image.memory)?;
    for (filters, tid) in filters::missing(image).zip(tids) {
        if filters.is_empty() {
            continue;
        }
        let mut remote = Remote::open(*tid, view_of(pid, *tid)?.ignores(libc::SIGTRAP))?;
        let stub = Stub::map(&mut remote, insn, None)?;
        for (all, filter) in filters {
            let mut program = Program::default();
            filter.tell(all, stub.data(), &mut program);
            remote.run(&stub, program)?.all_ok()?;
        }
        unmap(&mut remote, insn, &stub)?;
        remote.close()?;
    }
    for (thread, tid) in image.threads.iter().zip(tids) {
        let installed = view_of(pid, *tid)?.number("Seccomp_filters:");
        if !thread.filters.is_empty() && installed != own + thread.filters.len() as u64 {
            return Err(PartError::State("seccomp filters"));
        }
    }
    Ok(())
}

fn view_of(pid: i32, tid: i32) -> Result<View> {
    let what = format!("status of thread {tid}");
    View::read(pid, tid).map_err(|source| PartError::Io { what, source })
}

/// Takes locks in a stopped process (host pid). Gives those that it did not get.
///
/// # Errors
/// When no call can be made in it.
pub fn take(pid: i32, image: &ProcessImage, locks: &[Lock]) -> Result<Vec<Missed>> {
    each(pid, image, locks, Lock::take)
}

/// Lets the locks of a stopped process (host pid) go.
///
/// # Errors
/// When no call can be made in it, or one fails.
pub fn release(pid: i32, image: &ProcessImage) -> Result<()> {
    match each(pid, image, &image.locks, Lock::release)?.into_iter().next() {
        None => Ok(()),
        Some((lock, source)) => {
            Err(PartError::Io { what: format!("release of the {lock} of process {pid}"), source })
        }
    }
}

fn each(
    pid: i32,
    image: &ProcessImage,
    locks: &[Lock],
    put: impl Fn(&Lock, &mut Program) -> usize,
) -> Result<Vec<Missed>> {
    let mut missed = Vec::new();
    for some in locks.chunks(BATCH) {
        let mut program = Program::default();
        let rows: Vec<usize> = some.iter().map(|lock| put(lock, &mut program)).collect();
        let outcome = run(pid, image, program)?;
        for (lock, row) in some.iter().zip(rows) {
            if let Err(e) = crate::tracer::inject::result_of(outcome.raw(row)) {
                missed.push((lock.clone(), e));
            }
        }
    }
    Ok(missed)
}

/// Runs calls in the first thread of a stopped process, which stays as it was.
pub(super) fn run(pid: i32, image: &ProcessImage, program: Program) -> Result<Outcome> {
    let insn = syscall_insn(pid, &image.memory)?;
    let mut remote = Remote::open(pid, view_of(pid, pid)?.ignores(libc::SIGTRAP))?;
    let stub = Stub::map(&mut remote, insn, None)?;
    let outcome = remote.run(&stub, program);
    unmap(&mut remote, insn, &stub)?;
    remote.close()?;
    Ok(outcome?)
}
