//! The link of a job that came home.

use std::collections::VecDeque;

use super::stream::RelayMsg;
use super::{RelayError, Relays};

/// Messages that [`Loopback::settle`] carries at most.
const SETTLE: usize = 256;

/// The link of a job that came home: both halves in one process.
#[derive(Debug, Default)]
pub struct Loopback {
    to_home: VecDeque<(RelayMsg, Vec<u8>)>,
    to_away: VecDeque<(RelayMsg, Vec<u8>)>,
}

impl Loopback {
    /// Joins both sides, whose former links are gone.
    #[must_use]
    pub fn join(home: &mut Relays, away: &mut Relays) -> Self {
        let mut link = Self::default();
        home.resync(&mut link.from_home());
        away.resync(&mut link.from_away());
        link
    }

    /// The closure that the home side's methods want.
    pub fn from_home(&mut self) -> impl FnMut(RelayMsg, &[u8]) + '_ {
        |msg, payload| self.to_away.push_back((msg, payload.to_vec()))
    }

    /// The closure that the away side's methods want.
    pub fn from_away(&mut self) -> impl FnMut(RelayMsg, &[u8]) + '_ {
        |msg, payload| self.to_home.push_back((msg, payload.to_vec()))
    }

    /// Carries messages over. True when some are left: the caller shall look at its other
    /// events, without waiting, and come again.
    ///
    /// # Errors
    /// As [`Relays::on_message`].
    pub fn settle(&mut self, home: &mut Relays, away: &mut Relays) -> Result<bool, RelayError> {
        for _ in 0..SETTLE {
            if let Some((msg, payload)) = self.to_away.pop_front() {
                away.on_message(&msg, &payload, &mut self.from_away())?;
            } else if let Some((msg, payload)) = self.to_home.pop_front() {
                home.on_message(&msg, &payload, &mut self.from_home())?;
            } else {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
