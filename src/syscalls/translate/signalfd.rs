//! What is read of a signalfd(2): who has sent a signal, by the kernel's number.
//!
//! No filter knows what a descriptor is, and to stop every read(2) would cost too much. So a process
//! that makes a signalfd gets one more filter, which stops the calls that read just this descriptor,
//! and those that duplicate it, so that the duplicate gets one, too:
//!
//! ```text
//! signalfd(2), dup(2) … ─► Then::SignalFd ─► install() in all threads ─► Signalfds
//! read(2), readv(2)     ─► Then::Signals  ─► numbers of the job
//! ```
//! Filters are inherited as descriptors are. One that was closed, and whose number is another
//! object's now, is stopped for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use libc::sock_filter;

use super::table::{row, Row, Work};
use super::{signals, RED_ZONE};
use crate::migrate::resource::View;
use crate::tracer::filter::{self, If};
use crate::tracer::inject::{read_exact, word, write_all, InjectError, Remote};
use crate::tracer::raw;

/// Calls on a signalfd that are stopped, ascending; fcntl(2) is besides in the other table.
pub const TABLE: &[Row] = &[
    row(libc::SYS_read, Work::ReadSignals),
    row(libc::SYS_readv, Work::ReadSignals),
    row(libc::SYS_dup, Work::Duplicate),
    row(libc::SYS_dup2, Work::Duplicate),
    row(libc::SYS_dup3, Work::Duplicate),
    row(libc::SYS_preadv2, Work::ReadSignals),
];

/// Commands of fcntl(2) that duplicate.
const DUPLICATE: [u32; 2] = [libc::F_DUPFD as u32, libc::F_DUPFD_CLOEXEC as u32];

/// Where a `struct signalfd_siginfo` has the sender, and its size.
const PID: usize = 12;
const SIZE: usize = 128;

/// Most entries of a vector (UIO_MAXIOV of the kernel).
const MOST_PIECES: u64 = 1024;

/// Stops what is done with these descriptors, besides what `code` stops.
#[must_use]
pub(super) fn stopped(mut code: Vec<sock_filter>, fds: &BTreeSet<i32>) -> Vec<sock_filter> {
    for fd in fds {
        let own = If { arg: 0, value: fd.cast_unsigned() };
        for row in TABLE {
            code = filter::with_stop(code, row.nr as u32, &[own]);
        }
        for command in DUPLICATE {
            let duplicates = If { arg: 1, value: command };
            code = filter::with_stop(code, libc::SYS_fcntl as u32, &[own, duplicates]);
        }
    }
    code
}

/// The row of a call.
pub(super) fn find(nr: i64) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.nr == nr)
}

/// Is this descriptor of a thread a signalfd?
pub(super) fn is_one(tid: i32, fd: i32) -> bool {
    let link = fs::read_link(format!("/proc/{tid}/fd/{fd}"));
    link.is_ok_and(|to| to.as_os_str() == "anon_inode:[signalfd]")
}

/// Gives the numbers in `len` bytes, which were read of a signalfd into memory at these places
/// (address, length), the job's meaning.
pub(super) fn to_job(tid: i32, places: &[(u64, u64)], mut len: u64) -> io::Result<()> {
    let mut filled = Vec::new();
    for (at, room) in places {
        let here = (*room).min(len);
        len -= here;
        filled.push((*at, usize::try_from(here).map_err(io::Error::other)?));
    }
    let mut all = Vec::new();
    for (at, len) in &filled {
        let mut piece = vec![0; *len];
        read_exact(tid, *at, &mut piece)?;
        all.extend(piece);
    }
    all.chunks_exact_mut(SIZE).for_each(|one| signals::of_signalfd_to_job(one, PID));
    let mut rest = all.as_slice();
    for (at, len) in filled {
        let (piece, later) = rest.split_at(len);
        write_all(tid, at, piece)?;
        rest = later;
    }
    Ok(())
}

/// The places of a vector (readv(2)).
pub(super) fn vector(tid: i32, at: u64, count: u64) -> Option<Vec<(u64, u64)>> {
    let piece = |n| {
        let mut iovec = [0; 16];
        read_exact(tid, at + 16 * n, &mut iovec).ok()?;
        Some((word(&iovec, 0), word(&iovec, 8)))
    };
    (0..count.min(MOST_PIECES)).map(piece).collect()
}

/// The descriptors of processes (host pids) that are watched.
#[derive(Debug, Clone, Default)]
pub struct Signalfds(BTreeMap<i32, Of>);

#[derive(Debug, Clone, Default)]
struct Of {
    fds: BTreeSet<i32>,
    /// How many filters were installed for them, besides that with which the process came.
    filters: u64,
}

/// Processes that came with filters that have these descriptors.
impl FromIterator<(i32, BTreeSet<i32>)> for Signalfds {
    fn from_iter<T: IntoIterator<Item = (i32, BTreeSet<i32>)>>(all: T) -> Self {
        Self(all.into_iter().map(|(pid, fds)| (pid, Of { fds, filters: 0 })).collect())
    }
}

impl Signalfds {
    /// A new process has what its creator has.
    pub fn inherit(&mut self, creator: i32, new: i32) {
        let Some(theirs) = self.0.get(&creator).cloned() else { return };
        let own = self.0.entry(new).or_default();
        own.fds.extend(theirs.fds);
        own.filters += theirs.filters;
    }

    /// A process has ended.
    pub fn forget(&mut self, pid: i32) {
        self.0.remove(&pid);
    }

    /// The job has left.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// How many filters processes have for this.
    #[must_use]
    pub fn filters(&self) -> BTreeMap<i32, u64> {
        self.0.iter().map(|(pid, of)| (*pid, of.filters)).collect()
    }

    /// A call of a thread has just returned with a signalfd, which is watched from here on, in all
    /// threads of the process; where that cannot be, the call fails after all.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn add(&mut self, pid: i32, tid: i32) -> Result<(), InjectError> {
        let fd = raw::regs(tid).map_or(-1, |regs| regs.rax as i64 as i32);
        if fd < 0 || self.0.get(&pid).is_some_and(|own| own.fds.contains(&fd)) {
            return Ok(());
        }
        if install(tid, fd)? {
            let own = self.0.entry(pid).or_default();
            own.fds.insert(fd);
            own.filters += 1;
        }
        Ok(())
    }
}

/// Installs the filter for a descriptor in a thread that has just returned from a call, and in all
/// others of its process. False: it could not be, and the descriptor is closed.
fn install(tid: i32, fd: i32) -> Result<bool, InjectError> {
    const SET_MODE_FILTER: u64 = 1;
    let ignores = View::read(tid, tid).is_ok_and(|view| view.ignores(libc::SIGTRAP));
    let mut remote = Remote::open(tid, ignores)?;
    // Where the thread has just made a call (`syscall` has two bytes).
    let insn = remote.regs.rip.wrapping_sub(2);
    let code = stopped(filter::program(&[]), &BTreeSet::from([fd]));
    let mut content = (code.len() as u64).to_le_bytes().to_vec();
    let at = remote.regs.rsp.wrapping_sub(RED_ZONE + 8 * code.len() as u64 + 32) & !15;
    content.extend_from_slice(&(at + 16).to_le_bytes());
    content.extend(filter::bytes(&code));
    let written = write_all(tid, at, &content);
    let args = [SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC, at, 0, 0, 0];
    let done = match written {
        // Another number than 0 is a thread that could not follow.
        Ok(()) => remote.call(insn, libc::SYS_seccomp, "seccomp", args).is_ok_and(|n| n == 0),
        Err(_) => false,
    };
    if !done {
        tracing::warn!("thread {tid} gets no signalfd: no filter can be installed for it");
        remote.call(insn, libc::SYS_close, "close", [fd as u64, 0, 0, 0, 0, 0])?;
        remote.regs.rax = i64::from(-libc::ENOSYS) as u64;
    }
    remote.close()?;
    // Who waits for a stop of it has not seen those in between.
    raw::interrupt(tid).map_err(|source| InjectError::Trace { tid, what: "interrupt", source })?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use libc::SECCOMP_RET_TRACE;

    use super::*;
    use crate::tracer::bpf::answers;

    #[test]
    fn only_calls_on_a_signalfd_are_stopped() {
        let code = stopped(filter::program(&[]), &BTreeSet::from([5, 9]));
        let run = |nr: i64, fd: u32, second: u32| {
            let known = |at| {
                let known =
                    [(0, nr as u32), (4, filter::AUDIT_ARCH_X86_64), (16, fd), (24, second)];
                known.iter().find(|word| word.0 == at).map(|word| word.1)
            };
            let all = answers(&code, known).expect("answers");
            assert_eq!(all.len(), 1, "call {nr}");
            all.first().is_some_and(|answer| *answer == SECCOMP_RET_TRACE | filter::MARK)
        };
        for row in TABLE {
            assert_eq!([5, 9, 6, 0].map(|fd| run(row.nr, fd, 1)), [true, true, false, false]);
        }
        let fcntl = |fd, command: i32| run(libc::SYS_fcntl, fd, command as u32);
        assert!(fcntl(9, libc::F_DUPFD) && fcntl(5, libc::F_DUPFD_CLOEXEC));
        assert!(!fcntl(9, libc::F_GETFL) && !fcntl(6, libc::F_DUPFD));
        assert!(!run(libc::SYS_write, 5, 0));
        assert!(!run(libc::SYS_fcntl, 9, 1031));
    }

    #[test]
    fn a_child_has_the_filters_of_its_creator_and_its_own() {
        let mut all = Signalfds::from_iter([(1, BTreeSet::from([4]))]);
        all.0.entry(1).or_default().filters += 2;
        all.0.entry(2).or_default().filters += 1;
        all.inherit(1, 2);
        all.inherit(3, 4);
        assert_eq!(all.filters(), BTreeMap::from([(1, 2), (2, 3)]));
        assert!(all.0[&2].fds.contains(&4));
    }
}
