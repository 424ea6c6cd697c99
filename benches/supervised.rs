//! What a program loses by running under vosrun: `cargo bench --bench supervised`.
//!
//! Each row is one workload, measured alone and as `vosrun -- PROGRAM`, next to each other;
//! see benches/README.md for what the columns mean.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use common::stats::{conclude, median, spread, Pairs, Wanted};
use common::{free_port, number, retry, run, Options, Scratch, VOSRUN};

/// No single run takes longer.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match Bench::new() {
        Ok(bench) => bench.all(),
        Err(e) => conclude(&[("every row".into(), e)]),
    }
}

/// One row of the table.
struct Row {
    name: &'static str,
    unit: &'static str,
    repeats: usize,
    wanted: Wanted,
    measure: fn(&Bench, usize) -> Result<Pairs>,
}

/// The table, top to bottom.
const ROWS: &[Row] = &[
    Row {
        name: "getppid loop",
        unit: "ns/call",
        repeats: 15,
        wanted: Wanted::AtLeast(0.98),
        measure: getppid,
    },
    Row {
        name: "getppid, bare filter",
        unit: "ns/call",
        repeats: 15,
        wanted: Wanted::Nothing,
        measure: bare_filter,
    },
    Row {
        name: "pipe ping-pong, 1 byte",
        unit: "ns/round",
        repeats: 15,
        wanted: Wanted::AtLeast(0.98),
        measure: pingpong,
    },
    Row {
        name: "redis SET, 50 clients",
        unit: "µs/request",
        repeats: 9,
        wanted: Wanted::AtLeast(0.98),
        measure: |bench, n| redis(bench, n, "set"),
    },
    Row {
        name: "redis GET, 50 clients",
        unit: "µs/request",
        repeats: 9,
        wanted: Wanted::AtLeast(0.98),
        measure: |bench, n| redis(bench, n, "get"),
    },
    Row {
        name: "sqlite inserts",
        unit: "µs/insert",
        repeats: 11,
        wanted: Wanted::AtLeast(0.98),
        measure: sqlite,
    },
    Row {
        name: "compile, 40 C files",
        unit: "s",
        repeats: 7,
        wanted: Wanted::AtLeast(0.92),
        measure: compile,
    },
    Row {
        name: "Python start-up, 20×",
        unit: "s",
        repeats: 7,
        wanted: Wanted::Nothing,
        measure: python,
    },
    Row {
        name: "start and end of a job",
        unit: "ms",
        repeats: 15,
        wanted: Wanted::Nothing,
        measure: launch,
    },
];

/// The scratch folder and the state folder of the jobs.
struct Bench {
    options: Options,
    scratch: Scratch,
    state: std::path::PathBuf,
}

impl Bench {
    fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let state = scratch.dir("state")?;
        Ok(Self { options: Options::from_args()?, scratch, state })
    }

    fn all(&self) -> ExitCode {
        println!(
            "{:<24}{:<12}{:>10}{:>10}  {:<22}{:<22}{:>3}  wanted",
            "native : vosrun", "unit", "native", "vosrun", "speed under vosrun", "noise", "n"
        );
        let mut failures = Vec::new();
        for row in ROWS.iter().filter(|row| self.options.chosen(row.name)) {
            if let Err(e) = self.row(row) {
                failures.push((row.name.to_owned(), e));
            }
        }
        conclude(&failures)
    }

    fn row(&self, row: &Row) -> Result<()> {
        let repeats = self.options.repeats.unwrap_or(row.repeats);
        let pairs = (row.measure)(self, repeats)?;
        let speed = pairs.speed();
        println!(
            "{:<24}{:<12}{:>10.3}{:>10.3}  {:<22}{:<22}{:>3}  {}",
            row.name,
            row.unit,
            median(&pairs.native),
            median(&pairs.vosrun),
            spread(&speed, 3),
            spread(&pairs.noise(), 3),
            repeats,
            row.wanted.verdict(median(&speed))
        );
        Ok(())
    }

    /// `vosrun -- PROGRAM`, its arguments still to be added.
    fn vosrun(&self, program: &Path) -> Command {
        let mut command = Command::new(VOSRUN);
        command.arg("--state-dir").arg(&self.state).arg("--").arg(program);
        command
    }

    /// Pairs of a program that prints its own figure.
    fn printed(&self, repeats: usize, program: &Path, args: &[&str]) -> Result<Pairs> {
        let figure = |command: &mut Command| number(&run(command.args(args), LIMIT)?);
        Pairs::measure(
            repeats,
            || figure(&mut Command::new(program)),
            || figure(&mut self.vosrun(program)),
        )
    }

    /// Pairs of the time that a shell script takes, in seconds. The script's last output
    /// must be `end`: one that was not run to its end has no time.
    fn shell(&self, repeats: usize, script: &str, end: &str) -> Result<Pairs> {
        let sh = Path::new("/bin/sh");
        let time = |command: &mut Command| {
            let start = Instant::now();
            let text = run(command.args(["-c", script]), LIMIT)?;
            let time = start.elapsed().as_secs_f64();
            ensure!(text.trim_end().ends_with(end), "the script printed {text:?}, not {end:?}");
            Ok(time)
        };
        Pairs::measure(repeats, || time(&mut Command::new(sh)), || time(&mut self.vosrun(sh)))
    }
}

fn getppid(bench: &Bench, repeats: usize) -> Result<Pairs> {
    let program = bench.scratch.guest("getppid", &[])?;
    bench.printed(repeats, &program, &["2000000"])
}

/// The kernel's own price of any seccomp filter: what no supervisor that uses one can beat.
fn bare_filter(bench: &Bench, repeats: usize) -> Result<Pairs> {
    let program = bench.scratch.guest("getppid", &[])?;
    let figure = |args: &[&str]| number(&run(Command::new(&program).args(args), LIMIT)?);
    Pairs::measure(repeats, || figure(&["2000000"]), || figure(&["2000000", "filter"]))
}

fn pingpong(bench: &Bench, repeats: usize) -> Result<Pairs> {
    let program = bench.scratch.guest("pingpong", &[])?;
    bench.printed(repeats, &program, &["20000"])
}

fn sqlite(bench: &Bench, repeats: usize) -> Result<Pairs> {
    let program = bench.scratch.guest("inserts", &["-lsqlite3"])?;
    // In memory where there is such a file system: a disk's own moods are larger than the
    // difference.
    let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    bench.printed(repeats, &program, &[&memory.path().to_string_lossy(), "5000"])
}

/// A project of 40 files that call each other, compiled one by one and linked.
fn compile(bench: &Bench, repeats: usize) -> Result<Pairs> {
    let folder = bench.scratch.dir("project")?;
    for file in 0..40 {
        fs::write(folder.join(format!("part{file}.c")), source(file))?;
    }
    let script = format!(
        "cd '{}' && rm -f *.o program && for f in *.c; do gcc -O1 -c \"$f\" || exit 1; done && \
         gcc -o program *.o && ./program",
        folder.display()
    );
    bench.shell(repeats, &script, "compiled")
}

/// The text of one file of the project; file 0 has `main`.
fn source(file: u32) -> String {
    let mut text = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    for function in 0..12 {
        text += &format!(
            "int part{file}_{function}(int n)\n{{\n\tint a[64], sum = {function};\n\
             \tmemset(a, n, sizeof a);\n\tfor (int i = 0; i < 64; i++)\n\
             \t\tsum += (a[i] ^ i * {file}) % (n + 1 ? n + 1 : 1);\n\treturn sum;\n}}\n"
        );
    }
    if file == 0 {
        text += "int part39_11(int);\nint main(void)\n{\n\
                 \tputs(part39_11(3) + part0_0(4) ? \"compiled\" : \"compiled\");\n\treturn 0;\n}\n";
    }
    text
}

fn python(bench: &Bench, repeats: usize) -> Result<Pairs> {
    let ask = ["-c", "import sys; print(sys.executable)"];
    let interpreter = run(Command::new("python3").args(ask), LIMIT)?;
    let script = format!(
        "i=0; while [ $i -lt 20 ]; do '{}' -c pass || exit 1; i=$((i+1)); done; echo started $i",
        interpreter.trim()
    );
    bench.shell(repeats, &script, "started 20")
}

/// A job that does nothing: what making, supervising and ending one costs.
fn launch(bench: &Bench, repeats: usize) -> Result<Pairs> {
    let mut pairs = bench.shell(repeats, "echo done", "done")?;
    for time in pairs.native.iter_mut().chain(&mut pairs.vosrun) {
        *time *= 1e3;
    }
    Ok(pairs)
}

/// Two servers stand side by side; the client, always without vosrun, asks one, then the other.
fn redis(bench: &Bench, repeats: usize, test: &str) -> Result<Pairs> {
    let native = Redis::start(&mut Command::new("redis-server"))?;
    let vosrun = Redis::start(&mut bench.vosrun(Path::new("redis-server")))?;
    Pairs::measure(repeats, || native.request_cost(test), || vosrun.request_cost(test))
}

/// A server on a loopback port of its own, without files. Dropping it ends it.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    fn start(command: &mut Command) -> Result<Self> {
        let port = free_port()?;
        let child = command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", common::words(command)))?;
        let server = Self { child, port };
        retry(Duration::from_secs(10), || server.say("PING", "+PONG"))
            .with_context(|| format!("{} does not answer", common::words(command)))?;
        Ok(server)
    }

    fn say(&self, command: &str, expected: &str) -> Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "{command}\r\n")?;
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer)?;
        ensure!(answer == expected.as_bytes(), "an unexpected answer to {command}");
        Ok(())
    }

    /// µs per request as redis-benchmark counts them, from `"SET","81234.50",…`.
    fn request_cost(&self, test: &str) -> Result<f64> {
        let mut client = Command::new("redis-benchmark");
        client.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        client.args(["-c", "50", "-n", "50000", "-t", test, "--csv"]);
        let text = run(&mut client, LIMIT)?;
        let line = text.lines().find(|l| l.to_lowercase().starts_with(&format!("\"{test}\",")));
        let rate = line.and_then(|l| l.split('"').nth(3)).context("redis-benchmark: no rate")?;
        Ok(1e6 / number(rate)?)
    }
}

impl Drop for Redis {
    /// Asks the server to end, then the process that was started (vosrun passes SIGTERM on),
    /// then kills that one.
    fn drop(&mut self) {
        let _ = self.say("SHUTDOWN NOSAVE", "");
        let gone = |child: &mut Child| {
            retry(Duration::from_secs(5), || child.try_wait()?.context("still running")).is_ok()
        };
        if gone(&mut self.child) {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if !gone(&mut self.child) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
