//! The end of a job, here or elsewhere, and who is told.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::End;
use super::{LinkKey, Mover, Side};
use crate::migrate::message::Msg;
use crate::migrate::transport::{Link, Service};
use crate::node;
use crate::proxy::Relays;
use crate::tracer::Exit;

impl Mover {
    /// The job's end: has it come, and is all of it told? Gives how vosrun ends.
    pub(super) fn ended(&mut self) -> Result<Option<End>> {
        if let Some(agent) = &self.agent {
            if agent.has_lost() {
                if let Some(standin) = self.standin.take() {
                    // Its parent has to be told something: nothing else was asked to end it.
                    standin.end(Exit::Signal(libc::SIGKILL));
                }
                return Ok(Some(End::Lost));
            }
            let Some(exit) = agent.exited() else { return Ok(self.sup.end) };
            if self.home.as_ref().is_some_and(|home| !home.is_finished()) {
                return Ok(None);
            }
            if let Some(standin) = self.standin.take() {
                standin.end(exit);
            }
            return Ok(Some(End::Exited(exit)));
        }
        let Some(end) = self.sup.end else { return Ok(None) };
        if self.left {
            return Ok(Some(end));
        }
        if let End::Exited(exit) = end {
            self.farewell(exit)?;
        }
        Ok(Some(end))
    }

    /// Sends the job's last words home and waits until they are taken.
    pub(super) fn farewell(&mut self, exit: Exit) -> Result<()> {
        /// A home that does not come back for so long is gone for good.
        const PATIENCE: Duration = Duration::from_secs(60);
        /// Home agents connect anew twice a second; one that does not is asked for.
        const ABSENT: Duration = Duration::from_secs(3);
        let ended = Instant::now();
        self.sup.sees_out = true;
        self.relay(Side::Away, |relays, out| relays.job_ended(out));
        if self.loopback.is_some() {
            let drained = |m: &Self| m.home.as_ref().is_none_or(Relays::is_finished);
            let until = Instant::now() + PATIENCE;
            while !drained(self) && Instant::now() < until {
                self.pump(Some(Duration::from_millis(100)))?;
                if self.has_said_all(ended) {
                    self.relay(Side::Home, |relays, out| relays.host_ended(out));
                }
            }
        }
        if self.is_home() {
            if let Some(standin) = self.standin.take() {
                standin.end(exit);
            }
            return Ok(());
        }
        let until = Instant::now() + PATIENCE;
        let mut told = None;
        let (mut seen, mut probe) = (Instant::now(), None);
        while Instant::now() < until {
            self.requests_while_moving()?;
            if self.relay_link.is_some() {
                seen = Instant::now();
            } else if seen.elapsed() > ABSENT {
                seen = Instant::now();
                probe = self.call_home();
            }
            if self.has_said_all(ended) && told != self.relay_link {
                told = self.relay_link;
                self.say(Msg::Exited(exit), &[]);
            }
            for key in self.links.keys().copied().collect::<Vec<_>>() {
                while let Some((msg, _)) = self.pop(key) {
                    match msg {
                        Msg::ExitTaken => return Ok(()),
                        // The node answers for its dead agent: the job is said to be here.
                        Msg::Gone { to: Some((node, _)), .. }
                            if probe == Some(key) && node == self.here =>
                        {
                            tracing::error!("the home agent is dead; the job ended: {exit:?}");
                            return Ok(());
                        }
                        other => self.hear(key, other)?,
                    }
                }
                if self.links.get(&key).is_some_and(|p| p.over.is_some()) {
                    self.drop_link(key);
                }
            }
            if self.idle() {
                self.pump(Some(Duration::from_millis(500)))?;
            }
        }
        tracing::error!("the home agent did not come for the end of the job ({exit:?})");
        // The node will tell it.
        self.sup.job.meta.exit = Some(exit);
        self.sup.keep_folder = self.sup.job.save().is_ok();
        Ok(())
    }

    /// Everything that the job has written is taken at home. Processes that are left have a moment
    /// to end their connections, as those do that end with the first one.
    fn has_said_all(&mut self, ended: Instant) -> bool {
        const MOMENT: Duration = Duration::from_secs(2);
        let drained = self.away.as_ref().is_none_or(Relays::is_drained);
        if !drained && !self.sup.session.tasks.is_empty() && ended.elapsed() > MOMENT {
            self.relay(Side::Away, |relays, out| relays.cut_off(out));
        }
        drained
    }

    /// Asks at home whether the agent is there, and tells it where the job is.
    pub(super) fn call_home(&mut self) -> Option<LinkKey> {
        let home = node::peers::by_id(&self.sup.state, self.home_node.0).ok()??;
        let tls = node::tls(&self.sup.state).ok()?;
        let service = Service::Job(self.sup.job.id);
        let link = Link::connect(&home.addr, &tls, home.id, service).ok()?;
        let key = self.add_link(link).ok()?;
        let epoch = self.epoch();
        self.send(key, &Msg::Attach { epoch, stopped: false, next: 0 }, &[]);
        self.tell_home(key);
        Some(key)
    }
}
