//! The end of a job: its last bytes, and what is closed with it.

use super::away;
use super::endpoint::{Endpoint, Out, Role};
use super::stream::{Receiver, Sender};
use super::{is_away, Relays};

impl Relays {
    /// The job has ended (away side): everything it wrote goes home, then eof and the modes
    /// it left its terminal with.
    pub fn job_ended(&mut self, out: Out<'_>) {
        self.wanted.clear();
        for half in self.halves.values_mut().filter(|half| is_away(half)) {
            away::finish(half);
            half.pump(&self.registry, self.linked, out);
        }
    }

    /// Processes that a job has left behind have had their time (away side): what came of their
    /// connections goes home, and they end.
    pub fn cut_off(&mut self, out: Out<'_>) {
        for half in self.halves.values_mut() {
            if matches!(&half.role, Role::Socket(socket) if socket.ending) {
                half.close_streams();
                half.pump(&self.registry, self.linked, out);
            }
        }
    }

    /// The job has ended and its host has nothing more to send (home side). What a supervisor
    /// relayed that died before the job ends here.
    pub fn host_ended(&mut self, out: Out<'_>) {
        for half in self.halves.values_mut().filter(|half| !is_away(half)) {
            if let Some(rx) = &mut half.rx {
                rx.end_here();
            }
            if matches!(half.role, Role::HomeListener(_)) {
                half.close(&self.registry);
            }
            half.pump(&self.registry, self.linked, out);
        }
    }

    /// Every byte and eof that went into this side was consumed by the other.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.halves.values().all(|half| {
            let comes = matches!(&half.role, Role::Socket(socket) if socket.ending);
            let done = |tx: &Sender| tx.drained() && (!comes || tx.closed());
            half.tx.as_ref().is_none_or(done)
        })
    }

    /// Home side: all output has ended and is written.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let relayed = |half: &&Endpoint| !half.is_dormant();
        let written = |half: &Endpoint| half.rx.as_ref().is_none_or(Receiver::finished);
        self.halves.values().filter(relayed).all(written) && self.pumps_are_finished()
    }
}
