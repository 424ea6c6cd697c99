//! How a move that does not come about ends, and where the time of one went.

use std::time::{Duration, Instant};

use crate::control::{Finding, MoveFailure, Severity};
use crate::migrate::message::Msg;
use crate::migrate::resource::fd::FdError;
use crate::migrate::resource::PartError;

/// A move that ended without the job having moved.
pub(in crate::supervisor::moves) struct Stopped {
    pub(super) exit: u8,
    pub(super) code: &'static str,
    pub(in crate::supervisor::moves) text: String,
    pub(super) findings: Vec<Finding>,
}

pub(in crate::supervisor::moves) type Step1<T> = std::result::Result<T, Box<Stopped>>;

pub(in crate::supervisor::moves) fn stopped(
    exit: u8,
    code: &'static str,
    text: impl Into<String>,
) -> Box<Stopped> {
    Box::new(Stopped { exit, code, text: text.into(), findings: Vec::new() })
}

pub(super) fn cancelled() -> Box<Stopped> {
    stopped(11, "VOS-CANCELLED", "the move was cancelled")
}

/// Errors of this supervisor itself.
pub(in crate::supervisor::moves) fn own(e: impl std::fmt::Display) -> Box<Stopped> {
    stopped(11, "VOS-SUPERVISOR", format!("{e:#}"))
}

/// Where the time of a move went.
pub(super) struct Laps {
    pub(super) begin: Instant,
    pub(super) frozen: Option<Instant>,
    pub(super) last: Instant,
    pub(super) parts: Vec<(String, f64)>,
}

impl Laps {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { begin: now, frozen: None, last: now, parts: Vec::new() }
    }

    pub(super) fn freeze(&mut self) {
        let now = Instant::now();
        (self.frozen, self.last) = (Some(now), now);
    }

    /// The job has run again for `since`, which is no part of the pause nor of its last part.
    pub(super) fn pause(&mut self, since: Duration) -> f64 {
        if let Some((_, last)) = self.parts.last_mut() {
            *last = (*last - millis(since)).max(0.0);
        }
        let frozen = self.frozen.unwrap_or(self.begin);
        millis(self.last.saturating_duration_since(frozen).saturating_sub(since))
    }

    pub(super) fn lap(&mut self, name: &str) {
        let now = Instant::now();
        self.parts.push((name.to_owned(), millis(now - self.last)));
        self.last = now;
    }
}

pub(super) fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

impl Stopped {
    /// A failure that has a sentence already.
    pub(super) fn said(self, sentence: String) -> MoveFailure {
        let code = self.code.to_owned();
        MoveFailure { id: None, exit: self.exit, code, sentence, findings: self.findings }
    }
}

pub(super) fn refuse_blockers(findings: &[Finding]) -> Step1<()> {
    let blockers: Vec<&Finding> =
        findings.iter().filter(|f| f.severity == Severity::Blocker).collect();
    let Some(first) = blockers.first() else { return Ok(()) };
    let code = crate::codes::find(&first.code).map_or("VOS-SUPERVISOR", |c| c.code);
    let text = match blockers.len() {
        1 => format!("{}: {}", first.object, first.cause),
        n => format!("{}: {}; {} more", first.object, first.cause, n - 1),
    };
    Err(Box::new(Stopped { exit: 10, code, text, findings: findings.to_vec() }))
}

pub(super) fn out_of_order(msg: &Msg) -> Box<Stopped> {
    let text: String = format!("{msg:?}").chars().take(40).collect();
    stopped(11, "VOS-PROTO", format!("the target answered out of order: {text}"))
}

pub(super) fn fd_stopped(e: FdError) -> Box<Stopped> {
    match e {
        FdError::Refused(finding) => refused(*finding),
        other => own(other),
    }
}

pub(super) fn part_stopped(e: PartError) -> Box<Stopped> {
    match e {
        PartError::Refused(finding) => refused(*finding),
        other => own(other),
    }
}

/// A refusal that came up at the freeze: undone, and said.
pub(super) fn refused(finding: Finding) -> Box<Stopped> {
    let code = crate::codes::find(&finding.code).map_or("VOS-SUPERVISOR", |c| c.code);
    let text = format!("{}: {}", finding.object, finding.cause);
    Box::new(Stopped { exit: 11, code, text, findings: vec![finding] })
}
