//! Listening sockets of the home, and the connections that come from them.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt, MsgFlags};
use vosrun::proxy::{HomeEnd, StreamId};

use crate::world::{write_now, World, PATIENCE};

const LISTENER: StreamId = 3;

/// A world with a relayed listening socket of this backlog, and its address.
fn listening(backlog: i32) -> (World, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let again = nix::sys::socket::Backlog::new(backlog).unwrap();
    nix::sys::socket::listen(&listener, again).unwrap();
    (World::new(vec![(LISTENER, HomeEnd::Listener(listener.into()))]), address)
}

fn client(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Closing it resets the connection.
fn reset(client: &TcpStream) {
    setsockopt(client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

fn accepted(world: &mut World) -> StreamId {
    let mut stream = None;
    world.until("a connection of the job", |w| {
        stream = w.job_accepts(LISTENER);
        stream.is_some()
    });
    stream.unwrap()
}

/// The descriptors of this thread.
fn descriptors() -> Vec<i32> {
    let entries = fs::read_dir("/proc/thread-self/fd").unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// Parts this thread's descriptors from those of the tests beside it.
fn own_descriptors() {
    use nix::sched::{unshare, CloneFlags};
    let others = descriptors();
    unshare(CloneFlags::CLONE_FILES).unwrap();
    for fd in others.into_iter().chain(descriptors()).filter(|fd| *fd > 2) {
        // Some were open for the listing only.
        let _ = nix::unistd::close(fd);
    }
}

/// What a client that does not wait has got: bytes, or why there are none.
fn got(client: &mut TcpStream) -> Option<Result<Vec<u8>, ErrorKind>> {
    client.set_nonblocking(true).unwrap();
    let mut buf = [0; 8192];
    match client.read(&mut buf) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        other => Some(other.map(|n| buf[..n].to_vec()).map_err(|e| e.kind())),
    }
}

fn await_got(world: &mut World, client: &mut TcpStream) -> Result<Vec<u8>, ErrorKind> {
    let mut found = None;
    world.until("something for the client", |_| {
        found = got(client);
        found.is_some()
    });
    found.unwrap()
}

/// The client asks, the job answers.
fn exchange(world: &mut World, stream: StreamId, client: &mut TcpStream, text: &[u8]) {
    client.set_nonblocking(false).unwrap();
    client.write_all(text).unwrap();
    assert_eq!(world.job_gets(stream, text.len()), text);
    assert_eq!(write_now(&world.ends[&stream], text).unwrap(), text.len());
    assert_eq!(await_got(world, client).unwrap(), text);
}

/// Nothing is left of any connection.
fn await_none(world: &mut World) {
    let alone = |streams: Vec<StreamId>| streams == [LISTENER];
    world.until("the end of all connections", |w| {
        alone(w.home.streams().collect()) && alone(w.away.streams().collect())
    });
}

#[test]
fn ten_thousand_connections_leave_nothing() {
    const ALL: usize = 10_000;
    const AT_ONCE: usize = 20;
    own_descriptors();
    let (mut world, address) = listening(64);
    let before = descriptors().len();
    for turn in 0..ALL / AT_ONCE {
        let mut clients: Vec<_> = (0..AT_ONCE).map(|_| client(address)).collect();
        for client in &mut clients {
            let stream = accepted(&mut world);
            exchange(&mut world, stream, client, b"hello");
            // Either side ends it, by an end of file or a reset.
            if turn % 2 == 0 {
                world.ends.remove(&stream);
            }
            if turn % 16 > 0 {
                reset(client);
            }
        }
        drop(clients);
        world.turn(Duration::ZERO);
        world.ends.retain(|stream, _| *stream == LISTENER);
    }
    await_none(&mut world);
    assert_eq!(descriptors().len(), before);
}

#[test]
fn what_is_over_is_forgotten_over_broken_links_and_moves() {
    let (mut world, address) = listening(64);
    world.cut_every = 9;
    for turn in 0..60 {
        let mut client = client(address);
        let stream = accepted(&mut world);
        exchange(&mut world, stream, &mut client, b"over and over");
        if turn % 2 == 0 {
            reset(&client);
        }
        drop(client);
        if turn % 3 == 0 {
            world.relocate();
        }
        world.ends.remove(&stream);
        if turn % 5 == 0 {
            world.relocate();
        }
    }
    await_none(&mut world);
    assert!(world.cuts > 50, "{} links", world.cuts);
}

#[test]
fn what_ends_while_the_job_is_frozen_is_forgotten_later() {
    let (mut world, address) = listening(64);
    for turn in 0..100 {
        let mut client = client(address);
        let stream = accepted(&mut world);
        exchange(&mut world, stream, &mut client, b"over and over");
        world.ends.remove(&stream);
        drop(client);
        for _ in 0..turn % 10 {
            world.turn(Duration::ZERO);
        }
        let meanwhile = |w: &mut World| {
            for _ in 0..20 {
                w.turn(Duration::ZERO);
            }
        };
        match turn % 3 {
            0 => world.abort_move_after(meanwhile),
            _ => world.relocate_after(meanwhile),
        }
    }
    await_none(&mut world);
}

#[test]
fn no_more_wait_than_the_job_allows() {
    const BACKLOG: usize = 2;
    let (mut world, address) = listening(BACKLOG as i32);
    let callers: Vec<_> = (0..12)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = client(address);
                client.write_all(b"hello").unwrap();
                let mut all = Vec::new();
                client.read_to_end(&mut all).unwrap();
                assert_eq!(all, b"goodbye");
            })
        })
        .collect();
    world.until("a full queue", |w| w.queued.len() > BACKLOG);
    for _ in 0..50 {
        world.turn(Duration::from_millis(2));
        assert_eq!(world.queued.len(), BACKLOG + 1, "connections wait");
    }
    // Those that found no room come again.
    for _ in 0..callers.len() {
        let stream = accepted(&mut world);
        assert_eq!(world.job_gets(stream, 5), b"hello");
        write_now(&world.ends[&stream], b"goodbye").unwrap();
        world.ends.remove(&stream);
        assert!(world.queued.len() <= BACKLOG + 1, "{} connections wait", world.queued.len());
    }
    world.until("the clients' ends", |_| callers.iter().all(|caller| caller.is_finished()));
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    await_none(&mut world);
}

#[test]
fn a_closed_socket_resets_who_waits_and_nobody_else() {
    let (mut world, address) = listening(16);
    let (mut first, mut second) = (client(address), client(address));
    world.until("both connections", |w| w.queued.len() == 2);
    // Nobody has looked since the job has accepted it.
    let stream = world.job_accepts(LISTENER).unwrap();
    world.ends.remove(&LISTENER);
    world.at_away(|away, out| away.close_listener(LISTENER, out));
    // More than a connection gets that nobody has accepted.
    let long = vec![7; 300_000];
    let mut sender = first.try_clone().unwrap();
    let feeder = std::thread::spawn({
        let long = long.clone();
        move || sender.write_all(&long).unwrap()
    });
    assert!(world.job_gets(stream, long.len()) == long);
    feeder.join().unwrap();
    exchange(&mut world, stream, &mut first, b"after all");
    assert_eq!(await_got(&mut world, &mut second), Err(ErrorKind::ConnectionReset));
    world.until("nobody listens", |_| TcpStream::connect(address).is_err());
}

#[test]
fn what_was_accepted_before_the_socket_was_closed_moves_on() {
    let (mut world, address) = listening(16);
    let (mut answered, mut asking, mut late) = (client(address), client(address), client(address));
    world.until("the connections", |w| w.queued.len() == 3);
    let (first, second) = (accepted(&mut world), accepted(&mut world));
    world.ends.remove(&LISTENER);
    write_now(&world.ends[&first], b"the last word").unwrap();
    world.ends.remove(&first);
    world.relocate();
    assert_eq!(await_got(&mut world, &mut answered).unwrap(), b"the last word");
    exchange(&mut world, second, &mut asking, b"and now?");
    assert_eq!(await_got(&mut world, &mut late), Err(ErrorKind::ConnectionReset));
}

#[test]
fn who_waits_moves_along_with_what_was_sent() {
    let (mut world, address) = listening(16);
    let mut clients: Vec<_> = (0..5).map(|_| client(address)).collect();
    world.until("the connections", |w| w.queued.len() == 5);
    for (n, client) in clients.iter_mut().enumerate() {
        client.write_all(&[n as u8; 3000]).unwrap();
    }
    let first = accepted(&mut world);
    assert_eq!(world.job_gets(first, 3000), [0; 3000]);
    for _ in 0..3 {
        world.relocate();
        world.until("the connections again", |w| w.queued.len() == 4);
        world.abort_move();
    }
    exchange(&mut world, first, &mut clients[0], b"still here");
    for (n, client) in clients.iter_mut().enumerate().skip(1) {
        let stream = accepted(&mut world);
        assert_eq!(world.job_gets(stream, 3000), [n as u8; 3000]);
        exchange(&mut world, stream, client, b"hello");
    }
}

#[test]
fn who_comes_while_the_job_is_frozen_is_told_again() {
    for given_up in [true, false] {
        let (mut world, address) = listening(16);
        let mut early = client(address);
        let stream = accepted(&mut world);
        let mut late = None;
        let mut meanwhile = |w: &mut World| {
            late = Some(client(address));
            for _ in 0..20 {
                w.turn(Duration::from_millis(1));
            }
        };
        match given_up {
            true => world.abort_move_after(&mut meanwhile),
            false => world.relocate_after(&mut meanwhile),
        }
        exchange(&mut world, stream, &mut early, b"as before");
        let stream = accepted(&mut world);
        exchange(&mut world, stream, &mut late.unwrap(), b"at last");
    }
}

#[test]
fn a_reset_before_it_is_accepted_reaches_the_job() {
    let (mut world, address) = listening(16);
    let (gone, stays) = (client(address), client(address));
    world.until("both connections", |w| w.queued.len() == 2);
    reset(&gone);
    drop(gone);
    for _ in 0..20 {
        world.turn(Duration::from_millis(1));
    }
    let stream = accepted(&mut world);
    let mut end = TcpStream::from(world.ends.remove(&stream).unwrap());
    let error = await_got(&mut world, &mut end).unwrap_err();
    assert_eq!(error, ErrorKind::ConnectionReset);
    let stream = accepted(&mut world);
    exchange(&mut world, stream, &mut { stays }, b"hello");
}

#[test]
fn bytes_behind_an_urgent_one_arrive() {
    let (mut world, address) = listening(8);
    let mut client = client(address);
    let stream = accepted(&mut world);
    exchange(&mut world, stream, &mut client, b"hello");
    for turn in 0..20 {
        // A read ends in front of the urgent byte, which is relayed by nobody.
        nix::sys::socket::send(client.as_raw_fd(), b"before!", MsgFlags::MSG_OOB).unwrap();
        client.write_all(b"behind").unwrap();
        assert_eq!(world.job_gets(stream, 12), b"beforebehind", "turn {turn}");
    }
}

#[test]
fn the_job_ends_with_clients_in_every_state() {
    let (mut world, address) = listening(2);
    let (mut idle, mut closed, mut asking) = (client(address), client(address), client(address));
    let streams = [accepted(&mut world), accepted(&mut world), accepted(&mut world)];
    exchange(&mut world, streams[0], &mut idle, b"hello");
    exchange(&mut world, streams[1], &mut closed, b"hello");
    world.ends.remove(&streams[1]);
    asking.write_all(b"nobody reads it").unwrap();
    let mut waiting: Vec<_> = (0..3).map(|_| client(address)).collect();
    world.until("a full queue", |w| w.queued.len() == 3);
    waiting.push(client(address));
    write_now(&world.ends[&streams[0]], b"the last word").unwrap();
    world.job_ended();
    assert_eq!(await_got(&mut world, &mut idle).unwrap(), b"the last word");
    assert_eq!(await_got(&mut world, &mut idle).unwrap(), b"");
    for client in &mut waiting {
        assert_eq!(await_got(&mut world, client), Err(ErrorKind::ConnectionReset));
    }
}

#[test]
fn an_end_of_file_that_waits_is_there_before_the_job_runs() {
    const STREAM: StreamId = 1;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = client(listener.local_addr().unwrap());
    let real = listener.accept().unwrap().0;
    peer.write_all(b"the last word").unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    let mut world = World::before_thaw(vec![(STREAM, HomeEnd::Socket(real.into()))]);
    // Nothing has come over the link yet.
    let mut end = TcpStream::from(world.ends[&STREAM].try_clone().unwrap());
    let mut all = Vec::new();
    end.set_read_timeout(Some(PATIENCE)).unwrap();
    end.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"the last word");
    world.thaw();
    end.write_all(b"and an answer").unwrap();
    drop(end);
    world.ends.clear();
    // No reset, for all that was read of the real socket.
    let mut answer = Vec::new();
    world.until("the answer", |_| {
        answer.extend(got(&mut peer).unwrap_or(Ok(Vec::new())).unwrap());
        answer.len() == 13
    });
    assert_eq!(await_got(&mut world, &mut peer), Ok(Vec::new()));
    world.until("the end", |w| w.home.streams().next().is_none());
}
