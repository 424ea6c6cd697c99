//! signalfd(2): the set of signals. What is pending belongs to the process.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView, Object, Slot};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::Capability;

const NAME: &str = "signalfd";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Bit n-1 stands for signal n.
    mask: u64,
}

pub(super) struct SignalFd;

/// The signalfds in a table of these objects.
#[must_use]
pub fn numbers(objects: &[Object], table: &[Slot]) -> BTreeSet<i32> {
    let is_one = |slot: &&Slot| objects.get(slot.object as usize).is_some_and(|o| o.kind == NAME);
    table.iter().filter(is_one).map(|slot| slot.fd).collect()
}

impl FdKind for SignalFd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const { &[Capability::moves(Descriptors, "signalfd", "signalfd")] }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.link == "anon_inode:[signalfd]"
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let mask = view.number("sigmask", 16).map_err(view.failed("read the signals"))?;
        encode(&State { mask })
    }

    fn make(&self, state: &[u8]) -> Result<OwnedFd, FdError> {
        let state: State = decode(NAME, state)?;
        raw::signalfd(state.mask).map_err(failed(format!("make a signalfd for {:#x}", state.mask)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{moved, Here};
    use super::*;

    #[test]
    fn the_set_of_signals_comes_back() {
        // SIGUSR1, SIGCHLD and the last real-time signal.
        let mask = 1 << 9 | 1 << 16 | 1 << 63;
        let fd = raw::signalfd(mask).expect("signalfd");
        let copy = moved(&fd);
        let here = Here::of(&[&fd, &copy]);
        assert_eq!(here.view(&copy).number("sigmask", 16).ok(), Some(mask));
        assert_eq!(here.capture(&copy), here.capture(&fd));
    }
}
