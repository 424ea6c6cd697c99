//! Content of files that exist nowhere else: deleted files and memfds.
//!
//! ```text
//! source:  bulk ─► BulkSource {fd, extents} ─► chunks on the wire
//! target:  vessel ─► file of the right size, filled by pwrite ─► provided ─► reopened, positioned
//! ```
//! Holes stay holes (SEEK_DATA and SEEK_HOLE of lseek(2)).

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{open, OFlag};
use nix::sys::stat::Mode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::capabilities::Capability;

use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView, RestoreCx};

/// Most bytes of data (holes not counted) that are carried along for one file.
pub const BULK_LIMIT: u64 = 1 << 30;

/// Which file content belongs to: st_dev and st_ino at the source. Mappings of the same
/// file have the same two numbers in /proc/PID/maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BulkId {
    pub dev: u64,
    pub ino: u64,
}

impl BulkId {
    /// The id of a description's file.
    #[must_use]
    pub fn of(view: &FdView) -> Self {
        Self { dev: view.dev, ino: view.ino }
    }
}

/// Content to be sent.
#[derive(Debug)]
pub struct BulkSource {
    pub id: BulkId,
    /// To be read with pread(2) only: it may share its position with the job.
    pub fd: OwnedFd,
    /// Size of the file, bytes.
    pub size: u64,
    /// Offset and length of the ranges that hold data, bytes, ascending.
    pub extents: Vec<(u64, u64)>,
}

impl BulkSource {
    /// Opens the content of a description, by a description of its own where the file's
    /// mode allows, so that the job's position stays.
    ///
    /// # Errors
    /// `VOS-FILE-BIG` beyond [`BULK_LIMIT`]; I/O errors.
    pub fn open(view: &FdView, cx: &dyn CaptureCx) -> Result<Self, FdError> {
        let id = BulkId::of(view);
        let (fd, extents) = match File::open(view.proc_path()) {
            Ok(mut file) => {
                let extents = extents(&mut file, view.size).map_err(view.failed("find data"))?;
                (file.into(), extents)
            }
            Err(e) if view.flags & libc::O_ACCMODE == libc::O_WRONLY => {
                return Err(view.failed("open for reading")(e));
            }
            Err(_) => (cx.dup(view).map_err(view.failed("duplicate"))?, vec![(0, view.size)]),
        };
        let source = Self { id, fd, size: view.size, extents };
        if source.data() > BULK_LIMIT {
            let cause = format!("it exists only here and holds {} MiB", source.data() >> 20);
            let remedy = "let the program close it; up to 1024 MiB are carried along";
            return Err(view.refuse("VOS-FILE-BIG", cause, remedy));
        }
        Ok(source)
    }

    /// Bytes of data, holes not counted.
    #[must_use]
    pub fn data(&self) -> u64 {
        self.extents.iter().map(|(_, len)| len).sum()
    }
}

/// The ranges of a file that hold data. Moves the position of `file`.
fn extents(file: &mut File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, at, libc::SEEK_DATA) {
            // No data from here to the end.
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => break,
            other => other?,
        };
        at = seek(file, start, libc::SEEK_HOLE)?.min(size);
        found.push((start, at.saturating_sub(start)));
    }
    Ok(found)
}

fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    let whence = match whence {
        libc::SEEK_DATA => nix::unistd::Whence::SeekData,
        _ => nix::unistd::Whence::SeekHole,
    };
    Ok(nix::unistd::lseek(file, offset as i64, whence)? as u64)
}

/// A kind of file whose content exists nowhere else. What such kinds have in common makes
/// them an [`FdKind`].
pub(super) trait Carried: Sync {
    /// [`FdKind::name`].
    const NAME: &'static str;
    /// What the file is beside its content.
    /// [`FdKind::capabilities`].
    const CAPABILITIES: &'static [Capability];
    type Traits: Serialize + DeserializeOwned;

    /// [`FdKind::recognises`].
    fn is(view: &FdView) -> bool;
    /// What is to be known at the target, or a refusal.
    fn traits(view: &FdView, cx: &dyn CaptureCx) -> Result<Self::Traits, FdError>;
    /// Makes an empty file, open for reading and writing.
    fn empty(traits: &Self::Traits) -> Result<File, FdError>;
    /// [`FdKind::finish`]; `mode` are the file's permission bits.
    fn complete(_traits: &Self::Traits, mode: u32, fd: RawFd) -> Result<(), FdError> {
        set_mode(fd, mode)
    }
}

#[derive(Serialize, Deserialize)]
struct State<T> {
    traits: T,
    content: Content,
}

#[derive(Serialize, Deserialize)]
struct Content {
    id: BulkId,
    /// Size, bytes; `data` of them are no holes.
    size: u64,
    data: u64,
    /// Permission bits.
    mode: u32,
    flags: i32,
    pos: u64,
}

impl<K: Carried> FdKind for K {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        K::CAPABILITIES
    }

    fn recognises(&self, view: &FdView) -> bool {
        K::is(view)
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let traits = K::traits(view, cx)?;
        let content = Content {
            id: BulkId::of(view),
            size: view.size,
            data: BulkSource::open(view, cx)?.data(),
            mode: view.mode & 0o7777,
            flags: view.flags,
            pos: view.pos,
        };
        encode(&State { traits, content })
    }

    fn bulk(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Option<BulkSource>, FdError> {
        BulkSource::open(view, cx).map(Some)
    }

    fn bulk_id(&self, state: &[u8]) -> Result<Option<BulkId>, FdError> {
        let state: State<K::Traits> = decode(K::NAME, state)?;
        Ok(Some(state.content.id))
    }

    fn vessel(&self, state: &[u8]) -> Result<Option<OwnedFd>, FdError> {
        self.make(state).map(Some)
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let State { traits, content: Content { size, .. } } = decode(K::NAME, state)?;
        let file = K::empty(&traits)?;
        file.set_len(size).map_err(failed(format!("give a new {} {size} bytes", K::NAME)))?;
        Ok(file.into())
    }

    /// A new description of the filled vessel, or of a new file where nothing is to fill.
    fn restore(
        &self,
        object: u32,
        state: &[u8],
        cx: &mut dyn RestoreCx,
    ) -> Result<OwnedFd, FdError> {
        let State::<K::Traits> { content, .. } = decode(K::NAME, state)?;
        let vessel = match cx.provided(object) {
            Some(vessel) => vessel,
            None if content.data == 0 => self.make(state)?,
            None => {
                let what =
                    format!("restore a file of {} bytes: its content is missing", content.size);
                return Err(failed(what)(io::ErrorKind::UnexpectedEof.into()));
            }
        };
        reopen(vessel.as_raw_fd(), content.flags, content.pos)
    }

    fn finish(&self, state: &[u8], fd: i32) -> Result<(), FdError> {
        let State { traits, content } = decode(K::NAME, state)?;
        K::complete(&traits, content.mode, fd)
    }
}

/// Status flags that open(2) takes when a file is opened again by its name.
pub(super) const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_DIRECT
    | libc::O_NOATIME
    | libc::O_LARGEFILE;

/// A new open file description of what `fd` refers to, at position `pos`.
pub(super) fn reopen(fd: RawFd, flags: i32, pos: u64) -> Result<OwnedFd, FdError> {
    open_at(Path::new(&format!("/proc/self/fd/{fd}")), flags & OPEN_FLAGS, pos)
}

/// Opens `path` with exactly these flags and O_CLOEXEC, at position `pos`.
pub(super) fn open_at(path: &Path, flags: i32, pos: u64) -> Result<OwnedFd, FdError> {
    let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC | libc::O_NOCTTY);
    let fd = open(path, flags, Mode::empty())
        .map_err(|e| failed(format!("open {} with {flags:?}", path.display()))(e.into()))?;
    if pos == 0 {
        return Ok(fd);
    }
    let mut file = File::from(fd);
    let whence = SeekFrom::Start(pos);
    file.seek(whence).map_err(failed(format!("position {} at {pos}", path.display())))?;
    Ok(file.into())
}

/// A path out of its bytes.
pub(super) fn as_path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// Sets the permission bits of what `fd` refers to, if they differ.
pub(super) fn set_mode(fd: RawFd, mode: u32) -> Result<(), FdError> {
    use std::os::unix::fs::PermissionsExt;
    let tried = || failed(format!("fchmod to {mode:o} of fd {fd}"));
    let file = File::from(raw::dup_from(fd, 0).map_err(tried())?);
    let mut permissions = file.metadata().map_err(tried())?.permissions();
    if permissions.mode() & 0o7777 == mode {
        return Ok(());
    }
    permissions.set_mode(mode);
    file.set_permissions(permissions).map_err(tried())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_left_out() {
        let mut file = tempfile::tempfile_in("/dev/shm").expect("file");
        file.write_all_at(b"head", 0).expect("write");
        file.write_all_at(b"tail", 1 << 20).expect("write");
        file.set_len(4 << 20).expect("truncate");
        let found = extents(&mut file, 4 << 20).expect("extents");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0, found[1].0), (0, 1 << 20));
        assert!(found.iter().map(|(_, len)| len).sum::<u64>() <= 8192 + 8192);
    }

    #[test]
    fn an_empty_file_has_no_data() {
        let mut file = tempfile::tempfile_in("/dev/shm").expect("file");
        file.set_len(1 << 40).expect("truncate");
        assert_eq!(extents(&mut file, 1 << 40).expect("extents"), []);
    }
}
