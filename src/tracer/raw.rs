//! Every unsafe block of the tracer: ptrace(2), wait4(2), process_vm_readv(2), pidfds, kcmp(2),
//! fork(2) and what a launched program inherits.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

/// Options every tracee gets: new threads and children are followed, exec is reported,
/// syscall-stops are told apart. No EXITKILL: a job outlives its supervisor.
pub const OPTIONS: i32 = libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEVFORKDONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACESECCOMP
    | libc::PTRACE_O_TRACESYSGOOD;

/// General-purpose registers, `struct user_regs_struct`.
pub type Regs = libc::user_regs_struct;

fn check(result: libc::c_long) -> io::Result<i64> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A ptrace request whose `addr` and `data` are plain numbers.
fn ptrace(request: u32, tid: i32, addr: usize, data: usize) -> io::Result<i64> {
    // SAFETY: every caller passes a request for which addr and data are numbers, or data is
    // the address of a live object of the size that ptrace(2) documents for it.
    check(unsafe { libc::ptrace(request as _, tid, addr, data) })
}

/// PTRACE_SEIZE with [`OPTIONS`].
///
/// # Errors
/// `EPERM` (not allowed or already traced), `ESRCH`.
pub fn seize(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, tid, 0, OPTIONS as usize).map(drop)
}

/// PTRACE_SETOPTIONS: [`OPTIONS`], with PTRACE_O_EXITKILL when `exitkill`.
///
/// # Errors
/// `ESRCH` when the thread is not stopped.
pub fn set_exitkill(tid: i32, exitkill: bool) -> io::Result<()> {
    let options = OPTIONS | if exitkill { libc::PTRACE_O_EXITKILL } else { 0 };
    ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// PTRACE_SETOPTIONS: [`OPTIONS`], and the thread ends with its tracer and tells of its end
/// (PTRACE_O_EXITKILL, PTRACE_O_TRACEEXIT).
///
/// # Errors
/// `ESRCH` when the thread is not stopped.
pub fn bind_to_tracer(tid: i32) -> io::Result<()> {
    let options = OPTIONS | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEEXIT;
    ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// PTRACE_INTERRUPT.
///
/// # Errors
/// `ESRCH` when the thread is gone.
pub fn interrupt(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// PTRACE_CONT, delivering `signal` (0: none).
///
/// # Errors
/// `ESRCH` when the thread is not stopped or gone.
pub fn cont(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// PTRACE_SYSCALL, delivering `signal` (0: none): runs to the next syscall entry or exit.
///
/// # Errors
/// `ESRCH` when the thread is not stopped or gone.
pub fn syscall_step(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// PTRACE_SINGLESTEP.
///
/// # Errors
/// `ESRCH` when the thread is not stopped or gone.
pub fn single_step(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SINGLESTEP, tid, 0, 0).map(drop)
}

/// PTRACE_LISTEN: stays in group-stop, but reports what ends it.
///
/// # Errors
/// `EIO` when the thread is not in group-stop.
pub fn listen(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// PTRACE_DETACH, delivering `signal`.
///
/// # Errors
/// `ESRCH` when the thread is not stopped or gone.
pub fn detach(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// PTRACE_GETEVENTMSG.
///
/// # Errors
/// `ESRCH` when the thread is gone.
pub fn event_message(tid: i32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as usize)?;
    Ok(message)
}

/// PTRACE_GETREGS.
///
/// # Errors
/// `ESRCH` when the thread is not stopped or gone.
pub fn regs(tid: i32) -> io::Result<Regs> {
    // SAFETY: user_regs_struct is plain numbers; all zeroes is a value of it.
    let mut regs: Regs = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut regs as usize)?;
    Ok(regs)
}

/// PTRACE_SETREGS.
///
/// # Errors
/// `ESRCH` when the thread is not stopped or gone, `EIO` for values the kernel refuses.
pub fn set_regs(tid: i32, regs: &Regs) -> io::Result<()> {
    ptrace(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(regs) as usize).map(drop)
}

/// PTRACE_GETREGSET of `note` (NT_X86_XSTATE: 0x202) into a buffer of at most `max` bytes.
///
/// # Errors
/// `ENODEV` when there is no such set.
pub fn regset(tid: i32, note: usize, max: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0u8; max];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: max };
    ptrace(libc::PTRACE_GETREGSET, tid, note, &raw mut iov as usize)?;
    buf.truncate(iov.iov_len);
    // Kept for every thread, and much smaller than what a CPU could have.
    buf.shrink_to_fit();
    Ok(buf)
}

/// PTRACE_SETREGSET.
///
/// # Errors
/// `EINVAL` when the CPU does not have what the set holds.
pub fn set_regset(tid: i32, note: usize, data: &[u8]) -> io::Result<()> {
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    ptrace(libc::PTRACE_SETREGSET, tid, note, &raw mut iov as usize).map(drop)
}

/// PTRACE_GETSIGMASK: blocked signals, bit n-1 for signal n. For a thread inside
/// sigsuspend(2) and the like it is the mask that will be put back.
///
/// # Errors
/// `ESRCH` when the thread is not stopped or gone.
pub fn sigmask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    ptrace(libc::PTRACE_GETSIGMASK, tid, 8, &raw mut mask as usize)?;
    Ok(mask)
}

/// PTRACE_SETSIGMASK.
///
/// # Errors
/// `ESRCH` when the thread is not stopped or gone.
pub fn set_sigmask(tid: i32, mask: u64) -> io::Result<()> {
    ptrace(libc::PTRACE_SETSIGMASK, tid, 8, &raw const mask as usize).map(drop)
}

/// A `siginfo_t` as its 128 bytes.
pub type SigInfo = [u8; 128];

fn word_of(info: &[u8], at: usize) -> i32 {
    let word = info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    word.map_or(0, i32::from_ne_bytes)
}

/// The signal number of a siginfo.
#[must_use]
pub fn number_of(info: &[u8]) -> i32 {
    word_of(info, 0)
}

/// The `si_code` of a siginfo.
#[must_use]
pub fn code_of(info: &[u8]) -> i32 {
    word_of(info, 8)
}

/// PTRACE_GETSIGINFO: of the signal about to be delivered.
///
/// # Errors
/// `EINVAL` when the thread is in group-stop.
pub fn siginfo(tid: i32) -> io::Result<SigInfo> {
    let mut info: SigInfo = [0; 128];
    ptrace(libc::PTRACE_GETSIGINFO, tid, 0, &raw mut info as usize)?;
    Ok(info)
}

/// PTRACE_SETSIGINFO: of the signal about to be delivered.
///
/// # Errors
/// `EINVAL` when the thread is in group-stop.
pub fn set_siginfo(tid: i32, info: &SigInfo) -> io::Result<()> {
    ptrace(libc::PTRACE_SETSIGINFO, tid, 0, std::ptr::from_ref(info) as usize).map(drop)
}

/// PTRACE_PEEKSIGINFO: all signals queued for the thread, or (`shared`) for its process.
///
/// # Errors
/// `ESRCH` when the thread is not stopped or gone.
pub fn queued_signals(tid: i32, shared: bool) -> io::Result<Vec<SigInfo>> {
    let mut all = Vec::new();
    loop {
        let mut batch = [[0u8; 128]; 32];
        let args = libc::ptrace_peeksiginfo_args {
            off: all.len() as u64,
            flags: u32::from(shared),
            nr: 32,
        };
        let got = ptrace(
            libc::PTRACE_PEEKSIGINFO,
            tid,
            &raw const args as usize,
            batch.as_mut_ptr() as usize,
        )? as usize;
        all.extend_from_slice(&batch[..got]);
        if got == 0 {
            return Ok(all);
        }
    }
}

/// PTRACE_GET_RSEQ_CONFIGURATION (Linux 5.13): address, size, signature, flags.
///
/// # Errors
/// `EIO` on kernels without it.
pub fn rseq(tid: i32) -> io::Result<(u64, u32, u32, u32)> {
    const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
    #[repr(C)]
    struct Config {
        pointer: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut c = Config { pointer: 0, size: 0, signature: 0, flags: 0, pad: 0 };
    ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of::<Config>(), &raw mut c as usize)?;
    Ok((c.pointer, c.size, c.signature, c.flags))
}

/// Where the calls of a thread go (PR_SET_SYSCALL_USER_DISPATCH of prctl(2)): all but those that
/// are made between `offset` and `offset + len` raise SIGSYS, as long as the byte at `selector`, if
/// there is one, says so.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dispatch {
    /// PR_SYS_DISPATCH_OFF, _EXCLUSIVE_ON, or _INCLUSIVE_ON (Linux 6.16).
    mode: u64,
    selector: u64,
    offset: u64,
    len: u64,
}

impl Dispatch {
    /// As it is to be set. The kernel tells the calls of a range that are dispatched as a range
    /// around the end of all addresses whose calls are not.
    fn settable(self) -> Self {
        const INCLUSIVE_ON: u64 = 2;
        let end = self.offset.wrapping_add(self.len);
        if self.offset == 0 || end > self.offset {
            return self;
        }
        Self { mode: INCLUSIVE_ON, offset: end, len: self.len.wrapping_neg(), ..self }
    }
}

/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG (Linux 6.4); `None`: they go to the kernel.
///
/// # Errors
/// `EIO` on kernels without it.
pub fn dispatch(tid: i32) -> io::Result<Option<Dispatch>> {
    const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
    let mut config = Dispatch::default();
    let (size, at) = (size_of::<Dispatch>(), &raw mut config as usize);
    ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, at)?;
    Ok((config.mode != 0).then_some(config))
}

/// PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG.
///
/// # Errors
/// `EIO` on kernels without it, `EINVAL` for a range that they refuse.
pub fn set_dispatch(tid: i32, dispatch: Option<Dispatch>) -> io::Result<()> {
    const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
    let config = dispatch.map(Dispatch::settable).unwrap_or_default();
    let (size, at) = (size_of::<Dispatch>(), &raw const config as usize);
    ptrace(PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, at).map(drop)
}

/// PTRACE_POKEDATA: writes eight bytes, also where the thread itself may not.
///
/// # Errors
/// `EIO` when nothing is mapped there.
pub fn poke(tid: i32, at: u64, bytes: [u8; 8]) -> io::Result<()> {
    ptrace(libc::PTRACE_POKEDATA, tid, at as usize, u64::from_le_bytes(bytes) as usize).map(drop)
}

/// wait4(2): `None` when WNOHANG found nothing.
///
/// # Errors
/// `ECHILD`, `EINTR`.
pub fn wait4(tid: i32, flags: i32) -> io::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: status lives through the call; no rusage is asked for.
    let got = unsafe { libc::wait4(tid, &raw mut status, flags, std::ptr::null_mut()) };
    check(got.into()).map(|_| (got != 0).then_some((got, status)))
}

/// process_vm_readv(2) of one range; short when the range ends in unreadable memory.
///
/// # Errors
/// `EFAULT` when not even the first byte can be read, `ESRCH`, `EPERM`.
pub fn read_memory(pid: i32, addr: u64, buf: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: addr as *mut _, iov_len: buf.len() };
    // SAFETY: local describes buf; the remote address is checked by the kernel.
    let n = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    check(n as _).map(|n| n as usize)
}

/// process_vm_writev(2) of one range.
///
/// # Errors
/// As [`read_memory`]; also for memory that is not writable.
pub fn write_memory(pid: i32, addr: u64, buf: &[u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: addr as *mut _, iov_len: buf.len() };
    // SAFETY: local describes buf, which is only read; the remote address is checked by the kernel.
    let n = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    check(n as _).map(|n| n as usize)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(fd)? as RawFd;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_open(2).
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// pidfd_open(2) of a thread, for its own descriptor table (PIDFD_THREAD).
///
/// # Errors
/// `EINVAL` before Linux 6.9, `ESRCH` when there is no such thread.
pub fn pidfd_open_thread(tid: i32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, libc::O_EXCL) })
}

/// pidfd_getfd(2): a duplicate of the process's descriptor `fd` (close-on-exec).
///
/// # Errors
/// `EBADF` when the process has no such descriptor, `EPERM`.
pub fn pidfd_getfd(pidfd: &OwnedFd, fd: i32) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    // SAFETY: numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// kcmp(2) KCMP_FILE: do two descriptors share one open file description?
///
/// # Errors
/// `EPERM`, `ESRCH`, `EBADF`.
pub fn same_description(pid1: i32, fd1: i32, pid2: i32, fd2: i32) -> io::Result<bool> {
    // SAFETY: numbers only; KCMP_FILE is 0.
    check(unsafe { libc::syscall(libc::SYS_kcmp, pid1, pid2, 0, fd1, fd2) }).map(|n| n == 0)
}

/// tgkill(2) of a thread whose tgid is read from /proc.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn tgkill(tid: i32, signal: i32) -> io::Result<()> {
    let tgid = super::memory::tgid(tid)?;
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_tgkill, tgid, tid, signal) }).map(drop)
}

/// The PAGEMAP_SCAN ioctl (Linux 6.7, include/uapi/linux/fs.h).
///
/// # Errors
/// `ENOTTY` on kernels without it.
pub fn pagemap_scan(
    pagemap: RawFd,
    start: u64,
    end: u64,
    pages: super::memory::Pages,
) -> io::Result<Vec<(u64, u64)>> {
    match pagemap_scan_with(pagemap, start, end, pages, true) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            if pages == super::memory::Pages::Guard {
                return Ok(Vec::new());
            }
            pagemap_scan_with(pagemap, start, end, pages, false)
        }
        other => other,
    }
}

fn pagemap_scan_with(
    pagemap: RawFd,
    start: u64,
    end: u64,
    pages: super::memory::Pages,
    has_guard: bool,
) -> io::Result<Vec<(u64, u64)>> {
    use super::memory::Pages;
    const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
    const FILE: u64 = 1 << 2;
    const PRESENT: u64 = 1 << 3;
    const SWAPPED: u64 = 1 << 4;
    const ZERO: u64 = 1 << 5;
    const GUARD: u64 = 1 << 8;
    #[repr(C)]
    #[derive(Default)]
    struct Arg {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        vec: u64,
        vec_len: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }
    // A guard region looks swapped. Before Linux 6.15 there is no such category.
    let (not, any) = match pages {
        Pages::Private if has_guard => (FILE | ZERO | GUARD, PRESENT | SWAPPED),
        Pages::Private => (FILE | ZERO, PRESENT | SWAPPED),
        Pages::Present => (0, PRESENT | SWAPPED),
        Pages::Guard => (0, GUARD),
    };
    let mut regions = [[0u64; 3]; 256];
    let mut ranges = Vec::new();
    let mut at = start;
    while at < end {
        let mut arg = Arg {
            size: size_of::<Arg>() as u64,
            start: at,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_inverted: not,
            category_mask: not,
            category_anyof_mask: any,
            return_mask: any,
            ..Arg::default()
        };
        // SAFETY: arg and the regions it points to live through the call and have the sizes told.
        let n = check(unsafe { libc::ioctl(pagemap, PAGEMAP_SCAN, &raw mut arg) }.into())? as usize;
        for region in &regions[..n] {
            super::memory::push_range(&mut ranges, region[0], region[1]);
        }
        if arg.walk_end <= at {
            break;
        }
        at = arg.walk_end;
    }
    Ok(ranges)
}

/// What vosrun inherited of what Rust's runtime changes before `main`: SIGPIPE is set to
/// ignored and closed standard descriptors are opened on /dev/null.
static INHERITED: AtomicU8 = AtomicU8::new(0);
const SIGPIPE_IGNORED: u8 = 1 << 7;

/// An initialiser, which runs before Rust's runtime; see elf(5), `.init_array`.
#[used]
#[link_section = ".init_array"]
static RECORD_INHERITED: extern "C" fn() = record_inherited;

extern "C" fn record_inherited() {
    let mut bits = 0;
    for fd in 0..3 {
        // SAFETY: F_GETFD takes numbers only and changes nothing.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            bits |= 1 << fd;
        }
    }
    // SAFETY: sigaction is plain numbers, all zeroes is a value of it; a null new action
    // only asks.
    let ignored = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut old) == 0
            && old.sa_sigaction == libc::SIG_IGN
    };
    INHERITED.store(bits | if ignored { SIGPIPE_IGNORED } else { 0 }, Ordering::Relaxed);
}

/// Standard descriptors (0 to 2) that were closed when vosrun was started.
#[must_use]
pub fn closed_at_start() -> Vec<RawFd> {
    let bits = INHERITED.load(Ordering::Relaxed);
    (0..3).filter(|fd| bits & (1 << fd) != 0).collect()
}

/// Gives SIGPIPE the disposition back that vosrun was started with.
///
/// # Errors
/// None that sigaction(2) documents for a valid signal.
pub fn restore_sigpipe() -> io::Result<()> {
    let ignored = INHERITED.load(Ordering::Relaxed) & SIGPIPE_IGNORED != 0;
    set_disposition(libc::SIGPIPE, if ignored { libc::SIG_IGN } else { libc::SIG_DFL })
}

/// Gives `signal` its default action.
///
/// # Errors
/// `EINVAL` for SIGKILL, SIGSTOP and numbers that are no signal.
pub fn set_default(signal: i32) -> io::Result<()> {
    set_disposition(signal, libc::SIG_DFL)
}

fn set_disposition(signal: i32, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: callers pass SIG_DFL or SIG_IGN only, so no function is ever called.
    let old = unsafe { libc::signal(signal, handler) };
    if old == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes a descriptor by number; one that is not open is no error.
pub fn close(fd: RawFd) {
    // SAFETY: called only with descriptors that no object of this process owns: inherited
    // ones, or any one in a fresh child that owns nothing.
    unsafe { libc::close(fd) };
}

/// Closes every descriptor from `first` on (close_range(2)); for a fresh child.
pub fn close_from(first: u32) {
    // SAFETY: as in `close`; numbers only.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// fork(2): the child's pid, or `None` in the child.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`; `Unsupported` when this process has other threads: their locks
/// would stay locked for ever in the child.
pub fn fork() -> io::Result<Option<i32>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "fork with several threads"));
    }
    // SAFETY: the only thread is this one, so the child may do whatever the parent may.
    let pid = unsafe { libc::fork() };
    check(pid.into()).map(|_| (pid != 0).then_some(pid))
}

/// _exit(2): ends a forked child without running what belongs to its parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: does not return; nothing of this process is used afterwards.
    unsafe { libc::_exit(code) }
}

/// seccomp(2) SECCOMP_SET_MODE_FILTER on the calling thread. SPEC_ALLOW keeps kernels
/// before 5.16 from slowing the program down with speculation mitigations.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN and no_new_privs, `EINVAL` where there is no seccomp.
pub fn set_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let prog = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: prog describes `program`, which the kernel only reads.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const prog,
        )
    })
    .map(drop)
}

/// kill(2) with any signal number.
///
/// # Errors
/// `ESRCH`, `EPERM`, `EINVAL`.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// rt_sigqueueinfo(2) with SI_QUEUE and `value`, as sigqueue(3) sends it.
///
/// # Errors
/// `ESRCH`, `EPERM`, `EAGAIN`.
pub fn queue(pid: i32, signal: i32, value: usize) -> io::Result<()> {
    let value = libc::sigval { sival_ptr: value as *mut libc::c_void };
    // SAFETY: the value is a number to the receiver; nothing is dereferenced here.
    check(unsafe { libc::sigqueue(pid, signal, value) }.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_around_the_end_of_all_addresses_is_set_as_the_one_inside() {
        let of = |mode, offset, len| Dispatch { mode, selector: 7, offset, len };
        let page = of(1, 0x12000, 0x2000_u64.wrapping_neg());
        assert_eq!(page.settable(), of(2, 0x10000, 0x2000));
        for set in [of(1, 0x10000, 0x2000), of(1, 0, 0x7fff_0000), of(1, 0, 0)] {
            assert_eq!(set.settable(), set);
        }
    }
}
