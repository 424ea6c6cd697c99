//! Keyrings of a thread, of a process, of a session (keyrings(7)). Their keys are of this kernel and
//! mostly secrets that it keeps from the program too: they stay, which the report of the move says.

use serde::{Deserialize, Serialize};

use super::{decode, encode, raw, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Attributes;
use crate::capabilities::{Capability, Support};
use crate::control::{Finding, Severity};
use crate::tracer::inject::{Outcome, Program};

const KEYCTL_GET_KEYRING_ID: u64 = 0;
const THREAD: i32 = -1;
const PROCESS: i32 = -2;
const SESSION: i32 = -3;
/// The one of a user who has no session keyring.
const USER_SESSION: i32 = -5;

/// The keyrings that a thread has and its supervisor has not.
pub struct Keyrings;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    thread: bool,
    process: bool,
    session: bool,
}

/// The warning of a job that has made keys or keyrings.
#[must_use]
pub fn warning() -> Finding {
    Finding {
        severity: Severity::Warning,
        code: "VOS-KEYRING".into(),
        object: "keyrings".into(),
        cause: "the program has made keys or keyrings, which stay on this machine".into(),
        remedy: "nothing to do if it can do without them, or makes them anew".into(),
    }
}

/// The keyrings behind [`THREAD`], [`PROCESS`], [`SESSION`] and [`USER_SESSION`]; `None`: there
/// is none, or none that the caller may see.
type Ids = [Option<i64>; 4];

const ASKED: [i32; 4] = [THREAD, PROCESS, SESSION, USER_SESSION];

/// `supervisor` is its session keyring.
fn own([thread, process, session, user]: Ids, supervisor: Option<i64>) -> State {
    State {
        thread: thread.is_some(),
        process: process.is_some(),
        session: session.is_some() && session != supervisor && session != user,
    }
}

impl Part for Keyrings {
    fn name(&self) -> &'static str {
        "keyrings"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::new(
                Attributes,
                "keyrings",
                "keyrings (keyrings(7)): those of the target take their place, which is said",
                Support::Warned("VOS-KEYRING"),
            )
            .attached(Support::Lost)]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    /// Only those are asked for that exist; but the kernel makes a user's keyrings at the first
    /// question for them, and takes that of the user's session for a missing one
    /// (lookup_user_key, security/keys/process_keys.c).
    fn ask(&self, view: &View, program: &mut Program) -> Result<Answer, PartError> {
        if !view.keys {
            let none = encode(self.name(), &State::default())?;
            return Ok(Box::new(move |_, _| Ok(none)));
        }
        let rows = ASKED.map(|id| {
            let args = [KEYCTL_GET_KEYRING_ID, id as i64 as u64, 0].map(Into::into);
            program.call(libc::SYS_keyctl, "KEYCTL_GET_KEYRING_ID", &args)
        });
        Ok(Box::new(move |_, outcome: &Outcome| {
            let ids = rows.map(|row| Some(outcome.raw(row)).filter(|id| *id >= 0));
            encode("keyrings", &own(ids, raw::keyring(SESSION).ok()))
        }))
    }
    fn tell(&self, state: &[u8], to: &Told, _program: &mut Program) -> Result<(), PartError> {
        let State { thread, process, session } = decode(self.name(), state)?;
        let pid = to.job_pid;
        if thread {
            to.missed.add(format!("thread {} has lost its keyring", to.job_tid));
        }
        if process {
            to.missed.add(format!("process {pid} has lost its keyring"));
        }
        if session {
            to.missed.add(format!("process {pid} has lost its session's keyring"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_that_the_supervisor_has_too_is_not_its_own() {
        let none = State::default();
        assert_eq!(own([None, None, Some(5), Some(7)], Some(5)), none);
        assert_eq!(own([None, None, Some(7), Some(7)], Some(5)), none);
        assert_eq!(own([None, None, None, None], None), none);
        let session = State { session: true, ..State::default() };
        assert_eq!(own([None, None, Some(6), Some(7)], Some(5)), session);
        let own = own([Some(1), Some(2), Some(5), None], Some(5));
        assert_eq!(own, State { thread: true, process: true, session: false });
    }
}
