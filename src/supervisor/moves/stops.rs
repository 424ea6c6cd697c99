//! Signals for the job from elsewhere, and stopping together with it.

use std::time::Duration;

use anyhow::{Context, Result};

use super::super::Mode;
use super::{LinkKey, Mover, Side};
use crate::migrate::message::Msg;
use crate::migrate::resource::View;
use crate::tracer::raw;

impl Mover {
    /// Sends a signal to the job, which is here.
    pub(super) fn signal_job(&self, signal: i32) {
        if self.agent.is_none() && self.sup.session.root != 0 {
            if let Err(e) = raw::kill(self.sup.session.root, signal) {
                tracing::debug!("signal {signal} for the job: {e}");
            }
        }
    }

    /// A signal from home. One that comes when the job is frozen waits: if the job goes on
    /// here it gets it then, and if not the home sends it to where the job is.
    pub(super) fn take_signal(&mut self, key: LinkKey, seq: u64, signal: i32) {
        if self.agent.is_some() || self.sup.session.root == 0 {
            return;
        }
        if self.frozen {
            self.held.push_back((key, seq, signal));
            return;
        }
        if self.forward.take(seq) {
            if signal == libc::SIGCONT {
                self.sup.session.root_stopped = None;
            }
            self.signal_job(signal);
        }
        self.send(key, &Msg::SignalsTaken(self.forward.next()), &[]);
    }

    /// The job goes on here.
    pub(super) fn take_held(&mut self) {
        self.frozen = false;
        for (key, seq, signal) in std::mem::take(&mut self.held) {
            self.take_signal(key, seq, signal);
        }
    }

    /// Sends a signal to the job, wherever it is.
    pub(super) fn signal_anywhere(&mut self, signal: i32) {
        if self.agent.is_none() {
            self.signal_job(signal);
            return;
        }
        self.forward.post(signal);
        self.send_signals();
    }

    /// A signal that a copy of the job got which stayed behind.
    pub(super) fn signal_late(&mut self, pid: Option<i32>, signal: i32) {
        let Some(pid) = pid else { return self.signal_anywhere(signal) };
        let has_number = |host: &i32| View::read_process(*host).is_ok_and(|v| v.job_pid == pid);
        let found = self.sup.session.processes().into_iter().find(has_number);
        if let Some(Err(e)) = found.map(|host| raw::kill(host, signal)) {
            tracing::debug!("signal {signal} for process {pid} of the job: {e}");
        }
    }

    /// Sends what waits for the job, if it can be reached.
    pub(super) fn send_signals(&mut self) {
        while let Some(key) = self.relay_link.filter(|_| self.agent.is_some()) {
            let Some((seq, signal)) = self.forward.next_to_send() else { return };
            self.send(key, &Msg::Signal { seq, signal }, &[]);
        }
    }

    /// Signals that came for vosrun, but belong to a job elsewhere or to the relays.
    pub(super) fn take_arrived(&mut self) {
        while let Some(arrived) = self.sup.arrived.pop_front() {
            match arrived.signal {
                libc::SIGWINCH => {
                    self.relay(Side::Home, |relays, out| relays.on_winch(out));
                }
                libc::SIGCONT => self.awake(),
                signal if self.sup.away && !arrived.is_from_kernel() => {
                    self.signal_anywhere(signal);
                }
                _ => {}
            }
        }
    }

    /// Passes on what the stand-in got.
    pub(super) fn serve_standin(&mut self) {
        let Some(standin) = &mut self.standin else { return };
        for signal in standin.take(&mut self.sup) {
            if signal == libc::SIGWINCH && self.home.is_some() && !self.joins.only {
                // The job's own terminal raises it when it gets the new size.
                self.relay(Side::Home, |relays, out| relays.on_winch(out));
            } else {
                self.signal_anywhere(signal);
            }
        }
    }

    /// The job was stopped: whoever watches from a shell has to stop too.
    pub(super) fn take_stops(&mut self) -> Result<()> {
        if self.agent.is_some() {
            return Ok(());
        }
        let native = (self.home.is_none() && self.away.is_none()) || self.joins.only;
        if native && self.asleep.is_none() {
            return self.sup.stop_with_job();
        }
        let away = self.loopback.is_none();
        if away && (self.relay_link.is_none() || self.forward.next() < self.tell_stop_from) {
            // Told when the home is there again and its signals have come, if the job is still
            // stopped then.
            return Ok(());
        }
        let stopped = self.sup.session.root_stopped.take();
        let Some(signal) = stopped.and_then(|_| self.sup.session.root_in_stop()) else {
            return Ok(());
        };
        if away {
            self.say(Msg::Stopped(signal), &[]);
        } else {
            self.stop_with_far_job(signal);
        }
        Ok(())
    }

    /// The job was stopped, and whoever waits for it at home has to see that.
    pub(super) fn stop_with_far_job(&mut self, signal: i32) {
        if self.sup.mode != Mode::Launched {
            if let Some(standin) = &mut self.standin {
                standin.stop(signal);
            }
        } else if self.asleep.replace(signal).is_none() {
            self.relay(Side::Home, |relays, _| relays.suspend());
        }
    }

    /// Stops this process as a shell expects of its job, when the job is stopped and nobody needs
    /// an answer. A shell lets both go on; a client or another node only wakes this process, which
    /// stops again when it has served them ([`super::wake`]). True: it was stopped.
    pub(super) fn rest(&mut self) -> Result<bool> {
        let Some(signal) = self.asleep.filter(|_| !self.is_needed()) else { return Ok(false) };
        self.sup.woken = false;
        crate::supervisor::signals::Signals::stop_self(signal).context("stopping with the job")?;
        // Who woke it has connected before.
        self.pump(Some(Duration::ZERO))?;
        let continued = self.sup.arrived.iter().any(|a| a.signal == libc::SIGCONT);
        if !self.sup.woken && !continued {
            // It did not stop: nobody is there who could let it go on (setpgid(2), orphaned
            // process groups).
            self.awake();
            self.signal_job(libc::SIGCONT);
        }
        Ok(true)
    }

    /// Is there somebody to be served before this process may stop?
    pub(super) fn is_needed(&self) -> bool {
        let waits = |key: &LinkKey| self.relay_link != Some(*key) && !self.is_trying(*key);
        // A job that has come home stopped has to get there first.
        let stopping = self.agent.is_none() && self.sup.session.root_in_stop().is_none();
        stopping || !self.idle() || self.sup.has_clients() || self.links.keys().any(waits)
    }

    /// This process goes on, and a job elsewhere with it. One that is here has got the signal
    /// already.
    pub(super) fn awake(&mut self) {
        self.asleep = None;
        self.relay(Side::Home, |relays, out| relays.resume(out));
        if self.agent.is_some() {
            self.signal_anywhere(libc::SIGCONT);
        }
    }
}
