//! What processes have in common travels once.
//!
//! * Pages of an object that several mappings show, of one process or of several, are sent for
//!   the first mapping that shows them ([`send_objects_once`]).
//! * Private pages that are equal at one address in two processes, as fork(2) leaves them, are
//!   sent for the first process; the others are told to take them from there ([`Sent`]). Pages
//!   that the kernel knows to be in one address space only are not compared. Those that a process
//!   of the frame has already ([`super::heritage`]) are not sent at all.

use std::collections::{BTreeMap, HashMap};
use std::io;

use super::heritage::{page_hash, Inherited, PageHash};
use super::image::ProcessImage;
use super::resource::memory::{Backing, Mapping};
use crate::tracer::memory::{push_range, PageMap, VmFlags, PAGE};

/// Which object: device and inode at the source.
type Key = (u64, u64);

/// Takes pages of objects out of the data of all mappings but the first that shows them.
pub fn send_objects_once(processes: &mut [ProcessImage]) {
    let mut sent: BTreeMap<Key, Vec<(u64, u64)>> = BTreeMap::new();
    for process in processes {
        let memory = &mut process.memory;
        let mut data = Vec::with_capacity(memory.data.len());
        let mut ranges = std::mem::take(&mut memory.data).into_iter().peekable();
        for m in &mut memory.mappings {
            let mut own = Vec::new();
            while let Some(range) = ranges.next_if(|(start, _)| *start < m.end) {
                own.push(range);
            }
            let object = match m.backing {
                Backing::Object(index) if m.shared => memory.objects.get(index as usize),
                _ => None,
            };
            if let Some(object) = object {
                let known = sent.entry((object.dev, object.ino)).or_default();
                own = own.into_iter().flat_map(|range| first_time(known, range, m)).collect();
                m.has_data = !own.is_empty();
            }
            data.extend(own);
        }
        memory.data = data;
    }
}

/// Takes the pages of segments out of the data that travel in another way.
pub fn leave_segments_out(processes: &mut [ProcessImage], but: &[i32]) {
    for memory in processes.iter_mut().map(|process| &mut process.memory) {
        for m in &mut memory.mappings {
            let Backing::Object(index) = m.backing else { continue };
            let object = memory.objects.get(index as usize);
            let Some(id) = object.and_then(|object| object.segment) else { continue };
            // What cannot be written to takes no pages either.
            if !but.contains(&id) || !m.flags.contains(VmFlags::MAY_WRITE) {
                memory.data.retain(|(start, _)| *start < m.start || *start >= m.end);
                m.has_data = false;
            }
        }
    }
}

/// The pieces of a range of addresses whose offsets in the object are not in `known`, and adds
/// them there. `known` is in order, without overlaps.
fn first_time(known: &mut Vec<(u64, u64)>, range: (u64, u64), m: &Mapping) -> Vec<(u64, u64)> {
    let offset = |address: u64| address - m.start + m.offset;
    let address = |offset: u64| offset - m.offset + m.start;
    let (mut at, end) = (offset(range.0), offset(range.1));
    let mut new = Vec::new();
    for &(from, to) in known.iter() {
        if from > at {
            push_range(&mut new, at, from.min(end).max(at));
        }
        at = at.max(to.min(end));
    }
    if at < end {
        push_range(&mut new, at, end);
    }
    new.retain(|(from, to)| from < to);
    let mut all: Vec<(u64, u64)> = known.iter().chain(&new).copied().collect();
    all.sort_unstable();
    known.clear();
    all.into_iter().for_each(|(from, to)| push_range(known, from, to));
    new.into_iter().map(|(from, to)| (address(from), address(to))).collect()
}

/// Pages that have been sent and that another process may have as well.
#[derive(Default)]
pub struct Sent {
    /// By address: content and process (by its index) of each.
    pages: HashMap<u64, Vec<(PageHash, u32)>>,
}

/// A piece of a process's memory, divided.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Divided {
    /// These have to be sent; their bytes stand one behind the other at the begin of the buffer.
    pub ranges: Vec<(u64, u64)>,
    pub len: usize,
    /// These are as in that process, by its index.
    pub same: BTreeMap<u32, Vec<(u64, u64)>>,
}

impl Sent {
    /// Divides pages of process `index`; `bytes` are theirs. `shared` tells of each page whether
    /// another address space may have it; `inherited` is what the process has already.
    pub fn divide(
        &mut self,
        index: u32,
        ranges: &[(u64, u64)],
        bytes: &mut [u8],
        shared: &[bool],
        inherited: &Inherited,
    ) -> Divided {
        let mut divided = Divided::default();
        let page = PAGE as usize;
        let addresses = ranges.iter().flat_map(|(start, end)| (*start..*end).step_by(page));
        for (n, (address, shared)) in addresses.zip(shared).enumerate() {
            let at = n * page;
            let has = inherited.at(address);
            if *shared || has.is_some() {
                let hash = page_hash(&bytes[at..at + page]);
                let known = self.pages.entry(address).or_default();
                let from = known.iter().find(|(other, _)| *other == hash).map(|(_, from)| *from);
                if from.is_none() {
                    known.push((hash, index));
                }
                if has == Some(hash) {
                    continue;
                }
                if let Some(from) = from {
                    push_range(divided.same.entry(from).or_default(), address, address + PAGE);
                    continue;
                }
            }
            bytes.copy_within(at..at + page, divided.len);
            divided.len += page;
            push_range(&mut divided.ranges, address, address + PAGE);
        }
        divided
    }
}

/// Of each page: may another address space have it?
///
/// # Errors
/// When the entries of the page table cannot be read.
pub fn perhaps_shared(map: &PageMap, ranges: &[(u64, u64)]) -> io::Result<Vec<bool>> {
    let mut all = Vec::new();
    for &(start, end) in ranges {
        map.each_entry(start, end, |_, entry| all.push(!entry.is_exclusive()))?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::image::{Ids, ProcessImage};
    use crate::migrate::resource::memory::{Layout, MmImage, SharedObject};

    fn mapping(start: u64, pages: u64, offset: u64) -> Mapping {
        Mapping {
            start,
            end: start + pages * PAGE,
            prot: 3,
            shared: true,
            offset: offset * PAGE,
            flags: VmFlags::empty(),
            backing: Backing::Object(0),
            guards: Vec::new(),
            has_data: true,
        }
    }

    fn process(mappings: Vec<Mapping>) -> ProcessImage {
        let data = mappings.iter().map(|m| (m.start, m.end)).collect();
        let object = SharedObject {
            dev: 1,
            ino: 2,
            name: "x".into(),
            size: 1 << 20,
            anonymous: true,
            held: false,
            segment: None,
        };
        ProcessImage {
            ids: Ids { pid: 1, ppid: 0, pgid: 1, sid: 1 },
            shares: Default::default(),
            memory: MmImage {
                locks_future: None,
                mappings,
                files: Vec::new(),
                objects: vec![object],
                rings: Vec::new(),
                layout: Layout::default(),
                auxv: Vec::new(),
                exe: 0,
                vdso: Vec::new(),
                data,
            },
            table: Vec::new(),
            parts: Vec::new(),
            threads: Vec::new(),
            stopped: None,
            stop_taken: false,
            no_terminal: false,
            continued: false,
            undo: Vec::new(),
            locks: Default::default(),
        }
    }

    #[test]
    fn each_page_of_an_object_is_sent_once() {
        let base = 0x10000;
        let mut all = [
            process(vec![mapping(base, 2, 2), mapping(2 * base, 4, 0)]),
            process(vec![mapping(base, 8, 1)]),
            process(vec![mapping(base, 3, 0)]),
        ];
        send_objects_once(&mut all);
        let data = |n: usize| all[n].memory.data.clone();
        assert_eq!(data(0), [(base, base + 2 * PAGE), (2 * base, 2 * base + 2 * PAGE)]);
        assert_eq!(data(1), [(base + 3 * PAGE, base + 8 * PAGE)]);
        assert_eq!(data(2), []);
        assert!(!all[2].memory.mappings[0].has_data && all[1].memory.mappings[0].has_data);
    }

    #[test]
    fn equal_pages_at_one_address_are_sent_once() {
        let page = PAGE as usize;
        let mut sent = Sent::default();
        let fill =
            |numbers: &[u8]| -> Vec<u8> { numbers.iter().flat_map(|n| vec![*n; page]).collect() };
        let (range, none) = ([(PAGE, 4 * PAGE)], Inherited::default());
        let first = sent.divide(0, &range, &mut fill(&[1, 2, 3]), &[true; 3], &none);
        assert_eq!((first.len, first.same.len()), (3 * page, 0));
        let mut bytes = fill(&[1, 9, 3]);
        let second = sent.divide(1, &range, &mut bytes, &[true, true, false], &none);
        assert_eq!(second.ranges, [(2 * PAGE, 4 * PAGE)]);
        assert_eq!(second.same, BTreeMap::from([(0, vec![(PAGE, 2 * PAGE)])]));
        assert_eq!(bytes[..2 * page], fill(&[9, 3]));
        let third = sent.divide(2, &range, &mut fill(&[2, 9, 3]), &[true; 3], &none);
        assert_eq!(third.ranges, [(PAGE, 2 * PAGE)]);
        assert_eq!(third.same[&1], [(2 * PAGE, 3 * PAGE)]);
        assert_eq!(third.same[&0], [(3 * PAGE, 4 * PAGE)]);
    }

    #[test]
    fn pages_of_one_address_space_are_known() {
        let own = vec![7u8; 16 * PAGE as usize];
        let at = (own.as_ptr() as u64).next_multiple_of(PAGE);
        let map = PageMap::open(std::process::id() as i32).expect("pagemap");
        let shared = perhaps_shared(&map, &[(at, at + 8 * PAGE)]).expect("entries");
        assert_eq!(shared.len(), 8);
    }
}
