//! Resource limits (getrlimit(2)).

use super::{decode, encode, raw, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Attributes;
use crate::capabilities::Capability;
use crate::tracer::inject::{Arg, Program};

/// All sixteen limits, soft and hard. A hard limit above what the target grants is cut to it.
pub struct Limits;

const COUNT: u32 = 16;

fn limit(pid: i32, resource: u32) -> Result<(u64, u64), PartError> {
    raw::limit(pid, resource).map_err(|source| PartError::Io {
        what: format!("limit {resource} of process {pid}"),
        source,
    })
}

impl Part for Limits {
    fn name(&self) -> &'static str {
        "limits"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::moves(
                Attributes,
                "limits",
                "resource limits, as far as the target grants them",
            )]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }
    fn ask(&self, view: &View, _program: &mut Program) -> Result<Answer, PartError> {
        let all: Result<Vec<_>, _> = (0..COUNT).map(|r| limit(view.pid, r)).collect();
        let state = encode(self.name(), &all?)?;
        Ok(Box::new(move |_, _| Ok(state)))
    }
    fn tell(&self, state: &[u8], to: &Told, program: &mut Program) -> Result<(), PartError> {
        let all: Vec<(u64, u64)> = decode(self.name(), state)?;
        let may_raise = may_raise();
        for (resource, (soft, hard)) in (0..COUNT).zip(all) {
            let here = limit(to.pid, resource)?;
            if (soft, hard) == here {
                continue;
            }
            let hard = if may_raise { hard } else { hard.min(here.1) };
            let mut value = soft.min(hard).to_le_bytes().to_vec();
            value.extend_from_slice(&hard.to_le_bytes());
            let at = Arg::Data(program.data(&value));
            let args = [Arg::Num(0), u64::from(resource).into(), at, Arg::Num(0)];
            program.call(libc::SYS_prlimit64, "prlimit64", &args);
        }
        Ok(())
    }
}

/// May this process raise a hard limit (CAP_SYS_RESOURCE, capabilities(7))? Asked by the
/// effective set of the supervisor, which the new process shares before its credentials.
fn may_raise() -> bool {
    crate::tracer::memory::status_field(std::process::id() as i32, "CapEff:")
        .ok()
        .and_then(|hex| u64::from_str_radix(&hex, 16).ok())
        .is_some_and(|caps| caps & (1 << 24) != 0)
}
