//! Will a move work? Asked before anything is touched, by both sides.
//!
//! ```text
//! source: local() ── blockers known here ─► Hello ─► target: judge() ─► Verdict
//! ```

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::apart::Common;
use super::capture::views;
use super::family;
use super::files::Files;
use super::gone;
use super::image::JobInfo;
use super::message::Hello;
use super::resource::creds::User;
use super::resource::fd::regular::Named;
use super::resource::fd::unix::{wanted_names, Wanted};
use super::resource::fd::{self, CaptureCx, FdView};
use super::resource::memory::FileId;
use super::resource::{blocker, directory, schedule, PartError, View};
use super::shares::Sharing;
use super::{programs, tree};
use crate::boot;
use crate::control::{Finding, Severity};
use crate::ids::{Epoch, MoveId, NodeId};
use crate::tracer::memory::{self, read_proc};
use crate::tracer::stop;

/// Which descriptions are relayed to the home: by device and inode.
pub type Forwarded = HashSet<(u64, u64)>;

/// A warning.
pub(super) fn warning(code: &str, object: String, cause: &str, remedy: &str) -> Finding {
    Finding { severity: Severity::Warning, ..blocker(code, object, cause, remedy) }
}

/// What the source knows of a job before a move.
pub struct Local {
    pub findings: Vec<Finding>,
    pub forwarded: Forwarded,
    pub open: Open,
}

/// What the target is asked about.
#[derive(Debug, Clone, Default)]
pub struct Open {
    pub files: Vec<Named>,
    pub sockets: Vec<Wanted>,
    /// What cannot be there if it makes no namespaces.
    pub untranslated: Vec<Finding>,
    /// How many TCP sockets are relayed, and how many UDP sockets.
    pub connections: u32,
    pub datagrams: u32,
}

/// Terminals, TCP and UDP sockets, and pipes with an end outside of the job. A pipe whose other end is
/// with a process that is just being made seems to be one: see [`still_forwarded`].
///
/// # Errors
/// When /proc cannot be read.
pub fn forwarded(files: &Files, known: &Forwarded) -> io::Result<Forwarded> {
    let mut found = known.clone();
    let all = &files.views.objects;
    let own = |v: &FdView| fd::pty::has_hung_up(v) || fd::pty::is_inside(v, all);
    let one_ended = |v: &&FdView| (fd::is_terminal(v) && !own(v)) || is_unnamed_stream(v);
    found.extend(all.iter().filter(one_ended).map(identity));
    found.extend(kept_sockets(files).map(identity));
    let pipes: Vec<u64> =
        pipes(files).filter(|v| !found.contains(&identity(v))).map(|v| v.ino).collect();
    if !pipes.is_empty() {
        let outside = fd::outside_holders("pipe", &pipes, &files.job_pids())?;
        for view in self::pipes(files) {
            if outside.contains(&view.ino) || is_held_elsewhere(files, view)? {
                found.insert(identity(view));
            }
        }
    }
    Ok(found)
}

/// [`forwarded`] of a job that is frozen by now: what was found while it ran, without the pipes
/// that have turned out to be its own, and with those that have come since. A pipe of which the
/// job has both ends is nobody else's, unless it was before.
///
/// # Errors
/// When /proc cannot be read.
pub fn still_forwarded(
    files: &Files,
    known: &Forwarded,
    before: &Forwarded,
) -> io::Result<Forwarded> {
    let doubtful: Vec<u64> = pipes(files)
        .filter(|v| before.contains(&identity(v)) && !known.contains(&identity(v)))
        .filter(|v| has_both_ends(&files.views.objects, v))
        .map(|v| v.ino)
        .collect();
    let outside = match doubtful.is_empty() {
        true => HashSet::new(),
        false => fd::outside_holders("pipe", &doubtful, &files.job_pids())?,
    };
    let mut found = before.clone();
    found.extend(kept_sockets(files).map(identity));
    for view in pipes(files).filter(|v| !known.contains(&identity(v))) {
        match outside.contains(&view.ino) || is_held_elsewhere(files, view)? {
            true => found.insert(identity(view)),
            false => found.remove(&identity(view)),
        };
    }
    Ok(found)
}

/// TCP and UDP sockets that the home keeps. They may have been made since the last look.
fn kept_sockets(files: &Files) -> impl Iterator<Item = &FdView> {
    files.views.objects.iter().filter(|view| fd::inet::is_kept(view, files))
}

fn identity(view: &FdView) -> (u64, u64) {
    (view.dev, view.ino)
}

fn pipes(files: &Files) -> impl Iterator<Item = &FdView> {
    files.views.objects.iter().filter(|v| v.link.starts_with("pipe:["))
}

/// Is the other end of a pipe open, but not in the job? Who holds it may be of another user, out
/// of our sight.
fn is_held_elsewhere(files: &Files, view: &FdView) -> io::Result<bool> {
    if has_both_ends(&files.views.objects, view) {
        return Ok(false);
    }
    match other_end_lives(files, view) {
        // Nobody holds it any more.
        Err(e) if gone::is_closed(&e) => Ok(false),
        other => other,
    }
}

/// Is the other end of this pipe end open anywhere? poll(2) tells: POLLERR or POLLHUP if not.
fn other_end_lives(files: &Files, view: &FdView) -> io::Result<bool> {
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use std::os::fd::AsFd;
    let end = files.duplicate(view)?;
    let mut fds = [PollFd::new(end.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    Ok(!fds[0].revents().is_some_and(|r| r.intersects(gone)))
}

/// A standard stream into a file that the job's user cannot find by its name, like a log
/// that was opened for the job with more rights.
fn is_unnamed_stream(view: &FdView) -> bool {
    let one_way = view.flags & libc::O_ACCMODE != libc::O_RDWR;
    let regular = view.file_type() == libc::S_IFREG && view.nlink > 0;
    view.fd <= 2 && one_way && regular && fd::find(view).is_some_and(|k| k.name() == fd::DELETED)
}

fn has_both_ends(all: &[FdView], pipe: &FdView) -> bool {
    let mode = |v: &FdView| v.flags & libc::O_ACCMODE;
    let same = || all.iter().filter(|v| (v.dev, v.ino) == (pipe.dev, pipe.ino));
    same().any(|v| mode(v) == libc::O_RDONLY) && same().any(|v| mode(v) == libc::O_WRONLY)
}

/// Everything that can be said of a running job without a target. `pids` are its processes, the
/// first one first; `common` is what all their threads have; `known` as for [`forwarded`]; `None` when nothing can be relayed.
///
/// # Errors
/// When the first process is gone, or /proc cannot be read.
pub fn local(
    pids: &[i32],
    files: &Files,
    known: Option<&Forwarded>,
    common: &Common,
) -> io::Result<Local> {
    let forwarded = match known {
        Some(known) => forwarded(files, known)?,
        None => Forwarded::new(),
    };
    let is_forwarded = |v: &FdView| forwarded.contains(&(v.dev, v.ino));
    let mut findings = files.check(is_forwarded);
    findings.extend(files.views.warnings.clone());
    for (n, pid) in pids.iter().enumerate() {
        match gone::look(*pid, || check_process(*pid, pids, common))? {
            Some(found) => findings.extend(found),
            None if n == 0 => return Err(first_has_ended()),
            None => {}
        }
    }
    findings.extend(super::capture::check_shared_memory(pids)?);
    let others = files.views.objects.iter().filter(|v| !is_forwarded(v));
    let open = Open {
        files: others.filter_map(|v| Named::of(v, false).ok().flatten()).collect(),
        sockets: wanted_names(&files.views.objects, files),
        untranslated: files.untranslated(is_forwarded),
        connections: kept_sockets(files).filter(|view| !fd::udp::is_udp(view)).count() as u32,
        datagrams: kept_sockets(files).filter(|view| fd::udp::is_udp(view)).count() as u32,
    };
    findings.sort_by_key(|f| f.severity != Severity::Blocker);
    findings.dedup();
    Ok(Local { findings, forwarded, open })
}

fn first_has_ended() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the first process of the job has ended")
}

/// What can be said of one of the job's processes.
fn check_process(pid: i32, pids: &[i32], common: &Common) -> io::Result<Vec<Finding>> {
    if let Some(finding) = leader_ended(pid) {
        return Ok(vec![finding]);
    }
    let mut findings = super::capture::check_memory(pid, common.submitted(), common.submitting())?;
    let threads = views(pid)?;
    for view in &threads {
        match common.check(view)? {
            // What is seen of a thread that ends is not what it had.
            found if !found.is_empty() && gone::is_ending_thread(pid, view.tid) => {}
            found => findings.extend(found),
        }
    }
    let Some(leader) = threads.first() else { return Ok(findings) };
    let object = format!("process {}", leader.job_pid);
    findings.extend(strangers(pid, pids).map(|child| {
        let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        blocker(
            "VOS-CHILDREN",
            format!("{object}, child {child} {}", name.trim()),
            "its child is not traced by vosrun",
            "wait until the child has ended, or attach again",
        )
    }));
    findings.extend(abi_32(&format!("/proc/{pid}/exe"), object));
    Ok(findings)
}

/// The refusal of a process whose first thread has ended while others go on: little can be asked of
/// it then.
#[must_use]
pub fn leader_ended(pid: i32) -> Option<Finding> {
    (gone::is_ending_thread(pid, pid) && !gone::is_ending(pid)).then(|| {
        let object = format!("process {pid}");
        let cause = "its first thread has ended, others go on";
        blocker("VOS-LEADER", object, cause, "let it finish here")
    })
}

/// Children that live and are none of the job's processes.
fn strangers(pid: i32, pids: &[i32]) -> impl Iterator<Item = i32> + '_ {
    children(pid).into_iter().filter(|pid| !pids.contains(pid) && gone::is_stranger(*pid))
}

/// Has the process ended, and waits for its parent (proc_pid_stat(5))?
#[must_use]
pub fn is_zombie(pid: i32) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|p| p.stat());
    stat.is_ok_and(|s| s.state == 'Z')
}

/// What processes share by clone(2), or tell their parents at their end, and cannot at any target, and
/// at one without namespaces.
/// `settled` are those of `pids` that are not in the middle of vfork(2).
///
/// # Errors
/// When a process cannot be asked.
pub fn shared_tasks(
    pids: &[i32],
    settled: &[i32],
) -> Result<(Option<Finding>, Option<Finding>), PartError> {
    let sharing = Sharing::of(settled);
    if sharing.is_empty() && pids.iter().all(|pid| family::exit_signal(*pid).is_none()) {
        return Ok((None, None));
    }
    let members = family::members(pids, &sharing)?;
    let programs = programs::of(pids, &members);
    let programs = programs.map_err(|source| PartError::Io { what: "programs".into(), source })?;
    Ok((tree::unshareable(&members), programs::untranslated(&members, &programs)))
}

/// Pids of the children of all threads, zombies included.
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    let of = |tid: i32| {
        let list = read_proc(&format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
        list.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<i32>>()
    };
    if stop::is_alone(pid) {
        return of(pid);
    }
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).flat_map(of).collect()
}

/// The executable's ELF class (elf(5)) says 32 bits.
fn abi_32(exe: &str, object: String) -> Option<Finding> {
    use std::io::Read;
    let mut head = [0; 5];
    let read = fs::File::open(exe).and_then(|mut f| f.read_exact(&mut head));
    (read.is_ok() && head[4] == 1).then(|| {
        let remedy = "use the 64-bit build of the program";
        blocker("VOS-ABI-32", object, "it is a 32-bit program", remedy)
    })
}

/// The line of /proc/cpuinfo that lists features, of the first CPU.
#[must_use]
pub fn cpu_flags() -> Vec<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("flags")).unwrap_or("");
    line.split_once(':').map_or("", |(_, f)| f).split_whitespace().map(str::to_owned).collect()
}

pub(super) fn kernel() -> String {
    nix::sys::utsname::uname()
        .map(|u| u.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Adds the files that a process maps to `files`, for the target to compare, and to `written` the
/// indices of those that are mapped shared and writable.
///
/// # Errors
/// When maps cannot be read.
fn mapped_files(pid: i32, files: &mut Vec<FileId>, written: &mut Vec<u32>) -> io::Result<()> {
    for vma in memory::maps(pid)? {
        let writes = vma.shared && vma.prot & libc::PROT_WRITE != 0;
        let known = files.iter().position(|f| f.path == vma.path && f.ino == vma.ino);
        if let Some(index) = known {
            written.extend(writes.then_some(index as u32));
            continue;
        }
        if vma.ino == 0 || !vma.path.starts_with('/') {
            continue;
        }
        let Ok(m) = fs::metadata(format!("/proc/{pid}/root{}", vma.path)) else { continue };
        let id = FileId::from_metadata(&vma.path, &m);
        if m.is_file() && id.ino == vma.ino {
            written.extend(writes.then_some(files.len() as u32));
            files.push(id);
        }
    }
    let exe = fs::read_link(format!("/proc/{pid}/exe"))?.to_string_lossy().into_owned();
    if let Ok(id) = FileId::of(&format!("/proc/{pid}/root{exe}")) {
        let id = FileId { path: exe, ..id };
        if !files.contains(&id) {
            files.push(id);
        }
    }
    Ok(())
}

/// What identifies a move, for [`hello`].
pub struct Move<'a> {
    pub id: MoveId,
    pub job: JobInfo,
    pub epoch: Epoch,
    pub dry: bool,
    pub translate: bool,
    pub source: &'a str,
    pub home: (NodeId, String),
    pub history: Vec<crate::control::MoveReport>,
}

/// The question to the target.
///
/// # Errors
/// When the first process is gone.
pub fn hello(pids: &[i32], of: Move, open: Open) -> io::Result<Hello> {
    let (mut all, mut users) = (Vec::new(), Vec::new());
    let (mut mapped, mut written, mut cwds) = (Vec::new(), Vec::new(), Vec::new());
    for (n, &pid) in pids.iter().enumerate() {
        let look = || -> io::Result<_> {
            let threads = views(pid)?;
            let user = threads.first().map_or(Ok(None), User::of)?;
            let mut cwd = Vec::with_capacity(threads.len());
            for view in &threads {
                match directory::cwd(pid, view.tid) {
                    Err(_) if gone::is_ending_thread(pid, view.tid) => {}
                    found => cwd.push(found?),
                }
            }
            mapped_files(pid, &mut mapped, &mut written)?;
            Ok((threads, user, cwd))
        };
        match gone::look(pid, look)? {
            Some((threads, user, cwd)) => {
                all.push(threads);
                users.push(user);
                cwds.extend(cwd.iter().map(|path| path.to_string_lossy().into_owned()));
            }
            None if n == 0 => return Err(first_has_ended()),
            None => {}
        }
    }
    cwds.sort();
    cwds.dedup();
    let leaders = || all.iter().filter_map(|threads| threads.first());
    let user = users.first().copied().flatten().filter(|u| users.iter().all(|o| *o == Some(*u)));
    Ok(Hello {
        id: of.id,
        job: of.job,
        epoch: of.epoch,
        dry: of.dry,
        translate: of.translate,
        untranslated: open.untranslated,
        connections: open.connections,
        datagrams: open.datagrams,
        source: of.source.to_owned(),
        home: of.home,
        cpu: cpu_flags(),
        boot_id: boot::id().unwrap_or_default().to_owned(),
        kernel: kernel(),
        memory: leaders().map(|l| 1024 * (l.number("RssAnon:") + l.number("RssShmem:"))).sum(),
        largest_tid: all.iter().flatten().map(|t| t.job_tid).max().unwrap_or(0),
        mapped,
        written,
        open: open.files,
        sockets: open.sockets,
        cwds,
        affinities: affinities(all.iter().flatten()),
        user,
        history: of.history,
    })
}

/// Those of threads that may not run on all CPUs, each once.
fn affinities<'a>(threads: impl Iterator<Item = &'a View>) -> Vec<Vec<u64>> {
    let Ok(all) = super::cpus::machine() else { return Vec::new() };
    let masks = threads.filter_map(|thread| schedule::bound_to(thread.tid, &all));
    masks.collect::<BTreeSet<_>>().into_iter().collect()
}

/// A process that is not dumpable is so only in its own eyes where numbers are translated.
#[must_use]
pub fn undumpable(pid: i32) -> Finding {
    let own = View::read_process(pid).map_or(pid, |view| view.job_pid);
    warning(
        "VOS-TRANSLATE",
        format!("process {own}"),
        "it is not dumpable (PR_SET_DUMPABLE), and seems so to itself only: other programs of its \
         user may read its memory there, and it may leave a core file",
        "allow user namespaces on the target, or run its node as root",
    )
}

/// blake3 of the content of a file.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(path: &Path) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(*hasher.finalize().as_bytes())
}

/// Path of a mapped file of the source's process, as the supervisor can open it.
#[must_use]
pub fn through_root(pid: i32, path: &str) -> std::path::PathBuf {
    let mut whole = std::ffi::OsString::from(format!("/proc/{pid}/root"));
    whole.push(std::ffi::OsStr::from_bytes(path.as_bytes()));
    whole.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_32_bits_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let code = |head: &[u8]| {
            let file = dir.path().join("program");
            fs::write(&file, head).expect("write");
            abi_32(&file.to_string_lossy(), "process 1".into()).map(|finding| finding.code)
        };
        assert_eq!(code(b"\x7fELF\x01\x01"), Some("VOS-ABI-32".to_owned()));
        assert_eq!(code(b"\x7fELF\x02\x01"), None);
        assert_eq!(code(b"#!"), None);
    }
}
