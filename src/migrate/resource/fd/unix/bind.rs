//! bind(2) of a new socket to the very text that the old one was given once, which getsockname(2)
//! shows, while its file is made in another directory than the one that the text names.
//!
//! ```text
//! name, ./name, /proc/self/cwd/name   from another working directory
//! /proc/self/fd/N/name                with another descriptor N
//! /directory/name                     from another root directory (chroot(2), needs CAP_SYS_CHROOT)
//!                                     else there: what has the name goes aside for that moment
//! ```
//! All of that is done in a child.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{renameat2, RenameFlags, AT_FDCWD};
use nix::sys::socket::{bind, UnixAddr};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{chdir, chroot, Pid};

use super::super::raw;
use super::names::{address, directory, is_abstract, Name, Rename, Site};
use crate::migrate::raw::{exit_now, fork};

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
    let lead = Lead::of(text);
    let target = name.place.as_ref().map(|p| (p, PathBuf::from(OsStr::from_bytes(&p.path))));
    let scratch = scratch(text, &lead, target.as_ref().map(|(_, path)| path.as_path()))?;
    let made = bind_below(fd, text, &lead, &scratch).and_then(|from| {
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
    let rename = target.map(|(_, to)| Rename::new(from, to, scratch.clone()));
    let scratch = rename.is_none().then_some(scratch);
    Ok(Bound { site, rename, scratch })
}

/// How the text is made to lead to another directory; with what is behind that.
#[derive(Debug, PartialEq, Eq)]
enum Lead<'a> {
    Directory(&'a Path),
    Descriptor(RawFd, &'a Path),
    Root(&'a Path),
    /// It leads where it says.
    InPlace,
}

impl<'a> Lead<'a> {
    fn of(text: &'a Path) -> Self {
        match (Self::by_caller(text), text.strip_prefix("/")) {
            (Some(lead), _) => lead,
            (None, Ok(rest)) if may_chroot() => Self::Root(rest),
            _ => Self::InPlace,
        }
    }

    /// Where it depends on who calls.
    fn by_caller(text: &'a Path) -> Option<Self> {
        if text.is_relative() {
            return Some(Self::Directory(text));
        }
        let own = text.strip_prefix("/proc/self").ok()?;
        if let Ok(rest) = own.strip_prefix("cwd") {
            return Some(Self::Directory(rest));
        }
        let mut words = own.strip_prefix("fd").ok()?.components();
        let number = words.next()?.as_os_str().to_str()?.parse().ok()?;
        Some(Self::Descriptor(number, words.as_path()))
    }
}

/// May this process choose another root directory?
fn may_chroot() -> bool {
    in_child(|| Ok(chroot("/")?)).is_ok()
}

/// The directory in which something has to be made, so that a socket gets this text, where nobody may
/// choose another root directory. `None`: any will do.
pub(super) fn needed_directory(text: &[u8]) -> Option<&Path> {
    let text = Path::new(OsStr::from_bytes(text));
    (Lead::by_caller(text).is_none() && !may_chroot()).then(|| existing_above(text)).flatten()
}

/// The nearest directory above that exists.
fn existing_above(text: &Path) -> Option<&Path> {
    text.ancestors().skip(1).find(|above| above.exists())
}

/// A new directory: beside the place, from where a file can be renamed to it, else anywhere.
fn scratch(text: &Path, lead: &Lead, place: Option<&Path>) -> io::Result<PathBuf> {
    let make = |at: &Path| {
        // tempfile makes it with mode 0700.
        tempfile::Builder::new().prefix(".vosrun-").tempdir_in(at).map(tempfile::TempDir::keep)
    };
    if let Some(place) = place {
        return make(place.parent().ok_or(io::ErrorKind::InvalidData)?);
    }
    if *lead == Lead::InPlace {
        return make(existing_above(text).ok_or(io::ErrorKind::NotFound)?);
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

/// In a child, for which the text leads below `scratch`. Answers the place of the file.
fn bind_below(fd: BorrowedFd, text: &Path, lead: &Lead, scratch: &Path) -> io::Result<PathBuf> {
    let rest = match lead {
        Lead::Directory(rest) | Lead::Descriptor(_, rest) | Lead::Root(rest) => rest,
        Lead::InPlace => {
            let file = scratch.join("socket");
            in_child(|| bind_in_place(fd, text, &file))?;
            return Ok(file);
        }
    };
    let mut base = scratch.to_path_buf();
    if !matches!(lead, Lead::Root(_)) {
        // Nothing leads out of it, and nothing that it leads to has the name of a directory on the way.
        let up = rest.components().filter(|word| *word == Component::ParentDir);
        let mut name = String::from("w");
        while rest.components().any(|word| word.as_os_str() == name.as_str()) {
            name.push('w');
        }
        base.extend(up.map(|_| name.as_str()));
    }
    let place = make_way(scratch, &base, rest)?;
    in_child(|| {
        let mut own = fd.try_clone_to_owned()?;
        match lead {
            Lead::Directory(_) => chdir(&base)?,
            Lead::Descriptor(number, _) => {
                if own.as_raw_fd() == *number {
                    own = fd.try_clone_to_owned()?;
                }
                let base = directory(&base)?;
                if base.as_raw_fd() != *number {
                    raw::dup_onto(base.as_raw_fd(), *number, false)?;
                }
                return Ok(bind(own.as_raw_fd(), &UnixAddr::new(text)?)?);
            }
            Lead::Root(_) | Lead::InPlace => {
                chroot(scratch)?;
                chdir("/")?;
            }
        }
        Ok(bind(own.as_raw_fd(), &UnixAddr::new(text)?)?)
    })?;
    Ok(place)
}

/// Makes all directories on the way from `base` to a file. Answers where that is.
fn make_way(scratch: &Path, base: &Path, rest: &Path) -> io::Result<PathBuf> {
    let mut place = base.to_path_buf();
    let mut parents = Vec::new();
    for component in rest.components() {
        parents.push(place.clone());
        match component {
            Component::Normal(name) => place.push(name),
            Component::ParentDir if place != scratch => drop(place.pop()),
            _ => {}
        }
    }
    parents.iter().filter(|p| *p != scratch).try_for_each(fs::create_dir_all)?;
    Ok(place)
}

/// Nobody may put another directory in the place of the one that the text names. So what has the name
/// goes aside for as long as bind(2) takes, to `file`, and the two change their places in one step.
/// The child that does so is none that the end of a move could kill in the middle.
fn bind_in_place(fd: BorrowedFd, text: &Path, file: &Path) -> io::Result<()> {
    let _parents = Parents::make(text.parent().ok_or(io::ErrorKind::InvalidData)?)?;
    let aside = match fs::rename(text, file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        other => other.map(|()| true)?,
    };
    let bound = UnixAddr::new(text).and_then(|address| bind(fd.as_raw_fd(), &address));
    match (bound, aside) {
        (Ok(()), false) => fs::rename(text, file),
        (Ok(()), true) => exchange(text, file),
        (Err(e), false) => Err(e.into()),
        (Err(e), true) => {
            // Who has taken the name meanwhile keeps it.
            renameat2(AT_FDCWD, file, AT_FDCWD, text, RenameFlags::RENAME_NOREPLACE)?;
            Err(e.into())
        }
    }
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE) {
        // A file system that cannot do it at once (NFS).
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            let third = other.with_extension("new");
            fs::rename(one, &third)?;
            fs::rename(other, one)?;
            fs::rename(third, other)
        }
        done => Ok(done?),
    }
}

/// Directories that are there for a moment only.
struct Parents(Vec<PathBuf>);

impl Parents {
    fn make(path: &Path) -> io::Result<Self> {
        let missing = path.ancestors().take_while(|above| !above.exists());
        let made = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(path)?;
        Ok(made)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_dir(path);
        }
    }
}

fn in_child(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let child = fork(None)?;
    if child == 0 {
        let done = work();
        exit_now(done.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO)));
    }
    match waitpid(Pid::from_raw(child), None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        other => Err(io::Error::other(format!("the process that tried it: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use nix::sys::socket::getsockname;

    use super::*;

    fn name_of(socket: &impl AsRawFd) -> PathBuf {
        let address: UnixAddr = getsockname(socket.as_raw_fd()).expect("getsockname");
        address.path().expect("a path").to_path_buf()
    }

    fn listing(dir: &Path) -> Vec<String> {
        let all = fs::read_dir(dir).expect("read");
        let mut all: Vec<String> = all
            .map(|entry| entry.expect("entry").file_name().into_string().expect("name"))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn what_depends_on_who_calls() {
        let lead = |text| Lead::by_caller(Path::new(text));
        assert_eq!(lead("a/b"), Some(Lead::Directory(Path::new("a/b"))));
        assert_eq!(lead("/proc/self/cwd/a"), Some(Lead::Directory(Path::new("a"))));
        assert_eq!(lead("/proc/self/fd/7/a/b"), Some(Lead::Descriptor(7, Path::new("a/b"))));
        for text in ["/a", "/proc/1/cwd/a", "/proc/self/root/a", "/proc/self/fdinfo/1"] {
            assert_eq!(lead(text), None, "{text}");
        }
    }

    #[test]
    fn a_text_leads_into_the_scratch_directory() {
        let dir = tempfile::tempdir().expect("dir");
        let low = fs::File::open("/").expect("open").as_raw_fd() + 40;
        let absolute = dir.path().join("a");
        let by_descriptor = format!("/proc/self/fd/{low}/a");
        let texts = ["a", "./d/a", "../../a", "../w", "d/../a", &by_descriptor, "/proc/self/cwd/a"];
        for text in texts.into_iter().chain(absolute.to_str()) {
            let socket = UnixDatagram::unbound().expect("socket");
            let text = Path::new(text);
            let lead = Lead::of(text);
            let scratch = tempfile::tempdir_in(dir.path()).expect("scratch");
            let place = bind_below(socket.as_fd(), text, &lead, scratch.path()).expect("bind");
            assert_eq!(name_of(&socket), text);
            let place = place.canonicalize().expect("place");
            assert!(place.starts_with(scratch.path()), "{place:?}");
            let other = UnixDatagram::unbound().expect("socket");
            other.connect(&place).expect("connect");
        }
        assert_eq!(listing(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn what_has_the_name_is_as_it_was() {
        let dir = tempfile::tempdir().expect("dir");
        let (text, file) = (dir.path().join("s"), dir.path().join("new"));
        let old = UnixListener::bind(&text).expect("bind");
        let ino = fs::metadata(&text).expect("stat").ino();
        let new = UnixDatagram::unbound().expect("socket");
        bind_in_place(new.as_fd(), &text, &file).expect("bind");
        assert_eq!(name_of(&new), text);
        assert_eq!(fs::metadata(&text).expect("stat").ino(), ino);
        let client = UnixStream::connect(&text).expect("the old one");
        old.accept().expect("accept");
        drop(client);
        let other = UnixDatagram::unbound().expect("socket");
        other.connect(&file).expect("the new one");
        // It has a name: bind(2) fails, and the old one is there as before.
        let other = dir.path().join("other");
        let error = bind_in_place(new.as_fd(), &text, &other).expect_err("bound twice");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(fs::metadata(&text).expect("stat").ino(), ino);
        assert_eq!(listing(dir.path()), ["new", "s"]);
    }

    #[test]
    fn a_directory_that_is_gone_is_there_for_a_moment() {
        let dir = tempfile::tempdir().expect("dir");
        let text = dir.path().join("gone/deep/s");
        let new = UnixDatagram::unbound().expect("socket");
        bind_in_place(new.as_fd(), &text, &dir.path().join("new")).expect("bind");
        assert_eq!(name_of(&new), text);
        assert_eq!(listing(dir.path()), ["new"]);
    }
}
