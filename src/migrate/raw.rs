//! Every unsafe block of building a new process: fork, clone3 with chosen pids, namespaces.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::turns;
use crate::errno::check;

/// `struct clone_args` of clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// fork(2) by clone3(2), with the child's pid in the newest pid namespace when `pid` is given.
/// Answers 0 in the child. The supervisor has one thread, so the child may use everything;
/// only glibc's cached tid is stale there (raise(3) and pthread calls).
///
/// # Errors
/// `EEXIST` when the pid is in use, `EPERM` without CAP_CHECKPOINT_RESTORE over the namespace.
pub fn fork(pid: Option<i32>) -> io::Result<i32> {
    fork_with(pid, libc::SIGCHLD, 0)
}

/// How [`fork_as`] makes a process.
#[derive(Debug, Clone, Copy)]
pub struct Birth {
    /// In the newest pid namespace, if given.
    pub pid: Option<i32>,
    /// Sent to the parent at its end. One with another than SIGCHLD is a child only to who waits
    /// with `__WALL` (wait(2)).
    pub exit_signal: i32,
    /// What it shares with the caller (clone(2)); not CLONE_VM.
    pub flags: i32,
}

/// fork(2), or clone(2) with some more in common.
///
/// # Errors
/// As [`fork`].
pub fn fork_as(birth: Birth) -> io::Result<i32> {
    fork_with(birth.pid, birth.exit_signal, birth.flags)
}

fn fork_with(pid: Option<i32>, exit_signal: i32, flags: i32) -> io::Result<i32> {
    let wanted = [pid.unwrap_or(0)];
    let mut args =
        CloneArgs { flags: flags as u64, exit_signal: exit_signal as u64, ..CloneArgs::default() };
    if pid.is_some() {
        args.set_tid = wanted.as_ptr() as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: args and the array it points to live through the call; no new stack is given and
    // memory is not shared, so the child goes on with a copy of ours, as after fork(2).
    let got = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    check(got).map(|pid| pid as i32)
}

/// Makes a process that has the caller's memory (CLONE_VM), and begins with `entry` on a stack of
/// its own. It has the caller's thread pointer too, so they take turns ([`turns`]).
///
/// # Errors
/// As [`fork`].
pub fn clone_beside<T>(birth: Birth, entry: fn(T) -> !, with: T) -> io::Result<i32> {
    const STACK: usize = 4 << 20;
    let stack = vec![0_u128; STACK / size_of::<u128>()].leak();
    let wanted = [birth.pid.unwrap_or(0)];
    let args = CloneArgs {
        flags: (birth.flags | libc::CLONE_VM) as u64,
        exit_signal: birth.exit_signal as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        set_tid: birth.pid.map_or(0, |_| wanted.as_ptr() as u64),
        set_tid_size: birth.pid.map_or(0, |_| 1),
        ..CloneArgs::default()
    };
    let with = Box::into_raw(Box::new((entry, with)));
    let got: i64;
    // SAFETY: args and what it points to live through the call. The child's stack is leaked, so
    // nobody else uses it; the child goes to `enter` with it, aligned as the ABI wants, and never
    // comes back here.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {with}",
            "call {enter}",
            "ud2",
            "2:",
            with = in(reg) with,
            enter = in(reg) enter::<T> as extern "C" fn(*mut (fn(T) -> !, T)) -> !,
            inout("rax") libc::SYS_clone3 => got,
            in("rdi") &raw const args,
            in("rsi") size_of::<CloneArgs>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    if got < 0 {
        // SAFETY: no child has it.
        drop(unsafe { Box::from_raw(with) });
        return Err(io::Error::from_raw_os_error(-got as i32));
    }
    Ok(got as i32)
}

/// Where the child of [`clone_beside`] begins.
extern "C" fn enter<T>(with: *mut (fn(T) -> !, T)) -> ! {
    turns::take();
    // SAFETY: the box was made for this process alone, which takes it once.
    let (entry, with) = *unsafe { Box::from_raw(with) };
    entry(with)
}

/// A system call that leaves errno(3) alone, which processes of one memory have in common.
fn bare_call(nr: i64, args: [u64; 4]) -> i64 {
    let got: i64;
    // SAFETY: only for the calls below, whose pointers live through them.
    unsafe {
        std::arch::asm!(
            "syscall",
            inout("rax") nr => got,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") 0,
            out("rcx") _,
            out("r11") _,
        );
    }
    got
}

/// FUTEX_WAIT of futex(2), within one memory.
pub fn futex_wait(word: &std::sync::atomic::AtomicU32, value: u32) {
    let op = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64;
    bare_call(libc::SYS_futex, [word.as_ptr() as u64, op, value.into(), 0]);
}

/// FUTEX_WAKE of one waiter.
pub fn futex_wake(word: &std::sync::atomic::AtomicU32) {
    let op = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64;
    bare_call(libc::SYS_futex, [word.as_ptr() as u64, op, 1, 0]);
}

/// Waits until there is something to read, or the other end is closed (ppoll(2)).
pub fn await_readable(fd: BorrowedFd) {
    let mut wait = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    bare_call(libc::SYS_ppoll, [&raw mut wait as u64, 1, 0, 0]);
}

/// Gives freed memory back to the system. A move leaves much behind, and a supervisor waits
/// for days (malloc_trim(3); other C libraries do it by themselves).
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number only; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// CLONE_NEWTIME of sched.h.
pub const CLONE_NEWTIME: i32 = 0x80;

/// Forks a child of the caller's parent (CLONE_PARENT), so that the supervisor reaps it.
///
/// # Errors
/// As fork(2).
pub fn fork_sibling() -> io::Result<i32> {
    let args = CloneArgs { flags: libc::CLONE_PARENT as u64, ..CloneArgs::default() };
    // SAFETY: as in `fork`.
    let got = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    check(got).map(|pid| pid as i32)
}

/// Takes a descriptor that the kernel has just given to this process.
#[must_use]
pub fn own(fd: RawFd) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the caller got it from recvmsg(2) or an equivalent and gives it to nobody else.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
}

/// unshare(2).
///
/// # Errors
/// `EPERM`, `ENOSPC` (a limit of namespaces), `EINVAL` (kernel without one).
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// close_range(2) of everything from `first` to `last`.
pub fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: numbers only; the callers are fresh children that own nothing in the range.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Ends this process at once, without destructors or buffers of its parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns; nothing of the copied state is used any more.
    unsafe { libc::_exit(code) }
}

/// mmap(2) of private memory, to be read and written, at an address where nothing is mapped.
/// `flags` are further ones; `file` with the offset in it, anonymous memory else.
///
/// # Errors
/// `EEXIST` when something is there, `ENOMEM`.
pub fn map_private(
    start: u64,
    len: u64,
    flags: i32,
    file: Option<(BorrowedFd, u64)>,
) -> io::Result<()> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
    let (flags, fd, offset) = match file {
        Some((fd, offset)) => (flags, fd.as_raw_fd(), offset),
        None => (flags | libc::MAP_ANONYMOUS, -1, 0),
    };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let at = std::ptr::without_provenance_mut(start as usize);
    // SAFETY: MAP_FIXED_NOREPLACE takes no address that is in use; numbers only.
    let got = unsafe { libc::mmap(at, len as usize, prot, flags, fd, offset.cast_signed()) };
    match got {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// setdomainname(2).
///
/// # Errors
/// `EPERM`.
pub fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: name lives through the call and has the length told.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// TIOCSCTTY: makes the terminal the controlling one of this session.
///
/// # Errors
/// `EPERM` when this is no session leader or the terminal is taken.
pub fn set_controlling_terminal(tty: BorrowedFd) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// tcsetpgrp(3).
///
/// # Errors
/// `ENOTTY`, `EPERM`.
pub fn set_foreground(tty: BorrowedFd, pgid: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::tcsetpgrp(tty.as_raw_fd(), pgid) }).map(drop)
}

/// PR_SET_DUMPABLE.
pub fn set_dumpable(on: bool) {
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(on), 0, 0, 0) };
}

/// PR_SET_CHILD_SUBREAPER.
///
/// # Errors
/// None that is known.
pub fn set_subreaper(on: bool) -> io::Result<()> {
    // SAFETY: numbers only.
    let set =
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, libc::c_ulong::from(on), 0, 0, 0) };
    check(set).map(drop)
}

/// Takes one signal, of any number, out of this thread's mask.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn unblock(signal: i32) -> io::Result<()> {
    // SAFETY: the set is initialised by sigemptyset before it is read, and lives through the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigaddset(&raw mut set, signal))?;
        check(libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut())).map(drop)
    }
}

/// wait4(2) for any child, blocking; `None` when there is none left.
#[must_use]
pub fn reap(flags: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    loop {
        // SAFETY: status lives through the call.
        let got = unsafe { libc::wait4(-1, &raw mut status, flags, std::ptr::null_mut()) };
        match check(got) {
            Ok(pid) => return Some((pid, status)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// memfd_create(2), close-on-exec.
///
/// # Errors
/// `EMFILE`, `ENOMEM`.
pub fn memfd(name: &str) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: name lives through the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    let fd = check(fd)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

/// SO_PASSCRED on a unix socket.
///
/// # Errors
/// `ENOTSOCK`.
pub fn pass_credentials(socket: BorrowedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: on lives through the call and has the size told.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as u32,
        )
    })
    .map(drop)
}
/// What two tasks may share (kcmp(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// KCMP_VM.
    Memory = 1,
    /// KCMP_FILES.
    Files = 2,
    /// KCMP_FS.
    Directories = 3,
    /// KCMP_SIGHAND.
    Handlers = 4,
    /// KCMP_SYSVSEM: what semop(2) is to undo.
    Undo = 6,
}

/// kcmp(2): are these the same in both tasks, or which comes first in the kernel's order?
///
/// # Errors
/// `ENOSYS` without CONFIG_KCMP, `EPERM`, `ESRCH`.
pub fn compare_tasks(pid: i32, other: i32, what: Shared) -> io::Result<std::cmp::Ordering> {
    // SAFETY: numbers only.
    match check(unsafe { libc::syscall(libc::SYS_kcmp, pid, other, what as i32, 0, 0) })? {
        0 => Ok(std::cmp::Ordering::Equal),
        1 => Ok(std::cmp::Ordering::Less),
        _ => Ok(std::cmp::Ordering::Greater),
    }
}

/// Has a thread this apart from its process (unshare(2))? The first one never has, and none does
/// where kcmp(2) does not work.
///
/// # Errors
/// `ESRCH` when it has ended.
pub fn is_apart(pid: i32, tid: i32, what: Shared) -> io::Result<bool> {
    if pid == tid {
        return Ok(false);
    }
    match compare_tasks(pid, tid, what) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(false),
        compared => compared.map(|order| order != std::cmp::Ordering::Equal),
    }
}
