//! What a thread may have apart from its process and its job, and no move keeps apart: namespaces
//! (setns(2)), seccomp filters (seccomp(2)), a descriptor table of which the kernel does not tell
//! ([`super::thread_files`]).
//!
//! Asked of a running job before a move, and again of the frozen one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use nix::fcntl::{open, readlinkat, OFlag};
use nix::sys::stat::Mode;

use super::raw::{is_apart, Shared};
use super::resource::aio::{Submitted, Submitting};
use super::resource::filters::{self, Chains, Filter};
use super::resource::{blocker, View, PARTS};
use crate::control::Finding;
use crate::tracer::raw::pidfd_open_thread;

/// Files of `/proc/PID/ns` (proc_pid_ns(5)).
const KINDS: [&str; 10] = [
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid",
    "pid_for_children",
    "time",
    "time_for_children",
    "user",
    "uts",
];

/// The namespaces of a thread, in the order of [`KINDS`]. `None`: this kernel has no such kind, or
/// no process is in the one for children yet; all are, if the thread may not be looked into or
/// ends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Namespaces([Option<OsString>; KINDS.len()]);

impl Namespaces {
    fn of(pid: i32, tid: i32) -> Self {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open(format!("/proc/{pid}/task/{tid}/ns").as_str(), flags, Mode::empty());
        let link = |kind| readlinkat(dir.as_ref().ok()?, kind).ok();
        Self(KINDS.map(link))
    }

    /// The first in which they differ, as far as is known.
    fn differs_from(&self, other: &Self) -> Option<&'static str> {
        if self.0.iter().all(Option::is_none) {
            return None;
        }
        let mut pairs = KINDS.into_iter().zip(self.0.iter().zip(&other.0));
        pairs.find(|(_, (own, other))| own != other).map(|(kind, _)| kind)
    }
}

/// What all threads of a job have.
#[derive(Debug)]
pub struct Common {
    /// Seccomp filters that are vosrun's own: of all processes, and besides those of each.
    filters: u64,
    more_filters: BTreeMap<i32, u64>,
    namespaces: Namespaces,
    /// What is known of its AIO contexts.
    submitted: Submitted,
    submitting: Submitting,
    /// Seccomp filters of its own.
    chains: Chains,
}

impl Common {
    /// Of a job with so many filters of vosrun's own, in the namespaces of the process `like`.
    #[must_use]
    pub fn new(filters: u64, like: i32) -> Self {
        let (more_filters, submitted, submitting, chains) = Default::default();
        let namespaces = Namespaces::of(like, like);
        Self { filters, more_filters, namespaces, submitted, submitting, chains }
    }

    /// With so many more filters of vosrun's own in single processes (host pids).
    #[must_use]
    pub fn filtered_more(self, more_filters: BTreeMap<i32, u64>) -> Self {
        Self { more_filters, ..self }
    }

    /// With what is known of its AIO contexts and seccomp filters.
    #[must_use]
    pub fn knowing(self, submitted: Submitted, chains: Chains) -> Self {
        Self { submitted, chains, ..self }
    }

    /// With those of its AIO contexts to which it submits something just now, while it runs.
    #[must_use]
    pub fn busy(self, submitting: Submitting) -> Self {
        Self { submitting, ..self }
    }

    /// The seccomp filters of a thread (host tid) that are its own.
    #[must_use]
    pub fn chain(&self, tid: i32) -> &[Arc<Filter>] {
        self.chains.get(&tid).map_or(&[], Vec::as_slice)
    }

    /// What is known of its AIO contexts.
    #[must_use]
    pub fn submitted(&self) -> &Submitted {
        &self.submitted
    }

    /// See [`Common::busy`].
    #[must_use]
    pub fn submitting(&self) -> &Submitting {
        &self.submitting
    }

    /// What hinders a thread from moving, of its own state and of what it has apart; what is lost
    /// as well.
    ///
    /// # Errors
    /// When kcmp(2) fails otherwise than by not being there; see [`is_apart`].
    pub fn check(&self, view: &View) -> io::Result<Vec<Finding>> {
        let mut found: Vec<Finding> = PARTS.iter().flat_map(|part| part.check(view)).collect();
        let own = self.filters + self.more_filters.get(&view.pid).copied().unwrap_or(0);
        found.extend(filters::check(view, own, self.chain(view.tid)));
        found.extend(self.elsewhere(view));
        found.extend(own_table(view)?);
        Ok(found)
    }

    fn elsewhere(&self, view: &View) -> Option<Finding> {
        let kind = Namespaces::of(view.pid, view.tid).differs_from(&self.namespaces)?;
        Some(blocker(
            "VOS-NAMESPACE",
            who(view),
            &format!(
                "it is in a namespace of its own (/proc/{}/task/{}/ns/{kind})",
                view.pid, view.tid
            ),
            "let the program run without its sandbox or container, or run vosrun inside of that",
        ))
    }
}

/// Has the thread descriptors that its process has not, and that cannot be asked for?
fn own_table(view: &View) -> io::Result<Option<Finding>> {
    match is_apart(view.pid, view.tid, Shared::Files) {
        Ok(false) => Ok(None),
        Ok(true) if pidfd_open_thread(view.tid).is_ok() => Ok(None),
        Ok(true) => Ok(Some(blocker(
            "VOS-THREAD-FILES",
            who(view),
            "it has a descriptor table apart from its process (CLONE_FILES of unshare(2)), of which kernels before Linux 6.9 do not tell",
            "wait until the thread has ended",
        ))),
        // One that has ended has none any more.
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What findings call a thread.
pub(super) fn who(view: &View) -> String {
    match view.pid == view.tid {
        true => format!("process {}", view.job_pid),
        false => format!("process {}, thread {}", view.job_pid, view.job_tid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(common: &Common, tid: i32) -> Vec<String> {
        let view = View::read(std::process::id() as i32, tid).expect("view");
        common.check(&view).expect("check").into_iter().map(|f| f.code).collect()
    }

    #[test]
    fn what_a_thread_has_apart_is_found() {
        let own = std::process::id() as i32;
        let common = Common::new(0, own);
        assert!(codes(&common, own).is_empty());
        std::thread::spawn(move || {
            let tid = nix::unistd::gettid().as_raw();
            assert!(codes(&common, tid).is_empty());
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).expect("unshare");
            let refused: &[&str] = match pidfd_open_thread(tid) {
                Ok(_) => &[],
                Err(_) => &["VOS-THREAD-FILES"],
            };
            assert_eq!(codes(&common, tid), refused);
        })
        .join()
        .expect("thread");
    }

    #[test]
    fn another_namespace_is_found() {
        let own = std::process::id() as i32;
        let mut common = Common::new(0, own);
        common.namespaces.0[3] = Some("net:[1]".into());
        assert_eq!(codes(&common, own), ["VOS-NAMESPACE"]);
    }
}
