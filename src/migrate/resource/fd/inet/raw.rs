//! Every unsafe block of the internet sockets: an address of packet(7).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::errno::check;

/// bind(2) of a packet socket to a link: it receives all protocols.
///
/// # Errors
/// `ENODEV`.
pub fn bind_to_link(fd: &OwnedFd, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: address lives through the call and has the length told.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}
