//! Connections of a job that has come home get their real sockets again, one by one, as soon as
//! nothing of them is with their relays.
//!
//! ```text
//! peer ⇄ real socket ─ home half ═ loopback ═ away half ─ far end ⇄ job's socket
//!                 └──────────────── (job frozen, relay empty) ──────────► job
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::exchange::{set_flags, Exchange};
use super::source::Frozen;
use super::{Class, Mover, Side};
use crate::migrate::files::Files;
use crate::migrate::resource::fd::{tcp, CaptureCx};
use crate::proxy::{Out, Relays, StreamId};

/// So long after it has come a job is left alone.
const FIRST: Duration = Duration::from_millis(100);

/// The longest pause between two tries; each is twice as long as the one before.
const LONGEST: Duration = Duration::from_secs(20);

/// So long the job may take to read what its relays have for it.
const READ: Duration = Duration::from_millis(20);

/// When connections are looked at again.
#[derive(Debug)]
pub(super) struct Homing {
    at: Instant,
    pause: Duration,
}

impl Homing {
    pub(super) fn new() -> Self {
        Self { at: Instant::now() + FIRST, pause: FIRST }
    }

    fn later(&mut self) {
        self.pause = LONGEST.min(2 * self.pause);
        self.at = Instant::now() + self.pause;
    }
}

impl Mover {
    /// Is the job at home, left alone, and perhaps relayed?
    fn may_home(&self) -> bool {
        let here = self.loopback.is_some() && self.agent.is_none() && !self.arriving && !self.left;
        let rests = self.moving.is_none() && !self.frozen && self.asleep.is_none();
        here && rests && self.sup.session.ended.is_none()
    }

    /// Time until the next try.
    pub(super) fn homing_in(&self) -> Option<Duration> {
        let homing = self.homing.as_ref().filter(|_| self.may_home())?;
        Some(homing.at.saturating_duration_since(Instant::now()))
    }

    /// Gives the job the real sockets that it can be given.
    ///
    /// # Errors
    /// Failures that end the supervision.
    pub(super) fn serve_homing(&mut self) -> Result<()> {
        if !self.may_home() || self.homing.as_ref().is_none_or(|h| Instant::now() < h.at) {
            return Ok(());
        }
        let all = self.streams.iter().filter(|(key, _)| key.2 == Class::Connection);
        let all: Vec<StreamId> = all.map(|(_, stream)| *stream).collect();
        if all.is_empty() {
            self.homing = None;
            return Ok(());
        }
        self.bring_home(all)?;
        if let Some(homing) = &mut self.homing {
            homing.later();
        }
        Ok(())
    }

    /// The same for these, as far as they are connections.
    fn bring_home(&mut self, mut streams: Vec<StreamId>) -> Result<()> {
        let is_plain = |relays: &Option<Relays>, stream: StreamId| {
            relays.as_ref().is_some_and(|relays| relays.is_plain(stream))
        };
        streams.retain(|stream| is_plain(&self.home, *stream) && is_plain(&self.away, *stream));
        for stream in &streams {
            self.hold(*stream, true);
        }
        let empty = |m: &Self| -> Vec<StreamId> {
            let is_empty = |id: &&StreamId| {
                m.home.as_ref().is_some_and(|home| home.has_sent(**id))
                    && m.away.as_ref().is_some_and(|away| away.has_written(**id))
            };
            streams.iter().filter(is_empty).copied().collect()
        };
        let until = Instant::now() + READ;
        while empty(self).len() < streams.len() && Instant::now() < until {
            self.pump(Some(Duration::from_millis(1)))?;
            streams.iter().for_each(|stream| self.acknowledge(*stream));
        }
        let ready = empty(self);
        if !ready.is_empty() && self.may_home() {
            if let Err(error) = self.give_back(&ready) {
                tracing::debug!("connections stay with their relays: {error:#}");
            }
        }
        for stream in streams {
            self.hold(stream, false);
        }
        Ok(())
    }

    fn hold(&mut self, stream: StreamId, held: bool) {
        self.relay(Side::Home, |relays, out| relays.hold(stream, held, out));
    }

    /// Both halves say what they have consumed.
    fn acknowledge(&mut self, stream: StreamId) {
        for side in [Side::Home, Side::Away] {
            self.relay(side, |relays, out| relays.acknowledge(stream, out));
        }
        while !self.settle() {}
    }

    fn give_back(&mut self, streams: &[StreamId]) -> Result<()> {
        let frozen = self.freeze_for_swap()?;
        let given = self.all_files(&frozen).and_then(|files| {
            let mut found = Vec::new();
            for stream in streams {
                match self.real_socket(*stream, &files) {
                    Ok((exchange, connection)) => found.push((*stream, exchange, connection)),
                    Err(error) => tracing::debug!("connection {stream} stays relayed: {error:#}"),
                }
            }
            self.give_all(&frozen, &files, found)
        });
        for stream in streams {
            self.relay(Side::Away, |relays, out| relays.take_back(*stream, out));
        }
        self.thaw(&frozen);
        given
    }

    /// The real socket of a connection of which the frozen relay has nothing, and what the job's is.
    fn real_socket(
        &mut self,
        stream: StreamId,
        files: &Files,
    ) -> Result<(Exchange, tcp::Connection)> {
        let view = self.find_socket(stream, files).context("the job has closed it")?;
        let old = files.dup(&view)?;
        let connection = tcp::Connection::open(&old, &view)?.context("it is shut down")?;
        let frozen =
            |relays: &mut Relays, out: Out<'_>| relays.freeze_open(stream, old.as_fd(), out);
        let unread = self.relay(Side::Away, frozen).context("no relays")??;
        // What the job has written goes to the real socket now.
        while !self.settle() {}
        self.acknowledge(stream);
        let is_empty = |relays: &Relays| relays.has_sent(stream) && relays.has_written(stream);
        let all = [&self.home, &self.away].into_iter().flatten().all(is_empty);
        ensure!(unread == Some(0), "the job has not read all");
        ensure!(all, "its peer does not take all");
        let home = self.home.as_ref().context("no relays")?;
        let new: OwnedFd = home.real_socket(stream).context("no socket")?.try_clone_to_owned()?;
        let exchange = Exchange { inode: view.ino, old, new, flags: view.flags, unread: 0 };
        Ok((exchange, connection))
    }

    fn give_all(
        &mut self,
        frozen: &Frozen,
        files: &Files,
        found: Vec<(StreamId, Exchange, tcp::Connection)>,
    ) -> Result<()> {
        let exchanges: Vec<&Exchange> = found.iter().map(|(_, exchange, _)| exchange).collect();
        self.exchange(frozen, files, &exchanges)?;
        for (stream, exchange, connection) in found {
            let dressed = connection.dress(&exchange.new);
            if let Err(e) = dressed.and_then(|()| set_flags(&exchange.new, exchange.flags)) {
                tracing::error!("connection {stream}: {e}");
            }
            self.streams.retain(|_, known| *known != stream);
            let new = nix::sys::stat::fstat(&exchange.new)?;
            self.restored.remove(&(new.st_dev, new.st_ino));
            for relays in [&mut self.home, &mut self.away].into_iter().flatten() {
                relays.remove(stream);
            }
            tracing::debug!("connection {stream} has its real socket again");
        }
        Ok(())
    }
}
