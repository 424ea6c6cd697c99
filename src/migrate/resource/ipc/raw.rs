//! Every unsafe block of System V IPC.

use std::io;

use crate::errno::check;

/// IPC_SET of a kind of object (shmctl(2), semctl(2), msgctl(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits.
    pub mode: u16,
}

/// shmget(2).
///
/// # Errors
/// As the call.
pub fn shmget(key: i32, size: usize, flags: i32) -> io::Result<i32> {
    // SAFETY: numbers only.
    check(unsafe { libc::shmget(key, size, flags) })
}

/// Size in bytes of a segment, with shmctl(2) IPC_STAT.
///
/// # Errors
/// As the call.
pub fn shm_size(id: i32) -> io::Result<usize> {
    // SAFETY: the structure is plain data and lives through the call.
    unsafe {
        let mut ds: libc::shmid_ds = std::mem::zeroed();
        check(libc::shmctl(id, libc::IPC_STAT, &raw mut ds))?;
        Ok(ds.shm_segsz)
    }
}

/// Sets owner, group and permission bits of a segment.
///
/// # Errors
/// As shmctl(2).
pub fn shm_set(id: i32, owner: Owner) -> io::Result<()> {
    // SAFETY: the structure is plain data and lives through the calls.
    unsafe {
        let mut ds: libc::shmid_ds = std::mem::zeroed();
        check(libc::shmctl(id, libc::IPC_STAT, &raw mut ds))?;
        (ds.shm_perm.uid, ds.shm_perm.gid) = (owner.uid, owner.gid);
        ds.shm_perm.mode = owner.mode;
        check(libc::shmctl(id, libc::IPC_SET, &raw mut ds)).map(drop)
    }
}

/// shmctl(2) with a command that takes nothing: IPC_RMID, SHM_LOCK.
///
/// # Errors
/// As the call.
pub fn shm_control(id: i32, command: i32) -> io::Result<()> {
    // SAFETY: these commands take no structure.
    check(unsafe { libc::shmctl(id, command, std::ptr::null_mut()) }).map(drop)
}

/// Attaches a segment for as long as `with` looks at its bytes, as many as it was made with;
/// `write` asks for the right to change them.
///
/// # Errors
/// As shmat(2).
pub fn with_segment<T>(id: i32, write: bool, with: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
    let size = shm_size(id)?;
    let flags = if write { 0 } else { libc::SHM_RDONLY };
    // SAFETY: the kernel chooses a free place, which is this function's alone until shmdt. What
    // other processes write meanwhile is bytes as well. A read-only attachment is shown to
    // nobody who writes: see `read_segment`.
    unsafe {
        let at = libc::shmat(id, std::ptr::null(), flags);
        if at as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        let value = with(std::slice::from_raw_parts_mut(at.cast(), size));
        check(libc::shmdt(at))?;
        Ok(value)
    }
}

/// semget(2).
///
/// # Errors
/// As the call.
pub fn semget(key: i32, count: usize, flags: i32) -> io::Result<i32> {
    // SAFETY: numbers only.
    check(unsafe { libc::semget(key, count as i32, flags) })
}

/// semctl(2) with a command that takes nothing: GETPID, GETNCNT, GETZCNT, IPC_RMID.
///
/// # Errors
/// As the call.
pub fn sem_control(id: i32, number: usize, command: i32) -> io::Result<i32> {
    // SAFETY: these commands take no fourth argument.
    check(unsafe { libc::semctl(id, number as i32, command) })
}

/// GETALL of a set of `count` semaphores.
///
/// # Errors
/// As semctl(2).
pub fn sem_values(id: i32, count: usize) -> io::Result<Vec<u16>> {
    let mut values = vec![0u16; count];
    // SAFETY: the array lives through the call and has as many elements as the set.
    check(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

/// SETVAL.
///
/// # Errors
/// As semctl(2).
pub fn sem_set_value(id: i32, number: usize, value: u16) -> io::Result<()> {
    // SAFETY: the fourth argument of this command is an int.
    check(unsafe { libc::semctl(id, number as i32, libc::SETVAL, i32::from(value)) }).map(drop)
}

/// Sets owner, group and permission bits of a set.
///
/// # Errors
/// As semctl(2).
pub fn sem_set(id: i32, owner: Owner) -> io::Result<()> {
    // SAFETY: the structure is plain data and lives through the calls.
    unsafe {
        let mut ds: libc::semid_ds = std::mem::zeroed();
        check(libc::semctl(id, 0, libc::IPC_STAT, &raw mut ds))?;
        (ds.sem_perm.uid, ds.sem_perm.gid) = (owner.uid, owner.gid);
        ds.sem_perm.mode = owner.mode;
        check(libc::semctl(id, 0, libc::IPC_SET, &raw mut ds)).map(drop)
    }
}

/// One operation of semop(2): number, operation, flags.
pub type SemOp = (u16, i16, i16);

/// semop(2).
///
/// # Errors
/// As the call.
pub fn semop(id: i32, operations: &[SemOp]) -> io::Result<()> {
    let make = |&(sem_num, sem_op, sem_flg): &SemOp| libc::sembuf { sem_num, sem_op, sem_flg };
    let mut all: Vec<libc::sembuf> = operations.iter().map(make).collect();
    // SAFETY: the array lives through the call and has the length told.
    check(unsafe { libc::semop(id, all.as_mut_ptr(), all.len()) }).map(drop)
}

/// msgget(2).
///
/// # Errors
/// As the call.
pub fn msgget(key: i32, flags: i32) -> io::Result<i32> {
    // SAFETY: numbers only.
    check(unsafe { libc::msgget(key, flags) })
}

/// Most bytes that a queue may hold (`msg_qbytes` of msgctl(2)).
///
/// # Errors
/// As the call.
pub fn msg_room(id: i32) -> io::Result<u64> {
    // SAFETY: the structure is plain data and lives through the call.
    unsafe {
        let mut ds: libc::msqid_ds = std::mem::zeroed();
        check(libc::msgctl(id, libc::IPC_STAT, &raw mut ds))?;
        Ok(ds.msg_qbytes)
    }
}

/// Sets owner, group, permission bits and room of a queue.
///
/// # Errors
/// `EPERM` for more room than `/proc/sys/kernel/msgmnb`.
pub fn msg_set(id: i32, owner: Owner, room: u64) -> io::Result<()> {
    // SAFETY: the structure is plain data and lives through the calls.
    unsafe {
        let mut ds: libc::msqid_ds = std::mem::zeroed();
        check(libc::msgctl(id, libc::IPC_STAT, &raw mut ds))?;
        (ds.msg_perm.uid, ds.msg_perm.gid) = (owner.uid, owner.gid);
        ds.msg_perm.mode = owner.mode;
        ds.msg_qbytes = room;
        check(libc::msgctl(id, libc::IPC_SET, &raw mut ds)).map(drop)
    }
}

/// IPC_RMID of a queue.
///
/// # Errors
/// As msgctl(2).
pub fn msg_remove(id: i32) -> io::Result<()> {
    // SAFETY: the command takes no structure.
    check(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// msgsnd(2) without waiting.
///
/// # Errors
/// `EAGAIN` when the queue is full.
pub fn msgsnd(id: i32, kind: i64, text: &[u8]) -> io::Result<()> {
    let mut message = kind.to_ne_bytes().to_vec();
    message.extend_from_slice(text);
    // SAFETY: the message is a long and as many bytes as told, and lives through the call.
    check(unsafe { libc::msgsnd(id, message.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) })
        .map(drop)
}

/// msgrcv(2) without waiting: type and text, of at most `most` bytes. With MSG_COPY in `flags`,
/// `kind` is a place in the queue.
///
/// # Errors
/// `ENOMSG` when there is none, `ENOSYS` for MSG_COPY without CONFIG_CHECKPOINT_RESTORE.
pub fn msgrcv(id: i32, most: usize, kind: i64, flags: i32) -> io::Result<(i64, Vec<u8>)> {
    let mut buf = vec![0u8; 8 + most];
    let flags = flags | libc::IPC_NOWAIT;
    // SAFETY: the buffer has room for a long and as many bytes as told.
    let got = check(unsafe { libc::msgrcv(id, buf.as_mut_ptr().cast(), most, kind, flags) })?;
    let text = buf.split_off(8);
    let kind = buf.try_into().map(i64::from_ne_bytes).unwrap_or_default();
    Ok((kind, text.into_iter().take(got as usize).collect()))
}

/// setns(2).
///
/// # Errors
/// As the call.
pub fn setns(namespace: std::os::fd::BorrowedFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: numbers only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), 0) }).map(drop)
}

/// Effective ids of this thread alone, which is the only one.
///
/// # Errors
/// `EPERM`.
pub fn set_effective(uid: u32, gid: u32) -> io::Result<()> {
    const SAME: u32 = u32::MAX;
    // Who is not root may not change the group any more.
    let group =
        // SAFETY: numbers only.
        || check(unsafe { libc::syscall(libc::SYS_setresgid, SAME, gid, SAME) }).map(drop);
    let user =
        // SAFETY: numbers only.
        || check(unsafe { libc::syscall(libc::SYS_setresuid, SAME, uid, SAME) }).map(drop);
    if uid == 0 {
        user()?;
        return group();
    }
    group()?;
    user()
}
