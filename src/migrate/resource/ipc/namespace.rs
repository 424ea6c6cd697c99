//! Looking into the IPC namespace of a job.
//!
//! Where it is not this process's own, a child enters it and sends what it has found.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::Serialize;

use super::raw;
use crate::migrate::raw::{exit_now, fork};
use crate::tracer::raw::wait4;

/// Is the process in this process's IPC namespace?
///
/// # Errors
/// When either cannot be asked.
pub fn is_ours(pid: i32) -> io::Result<bool> {
    same(pid, "ipc")
}

/// Which IPC namespace a process is in: those in one have the same name.
///
/// # Errors
/// When it cannot be asked.
pub fn name(pid: i32) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/ipc"))
}

fn same(pid: i32, kind: &str) -> io::Result<bool> {
    let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}"));
    Ok(link(&pid.to_string())? == link("self")?)
}

/// What `look` finds in the IPC namespace of a process. The caller has one thread.
///
/// # Errors
/// When the namespace cannot be entered; what `look` says.
pub fn within<T: Serialize + DeserializeOwned>(
    pid: i32,
    look: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    if is_ours(pid).map_err(|e| format!("IPC namespace of process {pid}: {e}"))? {
        return look();
    }
    let tried = |e: io::Error| format!("look into the IPC namespace of process {pid}: {e}");
    let (mut reader, writer) = io::pipe().map_err(tried)?;
    let child = fork(None).map_err(tried)?;
    if child == 0 {
        drop(reader);
        let found = enter(pid).map_err(tried).and_then(|()| look());
        exit_now(i32::from(tell(writer, &found).is_err()));
    }
    drop(writer);
    let mut bytes = Vec::new();
    let read = reader.read_to_end(&mut bytes);
    let ended = wait4(child, libc::__WALL).map_err(tried);
    read.map_err(tried)?;
    ended?;
    postcard::from_bytes(&bytes).map_err(|_| tried(io::ErrorKind::UnexpectedEof.into()))?
}

fn enter(pid: i32) -> io::Result<()> {
    // One of another user is entered by way of the user namespace that owns it.
    for kind in ["user", "ipc"] {
        if !same(pid, kind)? {
            raw::setns(File::open(format!("/proc/{pid}/ns/{kind}"))?.as_fd())?;
        }
    }
    Ok(())
}

fn tell<T: Serialize>(mut writer: io::PipeWriter, found: &Result<T, String>) -> io::Result<()> {
    writer.write_all(&postcard::to_stdvec(found).map_err(io::Error::other)?)
}
