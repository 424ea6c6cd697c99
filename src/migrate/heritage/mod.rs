//! Private pages that processes have in common since fork(2) take memory once at the target, too.
//!
//! Nothing but fork(2) puts a private page into a second address space. So a process of the frame
//! gets such pages before it forks, at the addresses that they have in the job:
//!
//! ```text
//! source                          target                    a process of the frame
//! Prepare, with mappings ───────► frame begins ───────────► maps them, waits (gate)
//! Heirs, pages of the running ──► written ────────────────►
//!        job
//! Heirs, the last ──────────────► ────────────────────────► forks those below it
//!        ◄──────────────────────── Prepared
//! ```
//! What was handed down need not be true any more when the job is frozen. Each page is read again
//! then and compared with what the process of the frame has ([`Handed`]): one that differs is sent,
//! and written over it. What is in no final mapping of the same kind, or is no page of the process
//! any more, is taken away ([`Heritage`]). Both sides judge by the same rules, [`kept`].

pub mod choose;
pub mod gate;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::resource::memory::{Backing, FileId, Mapping, MmImage};
use super::tree::{Step, Tree};
use crate::tracer::memory::{push_range, VmFlags, PAGE};

/// Ranges of addresses, ascending and apart.
pub type Ranges = Vec<(u64, u64)>;

/// Flags of a mapping that are given to mmap(2), and that fork(2) keeps.
const KIND: VmFlags = VmFlags::NO_RESERVE.union(VmFlags::GROWS_DOWN);

/// A private mapping that a process hands down to those that it forks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heirloom {
    pub start: u64,
    pub end: u64,
    /// Of mmap(2): no reserve, grows down.
    pub flags: VmFlags,
    /// The file, and where in it the mapping begins; none: anonymous memory.
    pub file: Option<(FileId, u64)>,
}

impl Heirloom {
    /// Bytes.
    fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Is a mapping that begins at `start`, within this one, memory of the same kind?
    fn is_like(&self, start: u64, flags: VmFlags, file: Option<(&FileId, u64)>) -> bool {
        let within = (self.start..self.end).contains(&start);
        let same = match (&self.file, file) {
            (None, None) => true,
            (Some((own, first)), Some((other, offset))) => {
                own == other && offset.checked_sub(*first) == start.checked_sub(self.start)
            }
            _ => false,
        };
        within && same && self.flags == flags & KIND
    }

    fn overlaps(&self, (start, end): (u64, u64)) -> bool {
        self.start < end && start < self.end
    }
}

/// What one process of the plan hands down, by its place among the members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bequest {
    pub member: u32,
    /// Ascending, apart from each other.
    pub mappings: Vec<Heirloom>,
}

/// Checks what has come from the source: each member once, after those that fork it; whole pages
/// at addresses that a program can have.
///
/// # Errors
/// What is wrong.
pub fn check(bequests: &[Bequest], lineage: &[Option<usize>]) -> Result<(), &'static str> {
    /// Where addresses of programs end (x86-64, four levels of page tables).
    const ADDRESSES: u64 = 1 << 47;
    let mut places: BTreeMap<usize, usize> = BTreeMap::new();
    for (n, bequest) in bequests.iter().enumerate() {
        let member = bequest.member as usize;
        if member >= lineage.len() || places.insert(member, n).is_some() {
            return Err("a bequest of no process");
        }
        let mut last = 0;
        for m in &bequest.mappings {
            let whole = (m.start | m.end).is_multiple_of(PAGE);
            let offset = m.file.as_ref().map_or(0, |(_, offset)| *offset);
            if !whole || m.start < last.max(PAGE) || m.end <= m.start || m.end > ADDRESSES {
                return Err("a mapping to hand down at no range");
            }
            if !KIND.contains(m.flags) || !offset.is_multiple_of(PAGE) || offset > u64::MAX / 2 {
                return Err("a mapping to hand down of no kind");
            }
            last = m.end;
        }
    }
    for (member, n) in &places {
        let mut above = ancestors(lineage, *member).skip(1);
        if above.any(|above| places.get(&above).is_some_and(|place| place > n)) {
            return Err("a bequest before that of a process above");
        }
    }
    Ok(())
}

/// Of each member: the nearest one above it in the frame, from which it inherits.
#[must_use]
pub fn lineage(tree: &Tree) -> Vec<Option<usize>> {
    let mut forker: Vec<Option<usize>> = vec![None; tree.nodes.len()];
    for (node, own) in tree.nodes.iter().enumerate() {
        for step in &own.steps {
            if let Step::Fork(child) = step {
                forker[*child] = Some(node);
            }
        }
    }
    let mut member: Vec<Option<usize>> = vec![None; tree.nodes.len()];
    for (index, node) in tree.members.iter().enumerate() {
        if let Some(node) = node {
            member[*node] = Some(index);
        }
    }
    let nearest = |node: usize| {
        std::iter::successors(forker[node], |above| forker[*above]).find_map(|node| member[node])
    };
    tree.members.iter().map(|node| node.and_then(nearest)).collect()
}

/// A member, and those above it, the nearest first.
pub fn ancestors(lineage: &[Option<usize>], member: usize) -> impl Iterator<Item = usize> + '_ {
    std::iter::successors(Some(member), |at| lineage.get(*at).copied().flatten())
}

/// Where the part of a mapping ends that a process keeps of what it has inherited; it begins with
/// the mapping. None: the mapping is made anew. A part that is shorter than the mapping is enlarged
/// in its place (mremap(2)), so that a program finds one mapping where it had one.
#[must_use]
pub fn kept(heirlooms: &[Heirloom], m: &Mapping, files: &[FileId]) -> Option<u64> {
    let file = match &m.backing {
        Backing::Anonymous { .. } => None,
        Backing::File(index) => Some((files.get(*index as usize)?, m.offset)),
        _ => return None,
    };
    if m.shared || m.flags.contains(VmFlags::DROPPABLE) {
        return None;
    }
    let heirloom = heirlooms.iter().find(|h| h.is_like(m.start, m.flags, file))?;
    let grown = heirlooms.iter().any(|h| h.start >= heirloom.end && h.start < m.end);
    (!grown).then_some(heirloom.end.min(m.end))
}

/// What a process of the frame has inherited, or hands down itself.
#[derive(Debug, Clone, Default)]
pub struct Heritage {
    pub mappings: Vec<Heirloom>,
    pub pages: Ranges,
}

impl Heritage {
    /// Of each mapping of an image: where the part of it ends that is [`kept`].
    #[must_use]
    pub fn kept(&self, image: &MmImage) -> Vec<Option<u64>> {
        image.mappings.iter().map(|m| kept(&self.mappings, m, &image.files)).collect()
    }

    /// Pages of the kept part of a mapping that the process has no more.
    #[must_use]
    pub fn absent(&self, start: u64, end: u64, data: &[(u64, u64)]) -> Ranges {
        without(&within(&self.pages, &[(start, end)]), data)
    }
}

/// The first bytes of a page's hash: pages of one hash are equal.
pub type PageHash = u128;

/// Hash of one page.
#[must_use]
pub fn page_hash(page: &[u8]) -> PageHash {
    let hash = blake3::hash(page);
    hash.as_bytes().first_chunk().map_or(0, |first| u128::from_le_bytes(*first))
}

/// What the source has handed down through the frame: what each process there has.
#[derive(Debug, Default)]
pub struct Handed {
    lineage: Vec<Option<usize>>,
    given: BTreeMap<usize, Given>,
}

#[derive(Debug, Default)]
struct Given {
    mappings: Vec<Heirloom>,
    pages: HashMap<u64, PageHash>,
}

impl Handed {
    #[must_use]
    pub fn new(lineage: Vec<Option<usize>>) -> Self {
        Self { lineage, given: BTreeMap::new() }
    }

    /// A member hands these mappings down.
    pub fn add(&mut self, member: usize, mappings: Vec<Heirloom>) {
        self.given.insert(member, Given { mappings, pages: HashMap::new() });
    }

    /// This page is sent for a member to hand down.
    pub fn note(&mut self, member: usize, address: u64, hash: PageHash) {
        self.given.entry(member).or_default().pages.insert(address, hash);
    }

    /// The target could not map that there: what is at this address in the frame.
    pub fn refuse(&mut self, member: usize, start: u64) {
        if let Some(given) = self.given.get_mut(&member) {
            given.mappings.retain(|m| m.start != start);
        }
    }

    fn above(&self, member: usize) -> impl Iterator<Item = &Given> + '_ {
        ancestors(&self.lineage, member).filter_map(|member| self.given.get(&member))
    }

    /// The page that a member has there.
    #[must_use]
    pub fn at(&self, member: usize, address: u64) -> Option<PageHash> {
        self.above(member).find_map(|given| given.pages.get(&address)).copied()
    }

    /// What a member has of mappings, its own and inherited ones.
    #[must_use]
    pub fn mappings(&self, member: usize) -> Vec<Heirloom> {
        self.above(member).flat_map(|given| given.mappings.iter().cloned()).collect()
    }

    /// What a member keeps of it, when its memory is that.
    #[must_use]
    pub fn inherited(&self, member: usize, memory: &MmImage) -> Inherited<'_> {
        let mappings = self.mappings(member);
        let end = |m: &Mapping| Some((m.start, kept(&mappings, m, &memory.files)?));
        Inherited {
            kept: memory.mappings.iter().filter_map(end).collect(),
            layers: self.above(member).map(|given| &given.pages).collect(),
        }
    }
}

/// Pages that a process of the frame has before its memory comes.
#[derive(Debug, Default)]
pub struct Inherited<'a> {
    kept: Ranges,
    layers: Vec<&'a HashMap<u64, PageHash>>,
}

impl Inherited<'_> {
    /// The hash of the page there, if it has one.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<PageHash> {
        let next = self.kept.partition_point(|(_, end)| *end <= address);
        self.kept.get(next).filter(|(start, _)| *start <= address)?;
        self.layers.iter().find_map(|pages| pages.get(&address)).copied()
    }
}

/// The parts of `ranges` that lie in `limits`.
#[must_use]
pub fn within(ranges: &[(u64, u64)], limits: &[(u64, u64)]) -> Ranges {
    let mut parts = Vec::new();
    for &(start, end) in ranges {
        let first = limits.partition_point(|(_, limit)| *limit <= start);
        for &(from, to) in limits[first..].iter().take_while(|(from, _)| *from < end) {
            push_range(&mut parts, from.max(start), to.min(end));
        }
    }
    parts
}

/// The parts of `ranges` that do not lie in `holes`.
#[must_use]
pub fn without(ranges: &[(u64, u64)], holes: &[(u64, u64)]) -> Ranges {
    let mut parts = Vec::new();
    for &(start, end) in ranges {
        let mut at = start;
        let first = holes.partition_point(|(_, hole)| *hole <= start);
        for &(from, to) in holes[first..].iter().take_while(|(from, _)| *from < end) {
            if from > at {
                push_range(&mut parts, at, from);
            }
            at = at.max(to);
        }
        if at < end {
            push_range(&mut parts, at, end);
        }
    }
    parts
}

/// In order, and joined where they touch or overlap.
#[must_use]
pub fn joined(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut all: Ranges = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match all.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => all.push((start, end)),
        }
    }
    all
}

#[cfg(test)]
mod tests;
