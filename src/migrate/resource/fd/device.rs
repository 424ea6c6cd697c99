//! Devices without state of their own: null(4), zero(4), full(4), random(4).
//! Every other device is refused by name.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::content::{open_at, OPEN_FLAGS};
use super::{decode, encode, failed, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;

const NAME: &str = "device";

/// Major, minor, name: the same device on every Linux (admin-guide/devices.txt).
const SAME_EVERYWHERE: [(u32, u32, &str); 5] = [
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
];

/// Character majors of terminals: pty slaves (old and new), consoles, serial lines,
/// hypervisor consoles.
const TERMINALS: [std::ops::RangeInclusive<u32>; 6] =
    [3..=5, 136..=143, 166..=166, 188..=188, 204..=204, HVC..=HVC];
const HVC: u32 = 229;

/// Majors of pty masters of the old kind.
const MASTERS: [std::ops::RangeInclusive<u32>; 2] = [2..=2, 128..=135];

/// Where accelerators live.
const GPU_PATHS: [&str; 5] = ["/dev/nvidia", "/dev/dri/", "/dev/kfd", "/dev/mali", "/dev/accel/"];
const GPU_MAJORS: [u32; 3] = [195, 226, 261];
const PTMX: (u32, u32) = (5, 2);

#[derive(Debug, Serialize, Deserialize)]
struct State {
    rdev: u64,
    flags: i32,
}

/// A terminal: a tty, serial line or the slave of a pty. Not `/dev/tty`, and no pty master (see
/// [`super::pty`]): whoever holds that one is itself the person at a terminal.
#[must_use]
pub fn is_terminal(view: &FdView) -> bool {
    let (major, minor) = numbers(view.rdev);
    view.file_type() == libc::S_IFCHR
        && view.flags & libc::O_PATH == 0
        && ![(5, 0), PTMX].contains(&(major, minor))
        && TERMINALS.iter().any(|range| range.contains(&major))
}

fn is_master(view: &FdView) -> bool {
    let (major, _) = numbers(view.rdev);
    view.file_type() == libc::S_IFCHR && MASTERS.iter().any(|range| range.contains(&major))
}

fn numbers(rdev: u64) -> (u32, u32) {
    (libc::major(rdev), libc::minor(rdev))
}

fn path(rdev: u64) -> Option<&'static str> {
    let device = numbers(rdev);
    SAME_EVERYWHERE.iter().find(|(major, minor, _)| (*major, *minor) == device).map(|d| d.2)
}

pub(super) struct Device;

impl FdKind for Device {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Descriptors,
                    "devices-small",
                    "null, zero, full, random, urandom",
                ),
                Capability::refused(Descriptors, "devices", "other devices", "VOS-DEV"),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        matches!(view.file_type(), libc::S_IFCHR | libc::S_IFBLK)
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        if view.file_type() == libc::S_IFCHR && path(view.rdev).is_some() {
            return encode(&State { rdev: view.rdev, flags: view.flags });
        }
        let (major, minor) = numbers(view.rdev);
        let gpu = GPU_MAJORS.contains(&major) && view.file_type() == libc::S_IFCHR;
        Err(if gpu || GPU_PATHS.iter().any(|start| view.link.starts_with(start)) {
            let cause = "state lives in the accelerator";
            view.refuse("VOS-DEV-GPU", cause, "stop using the GPU, or let the program finish here")
        } else if is_master(view) {
            let cause = "it is a pty of the old kind";
            view.refuse("VOS-TTY", cause, "let the program close its terminals")
        } else if is_terminal(view) {
            let cause = "it is a terminal that vosrun does not relay";
            view.refuse("VOS-TTY", cause, "start the program in one terminal, or without it")
        } else {
            let cause = format!("device {major}:{minor} belongs to this machine");
            view.refuse("VOS-DEV", cause, "let the program close the device, or finish here")
        })
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let state: State = decode(NAME, state)?;
        let path = path(state.rdev).ok_or(FdError::State(NAME))?;
        let file = File::from(open_at(Path::new(path), state.flags & OPEN_FLAGS, 0)?);
        let meta = file.metadata().map_err(failed(format!("examine {path}")))?;
        if meta.rdev() != state.rdev {
            let (major, minor) = numbers(meta.rdev());
            let what = format!("open {path}: it is device {major}:{minor} here");
            return Err(failed(what)(std::io::ErrorKind::InvalidData.into()));
        }
        Ok(file.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;

    use super::super::testing::{moved, Here};
    use super::*;

    #[test]
    fn common_devices_come_back() {
        for (_, _, path) in &SAME_EVERYWHERE {
            let file = File::open(path).expect("open");
            let copy = File::from(moved(&file));
            assert_eq!(
                copy.metadata().expect("stat").rdev(),
                file.metadata().expect("stat").rdev(),
                "{path}"
            );
        }
        let full = File::options().read(true).write(true).open("/dev/full").expect("open");
        let mut copy = File::from(moved(&full));
        assert_eq!(copy.write(b"x").map_err(|e| e.raw_os_error()), Err(Some(libc::ENOSPC)));
        let mut byte = [1];
        copy.read_exact(&mut byte).expect("read");
        assert_eq!(byte, [0]);
    }

    #[test]
    fn terminals_are_told_apart() {
        let flags = libc::O_NOCTTY;
        let open = |path: &str| File::options().read(true).custom_flags(flags).open(path);
        let master = open("/dev/ptmx").expect("open");
        let here = Here::of(&[&master]);
        assert!(!is_terminal(&here.view(&master)), "nobody types into a master");
        let pty = nix::pty::openpty(None, None).expect("openpty");
        assert!(is_terminal(&Here::of(&[&pty.slave]).view(&pty.slave)));
        let null = open("/dev/null").expect("open");
        assert!(!is_terminal(&Here::of(&[&null]).view(&null)));
    }

    #[test]
    fn other_devices_are_refused_by_name() {
        let view = |link: &str, major, minor| FdView {
            link: link.into(),
            mode: libc::S_IFCHR | 0o600,
            rdev: libc::makedev(major, minor),
            ..FdView::default()
        };
        let code = |view: &FdView| match Device.capture(view, &Here::of(&[])) {
            Err(FdError::Refused(finding)) => finding.code,
            other => format!("{other:?}"),
        };
        assert_eq!(code(&view("/dev/nvidia0", 195, 0)), "VOS-DEV-GPU");
        assert_eq!(code(&view("/dev/dri/renderD128", 226, 128)), "VOS-DEV-GPU");
        assert_eq!(code(&view("/dev/bus/usb/001/002", 189, 1)), "VOS-DEV");
        assert_eq!(code(&view("/dev/fuse", 10, 229)), "VOS-DEV");
    }
}
