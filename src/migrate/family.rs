//! Who belongs to a job, and whose child each is.
//!
//! The members of a job are its traced processes and those that have ended and wait for a traced
//! parent (zombies). A member whose parent is none is a child of the job's pid 1 from the move
//! on, as one whose parent has ended is anywhere (`getppid(2)`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::thread;

use super::ahead::read_ahead;
use super::capture::Parents;
use super::gone;
use super::image::{ProcessImage, Zombie};
use super::preflight::{children, is_zombie};
use super::resource::{PartError, View};
use super::shares::{Shares, Sharing};
use super::skeleton::Plan;
use super::tree::Member;
use crate::tracer::memory::{read_record, stat_field};

/// The members of a job with these host pids, parents before their children. The first pid is
/// that of the job's first process, which stays the first. `sharing` tells what they share.
///
/// # Errors
/// When the first process is gone, or one of the others cannot be asked.
pub fn members(pids: &[i32], sharing: &Sharing) -> Result<Vec<Member>, PartError> {
    Ok(found(pids)?.with(sharing))
}

/// As [`members`], of which none is in the middle of vfork(2); what they share is found out by
/// another thread meanwhile.
///
/// # Errors
/// As [`members`].
pub fn members_and_shares(pids: &[i32]) -> Result<Vec<Member>, PartError> {
    if pids.len() == 1 {
        return members(pids, &Sharing::of(pids));
    }
    thread::scope(|scope| {
        let sharing = scope.spawn(|| Sharing::of(pids));
        let found = found(pids);
        let sharing = sharing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(found?.with(&sharing))
    })
}

/// The members of a job in their order, and the host pids of those that live.
struct Found {
    members: Vec<Member>,
    hosts: BTreeMap<i32, i32>,
}

impl Found {
    /// With what they share.
    fn with(self, sharing: &Sharing) -> Vec<Member> {
        let Self { members: mut all, hosts } = self;
        if !sharing.is_empty() {
            let own = |member: &Member| Some((*hosts.get(&member.ids.pid)?, member.ids.pid));
            let shares = sharing.shares(&all.iter().filter_map(own).collect::<Vec<_>>());
            for member in &mut all {
                let exit_signal = member.shares.exit_signal;
                member.shares = shares.get(&member.ids.pid).copied().unwrap_or_default();
                member.shares.exit_signal = exit_signal;
            }
        }
        all
    }
}

/// What is read of a process in any case.
struct Looked {
    pid: i32,
    view: io::Result<View>,
    children: Vec<i32>,
    exit_signal: Option<i32>,
    /// It has ended by then.
    ended: bool,
}

impl Looked {
    fn at(pid: i32) -> Self {
        let (view, children, exit_signal) =
            (View::read_process(pid), children(pid), exit_signal(pid));
        Self { pid, view, children, exit_signal, ended: gone::is_ending(pid) }
    }
}

fn found(pids: &[i32]) -> Result<Found, PartError> {
    let mut hosts = BTreeMap::new();
    let mut all = Vec::with_capacity(pids.len());
    let (living, mut parents) = (pids.iter().collect::<BTreeSet<_>>(), Parents::default());
    read_ahead(
        pids,
        |pid| Looked::at(*pid),
        |next| {
            while let Some(Looked { pid, view, children, exit_signal, ended }) = next() {
                // The freeze will find that another one has ended.
                match ended {
                    true if all.is_empty() => {
                        return Err(io_error(pid)(io::ErrorKind::NotFound.into()))
                    }
                    true => continue,
                    false => {}
                }
                let mut own = member(&view.map_err(io_error(pid))?, None, &mut parents)?;
                // The first one's parent is none of the job.
                own.shares.exit_signal = exit_signal.filter(|_| !all.is_empty());
                hosts.insert(own.ids.pid, pid);
                all.push(own);
                for child in children {
                    if !living.contains(&child) && is_zombie(child) {
                        all.extend(zombie(child, &mut parents)?);
                    }
                }
            }
            Ok(())
        },
    )?;
    let known: BTreeSet<i32> = all.iter().map(|member| member.ids.pid).collect();
    for member in all.iter_mut().skip(1) {
        if !known.contains(&member.ids.ppid) {
            member.ids.ppid = 1;
        }
    }
    Ok(Found { members: parents_first(all), hosts })
}

fn member(view: &View, ended: Option<i32>, parents: &mut Parents) -> Result<Member, PartError> {
    Ok(Member { ids: parents.ids(view)?, ended, shares: Shares::default() })
}

/// None: its parent has waited for it meanwhile.
fn zombie(pid: i32, parents: &mut Parents) -> Result<Option<Member>, PartError> {
    let status = wait_status(pid).map_err(io_error(pid));
    let seen = status.and_then(|status| {
        let view = View::read_process(pid).map_err(io_error(pid))?;
        let mut own = member(&view, Some(status), parents)?;
        // The signal has been sent; what is left of it is by which flags of wait(2) it is found.
        own.shares.exit_signal = exit_signal(pid).map(|_| 0);
        Ok(own)
    });
    match seen {
        Err(_) if !is_zombie(pid) => Ok(None),
        seen => seen.map(Some),
    }
}

/// Gives the captured processes, in the order of the plan, the parents that the plan says, and
/// leaves what they share to the first that has it.
///
/// # Errors
/// When they are not the living members of the plan.
pub fn adopt(images: &mut [ProcessImage], plan: &Plan) -> Result<(), &'static str> {
    let mut living = plan.members.iter().filter(|member| member.ended.is_none());
    for image in images {
        let member = living.next().filter(|member| member.ids.pid == image.ids.pid);
        let member = member.ok_or("the tree has changed while it was frozen")?;
        (image.ids, image.shares) = (member.ids, member.shares);
        image.leave_to_first();
    }
    living.next().map_or(Ok(()), |_| Err("a process has gone while it was frozen"))
}

/// Members that have ended.
#[must_use]
pub fn zombies(plan: &Plan) -> Vec<Zombie> {
    let ended = plan.members.iter().filter_map(|m| Some((m.ids, m.ended?)));
    ended.map(|(ids, status)| Zombie { ids, status }).collect()
}

fn io_error(pid: i32) -> impl FnOnce(io::Error) -> PartError {
    move |source| PartError::Io { what: format!("status of process {pid}"), source }
}

/// The status that wait(2) will give of a zombie (`exit_code` of proc_pid_stat(5)).
fn wait_status(pid: i32) -> io::Result<i32> {
    let stat = procfs::process::Process::new(pid).and_then(|p| p.stat());
    let stat = stat.map_err(io::Error::other)?;
    stat.exit_code.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// See [`Shares::exit_signal`] (`exit_signal` of proc_pid_stat(5)).
#[must_use]
pub fn exit_signal(pid: i32) -> Option<i32> {
    let text = read_record(&format!("/proc/{pid}/stat")).ok()?;
    let signal = stat_field(&text, 38).and_then(|word| word.parse().ok());
    signal.filter(|signal| *signal != libc::SIGCHLD)
}

/// The first member, and then each after its parent.
fn parents_first(all: Vec<Member>) -> Vec<Member> {
    let mut of: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    let known: BTreeSet<i32> = all.iter().map(|member| member.ids.pid).collect();
    let mut next = Vec::new();
    for (n, member) in all.iter().enumerate() {
        match known.contains(&member.ids.ppid) && n > 0 {
            true => of.entry(member.ids.ppid).or_default().push(n),
            false => next.push(n),
        }
    }
    let mut sorted = Vec::with_capacity(all.len());
    next.reverse();
    while let Some(n) = next.pop() {
        sorted.push(all[n]);
        next.extend(of.remove(&all[n].ids.pid).unwrap_or_default().into_iter().rev());
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::super::image::Ids;
    use super::*;

    fn member(pid: i32, ppid: i32) -> Member {
        let ids = Ids { pid, ppid, pgid: 10, sid: 10 };
        Member { ids, ended: None, shares: Shares::default() }
    }

    fn order(all: &[(i32, i32)]) -> Vec<i32> {
        let all = all.iter().map(|(pid, ppid)| member(*pid, *ppid)).collect();
        parents_first(all).iter().map(|m| m.ids.pid).collect()
    }

    #[test]
    fn parents_come_before_their_children() {
        assert_eq!(order(&[(10, 5), (11, 12), (12, 10), (13, 1)]), [10, 12, 11, 13]);
        // The root's parent may have the number of nobody here.
        assert_eq!(order(&[(10, 0)]), [10]);
    }

    #[test]
    fn a_child_that_waits_to_be_reaped_is_a_member() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let (own, pid) = (std::process::id() as i32, child.id() as i32);
        while !is_zombie(pid) {
            std::thread::yield_now();
        }
        let all = members(&[own], &Sharing::default()).unwrap();
        let zombie = all.iter().find(|m| m.ids.pid == pid).unwrap();
        assert_eq!((zombie.ended, zombie.ids.ppid), (Some(7 << 8), own));
        assert_eq!(all[0].ids.pid, own);
        child.wait().unwrap();
    }
}
