//! The descriptors of a job's processes as /proc shows them, grouped by open file description.
//!
//! proc_pid_fd(5), proc_pid_fdinfo(5), kcmp(2).

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{raw, Slot};
use crate::control::{Finding, Severity};
use crate::migrate::ahead::read_ahead;
use crate::migrate::gone;

/// One open file description of the job, as /proc shows it.
#[derive(Debug, Clone, Default)]
pub struct FdView {
    /// Host pid of the first process that holds it.
    pub host_pid: i32,
    /// The lowest descriptor that refers to it in that process.
    pub fd: i32,
    /// Target of the link `/proc/PID/fd/N`, e.g. `pipe:[1234]` or `/tmp/x (deleted)`. Bytes
    /// that are not UTF-8 are replaced; [`FdView::path`] has them all.
    pub link: String,
    /// The whole text of `/proc/PID/fdinfo/N`, and the locks that other descriptors of the
    /// description show.
    pub fdinfo: String,
    /// Status flags (`flags:` of fdinfo, without O_CLOEXEC).
    pub flags: i32,
    /// File position (`pos:` of fdinfo).
    pub pos: u64,
    /// st_mode, st_ino, st_dev, st_rdev, st_size, st_nlink of the object.
    pub mode: u32,
    pub ino: u64,
    pub dev: u64,
    pub rdev: u64,
    pub size: u64,
    pub nlink: u64,
    /// Type of the file system, `f_type` of statfs(2), for regular files, directories and
    /// FIFOs whose links are paths; else 0.
    pub fs: i64,
}

impl FdView {
    /// Reads what /proc knows of one descriptor.
    ///
    /// # Errors
    /// `ENOENT` when it is not open (any more), `EACCES` without the right to trace.
    pub fn read(host_pid: i32, fd: i32) -> io::Result<Self> {
        Self::read_with_cloexec(host_pid, fd).map(|(view, _)| view)
    }

    fn read_with_cloexec(host_pid: i32, fd: i32) -> io::Result<(Self, bool)> {
        let mut view = Self { host_pid, fd, ..Self::default() };
        let proc = view.proc_path();
        view.link = fs::read_link(&proc)?.to_string_lossy().into_owned();
        let meta = fs::metadata(&proc)?;
        view.fdinfo = fdinfo(host_pid, fd)?;
        let flags = view.number("flags", 8)? as i32;
        view.flags = flags & !libc::O_CLOEXEC;
        view.pos = view.number("pos", 10)?;
        (view.mode, view.ino, view.dev) = (meta.mode(), meta.ino(), meta.dev());
        (view.rdev, view.size, view.nlink) = (meta.rdev(), meta.size(), meta.nlink());
        let tree = matches!(view.file_type(), libc::S_IFREG | libc::S_IFDIR | libc::S_IFIFO);
        if tree && view.link.starts_with('/') {
            view.fs = nix::sys::statfs::statfs(&proc)?.filesystem_type().0 as i64;
        }
        Ok((view, flags & libc::O_CLOEXEC != 0))
    }

    /// `/proc/PID/fd/N`; opening it makes a new description of the same object.
    #[must_use]
    pub fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", self.host_pid, self.fd))
    }

    /// The link's bytes as they are.
    ///
    /// # Errors
    /// `ENOENT` when the descriptor is closed.
    pub fn path(&self) -> io::Result<Vec<u8>> {
        fs::read_link(self.proc_path()).map(|path| path.into_os_string().into_vec())
    }

    /// S_IFMT part of the mode.
    #[must_use]
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// The link says that the name is gone (or the name ends that way).
    #[must_use]
    pub fn says_deleted(&self) -> bool {
        self.link.starts_with('/') && self.link.ends_with(" (deleted)")
    }

    /// The text after `key:` in fdinfo, trimmed, of its first line with that key.
    #[must_use]
    pub fn field(&self, key: &str) -> Option<&str> {
        field(&self.fdinfo, key)
    }

    /// Adds the locks that another descriptor of this description shows in its `fdinfo`. One that
    /// belongs to a process (fcntl(2), F_SETLK) is shown by the descriptors of that process only.
    fn add_locks(&mut self, fdinfo: &str) {
        for line in fdinfo.lines().filter(|line| line.starts_with("lock:")) {
            if !self.fdinfo.lines().any(|known| known == line) {
                self.fdinfo.push_str(line);
                self.fdinfo.push('\n');
            }
        }
    }

    /// A number of fdinfo in the given base.
    ///
    /// # Errors
    /// `InvalidData` when it is missing or no number.
    pub fn number(&self, key: &str, base: u32) -> io::Result<u64> {
        self.field(key).and_then(|text| u64::from_str_radix(text, base).ok()).ok_or_else(|| {
            let what = format!("no number `{key}` in /proc/{}/fdinfo/{}", self.host_pid, self.fd);
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }
}

/// The descriptors of a job.
#[derive(Debug, Clone, Default)]
pub struct Views {
    /// One per open file description, in the order of processes and of their lowest
    /// descriptors.
    pub objects: Vec<FdView>,
    /// Every descriptor of each process (host pid), ascending.
    pub tables: BTreeMap<i32, Vec<Slot>>,
    /// What could not be found out.
    pub warnings: Vec<Finding>,
}

impl Views {
    /// Every descriptor of the job that refers to an object, by process and number.
    pub fn holders(&self, object: u32) -> impl Iterator<Item = (i32, i32)> + '_ {
        let slots = self.tables.iter().flat_map(|(pid, table)| table.iter().map(|s| (*pid, s)));
        slots.filter(move |(_, slot)| slot.object == object).map(|(pid, slot)| (pid, slot.fd))
    }

    /// The process has ended: what it held is looked at through others, if any hold it.
    fn forget(&mut self, host_pid: i32) {
        self.tables.remove(&host_pid);
        let orphans = (0..).zip(&self.objects).filter(|(_, view)| view.host_pid == host_pid);
        let heirs: Vec<(u32, (i32, i32))> =
            orphans.filter_map(|(n, _)| Some((n, self.holders(n).next()?))).collect();
        for (object, heir) in heirs {
            let view = &mut self.objects[object as usize];
            (view.host_pid, view.fd) = heir;
        }
    }

    /// False: nothing was read but what is `listed`.
    fn add(&mut self, host_pid: i32, listed: Fds, groups: &mut Groups) -> io::Result<bool> {
        let mut table = Vec::new();
        let mut more = false;
        for (fd, fdinfo) in listed.map_err(of(format!("descriptors of process {host_pid}")))? {
            if let Some((object, cloexec)) = self.add_inherited((host_pid, fd), &fdinfo, groups) {
                table.push(Slot { fd, object, cloexec });
                continue;
            }
            more = true;
            let (view, cloexec) = match FdView::read_with_cloexec(host_pid, fd) {
                Err(e) if gone::is_closed(&e) => continue,
                other => other.map_err(of(format!("fd {fd} of process {host_pid}")))?,
            };
            let object = groups.object_of(&view, self.objects.len() as u32);
            match self.objects.get_mut(object as usize) {
                Some(known) => known.add_locks(&view.fdinfo),
                None => self.objects.push(view),
            }
            groups.by_number.insert(fd, ((host_pid, fd), object));
            table.push(Slot { fd, object, cloexec });
        }
        self.tables.insert(host_pid, table);
        Ok(more)
    }

    /// A descriptor that refers to what that of the same number in an earlier process does, as
    /// after fork(2): most is known of it. Its object, and whether it has FD_CLOEXEC.
    fn add_inherited(
        &mut self,
        own: Place,
        fdinfo: &io::Result<String>,
        groups: &Groups,
    ) -> Option<(u32, bool)> {
        let (place, object) = *groups.by_number.get(&own.1)?;
        let known = self.objects.get_mut(object as usize)?;
        let same = |order: io::Result<Ordering>| order.is_ok_and(Ordering::is_eq);
        if !same(raw::compare_files(place, own)) {
            return None;
        }
        let fdinfo = fdinfo.as_ref().ok()?;
        let flags = field(fdinfo, "flags").and_then(|text| i32::from_str_radix(text, 8).ok())?;
        known.add_locks(fdinfo);
        Some((object, flags & libc::O_CLOEXEC != 0))
    }
}

/// Reads all descriptors of a job's processes, given by their host pids, and of threads with a table
/// of their own. Descriptors that are closed meanwhile are left out, and who ends meanwhile.
///
/// # Errors
/// `ENOENT` when there is none of the processes, `EACCES` without the right to trace one.
pub fn views(host_pids: &[i32]) -> io::Result<Views> {
    let mut found = Views::default();
    let mut groups = Groups::default();
    read_ahead(
        host_pids,
        |pid| Listed::read(*pid),
        |next| {
            while let Some(Listed { host_pid: pid, fds, ended }) = next() {
                let ended = match found.add(pid, fds, &mut groups) {
                    Ok(false) => ended,
                    more => gone::look(pid, || more)?.is_none(),
                };
                if ended {
                    found.forget(pid);
                }
            }
            Ok::<_, io::Error>(())
        },
    )?;
    if found.tables.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    found.warnings.extend(groups.broken.map(|(pid, e)| no_kcmp(pid, &e)));
    Ok(found)
}

/// The text after `key:` in an fdinfo, trimmed, of its first line with that key.
fn field<'a>(fdinfo: &'a str, key: &str) -> Option<&'a str> {
    fdinfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// Names what could not be read.
fn of(what: String) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// The whole fdinfo. The kernel makes it in one piece, so that a read which leaves room in
/// the buffer was the last.
fn fdinfo(host_pid: i32, fd: i32) -> io::Result<String> {
    let mut file = File::open(format!("/proc/{host_pid}/fdinfo/{fd}"))?;
    let mut buf = [0; 2048];
    let n = file.read(&mut buf)?;
    let mut text = buf[..n].to_vec();
    if n == buf.len() {
        file.read_to_end(&mut text)?;
    }
    String::from_utf8(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// The open descriptors of a process, ascending.
///
/// # Errors
/// When they cannot be listed.
pub fn numbers(host_pid: i32) -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(format!("/proc/{host_pid}/fd"))? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A descriptor: its process (host pid) and number.
type Place = (i32, i32);

/// Numbers of descriptors, ascending, each with its fdinfo.
type Fds = io::Result<Vec<(i32, io::Result<String>)>>;

/// What of a process's descriptors is read in any case.
struct Listed {
    host_pid: i32,
    fds: Fds,
    /// It has ended by then.
    ended: bool,
}

impl Listed {
    fn read(host_pid: i32) -> Self {
        let listed = |fd| (fd, fdinfo(host_pid, fd));
        let fds = numbers(host_pid).map(|all| all.into_iter().map(listed).collect());
        Self { host_pid, fds, ended: gone::is_ending(host_pid) }
    }
}

/// Descriptions found so far. Only those with the same inode can be the same; among them
/// the kernel's order (kcmp) is searched by halves.
#[derive(Default)]
struct Groups {
    /// By st_dev and st_ino: (process and descriptor, its object), in the order of kcmp.
    by_inode: HashMap<(u64, u64), Vec<(Place, u32)>>,
    /// By number: a descriptor of that number which was read in full, and its object.
    by_number: HashMap<i32, (Place, u32)>,
    /// Why kcmp does not work here, and of which process it was asked.
    broken: Option<(i32, io::Error)>,
}

impl Groups {
    /// The object of this view: an earlier one, or `next`.
    fn object_of(&mut self, view: &FdView, next: u32) -> u32 {
        let own = (view.host_pid, view.fd);
        let group = self.by_inode.entry((view.dev, view.ino)).or_default();
        let (mut low, mut high) = (0, if self.broken.is_some() { 0 } else { group.len() });
        while low < high {
            let middle = usize::midpoint(low, high);
            match raw::compare_files(group[middle].0, own) {
                Ok(Ordering::Equal) => return group[middle].1,
                Ok(Ordering::Less) => low = middle + 1,
                Ok(Ordering::Greater) => high = middle,
                // One of the two was closed just now: it has no place in the order.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => {
                    if raw::compare_files(own, own).is_err() {
                        return next;
                    }
                    group.remove(middle);
                    high -= 1;
                }
                Err(e) => {
                    self.broken = Some((view.host_pid, e));
                    break;
                }
            }
        }
        group.insert(low, (own, next));
        next
    }
}

fn no_kcmp(host_pid: i32, error: &io::Error) -> Finding {
    Finding {
        severity: Severity::Warning,
        code: "VOS-KCMP".to_owned(),
        object: format!("descriptors of process {host_pid}"),
        cause: format!("kcmp(2) does not work here ({error}): duplicated descriptors will not share their offset after a move"),
        remedy: "use a kernel with CONFIG_KCMP, and allow kcmp in the seccomp filter around vosrun".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::process::{Command, Stdio};

    use super::super::{capture, testing::Here};
    use super::*;

    fn me() -> i32 {
        std::process::id() as i32
    }

    fn object_in(views: &Views, pid: i32, fd: i32) -> u32 {
        views.tables[&pid].iter().find(|slot| slot.fd == fd).expect("descriptor listed").object
    }

    fn wait_until_stopped(child: &std::process::Child) {
        use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("wait");
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
    }

    fn object(views: &Views, fd: &impl AsRawFd) -> u32 {
        object_in(views, me(), fd.as_raw_fd())
    }

    #[test]
    fn duplicates_share_an_object_and_reopened_files_do_not() {
        let file = tempfile::tempfile().expect("file");
        let dup = file.try_clone().expect("dup");
        let again = fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("open");
        let views = views(&[me()]).expect("views");
        assert_eq!(object(&views, &file), object(&views, &dup));
        assert_ne!(object(&views, &file), object(&views, &again));
        let view = &views.objects[object(&views, &dup) as usize];
        assert_eq!(view.fd, file.as_raw_fd().min(dup.as_raw_fd()));
        assert_eq!((view.file_type(), view.nlink), (libc::S_IFREG, 0));
        assert!(views.warnings.is_empty());
    }

    #[test]
    fn many_objects_of_one_inode_are_told_apart() {
        let fds: Vec<OwnedFd> = (0..300).map(|_| raw::eventfd(false).expect("eventfd")).collect();
        let dups: Vec<OwnedFd> = fds.iter().map(|fd| fd.try_clone().expect("dup")).collect();
        let views = views(&[me()]).expect("views");
        let mut objects: Vec<u32> = fds.iter().map(|fd| object(&views, fd)).collect();
        assert_eq!(objects, dups.iter().map(|fd| object(&views, fd)).collect::<Vec<_>>());
        objects.sort_unstable();
        objects.dedup();
        assert_eq!(objects.len(), fds.len());
    }

    #[test]
    fn what_was_closed_meanwhile_has_no_place_in_the_order() {
        let fds: Vec<OwnedFd> = (0..64).map(|_| raw::eventfd(false).expect("eventfd")).collect();
        let dups: Vec<OwnedFd> = fds.iter().map(|fd| fd.try_clone().expect("dup")).collect();
        let view = |fd: &OwnedFd| FdView::read(me(), fd.as_raw_fd()).expect("view");
        let mut groups = Groups::default();
        for (n, fd) in (0..).zip(&fds) {
            assert_eq!(groups.object_of(&view(fd), n), n);
        }
        let others: Vec<FdView> = dups.iter().map(view).collect();
        // Numbers that nobody has: other tests open descriptors.
        let closed = |view: &FdView| FdView { fd: 1 << 20, ..view.clone() };
        for group in groups.by_inode.values_mut() {
            group.iter_mut().step_by(3).for_each(|(place, _)| place.1 = 1 << 20);
        }
        for (n, other) in (0u32..).zip(&others) {
            assert_eq!(groups.object_of(&closed(other), 1000), 1000);
            let found = groups.object_of(other, 2000 + n);
            assert!(found == n || found == 2000 + n, "{found} instead of {n}");
            // Once more: it is known by now.
            assert_eq!(groups.object_of(other, 3000), found);
        }
    }

    /// Waits until a child has stopped itself: it makes no call any more then.
    fn await_stop(child: &std::process::Child) {
        use nix::sys::wait::{waitid, Id, WaitPidFlag};
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED).expect("waitid");
    }

    #[test]
    fn another_process_is_captured_without_its_help() {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("f"), "line one\nline two\n").expect("write");
        let script = "exec 7<f 8<&7 9>gone; rm gone; read -r line <&7; kill -STOP $$";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        await_stop(&child);
        let pid = child.id() as i32;
        let found = views(&[pid]);
        let here = Here::default();
        let kinds = found.as_ref().map(|found| {
            let name = |slot: &Slot| {
                let view = &found.objects[slot.object as usize];
                (slot.fd, slot.object, capture(view, &here).map(|o| o.kind).ok())
            };
            found.tables[&pid].iter().filter(|s| s.fd < 10).map(name).collect::<Vec<_>>()
        });
        let pos =
            found.as_ref().map(|found| found.objects.iter().find(|v| v.fd == 7).map(|v| v.pos));
        child.kill().expect("kill");
        child.wait().expect("wait");
        let kind = |name: &str| Some(name.to_owned());
        let wanted = [
            (0, 0, kind("pipe")),
            (1, 1, kind("pipe")),
            (2, 2, kind("device")),
            (7, 3, kind("file")),
            (8, 3, kind("file")),
            (9, 4, kind("deleted")),
        ];
        assert_eq!(kinds.expect("views"), wanted);
        assert_eq!(pos.expect("views"), Some(9));
    }

    #[test]
    fn a_child_shares_what_it_inherited_and_not_what_it_reopened() {
        let file = tempfile::tempfile().expect("file");
        let mut child = Command::new("sh")
            .args(["-c", "exec 5>&1 6</proc/self/fd/1; kill -STOP $$"])
            .stdin(Stdio::piped())
            .stdout(file.try_clone().expect("dup"))
            .spawn()
            .expect("sh");
        wait_until_stopped(&child);
        let pid = child.id() as i32;
        let found = views(&[me(), pid]);
        let stdin = child.stdin.take().expect("stdin");
        let ours = found.as_ref().ok().map(|found| (object(found, &file), object(found, &stdin)));
        child.kill().expect("kill");
        child.wait().expect("wait");
        let (found, (ours, end)) = (found.expect("views"), ours.expect("views"));
        let [stdin, stdout, dup, again] = [0, 1, 5, 6].map(|fd| object_in(&found, pid, fd));
        assert_eq!((stdout, dup), (ours, ours));
        assert_ne!(again, ours);
        assert_eq!(found.objects[ours as usize].host_pid, me());
        assert_eq!(found.objects[again as usize].host_pid, pid);
        assert_ne!(stdin, end, "two ends of one pipe are two descriptions");
        assert_eq!(found.tables.len(), 2);
    }

    #[test]
    fn a_process_that_has_ended_is_left_out() {
        let mut child = Command::new("true").spawn().expect("true");
        let pid = child.id() as i32;
        child.wait().expect("wait");
        let found = views(&[pid, me()]).expect("views");
        assert_eq!(found.tables.keys().collect::<Vec<_>>(), [&me()]);
        assert_eq!(views(&[pid]).err().and_then(|e| e.raw_os_error()), Some(libc::ENOENT));
    }

    #[test]
    fn locks_of_every_holder_are_seen() {
        let line = |pid| format!("lock:\t1: POSIX  ADVISORY  WRITE {pid} fe:00:7 0 EOF\n");
        let view =
            |locks: &str| FdView { fdinfo: format!("pos:\t0\n{locks}"), ..FdView::default() };
        let mut first = view(&line(1));
        first.add_locks(&view(&line(1)).fdinfo);
        first.add_locks(&view(&line(2)).fdinfo);
        assert_eq!(first.fdinfo, format!("pos:\t0\n{}{}", line(1), line(2)));
    }

    #[test]
    fn without_kcmp_nothing_is_grouped() {
        let broken = Some((1, io::Error::from_raw_os_error(libc::ENOSYS)));
        let mut groups = Groups { broken, ..Groups::default() };
        let view = FdView::default();
        assert_eq!(groups.object_of(&view, 0), 0);
        assert_eq!(groups.object_of(&view, 1), 1);
    }
}
