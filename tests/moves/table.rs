//! The table of what moves (`vosrun capabilities`), compared with what the guests prove.
//!
//! A row that says `moves` needs a guest that proves it in cells of that way; one that says
//! `refused` needs a guest that holds such an object and is refused with that code, or a unit test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use vosrun::capabilities::{all, Capability, Support, Way, WAYS};

use crate::common::build::{self, Flavour};
use crate::common::job::{Job, Program, Start};
use crate::common::runner::{Cell, Outcome, Row, Worker};
use crate::common::Who;
use crate::{Guest, GUESTS};

/// Rows that other tests prove: the file, and a word of it that shows that it does.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("fifos", "src/migrate/resource/fd/pipe.rs", "mkfifo"),
    ("o-path", "src/migrate/resource/fd/opath.rs", "#[test]"),
    ("programs", "tests/moves.rs", "fn shipped("),
    ("streams", "tests/moves.rs", "stream-{name}"),
    ("terminal", "tests/apps.rs", "vim"),
    ("unix-abstract", "src/migrate/resource/fd/unix/tests.rs", "fn an_abstract_name_can_be_taken("),
];

/// Rows whose objects the guest `unmovable` can hold: their names are its argument.
const HELD: &[&str] = &[
    "async-outside",
    "bpf",
    "chroot",
    "clone-shared-apart",
    "cpu-sleep",
    "devices",
    "directory-gone",
    "exe-gone",
    "aio",
    "aio-busy",
    "fanotify",
    "file-unlinked",
    "inotify",
    "inotify-events",
    "io-uring",
    "kvm",
    "landlock",
    "leader-ended",
    "lease-write",
    "mem-hugetlb",
    "mem-outside",
    "mem-pkey",
    "mem-sealed",
    "memfd-future-write",
    "memfd-huge",
    "namespace-fd",
    "namespaces",
    "netlink",
    "perf",
    "posix-mq-busy",
    "posix-mq-thread",
    "pidfd-outside",
    "pidfd-thread-shared",
    "proc-outside",
    "pty-master",
    "seccomp",
    "seccomp-listener",
    "seccomp-narrow",
    "secretmem",
    "socket-other",
    "tcp-unconnected",
    "thread-files-epoll",
    "udp-group",
    "unix",
    "untraced",
    "userfaultfd",
];

/// Rows whose objects few machines have, or whose makers need a second program: the file with the
/// unit test of the refusal.
const UNITS: &[(&str, &str)] = &[
    ("abi-32", "src/migrate/preflight.rs"),
    ("lock-wanted", "src/migrate/resource/fd/lock.rs"),
    ("unknown", "src/migrate/resource/fd/refused.rs"),
    ("epoll-orphan", "src/migrate/resource/fd/epoll.rs"),
    ("fifo-shared", "src/migrate/resource/fd/pipe.rs"),
    ("file-local", "src/migrate/resource/fd/regular.rs"),
    ("gpu", "src/migrate/resource/fd/device.rs"),
    ("mem-device", "src/migrate/resource/memory.rs"),
    ("mem-shadow-stack", "src/migrate/resource/memory.rs"),
    ("mem-uprobe", "src/migrate/resource/memory.rs"),
    ("posix-mq-notify", "src/migrate/resource/fd/mqueue.rs"),
    ("posix-mq-outside", "src/migrate/resource/fd/mqueue.rs"),
    ("sysv-outside", "src/migrate/resource/ipc/choose.rs"),
    ("unix-peer", "src/migrate/resource/fd/unix/tests.rs"),
];

/// Rows that only a job which was started so can show: an attached tree is traced whole, a program
/// without a first thread is not found by its name, and all that a launched one makes is of its job.
const ONLY: &[(&str, Start)] = &[
    ("leader-ended", Start::Launched),
    ("mem-outside", Start::Attached),
    ("untraced", Start::Launched),
];

fn start_of(way: Way) -> (Start, Who) {
    match way {
        Way::LaunchedUser => (Start::Launched, Who::User),
        Way::LaunchedRoot => (Start::Launched, Who::Root),
        Way::AttachedUser => (Start::Attached, Who::User),
        Way::AttachedRoot => (Start::Attached, Who::Root),
    }
}

/// `refused/launched_user/tcp`.
fn refused_cell(word: &str, row: &Capability) -> String {
    format!("refused/{word}/{}", row.name)
}

/// Cells that show that rows are refused, and one that compares the rows with the guests.
pub fn cells() -> Vec<Cell> {
    let mut cells = vec![Cell::new("table/proofs", |_| proofs())];
    for row in all().into_iter().filter(|row| HELD.contains(&row.name)) {
        for (way, word) in WAYS {
            let Support::Refused(code) = row.support(way) else { continue };
            let (start, who) = start_of(way);
            if ONLY.iter().any(|(name, only)| *name == row.name && *only != start) {
                continue;
            }
            let run = move |w: &mut Worker| refused(row.name, code, start, who, w);
            cells.push(Cell::new(refused_cell(word, &row), run));
        }
    }
    cells
}

/// `check` and `migrate` refuse with this code, and the guest goes on.
fn refused(
    name: &'static str,
    code: &str,
    start: Start,
    who: Who,
    worker: &mut Worker,
) -> Result<()> {
    let program = Program::new(build::guest("unmovable", Flavour::Plain)?).args([name]);
    let hosts = worker.hosts(who)?;
    let mut job = Job::start(hosts, start, program)?;
    job.await_ready()?;
    let target = hosts.hosts[1].name;
    let check = hosts.run(0, &["check", &job.name, "--to", target, "--json"])?;
    ensure!(check.code() == 10, "check: exit {}: {}{}", check.code(), check.stdout, check.stderr);
    names(&check.stdout, code).context("check")?;
    let moved = job.try_migrate(1)?;
    ensure!(moved.code() == 10, "migrate: exit {}: {}", moved.code(), moved.stdout);
    names(&moved.stdout, code).context("migrate")?;
    job.await_progress(3)?;
    job.finish().map(drop)
}

/// Is the code among the blockers of a document?
fn names(text: &str, code: &str) -> Result<()> {
    let document: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
    let findings = document["findings"].as_array().context("no findings")?;
    let found = findings.iter().any(|f| f["code"] == code && f["severity"] == "blocker");
    ensure!(found, "no {code} in {text}");
    Ok(())
}

/// Guests that prove a row in cells of a way.
fn guests_of(name: &str, way: Way) -> impl Iterator<Item = &'static Guest> + '_ {
    let (start, who) = start_of(way);
    GUESTS.iter().filter(move |guest| {
        let here = start != Start::Attached
            || guest.launched_only.is_none_or(|(by, _)| !by.contains(&who));
        here && guest.proves.contains(&name)
    })
}

/// Nothing is said that no test shows, and no test shows what is not said.
fn proofs() -> Result<()> {
    let rows = all();
    let mut wrong = Vec::new();
    for row in &rows {
        for (way, word) in WAYS {
            if let Err(e) = proof(row, way) {
                wrong.push(format!("{} {word}: {e:#}", row.name));
            }
        }
    }
    let known = |name: &str| rows.iter().any(|row| row.name == name);
    let named = GUESTS.iter().flat_map(|g| g.proves.iter().map(|n| (g.name(), *n)));
    let others = ELSEWHERE.iter().map(|e| ("ELSEWHERE".to_owned(), e.0));
    let held = HELD.iter().map(|name| ("HELD".to_owned(), *name));
    let units = UNITS.iter().map(|unit| ("UNITS".to_owned(), unit.0));
    for (by, name) in named.chain(others).chain(held).chain(units) {
        if !known(name) {
            wrong.push(format!("{by} proves {name}, which is no row of vosrun capabilities"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn proof(row: &Capability, way: Way) -> Result<()> {
    match row.support(way) {
        Support::Moves | Support::Warned(_) => {
            let elsewhere = ELSEWHERE.iter().find(|e| e.0 == row.name);
            match elsewhere {
                Some((_, file, word)) => mentions(file, word),
                None if guests_of(row.name, way).next().is_some() => Ok(()),
                None => anyhow::bail!("it moves, and no guest proves it"),
            }
        }
        Support::Refused(code) => {
            let unit = UNITS.iter().find(|unit| unit.0 == row.name);
            match unit {
                Some((_, file)) => mentions(file, code),
                None if HELD.contains(&row.name) => Ok(()),
                None => anyhow::bail!("it is refused, and no test holds it"),
            }
        }
        Support::Absent(_) | Support::Lost => Ok(()),
    }
}

fn mentions(file: &str, word: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let tests = text.find("#[cfg(test)]").unwrap_or(0);
    ensure!(text[tests..].contains(word), "no test of {file} has {word}");
    Ok(())
}

/// What the cells of a row in one way came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    Pass,
    Refused,
    Skipped,
    Failed,
}

impl Shown {
    fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Refused => "refused",
            Self::Skipped => "skipped",
            Self::Failed => "FAIL",
        }
    }
}

/// The worst of the cells that ran; a skip counts only when nothing else did.
fn shown(row: &Capability, way: Way, word: &str, ran: &BTreeMap<&str, &Outcome>) -> Option<Shown> {
    let (start, who) = start_of(way);
    let mut names = vec![refused_cell(word, row)];
    for guest in guests_of(row.name, way) {
        let ways: &[&str] = match start {
            Start::Attached => &["attached"],
            _ => &["one", "ten", "random"],
        };
        names.extend(ways.iter().map(|way| format!("{way}/{}/{}", who.word(), guest.name())));
    }
    let mut seen: Vec<Shown> = Vec::new();
    for (n, name) in names.iter().enumerate() {
        seen.extend(ran.get(name.as_str()).map(|outcome| match outcome {
            Outcome::Passed if n == 0 => Shown::Refused,
            Outcome::Passed => Shown::Pass,
            Outcome::Skipped(_) => Shown::Skipped,
            Outcome::Failed(_) => Shown::Failed,
        }));
    }
    let real = seen.iter().filter(|shown| **shown != Shown::Skipped).max();
    real.or(seen.first()).copied()
}

/// Prints state × way → what came of it, and writes it to `target/test-logs/capabilities.json`.
///
/// # Errors
/// When the file cannot be written.
pub fn summary(rows: &[Row]) -> Result<()> {
    let mut ran: BTreeMap<&str, &Outcome> = BTreeMap::new();
    for row in rows {
        let worse = matches!(row.outcome, Outcome::Failed(_)) || !ran.contains_key(&*row.name);
        if worse {
            ran.insert(&row.name, &row.outcome);
        }
    }
    let mut lines = Vec::new();
    let mut documents = Vec::new();
    for row in all() {
        let cells = WAYS.map(|(way, word)| (word, shown(&row, way, word, &ran)));
        if cells.iter().all(|(_, shown)| shown.is_none()) {
            continue;
        }
        let word = |shown: &Option<Shown>| shown.map_or("-", Shown::word);
        let words: Vec<String> = cells.iter().map(|(_, s)| format!("{:<8}", word(s))).collect();
        lines.push(format!("{:<20} {}", row.name, words.join(" ").trim_end()));
        let ways: BTreeMap<_, _> = cells.iter().map(|(way, s)| (*way, word(s))).collect();
        documents.push(json!({ "name": row.name, "ways": ways }));
    }
    if lines.is_empty() {
        return Ok(());
    }
    let head = "                     launched          attached\n\
                state                user     root     user     root";
    println!("\n{head}\n{}", lines.join("\n"));
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(3).context("no target folder")?;
    let logs = target.join("test-logs");
    fs::create_dir_all(&logs)?;
    let document = json!({ "api": "vosrun/v1", "capabilities": documents });
    let file = logs.join("capabilities.json");
    fs::write(&file, serde_json::to_string_pretty(&document)? + "\n")?;
    println!("{}", file.display());
    Ok(())
}
