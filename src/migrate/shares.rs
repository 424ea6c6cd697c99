//! What processes have in common by the flags of clone(2) without being threads of one process:
//! memory, descriptor table, directories, signal handlers, what semop(2) is to undo.
//!
//! Who shares something is found by kcmp(2) and travels with the members of the job. The frame
//! makes the processes with the same flags ([`super::tree`]). What is shared is captured and
//! restored with the first of the processes that have it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gone;
use super::raw::{compare_tasks, Shared};
use super::resource::fd;
use super::resource::ipc::undo;

/// What can be shared. Who shares handlers shares memory (clone(2)).
pub const KINDS: [Shared; 5] =
    [Shared::Memory, Shared::Files, Shared::Directories, Shared::Handlers, Shared::Undo];

/// What a process shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// In the order of [`KINDS`]: the number of the first process of those that have this in
    /// common. None: it is its own.
    first: [Option<i32>; KINDS.len()],
    /// A number above all descriptors of a table that is shared.
    pub above: i32,
    /// The signal that its parent gets at its end, if that is not SIGCHLD.
    pub exit_signal: Option<i32>,
}

impl Shares {
    /// The first of the processes that have this in common with this one.
    #[must_use]
    pub fn first(&self, what: Shared) -> Option<i32> {
        self.first[place(what)]
    }

    /// Notes the first process of those that have this in common.
    pub fn set(&mut self, what: Shared, first: Option<i32>) {
        self.first[place(what)] = first;
    }

    /// Has process `pid`, whose shares these are, got this from another one, that comes before it?
    #[must_use]
    pub fn takes(&self, what: Shared, pid: i32) -> bool {
        self.first(what).is_some_and(|first| first != pid)
    }

    /// Is anything shared?
    #[must_use]
    pub fn any(&self) -> bool {
        self.first.iter().any(Option::is_some)
    }
}

fn place(what: Shared) -> usize {
    KINDS.iter().position(|kind| *kind == what).unwrap_or(0)
}

/// The flag of clone(2) and unshare(2), and what it shares.
#[must_use]
pub fn flag(what: Shared) -> (i32, &'static str) {
    match what {
        Shared::Memory => (libc::CLONE_VM, "memory"),
        Shared::Files => (libc::CLONE_FILES, "descriptors"),
        Shared::Directories => (libc::CLONE_FS, "working directory"),
        Shared::Handlers => (libc::CLONE_SIGHAND, "signal handlers"),
        Shared::Undo => (libc::CLONE_SYSVSEM, "what semop(2) is to undo"),
    }
}

/// Who shares what among processes of a job.
#[derive(Debug, Default)]
pub struct Sharing {
    /// By host pid, one of those that have the same, in the order of [`KINDS`].
    groups: BTreeMap<i32, [Option<i32>; KINDS.len()]>,
}

impl Sharing {
    /// Looks at processes (host pids). None may be in the middle of vfork(2), which shares memory
    /// for a moment.
    #[must_use]
    pub fn of(pids: &[i32]) -> Self {
        let mut found = Self::default();
        for what in KINDS {
            match what {
                Shared::Handlers => {
                    let memory: Vec<i32> = found.with(Shared::Memory);
                    found.look(&memory, what);
                }
                Shared::Undo => {
                    // Who has none has the same none as all others.
                    let has = |pid: &i32| undo::may_have(*pid).unwrap_or(false);
                    let some: Vec<i32> = pids.iter().copied().filter(has).collect();
                    found.look(&some, what);
                }
                _ => found.look(pids, what),
            }
        }
        found
    }

    /// Who shares this with another.
    fn with(&self, what: Shared) -> Vec<i32> {
        let shares = |(pid, groups): (&i32, &[Option<i32>; KINDS.len()])| {
            groups[place(what)].is_some().then_some(*pid)
        };
        self.groups.iter().filter_map(shares).collect()
    }

    fn look(&mut self, pids: &[i32], what: Shared) {
        // In the kernel's order of them: each is compared with few others.
        let mut ordered: Vec<i32> = Vec::with_capacity(pids.len());
        for &pid in pids {
            let at = ordered.binary_search_by(|other| {
                // A process that has ended shares nothing.
                compare_tasks(*other, pid, what).unwrap_or(Ordering::Less)
            });
            match at {
                // What has ended shares nothing, which is the same nothing for all.
                Ok(_) if gone::is_ending(pid) => {}
                Ok(at) => {
                    for one in [ordered[at], pid] {
                        self.groups.entry(one).or_default()[place(what)] = Some(ordered[at]);
                    }
                }
                Err(at) => ordered.insert(at, pid),
            }
        }
    }

    /// Does nobody share anything?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// What each of these processes shares, if it shares anything. They are given by host pid and
    /// number in the job, in the order in which the job has them.
    #[must_use]
    pub fn shares(&self, processes: &[(i32, i32)]) -> BTreeMap<i32, Shares> {
        let mut first: BTreeMap<(usize, i32), i32> = BTreeMap::new();
        let mut all = BTreeMap::new();
        for (host, pid) in processes {
            let Some(groups) = self.groups.get(host) else { continue };
            let mut own = Shares::default();
            for (kind, group) in groups.iter().enumerate() {
                own.first[kind] = group.map(|group| *first.entry((kind, group)).or_insert(*pid));
            }
            if own.first(Shared::Files).is_some() {
                own.above = above(*host);
            }
            all.insert(*pid, own);
        }
        all
    }
}

/// A number above all descriptors of a process, and some more: so it stays the same for a while.
fn above(pid: i32) -> i32 {
    const STEP: i32 = 256;
    let last = fd::numbers(pid).ok().and_then(|open| open.last().copied());
    last.map_or(STEP, |last| (last / STEP + 1).saturating_mul(STEP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_share_are_found_and_numbered_in_their_order() {
        let mut sharing = Sharing::default();
        let own = std::process::id() as i32;
        sharing.groups.insert(own, [None, Some(7), None, None, None]);
        sharing.groups.insert(7, [None, Some(7), Some(7), None, None]);
        sharing.groups.insert(8, [None, None, Some(7), None, None]);
        let shares = sharing.shares(&[(9, 109), (own, 110), (7, 107), (8, 108)]);
        assert_eq!(shares.len(), 3);
        assert_eq!(shares[&110].first(Shared::Files), Some(110));
        assert_eq!(shares[&107].first(Shared::Files), Some(110));
        assert!(shares[&107].takes(Shared::Files, 107));
        assert!(!shares[&107].takes(Shared::Directories, 107));
        assert_eq!(shares[&108].first(Shared::Directories), Some(107));
        assert_eq!(shares[&108].first(Shared::Memory), None);
        assert!(shares[&110].above >= 256 && shares[&110].above % 256 == 0);
    }

    #[test]
    fn who_was_forked_shares_nothing() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        let sharing = Sharing::of(&[std::process::id() as i32, child.id() as i32]);
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(sharing.is_empty());
    }
}
