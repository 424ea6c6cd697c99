//! A session stops every thread of a program that makes threads all the time, and lets
//! them go again.

use std::time::Instant;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use vosrun::migrate::freeze;
use vosrun::supervisor::session::Session;
use vosrun::syscalls::handles::Handles;
use vosrun::tracer::{attach, stop};

use crate::support::*;

fn threads(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|t| t.file_name().to_str()?.parse().ok()).collect()
}

/// Takes the stops there are; only of this process's threads, as other tests have theirs.
fn take_stops(session: &mut Session) {
    for tid in threads(session.root) {
        if let Ok(Some(wait)) = stop::wait(tid, false) {
            session.take(wait).unwrap();
        }
    }
}

fn all_stopped(pid: i32) -> bool {
    let mut states = threads(pid).into_iter().filter_map(|tid| field(tid, "State"));
    states.all(|s| s.starts_with(['t', 'Z', 'X']))
}

/// A program that makes threads all the time, seized.
fn seized_breeder(host: &Host) -> (Talk, Session) {
    let job = Talk::start(&mut host.command(guest("threads")));
    let pid: i32 = job.line().parse().unwrap();
    let tids = attach::seize_process(pid).unwrap();
    let mut session = Session::new(Handles::open(&host.dir.path().join("handles")).unwrap());
    session.begin(pid, tids);
    (job, session)
}

#[test]
fn every_thread_is_held_and_let_go() {
    let host = Host::new(As::Self_);
    let (mut job, mut session) = seized_breeder(&host);
    let pid = session.root;
    let deadline = Instant::now() + DEADLINE;
    for _ in 0..50 {
        let frozen = freeze::freeze(&mut session);
        let frozen = frozen.unwrap();
        assert!(all_stopped(pid), "{frozen:?}");
        let ways = session.ways_on(frozen.threads(), &frozen.scheduler_now);
        assert_eq!(ways.len(), frozen.threads().count());
        session.go_on_all(&ways);
        job.say("x");
        while !session.tasks.is_empty() && Instant::now() < deadline {
            take_stops(&mut session);
            if let Some(line) = job.line_now() {
                assert_eq!(line, "alive");
                break;
            }
        }
    }
    drop(job.child.stdin.take());
    while session.ended.is_none() {
        take_stops(&mut session);
        assert!(Instant::now() < deadline);
    }
    assert_eq!(session.ended.map(|e| e.shell_code()), Some(9));
    let _ = job.child.wait();
}

/// The end of the first thread is not told before those of the others.
#[test]
fn a_dying_process_of_many_threads_is_not_waited_for() {
    let host = Host::new(As::Self_);
    let (mut job, mut session) = seized_breeder(&host);
    let pid = session.root;
    let deadline = Instant::now() + DEADLINE;
    while threads(pid).len() < 4 {
        take_stops(&mut session);
        assert!(Instant::now() < deadline);
    }
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let ended = |tid| field(tid, "State").is_none_or(|s| s.starts_with(['Z', 'X']));
    while !threads(pid).into_iter().all(ended) {
        assert!(Instant::now() < deadline);
    }
    let frozen = freeze::freeze(&mut session);
    assert!(matches!(frozen.unwrap_err().error, freeze::FreezeError::Exited(_)));
    while session.ended.is_none() {
        take_stops(&mut session);
        assert!(Instant::now() < deadline);
    }
    let _ = job.child.wait();
}
