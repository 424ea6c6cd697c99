//! At the source: what the processes of the frame are to hand down, from a look at the running job.
//!
//! The kernel tells of each page whether another address space may have it
//! ([`Entry::is_exclusive`](crate::tracer::memory::Entry::is_exclusive)). A process hands down such
//! pages of its own, and those that it has written or given back since it forked, while two of its
//! children still have them.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::{joined, within, without, Heirloom, Ranges, KIND};
use crate::migrate::resource::memory::{check_vma, is_special, FileId};
use crate::tracer::memory::{self, push_range, PageMap, Pages, VmFlags, Vma, PAGE};

/// So many of its children are asked for what a process has no more. The others are like them.
const CHILDREN: usize = 16;

/// What a process hands down.
#[derive(Debug, Default)]
pub struct Chosen {
    pub mappings: Vec<Heirloom>,
    /// Where its pages are read: host pid, ranges.
    pub pages: Vec<(i32, Ranges)>,
}

/// A process as far as it is looked at.
struct Look {
    pid: i32,
    vmas: Vec<Vma>,
    /// Pages in private mappings that others may have as well.
    common: Ranges,
}

impl Look {
    fn at(pid: i32) -> io::Result<Self> {
        let mut vmas = memory::vmas(pid)?;
        vmas.retain(|vma| !is_special(vma));
        let wanted: Ranges =
            vmas.iter().filter(|vma| may_descend(vma)).map(|vma| (vma.start, vma.end)).collect();
        let map = PageMap::open(pid)?;
        let mut common = Vec::new();
        for &(start, end) in map.scan_each(&wanted, Pages::Private)?.iter().flatten() {
            map.each_entry(start, end, |address, entry| {
                if !entry.is_exclusive() {
                    push_range(&mut common, address, address + PAGE);
                }
            })?;
        }
        Ok(Self { pid, vmas, common })
    }

    /// Its mappings that hold some of `pages`.
    fn holding<'a>(&'a self, pages: &'a [(u64, u64)]) -> impl Iterator<Item = &'a Vma> + 'a {
        self.vmas.iter().filter(|vma| {
            let next = pages.partition_point(|(_, end)| *end <= vma.start);
            may_descend(vma) && pages.get(next).is_some_and(|(start, _)| *start < vma.end)
        })
    }
}

/// Private memory that a child has as well, and that nothing else hinders.
fn may_descend(vma: &Vma) -> bool {
    let hindering = VmFlags::LOCKED
        | VmFlags::LOCK_ON_FAULT
        | VmFlags::DONT_FORK
        | VmFlags::WIPE_ON_FORK
        | VmFlags::DROPPABLE;
    !vma.shared && !vma.flags.intersects(hindering) && check_vma(vma).is_none()
}

/// A mapping as it is handed down; none: of a file that has no name any more.
fn heirloom(pid: i32, vma: &Vma) -> Option<Heirloom> {
    let file = match vma.ino {
        0 => None,
        ino => {
            let m = fs::metadata(format!("/proc/{pid}/root{}", vma.path)).ok()?;
            let id = FileId::from_metadata(&vma.path, &m);
            if !m.is_file() || id.ino != ino {
                return None;
            }
            Some((id, vma.offset))
        }
    };
    Some(Heirloom { start: vma.start, end: vma.end, flags: vma.flags & KIND, file })
}

/// What process `pid` of the running job hands down to `children`; of those above it in the frame
/// it has `above`.
///
/// # Errors
/// When the process cannot be looked at: it is gone, or executes a program.
pub fn choose(pid: i32, children: &[i32], above: &[Heirloom]) -> io::Result<Chosen> {
    let own = Look::at(pid)?;
    let children = children.iter().take(CHILDREN).filter_map(|child| Look::at(*child).ok());
    let children: Vec<Look> = children.collect();
    let mut chosen = Chosen::default();
    chosen.place(above, pid, &own.common, &own, &[]);
    let mapped: Ranges = own.vmas.iter().map(|vma| (vma.start, vma.end)).collect();
    for (child, pages) in lost(&own, &children) {
        chosen.place(above, child.pid, &within(&pages, &mapped), &own, &[]);
        chosen.place(above, child.pid, &without(&pages, &mapped), child, &mapped);
    }
    chosen.mappings = adjoined(chosen.mappings);
    Ok(chosen)
}

impl Chosen {
    /// Takes pages that are read in process `from`, and the mappings of `of` that they lie in, as
    /// far as these are not taken by others.
    fn place(
        &mut self,
        above: &[Heirloom],
        from: i32,
        pages: &[(u64, u64)],
        of: &Look,
        taken: &[(u64, u64)],
    ) {
        let mut good = Vec::new();
        for vma in of.holding(pages) {
            let range = (vma.start, vma.end);
            let Some(new) = heirloom(of.pid, vma) else { continue };
            let known = || above.iter().chain(&self.mappings);
            if known().any(|known| known.holds(&new)) {
                good.push(range);
            } else if !known().any(|h| h.overlaps(range)) && within(&[range], taken).is_empty() {
                good.push(range);
                self.mappings.push(new);
            }
        }
        let pages = within(pages, &joined(good));
        if !pages.is_empty() {
            self.pages.push((from, pages));
        }
    }
}

/// Pages that two children may have in common while their parent has them no more: of the first
/// child that has each.
fn lost<'a>(own: &Look, children: &'a [Look]) -> Vec<(&'a Look, Ranges)> {
    let mut holders: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    for (n, child) in children.iter().enumerate() {
        for (start, end) in without(&child.common, &own.common) {
            for address in (start..end).step_by(PAGE as usize) {
                holders.entry(address).or_insert((n, 0)).1 += 1;
            }
        }
    }
    let mut all: Vec<(&Look, Ranges)> = children.iter().map(|look| (look, Vec::new())).collect();
    for (address, (first, _)) in holders.into_iter().filter(|(_, (_, count))| *count > 1) {
        push_range(&mut all[first].1, address, address + PAGE);
    }
    all.retain(|(_, pages)| !pages.is_empty());
    all
}

/// Neighbours that are one piece of memory become one mapping: protections, which divide it at
/// the source, come later.
fn adjoined(mut mappings: Vec<Heirloom>) -> Vec<Heirloom> {
    mappings.sort_unstable_by_key(|m| m.start);
    let mut all: Vec<Heirloom> = Vec::with_capacity(mappings.len());
    for new in mappings {
        match all.last_mut().filter(|last| last.end == new.start && last.goes_on_with(&new)) {
            Some(last) => last.end = new.end,
            None => all.push(new),
        }
    }
    all
}

impl Heirloom {
    /// Is `other` a part of it?
    fn holds(&self, other: &Self) -> bool {
        let file = other.file.as_ref().map(|(id, offset)| (id, *offset));
        self.is_like(other.start, other.flags, file) && other.end <= self.end
    }

    fn goes_on_with(&self, next: &Self) -> bool {
        let file = match (&self.file, &next.file) {
            (None, None) => true,
            (Some((own, at)), Some((other, offset))) => own == other && at + self.len() == *offset,
            _ => false,
        };
        file && self.flags == next.flags && !self.flags.contains(VmFlags::GROWS_DOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(start: u64, end: u64) -> Heirloom {
        Heirloom { start: start * PAGE, end: end * PAGE, flags: VmFlags::empty(), file: None }
    }

    #[test]
    fn neighbours_become_one() {
        let all = vec![anonymous(7, 9), anonymous(1, 3), anonymous(3, 4), anonymous(5, 7)];
        assert_eq!(adjoined(all), [anonymous(1, 4), anonymous(5, 9)]);
        let down = Heirloom { flags: VmFlags::GROWS_DOWN, ..anonymous(3, 4) };
        assert_eq!(adjoined(vec![anonymous(1, 3), down]).len(), 2);
    }

    #[test]
    fn pages_that_a_parent_has_lost_are_found() {
        let look = |pid, common| Look { pid, vmas: Vec::new(), common };
        let own = look(1, vec![(0, 2 * PAGE)]);
        let children = [
            look(2, vec![(0, 4 * PAGE)]),
            look(3, vec![(3 * PAGE, 6 * PAGE)]),
            look(4, vec![(0, PAGE), (5 * PAGE, 6 * PAGE)]),
        ];
        let found: Vec<(i32, Ranges)> =
            lost(&own, &children).into_iter().map(|(look, pages)| (look.pid, pages)).collect();
        let want = [(2, vec![(3 * PAGE, 4 * PAGE)]), (3, vec![(5 * PAGE, 6 * PAGE)])];
        assert_eq!(found, want);
    }
}
