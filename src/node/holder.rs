//! Which job has an end of a TCP connection.
//!
//! The kernel shows the connections of this network namespace with their inodes (proc_pid_net(5)),
//! /proc shows who has an inode open, and who traces that process; the folder of the job whose
//! supervisor it is is known by its open lock.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::ids::JobId;
use crate::migrate::resource::View;
use crate::state::StateDir;

/// An end of a connection: its own address, and its peer's.
pub type Ends = (SocketAddr, SocketAddr);

/// The jobs on this node that have these ends of connections: in one of their processes, or kept for
/// them by their home agents. `None` when there is no such connection, or another program's.
///
/// # Errors
/// When the connections of this namespace cannot be listed, or /proc cannot be read.
pub fn of(state: &StateDir, all: &[Ends]) -> io::Result<Vec<Option<JobId>>> {
    let mut found = vec![None; all.len()];
    let inodes = inodes_of(all)?;
    if inodes.iter().all(Option::is_none) {
        return Ok(found);
    }
    // There is none as long as there has been no job.
    let Ok(jobs) = fs::canonicalize(state.path().join("jobs")) else { return Ok(found) };
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let open: Vec<u64> = links(pid).filter_map(|link| socket(&link)).collect();
        let is_open = |inode: &Option<u64>| inode.is_some_and(|inode| open.contains(&inode));
        if !inodes.iter().any(is_open) {
            continue;
        }
        let Some(job) = job_of(pid, &jobs) else { continue };
        for (known, _) in found.iter_mut().zip(&inodes).filter(|(_, inode)| is_open(inode)) {
            *known = Some(job);
        }
    }
    Ok(found)
}

/// The job whose process or supervisor this is.
fn job_of(pid: i32, jobs: &Path) -> Option<JobId> {
    let tracer = View::read_process(pid).map_or(0, |view| view.number("TracerPid:"));
    let supervisor = i32::try_from(tracer).ok().filter(|tracer| *tracer > 0).unwrap_or(pid);
    links(supervisor).find_map(|open| {
        let folder = open.strip_prefix(jobs).ok()?.parent()?;
        (open.file_name()? == "lock").then(|| folder.to_str()?.parse().ok())?
    })
}

fn socket(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// What the descriptors of a process lead to, as far as that may be seen.
fn links(pid: i32) -> impl Iterator<Item = std::path::PathBuf> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    all.filter_map(|entry| fs::read_link(entry.path()).ok())
}

/// Inodes of those that are connections of this namespace.
fn inodes_of(all: &[Ends]) -> io::Result<Vec<Option<u64>>> {
    let plain = |at: SocketAddr| (at.ip().to_canonical(), at.port());
    let v4 = procfs::net::tcp().map_err(io::Error::other)?;
    let v6 = procfs::net::tcp6().unwrap_or_default();
    let open = v4.into_iter().chain(v6).filter(|one| one.inode > 0);
    let known: HashMap<_, u64> = open
        .map(|one| ((plain(one.local_address), plain(one.remote_address)), one.inode))
        .collect();
    Ok(all.iter().map(|(own, peer)| known.get(&(plain(*own), plain(*peer))).copied()).collect())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// The lock of a job's folder is open here: this process is its supervisor, or seems so.
    #[test]
    fn an_end_that_this_process_holds() {
        let tmp = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(&tmp.path().join("s")).expect("state");
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let far = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
        let (own, peer) = (far.local_addr().expect("own"), far.peer_addr().expect("peer"));
        assert_eq!(of(&state, &[(own, peer)]).expect("look"), [None]);
        let id = JobId([3; 16]);
        state.job(id).create().expect("a job");
        let _lock = fs::File::create(state.job(id).lock()).expect("its lock");
        assert_eq!(of(&state, &[(peer, peer), (own, peer)]).expect("look"), [None, Some(id)]);
    }
}
