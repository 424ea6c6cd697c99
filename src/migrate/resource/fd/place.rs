//! Puts restored descriptors at their numbers.
//!
//! ```text
//! 0 ┄ wanted numbers ┄┤ base ┄ kept, provided and new descriptors ┄┄►
//!                      make all up here, hand out, dup3 down, finish, close all but wanted
//!                      and kept
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use nix::sys::resource::{getrlimit, setrlimit, Resource};

use super::unix::{self, Assembly, Renames};
use super::{
    by_name, failed, raw, unexpected, CaptureCx, FdError, FdKind, FdView, Object, RestoreCx,
    Shared, Slot,
};
use crate::capabilities::Capability;

/// Kind of objects that are nothing but what the supervisor of the target provides: relay
/// ends and terminals. Their state is empty.
pub const PROVIDED: &str = "provided";

/// Status flags that fcntl(F_SETFL) can set, O_ASYNC aside.
pub(super) const SETTABLE: i32 =
    libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;

/// The descriptors of a new process in the making; each step once, in the order of the
/// functions. After an error the process is not usable.
pub struct Making<'a> {
    objects: &'a [Object],
    table: &'a [Slot],
    /// The first number above all wanted ones.
    base: RawFd,
    /// By object.
    made: BTreeMap<u32, OwnedFd>,
    /// Of sockets, when the job runs.
    renames: Renames,
    _room: Room,
}

impl<'a> Making<'a> {
    /// Looks at what is wanted, and makes room for it and for `more` descriptors.
    ///
    /// Kept descriptors below the highest wanted number are moved up at once; `keep` then
    /// holds their new numbers, also after an error.
    ///
    /// # Errors
    /// A table that contradicts itself; what was tried.
    pub fn begin(
        objects: &'a [Object],
        table: &'a [Slot],
        more: usize,
        keep: &mut [RawFd],
    ) -> Result<Self, FdError> {
        let base = check_table(objects, table)?;
        let count = 2 * objects.len() + more + keep.len() + 16;
        let room = Room::make(base as u64 + count as u64)?;
        lift_kept(keep, base)?;
        Ok(Self {
            objects,
            table,
            base,
            made: BTreeMap::new(),
            renames: Renames::default(),
            _room: room,
        })
    }

    /// Moves a descriptor out of the way of the wanted numbers.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lift(&self, fd: OwnedFd) -> Result<OwnedFd, FdError> {
        lift(fd, self.base)
    }

    /// A copy of a descriptor, out of the way of the table.
    ///
    /// # Errors
    /// When the kernel has none to spare.
    pub fn lift_copy(&self, fd: BorrowedFd) -> Result<OwnedFd, FdError> {
        let copy = fd.try_clone_to_owned().map_err(failed("duplicate a descriptor"))?;
        self.lift(copy)
    }

    /// Takes an object that another process of the job has made.
    ///
    /// # Errors
    /// When the kernel refuses to move it out of the way.
    pub fn take(&mut self, object: u32, fd: OwnedFd) -> Result<(), FdError> {
        let fd = self.lift(fd)?;
        self.made.insert(object, fd);
        Ok(())
    }

    /// Makes all objects that are in the table, for others (`hand_out`) or on their way inside of
    /// a socket only (`carried`), and not taken.
    ///
    /// # Errors
    /// What was tried on which object.
    pub fn make(
        &mut self,
        hand_out: &[u32],
        carried: &[u32],
        cx: &mut dyn RestoreCx,
    ) -> Result<(), FdError> {
        let mut wanted: BTreeSet<u32> = self.table.iter().map(|slot| slot.object).collect();
        wanted.extend(hand_out.iter().chain(carried));
        wanted.retain(|object| !self.made.contains_key(object));
        let mut high = High::lift(&wanted, self.base, cx)?;
        let (mut sockets, made) = Assembly::make(self.objects, &wanted, self.base, &mut high)?;
        self.made.extend(made);
        for index in wanted {
            let object = object(self.objects, index)?;
            if let Some(socket) = self.made.get(&index) {
                set_flags(socket.as_raw_fd(), object.flags)?;
                continue;
            }
            let fd = make(index, object, self.base, &mut high)?;
            self.made.insert(index, fd);
        }
        *high.shared() = Shared::default();
        for &index in carried {
            let object = object(self.objects, index)?;
            kind(object)?.finish(&object.state, self.get(index)?.as_raw_fd())?;
        }
        sockets.fill(&self.made, &mut high)?;
        self.renames = sockets.into_renames();
        Ok(())
    }

    /// Files of sockets that are renamed when the job runs.
    pub fn take_renames(&mut self) -> Renames {
        std::mem::take(&mut self.renames)
    }

    /// The descriptor of an object.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, object: u32) -> Result<BorrowedFd<'_>, FdError> {
        let made = self.made.get(&object).map(AsFd::as_fd);
        made.ok_or_else(|| unexpected(format!("object {object} is not made")))
    }

    /// Installs the table, and closes the descriptors above it.
    ///
    /// # Errors
    /// When the kernel refuses a number.
    pub fn place(&mut self) -> Result<(), FdError> {
        for slot in self.table {
            raw::dup_onto(self.get(slot.object)?.as_raw_fd(), slot.fd, slot.cloexec)
                .map_err(failed(format!("install descriptor {}", slot.fd)))?;
        }
        self.made.clear();
        Ok(())
    }

    /// Finishes these objects, which are in the table ([`FdKind::finish`]).
    ///
    /// # Errors
    /// What was tried on which object.
    pub fn finish(&self, objects: &[u32]) -> Result<(), FdError> {
        let mut slots = HashMap::new();
        for slot in self.table {
            slots.entry(slot.object).or_insert(slot.fd);
        }
        for &index in objects {
            let fd = slots.get(&index);
            let fd = fd.ok_or_else(|| unexpected(format!("object {index} has no descriptor")))?;
            let object = object(self.objects, index)?;
            kind(object)?.finish(&object.state, *fd)?;
        }
        Ok(())
    }

    /// Closes all descriptors but those of the table and of `keep`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn close_others(self, keep: &[RawFd]) -> Result<(), FdError> {
        close_others(self.table, keep)
    }
}

fn object(objects: &[Object], index: u32) -> Result<&Object, FdError> {
    objects.get(index as usize).ok_or_else(|| unexpected(format!("there is no object {index}")))
}

/// The first number above all wanted ones.
fn check_table(objects: &[Object], table: &[Slot]) -> Result<RawFd, FdError> {
    let mut numbers: Vec<RawFd> = table.iter().map(|slot| slot.fd).collect();
    numbers.sort_unstable();
    let known = table.iter().all(|slot| (slot.object as usize) < objects.len());
    let unique = numbers.windows(2).all(|pair| pair[0] != pair[1]);
    if !known || !unique || numbers.first().is_some_and(|&fd| fd < 0) {
        return Err(unexpected("the table of descriptors contradicts itself"));
    }
    numbers
        .last()
        .map_or(Some(0), |last| last.checked_add(1))
        .ok_or_else(|| unexpected("the table of descriptors has a number beyond all limits"))
}

/// RLIMIT_NOFILE, raised for a while. Descriptors beyond the old limit stay usable.
struct Room(Option<(u64, u64)>);

impl Room {
    fn make(wanted: u64) -> Result<Self, FdError> {
        let tried = || failed(format!("raise the limit of open files to {wanted}"));
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| tried()(e.into()))?;
        if soft >= wanted {
            return Ok(Self(None));
        }
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))
            .map_err(|e| tried()(e.into()))?;
        Ok(Self(Some((soft, hard))))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.0 {
            // Lowering a limit is always allowed.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        }
    }
}

fn lift_kept(keep: &mut [RawFd], base: RawFd) -> Result<(), FdError> {
    for fd in keep.iter_mut().filter(|fd| **fd < base) {
        let moved = raw::dup_from(*fd, base)
            .map_err(failed(format!("move kept descriptor {fd} above {base}")))?;
        let old = std::mem::replace(fd, moved.into_raw_fd()) as u32;
        raw::close_range(old, old).map_err(failed(format!("close descriptor {old}")))?;
    }
    Ok(())
}

/// What the supervisor provides, moved out of the way of the wanted numbers.
struct High<'a> {
    provided: HashMap<u32, OwnedFd>,
    cx: &'a mut dyn RestoreCx,
}

impl<'a> High<'a> {
    fn lift(
        objects: &BTreeSet<u32>,
        base: RawFd,
        cx: &'a mut dyn RestoreCx,
    ) -> Result<Self, FdError> {
        let mut provided = HashMap::new();
        for &object in objects {
            if let Some(fd) = cx.provided(object) {
                provided.insert(object, lift(fd, base)?);
            }
        }
        Ok(Self { provided, cx })
    }
}

impl RestoreCx for High<'_> {
    fn provided(&mut self, object: u32) -> Option<OwnedFd> {
        self.provided.remove(&object)
    }

    fn shared(&mut self) -> &mut Shared {
        self.cx.shared()
    }

    fn act(
        &mut self,
        by: Option<unix::Cred>,
        deed: &unix::Deed,
        fds: &[BorrowedFd],
    ) -> io::Result<Vec<OwnedFd>> {
        self.cx.act(by, deed, fds)
    }
}

pub(super) fn lift(fd: OwnedFd, base: RawFd) -> Result<OwnedFd, FdError> {
    if fd.as_raw_fd() >= base {
        return Ok(fd);
    }
    raw::dup_from(fd.as_raw_fd(), base).map_err(failed(format!("duplicate above {base}")))
}

fn make(
    index: u32,
    object: &Object,
    base: RawFd,
    cx: &mut dyn RestoreCx,
) -> Result<OwnedFd, FdError> {
    let kind = kind(object)?;
    let fd = lift(kind.restore(index, &object.state, cx)?, base)?;
    set_flags(fd.as_raw_fd(), object.flags)?;
    Ok(fd)
}

fn kind(object: &Object) -> Result<&'static dyn FdKind, FdError> {
    let unknown = || unexpected(format!("restore a descriptor of unknown kind `{}`", object.kind));
    by_name(&object.kind).ok_or_else(unknown)
}

/// Sets what of the status flags fcntl(F_SETFL) can set.
pub(super) fn set_flags(fd: RawFd, flags: i32) -> Result<(), FdError> {
    if flags & libc::O_PATH != 0 {
        return Ok(());
    }
    let tried = || failed(format!("set status flags {flags:#o} of fd {fd}"));
    let now = raw::fcntl(fd, libc::F_GETFL, 0).map_err(tried())?;
    if (now ^ flags) & SETTABLE == 0 || now & libc::O_PATH != 0 {
        return Ok(());
    }
    let new = now & !SETTABLE | flags & SETTABLE;
    raw::fcntl(fd, libc::F_SETFL, new).map(drop).map_err(tried())
}

fn close_others(table: &[Slot], keep: &[RawFd]) -> Result<(), FdError> {
    let mut stay: Vec<u32> = table
        .iter()
        .map(|slot| slot.fd)
        .chain(keep.iter().copied())
        .filter_map(|fd| u32::try_from(fd).ok())
        .collect();
    stay.sort_unstable();
    let mut first = 0;
    for fd in stay {
        if first < fd {
            raw::close_range(first, fd - 1).map_err(failed("close what is not wanted"))?;
        }
        first = fd.saturating_add(1).max(first);
    }
    raw::close_range(first, u32::MAX).map_err(failed("close what is not wanted"))
}

/// See [`PROVIDED`].
pub(super) struct Provided;

impl FdKind for Provided {
    fn name(&self) -> &'static str {
        PROVIDED
    }

    fn capabilities(&self) -> &'static [Capability] {
        &[]
    }

    fn recognises(&self, _view: &FdView) -> bool {
        false
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        Err(view.failed("capture")(io::ErrorKind::Unsupported.into()))
    }

    fn restore(
        &self,
        object: u32,
        _state: &[u8],
        cx: &mut dyn RestoreCx,
    ) -> Result<OwnedFd, FdError> {
        cx.provided(object).ok_or_else(|| {
            let what = format!("restore object {object}: the supervisor has nothing for it");
            failed(what)(io::ErrorKind::NotFound.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Seek, SeekFrom, Write};

    use super::super::testing::{move_bulk, Here, Restored};
    use super::super::views;
    use super::*;

    fn object(kind: &str) -> Object {
        Object { kind: kind.into(), state: Vec::new(), flags: 0, signals: None }
    }

    fn slot(fd: i32, object: u32, cloexec: bool) -> Slot {
        Slot { fd, object, cloexec }
    }

    #[test]
    fn contradictory_tables_are_refused() {
        let objects = [object(PROVIDED)];
        for table in [
            vec![slot(3, 1, false)],
            vec![slot(3, 0, false), slot(3, 0, true)],
            vec![slot(-1, 0, false)],
            vec![slot(i32::MAX, 0, false)],
        ] {
            assert!(check_table(&objects, &table).is_err(), "{table:?}");
        }
        assert_eq!(check_table(&objects, &[slot(9, 0, false)]).ok(), Some(10));
        assert!(kind(&object("no such kind")).is_err());
    }

    /// All of it, for a process that shares nothing.
    fn restore_all(
        objects: &[Object],
        table: &[Slot],
        keep: &mut [RawFd],
        cx: &mut dyn RestoreCx,
    ) -> Result<(), FdError> {
        let mut making = Making::begin(objects, table, 0, keep)?;
        making.make(&[], &[], cx)?;
        making.place()?;
        making.finish(&(0..objects.len() as u32).collect::<Vec<_>>())?;
        making.close_others(keep)
    }

    fn ok<T, E: std::fmt::Debug>(result: Result<T, E>, what: &str) -> Result<T, String> {
        result.map_err(|e| format!("{what}: {e:?}"))
    }

    fn same<T: PartialEq + std::fmt::Debug>(a: T, b: T) -> Result<(), String> {
        if a == b {
            Ok(())
        } else {
            Err(format!("{a:?} is not {b:?}"))
        }
    }

    /// The descriptor `number`, as a file with a description shared with it.
    fn file(number: i32) -> Result<File, String> {
        ok(raw::dup_from(number, 0), &format!("dup {number}")).map(File::from)
    }

    #[test]
    fn a_shuffled_table_with_shared_descriptions() {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("f"), "0123456789").expect("write");
        let open = || File::open(dir.path().join("f")).expect("open");
        let (mut one, two) = (open(), open());
        one.seek(SeekFrom::Start(4)).expect("seek");
        let (reader, mut writer) = io::pipe().expect("pipe");
        writer.write_all(b"in flight").expect("write");
        let memory: File = raw::memfd(c"m", 0).expect("memfd").into();
        (&memory).write_all(b"memory").expect("write");
        let here = Here::of(&[&one, &two, &reader, &writer, &memory]);
        let mut objects = vec![
            here.capture(&one),
            here.capture(&two),
            here.capture(&reader),
            here.capture(&writer),
            here.capture(&memory),
            object(PROVIDED),
        ];
        let mut cx = Restored::default();
        move_bulk(&here.view(&memory), &objects[4], &mut cx, 4);
        cx.provide(5, open().into());
        objects[5].flags = libc::O_NONBLOCK;
        let kept = tempfile::tempfile().expect("file");
        // Numbers in use by the very things that the restore needs, and one beyond the
        // usual soft limit of 1024.
        let mut numbers = vec![(kept.as_raw_fd(), 3)];
        let free = (0..).filter(|fd| *fd != kept.as_raw_fd());
        numbers.extend(free.take(40).step_by(3).zip([5, 0, 4, 1, 2, 0, 1, 0]));
        numbers.push((1500, 0));
        let table: Vec<Slot> = numbers.iter().map(|&(fd, o)| slot(fd, o, fd % 2 == 0)).collect();
        let at = |object: u32| -> Vec<i32> {
            table.iter().filter(|s| s.object == object).map(|s| s.fd).collect()
        };
        raw::in_child(&dir.path().join("complaints"), || {
            let mut keep = [kept.as_raw_fd()];
            ok(restore_all(&objects, &table, &mut keep, &mut cx), "restore_all")?;
            same(keep[0] > 1500, true)?;
            // Exactly the table and what is kept.
            let pid = std::process::id() as i32;
            let now = ok(views(&[pid]), "views")?;
            // The listing itself uses one descriptor.
            let slots: Vec<_> = now.tables[&pid].iter().filter(|s| s.fd != keep[0]).collect();
            let mut wanted: Vec<_> = table.iter().collect();
            wanted.sort_by_key(|s| s.fd);
            same(slots.len(), wanted.len())?;
            for (is, want) in slots.iter().zip(&wanted) {
                same((is.fd, is.cloexec), (want.fd, want.cloexec))?;
                for (is2, want2) in slots.iter().zip(&wanted) {
                    same(is.object == is2.object, want.object == want2.object)?;
                }
            }
            // A shared offset, and one of its own.
            let mut text = [0; 2];
            for (fd, want) in at(0).into_iter().zip([b"45", b"67", b"89"]) {
                ok(file(fd)?.read_exact(&mut text), "read")?;
                same(&text, want)?;
            }
            ok(file(at(1)[1])?.read_exact(&mut text), "read")?;
            same(&text, b"01")?;
            let mut flight = [0; 9];
            ok(file(at(2)[0])?.read_exact(&mut flight), "read")?;
            same(&flight, b"in flight")?;
            ok(file(at(3)[0])?.write_all(b"more"), "write")?;
            same(ok(raw::readable_bytes(at(2)[0]), "FIONREAD")?, 4)?;
            same(ok(file(at(4)[0])?.metadata(), "stat")?.len(), 6)?;
            let flags = ok(raw::fcntl(at(5)[0], libc::F_GETFL, 0), "F_GETFL")?;
            same(flags & libc::O_NONBLOCK, libc::O_NONBLOCK)
        });
    }
}
