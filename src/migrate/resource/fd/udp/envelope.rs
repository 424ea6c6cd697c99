//! A network namespace for one UDP socket of a job, to which anybody may seem to send, and from which
//! all that it sends comes out:
//!
//! ```text
//! job's socket ── route of all that is not marked ──► v0 ═══ v1 ─► packet socket ─► relay
//!      ▲                                                                              │
//!      └── lo ◄── route of what is marked: every address is local ── raw sockets ◄────┘
//! ```
//! Whole packets go in and come out: the true sender of a datagram is what its header says
//! (raw(7), packet(7)). A socket of sock_diag(7) tells when the job has closed its socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    bind, connect, recv, send, setsockopt, socket, sockopt, AddressFamily, MsgFlags, NetlinkAddr,
    SockFlag, SockProtocol, SockType, SockaddrStorage,
};
use serde::{Deserialize, Serialize};

use super::super::inet::namespace::{set_transparent, tried, Helper};
use super::super::inet::options::{self, When};
use super::super::inet::raw::bind_to_link;
use super::super::inet::rtnetlink;
use super::Bound;
use crate::proxy::{Usual, Wires};

/// Indices of the two links.
const V0: u32 = 1000;
const V1: u32 = 1001;

/// Largest packet of the pair (ETH_MAX_MTU of linux/if_ether.h), bytes.
const MTU: u32 = 65535;

/// The same of lo, by which the largest datagram of IPv6 comes in one packet: 40 bytes of header, and
/// 65,535.
const LO_MTU: u32 = 65575;

/// Wanted for what the job has sent and nobody has read, bytes.
const BUFFER: usize = 4 << 20;

/// What is marked is for the job.
const MARK: u32 = 1;

/// The route of everything else.
const TABLE: u8 = 100;

/// A socket in the envelope.
#[derive(Debug)]
pub struct Made {
    /// For the job.
    pub job: OwnedFd,
    /// For the relay.
    pub wires: Wires,
}

/// What the helper is asked for: a socket, where these are the addresses of its machine.
#[derive(Debug, Serialize, Deserialize)]
struct Request(Bound, Usual);

/// Makes a socket in a namespace of its own. The caller has one thread.
///
/// # Errors
/// The step that failed.
pub fn make(bound: &Bound, usual: Usual) -> io::Result<Made> {
    let helper = Helper::start(furnish, answer)?;
    let mut fds = helper.ask(&Request(bound.clone(), usual))?.into_iter();
    let mut next = || fds.next().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
    let (job, packets, raw4) = (next()?, next()?, next()?);
    let raw6 = if bound.own.is_ipv6() { Some(next()?) } else { None };
    Ok(Made { job, wires: Wires { packets, raw4, raw6, diag: fds.next() } })
}

/// Can such a namespace be made here?
///
/// # Errors
/// As [`make`].
pub fn probe() -> io::Result<()> {
    Helper::start(furnish, answer).map(drop)
}

fn furnish() -> io::Result<()> {
    rtnetlink::link_up(rtnetlink::LO).map_err(tried("lo up"))?;
    rtnetlink::set_mtu(rtnetlink::LO, LO_MTU).map_err(tried("largest packet of lo"))?;
    rtnetlink::veth([(V0, "v0"), (V1, "v1")], MTU).map_err(tried("pair of veth"))?;
    furnish_family(libc::AF_INET)?;
    // A kernel may be without v6.
    let _ = furnish_family(libc::AF_INET6);
    Ok(())
}

fn furnish_family(family: i32) -> io::Result<()> {
    rtnetlink::own_everything(family).map_err(tried("route of all addresses"))?;
    rtnetlink::everything_leaves(family, V0, TABLE).map_err(tried("route to the relay"))?;
    rtnetlink::deliver_marked_only(family, MARK, TABLE).map_err(tried("rules of routing"))
}

fn answer(Request(bound, usual): Request) -> io::Result<Vec<OwnedFd>> {
    let v4 = rtnetlink::add_address(V0, usual.v4.into());
    let v6 = rtnetlink::add_address(V0, usual.v6.into());
    if bound.own.is_ipv4() { v4 } else { v6 }.map_err(tried("address of the machine"))?;
    let packets = packets().map_err(tried("packet socket"))?;
    let mut fds = vec![packets, raw_socket(AddressFamily::Inet).map_err(tried("raw socket"))?];
    if bound.own.is_ipv6() {
        fds.push(raw_socket(AddressFamily::Inet6).map_err(tried("raw socket of v6"))?);
    }
    fds.extend(diag(bound.own.is_ipv6()).ok());
    fds.insert(0, make_bound(&bound)?);
    Ok(fds)
}

fn make_bound(bound: &Bound) -> io::Result<OwnedFd> {
    let Bound { own, peer, kept } = bound;
    let made = kept.make()?;
    set_transparent(&made, *own, true)?;
    bind(made.as_raw_fd(), &SockaddrStorage::from(*own)).map_err(tried(format!("bind {own}")))?;
    if let Some(peer) = peer {
        let to = format!("connect {own} to {peer}");
        connect(made.as_raw_fd(), &SockaddrStorage::from(*peer)).map_err(tried(to))?;
    }
    set_transparent(&made, *own, false)?;
    options::set(made.as_raw_fd(), &kept.options, When::Made)?;
    Ok(made)
}

/// Receives all packets that come out of v1, from their network header on.
fn packets() -> io::Result<OwnedFd> {
    let (kind, flags) = (SockType::Datagram, SockFlag::SOCK_CLOEXEC);
    // Nothing until it is bound.
    let made = socket(AddressFamily::Packet, kind, flags, None)?;
    // As much as the kernel grants.
    setsockopt(&made, sockopt::RcvBuf, &BUFFER)?;
    bind_to_link(&made, V1)?;
    Ok(made)
}

/// Sends whole packets to the job.
fn raw_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let made = socket(family, kind, flags, SockProtocol::Raw)?;
    setsockopt(&made, sockopt::Mark, &MARK)?;
    Ok(made)
}

/// Tells when a UDP socket is closed (SKNLGRP_INET_UDP_DESTROY of linux/sock_diag.h).
fn diag(v6: bool) -> io::Result<OwnedFd> {
    const GROUPS: u32 = 1 << 1 | 1 << 3;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST_DUMP: u16 = 0x301;
    const NLMSG_DONE: u16 = 3;
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let protocol = SockProtocol::NetlinkSockDiag;
    let netlink = socket(AddressFamily::Netlink, kind, flags, protocol)?;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    // struct inet_diag_req_v2. Asking for all sockets loads what tells of them.
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let mut request = vec![family as u8, libc::IPPROTO_UDP as u8, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.resize(56, 0);
    let mut message = (16 + request.len() as u32).to_ne_bytes().to_vec();
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 8192];
    let len = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // There is none yet.
    match answer.get(..len).and_then(|a| a.get(4..6)).and_then(|kind| kind.try_into().ok()) {
        Some(kind) if u16::from_ne_bytes(kind) == NLMSG_DONE => Ok(netlink),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

    use super::super::super::raw::in_child;
    use super::super::Kept;
    use super::*;
    use crate::proxy::{Fragments, Head, Told};

    const USUAL: Usual = Usual {
        v4: Ipv4Addr::new(10, 9, 8, 7),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7),
    };

    fn bound(own: &str, peer: Option<&str>) -> Bound {
        let parse = |text: &str| text.parse().expect("address");
        let own: SocketAddr = parse(own);
        let kept = Kept {
            v6_only: own.is_ipv6().then_some(false),
            shut_read: false,
            shut_both: false,
            options: Vec::new(),
        };
        Bound { own, peer: peer.map(parse), kept }
    }

    fn talk(own: &str, from: &str, connected: bool, size: usize) -> Result<(), String> {
        let text = |e: io::Error| format!("{own} {from}: {e}");
        let wanted = bound(own, connected.then_some(from));
        let made = make(&wanted, USUAL).map_err(text)?;
        let (job, wires) = (UdpSocket::from(made.job), made.wires);
        let from: SocketAddr = from.parse().expect("address");
        let peer = SocketAddr::new(from.ip().to_canonical(), from.port());
        if job.local_addr().map_err(text)? != wanted.own {
            return Err(format!("{own}: {:?}", job.local_addr()));
        }
        wires.inject(
            wanted.own,
            USUAL,
            &Head { local: None, peer, told: Told::Bytes },
            &vec![1; size],
        );
        let mut buf = vec![0; 1 << 16];
        job.set_read_timeout(Some(std::time::Duration::from_secs(5))).map_err(text)?;
        let (n, sender) = job.recv_from(&mut buf).map_err(text)?;
        if (n, sender) != (size, from) {
            return Err(format!("{own}: {n} bytes of {sender} instead of {size} of {from}"));
        }
        match connected {
            true => job.send(&vec![2; size]).map_err(text)?,
            false => job.send_to(&vec![2; size], from).map_err(text)?,
        };
        let patience = nix::sys::time::TimeVal::new(5, 0);
        setsockopt(&wires.packets, sockopt::ReceiveTimeout, &patience)
            .map_err(|e| text(e.into()))?;
        let mut fragments = Fragments::default();
        loop {
            let n = recv(wires.packets.as_raw_fd(), &mut buf, MsgFlags::empty());
            let n = n.map_err(|e| text(e.into()))?;
            let packet = &buf[..n];
            let whole = Wires::parse(packet, wanted.own, USUAL).map(|(h, b)| (h, b.to_vec()));
            let taken = whole.or_else(|| fragments.join(packet, wanted.own, USUAL));
            let Some((head, bytes)) = taken else { continue };
            let chosen = wanted.own.ip().to_canonical();
            let chosen: Option<IpAddr> = Some(chosen).filter(|own| !own.is_unspecified());
            if (head.peer, head.local, bytes.len()) != (peer, chosen, size) {
                return Err(format!("{own} {from}: {head:?} and {} bytes", bytes.len()));
            }
            return Ok(());
        }
    }

    #[test]
    fn anybody_may_send_and_be_sent_to() {
        let dir = tempfile::tempdir().expect("dir");
        in_child(&dir.path().join("complaints"), || {
            if probe().is_err() && !nix::unistd::geteuid().is_root() {
                // No namespaces here; the cells of tests/moves.rs say so.
                return Ok(());
            }
            for connected in [false, true] {
                for (own, from, size) in [
                    ("127.0.0.1:5000", "127.0.0.1:6000", 5),
                    ("127.0.0.1:5000", "127.0.0.1:5000", 0),
                    ("10.9.8.7:5000", "192.0.2.5:53", 65507),
                    ("10.9.8.7:5000", "10.9.8.7:53", 1),
                    ("[::1]:5000", "[::1]:6000", 5),
                    ("[2001:db8::1]:5000", "[2001:db8::2]:6000", 65487),
                    ("[2001:db8::1]:5000", "[2001:db8::2]:6000", 65527),
                    ("[::ffff:10.9.8.7]:5000", "[::ffff:192.0.2.5]:53", 9),
                ] {
                    talk(own, from, connected, size)?;
                }
            }
            talk("0.0.0.0:5000", "127.0.0.1:6000", false, 5)?;
            talk("0.0.0.0:5000", "192.0.2.5:6000", false, 5)?;
            talk("[::]:5000", "[2001:db8::2]:6000", false, 5)?;
            talk("[::]:5000", "[::ffff:192.0.2.5]:6000", false, 5)
        });
    }

    #[test]
    fn an_unreachable_port_and_a_closed_socket_are_told() {
        let dir = tempfile::tempdir().expect("dir");
        in_child(&dir.path().join("complaints"), || {
            if probe().is_err() && !nix::unistd::geteuid().is_root() {
                return Ok(());
            }
            for (own, peer) in [("127.0.0.1:5000", "127.0.0.1:6000"), ("[::1]:5000", "[::1]:6000")]
            {
                let text = |e: io::Error| format!("{own}: {e}");
                let wanted = bound(own, Some(peer));
                let made = make(&wanted, USUAL).map_err(text)?;
                let (job, wires) = (UdpSocket::from(made.job), made.wires);
                let peer = peer.parse().expect("address");
                wires.inject(
                    wanted.own,
                    USUAL,
                    &Head { local: None, peer, told: Told::Refused },
                    &[],
                );
                job.set_read_timeout(Some(std::time::Duration::from_secs(5))).map_err(text)?;
                let error = job.recv(&mut [0; 1]).map(drop);
                if error.as_ref().err().and_then(io::Error::raw_os_error)
                    != Some(libc::ECONNREFUSED)
                {
                    return Err(format!("{own}: {error:?}"));
                }
                if wires.diag.is_none() {
                    continue;
                }
                if wires.is_closed() {
                    return Err("closed while it is open".into());
                }
                drop(job);
                let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
                while !wires.is_closed() {
                    if std::time::Instant::now() > until {
                        return Err("the end is not told".into());
                    }
                    std::thread::yield_now();
                }
            }
            Ok(())
        });
    }
}
