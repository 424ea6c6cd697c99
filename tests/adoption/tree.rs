//! A move that is refused or given up leaves every process of a tree as it was: no stopped process,
//! no stray thread, no mapping, signal mask or descriptor of the supervisor's is left behind.

use std::fs;
use std::process::{Child, Stdio};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::build::{self, Flavour};
use crate::common::gate::Gate;
use crate::common::hosts::Hosts;
use crate::common::job::{Job, Program, Start};
use crate::common::procs::{self, Done};
use crate::common::runner::Cell;
use crate::common::snapshot::{await_same_tree, is_running, members, tree, Tree};
use crate::common::{self, until, Who, SOON};
use crate::receiver;

/// How a move comes to nothing.
#[derive(Debug, Clone, Copy)]
enum End {
    /// One process holds what cannot move: refused before anything is touched.
    Refused,
    /// The target's files may not grow.
    TargetFull,
    /// Cancelled when the target has the whole image.
    Cancelled,
    /// The target dies when it has the whole image.
    TargetDies,
    /// The target dies while the source stands at a point.
    DiesBehind(&'static str),
    /// The link is cut while the source stands at a point.
    Cut(&'static str),
}

impl End {
    fn word(self) -> String {
        match self {
            Self::Refused => "refused".into(),
            Self::TargetFull => "target-full".into(),
            Self::Cancelled => "cancelled".into(),
            Self::TargetDies => "target-dies".into(),
            Self::DiesBehind(point) => format!("target-dies-behind-{point}"),
            Self::Cut(point) => format!("cut-at-{point}"),
        }
    }

    /// Where the source stands still, if it does.
    fn source_point(self) -> Option<&'static str> {
        match self {
            Self::DiesBehind(point) | Self::Cut(point) => Some(point),
            _ => None,
        }
    }
}

/// A tree under supervision.
struct Scene<'h> {
    hosts: &'h Hosts,
    job: Job<'h>,
    root: i32,
}

impl<'h> Scene<'h> {
    fn start(hosts: &'h Hosts, start: Start, args: &[&str], gate: Option<&Gate>) -> Result<Self> {
        let mut program = Program::new(build::guest("idle_tree", Flavour::Plain)?).args(args);
        if let Some(gate) = gate {
            let (name, value) = gate.variable();
            program = program.env(name, value);
        }
        let mut job = Job::start(hosts, start, program)?;
        job.await_ready()?;
        let is_guest = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "idle_tree")
        };
        let below = members(job.child.id() as i32);
        let root = below.into_iter().find(is_guest).context("no program")?;
        Ok(Self { hosts, job, root })
    }

    /// What /proc shows when it shows the same twice.
    fn before(&self) -> Result<Tree> {
        until(SOON, "a tree that is at rest", || {
            let before = tree(self.root)?;
            std::thread::yield_now();
            let at_rest = tree(self.root)? == before && !is_running(&before);
            Ok(at_rest.then_some(before))
        })
    }

    fn migrate(&self) -> Result<Child> {
        let mut command = self.hosts.vosrun(0);
        command.args(["migrate", &self.job.name, "--to", "b", "--json"]);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
    }

    /// Appears when the guest has done what was wanted.
    fn want(&self, what: &str) -> Result<()> {
        Ok(fs::write(self.job.dir.join(format!("status.{what}")), "")?)
    }

    fn has_done(&self) -> bool {
        self.job.dir.join("status.did").exists()
    }
}

/// Exit code and document of a move.
fn ended(child: Child) -> Result<(i32, Value)> {
    let out = child.wait_with_output()?;
    let code = procs::exit_code(out.status);
    Ok((code, serde_json::from_slice(&out.stdout).unwrap_or_default()))
}

fn of(done: &Done) -> (i32, Value) {
    (done.code(), serde_json::from_str(&done.stdout).unwrap_or_default())
}

/// Two hosts; supervisors at the second stop at `gate`.
fn two_hosts(who: Who, gate: Option<&Gate>) -> Result<Hosts> {
    ensure!(who == Who::User || common::is_root(), "SKIP needs root");
    Hosts::start_with(who, 2, |index, command| {
        if let (1, Some(gate)) = (index, gate) {
            command.envs([gate.variable()]);
        }
    })
}

fn comes_to_nothing(who: Who, start: Start, end: End) -> Result<()> {
    let mut at_target = Gate::new("ready")?;
    let mut at_source = end.source_point().map(Gate::new).transpose()?;
    let is_cut = matches!(end, End::Cut(_));
    // A source that has heard that the target is ready would decide for the move.
    let target_stands = matches!(end, End::Cancelled | End::TargetDies | End::Cut("image-sent"));
    let says_nothing = target_stands || matches!(end, End::DiesBehind("image-sent"));
    let hosts = two_hosts(who, says_nothing.then_some(&at_target))?;
    let args: &[&str] = if matches!(end, End::Refused) { &["socket"] } else { &[] };
    let scene = Scene::start(&hosts, start, args, at_source.as_ref())?;
    let before = scene.before()?;
    let (code, document) = match end {
        End::Refused => of(&scene.job.try_migrate(1)?),
        End::TargetFull => {
            hosts.limit_node(1, "--fsize=0:")?;
            of(&scene.job.try_migrate(1)?)
        }
        _ => {
            let mover = scene.migrate()?;
            let source = at_source.as_mut().map(Gate::reached).transpose()?;
            if target_stands {
                at_target.reached()?;
            }
            match end {
                End::Cancelled => {
                    let there = scene.job.ps()?;
                    let moving = there["moving"].as_str().context("ps shows no move")?;
                    let id = moving.split(' ').next().unwrap_or_default();
                    hosts.run(0, &["migrate", "--cancel", id])?.good("cancel")?;
                    at_target.release()?;
                }
                End::Cut(_) => hosts.set_link(0, 1, false)?,
                _ => kill(Pid::from_raw(receiver(&hosts, 1)?), Signal::SIGKILL)?,
            }
            if let (Some(gate), Some(_)) = (&at_source, source) {
                gate.release()?;
            }
            let ended = ended(mover)?;
            if is_cut && target_stands {
                at_target.release()?;
            }
            if is_cut {
                // A target that may have been told to go on asks the source until it hears.
                hosts.set_link(0, 1, true)?;
            }
            ended
        }
    };
    let wanted = if matches!(end, End::Refused) { 10 } else { 11 };
    ensure!(code == wanted, "exit {code}: {document}");
    await_same_tree(scene.root, &before)?;
    scene.job.finish().map(drop)
}

/// What one process of the tree does between the look and the freeze, and what comes of it.
const TURNS: [(&str, i32, Option<&str>); 7] = [
    ("socket", 11, Some("VOS-TCP")),
    ("fork-socket", 11, Some("VOS-TCP")),
    ("share", 0, None),
    ("filter", 0, None),
    ("unshare", 11, Some("VOS-NAMESPACE")),
    ("fork", 0, None),
    ("exec", 0, None),
];

/// What changes after the look is found at the freeze: it goes along, or the move is undone and
/// the reason told.
fn turns(who: Who, what: &str, wanted: i32, refusal: Option<&str>) -> Result<()> {
    let mut gate = Gate::new("copy")?;
    let hosts = two_hosts(who, None)?;
    let mut scene = Scene::start(&hosts, Start::Launched, &[], Some(&gate))?;
    let mover = scene.migrate()?;
    gate.reached()?;
    scene.want(what)?;
    // The supervisor stands still, so that an event of the job lasts until it goes on; only what
    // tells it nothing is done before.
    let tells_nothing = ["socket", "unshare"].contains(&what);
    until(SOON, "what was wanted", || {
        // One child is stopped all the time.
        let standing = members(scene.root).into_iter().filter(|pid| in_event_stop(*pid)).count();
        Ok((scene.has_done() || (!tells_nothing && standing > 1)).then_some(()))
    })?;
    let before = if tells_nothing { Some(scene.before()?) } else { None };
    gate.release()?;
    let (code, document) = ended(mover)?;
    ensure!(code == wanted, "exit {code}: {document}");
    if let Some(refusal) = refusal {
        ensure!(document["code"] == refusal, "{document}");
    }
    if code == 0 {
        scene.job.at = 1;
    } else if let Some(before) = before {
        await_same_tree(scene.root, &before)?;
    }
    until(SOON, "what was wanted", || Ok(scene.has_done().then_some(())))?;
    if code != 0 {
        // Of the whole tree only the stopped child stands.
        until(SOON, "the tree runs on", || {
            let standing =
                members(scene.root).into_iter().filter(|pid| in_event_stop(*pid)).count();
            Ok((standing == 1).then_some(()))
        })?;
    }
    scene.job.await_progress(3)?;
    scene.job.finish().map(drop)
}

/// In a stop of ptrace(2) that waits for the supervisor.
fn in_event_stop(pid: i32) -> bool {
    procs::state(pid) == Some('t')
}

pub fn cells(who: Who) -> Vec<Cell> {
    let mut cells = Vec::new();
    let word = who.word();
    let mut add = |start, end: End| {
        let how = if start == Start::Attached { "attached" } else { "launched" };
        let name = format!("{word}/tree/{how}/{}", end.word());
        cells.push(Cell::new(name, move |_| comes_to_nothing(who, start, end)).limit(200));
    };
    for start in [Start::Launched, Start::Attached] {
        for end in [End::Refused, End::TargetFull, End::Cancelled, End::TargetDies] {
            // Limits are set from outside of the namespaces of root's hosts, which may not be.
            if who == Who::User || !matches!(end, End::TargetFull) {
                add(start, end);
            }
        }
    }
    // Who attaches has no hook.
    for point in ["copy", "frozen", "image-sent"] {
        add(Start::Launched, End::DiesBehind(point));
        if who == Who::Root {
            add(Start::Launched, End::Cut(point));
        }
    }
    for (what, code, refusal) in TURNS {
        let run = move |_: &mut _| turns(who, what, code, refusal);
        cells.push(Cell::new(format!("{word}/tree/turns/{what}"), run));
    }
    cells
}
