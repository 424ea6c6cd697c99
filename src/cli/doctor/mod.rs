//! `vosrun doctor`: what this machine allows, found by trying.
//!
//! ```text
//! probes: one short-lived child each ─► Finding ─┐
//! self-test: a toy moved between two local nodes ┼─► report, exit code
//! --to NODE: the toy moved there                 ┘
//! ```
//! Settings are not believed: a report that only reads them can say "good" and be wrong.

mod probes;
mod selftest;

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::{json, Value};

use super::children::{output, own_binary};
use super::human::{clean, count, duration};
use super::out::{print, print_json, Paint};
use super::table::{pad, width};
use crate::state::StateDir;
pub use probes::{probe, ProbeArgs};
use probes::{Need, Probe, PROBES};
use selftest::Outcome;

/// How long a probe may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Options of `vosrun doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Also move a toy program to this node; the local node must be running
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Leave the self-test out, which moves a toy program between two local nodes
    #[arg(long)]
    quick: bool,
}

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Fine,
    Warning,
    Bad,
}

/// A probe and its end: a note when fine, the reason when not.
struct Found {
    probe: &'static Probe,
    mark: Mark,
    text: String,
}

/// Tries everything; exit code 1 when programs cannot be moved from or to this machine.
///
/// # Errors
/// When the probes cannot be run or the output not be written.
pub fn doctor(state: &StateDir, args: &DoctorArgs, json: bool) -> anyhow::Result<u8> {
    super::raw::catch_signals()?;
    let paint = Paint::stdout();
    let found = try_all()?;
    if !json {
        print(&render(&found, paint))?;
    }
    let mut tests: Vec<(String, anyhow::Result<Outcome>)> = Vec::new();
    if !args.quick {
        tests.push(("self-test".into(), selftest::between_local_nodes()));
    }
    if let Some(node) = &args.to {
        tests.push((format!("to {node}"), selftest::to_node(state, node)));
    }
    let failed = tests.iter().filter(|t| t.1.is_err()).count();
    let code = u8::from(failed > 0 || found.iter().any(|f| f.mark == Mark::Bad));
    if json {
        print_json(document(&found, &tests, code))?;
    } else {
        let tests: String = tests.iter().map(|(what, end)| test_line(what, end, paint)).collect();
        print(&(tests + &summary(&found, failed, code)))?;
    }
    Ok(code)
}

fn try_all() -> anyhow::Result<Vec<Found>> {
    let binary = own_binary().context("cannot find the vosrun binary")?;
    let run = |probe: &'static Probe| {
        let end = output(Command::new(&binary).args(["__probe", probe.name]), LIMIT);
        let (mark, text) = match end {
            Ok(out) => judge(probe.need, &String::from_utf8_lossy(&out.stdout)),
            Err(e) => (bad(probe.need), format!("the probe did not end: {e}")),
        };
        Found { probe, mark, text }
    };
    Ok(PROBES.iter().map(run).collect())
}

/// A probe prints `ok NOTE` or `no REASON`.
fn judge(need: Need, said: &str) -> (Mark, String) {
    match said.trim().split_once(' ').unwrap_or((said.trim(), "")) {
        ("ok", note) => (Mark::Fine, note.into()),
        ("no", reason) => (bad(need), reason.into()),
        _ => (bad(need), "the probe was killed".into()),
    }
}

fn bad(need: Need) -> Mark {
    match need {
        Need::Always => Mark::Bad,
        Need::Sometimes => Mark::Warning,
    }
}

/// The picture: what is fine in up to three columns, then one line for each finding.
fn render(found: &[Found], paint: Paint) -> String {
    let mut text = format!("host {}\n", host(paint));
    let fine: Vec<String> =
        found.iter().filter(|f| f.mark == Mark::Fine).map(|f| fine_cell(f, paint)).collect();
    for row in columns(&fine) {
        text += &format!("{row}\n");
    }
    for f in found.iter().filter(|f| f.mark != Mark::Fine) {
        let mark = if f.mark == Mark::Bad { paint.bad("✘") } else { paint.warn("⚠") };
        text += &format!(" {mark} {}  {}\n", pad(f.probe.title, 26), clean(&f.text));
        text += &format!("   {}  → {}\n", pad("", 26), f.probe.remedy);
    }
    text
}

fn fine_cell(f: &Found, paint: Paint) -> String {
    let note = if f.text.is_empty() { String::new() } else { format!(" ({})", clean(&f.text)) };
    format!("{} {}{note}", paint.good("✔"), f.probe.title)
}

/// As many cells in a row as fit: 26 columns each, a longer one takes two or three.
fn columns(cells: &[String]) -> Vec<String> {
    const CELL: usize = 26;
    let mut rows: Vec<(usize, String)> = Vec::new();
    for cell in cells {
        let seen = visible(cell) + 1;
        let slots = seen.div_ceil(CELL).min(3);
        let padded = format!("{cell}{}", " ".repeat((slots * CELL).saturating_sub(seen)));
        match rows.last_mut() {
            Some((used, row)) if *used + slots <= 3 => {
                *used += slots;
                row.push_str(&format!(" {padded}"));
            }
            _ => rows.push((slots, format!(" {padded}"))),
        }
    }
    rows.into_iter().map(|(_, row)| row.trim_end().to_owned()).collect()
}

/// Columns taken on the screen: colour sequences (ESC … m) take none.
fn visible(text: &str) -> usize {
    let mut parts = text.split('\x1b');
    let first = parts.next().map_or(0, width);
    first + parts.map(|p| width(p.split_once('m').map_or("", |(_, rest)| rest))).sum::<usize>()
}

/// `laptop   linux 6.18.0 x86_64, vosrun 0.1.0, uid 1000`.
fn host(paint: Paint) -> String {
    let name = nix::sys::utsname::uname();
    let field = |f: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        name.as_ref().map_or_else(|_| "?".into(), |n| f(n).to_string_lossy().into_owned())
    };
    format!(
        "{}   linux {} {}, vosrun {}, uid {}",
        paint.strong(&field(|n| n.nodename())),
        field(|n| n.release()),
        field(|n| n.machine()),
        env!("CARGO_PKG_VERSION"),
        nix::unistd::getuid()
    )
}

fn test_line(what: &str, end: &anyhow::Result<Outcome>, paint: Paint) -> String {
    match end {
        Ok(outcome) => {
            let pauses: Vec<_> = outcome.pauses_ms.iter().map(|ms| duration(*ms)).collect();
            let way = outcome.way.join("→");
            let pauses = pauses.join(" / ");
            format!(
                "{} {what}: ran threads+memory+pipes, moved {way}: ok, paused {pauses}\n",
                paint.good("✔")
            )
        }
        Err(e) => format!("{} {what}: {e:#}\n", paint.bad("✘")),
    }
}

fn summary(found: &[Found], failed: usize, code: u8) -> String {
    let of = |mark| found.iter().filter(|f| f.mark == mark).count();
    let warnings = count(of(Mark::Warning), "warning", "warnings");
    let verdict = if code == 0 { "programs can be moved" } else { "programs cannot be moved yet" };
    let tests = match failed {
        0 => String::new(),
        n => format!(", {} failed", count(n, "test", "tests")),
    };
    format!("{verdict}; {warnings}, {} to fix{tests}\n", of(Mark::Bad))
}

fn document(found: &[Found], tests: &[(String, anyhow::Result<Outcome>)], code: u8) -> Value {
    let checks: Vec<_> = found
        .iter()
        .map(|f| {
            let result = match f.mark {
                Mark::Fine => "ok",
                Mark::Warning => "warning",
                Mark::Bad => "failed",
            };
            let remedy = (f.mark != Mark::Fine).then_some(f.probe.remedy);
            json!({ "name": f.probe.name, "title": f.probe.title, "result": result, "note": f.text, "remedy": remedy })
        })
        .collect();
    let tests: Vec<_> = tests
        .iter()
        .map(|(what, end)| match end {
            Ok(o) => {
                json!({ "name": what, "result": "ok", "way": o.way, "pauses_ms": o.pauses_ms })
            }
            Err(e) => json!({ "name": what, "result": "failed", "note": format!("{e:#}") }),
        })
        .collect();
    json!({ "host": host(Paint::default()), "checks": checks, "tests": tests, "exit": code })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, mark: Mark, text: &str) -> Found {
        let probe = PROBES.iter().find(|p| p.name == name).unwrap();
        Found { probe, mark, text: text.into() }
    }

    #[test]
    fn what_a_probe_says() {
        assert_eq!(judge(Need::Always, "ok\n"), (Mark::Fine, String::new()));
        assert_eq!(judge(Need::Sometimes, "no EPERM (1)\n"), (Mark::Warning, "EPERM (1)".into()));
        assert_eq!(judge(Need::Always, "").0, Mark::Bad);
    }

    #[test]
    fn fine_ones_in_columns_others_with_their_way_out() {
        let all = [
            found("ptrace", Mark::Fine, ""),
            found("seccomp", Mark::Fine, ""),
            found("limits", Mark::Fine, "open files 1024 of 1048576"),
            found("attach", Mark::Warning, "EPERM; kernel.yama.ptrace_scope is 1"),
        ];
        let text = render(&all, Paint::default());
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines[0], " ✔ ptrace own children     ✔ seccomp filter");
        assert_eq!(lines[1], " ✔ limits (open files 1024 of 1048576)");
        assert_eq!(lines[2], " ⚠ attach to other processes   EPERM; kernel.yama.ptrace_scope is 1");
        assert!(lines[3].contains("→ start the program with `vosrun --`"), "{text}");
        assert!(summary(&all, 0, 0).contains("1 warning, 0 to fix"));
    }

    #[test]
    fn colours_take_no_room() {
        assert_eq!(visible("\x1b[32m✔\x1b[0m ab"), 4);
    }
}
