//! Two sides of a job's relays in one thread, joined by a link in memory that can be cut.

use std::collections::{BTreeMap, VecDeque};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use vosrun::proxy::{AwayEnd, AwayState, HomeEnd, RelayMsg, Relays, StreamId};

/// Longest that any wait of these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

type Queue = VecDeque<(RelayMsg, Vec<u8>)>;

/// A small generator of repeatable numbers (xorshift64).
pub struct Seeded(pub u64);

impl Seeded {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.below(256) as u8).collect()
    }
}

/// See the module.
pub struct World {
    poll: Poll,
    pub home: Relays,
    pub away: Relays,
    to_home: Queue,
    to_away: Queue,
    next_token: usize,
    /// The job's ends of its pipes, terminals and sockets.
    pub ends: BTreeMap<StreamId, OwnedFd>,
    /// Connections in the queues of the job's listening sockets, oldest first.
    pub queued: VecDeque<StreamId>,
    pub seed: Seeded,
    /// One in so many messages meets a cut link; 0: none.
    pub cut_every: u64,
    pub cuts: u32,
}

impl World {
    /// A job that left home with `originals`, thawed on both sides.
    pub fn new(originals: Vec<(StreamId, HomeEnd)>) -> Self {
        let mut world = Self::before_thaw(originals);
        world.thaw();
        world
    }

    /// As [`World::new`], but at the moment of the commit.
    pub fn before_thaw(originals: Vec<(StreamId, HomeEnd)>) -> Self {
        let poll = Poll::new().unwrap();
        let mut home = Relays::new(poll.registry().try_clone().unwrap(), 0..1000);
        let states: Vec<_> = originals
            .into_iter()
            .map(|(stream, end)| home.add_home(stream, end).unwrap())
            .collect();
        let away = Relays::new(poll.registry().try_clone().unwrap(), 1000..2000);
        let mut world = Self {
            poll,
            home,
            away,
            to_home: Queue::new(),
            to_away: Queue::new(),
            next_token: 2000,
            ends: BTreeMap::new(),
            queued: VecDeque::new(),
            seed: Seeded(88_172_645_463_325_252),
            cut_every: 0,
            cuts: 0,
        };
        world.arrive(states);
        world.connect();
        world
    }

    /// Home first, so that what it knows is there before the job runs.
    pub fn thaw(&mut self) {
        self.home.thaw(&mut into(&mut self.to_away));
        while self.deliver() {}
        self.away.thaw(&mut into(&mut self.to_home));
    }

    fn arrive(&mut self, states: Vec<AwayState>) {
        for state in states {
            let wire = postcard::to_stdvec(&state).unwrap();
            let state: AwayState = postcard::from_bytes(&wire).unwrap();
            let stream = state.stream;
            let end = match state.end {
                AwayEnd::Listener(_) => self.listen(state),
                AwayEnd::Tcp(_) => self.join(state),
                _ => Some(self.away.rebuild(state).unwrap()),
            };
            self.ends.extend(end.map(|end| (stream, end)));
        }
    }

    /// The job's listening socket, which has another address here than the real one.
    fn listen(&mut self, state: AwayState) -> Option<OwnedFd> {
        let open = state.wants_socket();
        let end = open.then(|| OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap()));
        let again = end.as_ref().map(|end| end.try_clone().unwrap());
        self.away.rebuild_listener(state, again).unwrap();
        end
    }

    /// The job's end of a connection, if it has one still.
    fn join(&mut self, state: AwayState) -> Option<OwnedFd> {
        let both = state.wants_socket().then(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let job = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (OwnedFd::from(job), OwnedFd::from(listener.accept().unwrap().0))
        });
        let (job, far) = both.map_or((None, None), |(job, far)| (Some(job), Some(far)));
        self.away.rebuild_socket(state, job.as_ref().map(AsFd::as_fd).zip(far)).unwrap();
        job
    }

    /// Makes the connections to the job's listening sockets that are wanted.
    fn dial(&mut self) {
        while let Some(dial) = self.away.next_dial() {
            let far = self.ends.get(&dial.listener).map(|end| {
                let listener = TcpListener::from(end.try_clone().unwrap());
                TcpStream::connect(listener.local_addr().unwrap()).unwrap()
            });
            match far {
                Some(_) => self.queued.push_back(dial.stream),
                None => self.away.close_listener(dial.listener, &mut into(&mut self.to_home)),
            }
            self.away.dialed(dial, far.map(OwnedFd::from), &mut into(&mut self.to_home));
        }
    }

    /// The job accepts the oldest connection of a listening socket.
    pub fn job_accepts(&mut self, listener: StreamId) -> Option<StreamId> {
        nonblocking(&self.ends[&listener]);
        let listener = TcpListener::from(self.ends[&listener].try_clone().unwrap());
        let accepted = listener.accept().ok()?.0;
        let stream = self.queued.pop_front().unwrap();
        self.ends.insert(stream, accepted.into());
        Some(stream)
    }

    /// A new link: whatever was on the old one is lost.
    pub fn connect(&mut self) {
        self.to_home.clear();
        self.to_away.clear();
        self.home.disconnected();
        self.away.disconnected();
        self.home.resync(&mut into(&mut self.to_away));
        self.away.resync(&mut into(&mut self.to_home));
        self.cuts += 1;
    }

    fn freeze(&mut self) -> Vec<AwayState> {
        let ends = &self.ends;
        let mut streams: Vec<_> = self.away.streams().collect();
        streams.sort_by_key(|stream| !self.away.is_listener(*stream));
        let freeze = |id| self.away.freeze(id, ends.get(&id).map(AsFd::as_fd)).unwrap();
        streams.into_iter().map(freeze).collect()
    }

    /// The job moves on to a third node.
    pub fn relocate(&mut self) {
        self.relocate_after(|_| {});
    }

    /// The same, with something that happens while it is frozen.
    pub fn relocate_after(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        let states = self.freeze();
        meanwhile(self);
        let tokens = self.next_token..self.next_token + 1000;
        self.next_token += 1000;
        self.away = Relays::new(self.poll.registry().try_clone().unwrap(), tokens);
        let had: Vec<_> = self.ends.keys().copied().collect();
        self.ends.clear();
        self.queued.clear();
        self.arrive(states);
        // A stream whose end the job had closed is not given back to it.
        self.ends.retain(|id, _| had.contains(id));
        self.connect();
        while self.deliver() {}
        self.away.thaw(&mut into(&mut self.to_home));
    }

    /// A move that fails after the freeze, while the link goes on.
    pub fn abort_move(&mut self) {
        self.abort_move_after(|w| {
            for _ in 0..w.seed.below(10) {
                w.deliver();
            }
        });
    }

    /// The same, with something else that happens while the job is frozen.
    pub fn abort_move_after(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        let states = self.freeze();
        meanwhile(self);
        for state in &states {
            self.away.unfreeze(state, &mut into(&mut self.to_home)).unwrap();
        }
    }

    /// Carries one message over, or cuts the link instead. False when there was none.
    pub fn deliver(&mut self) -> bool {
        if self.to_home.is_empty() && self.to_away.is_empty() {
            return false;
        }
        if self.cut_every > 0 && self.seed.below(self.cut_every) == 0 {
            self.connect();
            return true;
        }
        let homeward = self.to_away.is_empty() || self.seed.below(2) == 0;
        let homeward = if homeward { self.to_home.pop_front() } else { None };
        if let Some((msg, payload)) = homeward {
            self.home.on_message(&msg, &payload, &mut into(&mut self.to_away)).unwrap();
        } else if let Some((msg, payload)) = self.to_away.pop_front() {
            let wire = postcard::to_stdvec(&msg).unwrap();
            let msg = postcard::from_bytes(&wire).unwrap();
            self.away.on_message(&msg, &payload, &mut into(&mut self.to_home)).unwrap();
        }
        true
    }

    /// Events and messages, until there are none; waits for the first one at most `wait`.
    pub fn turn(&mut self, wait: Duration) {
        let busy = !self.to_home.is_empty() || !self.to_away.is_empty();
        let mut events = Events::with_capacity(64);
        let wait = if busy { Duration::ZERO } else { wait };
        match self.poll.poll(&mut events, Some(wait)) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            result => result.unwrap(),
        }
        for event in &events {
            let ended = event.is_read_closed() || event.is_write_closed();
            let closed = ended || event.is_error() || event.is_priority();
            let _ = self.home.on_event(event.token(), closed, &mut into(&mut self.to_away))
                || self.away.on_event(event.token(), closed, &mut into(&mut self.to_home));
        }
        for _ in 0..64 {
            if !self.deliver() {
                break;
            }
        }
        self.dial();
        self.home.on_tick(&mut into(&mut self.to_away));
        self.away.on_tick(&mut into(&mut self.to_home));
    }

    /// Turns until `done`, which also does the job's and the person's part.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited too long for: {what}");
            self.turn(Duration::from_millis(2));
        }
    }

    /// Calls an away method that wants the link.
    pub fn at_away(&mut self, act: impl FnOnce(&mut Relays, vosrun::proxy::Out<'_>)) {
        act(&mut self.away, &mut into(&mut self.to_home));
    }

    /// Calls a home method that wants the link.
    pub fn at_home(&mut self, act: impl FnOnce(&mut Relays, vosrun::proxy::Out<'_>)) {
        act(&mut self.home, &mut into(&mut self.to_away));
    }

    /// The job's last process exited.
    pub fn job_ended(&mut self) {
        self.ends.clear();
        self.away.job_ended(&mut into(&mut self.to_home));
        self.until("the last bytes", |w| w.away.is_drained() && w.home.is_finished());
    }

    /// Reads what the job finds at `stream`.
    pub fn job_reads(&self, stream: StreamId) -> Option<Vec<u8>> {
        read_now(&self.ends[&stream])
    }

    /// Reads until the job has got `n` bytes.
    pub fn job_gets(&mut self, stream: StreamId, n: usize) -> Vec<u8> {
        let mut got = Vec::new();
        self.until("input of the job", |w| {
            got.extend(w.job_reads(stream).unwrap_or_default());
            got.len() >= n
        });
        got
    }
}

fn into(queue: &mut Queue) -> impl FnMut(RelayMsg, &[u8]) + '_ {
    |msg, payload| queue.push_back((msg, payload.to_vec()))
}

/// Makes the description of a descriptor that belongs to the test alone non-blocking.
pub fn nonblocking(fd: &OwnedFd) {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
}

/// What one read gives: nothing yet, or bytes (none at eof).
pub fn read_now(fd: &OwnedFd) -> Option<Vec<u8>> {
    nonblocking(fd);
    let mut buf = vec![0; 8192];
    match nix::unistd::read(fd, &mut buf) {
        Ok(n) => {
            buf.truncate(n);
            Some(buf)
        }
        Err(Errno::EAGAIN | Errno::EIO) => None,
        Err(e) => panic!("read of fd {}: {e}", fd.as_raw_fd()),
    }
}

/// Writes what there is room for.
pub fn write_now(fd: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    nonblocking(fd);
    match nix::unistd::write(fd, bytes) {
        Err(Errno::EAGAIN) => Ok(0),
        result => result,
    }
}
