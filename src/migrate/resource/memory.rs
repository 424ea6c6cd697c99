//! Mappings: what stands behind each, and which pages travel.
//!
//! Pages themselves are not in the image: they are read from the frozen process while they
//! are sent ([`read_pages`]), in the order of [`MmImage::data`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use procfs::process::Stat;
use procfs::FromRead;
use serde::{Deserialize, Serialize};

use super::aio::{self, is_ring, Ring, Submitted};
use super::ipc::choose::is_segment;
use super::{blocker, raw, PartError};
use crate::capabilities::Area::{Descriptors, Ipc, Memory, Processes};
use crate::capabilities::{Capability, Support};
use crate::control::Finding;
use crate::tracer::memory::{self, PageMap, Pages, VmFlags, Vma};

/// What stands behind a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory, perhaps named (PR_SET_VMA_ANON_NAME).
    Anonymous { name: Option<String> },
    /// A file of [`MmImage::files`].
    File(u32),
    /// An object without a name on a file system: MAP_SHARED | MAP_ANONYMOUS, a memfd or a
    /// deleted file; an index into [`MmImage::objects`].
    Object(u32),
    /// The ring of an AIO context, of [`MmImage::rings`].
    Ring(u32),
    /// `[vdso]`, `[vvar]`, `[vvar_vclock]`: made by the kernel.
    Special(String),
}

/// One mapping as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub prot: i32,
    pub shared: bool,
    pub offset: u64,
    pub flags: VmFlags,
    pub backing: Backing,
    /// Guard regions within it.
    pub guards: Vec<(u64, u64)>,
    /// Pages of it will be sent.
    pub has_data: bool,
}

impl Mapping {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true for a mapping of a process.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// A file by which two nodes agree on its content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    pub path: String,
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
}

impl FileId {
    /// Of the file at `path`.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn of(path: &str) -> io::Result<Self> {
        Ok(Self::from_metadata(path, &fs::metadata(path)?))
    }

    /// Of a file whose metadata is known.
    #[must_use]
    pub fn from_metadata(path: &str, m: &fs::Metadata) -> Self {
        Self {
            path: path.to_owned(),
            dev: m.dev(),
            ino: m.ino(),
            size: m.size(),
            mtime_ns: m.mtime() * 1_000_000_000 + m.mtime_nsec(),
        }
    }
}

/// Memory that is no file of the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedObject {
    /// Device (as stat(2) gives it) and inode: finds the descriptor of the same object.
    pub dev: u64,
    pub ino: u64,
    /// Name of the memfd, for an object that no descriptor holds.
    pub name: String,
    /// Bytes that its mappings need.
    pub size: u64,
    /// MAP_SHARED | MAP_ANONYMOUS.
    pub anonymous: bool,
    /// A descriptor holds it, and its content travels with that.
    pub held: bool,
    /// It is the System V segment with this identifier, and the device is none.
    pub segment: Option<i32>,
}

/// Addresses that PR_SET_MM_MAP gives back (`struct prctl_mm_map`), in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// The address space without its pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmImage {
    pub mappings: Vec<Mapping>,
    pub files: Vec<FileId>,
    pub objects: Vec<SharedObject>,
    pub rings: Vec<Ring>,
    pub layout: Layout,
    /// What is yet to be mapped is locked (mlockall(2), MCL_FUTURE); true: only as it is touched
    /// (MCL_ONFAULT).
    pub locks_future: Option<bool>,
    pub auxv: Vec<u8>,
    /// The executable, an index into `files`.
    pub exe: u32,
    /// The text of `[vdso]`: the target compares it with its own.
    pub vdso: Vec<u8>,
    /// Ranges whose pages follow, in the order in which they are sent.
    pub data: Vec<(u64, u64)>,
}

/// Where addresses of programs end (x86-64, four levels of page tables).
const ADDRESSES: u64 = 1 << 47;

/// A range of whole pages that a program can have.
fn is_range(start: u64, end: u64) -> bool {
    start < end && end <= ADDRESSES && (start | end).is_multiple_of(memory::PAGE)
}

impl MmImage {
    /// Checks indices, and that no sum of addresses or sizes can overflow.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        /// AT_VECTOR_SIZE of the kernel is far below.
        const MOST_AUXV: usize = 4096;
        let within = |index: u32, len: usize| (index as usize) < len;
        if !within(self.exe, self.files.len()) {
            return Err("an executable that is no file");
        }
        if self.auxv.len() > MOST_AUXV {
            return Err("an auxiliary vector that is too long");
        }
        for m in &self.mappings {
            if !is_range(m.start, m.end) || m.offset > u64::MAX / 2 {
                return Err("a mapping of no range");
            }
            let outside = |&(s, e): &(u64, u64)| !is_range(s, e) || s < m.start || e > m.end;
            if m.guards.iter().any(outside) {
                return Err("a guard region outside of its mapping");
            }
            match m.backing {
                Backing::File(index) if !within(index, self.files.len()) => {
                    return Err("a mapping of no file");
                }
                Backing::Object(index) if !within(index, self.objects.len()) => {
                    return Err("a mapping of no object");
                }
                Backing::Ring(index) => {
                    let ring = self.rings.get(index as usize).ok_or("a mapping of no ring")?;
                    ring.check(m.len())?;
                }
                _ => {}
            }
        }
        if self.objects.iter().any(|o| o.size > ADDRESSES) {
            return Err("an object that is too large");
        }
        if !self.data.iter().all(|&(start, end)| is_range(start, end)) {
            return Err("data of no range");
        }
        Ok(())
    }

    /// Rings of AIO contexts, with their addresses.
    pub fn rings(&self) -> impl Iterator<Item = (u64, &Ring)> + '_ {
        self.mappings.iter().filter_map(|m| match m.backing {
            Backing::Ring(index) => Some((m.start, self.rings.get(index as usize)?)),
            _ => None,
        })
    }

    /// Bytes of all pages that follow.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.data.iter().map(|(s, e)| e - s).sum()
    }
}

/// The mapping is made by the kernel and not by the program.
#[must_use]
pub fn is_special(vma: &Vma) -> bool {
    matches!(vma.path.as_str(), "[vdso]" | "[vvar]" | "[vvar_vclock]" | "[vsyscall]" | "[uprobes]")
}

fn object_name(vma: &Vma) -> String {
    let name = if vma.path.is_empty() { "anonymous" } else { &vma.path };
    format!("mapping {:x}-{:x} {name}", vma.start, vma.end)
}

fn refuse(vma: &Vma, cause: &str, remedy: &str) -> Finding {
    blocker("VOS-MAPPING", object_name(vma), cause, remedy)
}

/// Rows of the table of what moves.
pub const CAPABILITIES: &[Capability] = &[
    Capability::moves(Memory, "mem-private", "private memory: content, protections, holes"),
    Capability::moves(Memory, "mem-forked", "private pages in common since fork(2), still once"),
    Capability::moves(Memory, "mem-shared", "shared anonymous memory, between processes too"),
    Capability::moves(Memory, "mem-file-private", "private mappings of files"),
    Capability::moves(Memory, "mem-file-shared", "shared mappings of files that both machines see"),
    Capability::moves(Memory, "mem-memfd", "mappings of memfds"),
    Capability::moves(Memory, "mem-deleted", "mappings of deleted files"),
    Capability::moves(Memory, "mem-stack", "stacks and guard pages, MAP_GROWSDOWN"),
    Capability::moves(Memory, "mem-heap", "the heap (brk(2)), arguments and environment"),
    Capability::moves(Memory, "mem-advice", "advice: huge pages, no fork, no dump"),
    Capability::moves(Memory, "mem-locked", "locked memory"),
    Capability::moves(Memory, "mem-lock-future", "memory locked as it is mapped (mlockall(2))"),
    Capability::refused(
        Memory,
        "mem-outside",
        "memory without a name that processes outside of the job map",
        "VOS-SHARED-MEMORY",
    ),
    Capability::refused(Memory, "mem-hugetlb", "memory of the hugetlb pool", "VOS-MAPPING"),
    Capability::refused(Memory, "mem-device", "memory of devices", "VOS-MAPPING"),
    Capability::refused(Memory, "mem-pkey", "memory under a protection key", "VOS-MAPPING"),
    Capability::refused(Memory, "mem-sealed", "sealed mappings (mseal(2))", "VOS-MAPPING"),
    Capability::refused(Memory, "mem-shadow-stack", "user shadow stacks", "VOS-MAPPING"),
    Capability::refused(Memory, "mem-uprobe", "uprobes set in the program", "VOS-MAPPING"),
    Capability::refused(
        Processes,
        "exe-gone",
        "an executable that has been removed or replaced",
        "VOS-EXE",
    ),
    Capability::moves(
        Descriptors,
        "aio",
        "AIO contexts (io_setup(2)) in which nothing is under way",
    )
    .attached(Support::Refused("VOS-AIO")),
    Capability::refused(
        Descriptors,
        "aio-busy",
        "AIO contexts whose requests are under way for longer than a second",
        "VOS-AIO-BUSY",
    )
    .attached(Support::Refused("VOS-AIO")),
    Capability::moves(Ipc, "sysv-shm", "System V shared memory"),
];

/// Shared memory that no name leads to: of which process of the job, and what maps(5) calls it,
/// by device and inode.
pub type Nameless = BTreeMap<((u32, u32), u64), (i32, String)>;

/// The [`Nameless`] memory among these mappings. System V segments have ids and are none.
pub fn nameless(maps: &[Vma]) -> impl Iterator<Item = (((u32, u32), u64), String)> + '_ {
    let is_nameless =
        |vma: &&Vma| vma.shared && vma.path.ends_with(" (deleted)") && !is_of_kernel(&vma.path);
    maps.iter().filter(is_nameless).map(|vma| ((vma.dev, vma.ino), vma.path.clone()))
}

/// System V segments have ids; rings of AIO belong to the kernel.
fn is_of_kernel(path: &str) -> bool {
    path.starts_with("/SYSV") || is_ring(path)
}

/// Why memory that process `outsider` maps, too, does not move.
#[must_use]
pub fn shared_outside((pid, name): &(i32, String), outsider: i32) -> Finding {
    blocker(
        "VOS-SHARED-MEMORY",
        format!("process {pid}, {name}"),
        &format!("process {outsider}, which is none of the job's, maps this memory, too"),
        "start the program with vosrun, so that all its processes belong to the job",
    )
}

/// Why a mapping cannot move, if so.
#[must_use]
pub fn check_vma(vma: &Vma) -> Option<Finding> {
    let f = vma.flags;
    let cause = if f.contains(VmFlags::HUGETLB) {
        "memory from the hugetlb pool does not move"
    } else if f.contains(VmFlags::SHADOW_STACK) {
        "user shadow stacks do not move"
    } else if f.contains(VmFlags::UFFD) {
        "the program handles faults of this memory itself (userfaultfd)"
    } else if vma.pkey != 0 && !is_execute_only(vma) {
        "it is under a protection key (pkeys)"
    } else if is_special(vma) {
        return (vma.path == "[uprobes]").then(|| {
            refuse(vma, "a uprobe is set in the program", "take the probe away (perf, bpftrace)")
        });
    } else if f.contains(VmFlags::SEALED) {
        "it is sealed (mseal)"
    } else if f.intersects(VmFlags::IO | VmFlags::PFN) {
        "it is memory of a device"
    } else if vma.path.starts_with("anon_inode:") {
        "it belongs to a kernel object that does not move"
    } else if vma.path.starts_with("/dev/") && !is_memory_file(&vma.path) {
        "it is mapped from a device"
    } else {
        return None;
    };
    Some(refuse(vma, cause, "let the program give it back, or let it finish"))
}

/// May it only be executed? mprotect(2) puts such memory under a key which no thread may read by, and
/// which the program cannot name (`execute_only_pkey`, arch/x86/mm/pkeys.c); it does so again.
fn is_execute_only(vma: &Vma) -> bool {
    vma.prot == libc::PROT_EXEC
}

fn is_memory_file(path: &str) -> bool {
    path.starts_with("/dev/zero") || path.starts_with("/dev/shm/")
}

/// Collects what stands behind the mappings.
#[derive(Default)]
struct Backings<'a> {
    /// Objects that descriptors hold: device and inode.
    held: &'a [(u64, u64)],
    files: Vec<FileId>,
    objects: Vec<SharedObject>,
    rings: Vec<Ring>,
    /// Files already asked: path and inode to index.
    known: BTreeMap<(String, u64), u32>,
}

impl Backings<'_> {
    fn file(&mut self, pid: i32, path: &str, ino: u64) -> Option<u32> {
        let key = (path.to_owned(), ino);
        if let Some(&index) = self.known.get(&key) {
            return Some(index);
        }
        let m = fs::metadata(format!("/proc/{pid}/root{path}")).ok()?;
        if m.ino() != ino || !m.is_file() {
            return None;
        }
        let index = self.files.len() as u32;
        self.files.push(FileId::from_metadata(path, &m));
        self.known.insert(key, index);
        Some(index)
    }

    fn holds(&self, vma: &Vma) -> bool {
        !is_segment(vma) && self.held.contains(&key(vma))
    }

    fn object(&mut self, vma: &Vma) -> u32 {
        let (dev, ino) = key(vma);
        let size = vma.offset + vma.len();
        let at = self.objects.iter().position(|o| (o.dev, o.ino) == (dev, ino));
        let at = at.unwrap_or_else(|| {
            let name = vma.path.trim_end_matches(" (deleted)");
            self.objects.push(SharedObject {
                dev,
                ino,
                name: name.strip_prefix("/memfd:").unwrap_or(name).to_owned(),
                size,
                anonymous: name == "/dev/zero",
                held: self.holds(vma),
                segment: is_segment(vma).then_some(vma.ino as i32),
            });
            self.objects.len() - 1
        });
        self.objects[at].size = self.objects[at].size.max(size);
        at as u32
    }

    fn ring(&mut self, ring: Ring) -> Backing {
        self.rings.push(ring);
        Backing::Ring(self.rings.len() as u32 - 1)
    }

    fn of(&mut self, pid: i32, vma: &Vma) -> Backing {
        if is_special(vma) {
            return Backing::Special(vma.path.clone());
        }
        if is_segment(vma) {
            return Backing::Object(self.object(vma));
        }
        let name = ["[anon:", "[anon_shmem:"].iter().find_map(|p| vma.path.strip_prefix(p));
        let name = name.map(|n| n.trim_end_matches(']').to_owned());
        let anonymous = vma.ino == 0 || (vma.path.starts_with("/dev/zero") && !vma.shared);
        if anonymous && !vma.shared {
            return Backing::Anonymous { name };
        }
        if let Some(file) = self.file(pid, &vma.path, vma.ino) {
            return Backing::File(file);
        }
        if vma.shared || self.holds(vma) {
            return Backing::Object(self.object(vma));
        }
        // A private mapping of a file that has no name any more: its pages travel as memory.
        Backing::Anonymous { name: None }
    }
}

/// Device and inode of what stands behind a mapping. Inodes of segments count for themselves.
fn key(vma: &Vma) -> (u64, u64) {
    const SEGMENTS: u64 = u64::MAX;
    let dev = if is_segment(vma) { SEGMENTS } else { libc::makedev(vma.dev.0, vma.dev.1) };
    (dev, vma.ino)
}

/// Captures the address space of a frozen process, but not its pages. `brk` is what brk(0)
/// answered inside; `held` are the objects (device, inode) behind its descriptors, whose
/// content travels with them; `submitted` is what its AIO contexts were asked for.
///
/// # Errors
/// The first mapping that cannot move, or what of /proc could not be read.
pub fn capture(
    pid: i32,
    brk: u64,
    held: &[(u64, u64)],
    submitted: &Submitted,
) -> Result<MmImage, PartError> {
    let io = |what: &'static str| {
        move |source| PartError::Io { what: format!("{what} of process {pid}"), source }
    };
    let mut vmas = memory::vmas(pid).map_err(io("smaps"))?;
    vmas.retain(|v| v.path != "[vsyscall]");
    if let Some(finding) = vmas.iter().find_map(check_vma) {
        return Err(PartError::Refused(Box::new(finding)));
    }
    let pagemap = PageMap::open(pid).map_err(io("pagemap"))?;
    let mut backings = Backings { held, ..Backings::default() };
    let exe = exe(pid, &mut backings)?;
    let mut known: Vec<(Backing, bool)> = Vec::with_capacity(vmas.len());
    for vma in &vmas {
        let backing = match is_ring(&vma.path) {
            true => backings.ring(aio::capture(pid, vma, submitted)?),
            false => backings.of(pid, vma),
        };
        known.push((backing, backings.holds(vma)));
    }
    let contents = contents(pid, &pagemap, &vmas, &known).map_err(io("pagemap"))?;
    let ranges: Vec<(u64, u64)> = vmas.iter().map(|vma| (vma.start, vma.end)).collect();
    let guards = pagemap.scan_each(&ranges, Pages::Guard).map_err(io("pagemap"))?;
    let mut mappings = Vec::with_capacity(vmas.len());
    let mut data = Vec::new();
    let found = known.into_iter().zip(contents).zip(guards);
    for (vma, (((backing, _), ranges), guards)) in vmas.iter().zip(found) {
        mappings.push(Mapping {
            start: vma.start,
            end: vma.end,
            prot: vma.prot,
            shared: vma.shared,
            offset: vma.offset,
            flags: vma.flags,
            backing,
            guards,
            has_data: !ranges.is_empty(),
        });
        data.extend(ranges);
    }
    let vdso = match memory::vdso(&vmas) {
        Some(v) => read_range(pid, v.start, v.end).map_err(io("vdso"))?,
        None => Vec::new(),
    };
    Ok(MmImage {
        locks_future: None,
        mappings,
        files: backings.files,
        objects: backings.objects,
        rings: backings.rings,
        layout: layout(pid, brk)?,
        auxv: memory::read_binary(&format!("/proc/{pid}/auxv")).map_err(io("auxv"))?,
        exe,
        vdso,
        data,
    })
}

fn exe(pid: i32, backings: &mut Backings) -> Result<u32, PartError> {
    let link = format!("/proc/{pid}/exe");
    let io = |source| PartError::Io { what: link.clone(), source };
    let path = fs::read_link(&link).map_err(io)?.to_string_lossy().into_owned();
    let ino = fs::metadata(&link).map_err(io)?.ino();
    let index = backings.file(pid, &path, ino);
    index.ok_or_else(|| PartError::Refused(Box::new(exe_is_gone(pid, &path))))
}

fn exe_is_gone(pid: i32, path: &str) -> Finding {
    blocker(
        "VOS-EXE",
        format!("process {pid} {path}"),
        "its executable has been removed or replaced",
        "start it again from the new file",
    )
}

/// The refusal of a process whose executable has not its name any more.
///
/// # Errors
/// When the process is gone.
pub fn check_exe(pid: i32) -> io::Result<Option<Finding>> {
    let link = format!("/proc/{pid}/exe");
    let mut path = fs::read_link(&link)?;
    loop {
        let ino = fs::metadata(&link)?.ino();
        let named = fs::metadata(format!("/proc/{pid}/root{}", path.display()));
        if named.is_ok_and(|m| m.ino() == ino && m.is_file()) {
            return Ok(None);
        }
        // It may execute another program meanwhile.
        let now = fs::read_link(&link)?;
        if now == path && fs::metadata(&link)?.ino() == ino {
            return Ok(Some(exe_is_gone(pid, &path.to_string_lossy())));
        }
        path = now;
    }
}

/// Which content of a mapping the target cannot get from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Nothing,
    /// Pages that are the process's own.
    Private,
    /// The object's pages that are in use may be mapped nowhere: all that can be read.
    Readable,
}

impl Content {
    fn of(vma: &Vma, backing: &Backing, held: bool) -> Self {
        match backing {
            Backing::Special(_) | Backing::Ring(_) => Self::Nothing,
            Backing::File(_) if vma.shared => Self::Nothing,
            Backing::File(_) => Self::Private,
            Backing::Object(_) if held && vma.shared => Self::Nothing,
            Backing::Object(_) if held => Self::Private,
            Backing::Anonymous { .. } if vma.ino == 0 => Self::Private,
            Backing::Anonymous { .. } | Backing::Object(_) => Self::Readable,
        }
    }
}

/// Ranges of each mapping whose [`Content`] has to be sent. The page table is asked once for
/// neighbours.
fn contents(
    pid: i32,
    pagemap: &PageMap,
    vmas: &[Vma],
    known: &[(Backing, bool)],
) -> io::Result<Vec<Vec<(u64, u64)>>> {
    let of = |(vma, (backing, held)): (&Vma, &(Backing, bool))| Content::of(vma, backing, *held);
    let wanted: Vec<Content> = vmas.iter().zip(known).map(of).collect();
    let mut all = Vec::with_capacity(vmas.len());
    for same in wanted.chunk_by(PartialEq::eq) {
        let run = &vmas[all.len()..][..same.len()];
        match same[0] {
            Content::Nothing => all.resize(all.len() + run.len(), Vec::new()),
            Content::Private => {
                let ranges: Vec<(u64, u64)> = run.iter().map(|vma| (vma.start, vma.end)).collect();
                all.extend(pagemap.scan_each(&ranges, Pages::Private)?);
            }
            Content::Readable => {
                for vma in run {
                    all.push(readable(pid, vma)?);
                }
            }
        }
    }
    Ok(all)
}

/// The part of a mapping before the end of its file: what can be read at all.
fn readable(pid: i32, vma: &Vma) -> io::Result<Vec<(u64, u64)>> {
    let (mut good, mut bad) = (vma.start, vma.end + memory::PAGE);
    let mut byte = [0];
    let mem = File::open(format!("/proc/{pid}/mem"))?;
    while bad - good > memory::PAGE {
        let middle = good + (bad - good) / 2 / memory::PAGE * memory::PAGE;
        if mem.read_at(&mut byte, middle - memory::PAGE).is_ok() {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(if good > vma.start { vec![(vma.start, good)] } else { Vec::new() })
}

fn layout(pid: i32, brk: u64) -> Result<Layout, PartError> {
    let failed = |source| PartError::Io { what: format!("stat of process {pid}"), source };
    let text = memory::read_record(&format!("/proc/{pid}/stat")).map_err(failed)?;
    let stat = Stat::from_read(text.as_bytes()).map_err(|e| failed(io::Error::other(e)))?;
    let get = |v: Option<u64>| v.unwrap_or(0);
    Ok(Layout {
        start_code: stat.startcode,
        end_code: stat.endcode,
        start_data: get(stat.start_data),
        end_data: get(stat.end_data),
        start_brk: get(stat.start_brk),
        brk,
        start_stack: stat.startstack,
        arg_start: get(stat.arg_start),
        arg_end: get(stat.arg_end),
        env_start: get(stat.env_start),
        env_end: get(stat.env_end),
    })
}

/// Reads one range of memory, readable by the process itself or not.
///
/// # Errors
/// When the kernel refuses.
pub fn read_range(pid: i32, start: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; (end - start) as usize];
    read_pages(pid, &[(start, end)], &mut buf)?;
    Ok(buf)
}

/// Reads ranges of pages into `buf`, one behind the other: process_vm_readv(2), and
/// `/proc/PID/mem` for memory that the process itself may not read (PROT_NONE).
///
/// # Errors
/// When the kernel refuses.
pub fn read_pages(pid: i32, ranges: &[(u64, u64)], buf: &mut [u8]) -> io::Result<()> {
    if raw::read_ranges(pid, ranges, buf).is_ok() {
        return Ok(());
    }
    read_common(pid, ranges, buf)
}

/// The same by `/proc/PID/mem` alone. process_vm_readv(2) would first give the process a copy of
/// each private page that it has in common with others (gup_must_unshare, mm/internal.h).
///
/// # Errors
/// When the kernel refuses.
pub fn read_common(pid: i32, ranges: &[(u64, u64)], buf: &mut [u8]) -> io::Result<()> {
    read_mem(&File::open(format!("/proc/{pid}/mem"))?, ranges, buf)
}

/// As [`read_common`], by an open `/proc/PID/mem`.
///
/// # Errors
/// When the kernel refuses.
pub fn read_mem(mem: &File, ranges: &[(u64, u64)], buf: &mut [u8]) -> io::Result<()> {
    let mut at = 0;
    for &(start, end) in ranges {
        let len = (end - start) as usize;
        mem.read_exact_at(&mut buf[at..at + len], start)?;
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_that_do_not_move() {
        let code = |path: &str, flags| {
            let path = path.to_owned();
            let (start, end, offset, dev, ino, pkey) = (0, 4096, 0, (0, 0), 0, 0);
            let (prot, shared) = (libc::PROT_READ, false);
            let vma = Vma { start, end, prot, shared, offset, dev, ino, path, flags, pkey };
            check_vma(&vma).map(|finding| finding.code)
        };
        let mapping = || Some("VOS-MAPPING".to_owned());
        assert_eq!(code("", VmFlags::SHADOW_STACK), mapping());
        assert_eq!(code("", VmFlags::HUGETLB), mapping());
        assert_eq!(code("/dev/mem", VmFlags::IO), mapping());
        assert_eq!(code("/dev/dri/card0", VmFlags::empty()), mapping());
        assert_eq!(code("[uprobes]", VmFlags::empty()), mapping());
        assert_eq!(code("[vdso]", VmFlags::empty()), None);
        assert_eq!(code("/dev/shm/x", VmFlags::empty()), None);
        assert_eq!(code("", VmFlags::empty()), None);
    }
}
