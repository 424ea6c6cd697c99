//! `vosrun demo`: two nodes on this machine, a visible program, moves to and fro, and at
//! the end what was proven.
//!
//! ```text
//! program's screen ─► Frame ─┐
//! moves ─► Move, Moved ──────┼─► events ─► Show: one picture, or plain lines
//! clock ─────────────────────┘        └─► Proof: ticks, memory, threads, keys, pauses
//! ```

mod program;
mod screen;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use serde_json::{json, Value};

use super::error::Fail;
use super::migrate::{drive, moved_document};
use super::out::{print, print_json, Paint};
use super::pair::Pair;
use super::progress::{failure, headline, moved, phase_line, Progress};
use super::raw::{catch_signals, interrupted, window_size};
use super::toy::{number, words, DEMO_MEMORY, THREADS};
use crate::control::{MoveEvent, MoveReport, Reply, Request};
use program::Program;
use screen::{pauses, Screen, View};

/// How long the program stays on a host between two moves.
const STAY: Duration = Duration::from_secs(4);

/// Options of `vosrun demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// How often to move
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=8))]
    moves: u8,
    /// Print plain lines even on a terminal
    #[arg(long)]
    plain: bool,
}

/// What happens while the demonstration runs.
pub enum Event {
    /// The program has drawn its screen.
    Frame(Vec<String>),
    /// The program's terminal was closed; what it said last.
    Ended(String),
    /// Progress of the move.
    Move(MoveEvent),
    /// The move is over.
    Done(io::Result<Reply>),
}

/// Runs the demonstration; under a minute, ends by itself and leaves nothing behind.
///
/// # Errors
/// When a step does not work; 130 when interrupted.
pub fn demo(args: &DemoArgs, json: bool) -> anyhow::Result<u8> {
    catch_signals()?;
    if !json {
        print("vosrun demo: starting two nodes on this machine, left and right …\n")?;
    }
    let pair = Pair::start()?;
    let (tx, rx) = mpsc::channel();
    let program = Program::start(&pair, tx.clone())?;
    let show = Show::new(args.plain, json)?;
    let stage = Stage {
        pair: &pair,
        tx,
        rx,
        show,
        view: View::default(),
        proof: Proof::default(),
        program,
        moves: usize::from(args.moves),
        busy: false,
    };
    let proof = stage.play();
    drop(pair);
    let proof = proof?;
    if json {
        print_json(proof.document())?;
    } else {
        print(&proof.text(Paint::stdout()))?;
    }
    Ok(u8::from(!proof.good()))
}

/// Everything the demonstration works with.
struct Stage<'a> {
    pair: &'a Pair,
    tx: Sender<Event>,
    rx: Receiver<Event>,
    show: Show,
    view: View,
    proof: Proof,
    program: Program,
    moves: usize,
    /// A move is in progress.
    busy: bool,
}

impl Stage<'_> {
    fn play(mut self) -> anyhow::Result<Proof> {
        let started = Instant::now();
        let mut next = started + STAY;
        self.view.title = "the program starts on left".into();
        self.type_key()?;
        while self.busy || self.proof.moves.len() < self.moves || Instant::now() < next {
            if interrupted() {
                return Err(
                    Fail::new(130, "interrupted; everything it had started is removed").into()
                );
            }
            self.view.elapsed = started.elapsed();
            let moves = self.proof.moves.len();
            match self.rx.recv_timeout(Duration::from_millis(50)) {
                Ok(event) => self.event(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the program's terminal is closed"),
            }
            if self.proof.moves.len() > moves {
                next = Instant::now() + STAY;
                self.type_key()?;
            } else if !self.busy && moves < self.moves && Instant::now() >= next {
                self.start_move()?;
            }
            self.show.picture(&self.view)?;
        }
        self.program.press('q')?;
        self.program.finish()?;
        Ok(self.proof)
    }

    /// Types the next letter: one on each host.
    fn type_key(&mut self) -> anyhow::Result<()> {
        let key = (b'a'..=b'p').nth(self.proof.moves.len()).map_or('z', char::from);
        self.proof.typed.push(key);
        self.program.press(key)
    }

    fn start_move(&mut self) -> anyhow::Result<()> {
        let from = self.pair.side(self.view.side);
        let to = self.pair.side(self.view.side + 1).name;
        let job = from.running_job()?;
        self.busy = true;
        self.view.log.clear();
        self.view.title = format!("move {} of {}", self.proof.moves.len() + 1, self.moves);
        let tx = self.tx.clone();
        std::thread::spawn(move || {
            let request = Request::Migrate { to: to.into(), translate: false };
            // The receiver may have left: the demonstration was interrupted.
            let on = |event| drop(tx.send(Event::Move(event)));
            let end = drive(&job.dir.socket(), &request, on);
            drop(tx.send(Event::Done(end)));
        });
        Ok(())
    }

    fn event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Frame(frame) => {
                self.proof.frame(&frame);
                self.view.frame = frame;
                self.show.frame(&self.view)
            }
            Event::Ended(last) => bail!("the program has ended too early: {last}\n{}", self.logs()),
            Event::Move(event) => {
                self.show.progress(&mut self.view, event);
                Ok(())
            }
            Event::Done(end) => self.done(end),
        }
    }

    fn done(&mut self, end: io::Result<Reply>) -> anyhow::Result<()> {
        self.busy = false;
        match end.context("the supervisor has gone")? {
            Reply::Moved(report) => {
                self.show.moved(&mut self.view, &report);
                self.view.side = (self.view.side + 1) % 2;
                self.view.host_pid = report.processes.first().map(|p| p.host_pid);
                self.view.pauses_ms.push(report.pause_ms);
                self.proof.moves.push(report);
                Ok(())
            }
            Reply::Failed(f) => {
                bail!("{}\n{}", failure(&f, Paint::default()).trim_end(), self.logs())
            }
            Reply::Error(why) => bail!("{}: {why}\n{}", self.view.title, self.logs()),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    fn logs(&self) -> String {
        format!("{}\n{}", self.pair.side(0).log_end(), self.pair.side(1).log_end())
    }
}

/// How it is shown.
enum Show {
    Picture(Screen),
    /// Plain lines; the second of the last one.
    Plain(Progress, u64),
}

impl Show {
    fn new(plain: bool, json: bool) -> anyhow::Result<Self> {
        let stdout = io::stdout();
        let fits = window_size(stdout.as_fd())
            .is_ok_and(|(rows, columns)| (columns, rows) >= screen::SIZE && rows >= screen::SIZE.1);
        if !plain && !json && stdout.is_terminal() && fits {
            return Ok(Self::Picture(Screen::open()?));
        }
        Ok(Self::Plain(Progress::to_stderr(), u64::MAX))
    }

    fn picture(&self, view: &View) -> anyhow::Result<()> {
        match self {
            Self::Picture(screen) => screen.draw(view),
            Self::Plain(..) => Ok(()),
        }
    }

    /// The program's figures, once a second.
    fn frame(&mut self, view: &View) -> anyhow::Result<()> {
        let Self::Plain(_, last) = self else { return Ok(()) };
        let second = view.elapsed.as_secs();
        if std::mem::replace(last, second) == second || view.frame.len() < 7 {
            return Ok(());
        }
        let name = ["left", "right"][view.side];
        eprintln!(
            "{name:<6} {} · {} · {} · {}",
            view.frame[1], view.frame[3], view.frame[4], view.frame[6]
        );
        Ok(())
    }

    fn progress(&mut self, view: &mut View, event: MoveEvent) {
        match self {
            Self::Plain(progress, _) => progress.event(event),
            Self::Picture(_) => log_event(&mut view.log, &event),
        }
    }

    fn moved(&mut self, view: &mut View, report: &MoveReport) {
        match self {
            Self::Plain(progress, _) => {
                progress.end();
                eprint!("{}", moved(report, Paint::stderr()));
            }
            Self::Picture(_) => {
                view.log.push(format!(" {}", moved(report, Paint::default()).trim_end()));
            }
        }
    }
}

/// The progress display as lines: the headline, then one line for each phase, of which the
/// last is replaced while it goes on.
fn log_event(log: &mut Vec<String>, event: &MoveEvent) {
    if log.is_empty() {
        log.push(format!(" {}", headline(event, Paint::default())));
    }
    let line = phase_line(event);
    let word = line.split_whitespace().next().unwrap_or_default().to_owned();
    if log.len() > 1 && log.last().is_some_and(|l| l.trim_start().starts_with(&word)) {
        log.pop();
    }
    log.push(line);
}

/// What the demonstration has seen.
#[derive(Debug, Default)]
struct Proof {
    moves: Vec<MoveReport>,
    /// Keys typed, and keys that the program shows.
    typed: String,
    shown: String,
    /// Last tick, and ticks that were missing or came twice.
    tick: u64,
    wrong_ticks: u64,
    passes: u64,
    turns: u64,
    longest_gap_ms: u64,
    damaged: bool,
}

impl Proof {
    fn frame(&mut self, frame: &[String]) {
        let tick = number(frame, "tick ").unwrap_or(0);
        if tick != self.tick + 1 {
            self.wrong_ticks += 1;
        }
        self.tick = tick;
        self.passes = number(frame, "checked ").unwrap_or(self.passes);
        self.turns = number(frame, &format!("threads {THREADS}, ")).unwrap_or(self.turns);
        self.longest_gap_ms = number(frame, "longest gap ").unwrap_or(self.longest_gap_ms);
        self.damaged |= frame.iter().any(|line| line.contains("DAMAGED"));
        self.shown = words(frame, "keys ").to_owned();
    }

    fn good(&self) -> bool {
        self.wrong_ticks == 0 && !self.damaged && self.shown == self.typed && self.passes > 0
    }

    fn text(&self, paint: Paint) -> String {
        let mark = |good| if good { paint.good("✔") } else { paint.bad("✘") };
        let pause: Vec<f64> = self.moves.iter().map(|m| m.pause_ms).collect();
        let ticks = match self.wrong_ticks {
            0 => "none missing, none twice".to_owned(),
            n => format!("{n} missing or twice"),
        };
        let memory = if self.damaged { "a word was wrong" } else { "every word right" };
        let mut text = format!(
            "One program, moved {} times between two hosts while it ran:\n",
            self.moves.len()
        );
        for (good, label, what) in [
            (self.wrong_ticks == 0, "terminal", format!("{} pictures drawn, {ticks}", self.tick)),
            (
                self.shown == self.typed,
                "keys",
                format!("typed {}, arrived {}", self.typed, self.shown),
            ),
            (
                !self.damaged,
                "memory",
                format!("{} MiB checked {} times, {memory}", DEMO_MEMORY >> 20, self.passes),
            ),
            (self.turns > 0, "threads", format!("{THREADS}, {} turns handed over", self.turns)),
            (
                true,
                "pauses",
                format!("{}; longest the program saw: {} ms", pauses(&pause), self.longest_gap_ms),
            ),
        ] {
            text += &format!(" {} {label:<9} {what}\n", mark(good));
        }
        text + "It ended by itself with exit code 0. Both nodes are gone; nothing is left.\n"
    }

    fn document(&self) -> Value {
        json!({
            "result": if self.good() { "ok" } else { "failed" },
            "moves": self.moves.iter().map(moved_document).collect::<Vec<_>>(),
            "ticks": self.tick, "wrong_ticks": self.wrong_ticks, "keys_typed": self.typed,
            "keys_arrived": self.shown, "memory_passes": self.passes, "damaged": self.damaged,
            "thread_turns": self.turns, "longest_gap_ms": self.longest_gap_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::progress::tests::event;
    use crate::control::Phase;

    fn frame(tick: u64, keys: &str) -> Vec<String> {
        [
            "pid 7  host vm".to_owned(),
            format!("tick {tick}"),
            "clock 1.0 s".into(),
            format!("memory 32 MiB, checked {tick} times ✔"),
            "threads 4, 9 turns".into(),
            "longest gap 61 ms".into(),
            format!("keys {keys}"),
        ]
        .into()
    }

    #[test]
    fn what_is_proven() {
        let mut proof = Proof { typed: "ab".into(), ..Proof::default() };
        proof.frame(&frame(1, "a"));
        proof.frame(&frame(2, "ab"));
        assert!(proof.good());
        let text = proof.text(Paint::default());
        assert!(
            text.contains(" ✔ terminal  2 pictures drawn, none missing, none twice\n"),
            "{text}"
        );
        assert!(text.contains(" ✔ keys      typed ab, arrived ab\n"), "{text}");
        assert!(text.contains("longest the program saw: 61 ms"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_lost_or_repeated_picture_is_seen() {
        for tick in [1, 3] {
            let mut proof = Proof::default();
            proof.frame(&frame(1, ""));
            proof.frame(&frame(tick, ""));
            assert!(!proof.good(), "tick {tick}");
        }
    }

    #[test]
    fn a_phase_is_one_line() {
        let mut log = Vec::new();
        for (phase, text) in [
            (Phase::Preflight, "✔ cpu"),
            (Phase::Copy, "1"),
            (Phase::Copy, "2"),
            (Phase::Freeze, "✔"),
        ] {
            log_event(&mut log, &event(phase, text, None));
        }
        assert_eq!(log.len(), 4);
        assert_eq!(log[2], " copy        2");
    }
}
