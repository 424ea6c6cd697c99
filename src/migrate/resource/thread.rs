//! What a thread has told the kernel of itself: pointers into its memory, stack for signals,
//! name, restartable sequences.

use serde::{Deserialize, Serialize};

use super::{decode, encode, raw, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::{Processes, Signals};
use crate::capabilities::Capability;
use crate::tracer;
use crate::tracer::inject::{word, Arg, Program};

/// set_tid_address(2) and set_robust_list(2).
pub struct Pointers;

#[derive(Serialize, Deserialize)]
struct PointersState {
    clear_tid: u64,
    robust: (u64, u64),
}

/// prctl(2): where the kernel clears the tid when the thread ends.
const PR_GET_TID_ADDRESS: u64 = 40;

impl Part for Pointers {
    fn name(&self) -> &'static str {
        "thread pointers"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::moves(
                Processes,
                "thread-pointers",
                "robust futexes, the word that is cleared when a thread ends",
            )]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn ask(&self, view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let robust = raw::robust_list(view.tid).map_err(|source| PartError::Io {
            what: format!("robust list of thread {}", view.tid),
            source,
        })?;
        let at = program.data(&[0; 8]);
        let args = [Arg::Num(PR_GET_TID_ADDRESS), Arg::Data(at)];
        let row = program.call(libc::SYS_prctl, "PR_GET_TID_ADDRESS", &args);
        Ok(Box::new(move |_, outcome| {
            outcome.get(row)?;
            let clear_tid = word(outcome.data(at), 0);
            encode("thread pointers", &PointersState { clear_tid, robust })
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let state: PointersState = decode(self.name(), state)?;
        program.call(libc::SYS_set_tid_address, "set_tid_address", &[state.clear_tid.into()]);
        // Also when it is null: the new process has one of the supervisor's.
        let (head, len) = state.robust;
        program.call(libc::SYS_set_robust_list, "set_robust_list", &[head.into(), len.into()]);
        Ok(())
    }
}

/// sigaltstack(2). A thread that is on its alternate stack has it disarmed (SS_AUTODISARM)
/// or cannot change it; the new thread is told from the batch stub, which uses no stack.
pub struct AltStack;

impl Part for AltStack {
    fn name(&self) -> &'static str {
        "sigaltstack"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const { &[Capability::moves(Signals, "alternate-stack", "alternate signal stacks")] }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn ask(&self, _view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let at = program.data(&[0; 24]);
        let args = [Arg::Num(0), Arg::Data(at)];
        let row = program.call(libc::SYS_sigaltstack, "sigaltstack", &args);
        Ok(Box::new(move |_, outcome| {
            outcome.get(row)?;
            Ok(outcome.data(at).to_vec())
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let Ok(mut stack): Result<[u8; 24], _> = state.try_into() else {
            return Err(PartError::State(self.name()));
        };
        // SS_ONSTACK is an answer only; what can be set is disabled or not, and autodisarm.
        stack[8] &= !(libc::SS_ONSTACK as u8);
        let at = Arg::Data(program.data(&stack));
        program.call(libc::SYS_sigaltstack, "sigaltstack", &[at, Arg::Num(0)]);
        Ok(())
    }
}

/// Name of a thread: PR_GET_NAME, PR_SET_NAME (prctl(2)).
pub struct Name;

impl Part for Name {
    fn name(&self) -> &'static str {
        "comm"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const { &[Capability::moves(Processes, "thread-names", "names of threads (PR_SET_NAME)")] }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn ask(&self, _view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let at = program.data(&[0; 16]);
        let args = [Arg::Num(libc::PR_GET_NAME as u64), Arg::Data(at)];
        let row = program.call(libc::SYS_prctl, "PR_GET_NAME", &args);
        Ok(Box::new(move |_, outcome| {
            outcome.get(row)?;
            Ok(outcome.data(at).to_vec())
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let at = Arg::Data(program.data(state));
        program.call(libc::SYS_prctl, "PR_SET_NAME", &[(libc::PR_SET_NAME as u64).into(), at]);
        Ok(())
    }
}

/// The rseq(2) area. Told last: from then on the kernel writes into it.
pub struct Rseq;

impl Part for Rseq {
    fn name(&self) -> &'static str {
        "rseq"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const { &[Capability::moves(Processes, "rseq", "restartable sequences")] }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn ask(&self, view: &View, _program: &mut Program) -> Result<Answer, PartError> {
        // Without the request (before Linux 5.13) no glibc of that age registers rseq either.
        let state = tracer::raw::rseq(view.tid).unwrap_or_default();
        let state = encode(self.name(), &state)?;
        Ok(Box::new(move |_, _| Ok(state)))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let (at, len, signature, flags): (u64, u32, u32, u32) = decode(self.name(), state)?;
        if at != 0 {
            let args = [at.into(), u64::from(len).into(), u64::from(flags).into()];
            let args = [args[0], args[1], args[2], u64::from(signature).into()];
            program.call(libc::SYS_rseq, "rseq", &args);
        }
        Ok(())
    }
}
