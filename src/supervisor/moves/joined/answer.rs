//! The supervisor of the job that has the other end of a connection.

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use super::{
    await_holds, await_unread, begin_to_write, hold, Frozen, Held, Partner, FITS, FROZEN, HELD,
    MOST_PATIENT, READY,
};
use super::{stream_key, LinkKey, Mover, Side};
use crate::ids::JobId;
use crate::migrate::message::Msg;
use crate::migrate::resource::fd::{tcp, CaptureCx};
use crate::proxy::direct::{Key, Preface, HOLDS};
use crate::proxy::{addresses, HomeEnd, Loopback, Relays, StreamId};
use crate::syscalls::names;

/// An end of a connection in this job.
enum End {
    /// It is relayed.
    Relayed(StreamId),
    /// It has the real socket, by its inode.
    Native(u64),
}

impl Mover {
    /// Another job's supervisor would join a connection with this job.
    pub(in crate::supervisor::moves) fn answer_join(
        &mut self,
        link: LinkKey,
        by: (JobId, Key),
        theirs: names::Pair,
    ) {
        if let Some(agent) = &self.agent {
            let (to, epoch) = (Some(agent.host()), self.epoch());
            return self.send(link, &Msg::Gone { to, epoch }, &[]);
        }
        if let Err(error) = self.be_joined(link, by, theirs) {
            tracing::debug!("connection with {}: {error:#}", theirs.own);
            let ever = !std::mem::take(&mut self.joins.refused);
            self.send(link, &Msg::NoJoin { why: format!("{error:#}"), ever }, &[]);
        }
        self.joins.expected = None;
    }

    /// May this job's connections be joined now?
    fn may_join(&self) -> bool {
        let here = self.agent.is_none() && !self.left && !self.arriving;
        let rests = self.moving.is_none() && !self.frozen && self.asleep.is_none();
        here && rests && self.sup.session.ended.is_none() && self.early_freeze.is_none()
    }

    /// Can this job be told its addresses?
    fn sees_calls(&self) -> bool {
        self.sup.job.meta.filtered && self.sup.session.translation.is_none()
    }

    fn be_joined(
        &mut self,
        link: LinkKey,
        (job, key): (JobId, Key),
        theirs: names::Pair,
    ) -> Result<()> {
        self.joins.refused = !self.sees_calls();
        ensure!(self.sees_calls(), "the other job's calls are not seen");
        ensure!(self.may_join(), "the other job cannot be joined now");
        let until = Instant::now() + READY;
        let node = self.peer_of(link).context("it has not shown who it is")?;
        let partner = Partner { node, job, key };
        let (end, is_v6) = self.find_end(theirs)?;
        if let End::Relayed(stream) = end {
            drop(self.forget_asked(stream));
            self.recall_one(stream, until)?;
        }
        let listener = is_v6.then(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))).transpose()?;
        let port = listener.as_ref().map(TcpListener::local_addr).transpose()?.map(|at| at.port());
        listener.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        self.joins.expected = Some((key, None));
        self.send(link, &Msg::JoinReady { port }, &[]);
        let mut waiting = Vec::new();
        let new = loop {
            if let Some((_, Some(stream))) = self.joins.expected.take_if(|(_, s)| s.is_some()) {
                break stream;
            }
            ensure!(Instant::now() < until, "no connection came");
            self.pump(Some(Duration::from_millis(2)))?;
            self.take_connections()?;
            if let Some(Ok((stream, _))) = listener.as_ref().map(TcpListener::accept) {
                stream.set_nonblocking(true)?;
                waiting.push(stream);
            }
            let shows =
                |s: &mut TcpStream| s.peek(&mut [0; Preface::LEN]).is_ok_and(|n| n == Preface::LEN);
            if let Some(n) = waiting.iter_mut().position(shows) {
                drop(self.direct_connection(waiting.swap_remove(n).into()));
            }
        };
        let (Msg::JoinFreeze, _) = self.hear_join(link, until)? else { bail!("no JoinFreeze") };
        let frozen = self.freeze_for_swap()?;
        let mut joining = None;
        let joined = self.be_joined_frozen(link, &end, &frozen, new, partner, &mut joining);
        if joined.is_err() {
            match (&end, joining) {
                (End::Relayed(stream), _) => {
                    self.relay(Side::Away, |relays, out| relays.take_back(*stream, out));
                }
                (End::Native(_), Some(stream)) => {
                    for relays in [&mut self.home, &mut self.away].into_iter().flatten() {
                        relays.remove(stream);
                    }
                }
                (End::Native(_), None) => {}
            }
        }
        self.thaw(&frozen);
        joined
    }

    fn be_joined_frozen(
        &mut self,
        link: LinkKey,
        end: &End,
        frozen: &Frozen,
        mut new: TcpStream,
        partner: Partner,
        joining: &mut Option<StreamId>,
    ) -> Result<()> {
        // The other side gives up earlier, by its link.
        let until = Instant::now() + MOST_PATIENT * FROZEN;
        let held = match end {
            End::Relayed(stream) => self.hold_relayed(frozen, *stream)?,
            End::Native(inode) => self.hold_native(frozen, *inode)?,
        };
        self.send(link, &Msg::JoinFrozen, &[]);
        let (Msg::JoinSettle, _) = self.hear_join(link, until)? else { bail!("no JoinSettle") };
        let (stream, unread) = match end {
            End::Relayed(stream) => {
                self.await_quiet(link, *stream, until)?;
                (*stream, self.unread_of(*stream, &held)?)
            }
            End::Native(_) => {
                while Relays::is_under_way(held.old.as_fd())? {
                    ensure!(self.waits(link, until), "something is under way");
                    self.pump(Some(Duration::from_millis(1)))?;
                }
                self.add_joined(&held, partner.key)?
            }
        };
        *joining = Some(stream);
        self.send(link, &Msg::JoinUnread, &unread);
        let (Msg::JoinSwap, theirs) = self.hear_join(link, until)? else { bail!("no JoinSwap") };
        new.set_nonblocking(false)?;
        new.set_write_timeout(Some(HELD))?;
        new.set_read_timeout(Some(HELD))?;
        let exchange = self.put_in(frozen, held, &new)?;
        let bytes = [&[HOLDS], &theirs[..]].concat();
        let begun = begin_to_write(&mut new, &bytes).map_err(anyhow::Error::from);
        let all = begun.as_ref().is_ok_and(|begun| *begun == bytes.len());
        self.send(link, &Msg::JoinWritten { all }, &[]);
        let begun = match begun.and_then(|begun| await_holds(&mut new).map(|()| begun)) {
            Ok(begun) => begun,
            Err(error) => {
                self.put_back(frozen, exchange)?;
                return Err(error);
            }
        };
        if let Err(error) = new.write_all(&bytes[begun..]) {
            tracing::error!("connection {stream} is broken: {error}");
        }
        self.is_joined(stream, exchange, partner)?;
        await_unread(&new, unread.len().min(FITS));
        Ok(())
    }

    /// This job's end of a connection, by its addresses as the other job has them.
    fn find_end(&mut self, theirs: names::Pair) -> Result<(End, bool)> {
        let files = self.files(&self.pids())?;
        self.learn_accepted(&files);
        let same = |a: SocketAddr, b: SocketAddr| {
            (a.ip().to_canonical(), a.port()) == (b.ip().to_canonical(), b.port())
        };
        for view in files.views.objects.iter().filter(|view| tcp::is_tcp(view)) {
            let Some((own, peer)) = files.dup(view).ok().and_then(|fd| addresses(&fd)) else {
                continue;
            };
            let known = self.sup.session.names.get(view.ino);
            let (own, peer) = known.map_or((own, peer), |pair| (pair.own, pair.peer));
            if !same(own, theirs.peer) || !same(peer, theirs.own) {
                continue;
            }
            let end = match self.streams.get(&stream_key(view)) {
                Some(stream) => End::Relayed(*stream),
                None => End::Native(view.ino),
            };
            self.joins.refused = !self.is_home() && matches!(end, End::Native(_));
            ensure!(!self.joins.refused, "it was made away from home");
            return Ok((end, own.is_ipv6()));
        }
        self.joins.refused = true;
        bail!("the other job does not have it")
    }

    fn hold_native(&mut self, frozen: &Frozen, inode: u64) -> Result<Held> {
        let files = self.all_files(frozen)?;
        let view = files.views.objects.iter().find(|v| tcp::is_tcp(v) && v.ino == inode).cloned();
        hold(frozen, view.context("the job has closed it")?, files)
    }

    /// Both halves of a relay that rests, and what the job has not read of the real socket.
    fn add_joined(&mut self, held: &Held, key: Key) -> Result<(StreamId, Vec<u8>)> {
        if self.home.is_none() || self.away.is_none() {
            self.joins.only = self.home.is_none();
            let mut home = self.home.take().map_or_else(|| self.new_relays(), Ok)?;
            let mut away = self.new_relays()?;
            self.loopback = Some(Loopback::join(&mut home, &mut away));
            (self.home, self.away) = (Some(home), Some(away));
        }
        let (Some(home), Some(away)) = (&mut self.home, &mut self.away) else { bail!("no relays") };
        let end = HomeEnd::Socket(held.old.try_clone()?);
        Ok(Relays::add_joined(home, away, end, key)?)
    }

    /// Is this the connection that is waited for? It is kept then.
    pub(in crate::supervisor::moves) fn is_expected(
        &mut self,
        preface: &Preface,
        stream: &TcpStream,
    ) -> bool {
        let Some((key, taken)) = &mut self.joins.expected else { return false };
        if *key != preface.key || taken.is_some() {
            return false;
        }
        let kept = stream.try_clone().and_then(|mut stream| {
            stream.set_nodelay(true)?;
            stream.write_all(&[HOLDS])?;
            Ok(stream)
        });
        match kept {
            Ok(stream) => *taken = Some(stream),
            Err(error) => tracing::warn!(%error, "a connection to be joined"),
        }
        true
    }
}
