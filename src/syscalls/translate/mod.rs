//! The calls of a job that has no namespaces here: numbers, clocks and names are the job's, and
//! are made the kernel's at the calls that carry them.
//!
//! ```text
//! Stop::Seccomp ─► Translation::at_entry ─► Native                goes on as it is
//!                                        ├► Answer                not made at all
//!                                        └► Watch ─► Call::finish at its return
//! ```
//! What a call is given is put below the thread's stack, behind the red zone (System V ABI for
//! x86-64, 3.2.2), and never changed in its place, where other threads may look. The program's
//! registers are put back when the call returns, so that what starts again, and what is captured
//! of a frozen thread, has the job's numbers.

mod clocks;
mod exec;
mod filter;
mod inheriting;
mod ipc;
mod messages;
pub mod numbers;
pub mod objects;
mod paths;
pub mod ptys;
mod robust;
pub mod signalfd;
mod signals;
pub mod table;
mod work;

use std::collections::BTreeSet;
use std::io;

pub use exec::hide_vdso;
pub use filter::program;
pub use paths::{path_to_host, path_to_job};
pub use robust::leave;
pub use signals::{deliver, to_host as signal_to_host, to_job as signal_to_job};

use crate::migrate::image::Clocks;
use crate::migrate::resource::ipc::Kind;
use crate::tracer::inject::{read_exact, write_all};
use crate::tracer::raw::{self, Regs};

/// What can be done about a state that cannot be where numbers are translated.
pub const REMEDY: &str =
    "allow user namespaces on the target (vosrun explain VOS-TRANSLATE), or let the program close \
     it";

/// What a job without namespaces has of its own, besides its numbers ([`numbers`]).
#[derive(Debug, Clone)]
pub struct Translation {
    /// By how much the job's clocks are ahead of those here, nanoseconds.
    pub ahead: Clocks,
    pub nodename: String,
    pub domainname: String,
}

/// Who makes a call.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub tid: i32,
    pub pid: i32,
    /// Host pids of all processes of the job.
    pub processes: &'a dyn Fn() -> BTreeSet<i32>,
}

/// What is done with a call at its entry.
#[derive(Debug)]
pub enum Entry {
    Native,
    /// It is not made; this is its result.
    Answer(i64),
    /// It is made, and [`Call::finish`] is to see its return.
    Watch(Box<Call>),
}

impl Entry {
    fn errno(errno: i32) -> Self {
        Self::Answer(-i64::from(errno))
    }
}

/// A call that was changed, or whose answer has to be.
#[derive(Debug, Clone)]
pub struct Call {
    /// As the program made it.
    asked: Regs,
    then: Then,
}

/// What is done with the answer of a call that has succeeded.
#[derive(Debug, Clone)]
enum Then {
    Nothing,
    /// The result is a number.
    Number,
    /// The same; below -1 a group's (F_GETOWN of fcntl(2)).
    Owner,
    /// At this address is a number; below -1 a group's.
    Word(u64),
    /// There is the number of a pty.
    Pty(u64),
    /// The result is the identifier of an object, found by this key (the job's and the one here).
    Got(Kind, (i32, i32)),
    /// What is told of objects.
    Ipc(ipc::Told),
    /// There is a siginfo, or what waitid(2) makes like one.
    SigInfo(u64),
    Waited(u64),
    /// The result is a signalfd.
    SignalFd,
    /// At these places is what was read of a signalfd.
    Signals(Vec<(u64, u64)>),
    /// There is a `struct flock`.
    Lock(u64),
    /// There is a `struct sysinfo`, whose uptime is ahead by so many seconds.
    Uptime(u64, i64),
    /// There are control messages of one or many messages.
    Received {
        at: u64,
        many: bool,
    },
    /// Lengths of messages were written there, and belong there.
    Lengths {
        from: u64,
        to: u64,
    },
    /// These bytes go there.
    Put(Vec<(u64, Vec<u8>)>),
    /// Where the new thread's number was written in the caller's memory and in its own; 0: not.
    Born {
        parent: u64,
        child: u64,
    },
    /// It was made in place of one of a priority-inheriting futex.
    Inheriting(inheriting::Step),
}

impl Translation {
    /// A thread is at the entry of a call of [`table::TABLE`], with these registers. They are
    /// changed as the kernel shall see them.
    ///
    /// # Errors
    /// `ESRCH` when the thread was killed meanwhile.
    pub fn at_entry(&self, caller: Caller, regs: &Regs) -> io::Result<Entry> {
        let Some(row) = table::find(regs.orig_rax) else { return Ok(Entry::Native) };
        let mut call = Making { caller, regs: *regs, then: Then::Nothing, scratch: 0 };
        let entry = work::begin(self, row.work, &mut call);
        match entry {
            Some(Entry::Answer(value)) => {
                let mut regs = *regs;
                regs.orig_rax = u64::MAX;
                regs.rax = value as u64;
                raw::set_regs(caller.tid, &regs)?;
                Ok(Entry::Answer(value))
            }
            Some(other) => Ok(other),
            None => {
                if arguments(&call.regs) != arguments(regs) {
                    raw::set_regs(caller.tid, &call.regs)?;
                } else if matches!(call.then, Then::Nothing) {
                    return Ok(Entry::Native);
                }
                Ok(Entry::Watch(Box::new(Call { asked: *regs, then: call.then })))
            }
        }
    }
}

/// A call while it is looked at.
struct Making<'a> {
    caller: Caller<'a>,
    /// As the kernel shall see it.
    regs: Regs,
    then: Then,
    /// Bytes used below the stack.
    scratch: u64,
}

/// Below the stack pointer a function may use so much without telling.
const RED_ZONE: u64 = 128;

impl Making<'_> {
    fn arg(&self, index: u8) -> u64 {
        arguments(&self.regs)[usize::from(index)]
    }

    fn set(&mut self, index: u8, value: u64) {
        let r = &mut self.regs;
        let args = [&mut r.rdi, &mut r.rsi, &mut r.rdx, &mut r.r10, &mut r.r8, &mut r.r9];
        if let Some(arg) = args.into_iter().nth(usize::from(index)) {
            *arg = value;
        }
    }

    fn read<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        read_exact(self.caller.tid, at, &mut bytes).ok().map(|()| bytes)
    }

    fn bytes(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        read_exact(self.caller.tid, at, &mut bytes).ok().map(|()| bytes)
    }

    /// Puts content below the stack, for the kernel. None: there is no room; the kernel would find
    /// none either for a signal handler.
    fn place(&mut self, content: &[u8]) -> Option<u64> {
        let len = (content.len() as u64).next_multiple_of(16);
        self.scratch += len;
        let at = self.regs.rsp.checked_sub(RED_ZONE + self.scratch)? & !15;
        write_all(self.caller.tid, at, content).ok()?;
        Some(at)
    }

    /// Points an argument to other content than the program's, as [`Making::place`].
    fn point(&mut self, index: u8, content: &[u8]) -> Option<()> {
        let at = self.place(content)?;
        self.set(index, at);
        Some(())
    }
}

/// The arguments of a call.
fn arguments(r: &Regs) -> [u64; 6] {
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]
}

impl Call {
    /// The call has returned: gives the program its registers, and its answer.
    ///
    /// # Errors
    /// `ESRCH` when the thread was killed meanwhile.
    pub fn finish(self, tid: i32) -> io::Result<()> {
        let now = raw::regs(tid)?;
        let mut regs = now;
        let asked = &self.asked;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = arguments(asked);
        let result = now.rax as i64;
        if let Then::Inheriting(step) = self.then {
            // Memory that cannot be read: the kernel has read it just now.
            if let Err(e) = inheriting::end(tid, step, &mut regs) {
                tracing::debug!("the futex of thread {tid}: {e}");
            }
        } else if let (Then::Owner, ..0) = (&self.then, result) {
            // A group's number may look like an error.
            let known = numbers::to_job_signed(result as i32);
            if result < -4095 || known != 0 {
                regs.rax = i64::from(known) as u64;
            }
        } else if result >= 0 {
            // Memory that cannot be written: the kernel has written it just now.
            if let Err(e) = answer(tid, &self.then, result.unsigned_abs()) {
                tracing::debug!("the answer of a call of thread {tid}: {e}");
            }
            if let Then::Number | Then::Owner | Then::Born { .. } = self.then {
                regs.rax = i64::from(numbers::to_job(result as i32)) as u64;
            }
            if let Some(object) = object(&self.then, result as i32) {
                regs.rax = i64::from(object) as u64;
            }
        }
        if (arguments(&now), now.rax, now.rip) != (arguments(&regs), regs.rax, regs.rip) {
            raw::set_regs(tid, &regs)?;
        }
        Ok(())
    }

    /// Is the result a signalfd, which is to be watched ([`signalfd::Signalfds`])?
    #[must_use]
    pub fn makes_signalfd(&self) -> bool {
        matches!(self.then, Then::SignalFd)
    }

    /// Where the number of a thread that this call makes is written; `None`: it makes none.
    #[must_use]
    pub fn birth(&self) -> Option<(u64, u64)> {
        match self.then {
            Then::Born { parent, child } => Some((parent, child)),
            _ => None,
        }
    }
}

/// The result of a call that answers with an object, if it is another one than the kernel's.
fn object(then: &Then, result: i32) -> Option<i32> {
    match then {
        Then::Got(kind, keys) => Some(objects::found(*kind, result, *keys)),
        Then::Ipc(told) => told.result(),
        _ => None,
    }
}

/// Gives a number of a process in memory the job's meaning.
fn number_at(tid: i32, at: u64) -> io::Result<()> {
    write_number(tid, at, read_word(tid, at)?)
}

fn read_word(tid: i32, at: u64) -> io::Result<i32> {
    let mut word = [0; 4];
    read_exact(tid, at, &mut word)?;
    Ok(i32::from_le_bytes(word))
}

/// Writes the job's number of thread `host` into memory of thread `tid`; not at 0.
///
/// # Errors
/// `EFAULT`, `ESRCH`.
pub fn write_number(tid: i32, at: u64, host: i32) -> io::Result<()> {
    match at {
        0 => Ok(()),
        _ => write_all(tid, at, &numbers::to_job(host).to_le_bytes()),
    }
}

/// Gives numbers in memory the job's meaning, after this result.
fn answer(tid: i32, then: &Then, result: u64) -> io::Result<()> {
    const F_UNLCK: u8 = 2;
    match then {
        Then::Nothing | Then::Number | Then::Owner | Then::Born { .. } | Then::Got(..) => Ok(()),
        Then::SignalFd | Then::Inheriting(_) => Ok(()),
        Then::Signals(places) => signalfd::to_job(tid, places, result),
        Then::Word(at) => {
            let word = numbers::to_job_signed(read_word(tid, *at)?);
            write_all(tid, *at, &word.to_le_bytes())
        }
        Then::Pty(at) => {
            let number = ptys::to_job(read_word(tid, *at)?.cast_unsigned());
            write_all(tid, *at, &number.to_le_bytes())
        }
        Then::Ipc(told) => told.answer(tid),
        Then::Waited(0) | Then::SigInfo(0) => Ok(()),
        Then::Waited(at) => number_at(tid, at + signals::PID),
        Then::SigInfo(at) => {
            let mut info = [0; 128];
            read_exact(tid, *at, &mut info)?;
            signals::to_job(&mut info);
            write_all(tid, *at, &info)
        }
        Then::Lock(at) => {
            let mut lock = [0; 32];
            read_exact(tid, *at, &mut lock)?;
            let pid = read_word(tid, at + 24)?;
            let held = lock[0] != F_UNLCK && pid > 0;
            if held {
                write_number(tid, at + 24, pid)
            } else {
                Ok(())
            }
        }
        Then::Uptime(at, ahead) => {
            let mut seconds = [0; 8];
            read_exact(tid, *at, &mut seconds)?;
            let seconds = i64::from_le_bytes(seconds).saturating_add(*ahead);
            write_all(tid, *at, &seconds.to_le_bytes())
        }
        Then::Received { at, many } => messages::answer(tid, *at, if *many { result } else { 1 }),
        Then::Lengths { from, to } => messages::tell_lengths(tid, *from, *to, result),
        Then::Put(all) => all.iter().try_for_each(|(at, bytes)| write_all(tid, *at, bytes)),
    }
}
