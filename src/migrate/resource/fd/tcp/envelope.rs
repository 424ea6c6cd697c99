//! A network namespace in which every address is its own: there the supervisor can be any peer of
//! the job, and the job's socket has the old addresses.
//!
//! ```text
//! supervisor ─fork─► helper   unshare: net (and user, for an ordinary user); lo up;
//!     │                       local default dev lo, v4 and v6
//!     ├── Connection ──►      a listening socket with the peer's address, one with the job's own
//!     ◄── two sockets ──      that is connected to it
//! ```
//! Sockets keep their namespace, whoever has them; the helper ends when it is not needed any
//! more. The job itself stays in the namespace of its node: sockets that it makes after a move
//! are the node's.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    bind, connect, listen, socket, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage,
};
use serde::{Deserialize, Serialize};

use super::super::inet::namespace::{set_transparent, tried, Helper};
use super::super::inet::options::{self, When};
use super::super::inet::rtnetlink;
use super::super::raw;
use super::{Connection, Listener};

/// Size of the buffers of the supervisor's end, bytes. It bounds what a freeze has to carry.
const BUFFER: i32 = 128 << 10;

/// A connection in the envelope.
#[derive(Debug)]
pub struct Pair {
    /// For the job.
    pub job: OwnedFd,
    /// For the relay.
    pub far: OwnedFd,
}

/// What the helper is asked for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Connect(Connection),
    Listen(Listener),
    /// A connection from this address to this one, at which the job listens.
    Dial(SocketAddr, SocketAddr),
}

/// The helper in a namespace.
#[derive(Debug)]
pub struct Envelope {
    helper: Helper<Request>,
}

impl Envelope {
    /// Makes the namespace. The caller has one thread.
    ///
    /// # Errors
    /// The step that failed.
    pub fn open() -> io::Result<Self> {
        Helper::start(furnish, answer).map(|helper| Self { helper })
    }

    /// Makes both ends of a connection.
    ///
    /// # Errors
    /// The step that failed.
    pub fn connect(&self, connection: &Connection) -> io::Result<Pair> {
        let mut fds = self.helper.ask(&Request::Connect(connection.clone()))?.into_iter();
        let both = fds.next().zip(fds.next());
        both.map(|(job, far)| Pair { job, far }).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn ask_for_one(&self, request: &Request) -> io::Result<OwnedFd> {
        let fd = self.helper.ask(request)?.into_iter().next();
        fd.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Can such a namespace be made here?
///
/// # Errors
/// As [`Envelope::open`].
pub fn probe() -> io::Result<()> {
    Envelope::open().map(drop)
}

/// Connections of one job. Two whose addresses are each other's (both ends are the job's) have no
/// room in one namespace.
#[derive(Debug, Default)]
pub struct Envelopes {
    all: Vec<(Envelope, Vec<(SocketAddr, SocketAddr)>)>,
    /// In which the job listens, by any numbers: each with the ports there. Sockets of one port get a
    /// namespace each, so that a connection comes to the one that is meant (SO_REUSEPORT).
    listening: Vec<(Envelope, BTreeMap<u32, u16>)>,
}

impl Envelopes {
    /// Makes a listening socket, which has this number then.
    ///
    /// # Errors
    /// The step that failed.
    pub fn listen(&mut self, number: u32, listener: &Listener) -> io::Result<OwnedFd> {
        let port = listener.own.port();
        let has_room =
            |(_, ports): &&mut (Envelope, BTreeMap<u32, u16>)| ports.values().all(|p| *p != port);
        let request = Request::Listen(listener.clone());
        if let Some((envelope, ports)) = self.listening.iter_mut().find(has_room) {
            ports.insert(number, port);
            return envelope.ask_for_one(&request);
        }
        let envelope = Envelope::open()?;
        let made = envelope.ask_for_one(&request);
        self.listening.push((envelope, BTreeMap::from([(number, port)])));
        made
    }

    /// Connects from `peer` to the listening socket with this number, by its address `own`.
    ///
    /// # Errors
    /// `ECONNREFUSED` when nobody listens there; the step that failed.
    pub fn dial(&self, number: u32, peer: SocketAddr, own: SocketAddr) -> io::Result<OwnedFd> {
        let nobody = || io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let found = self.listening.iter().find(|(_, ports)| ports.contains_key(&number));
        let (envelope, _) = found.ok_or_else(nobody)?;
        envelope.ask_for_one(&Request::Dial(peer, own))
    }

    /// Ends the helpers that are not needed any more: all, without a listening socket.
    #[must_use]
    pub fn settled(self) -> Self {
        Self { all: Vec::new(), ..self }
    }

    /// Does the job listen anywhere?
    #[must_use]
    pub fn listens(&self) -> bool {
        !self.listening.is_empty()
    }

    /// As [`Envelope::connect`].
    ///
    /// # Errors
    /// Those of [`Envelope::open`] and [`Envelope::connect`].
    pub fn connect(&mut self, connection: &Connection) -> io::Result<Pair> {
        let (own, peer) = (connection.own, connection.peer);
        let mirrored = (peer, own);
        let found = self.all.iter().position(|(_, used)| !used.contains(&mirrored));
        let index = match found {
            Some(index) => index,
            None => {
                self.all.push((Envelope::open()?, Vec::new()));
                self.all.len() - 1
            }
        };
        let Some((envelope, used)) = self.all.get_mut(index) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        used.push((own, peer));
        envelope.connect(connection)
    }
}

fn furnish() -> io::Result<()> {
    rtnetlink::link_up(rtnetlink::LO).map_err(tried("lo up"))?;
    rtnetlink::own_everything(libc::AF_INET).map_err(tried("route of all addresses"))?;
    // A kernel may be without v6.
    let _ = rtnetlink::own_everything(libc::AF_INET6);
    Ok(())
}

fn answer(request: Request) -> io::Result<Vec<OwnedFd>> {
    match request {
        Request::Connect(connection) => make(&connection).map(|pair| vec![pair.job, pair.far]),
        Request::Listen(listener) => make_listener(&listener).map(|fd| vec![fd]),
        Request::Dial(peer, own) => make_dialed(peer, own).map(|fd| vec![fd]),
    }
}

/// A socket that may have any address.
fn any_address(of: SocketAddr) -> io::Result<OwnedFd> {
    let family = match of {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let made = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    raw::set_option(made.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &ON)?;
    set_transparent(&made, of, true)?;
    Ok(made)
}

const ON: [u8; 4] = 1i32.to_ne_bytes();

fn make_listener(listener: &Listener) -> io::Result<OwnedFd> {
    let Listener { own, backlog, v6_only, options } = listener;
    let made = any_address(*own)?;
    if own.is_ipv6() {
        let only = i32::from(*v6_only).to_ne_bytes();
        raw::set_option(made.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &only)?;
    }
    options::set(made.as_raw_fd(), options, When::Early)?;
    bind(made.as_raw_fd(), &SockaddrStorage::from(*own)).map_err(tried(format!("bind {own}")))?;
    raw::listen(made.as_raw_fd(), *backlog).map_err(tried(format!("listen at {own}")))?;
    set_transparent(&made, *own, false)?;
    options::set(made.as_raw_fd(), options, When::Made)?;
    Ok(made)
}

fn make_dialed(peer: SocketAddr, own: SocketAddr) -> io::Result<OwnedFd> {
    let far = any_address(peer)?;
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        raw::set_option(far.as_raw_fd(), libc::SOL_SOCKET, option, &BUFFER.to_ne_bytes())?;
    }
    // A queue that is full answers nothing; nobody may wait for that for long.
    let patience = [1i64.to_ne_bytes(), 0i64.to_ne_bytes()].concat();
    raw::set_option(far.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDTIMEO, &patience)?;
    bind(far.as_raw_fd(), &SockaddrStorage::from(peer)).map_err(tried(format!("bind {peer}")))?;
    let to = format!("connect {peer} to {own}");
    connect(far.as_raw_fd(), &SockaddrStorage::from(own)).map_err(tried(to))?;
    raw::set_option(far.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, &ON)?;
    Ok(far)
}

fn make(connection: &Connection) -> io::Result<Pair> {
    let Connection { own, peer, options, .. } = connection;
    let listener = any_address(*peer)?;
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        raw::set_option(listener.as_raw_fd(), libc::SOL_SOCKET, option, &BUFFER.to_ne_bytes())?;
    }
    bind(listener.as_raw_fd(), &SockaddrStorage::from(*peer))
        .map_err(tried(format!("bind {peer}")))?;
    listen(&listener, Backlog::new(1)?).map_err(tried(format!("listen at {peer}")))?;
    let job = any_address(*own)?;
    options::set(job.as_raw_fd(), options, When::Early)?;
    bind(job.as_raw_fd(), &SockaddrStorage::from(*own)).map_err(tried(format!("bind {own}")))?;
    let to = format!("connect {own} to {peer}");
    connect(job.as_raw_fd(), &SockaddrStorage::from(*peer)).map_err(tried(to))?;
    let (far, _) = TcpListener::from(listener).accept()?;
    far.set_nodelay(true)?;
    set_transparent(&job, *own, false)?;
    options::set(job.as_raw_fd(), options, When::Made)?;
    Ok(Pair { job, far: far.into() })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn connection(own: &str, peer: &str) -> Connection {
        let parse = |text: &str| text.parse().expect("address");
        let (own, peer) = (parse(own), parse(peer));
        Connection { own, peer, shut_read: false, shut_write: false, options: Vec::new() }
    }

    fn check(envelopes: &mut Envelopes, own: &str, peer: &str) -> Result<(Pair, String), String> {
        let text = |e: io::Error| format!("{own} {peer}: {e}");
        let wanted = connection(own, peer);
        let pair = envelopes.connect(&wanted).map_err(text)?;
        let again = |fd: &OwnedFd| fd.try_clone().map(TcpStream::from).map_err(text);
        let (mut job, mut far) = (again(&pair.job)?, again(&pair.far)?);
        let names = (job.local_addr().map_err(text)?, job.peer_addr().map_err(text)?);
        if names != (wanted.own, wanted.peer) {
            return Err(format!("{names:?}"));
        }
        let mut got = [0; 2];
        job.write_all(b"ab").map_err(text)?;
        far.read_exact(&mut got).map_err(text)?;
        far.write_all(&got).map_err(text)?;
        job.read_exact(&mut got).map_err(text)?;
        Ok((pair, String::from_utf8_lossy(&got).into_owned()))
    }

    #[test]
    fn sockets_have_any_two_addresses() {
        let dir = tempfile::tempdir().expect("dir");
        raw::in_child(&dir.path().join("complaints"), || {
            if probe().is_err() && !nix::unistd::geteuid().is_root() {
                // No namespaces here; the cells of tests/moves.rs say so.
                return Ok(());
            }
            let mut envelopes = Envelopes::default();
            let mut kept = Vec::new();
            for (own, peer) in [
                ("10.1.2.3:80", "93.184.216.34:4000"),
                ("10.1.2.3:80", "93.184.216.34:4001"),
                ("10.1.2.3:81", "93.184.216.34:4000"),
                ("127.0.0.1:7", "127.0.0.1:8"),
                // The other end of that one.
                ("127.0.0.1:8", "127.0.0.1:7"),
                ("[2001:db8::1]:443", "[2001:db8::2]:5"),
                ("[::1]:443", "[::1]:5"),
                ("[::ffff:10.0.0.1]:443", "[::ffff:10.0.0.2]:5"),
            ] {
                let (pair, echoed) = check(&mut envelopes, own, peer)?;
                if echoed != "ab" {
                    return Err(echoed);
                }
                kept.push(pair);
            }
            Ok(())
        });
    }
}
