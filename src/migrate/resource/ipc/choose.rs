//! Which objects of an IPC namespace are the job's.
//!
//! An object belongs to no process. In a namespace that others use as well, a job has what it
//! has attached, what it was seen to ask for (`syscalls`), what its threads wait for, and what
//! the kernel names one of its processes for. Of a job that was attached, which nobody has
//! watched from its beginning, what its user has and no living process outside is known to use
//! may be the job's, too: that goes along as a copy, and stays here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde::{Deserialize, Serialize};

use super::list::Listed;
use super::{raw, Id, Kind};
use crate::control::Finding;
use crate::migrate::gone;
use crate::migrate::resource::{blocker, View};
use crate::tracer::memory;
use crate::tracer::raw as trace;

/// What is known of a job.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Host pids.
    pub pids: Vec<i32>,
    /// The namespace is the job's own.
    pub own: bool,
    /// Objects that it was seen to ask for.
    pub asked: BTreeSet<Id>,
    /// It was attached: it may have asked for others before.
    pub attached: bool,
    /// The job's user.
    pub uid: u32,
    /// Its supervisor: who is traced by that is of the job, too.
    pub tracer: i32,
    /// It is frozen: nobody of the job waits for a semaphore, nobody attaches or detaches.
    pub frozen: bool,
}

/// An object that goes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    pub listed: Listed,
    /// It may be somebody else's.
    pub perhaps: bool,
}

/// How often processes have attached each segment; one that has ended is left out.
fn attachments(pids: &[i32]) -> io::Result<BTreeMap<i32, u64>> {
    let mut found = BTreeMap::new();
    for &pid in pids {
        let vmas = match memory::maps(pid) {
            Err(e) if memory::tgid(pid).is_ok() => return Err(e),
            Err(_) => continue,
            Ok(vmas) => vmas,
        };
        for vma in vmas.iter().filter(|vma| is_segment(vma)) {
            *found.entry(vma.ino as i32).or_default() += 1;
        }
    }
    Ok(found)
}

/// Is it a mapping of a System V segment? Its inode is the identifier (ipc/shm.c, newseg).
#[must_use]
pub fn is_segment(vma: &memory::Vma) -> bool {
    vma.path.starts_with("/SYSV") && vma.path.ends_with(" (deleted)")
}

/// Chooses in the job's namespace.
///
/// # Errors
/// What is used outside of the job as well, or what could not be asked.
pub fn choose(known: &Known, all: Vec<Listed>) -> Result<Vec<Chosen>, Finding> {
    let unknown = |e: io::Error| refusal("objects of the job", &format!("they are not known: {e}"));
    let (segments, others): (Vec<&Listed>, Vec<&Listed>) =
        all.iter().partition(|listed| listed.kind == Kind::Memory);
    // Each process is asked: not without need.
    let attached = match segments.iter().any(|listed| listed.attached > 0) {
        true => attachments(&known.pids).map_err(unknown)?,
        false => BTreeMap::new(),
    };
    let waited = match others.is_empty() {
        true => BTreeSet::new(),
        false => waited_for(&known.pids),
    };
    let mut chosen = Vec::new();
    for listed in all {
        let judged = match (known.own, listed.kind) {
            (true, _) => Some(false),
            (false, Kind::Memory) => known.segment(&listed, &attached)?,
            (false, _) => known.other(&listed, &waited)?,
        };
        chosen.extend(judged.map(|perhaps| Chosen { listed, perhaps }));
    }
    Ok(chosen)
}

impl Known {
    /// Of a segment: does it go along, and is that a guess?
    fn segment(
        &self,
        listed: &Listed,
        attached: &BTreeMap<i32, u64>,
    ) -> Result<Option<bool>, Finding> {
        let id = listed.perm.id;
        let own = attached.get(&id).copied().unwrap_or(0);
        let others = listed.attached > own;
        let asked = self.asked.contains(&(Kind::Memory, id)) || self.pids.contains(&listed.pids[0]);
        if own > 0 || asked {
            return match others {
                true => Err(used(listed, "processes outside of the job have it attached")),
                false => Ok(Some(false)),
            };
        }
        Ok((self.may_have(listed) && listed.attached == 0).then_some(true))
    }

    /// Of a set or a queue.
    fn other(&self, listed: &Listed, waited: &BTreeSet<Id>) -> Result<Option<bool>, Finding> {
        let (kind, id) = (listed.kind, listed.perm.id);
        let mut pids: BTreeSet<i32> = listed.pids.into_iter().collect();
        let mut waiting = 0;
        let asked = self.asked.contains(&(kind, id)) || waited.contains(&(kind, id));
        if kind == Kind::Semaphores {
            let found = (0..listed.count).try_for_each(|n| {
                pids.insert(raw::sem_control(id, n, libc::GETPID)?);
                waiting += raw::sem_control(id, n, libc::GETNCNT)?;
                waiting += raw::sem_control(id, n, libc::GETZCNT)?;
                Ok::<(), io::Error>(())
            });
            if let Err(e) = found {
                let cause = format!("it cannot be looked at: {e}");
                return if asked { Err(used(listed, &cause)) } else { Ok(None) };
            }
        }
        pids.remove(&0);
        let stranger = pids.iter().find(|pid| !self.pids.contains(pid) && self.is_stranger(**pid));
        let touched = asked || pids.iter().any(|pid| self.pids.contains(pid));
        if !touched {
            return Ok((self.may_have(listed) && stranger.is_none()).then_some(true));
        }
        if let Some(pid) = stranger {
            return Err(used(listed, &format!("process {pid} outside of the job has used it")));
        }
        if self.frozen && waiting > 0 {
            return Err(used(listed, "a process outside of the job waits for it"));
        }
        Ok(Some(false))
    }

    /// Does such a process live, and is it no child that was made just now?
    fn is_stranger(&self, pid: i32) -> bool {
        let tracer = u64::from(self.tracer.unsigned_abs());
        let traced = |view: View| tracer != 0 && view.number("TracerPid:") == tracer;
        // One that has ended is traced no more, and uses nothing.
        View::read_process(pid).is_ok_and(|view| !traced(view)) && !gone::is_ending(pid)
    }

    /// Could an attached job have asked for it before it was attached?
    fn may_have(&self, listed: &Listed) -> bool {
        self.attached && (listed.perm.cuid == self.uid || listed.perm.uid == self.uid)
    }
}

fn used(listed: &Listed, cause: &str) -> Finding {
    refusal(&format!("{} {}", listed.kind.name(), listed.perm.id), cause)
}

/// A refusal of System V IPC.
#[must_use]
pub fn refusal(object: &str, cause: &str) -> Finding {
    let remedy = "let all who use it run in one job, or let the program finish here";
    blocker("VOS-SYSV", object.to_owned(), cause, remedy)
}

/// Objects that threads of a job wait for. Of a running thread /proc tells the call, of a stopped
/// one its registers do.
fn waited_for(pids: &[i32]) -> BTreeSet<Id> {
    let mut found = BTreeSet::new();
    for pid in pids {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let tid = task.file_name().to_str().and_then(|tid| tid.parse::<i32>().ok());
            let stopped = tid.and_then(|tid| trace::regs(tid).ok());
            let call = match stopped {
                Some(regs) => Some((regs.orig_rax as i64, regs.rdi as i32)),
                None => asleep_in(&task.path()),
            };
            found.extend(call.and_then(|(nr, id)| Some((waiting_call(nr)?, id))));
        }
    }
    found
}

/// Number and first argument of the call (proc_pid_syscall(5)).
fn asleep_in(task: &std::path::Path) -> Option<(i64, i32)> {
    let text = std::fs::read_to_string(task.join("syscall")).ok()?;
    let mut words = text.split_whitespace();
    let nr = words.next()?.parse().ok()?;
    let id = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    Some((nr, id as i32))
}

fn waiting_call(nr: i64) -> Option<Kind> {
    match nr {
        libc::SYS_semop | libc::SYS_semtimedop => Some(Kind::Semaphores),
        libc::SYS_msgsnd | libc::SYS_msgrcv => Some(Kind::Queue),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Perm;
    use super::*;

    fn queue(id: i32, pids: [i32; 2], cuid: u32) -> Listed {
        let perm = Perm { key: 0, id, mode: 0o600, uid: 7, gid: 7, cuid, cgid: 7 };
        Listed { kind: Kind::Queue, perm, attached: 0, count: 0, bytes: 0, pids }
    }

    fn chosen(known: &Known, listed: Listed) -> Result<Option<bool>, Finding> {
        choose(known, vec![listed]).map(|all| all.first().map(|one| one.perhaps))
    }

    #[test]
    fn what_a_job_has_used_is_its_own() {
        // Above the highest pid that Linux gives.
        let (of_job, dead, outside) = (1 << 23, 1 << 24, std::process::id() as i32);
        let known = Known { pids: vec![of_job], uid: 7, ..Known::default() };
        assert_eq!(chosen(&known, queue(1, [of_job, 0], 7)), Ok(Some(false)));
        assert_eq!(chosen(&known, queue(1, [of_job, dead], 7)), Ok(Some(false)));
        assert_eq!(chosen(&known, queue(1, [0, 0], 7)), Ok(None));
        let refused = chosen(&known, queue(1, [of_job, outside], 7)).expect_err("shared");
        assert_eq!(refused.code, "VOS-SYSV");
        assert!(refused.cause.contains(&outside.to_string()), "{}", refused.cause);
        let asked = Known { asked: BTreeSet::from([(Kind::Queue, 1)]), ..known.clone() };
        assert_eq!(chosen(&asked, queue(1, [0, 0], 7)), Ok(Some(false)));
        assert_eq!(chosen(&asked, queue(2, [0, 0], 7)), Ok(None));
        let attached = Known { attached: true, ..known.clone() };
        assert_eq!(chosen(&attached, queue(1, [dead, 0], 7)), Ok(Some(true)));
        assert_eq!(chosen(&attached, queue(1, [outside, 0], 7)), Ok(None));
        assert_eq!(chosen(&attached, queue(1, [0, 0], 9)), Ok(Some(true)));
        let own = Known { own: true, ..known };
        assert_eq!(chosen(&own, queue(1, [outside, 0], 9)), Ok(Some(false)));
    }
}
