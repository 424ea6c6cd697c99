//! Links, addresses, routes and rules of the own network namespace (rtnetlink(7)).

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    bind, recv, send, socket, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol,
    SockType,
};

/// Index of lo in a namespace.
pub const LO: u32 = 1;

// linux/rtnetlink.h, linux/netlink.h, linux/fib_rules.h, linux/if_link.h.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
/// NLM_F_CREATE and NLM_F_EXCL.
const NEW: u16 = 0x600;
const RTPROT_BOOT: u8 = 3;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GSO_MAX_SEGS: u16 = 40;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;

/// Takes a link into use.
///
/// # Errors
/// What the kernel answers, as everywhere here.
pub fn link_up(index: u32) -> io::Result<()> {
    let up = libc::IFF_UP as u32;
    request(RTM_NEWLINK, 0, &link(index, up))
}

/// Packets of a link may have so many bytes.
///
/// # Errors
/// `EINVAL` for more than its kind allows.
pub fn set_mtu(index: u32, mtu: u32) -> io::Result<()> {
    let body = [link(index, 0), attribute(IFLA_MTU, &mtu.to_ne_bytes())].concat();
    request(RTM_NEWLINK, 0, &body)
}

/// Two links that are each other's other end, in use, without ARP: what is sent on the first comes out
/// of the other, in packets of at most `mtu` bytes, each of one datagram. Packets with an address of
/// 127.0.0.0/8 go there too.
///
/// # Errors
/// `EOPNOTSUPP` without CONFIG_VETH.
pub fn veth(ends: [(u32, &str); 2], mtu: u32) -> io::Result<()> {
    let flags = libc::IFF_NOARP as u32;
    let named = |(index, name): (u32, &str)| {
        let name = attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        [link(index, flags), name, attribute(IFLA_MTU, &mtu.to_ne_bytes())].concat()
    };
    let peer = attribute(VETH_INFO_PEER, &named(ends[1]));
    let kind = attribute(IFLA_INFO_KIND, b"veth");
    let info = [kind, attribute(IFLA_INFO_DATA, &peer)].concat();
    let one = attribute(IFLA_GSO_MAX_SEGS, &1u32.to_ne_bytes());
    let body = [named(ends[0]), one, attribute(IFLA_LINKINFO, &info)].concat();
    request(RTM_NEWLINK, NEW, &body)?;
    let localnet = attribute(IPV4_DEVCONF_ROUTE_LOCALNET, &1u32.to_ne_bytes());
    let inet = attribute(libc::AF_INET as u16, &attribute(IFLA_INET_CONF, &localnet));
    let body = [link(ends[0].0, flags), attribute(IFLA_AF_SPEC, &inet)].concat();
    request(RTM_NEWLINK, 0, &body)?;
    // Neither can be without the other. The last one finds its carrier, and sends from then on; the other
    // one does when the kernel gets round to it (dev_activate, net/sched/sch_generic.c).
    ends.into_iter().rev().try_for_each(|(index, _)| link_up(index))
}

/// struct ifinfomsg: family and type, index, flags, which flags.
fn link(index: u32, flags: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat()
}

/// Gives a link an address, which nobody else is asked about.
///
/// # Errors
/// `EADDRNOTAVAIL` for one that a link cannot have.
pub fn add_address(index: u32, address: IpAddr) -> io::Result<()> {
    let (family, bytes) = match address {
        IpAddr::V4(a) => (libc::AF_INET, a.octets().to_vec()),
        IpAddr::V6(a) => (libc::AF_INET6, a.octets().to_vec()),
    };
    // struct ifaddrmsg: family, length of the prefix in bits, flags, scope, index.
    let bits = bytes.len() as u8 * 8;
    let mut body = vec![family as u8, bits, IFA_F_NODAD, 0];
    body.extend(index.to_ne_bytes());
    body.extend(attribute(IFA_LOCAL, &bytes));
    body.extend(attribute(IFA_ADDRESS, &bytes));
    request(RTM_NEWADDR, NEW, &body)
}

/// `ip route add local default dev lo`: every address is the namespace's own.
///
/// # Errors
/// As everywhere here.
pub fn own_everything(family: i32) -> io::Result<()> {
    let kind = (libc::RT_TABLE_LOCAL, libc::RT_SCOPE_HOST, libc::RTN_LOCAL);
    default_route(family, kind, LO)
}

/// `ip route add default dev LINK table TABLE`.
///
/// # Errors
/// As everywhere here.
pub fn everything_leaves(family: i32, index: u32, table: u8) -> io::Result<()> {
    default_route(family, (table, libc::RT_SCOPE_LINK, libc::RTN_UNICAST), index)
}

fn default_route(family: i32, (table, scope, kind): (u8, u8, u8), link: u32) -> io::Result<()> {
    // struct rtmsg.
    let mut body = vec![family as u8, 0, 0, 0, table, RTPROT_BOOT, scope, kind, 0, 0, 0, 0];
    body.extend(attribute(RTA_OIF, &link.to_ne_bytes()));
    body.extend(attribute(RTA_TABLE, &u32::from(table).to_ne_bytes()));
    request(RTM_NEWROUTE, NEW, &body)
}

/// What carries this mark is delivered here, everything else leaves by a table.
///
/// # Errors
/// `EOPNOTSUPP` without CONFIG_IP_MULTIPLE_TABLES.
pub fn deliver_marked_only(family: i32, mark: u32, table: u8) -> io::Result<()> {
    let local = u32::from(libc::RT_TABLE_LOCAL);
    let mark = attribute(FRA_FWMARK, &mark.to_ne_bytes());
    request(RTM_NEWRULE, NEW, &rule(family, FR_ACT_TO_TBL, 10, local, &mark))?;
    request(RTM_NEWRULE, NEW, &rule(family, FR_ACT_TO_TBL, 20, table.into(), &[]))?;
    // The first one: what is here is delivered here.
    request(RTM_DELRULE, 0, &rule(family, 0, 0, local, &[]))
}

/// struct fib_rule_hdr: family, lengths of addresses, tos, table, two unused, action, flags.
fn rule(family: i32, action: u8, priority: u32, table: u32, more: &[u8]) -> Vec<u8> {
    let mut body = vec![family as u8, 0, 0, 0, 0, 0, 0, action, 0, 0, 0, 0];
    body.extend(attribute(FRA_PRIORITY, &priority.to_ne_bytes()));
    body.extend(attribute(FRA_TABLE, &table.to_ne_bytes()));
    body.extend(more);
    body
}

/// struct rtattr, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    const HEADER: usize = 4;
    let len = (HEADER + value.len()) as u16;
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// One request, acknowledged.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    const HEADER: usize = 16;
    const NLM_F_REQUEST_ACK: u16 = 5;
    let protocol = SockProtocol::NetlinkRoute;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST_ACK | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let len = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsgerr: the negated errno comes first.
    let error =
        answer.get(..len).and_then(|a| a.get(HEADER..HEADER + 4)).and_then(|e| e.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(negated) => Err(io::Error::from_raw_os_error(-negated)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
