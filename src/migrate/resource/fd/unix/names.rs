//! Names of Unix sockets: paths, whose files are made anew, and abstract names.
//!
//! The file of the old socket may be in the same directory that the new one is to be in, and its
//! program may have to go on. So the new file is made in a directory of its own beside it, and
//! takes the place of the old one when the job runs ([`Rename`]). That the kernel nevertheless
//! keeps the very text that bind(2) was given once, which getsockname(2) shows, a child sees to
//! whose root is that directory.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{chown, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{open, OFlag};
use nix::sys::socket::{bind, connect, getpeername, SockaddrLike, UnixAddr};
use nix::sys::stat::Mode;
use nix::unistd::{chroot, fchdir};
use serde::{Deserialize, Serialize};

use crate::control::Finding;
use crate::migrate::raw::{exit_now, fork};
use crate::migrate::resource::blocker;

/// What a socket is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// `sun_path`; an abstract name begins with a zero byte.
    pub text: Vec<u8>,
    /// Its file, if others can find the socket by that.
    place: Option<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// From the root on.
    path: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
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
    /// Of this name; none if nothing at the target can be in the way.
    pub(super) fn of(name: &Name) -> Option<Self> {
        let dir = name.place.as_ref().and_then(|place| {
            let path = Path::new(OsStr::from_bytes(&place.path));
            Some(path.parent()?.as_os_str().as_bytes().to_vec())
        });
        (dir.is_some() || is_abstract(&name.text)).then(|| Self { text: name.text.clone(), dir })
    }

    fn cause(&self, taken: &dyn Fn(&[u8]) -> bool) -> Option<String> {
        match &self.dir {
            Some(dir) => {
                let dir = Path::new(OsStr::from_bytes(dir));
                let access = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
                let denied = nix::unistd::access(dir, access).err()?;
                Some(format!("no socket can be made in {}: {}", dir.display(), denied.desc()))
            }
            None if taken(&self.text) => {
                Some("the name is taken in the target's network namespace".into())
            }
            None => None,
        }
    }
}

/// What is in the way of these names here, where the target is.
#[must_use]
pub fn judge(wanted: &[Wanted]) -> Vec<Finding> {
    let names = wanted.iter().any(|name| name.dir.is_none()).then(super::diag::names);
    let names = names.and_then(Result::ok).unwrap_or_default();
    let taken = |text: &[u8]| names.contains(text);
    let finding = |name: &Wanted| {
        let object = format!("Unix socket {}", String::from_utf8_lossy(&name.text));
        let remedy = "give the target the directory, or a network namespace of its own";
        let object = object.replace('\0', "@");
        Some(blocker("VOS-UNIX-NAME", object, &name.cause(&taken)?, remedy))
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

fn address(text: &[u8]) -> io::Result<UnixAddr> {
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

fn directory(path: &Path) -> io::Result<OwnedFd> {
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
    let address = address(text)?;
    let call = || Ok(connect(fd, &address)?);
    match dir {
        Some(dir) => in_directory(dir, call),
        None => call(),
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

/// A socket that has got its name.
#[derive(Debug)]
pub struct Bound {
    pub site: Site,
    /// What has to be done when the job runs.
    pub rename: Option<Rename>,
    /// A directory that is in nobody's way, to be removed.
    pub scratch: Option<PathBuf>,
}

/// bind(2).
///
/// # Errors
/// `EADDRINUSE` for an abstract name that is taken; what was tried.
pub fn bind_to(fd: BorrowedFd, name: &Name) -> io::Result<Bound> {
    if is_abstract(&name.text) {
        bind(fd.as_raw_fd(), &address(&name.text)?)?;
        return Ok(Bound { site: Site::Abstract(name.text.clone()), rename: None, scratch: None });
    }
    let text = Path::new(OsStr::from_bytes(&name.text));
    let target = name.place.as_ref().map(|p| (p, PathBuf::from(OsStr::from_bytes(&p.path))));
    let scratch = scratch(text, target.as_ref().map(|(_, path)| path.as_path()))?;
    let made = bind_below(fd, text, &scratch).and_then(|from| {
        if let Some((place, _)) = &target {
            let meta = fs::symlink_metadata(&from)?;
            if (meta.uid(), meta.gid()) != (place.uid, place.gid) {
                // Who may not do that could not have made it for somebody else.
                let _ = chown(&from, Some(place.uid), Some(place.gid));
            }
            fs::set_permissions(&from, fs::Permissions::from_mode(place.mode))?;
        }
        Ok(from)
    });
    let from = made.inspect_err(|_| drop(fs::remove_dir_all(&scratch)))?;
    let site = Site::File(from.clone());
    let rename = target.map(|(_, to)| Rename { from, to, scratch: scratch.clone() });
    let scratch = rename.is_none().then_some(scratch);
    Ok(Bound { site, rename, scratch })
}

/// A new directory: beside the place, from where a file can be renamed to it, else anywhere.
fn scratch(text: &Path, place: Option<&Path>) -> io::Result<PathBuf> {
    let make = |at: &Path| {
        // tempfile makes it with mode 0700.
        tempfile::Builder::new().prefix(".vosrun-").tempdir_in(at).map(tempfile::TempDir::keep)
    };
    if let Some(place) = place {
        return make(place.parent().ok_or(io::ErrorKind::InvalidData)?);
    }
    let beside = text.parent().filter(|at| at.is_absolute());
    let places = [Path::new("/tmp"), Path::new("/dev/shm"), Path::new("/var/tmp")];
    let mut last = Err(io::ErrorKind::NotFound.into());
    for at in places.into_iter().chain(beside) {
        last = make(at);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// In a child, whose root is `scratch`. Answers the place of the file.
fn bind_below(fd: BorrowedFd, text: &Path, scratch: &Path) -> io::Result<PathBuf> {
    let mut place = scratch.to_path_buf();
    let mut parents = Vec::new();
    for component in text.components() {
        match component {
            Component::Normal(name) => {
                parents.push(place.clone());
                place.push(name);
            }
            Component::ParentDir if place != scratch => drop(place.pop()),
            _ => {}
        }
    }
    parents.iter().filter(|p| *p != scratch).try_for_each(fs::create_dir_all)?;
    let child = fork(None)?;
    if child == 0 {
        let bound = chroot(scratch).and_then(|()| {
            nix::unistd::chdir("/")?;
            bind(fd.as_raw_fd(), &UnixAddr::new(text)?)
        });
        exit_now(bound.err().map_or(0, |e| e as i32));
    }
    use nix::sys::wait::{waitpid, WaitStatus};
    match waitpid(nix::unistd::Pid::from_raw(child), None)? {
        WaitStatus::Exited(_, 0) => Ok(place),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        other => Err(io::Error::other(format!("the process that tried it: {other:?}"))),
    }
}
