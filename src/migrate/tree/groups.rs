//! Process groups of the plan, and the check of the whole: what the kernel would make of it.

use super::{refuse, Draft, Member, Plan, Planner, Role, Step, Tree};

impl Planner<'_> {
    /// Who leads a group of its own, who joins one, and ghosts for groups whose leader is dead.
    pub(super) fn plan_groups(&mut self) -> Plan<()> {
        let all: Vec<usize> = self.at.iter().flatten().copied().collect();
        for node in all {
            let Some(member) = self.member(node) else { continue };
            let (pid, pgid) = (member.ids.pid, member.ids.pgid);
            if self.leads(node) || pgid == 0 {
                continue;
            }
            if pgid == 1 && self.nodes[node].session != self.init_session {
                return Err(refuse(pid, "its group is of another session"));
            }
            if pgid == pid {
                self.nodes[node].own_group = true;
                continue;
            }
            let leader = self.group_leader(node, pgid)?;
            if self.nodes[leader].session != self.nodes[node].session {
                return Err(refuse(pid, "its group is of another session"));
            }
            self.nodes[leader].own_group = true;
            self.joins.push((node, pgid));
        }
        // Who leaves a group of its own that others need joins after these.
        let nodes = &self.nodes;
        self.joins.sort_by_key(|(node, _)| nodes[*node].own_group);
        Ok(())
    }

    fn group_leader(&mut self, node: usize, pgid: i32) -> Plan<usize> {
        if let Some(leader) = self.by_pid.get(&pgid) {
            return Ok(*leader);
        }
        let Draft { pid, session, parent, .. } = self.nodes[node];
        let host = self.host(pid, session, self.reaper(parent))?;
        let reaper = self.reaper(host);
        let ghost = self.add(pgid, Role::Ghost, reaper, session)?;
        self.ghosts.push(ghost);
        if host == 0 {
            self.nodes[0].after.push(ghost);
        } else {
            self.carry(host, ghost)?;
        }
        Ok(ghost)
    }
}

/// What a process is when all steps of the plan are done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Made {
    pub parent: usize,
    pub pgid: i32,
    pub sid: i32,
    adopts: bool,
}

/// Does the steps as the kernel would. None: a process that no step makes.
pub(super) fn carry_out(tree: &Tree) -> Vec<Option<Made>> {
    let mut made: Vec<Option<Made>> = vec![None; tree.nodes.len()];
    let mut running = vec![(0, 0)];
    if let Some(first) = made.first_mut() {
        *first = Some(Made::default());
    }
    while let Some((node, at)) = running.pop() {
        let Some(step) = tree.nodes[node].steps.get(at) else { continue };
        running.push((node, at + 1));
        let Some(mut own) = made[node] else { continue };
        match *step {
            Step::Adopt => own.adopts = true,
            Step::Lead => (own.pgid, own.sid) = (tree.nodes[node].pid, tree.nodes[node].pid),
            Step::OwnGroup => own.pgid = tree.nodes[node].pid,
            Step::Leave(_) => {}
            Step::Fork(child) | Step::Outside(child) => {
                let parent = match tree.nodes[node].role {
                    Role::Carrier => heir(&made, own.parent),
                    _ => node,
                };
                let outside = matches!(step, Step::Outside(_));
                let (pgid, sid) = if outside { (0, 0) } else { (own.pgid, own.sid) };
                made[child] = Some(Made { parent, pgid, sid, adopts: false });
                running.push((child, 0));
            }
        }
        made[node] = Some(own);
    }
    for (node, pgid) in &tree.joins {
        if let Some(made) = &mut made[*node] {
            made.pgid = *pgid;
        }
    }
    made
}

/// The next subreaper from here upwards, or pid 1.
fn heir(made: &[Option<Made>], from: usize) -> usize {
    let mut at = from;
    while at != 0 {
        match made[at] {
            Some(own) if !own.adopts => at = own.parent,
            _ => break,
        }
    }
    at
}

/// Would every process become what it shall be?
pub(super) fn check(tree: &Tree, members: &[Member]) -> Plan<()> {
    let made = carry_out(tree);
    for (member, node) in members.iter().zip(&tree.members) {
        let Some(node) = node else { continue };
        let ids = member.ids;
        let good = made[*node].is_some_and(|made| {
            let parent = tree.nodes[made.parent].pid;
            let same_parent = parent == ids.ppid || (ids.ppid == 0 && parent == 1);
            same_parent && made.pgid == ids.pgid && made.sid == ids.sid
        });
        if !good {
            let cause = "its place among parents, groups and sessions cannot be made by forks";
            return Err(refuse(ids.pid, cause));
        }
    }
    Ok(())
}
