//! Locks on files: flock(2), record and open-file-description locks, and leases (fcntl(2)).
//!
//! fdinfo shows them as `lock:` lines (proc_pid_fdinfo(5)). Who owns a lock is not the same for
//! each kind: flock and open-file-description locks belong to the description, which processes
//! share; a record lock belongs to the process that has taken it.
//!
//! The frozen copy at the source holds its locks until the move is decided, and on a file system
//! that both nodes share nobody else could take them before. So the source lets them go right
//! after the decision, and the target takes them before the job runs ([`crate::migrate::late`]).
//! A program that waits for such a lock would get it in between: then the move is refused.
//!
//! A write lease ends when its file is opened, and is given only to who alone has it open. So the
//! target keeps the place of the descriptor with one that opens nothing (O_PATH), as the source does
//! from the decision on, and the file is opened by way of that one, just before the lease is taken.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::content::OPEN_FLAGS;
use super::owner::Signals;
use super::place::SETTABLE;
use super::regular::{self, Identity, Named};
use super::{unexpected, CaptureCx, FdError, FdView};
use crate::control::Finding;
use crate::migrate::resource::View;
use crate::tracer::inject::{Arg, Program};
use crate::tracer::memory::read_proc;

const REMEDY: &str = "let the program release the lock, then move it";

/// Who owns a lock, and how it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// flock(2): the description.
    Flock,
    /// F_SETLK: the process.
    Record,
    /// F_OFD_SETLK: the description.
    Description,
    /// F_SETLEASE: the description.
    Lease,
}

/// A lock as a process takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Its descriptor.
    pub fd: i32,
    pub kind: LockKind,
    /// A write lock; else a read lock or a shared one.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Bytes; 0: up to the end, however far the file grows.
    pub len: u64,
    /// Of the file at the source.
    pub file: Identity,
    /// Of a write lease: how its file is opened.
    pub opened: Option<Opened>,
}

/// How a file is opened whose place is kept by an O_PATH descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// As in fdinfo.
    pub flags: i32,
    pub pos: u64,
    pub signals: Option<Signals>,
}

/// A lock as fdinfo shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown<'a> {
    /// The line behind its number, as /proc/locks has it too.
    text: &'a str,
    class: &'a str,
    exclusive: bool,
    /// Host pid of who has taken it; 0 or -1 where that is not known.
    pid: i32,
    start: u64,
    len: u64,
}

/// A lock of a description, and the host pid of who has taken it.
pub struct Held {
    /// Host pid; only for a record lock it is sure to be a process of the job.
    pub taker: i32,
    /// Its descriptor is not known yet (-1).
    pub lock: Lock,
}

/// The locks that are held through a description.
///
/// # Errors
/// [`FdError::Refused`] for a lock that cannot be taken again, or that others wait for.
/// `frozen`: no process of the job waits for a lock.
pub fn held(view: &FdView, cx: &dyn CaptureCx, frozen: bool) -> Result<Vec<Held>, FdError> {
    let mut all = Vec::new();
    for shown in shown(view)? {
        let kind = kind(view, &shown, cx)?;
        if let Some(waiter) =
            waiter(&shown, &cx.job_pids(), frozen).map_err(view.failed("ask for waiters"))?
        {
            let cause = format!(
                "another program ({waiter}) waits for a lock held through it ({})",
                shown.text
            );
            return Err(view.refuse("VOS-LOCK", cause, REMEDY));
        }
        let file = Named::read(view).map_err(view.failed("examine"))?.identity;
        let Shown { pid: taker, exclusive, start, len, .. } = shown;
        let opened =
            (kind == LockKind::Lease && exclusive).then(|| Opened::of(view, cx)).transpose()?;
        all.push(Held { taker, lock: Lock { fd: -1, kind, exclusive, start, len, file, opened } });
    }
    Ok(all)
}

/// What `check` has to say.
pub(super) fn check(view: &FdView, cx: &dyn CaptureCx) -> Option<Finding> {
    match held(view, cx, false) {
        Err(FdError::Refused(finding)) => Some(*finding),
        _ => None,
    }
}

/// A lock on an object that stays at home.
pub(super) fn stays_behind(view: &FdView) -> Option<FdError> {
    let cause = "a lock is held through it, and it stays at home";
    view.field("lock").map(|_| view.refuse("VOS-LOCK", cause, REMEDY))
}

fn kind(view: &FdView, shown: &Shown, cx: &dyn CaptureCx) -> Result<LockKind, FdError> {
    let lease = |code, cause: &str| {
        let remedy = "let the program give the lease back (F_SETLEASE), then move it";
        Err(view.refuse(code, cause, remedy))
    };
    Ok(match shown.class {
        "FLOCK ADVISORY" => LockKind::Flock,
        "OFDLCK ADVISORY" => LockKind::Description,
        "POSIX ADVISORY" if cx.job_pids().contains(&shown.pid) => LockKind::Record,
        "LEASE ACTIVE" if shown.exclusive => match not_alone(view, cx)? {
            Some(cause) => return lease("VOS-LEASE", cause),
            None => LockKind::Lease,
        },
        "LEASE ACTIVE" => LockKind::Lease,
        "LEASE BREAKING" => return lease("VOS-LEASE-BREAK", "its lease is being broken"),
        _ => {
            let cause =
                format!("it holds a lock of a kind that cannot be taken again ({})", shown.text);
            return Err(view.refuse("VOS-LOCK", cause, REMEDY));
        }
    })
}

/// Has the process a write lease on the file?
pub(super) fn has_write_lease(view: &FdView) -> bool {
    let mut lines = view.fdinfo.lines().filter_map(|line| line.strip_prefix("lock:"));
    lines.any(|line| parse(line).is_some_and(|s| s.class == "LEASE ACTIVE" && s.exclusive))
}

/// Why the file of a write lease cannot be opened anew as the only one that has it open.
fn not_alone(view: &FdView, cx: &dyn CaptureCx) -> Result<Option<&'static str>, FdError> {
    Ok(if super::find(view).is_none_or(|kind| kind.name() != regular::NAME) {
        Some("it has a write lease, and no name by which the target could find the file")
    } else if cx.is_shared(view) {
        Some("several processes have it with its write lease")
    } else if is_mapped(view, &cx.job_pids()) {
        Some("it has a write lease on a file that is mapped as well")
    } else if has_filters(view.host_pid) {
        Some("it has a write lease, and seccomp filters that may not let the file be opened anew")
    } else {
        None
    })
}

/// Does a process show the file among its mappings (proc_pid_maps(5))?
fn is_mapped(view: &FdView, pids: &[i32]) -> bool {
    let ino = view.ino.to_string();
    let is_it = |line: &str| {
        line.split_ascii_whitespace().nth(4) == Some(&ino) && line.ends_with(&view.link)
    };
    let maps = |pid: &i32| read_proc(&format!("/proc/{pid}/maps")).unwrap_or_default();
    pids.iter().any(|pid| maps(pid).lines().any(is_it))
}

/// May the process have seccomp filters of its own?
fn has_filters(pid: i32) -> bool {
    View::read_process(pid).is_ok_and(|view| view.number("Seccomp_filters:") > 1)
}

/// Lines `lock: 1: POSIX  ADVISORY  WRITE 4711 fe:00:7 0 EOF`; both ends are inclusive.
fn shown(view: &FdView) -> Result<Vec<Shown<'_>>, FdError> {
    let lines = view.fdinfo.lines().filter_map(|line| line.strip_prefix("lock:"));
    lines
        .map(|line| {
            parse(line).ok_or_else(|| unexpected(format!("{}: lock `{line}`", view.object())))
        })
        .collect()
}

fn parse(line: &str) -> Option<Shown<'_>> {
    let (_, text) = line.split_once(':')?;
    let text = text.trim();
    let words: Vec<&str> = text.split_whitespace().collect();
    let [class, state, access, pid, _, start, last] = words.as_slice() else { return None };
    let class = CLASSES.iter().find(|known| **known == format!("{class} {state}"));
    let start: u64 = start.parse().ok()?;
    let len = match *last {
        "EOF" => 0,
        last => last.parse::<u64>().ok()?.checked_sub(start)?.checked_add(1)?,
    };
    let class = class.copied().unwrap_or("");
    Some(Shown { text, class, exclusive: *access == "WRITE", pid: pid.parse().ok()?, start, len })
}

const CLASSES: [&str; 5] =
    ["FLOCK ADVISORY", "OFDLCK ADVISORY", "POSIX ADVISORY", "LEASE ACTIVE", "LEASE BREAKING"];

/// Who outside of the job waits for this lock (proc_locks(5): lines with `->` of the same number).
/// A waiter for an open-file-description lock has no number, so that it may be one of a job that
/// runs.
fn waiter(shown: &Shown, job_pids: &[i32], frozen: bool) -> io::Result<Option<String>> {
    Ok(find_waiter(&fs::read_to_string("/proc/locks")?, shown.text, job_pids, frozen))
}

fn find_waiter(locks: &str, text: &str, job_pids: &[i32], frozen: bool) -> Option<String> {
    let numbered = || locks.lines().filter_map(|line| line.split_once(':'));
    let held: Vec<&str> = numbered().filter(|(_, l)| l.trim() == text).map(|(n, _)| n).collect();
    numbered().filter(|(n, _)| held.contains(n)).find_map(|(_, line)| {
        let pid: i32 = line.trim().strip_prefix("->")?.split_whitespace().nth(3)?.parse().ok()?;
        match pid {
            -1 => frozen.then(|| "of unknown number".to_owned()),
            pid => (!job_pids.contains(&pid)).then(|| format!("process {pid}")),
        }
    })
}

impl Opened {
    fn of(view: &FdView, cx: &dyn CaptureCx) -> Result<Self, FdError> {
        let signals = super::owner::capture(view, cx)?;
        Ok(Self { flags: view.flags, pos: view.pos, signals })
    }

    /// Puts the calls into `program` that ask whether the file can be opened so by way of `fd`:
    /// may it be, and is there another number? Gives the row of the number.
    pub fn try_out(&self, fd: i32, program: &mut Program) -> usize {
        const FACCESSAT2: i64 = 439;
        let mode = match self.flags & libc::O_ACCMODE {
            libc::O_RDONLY => libc::R_OK,
            libc::O_WRONLY => libc::W_OK,
            _ => libc::R_OK | libc::W_OK,
        };
        let here = Arg::Data(program.data(&[0]));
        let how = Arg::Num((libc::AT_EACCESS | libc::AT_EMPTY_PATH) as u64);
        let fd = Arg::Num(fd as u64);
        program.call(FACCESSAT2, "faccessat2", &[fd, here, Arg::Num(mode as u64), how]);
        program.call(libc::SYS_dup, "dup", &[fd])
    }

    /// Puts the call into `program` that opens the file by way of `fd`, but waits for nobody who has
    /// a lease on it. Gives its row.
    pub fn open(&self, fd: i32, program: &mut Program) -> usize {
        open_again(fd, self.flags & OPEN_FLAGS | libc::O_NONBLOCK, program)
    }

    /// Puts the calls into `program` that make the new descriptor `fd` what it was.
    pub fn set(&self, fd: i32, program: &mut Program) {
        let at = [Arg::Num(fd as u64), Arg::Num(self.pos), Arg::Num(libc::SEEK_SET as u64)];
        program.call(libc::SYS_lseek, "lseek", &at);
        let flags = (self.flags & (SETTABLE | libc::O_ASYNC)) as u64;
        let args = [Arg::Num(fd as u64), Arg::Num(libc::F_SETFL as u64), Arg::Num(flags)];
        program.call(libc::SYS_fcntl, "F_SETFL", &args);
        if let Some(signals) = self.signals {
            signals.tell(fd, self.flags, program);
        }
    }
}

/// Puts the call into `program` that opens what `fd` stands for once more. Gives its row.
pub fn open_again(fd: i32, flags: i32, program: &mut Program) -> usize {
    program.open("openat", format!("/proc/self/fd/{fd}").as_bytes(), flags)
}

impl Lock {
    /// Has somebody else opened the file of this lease, in the process with this host pid?
    #[must_use]
    pub fn is_being_broken(&self, pid: i32) -> bool {
        let shows = || FdView::read(pid, self.fd).ok();
        let breaking = |view: FdView| view.fdinfo.contains("LEASE  BREAKING");
        self.kind == LockKind::Lease && shows().is_some_and(breaking)
    }

    /// Puts the call into `program` that takes the lock without waiting. Gives its row.
    pub fn take(&self, program: &mut Program) -> usize {
        let (flock, kind) = match self.exclusive {
            true => (libc::LOCK_EX, libc::F_WRLCK),
            false => (libc::LOCK_SH, libc::F_RDLCK),
        };
        self.call(program, flock | libc::LOCK_NB, kind)
    }

    /// Puts the call into `program` that lets the lock go. Gives its row.
    pub fn release(&self, program: &mut Program) -> usize {
        self.call(program, libc::LOCK_UN, libc::F_UNLCK)
    }

    fn call(&self, program: &mut Program, flock: i32, kind: i32) -> usize {
        const F_OFD_SETLK: u64 = 37;
        let fd = Arg::Num(self.fd as u64);
        let command = match self.kind {
            LockKind::Flock => {
                let args = [fd, Arg::Num(flock as u64)];
                return program.call(libc::SYS_flock, "flock", &args);
            }
            LockKind::Lease => {
                let args = [fd, Arg::Num(libc::F_SETLEASE as u64), Arg::Num(kind as u64)];
                return program.call(libc::SYS_fcntl, "F_SETLEASE", &args);
            }
            LockKind::Record => libc::F_SETLK as u64,
            LockKind::Description => F_OFD_SETLK,
        };
        // struct flock: l_type, l_whence (SEEK_SET), l_start, l_len, l_pid.
        let words = [kind as u64 & 0xffff, self.start, self.len, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = Arg::Data(program.data(&bytes));
        program.call(libc::SYS_fcntl, "F_SETLK", &[fd, Arg::Num(command), at])
    }

    /// Is it on the very file of the source, so that the source's copy may hold it still? The
    /// file is that of the process `pid` here.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn is_of_source(&self, pid: i32) -> io::Result<bool> {
        let meta = fs::metadata(format!("/proc/{pid}/fd/{}", self.fd))?;
        let here = crate::boot::is_this(&self.file.boot) && meta.dev() == self.file.dev;
        Ok((here || self.file.network) && meta.ino() == self.file.ino)
    }
}

impl std::fmt::Display for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match (self.kind, self.exclusive) {
            (LockKind::Flock, true) => "exclusive lock (flock)",
            (LockKind::Flock, false) => "shared lock (flock)",
            (LockKind::Record, true) => "write lock (F_SETLK)",
            (LockKind::Record, false) => "read lock (F_SETLK)",
            (LockKind::Description, true) => "write lock (F_OFD_SETLK)",
            (LockKind::Description, false) => "read lock (F_OFD_SETLK)",
            (LockKind::Lease, true) => "write lease",
            (LockKind::Lease, false) => "lease",
        };
        write!(f, "{kind} on fd {}", self.fd)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    use super::super::raw;
    use super::super::testing::Here;
    use super::*;

    /// The codes of the refusals by `check` and at the freeze.
    fn refusal(file: &fs::File) -> [String; 2] {
        let here = Here::of(&[file]);
        let view = here.view(file);
        let frozen = match held(&view, &here, true) {
            Err(FdError::Refused(finding)) => finding.code,
            other => panic!("{:?}", other.map(|held| held.len())),
        };
        [check(&view, &here).expect("finding").code, frozen]
    }

    const LOCKS: &str = "1: OFDLCK ADVISORY  WRITE -1 fe:00:7 50 EOF\n\
        1: -> OFDLCK ADVISORY  WRITE -1 fe:00:7 55 64\n\
        2: POSIX  ADVISORY  READ 10 fe:00:7 5 14\n\
        2: -> POSIX  ADVISORY  WRITE 11 fe:00:7 5 14\n\
        2:  -> POSIX  ADVISORY  WRITE 12 fe:00:7 5 14\n\
        12: FLOCK  ADVISORY  WRITE 10 fe:00:7 0 EOF\n";

    #[test]
    fn lines_of_the_kernel() {
        let of = |line| parse(line).expect("line");
        let posix = of("\t2: POSIX  ADVISORY  READ 10 fe:00:7 5 14");
        assert_eq!((posix.class, posix.exclusive, posix.pid), ("POSIX ADVISORY", false, 10));
        assert_eq!((posix.start, posix.len), (5, 10));
        let flock = of("\t1: FLOCK  ADVISORY  WRITE 10 fe:00:7 0 EOF");
        assert_eq!((flock.class, flock.exclusive, flock.len), ("FLOCK ADVISORY", true, 0));
        assert_eq!(of("\t1: OFDLCK ADVISORY  WRITE -1 fe:00:7 0 0").len, 1);
        assert_eq!(of("\t1: LEASE  BREAKING  READ 10 fe:00:7 0 EOF").class, "LEASE BREAKING");
        assert_eq!(of("\t1: DELEG  ACTIVE    READ 10 fe:00:7 0 EOF").class, "");
        for bad in ["", "1:", "1: POSIX ADVISORY READ x fe:00:7 0 EOF", "1: A B C 1 f 9 1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn who_waits_for_a_lock() {
        let find = |line: &str, job: &[i32], frozen| {
            find_waiter(LOCKS, parse(line).expect("line").text, job, frozen)
        };
        let posix = "9: POSIX  ADVISORY  READ 10 fe:00:7 5 14";
        assert_eq!(find(posix, &[10], false), Some("process 11".into()));
        assert_eq!(find(posix, &[10, 11], false), Some("process 12".into()));
        assert_eq!(find(posix, &[10, 11, 12], true), None);
        let ofd = "9: OFDLCK ADVISORY  WRITE -1 fe:00:7 50 EOF";
        assert_eq!(find(ofd, &[10], false), None);
        assert_eq!(find(ofd, &[10], true), Some("of unknown number".into()));
        assert_eq!(find("9: FLOCK  ADVISORY  WRITE 10 fe:00:7 0 EOF", &[10], true), None);
        assert_eq!(find("9: FLOCK  ADVISORY  WRITE 10 fe:00:8 0 EOF", &[10], true), None);
    }

    #[test]
    fn a_lock_of_a_description_is_found() {
        let file = tempfile::tempfile().expect("file");
        file.lock_shared().expect("lock");
        let here = Here::of(&[&file]);
        let view = here.view(&file);
        let found = held(&view, &here, true).expect("held");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].lock.kind, found[0].lock.exclusive), (LockKind::Flock, false));
        assert_eq!(found[0].taker, std::process::id() as i32);
        let lock = Lock { fd: file.as_raw_fd(), ..found[0].lock.clone() };
        assert!(lock.is_of_source(std::process::id() as i32).expect("examine"));
        let other = tempfile::tempfile().expect("file");
        let lock = Lock { fd: other.as_raw_fd(), ..lock };
        assert!(!lock.is_of_source(std::process::id() as i32).expect("examine"));
    }

    #[test]
    fn a_lock_that_another_program_waits_for_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().lock().expect("lock");
        let mut child = std::process::Command::new("flock")
            .arg(file.path())
            .arg("true")
            .spawn()
            .expect("flock");
        let waits = format!("FLOCK  ADVISORY  WRITE {} ", child.id());
        while !fs::read_to_string("/proc/locks").expect("locks").contains(&waits) {
            std::thread::yield_now();
        }
        assert_eq!(refusal(file.as_file()), ["VOS-LOCK"; 2]);
        file.as_file().unlock().expect("unlock");
        child.wait().expect("wait");
    }

    fn leased(flags: i32) -> (tempfile::TempDir, fs::File) {
        let dir = tempfile::tempdir().expect("dir");
        fs::write(dir.path().join("f"), vec![1; 4096]).expect("write");
        let file = fs::File::options().read(true).custom_flags(flags).open(dir.path().join("f"));
        let file = file.expect("open");
        raw::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK).expect("lease");
        (dir, file)
    }

    #[test]
    fn a_write_lease_moves_with_how_its_file_is_opened() {
        let (_dir, file) = leased(libc::O_NONBLOCK);
        let here = Here::of(&[&file]);
        let view = here.view(&file);
        let found = held(&view, &here, true).expect("held");
        let lock = &found[0].lock;
        assert_eq!((lock.kind, lock.exclusive), (LockKind::Lease, true));
        let opened = lock.opened.expect("opened");
        assert_eq!((opened.flags & libc::O_NONBLOCK, opened.pos), (libc::O_NONBLOCK, 0));
        assert!(has_write_lease(&view));
        let lock = Lock { fd: file.as_raw_fd(), ..lock.clone() };
        let own = std::process::id() as i32;
        assert!(!lock.is_being_broken(own));
        const F_SETSIG: i32 = 10;
        raw::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG).expect("signal");
        let writer =
            fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&view.link);
        assert_eq!(writer.expect_err("held off").kind(), io::ErrorKind::WouldBlock);
        assert!(lock.is_being_broken(own));
    }

    #[test]
    fn a_mapped_file_is_seen() {
        let own = [std::process::id() as i32];
        let program = fs::File::open("/proc/self/exe").expect("open");
        assert!(is_mapped(&Here::of(&[&program]).view(&program), &own));
        let (_dir, file) = leased(0);
        assert!(!is_mapped(&Here::of(&[&file]).view(&file), &own));
    }

    #[test]
    fn a_write_lease_on_a_file_without_a_name_is_refused() {
        let (dir, file) = leased(0);
        drop(dir);
        assert_eq!(refusal(&file), ["VOS-LEASE"; 2]);
    }
}
