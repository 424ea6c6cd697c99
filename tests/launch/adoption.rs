//! Adopting what runs already, and what lost its supervisor.

use std::process::{Command, Stdio};

use crate::support::*;

fn field_of(pid: u32, name: &str) -> String {
    field(pid as i32, name).unwrap_or_default()
}

/// A guest that was started without vosrun, by the host's user.
fn stranger(host: &Host) -> Talk {
    let job = Talk::start(&mut host.command(guest("threads")));
    assert_eq!(job.line(), job.pid().to_string());
    job
}

#[test]
fn a_running_program_is_adopted_with_all_threads() {
    for host in everyone().into_iter().map(Host::new) {
        let mut job = stranger(&host);
        let pid = job.pid().to_string();
        let adopted = output(&mut host.vosrun(&["--attach", &pid, "--detach", "--name", "mine"]));
        let line = stdout(&adopted);
        assert!(line.starts_with("mine ") && line.trim().len() == 13, "{line}{}", stderr(&adopted));
        let status = host.status();
        assert!(status.attached);
        assert_eq!(status.processes[0].host_pid.to_string(), pid);
        let tracer = status.supervisor_pid.to_string();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        for task in tasks.flatten() {
            let tid = task.file_name().to_str().unwrap().parse().unwrap();
            let traced = field(tid, "TracerPid").is_none_or(|t| t == tracer);
            assert!(traced || field(tid, "TracerPid").is_none_or(|t| t == tracer), "{tid}");
        }
        assert_eq!(field_of(job.pid(), "Seccomp"), "0", "no filter");
        for _ in 0..5 {
            job.say("x");
            assert_eq!(job.line(), "alive");
        }
        assert_eq!(job.code(), Some(9), "its parent gets the status");
        until("the folder is gone", || host.state().jobs().unwrap().is_empty());
    }
}

#[test]
fn attach_waits_and_gives_the_exit_code() {
    let host = Host::new(As::Self_);
    let mut job = stranger(&host);
    let mut waiting = Talk::start(&mut host.vosrun(&["--attach", &job.pid().to_string()]));
    assert_ne!(host.status().supervisor_pid, waiting.pid() as i32);
    assert_eq!(job.code(), Some(9));
    assert_eq!(waiting.code(), Some(9));
}

#[test]
fn a_signal_to_the_waiting_vosrun_reaches_the_adopted_job() {
    let host = Host::new(As::Self_);
    let job = Talk::start(&mut host.command(guest("signals")));
    assert_eq!(job.line(), "ready");
    let mut waiting = Talk::start(&mut host.vosrun(&["--attach", &job.pid().to_string()]));
    host.status();
    kill(waiting.pid(), libc::SIGTERM);
    assert_eq!(job.line(), "got 15");
    kill(job.pid(), libc::SIGKILL);
    assert_eq!(waiting.code(), Some(137));
}

#[test]
fn a_stopped_process_stays_stopped() {
    let host = Host::new(As::Self_);
    let mut job = stranger(&host);
    let pid = job.pid();
    kill(pid, libc::SIGSTOP);
    until("stopped", || field_of(pid, "State").starts_with('T'));
    output(&mut host.vosrun(&["--attach", &pid.to_string(), "--detach"]));
    until("listened to", || host.status().state == vosrun::control::JobState::Stopped);
    assert!(field_of(pid, "State").starts_with(['T', 't']));
    kill(pid, libc::SIGCONT);
    job.say("x");
    assert_eq!(job.line(), "alive");
    assert_eq!(job.code(), Some(9));
}

#[test]
fn a_job_outlives_its_supervisor_and_is_adopted_again() {
    for host in everyone().into_iter().map(Host::new) {
        let folder = host.dir.path().to_str().unwrap().to_owned();
        std::fs::create_dir(host.dir.path().join("sub")).unwrap();
        let mut job = Talk::start(&mut host.launch(guest("watches"), &[&folder]));
        assert_eq!(job.line(), "3 4 1 3 -1");
        let before = host.status();
        job.kill();
        job.say("x");
        assert_eq!(job.line(), "-1", "an observed call fails without a tracer");
        let adopted = output(&mut host.vosrun(&["adopt", "watches.cc"]));
        assert_eq!(stdout(&adopted), format!("watches.cc {}\n", before.id), "{}", stderr(&adopted));
        assert_eq!(adopted.status.code(), Some(0));
        job.say("x");
        assert_eq!(job.line(), "4", "and works with the new one");
        let again = host.status();
        assert_eq!(
            (again.id, again.processes[0].host_pid),
            (before.id, before.processes[0].host_pid)
        );
        let twice = output(&mut host.vosrun(&["adopt", "watches.cc"]));
        assert_eq!(twice.status.code(), Some(125));
        assert!(stderr(&twice).contains("has a supervisor"), "{}", stderr(&twice));
        drop(job.child.stdin.take());
        until("the folder is gone", || host.state().jobs().unwrap().is_empty());
    }
}

#[test]
fn adopt_waits_when_asked() {
    let host = Host::new(As::Self_);
    let mut job = Talk::start(&mut host.launch(guest("threads"), &[]));
    let pid: i32 = job.line().parse().unwrap();
    host.status();
    job.kill();
    until("untraced", || field(pid, "TracerPid").is_some_and(|t| t == "0"));
    let mut waiting = Talk::start(&mut host.vosrun(&["adopt", "--wait", "threads.cc"]));
    assert!(waiting.line().starts_with("threads.cc "));
    drop(job.child.stdin.take());
    assert_eq!(waiting.code(), Some(9));
}

fn refused(host: &Host, pid: &str) -> (Option<i32>, String) {
    for detach in [true, false] {
        let args = ["--attach", pid, "--detach"];
        let ended = output(&mut host.vosrun(&args[..2 + usize::from(detach)]));
        assert!(host.state().jobs().unwrap().is_empty());
        if !detach {
            return (ended.status.code(), stderr(&ended));
        }
    }
    unreachable!()
}

#[test]
fn refusals_name_the_rule() {
    let host = Host::new(As::Self_);
    let (code, sentence) = refused(&host, "999999999");
    assert_eq!((code, sentence.as_str()), (Some(125), "vosrun: there is no process 999999999\n"));

    let mut dead = Command::new("true").stdout(Stdio::null()).spawn().unwrap();
    until("a zombie", || field_of(dead.id(), "State").starts_with('Z'));
    assert!(refused(&host, &dead.id().to_string()).1.contains("has ended already"));
    dead.wait().unwrap();

    if field(2, "Name").is_some_and(|n| n == "kthreadd") {
        assert!(refused(&host, "2").1.contains("thread of the kernel"));
    }
}

#[test]
fn a_traced_process_is_refused_with_its_tracer() {
    let host = Host::new(As::Self_);
    let other = Host::new(As::Self_);
    let mut job = Talk::start(&mut other.launch("cat", &[]));
    let pid = other.status().processes[0].host_pid.to_string();
    let (code, sentence) = refused(&host, &pid);
    assert_eq!(code, Some(77));
    assert!(
        sentence.contains(&format!("traced by vosrun (pid {}) already", job.pid())),
        "{sentence}"
    );
    assert_eq!(job.code(), Some(0));
}

#[test]
fn another_users_process_is_refused() {
    let Some(As::User) = everyone().pop() else {
        return println!("skipped: needs two users, run as root");
    };
    let (owner, host) = (Host::new(As::Self_), Host::new(As::User));
    let mut job = stranger(&owner);
    let (code, sentence) = refused(&host, &job.pid().to_string());
    assert_eq!(code, Some(77));
    assert!(sentence.contains("belongs to root"), "{sentence}");
    assert_eq!(job.code(), Some(9));
}

#[test]
fn an_undumpable_process_is_refused() {
    let host = Host::new(*everyone().last().unwrap());
    if host.user == As::Self_ {
        return println!("skipped: root may trace everything");
    }
    let script = "import ctypes,sys; ctypes.CDLL(None).prctl(4,0,0,0,0); print(1,flush=True); sys.stdin.read()";
    let mut command = host.command("/usr/bin/python3");
    if !std::path::Path::new("/usr/bin/python3").exists() {
        return println!("skipped: python3 is not installed");
    }
    let mut job = Talk::start(command.args(["-c", script]));
    assert_eq!(job.line(), "1");
    let (code, sentence) = refused(&host, &job.pid().to_string());
    assert_eq!(code, Some(77));
    assert!(sentence.contains("may not be inspected"), "{sentence}");
    assert_eq!(job.code(), Some(0));
}

#[test]
fn an_undumpable_child_is_named() {
    let host = Host::new(*everyone().last().unwrap());
    if host.user == As::Self_ {
        return println!("skipped: root may trace everything");
    }
    let script = "import ctypes, os, signal, sys\n\
                  from_child, to_parent = os.pipe()\n\
                  child = os.fork()\n\
                  if child == 0:\n\
                  \tctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n\
                  \tos.write(to_parent, b'.')\n\
                  \tsignal.pause()\n\
                  os.read(from_child, 1)\n\
                  print(1, flush=True)\n\
                  sys.stdin.read()\n\
                  os.kill(child, signal.SIGKILL)\n\
                  os.wait()";
    let mut command = host.command("/usr/bin/python3");
    if !std::path::Path::new("/usr/bin/python3").exists() {
        return println!("skipped: python3 is not installed");
    }
    let mut job = Talk::start(command.args(["-c", script]));
    assert_eq!(job.line(), "1");
    let pid = job.pid().to_string();
    let adopted = output(&mut host.vosrun(&["--attach", &pid, "--detach", "--name", "mine"]));
    assert_eq!(adopted.status.code(), Some(0), "{}", stderr(&adopted));
    let checked = output(&mut host.vosrun(&["check", "mine"]));
    assert_eq!(checked.status.code(), Some(10), "{}", stderr(&checked));
    assert!(stdout(&checked).contains("VOS-CHILDREN"), "{}", stdout(&checked));
    assert_eq!(job.code(), Some(0));
}

/// `/proc/PID/maps`.
fn maps(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()
}

#[test]
fn a_filter_is_put_into_every_thread_of_a_running_program() {
    for host in everyone().into_iter().map(Host::new) {
        let folder = host.dir.path().to_str().unwrap().to_owned();
        let mut job = Talk::start(host.command(guest("filtered")).arg(&folder));
        let inotify: i32 = job.line().parse().unwrap();
        let (pid, before) = (job.pid(), maps(job.pid()));
        let adopted = output(&mut host.vosrun(&[
            "--attach",
            &pid.to_string(),
            "--detach",
            "--filter",
            "--name",
            "filtered",
        ]));
        assert_eq!(adopted.status.code(), Some(0), "{}", stderr(&adopted));
        assert_eq!(maps(pid), before);
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let tid = task.file_name().to_str().unwrap().parse().unwrap();
            assert_eq!(field(tid, "Seccomp").as_deref(), Some("2"), "thread {tid}");
            // The kernel demands it of those who lack CAP_SYS_ADMIN.
            let wanted =
                if host.user == As::Self_ && nix::unistd::geteuid().is_root() { "0" } else { "1" };
            assert_eq!(field(tid, "NoNewPrivs").as_deref(), Some(wanted));
        }
        job.say("x");
        let enosys = libc::ENOSYS;
        assert_eq!(job.line(), format!("{enosys} {enosys} {enosys} 1"));
        let (_, dir) = host.state().jobs().unwrap().remove(0);
        assert!(dir.meta().unwrap().filtered);
        // The table's own file may be opened by its supervisor only: look at a copy.
        let copy = host.dir.path().join("handles");
        std::fs::copy(dir.handles(), &copy).unwrap();
        let handles = vosrun::syscalls::handles::Handles::open(&copy).unwrap();
        assert!(handles.annotation(pid as i32, inotify).is_some(), "the watch is recorded");
        assert_eq!(job.code(), Some(9));
    }
}

#[test]
fn a_program_with_a_filter_of_its_own_gets_no_second_one() {
    let host = Host::new(As::Self_);
    let owner = Host::new(As::Self_);
    let mut job = Talk::start(&mut owner.launch("cat", &[]));
    let pid = owner.status().processes[0].host_pid;
    job.kill();
    until("untraced", || field(pid, "TracerPid").is_some_and(|t| t == "0"));
    let tried = output(&mut host.vosrun(&["--attach", &pid.to_string(), "--detach", "--filter"]));
    assert_eq!(tried.status.code(), Some(125));
    assert!(stderr(&tried).contains("seccomp filter of its own"), "{}", stderr(&tried));
    assert!(host.state().jobs().unwrap().is_empty());
    drop(job.child.stdin.take());
    until("cat has ended", || field(pid, "Name").is_none());
}
