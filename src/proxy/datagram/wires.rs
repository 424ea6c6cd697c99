//! The job's end of a UDP socket: whole packets to it and from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use etherparse::defrag::IpDefragPool;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{
    icmpv4, Icmpv4Type, Icmpv6Type, IpNumber, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice, UdpSlice,
};
use nix::errno::Errno;
use nix::sys::socket::{recv, sendto, MsgFlags, SockaddrIn, SockaddrIn6};
use serde::{Deserialize, Serialize};

/// Fragments that come before one that is not joined is given up.
const KEPT: u64 = 16;

/// Hops that a packet to the job has left, as one from the same network.
const HOPS: u8 = 64;

/// What is told with a datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The home's address by which it came, or which the job has chosen.
    pub local: Option<IpAddr>,
    /// Its sender, or to whom it goes. A v4 address is never a mapped one.
    pub peer: SocketAddr,
    pub told: Told,
}

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// A datagram.
    Bytes,
    /// Nobody receives what is sent to the peer (ECONNREFUSED).
    Refused,
}

/// A datagram that travels with the job.
pub type Waiting = (Head, Vec<u8>);

/// Addresses of the home, by which it reaches others as a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usual {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Usual {
    /// Of this machine.
    #[must_use]
    pub fn own() -> Self {
        // Connecting a UDP socket sends nothing. Of networks for documentation (RFC 5737, RFC 3849).
        let by = |any: SocketAddr, to: SocketAddr| {
            let socket = UdpSocket::bind(any).ok()?;
            socket.connect(to).ok()?;
            Some(socket.local_addr().ok()?.ip())
        };
        let v4 = by((Ipv4Addr::UNSPECIFIED, 0).into(), ([192, 0, 2, 1], 9).into());
        let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        let v6 = by((Ipv6Addr::UNSPECIFIED, 0).into(), (documentation, 9).into());
        Self {
            v4: match v4 {
                Some(IpAddr::V4(a)) => a,
                _ => Ipv4Addr::LOCALHOST,
            },
            v6: match v6 {
                Some(IpAddr::V6(a)) if !a.is_loopback() && !a.is_unicast_link_local() => a,
                // A unique local one (RFC 4193): a link cannot have ::1.
                _ => Ipv6Addr::new(0xfd76, 0x6f73, 0, 0, 0, 0, 0, 1),
            },
        }
    }

    fn of(self, family: IpAddr) -> IpAddr {
        match family {
            IpAddr::V4(_) => self.v4.into(),
            IpAddr::V6(_) => self.v6.into(),
        }
    }
}

/// The relay's sockets in the namespace of the job's.
#[derive(Debug)]
pub struct Wires {
    /// Everything that the job sends comes out here, with its network header (packet(7)).
    pub packets: OwnedFd,
    /// Whole packets to the job go in here (raw(7)).
    pub raw4: OwnedFd,
    pub raw6: Option<OwnedFd>,
    /// Tells when the job's socket is closed, if the kernel does.
    pub diag: Option<OwnedFd>,
}

impl Wires {
    /// Lets the job's socket, which has the address `own`, receive something.
    pub fn inject(&self, own: SocketAddr, usual: Usual, head: &Head, bytes: &[u8]) {
        let to = match own.ip().to_canonical() {
            any if any.is_unspecified() => {
                let unicast = head.local.filter(|to| !to.is_multicast() && !is_broadcast(*to));
                unicast.unwrap_or_else(|| usual.of(head.peer.ip()))
            }
            ip => ip,
        };
        let Some(packet) = packet(SocketAddr::new(to, own.port()), head, bytes) else { return };
        let flags = MsgFlags::MSG_DONTWAIT;
        let sent = match (to, &self.raw6) {
            (IpAddr::V4(to), _) => {
                let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
                sendto(self.raw4.as_raw_fd(), &packet, &to, flags)
            }
            (IpAddr::V6(to), Some(raw6)) => {
                let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
                sendto(raw6.as_raw_fd(), &packet, &to, flags)
            }
            (IpAddr::V6(_), None) => Err(Errno::EAFNOSUPPORT),
        };
        if let Err(error) = sent {
            tracing::debug!(%own, ?head, %error, "a datagram is lost");
        }
    }

    /// A packet that the job has sent; none when it is no whole datagram ([`Fragments`]).
    #[must_use]
    pub fn parse(packet: &[u8], own: SocketAddr, usual: Usual) -> Option<(Head, &[u8])> {
        let sliced = SlicedPacket::from_ip(packet).ok()?;
        let addresses = addresses(&sliced)?;
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { return None };
        Some((head(addresses, udp.destination_port(), own, usual), udp.payload()))
    }

    /// Has the job closed its socket?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        const SOCK_DIAG_BY_FAMILY: u16 = 20;
        let Some(diag) = &self.diag else { return false };
        let mut message = [0; 512];
        loop {
            match recv(diag.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => {
                    if u16::from_ne_bytes([message[4], message[5]]) == SOCK_DIAG_BY_FAMILY {
                        return true;
                    }
                }
                Err(Errno::EINTR) => {}
                // So many messages that some are lost: it has no other socket to tell of.
                Err(Errno::ENOBUFS) => return true,
                Err(_) => return false,
            }
        }
    }
}

/// Datagrams that are too large for a packet (of IPv6), in the making.
#[derive(Debug, Default)]
pub struct Fragments {
    pool: IpDefragPool<u64, ()>,
    /// Fragments that have come.
    count: u64,
}

impl Fragments {
    /// Takes a fragment that the job has sent. The datagram, if it is whole then.
    pub fn join(&mut self, packet: &[u8], own: SocketAddr, usual: Usual) -> Option<Waiting> {
        let sliced = SlicedPacket::from_ip(packet).ok()?;
        let addresses = addresses(&sliced)?;
        self.count = self.count.wrapping_add(1);
        // Those of which one was lost stay for a while only.
        let oldest = self.count.saturating_sub(KEPT);
        self.pool.retain(|count| *count > oldest);
        let joined = self.pool.process_sliced_packet(&sliced, self.count, ()).ok()??;
        let datagram = UdpSlice::from_slice(&joined.payload).ok();
        let datagram = datagram.filter(|_| joined.ip_number == IpNumber::UDP);
        let taken = datagram.map(|udp| {
            let head = head(addresses, udp.destination_port(), own, usual);
            (head, udp.payload().to_vec())
        });
        self.pool.return_buf(joined);
        taken
    }
}

/// Of the sender and of whom it goes to.
fn addresses(packet: &SlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            Some((ip.header().source_addr().into(), ip.header().destination_addr().into()))
        }
        NetSlice::Ipv6(ip) => {
            Some((ip.header().source_addr().into(), ip.header().destination_addr().into()))
        }
        NetSlice::Arp(_) => None,
    }
}

fn head((from, to): (IpAddr, IpAddr), port: u16, own: SocketAddr, usual: Usual) -> Head {
    let any = own.ip().to_canonical().is_unspecified();
    let chosen = !(any && is_anybodys(from, usual));
    Head { local: chosen.then_some(from), peer: SocketAddr::new(to, port), told: Told::Bytes }
}

/// An address that the kernel takes when the job has not chosen any.
fn is_anybodys(from: IpAddr, usual: Usual) -> bool {
    let of_link = matches!(from, IpAddr::V6(ip) if ip.is_unicast_link_local());
    from == usual.of(from) || from.is_unspecified() || of_link
}

fn is_broadcast(to: IpAddr) -> bool {
    matches!(to, IpAddr::V4(a) if a.is_broadcast())
}

/// What the job's socket receives, from its network header on.
fn packet(own: SocketAddr, head: &Head, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(bytes.len() + 64);
    let (to, from) = ((own.ip(), own.port()), (head.peer.ip(), head.peer.port()));
    match (from.0, to.0, head.told) {
        (IpAddr::V4(source), IpAddr::V4(target), Told::Bytes) => {
            let builder = PacketBuilder::ipv4(source.octets(), target.octets(), HOPS);
            builder.udp(from.1, to.1).write(&mut packet, bytes).ok()?;
        }
        (IpAddr::V6(source), IpAddr::V6(target), Told::Bytes) => {
            let builder = PacketBuilder::ipv6(source.octets(), target.octets(), HOPS);
            builder.udp(from.1, to.1).write(&mut packet, bytes).ok()?;
        }
        // The message holds the beginning of what the job had sent.
        (IpAddr::V4(source), IpAddr::V4(target), Told::Refused) => {
            let mut sent = Vec::new();
            let builder = PacketBuilder::ipv4(target.octets(), source.octets(), HOPS);
            builder.udp(to.1, from.1).write(&mut sent, &[]).ok()?;
            let port = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
            let builder = PacketBuilder::ipv4(source.octets(), target.octets(), HOPS);
            builder.icmpv4(port).write(&mut packet, &sent).ok()?;
        }
        (IpAddr::V6(source), IpAddr::V6(target), Told::Refused) => {
            let mut sent = Vec::new();
            let builder = PacketBuilder::ipv6(target.octets(), source.octets(), HOPS);
            builder.udp(to.1, from.1).write(&mut sent, &[]).ok()?;
            let port = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port);
            let builder = PacketBuilder::ipv6(source.octets(), target.octets(), HOPS);
            builder.icmpv6(port).write(&mut packet, &sent).ok()?;
        }
        _ => return None,
    }
    Some(packet)
}
