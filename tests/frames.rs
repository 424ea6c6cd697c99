//! Frames of process trees, without a move: each is made, and `/proc` compared with what was
//! asked for.
//!
//! Each cell runs in a process of its own with one thread, as `frames --frame NAME`.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{setresgid, setresuid, Gid, Pid, Uid};

use common::runner::{self, Cell};
use common::{is_root, Who, ORDINARY};
use vosrun::migrate::capture;
use vosrun::migrate::image::Ids;
use vosrun::migrate::resource::creds::User;
use vosrun::migrate::resource::View;
use vosrun::migrate::shares::Shares;
use vosrun::migrate::skeleton::{own_clocks, Footing, NewProcess, Plan, Skeleton};
use vosrun::migrate::tree::Member;
use vosrun::tracer::inject::Remote;
use vosrun::tracer::{raw, stop};

/// "pid ppid pgid sid", and the wait status of one that has ended.
const TREES: &[(&str, &str)] = &[
    ("one", "50 40 30 20"),
    ("leader", "50 1 50 50"),
    ("leader-below", "50 40 50 50"),
    ("orphan", "50 1 30 20"),
    ("shell", "50 1 50 50,51 50 51 50,52 50 51 50,53 50 53 50,54 53 53 50,55 54 53 50"),
    ("outside", "50 0 50 50,51 50 50 50,52 1 52 50,53 1 54 50"),
    ("outside-session", "50 0 30 0,51 50 30 0,52 50 0 0,53 52 53 0,54 1 53 0"),
    ("dead-group-leader", "50 40 50 50,52 50 51 50,53 50 51 50"),
    ("daemons", "50 40 30 20,53 1 52 52,54 53 52 52,55 53 55 52,56 1 30 20,57 1 58 20,60 1 60 60"),
    ("left-behind", "50 40 50 50,53 1 50 50,54 1 54 50,56 1 55 50,57 56 54 50"),
    ("sessions", "50 1 50 50,51 50 51 51,52 51 50 50,53 51 51 51,54 52 54 54,55 54 50 50"),
    ("before", "50 1 0 0,51 50 51 51,52 51 52 52,53 52 0 0,54 52 52 52"),
    ("subreaper", "50 40 50 50,53 50 52 52,54 50 54 52,55 53 52 52,56 53 57 52"),
    ("subreaper-inside", "50 40 50 50,51 50 51 51,53 50 51 51,54 51 51 51"),
    ("moved-on", "50 1 50 50,51 50 52 50,52 50 53 50,53 50 53 50"),
    ("init-session", "50 1 50 1,51 50 50 1,52 1 1 1"),
    (
        "zombies",
        "50 1 50 50,51 50 51 50 1792,52 50 51 50,53 52 53 53 9,54 52 51 50 139,55 52 51 50 0",
    ),
    ("low-numbers", "2 1 2 2,3 1 4 4,5 3 4 4,7 1 6 2"),
];

fn members(text: &str) -> Result<Vec<Member>> {
    let member = |line: &str| {
        let words: Result<Vec<i32>, _> = line.split_whitespace().map(str::parse).collect();
        let words = words?;
        let [pid, ppid, pgid, sid, ended @ ..] = words.as_slice() else { bail!("{line}") };
        let ids = Ids { pid: *pid, ppid: *ppid, pgid: *pgid, sid: *sid };
        Ok(Member { ids, ended: ended.first().copied(), shares: Shares::default() })
    };
    text.split(',').map(member).collect()
}

fn spawn(members: &[Member]) -> Result<Skeleton> {
    let plan = Plan {
        members: members.to_vec(),
        nodename: "frames".into(),
        domainname: String::new(),
        clocks: own_clocks()?,
        terminals: Vec::new(),
        ptys: false,
        user: User::own(),
        bequests: Vec::new(),
        programs: Vec::new(),
    };
    let skeleton = Skeleton::spawn(&plan, Footing::Namespaces)?;
    if let Err(e) = skeleton.settle() {
        let _ = end(&skeleton);
        return Err(e.into());
    }
    Ok(skeleton)
}

/// Ends the frame; nothing of it is left.
fn end(skeleton: &Skeleton) -> Result<()> {
    skeleton.kill();
    waitpid(Pid::from_raw(skeleton.init), None)?;
    for process in &skeleton.processes {
        ensure!(fs::metadata(format!("/proc/{}", process.pid)).is_err(), "{process:?} is left");
    }
    Ok(())
}

/// Every process is what it was asked to be, and no other is in the namespace but stand-ins.
fn compare(skeleton: &Skeleton, members: &[Member]) -> Result<()> {
    let living: Vec<&Member> = members.iter().filter(|m| m.ended.is_none()).collect();
    ensure!(living.len() == skeleton.processes.len(), "{} processes", skeleton.processes.len());
    for (member, process) in living.iter().zip(&skeleton.processes) {
        let view = View::read_process(process.pid)?;
        let ids = capture::ids(&view)?;
        ensure!(ids == member.ids, "{ids:?} instead of {:?}", member.ids);
        for pending in ["SigPnd:", "ShdPnd:"] {
            ensure!(view.field(pending).bytes().all(|b| b == b'0'), "{ids:?}: {pending}");
        }
        // Its end of the common socket goes when it has said that it is there.
        common::until(common::SOON, "one descriptor", || {
            let open = fs::read_dir(format!("/proc/{}/fd", process.pid))?.count();
            Ok((open == 1).then_some(()))
        })?;
    }
    let namespace = fs::read_link(format!("/proc/{}/ns/pid", skeleton.init))?;
    let known: BTreeSet<i32> = members
        .iter()
        .map(|m| m.ids.pid)
        .chain(members.first().map(|m| [m.ids.ppid, m.ids.pgid, m.ids.sid]).into_iter().flatten())
        .chain([1])
        .collect();
    for process in procfs::process::all_processes()?.flatten() {
        let link = fs::read_link(format!("/proc/{}/ns/pid", process.pid));
        if link.is_ok_and(|link| link == namespace) {
            let inside = View::read_process(process.pid)?.job_pid;
            ensure!(known.contains(&inside), "process {inside} is left");
        }
    }
    Ok(())
}

/// Lets the process wait for its zombies, and compares the statuses.
fn wait_in(process: &NewProcess, zombies: &[&Member]) -> Result<()> {
    raw::seize(process.pid)?;
    raw::interrupt(process.pid)?;
    stop::wait(process.pid, true)?.context("it has ended")?;
    let mut remote = Remote::open(process.pid, false)?;
    let (insn, at) = (remote.regs.rip - 2, (remote.regs.rsp - 4096) & !7);
    for zombie in zombies {
        let pid = zombie.ids.pid;
        let args = [pid as u64, at, 0, 0, 0, 0];
        let got = remote.call(insn, libc::SYS_wait4, "wait4", args)?;
        ensure!(got as i32 == pid, "wait4 of {pid} in {process:?}: {got}");
        let mut status = [0; 4];
        raw::read_memory(process.pid, at, &mut status)?;
        // Bit 7: a core file was written, which happens only once.
        let (status, wanted) = (i32::from_le_bytes(status), zombie.ended.map(|s| s & !0x80));
        ensure!(Some(status) == wanted, "{zombie:?} ended with {status:#x}");
    }
    remote.close()?;
    raw::detach(process.pid, 0)?;
    Ok(())
}

fn tree(text: &str) -> Result<()> {
    let members = members(text)?;
    let skeleton = spawn(&members)?;
    compare(&skeleton, &members)?;
    for process in &skeleton.processes {
        let child = |m: &&Member| m.ended.is_some() && m.ids.ppid == process.job_pid;
        let zombies: Vec<&Member> = members.iter().filter(child).collect();
        if !zombies.is_empty() {
            wait_in(process, &zombies)?;
        }
    }
    end(&skeleton)
}

fn many(line: impl Fn(i32) -> String) -> Result<()> {
    tree(&(10..310).map(line).collect::<Vec<_>>().join(","))
}

/// pid 1 is there until the last process of the job is gone, and so are the stand-ins.
fn stays(text: &str) -> Result<()> {
    let members = members(text)?;
    let skeleton = spawn(&members)?;
    let count = skeleton.processes.len();
    for (left, process) in skeleton.processes.iter().enumerate() {
        let init =
            waitpid(Pid::from_raw(skeleton.init), Some(nix::sys::wait::WaitPidFlag::WNOHANG))?;
        ensure!(init == WaitStatus::StillAlive, "pid 1: {init:?} with {} left", count - left);
        raw::kill(process.pid, libc::SIGKILL)?;
        common::until(common::SOON, "a process is reaped", || {
            Ok(fs::metadata(format!("/proc/{}", process.pid)).is_err().then_some(()))
        })
        .with_context(|| format!("{process:?}"))?;
    }
    let init = waitpid(Pid::from_raw(skeleton.init), None)?;
    ensure!(matches!(init, WaitStatus::Exited(_, 0)), "pid 1: {init:?}");
    Ok(())
}

/// What fails names the process, and nothing is left.
fn refused() -> Result<()> {
    let plan = members("50 1 50 50,51 77 50 50")?;
    let text = spawn(&plan).err().context("a process without a parent")?.to_string();
    ensure!(text.contains("process 51"), "{text}");
    // Larger than any pid.
    let plan = members("50 1 50 50,2000000000 50 50 50")?;
    let text = spawn(&plan).err().context("a number that is too large")?.to_string();
    ensure!(text.contains("process 2000000000"), "{text}");
    let none = waitpid(Pid::from_raw(-1), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    ensure!(!matches!(none, Ok(WaitStatus::StillAlive)), "processes are left");
    Ok(())
}

/// More sockets than the soft limit of descriptors, and than the hard one.
fn descriptors() -> Result<()> {
    use nix::sys::resource::{getrlimit, setrlimit, Resource::RLIMIT_NOFILE};
    setrlimit(RLIMIT_NOFILE, 64, 1000)?;
    many(|pid| format!("{pid} {} 10 10", if pid == 10 { 1 } else { 10 }))?;
    ensure!(getrlimit(RLIMIT_NOFILE)? == (1000, 1000), "the limit is not raised");
    let lines: Vec<String> = (10..1010).map(|pid| format!("{pid} 1 {pid} {pid}")).collect();
    let text = spawn(&members(&lines.join(","))?).err().context("no room")?.to_string();
    ensure!(text.contains("RLIMIT_NOFILE"), "{text}");
    Ok(())
}

fn frame(name: &str) -> Result<()> {
    if let Some((_, text)) = TREES.iter().find(|(tree, _)| *tree == name) {
        return tree(text);
    }
    match name {
        "chain" => many(|pid| format!("{pid} {} 10 10", if pid == 10 { 1 } else { pid - 1 })),
        "chain-of-sessions" => {
            many(|pid| format!("{pid} {} {pid} {pid}", if pid == 10 { 1 } else { pid - 1 }))
        }
        "star" => many(|pid| format!("{pid} {} 10 10", if pid == 10 { 1 } else { 10 })),
        "star-of-zombies" => many(|pid| match pid {
            10 => "10 1 10 10".into(),
            _ if pid % 2 == 0 => format!("{pid} 10 10 10 9"),
            _ => format!("{pid} 10 {pid} 10 1792"),
        }),
        "star-of-daemons" => many(|pid| format!("{pid} 1 {} 400", 410 + pid % 7)),
        "stays" => stays("50 40 30 20,51 50 50 20,53 1 52 52,54 1 30 20"),
        "stays-leader" => stays("50 20 50 20,51 50 51 51,54 1 50 20"),
        "stays-outside" => stays("50 0 50 50,51 50 50 50,53 1 52 52"),
        "stays-orphan" => stays("50 1 50 50,51 50 50 50,53 51 53 53"),
        "refused" => refused(),
        "descriptors" => descriptors(),
        _ => bail!("no such frame"),
    }
}

/// The frames that have no tree in [`TREES`].
const OTHERS: &[&str] = &[
    "chain",
    "chain-of-sessions",
    "star",
    "star-of-zombies",
    "star-of-daemons",
    "stays",
    "stays-leader",
    "stays-outside",
    "stays-orphan",
    "refused",
    "descriptors",
];

/// `--frame NAME WHO` in a process of its own.
fn run_frame(name: &str, who: &str) -> Result<()> {
    if who == Who::User.word() && is_root() {
        let (uid, gid) = (Uid::from_raw(ORDINARY), Gid::from_raw(ORDINARY));
        nix::unistd::setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        // As after an execve by that user.
        vosrun::migrate::raw::set_dumpable(true);
    }
    frame(name)
}

fn cell(name: &'static str, who: Who) -> Cell {
    Cell::new(format!("{}/{name}", who.word()), move |_| {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--frame", name, who.word()]);
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {text}", output.status);
        Ok(())
    })
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, name, who] = args.as_slice() {
        if word == "--frame" {
            return match run_frame(name, who) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    eprintln!("{e:#}");
                    ExitCode::FAILURE
                }
            };
        }
    }
    let names = TREES.iter().map(|(name, _)| *name).chain(OTHERS.iter().copied());
    let whom: &[Who] = if is_root() { &[Who::Root, Who::User] } else { &[Who::User] };
    let cells = names.flat_map(|name| whom.iter().map(move |who| cell(name, *who)));
    runner::main(cells.collect())
}
