//! What a new process can be told only when all else is there: to whom its descriptors send
//! signals, because that may be a thread; and its locks, because the copy at the source holds
//! them until the move is decided.
//!
//! ```text
//! target  threads made ─► drive, take (what nobody holds) ─► READY ─► OWN ─► take the rest ─► run
//! source  frozen with its locks ──────────────────────────── COMMIT ─► release
//! ```

use std::collections::BTreeSet;
use std::io;

use super::capture::syscall_insn;
use super::image::{FdImage, ProcessImage};
use super::resource::fd::lock::Lock;
use super::resource::{PartError, View};
use crate::tracer::inject::{Outcome, Program, Remote, Stub, STUB_LEN};

type Result<T> = std::result::Result<T, PartError>;

/// Calls of one batch at most: each needs about 100 bytes.
const BATCH: usize = 512;

/// A lock that was not taken, and why.
pub type Missed = (Lock, io::Error);

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
    let view = View::read_process(pid)
        .map_err(|source| PartError::Io { what: format!("status of process {pid}"), source })?;
    let mut remote = Remote::open(pid, view.ignores(libc::SIGTRAP))?;
    let stub = Stub::map(&mut remote, insn, None)?;
    let outcome = remote.run(&stub, program);
    let args = [stub.base, STUB_LEN, 0, 0, 0, 0];
    remote.call(insn, libc::SYS_munmap, "munmap of the stub", args)?;
    remote.close()?;
    Ok(outcome?)
}
