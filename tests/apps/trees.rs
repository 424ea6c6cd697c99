//! Programs that are many processes: compilers, pipelines, shells, a Java program that forks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};

use super::common::hosts::Hosts;
use super::common::job::{needs, Job, Program, Start};
use super::common::procs;
use super::common::{run_dir, until};
use super::{in_steps, move_on, numbers, source, When, LONG};

/// Runs a program to its end, moved five times in the middle of its work, of which `done` tells
/// how much there is. Returns what it printed.
fn in_mid_work(
    hosts: &Hosts,
    start: Start,
    program: Program,
    done: impl Fn(&Job<'_>) -> Result<u64>,
) -> Result<String> {
    let mut job = Job::start_early(hosts, start, program)?;
    if start == Start::Attached {
        job.attach()?;
    }
    let moves = if matches!(start, Start::Native | Start::Still) { 0 } else { 5 };
    let mut before = 0;
    for turn in 1..=moves {
        until(LONG, "more work done", || {
            let over = job.child.try_wait()?.is_some();
            ensure!(!over, "it ended before move {turn}: {}", job.said());
            let now = done(&job)?;
            let more = now > before;
            before = before.max(now);
            Ok(more.then_some(()))
        })?;
        move_on(&mut job).with_context(|| format!("move {turn}"))?;
    }
    let code = job.end(LONG)?;
    ensure!(code == 0, "exit code {code}: {}", job.said());
    job.await_nothing_left()?;
    Ok(job.stdout.text())
}

/// As [`in_mid_work`], unmoved and moved, of a program that prints the same each time.
pub fn like_unmoved(
    hosts: &Hosts,
    start: Start,
    program: impl Fn() -> Result<Program>,
    done: impl Fn(&Job<'_>) -> Result<u64>,
) -> Result<()> {
    let want = in_mid_work(hosts, Start::Native, program()?, &done)?;
    let got = in_mid_work(hosts, start, program()?, &done)?;
    ensure!(got == want, "moved it printed {got:?}, unmoved {want:?}");
    Ok(())
}

pub fn lines(job: &Job<'_>) -> Result<u64> {
    Ok(job.stdout.bytes().iter().filter(|b| **b == b'\n').count() as u64)
}

/// A shell script of the program's own directory, printing what is compared.
pub fn script(shell: &Path, dir: &Path, text: &str) -> Program {
    Program::new(shell).args(["-c", text, "sh", &dir.display().to_string()])
}

/// The interpreter of Lua, from Debian's source package, unpacked anew.
fn lua_source(hosts: &Hosts) -> Result<PathBuf> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sources");
    let archives = fs::read_dir(&kept).into_iter().flatten().flatten().map(|e| e.path());
    let is_lua = |path: &PathBuf| path.to_string_lossy().contains("/lua5.4_");
    let archive = { archives }.find(is_lua);
    let archive = archive.with_context(|| {
        format!("SKIP needs the source of lua5.4 in {} (scripts/setup fetches it)", kept.display())
    })?;
    let dir = hosts.fresh_dir("lua")?;
    let mut unpack = Command::new("tar");
    unpack
        .args(["--no-same-owner", "--strip-components=1", "-xf"])
        .arg(archive)
        .arg("-C")
        .arg(&dir);
    procs::run(&mut unpack, LONG)?.good("tar")?;
    let mut open = Command::new("chmod");
    open.args(["-R", "a+rwX"]).arg(&dir);
    procs::run(&mut open, LONG)?.good("chmod")?;
    Ok(dir)
}

/// `make -j4` with a compiler that is several processes for each file.
pub fn make(hosts: &Hosts, start: Start) -> Result<()> {
    let (make, _) = (needs("make")?, needs("gcc")?);
    let mut sums = Vec::new();
    for start in [Start::Native, start] {
        let dir = lua_source(hosts)?.join("src");
        let objects = |_: &Job<'_>| {
            let files = fs::read_dir(&dir)?.flatten();
            Ok(files.filter(|e| e.path().extension().is_some_and(|x| x == "o")).count() as u64)
        };
        let program = Program::new(&make).args(["-j4", "-C"]).args([dir.display()]);
        let program = program.args(["generic", "MYCFLAGS=-g0"]);
        in_mid_work(hosts, start, program, objects)?;
        let mut run = Command::new(dir.join("lua"));
        run.args(["-e", "print(string.rep('x', 3), 2^53 // 7)"]);
        let said = procs::run(&mut run, LONG)?.good("the new lua")?;
        let sum = fs::read(dir.join("lua"))?;
        sums.push((said, sum));
    }
    ensure!(sums[0].0 == sums[1].0, "it works otherwise: {:?}", sums[1].0);
    ensure!(sums[0].1 == sums[1].1, "the moved build made another program");
    Ok(())
}

/// Pipelines of gzip, sort and tar, one after another.
pub fn pipeline(hosts: &Hosts, start: Start) -> Result<()> {
    let (bash, _, _) = (needs("bash")?, needs("gzip")?, needs("tar")?);
    let text = "set -e -o pipefail; export LC_ALL=C; cd \"$1\"
        seq 1 150000 | awk '{ print ($1 * 7919) % 150007, $1 }' | gzip -1 >in.gz
        for i in $(seq 1 25); do
            gzip -dc in.gz | sed \"s/\\$/ $i/\" | sort -S 2M -T . -k2,2nr | gzip -1n >sorted.gz
            tar -c --mtime=@0 --owner=0 --group=0 --mode=644 sorted.gz | sha256sum
        done";
    like_unmoved(hosts, start, || Ok(script(&bash, &hosts.fresh_dir("pipeline")?, text)), lines)
}

/// Clones a repository over a pipe from git-upload-pack.
pub fn git_clone(hosts: &Hosts, start: Start) -> Result<()> {
    let (git, bash) = (needs("git")?, needs("bash")?);
    let from = run_dir().join("repository");
    if !from.exists() {
        let text = "set -e; cd \"$1\"; git init -q -b main .
            git config user.name tester; git config user.email tester@localhost
            git config core.compression 0
            for i in $(seq 1 12); do
                seq $i 7 400000 | sed \"s/$/ of $i/\" >file.$((i % 5)); git add .; git commit -qm \"$i\"
            done";
        // Others may be making it as well.
        let made = run_dir().join(format!("repository.{}", std::process::id()));
        fs::create_dir(&made)?;
        let mut make = Command::new(&bash);
        make.args(["-c", text, "sh"]).arg(&made).env("HOME", &made);
        procs::run(&mut make, LONG)?.good("a repository")?;
        let mut open = Command::new("chmod");
        open.args(["-R", "a+rX"]).arg(&made);
        procs::run(&mut open, LONG)?.good("chmod")?;
        match fs::rename(made, &from) {
            Err(_) if from.exists() => {}
            other => other?,
        }
    }
    let text = format!(
        "set -e; cd \"$1\"; export HOME=$PWD; '{git}' config --global safe.directory '*'
        for i in $(seq 1 12); do
            '{git}' clone -q --no-local 'file://{from}' copy.$i
            '{git}' -C copy.$i fsck --no-dangling 2>&1 | tail -n 1
            '{git}' -C copy.$i rev-parse 'HEAD^{{tree}}' HEAD
        done",
        git = git.display(),
        from = from.display()
    );
    like_unmoved(hosts, start, || Ok(script(&bash, &hosts.fresh_dir("clone")?, &text)), lines)
}

pub fn ash(hosts: &Hosts, start: Start) -> Result<()> {
    let (busybox, file) = (needs("busybox")?, source("steps.sh")?);
    let program = || Program::new(&busybox).args(["ash".into(), file.display().to_string()]);
    in_steps(hosts, start, program, &numbers(12), When::Inside)
}

/// A Java program that starts others, by jspawnhelper and posix_spawn(3).
pub fn java_forks(hosts: &Hosts, start: Start) -> Result<()> {
    let (java, file) = (needs("java")?, source("Forks.java")?);
    let program = || {
        let file = file.display().to_string();
        Program::new(&java).args(["-Xmx128m", "-XX:-UsePerfData", &file])
    };
    in_steps(hosts, start, program, &numbers(9), When::Inside)
}
