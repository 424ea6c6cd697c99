//! Every unsafe block of capture and restore: calls that ask or set another thread's state.

use std::io;
use std::os::fd::RawFd;

use crate::errno::check;

/// get_robust_list(2): head and length of a thread's list.
///
/// # Errors
/// `EPERM`, `ESRCH`.
pub fn robust_list(tid: i32) -> io::Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both words live through the call.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })?;
    Ok((head, len))
}

/// `struct sched_attr` of sched_setattr(2), first version (48 bytes).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// sched_getattr(2).
///
/// # Errors
/// `ESRCH`.
pub fn sched_attr(tid: i32) -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>();
    // SAFETY: attr lives through the call and has the size told.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size, 0) })?;
    Ok(attr)
}

/// sched_setattr(2).
///
/// # Errors
/// `EPERM` when the caller may not give this priority.
pub fn set_sched_attr(tid: i32, attr: &SchedAttr) -> io::Result<()> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: attr lives through the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) }).map(drop)
}

/// getpriority(2): the nice value of a thread.
///
/// # Errors
/// `ESRCH`.
pub fn nice(tid: i32) -> io::Result<i32> {
    // The call itself answers 20 less the value, which is never negative.
    const LOWEST: i64 = 20;
    // SAFETY: numbers only.
    let answer = check(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid) })?;
    Ok((LOWEST - answer) as i32)
}

/// setpriority(2) of a thread.
///
/// # Errors
/// `EACCES` when the caller may not give a value so low.
pub fn set_nice(tid: i32, value: i32) -> io::Result<()> {
    let which = libc::PRIO_PROCESS;
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_setpriority, which, tid, value) }).map(drop)
}

/// sched_getaffinity(2): the raw mask, bit n of the whole for CPU n.
///
/// # Errors
/// `ESRCH`.
pub fn affinity(tid: i32) -> io::Result<Vec<u64>> {
    let mut mask = vec![0u64; 128];
    // SAFETY: mask lives through the call and has the size told.
    let bytes = check(unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len() * 8, mask.as_mut_ptr())
    })?;
    mask.truncate(bytes as usize / 8);
    Ok(mask)
}

/// sched_setaffinity(2).
///
/// # Errors
/// `EINVAL` when no CPU of the mask exists here.
pub fn set_affinity(tid: i32, mask: &[u64]) -> io::Result<()> {
    // SAFETY: mask lives through the call and has the size told.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, mask.len() * 8, mask.as_ptr()) })
        .map(drop)
}

const IOPRIO_WHO_PROCESS: i32 = 1;

/// ioprio_get(2) of a thread.
///
/// # Errors
/// `ESRCH`.
pub fn ioprio(tid: i32) -> io::Result<i64> {
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) })
}

/// prlimit(2): soft and hard limit of a process.
///
/// # Errors
/// `EPERM` for a process with other user or group ids.
pub fn limit(pid: i32, resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: no new limit is given, and the kernel writes the old one into `limit`.
    let done = unsafe { libc::prlimit64(pid, resource, std::ptr::null(), &mut limit) };
    check(done).map(|_| (limit.rlim_cur, limit.rlim_max))
}

/// ioprio_set(2) of a thread.
///
/// # Errors
/// `EPERM` for a class that needs a capability.
pub fn set_ioprio(tid: i32, value: i64) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, value) }).map(drop)
}

/// keyctl(2) KEYCTL_GET_KEYRING_ID: the keyring that `id` (KEY_SPEC_…) stands for in this process;
/// none is made for it.
///
/// # Errors
/// `ENOKEY` when there is none.
pub fn keyring(id: i32) -> io::Result<i64> {
    const KEYCTL_GET_KEYRING_ID: i32 = 0;
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, id, 0) })
}

/// clock_gettime(2), nanoseconds, as this process sees the clock.
///
/// # Errors
/// `EINVAL` for a clock that does not exist.
pub fn clock(clock: i32) -> io::Result<i128> {
    // SAFETY: a timespec of zeroes is a value; it lives through the call.
    let ts = unsafe {
        let mut ts: libc::timespec = std::mem::zeroed();
        check(libc::clock_gettime(clock, &raw mut ts))?;
        ts
    };
    Ok(i128::from(ts.tv_sec) * 1_000_000_000 + i128::from(ts.tv_nsec))
}

/// Ranges of another process for process_vm_readv(2), and their bytes.
fn remote_ranges(ranges: &[(u64, u64)]) -> (Vec<libc::iovec>, usize) {
    let vector = |&(s, e): &(u64, u64)| libc::iovec {
        iov_base: s as *mut _,
        iov_len: e.saturating_sub(s) as usize,
    };
    let remote: Vec<libc::iovec> = ranges.iter().map(vector).collect();
    let total = remote.iter().fold(0usize, |sum, v| sum.saturating_add(v.iov_len));
    (remote, total)
}

/// process_vm_writev(2) of one buffer into several ranges; all or nothing, as far as the
/// answer goes.
///
/// # Errors
/// `EFAULT` when a part is not writable or the ranges have another size than the buffer.
pub fn write_ranges(pid: i32, ranges: &[(u64, u64)], bytes: &[u8]) -> io::Result<()> {
    let (remote, total) = remote_ranges(ranges);
    let local =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: total.min(bytes.len()) };
    // SAFETY: local describes bytes, which are only read; remote addresses are checked by the
    // kernel.
    let n = unsafe {
        libc::process_vm_writev(pid, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0)
    };
    match check(n)? as usize {
        n if n == total => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

/// process_vm_readv(2) of several ranges into one buffer; all or nothing.
///
/// # Errors
/// `EFAULT` when a part is not readable.
pub fn read_ranges(pid: i32, ranges: &[(u64, u64)], buf: &mut [u8]) -> io::Result<()> {
    let (remote, total) = remote_ranges(ranges);
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: total.min(buf.len()) };
    // SAFETY: local describes buf; remote addresses are checked by the kernel.
    let n = unsafe {
        libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0)
    };
    match check(n)? as usize {
        n if n == total => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

/// fcntl(2) F_GETFD: is the descriptor open here?
#[must_use]
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: numbers only.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}
