//! Connections past their relays: the job's socket becomes one end of a TCP connection between the
//! two nodes, whose other end the home agent joins with the real socket.
//!
//! ```text
//! peer ⇄ real socket ─ home agent ─ far ═══ node to node ═══ the job's socket
//! ```
//! * **There**: the away half of a busy connection asks ([`RelayMsg::Want`]); the home half invites
//!   it with a key that is good for once; a connection that shows the key ([`Preface`]) becomes the
//!   home's `far`. With the job frozen the away half writes there what the relay has not carried
//!   ([`Relays::hand_over`]), and last one byte, with which it holds.
//! * **Back** ([`Relays::recall`]): once both know of it, both sides shut down what they write, and
//!   read what there still is to its end; then the relay begins anew.
//!
//! Ends of file, resets, full windows, keepalive and timeouts are those of TCP: nothing here keeps
//! bytes but what one end does not take at the moment.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::{Interest, Token};
use serde::{Deserialize, Serialize};

use super::endpoint::{with_buffer, Endpoint, Out, Role};
use super::local::{Got, Local, Put};
use super::stream::{RelayMsg, Sender, StreamId};
use super::{is_away, raw, socket, RelayError, Relays};
use crate::ids::{random_bytes, JobId};

/// What shows that a connection belongs to an invitation.
pub type Key = [u8; 32];

/// Messages after which a connection is worth a way past its relay.
const BUSY: u32 = 32;

/// Bytes of the length in front of a [`Begin`].
const LENGTH: usize = 4;

/// The last byte before those of the job.
const HOLDS: u8 = 1;

/// Bytes that a pump carries before others have their turn.
const TURN: usize = 4 << 20;

/// Bytes that a frozen job has not read come again within so long, one after the other.
const REFILL: Duration = Duration::from_millis(200);

/// Between two looks at them.
const LOOK: Duration = Duration::from_micros(50);

/// Largest [`Begin`]: what two sockets and a relay can hold of one direction, bytes.
const MOST: usize = 128 << 20;

/// The first bytes of such a connection, which no TLS record begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preface {
    /// Whose connection it is.
    pub job: JobId,
    /// Of the invitation.
    pub key: Key,
}

impl Preface {
    const MAGIC: &[u8; 16] = b"vosrun-direct-1\n";
    /// Its length, bytes.
    pub const LEN: usize = 64;

    /// As it is sent.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(Self::MAGIC);
        bytes[16..32].copy_from_slice(&self.job.0);
        bytes[32..].copy_from_slice(&self.key);
        bytes
    }

    /// Could these be the first bytes of one?
    #[must_use]
    pub fn is_begun(bytes: &[u8]) -> bool {
        !bytes.is_empty() && Self::MAGIC.starts_with(&bytes[..bytes.len().min(16)])
    }

    /// Out of the first bytes of a connection.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.get(..Self::LEN)?.try_into().ok()?;
        let (magic, rest) = bytes.split_at(16);
        let (job, key) = rest.split_at(16);
        (magic == Self::MAGIC)
            .then_some(Self { job: JobId(job.try_into().ok()?), key: key.try_into().ok()? })
    }

    /// Takes it out of a connection at whose begin it waits.
    ///
    /// # Errors
    /// When it is not there.
    pub fn read(from: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = [0; Self::LEN];
        from.read_exact(&mut bytes)?;
        Self::parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// What the away half says first. `written` bytes follow, then [`HOLDS`], then those of the job.
#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    /// Offset of the first byte that follows, in the relay's stream of the job's bytes.
    from: u64,
    written: u64,
    /// Offset of what the relay has not brought here, in the stream of the peer's bytes.
    next: u64,
    /// What it has brought, and the job has not read.
    unread: Vec<u8>,
}

/// A half of a relay that leaves its bytes to others.
#[derive(Debug)]
pub(super) enum Direct {
    /// They go past it.
    Past,
    /// It takes them over again.
    Recalling(Box<Recalling>),
}

/// The job has a socket of the relay again, and this is left of the other one.
#[derive(Debug)]
pub(super) struct Recalling {
    was: Option<Local>,
    token: Token,
    /// All was read.
    ended: bool,
    reset: bool,
    /// The home half knows that this is not the job's own word.
    told: bool,
    /// The home half is through, and has seen the end of the peer's bytes or not.
    answer: Option<bool>,
    /// The home half had ended before.
    gone: bool,
}

impl Recalling {
    /// The socket, if there may be more in it.
    fn take_open(&mut self) -> Option<Local> {
        let ended = self.ended;
        self.was.take_if(|_| !ended)
    }
}

/// One direction of a [`Pump`].
#[derive(Debug, Default)]
struct Flow {
    pending: VecDeque<u8>,
    readable: bool,
    writable: bool,
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
                Got::Bytes(n) => room = room.saturating_sub(n),
                Got::Later => self.readable = false,
                Got::Eof => self.ended = true,
                Got::Refused | Got::Reset => return Err(WasReset),
            }
        }
    }

    /// Writes what was just read, and keeps what is not taken.
    fn pass(&mut self, to: &Local, bytes: &[u8]) -> Result<(), WasReset> {
        let mut done = 0;
        while done < bytes.len() && self.writable {
            match to.write(&bytes[done..]) {
                Put::Bytes(n) if n > 0 => done += n,
                Put::Bytes(_) | Put::Later => self.writable = false,
                Put::Broken | Put::Reset => return Err(WasReset),
            }
        }
        self.pending.extend(&bytes[done..]);
        Ok(())
    }

    fn write(&mut self, to: &Local) -> Result<(), WasReset> {
        while self.writable && !self.pending.is_empty() {
            match to.write(self.pending.as_slices().0) {
                Put::Bytes(n) if n > 0 => drop(self.pending.drain(..n)),
                Put::Bytes(_) | Put::Later => self.writable = false,
                Put::Broken | Put::Reset => return Err(WasReset),
            }
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

/// The real socket and the job's, joined by the home agent.
#[derive(Debug)]
pub(super) struct Pump {
    far: Local,
    token: Token,
    /// The real socket, once it holds.
    near: Option<Local>,
    /// What has come of [`Begin`] and what follows it.
    begin: Vec<u8>,
    /// Bytes of the job that the relay has carried already.
    skip: u64,
    to_near: Flow,
    to_far: Flow,
    recalled: bool,
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

    fn ready(&mut self, far: bool) {
        let (reads, writes) = match far {
            true => (&mut self.to_near, &mut self.to_far),
            false => (&mut self.to_far, &mut self.to_near),
        };
        reads.readable = true;
        writes.writable = true;
    }

    /// Reads what comes before the bytes of the job. True when all of it is there.
    fn read_begin(&mut self) -> Result<Option<Begin>, WasReset> {
        loop {
            if let Some((begin, len)) = parse_begin(&self.begin).map_err(|_| WasReset)? {
                let all = len as u64 + begin.written + 1;
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

impl Endpoint {
    /// Bytes of the connection are not its matter now.
    pub(super) fn is_dormant(&self) -> bool {
        matches!(&self.role, Role::Socket(socket) if socket.direct.is_some())
    }

    fn recalling(&mut self) -> Option<&mut Recalling> {
        match &mut self.role {
            Role::Socket(socket) => match &mut socket.direct {
                Some(Direct::Recalling(recalling)) => Some(recalling),
                _ => None,
            },
            _ => None,
        }
    }

    fn set_direct(&mut self, direct: Option<Direct>) {
        if let Role::Socket(socket) = &mut self.role {
            socket.direct = direct;
        }
    }

    /// Open in both directions, with nothing told of an end.
    fn may_be_direct(&self) -> bool {
        let Role::Socket(socket) = &self.role else { return false };
        let open = self.tx.as_ref().is_some_and(|tx| !tx.closed())
            && self.rx.as_ref().is_some_and(|rx| !rx.broken() && !rx.has_ended());
        open && self.local.is_some() && socket.is_plain() && !self.frozen
    }

    /// A message has passed. True for the one that makes it busy.
    pub(super) fn note_message(&mut self) -> bool {
        match &mut self.role {
            Role::Socket(socket) if socket.away => {
                socket.messages = socket.messages.saturating_add(1);
                socket.messages == BUSY
            }
            _ => false,
        }
    }
}

/// The away side.
impl Relays {
    /// Connections that have become busy since the last call.
    pub fn take_busy(&mut self) -> Vec<StreamId> {
        let mut busy = std::mem::take(&mut self.grown_busy);
        busy.retain(|id| self.halves.get(id).is_some_and(Endpoint::may_be_direct));
        busy
    }

    /// They are looked at again when as many messages have passed once more.
    pub fn not_now(&mut self, stream: StreamId) {
        if let Some(Role::Socket(socket)) = self.halves.get_mut(&stream).map(|h| &mut h.role) {
            socket.messages = 0;
        }
    }

    /// Asks for an invitation.
    pub fn want(&self, stream: StreamId, out: Out<'_>) {
        out(RelayMsg::Want { stream }, &[]);
    }

    /// Invitations that have come.
    pub fn take_invitations(&mut self) -> Vec<(StreamId, Key)> {
        std::mem::take(&mut self.invitations)
    }

    /// What the other end is to be told before the bytes of the frozen job, with a duplicate of its
    /// socket, and how many bytes the job has not read; nothing when the relay is needed. The half is frozen then: [`Relays::handed_over`] or
    /// [`Relays::take_back`] follows.
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
        let half = self.halves.get_mut(&stream).ok_or_else(|| super::unknown(stream))?;
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
    pub(super) fn go_on_recalling(&mut self, stream: StreamId, out: Out<'_>) {
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

/// The home side.
impl Relays {
    fn invite(&mut self, stream: StreamId, out: Out<'_>) {
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
    pub fn connected(&mut self, key: &Key, far: TcpStream) -> Result<(), RelayError> {
        let Some(stream) = self.invited.remove(key) else {
            tracing::warn!("a connection with a key that is not good (any more)");
            return Ok(());
        };
        let failed = |e| RelayError::io(stream, "take a connection past the relay", e);
        let mut far = far;
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
    pub(super) fn pump_ready(&mut self, stream: StreamId, far: bool, out: Out<'_>) -> bool {
        let Some(pump) = self.pumps.get_mut(&stream) else { return false };
        if pump.near.is_none() && !far {
            return false;
        }
        pump.ready(far);
        self.go_on_pumping(stream, out);
        true
    }

    /// Those that did not get to the end of their turn.
    pub(super) fn pump_more(&mut self, out: Out<'_>) {
        for stream in std::mem::take(&mut self.unfinished) {
            self.go_on_pumping(stream, out);
        }
    }

    /// Something is left to be done at once.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.unfinished.is_empty()
    }

    fn go_on_pumping(&mut self, stream: StreamId, out: Out<'_>) {
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
    pub(super) fn forget_pump(&mut self, stream: StreamId) {
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
    pub(super) fn pumps_are_finished(&self) -> bool {
        self.pumps.values().all(|pump| pump.near.is_none() || pump.to_near.shut)
    }
}

/// Both sides.
impl Relays {
    /// A message that is about the way past a relay. False: it is another's.
    pub(super) fn hear_direct(&mut self, msg: &RelayMsg, out: Out<'_>) -> bool {
        let stream = msg.stream();
        match *msg {
            RelayMsg::Want { .. } => self.invite(stream, out),
            RelayMsg::Invite { key, .. } => self.invitations.push((stream, key)),
            RelayMsg::Recall { .. } => self.hear_recall(stream, out),
            RelayMsg::Recalling { .. } => {
                if let Some(recalling) = self.halves.get_mut(&stream).and_then(Endpoint::recalling)
                {
                    recalling.told = true;
                    recalling.was.iter().for_each(Local::shut);
                    self.go_on_recalling(stream, out);
                }
            }
            RelayMsg::Recalled { eof, .. } => {
                if let Some(recalling) = self.halves.get_mut(&stream).and_then(Endpoint::recalling)
                {
                    recalling.answer = Some(eof);
                    self.go_on_recalling(stream, out);
                }
            }
            RelayMsg::Forgotten { .. } => {
                let Some(half) = self.halves.get_mut(&stream).filter(|half| half.is_dormant())
                else {
                    return false;
                };
                let Some(recalling) = half.recalling() else {
                    self.remove(stream);
                    return true;
                };
                recalling.gone = true;
                self.go_on_recalling(stream, out);
            }
            // Left of what was under way before.
            _ => return self.halves.get(&stream).is_some_and(Endpoint::is_dormant),
        }
        true
    }

    fn hear_recall(&mut self, stream: StreamId, out: Out<'_>) {
        if let Some(pump) = self.pumps.get_mut(&stream).filter(|pump| pump.near.is_some()) {
            pump.recalled = true;
            out(RelayMsg::Recalling { stream }, &[]);
            return self.go_on_pumping(stream, out);
        }
        match self.halves.get(&stream) {
            // It was answered, and the answer was lost with a link.
            Some(half) => {
                let eof = half.tx.as_ref().is_some_and(Sender::closed);
                out(RelayMsg::Recalled { stream, eof }, &[]);
            }
            None => out(RelayMsg::Forgotten { stream }, &[]),
        }
    }

    /// An event of a socket between the nodes. False when the token is of none.
    pub(super) fn far_ready(&mut self, token: Token, out: Out<'_>) -> bool {
        let Some(stream) = self.far_tokens.get(&token).copied() else { return false };
        if !self.pump_ready(stream, true, out) {
            self.go_on_recalling(stream, out);
        }
        true
    }

    /// The other side is asked again, on a new link.
    pub(super) fn recall_again(&mut self, out: Out<'_>) {
        for (stream, half) in &mut self.halves {
            if half.recalling().is_some_and(|recalling| recalling.answer.is_none()) {
                out(RelayMsg::Recall { stream: *stream }, &[]);
            }
        }
    }
}
