//! UDP sockets: the real one at home, and the job's in a network namespace of its own.
//!
//! ```text
//! anybody ⇄ real socket ─ home half ══ link ══ away half ─ whole packets ⇄ job's socket
//! ```
//! Each direction is a stream of records, so that it survives whatever the link does: length, [`Head`],
//! the datagram. A half reads while its window has room; what comes then waits in the kernel's queue,
//! which drops what it has no room for, as ever.
//!
//! * **The job moves**: what it has not read is peeked (SO_PEEK_OFF of socket(7)) and put into its new
//!   socket before anything else. At home as many datagrams are skipped when the relay begins.
//! * **Nobody is there** (ICMP): the real socket says ECONNREFUSED, and the job's gets such a message.
//! * **The job closes its socket**: the away half is told by sock_diag(7), where the kernel has that, and
//!   the home closes the real one. Without it that happens at the next move.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::sys::socket::{
    getpeername, getsockname, recv, setsockopt, sockopt, MsgFlags, SockaddrStorage,
};
use serde::{Deserialize, Serialize};

mod socket;
mod wires;

pub use wires::{Fragments, Head, Told, Usual, Waiting, Wires};

use socket::{canonical, has_error, peek_all};

use super::away::{AwayEnd, AwayState};
use super::endpoint::{with_buffer, Endpoint, Role};
use super::inet;
use super::local::Local;
use super::stream::{Receiver, Sender, StreamId};

/// Largest datagram or packet, bytes.
const LARGEST: usize = 1 << 16;

/// Largest record, bytes.
const LARGEST_RECORD: usize = LARGEST + 256;

/// The state of an away half, besides what the kernel knows of the job's socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatagramState {
    tx: Sender,
    rx: Receiver,
    own: SocketAddr,
    usual: Usual,
    /// What the job has not read.
    unread: Vec<Waiting>,
    /// The beginning of a record.
    partial: Vec<u8>,
    /// The job has the socket still.
    open: bool,
}

impl DatagramState {
    /// The home's addresses.
    #[must_use]
    pub fn usual(&self) -> Usual {
        self.usual
    }

    /// The job has the socket still.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }
}

/// The real socket.
#[derive(Debug)]
pub(super) struct HomeDatagrams {
    own: SocketAddr,
    /// To whom it is connected.
    peer: Option<SocketAddr>,
    /// Datagrams that the job has got already, and that are still in the queue.
    skip: usize,
    partial: Vec<u8>,
    /// The kernel had no room for it.
    stuck: Option<Waiting>,
    /// The peer has answered that nobody is there, and the job does not know yet.
    refused: bool,
    /// The error that waits in the socket is one that the job knows.
    known_refused: bool,
    /// The away half is through.
    pub over_there: bool,
}

/// The job's socket.
#[derive(Debug)]
pub(super) struct AwayDatagrams {
    own: SocketAddr,
    usual: Usual,
    /// None when the job has none any more.
    wires: Option<Wires>,
    unread: VecDeque<Waiting>,
    partial: Vec<u8>,
    fragments: Fragments,
}

/// The home half, frozen.
///
/// # Errors
/// When the socket does not tell its address, or its queue.
pub(super) fn home(id: StreamId, fd: OwnedFd) -> io::Result<(Endpoint, Local, AwayState)> {
    let own = address(getsockname::<SockaddrStorage>(fd.as_raw_fd())?)?;
    let peer = getpeername::<SockaddrStorage>(fd.as_raw_fd()).ok().and_then(|peer| inet(&peer));
    // Asking for what waits behind an error would take that out: then it comes over the relay.
    let refused = peer.filter(|_| refuses(fd.as_fd()));
    let unread = match refused {
        Some(peer) => vec![refusal(peer)],
        None => peek_all(fd.as_fd())?,
    };
    let role = HomeDatagrams {
        own,
        peer,
        skip: if refused.is_some() { 0 } else { unread.len() },
        known_refused: refused.is_some(),
        partial: Vec::new(),
        stuck: None,
        refused: false,
        over_there: false,
    };
    let streams = (Some(Sender::default()), Some(Receiver::default()));
    let half = Endpoint::new(id, Role::HomeDatagrams(Box::new(role)), streams.0, streams.1);
    let state = DatagramState {
        tx: Sender::default(),
        rx: Receiver::default(),
        own,
        usual: Usual::own(),
        unread,
        partial: Vec::new(),
        open: true,
    };
    let away = AwayState { stream: id, end: AwayEnd::Datagrams(Box::new(state)) };
    Ok((half, Local::socket(fd), away))
}

/// The away half, frozen; without wires if the job has the socket no more.
///
/// # Errors
/// When a descriptor cannot be duplicated.
pub(super) fn rebuild(
    id: StreamId,
    state: DatagramState,
    wires: Option<Wires>,
) -> io::Result<(Endpoint, Option<Local>)> {
    let local = wires.as_ref().map(|wires| wires.packets.try_clone()).transpose()?;
    let DatagramState { tx, rx, own, usual, unread, partial, .. } = state;
    let closed = wires.is_none();
    let role = AwayDatagrams {
        own,
        usual,
        wires,
        unread: unread.into(),
        partial,
        fragments: Fragments::default(),
    };
    let mut half = Endpoint::new(id, Role::AwayDatagrams(Box::new(role)), Some(tx), Some(rx));
    if closed {
        half.end_both();
    }
    Ok((half, local.map(Local::socket)))
}

/// Freezes an away half; see [`super::away::freeze`].
pub(super) fn freeze(
    half: &mut Endpoint,
    job_end: Option<BorrowedFd<'_>>,
) -> io::Result<DatagramState> {
    half.take_all();
    let waiting = job_end.map(take_waiting).transpose()?.unwrap_or_default();
    if job_end.is_none() {
        half.end_both();
    }
    let (Role::AwayDatagrams(role), Some(tx), Some(rx)) = (&half.role, &half.tx, &half.rx) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut unread = waiting;
    unread.extend(role.unread.iter().cloned());
    Ok(DatagramState {
        tx: tx.clone(),
        rx: rx.clone(),
        own: role.own,
        usual: role.usual,
        unread,
        partial: role.partial.clone(),
        open: half.local.is_some() && job_end.is_some(),
    })
}

/// What the job has not read, with an error before it. The error is taken out: [`put_back`].
fn take_waiting(job_end: BorrowedFd<'_>) -> io::Result<Vec<Waiting>> {
    let peer = getpeername::<SockaddrStorage>(job_end.as_raw_fd()).ok();
    let refused = refuses(job_end) && {
        let error = nix::sys::socket::getsockopt(&job_end, sockopt::SocketError)?;
        error == libc::ECONNREFUSED
    };
    let refused = peer.and_then(|peer| inet(&peer)).filter(|_| refused).map(refusal);
    let mut all: Vec<Waiting> = refused.into_iter().collect();
    all.extend(peek_all(job_end)?);
    Ok(all)
}

/// Undoes [`freeze`]: an error that was taken out is told again.
pub(super) fn put_back(half: &Endpoint, state: &DatagramState) {
    let Role::AwayDatagrams(role) = &half.role else { return };
    let refused = state.unread.first().filter(|(head, _)| head.told == Told::Refused);
    if let (Some((head, bytes)), Some(wires)) = (refused, &role.wires) {
        wires.inject(role.own, role.usual, head, bytes);
    }
}

/// Does an error wait that is one of the peer's? With IP_RECVERR it may be something of the error queue.
fn refuses(socket: BorrowedFd<'_>) -> bool {
    let queued = |v6: bool| match v6 {
        false => nix::sys::socket::getsockopt(&socket, sockopt::Ipv4RecvErr),
        true => nix::sys::socket::getsockopt(&socket, sockopt::Ipv6RecvErr),
    };
    has_error(socket).unwrap_or(false)
        && ![false, true].into_iter().any(|v6| queued(v6) == Ok(true))
}

fn refusal(peer: SocketAddr) -> Waiting {
    (Head { local: None, peer: canonical(peer), told: Told::Refused }, Vec::new())
}

fn is_refused(done: &io::Result<()>) -> bool {
    done.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ECONNREFUSED))
}

fn address(found: SockaddrStorage) -> io::Result<SocketAddr> {
    inet(&found).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Appends a record.
fn push(tx: &mut Sender, head: &Head, bytes: &[u8]) {
    let Ok(head) = postcard::to_stdvec(head) else { return };
    let len = (head.len() + bytes.len()) as u32;
    tx.push(&len.to_le_bytes());
    tx.push(&head);
    tx.push(bytes);
}

/// The next record that is complete.
fn next(rx: &mut Receiver, partial: &mut Vec<u8>) -> Option<io::Result<Waiting>> {
    loop {
        let wanted = match partial.first_chunk::<4>() {
            None => 4,
            Some(len) => 4 + u32::from_le_bytes(*len) as usize,
        };
        if wanted > LARGEST_RECORD {
            return Some(Err(io::ErrorKind::InvalidData.into()));
        }
        if partial.len() >= wanted && wanted > 4 {
            let decoded = postcard::take_from_bytes::<Head>(partial.get(4..).unwrap_or_default());
            let record = decoded.map(|(head, bytes)| (head, bytes.to_vec()));
            partial.clear();
            return Some(record.map_err(|_| io::ErrorKind::InvalidData.into()));
        }
        if partial.len() == 4 && wanted == 4 {
            return Some(Err(io::ErrorKind::InvalidData.into()));
        }
        let pending = rx.pending();
        let n = pending.len().min(wanted - partial.len());
        if n == 0 {
            return None;
        }
        partial.extend(pending.get(..n).unwrap_or_default());
        rx.consume(n);
    }
}

impl Role {
    /// A UDP socket of either side.
    pub(super) fn is_datagrams(&self) -> bool {
        matches!(self, Self::HomeDatagrams(_) | Self::AwayDatagrams(_))
    }
}

impl HomeDatagrams {
    /// The relay begins: from now on each datagram tells by which address it came, where there are
    /// several.
    pub fn begin(&self, socket: BorrowedFd<'_>) {
        if !self.own.ip().is_unspecified() {
            return;
        }
        let told = match self.own {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true),
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true),
        };
        if let Err(error) = told {
            tracing::warn!(own = %self.own, %error, "addresses of datagrams are not told");
        }
    }

    /// Sends for the job. False: later.
    fn send(&mut self, socket: BorrowedFd<'_>, (head, bytes): &Waiting) -> bool {
        if self.peer.is_some_and(|peer| canonical(peer) != head.peer) {
            // The job has connected its own to somebody else.
            match socket::connect(socket, head.peer, self.own) {
                Ok(()) => self.peer = Some(head.peer),
                Err(error) => tracing::debug!(own = %self.own, %error, "connect(2)"),
            }
        }
        let mut sent = socket::send(socket, bytes, head.peer, head.local, self.own);
        if is_refused(&sent) {
            // It tells of an earlier one, and this one was not sent.
            self.refused = true;
            sent = socket::send(socket, bytes, head.peer, head.local, self.own);
        }
        match sent {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
            // It is lost, as it would be without a relay.
            Err(e) => {
                tracing::debug!(own = %self.own, to = %head.peer, %e, "a datagram is not sent");
                true
            }
            Ok(()) => true,
        }
    }
}

impl Endpoint {
    /// Reads what is there: all of it, or as much as the window has room for.
    pub(super) fn fill_datagrams(&mut self, all: bool) {
        with_buffer(|buf| self.fill_by(buf, all));
    }

    fn fill_by(&mut self, buf: &mut [u8], all: bool) {
        while self.readable {
            let (Some(tx), Some(local)) = (&mut self.tx, &self.local) else { return };
            if tx.closed() || (!all && tx.room() == 0) {
                return;
            }
            let got = match &mut self.role {
                Role::HomeDatagrams(home) => home.receive(local.as_fd(), buf, tx),
                Role::AwayDatagrams(away) => away.receive(local.as_fd(), buf, tx),
                _ => return,
            };
            self.readable = got;
            self.busy = true;
        }
    }

    /// Hands over what has come.
    pub(super) fn drain_datagrams(&mut self) {
        let (Some(rx), Some(local)) = (&mut self.rx, &self.local) else { return };
        let lost = match &mut self.role {
            Role::HomeDatagrams(home) => {
                let sent = home.send_all(local.as_fd(), rx, &mut self.writable);
                if let Some(tx) = &mut self.tx {
                    home.tell_refusal(tx);
                }
                sent
            }
            Role::AwayDatagrams(away) => away.inject_all(rx),
            _ => return,
        };
        if let Err(error) = lost {
            tracing::warn!(stream = self.id, %error, "a record of a UDP socket");
            self.break_reader();
        }
    }

    /// Passes on what is over.
    pub(super) fn end_datagrams(&mut self, registry: &Registry) {
        match &self.role {
            Role::AwayDatagrams(away) if away.wires.as_ref().is_some_and(Wires::is_closed) => {
                self.take_all();
                self.end_both();
                self.close_datagrams(registry);
            }
            Role::HomeDatagrams(home) => {
                let done = home.stuck.is_none();
                let Some(rx) = self.rx.as_mut().filter(|rx| done && rx.at_eof()) else { return };
                rx.consume_eof();
                if let Some(tx) = &mut self.tx {
                    tx.close();
                    tx.break_off();
                }
                self.close(registry);
            }
            _ => {}
        }
    }

    /// Nothing goes in or out any more: the other half is told.
    fn end_both(&mut self) {
        self.break_reader();
        if let Some(tx) = &mut self.tx {
            tx.close();
        }
    }

    /// Closes what the away half has in the job's namespace.
    fn close_datagrams(&mut self, registry: &Registry) {
        self.close(registry);
        if let Role::AwayDatagrams(away) = &mut self.role {
            if let Some(diag) = away.wires.take().and_then(|wires| wires.diag) {
                let _ = registry.deregister(&mut SourceFd(&diag.as_raw_fd()));
            }
        }
    }

    /// Asks for a word when the job closes its socket.
    pub(super) fn watch_datagrams(&self, registry: &Registry) -> io::Result<()> {
        let (Role::AwayDatagrams(away), Some(token)) = (&self.role, self.token) else {
            return Ok(());
        };
        match away.wires.as_ref().and_then(|wires| wires.diag.as_ref()) {
            Some(diag) => {
                let mut source = SourceFd(&diag.as_raw_fd());
                registry.register(&mut source, token, Interest::READABLE)
            }
            None => Ok(()),
        }
    }
}

impl HomeDatagrams {
    /// Relays one datagram. False: nothing is there.
    fn receive(&mut self, socket: BorrowedFd<'_>, buf: &mut [u8], tx: &mut Sender) -> bool {
        match socket::receive(socket, buf, MsgFlags::empty()) {
            Ok(_) if self.skip > 0 => self.skip -= 1,
            Ok((n, peer, local)) => {
                let head = Head { local, peer, told: Told::Bytes };
                push(tx, &head, buf.get(..n).unwrap_or_default());
            }
            Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => self.refused = true,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                if e.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(own = %self.own, %e, "recvmsg(2)");
                }
                return false;
            }
        }
        self.tell_refusal(tx);
        true
    }

    fn tell_refusal(&mut self, tx: &mut Sender) {
        if !std::mem::take(&mut self.refused) || std::mem::take(&mut self.known_refused) {
            return;
        }
        if let Some((head, bytes)) = self.peer.map(refusal) {
            push(tx, &head, &bytes);
        }
    }

    fn send_all(
        &mut self,
        socket: BorrowedFd<'_>,
        rx: &mut Receiver,
        writable: &mut bool,
    ) -> io::Result<()> {
        while *writable {
            let waiting = match self.stuck.take() {
                Some(stuck) => stuck,
                None => match next(rx, &mut self.partial).transpose()? {
                    Some(waiting) => waiting,
                    None => return Ok(()),
                },
            };
            if !self.send(socket, &waiting) {
                self.stuck = Some(waiting);
                *writable = false;
            }
        }
        Ok(())
    }
}

impl AwayDatagrams {
    /// Relays one packet. False: nothing is there.
    fn receive(&mut self, packets: BorrowedFd<'_>, buf: &mut [u8], tx: &mut Sender) -> bool {
        match recv(packets.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => {
                let packet = buf.get(..n).unwrap_or_default();
                if let Some((head, bytes)) = Wires::parse(packet, self.own, self.usual) {
                    push(tx, &head, bytes);
                } else if let Some((head, bytes)) =
                    self.fragments.join(packet, self.own, self.usual)
                {
                    push(tx, &head, &bytes);
                }
                true
            }
            Err(Errno::EINTR) => true,
            Err(_) => false,
        }
    }

    fn inject_all(&mut self, rx: &mut Receiver) -> io::Result<()> {
        let Some(wires) = &self.wires else { return Ok(()) };
        while let Some((head, bytes)) = self.unread.pop_front() {
            wires.inject(self.own, self.usual, &head, &bytes);
        }
        while let Some((head, bytes)) = next(rx, &mut self.partial).transpose()? {
            wires.inject(self.own, self.usual, &head, &bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn told(n: u16) -> Head {
        Head { local: None, peer: ([192, 0, 2, 1], n).into(), told: Told::Bytes }
    }

    #[test]
    fn records_come_out_as_they_went_in() {
        let (mut tx, mut rx, mut partial) = (Sender::default(), Receiver::default(), Vec::new());
        tx.on_resync(0).expect("resync");
        let sizes = [0, 1, 65507, 3, 40_000];
        for (n, size) in (0u16..).zip(sizes) {
            push(&mut tx, &told(n), &vec![n as u8; size]);
        }
        let mut got = Vec::new();
        while let Some((offset, bytes, eof)) = tx.poll() {
            rx.on_data(offset, bytes, eof).expect("data");
            while let Some(record) = next(&mut rx, &mut partial) {
                got.push(record.expect("record"));
            }
            let (offset, window) = rx.ack();
            tx.on_ack(offset, window).expect("ack");
        }
        assert!(tx.drained() && partial.is_empty());
        let want: Vec<_> = (0u16..).zip(sizes).map(|(n, s)| (told(n), vec![n as u8; s])).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn torn_records_are_refused() {
        for bytes in [&[0, 0, 0, 0][..], &[255, 255, 255, 255], &[1, 0, 0, 0, 9]] {
            let (mut rx, mut partial) = (Receiver::default(), Vec::new());
            rx.on_data(0, bytes, false).expect("data");
            assert!(next(&mut rx, &mut partial).expect("an answer").is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn waiting_datagrams_are_peeked_and_stay() {
        let one = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let other = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let to = one.local_addr().expect("name");
        for bytes in [&b"first"[..], b"", b"third"] {
            other.send_to(bytes, to).expect("send");
        }
        let peeked = peek_all(one.as_fd()).expect("peek");
        let bytes: Vec<_> = peeked.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        assert_eq!(bytes, [&b"first"[..], b"", b"third"]);
        assert!(peeked.iter().all(|(head, _)| head.peer == other.local_addr().expect("name")));
        let mut buf = [0; 8];
        for want in [5, 0, 5] {
            assert_eq!(one.recv_from(&mut buf).expect("receive").0, want);
        }
    }
}
