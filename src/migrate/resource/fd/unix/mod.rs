//! Unix sockets (unix(7)) of all three types whose other ends are in the job as well: what waits
//! in them, their names, their connections and those that nobody has accepted yet.
//!
//! ```text
//! source: sock_diag ─► diag ──┐  who is connected to whom
//!         MSG_PEEK ──► queue ─┴► Sockets ─► State of each ─► target: assembly makes all of them
//! ```
//! The sockets of a job find each other by the inodes that they had at the source. They are made
//! together (`Assembly`), because no connection has only one end, and filled when all other
//! objects are there, because messages can bring descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use serde::{Deserialize, Serialize};

use super::{encode, raw, CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area;
use crate::capabilities::Capability;
use crate::control::Finding;

mod assembly;
mod bind;
mod deed;
mod diag;
mod filling;
mod ids;
mod names;
mod options;
mod queue;
mod sockets;

pub(super) use assembly::Assembly;
pub use deed::Deed;
pub use names::{judge, Renames, Wanted};
pub use sockets::Sockets;

use diag::Entry;
use names::Name;

pub(super) const NAME: &str = "unix-socket";

/// A socket as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Its inode at the source.
    id: u64,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    kind: i32,
    shape: Shape,
    name: Option<Name>,
    /// Bit 0: nothing can be received any more, bit 1: nothing can be sent.
    shut: u8,
    /// ECONNRESET waits to be taken.
    error: bool,
    options: Vec<(i32, Vec<u8>)>,
    queue: Vec<Message>,
    /// SO_PEERCRED: of a listening socket, who called listen(2).
    credit: Option<Cred>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Shape {
    /// Neither connected nor listening.
    Single,
    /// Connections of these sockets wait, in this order.
    Listening { backlog: u32, waiting: Vec<u64> },
    /// Connected to this socket.
    Connected { peer: u64 },
    /// Its connection waits in a listening socket of the job.
    /// `by` is who holds it, as far as that is known.
    Waiting { by: Cred },
    /// Connected to a socket that is closed, and had this name.
    Bereft { name: Vec<u8> },
}

/// A message, or bytes of a stream that were sent by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    bytes: Vec<u8>,
    sender: Option<Cred>,
    /// Objects that come with the first byte.
    rights: Vec<u32>,
    /// Name of the sender, empty without one.
    from: Vec<u8>,
}

/// Credentials as the job sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cred {
    /// 0: a process outside of the job.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

pub(super) struct Unix;

impl FdKind for Unix {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Area::Sockets,
                    "unix-pair",
                    "Unix socket pairs of all three types, with their options",
                ),
                Capability::moves(
                    Area::Sockets,
                    "unix-queue",
                    "bytes and messages that wait in them",
                ),
                Capability::moves(
                    Area::Sockets,
                    "unix-half-closed",
                    "Unix sockets that are shut down, reset, or whose other end is closed",
                ),
                Capability::moves(
                    Area::Sockets,
                    "unix-dgram",
                    "Unix datagram sockets, connected or not",
                ),
                Capability::moves(
                    Area::Sockets,
                    "unix-backlog",
                    "connections that wait to be accepted",
                ),
                Capability::moves(Area::Sockets, "unix-path", "Unix sockets bound to a path"),
                Capability::moves(
                    Area::Sockets,
                    "unix-abstract",
                    "Unix sockets with an abstract name",
                ),
                Capability::moves(Area::Sockets, "unix-creds", "SO_PEERCRED and SCM_CREDENTIALS"),
                Capability::moves(
                    Area::Sockets,
                    "unix-rights",
                    "descriptors on their way (SCM_RIGHTS)",
                ),
                Capability::refused(
                    Area::Sockets,
                    "unix",
                    "Unix sockets with a filter (SO_ATTACH_FILTER)",
                    "VOS-UNIX",
                ),
                Capability::refused(
                    Area::Sockets,
                    "unix-peer",
                    "Unix sockets with an end outside of the job",
                    "VOS-UNIX-PEER",
                ),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        is_unix(view)
    }

    fn check(&self, view: &FdView, cx: &dyn CaptureCx) -> Vec<Finding> {
        // What waits in a running job's socket says nothing about the move.
        match Looked::at(view, cx).and_then(|looked| looked.examine_running(cx)) {
            Err(FdError::Refused(finding)) => vec![*finding],
            _ => Vec::new(),
        }
    }

    fn capture(&self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let looked = Looked::at(view, cx)?;
        looked.examine(cx)?;
        encode(&looked.state(cx)?)
    }
}

/// Is it a Unix socket? Its fdinfo says how many descriptors are on their way in it
/// (unix_show_fdinfo of net/unix/af_unix.c, since Linux 5.9).
#[must_use]
pub fn is_unix(view: &FdView) -> bool {
    view.file_type() == libc::S_IFSOCK && view.field("scm_fds").is_some()
}

/// Names that the job's sockets are to have at the target; each once.
#[must_use]
pub fn wanted_names(views: &[FdView], cx: &dyn CaptureCx) -> Vec<Wanted> {
    let unix = views.iter().filter(|view| is_unix(view));
    let name = |view| Looked::at(view, cx).ok()?.name(cx).ok().flatten();
    let mut all: Vec<Wanted> = unix.filter_map(name).map(|name| Wanted::of(&name)).collect();
    all.sort();
    all.dedup();
    all
}

/// A socket that is being captured.
struct Looked<'a> {
    view: &'a FdView,
    fd: OwnedFd,
    sockets: &'a Sockets,
    entry: &'a Entry,
}

impl<'a> Looked<'a> {
    fn at(view: &'a FdView, cx: &'a dyn CaptureCx) -> Result<Self, FdError> {
        let fd = cx.dup(view).map_err(view.failed("duplicate"))?;
        let sockets = cx.sockets().map_err(view.failed("ask sock_diag(7) because"))?;
        let entry = sockets.entry(view.ino).ok_or_else(|| {
            let cause = "it is in another network namespace than the job's supervisor";
            view.refuse("VOS-UNIX-NETNS", cause, "let the program close it, or finish here")
        })?;
        Ok(Self { view, fd, sockets, entry })
    }

    fn is_datagram(&self) -> bool {
        self.entry.kind == libc::SOCK_DGRAM
    }

    fn listens(&self) -> bool {
        self.entry.state == diag::LISTEN
    }

    fn refuse(&self, code: &str, cause: impl Into<String>) -> FdError {
        let remedy = match code {
            "VOS-UNIX-BACKLOG" => "move again when the connection has been accepted",
            "VOS-UNIX-QUEUE" | "VOS-UNIX-RIGHTS" => "move again when the program has read it",
            _ => "let the program close the connection, or let it finish here",
        };
        self.view.refuse(code, cause, remedy)
    }

    /// What can be said of a running job: sockets that are on their way inside of another one
    /// are not seen.
    fn examine_running(&self, cx: &dyn CaptureCx) -> Result<(), FdError> {
        let outside = self.sockets.outside(cx).map_err(self.view.failed("look for other users"))?;
        if outside.contains(&self.view.ino) {
            let cause = "a process outside of the job has the socket open as well";
            return Err(self.refuse("VOS-UNIX-PEER", cause));
        }
        let strange = |ino: &u64| outside.contains(ino);
        self.examine_links(&strange)?;
        self.examine_always(cx)
    }

    /// What has to be true of a frozen job.
    fn examine(&self, cx: &dyn CaptureCx) -> Result<(), FdError> {
        let strange = |ino: &u64| !is_of_job(cx, *ino);
        self.examine_links(&strange)?;
        self.examine_backlog()?;
        self.examine_always(cx)?;
        if queue::has_urgent(self.fd.as_fd()).map_err(self.view.failed("poll"))? {
            return Err(self.refuse("VOS-UNIX-QUEUE", "out-of-band data waits in it (MSG_OOB)"));
        }
        if self.hides_messages().map_err(self.view.failed("count what waits in it, the queue"))? {
            let cause = "an empty message waits in it that was looked at before";
            return Err(self.refuse("VOS-UNIX-QUEUE", cause));
        }
        if self.error()? && !self.listens() && self.entry.kind != libc::SOCK_STREAM {
            let more = self.is_datagram() || self.entry.unread > 0;
            if more {
                return Err(self.refuse("VOS-UNIX-QUEUE", "an error waits in it (SO_ERROR)"));
            }
        }
        Ok(())
    }

    /// A message without bytes is shown only once, but its sender still pays for it. Only the other
    /// end of a connection is known to have sent all.
    fn hides_messages(&self) -> io::Result<bool> {
        let peer = self.entry.peer.and_then(|peer| self.sockets.entry(peer));
        let Some(peer) = peer.filter(|p| p.peer == Some(self.view.ino) && p.unsent > 0) else {
            return Ok(false);
        };
        if self.entry.kind == libc::SOCK_STREAM {
            return Ok(false);
        }
        let lengths = self.sockets.queue(self.view.ino).iter().map(|m| m.bytes.len());
        Ok(queue::cost(self.entry.kind, lengths)? < peer.unsent)
    }

    fn examine_always(&self, cx: &dyn CaptureCx) -> Result<(), FdError> {
        if raw::has_socket_filter(self.fd.as_raw_fd()) {
            return Err(self.refuse("VOS-UNIX", "it has a socket filter (SO_ATTACH_FILTER)"));
        }
        self.name(cx).map(drop)
    }

    /// Refuses connections to what is `strange`: not of the job.
    fn examine_links(&self, strange: &dyn Fn(&u64) -> bool) -> Result<(), FdError> {
        let peer = self.entry.peer.filter(|peer| *peer != 0);
        let listener = self.sockets.listener_of(self.view.ino);
        let alive = peer.or(listener);
        let admirers = self.sockets.connected_to(self.view.ino);
        if alive.iter().chain(admirers).chain(&self.entry.waiting).any(|i| *i != 0 && strange(i)) {
            let cause = "its other end is outside of the job";
            return Err(self.refuse("VOS-UNIX-PEER", cause));
        }
        if self.entry.peer == Some(0)
            && listener.is_none()
            && !self.is_datagram()
            && self.entry.shut != 3
        {
            return Err(self.refuse("VOS-UNIX-PEER", "its other end cannot be found"));
        }
        Ok(())
    }

    /// The kernel shows nobody what is in a connection that waits to be accepted.
    fn examine_backlog(&self) -> Result<(), FdError> {
        for client in &self.entry.waiting {
            let Some(client) = self.sockets.entry(*client) else {
                let cause = "the other end of a connection that waits to be accepted is closed";
                return Err(self.refuse("VOS-UNIX-BACKLOG", cause));
            };
            if client.unsent > 0 {
                let cause = "a connection that waits to be accepted has bytes in it";
                return Err(self.refuse("VOS-UNIX-BACKLOG", cause));
            }
        }
        Ok(())
    }

    /// An error is told without being taken.
    fn error(&self) -> Result<bool, FdError> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).map_err(|e| self.view.failed("poll")(e.into()))?;
        Ok(fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR)))
    }

    fn name(&self, cx: &dyn CaptureCx) -> Result<Option<Name>, FdError> {
        let Some(text) = &self.entry.name else { return Ok(None) };
        let found = self.listens() || self.entry.peer.is_none() || self.is_datagram();
        match Name::find(text, self.entry.file.filter(|_| found), &cx.job_pids()) {
            Some(name) => Ok(Some(name)),
            None => {
                let cause = "its name is that of another file now, or on a file system that \
                             hides which file it is";
                Err(self.refuse("VOS-UNIX-NAME", cause))
            }
        }
    }

    fn state(&self, cx: &dyn CaptureCx) -> Result<State, FdError> {
        let fd = self.fd.as_raw_fd();
        let tried = |what| self.view.failed(what);
        let ids = self.sockets.ids(cx).map_err(tried("read the ids of the job because"))?;
        Ok(State {
            id: self.view.ino,
            kind: self.entry.kind,
            shape: self.shape(ids)?,
            name: self.name(cx)?,
            shut: self.entry.shut,
            error: self.error()?,
            options: options::differing(fd, self.entry.kind)
                .map_err(tried("ask for the options"))?,
            queue: self.queue(cx, ids)?,
            credit: ids.peer_of(fd).map_err(tried("ask for SO_PEERCRED"))?,
        })
    }

    fn shape(&self, ids: &ids::Ids) -> Result<Shape, FdError> {
        let entry = self.entry;
        if self.listens() {
            let waiting = entry.waiting.clone();
            return Ok(Shape::Listening { backlog: entry.unsent, waiting });
        }
        match entry.peer {
            None => Ok(Shape::Single),
            Some(0) if self.sockets.listener_of(self.view.ino).is_some() => {
                let by = ids.holder(self.view.host_pid);
                Ok(Shape::Waiting { by: by.map_err(self.view.failed("ask who holds"))? })
            }
            Some(0) => {
                let name = names::of_peer(self.fd.as_raw_fd());
                Ok(Shape::Bereft { name: name.map_err(self.view.failed("getpeername"))? })
            }
            Some(peer) => Ok(Shape::Connected { peer }),
        }
    }

    fn queue(&self, cx: &dyn CaptureCx, ids: &ids::Ids) -> Result<Vec<Message>, FdError> {
        let mut queue = Vec::new();
        for peeked in self.sockets.queue(self.view.ino) {
            let sender = peeked.sender.map(|sender| ids.inside(sender)).transpose();
            let rights = peeked.rights.iter().map(|fd| {
                let found = object_of(cx.all(), fd.as_fd()).map_err(self.view.failed("kcmp"))?;
                found.ok_or_else(|| {
                    self.refuse("VOS-UNIX-RIGHTS", "a descriptor on its way in it was not found")
                })
            });
            queue.push(Message {
                bytes: peeked.bytes.clone(),
                sender: sender.map_err(|e| self.refuse("VOS-UNIX-QUEUE", e))?,
                rights: rights.collect::<Result<_, _>>()?,
                from: peeked.from.clone().unwrap_or_default(),
            });
        }
        Ok(queue)
    }
}

/// Is the socket one of the job's?
fn is_of_job(cx: &dyn CaptureCx, ino: u64) -> bool {
    cx.all().iter().any(|view| view.ino == ino && view.file_type() == libc::S_IFSOCK)
}

/// Which of the job's descriptions this descriptor of the supervisor refers to.
fn object_of(all: &[FdView], fd: BorrowedFd) -> io::Result<Option<u32>> {
    use std::os::unix::fs::MetadataExt;
    let own = std::process::id() as i32;
    let meta = std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    for (index, view) in (0..).zip(all) {
        if (view.dev, view.ino) == (meta.dev(), meta.ino())
            && raw::compare_files((own, fd.as_raw_fd()), (view.host_pid, view.fd))?.is_eq()
        {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
