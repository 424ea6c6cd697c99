//! What processes have in common by clone(2): which forks of the plan share it.
//!
//! A child gets a share of what its parent has by a flag of clone(2), and in no other way. So all
//! forks on the way between two processes that share something are made with its flag, and who
//! lies between them without sharing it leaves it afterwards (unshare(2)). Memory and signal
//! handlers cannot be left.

use std::collections::BTreeMap;

use super::{Draft, Node, Plan, Step, Tree};
use crate::control::Finding;
use crate::migrate::raw::Shared;
use crate::migrate::resource::blocker;
use crate::migrate::shares::{flag, KINDS};

use super::Member;

/// The code of a refusal.
pub(super) const CODE: &str = "VOS-SHARED-TASK";

fn refuse(pids: &[i32], what: Shared) -> Box<Finding> {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    Box::new(blocker(
        CODE,
        format!("processes {}", pids.join(" and ")),
        &format!(
            "they share their {} in a way that their places in the tree do not allow to make anew",
            flag(what).1
        ),
        "wait until one of them has ended",
    ))
}

/// Who forks each process of the plan.
fn forkers(drafts: &[Draft]) -> Vec<Option<usize>> {
    let mut forkers = vec![None; drafts.len()];
    for (node, draft) in drafts.iter().enumerate() {
        for child in draft.before.iter().chain(&draft.after) {
            forkers[*child] = Some(node);
        }
    }
    forkers
}

/// Notes in the plan which forks share what. `outside`: the root is forked by H.
pub(super) fn plan(
    tree: &mut Tree,
    drafts: &[Draft],
    members: &[Member],
    outside: bool,
) -> Plan<()> {
    let mut forkers = forkers(drafts);
    if let (true, Some(root)) = (outside, tree.members.first().copied().flatten()) {
        forkers[root] = None;
    }
    for (index, (member, node)) in members.iter().zip(&tree.members).enumerate() {
        let Some(node) = *node else { continue };
        let own = &mut tree.nodes[node];
        own.exit_signal = member.shares.exit_signal.filter(|_| index > 0);
    }
    for what in KINDS {
        let mut groups: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
        for (member, node) in members.iter().zip(&tree.members) {
            if let Some((first, node)) = member.shares.first(what).zip(*node) {
                groups.entry(first).or_default().push(node);
            }
        }
        let mut taken = vec![false; tree.nodes.len()];
        for group in groups.into_values().filter(|group| group.len() > 1) {
            join(&mut tree.nodes, &forkers, &group, what, &mut taken)?;
        }
    }
    for (member, node) in members.iter().zip(&tree.members) {
        if let (Some(_), Some(node)) = (member.shares.first(Shared::Files), node) {
            tree.nodes[*node].above = member.shares.above;
        }
    }
    Ok(())
}

/// Has one group of processes share this. `taken` are processes that have shared it with another
/// group.
fn join(
    nodes: &mut [Node],
    forkers: &[Option<usize>],
    group: &[usize],
    what: Shared,
    taken: &mut [bool],
) -> Plan<()> {
    let pids = |nodes: &[Node]| group.iter().map(|node| nodes[*node].pid).collect::<Vec<_>>();
    let path = |node: usize| std::iter::successors(Some(node), |at| forkers[*at]);
    // How many of the group are below each, or are it.
    let mut below: BTreeMap<usize, usize> = BTreeMap::new();
    for node in group.iter().flat_map(|node| path(*node)) {
        *below.entry(node).or_default() += 1;
    }
    let top = path(group[0]).find(|node| below[node] == group.len());
    let top = top.ok_or_else(|| refuse(&pids(nodes), what))?;
    for node in below.keys().filter(|node| **node == top || below[*node] < group.len()) {
        let own = group.contains(node);
        let can_leave = !matches!(what, Shared::Memory | Shared::Handlers);
        if std::mem::replace(&mut taken[*node], true) || (!own && !can_leave) {
            return Err(refuse(&pids(nodes), what));
        }
        let flag = flag(what).0;
        let it = &mut nodes[*node];
        if *node != top {
            it.flags |= flag;
        }
        if !own {
            it.steps.push(Step::Leave(flag));
        }
    }
    Ok(())
}
