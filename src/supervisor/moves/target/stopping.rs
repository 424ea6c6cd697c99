//! Processes of a job that were stopped stop again, before the others go on. So does one that goes
//! on after a stop, of which its parent does not know: SIGCONT makes it known to the kernel again.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Mover, Restored};
use crate::migrate::resource::View;
use crate::migrate::stops::{self, Hushed, Waiting};
use crate::supervisor::session::Way;
use crate::tracer::raw;

/// How the threads of a process go on, by their tids here.
pub(super) type Ways = Vec<(i32, Way)>;

/// How a process comes to its stop.
struct Stopping {
    signal: i32,
    goes_on: Option<GoesOn>,
}

/// SIGCONT ends the stop.
struct GoesOn {
    /// Did one wait to be delivered before?
    waited: bool,
    /// Stop signals, which it would take away.
    stops: Waiting,
}

impl Stopping {
    fn of(process: &Restored) -> Result<Option<Self>> {
        let image = &process.image;
        if let Some(signal) = image.stopped {
            return Ok(Some(Self { signal, goes_on: None }));
        }
        if !image.continued {
            return Ok(None);
        }
        let view = View::read_process(process.pid).context("signals of a restored process")?;
        if stops::waits(&view, libc::SIGSTOP) {
            // SIGCONT would take it away, and no call can take it before; it stops again at once.
            tracing::warn!("that process {} was continued is not told", image.ids.pid);
            return Ok(None);
        }
        let waited = stops::waits(&view, libc::SIGCONT);
        let stops = stops::take_waiting(process.pid, image, &process.host_tids())?;
        let goes_on = Some(GoesOn { waited, stops });
        Ok(Some(Self { signal: libc::SIGSTOP, goes_on }))
    }
}

impl Mover {
    /// Lets the stopped processes go into their stops. Their parents, which do not run yet, hear
    /// nothing of it, and know what they have known. `ways` are those of all processes.
    ///
    /// # Errors
    /// When a thread cannot be resumed.
    pub(super) fn stop_processes(&mut self, processes: &[Restored], ways: &[Ways]) -> Result<()> {
        let mut stopping: BTreeMap<usize, Stopping> = BTreeMap::new();
        for (place, process) in processes.iter().enumerate() {
            stopping.extend(Stopping::of(process)?.map(|stopping| (place, stopping)));
        }
        let images = processes.iter().map(|process| &process.image);
        let family = stops::by_parent(images, |place| stopping.contains_key(&place));
        let mut hushed: BTreeMap<usize, Hushed> = BTreeMap::new();
        for &parent in family.keys() {
            match stops::hush(processes[parent].pid, &processes[parent].image) {
                Ok(action) => drop(hushed.insert(parent, action)),
                Err(e) => tracing::error!("the stops of children are told again: {e}"),
            }
        }
        // Who is a parent itself is needed until its children stand.
        let mut left: Vec<usize> = stopping.keys().copied().collect();
        while !left.is_empty() {
            let is_needed = |place: &usize| {
                family.get(place).is_some_and(|children| children.iter().any(|c| left.contains(c)))
            };
            let (later, now): (Vec<usize>, Vec<usize>) = left.iter().partition(|p| is_needed(p));
            for &place in &now {
                let signal = stopping[&place].signal;
                raw::kill(processes[place].pid, signal).context("stopping the job as it was")?;
                self.resume(&ways[place])?;
            }
            let pids: Vec<i32> = now.iter().map(|place| processes[*place].pid).collect();
            self.pump_until(|session| pids.iter().all(|pid| session.in_stop(*pid).is_some()))?;
            for &place in &now {
                if let Some(goes_on) = &stopping[&place].goes_on {
                    self.continue_process(&processes[place], goes_on)?;
                }
            }
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

    /// Ends a stop by SIGCONT; the process does not run yet. That signal goes no further, unless one
    /// has waited already.
    fn continue_process(&mut self, process: &Restored, goes_on: &GoesOn) -> Result<()> {
        if self.sup.session.in_stop(process.pid).is_none() {
            tracing::error!("process {} does not stop again", process.image.ids.pid);
            return Ok(());
        }
        raw::kill(process.pid, libc::SIGCONT).context("letting a process go on as it did")?;
        for thread in &process.threads {
            let held = self.sup.session.hold(thread.host_tid);
            held.with_context(|| format!("waiting for thread {}", thread.tid))?;
        }
        if !goes_on.waited {
            stops::forget_cont(process.pid, &process.image)?;
        }
        Ok(goes_on.stops.put_back(process.pid, &process.image)?)
    }

    /// Lets the threads of a process go on.
    ///
    /// # Errors
    /// When one cannot be resumed.
    pub(super) fn resume(&mut self, ways: &Ways) -> Result<()> {
        let resumed = self.sup.session.go_all(ways);
        resumed.map_err(|(tid, e)| anyhow::Error::new(e).context(format!("resuming thread {tid}")))
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
