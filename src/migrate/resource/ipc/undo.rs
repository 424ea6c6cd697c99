//! What a process's SEM_UNDO operations have added up to (semop(2), `semadj`).
//!
//! The kernel shows these amounts nowhere. But it refuses an operation by which one would leave
//! its range with ERANGE, before it finds out that another operation of the same array cannot be
//! done now (perform_atomic_semop_slow, ipc/sem.c), and takes back what stood before that. So an
//! array that always fails tells by its reason how large an amount is, and changes nothing: no
//! value, no time, no process number.

use serde::{Deserialize, Serialize};

use super::raw::SemOp;
use super::MOST;
use crate::migrate::raw::{compare_tasks, unshare, Shared};
use crate::tracer::inject::{Arg, InjectError, Program, Remote, Stub};

/// An amount that is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    pub id: i32,
    pub number: u16,
    /// It is added to the value when the process ends.
    pub amount: i16,
}

/// A set as it is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub id: i32,
    pub values: Vec<u16>,
}

/// Why the amounts are not known.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    #[error(transparent)]
    Inject(#[from] InjectError),
    #[error("the process may not change semaphore set {0} any more")]
    Denied(i32),
    #[error("semaphore set {id} answers error {errno}")]
    Answer { id: i32, errno: i32 },
}

/// Has the thread a list of amounts, of its own or together with others?
///
/// # Errors
/// As kcmp(2).
pub fn may_have(tid: i32) -> std::io::Result<bool> {
    // Who has made a thread has one (copy_semundo, ipc/sem.c): from here on the caller has none.
    unshare(libc::CLONE_SYSVSEM)?;
    let own = nix::unistd::gettid().as_raw();
    Ok(compare_tasks(own, tid, Shared::Undo)? != std::cmp::Ordering::Equal)
}

/// The array that fails with ERANGE if the amount of a semaphore plus `more` is above the range,
/// else with EAGAIN. 1 ≤ `more` ≤ 2 * [`MOST`].
fn question(number: u16, value: u16, more: i32) -> Vec<SemOp> {
    const NOWAIT: i16 = libc::IPC_NOWAIT as i16;
    let undo = NOWAIT | super::SEM_UNDO;
    let mut all = Vec::with_capacity(5);
    let room = MOST - value as i16;
    if room > 0 {
        all.push((number, room, NOWAIT));
    }
    let first = more.min(i32::from(MOST)) as i16;
    let second = (more - i32::from(first)) as i16;
    all.push((number, -first, undo));
    if second > 0 {
        all.push((number, first, NOWAIT));
        all.push((number, -second, undo));
    }
    // The value is below that.
    all.push((number, -MOST, NOWAIT));
    all
}

/// Asks a stopped process, of which `remote` is a thread, for its amounts.
///
/// # Errors
/// [`UndoError`].
pub fn ask(remote: &mut Remote, stub: &Stub, sets: &[Asked]) -> Result<Vec<Undo>, UndoError> {
    let mut found = Vec::new();
    for set in sets {
        let all = (0..).zip(&set.values);
        let all: Vec<(u16, u16)> = all.map(|(number, value)| (number, *value)).collect();
        // Is the amount above 0; is it below?
        for piece in all.chunks(256) {
            let questions = piece.iter().flat_map(|&(number, value)| {
                [(number, value, i32::from(MOST)), (number, value, i32::from(MOST) + 1)]
            });
            let answers = answers(remote, stub, set.id, &questions.collect::<Vec<_>>())?;
            for (&(number, value), answer) in piece.iter().zip(answers.as_chunks::<2>().0) {
                if *answer != [false, true] {
                    let amount = measure(remote, stub, set.id, (number, value))?;
                    found.push(Undo { id: set.id, number, amount });
                }
            }
        }
    }
    Ok(found)
}

/// The amount: by halves.
fn measure(
    remote: &mut Remote,
    stub: &Stub,
    id: i32,
    (number, value): (u16, u16),
) -> Result<i16, UndoError> {
    let (mut low, mut high) = (1, 2 * i32::from(MOST));
    while low < high {
        let middle = (low + high) / 2;
        match answers(remote, stub, id, &[(number, value, middle)])?.as_slice() {
            [true] => high = middle,
            _ => low = middle + 1,
        }
    }
    Ok((i32::from(MOST) + 1 - low) as i16)
}

/// Of each question (semaphore, its value, how much more): is that above the range?
fn answers(
    remote: &mut Remote,
    stub: &Stub,
    id: i32,
    questions: &[(u16, u16, i32)],
) -> Result<Vec<bool>, UndoError> {
    let mut program = Program::default();
    let mut rows = Vec::with_capacity(questions.len());
    for &(number, value, more) in questions {
        let operations = question(number, value, more);
        let bytes: Vec<u8> = operations
            .iter()
            .flat_map(|(number, operation, flags)| {
                let words = [number.to_le_bytes(), operation.to_le_bytes(), flags.to_le_bytes()];
                words.concat()
            })
            .collect();
        let at = Arg::Data(program.data(&bytes));
        let count = Arg::Num(operations.len() as u64);
        rows.push(program.call(libc::SYS_semop, "semop", &[Arg::Num(id as u64), at, count]));
    }
    let outcome = remote.run(stub, program)?;
    let answer = |row: &usize| match -outcome.raw(*row) as i32 {
        libc::ERANGE => Ok(true),
        libc::EAGAIN => Ok(false),
        libc::EACCES => Err(UndoError::Denied(id)),
        errno => Err(UndoError::Answer { id, errno }),
    };
    rows.iter().map(answer).collect()
}

/// The operations by which a process gets this amount without changing the value, which is
/// `value` before.
#[must_use]
pub fn operations(undo: &Undo, value: u16) -> [SemOp; 2] {
    let (number, amount) = (undo.number, undo.amount);
    let with = (number, amount.saturating_neg(), super::SEM_UNDO);
    let without = (number, amount, 0);
    // Neither may wait, nor lift the value above the range.
    if amount > 0 && i32::from(value) >= i32::from(amount)
        || amount < 0 && i32::from(value) + i32::from(-amount) <= i32::from(MOST)
    {
        [with, without]
    } else {
        [without, with]
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw;
    use super::*;

    fn above(id: i32, value: u16, more: i32) -> bool {
        let error = raw::semop(id, &question(0, value, more)).expect_err("it always fails");
        match error.raw_os_error() {
            Some(libc::ERANGE) => true,
            Some(libc::EAGAIN) => false,
            _ => panic!("{error}"),
        }
    }

    #[test]
    fn who_makes_threads_sees_who_has_no_list() {
        std::thread::spawn(|| {
            let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
            std::thread::spawn(|| {}).join().expect("thread");
            let found = may_have(child.id() as i32);
            child.kill().expect("kill");
            child.wait().expect("wait");
            assert!(!found.expect("kcmp"));
        })
        .join()
        .expect("thread");
    }

    #[test]
    fn amounts_are_told_by_how_operations_fail() {
        let id = raw::semget(libc::IPC_PRIVATE, 1, 0o600).expect("semget");
        for (value, amount) in [(5, 3), (100, -7), (0, 1), (MOST, -1), (MOST, 1), (0, 0), (7, 0)] {
            raw::sem_set_value(id, 0, value as u16).expect("SETVAL");
            let undo = Undo { id, number: 0, amount };
            if amount != 0 {
                raw::semop(id, &operations(&undo, value as u16)).expect("semop");
            }
            assert_eq!(raw::sem_values(id, 1).expect("GETALL"), [value as u16]);
            let most = i32::from(MOST);
            let threshold = most + 1 - i32::from(amount);
            for more in [1, most - 1, most, most + 1, most + 2, 2 * most] {
                assert_eq!(above(id, value as u16, more), more >= threshold, "{amount} {more}");
            }
            assert_eq!(raw::sem_values(id, 1).expect("GETALL"), [value as u16]);
        }
        raw::sem_control(id, 0, libc::IPC_RMID).expect("IPC_RMID");
    }
}
