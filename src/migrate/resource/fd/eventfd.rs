//! eventfd(2): the count and EFD_SEMAPHORE.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;
use crate::control::{Finding, Severity};

const NAME: &str = "eventfd";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    count: u64,
    semaphore: bool,
}

pub(super) struct EventFd;

impl FdKind for EventFd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const { &[Capability::moves(Descriptors, "eventfd", "eventfd, also as a semaphore")] }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.link == "anon_inode:[eventfd]"
    }

    fn check(&self, view: &FdView, _cx: &dyn CaptureCx) -> Vec<Finding> {
        if view.field("eventfd-semaphore").is_some() {
            return Vec::new();
        }
        let cause = "this kernel does not tell whether it was made with EFD_SEMAPHORE";
        let remedy =
            "nothing to do unless the program uses EFD_SEMAPHORE; else use Linux 6.5 or later";
        let blocker = view.blocker("VOS-EVENTFD", cause, remedy);
        vec![Finding { severity: Severity::Warning, ..blocker }]
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let count = view.number("eventfd-count", 16).map_err(view.failed("read the count"))?;
        let semaphore = view.field("eventfd-semaphore") == Some("1");
        encode(&State { count, semaphore })
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let state: State = decode(NAME, state)?;
        let fd = raw::eventfd(state.semaphore).map_err(failed("make an eventfd"))?;
        let mut file = File::from(fd);
        if state.count > 0 {
            let count = state.count.to_ne_bytes();
            file.write_all(&count)
                .map_err(failed(format!("count an eventfd to {}", state.count)))?;
        }
        Ok(file.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::testing::{moved, Here};
    use super::*;

    fn read(file: &mut File) -> u64 {
        let mut count = [0; 8];
        file.read_exact(&mut count).expect("read");
        u64::from_ne_bytes(count)
    }

    #[test]
    fn count_and_semaphore_come_back() {
        for (semaphore, expect) in [(false, u64::MAX - 1), (true, 1)] {
            let mut file = File::from(raw::eventfd(semaphore).expect("eventfd"));
            file.write_all(&(u64::MAX - 1).to_ne_bytes()).expect("write");
            let mut copy = File::from(moved(&file));
            assert_eq!(read(&mut copy), expect);
            assert_eq!(read(&mut file), expect, "capture changed the original");
        }
    }

    #[test]
    fn an_old_kernel_gives_a_warning() {
        let view = FdView { fdinfo: "eventfd-count: 0\n".into(), ..FdView::default() };
        let found = EventFd.check(&view, &Here::default());
        assert_eq!((found[0].severity, found[0].code.as_str()), (Severity::Warning, "VOS-EVENTFD"));
    }
}
