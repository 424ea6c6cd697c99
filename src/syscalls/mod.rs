//! POLICY: what a stop means.
//!
//! ```text
//! table ─► tracer::filter      which calls stop at all
//! Stop::Seccomp ─► at_entry ─► AtExit? ─► Stop::Syscall ─► AtExit::finish ─► handles
//! ```

pub mod handles;
pub mod names;
pub mod table;
pub mod translate;

use std::io;

use crate::migrate::resource::filters::Filter;
use crate::migrate::resource::ipc::Kind;
use crate::migrate::resource::timers::Absolute;
use crate::tracer::inject::{read_exact, word};
use crate::tracer::raw;
use handles::{Handles, Notification, Watch};

/// Of seccomp(2).
const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// Longest path the kernel takes (PATH_MAX with its NUL, limits.h).
const PATH_MAX: usize = 4096;

/// What has to be done when the call returns.
#[derive(Debug, Clone)]
pub enum AtExit {
    /// inotify_add_watch(2).
    AddWatch { fd: i32, path: Vec<u8>, mask: u32 },
    /// inotify_rm_watch(2).
    RemoveWatch { fd: i32, wd: i32 },
    /// A call of a job that has no namespaces.
    Translated(Box<translate::Call>),
    /// shmget(2), semget(2), msgget(2).
    Ipc(Kind),
    /// add_key(2), and keyctl(2) that makes a keyring.
    Keys,
    /// io_setup(2), which writes the context there.
    Setup { at: u64 },
    /// io_submit(2) to this context.
    Submit { context: u64 },
    /// mq_notify(2) that registers.
    Notify { fd: i32, notification: Notification },
    /// seccomp(2) or prctl(2) that installs a filter; the number is given later.
    Install(Filter),
    /// timer_settime(2) with TIMER_ABSTIME.
    SetTimer { id: i32, to: Absolute },
}

/// A thread stopped at the entry of an observed call. `Some` when the supervisor wants to
/// see its result.
///
/// # Errors
/// `ESRCH` when the thread was killed meanwhile.
pub fn at_entry(tid: i32) -> io::Result<Option<AtExit>> {
    let regs = raw::regs(tid)?;
    let fd = regs.rdi as i32;
    Ok(match table::find(regs.orig_rax).map(|row| row.name) {
        Some("inotify_add_watch") => add_watch(tid, fd, regs.rsi, regs.rdx as u32),
        Some("inotify_rm_watch") => Some(AtExit::RemoveWatch { fd, wd: regs.rsi as i32 }),
        Some("shmget") => Some(AtExit::Ipc(Kind::Memory)),
        Some("semget") => Some(AtExit::Ipc(Kind::Semaphores)),
        Some("msgget") => Some(AtExit::Ipc(Kind::Queue)),
        Some("add_key") => Some(AtExit::Keys),
        Some("seccomp") if regs.rdi == SECCOMP_SET_MODE_FILTER => {
            filter(tid, regs.rdx).map(|program| {
                AtExit::Install(Filter { id: 0, flags: regs.rsi, by_prctl: false, program })
            })
        }
        Some("prctl")
            if fd == libc::PR_SET_SECCOMP && regs.rsi == u64::from(libc::SECCOMP_MODE_FILTER) =>
        {
            filter(tid, regs.rdx)
                .map(|program| AtExit::Install(Filter { id: 0, flags: 0, by_prctl: true, program }))
        }
        Some("mq_notify") => {
            notification(tid, regs.rsi).map(|notification| AtExit::Notify { fd, notification })
        }
        Some("timer_settime") => timer(tid, regs.rdx).map(|to| AtExit::SetTimer { id: fd, to }),
        Some("io_setup") => Some(AtExit::Setup { at: regs.rsi }),
        Some("io_submit") => Some(AtExit::Submit { context: regs.rdi }),
        Some("keyctl") if makes_keyring(&regs) => Some(AtExit::Keys),
        _ => None,
    })
}

/// keyctl(2) that makes a keyring for the calling thread, process or session.
fn makes_keyring(regs: &raw::Regs) -> bool {
    const GET_KEYRING_ID: u64 = 0;
    const JOIN_SESSION_KEYRING: u64 = 1;
    match regs.rdi {
        GET_KEYRING_ID => regs.rdx != 0,
        operation => operation == JOIN_SESSION_KEYRING,
    }
}

/// A thread stopped at the entry of a call: it is not made, and fails with `errno`.
///
/// # Errors
/// `ESRCH` when the thread was killed meanwhile.
pub fn answer(tid: i32, errno: i32) -> io::Result<()> {
    let mut regs = raw::regs(tid)?;
    regs.orig_rax = u64::MAX;
    regs.rax = i64::from(-errno) as u64;
    raw::set_regs(tid, &regs)
}

/// The program of a `struct sock_fprog` (seccomp(2)).
fn filter(tid: i32, at: u64) -> Option<Vec<u8>> {
    let mut prog = [0; 16];
    read_exact(tid, at, &mut prog).ok()?;
    let len = u16::from_le_bytes([prog[0], prog[1]]);
    let mut program = vec![0; usize::from(len) * size_of::<libc::sock_filter>()];
    read_exact(tid, word(&prog, 8), &mut program).ok()?;
    Some(program)
}

/// A `struct sigevent` (sigevent(3type)); none when there is none, or it cannot be read: the kernel
/// will refuse the call as well.
fn notification(tid: i32, at: u64) -> Option<Notification> {
    let mut event = [0; 16];
    let got = (at != 0).then(|| raw::read_memory(tid, at, &mut event).ok()).flatten()?;
    let int = |from: usize| Some(i32::from_le_bytes(event[from..from + 4].try_into().ok()?));
    (got == event.len()).then_some(())?;
    Some(Notification { value: word(&event, 0), signal: int(8)?, kind: int(12)? })
}

/// A `struct itimerspec`; none when it cannot be read: the kernel will refuse the call as well.
fn timer(tid: i32, at: u64) -> Option<Absolute> {
    const SECOND: u64 = 1_000_000_000;
    let mut spec = [0; 32];
    read_exact(tid, at, &mut spec).ok()?;
    let time = |at| word(&spec, at).checked_mul(SECOND)?.checked_add(word(&spec, at + 8));
    Some(Absolute { first: time(16)?, interval: time(0)? })
}

/// None when the path cannot be read: the kernel will refuse the call as well.
fn add_watch(tid: i32, fd: i32, path: u64, mask: u32) -> Option<AtExit> {
    let path = handles::resolve(tid, &read_path(tid, path)?);
    Some(AtExit::AddWatch { fd, path, mask })
}

impl AtExit {
    /// The call has returned: takes it down in the handle table if it succeeded.
    ///
    /// # Errors
    /// `ESRCH` when the thread was killed meanwhile.
    pub fn finish(self, tid: i32, pid: i32, handles: &mut Handles) -> io::Result<()> {
        let result = raw::regs(tid)?.rax as i64;
        match self {
            Self::Translated(call) => call.finish(tid)?,
            Self::AddWatch { fd, path, mask } if result >= 0 => {
                handles.add(pid, fd, Watch { wd: result as i32, path, mask });
            }
            Self::RemoveWatch { fd, wd } if result >= 0 => handles.remove(pid, fd, wd),
            Self::Ipc(kind) if result >= 0 => handles.add_ipc((kind, result as i32)),
            Self::Keys if result >= 0 => handles.add_keys(),
            Self::Setup { at } if result == 0 => {
                let mut context = [0; 8];
                if raw::read_memory(tid, at, &mut context).is_ok_and(|got| got == context.len()) {
                    handles.add_context(pid, u64::from_le_bytes(context), 0);
                }
            }
            // Another positive number is a thread that could not follow (SECCOMP_FILTER_FLAG_TSYNC).
            Self::Install(filter)
                if result == 0
                    || (result > 0
                        && filter.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0) =>
            {
                let all = filter.flags & libc::SECCOMP_FILTER_FLAG_TSYNC != 0;
                handles.add_filter(tid, pid, all, filter);
            }
            Self::Notify { fd, notification } if result == 0 => {
                handles.add_notification(pid, fd, notification);
            }
            Self::SetTimer { id, to } if result == 0 => handles.add_timer(pid, id, to),
            Self::Submit { context } if result > 0 => {
                handles.add_submitted(pid, context, result.unsigned_abs());
            }
            _ => {}
        }
        Ok(())
    }
}

/// Reads a NUL-terminated string page by page, so that it may end before unmapped memory.
pub(crate) fn read_path(tid: i32, mut addr: u64) -> Option<Vec<u8>> {
    let mut path = Vec::new();
    while path.len() < PATH_MAX {
        let mut page = vec![0; 4096 - (addr % 4096) as usize];
        let got = raw::read_memory(tid, addr, &mut page).ok()?;
        if let Some(end) = page[..got].iter().position(|b| *b == 0) {
            path.extend_from_slice(&page[..end]);
            return Some(path);
        }
        path.extend_from_slice(&page[..got]);
        addr += got as u64;
    }
    None
}
