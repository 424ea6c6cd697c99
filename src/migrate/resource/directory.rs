//! Working directory and umask of a thread that does not share them with its process (CLONE_FS of
//! unshare(2)).

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{decode, encode, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Attributes;
use crate::capabilities::Capability;
use crate::migrate::raw::{is_apart, Shared};
use crate::tracer::inject::{Arg, Program};

const NAME: &str = "directory of a thread";

pub struct OwnDirectory;

#[derive(Serialize, Deserialize)]
struct State {
    umask: u32,
    cwd: Vec<u8>,
}

/// The working directory of a thread (`/proc/PID/task/TID/cwd`).
///
/// # Errors
/// When the link cannot be read.
pub fn cwd(pid: i32, tid: i32) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/{pid}/task/{tid}/cwd"))
}

/// The umask of a thread.
///
/// # Errors
/// When its status does not tell (Linux before 4.7).
pub fn umask(view: &View) -> Result<u32, PartError> {
    u32::from_str_radix(view.field("Umask:"), 8).map_err(|_| PartError::State("umask"))
}

impl Part for OwnDirectory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::moves(
                Attributes,
                "thread-directory",
                "working directory and umask of a single thread",
            )]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }

    fn read(&self, view: &View) -> Result<Option<Vec<u8>>, PartError> {
        let failed = |what: &str| {
            let what = format!("{what} of thread {}", view.tid);
            |source| PartError::Io { what, source }
        };
        let mut state = None;
        if is_apart(view.pid, view.tid, Shared::Directories).map_err(failed("kcmp"))? {
            let cwd = cwd(view.pid, view.tid).map_err(failed("working directory"))?;
            state = Some(State { umask: umask(view)?, cwd: cwd.as_os_str().as_bytes().to_vec() });
        }
        encode(NAME, &state).map(Some)
    }

    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let state: Option<State> = decode(NAME, state)?;
        let Some(State { umask, mut cwd }) = state else { return Ok(()) };
        let alone = Arg::Num(libc::CLONE_FS as u64);
        program.call(libc::SYS_unshare, "unshare of the working directory", &[alone]);
        program.call(libc::SYS_umask, "umask", &[u64::from(umask).into()]);
        cwd.push(0);
        let cwd = Arg::Data(program.data(&cwd));
        program.call(libc::SYS_chdir, "chdir to the working directory of a thread", &[cwd]);
        Ok(())
    }
}
