//! A signal reaches the job once, whichever way it was sent and the job takes it.

use crate::support::*;

const WAYS: [&str; 3] = ["handler", "sigwait", "signalfd"];

fn start(host: &Host, way: &str) -> Talk {
    let job = Talk::start(&mut host.launch(guest("signals"), &[way]));
    assert_eq!(job.line(), "ready");
    job
}

/// Ends the guest by a signal that follows all others and gives its count.
fn total(job: &mut Talk) -> usize {
    kill(job.pid(), libc::SIGUSR2);
    loop {
        if let Some(total) = job.line().strip_prefix("total ") {
            assert_eq!(job.code(), Some(0));
            return total.parse().unwrap();
        }
    }
}

/// vosrun has read its copy and decided, so that the next signal does not merge with it.
fn settled(host: &Host, vosrun: i32) {
    let pending = || field(vosrun, "ShdPnd").is_some_and(|bits| bits.bytes().any(|b| b != b'0'));
    until("read", || !pending());
    host.status();
}

/// `rounds` signals, each sent when the one before has arrived.
fn paced(host: &Host, way: &str, signal: i32, to_group: bool, rounds: usize) {
    let mut job = start(host, way);
    let pid = job.pid() as i32;
    for _ in 0..rounds {
        kill_any(if to_group { -pid } else { pid }, signal);
        assert_eq!(job.line(), format!("got {signal}"));
    }
    assert_eq!(total(&mut job), rounds, "{way}, to the group: {to_group}, as {:?}", host.user);
}

#[test]
fn signals_to_vosrun_alone_are_passed_on() {
    for host in everyone().into_iter().map(Host::new) {
        for way in WAYS {
            paced(&host, way, libc::SIGTERM, false, 50);
        }
    }
}

#[test]
fn signals_to_the_group_are_not_doubled() {
    for host in everyone().into_iter().map(Host::new) {
        for way in WAYS {
            paced(&host, way, libc::SIGTERM, true, 300);
        }
    }
}

#[test]
fn every_signal_is_passed_on() {
    let host = Host::new(As::Self_);
    let mut job = start(&host, "signalfd");
    let special =
        [libc::SIGKILL, libc::SIGSTOP, libc::SIGCONT, libc::SIGCHLD, libc::SIGUSR2, 32, 33];
    let signals: Vec<i32> = (1..65).filter(|s| !special.contains(s)).collect();
    for signal in &signals {
        kill(job.pid(), *signal);
        assert_eq!(job.line(), format!("got {signal}"));
    }
    assert_eq!(total(&mut job), signals.len());
}

#[test]
fn group_and_single_signals_mix() {
    let host = Host::new(As::Self_);
    for way in WAYS {
        let mut job = start(&host, way);
        let pid = job.pid() as i32;
        for round in 0..300 {
            let (to, signal) = if round % 3 == 0 { (pid, 15) } else { (-pid, 1) };
            kill_any(to, signal);
            assert_eq!(job.line(), format!("got {signal}"));
        }
        assert_eq!(total(&mut job), 300, "{way}");
    }
}

#[test]
fn one_signal_is_sent_both_ways() {
    let host = Host::new(As::Self_);
    for way in WAYS {
        let mut job = start(&host, way);
        let pid = job.pid() as i32;
        for round in 0..100 {
            kill_any(if round % 3 == 0 { pid } else { -pid }, libc::SIGHUP);
            assert_eq!(job.line(), "got 1");
            settled(&host, pid);
        }
        assert_eq!(total(&mut job), 100, "{way}");
    }
}

#[test]
fn a_flood_to_the_group_is_not_multiplied() {
    let host = Host::new(As::Self_);
    for way in WAYS {
        let mut job = start(&host, way);
        for _ in 0..3000 {
            kill_any(-(job.pid() as i32), libc::SIGUSR1);
        }
        let got = total(&mut job);
        assert!((1..=3000).contains(&got), "{way}: {got}");
    }
}

#[test]
fn realtime_signals_are_counted_exactly() {
    let host = Host::new(As::Self_);
    for way in WAYS {
        let mut job = start(&host, way);
        let pid = job.pid() as i32;
        for round in 0..1000 {
            kill_any(if round % 2 == 0 { pid } else { -pid }, 40);
        }
        for _ in 0..1000 {
            assert_eq!(job.line(), "got 40", "{way}");
        }
        assert_eq!(total(&mut job), 1000, "{way}");
    }
}

#[test]
fn a_job_that_ignores_a_signal_goes_on() {
    let host = Host::new(As::Self_);
    let script = "trap '' TERM INT; echo ready; read line; exit 6";
    let mut job = Talk::start(&mut host.launch("sh", &["-c", script]));
    assert_eq!(job.line(), "ready");
    kill(job.pid(), libc::SIGTERM);
    kill_any(-(job.pid() as i32), libc::SIGINT);
    assert_eq!(host.status().processes.len(), 1);
    assert_eq!(job.code(), Some(6));
}

#[test]
fn death_by_a_forwarded_signal_is_told() {
    let host = Host::new(As::Self_);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1] {
        let mut job = Talk::start(&mut host.launch("cat", &[]));
        host.status();
        kill(job.pid(), signal);
        let stdin = job.child.stdin.take();
        assert_eq!(job.code(), Some(128 + signal));
        drop(stdin);
    }
}

#[test]
fn ignored_signals_end_no_call() {
    for host in everyone().into_iter().map(Host::new) {
        let ended = output(&mut host.launch(guest("ignored"), &[]));
        let text = stdout(&ended);
        let wrong = |line: &&str| !line.ends_with(" ok") && !line.ends_with(" absent");
        assert_eq!(text.lines().find(wrong), None, "as {:?}: {text}", host.user);
        assert!(text.contains("epoll_wait timed ok"), "{text}");
    }
}

/// A job that stops by SIGSTOP sent to its own pid, and vosrun with it.
fn stopped(host: &Host) -> (Talk, u32) {
    let job = Talk::start(&mut host.launch("sh", &["-c", "echo $$; read a; echo got-$a"]));
    let pid = job.line().parse().unwrap();
    kill(pid, libc::SIGSTOP);
    let vosrun = job.pid() as i32;
    until("vosrun stops", || field(vosrun, "State").is_some_and(|s| s.starts_with('T')));
    (job, pid)
}

#[test]
fn a_stopped_job_is_continued_by_its_pid() {
    for host in everyone().into_iter().map(Host::new) {
        let (mut job, pid) = stopped(&host);
        kill(pid, libc::SIGCONT);
        job.say("x\n");
        assert_eq!(job.line(), "got-x");
        assert_eq!(job.code(), Some(0));
    }
}

#[test]
fn a_stopped_job_is_killed_by_its_pid() {
    let host = Host::new(As::Self_);
    let (mut job, pid) = stopped(&host);
    kill(pid, libc::SIGKILL);
    assert_eq!(job.code(), Some(137));
}
