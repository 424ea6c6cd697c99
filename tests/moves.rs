//! The matrix: each guest × how it starts × as whom × how it moves.
//!
//! Cells are called `native/root/GUEST`, `one/root/GUEST`, `ten/user/GUEST`, `random/user/GUEST`
//! and `attached/user/GUEST`; arguments choose cells by substrings.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use common::build::{self, Flavour};
use common::job::{Job, Program, Start};
use common::runner::{Cell, Worker};
use common::Who;

/// A guest program of the matrix.
#[derive(Debug, Clone, Copy)]
struct Guest {
    source: &'static str,
    args: &'static [&'static str],
    flavour: Flavour,
    /// Why it cannot be attached to, if so.
    launched_only: Option<&'static str>,
}

const fn guest(source: &'static str) -> Guest {
    Guest { source, args: &[], flavour: Flavour::Plain, launched_only: None }
}

const fn with(source: &'static str, args: &'static [&'static str]) -> Guest {
    Guest { source, args, flavour: Flavour::Plain, launched_only: None }
}

const fn built(source: &'static str, flavour: Flavour) -> Guest {
    Guest { source, args: &[], flavour, launched_only: None }
}

const fn launched_only(source: &'static str, why: &'static str) -> Guest {
    Guest { source, args: &[], flavour: Flavour::Plain, launched_only: Some(why) }
}

const GUESTS: &[Guest] = &[
    guest("counter"),
    guest("mem_private"),
    guest("mem_shared_anon"),
    guest("mem_file_private"),
    guest("mem_file_shared"),
    guest("mem_memfd"),
    guest("mem_deleted_file"),
    guest("mem_stack_guard"),
    guest("mem_thp"),
    guest("mem_prot_none"),
    guest("mem_growsdown"),
    guest("mem_mlock"),
    guest("mem_layout"),
    guest("mem_brk"),
    guest("mem_big"),
    guest("vdso"),
    guest("threads"),
    guest("amx"),
    guest("fsgs"),
    guest("tid_address"),
    guest("robust"),
    guest("rseq"),
    guest("futexes"),
    guest("sigmask"),
    guest("sigactions"),
    guest("sigaltstack"),
    guest("sig_pending"),
    guest("itimers"),
    guest("posix_timers"),
    guest("sleepers"),
    with("sleepers", &["nanosleep"]),
    guest("blocked"),
    guest("ids"),
    guest("creds"),
    launched_only("undumpable", "a process that is not dumpable belongs to root"),
    guest("uname"),
    guest("clocks"),
    guest("fd_files"),
    guest("fd_dir"),
    guest("fd_deleted"),
    guest("fd_pipe"),
    guest("fd_eventfd"),
    guest("fd_timerfd"),
    guest("fd_signalfd"),
    guest("fd_epoll"),
    with("fd_epoll", &["closed-target"]),
    guest("fd_memfd"),
    guest("fd_dev"),
    launched_only("fd_inotify", "the paths of watches made before are not known"),
    guest("exec_chain"),
    guest("no_fds"),
    built("counter", Flavour::Static),
    built("counter", Flavour::StaticPie),
    built("counter", Flavour::NoPie),
    built("counter", Flavour::StaticNoPie),
    built("counter", Flavour::Musl),
    built("threads", Flavour::StaticNoPie),
    built("threads", Flavour::Musl),
    built("vdso", Flavour::Musl),
    built("mem_brk", Flavour::StaticNoPie),
];

impl Guest {
    fn name(&self) -> String {
        let mut name = format!("{}{}", self.source, self.flavour.suffix());
        for arg in self.args {
            name += &format!("+{arg}");
        }
        name
    }

    fn program(&self) -> Result<Program> {
        if !build::available(self.flavour) {
            anyhow::bail!("SKIP no compiler for {:?}", self.flavour);
        }
        Ok(Program::new(build::guest(self.source, self.flavour)?).args(self.args))
    }
}

/// How a job moves in a cell.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// From a to b.
    One,
    /// a → b → c → a → … ten times.
    Ten,
    /// Five moves at random instants to random hosts.
    Random,
}

/// A small random generator (splitmix64), so that a seed gives the same run everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % below
    }
}

/// `VOSRUN_SEED`, else a new one.
fn seed() -> Result<u64> {
    match std::env::var("VOSRUN_SEED") {
        Ok(text) => text.parse().context("VOSRUN_SEED is not a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            Ok(u64::from(now.subsec_nanos()) ^ now.as_secs())
        }
    }
}

fn moves(job: &mut Job<'_>, way: Way) -> Result<()> {
    match way {
        Way::One => {
            job.await_progress(2)?;
            job.migrate(1)?;
            job.await_progress(3)
        }
        Way::Ten => {
            for turn in 1..=10 {
                job.migrate(turn % 3).with_context(|| format!("move {turn} of 10"))?;
                // Sometimes the next move comes before the job has done anything.
                if turn % 3 != 0 {
                    job.await_progress(1).with_context(|| format!("after move {turn} of 10"))?;
                }
            }
            job.await_progress(3)
        }
        Way::Random => {
            let seed = seed()?;
            random_moves(job, seed).with_context(|| format!("VOSRUN_SEED={seed}"))
        }
    }
}

fn random_moves(job: &mut Job<'_>, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    for turn in 1..=5 {
        std::thread::sleep(Duration::from_micros(random.next(60_000)));
        let to = (job.at + 1 + random.next(2) as usize) % 3;
        job.migrate(to).with_context(|| format!("move {turn} of 5, to host {to}"))?;
    }
    job.await_progress(3)
}

fn native(guest: Guest, who: Who, worker: &mut Worker) -> Result<()> {
    let hosts = worker.bare_hosts(who)?;
    let mut job = Job::start(hosts, Start::Native, guest.program()?)?;
    job.await_ready()?;
    job.await_progress(5)?;
    check_output(guest, &job.finish()?)
}

fn moved(guest: Guest, start: Start, who: Who, way: Way, worker: &mut Worker) -> Result<()> {
    if let (Start::Attached, Some(why)) = (start, guest.launched_only) {
        anyhow::bail!("SKIP {why}");
    }
    let program = guest.program()?;
    let mut job = Job::start(worker.hosts(who)?, start, program)?;
    job.await_ready()?;
    moves(&mut job, way)?;
    check_output(guest, &job.finish()?)
}

/// The lines of stdout: none lost, none twice, none out of order.
fn check_output(guest: Guest, out: &str) -> Result<()> {
    let lines: Vec<&str> = out.lines().collect();
    if guest.source != "counter" {
        let want: &[&str] =
            if guest.source == "no_fds" { &["EXIT-SUCCESS"] } else { &["READY", "EXIT-SUCCESS"] };
        anyhow::ensure!(lines == want, "stdout: {out}");
        return Ok(());
    }
    for (i, line) in lines[1..lines.len() - 1].iter().enumerate() {
        anyhow::ensure!(**line == i.to_string(), "line {i} of stdout is {line:?}");
    }
    Ok(())
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for guest in GUESTS.iter().copied() {
        let name = guest.name();
        for who in [Who::Root, Who::User] {
            let run = move |w: &mut Worker| native(guest, who, w);
            cells.push(Cell::new(format!("native/{}/{name}", who.word()), run));
        }
        let ways = [
            ("one/root", Start::Launched, Who::Root, Way::One),
            ("ten/root", Start::Launched, Who::Root, Way::Ten),
            ("one/user", Start::Launched, Who::User, Way::One),
            ("ten/user", Start::Launched, Who::User, Way::Ten),
            ("random/user", Start::Launched, Who::User, Way::Random),
            ("attached/user", Start::Attached, Who::User, Way::One),
        ];
        for (word, start, who, way) in ways {
            let run = move |w: &mut Worker| moved(guest, start, who, way, w);
            cells.push(Cell::new(format!("{word}/{name}"), run));
        }
    }
    cells
}

fn main() -> ExitCode {
    common::runner::main(cells())
}
