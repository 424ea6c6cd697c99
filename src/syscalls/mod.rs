//! POLICY: what a stop means.
//!
//! ```text
//! table ─► tracer::filter      which calls stop at all
//! Stop::Seccomp ─► at_entry ─► AtExit? ─► Stop::Syscall ─► AtExit::finish ─► handles
//! ```

pub mod handles;
pub mod table;
pub mod translate;

use std::io;

use crate::migrate::resource::ipc::Kind;
use crate::tracer::raw;
use handles::{Handles, Watch};

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
