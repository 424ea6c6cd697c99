//! Relays that rest while a connection is joined, and carry it again, on links that are cut at any
//! moment.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use vosrun::proxy::direct::Key;
use vosrun::proxy::{HomeEnd, Relays};

use crate::direct::{pair, Way, STREAM};
use crate::world::{read_now, World};

/// The other job: its real socket, and while it is joined the one in its place.
struct Other {
    real: OwnedFd,
    joined: Option<OwnedFd>,
}

impl Other {
    fn end(&self) -> OwnedFd {
        self.joined.as_ref().unwrap_or(&self.real).try_clone().unwrap()
    }
}

fn connected() -> (World, Other) {
    let (other, real) = pair();
    let world = World::new(vec![(STREAM, HomeEnd::Socket(real.into()))]);
    (world, Other { real: other.into(), joined: None })
}

/// Nothing of the frozen job is under way any more; false when that does not come about.
fn is_quiet(world: &mut World) -> bool {
    (0..100).any(|_| {
        world.at_away(|away, out| away.ask(STREAM, out));
        (0..100).any(|_| {
            world.turn(std::time::Duration::from_millis(1));
            world.away.is_quiet(STREAM).is_some_and(|quiet| quiet)
        })
    })
}

/// Both jobs get a connection of their own.
fn join(world: &mut World, other: &mut Other, key: Key) -> bool {
    let job = world.ends[&STREAM].try_clone().unwrap();
    let mut open = None;
    world.at_away(|away, out| open = away.freeze_open(STREAM, job.as_fd(), out).unwrap());
    let has_sent = |other: &Other| !Relays::is_under_way(other.real.as_fd()).unwrap();
    if open.is_none() || !is_quiet(world) || !has_sent(other) || !is_quiet(world) {
        world.at_away(|away, out| away.take_back(STREAM, out));
        return false;
    }
    let to_job = world.away.unread(STREAM, job.as_fd()).unwrap().unwrap();
    let mut to_other = Vec::new();
    while let Some(bytes) = read_now(&other.real).filter(|bytes| !bytes.is_empty()) {
        to_other.extend(bytes);
    }
    let (mut one, mut two) = pair();
    let mut writer = one.try_clone().unwrap();
    let written = std::thread::spawn(move || writer.write_all(&to_other).unwrap());
    two.write_all(&to_job).unwrap();
    written.join().unwrap();
    one.flush().unwrap();
    world.at_away(|away, out| away.joined(STREAM, key, out));
    world.ends.insert(STREAM, one.into());
    other.joined = Some(two.into());
    true
}

/// They take their old ways again. What is left on the new one is read to its end.
fn part(world: &mut World, other: &mut Other, there: &mut Way, back: &mut Way) {
    let (job, far) = pair();
    let was = world.ends.insert(STREAM, job.into()).unwrap();
    world.at_away(|away, out| away.recall(STREAM, far.into(), was, out).unwrap());
    let two = TcpStream::from(other.joined.take().unwrap());
    two.shutdown(Shutdown::Write).unwrap();
    world.at_away(|away, out| away.parted(STREAM, out));
    let two = OwnedFd::from(two);
    world.until("the end of the connection", |world| {
        let ended = read_all(&two, back);
        there.read(&world.ends[&STREAM]);
        ended
    });
    world.until("the relay to carry it again", |world| !world.away.is_recalling());
}

/// True at the end of file.
fn read_all(from: &OwnedFd, way: &mut Way) -> bool {
    let mut buf = [0; 65536];
    loop {
        let fd = std::os::fd::AsRawFd::as_raw_fd(from);
        match nix::sys::socket::recv(fd, &mut buf, nix::sys::socket::MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return true,
            Ok(n) => way.take(&buf[..n]),
            Err(Errno::EAGAIN) => return false,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn no_byte_is_lost_doubled_or_out_of_order() {
    let (mut world, mut other) = connected();
    world.cut_every = 40;
    let (mut there, mut back) = (Way::default(), Way::default());
    let mut joined = 0;
    for turn in 0..60 {
        some_traffic(&mut world, &other, &mut there, &mut back);
        if join(&mut world, &mut other, [turn; 32]) {
            joined += 1;
            some_traffic(&mut world, &other, &mut there, &mut back);
            part(&mut world, &mut other, &mut there, &mut back);
            some_traffic(&mut world, &other, &mut there, &mut back);
        }
        if world.seed.below(3) == 0 {
            world.relocate();
        }
    }
    assert!(joined > 10, "{joined}");
    world.until("all bytes", |w| {
        there.read(&w.ends[&STREAM]);
        back.read(&other.real);
        there.is_read() && back.is_read()
    });
}

fn some_traffic(world: &mut World, other: &Other, there: &mut Way, back: &mut Way) {
    crate::direct::some_traffic(world, &other.end(), there, back);
}
