//! The addresses of connections whose sockets have others than the job knows.
//!
//! A connection that was led past its relay ([`crate::proxy`]) is a connection between two nodes
//! for the kernel. getsockname(2) and getpeername(2) go on to answer what they did before.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use crate::tracer::raw::{self, Regs};

/// Both addresses of a connection, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// As getsockname(2) answers.
    pub own: SocketAddr,
    /// As getpeername(2) answers.
    pub peer: SocketAddr,
}

/// Addresses by the inode of the socket.
#[derive(Debug, Default)]
pub struct Names(BTreeMap<u64, Pair>);

impl Names {
    /// The socket with this inode has these addresses for the job.
    pub fn insert(&mut self, inode: u64, pair: Pair) {
        self.0.insert(inode, pair);
    }

    /// It is gone, or has the right ones.
    pub fn remove(&mut self, inode: u64) {
        self.0.remove(&inode);
    }

    /// What the job takes for the addresses of this socket, if not what the kernel has.
    #[must_use]
    pub fn get(&self, inode: u64) -> Option<Pair> {
        self.0.get(&inode).copied()
    }

    /// Answers the call at whose entry a thread has stopped, if it asks for an address that is known
    /// here. What the kernel would refuse is left to it.
    ///
    /// # Errors
    /// `ESRCH` when the thread was killed meanwhile.
    pub fn answer(&self, tid: i32) -> io::Result<bool> {
        if self.0.is_empty() {
            return Ok(false);
        }
        let mut regs = raw::regs(tid)?;
        let Some(address) = self.asked(tid, &regs) else { return Ok(false) };
        if write(tid, &regs, address).is_none() {
            return Ok(false);
        }
        (regs.orig_rax, regs.rax) = (u64::MAX, 0);
        raw::set_regs(tid, &regs)?;
        Ok(true)
    }

    fn asked(&self, tid: i32, regs: &Regs) -> Option<SocketAddr> {
        let wanted = match i64::try_from(regs.orig_rax).ok()? {
            libc::SYS_getsockname => |pair: Pair| pair.own,
            libc::SYS_getpeername => |pair: Pair| pair.peer,
            _ => return None,
        };
        let link = std::fs::read_link(format!("/proc/{tid}/fd/{}", regs.rdi as i32)).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        self.get(inode.parse().ok()?).map(wanted)
    }
}

/// Writes an address and its length as the kernel does (move_addr_to_user, net/socket.c): cut off
/// where there is no room. `None`: the memory is not there, or the length is no length.
fn write(tid: i32, regs: &Regs, address: SocketAddr) -> Option<()> {
    let all = bytes(address);
    let mut room = [0; 4];
    (raw::read_memory(tid, regs.rdx, &mut room).ok()? == room.len()).then_some(())?;
    let room = usize::try_from(i32::from_ne_bytes(room)).ok()?;
    let some = all.get(..room).unwrap_or(&all);
    let len = (all.len() as u32).to_ne_bytes();
    let put = |at, bytes: &[u8]| {
        let done = bytes.is_empty() || raw::write_memory(tid, at, bytes).ok()? == bytes.len();
        done.then_some(())
    };
    put(regs.rsi, some)?;
    put(regs.rdx, &len)
}

/// A `struct sockaddr_in` or `sockaddr_in6` as the kernel gives it (ip(7), ipv6(7)).
fn bytes(address: SocketAddr) -> Vec<u8> {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let mut bytes = (family as libc::sa_family_t).to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend(v6.flowinfo().to_ne_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_form_of_the_kernel() {
        use std::net::{TcpListener, TcpStream};
        use std::os::fd::AsRawFd;

        use nix::sys::socket::{getpeername, SockaddrIn, SockaddrIn6};
        let connected = |address| {
            let listener = TcpListener::bind(address).expect("listen");
            let stream = TcpStream::connect(listener.local_addr().expect("name"));
            (stream.expect("connect"), listener)
        };
        let (v4, _listener) = connected("127.0.0.1:0");
        let name: SockaddrIn = getpeername(v4.as_raw_fd()).expect("name");
        let name: &libc::sockaddr_in = name.as_ref();
        let mut wanted = name.sin_family.to_ne_bytes().to_vec();
        wanted.extend(name.sin_port.to_ne_bytes());
        wanted.extend(name.sin_addr.s_addr.to_ne_bytes());
        wanted.extend(name.sin_zero);
        assert_eq!(bytes(v4.peer_addr().expect("name")), wanted);
        assert_eq!(wanted.len(), size_of::<libc::sockaddr_in>());
        let (v6, _listener) = connected("[::1]:0");
        let name: SockaddrIn6 = getpeername(v6.as_raw_fd()).expect("name");
        let name: &libc::sockaddr_in6 = name.as_ref();
        let mut wanted = name.sin6_family.to_ne_bytes().to_vec();
        wanted.extend(name.sin6_port.to_ne_bytes());
        wanted.extend(name.sin6_flowinfo.to_ne_bytes());
        wanted.extend(name.sin6_addr.s6_addr);
        wanted.extend(name.sin6_scope_id.to_ne_bytes());
        assert_eq!(bytes(v6.peer_addr().expect("name")), wanted);
        assert_eq!(wanted.len(), size_of::<libc::sockaddr_in6>());
    }
}
