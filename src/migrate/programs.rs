//! Programs of processes that share memory, descriptors or handlers by clone(2), where they have
//! no namespaces.
//!
//! There a process executes its program, so that `/proc/PID/exe` leads there
//! (`reexec`), and execve(2) leaves what is shared. So in the frame the process whose
//! forks begin to share something executes the program before, and gets its memory and registers
//! back; those below it inherit the program. Since nobody who shares has executed anything
//! meanwhile, all of them have the same.
//!
//! ```text
//! process of the frame          supervisor
//! Word::Execute ──────────────► hold, keep memory and registers, execve, put back
//!              ◄─────────────── Request::Grow
//! forks
//! ```

use std::collections::btree_map::Entry;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::building::Built;
use super::heritage::Heritage;
use super::raw::{self, Shared};
use super::resource::aio::Submitted;
use super::resource::memory::{self, read_common, FileId, MmImage};
use super::resource::registers::{extended, words, Registers};
use super::resource::{blocker, View};
use super::restore::{self, RestoreError, Restoring, Runner};
use super::skeleton::{await_growth, Word};
use super::tree::{self, Member, Step, Tree};
use super::vdso::Vdso;
use super::{address_space, capture, gone, reexec};
use crate::control::Finding;
use crate::syscalls::translate::REMEDY;
use crate::tracer::inject::{write_all, Program, Remote, Stub, STUB_LEN};
use crate::tracer::raw as trace;

/// What execve(2) leaves.
const LEFT: [Shared; 3] = [Shared::Memory, Shared::Files, Shared::Handlers];
const FLAGS: i32 = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_SIGHAND;

/// Programs of members, by their index.
pub type Programs = Vec<(u32, FileId)>;

/// The programs of those of the members that share what execve(2) leaves. `pids` are theirs here.
///
/// # Errors
/// When one of them cannot be asked.
pub fn of(pids: &[i32], members: &[Member]) -> io::Result<Programs> {
    let mut found = Programs::new();
    if !members.iter().any(|member| inherits(&member.shares)) {
        return Ok(found);
    }
    for pid in pids {
        // The frame is made anew without one that has ended meanwhile.
        let Ok(job) = View::read_process(*pid).map(|view| view.job_pid) else { continue };
        let place =
            members.iter().position(|member| member.ids.pid == job && inherits(&member.shares));
        let program = place.map(|place| program(*pid).map(|file| (place as u32, file))).transpose();
        match program {
            Err(e) if gone::is_ending(*pid) => tracing::debug!("program of process {pid}: {e}"),
            other => found.extend(other?),
        }
    }
    Ok(found)
}

fn program(pid: i32) -> io::Result<FileId> {
    let link = format!("/proc/{pid}/exe");
    let path = fs::read_link(&link)?.to_string_lossy().into_owned();
    Ok(FileId::from_metadata(&path, &fs::metadata(&link)?))
}

/// Does a process of these shares have its program from the frame?
#[must_use]
pub fn inherits(shares: &super::shares::Shares) -> bool {
    LEFT.iter().any(|what| shares.first(*what).is_some())
}

fn refuse(member: &Member, cause: &str) -> Box<Finding> {
    let object = match inherits(&member.shares) {
        true => format!("what process {} shares", member.ids.pid),
        false => format!("the end of process {}", member.ids.pid),
    };
    Box::new(blocker("VOS-TRANSLATE", object, cause, REMEDY))
}

/// What hinders these members from sharing on a target without namespaces.
#[must_use]
pub fn untranslated(members: &[Member], programs: &Programs) -> Option<Finding> {
    // What no forks can make is refused for itself.
    let tree = tree::plan(members).ok()?;
    executors(&tree, members, programs).err().map(|finding| *finding)
}

/// Which processes of the tree (by node) execute which program before they fork.
///
/// # Errors
/// What would not be as it was.
pub fn executors(
    tree: &Tree,
    members: &[Member],
    programs: &Programs,
) -> Result<BTreeMap<usize, FileId>, Box<Finding>> {
    let mut forkers = vec![None; tree.nodes.len()];
    for (node, own) in tree.nodes.iter().enumerate() {
        for step in &own.steps {
            if let Step::Fork(child) | Step::Outside(child) = step {
                forkers[*child] = Some(node);
            }
        }
    }
    let mut found: BTreeMap<usize, FileId> = BTreeMap::new();
    for (place, file) in programs {
        let place = *place as usize;
        let Some(node) = tree.members.get(place).copied().flatten() else { continue };
        let mut at = node;
        while let Some(above) = forkers[at].filter(|_| tree.nodes[at].flags & FLAGS != 0) {
            at = above;
        }
        match found.entry(at) {
            Entry::Vacant(free) => drop(free.insert(file.clone())),
            Entry::Occupied(known) if known.get() != file => {
                let cause = "processes that share it have different programs";
                return Err(refuse(&members[place], cause));
            }
            Entry::Occupied(_) => {}
        }
    }
    for (member, node) in members.iter().zip(&tree.members) {
        let Some(node) = node.filter(|_| member.ended.is_none()) else { continue };
        let executes = found.contains_key(&node) || !inherits(&member.shares);
        if executes && member.shares.exit_signal.is_some() {
            let cause = "its parent gets another signal than SIGCHLD at its end, which execve(2) \
                         would change";
            return Err(refuse(member, cause));
        }
    }
    Ok(found)
}

/// A process of the plan (by its node) that executes a program before it forks.
#[derive(Debug)]
pub(super) struct Executes {
    pub node: usize,
    pub path: String,
}

impl Executes {
    /// Says so over `control`, and returns when it is done.
    pub(super) fn pass(&self, control: BorrowedFd) -> io::Result<()> {
        raw::set_dumpable(true);
        let exe = File::open(&self.path)?;
        await_growth(control, &Word::Execute(self.node as u32, exe.as_raw_fd()))
    }
}

/// A process of the frame as it was before it executed a program.
struct Before {
    registers: Registers,
    memory: MmImage,
    /// Content of `memory.data`.
    pages: Vec<u8>,
}

/// Has a process of the frame, which waits for a message, execute what it has open as `exe`, and
/// go on as if it had not.
///
/// # Errors
/// The call that failed.
pub(super) fn execute(pid: i32, exe: RawFd) -> Result<(), RestoreError> {
    Restoring::hold(pid)?;
    let insn = io_error("vdso", capture::syscall_insn_now(pid))?;
    let before = Before::of(pid, insn)?;
    reexec::become_program(pid, insn, exe)?;
    before.put_back(pid)?;
    io_error("let it go", trace::detach(pid, 0))
}

fn io_error<T>(what: &str, result: io::Result<T>) -> Result<T, RestoreError> {
    result.map_err(|source| RestoreError::Io { what: what.into(), source })
}

impl Before {
    fn of(pid: i32, insn: u64) -> Result<Self, RestoreError> {
        /// The first and last answer of an interrupted call that the kernel would repeat.
        const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;
        let extended = io_error("extended registers", extended(pid))?;
        let mut remote = Remote::open(pid, false)?;
        let brk = remote.call(insn, libc::SYS_brk, "brk", [0; 6])?;
        let (mut regs, mask) = (remote.regs, remote.mask);
        remote.close()?;
        if RESTARTS.contains(&(regs.rax as i64)) {
            // Who waits for a message does that again.
            regs.rax = -i64::from(libc::EINTR) as u64;
        }
        regs.orig_rax = u64::MAX;
        let memory = memory::capture(pid, brk, &[], &Submitted::default())?;
        let len: u64 = memory.data.iter().map(|(start, end)| end - start).sum();
        let mut pages = vec![0; len as usize];
        io_error("read its memory", read_common(pid, &memory.data, &mut pages))?;
        let general = words(&regs).to_vec();
        Ok(Self { registers: Registers { general, extended, mask }, memory, pages })
    }

    /// Gives everything back to the process, which has executed another program.
    fn put_back(&self, pid: i32) -> Result<(), RestoreError> {
        let image = &self.memory;
        let vdso = io_error("vdso", Vdso::of(pid))?;
        let insn = vdso.syscall_insn().ok_or(RestoreError::Image("no vdso here"))?;
        let now = io_error("maps", crate::tracer::memory::maps(pid))?;
        let mut remote = Remote::open(pid, false)?;
        let mut free = address_space::Free::new(&now, image);
        let stub = Stub::map(&mut remote, insn, Some(free.take(STUB_LEN)?))?;
        let built = open_files(&mut remote, &stub, &image.files)?;
        let mut runner = Runner::new(&mut remote, &stub);
        address_space::clear(&mut runner, &now, (0, 0, 0, 0), &[], image, &vdso, &mut free)?;
        let none = vec![None; image.mappings.len()];
        let heritage = Heritage::default();
        address_space::make_mappings(&mut runner, image, &built, (&heritage, &none), &mut free)?;
        address_space::set_layout(&mut runner, image, -1)?;
        for fd in &built.paths {
            runner.call(libc::SYS_close, "close", &[*fd as u64])?;
        }
        runner.flush()?;
        if !vdso.is_like(image) {
            address_space::redirect(&mut runner, pid, image, &vdso)?;
        }
        let mut at = 0;
        for (start, end) in &image.data {
            let to = at + (end - start) as usize;
            io_error("write its memory", write_all(pid, *start, &self.pages[at..to]))?;
            at = to;
        }
        address_space::protect(&mut runner, image)?;
        runner.flush()?;
        let insn = capture::syscall_insn(pid, image)?;
        stub.unmap(&mut remote, insn)?;
        restore::set_registers(remote, &self.registers)
    }
}

/// Opens the files of its mappings in the process.
fn open_files(remote: &mut Remote, stub: &Stub, files: &[FileId]) -> Result<Built, RestoreError> {
    let mut program = Program::default();
    let mut rows = Vec::with_capacity(files.len());
    for file in files {
        rows.push(program.open("openat", file.path.as_bytes(), libc::O_RDONLY));
    }
    let outcome = remote.run(stub, program)?;
    let open = |row: usize| Ok(outcome.get(row)? as RawFd);
    let paths: Result<Vec<RawFd>, RestoreError> = rows.into_iter().map(open).collect();
    Ok(Built { paths: paths?, ..Built::default() })
}

#[cfg(test)]
mod tests {
    use super::super::image::Ids;
    use super::super::shares::Shares;
    use super::*;

    fn member(pid: i32, ppid: i32, what: Shared, first: Option<i32>) -> Member {
        let mut shares = Shares::default();
        shares.set(what, first);
        Member { ids: Ids { pid, ppid, pgid: 10, sid: 10 }, ended: None, shares }
    }

    fn program(path: &str) -> FileId {
        FileId { path: path.into(), dev: 1, ino: 2, size: 3, mtime_ns: 4 }
    }

    fn found(members: &[Member], programs: &Programs) -> Result<Vec<(i32, String)>, Box<Finding>> {
        let tree = tree::plan(members).expect("plan");
        let all = executors(&tree, members, programs)?;
        Ok(all.into_iter().map(|(node, file)| (tree.nodes[node].pid, file.path)).collect())
    }

    #[test]
    fn who_is_at_the_top_executes_the_program_of_all() {
        let all = [
            member(10, 0, Shared::Files, None),
            member(11, 10, Shared::Files, Some(11)),
            member(12, 11, Shared::Files, Some(11)),
        ];
        let own = vec![(1, program("/a")), (2, program("/a"))];
        assert_eq!(found(&all, &own), Ok(vec![(11, "/a".to_owned())]));
        let other = vec![(1, program("/a")), (2, program("/b"))];
        let refused = found(&all, &other).expect_err("two programs");
        assert_eq!(refused.code, "VOS-TRANSLATE");
        assert_eq!(untranslated(&all, &own), None);
    }

    #[test]
    fn who_shares_with_a_sibling_has_the_program_of_the_parent_that_leaves() {
        let all = [
            member(10, 0, Shared::Files, None),
            member(11, 10, Shared::Files, Some(11)),
            member(12, 10, Shared::Files, Some(11)),
        ];
        let own = vec![(1, program("/a")), (2, program("/a"))];
        assert_eq!(found(&all, &own), Ok(vec![(10, "/a".to_owned())]));
    }

    #[test]
    fn what_execve_keeps_needs_no_program_before() {
        let mut all = [
            member(10, 0, Shared::Directories, Some(10)),
            member(11, 10, Shared::Directories, Some(10)),
        ];
        assert!(!inherits(&all[0].shares));
        assert_eq!(found(&all, &Programs::new()), Ok(Vec::new()));
        all[1].shares.exit_signal = Some(libc::SIGUSR1);
        assert!(found(&all, &Programs::new()).is_err());
    }
}
