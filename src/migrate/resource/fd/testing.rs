//! Capture and restore of this process's own descriptors, for the tests of the kinds.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::unix::{Cred, Deed, Sockets};
use super::{by_name, find, place, CaptureCx, FdError, FdView, Object, Outside, RestoreCx, Shared};
use crate::codes;
use crate::tracer;

/// A job that is this process, with some of its descriptors.
#[derive(Default)]
pub struct Here {
    all: Vec<FdView>,
    pub annotation: Option<Vec<u8>>,
    sockets: OnceCell<Sockets>,
    outside: OnceCell<Outside>,
}

fn me() -> i32 {
    std::process::id() as i32
}

impl Here {
    pub fn of(fds: &[&dyn AsRawFd]) -> Self {
        let view = |fd: &&dyn AsRawFd| FdView::read(me(), fd.as_raw_fd()).expect("view");
        Self { all: fds.iter().map(view).collect(), ..Self::default() }
    }

    pub fn view(&self, fd: &dyn AsRawFd) -> FdView {
        self.all.iter().find(|view| view.fd == fd.as_raw_fd()).expect("listed").clone()
    }

    pub fn capture(&self, fd: &dyn AsRawFd) -> Object {
        let view = self.view(fd);
        assert_eq!(super::check(&view, self), []);
        super::capture(&view, self).expect("capture")
    }

    /// The code with which both check and capture refuse.
    pub fn refusal(&self, fd: &dyn AsRawFd) -> String {
        let view = self.view(fd);
        let found = super::check(&view, self);
        match super::capture(&view, self) {
            Err(FdError::Refused(finding)) if found.contains(&finding) => {
                assert!(codes::find(&finding.code).is_some(), "{} is not explained", finding.code);
                finding.code
            }
            other => panic!("{other:?}, but check says {found:?}"),
        }
    }
}

impl CaptureCx for Here {
    fn dup(&self, view: &FdView) -> io::Result<OwnedFd> {
        tracer::raw::pidfd_getfd(&tracer::raw::pidfd_open(view.host_pid)?, view.fd)
    }

    fn all(&self) -> &[FdView] {
        &self.all
    }

    fn annotation(&self, _view: &FdView) -> Option<&[u8]> {
        self.annotation.as_deref()
    }

    fn outside(&self) -> io::Result<&Outside> {
        super::known_or(&self.outside, || Outside::read(&self.job_pids()))
    }

    fn sockets(&self) -> io::Result<&Sockets> {
        if self.sockets.get().is_none() {
            let mut sockets = Sockets::read()?;
            for view in &self.all {
                let found = sockets.look_into(view, self).map_err(io::Error::other)?;
                assert_eq!(found.len(), 0, "descriptors on their way");
            }
            let _ = self.sockets.set(sockets);
        }
        self.sockets.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// With the children that other tests have forked, which hold our descriptors as well.
    fn job_pids(&self) -> Vec<i32> {
        let exe = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        let all = std::fs::read_dir("/proc").expect("proc").flatten();
        let names = all.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|n| exe(n) == exe("self")).filter_map(|n| n.parse().ok()).collect()
    }
}

/// The new process, played by this one.
#[derive(Default)]
pub struct Restored {
    provided: HashMap<u32, OwnedFd>,
    shared: Shared,
}

impl Restored {
    pub fn provide(&mut self, object: u32, fd: OwnedFd) {
        self.provided.insert(object, fd);
    }

    pub fn try_restore(&mut self, object: &Object, index: u32) -> Result<OwnedFd, FdError> {
        let kind = by_name(&object.kind).expect("kind");
        let fd = kind.restore(index, &object.state, self)?;
        place::set_flags(fd.as_raw_fd(), object.flags)?;
        Ok(fd)
    }

    pub fn restore(&mut self, object: &Object, index: u32) -> OwnedFd {
        self.try_restore(object, index).expect("restore")
    }

    pub fn finish(&self, object: &Object, fd: &dyn AsRawFd) {
        let kind = by_name(&object.kind).expect("kind");
        kind.finish(&object.state, fd.as_raw_fd()).expect("finish");
    }
}

impl RestoreCx for Restored {
    fn provided(&mut self, object: u32) -> Option<OwnedFd> {
        self.provided.remove(&object)
    }

    fn shared(&mut self) -> &mut Shared {
        &mut self.shared
    }

    fn act(
        &mut self,
        by: Option<Cred>,
        deed: &Deed,
        fds: &[BorrowedFd],
    ) -> io::Result<Vec<OwnedFd>> {
        deed.perform(by, fds)
    }
}

/// Captures and restores one descriptor that needs nothing else.
pub fn moved(fd: &dyn AsRawFd) -> OwnedFd {
    let object = Here::of(&[fd]).capture(fd);
    let mut restored = Restored::default();
    let copy = restored.restore(&object, 0);
    restored.shared = Shared::default();
    restored.finish(&object, &copy);
    copy
}

/// The code with which a descriptor that needs nothing else is refused.
pub fn refusal(fd: &dyn AsRawFd) -> String {
    Here::of(&[fd]).refusal(fd)
}

/// Carries the content of `view` into a vessel, as the mover does, and provides it for
/// `index`. Gives another descriptor of the vessel.
pub fn move_bulk(view: &FdView, object: &Object, to: &mut Restored, index: u32) -> OwnedFd {
    let kind = find(view).expect("kind");
    let source = kind.bulk(view, &Here::default()).expect("bulk").expect("source");
    assert_eq!(kind.bulk_id(&object.state).expect("id"), Some(source.id));
    let vessel = File::from(kind.vessel(&object.state).expect("vessel").expect("vessel"));
    let from = File::from(source.fd);
    for (offset, len) in source.extents {
        let mut chunk = vec![0; len as usize];
        from.read_exact_at(&mut chunk, offset).expect("read");
        vessel.write_all_at(&chunk, offset).expect("write");
    }
    to.provide(index, vessel.try_clone().expect("dup").into());
    vessel.into()
}

pub fn proc_self(fd: &dyn AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
