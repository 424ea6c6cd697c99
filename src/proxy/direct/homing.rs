//! A job that is at home again: its real sockets need no relays.

use std::os::fd::{AsFd, BorrowedFd};

use super::super::endpoint::{Endpoint, Out, Role};
use super::super::stream::StreamId;
use super::super::{socket, unknown, RelayError, Relays};

impl Endpoint {
    /// Has the other half all that was read here, and does more follow?
    fn has_sent(&self) -> bool {
        self.tx.as_ref().is_some_and(|tx| tx.drained() && !tx.closed())
    }

    /// Has the socket here all that has come from the other half, and does more follow?
    pub(super) fn has_written(&self) -> bool {
        let all = self.rx.as_ref().is_some_and(|rx| rx.pending().is_empty() && !rx.has_ended());
        all && self.backlog.is_empty()
    }
}

impl Relays {
    /// Is it a connection with nothing to be told of but bytes?
    #[must_use]
    pub fn is_plain(&self, stream: StreamId) -> bool {
        self.halves.get(&stream).is_some_and(Endpoint::may_be_direct)
    }

    /// Has the other half all that was read here?
    #[must_use]
    pub fn has_sent(&self, stream: StreamId) -> bool {
        self.halves.get(&stream).is_some_and(Endpoint::has_sent)
    }

    /// Has the socket here all that has come from the other half?
    #[must_use]
    pub fn has_written(&self, stream: StreamId) -> bool {
        self.halves.get(&stream).is_some_and(Endpoint::has_written)
    }

    /// Reads nothing more from the real socket (home side), or goes on with that.
    pub fn hold(&mut self, stream: StreamId, held: bool, out: Out<'_>) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        if let Role::Socket(socket) = &mut half.role {
            socket.held = held;
        }
        half.pump(&self.registry, self.linked, out);
    }

    /// Acknowledges all that has been consumed.
    pub fn acknowledge(&mut self, stream: StreamId, out: Out<'_>) {
        if let (Some(half), true) = (self.halves.get_mut(&stream), self.linked) {
            half.acknowledge(true, out);
        }
    }

    /// The real socket (home side).
    #[must_use]
    pub fn real_socket(&self, stream: StreamId) -> Option<BorrowedFd<'_>> {
        self.halves.get(&stream)?.local.as_ref().map(AsFd::as_fd)
    }

    /// Freezes an away half whose job is frozen, with a duplicate of its socket, and takes what the job
    /// has written. How many bytes the job has not read; `None` when the relay is needed.
    /// [`Relays::take_back`] follows, or [`Relays::joined`].
    ///
    /// # Errors
    /// As [`Relays::freeze`].
    pub fn freeze_open(
        &mut self,
        stream: StreamId,
        job_end: BorrowedFd<'_>,
        out: Out<'_>,
    ) -> Result<Option<usize>, RelayError> {
        let failed = |e| RelayError::io(stream, "freeze", e);
        let half = self.halves.get_mut(&stream).ok_or_else(|| unknown(stream))?;
        half.frozen = true;
        let state = socket::freeze(half, Some(job_end)).map_err(failed)?;
        half.tx.iter_mut().for_each(|tx| tx.hold(false));
        let Some((_, rx, unread, _)) = state.into_open() else { return Ok(None) };
        half.pump(&self.registry, self.linked, out);
        Ok(Some(unread.len() + rx.into_pending().len()))
    }
}
