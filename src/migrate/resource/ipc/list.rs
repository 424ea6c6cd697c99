//! The objects of an IPC namespace, as `/proc/sysvipc` lists them (proc_sysvipc(5)).

use std::io;

use serde::{Deserialize, Serialize};

use super::{Kind, Perm};
use crate::tracer::memory::read_proc;

/// One object. Numbers of processes are those of the reader's /proc.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub kind: Kind,
    pub perm: Perm,
    /// A segment: how often it is attached.
    pub attached: u64,
    /// A set: how many semaphores; a queue: how many messages.
    pub count: usize,
    /// A segment: its size; a queue: bytes in it.
    pub bytes: usize,
    /// Who did something to it, 0 if nobody: of a segment its creator and the last that attached
    /// or detached, of a queue the last sender and receiver.
    pub pids: [i32; 2],
}

/// All objects of this process's IPC namespace.
///
/// # Errors
/// When a list cannot be read.
pub fn all() -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    for (kind, name) in [(Kind::Memory, "shm"), (Kind::Semaphores, "sem"), (Kind::Queue, "msg")] {
        let text = read_proc(&format!("/proc/sysvipc/{name}"))?;
        found.extend(text.lines().skip(1).filter_map(|line| parse(kind, line)));
    }
    Ok(found)
}

fn parse(kind: Kind, line: &str) -> Option<Listed> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<i64>().ok();
    let octal = |at: usize| u16::from_str_radix(words.get(at)?, 8).ok();
    // key id perms, then of each kind its own, then uid gid cuid cgid.
    let (ids, attached, count, bytes, pids) = match kind {
        Kind::Memory => (7, number(6)?, 0, number(3)?, [number(4)?, number(5)?]),
        Kind::Semaphores => (4, 0, number(3)?, 0, [0, 0]),
        Kind::Queue => (7, 0, number(4)?, number(3)?, [number(5)?, number(6)?]),
    };
    let id = |at: usize| number(ids + at).map(|n| n as u32);
    Some(Listed {
        kind,
        perm: Perm {
            key: number(0)? as i32,
            id: number(1)? as i32,
            mode: octal(2)?,
            uid: id(0)?,
            gid: id(1)?,
            cuid: id(2)?,
            cgid: id(3)?,
        },
        attached: attached as u64,
        count: count as usize,
        bytes: bytes as usize,
        pids: pids.map(|pid| pid as i32),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_three_lists() {
        let shm = "      4660      65541  1600                  8192 11 12      3  1 2 3 4 \
                   1795248328 1795248328 1795248328                  4096                     0";
        let found = parse(Kind::Memory, shm).expect("a segment");
        assert_eq!((found.perm.key, found.perm.id, found.perm.mode), (4660, 65541, 0o1600));
        assert_eq!((found.bytes, found.attached, found.pids), (8192, 3, [11, 12]));
        assert_eq!((found.perm.uid, found.perm.cgid), (1, 4));
        let sem = "-5 1 600 3 1 2 3 4 0 1795248328";
        let found = parse(Kind::Semaphores, sem).expect("a set");
        assert_eq!((found.perm.key, found.count, found.perm.cuid), (-5, 3, 3));
        let msg = "0 2 666 10 2 5 6 1 2 3 4 0 0 0";
        let found = parse(Kind::Queue, msg).expect("a queue");
        assert_eq!((found.bytes, found.count, found.pids), (10, 2, [5, 6]));
        assert!(parse(Kind::Queue, "garbage").is_none());
    }
}
