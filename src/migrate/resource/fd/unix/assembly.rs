//! All Unix sockets of a job are made together, in the first of its new processes.
//!
//! ```text
//! make   connections by socketpair(2), or by listen(2), connect(2) and accept(2) where a name is
//!        seen at one end; then listening sockets with what waits in them; then datagram sockets
//! fill   when all objects are there: messages, connections of datagram sockets, ends of streams,
//!        options
//! ```
//! What a socket is called at its other end, and whose process SO_PEERCRED shows, comes from the
//! way in which it was made. So a connection to a name is made over a listening socket that has
//! this name for that long.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::socket::{accept4, SockFlag};

use super::super::place::lift;
use super::super::{decode, failed, unexpected, FdError, Object, RestoreCx};
use super::bind::bind_to;
use super::deed::Deed;
use super::names::{Name, Renames, Site};
use super::{options, Cred, Shape, State, NAME};

type Result<T> = std::result::Result<T, FdError>;

/// The sockets of a job in the making. The descriptors themselves are with the other objects.
#[derive(Default)]
pub struct Assembly {
    pub(super) states: BTreeMap<u32, State>,
    pub(super) by_id: HashMap<u64, u32>,
    /// Other ends that are closed at the end, by the socket that is left.
    pub(super) closing: BTreeMap<u32, OwnedFd>,
    /// Datagram sockets made by socketpair(2), each with its other end.
    pub(super) paired: BTreeMap<u32, u32>,
    /// Where those with a name are reached.
    pub(super) sites: BTreeMap<u32, Site>,
    pub(super) renames: Renames,
    scratch: Vec<PathBuf>,
    /// The first number above all wanted ones.
    pub(super) base: RawFd,
}

/// What has been made of the objects.
pub type Made = BTreeMap<u32, OwnedFd>;

impl Drop for Assembly {
    fn drop(&mut self) {
        for scratch in &self.scratch {
            let _ = std::fs::remove_dir_all(scratch);
        }
    }
}

impl Assembly {
    /// Makes those of the wanted objects that are Unix sockets.
    ///
    /// # Errors
    /// When a state does not decode; what was tried.
    pub fn make(
        objects: &[Object],
        wanted: &BTreeSet<u32>,
        base: RawFd,
        cx: &mut dyn RestoreCx,
    ) -> Result<(Self, Made)> {
        let mut all = Self::default();
        all.base = base;
        for (index, object) in (0..).zip(objects) {
            if object.kind == NAME && wanted.contains(&index) {
                let state: State = decode(NAME, &object.state)?;
                all.by_id.insert(state.id, index);
                all.states.insert(index, state);
            }
        }
        let mut made = Made::new();
        let indices: Vec<u32> = all.states.keys().copied().collect();
        for index in &indices {
            if all.states[index].kind != libc::SOCK_DGRAM && !made.contains_key(index) {
                all.make_connection(*index, &mut made, cx)?;
            }
        }
        for index in &indices {
            if matches!(all.states[index].shape, Shape::Listening { .. }) {
                all.make_listening(*index, &mut made, cx)?;
            }
        }
        for index in &indices {
            if all.states[index].kind == libc::SOCK_DGRAM && !made.contains_key(index) {
                all.make_datagram(*index, &mut made, cx)?;
            }
        }
        match indices.iter().find(|index| !made.contains_key(index)) {
            Some(index) => Err(unexpected(format!("Unix socket {index} has no other end"))),
            None => Ok((all, made)),
        }
    }

    /// The files that are renamed when the job runs.
    pub fn into_renames(mut self) -> Renames {
        std::mem::take(&mut self.renames)
    }

    fn lift(&self, fd: OwnedFd) -> Result<OwnedFd> {
        lift(fd, self.base)
    }

    pub(super) fn fresh(&self, kind: i32) -> Result<OwnedFd> {
        self.lift(options::fresh(kind).map_err(failed("make a Unix socket"))?)
    }

    /// The other end of a connection.
    pub(super) fn peer_of(&self, index: u32) -> Option<u32> {
        match self.states.get(&index)?.shape {
            Shape::Connected { peer } => self.by_id.get(&peer).copied(),
            _ => None,
        }
    }

    /// Stream and seqpacket sockets that do not listen.
    fn make_connection(
        &mut self,
        index: u32,
        made: &mut Made,
        cx: &mut dyn RestoreCx,
    ) -> Result<()> {
        let state = self.states[&index].clone();
        let bare = |name: &[u8]| (!name.is_empty()).then(|| Name::bare(name));
        let (peer, other) = match &state.shape {
            Shape::Listening { .. } | Shape::Waiting { .. } => return Ok(()),
            Shape::Single => {
                let fd = self.fresh(state.kind)?;
                self.bind(Some(index), &fd, state.name.as_ref())?;
                made.insert(index, fd);
                return Ok(());
            }
            Shape::Connected { peer } => {
                let peer = self.by_id.get(peer).copied();
                let peer = peer.ok_or_else(|| unexpected("a connection to a socket of nobody"))?;
                (Some(peer), self.states[&peer].clone())
            }
            Shape::Bereft { name } => {
                let name = bare(name);
                (None, State { name, queue: Vec::new(), ..state.clone() })
            }
        };
        let (fd, peer_fd) = if state.name.is_none() && other.name.is_none() {
            self.pair(&state, cx)?
        } else if self.accepts(&state, &other) {
            let (theirs, own) = self.connection(&other, &state, cx)?;
            (own, theirs)
        } else {
            self.connection(&state, &other, cx)?
        };
        made.insert(index, fd);
        match peer {
            Some(peer) => drop(made.insert(peer, peer_fd)),
            None => drop(self.closing.insert(index, peer_fd)),
        }
        Ok(())
    }

    /// Was `one` accepted, rather than connected? It has the name of the listening socket then.
    fn accepts(&self, one: &State, other: &State) -> bool {
        let text = |state: &State| state.name.as_ref().map(|name| name.text.clone());
        let (own, theirs) = (text(one), text(other));
        let listens = |name: &Option<Vec<u8>>| {
            let mut all = self.states.values();
            all.any(|s| matches!(s.shape, Shape::Listening { .. }) && text(s) == *name)
        };
        own.is_some() && (theirs.is_none() || listens(&own) && !listens(&theirs))
    }

    fn pair(&self, of: &State, cx: &mut dyn RestoreCx) -> Result<(OwnedFd, OwnedFd)> {
        let fds = cx.act(of.credit, &Deed::Pair { kind: of.kind }, &[]);
        let mut fds = fds.map_err(failed("make a socketpair"))?.into_iter();
        match (fds.next(), fds.next()) {
            (Some(one), Some(other)) => Ok((self.lift(one)?, self.lift(other)?)),
            _ => Err(unexpected("a socketpair has not two ends")),
        }
    }

    /// A connection to a listening socket that has the name of the server's end for this long.
    fn connection(
        &mut self,
        client: &State,
        server: &State,
        cx: &mut dyn RestoreCx,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let text = server.name.as_ref().map(|name| name.text.clone()).unwrap_or_default();
        let door = self.fresh(client.kind)?;
        let site = self.bind(None, &door, Some(&Name::bare(&text)))?;
        let site = site.ok_or_else(|| unexpected("an accepted socket without a name"))?;
        self.listen(client.credit, door.as_fd(), 1, cx)?;
        let fd = self.fresh(client.kind)?;
        self.bind(None, &fd, client.name.as_ref())?;
        self.connect(server.credit, fd.as_fd(), &site, cx)?;
        let accepted = accept4(door.as_raw_fd(), SockFlag::SOCK_CLOEXEC);
        let accepted = accepted.map_err(|e| failed("accept a connection")(e.into()))?;
        Ok((fd, self.lift(crate::migrate::raw::own(accepted))?))
    }

    fn make_listening(
        &mut self,
        index: u32,
        made: &mut Made,
        cx: &mut dyn RestoreCx,
    ) -> Result<()> {
        let state = self.states[&index].clone();
        let Shape::Listening { backlog, waiting } = &state.shape else { return Ok(()) };
        let door = self.fresh(state.kind)?;
        let site = self.bind(Some(index), &door, state.name.as_ref())?;
        let site = site.ok_or_else(|| unexpected("a listening socket without a name"))?;
        self.listen(state.credit, door.as_fd(), waiting.len() as u32, cx)?;
        for client in waiting {
            let client = self.by_id.get(client).copied();
            let client = client.ok_or_else(|| unexpected("a connection of nobody waits"))?;
            let of = self.states[&client].clone();
            let Shape::Waiting { by } = of.shape else {
                return Err(unexpected("a connection waits and is connected"));
            };
            let fd = self.fresh(of.kind)?;
            self.bind(Some(client), &fd, of.name.as_ref())?;
            self.connect(Some(by), fd.as_fd(), &site, cx)?;
            made.insert(client, fd);
        }
        if *backlog != waiting.len() as u32 {
            self.listen(state.credit, door.as_fd(), *backlog, cx)?;
        }
        made.insert(index, door);
        Ok(())
    }

    fn make_datagram(&mut self, index: u32, made: &mut Made, cx: &mut dyn RestoreCx) -> Result<()> {
        let state = self.states[&index].clone();
        let peer = self.peer_of(index);
        let other = peer.map(|peer| self.states[&peer].clone());
        let mutual = peer.is_some_and(|peer| self.peer_of(peer) == Some(index));
        let by_pair = match (&state.shape, &other) {
            (Shape::Bereft { name }, _) => name.is_empty(),
            (_, Some(other)) => other.name.is_none() || mutual && state.credit.is_some(),
            _ => false,
        };
        if by_pair {
            let (fd, peer_fd) = self.pair(&state, cx)?;
            self.bind(Some(index), &fd, state.name.as_ref())?;
            made.insert(index, fd);
            match (peer, other) {
                (Some(peer), Some(other)) => {
                    self.bind(Some(peer), &peer_fd, other.name.as_ref())?;
                    made.insert(peer, peer_fd);
                    self.paired.insert(index, peer);
                    self.paired.insert(peer, index);
                }
                _ => drop(self.closing.insert(index, peer_fd)),
            }
            return Ok(());
        }
        // The other end of a pair is made with it, by that.
        let courted = self.states.iter().any(|(i, s)| {
            s.kind == libc::SOCK_DGRAM && self.peer_of(*i) == Some(index) && state.name.is_none()
        });
        if courted {
            return Ok(());
        }
        let fd = self.fresh(state.kind)?;
        self.bind(Some(index), &fd, state.name.as_ref())?;
        made.insert(index, fd);
        Ok(())
    }

    /// Gives a socket its name, and remembers where it is reached.
    pub(super) fn bind(
        &mut self,
        index: Option<u32>,
        fd: &OwnedFd,
        name: Option<&Name>,
    ) -> Result<Option<Site>> {
        let Some(name) = name else { return Ok(None) };
        let bound = bind_to(fd.as_fd(), name).map_err(|e| {
            let text = String::from_utf8_lossy(&name.text).replace('\0', "@");
            failed(format!("bind a Unix socket to {text}"))(e)
        })?;
        self.renames.add(bound.rename);
        self.scratch.extend(bound.scratch);
        if let Some(index) = index {
            self.sites.insert(index, bound.site.clone());
        }
        Ok(Some(bound.site))
    }

    fn listen(
        &self,
        by: Option<Cred>,
        fd: BorrowedFd,
        backlog: u32,
        cx: &mut dyn RestoreCx,
    ) -> Result<()> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        let done = cx.act(by, &Deed::Listen { backlog }, &[fd]);
        done.map(drop).map_err(failed("listen at a Unix socket"))
    }

    fn connect(
        &self,
        by: Option<Cred>,
        fd: BorrowedFd,
        site: &Site,
        cx: &mut dyn RestoreCx,
    ) -> Result<()> {
        let tried = || failed("connect a Unix socket");
        let (address, dir) = site.for_other().map_err(tried())?;
        let fds: Vec<BorrowedFd> =
            std::iter::once(fd).chain(dir.as_ref().map(AsFd::as_fd)).collect();
        cx.act(by, &Deed::Connect { address }, &fds).map(drop).map_err(tried())
    }
}
