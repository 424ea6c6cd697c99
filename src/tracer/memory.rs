//! A process's mappings and pages as /proc tells them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use serde::{Deserialize, Serialize};

use super::raw;

/// Bytes of a page on x86-64.
pub const PAGE: u64 = 4096;

bitflags::bitflags! {
    /// What a mapping was told by mmap(2), madvise(2), mlock(2) (`VmFlags` of
    /// proc_pid_smaps(5)).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
    pub struct VmFlags: u32 {
        const MAY_WRITE = 1;
        const GROWS_DOWN = 1 << 1;
        const LOCKED = 1 << 2;
        const SEQUENTIAL = 1 << 3;
        const RANDOM = 1 << 4;
        const DONT_FORK = 1 << 5;
        const NO_RESERVE = 1 << 6;
        const HUGETLB = 1 << 7;
        const WIPE_ON_FORK = 1 << 8;
        const DONT_DUMP = 1 << 9;
        const HUGE = 1 << 10;
        const NO_HUGE = 1 << 11;
        const MERGEABLE = 1 << 12;
        const DROPPABLE = 1 << 13;
        const LOCK_ON_FAULT = 1 << 14;
        const IO = 1 << 15;
        const PFN = 1 << 16;
        const SHADOW_STACK = 1 << 17;
        const SEALED = 1 << 18;
        const UFFD = 1 << 19;
    }
}

impl VmFlags {
    /// One two-letter name of `VmFlags`.
    fn named(name: &str) -> Self {
        match name {
            "mw" => Self::MAY_WRITE,
            "gd" => Self::GROWS_DOWN,
            "lo" => Self::LOCKED,
            "lf" => Self::LOCK_ON_FAULT,
            "sr" => Self::SEQUENTIAL,
            "rr" => Self::RANDOM,
            "dc" => Self::DONT_FORK,
            "nr" => Self::NO_RESERVE,
            "ht" => Self::HUGETLB,
            "wf" => Self::WIPE_ON_FORK,
            "dd" => Self::DONT_DUMP,
            "hg" => Self::HUGE,
            "nh" => Self::NO_HUGE,
            "mg" => Self::MERGEABLE,
            "dp" => Self::DROPPABLE,
            "io" => Self::IO,
            "pf" => Self::PFN,
            "ss" => Self::SHADOW_STACK,
            "sl" => Self::SEALED,
            "um" | "uw" | "ui" => Self::UFFD,
            _ => Self::empty(),
        }
    }
}

/// One mapping of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// First address and the one behind the last.
    pub start: u64,
    pub end: u64,
    /// PROT_* bits of mmap(2).
    pub prot: i32,
    pub shared: bool,
    /// Byte offset in the backing object.
    pub offset: u64,
    /// Device number as in the maps file: major, minor.
    pub dev: (u32, u32),
    pub ino: u64,
    /// Path or name; empty for plain anonymous memory.
    pub path: String,
    pub flags: VmFlags,
    /// Protection key (pkeys(7)), 0 where there are none.
    pub pkey: u32,
}

impl Vma {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true for what the kernel lists.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Contains the address.
    #[must_use]
    pub fn contains(&self, addr: u64) -> bool {
        (self.start..self.end).contains(&addr)
    }
}

fn malformed(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("cannot read this line of smaps: {line}"))
}

/// Reads the first line of a mapping in maps or smaps.
fn vma_line(line: &str) -> Option<Vma> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let perms = fields.next()?.as_bytes();
    let offset = fields.next()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let ino = fields.next()?;
    let path = fields.next().unwrap_or("").trim_start();
    let bit = |i: usize, c: u8, prot: i32| if perms.get(i) == Some(&c) { prot } else { 0 };
    Some(Vma {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        prot: bit(0, b'r', libc::PROT_READ)
            | bit(1, b'w', libc::PROT_WRITE)
            | bit(2, b'x', libc::PROT_EXEC),
        shared: perms.get(3) == Some(&b's'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        dev: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        ino: ino.parse().ok()?,
        path: unescape(path),
        flags: VmFlags::empty(),
        pkey: 0,
    })
}

/// The kernel writes a newline in a path as `\012`.
fn unescape(path: &str) -> String {
    path.replace("\\012", "\n")
}

/// Parses the text of smaps.
///
/// # Errors
/// For a line that has not the form of proc_pid_smaps(5).
pub fn parse_smaps(text: &str) -> io::Result<Vec<Vma>> {
    let mut vmas: Vec<Vma> = Vec::new();
    for line in text.lines() {
        if line.starts_with(|c: char| c.is_ascii_uppercase()) {
            let Some(last) = vmas.last_mut() else { return Err(malformed(line)) };
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                last.flags = flags.split_whitespace().map(VmFlags::named).collect();
            } else if let Some(key) = line.strip_prefix("ProtectionKey:") {
                last.pkey = key.trim().parse().map_err(|_| malformed(line))?;
            }
        } else {
            vmas.push(vma_line(line).ok_or_else(|| malformed(line))?);
        }
    }
    Ok(vmas)
}

/// A file of /proc, whole. std::fs::read asks for its size, which is 0, and then begins with
/// reads of 32 bytes.
///
/// # Errors
/// When it cannot be opened or read.
pub fn read_proc(path: &str) -> io::Result<String> {
    read_bytes(path, false).map(into_text)
}

/// As [`read_proc`], a file that the kernel makes in one piece (`stat`, `status` and other files of
/// one process, but no lists): a read that leaves room in the buffer was the last.
///
/// # Errors
/// When it cannot be opened or read.
pub fn read_record(path: &str) -> io::Result<String> {
    read_bytes(path, true).map(into_text)
}

/// As [`read_record`], of a file that is no text.
///
/// # Errors
/// When it cannot be opened or read.
pub fn read_binary(path: &str) -> io::Result<Vec<u8>> {
    read_bytes(path, true)
}

/// A field of a `stat` file of a process or thread, counted as in proc_pid_stat(5). The name, which
/// is field 2, may have blanks and brackets.
#[must_use]
pub fn stat_field(stat: &str, n: usize) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split_whitespace().nth(n.checked_sub(3)?)
}

/// The state of a process or thread, as field 3 of its `stat` shows it; `None` when it is gone.
#[must_use]
pub fn task_state(tid: i32) -> Option<char> {
    let stat = read_record(&format!("/proc/{tid}/stat")).ok()?;
    stat_field(&stat, 3)?.chars().next()
}

fn read_bytes(path: &str, one_piece: bool) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let (mut bytes, mut len) = (vec![0; 8 << 10], 0);
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if len == bytes.len() {
            bytes.resize(2 * len, 0);
        } else if one_piece {
            break;
        }
    }
    bytes.truncate(len);
    // One is kept for every thread.
    bytes.shrink_to_fit();
    Ok(bytes)
}

fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// All mappings with their flags.
///
/// # Errors
/// When smaps cannot be read.
pub fn vmas(pid: i32) -> io::Result<Vec<Vma>> {
    parse_smaps(&read_proc(&format!("/proc/{pid}/smaps"))?)
}

/// All mappings without flags (the faster file `maps`).
///
/// # Errors
/// When maps cannot be read.
pub fn maps(pid: i32) -> io::Result<Vec<Vma>> {
    parse_smaps(&read_proc(&format!("/proc/{pid}/maps"))?)
}

/// The code of the vdso (vdso(7)) among the mappings of a process.
#[must_use]
pub fn vdso(vmas: &[Vma]) -> Option<&Vma> {
    vmas.iter().find(|vma| vma.path == "[vdso]")
}

/// The thread group a thread belongs to.
///
/// # Errors
/// When there is no such thread.
pub fn tgid(tid: i32) -> io::Result<i32> {
    status_field(tid, "Tgid:")?
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "Tgid of /proc status"))
}

/// One line of `/proc/TID/status`, without its name.
///
/// # Errors
/// When there is no such thread or line.
pub fn status_field(tid: i32, name: &str) -> io::Result<String> {
    let status = read_record(&format!("/proc/{tid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.map(|l| l.trim().to_owned()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no {name} in /proc/{tid}/status"))
    })
}

/// Which pages a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Private content: present or swapped, not from the file, not the zero page.
    Private,
    /// Mapped here, whatever stands behind it.
    Present,
    /// Guard regions (madvise(2) MADV_GUARD_INSTALL).
    Guard,
}

/// The page table of a process (`/proc/PID/pagemap`).
#[derive(Debug)]
pub struct PageMap(File);

impl PageMap {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Ranges of pages of the wanted sort, in order, neighbours joined.
    ///
    /// # Errors
    /// When neither the PAGEMAP_SCAN ioctl (Linux 6.7) nor the file's entries can be read.
    pub fn scan(&self, start: u64, end: u64, pages: Pages) -> io::Result<Vec<(u64, u64)>> {
        match raw::pagemap_scan(self.0.as_raw_fd(), start, end, pages) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => self.entries(start, end, pages),
            other => other,
        }
    }

    /// As [`PageMap::scan`], in each of several ranges, ascending, between which nothing is mapped.
    ///
    /// # Errors
    /// As [`PageMap::scan`].
    pub fn scan_each(
        &self,
        ranges: &[(u64, u64)],
        pages: Pages,
    ) -> io::Result<Vec<Vec<(u64, u64)>>> {
        let (Some((start, _)), Some((_, end))) = (ranges.first(), ranges.last()) else {
            return Ok(Vec::new());
        };
        match raw::pagemap_scan(self.0.as_raw_fd(), *start, *end, pages) {
            // The file has entries for what is not mapped, too.
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
                ranges.iter().map(|(start, end)| self.entries(*start, *end, pages)).collect()
            }
            found => Ok(divide(&found?, ranges)),
        }
    }

    /// The same from the 64-bit entries of the file.
    fn entries(&self, start: u64, end: u64, pages: Pages) -> io::Result<Vec<(u64, u64)>> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        self.each_entry(start, end, |addr, entry| {
            if entry.is(pages) {
                push_range(&mut ranges, addr, addr + PAGE);
            }
        })?;
        Ok(ranges)
    }

    /// Shows every entry of a range of addresses.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn each_entry(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(u64, Entry),
    ) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut buf = vec![0u8; 64 << 10];
        let mut addr = start;
        while addr < end {
            let want = (((end - addr) / PAGE) as usize * 8).min(buf.len());
            let got = self.0.read_at(&mut buf[..want], addr / PAGE * 8)? & !7;
            if got == 0 {
                break;
            }
            for entry in buf[..got].as_chunks::<8>().0 {
                visit(addr, Entry(u64::from_le_bytes(*entry)));
                addr += PAGE;
            }
        }
        Ok(())
    }
}

/// One page in a [`PageMap`] (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Is it of this sort?
    #[must_use]
    pub fn is(self, pages: Pages) -> bool {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const FILE: u64 = 1 << 61;
        const GUARD: u64 = 1 << 58;
        let Self(entry) = self;
        match pages {
            Pages::Private => entry & (PRESENT | SWAPPED) != 0 && entry & (FILE | GUARD) == 0,
            Pages::Present => entry & (PRESENT | SWAPPED) != 0,
            Pages::Guard => entry & GUARD != 0,
        }
    }

    /// Is it known to be in no other page table? Never of one that is swapped out.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        const EXCLUSIVE: u64 = 1 << 56;
        self.0 & EXCLUSIVE != 0
    }
}

/// The parts of `found` that lie in each of `ranges`; both are ascending.
fn divide(found: &[(u64, u64)], ranges: &[(u64, u64)]) -> Vec<Vec<(u64, u64)>> {
    let mut next = 0;
    let mut within = |&(start, end): &(u64, u64)| {
        let mut parts = Vec::new();
        while let Some(&(from, to)) = found.get(next).filter(|(from, _)| *from < end) {
            if to > start {
                parts.push((from.max(start), to.min(end)));
            }
            // One that goes on lies in the next range as well.
            if to > end {
                break;
            }
            next += 1;
        }
        parts
    };
    ranges.iter().map(&mut within).collect()
}

/// Adds a range, joined with the last one when they touch.
pub fn push_range(ranges: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    match ranges.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => ranges.push((start, end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaps_lines() {
        let text = "7f0000000000-7f0000002000 rw-s 00001000 fe:01 42    /tmp/a b (deleted)\n\
                    Size:                  8 kB\nProtectionKey:         0\n\
                    VmFlags: rd wr sh mr mw me ms dd nh\n\
                    7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0          [stack]\n\
                    VmFlags: rd wr mr mw me gd ac\n";
        let vmas = parse_smaps(text).unwrap();
        assert_eq!(vmas[0].path, "/tmp/a b (deleted)");
        assert!(vmas[0].shared && vmas[0].ino == 42 && vmas[0].dev == (0xfe, 1));
        assert_eq!(vmas[0].flags, VmFlags::MAY_WRITE | VmFlags::DONT_DUMP | VmFlags::NO_HUGE);
        assert!(vmas[1].flags.contains(VmFlags::GROWS_DOWN));
        assert!(parse_smaps("garbage").is_err());
    }

    #[test]
    fn what_is_found_is_divided() {
        let found = [(1, 3), (4, 9), (12, 13)];
        let ranges = [(0, 2), (2, 5), (5, 6), (8, 10), (10, 12), (12, 20)];
        let parts = divide(&found, &ranges);
        let want = [vec![(1, 2)], vec![(2, 3), (4, 5)], vec![(5, 6)], vec![(8, 9)]];
        assert_eq!(parts, [&want[..], &[vec![], vec![(12, 13)]]].concat());
        assert!(divide(&[], &ranges).concat().is_empty());
    }

    #[test]
    fn both_ways_to_scan_agree() {
        let pid = std::process::id() as i32;
        let touched = vec![7u8; 64 * PAGE as usize];
        let at = (touched.as_ptr() as u64).next_multiple_of(PAGE);
        let map = PageMap::open(pid).unwrap();
        let (start, end) = (at, at + 32 * PAGE);
        assert_eq!(map.entries(start, end, Pages::Private).unwrap(), [(start, end)]);
        assert_eq!(
            map.scan(start, end, Pages::Private).unwrap(),
            map.entries(start, end, Pages::Private).unwrap()
        );
        let middle = start + 8 * PAGE;
        let both = map.scan_each(&[(start, middle), (middle, end)], Pages::Private).unwrap();
        assert_eq!(both, [[(start, middle)], [(middle, end)]]);
    }
}
