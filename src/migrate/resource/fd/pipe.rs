//! Pipes and FIFOs (pipe(7), fifo(7)) with the bytes in flight.
//!
//! Every end is an object of its own; the ends of one pipe find each other by the inode they
//! had at the source. The first captured end carries the bytes, which tee(2) copies without
//! taking them. Packets (O_DIRECT) keep their boundaries.
//!
//! A pipe with a holder outside of the job is not for this module: [`outside_holders`] finds
//! it, and it is relayed. A FIFO with such a holder is refused.

use std::collections::hash_map::Entry;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::content::{reopen, OPEN_FLAGS};
use super::outside::each_link;
use super::regular::{has_its_name, Named, Sameness};
use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView, RestoreCx};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;
use crate::control::Finding;

pub(super) const NAME: &str = "pipe";

/// Largest packet, bytes (PIPE_BUF of pipe(7)).
const PACKET_MAX: usize = 4096;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// st_dev and st_ino at the source.
    id: (u64, u64),
    flags: i32,
    /// F_GETPIPE_SZ, bytes.
    capacity: i32,
    /// For a FIFO, its place.
    fifo: Option<Named>,
    /// The bytes in flight, one element per packet, or all in one. Only one end has them.
    content: Vec<Vec<u8>>,
    /// The elements are packets.
    packets: bool,
}

pub(super) struct Pipe;

impl FdKind for Pipe {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Descriptors,
                    "pipes",
                    "pipes in the job: bytes, packets, capacity",
                ),
                Capability::moves(Descriptors, "fifos", "FIFOs that only the job has open"),
                Capability::refused(
                    Descriptors,
                    "fifo-shared",
                    "FIFOs that other programs have open",
                    "VOS-FIFO",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.file_type() == libc::S_IFIFO
    }

    fn check(&self, view: &FdView, cx: &dyn CaptureCx) -> Vec<Finding> {
        // The content of a running job's pipe says nothing about the move.
        match fifo(view, cx) {
            Err(FdError::Refused(finding)) => vec![*finding],
            _ => Vec::new(),
        }
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let fifo = fifo(view, cx)?;
        let fd = cx.dup(view).map_err(view.failed("duplicate"))?;
        let capacity = raw::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ, 0);
        let capacity = capacity.map_err(view.failed("ask for the capacity"))?;
        let ends: Vec<&FdView> = cx.all().iter().filter(|other| same_pipe(view, other)).collect();
        let carrier = ends.first().is_none_or(|v| (v.host_pid, v.fd) == (view.host_pid, view.fd));
        let content = if carrier { content(view, &ends, capacity, cx)? } else { Vec::new() };
        let packets = content.len() > 1 || ends.iter().any(|v| v.flags & libc::O_DIRECT != 0);
        if packets && content.iter().any(|packet| packet.len() > PACKET_MAX) {
            let cause = "it holds packets and a stream of bytes at once";
            return Err(view.refuse("VOS-PIPE", cause, "move again when the pipe has been read"));
        }
        let id = (view.dev, view.ino);
        encode(&State { id, flags: view.flags, capacity, fifo, content, packets })
    }

    fn restore(
        &self,
        _object: u32,
        state: &[u8],
        cx: &mut dyn RestoreCx,
    ) -> Result<OwnedFd, FdError> {
        let state: State = decode(NAME, state)?;
        let ends = match cx.shared().pipes.entry(state.id) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(slot) => slot.insert(Ends::make(&state)?),
        };
        ends.fill(&state)?;
        ends.take(state.flags)
    }
}

fn same_pipe(a: &FdView, b: &FdView) -> bool {
    (a.dev, a.ino, libc::S_IFIFO) == (b.dev, b.ino, b.file_type()) && b.flags & libc::O_PATH == 0
}

fn reads(view: &FdView) -> bool {
    view.flags & libc::O_ACCMODE != libc::O_WRONLY
}

/// The place of a FIFO; refuses one that others use or that has no name.
fn fifo(view: &FdView, cx: &dyn CaptureCx) -> Result<Option<Named>, FdError> {
    if !view.link.starts_with('/') {
        return Ok(None);
    }
    let refuse = |cause: &str| {
        let remedy = "run both ends of the FIFO in one job, or use a pipe";
        Err(view.refuse("VOS-FIFO", cause, remedy))
    };
    if !has_its_name(view) {
        return refuse("the FIFO has lost its name");
    }
    let outside = cx.outside().map_err(view.failed("look for other users"))?;
    if !outside.named(&view.link).is_empty() {
        return refuse("a process outside of the job has the FIFO open");
    }
    Named::read(view).map(Some).map_err(view.failed("examine"))
}

/// The bytes in flight. Without a reader they are lost anyway.
fn content(
    view: &FdView,
    ends: &[&FdView],
    capacity: i32,
    cx: &dyn CaptureCx,
) -> Result<Vec<Vec<u8>>, FdError> {
    let Some(reader) = ends.iter().find(|end| reads(end)) else { return Ok(Vec::new()) };
    let fd = cx.dup(reader).map_err(reader.failed("duplicate"))?;
    let (wanted, packets) = peek(fd.as_raw_fd(), capacity).map_err(view.failed("copy content"))?;
    let got: usize = packets.iter().map(Vec::len).sum();
    if got == wanted {
        return Ok(packets);
    }
    let cause = format!("only {got} of its {wanted} bytes in flight could be copied");
    let remedy = "raise fs.pipe-user-pages-soft, or move again when the pipe has been read";
    Err(view.refuse("VOS-PIPE", cause, remedy))
}

/// Bytes in flight, and a copy of them as far as it could be made.
fn peek(reader: RawFd, capacity: i32) -> io::Result<(usize, Vec<Vec<u8>>)> {
    let wanted = raw::readable_bytes(reader)?;
    if wanted == 0 {
        return Ok((0, Vec::new()));
    }
    let (mut from, to) = io::pipe()?;
    // Beyond the limits of pipe(7) the scratch pipe stays smaller, and may well suffice.
    let _ = raw::fcntl(to.as_raw_fd(), libc::F_SETPIPE_SZ, capacity);
    let mut left = raw::tee(reader, to.as_raw_fd(), wanted)?;
    let mut packets = Vec::new();
    while left > 0 {
        let mut packet = vec![0; left];
        let n = from.read(&mut packet)?;
        packet.truncate(n);
        packets.push(packet);
        left = raw::readable_bytes(from.as_raw_fd())?;
    }
    Ok((wanted, packets))
}

/// Both ends of a pipe while its objects are made; the first object of each kind gets the
/// description that pipe(2) made, the others one of their own.
#[derive(Debug)]
pub(super) struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
    reader_used: bool,
    writer_used: bool,
    /// The pipe is the very one of the source, content and all.
    kept: bool,
}

impl Ends {
    fn make(state: &State) -> Result<Self, FdError> {
        let mut ends = match &state.fifo {
            Some(named) => Self::open(named)?,
            None => {
                let (reader, writer) = io::pipe().map_err(failed("make a pipe"))?;
                Self::new(reader.into(), writer.into())
            }
        };
        let writer = ends.writer.as_raw_fd();
        // A smaller pipe will do if the limits of pipe(7) ask for it.
        if !ends.kept && raw::fcntl(writer, libc::F_GETPIPE_SZ, 0).ok() != Some(state.capacity) {
            let _ = raw::fcntl(writer, libc::F_SETPIPE_SZ, state.capacity);
        }
        ends.reader_used |= state.fifo.is_some();
        ends.writer_used |= state.fifo.is_some();
        Ok(ends)
    }

    fn new(reader: OwnedFd, writer: OwnedFd) -> Self {
        Self { reader, writer, reader_used: false, writer_used: false, kept: false }
    }

    /// Opens a FIFO so that nothing waits for the other end.
    fn open(named: &Named) -> Result<Self, FdError> {
        let both = Named { flags: libc::O_RDWR | libc::O_NONBLOCK, pos: 0, ..named.clone() };
        let (reader, sameness) = both.open(0)?;
        let writer = reopen(reader.as_raw_fd(), libc::O_WRONLY | libc::O_NONBLOCK, 0)?;
        Ok(Self { kept: sameness == Sameness::SameObject, ..Self::new(reader, writer) })
    }

    fn fill(&self, state: &State) -> Result<(), FdError> {
        if state.content.is_empty() || self.kept {
            return Ok(());
        }
        let tried = || failed(format!("put back the bytes in flight of pipe {}", state.id.1));
        let mode = libc::O_NONBLOCK | if state.packets { libc::O_DIRECT } else { 0 };
        let writer = self.writer.as_raw_fd();
        let flags = raw::fcntl(writer, libc::F_GETFL, 0).map_err(tried())?;
        raw::fcntl(writer, libc::F_SETFL, flags | mode).map_err(tried())?;
        let mut file = File::from(self.writer.try_clone().map_err(tried())?);
        for packet in &state.content {
            file.write_all(packet).map_err(tried())?;
        }
        raw::fcntl(writer, libc::F_SETFL, flags).map(drop).map_err(tried())
    }

    fn take(&mut self, flags: i32) -> Result<OwnedFd, FdError> {
        let (end, used) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (&self.reader, &mut self.reader_used),
            libc::O_WRONLY => (&self.writer, &mut self.writer_used),
            _ => return reopen(self.reader.as_raw_fd(), flags & OPEN_FLAGS, 0),
        };
        if std::mem::replace(used, true) {
            return reopen(end.as_raw_fd(), flags & OPEN_FLAGS, 0);
        }
        end.try_clone().map_err(failed("duplicate a pipe end"))
    }
}

/// Which of the pipes or sockets (`kind`) with these `inodes` (the number in `pipe:[…]`) are open
/// in a process that is not among `job_pids`? Looks at all of /proc, so do it before the freeze. Processes of other
/// users, whose descriptors cannot be seen, are passed over.
///
/// # Errors
/// When /proc cannot be read.
pub fn outside_holders(kind: &str, inodes: &[u64], job_pids: &[i32]) -> io::Result<HashSet<u64>> {
    let wanted: HashSet<u64> = inodes.iter().copied().collect();
    let mut found = HashSet::new();
    let start = format!("{kind}:[");
    if wanted.is_empty() {
        return Ok(found);
    }
    each_link(job_pids, |_, _, link| {
        let inode = link.to_str().and_then(|l| l.strip_prefix(&start)?.strip_suffix(']'));
        found.extend(inode.and_then(|n| n.parse().ok()).filter(|n| wanted.contains(n)));
        found.len() == wanted.len()
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter};
    use std::process::{Command, Stdio};

    use super::super::testing::{proc_self, Here, Restored};
    use super::super::Shared;
    use super::*;

    /// Restores objects of one pipe in this order, as `Making::make` does.
    fn restored(here: &Here, fds: &[&dyn AsRawFd]) -> Vec<File> {
        let objects: Vec<_> = fds.iter().map(|fd| here.capture(*fd)).collect();
        let mut cx = Restored::default();
        let made = (0..).zip(&objects).map(|(i, o)| cx.restore(o, i).into()).collect();
        *cx.shared() = Shared::default();
        made
    }

    fn flags(fd: &dyn AsRawFd) -> i32 {
        raw::fcntl(fd.as_raw_fd(), libc::F_GETFL, 0).expect("flags")
    }

    #[test]
    fn bytes_capacity_flags_and_end_of_file_come_back() {
        let (mut reader, mut writer) = io::pipe().expect("pipe");
        raw::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 18).expect("capacity");
        raw::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK).expect("flags");
        let text: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        writer.write_all(b"gone").expect("write");
        reader.read_exact(&mut [0; 4]).expect("read");
        writer.write_all(&text).expect("write");
        let here = Here::of(&[&reader, &writer]);
        for fds in [[&reader as &dyn AsRawFd, &writer], [&writer, &reader]] {
            let mut made = restored(&here, &fds);
            let capacity = raw::fcntl(made[0].as_raw_fd(), libc::F_GETPIPE_SZ, 0).ok();
            assert_eq!(capacity, Some(1 << 18));
            assert_eq!((flags(&made[0]), flags(&made[1])), (flags(fds[0]), flags(fds[1])));
            let reads = flags(fds[0]) & libc::O_ACCMODE == libc::O_RDONLY;
            let (out, mut into) = (made.remove(usize::from(!reads)), made.remove(0));
            into.write_all(b"end").expect("write");
            drop(into);
            let mut all = Vec::new();
            (&out).read_to_end(&mut all).expect("read to the end of file");
            assert!(all.strip_suffix(b"end") == Some(&text[..]));
        }
        assert_eq!(raw::readable_bytes(reader.as_raw_fd()).expect("FIONREAD"), text.len());
    }

    #[test]
    fn a_full_pipe_of_small_writes() {
        let (reader, writer) = io::pipe().expect("pipe");
        raw::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK).expect("flags");
        let mut written = 0;
        while let Ok(n) = (&writer).write(&[7; 3000]) {
            written += n;
        }
        let made = restored(&Here::of(&[&reader, &writer]), &[&reader, &writer]);
        assert_eq!(raw::readable_bytes(made[0].as_raw_fd()).expect("FIONREAD"), written);
    }

    fn packets() -> (PipeReader, PipeWriter) {
        let (reader, writer) = io::pipe().expect("pipe");
        raw::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_DIRECT).expect("packet mode");
        (reader, writer)
    }

    #[test]
    fn packets_keep_their_boundaries() {
        let (reader, mut writer) = packets();
        for packet in [&b"one"[..], b"three", &[b'x'; 4096]] {
            writer.write_all(packet).expect("write");
        }
        let made = restored(&Here::of(&[&reader, &writer]), &[&reader, &writer]);
        assert_ne!(flags(&made[1]) & libc::O_DIRECT, 0);
        let mut buf = [0; 8192];
        let sizes: Vec<usize> = (0..3).map(|_| (&made[0]).read(&mut buf).expect("read")).collect();
        assert_eq!(sizes, [3, 5, 4096]);
    }

    #[test]
    fn several_descriptions_of_one_end_stay_one_pipe() {
        let (reader, mut writer) = io::pipe().expect("pipe");
        let open = |read, write| {
            File::options().read(read).write(write).open(proc_self(&reader)).expect("open")
        };
        let (second, both) = (open(true, false), open(true, true));
        writer.write_all(b"ab").expect("write");
        let fds: [&dyn AsRawFd; 4] = [&second, &both, &writer, &reader];
        let made = restored(&Here::of(&fds), &fds);
        (&made[1]).write_all(b"cd").expect("write");
        (&made[2]).write_all(b"ef").expect("write");
        let mut text = [0; 2];
        for (fd, want) in [(0, b"ab"), (1, b"cd"), (3, b"ef")] {
            (&made[fd]).read_exact(&mut text).expect("read");
            assert_eq!(&text, want);
        }
    }

    #[test]
    fn a_lone_reader_gets_the_rest_and_the_end() {
        let (reader, mut writer) = io::pipe().expect("pipe");
        writer.write_all(b"rest").expect("write");
        drop(writer);
        let made = restored(&Here::of(&[&reader]), &[&reader]);
        let mut text = String::new();
        (&made[0]).read_to_string(&mut text).expect("read to the end of file");
        assert_eq!(text, "rest");
    }

    fn fifo() -> (tempfile::TempDir, std::path::PathBuf, File) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let file = File::options().read(true).write(true).open(&path).expect("open");
        (dir, path, file)
    }

    #[test]
    fn a_fifo_on_the_same_machine_keeps_its_bytes_once() {
        let (_dir, _path, file) = fifo();
        (&file).write_all(b"once").expect("write");
        let made = restored(&Here::of(&[&file]), &[&file]);
        assert_eq!(raw::readable_bytes(made[0].as_raw_fd()).expect("FIONREAD"), 4);
    }

    #[test]
    fn a_fifo_at_another_machine_gets_the_bytes() {
        let (_dir, path, file) = fifo();
        (&file).write_all(b"bytes").expect("write");
        let mut object = Here::of(&[&file]).capture(&file);
        let mut state: State = decode(NAME, &object.state).expect("state");
        state.fifo.as_mut().expect("place").identity.boot = "another".into();
        object.state = encode(&state).expect("state");
        std::fs::remove_file(&path).expect("unlink");
        assert!(Restored::default().try_restore(&object, 0).is_err());
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let copy = Restored::default().restore(&object, 0);
        assert_eq!(raw::readable_bytes(copy.as_raw_fd()).expect("FIONREAD"), 5);
    }

    #[test]
    fn holders_outside_are_found() {
        let (reader, writer) = io::pipe().expect("pipe");
        let (inside, _writer) = io::pipe().expect("pipe");
        let (_dir, _path, file) = fifo();
        let here = Here::of(&[&reader, &inside, &file]);
        let inodes = [here.view(&reader).ino, here.view(&inside).ino];
        let mut child = Command::new("cat")
            .stdin(reader.try_clone().expect("dup"))
            .stdout(Stdio::from(file.try_clone().expect("dup")))
            .spawn()
            .expect("cat");
        let found = outside_holders("pipe", &inodes, &here.job_pids()).expect("scan");
        let code = here.refusal(&file);
        drop(writer);
        child.wait().expect("wait");
        assert_eq!(found, HashSet::from([inodes[0]]));
        assert_eq!(code, "VOS-FIFO");
    }
}
