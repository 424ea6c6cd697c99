//! The supervisor of a job that is away asks the one of the job that has the other end.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use super::{
    await_holds, await_unread, begin_to_write, Frozen, Partner, FITS, FROZEN, HELD, MOST,
    MOST_PATIENT, READY,
};
use super::{LinkKey, Mover, Showing, Side};
use crate::ids::{random_bytes, JobId, NodeId};
use crate::migrate::message::Msg;
use crate::migrate::resource::fd::CaptureCx;
use crate::migrate::transport::Service;
use crate::proxy::direct::{Meeting, HOLDS};
use crate::proxy::{addresses, StreamId};

/// So often the other supervisor is asked in vain; then the connection goes past its relay alone.
const TRIES: u32 = 32;

/// Jobs that were frozen in vain count as so many more.
const FROZEN_TRY: u32 = 3;

impl Mover {
    /// Is a connection to be led past its relay without asking who has the other end?
    pub(in crate::supervisor::moves) fn goes_alone(&self, stream: StreamId) -> bool {
        self.joins.tries.get(&stream).is_some_and(|tries| *tries >= TRIES)
    }

    /// Joins a connection whose other end was found.
    ///
    /// # Errors
    /// Why it stays as it is.
    pub(in crate::supervisor::moves) fn join(
        &mut self,
        (stream, node, job): Meeting,
    ) -> Result<()> {
        let mut at = node;
        *self.joins.tries.entry(stream).or_default() += 1;
        // Its home may have to tell where it is.
        for _hop in 0..2 {
            let link = self.link_to(at, Service::Job(job))?;
            let joined =
                self.join_by(link, stream, Partner { node: at, job, key: random_bytes()? });
            self.drop_link(link);
            if joined.is_err() && std::mem::take(&mut self.joins.refused) {
                self.joins.tries.insert(stream, TRIES);
            }
            match joined? {
                None => {
                    self.joins.tries.remove(&stream);
                    return Ok(());
                }
                Some(other) => at = other,
            }
        }
        bail!("the other job is on its way")
    }

    /// Gives the node where the other job is, if that is another one.
    fn join_by(
        &mut self,
        link: LinkKey,
        stream: StreamId,
        partner: Partner,
    ) -> Result<Option<NodeId>> {
        let until = Instant::now() + READY;
        let files = self.files(&self.pids())?;
        self.learn_accepted(&files);
        let view = self.find_socket(stream, &files).context("the job has closed it")?;
        let (own, peer) = addresses(&files.dup(&view)?).context("it has no addresses")?;
        let job = self.sup.job.id;
        self.send(link, &Msg::Join { job, key: partner.key, own, peer }, &[]);
        let port = loop {
            if let Some(first) = self.other_join(link) {
                // Of two that ask each other, one waits for the other.
                ensure!(self.sup.job.id < first, "the other job asks as well");
            }
            match self.hear_join_for(link, until, Duration::from_millis(5))? {
                Some((Msg::JoinReady { port }, _)) => break port,
                Some((Msg::Gone { to: Some((node, _)), .. }, _)) => return Ok(Some(node)),
                Some((other, _)) => bail!("unexpected: {other:?}"),
                None => self.take_connections()?,
            }
        };
        let mut to = self.address_of(partner.node)?;
        port.into_iter().for_each(|port| to.set_port(port));
        let mut new = Showing::begin(to, own.is_ipv6(), partner.key)?;
        while !new.go_on(partner.job)? {
            ensure!(Instant::now() < until, "the other node does not take the connection");
            self.pump(Some(Duration::from_millis(2)))?;
        }
        let tries = self.joins.tries.entry(stream).or_default();
        // A busy machine may need longer.
        let patience = FROZEN * (*tries / FROZEN_TRY + 1).min(MOST_PATIENT);
        *tries += FROZEN_TRY;
        let frozen = self.freeze_for_swap()?;
        let until = Instant::now() + patience;
        let new = new.into_stream();
        let joined = self.join_frozen((link, until), stream, &frozen, new, partner);
        if joined.is_err() {
            self.relay(Side::Away, |relays, out| relays.take_back(stream, out));
        }
        self.thaw(&frozen);
        joined.map(|()| None)
    }

    fn join_frozen(
        &mut self,
        (link, until): (LinkKey, Instant),
        stream: StreamId,
        frozen: &Frozen,
        mut new: TcpStream,
        partner: Partner,
    ) -> Result<()> {
        let held = self.hold_relayed(frozen, stream)?;
        self.send(link, &Msg::JoinFreeze, &[]);
        let (Msg::JoinFrozen, _) = self.hear_join(link, until)? else { bail!("no JoinFrozen") };
        self.await_quiet(link, stream, until)?;
        self.send(link, &Msg::JoinSettle, &[]);
        let (Msg::JoinUnread, theirs) = self.hear_join(link, until)? else {
            bail!("no JoinUnread")
        };
        self.await_quiet(link, stream, until)?;
        let unread = self.unread_of(stream, &held)?;
        ensure!(theirs.len().max(unread.len()) <= MOST, "the jobs have much to read");
        self.send(link, &Msg::JoinSwap, &unread);
        new.set_read_timeout(Some(MOST_PATIENT * FROZEN))?;
        new.set_write_timeout(Some(HELD))?;
        let (Msg::JoinWritten { all }, _) = self.hear_join(link, until)? else {
            bail!("no JoinWritten")
        };
        // One side goes on before the other has written everything.
        ensure!(all || theirs.len() <= FITS, "both jobs have much to read");
        await_holds(&mut new)?;
        let exchange = self.put_in(frozen, held, &new)?;
        let bytes = [&[HOLDS], &theirs[..]].concat();
        let begun = begin_to_write(&mut new, &bytes);
        let Ok(begun @ 1..) = begun else {
            self.put_back(frozen, exchange)?;
            bail!("the new connection takes nothing: {begun:?}");
        };
        // From here on it is the other job's as well.
        if let Err(error) = new.write_all(&bytes[begun..]) {
            tracing::error!("connection {stream} is broken: {error}");
        }
        self.is_joined(stream, exchange, partner)?;
        await_unread(&new, unread.len().min(FITS));
        Ok(())
    }

    /// The job of another supervisor that would join a connection, over another link.
    fn other_join(&self, link: LinkKey) -> Option<JobId> {
        let others = self.links.iter().filter(|(key, _)| **key != link);
        others.filter_map(|(_, peer)| peer.inbox.front()).find_map(|(msg, _)| match msg {
            Msg::Join { job, .. } => Some(*job),
            _ => None,
        })
    }
}
