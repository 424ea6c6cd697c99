//! The handle table: what the kernel does not tell later about a descriptor.
//!
//! The kernel's own descriptor table is the handle table; here are only annotations to it.
//! Today these are the paths of inotify watches: fdinfo shows a watch's inode (see
//! proc_pid_fdinfo(5)), not its path. Besides there are the objects of System V IPC that the job
//! has asked for, which belong to no process, and whether it has made keys (keyrings(7)).
//!
//! A record is found again by the watch number and inode that fdinfo shows, so that it
//! holds for duplicates of the descriptor in any process, and a watch that the kernel has
//! dropped by itself is not reported. fdinfo is read when somebody asks, never when a watch
//! is added: it lists all watches, and programs add them by the thousand.
//!
//! Every change is appended to `STATE/jobs/<id>/handles` before the job runs on: a `u32`
//! little-endian length, then postcard. A torn last entry is ignored.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::migrate::resource::aio::Submitted;
use crate::migrate::resource::filters::{Chains, Filter};
use crate::migrate::resource::ipc::Id;
use crate::migrate::resource::timers::{Absolute, SeenAbsolute};
use crate::state;

/// One inotify watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Watch descriptor.
    pub wd: i32,
    /// Absolute path as given to inotify_add_watch(2), bytes as the file system has them.
    pub path: Vec<u8>,
    /// The mask it was made with.
    pub mask: u32,
}

/// What a process has asked a POSIX message queue to tell it with (mq_notify(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// `sigev_value` as a number.
    pub value: u64,
    pub signal: i32,
    /// SIGEV_SIGNAL, SIGEV_NONE or SIGEV_THREAD.
    pub kind: i32,
}

/// What the table knows of a descriptor, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Annotation {
    /// Of an inotify instance.
    Watches(Vec<Watch>),
    /// Of a message queue: the last registration.
    Notification(Notification),
}

/// Where a watch was added: process, descriptor, watch descriptor.
type Key = (i32, i32, i32);

/// A watch and the inode its path led to; 0 when it could not be asked. Some stacked file
/// systems show another number there than fdinfo does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    ino: u64,
    watch: Watch,
}

/// One entry of the file.
#[derive(Debug, Serialize, Deserialize)]
enum Change {
    Add(Key, Record),
    Remove(Key),
    /// An object of System V IPC that the job has asked for.
    Ipc(Id),
    /// The job has made a key or a keyring.
    Keys,
}

/// One `inotify` line of an fdinfo file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Live {
    wd: i32,
    ino: u64,
}

/// The handle table of one job.
#[derive(Debug)]
pub struct Handles {
    path: PathBuf,
    file: Option<File>,
    records: BTreeMap<Key, Record>,
    /// Objects of System V IPC.
    ipc: BTreeSet<Id>,
    /// The job has made keys or keyrings.
    keys: bool,
    /// What AIO contexts of the job were asked for. Not kept for a next supervisor: without one
    /// nobody sees what they are asked for.
    submitted: Submitted,
    /// The last registration with each message queue, by device and inode; not kept either.
    notifications: BTreeMap<(u64, u64), Notification>,
    /// Timers that were set to absolute times; not kept either.
    timers: SeenAbsolute,
    /// Seccomp filters of the job's threads, and the number of the next one; not kept either.
    filters: Chains,
    next_filter: u64,
    /// Entries in the file, to know when it is worth writing anew.
    entries: usize,
}

impl Handles {
    /// The table kept in `path`, with what a former supervisor left there. Only for the
    /// one that holds the job's lock: the file is written anew.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let bytes = match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let (path, records, ipc) = (path.to_owned(), BTreeMap::new(), BTreeSet::new());
        let (submitted, notifications) = Default::default();
        let mut handles = Self {
            path,
            file: None,
            records,
            ipc,
            keys: false,
            submitted,
            notifications,
            timers: SeenAbsolute::new(),
            filters: Chains::new(),
            next_filter: 1,
            entries: 0,
        };
        decode(&bytes).into_iter().for_each(|change| handles.apply(change));
        if !bytes.is_empty() {
            handles.rewrite()?;
        }
        Ok(handles)
    }

    /// Records a watch that process `pid` has just added to its descriptor `fd`.
    pub fn add(&mut self, pid: i32, fd: i32, watch: Watch) {
        let ino = inode(&watch).unwrap_or(0);
        self.change(Change::Add((pid, fd, watch.wd), Record { ino, watch }));
    }

    /// Forgets a watch.
    pub fn remove(&mut self, pid: i32, fd: i32, wd: i32) {
        self.change(Change::Remove((pid, fd, wd)));
    }

    /// Records an object of System V IPC that the job has asked for, once.
    pub fn add_ipc(&mut self, id: Id) {
        if !self.ipc.contains(&id) {
            self.change(Change::Ipc(id));
        }
    }

    /// Records that the job has made a key or a keyring.
    pub fn add_keys(&mut self) {
        if !self.keys {
            self.change(Change::Keys);
        }
    }

    /// Thread `tid` of process `pid` has installed a filter; in all threads if `all`.
    pub fn add_filter(&mut self, tid: i32, pid: i32, all: bool, filter: Filter) {
        let mut chain = self.filters.get(&tid).cloned().unwrap_or_default();
        chain.push(Arc::new(Filter { id: self.next_filter, ..filter }));
        self.next_filter += 1;
        if all {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for other in tasks.filter_map(|t| t.file_name().to_str()?.parse::<i32>().ok()) {
                self.filters.insert(other, chain.clone());
            }
        }
        self.filters.insert(tid, chain);
    }

    /// A restored thread has these filters.
    pub fn take_up_filters(&mut self, tid: i32, filters: &[Filter]) {
        let last = filters.iter().map(|filter| filter.id).max().unwrap_or(0);
        self.next_filter = self.next_filter.max(last.saturating_add(1));
        if !filters.is_empty() {
            self.filters.insert(tid, filters.iter().cloned().map(Arc::new).collect());
        }
    }

    /// A new thread or process has the filters of its creator. One that has installed some before its
    /// creator's event came has more than are known here, which the kernel's count tells.
    pub fn inherit_filters(&mut self, creator: i32, new: i32) {
        if let Some(chain) = self.filters.get(&creator).cloned() {
            self.filters.entry(new).or_insert(chain);
        }
    }

    /// A thread has ended, or goes on under the number `to`.
    pub fn forget_filters(&mut self, tid: i32, to: Option<i32>) {
        let chain = self.filters.remove(&tid);
        if let (Some(chain), Some(to)) = (chain, to) {
            self.filters.insert(to, chain);
        }
    }

    /// The filters of the job's threads.
    #[must_use]
    pub fn filters(&self) -> &Chains {
        &self.filters
    }

    /// The job has left: nothing that was seen of its processes counts any more.
    pub fn forget_seen(&mut self) {
        self.submitted.clear();
        self.notifications.clear();
        self.timers.clear();
        self.filters.clear();
    }

    /// The job has left its keys behind.
    pub fn forget_keys(&mut self) {
        if std::mem::take(&mut self.keys) {
            if let Err(e) = self.rewrite() {
                tracing::warn!("{}: {e}", self.path.display());
            }
        }
    }

    /// Has the job made keys or keyrings here?
    #[must_use]
    pub fn has_keys(&self) -> bool {
        self.keys
    }

    /// Process `pid` has a new AIO context (io_setup(2)), or one whose ring is full up to place
    /// `tail` and that nothing is under way in.
    pub fn add_context(&mut self, pid: i32, at: u64, tail: u64) {
        self.submitted.insert((pid, at), tail);
    }

    /// Process `pid` has submitted so many requests to the context at `at`. If it has none there, it
    /// is one of another process with which it shares its memory (CLONE_VM), whose requests are not
    /// counted any more.
    pub fn add_submitted(&mut self, pid: i32, at: u64, requests: u64) {
        match self.submitted.get_mut(&(pid, at)) {
            Some(all) => *all += requests,
            None => self.submitted.retain(|(_, other), _| *other != at),
        }
    }

    /// The contexts and timers of a process have gone: it has ended, or executes another program.
    pub fn forget_own(&mut self, pid: i32) {
        if !self.submitted.is_empty() {
            self.submitted.retain(|(of, _), _| *of != pid);
        }
        if !self.timers.is_empty() {
            self.timers.retain(|(of, _), _| *of != pid);
        }
    }

    /// A timer of process `pid` is set to an absolute time.
    pub fn add_timer(&mut self, pid: i32, id: i32, to: Absolute) {
        self.timers.insert((pid, id), to);
    }

    /// The timers that were set to absolute times; some may be gone, or set anew.
    #[must_use]
    pub fn timers(&self) -> &SeenAbsolute {
        &self.timers
    }

    /// What is known of AIO contexts; some may be gone.
    #[must_use]
    pub fn submitted(&self) -> &Submitted {
        &self.submitted
    }

    /// The objects that the job has asked for; some may be gone.
    #[must_use]
    pub fn ipc(&self) -> &BTreeSet<Id> {
        &self.ipc
    }

    /// Process `pid` has registered with the message queue behind its descriptor `fd`.
    pub fn add_notification(&mut self, pid: i32, fd: i32, notification: Notification) {
        if let Some(queue) = identity(pid, fd) {
            self.notifications.insert(queue, notification);
        }
    }

    /// Postcard of an [`Annotation`] of a descriptor, of watches that still exist; `None` when
    /// there is nothing to say of it.
    #[must_use]
    pub fn annotation(&self, host_pid: i32, fd: i32) -> Option<Vec<u8>> {
        if !self.notifications.is_empty() {
            let queue = identity(host_pid, fd).and_then(|id| self.notifications.get(&id));
            if let Some(notification) = queue {
                return postcard::to_stdvec(&Annotation::Notification(*notification)).ok();
            }
        }
        if self.records.is_empty() {
            return None;
        }
        let watches = self.watches(host_pid, fd, &live_watches(host_pid, fd));
        if watches.is_empty() {
            return None;
        }
        postcard::to_stdvec(&Annotation::Watches(watches.into_iter().cloned().collect())).ok()
    }

    /// What is known of the watches that exist.
    fn watches(&self, pid: i32, fd: i32, live: &[Live]) -> Vec<&Watch> {
        let known: HashMap<_, _> =
            self.records.values().map(|r| ((r.watch.wd, r.ino), &r.watch)).collect();
        let find = |live: &Live| {
            let exact = self.records.get(&(pid, fd, live.wd));
            let same_inode = exact.filter(|r| r.ino == live.ino).map(|r| &r.watch);
            let duplicate = || known.get(&(live.wd, live.ino)).copied();
            same_inode.or_else(duplicate).or(exact.map(|r| &r.watch))
        };
        live.iter().filter_map(find).collect()
    }

    /// Takes up what was made anew for descriptor `fd` of process `pid`.
    pub fn take_up(&mut self, pid: i32, fd: i32, annotation: Annotation) {
        match annotation {
            Annotation::Watches(watches) => {
                watches.into_iter().for_each(|watch| self.add(pid, fd, watch));
            }
            Annotation::Notification(notification) => self.add_notification(pid, fd, notification),
        }
    }

    fn change(&mut self, change: Change) {
        let written = self.append(&change);
        if let Err(e) = written {
            tracing::warn!("{}: {e}; adopt would not know this watch", self.path.display());
        }
        self.apply(change);
        if self.entries > 4 * (self.records.len() + self.ipc.len()) + 1000 {
            let _ = self.rewrite();
        }
    }

    fn apply(&mut self, change: Change) {
        self.entries += 1;
        match change {
            Change::Add(key, record) => drop(self.records.insert(key, record)),
            Change::Remove(key) => drop(self.records.remove(&key)),
            Change::Ipc(id) => drop(self.ipc.insert(id)),
            Change::Keys => self.keys = true,
        }
    }

    fn append(&mut self, change: &Change) -> io::Result<()> {
        let frame = encode(change)?;
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600);
            self.file = Some(options.open(&self.path)?);
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(&frame))
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (key, record) in &self.records {
            bytes.extend(encode(&Change::Add(*key, record.clone()))?);
        }
        for id in &self.ipc {
            bytes.extend(encode(&Change::Ipc(*id))?);
        }
        if self.keys {
            bytes.extend(encode(&Change::Keys)?);
        }
        state::write_atomic(&self.path, &bytes)?;
        self.file = None;
        self.entries = self.records.len() + self.ipc.len();
        Ok(())
    }
}

fn encode(change: &Change) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(change).map_err(io::Error::other)?;
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(body);
    Ok(frame)
}

/// The entries of the file up to the first that is torn.
fn decode(mut bytes: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let Some(body) = rest.get(..len) else { break };
        let Ok(change) = postcard::from_bytes(body) else { break };
        changes.push(change);
        bytes = &rest[len..];
    }
    changes
}

/// The watches that fdinfo shows; none when the descriptor is gone or is something else.
fn live_watches(pid: i32, fd: i32) -> Vec<Live> {
    let fdinfo = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    fdinfo.lines().filter_map(parse_watch).collect()
}

/// Device and inode of what is behind a descriptor.
fn identity(pid: i32, fd: i32) -> Option<(u64, u64)> {
    let meta = fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// The inode that a watch's path leads to.
fn inode(watch: &Watch) -> io::Result<u64> {
    let path = Path::new(OsStr::from_bytes(&watch.path));
    let follow = watch.mask & libc::IN_DONT_FOLLOW == 0;
    let metadata = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    metadata.map(|m| m.ino())
}

/// `inotify wd:1 ino:4d2 sdev:800001 mask:3 …`, all hexadecimal.
fn parse_watch(line: &str) -> Option<Live> {
    let fields = line.strip_prefix("inotify ")?;
    let field = |name: &str| {
        let text = fields.split_whitespace().find_map(|f| f.strip_prefix(name))?;
        u64::from_str_radix(text, 16).ok()
    };
    Some(Live { wd: field("wd:")? as i32, ino: field("ino:")? })
}

/// Makes a thread's path absolute in this process's view of the file system.
#[must_use]
pub fn resolve(tid: i32, path: &[u8]) -> Vec<u8> {
    let base = if path.starts_with(b"/") { "root" } else { "cwd" };
    let base = fs::read_link(format!("/proc/{tid}/{base}")).unwrap_or_else(|_| "/".into());
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    base.join(OsStr::from_bytes(relative)).into_os_string().into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(wd: i32, path: &str) -> Watch {
        Watch { wd, path: path.into(), mask: 1 }
    }

    fn live(wd: i32, path: &str) -> Live {
        Live { wd, ino: fs::metadata(path).unwrap().ino() }
    }

    #[test]
    fn fdinfo_lines_are_read() {
        let live = parse_watch("inotify wd:1f ino:9e7e sdev:800013 mask:800afce");
        assert_eq!(live, Some(Live { wd: 0x1f, ino: 0x9e7e }));
        assert_eq!(parse_watch("pos:\t0"), None);
    }

    #[test]
    fn watches_survive_reopening_and_hold_for_duplicates() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("handles");
        let mut handles = Handles::open(&file).unwrap();
        let watches = vec![watch(1, "/"), watch(2, "/proc"), watch(3, "/dev")];
        handles.take_up(7, 3, Annotation::Watches(watches));
        handles.remove(7, 3, 2);
        let handles = Handles::open(&file).unwrap();
        let exist = [live(1, "/"), live(3, "/dev"), live(9, "/proc")];
        for (pid, fd) in [(7, 3), (7, 4), (8, 3)] {
            assert_eq!(handles.watches(pid, fd, &exist), [&watch(1, "/"), &watch(3, "/dev")]);
        }
    }

    #[test]
    fn the_descriptor_itself_goes_before_its_duplicates() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&other).unwrap();
        let (one, other) = (one.to_str().unwrap(), other.to_str().unwrap());
        let alias = format!("{one}/.");
        let mut handles = Handles::open(&dir.path().join("handles")).unwrap();
        handles.add(7, 3, watch(1, one));
        handles.add(7, 4, watch(1, &alias));
        handles.add(7, 5, watch(1, other));
        assert_eq!(handles.watches(7, 3, &[live(1, one)]), [&watch(1, one)]);
        assert_eq!(handles.watches(7, 4, &[live(1, one)]), [&watch(1, &alias)]);
        // dup2 has put another instance on descriptor 5.
        assert_ne!(handles.watches(7, 5, &[live(1, one)]), [&watch(1, other)]);
        assert!(handles.annotation(i32::MAX, 3).is_none());
    }

    #[test]
    fn a_torn_entry_ends_the_file() {
        let whole = encode(&Change::Remove((1, 2, 3))).unwrap();
        let mut bytes = whole.clone();
        bytes.extend(&whole[..whole.len() - 1]);
        assert_eq!(decode(&bytes).len(), 1);
        assert_eq!(decode(&[0xff; 64]).len(), 0);
    }
}
