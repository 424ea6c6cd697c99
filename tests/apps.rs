//! Real programs, moved at least three times in the middle of work; what they print and write
//! is compared with an unmoved run. A program that is not installed is skipped with a word.

#[path = "apps/adopted.rs"]
mod adopted;
#[path = "apps/background.rs"]
mod background;
#[path = "apps/chat.rs"]
mod chat;
mod common;
#[path = "apps/display.rs"]
mod display;
#[path = "apps/inside.rs"]
mod inside;
#[path = "apps/multiplexer.rs"]
mod multiplexer;
#[path = "apps/servers.rs"]
mod servers;
#[path = "apps/shell.rs"]
mod shell;
#[path = "apps/ssh.rs"]
mod ssh;
#[path = "apps/trees.rs"]
mod trees;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use common::hosts::Hosts;
use common::job::{needs, Job, Program, Start};
use common::procs;
use common::runner::{Cell, Worker};
use common::{until, Who};

const LONG: Duration = Duration::from_secs(120);

/// A file of tests/guests/apps, in a place that every user can read.
fn source(name: &str) -> Result<PathBuf> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/apps").join(name);
    common::build::publish(&from, name)
}

/// When a program that works in steps is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// In the middle of every third step.
    Inside,
    /// After every third step.
    After,
}

/// Runs a program that does one step per line of input: first unmoved, then moved.
fn in_steps(
    hosts: &Hosts,
    start: Start,
    program: impl Fn() -> Program,
    steps: &[String],
    when: When,
) -> Result<()> {
    let want = drive(hosts, Start::Native, program(), steps, when)?;
    let got = drive(hosts, start, program(), steps, when)?;
    for (moved, unmoved) in got.lines().zip(want.lines()) {
        ensure!(moved == unmoved, "moved it printed {moved:?}, unmoved {unmoved:?}");
    }
    ensure!(got == want, "moved it printed {got:?}, unmoved {want:?}");
    Ok(())
}

fn drive(
    hosts: &Hosts,
    start: Start,
    mut program: Program,
    steps: &[String],
    when: When,
) -> Result<String> {
    program.stdin = Stdio::piped();
    let mut job = Job::start_early(hosts, start, program)?;
    let mut input = job.stdin().context("no stdin")?;
    for (i, step) in steps.iter().enumerate() {
        let before = job.stdout.bytes().len();
        input.write_all(step.as_bytes())?;
        if start == Start::Attached && i == 1 {
            job.attach()?;
        }
        if i % 3 == 2 && when == When::Inside {
            move_on(&mut job).with_context(|| format!("in step {i}"))?;
        }
        until(LONG, &format!("the end of step {i}"), || {
            let over = job.child.try_wait()?.is_some();
            ensure!(!over, "ended in step {i}: {}", job.said());
            Ok((job.stdout.bytes().len() > before).then_some(()))
        })
        .with_context(|| job.said())?;
        if i % 3 == 2 && when == When::After {
            move_on(&mut job).with_context(|| format!("after step {i}"))?;
        }
    }
    drop(input);
    let code = job.end(LONG)?;
    ensure!(code == 0, "exit code {code}: {}", job.said());
    job.await_nothing_left()?;
    Ok(job.stdout.text())
}

/// Processes that share memory by name, semaphores without one, and pages since fork(2).
fn python_pool(hosts: &Hosts, start: Start) -> Result<()> {
    let (python, file) = (needs("python3")?, source("pool.py")?);
    let program = || Program::new(&python).args([file.display()]);
    in_steps(hosts, start, program, &numbers(15), When::Inside)
}

fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("{n}\n")).collect()
}

fn java(hosts: &Hosts, start: Start) -> Result<()> {
    let (java, file) = (needs("java")?, source("Steps.java")?);
    let program = || {
        let file = file.display().to_string();
        Program::new(&java).args(["-Xmx256m", "-XX:-UsePerfData", &file])
    };
    in_steps(hosts, start, program, &numbers(12), When::Inside)
}

fn node(hosts: &Hosts, start: Start) -> Result<()> {
    let (node, file) = (needs("node")?, source("steps.js")?);
    in_steps(
        hosts,
        start,
        || Program::new(&node).args([file.display()]),
        &numbers(12),
        When::Inside,
    )
}

fn perl(hosts: &Hosts, start: Start) -> Result<()> {
    let (perl, file) = (needs("perl")?, source("steps.pl")?);
    in_steps(
        hosts,
        start,
        || Program::new(&perl).args([file.display()]),
        &numbers(12),
        When::Inside,
    )
}

fn bash(hosts: &Hosts, start: Start) -> Result<()> {
    let (bash, file) = (needs("bash")?, source("steps.sh")?);
    in_steps(
        hosts,
        start,
        || Program::new(&bash).args([file.display()]),
        &numbers(12),
        When::Inside,
    )
}

fn go(hosts: &Hosts, start: Start) -> Result<()> {
    let (go, file) = (needs("go")?, source("steps.go")?);
    let built = common::run_dir().join("bin/steps-go");
    if !built.exists() {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
        let mut build = Command::new(go);
        build.env("GOCACHE", kept).env("GO111MODULE", "off").env("CGO_ENABLED", "0");
        build.args(["build", "-o"]).arg(&built).arg(file);
        procs::run(&mut build, Duration::from_secs(240))?.good("go build")?;
    }
    in_steps(hosts, start, || Program::new(&built), &numbers(12), When::Inside)
}

/// Batches of inserts, one transaction each, into a file. It is locked during a transaction,
/// and locks do not move.
fn sqlite(hosts: &Hosts, start: Start) -> Result<()> {
    let sqlite = needs("sqlite3")?;
    let program = || Program::new(&sqlite).args(["-batch", "test.db"]);
    in_steps(hosts, start, program, &batches(), When::After)
}

/// The same in memory, moved within transactions.
fn sqlite_memory(hosts: &Hosts, start: Start) -> Result<()> {
    let sqlite = needs("sqlite3")?;
    let program = || Program::new(&sqlite).args(["-batch", ":memory:"]);
    in_steps(hosts, start, program, &batches(), When::Inside)
}

fn batches() -> Vec<String> {
    let mut steps = vec!["create table t(n integer primary key, s text); select 0;\n".to_owned()];
    for batch in 1..=11 {
        let mut sql = "begin;\n".to_owned();
        for i in 0..2000 {
            sql +=
                &format!("insert into t values({}, 'row {i} of {batch}');\n", batch * 10_000 + i);
        }
        sql += "commit; select count(*), sum(n), max(s) from t;\n";
        steps.push(sql);
    }
    steps
}

/// 200 MiB that compress neither well nor badly.
fn make_large_file(path: &Path) -> Result<()> {
    let mut file = std::io::BufWriter::new(fs::File::create(path)?);
    let mut state = 1u64;
    let mut block = [0u8; 4096];
    for page in 0u64..51_200 {
        for (i, chunk) in block.chunks_exact_mut(8).enumerate() {
            if i % 4 != 3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
            }
            let word = if i % 2 == 0 { page / 16 } else { state };
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(file.flush()?)
}

fn xz(hosts: &Hosts, start: Start) -> Result<()> {
    let xz = needs("xz")?;
    let dir = hosts.fresh_dir("xz")?;
    let (input, output) = (dir.join("in"), dir.join("out.xz"));
    make_large_file(&input)?;
    let mut program = Program::new(&xz).args(["-0", "-T2", "-c", "-v"]);
    program.stdin = Stdio::from(fs::File::open(&input)?);
    program.stdout = Some(Stdio::from(fs::File::create(&output)?));
    let mut job = Job::start_early(hosts, start, program)?;
    if start == Start::Attached {
        job.attach()?;
    }
    let mut written = 0;
    for turn in 1..=4 {
        until(LONG, "more output", || {
            let now = fs::metadata(&output)?.len();
            let more = now > written;
            written = now;
            ensure!(job.child.try_wait()?.is_none(), "xz ended before move {turn}: {}", job.said());
            Ok(more.then_some(()))
        })?;
        move_on(&mut job)?;
    }
    let code = job.end(LONG)?;
    ensure!(code == 0, "exit code {code}: {}", job.said());
    job.await_nothing_left()?;
    let script = "xz -dc \"$1\" | cmp - \"$2\"";
    let mut compare = Command::new("sh");
    compare.args(["-c", script, "sh"]).args([&output, &input]);
    procs::run(&mut compare, LONG)?.good("the unpacked output")?;
    Ok(())
}

/// Moves to the next host, unless the program is to stay.
fn move_on(job: &mut Job<'_>) -> Result<()> {
    if matches!(job.start, Start::Native | Start::Still) {
        return Ok(());
    }
    job.migrate((job.at + 1) % 3).map(drop)
}

/// A session in the Python prompt: state from before a move is used after it, ^C interrupts,
/// input() waits across a move, the window size is asked for.
fn python(hosts: &Hosts, start: Start) -> Result<()> {
    let python = needs("python3")?;
    let program = Program::new(python).args(["-q", "-i"]).env("PYTHON_BASIC_REPL", "1");
    let (mut job, mut tty) = Job::in_terminal(hosts, start, program)?;
    tty.expect(">>> ")?;
    if start == Start::Attached {
        job.attach()?;
    }
    let mut say = |job: &mut Job<'_>, line: &str, answer: &str| -> Result<()> {
        tty.type_in(&format!("{line}\r"))?;
        tty.expect(answer).with_context(|| format!("{line}: {}", job.said()))?;
        tty.expect(">>> ").map(drop)
    };
    say(&mut job, "import os, sys, time, threading", "\r\n")?;
    say(&mut job, "x = {i: i * i for i in range(100000)}; len(x)", "100000\r\n")?;
    move_on(&mut job)?;
    say(&mut job, "x[99999]", "9999800001\r\n")?;
    say(&mut job, "b = []; t = threading.Timer(0.1, b.append, [5]); t.start()", "\r\n")?;
    move_on(&mut job)?;
    say(&mut job, "t.join(); b", "[5]\r\n")?;
    say(&mut job, "os.get_terminal_size()", "columns=80, lines=24)\r\n")?;
    say(&mut job, "sys.stdin.isatty(), os.getpgrp() == os.tcgetpgrp(0)", "(True, True)\r\n")?;
    tty.type_in("y = input('na' + 'me? ')\r")?;
    tty.expect("name? ")?;
    move_on(&mut job)?;
    tty.type_in("Grace\r")?;
    tty.expect(">>> ")?;
    tty.type_in("'hello ' + y\r")?;
    tty.expect("'hello Grace'\r\n")?;
    tty.expect(">>> ")?;
    tty.type_in("print('sleep' + 'ing'); time.sleep(1000)\r")?;
    tty.expect("sleeping\r\n")?;
    move_on(&mut job)?;
    // A ^C between Python's look at its flag and the system call is not seen by it.
    tty.insist("\x03", "KeyboardInterrupt")?;
    tty.expect(">>> ")?;
    tty.resize(40, 100)?;
    tty.type_in("os.get_terminal_size()\r")?;
    tty.expect("columns=100, lines=40)\r\n")?;
    tty.expect(">>> ")?;
    tty.type_in("sys.exit(7)\r")?;
    let code = job.end(LONG)?;
    ensure!(code == 7, "exit code {code}, wanted 7: {}", tty.shown());
    job.await_nothing_left()
}

fn vim(hosts: &Hosts, start: Start) -> Result<()> {
    let vim = needs("vim")?;
    let dir = hosts.fresh_dir("vim")?;
    let file = dir.join("text");
    fs::write(&file, "first\nsecond\nthird\n")?;
    hosts.give(&file)?;
    let args = ["-u", "NONE", "-N", "-i", "NONE", &file.display().to_string()].map(String::from);
    let program = Program::new(vim).args(args);
    let (mut job, mut tty) = Job::in_terminal(hosts, start, program)?;
    tty.expect("third")?;
    if start == Start::Attached {
        job.attach()?;
    }
    tty.type_in("Goadded before the move")?;
    tty.expect("before the move")?;
    move_on(&mut job)?;
    tty.type_in(", and after it\x1b")?;
    tty.expect("after it")?;
    move_on(&mut job)?;
    tty.type_in(":2s/second/2nd/\r")?;
    tty.expect("2nd")?;
    move_on(&mut job)?;
    tty.type_in("ggyyGpu\x12:w\r")?;
    tty.expect("written")?;
    move_on(&mut job)?;
    tty.type_in(":wq\r")?;
    let code = job.end(LONG)?;
    ensure!(code == 0, "exit code {code}: {}", tty.shown());
    let want = "first\n2nd\nthird\nadded before the move, and after it\nfirst\n";
    let got = fs::read_to_string(&file)?;
    ensure!(got == want, "the file holds {got:?}, wanted {want:?}");
    job.await_nothing_left()
}

/// A program that asks for its terminal by name, as password prompts and pagers do.
fn dev_tty(hosts: &Hosts, start: Start) -> Result<()> {
    let text = "import os\n\
        while True:\n \
        tty = os.open('/dev/tty', os.O_RDWR)\n \
        own = os.tcgetpgrp(tty) == os.getpgrp()\n \
        os.write(tty, b'own' if own else b'other')\n \
        word = os.read(tty, 100)\n \
        os.write(tty, b'got ' + word)\n \
        os.close(tty)\n \
        if word == b'end\\n': break\n";
    let program = Program::new(needs("python3")?).args(["-c", text]);
    let (mut job, mut tty) = Job::in_terminal(hosts, start, program)?;
    tty.expect("own")?;
    if start == Start::Attached {
        job.attach()?;
    }
    for word in ["one", "two", "three", "end"] {
        move_on(&mut job)?;
        tty.type_in(&format!("{word}\n"))?;
        tty.expect(&format!("got {word}"))?;
        if word != "end" {
            tty.expect("own")?;
        }
    }
    let code = job.end(LONG)?;
    ensure!(code == 0, "exit code {code}: {}", tty.shown());
    job.await_nothing_left()
}

type App = fn(&Hosts, Start) -> Result<()>;

const APPS: &[(&str, App)] = &[
    ("python-terminal", python),
    ("python-pool", python_pool),
    ("vim", vim),
    ("dev-tty", dev_tty),
    ("sqlite3-file", sqlite),
    ("sqlite3-memory", sqlite_memory),
    ("perl", perl),
    ("bash", bash),
    ("node", node),
    ("java", java),
    ("go", go),
    ("xz", xz),
    ("make", trees::make),
    ("pipeline", trees::pipeline),
    ("git-clone", trees::git_clone),
    ("ash", trees::ash),
    ("java-forks", trees::java_forks),
    ("under-script", inside::under_script),
    ("bash-jobs", inside::bash_jobs),
    ("redis-saves", inside::redis_saves),
    ("redis-serves", inside::redis_serves),
];

/// Servers for clients that are no part of the job.
const SERVERS: &[(&str, App)] = &[
    ("nginx", servers::nginx),
    ("nginx-slow", servers::nginx_slow),
    ("nginx-closing", servers::nginx_closing),
    ("nginx-killed", servers::nginx_killed),
    ("redis", servers::redis),
    ("memcached", servers::memcached),
    ("unbound", servers::unbound),
    ("iperf3", servers::iperf3),
    ("iperf3-reverse", servers::iperf3_reverse),
    ("node-http2", servers::node_http2),
    ("node-websocket", servers::node_websocket),
    ("ssh-lines", ssh::lines),
    ("ssh-terminal", ssh::terminal),
    ("ssh-outlived", ssh::outlived),
];

/// Clients of an X server that is no part of the job.
const DISPLAY: &[(&str, App)] = &[
    ("xclock", display::xclock),
    ("xterm-counts", display::xterm_counts),
    ("xterm-typed", display::xterm_typed),
];

/// A client and a server that are a job each.
const CHAT: &[(&str, App)] = &[("together", chat::together), ("apart", chat::apart)];

/// How all of these are started, and by whom.
const WAYS: &[(&str, Who, Start)] = &[
    ("launched", Who::User, Start::Launched),
    ("launched", Who::Root, Start::Launched),
    ("attached", Who::User, Start::Attached),
    ("native", Who::User, Start::Native),
    ("attached", Who::Root, Start::Attached),
    ("native", Who::Root, Start::Native),
];

const SHELL: &[(&str, App)] = &[
    ("stop-and-continue", shell::stop_and_continue),
    ("moved-while-stopped", shell::moved_while_stopped),
    ("asked-while-stopped", shell::asked_while_stopped),
    ("background", background::background),
    ("tmux", multiplexer::tmux),
    ("tmux-server", inside::tmux_server),
    ("inner-shell", shell::inner_shell),
    ("typed-while-moving", shell::typed_while_moving),
];

/// Those that are also moved to nodes that make no namespaces.
const TRANSLATED: &[&str] = &["python-terminal", "dev-tty", "under-script", "bash-jobs"];

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (name, run) in SHELL.iter().copied() {
        for who in [Who::User, Who::Root] {
            let run = move |w: &mut Worker| run(w.hosts(who)?, Start::Launched);
            cells.push(Cell::new(format!("shell/{}/{name}", who.word()), run).limit(300));
        }
    }
    let adopters = [
        ("waits", adopted::Adopter::Waits),
        ("leaves", adopted::Adopter::Leaves),
        ("detaches", adopted::Adopter::Detaches),
    ];
    for (word, adopter) in adopters {
        for who in [Who::User, Who::Root] {
            let run = move |w: &mut Worker| adopted::from_another_terminal(w.hosts(who)?, adopter);
            cells.push(Cell::new(format!("adopted/{}/{word}", who.word()), run).limit(300));
        }
    }
    let families =
        [("servers", SERVERS, &WAYS[..4]), ("display", DISPLAY, WAYS), ("chat", CHAT, WAYS)];
    for (family, apps, ways) in families {
        for ((name, app), (word, who, start)) in
            apps.iter().flat_map(|app| ways.iter().map(|way| (*app, *way)))
        {
            let run = move |w: &mut Worker| app(w.hosts(who)?, start);
            let name = format!("{family}/{word}/{}/{name}", who.word());
            cells.push(Cell::new(name, run).limit(300));
        }
    }
    for (name, app) in APPS.iter().copied() {
        for who in [Who::User, Who::Root] {
            let run = move |w: &mut Worker| app(w.hosts(who)?, Start::Launched);
            cells.push(Cell::new(format!("launched/{}/{name}", who.word()), run).limit(300));
        }
        for (word, start) in [("native", Start::Native), ("still", Start::Still)] {
            let run = move |w: &mut Worker| app(w.bare_hosts(Who::User)?, start);
            cells.push(Cell::new(format!("{word}/user/{name}"), run).limit(300));
        }
        if TRANSLATED.contains(&name) {
            let run = move |w: &mut Worker| app(w.refusing_hosts()?, Start::Launched);
            cells.push(Cell::new(format!("translated/user/{name}"), run).limit(300));
        }
        let run = move |w: &mut Worker| app(w.hosts(Who::User)?, Start::Attached);
        cells.push(Cell::new(format!("attached/user/{name}"), run).limit(300));
    }
    cells
}

fn main() -> ExitCode {
    common::runner::main(cells())
}
