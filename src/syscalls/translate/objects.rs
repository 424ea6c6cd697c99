//! System V objects and POSIX message queues of a job that has no IPC namespace here.
//!
//! The kernel gives identifiers, so the job's are kept beside those here, as with
//! [`super::numbers`]. Keys and names are one space for all programs of a machine: each object of
//! the job, also one that was made with IPC_PRIVATE, has a key or name here that is drawn by lot.
//! A program that asks for another one's key does not get it.
//!
//! An IPC namespace ends with the last process in it, and what is in there too. Here the frame's
//! pid 1 does that: it is told of each key and name before the object is made ([`Note`]), and
//! removes what is left when the last process has ended, whatever has become of the supervisor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::ids::random_bytes;
use crate::migrate::resource::fd::mqueue::unlink_queue;
use crate::migrate::resource::ipc::{self, list, raw, Id, Kind, Perm};
use crate::migrate::skeleton;

/// No object has this identifier.
const NONE: i32 = -1;
/// The place of an object in the kernel's list is this part of its identifier (ipc/util.h).
const PLACE: i32 = 0x7fff;
/// At this size the table is looked through for objects that are no more.
const FIRST_SWEEP: usize = 1000;

/// Something that may be here for the job, and is removed when it ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Note {
    /// A key of System V objects.
    Key(Kind, i32),
    /// A message queue, without its slash.
    Queue(Vec<u8>),
}

/// The table of one job.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Objects {
    /// Identifiers here, by the job's.
    to_host: BTreeMap<Id, i32>,
    /// The job's identifiers, by those here.
    to_job: BTreeMap<Id, i32>,
    /// Keys here, by the job's; without IPC_PRIVATE.
    keys: BTreeMap<Id, i32>,
    /// The job's keys, by those here.
    job_keys: BTreeMap<Id, i32>,
    /// Names of message queues here, by the job's; without their slashes.
    queues: BTreeMap<Vec<u8>, Vec<u8>>,
    sweep_at: usize,
}

thread_local! {
    static TABLE: RefCell<Option<Objects>> = const { RefCell::new(None) };
    /// Of the supervisor: its socket to pid 1.
    static KEEPER: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

impl Objects {
    fn bind(&mut self, (kind, job): Id, host: i32) {
        self.forget((kind, host));
        if let Some(other) = self.to_host.insert((kind, job), host) {
            self.to_job.remove(&(kind, other));
        }
        self.to_job.insert((kind, host), job);
    }

    fn forget(&mut self, (kind, host): Id) {
        if let Some(job) = self.to_job.remove(&(kind, host)) {
            self.to_host.remove(&(kind, job));
        }
    }

    /// The job's object at a place of its list.
    fn at(&self, kind: Kind, place: i32) -> Option<i32> {
        self.of(kind).find(|job| job & PLACE == place)
    }

    /// The job's identifiers of a kind.
    fn of(&self, kind: Kind) -> impl Iterator<Item = i32> + '_ {
        self.to_host.keys().filter(move |(of, _)| *of == kind).map(|(_, job)| *job)
    }

    /// An identifier for a new object: its own if its place is free. Two objects of a namespace
    /// never have one place.
    fn born(&mut self, (kind, host): Id) -> i32 {
        self.forget((kind, host));
        let mut job = host;
        let free = |place: &i32| self.at(kind, *place).is_none();
        if !free(&(host & PLACE)) {
            job = (0..=PLACE).find(free).map_or(host, |place| host & !PLACE | place);
        }
        self.bind((kind, job), host);
        job
    }

    fn bind_key(&mut self, kind: Kind, job: i32, host: i32) {
        if job != libc::IPC_PRIVATE {
            self.keys.insert((kind, job), host);
        }
        self.job_keys.insert((kind, host), job);
    }

    /// Forgets objects that are not among these, and keys that led to one object only.
    fn keep(&mut self, all: &[list::Listed]) {
        let gone: Vec<Id> = self.to_job.keys().copied().collect();
        let exists = |id: &Id| all.iter().any(|one| (one.kind, one.perm.id) == *id);
        gone.into_iter().filter(|id| !exists(id)).for_each(|id| self.forget(id));
        let named = |id: &Id| all.iter().any(|one| (one.kind, one.perm.key) == *id);
        self.job_keys.retain(|id, job| *job != libc::IPC_PRIVATE || named(id));
        self.sweep_at = FIRST_SWEEP + 2 * self.job_keys.len();
    }

    fn notes(&self) -> Vec<Note> {
        let keys = self.job_keys.keys().map(|(kind, key)| Note::Key(*kind, *key));
        keys.chain(self.queues.values().cloned().map(Note::Queue)).collect()
    }
}

/// Begins an empty table: the job of this supervisor has no namespaces here.
pub fn begin() {
    TABLE.set(Some(Objects::default()));
    KEEPER.set(None);
}

/// The job is not here any more.
pub fn end() {
    TABLE.set(None);
    KEEPER.set(None);
}

/// The frame's pid 1 is told of keys and names from here on.
pub fn keep_with(pid1: OwnedFd) {
    KEEPER.set(Some(pid1));
}

/// Has the job of this supervisor objects by other identifiers?
#[must_use]
pub fn are_own() -> bool {
    TABLE.with_borrow(Option::is_some)
}

/// The table, for a new process.
#[must_use]
pub fn copied() -> Option<Objects> {
    TABLE.with_borrow(Clone::clone)
}

/// Takes a table over.
pub fn take(table: Option<Objects>) {
    TABLE.set(table);
}

fn with<T>(look: impl FnOnce(&mut Objects) -> T) -> Option<T> {
    TABLE.with_borrow_mut(|table| table.as_mut().map(look))
}

/// The identifier here of the job's; one that no object has when the job has none.
#[must_use]
pub fn to_host(kind: Kind, job: i32) -> i32 {
    with(|all| all.to_host.get(&(kind, job)).copied().unwrap_or(NONE)).unwrap_or(job)
}

/// The job's identifier of an object here; `None`: it is not the job's.
#[must_use]
pub fn to_job(kind: Kind, host: i32) -> Option<i32> {
    with(|all| all.to_job.get(&(kind, host)).copied()).unwrap_or(Some(host))
}

/// The job knows an object that was made here by this identifier.
pub fn bind(kind: Kind, job: i32, host: i32) {
    with(|all| all.bind((kind, job), host));
}

/// Key and identifier of an object as the job knows them.
#[must_use]
pub fn perm_to_job(kind: Kind, perm: Perm) -> Perm {
    let id = to_job(kind, perm.id).unwrap_or(perm.id);
    Perm { id, key: key_to_job(kind, perm.key), ..perm }
}

/// The job's key of an object.
#[must_use]
pub fn key_to_job(kind: Kind, host: i32) -> i32 {
    with(|all| all.job_keys.get(&(kind, host)).copied()).flatten().unwrap_or(host)
}

/// The key here that stands for the job's, if the job has asked for objects by that before.
pub(super) fn key_to_host(kind: Kind, job: i32) -> Option<i32> {
    with(|all| all.keys.get(&(kind, job)).copied()).flatten()
}

/// A key that no object here has.
///
/// # Errors
/// When the kernel has no random bytes.
pub(super) fn free_key(kind: Kind) -> io::Result<i32> {
    loop {
        let key = i32::from_le_bytes(random_bytes()?) & i32::MAX;
        let known = with(|all| all.job_keys.contains_key(&(kind, key))) == Some(true);
        if key != libc::IPC_PRIVATE && !known && find(kind, key).is_none() {
            return Ok(key);
        }
    }
}

/// A key for an object that the job is about to make.
///
/// # Errors
/// When the kernel has no random bytes.
pub fn new_key(kind: Kind, job: i32) -> io::Result<i32> {
    let host = free_key(kind)?;
    tell(Note::Key(kind, host));
    with(|all| all.bind_key(kind, job, host));
    Ok(host)
}

/// An object was made, or found, by this key (the job's and the one here): the job's identifier.
pub(super) fn found(kind: Kind, host: i32, keys: (i32, i32)) -> i32 {
    let known = with(|all| all.to_job.get(&(kind, host)).copied()).flatten();
    let job = known.or_else(|| {
        with(|all| {
            all.bind_key(kind, keys.0, keys.1);
            all.born((kind, host))
        })
    });
    if with(|all| all.job_keys.len() > all.sweep_at.max(FIRST_SWEEP)) == Some(true) {
        match list::all() {
            Ok(listed) => drop(with(|all| all.keep(&listed))),
            Err(e) => tracing::debug!("/proc/sysvipc: {e}"),
        }
    }
    job.unwrap_or(host)
}

/// The job's object at a place of its list of a kind: its identifier.
pub(super) fn at(kind: Kind, place: i32) -> Option<i32> {
    with(|all| all.at(kind, place)).flatten()
}

/// How many objects of a kind the job has, and the last place that one has.
pub(super) fn count(kind: Kind) -> (i32, i32) {
    if let Ok(listed) = list::all() {
        with(|all| all.keep(&listed));
    }
    let places = |all: &mut Objects| {
        let places: Vec<i32> = all.of(kind).map(|job| job & PLACE).collect();
        (places.len() as i32, places.into_iter().max().unwrap_or(0))
    };
    with(places).unwrap_or_default()
}

/// The name here of the job's message queue; both without a slash.
#[must_use]
pub fn queue_to_host(job: &[u8]) -> Option<Vec<u8>> {
    with(|all| all.queues.get(job).cloned()).flatten()
}

/// A name for a message queue that nobody has.
///
/// # Errors
/// When the kernel has no random bytes.
pub(super) fn free_queue() -> io::Result<Vec<u8>> {
    Ok(format!("vosrun.{:016x}", u64::from_le_bytes(random_bytes()?)).into_bytes())
}

/// The name here of a message queue that the job is about to make.
///
/// # Errors
/// When the kernel has no random bytes.
pub fn new_queue(job: &[u8]) -> io::Result<Vec<u8>> {
    if let Some(known) = queue_to_host(job) {
        return Ok(known);
    }
    let host = free_queue()?;
    tell(Note::Queue(host.clone()));
    with(|all| all.queues.insert(job.to_vec(), host.clone()));
    Ok(host)
}

/// The job's name of a message queue here; `None`: it is none that the job has made by a name.
#[must_use]
pub fn queue_to_job(host: &[u8]) -> Option<Vec<u8>> {
    with(|all| {
        let found = all.queues.iter().find(|(_, known)| known.as_slice() == host);
        found.map(|(job, _)| job.clone())
    })
    .flatten()
}

/// Tells pid 1 what may come to be.
fn tell(note: Note) {
    KEEPER.with_borrow(|keeper| {
        let Some(pid1) = keeper else { return };
        if let Err(e) = skeleton::keep(pid1.as_fd(), note) {
            tracing::warn!("the frame's pid 1 is not told of an object: {e}");
        }
    });
}

/// Removes all that the job has here.
pub fn remove_all() {
    remove(with(|all| all.notes()).unwrap_or_default());
}

/// Removes what there is of this.
pub fn remove(notes: impl IntoIterator<Item = Note>) {
    for note in notes {
        match note {
            Note::Key(kind, key) => {
                ipc::remove(&find(kind, key).map(|id| (kind, id)).into_iter().collect::<Vec<_>>());
            }
            Note::Queue(name) => unlink_queue(&[b"/", name.as_slice()].concat()),
        }
    }
}

/// The object with this key.
fn find(kind: Kind, key: i32) -> Option<i32> {
    let found = match kind {
        Kind::Memory => raw::shmget(key, 0, 0),
        Kind::Semaphores => raw::semget(key, 0, 0),
        Kind::Queue => raw::msgget(key, 0),
    };
    found.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_table_all_is_the_kernels() {
        end();
        assert_eq!((to_host(Kind::Queue, 7), to_job(Kind::Queue, 7)), (7, Some(7)));
        assert_eq!(key_to_job(Kind::Queue, 9), 9);
        assert!(!are_own() && queue_to_job(b"name").is_none());
    }

    #[test]
    fn identifiers_go_both_ways_and_those_of_others_are_nobodys() {
        begin();
        bind(Kind::Queue, 10, 5000);
        assert_eq!((to_host(Kind::Queue, 10), to_job(Kind::Queue, 5000)), (5000, Some(10)));
        assert_eq!((to_host(Kind::Queue, 5000), to_job(Kind::Queue, 10)), (NONE, None));
        assert_eq!((to_host(Kind::Memory, 10), to_job(Kind::Memory, 5000)), (NONE, None));
        end();
    }

    #[test]
    fn a_new_object_keeps_its_identifier_if_its_place_is_free() {
        begin();
        bind(Kind::Memory, 0x8003, 0x4);
        assert_eq!(found(Kind::Memory, 0x1_0005, (0, 77)), 0x1_0005);
        // Place 3 is taken, 0 is the first that is free.
        assert_eq!(found(Kind::Memory, 0x1_0003, (6, 78)), 0x1_0000);
        assert_eq!(found(Kind::Memory, 0x1_0003, (6, 78)), 0x1_0000);
        assert_eq!(found(Kind::Semaphores, 0x1_0003, (0, 79)), 0x1_0003);
        assert_eq!(to_host(Kind::Memory, 0x1_0000), 0x1_0003);
        assert_eq!((at(Kind::Memory, 3), at(Kind::Memory, 4)), (Some(0x8003), None));
        assert_eq!((key_to_host(Kind::Memory, 6), key_to_job(Kind::Memory, 77)), (Some(78), 0));
        end();
    }

    #[test]
    fn what_was_made_is_removed_by_its_key_and_name() {
        use std::os::fd::AsRawFd;

        use crate::migrate::resource::fd::raw as fd_raw;

        begin();
        let key = new_key(Kind::Semaphores, libc::IPC_PRIVATE).expect("key");
        let id = raw::semget(key, 1, libc::IPC_CREAT | libc::IPC_EXCL | 0o600).expect("semget");
        let name = new_queue(b"name").expect("name");
        assert_eq!(new_queue(b"name").expect("name"), name);
        assert_eq!(queue_to_job(&name), Some(b"name".to_vec()));
        let path = [b"/", name.as_slice()].concat();
        let queue = fd_raw::mq_create(&path, 0o600, 1, 8).expect("mq_open");
        assert!(fd_raw::mq_attributes(queue.as_raw_fd()).is_ok());
        remove_all();
        assert!(raw::sem_control(id, 0, libc::GETVAL).is_err());
        assert!(fd_raw::mq_unlink(&path).is_err());
        end();
    }
}
