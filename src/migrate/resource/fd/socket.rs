//! Sockets (socket(7)). None moves but a Unix stream socket that leads nowhere: both
//! directions are shut down, by either side or because the other one is closed, and nothing
//! is left to be read. A read gives eof, a write EPIPE. Programs keep one to put it in the
//! place of a descriptor that another thread still uses (the "marker" of the JDK's java.nio).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    getpeername, getsockname, socketpair, AddressFamily, SockFlag, SockType, UnixAddr,
};

use super::{failed, raw, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Sockets;
use crate::capabilities::Capability;

pub(super) struct Socket;

impl FdKind for Socket {
    fn name(&self) -> &'static str {
        "dead-socket"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Sockets,
                    "socket-dead",
                    "Unix sockets that lead nowhere any more",
                ),
                Capability::refused(Sockets, "unix", "Unix sockets and socket pairs", "VOS-UNIX"),
                Capability::refused(Sockets, "tcp", "TCP sockets", "VOS-TCP"),
                Capability::refused(Sockets, "udp", "UDP sockets", "VOS-UDP"),
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
        if leads_nowhere(&fd) {
            return Ok(Vec::new());
        }
        let (code, cause) = family(&fd);
        let remedy = "let the program close the connection, or let it finish here";
        Err(view.refuse(code, cause, remedy))
    }

    fn make(&self, _state: &[u8]) -> Result<OwnedFd, FdError> {
        // The kernel shuts the survivor down (unix_release_sock, net/unix/af_unix.c).
        let flags = SockFlag::SOCK_CLOEXEC;
        socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
            .map(|(dead, _closed)| dead)
            .map_err(|e| failed("make a socketpair")(e.into()))
    }
}

/// See the module. It has no name, nor had the other side.
fn leads_nowhere(fd: &OwnedFd) -> bool {
    let option = |name| raw::socket_option(fd.as_raw_fd(), name).ok();
    if option(libc::SO_DOMAIN) != Some(libc::AF_UNIX)
        || option(libc::SO_TYPE) != Some(libc::SOCK_STREAM)
        || option(libc::SO_ACCEPTCONN) != Some(0)
    {
        return false;
    }
    let unnamed = |address: nix::Result<UnixAddr>| address.is_ok_and(|a| a.is_unnamed());
    // A socket that was never connected has no peer name, but ENOTCONN.
    if !unnamed(getsockname(fd.as_raw_fd())) || !unnamed(getpeername(fd.as_raw_fd())) {
        return false;
    }
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let polled = poll(&mut fds, PollTimeout::ZERO).ok().and_then(|_| fds[0].revents());
    // POLLERR: an error waits to be taken (SO_ERROR).
    let hung =
        polled.is_some_and(|r| r.contains(PollFlags::POLLHUP) && !r.contains(PollFlags::POLLERR));
    hung && raw::readable_bytes(fd.as_raw_fd()).is_ok_and(|n| n == 0)
}

/// Code and cause by SO_DOMAIN and SO_PROTOCOL (socket(7)).
fn family(fd: &OwnedFd) -> (&'static str, &'static str) {
    let option = |name| raw::socket_option(fd.as_raw_fd(), name).unwrap_or(-1);
    match (option(libc::SO_DOMAIN), option(libc::SO_PROTOCOL)) {
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => ("VOS-TCP", "it is a TCP socket"),
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => ("VOS-UDP", "it is a UDP socket"),
        (libc::AF_UNIX, _) => ("VOS-UNIX", "it is a Unix socket"),
        (libc::AF_NETLINK, _) => ("VOS-NETLINK", "it is a netlink socket to this kernel"),
        _ => ("VOS-SOCKET", "it is a socket of a family that does not move"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Shutdown, TcpListener, UdpSocket};
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::sys::socket::{socket, SockProtocol};

    use super::super::testing::{moved, refusal, Here};
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().expect("socketpair")
    }

    #[test]
    fn living_sockets_are_refused() {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        );
        assert_eq!(refusal(&netlink.expect("netlink")), "VOS-NETLINK");
        assert_eq!(refusal(&TcpListener::bind("127.0.0.1:0").expect("tcp")), "VOS-TCP");
        assert_eq!(refusal(&UdpSocket::bind("[::1]:0").expect("udp")), "VOS-UDP");
        let (one, other) = pair();
        assert_eq!(refusal(&one), "VOS-UNIX");
        one.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(refusal(&one), "VOS-UNIX", "it can still be read");
        drop(other);
        let (unread, mut writer) = pair();
        writer.write_all(b"x").expect("write");
        drop(writer);
        assert_eq!(refusal(&unread), "VOS-UNIX", "a byte is left");
        let (reset, other) = pair();
        (&reset).write_all(b"never read").expect("write");
        drop(other);
        assert_eq!(refusal(&reset), "VOS-UNIX", "ECONNRESET waits");
    }

    #[test]
    fn sockets_with_a_name_or_without_a_peer_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("bind");
        let client = UnixStream::connect(&path).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        assert_eq!(refusal(&listener), "VOS-UNIX");
        client.shutdown(Shutdown::Both).expect("shutdown");
        assert_eq!(refusal(&client), "VOS-UNIX");
        assert_eq!(refusal(&server), "VOS-UNIX");
        let fresh = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        assert_eq!(refusal(&fresh.expect("socket")), "VOS-UNIX");
        let (datagram, other) =
            socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)
                .expect("socketpair");
        drop(other);
        assert_eq!(refusal(&datagram), "VOS-UNIX");
    }

    #[test]
    fn a_dead_socket_stays_dead() {
        let (closed, other) = pair();
        drop(other);
        let (shut, _alive) = pair();
        shut.shutdown(Shutdown::Both).expect("shutdown");
        shut.set_nonblocking(true).expect("O_NONBLOCK");
        for original in [closed, shut] {
            let copy = moved(&original);
            assert!(leads_nowhere(&copy));
            let flags =
                |fd: &dyn AsRawFd| raw::fcntl(fd.as_raw_fd(), libc::F_GETFL, 0).expect("flags");
            assert_eq!(flags(&copy), flags(&original));
            let mut copy = UnixStream::from(copy);
            assert_eq!(copy.read(&mut [0]).expect("read"), 0);
            let error = copy.write(b"x").map_err(|e| e.kind());
            assert_eq!(error, Err(ErrorKind::BrokenPipe));
        }
    }

    #[test]
    fn files_are_no_sockets() {
        let null = File::open("/dev/null").expect("open");
        assert!(!Socket.recognises(&Here::of(&[&null]).view(&null)));
    }
}
