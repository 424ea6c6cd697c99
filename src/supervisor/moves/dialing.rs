//! Connections that the home has accepted for the job are made to its listening sockets here.

use super::{stream_key, Mover, Side, StreamKey};
use crate::migrate::files::Files;
use crate::migrate::resource::fd::{tcp, FdView};
use crate::proxy::{Dial, Relays};

impl Mover {
    /// Makes the connections that wait for it. The job must not be in the middle of a capture.
    pub(super) fn dial_wanted(&mut self) {
        if self.frozen || self.arriving {
            return;
        }
        while let Some(dial) = self.away.as_mut().and_then(Relays::next_dial) {
            let far = if self.listens(dial) {
                let made = self.envelopes.as_ref().map(|all| all.dial(dial.peer, dial.own));
                made.and_then(|made| {
                    made.inspect_err(|e| tracing::warn!("a connection is refused: {e}")).ok()
                })
            } else {
                self.relay(Side::Away, |relays, out| relays.close_listener(dial.listener, out));
                None
            };
            self.relay(Side::Away, |relays, out| relays.dialed(dial, far, out));
        }
    }

    /// Finds the sockets that the job has accepted since it is here: they are relayed.
    pub(super) fn learn_accepted(&mut self, files: &Files) {
        let Some(away) = self.away.as_ref().filter(|_| self.envelopes.is_some()) else { return };
        let new =
            |view: &&FdView| tcp::is_tcp(view) && !self.streams.contains_key(&stream_key(view));
        let accepted = files.views.objects.iter().filter(new).filter_map(|view| {
            let (own, peer) = tcp::addresses(view, files)?;
            Some((stream_key(view), away.stream_of(own, peer)?))
        });
        let accepted: Vec<_> = accepted.collect();
        self.streams.extend(accepted);
    }

    /// Has a process of the job the listening socket still? This one has a duplicate.
    fn listens(&mut self, dial: Dial) -> bool {
        let key = self.streams.iter().find(|(_, stream)| **stream == dial.listener);
        let Some(key) = key.map(|(key, _)| *key) else { return false };
        let is_it = |(pid, fd): (i32, i32)| holds(pid, fd, key);
        if self.listening_at.get(&dial.listener).is_some_and(|at| is_it(*at)) {
            return true;
        }
        let pids: Vec<i32> = self.sup.session.processes().into_iter().collect();
        let found = pids
            .into_iter()
            .find_map(|pid| numbers(pid).into_iter().map(|fd| (pid, fd)).find(|at| is_it(*at)));
        if let Some(at) = found {
            self.listening_at.insert(dial.listener, at);
        }
        found.is_some()
    }
}

fn holds(pid: i32, fd: i32, key: StreamKey) -> bool {
    FdView::read(pid, fd).is_ok_and(|view| (view.dev, view.ino) == (key.0, key.1))
}

/// The open descriptors of a process.
fn numbers(pid: i32) -> Vec<i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
