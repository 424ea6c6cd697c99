//! Which members still have to be told the news, and when to try next.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::NodeId;

/// First and last delay between two tries.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LAST_DELAY: Duration = Duration::from_secs(30);

/// The plan. A member leaves it when it is taken to be told now, and comes back when that
/// fails or when there is more news.
#[derive(Debug, Default)]
pub struct Plan {
    due: HashMap<NodeId, Instant>,
    failures: HashMap<NodeId, u32>,
}

impl Plan {
    /// There is news for `peer`.
    pub fn add(&mut self, peer: NodeId, now: Instant) {
        self.due.entry(peer).and_modify(|at| *at = now.min(*at)).or_insert(now);
    }

    /// Takes the members that are to be told now.
    pub fn take_due(&mut self, now: Instant) -> Vec<NodeId> {
        let due: Vec<NodeId> =
            self.due.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in &due {
            self.due.remove(id);
        }
        due
    }

    /// When the next member is to be told.
    pub fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// `peer` has been told.
    pub fn succeeded(&mut self, peer: NodeId) {
        self.failures.remove(&peer);
    }

    /// `peer` could not be told; it is tried again, later each time. Returns how often in a
    /// row it has failed.
    pub fn failed(&mut self, peer: NodeId, now: Instant) -> u32 {
        let failures = self.failures.entry(peer).or_insert(0);
        let delay = FIRST_DELAY.saturating_mul(1 << (*failures).min(16)).min(LAST_DELAY);
        *failures = failures.saturating_add(1);
        let failures = *failures;
        self.due.entry(peer).or_insert(now + delay);
        failures
    }

    /// `peer` is no member any more.
    pub fn forget(&mut self, peer: NodeId) {
        self.due.remove(&peer);
        self.failures.remove(&peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_again_later_each_time() {
        let (mut plan, peer, start) = (Plan::default(), NodeId([1; 32]), Instant::now());
        plan.add(peer, start);
        assert_eq!(plan.take_due(start), [peer]);
        assert_eq!(plan.next(), None);
        assert_eq!(plan.failed(peer, start), 1);
        assert_eq!(plan.next(), Some(start + FIRST_DELAY));
        assert!(plan.take_due(start).is_empty());
        for _ in 0..40 {
            plan.take_due(start + LAST_DELAY);
            plan.failed(peer, start);
        }
        assert_eq!(plan.next(), Some(start + LAST_DELAY));
        plan.add(peer, start);
        assert_eq!(plan.take_due(start), [peer]);
    }
}
