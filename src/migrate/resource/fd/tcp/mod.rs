//! TCP sockets (tcp(7)), v4 and v6: connections to programs outside of the job, and listening ones.
//!
//! The connection itself stays at the job's home, whose agent keeps the real socket, and is
//! relayed ([`crate::proxy`]). The job's end is a socket of the kernel too, with the same two
//! addresses, in a network namespace of its own ([`envelope`]):
//!
//! ```text
//! home: real socket ══ relay ══ far end ⇄ job's end, in the envelope
//! ```
//! A listening socket stays with the home likewise, which accepts, and has each connection made again to
//! the job's. What waits in the queues belongs to the relay. This module knows the rest: addresses,
//! options, which directions are shut down.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{getpeername, getsockname, shutdown, Shutdown, SockaddrStorage};
use serde::{Deserialize, Serialize};

use super::{decode, encode, failed, raw, CaptureCx, FdError, FdKind, FdView, Object, RestoreCx};
use crate::capabilities::Area::Sockets;
use crate::capabilities::Capability;
use crate::control::Finding;
use crate::proxy;

pub mod envelope;

use super::inet;
use super::inet::options::{self, Protocol, Setting, When};

const NAME: &str = "tcp";

/// The states of a connection (net/tcp_states.h).
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

/// What passes within a second as a rule, and is waited for.
pub const PASSING: &str = "VOS-TCP-BUSY";

/// A connection as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// As getsockname(2) and getpeername(2) show them, of one family. A v4 address in a v6 socket
    /// is a mapped one.
    own: SocketAddr,
    peer: SocketAddr,
    /// shutdown(2) was called for this direction.
    shut_read: bool,
    shut_write: bool,
    options: Vec<Setting>,
}

/// A listening socket as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    own: SocketAddr,
    /// Of listen(2).
    backlog: i32,
    /// IPV6_V6ONLY.
    v6_only: bool,
    options: Vec<Setting>,
}

/// A socket as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Connection(Connection),
    Listener(Listener),
}

impl State {
    /// Out of an object; none when that is of another kind.
    ///
    /// # Errors
    /// When its state does not decode.
    pub fn of(object: &Object) -> Result<Option<Self>, FdError> {
        match object.kind == NAME {
            true => decode(NAME, &object.state).map(Some),
            false => Ok(None),
        }
    }

    fn read(fd: &OwnedFd, view: &FdView) -> Result<Self, FdError> {
        let state = state(fd).map_err(view.failed("ask for the state"))?;
        refuse_state(state, view)?;
        options::refuse(fd.as_raw_fd(), view, Protocol::Tcp)?;
        match state {
            LISTEN => Listener::read(fd, view).map(Self::Listener),
            _ => Connection::read(fd, state, view).map(Self::Connection),
        }
    }
}

impl Listener {
    fn read(fd: &OwnedFd, view: &FdView) -> Result<Self, FdError> {
        let number = fd.as_raw_fd();
        let own = getsockname::<SockaddrStorage>(number);
        let own = address(&own.map_err(|e| view.failed("getsockname")(e.into()))?, view)?;
        let v6_only = inet::is_v6_only(number);
        let options = options::read(number, own.is_ipv6(), Protocol::Tcp)
            .map_err(view.failed("read options"))?;
        let (_, backlog) =
            proxy::accept_queue(fd.as_fd()).map_err(view.failed("ask for the backlog"))?;
        Ok(Self { own, backlog: backlog.cast_signed(), v6_only, options })
    }
}

/// Gives a socket that was just made what is to come last: options that others could be hindered by,
/// and the directions that are shut down.
///
/// # Errors
/// What was tried.
pub fn dress(fd: &OwnedFd, state: &State) -> std::io::Result<()> {
    let number = fd.as_raw_fd();
    let all = match state {
        State::Connection(connection) => &connection.options,
        State::Listener(listener) => &listener.options,
    };
    options::set(number, all, When::Last)?;
    let State::Connection(connection) = state else { return Ok(()) };
    for (shut, how) in
        [(connection.shut_read, Shutdown::Read), (connection.shut_write, Shutdown::Write)]
    {
        if shut {
            // Its peer may have reset it meanwhile.
            match shutdown(number, how) {
                Ok(()) | Err(nix::Error::ENOTCONN) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// A socket of the family that is wanted, which is being connected and does not block; one of IPv6
/// connects to mapped addresses (ipv6(7)).
///
/// # Errors
/// Those of connect(2); `EAFNOSUPPORT` for an address that the family does not have.
pub fn start_connecting(to: SocketAddr, v6: bool) -> std::io::Result<std::net::TcpStream> {
    use nix::sys::socket::{connect, socket, AddressFamily, SockFlag, SockType};
    let (family, to) = match (to, v6) {
        (SocketAddr::V4(v4), true) => {
            (AddressFamily::Inet6, SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()))
        }
        (SocketAddr::V4(_), false) => (AddressFamily::Inet, to),
        (SocketAddr::V6(_), true) => (AddressFamily::Inet6, to),
        (SocketAddr::V6(_), false) => {
            return Err(std::io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(fd.into()),
        Err(e) => Err(e.into()),
    }
}

impl Connection {
    /// A connection in any state in which bytes may come or go; none otherwise.
    ///
    /// # Errors
    /// When it is in a state or has an option that does not go along, or cannot be asked.
    pub fn any(fd: &OwnedFd, view: &FdView) -> Result<Option<Self>, FdError> {
        let state = state(fd).map_err(view.failed("ask for the state"))?;
        match refused_state(state).is_none() && state != LISTEN {
            true => Self::read(fd, state, view).map(Some),
            false => Ok(None),
        }
    }

    /// As [`Connection::any`], if both directions are open.
    ///
    /// # Errors
    /// As [`Connection::any`].
    pub fn open(fd: &OwnedFd, view: &FdView) -> Result<Option<Self>, FdError> {
        let state = state(fd).map_err(view.failed("ask for the state"))?;
        let found = (state == ESTABLISHED).then(|| Self::read(fd, state, view)).transpose()?;
        Ok(found.filter(|connection| !connection.shut_read))
    }

    /// As getsockname(2) and getpeername(2) show them.
    #[must_use]
    pub fn names(&self) -> (SocketAddr, SocketAddr) {
        (self.own, self.peer)
    }

    /// Gives another socket the options of this one.
    ///
    /// # Errors
    /// An option that is none of those that go along.
    pub fn dress(&self, fd: &OwnedFd) -> std::io::Result<()> {
        let mut all = [When::Early, When::Made, When::Last].into_iter();
        all.try_for_each(|when| options::set(fd.as_raw_fd(), &self.options, when))
    }

    /// It has these addresses.
    pub fn rename(&mut self, own: SocketAddr, peer: SocketAddr) {
        (self.own, self.peer) = (own, peer);
    }

    /// Looks at a socket.
    fn read(fd: &OwnedFd, state: u8, view: &FdView) -> Result<Self, FdError> {
        let fail = |tried: &'static str| move |e: nix::Error| view.failed(tried)(e.into());
        let number = fd.as_raw_fd();
        let seen = raw::poll_now(number, libc::POLLPRI | libc::POLLRDHUP);
        let seen = seen.map_err(view.failed("poll"))?;
        if seen & libc::POLLPRI != 0 {
            return Err(view.refuse(
                PASSING,
                "urgent data (MSG_OOB) waits in it",
                "move again when the program has read it",
            ));
        }
        let own = getsockname::<SockaddrStorage>(number).map_err(fail("getsockname"))?;
        let peer = getpeername::<SockaddrStorage>(number).map_err(fail("getpeername"))?;
        let (own, peer) = (address(&own, view)?, address(&peer, view)?);
        let shut_write = [FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING].contains(&state);
        // After the peer's end of file the kernel does not tell, and nobody could see it.
        let open = [ESTABLISHED, FIN_WAIT1, FIN_WAIT2].contains(&state);
        let shut_read = open && seen & libc::POLLRDHUP != 0;
        let options = options::read(number, own.is_ipv6(), Protocol::Tcp)
            .map_err(view.failed("read options"))?;
        Ok(Self { own, peer, shut_read, shut_write, options })
    }
}

/// Is it a TCP socket?
#[must_use]
pub fn is_tcp(view: &FdView) -> bool {
    inet::is_of(view, [&b"TCP\0"[..], b"TCPv6\0"])
}

/// Is it a connection or a listening socket, which stays with the home?
#[must_use]
pub fn is_kept(view: &FdView, cx: &dyn CaptureCx) -> bool {
    let connected = |fd: OwnedFd| state(&fd).is_ok_and(|state| refused_state(state).is_none());
    is_tcp(view) && cx.dup(view).is_ok_and(connected)
}

/// Does the socket listen?
#[must_use]
pub fn is_listening(fd: &OwnedFd) -> bool {
    state(fd).is_ok_and(|state| state == LISTEN)
}

/// A duplicate of a descriptor that is a connection on which bytes may come and go.
#[must_use]
pub fn established(view: &FdView) -> Option<OwnedFd> {
    use crate::tracer::raw::{pidfd_getfd, pidfd_open};
    let dup = is_tcp(view).then(|| pidfd_getfd(&pidfd_open(view.host_pid)?, view.fd));
    dup?.ok().filter(|dup| state(dup).is_ok_and(|state| state == ESTABLISHED))
}

/// A connection that was made away from the job's home, or a socket that listens there.
#[must_use]
pub fn made_away(view: &FdView) -> Finding {
    view.blocker(
        "VOS-TCP-AWAY",
        "it was connected or listens on this node, away from the job's home: nobody could keep it here",
        "let the program close the connection, or let it finish here",
    )
}

/// The state, first byte of `struct tcp_info`.
fn state(fd: &OwnedFd) -> std::io::Result<u8> {
    let info = raw::option_bytes(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, 8)?;
    info.first().copied().ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// Code, cause and remedy of a state that cannot move.
fn refused_state(state: u8) -> Option<(&'static str, &'static str, &'static str)> {
    const LET_CLOSE: &str = "let the program close the socket, or let it finish here";
    match state {
        ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING | LISTEN => None,
        SYN_SENT | SYN_RECV => Some((
            PASSING,
            "the connection is just being made",
            "move again when it has been made, or has failed",
        )),
        _ => Some(("VOS-TCP", "it is a TCP socket that is not connected", LET_CLOSE)),
    }
}

fn refuse_state(state: u8, view: &FdView) -> Result<(), FdError> {
    match refused_state(state) {
        Some((code, cause, remedy)) => Err(view.refuse(code, cause, remedy)),
        None => Ok(()),
    }
}

/// Both addresses of a connection: the job's and its peer's.
#[must_use]
pub fn addresses(view: &FdView, cx: &dyn CaptureCx) -> Option<(SocketAddr, SocketAddr)> {
    proxy::addresses(&cx.dup(view).ok()?)
}

fn address(found: &SockaddrStorage, view: &FdView) -> Result<SocketAddr, FdError> {
    inet::address(found, view, Protocol::Tcp)
}

pub(super) struct Tcp;

impl FdKind for Tcp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Sockets,
                    "tcp",
                    "TCP connections (v4 and v6) to programs outside of the job, relayed from home",
                ),
                Capability::moves(
                    Sockets,
                    "tcp-half-closed",
                    "TCP connections that are shut down on either side",
                ),
                Capability::moves(Sockets, "tcp-options", "options of TCP connections"),
                Capability::moves(
                    Sockets,
                    "tcp-listening",
                    "listening TCP sockets, which go on at home, and their backlog",
                ),
                Capability::refused(
                    Sockets,
                    "tcp-unconnected",
                    "TCP sockets that are neither connected nor listening",
                    "VOS-TCP",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        is_tcp(view)
    }

    fn is_relayed(&self) -> bool {
        true
    }

    fn untranslated(&self, _view: &FdView, _cx: &dyn CaptureCx) -> Option<&'static str> {
        Some("a TCP connection needs a network namespace at the target")
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let fd = cx.dup(view).map_err(view.failed("duplicate"))?;
        encode(&State::read(&fd, view)?)
    }

    /// The supervisor has made the socket, and what the job had not read is in it.
    fn restore(
        &self,
        object: u32,
        state: &[u8],
        cx: &mut dyn RestoreCx,
    ) -> Result<OwnedFd, FdError> {
        let state: State = decode(NAME, state)?;
        let fd = cx.provided(object).ok_or_else(|| {
            failed("restore a TCP socket: nothing is provided")(std::io::ErrorKind::NotFound.into())
        })?;
        dress(&fd, &state).map_err(failed("dress a TCP socket"))?;
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use nix::sys::socket::{send, MsgFlags};

    use super::super::testing::{Here, Restored};
    use super::*;

    /// Both ends of a connection, and their listener.
    fn connected(address: &str) -> (TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind(address).expect("listen");
        let one = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
        let (other, _) = listener.accept().expect("accept");
        (one, other, listener)
    }

    fn captured(fd: &impl AsRawFd) -> Connection {
        let object = Here::of(&[fd]).capture(fd);
        match State::of(&object).expect("state").expect("kind") {
            State::Connection(connection) => connection,
            State::Listener(_) => panic!("a listening socket"),
        }
    }

    #[test]
    fn listening_sockets_are_captured() {
        let listener = TcpListener::bind("[::]:0").expect("listen");
        raw::listen(listener.as_raw_fd(), 17).expect("listen");
        let here = Here::of(&[&listener]);
        assert!(is_kept(&here.view(&listener), &here));
        let object = here.capture(&listener);
        let Ok(Some(State::Listener(found))) = State::of(&object) else { panic!("{object:?}") };
        assert_eq!(found.own, listener.local_addr().expect("name"));
        assert_eq!((found.backlog, found.v6_only), (17, false));
    }

    #[test]
    fn addresses_and_directions_are_captured() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (one, other, _listener) = connected(address);
            let open = captured(&one);
            assert_eq!(open.own, one.local_addr().expect("name"));
            assert_eq!(open.peer, other.local_addr().expect("name"));
            assert!(!open.shut_read && !open.shut_write);
            one.shutdown(std::net::Shutdown::Write).expect("shutdown");
            assert!(captured(&one).shut_write);
            let half = captured(&other);
            assert!(!half.shut_read && !half.shut_write);
            other.shutdown(std::net::Shutdown::Read).expect("shutdown");
            (&other).write_all(b"x").expect("write");
            assert!(captured(&one).shut_write);
        }
        let (one, _other, _listener) = connected("127.0.0.1:0");
        one.shutdown(std::net::Shutdown::Read).expect("shutdown");
        let found = captured(&one);
        assert!(found.shut_read && !found.shut_write);
    }

    #[test]
    fn what_is_no_connection_is_refused() {
        use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};
        let (one, other, _listener) = connected("127.0.0.1:0");
        let fresh = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        let fresh = fresh.expect("socket");
        assert_eq!(Here::of(&[&fresh]).refusal(&fresh), "VOS-TCP");
        let here = Here::of(&[&one]);
        assert!(is_kept(&here.view(&one), &here));
        send(other.as_raw_fd(), b"!", MsgFlags::MSG_OOB).expect("urgent data");
        assert_eq!(here.refusal(&one), PASSING);
    }

    #[test]
    fn directions_are_shut_again() {
        let (one, _other, _listener) = connected("127.0.0.1:0");
        one.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let object = Here::of(&[&one]).capture(&one);
        let (new, far, _listener) = connected("127.0.0.1:0");
        let mut cx = Restored::default();
        assert!(cx.try_restore(&object, 0).is_err(), "nothing was provided");
        cx.provide(0, new.into());
        let _made = cx.restore(&object, 0);
        assert_eq!(std::io::Read::read(&mut &far, &mut [0; 1]).expect("end of file"), 0);
    }
}
