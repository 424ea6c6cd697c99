//! System V objects and names of POSIX message queues at the calls that carry them (see
//! [`super::objects`]).

use std::io;

use super::{number_at, objects, Entry, Making, Then};
use crate::migrate::resource::ipc::Kind;
use crate::syscalls::read_path;
use crate::tracer::inject::write_all;

/// IPC_INFO of sys/ipc.h.
const IPC_INFO: i32 = 3;
/// Longest name of a message queue (NAME_MAX).
const LONGEST: usize = 255;

/// Commands of a kind that ask for a place of the list instead of an identifier, with the right to
/// read the object and without, and the one that tells how many there are; and where that is.
fn listing(kind: Kind) -> ([i32; 2], i32, u64) {
    match kind {
        Kind::Memory => ([13, 15], 14, 0),
        Kind::Semaphores => ([18, 20], 19, 28),
        Kind::Queue => ([11, 13], 12, 0),
    }
}

/// What is done with the answer of shmctl(2), semctl(2), msgctl(2).
#[derive(Debug, Clone)]
pub(super) enum Told {
    /// An object: its structure, and the identifier that is answered where one is.
    Object { kind: Kind, at: u64, id: Option<i32> },
    /// How many there are, and the last place: where the first of these is, if it is told.
    Count { kind: Kind, at: Option<u64> },
}

impl Told {
    /// Gives the job's answer.
    ///
    /// # Errors
    /// `EFAULT`, `ESRCH`.
    pub(super) fn answer(&self, tid: i32) -> io::Result<()> {
        match *self {
            Self::Object { kind, at, .. } => {
                let key = objects::key_to_job(kind, super::read_word(tid, at)?);
                write_all(tid, at, &key.to_le_bytes())?;
                numbers_of(kind).iter().try_for_each(|offset| number_at(tid, at + offset))
            }
            Self::Count { kind, at: Some(at) } => {
                write_all(tid, at, &objects::count(kind).0.to_le_bytes())
            }
            Self::Count { at: None, .. } => Ok(()),
        }
    }

    /// The result, if it is another one.
    pub(super) fn result(&self) -> Option<i32> {
        match *self {
            Self::Object { id, .. } => id,
            Self::Count { kind, .. } => Some(objects::count(kind).1),
        }
    }
}

/// Where numbers of processes are in what is told of an object (`struct shmid_ds` of shmctl(2),
/// `struct msqid_ds` of msgctl(2)).
fn numbers_of(kind: Kind) -> &'static [u64] {
    match kind {
        Kind::Memory => &[80, 84],
        Kind::Semaphores => &[],
        Kind::Queue => &[96, 100],
    }
}

fn failed(e: &io::Error) -> Option<Entry> {
    Some(Entry::errno(e.raw_os_error().unwrap_or(libc::ENOSPC)))
}

/// Which argument of shmget(2), semget(2), msgget(2) its flags are.
pub(super) fn place_of_flags(kind: Kind) -> u8 {
    if kind == Kind::Queue {
        1
    } else {
        2
    }
}

/// Which argument of shmctl(2), semctl(2), msgctl(2) the command is.
pub(super) fn place_of_command(kind: Kind) -> u8 {
    if kind == Kind::Semaphores {
        2
    } else {
        1
    }
}

/// shmget(2), semget(2), msgget(2).
pub(super) fn get(call: &mut Making, kind: Kind) -> Option<Entry> {
    let place = place_of_flags(kind);
    let (key, flags) = (call.arg(0) as i32, call.arg(place) as i32);
    let private = key == libc::IPC_PRIVATE;
    let known = objects::key_to_host(kind, key).filter(|_| !private).map(Ok);
    let host = known.unwrap_or_else(|| match private || flags & libc::IPC_CREAT != 0 {
        true => objects::new_key(kind, key),
        // The kernel says what is wrong.
        false => objects::free_key(kind),
    });
    let host = match host {
        Ok(host) => host,
        Err(e) => return failed(&e),
    };
    if private {
        call.set(place, i64::from(flags | libc::IPC_CREAT | libc::IPC_EXCL) as u64);
    }
    call.set(0, i64::from(host) as u64);
    call.then = Then::Got(kind, (key, host));
    None
}

/// A call whose first argument is an identifier.
pub(super) fn using(call: &mut Making, kind: Kind) -> Option<Entry> {
    let host = objects::to_host(kind, call.arg(0) as i32);
    call.set(0, i64::from(host) as u64);
    None
}

/// shmctl(2), semctl(2), msgctl(2).
pub(super) fn control(call: &mut Making, kind: Kind) -> Option<Entry> {
    let place = place_of_command(kind);
    let (command, at) = (call.arg(place) as i32, call.arg(place + 1));
    let (by_place, count, offset) = listing(kind);
    let told = |id| Then::Ipc(Told::Object { kind, at, id });
    if [IPC_INFO, count].contains(&command) {
        let counts = (command == count).then_some(at.wrapping_add(offset));
        call.then = Then::Ipc(Told::Count { kind, at: counts });
        return None;
    }
    if by_place.contains(&command) {
        let Some(id) = objects::at(kind, call.arg(0) as i32) else {
            return Some(Entry::errno(libc::EINVAL));
        };
        call.set(0, i64::from(objects::to_host(kind, id)) as u64);
        call.set(place, libc::IPC_STAT as u64);
        call.then = told(Some(id));
        return None;
    }
    match (kind, command) {
        (_, libc::IPC_STAT) => call.then = told(None),
        (Kind::Semaphores, libc::GETPID) => call.then = Then::Number,
        _ => {}
    }
    using(call, kind)
}

/// mq_open(2), and mq_unlink(2), which `opens` none.
pub(super) fn queue(call: &mut Making, opens: bool) -> Option<Entry> {
    let name = read_path(call.caller.tid, call.arg(0))?;
    // The kernel says what is wrong with others.
    let plain = !name.is_empty() && name.len() <= LONGEST && !name.contains(&b'/');
    if !plain || name == b"." || name == b".." {
        return None;
    }
    let creates = opens && call.arg(1) as i32 & libc::O_CREAT != 0;
    let host = match (objects::queue_to_host(&name), creates) {
        (Some(host), _) => Ok(host),
        (None, true) => objects::new_queue(&name),
        (None, false) => objects::free_queue(),
    };
    match host {
        Ok(mut host) => {
            host.push(0);
            call.point(0, &host).is_none().then(|| Entry::errno(libc::EFAULT))
        }
        Err(e) => failed(&e),
    }
}
