//! What cannot move with a job and is relayed: pipes and files on stdin, stdout and stderr
//! of the home, the terminal, TCP connections (`socket`) and listening sockets (`listener`), UDP
//! sockets (`datagram`). Busy connections are led past their relays (`direct`).
//!
//! Each such object has two halves. The *home half* holds the original description; the
//! *away half* holds the other end of a pipe or pty that stands in for it where the job is:
//!
//! ```text
//!  home agent (node A)                                 supervisor (node B)
//!  ┌──────────────────────────┐        link        ┌──────────────────────────┐
//!  │ real stdin ─► Sender ────┼─── Data ─────────► ┼─► Receiver ─► pipe ══════╪══► job fd 0
//!  │                          │ ◄─ Ack, Resync ────┼                          │
//!  │ real stdout ◄─ Receiver ◄┼─── Data ───────────┼── Sender ◄── pipe ◄══════╪═══ job fd 1
//!  │                          │  Ack, BrokenPipe ─►┼                          │
//!  │ real tty, raw  ⇄  both   ┼─── keys, Winsize ─►┼─► pty master ◄══slave════╪══► job fd 2
//!  └──────────────────────────┘ ◄─ output ─────────└──────────────────────────┘
//! ```
//! [`Relays`] owns the halves of one side. It is driven by the owner of a mio loop and never
//! waits; messages leave through a closure and come in by [`Relays::on_message`].
//!
//! * **The link may go and come** at any message: every byte is kept until the other half
//!   has consumed it, and at [`Relays::resync`] each receiver says where it stands
//!   ([`stream`]). What is not a byte (window size, hang-up, broken pipe, final modes) is
//!   state, repeated at each resync.
//! * **The job may move on**: [`Relays::freeze`] gives each away half's state with all that
//!   the job has not read and the home has not acknowledged, [`Relays::rebuild`] makes it
//!   anew elsewhere. Frozen halves still talk, but leave their local objects alone, so that
//!   [`Relays::unfreeze`] can undo a move that failed.
//! * **The job may come home**: both halves then live in one process, joined by [`Loopback`].
//! * **The job ends**: [`Relays::job_ended`] sends its last bytes and the modes of its
//!   terminal; [`Relays::is_drained`] tells when home has written it all.
//!
//! The order of a move from the home: [`Relays::add_home`] with the job frozen (nothing is
//! read or changed yet) ─► the [`AwayState`]s travel, [`Relays::rebuild`] at the target ─►
//! *committed* ─► [`Relays::thaw`] at home, so that keys typed before reach the target ahead
//! of the go ─► [`Relays::thaw`] at the target ─► the job runs.
//!
//! The owner of the home side must hold no other descriptor of an original: its outside peer
//! sees eof or EPIPE when the half here closes the last one, as it would have seen it of the
//! job. SIGPIPE must be ignored.
//!
//! At most [`stream::WINDOW`] bytes wait in each half of a direction, plus what a freeze
//! takes from a pipe; a half that is idle keeps no memory for them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::{Registry, Token};

mod away;
mod datagram;
pub mod direct;
mod ending;
mod endpoint;
mod home;
mod listener;
mod local;
mod loopback;
mod raw;
mod socket;
pub mod stream;
pub mod term;

pub use away::{AwayEnd, AwayState, PtyPair, PtyState};
pub use datagram::{Fragments, Head, Told, Usual, Wires};
pub use endpoint::Out;
pub use home::{HomeEnd, JobControl};
pub use listener::{addresses, inet, Dial, ListenerState};
pub use loopback::Loopback;
pub use raw::{accept_queue, traffic};
pub use socket::TcpState;
pub use stream::{RelayMsg, StreamId};

use endpoint::{Endpoint, Role};

/// How often [`Relays::on_tick`] should be called while [`Relays::tick`] asks for it.
const TICK: Duration = Duration::from_millis(250);

/// The same while some half was busy a moment ago: between two calls of [`Endpoint::rest`].
const REST: Duration = Duration::from_millis(40);

/// Why a relay cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The peer breaks the protocol: close the link and connect anew.
    #[error("relay {stream}: {error}")]
    Stream { stream: StreamId, error: stream::StreamError },
    /// The peer means something else: close the link.
    #[error("relay {0}: unexpected message {1}")]
    Unexpected(StreamId, String),
    /// A local object failed.
    #[error("relay {stream}: {what}: {source}")]
    Io { stream: StreamId, what: &'static str, source: io::Error },
    /// The token range is used up, or the stream exists.
    #[error("relay {0}: no such relay can be added")]
    Full(StreamId),
}

impl RelayError {
    fn io(stream: StreamId, what: &'static str, source: io::Error) -> Self {
        Self::Io { stream, what, source }
    }

    fn unexpected(msg: &RelayMsg) -> Self {
        let mut text = format!("{msg:?}");
        text.truncate(text.find([' ', '{']).unwrap_or(text.len()));
        Self::Unexpected(msg.stream(), text)
    }
}

/// All halves of one side of a job's relays. See the module.
#[derive(Debug)]
pub struct Relays {
    registry: Registry,
    tokens: Range<usize>,
    /// Tokens of halves that are gone.
    free: Vec<Token>,
    by_token: BTreeMap<Token, StreamId>,
    halves: BTreeMap<StreamId, Endpoint>,
    linked: bool,
    /// Connections to be made to listening sockets of the job.
    wanted: VecDeque<Dial>,
    /// Streams that are listening sockets.
    listeners: Vec<StreamId>,
    /// Streams that are terminals at home: these alone are looked at without an event.
    terminals: Vec<StreamId>,
    /// The highest number that was ever used.
    last_stream: StreamId,
    /// Halves that were busy, and when they are looked at.
    busy: Vec<StreamId>,
    rest_at: Option<Instant>,
    /// Of sockets between the nodes.
    far_tokens: BTreeMap<Token, StreamId>,
    /// Connections that have become busy (away side).
    grown_busy: Vec<StreamId>,
    invitations: Vec<(StreamId, direct::Key)>,
    meetings: Vec<direct::Meeting>,
    /// Whether nothing is under way, and where the peer's stream ends.
    quiet: BTreeMap<StreamId, (bool, u64)>,
    /// The last question about that.
    asked: u64,
    /// Connections whose other end is to be looked for (home side).
    wants: Vec<StreamId>,
    /// Invitations that are out, and connections that are led past their relays (home side).
    invited: BTreeMap<direct::Key, StreamId>,
    pumps: BTreeMap<StreamId, direct::Pump>,
    unfinished: Vec<StreamId>,
}

impl Relays {
    /// An empty set. Events come with tokens in `tokens`, one for each stream.
    #[must_use]
    pub fn new(registry: Registry, tokens: Range<usize>) -> Self {
        Self {
            registry,
            tokens,
            free: Vec::new(),
            by_token: BTreeMap::new(),
            halves: BTreeMap::new(),
            linked: false,
            wanted: VecDeque::new(),
            listeners: Vec::new(),
            terminals: Vec::new(),
            last_stream: 0,
            busy: Vec::new(),
            rest_at: None,
            far_tokens: BTreeMap::new(),
            grown_busy: Vec::new(),
            invitations: Vec::new(),
            meetings: Vec::new(),
            quiet: BTreeMap::new(),
            asked: 0,
            wants: Vec::new(),
            invited: BTreeMap::new(),
            pumps: BTreeMap::new(),
            unfinished: Vec::new(),
        }
    }

    /// Adds the home half of `stream`, frozen: until [`Relays::thaw`] it leaves `end` alone.
    /// Returns what the away half is to be rebuilt from.
    ///
    /// # Errors
    /// [`RelayError::Io`] when the object cannot be examined or watched.
    pub fn add_home(&mut self, stream: StreamId, end: HomeEnd) -> Result<AwayState, RelayError> {
        let (half, local, away) = home::build(stream, end)
            .map_err(|e| RelayError::io(stream, "examine the original object", e))?;
        self.insert(half, local)?;
        Ok(away)
    }

    /// Undoes [`Relays::add_home`] of a move that failed.
    pub fn remove(&mut self, stream: StreamId) {
        self.forget_pump(stream);
        let Some(mut half) = self.halves.remove(&stream) else { return };
        half.close(&self.registry);
        if let Some(token) = half.token {
            self.by_token.remove(&token);
            self.free.push(token);
        }
        self.listeners.retain(|id| *id != stream);
        self.terminals.retain(|id| *id != stream);
    }

    /// Adds an away half, frozen until [`Relays::thaw`]. Returns the job's end: the read end
    /// or write end of a pipe, or the slave of a pty.
    ///
    /// # Errors
    /// [`RelayError::Io`] when the local object cannot be made.
    pub fn rebuild(&mut self, state: AwayState) -> Result<OwnedFd, RelayError> {
        self.rebuild_on(state, None)
    }

    /// As [`Relays::rebuild`]; a terminal becomes `pty`, made beforehand.
    ///
    /// # Errors
    /// As [`Relays::rebuild`].
    pub fn rebuild_on(
        &mut self,
        state: AwayState,
        pty: Option<PtyPair>,
    ) -> Result<OwnedFd, RelayError> {
        let stream = state.stream;
        let (half, local, job_end) = away::rebuild(state, pty)
            .map_err(|e| RelayError::io(stream, "make the job's pipe or terminal", e))?;
        self.insert(half, local)?;
        Ok(job_end)
    }

    /// As [`Relays::rebuild`], of a connection: `ends` are the job's socket and the other end of
    /// it, made beforehand, if [`AwayState::wants_socket`]. What the job has not read is in it
    /// then, and what it has written.
    ///
    /// # Errors
    /// [`RelayError::Io`] when the state is of another kind, or the sockets cannot be used.
    pub fn rebuild_socket(
        &mut self,
        state: AwayState,
        ends: Option<(BorrowedFd<'_>, OwnedFd)>,
    ) -> Result<(), RelayError> {
        let id = state.stream;
        let failed = |e| RelayError::io(id, "make the job's connection", e);
        let AwayEnd::Tcp(tcp) = state.end else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let (job_end, far) = ends.map_or((None, None), |(job, far)| (Some(job), Some(far)));
        let half = socket::rebuild(id, *tcp, job_end).map_err(failed)?;
        match far {
            Some(far) => self.insert(half, local::Local::socket(far))?,
            None => self.keep(half)?,
        }
        if let Some(half) = self.halves.get_mut(&id) {
            half.prefill(&self.registry);
        }
        Ok(())
    }

    /// As [`Relays::rebuild_socket`], of a UDP socket: `wires` lead to the job's, if it has it still.
    ///
    /// # Errors
    /// [`RelayError::Io`] when the state is of another kind, or the sockets cannot be used.
    pub fn rebuild_datagrams(
        &mut self,
        state: AwayState,
        wires: Option<Wires>,
    ) -> Result<(), RelayError> {
        let id = state.stream;
        let failed = |e| RelayError::io(id, "make the job's UDP socket", e);
        let AwayEnd::Datagrams(state) = state.end else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let (half, local) = datagram::rebuild(id, *state, wires).map_err(failed)?;
        match local {
            Some(local) => self.insert(half, local)?,
            None => self.keep(half)?,
        }
        let half = self.halves.get(&id);
        half.map_or(Ok(()), |half| half.watch_datagrams(&self.registry)).map_err(failed)
    }

    fn insert(&mut self, mut half: Endpoint, local: local::Local) -> Result<(), RelayError> {
        self.attach(&mut half, local)?;
        self.keep(half)
    }

    fn token(&mut self, stream: StreamId) -> Result<Token, RelayError> {
        let token = self.free.pop().or_else(|| self.tokens.next().map(Token));
        token.ok_or(RelayError::Full(stream))
    }

    /// Gives a half its local object.
    fn attach(&mut self, half: &mut Endpoint, local: local::Local) -> Result<(), RelayError> {
        if self.halves.contains_key(&half.id) {
            return Err(RelayError::Full(half.id));
        }
        let token = self.token(half.id)?;
        half.attach(local, &self.registry, token)?;
        self.by_token.insert(token, half.id);
        Ok(())
    }

    fn keep(&mut self, half: Endpoint) -> Result<(), RelayError> {
        if self.halves.contains_key(&half.id) {
            return Err(RelayError::Full(half.id));
        }
        match half.role {
            Role::HomeListener(_) | Role::AwayListener(_) => self.listeners.push(half.id),
            Role::HomeTty(_) => self.terminals.push(half.id),
            Role::HomePipe
            | Role::AwayPipe { .. }
            | Role::AwayPty(_)
            | Role::Socket(_)
            | Role::HomeDatagrams(_)
            | Role::AwayDatagrams(_) => {}
        }
        self.last_stream = self.last_stream.max(half.id);
        self.halves.insert(half.id, half);
        Ok(())
    }

    /// The streams of this side.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> + '_ {
        self.halves.keys().copied()
    }

    /// An event of a local object. False when the token is not of this set.
    pub fn on_ready(&mut self, token: Token, out: Out<'_>) -> bool {
        self.on_event(token, true, out)
    }

    /// As [`Relays::on_ready`]; `closed` is false only when the event tells neither of an end or an
    /// error nor of urgent data.
    pub fn on_event(&mut self, token: Token, closed: bool, out: Out<'_>) -> bool {
        let Some(id) = self.by_token.get(&token).copied() else {
            return self.far_ready(token, closed, out);
        };
        if self.pump_ready(id, false, closed, out) {
            return true;
        }
        let Some(half) = self.halves.get_mut(&id) else { return false };
        half.ready(closed);
        if half.is_dormant() {
            self.go_on_recalling(id, out);
            return true;
        }
        // Keys typed after a change of the window's size shall not arrive before it.
        measure(half);
        half.pump(&self.registry, self.linked, out);
        self.note_busy(id);
        if self.is_listener(id) {
            self.accept_all(id, out);
        }
        self.find_accepted(out);
        true
    }

    /// A message from the other side.
    ///
    /// # Errors
    /// [`RelayError::Stream`] and [`RelayError::Unexpected`]: the link should be closed.
    pub fn on_message(
        &mut self,
        msg: &RelayMsg,
        payload: &[u8],
        out: Out<'_>,
    ) -> Result<(), RelayError> {
        if self.hear_listener(msg, out)? || self.hear_direct(msg, out) {
            return Ok(());
        }
        let stream = msg.stream();
        let Some(half) = self.halves.get_mut(&stream) else { return self.hear_of_none(msg, out) };
        if matches!(msg, RelayMsg::Forgotten { .. }) && half.is_over_away() {
            self.remove(stream);
            return Ok(());
        }
        half.message(msg, payload)?;
        half.pump(&self.registry, self.linked, out);
        if half.is_over_everywhere() {
            self.remove(stream);
            out(RelayMsg::Forgotten { stream }, &[]);
        }
        self.note_busy(stream);
        self.find_accepted(out);
        Ok(())
    }

    fn note_busy(&mut self, stream: StreamId) {
        let Some(half) = self.halves.get_mut(&stream) else { return };
        if half.busy && half.note_message() {
            self.grown_busy.push(stream);
        }
        if half.busy && !std::mem::replace(&mut half.listed, true) {
            self.busy.push(stream);
            self.rest_at.get_or_insert_with(|| Instant::now() + REST);
        }
    }

    /// Lets those rest that were busy, if it is time for that.
    fn rest(&mut self, out: Out<'_>) {
        if self.rest_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        let (halves, linked) = (&mut self.halves, self.linked);
        self.busy.retain(|stream| {
            let Some(half) = halves.get_mut(stream) else { return false };
            half.listed = !half.rest(linked, out);
            half.listed
        });
        self.rest_at = (!self.busy.is_empty()).then(|| Instant::now() + REST);
    }

    /// A message about a stream of which this side has no half.
    fn hear_of_none(&self, msg: &RelayMsg, out: Out<'_>) -> Result<(), RelayError> {
        let stream = msg.stream();
        match msg {
            // It is forgotten here, and the word of that was lost with a link.
            RelayMsg::Over { .. } if stream <= self.last_stream => {
                out(RelayMsg::Forgotten { stream }, &[]);
                Ok(())
            }
            _ if stream <= self.last_stream => Ok(()),
            // A connection that the home has accepted, and that has to be told again.
            _ if !self.listeners.is_empty() => Ok(()),
            _ => Err(RelayError::unexpected(msg)),
        }
    }

    /// The link is up: says where this side stands. To be called on both sides.
    pub fn resync(&mut self, out: Out<'_>) {
        self.disconnected();
        self.linked = true;
        for half in self.halves.values_mut() {
            half.resync(out);
            half.pump(&self.registry, true, out);
        }
        self.rest_again(out);
        self.recall_again(out);
    }

    /// The link is gone. Local objects are read on as far as the window allows.
    pub fn disconnected(&mut self) {
        self.linked = false;
        for tx in self.halves.values_mut().filter_map(|half| half.tx.as_mut()) {
            tx.disconnect();
        }
    }

    /// Freezes an away half, with the job frozen, and gives its state; `job_end` is a
    /// duplicate of the job's end of it, if the job has it still. Keys that the kernel has
    /// not processed yet are processed now: take the job's pending signals afterwards.
    ///
    /// # Errors
    /// [`RelayError::Io`]; the half stays frozen.
    pub fn freeze(
        &mut self,
        stream: StreamId,
        job_end: Option<BorrowedFd<'_>>,
    ) -> Result<AwayState, RelayError> {
        let failed = |e| RelayError::io(stream, "freeze", e);
        if self.is_listener(stream) {
            return self.freeze_listener(stream, job_end).map_err(failed);
        }
        let half = self.halves.get_mut(&stream).ok_or_else(|| unknown(stream))?;
        away::freeze(half, job_end).map_err(failed)
    }

    /// Undoes [`Relays::freeze`] of a move that failed, before the job is thawed.
    ///
    /// # Errors
    /// [`RelayError::Io`] when unread input could not be put back; the half runs on.
    pub fn unfreeze(&mut self, state: &AwayState, out: Out<'_>) -> Result<(), RelayError> {
        let stream = state.stream;
        // A connection that was over may have been forgotten meanwhile.
        let Some(half) = self.halves.get_mut(&stream) else { return Ok(()) };
        let result = away::put_back(half, state).and_then(|()| away::type_ahead(half));
        half.thaw();
        half.pump(&self.registry, self.linked, out);
        if self.linked && self.is_listener(stream) {
            out(RelayMsg::Resync { stream, next: 0 }, &[]);
        }
        result.map_err(|e| RelayError::io(stream, "put back unread input", e))
    }

    /// Sets every frozen half going: at home after the commit, away just before the job is
    /// thawed.
    pub fn thaw(&mut self, out: Out<'_>) {
        self.dial_again();
        for half in self.halves.values_mut().filter(|half| half.frozen) {
            if let Err(error) = away::type_ahead(half) {
                tracing::warn!(stream = half.id, %error, "type-ahead is processed a second time");
            }
            half.thaw();
            want(half);
            activate(half);
            half.pump(&self.registry, self.linked, out);
        }
        for stream in self.streams().collect::<Vec<_>>() {
            self.note_busy(stream);
        }
        for listener in self.listeners.clone() {
            self.accept_all(listener, out);
        }
    }

    /// SIGWINCH came (home side): sends the new size.
    pub fn on_winch(&mut self, out: Out<'_>) {
        for half in self.halves.values_mut() {
            measure(half);
            half.pump(&self.registry, self.linked, out);
        }
    }

    /// The job was stopped (home side): the terminal gets its own modes back, so that this
    /// process can stop as well.
    pub fn suspend(&mut self) {
        for half in self.halves.values_mut() {
            if let (Role::HomeTty(tty), Some(local)) = (&mut half.role, &half.local) {
                tty.suspend(local.as_fd());
            }
        }
    }

    /// This process was continued (home side): uses the terminal again, if it is in the
    /// foreground.
    pub fn resume(&mut self, out: Out<'_>) {
        for half in self.halves.values_mut().filter(|half| !half.frozen) {
            want(half);
            activate(half);
            measure(half);
            half.pump(&self.registry, self.linked, out);
        }
    }

    /// The time until [`Relays::on_tick`] is due, while a terminal waits for its foreground, a
    /// connection to be accepted, or a half was busy just now.
    #[must_use]
    pub fn tick(&self) -> Option<Duration> {
        let waits = |half: &Endpoint| match &half.role {
            Role::HomeTty(tty) => half.local.is_some() && tty.wants_tick(),
            _ => false,
        };
        let mut terminals = self.terminals.iter().filter_map(|id| self.halves.get(id));
        let rest = self.rest_at.map(|_| REST);
        rest.or_else(|| (self.looks_again() || terminals.any(waits)).then_some(TICK))
    }

    /// Looks whether this process came to the foreground, and what the job has accepted.
    pub fn on_tick(&mut self, out: Out<'_>) {
        self.rest(out);
        self.pump_more(out);
        self.find_accepted(out);
        self.accept_again(out);
        for id in &self.terminals {
            let Some(half) = self.halves.get_mut(id) else { continue };
            if activate(half) {
                measure(half);
                half.pump(&self.registry, self.linked, out);
            }
        }
    }
}

impl Drop for Relays {
    /// Leaves no terminal raw and no descriptor watched.
    fn drop(&mut self) {
        self.suspend();
        for half in self.halves.values_mut() {
            half.close(&self.registry);
        }
    }
}

fn unknown(stream: StreamId) -> RelayError {
    RelayError::Unexpected(stream, "freeze of an unknown stream".into())
}

fn is_away(half: &Endpoint) -> bool {
    match &half.role {
        Role::AwayPipe { .. }
        | Role::AwayPty(_)
        | Role::AwayListener(_)
        | Role::AwayDatagrams(_) => true,
        Role::Socket(socket) => socket.away,
        Role::HomePipe | Role::HomeTty(_) | Role::HomeListener(_) | Role::HomeDatagrams(_) => false,
    }
}

fn want(half: &mut Endpoint) {
    if let (Role::HomeTty(tty), Some(local)) = (&mut half.role, &half.local) {
        tty.resume(local.as_fd());
    }
}

/// Takes a home terminal into use if that is due; true when it was done.
fn activate(half: &mut Endpoint) -> bool {
    let (Role::HomeTty(tty), Some(local), Some(tx)) = (&mut half.role, &half.local, &mut half.tx)
    else {
        return false;
    };
    let done = tty.activate(local.as_fd(), tx).unwrap_or_else(|error| {
        tracing::warn!(stream = half.id, %error, "the terminal cannot be taken into use");
        false
    });
    if done {
        half.announce = true;
        half.readable = true;
    } else if local.hung_up() {
        half.ready(true);
    }
    done
}

fn measure(half: &mut Endpoint) {
    if let (Role::HomeTty(tty), Some(local)) = (&mut half.role, &half.local) {
        half.announce |= tty.measure(local.as_fd());
    }
}
