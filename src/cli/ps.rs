//! `vosrun ps`: the jobs of this node, one line each.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde_json::{json, Value};

use super::human::{age_since, clean, duration, shorten, size};
use super::out::{print, print_json};
use super::select::{survey, Life, Seen};
use super::table::table;
use crate::control::{Finding, JobState, JobStatus, Severity};
use crate::state::{JobMeta, StateDir};

/// Options of `vosrun ps`.
#[derive(Debug, clap::Args)]
pub struct PsArgs {
    /// More columns
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Output>,
    /// Update in place every second until ^C
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Adds EPOCH, HOME and COMMAND
    Wide,
}

/// Lists the jobs.
///
/// # Errors
/// When the state folder cannot be read or the output not be written.
pub fn ps(state: &StateDir, args: &PsArgs, json: bool) -> anyhow::Result<u8> {
    let wide = args.output == Some(Output::Wide);
    loop {
        let jobs = survey(state)
            .with_context(|| format!("cannot list the jobs in {}", state.path().display()))?;
        if json {
            print_json(json!({ "jobs": jobs.iter().map(document).collect::<Vec<_>>() }))?;
        } else if args.watch && std::io::stdout().is_terminal() {
            // Home, the table with each line's rest cleared, then clear below (console_codes(4)).
            print(&format!("\x1b[H{}\x1b[J", render(&jobs, wide).replace('\n', "\x1b[K\n")))?;
        } else {
            print(&render(&jobs, wide))?;
        }
        if !args.watch {
            return Ok(0);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

const COLUMNS: [&str; 12] = [
    "ID",
    "NAME",
    "PID@NODE",
    "STATE",
    "CPU",
    "MEM",
    "CONNS",
    "TTY",
    "AGE",
    "MOVES",
    "LAST PAUSE",
    "MOVABLE",
];

/// The table, and below it what to do about jobs that need a person.
fn render(jobs: &[Seen], wide: bool) -> String {
    let mut header = COLUMNS.to_vec();
    if wide {
        header.extend(["EPOCH", "HOME", "COMMAND"]);
    }
    let rows: Vec<_> = jobs.iter().map(|seen| row(seen, wide)).collect();
    let hints: String = jobs.iter().filter_map(hint).map(|h| format!("{h}\n")).collect();
    table(&header, &rows) + &hints
}

fn row(seen: &Seen, wide: bool) -> Vec<String> {
    let mut cells = vec![seen.id.to_string(), shorten(&clean(&seen.name()), 20)];
    match (&seen.life, &seen.meta) {
        (Life::Live(status), _) => cells.extend(live_cells(status)),
        (life, meta) => cells.extend(stale_cells(life, meta.as_ref())),
    }
    if wide {
        cells.extend(wide_cells(seen));
    }
    cells
}

fn live_cells(s: &JobStatus) -> [String; 10] {
    let pid = s.processes.first().map_or_else(|| "-".into(), |p| p.pid.to_string());
    // What a job uses is seen by the node where it is.
    let used = |text: String| if s.state == JobState::Away { "-".into() } else { text };
    let pause =
        s.history.last().map_or_else(|| "-".into(), |m| duration(m.pause_ms).replace(' ', ""));
    [
        format!("{pid}@{}", clean(&s.node)),
        state_word(s.state).into(),
        used(format!("{:.0}%", s.cpu_percent)),
        used(size(s.rss_bytes)),
        used(s.connections.to_string()),
        s.tty.as_deref().map_or_else(|| "-".into(), |t| clean(t.trim_start_matches("/dev/"))),
        age_since(s.started_ms),
        s.history.len().to_string(),
        pause,
        movable(s),
    ]
}

fn stale_cells(life: &Life, meta: Option<&JobMeta>) -> [String; 10] {
    let dash = || "-".to_owned();
    let pid = match life {
        Life::Orphaned(pid) => pid.to_string(),
        _ => meta.map_or_else(dash, |m| m.pid.to_string()),
    };
    let age = meta.map_or_else(dash, |m| age_since(m.started_ms));
    [pid, stale_word(life).into(), dash(), dash(), dash(), dash(), age, dash(), dash(), dash()]
}

fn wide_cells(seen: &Seen) -> [String; 3] {
    match (&seen.life, &seen.meta) {
        (Life::Live(s), _) => [s.epoch.to_string(), clean(&s.home), clean(&s.command)],
        (_, Some(m)) => [m.epoch.to_string(), clean(&m.home), clean(&m.command.join(" "))],
        _ => ["-".into(), "-".into(), "-".into()],
    }
}

/// A live job's state as people read it.
pub fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Running => "RUNNING",
        JobState::Stopped => "STOPPED",
        JobState::Migrating => "MIGRATING",
        JobState::InDoubt => "IN-DOUBT",
        JobState::Away => "AWAY",
        JobState::Prepared => "PREPARED",
    }
}

/// The state of a job whose supervisor did not answer.
pub fn stale_word(life: &Life) -> &'static str {
    match life {
        Life::Live(s) => state_word(s.state),
        Life::Silent(_) => "NO-ANSWER",
        Life::Orphaned(_) => "ORPHANED",
        Life::Away => "NO-AGENT",
        Life::Lost => "LOST",
    }
}

/// `yes`, `no: VOS-DEV fd 9`, `(round 1, 40%)`, or `-` where another node has to say.
fn movable(s: &JobStatus) -> String {
    if let Some(moving) = &s.moving {
        return format!("({})", clean(moving));
    }
    match judged(s) {
        None => "-".into(),
        Some(None) => "yes".into(),
        Some(Some(f)) => format!("no: {} {}", f.code, short_object(f)),
    }
}

/// The first blocker, if any; None where this node cannot judge.
fn judged(s: &JobStatus) -> Option<Option<&Finding>> {
    let elsewhere = matches!(s.state, JobState::Away | JobState::Prepared | JobState::InDoubt);
    let blocker = s.blockers.iter().find(|f| f.severity == Severity::Blocker);
    (!elsewhere).then_some(blocker)
}

/// `fd 9` of `fd 9 → /dev/nvidia0`.
fn short_object(f: &Finding) -> String {
    clean(f.object.split(" → ").next().unwrap_or_default())
}

fn hint(seen: &Seen) -> Option<String> {
    let name = clean(&seen.name());
    let id = seen.id;
    match &seen.life {
        Life::Orphaned(_) => Some(format!(
            "{name} ({id}) goes on running without a supervisor; take it up again: vosrun adopt {name}"
        )),
        Life::Silent(why) => Some(format!("{name} ({id}): its supervisor does not answer: {}", clean(why))),
        Life::Lost => Some(format!("{name} ({id}) is lost; forget it: rm -r {}", seen.dir.path().display())),
        Life::Away => Some(format!(
            "{name} ({id}) runs on another node; its home agent here has died, and what it relayed is gone"
        )),
        Life::Live(_) => None,
    }
}

/// One job for `--json`.
fn document(seen: &Seen) -> Value {
    match (&seen.life, &seen.meta) {
        (Life::Live(status), _) => status_document(status),
        (life, Some(meta)) => json!({
            "id": seen.id.hex(), "name": meta.name, "command": meta.command.join(" "),
            "state": stale_word(life), "home": meta.home, "epoch": meta.epoch,
            "started_ms": meta.started_ms, "processes": [], "hint": hint(seen),
        }),
        (life, None) => json!({
            "id": seen.id.hex(), "name": seen.name(), "state": stale_word(life),
            "processes": [], "hint": hint(seen),
        }),
    }
}

/// A live job for `--json`: every field of its status, ids as hexadecimal, moves as in
/// `vosrun migrate --json`.
pub fn status_document(s: &JobStatus) -> Value {
    let mut document = json!(s);
    if let Value::Object(members) = &mut document {
        let history = s.history.iter().map(super::migrate::moved_document).collect();
        members.insert("id".into(), s.id.hex().into());
        members.insert("state".into(), state_word(s.state).into());
        members.insert("history".into(), Value::Array(history));
        members.insert("movable".into(), judged(s).map_or(Value::Null, |b| b.is_none().into()));
    }
    document
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cli::select::tests::meta;
    use crate::control::{MoveReport, ProcessStatus};
    use crate::ids::{Epoch, JobId, MoveId};

    pub fn process() -> ProcessStatus {
        ProcessStatus { pid: 7, host_pid: 4711, node: "b".into(), comm: "api".into(), threads: 6 }
    }

    pub fn report() -> MoveReport {
        MoveReport {
            id: MoveId([0x7f, 0x3a, 0, 1]),
            job: "api".into(),
            job_id: JobId([0xa4; 16]),
            from: "a".into(),
            to: "b".into(),
            epoch: Epoch(5),
            at_ms: super::super::human::now_ms() - 120_000,
            pause_ms: 87.4,
            total_ms: 2600.0,
            parts: vec![("freeze".into(), 0.4), ("transfer".into(), 80.0)],
            bytes_memory: 2_130_000_000,
            bytes_wire: 1_310_000_000,
            lost: Vec::new(),
            processes: vec![process()],
        }
    }

    pub fn blocker() -> Finding {
        Finding {
            severity: Severity::Blocker,
            code: "VOS-DEV".into(),
            object: "fd 9 → /dev/nvidia0".into(),
            cause: "State lives in the GPU.".into(),
            remedy: "let it finish".into(),
        }
    }

    pub fn status(name: &str) -> JobStatus {
        JobStatus {
            id: JobId([0xa4; 16]),
            name: name.into(),
            command: "/usr/bin/api -x".into(),
            state: JobState::Running,
            node: "b".into(),
            home: "a".into(),
            epoch: Epoch(5),
            started_ms: super::super::human::now_ms() - 22_320_000,
            processes: vec![process()],
            cpu_percent: 398.2,
            rss_bytes: 12_025_908_429,
            private_bytes: 11_000_000_000,
            cwd: "/var/lib/api".into(),
            tty: Some("/dev/pts/3".into()),
            connections: 2,
            fds: Vec::new(),
            depends: Vec::new(),
            history: vec![report()],
            blockers: Vec::new(),
            moving: None,
            supervisor_pid: 4700,
            attached: false,
        }
    }

    fn seen(life: Life) -> Seen {
        let tmp = tempfile::tempdir().unwrap();
        let id = JobId([0xa4; 16]);
        let dir = StateDir::open(tmp.path()).unwrap().job(id);
        Seen { id, dir, meta: Some(meta("api", Some((4711, 1)))), life }
    }

    fn live(status: JobStatus) -> Seen {
        seen(Life::Live(Box::new(status)))
    }

    #[test]
    fn table_of_live_jobs() {
        let blocked = JobStatus {
            blockers: vec![blocker()],
            history: Vec::new(),
            tty: None,
            ..status("ffmpeg")
        };
        let moving = JobStatus {
            state: JobState::Migrating,
            moving: Some("round 1, 40%".into()),
            ..status("redis\x1b[2J")
        };
        assert_eq!(
            render(&[live(status("api")), live(blocked), live(moving)], false),
            "ID        NAME            PID@NODE  STATE      CPU   MEM    CONNS  TTY    AGE    MOVES  LAST PAUSE  MOVABLE\n\
             a4a4a4a4  api             7@b       RUNNING    398%  11.2G  2      pts/3  6h12m  1      87ms        yes\n\
             a4a4a4a4  ffmpeg          7@b       RUNNING    398%  11.2G  2      -      6h12m  0      -           no: VOS-DEV fd 9\n\
             a4a4a4a4  redis\\u{1b}[2J  7@b       MIGRATING  398%  11.2G  2      pts/3  6h12m  1      87ms        (round 1, 40%)\n"
        );
    }

    #[test]
    fn wide_adds_columns() {
        let text = render(&[live(status("api"))], true);
        assert!(text.lines().next().unwrap().ends_with("MOVABLE  EPOCH  HOME  COMMAND"), "{text}");
        assert!(text.ends_with("yes      5      a     /usr/bin/api -x\n"), "{text}");
    }

    #[test]
    fn stale_folders_say_what_to_do() {
        let text = render(&[seen(Life::Orphaned(4711))], false);
        assert!(text.contains("a4a4a4a4  api   4711      ORPHANED  -"), "{text}");
        assert!(text.ends_with("take it up again: vosrun adopt api\n"), "{text}");
        let text = render(&[seen(Life::Lost)], false);
        assert!(text.contains("  LOST   -") && text.contains("forget it: rm -r /"), "{text}");
    }

    #[test]
    fn json_of_a_job() {
        let doc = document(&live(status("api")));
        assert_eq!(doc["id"], "a4".repeat(16));
        assert_eq!(doc["state"], "RUNNING");
        assert_eq!(doc["epoch"], 5);
        assert_eq!(
            doc["processes"],
            json!([{"pid": 7, "host_pid": 4711, "node": "b", "comm": "api", "threads": 6}])
        );
        assert_eq!(doc["history"][0]["move"], "m-7f3a0001");
        let doc = document(&seen(Life::Orphaned(4711)));
        assert_eq!(doc["state"], "ORPHANED");
        assert_eq!(doc["processes"], json!([]));
    }
}
