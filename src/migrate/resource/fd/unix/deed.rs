//! Calls that leave the caller's credentials in a socket (SO_PEERCRED and SCM_CREDENTIALS of
//! unix(7)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::unistd::{getegid, geteuid, setegid, seteuid, Gid, Uid};
use serde::{Deserialize, Serialize};

use super::super::raw;
use super::filling::Controls;
use super::names::{connect_in, in_directory_of};
use super::Cred;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// socketpair(2).
    Pair { kind: i32 },
    /// listen(2) at the first descriptor that comes along.
    Listen { backlog: i32 },
    /// connect(2) of the first descriptor that comes along, from the directory of the second.
    Connect { address: Vec<u8> },
    /// sendmsg(2) from the first descriptor that comes along, which says who sends; from the directory
    /// of the second if the address needs one. The last `rights` descriptors are sent.
    Send { bytes: Vec<u8>, address: Option<Vec<u8>>, rights: usize },
}

impl Deed {
    /// Does it, as this process and with these effective ids as far as it may have them. Gives
    /// what was made.
    ///
    /// # Errors
    /// Those of the call.
    pub fn perform(&self, by: Option<Cred>, fds: &[BorrowedFd]) -> io::Result<Vec<OwnedFd>> {
        let (uid, gid) = (geteuid(), getegid());
        if let Some(by) = by {
            if Gid::from_raw(by.gid) != gid {
                let _ = setegid(Gid::from_raw(by.gid));
            }
            if Uid::from_raw(by.uid) != uid {
                let _ = seteuid(Uid::from_raw(by.uid));
            }
        }
        let done = self.call(fds);
        if geteuid() != uid {
            seteuid(uid)?;
        }
        if getegid() != gid {
            setegid(gid)?;
        }
        done
    }

    fn call(&self, fds: &[BorrowedFd]) -> io::Result<Vec<OwnedFd>> {
        let first = || fds.first().copied().ok_or(io::Error::from(io::ErrorKind::InvalidInput));
        match self {
            Self::Pair { kind } => {
                let kind = SockType::try_from(*kind)?;
                let (one, other) =
                    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
                Ok(vec![one, other])
            }
            Self::Listen { backlog } => {
                raw::listen(first()?.as_raw_fd(), *backlog)?;
                Ok(Vec::new())
            }
            Self::Connect { address } => {
                let dir = fds.get(1).map(|dir| dir.try_clone_to_owned()).transpose()?;
                connect_in(first()?.as_raw_fd(), address, dir.as_ref())?;
                Ok(Vec::new())
            }
            Self::Send { bytes, address, rights } => {
                let at = fds.len().checked_sub(*rights).ok_or(io::ErrorKind::InvalidInput)?;
                let (others, rights) = fds.split_at(at);
                let dir = others.get(1).map(|dir| dir.try_clone_to_owned()).transpose()?;
                let rights: Vec<RawFd> = rights.iter().map(AsRawFd::as_raw_fd).collect();
                let message = Controls::by_caller(&rights);
                let send = |to: Option<&UnixAddr>| message.send(first()?.as_raw_fd(), bytes, to);
                match address {
                    Some(text) => in_directory_of(text, dir.as_ref(), |to| send(Some(to)))?,
                    None => send(None)?,
                }
                Ok(Vec::new())
            }
        }
    }
}
