//! The stream against a model: whatever is cut, repeated or moved, the bytes arrive.

use proptest::prelude::*;

use super::*;

/// A piece on the link.
enum Piece {
    Data(u64, Vec<u8>, bool),
    Ack(u64, u32),
}

/// Two halves and a link that can be cut.
struct World {
    tx: Sender,
    rx: Receiver,
    link: VecDeque<Piece>,
    input: Vec<u8>,
    fed: usize,
    output: Vec<u8>,
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    Feed(usize),
    Send,
    Deliver,
    Consume(usize),
    Reconnect,
    MoveSender,
    MoveReceiver,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1..80_000_usize).prop_map(Event::Feed),
        Just(Event::Send),
        Just(Event::Deliver),
        (1..80_000_usize).prop_map(Event::Consume),
        Just(Event::Reconnect),
        Just(Event::MoveSender),
        Just(Event::MoveReceiver),
    ]
}

fn copy<T: Serialize + for<'a> Deserialize<'a>>(value: &T) -> T {
    postcard::from_bytes(&postcard::to_stdvec(value).unwrap()).unwrap()
}

impl World {
    fn new(input: Vec<u8>) -> Self {
        let mut world = Self {
            tx: Sender::default(),
            rx: Receiver::default(),
            link: VecDeque::new(),
            input,
            fed: 0,
            output: Vec::new(),
        };
        world.reconnect();
        world
    }

    fn reconnect(&mut self) {
        self.link.clear();
        self.tx.disconnect();
        self.tx.on_resync(self.rx.next()).unwrap();
        let (offset, window) = self.rx.ack();
        self.tx.on_ack(offset, window).unwrap();
    }

    fn feed(&mut self, n: usize) {
        let n = n.min(self.tx.room()).min(self.input.len() - self.fed);
        self.tx.push(&self.input[self.fed..self.fed + n]);
        self.fed += n;
        if self.fed == self.input.len() {
            self.tx.close();
        }
    }

    fn consume(&mut self, n: usize) {
        let n = n.min(self.rx.pending().len());
        self.output.extend(&self.rx.pending()[..n]);
        self.rx.consume(n);
        if self.rx.at_eof() {
            self.rx.consume_eof();
        }
        let (offset, window) = self.rx.ack();
        self.link.push_back(Piece::Ack(offset, window));
    }

    fn deliver(&mut self) {
        match self.link.pop_front() {
            Some(Piece::Data(offset, bytes, eof)) => self.rx.on_data(offset, &bytes, eof).unwrap(),
            Some(Piece::Ack(offset, window)) => self.tx.on_ack(offset, window).unwrap(),
            None => {}
        }
        assert!(self.rx.pending.len() <= WINDOW && self.tx.buffer.len() <= WINDOW);
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Feed(n) => self.feed(n),
            Event::Send => {
                self.link.extend(self.tx.poll().map(|(o, b, e)| Piece::Data(o, b.to_vec(), e)));
            }
            Event::Deliver => self.deliver(),
            Event::Consume(n) => self.consume(n),
            Event::Reconnect => self.reconnect(),
            Event::MoveSender => {
                self.tx = copy(&self.tx);
                self.reconnect();
            }
            Event::MoveReceiver => {
                self.rx = copy(&self.rx);
                self.reconnect();
            }
        }
    }

    fn run_out(&mut self) {
        while !self.tx.drained() || !self.rx.finished() {
            for event in [Event::Feed(WINDOW), Event::Send, Event::Deliver, Event::Consume(WINDOW)]
            {
                self.apply(&event);
            }
        }
    }
}

proptest! {
    #[test]
    fn every_byte_once_and_in_order(
        input in proptest::collection::vec(any::<u8>(), 0..3 * WINDOW),
        events in proptest::collection::vec(event(), 0..200),
    ) {
        let mut world = World::new(input);
        for event in &events {
            world.apply(event);
            prop_assert!(world.input.starts_with(&world.output));
        }
        world.run_out();
        prop_assert_eq!(&world.output, &world.input);
    }

    #[test]
    fn a_lying_peer_is_refused_or_harmless(
        steps in proptest::collection::vec((any::<u64>(), 0..100_u64, any::<bool>(), 0..WINDOW + CHUNK), 0..50)
    ) {
        let (mut tx, mut rx) = (Sender::default(), Receiver::default());
        tx.push(b"some bytes");
        for (wild, near, eof, len) in steps {
            let offset = if eof { wild } else { near };
            let _ = rx.on_data(offset, &vec![0; len], eof);
            let _ = tx.on_ack(offset, len as u32);
            let _ = tx.on_resync(offset);
            let _ = tx.poll();
            prop_assert!(rx.pending.len() <= WINDOW);
        }
    }
}

#[test]
fn overlap_is_trimmed_and_a_gap_is_an_error() {
    let mut rx = Receiver::default();
    rx.on_data(0, b"abc", false).unwrap();
    rx.on_data(1, b"bcd", false).unwrap();
    rx.on_data(0, b"ab", false).unwrap();
    assert_eq!(rx.all_pending(), b"abcd");
    assert_eq!(rx.on_data(5, b"x", false), Err(StreamError::Gap { expected: 4, got: 5 }));
}

#[test]
fn nothing_stands_behind_the_eof() {
    let mut rx = Receiver::default();
    rx.on_data(0, b"ab", true).unwrap();
    rx.on_data(0, b"ab", true).unwrap();
    assert!(rx.on_data(2, b"c", false).is_err());
    assert!(rx.on_data(0, b"a", true).is_err());
    assert_eq!(rx.next(), 3);
}

#[test]
fn a_window_is_never_exceeded() {
    let mut rx = Receiver::default();
    rx.on_data(0, &vec![0; WINDOW], false).unwrap();
    assert!(matches!(rx.on_data(WINDOW as u64, b"x", false), Err(StreamError::Overrun { .. })));
    let mut tx = Sender::default();
    tx.push(&vec![1; 3 * WINDOW]);
    tx.on_resync(0).unwrap();
    let sent: usize = std::iter::from_fn(|| tx.poll().map(|(_, bytes, _)| bytes.len())).sum();
    assert_eq!(sent, WINDOW);
}

#[test]
fn the_eof_is_acknowledged_like_a_byte() {
    let mut tx = Sender::default();
    tx.push(b"ab");
    tx.close();
    tx.on_resync(0).unwrap();
    assert_eq!(tx.poll(), Some((0, &b"ab"[..], true)));
    assert_eq!(tx.poll(), None);
    tx.on_ack(2, 9).unwrap();
    assert!(!tx.drained());
    tx.on_ack(3, 9).unwrap();
    assert!(tx.drained());
    assert!(tx.on_ack(4, 9).is_err());
}

#[test]
fn a_broken_sender_forgets_and_wants_nothing() {
    let mut tx = Sender::default();
    tx.push(b"ab");
    tx.break_off();
    tx.on_resync(7).unwrap();
    assert_eq!(tx.poll(), None);
    assert_eq!((tx.room(), tx.drained()), (0, true));
}

#[test]
fn what_is_held_back_was_never_on_the_link() {
    let bytes: Vec<u8> = (0..3 * WINDOW).map(|i| (i % 251) as u8).collect();
    let (mut tx, mut rx) = (Sender::default(), Receiver::default());
    tx.push(&bytes);
    tx.close();
    tx.on_resync(0).unwrap();
    let mut copy = tx.clone();
    tx.hold(true);
    let excess = copy.take_excess();
    assert_eq!(excess, bytes[WINDOW..]);
    assert!(!copy.closed(), "the end comes behind what was taken out");
    // The peer consumes all that it gets, but gets no more.
    while let Some((offset, bytes, eof)) = tx.poll() {
        assert!(!eof);
        rx.on_data(offset, bytes, eof).unwrap();
        rx.consume(usize::MAX);
        let (offset, window) = rx.ack();
        tx.on_ack(offset, window).unwrap();
    }
    assert_eq!(rx.next(), WINDOW as u64);
    copy.on_resync(rx.next()).unwrap();
    // Undone, it gets the rest.
    tx.hold(false);
    while let Some((offset, bytes, eof)) = tx.poll() {
        rx.on_data(offset, bytes, eof).unwrap();
        rx.consume(usize::MAX);
        let (offset, window) = rx.ack();
        tx.on_ack(offset, window).unwrap();
    }
    assert!(rx.at_eof());
}
