//! What waits in the sockets is sent again, and then everything else is as it was.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{sendmsg, shutdown, ControlMessage, MsgFlags, Shutdown, UnixAddr};
use nix::unistd::{getegid, geteuid};

use super::super::{failed, raw, unexpected, FdError, RestoreCx};
use super::assembly::{Assembly, Made};
use super::deed::Deed;
use super::names::{Name, Site};
use super::{options, Cred, Message, Shape, State};
use crate::migrate::raw::fork;
use crate::syscalls::translate::numbers;

type Result<T> = std::result::Result<T, FdError>;

impl Assembly {
    /// Fills all sockets, when every object of the job has been made.
    ///
    /// # Errors
    /// What was tried on which socket.
    pub fn fill(&mut self, made: &Made, cx: &mut dyn RestoreCx) -> Result<()> {
        for (index, state) in &self.states {
            if state.kind != libc::SOCK_DGRAM {
                self.fill_connection(*index, state, made, cx)?;
            }
        }
        self.fill_datagrams(made, cx)?;
        self.closing.clear();
        for (index, state) in &self.states {
            let fd = get(made, *index)?.as_raw_fd();
            let how = match state.shut & 3 {
                0 => None,
                1 => Some(Shutdown::Read),
                2 => Some(Shutdown::Write),
                _ => Some(Shutdown::Both),
            };
            if let Some(how) = how {
                shutdown(fd, how).map_err(|e| failed("shut a Unix socket down")(e.into()))?;
            }
            for (option, value) in &state.options {
                let tried = || failed(format!("set option {option} of a Unix socket"));
                match options::set(fd, *option, value) {
                    // What needs a capability may be missed.
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                    other => other.map_err(tried())?,
                }
            }
        }
        Ok(())
    }

    fn fill_connection(
        &self,
        index: u32,
        state: &State,
        made: &Made,
        cx: &mut dyn RestoreCx,
    ) -> Result<()> {
        let from = match self.peer_of(index) {
            Some(peer) => Some(get(made, peer)?),
            None => self.closing.get(&index),
        };
        let Some(from) = from else { return Ok(()) };
        self.send_all(from, &state.queue, None, made, cx)?;
        if state.error && self.closing.contains_key(&index) {
            // An end that is closed with something unread leaves ECONNRESET at the other.
            let fd = get(made, index)?;
            send(fd.as_raw_fd(), b"?", &[], None).map_err(failed("send to a Unix socket"))?;
        }
        Ok(())
    }

    /// Sends messages from one socket, with room for all of them.
    fn send_all(
        &self,
        from: &OwnedFd,
        queue: &[Message],
        to: Option<&Site>,
        made: &Made,
        cx: &mut dyn RestoreCx,
    ) -> Result<()> {
        if queue.is_empty() {
            return Ok(());
        }
        let tried = || failed("put back what waits in a Unix socket");
        let old = options::widen(from.as_raw_fd()).map_err(tried())?;
        for message in queue {
            let mut rights = Vec::new();
            for object in &message.rights {
                rights.push(get(made, *object)?);
            }
            // Where numbers are translated nobody may send as another process.
            if let (Some(sender), true) = (message.sender, numbers::are_own()) {
                send_as(sender, from, message, to, &rights, cx).map_err(tried())?;
                continue;
            }
            let rights: Vec<RawFd> = rights.iter().map(|fd| fd.as_raw_fd()).collect();
            let controls = Controls::of(message, &rights);
            let put = |to: Option<&UnixAddr>| controls.send(from.as_raw_fd(), &message.bytes, to);
            match to {
                Some(site) => site.with(|address| put(Some(address))),
                None => put(None),
            }
            .map_err(tried())?;
        }
        options::set(from.as_raw_fd(), libc::SO_SNDBUF, &old).map_err(tried())
    }

    fn fill_datagrams(&mut self, made: &Made, cx: &mut dyn RestoreCx) -> Result<()> {
        let all: Vec<(u32, State)> = self.states.iter().map(|(i, s)| (*i, s.clone())).collect();
        let all = || all.iter().filter(|(_, state)| state.kind == libc::SOCK_DGRAM);
        // Over the connection of a pair; one that has another connection now leaves it then.
        for (index, state) in all() {
            let partner = match self.paired.get(index) {
                Some(partner) => Some(get(made, *partner)?),
                None => self.closing.get(index),
            };
            if let Some(partner) = partner.filter(|_| !self.has_left(*index)) {
                self.send_all(partner, &state.queue, None, made, cx)?;
            }
        }
        for (index, _) in all().filter(|(index, _)| self.has_left(*index)) {
            self.leave(*index, made)?;
        }
        for (index, state) in all() {
            let alone = !self.has_partner(*index) || self.has_left(*index);
            if alone && !self.only_from_peer(*index) {
                self.fill_by_name(*index, state, made, cx)?;
            }
        }
        self.connect_datagrams(made)?;
        for (index, state) in all() {
            if !self.has_partner(*index) && self.only_from_peer(*index) {
                if let Some(peer) = self.peer_of(*index) {
                    self.send_all(get(made, peer)?, &state.queue, None, made, cx)?;
                }
            }
        }
        Ok(())
    }

    fn has_partner(&self, index: u32) -> bool {
        self.paired.contains_key(&index) || self.closing.contains_key(&index)
    }

    /// Made by socketpair(2), and not connected to its other end any more.
    fn has_left(&self, index: u32) -> bool {
        let partner = self.paired.get(&index).copied();
        partner.is_some() && self.peer_of(index) != partner
    }

    fn leave(&self, index: u32, made: &Made) -> Result<()> {
        let tried = || failed("disconnect a Unix socket");
        raw::disconnect(get(made, index)?.as_raw_fd()).map_err(tried())?;
        // That tells the other end by an error, which it has had.
        if let Some(partner) = self.paired.get(&index) {
            raw::socket_option(get(made, *partner)?.as_raw_fd(), libc::SO_ERROR).map_err(tried())?;
        }
        Ok(())
    }

    /// Two sockets that are connected to each other take any number of messages.
    fn only_from_peer(&self, index: u32) -> bool {
        let Some(peer) = self.peer_of(index) else { return false };
        let name = self.states.get(&peer).and_then(|s| s.name.as_ref()).map(|n| n.text.as_slice());
        self.peer_of(peer) == Some(index)
            && self.states.get(&index).is_some_and(|state| {
                state.queue.iter().all(|message| message.from == name.unwrap_or_default())
            })
    }

    /// Each message from a socket with the name of its sender.
    fn fill_by_name(
        &mut self,
        index: u32,
        state: &State,
        made: &Made,
        cx: &mut dyn RestoreCx,
    ) -> Result<()> {
        if state.queue.is_empty() {
            return Ok(());
        }
        let site = self.sites.get(&index).cloned();
        let site = site.ok_or_else(|| unexpected("messages for a socket without a name"))?;
        for message in &state.queue {
            let named = |s: &State| s.name.as_ref().is_some_and(|name| name.text == message.from);
            let sender = self.states.iter().find(|(_, s)| s.kind == libc::SOCK_DGRAM && named(s));
            let message = std::slice::from_ref(message);
            if let Some(sender) = sender.map(|(sender, _)| *sender) {
                self.send_all(get(made, sender)?, message, Some(&site), made, cx)?;
                continue;
            }
            let sender = self.fresh(libc::SOCK_DGRAM)?;
            let from = &message[0].from;
            let name = (!from.is_empty()).then(|| Name::bare(from));
            self.bind(None, &sender, name.as_ref())?;
            self.send_all(&sender, message, Some(&site), made, cx)?;
        }
        Ok(())
    }

    /// A socket that is connected takes connections of its peer only: those of others come first.
    fn connect_datagrams(&mut self, made: &Made) -> Result<()> {
        let mut left: BTreeSet<u32> = BTreeSet::new();
        for (index, state) in &self.states {
            let wanted = matches!(state.shape, Shape::Connected { .. } | Shape::Bereft { .. });
            let done = self.has_partner(*index) && !self.has_left(*index);
            if state.kind == libc::SOCK_DGRAM && wanted && !done {
                left.insert(*index);
            }
        }
        while !left.is_empty() {
            let mut refused = None;
            for index in left.clone() {
                match self.connect_datagram(index, made) {
                    Err(FdError::Io { source, what })
                        if source.kind() == io::ErrorKind::PermissionDenied =>
                    {
                        refused = Some(FdError::Io { what, source });
                    }
                    other => {
                        other?;
                        left.remove(&index);
                        // Others may have waited for that one.
                        refused = None;
                        break;
                    }
                }
            }
            if let Some(refused) = refused {
                return Err(refused);
            }
        }
        Ok(())
    }

    fn connect_datagram(&mut self, index: u32, made: &Made) -> Result<()> {
        let fd = get(made, index)?.as_raw_fd();
        let site = match (&self.states[&index].shape, self.peer_of(index)) {
            (_, Some(peer)) => self.sites.get(&peer).cloned(),
            (Shape::Bereft { name }, _) => {
                let (name, ghost) = (Name::bare(name), self.fresh(libc::SOCK_DGRAM)?);
                let site = self.bind(None, &ghost, Some(&name))?;
                self.closing.insert(index, ghost);
                site
            }
            _ => None,
        };
        let site = site.ok_or_else(|| unexpected("a connection to a socket without a name"))?;
        site.with(|address| Ok(nix::sys::socket::connect(fd, address)?))
            .map_err(failed("connect a Unix socket"))
    }
}

fn get(made: &Made, index: u32) -> Result<&OwnedFd> {
    made.get(&index).ok_or_else(|| unexpected(format!("object {index} is not made")))
}

/// Has a process of the job send a message of its own again.
fn send_as(
    sender: Cred,
    from: &OwnedFd,
    message: &Message,
    to: Option<&Site>,
    rights: &[&OwnedFd],
    cx: &mut dyn RestoreCx,
) -> io::Result<()> {
    let (address, dir) = to.map(Site::for_other).transpose()?.unzip();
    let dir = dir.flatten();
    let fds: Vec<BorrowedFd> =
        [from].into_iter().chain(&dir).chain(rights.iter().copied()).map(AsFd::as_fd).collect();
    let (bytes, rights) = (message.bytes.clone(), rights.len());
    cx.act(Some(sender), &Deed::Send { bytes, address, rights }, &fds).map(drop)
}

/// What a message brings besides its bytes.
pub(super) struct Controls<'a> {
    sender: Option<libc::ucred>,
    rights: &'a [RawFd],
}

impl<'a> Controls<'a> {
    fn of(message: &Message, rights: &'a [RawFd]) -> Self {
        let sender = message.sender.filter(|s| s.pid != 0);
        let sender = sender.map(|s| libc::ucred { pid: s.pid, uid: s.uid, gid: s.gid });
        Self { sender, rights }
    }

    /// As the caller itself.
    pub(super) fn by_caller(rights: &'a [RawFd]) -> Self {
        let pid = std::process::id() as i32;
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        Self { sender: Some(libc::ucred { pid, uid, gid }), rights }
    }

    /// All of it, however many pieces a stream takes it in; the rest comes with the first.
    pub(super) fn send(&self, from: RawFd, bytes: &[u8], to: Option<&UnixAddr>) -> io::Result<()> {
        let sender = self.sender.map(nix::sys::socket::UnixCredentials::from);
        let credentials = sender.as_ref().map(ControlMessage::ScmCredentials);
        let rights = (!self.rights.is_empty()).then_some(ControlMessage::ScmRights(self.rights));
        let first: Vec<ControlMessage> = credentials.into_iter().chain(rights).collect();
        let mut sent = match (send(from, bytes, &first, to), self.sender) {
            (Err(e), Some(sender)) if e.raw_os_error() == Some(libc::ESRCH) => {
                // Whose pid is sent has to be there; one that has ended is for this long.
                let _there = Standing::fork(sender.pid)?;
                send(from, bytes, &first, to)?
            }
            (other, _) => other?,
        };
        let rest = first.get(..usize::from(sender.is_some())).unwrap_or_default();
        while sent < bytes.len() {
            sent += send(from, bytes.get(sent..).unwrap_or_default(), rest, to)?;
        }
        Ok(())
    }
}

/// A process that does nothing but have this number.
struct Standing(i32);

impl Standing {
    fn fork(pid: i32) -> io::Result<Self> {
        let child = fork(Some(pid))?;
        if child == 0 {
            loop {
                nix::unistd::pause();
            }
        }
        Ok(Self(child))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        use nix::sys::signal::{kill, Signal};
        let pid = nix::unistd::Pid::from_raw(self.0);
        let _ = kill(pid, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

fn send(
    from: RawFd,
    bytes: &[u8],
    controls: &[ControlMessage],
    to: Option<&UnixAddr>,
) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match sendmsg(from, &[IoSlice::new(bytes)], controls, flags, to) {
        Err(nix::Error::EAGAIN) => Err(io::Error::other(
            "it is more than a socket may hold here (net.core.wmem_max, net.unix.max_dgram_qlen)",
        )),
        other => Ok(other?),
    }
}
