//! The home agent joins the real socket with the connection to the job's node.

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;

use mio::{Interest, Token};

use super::super::endpoint::{with_buffer, Endpoint, Out, Role};
use super::super::local::{Got, Local, Put};
use super::super::stream::{RelayMsg, StreamId, CHUNK};
use super::super::{is_away, raw, RelayError, Relays};
use super::{Begin, Direct, Key, HOLDS, LENGTH};
use crate::ids::random_bytes;

/// Bytes that a pump carries before others have their turn.
const TURN: usize = 4 << 20;

/// Largest [`Begin`]: what two sockets and a relay can hold of one direction, bytes.
const MOST: usize = 128 << 20;

/// One direction of a [`Pump`].
#[derive(Debug, Default)]
struct Flow {
    pending: VecDeque<u8>,
    readable: bool,
    writable: bool,
    /// The last event told of bytes and nothing else: a read that leaves room has taken all.
    bytes_only: bool,
    /// Nothing follows what was read.
    ended: bool,
    /// Its other end was told so.
    shut: bool,
}

/// A step that ends a connection.
#[derive(Debug, PartialEq, Eq)]
struct WasReset;

impl Flow {
    /// Carries what there is, at most `room` bytes, as long as more may be `read`.
    fn carry(
        &mut self,
        from: &Local,
        to: &Local,
        read: bool,
        mut skip: Option<&mut u64>,
    ) -> Result<bool, WasReset> {
        let mut room = TURN;
        loop {
            self.write(to)?;
            if !read || self.ended || !self.readable || !self.pending.is_empty() {
                return Ok(false);
            }
            if room == 0 {
                return Ok(true);
            }
            let got = with_buffer(|buf| {
                let got = from.read(buf);
                if let Got::Bytes(n) = got {
                    let known = skip.as_deref().map_or(0, |skip| (*skip).min(n as u64));
                    if let Some(skip) = skip.as_deref_mut() {
                        *skip -= known;
                    }
                    self.pass(to, &buf[known as usize..n])?;
                }
                Ok(got)
            })?;
            match got {
                Got::Bytes(n) => {
                    self.readable = n == CHUNK || !self.bytes_only;
                    room = room.saturating_sub(n);
                }
                Got::Later => self.readable = false,
                Got::Eof => self.ended = true,
                Got::Refused | Got::Reset => return Err(WasReset),
            }
        }
    }

    /// Writes what was just read, and keeps what is not taken.
    fn pass(&mut self, to: &Local, bytes: &[u8]) -> Result<(), WasReset> {
        let done = put(to, bytes, &mut self.writable)?;
        self.pending.extend(&bytes[done..]);
        Ok(())
    }

    fn write(&mut self, to: &Local) -> Result<(), WasReset> {
        while self.writable && !self.pending.is_empty() {
            let done = put(to, self.pending.as_slices().0, &mut self.writable)?;
            self.pending.drain(..done);
        }
        if self.pending.is_empty() {
            self.pending.shrink_to(0);
        }
        Ok(())
    }

    /// Passes the end on, behind all bytes.
    fn shut(&mut self, to: &Local) {
        if self.pending.is_empty() && !std::mem::replace(&mut self.shut, true) {
            to.shut();
        }
        self.shut &= self.pending.is_empty();
    }
}

/// Writes what is taken at once, and how much that is.
fn put(to: &Local, bytes: &[u8], writable: &mut bool) -> Result<usize, WasReset> {
    let mut done = 0;
    while done < bytes.len() && *writable {
        match to.write(&bytes[done..]) {
            Put::Bytes(n) if n > 0 => done += n,
            Put::Bytes(_) | Put::Later => *writable = false,
            Put::Broken | Put::Reset => return Err(WasReset),
        }
    }
    Ok(done)
}

/// The real socket and the job's, joined by the home agent.
#[derive(Debug)]
pub(in crate::proxy) struct Pump {
    far: Local,
    token: Token,
    /// The real socket, once it holds.
    pub(super) near: Option<Local>,
    /// What has come of [`Begin`] and what follows it.
    begin: Vec<u8>,
    /// Bytes of the job that the relay has carried already.
    skip: u64,
    to_near: Flow,
    to_far: Flow,
    pub(super) recalled: bool,
}

/// What a pump came to.
enum Turn {
    /// It goes on; with true, at once.
    Open(bool),
    /// Both ends are closed.
    Over,
    /// The relay goes on; the end of the peer's bytes was seen, or not.
    Back(bool),
}

impl Pump {
    fn new(far: Local, token: Token) -> Self {
        Self {
            far,
            token,
            near: None,
            begin: Vec::new(),
            skip: 0,
            to_near: Flow::default(),
            to_far: Flow::default(),
            recalled: false,
        }
    }

    fn ready(&mut self, far: bool, closed: bool) {
        let (reads, writes) = match far {
            true => (&mut self.to_near, &mut self.to_far),
            false => (&mut self.to_far, &mut self.to_near),
        };
        (reads.readable, reads.bytes_only) = (true, !closed);
        writes.writable = true;
    }

    /// Reads what comes before the bytes of the job. True when all of it is there.
    fn read_begin(&mut self) -> Result<Option<Begin>, WasReset> {
        loop {
            if let Some((begin, len)) = parse_begin(&self.begin).map_err(|_| WasReset)? {
                let all = (len as u64).saturating_add(begin.written).saturating_add(1);
                if self.begin.len() as u64 >= all {
                    let rest = self.begin.split_off(len);
                    self.begin = rest;
                    return Ok(Some(begin));
                }
            }
            let got = with_buffer(|buf| {
                let got = self.far.read(buf);
                if let Got::Bytes(n) = got {
                    self.begin.extend_from_slice(&buf[..n]);
                }
                got
            });
            // The job's first bytes do not wait for a delayed acknowledgement (tcp(7), TCP_NODELAY).
            raw::acknowledge(self.far.as_fd());
            match got {
                Got::Bytes(_) if self.begin.len() <= MOST => {}
                Got::Later => return Ok(None),
                _ => return Err(WasReset),
            }
        }
    }

    fn turn(&mut self) -> Result<Turn, WasReset> {
        let Some(near) = &self.near else { return Ok(Turn::Open(false)) };
        let more = self.to_near.carry(&self.far, near, true, Some(&mut self.skip))?
            | self.to_far.carry(near, &self.far, !self.recalled, None)?;
        if self.recalled || self.to_far.ended {
            self.to_far.shut(&self.far);
        }
        if self.recalled {
            let done = self.to_far.shut && self.to_near.ended;
            return Ok(if done { Turn::Back(self.to_far.ended) } else { Turn::Open(more) });
        }
        if self.to_near.ended {
            self.to_near.shut(near);
        }
        Ok(if self.to_near.shut && self.to_far.shut { Turn::Over } else { Turn::Open(more) })
    }
}

/// A [`Begin`] and the bytes that it takes; `None` while it is not complete.
fn parse_begin(bytes: &[u8]) -> Result<Option<(Begin, usize)>, postcard::Error> {
    let Some((len, rest)) = bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
    let len = u32::from_le_bytes(*len) as usize;
    match rest.get(..len) {
        Some(body) => Ok(Some((postcard::from_bytes(body)?, LENGTH + len))),
        None => Ok(None),
    }
}

/// The home side.
impl Relays {
    /// Invites a connection to come past the relay.
    pub fn invite(&mut self, stream: StreamId, out: Out<'_>) {
        let may = |half: &Endpoint| !is_away(half) && half.may_be_direct();
        if !self.halves.get(&stream).is_some_and(may) || self.pumps.contains_key(&stream) {
            return;
        }
        match random_bytes::<32>() {
            Ok(key) => {
                self.invited.retain(|_, invited| *invited != stream);
                self.invited.insert(key, stream);
                out(RelayMsg::Invite { stream, key }, &[]);
            }
            Err(error) => tracing::warn!(%error, "getrandom(2)"),
        }
    }

    /// A connection that has shown a key. Dropped when nobody was invited with it.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn connected(&mut self, key: &Key, mut far: TcpStream) -> Result<(), RelayError> {
        let Some(stream) = self.invited.remove(key) else {
            tracing::warn!("a connection with a key that is not good (any more)");
            return Ok(());
        };
        let failed = |e| RelayError::io(stream, "take a connection past the relay", e);
        far.set_nodelay(true).map_err(failed)?;
        far.write_all(&[HOLDS]).map_err(failed)?;
        let (mut far, token) = (Local::socket(far.into()), self.token(stream)?);
        let events = Interest::READABLE | Interest::WRITABLE;
        far.register(&self.registry, token, events).map_err(failed)?;
        self.far_tokens.insert(token, stream);
        self.pumps.insert(stream, Pump::new(far, token));
        Ok(())
    }

    /// An event of the one or the other end. False when there is no pump, or it does not hold yet.
    pub(in crate::proxy) fn pump_ready(
        &mut self,
        stream: StreamId,
        far: bool,
        closed: bool,
        out: Out<'_>,
    ) -> bool {
        let Some(pump) = self.pumps.get_mut(&stream) else { return false };
        if pump.near.is_none() && !far {
            return false;
        }
        pump.ready(far, closed);
        self.go_on_pumping(stream, out);
        true
    }

    /// Those that did not get to the end of their turn.
    pub(in crate::proxy) fn pump_more(&mut self, out: Out<'_>) {
        for stream in std::mem::take(&mut self.unfinished) {
            self.go_on_pumping(stream, out);
        }
    }

    /// Something is left to be done at once.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.unfinished.is_empty()
    }

    pub(super) fn go_on_pumping(&mut self, stream: StreamId, out: Out<'_>) {
        let Some(pump) = self.pumps.get_mut(&stream) else { return };
        if pump.near.is_none() {
            match pump.read_begin() {
                Ok(None) => return,
                // The other side has thought better of it.
                Err(WasReset) => return self.forget_pump(stream),
                Ok(Some(begin)) => {
                    if !self.begin_pump(stream, begin) {
                        return self.end_pump(stream, true, out);
                    }
                }
            }
        }
        let Some(pump) = self.pumps.get_mut(&stream) else { return };
        match pump.turn() {
            Ok(Turn::Open(false)) => {}
            Ok(Turn::Open(true)) => self.unfinished.push(stream),
            Ok(Turn::Over) => self.end_pump(stream, false, out),
            Ok(Turn::Back(eof)) => self.end_recall(stream, eof, out),
            Err(WasReset) => self.end_pump(stream, true, out),
        }
    }

    /// The relay's bytes become those of the pump. False when both do not fit together.
    fn begin_pump(&mut self, stream: StreamId, begin: Begin) -> bool {
        let (Some(pump), Some(half)) = (self.pumps.get_mut(&stream), self.halves.get_mut(&stream))
        else {
            return false;
        };
        let (Some(tx), Some(rx)) = (half.tx.take(), half.rx.take()) else { return false };
        let plain = matches!(&half.role, Role::Socket(socket) if socket.is_plain());
        // Its error, if it has one, is to be met by the pump.
        pump.near = half.local.take();
        half.begin_anew();
        half.set_direct(Some(Direct::Past));
        if !plain || rx.broken() || rx.has_ended() {
            return false;
        }
        let Some(skip) = rx.next().checked_sub(begin.from) else { return false };
        let Some(unsent) = tx.kept_from(begin.next) else { return false };
        let flow = |pending| Flow { pending, readable: true, writable: true, ..Flow::default() };
        pump.to_far = Flow { ended: tx.closed(), ..flow(begin.unread.into()) };
        pump.to_far.pending.extend(unsent);
        pump.to_near = flow(std::mem::take(&mut half.backlog));
        pump.to_near.pending.extend(rx.into_pending());
        // What has come behind the header: bytes of the relay, the mark, bytes of the job.
        let mut came = std::mem::take(&mut pump.begin);
        let mark = begin.written as usize;
        if came.get(mark) != Some(&HOLDS) {
            return false;
        }
        came.remove(mark);
        let known = (came.len() as u64).min(skip);
        pump.skip = skip - known;
        pump.to_near.pending.extend(&came[known as usize..]);
        pump.near.is_some()
    }

    /// The relay goes on as before.
    pub(in crate::proxy) fn forget_pump(&mut self, stream: StreamId) {
        let Some(pump) = self.pumps.remove(&stream) else { return };
        self.far_tokens.remove(&pump.token);
        self.free.push(pump.token);
        pump.far.close(&self.registry);
    }

    /// Both ends are closed, or reset, and so is the relay.
    fn end_pump(&mut self, stream: StreamId, reset: bool, out: Out<'_>) {
        let Some(pump) = self.pumps.get_mut(&stream) else { return };
        let near = pump.near.take();
        if reset {
            pump.far.reset_on_close();
            near.iter().for_each(Local::reset_on_close);
        }
        if let Some(near) = near {
            near.close(&self.registry);
        }
        self.forget_pump(stream);
        self.remove(stream);
        out(RelayMsg::Forgotten { stream }, &[]);
    }

    fn end_recall(&mut self, stream: StreamId, eof: bool, out: Out<'_>) {
        let Some(pump) = self.pumps.get_mut(&stream) else { return };
        let (near, rest) = (pump.near.take(), std::mem::take(&mut pump.to_near.pending));
        self.forget_pump(stream);
        let Some(half) = self.halves.get_mut(&stream) else { return };
        half.local = near;
        half.backlog = rest;
        half.begin_anew();
        if let (true, Some(tx)) = (eof, &mut half.tx) {
            tx.close();
        }
        out(RelayMsg::Recalled { stream, eof }, &[]);
        half.pump(&self.registry, self.linked, out);
    }

    /// Everything that the ended job has written is with its peers, as far as these carry it.
    pub(in crate::proxy) fn pumps_are_finished(&self) -> bool {
        self.pumps.values().all(|pump| pump.near.is_none() || pump.to_near.shut)
    }
}
