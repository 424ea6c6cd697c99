//! Every unsafe block of the command line: signal flag, a child's own terminal, and the
//! calls that `vosrun doctor` tries out.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};

use crate::errno::check;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP only set the flag that [`interrupted`] reads.
/// Programs started later are not affected: execve(2) resets handlers.
///
/// # Errors
/// Never for these signals, says sigaction(2).
pub fn catch_signals() -> io::Result<()> {
    let action =
        SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Has a signal of [`catch_signals`] come?
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Starts a command in a session of its own with `terminal` (a pty's slave side) as its
/// controlling terminal and standard files.
///
/// # Errors
/// As [`Command::spawn`].
pub fn spawn_in_terminal(command: &mut Command, terminal: &OwnedFd) -> io::Result<Child> {
    command
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal.try_clone()?);
    // SAFETY: between fork and exec only setsid(2) and ioctl(2) are called, both
    // async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() == -1 || libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Rows and columns of a terminal (TIOCGWINSZ, ioctl_tty(2)).
///
/// # Errors
/// `ENOTTY`.
pub fn window_size(terminal: BorrowedFd) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which lives through the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}

/// clone3(2) with `set_tid`: a child with exactly this pid in the caller's pid namespace,
/// 0 in the child.
///
/// # Errors
/// `EPERM` without CAP_CHECKPOINT_RESTORE in the namespace, `EEXIST` when taken.
pub fn fork_with_pid(pid: i32) -> io::Result<i32> {
    // SAFETY: clone_args is plain numbers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let pids = [pid];
    args.exit_signal = libc::SIGCHLD as u64;
    args.set_tid = pids.as_ptr() as u64;
    args.set_tid_size = 1;
    // SAFETY: no CLONE_VM, so the child gets a copy of everything, as with fork(2); callers
    // have one thread, so that no lock is held in the copy. args and pids live through it.
    check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })
        .map(|pid| pid as i32)
}

/// Puts a seccomp filter in that answers getpgid(2) with RET_TRACE and lets everything else
/// through. Without a tracer that call then fails with ENOSYS (seccomp(2)).
///
/// # Errors
/// `EINVAL` on kernels without seccomp filters, `EPERM` where a sandbox forbids them.
pub fn trace_getpgid() -> io::Result<()> {
    let statement =
        |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_getpgid as u32, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_TRACE, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let filter =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: filter and program live through the call; the kernel copies them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const filter) }).map(drop)
}

/// userfaultfd(2) for faults of user mode, with asynchronous write protection (Linux 6.7).
///
/// # Errors
/// `EPERM` where forbidden, `ENOSYS` or `EINVAL` on older kernels.
pub fn userfaultfd_wp_async() -> io::Result<OwnedFd> {
    const UFFD_USER_MODE_ONLY: i32 = 1;
    const UFFDIO_API: u64 = 0xc018_aa3f;
    const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
    // SAFETY: numbers only.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY)
    })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // struct uffdio_api of linux/userfaultfd.h: api, features, ioctls.
    let mut api = [0xaau64, UFFD_FEATURE_WP_ASYNC, 0];
    // SAFETY: UFFDIO_API reads and writes three u64, which live through the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
    Ok(fd)
}

/// The PAGEMAP_SCAN ioctl (Linux 6.7) over one page of ours: how many ranges it found.
///
/// # Errors
/// `ENOTTY` on older kernels.
pub fn scan_own_page() -> io::Result<i32> {
    const PAGEMAP_SCAN: u64 = 0xc060_6610;
    const PAGE_IS_PRESENT: u64 = 1 << 3;
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    let mut found = [[0u64; 3]; 4];
    let page = (&raw const found as u64) & !0xfff;
    // struct pm_scan_arg of linux/fs.h: size, flags, start, end, walk_end, vec, vec_len,
    // max_pages, category_inverted, category_mask, category_anyof_mask, return_mask.
    let vec = &raw mut found as u64;
    let mut arg = [96, 0, page, page + 4096, 0, vec, 4, 0, 0, PAGE_IS_PRESENT, 0, PAGE_IS_PRESENT];
    // SAFETY: arg is a pm_scan_arg, found has room for the four page_region it announces.
    check(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) })
}
