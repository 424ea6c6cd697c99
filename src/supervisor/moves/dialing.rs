//! Connections that the home has accepted for the job are made to its listening sockets here.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::{stream_key, Mover, Side, StreamKey};
use crate::migrate::files::Files;
use crate::migrate::resource::fd::tcp::envelope::Envelopes;
use crate::migrate::resource::fd::{self, tcp, FdView};
use crate::proxy::{Dial, Relays, StreamId};

/// Between two looks at whether the job has closed a listening socket in which clients wait.
const LOOK: Duration = Duration::from_millis(250);

/// Connections that are made before everybody else is served.
const AT_ONCE: usize = 64;

/// Where connections are made to the job's listening sockets.
pub(super) struct Dialing {
    envelopes: Envelopes,
    /// A descriptor of each listening socket: process and number.
    found_at: BTreeMap<StreamId, (i32, i32)>,
    looked: Instant,
}

impl Dialing {
    pub(super) fn new(envelopes: Envelopes) -> Self {
        Self { envelopes, found_at: BTreeMap::new(), looked: Instant::now() }
    }
}

impl Mover {
    /// Connections wait to be made. The job must not be in the middle of a capture.
    pub(super) fn has_to_dial(&self) -> bool {
        !self.frozen && !self.arriving && self.away.as_ref().is_some_and(Relays::wants_dials)
    }

    /// Makes some of the connections that wait for it.
    pub(super) fn dial_wanted(&mut self) {
        for _ in 0..AT_ONCE {
            if !self.has_to_dial() {
                break;
            }
            let Some(dial) = self.away.as_mut().and_then(Relays::next_dial) else { break };
            let far = self.is_listening(dial.listener).then(|| self.dial(dial)).flatten();
            self.relay(Side::Away, |relays, out| relays.dialed(dial, far, out));
        }
        self.look_after_waiting();
    }

    fn dial(&self, dial: Dial) -> Option<OwnedFd> {
        let made = self.dialing.as_ref()?.envelopes.dial(dial.listener, dial.peer, dial.own);
        made.inspect_err(|e| tracing::warn!("a connection is refused: {e}")).ok()
    }

    /// Clients that wait in a socket which the job has closed wait for nobody.
    fn look_after_waiting(&mut self) {
        let idle = !self.frozen && !self.arriving;
        let Some(dialing) = self.dialing.as_mut().filter(|_| idle) else { return };
        if dialing.looked.elapsed() < LOOK {
            return;
        }
        dialing.looked = Instant::now();
        let waiting: Vec<_> = self.away.iter().flat_map(Relays::with_waiting).collect();
        for listener in waiting {
            self.is_listening(listener);
        }
    }

    /// Has a process of the job the listening socket still? This one has a duplicate, which is closed
    /// if not.
    fn is_listening(&mut self, listener: StreamId) -> bool {
        let listens = self.find_listening(listener);
        if !listens {
            self.relay(Side::Away, |relays, out| relays.close_listener(listener, out));
        }
        listens
    }

    fn find_listening(&mut self, listener: StreamId) -> bool {
        let key = self.streams.iter().find(|(_, stream)| **stream == listener);
        let (Some((key, _)), Some(dialing)) = (key, &mut self.dialing) else { return false };
        let is_it = |(pid, fd): (i32, i32)| holds(pid, fd, *key);
        if dialing.found_at.get(&listener).is_some_and(|at| is_it(*at)) {
            return true;
        }
        let pids: Vec<i32> = self.sup.session.processes().into_iter().collect();
        let open = |pid| fd::numbers(pid).unwrap_or_default();
        let mut all =
            pids.into_iter().flat_map(|pid| open(pid).into_iter().map(move |fd| (pid, fd)));
        let found = all.find(|at| is_it(*at));
        dialing.found_at.extend(found.map(|at| (listener, at)));
        found.is_some()
    }

    /// Finds the sockets that the job has accepted since it is here: they are relayed. Those of
    /// connections that are over are not any more.
    pub(super) fn learn_accepted(&mut self, files: &Files) {
        let Some(away) = self.away.as_ref().filter(|_| self.dialing.is_some()) else { return };
        let live: HashSet<StreamId> = away.streams().collect();
        self.streams.retain(|_, stream| live.contains(stream));
        let new =
            |view: &&FdView| tcp::is_tcp(view) && !self.streams.contains_key(&stream_key(view));
        let accepted = files.views.objects.iter().filter(new).filter_map(|view| {
            let (own, peer) = tcp::addresses(view, files)?;
            Some((stream_key(view), away.stream_of(own, peer)?))
        });
        let accepted: Vec<_> = accepted.collect();
        self.streams.extend(accepted);
    }
}

fn holds(pid: i32, fd: i32, key: StreamKey) -> bool {
    FdView::read(pid, fd).is_ok_and(|view| (view.dev, view.ino) == (key.0, key.1))
}
