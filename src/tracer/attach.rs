//! Seizing a program that runs already, and saying why the kernel does not allow it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{bail, Context};
use nix::unistd::{getpid, gettid, getuid, Uid, User};
use procfs::process::{Process, Status};

use super::inject::{Arg, Program, Remote, Stub};
use super::{filter, raw};
use crate::migrate::capture;
use crate::migrate::resource::View;
use crate::supervisor::session::Session;
use crate::syscalls::table::TABLE;

/// Why a process cannot be seized. Each text is one sentence with the rule and the way out.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("there is no process {0}")]
    NoSuchProcess(i32),
    #[error("process {0} has ended already; its parent has not waited for it yet")]
    Zombie(i32),
    #[error("process {0} is vosrun itself; name the process that is to be adopted")]
    Itself(i32),
    #[error("process {0} is a thread of the kernel; only programs can be adopted")]
    KernelThread(i32),
    #[error("{0} is a thread of process {1}; adopt the process: vosrun --attach {1}")]
    Thread(i32, i32),
    #[error(
        "process {pid} is traced by {name} (pid {by}) already, and Linux allows one tracer per process; end that one first"
    )]
    Traced { pid: i32, by: i32, name: String },
    #[error(
        "process {pid} belongs to {owner}, and only its owner or one with CAP_SYS_PTRACE may trace it; run vosrun as {}",
        match owner.as_str() { "root" => "root".to_owned(), other => format!("{other} or as root") }
    )]
    OtherUser { pid: i32, owner: String },
    #[error(
        "process {0} may not be inspected (it changed its user or called prctl(PR_SET_DUMPABLE)); run vosrun with CAP_SYS_PTRACE, as root"
    )]
    NotDumpable(i32),
    #[error(
        "process {0} has capabilities that vosrun lacks; run vosrun with CAP_SYS_PTRACE, as root"
    )]
    Capabilities(i32),
    #[error(
        "Yama forbids to trace process {pid} (kernel.yama.ptrace_scope={scope}: {rule}); {remedy}"
    )]
    Yama { pid: i32, scope: u8, rule: &'static str, remedy: &'static str },
    #[error("the kernel forbids to trace process {pid} ({source}); a security module or a container's rules do so")]
    Forbidden { pid: i32, source: io::Error },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl AttachError {
    /// Is it a matter of permission (exit code 77)?
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(
            self,
            Self::Traced { .. }
                | Self::OtherUser { .. }
                | Self::NotDumpable(_)
                | Self::Capabilities(_)
                | Self::Yama { .. }
                | Self::Forbidden { .. }
        )
    }
}

/// Seizes every thread of process `pid`, also those that appear meanwhile, and returns
/// their tids. None of them is stopped; one that is in group-stop reports it and stays.
///
/// # Errors
/// See [`AttachError`]; nothing stays seized then but what the exit of this process frees.
pub fn seize_process(pid: i32) -> Result<BTreeSet<i32>, AttachError> {
    check_target(pid)?;
    let mut seized = BTreeSet::new();
    loop {
        let before = seized.len();
        for tid in threads(pid)? {
            if !seized.contains(&tid) && seize_thread(pid, tid)? {
                seized.insert(tid);
            }
        }
        if seized.len() == before {
            break;
        }
    }
    if seized.is_empty() {
        return Err(AttachError::Zombie(pid));
    }
    Ok(seized)
}

/// Seizes `root` and every process that descends from it; (pid, tids) of each. A
/// descendant that cannot be seized is left out, and its descendants with it.
///
/// # Errors
/// As [`seize_process`] for `root`.
pub fn seize_tree(root: i32) -> Result<Vec<(i32, BTreeSet<i32>)>, AttachError> {
    let mut tree = vec![(root, seize_process(root)?)];
    let mut at = 0;
    while at < tree.len() {
        for child in children(&tree[at]) {
            if tree.iter().any(|(pid, _)| *pid == child) {
                continue;
            }
            match seize_process(child) {
                Ok(tids) => tree.push((child, tids)),
                Err(e) => tracing::warn!("a descendant goes on without vosrun: {e}"),
            }
        }
        at += 1;
    }
    Ok(tree)
}

/// Children of a process: those of each of its threads (proc_pid_task_tid_children(5)).
fn children((pid, tids): &(i32, BTreeSet<i32>)) -> Vec<i32> {
    let of = |tid| fs::read_to_string(format!("/proc/{pid}/task/{tid}/children"));
    let lists: Vec<String> = tids.iter().filter_map(|tid| of(tid).ok()).collect();
    lists.iter().flat_map(|l| l.split_whitespace()).filter_map(|p| p.parse().ok()).collect()
}

/// Puts the filter into every thread of every adopted process (`--attach --filter`). It cannot
/// be taken out again.
///
/// # Errors
/// When a process has filters of its own, or a call in it fails. It goes on without the
/// filter then; others may have it.
pub fn install_filters(session: &mut Session) -> anyhow::Result<()> {
    let pids = session.processes();
    for &pid in &pids {
        let views = capture::views(pid).with_context(|| format!("threads of process {pid}"))?;
        if let Some(view) = views.iter().find(|v| v.number("Seccomp:") != 0) {
            bail!(
                "thread {} of process {pid} has a seccomp filter of its own; attach without --filter",
                view.tid
            );
        }
    }
    for &pid in &pids {
        let installed = session.borrow(pid, |remote| install_filter(remote, pid));
        installed.with_context(|| format!("the filter cannot be put into process {pid}"))?;
    }
    Ok(())
}

fn install_filter(remote: &mut Remote, pid: i32) -> anyhow::Result<()> {
    let insn = capture::syscall_insn_now(pid)?;
    let stub = Stub::map(remote, insn, None)?;
    let installed = put_filter(remote, &stub);
    stub.unmap(remote, insn)?;
    installed
}

/// seccomp(2) with SECCOMP_FILTER_FLAG_TSYNC. Without CAP_SYS_ADMIN the kernel wants
/// PR_SET_NO_NEW_PRIVS before.
fn put_filter(remote: &mut Remote, stub: &Stub) -> anyhow::Result<()> {
    const SECCOMP_SET_MODE_FILTER: u64 = 1;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let view = View::read_process(remote.tid())?;
    let code = filter::bytes(&filter::program(TABLE));
    let mut program = Program::default();
    let at = program.data(&code);
    let mut head = ((code.len() / 8) as u64).to_le_bytes().to_vec();
    head.extend_from_slice(&(stub.data() + at.offset()).to_le_bytes());
    let head = program.data(&head);
    if view.hex("CapEff:") & CAP_SYS_ADMIN == 0 {
        let args = [libc::PR_SET_NO_NEW_PRIVS as u64, 1].map(Arg::Num);
        program.call(libc::SYS_prctl, "PR_SET_NO_NEW_PRIVS", &args);
    }
    let flags = Arg::Num(libc::SECCOMP_FILTER_FLAG_TSYNC);
    let args = [Arg::Num(SECCOMP_SET_MODE_FILTER), flags, Arg::Data(head)];
    let row = program.call(libc::SYS_seccomp, "seccomp", &args);
    let outcome = remote.run(stub, program)?;
    outcome.all_ok()?;
    match outcome.raw(row) {
        0 => Ok(()),
        tid => bail!("its thread {tid} has a filter of its own"),
    }
}

fn threads(pid: i32) -> Result<Vec<i32>, AttachError> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))
        .map_err(|e| missing(e, AttachError::NoSuchProcess(pid)))?;
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
}

fn missing(e: io::Error, instead: AttachError) -> AttachError {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => instead,
        _ => e.into(),
    }
}

/// True when the thread is traced by this process now, false when it is gone.
fn seize_thread(pid: i32, tid: i32) -> Result<bool, AttachError> {
    let Err(e) = raw::seize(tid) else { return Ok(true) };
    let Some(status) = read_status(tid) else { return Ok(false) };
    if status.tracerpid == gettid().as_raw() {
        // A new thread of one that was seized already is traced from its birth.
        return Ok(true);
    }
    if e.raw_os_error() == Some(libc::ESRCH) || is_dead(&status) {
        return Ok(false);
    }
    Err(explain(pid, e))
}

fn is_dead(status: &Status) -> bool {
    status.state.starts_with(['Z', 'X'])
}

fn read_status(pid: i32) -> Option<Status> {
    Process::new(pid).ok()?.status().ok()
}

/// What can be said before anything is tried.
fn check_target(pid: i32) -> Result<(), AttachError> {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let status = read_status(pid).ok_or(AttachError::NoSuchProcess(pid))?;
    let stat = Process::new(pid).and_then(|p| p.stat());
    if status.tgid != pid {
        return Err(AttachError::Thread(pid, status.tgid));
    }
    if pid == getpid().as_raw() {
        return Err(AttachError::Itself(pid));
    }
    if stat.is_ok_and(|s| s.flags & PF_KTHREAD != 0) {
        return Err(AttachError::KernelThread(pid));
    }
    if is_dead(&status) && threads(pid)?.len() == 1 {
        return Err(AttachError::Zombie(pid));
    }
    Ok(())
}

/// Why PTRACE_SEIZE of `pid` failed with `e`; see ptrace(2), "Ptrace access mode checking".
#[must_use]
pub fn explain(pid: i32, e: io::Error) -> AttachError {
    if e.raw_os_error() == Some(libc::ESRCH) {
        return AttachError::NoSuchProcess(pid);
    }
    if e.raw_os_error() != Some(libc::EPERM) {
        return e.into();
    }
    let Some(status) = read_status(pid) else { return AttachError::NoSuchProcess(pid) };
    if status.tracerpid != 0 {
        return traced(pid, status.tracerpid);
    }
    let me = getuid().as_raw();
    if [status.ruid, status.euid, status.suid].iter().any(|uid| *uid != me) {
        return AttachError::OtherUser { pid, owner: user_name(status.ruid) };
    }
    if fs::metadata(format!("/proc/{pid}/environ")).is_ok_and(|m| m.uid() != status.euid) {
        return AttachError::NotDumpable(pid);
    }
    let mine = read_status(getpid().as_raw()).map_or(0, |s| s.capprm);
    if status.capprm & !mine != 0 {
        return AttachError::Capabilities(pid);
    }
    yama(pid).unwrap_or(AttachError::Forbidden { pid, source: e })
}

fn traced(pid: i32, by: i32) -> AttachError {
    let name = fs::read_to_string(format!("/proc/{by}/comm"));
    let name = name.map_or_else(|_| "another program".into(), |n| n.trim_end().into());
    AttachError::Traced { pid, by, name }
}

fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("uid {uid}"), |u| u.name)
}

/// The rule of Documentation/admin-guide/LSM/Yama.rst that is in force, if any.
fn yama(pid: i32) -> Option<AttachError> {
    let text = fs::read_to_string(Path::new("/proc/sys/kernel/yama/ptrace_scope")).ok()?;
    yama_rule(pid, text.trim().parse().ok()?)
}

fn yama_rule(pid: i32, scope: u8) -> Option<AttachError> {
    let (rule, remedy) = match scope {
        1 => (
            "only descendants may be traced",
            "start it with `vosrun --`, or: sudo sysctl kernel.yama.ptrace_scope=0",
        ),
        2 => (
            "only one with CAP_SYS_PTRACE may trace",
            "run vosrun as root, or: sudo sysctl kernel.yama.ptrace_scope=0",
        ),
        3 => (
            "nobody may attach until the next boot",
            "set kernel.yama.ptrace_scope to 0 or 1 in /etc/sysctl.d and boot again",
        ),
        _ => return None,
    };
    Some(AttachError::Yama { pid, scope, rule, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_trace_is_named_once() {
        let text = |owner: &str| AttachError::OtherUser { pid: 7, owner: owner.into() }.to_string();
        assert!(text("root").ends_with("; run vosrun as root"), "{}", text("root"));
        assert!(text("ann").ends_with("; run vosrun as ann or as root"), "{}", text("ann"));
    }

    #[test]
    fn every_yama_rule_has_a_sentence() {
        for scope in 1..=3 {
            let text = yama_rule(5, scope).map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains(&format!("ptrace_scope={scope}")), "{text}");
        }
        assert!(yama_rule(5, 0).is_none());
    }

    #[test]
    fn what_cannot_be_adopted_is_named() {
        let own = std::process::id() as i32;
        assert!(matches!(seize_process(own), Err(AttachError::Itself(_))));
        assert!(matches!(seize_process(i32::MAX), Err(AttachError::NoSuchProcess(_))));
    }
}
