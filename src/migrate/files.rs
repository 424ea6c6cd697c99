//! A process's descriptors become an [`FdImage`].

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use super::cpus;
use super::image::FdImage;
use super::resource::fd::{self, BulkId, BulkSource, CaptureCx, FdError, FdView, Object, Views};
use crate::control::Finding;
use crate::tracer::raw;

/// Descriptors of one process, being captured.
pub struct Files {
    pidfd: OwnedFd,
    pub views: Views,
    /// Annotations of the handle table by descriptor.
    annotations: BTreeMap<i32, Vec<u8>>,
    /// Timers that were due have had their time to expire.
    expired: OnceCell<()>,
}

impl CaptureCx for Files {
    fn dup(&self, view: &FdView) -> io::Result<OwnedFd> {
        raw::pidfd_getfd(&self.pidfd, view.fd)
    }
    fn all(&self) -> &[FdView] {
        &self.views.objects
    }
    fn annotation(&self, view: &FdView) -> Option<&[u8]> {
        self.annotations.get(&view.fd).map(Vec::as_slice)
    }
    fn let_timers_expire(&self) {
        self.expired.get_or_init(cpus::let_timers_expire);
    }
}

impl Files {
    /// Reads the descriptors of a process, running or frozen. `annotate` gives what the handle
    /// table knows of a descriptor.
    ///
    /// # Errors
    /// When the process is gone or may not be looked at.
    pub fn read(pid: i32, annotate: impl Fn(i32) -> Option<Vec<u8>>) -> io::Result<Self> {
        let pidfd = raw::pidfd_open(pid)?;
        let views = fd::views(pid)?;
        let numbers = views.objects.iter().map(|v| v.fd);
        let annotations = numbers.filter_map(|fd| Some((fd, annotate(fd)?))).collect();
        Ok(Self { pidfd, views, annotations, expired: OnceCell::new() })
    }

    /// A duplicate of a description.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn duplicate(&self, view: &FdView) -> io::Result<OwnedFd> {
        self.dup(view)
    }

    /// Everything `check` has to say of descriptors that are not forwarded.
    pub fn check(&self, forwarded: impl Fn(&FdView) -> bool) -> Vec<Finding> {
        let own = self.views.objects.iter().filter(|v| !forwarded(v));
        own.flat_map(|view| fd::check(view, self)).collect()
    }

    /// Captures all descriptions; those that are forwarded come from the target's supervisor.
    /// Also gives the content that travels apart, each once.
    ///
    /// # Errors
    /// The first that cannot move.
    pub fn capture(
        &self,
        forwarded: impl Fn(&FdView) -> bool,
    ) -> Result<(FdImage, Vec<BulkSource>), FdError> {
        let mut image = FdImage { table: self.views.table.clone(), ..FdImage::default() };
        let mut bulk: BTreeMap<BulkId, BulkSource> = BTreeMap::new();
        for view in &self.views.objects {
            image.identities.push((view.dev, view.ino));
            if forwarded(view) {
                let kind = fd::PROVIDED.to_owned();
                image.objects.push(Object { kind, state: Vec::new(), flags: view.flags });
                continue;
            }
            image.objects.push(fd::capture(view, self)?);
            let kind = fd::find(view);
            if let Some(source) = kind.map_or(Ok(None), |k| k.bulk(view, self))? {
                bulk.entry(source.id).or_insert(source);
            }
        }
        Ok((image, bulk.into_values().collect()))
    }
}
