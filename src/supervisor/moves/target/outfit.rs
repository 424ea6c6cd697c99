//! What the processes of a frame are given before their memory comes: descriptors, files for
//! their mappings.
//!
//! The first process makes every open file description of the job, because those that belong
//! together (both ends of a pipe) have to be made together, and hands out what others hold:
//!
//! ```text
//! supervisor ── Build of the first ──► makes all, keeps its own
//!            ◄── what others hold ────
//!            ── Build of each other, with its descriptions ──► puts them at its numbers
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result};

use crate::migrate::building::{object_of, shared_memory, shares, Build, Built, Share};
use crate::migrate::image::{FdImage, JobImage, ProcessImage};
use crate::migrate::raw::Shared;
use crate::migrate::resource::fd::pty::{self, PtyId};
use crate::migrate::resource::fd::unix::Renames;
use crate::migrate::resource::fd::Slot;
use crate::migrate::resource::ipc::IpcImage;
use crate::migrate::resource::memory::{Backing, MmImage, SharedObject};
use crate::migrate::restore::Restoring;
use crate::migrate::skeleton::Skeleton;
use crate::migrate::terminals::Terminal;
use crate::migrate::vdso::Vdso;
use crate::syscalls::translate::{numbers, objects, ptys};
use crate::tracer::memory::{VmFlags, PAGE};

/// The descriptions of a job on their way to its processes.
pub(super) struct Outfit<'a> {
    files: &'a FdImage,
    /// What this supervisor has made, by the index of the object.
    provided: BTreeMap<u32, OwnedFd>,
    /// What the first process has made for others.
    made: BTreeMap<u32, OwnedFd>,
    /// Memory that several processes map, by device and inode at the source.
    common: BTreeMap<(u64, u64), OwnedFd>,
}

impl<'a> Outfit<'a> {
    pub(super) fn new(files: &'a FdImage) -> Self {
        let (provided, made, common) = Default::default();
        Self { files, provided, made, common }
    }

    /// A description that this supervisor has made.
    pub(super) fn provide(&mut self, object: u32, fd: OwnedFd) {
        self.provided.insert(object, fd);
    }

    /// Terminals that were made with the frame (`made`), and what was opened as /dev/tty in
    /// their sessions.
    pub(super) fn provide_terminals(
        &mut self,
        skeleton: &Skeleton,
        image: &JobImage,
        made: &[Terminal],
    ) -> Result<()> {
        let mut sessions: BTreeMap<Option<PtyId>, i32> = BTreeMap::new();
        for terminal in &image.terminals {
            let object =
                terminal.master.and_then(|o| Some((o, self.files.objects.get(o as usize)?)));
            let Some((object, master)) = object else {
                sessions.insert(None, terminal.sid);
                continue;
            };
            sessions.insert(pty::id_of(master)?, terminal.sid);
            let place = made.iter().position(|m| m.is_made_as(terminal));
            let pair = place.and_then(|place| skeleton.terminals.get(&place));
            let pair = pair.with_context(|| format!("no pty {} in the frame", terminal.number))?;
            if let Some(group) = terminal.foreground {
                skeleton.set_terminal(terminal.sid, pair.slave.as_fd(), group)?;
            }
            self.provide(object, pair.master.try_clone()?);
        }
        for (object, state) in (0..).zip(&self.files.objects) {
            let Some((flags, id)) = pty::opened_by_name(state)? else { continue };
            if let Some(sid) = sessions.get(&id) {
                self.provided.insert(object, skeleton.open_terminal(*sid, flags)?);
            }
        }
        Ok(())
    }

    /// Equips every process, and gives it its mappings. `paths` are the mapped files of each, as
    /// they are found here.
    pub(super) fn equip(
        mut self,
        skeleton: &Skeleton,
        processes: &[ProcessImage],
        paths: &[Vec<String>],
        vdso: &Vdso,
    ) -> Result<(Vec<Restoring>, Renames)> {
        let tables: Vec<&[Slot]> = processes.iter().map(|p| p.table.as_slice()).collect();
        self.make_common(processes)?;
        let mut all = Vec::with_capacity(processes.len());
        let mut renames = Renames::default();
        let mut shares = shares(self.files, &tables);
        if let Some(first) = shares.first_mut() {
            let mapped = processes.iter().skip(1).flat_map(|p| self.mapped_only(p));
            let hand_out = &mut first.build.hand_out;
            hand_out.extend(mapped.map(|(_, object)| object));
            hand_out.sort_unstable();
            hand_out.dedup();
        }
        for (n, (Share { build, ready }, paths)) in shares.into_iter().zip(paths).enumerate() {
            let process = &processes[n];
            let given = self.given_memory(n, process)?;
            let build = Build {
                paths: mapped_paths(&process.memory, paths),
                exe: executable(process, paths)?,
                shared: process.memory.objects.clone(),
                provided: if n == 0 { self.provided.keys().copied().collect() } else { Vec::new() },
                shared_given: given.iter().map(|(index, _)| *index).collect(),
                others: others_of_table(skeleton, processes, n),
                takes_table: process.takes(Shared::Files),
                numbers: numbers::all(),
                names: objects::copied(),
                ..build
            };
            let mut fds: Vec<BorrowedFd> = Vec::new();
            fds.extend(build.provided.iter().filter_map(|o| Some(self.provided.get(o)?.as_fd())));
            for object in &ready {
                fds.push(self.made.get(object).context("an object that nobody has made")?.as_fd());
            }
            fds.extend(given.iter().map(|(_, fd)| fd.as_fd()));
            let (mut built, made) = skeleton.build(n, &build, &fds)?;
            if n == 0 {
                renames = std::mem::take(&mut built.renames);
                built.ptys.iter().for_each(|(job, host)| ptys::bind(*job, *host));
            }
            self.made.extend(build.hand_out.iter().copied().zip(made));
            all.push(built);
        }
        Ok((begin_all(skeleton, processes, &all, vdso)?, renames))
    }

    /// Memory that comes along for the mappings of process `n`: places among its objects.
    fn given_memory(&self, n: usize, process: &ProcessImage) -> Result<Vec<(u32, &OwnedFd)>> {
        let mut given: Vec<(u32, &OwnedFd)> = Vec::new();
        for (index, object) in (0..).zip(&process.memory.objects) {
            given.extend(self.common.get(&(object.dev, object.ino)).map(|fd| (index, fd)));
        }
        for (index, object) in self.mapped_only(process).filter(|_| n > 0) {
            given.push((index, self.made.get(&object).context("memory that nobody has made")?));
        }
        Ok(given)
    }

    /// Memory that a process maps and holds no descriptor of, while another one does: places among
    /// its objects, and the descriptions.
    fn mapped_only<'b>(&'b self, p: &'b ProcessImage) -> impl Iterator<Item = (u32, u32)> + 'b {
        (0..).zip(&p.memory.objects).filter_map(|(index, memory)| {
            let object = object_of(&self.files.identities, memory)?;
            p.table.iter().all(|slot| slot.object != object).then_some((index, object))
        })
    }

    /// Makes the memory that several processes map, of which no descriptor is left.
    fn make_common(&mut self, processes: &[ProcessImage]) -> Result<()> {
        for object in
            processes.iter().flat_map(|p| &p.memory.objects).filter(|o| is_common(o, processes))
        {
            let key = (object.dev, object.ino);
            let other = self.files.identities.contains(&key) || object.segment.is_some();
            if !other && !self.common.contains_key(&key) {
                let memory = shared_memory(&object.name, object.size);
                self.common.insert(key, memory.with_context(|| format!("memory {}", object.name))?);
            }
        }
        Ok(())
    }
}

/// The path here of the executable; none where another process has the same memory.
fn executable(process: &ProcessImage, paths: &[String]) -> Result<String> {
    if process.takes(Shared::Memory) {
        return Ok(String::new());
    }
    let exe = paths.get(process.memory.exe as usize).context("a process of no program")?;
    Ok(exe.clone())
}

/// What the other processes that have the table of process `n` keep open in it.
fn others_of_table(skeleton: &Skeleton, processes: &[ProcessImage], n: usize) -> Vec<RawFd> {
    let Some(first) = processes[n].shares.first(Shared::Files) else { return Vec::new() };
    let all = processes.iter().zip(&skeleton.processes).enumerate();
    let others = all.filter(|(other, (process, _))| {
        *other != n && process.shares.first(Shared::Files) == Some(first)
    });
    others.map(|(_, (_, new))| new.number).collect()
}

/// Gives every process its mappings, once all of them do nothing more by themselves: those of one
/// memory lose it together.
fn begin_all(
    skeleton: &Skeleton,
    processes: &[ProcessImage],
    built: &[Built],
    vdso: &Vdso,
) -> Result<Vec<Restoring>> {
    skeleton.processes.iter().try_for_each(|process| Restoring::hold(process.pid))?;
    let place = |process: &ProcessImage, what| {
        let first = process.shares.first(what).unwrap_or(process.ids.pid);
        let place = processes.iter().position(|other| other.ids.pid == first);
        place.context("a process that shares with nobody")
    };
    let mut all: Vec<Restoring> = Vec::with_capacity(processes.len());
    let new = skeleton.processes.iter().zip(&skeleton.heritage);
    for ((process, built), (new, heritage)) in processes.iter().zip(built).zip(new) {
        all.push(if process.takes(Shared::Memory) {
            let first = all.get(place(process, Shared::Memory)?);
            first.context("a process before the memory that it shares")?.beside(new.pid)?
        } else {
            Restoring::begin(new.pid, process, built, vdso, heritage)?
        });
    }
    for (process, restoring) in processes.iter().zip(&mut all) {
        if !process.takes(Shared::Files) {
            restoring.close_others(process)?;
        }
    }
    Ok(all)
}

/// Do several of the processes map it?
fn is_common(object: &SharedObject, processes: &[ProcessImage]) -> bool {
    let maps = |p: &&ProcessImage| {
        p.memory.objects.iter().any(|o| (o.dev, o.ino) == (object.dev, object.ino))
    };
    processes.iter().filter(maps).count() > 1
}

/// Anonymous memory that several processes share can only be given to them as a memfd: marks it
/// so, with the size that all of them need.
pub(super) fn join_shared(processes: &mut [ProcessImage]) {
    let mut sizes: BTreeMap<(u64, u64), (u64, usize)> = BTreeMap::new();
    for object in processes.iter().flat_map(|p| &p.memory.objects) {
        let (size, holders) = sizes.entry((object.dev, object.ino)).or_default();
        (*size, *holders) = ((*size).max(object.size), *holders + 1);
    }
    for object in processes.iter_mut().flat_map(|p| &mut p.memory.objects) {
        if object.segment.is_some() {
            continue;
        }
        if let Some((size, 2..)) = sizes.get(&(object.dev, object.ino)) {
            (object.size, object.anonymous) = (*size, false);
        }
    }
}

/// Gives the objects that stand for System V segments the size of those.
pub(super) fn size_segments(processes: &mut [ProcessImage], ipc: &IpcImage) -> Result<()> {
    for object in processes.iter_mut().flat_map(|p| &mut p.memory.objects) {
        let Some(id) = object.segment else { continue };
        let segment = ipc.segments.iter().find(|segment| segment.perm.id == id);
        let size = segment.with_context(|| format!("segment {id} is not in the image"))?.size;
        object.size = size.checked_next_multiple_of(PAGE).context("a segment that is too large")?;
    }
    Ok(())
}

/// Paths here of the mapped files, and whether a mapping may write to them.
fn mapped_paths(memory: &MmImage, paths: &[String]) -> Vec<(String, bool)> {
    let writes = |index: usize| {
        memory.mappings.iter().any(|m| {
            m.shared
                && m.flags.contains(VmFlags::MAY_WRITE)
                && m.backing == Backing::File(index as u32)
        })
    };
    paths.iter().enumerate().map(|(i, path)| (path.clone(), writes(i))).collect()
}
