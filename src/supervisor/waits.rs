//! For which threads to wait, and when for all.
//!
//! A wait for any child looks at every traced thread until one has something to tell
//! (ptrace_do_wait, kernel/exit.c), so in a large job each stop would cost as much as all its
//! threads are. A wait for one thread finds it by its number (do_wait_pid there). SIGCHLD tells
//! which thread it is about, but of those that come while one waits to be read only the first is
//! kept (signal(7), standard signals).
//!
//! ```text
//! SIGCHLD of T ─► T, and those that stopped last   at once
//!             └─► all                              at once in a small job, else as soon as a look at
//!                                                  all is a small part of the time
//! ```
//! So no stop is lost: after each SIGCHLD comes a look at all, and one that is not named waits for
//! that at most [`LONGEST`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// In jobs of at most so many threads all are looked at each time.
const SMALL: usize = 64;
/// So many that stopped last are looked at without being named.
const RECENT: usize = 8;
/// So many times longer than a look at all takes is the time between two.
const SHARE: u32 = 30;
/// No look at all is put off longer.
const LONGEST: Duration = Duration::from_millis(20);

/// What there is to look at.
#[derive(Debug)]
pub struct Waits {
    /// Threads that a SIGCHLD has named, since the last look.
    named: Vec<i32>,
    /// Those that stopped last, the newest first.
    recent: VecDeque<i32>,
    /// When all are to be looked at.
    due: Option<Instant>,
    /// When the next look at all may be.
    next: Instant,
}

impl Waits {
    /// Nothing is known yet: all are to be looked at.
    #[must_use]
    pub fn new() -> Self {
        let now = Instant::now();
        Self { named: Vec::new(), recent: VecDeque::new(), due: Some(now), next: now }
    }

    /// SIGCHLD has come. `pid` is what it says of its thread, 0 if that could not be kept.
    pub fn heard(&mut self, pid: i32) {
        self.named.extend(Some(pid).filter(|pid| *pid > 0));
        let at = if pid > 0 { self.next } else { Instant::now() };
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// All are to be looked at next, whatever was heard.
    pub fn doubt(&mut self) {
        self.due = Some(Instant::now());
    }

    /// The threads to look at now, of which none is there twice. None when there are so few
    /// `threads` that all are looked at.
    pub fn candidates(&mut self, threads: usize) -> Vec<i32> {
        let mut all = std::mem::take(&mut self.named);
        if all.is_empty() || threads <= SMALL {
            return Vec::new();
        }
        all.extend(&self.recent);
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|tid| seen.insert(*tid));
        all
    }

    /// Is it time to look at all, of whom there are `threads`?
    #[must_use]
    pub fn is_due(&self, threads: usize) -> bool {
        self.due.is_some_and(|due| threads <= SMALL || due <= Instant::now())
    }

    /// All have been looked at, from `begin` on; none had anything to tell any more.
    pub fn looked_at_all(&mut self, begin: Instant) {
        self.due = None;
        let now = Instant::now();
        self.next = now + (now.saturating_duration_since(begin) * SHARE).min(LONGEST);
    }

    /// How long to wait at most for events, if there is a reason not to wait as long as one likes.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// A thread has stopped, or is about to.
    pub fn active(&mut self, tid: i32) {
        if self.recent.front() != Some(&tid) {
            self.recent.retain(|other| *other != tid);
            self.recent.push_front(tid);
            self.recent.truncate(RECENT);
        }
    }

    /// A thread has ended.
    pub fn gone(&mut self, tid: i32) {
        self.recent.retain(|other| *other != tid);
    }
}

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = 1000;

    #[test]
    fn what_is_named_is_looked_at_and_all_later() {
        let mut waits = Waits::new();
        assert!(waits.is_due(MANY), "at the beginning");
        waits.looked_at_all(Instant::now() - Duration::from_millis(5));
        assert!(!waits.is_due(MANY) && waits.timeout().is_none(), "nothing was heard");
        assert!(waits.candidates(MANY).is_empty());
        waits.active(7);
        waits.active(8);
        waits.heard(9);
        waits.heard(8);
        assert_eq!(waits.candidates(MANY), [9, 8, 7]);
        assert!(waits.candidates(MANY).is_empty(), "they have been looked at");
        assert!(waits.is_due(SMALL), "in a small job");
        assert!(!waits.is_due(MANY), "just after a long look");
        let left = waits.timeout().expect("a look at all comes");
        assert!(left <= LONGEST && left > Duration::ZERO, "{left:?}");
        std::thread::sleep(left);
        assert!(waits.is_due(MANY));
    }

    #[test]
    fn who_is_not_known_is_looked_for_at_once() {
        let mut waits = Waits::new();
        waits.looked_at_all(Instant::now() - Duration::from_millis(5));
        waits.heard(0);
        assert!(waits.is_due(MANY));
        assert!(waits.candidates(MANY).is_empty());
        waits.looked_at_all(Instant::now() - Duration::from_millis(5));
        waits.doubt();
        assert!(waits.is_due(MANY));
    }

    #[test]
    fn few_are_remembered() {
        let mut waits = Waits::new();
        (1..100).for_each(|tid| waits.active(tid));
        waits.active(98);
        waits.gone(97);
        waits.heard(98);
        assert_eq!(waits.candidates(MANY), [98, 99, 96, 95, 94, 93, 92]);
    }
}
