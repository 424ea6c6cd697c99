//! Options of a TCP or UDP socket (socket(7), tcp(7), udp(7), ip(7), ipv6(7)).

use std::io;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::super::{raw, FdError, FdView};

/// Which buffers have the size that the program has asked for, and do not grow by themselves (Linux
/// 5.14).
const SO_BUF_LOCK: i32 = 72;
const SO_TXTIME: i32 = 61;
const SO_ZEROCOPY: i32 = 60;
const TCP_TX_DELAY: i32 = 37;
const TCP_THIN_LINEAR_TIMEOUTS: i32 = 16;
const IPV6_RECVERR: i32 = 25;

// linux/udp.h, linux/in.h, linux/in6.h.
const UDP_CORK: i32 = 1;
const UDP_ENCAP: i32 = 100;
const UDP_NO_CHECK6_TX: i32 = 101;
const UDP_NO_CHECK6_RX: i32 = 102;
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;
const IP_RECVORIGDSTADDR: i32 = 20;
const IP_MULTICAST_ALL: i32 = 49;

/// Whose options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The code of an option that cannot go along.
    #[must_use]
    pub fn option_code(self) -> &'static str {
        match self {
            Self::Tcp => "VOS-TCP-OPTION",
            Self::Udp => "VOS-UDP-OPTION",
        }
    }

    fn refused(self) -> &'static [(i32, i32, &'static str)] {
        match self {
            Self::Tcp => &REFUSED_TCP,
            Self::Udp => &REFUSED_UDP,
        }
    }

    fn options(self, v6: bool) -> impl Iterator<Item = (i32, i32)> {
        let lists: &[&[(i32, i32)]] = match (self, v6) {
            (Self::Tcp, false) => &[&OPTIONS, &OPTIONS_TCP],
            (Self::Tcp, true) => &[&OPTIONS, &OPTIONS_TCP, &OPTIONS_V6],
            (Self::Udp, false) => &[&OPTIONS, &OPTIONS_UDP],
            (Self::Udp, true) => &[&OPTIONS, &OPTIONS_UDP, &OPTIONS_V6, &OPTIONS_UDP_V6],
        };
        lists.iter().flat_map(|list| list.iter().copied())
    }
}

/// Largest value of an option that is read, bytes.
const MOST: usize = 64;

/// An option that is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    level: i32,
    option: i32,
    value: Vec<u8>,
}

/// All sockets have these, in the order in which they are set.
const OPTIONS: [(i32, i32); 14] = [
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    // It decides the priority as well.
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE),
];

const OPTIONS_TCP: [(i32, i32); 15] = [
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (libc::IPPROTO_TCP, libc::TCP_INQ),
    (libc::IPPROTO_TCP, TCP_TX_DELAY),
];

const OPTIONS_UDP: [(i32, i32); 14] = [
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    (libc::IPPROTO_UDP, UDP_NO_CHECK6_TX),
    (libc::IPPROTO_UDP, UDP_NO_CHECK6_RX),
    (libc::IPPROTO_UDP, UDP_SEGMENT),
    (libc::IPPROTO_UDP, UDP_GRO),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, IP_RECVORIGDSTADDR),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IP, IP_MULTICAST_ALL),
];

const OPTIONS_UDP_V6: [(i32, i32); 6] = [
    (libc::IPPROTO_IPV6, IPV6_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
];

/// Those of a v6 socket.
const OPTIONS_V6: [(i32, i32); 3] = [
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
];

/// Whether others may have the same address. What is made beside it in the envelope needs it to be so.
const SHARING: [(i32, i32); 2] =
    [(libc::SOL_SOCKET, libc::SO_REUSEADDR), (libc::SOL_SOCKET, libc::SO_REUSEPORT)];

/// Sizes of buffers, which a connection has from its beginning, with their bits of SO_BUF_LOCK.
const BUFFERS: [(i32, i32); 2] = [(libc::SO_SNDBUF, 1), (libc::SO_RCVBUF, 2)];

/// What cannot go along while it is not zero, and what it is.
const REFUSED_UDP: [(i32, i32, &str); 6] = [
    (libc::SOL_SOCKET, SO_ZEROCOPY, "SO_ZEROCOPY"),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING, "SO_TIMESTAMPING"),
    (libc::SOL_SOCKET, SO_TXTIME, "SO_TXTIME"),
    (libc::IPPROTO_IP, libc::IP_MINTTL, "IP_MINTTL"),
    (libc::IPPROTO_UDP, UDP_CORK, "UDP_CORK"),
    (libc::IPPROTO_UDP, UDP_ENCAP, "UDP_ENCAP"),
];

const REFUSED_TCP: [(i32, i32, &str); 8] = [
    (libc::SOL_SOCKET, SO_ZEROCOPY, "SO_ZEROCOPY"),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING, "SO_TIMESTAMPING"),
    (libc::SOL_SOCKET, SO_TXTIME, "SO_TXTIME"),
    (libc::IPPROTO_IP, libc::IP_RECVERR, "IP_RECVERR"),
    (libc::IPPROTO_IPV6, IPV6_RECVERR, "IPV6_RECVERR"),
    (libc::IPPROTO_IP, libc::IP_MINTTL, "IP_MINTTL"),
    (libc::IPPROTO_TCP, libc::TCP_REPAIR, "TCP_REPAIR"),
    (libc::IPPROTO_TCP, libc::TCP_ULP, "TCP_ULP (kernel TLS)"),
];

/// Refuses a socket with an option that depends on this machine or on what is under way.
///
/// # Errors
/// The refusal.
pub fn refuse(fd: RawFd, view: &FdView, protocol: Protocol) -> Result<(), FdError> {
    let refused = |what: &str| {
        let remedy = "let the program switch it off, or let it finish here";
        view.refuse(protocol.option_code(), format!("it has {what}, which cannot go along"), remedy)
    };
    let is_on = |level, option| {
        // Some kernels lack some of them.
        raw::option_bytes(fd, level, option, MOST).is_ok_and(|v| v.iter().any(|byte| *byte != 0))
    };
    let mut options = protocol.refused().iter();
    if let Some((.., what)) = options.find(|(level, option, _)| is_on(*level, *option)) {
        return Err(refused(what));
    }
    if raw::has_socket_filter(fd) {
        return Err(refused("a filter (SO_ATTACH_FILTER)"));
    }
    if is_on(libc::SOL_SOCKET, libc::SO_BINDTODEVICE) {
        return Err(refused("SO_BINDTODEVICE"));
    }
    if raw::socket_option(fd, libc::SO_PEEK_OFF).is_ok_and(|offset| offset >= 0) {
        return Err(refused("SO_PEEK_OFF"));
    }
    Ok(())
}

/// Reads all that go along.
///
/// # Errors
/// `ENOTSOCK`.
pub fn read(fd: RawFd, v6: bool, protocol: Protocol) -> io::Result<Vec<Setting>> {
    let locks = raw::socket_option(fd, SO_BUF_LOCK).unwrap_or(0);
    let buffers = BUFFERS.iter().filter(|(_, bit)| locks & bit != 0);
    let buffers = buffers.map(|(option, _)| (libc::SOL_SOCKET, *option));
    let mut all = Vec::new();
    for (level, option) in buffers.chain(protocol.options(v6)).chain(SHARING) {
        match raw::option_bytes(fd, level, option, MOST) {
            Ok(value) => all.push(Setting { level, option, value }),
            Err(e) if is_unknown(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// This kernel does not have the option.
fn is_unknown(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EINVAL))
}

/// When an option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the socket has a name.
    Early,
    Made,
    /// When all sockets of the job are made.
    Last,
}

impl Setting {
    fn when(&self) -> When {
        match self.is_buffer() {
            true => When::Early,
            false if SHARING.contains(&(self.level, self.option)) => When::Last,
            false => When::Made,
        }
    }

    fn is_buffer(&self) -> bool {
        let size = BUFFERS.iter().any(|(option, _)| *option == self.option);
        self.level == libc::SOL_SOCKET && size
    }

    fn is_known(&self) -> bool {
        let of = (self.level, self.option);
        let mut all = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|p| p.options(true));
        self.is_buffer() || SHARING.contains(&of) || all.any(|known| known == of)
    }

    /// The kernel doubles the size of a buffer that it is told.
    fn told(&self) -> Vec<u8> {
        match <[u8; 4]>::try_from(self.value.as_slice()) {
            Ok(size) if self.is_buffer() => (i32::from_ne_bytes(size) / 2).to_ne_bytes().to_vec(),
            _ => self.value.clone(),
        }
    }
}

/// Sets those whose time has come. What this machine does not grant is not set, a congestion
/// control that it does not have for one.
///
/// # Errors
/// An option that is none of those that go along.
pub fn set(fd: RawFd, all: &[Setting], now: When) -> io::Result<()> {
    for setting in all.iter().filter(|setting| setting.when() == now) {
        if !setting.is_known() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // Most are as they are to be; setting them could do more than that.
        let now = raw::option_bytes(fd, setting.level, setting.option, MOST);
        if now.is_ok_and(|now| now == setting.value) {
            continue;
        }
        if let Err(error) = raw::set_option(fd, setting.level, setting.option, &setting.told()) {
            tracing::warn!(setting.level, setting.option, %error, "an option is not set");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::super::super::testing::Here;
    use super::*;

    fn stream(address: &str) -> (TcpListener, TcpStream) {
        let listener = TcpListener::bind(address).expect("listen");
        let stream = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
        (listener, stream)
    }

    fn give(fd: &impl AsRawFd, level: i32, option: i32, value: i32) {
        raw::set_option(fd.as_raw_fd(), level, option, &value.to_ne_bytes()).expect("setsockopt");
    }

    #[test]
    fn all_that_can_be_set_come_again() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let v6 = address.starts_with('[');
            let (_listener, old) = stream(address);
            for (level, option, value) in [
                (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
                (libc::SOL_SOCKET, libc::SO_SNDBUF, 30_000),
                (libc::SOL_SOCKET, libc::SO_RCVBUF, 40_000),
                (libc::SOL_SOCKET, libc::SO_RCVLOWAT, 7),
                (libc::SOL_SOCKET, libc::SO_PRIORITY, 5),
                (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
                (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
                (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 11),
                (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3),
                (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 12_345),
                (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 4096),
                (libc::IPPROTO_TCP, libc::TCP_LINGER2, 9),
                (libc::IPPROTO_IP, libc::IP_TTL, 33),
                (libc::IPPROTO_IP, libc::IP_TOS, 0x10),
            ] {
                give(&old, level, option, value);
            }
            if v6 {
                give(&old, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0x20);
            }
            let linger = [1i32.to_ne_bytes(), 5i32.to_ne_bytes()].concat();
            let (fd, name) = (old.as_raw_fd(), libc::SO_LINGER);
            raw::set_option(fd, libc::SOL_SOCKET, name, &linger).expect("SO_LINGER");
            let known = read(old.as_raw_fd(), v6, Protocol::Tcp).expect("read");
            let (_other, new) = stream(address);
            for when in [When::Early, When::Made, When::Last] {
                set(new.as_raw_fd(), &known, when).expect("set");
            }
            assert_eq!(read(new.as_raw_fd(), v6, Protocol::Tcp).expect("read"), known);
        }
    }

    #[test]
    fn buffers_that_grow_by_themselves_are_not_fixed() {
        let (_listener, stream) = stream("127.0.0.1:0");
        let known = read(stream.as_raw_fd(), false, Protocol::Tcp).expect("read");
        assert!(known.iter().all(|setting| !setting.is_buffer()));
    }

    #[test]
    fn options_of_this_machine_are_refused() {
        let (_listener, stream) = stream("127.0.0.1:0");
        give(&stream, libc::IPPROTO_IP, libc::IP_RECVERR, 1);
        assert_eq!(Here::of(&[&stream]).refusal(&stream), "VOS-TCP-OPTION");
    }

    #[test]
    fn nothing_else_is_set() {
        let (_listener, stream) = stream("127.0.0.1:0");
        let (level, value) = (libc::SOL_SOCKET, vec![1, 0, 0, 0]);
        let foreign = Setting { level, option: libc::SO_DEBUG, value };
        assert!(set(stream.as_raw_fd(), &[foreign], When::Made).is_err());
    }
}
