//! Resource limits (getrlimit(2)).

use super::{decode, encode, raw, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Attributes;
use crate::capabilities::Capability;
use crate::tracer::inject::{Arg, Program};
use crate::tracer::memory::read_proc;

/// All sixteen limits, soft and hard. A hard limit above what the target grants is cut to it.
pub struct Limits;

const COUNT: usize = 16;
const INFINITY: u64 = u64::MAX;

/// Soft and hard values, by the numbers of the resources.
type All = Vec<(u64, u64)>;

/// The limits of a process. prlimit(2) tells of those with the same ids, and faster.
fn read(pid: i32) -> Result<All, PartError> {
    let all: std::io::Result<All> = (0..COUNT as u32).map(|n| raw::limit(pid, n)).collect();
    all.or_else(|_| shown(pid))
}

/// `/proc/PID/limits` (proc_pid_limits(5)), which tells of every process.
fn shown(pid: i32) -> Result<All, PartError> {
    let path = format!("/proc/{pid}/limits");
    let failed = |source| PartError::Io { what: path.clone(), source };
    let text = read_proc(&path).map_err(failed)?;
    parse(&text).ok_or(PartError::State("limits"))
}

/// A heading, then a line for each resource: its name in 25 columns, soft and hard value, unit.
fn parse(text: &str) -> Option<All> {
    const NAME: usize = 25;
    let value = |word: &str| match word {
        "unlimited" => Some(INFINITY),
        number => number.parse().ok(),
    };
    let limit = |line: &str| {
        let mut words = line.get(NAME..)?.split_whitespace();
        Some((value(words.next()?)?, value(words.next()?)?))
    };
    let all: All = text.lines().skip(1).map(limit).collect::<Option<_>>()?;
    (all.len() == COUNT).then_some(all)
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
    fn read(&self, view: &View) -> Result<Option<Vec<u8>>, PartError> {
        encode(self.name(), &read(view.pid)?).map(Some)
    }
    fn tell(&self, state: &[u8], to: &Told, program: &mut Program) -> Result<(), PartError> {
        let all: All = decode(self.name(), state)?;
        let (may_raise, now) = (may_raise(), read(to.pid)?);
        for ((resource, (soft, hard)), here) in (0u64..).zip(all).zip(now) {
            if (soft, hard) == here {
                continue;
            }
            if hard > here.1 && !may_raise {
                let text = format!("hard limit {hard} of resource {resource} is {} here", here.1);
                to.missed.add(format!("process {}: {text}", to.job_pid));
            }
            let hard = if may_raise { hard } else { hard.min(here.1) };
            let mut value = soft.min(hard).to_le_bytes().to_vec();
            value.extend_from_slice(&hard.to_le_bytes());
            let at = Arg::Data(program.data(&value));
            let args = [Arg::Num(0), resource.into(), at, Arg::Num(0)];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_limits_of_this_process() {
        use nix::sys::resource::{getrlimit, Resource};
        let own = std::process::id() as i32;
        let all = read(own).unwrap();
        assert_eq!(all, shown(own).unwrap());
        for resource in [Resource::RLIMIT_CPU, Resource::RLIMIT_NOFILE, Resource::RLIMIT_RTTIME] {
            assert_eq!(all[resource as usize], getrlimit(resource).unwrap());
        }
    }

    #[test]
    fn a_text_of_other_resources_is_refused() {
        let line =
            "Max realtime priority     0                    unlimited                      \n";
        assert_eq!(parse(&format!("Limit\n{line}")), None);
        assert_eq!(parse(&format!("Limit\n{}", line.repeat(16))), Some(vec![(0, INFINITY); 16]));
    }
}
