//! UDP sockets (udp(7)), v4 and v6, connected or not.
//!
//! One that has an address stays with the job's home, whose agent goes on receiving and sending
//! for it ([`crate::proxy`]). The job's end is a socket with the same address in a network
//! namespace of its own ([`envelope`]). What waits in the queues belongs to the relay. One that
//! nobody has sent with yet is made anew.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    getpeername, getsockname, shutdown, socket, AddressFamily, Shutdown, SockFlag, SockType,
    SockaddrStorage,
};
use serde::{Deserialize, Serialize};

use super::inet::options::{self, Setting, When};
use super::inet::{self, Protocol};
use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView, Object, RestoreCx};
use crate::capabilities::Area::Sockets;
use crate::capabilities::Capability;
use crate::control::Finding;
use crate::proxy;

pub mod envelope;

const NAME: &str = "udp";

/// What of a socket is the same wherever it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// IPV6_V6ONLY; none for a v4 socket.
    v6_only: Option<bool>,
    /// shutdown(2) was called for receiving, or for both. For sending alone is not told.
    shut_read: bool,
    shut_both: bool,
    options: Vec<Setting>,
}

/// A socket with an address as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// As getsockname(2) and getpeername(2) show them.
    own: SocketAddr,
    peer: Option<SocketAddr>,
    kept: Kept,
}

/// A socket as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Bound(Bound),
    Fresh(Kept),
}

impl State {
    /// Out of an object: the one that is relayed; none when it is another.
    ///
    /// # Errors
    /// When its state does not decode.
    pub fn bound(object: &Object) -> Result<Option<Bound>, FdError> {
        match object.kind == NAME {
            true => decode(NAME, &object.state).map(|state| match state {
                Self::Bound(bound) => Some(bound),
                Self::Fresh(_) => None,
            }),
            false => Ok(None),
        }
    }

    fn read(fd: &OwnedFd, view: &FdView) -> Result<Self, FdError> {
        let fail = |e: nix::Error| view.failed("getsockname")(e.into());
        let number = fd.as_raw_fd();
        options::refuse(number, view, Protocol::Udp)?;
        let own = getsockname::<SockaddrStorage>(number).map_err(fail)?;
        let own = inet::address(&own, view, Protocol::Udp)?;
        if is_group(own) {
            return Err(view.refuse(
                "VOS-UDP",
                format!("it is bound to {}, which is no address of a machine", own.ip()),
                "let the program bind it to any address, or let it finish here",
            ));
        }
        let kept = Kept::read(number, own.is_ipv6(), view)?;
        if own.port() == 0 {
            return Ok(Self::Fresh(kept));
        }
        let peer = match getpeername::<SockaddrStorage>(number) {
            Ok(peer) => Some(inet::address(&peer, view, Protocol::Udp)?),
            Err(nix::Error::ENOTCONN) => None,
            Err(e) => return Err(view.failed("getpeername")(e.into())),
        };
        Ok(Self::Bound(Bound { own, peer, kept }))
    }
}

impl Kept {
    fn read(fd: i32, v6: bool, view: &FdView) -> Result<Self, FdError> {
        let seen = raw::poll_now(fd, libc::POLLRDHUP).map_err(view.failed("poll"))?;
        let options = options::read(fd, v6, Protocol::Udp).map_err(view.failed("read options"))?;
        Ok(Self {
            v6_only: v6.then(|| inet::is_v6_only(fd)),
            shut_read: seen & libc::POLLRDHUP != 0,
            shut_both: seen & libc::POLLHUP != 0,
            options,
        })
    }

    /// A socket of this kind without an address, and with the options that come first.
    fn make(&self) -> std::io::Result<OwnedFd> {
        let family = match self.v6_only {
            None => AddressFamily::Inet,
            Some(_) => AddressFamily::Inet6,
        };
        let made = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        if let Some(only) = self.v6_only {
            let only = i32::from(only).to_ne_bytes();
            raw::set_option(made.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &only)?;
        }
        options::set(made.as_raw_fd(), &self.options, When::Early)?;
        Ok(made)
    }

    /// What is done last.
    fn finish(&self, fd: &OwnedFd) -> Result<(), FdError> {
        let set = options::set(fd.as_raw_fd(), &self.options, When::Last);
        set.map_err(failed("options of a UDP socket"))?;
        let how = match (self.shut_both, self.shut_read) {
            (true, _) => Shutdown::Both,
            (false, true) => Shutdown::Read,
            (false, false) => return Ok(()),
        };
        match shutdown(fd.as_raw_fd(), how) {
            // It is shut down all the same (inet_shutdown, net/ipv4/af_inet.c).
            Ok(()) | Err(nix::Error::ENOTCONN) => Ok(()),
            Err(e) => Err(failed("shut a UDP socket down")(e.into())),
        }
    }
}

/// An address of a group of machines: multicast, or broadcast.
fn is_group(own: SocketAddr) -> bool {
    match own.ip().to_canonical() {
        std::net::IpAddr::V4(a) => a.is_multicast() || a.is_broadcast(),
        std::net::IpAddr::V6(a) => a.is_multicast(),
    }
}

/// Is it a UDP socket?
#[must_use]
pub fn is_udp(view: &FdView) -> bool {
    inet::is_of(view, [&b"UDP\0"[..], b"UDPv6\0"])
}

/// Has it an address, so that it stays with the home?
#[must_use]
pub fn is_kept(view: &FdView, cx: &dyn CaptureCx) -> bool {
    let has_address = |fd: OwnedFd| {
        let own = getsockname::<SockaddrStorage>(fd.as_raw_fd());
        own.ok().and_then(|own| proxy::inet(&own)).is_some_and(|own| own.port() != 0)
    };
    is_udp(view) && cx.dup(view).is_ok_and(has_address)
}

/// Is it a UDP socket (SO_PROTOCOL of socket(7))?
#[must_use]
pub fn is_datagram(fd: &OwnedFd) -> bool {
    raw::socket_option(fd.as_raw_fd(), libc::SO_PROTOCOL).is_ok_and(|p| p == libc::IPPROTO_UDP)
}

/// A socket that has got its address away from the job's home.
#[must_use]
pub fn made_away(view: &FdView) -> Finding {
    view.blocker(
        "VOS-UDP-AWAY",
        "it has got its address on this node, away from the job's home: nobody could keep it here",
        "let the program close the socket, or let it finish here",
    )
}

pub(super) struct Udp;

impl FdKind for Udp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Sockets,
                    "udp",
                    "UDP sockets (v4 and v6), connected or not, relayed from home",
                ),
                Capability::moves(
                    Sockets,
                    "udp-queue",
                    "datagrams that wait in them, with their senders",
                ),
                Capability::moves(Sockets, "udp-options", "options of UDP sockets"),
                Capability::moves(
                    Sockets,
                    "udp-multicast",
                    "multicast memberships of sockets bound to any address, which stay at home",
                ),
                Capability::refused(
                    Sockets,
                    "udp-group",
                    "UDP sockets bound to a multicast or broadcast address",
                    "VOS-UDP",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        is_udp(view)
    }

    fn is_relayed(&self) -> bool {
        true
    }

    fn untranslated(&self, view: &FdView, cx: &dyn CaptureCx) -> Option<&'static str> {
        is_kept(view, cx).then_some("a UDP socket needs a network namespace at the target")
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let fd = cx.dup(view).map_err(view.failed("duplicate"))?;
        encode(&State::read(&fd, view)?)
    }

    /// The supervisor has made a socket that has an address.
    fn restore(
        &self,
        object: u32,
        state: &[u8],
        cx: &mut dyn RestoreCx,
    ) -> Result<OwnedFd, FdError> {
        let (fd, kept) = match decode(NAME, state)? {
            State::Bound(Bound { kept, .. }) => {
                let nothing = || std::io::ErrorKind::NotFound.into();
                let fd = cx.provided(object).ok_or_else(|| {
                    failed("restore a UDP socket: nothing is provided")(nothing())
                })?;
                (fd, kept)
            }
            State::Fresh(kept) => {
                let made = kept.make().map_err(failed("make a UDP socket"))?;
                let set = options::set(made.as_raw_fd(), &kept.options, When::Made);
                set.map_err(failed("options of a UDP socket"))?;
                (made, kept)
            }
        };
        kept.finish(&fd)?;
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::super::testing::{Here, Restored};
    use super::*;

    fn captured(fd: &impl AsRawFd) -> (Object, Option<Bound>) {
        let object = Here::of(&[fd]).capture(fd);
        let bound = State::bound(&object).expect("state");
        (object, bound)
    }

    #[test]
    fn addresses_are_captured() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let one = UdpSocket::bind(address).expect("bind");
            let here = Here::of(&[&one]);
            assert!(is_kept(&here.view(&one), &here));
            let bound = captured(&one).1.expect("bound");
            assert_eq!((bound.own, bound.peer), (one.local_addr().expect("name"), None));
        }
        let one = UdpSocket::bind("127.0.0.1:0").expect("bind");
        one.connect("127.0.0.1:9").expect("connect");
        assert_eq!(captured(&one).1.expect("bound").peer, Some(([127, 0, 0, 1], 9).into()));
    }

    #[test]
    fn sockets_without_an_address_are_made_anew() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fresh = socket(AddressFamily::Inet6, SockType::Datagram, flags, None).expect("socket");
        let broadcast = 1i32.to_ne_bytes();
        raw::set_option(fresh.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BROADCAST, &broadcast)
            .expect("setsockopt");
        let here = Here::of(&[&fresh]);
        assert!(!is_kept(&here.view(&fresh), &here));
        let (object, bound) = captured(&fresh);
        assert_eq!(bound, None);
        let made = Restored::default().restore(&object, 0);
        assert_eq!(captured(&made).0.state, object.state);
    }

    #[test]
    fn groups_are_refused() {
        let group = UdpSocket::bind("239.1.2.3:0").expect("bind");
        assert_eq!(Here::of(&[&group]).refusal(&group), "VOS-UDP");
    }

    #[test]
    fn options_of_this_machine_are_refused() {
        let one = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let on = 1i32.to_ne_bytes();
        // UDP_CORK.
        raw::set_option(one.as_raw_fd(), libc::IPPROTO_UDP, 1, &on).expect("setsockopt");
        assert_eq!(Here::of(&[&one]).refusal(&one), "VOS-UDP-OPTION");
    }
}
