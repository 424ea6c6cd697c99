//! What is known of all sockets of a job while it is captured.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::super::pipe::outside_holders;
use super::super::{find, known_or, CaptureCx, FdError, FdKind, FdView};
use super::diag::{self, Entry};
use super::ids::Ids;
use super::queue::{self, Peeked};
use super::{object_of, Unix};

/// See the module.
#[derive(Debug, Default)]
pub struct Sockets {
    table: HashMap<u64, Entry>,
    /// Sockets whose connections wait to be accepted: the listening ones.
    listeners: HashMap<u64, u64>,
    /// Who is connected to whom.
    connected: HashMap<u64, Vec<u64>>,
    /// What waits in the sockets of a frozen job.
    queues: HashMap<u64, Vec<Peeked>>,
    outside: OnceCell<HashSet<u64>>,
    ids: OnceCell<Ids>,
}

impl Sockets {
    /// Asks the kernel.
    ///
    /// # Errors
    /// As sock_diag(7).
    pub fn read() -> io::Result<Self> {
        let table = diag::read()?;
        let mut listeners = HashMap::new();
        let mut connected: HashMap<u64, Vec<u64>> = HashMap::new();
        for (ino, entry) in &table {
            listeners.extend(entry.waiting.iter().map(|client| (*client, *ino)));
            if let Some(peer) = entry.peer {
                connected.entry(peer).or_default().push(*ino);
            }
        }
        Ok(Self { table, listeners, connected, ..Self::default() })
    }

    pub(super) fn entry(&self, ino: u64) -> Option<&Entry> {
        self.table.get(&ino)
    }

    pub(super) fn listener_of(&self, client: u64) -> Option<u64> {
        self.listeners.get(&client).copied()
    }

    pub(super) fn connected_to(&self, ino: u64) -> &[u64] {
        self.connected.get(&ino).map_or(&[], Vec::as_slice)
    }

    pub(super) fn queue(&self, ino: u64) -> &[Peeked] {
        self.queues.get(&ino).map_or(&[], Vec::as_slice)
    }

    /// Of the sockets that have to do with the job, those that other processes hold.
    pub(super) fn outside(&self, cx: &dyn CaptureCx) -> io::Result<&HashSet<u64>> {
        known_or(&self.outside, || {
            let mut wanted = Vec::new();
            for ino in cx.all().iter().filter(|v| Unix.recognises(v)).map(|v| v.ino) {
                let Some(entry) = self.table.get(&ino) else { continue };
                wanted.push(ino);
                wanted
                    .extend(entry.peer.iter().chain(&entry.waiting).chain(self.connected_to(ino)));
                wanted.extend(self.listener_of(ino));
            }
            wanted.retain(|ino| *ino != 0);
            let mut pids = cx.job_pids();
            // What it inherited for the job it does not use.
            pids.push(std::process::id() as i32);
            outside_holders("socket", &wanted, &pids)
        })
    }

    pub(super) fn ids(&self, cx: &dyn CaptureCx) -> io::Result<&Ids> {
        known_or(&self.ids, || Ids::read(&cx.job_pids()))
    }

    /// Looks at what waits in a socket of a frozen job. Gives the descriptions on their way in
    /// it that are not in `all`; this process has duplicates of them, as long as `self` is there.
    ///
    /// # Errors
    /// What was tried.
    pub fn look_into(&mut self, view: &FdView, cx: &dyn CaptureCx) -> Result<Vec<FdView>, FdError> {
        let mut found: Vec<FdView> = Vec::new();
        let Some(entry) = self.table.get(&view.ino) else { return Ok(found) };
        if !Unix.recognises(view) || entry.state == diag::LISTEN {
            return Ok(found);
        }
        let fd = cx.dup(view).map_err(view.failed("duplicate"))?;
        let queue = queue::peek(fd.as_fd(), entry.kind, entry.unread);
        let queue = queue.map_err(view.failed("look at what waits in it, the queue"))?;
        let own = std::process::id() as i32;
        for right in queue.iter().flat_map(|message| &message.rights) {
            let known = |all: &[FdView]| object_of(all, right.as_fd());
            if known(cx.all()).map_err(view.failed("kcmp"))?.is_none()
                && known(&found).map_err(view.failed("kcmp"))?.is_none()
            {
                let right = FdView::read(own, right.as_raw_fd());
                let right = right.map_err(view.failed("look at a descriptor on its way in it"))?;
                if find(&right).is_some_and(|kind| kind.name() == "epoll") {
                    let cause = "an epoll that nobody else has is on its way in it";
                    let remedy = "move again when the program has read it";
                    return Err(view.refuse("VOS-UNIX-RIGHTS", cause, remedy));
                }
                found.push(right);
            }
        }
        self.queues.insert(view.ino, queue);
        Ok(found)
    }
}
