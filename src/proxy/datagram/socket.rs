//! Datagrams of a real socket, with the addresses at both of their ends.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{
    recvmsg, sendmsg, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage,
};

use super::wires::{Head, Told, Waiting};
use super::LARGEST;
use crate::proxy::inet;
use crate::proxy::raw::set_peek_offset;
use crate::proxy::term::wait_for;

/// Datagrams that a queue can hold at most, as far as this module believes.
const MOST_UNREAD: usize = 1 << 16;

/// Does an error wait in a socket, which the next call takes out?
///
/// # Errors
/// Those of poll(2).
pub fn has_error(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let seen = wait_for(socket, PollFlags::empty(), Duration::ZERO)?;
    Ok(seen.contains(PollFlags::POLLERR))
}

/// A v4 address is never a mapped one.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// As a socket of this family has it.
fn of_family(address: SocketAddr, own: SocketAddr) -> SocketAddr {
    match (address.ip(), own) {
        (IpAddr::V4(ip), SocketAddr::V6(_)) => (ip.to_ipv6_mapped(), address.port()).into(),
        _ => address,
    }
}

/// Connects a socket whose own address is `own`, now or again.
///
/// # Errors
/// Those of connect(2).
pub fn connect(socket: BorrowedFd<'_>, peer: SocketAddr, own: SocketAddr) -> io::Result<()> {
    let peer = SockaddrStorage::from(of_family(peer, own));
    Ok(nix::sys::socket::connect(socket.as_raw_fd(), &peer)?)
}

/// Receives a datagram without waiting: its length, its sender, and by which address it came, if the
/// socket tells.
///
/// # Errors
/// `EAGAIN`; `ECONNREFUSED` when a connected socket has heard that nobody is there.
pub fn receive(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    flags: MsgFlags,
) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
    let mut space = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo, [u8; 256]);
    let mut iov = [IoSliceMut::new(buf)];
    let flags = flags | MsgFlags::MSG_DONTWAIT;
    let got = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    let sender = got.address.as_ref().and_then(inet);
    let sender = sender.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    // Others may have been asked for as well, and may not have room.
    let mut all = got.cmsgs().into_iter().flatten();
    let local = all.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)).to_canonical())
        }
        _ => None,
    });
    Ok((got.bytes, canonical(sender), local))
}

/// Sends a datagram without waiting, by the address `local` of this machine if one is told, from a
/// socket whose own address is `own`.
///
/// # Errors
/// `EAGAIN`; `ECONNREFUSED` when an earlier one was refused: then this one is not sent.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    to: SocketAddr,
    local: Option<IpAddr>,
    own: SocketAddr,
) -> io::Result<()> {
    let local = local.filter(|_| own.ip().is_unspecified());
    let (v4, v6);
    let by = match (own, local) {
        (SocketAddr::V4(_), Some(IpAddr::V4(ip))) => {
            let address = libc::in_addr { s_addr: u32::from(ip).to_be() };
            let any = libc::in_addr { s_addr: 0 };
            v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: any };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        (SocketAddr::V6(_), Some(ip)) => {
            let ip = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let address = libc::in6_addr { s6_addr: ip.octets() };
            v6 = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
        _ => None,
    };
    let to = SockaddrStorage::from(of_family(to, own));
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let iov = [IoSlice::new(bytes)];
    sendmsg(socket.as_raw_fd(), &iov, by.as_slice(), flags, Some(&to))?;
    Ok(())
}

/// The datagrams that wait in a socket, which stay there. None while something waits in its error queue.
///
/// # Errors
/// Those of recvmsg(2).
pub fn peek_all(socket: BorrowedFd<'_>) -> io::Result<Vec<Waiting>> {
    if has_error(socket)? {
        return Ok(Vec::new());
    }
    set_peek_offset(socket, 0)?;
    let peeked = peek_each(socket);
    set_peek_offset(socket, -1)?;
    peeked
}

fn peek_each(socket: BorrowedFd<'_>) -> io::Result<Vec<Waiting>> {
    let (mut all, mut buf) = (Vec::new(), vec![0; LARGEST]);
    while all.len() < MOST_UNREAD {
        match receive(socket, &mut buf, MsgFlags::MSG_PEEK) {
            Ok((n, peer, local)) => {
                let head = Head { local, peer, told: Told::Bytes };
                all.push((head, buf.get(..n).unwrap_or_default().to_vec()));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}
