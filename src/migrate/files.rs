//! The descriptors of a job's processes become an [`FdImage`] and a table for each process.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use super::cpus;
use super::gone;
use super::image::FdImage;
use super::resource::fd::lock::{self, Lock, LockKind};
use super::resource::fd::unix::Sockets;
use super::resource::fd::{
    self, known_or, pty, BulkId, BulkSource, CaptureCx, FdError, FdView, Outside, Slot, Views,
};
use crate::control::Finding;
use crate::tracer::raw;

/// Descriptors of a job, being captured.
pub struct Files {
    /// The job's processes, by host pid.
    processes: BTreeMap<i32, OwnedFd>,
    /// Threads that have a table of their own, by host tid.
    threads: BTreeMap<i32, OwnedFd>,
    pub views: Views,
    /// Annotations of the handle table, by process and descriptor of the view.
    annotations: BTreeMap<(i32, i32), Vec<u8>>,
    /// Bytes of ptys that have been taken.
    queues: BTreeMap<pty::PtyId, pty::queues::Snapshot>,
    /// The Unix sockets of the machine, once they have been asked for.
    sockets: OnceCell<Sockets>,
    /// What others have open, once it has been asked for.
    outside: OnceCell<Outside>,
    /// Timers that were due have had their time to expire.
    expired: OnceCell<()>,
}

impl CaptureCx for Files {
    fn dup(&self, view: &FdView) -> io::Result<OwnedFd> {
        if self.is_carried(view) {
            return fd::raw::dup_from(view.fd, 0);
        }
        let mut failed = None;
        for at in self.holders(view) {
            match self.dup_at(at, view) {
                // The job may run: this holder has ended or closed it.
                Err(e) if gone::is_closed(&e) => drop(failed.get_or_insert(e)),
                done => return done,
            }
        }
        Err(failed.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ESRCH)))
    }
    fn all(&self) -> &[FdView] {
        &self.views.objects
    }
    fn annotation(&self, view: &FdView) -> Option<&[u8]> {
        if self.annotations.is_empty() {
            return None;
        }
        self.holders(view).find_map(|at| self.annotations.get(&at)).map(Vec::as_slice)
    }
    fn is_shared(&self, view: &FdView) -> bool {
        self.is_carried(view) || self.holders(view).any(|(pid, _)| pid != view.host_pid)
    }
    fn job_pids(&self) -> Vec<i32> {
        self.processes.keys().copied().collect()
    }
    fn queues(&self, id: pty::PtyId) -> Option<&pty::queues::Snapshot> {
        self.queues.get(&id)
    }
    fn outside(&self) -> io::Result<&Outside> {
        known_or(&self.outside, || Outside::read(&self.job_pids()))
    }
    fn sockets(&self) -> io::Result<&Sockets> {
        known_or(&self.sockets, Sockets::read)
    }
    fn let_timers_expire(&self) {
        self.expired.get_or_init(cpus::let_timers_expire);
    }
}

impl Files {
    /// Reads the descriptors of a job's processes (host pids), running or frozen. `annotate`
    /// gives what the handle table knows of a descriptor of a process. Processes that end
    /// meanwhile are left out.
    ///
    /// # Errors
    /// When all are gone or one may not be looked at.
    pub fn read(pids: &[i32], annotate: impl Fn(i32, i32) -> Option<Vec<u8>>) -> io::Result<Self> {
        Self::read_with(pids, &[], annotate)
    }

    /// The same with those of threads (host tids) that have a table apart from their process.
    ///
    /// # Errors
    /// As [`Files::read`].
    pub fn read_with(
        pids: &[i32],
        tids: &[i32],
        annotate: impl Fn(i32, i32) -> Option<Vec<u8>>,
    ) -> io::Result<Self> {
        let (mut processes, mut threads) = (BTreeMap::new(), BTreeMap::new());
        for &tid in tids {
            match raw::pidfd_open_thread(tid) {
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                other => drop(threads.insert(tid, other?)),
            }
        }
        for &pid in pids {
            match raw::pidfd_open(pid) {
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                other => drop(processes.insert(pid, other?)),
            }
        }
        let mut there: Vec<i32> =
            pids.iter().copied().filter(|p| processes.contains_key(p)).collect();
        there.extend(threads.keys());
        let views = fd::views(&there)?;
        let places = views.objects.iter().map(|v| (v.host_pid, v.fd));
        let annotations = places.filter_map(|at| Some((at, annotate(at.0, at.1)?))).collect();
        let (queues, sockets, outside, expired) = Default::default();
        Ok(Self { processes, threads, views, annotations, queues, sockets, outside, expired })
    }

    /// Looks into the Unix sockets of a frozen job, once: what waits in them, and the descriptions
    /// that are on their way in them and nowhere else, which become some more of its objects.
    ///
    /// # Errors
    /// The socket that cannot be looked into.
    pub fn look_into_sockets(&mut self) -> Result<(), FdError> {
        self.sockets = OnceCell::new();
        let mut next = 0;
        while let Some(view) = self.views.objects.get(next).cloned() {
            next += 1;
            if !fd::unix::is_unix(&view) {
                continue;
            }
            if self.sockets.get().is_none() {
                self.sockets()
                    .map_err(|source| FdError::Io { what: "sock_diag".into(), source })?;
            }
            let Some(mut sockets) = self.sockets.take() else { continue };
            let found = sockets.look_into(&view, self);
            self.sockets = OnceCell::from(sockets);
            self.views.objects.extend(found?);
        }
        Ok(())
    }

    /// Is it on its way inside of a socket, and in no table?
    fn is_carried(&self, view: &FdView) -> bool {
        let own = std::process::id() as i32;
        view.host_pid == own && !self.processes.contains_key(&own)
    }

    /// The descriptors of one process, or of a thread with a table of its own, ascending; none if it
    /// is not of the job.
    #[must_use]
    pub fn table(&self, pid: i32) -> &[Slot] {
        self.views.tables.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// Does the thread (host tid) have a table of its own?
    #[must_use]
    pub fn is_apart(&self, tid: i32) -> bool {
        self.threads.contains_key(&tid)
    }

    /// Who refers to the object of a view, the place of the view first.
    fn holders(&self, view: &FdView) -> impl Iterator<Item = (i32, i32)> + '_ {
        let first = (view.host_pid, view.fd);
        let slot = self.table(first.0).iter().find(|slot| slot.fd == first.1).map(|s| s.object);
        let others = slot.into_iter().flat_map(|object| self.views.holders(object));
        std::iter::once(first).chain(others.filter(move |at| *at != first))
    }

    /// A duplicate of a descriptor, if it still refers to the object of the view.
    fn dup_at(&self, (pid, fd): (i32, i32), view: &FdView) -> io::Result<OwnedFd> {
        let process = self.processes.get(&pid).or_else(|| self.threads.get(&pid));
        let process = process.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        let dup = raw::pidfd_getfd(process, fd)?;
        let stat = nix::sys::stat::fstat(&dup)?;
        match (stat.st_dev, stat.st_ino) == (view.dev, view.ino) {
            true => Ok(dup),
            false => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// What `check` has to say of one object. What is said of a descriptor that was closed
    /// meanwhile, or whose process has ended, does not count: another holder is asked.
    fn check_object(&self, view: &FdView) -> Vec<Finding> {
        let findings = fd::check(view, self);
        if findings.is_empty() || holds(view) {
            return findings;
        }
        for (pid, fd) in self.holders(view) {
            let Ok(now) = FdView::read(pid, fd) else { continue };
            if (now.dev, now.ino, now.mode) == (view.dev, view.ino, view.mode) {
                let findings = fd::check(&now, self);
                if findings.is_empty() || holds(&now) {
                    return findings;
                }
            }
        }
        Vec::new()
    }

    /// A duplicate of a description.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn duplicate(&self, view: &FdView) -> io::Result<OwnedFd> {
        self.dup(view)
    }

    /// Takes the unread bytes of the ptys of a frozen job, for [`Files::capture`]. Those in
    /// `taken` are to be put back if the job stays.
    ///
    /// # Errors
    /// The first pty that cannot move.
    pub fn take_queues(&mut self, taken: &mut Vec<pty::queues::Taken>) -> Result<(), FdError> {
        for (_, view, _) in pty::masters(&self.views.objects) {
            let (id, pty) = pty::take_queues(view, self)?;
            self.queues.insert(id, pty.seen.clone());
            taken.push(pty);
        }
        Ok(())
    }

    /// Everything `check` has to say of descriptors that are not forwarded, or have a state all the
    /// same.
    pub fn check(&self, forwarded: impl Fn(&FdView) -> bool) -> Vec<Finding> {
        self.with_state(forwarded).flat_map(|view| self.check_object(view)).collect()
    }

    /// What of these cannot be where the job's numbers are translated.
    pub fn untranslated(&self, forwarded: impl Fn(&FdView) -> bool) -> Vec<Finding> {
        self.with_state(forwarded).filter_map(|view| fd::untranslated(view, self)).collect()
    }

    fn with_state(&self, forwarded: impl Fn(&FdView) -> bool) -> impl Iterator<Item = &FdView> {
        self.views.objects.iter().filter(move |v| !forwarded(v) || fd::is_relayed(v))
    }

    /// The locks that the processes of a frozen job hold, by host pid, each as that process takes
    /// it again.
    ///
    /// # Errors
    /// The first that cannot move.
    pub fn locks(&self) -> Result<BTreeMap<i32, Vec<Lock>>, FdError> {
        let mut all: BTreeMap<i32, Vec<Lock>> = BTreeMap::new();
        for (object, view) in (0..).zip(&self.views.objects) {
            for held in lock::held(view, self, true)? {
                let taker = Some(held.taker).filter(|pid| self.slot(*pid, object).is_some());
                let own = held.lock.kind == LockKind::Record;
                let pid = if own { held.taker } else { taker.unwrap_or(view.host_pid) };
                if let Some(slot) = self.slot(pid, object) {
                    all.entry(pid).or_default().push(Lock { fd: slot.fd, ..held.lock });
                }
            }
        }
        Ok(all)
    }

    /// A descriptor of this process for a description.
    fn slot(&self, pid: i32, object: u32) -> Option<&Slot> {
        self.table(pid).iter().find(|slot| slot.object == object)
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
        let mut image = FdImage::default();
        let mut bulk: BTreeMap<BulkId, BulkSource> = BTreeMap::new();
        for view in &self.views.objects {
            image.identities.push((view.dev, view.ino));
            if forwarded(view) {
                if self.is_carried(view) {
                    return Err(FdError::Refused(Box::new(view.blocker(
                        "VOS-UNIX-RIGHTS",
                        "it is on its way inside of a Unix socket, and its other end is relayed",
                        "move again when the program has received it",
                    ))));
                }
                let state = fd::is_relayed(view);
                let capture = if state { fd::capture } else { fd::capture_provided };
                image.objects.push(capture(view, self)?);
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

/// Does the descriptor still refer to what the view shows, in a process that lives?
fn holds(view: &FdView) -> bool {
    // All masters of ptys are open on one file: their numbers tell them apart.
    let shown = |of: &FdView| {
        let number = of.field("tty-index").map(str::to_owned);
        (of.dev, of.ino, of.link.clone(), of.flags, number)
    };
    FdView::read(view.host_pid, view.fd).is_ok_and(|now| shown(&now) == shown(view))
        && !gone::is_ending(view.host_pid)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    use nix::sys::signal::{kill, Signal};
    use nix::sys::wait::{waitpid, WaitPidFlag};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn what_was_closed_meanwhile_is_no_finding() {
        let own = std::process::id() as i32;
        let status = std::fs::File::open("/proc/1/status").expect("open");
        let again = status.try_clone().expect("dup");
        let files = Files::read(&[own], |_, _| None).expect("files");
        let of = |status: &FdView| status.link.ends_with("/status");
        let found = || {
            let views = files.views.objects.iter().filter(|view| of(view));
            views.flat_map(|view| files.check_object(view)).collect::<Vec<_>>()
        };
        assert_eq!(found().len(), 1);
        drop(status);
        let left = found();
        let fd = again.as_raw_fd();
        assert!(left.iter().all(|f| f.object.starts_with(&format!("fd {fd} "))), "{left:?}");
        assert_eq!(left.len(), 1, "the other descriptor of the same description");
        drop(again);
        assert_eq!(found(), []);
    }

    #[test]
    fn processes_without_a_descriptor_are_of_the_job() {
        let file = tempfile::tempfile().expect("file");
        let script = "exec 0<&- 1>&- 2>&-; kill -STOP $$; exec 7</dev/null; kill -STOP $$";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(file.try_clone().expect("dup"))
            .stdout(Stdio::null())
            .spawn()
            .expect("sh");
        let (pid, own) = (child.id() as i32, std::process::id() as i32);
        let stopped = || waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WUNTRACED)).expect("wait");
        let annotate = |pid, fd| Some(format!("{pid} {fd}").into_bytes());
        stopped();
        let bare = Files::read(&[own, pid], annotate);
        kill(Pid::from_raw(pid), Signal::SIGCONT).expect("continue");
        stopped();
        let later = Files::read(&[own, pid], annotate);
        let dup = later.as_ref().ok().and_then(|files| {
            let view = files.views.objects.iter().find(|v| (v.host_pid, v.fd) == (pid, 7))?;
            Some((files.duplicate(view), files.annotation(view).map(<[u8]>::to_vec)))
        });
        child.kill().expect("kill");
        child.wait().expect("wait");
        let bare = bare.expect("files");
        let mut both = vec![own, pid];
        both.sort_unstable();
        assert_eq!(bare.job_pids(), both);
        assert!(bare.table(pid).iter().all(|slot| slot.fd > 2));
        assert!(bare.table(own).iter().any(|slot| slot.fd == file.as_raw_fd()));
        let (dup, annotation) = dup.expect("a descriptor that only the child has");
        let null = std::fs::metadata("/dev/null").expect("stat");
        let found = std::fs::File::from(dup.expect("duplicate")).metadata().expect("stat");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(found.rdev(), null.rdev());
        assert_eq!(annotation, Some(format!("{pid} 7").into_bytes()));
    }
}
