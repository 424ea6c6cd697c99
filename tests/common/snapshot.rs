//! What /proc shows of processes: compared before a move that comes to nothing, and after it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use super::{procs, until, SOON};

/// All that /proc shows of a process, but counters and what a sleep is in at the moment.
pub type Snapshot = BTreeMap<String, String>;

/// Lines of proc_pid_status(5) that count (SigQ: for the whole user), or tell of the tracer.
const COUNTERS: [&str; 12] = [
    "State",
    "SigQ",
    "TracerPid",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
    "VmRSS",
    "VmHWM",
    "VmPeak",
    "VmPTE",
    "RssAnon",
    "RssFile",
    "RssShmem",
];

/// Fields of proc_pid_stat(5) that count, or tell where a thread is at the moment: state, flags,
/// faults and times, resident pages, registers, where it sleeps, processor, block I/O delays,
/// guest times.
const MOMENTARY: [usize; 18] =
    [3, 9, 10, 11, 12, 13, 14, 15, 16, 17, 24, 29, 30, 35, 39, 42, 43, 44];

fn status(text: &str) -> String {
    let kept = |l: &&str| !COUNTERS.iter().any(|c| l.split(':').next() == Some(c));
    text.lines().filter(kept).collect::<Vec<_>>().join("\n")
}

fn stat(text: &str) -> Result<String> {
    let (comm, rest) = text.rsplit_once(") ").context("stat")?;
    let fields = rest.split_whitespace().zip(3..).filter(|(_, n)| !MOMENTARY.contains(n));
    Ok(format!("{comm}) {}", fields.map(|(f, _)| f).collect::<Vec<_>>().join(" ")))
}

/// # Errors
/// When the process ends meanwhile.
pub fn snapshot(pid: i32) -> Result<Snapshot> {
    let root = format!("/proc/{pid}");
    let mut all = Snapshot::new();
    for name in ["maps", "timers", "limits", "personality", "coredump_filter", "oom_score_adj"] {
        all.insert(name.into(), fs::read_to_string(format!("{root}/{name}"))?);
    }
    for entry in fs::read_dir(format!("{root}/fd"))? {
        let fd = entry?.file_name().to_string_lossy().into_owned();
        let link = fs::read_link(format!("{root}/fd/{fd}"))?;
        all.insert(format!("fd/{fd}"), link.display().to_string());
        let info = fs::read_to_string(format!("{root}/fdinfo/{fd}"))?;
        all.insert(format!("fdinfo/{fd}"), info);
    }
    for entry in fs::read_dir(format!("{root}/task"))? {
        let tid = entry?.file_name().to_string_lossy().into_owned();
        let task = format!("{root}/task/{tid}");
        all.insert(format!("status {tid}"), status(&fs::read_to_string(format!("{task}/status"))?));
        all.insert(format!("stat {tid}"), stat(&fs::read_to_string(format!("{task}/stat"))?)?);
        let asleep = procs::state(tid.parse()?) == Some('S');
        all.insert(format!("sleeps {tid}"), asleep.to_string());
    }
    Ok(all)
}

/// The process comes to look as before; the first difference otherwise.
pub fn await_same(pid: i32, before: &Snapshot) -> Result<()> {
    let mut differs = String::new();
    let same = until(SOON, "the process looks as before", || {
        let now = snapshot(pid)?;
        let names = before.keys().chain(now.keys());
        let other = names.clone().find(|name| before.get(*name) != now.get(*name));
        let Some(name) = other else { return Ok(Some(())) };
        differs = format!("{name}: {:?}, then {:?}", before.get(name), now.get(name));
        Ok(None)
    });
    same.with_context(|| differs)
}

/// A tree of processes, zombies included, by pid.
pub type Tree = BTreeMap<i32, Snapshot>;

/// `root` and its descendants, zombies included.
pub fn members(root: i32) -> Vec<i32> {
    let mut all = vec![root];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(list.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
        }
        at += 1;
    }
    all
}

/// As [`snapshot`], with what must be the same too while one supervisor has the processes: their
/// tracer and the state of each thread. (Where it sleeps is not: a call that was started again sleeps
/// elsewhere in the kernel.)
fn snapshot_in_tree(pid: i32) -> Result<Snapshot> {
    let mut all = Snapshot::new();
    if procs::state(pid) != Some('Z') {
        all = snapshot(pid)?;
    }
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = entry?.path();
        let text = fs::read_to_string(task.join("status"))?;
        for name in ["State:", "TracerPid:"] {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            all.insert(format!("{name} {}", task.display()), line.trim().to_owned());
        }
    }
    Ok(all)
}

/// Of a whole tree.
///
/// # Errors
/// When a process ends meanwhile.
pub fn tree(root: i32) -> Result<Tree> {
    members(root).into_iter().map(|pid| Ok((pid, snapshot_in_tree(pid)?))).collect()
}

/// Does a thread of the tree run?
pub fn is_running(tree: &Tree) -> bool {
    let states = tree.values().flatten().filter(|(name, _)| name.starts_with("State:"));
    { states }.any(|(_, state)| state.starts_with('R'))
}

/// The tree comes to look as before; the first difference otherwise.
///
/// # Errors
/// When it does not.
pub fn await_same_tree(root: i32, before: &Tree) -> Result<()> {
    let mut differs = String::new();
    let same = until(SOON, "the tree looks as before", || {
        let now = tree(root)?;
        differs = first_difference(before, &now).unwrap_or_default();
        Ok(differs.is_empty().then_some(()))
    });
    same.with_context(|| differs)
}

fn first_difference(before: &Tree, now: &Tree) -> Option<String> {
    let pids = before.keys().chain(now.keys());
    for pid in pids {
        let (Some(was), Some(is)) = (before.get(pid), now.get(pid)) else {
            return Some(format!("process {pid} is new or gone"));
        };
        let mut names = was.keys().chain(is.keys());
        if let Some(name) = names.find(|name| was.get(*name) != is.get(*name)) {
            let (was, is) = (was.get(name), is.get(name));
            return Some(format!("process {pid}: {name}: {was:?}, then {is:?}"));
        }
    }
    None
}
