//! Moves that fail, at every point: the job always runs on exactly one host, or is frozen and
//! named, and the command says so with its exit code.
//!
//! Every cell runs the guest `ledger`, which appends its turns to a file: two copies that ran
//! at once would write a number twice, a state that went back would repeat one.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use vosrun::ids::{Epoch, JobId, MoveId};
use vosrun::migrate::image::{Clocks, Ids, JobInfo};
use vosrun::migrate::message::{Msg, PROTOCOL};
use vosrun::migrate::preflight;
use vosrun::migrate::resource::creds::User;
use vosrun::migrate::resource::fd::BulkId;
use vosrun::migrate::skeleton::Plan;
use vosrun::migrate::transport::{Link, Service};
use vosrun::node::peers;
use vosrun::state::StateDir;

use common::build::{self, Flavour};
use common::gate::Gate;
use common::hosts::{unique, Hosts};
use common::job::{Job, Program, Start};
use common::procs::{self, Done};
use common::runner::{Cell, Worker};
use common::{until, Who, SOON};

/// Exit codes of `vosrun migrate`.
const MOVED: i32 = 0;
const REFUSED: i32 = 10;
const ABORTED: i32 = 11;
const IN_DOUBT: i32 = 12;
const LOST: i32 = 13;
const TEMPORARY: i32 = 75;

/// How long a move with a dead peer or a cut link may take to say so.
const PATIENCE: Duration = Duration::from_secs(90);

/// The guest with a word in its command line that no other process has.
struct Scene<'h> {
    hosts: &'h Hosts,
    job: Job<'h>,
    word: String,
    ledger: PathBuf,
}

/// Adds a gate to a command's environment.
fn guard(command: &mut Command, gate: Option<&Gate>) {
    if let Some(gate) = gate {
        let (name, value) = gate.variable();
        command.env(name, value);
    }
}

/// Two hosts; supervisors at the second stop at `gate`.
fn two_hosts(who: Who, gate: Option<&Gate>) -> Result<Hosts> {
    ensure!(who == Who::User || common::is_root(), "SKIP needs root");
    Hosts::start_with(who, 2, |index, command| {
        if index == 1 {
            guard(command, gate);
        }
    })
}

impl<'h> Scene<'h> {
    fn start(hosts: &'h Hosts, guest: &str, gate: Option<&Gate>) -> Result<Self> {
        let word = format!("scene-{}-{}", std::process::id(), unique());
        let ledger = hosts.fresh_dir("ledger")?.join("ledger");
        let path = build::guest(guest, Flavour::Plain)?;
        let mut program = Program::new(path).args([&word]).env("GUEST_LEDGER", &ledger);
        if let Some(gate) = gate {
            let (name, value) = gate.variable();
            program = program.env(name, value);
        }
        let mut job = Job::start(hosts, Start::Launched, program)?;
        job.await_ready()?;
        Ok(Self { hosts, job, word, ledger })
    }

    /// Starts `vosrun migrate` and does not wait for it.
    fn migrate(&self, to: &str) -> Result<Child> {
        let mut command = self.hosts.vosrun(self.job.at);
        command.args(["migrate", &self.job.name, "--to", to, "--json"]);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// Waits for the end of a `vosrun migrate`. Meanwhile no two copies may run.
    fn ended(&self, mut child: Child) -> Result<Done> {
        let status = until(PATIENCE, "the end of vosrun migrate", || {
            self.check_single()?;
            Ok(child.try_wait()?)
        });
        if status.is_err() {
            let _ = child.kill();
        }
        let out = child.wait_with_output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let done = Done { status: status?, stdout: text(&out.stdout), stderr: text(&out.stderr) };
        self.check_words(&done)?;
        Ok(done)
    }

    /// A failure has a code, and a sentence that says where the job is.
    fn check_words(&self, done: &Done) -> Result<()> {
        if done.code() == MOVED {
            return Ok(());
        }
        let said = format!("exit {}: {} {}", done.code(), done.stdout, done.stderr);
        let document: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        let whole = format!("{}{}", document["message"].as_str().unwrap_or(""), done.stderr);
        let names_job = whole.contains(&self.job.name) || whole.contains("ledger");
        ensure!(names_job, "the failure does not name the job: {said}");
        let places =
            ["running on", "runs on", "frozen", "a has given", "will NOT run", "ended", "exited"];
        ensure!(places.iter().any(|p| whole.contains(p)), "nothing says where it runs: {said}");
        if document["exit"].is_number() {
            ensure!(document["exit"] == done.code(), "the document has another code: {said}");
            ensure!(document["code"].as_str().is_some_and(|c| c.starts_with("VOS-")), "{said}");
        }
        Ok(())
    }

    /// Pids of all copies of the guest on this machine, and whether each can run.
    fn copies(&self) -> Vec<(i32, bool)> {
        let own = std::process::id() as i32;
        procs::descendants(own)
            .into_iter()
            .filter(|pid| {
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                let line = procs::command_line(*pid);
                matches!(comm.trim(), "ledger" | "turncoat" | "unmovable" | "mem_big")
                    && line.contains(&self.word)
            })
            .map(|pid| {
                let frozen = |s: &char| matches!(s, 't' | 'T' | 'Z' | 'X');
                (pid, !procs::is_killed(pid) && !procs::thread_states(pid).iter().all(frozen))
            })
            .collect()
    }

    fn running(&self) -> Vec<i32> {
        self.copies().into_iter().filter(|(_, runs)| *runs).map(|(pid, _)| pid).collect()
    }

    /// At most one copy runs, and the ledger has each number once, in order.
    ///
    /// The copies are looked at one after the other, and one that is being restored runs the
    /// supervisor's calls: only copies that are seen to run again and again count.
    fn check_single(&self) -> Result<()> {
        const LOOKS: usize = 4;
        let mut running = self.running();
        for _ in 1..LOOKS {
            if running.len() <= 1 {
                break;
            }
            // A copy that is being built or killed is through with that in less time.
            std::thread::sleep(Duration::from_millis(25));
            let again = self.running();
            running.retain(|pid| again.contains(pid));
        }
        ensure!(running.len() <= 1, "{} copies run at once: {running:?}", running.len());
        self.check_ledger().map(drop)
    }

    /// The number of lines.
    fn check_ledger(&self) -> Result<usize> {
        let Ok(text) = fs::read_to_string(&self.ledger) else { return Ok(0) };
        let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
        for (i, line) in whole.lines().enumerate() {
            ensure!(line == i.to_string(), "line {i} of the ledger is {line:?}");
        }
        Ok(whole.lines().count())
    }

    /// The guest goes on, as one copy.
    fn await_running(&self) -> Result<()> {
        let from = self.turns()?;
        until(PATIENCE, "the job runs", || {
            self.check_single()?;
            Ok((self.turns()? > from + 5).then_some(()))
        })
    }

    fn turns(&self) -> Result<u64> {
        let text = fs::read_to_string(self.job.dir.join("status"))?;
        let (count, word) = text.split_once(' ').context("status")?;
        ensure!(word.trim() != "FAIL", "the guest failed: {}", self.job.said());
        Ok(count.parse()?)
    }

    /// No copy runs now or soon.
    fn check_frozen(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let running = self.running();
            ensure!(running.is_empty(), "a copy runs while the move is in doubt: {running:?}");
            self.check_ledger()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// State of the job in `vosrun ps` on a host; None when it is not listed.
    fn state_on(&self, index: usize) -> Result<Option<String>> {
        let text = self.hosts.run(index, &["ps", "--json"])?.good("ps")?;
        let document: Value = serde_json::from_str(&text)?;
        let jobs = document["jobs"].as_array().context("no jobs in ps --json")?;
        let own = jobs.iter().find(|j| j["name"] == self.job.name.as_str());
        Ok(own.and_then(|j| j["state"].as_str()).map(str::to_owned))
    }

    fn await_state(&self, index: usize, wanted: &str) -> Result<()> {
        let mut last = None;
        until(SOON, "", || {
            last = self.state_on(index)?;
            Ok((last.as_deref() == Some(wanted)).then_some(()))
        })
        .map_err(|_| anyhow::anyhow!("the job is {last:?} on host {index}, wanted {wanted}"))
    }

    /// Asks the guest to end; the launcher gives its code.
    fn finish(self) -> Result<()> {
        self.check_single()?;
        let ledger = self.ledger.clone();
        let text = self.job.finish()?;
        ensure!(text.contains("EXIT-SUCCESS"), "{text}");
        ensure!(!ledger.exists() || fs::metadata(ledger)?.len() > 0, "an empty ledger");
        Ok(())
    }

    /// The end of a job that was asked to end already.
    fn finish_ended(mut self) -> Result<()> {
        let code = self.job.end(SOON)?;
        ensure!(code == 0, "exit code {code}: {}", self.job.said());
        let out = self.job.stdout.text();
        ensure!(out.ends_with("EXIT-SUCCESS\n"), "no EXIT-SUCCESS: {}", self.job.said());
        self.check_ledger()?;
        self.job.await_nothing_left()
    }

    /// The end of a job whose launcher was killed.
    fn finish_without_launcher(mut self) -> Result<()> {
        fs::write(self.job.dir.join("stop"), "")?;
        until(SOON, "the end of the guest", || Ok(self.copies().is_empty().then_some(())))?;
        let text = fs::read_to_string(self.job.dir.join("status"))?;
        ensure!(text.trim().ends_with("done"), "the guest ended with {text}");
        let _ = self.job.end(SOON)?;
        self.check_ledger()?;
        self.job.await_nothing_left()
    }
}

fn expect(done: &Done, codes: &[i32]) -> Result<()> {
    ensure!(
        codes.contains(&done.code()),
        "exit {} of {codes:?}: {} {}",
        done.code(),
        done.stdout,
        done.stderr
    );
    Ok(())
}

/// SIGKILL to a process given by its number inside one of the hosts.
fn kill_on_host(hosts: &Hosts, index: usize, pid: i32) -> Result<()> {
    if hosts.who == Who::User {
        return Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?);
    }
    let mut command = hosts.command(index, Path::new("/bin/kill"));
    procs::run(command.args(["-KILL", &pid.to_string()]), SOON)?.good("kill").map(drop)
}

fn supervisor_of(scene: &Scene<'_>) -> Result<i32> {
    let job = scene.job.ps()?;
    let pid = job["supervisor_pid"].as_i64().context("no supervisor_pid in ps --json")?;
    Ok(i32::try_from(pid)?)
}

/// After the supervisor's death at rest or in a move that was not decided: the job runs on,
/// is taken up again, and moves as before.
fn adopt_and_move(mut scene: Scene<'_>, index: usize) -> Result<()> {
    scene.await_running()?;
    scene.await_state(index, "ORPHANED")?;
    let name = scene.job.name.clone();
    scene.hosts.run(index, &["adopt", &name])?.good("adopt")?;
    scene.await_running()?;
    scene.await_state(index, "RUNNING")?;
    scene.job.at = index;
    let child = scene.migrate(scene.hosts.hosts[1 - index].name)?;
    expect(&scene.ended(child)?, &[MOVED])?;
    scene.await_running()?;
    scene.finish_without_launcher()
}

fn killed_at_rest(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    kill_on_host(&hosts, 0, supervisor_of(&scene)?)?;
    adopt_and_move(scene, 0)
}

/// After a move, the supervisor at the target dies; the job goes on there.
fn killed_at_rest_away(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let mut scene = Scene::start(&hosts, "ledger", None)?;
    scene.job.migrate(1)?;
    kill_on_host(&hosts, 1, supervisor_of(&scene)?)?;
    scene.await_running()?;
    scene.await_state(1, "ORPHANED")?;
    hosts.run(1, &["adopt", &scene.job.name])?.good("adopt")?;
    scene.await_running()?;
    scene.await_state(1, "RUNNING")?;
    // Its output was relayed by the supervisor that has died: nobody reads it any more.
    scene.job.migrate(0)?;
    scene.await_running()?;
    scene.finish_without_launcher()
}

/// The source's supervisor is killed at `point`.
fn source_killed(who: Who, point: &'static str) -> Result<()> {
    let mut gate = Gate::new(point)?;
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", Some(&gate))?;
    let child = scene.migrate("b")?;
    let pid = gate.reached()?;
    kill_on_host(&hosts, 0, pid)?;
    let done = scene.ended(child)?;
    match point {
        "committed" => {
            expect(&done, &[IN_DOUBT])?;
            // The target asks the source's node, whose journal says that it owns the job.
            scene.await_running()?;
            scene.await_state(1, "RUNNING")?;
            scene.finish_without_launcher()
        }
        "done" => {
            expect(&done, &[MOVED, IN_DOUBT])?;
            scene.await_running()?;
            scene.await_state(1, "RUNNING")?;
            scene.finish_without_launcher()
        }
        _ => {
            expect(&done, &[ABORTED, IN_DOUBT])?;
            adopt_and_move(scene, 0)
        }
    }
}

/// The frozen copy at the source is woken by a person, and goes on there.
fn recover(scene: Scene<'_>) -> Result<()> {
    scene.check_frozen()?;
    scene.await_state(0, "IN-DOUBT")?;
    let name = scene.job.name.clone();
    scene.hosts.run(0, &["recover", &name, "--dead", "b"])?.good("recover")?;
    scene.await_running()?;
    scene.await_state(0, "RUNNING")?;
    scene.finish()
}

/// The target's supervisor is killed at a point of its own.
fn target_killed(who: Who, point: &'static str) -> Result<()> {
    let mut gate = Gate::new(point)?;
    let hosts = two_hosts(who, Some(&gate))?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    let child = scene.migrate("b")?;
    let pid = gate.reached()?;
    kill_on_host(&hosts, 1, pid)?;
    let done = scene.ended(child)?;
    if point == "ready" {
        expect(&done, &[ABORTED])?;
        scene.await_running()?;
        scene.await_state(0, "RUNNING")?;
        return scene.finish();
    }
    expect(&done, &[IN_DOUBT, LOST])?;
    recover(scene)
}

/// The target's supervisor is killed while the source stands at `point`.
fn target_killed_behind(who: Who, point: &'static str) -> Result<()> {
    let mut source = Gate::new(point)?;
    let mut target = Gate::new("ready")?;
    let hosts = two_hosts(who, Some(&target))?;
    let scene = Scene::start(&hosts, "ledger", Some(&source))?;
    let child = scene.migrate("b")?;
    let pid = target.reached()?;
    target.release()?;
    source.reached()?;
    kill_on_host(&hosts, 1, pid)?;
    source.release()?;
    let done = scene.ended(child)?;
    // Before the commit the source may or may not have seen that the target is gone.
    let codes: &[i32] =
        if point == "committed" { &[IN_DOUBT, LOST] } else { &[ABORTED, IN_DOUBT, LOST] };
    expect(&done, codes)?;
    if done.code() == ABORTED {
        scene.await_running()?;
        return scene.finish();
    }
    recover(scene)
}

/// The link is cut while one side stands at `point`; it is mended after the command has given
/// up.
fn link_cut(at_target: bool, point: &'static str) -> Result<()> {
    let mut gate = Gate::new(point)?;
    let hosts = two_hosts(Who::Root, at_target.then_some(&gate))?;
    let scene = Scene::start(&hosts, "ledger", (!at_target).then_some(&gate))?;
    let child = scene.migrate("b")?;
    gate.reached()?;
    hosts.set_link(0, 1, false)?;
    gate.release()?;
    let done = scene.ended(child)?;
    // With READY the source has heard all it needs, and decides. At `image-sent` READY may be
    // on its way already.
    let codes: &[i32] = match point {
        "image-sent" => &[ABORTED, IN_DOUBT],
        "ready-received" | "committed" | "commit-received" | "owned" => &[IN_DOUBT],
        _ => &[ABORTED],
    };
    expect(&done, codes)?;
    if done.code() == IN_DOUBT {
        if !at_target {
            scene.check_frozen()?;
        }
        hosts.set_link(0, 1, true)?;
        scene.await_running()?;
        scene.await_state(1, "RUNNING")?;
    } else {
        scene.await_running()?;
        scene.await_state(0, "RUNNING")?;
        hosts.set_link(0, 1, true)?;
    }
    scene.finish()
}

fn no_such_node(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    let done = scene.ended(scene.migrate("nowhere")?)?;
    expect(&done, &[2, REFUSED, TEMPORARY])?;
    scene.await_running()?;
    scene.finish()
}

fn node_down(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    hosts.kill_node(1)?;
    let done = scene.ended(scene.migrate("b")?)?;
    expect(&done, &[TEMPORARY])?;
    scene.await_running()?;
    scene.finish()
}

/// An object that cannot move is named, by `check` and by `migrate`, before anything stops.
fn unmovable(who: Who) -> Result<()> {
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "unmovable", None)?;
    let check = hosts.run(0, &["check", &scene.job.name, "--to", "b"])?;
    expect(&check, &[REFUSED])?;
    ensure!(check.stdout.contains("fd "), "check does not name the fd: {}", check.stdout);
    let done = scene.ended(scene.migrate("b")?)?;
    expect(&done, &[REFUSED])?;
    let document: Value = serde_json::from_str(&done.stdout)?;
    let finding = &document["findings"][0];
    let code = finding["code"].as_str().with_context(|| format!("no finding in {document}"))?;
    ensure!(finding["object"].as_str().is_some_and(|o| o.contains("fd ")), "{document}");
    hosts.run(0, &["explain", code])?.good("explain")?;
    scene.await_running()?;
    scene.finish()
}

/// The target's kernel lets its node make no namespaces: `check` and `migrate` say so, the job
/// is not touched.
fn no_namespaces(who: Who) -> Result<()> {
    let without = "echo 0 > /proc/sys/user/max_user_namespaces; exec \
                   setpriv --inh-caps=-all --bounding-set=-all \"$@\"";
    let hosts = two_hosts(who, None)?;
    hosts.kill_node(1)?;
    hosts.start_node_via(1, &["unshare", "-U", "-r", "sh", "-c", without, "sh"], &|_, _| {})?;
    let scene = Scene::start(&hosts, "ledger", None)?;
    let check = hosts.run(0, &["check", &scene.job.name, "--to", "b"])?;
    expect(&check, &[REFUSED])?;
    ensure!(check.stdout.contains("VOS-USERNS"), "check does not tell: {}", check.stdout);
    let done = scene.ended(scene.migrate("b")?)?;
    expect(&done, &[REFUSED])?;
    ensure!(done.stdout.contains("VOS-USERNS"), "migrate does not tell: {}", done.stdout);
    scene.await_running()?;
    scene.finish()
}

fn still_at_home(guest: &str, hosts: &Hosts, limit: impl FnOnce() -> Result<()>) -> Result<()> {
    let scene = Scene::start(hosts, guest, None)?;
    limit()?;
    let done = scene.ended(scene.migrate("b")?)?;
    expect(&done, &[REFUSED, ABORTED, TEMPORARY])?;
    scene.await_running()?;
    scene.await_state(0, "RUNNING")?;
    scene.finish()
}

/// The target's files may not grow.
fn disk_full_limit() -> Result<()> {
    let hosts = two_hosts(Who::User, None)?;
    still_at_home("ledger", &hosts, || hosts.limit_node(1, "--fsize=0:0"))
}

/// The target's state folder is on a file system without a free block.
fn disk_full() -> Result<()> {
    ensure!(common::is_root(), "SKIP needs root");
    let hosts = Hosts::start_prepared(Who::Root, 2, |hosts| {
        let dir = hosts.hosts[1].state_dir.display().to_string();
        let mut mount = hosts.command(1, Path::new("/bin/mount"));
        mount.args(["-t", "tmpfs", "-o", "size=256k,mode=755", "vosrun-test", &dir]);
        procs::run(&mut mount, SOON)?.good("mount").map(drop)
    })?;
    still_at_home("ledger", &hosts, || {
        let file = hosts.hosts[1].state_dir.join("filler").display().to_string();
        let mut fill = hosts.command(1, Path::new("/bin/sh"));
        fill.args(["-c", "cat /dev/zero > \"$0\" 2>/dev/null; exit 0", &file]);
        procs::run(&mut fill, SOON)?.good("fill").map(drop)
    })
}

/// The target may not have the memory that the job needs.
fn no_memory() -> Result<()> {
    let hosts = two_hosts(Who::User, None)?;
    still_at_home("mem_big", &hosts, || {
        let pid = hosts.node_pid(1).context("no node")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let size = status.lines().find_map(|l| l.strip_prefix("VmSize:")).context("VmSize")?;
        let kib: u64 = size.trim().trim_end_matches(" kB").parse()?;
        let bytes = (kib << 10) + (40 << 20);
        hosts.limit_node(1, &format!("--as={bytes}:{bytes}"))
    })
}

/// The job ends while its move has begun.
fn job_exits(who: Who, point: &'static str) -> Result<()> {
    let mut gate = Gate::new(point)?;
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "ledger", Some(&gate))?;
    let child = scene.migrate("b")?;
    gate.reached()?;
    fs::write(scene.job.dir.join("stop"), "")?;
    if point == "before-hello" {
        until(SOON, "the end of the guest", || {
            let text = fs::read_to_string(scene.job.dir.join("status"))?;
            Ok(text.trim().ends_with("done").then_some(()))
        })?;
    }
    gate.release()?;
    let done = scene.ended(child)?;
    // A job that was frozen by then moves and ends at the target.
    expect(&done, if point == "frozen" { &[MOVED] } else { &[REFUSED, ABORTED] })?;
    scene.finish_ended()
}

/// The job calls exec or fork when its move has begun.
fn job_turns(who: Who, what: &str) -> Result<()> {
    let mut gate = Gate::new("before-hello")?;
    let hosts = two_hosts(who, None)?;
    let scene = Scene::start(&hosts, "turncoat", Some(&gate))?;
    let child = scene.migrate("b")?;
    gate.reached()?;
    fs::write(scene.job.dir.join(format!("status.{what}")), "")?;
    // The supervisor stands still: an event stop of the job lasts until the release.
    let waits = scene.job.dir.join("status.did");
    let _ = until(Duration::from_secs(2), "", || Ok(waits.exists().then_some(())));
    gate.release()?;
    let mut child = child;
    procs::wait(&mut child, PATIENCE, "vosrun migrate")?;
    let code = procs::exit_code(child.wait()?);
    let codes = if what == "exec" { vec![MOVED, REFUSED, ABORTED] } else { vec![REFUSED, ABORTED] };
    ensure!(codes.contains(&code), "exit {code} of {codes:?}");
    until(SOON, "the guest did it", || Ok(waits.exists().then_some(())))?;
    scene.job.finish().map(drop)
}

/// Two moves of one job at once: one at most is made at a time, and the job is where the
/// successful one says.
fn two_moves(worker: &mut Worker, who: Who) -> Result<()> {
    let hosts = worker.hosts(who)?;
    let mut scene = Scene::start(hosts, "ledger", None)?;
    for _ in 0..5 {
        let at = scene.job.at;
        let others: Vec<usize> = (0..3).filter(|i| *i != at).collect();
        let first = scene.migrate(hosts.hosts[others[0]].name)?;
        let second = scene.migrate(hosts.hosts[others[1]].name)?;
        let ends = [scene.ended(first)?.code(), scene.ended(second)?.code()];
        match ends {
            [MOVED, REFUSED | ABORTED | TEMPORARY] => scene.job.at = others[0],
            [REFUSED | ABORTED | TEMPORARY, MOVED] => scene.job.at = others[1],
            _ => bail!("exit codes {ends:?}: one of two moves must succeed"),
        }
        scene.await_running()?;
        scene.await_state(scene.job.at, "RUNNING")?;
    }
    scene.finish()
}

/// What a member sends that does not keep to the protocol, after a good greeting.
/// What a source says: messages with their payloads.
type Said = Vec<(Msg, Vec<u8>)>;

fn garbage_messages() -> Vec<(&'static str, Said)> {
    let image = |last| Msg::Image { last };
    let noise: Vec<u8> =
        (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let ids = |pid| Ids { pid, ppid: 1, pgid: pid, sid: pid };
    let plan = |pid, clock| Plan {
        ids: ids(pid),
        nodename: "x".into(),
        domainname: String::new(),
        clocks: Clocks { monotonic: clock, boottime: clock },
        terminal: false,
        user: User::own(),
    };
    let id = BulkId { dev: 1, ino: 2 };
    vec![
        ("an image of noise", vec![(image(true), noise.clone())]),
        (
            "an image of noise, framed",
            vec![
                (Msg::Prepare(plan(300, 1 << 40)), Vec::new()),
                (image(false), noise.clone()),
                (image(true), noise.clone()),
            ],
        ),
        (
            "two frames",
            vec![
                (Msg::Prepare(plan(300, 1 << 40)), Vec::new()),
                (Msg::Prepare(plan(301, 1 << 40)), Vec::new()),
            ],
        ),
        ("an absurd pid", vec![(Msg::Prepare(plan(-5, 1 << 40)), Vec::new())]),
        ("an absurd clock", vec![(Msg::Prepare(plan(300, i128::MIN)), Vec::new())]),
        ("pages of nothing", vec![(Msg::Pages(vec![(u64::MAX, 0)]), noise.clone())]),
        ("content of no file", vec![(Msg::Chunk { index: 9, last: true }, noise.clone())]),
        ("content of nothing", vec![(Msg::Bulk { id, offset: u64::MAX }, noise.clone())]),
        ("the end before the image", vec![(Msg::PagesEnd, Vec::new())]),
        (
            "a file's name of noise",
            vec![(Msg::File { index: 0, hash: [0; 32], mode: 0, size: 1 }, vec![0xff; 4])],
        ),
        (
            "another content than was promised",
            vec![
                (Msg::File { index: 0, hash: [0; 32], mode: 0, size: 1 }, noise.clone()),
                (Msg::Chunk { index: 0, last: true }, noise.clone()),
            ],
        ),
        ("a commit out of order", vec![(Msg::Commit, Vec::new())]),
        ("a greeting of noise", vec![(Msg::Hello(PROTOCOL, noise), Vec::new())]),
    ]
}

/// Sends a good greeting to b as the node a, then `rest`; gives what b said last.
fn talk(hosts: &Hosts, rest: &[(Msg, Vec<u8>)]) -> Result<Option<Msg>> {
    let state = StateDir::open(&hosts.hosts[0].state_dir)?;
    let peer = peers::find(&state, "b")?.context("a does not know b")?;
    let tls = vosrun::node::tls(&state)?;
    let of = preflight::Move {
        id: MoveId::random()?,
        job: JobInfo {
            id: JobId::random()?,
            name: "garbage".into(),
            command: Vec::new(),
            home: "a".into(),
            started_ms: 1,
            attached: false,
            filtered: false,
        },
        epoch: Epoch(1),
        dry: false,
        source: "a",
        home: (tls.id(), "a".into()),
        history: Vec::new(),
    };
    let hello = preflight::hello(std::process::id() as i32, of, Vec::new())?;
    let mut link = Link::connect(&peer.addr, &tls, peer.id, Service::New)?;
    link.send(&Msg::Hello(PROTOCOL, postcard::to_stdvec(&hello)?), &[])?;
    for (msg, payload) in rest {
        link.send(msg, payload)?;
    }
    let mut last = None;
    until(SOON, "the end of the connection", || {
        let alive = link.wait(Duration::from_millis(100)).is_ok() && !link.closed();
        while let Some(frame) = link.next_frame() {
            last = Some(frame.decode::<Msg>()?);
        }
        Ok((!alive).then_some(()))
    })
    .with_context(|| format!("the last word was {last:?}"))?;
    Ok(last)
}

/// A receiver that is sent garbage says so, ends, and leaves no process and no folder.
fn garbage() -> Result<()> {
    let hosts = two_hosts(Who::User, None)?;
    let before = procs::descendants(std::process::id() as i32);
    for (what, rest) in garbage_messages() {
        let last = talk(&hosts, &rest).context(what)?;
        ensure!(matches!(last, Some(Msg::Failed(_))), "{what}: the last word was {last:?}");
        until(SOON, "the end of the receiver", || {
            let mut left = procs::descendants(std::process::id() as i32);
            left.retain(|pid| !before.contains(pid));
            let jobs = hosts.hosts[1].state_dir.join("jobs");
            let folders = fs::read_dir(jobs).map_or(0, Iterator::count);
            Ok((left.is_empty() && folders == 0).then_some(()))
        })
        .context(what)?;
    }
    // The node is as good as before.
    let mut scene = Scene::start(&hosts, "ledger", None)?;
    scene.job.migrate(1)?;
    scene.await_running()?;
    scene.finish()
}

fn cell(name: String, run: impl Fn() -> Result<()> + Send + Sync + 'static) -> Cell {
    Cell::new(name, move |_| run()).limit(240)
}

const SOURCE_POINTS: [&str; 7] =
    ["before-hello", "copy", "frozen", "image-sent", "ready-received", "committed", "done"];

/// Cells that are the same with hosts of both kinds.
fn cells_as(who: Who) -> Vec<Cell> {
    type Run = fn(Who) -> Result<()>;
    let plain: [(&str, Run); 10] = [
        ("rest/source-killed", killed_at_rest),
        ("rest/target-killed", killed_at_rest_away),
        ("refused/no-such-node", no_such_node),
        ("refused/node-down", node_down),
        ("refused/unmovable", unmovable),
        ("refused/no-namespaces", no_namespaces),
        ("job/exits/before-hello", |who| job_exits(who, "before-hello")),
        ("job/exits/frozen", |who| job_exits(who, "frozen")),
        ("job/execs", |who| job_turns(who, "exec")),
        ("job/forks", |who| job_turns(who, "fork")),
    ];
    let word = who.word();
    let named = |name: &str| format!("{word}/{name}");
    let mut cells: Vec<Cell> =
        plain.iter().map(|&(name, run)| cell(named(name), move || run(who))).collect();
    cells.push(Cell::new(named("two-moves"), move |w| two_moves(w, who)).limit(240));
    for point in SOURCE_POINTS {
        let name = named(&format!("source-killed/{point}"));
        cells.push(cell(name, move || source_killed(who, point)));
    }
    for point in ["ready", "commit-received", "owned"] {
        let name = named(&format!("target-killed/{point}"));
        cells.push(cell(name, move || target_killed(who, point)));
    }
    for point in ["ready-received", "committed"] {
        let name = named(&format!("target-killed/behind-{point}"));
        cells.push(cell(name, move || target_killed_behind(who, point)));
    }
    cells
}

fn cells() -> Vec<Cell> {
    let mut cells = cells_as(Who::User);
    cells.extend(cells_as(Who::Root));
    cells.extend([
        cell("root/target/disk-full".into(), disk_full),
        cell("user/target/disk-full-limit".into(), disk_full_limit),
        cell("user/target/no-memory".into(), no_memory),
        cell("user/garbage".into(), garbage),
    ]);
    for point in ["before-hello", "copy", "frozen", "image-sent", "ready-received", "committed"] {
        cells.push(cell(format!("root/link-cut/{point}"), move || link_cut(false, point)));
    }
    for point in ["ready", "commit-received", "owned"] {
        cells.push(cell(format!("root/link-cut/{point}"), move || link_cut(true, point)));
    }
    cells
}

fn main() -> ExitCode {
    common::runner::main(cells())
}
