//! How the processes of a job are made, so that each has its number, parent, group and session:
//! a plan of forks. Data only.
//!
//! ```text
//! I (pid 1) ─┬─► L   stand-ins of the root's leaders and parent, which are not of the job
//!            │   ├─► G
//!            │   └─► Q ─► root ─► its children ─► theirs …
//!            ├─► members whose parent is pid 1
//!            └─► ghosts: hold the number of a session or group whose leader is dead
//! ```
//! A session is inherited by fork(2) or begun by setsid(2), and there is no other way into one. So
//! a child that is in its parent's old session is forked before the parent's setsid. One that is
//! in neither of its parent's sessions has lost its first parent: the leader of its session
//! forks a *carrier*, which forks it and ends, and it falls to pid 1, or to the subreaper that has
//! it (PR_SET_CHILD_SUBREAPER).

mod common;
mod groups;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::image::Ids;
use super::resource::blocker;
use super::shares::Shares;
use crate::control::Finding;

/// Most processes of one job.
pub const MAX_MEMBERS: usize = 5000;

/// A process of the job, running or ended and not yet waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub ids: Ids,
    /// Wait status (wait(2)) of one that has ended.
    pub ended: Option<i32>,
    /// What it has in common with others by clone(2).
    pub shares: Shares,
}

impl Member {
    /// Does it lead its session?
    fn leads(&self) -> bool {
        self.ids.sid == self.ids.pid
    }

    /// A process that has ended and whose parent is pid 1 is reaped by pid 1, not made.
    fn is_made(&self, index: usize) -> bool {
        index == 0 || self.ended.is_none() || self.ids.ppid != 1
    }
}

/// What a process of the plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// I: pid 1 of the namespace.
    Init,
    /// L: leads the root's session in the place of one outside of the job.
    Leader,
    /// Q: the root's parent.
    Parent,
    /// G: leads the root's group.
    GroupLeader,
    /// A process of the job, by its place in the list of members.
    Member(usize),
    /// Holds a number while others join its session or group, then ends.
    Ghost,
    /// Forks one process and ends.
    Carrier,
}

/// What a process does, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Orphans below become its children: PR_SET_CHILD_SUBREAPER.
    Adopt,
    /// setsid(2).
    Lead,
    /// setpgid(0, 0).
    OwnGroup,
    /// Forks that process (by index).
    Fork(usize),
    /// The same, but by H, the parent outside of the namespace.
    Outside(usize),
    /// unshare(2) with these flags: others have that in common.
    Leave(i32),
}

/// A process that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub pid: i32,
    pub role: Role,
    pub steps: Vec<Step>,
    /// Flags of the clone(2) that makes it: what it shares with who forks it.
    pub flags: i32,
    /// The signal at its end, if that is not SIGCHLD.
    pub exit_signal: Option<i32>,
    /// A number above all descriptors that its table gets, if that is another process's too, or 0.
    pub above: i32,
}

/// The plan; `nodes[0]` is I.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub nodes: Vec<Node>,
    /// (process, group): what joins a group when all are there. In this order.
    pub joins: Vec<(usize, i32)>,
    /// (ghost, whose child it is).
    pub ghosts: Vec<(usize, usize)>,
    /// The process at each member's place; none: pid 1 has reaped it long since.
    pub members: Vec<Option<usize>>,
    /// L or Q, when the root is its child.
    pub guardian: Option<usize>,
}

/// A refusal that names the process.
fn refuse(pid: i32, cause: &str) -> Box<Finding> {
    let remedy = "wait until the process has ended, or end it";
    Box::new(blocker("VOS-TREE", format!("process {pid}"), cause, remedy))
}

type Plan<T> = Result<T, Box<Finding>>;

/// A process while the plan is made.
#[derive(Debug)]
struct Draft {
    pid: i32,
    role: Role,
    /// Whose child it is in the end.
    parent: usize,
    session: i32,
    adopt: bool,
    own_group: bool,
    /// Forks before and after setsid or setpgid.
    before: Vec<usize>,
    after: Vec<usize>,
}

#[derive(Debug)]
struct Planner<'a> {
    members: &'a [Member],
    nodes: Vec<Draft>,
    by_pid: BTreeMap<i32, usize>,
    /// Member, by node.
    at: Vec<Option<usize>>,
    /// The session in which a leader must be born, by member.
    born_in: Vec<Option<i32>>,
    /// Session of pid 1: 1 when it leads it, else one outside of the namespace.
    init_session: i32,
    used: BTreeSet<i32>,
    next_free: i32,
    ghosts: Vec<usize>,
    joins: Vec<(usize, i32)>,
    guardian: Option<usize>,
}

/// Makes the plan. The root comes first; every other's parent is a member or pid 1.
///
/// # Errors
/// A shape that cannot be made by forks.
pub fn plan(members: &[Member]) -> Plan<Tree> {
    let root = members.first().ok_or_else(|| refuse(0, "the job has no process"))?;
    if members.len() > MAX_MEMBERS {
        let cause = format!("the job has {} processes, more than {MAX_MEMBERS}", members.len());
        return Err(refuse(root.ids.pid, &cause));
    }
    if root.ended.is_some() {
        return Err(refuse(root.ids.pid, "the job's first process has ended"));
    }
    let mut planner = Planner::new(members)?;
    planner.check_parents()?;
    planner.place_root()?;
    planner.place_members()?;
    planner.plan_groups()?;
    planner.finish()
}

/// What processes share that cannot be shared among those that forks make.
#[must_use]
pub fn unshareable(members: &[Member]) -> Option<Finding> {
    let finding = plan(members).err()?;
    (finding.code == common::CODE).then_some(*finding)
}

/// Is the process's parent outside of its pid namespace, and so H?
#[must_use]
pub fn parent_is_outside(ids: Ids) -> bool {
    ids.ppid == 0 && ids.may_come_from_outside()
}

impl<'a> Planner<'a> {
    fn new(members: &'a [Member]) -> Plan<Self> {
        let made = || members.iter().enumerate().filter(|(index, m)| m.is_made(*index));
        let init_session = i32::from(made().any(|(_, m)| m.ids.sid == 1));
        let mut planner = Self {
            members,
            nodes: Vec::new(),
            by_pid: BTreeMap::new(),
            at: vec![None; members.len()],
            born_in: vec![None; members.len()],
            init_session,
            used: members
                .iter()
                .flat_map(|m| [m.ids.pid, m.ids.ppid, m.ids.pgid, m.ids.sid])
                .collect(),
            next_free: 2,
            ghosts: Vec::new(),
            joins: Vec::new(),
            guardian: None,
        };
        planner.add(1, Role::Init, 0, init_session)?;
        for (index, m) in made() {
            let Ids { pid, pgid, sid, .. } = m.ids;
            if pid <= 1 || pgid < 0 || sid < 0 || (m.leads() && pgid != pid) {
                return Err(refuse(pid, "its numbers contradict each other"));
            }
            let node = planner.add(pid, Role::Member(index), 0, sid)?;
            planner.at[index] = Some(node);
        }
        Ok(planner)
    }

    fn add(&mut self, pid: i32, role: Role, parent: usize, session: i32) -> Plan<usize> {
        let node = self.nodes.len();
        if self.by_pid.insert(pid, node).is_some() {
            return Err(refuse(pid, "its number is that of another process too"));
        }
        self.nodes.push(Draft {
            pid,
            role,
            parent,
            session,
            adopt: false,
            own_group: false,
            before: Vec::new(),
            after: Vec::new(),
        });
        Ok(node)
    }

    /// The members that are made and are not the root: (index, node).
    fn others(&self) -> Vec<(usize, usize)> {
        let some = |(index, node): (usize, &Option<usize>)| Some((index, (*node)?));
        self.at.iter().enumerate().skip(1).filter_map(some).collect()
    }

    fn member(&self, node: usize) -> Option<&'a Member> {
        match self.nodes[node].role {
            Role::Member(index) => self.members.get(index),
            _ => None,
        }
    }

    fn leads(&self, node: usize) -> bool {
        self.nodes[node].session == self.nodes[node].pid
    }

    /// Finds every member's parent; from each, the parents lead to the root or to pid 1.
    fn check_parents(&mut self) -> Plan<()> {
        for (index, node) in self.others() {
            let Ids { pid, ppid, .. } = self.members[index].ids;
            let parent = self.by_pid.get(&ppid).copied();
            let parent = parent.ok_or_else(|| refuse(pid, "its parent is not of the job"))?;
            if self.member(parent).is_some_and(|m| m.ended.is_some()) {
                return Err(refuse(pid, "its parent has ended"));
            }
            self.nodes[node].parent = parent;
        }
        let root = self.at[0].unwrap_or(0);
        let mut good = vec![false; self.nodes.len()];
        (good[0], good[root]) = (true, true);
        for node in 1..self.nodes.len() {
            let (mut path, mut at) = (Vec::new(), node);
            while !good[at] && path.len() <= self.nodes.len() {
                path.push(at);
                at = self.nodes[at].parent;
            }
            if !good[at] {
                return Err(refuse(self.nodes[node].pid, "it is an ancestor of its own"));
            }
            path.into_iter().for_each(|at| good[at] = true);
        }
        Ok(())
    }

    /// The root, below the stand-ins of who is not of the job.
    fn place_root(&mut self) -> Plan<()> {
        let ids = self.members[0].ids;
        let root = self.at[0].unwrap_or(0);
        let leader = if ids.sid > 1 && ids.sid != ids.pid {
            let leader = self.add(ids.sid, Role::Leader, 0, ids.sid)?;
            self.nodes[0].after.push(leader);
            Some(leader)
        } else {
            None
        };
        let top = leader.unwrap_or(0);
        let session = self.nodes[top].session;
        let joins_session = ids.sid == session || ids.sid == ids.pid;
        if !joins_session {
            return Err(refuse(ids.pid, "its session cannot be entered"));
        }
        let alone = [ids.pid, ids.sid, ids.ppid].contains(&ids.pgid);
        if ids.pgid > 1 && !alone && !self.by_pid.contains_key(&ids.pgid) {
            let group = self.add(ids.pgid, Role::GroupLeader, top, session)?;
            self.nodes[group].own_group = true;
            self.nodes[top].after.push(group);
        }
        if ids.ppid <= 1 {
            return match leader {
                Some(leader) => self.carry(leader, root),
                None => {
                    self.nodes[0].after.push(root);
                    Ok(())
                }
            };
        }
        let parent = if Some(ids.ppid) == leader.map(|l| self.nodes[l].pid) {
            top
        } else {
            let parent = self.add(ids.ppid, Role::Parent, top, session)?;
            self.nodes[parent].own_group = ids.pgid == ids.ppid;
            self.nodes[top].after.push(parent);
            parent
        };
        self.nodes[root].parent = parent;
        self.guardian = Some(parent);
        self.nodes[parent].after.push(root);
        Ok(())
    }

    /// `host` forks a carrier, which forks `node` and ends.
    fn carry(&mut self, host: usize, node: usize) -> Plan<()> {
        while self.used.contains(&self.next_free) {
            self.next_free += 1;
        }
        let session = self.nodes[host].session;
        let carrier = self.add(self.next_free, Role::Carrier, host, session)?;
        self.next_free += 1;
        self.nodes[carrier].after.push(node);
        self.nodes[host].after.push(carrier);
        Ok(())
    }

    /// Everybody else below its parent, or, when that cannot be, where its session is.
    fn place_members(&mut self) -> Plan<()> {
        let mut carried = Vec::new();
        for (index, node) in self.others() {
            if !self.members[index].leads() && !self.place_inside(index, node) {
                carried.push(node);
            }
        }
        for (index, node) in self.others() {
            if self.members[index].leads() {
                self.place_leader(index, node);
            }
        }
        for node in &carried {
            let Draft { pid, session, parent, .. } = self.nodes[*node];
            let host = self.host(pid, session, parent)?;
            if host == 0 {
                return Err(refuse(pid, "its session cannot be entered below its parent"));
            }
            self.nodes[parent].adopt = parent != 0;
            self.carry(host, *node)?;
        }
        for node in carried {
            let Draft { pid, session, parent, .. } = self.nodes[node];
            let host = self.host(pid, session, parent)?;
            if self.reaper(host) != parent {
                return Err(refuse(pid, "its session cannot be entered below its parent"));
            }
        }
        Ok(())
    }

    /// Who gets the orphans of this process: the next subreaper above, or pid 1.
    fn reaper(&self, node: usize) -> usize {
        let mut at = node;
        while at != 0 && !self.nodes[at].adopt {
            at = self.nodes[at].parent;
        }
        at
    }

    /// Who can fork process `pid` into this session; a ghost, child of `reaper`, if its leader is
    /// dead.
    fn host(&mut self, pid: i32, session: i32, reaper: usize) -> Plan<usize> {
        if session == self.init_session {
            return Ok(0);
        }
        match self.by_pid.get(&session) {
            Some(&node) if self.leads(node) => Ok(node),
            Some(_) => Err(refuse(pid, "who has the number of its session does not lead it")),
            None if session <= 1 => Err(refuse(pid, "its session cannot be entered")),
            None => {
                let ghost = self.add(session, Role::Ghost, reaper, session)?;
                self.nodes[reaper].after.push(ghost);
                self.nodes[reaper].adopt = reaper != 0;
                self.ghosts.push(ghost);
                Ok(ghost)
            }
        }
    }

    /// A process that inherits its session from its parent, before or after the parent's setsid.
    /// False: it cannot.
    fn place_inside(&mut self, index: usize, node: usize) -> bool {
        let Draft { session, parent, .. } = self.nodes[node];
        let outside_group = self.members[index].ids.pgid == 0;
        let at = &mut self.nodes[parent];
        if at.session == session {
            // A group outside of the namespace is inherited too.
            let list = if outside_group { &mut at.before } else { &mut at.after };
            list.push(node);
            return true;
        }
        let before = self.leads(parent) && self.bear_in(parent, session);
        if before {
            self.nodes[parent].before.push(node);
        }
        before
    }

    /// Lets a session leader be born in this session, and so its parents too, as far as they
    /// have left it. False: it cannot.
    fn bear_in(&mut self, leader: usize, session: i32) -> bool {
        let (mut path, mut at) = (Vec::new(), leader);
        while let Role::Member(index) = self.nodes[at].role {
            if at != leader && self.nodes[at].session == session {
                break;
            }
            match self.born_in[index] {
                Some(other) if other != session => return false,
                Some(_) => break,
                None if !self.leads(at) => return false,
                None => path.push(index),
            }
            if index == 0 {
                // Its parent is a stand-in in the session of pid 1, or outside.
                at = 0;
                break;
            }
            at = self.nodes[at].parent;
        }
        if at == 0 && session != self.init_session {
            return false;
        }
        path.into_iter().for_each(|index| self.born_in[index] = Some(session));
        true
    }

    fn place_leader(&mut self, index: usize, node: usize) {
        let parent = self.nodes[node].parent;
        let parent = &mut self.nodes[parent];
        match self.born_in[index] {
            Some(session) if session != parent.session => parent.before.push(node),
            _ => parent.after.push(node),
        }
    }

    fn finish(mut self) -> Plan<Tree> {
        if self.init_session == 0 && self.members.iter().any(|m| m.ids.pgid == 1) {
            self.nodes[0].own_group = true;
        }
        let steps = |(index, draft): (usize, &Draft)| {
            let outside = index == 0 && parent_is_outside(self.members[0].ids);
            let fork = |child: &usize| match outside && Some(*child) == self.at[0] {
                true => Step::Outside(*child),
                false => Step::Fork(*child),
            };
            let mut steps = Vec::new();
            steps.extend(draft.adopt.then_some(Step::Adopt));
            steps.extend(draft.before.iter().map(fork));
            if draft.session == draft.pid {
                steps.push(Step::Lead);
            } else if draft.own_group {
                steps.push(Step::OwnGroup);
            }
            steps.extend(draft.after.iter().map(fork));
            let Draft { pid, role, .. } = *draft;
            Node { pid, role, steps, flags: 0, exit_signal: None, above: 0 }
        };
        let mut tree = Tree {
            nodes: self.nodes.iter().enumerate().map(steps).collect(),
            ghosts: self.ghosts.iter().map(|ghost| (*ghost, self.nodes[*ghost].parent)).collect(),
            joins: self.joins,
            members: self.at,
            guardian: self.guardian,
        };
        groups::check(&tree, self.members)?;
        let outside = parent_is_outside(self.members[0].ids);
        common::plan(&mut tree, &self.nodes, self.members, outside)?;
        Ok(tree)
    }
}
