//! Every unsafe block of this module: the system calls on descriptors that std and nix lack
//! or offer only for owned descriptors.
//!
//! Descriptors are plain numbers here: the callers work on numbers of a job.

use std::cmp::Ordering;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::size_of;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::errno::check;

/// fcntl(2): the signal that tells of readiness, 0 for none chosen.
pub const F_GETSIG: i32 = 11;

fn owned(result: RawFd) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// kcmp(2) KCMP_FILE: the order of the open file descriptions behind two descriptors, each
/// given by process and number.
///
/// # Errors
/// `ENOSYS` without CONFIG_KCMP, `EPERM`, `ESRCH`, `EBADF`.
pub fn compare_files(one: (i32, RawFd), other: (i32, RawFd)) -> io::Result<Ordering> {
    const KCMP_FILE: i32 = 0;
    let ((pid1, fd1), (pid2, fd2)) = (one, other);
    // SAFETY: numbers only.
    match check(unsafe { libc::syscall(libc::SYS_kcmp, pid1, pid2, KCMP_FILE, fd1, fd2) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        _ => Ok(Ordering::Greater),
    }
}

/// kcmp(2) KCMP_EPOLL_TFD: is the description behind `fd` what the `nth` entry for number
/// `tfd` (counted from 0, in the order of fdinfo) of the epoll `efd` watches?
///
/// # Errors
/// `ENOSYS` without CONFIG_KCMP, `EBADF` when `fd` is closed, `ENOENT` without the entry.
pub fn epoll_watches(pid: i32, fd: RawFd, efd: RawFd, tfd: RawFd, nth: u32) -> io::Result<bool> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let slot = [efd as u32, tfd as u32, nth];
    // SAFETY: slot is a struct kcmp_epoll_slot (three __u32) that lives through the call.
    let result = unsafe {
        libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd, &raw const slot as usize)
    };
    check(result).map(|n| n == 0)
}

/// fcntl(2), for commands whose argument is a number or absent.
///
/// # Errors
/// Those of the command.
pub fn fcntl(fd: RawFd, command: i32, arg: i32) -> io::Result<i32> {
    // F_SETLK and its like take pointers and would be misused here.
    debug_assert!(!(5..=7).contains(&command) && !(36..=38).contains(&command));
    // SAFETY: all callers pass commands with a number for argument.
    check(unsafe { libc::fcntl(fd, command, arg) })
}

/// fcntl(2) F_GETOWN_EX: who gets the object's signals: kind and number, which is 0 for nobody.
///
/// # Errors
/// `EBADF`.
pub fn owner(fd: RawFd) -> io::Result<(i32, i32)> {
    const F_GETOWN_EX: i32 = 16;
    let mut owner = [0i32; 2];
    // SAFETY: owner is a struct f_owner_ex (type, pid) that lives through the call.
    check(unsafe { libc::fcntl(fd, F_GETOWN_EX, &raw mut owner) }).map(|_| (owner[0], owner[1]))
}

/// fcntl(2) F_DUPFD_CLOEXEC: the lowest free number from `min` on.
///
/// # Errors
/// `EBADF`, `EMFILE`, `EINVAL` for a `min` beyond RLIMIT_NOFILE.
pub fn dup_from(fd: RawFd, min: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, min) })
}

/// dup3(2): makes `number` a duplicate of `fd`, closing what was there.
///
/// # Errors
/// `EBADF` also for a number beyond RLIMIT_NOFILE, `EINVAL` for `fd == number`.
pub fn dup_onto(fd: RawFd, number: RawFd, cloexec: bool) -> io::Result<()> {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: numbers only; the callers own the number that is replaced.
    check(unsafe { libc::dup3(fd, number, flags) }).map(drop)
}

/// close_range(2) of all descriptors from `first` to `last`, both inclusive.
///
/// # Errors
/// `EINVAL` for `first > last`, `ENOSYS` before Linux 5.9.
pub fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: numbers only; the callers give up what they close.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// ioctl(2) FIONREAD: bytes that can be read.
///
/// # Errors
/// `ENOTTY` for objects without it.
pub fn readable_bytes(fd: RawFd) -> io::Result<usize> {
    let mut n: libc::c_int = 0;
    // SAFETY: n lives through the call; FIONREAD writes an int.
    check(unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut n) }).map(|_| n as usize)
}

/// ioctl(2) SIOCOUTQ of a socket: what its messages that nobody has read cost (unix(7)), bytes.
///
/// # Errors
/// `ENOTTY` for objects without it.
pub fn unsent_bytes(fd: RawFd) -> io::Result<u32> {
    let mut n: libc::c_int = 0;
    // SAFETY: n lives through the call; TIOCOUTQ, which is SIOCOUTQ, writes an int.
    check(unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut n) }).map(|_| n as u32)
}

/// recvmsg(2) with MSG_PEEK into a buffer of `len` bytes whose last one cannot be written: a stream
/// gives the writes that fit without it, each whole or not at all (unix_stream_read_generic of
/// net/unix/af_unix.c), and 0 if that is none.
///
/// # Errors
/// `EAGAIN` when nothing waits.
pub fn peek_writes_before(fd: RawFd, len: usize) -> io::Result<usize> {
    let mut bytes = vec![0u8; len.saturating_sub(1)];
    let mut parts = [
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() },
        libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 },
    ];
    // SAFETY: a msghdr without a name and control data may be all zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (parts.as_mut_ptr(), parts.len() as _);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: message, parts and bytes live through the call; the kernel finds that nothing can
    // be written to the null page, and answers EFAULT or what it has copied before.
    match check(unsafe { libc::recvmsg(fd, &raw mut message, flags) }) {
        Err(e) if e.raw_os_error() == Some(libc::EFAULT) => Ok(0),
        other => other.map(|n| n as usize),
    }
}

/// getsockopt(2) of an int at level SOL_SOCKET.
///
/// # Errors
/// `ENOTSOCK`.
pub fn socket_option(fd: RawFd, option: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: value and len live through the call and len is the size of value.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len)
    };
    check(result).map(|_| value)
}

/// getsockopt(2) at level SOL_SOCKET, of at most 64 bytes.
///
/// # Errors
/// `ENOTSOCK`, `ENOPROTOOPT`.
pub fn socket_option_bytes(fd: RawFd, option: i32) -> io::Result<Vec<u8>> {
    option_bytes(fd, libc::SOL_SOCKET, option, 64)
}

/// getsockopt(2), of at most so many bytes.
///
/// # Errors
/// `ENOTSOCK`, `ENOPROTOOPT`.
pub fn option_bytes(fd: RawFd, level: i32, option: i32, most: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; most];
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: value and len live through the call and len is the size of value.
    let result =
        unsafe { libc::getsockopt(fd, level, option, value.as_mut_ptr().cast(), &raw mut len) };
    check(result)?;
    value.truncate(len as usize);
    Ok(value)
}

/// poll(2) of one descriptor without waiting: which of `events` (POLL…) are true.
///
/// # Errors
/// `ENOMEM`.
pub fn poll_now(fd: RawFd, events: i16) -> io::Result<i16> {
    let mut polled = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: polled lives through the call and is one.
    check(unsafe { libc::poll(&raw mut polled, 1, 0) }).map(|_| polled.revents)
}

/// The protocol of a socket by its name in /proc, with the zero byte at its end
/// (`system.sockprotoname`, net/socket.c).
///
/// # Errors
/// `ENOENT`, `EOPNOTSUPP` for what is no socket.
pub fn socket_protocol(path: &std::path::Path) -> io::Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = vec![0u8; 64];
    let name = c"system.sockprotoname";
    // SAFETY: path and name end with a zero byte; value lives through the call and has the length
    // told.
    let len = check(unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    })?;
    value.truncate(len as usize);
    Ok(value)
}

/// Has the socket a filter (SO_ATTACH_FILTER and the like of socket(7))? Without room
/// SO_GET_FILTER gives the length only.
pub fn has_socket_filter(fd: RawFd) -> bool {
    const SO_GET_FILTER: i32 = 26;
    let mut len: libc::socklen_t = 0;
    // SAFETY: nothing is written but len, which lives through the call.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, SO_GET_FILTER, std::ptr::null_mut(), &raw mut len)
    };
    // EACCES: a filter that is not told (eBPF).
    result != 0 || len != 0
}

/// setsockopt(2) at level SOL_SOCKET.
///
/// # Errors
/// `ENOTSOCK`, `ENOPROTOOPT`, `EINVAL`, `EPERM`.
pub fn set_socket_option(fd: RawFd, option: i32, value: &[u8]) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, option, value)
}

/// setsockopt(2).
///
/// # Errors
/// As [`set_socket_option`].
pub fn set_option(fd: RawFd, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: value lives through the call and has the length told.
    check(unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), len) }).map(drop)
}

/// listen(2), with any backlog.
///
/// # Errors
/// `EINVAL` for a socket that has no name or is connected.
pub fn listen(fd: RawFd, backlog: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::listen(fd, backlog) }).map(drop)
}

/// connect(2) to AF_UNSPEC: a datagram socket is connected to nobody any more.
///
/// # Errors
/// `ENOTSOCK`.
pub fn disconnect(fd: RawFd) -> io::Result<()> {
    let nobody = libc::sa_family_t::try_from(libc::AF_UNSPEC).unwrap_or_default();
    let len = size_of::<libc::sa_family_t>() as libc::socklen_t;
    // SAFETY: nobody lives through the call and has the length told.
    check(unsafe { libc::connect(fd, (&raw const nobody).cast(), len) }).map(drop)
}

/// tee(2) without blocking: duplicates up to `len` bytes from one pipe to another.
///
/// # Errors
/// `EAGAIN` when the source is empty or the target full.
pub fn tee(from: RawFd, to: RawFd, len: usize) -> io::Result<usize> {
    // SAFETY: numbers only.
    check(unsafe { libc::tee(from, to, len, libc::SPLICE_F_NONBLOCK) }).map(|n| n as usize)
}

/// memfd_create(2).
///
/// # Errors
/// `EINVAL` for flags the kernel does not know, `EACCES` under vm.memfd_noexec.
pub fn memfd(name: &CStr, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: name is a C string that lives through the call.
    owned(unsafe { libc::memfd_create(name.as_ptr(), flags) })
}

/// eventfd(2), close-on-exec, count 0.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn eventfd(semaphore: bool) -> io::Result<OwnedFd> {
    let flags = libc::EFD_CLOEXEC | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    // SAFETY: numbers only.
    owned(unsafe { libc::eventfd(0, flags) })
}

/// signalfd(2), close-on-exec; bit n-1 of `mask` stands for signal n.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn signalfd(mask: u64) -> io::Result<OwnedFd> {
    // SAFETY: mask lives through the call and has the 8 bytes of the kernel's sigset_t.
    let fd =
        unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, libc::SFD_CLOEXEC) };
    owned(fd as RawFd)
}

/// clock_gettime(2) in nanoseconds.
///
/// # Errors
/// `EINVAL` for an unknown clock.
pub fn clock(id: i32) -> io::Result<i64> {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: t lives through the call.
    check(unsafe { libc::clock_gettime(id, &raw mut t) })?;
    Ok(t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec))
}

/// Nanoseconds as the kernel's timespec.
fn timespec(ns: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (ns % 1_000_000_000) as libc::c_long,
    }
}

/// timerfd_create(2), close-on-exec.
///
/// # Errors
/// `EPERM` for the ALARM clocks without CAP_WAKE_ALARM.
pub fn timerfd(clock: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) })
}

/// timerfd_settime(2), times in nanoseconds.
///
/// # Errors
/// `EINVAL`; `ECANCELED` when the clock was set meanwhile.
pub fn timerfd_set(fd: RawFd, flags: i32, value: u64, interval: u64) -> io::Result<()> {
    let new = libc::itimerspec { it_interval: timespec(interval), it_value: timespec(value) };
    // SAFETY: new lives through the call; the old value is not asked for.
    check(unsafe { libc::timerfd_settime(fd, flags, &raw const new, std::ptr::null_mut()) })
        .map(drop)
}

/// timerfd_gettime(2): nanoseconds to the next expiry. A periodic timer with an unread
/// expiry is advanced by the kernel: its missed ticks are counted and it runs on.
///
/// # Errors
/// `EINVAL` for another kind of descriptor.
pub fn timerfd_remaining(fd: RawFd) -> io::Result<u64> {
    let zero = libc::itimerspec { it_interval: timespec(0), it_value: timespec(0) };
    let mut now = zero;
    // SAFETY: now lives through the call.
    check(unsafe { libc::timerfd_gettime(fd, &raw mut now) })?;
    Ok(now.it_value.tv_sec as u64 * 1_000_000_000 + now.it_value.tv_nsec as u64)
}

/// ioctl TFD_IOC_SET_TICKS (fs/timerfd.c): the number of unread expiries.
///
/// # Errors
/// `ENOTTY` without CONFIG_CHECKPOINT_RESTORE.
pub fn timerfd_set_ticks(fd: RawFd, ticks: u64) -> io::Result<()> {
    const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
    // SAFETY: ticks is the u64 that the request reads and lives through the call.
    check(unsafe { libc::ioctl(fd, TFD_IOC_SET_TICKS, &raw const ticks) }).map(drop)
}

/// epoll_create1(2), close-on-exec.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// epoll_ctl(2) with EPOLL_CTL_ADD or EPOLL_CTL_MOD.
///
/// # Errors
/// `EBADF`, `EEXIST`, `ELOOP`, `ENOSPC`, `EPERM` for objects that cannot be polled.
pub fn epoll_ctl(epoll: RawFd, op: i32, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: event lives through the call.
    check(unsafe { libc::epoll_ctl(epoll, op, fd, &raw mut event) }).map(drop)
}

/// epoll_wait(2) without waiting, for at most one event; its data.
///
/// # Errors
/// `EBADF`, `EINVAL`.
pub fn epoll_poll(epoll: RawFd) -> io::Result<Option<u64>> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: event is the one entry that the kernel may write and lives through the call.
    let n = check(unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 0) })?;
    Ok((n == 1).then_some(event.u64))
}

/// inotify_init1(2), close-on-exec and non-blocking.
///
/// # Errors
/// `EMFILE` also beyond fs.inotify.max_user_instances.
pub fn inotify() -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })
}

/// inotify_add_watch(2): the watch descriptor.
///
/// # Errors
/// `ENOENT`, `EACCES`, `ENOSPC` beyond fs.inotify.max_user_watches.
pub fn inotify_add(fd: RawFd, path: &CStr, mask: u32) -> io::Result<i32> {
    // SAFETY: path is a C string that lives through the call.
    check(unsafe { libc::inotify_add_watch(fd, path.as_ptr(), mask) })
}

/// inotify_rm_watch(2).
///
/// # Errors
/// `EINVAL` for an unknown watch descriptor.
pub fn inotify_remove(fd: RawFd, wd: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::inotify_rm_watch(fd, wd) }).map(drop)
}

/// pidfd_open(2), close-on-exec.
///
/// # Errors
/// `ESRCH`; `EINVAL` for flags that the kernel does not know.
pub fn pidfd(pid: i32, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) } as RawFd)
}

/// ioctl(2) PIDFD_GET_INFO: the status that wait(2) gave of a process that has been reaped.
///
/// # Errors
/// `ENOTTY` and others before Linux 6.15; `ESRCH` when it is not known.
pub fn pidfd_exit_status(fd: RawFd) -> io::Result<i32> {
    const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    // struct pidfd_info (linux/pidfd.h): the mask first, the status last.
    let mut info = [0u64; 8];
    info[0] = PIDFD_INFO_EXIT;
    // SAFETY: info has the 64 bytes that the request's number tells, and lives through the call.
    check(unsafe { libc::ioctl(fd, PIDFD_GET_INFO, info.as_mut_ptr()) })?;
    match info[0] & PIDFD_INFO_EXIT {
        0 => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        _ => Ok((info[7] >> 32) as i32),
    }
}

/// A pidfd of a process that ends with this status, as wait(2) gives it, and is reaped.
///
/// # Errors
/// Those of clone3(2) and pidfd_open(2).
pub fn pidfd_of_reaped(status: i32, flags: u32) -> io::Result<OwnedFd> {
    // Flags CLONE_CLEAR_SIGHAND; no signal at its end, which a program could see.
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    let args = [CLONE_CLEAR_SIGHAND, 0, 0, 0, 0, 0, 0, 0];
    let size = size_of_val(&args);
    // SAFETY: args is a struct clone_args; the child has a copy of the memory, as after fork(2).
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size) })?;
    if pid == 0 {
        end_with(status);
    }
    let fd = pidfd(pid as i32, flags);
    // SAFETY: no status is asked for; the child is ours.
    let reaped = unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::__WALL) };
    check(reaped)?;
    fd
}

/// Ends this process, a child that does nothing else, with a status as wait(2) gives it.
fn end_with(status: i32) -> ! {
    let signal = libc::WTERMSIG(status);
    // SAFETY: numbers only, and a set that lives through the calls. Without a core of a process
    // that is none of the program's.
    unsafe {
        if signal != 0 {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut all);
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
            libc::syscall(libc::SYS_kill, libc::syscall(libc::SYS_getpid), signal);
        }
        libc::_exit(libc::WEXITSTATUS(status))
    }
}

/// getdents64(2): the next records of a directory, at most 4 KiB.
///
/// # Errors
/// `ENOENT` when the directory has been removed.
pub fn directory_entries(fd: RawFd) -> io::Result<Vec<u8>> {
    let mut buf = vec![0u8; 4096];
    // SAFETY: the kernel writes at most the length of buf, which lives through the call.
    let n = check(unsafe { libc::syscall(libc::SYS_getdents64, fd, buf.as_mut_ptr(), buf.len()) })?;
    buf.truncate(n as usize);
    Ok(buf)
}

/// Forks a child that runs `body` and ends with what that gives; answers its pid.
#[cfg(test)]
pub fn forked(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child uses nothing that other threads may hold but malloc, which glibc
    // keeps usable across fork, and ends by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: ends this child at once.
        unsafe { libc::_exit(status.unwrap_or(101)) };
    }
    assert!(pid > 0, "fork: {}", io::Error::last_os_error());
    pid
}

/// Runs `body` in a forked child, for tests that replace descriptors at their numbers.
/// The child's complaint comes back through `complaints`, a path.
#[cfg(test)]
pub fn in_child(complaints: &std::path::Path, body: impl FnOnce() -> Result<(), String>) {
    let pid = forked(|| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        let text = match result {
            Ok(Ok(())) => String::new(),
            Ok(Err(e)) => e,
            Err(p) => p.downcast_ref::<String>().cloned().unwrap_or_else(|| "panic".into()),
        };
        let _ = std::fs::write(complaints, &text);
        i32::from(!text.is_empty())
    });
    let mut status = 0;
    // SAFETY: status lives through the call; pid is our child.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    let text = std::fs::read_to_string(complaints).unwrap_or_default();
    assert_eq!((status, text.as_str()), (0, ""));
}

/// mq_open(3) of a new queue, close-on-exec and not blocking; `name` with its slash.
///
/// # Errors
/// `EINVAL` above the limits of mq_overview(7), `EMFILE` above RLIMIT_MSGQUEUE.
pub fn mq_create(name: &[u8], mode: u32, most: i64, size: i64) -> io::Result<OwnedFd> {
    let name = queue_name(name)?;
    // SAFETY: the structure is plain data; it and the name live through the call.
    unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (most, size);
        let flags =
            libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let name = name.as_ptr();
        let at = &raw const attributes;
        let fd = check(libc::syscall(libc::SYS_mq_open, name, flags, mode, at))? as RawFd;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The system calls take names without the slash (mq_overview(7)).
fn queue_name(name: &[u8]) -> io::Result<CString> {
    CString::new(name.strip_prefix(b"/").unwrap_or(name)).map_err(io::Error::other)
}

/// mq_unlink(3).
///
/// # Errors
/// `ENOENT`, `EACCES`.
pub fn mq_unlink(name: &[u8]) -> io::Result<()> {
    let name = queue_name(name)?;
    // SAFETY: the name lives through the call.
    check(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) }).map(drop)
}

/// mq_getattr(3): most messages, most bytes of one, messages now.
///
/// # Errors
/// `EBADF`.
pub fn mq_attributes(fd: RawFd) -> io::Result<(i64, i64, i64)> {
    // SAFETY: the structure is plain data and lives through the call.
    unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        let none = std::ptr::null::<libc::mq_attr>();
        check(libc::syscall(libc::SYS_mq_getsetattr, fd, none, &raw mut attributes))?;
        Ok((attributes.mq_maxmsg, attributes.mq_msgsize, attributes.mq_curmsgs))
    }
}

/// mq_receive(3): priority and text. `size` is mq_msgsize.
///
/// # Errors
/// `EAGAIN` when the queue is empty and does not block.
pub fn mq_receive(fd: RawFd, size: usize) -> io::Result<(u32, Vec<u8>)> {
    let (mut text, mut priority) = (vec![0u8; size], 0u32);
    let none = std::ptr::null::<libc::timespec>();
    // SAFETY: the buffer has the length told; it and the priority live through the call.
    let got = check(unsafe {
        let at = text.as_mut_ptr();
        libc::syscall(libc::SYS_mq_timedreceive, fd, at, size, &raw mut priority, none)
    })?;
    text.truncate(got as usize);
    Ok((priority, text))
}

/// mq_send(3).
///
/// # Errors
/// `EAGAIN` when the queue is full and does not block.
pub fn mq_send(fd: RawFd, text: &[u8], priority: u32) -> io::Result<()> {
    let none = std::ptr::null::<libc::timespec>();
    // SAFETY: the text has the length told and lives through the call.
    check(unsafe {
        libc::syscall(libc::SYS_mq_timedsend, fd, text.as_ptr(), text.len(), priority, none)
    })
    .map(drop)
}

/// mq_notify(3) with SIGEV_NONE.
///
/// # Errors
/// `EBUSY` when another process is registered.
#[cfg(test)]
pub fn mq_notify_none(fd: RawFd) -> io::Result<()> {
    // SAFETY: the structure is plain data and lives through the call.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_NONE;
        check(libc::syscall(libc::SYS_mq_notify, fd, &raw const event)).map(drop)
    }
}
