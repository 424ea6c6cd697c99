//! Anonymous memory files: memfd_create(2), with name, seals and the exec bits.
//!
//! The content travels apart (see `content`). Seals are put on in `finish`. Huge pages are
//! refused, and so is F_SEAL_FUTURE_WRITE together with a writable shared mapping, because
//! the mapping could not be made again after the seal.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;

use super::content::{reopen, set_mode, Carried};
use super::{failed, raw, CaptureCx, FdError, FdView};

const NAME: &str = "memfd";
const PREFIX: &[u8] = b"/memfd:";
const SUFFIX: &[u8] = b" (deleted)";
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

#[derive(Serialize, Deserialize)]
pub(super) struct Traits {
    /// As given to memfd_create.
    name: Vec<u8>,
    /// As fcntl(F_GET_SEALS) gives them.
    seals: i32,
}

pub(super) struct MemFd;

impl Carried for MemFd {
    const NAME: &'static str = NAME;
    const CAPABILITIES: &'static [Capability] = &[
        Capability::moves(Descriptors, "memfd", "memfds, with their seals"),
        Capability::refused(Descriptors, "memfd-huge", "memfds in huge pages", "VOS-HUGETLB"),
        Capability::refused(
            Descriptors,
            "memfd-future-write",
            "memfds sealed against future writing, with a writable mapping",
            "VOS-MEMFD-SEAL",
        ),
    ];
    type Traits = Traits;

    fn is(view: &FdView) -> bool {
        view.link.starts_with("/memfd:") && view.says_deleted() && view.nlink == 0
    }

    fn traits(view: &FdView, cx: &dyn CaptureCx) -> Result<Traits, FdError> {
        if view.fs == HUGETLBFS_MAGIC {
            let cause = "it is memory in huge pages (MFD_HUGETLB)";
            return Err(view.refuse("VOS-HUGETLB", cause, "start the program without huge pages"));
        }
        let seals = seals(view, cx)?;
        if seals & libc::F_SEAL_FUTURE_WRITE != 0 && mapped_writable(view)? {
            let cause = "it is sealed against future writing while a writable mapping exists";
            let remedy = "let the program unmap the writable mapping first";
            return Err(view.refuse("VOS-MEMFD-SEAL", cause, remedy));
        }
        let link = view.path().map_err(view.failed("read the link"))?;
        let name = link.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
        Ok(Traits { name: name.unwrap_or_default().to_vec(), seals })
    }

    fn empty(traits: &Traits) -> Result<File, FdError> {
        let shown = String::from_utf8_lossy(&traits.name);
        let name = CString::new(&*traits.name).map_err(|_| FdError::State(NAME))?;
        let fd = create(&name, traits.seals).map_err(failed(format!("memfd_create `{shown}`")))?;
        Ok(fd.into())
    }

    fn complete(traits: &Traits, mode: u32, fd: RawFd) -> Result<(), FdError> {
        let tried = || failed(format!("seal memfd {fd} with {:#x}", traits.seals));
        if raw::fcntl(fd, libc::F_GET_SEALS, 0).map_err(tried())? == traits.seals {
            return set_mode(fd, mode);
        }
        // Seals want a description open for writing, and the mode may forbid it soon.
        let writable = reopen(fd, libc::O_RDWR, 0)?;
        set_mode(fd, mode)?;
        raw::fcntl(writable.as_raw_fd(), libc::F_ADD_SEALS, traits.seals).map(drop).map_err(tried())
    }
}

fn seals(view: &FdView, cx: &dyn CaptureCx) -> Result<i32, FdError> {
    let tried = || view.failed("ask for the seals");
    let fd = cx.dup(view).map_err(tried())?;
    raw::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS, 0).map_err(tried())
}

/// Is there a `rw-s` mapping of the file in the process (proc_pid_maps(5))?
fn mapped_writable(view: &FdView) -> Result<bool, FdError> {
    let maps =
        fs::read(format!("/proc/{}/maps", view.host_pid)).map_err(view.failed("read maps"))?;
    let inode = view.ino.to_string();
    Ok(maps.split(|&b| b == b'\n').any(|line| {
        let mut words = line.split(|&b| b == b' ').filter(|word| !word.is_empty());
        let permissions = words.nth(1).unwrap_or_default();
        permissions.get(1) == Some(&b'w')
            && permissions.get(3) == Some(&b's')
            && words.nth(2) == Some(inode.as_bytes())
            && line.windows(PREFIX.len()).any(|part| part == PREFIX)
    }))
}

/// Executable and sealable; the mode and the seals come later. MFD_EXEC exists since Linux
/// 6.3; vm.memfd_noexec=2 forbids it, which does not hurt a file that is sealed against it.
fn create(name: &CString, seals: i32) -> io::Result<OwnedFd> {
    const F_SEAL_EXEC: i32 = 0x20;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    match raw::memfd(name, flags | libc::MFD_EXEC) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => raw::memfd(name, flags),
        Err(e) if e.raw_os_error() == Some(libc::EACCES) && seals & F_SEAL_EXEC != 0 => {
            raw::memfd(name, libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::super::testing::{move_bulk, proc_self, Here, Restored};
    use super::*;

    fn memfd(flags: u32) -> File {
        raw::memfd(c"buffers é", flags).expect("memfd").into()
    }

    fn moved(file: &File) -> File {
        let here = Here::of(&[file]);
        let object = here.capture(file);
        assert_eq!(object.kind, "memfd");
        let mut restored = Restored::default();
        move_bulk(&here.view(file), &object, &mut restored, 0);
        let copy = File::from(restored.restore(&object, 0));
        restored.finish(&object, &copy);
        copy
    }

    #[test]
    fn name_content_mode_and_seals_come_back() {
        for flags in [0, libc::MFD_ALLOW_SEALING | libc::MFD_EXEC, libc::MFD_NOEXEC_SEAL] {
            let mut file = memfd(flags);
            file.write_all(b"content").expect("write");
            file.set_len(1 << 20).expect("truncate");
            if flags & libc::MFD_ALLOW_SEALING != 0 {
                let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE;
                raw::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals).expect("seal");
            }
            let copy = moved(&file);
            let told = |file: &File| {
                let meta = file.metadata().expect("stat");
                let mut text = [0; 8];
                file.read_exact_at(&mut text, 0).expect("read");
                let seals = raw::fcntl(file.as_raw_fd(), libc::F_GET_SEALS, 0).expect("seals");
                let flags = raw::fcntl(file.as_raw_fd(), libc::F_GETFL, 0).expect("flags");
                let pos = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekCur);
                let link = fs::read_link(proc_self(file)).expect("link");
                (meta.len(), meta.mode(), text, seals, flags, pos, link)
            };
            assert_eq!(told(&copy), told(&file));
        }
    }

    #[test]
    fn a_read_only_description_of_a_sealed_file() {
        let file = memfd(libc::MFD_ALLOW_SEALING);
        raw::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_GROW).expect("seal");
        let reader = File::open(proc_self(&file)).expect("open");
        let copy = moved(&reader);
        assert!(copy.write_all_at(b"x", 0).is_err());
        let seals = raw::fcntl(copy.as_raw_fd(), libc::F_GET_SEALS, 0).expect("seals");
        assert_eq!(seals, libc::F_SEAL_GROW);
    }
}
