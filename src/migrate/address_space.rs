//! The address space of a new process: what it had goes, the mappings of the image come.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use super::building::Built;
use super::heritage::{without, Heritage};
use super::resource::ipc::Kind;
use super::resource::memory::{Backing, Mapping, MmImage};
use super::restore::{io_error, RestoreError, Result, Runner};
use super::vdso::Vdso;
use crate::syscalls::translate::objects;
use crate::tracer::inject::{self, Arg};
use crate::tracer::memory::{self, VmFlags, PAGE};

/// Free addresses: neither in the new process now nor in the image.
pub(super) struct Free {
    taken: Vec<(u64, u64)>,
}

impl Free {
    pub(super) fn new(now: &[memory::Vma], image: &MmImage) -> Self {
        let mut taken: Vec<(u64, u64)> = now.iter().map(|v| (v.start, v.end)).collect();
        taken.extend(image.mappings.iter().map(|m| (m.start, m.end)));
        taken.sort_unstable();
        Self { taken }
    }

    /// Takes `len` bytes, with a page around them free.
    pub(super) fn take(&mut self, len: u64) -> Result<u64> {
        const FIRST: u64 = 0x1000_0000;
        const LAST: u64 = 0x7fff_f000_0000;
        let mut at = FIRST;
        for &(start, end) in &self.taken {
            if start >= at + len + 2 * PAGE {
                break;
            }
            at = at.max(end);
        }
        let at = at + PAGE;
        if at + len > LAST {
            return Err(RestoreError::Image("no free addresses"));
        }
        self.taken.push((at, at + len));
        self.taken.sort_unstable();
        Ok(at)
    }
}

/// Takes away what the process has of the supervisor, and what of its heritage it does not `keep`,
/// and puts the vdso in its place.
pub(super) fn clear(
    runner: &mut Runner,
    now: &[memory::Vma],
    rseq: (u64, u32, u32, u32),
    keep: &[(u64, u64)],
    image: &MmImage,
    vdso: &Vdso,
    free: &mut Free,
) -> Result<()> {
    const RSEQ_FLAG_UNREGISTER: u64 = 1;
    let (at, len, signature, _) = rseq;
    if at != 0 {
        let args = [at, len.into(), RSEQ_FLAG_UNREGISTER, signature.into()];
        runner.call(libc::SYS_rseq, "rseq", &args)?;
    }
    let stub = runner.stub.base;
    for vma in now.iter().filter(|v| !super::resource::memory::is_special(v)) {
        debug_assert!(!vma.contains(stub));
        for (start, end) in without(&[(vma.start, vma.end)], keep) {
            runner.call(libc::SYS_munmap, "munmap", &[start, end - start])?;
        }
    }
    vdso.place(
        image,
        now,
        |len| free.take(len),
        |old, len, new| {
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            runner.call(libc::SYS_mremap, "mremap of the vdso", &[old, len, len, flags, new])
        },
    )
}

/// The old vdso's text at its old address, with jumps into the new one.
pub(super) fn redirect(runner: &mut Runner, pid: i32, image: &MmImage, vdso: &Vdso) -> Result<()> {
    let special = |m: &&Mapping| matches!(&m.backing, Backing::Special(n) if n == "[vdso]");
    let Some(old) = image.mappings.iter().find(special) else { return Ok(()) };
    let now = io_error(format!("maps of process {pid}"), memory::maps(pid))?;
    let new = memory::vdso(&now);
    let new = new.ok_or(RestoreError::Image("no vdso here"))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let args = [old.start, old.len(), prot, flags as u64, u64::MAX, 0];
    runner.call(libc::SYS_mmap, "mmap of the old vdso", &args)?;
    runner.flush()?;
    let text = vdso.instead_of(&image.vdso, new.start);
    io_error("write the old vdso", inject::write_all(pid, old.start, &text))?;
    let prot = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    runner.call(libc::SYS_mprotect, "mprotect of the old vdso", &[old.start, old.len(), prot])?;
    runner.flush()
}

/// Protection while pages are written: theirs, and for private memory with content more.
fn first_prot(m: &Mapping) -> i32 {
    if m.has_data {
        m.prot | libc::PROT_READ | libc::PROT_WRITE
    } else {
        m.prot
    }
}

pub(super) fn make_mappings(
    runner: &mut Runner,
    image: &MmImage,
    built: &Built,
    (heritage, kept): (&Heritage, &[Option<u64>]),
    free: &mut Free,
) -> Result<()> {
    let anonymous = make_shared(runner, image, free)?;
    for (m, kept) in image.mappings.iter().zip(kept) {
        if let Some(end) = kept {
            keep(runner, m, *end, &heritage.absent(m.start, *end, &image.data))?;
            continue;
        }
        let flags = mmap_flags(m);
        let prot = first_prot(m) as u64;
        let fd = match &m.backing {
            Backing::Special(_) | Backing::Ring(_) => continue,
            Backing::Anonymous { .. } => u64::MAX,
            Backing::File(index) => *descriptor(&built.paths, *index)? as u64,
            Backing::Object(index) => match anonymous.get(&place(m, *index, image)) {
                Some((base, _)) => {
                    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                    // An old size of 0 gives the same shared pages a second place (mremap(2)).
                    let args = [base + m.offset, 0, m.len(), flags, m.start];
                    runner.call(libc::SYS_mremap, "mremap of shared memory", &args)?;
                    if prot as i32 != libc::PROT_READ | libc::PROT_WRITE {
                        let args = [m.start, m.len(), prot];
                        runner.call(libc::SYS_mprotect, "mprotect", &args)?;
                    }
                    advise(runner, m)?;
                    continue;
                }
                _ => *descriptor(&built.shared, *index)? as u64,
            },
        };
        let anonymous = if fd == u64::MAX { libc::MAP_ANONYMOUS } else { 0 };
        let args = [m.start, m.len(), prot, (flags | anonymous) as u64, fd, m.offset];
        let args = if fd == u64::MAX { [args[0], args[1], args[2], args[3], fd, 0] } else { args };
        runner.call(libc::SYS_mmap, "mmap", &args)?;
        name(runner, m)?;
        advise(runner, m)?;
    }
    for (base, len) in anonymous.into_values() {
        runner.call(libc::SYS_munmap, "munmap", &[base, len])?;
    }
    Ok(())
}

/// Makes a mapping of the part up to `end` that the process has inherited. `absent` are pages that
/// it does not have any more.
fn keep(runner: &mut Runner, m: &Mapping, end: u64, absent: &[(u64, u64)]) -> Result<()> {
    if end < m.end {
        let args = [m.start, end - m.start, m.len(), 0];
        runner.call(libc::SYS_mremap, "mremap of inherited memory", &args)?;
    }
    for (start, end) in absent {
        let args = [*start, end - start, libc::MADV_DONTNEED as u64];
        runner.call(libc::SYS_madvise, "MADV_DONTNEED", &args)?;
    }
    let prot = first_prot(m);
    if prot != libc::PROT_READ | libc::PROT_WRITE {
        runner.call(libc::SYS_mprotect, "mprotect", &[m.start, m.len(), prot as u64])?;
    }
    name(runner, m)?;
    advise(runner, m)
}

fn descriptor(fds: &[RawFd], index: u32) -> Result<&RawFd> {
    fds.get(index as usize).ok_or(RestoreError::Image("a mapping of no file"))
}

/// An object, and whether its mappings are to be written to; that is one for all that is no
/// System V segment.
type Place = (u32, bool);

fn place(m: &Mapping, index: u32, image: &MmImage) -> Place {
    let segment = image.objects.get(index as usize).is_some_and(|o| o.segment.is_some());
    (index, !segment || m.flags.contains(VmFlags::MAY_WRITE))
}

/// System V segments are attached, once to be read only and once to be written to as well, as the
/// mappings have them.
fn attach_segments(
    runner: &mut Runner,
    image: &MmImage,
    free: &mut Free,
) -> Result<BTreeMap<Place, (u64, u64)>> {
    let mut bases = BTreeMap::new();
    for m in &image.mappings {
        let Backing::Object(index) = m.backing else { continue };
        let Some(object) = image.objects.get(index as usize) else { continue };
        let (Some(id), place) = (object.segment, place(m, index, image)) else { continue };
        if bases.contains_key(&place) {
            continue;
        }
        let at = free.take(object.size)?;
        let flags = if place.1 { 0 } else { libc::SHM_RDONLY };
        let id = objects::to_host(Kind::Memory, id);
        runner.call(libc::SYS_shmat, "shmat", &[id as u64, at, flags as u64])?;
        bases.insert(place, (at, object.size));
    }
    Ok(bases)
}

/// Shared anonymous memory is mapped once, whole, at a free place; its mappings are made from
/// there, so that several keep sharing their pages.
fn make_shared(
    runner: &mut Runner,
    image: &MmImage,
    free: &mut Free,
) -> Result<BTreeMap<Place, (u64, u64)>> {
    let mut bases = attach_segments(runner, image, free)?;
    for (index, object) in (0..).zip(&image.objects) {
        if !object.anonymous {
            continue;
        }
        let at = free.take(object.size)?;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let args = [at, object.size, prot, flags as u64, u64::MAX, 0];
        runner.call(libc::SYS_mmap, "mmap of shared memory", &args)?;
        bases.insert((index, true), (at, object.size));
    }
    Ok(bases)
}

const MAP_DROPPABLE: i32 = 0x08;

fn mmap_flags(m: &Mapping) -> i32 {
    let mut flags = libc::MAP_FIXED_NOREPLACE;
    flags |= match (m.shared, m.flags.contains(VmFlags::DROPPABLE)) {
        (true, _) => libc::MAP_SHARED,
        (false, true) => MAP_DROPPABLE,
        (false, false) => libc::MAP_PRIVATE,
    };
    if m.flags.contains(VmFlags::GROWS_DOWN) {
        flags |= libc::MAP_GROWSDOWN;
    }
    if m.flags.contains(VmFlags::NO_RESERVE) {
        flags |= libc::MAP_NORESERVE;
    }
    flags
}

/// PR_SET_VMA_ANON_NAME (Linux 5.17); a name is no more than a help for people.
fn name(runner: &mut Runner, m: &Mapping) -> Result<()> {
    const PR_SET_VMA: u64 = 0x5356_4d41;
    let Backing::Anonymous { name: Some(name) } = &m.backing else { return Ok(()) };
    let mut name = name.clone().into_bytes();
    name.push(0);
    let (start, len) = (Arg::Num(m.start), Arg::Num(m.len()));
    runner.call_with(libc::SYS_prctl, "PR_SET_VMA", &name, |at| {
        vec![Arg::Num(PR_SET_VMA), Arg::Num(0), start, len, at]
    })
}

/// madvise(2) as the flags of the mapping tell.
fn advise(runner: &mut Runner, m: &Mapping) -> Result<()> {
    const ADVICE: [(VmFlags, i32); 8] = [
        (VmFlags::DONT_FORK, libc::MADV_DONTFORK),
        (VmFlags::WIPE_ON_FORK, libc::MADV_WIPEONFORK),
        (VmFlags::DONT_DUMP, libc::MADV_DONTDUMP),
        (VmFlags::HUGE, libc::MADV_HUGEPAGE),
        (VmFlags::NO_HUGE, libc::MADV_NOHUGEPAGE),
        (VmFlags::MERGEABLE, libc::MADV_MERGEABLE),
        (VmFlags::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (VmFlags::RANDOM, libc::MADV_RANDOM),
    ];
    for (flag, advice) in ADVICE {
        // Droppable memory is wiped on fork and not dumped of itself (mmap(2)).
        if m.flags.contains(flag) && !m.flags.contains(VmFlags::DROPPABLE) {
            runner.call(libc::SYS_madvise, "madvise", &[m.start, m.len(), advice as u64])?;
        }
    }
    Ok(())
}

/// After the pages: final protection, guard regions, locks.
pub(super) fn protect(runner: &mut Runner, image: &MmImage) -> Result<()> {
    const MADV_GUARD_INSTALL: u64 = 102;
    const MLOCK_ONFAULT: u64 = 1;
    for m in image.mappings.iter().filter(|m| !matches!(m.backing, Backing::Special(_))) {
        for (start, end) in &m.guards {
            let args = [*start, end - start, MADV_GUARD_INSTALL];
            runner.call(libc::SYS_madvise, "MADV_GUARD_INSTALL", &args)?;
        }
        if m.flags.contains(VmFlags::LOCKED) {
            let flags = if m.flags.contains(VmFlags::LOCK_ON_FAULT) { MLOCK_ONFAULT } else { 0 };
            runner.call(libc::SYS_mlock2, "mlock2", &[m.start, m.len(), flags])?;
        }
        if first_prot(m) != m.prot {
            runner.call(libc::SYS_mprotect, "mprotect", &[m.start, m.len(), m.prot as u64])?;
        }
    }
    let Some(on_fault) = image.locks_future else { return Ok(()) };
    let flags = libc::MCL_FUTURE | if on_fault { libc::MCL_ONFAULT } else { 0 };
    runner.call(libc::SYS_mlockall, "mlockall", &[flags as u64])
}

/// PR_SET_MM_MAP (prctl(2), `struct prctl_mm_map`): brk, arguments, environment, auxv, exe.
pub(super) fn set_layout(runner: &mut Runner, image: &MmImage, exe: RawFd) -> Result<()> {
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    const STRUCT_LEN: u64 = 104;
    runner.reserve(image.auxv.len() + 512)?;
    let auxv = runner.program.data(&image.auxv);
    let l = &image.layout;
    let auxv_at = runner.stub.data() + auxv.offset();
    let words = [
        l.start_code,
        l.end_code,
        l.start_data,
        l.end_data,
        l.start_brk,
        l.brk,
        l.start_stack,
        l.arg_start,
        l.arg_end,
        l.env_start,
        l.env_end,
        auxv_at,
    ];
    let mut map: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    map.extend_from_slice(&(image.auxv.len() as u32).to_le_bytes());
    map.extend_from_slice(&exe.to_le_bytes());
    runner.call_with(libc::SYS_prctl, "PR_SET_MM_MAP", &map, |at| {
        vec![Arg::Num(PR_SET_MM), Arg::Num(PR_SET_MM_MAP), at, Arg::Num(STRUCT_LEN)]
    })
}
