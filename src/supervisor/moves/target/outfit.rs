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

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};

use crate::migrate::image::{FdImage, ProcessImage};
use crate::migrate::resource::memory::{Backing, MmImage};
use crate::migrate::restore::Restoring;
use crate::migrate::skeleton::{Build, Skeleton};
use crate::migrate::vdso::Vdso;
use crate::tracer::memory::VmFlags;

/// The descriptions of a job on their way to its processes.
pub(super) struct Outfit<'a> {
    files: &'a FdImage,
    /// Those that are here, by their index.
    here: BTreeMap<u32, OwnedFd>,
    /// Those that some process has finished.
    finished: BTreeSet<u32>,
}

impl<'a> Outfit<'a> {
    pub(super) fn new(files: &'a FdImage) -> Self {
        Self { files, here: BTreeMap::new(), finished: BTreeSet::new() }
    }

    /// A description that this supervisor has made.
    pub(super) fn provide(&mut self, object: u32, fd: OwnedFd) {
        self.here.insert(object, fd);
    }

    /// Equips every process, and gives it its mappings. `paths` are the mapped files of each, as
    /// they are found here.
    pub(super) fn equip(
        mut self,
        skeleton: &Skeleton,
        processes: &[ProcessImage],
        paths: &[Vec<String>],
        vdso: &Vdso,
    ) -> Result<Vec<Restoring>> {
        let mut restoring = Vec::with_capacity(processes.len());
        let of_others = processes.iter().skip(1).flat_map(|process| &process.table);
        let of_others: BTreeSet<u32> = of_others.map(|slot| slot.object).collect();
        for (n, (process, paths)) in processes.iter().zip(paths).enumerate() {
            let held: BTreeSet<u32> = process.table.iter().map(|slot| slot.object).collect();
            let hand_out: Vec<u32> = match n {
                0 => of_others.iter().filter(|o| !self.here.contains_key(o)).copied().collect(),
                _ => Vec::new(),
            };
            let finish = held.iter().filter(|object| self.finished.insert(**object)).copied();
            let exe = paths.get(process.memory.exe as usize).context("a process of no program")?;
            let wanted = |object: &u32| n == 0 || held.contains(object);
            let provided: Vec<u32> = self.here.keys().copied().filter(wanted).collect();
            let build = Build {
                objects: self.files.objects.clone(),
                identities: self.files.identities.clone(),
                table: process.table.clone(),
                paths: mapped_paths(&process.memory, paths),
                exe: exe.clone(),
                shared: shared(&process.memory),
                finish: finish.collect(),
                hand_out: hand_out.clone(),
                provided,
            };
            let fds: Vec<BorrowedFd> =
                build.provided.iter().filter_map(|o| Some(self.here.get(o)?.as_fd())).collect();
            let (built, made) = skeleton.build(n, &build, &fds)?;
            self.here.extend(hand_out.into_iter().zip(made));
            let place = skeleton.processes.get(n).context("a process of no frame")?;
            restoring.push(Restoring::begin(place.pid, process, &built, vdso)?);
        }
        Ok(restoring)
    }
}

/// Shared memory of a process: device and inode, name, bytes.
fn shared(memory: &MmImage) -> Vec<(u64, u64, String, u64)> {
    memory.objects.iter().map(|o| (o.dev, o.ino, o.name.clone(), o.size)).collect()
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

