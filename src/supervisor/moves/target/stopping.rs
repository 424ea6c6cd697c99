//! Processes of a job that were stopped stop again, before the others go on.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Mover, Restored};
use crate::migrate::stops::{self, Hushed};
use crate::supervisor::session::Way;
use crate::tracer::raw;

/// How the threads of a process go on, by their tids here.
pub(super) type Ways = Vec<(i32, Way)>;

impl Mover {
    /// Lets the stopped processes go into their stops. Their parents, which do not run yet, hear
    /// nothing of it, and know what they have known. `ways` are those of all processes.
    ///
    /// # Errors
    /// When a thread cannot be resumed.
    pub(super) fn stop_processes(&mut self, processes: &[Restored], ways: &[Ways]) -> Result<()> {
        let family = stops::by_parent(processes.iter().map(|process| &process.image));
        let mut hushed: BTreeMap<usize, Hushed> = BTreeMap::new();
        for &parent in family.keys() {
            match stops::hush(processes[parent].pid, &processes[parent].image) {
                Ok(action) => drop(hushed.insert(parent, action)),
                Err(e) => tracing::error!("the stops of children are told again: {e}"),
            }
        }
        // Who is a parent itself is needed until its children stand.
        let mut left: Vec<usize> = (0..processes.len()).collect();
        left.retain(|place| processes[*place].image.stopped.is_some());
        while !left.is_empty() {
            let is_needed = |place: &usize| {
                family.get(place).is_some_and(|children| children.iter().any(|c| left.contains(c)))
            };
            let (later, now): (Vec<usize>, Vec<usize>) = left.iter().partition(|p| is_needed(p));
            for &place in &now {
                self.stop_process(&processes[place], &ways[place])?;
            }
            let pids: Vec<i32> = now.iter().map(|place| processes[*place].pid).collect();
            self.pump_until(|session| pids.iter().all(|pid| session.in_stop(*pid).is_some()))?;
            for (parent, children) in &family {
                if children.iter().any(|child| later.contains(child)) {
                    continue;
                }
                if let Some(action) = hushed.remove(parent) {
                    self.hear_again(&processes[*parent], children, processes, &action);
                }
            }
            left = later;
        }
        Ok(())
    }

    fn stop_process(&mut self, process: &Restored, ways: &Ways) -> Result<()> {
        let Some(signal) = process.image.stopped else { return Ok(()) };
        raw::kill(process.pid, signal).context("stopping the job as it was")?;
        self.resume(ways)
    }

    /// Lets the threads of a process go on.
    ///
    /// # Errors
    /// When one cannot be resumed.
    pub(super) fn resume(&mut self, ways: &Ways) -> Result<()> {
        for &(tid, way) in ways {
            let resumed = self.sup.session.go(tid, way);
            resumed.with_context(|| format!("resuming thread {tid}"))?;
        }
        Ok(())
    }

    fn hear_again(
        &self,
        parent: &Restored,
        children: &[usize],
        processes: &[Restored],
        action: &Hushed,
    ) {
        let known: Vec<i32> = children
            .iter()
            .filter(|child| processes[**child].image.stop_taken)
            .map(|child| processes[*child].pid)
            .collect();
        if let Err(e) = stops::hear(parent.pid, &parent.image, action, &known) {
            tracing::error!("process {} hears of stops that it knows: {e}", parent.image.ids.pid);
        }
    }
}
