//! Connections between two jobs: both get one between their nodes, and no agent stands between.
//!
//! ```text
//! job ═════════════════════ node to node ═════════════════════ job
//!   ┊ away half ─ home half ─ real socket ⇄ real socket ─ … ┊      at rest, in reserve
//! ```
//! The relays and the two real sockets stay as they are, with nothing in them, so that each job can
//! take its own way again. Before a half rests all that was under way has to have come to the job
//! ([`RelayMsg::Ask`]); what a job has not read the two supervisors exchange.

use std::os::fd::{AsFd, BorrowedFd};

use super::super::away::AwayEnd;
use super::super::endpoint::{Endpoint, Out, Role};
use super::super::home::HomeEnd;
use super::super::socket::Socket;
use super::super::stream::{Receiver, RelayMsg, Sender, StreamId};
use super::super::{raw, unknown, RelayError, Relays};
use super::{Direct, Key};
use crate::ids::{JobId, NodeId};

/// Who has the other end of a connection: a job, and the node that knows it.
pub type Meeting = (StreamId, NodeId, JobId);

impl Endpoint {
    fn socket(&mut self) -> Option<&mut Socket> {
        match &mut self.role {
            Role::Socket(socket) => Some(socket),
            _ => None,
        }
    }

    /// Nothing passes until the relay carries the connection again.
    fn rest_for(&mut self, key: Key) {
        self.backlog.clear();
        self.begin_anew();
        if let Some(socket) = self.socket() {
            socket.joined = Some(key);
            socket.direct = Some(Direct::Past);
        }
    }

    /// Has everything that came gone to the peer, and everything that the peer sent gone on?
    fn is_quiet(&self, came: u64) -> bool {
        let Some(local) = &self.local else { return false };
        let nothing = |bytes: std::io::Result<usize>| bytes.is_ok_and(|bytes| bytes == 0);
        self.rx.as_ref().is_some_and(|rx| rx.next() == came)
            && self.has_written()
            && self.tx.as_ref().is_some_and(|tx| !tx.closed())
            && nothing(raw::unsent_bytes(local.as_fd()))
            && nothing(raw::unread_bytes(local.as_fd()))
    }
}

/// The home side.
impl Relays {
    /// Connections that are worth another way, and whose other end is to be looked for.
    pub fn take_wants(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.wants)
    }

    /// Says who has the other end.
    pub fn meet(&self, (stream, node, job): Meeting, out: Out<'_>) {
        out(RelayMsg::Meet { stream, node, job }, &[]);
    }

    pub(super) fn answer_ask(&mut self, stream: StreamId, number: u64, came: u64, out: Out<'_>) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        half.ready(false);
        half.pump(&self.registry, self.linked, out);
        let quiet = half.is_quiet(came) && !half.is_dormant();
        let sent = half.tx.as_ref().map_or(0, Sender::end);
        out(RelayMsg::Quiet { stream, number, quiet, sent }, &[]);
    }

    pub(super) fn hear_rest(&mut self, stream: StreamId, key: Key) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        if half.socket().is_some_and(|socket| socket.joined != Some(key)) {
            half.rest_for(key);
        }
    }

    /// Both halves of a connection of a job that is at home, at rest from the beginning; the home half
    /// gets the real socket. What the job has not read of that is to come another way, and is given.
    ///
    /// # Errors
    /// As [`Relays::add_home`], and when it has ended.
    pub fn add_joined(
        home: &mut Self,
        away: &mut Self,
        end: HomeEnd,
        key: Key,
    ) -> Result<(StreamId, Vec<u8>), RelayError> {
        let stream = home.new_stream();
        let state = home.add_home(stream, end)?;
        let open = match state.end {
            AwayEnd::Tcp(state) => state.into_open(),
            _ => None,
        };
        let Some((_, _, unread, _)) = open else {
            home.remove(stream);
            let ended = std::io::ErrorKind::NotConnected.into();
            return Err(RelayError::io(stream, "keep a connection in reserve", ended));
        };
        if let Some(half) = home.halves.get_mut(&stream) {
            half.rest_for(key);
        }
        let role = Role::Socket(Box::new(Socket::of_away()));
        let (tx, rx) = (Sender::default(), Receiver::default());
        let mut half = Endpoint::new(stream, role, Some(tx), Some(rx));
        half.rest_for(key);
        away.keep(half)?;
        Ok((stream, unread))
    }
}

/// The away side.
impl Relays {
    /// Other ends that were found.
    pub fn take_meetings(&mut self) -> Vec<Meeting> {
        std::mem::take(&mut self.meetings)
    }

    /// Asks whether everything has gone through: the answer is [`Relays::is_quiet`].
    pub fn ask(&mut self, stream: StreamId, out: Out<'_>) {
        self.quiet.remove(&stream);
        let Some(half) = self.halves.get(&stream) else { return };
        let sent = half.tx.as_ref().map_or(0, Sender::end);
        self.asked += 1;
        out(RelayMsg::Ask { stream, number: self.asked, sent }, &[]);
    }

    /// What was answered: true when nothing is under way between the job and the real socket's peer.
    pub fn is_quiet(&mut self, stream: StreamId) -> Option<bool> {
        let (quiet, sent) = self.quiet.remove(&stream)?;
        let came = self.halves.get(&stream)?.rx.as_ref().map_or(0, Receiver::next);
        Some(quiet && sent == came)
    }

    /// Are bytes on their way out of this socket?
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn is_under_way(socket: BorrowedFd<'_>) -> std::io::Result<bool> {
        raw::unsent_bytes(socket).map(|bytes| bytes > 0)
    }

    /// What the frozen job has not read, with a duplicate of its socket; nothing when the relay is
    /// needed.
    ///
    /// # Errors
    /// As [`Relays::freeze`].
    pub fn unread(
        &mut self,
        stream: StreamId,
        job_end: BorrowedFd<'_>,
    ) -> Result<Option<Vec<u8>>, RelayError> {
        let half = self.halves.get_mut(&stream).ok_or_else(|| unknown(stream))?;
        let state = super::super::socket::freeze(half, Some(job_end))
            .map_err(|e| RelayError::io(stream, "freeze", e))?;
        Ok(state.into_open().map(|(_, rx, unread, _)| [unread, rx.into_pending()].concat()))
    }

    /// The job has a socket of its own, and the relay rests on both sides.
    pub fn joined(&mut self, stream: StreamId, key: Key, out: Out<'_>) {
        self.handed_over(stream);
        if let Some(half) = self.halves.get_mut(&stream) {
            half.rest_for(key);
            out(RelayMsg::Rest { stream, key }, &[]);
        }
    }

    /// The other job has left the way between the nodes as well.
    pub fn parted(&mut self, stream: StreamId, out: Out<'_>) {
        self.hear_recalling(stream, out);
    }

    /// Has everything come that was on the way between the nodes?
    #[must_use]
    pub fn has_come_to_its_end(&self, stream: StreamId) -> bool {
        let half = self.halves.get(&stream);
        half.is_none_or(|half| half.recalling_ref().is_none_or(|recalling| recalling.ended))
    }

    /// The job has closed its socket: nothing is kept for it.
    pub fn forget_joined(&mut self, stream: StreamId, out: Out<'_>) {
        out(RelayMsg::Closed { stream }, &[]);
        self.remove(stream);
    }

    /// On a new link: what rests, rests on both sides.
    pub(in crate::proxy) fn rest_again(&mut self, out: Out<'_>) {
        for (stream, half) in &mut self.halves {
            let rests = half.is_dormant();
            if let Some(key) = half.socket().filter(|s| s.away && rests).and_then(|s| s.joined) {
                out(RelayMsg::Rest { stream: *stream, key }, &[]);
            }
        }
    }
}
