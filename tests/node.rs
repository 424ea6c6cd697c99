//! Nodes and their connections, over real sockets on the loopback.

use std::io::{IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vosrun::control::{read_frame, Request};
use vosrun::ids::{JobId, NodeId};
use vosrun::migrate::transport::{
    Frame, Link, LinkError, LinkErrorKind, Service, TlsConfig, Transport, MAX_PAYLOAD,
};
use vosrun::node::client::{self, JoinError};
use vosrun::node::daemon::{Config, Daemon};
use vosrun::node::message::NodeMsg;
use vosrun::node::token::{self, Token};
use vosrun::node::{identity, peers, tls, Peer};
use vosrun::state::StateDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A state folder with an identity.
struct Node {
    state: StateDir,
    tls: TlsConfig,
    _tmp: tempfile::TempDir,
}

impl Node {
    fn new(name: &str) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(tmp.path()).unwrap();
        identity::set_name(&state, name).unwrap();
        let tls = tls(&state).unwrap();
        Self { state, tls, _tmp: tmp }
    }

    fn id(&self) -> NodeId {
        self.tls.id()
    }

    fn trust(&self, other: &Self) {
        let name = identity::name(&other.state).unwrap();
        let addr = "127.0.0.1:1".to_owned();
        let peer = Peer { name, id: other.id(), addr, stamp_ms: 1 };
        assert!(peers::add(&self.state, self.id(), peer).unwrap());
    }

    fn knows(&self) -> Vec<String> {
        peers::load(&self.state).unwrap().into_iter().map(|p| p.name).collect()
    }
}

fn socket_pair() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap().to_string(), listener)
}

/// A client's and a server's link, not driven yet.
fn links(client: &Node, server: &Node, expected: NodeId) -> (Link, Link) {
    let (addr, listener) = socket_pair();
    let a = Link::connect(&addr, &client.tls, expected, Service::New).unwrap();
    let b = Link::accept(listener.accept().unwrap().0, &server.tls).unwrap();
    (a, b)
}

/// Drives until a frame comes.
fn frame(link: &mut Link) -> Result<Frame, LinkError> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(frame) = link.next_frame() {
            return Ok(frame);
        }
        assert!(Instant::now() < end && !link.closed(), "no frame came");
        link.wait(PATIENCE)?;
    }
}

/// Drives until it fails.
fn until_failure<T: Transport>(link: &mut Link<T>) -> LinkError {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Err(e) = link.wait(PATIENCE) {
            return e;
        }
    }
    panic!("the link did not fail");
}

#[test]
fn two_nodes_that_trust_each_other_talk() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    b.trust(&a);
    let (mut to_b, mut to_a) = links(&a, &b, b.id());
    to_b.send(&("hello", 7u8), b"payload").unwrap();
    let server = std::thread::spawn(move || {
        let got = frame(&mut to_a).unwrap();
        assert_eq!(to_a.peer(), Some(a.id()));
        to_a.send(&got.decode::<(String, u8)>().unwrap(), &got.payload).unwrap();
        to_a.close().unwrap();
        while !to_a.closed() {
            to_a.wait(PATIENCE).unwrap();
        }
    });
    let got = frame(&mut to_b).unwrap();
    assert!(to_b.established() && to_b.peer() == Some(b.id()));
    assert_eq!(got.decode::<(String, u8)>().unwrap(), ("hello".to_owned(), 7));
    assert_eq!(got.payload, b"payload");
    while !to_b.closed() {
        to_b.wait(PATIENCE).unwrap();
    }
    assert!(to_b.bytes_sent() > 0 && to_b.bytes_received() > 0);
    to_b.close().unwrap();
    assert!(to_b.send(&(), &[]).is_err());
    server.join().unwrap();
}

#[test]
fn an_unknown_client_is_refused_and_named() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (mut to_b, mut to_a) = links(&a, &b, b.id());
    let server = std::thread::spawn(move || until_failure(&mut to_a));
    let seen = until_failure(&mut to_b);
    let refused = server.join().unwrap();
    assert!(matches!(refused.kind, LinkErrorKind::UnknownPeer(id) if id == a.id()), "{refused}");
    assert!(matches!(seen.kind, LinkErrorKind::Cut | LinkErrorKind::Io(_)), "{seen}");
}

#[test]
fn a_server_with_another_key_is_refused() {
    let (a, b, c) = (Node::new("a"), Node::new("b"), Node::new("c"));
    b.trust(&a);
    a.trust(&b);
    let (mut to_b, mut to_a) = links(&a, &b, c.id());
    let server = std::thread::spawn(move || {
        let error = until_failure(&mut to_a);
        assert!(!to_a.established() && to_a.peer().is_none());
        error
    });
    let refused = until_failure(&mut to_b);
    drop(to_b);
    let expected = LinkErrorKind::WrongPeer { expected: c.id(), shown: b.id() };
    assert_eq!(refused.kind.to_string(), expected.to_string());
    server.join().unwrap();
}

#[test]
fn a_copied_certificate_without_its_key_is_refused() {
    let (a, b, thief) = (Node::new("a"), Node::new("b"), Node::new("thief"));
    b.trust(&a);
    let certificate = |of: &Node| of.state.node().join("cert");
    std::fs::copy(certificate(&a), certificate(&thief)).unwrap();
    let thief = Node { tls: tls(&thief.state).unwrap(), ..thief };
    assert_eq!(thief.id(), a.id());
    let (mut to_b, mut to_a) = links(&thief, &b, b.id());
    let server = std::thread::spawn(move || {
        let error = until_failure(&mut to_a);
        assert!(!to_a.established() && to_a.peer().is_none());
        error
    });
    until_failure(&mut to_b);
    let refused = server.join().unwrap();
    assert!(refused.to_string().contains("BadSignature"), "{refused}");
}

/// Feeds `bytes` to a server over a socket pair, which is a transport as well.
fn feed(node: &Node, bytes: &[u8]) -> LinkError {
    let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    let server = mio::net::UnixStream::from_std(server);
    let mut link = Link::server(server, "a socket pair".to_owned(), &node.tls, true).unwrap();
    client.write_all(bytes).unwrap();
    drop(client);
    until_failure(&mut link)
}

#[test]
fn no_bytes_of_a_stranger_make_a_server_panic() {
    let node = Node::new("a");
    let mut runner = proptest::test_runner::TestRunner::default();
    let bytes = proptest::collection::vec(proptest::num::u8::ANY, 0..4000);
    runner
        .run(&(bytes, proptest::num::u8::ANY), |(mut bytes, kind)| {
            feed(&node, &bytes);
            // Once more with the header of a record in front, of a handshake half the time.
            let kind = if kind < 128 { 22 } else { kind };
            let len = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            bytes.splice(0..0, [kind, 3, 3, len[0], len[1]]);
            feed(&node, &bytes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_flipped_bit_is_noticed() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    b.trust(&a);
    let (mut to_b, mut to_a) = links(&a, &b, b.id());
    while !to_a.established() {
        to_b.drive().unwrap();
        to_a.drive().unwrap();
    }
    let mut socket = TcpStream::from(to_b.as_fd().try_clone_to_owned().unwrap());
    socket.write_all(&[23, 3, 3, 0, 32]).unwrap();
    socket.write_all(&[0x5a; 32]).unwrap();
    assert!(until_failure(&mut to_a).to_string().contains("decrypt"));
    assert!(to_a.next_frame().is_none());
}

#[test]
fn queued_frames_keep_their_order() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    b.trust(&a);
    let (mut to_b, mut to_a) = links(&a, &b, b.id());
    let receiver = std::thread::spawn(move || {
        let numbers = (0..300u32).map(|i| {
            let frame = frame(&mut to_a).unwrap();
            assert_eq!(frame.payload.len(), payload(i).len());
            frame.decode::<u32>().unwrap()
        });
        assert_eq!(numbers.collect::<Vec<_>>(), (0..300).collect::<Vec<_>>());
        // Kept until the sender is through: the end of it would be a cut.
        to_a
    });
    fn payload(i: u32) -> Vec<u8> {
        vec![7; if i.is_multiple_of(7) { 20_000 } else { i as usize }]
    }
    for i in 0..300 {
        match i % 50 {
            0 => to_b.send(&i, &payload(i)).unwrap(),
            _ => to_b.queue(&i, &payload(i)).unwrap(),
        }
    }
    while to_b.queued() > 0 {
        to_b.wait(PATIENCE).unwrap();
    }
    drop(receiver.join().unwrap());
}

#[test]
fn a_cut_connection_is_not_a_clean_end() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    b.trust(&a);
    let (mut to_b, mut to_a) = links(&a, &b, b.id());
    to_b.send(&1u8, &[]).unwrap();
    let server = std::thread::spawn(move || {
        frame(&mut to_a).unwrap();
        to_a.send(&2u8, &[]).unwrap();
        frame(&mut to_a).unwrap();
        to_a.send(&4u8, &[]).unwrap();
    });
    assert_eq!(frame(&mut to_b).unwrap().decode::<u8>().unwrap(), 2);
    to_b.send(&3u8, &[]).unwrap();
    server.join().unwrap();
    // What came before the cut is not lost, however late it is taken.
    assert_eq!(frame(&mut to_b).unwrap().decode::<u8>().unwrap(), 4);
    let error = until_failure(&mut to_b);
    assert!(matches!(error.kind, LinkErrorKind::Cut | LinkErrorKind::Io(_)), "{error}");
}

#[test]
fn refused_connections_say_so() {
    let (addr, listener) = socket_pair();
    drop(listener);
    let node = Node::new("a");
    let connected = Link::connect(&addr, &node.tls, node.id(), Service::Node);
    let error = connected.and_then(|mut link| Err::<(), _>(until_failure(&mut link))).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(Link::connect("no port", &node.tls, node.id(), Service::Node).is_err());
}

/// Bytes that differ from place to place.
fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn sixty_four_mebibytes_arrive_intact_in_bounded_memory() {
    const FRAMES: usize = 64;
    const BOUND: usize = 4 << 20;
    let (a, b) = (Node::new("a"), Node::new("b"));
    b.trust(&a);
    let (mut to_b, mut to_a) = links(&a, &b, b.id());
    let receiver = std::thread::spawn(move || {
        for i in 0..FRAMES {
            let got = frame(&mut to_a).unwrap();
            assert_eq!(got.decode::<usize>().unwrap(), i);
            assert!(got.payload == pattern(i * MAX_PAYLOAD, MAX_PAYLOAD), "frame {i} differs");
            assert!(to_a.queued() <= BOUND);
            to_a.send(&i, &got.payload[..16]).unwrap();
        }
        to_a
    });
    for i in 0..FRAMES {
        to_b.send(&i, &pattern(i * MAX_PAYLOAD, MAX_PAYLOAD)).unwrap();
        while to_b.queued() > BOUND {
            to_b.wait(PATIENCE).unwrap();
        }
        assert!(to_b.queued() <= BOUND);
    }
    for i in 0..FRAMES {
        assert_eq!(frame(&mut to_b).unwrap().decode::<usize>().unwrap(), i);
    }
    let to_a = receiver.join().unwrap();
    assert_eq!(to_b.bytes_sent(), to_a.bytes_received());
}

#[test]
fn a_full_inbox_stops_reading_and_goes_on_later() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    b.trust(&a);
    let (mut to_b, mut to_a) = links(&a, &b, b.id());
    let sender = std::thread::spawn(move || {
        let body = vec![9; MAX_PAYLOAD];
        (0..16u8).for_each(|i| to_b.send(&i, &body).unwrap());
        while to_b.queued() > 0 {
            to_b.wait(PATIENCE).unwrap();
        }
        to_b
    });
    while !to_a.paused() {
        to_a.wait(PATIENCE).unwrap();
    }
    let held = to_a.bytes_received();
    to_a.drive().unwrap();
    assert_eq!(to_a.bytes_received(), held);
    assert!(held < 8 << 20, "{held} bytes taken");
    let mut taken = 0u8;
    while let Some(frame) = to_a.next_frame() {
        assert_eq!(frame.decode::<u8>().unwrap(), taken);
        taken += 1;
    }
    // An edge-triggered event loop hears nothing of what was there all the time.
    assert!(to_a.paused(), "{taken} frames taken, and the rest is forgotten");
    (taken..16).for_each(|i| assert_eq!(frame(&mut to_a).unwrap().decode::<u8>().unwrap(), i));
    sender.join().unwrap();
}

/// A daemon in a thread; stopped when dropped.
struct Running {
    node: Node,
    addr: std::net::SocketAddr,
    stopper: Arc<mio::Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(name: &str, join: Option<Token>) -> anyhow::Result<Self> {
        Self::start_with(Node::new(name), join, PathBuf::from("/bin/false"))
    }

    fn start_with(node: Node, join: Option<Token>, receiver: PathBuf) -> anyhow::Result<Self> {
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = Config { name: None, listen, advertise: None, join, receiver };
        let daemon = Daemon::start(&node.state, &config)?;
        let (addr, stopper) = (daemon.address(), daemon.stopper());
        let thread = std::thread::spawn(move || daemon.run().unwrap());
        Ok(Self { node, addr, stopper, thread: Some(thread) })
    }

    fn token(&self) -> Token {
        token::issue(&self.node.state, self.node.id(), self.addr).unwrap()
    }

    fn link(&self, from: &Node, service: Service) -> Link {
        Link::connect(&self.addr.to_string(), &from.tls, self.node.id(), service).unwrap()
    }

    fn stop(&mut self) {
        self.stopper.wake().unwrap();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for a condition that other threads bring about through files.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// What a plain TCP client reads until the end.
fn rest_of(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => drop(other.unwrap()),
    }
    bytes
}

#[test]
fn three_nodes_learn_each_other() {
    let a = Running::start("a", None).unwrap();
    let b = Running::start("b", Some(a.token())).unwrap();
    assert_eq!(b.node.knows(), ["a"]);
    let mut c = Running::start("c", Some(b.token())).unwrap();
    eventually("a learns of c", || a.node.knows() == ["b", "c"]);
    eventually("b learns of c", || b.node.knows() == ["a", "c"]);
    assert_eq!(c.node.knows(), ["a", "b"]);
    let found = peers::find(&a.node.state, "c").unwrap().unwrap();
    assert_eq!((found.id, found.addr), (c.node.id(), c.addr.to_string()));
    for (from, to) in [(&a, &c), (&c, &a), (&b, &c)] {
        client::ping(&to.addr.to_string(), &from.node.tls, to.node.id(), PATIENCE).unwrap();
    }

    // A member that comes back elsewhere is found again, and may keep its old token.
    c.stop();
    let old = peers::own(&c.node.state).unwrap().unwrap();
    let node = Node {
        state: c.node.state.clone(),
        tls: c.node.tls.clone(),
        _tmp: tempfile::tempdir().unwrap(),
    };
    let again = Running::start_with(node, Some(b.token()), PathBuf::from("/bin/false")).unwrap();
    assert_ne!(old.listen, again.addr);
    let address = |at: &Running| peers::find(&at.node.state, "c").unwrap().unwrap().addr;
    eventually("a learns where c is now", || address(&a) == again.addr.to_string());
}

#[test]
fn a_token_lets_one_node_in() {
    let a = Running::start("a", None).unwrap();
    let token = a.token();
    let _b = Running::start("b", Some(token.clone())).unwrap();
    let refused = |name, token| {
        let error = Running::start(name, Some(token)).err().unwrap();
        error.downcast::<JoinError>().unwrap()
    };
    let used = refused("c", token);
    assert!(matches!(used, JoinError::BadToken { .. }) && used.exit_code() == 77, "{used}");
    let clash = refused("b", a.token());
    assert!(matches!(&clash, JoinError::Refused(why) if why.contains("named b")), "{clash}");
    let wrong = Token { id: NodeId([1; 32]), ..a.token() };
    assert!(matches!(refused("d", wrong), JoinError::WrongNode(_)));
    let own = client::join(&a.node.state, &a.node.tls, &a.token(), &own(&a)).err().unwrap();
    assert!(matches!(own, JoinError::Own));
    assert_eq!(a.node.knows(), ["b"]);
    let away = Token { addr: socket_pair().1.local_addr().unwrap(), ..a.token() };
    let away = refused("e", away);
    assert!(matches!(away, JoinError::Unreachable(_)) && away.exit_code() == 75, "{away}");
}

fn own(running: &Running) -> peers::Own {
    peers::own(&running.node.state).unwrap().unwrap()
}

#[test]
fn strangers_may_say_nothing_but_join() {
    let a = Running::start("a", None).unwrap();
    let stranger = Node::new("x");
    for question in [NodeMsg::Ping, NodeMsg::Sync(Vec::new()), NodeMsg::Pong] {
        let mut link = a.link(&stranger, Service::Node);
        link.send(&question, &[]).unwrap();
        until_failure(&mut link);
        assert!(link.next_frame().is_none());
    }
    let mut link = a.link(&stranger, Service::Job(JobId([3; 16])));
    link.send(&NodeMsg::Ping, &[]).unwrap();
    until_failure(&mut link);
    assert!(link.next_frame().is_none());
}

#[test]
fn garbage_gets_a_closed_connection() {
    let a = Running::start("a", None).unwrap();
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0; 64], &[22, 3, 1, 0, 4, 1, 0, 0, 0]] {
        let mut stream = TcpStream::connect(a.addr).unwrap();
        stream.write_all(garbage).unwrap();
        assert!(rest_of(stream).is_empty());
    }
    // It goes on answering its own.
    client::ping(&a.addr.to_string(), &a.node.tls, a.node.id(), PATIENCE).unwrap();
}

#[test]
fn too_many_silent_clients_do_not_keep_others_out() {
    let a = Running::start("a", None).unwrap();
    let silent: Vec<TcpStream> = (0..260).map(|_| TcpStream::connect(a.addr).unwrap()).collect();
    client::ping(&a.addr.to_string(), &a.node.tls, a.node.id(), PATIENCE).unwrap();
    assert!(rest_of(silent.into_iter().next().unwrap()).is_empty());
}

#[test]
fn one_daemon_for_one_state_folder() {
    let a = Running::start("a", None).unwrap();
    let node = Node {
        state: a.node.state.clone(),
        tls: a.node.tls.clone(),
        _tmp: tempfile::tempdir().unwrap(),
    };
    let second = Running::start_with(node, None, PathBuf::new()).err().unwrap();
    assert!(second.to_string().contains("already runs"), "{second}");
}

/// Takes the connection that a daemon hands over.
fn receive_connection(listener: &UnixListener) -> TcpStream {
    use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags, UnixAddr};
    let control = listener.accept().unwrap().0;
    let (mut bytes, mut space) = ([0; 64], nix::cmsg_space!([i32; 1]));
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<UnixAddr>(control.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let fd = message.cmsgs().unwrap().find_map(|c| match c {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let len = message.bytes;
    assert!(matches!(read_frame(&mut &bytes[..len]).unwrap(), Request::Connection));
    // SAFETY: recvmsg(2) has just made this descriptor, and no one else knows it.
    TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd.unwrap()) })
}

#[test]
fn a_connection_for_a_job_reaches_its_supervisor_untouched() {
    let a = Running::start("a", None).unwrap();
    let peer = Node::new("b");
    a.node.trust(&peer);
    let job = JobId([5; 16]);
    a.node.state.job(job).create().unwrap();
    let listener = UnixListener::bind(a.node.state.job(job).socket()).unwrap();
    let mut link = a.link(&peer, Service::Job(job));
    link.send(&"for the job", &[]).unwrap();
    let supervisor = std::thread::spawn({
        let tls = a.node.tls.clone();
        move || {
            let mut link = Link::accept(receive_connection(&listener), &tls).unwrap();
            let got = frame(&mut link).unwrap().decode::<String>().unwrap();
            link.send(&format!("{got}: taken"), &[]).unwrap();
            link
        }
    });
    assert_eq!(frame(&mut link).unwrap().decode::<String>().unwrap(), "for the job: taken");
    supervisor.join().unwrap();
}

#[test]
fn a_job_without_supervisor_gets_a_closed_connection() {
    let a = Running::start("a", None).unwrap();
    let peer = Node::new("b");
    a.node.trust(&peer);
    let job = JobId([6; 16]);
    a.node.state.job(job).create().unwrap();
    drop(UnixListener::bind(a.node.state.job(job).socket()).unwrap());
    for job in [job, JobId([7; 16])] {
        let mut link = a.link(&peer, Service::Job(job));
        link.send(&"anyone?", &[]).unwrap();
        until_failure(&mut link);
        assert!(link.established() && link.next_frame().is_none());
    }
}

/// A receiver that notes its arguments, its connection's first byte and its session.
fn receiver_script(dir: &Path) -> PathBuf {
    let path = dir.join("receiver");
    let text = "#!/bin/sh\nfirst=$(head -c1 <&3 | od -An -tx1)\n\
                echo \"$1 $3$first\" $(cut -d' ' -f1,6 /proc/$$/stat) >\"$2/got\"\n";
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

#[test]
fn a_connection_for_a_new_job_starts_a_receiver() {
    let node = Node::new("a");
    let script = receiver_script(node.state.path());
    let a = Running::start_with(node, None, script).unwrap();
    let mut link = a.link(&Node::new("b"), Service::New);
    // The script ends after one byte, which cuts the connection.
    until_failure(&mut link);
    let got = std::fs::read_to_string(a.node.state.path().join("got")).unwrap();
    let words: Vec<_> = got.split_whitespace().collect();
    // 0x16 is a TLS handshake record: nothing of it was consumed.
    assert_eq!(words[..3], ["--state-dir", "__receive", "16"]);
    assert_eq!(words[3], words[4], "leads its own session");
}
