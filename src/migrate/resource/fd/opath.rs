//! O_PATH descriptors (open(2)): a place in the file tree, of any type, without access.

use std::os::fd::OwnedFd;

use super::regular::{has_its_name, Named};
use super::{decode, encode, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;
use crate::syscalls::translate::ptys;

pub(super) const NAME: &str = "path";

pub(super) struct OPath;

impl FdKind for OPath {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const { &[Capability::moves(Descriptors, "o-path", "O_PATH descriptors")] }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.flags & libc::O_PATH != 0
    }

    fn untranslated(&self, view: &FdView, _cx: &dyn CaptureCx) -> Option<&'static str> {
        let is_slave = ptys::name_in_job(view.link.as_bytes()).is_some();
        is_slave.then_some("it names a terminal by a number that another one has there")
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        if !has_its_name(view) {
            let cause = "the place it stands for has no name any more";
            return Err(view.refuse("VOS-FILE-UNLINKED", cause, "let the program close it"));
        }
        let mut named = Named::read(view).map_err(view.failed("examine"))?;
        named.path = ptys::name_in_job(&named.path).unwrap_or(named.path);
        encode(&named)
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let named: Named = decode(NAME, state)?;
        let nofollow = if named.file_type == libc::S_IFLNK { libc::O_NOFOLLOW } else { 0 };
        Named { pos: 0, ..named }.open(libc::O_PATH | nofollow).map(|(fd, _)| fd)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{symlink, MetadataExt, OpenOptionsExt};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::super::testing::{moved, refusal, Here};
    use super::*;

    fn open(path: &Path) -> File {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        File::options().read(true).custom_flags(flags).open(path).expect("open")
    }

    #[test]
    fn any_type_of_place_comes_back() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "x").expect("write");
        symlink("nowhere", at("link")).expect("symlink");
        let _listener = UnixListener::bind(at("socket")).expect("bind");
        for path in [at("file"), at("link"), at("socket"), dir.path().into(), "/dev/null".into()] {
            let fd = open(&path);
            assert_eq!(Here::of(&[&fd]).capture(&fd).kind, NAME, "{}", path.display());
            let copy = File::from(moved(&fd));
            let told = |f: &File| f.metadata().map(|m| (m.dev(), m.ino(), m.mode())).expect("stat");
            assert_eq!(told(&copy), told(&fd), "{}", path.display());
            assert!(copy.try_clone().is_ok() && fs::File::set_len(&copy, 0).is_err());
        }
    }

    #[test]
    fn a_terminal_by_its_name_needs_namespaces() {
        let pty = nix::pty::openpty(None, None).expect("openpty");
        let name = nix::unistd::ttyname(&pty.slave).expect("ttyname");
        for (path, refused) in [(name.as_path(), true), (Path::new("/dev/null"), false)] {
            let fd = open(path);
            let here = Here::of(&[&fd]);
            let cause = OPath.untranslated(&here.view(&fd), &here);
            assert_eq!(cause.is_some(), refused, "{}", path.display());
        }
    }

    #[test]
    fn a_place_without_name_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let fd = open(dir.path());
        drop(dir);
        assert_eq!(refusal(&fd), "VOS-FILE-UNLINKED");
    }
}
