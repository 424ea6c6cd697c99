//! What runs, with what it inherits, and how it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use crate::support::*;

#[test]
fn exit_codes_are_those_of_the_program() {
    for host in everyone().into_iter().map(Host::new) {
        for (script, code) in
            [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
        {
            let ended = output(&mut host.launch("sh", &["-c", script]));
            assert_eq!(ended.status.code(), Some(code), "{script} as {:?}", host.user);
            assert_eq!((stdout(&ended), stderr(&ended)), (String::new(), String::new()));
        }
        assert!(host.state().jobs().unwrap().is_empty(), "no folder is left");
    }
}

#[test]
fn what_cannot_run_is_said_in_one_line() {
    let host = Host::new(As::Self_);
    let dir = host.dir.path();
    fs::write(dir.join("plain"), "text").unwrap();
    fs::write(dir.join("bad"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(dir.join("bad"), PermissionsExt::from_mode(0o755)).unwrap();
    let plain = dir.join("plain").display().to_string();
    let bad = dir.join("bad").display().to_string();
    for (program, code, sentence) in [
        ("missing-program", 127, "missing-program: not found"),
        ("/missing/program", 127, "/missing/program: not found"),
        ("", 127, "'': not found"),
        (&*plain, 126, &*format!("{plain}: permission denied")),
        ("/tmp", 126, "/tmp: permission denied"),
        (&*bad, 127, &*format!("{bad}: its interpreter is not found")),
    ] {
        let ended = output(&mut host.launch(program, &[]));
        assert_eq!(ended.status.code(), Some(code), "{program}");
        assert_eq!(stderr(&ended), format!("vosrun: {sentence}\n"));
    }
    assert!(host.state().jobs().unwrap().is_empty());
}

#[test]
fn a_job_that_cannot_be_noted_leaves_nothing_behind() {
    let host = Host::new(As::Self_);
    let vosrun = host.vosrun(&[]).get_program().to_owned();
    let script = "ulimit -f 0; exec \"$0\" -- true";
    let ended = output(host.command("sh").args(["-c", script]).arg(vosrun));
    assert_eq!(ended.status.code(), Some(125), "{}", stderr(&ended));
    assert!(host.state().jobs().unwrap().is_empty());
}

#[test]
fn scripts_run_with_and_without_a_shebang() {
    let host = Host::new(As::Self_);
    for text in ["#!/bin/sh\necho \"$0 $1\"\n", "echo \"$0 $1\"\n"] {
        let script = host.dir.path().join("script");
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let ended = output(&mut host.launch(&script, &["word"]));
        assert_eq!(stdout(&ended), format!("{} word\n", script.display()));
    }
}

#[test]
fn the_path_is_searched() {
    let host = Host::new(As::Self_);
    for folder in ["a", "b"] {
        fs::create_dir(host.dir.path().join(folder)).unwrap();
        fs::write(host.dir.path().join(folder).join("tool"), format!("echo {folder}")).unwrap();
    }
    let tool = host.dir.path().join("b/tool");
    fs::set_permissions(tool, PermissionsExt::from_mode(0o755)).unwrap();
    let (a, b) = (host.dir.path().join("a"), host.dir.path().join("b"));
    let path = format!("{}:{}:/bin", a.display(), b.display());
    let ended = output(host.launch("tool", &[]).env("PATH", path));
    assert_eq!(stdout(&ended), "b\n", "one that is not executable is passed over");
}

/// What `surroundings` prints natively and under vosrun, with the group left out.
fn compare(host: &Host, prepare: impl Fn(&mut std::process::Command)) {
    let program = guest("surroundings");
    let run = |mut command: std::process::Command| {
        command.args(["one", "two words", ""]).env("EXTRA", "ü").current_dir("/usr");
        command.stdin(Stdio::null()).process_group(0);
        prepare(&mut command);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let group = child.id();
        let text = stdout(&child.wait_with_output().unwrap());
        let text = text.replace(&format!("group {group} "), "group GROUP ");
        text.lines().filter(|l| !l.contains("pipe:[")).collect::<Vec<_>>().join("\n")
    };
    let native = run(host.command(&program));
    assert_eq!(run(host.launch(&program, &[])), native);
    assert!(native.contains("group GROUP "), "{native}");
}

#[test]
fn a_program_inherits_what_it_would_without_vosrun() {
    for host in everyone().into_iter().map(Host::new) {
        compare(&host, |_| {});
    }
}

#[test]
fn masks_dispositions_and_closed_descriptors_are_inherited() {
    use nix::sys::signal::{SigSet, Signal};
    let host = Host::new(As::Self_);
    compare(&host, |command| {
        let inherit = || {
            let mut set = SigSet::empty();
            set.add(Signal::SIGUSR1);
            set.add(Signal::SIGCHLD);
            set.thread_set_mask()?;
            for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGTSTP] {
                // SAFETY: SIG_IGN is no function.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            // SAFETY: the child is about to exec; nothing else owns its standard input.
            unsafe { libc::close(0) };
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
            Ok(())
        };
        // SAFETY: only async-signal-safe calls.
        unsafe { command.pre_exec(inherit) };
    });
}

#[test]
fn readers_see_the_end_when_the_job_closes_its_output() {
    let host = Host::new(As::Self_);
    let mut job =
        Talk::start(&mut host.launch("sh", &["-c", "echo x; exec >&-; read line; exit 8"]));
    assert_eq!(job.line(), "x");
    assert!(job.at_end());
    assert_eq!(job.code(), Some(8));
}

#[test]
fn bytes_pass_through_pipes() {
    let host = Host::new(As::Self_);
    let script = "head -c 3000000 /dev/urandom | tee /dev/stderr | cat";
    let ended = output(&mut host.launch("sh", &["-c", script]));
    assert!(ended.stdout == ended.stderr && ended.stdout.len() == 3_000_000);
}

#[test]
fn processes_and_threads_are_made_in_every_way() {
    for host in everyone().into_iter().map(Host::new) {
        let ended = output(&mut host.launch(guest("creation"), &[]));
        assert_eq!(stdout(&ended), "EXIT-SUCCESS\n", "as {:?}", host.user);
    }
}

#[test]
fn programs_restrict_themselves() {
    for host in everyone().into_iter().map(Host::new) {
        let ended = output(&mut host.launch(guest("restrict"), &[]));
        assert_eq!(stdout(&ended), "EXIT-SUCCESS\n", "as {:?}", host.user);
    }
}

#[test]
fn no_new_privs_is_set_only_where_it_must() {
    for host in everyone().into_iter().map(Host::new) {
        let ended =
            output(&mut host.launch("grep", &["NoNewPrivs\\|Seccomp:", "/proc/self/status"]));
        let forced = u8::from(host.user == As::User || !nix::unistd::geteuid().is_root());
        assert_eq!(stdout(&ended), format!("NoNewPrivs:\t{forced}\nSeccomp:\t2\n"));
    }
}

#[test]
fn every_kind_of_binary_runs() {
    let host = Host::new(As::Self_);
    let kinds: [(&str, &[&str]); 6] = [
        ("cc", &["-static"]),
        ("cc", &["-no-pie"]),
        ("cc", &["-static-pie"]),
        ("cc", &["-pie", "-fPIE"]),
        ("musl-gcc", &[]),
        ("musl-gcc", &["-static"]),
    ];
    for (compiler, flags) in kinds {
        for (name, args) in [("gate32", &[] as &[&str]), ("creation", &[])] {
            let Some(program) = guest_by(compiler, name, flags) else { continue };
            let ended = output(&mut host.launch(program, args));
            assert_eq!(stdout(&ended), "EXIT-SUCCESS\n", "{compiler} {flags:?} {name}");
        }
    }
}

#[test]
fn i386_programs_run() {
    let host = Host::new(As::Self_);
    let flags = ["-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector"];
    let Some(program) = guest_by("cc", "i386", &flags) else { return };
    let Ok(native) = std::process::Command::new(&program).output() else {
        return println!("skipped: this kernel runs no i386 programs");
    };
    let ended = output(&mut host.launch(&program, &[]));
    assert_eq!((ended.status.code(), stdout(&ended)), (native.status.code(), stdout(&native)));
}

#[test]
fn go_programs_run() {
    let host = Host::new(As::Self_);
    let source = host.dir.path().join("main.go");
    let program = "package main\nimport (\"fmt\"; \"os\"; \"os/exec\"; \"sync\")\n\
        func main() { var w sync.WaitGroup; for i := 0; i < 50; i++ { w.Add(1); go func() { \
        defer w.Done(); exec.Command(\"true\").Run() }() }; w.Wait(); fmt.Println(\"go\"); os.Exit(5) }\n";
    fs::write(&source, program).unwrap();
    let binary = host.dir.path().join("main");
    let mut build = std::process::Command::new("go");
    build.arg("build").arg("-o").arg(&binary).arg(&source).env("CGO_ENABLED", "0");
    if !build.env("GOFLAGS", "-mod=mod").status().is_ok_and(|s| s.success()) {
        return println!("skipped: go is not installed");
    }
    let ended = output(&mut host.launch(&binary, &[]));
    assert_eq!((stdout(&ended).as_str(), ended.status.code()), ("go\n", Some(5)));
}

#[test]
fn what_the_program_leaves_behind_goes_on() {
    let host = Host::new(As::Self_);
    let script = "sh -c 'read line; echo late >&3' <&0 3>&1 & exit 4";
    let mut job = Talk::start(
        &mut host.launch("sh", &["-c", &format!("exec 4<&0; {}", script.replace("<&0", "<&4"))]),
    );
    let stdin = job.child.stdin.take();
    assert_eq!(job.code(), Some(4));
    drop(stdin);
    assert_eq!(job.line(), "late");
}

#[test]
fn the_supervisor_stays_small() {
    let host = Host::new(As::Self_);
    let mut job = Talk::start(&mut host.launch("cat", &[]));
    let supervisor = host.status().supervisor_pid;
    let rollup = fs::read_to_string(format!("/proc/{supervisor}/smaps_rollup")).unwrap();
    let private = rollup.lines().filter(|l| l.starts_with("Private_"));
    let kib: u64 =
        private.map(|l| l.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum();
    assert!(kib <= 8 << 10, "{kib} KiB");
    assert_eq!(job.code(), Some(0));
}

#[test]
fn status_tells_what_the_job_is() {
    for host in everyone().into_iter().map(Host::new) {
        let mut job = Talk::start(host.launch("cat", &[]).current_dir("/usr"));
        let status = host.status();
        assert_eq!((status.name.as_str(), status.command.as_str()), ("cat", "cat"));
        assert_eq!((status.cwd.as_str(), status.supervisor_pid), ("/usr", job.pid() as i32));
        assert_eq!(status.fds[0].kind, "pipe");
        let process = &status.processes[0];
        assert_eq!((process.comm.as_str(), process.threads), ("cat", 1));
        assert!(status.rss_bytes > 0 && !status.attached);
        assert_eq!(job.code(), Some(0));
    }
}

#[test]
fn watches_are_taken_down_with_their_paths() {
    use vosrun::syscalls::handles::{Annotation, Handles};
    let host = Host::new(As::Self_);
    let folder = host.dir.path().to_str().unwrap();
    fs::create_dir(host.dir.path().join("sub")).unwrap();
    let mut job = Talk::start(&mut host.launch(guest("watches"), &[folder]));
    assert_eq!(job.line(), "3 4 1 3 -1");
    let pid = host.status().processes[0].host_pid;
    let (_, dir) = host.state().jobs().unwrap().remove(0);
    let handles = Handles::open(&dir.handles()).unwrap();
    for fd in [3, 4] {
        let bytes = handles.annotation(pid, fd).unwrap();
        let Annotation::Watches(mut watches) = postcard::from_bytes(&bytes).unwrap() else {
            panic!("descriptor {fd} has something else than watches");
        };
        watches.sort_by_key(|w| w.wd);
        let seen: Vec<_> =
            watches.iter().map(|w| (w.wd, String::from_utf8_lossy(&w.path), w.mask)).collect();
        let sub = format!("{folder}/sub");
        assert_eq!(seen, [(1, folder.into(), 0x100), (3, (&*sub).into(), 0x0100_0002)]);
    }
    assert_eq!(job.code(), Some(0));
}

#[test]
fn a_folder_of_the_path_that_may_not_be_searched_is_passed_over() {
    let host = Host::new(*everyone().last().unwrap());
    let closed = host.dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o0)).unwrap();
    let path = format!("{}:/bin:/usr/bin", closed.display());
    let missing = output(host.launch("missing-program", &[]).env("PATH", &path));
    assert_eq!(missing.status.code(), Some(127), "{}", stderr(&missing));
    let found = output(host.launch("true", &[]).env("PATH", &path));
    assert_eq!(found.status.code(), Some(0));
}
