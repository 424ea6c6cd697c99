//! The command line as a person meets it: the real binary, its exit codes and its words.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use vosrun::state::{JobMeta, StateDir};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// `vosrun` with an empty home and state folder, and nothing of ours in its environment.
    fn vosrun(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vosrun"));
        command.args(words).stdin(Stdio::null());
        for name in ["VOSRUN_STATE_DIR", "VOSRUN_LOG", "XDG_CONFIG_HOME", "NO_COLOR", "TERM"] {
            command.env_remove(name);
        }
        command.env("HOME", self.0.path()).env("XDG_STATE_HOME", self.0.path().join("state"));
        command
    }

    fn run(&self, words: &str) -> Output {
        self.vosrun(&words.split_whitespace().collect::<Vec<_>>()).output().unwrap()
    }

    fn start(&self, words: &str) -> Child {
        let mut command = self.vosrun(&words.split_whitespace().collect::<Vec<_>>());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn config(&self, text: &str) {
        let dir = self.0.path().join(".config/vosrun");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.toml"), text).unwrap();
    }
}

fn stdout(out: &Output) -> &str {
    std::str::from_utf8(&out.stdout).unwrap()
}

fn stderr(out: &Output) -> &str {
    std::str::from_utf8(&out.stderr).unwrap()
}

#[test]
fn usage_errors_are_one_sentence_and_exit_2() {
    let place = Place::new();
    for (words, sentence, out) in [
        ("./counter", "no command `./counter`; a program is run with: vosrun -- ./counter"),
        ("migrat", "no command `migrat` (did you mean `migrate`?); a program is run with: vosrun -- migrat"),
        ("--bogus", "unexpected argument '--bogus' found; see vosrun --help"),
        ("ps extra", "unexpected argument 'extra' found; see vosrun --help"),
        ("inspect", "no job is running here"),
        ("inspect nobody", "no job `nobody` here; vosrun ps lists them"),
        ("migrate nobody --to b", "no job `nobody` here; vosrun ps lists them"),
        ("migrate --watch m-7f3a0001", "no move m-7f3a0001 here, neither in progress nor in a job's history"),
        ("explain VOS-TIMEOT", "no code `VOS-TIMEOT`; near: VOS-TIMEOUT, VOS-TIMER"),
        ("node --name a/b", "invalid value 'a/b' for '--name <NAME>': \"a/b\" cannot be a node's name: up to 63 letters, digits, dots, dashes and underscores can; see vosrun --help"),
        ("--name= -- true", "a value is required for '--name <NAME>' but none was supplied; see vosrun --help"),
        ("--name x ps", "--name, --attach, --detach, --filter and a program after -- go with no command"),
    ]
    // All at once: one that names a job waits a little for it to appear.
    .map(|(words, sentence)| (words, sentence, place.start(words)))
    {
        let out = out.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{words}: {}", stderr(&out));
        assert_eq!(stderr(&out), format!("vosrun: {sentence}\n"), "{words}");
        assert_eq!(stdout(&out), "", "{words}");
    }
}

#[test]
fn migrate_needs_a_target_or_a_move() {
    let place = Place::new();
    for words in
        ["migrate", "migrate x", "migrate --to b --cancel m-7f3a0001", "migrate --cancel 7"]
    {
        let out = place.run(words);
        assert_eq!(out.status.code(), Some(2), "{words}");
        assert_eq!(stderr(&out).lines().count(), 1, "{words}: {}", stderr(&out));
    }
}

#[test]
fn nothing_to_do_shows_the_usage() {
    let out = Place::new().run("");
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("vosrun [OPTIONS] -- PROGRAM [ARGS]..."), "{}", stderr(&out));
}

#[test]
fn help_and_version() {
    let place = Place::new();
    let out = place.run("--help");
    assert_eq!(out.status.code(), Some(0));
    for command in ["migrate", "ps", "inspect", "check", "doctor", "explain", "adopt", "demo"] {
        assert!(stdout(&out).contains(&format!("  {command} ")), "{command}");
    }
    assert!(!stdout(&out).contains("__"), "hidden commands are hidden");
    assert_eq!(stderr(&out), "");
    let version = format!("vosrun {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&place.run("--version")), version);
    assert!(stdout(&place.run("migrate --help")).contains("Usage: vosrun migrate "));
}

#[test]
fn every_code_has_its_text() {
    let place = Place::new();
    for code in vosrun::codes::CODES {
        let out = place.run(&format!("explain {}", code.code));
        assert_eq!(out.status.code(), Some(0), "{}", code.code);
        let head = format!("{}: {}\n", code.code, code.title);
        assert!(stdout(&out).starts_with(&head), "{}", stdout(&out));
        assert!(stdout(&out).lines().all(|l| l.chars().count() <= 100), "{}", stdout(&out));
    }
    let all = place.run("explain --json");
    let all: serde_json::Value = serde_json::from_slice(&all.stdout).unwrap();
    assert_eq!(all["codes"].as_array().map(Vec::len), Some(vosrun::codes::CODES.len()));
}

#[test]
fn ps_of_an_empty_node() {
    let place = Place::new();
    let out = place.run("ps");
    assert_eq!((out.status.code(), stderr(&out)), (Some(0), ""));
    assert!(stdout(&out).starts_with("ID  NAME  PID@NODE  STATE"), "{}", stdout(&out));
    let out = place.run("ps --json");
    let document: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(document, serde_json::json!({ "api": "vosrun/v1", "jobs": [] }));
}

#[test]
fn the_state_folder_comes_from_option_environment_and_file() {
    let place = Place::new();
    let exists = |name: &str| place.0.path().join(name).is_dir();
    let path = |name: &str| place.0.path().join(name).display().to_string();
    place.config(&format!("state_dir = {:?}\n", path("file")));
    place.vosrun(&["ps"]).output().unwrap();
    assert!(exists("file") && !exists("state"));
    place.vosrun(&["ps"]).env("VOSRUN_STATE_DIR", path("env")).output().unwrap();
    assert!(exists("env"));
    let option = path("option");
    let mut command = place.vosrun(&["ps", "--state-dir", &option]);
    command.env("VOSRUN_STATE_DIR", path("unused")).output().unwrap();
    assert!(exists("option") && !exists("unused"));
}

#[test]
fn a_bad_configuration_is_named() {
    let place = Place::new();
    place.config("log = \"info\"\ncolour = 1\n");
    let out = place.run("ps");
    assert_eq!(out.status.code(), Some(2));
    let sentence = stderr(&out);
    assert!(
        sentence.contains(".config/vosrun/config.toml: line 2: unknown field `colour`"),
        "{sentence}"
    );
    assert_eq!(place.run("explain").status.code(), Some(0), "explain needs no configuration");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let place = Place::new();
    let mut child =
        place.vosrun(&["explain"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

/// The output of a command whose stdout is a terminal (script(1) makes one).
fn on_a_terminal(place: &Place, no_color: Option<&str>) -> Option<String> {
    let vosrun = Path::new(env!("CARGO_BIN_EXE_vosrun")).display();
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{vosrun} explain VOS-BUSY"), "/dev/null"]);
    command.env("HOME", place.0.path()).env("TERM", "xterm").env_remove("NO_COLOR");
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    let out = command.stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[test]
fn colours_only_on_a_terminal_and_not_with_no_color() {
    let place = Place::new();
    assert!(!stdout(&place.run("explain VOS-BUSY")).contains('\x1b'));
    let Some(colourful) = on_a_terminal(&place, None) else {
        eprintln!("skipped the terminal part: no script(1) here");
        return;
    };
    assert!(colourful.contains("\x1b[1mVOS-BUSY"), "{colourful:?}");
    assert!(on_a_terminal(&place, Some("")).is_some_and(|t| t.contains('\x1b')), "empty: not set");
    assert!(on_a_terminal(&place, Some("1")).is_some_and(|t| !t.contains('\x1b')));
}

#[test]
fn a_job_without_supervisor_is_shown_with_the_way_out() {
    let place = Place::new();
    let state = StateDir::open(&place.0.path().join("state/vosrun")).unwrap();
    let id = vosrun::ids::JobId([0xa4; 16]);
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = i32::try_from(sleeper.id()).unwrap();
    let start = procfs::process::Process::new(pid).unwrap().stat().unwrap().starttime;
    state.job(id).create().unwrap();
    let new = JobMeta::new("ctr".into(), vec!["./counter".into()], "a".into(), 1);
    state.job(id).set_meta(&JobMeta { pid, host: Some((pid, start)), ..new }).unwrap();
    let out = place.run("ps");
    assert!(stdout(&out).contains("ORPHANED"), "{}", stdout(&out));
    assert!(stdout(&out).contains("vosrun adopt ctr"), "{}", stdout(&out));
    let out = place.run("migrate ctr --to b");
    assert_eq!(out.status.code(), Some(75));
    assert!(stderr(&out).contains("still running here as pid"), "{}", stderr(&out));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(stdout(&place.run("ps")).contains("LOST"));
}

#[test]
fn doctor_tries_and_reports() {
    let out = Place::new().run("doctor --quick --json");
    let document: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(document["api"], "vosrun/v1");
    let result = |name: &str| {
        let checks = document["checks"].as_array().unwrap();
        checks.iter().find(|c| c["name"] == name).unwrap()["result"].clone()
    };
    // The tests of this project need these anyway.
    assert_eq!((result("ptrace"), result("seccomp")), ("ok".into(), "ok".into()), "{document}");
    assert_eq!(document["exit"], out.status.code().unwrap());
}

fn json_of(out: &Output) -> serde_json::Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", stdout(out)))
}

#[test]
fn with_json_a_failure_is_a_document_too() {
    let place = Place::new();
    for (words, exit, sentence) in [
        ("inspect nobody --json", 2, "no job `nobody` here; vosrun ps lists them"),
        ("adopt nobody --json", 125, "there is no job nobody"),
        ("--attach 2147483647 --detach --json", 125, "there is no process 2147483647"),
    ] {
        let out = place.run(words);
        let expected = serde_json::json!({ "api": "vosrun/v1", "exit": exit, "error": sentence });
        assert_eq!(json_of(&out), expected, "{words}");
        assert_eq!(out.status.code(), Some(exit), "{words}");
        assert_eq!(stderr(&out), format!("vosrun: {sentence}\n"), "{words}");
    }
    assert_eq!(stdout(&place.run("--json -- ./missing")), "", "stdout is the program's");
}

#[test]
fn a_program_without_a_name_is_named_in_quotes() {
    let out = Place::new().vosrun(&["--", ""]).output().unwrap();
    assert_eq!((out.status.code(), stderr(&out)), (Some(127), "vosrun: '': not found\n"));
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let out = Place::new().run(&format!("node --listen {at}"));
    let sentence = format!(
        "vosrun: listening on {at}: Address already in use (os error 98); choose another port with --listen IP:PORT\n"
    );
    assert_eq!((out.status.code(), stderr(&out)), (Some(1), sentence.as_str()));
}

/// Ends when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.0.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.0.wait();
    }
}

/// Each command begins when the one before it has begun, as in a script with `&`.
#[test]
fn a_script_need_not_wait_for_what_it_has_just_started() {
    let place = Place::new();
    let with = |state: &str, words: &str| {
        let mut command = place.vosrun(&words.split(' ').collect::<Vec<_>>());
        command.env("VOSRUN_STATE_DIR", place.0.path().join(state));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let start = |state: &str, words: &str| Running(with(state, words).spawn().unwrap());
    let run = |state: &str, words: &str| with(state, words).output().unwrap();
    let _a = start("A", "node --name a --listen 127.0.0.1:0");
    let token = json_of(&run("A", "token --json"))["token"].as_str().unwrap().to_owned();
    // The move's command is the first to look, so the job can only appear later.
    let migrate = with("A", "migrate ctr --to b --json").spawn().unwrap();
    let _b = start("B", &format!("node --name b --listen 127.0.0.1:0 --join {token}"));
    let _job = start("A", "--name ctr -- sleep 60");
    let out = migrate.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let moved = json_of(&out);
    assert_eq!((&moved["result"], &moved["processes"][0]["node"]), (&"moved".into(), &"b".into()));
    assert!(moved["processes"][0]["pid"].is_i64() && moved["processes"][0]["host_pid"].is_i64());
    // Asked for at its home, to which it comes: every phase is shown there as well.
    let out = run("A", "migrate ctr --to a");
    let phases: Vec<_> = stderr(&out).lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert!(phases.ends_with(&["copy", "commit", "resume", "moved"]), "{}", stderr(&out));
    let second = run("A", "--name ctr -- true");
    assert_eq!(stderr(&second), "vosrun: another job is named ctr; this one is ctr-2\n");
}

/// As on a machine where it gets no time to run for long.
#[test]
fn a_command_that_hardly_runs_waits_for_its_job_all_the_same() {
    use nix::sys::signal::{kill, Signal};
    let place = Place::new();
    let mut words = place.vosrun(&["check", "late"]);
    let check = words.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(check.id() as i32);
    let call = || std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let sleeps = format!("{} ", nix::libc::SYS_clock_nanosleep);
    while !call().starts_with(&sleeps) {
        std::thread::yield_now();
    }
    kill(pid, Signal::SIGSTOP).unwrap();
    // Longer than it would wait.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    kill(pid, Signal::SIGCONT).unwrap();
    let _job = Running(place.vosrun(&["--name", "late", "--", "sleep", "60"]).spawn().unwrap());
    let out = check.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
}

/// The table of README.md is what the program says; `VOSRUN_BLESS=1` writes it.
#[test]
fn the_readme_has_the_table_of_capabilities() {
    const BEGIN: &str = "<!-- vosrun capabilities --markdown -->\n";
    const END: &str = "<!-- end of vosrun capabilities -->\n";
    let out = Place::new().run("capabilities --markdown");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    if std::env::var_os("VOSRUN_BLESS").is_some() {
        let new = [before, BEGIN, stdout(&out), END, after].concat();
        std::fs::write(&file, new).unwrap();
    } else {
        assert_eq!(table, stdout(&out), "VOSRUN_BLESS=1 cargo test --test cli writes it anew");
    }
}

#[test]
fn capabilities_for_people_and_for_machines() {
    let place = Place::new();
    let listed = place.run("capabilities");
    assert!(stdout(&listed).starts_with("NAME "), "{listed:?}");
    let document = place.run("capabilities --json");
    let document: serde_json::Value = serde_json::from_str(stdout(&document)).unwrap();
    assert_eq!(document["api"], "vosrun/v1");
    let rows = document["capabilities"].as_array().unwrap();
    let io_uring = rows.iter().find(|row| row["name"] == "io-uring").unwrap();
    assert_eq!(io_uring["launched_user"]["errno"], "ENOSYS");
    assert_eq!(io_uring["attached_root"]["code"], "VOS-IO-URING");
    for row in rows {
        let line = stdout(&listed).lines().find(|l| l.split(' ').next() == row["name"].as_str());
        assert!(line.is_some_and(|l| l.ends_with(row["what"].as_str().unwrap())), "{row}");
    }
}
