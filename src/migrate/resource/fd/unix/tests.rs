//! Sockets of this process, captured and made again beside the old ones.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

use super::super::testing::{refusal, Here, Restored};
use super::*;

/// Restores these sockets together; their objects are counted as they are given.
fn moved(fds: &[&dyn AsRawFd]) -> Vec<OwnedFd> {
    let here = Here::of(fds);
    let objects: Vec<_> = fds.iter().map(|fd| here.capture(*fd)).collect();
    let wanted = (0..objects.len() as u32).collect();
    let mut cx = Restored::default();
    let (mut all, mut made) = Assembly::make(&objects, &wanted, 0, &mut cx).expect("make");
    all.fill(&made, &mut cx).expect("fill");
    wanted.iter().map(|index| made.remove(index).expect("made")).collect()
}

#[test]
fn a_connection_with_all_that_waits_in_it() {
    let (mut one, mut other) = UnixStream::pair().expect("pair");
    one.write_all(b"forth").expect("write");
    other.write_all(b"back").expect("write");
    one.shutdown(std::net::Shutdown::Write).expect("shutdown");
    one.set_read_timeout(Some(std::time::Duration::from_millis(1500))).expect("timeout");
    let mut ends = moved(&[&one, &other]).into_iter().map(UnixStream::from);
    let (mut one, mut other) = (ends.next().expect("one"), ends.next().expect("other"));
    assert_eq!(one.read_timeout().expect("timeout").map(|t| t.as_millis()), Some(1500));
    let mut text = String::new();
    other.read_to_string(&mut text).expect("read");
    assert_eq!(text, "forth");
    let mut four = [0; 4];
    one.read_exact(&mut four).expect("read");
    assert_eq!(&four, b"back");
    assert!(one.write(b"x").is_err());
}

#[test]
fn one_whose_other_end_is_closed() {
    let (dead, other) = UnixStream::pair().expect("pair");
    drop(other);
    let (reset, other) = UnixStream::pair().expect("pair");
    (&reset).write_all(b"never read").expect("write");
    (&other).write_all(b"last").expect("write");
    drop(other);
    let mut copies = moved(&[&dead, &reset]).into_iter().map(UnixStream::from);
    let (mut dead, mut reset) = (copies.next().expect("dead"), copies.next().expect("reset"));
    assert_eq!(dead.read(&mut [0]).expect("read"), 0);
    assert_eq!(dead.write(b"x").map_err(|e| e.kind()), Err(io::ErrorKind::BrokenPipe));
    let mut last = [0; 8];
    assert_eq!(reset.read(&mut last).expect("read"), 4);
    assert_eq!(reset.read(&mut last).map_err(|e| e.kind()), Err(io::ErrorKind::ConnectionReset));
}

#[test]
fn an_abstract_name_can_be_taken() {
    let name = format!("vosrun test {}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("address");
    let listener = UnixListener::bind_addr(&address).expect("bind");
    let here = Here::of(&[&listener]);
    let names = wanted_names(&[here.view(&listener)], &here);
    assert_eq!(judge(&names, false).first().map(|f| f.code.as_str()), Some("VOS-UNIX-NAME"));
    let object = here.capture(&listener);
    let objects = [object];
    let make = || {
        let made = Assembly::make(&objects, &[0].into(), 0, &mut Restored::default());
        made.map(|(_, made)| made.len())
    };
    let error = make().expect_err("the name is taken").to_string();
    assert!(error.contains(&format!("@{name}")), "{error}");
    drop(listener);
    assert!(judge(&names, false).is_empty());
    assert_eq!(make().expect("the name is free"), 1);
}

#[test]
fn what_leads_out_of_the_job_is_refused() {
    let (one, other) = UnixStream::pair().expect("pair");
    let mut child =
        Command::new("cat").stdin(Stdio::from(OwnedFd::from(other))).spawn().expect("cat");
    assert_eq!(refusal(&one), "VOS-UNIX-PEER");
    drop(one);
    child.wait().expect("wait");
}

#[test]
fn connections_that_wait_with_bytes_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let listener = UnixListener::bind(dir.path().join("s")).expect("bind");
    let client = UnixStream::connect(dir.path().join("s")).expect("connect");
    (&client).write_all(b"x").expect("write");
    let here = Here::of(&[&listener, &client]);
    let view = here.view(&listener);
    match Unix.capture(&view, &here) {
        Err(FdError::Refused(finding)) => assert_eq!(finding.code, "VOS-UNIX-BACKLOG"),
        other => panic!("{other:?}"),
    }
    assert_eq!(Unix.check(&view, &here), [], "a running job may accept it in time");
}

#[test]
fn a_name_that_another_file_has_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    let socket = UnixDatagram::bind(&path).expect("bind");
    std::fs::remove_file(&path).expect("unlink");
    let bare = Name::bare(path.as_os_str().as_encoded_bytes());
    let state = |socket: &UnixDatagram| {
        let here = Here::of(&[socket]);
        let state: State = super::super::decode(NAME, &here.capture(socket).state).expect("state");
        state.name
    };
    assert_eq!(state(&socket), Some(bare));
    let _other = UnixDatagram::bind(&path).expect("bind");
    assert_eq!(refusal(&socket), "VOS-UNIX-NAME");
}

#[test]
fn out_of_band_data_is_refused() {
    let (one, other) = UnixStream::pair().expect("pair");
    use nix::sys::socket::{send, MsgFlags};
    send(one.as_raw_fd(), b"!", MsgFlags::MSG_OOB).expect("send");
    let here = Here::of(&[&one, &other]);
    match Unix.capture(&here.view(&other), &here) {
        Err(FdError::Refused(finding)) => assert_eq!(finding.code, "VOS-UNIX-QUEUE"),
        other => panic!("{other:?}"),
    }
}
