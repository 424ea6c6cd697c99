//! Moves to nodes that make no namespaces: the job's numbers are translated there.

use anyhow::{bail, ensure, Context, Result};

use crate::common::job::{Job, Start};
use crate::common::runner::Worker;
use crate::common::Who;
use crate::{check_output, Guest, Talk};

/// What becomes of a guest that is not to move to a node without namespaces.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Moves of these users' jobs are refused, by VOS-TRANSLATE.
    Refused,
    /// The same whenever it holds what cannot be there, which comes and goes.
    RefusedAtTimes,
    /// The guest sees something that docs/limits.md tells of.
    Differs(&'static str),
}

const BOTH: &[Who] = &[Who::Root, Who::User];

const TRANSLATION: &[(&str, &[Who], Fate)] = &[
    ("tcp_stream+4", BOTH, Fate::Refused),
    ("tcp_stream+6", BOTH, Fate::Refused),
    ("tcp_stream+mapped", BOTH, Fate::Refused),
    ("tcp_names+4", BOTH, Fate::Refused),
    ("tcp_names+6", BOTH, Fate::Refused),
    ("tcp_queue", BOTH, Fate::Refused),
    ("tcp_half", BOTH, Fate::Refused),
    ("tcp_full", BOTH, Fate::Refused),
    ("tcp_blocked", BOTH, Fate::Refused),
    ("tcp_reset", BOTH, Fate::Refused),
    ("tcp_shared", BOTH, Fate::Refused),
    ("tcp_turns", BOTH, Fate::Refused),
    ("tcp_server", BOTH, Fate::Refused),
    ("tcp_server+blocking", BOTH, Fate::Refused),
    ("tcp_server+any4", BOTH, Fate::Refused),
    ("tcp_server+v6only+blocking", BOTH, Fate::Refused),
    ("tcp_server+group", BOTH, Fate::Refused),
    ("tcp_crowd", BOTH, Fate::Refused),
    ("tcp_backlog", BOTH, Fate::Refused),
    ("udp_server+one", BOTH, Fate::Refused),
    ("udp_server+any4", BOTH, Fate::Refused),
    ("udp_server+any6", BOTH, Fate::Refused),
    ("udp_server+info", BOTH, Fate::Refused),
    ("udp_server+group", BOTH, Fate::Refused),
    ("udp_names+4", BOTH, Fate::Refused),
    ("udp_names+6", BOTH, Fate::Refused),
    ("udp_names+mapped", BOTH, Fate::Refused),
    ("udp_queue", BOTH, Fate::Refused),
    ("udp_refused+4", BOTH, Fate::Refused),
    ("udp_refused+6", BOTH, Fate::Refused),
    ("seccomp_own_pid", BOTH, Fate::Refused),
    ("clone_signal", BOTH, Fate::Refused),
    ("exit_signal", BOTH, Fate::Refused),
    ("seccomp_later", BOTH, Fate::RefusedAtTimes),
    ("mem_layout", BOTH, Fate::Differs("the kernel's vdso is one mapping more there")),
    ("fd_proc", BOTH, Fate::Differs("what is read of `status` has the target's numbers there")),
    (
        "sig_order",
        BOTH,
        Fate::Differs("the thread that sends is no faster there than those that receive"),
    ),
    ("pidfd_thread", BOTH, Fate::Differs("fdinfo has the target's numbers there")),
];

/// `check` and `migrate` refuse the job, which goes on.
fn refused_by_name(mut job: Job<'_>, code: &str) -> Result<()> {
    let refused = job.try_migrate(1)?;
    ensure!(refused.code() == 10, "a refused move ended with {}", refused.code());
    ensure!(refused.stdout.contains(code), "not {code}: {}", refused.stdout);
    job.await_progress(3)?;
    job.finish().map(drop)
}

/// As [`refused_by_name`], before the freeze or at it, or the job moves.
fn refused_at_times(mut job: Job<'_>) -> Result<()> {
    for to in [1, 2, 1, 2] {
        let ended = job.try_migrate(to)?;
        let refused = [10, 11].contains(&ended.code()) && ended.stdout.contains("VOS-TRANSLATE");
        ensure!(ended.code() == 0 || refused, "{}: {}", ended.code(), ended.stdout);
        if ended.code() == 0 {
            job.at = to;
            break;
        }
        job.await_progress(3)?;
    }
    job.await_progress(3)?;
    job.finish().map(drop)
}

/// Moves between nodes that make no namespaces, because they may not or are not to.
pub fn translated(guest: Guest, start: Start, who: Who, worker: &mut Worker) -> Result<()> {
    if let (Start::Attached, Some((by, why))) = (start, guest.launched_only) {
        ensure!(!by.contains(&who), "SKIP {why}");
    }
    let hosts = match who {
        Who::Root => worker.hosts(who)?,
        Who::User => worker.refusing_hosts()?,
    };
    let fate = TRANSLATION.iter().find(|(name, ..)| *name == guest.name());
    if let Some((.., Fate::Differs(why))) = fate {
        bail!("SKIP {why}");
    }
    let Talk { mut job, peer } = Talk::start(hosts, start, guest)?;
    job.translate = who == Who::Root;
    job.await_ready()?;
    if let Some((_, by, Fate::Refused)) = fate {
        if by.contains(&who) {
            refused_by_name(job, "VOS-TRANSLATE")?;
            return peer.map_or(Ok(()), |peer| peer.finish().map(drop));
        }
    }
    if let Some((.., Fate::RefusedAtTimes)) = fate {
        return refused_at_times(job);
    }
    for (turn, to) in [1, 2, 0, 1, 2, 1].into_iter().enumerate() {
        job.migrate(to).with_context(|| format!("move {turn}, to host {to}"))?;
        if turn % 3 != 0 {
            job.await_progress(2).with_context(|| format!("after move {turn}"))?;
        }
    }
    job.await_progress(3)?;
    check_output(guest, &job.finish()?)
}

/// Is it about what the kernel numbers, names or shares besides processes?
pub fn has_objects(guest: &Guest) -> bool {
    let moves = TRANSLATION.iter().all(|(name, ..)| *name != guest.name());
    moves
        && ["sysv_", "posix_mq", "mq_", "clone_", "pty_", "signalfd_"]
            .iter()
            .any(|kind| guest.source.starts_with(kind))
}

/// Moves to nodes with namespaces and to those without, in turns: what is made at one is the same at
/// the next.
pub fn mixed(guest: Guest, start: Start, who: Who, worker: &mut Worker) -> Result<()> {
    if let (Start::Attached, Some((by, why))) = (start, guest.launched_only) {
        ensure!(!by.contains(&who), "SKIP {why}");
    }
    let Talk { mut job, .. } = Talk::start(worker.hosts(who)?, start, guest)?;
    job.await_ready()?;
    let turns = [(1, true), (2, false), (0, true), (1, false), (2, true), (0, false), (1, true)];
    for (turn, (to, translate)) in turns.into_iter().enumerate() {
        job.translate = translate;
        job.migrate(to).with_context(|| format!("move {turn}, to host {to}"))?;
        job.await_progress(3).with_context(|| format!("after move {turn}"))?;
    }
    check_output(guest, &job.finish()?)
}
