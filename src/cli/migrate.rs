//! `vosrun migrate`: asks the job's supervisor for a move and watches it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::sys::signal::{SigSet, Signal};
use serde_json::{json, Value};

use super::error::Fail;
use super::out::{print, print_json, print_json_line, Paint};
use super::progress::{failure, moved, phase_word, result_word, Progress};
use super::select::{find_job, given_to, life, question, survey, unexpected, Life, Seen, PATIENCE};
use crate::control::{self, JobState, MoveEvent, MoveFailure, MoveReport, Reply, Request};
use crate::ids::{unhex, MoveId};
use crate::state::StateDir;

/// Options of `vosrun migrate`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["to", "cancel", "watch", "resolve"])))]
pub struct MigrateArgs {
    /// Name, id prefix or PID@NODE; may be left out with one job
    #[arg(conflicts_with_all = ["cancel", "watch", "resolve"])]
    job: Option<String>,
    /// Move the job to this node
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Make no namespaces on the target: translate process numbers, clocks and the host name at
    /// each call instead, which is slower. Done by itself where namespaces are refused
    #[arg(long, requires = "to")]
    translate: bool,
    /// Cancel a move that is not decided yet; the job goes on where it is
    #[arg(long, value_name = "MOVE", value_parser = parse_move)]
    cancel: Option<MoveId>,
    /// Watch a move that is in progress
    #[arg(long, value_name = "MOVE", value_parser = parse_move)]
    watch: Option<MoveId>,
    /// Wait for the end of a move in doubt and say how it ended
    #[arg(long, value_name = "MOVE", value_parser = parse_move)]
    resolve: Option<MoveId>,
    /// Print each event and the result as a line of JSON
    #[arg(long, conflicts_with = "json")]
    jsonl: bool,
}

/// Reads `m-7f3a0001`.
fn parse_move(word: &str) -> Result<MoveId, String> {
    let digits = word.strip_prefix("m-").unwrap_or(word);
    unhex(digits).map(MoveId).ok_or_else(|| "a move is m- and 8 hexadecimal digits".into())
}

/// Moves, watches or cancels.
///
/// # Errors
/// When the job or move cannot be found or its supervisor does not answer.
pub fn migrate(state: &StateDir, args: &MigrateArgs, json: bool) -> anyhow::Result<u8> {
    let format = match (json, args.jsonl) {
        (true, _) => Format::Json,
        (_, true) => Format::Lines,
        _ => Format::Text,
    };
    if let Some(id) = args.cancel {
        return cancel(state, id, format);
    }
    if let Some(id) = args.watch.or(args.resolve) {
        return watch(state, id, format);
    }
    let to = args.to.clone().unwrap_or_default();
    let seen = find_job(state, args.job.as_deref())?;
    seen.status()?;
    follow(&seen, &Request::Migrate { to, translate: args.translate }, format)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
    Lines,
}

/// Sends the request, shows the events, prints the end.
fn follow(seen: &Seen, request: &Request, format: Format) -> anyhow::Result<u8> {
    let watched = mind_interrupt(seen)?;
    let mut progress = Progress::to_stderr();
    let mut closed = Ok(());
    let reply = drive(&seen.dir.socket(), request, |event| {
        if let Ok(mut id) = watched.lock() {
            *id = Some((event.id, event.from.clone()));
        }
        if format == Format::Lines {
            // When nobody reads any more, the move still goes on to its end.
            closed = print_json_line(event_document(&event));
        } else {
            progress.event(event);
        }
    });
    progress.end();
    closed?;
    match reply {
        Ok(Reply::Moved(report)) => show_moved(&report, format),
        Ok(Reply::Failed(f)) => show_failed(&f, format),
        Ok(Reply::Error(why)) => Err(Fail::new(10, format!("{}: {why}", seen.name())).into()),
        Ok(_) => Err(unexpected(seen).into()),
        Err(e) => {
            let id = watched.lock().ok().and_then(|watched| Some(watched.as_ref()?.0));
            show_failed(&supervisor_gone(seen, id, &e), format)
        }
    }
}

/// [`control::ask`] for a move: no time limit, a move takes as long as it takes.
///
/// # Errors
/// As [`control::ask`].
pub fn drive(socket: &Path, request: &Request, on: impl FnMut(MoveEvent)) -> io::Result<Reply> {
    control::ask(socket, request, on)
}

fn show_moved(report: &MoveReport, format: Format) -> anyhow::Result<u8> {
    match format {
        Format::Text => eprint!("{}", moved(report, Paint::stderr())),
        Format::Json => print_json(moved_document(report))?,
        Format::Lines => print_json_line(moved_document(report))?,
    }
    Ok(0)
}

fn show_failed(f: &MoveFailure, format: Format) -> anyhow::Result<u8> {
    if format == Format::Lines {
        print_json_line(failed_document(f))?;
        return Ok(f.exit);
    }
    show_failure(f, format == Format::Json)
}

/// Prints a failure on stderr, with `json` also on stdout, and gives its exit code.
///
/// # Errors
/// When the output cannot be written.
pub fn show_failure(f: &MoveFailure, json: bool) -> anyhow::Result<u8> {
    eprint!("{}", failure(f, Paint::stderr()));
    if json {
        print_json(failed_document(f))?;
    }
    Ok(f.exit)
}

/// The supervisor went away in the middle: says what can still be known.
fn supervisor_gone(seen: &Seen, id: Option<MoveId>, e: &io::Error) -> MoveFailure {
    let name = seen.name();
    let (exit, sentence) = match life(&seen.dir) {
        Life::Orphaned(pid) => (
            11,
            format!("the supervisor of {name} has died. {name} is still running on this node without one, as pid {pid}; take it up again: vosrun adopt {name}"),
        ),
        Life::Live(status) => (
            12,
            format!("the connection to the supervisor of {name} was cut ({e}). {name} is on {}; the move goes on.", status.node),
        ),
        Life::Silent(why) => (
            12,
            format!("the supervisor of {name} does not answer any more ({why}). Where {name} runs is not known from here; look with vosrun ps on both nodes."),
        ),
        Life::Away => {
            let to = given_to(&seen.dir).unwrap_or_else(|| "another node".into());
            (12, format!("the supervisor of {name} has died after it was given to {to}. It will NOT run on this node again; {to} runs it. Look with vosrun ps on {to}."))
        }
        Life::Lost => {
            (13, format!("the supervisor of {name} and {name} itself have ended here; it runs nowhere."))
        }
    };
    MoveFailure { id, exit, code: "VOS-SUPERVISOR".into(), sentence, findings: Vec::new() }
}

/// A move that is watched, and the node that makes it.
type Watched = Arc<Mutex<Option<(MoveId, String)>>>;

/// From now on ^C says how to cancel and ends this process, not the move. The returned
/// cell takes the move when it is known.
fn mind_interrupt(job: &Seen) -> anyhow::Result<Watched> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let watched = Watched::default();
    let seen = Arc::clone(&watched);
    let away = matches!(&job.life, Life::Live(s) if s.state == JobState::Away);
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            let of = seen.lock().ok().and_then(|watched| watched.clone());
            eprintln!("\n{}", interrupted(of, away));
            std::process::exit(130);
        }
    });
    Ok(watched)
}

/// `away`: another node makes the move, and is the one to be asked.
fn interrupted(watched: Option<(MoveId, String)>, away: bool) -> String {
    let (id, node) = match &watched {
        Some((id, node)) => (id.to_string(), node.as_str()),
        None => ("MOVE".into(), "the job's node"),
    };
    let there = if away { format!(" (both on {node})") } else { String::new() };
    format!("stopped watching; the move goes on. watch: vosrun migrate --watch {id} · cancel: vosrun migrate --cancel {id}{there}")
}

/// Jobs whose supervisor may have a move in hand.
fn moving(state: &StateDir) -> io::Result<Vec<Seen>> {
    let in_hand = |seen: &Seen| match &seen.life {
        Life::Live(s) => {
            matches!(s.state, JobState::Migrating | JobState::InDoubt | JobState::Prepared)
        }
        _ => false,
    };
    Ok(survey(state)?.into_iter().filter(in_hand).collect())
}

fn cancel(state: &StateDir, id: MoveId, format: Format) -> anyhow::Result<u8> {
    for seen in moving(state)? {
        match question(&seen, &Request::Cancel { id: Some(id) }, PATIENCE)? {
            Reply::Ok => {
                let node = seen.status()?.node.clone();
                let text = format!("{id} cancelled; {} stays on {node}\n", seen.name());
                match format {
                    Format::Text => print(&text)?,
                    _ => print_json_line(
                        json!({ "result": "cancelled", "move": id.to_string(), "job": seen.name(), "id": seen.id.hex(), "node": node }),
                    )?,
                }
                return Ok(0);
            }
            Reply::Failed(f) => return show_failed(&f, format),
            // Not its move.
            _ => {}
        }
    }
    match finished(state, id)? {
        Some(report) => Err(Fail::new(
            10,
            format!(
                "{id} cannot be cancelled any more: {} has arrived on {}",
                report.job, report.to
            ),
        )
        .into()),
        None => Err(no_such_move(id).into()),
    }
}

fn watch(state: &StateDir, id: MoveId, format: Format) -> anyhow::Result<u8> {
    if let Some(report) = finished(state, id)? {
        return show_moved(&report, format);
    }
    for seen in moving(state)? {
        if has_move(&seen, id)? {
            return follow(&seen, &Request::Watch, format);
        }
    }
    Err(no_such_move(id).into())
}

/// The first event of a watch names the move.
fn has_move(seen: &Seen, id: MoveId) -> anyhow::Result<bool> {
    Ok(match question(seen, &Request::Watch, PATIENCE)? {
        Reply::Progress(event) => event.id == id,
        Reply::Moved(report) => report.id == id,
        Reply::Failed(f) => f.id == Some(id),
        _ => false,
    })
}

/// A move that stands in a job's history.
fn finished(state: &StateDir, id: MoveId) -> io::Result<Option<MoveReport>> {
    Ok(survey(state)?.into_iter().find_map(|seen| match seen.life {
        Life::Live(s) => s.history.into_iter().find(|m| m.id == id),
        _ => None,
    }))
}

fn no_such_move(id: MoveId) -> Fail {
    Fail::usage(format!("no move {id} here, neither in progress nor in a job's history"))
}

/// A finished move for `--json`.
pub fn moved_document(r: &MoveReport) -> Value {
    let parts: serde_json::Map<_, _> =
        r.parts.iter().map(|(k, ms)| (k.clone(), json!(ms))).collect();
    json!({
        "result": "moved", "move": r.id.to_string(), "job": r.job, "id": r.job_id.hex(),
        "from": r.from, "to": r.to, "epoch": r.epoch, "at_ms": r.at_ms,
        "pause_ms": r.pause_ms, "pause_parts_ms": parts, "total_ms": r.total_ms,
        "bytes": r.bytes_memory, "bytes_wire": r.bytes_wire, "processes": r.processes, "lost": r.lost,
    })
}

/// A failed move for `--json`.
pub fn failed_document(f: &MoveFailure) -> Value {
    json!({
        "result": result_word(f.exit), "exit": f.exit, "code": f.code, "message": f.sentence,
        "move": f.id.map(|id| id.to_string()), "findings": f.findings,
    })
}

fn event_document(e: &MoveEvent) -> Value {
    json!({
        "event": "progress", "move": e.id.to_string(), "job": e.job, "id": e.job_id.hex(),
        "from": e.from, "to": e.to, "phase": phase_word(e.phase), "text": e.text,
        "bytes": e.bytes.map(|b| b.0), "bytes_total": e.bytes.map(|b| b.1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::progress::tests::event;
    use crate::cli::ps::tests::{process, report};
    use crate::control::Phase;

    #[test]
    fn moves_are_named_as_they_are_shown() {
        let id = MoveId([0x7f, 0x3a, 0, 1]);
        assert_eq!(parse_move(&id.to_string()), Ok(id));
        assert_eq!(parse_move("7f3a0001"), Ok(id));
        assert!(parse_move("m-7f").is_err());
    }

    #[test]
    fn json_of_a_move() {
        let doc = moved_document(&report());
        assert_eq!(doc["result"], "moved");
        assert_eq!(doc["move"], "m-7f3a0001");
        assert_eq!(doc["epoch"], 5);
        assert_eq!(doc["pause_ms"], 87.4);
        assert_eq!(doc["processes"], json!([process()]));
        let f = MoveFailure {
            id: None,
            exit: 75,
            code: "VOS-UNREACHABLE".into(),
            sentence: "api is still running on a.".into(),
            findings: Vec::new(),
        };
        let doc = failed_document(&f);
        assert_eq!((&doc["result"], &doc["exit"]), (&json!("temporary"), &json!(75)));
        let doc = event_document(&event(Phase::Copy, "", Some((1, 2))));
        assert_eq!((&doc["phase"], &doc["bytes_total"]), (&json!("copy"), &json!(2)));
    }

    #[test]
    fn interrupt_says_how_to_cancel() {
        let of = Some((MoveId([1; 4]), "b".to_owned()));
        assert!(interrupted(of.clone(), false).ends_with("--cancel m-01010101"));
        assert!(interrupted(of, true).ends_with("--cancel m-01010101 (both on b)"));
    }
}
