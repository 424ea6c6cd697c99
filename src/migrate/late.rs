//! What a new process can be told only when all else is there: to whom its descriptors send
//! signals, because that may be a thread; which message queues notify it, because that is its own
//! call; pidfds of threads; files of /proc that show memory; and its locks, because the copy at the
//! source holds them until the move is decided.
//!
//! ```text
//! target  threads made ─► finish, drive, count, take (what nobody holds) ─► READY ─► OWN ─► take the rest ─► run
//! source  frozen with its locks ──────────────────────────── COMMIT ─► release
//! ```

use std::collections::BTreeSet;
use std::io;

use super::capture::syscall_insn;
use super::image::{FdImage, ProcessImage};
use super::resource::fd::lock::{self, Lock};
use super::resource::fd::mqueue::Registration;
use super::resource::fd::{kernel_file, pidfd, regular, FdError};
use super::resource::{filters, timers, PartError, View};
use crate::tracer::inject::{Arg, Outcome, Program, Remote, Stub};

type Result<T> = std::result::Result<T, PartError>;

/// Calls of one batch at most: each needs about 100 bytes.
const BATCH: usize = 512;

/// A lock that was not taken, and why.
pub type Missed = (Lock, io::Error);

/// Makes in new processes (host pids) what needs all their threads, descriptors and memory: pidfds of
/// threads, files of /proc, and registrations with message queues.
///
/// # Errors
/// The call that failed.
pub fn finish(processes: &[(i32, &ProcessImage)], files: &FdImage) -> Result<()> {
    let mut queues = BTreeSet::new();
    for (pid, image) in processes {
        open_late(*pid, image, files)?;
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
            let Some(signals) = object.signals else { continue };
            // The signals of a place that is kept come when its file is opened.
            let kept = regular::is_kept_place(object).map_err(|e| broken(slot.object, e))?;
            if !kept && told.insert(slot.object) {
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

/// Has the timers of a stopped process (host pid; its threads in the order of the image) tell the
/// overruns of their last signals.
///
/// # Errors
/// The call that failed.
pub fn count_overruns(pid: i32, image: &ProcessImage, tids: &[i32]) -> Result<()> {
    timers::count_again(pid, image, tids, |tid, work| borrow(pid, tid, image, work))
}

/// Lets a stopped process (host pid) have no controlling terminal. It is no leader of a session.
///
/// # Errors
/// The call that failed.
pub fn give_up_terminal(pid: i32, image: &ProcessImage) -> Result<()> {
    let open = |program: &mut Program| {
        let flags = libc::O_RDONLY | libc::O_NOCTTY | libc::O_NONBLOCK;
        program.open("openat of /dev/tty", b"/dev/tty", flags)
    };
    let give_up = |fd: i32, program: &mut Program| {
        let args = [fd as u64, libc::TIOCNOTTY].map(Arg::Num);
        program.call(libc::SYS_ioctl, "TIOCNOTTY", &args);
    };
    let what = || format!("/dev/tty in process {pid}");
    with_new(pid, image, open, give_up)?.map_err(|source| PartError::Io { what: what(), source })
}

/// Puts pidfds of threads and files of /proc in their places in a stopped process (host pid).
fn open_late(pid: i32, image: &ProcessImage, files: &FdImage) -> Result<()> {
    let mut wanted = Vec::new();
    let mut program = Program::default();
    for (index, object) in (0..).zip(&files.objects) {
        let slots: Vec<_> = image.table.iter().filter(|slot| slot.object == index).collect();
        if slots.is_empty() {
            continue;
        }
        let tid = pidfd::thread_of(object).map_err(|e| broken(index, e))?;
        let file = kernel_file::late(object).map_err(|e| broken(index, e))?;
        let row = match (tid, &file) {
            (Some(tid), _) => pidfd::open_thread(tid, object.flags, &mut program),
            (None, Some(file)) => file.open(&mut program),
            (None, None) => continue,
        };
        wanted.push((row, file, slots));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let opened = run(pid, image, program)?;
    let mut program = Program::default();
    for (row, file, slots) in wanted {
        let made = opened.get(row)?;
        if let Some(file) = file {
            file.seek(Arg::Num(made), &mut program);
        }
        slots.iter().for_each(|slot| slot.put(made as i32, &mut program));
        program.call(libc::SYS_close, "close", &[Arg::Num(made)]);
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
        remote.close_with(&stub, insn)?;
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

/// Tries out whether the files of write leases can be opened in a stopped process (host pid), where
/// their places are kept.
///
/// # Errors
/// When no call can be made in it, or one fails.
pub fn try_to_open(pid: i32, image: &ProcessImage) -> Result<()> {
    for lock in &image.locks {
        let Some(opened) = lock.opened else { continue };
        let mut program = Program::default();
        let row = opened.try_out(lock.fd, &mut program);
        let outcome = run(pid, image, program)?;
        outcome.all_ok()?;
        let mut program = Program::default();
        program.call(libc::SYS_close, "close", &[Arg::Num(outcome.get(row)?)]);
        run(pid, image, program)?.all_ok()?;
    }
    Ok(())
}

/// Opens the files of write leases in a stopped process (host pid), where their places are kept; a
/// lock whose file is open does not say how any more. Gives those whose files could not be opened.
///
/// # Errors
/// When no call can be made in it.
pub fn open(pid: i32, image: &ProcessImage, locks: &mut [Lock]) -> Result<Vec<Missed>> {
    let mut missed = Vec::new();
    for lock in locks {
        let Some(opened) = lock.opened else { continue };
        let made = with_new(
            pid,
            image,
            |program| opened.open(lock.fd, program),
            |fd, program| {
                opened.set(fd, program);
                put(image, lock.fd, fd, program);
            },
        )?;
        match made {
            Ok(()) => lock.opened = None,
            Err(e) => missed.push((lock.clone(), e)),
        }
    }
    Ok(missed)
}

/// Closes the file of a write lease in a stopped process (host pid), and keeps its place.
fn keep_place(pid: i32, image: &ProcessImage, lock: &Lock) -> Result<()> {
    let what = || format!("descriptor {} of process {pid}", lock.fd);
    with_new(
        pid,
        image,
        |program| lock::open_again(lock.fd, libc::O_PATH, program),
        |fd, program| put(image, lock.fd, fd, program),
    )?
    .map_err(|source| PartError::Io { what: what(), source })
}

/// Runs calls in two turns: one that makes a descriptor, and those that take it.
fn with_new(
    pid: i32,
    image: &ProcessImage,
    make: impl FnOnce(&mut Program) -> usize,
    take: impl FnOnce(i32, &mut Program),
) -> Result<io::Result<()>> {
    let mut program = Program::default();
    let row = make(&mut program);
    let outcome = run(pid, image, program)?;
    let made = match crate::tracer::inject::result_of(outcome.raw(row)) {
        Ok(made) => made,
        Err(e) => return Ok(Err(e)),
    };
    let mut program = Program::default();
    take(made as i32, &mut program);
    program.call(libc::SYS_close, "close", &[Arg::Num(made)]);
    Ok(Ok(run(pid, image, program)?.all_ok()?))
}

/// Puts `made` in all places of the description that `fd` is one of.
fn put(image: &ProcessImage, fd: i32, made: i32, program: &mut Program) {
    let object = image.table.iter().find(|slot| slot.fd == fd).map(|slot| slot.object);
    for slot in image.table.iter().filter(|slot| Some(slot.object) == object) {
        slot.put(made, program);
    }
}

/// Lets the locks of a stopped process (host pid) go, and closes the files of its write leases.
///
/// # Errors
/// When no call can be made in it, or one fails.
pub fn release(pid: i32, image: &ProcessImage) -> Result<()> {
    let released = release_all(pid, image);
    image
        .locks
        .iter()
        .filter(|l| l.opened.is_some())
        .try_for_each(|l| keep_place(pid, image, l))?;
    released
}

fn release_all(pid: i32, image: &ProcessImage) -> Result<()> {
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
    borrow(pid, pid, image, |remote, stub| Ok(remote.run(stub, program)?))
}

/// Has `work` done in a thread (host tid) of a stopped process, which stays as it was.
pub(super) fn borrow<R>(
    pid: i32,
    tid: i32,
    image: &ProcessImage,
    work: impl FnOnce(&mut Remote, &Stub) -> Result<R>,
) -> Result<R> {
    let insn = syscall_insn(pid, &image.memory)?;
    let mut remote = Remote::open(tid, view_of(pid, tid)?.ignores(libc::SIGTRAP))?;
    let stub = Stub::map(&mut remote, insn, None)?;
    let worked = work(&mut remote, &stub);
    remote.close_with(&stub, insn)?;
    worked
}
