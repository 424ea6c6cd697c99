//! Policy, nice value, affinity and I/O priority of a thread (sched(7), ioprio_set(2)).

use serde::{Deserialize, Serialize};

use super::raw::{self, SchedAttr};
use super::{decode, encode, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Attributes;
use crate::capabilities::Capability;
use crate::migrate::near::own_mask;
use crate::tracer::inject::Program;

/// Set from outside: the supervisor may do what a job without capabilities may not.
pub struct Schedule;

#[derive(Serialize, Deserialize)]
struct State {
    attr: SchedAttr,
    affinity: Vec<u64>,
    /// All CPUs of the machine were allowed: then all of the target's are.
    everywhere: bool,
    ioprio: i64,
}

fn io(tid: i32) -> impl Fn(std::io::Error) -> PartError {
    move |source| PartError::Io { what: format!("scheduling of thread {tid}"), source }
}

impl Part for Schedule {
    fn name(&self) -> &'static str {
        "schedule"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Attributes,
                    "schedule",
                    "nice value, scheduling policy, I/O priority, as far as the target grants them",
                ),
                Capability::moves(
                    Attributes,
                    "affinity",
                    "CPU affinity: the CPUs of it that the target has",
                ),
            ]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn ask(&self, view: &View, _program: &mut Program) -> Result<Answer, PartError> {
        let affinity = raw::affinity(view.tid).map_err(io(view.tid))?;
        // The supervisor is not pinned, so its own mask tells what "everywhere" is.
        let everywhere = own_mask().is_ok_and(|own| own == affinity);
        let state = State {
            attr: raw::sched_attr(view.tid).map_err(io(view.tid))?,
            affinity,
            everywhere,
            ioprio: raw::ioprio(view.tid).unwrap_or(0),
        };
        let state = encode(self.name(), &state)?;
        Ok(Box::new(move |_, _| Ok(state)))
    }
    fn tell(&self, _state: &[u8], _to: &Told, _program: &mut Program) -> Result<(), PartError> {
        Ok(())
    }
    fn conclude(&self, state: &[u8], to: &Told) -> Result<(), PartError> {
        let state: State = decode(self.name(), state)?;
        let own = raw::sched_attr(to.tid).map_err(io(to.tid))?;
        if (own.policy, own.nice, own.priority)
            != (state.attr.policy, state.attr.nice, state.attr.priority)
        {
            give_attr(to.tid, &state.attr)?;
        }
        // The kernel takes the intersection with the CPUs it has; none at all is EINVAL.
        let everywhere = own_mask().map_err(io(to.tid))?;
        let wanted = if state.everywhere { &everywhere } else { &state.affinity };
        match raw::set_affinity(to.tid, wanted) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                tracing::warn!("thread {}: none of its CPUs is here", to.job_tid);
                raw::set_affinity(to.tid, &everywhere).map_err(io(to.tid))?;
            }
            other => other.map_err(io(to.tid))?,
        }
        if state.ioprio != 0 && raw::set_ioprio(to.tid, state.ioprio).is_err() {
            tracing::warn!("thread {}: I/O priority {:#x} not granted", to.job_tid, state.ioprio);
        }
        Ok(())
    }
}

/// Gives policy and nice value, or says that the target does not grant them.
fn give_attr(tid: i32, attr: &SchedAttr) -> Result<(), PartError> {
    match raw::set_sched_attr(tid, attr) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            tracing::warn!("thread {tid}: policy {} nice {} not granted", attr.policy, attr.nice);
            Ok(())
        }
        other => other.map_err(io(tid)),
    }
}
