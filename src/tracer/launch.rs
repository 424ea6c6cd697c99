//! Starting a program so that it cannot tell vosrun from a shell.
//!
//! ```text
//! fork ─► child waits at a gate ─► SEIZE ─► gate opens ─► dispositions, mask, filter, execvp
//!                                                            │ exec event: stopped, running next
//!                                                            └ errno through a close-on-exec pipe
//! ```
//! The child stays in vosrun's process group and session and keeps vosrun's terminal,
//! directory, umask, limits and environment.

use std::ffi::CString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};

use libc::sock_filter;
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::unistd::execvp;

use super::stop::{self, Exit, Stop};
use super::{attach, raw};

/// What to start.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The program, searched in PATH as execvp(3) does, and its arguments.
    pub argv: &'a [CString],
    /// The signal mask that vosrun was started with.
    pub mask: &'a SigSet,
    /// The filter it gets.
    pub filter: &'a [sock_filter],
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The program is in its first instruction, in PTRACE_EVENT_EXEC stop.
    Started { pid: i32, filtered: bool },
    /// execvp(3) failed with this errno.
    NotExecuted(i32),
    /// A signal killed it before it could exec.
    Died(Exit),
}

/// Tags of the messages through the report pipe; an errno follows each.
const NO_FILTER: u8 = b'f';
const NO_EXEC: u8 = b'x';

/// Starts a program.
///
/// # Errors
/// When fork(2), pipe(2) or PTRACE_SEIZE fail; the latter says why (see
/// [`attach::AttachError`]).
pub fn launch(plan: &Plan) -> Result<Outcome, attach::AttachError> {
    let (report, reporter) = io::pipe()?;
    let pid = fork_seized(|| become_program(plan, reporter))?;
    until_exec(pid, report).map_err(Into::into)
}

/// Forks a child that is seized before it runs `child` and exits with its result.
///
/// # Errors
/// As [`launch`].
pub fn fork_seized(child: impl FnOnce() -> i32) -> Result<i32, attach::AttachError> {
    let (gate, mut opener) = io::pipe()?;
    let Some(pid) = raw::fork()? else {
        drop(opener);
        let seized = pass(gate);
        raw::exit_now(if seized { child() } else { 125 })
    };
    let seized = raw::seize(pid).map_err(|e| attach::explain(pid, e));
    if let Err(e) = seized {
        drop(opener);
        let _ = raw::wait4(pid, libc::__WALL);
        return Err(e);
    }
    opener.write_all(&[1])?;
    Ok(pid)
}

/// Waits at the gate; false when the parent gave up.
fn pass(mut gate: PipeReader) -> bool {
    gate.read_exact(&mut [0]).is_ok()
}

/// In the child: everything back to what vosrun inherited, then exec. Returns only when
/// that failed.
fn become_program(plan: &Plan, mut reporter: PipeWriter) -> i32 {
    for fd in raw::closed_at_start() {
        raw::close(fd);
    }
    let _ = raw::restore_sigpipe();
    if let Err(e) = install(plan.filter) {
        tell(&mut reporter, NO_FILTER, e.raw_os_error().unwrap_or(0));
    }
    // Last: a signal that arrived meanwhile is delivered here, with its default action.
    let _ = plan.mask.thread_set_mask();
    let Err(errno) = execvp(&plan.argv[0], plan.argv);
    tell(&mut reporter, NO_EXEC, errno as i32);
    127
}

/// Installs the filter; no_new_privs is set only where the kernel insists on it, as it
/// takes effect on set-user-ID programs.
fn install(filter: &[sock_filter]) -> io::Result<()> {
    match raw::set_filter(filter) {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
            prctl::set_no_new_privs()?;
            raw::set_filter(filter)
        }
        other => other,
    }
}

fn tell(reporter: &mut PipeWriter, tag: u8, errno: i32) {
    let [a, b, c, d] = errno.to_le_bytes();
    // Nobody is left to tell when this fails.
    let _ = reporter.write_all(&[tag, a, b, c, d]);
}

/// Lets the child run until it has executed the program or is gone.
fn until_exec(pid: i32, mut report: PipeReader) -> io::Result<Outcome> {
    loop {
        let Some(wait) = stop::wait(pid, true)? else { continue };
        match wait.stop {
            Stop::Exec(_) => {
                let filtered = heard(&mut report, NO_FILTER)?.is_none();
                return Ok(Outcome::Started { pid, filtered });
            }
            Stop::Exited(exit) => {
                let failed = heard(&mut report, NO_EXEC)?;
                return Ok(failed.map_or(Outcome::Died(exit), Outcome::NotExecuted));
            }
            Stop::Signal(signal) => forgive(raw::cont(pid, signal))?,
            Stop::Group(_) => forgive(raw::listen(pid))?,
            _ => forgive(raw::cont(pid, 0))?,
        }
    }
}

/// A killed thread answers ESRCH; its exit is reported next.
fn forgive(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// The errno that came with `tag`; the writers are closed by now.
fn heard(report: &mut PipeReader, tag: u8) -> io::Result<Option<i32>> {
    let mut bytes = Vec::new();
    report.read_to_end(&mut bytes)?;
    let errno = |m: &[u8]| i32::from_le_bytes([m[1], m[2], m[3], m[4]]);
    Ok(bytes.chunks_exact(5).find(|m| m[0] == tag).map(errno))
}
