//! Paths into /proc: `/proc/PID/…` and `/proc/PID/task/TID/…` with the job's numbers.
//!
//! `/proc/self` and `/proc/thread-self` are the kernel's, and right; only where they lead is
//! answered with the job's numbers.

use std::fs;

use super::{numbers, Entry, Making, Then};
use crate::syscalls::read_path;

/// Where the numbers of a path below /proc are, and how it begins.
const PROC: &str = "/proc";

/// The path, with the kernel's numbers. None: it is none of /proc, or has no number in it.
/// `in_proc`: what is relative is relative to /proc.
fn to_host(path: &[u8], in_proc: bool) -> Option<Vec<u8>> {
    renumbered(path, in_proc, numbers::to_host)
}

/// An absolute path as the kernel has it here.
#[must_use]
pub fn path_to_host(path: &[u8]) -> Vec<u8> {
    to_host(path, false).unwrap_or_else(|| path.to_vec())
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

/// Is the directory from which a relative path leads /proc?
fn begins_in_proc(call: &Making, path: u8, at: bool) -> bool {
    let tid = call.caller.tid;
    let dir = path.checked_sub(1).filter(|_| at).map(|arg| call.arg(arg) as i32);
    let link = match dir {
        Some(fd) if fd != libc::AT_FDCWD => format!("/proc/{tid}/fd/{fd}"),
        _ => format!("/proc/{tid}/cwd"),
    };
    fs::read_link(link).is_ok_and(|to| to.as_os_str() == PROC)
}

/// A call with a path.
pub(super) fn path(call: &mut Making, path: u8, at: bool) -> Option<Entry> {
    let text = read_path(call.caller.tid, call.arg(path))?;
    let relative = text.first().is_some_and(u8::is_ascii_digit);
    let in_proc = relative && begins_in_proc(call, path, at);
    let mut other = to_host(&text, in_proc)?;
    other.push(0);
    call.point(path, &other).is_none().then(|| Entry::errno(libc::EFAULT))
}

/// readlink(2) and readlinkat(2).
pub(super) fn link(call: &mut Making, arg: u8, at: bool) -> Option<Entry> {
    let text = read_path(call.caller.tid, call.arg(arg))?;
    let (pid, tid) = (numbers::to_job(call.caller.pid), numbers::to_job(call.caller.tid));
    let to = match text.as_slice() {
        b"/proc/self" => pid.to_string(),
        b"/proc/thread-self" => format!("{pid}/task/{tid}"),
        _ => return path(call, arg, at),
    };
    let size = call.arg(arg + 2) as i32;
    if size <= 0 {
        return Some(Entry::errno(libc::EINVAL));
    }
    let to = &to.as_bytes()[..to.len().min(size as usize)];
    let written = crate::tracer::inject::write_all(call.caller.tid, call.arg(arg + 1), to);
    call.then = Then::Nothing;
    Some(written.map_or_else(|_| Entry::errno(libc::EFAULT), |()| Entry::Answer(to.len() as i64)))
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
        let of = |path: &str, in_proc| {
            to_host(path.as_bytes(), in_proc).map(|p| String::from_utf8(p).unwrap())
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
}
