//! The job's side: the way past the relay, and back.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::{Interest, Token};

use super::super::endpoint::{with_buffer, Endpoint, Out, Role};
use super::super::local::{Got, Local};
use super::super::stream::{RelayMsg, StreamId};
use super::super::{raw, socket, unknown, RelayError, Relays};
use super::{Begin, Direct, Key, HOLDS};

/// Bytes that a frozen job has not read come again within so long, one after the other.
const REFILL: Duration = Duration::from_millis(200);

/// Between two looks at them.
const LOOK: Duration = Duration::from_micros(50);

/// The job has a socket of the relay again, and this is left of the other one.
#[derive(Debug)]
pub(in crate::proxy) struct Recalling {
    pub(super) was: Option<Local>,
    token: Token,
    /// All was read.
    pub(super) ended: bool,
    reset: bool,
    /// The home half knows that this is not the job's own word.
    pub(super) told: bool,
    /// The home half is through, and has seen the end of the peer's bytes or not.
    pub(super) answer: Option<bool>,
    /// The home half had ended before.
    pub(super) gone: bool,
}

impl Recalling {
    /// The socket, if there may be more in it.
    fn take_open(&mut self) -> Option<Local> {
        let ended = self.ended;
        self.was.take_if(|_| !ended)
    }
}

/// The away side.
impl Relays {
    /// Connections that have become busy since the last call.
    pub fn take_busy(&mut self) -> Vec<StreamId> {
        let grown = std::mem::take(&mut self.grown_busy);
        let may = |id: &StreamId| self.halves.get(id).is_some_and(Endpoint::may_be_direct);
        let (busy, others): (Vec<_>, Vec<_>) = grown.into_iter().partition(may);
        others.into_iter().for_each(|id| self.not_now(id));
        busy
    }

    /// They are looked at again when as many messages have passed once more.
    pub fn not_now(&mut self, stream: StreamId) {
        if let Some(Role::Socket(socket)) = self.halves.get_mut(&stream).map(|h| &mut h.role) {
            socket.messages = 0;
        }
    }

    /// Asks for an invitation, or for who has the other end unless `alone`.
    pub fn want(&self, stream: StreamId, alone: bool, out: Out<'_>) {
        out(RelayMsg::Want { stream, alone }, &[]);
    }

    /// Invitations that have come.
    pub fn take_invitations(&mut self) -> Vec<(StreamId, Key)> {
        std::mem::take(&mut self.invitations)
    }

    /// What the other end is to be told before the bytes of the frozen job, with a duplicate of its
    /// socket, and how many bytes the job has not read; nothing when the relay is needed. The half is
    /// frozen then: [`Relays::handed_over`] or [`Relays::take_back`] follows.
    ///
    /// # Errors
    /// As [`Relays::freeze`].
    pub fn hand_over(
        &mut self,
        stream: StreamId,
        job_end: BorrowedFd<'_>,
    ) -> Result<Option<(Vec<u8>, usize)>, RelayError> {
        let failed = |e| RelayError::io(stream, "lead a connection past its relay", e);
        let Some(half) = self.halves.get_mut(&stream).filter(|half| half.may_be_direct()) else {
            return Ok(None);
        };
        half.frozen = true;
        let state = socket::freeze(half, Some(job_end)).map_err(failed)?;
        let Some((tx, rx, unread, unsent)) = state.into_open() else {
            half.thaw();
            return Ok(None);
        };
        let (from, mut written) = tx.kept();
        written.extend(unsent);
        let next = rx.next();
        let waiting = unread.len();
        let unread = [unread, rx.into_pending()].concat();
        let begin = Begin { from, written: written.len() as u64, next, unread };
        let body = postcard::to_stdvec(&begin).map_err(|e| failed(io::Error::other(e)))?;
        let len = (body.len() as u32).to_le_bytes();
        Ok(Some(([&len[..], &body, &written].concat(), waiting)))
    }

    /// With this byte behind the rest it holds.
    ///
    /// # Errors
    /// When the socket does not take it.
    pub fn confirm_direct(to: &mut TcpStream) -> io::Result<()> {
        to.write_all(&[HOLDS])
    }

    /// Waits until so many bytes are in a socket, or as many as there is room for: a job that was told
    /// of them is to find them there.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn await_unread(socket: BorrowedFd<'_>, wanted: usize) -> io::Result<()> {
        let mut patience = Instant::now() + REFILL;
        let mut there = 0;
        while there < wanted && Instant::now() < patience {
            std::thread::sleep(LOOK);
            let now = raw::unread_bytes(socket)?;
            if now > there {
                (there, patience) = (now, Instant::now() + REFILL);
            }
        }
        Ok(())
    }

    /// The job has its new socket.
    pub fn handed_over(&mut self, stream: StreamId) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        half.close(&self.registry);
        if let Some(token) = half.token.take() {
            self.by_token.remove(&token);
            self.free.push(token);
        }
        half.backlog = VecDeque::new();
        half.begin_anew();
        half.set_direct(Some(Direct::Past));
    }

    /// It has not.
    pub fn take_back(&mut self, stream: StreamId, out: Out<'_>) {
        if let Some(half) = self.halves.get_mut(&stream) {
            half.thaw();
            half.pump(&self.registry, self.linked, out);
        }
    }

    /// The job has a socket of the relay again, whose other end is `far`, and `was` before.
    ///
    /// # Errors
    /// When the sockets cannot be watched.
    pub fn recall(
        &mut self,
        stream: StreamId,
        far: OwnedFd,
        was: OwnedFd,
        out: Out<'_>,
    ) -> Result<(), RelayError> {
        let (mut was, token) = (Local::socket(was), self.token(stream)?);
        was.register(&self.registry, token, Interest::READABLE)
            .map_err(|e| RelayError::io(stream, "watch a connection", e))?;
        let own = self.token(stream)?;
        let half = self.halves.get_mut(&stream).ok_or_else(|| unknown(stream))?;
        if let Role::Socket(socket) = &mut half.role {
            socket.renew();
        }
        half.attach(Local::socket(far), &self.registry, own)?;
        self.by_token.insert(own, stream);
        self.far_tokens.insert(token, stream);
        let recalling = Recalling {
            was: Some(was),
            token,
            ended: false,
            reset: false,
            told: false,
            answer: None,
            gone: false,
        };
        half.set_direct(Some(Direct::Recalling(Box::new(recalling))));
        half.ready(true);
        out(RelayMsg::Recall { stream }, &[]);
        self.go_on_recalling(stream, out);
        Ok(())
    }

    /// Is one of them between both ways?
    #[must_use]
    pub fn is_recalling(&self) -> bool {
        self.halves.values().any(|half| half.is_dormant() && half.local.is_some())
    }

    /// Takes what is left of the other way, and begins anew when that is all.
    pub(in crate::proxy) fn go_on_recalling(&mut self, stream: StreamId, out: Out<'_>) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        while let Some(was) = half.recalling().and_then(Recalling::take_open) {
            let got = with_buffer(|buf| {
                let got = was.read(buf);
                if let Got::Bytes(n) = got {
                    half.backlog.extend(&buf[..n]);
                }
                got
            });
            let Some(recalling) = half.recalling() else { return };
            recalling.was = Some(was);
            match got {
                Got::Bytes(_) => {}
                Got::Later => break,
                ended => (recalling.ended, recalling.reset) = (true, ended != Got::Eof),
            }
        }
        half.drain();
        let Some(recalling) = half.recalling() else { return };
        let &mut Recalling { ended, reset, told, answer, gone, token, .. } = recalling;
        // Before that the end of this side would be taken for the job's own.
        if let Some(was) = recalling.was.take_if(|_| ended && (told || gone || reset)) {
            was.close(&self.registry);
            self.far_tokens.remove(&token);
            self.free.push(token);
        }
        if recalling.was.is_some() || (answer.is_none() && !gone && !reset) {
            return;
        }
        half.begin_anew();
        if matches!(&half.role, Role::Socket(socket) if socket.reset_here) {
            // By the job, while its socket was only just there.
            half.socket_reset();
        }
        if let (Some(tx), Some(rx)) = (&mut half.tx, &mut half.rx) {
            let _ = tx.on_resync(0);
            if gone || reset || answer == Some(true) {
                rx.end_here();
            }
            if gone || reset {
                tx.break_off();
            }
            out(RelayMsg::Resync { stream, next: rx.next() }, &[]);
        }
        if let (true, Role::Socket(socket)) = (reset, &mut half.role) {
            socket.reset_there = true;
        }
        half.pump(&self.registry, self.linked, out);
    }
}
