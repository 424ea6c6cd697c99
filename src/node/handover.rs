//! Reads what a new connection is for and gives it to the one who is meant, with not a
//! byte of it consumed.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, IoSlice, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    connect, sendmsg, socket, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr,
};
use rustls::server::Acceptor;

use super::raw;
use crate::control::{short_path, write_frame, Request};
use crate::migrate::transport::Service;
use crate::proxy::direct::Preface;
use crate::state::StateDir;

/// Bytes of a connection that are looked at: the largest TLS record with its header.
const HELLO_MAX: usize = (16 << 10) + 5;

/// So long a supervisor is woken for a connection.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// Why a connection's first bytes lead nowhere.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error("reading its first bytes: {0}")]
    Io(#[from] io::Error),
    #[error("it closed the connection before its first message was complete")]
    Closed,
    #[error("it does not speak TLS: {0}")]
    NotTls(rustls::Error),
    #[error("its first message is above {HELLO_MAX} bytes")]
    TooLong,
    #[error("it asks for no service")]
    NoName,
    #[error("it asks for {0:?}, which is not a service")]
    UnknownName(String),
}

/// The service that a connection asks for; None while its first message is incomplete. The
/// bytes stay in the socket (recv(2): MSG_PEEK).
///
/// # Errors
/// When the connection ends or is not one of ours.
pub fn peek_service(stream: &TcpStream) -> Result<Option<Service>, HelloError> {
    let mut bytes = vec![0; HELLO_MAX];
    match stream.peek(&mut bytes) {
        Ok(0) => Err(HelloError::Closed),
        Ok(n) if Preface::is_begun(&bytes[..n]) => Ok(preface_service(&bytes[..n])),
        Ok(n) => hello_service(&bytes[..n]),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// A connection of a job that is led past its relay belongs to the job's supervisor as well.
fn preface_service(bytes: &[u8]) -> Option<Service> {
    Preface::parse(bytes).map(|preface| Service::Job(preface.job))
}

fn hello_service(mut bytes: &[u8]) -> Result<Option<Service>, HelloError> {
    let full = bytes.len() >= HELLO_MAX;
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes)?;
    }
    match acceptor.accept() {
        Ok(None) if full => Err(HelloError::TooLong),
        Ok(None) => Ok(None),
        Ok(Some(accepted)) => named_service(accepted.client_hello().server_name()).map(Some),
        Err((e, _alert)) => Err(HelloError::NotTls(e)),
    }
}

fn named_service(name: Option<&str>) -> Result<Service, HelloError> {
    let name = name.ok_or(HelloError::NoName)?;
    name.parse().map_err(|_| HelloError::UnknownName(name.to_owned()))
}

/// A connection on its way to a supervisor, which has not taken it yet.
#[derive(Debug)]
pub struct Given {
    control: UnixStream,
    until: Instant,
}

impl Given {
    /// A supervisor that waits at home for a job that was stopped is stopped itself. Wakes it
    /// (again: it may stop just when it is given something); false when it took too long.
    #[must_use]
    pub fn wake(&self) -> bool {
        crate::supervisor::wake(&self.control);
        Instant::now() < self.until
    }

    /// Has the supervisor taken it, or ended?
    #[must_use]
    pub fn is_over(&self) -> bool {
        let read = (&self.control).read(&mut [0]);
        !matches!(read, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsRawFd for Given {
    fn as_raw_fd(&self) -> RawFd {
        self.control.as_raw_fd()
    }
}

/// Gives a connection to the supervisor that listens on `socket`, which closes the answer when
/// it has taken it. Never blocks.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when no supervisor listens there, `WouldBlock` when it
/// has no room for more connections now.
pub fn to_supervisor(socket_path: &Path, stream: &TcpStream) -> io::Result<Given> {
    let control = connect_now(socket_path)?;
    let mut frame = Vec::new();
    write_frame(&mut frame, &Request::Connection)?;
    let fds = [stream.as_raw_fd()];
    let sent = sendmsg::<()>(
        control.as_raw_fd(),
        &[IoSlice::new(&frame)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == frame.len() {
        let given = Given { control: control.into(), until: Instant::now() + TAKEN_WITHIN };
        let _ = given.wake();
        Ok(given)
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// connect(2) that fails with `WouldBlock` when the listener's backlog is full.
fn connect_now(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let (_dir, short) = short_path(path)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(&short)?)?;
    Ok(fd)
}

/// Starts a receiver (`program --state-dir STATE __receive`) for a connection.
///
/// # Errors
/// When it cannot be started.
pub fn to_receiver(program: &Path, state: &StateDir, stream: &TcpStream) -> io::Result<Child> {
    let mut log = OpenOptions::new();
    let log = log.create(true).append(true).mode(0o600).open(state.node().join("receive.log"))?;
    let mut command = Command::new(program);
    command
        .args([OsStr::new("--state-dir"), state.path().as_os_str(), OsStr::new("__receive")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    raw::spawn_with_connection(&mut command, stream.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_bytes_are_no_service(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(!matches!(hello_service(&bytes), Ok(Some(_))));
        }

        #[test]
        fn random_handshake_records_do_not_panic(
            body in prop::collection::vec(any::<u8>(), 0..500),
            kind in 0u8..4,
        ) {
            let mut bytes = vec![22, 3, 1];
            bytes.extend(u16::try_from(body.len() + 4).unwrap().to_be_bytes());
            bytes.extend([kind, 0, 0, u8::try_from(body.len().min(255)).unwrap()]);
            bytes.extend(body);
            prop_assert!(!matches!(hello_service(&bytes), Ok(Some(_))));
        }
    }
}
