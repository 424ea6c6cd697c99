//! Has a process ended while it was looked at?
//!
//! A process that ends is taken apart piece by piece: its memory goes first, then its descriptors,
//! then its directories, and `/proc/PID` last (do_exit in kernel/exit.c). What is read of it
//! meanwhile, an error or a value, says nothing of a job that runs on. Whoever looks at running
//! processes asks here afterwards, and leaves out those that have gone.

use std::fs;
use std::io;

use super::resource::View;
use crate::tracer::memory::{read_record, stat_field, tgid};

/// `PF_EXITING` of the kernel's `include/linux/sched.h`, in `flags` of proc_pid_stat(5).
const PF_EXITING: u32 = 0x4;

/// Has the process ended, or is it about to? It has no thread left that is not in _exit(2). `pid`
/// may be a single thread, one that is not the first of its process, as well.
#[must_use]
pub fn is_ending(pid: i32) -> bool {
    // Nearly always the first thread tells.
    if !is_ending_thread(pid, pid) {
        return false;
    }
    if tgid(pid).is_ok_and(|process| process != pid) {
        return true;
    }
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut tids = tasks.filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok());
    tids.all(|tid| is_ending_thread(pid, tid))
}

/// As [`is_ending`], of one thread of a process.
#[must_use]
pub fn is_ending_thread(pid: i32, tid: i32) -> bool {
    let Ok(text) = read_record(&format!("/proc/{pid}/task/{tid}/stat")) else { return true };
    let flags = stat_field(&text, 9).and_then(|flags| flags.parse().ok());
    flags.is_none_or(|flags: u32| flags & PF_EXITING != 0)
}

/// Does the process live, and is it none that this process traces? A child that a traced process
/// has made just now is traced before its maker's event tells of it.
#[must_use]
pub fn is_stranger(pid: i32) -> bool {
    let own = u64::from(std::process::id());
    let traced = View::read_process(pid).map_or(true, |view| view.number("TracerPid:") == own);
    // One that has ended is traced no more, so that is asked last.
    !traced && !is_ending(pid)
}

/// What a look at a process has come to, be it an error; `None` when the process has ended
/// meanwhile.
///
/// # Errors
/// Those of `look`, at a process that lives.
pub fn look<T, E>(pid: i32, look: impl FnOnce() -> Result<T, E>) -> Result<Option<T>, E> {
    let seen = look();
    match is_ending(pid) {
        true => Ok(None),
        false => seen.map(Some),
    }
}

/// Says the error that a descriptor is closed, or that the process which held it has ended?
#[must_use]
pub fn is_closed(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_read_of_a_process_that_has_ended_does_not_count() {
        let mut child = Command::new("true").spawn().expect("true");
        let pid = child.id() as i32;
        while !super::super::preflight::is_zombie(pid) {
            std::thread::yield_now();
        }
        assert!(is_ending(pid), "a zombie");
        assert_eq!(look(pid, || Ok::<_, ()>(1)), Ok(None));
        assert_eq!(look(pid, || Err::<(), _>("an error")), Ok(None));
        child.wait().expect("wait");
        assert!(is_ending(pid), "nobody");
    }

    #[test]
    fn what_is_read_of_a_process_that_lives_counts() {
        let own = std::process::id() as i32;
        assert_eq!(look(own, || Ok::<_, ()>(1)), Ok(Some(1)));
        assert_eq!(look(own, || Err::<(), _>("an error")), Err("an error"));
    }
}
