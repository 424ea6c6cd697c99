//! A helper process in a network namespace of its own, which makes sockets there on request.
//! Sockets keep their namespace, whoever has them.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::raw;
use crate::migrate::newborn;
use crate::migrate::raw::{exit_now, fork};
use crate::migrate::resource::creds::User;
use crate::migrate::skeleton::{pair, receive, send};

/// What the helper answers.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// With descriptors, if any were asked for.
    Done,
    Failed(String),
}

/// The helper, which answers requests of this type.
#[derive(Debug)]
pub struct Helper<Request> {
    control: OwnedFd,
    pid: Pid,
    asked: PhantomData<fn(Request)>,
}

impl<Request: Serialize + DeserializeOwned> Helper<Request> {
    /// Makes the namespace and furnishes it. The caller has one thread.
    ///
    /// # Errors
    /// The step that failed; `EPERM` or `ENOSPC` where an ordinary user may make none.
    pub fn start(
        furnish: fn() -> io::Result<()>,
        answer: fn(Request) -> io::Result<Vec<OwnedFd>>,
    ) -> io::Result<Self> {
        let (control, theirs) = pair().map_err(io::Error::other)?;
        let pid = fork(None)?;
        if pid == 0 {
            help(&theirs, furnish, answer);
        }
        drop(theirs);
        let helper = Self { control, pid: Pid::from_raw(pid), asked: PhantomData };
        helper.answer().map(|_| helper)
    }

    /// Has a request answered with descriptors.
    ///
    /// # Errors
    /// The step that failed.
    pub fn ask(&self, request: &Request) -> io::Result<Vec<OwnedFd>> {
        send(self.control.as_fd(), request, &[])?;
        self.answer()
    }

    fn answer(&self) -> io::Result<Vec<OwnedFd>> {
        match receive::<Word>(self.control.as_fd())? {
            (Word::Done, _, fds) => Ok(fds),
            (Word::Failed(text), ..) => Err(io::Error::other(text)),
        }
    }
}

impl<Request> Drop for Helper<Request> {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// The helper's life.
fn help<Request: DeserializeOwned>(
    control: &OwnedFd,
    furnish: fn() -> io::Result<()>,
    answer: fn(Request) -> io::Result<Vec<OwnedFd>>,
) -> ! {
    newborn::close_others(&[control.as_raw_fd()]);
    let entered = newborn::unshare(User::own(), libc::CLONE_NEWNET);
    let ready = entered.map_err(tried("network namespace")).and_then(|()| furnish());
    let failed = ready.is_err();
    tell(control, ready.map(|()| Vec::new()));
    if failed {
        exit_now(1);
    }
    while let Ok((request, ..)) = receive::<Request>(control.as_fd()) {
        tell(control, answer(request));
    }
    exit_now(0)
}

fn tell(control: &OwnedFd, done: io::Result<Vec<OwnedFd>>) {
    let (word, fds) = match done {
        Ok(fds) => (Word::Done, fds),
        Err(e) => (Word::Failed(e.to_string()), Vec::new()),
    };
    let numbers: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    if send(control.as_fd(), &word, &numbers).is_err() {
        exit_now(1);
    }
}

/// May the socket have any address (IP_TRANSPARENT)?
///
/// # Errors
/// `EPERM` outside of such a namespace.
pub fn set_transparent(fd: &OwnedFd, of: SocketAddr, on: bool) -> io::Result<()> {
    let (level, option) = match of {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    };
    raw::set_option(fd.as_raw_fd(), level, option, &i32::from(on).to_ne_bytes())
}

/// Names what was tried.
pub fn tried<E: Into<io::Error>>(what: impl std::fmt::Display) -> impl FnOnce(E) -> io::Error {
    move |e| {
        let e = e.into();
        io::Error::new(e.kind(), format!("{what}: {e}"))
    }
}
