//! The unsafe blocks of this module: what a child does between fork and exec.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use crate::errno::check;

/// The descriptor that a receiver finds its connection on.
pub const CONNECTION_FD: i32 = 3;

/// Starts `command` in a session of its own (setsid(2)), with no signal blocked and with a
/// duplicate of `fd` as descriptor [`CONNECTION_FD`].
///
/// # Errors
/// When the program cannot be started.
pub fn spawn_with_connection(command: &mut Command, fd: BorrowedFd<'_>) -> io::Result<Child> {
    // Takes the lowest free number, so that no descriptor that Command opens for its own use
    // can be the one that dup2 replaces.
    let _hold = File::open("/dev/null")?;
    let fd = fd.as_raw_fd();
    let prepare = move || {
        // SAFETY: setsid, sigemptyset, sigprocmask, dup2 and fcntl are async-signal-safe
        // (signal-safety(7)); the set lives on this stack; `fd` is open in the parent during
        // the whole call and so in the child.
        unsafe {
            check(libc::setsid())?;
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
            if fd == CONNECTION_FD {
                check(libc::fcntl(fd, libc::F_SETFD, 0)).map(drop)
            } else {
                check(libc::dup2(fd, CONNECTION_FD)).map(drop)
            }
        }
    };
    // SAFETY: the closure calls nothing but the async-signal-safe functions above and
    // allocates nothing.
    unsafe { command.pre_exec(prepare) }.spawn()
}
