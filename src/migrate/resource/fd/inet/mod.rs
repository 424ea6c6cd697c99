//! What sockets of the internet families (ip(7), ipv6(7)) have in common: which of them stay with
//! the job's home, their options, and namespaces in which the job's ends have their old addresses.

use std::net::SocketAddr;

use nix::sys::socket::SockaddrStorage;

use super::{tcp, udp, CaptureCx, FdError, FdView};
use crate::control::Finding;
use crate::proxy;

pub(super) mod namespace;
pub(super) mod options;
pub(super) mod raw;
pub(super) mod rtnetlink;

pub(super) use options::Protocol;

/// Does the home keep the real socket, which has an address of it?
#[must_use]
pub fn is_kept(view: &FdView, cx: &dyn CaptureCx) -> bool {
    tcp::is_kept(view, cx) || udp::is_kept(view, cx)
}

/// A socket that has got an address away from the job's home.
#[must_use]
pub fn made_away(view: &FdView) -> Finding {
    match udp::is_udp(view) {
        true => udp::made_away(view),
        false => tcp::made_away(view),
    }
}

/// Is it of one of these protocols (`system.sockprotoname`, net/socket.c)?
pub(super) fn is_of(view: &FdView, names: [&[u8]; 2]) -> bool {
    let known = |name: Vec<u8>| names.contains(&name.as_slice());
    view.file_type() == libc::S_IFSOCK
        && super::raw::socket_protocol(&view.proc_path()).is_ok_and(known)
}

/// An address that means the same on every machine.
pub(super) fn address(
    found: &SockaddrStorage,
    view: &FdView,
    protocol: Protocol,
) -> Result<SocketAddr, FdError> {
    match proxy::inet(found) {
        Some(SocketAddr::V6(a)) if a.scope_id() != 0 => Err(view.refuse(
            protocol.option_code(),
            "it has a link-local address, which means an interface of this machine",
            "let the program use another address",
        )),
        Some(address) => Ok(address),
        None => Err(super::unexpected("an address of another family")),
    }
}

/// IPV6_V6ONLY.
pub(super) fn is_v6_only(fd: std::os::fd::RawFd) -> bool {
    let value = super::raw::option_bytes(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 4);
    value.is_ok_and(|value| value.iter().any(|byte| *byte != 0))
}
