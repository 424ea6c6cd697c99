//! The matrix: each guest × how it starts × as whom × how it moves.
//!
//! Cells are called `native/root/GUEST`, `still/user/GUEST`, `one/root/GUEST`,
//! `ten/user/GUEST`, `random/user/GUEST`, `attached/root/GUEST` and so on, and
//! `placed/root/PLACE`; arguments choose cells by substrings.

#[path = "moves/callers.rs"]
mod callers;
mod common;
#[path = "moves/connections.rs"]
mod connections;
#[path = "moves/delayed.rs"]
mod delayed;
#[path = "moves/disturbed.rs"]
mod disturbed;
#[path = "moves/joined.rs"]
mod joined;
#[path = "moves/left.rs"]
mod left;
#[path = "moves/said.rs"]
mod said;
#[path = "moves/soak.rs"]
mod soak;
#[path = "moves/table.rs"]
mod table;
#[path = "moves/translation.rs"]
mod translation;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use common::build::{self, Flavour};
use common::gate::Gate;
use common::hosts::Hosts;
use common::job::{Job, Program, Start};
use common::procs;
use common::runner::{Cell, Worker};
use common::{seed, Random, Who};

/// A guest program of the matrix.
#[derive(Debug, Clone, Copy)]
struct Guest {
    source: &'static str,
    args: &'static [&'static str],
    flavour: Flavour,
    /// Who cannot attach to it, if anybody, and why.
    launched_only: Option<(&'static [Who], &'static str)>,
    /// Rows of `vosrun capabilities` that it proves.
    proves: &'static [&'static str],
    /// A guest that runs on the first host outside of the job, and is there before it.
    peer: Option<&'static str>,
}

const fn guest(source: &'static str) -> Guest {
    let flavour = Flavour::Plain;
    Guest { source, args: &[], flavour, launched_only: None, proves: &[], peer: None }
}

const fn with(source: &'static str, args: &'static [&'static str]) -> Guest {
    Guest { args, ..guest(source) }
}

const fn built(source: &'static str, flavour: Flavour) -> Guest {
    Guest { flavour, ..guest(source) }
}

/// A guest that talks to `tcp_peer` by TCP.
const fn tcp(source: &'static str, args: &'static [&'static str]) -> Guest {
    Guest { peer: Some("tcp_peer"), ..with(source, args) }
}

/// A guest whose clients are the guest `peer`.
const fn called(source: &'static str, args: &'static [&'static str], peer: &'static str) -> Guest {
    Guest { peer: Some(peer), ..with(source, args) }
}

const fn launched_only(source: &'static str, by: &'static [Who], why: &'static str) -> Guest {
    Guest { launched_only: Some((by, why)), ..guest(source) }
}

impl Guest {
    /// With the rows of `vosrun capabilities` that it proves.
    const fn proves(mut self, rows: &'static [&'static str]) -> Self {
        self.proves = rows;
        self
    }
}

/// Why a guest cannot be attached to.
const UNSEEN: &str = "what it asked for before has not been seen";

const GUESTS: &[Guest] = &[
    guest("counter"),
    guest("mem_private").proves(&["mem-private"]),
    guest("mem_shared_anon").proves(&["mem-shared"]),
    guest("mem_file_private").proves(&["mem-file-private"]),
    guest("mem_file_shared").proves(&["mem-file-shared"]),
    guest("mem_memfd").proves(&["mem-memfd"]),
    guest("mem_deleted_file").proves(&["mem-deleted"]),
    guest("mem_stack_guard").proves(&["mem-stack"]),
    guest("mem_thp").proves(&["mem-advice"]),
    guest("mem_prot_none"),
    guest("mem_growsdown"),
    guest("mem_mlock").proves(&["mem-locked"]),
    guest("lock_future").proves(&["mem-lock-future"]),
    guest("mem_layout"),
    guest("mem_brk").proves(&["mem-heap"]),
    guest("mem_big"),
    guest("vdso").proves(&["vdso"]),
    guest("threads").proves(&["threads", "registers", "thread-names"]),
    guest("amx").proves(&["amx"]),
    guest("fsgs").proves(&["fs-gs"]),
    guest("tid_address").proves(&["thread-pointers"]),
    guest("robust"),
    guest("rseq").proves(&["rseq"]),
    guest("rseq_sections"),
    guest("futexes").proves(&["futexes"]),
    guest("futex_pi"),
    guest("sigmask").proves(&["signal-mask"]),
    guest("sigactions").proves(&["signal-actions"]),
    guest("traps").proves(&["traps"]),
    with("traps", &["ignored"]),
    Guest {
        args: &["undumpable"],
        ..launched_only("traps", &[Who::User], "a process that is not dumpable belongs to root")
    },
    guest("sigaltstack").proves(&["alternate-stack"]),
    guest("sig_pending").proves(&["signals-pending"]),
    guest("sig_order"),
    guest("sig_twice"),
    guest("sig_own_mask"),
    guest("vdso_handler").proves(&["vdso"]),
    guest("faults"),
    guest("stop_reports").proves(&["stopped"]),
    guest("itimers").proves(&["itimers"]),
    guest("posix_timers").proves(&["posix-timers"]),
    guest("timers_once"),
    guest("sleepers").proves(&["sleeping"]),
    guest("sleep_absolute").proves(&["sleeping"]),
    with("sleepers", &["nanosleep"]),
    guest("blocked").proves(&["blocked"]),
    guest("call_registers"),
    guest("ids").proves(&["pids"]),
    guest("creds").proves(&["directory", "limits", "parent-death", "subreaper"]),
    guest("sched_policy").proves(&["policy"]),
    guest("sched_nice").proves(&["nice"]),
    guest("sched_affinity").proves(&["affinity"]),
    guest("ioprio").proves(&["ioprio"]),
    guest("oom_score").proves(&["oom-score", "coredump-filter"]),
    guest("rlimits").proves(&["limits"]),
    guest("umask_tree").proves(&["umask", "directory"]),
    guest("personality").proves(&["personality", "no-new-privs", "timer-slack"]),
    guest("capsets").proves(&["capabilities", "securebits"]),
    guest("dispatch").proves(&["dispatch"]),
    guest("mdwe").proves(&["mdwe"]),
    guest("tsc").proves(&["tsc"]),
    guest("membarrier").proves(&["membarrier"]),
    guest("switches").proves(&["memory-switches", "thread-switches"]),
    launched_only("seccomp_filter", &[Who::Root, Who::User], UNSEEN).proves(&["seccomp"]),
    Guest { args: &["tsync"], ..launched_only("seccomp_filter", &[Who::Root, Who::User], UNSEEN) },
    Guest { args: &["exec"], ..launched_only("seccomp_filter", &[Who::Root, Who::User], UNSEEN) },
    Guest {
        args: &["privileged"],
        ..launched_only("seccomp_filter", &[Who::Root, Who::User], UNSEEN)
    },
    launched_only("seccomp_own_pid", &[Who::Root, Who::User], UNSEEN),
    launched_only("seccomp_later", &[Who::Root, Who::User], UNSEEN),
    guest("keyrings").proves(&["keyrings"]),
    guest("cpu_timers").proves(&["cpu-timers"]),
    guest("own_ids").proves(&["ids"]),
    launched_only("undumpable", &[Who::User], "a process that is not dumpable belongs to root")
        .proves(&["dumpable"]),
    guest("numbers").proves(&["translated", "pids"]),
    guest("deadlines").proves(&["translated", "sleeping"]),
    launched_only(
        "undumpable_child",
        &[Who::User],
        "a process that is not dumpable belongs to root",
    ),
    launched_only(
        "undumpable_turns",
        &[Who::User],
        "a process that is not dumpable belongs to root",
    ),
    guest("thread_directory").proves(&["thread-directory"]),
    guest("uname").proves(&["host-name"]),
    guest("clocks").proves(&["clocks"]),
    guest("fd_files").proves(&["fd-table", "files"]),
    guest("fd_dir").proves(&["directories"]),
    guest("fd_deleted").proves(&["deleted"]),
    guest("fd_pipe").proves(&["pipes"]),
    guest("fd_eventfd").proves(&["eventfd"]),
    guest("fd_timerfd").proves(&["timerfd"]),
    guest("fd_signalfd").proves(&["signalfd"]),
    guest("signalfd_senders").proves(&["signalfd", "translated"]),
    guest("signalfd_readers").proves(&["signalfd"]),
    guest("signalfd_killed").proves(&["signalfd", "translated"]),
    guest("signalfd_tree").proves(&["signalfd", "translated"]),
    guest("fd_epoll").proves(&["epoll"]),
    with("fd_epoll", &["closed-target"]),
    guest("fd_memfd").proves(&["memfd"]),
    guest("fd_dev").proves(&["devices-small"]),
    launched_only(
        "fd_inotify",
        &[Who::Root, Who::User],
        "the paths of watches made before are not known",
    )
    .proves(&["inotify"]),
    guest("lock_flock").proves(&["lock-flock"]),
    guest("lock_posix").proves(&["lock-posix"]),
    guest("lock_ofd").proves(&["lock-ofd"]),
    guest("lock_lease").proves(&["lease"]),
    guest("lock_lease_write").proves(&["lease"]),
    guest("lock_waiters"),
    guest("pidfd_self_child").proves(&["pidfd"]),
    guest("pidfd_dead"),
    guest("pidfd_thread").proves(&["pidfd-thread"]),
    guest("fd_proc").proves(&["proc"]),
    guest("proc_memory").proves(&["proc"]),
    guest("fd_async_owner").proves(&["async-owner"]),
    guest("epoll_nested"),
    guest("epoll_oneshot"),
    guest("epoll_edge"),
    guest("epoll_exclusive"),
    guest("epoll_stale"),
    guest("eventfd_sem"),
    guest("timerfd_clocks"),
    guest("timerfd_phase"),
    guest("pipe_tree"),
    guest("pipe_flow"),
    guest("transfers_out"),
    guest("transfers_in"),
    guest("pipe_packet"),
    guest("fifo_inside"),
    guest("pipe_gone"),
    launched_only(
        "inotify_pending",
        &[Who::Root, Who::User],
        "the paths of watches made before are not known",
    ),
    launched_only("aio_contexts", &[Who::Root, Who::User], UNSEEN).proves(&["aio"]),
    launched_only("aio_direct", &[Who::Root, Who::User], UNSEEN).proves(&["aio"]),
    guest("unix_pair").proves(&["unix-pair"]),
    guest("unix_stream_queue").proves(&["unix-queue"]),
    guest("unix_seqpacket"),
    guest("unix_half_closed").proves(&["unix-half-closed"]),
    guest("unix_dgram").proves(&["unix-dgram"]),
    guest("unix_listen_backlog").proves(&["unix-backlog"]),
    guest("unix_listen_words"),
    guest("unix_path").proves(&["unix-path"]),
    guest("unix_ways").proves(&["unix-path"]),
    guest("unix_abstract"),
    guest("unix_creds").proves(&["unix-creds"]),
    guest("unix_passcred").proves(&["unix-creds"]),
    guest("unix_rights_in_flight").proves(&["unix-rights"]),
    guest("unix_fork_shared"),
    tcp("tcp_stream", &["4"]).proves(&["tcp"]),
    tcp("tcp_stream", &["6"]).proves(&["tcp"]),
    tcp("tcp_stream", &["mapped"]),
    tcp("tcp_names", &["4"]).proves(&["tcp-options"]),
    tcp("tcp_names", &["6"]).proves(&["tcp-options"]),
    tcp("tcp_queue", &[]).proves(&["tcp"]),
    tcp("tcp_half", &[]).proves(&["tcp-half-closed"]),
    tcp("tcp_full", &[]),
    tcp("tcp_blocked", &[]),
    tcp("tcp_reset", &[]),
    tcp("tcp_shared", &[]),
    tcp("tcp_turns", &[]),
    called("tcp_server", &[], "tcp_client").proves(&["tcp-listening"]),
    called("tcp_server", &["blocking"], "tcp_client"),
    called("tcp_server", &["any4"], "tcp_client"),
    called("tcp_server", &["v6only", "blocking"], "tcp_client"),
    called("tcp_server", &["group"], "tcp_client").proves(&["tcp-listening"]),
    called("tcp_crowd", &[], "tcp_crowders").proves(&["tcp-listening"]),
    called("tcp_backlog", &[], "tcp_callers").proves(&["tcp-listening"]),
    called("udp_server", &["one"], "udp_client").proves(&["udp"]),
    called("udp_server", &["any4"], "udp_client"),
    called("udp_server", &["any6"], "udp_client").proves(&["udp"]),
    called("udp_server", &["info"], "udp_client").proves(&["udp-options"]),
    called("udp_server", &["group"], "udp_client").proves(&["udp-multicast"]),
    called("udp_names", &["4"], "udp_peer").proves(&["udp", "udp-options"]),
    called("udp_names", &["6"], "udp_peer").proves(&["udp", "udp-options"]),
    called("udp_names", &["mapped"], "udp_peer"),
    called("udp_queue", &[], "udp_peer").proves(&["udp-queue"]),
    with("udp_refused", &["4"]),
    with("udp_refused", &["6"]),
    guest("exec_chain").proves(&["exec"]),
    guest("tree").proves(&["children", "fd-shared", "sessions", "stopped", "zombies"]),
    launched_only(
        "tree_orphans",
        &[Who::Root, Who::User],
        "nothing tells that its daemons are its own",
    )
    .proves(&["orphans"]),
    guest("clone_files").proves(&["clone-shared"]),
    guest("clone_fs").proves(&["clone-shared"]),
    guest("clone_vm").proves(&["clone-shared"]),
    guest("clone_sighand").proves(&["clone-shared"]),
    guest("clone_all").proves(&["clone-shared"]),
    guest("clone_sysvsem").proves(&["sysv-sem"]),
    guest("clone_exe").proves(&["clone-shared", "translated"]),
    guest("clone_signal").proves(&["clone-shared"]),
    guest("exit_signal").proves(&["children"]),
    guest("thread_files").proves(&["thread-files"]),
    guest("tree_storm").proves(&["fork-storm"]),
    guest("tree_stops").proves(&["stopped"]),
    guest("pdeathsig").proves(&["parent-death"]),
    guest("subreaper").proves(&["subreaper"]),
    guest("posix_timer_clocks"),
    guest("posix_timer_overrun"),
    guest("posix_timer_getoverrun"),
    guest("posix_timer_wall"),
    guest("timer_thread_gone").proves(&["timers-thread"]),
    guest("pty_pair").proves(&["pty"]),
    guest("pty_child").proves(&["pty"]),
    guest("pty_modes").proves(&["pty"]),
    guest("pty_queues").proves(&["pty"]),
    guest("pty_many").proves(&["pty"]),
    guest("pty_devtty").proves(&["pty"]),
    guest("pty_given_up").proves(&["pty"]),
    guest("pty_hangup").proves(&["pty"]),
    guest("pty_jobs").proves(&["pty"]),
    guest("pty_names").proves(&["pty", "translated"]),
    guest("pty_nested").proves(&["pty"]),
    guest("shm_fork"),
    guest("shm_memfd_passed"),
    guest("shm_posix"),
    guest("shm_file"),
    guest("cow_tree").proves(&["mem-forked"]),
    guest("cow_family").proves(&["mem-forked"]),
    guest("sysv_shm").proves(&["sysv-shm"]),
    guest("sysv_shm_rmid"),
    guest("sysv_sem_undo").proves(&["sysv-sem"]),
    guest("sysv_sem_waiter"),
    guest("sysv_msg").proves(&["sysv-msg"]),
    guest("sysv_later").proves(&["sysv-shm", "sysv-sem", "sysv-msg", "translated"]),
    guest("posix_mq").proves(&["posix-mq"]),
    guest("mq_names").proves(&["posix-mq", "translated"]),
    launched_only("mq_notify", &[Who::Root, Who::User], UNSEEN).proves(&["posix-mq-notify"]),
    guest("proc_reader"),
    guest("no_fds"),
    built("counter", Flavour::Static),
    built("counter", Flavour::StaticPie),
    built("counter", Flavour::NoPie),
    built("counter", Flavour::StaticNoPie),
    built("counter", Flavour::Musl),
    built("threads", Flavour::StaticNoPie),
    built("threads", Flavour::Musl),
    built("vdso", Flavour::Musl),
    built("mem_brk", Flavour::StaticNoPie),
];

impl Guest {
    /// Dozens of threads that never rest: such a job waits for the CPUs whenever another one runs.
    fn hogs(&self) -> bool {
        self.source == "threads"
    }

    fn name(&self) -> String {
        let mut name = format!("{}{}", self.source, self.flavour.suffix());
        for arg in self.args {
            name += &format!("+{arg}");
        }
        name
    }

    fn program(&self) -> Result<Program> {
        if !build::available(self.flavour) {
            anyhow::bail!("SKIP no compiler for {:?}", self.flavour);
        }
        Ok(Program::new(build::guest(self.source, self.flavour)?).args(self.args))
    }
}

/// How a job moves in a cell.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Not at all: what supervision alone changes.
    Still,
    /// From a to b.
    One,
    /// a → b → c → a → … ten times.
    Ten,
    /// Five moves at random instants to random hosts.
    Random,
}

fn moves(job: &mut Job<'_>, way: Way) -> Result<()> {
    match way {
        Way::Still => job.await_progress(5),
        Way::One => {
            job.await_progress(2)?;
            job.migrate(1)?;
            job.await_progress(3)
        }
        Way::Ten => {
            for turn in 1..=10 {
                job.migrate(turn % 3).with_context(|| format!("move {turn} of 10"))?;
                // Sometimes the next move comes before the job has done anything.
                if turn % 3 != 0 {
                    job.await_progress(1).with_context(|| format!("after move {turn} of 10"))?;
                }
            }
            job.await_progress(3)
        }
        Way::Random => {
            let seed = seed()?;
            random_moves(job, seed, 5).with_context(|| format!("VOSRUN_SEED={seed}"))
        }
    }
}

/// So many moves between three hosts, at random instants.
fn random_moves(job: &mut Job<'_>, seed: u64, count: usize) -> Result<()> {
    let mut random = Random(seed);
    for turn in 1..=count {
        std::thread::sleep(Duration::from_micros(random.next(60_000)));
        let to = (job.at + 1 + random.next(2) as usize) % 3;
        job.migrate(to).with_context(|| format!("move {turn} of {count}, to host {to}"))?;
    }
    job.await_progress(3)
}

/// A guest, and the program outside of the job that it talks to.
struct Talk<'h> {
    job: Job<'h>,
    peer: Option<Job<'h>>,
}

impl<'h> Talk<'h> {
    fn start(hosts: &'h Hosts, start: Start, guest: Guest) -> Result<Self> {
        let mut program = guest.program()?;
        let mut peer = None;
        if let Some(source) = guest.peer {
            let meet = hosts.fresh_dir("meet")?.join("point");
            let outside = Program::new(build::guest(source, Flavour::Plain)?);
            let outside = Job::start(hosts, Start::Native, outside.env("GUEST_MEET", &meet))?;
            program = program.env("GUEST_MEET", &meet);
            peer.insert(outside).await_ready()?;
        }
        Ok(Self { job: Job::start(hosts, start, program)?, peer })
    }

    fn finish(self) -> Result<String> {
        let out = self.job.finish()?;
        self.peer.map_or(Ok(()), |peer| peer.finish().map(drop))?;
        Ok(out)
    }
}

fn native(guest: Guest, who: Who, worker: &mut Worker) -> Result<()> {
    let hosts = worker.bare_hosts(who)?;
    let mut talk = Talk::start(hosts, Start::Native, guest)?;
    talk.job.await_ready()?;
    talk.job.await_progress(5)?;
    check_output(guest, &talk.finish()?)
}

fn moved(guest: Guest, start: Start, who: Who, way: Way, worker: &mut Worker) -> Result<()> {
    if let (Start::Attached, Some((by, why))) = (start, guest.launched_only) {
        anyhow::ensure!(!by.contains(&who), "SKIP {why}");
    }
    let hosts = match way {
        Way::Still => worker.bare_hosts(who)?,
        _ => worker.hosts(who)?,
    };
    let mut talk = Talk::start(hosts, start, guest)?;
    talk.job.await_ready()?;
    moves(&mut talk.job, way)?;
    check_output(guest, &talk.finish()?)
}

/// The lines of stdout: none lost, none twice, none out of order.
fn check_output(guest: Guest, out: &str) -> Result<()> {
    let lines: Vec<&str> = out.lines().collect();
    if guest.source != "counter" {
        let want: &[&str] =
            if guest.source == "no_fds" { &["EXIT-SUCCESS"] } else { &["READY", "EXIT-SUCCESS"] };
        anyhow::ensure!(lines == want, "stdout: {out}");
        return Ok(());
    }
    for (i, line) in lines[1..lines.len() - 1].iter().enumerate() {
        anyhow::ensure!(**line == i.to_string(), "line {i} of stdout is {line:?}");
    }
    Ok(())
}

/// Bytes that no other position has: each 8 say where they are.
fn pattern(size: usize) -> Vec<u8> {
    (0..size as u64 / 8)
        .flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect()
}

fn same_bytes(got: &[u8], want: &[u8]) -> Result<()> {
    let differ = got.iter().zip(want).position(|(a, b)| a != b);
    anyhow::ensure!(
        differ.is_none() && got.len() == want.len(),
        "{} bytes of {}; the first wrong one is {differ:?}",
        got.len(),
        want.len()
    );
    Ok(())
}

/// The end of a relay: it is told to end when `arrived` says that all has come.
fn end_relay(
    mut job: Job<'_>,
    size: usize,
    arrived: impl Fn(&Job<'_>) -> Result<usize>,
) -> Result<()> {
    common::until(common::SOON, "all bytes of the relay", || {
        job.progress()?;
        Ok((arrived(&job)? >= size).then_some(()))
    })?;
    std::fs::write(job.dir.join("stop"), "")?;
    let code = job.end(common::SOON)?;
    anyhow::ensure!(code == 0, "exit code {code}: {}", job.said());
    job.await_nothing_left()
}

/// `vosrun -- relay < pipe | pipe`, ten moves: no byte lost, none twice.
fn pipes(start: Start, who: Who, worker: &mut Worker) -> Result<()> {
    let mut program = Program::new(build::guest("relay", Flavour::Plain)?);
    program.stdin = Stdio::piped();
    let mut job = Job::start(worker.hosts(who)?, start, program)?;
    job.await_ready()?;
    let bytes = pattern(8 << 20);
    let (mut input, sent) = (job.stdin().context("no stdin")?, bytes.clone());
    let feeder = std::thread::spawn(move || {
        let mut random = Random(1);
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + random.next(50_000) as usize));
            if input.write_all(now).is_err() {
                return;
            }
            rest = later;
        }
    });
    for turn in 1..=10 {
        job.migrate(turn % 3).with_context(|| format!("move {turn} of 10"))?;
    }
    let out = job.stdout.clone();
    end_relay(job, bytes.len(), |job| Ok(job.stdout.bytes().len()))?;
    same_bytes(&out.bytes(), &bytes)?;
    feeder.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))
}

/// The same with regular files, one of them opened for appending.
fn files(start: Start, who: Who, worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(who)?;
    let dir = hosts.fresh_dir("files")?;
    let (from, to) = (dir.join("in"), dir.join("out"));
    let bytes = pattern(16 << 20);
    std::fs::write(&from, &bytes)?;
    std::fs::write(&to, "")?;
    hosts.give(&to)?;
    let mut program = Program::new(build::guest("relay", Flavour::Plain)?);
    program.stdin = Stdio::from(std::fs::File::open(&from)?);
    program.stdout = Some(Stdio::from(std::fs::File::options().append(true).open(&to)?));
    let mut job = Job::start(hosts, start, program)?;
    job.await_ready()?;
    for turn in 1..=10 {
        job.migrate(turn % 3).with_context(|| format!("move {turn} of 10"))?;
    }
    end_relay(job, bytes.len(), |_| Ok(std::fs::metadata(&to)?.len() as usize))?;
    same_bytes(&std::fs::read(&to)?, &bytes)
}

fn stream_cells() -> Vec<Cell> {
    type Stream = fn(Start, Who, &mut Worker) -> Result<()>;
    let streams: [(&str, Stream); 2] = [("pipes", pipes), ("files", files)];
    let mut cells = Vec::new();
    for (name, run) in streams {
        for (word, start, who) in [
            ("ten/root", Start::Launched, Who::Root),
            ("ten/user", Start::Launched, Who::User),
            ("attached/root", Start::Attached, Who::Root),
            ("attached/user", Start::Attached, Who::User),
        ] {
            let run = move |w: &mut Worker| run(start, who, w);
            cells.push(Cell::new(format!("{word}/stream-{name}"), run));
        }
    }
    cells
}

/// Moves that a person at home asks for, wherever the job is, and what `ps` shows of the job
/// there and at home.
fn asked_at_home(who: Who, worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(who)?;
    let mut job = Job::start(hosts, Start::Launched, guest("fd_pipe").program()?)?;
    job.await_ready()?;
    for (turn, to) in [1, 2, 0, 1].into_iter().enumerate() {
        // The question goes to the home, which is host 0.
        job.at = 0;
        job.migrate(to).with_context(|| format!("move {turn}"))?;
        job.await_progress(2)?;
        let there = job.ps()?;
        shown(&there, hosts.hosts[to].name, turn + 1)?;
        anyhow::ensure!(there["movable"] == true, "not movable: {there}");
        let bindings: Vec<&str> = there["fds"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|f| f["binding"].as_str())
            .collect();
        let home = format!("forwarded via {}", hosts.hosts[0].name);
        anyhow::ensure!(bindings.contains(&home.as_str()), "{there}");
        anyhow::ensure!(bindings.contains(&"recreated"), "{there}");
        let needs = there["depends"].as_array().is_some_and(|d| !d.is_empty());
        anyhow::ensure!(needs == (to != 0), "needs of the home: {there}");
        job.at = 0;
        // What the host reports reaches a home that is not its target a moment later.
        common::until(common::SOON, "the report of the move at home", || {
            Ok(shown(&job.ps()?, hosts.hosts[to].name, turn + 1).ok())
        })?;
        let nowhere =
            hosts.run(0, &["migrate", &job.name, "--to", hosts.hosts[to].name, "--json"])?;
        anyhow::ensure!(nowhere.code() == 10, "a move to where it is: {}", nowhere.stdout);
        job.at = to;
    }
    job.finish().map(drop)
}

/// A move is shown while it is under way, and `migrate --cancel` ends it: the job runs on at the
/// source. Once it is over there is nothing to cancel.
fn cancelled(who: Who) -> Result<()> {
    anyhow::ensure!(who == Who::User || common::is_root(), "SKIP needs root");
    let mut gate = Gate::new("ready")?;
    let hosts = Hosts::start_with(who, 2, |index, command| {
        if index == 1 {
            let (name, value) = gate.variable();
            command.env(name, value);
        }
    })?;
    let mut job = Job::start(&hosts, Start::Launched, guest("fd_pipe").program()?)?;
    job.await_ready()?;
    let mut migrate = hosts.vosrun(0);
    migrate.args(["migrate", &job.name, "--to", "b", "--json"]);
    let move_to_b = migrate.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    gate.reached()?;
    let there = job.ps()?;
    anyhow::ensure!(there["state"] == "MIGRATING", "{there}");
    let shown = there["moving"].as_str().context("ps shows no move")?.to_owned();
    let id = shown.split(' ').next().unwrap_or_default().to_owned();
    let said = hosts.run(0, &["migrate", "--cancel", &id])?.good("cancel")?;
    anyhow::ensure!(said.contains("stays on a"), "{said}");
    gate.release()?;
    let done = move_to_b.wait_with_output()?;
    let document: serde_json::Value = serde_json::from_slice(&done.stdout)?;
    anyhow::ensure!(done.status.code() == Some(11), "{document}");
    anyhow::ensure!(document["code"] == "VOS-CANCELLED", "{document}");
    job.await_progress(3)?;
    anyhow::ensure!(job.ps()?["state"] == "RUNNING", "{}", job.ps()?);
    let again = hosts.run(0, &["migrate", "--cancel", &id])?;
    anyhow::ensure!(again.code() == 2, "a second cancel: {}", again.stderr);
    job.finish().map(drop)
}

/// A job that dies with its host: who waits for it at home is told, with exit code 13. By the
/// host's node when that is there again, else by a person.
fn lost(who: Who, by_person: bool, worker: &mut Worker) -> Result<()> {
    anyhow::ensure!(who == Who::User || common::is_root(), "SKIP needs root");
    let own;
    let hosts = match by_person {
        true => {
            own = Hosts::start(who, 2)?;
            &own
        }
        false => worker.hosts(who)?,
    };
    let mut job = Job::start(hosts, Start::Launched, guest("fd_pipe").program()?)?;
    job.await_ready()?;
    job.migrate(1)?;
    job.await_progress(2)?;
    if by_person {
        let early = hosts.run(0, &["recover", &job.name, "--dead", "nobody"])?;
        anyhow::ensure!(early.code() == 10, "recover of a live job: {}", early.stdout);
        hosts.kill_node(1)?;
    }
    let there = job.ps();
    // The supervisor first: it would tell how the job ended.
    let supervisor = job.supervisor().with_context(|| format!("{there:?}"))?;
    let program = *procs::descendants(supervisor).last().context("no program at b")?;
    for pid in [supervisor, program] {
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    if by_person {
        let said = hosts.run(0, &["recover", &job.name, "--dead", "b"])?.good("recover")?;
        anyhow::ensure!(said.contains("lost with b"), "{said}");
    }
    let code = job.end(common::SOON)?;
    anyhow::ensure!(code == 13, "exit {code}");
    job.await_nothing_left()
}

/// On b the program and a library are other ones, on c they are missing: both are shipped.
fn shipped(who: Who) -> Result<()> {
    anyhow::ensure!(who == Who::User || common::is_root(), "SKIP needs root");
    let hosts = Hosts::bare(who, 3)?;
    let dir = hosts.fresh_dir("program")?;
    let (program, libs) = (dir.join("counter"), dir.join("libs"));
    std::fs::copy(build::guest("counter", Flavour::Plain)?, &program)?;
    std::fs::create_dir(&libs)?;
    let libc = libs.join("libc.so.6");
    std::fs::copy("/lib/x86_64-linux-gnu/libc.so.6", &libc)?;
    let other = hosts.fresh_dir("other")?;
    std::fs::create_dir(other.join("libs"))?;
    std::fs::copy(build::guest("ids", Flavour::Plain)?, other.join("counter"))?;
    let mut changed = std::fs::read(&libc)?;
    changed.extend_from_slice(b"another version");
    std::fs::write(other.join("libs/libc.so.6"), changed)?;
    let (here, other) = (dir.display(), other.display());
    let mounts = [
        String::new(),
        format!("mount --bind '{other}' '{here}' && "),
        format!("mount -t tmpfs none '{here}' && "),
    ];
    for (index, mount) in mounts.iter().enumerate() {
        let script = format!("{mount}exec \"$@\"");
        let own = ["unshare", "-m", "sh", "-c", &script, "sh"];
        let users = ["unshare", "-U", "-r", "-m", "sh", "-c", &script, "sh"];
        let via: &[&str] = match who {
            Who::Root => &own,
            Who::User if index > 0 => &users,
            Who::User => &[],
        };
        hosts.start_node_via(index, via, &|_, _| {})?;
    }
    let program = Program::new(&program).env("LD_LIBRARY_PATH", &libs);
    let mut job = Job::start(&hosts, Start::Launched, program)?;
    job.await_ready()?;
    for to in [1, 2, 0, 2, 1] {
        job.migrate(to).with_context(|| format!("to host {to}"))?;
        job.await_progress(2)?;
    }
    check_output(guest("counter"), &job.finish()?)
}

/// The targets take the source's kernel for another one: the vdso is reached by jumps.
fn foreign_vdso(of: Guest, who: Who) -> Result<()> {
    anyhow::ensure!(who == Who::User || common::is_root(), "SKIP needs root");
    let program = of.program()?;
    let hosts = Hosts::start_with(who, 3, |_, command| {
        command.env("VOSRUN_TEST_FOREIGN_VDSO", "1");
    })?;
    let mut job = Job::start(&hosts, Start::Launched, program)?;
    job.await_ready()?;
    for to in [1, 2, 0, 2, 1] {
        job.migrate(to).with_context(|| format!("to host {to}"))?;
        job.await_progress(2)?;
    }
    check_output(of, &job.finish()?)
}

/// At b the node runs as a user with another number: the job keeps its own.
fn other_user(of: Guest) -> Result<()> {
    anyhow::ensure!(common::is_root(), "SKIP needs root");
    let mut hosts = Hosts::bare(Who::User, 3)?;
    hosts.give_to(1, common::ORDINARY + 1)?;
    for index in 0..3 {
        hosts.start_node(index, &|_, _| {})?;
    }
    let mut job = Job::start(&hosts, Start::Launched, of.program()?)?;
    job.await_ready()?;
    // What the job has open must be open to that user too.
    open_to_all(&job.dir)?;
    for to in [1, 2, 1, 0, 1] {
        job.migrate(to).with_context(|| format!("to host {to}"))?;
        job.await_progress(2)?;
    }
    check_output(of, &job.finish()?)
}

/// A segment that a process outside of the job has attached stays, and the job with it, until that
/// process has ended.
fn foreign_segment(who: Who, worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(who)?;
    let key = 0x5a0_0000 + std::process::id();
    let program = || anyhow::Ok(guest("sysv_foreign").program()?.args([key]));
    let mut job = Job::start(hosts, Start::Launched, program()?)?;
    job.await_ready()?;
    // When it ends, nothing that was started later may be left.
    let mut outside = Job::start(hosts, Start::Native, program()?)?;
    outside.await_ready()?;
    for command in ["check", "migrate"] {
        let done = hosts.run(0, &[command, &job.name, "--to", "b", "--json"])?;
        anyhow::ensure!(done.code() == 10, "{command}: exit {}: {}", done.code(), done.stdout);
        anyhow::ensure!(done.stdout.contains("VOS-SYSV"), "{command}: {}", done.stdout);
    }
    job.await_progress(2)?;
    outside.finish()?;
    job.migrate(1)?;
    job.await_progress(2)?;
    job.finish().map(drop)
}

/// A connection that was made away from home keeps the job where it is; one that was made when the
/// job had come home again is relayed from there.
fn connected_later(worker: &mut Worker) -> Result<()> {
    let hosts = worker.hosts(Who::User)?;
    let Talk { mut job, peer } = Talk::start(hosts, Start::Launched, tcp("tcp_later", &[]))?;
    job.await_ready()?;
    let (wanted, told) = (job.dir.join("status.connect"), job.dir.join("status.connected"));
    let connect = |on: bool| -> Result<()> {
        match on {
            true => std::fs::write(&wanted, "")?,
            false => std::fs::remove_file(&wanted)?,
        }
        common::until(common::SOON, "the connection", || Ok((told.exists() == on).then_some(())))
    };
    job.migrate(1)?;
    connect(true)?;
    for to in [2, 0] {
        let refused = job.try_migrate(to)?;
        anyhow::ensure!(refused.code() == 10, "exit {}: {}", refused.code(), refused.stdout);
        anyhow::ensure!(refused.stdout.contains("VOS-TCP-AWAY"), "{}", refused.stdout);
    }
    job.await_progress(3)?;
    connect(false)?;
    job.migrate(0)?;
    connect(true)?;
    for to in [1, 2, 0, 1] {
        job.migrate(to).with_context(|| format!("to host {to}"))?;
        job.await_progress(3)?;
    }
    job.finish()?;
    peer.map_or(Ok(()), |peer| peer.finish().map(drop))
}

/// Pages that a parent shares with its children since fork(2) travel once.
fn fork_shares_pages(who: Who, worker: &mut Worker) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let hosts = worker.hosts(who)?;
    let mut job = Job::start(hosts, Start::Launched, with("cow_tree", &["64"]).program()?)?;
    job.await_ready()?;
    for to in [1, 2, 0] {
        job.await_progress(2)?;
        let document = job.migrate(to)?.document;
        let wire = document["bytes_wire"].as_u64().context("no bytes_wire")?;
        let memory = document["bytes"].as_u64().context("no bytes")?;
        anyhow::ensure!(memory > 9 * 64 * MIB, "{memory} bytes of memory");
        anyhow::ensure!(wire > 64 * MIB && wire < 72 * MIB, "{wire} bytes sent to host {to}");
    }
    job.finish().map(drop)
}

/// Private memory of the nine processes of this guest, each page once: bytes.
fn private_memory(name: &str) -> Result<u64> {
    let is_it = |pid: &i32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim() == name)
    };
    // Those of the copy that has moved away have ended soon.
    let all = common::until(common::SOON, "nine processes", || {
        let mut all = procs::descendants(std::process::id() as i32);
        all.retain(is_it);
        Ok((all.len() == 9).then_some(all))
    })?;
    let mut sum = 0;
    for pid in all {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).context(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no Pss_Anon")?;
        sum += kib.parse::<u64>()? << 10;
    }
    Ok(sum)
}

/// Pages that processes have in common since fork(2) take memory once, after any number of moves.
fn fork_shares_memory(name: &'static str, who: Who, worker: &mut Worker) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let hosts = worker.hosts(who)?;
    let mut job = Job::start(hosts, Start::Launched, with(name, &["64"]).program()?)?;
    job.await_ready()?;
    // What it writes it has written.
    job.await_progress(30)?;
    let before = private_memory(name)?;
    anyhow::ensure!((64 * MIB..128 * MIB).contains(&before), "{before} bytes at first");
    for to in [1, 0, 2, 1, 0] {
        job.migrate(to)?;
        job.await_progress(2)?;
        let now = private_memory(name)?;
        anyhow::ensure!(now < before + 4 * MIB, "{before} bytes before, {now} at host {to}");
    }
    job.finish().map(drop)
}

fn open_to_all(dir: &Path) -> Result<()> {
    let all = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(dir, all(0o777))?;
    for entry in std::fs::read_dir(dir)? {
        std::fs::set_permissions(entry?.path(), all(0o666))?;
    }
    Ok(())
}

/// Where the job is and how often it has moved, in a document of `ps`.
fn shown(document: &serde_json::Value, node: &str, moves: usize) -> Result<()> {
    let history = document["history"].as_array().map_or(0, Vec::len);
    anyhow::ensure!(document["node"] == node && history == moves, "{document}");
    Ok(())
}

/// Who leads the session and the group of a job, and who is its parent: words that start it so.
/// On hosts with namespaces the session is led from outside of them, by nobody that the job sees.
const PLACES: [(&str, &[&str]); 8] = [
    ("nobodys-session", &[]),
    ("group-of-parent", &["perl", "-e", "setpgrp(0, 0); exec @ARGV"]),
    ("group-of-other", &["timeout", "1000"]),
    ("session-of-other", &["setsid", "-w", "sh", "-c", "\"$@\"; exit $?", "sh"]),
    ("session-and-group", &["setsid", "-w", "sh", "-c", "timeout 1000 \"$@\"; exit $?", "sh"]),
    ("group-of-pid-1", &["unshare", "-p", "-f", "--mount-proc", "timeout", "1000"]),
    ("session-of-pid-1", &["unshare", "-p", "-f", "--mount-proc", "setsid", "timeout", "1000"]),
    (
        "session-of-pid-1-and-group",
        &[
            "unshare",
            "-p",
            "-f",
            "--mount-proc",
            "setsid",
            "sh",
            "-c",
            "timeout 1000 \"$@\"; exit $?",
            "sh",
        ],
    ),
];

/// Numbers of groups and sessions stay, whoever leads them.
fn placed(via: &'static [&'static str], who: Who, worker: &mut Worker) -> Result<()> {
    let ids = guest("ids");
    let mut job = Job::start(worker.hosts(who)?, Start::Launched, ids.program()?.via(via))?;
    job.await_ready()?;
    for to in [1, 2, 0, 1] {
        job.migrate(to).with_context(|| format!("to host {to}"))?;
        job.await_progress(2)?;
    }
    check_output(ids, &job.finish()?)
}

/// The hosts themselves: names, clocks and links are what the tests take them for.
fn hosts_differ(worker: &mut Worker) -> Result<()> {
    let hosts = worker.bare_three(Who::Root)?;
    let mut names = Vec::new();
    for (index, host) in hosts.hosts.iter().enumerate() {
        let script = "hostname; cut -d. -f1 /proc/uptime";
        let mut show = hosts.command(index, Path::new("/bin/sh"));
        let out = procs::run(show.args(["-c", script]), common::SOON)?.good("sh")?;
        let mut lines = out.lines().map(str::to_owned);
        names.push(lines.next().context("no host name")?);
        let up: u64 = lines.next().context("no uptime")?.parse()?;
        anyhow::ensure!(up / 100_000 == index as u64, "host {} is up {up} s", host.name);
        for other in &hosts.hosts {
            // Nobody listens: over a working link the answer is a refusal, at once.
            let script = format!("exec 3<>/dev/tcp/{}/9", other.address);
            let mut connect = hosts.command(index, Path::new("/bin/bash"));
            let said = procs::run(connect.args(["-c", &script]), common::SOON)?.stderr;
            anyhow::ensure!(said.contains("refused"), "{} to {}: {said}", host.name, other.name);
        }
    }
    anyhow::ensure!(names == ["host-a", "host-b", "host-c"], "host names: {names:?}");
    Ok(())
}

fn cells() -> Vec<Cell> {
    let mut cells = stream_cells();
    cells.extend(disturbed::cells());
    cells.extend(table::cells());
    cells.extend(said::cells());
    cells.extend(left::cells());
    cells.push(Cell::new("harness/root/hosts", hosts_differ));
    for who in [Who::Root, Who::User] {
        let run = move |w: &mut Worker| asked_at_home(who, w);
        cells.push(Cell::new(format!("asked/{}/fd_pipe", who.word()), run));
        for (word, by_person) in [("told-by-node", false), ("told-by-person", true)] {
            let run = move |w: &mut Worker| lost(who, by_person, w);
            cells.push(Cell::new(format!("lost/{}/{word}", who.word()), run));
        }
        let word = who.word();
        cells.push(Cell::new(format!("shipped/{word}"), move |_| shipped(who)));
        let guests = [
            guest("vdso"),
            guest("vdso_handler"),
            guest("traps"),
            guest("clocks"),
            guest("threads"),
            built("vdso", Flavour::Musl),
        ];
        for of in guests {
            let run = move |_: &mut Worker| foreign_vdso(of, who);
            let cell = Cell::new(format!("foreign-vdso/{word}/{}", of.name()), run);
            cells.push(cell.alone(of.hogs()));
        }
        let run = move |w: &mut Worker| soak::soak(Start::Launched, who, w);
        cells.push(Cell::new(format!("soak/{word}/tree"), run).limit(3 * soak::seconds() + 300));
        let run = move |w: &mut Worker| fork_shares_pages(who, w);
        cells.push(Cell::new(format!("shared-pages/{word}/cow_tree"), run));
        for name in ["cow_tree", "cow_family"] {
            let run = move |w: &mut Worker| fork_shares_memory(name, who, w);
            cells.push(Cell::new(format!("shared-memory/{word}/{name}"), run));
        }
        let run = move |w: &mut Worker| foreign_segment(who, w);
        cells.push(Cell::new(format!("refused/{word}/sysv_foreign"), run));
        let run = move |_: &mut Worker| cancelled(who);
        cells.push(Cell::new(format!("cancelled/{}/fd_pipe", who.word()), run));
    }
    cells.extend(delayed::cells());
    cells.push(Cell::new("refused/user/tcp_later", connected_later));
    cells.extend(connections::cells());
    cells.extend(joined::cells());
    cells.push(Cell::new("callers/user/ten-thousand", callers::ten_thousand).limit(240));
    for of in ["counter", "ids", "fd_memfd", "threads", "own_ids"].map(guest) {
        let run = move |_: &mut Worker| other_user(of);
        cells.push(Cell::new(format!("other-user/user/{}", of.name()), run).alone(of.hogs()));
    }
    for (name, via) in PLACES {
        for who in [Who::Root, Who::User] {
            let privileged = via.first() == Some(&"unshare");
            if who == Who::Root || !privileged {
                let run = move |w: &mut Worker| placed(via, who, w);
                cells.push(Cell::new(format!("placed/{}/{name}", who.word()), run));
            }
        }
    }
    for guest in GUESTS.iter().copied() {
        let name = guest.name();
        for who in [Who::Root, Who::User] {
            let run = move |w: &mut Worker| native(guest, who, w);
            let cell = Cell::new(format!("native/{}/{name}", who.word()), run);
            cells.push(cell.alone(guest.hogs()));
            let run = move |w: &mut Worker| translation::translated(guest, Start::Launched, who, w);
            let cell = Cell::new(format!("translated/{}/{name}", who.word()), run);
            cells.push(cell.alone(guest.hogs()));
        }
        if translation::has_objects(&guest) {
            for (start, word) in [(Start::Launched, "mixed"), (Start::Attached, "mixed-attached")] {
                for who in [Who::Root, Who::User] {
                    let run = move |w: &mut Worker| translation::mixed(guest, start, who, w);
                    cells.push(Cell::new(format!("{word}/{}/{name}", who.word()), run));
                }
            }
        }
        let ways = [
            ("still/user", Start::Launched, Who::User, Way::Still),
            ("one/root", Start::Launched, Who::Root, Way::One),
            ("ten/root", Start::Launched, Who::Root, Way::Ten),
            ("one/user", Start::Launched, Who::User, Way::One),
            ("ten/user", Start::Launched, Who::User, Way::Ten),
            ("random/user", Start::Launched, Who::User, Way::Random),
            ("random/root", Start::Launched, Who::Root, Way::Random),
            ("attached/root", Start::Attached, Who::Root, Way::One),
            ("attached/user", Start::Attached, Who::User, Way::One),
        ];
        for (word, start, who, way) in ways {
            let run = move |w: &mut Worker| moved(guest, start, who, way, w);
            cells.push(Cell::new(format!("{word}/{name}"), run).alone(guest.hogs()));
        }
    }
    cells
}

fn main() -> ExitCode {
    common::runner::main_then(cells(), table::summary)
}
