//! Signals for a job that is elsewhere: none lost, none twice, in order.
//!
//! ```text
//! home: post ─► queue ─► Msg::Signal{seq} ─────────► host: taken once, unless it is frozen
//!         ▲       │ forgotten ◄── Msg::SignalsTaken{next} ──┘
//!       others    └ sent again on each new link
//! ```
//! The number of the next signal travels with the job, so a new host takes exactly those that
//! the old one has not. What is sent to the pid of a frozen copy itself stays in the queue of
//! that copy; [`late`] finds it there when the copy is given up.

use std::collections::VecDeque;

use crate::migrate::image::ProcessImage;
use crate::migrate::resource::signals::{captured, forget};
use crate::syscalls::translate::signal_to_job;
use crate::tracer::raw::{self, code_of as code, number_of as number};

/// Signals on their way from home to the job, and how far the job has got with them.
#[derive(Debug, Default)]
pub(super) struct Forward {
    /// Number of the first of `queue`; at the job's host, of the next one to take.
    next: u64,
    /// Not taken by the job's host yet.
    queue: VecDeque<i32>,
    /// How many of them were sent on the link that there is now.
    sent: usize,
}

impl Forward {
    /// As the job brings it along.
    pub(super) fn at(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// The number of the next signal that the job has not taken.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The number of the next signal that will be posted.
    pub(super) fn end(&self) -> u64 {
        self.next + self.queue.len() as u64
    }

    /// A signal for the job.
    pub(super) fn post(&mut self, signal: i32) {
        self.queue.push_back(signal);
    }

    /// There is a new link, or none: all must be sent again.
    pub(super) fn relinked(&mut self) {
        self.sent = 0;
    }

    /// The next signal to send, with its number.
    pub(super) fn next_to_send(&mut self) -> Option<(u64, i32)> {
        let signal = *self.queue.get(self.sent)?;
        self.sent += 1;
        Some((self.next + self.sent as u64 - 1, signal))
    }

    /// The job has taken everything before `next`.
    pub(super) fn taken(&mut self, next: u64) {
        while self.next < next && self.queue.pop_front().is_some() {
            self.next += 1;
            self.sent = self.sent.saturating_sub(1);
        }
    }

    /// At the job's host: is the signal with this number one that it has not taken? Counts it.
    pub(super) fn take(&mut self, seq: u64) -> bool {
        let new = seq >= self.next;
        if new {
            self.next = seq + 1;
        }
        new
    }

    /// The job is home: what is left for it.
    pub(super) fn rest(&mut self) -> Vec<i32> {
        let rest: Vec<i32> = self.queue.drain(..).collect();
        self.next += rest.len() as u64;
        self.sent = 0;
        rest
    }
}

/// Was the signal sent by a process (kill(2), sigqueue(3), tgkill(2)), or typed at the terminal? The
/// others are the kernel's own, of timers and the like, which the job's new copy has as well. A
/// hangup is left out: the frozen copy's terminal gives one when it is closed.
fn was_sent(info: &raw::SigInfo) -> bool {
    const SI_KERNEL: i32 = 0x80;
    match code(info) {
        libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL => true,
        SI_KERNEL => [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP].contains(&number(info)),
        _ => false,
    }
}

/// Signals that were sent to a frozen copy after it was captured as `image`.
pub(super) fn late(pid: i32, image: &ProcessImage) -> Vec<i32> {
    let mut known = captured(image);
    let mut queued = raw::queued_signals(pid, true).unwrap_or_default();
    queued.iter_mut().for_each(|info| signal_to_job(info));
    let new = queued.into_iter().filter(|info| !forget(&mut known, info) && was_sent(info));
    new.map(|info| number(&info)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(forward: &mut Forward) -> Vec<(u64, i32)> {
        std::iter::from_fn(|| forward.next_to_send()).collect()
    }

    #[test]
    fn a_new_link_gets_what_was_not_taken() {
        let mut home = Forward::default();
        [10, 12, 15].into_iter().for_each(|s| home.post(s));
        assert_eq!(sent(&mut home), [(0, 10), (1, 12), (2, 15)]);
        home.taken(1);
        home.relinked();
        assert_eq!(sent(&mut home), [(1, 12), (2, 15)]);
        home.post(1);
        assert_eq!(sent(&mut home), [(3, 1)]);
        home.taken(2);
        assert_eq!((home.rest(), home.next()), (vec![15, 1], 4));
    }

    #[test]
    fn a_host_takes_each_signal_once_wherever_the_job_goes() {
        let mut host = Forward::at(3);
        assert!(!host.take(2));
        assert!(host.take(3) && !host.take(3) && host.take(4));
        let mut next = Forward::at(host.next());
        assert!(!next.take(4) && next.take(5));
    }

    #[test]
    fn what_people_send_and_type_is_kept() {
        let of = |signal: i32, code: i32| {
            let mut info = [0; 128];
            info[..4].copy_from_slice(&signal.to_le_bytes());
            info[8..12].copy_from_slice(&code.to_le_bytes());
            was_sent(&info)
        };
        const SI_KERNEL: i32 = 0x80;
        for typed in [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP] {
            assert!(of(typed, SI_KERNEL));
        }
        assert!(of(libc::SIGHUP, libc::SI_USER) && of(libc::SIGALRM, libc::SI_QUEUE));
        assert!(!of(libc::SIGHUP, SI_KERNEL) && !of(libc::SIGALRM, SI_KERNEL));
        assert!(!of(libc::SIGINT, libc::SI_TIMER));
    }
}
