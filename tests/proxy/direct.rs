//! Connections that are led past their relays and back, at any moment.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use vosrun::proxy::{HomeEnd, Relays, StreamId};

use crate::world::{read_now, write_now, Seeded, World, PATIENCE};

pub const STREAM: StreamId = 5;

pub fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// A world with a connection of the job, and its peer.
fn connected() -> (World, OwnedFd) {
    let (peer, real) = pair();
    (World::new(vec![(STREAM, HomeEnd::Socket(real.into()))]), peer.into())
}

/// Leads the connection past its relay. False when the relay is needed.
fn go_direct(world: &mut World) -> bool {
    let until = Instant::now() + PATIENCE;
    let key = loop {
        assert!(Instant::now() < until, "no invitation");
        world.at_away(|away, out| away.want(STREAM, true, out));
        world.turn(Duration::from_millis(1));
        match world.away.take_invitations().pop() {
            Some((STREAM, key)) => break key,
            _ if world.home.streams().next().is_none() => return false,
            _ => {}
        }
    };
    let (mut own, far) = pair();
    world.home.connected(&key, far).unwrap();
    let mut taken = [0];
    if own.read(&mut taken).unwrap() == 0 {
        return false;
    }
    let job_end = world.ends[&STREAM].as_fd();
    let Some((begin, _)) = world.away.hand_over(STREAM, job_end).unwrap() else {
        return false;
    };
    if world.seed.below(8) == 0 {
        // Something else has failed: the relay goes on.
        world.at_away(|away, out| away.take_back(STREAM, out));
        return false;
    }
    let mut writer = own.try_clone().unwrap();
    let written = std::thread::spawn(move || writer.write_all(&begin).unwrap());
    world.until("the bytes of the relay", |_| written.is_finished());
    written.join().unwrap();
    Relays::confirm_direct(&mut own).unwrap();
    world.away.handed_over(STREAM);
    world.ends.insert(STREAM, own.into());
    true
}

/// Has the relay carry it again; only begins that.
fn recall(world: &mut World) {
    let (job, far) = pair();
    let was = world.ends.insert(STREAM, job.into()).unwrap();
    world.at_away(|away, out| away.recall(STREAM, far.into(), was, out).unwrap());
}

/// One direction: what was written, and how much of it has been read.
#[derive(Default)]
pub struct Way {
    written: Vec<u8>,
    read: usize,
}

impl Way {
    fn write(&mut self, to: &OwnedFd, seed: &mut Seeded) {
        let len = seed.below(30_000) as usize;
        let bytes = seed.bytes(len);
        let n = write_now(to, &bytes).unwrap();
        self.written.extend(&bytes[..n]);
    }

    pub fn read(&mut self, from: &OwnedFd) -> bool {
        let Some(bytes) = read_now(from) else { return false };
        self.take(&bytes);
        !bytes.is_empty()
    }

    pub fn take(&mut self, bytes: &[u8]) {
        assert!(self.written[self.read..].starts_with(bytes), "at {}", self.read);
        self.read += bytes.len();
    }

    pub fn is_read(&self) -> bool {
        self.read == self.written.len()
    }
}

pub fn some_traffic(world: &mut World, peer: &OwnedFd, there: &mut Way, back: &mut Way) {
    for _ in 0..world.seed.below(30) {
        let job = world.ends[&STREAM].try_clone().unwrap();
        match world.seed.below(5) {
            0 => there.write(peer, &mut world.seed),
            1 => back.write(&job, &mut world.seed),
            2 => drop(there.read(&job)),
            3 => drop(back.read(peer)),
            _ => world.turn(Duration::ZERO),
        }
    }
}

#[test]
fn no_byte_is_lost_doubled_or_out_of_order() {
    let (mut world, peer) = connected();
    world.cut_every = 40;
    let (mut there, mut back) = (Way::default(), Way::default());
    let mut direct = 0;
    for _ in 0..60 {
        some_traffic(&mut world, &peer, &mut there, &mut back);
        if go_direct(&mut world) {
            direct += 1;
            some_traffic(&mut world, &peer, &mut there, &mut back);
            recall(&mut world);
            some_traffic(&mut world, &peer, &mut there, &mut back);
            world.until("the relay to carry it again", |w| !w.away.is_recalling());
        } else if world.seed.below(3) == 0 {
            world.relocate();
        }
    }
    assert!(direct > 30, "{direct}");
    world.until("all bytes", |w| {
        there.read(&w.ends[&STREAM]);
        back.read(&peer);
        there.is_read() && back.is_read()
    });
    assert!(there.read > 1_000_000 && back.read > 1_000_000);
}

/// What the next read gives, once it gives anything.
fn next(world: &mut World, fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut found = None;
    world.until("a word of the other end", |_| {
        let mut buf = [0; 64];
        crate::world::nonblocking(fd);
        found = match nix::unistd::read(fd, &mut buf) {
            Err(Errno::EAGAIN) => None,
            other => Some(other.map(|n| buf[..n].to_vec())),
        };
        found.is_some()
    });
    found.unwrap()
}

fn direct_world() -> (World, OwnedFd) {
    let (mut world, peer) = connected();
    while !go_direct(&mut world) {}
    (world, peer)
}

fn await_none(world: &mut World) {
    world.until("the end of it", |w| {
        w.home.streams().next().is_none() && w.away.streams().next().is_none()
    });
}

#[test]
fn each_side_closes_by_itself() {
    use nix::sys::socket::{shutdown, Shutdown};
    use std::os::fd::AsRawFd;
    for job_first in [true, false] {
        for recalled in [0, 1, 2] {
            eprintln!("job first: {job_first}, recalled: {recalled}");
            let (mut world, peer) = direct_world();
            let end = |world: &World, job: bool| match job {
                true => world.ends[&STREAM].try_clone().unwrap(),
                false => peer.try_clone().unwrap(),
            };
            write_now(&end(&world, job_first), b"last").unwrap();
            shutdown(end(&world, job_first).as_raw_fd(), Shutdown::Write).unwrap();
            if recalled == 1 {
                recall(&mut world);
                if job_first {
                    shutdown(world.ends[&STREAM].as_raw_fd(), Shutdown::Write).unwrap();
                }
            }
            let other = end(&world, !job_first);
            assert_eq!(next(&mut world, &other).unwrap(), b"last");
            assert_eq!(next(&mut world, &other).unwrap(), b"");
            if recalled == 2 {
                recall(&mut world);
                if job_first {
                    shutdown(world.ends[&STREAM].as_raw_fd(), Shutdown::Write).unwrap();
                }
            }
            // The other direction is open.
            write_now(&end(&world, !job_first), b"answer").unwrap();
            let first = end(&world, job_first);
            assert_eq!(next(&mut world, &first).unwrap(), b"answer");
            shutdown(end(&world, !job_first).as_raw_fd(), Shutdown::Write).unwrap();
            assert_eq!(next(&mut world, &first).unwrap(), b"");
            world.ends.clear();
            await_none(&mut world);
        }
    }
}

#[test]
fn a_reset_arrives_as_one() {
    let reset = |fd: &OwnedFd| {
        setsockopt(fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    };
    for recalled in [false, true] {
        eprintln!("recalled: {recalled}");
        let (mut world, peer) = direct_world();
        reset(&world.ends[&STREAM]);
        if recalled {
            recall(&mut world);
            reset(&world.ends[&STREAM]);
        }
        world.ends.clear();
        assert_eq!(next(&mut world, &peer), Err(Errno::ECONNRESET));
        await_none(&mut world);

        let (mut world, peer) = direct_world();
        reset(&peer);
        drop(peer);
        if recalled {
            recall(&mut world);
        }
        let job = world.ends[&STREAM].try_clone().unwrap();
        assert_eq!(next(&mut world, &job), Err(Errno::ECONNRESET));
        drop(job);
        world.ends.clear();
        await_none(&mut world);
    }
}

#[test]
fn a_key_is_good_for_once() {
    let (mut world, _peer) = direct_world();
    let (mut own, far) = pair();
    world.home.connected(&[7; 32], far).unwrap();
    assert_eq!(own.read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_is_given_up_before_it_holds_leaves_the_relay_as_it_is() {
    let (mut world, peer) = connected();
    world.at_away(|away, out| away.want(STREAM, true, out));
    let mut key = None;
    world.until("an invitation", |w| {
        key = w.away.take_invitations().pop();
        key.is_some()
    });
    let (mut own, far) = pair();
    world.home.connected(&key.unwrap().1, far).unwrap();
    let job_end = world.ends[&STREAM].as_fd();
    let (begin, _) = world.away.hand_over(STREAM, job_end).unwrap().unwrap();
    own.write_all(&begin).unwrap();
    world.at_away(|away, out| away.take_back(STREAM, out));
    drop(own);
    write_now(&peer, b"to the job").unwrap();
    assert_eq!(world.job_gets(STREAM, 10), b"to the job");
    write_now(&world.ends[&STREAM], b"back").unwrap();
    assert_eq!(next(&mut world, &peer).unwrap(), b"back");
}
