//! Regular files with a name (open(2)), and what all objects with a name have in common:
//! when is the file of that name at the target the same?
//!
//! ```text
//! source, before the freeze: Named::of(view, with hash) ──wire──► target: same_file ─► Sameness
//! source, frozen:            capture (no hash)          ──wire──► target: restore, checks all but the hash
//! ```

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{access, AccessFlags};
use serde::{Deserialize, Serialize};

use super::content::{as_path, open_at, OPEN_FLAGS};
use super::{decode, encode, lock, CaptureCx, FdError, FdKind, FdView, Object};
use crate::boot;
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;
use crate::control::{Finding, Severity};

/// File systems (statfs(2)) whose inode numbers are the same on every machine that mounts
/// them: NFS, SMB, CIFS, 9p, Ceph, Lustre, GPFS, AFS, OCFS2, GFS2, BeeGFS.
const NETWORK: [i64; 11] = [
    0x6969,
    0xfe53_4d42,
    0xff53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x0bd0_0bd0,
    0x4750_4653,
    0x5346_414f,
    0x7461_636f,
    0x0116_1970,
    0x1983_0326,
];

/// What tells whether two machines mean the same file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The boot of the machine ([`boot::id`]).
    pub boot: String,
    pub dev: u64,
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Last modification, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// On a network file system.
    pub network: bool,
    /// blake3 of the content, where asked for.
    pub hash: Option<[u8; 32]>,
}

/// The identity of the file at `path`; following links. The hash reads the whole file:
/// ask for it before the freeze, and keep it as long as the rest of the identity stays.
///
/// # Errors
/// When it cannot be examined or read.
pub fn identity(path: &Path, with_hash: bool) -> io::Result<Identity> {
    let meta = fs::metadata(path)?;
    let fs_type = nix::sys::statfs::statfs(path)?.filesystem_type().0 as i64;
    let hash = if with_hash && meta.is_file() { Some(hash(path)?) } else { None };
    Ok(Identity { hash, ..from_metadata(&meta, fs_type)? })
}

fn from_metadata(meta: &Metadata, fs_type: i64) -> io::Result<Identity> {
    Ok(Identity {
        boot: boot::id()?.to_owned(),
        dev: meta.dev(),
        ino: meta.ino(),
        size: meta.size(),
        mtime_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
        network: NETWORK.contains(&fs_type),
        hash: None,
    })
}

fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(*hasher.finalize().as_bytes())
}

/// A description of an object with a name: the state of regular files, directories and
/// O_PATH descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// A process at the source that holds it, by its host pid, and the descriptor there.
    pub pid: i32,
    pub fd: i32,
    pub path: Vec<u8>,
    /// S_IFMT of st_mode.
    pub file_type: u32,
    /// As in fdinfo.
    pub flags: i32,
    pub pos: u64,
    pub identity: Identity,
    /// It has a write lease, which ends when anybody opens the file.
    pub leased: bool,
}

/// Is the file at the target what it is at the source?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sameness {
    /// The very same file: one machine, or one network file system.
    SameObject,
    /// Another file with the same content that the job only reads; or a directory.
    SameContent,
    /// As far as one can see, but the source did not send a hash.
    NeedsHash,
    /// There is nothing of that name.
    Missing,
    /// Another content, another kind of file, or open for writing and not the same file.
    Differs,
}

impl Named {
    /// What is to be asked of the target for this description; `None` for objects that do
    /// not live by their name.
    ///
    /// # Errors
    /// When it cannot be examined, or not read for its hash.
    pub fn of(view: &FdView, with_hash: bool) -> io::Result<Option<Self>> {
        let kind = super::find(view).map_or("", FdKind::name);
        if kind == super::kernel_file::NAME {
            // Only that there is one: its content is that of the machine.
            let there = |named| Self { flags: libc::O_PATH, pos: 0, ..named };
            let machine = super::kernel_file::is_of_machine(view);
            return machine.then(|| Self::read(view).map(there)).transpose();
        }
        let fifo = kind == super::pipe::NAME && view.link.starts_with('/');
        if !fifo && ![NAME, super::directory::NAME, super::opath::NAME].contains(&kind) {
            return Ok(None);
        }
        let mut named = Self::read(view)?;
        if with_hash && named.file_type == libc::S_IFREG && !named.must_be_same() {
            named.identity.hash = Some(hash(&view.proc_path())?);
        }
        Ok(Some(named))
    }

    /// Without the hash.
    pub(super) fn read(view: &FdView) -> io::Result<Self> {
        Ok(Self {
            pid: view.host_pid,
            fd: view.fd,
            path: view.path()?,
            file_type: view.file_type(),
            flags: view.flags,
            pos: view.pos,
            identity: from_metadata(&fs::metadata(view.proc_path())?, view.fs)?,
            leased: lock::has_write_lease(view),
        })
    }

    /// Open for writing.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY && self.flags & libc::O_PATH == 0
    }

    /// A file with the same content would not do.
    fn must_be_same(&self) -> bool {
        self.writable() || self.leased
    }

    /// All but the content.
    fn compare(&self, meta: &Metadata, fs_type: i64) -> io::Result<Sameness> {
        let (here, there) = (from_metadata(meta, fs_type)?, &self.identity);
        let regular = self.file_type == libc::S_IFREG;
        let unchanged = (here.size, here.mtime_ns) == (there.size, there.mtime_ns);
        let one_machine = boot::is_this(&there.boot) && here.dev == there.dev;
        let one_server = here.network && there.network && (unchanged || !regular);
        Ok(if meta.mode() & libc::S_IFMT != self.file_type {
            Sameness::Differs
        } else if here.ino == there.ino && (one_machine || one_server) {
            Sameness::SameObject
        } else if self.flags & libc::O_PATH != 0 || (!regular && self.pos == 0) {
            Sameness::SameContent
        } else if !regular || self.must_be_same() || here.size != there.size {
            Sameness::Differs
        } else {
            Sameness::NeedsHash
        })
    }

    /// Opens it at the target. The place of one with a write lease is kept only
    /// ([`lock::Opened`]).
    pub(super) fn open(&self, more_flags: i32) -> Result<(OwnedFd, Sameness), FdError> {
        let path = as_path(&self.path);
        let missing = |e: &FdError| matches!(e, FdError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
        let (flags, pos) = match self.leased {
            true => (libc::O_PATH, 0),
            false => (self.flags & OPEN_FLAGS | more_flags, self.pos),
        };
        let fd = match open_at(path, flags, pos) {
            Err(e) if missing(&e) => return Err(self.refused(Sameness::Missing)),
            other => other?,
        };
        let file = File::from(fd);
        let tried = super::failed(format!("examine {}", path.display()));
        let sameness = file.metadata().and_then(|meta| {
            let fs_type = nix::sys::statfs::fstatfs(&file)?.filesystem_type().0 as i64;
            self.compare(&meta, fs_type)
        });
        match sameness.map_err(tried)? {
            Sameness::Differs => Err(self.refused(Sameness::Differs)),
            sameness => Ok((file.into(), sameness)),
        }
    }

    fn refused(&self, sameness: Sameness) -> FdError {
        FdError::Refused(Box::new(self.local(sameness)))
    }

    fn local(&self, sameness: Sameness) -> Finding {
        let cause = match sameness {
            Sameness::Missing => "the target has nothing of that name",
            _ if self.leased => "it has a write lease, and the target has another file there",
            _ if self.writable() => "it is open for writing, and the target has another file there",
            _ => "the target has another content there",
        };
        Finding {
            severity: Severity::Blocker,
            code: "VOS-FILE-LOCAL".to_owned(),
            object: format!("fd {} → {}", self.fd, as_path(&self.path).display()),
            cause: cause.to_owned(),
            remedy: "put the file on a file system that both nodes share, or copy it to the target"
                .to_owned(),
        }
    }

    /// What `check` says of the target's answer; `None` when the file can be used there.
    #[must_use]
    pub fn finding(&self, answer: &io::Result<Sameness>) -> Option<Finding> {
        match answer {
            Ok(Sameness::SameObject | Sameness::SameContent) => None,
            Ok(other) => Some(self.local(*other)),
            Err(e) => {
                let cause = format!("the target cannot use it: {e}");
                Some(Finding { cause, ..self.local(Sameness::Differs) })
            }
        }
    }
}

/// The target's answer to a [`Named`]. Reads the whole file when the content counts and the
/// source sent a hash.
///
/// # Errors
/// When the file is there but may not be opened as the job has it open.
pub fn same_file(named: &Named) -> io::Result<Sameness> {
    let path = as_path(&named.path);
    let link = named.file_type == libc::S_IFLNK;
    let meta = match if link { fs::symlink_metadata(path) } else { fs::metadata(path) } {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Ok(Sameness::Missing);
        }
        other => other?,
    };
    // statfs(2) would follow a symbolic link, to nowhere perhaps; the type matters not there.
    let fs_type = if link { 0 } else { nix::sys::statfs::statfs(path)?.filesystem_type().0 as i64 };
    let sameness = named.compare(&meta, fs_type)?;
    if named.flags & libc::O_PATH == 0 && sameness != Sameness::Differs {
        // A new process may open its user's own files whatever their mode is: it has the
        // capabilities of its user namespace until it gets its old memory (capabilities(7)).
        let own = meta.uid() == nix::unistd::geteuid().as_raw();
        match access(path, wanted_access(named.flags)) {
            Err(nix::Error::EACCES) if own => {}
            other => other?,
        }
    }
    match (sameness, named.identity.hash) {
        (Sameness::NeedsHash, Some(theirs)) if hash(path)? == theirs => Ok(Sameness::SameContent),
        (Sameness::NeedsHash, Some(_)) => Ok(Sameness::Differs),
        (sameness, _) => Ok(sameness),
    }
}

fn wanted_access(flags: i32) -> AccessFlags {
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => AccessFlags::R_OK,
        libc::O_WRONLY => AccessFlags::W_OK,
        _ => AccessFlags::R_OK | AccessFlags::W_OK,
    }
}

/// Does the link's name, as the process itself sees the file tree, still lead to this very
/// object? It does not after unlink(2), for a file that is mounted over, and for a mount
/// that is attached nowhere. Mind that a name may well end in " (deleted)".
pub(super) fn has_its_name(view: &FdView) -> bool {
    if !view.link.starts_with('/') || (view.says_deleted() && view.nlink == 0) {
        return false;
    }
    let lossy = view.link.contains(char::REPLACEMENT_CHARACTER);
    let name = if lossy { view.path() } else { Ok(view.link.clone().into_bytes()) };
    let meta = name.and_then(|name| {
        let root = format!("/proc/{}/root", view.host_pid).into_bytes();
        fs::symlink_metadata(as_path(&[root, name].concat()))
    });
    meta.is_ok_and(|m| (m.dev(), m.ino()) == (view.dev, view.ino))
}

pub(super) const NAME: &str = "file";

pub(super) struct Regular;

impl FdKind for Regular {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Descriptors,
                    "files",
                    "regular files that both machines have: offset and flags",
                ),
                Capability::refused(
                    Descriptors,
                    "file-local",
                    "a file that the target lacks, or has apart while the program writes to it",
                    "VOS-FILE-LOCAL",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.file_type() == libc::S_IFREG && has_its_name(view)
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        encode(&Named::read(view).map_err(view.failed("examine"))?)
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        decode::<Named>(NAME, state)?.open(0).map(|(fd, _)| fd)
    }
}

/// Is only the place of this object kept until the move is decided?
///
/// # Errors
/// When the state does not decode.
pub fn is_kept_place(object: &Object) -> Result<bool, FdError> {
    Ok(object.kind == NAME && decode::<Named>(NAME, &object.state)?.leased)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsRawFd;

    use super::super::raw;
    use super::super::testing::{moved, Here};
    use super::*;

    fn file(content: &str) -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("f"), content).expect("write");
        let file = File::open(dir.path().join("f")).expect("open");
        (dir, file)
    }

    /// As another machine would see it.
    fn elsewhere(file: &File, with_hash: bool) -> Named {
        let view = Here::of(&[file]).view(file);
        let mut named = Named::of(&view, with_hash).expect("examine").expect("named");
        named.identity.boot = "another".into();
        named
    }

    #[test]
    fn position_and_flags_come_back() {
        let (dir, mut file) = file("0123456789");
        file.seek(io::SeekFrom::Start(7)).expect("seek");
        let mut copy = File::from(moved(&file));
        let mut rest = String::new();
        copy.read_to_string(&mut rest).expect("read");
        assert_eq!(rest, "789");

        let path = dir.path().join("f");
        let mut log = File::options().append(true).open(&path).expect("open");
        let mut copy = File::from(moved(&log));
        let flags = |f: &File| raw::fcntl(f.as_raw_fd(), libc::F_GETFL, 0).expect("flags");
        assert_eq!(flags(&copy), flags(&log));
        log.write_all(b"a").expect("write");
        copy.write_all(b"b").expect("write");
        assert_eq!(fs::read_to_string(&path).expect("read"), "0123456789ab");
    }

    #[test]
    fn sameness_of_files() {
        let (dir, file) = file("content");
        let path = dir.path().join("f");
        let mut named = elsewhere(&file, true);
        assert_eq!(same_file(&named).expect("ask"), Sameness::SameContent);
        named.identity.boot = boot::id().expect("boot").into();
        assert_eq!(same_file(&named).expect("ask"), Sameness::SameObject);
        named.identity.boot.clear();
        assert_eq!(same_file(&named).expect("ask"), Sameness::SameContent, "an unknown machine");
        assert_eq!(same_file(&elsewhere(&file, false)).expect("ask"), Sameness::NeedsHash);

        let named = elsewhere(&file, true);
        fs::write(&path, "CONTENT").expect("write");
        assert_eq!(same_file(&named).expect("ask"), Sameness::Differs);
        fs::write(&path, "longer content").expect("write");
        assert_eq!(same_file(&named).expect("ask"), Sameness::Differs);
        fs::remove_file(&path).expect("unlink");
        let answer = same_file(&named);
        assert!(matches!(answer, Ok(Sameness::Missing)));
        assert_eq!(named.finding(&answer).expect("finding").code, "VOS-FILE-LOCAL");
        fs::create_dir(&path).expect("mkdir");
        assert_eq!(same_file(&named).expect("ask"), Sameness::Differs);
    }

    #[test]
    fn a_file_open_for_writing_is_not_split_in_two() {
        let (dir, _) = file("content");
        let file = File::options().write(true).open(dir.path().join("f")).expect("open");
        let named = elsewhere(&file, true);
        assert_eq!(same_file(&named).expect("ask"), Sameness::Differs);
        assert!(matches!(named.open(0), Err(FdError::Refused(_))));
    }

    #[test]
    fn a_network_file_is_the_same_as_long_as_it_is_unchanged() {
        let (_dir, file) = file("content");
        let mut named = elsewhere(&file, false);
        named.identity.network = true;
        let meta = file.metadata().expect("stat");
        assert_eq!(named.compare(&meta, 0x6969).expect("compare"), Sameness::SameObject);
        named.identity.size += 1;
        assert_eq!(named.compare(&meta, 0x6969).expect("compare"), Sameness::Differs);
    }

    #[test]
    fn a_name_that_ends_like_a_deleted_one() {
        let dir = tempfile::tempdir().expect("dir");
        let file = File::create_new(dir.path().join("x (deleted)")).expect("file");
        assert_eq!(Here::of(&[&file]).capture(&file).kind, NAME);
    }

    #[test]
    fn the_identity_by_path_is_that_of_the_description() {
        let (dir, file) = file("content");
        let named = Named::of(&Here::of(&[&file]).view(&file), true).expect("examine");
        let by_path = identity(&dir.path().join("f"), true).expect("identity");
        assert_eq!(named.expect("named").identity, by_path);
    }
}
