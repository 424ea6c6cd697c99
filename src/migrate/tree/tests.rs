//! Shapes of trees, each carried out as the kernel would.

use super::groups::carry_out;
use super::*;
use crate::migrate::raw::Shared;
use crate::migrate::shares::Shares;

/// "pid ppid pgid sid", and "Z" for one that has ended with exit code 7.
fn members(text: &str) -> Vec<Member> {
    let member = |line: &str| {
        let mut words = line.split_whitespace();
        let mut next = || words.next().and_then(|w| w.parse().ok()).expect("a number");
        let ids = Ids { pid: next(), ppid: next(), pgid: next(), sid: next() };
        let ended = (words.next() == Some("Z")).then_some(7 << 8);
        Member { ids, ended, shares: Shares::default() }
    };
    text.split(',').map(member).collect()
}

/// Makes the plan and checks that each becomes what it was.
fn good(text: &str) -> Tree {
    let members = members(text);
    let tree = plan(&members).unwrap_or_else(|f| panic!("{text}: {f:?}"));
    let made = carry_out(&tree);
    assert!(made.iter().all(Option::is_some), "{text}: {tree:?}");
    let pids: BTreeSet<i32> = tree.nodes.iter().map(|n| n.pid).collect();
    assert_eq!(pids.len(), tree.nodes.len(), "{text}");
    tree
}

fn roles(tree: &Tree, role: Role) -> Vec<i32> {
    tree.nodes.iter().filter(|n| n.role == role).map(|n| n.pid).collect()
}

fn refused(text: &str, pid: i32) {
    let finding = plan(&members(text)).expect_err(text);
    assert_eq!(finding.code, "VOS-TREE");
    assert_eq!(finding.object, format!("process {pid}"), "{text}");
}

#[test]
fn one_process_with_all_its_stand_ins() {
    let tree = good("50 40 30 20");
    assert_eq!(roles(&tree, Role::Leader), [20]);
    assert_eq!(roles(&tree, Role::GroupLeader), [30]);
    assert_eq!(roles(&tree, Role::Parent), [40]);
    assert_eq!(tree.guardian.map(|g| tree.nodes[g].pid), Some(40));
    good("50 1 50 50");
    good("50 20 20 20");
    good("50 20 50 20");
    good("50 1 20 20");
    good("50 1 1 1");
    good("50 1 1 0");
    good("50 40 40 20");
    good("50 40 0 0");
    good("50 40 40 1");
    assert!(good("50 40 50 50").guardian.is_some());
}

#[test]
fn a_parent_outside_of_the_namespace() {
    let tree = good("50 0 50 50,51 50 50 50,52 1 52 50");
    assert!(tree.nodes[0].steps.iter().any(|s| matches!(s, Step::Outside(_))));
    good("50 0 0 0,51 50 51 0");
    good("50 0 30 0,51 50 30 0,52 50 0 0");
}

#[test]
fn shell_with_background_jobs() {
    let tree = good("50 1 50 50,51 50 51 50,52 50 51 50,53 50 53 50,54 53 53 50");
    assert!(tree.ghosts.is_empty());
    assert!(roles(&tree, Role::Carrier).is_empty());
}

#[test]
fn pipeline_whose_first_member_is_dead() {
    let tree = good("50 40 50 50,52 50 51 50,53 50 51 50");
    assert_eq!(roles(&tree, Role::Ghost), [51]);
    // Not yet waited for, it leads its group by itself.
    let tree = good("50 40 50 50,51 50 51 50 Z,52 50 51 50");
    assert!(tree.ghosts.is_empty());
    // Reaped by pid 1.
    let tree = good("50 40 50 50,51 1 51 50 Z,52 50 51 50");
    assert_eq!(roles(&tree, Role::Ghost), [51]);
    assert_eq!(tree.members[1], None);
}

#[test]
fn daemons() {
    // By a double fork: its session's leader is dead.
    let tree = good("50 40 50 50,53 1 52 52,54 53 52 52,55 53 55 52");
    assert_eq!(roles(&tree, Role::Ghost), [52]);
    // Left behind by the shell, in the session of the shell.
    let tree = good("50 40 50 50,53 1 50 50,54 1 54 50,56 1 55 50");
    assert_eq!(roles(&tree, Role::Ghost), [55]);
    // In the session that a stand-in leads.
    good("50 40 30 20,53 1 30 20,54 1 54 20,56 1 55 20,57 1 20 20,58 53 40 20");
    // The root was made by an ancestor in the session, and left it.
    good("50 1 50 50,51 50 51 51,52 51 51 51,53 1 51 51");
    // It leads its session.
    let tree = good("50 1 50 50,51 1 51 51,52 51 51 51");
    assert!(tree.ghosts.is_empty());
}

#[test]
fn nested_sessions() {
    // Forked before the parent's setsid, once and over two generations.
    let tree = good("50 1 50 50,51 50 51 51,52 51 50 50,53 51 51 51");
    let parent = tree.nodes.iter().find(|n| n.pid == 51).expect("51");
    assert!(matches!(parent.steps[..], [Step::Fork(_), Step::Lead, Step::Fork(_)]));
    good("50 1 50 50,51 50 51 51,52 51 52 52,53 52 50 50,54 52 52 52");
    good("50 1 0 0,51 50 51 51,52 51 0 0");
    good("50 1 50 50,51 50 0 0");
    // 52 was born in 51's session, and 54 in 50's, through 51.
    good("50 1 50 50,51 50 51 51,52 51 52 52,53 52 51 51,54 51 50 50");
}

#[test]
fn orphans_of_a_subreaper() {
    let tree = good("50 40 50 50,53 50 52 52,54 50 54 52,55 53 52 52");
    assert_eq!(roles(&tree, Role::Ghost), [52]);
    let root = tree.nodes.iter().find(|n| n.pid == 50).expect("50");
    assert_eq!(root.steps[0], Step::Adopt);
    // The session's leader lives below the subreaper.
    good("50 40 50 50,51 50 51 51,53 50 51 51");
    // The child has what was the session of its parent before that one led one.
    good("50 40 50 50,53 50 20 20");
}

#[test]
fn group_leader_that_moved_on() {
    let tree = good("50 1 50 50,51 50 52 50,52 50 53 50,53 50 53 50");
    assert_eq!(tree.joins.last().map(|(node, _)| tree.nodes[*node].pid), Some(52));
}

#[test]
fn long_chains_and_wide_stars() {
    let line = |pid: i32, ppid: i32| format!("{pid} {ppid} 10 10");
    let chain: Vec<String> = (10..5010).map(|pid| line(pid, (pid - 1).max(9))).collect();
    assert_eq!(good(&chain.join(",")).nodes.len(), 5002);
    let star: Vec<String> =
        (10..5010).map(|pid| line(pid, if pid == 10 { 9 } else { 10 })).collect();
    good(&star.join(","));
    let leaders = |pid: i32| format!("{pid} {} {pid} {pid}", (pid - 1).max(9));
    let chain: Vec<String> = (10..5010).map(leaders).collect();
    good(&chain.join(","));
}

#[test]
fn refused_shapes() {
    refused("50 1 50 50,51 77 50 50", 51);
    refused("50 1 50 50,51 52 50 50,52 51 50 50", 51);
    refused("50 1 50 50,50 1 50 50", 50);
    refused("50 1 50 50 Z", 50);
    refused("50 1 50 50,51 50 51 50 Z,52 51 50 50", 52);
    refused("50 1 50 50,51 50 60 51", 51);
    refused("50 1 50 50,51 50 51 51,52 51 50 51", 52);
    refused("50 1 50 50,51 50 51 52,52 50 52 50", 51);
    // In a session that its subreaper's other child leads, but no descendant of the subreaper.
    refused("50 1 50 50,51 50 51 51,52 50 52 52,53 51 52 52", 53);
    refused("1 0 1 1", 1);
    refused("50 1 50 50,51 50 1 1,52 50 0 0", 52);
    let many: Vec<String> = (10..5011).map(|pid| format!("{pid} 1 {pid} {pid}")).collect();
    refused(&many.join(","), 10);
}

/// What these processes have in common, too: "what first pids".
fn sharing(text: &str, shared: &[(Shared, &[i32])]) -> Plan<Tree> {
    let mut members = members(text);
    for (what, pids) in shared {
        for member in members.iter_mut().filter(|m| pids.contains(&m.ids.pid)) {
            member.shares.set(*what, pids.first().copied());
        }
    }
    plan(&members)
}

fn node(tree: &Tree, pid: i32) -> &Node {
    tree.nodes.iter().find(|n| n.pid == pid).expect("a process of the plan")
}

#[test]
fn forks_share_what_the_processes_share() {
    const FILES: i32 = libc::CLONE_FILES;
    let family = "50 40 50 50,51 50 50 50,52 51 52 52,53 50 50 50";
    let tree = sharing(family, &[(Shared::Files, &[50, 51]), (Shared::Memory, &[51, 52])]);
    let tree = tree.expect("plan");
    assert_eq!([50, 51, 52, 53].map(|pid| node(&tree, pid).flags), [0, FILES, libc::CLONE_VM, 0]);
    // Who is in between has it for a while.
    let tree = sharing(family, &[(Shared::Files, &[50, 52]), (Shared::Directories, &[53, 51])]);
    let tree = tree.expect("plan");
    assert_eq!(node(&tree, 51).flags, FILES | libc::CLONE_FS);
    assert_eq!(node(&tree, 51).steps.last(), Some(&Step::Leave(FILES)));
    assert_eq!(node(&tree, 50).steps.last(), Some(&Step::Leave(libc::CLONE_FS)));
}

#[test]
fn orphans_share_through_pid_1_what_can_be_left() {
    let orphans = "50 40 50 50,51 1 51 51,52 1 52 52,53 1 53 53,54 1 54 54";
    let tree = sharing(orphans, &[(Shared::Files, &[53, 54])]).expect("plan");
    assert_eq!(tree.nodes[0].steps.last(), Some(&Step::Leave(libc::CLONE_FILES)));
    for shared in [
        &[(Shared::Memory, &[53, 54][..])][..],
        // Pid 1 cannot have the tables of both pairs.
        &[(Shared::Files, &[53, 54]), (Shared::Files, &[51, 52])],
    ] {
        let finding = sharing(orphans, shared).expect_err("no way");
        assert_eq!(finding.code, "VOS-SHARED-TASK");
    }
    // The root's parent is outside of the namespace, and so is who forks it.
    let outside = "50 0 50 50,51 50 50 50,52 1 52 52";
    assert!(sharing(outside, &[(Shared::Files, &[50, 51])]).is_ok());
    assert!(sharing(outside, &[(Shared::Files, &[51, 52])]).is_err());
}
