//! Runs cells in worker processes and prints the table.
//!
//! The test binary starts itself twice with `--worker`. A worker is a subreaper, so that
//! every process a cell starts stays below it, whatever daemonises; it keeps its hosts from
//! one cell to the next. After a cell that failed it is killed with all below it.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::hosts::Hosts;
use super::procs;
use super::{is_root, Who};

/// Workers at a time.
const WORKERS: usize = 2;

type Run = dyn Fn(&mut Worker) -> Result<()> + Send + Sync;

/// One test: its name and what it does.
pub struct Cell {
    pub name: String,
    /// The cell's worker is killed after this time.
    pub limit: Duration,
    /// No other cell runs beside it.
    alone: bool,
    run: Box<Run>,
}

impl Cell {
    /// A cell with the usual time limit. An error that starts with `SKIP` is a skip.
    pub fn new(
        name: impl Into<String>,
        run: impl Fn(&mut Worker) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let limit = Duration::from_secs(120);
        Self { name: name.into(), limit, alone: false, run: Box::new(run) }
    }

    /// It may keep all CPUs busy: another cell beside it would tell of nothing but that.
    pub fn alone(mut self, alone: bool) -> Self {
        self.alone = alone;
        self
    }

    /// With another time limit.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }
}

/// What a worker keeps between cells.
#[derive(Debug, Default)]
pub struct Worker {
    hosts: HashMap<&'static str, Hosts>,
}

impl Worker {
    /// Three hosts, made at the first call.
    pub fn hosts(&mut self, who: Who) -> Result<&Hosts> {
        self.kept(who.word(), who, |who| Hosts::start(who, 3))
    }

    /// Three hosts of an ordinary user whose nodes can make no namespaces.
    pub fn refusing_hosts(&mut self) -> Result<&Hosts> {
        self.kept("refusing user", Who::User, |who| {
            let hosts = Hosts::bare(who, 3)?;
            (0..3).try_for_each(|index| hosts.start_refused_node(index))?;
            Ok(hosts)
        })
    }

    /// One host with no daemon, for what does not move.
    pub fn bare_hosts(&mut self, who: Who) -> Result<&Hosts> {
        let word = if who == Who::Root { "bare root" } else { "bare user" };
        self.kept(word, who, |who| Hosts::bare(who, 1))
    }

    /// Three hosts with no daemons.
    pub fn bare_three(&mut self, who: Who) -> Result<&Hosts> {
        let word = if who == Who::Root { "three root" } else { "three user" };
        self.kept(word, who, |who| Hosts::bare(who, 3))
    }

    fn kept(
        &mut self,
        word: &'static str,
        who: Who,
        make: impl FnOnce(Who) -> Result<Hosts>,
    ) -> Result<&Hosts> {
        if who == Who::Root && !is_root() {
            anyhow::bail!("SKIP needs root");
        }
        if !self.hosts.contains_key(word) {
            self.hosts.insert(word, make(who)?);
        }
        self.hosts.get(word).context("no hosts")
    }
}

/// How a cell ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

impl Outcome {
    fn of(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::Passed,
            Err(e) => {
                let text = format!("{e:#}");
                match text.find("SKIP ") {
                    Some(at) => {
                        let why = text[at + 5..].lines().next().unwrap_or_default();
                        Self::Skipped(why.split(" stderr").next().unwrap_or(why).to_owned())
                    }
                    None => Self::Failed(text),
                }
            }
        }
    }

    fn encode(&self) -> String {
        let (word, text) = match self {
            Self::Passed => ("passed", ""),
            Self::Failed(why) => ("failed", why.as_str()),
            Self::Skipped(why) => ("skipped", why.as_str()),
        };
        serde_json::json!([word, text]).to_string()
    }

    fn decode(line: &str) -> Self {
        let pair: (String, String) = serde_json::from_str(line).unwrap_or_default();
        match pair.0.as_str() {
            "passed" => Self::Passed,
            "skipped" => Self::Skipped(pair.1),
            "failed" => Self::Failed(pair.1),
            _ => Self::Failed(format!("the worker said: {line}")),
        }
    }
}

/// A cell's line in the table.
pub struct Row {
    pub name: String,
    pub outcome: Outcome,
    pub took: Duration,
}

/// The `main` of a test binary. Arguments: substrings of cell names, all of which must
/// match; `--list`; `--keep` keeps the temporary files; `--times=N` runs each cell N times.
pub fn main(cells: Vec<Cell>) -> ExitCode {
    main_then(cells, |_| Ok(()))
}

/// As [`main`], with a last word about all cells that ran.
pub fn main_then(cells: Vec<Cell>, then: impl FnOnce(&[Row]) -> Result<()>) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--worker") {
        return worker(&cells);
    }
    let words: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen: VecDeque<&Cell> =
        cells.iter().filter(|c| words.iter().all(|w| c.name.contains(w.as_str()))).collect();
    if args.iter().any(|a| a == "--list") {
        for cell in chosen {
            println!("{}: test", cell.name);
        }
        return ExitCode::SUCCESS;
    }
    let times = args.iter().find_map(|a| a.strip_prefix("--times=")?.parse().ok()).unwrap_or(1);
    let chosen = std::iter::repeat_n(chosen, times).flatten().collect();
    match run_all(chosen, args.iter().any(|a| a == "--keep")) {
        Ok(rows) => {
            let code = report(&rows);
            match then(&rows) {
                Ok(()) => code,
                Err(e) => {
                    eprintln!("{e:#}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(e) => {
            eprintln!("the tests could not be run: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_all(cells: VecDeque<&Cell>, keep: bool) -> Result<Vec<Row>> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let dir = tempfile::Builder::new().prefix("vosrun-test-").tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    std::env::set_var("VOSRUN_TEST_DIR", dir.path());
    let dir = if keep {
        std::env::set_var("VOSRUN_TEST_KEEP", "1");
        println!("files in {}", dir.keep().display());
        None
    } else {
        Some(dir)
    };
    let total = cells.len();
    let queue = Mutex::new(cells);
    let rows = Mutex::new(Vec::new());
    let room = RwLock::new(());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(total) {
            scope.spawn(|| serve(&queue, &rows, &room, total));
        }
    });
    drop(dir);
    let mut rows = rows.into_inner().unwrap_or_else(|e| e.into_inner());
    rows.sort_by(|a: &Row, b: &Row| a.name.cmp(&b.name));
    Ok(rows)
}

/// Takes cells from the queue until it is empty. Who runs alone has `room` for itself.
fn serve(queue: &Mutex<VecDeque<&Cell>>, rows: &Mutex<Vec<Row>>, room: &RwLock<()>, total: usize) {
    let mut remote = None;
    loop {
        let Some(cell) = lock(queue).pop_front() else { return };
        let _alone = cell.alone.then(|| room.write().unwrap_or_else(|e| e.into_inner()));
        let _beside = (!cell.alone).then(|| room.read().unwrap_or_else(|e| e.into_inner()));
        let start = Instant::now();
        let outcome = match remote.take().map_or_else(Remote::start, Ok) {
            Ok(mut worker) => {
                let outcome = worker.run(cell);
                // A failure may have left anything behind.
                if !matches!(outcome, Outcome::Failed(_)) {
                    remote = Some(worker);
                }
                outcome
            }
            Err(e) => Outcome::Failed(format!("{e:#}")),
        };
        let row = Row { name: cell.name.clone(), outcome, took: start.elapsed() };
        let mut rows = lock(rows);
        println!("[{}/{total}] {}", rows.len() + 1, line(&row, true));
        rows.push(row);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// A worker process as its parent sees it.
struct Remote {
    child: Child,
    lines: Receiver<String>,
}

impl Remote {
    fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--worker").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a worker")?;
        let out = BufReader::new(child.stdout.take().context("no stdout")?);
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn run(&mut self, cell: &Cell) -> Outcome {
        let asked = self.child.stdin.as_mut().map(|to| writeln!(to, "{}", cell.name));
        if !matches!(asked, Some(Ok(()))) {
            return Outcome::Failed("the worker is gone".into());
        }
        match self.lines.recv_timeout(cell.limit) {
            Ok(line) => Outcome::decode(&line),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Outcome::Failed(format!("not done within {} s", cell.limit.as_secs()))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Outcome::Failed("the worker died".into()),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // An idle worker takes its hosts down itself; one that does not is killed.
        drop(self.child.stdin.take());
        if procs::wait(&mut self.child, Duration::from_secs(10), "a worker").is_err() {
            procs::kill_tree(self.child.id() as i32);
            let _ = self.child.wait();
        }
    }
}

/// The worker's side: a cell's name per line on stdin, its outcome on stdout.
fn worker(cells: &[Cell]) -> ExitCode {
    if let Err(e) = nix::sys::prctl::set_child_subreaper(true) {
        eprintln!("PR_SET_CHILD_SUBREAPER: {e}");
        return ExitCode::FAILURE;
    }
    let busy = Arc::new(AtomicBool::new(false));
    let names = orders(Arc::clone(&busy));
    let mut worker = Worker::default();
    for name in names {
        let outcome = match cells.iter().find(|c| c.name == name) {
            Some(cell) => one(cell, &mut worker),
            None => Outcome::Failed(format!("no cell named {name}")),
        };
        // The runner ends a worker after a failure; that is no reason to clean up for it.
        busy.store(false, Ordering::SeqCst);
        let told = writeln!(std::io::stdout(), "{}", outcome.encode());
        if matches!(outcome, Outcome::Failed(_)) || told.is_err() {
            break;
        }
    }
    drop(worker);
    procs::kill_below(std::process::id() as i32);
    ExitCode::SUCCESS
}

/// Reads the names of cells. When the runner is gone in the middle of a cell, everything
/// that the cell has started is killed.
fn orders(busy: Arc<AtomicBool>) -> Receiver<String> {
    let (send, names) = mpsc::channel();
    let runner = std::os::unix::process::parent_id();
    std::thread::spawn(move || {
        for name in std::io::stdin().lock().lines().map_while(Result::ok) {
            busy.store(true, Ordering::SeqCst);
            if send.send(name).is_err() {
                return;
            }
        }
        if busy.load(Ordering::SeqCst) {
            procs::kill_below(std::process::id() as i32);
            // A runner that lives only puts this worker away: its folder is in use.
            let orphaned = std::os::unix::process::parent_id() != runner;
            if let (true, Some(dir), None) = (
                orphaned,
                std::env::var_os("VOSRUN_TEST_DIR"),
                std::env::var_os("VOSRUN_TEST_KEEP"),
            ) {
                let _ = fs::remove_dir_all(dir);
            }
            std::process::exit(1);
        }
    });
    names
}

fn one(cell: &Cell, worker: &mut Worker) -> Outcome {
    let result = catch_unwind(AssertUnwindSafe(|| (cell.run)(worker)));
    let mut outcome = match result {
        Ok(result) => Outcome::of(result),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Outcome::Failed(format!("panic: {}", text.unwrap_or_default()))
        }
    };
    if let Outcome::Failed(why) = &mut outcome {
        for hosts in worker.hosts.values() {
            why.push_str(&format!("\n{}", hosts.diagnosis()));
        }
    }
    procs::reap_orphans();
    outcome
}

/// One line of the table; `long` with the whole reason of a failure.
fn line(row: &Row, long: bool) -> String {
    let (word, why) = match &row.outcome {
        Outcome::Passed => ("ok", ""),
        Outcome::Failed(why) if long => ("FAILED", why.as_str()),
        Outcome::Failed(why) => ("FAILED", why.lines().next().unwrap_or_default()),
        Outcome::Skipped(why) => ("skipped", why.as_str()),
    };
    format!("{:<52} {word:<8} {:>6.1} s  {why}", row.name, row.took.as_secs_f64())
        .trim_end()
        .to_owned()
}

fn report(rows: &[Row]) -> ExitCode {
    println!();
    for row in rows {
        println!("{}", line(row, false));
    }
    let count = |f: fn(&Outcome) -> bool| rows.iter().filter(|r| f(&r.outcome)).count();
    let failed = count(|o| matches!(o, Outcome::Failed(_)));
    println!(
        "\n{} passed, {failed} failed, {} skipped",
        count(|o| *o == Outcome::Passed),
        count(|o| matches!(o, Outcome::Skipped(_)))
    );
    ExitCode::from(u8::from(failed > 0))
}
