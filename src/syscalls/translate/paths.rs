//! Paths into /proc and /dev/pts: `/proc/PID/…`, `/proc/PID/task/TID/…` and `/dev/pts/N` with the
//! job's numbers.
//!
//! `/proc/self` and `/proc/thread-self` are the kernel's, and right; only where they lead is
//! answered with the job's numbers, and so is the name of a slave that a descriptor is a link to.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{numbers, ptys, Entry, Making, Then};
use crate::syscalls::read_path;
use crate::tracer::inject::write_all;

/// Where the numbers of a path below /proc are, and how it begins.
const PROC: &str = "/proc";

/// The path, with the kernel's numbers. None: it is none of /proc or /dev/pts, or has no number
/// in it. `base`: what a relative one is relative to.
fn to_host(path: &[u8], base: Option<&Path>) -> Option<Vec<u8>> {
    let in_proc = base.is_some_and(|base| base.as_os_str() == PROC);
    renumbered(path, in_proc, numbers::to_host).or_else(|| slave_to_host(path, base))
}

/// The name of a slave, with the kernel's number.
fn slave_to_host(path: &[u8], base: Option<&Path>) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(path).ok()?;
    let name = text.rsplit('/').next()?;
    let number = name.bytes().all(|digit| digit.is_ascii_digit()).then(|| name.parse().ok())??;
    let before = text.strip_suffix(name)?;
    let directory = match text.starts_with('/') {
        true => PathBuf::from(before),
        false => base?.join(before),
    };
    let is_slave = directory == Path::new("/dev/pts");
    is_slave.then(|| format!("{before}{}", ptys::to_host(number)).into_bytes())
}

/// An absolute path as the kernel has it here.
#[must_use]
pub fn path_to_host(path: &[u8]) -> Vec<u8> {
    to_host(path, None).unwrap_or_else(|| path.to_vec())
}

/// An absolute path as the job knows it.
#[must_use]
pub fn path_to_job(path: &[u8]) -> Vec<u8> {
    renumbered(path, false, numbers::to_job).unwrap_or_else(|| path.to_vec())
}

fn renumbered(path: &[u8], in_proc: bool, number: fn(i32) -> i32) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(path).ok()?;
    let mut words: Vec<String> = text.split('/').map(str::to_owned).collect();
    let named: Vec<usize> =
        (0..words.len()).filter(|n| !words[*n].is_empty() && words[*n] != ".").collect();
    let mut named = named.into_iter();
    if text.starts_with('/') {
        let first = named.next()?;
        if words[first] != "proc" {
            return None;
        }
    } else if !in_proc {
        return None;
    }
    let process = named.next()?;
    let mut changed = change(&mut words[process], number);
    let task = named.next().filter(|n| words[*n] == "task");
    if let Some(thread) = task.and_then(|_| named.next()) {
        changed |= change(&mut words[thread], number);
    }
    changed.then(|| words.join("/").into_bytes())
}

/// Puts the other number in the place of a word; false: it is none, or the same.
fn change(word: &mut String, number: fn(i32) -> i32) -> bool {
    let Some(old) = word.parse::<i32>().ok().filter(|n| *n > 0) else { return false };
    let new = number(old);
    *word = new.to_string();
    new != old
}

/// The directory from which a relative path leads.
fn base(call: &Making, path: u8, at: bool) -> Option<PathBuf> {
    let tid = call.caller.tid;
    let dir = path.checked_sub(1).filter(|_| at).map(|arg| call.arg(arg) as i32);
    let link = match dir {
        Some(fd) if fd != libc::AT_FDCWD => format!("/proc/{tid}/fd/{fd}"),
        _ => format!("/proc/{tid}/cwd"),
    };
    fs::read_link(link).ok()
}

/// Can a relative path lead to a number?
fn may_have_number(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_digit) || text.starts_with(b"pts/")
}

/// A call with a path.
pub(super) fn path(call: &mut Making, path: u8, at: bool) -> Option<Entry> {
    let text = read_path(call.caller.tid, call.arg(path))?;
    let base = may_have_number(&text).then(|| base(call, path, at)).flatten();
    let mut other = to_host(&text, base.as_deref())?;
    other.push(0);
    call.point(path, &other).is_none().then(|| Entry::errno(libc::EFAULT))
}

/// readlink(2) and readlinkat(2).
pub(super) fn link(call: &mut Making, arg: u8, at: bool) -> Option<Entry> {
    let text = read_path(call.caller.tid, call.arg(arg))?;
    let (pid, tid) = (numbers::to_job(call.caller.pid), numbers::to_job(call.caller.tid));
    let to = match text.as_slice() {
        b"/proc/self" => pid.to_string().into_bytes(),
        b"/proc/thread-self" => format!("{pid}/task/{tid}").into_bytes(),
        _ => match terminal(call, &text, arg, at) {
            Some(name) => name,
            None => return path(call, arg, at),
        },
    };
    let size = call.arg(arg + 2) as i32;
    if size <= 0 {
        return Some(Entry::errno(libc::EINVAL));
    }
    let to = &to[..to.len().min(size as usize)];
    let written = write_all(call.caller.tid, call.arg(arg + 1), to);
    call.then = Then::Nothing;
    Some(written.map_or_else(|_| Entry::errno(libc::EFAULT), |()| Entry::Answer(to.len() as i64)))
}

/// The name of the slave to which the link of a descriptor leads: `/proc/PID/fd/N`.
fn terminal(call: &Making, text: &[u8], arg: u8, at: bool) -> Option<Vec<u8>> {
    let base = match text.first()? {
        b'/' if !text.windows(3).any(|part| part == b"fd/") => return None,
        b'/' => None,
        b'0'..=b'9' | b'f' => Some(base(call, arg, at).filter(|base| base.starts_with(PROC))?),
        _ => return None,
    };
    let path = to_host(text, base.as_deref()).unwrap_or_else(|| text.to_vec());
    let path = base.unwrap_or_default().join(OsStr::from_bytes(&path));
    let own = Path::new(PROC).join(call.caller.pid.to_string());
    let leads = |name, to: &Path| path.strip_prefix(name).ok().map(|rest| to.join(rest));
    let path = leads("/proc/self", &own)
        .or_else(|| leads("/proc/thread-self", &own.join(format!("task/{}", call.caller.tid))))
        .or_else(|| leads("/dev/fd", &own.join("fd")))
        .unwrap_or(path);
    let of_table = path.starts_with(PROC) && path.parent().is_some_and(|dir| dir.ends_with("fd"));
    let link = of_table.then(|| fs::read_link(path).ok()).flatten()?;
    ptys::name_to_job(link.as_os_str().as_bytes(), call.caller.processes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::image::Clocks;

    #[test]
    fn numbers_in_paths_are_the_kernels() {
        numbers::begin(Clocks::default());
        numbers::bind(10, 5000);
        numbers::bind(11, 5001);
        let of = |path: &str, in_proc: bool| {
            to_host(path.as_bytes(), in_proc.then(|| Path::new(PROC)))
                .map(|p| String::from_utf8(p).unwrap())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of("/proc/10/stat", false), some("/proc/5000/stat"));
        assert_eq!(of("//proc/./10", false), some("//proc/./5000"));
        assert_eq!(of("/proc/10/task/11/comm", false), some("/proc/5000/task/5001/comm"));
        assert_eq!(of("/proc/self/task/11", false), some("/proc/self/task/5001"));
        assert_eq!(of("/proc/5000/stat", false), Some(format!("/proc/{}/stat", numbers::NOBODY)));
        assert_eq!(of("10/stat", true), some("5000/stat"));
        assert_eq!(path_to_job(b"/proc/5000/task/5001/stat"), b"/proc/10/task/11/stat");
        for other in ["10/stat", "/tmp/10", "/proc/self/stat", "/proc", "/proc/10x", ""] {
            assert_eq!(of(other, false), None, "{other}");
        }
        numbers::end();
    }

    #[test]
    fn names_of_slaves_have_the_kernels_numbers() {
        numbers::begin(Clocks::default());
        ptys::bind(3, 17);
        let of = |path: &str, base: &str| {
            let base = Some(Path::new(base)).filter(|base| base.has_root());
            to_host(path.as_bytes(), base).map(|p| String::from_utf8(p).unwrap())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of("/dev/pts/3", ""), some("/dev/pts/17"));
        assert_eq!(of("/dev//./pts//3", ""), some("/dev//./pts//17"));
        assert_eq!(of("pts/3", "/dev"), some("pts/17"));
        assert_eq!(of("3", "/dev/pts"), some("17"));
        assert_eq!(of("/dev/pts/17", ""), Some(format!("/dev/pts/{}", numbers::NOBODY)));
        for other in ["/dev/pts/ptmx", "/dev/pts", "/dev/pts/", "/dev/pts/+3", "/pts/3", "pts/3"] {
            assert_eq!(of(other, ""), None, "{other}");
        }
        numbers::end();
    }
}
