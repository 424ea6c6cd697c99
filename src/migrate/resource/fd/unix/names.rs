//! Names of Unix sockets: paths, whose files are made anew, and abstract names.
//!
//! The file of the old socket may be in the same directory that the new one is to be in, and its
//! program may have to go on. So the new file is made in a directory of its own beside it
//! ([`bind`](super::bind)), and takes the place of the old one when the job runs ([`Rename`]).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{open, OFlag};
use nix::sys::socket::{connect, getpeername, SockaddrLike, UnixAddr};
use nix::sys::stat::Mode;
use nix::unistd::{access, fchdir, geteuid, AccessFlags};
use serde::{Deserialize, Serialize};

use super::bind::needed_directory;
use crate::control::Finding;
use crate::migrate::resource::blocker;

/// What a socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// `sun_path`; an abstract name begins with a zero byte.
    pub text: Vec<u8>,
    /// Its file, if others can find the socket by that.
    pub(super) place: Option<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// From the root on.
    pub path: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Name {
    /// A name by which nobody looks for the socket.
    pub fn bare(text: &[u8]) -> Self {
        Self { text: text.to_vec(), place: None }
    }

    /// The name of a socket that is bound to the file with this inode and device, as sock_diag(7)
    /// tells them; none if that file cannot be found though there is one. `pids` are the host
    /// pids of the job.
    pub fn find(text: &[u8], file: Option<(u32, u32)>, pids: &[i32]) -> Option<Self> {
        let Some(file) = file.filter(|_| !is_abstract(text)) else {
            return Some(Self::bare(text));
        };
        let path = Path::new(OsStr::from_bytes(text));
        let mut other = path.is_relative();
        for pid in pids {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            let whole = by_way_of(*pid, path).unwrap_or_else(|| cwd.join(path));
            let mut seen = OsString::from(format!("/proc/{pid}/root"));
            seen.push(&whole);
            let Ok(meta) = fs::symlink_metadata(&seen).and_then(|_| fs::metadata(&seen)) else {
                continue;
            };
            if meta.file_type().is_socket() && (meta.ino() as u32, device(&meta)) == file {
                let place = Place {
                    path: whole.into_os_string().into_vec(),
                    mode: meta.mode() & 0o7777,
                    uid: meta.uid(),
                    gid: meta.gid(),
                };
                return Some(Self { text: text.to_vec(), place: Some(place) });
            }
            other = true;
        }
        // Its file is unlinked, as long as no other one is in its place.
        (!other).then(|| Self::bare(text))
    }
}

/// A path below `/proc/self` (a directory that a process has open, as a way to a file whose path is
/// too long for an address), without that.
fn by_way_of(pid: i32, path: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix("/proc/self").ok()?;
    let dir = fs::canonicalize(Path::new(&format!("/proc/{pid}")).join(rest.parent()?)).ok()?;
    Some(dir.join(rest.file_name()?))
}

/// A name that a socket of the job is to have at the target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Wanted {
    text: Vec<u8>,
    /// Directory of its file.
    dir: Option<Vec<u8>>,
}

impl Wanted {
    /// Of this name.
    pub(super) fn of(name: &Name) -> Self {
        let dir = name.place.as_ref().and_then(|place| {
            let path = Path::new(OsStr::from_bytes(&place.path));
            Some(path.parent()?.as_os_str().as_bytes().to_vec())
        });
        Self { text: name.text.clone(), dir }
    }

    /// What is in the way here. `in_place`: the job gets no root directory that it could change.
    fn cause(&self, in_place: bool, taken: &dyn Fn(&[u8]) -> bool) -> Option<String> {
        let dir = self.dir.as_ref().map(|dir| Path::new(OsStr::from_bytes(dir)));
        if dir.is_none() && is_abstract(&self.text) {
            let cause = "the name is taken in the target's network namespace";
            return taken(&self.text).then(|| cause.into());
        }
        let made = in_place.then(|| needed_directory(&self.text)).flatten();
        let may = AccessFlags::W_OK | AccessFlags::X_OK;
        for dir in dir.into_iter().chain(made) {
            if let Err(e) = access(dir, may) {
                return Some(format!("no socket can be made in {}: {}", dir.display(), e.desc()));
            }
        }
        let file = match dir {
            Some(dir) => dir.join(Path::new(OsStr::from_bytes(&self.text)).file_name()?),
            None => made.map(|_| PathBuf::from(OsStr::from_bytes(&self.text)))?,
        };
        let cause = "is another user's, who alone may take it away";
        (!may_replace(&file)).then(|| format!("{} {cause}", file.display()))
    }
}

/// In a directory with the sticky bit a file is replaced by who owns one of the two (unlink(2)).
fn may_replace(file: &Path) -> bool {
    let dir = file.parent().and_then(|dir| fs::metadata(dir).ok());
    let (Some(dir), Ok(file)) = (dir, fs::symlink_metadata(file)) else { return true };
    let own = geteuid();
    let sticky = dir.mode() & libc::S_ISVTX != 0;
    !sticky || own.is_root() || [dir.uid(), file.uid()].contains(&own.as_raw())
}

/// What is in the way of these names here, where the target is. `translated`: the job gets no
/// namespaces.
#[must_use]
pub fn judge(wanted: &[Wanted], translated: bool) -> Vec<Finding> {
    let names = wanted.iter().any(|name| is_abstract(&name.text)).then(super::diag::names);
    let names = names.and_then(Result::ok).unwrap_or_default();
    let taken = |text: &[u8]| names.contains(text);
    let finding = |name: &Wanted| {
        let object = format!("Unix socket {}", String::from_utf8_lossy(&name.text));
        let remedy = "give the target the directory, or a network namespace of its own";
        let object = object.replace('\0', "@");
        Some(blocker("VOS-UNIX-NAME", object, &name.cause(translated, &taken)?, remedy))
    };
    wanted.iter().filter_map(finding).collect()
}

pub fn is_abstract(text: &[u8]) -> bool {
    text.first().is_none_or(|first| *first == 0)
}

/// As the kernel itself counts devices (linux/kdev_t.h).
fn device(meta: &fs::Metadata) -> u32 {
    let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
    ((major << 20) | minor) as u32
}

/// `sun_path` of an address, empty for none.
pub fn of_address(address: &UnixAddr) -> Vec<u8> {
    // recvmsg(2) gives no family either for who has no name.
    if address.len() as usize <= size_of::<libc::sa_family_t>() {
        return Vec::new();
    }
    match (address.path(), address.as_abstract()) {
        (Some(path), _) => path.as_os_str().as_bytes().to_vec(),
        (_, Some(name)) => [&[0], name].concat(),
        _ => Vec::new(),
    }
}

/// The name of what a socket is connected to, empty for none; also when that is closed.
///
/// # Errors
/// Those of getpeername(2), ENOTCONN aside.
pub fn of_peer(fd: RawFd) -> io::Result<Vec<u8>> {
    match getpeername::<UnixAddr>(fd) {
        Ok(address) => Ok(of_address(&address)),
        Err(nix::Error::ENOTCONN) => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn address(text: &[u8]) -> io::Result<UnixAddr> {
    Ok(match text {
        [0, name @ ..] => UnixAddr::new_abstract(name)?,
        path => UnixAddr::new(path)?,
    })
}

/// Where a socket can be reached now.
#[derive(Debug, Clone)]
pub enum Site {
    Abstract(Vec<u8>),
    File(PathBuf),
}

impl Site {
    /// Runs `call` with the address, in the directory of the file: the path may be longer than
    /// an address can be.
    ///
    /// # Errors
    /// When the directory cannot be entered or left.
    pub fn with<T>(&self, call: impl FnOnce(&UnixAddr) -> io::Result<T>) -> io::Result<T> {
        match self.open()? {
            (address, None) => call(&address),
            (address, Some(dir)) => in_directory(&dir, || call(&address)),
        }
    }

    /// The address, and the directory in which it is right.
    fn open(&self) -> io::Result<(UnixAddr, Option<OwnedFd>)> {
        match self {
            Self::Abstract(name) => Ok((address(name)?, None)),
            Self::File(path) => {
                let file = path.file_name().ok_or(io::ErrorKind::InvalidData)?;
                let dir = directory(path.parent().ok_or(io::ErrorKind::InvalidData)?)?;
                Ok((address(file.as_bytes())?, Some(dir)))
            }
        }
    }

    /// As [`Site::with`], for another process: `sun_path` and the directory.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn for_other(&self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let (address, dir) = self.open()?;
        Ok((of_address(&address), dir))
    }
}

pub(super) fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

fn in_directory<T>(dir: &OwnedFd, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let here = directory(Path::new("."))?;
    fchdir(dir)?;
    let result = call();
    fchdir(&here)?;
    result
}

/// connect(2) to an address that is right in `dir`.
///
/// # Errors
/// Those of connect(2).
pub fn connect_in(fd: RawFd, text: &[u8], dir: Option<&OwnedFd>) -> io::Result<()> {
    in_directory_of(text, dir, |address| Ok(connect(fd, address)?))
}

/// Runs `call` with an address that is right in `dir`.
///
/// # Errors
/// Those of `call`; when the directory cannot be entered or left.
pub(super) fn in_directory_of<T>(
    text: &[u8],
    dir: Option<&OwnedFd>,
    call: impl FnOnce(&UnixAddr) -> io::Result<T>,
) -> io::Result<T> {
    let address = address(text)?;
    match dir {
        Some(dir) => in_directory(dir, || call(&address)),
        None => call(&address),
    }
}

/// The file of a socket, beside the place that it is to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    from: PathBuf,
    to: PathBuf,
    /// The directory that goes afterwards.
    scratch: PathBuf,
}

impl Rename {
    pub(super) fn new(from: PathBuf, to: PathBuf, scratch: PathBuf) -> Self {
        Self { from, to, scratch }
    }

    fn apply(&self) -> io::Result<()> {
        let done = fs::rename(&self.from, &self.to);
        self.forget();
        done.map_err(|e| {
            io::Error::new(e.kind(), format!("rename of a socket to {}: {e}", self.to.display()))
        })
    }

    fn forget(&self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Files of sockets of a job that does not run yet: either they are applied, or forgotten.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renames(Vec<Rename>);

impl Renames {
    pub(super) fn add(&mut self, rename: Option<Rename>) {
        self.0.extend(rename);
    }

    /// The job runs here: its sockets take their places. Gives what did not work.
    pub fn apply(mut self) -> Vec<io::Error> {
        std::mem::take(&mut self.0).iter().filter_map(|rename| rename.apply().err()).collect()
    }
}

impl Drop for Renames {
    fn drop(&mut self) {
        self.0.iter().for_each(Rename::forget);
    }
}
