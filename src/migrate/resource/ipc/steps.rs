//! Making the objects anew: steps for the new processes, each done by the one whose number the
//! kernel then keeps with the object.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::raw::{self, Owner};
use super::undo::{self, Undo};
use super::{IpcImage, Kind, Perm, Queue, Segment, MOST};
use crate::migrate::raw::set_dumpable;
use crate::syscalls::translate::objects;

/// Something that one process does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Segment(Segment),
    Set(Perm, Vec<u16>),
    Queue(Perm),
    /// Room for this while the queue is filled, or for good.
    Room(Perm, u64),
    Undo(Undo, u16),
    /// Changes a semaphore of this value, and changes it back.
    Touch(i32, u16, u16),
    Send(i32, i64, Vec<u8>),
    Receive(i32),
    /// IPC_RMID of a segment.
    Remove(i32),
}

/// The process that does a step, by its number in the job; `None`: pid 1.
pub type Doer = Option<i32>;

/// Steps of one doer one after the other, in their order. `undo` are the amounts of SEM_UNDO by
/// process; `is_there` tells which processes of the job there are.
#[must_use]
pub fn plan(
    image: &IpcImage,
    undo: &[(i32, Undo)],
    is_there: impl Fn(i32) -> bool,
) -> Vec<(Doer, Vec<Step>)> {
    let doer = |pid: i32| (pid != 0 && is_there(pid)).then_some(pid);
    let mut all: Vec<(Doer, Step)> = Vec::new();
    for segment in &image.segments {
        all.push((doer(segment.creator), Step::Segment(segment.clone())));
    }
    for set in &image.sets {
        all.push((None, Step::Set(set.perm, set.values.clone())));
    }
    // SETVAL takes amounts away, so it is over by now; and each of these changes who was last.
    for (pid, undo) in undo {
        let set = image.sets.iter().find(|set| set.perm.id == undo.id);
        let value = set.and_then(|set| set.values.get(usize::from(undo.number)));
        all.extend(value.map(|value| (Some(*pid), Step::Undo(*undo, *value))));
    }
    for set in &image.sets {
        for (number, (pid, value)) in (0..).zip(set.pids.iter().zip(&set.values)) {
            let last = doer(*pid).map(|pid| (Some(pid), Step::Touch(set.perm.id, number, *value)));
            all.extend(last);
        }
    }
    for queue in &image.queues {
        fill(queue, &doer, &mut all);
    }
    let mut grouped: Vec<(Doer, Vec<Step>)> = Vec::new();
    for (doer, step) in all {
        match grouped.last_mut() {
            Some((last, steps)) if *last == doer => steps.push(step),
            _ => grouped.push((doer, vec![step])),
        }
    }
    grouped
}

fn fill(queue: &Queue, doer: &impl Fn(i32) -> Doer, all: &mut Vec<(Doer, Step)>) {
    let (perm, id) = (queue.perm, queue.perm.id);
    let bytes: usize = queue.messages.iter().map(|(_, text)| text.len()).sum();
    let meanwhile = queue.room.max(bytes as u64).max(queue.messages.len() as u64 + 1);
    all.push((None, Step::Queue(perm)));
    all.push((None, Step::Room(perm, meanwhile)));
    if queue.receiver != 0 {
        all.push((doer(queue.sender), Step::Send(id, 1, Vec::new())));
        all.push((doer(queue.receiver), Step::Receive(id)));
    }
    for (kind, text) in &queue.messages {
        all.push((doer(queue.sender), Step::Send(id, *kind, text.clone())));
    }
    all.push((None, Step::Room(perm, queue.room)));
}

/// Does steps in this process.
///
/// # Errors
/// The object, and what was tried.
pub fn perform(steps: &[Step]) -> Result<(), String> {
    steps.iter().try_for_each(perform_one)
}

fn perform_one(step: &Step) -> Result<(), String> {
    match step {
        Step::Segment(segment) => make_segment(segment),
        Step::Set(perm, values) => make_set(*perm, values),
        Step::Queue(perm) => {
            make(Kind::Queue, *perm, |flags| raw::msgget(perm.key, flags)).map(drop)
        }
        Step::Room(perm, room) => raw::msg_set(queue(perm.id), owner(*perm), *room).map_err(tried(
            Kind::Queue,
            perm.id,
            "owner and room",
        )),
        Step::Undo(undo, value) => raw::semop(set(undo.id), &undo::operations(undo, *value))
            .map_err(tried(Kind::Semaphores, undo.id, "SEM_UNDO")),
        Step::Touch(id, number, value) => raw::semop(set(*id), &up_and_down(*number, *value))
            .map_err(tried(Kind::Semaphores, *id, "semop")),
        Step::Send(id, kind, text) => {
            raw::msgsnd(queue(*id), *kind, text).map_err(tried(Kind::Queue, *id, "msgsnd"))
        }
        Step::Receive(id) => {
            raw::msgrcv(queue(*id), 0, 0, 0).map(drop).map_err(tried(Kind::Queue, *id, "msgrcv"))
        }
        Step::Remove(id) => raw::shm_control(objects::to_host(Kind::Memory, *id), libc::IPC_RMID)
            .map_err(tried(Kind::Memory, *id, "IPC_RMID")),
    }
}

/// The identifier here of a queue of the job.
fn queue(id: i32) -> i32 {
    objects::to_host(Kind::Queue, id)
}

/// The same of a set.
fn set(id: i32) -> i32 {
    objects::to_host(Kind::Semaphores, id)
}

fn tried(kind: Kind, id: i32, what: &'static str) -> impl Fn(io::Error) -> String {
    move |e| format!("{} {id}: {what}: {e}", kind.name())
}

fn owner(perm: Perm) -> Owner {
    Owner { uid: perm.uid, gid: perm.gid, mode: perm.mode & 0o777 }
}

/// A change of a semaphore that leaves its value.
fn up_and_down(number: u16, value: u16) -> [raw::SemOp; 2] {
    if value < MOST as u16 {
        [(number, 1, 0), (number, -1, 0)]
    } else {
        [(number, -1, 0), (number, 1, 0)]
    }
}

/// Makes an object with its identifier, as its creator, or with another one where the job has no
/// namespaces. `get` is the call, given its flags. Gives the identifier here.
fn make(kind: Kind, perm: Perm, get: impl FnOnce(i32) -> io::Result<i32>) -> Result<i32, String> {
    let file = match kind {
        Kind::Memory => "/proc/sys/kernel/shm_next_id",
        Kind::Semaphores => "/proc/sys/kernel/sem_next_id",
        Kind::Queue => "/proc/sys/kernel/msg_next_id",
    };
    if !objects::are_own() {
        fs::write(file, perm.id.to_string()).map_err(|e| format!("{file}: {e}"))?;
    }
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | i32::from(perm.mode & 0o777);
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let other = own != (perm.cuid, perm.cgid);
    let switch = |(uid, gid)| {
        let as_user = |e| format!("{} {} of user {uid}: {e}", kind.name(), perm.id);
        raw::set_effective(uid, gid).map_err(as_user)
    };
    if other {
        switch((perm.cuid, perm.cgid))?;
    }
    let made = get(flags);
    if other {
        switch(own)?;
        // A change of ids takes that away.
        set_dumpable(true);
    }
    let made = made.map_err(tried(kind, perm.id, "make it"))?;
    if objects::are_own() {
        objects::bind(kind, perm.id, made);
        return Ok(made);
    }
    match made {
        id if id == perm.id => Ok(id),
        id => Err(format!("{} {}: it was made as {id}", kind.name(), perm.id)),
    }
}

fn make_segment(segment: &Segment) -> Result<(), String> {
    /// SHM_LOCK of sys/shm.h.
    const SHM_LOCK: i32 = 11;
    let (perm, size) = (segment.perm, segment.size as usize);
    let id = make(Kind::Memory, perm, |flags| raw::shmget(perm.key, size, flags))?;
    let filled = if segment.content.is_empty() {
        Some(())
    } else {
        raw::with_segment(id, true, |bytes| {
            segment.content.iter().try_for_each(|(offset, piece)| {
                let from = usize::try_from(*offset).ok()?;
                bytes.get_mut(from..from.checked_add(piece.len())?)?.copy_from_slice(piece);
                Some(())
            })
        })
        .map_err(tried(Kind::Memory, id, "fill it"))?
    };
    filled.ok_or_else(|| format!("shared memory segment {id}: content behind its end"))?;
    raw::shm_set(id, owner(perm)).map_err(tried(Kind::Memory, id, "owner"))?;
    if segment.is_locked() {
        // As far as the user at the target may have memory locked.
        if let Err(e) = raw::shm_control(id, SHM_LOCK) {
            tracing::debug!("SHM_LOCK of segment {id}: {e}");
        }
    }
    Ok(())
}

fn make_set(perm: Perm, values: &[u16]) -> Result<(), String> {
    let id = make(Kind::Semaphores, perm, |flags| raw::semget(perm.key, values.len(), flags))?;
    // One that nobody has changed yet shows that.
    for (number, value) in values.iter().enumerate().filter(|(_, value)| **value != 0) {
        raw::sem_set_value(id, number, *value).map_err(tried(Kind::Semaphores, id, "values"))?;
    }
    raw::sem_set(id, owner(perm)).map_err(tried(Kind::Semaphores, id, "owner"))
}

#[cfg(test)]
mod tests {
    use super::super::Set;
    use super::*;

    fn perm(id: i32) -> Perm {
        Perm { key: 0, id, mode: 0o600, uid: 0, gid: 0, cuid: 0, cgid: 0 }
    }

    #[test]
    fn amounts_come_before_who_was_last() {
        let set = Set { perm: perm(1), values: vec![3, 0], pids: vec![10, 11] };
        let image = IpcImage { sets: vec![set], ..IpcImage::default() };
        let undo = [(11, Undo { id: 1, number: 0, amount: 2 })];
        let steps = plan(&image, &undo, |pid| pid == 11);
        let doers: Vec<Doer> = steps.iter().map(|(doer, _)| *doer).collect();
        assert_eq!(doers, [None, Some(11)]);
        assert_eq!(steps[1].1, [Step::Undo(undo[0].1, 3), Step::Touch(1, 1, 0)]);
    }

    #[test]
    fn a_queue_is_filled_by_its_last_sender() {
        let queue = Queue {
            perm: perm(5),
            room: 10,
            sender: 3,
            receiver: 4,
            messages: vec![(7, b"text".to_vec())],
        };
        let image = IpcImage { queues: vec![queue], ..IpcImage::default() };
        let steps: Vec<(Doer, Step)> = plan(&image, &[], |_| true)
            .into_iter()
            .flat_map(|(doer, steps)| steps.into_iter().map(move |step| (doer, step)))
            .collect();
        assert_eq!(steps[2], (Some(3), Step::Send(5, 1, Vec::new())));
        assert_eq!(steps[3], (Some(4), Step::Receive(5)));
        assert_eq!(steps[4], (Some(3), Step::Send(5, 7, b"text".to_vec())));
        assert_eq!(steps.last(), Some(&(None, Step::Room(perm(5), 10))));
    }
}
