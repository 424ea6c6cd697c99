//! The job's control socket: frames in, frames out, nothing blocks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use mio::net::{UnixListener, UnixStream};
use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags};

use super::raw;
use crate::control::{self, Reply, Request};

/// Names a control client; never used again for another one.
pub type ClientKey = usize;

/// A request's size is bounded by this, bytes.
const MAX_REQUEST: usize = 64 << 10;

/// A client that has connected.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    input: Vec<u8>,
    /// Descriptors that came along.
    received: Vec<OwnedFd>,
    output: Vec<u8>,
    /// The final reply is in `output`.
    finished: bool,
    gone: bool,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (input, received, output) = (Vec::new(), Vec::new(), Vec::new());
        Self { stream, input, received, output, finished: false, gone: false }
    }

    /// Nothing more to say or nobody to say it to.
    pub(super) fn is_over(&self) -> bool {
        self.gone || (self.finished && self.output.is_empty())
    }

    /// Nothing is said to it.
    pub(super) fn dismiss(&mut self) {
        self.finished = true;
    }

    /// Reads what is there and gives the request when it is complete.
    pub(super) fn read(&mut self) -> Option<(Request, Option<OwnedFd>)> {
        while self.input.len() < MAX_REQUEST {
            match self.receive() {
                Ok(0) => {
                    self.gone = true;
                    break;
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
        }
        self.complete()
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let mut space = nix::cmsg_space!([i32; 4]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = part {
                self.received.extend(fds.into_iter().map(raw::received));
            }
        }
        let got = message.bytes;
        self.input.extend_from_slice(&buffer[..got]);
        Ok(got)
    }

    fn complete(&mut self) -> Option<(Request, Option<OwnedFd>)> {
        let (len, body) = self.input.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > MAX_REQUEST {
            self.gone = true;
            return None;
        }
        if body.len() < len {
            return None;
        }
        let request = control::read_frame(&mut self.input.as_slice());
        self.input.clear();
        match request {
            Ok(request) => Some((request, self.received.pop())),
            Err(_) => {
                self.say(&Reply::Error("the request does not decode".into()), true);
                None
            }
        }
    }

    /// Puts a reply on its way.
    pub(super) fn say(&mut self, reply: &Reply, last: bool) {
        if self.finished {
            return;
        }
        self.gone |= control::write_frame(&mut self.output, reply).is_err();
        self.finished = last;
        self.flush();
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self) {
        while !self.output.is_empty() && !self.gone {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.gone = true,
            }
        }
    }
}

/// Every connected client.
pub(super) type Clients = BTreeMap<ClientKey, Client>;

/// Listens on `socket`, replacing what a dead supervisor left there.
///
/// # Errors
/// When it cannot be bound.
pub(super) fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (_dir, short) = control::short_path(socket)?;
    UnixListener::bind(short)
}
