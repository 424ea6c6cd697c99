//! The unsafe of the supervisor.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes a descriptor that recvmsg(2) has just delivered.
#[must_use]
pub fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has made this descriptor for us with the message; nobody else
    // in this process knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
