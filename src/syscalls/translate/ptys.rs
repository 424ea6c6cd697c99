//! Numbers of ptys: N of `/dev/pts/N`, where the job has no devpts of its own.
//!
//! They are a space apart from those of processes ([`super::numbers`]), and treated alike: a pty
//! that has come with the job keeps its number, one that the job makes here gets the lowest free
//! one, as in a new devpts, and a number that the job has not is nobody's. A number is given when
//! it is asked for the first time: nothing is stopped when a pty is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::numbers::with_ptys;

/// No pty has this number: it is above every `kernel.pty.max`.
const NOBODY: u32 = super::numbers::NOBODY.cast_unsigned();

const NAMES: &str = "/dev/pts/";

/// The kernel's numbers, by the job's.
#[derive(Debug, Clone, Default)]
pub(super) struct Ptys(BTreeMap<u32, u32>);

impl Ptys {
    fn bind(&mut self, job: u32, host: u32) {
        self.0.retain(|_, other| *other != host);
        self.0.insert(job, host);
    }

    fn to_job(&self, host: u32) -> Option<u32> {
        self.0.iter().find(|(_, other)| **other == host).map(|(job, _)| *job)
    }

    /// The lowest number that no pty has, of those of which `lives` says that they are there.
    fn born(&mut self, host: u32, lives: impl Fn(u32) -> bool) {
        self.0.retain(|_, other| lives(*other));
        if let Some(job) = (0..NOBODY).find(|job| !self.0.contains_key(job)) {
            self.bind(job, host);
        }
    }
}

/// Notes that the job knows pty `host` as `job`.
pub fn bind(job: u32, host: u32) {
    with_ptys(|all| all.bind(job, host));
}

/// The job's number of a pty, which is the kernel's if it has none.
#[must_use]
pub fn to_job(host: u32) -> u32 {
    with_ptys(|all| all.to_job(host)).flatten().unwrap_or(host)
}

/// The kernel's number of a pty of the job; one that nobody has if it is none of the job's.
#[must_use]
pub fn to_host(job: u32) -> u32 {
    with_ptys(|all| all.0.get(&job).copied().unwrap_or(NOBODY)).unwrap_or(job)
}

/// All that the job knows: its number and the kernel's.
#[must_use]
pub fn all() -> Vec<(u32, u32)> {
    with_ptys(|all| all.0.iter().map(|(job, host)| (*job, *host)).collect()).unwrap_or_default()
}

/// Gives a pty a number in the job, unless it has one. `processes` are those of the job: what
/// they have open keeps its number.
pub fn born(host: u32, processes: &dyn Fn() -> BTreeSet<i32>) {
    if with_ptys(|all| all.to_job(host).is_some()) != Some(false) {
        return;
    }
    let open: BTreeSet<u32> = processes().into_iter().flat_map(opened_by).collect();
    // A slave whose master is closed has no name, and keeps its number while it is open.
    let lives = |n: u32| open.contains(&n) || Path::new(&format!("{NAMES}{n}")).exists();
    with_ptys(|all| all.born(host, lives));
}

/// The ptys of which a process has a side open.
fn opened_by(pid: i32) -> Vec<u32> {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let number = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        if link.ends_with("ptmx") {
            return of_master(pid, entry.file_name().to_str()?.parse().ok()?);
        }
        named(link.as_os_str().as_encoded_bytes()).map(|(number, _)| number)
    };
    fds.filter_map(|entry| number(entry.ok()?)).collect()
}

/// The kernel's number of the pty whose master is this descriptor of a thread.
pub(super) fn of_master(tid: i32, fd: i32) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("tty-index:"))?.trim().parse().ok()
}

/// The number in the name of a slave, and what follows it (` (deleted)` in what /proc tells).
fn named(name: &[u8]) -> Option<(u32, &str)> {
    let rest = std::str::from_utf8(name).ok()?.strip_prefix(NAMES)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (number, rest) = rest.split_at(end);
    (rest.is_empty() || rest == " (deleted)").then_some((number.parse().ok()?, rest))
}

/// The name of a slave with the job's number; `None`: it is another name.
#[must_use]
pub fn name_in_job(name: &[u8]) -> Option<Vec<u8>> {
    let (number, rest) = named(name)?;
    Some(format!("{NAMES}{}{rest}", to_job(number)).into_bytes())
}

/// The same; a pty without a number gets one.
#[must_use]
pub(super) fn name_to_job(name: &[u8], processes: &dyn Fn() -> BTreeSet<i32>) -> Option<Vec<u8>> {
    born(named(name)?.0, processes);
    name_in_job(name)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::migrate::image::Clocks;
    use crate::syscalls::translate::numbers;

    #[test]
    fn a_new_pty_gets_the_lowest_number_that_none_has() {
        let mut all = Ptys::default();
        all.bind(0, 7);
        all.bind(2, 8);
        all.born(9, |_| true);
        all.born(10, |_| true);
        assert_eq!(
            [7, 8, 9, 10, 11].map(|n| all.to_job(n)),
            [0, 2, 1, 3].map(Some).into_iter().chain([None]).collect::<Vec<_>>()[..]
        );
        // 7 is not there any more, and comes again.
        all.born(11, |n| n != 7);
        all.born(7, |_| true);
        assert_eq!([11, 7].map(|n| all.to_job(n)), [Some(0), Some(4)]);
    }

    #[test]
    fn names_are_those_of_slaves() {
        let number = |name: &str| named(name.as_bytes()).map(|(n, rest)| (n, rest.to_owned()));
        assert_eq!(number("/dev/pts/12"), Some((12, String::new())));
        assert_eq!(number("/dev/pts/3 (deleted)"), Some((3, " (deleted)".into())));
        for other in ["/dev/pts/", "/dev/pts/ptmx", "/dev/pts/3/x", "/dev/tty3", "3"] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_process_has_open_keeps_its_number() {
        let pty = nix::pty::openpty(None, None).expect("openpty");
        let own = std::process::id() as i32;
        let host = of_master(own, pty.master.as_raw_fd()).expect("number");
        let processes = || BTreeSet::from([own]);
        assert_eq!((to_job(host), to_host(host)), (host, host), "without a table");
        numbers::begin(Clocks::default());
        bind(0, NOBODY - 1);
        bind(5, host);
        born(NOBODY - 2, &processes);
        assert_eq!((to_job(NOBODY - 2), to_host(5), to_host(1)), (0, host, NOBODY));
        drop(pty.master);
        born(NOBODY - 3, &processes);
        assert_eq!((to_host(0), to_host(5)), (NOBODY - 3, host), "its slave is still open");
        let name = format!("/dev/pts/{host} (deleted)");
        let told = name_to_job(name.as_bytes(), &processes);
        assert_eq!(told.as_deref(), Some(&b"/dev/pts/5 (deleted)"[..]));
        numbers::end();
    }
}
