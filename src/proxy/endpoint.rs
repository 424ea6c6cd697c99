//! One half of one relayed object: a local descriptor, a sender and/or a receiver.
//!
//! Every event ends in [`Endpoint::pump`], which moves what can be moved:
//!
//! ```text
//! local ──fill──► Sender ──send──► link      link ──► Receiver ──drain──► local
//! ```
//! A frozen endpoint takes part in the protocol but leaves its local object alone. That is
//! what makes a copy of its state valid as long as it stays frozen: it acknowledges nothing
//! that the copy has not seen.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::AsFd;

use mio::{Interest, Registry, Token};

use super::away::Pty;
use super::datagram::{AwayDatagrams, HomeDatagrams};
use super::home::HomeTty;
use super::listener::{AwayListener, HomeListener};
use super::local::{Got, Local, Put};
use super::socket::Socket;
use super::stream::{Receiver, RelayMsg, Sender, StreamId, ACK, CHUNK};
use super::RelayError;

/// Puts one message on the link.
pub type Out<'a> = &'a mut dyn FnMut(RelayMsg, &[u8]);

/// What an endpoint is besides its streams.
#[derive(Debug)]
pub(super) enum Role {
    /// The real pipe, socket or file.
    HomePipe,
    /// The real terminal.
    HomeTty(HomeTty),
    /// The other end of the job's pipe; its capacity, bytes.
    AwayPipe {
        capacity: u32,
    },
    /// The master of the job's terminal.
    AwayPty(Pty),
    /// A TCP socket of either side.
    Socket(Box<Socket>),
    /// The real listening socket, and the job's.
    HomeListener(HomeListener),
    AwayListener(AwayListener),
    /// The real UDP socket, and the job's.
    HomeDatagrams(Box<HomeDatagrams>),
    AwayDatagrams(Box<AwayDatagrams>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub id: StreamId,
    pub role: Role,
    pub local: Option<Local>,
    pub tx: Option<Sender>,
    pub rx: Option<Receiver>,
    /// Bytes that go to `local` before those of `rx`, acknowledged already.
    pub backlog: VecDeque<u8>,
    pub frozen: bool,
    /// The last read or write did not say "later".
    pub readable: bool,
    pub writable: bool,
    /// The last event told of nothing else: a read that leaves room has taken all.
    bytes_only: bool,
    /// The peer does not know yet what [`Endpoint::notices`] says.
    pub announce: bool,
    /// Of the local object's events.
    pub token: Option<Token>,
    /// Bytes or acknowledgements came since the last [`Endpoint::rest`].
    pub busy: bool,
    /// It is among those that [`Endpoint::rest`] is called for.
    pub listed: bool,
    /// Offset of the last acknowledgement on this link.
    acknowledged: u64,
    /// It was said on this link that the connection is over.
    over_told: bool,
}

impl Endpoint {
    /// A frozen endpoint.
    pub fn new(id: StreamId, role: Role, tx: Option<Sender>, rx: Option<Receiver>) -> Self {
        Self {
            id,
            role,
            local: None,
            tx,
            rx,
            backlog: VecDeque::new(),
            frozen: true,
            readable: true,
            writable: true,
            bytes_only: false,
            announce: false,
            token: None,
            busy: false,
            listed: false,
            acknowledged: 0,
            over_told: false,
        }
    }

    /// Takes `local` and asks for its events.
    pub fn attach(
        &mut self,
        mut local: Local,
        registry: &Registry,
        token: Token,
    ) -> Result<(), RelayError> {
        let interest = match (&self.tx, &self.rx) {
            _ if matches!(self.role, Role::AwayDatagrams(_)) => Interest::READABLE,
            (Some(_), None) | (None, None) => Interest::READABLE,
            (None, Some(_)) => Interest::WRITABLE,
            (Some(_), Some(_)) => Interest::READABLE | Interest::WRITABLE,
        };
        let interest = match self.role {
            // A read ends where urgent data begins.
            Role::Socket(_) => interest | Interest::PRIORITY,
            _ => interest,
        };
        local
            .register(registry, token, interest)
            .map_err(|e| RelayError::io(self.id, "watch the local object", e))?;
        self.local = Some(local);
        self.token = Some(token);
        Ok(())
    }

    /// Closes the local object, for good.
    pub fn close(&mut self, registry: &Registry) {
        if let Some(local) = self.local.take() {
            local.close(registry);
        }
    }

    /// Takes the local object into use.
    pub fn thaw(&mut self) {
        self.frozen = false;
        if let Role::AwayListener(listener) = &mut self.role {
            listener.captured = false;
            self.announce = true;
        }
        if let (Role::HomeDatagrams(home), Some(local)) = (&self.role, &self.local) {
            home.begin(local.as_fd());
        }
        if let Some(tx) = &mut self.tx {
            tx.hold(false);
        }
        self.ready(true);
    }

    /// With streams in which nothing has passed.
    pub fn begin_anew(&mut self) {
        if let Role::Socket(socket) = &mut self.role {
            socket.direct = None;
        }
        (self.tx, self.rx) = (Some(Sender::default()), Some(Receiver::default()));
        (self.acknowledged, self.over_told, self.frozen) = (0, false, false);
        self.ready(true);
    }

    /// The local object may have become readable or writable and, when `closed`, broken.
    pub fn ready(&mut self, closed: bool) {
        self.readable = true;
        self.writable = true;
        self.bytes_only = !closed && matches!(self.role, Role::Socket(_));
        let gone = !self.bytes_only && self.local.as_ref().is_some_and(Local::hung_up);
        if gone && !self.frozen {
            self.gone();
        }
    }

    /// The other side of the local object is gone.
    fn gone(&mut self) {
        match &mut self.role {
            Role::HomeTty(tty) => {
                tty.hang_up();
                self.break_off();
                self.announce = true;
            }
            Role::HomePipe | Role::AwayPipe { .. } => self.break_reader(),
            Role::Socket(_) => self.socket_failed(),
            // No slave is open just now; the job may open it again by /dev/tty.
            Role::AwayPty(_) | Role::HomeListener(_) | Role::AwayListener(_) => {}
            // An error is read as datagrams are.
            Role::HomeDatagrams(_) | Role::AwayDatagrams(_) => {}
        }
    }

    /// Nothing goes in or out any more.
    pub fn break_off(&mut self) {
        if let Some(tx) = &mut self.tx {
            tx.break_off();
        }
        self.break_reader();
    }

    /// Nobody reads what comes from the link: its writer shall know.
    pub fn break_reader(&mut self) {
        if let Some(rx) = self.rx.as_mut().filter(|rx| !rx.finished()) {
            rx.break_off();
            self.backlog.clear();
            self.announce = true;
        }
    }

    /// Moves all that can be moved now.
    pub fn pump(&mut self, registry: &Registry, linked: bool, out: Out<'_>) {
        if self.is_dormant() {
            return;
        }
        if !self.frozen {
            // What was read leaves before more is read, so that the other side has work meanwhile.
            while self.fill() {
                if linked {
                    self.send(out);
                }
            }
            self.drain();
            self.close_if_done(registry);
        }
        if linked {
            self.send(out);
        }
    }

    /// Reads once, as far as the window allows. False when no more is to be read now.
    fn fill(&mut self) -> bool {
        if self.role.is_datagrams() {
            self.fill_datagrams(false);
            return false;
        }
        if !self.readable || !self.may_read() {
            return false;
        }
        let (Some(tx), Some(local)) = (&mut self.tx, &self.local) else { return false };
        let known = match &self.role {
            Role::Socket(socket) => socket.skip,
            _ => 0,
        };
        let room = tx.room().max(known).min(CHUNK);
        if room == 0 {
            return false;
        }
        let role = &mut self.role;
        self.busy = true;
        match with_buffer(|buf| {
            let got = local.read(&mut buf[..room]);
            if let Got::Bytes(n) = got {
                push(role, tx, &buf[..n]);
            }
            got
        }) {
            Got::Bytes(n) => {
                self.readable = n == room || !self.bytes_only;
                true
            }
            other => {
                self.no_bytes(other);
                false
            }
        }
    }

    fn may_read(&mut self) -> bool {
        match (&mut self.role, &self.local) {
            (Role::HomeTty(tty), Some(local)) => tty.may_read(local.as_fd()),
            (Role::Socket(socket), Some(_)) => !socket.held,
            (_, local) => local.is_some(),
        }
    }

    /// A read gave no bytes.
    fn no_bytes(&mut self, got: Got) {
        self.readable = false;
        if got == Got::Reset {
            self.socket_reset();
        }
        match &mut self.role {
            Role::HomeTty(_) if self.local.as_ref().is_some_and(Local::hung_up) => self.gone(),
            Role::HomeTty(tty) if got == Got::Refused => tty.lost(),
            Role::HomePipe | Role::AwayPipe { .. } | Role::Socket(_) if got != Got::Later => {
                if let Some(tx) = &mut self.tx {
                    tx.close();
                }
            }
            _ => {}
        }
    }

    /// Reads all that the local object holds into the sender, whatever the window.
    pub fn take_all(&mut self) {
        if self.role.is_datagrams() {
            self.readable = true;
            return self.fill_datagrams(true);
        }
        while let (Some(tx), Some(local)) = (&mut self.tx, &self.local) {
            if tx.closed() {
                return;
            }
            let role = &mut self.role;
            let got = with_buffer(|buf| {
                let got = local.read(buf);
                if let Got::Bytes(n) = got {
                    push(role, tx, &buf[..n]);
                }
                got
            });
            if !matches!(got, Got::Bytes(_)) {
                return self.no_bytes(got);
            }
        }
    }

    /// Writes backlog and received bytes to the local object.
    pub fn drain(&mut self) {
        if self.role.is_datagrams() {
            return self.drain_datagrams();
        }
        self.write_all();
        if let (Role::Socket(socket), Some(local)) = (&mut self.role, &self.local) {
            socket.trim_much(local.as_fd());
        }
    }

    fn write_all(&mut self) {
        while self.writable {
            let (Some(rx), Some(local)) = (&mut self.rx, &self.local) else { return };
            let backlog = self.backlog.as_slices().0;
            let bytes = if backlog.is_empty() { rx.pending() } else { backlog };
            let room = match &self.role {
                Role::Socket(socket) => socket.room(),
                _ => usize::MAX,
            };
            let bytes = bytes.get(..room).unwrap_or(bytes);
            if bytes.is_empty() {
                return;
            }
            let put = local.write(bytes);
            if let (Role::Socket(socket), Put::Bytes(n)) = (&mut self.role, put) {
                socket.note_sent(&bytes[..n]);
            }
            match put {
                Put::Broken => return self.gone_for_writing(),
                Put::Reset => return self.socket_reset(),
                Put::Later | Put::Bytes(0) => self.writable = false,
                Put::Bytes(n) if backlog.is_empty() => rx.consume(n),
                Put::Bytes(n) => drop(self.backlog.drain(..n)),
            }
        }
    }

    fn gone_for_writing(&mut self) {
        match self.role {
            Role::AwayPty(_) | Role::Socket(_) => self.break_reader(),
            _ => self.gone(),
        }
    }

    fn close_if_done(&mut self, registry: &Registry) {
        match self.role {
            Role::Socket(_) => return self.end_socket(registry),
            Role::HomeDatagrams(_) | Role::AwayDatagrams(_) => {
                return self.end_datagrams(registry);
            }
            Role::HomeListener(_) | Role::AwayListener(_) => return,
            _ => {}
        }
        if let Role::AwayPty(pty) = &self.role {
            if pty.hung_up() {
                self.break_off();
            }
        }
        if let Some(rx) = self.rx.as_mut().filter(|rx| rx.at_eof() && self.backlog.is_empty()) {
            rx.consume_eof();
        }
        let written = self.rx.as_ref().is_none_or(Receiver::finished);
        if !written {
            return;
        }
        if let (Role::HomeTty(tty), Some(local)) = (&mut self.role, &self.local) {
            // The job's last word is written: the relay of this terminal is over.
            tty.finish(local.as_fd());
            self.close(registry);
        } else if self.tx.as_ref().is_none_or(Sender::closed) {
            self.close(registry);
        }
    }

    /// Where the receiver stands, for a new link.
    pub fn resync(&mut self, out: Out<'_>) {
        if self.is_dormant() {
            return;
        }
        let stream = self.id;
        if let Some(rx) = self.rx.as_ref().filter(|rx| !rx.broken()) {
            out(RelayMsg::Resync { stream, next: rx.next() }, &[]);
            let (offset, window) = rx.ack();
            self.acknowledged = offset;
            out(RelayMsg::Ack { stream, offset, window }, &[]);
        }
        self.announce = true;
        self.over_told = false;
    }

    fn send(&mut self, out: Out<'_>) {
        let stream = self.id;
        if std::mem::take(&mut self.announce) {
            for notice in self.notices() {
                out(notice, &[]);
            }
        }
        let mut said = false;
        while let Some((offset, bytes, eof)) = self.tx.as_mut().and_then(Sender::poll) {
            out(RelayMsg::Data { stream, offset, eof }, bytes);
            said = true;
        }
        self.acknowledge(said, out);
        // Behind everything that the home half must know to be through as well. A copy of a frozen one
        // may know less, and needs the home half yet.
        if !self.over_told && !self.frozen && self.is_over_away() {
            self.over_told = true;
            out(RelayMsg::Over { stream }, &[]);
        }
    }

    /// Says what was consumed, if that is much, the end, or wanted `now`.
    pub fn acknowledge(&mut self, now: bool, out: Out<'_>) {
        let Some(rx) = self.rx.as_ref().filter(|rx| !rx.broken()) else { return };
        let (offset, window) = rx.ack();
        let news = offset.saturating_sub(self.acknowledged);
        if news >= ACK || (news > 0 && (now || rx.finished())) {
            self.acknowledged = offset;
            out(RelayMsg::Ack { stream: self.id, offset, window }, &[]);
        }
    }

    /// To be called from time to time: acknowledges the rest and then, if nothing came since the
    /// last call, gives memory back. True when nothing is left to be done.
    pub fn rest(&mut self, linked: bool, out: Out<'_>) -> bool {
        if linked {
            self.acknowledge(true, out);
        }
        if std::mem::take(&mut self.busy) {
            return false;
        }
        if let Some(tx) = &mut self.tx {
            tx.rest();
        }
        if let Some(rx) = &mut self.rx {
            rx.rest();
        }
        if let (Role::Socket(socket), Some(local)) = (&mut self.role, &self.local) {
            socket.rest(local.as_fd());
        }
        true
    }

    /// What the peer must know besides the bytes. Repeating it does no harm.
    fn notices(&self) -> Vec<RelayMsg> {
        let mut notices = match &self.role {
            Role::HomeTty(tty) => tty.notices(self.id),
            Role::AwayPty(pty) => pty.notices(self.id),
            Role::Socket(socket) => socket.notices(self.id),
            Role::HomeListener(listener) => listener.notices(self.id),
            Role::AwayListener(listener) => listener.notices(self.id),
            Role::HomePipe
            | Role::AwayPipe { .. }
            | Role::HomeDatagrams(_)
            | Role::AwayDatagrams(_) => Vec::new(),
        };
        if self.rx.as_ref().is_some_and(Receiver::broken) {
            notices.push(RelayMsg::BrokenPipe { stream: self.id });
        }
        notices
    }

    /// A message of the peer; [`Endpoint::pump`] shall follow.
    pub fn message(&mut self, msg: &RelayMsg, payload: &[u8]) -> Result<(), RelayError> {
        let id = self.id;
        let wrong = |error| RelayError::Stream { stream: id, error };
        self.busy = true;
        match (msg, &mut self.role) {
            (RelayMsg::Winsize { size, .. }, Role::AwayPty(pty)) => pty.resize(*size),
            (RelayMsg::Hangup { .. }, Role::AwayPty(pty)) => pty.hang_up(),
            (RelayMsg::Typed { until, .. }, Role::AwayPty(pty)) => pty.typed(*until),
            (RelayMsg::Settings { termios, .. }, Role::HomeTty(tty)) => tty.leave_with(termios),
            (RelayMsg::Reset { .. }, Role::Socket(socket)) => socket.reset_there = true,
            (RelayMsg::Over { .. }, Role::Socket(socket)) if !socket.away => {
                socket.over_there = true;
            }
            (RelayMsg::Over { .. }, Role::HomeDatagrams(home)) => home.over_there = true,
            (&RelayMsg::Data { offset, eof, .. }, _) => {
                let rx = self.rx.as_mut().ok_or_else(|| RelayError::unexpected(msg))?;
                // A writer that goes on has not heard yet.
                self.announce |= rx.broken();
                let passed = self.pass_on(offset, payload);
                let rx = self.rx.as_mut().ok_or_else(|| RelayError::unexpected(msg))?;
                rx.on_data(offset + passed as u64, &payload[passed..], eof).map_err(wrong)?;
            }
            (&RelayMsg::Ack { offset, window, .. }, _) => {
                self.sender(msg)?.on_ack(offset, window).map_err(wrong)?;
            }
            (&RelayMsg::Resync { next, .. }, _) => {
                self.sender(msg)?.on_resync(next).map_err(wrong)?;
                // One that had other things to do has not heard it.
                self.announce = true;
            }
            (RelayMsg::BrokenPipe { .. }, _) => self.sender(msg)?.break_off(),
            _ => return Err(RelayError::unexpected(msg)),
        }
        if let (Role::AwayPty(pty), Some(local), false) = (&mut self.role, &self.local, self.frozen)
        {
            pty.apply_size(local.as_fd());
        }
        Ok(())
    }

    /// Writes received bytes to a socket that takes them now, without keeping them. How many.
    fn pass_on(&mut self, offset: u64, bytes: &[u8]) -> usize {
        let (Role::Socket(socket), Some(rx), Some(local)) =
            (&mut self.role, &mut self.rx, &self.local)
        else {
            return 0;
        };
        let ready = self.writable && !self.frozen && socket.room() == usize::MAX;
        let first = self.backlog.is_empty() && rx.is_next(offset);
        if !ready || !first || bytes.is_empty() || bytes.len() > CHUNK {
            return 0;
        }
        match local.write(bytes) {
            Put::Bytes(n) => {
                socket.note_sent(&bytes[..n]);
                rx.pass(n);
                return n;
            }
            Put::Later => self.writable = false,
            Put::Broken => self.gone_for_writing(),
            Put::Reset => self.socket_reset(),
        }
        0
    }

    fn sender(&mut self, msg: &RelayMsg) -> Result<&mut Sender, RelayError> {
        self.tx.as_mut().ok_or_else(|| RelayError::unexpected(msg))
    }
}

/// Calls with [`CHUNK`] bytes of memory that is used again.
pub(super) fn with_buffer<R>(call: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local!(static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });
    let mut buffer = BUFFER.take();
    buffer.resize(CHUNK, 0);
    let result = call(&mut buffer);
    BUFFER.set(buffer);
    result
}

/// Local bytes go to the link.
fn push(role: &mut Role, tx: &mut Sender, bytes: &[u8]) {
    match role {
        Role::Socket(socket) => socket.take(bytes, tx),
        _ => tx.push(bytes),
    }
}
