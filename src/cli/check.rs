//! `vosrun check`: would a move work? Also the body of every refusal.

use std::time::Duration;

use serde_json::{json, Value};

use super::error::Fail;
use super::human::{clean, count};
use super::migrate::show_failure;
use super::out::{print, print_json, Paint};
use super::select::{find_job, question, unexpected};
use super::table::{pad, width};
use crate::control::{CheckReport, Finding, Reply, Request, Severity};
use crate::ids::JobId;
use crate::state::StateDir;

/// The target compares files by content before it answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Options of `vosrun check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Name, id prefix or PID@NODE; may be left out with one job
    job: Option<String>,
    /// Ask for this target, not only what is known here
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// As if the move were one with --translate
    #[arg(long, requires = "to")]
    translate: bool,
}

/// Prints the report; exit code 0 when the job can move, 10 when not.
///
/// # Errors
/// When the job cannot be found or its supervisor does not answer.
pub fn check(state: &StateDir, args: &CheckArgs, json: bool) -> anyhow::Result<u8> {
    let seen = find_job(state, args.job.as_deref())?;
    let name = &seen.status()?.name;
    let request = Request::Check { to: args.to.clone(), translate: args.translate };
    match question(&seen, &request, PATIENCE)? {
        Reply::Check(report) => {
            if json {
                print_json(document(&report, seen.id))?;
            } else {
                print(&render(&report, Paint::stdout()))?;
            }
            Ok(if report.movable() { 0 } else { 10 })
        }
        Reply::Failed(f) => show_failure(&f, json),
        Reply::Error(why) => Err(Fail::temporary(format!("cannot check {name}: {why}")).into()),
        _ => Err(unexpected(&seen).into()),
    }
}

/// The report as text, with a line feed at its end.
pub fn render(report: &CheckReport, paint: Paint) -> String {
    let target = report.to.as_ref().map_or_else(String::new, |to| format!(" → {}", clean(to)));
    let tally = tally(&report.findings);
    let verdict = if report.movable() { paint.good("movable") } else { paint.bad("NOT MOVABLE") };
    let tally = if tally.is_empty() { tally } else { format!(" ({tally})") };
    let head = format!("{} {}{target}: {verdict}{tally}\n", clean(&report.job), clean(&report.id));
    head + &findings(&report.findings, paint) + &fine(&report.ok, paint)
}

fn tally(findings: &[Finding]) -> String {
    let of = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (blockers, warnings) = (of(Severity::Blocker), of(Severity::Warning));
    let mut parts = Vec::new();
    if blockers > 0 {
        parts.push(count(blockers, "blocker", "blockers"));
    }
    if warnings > 0 {
        parts.push(count(warnings, "warning", "warnings"));
    }
    parts.join(", ")
}

/// Two lines for each finding: code, object and cause; the remedy below.
pub fn findings(findings: &[Finding], paint: Paint) -> String {
    let code_width = findings.iter().map(|f| width(&f.code)).max().unwrap_or(0).max(15);
    let mut text = String::new();
    for f in findings {
        let mark = match f.severity {
            Severity::Blocker => paint.bad("✘"),
            Severity::Warning => paint.warn("⚠"),
        };
        let code = pad(&clean(&f.code), code_width);
        text += &format!(" {mark} {code} {}: {}\n", clean(&f.object), clean(&f.cause));
        if !f.remedy.is_empty() {
            text += &format!("   {} fix: {}\n", pad("", code_width), clean(&f.remedy));
        }
    }
    text
}

/// What is fine, several to a line of at most 80 columns.
fn fine(ok: &[String], paint: Paint) -> String {
    let mut text = String::new();
    let mut column = 0;
    for item in ok {
        let item = clean(item);
        let needed = width(&item) + 5;
        if column > 0 && column + needed > 80 {
            text.push('\n');
            column = 0;
        }
        text += &format!("{}{} {item}", if column == 0 { " " } else { "   " }, paint.good("✔"));
        column += needed;
    }
    if !ok.is_empty() {
        text.push('\n');
    }
    text
}

fn document(report: &CheckReport, id: JobId) -> Value {
    json!({
        "job": report.job, "id": id.hex(), "to": report.to, "movable": report.movable(),
        "findings": report.findings, "ok": report.ok,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ps::tests::blocker;

    fn report() -> CheckReport {
        let warning = Finding {
            severity: Severity::Warning,
            code: "VOS-FILE-SHIPPED".into(),
            object: "/usr/bin/api".into(),
            cause: "the target has another version".into(),
            remedy: String::new(),
        };
        CheckReport {
            job: "api".into(),
            id: "a4a4a4a4".into(),
            to: Some("node3".into()),
            findings: vec![blocker(), warning],
            ok: vec!["cpu".into(), "kernel".into(), "memory 1.1G".into()],
        }
    }

    #[test]
    fn not_movable() {
        assert_eq!(
            render(&report(), Paint::default()),
            "api a4a4a4a4 → node3: NOT MOVABLE (1 blocker, 1 warning)\n \
              ✘ VOS-DEV          fd 9 → /dev/nvidia0: State lives in the GPU.\n                    \
                                 fix: let it finish\n \
              ⚠ VOS-FILE-SHIPPED /usr/bin/api: the target has another version\n \
              ✔ cpu   ✔ kernel   ✔ memory 1.1G\n"
        );
    }

    #[test]
    fn movable() {
        let report = CheckReport { findings: Vec::new(), to: None, ..report() };
        assert!(render(&report, Paint::default()).starts_with("api a4a4a4a4: movable\n ✔ cpu"));
        let document = document(&report, JobId([0xa4; 16]));
        assert_eq!(document["movable"], true);
        assert_eq!(document["id"], "a4".repeat(16), "the whole id, as everywhere");
    }

    #[test]
    fn long_lists_wrap() {
        let ok: Vec<String> = (0..12).map(|i| format!("{i} maps identical")).collect();
        let text = fine(&ok, Paint::default());
        assert!(text.lines().count() > 2 && text.lines().all(|l| width(l) <= 80), "{text}");
    }
}
