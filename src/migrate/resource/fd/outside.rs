//! What processes outside of the job have open.
//!
//! That takes a look at all of /proc, so what has a name there is looked for once for all objects
//! of the job ([`CaptureCx::outside`](super::CaptureCx::outside)).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{CaptureCx, FdView};
use crate::migrate::resource::View;

/// A descriptor of a process outside of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub pid: i32,
    /// `/proc/PID/fd/N`.
    pub path: PathBuf,
}

/// The descriptors of processes outside of the job, by what they are open on: names only, no
/// pipes and sockets.
#[derive(Debug, Default)]
pub struct Outside(HashMap<OsString, Vec<Place>>);

impl Outside {
    /// Looks at all processes but these (host pids) and those that are traced from here.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn read(job_pids: &[i32]) -> io::Result<Self> {
        #[cfg(test)]
        tests::SCANS.set(tests::SCANS.get() + 1);
        let mut found = Self::default();
        each_link(job_pids, |pid, path, link| {
            if link.has_root() {
                let place = Place { pid, path: path.to_owned() };
                found.0.entry(link.as_os_str().to_owned()).or_default().push(place);
            }
            false
        })?;
        Ok(found)
    }

    /// Those that are open on this name.
    pub(super) fn named(&self, name: &str) -> &[Place] {
        self.0.get(OsStr::new(name)).map_or(&[], Vec::as_slice)
    }

    /// Those whose name ends with this component.
    pub(super) fn ending_with<'a>(&'a self, last: &'a str) -> impl Iterator<Item = &'a Place> {
        let all = self.0.iter().filter(move |(name, _)| Path::new(name).ends_with(last));
        all.flat_map(|(_, places)| places)
    }
}

impl Place {
    /// Is it open on this very file?
    pub(super) fn is_on(&self, view: &FdView) -> bool {
        let same = |m: fs::Metadata| (m.dev(), m.ino()) == (view.dev, view.ino);
        fs::metadata(&self.path).is_ok_and(same)
    }
}

/// Has a process outside of the job this file open? This process does not count.
///
/// # Errors
/// When /proc cannot be read.
pub(super) fn is_open_outside(view: &FdView, cx: &dyn CaptureCx) -> io::Result<bool> {
    let own = std::process::id() as i32;
    let places = cx.outside()?.named(&view.link);
    Ok(places.iter().any(|place| place.pid != own && place.is_on(view)))
}

/// Is this process the tracer of that one?
pub(super) fn is_traced_here(pid: i32) -> bool {
    let own = u64::from(std::process::id());
    View::read_process(pid).is_ok_and(|view| view.number("TracerPid:") == own)
}

/// Shows every descriptor of every process outside of the job to `visit`, until that says "enough":
/// its process, `/proc/PID/fd/N` and the link.
pub(super) fn each_link(
    job_pids: &[i32],
    mut visit: impl FnMut(i32, &Path, &Path) -> bool,
) -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        // One that the job has made just now is traced before the supervisor has heard of it.
        let Some(pid) = pid.filter(|pid| !job_pids.contains(pid) && !is_traced_here(*pid)) else {
            continue;
        };
        let Ok(fds) = fs::read_dir(entry.path().join("fd")) else { continue };
        for fd in fds.flatten() {
            if fs::read_link(fd.path()).is_ok_and(|link| visit(pid, &fd.path(), &link)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::process::Command;

    use super::super::testing::Here;
    use super::*;

    thread_local! {
        pub static SCANS: Cell<u32> = const { Cell::new(0) };
    }

    #[test]
    fn one_look_serves_all_objects() {
        let files: Vec<File> = (0..5).map(|_| tempfile::tempfile().expect("file")).collect();
        let here = Here::of(&files.iter().map(|f| f as _).collect::<Vec<_>>());
        let before = SCANS.get();
        for file in &files {
            assert!(!is_open_outside(&here.view(file), &here).expect("look"));
        }
        assert_eq!(SCANS.get() - before, 1);
    }

    #[test]
    fn who_has_a_file_open_is_found() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let here = || Here::of(&[file.as_file()]);
        let is_open =
            |here: Here| is_open_outside(&here.view(file.as_file()), &here).expect("look");
        assert!(!is_open(here()));
        let mut child = Command::new("sleep")
            .arg("100")
            .stdin(file.reopen().expect("open"))
            .spawn()
            .expect("sleep");
        let found = is_open(here());
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(found);
    }
}
