//! What runs in the new processes (see [`super::skeleton`] for who is who).
//!
//! Each has its steps in the plan ([`super::tree`]), and then waits in the way of its role; none
//! returns to the supervisor's code. Errors are told over the socket that all inherit, then the
//! process ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::mount::{mount, MsFlags};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{setpgid, setsid, Pid};

use super::heritage::gate::Gate;
use super::image::Clocks;
use super::programs::Executes;
use super::resource::creds::User;
use super::resource::fd::raw as fd_raw;
use super::resource::fd::unix::{Cred, Deed};
use super::resource::ipc::steps;
use super::skeleton::{coarse_tick, offsets, pair, receive, send, Footing, Plan, Request, Word};
use super::tree::{parent_is_outside, Role, Step, Tree};
use super::{building, raw, terminals, turns};
use crate::syscalls::translate::objects::{self, Note, Objects};
use crate::tracer::raw::{kill, set_default, wait4};

/// What the new processes inherit.
struct Ends {
    /// To the supervisor; of all of them.
    control: OwnedFd,
    /// Terminals that wait for the leaders of these sessions.
    ttys: Vec<(i32, OwnedFd)>,
    /// Held by the root's parent, where that is a stand-in, until the root has ended.
    held: Option<UnixStream>,
    /// The other end of that, of pid 1.
    watched: Option<UnixStream>,
    footing: Footing,
    /// What processes get before they fork.
    gates: Vec<Gate>,
    /// What they execute before.
    programs: Vec<Executes>,
}

impl Ends {
    fn fail(&self, what: &str, error: &dyn std::fmt::Display) -> ! {
        let _ = send(self.control.as_fd(), &Word::Failed(format!("{what}: {error}")), &[]);
        raw::exit_now(1)
    }

    /// The value, or the end of this process.
    fn must<T, E: std::fmt::Display>(&self, what: &str, result: Result<T, E>) -> T {
        result.unwrap_or_else(|e| self.fail(what, &e))
    }

    /// Tells the supervisor that this process is there, over a socket of its own, which is
    /// answered. In a table that others share its end is moved above `above`.
    fn born(&self, node: usize, above: RawFd) -> OwnedFd {
        let (mut own, theirs) = self.must("socketpair", pair());
        if above > 0 {
            // Where it is in nobody's way.
            own = self.must("socket of a shared table", lift(own, above));
        }
        let word = Word::Born(node as u32, own.as_raw_fd());
        self.must("birth", send(self.control.as_fd(), &word, &[theirs.as_raw_fd()]));
        own
    }

    /// The same for a process that has the same numbers.
    fn again(&self) -> Self {
        let again = |fd: &OwnedFd| raw::own(fd.as_raw_fd());
        let ttys = self.ttys.iter().map(|(sid, tty)| (*sid, again(tty))).collect();
        let control = again(&self.control);
        // Who has the memory of another one inherits nothing.
        let (gates, programs) = Default::default();
        Self { control, ttys, held: None, watched: None, footing: self.footing, gates, programs }
    }
}

/// Moves a descriptor to a number from `above` on.
fn lift(fd: OwnedFd, above: RawFd) -> io::Result<OwnedFd> {
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        // It gets its own limits with its state.
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    fd_raw::dup_from(fd.as_raw_fd(), above)
}

/// H: makes the namespaces and pid 1.
pub(super) fn start(
    plan: &Plan,
    tree: &Tree,
    (gates, programs): (Vec<Gate>, Vec<Executes>),
    now: Clocks,
    control: OwnedFd,
    footing: Footing,
) -> ! {
    close_others(&[control.as_raw_fd()]);
    let ttys = Vec::new();
    let mut ends = Ends { control, ttys, held: None, watched: None, footing, gates, programs };
    ends.must("signals", stay_quiet());
    if footing == Footing::Namespaces {
        make_namespaces(plan, now, &ends);
    }
    make_terminals(plan, &mut ends);
    let outside = plan.root().is_some_and(parent_is_outside);
    if outside || tree.guardian.is_some() {
        let (held, watched) = ends.must("socketpair", UnixStream::pair());
        (ends.held, ends.watched) = (Some(held), Some(watched));
    }
    if ends.must("fork", raw::fork_sibling()) == 0 {
        init(tree, ends);
    }
    ends.watched = None;
    if !outside {
        raw::exit_now(0);
    }
    parent_outside(tree, ends)
}

fn make_namespaces(plan: &Plan, now: Clocks, ends: &Ends) {
    ends.must("namespaces", unshare(plan.user, NAMESPACES));
    ends.must("clock offsets", set_clocks(plan, now));
    ends.must("host name", nix::unistd::sethostname(&plan.nodename));
    if !plan.domainname.is_empty() {
        ends.must("domain name", raw::set_domain_name(&plan.domainname));
    }
    let none: Option<&str> = None;
    let slave = mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none);
    ends.must("mount propagation", slave);
}

/// Makes the controlling terminals of sessions, and gives the supervisor both sides of each.
fn make_terminals(plan: &Plan, ends: &mut Ends) {
    if plan.terminals.is_empty() && !plan.ptys {
        return;
    }
    let own = ends.footing == Footing::Namespaces && has_own_devpts(plan, ends);
    let made = terminals::make(&plan.terminals, own, plan.user);
    let made = ends.must("controlling terminals", made);
    for (place, (terminal, pair)) in (0..).zip(plan.terminals.iter().zip(made)) {
        let fds = [pair.master.as_raw_fd(), pair.slave.as_raw_fd()];
        ends.must("a terminal", send(ends.control.as_fd(), &Word::Terminal(place), &fds));
        ends.ttys.push((terminal.sid, pair.slave));
    }
}

/// Gives the job a devpts of its own. A job without ptys can do without.
fn has_own_devpts(plan: &Plan, ends: &Ends) -> bool {
    match terminals::mount_own() {
        Err(e) if plan.ptys => ends.fail("a devpts of the job's own", &e),
        mounted => mounted.is_ok(),
    }
}

/// A child that ends leaves no signal behind, nor does a terminal that gets its size: both are
/// ignored by default unless they are blocked, as the supervisor has them.
fn stay_quiet() -> io::Result<()> {
    for signal in [Signal::SIGCHLD, Signal::SIGWINCH] {
        set_default(signal as i32)?;
        SigSet::from(signal).thread_unblock()?;
    }
    Ok(())
}

/// H, as the parent of the root, makes it when pid 1 says so.
fn parent_outside(tree: &Tree, mut ends: Ends) -> ! {
    // Nothing comes when pid 1 has failed; it has said so.
    let mut asked = [0];
    let said = ends.held.as_mut().map(|held| held.read_exact(&mut asked));
    let Some((Ok(()), root)) = said.zip(tree.members.first().copied().flatten()) else {
        raw::exit_now(1)
    };
    if fork(&ends, tree, root).is_none() {
        let node = grow(tree, &mut ends, root);
        wait_as(tree, ends, node);
    }
    guard(ends.held);
    raw::exit_now(0)
}

/// Waits for the last child, and lets go of what tells pid 1 so.
fn guard(held: Option<UnixStream>) {
    let keep: Vec<RawFd> = held.iter().map(AsRawFd::as_raw_fd).collect();
    close_others(&keep);
    while raw::reap(0).is_some() {}
}

/// Closes every descriptor but these.
pub(super) fn close_others(keep: &[RawFd]) {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut next = 0;
    for fd in keep {
        raw::close_range(next, fd - 1);
        next = fd + 1;
    }
    raw::close_range(next, RawFd::MAX);
}

/// Tries the namespaces in a process that ends at once; its exit code is the error number.
pub(super) fn probe(user: User) -> ! {
    raw::exit_now(
        unshare(user, NAMESPACES).err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO)),
    )
}

/// The namespaces of a job.
const NAMESPACES: i32 = libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | raw::CLONE_NEWTIME;

/// New namespaces: with the privilege to make them directly where there is one, else within a
/// user namespace in which this node's user is `user`.
pub(super) fn unshare(user: User, flags: i32) -> io::Result<()> {
    if user.is_givable() {
        match raw::unshare(flags) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            other => return other,
        }
    }
    let own = User::own();
    raw::unshare(flags | libc::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{} {} 1", user.uid, own.uid))?;
    fs::write("/proc/self/gid_map", format!("{} {} 1", user.gid, own.gid))
}

/// Sets the offsets so that the job's clocks go on from where they were when the plan was
/// sent, and by [`coarse_tick`] ahead of that. Offsets count from the initial time namespace,
/// ours may be another.
fn set_clocks(plan: &Plan, now: Clocks) -> io::Result<()> {
    let own = offsets("self")?;
    let tick = coarse_tick()?;
    let text = |name: &str, nanoseconds: i128| {
        let (sec, nsec) =
            (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
        format!("{name} {sec} {nsec}\n")
    };
    let ahead = |theirs: i128, now: i128, own: i128| {
        let offset = theirs.checked_sub(now).and_then(|o| o.checked_add(own + tick));
        offset.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    let monotonic = ahead(plan.clocks.monotonic, now.monotonic, own.0)?;
    let boottime = ahead(plan.clocks.boottime, now.boottime, own.1)?;
    fs::write(
        "/proc/self/timens_offsets",
        text("monotonic", monotonic) + &text("boottime", boottime),
    )
}

/// I: pid 1 of the job's namespace. Leads the session or the group that pid 1 led where the
/// job comes from; a session or group of 0 is led by nobody in the namespace.
fn init(tree: &Tree, mut ends: Ends) -> ! {
    let without_proc = match ends.footing {
        Footing::Namespaces => mount_proc().is_err(),
        Footing::Translated => {
            ends.must("PR_SET_CHILD_SUBREAPER", raw::set_subreaper(true));
            false
        }
    };
    ends.must("init", send(ends.control.as_fd(), &Word::Init(without_proc), &[]));
    let node = grow(tree, &mut ends, 0);
    wait_as(tree, ends, node)
}

/// A /proc of the namespace's own.
fn mount_proc() -> nix::Result<()> {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none)
}

/// Does the steps of a process of the plan. Answers which process this is now: the same, or
/// one that it, or another in between, has forked.
fn grow(tree: &Tree, ends: &mut Ends, first: usize) -> usize {
    let (mut node, mut at) = (first, 0);
    take_heirlooms(tree, ends, node);
    while let Some(step) = tree.nodes[node].steps.get(at) {
        at += 1;
        let pid = tree.nodes[node].pid;
        match *step {
            Step::Adopt => ends.must("PR_SET_CHILD_SUBREAPER", raw::set_subreaper(true)),
            Step::Lead => lead_session(tree, ends, node),
            Step::OwnGroup => {
                let own = setpgid(Pid::from_raw(0), Pid::from_raw(0));
                ends.must(&format!("group of process {pid}"), own);
            }
            Step::Fork(child) => {
                if fork(ends, tree, child).is_none() {
                    (node, at) = (child, 0);
                    take_heirlooms(tree, ends, node);
                }
            }
            Step::Leave(flags) => {
                ends.must(&format!("unshare of process {pid}"), raw::unshare(flags));
            }
            Step::Outside(_) => {
                let told = ends.watched.as_mut().map_or(Ok(()), |h| h.write_all(&[0]));
                ends.must("the parent outside", told);
            }
        }
    }
    node
}

/// What the process hands down to those that it forks.
fn take_heirlooms(tree: &Tree, ends: &Ends, node: usize) {
    if let Some(program) = ends.programs.iter().find(|program| program.node == node) {
        let passed = program.pass(ends.control.as_fd());
        ends.must(&format!("program of process {}", tree.nodes[node].pid), passed);
    }
    if let Some(gate) = ends.gates.iter().find(|gate| gate.node == node) {
        let passed = gate.pass(ends.control.as_fd());
        ends.must(&format!("memory of process {}", tree.nodes[node].pid), passed);
    }
}

/// Leads a new session, which gets its terminal if it has one.
fn lead_session(tree: &Tree, ends: &Ends, node: usize) {
    let own = &tree.nodes[node];
    ends.must(&format!("session of process {}", own.pid), setsid());
    for (_, tty) in ends.ttys.iter().filter(|(sid, _)| *sid == own.pid) {
        ends.must("controlling terminal", raw::set_controlling_terminal(tty.as_fd()));
    }
}

/// Forks a process of the plan; none: in it.
fn fork(ends: &Ends, tree: &Tree, node: usize) -> Option<i32> {
    let child = &tree.nodes[node];
    // Who ends only with pid 1 is no child for which anybody waits.
    let silent = matches!(child.role, Role::Leader | Role::GroupLeader);
    let exit_signal = if silent { 0 } else { child.exit_signal.unwrap_or(libc::SIGCHLD) };
    let number = (ends.footing == Footing::Namespaces).then_some(child.pid);
    let birth = raw::Birth { pid: number, exit_signal, flags: child.flags & !libc::CLONE_VM };
    let forked = if child.flags & libc::CLONE_VM != 0 {
        turns::begin();
        raw::clone_beside(birth, begin_beside, Beside { tree, ends: ends.again(), node })
    } else {
        raw::fork_as(birth)
    };
    let pid = ends.must(&format!("fork of process {}", child.pid), forked);
    if pid == 0 {
        return None;
    }
    match child.role {
        Role::GroupLeader => {
            let own = setpgid(Pid::from_raw(pid), Pid::from_raw(pid));
            ends.must(&format!("group of process {pid}"), own);
        }
        // Its child is pid 1's, or a subreaper's, from here on.
        Role::Carrier => {
            ends.must(&format!("wait for process {pid}"), wait_for(pid));
        }
        _ => {}
    }
    Some(pid)
}

/// What a process begins with that has the memory of who makes it.
struct Beside<'a> {
    tree: &'a Tree,
    ends: Ends,
    node: usize,
}

/// The plan stays where it is as long as anybody has this memory: no process of it returns.
fn begin_beside(with: Beside<'_>) -> ! {
    let Beside { tree, mut ends, node } = with;
    let node = grow(tree, &mut ends, node);
    wait_as(tree, ends, node)
}

/// Waits for the end of one child.
fn wait_for(pid: i32) -> io::Result<()> {
    loop {
        match wait4(pid, libc::__WALL) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// The rest of a process's life in the frame.
fn wait_as(tree: &Tree, mut ends: Ends, node: usize) -> ! {
    let guards = tree.guardian == Some(node);
    let role = tree.nodes[node].role;
    if ends.footing == Footing::Translated {
        stand_alone(&ends, role, node);
    }
    // A process that shares its table closes nothing that another one may have closed before.
    let held = if guards { ends.held.take() } else { None };
    match role {
        Role::Carrier => raw::exit_now(0),
        Role::Init | Role::Leader => {
            let control = ends.born(node, 0);
            let house = House {
                init: role == Role::Init,
                settled: false,
                control: Some(control),
                watched: ends.watched.take(),
                held,
                notes: BTreeSet::new(),
            };
            keep_house(&ends, house)
        }
        Role::GroupLeader => sleep_for_ever(),
        Role::Parent => {
            drop(ends);
            guard(held);
            raw::exit_now(0)
        }
        Role::Member(_) | Role::Ghost => newborn(ends, node, tree.nodes[node].above),
    }
}

/// What the end of pid 1, and its being immune to signals, does in a pid namespace.
fn stand_alone(ends: &Ends, role: Role, node: usize) {
    if matches!(role, Role::Leader | Role::GroupLeader) {
        ends.must("PR_SET_PDEATHSIG", nix::sys::prctl::set_pdeathsig(Signal::SIGKILL));
    }
    if role == Role::Init {
        ends.must("signal mask", SigSet::all().thread_block());
    }
    if matches!(role, Role::Parent | Role::GroupLeader) {
        let word = Word::StandIn(node as u32);
        ends.must("birth", send(ends.control.as_fd(), &word, &[]));
    }
}

/// A stand-in that is there as long as pid 1 is.
fn sleep_for_ever() -> ! {
    close_others(&[]);
    loop {
        nix::unistd::pause();
    }
}

/// What I and L keep while they wait.
struct House {
    init: bool,
    /// Every process has got its parent.
    settled: bool,
    control: Option<OwnedFd>,
    watched: Option<UnixStream>,
    held: Option<UnixStream>,
    /// Without namespaces: what pid 1 removes when the job has ended.
    notes: BTreeSet<Note>,
}

/// I and L reap and answer. I ends when no process of the job is left, all stand-ins with it.
fn keep_house(ends: &Ends, mut house: House) -> ! {
    let mask = SigSet::from(Signal::SIGCHLD);
    ends.must("signal mask", mask.thread_block());
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let children = ends.must("signalfd", SignalFd::with_flags(&mask, flags));
    // Sockets' ends must go with the processes that they belong to.
    let mut keep = vec![children.as_fd().as_raw_fd()];
    keep.extend(house.control.as_ref().map(AsRawFd::as_raw_fd));
    keep.extend([&house.watched, &house.held].into_iter().flatten().map(AsRawFd::as_raw_fd));
    close_others(&keep);
    loop {
        while let Ok(Some(_)) = children.read_signal() {}
        // Silent children are none for this wait.
        let alone = loop {
            match wait4(-1, libc::WNOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(e) => break e.raw_os_error() == Some(libc::ECHILD),
            }
        };
        if alone {
            house.held = None;
        }
        if alone && house.init && house.settled && house.watched.is_none() {
            house.take_notes();
            objects::remove(house.notes);
            raw::exit_now(0);
        }
        house.wait(&children);
    }
}

impl House {
    /// Until a child has ended, the root has, or the supervisor asks for something.
    fn wait(&mut self, children: &SignalFd) {
        let mut fds = vec![PollFd::new(children.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.control.as_ref().map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.watched.as_ref().map(|w| PollFd::new(w.as_fd(), PollFlags::POLLIN)));
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            return;
        }
        let ready: Vec<bool> = fds.iter().skip(1).map(|fd| fd.any().unwrap_or(false)).collect();
        let mut ready = ready.into_iter();
        let asked = self.control.is_some() && ready.next() == Some(true);
        let ended = self.watched.is_some() && ready.next() == Some(true);
        if asked {
            self.serve_one();
            // The first that is asked of pid 1 is about ghosts, when all else is done.
            self.settled = true;
        }
        if ended {
            // All that the root left behind are children of pid 1 now.
            self.watched = None;
        }
    }

    /// Does what the supervisor asks for, until that has closed the socket.
    fn serve_one(&mut self) {
        let Some(control) = &self.control else { return };
        match receive(control.as_fd()) {
            Ok((Request::Keep(note), ..)) => drop(self.notes.insert(note)),
            Ok((request, _, fds)) => answer(control.as_fd(), request, &fds),
            Err(_) => self.control = None,
        }
    }

    /// What a supervisor that has died has said before.
    fn take_notes(&mut self) {
        let says = |control: &OwnedFd| {
            let mut fd = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
            poll(&mut fd, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        };
        while self.control.as_ref().is_some_and(says) {
            self.serve_one();
        }
    }
}

/// A process of the job until it is given its old memory, or a ghost.
fn newborn(ends: Ends, node: usize, above: RawFd) -> ! {
    raw::set_dumpable(true);
    let control = ends.born(node, above);
    if above == 0 {
        close_others(&[control.as_raw_fd()]);
    }
    // Those of a table that others share are closed when it is filled.
    std::mem::forget(ends);
    loop {
        match receive(control.as_fd()) {
            Ok((Request::Build(build), _, fds)) => building::build_and_wait(&build, control, fds),
            Ok((Request::End(status), ..)) => end_as(status),
            Ok((request, _, fds)) => answer(control.as_fd(), request, &fds),
            Err(_) => raw::exit_now(1),
        }
    }
}

/// Ends as another process ended before (wait(2)), without a core file.
fn end_as(status: i32) -> ! {
    let signal = libc::WTERMSIG(status);
    if libc::WIFSIGNALED(status) {
        // One without that would hide its status from an ordinary user.
        raw::set_dumpable(!dumps_core(signal));
        // Not for SIGKILL, which needs none.
        let _ = set_default(signal);
        let _ = raw::unblock(signal);
        let _ = kill(std::process::id() as i32, signal);
    }
    raw::exit_now(libc::WEXITSTATUS(status))
}

/// Does a signal write a core file by default (signal(7))?
pub(super) fn dumps_core(signal: i32) -> bool {
    const CORE: [i32; 10] = [
        libc::SIGQUIT,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGSEGV,
        libc::SIGXCPU,
        libc::SIGXFSZ,
        libc::SIGSYS,
    ];
    CORE.contains(&signal)
}

/// Does what the supervisor asks for, and says how it went.
fn answer(control: BorrowedFd, request: Request, fds: &[OwnedFd]) {
    let mut opened = None;
    let (what, done) = match request {
        Request::Terminal(group) => (
            "controlling terminal",
            fds.first().map_or(Ok(()), |tty| take_terminal(tty.as_fd(), group)),
        ),
        Request::OpenTerminal(flags) => {
            let terminal = open_terminal(flags).map(|fd| opened = Some(fd));
            ("open /dev/tty", terminal)
        }
        Request::Join(group) => {
            let joined = setpgid(Pid::from_raw(0), Pid::from_raw(group));
            ("setpgid", joined.map_err(io::Error::from))
        }
        Request::Reap(ghosts) => ("wait for a ghost", reap_ghosts(&ghosts)),
        Request::Ipc(all, objects) => return make_objects(control, &all, objects),
        Request::Act(by, deed) => return act(control, by, &deed, fds),
        Request::Build(_)
        | Request::Grow
        | Request::More
        | Request::Acted(_)
        | Request::End(_)
        | Request::Keep(_) => return,
    };
    let word = match done {
        Ok(()) => Word::Ready,
        Err(e) => Word::Failed(format!("{what}: {e}")),
    };
    let fds: Vec<RawFd> = opened.iter().map(AsRawFd::as_raw_fd).collect();
    let _ = send(control, &word, &fds);
}

fn make_objects(control: BorrowedFd, steps: &[steps::Step], objects: Option<Objects>) {
    objects::take(objects);
    let done = steps::perform(steps);
    let word = match (done, objects::copied()) {
        (Err(text), _) => Word::Failed(format!("IPC: {text}")),
        (Ok(()), Some(objects)) => Word::Made(objects),
        (Ok(()), None) => Word::Ready,
    };
    let _ = send(control, &word, &[]);
}

fn open_terminal(flags: i32) -> io::Result<OwnedFd> {
    use nix::fcntl::{open, OFlag};
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC;
    Ok(open("/dev/tty", flags, nix::sys::stat::Mode::empty())?)
}

/// What leaves credentials in a socket.
fn act(control: BorrowedFd, by: Cred, deed: &Deed, fds: &[OwnedFd]) {
    let fds: Vec<BorrowedFd> = fds.iter().map(AsFd::as_fd).collect();
    let (word, made) = match deed.perform(Some(by), &fds) {
        Ok(made) => (Word::Ready, made),
        Err(e) => (Word::Failed(e.to_string()), Vec::new()),
    };
    let numbers: Vec<i32> = made.iter().map(AsRawFd::as_raw_fd).collect();
    let _ = send(control, &word, &numbers);
}

fn take_terminal(tty: BorrowedFd, group: i32) -> io::Result<()> {
    raw::set_controlling_terminal(tty)?;
    raw::set_foreground(tty, group)
}

/// Reaps ghosts that have ended, and is a subreaper no longer. Pid 1 may have reaped them.
fn reap_ghosts(ghosts: &[i32]) -> io::Result<()> {
    for ghost in ghosts {
        match wait_for(*ghost) {
            Err(e) if e.raw_os_error() != Some(libc::ECHILD) => return Err(e),
            _ => {}
        }
    }
    raw::set_subreaper(false)
}
