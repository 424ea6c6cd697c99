//! Directories (opendir(3), getdents(2)) with their read position.
//!
//! The position is a cookie of the file system. At another file system it means nothing:
//! a directory that is being read moves only when the target has the very same one.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::unistd::{lseek, Whence};

use super::regular::{has_its_name, Named};
use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;

pub(super) const NAME: &str = "directory";

pub(super) struct Directory;

impl FdKind for Directory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::moves(
                Descriptors,
                "directories",
                "directories, with their read position",
            )]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.file_type() == libc::S_IFDIR && view.link.starts_with('/')
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        if !has_its_name(view) {
            let cause = "its name does not lead to the directory any more";
            let remedy = "let the program close it";
            return Err(view.refuse("VOS-FILE-UNLINKED", cause, remedy));
        }
        encode(&Named::read(view).map_err(view.failed("examine"))?)
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let named = decode::<Named>(NAME, state)?;
        let (fd, _) = named.open(libc::O_DIRECTORY)?;
        if named.pos != 0 {
            read_once(&fd, named.pos)?;
        }
        Ok(fd)
    }
}

/// Reads a little from the begin and goes back. A description that has never been read takes
/// a later return to the begin for no change and finds the directory empty, when it was set
/// to the end before (ext4_dx_readdir, fs/ext4/dir.c).
fn read_once(fd: &OwnedFd, pos: u64) -> Result<(), FdError> {
    let what = || failed("put back a directory's read position");
    let to = |pos: u64| lseek(fd, pos as i64, Whence::SeekSet).map(drop).map_err(io::Error::from);
    to(0)
        .and_then(|()| raw::directory_entries(fd.as_raw_fd()).map(drop))
        .and_then(|()| to(pos))
        .map_err(what())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;

    use super::super::regular::{same_file, Sameness};
    use super::super::testing::{moved, refusal, Here};
    use super::*;

    #[test]
    fn reading_goes_on_where_it_was() {
        let dir = tempfile::tempdir().expect("dir");
        for i in 0..2000 {
            fs::write(dir.path().join(format!("a-rather-long-name-{i}")), "").expect("write");
        }
        let fd = File::open(dir.path()).expect("open");
        let next = |fd: &dyn AsRawFd| raw::directory_entries(fd.as_raw_fd()).expect("getdents");
        let first = next(&fd);
        assert!(Here::of(&[&fd]).view(&fd).pos > 0);
        let copy = moved(&fd);
        let second = next(&fd);
        assert!(!second.is_empty() && second != first);
        assert!(next(&copy) == second);
    }

    #[test]
    fn read_to_its_end_it_can_be_read_again() {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("name"), "").expect("write");
        let fd = File::open(dir.path()).expect("open");
        let next = |fd: &dyn AsRawFd| raw::directory_entries(fd.as_raw_fd()).expect("getdents");
        let all = next(&fd);
        assert!(next(&fd).is_empty());
        let copy = moved(&fd);
        assert!(next(&copy).is_empty());
        lseek(&copy, 0, Whence::SeekSet).expect("lseek");
        assert_eq!(next(&copy), all);
    }

    #[test]
    fn half_read_it_moves_only_to_itself() {
        let fd = File::open("/usr").expect("open");
        let mut named = Named::read(&Here::of(&[&fd]).view(&fd)).expect("named");
        named.identity.boot = "another".into();
        assert_eq!(same_file(&named).expect("ask"), Sameness::SameContent);
        named.pos = 5;
        assert_eq!(same_file(&named).expect("ask"), Sameness::Differs);
    }

    #[test]
    fn a_removed_directory_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let fd = File::open(dir.path()).expect("open");
        drop(dir);
        assert_eq!(refusal(&fd), "VOS-FILE-UNLINKED");
    }
}
