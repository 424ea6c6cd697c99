//! What a person sees of a move: a headline, one line for each phase, the end.
//!
//! On a terminal the running phase is redrawn in place, with a bar while memory is copied;
//! elsewhere each phase is written once, when it is over.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::check::findings;
use super::human::{amount, clean, duration};
use super::out::Paint;
use crate::control::{MoveEvent, MoveFailure, MoveReport, Phase};

/// The display of one move on stderr.
#[derive(Debug)]
pub struct Progress {
    paint: Paint,
    terminal: bool,
    bar: Option<ProgressBar>,
    current: Option<MoveEvent>,
    /// When bytes were shown for the first time.
    copying: Option<Instant>,
}

/// A rate means nothing before.
const RATE_AFTER: Duration = Duration::from_millis(500);

impl Progress {
    /// An empty display; the first event brings the headline.
    pub fn to_stderr() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { paint: Paint::stderr(), terminal, bar: None, current: None, copying: None }
    }

    /// Shows an event.
    pub fn event(&mut self, event: MoveEvent) {
        match &self.current {
            None => eprintln!("{}", headline(&event, self.paint)),
            Some(last) if last.phase != event.phase => self.end_phase(),
            Some(_) => {}
        }
        if self.terminal {
            self.draw(&event);
        }
        self.current = Some(event);
    }

    /// Writes the last phase's line for good.
    pub fn end(&mut self) {
        self.end_phase();
        (self.current, self.copying) = (None, None);
    }

    fn end_phase(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let Some(event) = &self.current {
            eprintln!("{}", phase_line(event));
        }
    }

    fn draw(&mut self, event: &MoveEvent) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let copying = event.bytes.map(|_| *self.copying.get_or_insert_with(Instant::now));
        bar.set_style(style(copying.map(|since| since.elapsed() >= RATE_AFTER)));
        if let Some((done, all)) = event.bytes {
            bar.set_length(all);
            bar.set_position(done);
        }
        bar.set_prefix(format!("{:<11}", phase_word(event.phase)));
        bar.set_message(clean(&event.text));
    }
}

/// With a bar of bytes, and with their rate, if so.
fn style(with_rate: Option<bool>) -> ProgressStyle {
    let template = match with_rate {
        Some(true) => " {prefix} {bar:20} {percent:>3}%   {decimal_bytes}/{decimal_total_bytes}   {decimal_bytes_per_sec}   {msg}",
        Some(false) => " {prefix} {bar:20} {percent:>3}%   {decimal_bytes}/{decimal_total_bytes}   {msg}",
        None => " {prefix} {msg}",
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("██░")
}

/// The word of a phase.
pub fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Preflight => "preflight",
        Phase::Copy => "copy",
        Phase::Freeze => "freeze",
        Phase::Commit => "commit",
        Phase::Resume => "resume",
    }
}

/// `m-7f3a0001  redis a40ff1d9   node1 → node3`
pub fn headline(e: &MoveEvent, paint: Paint) -> String {
    format!(
        "{}  {} {}   {} → {}",
        e.id,
        paint.strong(&clean(&e.job)),
        e.job_id,
        clean(&e.from),
        clean(&e.to)
    )
}

/// ` copy        2.04 GB of 2.10 GB   …`, without a line feed.
pub fn phase_line(e: &MoveEvent) -> String {
    let bytes = e.bytes.map(|(done, all)| format!("{} of {}", amount(done), amount(all)));
    let parts: Vec<String> =
        bytes.into_iter().chain([clean(&e.text)]).filter(|s| !s.is_empty()).collect();
    format!(" {:<11} {}", phase_word(e.phase), parts.join("   ")).trim_end().to_owned()
}

/// The last lines of a move that worked.
pub fn moved(r: &MoveReport, paint: Paint) -> String {
    let parts: Vec<_> =
        r.parts.iter().map(|(what, ms)| format!("{} {}", clean(what), duration(*ms))).collect();
    let parts = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(" + ")) };
    format!(
        "{} {} in {}, {} ({} on the wire), paused {}{}\n",
        paint.good("moved"),
        clean(&r.job),
        duration(r.total_ms),
        amount(r.bytes_memory),
        amount(r.bytes_wire),
        duration(r.pause_ms),
        paint.dim(&parts)
    ) + &r
        .lost
        .iter()
        .map(|text| format!("{} {}\n", paint.warn("⚠"), clean(text)))
        .collect::<String>()
}

/// What `--json` calls the end of a move, by its exit code.
pub fn result_word(exit: u8) -> &'static str {
    match exit {
        10 => "refused",
        12 => "in_doubt",
        13 => "lost",
        14 => "fenced",
        75 => "temporary",
        77 => "denied",
        _ => "failed",
    }
}

/// The last lines of a move that did not work: what, where the job is now, why, what to do.
pub fn failure(f: &MoveFailure, paint: Paint) -> String {
    let mark = if f.exit == 12 { paint.warn("?") } else { paint.bad("✘") };
    let verb = match result_word(f.exit) {
        "refused" => "refused",
        "in_doubt" => "in doubt",
        "temporary" => "not possible now",
        "denied" => "not permitted",
        "failed" => "aborted",
        other => other,
    };
    let id = f.id.map_or_else(String::new, |id| format!("{id} "));
    let mut text = format!("{mark} {id}{verb} ({}): {}\n", clean(&f.code), clean(&f.sentence));
    text += &findings(&f.findings, paint);
    let watch = f.id.filter(|_| f.exit == 12);
    if let Some(id) = watch {
        text += &format!("  watch: vosrun migrate --watch {id}\n");
    }
    text + &paint.dim(&format!("  more: vosrun explain {}\n", clean(&f.code)))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cli::ps::tests::{blocker, report};
    use crate::ids::{JobId, MoveId};

    pub fn event(phase: Phase, text: &str, bytes: Option<(u64, u64)>) -> MoveEvent {
        MoveEvent {
            id: MoveId([0x7f, 0x3a, 0, 1]),
            job: "redis".into(),
            job_id: JobId([0xa4; 16]),
            from: "node1".into(),
            to: "node3".into(),
            phase,
            text: text.into(),
            bytes,
        }
    }

    #[test]
    fn lines_of_the_phases() {
        let e = event(Phase::Preflight, "✔ cpu ✔ kernel", None);
        assert_eq!(headline(&e, Paint::default()), "m-7f3a0001  redis a4a4a4a4   node1 → node3");
        assert_eq!(phase_line(&e), " preflight   ✔ cpu ✔ kernel");
        let e = event(Phase::Copy, "", Some((2_040_000_000, 2_100_000_000)));
        assert_eq!(phase_line(&e), " copy        2.04 GB of 2.10 GB");
    }

    #[test]
    fn the_end_of_a_move() {
        assert_eq!(
            moved(&report(), Paint::default()),
            "moved api in 2.6 s, 2.13 GB (1.31 GB on the wire), paused 87 ms: freeze 0.4 ms + transfer 80 ms\n"
        );
    }

    fn failed(exit: u8, code: &str, sentence: &str) -> MoveFailure {
        MoveFailure {
            id: Some(MoveId([0x7f, 0x3a, 0, 1])),
            exit,
            code: code.into(),
            sentence: sentence.into(),
            findings: Vec::new(),
        }
    }

    #[test]
    fn failures_say_where_the_job_runs() {
        let text = failure(
            &failed(11, "VOS-LINK", "redis is still running on node1, untouched."),
            Paint::default(),
        );
        assert_eq!(
            text,
            "✘ m-7f3a0001 aborted (VOS-LINK): redis is still running on node1, untouched.\n  \
               more: vosrun explain VOS-LINK\n"
        );
        let text = failure(
            &failed(12, "VOS-COMMIT-SENT", "It will not run on node1 again."),
            Paint::default(),
        );
        assert!(
            text.starts_with("? m-7f3a0001 in doubt (VOS-COMMIT-SENT): It will not run"),
            "{text}"
        );
        assert!(text.contains("  watch: vosrun migrate --watch m-7f3a0001\n"), "{text}");
    }

    #[test]
    fn what_a_move_has_lost_is_said() {
        let lost = vec!["thread 7 has lost its keyring".into()];
        let text = moved(&MoveReport { lost, ..crate::cli::ps::tests::report() }, Paint::stderr());
        assert!(text.ends_with("\n⚠ thread 7 has lost its keyring\n"), "{text}");
    }

    #[test]
    fn a_refusal_carries_its_findings() {
        let refusal = MoveFailure {
            id: None,
            findings: vec![blocker()],
            ..failed(10, "VOS-DEV", "ffmpeg runs on node1, untouched.")
        };
        let text = failure(&refusal, Paint::default());
        assert!(
            text.starts_with("✘ refused (VOS-DEV): ffmpeg runs on node1, untouched.\n ✘ VOS-DEV "),
            "{text}"
        );
        assert!(text.contains(" fix: let it finish\n"), "{text}");
    }
}
