//! System V IPC: shared memory, semaphores and message queues (sysvipc(7)).
//!
//! ```text
//! source: list ─► choose: which objects are the job's ─► capture ─► IpcImage
//!         pages of attached segments travel as memory; amounts of SEM_UNDO by `undo`
//! target: steps, done by the new processes in the IPC namespace of the job:
//!         made with their ids by whom they were made, filled, undone, marked for removal
//! ```
//! After its first move a job has an IPC namespace of its own, and all in there is the job's.
//! Before that it shares one with others; see [`choose`].

pub mod choose;
pub mod list;
pub mod namespace;
pub mod raw;
pub mod steps;
pub mod undo;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use choose::Chosen;
use list::Listed;

use super::memory::Backing;
use crate::migrate::image::ProcessImage;
use crate::syscalls::translate::objects;
use crate::tracer::memory::{VmFlags, PAGE};

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// shmget(2).
    Memory,
    /// semget(2).
    Semaphores,
    /// msgget(2).
    Queue,
}

impl Kind {
    /// As people call one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "shared memory segment",
            Self::Semaphores => "semaphore set",
            Self::Queue => "message queue",
        }
    }
}

/// An object's kind and identifier.
pub type Id = (Kind, i32);

/// SEM_UNDO of sys/sem.h.
pub const SEM_UNDO: i16 = 0x1000;
/// SEMVMX, the highest value; also the highest amount to be undone.
pub const MOST: i16 = 32767;
/// SHM_DEST and SHM_LOCKED of the mode (shmctl(2)).
const REMOVED: u16 = 0o1000;
const LOCKED: u16 = 0o2000;
/// Content of segments that no process of the job shows whole.
const MOST_CONTENT: usize = 64 << 20;

/// `struct ipc_perm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Perm {
    pub key: i32,
    pub id: i32,
    /// Permission bits, and of a segment SHM_DEST and SHM_LOCKED.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
}

/// Everything of System V IPC that a job has, but what its processes would undo.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcImage {
    pub segments: Vec<Segment>,
    pub sets: Vec<Set>,
    pub queues: Vec<Queue>,
}

/// A segment. Numbers of processes here are those of the job, 0 for one that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub perm: Perm,
    /// Bytes.
    pub size: u64,
    /// Who made it.
    pub creator: i32,
    /// What is not zero of one whose pages are not sent with the memory of a process: offset,
    /// bytes.
    pub content: Vec<(u64, Vec<u8>)>,
}

impl Segment {
    /// It goes with its last attachment (IPC_RMID).
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.perm.mode & REMOVED != 0
    }

    /// SHM_LOCK.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.perm.mode & LOCKED != 0
    }
}

/// A set of semaphores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    pub perm: Perm,
    pub values: Vec<u16>,
    /// Of each semaphore: who changed it last (GETPID).
    pub pids: Vec<i32>,
}

/// A message queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    pub perm: Perm,
    /// `msg_qbytes`.
    pub room: u64,
    /// Who sent and received last.
    pub sender: i32,
    pub receiver: i32,
    /// Type and text, oldest first.
    pub messages: Vec<(i64, Vec<u8>)>,
}

/// Captures the chosen objects, in the job's namespace. `job` has the job's number of each of its
/// processes, by host pid; `shown` are the segments whose pages are sent with its memory.
///
/// # Errors
/// The object, and what was tried.
pub fn capture(
    chosen: &[Chosen],
    job: &BTreeMap<i32, i32>,
    shown: &[i32],
) -> Result<IpcImage, String> {
    let mut image = IpcImage::default();
    for Chosen { listed, perhaps, .. } in chosen {
        let (id, name) = (listed.perm.id, listed.kind.name());
        let failed = |e: std::io::Error| format!("{name} {id}: {e}");
        let captured = match listed.kind {
            Kind::Memory => segment(listed, job, shown).map(|segment| image.segments.push(segment)),
            Kind::Semaphores => set(listed, job).map(|set| image.sets.push(set)),
            Kind::Queue => queue(listed, job).map(|queue| image.queues.push(queue)),
        };
        match captured {
            Err(e) if *perhaps => tracing::debug!("{}", failed(e)),
            other => other.map_err(failed)?,
        }
    }
    Ok(image)
}

/// As the job knows it.
fn perm(listed: &Listed) -> Perm {
    objects::perm_to_job(listed.kind, listed.perm)
}

/// Gives what processes have to do with objects the identifiers that the job knows.
pub fn by_job(processes: &mut [ProcessImage]) {
    let job = |kind, host| objects::to_job(kind, host).unwrap_or(host);
    for process in processes {
        for undo in &mut process.undo {
            undo.id = job(Kind::Semaphores, undo.id);
        }
        for segment in process.memory.objects.iter_mut().filter_map(|o| o.segment.as_mut()) {
            *segment = job(Kind::Memory, *segment);
        }
    }
}

fn number(job: &BTreeMap<i32, i32>, pid: i32) -> i32 {
    job.get(&pid).copied().unwrap_or(0)
}

fn segment(listed: &Listed, job: &BTreeMap<i32, i32>, shown: &[i32]) -> std::io::Result<Segment> {
    let id = listed.perm.id;
    let content = match shown.contains(&id) {
        true => Vec::new(),
        false if listed.bytes > MOST_CONTENT => {
            let text = format!("it holds more than {} MiB and is not attached", MOST_CONTENT >> 20);
            return Err(std::io::Error::other(text));
        }
        false => raw::with_segment(id, false, |bytes| not_zero(bytes))?,
    };
    Ok(Segment {
        perm: perm(listed),
        size: listed.bytes as u64,
        creator: number(job, listed.pids[0]),
        content,
    })
}

/// The pages that are not all zero, with their offsets.
fn not_zero(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    const PAGE: usize = 4096;
    let pages = bytes.chunks(PAGE).enumerate();
    let full = pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    full.map(|(n, page)| ((n * PAGE) as u64, page.to_vec())).collect()
}

fn set(listed: &Listed, job: &BTreeMap<i32, i32>) -> std::io::Result<Set> {
    let id = listed.perm.id;
    let pids = (0..listed.count).map(|n| raw::sem_control(id, n, libc::GETPID));
    let pids = pids.map(|pid| pid.map(|pid| number(job, pid))).collect::<std::io::Result<_>>()?;
    Ok(Set { perm: perm(listed), values: raw::sem_values(id, listed.count)?, pids })
}

fn queue(listed: &Listed, job: &BTreeMap<i32, i32>) -> std::io::Result<Queue> {
    /// MSG_COPY of sys/msg.h.
    const MSG_COPY: i32 = 0o40000;
    let id = listed.perm.id;
    let peek = |n: usize| raw::msgrcv(id, listed.bytes, n as i64, MSG_COPY);
    Ok(Queue {
        perm: perm(listed),
        room: raw::msg_room(id)?,
        sender: number(job, listed.pids[0]),
        receiver: number(job, listed.pids[1]),
        messages: (0..listed.count).map(peek).collect::<std::io::Result<_>>()?,
    })
}

impl IpcImage {
    /// There is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.sets.is_empty() && self.queues.is_empty()
    }
}

/// Segments that a process shows whole, and may write to: its pages fill them anew.
#[must_use]
pub fn shown(processes: &[ProcessImage], chosen: &[Chosen]) -> Vec<i32> {
    let size = |id: i32| {
        let is = |c: &&Chosen| (c.listed.kind, c.listed.perm.id) == (Kind::Memory, id);
        chosen.iter().find(is).map(|c| (c.listed.bytes as u64).next_multiple_of(PAGE))
    };
    let mut found = Vec::new();
    for memory in processes.iter().map(|process| &process.memory) {
        for m in &memory.mappings {
            let Backing::Object(index) = m.backing else { continue };
            let object = memory.objects.get(index as usize);
            let Some(id) = object.and_then(|object| object.segment) else { continue };
            let whole = m.offset == 0 && Some(m.len()) == size(id);
            if whole && m.flags.contains(VmFlags::MAY_WRITE) && !found.contains(&id) {
                found.push(id);
            }
        }
    }
    found
}

/// Removes objects of this process's own namespace that a job has left behind.
pub fn remove(objects: &[Id]) {
    for &(kind, id) in objects {
        let removed = match kind {
            Kind::Memory => raw::shm_control(id, libc::IPC_RMID),
            Kind::Semaphores => raw::sem_control(id, 0, libc::IPC_RMID).map(drop),
            Kind::Queue => raw::msg_remove(id),
        };
        match removed {
            // The end of the last process that had it has removed it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => {}
            Err(e) => tracing::warn!("remove {} {id}: {e}", kind.name()),
            Ok(()) => {}
        }
    }
}
