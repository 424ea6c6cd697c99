//! Job-control stops and continuations of children, of which a parent is told once (WUNTRACED and
//! WCONTINUED of wait(2), SIGCHLD).
//!
//! ```text
//! source  frozen ─► note_taken: of which stops does the parent know, of which continuations not?
//! target  hush the parents ─► the children stop ─► the parents take what they know, and hear again
//! ```
//! A continuation of which the parent does not know is made again by a stop and SIGCONT.

use std::collections::BTreeMap;

use super::image::ProcessImage;
use super::late::run;
use super::resource::{PartError, View};
use crate::tracer::inject::{sigbit, Arg, Data, Program};

type Result<T> = std::result::Result<T, PartError>;

/// `struct sigaction` of the kernel: handler, flags, restorer, mask.
const ACTION_LEN: usize = 32;
/// What waitid(2) fills of a `siginfo_t`.
const INFO_LEN: usize = 24;
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
/// continuations not.
///
/// # Errors
/// When a parent cannot be asked.
pub fn note_taken(pids: &[i32], images: &mut [ProcessImage]) -> Result<()> {
    for (parent, children) in by_parent(images.iter(), |_| true) {
        for children in children.chunks(AT_ONCE) {
            note_children(parent, children, pids, images)?;
        }
    }
    Ok(())
}

fn note_children(
    parent: usize,
    children: &[usize],
    pids: &[i32],
    images: &mut [ProcessImage],
) -> Result<()> {
    let mut program = Program::default();
    let mut infos = Vec::with_capacity(children.len());
    for &child in children {
        let info = program.data(&[0; INFO_LEN]);
        let news = if images[child].stopped.is_some() { libc::WSTOPPED } else { libc::WCONTINUED };
        // Children of clone(2) that tell their end by no SIGCHLD are asked for as well.
        let options = news | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        wait(&mut program, number_at_parent(pids[child])?, Some(info), options);
        infos.push(info);
    }
    let outcome = run(pids[parent], &images[parent], program)?;
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

/// The number of a process in its own pid namespace, which is its parent's.
fn number_at_parent(pid: i32) -> Result<i32> {
    let view = View::read_process(pid)
        .map_err(|source| PartError::Io { what: format!("status of process {pid}"), source })?;
    let number = view.field("NStgid:").split_whitespace().last().and_then(|n| n.parse().ok());
    Ok(number.unwrap_or(pid))
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
