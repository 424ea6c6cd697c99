//! The self-test: a toy program with threads, memory that checks itself and a conversation
//! over pipes is really moved.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{bail, Context};

use crate::cli::children::{end, own_binary, wait_end};
use crate::cli::migrate::drive;
use crate::cli::pair::{job_command, running_job, Pair};
use crate::cli::select::Seen;
use crate::control::{MoveReport, Reply, Request};
use crate::state::StateDir;

/// How long the toy may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A self-test that worked.
#[derive(Debug)]
pub struct Outcome {
    /// Names of the nodes in the order of the moves.
    pub way: Vec<String>,
    pub pauses_ms: Vec<f64>,
}

impl Outcome {
    fn of(moves: &[MoveReport]) -> Self {
        let from = moves.first().map(|m| m.from.clone());
        let way = from.into_iter().chain(moves.iter().map(|m| m.to.clone())).collect();
        Self { way, pauses_ms: moves.iter().map(|m| m.pause_ms).collect() }
    }
}

/// Moves the toy between two nodes started for it, there and back.
///
/// # Errors
/// The step that did not work, with what was said about it.
pub fn between_local_nodes() -> anyhow::Result<Outcome> {
    let pair = Pair::start()?;
    let mut toy = Toy::start(&mut pair.job_command("toy", "__toy"))?;
    toy.talk()?;
    let mut moves = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        let job = pair.side(from).running_job()?;
        let there = move_to(&job, pair.side(to).name).with_context(|| {
            format!("moving it to {} {}", pair.side(to).name, pair.side(to).log_end())
        })?;
        moves.push(there);
        toy.talk().context("after a move")?;
    }
    toy.finish()?;
    Ok(Outcome::of(&moves))
}

/// Moves the toy from the local node to `node`.
///
/// # Errors
/// The step that did not work, with what was said about it.
pub fn to_node(state: &StateDir, node: &str) -> anyhow::Result<Outcome> {
    let name = format!("doctor-{}", std::process::id());
    let mut toy = Toy::start(&mut job_command(&own_binary()?, state, &name, "__toy"))?;
    toy.talk()?;
    let job = running_job(state, PATIENCE, |seen| seen.name() == name)
        .context("the toy program has not come up as a job")?;
    let there = move_to(&job, node)?;
    toy.talk().context("after the move")?;
    toy.finish()?;
    Ok(Outcome::of(&[there]))
}

fn move_to(job: &Seen, node: &str) -> anyhow::Result<MoveReport> {
    let request = Request::Migrate { to: node.into(), translate: false };
    match drive(&job.dir.socket(), &request, drop).context("the supervisor has gone")? {
        Reply::Moved(report) => Ok(report),
        Reply::Failed(f) => bail!("{}: {}", f.code, f.sentence),
        Reply::Error(why) => bail!("{why}"),
        other => bail!("unexpected answer {other:?}"),
    }
}

/// The toy program under vosrun. Dropping it closes its input, at which it ends.
struct Toy {
    vosrun: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    asked: u64,
    /// Passes and turns of the last answer.
    counts: (u64, u64),
}

impl Toy {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut vosrun = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start the toy program")?;
        let input = vosrun.stdin.take();
        let output = vosrun.stdout.take().context("the toy program has no output")?;
        let (tx, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { vosrun, input, answers, asked: 0, counts: (0, 0) })
    }

    /// Asks until the other threads have gone on since the last talk; each answer must be
    /// ours, in order and undamaged.
    fn talk(&mut self) -> anyhow::Result<()> {
        let before = self.counts;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.ask()?;
            if now.0 > before.0 && now.1 > before.1 {
                self.counts = now;
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the toy program answers, but its other threads stand still");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ask(&mut self) -> anyhow::Result<(u64, u64)> {
        self.asked += 1;
        let input = self.input.as_mut().context("the toy program's input is closed")?;
        writeln!(input, "{}", self.asked).context("the toy program does not read")?;
        let answer =
            self.answers.recv_timeout(PATIENCE).context("the toy program does not answer")?;
        let words: Vec<u64> = answer.split(' ').filter_map(|w| w.parse().ok()).collect();
        match words[..] {
            [n, _, _, _] if n != self.asked => bail!("asked {}, answered {n}", self.asked),
            [_, _, _, damage] if damage != 0 => bail!("the toy program's memory is damaged"),
            [_, passes, turns, _] => Ok((passes, turns)),
            _ => bail!("the toy program answered {answer:?}"),
        }
    }

    /// Ends the toy by closing its input and takes its exit code.
    fn finish(mut self) -> anyhow::Result<()> {
        self.input = None;
        match wait_end(&mut self.vosrun, PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the toy program ended with {status}"),
            None => bail!("the toy program did not end when its input did"),
        }
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.input = None;
        if !matches!(wait_end(&mut self.vosrun, Duration::from_secs(1)), Ok(Some(_))) {
            end(&mut self.vosrun);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The toy's answers, made by a shell so that the conversation is tested by itself.
    fn toy(script: &str) -> Toy {
        Toy::start(Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn a_good_conversation() {
        let mut toy = toy("i=0; while read n; do i=$((i+1)); echo $n $i $i 0; done");
        toy.talk().unwrap();
        toy.talk().unwrap();
        toy.finish().unwrap();
    }

    #[test]
    fn damage_and_lost_answers_are_seen() {
        let damage = toy("read n; echo $n 1 1 1").talk().unwrap_err();
        assert_eq!(damage.to_string(), "the toy program's memory is damaged");
        let order = toy("read n; echo 7 1 1 0").talk().unwrap_err();
        assert_eq!(order.to_string(), "asked 1, answered 7");
        let end = toy("read n").talk().unwrap_err();
        assert_eq!(end.to_string(), "the toy program does not answer");
    }
}
