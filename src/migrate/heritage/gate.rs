//! In a process of the frame, before it forks: it maps what it hands down, and waits for the pages.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::Heirloom;
use crate::migrate::raw;
use crate::migrate::skeleton::{await_growth, Word};
use crate::tracer::memory::VmFlags;

/// A mapping with the path of its file here, if it is known.
#[derive(Debug)]
pub(in crate::migrate) struct Place {
    pub heirloom: Heirloom,
    pub path: Option<String>,
}

/// What a process of the plan (by its node) hands down.
#[derive(Debug)]
pub(in crate::migrate) struct Gate {
    pub node: usize,
    pub places: Vec<Place>,
}

impl Gate {
    /// Maps everything, says so over `control`, and returns when the pages are in. What cannot be
    /// mapped is not handed down.
    pub fn pass(&self, control: BorrowedFd) -> io::Result<()> {
        // The supervisor writes the pages.
        raw::set_dumpable(true);
        let refused = (0..).zip(&self.places).filter(|(_, place)| place.map().is_err());
        let refused = refused.map(|(index, _)| index).collect();
        await_growth(control, &Word::Gate(self.node as u32, refused))
    }
}

impl Place {
    fn map(&self) -> io::Result<()> {
        let h = &self.heirloom;
        if is_below_stack(h) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let file = match (&h.file, &self.path) {
            (None, _) => None,
            (Some((_, offset)), Some(path)) => Some((File::open(path)?, *offset)),
            (Some(_), None) => return Err(io::ErrorKind::NotFound.into()),
        };
        let mut flags = 0;
        for (flag, of_mmap) in
            [(VmFlags::NO_RESERVE, libc::MAP_NORESERVE), (VmFlags::GROWS_DOWN, libc::MAP_GROWSDOWN)]
        {
            flags |= if h.flags.contains(flag) { of_mmap } else { 0 };
        }
        let file = file.as_ref().map(|(file, offset)| (file.as_fd(), *offset));
        raw::map_private(h.start, h.len(), flags, file)
    }
}

/// The stack of this process may have to grow where it lies.
fn is_below_stack(h: &Heirloom) -> bool {
    const ROOM: u64 = 16 << 20;
    let local = 0_u8;
    let stack = (&raw const local).addr() as u64;
    h.overlaps((stack.saturating_sub(ROOM), stack))
}
