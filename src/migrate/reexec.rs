//! A new process becomes its program by execve(2), so that `/proc/PID/exe` leads there. The other
//! way, `exe_fd` of PR_SET_MM_MAP (prctl(2)), needs CAP_CHECKPOINT_RESTORE over the user namespace.

use std::fs;
use std::io;
use std::os::fd::RawFd;

use super::restore::RestoreError;
use crate::tracer::inject::{result_of, write_all, InjectError, Program, Remote, Stub};
use crate::tracer::raw;
use crate::tracer::stop::{self, Stop};

type Result<T> = std::result::Result<T, RestoreError>;

fn io_error<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T> {
    result.map_err(|source| RestoreError::Io { what: what.into(), source })
}

/// Executes what is open as `exe` in a stopped process, whose descriptors all stay, none of them
/// close-on-exec any more. `insn` is a `syscall` instruction in it. It is stopped afterwards, all
/// signals blocked.
///
/// # Errors
/// Those of execve(2).
pub(super) fn become_program(pid: i32, insn: u64, exe: RawFd) -> Result<()> {
    let mut remote = Remote::open(pid, false)?;
    let stub = Stub::map(&mut remote, insn, None)?;
    for fds in descriptors(pid)?.chunks(1000) {
        let mut program = Program::default();
        for fd in fds {
            let args = [*fd as u64, libc::F_SETFD as u64, 0].map(Into::into);
            program.call(libc::SYS_fcntl, "F_SETFD", &args);
        }
        remote.run(&stub, program)?.all_ok()?;
    }
    // Path, then the two lists of pointers.
    let mut data = format!("/proc/self/fd/{exe}").into_bytes();
    data.resize(64, 0);
    let at = stub.data();
    data.extend(at.to_le_bytes());
    data.extend([0; 16]);
    io_error("write into the stub", write_all(pid, at, &data))?;
    let mut regs = remote.regs;
    regs.rip = stub.syscall_insn();
    (regs.rax, regs.orig_rax) = (libc::SYS_execve as u64, u64::MAX);
    (regs.rdi, regs.rsi, regs.rdx) = (at, at + 64, at + 72);
    remote.keep();
    io_error("set registers", raw::set_regs(pid, &regs))?;
    run(pid)
}

fn descriptors(pid: i32) -> Result<Vec<RawFd>> {
    let path = format!("/proc/{pid}/fd");
    let mut all = Vec::new();
    for entry in io_error(path.clone(), fs::read_dir(&path))? {
        let name = io_error(path.clone(), entry)?.file_name();
        all.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    Ok(all)
}

/// To the end of the call.
fn run(pid: i32) -> Result<()> {
    let (mut steps, mut executed) = (0, false);
    loop {
        io_error("resume", raw::syscall_step(pid, 0))?;
        match io_error("wait", stop::await_status(pid))?.stop {
            Stop::Exec(_) => executed = true,
            Stop::Syscall if steps == 0 => steps = 1,
            Stop::Syscall if executed => return Ok(()),
            Stop::Syscall => {
                let rax = io_error("read registers", raw::regs(pid))?.rax;
                let failed = result_of(rax as i64).map(drop);
                let failed = failed.and(Err(io::ErrorKind::Other.into()));
                return io_error(format!("execute the program in process {pid}"), failed);
            }
            Stop::Interrupt | Stop::Group(_) => {}
            Stop::Exited(exit) => return Err(InjectError::Died { tid: pid, exit }.into()),
            stop => return Err(InjectError::Unexpected { tid: pid, stop }.into()),
        }
    }
}
