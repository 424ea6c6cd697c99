//! Descriptor tables that threads have apart from their process (CLONE_FILES of unshare(2)).
//!
//! At the target such a thread is made with the table of its process, where its descriptors are
//! parked at numbers above all others. It leaves the table, moves them to their own numbers, and
//! closes the rest:
//!
//! ```text
//! process  0 1 2 5 ┄┄ 20 21 22     made as any table; 20 and above are closed in the end
//! thread   0 1 2 5 ┄┄ 20 21 22     unshare
//!          0 1   5 ┄┄              dup3 20 → 0, 21 → 1, 22 → 5; the rest is closed
//! ```

use std::cmp::Ordering;
use std::io;

use serde::{Deserialize, Serialize};

use super::files::Files;
use super::gone;
use super::raw::{compare_tasks, is_apart, Shared};
use super::resource::blocker;
use super::resource::fd::{self, FdView, Slot};
use crate::control::Finding;
use crate::tracer::inject::Program;
use crate::tracer::raw::pidfd_open_thread;

/// The code of a refusal.
const CODE: &str = "VOS-THREAD-FILES";

/// A descriptor of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Its number.
    pub fd: i32,
    /// Where the process holds it for the thread.
    pub parked: i32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
}

/// Which of these threads (process, thread) have a table apart from their process? None where the
/// kernel gives no descriptors of threads (before Linux 6.9).
///
/// # Errors
/// When kcmp(2) fails otherwise than by not being there.
pub fn apart(threads: impl Iterator<Item = (i32, i32)>) -> io::Result<Vec<(i32, i32)>> {
    let mut found = Vec::new();
    for (pid, tid) in threads {
        match is_apart(pid, tid, Shared::Files) {
            // One that ends has no table any more, which is another than that of its process.
            Ok(true) if gone::is_ending_thread(pid, tid) => {}
            Ok(true) if pidfd_open_thread(tid).is_ok() => found.push((pid, tid)),
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
            // One that has ended has none any more.
            _ => {}
        }
    }
    Ok(found)
}

/// What hinders threads from moving that have a table of their own: `apart` of process `pid`.
/// `shared`: the process has its own table in common with another one.
#[must_use]
pub fn check(files: &Files, pid: i32, apart: &[i32], shared: bool) -> Option<Finding> {
    let mut seen: Vec<i32> = Vec::new();
    for &tid in apart {
        let same = |other: &i32| {
            compare_tasks(*other, tid, Shared::Files).is_ok_and(|order| order == Ordering::Equal)
        };
        let cause = match seen.iter().any(same) {
            _ if shared => Some("its process has its descriptor table in common with another one"),
            true => Some("it has its descriptor table in common with another thread only"),
            false => hindrance(files, files.table(pid), files.table(tid)),
        };
        if let Some(cause) = cause {
            let object = format!("process {pid}, thread {tid}");
            return Some(blocker(CODE, object, cause, "wait until the thread has ended"));
        }
        seen.push(tid);
    }
    None
}

/// What a thread has in its table that cannot be parked in that of its process.
fn hindrance(files: &Files, process: &[Slot], thread: &[Slot]) -> Option<&'static str> {
    let view = |slot: &Slot| files.views.objects.get(slot.object as usize);
    let locked = |view: &FdView, how: &str| {
        view.fdinfo.lines().any(|line| line.starts_with("lock:") && line.contains(how))
    };
    if process.iter().chain(thread).filter_map(view).any(|view| locked(view, "POSIX")) {
        return Some("its process holds record locks, which belong to a table");
    }
    let alone = |slot: &&Slot| process.iter().all(|other| other.object != slot.object);
    thread.iter().filter(alone).filter_map(view).find_map(|view| {
        if fd::find(view).is_some_and(|kind| kind.name() == fd::EPOLL) {
            Some("it alone has an epoll instance, which knows the numbers in its table")
        } else if locked(view, "") {
            Some("it alone has a file that is locked")
        } else if fd::sends_signals(view, files) {
            Some("it alone has a descriptor that sends signals (F_SETOWN of fcntl(2))")
        } else {
            None
        }
    })
}

/// Parks the descriptors of a thread in the table of its process.
///
/// # Errors
/// When there are no numbers left.
pub fn park(table: &mut Vec<Slot>, thread: &[Slot]) -> Result<Vec<Own>, &'static str> {
    let last = table.iter().chain(thread).map(|slot| slot.fd).max().unwrap_or(-1);
    let mut own = Vec::with_capacity(thread.len());
    for (slot, more) in thread.iter().zip(1..) {
        let parked = last.checked_add(more).ok_or("descriptors beyond all limits")?;
        own.push(Own { fd: slot.fd, parked, cloexec: slot.cloexec });
        table.push(Slot { fd: parked, object: slot.object, cloexec: true });
    }
    Ok(own)
}

/// Calls by which a new thread gets its table.
pub fn take(own: &[Own], program: &mut Program) {
    let files = (libc::CLONE_FILES as u64).into();
    program.call(libc::SYS_unshare, "unshare of the descriptors", &[files]);
    for slot in own {
        let flags = if slot.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
        let args = [slot.parked as u64, slot.fd as u64, flags].map(Into::into);
        program.call(libc::SYS_dup3, "dup3 of a descriptor of a thread", &args);
    }
    let mut numbers: Vec<u64> = own.iter().map(|slot| slot.fd as u64).collect();
    numbers.sort_unstable();
    let mut next = 0;
    for number in numbers.into_iter().chain([u64::from(u32::MAX)]) {
        if next < number {
            let args = [next, number - 1, 0].map(Into::into);
            program.call(libc::SYS_close_range, "close_range in a thread", &args);
        }
        next = number + 1;
    }
}

/// Calls by which a process closes what is parked for its threads.
pub fn leave(own: &[Own], program: &mut Program) {
    let parked = || own.iter().map(|slot| slot.parked as u64);
    if let Some((first, last)) = parked().min().zip(parked().max()) {
        let args = [first, last, 0].map(Into::into);
        program.call(libc::SYS_close_range, "close_range of what was parked", &args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_of_threads_are_parked_above_all_others() {
        let slot = |fd, object, cloexec| Slot { fd, object, cloexec };
        let mut table = vec![slot(0, 0, false), slot(5, 1, true)];
        let one = park(&mut table, &[slot(0, 1, true), slot(9, 2, false)]).expect("park");
        let other = park(&mut table, &[slot(1, 0, false)]).expect("park");
        assert_eq!(one[0], Own { fd: 0, parked: 10, cloexec: true });
        assert_eq!(one[1], Own { fd: 9, parked: 11, cloexec: false });
        assert_eq!(other, [Own { fd: 1, parked: 12, cloexec: false }]);
        let parked: Vec<_> = table[2..].iter().map(|s| (s.fd, s.object, s.cloexec)).collect();
        assert_eq!(parked, [(10, 1, true), (11, 2, true), (12, 0, true)]);
        assert!(park(&mut vec![slot(i32::MAX, 0, false)], &table).is_err());
    }

    #[test]
    fn threads_that_left_the_table_are_found() {
        let own = std::process::id() as i32;
        std::thread::spawn(move || {
            let tid = nix::unistd::gettid().as_raw();
            assert!(apart([(own, tid)].into_iter()).expect("kcmp").is_empty());
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).expect("unshare");
            let known = pidfd_open_thread(tid).is_ok();
            let found = apart([(own, own), (own, tid)].into_iter()).expect("kcmp");
            assert_eq!(found, if known { vec![(own, tid)] } else { Vec::new() });
        })
        .join()
        .expect("thread");
    }
}
