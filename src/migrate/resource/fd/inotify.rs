//! inotify(7): watches with their descriptors.
//!
//! The kernel shows a watch's inode, not the path it was asked for: paths come from the
//! handle table, as an annotation. Watch descriptors are given out in ascending order, so
//! the numbers that are free at the source are used up by watches that are removed at once.
//! What happens in the file system while the job is between two machines is not reported.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::content::as_path;
use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::{Capability, Support};

const NAME: &str = "inotify";

/// Most numbers that are used up to reach a watch descriptor.
const BURN_LIMIT: i32 = 1 << 17;

/// Bits that fdinfo does not show and that count only when a watch is made.
const ASKED: u32 =
    libc::IN_ONLYDIR | libc::IN_DONT_FOLLOW | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

/// A watch as the handle table noted it, and as the state of the kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Watch {
    wd: i32,
    path: Vec<u8>,
    mask: u32,
}

/// A watch as fdinfo shows it.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    wd: i32,
    ino: u64,
    mask: u32,
}

pub(super) struct Inotify;

impl FdKind for Inotify {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(Descriptors, "inotify", "inotify watches")
                    .attached(Support::Refused("VOS-INOTIFY")),
                Capability::refused(
                    Descriptors,
                    "inotify-events",
                    "unread events of inotify",
                    "VOS-INOTIFY-EVENTS",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.link == "anon_inode:inotify"
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let tried = || view.failed("ask for events");
        let unread = raw::readable_bytes(cx.dup(view).map_err(tried())?.as_raw_fd());
        if unread.map_err(tried())? > 0 {
            let cause = "file events have not been read yet";
            let remedy = "move again when the program has read them";
            return Err(view.refuse("VOS-INOTIFY-EVENTS", cause, remedy));
        }
        encode(&watches(view, cx)?)
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let watches: Vec<Watch> = decode(NAME, state)?;
        let fd = raw::inotify().map_err(failed("make an inotify instance"))?;
        let dummy = Dummy::make()?;
        let mut next = 1;
        for watch in &watches {
            let skipped = watch.wd.checked_sub(next).filter(|n| (0..=BURN_LIMIT).contains(n));
            dummy.burn(&fd, skipped.ok_or(FdError::State(NAME))?)?;
            watch.add(fd.as_raw_fd())?;
            next = watch.wd.saturating_add(1);
        }
        Ok(fd)
    }
}

impl Watch {
    fn add(&self, fd: RawFd) -> Result<(), FdError> {
        let tried = || failed(format!("watch {} as {}", as_path(&self.path).display(), self.wd));
        let path = CString::new(&*self.path).map_err(|e| tried()(e.into()))?;
        let wd = raw::inotify_add(fd, &path, self.mask).map_err(tried())?;
        if wd == self.wd {
            return Ok(());
        }
        Err(tried()(io::Error::other(format!("it became watch {wd}"))))
    }
}

/// The watches of an instance with their paths, ascending.
fn watches(view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<Watch>, FdError> {
    let refuse = |cause: String| {
        view.refuse("VOS-INOTIFY", cause, "start the program under vosrun instead of attaching")
    };
    let noted: Vec<Watch> = cx
        .annotation(view)
        .map_or(Ok(Vec::new()), postcard::from_bytes)
        .map_err(|_| FdError::State(NAME))?;
    let noted: HashMap<i32, Watch> = noted.into_iter().map(|watch| (watch.wd, watch)).collect();
    let mut found = Vec::new();
    let mut next = 1;
    for shown in shown(&view.fdinfo) {
        let wd = shown.wd;
        let watch = noted
            .get(&wd)
            .ok_or_else(|| refuse(format!("the path of its watch {wd} is not known")))?;
        if inode(view, watch) != Some(shown.ino) {
            let path = as_path(&watch.path).display();
            return Err(refuse(format!("{path} of its watch {wd} has been renamed")));
        }
        if wd.saturating_sub(next) > BURN_LIMIT {
            return Err(refuse(format!("its watch descriptor {wd} is too high to reach again")));
        }
        next = wd.saturating_add(1);
        found.push(Watch { mask: shown.mask | watch.mask & ASKED, ..watch.clone() });
    }
    Ok(found)
}

/// The inode that the path of a watch leads to, as the process sees the file tree.
fn inode(view: &FdView, watch: &Watch) -> Option<u64> {
    let root = format!("/proc/{}/root", view.host_pid).into_bytes();
    let path = [&*root, &*watch.path].concat();
    let nofollow = watch.mask & libc::IN_DONT_FOLLOW != 0;
    let meta =
        if nofollow { fs::symlink_metadata(as_path(&path)) } else { fs::metadata(as_path(&path)) };
    meta.ok().filter(|_| watch.path.starts_with(b"/")).map(|meta| meta.ino())
}

/// Lines `inotify wd:1 ino:2f9b3 sdev:fe00001 mask:fce …`, all hexadecimal, by ascending wd.
fn shown(fdinfo: &str) -> Vec<Shown> {
    let parse = |line: &str| {
        let words = line.strip_prefix("inotify ")?;
        let number = |key: &str| {
            let word =
                words.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))?;
            u64::from_str_radix(word, 16).ok()
        };
        let mask = number("mask")? as u32 & libc::IN_ALL_EVENTS;
        Some(Shown { wd: i32::try_from(number("wd")?).ok()?, ino: number("ino")?, mask })
    };
    let mut found: Vec<Shown> = fdinfo.lines().filter_map(parse).collect();
    found.sort_by_key(|shown| shown.wd);
    found
}

/// Something to watch that nobody else watches.
struct Dummy {
    _file: OwnedFd,
    path: CString,
}

impl Dummy {
    fn make() -> Result<Self, FdError> {
        let flags = libc::MFD_CLOEXEC;
        let file = raw::memfd(c"inotify", flags).map_err(failed("make a file to watch"))?;
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(Self { _file: file, path: path.map_err(|_| FdError::State(NAME))? })
    }

    /// Uses up `count` watch descriptors and takes the IN_IGNORED events away.
    fn burn(&self, fd: &OwnedFd, count: i32) -> Result<(), FdError> {
        if count == 0 {
            return Ok(());
        }
        let tried = || failed(format!("use up {count} watch descriptors"));
        for _ in 0..count {
            let wd = raw::inotify_add(fd.as_raw_fd(), &self.path, libc::IN_ATTRIB);
            raw::inotify_remove(fd.as_raw_fd(), wd.map_err(tried())?).map_err(tried())?;
        }
        let mut file = File::from(fd.try_clone().map_err(tried())?);
        let mut events = vec![0; 1 << 16];
        loop {
            match file.read(&mut events) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                other => other.map_err(tried())?,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::super::testing::{refusal, Here, Restored};
    use super::*;

    struct Setup {
        dir: tempfile::TempDir,
        fd: OwnedFd,
        noted: Vec<Watch>,
    }

    /// Watches 1 to 5, of which 2 and 4 are removed again.
    fn setup() -> Setup {
        let dir = tempfile::tempdir().expect("dir");
        let fd = raw::inotify().expect("inotify");
        let mut noted = Vec::new();
        for i in 1..=5 {
            let path = dir.path().join(i.to_string());
            fs::create_dir(&path).expect("mkdir");
            let path = path.into_os_string().into_vec();
            let mask = libc::IN_CREATE | libc::IN_DELETE | libc::IN_ONLYDIR;
            let name = CString::new(&*path).expect("path");
            let wd = raw::inotify_add(fd.as_raw_fd(), &name, mask).expect("watch");
            noted.push(Watch { wd, path, mask });
        }
        for wd in [2, 4] {
            raw::inotify_remove(fd.as_raw_fd(), wd).expect("remove");
        }
        let mut events = [0; 4096];
        let mut file = File::from(fd.try_clone().expect("dup"));
        assert!(file.read(&mut events).expect("IN_IGNORED") > 0);
        Setup { dir, fd, noted }
    }

    fn here(setup: &Setup) -> Here {
        let annotation = Some(encode(&setup.noted).expect("encode"));
        let mut here = Here::of(&[&setup.fd]);
        here.annotation = annotation;
        here
    }

    #[test]
    fn watches_keep_their_numbers() {
        let setup = setup();
        let object = here(&setup).capture(&setup.fd);
        let copy = Restored::default().restore(&object, 0);
        let info = |fd: &OwnedFd| shown(&Here::of(&[fd]).view(fd).fdinfo);
        assert_eq!(info(&copy), info(&setup.fd));
        assert_eq!(info(&copy).len(), 3);
        fs::write(setup.dir.path().join("5/new"), "").expect("write");
        let mut event = [0; 64];
        let mut file = File::from(copy);
        let n = file.read(&mut event).expect("event");
        assert_eq!((n, event[0]), (32, 5));
    }

    #[test]
    fn an_instance_without_watches_needs_no_note() {
        let fd = raw::inotify().expect("inotify");
        super::super::testing::moved(&fd);
    }

    #[test]
    fn what_cannot_move_is_refused() {
        let setup = setup();
        assert_eq!(refusal(&setup.fd), "VOS-INOTIFY");
        let (old, new) = (setup.dir.path().join("1"), setup.dir.path().join("new"));
        fs::rename(&old, &new).expect("rename");
        assert_eq!(here(&setup).refusal(&setup.fd), "VOS-INOTIFY");
        fs::rename(&new, &old).expect("rename");
        fs::write(old.join("event"), "").expect("write");
        assert_eq!(here(&setup).refusal(&setup.fd), "VOS-INOTIFY-EVENTS");
    }
}
