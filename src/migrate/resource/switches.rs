//! What prctl(2) and membarrier(2) switch on and off, and where the calls of a thread go.

use serde::{Deserialize, Serialize};

use super::{decode, encode, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Attributes;
use crate::capabilities::Capability;
use crate::tracer::inject::{Arg, Program};
use crate::tracer::raw::{self, Dispatch};

const PR_GET_MDWE: u64 = 66;
const PR_SET_MDWE: u64 = 65;
const PR_GET_MEMORY_MERGE: u64 = 68;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_GET_IO_FLUSHER: u64 = 58;
const PR_SET_IO_FLUSHER: u64 = 57;
const PR_MCE_KILL_SET: u64 = 1;
const PR_MCE_KILL_DEFAULT: u64 = 2;
/// What PR_SET_SPECULATION_CTRL is about: store bypass, indirect branches, flushes of the L1 cache.
const SPECULATIONS: [u64; 3] = [0, 1, 2];
/// PR_GET_SPECULATION_CTRL: it can be set for each thread.
const PR_SPEC_PRCTL: u64 = 1;
const PR_SPEC_ENABLE: u64 = 2;

fn number(option: i32) -> Arg {
    Arg::Num(option as u64)
}

/// The answer of a call that this kernel may not have, or may not grant.
fn or_else(value: i64, otherwise: u64) -> u64 {
    u64::try_from(value).unwrap_or(otherwise)
}

/// Switches of a thread: the time-stamp counter (PR_SET_TSC), memory errors (PR_MCE_KILL),
/// PR_SET_IO_FLUSHER, speculation.
pub struct OfThread;

#[derive(Debug, Serialize, Deserialize)]
struct ThreadState {
    tsc: u32,
    memory_errors: u64,
    io_flusher: u64,
    speculation: [u64; 3],
    dispatch: Option<Dispatch>,
}

impl Part for OfThread {
    fn name(&self) -> &'static str {
        "thread switches"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Attributes,
                    "tsc",
                    "the time-stamp counter switched off (PR_SET_TSC)",
                ),
                Capability::moves(
                    Attributes,
                    "thread-switches",
                    "PR_MCE_KILL, PR_SET_IO_FLUSHER, speculation (PR_SET_SPECULATION_CTRL)",
                ),
                Capability::moves(
                    Attributes,
                    "dispatch",
                    "calls that a thread dispatches itself (PR_SET_SYSCALL_USER_DISPATCH)",
                ),
            ]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn ask(&self, view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let at = program.data(&[0; 8]);
        let args = [number(libc::PR_GET_TSC), Arg::Data(at)];
        let tsc = program.call(libc::SYS_prctl, "PR_GET_TSC", &args);
        let mut get = |option: u64, what, of: u64| {
            program.call(libc::SYS_prctl, what, &[option.into(), of.into()])
        };
        let memory_errors = get(libc::PR_MCE_KILL_GET as u64, "PR_MCE_KILL_GET", 0);
        let io_flusher = get(PR_GET_IO_FLUSHER, "PR_GET_IO_FLUSHER", 0);
        let option = libc::PR_GET_SPECULATION_CTRL as u64;
        let speculation = SPECULATIONS.map(|which| get(option, "PR_GET_SPECULATION_CTRL", which));
        let dispatch = view.dispatch;
        Ok(Box::new(move |_, outcome| {
            outcome.get(tsc)?;
            let state = ThreadState {
                tsc: outcome.int(at),
                memory_errors: or_else(outcome.raw(memory_errors), PR_MCE_KILL_DEFAULT),
                io_flusher: or_else(outcome.raw(io_flusher), 0),
                speculation: speculation.map(|row| or_else(outcome.raw(row), 0)),
                dispatch,
            };
            encode("thread switches", &state)
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let state: ThreadState = decode(self.name(), state)?;
        if state.tsc != libc::PR_TSC_ENABLE as u32 {
            let args = [number(libc::PR_SET_TSC), u64::from(state.tsc).into()];
            program.call(libc::SYS_prctl, "PR_SET_TSC", &args);
        }
        if state.memory_errors != PR_MCE_KILL_DEFAULT {
            let args =
                [number(libc::PR_MCE_KILL), PR_MCE_KILL_SET.into(), state.memory_errors.into()];
            program.call_if_granted(libc::SYS_prctl, "PR_MCE_KILL", &args);
        }
        if state.io_flusher != 0 {
            let args = [PR_SET_IO_FLUSHER.into(), state.io_flusher.into()];
            program.call_if_granted(libc::SYS_prctl, "PR_SET_IO_FLUSHER", &args);
        }
        for (which, how) in SPECULATIONS.into_iter().zip(state.speculation) {
            // What is enabled is so at the begin, unless the target is set up otherwise.
            if how & PR_SPEC_PRCTL != 0 && how & PR_SPEC_ENABLE == 0 {
                let option = number(libc::PR_SET_SPECULATION_CTRL);
                let args = [option, which.into(), (how & !PR_SPEC_PRCTL).into()];
                program.call_if_granted(libc::SYS_prctl, "PR_SET_SPECULATION_CTRL", &args);
            }
        }
        Ok(())
    }
    fn conclude(&self, state: &[u8], to: &Told) -> Result<(), PartError> {
        let state: ThreadState = decode(self.name(), state)?;
        if state.dispatch.is_none() {
            return Ok(());
        }
        raw::set_dispatch(to.tid, state.dispatch).map_err(|source| PartError::Io {
            what: format!("dispatch of the calls of thread {}", to.job_tid),
            source,
        })
    }
}

/// Switches of the whole memory that need a privilege: PR_SET_THP_DISABLE, PR_SET_MEMORY_MERGE.
pub struct OfMemory;

#[derive(Debug, Serialize, Deserialize)]
struct MemoryState {
    huge_pages_off: u64,
    merge: u64,
}

impl Part for OfMemory {
    fn name(&self) -> &'static str {
        "memory switches"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::moves(
                Attributes,
                "memory-switches",
                "PR_SET_THP_DISABLE; PR_SET_MEMORY_MERGE, if the target grants it",
            )]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }
    fn ask(&self, _view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let huge = [number(libc::PR_GET_THP_DISABLE)];
        let huge = program.call(libc::SYS_prctl, "PR_GET_THP_DISABLE", &huge);
        let merge =
            program.call(libc::SYS_prctl, "PR_GET_MEMORY_MERGE", &[PR_GET_MEMORY_MERGE.into()]);
        Ok(Box::new(move |_, outcome| {
            let state = MemoryState {
                huge_pages_off: or_else(outcome.raw(huge), 0),
                merge: or_else(outcome.raw(merge), 0),
            };
            encode("memory switches", &state)
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let state: MemoryState = decode(self.name(), state)?;
        if state.huge_pages_off != 0 {
            // The other bits of the answer are flags (Linux 6.18).
            let option = number(libc::PR_SET_THP_DISABLE);
            let args = [option, Arg::Num(1), (state.huge_pages_off & !1).into()];
            program.call(libc::SYS_prctl, "PR_SET_THP_DISABLE", &args);
        }
        if state.merge != 0 {
            let args = [PR_SET_MEMORY_MERGE.into(), state.merge.into()];
            program.call_if_granted(libc::SYS_prctl, "PR_SET_MEMORY_MERGE", &args);
        }
        Ok(())
    }
}

/// Told late: from then on no memory becomes executable that was not (PR_SET_MDWE); and
/// registrations with membarrier(2).
pub struct Barriers;

/// The commands of membarrier(2) by which a process registers.
const REGISTRATIONS: [u64; 4] = [1 << 2, 1 << 4, 1 << 6, 1 << 8];
/// MEMBARRIER_CMD_GET_REGISTRATIONS (Linux 6.3): the commands that were made.
const GET_REGISTRATIONS: u64 = 1 << 9;

#[derive(Debug, Serialize, Deserialize)]
struct BarrierState {
    registrations: u64,
    write_or_execute: u64,
}

impl Part for Barriers {
    fn name(&self) -> &'static str {
        "barriers"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(Attributes, "membarrier", "registrations of membarrier(2)"),
                Capability::moves(
                    Attributes,
                    "mdwe",
                    "memory to be written to or executed (PR_SET_MDWE)",
                ),
            ]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }
    fn ask(&self, _view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let all = [GET_REGISTRATIONS.into()];
        let all = program.call(libc::SYS_membarrier, "MEMBARRIER_CMD_GET_REGISTRATIONS", &all);
        let mdwe = program.call(libc::SYS_prctl, "PR_GET_MDWE", &[PR_GET_MDWE.into()]);
        Ok(Box::new(move |_, outcome| {
            let state = BarrierState {
                // A registration that was not made shows only by errors that do not come.
                registrations: or_else(outcome.raw(all), REGISTRATIONS.iter().sum()),
                write_or_execute: or_else(outcome.raw(mdwe), 0),
            };
            encode("barriers", &state)
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let state: BarrierState = decode(self.name(), state)?;
        for command in REGISTRATIONS.into_iter().filter(|c| state.registrations & c != 0) {
            program.call_if_granted(libc::SYS_membarrier, "membarrier", &[command.into()]);
        }
        if state.write_or_execute != 0 {
            let args = [PR_SET_MDWE.into(), state.write_or_execute.into()];
            program.call(libc::SYS_prctl, "PR_SET_MDWE", &args);
        }
        Ok(())
    }
}
