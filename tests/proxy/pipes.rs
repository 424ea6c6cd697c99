//! Pipes and files of the home.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use vosrun::proxy::HomeEnd;

use crate::world::{read_now, write_now, World};

const IN: u32 = 0;
const OUT: u32 = 1;

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe2(OFlag::O_CLOEXEC).unwrap()
}

/// A world with relayed stdin and stdout; the outer ends: upstream, downstream.
fn piped() -> (World, OwnedFd, OwnedFd) {
    let ((stdin, upstream), (downstream, stdout)) = (pipe(), pipe());
    let ends = vec![(IN, HomeEnd::Input(stdin)), (OUT, HomeEnd::Output(stdout))];
    (World::new(ends), upstream, downstream)
}

fn spawn(world: &mut World, command: &str) -> Child {
    let end = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
    Command::new("sh")
        .args(["-c", command])
        .stdin(end(world.ends.remove(&IN)))
        .stdout(end(world.ends.remove(&OUT)))
        .spawn()
        .unwrap()
}

/// The person's part: feeds `input`, collects the output. True at its eof.
struct Outside {
    input: Vec<u8>,
    fed: usize,
    upstream: Option<OwnedFd>,
    downstream: OwnedFd,
    output: Vec<u8>,
}

impl Outside {
    fn turn(&mut self, piece: usize) -> bool {
        if let Some(upstream) = &self.upstream {
            let end = self.input.len().min(self.fed + piece);
            self.fed += write_now(upstream, &self.input[self.fed..end]).unwrap();
        }
        if self.fed == self.input.len() {
            self.upstream = None;
        }
        match read_now(&self.downstream) {
            Some(bytes) if bytes.is_empty() => true,
            bytes => {
                self.output.extend(bytes.unwrap_or_default());
                false
            }
        }
    }
}

/// The job's part: cat, as steps.
#[derive(Default)]
struct Cat {
    held: Vec<u8>,
}

impl Cat {
    fn turn(&mut self, world: &mut World) {
        if !self.held.is_empty() {
            let n = write_now(&world.ends[&OUT], &self.held).unwrap();
            self.held.drain(..n);
        } else if let Some(bytes) = world.ends.get(&IN).and_then(read_now) {
            if bytes.is_empty() {
                world.ends.clear();
            }
            self.held = bytes;
        }
    }
}

/// `bytes` through a cat, with cuts, moves and aborted moves at random.
fn soak(seed: u64, bytes: usize, cut_every: u64, move_every: u64) {
    let (mut world, upstream, downstream) = piped();
    world.seed.0 = seed;
    world.cut_every = cut_every;
    let input = world.seed.bytes(bytes);
    let mut outside =
        Outside { input, fed: 0, upstream: Some(upstream), downstream, output: Vec::new() };
    let (mut cat, mut moves) = (Cat::default(), 0);
    world.until("the end of the output", |world| {
        for _ in 0..4 {
            cat.turn(world);
        }
        if world.seed.below(move_every) == 0 {
            moves += 1;
            if moves % 3 == 0 {
                world.abort_move();
            } else {
                world.relocate();
            }
        }
        let piece = 1 + world.seed.below(30_000) as usize;
        outside.turn(piece)
    });
    assert!(outside.output == outside.input, "seed {seed}: bytes lost, repeated or changed");
    assert!(moves >= 3 && world.cuts >= 3, "{moves} moves, {} cuts", world.cuts);
}

#[test]
fn sixteen_mebibytes_arrive_exactly() {
    soak(0x5eed, 16 << 20, 400, 100);
}

#[test]
fn small_streams_with_many_cuts_and_moves_arrive_exactly() {
    for seed in 1..40 {
        soak(seed * 7919, 1_200_000, 4, 5);
    }
}

#[test]
fn a_real_cat_with_cuts() {
    let (mut world, upstream, downstream) = piped();
    let mut child = spawn(&mut world, "exec cat");
    world.cut_every = 50;
    let input = world.seed.bytes(2 << 20);
    let mut outside =
        Outside { input, fed: 0, upstream: Some(upstream), downstream, output: Vec::new() };
    world.until("cat's output", |_| outside.turn(100_000));
    assert!(outside.output == outside.input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn input_waits_unread_through_moves() {
    let (mut world, upstream, _downstream) = piped();
    write_now(&upstream, b"never read so far").unwrap();
    drop(upstream);
    for turn in 0..6 {
        world.turn(std::time::Duration::ZERO);
        if turn % 2 == 0 {
            world.relocate();
        } else {
            world.abort_move();
        }
    }
    assert_eq!(world.job_gets(IN, 17), b"never read so far");
    world.until("eof", |w| w.job_reads(IN).is_some_and(|bytes| bytes.is_empty()));
}

#[test]
fn a_writer_whose_reader_left_gets_sigpipe() {
    let (mut world, _upstream, downstream) = piped();
    let mut child = spawn(&mut world, "exec yes");
    world.until("some output", |_| read_now(&downstream).is_some());
    drop(downstream);
    let mut status = None;
    world.until("the end of yes", |_| {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().signal(), Some(libc::SIGPIPE));
}

#[test]
fn an_idle_reader_that_leaves_is_noticed() {
    let (mut world, _upstream, downstream) = piped();
    world.relocate();
    drop(downstream);
    world.until("EPIPE", |w| write_now(&w.ends[&OUT], b"x") == Err(Errno::EPIPE));
}

#[test]
fn a_broken_pipe_is_remembered_over_cut_and_move() {
    let (mut world, _upstream, downstream) = piped();
    drop(downstream);
    world.turn(std::time::Duration::ZERO);
    world.connect();
    world.relocate();
    world.until("EPIPE", |w| write_now(&w.ends[&OUT], b"x") == Err(Errno::EPIPE));
}

#[test]
fn upstream_gets_epipe_when_the_job_stops_reading() {
    let (mut world, upstream, _downstream) = piped();
    world.ends.remove(&IN);
    world.until("EPIPE upstream", |_| write_now(&upstream, b"x") == Err(Errno::EPIPE));
}

#[test]
fn the_last_words_of_a_job_arrive() {
    let (mut world, _upstream, downstream) = piped();
    world.cut_every = 3;
    write_now(&world.ends[&OUT], &[b'x'; 50_000]).unwrap();
    world.job_ended();
    let mut got = 0;
    while let Some(bytes) = read_now(&downstream).filter(|bytes| !bytes.is_empty()) {
        got += bytes.len();
    }
    assert_eq!(got, 50_000);
    assert_eq!(read_now(&downstream), Some(Vec::new()));
}

#[test]
fn regular_files_are_read_and_written_at_the_shared_offset() {
    use std::io::{Read, Seek, Write};
    let mut input = tempfile::tempfile().unwrap();
    let mut output = tempfile::tempfile().unwrap();
    input.write_all(b"skipped and read").unwrap();
    input.seek(std::io::SeekFrom::Start(8)).unwrap();
    output.write_all(b"before ").unwrap();
    let mut world = World::new(vec![
        (IN, HomeEnd::Input(input.into())),
        (OUT, HomeEnd::Output(output.try_clone().unwrap().into())),
    ]);
    assert_eq!(world.job_gets(IN, 8), b"and read");
    world.until("eof", |w| w.job_reads(IN).is_some_and(|bytes| bytes.is_empty()));
    write_now(&world.ends[&OUT], b"after").unwrap();
    world.job_ended();
    let mut text = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before after");
}

#[test]
fn sockets_are_relayed_like_pipes() {
    use std::io::{Read, Write};
    let (mut person, stdin) = std::os::unix::net::UnixStream::pair().unwrap();
    let stdout = stdin.try_clone().unwrap();
    let ends = vec![(IN, HomeEnd::Input(stdin.into())), (OUT, HomeEnd::Output(stdout.into()))];
    let mut world = World::new(ends);
    person.write_all(b"question").unwrap();
    person.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(world.job_gets(IN, 8), b"question");
    write_now(&world.ends[&OUT], b"answer").unwrap();
    world.job_ended();
    let mut answer = String::new();
    person.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}

#[test]
fn what_was_read_is_acknowledged_soon_without_bytes_the_other_way() {
    let (mut world, upstream, _downstream) = piped();
    write_now(&upstream, b"a few bytes").unwrap();
    assert_eq!(world.job_gets(IN, 11), b"a few bytes");
    world.until("the acknowledgement", |w| w.home.is_drained());
    // And then nothing is to be done any more.
    world.until("rest", |w| w.home.tick().is_none() && w.away.tick().is_none());
}

#[test]
fn a_job_that_came_home_is_relayed_in_memory() {
    use vosrun::proxy::{Loopback, Relays};
    let poll = mio::Poll::new().unwrap();
    let relays = |tokens| Relays::new(poll.registry().try_clone().unwrap(), tokens);
    let (mut home, mut away) = (relays(0..9), relays(10..19));
    let (stdin, upstream) = pipe();
    let state = home.add_home(IN, HomeEnd::Input(stdin)).unwrap();
    let job = away.rebuild(state).unwrap();
    let mut link = Loopback::join(&mut home, &mut away);
    write_now(&upstream, b"short way").unwrap();
    home.thaw(&mut link.from_home());
    away.thaw(&mut link.from_away());
    while link.settle(&mut home, &mut away).unwrap() {}
    assert_eq!(read_now(&job), Some(b"short way".to_vec()));
}

#[test]
fn a_frozen_home_half_reads_nothing() {
    let (stdin, upstream) = pipe();
    let mut world = World::before_thaw(vec![(IN, HomeEnd::Input(stdin.try_clone().unwrap()))]);
    write_now(&upstream, b"kept").unwrap();
    for _ in 0..5 {
        world.turn(std::time::Duration::ZERO);
    }
    drop(world);
    assert_eq!(read_now(&stdin), Some(b"kept".to_vec()));
}
