//! Job-control stops and continuations of children, of which a parent is told once (WUNTRACED and
//! WCONTINUED of wait(2), SIGCHLD).
//!
//! ```text
//! source  frozen ─► note_taken: of which stops does the parent know, of which continuations not?
//! target  hush the parents ─► the children stop ─► the parents take what they know, and hear again
//! ```
//! A continuation of which the parent does not know is made again by a stop and SIGCONT. Stop signals
//! that wait meanwhile are taken out before, and queued again.

use std::collections::BTreeMap;

use super::image::ProcessImage;
use super::late::{borrow, run};
use super::resource::{timers, PartError, View};
use crate::tracer::inject::{sigbit, Arg, Data, Program};
use crate::tracer::raw::SigInfo;

type Result<T> = std::result::Result<T, PartError>;

/// `struct sigaction` of the kernel: handler, flags, restorer, mask.
const ACTION_LEN: usize = 32;
/// What waitid(2) fills of a `siginfo_t`.
const INFO_LEN: usize = 24;
/// Signals that stop a process and can be blocked.
const STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
/// Children that a parent is asked for at once.
const AT_ONCE: usize = 200;

/// SIGCHLD's action of a parent, while it does not hear of stops.
#[derive(Debug)]
pub struct Hushed([u8; ACTION_LEN]);

/// Processes by their parents, both by their places in the job; those that are `wanted`.
#[must_use]
pub fn by_parent<'a>(
    images: impl Iterator<Item = &'a ProcessImage> + Clone,
    wanted: impl Fn(usize) -> bool,
) -> BTreeMap<usize, Vec<usize>> {
    let places: BTreeMap<i32, usize> =
        images.clone().enumerate().map(|(place, image)| (image.ids.pid, place)).collect();
    let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, image) in images.enumerate().filter(|(place, _)| wanted(*place)) {
        if let Some(parent) = places.get(&image.ids.ppid) {
            found.entry(*parent).or_default().push(place);
        }
    }
    found
}

/// Notes of which stops of frozen processes (host pids) their parents have been told, and of which
/// continuations not. `numbers` are what the processes have in the pid namespaces where they are, by
/// host pid.
///
/// # Errors
/// When a parent cannot be asked.
pub fn note_taken(
    pids: &[i32],
    numbers: &BTreeMap<i32, i32>,
    images: &mut [ProcessImage],
) -> Result<()> {
    let inside = |pid: &i32| (*pid, numbers.get(pid).copied().unwrap_or(*pid));
    let processes: Vec<(i32, i32)> = pids.iter().map(inside).collect();
    for (parent, children) in by_parent(images.iter(), |_| true) {
        for children in children.chunks(AT_ONCE) {
            note_children(parent, children, &processes, images)?;
        }
    }
    Ok(())
}

/// `processes` are host pids, each with its number as [`note_taken`] gets it.
fn note_children(
    parent: usize,
    children: &[usize],
    processes: &[(i32, i32)],
    images: &mut [ProcessImage],
) -> Result<()> {
    let mut program = Program::default();
    let mut infos = Vec::with_capacity(children.len());
    for &child in children {
        let info = program.data(&[0; INFO_LEN]);
        let news = if images[child].stopped.is_some() { libc::WSTOPPED } else { libc::WCONTINUED };
        // Children of clone(2) that tell their end by no SIGCHLD are asked for as well.
        let options = news | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        wait(&mut program, processes[child].1, Some(info), options);
        infos.push(info);
    }
    let outcome = run(processes[parent].0, &images[parent], program)?;
    outcome.all_ok()?;
    for (&child, info) in children.iter().zip(infos) {
        let is_news = outcome.data(info)[..4] != [0; 4];
        let image = &mut images[child];
        match image.stopped {
            Some(_) => image.stop_taken = !is_news,
            None => image.continued = is_news,
        }
    }
    Ok(())
}

/// Lets a stopped parent (host pid) get no SIGCHLD for stops.
///
/// # Errors
/// When it cannot be told.
pub fn hush(pid: i32, image: &ProcessImage) -> Result<Hushed> {
    let mut program = Program::default();
    let mut deaf = [0; ACTION_LEN];
    deaf[8..16].copy_from_slice(&(libc::SA_NOCLDSTOP as u64).to_le_bytes());
    let old = program.data(&[0; ACTION_LEN]);
    set_action(&mut program, &deaf, Arg::Data(old));
    let outcome = run(pid, image, program)?;
    outcome.all_ok()?;
    let mut action = [0; ACTION_LEN];
    action.copy_from_slice(outcome.data(old));
    Ok(Hushed(action))
}

/// Ends [`hush`]; the parent knows of the stops of these children (host pids).
///
/// # Errors
/// When it cannot be told.
pub fn hear(pid: i32, image: &ProcessImage, hushed: &Hushed, known: &[i32]) -> Result<()> {
    let mut program = Program::default();
    for child in known {
        wait(&mut program, number_at_parent(*child)?, None, libc::WSTOPPED | libc::WNOHANG);
    }
    set_action(&mut program, &hushed.0, Arg::Num(0));
    Ok(run(pid, image, program)?.all_ok()?)
}

/// Takes a SIGCONT away that waits to be delivered to a stopped process (host pid).
///
/// # Errors
/// When no call can be run in it.
pub fn forget_cont(pid: i32, image: &ProcessImage) -> Result<()> {
    let mut program = Program::default();
    let set = Arg::Data(program.data(&sigbit(libc::SIGCONT).to_le_bytes()));
    let at_once = Arg::Data(program.data(&[0; 16]));
    let args = [set, Arg::Num(0), at_once, Arg::Num(8)];
    program.call(libc::SYS_rt_sigtimedwait, "rt_sigtimedwait", &args);
    // One that is ignored does not wait.
    run(pid, image, program).map(drop)
}

/// Stop signals that waited in a process, each with the thread that takes it (host tid) and whether
/// it is that thread's own.
#[derive(Debug, Default)]
pub struct Waiting(Vec<(i32, SigInfo, bool)>);

/// Takes the stop signals away that wait in a stopped process (host pid, and host tids), so that
/// SIGCONT does not.
///
/// # Errors
/// When no call can be run in it.
pub fn take_waiting(pid: i32, image: &ProcessImage, tids: &[i32]) -> Result<Waiting> {
    let mut taken = Waiting::default();
    for &tid in tids {
        let what = |source| PartError::Io { what: format!("signals of thread {tid}"), source };
        let view = View::read(pid, tid).map_err(what)?;
        let waits = |signal: &i32| waits(&view, *signal);
        for signal in STOPS.into_iter().filter(waits) {
            let infos = borrow(pid, tid, image, |remote, stub| {
                timers::dequeue_all(&view, remote, stub, signal)
            })?;
            taken.0.extend(infos.into_iter().map(|(info, own)| (tid, info, own)));
        }
    }
    Ok(taken)
}

impl Waiting {
    /// Lets them wait again.
    ///
    /// # Errors
    /// When no call can be run in the process.
    pub fn put_back(&self, pid: i32, image: &ProcessImage) -> Result<()> {
        self.0.iter().try_for_each(|(tid, info, own)| {
            borrow(pid, *tid, image, |remote, stub| Ok(remote.queue(stub, info, *own)?))
        })
    }
}

/// Does this signal wait for the thread, or for its process?
#[must_use]
pub fn waits(view: &View, signal: i32) -> bool {
    (view.hex("SigPnd:") | view.hex("ShdPnd:")) & sigbit(signal) != 0
}

/// The number of a process in its own pid namespace, which is its parent's.
fn number_at_parent(pid: i32) -> Result<i32> {
    let view = View::read_process(pid)
        .map_err(|source| PartError::Io { what: format!("status of process {pid}"), source })?;
    Ok(view.number_inside())
}

fn wait(program: &mut Program, pid: i32, info: Option<Data>, options: i32) {
    let one = Arg::Num(libc::P_PID as u64);
    let info = info.map_or(Arg::Num(0), Arg::Data);
    let args = [one, Arg::Num(pid as u64), info, Arg::Num(options as u64), Arg::Num(0)];
    program.call(libc::SYS_waitid, "waitid for a stopped child", &args);
}

fn set_action(program: &mut Program, action: &[u8; ACTION_LEN], old: Arg) {
    let new = Arg::Data(program.data(action));
    let args = [Arg::Num(libc::SIGCHLD as u64), new, old, Arg::Num(8)];
    program.call(libc::SYS_rt_sigaction, "rt_sigaction of SIGCHLD", &args);
}
