//! Policy, nice value, affinity and I/O priority of a thread (sched(7), ioprio_set(2)).

use std::fmt::Write;
use std::io;

use serde::{Deserialize, Serialize};

use super::raw::{self, SchedAttr};
use super::{decode, encode, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Attributes;
use crate::capabilities::Capability;
use crate::control::{Finding, Severity};
use crate::migrate::cpus::{is_everywhere, machine};
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

fn error(tid: i32) -> impl Fn(io::Error) -> PartError {
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
                    "nice",
                    "nice values of threads, as far as the target grants them",
                ),
                Capability::moves(
                    Attributes,
                    "policy",
                    "scheduling policies, as far as the target grants them",
                ),
                Capability::moves(
                    Attributes,
                    "ioprio",
                    "I/O priorities, as far as the target grants them",
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
    fn read(&self, view: &View) -> Result<Option<Vec<u8>>, PartError> {
        let error = error(view.job_tid);
        let affinity = raw::affinity(view.tid).map_err(&error)?;
        let state = State {
            attr: attr(view.tid).map_err(&error)?,
            everywhere: is_everywhere(&affinity),
            affinity,
            ioprio: raw::ioprio(view.tid).unwrap_or(0),
        };
        encode(self.name(), &state).map(Some)
    }
    fn tell(&self, _state: &[u8], _to: &Told, _program: &mut Program) -> Result<(), PartError> {
        Ok(())
    }
    fn conclude(&self, state: &[u8], to: &Told) -> Result<(), PartError> {
        let state: State = decode(self.name(), state)?;
        let error = error(to.job_tid);
        // Before the policy: SCHED_DEADLINE wants all CPUs.
        give_affinity(to, &state).map_err(&error)?;
        let now = attr(to.tid).map_err(&error)?;
        give_attr(to, &now, &state.attr).map_err(&error)?;
        if state.ioprio != raw::ioprio(to.tid).unwrap_or(0) {
            if let Err(e) = raw::set_ioprio(to.tid, state.ioprio) {
                let text = format!("I/O priority {:#x} is not granted: {e}", state.ioprio);
                to.missed.add(format!("thread {}: {text}", to.job_tid));
            }
        }
        Ok(())
    }
}

/// sched_getattr(2), without what is only an answer: threads of other policies than
/// SCHED_DEADLINE tell as their runtime the slice that the machine gives to everybody, unless they
/// have one of their own.
fn attr(tid: i32) -> io::Result<SchedAttr> {
    let mut attr = raw::sched_attr(tid)?;
    if attr.policy != libc::SCHED_DEADLINE as u32 && attr.runtime == raw::sched_attr(0)?.runtime {
        attr.runtime = 0;
    }
    // sched_getattr(2) tells that of SCHED_OTHER and SCHED_BATCH only.
    attr.nice = raw::nice(tid)?;
    attr.size = 0;
    Ok(attr)
}

/// Gives policy and nice value, as far as the target grants them. The nice value is one of its own:
/// it goes for SCHED_OTHER and SCHED_BATCH, and waits while a thread has another policy.
fn give_attr(to: &Told, now: &SchedAttr, wanted: &SchedAttr) -> io::Result<()> {
    let with_old_nice = SchedAttr { nice: now.nice, ..*wanted };
    if *now != with_old_nice {
        let text = format!("policy {} (priority {})", policy(wanted.policy), wanted.priority);
        grant(to, &text, raw::set_sched_attr(to.tid, &with_old_nice))?;
    }
    if raw::nice(to.tid)? != wanted.nice {
        let text = format!("nice value {}", wanted.nice);
        grant(to, &text, raw::set_nice(to.tid, wanted.nice))?;
    }
    Ok(())
}

/// Says what the target does not grant.
fn grant(to: &Told, what: &str, given: io::Result<()>) -> io::Result<()> {
    match given {
        // EBUSY: its deadlines could not be kept here (sched(7)).
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EBUSY)) => {
            to.missed.add(format!("thread {}: {what} is not granted: {e}", to.job_tid));
            Ok(())
        }
        other => other,
    }
}

fn policy(number: u32) -> &'static str {
    match number as i32 {
        libc::SCHED_OTHER => "SCHED_OTHER",
        libc::SCHED_FIFO => "SCHED_FIFO",
        libc::SCHED_RR => "SCHED_RR",
        libc::SCHED_BATCH => "SCHED_BATCH",
        libc::SCHED_IDLE => "SCHED_IDLE",
        libc::SCHED_DEADLINE => "SCHED_DEADLINE",
        _ => "of another scheduler",
    }
}

/// The CPUs of `wanted` that this machine has; if there is none, all that we may run on.
fn give_affinity(to: &Told, state: &State) -> io::Result<()> {
    if state.everywhere {
        return raw::set_affinity(to.tid, &own_mask()?);
    }
    let missing = missing(&state.affinity, &machine()?);
    if is_empty(&missing) {
        return raw::set_affinity(to.tid, &state.affinity);
    }
    let text = format!("CPUs {} of its affinity are not here", list(&missing));
    to.missed.add(format!("thread {}: {text}", to.job_tid));
    match raw::set_affinity(to.tid, &state.affinity) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => raw::set_affinity(to.tid, &own_mask()?),
        other => other,
    }
}

/// The affinity of a running thread, unless it is `all` CPUs of this machine.
#[must_use]
pub fn bound_to(tid: i32, all: &[u64]) -> Option<Vec<u64>> {
    raw::affinity(tid).ok().filter(|mask| mask != all)
}

/// What the target says of the affinities of a job ([`bound_to`]).
#[must_use]
pub fn judge(affinities: &[Vec<u64>]) -> Vec<Finding> {
    let here = machine().unwrap_or_default();
    let lacking = affinities.iter().filter(|mask| !is_empty(&missing(mask, &here)));
    lacking.map(|mask| warning(mask, &here)).collect()
}

fn warning(mask: &[u64], here: &[u64]) -> Finding {
    let common: Vec<u64> = mask.iter().zip(here).map(|(a, b)| a & b).collect();
    let rest = match is_empty(&common) {
        true => "all of its CPUs".into(),
        false => format!("CPUs {} only", list(&common)),
    };
    Finding {
        severity: Severity::Warning,
        code: "VOS-AFFINITY".into(),
        object: format!("CPUs {} of an affinity", list(mask)),
        cause: format!("the target has not all of them: the threads may run on {rest} there"),
        remedy: "nothing to do, unless the program counts on these CPUs".into(),
    }
}

/// CPUs of `mask` that are not in `here`.
fn missing(mask: &[u64], here: &[u64]) -> Vec<u64> {
    let here = here.iter().copied().chain(std::iter::repeat(0));
    mask.iter().zip(here).map(|(wanted, has)| wanted & !has).collect()
}

fn is_empty(mask: &[u64]) -> bool {
    mask.iter().all(|word| *word == 0)
}

/// `0,2-5`: the CPUs of a mask (cpuset(7), "List format").
fn list(mask: &[u64]) -> String {
    let has = |cpu: usize| mask.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 != 0);
    let (mut text, mut cpu) = (String::new(), 0);
    while cpu < mask.len() * 64 {
        let first = cpu;
        while has(cpu) {
            cpu += 1;
        }
        let comma = if text.is_empty() { "" } else { "," };
        // Writing into a String does not fail.
        let _ = match cpu - first {
            0 => Ok(()),
            1 => write!(text, "{comma}{first}"),
            _ => write!(text, "{comma}{first}-{}", cpu - 1),
        };
        cpu += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_as_lists() {
        assert_eq!(list(&[0b1011_1101]), "0,2-5,7");
        assert_eq!(list(&[1 << 63, 1]), "63-64");
        assert_eq!(list(&[0]), "");
    }

    #[test]
    fn what_the_target_lacks() {
        assert_eq!(missing(&[0b110, 1], &[0b10]), [0b100, 1]);
        assert!(is_empty(&missing(&[0b10], &[0b11, 1])));
        let said = warning(&[0b110], &[0b11]);
        assert_eq!(said.code, "VOS-AFFINITY");
        assert!(said.cause.contains("CPUs 1 only"), "{}", said.cause);
        let none = warning(&[0b100], &[0b11]);
        assert!(none.cause.contains("all of its CPUs"), "{}", none.cause);
        assert!(judge(&[vec![0; 128]]).is_empty());
        let beyond = [vec![0; 2], vec![u64::MAX; 200]].concat();
        assert_eq!(judge(&[beyond]).len(), 1);
    }

    #[test]
    fn a_common_slice_is_no_attribute() {
        let own = attr(0).unwrap();
        assert_eq!((own.size, own.runtime), (0, 0));
    }
}
