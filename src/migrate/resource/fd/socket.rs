//! Sockets of other families and protocols than AF_UNIX, TCP and UDP (socket(7)): none moves.

use std::os::fd::{AsRawFd, OwnedFd};

use super::{raw, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Sockets;
use crate::capabilities::Capability;

pub(super) struct Socket;

impl FdKind for Socket {
    fn name(&self) -> &'static str {
        "socket"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::refused(Sockets, "netlink", "netlink sockets", "VOS-NETLINK"),
                Capability::refused(
                    Sockets,
                    "socket-other",
                    "sockets of other families",
                    "VOS-SOCKET",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        view.file_type() == libc::S_IFSOCK
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let fd = cx.dup(view).map_err(view.failed("duplicate"))?;
        let (code, cause) = family(&fd);
        let remedy = "let the program close the connection, or let it finish here";
        Err(view.refuse(code, cause, remedy))
    }
}

/// Code and cause by SO_DOMAIN and SO_PROTOCOL (socket(7)).
fn family(fd: &OwnedFd) -> (&'static str, &'static str) {
    let option = |name| raw::socket_option(fd.as_raw_fd(), name).unwrap_or(-1);
    match (option(libc::SO_DOMAIN), option(libc::SO_PROTOCOL)) {
        // It was closed just now.
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => ("VOS-TCP", "it is a TCP socket"),
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_MPTCP) => {
            ("VOS-SOCKET", "it is a socket of MPTCP")
        }
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_SCTP) => {
            ("VOS-SOCKET", "it is a socket of SCTP")
        }
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => ("VOS-UDP", "it is a UDP socket"),
        (libc::AF_INET | libc::AF_INET6, _) => ("VOS-SOCKET", "it is a raw socket"),
        (libc::AF_UNIX, _) => ("VOS-UNIX", "it is a Unix socket"),
        (libc::AF_NETLINK, _) => ("VOS-NETLINK", "it is a netlink socket to this kernel"),
        _ => ("VOS-SOCKET", "it is a socket of a family that does not move"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::socket::{socket, AddressFamily, SockFlag, SockProtocol, SockType};

    use super::super::testing::{refusal, Here};
    use super::*;

    #[test]
    fn living_sockets_are_refused() {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        );
        assert_eq!(refusal(&netlink.expect("netlink")), "VOS-NETLINK");
    }

    #[test]
    fn files_are_no_sockets() {
        let null = File::open("/dev/null").expect("open");
        assert!(!Socket.recognises(&Here::of(&[&null]).view(&null)));
    }
}
