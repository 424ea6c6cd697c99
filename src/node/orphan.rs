//! What the daemon answers for a job that has no supervisor on this node.
//!
//! The job's journal decides, and where it leaves a move open, the answer is written there
//! before it is given. Only the other node of a move is told about it.

use std::io;
use std::time::{Duration, SystemTime};

use crate::ids::{Epoch, JobId, MoveId, NodeId};
use crate::journal::{self, Journal, Record, Step};
use crate::migrate::message::Msg;
use crate::state::{JobMeta, StateDir};
use crate::supervisor::job::{is_supervised, lasting_presence, presence, Job, Presence};

/// How long the folder of a job that has gone on is kept, for those who look for the job.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The answer (a postcard header) to the first frame that the trusted `peer` sent for `job`,
/// whose supervisor is not there; None to close the connection without one.
#[must_use]
pub fn answer(state: &StateDir, job: JobId, peer: NodeId, header: &[u8]) -> Option<Vec<u8>> {
    let asked: Msg = postcard::from_bytes(header).ok()?;
    let answer = match asked {
        Msg::Ask(id) => decided(state, job, peer, id),
        Msg::Decided { id, commit: true } => confirmed(state, job, peer, id),
        Msg::Attach { .. } => whereabouts(state, job),
        _ => return None,
    };
    let answer = answer.unwrap_or_else(|e| {
        tracing::error!("job {job}, asked by {peer}: {e}");
        None
    });
    postcard::to_stdvec(&answer?).ok()
}

/// The folder of a job, locked. None: there is no such job here.
fn locked(state: &StateDir, job: JobId) -> io::Result<Option<Job>> {
    let dir = state.job(job);
    match dir.path().try_exists()? {
        true => Job::take_over(job, dir).map(Some),
        false => Ok(None),
    }
}

/// To a target in doubt: what this node, the source, has decided. A move that is not known
/// was given up.
fn decided(state: &StateDir, job: JobId, peer: NodeId, id: MoveId) -> io::Result<Option<Msg>> {
    let say = |commit| Ok(Some(Msg::Decided { id, commit }));
    let Some(taken) = locked(state, job)? else { return say(false) };
    taken.settle()?;
    let records = journal::read(&taken.dir.journal())?;
    match journal::last_of(&records, id) {
        None => say(false),
        Some(r) if r.peer != peer => Ok(None),
        Some(Record { step: Step::Commit | Step::Done, .. }) => say(true),
        Some(Record { step: Step::Abort, .. }) => say(false),
        Some(_) => Ok(None),
    }
}

/// To a source that repeats its COMMIT: whether the job has run here.
fn confirmed(state: &StateDir, job: JobId, peer: NodeId, id: MoveId) -> io::Result<Option<Msg>> {
    let lost = |epoch| Ok(Some(Msg::Gone { to: None, epoch }));
    let Some(taken) = locked(state, job)? else { return lost(Epoch(0)) };
    let path = taken.dir.journal();
    let records = journal::read(&path)?;
    let Some(last) = journal::last_of(&records, id) else { return lost(taken.meta.epoch) };
    if last.peer != peer {
        return Ok(None);
    }
    let runs = Ok(Some(Msg::Done { processes: Vec::new(), resumed_ns: 0, lost: Vec::new() }));
    let went_on = records.last().is_some_and(|r| r.id != id);
    match last.step {
        Step::Own if went_on => runs,
        // It ran if it outlived its supervisor; the copy that might not run yet did not.
        Step::Own => match lasting_presence(&taken.meta) {
            Presence::Here => runs,
            Presence::Leaving => Ok(None),
            Presence::Gone => lost(taken.meta.epoch),
        },
        Step::Prepared => {
            // Its process has died with its supervisor: nothing is left to run.
            let off = Record { step: Step::Abort, boot: journal::boot_id(), ..last.clone() };
            Journal::open(&path)?.write(&off)?;
            lost(taken.meta.epoch)
        }
        Step::Abort => lost(taken.meta.epoch),
        _ => Ok(None),
    }
}

/// To a home agent that looks for its job: where it went, or how it ended. A job that runs on
/// without its supervisor is waited for.
fn whereabouts(state: &StateDir, job: JobId) -> io::Result<Option<Msg>> {
    let Some(taken) = locked(state, job)? else { return Ok(Some(Msg::Lost)) };
    if let Some(exit) = taken.meta.exit {
        return Ok(Some(Msg::Exited(exit)));
    }
    Ok(match taken.settle()? {
        Some(Record { step: Step::Commit | Step::Done, epoch, peer, peer_name, .. }) => {
            Some(Msg::Gone { to: Some((peer, peer_name)), epoch: epoch.next() })
        }
        // Nothing was to kill it along with its supervisor: one look is enough.
        Some(Record { step: Step::Own, .. }) => match presence(&taken.meta) {
            Presence::Gone => Some(Msg::Lost),
            Presence::Here | Presence::Leaving => None,
        },
        _ => None,
    })
}

/// Has the job only passed this node, or never run on it? `last` is its journal's last
/// record; no supervisor has it.
#[must_use]
pub fn has_passed(meta: &JobMeta, last: Option<&Record>) -> bool {
    let open = [Step::Intent, Step::Sealed, Step::Commit, Step::Own];
    let home = meta.agent.is_none();
    let left = meta.host.is_none() && !last.is_some_and(|r| open.contains(&r.step));
    !home && (left || meta.exit.is_some())
}

/// Removes the folders of jobs that passed this node more than a day ago.
///
/// # Errors
/// When the folders cannot be listed.
pub fn sweep(state: &StateDir, now: SystemTime) -> io::Result<()> {
    for (id, dir) in state.jobs()? {
        let changed = std::fs::metadata(dir.journal()).and_then(|m| m.modified());
        let age = changed.ok().and_then(|at| now.duration_since(at).ok());
        if age.is_none_or(|age| age < KEPT) || is_supervised(&dir) {
            continue;
        }
        let passed = locked(state, id).ok().flatten().is_some_and(|job| {
            let last = journal::last(&job.dir.journal());
            last.is_ok_and(|last| has_passed(&job.meta, last.as_ref()))
        });
        if passed {
            tracing::info!("job {id} passed this node a day ago: its folder is removed");
            dir.remove()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::job::start_time;

    const PEER: NodeId = NodeId([9; 32]);
    const JOB: JobId = JobId([7; 16]);
    const MOVE: MoveId = MoveId([1, 2, 3, 4]);

    struct Scene {
        _tmp: tempfile::TempDir,
        state: StateDir,
    }

    /// A job's folder whose journal has these steps; its process lives or is gone.
    fn scene(steps: &[Step], alive: bool, boot: &str) -> Scene {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(tmp.path()).unwrap();
        let own = std::process::id() as i32;
        let start = start_time(own).unwrap();
        let host = Some((own, if alive { start } else { start + 1 }));
        let new = JobMeta::new("x".into(), vec!["x".into()], "a".into(), 1);
        let meta = JobMeta { pid: 1, host, epoch: Epoch(4), filtered: true, ..new };
        state.job(JOB).create().unwrap();
        state.job(JOB).set_meta(&meta).unwrap();
        let mut journal = Journal::open(&state.job(JOB).journal()).unwrap();
        for &step in steps {
            let (peer, peer_name) = (PEER, "b".to_owned());
            let boot = boot.to_owned();
            journal
                .write(&Record { step, id: MOVE, epoch: Epoch(4), peer, peer_name, boot })
                .unwrap();
        }
        Scene { _tmp: tmp, state }
    }

    fn ask(s: &Scene, peer: NodeId, msg: &Msg) -> Option<Msg> {
        let header = postcard::to_stdvec(msg).unwrap();
        let answer = answer(&s.state, JOB, peer, &header)?;
        Some(postcard::from_bytes(&answer).unwrap())
    }

    fn last(s: &Scene) -> Step {
        journal::last(&s.state.job(JOB).journal()).unwrap().unwrap().step
    }

    fn decision(s: &Scene) -> Option<bool> {
        match ask(s, PEER, &Msg::Ask(MOVE)) {
            Some(Msg::Decided { id: MOVE, commit }) => Some(commit),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_target_in_doubt_is_told_what_the_journal_says() {
        use Step::{Abort, Commit, Done, Intent, Own, Prepared, Sealed};
        let (this, other) = (journal::boot_id(), "another");
        /// Steps, process alive, boot; the answer, the last step then.
        type Case<'a> = (&'a [Step], bool, &'a str, Option<bool>, Step);
        let cases: [Case; 12] = [
            (&[Intent, Commit], false, &this, Some(true), Commit),
            (&[Intent, Commit, Done], false, &this, Some(true), Done),
            (&[Intent, Abort], true, &this, Some(false), Abort),
            // Taken back by a person, after which nothing may run at the target.
            (&[Intent, Commit, Abort], true, &this, Some(false), Abort),
            (&[Intent], true, &this, Some(false), Abort),
            (&[Intent, Sealed], true, &this, Some(false), Abort),
            (&[Intent, Sealed], false, &this, Some(true), Commit),
            // It has run on without its supervisor, and ended.
            (&[Intent], false, &this, Some(false), Abort),
            (&[Intent], false, other, Some(true), Commit),
            // Whether it ran on or went down with the machine, nobody knows.
            (&[Intent], false, "", None, Intent),
            (&[Intent], true, "", Some(false), Abort),
            (&[Prepared, Own], true, &this, None, Own),
        ];
        for (steps, alive, boot, wanted, after) in cases {
            let s = scene(steps, alive, boot);
            assert_eq!(decision(&s), wanted, "{steps:?} alive {alive}");
            assert_eq!(last(&s), after, "{steps:?}");
            assert_eq!(decision(&s), wanted, "{steps:?}: the second answer is another one");
        }
    }

    #[test]
    fn unknown_moves_were_given_up() {
        let s = scene(&[], true, "");
        assert_eq!(decision(&s), Some(false));
        s.state.job(JOB).remove().unwrap();
        assert_eq!(decision(&s), Some(false));
        assert!(!s.state.job(JOB).path().exists());
    }

    #[test]
    fn a_stranger_to_the_move_is_told_nothing() {
        let s = scene(&[Step::Intent], true, "");
        assert!(ask(&s, NodeId([8; 32]), &Msg::Ask(MOVE)).is_none());
        let s = scene(&[Step::Prepared], false, "");
        let decided = Msg::Decided { id: MOVE, commit: true };
        assert!(ask(&s, NodeId([8; 32]), &decided).is_none());
        assert_eq!(last(&s), Step::Prepared);
        assert!(answer(&s.state, JOB, PEER, b"\xff\xff\xff").is_none());
    }

    #[test]
    fn a_supervised_job_is_left_to_its_supervisor() {
        let s = scene(&[Step::Intent], true, "");
        let _held = Job::take_over(JOB, s.state.job(JOB)).unwrap();
        assert_eq!(decision(&s), None);
        assert_eq!(last(&s), Step::Intent);
    }

    #[test]
    fn a_source_that_repeats_commit_learns_whether_it_ran() {
        use Step::{Done, Own, Prepared};
        let repeat = |s: &Scene| ask(s, PEER, &Msg::Decided { id: MOVE, commit: true });
        let lost = |m: Option<Msg>| matches!(m, Some(Msg::Gone { to: None, .. }));
        let runs = |m: Option<Msg>| matches!(m, Some(Msg::Done { .. }));
        let s = scene(&[Prepared], false, "");
        assert!(lost(repeat(&s)));
        assert_eq!(last(&s), Step::Abort, "it must never run here any more");
        assert!(lost(repeat(&scene(&[Prepared, Own], false, ""))));
        assert!(lost(repeat(&scene(&[], false, ""))));
        assert!(runs(repeat(&scene(&[Prepared, Own], true, ""))));
        let s = scene(&[Prepared, Own], false, "");
        let on = Record {
            step: Done,
            id: MoveId([5; 4]),
            ..journal::last(&s.state.job(JOB).journal()).unwrap().unwrap()
        };
        Journal::open(&s.state.job(JOB).journal()).unwrap().write(&on).unwrap();
        assert!(runs(repeat(&s)), "it ran here and went on");
    }

    #[test]
    fn a_home_agent_is_told_where_the_job_went() {
        let attach = Msg::Attach { epoch: Epoch(2), stopped: false, next: 0 };
        let s = scene(&[Step::Intent, Step::Done], false, "");
        let Some(Msg::Gone { to: Some((PEER, name)), epoch }) = ask(&s, NodeId([8; 32]), &attach)
        else {
            panic!("no answer")
        };
        assert_eq!((name.as_str(), epoch), ("b", Epoch(5)));
        assert!(ask(&scene(&[Step::Own], true, ""), PEER, &attach).is_none());
    }

    #[test]
    fn a_home_agent_is_told_how_the_job_ended() {
        let attach = Msg::Attach { epoch: Epoch(2), stopped: false, next: 0 };
        let s = scene(&[Step::Prepared, Step::Own], false, "");
        assert!(matches!(ask(&s, PEER, &attach), Some(Msg::Lost)));
        let exit = crate::tracer::Exit::Code(3);
        let meta = JobMeta { exit: Some(exit), ..s.state.job(JOB).meta().unwrap() };
        s.state.job(JOB).set_meta(&meta).unwrap();
        assert!(matches!(ask(&s, PEER, &attach), Some(Msg::Exited(e)) if e == exit));
        s.state.job(JOB).remove().unwrap();
        assert!(matches!(ask(&s, PEER, &attach), Some(Msg::Lost)));
    }

    #[test]
    fn folders_of_jobs_that_passed_are_removed_after_a_day() {
        let day = SystemTime::now() + KEPT + Duration::from_secs(60);
        for (step, agent, kept) in [
            (Step::Done, true, false),
            (Step::Abort, true, false),
            (Step::Commit, true, true),
            (Step::Done, false, true),
        ] {
            let s = scene(&[Step::Intent, step], false, "");
            let mut meta = s.state.job(JOB).meta().unwrap();
            meta.host = None;
            meta.agent = agent.then(|| (PEER, "b".into()));
            s.state.job(JOB).set_meta(&meta).unwrap();
            sweep(&s.state, SystemTime::now()).unwrap();
            assert!(s.state.job(JOB).path().exists(), "{step:?}: removed too early");
            sweep(&s.state, day).unwrap();
            assert_eq!(s.state.job(JOB).path().exists(), kept, "{step:?}");
        }
    }
}
