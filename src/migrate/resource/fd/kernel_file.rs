//! Files and directories of proc(5) and sysfs(5), with their read positions.
//!
//! Those of the job's own processes exist at the target under the same names, because the
//! processes keep their numbers. Others tell of the machine, and then of the target.

use std::os::fd::OwnedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::content::{as_path, open_at, OPEN_FLAGS};
use super::{decode, encode, CaptureCx, FdError, FdKind, FdView, Object};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;
use crate::migrate::resource::View;
use crate::syscalls::translate::{numbers, path_to_host, path_to_job};
use crate::tracer::inject::{Arg, Program};

pub(super) const NAME: &str = "kernel-file";

/// Magic numbers of linux/magic.h.
const PROC: i64 = 0x9fa0;
const SYSFS: i64 = 0x6265_6572;

/// Streams of this kernel, and its memory.
const REFUSED: [&str; 3] = ["/proc/kmsg", "/proc/kcore", "/proc/vmcore"];

/// Files that stay with the memory that a process had when they were opened (proc(5)).
const OF_MEMORY: [&str; 7] =
    ["maps", "smaps", "smaps_rollup", "numa_maps", "pagemap", "mem", "environ"];

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    path: Vec<u8>,
    flags: i32,
    pos: u64,
}

pub(super) struct KernelFile;

impl FdKind for KernelFile {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Descriptors,
                    "proc",
                    "files of /proc and /sys that tell of the job or the machine",
                ),
                Capability::refused(
                    Descriptors,
                    "proc-outside",
                    "files of /proc that tell of other processes, or control the machine",
                    "VOS-PROC-FD",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        matches!(view.fs, PROC | SYSFS)
            && matches!(view.file_type(), libc::S_IFREG | libc::S_IFDIR)
            && view.flags & libc::O_PATH == 0
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        if let Some(cause) = obstacle(view, cx) {
            let remedy = "let the program open it when it reads it";
            return Err(view.refuse("VOS-PROC-FD", cause, remedy));
        }
        let path = path_to_job(&view.path().map_err(view.failed("read the name"))?);
        encode(&State { path, flags: view.flags, pos: view.pos })
    }

    fn untranslated(&self, view: &FdView, cx: &dyn CaptureCx) -> Option<&'static str> {
        let late = view.fs == PROC && is_of_memory(&view.link) && cx.is_shared(view);
        late.then_some("it shows memory that is there only later, and processes share it")
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let state: State = decode(NAME, state)?;
        if state.is_late() {
            // For the time being, see `late`.
            return open_at(Path::new("/dev/null"), libc::O_RDWR, 0);
        }
        open_at(as_path(&path_to_host(&state.path)), state.flags & OPEN_FLAGS, state.pos)
    }
}

impl State {
    /// Without namespaces a process executes its program after the descriptors are made.
    fn is_late(&self) -> bool {
        numbers::are_own() && std::str::from_utf8(&self.path).is_ok_and(is_of_memory)
    }
}

fn is_of_memory(path: &str) -> bool {
    let name = process(path).and_then(|(_, name)| name.rsplit('/').next());
    name.is_some_and(|name| OF_MEMORY.contains(&name))
}

/// A file that is opened when its process has its memory.
#[derive(Debug)]
pub struct Late {
    path: Vec<u8>,
    flags: i32,
    pos: u64,
}

/// What is opened late in the place of an object, if it is ([`crate::migrate::late`]).
///
/// # Errors
/// When its state does not decode.
pub fn late(object: &Object) -> Result<Option<Late>, FdError> {
    if object.kind != NAME {
        return Ok(None);
    }
    let state: State = decode(NAME, &object.state)?;
    Ok(state.is_late().then(|| Late {
        path: [path_to_host(&state.path), vec![0]].concat(),
        flags: state.flags & OPEN_FLAGS,
        pos: state.pos,
    }))
}

impl Late {
    /// Puts the call into `program` that opens it; answers its place.
    pub fn open(&self, program: &mut Program) -> usize {
        let path = Arg::Data(program.data(&self.path));
        let (here, flags) = (libc::AT_FDCWD as u64, (self.flags | libc::O_CLOEXEC) as u64);
        program.call(
            libc::SYS_openat,
            "open of a file of /proc",
            &[here.into(), path, flags.into()],
        )
    }

    /// Puts the call into `program` that gives `opened` its position.
    pub fn seek(&self, opened: Arg, program: &mut Program) {
        let args = [opened, self.pos.into(), (libc::SEEK_SET as u64).into()];
        program.call(libc::SYS_lseek, "lseek in a file of /proc", &args);
    }
}

/// The number of the process that a file of proc(5) belongs to, and its name behind that.
fn process(path: &str) -> Option<(i32, &str)> {
    let rest = path.strip_prefix("/proc/")?;
    let (number, name) = rest.split_once('/').unwrap_or((rest, ""));
    Some((number.parse().ok()?, name))
}

/// Does it tell of the machine, so that the target must have a file of that name?
pub(super) fn is_of_machine(view: &FdView) -> bool {
    process(&view.link).is_none()
}

/// Why it cannot be opened at the target.
fn obstacle(view: &FdView, cx: &dyn CaptureCx) -> Option<&'static str> {
    let root = if view.fs == PROC { "/proc" } else { "/sys" };
    if !Path::new(&view.link).starts_with(root) {
        return Some("it is a file of this kernel that is found in another place than usual");
    }
    if REFUSED.contains(&view.link.as_str()) {
        return Some("it is a stream or the memory of this kernel");
    }
    let Some((pid, name)) = process(&view.link) else {
        let reads = view.flags & libc::O_ACCMODE == libc::O_RDONLY;
        return (!reads).then_some("it is a file of this kernel, open for writing");
    };
    let number = |host: i32| match numbers::are_own() {
        true => host,
        false => View::read_process(host).map_or(0, |view| view.job_pid),
    };
    if view.says_deleted() || !cx.job_pids().into_iter().any(|host| number(host) == pid) {
        return Some("it tells of a process outside of the job, or of one that has ended");
    }
    let mut words = name.split('/');
    match (words.next(), words.next()) {
        (Some("task"), Some(tid)) if tid != pid.to_string() => {
            Some("it tells of a thread that is not its process's first")
        }
        (Some("fdinfo" | "map_files"), Some(_)) => {
            Some("it tells of one descriptor or mapping of a process")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::super::testing::{moved, refusal, Here};
    use super::*;

    fn open(path: &str) -> File {
        File::open(path).expect("open")
    }

    #[test]
    fn own_files_and_those_of_the_machine_come_back() {
        let own = format!("/proc/{}/maps", std::process::id());
        for path in [&own, "/proc/self/task", "/proc/self/fd", "/proc/meminfo", "/sys/kernel"] {
            let file = open(path);
            let copy = moved(&file);
            let name = |fd| Here::of(&[fd]).view(fd).link;
            assert_eq!(name(&copy), name(&file), "{path}");
        }
    }

    #[test]
    fn reading_goes_on_where_it_was() {
        // What it tells does not change meanwhile.
        let mut file = open("/proc/self/limits");
        file.read_exact(&mut [0; 40]).expect("read");
        let mut copy = File::from(moved(&file));
        let (mut want, mut got) = ([0; 60], [0; 60]);
        file.read_exact(&mut want).expect("read");
        copy.read_exact(&mut got).expect("read");
        assert_eq!(got, want);
    }

    #[test]
    fn files_of_others_are_refused() {
        assert_eq!(refusal(&open("/proc/1/stat")), "VOS-PROC-FD");
        let write = File::options().write(true).open("/proc/self/oom_score_adj").expect("open");
        assert_eq!(Here::of(&[&write]).capture(&write).kind, NAME);
        let view = |link: &str, flags| FdView {
            link: link.into(),
            fs: PROC,
            mode: libc::S_IFREG | 0o600,
            flags,
            ..FdView::default()
        };
        let refused = |link: &str, flags| obstacle(&view(link, flags), &Here::default()).is_some();
        assert!(refused("/proc/kmsg", libc::O_RDONLY));
        assert!(refused("/proc/sysrq-trigger", libc::O_WRONLY));
        assert!(refused("/mnt/proc/stat", libc::O_RDONLY));
        assert!(!refused("/proc/stat", libc::O_RDONLY));
        let own = std::process::id();
        assert!(refused(&format!("/proc/{own}/fdinfo/1"), libc::O_RDONLY));
        assert!(refused(&format!("/proc/{own}/task/1/stat"), libc::O_RDONLY));
        assert!(!refused(&format!("/proc/{own}/task/{own}/stat"), libc::O_RDONLY));
        assert!(refused(&format!("/proc/{own}/stat (deleted)"), libc::O_RDONLY));
    }
}
