//! AIO contexts (io_setup(2)) in which nothing is under way.
//!
//! A context is known by the address of its ring, a mapping `/[aio]` in which the kernel puts an
//! event for each request that has ended. The ring does not tell what is under way. But the kernel
//! reserves a place in it for each request (`reqs_available`, fs/aio.c), so that less than a whole
//! ring of them is neither ended nor read: who has seen every io_submit(2) knows how many are under
//! way from where the ring's end is. Those of a program that was attached to nobody has seen.
//!
//! A new context has its end at the begin of its ring, and only requests move it: as many empty
//! ones are submitted as it takes. mremap(2) then gives the ring its old address, and the context
//! its old name (`aio_ring_mremap`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde::{Deserialize, Serialize};

use super::memory::{Backing, MmImage};
use super::{blocker, PartError};
use crate::control::Finding;
use crate::tracer::inject::{self, Arg, Program, Remote, Stub};
use crate::tracer::memory::{Vma, PAGE};

/// Bytes of `struct aio_ring` before its events, of `struct io_event` and of `struct iocb`
/// (fs/aio.c, linux/aio_abi.h).
const HEADER: usize = 32;
const EVENT: usize = 32;
const IOCB: usize = 64;
/// Where an iocb names its descriptor.
const FILDES: usize = 20;
/// AIO_RING_MAGIC of fs/aio.c.
const MAGIC: u32 = 0xa10a_10a1;
/// The code of the refusal of what is under way.
const BUSY: &str = "VOS-AIO-BUSY";
/// Where a ring has its head.
const HEAD: u64 = 8;

/// How many requests were submitted to contexts, all of which were seen: by host pid of the process
/// and address of the ring. Whole rounds of the ring do not count.
pub type Submitted = BTreeMap<(i32, u64), u64>;

/// Contexts, as in [`Submitted`], to which a thread submits something just now: what has ended is
/// not counted yet.
pub type Submitting = BTreeSet<(i32, u64)>;

/// A ring with its unread events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Places.
    nr: u32,
    /// The first unread event, and the place behind the last.
    head: u32,
    pub tail: u32,
    /// `struct io_event` of those that are unread.
    events: Vec<u8>,
}

/// Is it the ring of an AIO context?
#[must_use]
pub fn is_ring(path: &str) -> bool {
    path.starts_with("/[aio]")
}

/// What hinders the contexts of a process.
///
/// # Errors
/// When a ring cannot be read.
pub fn check(
    pid: i32,
    vmas: &[Vma],
    submitted: &Submitted,
    submitting: &Submitting,
) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for vma in vmas.iter().filter(|vma| is_ring(&vma.path)) {
        let header = read(pid, vma, 0, HEADER)?;
        let context = (pid, vma.start);
        let found = idle(&header, vma, submitted.get(&context)).err();
        findings.extend(found.filter(|f| f.code != BUSY || !submitting.contains(&context)));
    }
    Ok(findings)
}

/// Captures the ring of a frozen process.
///
/// # Errors
/// [`PartError::Refused`] when something is or may be under way in it.
pub fn capture(pid: i32, vma: &Vma, submitted: &Submitted) -> Result<Ring, PartError> {
    let failed = |source| PartError::Io { what: object(vma), source };
    let all = read(pid, vma, 0, (vma.end - vma.start) as usize).map_err(failed)?;
    let refused = |finding| PartError::Refused(Box::new(finding));
    let (nr, head, tail) = idle(&all, vma, submitted.get(&(pid, vma.start))).map_err(refused)?;
    let mut ring = Ring { nr, head, tail, events: Vec::new() };
    for (from, to) in ring.unread() {
        ring.events.extend_from_slice(&all[place(from)..place(to)]);
    }
    Ok(ring)
}

fn read(pid: i32, vma: &Vma, from: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    inject::read_exact(pid, vma.start + from, &mut bytes)?;
    Ok(bytes)
}

/// Offset of an event in its ring.
fn place(index: u32) -> usize {
    HEADER + index as usize * EVENT
}

/// Places of a ring of so many bytes.
fn places(len: u64) -> u64 {
    (len - HEADER as u64) / EVENT as u64
}

fn object(vma: &Vma) -> String {
    format!("AIO context {:x}", vma.start)
}

fn number(header: &[u8], index: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&header[index * 4..index * 4 + 4]);
    u32::from_le_bytes(word)
}

/// Places, head and tail of a ring in whose context nothing is under way.
fn idle(header: &[u8], vma: &Vma, submitted: Option<&u64>) -> Result<(u32, u32, u32), Finding> {
    let refuse = |code, cause: &str| {
        let remedy = "let the program destroy the context, or let it finish";
        Err(blocker(code, object(vma), cause, remedy))
    };
    let [nr, head, tail, magic] = [1, 2, 3, 4].map(|index| number(header, index));
    let whole = vma.offset == 0 && vma.shared && u64::from(nr) == places(vma.len());
    if magic != MAGIC || !whole || tail >= nr {
        return refuse("VOS-AIO", "its ring is not mapped as io_setup(2) has made it");
    }
    let Some(submitted) = submitted else {
        let cause = "requests may be under way in it: not all that were submitted have been seen";
        return refuse("VOS-AIO", cause);
    };
    match (submitted % u64::from(nr) + u64::from(nr) - u64::from(tail)) % u64::from(nr) {
        0 => Ok((nr, head % nr, tail)),
        under_way => {
            let requests = if under_way == 1 { "request is" } else { "requests are" };
            refuse(BUSY, &format!("{under_way} {requests} under way in it"))
        }
    }
}

impl Ring {
    /// Ranges of places with unread events, in their order.
    fn unread(&self) -> [(u32, u32); 2] {
        match self.head <= self.tail {
            true => [(self.head, self.tail), (0, 0)],
            false => [(self.head, self.nr), (0, self.tail)],
        }
    }

    /// Does it fit a mapping of so many bytes?
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, len: u64) -> Result<(), &'static str> {
        let within = self.head < self.nr && self.tail < self.nr;
        if u64::from(self.nr) != places(len) || !within {
            return Err("an AIO ring that does not fit its mapping");
        }
        let unread: u32 = self.unread().iter().map(|(from, to)| to - from).sum();
        match self.events.len() == unread as usize * EVENT {
            true => Ok(()),
            false => Err("an AIO ring without its events"),
        }
    }

    /// The least number of requests for which io_setup(2) makes a ring of so many pages: it takes
    /// the double and two (`ioctx_alloc`, `aio_setup_ring`).
    fn wanted(&self) -> u64 {
        let pages = (place(self.nr) as u64).div_ceil(PAGE);
        match pages {
            0 | 1 => 1,
            pages => (places((pages - 1) * PAGE) - 1) / 2,
        }
    }

    /// Requests that bring a new ring to this one's end, and its places for unread events with it.
    fn steps(&self) -> u64 {
        let round = if self.head > self.tail { self.nr } else { 0 };
        u64::from(round) + u64::from(self.tail)
    }
}

/// Makes the contexts of a new process anew, everything else being mapped. `take` gives free
/// addresses.
///
/// # Errors
/// The call that failed.
pub fn restore(
    remote: &mut Remote,
    stub: &Stub,
    image: &MmImage,
    mut take: impl FnMut(u64) -> Option<u64>,
) -> Result<(), PartError> {
    for m in &image.mappings {
        let Backing::Ring(index) = m.backing else { continue };
        let ring = image.rings.get(index as usize).ok_or(PartError::State("AIO rings"))?;
        let free = take(m.len()).ok_or(PartError::State("AIO rings"))?;
        let fd = make(remote, stub, ring, (m.start, m.len()), free)?;
        let filled = fill(remote, stub, ring, m.start, fd);
        let mut program = Program::default();
        program.call(libc::SYS_close, "close", &[Arg::Num(fd)]);
        if m.prot != libc::PROT_READ | libc::PROT_WRITE {
            let args = [m.start, m.len(), m.prot as u64].map(Arg::Num);
            program.call(libc::SYS_mprotect, "mprotect", &args);
        }
        let closed = remote.run(stub, program)?.all_ok();
        filled?;
        closed?;
    }
    Ok(())
}

/// An empty context at its address, and a descriptor that answers requests at once.
fn make(
    remote: &mut Remote,
    stub: &Stub,
    ring: &Ring,
    (start, len): (u64, u64),
    free: u64,
) -> Result<u64, PartError> {
    let mut program = Program::default();
    let at = program.data(&[0; 8]);
    let args = [Arg::Num(ring.wanted()), Arg::Data(at)];
    program.call(libc::SYS_io_setup, "io_setup", &args);
    let event = program.call(libc::SYS_eventfd2, "eventfd2", &[]);
    let outcome = remote.run(stub, program)?;
    outcome.all_ok()?;
    let (made, fd) = (inject::word(outcome.data(at), 0), outcome.get(event)?);
    let mut header = [0; HEADER];
    let failed = |source| PartError::Io { what: format!("AIO context {start:x}"), source };
    inject::read_exact(remote.tid(), made, &mut header).map_err(failed)?;
    if number(&header, 1) != ring.nr {
        // It has at least four places for each CPU.
        let text = format!("its ring has {} places here, not {}", number(&header, 1), ring.nr);
        return Err(failed(io::Error::other(text)));
    }
    let mut program = Program::default();
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    // The kernel may have chosen a place that overlaps the one that is wanted.
    for (from, to) in [(made, free), (free, start)] {
        let args = [from, len, len, flags, to].map(Arg::Num);
        program.call(libc::SYS_mremap, "mremap of an AIO ring", &args);
    }
    remote.run(stub, program)?.all_ok()?;
    Ok(fd)
}

/// Brings a new ring to where the old one was. The places of unread events stay reserved, those
/// before are given back as the head passes them.
fn fill(
    remote: &mut Remote,
    stub: &Stub,
    ring: &Ring,
    start: u64,
    fd: u64,
) -> Result<(), PartError> {
    /// At once.
    const MOST: u64 = 512;
    let what = || format!("AIO context {start:x}");
    let failed = |source| PartError::Io { what: what(), source };
    let pid = remote.tid();
    let write = |at, bytes: &[u8]| inject::write_all(pid, start + at, bytes).map_err(failed);
    let mut done = 0;
    while done < ring.steps() {
        let count = MOST.min(ring.steps() - done);
        let mut program = Program::default();
        let mut iocb = [0; IOCB];
        iocb[FILDES..FILDES + 4].copy_from_slice(&(fd as u32).to_le_bytes());
        let iocb = stub.data() + program.data(&iocb).offset();
        let list = Arg::Data(program.data(&iocb.to_le_bytes().repeat(count as usize)));
        let args = [Arg::Num(start), Arg::Num(count), list];
        let row = program.call(libc::SYS_io_submit, "io_submit", &args);
        done += remote.run(stub, program)?.get(row)?;
        let head = done.min(u64::from(ring.head)) as u32;
        write(HEAD, &head.to_le_bytes())?;
    }
    let mut events = &ring.events[..];
    for (from, to) in ring.unread() {
        let (now, rest) = events.split_at((to - from) as usize * EVENT);
        write(place(from) as u64, now)?;
        events = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracer::memory::VmFlags;

    fn vma() -> Vma {
        Vma {
            start: 0x7000_0000_0000,
            end: 0x7000_0000_1000,
            prot: libc::PROT_READ | libc::PROT_WRITE,
            shared: true,
            offset: 0,
            dev: (0, 19),
            ino: 7,
            path: "/[aio] (deleted)".into(),
            flags: VmFlags::empty(),
            pkey: 0,
        }
    }

    fn header(nr: u32, head: u32, tail: u32) -> Vec<u8> {
        [0, nr, head, tail, MAGIC, 1, 0, 32].iter().flat_map(|w: &u32| w.to_le_bytes()).collect()
    }

    #[test]
    fn what_is_under_way_is_counted() {
        let code = |nr, tail, submitted: Option<u64>| {
            idle(&header(nr, 3, tail), &vma(), submitted.as_ref()).map_err(|finding| finding.code)
        };
        let busy = || Err("VOS-AIO-BUSY".to_owned());
        assert_eq!(code(127, 0, Some(0)), Ok((127, 3, 0)));
        assert_eq!(code(127, 5, Some(127 * 9 + 5)), Ok((127, 3, 5)));
        assert_eq!(code(127, 5, Some(6)), busy());
        assert_eq!(code(127, 126, Some(127)), busy());
        // The end was seen before the return of the call.
        assert_eq!(code(127, 5, Some(4)), busy());
        assert_eq!(code(127, 5, None), Err("VOS-AIO".to_owned()));
        assert_eq!(code(255, 5, Some(5)), Err("VOS-AIO".to_owned()));
        assert_eq!(code(127, 127, Some(127)), Err("VOS-AIO".to_owned()));
    }

    #[test]
    fn rings_that_do_not_fit_are_refused() {
        let ring = |head, tail, events: usize| {
            Ring { nr: 127, head, tail, events: vec![0; events * EVENT] }.check(PAGE)
        };
        assert_eq!(ring(0, 0, 0), Ok(()));
        assert_eq!(ring(3, 5, 2), Ok(()));
        assert_eq!(ring(125, 3, 5), Ok(()));
        assert!(ring(3, 5, 3).is_err());
        assert!(ring(127, 5, 5).is_err());
        assert!(ring(3, 127, 124).is_err());
    }

    #[test]
    fn requests_for_a_ring_of_the_same_size() {
        for pages in 1..=600_u64 {
            let nr = places(pages * PAGE) as u32;
            let wanted = Ring { nr, head: 0, tail: 0, events: Vec::new() }.wanted();
            let bytes = |requests: u64| place(2 * requests as u32 + 2) as u64;
            assert_eq!(bytes(wanted).div_ceil(PAGE), pages, "{pages} pages");
            assert!(pages == 1 || bytes(wanted - 1).div_ceil(PAGE) < pages);
        }
    }
}
