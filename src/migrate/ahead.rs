//! What /proc tells, read by two threads.
//!
//! Only the thread that traces a process may ask the process itself (ptrace(2)); anyone may read.
//! So while the tracer asks one process, or compares it with others, the next ones are read on
//! another CPU; and the tracer reads as well while it has nothing to take.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::thread;

use super::cpus;
use crate::syscalls::translate::numbers;

/// How many wait at most: each may have tables of many mappings.
const AHEAD: usize = 32;
/// They are handed over in so many at once, as to wake the other thread is dear; the first ones one
/// by one, so that it need not wait.
const AT_ONCE: usize = 8;
/// A thread is made for no fewer.
const FEW: usize = 4;

/// Lets `take` have what `read` gives of all `items`, in their order: each call of its argument gives
/// the next one, and `None` when there is no more. Reading ends with `take`.
pub fn read_ahead<I: Sync, T: Send, R>(
    items: &[I],
    read: impl Fn(&I) -> T + Sync,
    take: impl FnOnce(&mut dyn FnMut() -> Option<T>) -> R,
) -> R {
    if items.len() < FEW {
        return read_now(items, read, take);
    }
    let work = Work { items, read: &read, claimed: AtomicUsize::new(0) };
    thread::scope(|scope| {
        let (send, receive) = sync_channel(AHEAD / AT_ONCE);
        let numbers = numbers::copied();
        let work = &work;
        let reader = scope.spawn(move || {
            numbers.take();
            cpus::remember();
            work.share(&send);
        });
        let taken = {
            let mut order = Order { work, receive, waiting: BTreeMap::new(), next: 0 };
            take(&mut || order.next())
        };
        // Not left to the scope, which waits for the end of the closure only: whoever forks after this
        // must be alone, because what the other thread has locked would stay so in the child.
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        taken
    })
}

/// Items that two threads read, each one once.
struct Work<'a, I, F> {
    items: &'a [I],
    read: &'a F,
    /// How many have a thread that reads them.
    claimed: AtomicUsize,
}

/// Items that have been read, from this place on.
type Piece<T> = (usize, Vec<T>);

impl<I, T, F: Fn(&I) -> T> Work<'_, I, F> {
    /// Reads the next ones, `most` at most, that nobody reads yet.
    fn read_some(&self, most: usize) -> Option<Piece<T>> {
        let from = self.claimed.fetch_add(most, Ordering::Relaxed);
        let some = self.items.get(from..)?;
        let some = &some[..some.len().min(most)];
        (!some.is_empty()).then(|| (from, some.iter().map(self.read).collect()))
    }

    /// Reads for another thread, until there is no more or it has ended.
    fn share(&self, with: &SyncSender<Piece<T>>) {
        let mut sent = 0;
        while let Some(piece) = self.read_some(if sent < AT_ONCE { 1 } else { AT_ONCE }) {
            sent += piece.1.len();
            if with.send(piece).is_err() {
                break;
            }
        }
    }
}

/// Puts what comes from both threads into its order.
struct Order<'a, I, T, F> {
    work: &'a Work<'a, I, F>,
    receive: Receiver<Piece<T>>,
    /// By place, none before `next`.
    waiting: BTreeMap<usize, T>,
    next: usize,
}

impl<I, T, F: Fn(&I) -> T> Order<'_, I, T, F> {
    fn next(&mut self) -> Option<T> {
        loop {
            if let Some(item) = self.waiting.remove(&self.next) {
                self.next += 1;
                return Some(item);
            }
            let (from, some) = match self.receive.try_recv() {
                Ok(piece) => piece,
                Err(_) if self.waiting.len() >= AHEAD => self.receive.recv().ok()?,
                Err(_) => match self.work.read_some(1) {
                    Some(piece) => piece,
                    None => self.receive.recv().ok()?,
                },
            };
            self.waiting.extend((from..).zip(some));
        }
    }
}

/// The same where nothing may be read before it is asked for.
pub fn read_now<I, T, R>(
    items: &[I],
    read: impl Fn(&I) -> T,
    take: impl FnOnce(&mut dyn FnMut() -> Option<T>) -> R,
) -> R {
    let mut rest = items.iter();
    take(&mut || rest.next().map(&read))
}

#[cfg(test)]
mod tests {
    use std::sync::{mpsc, Mutex};
    use std::time::Duration;

    use super::*;

    #[test]
    fn all_come_in_their_order() {
        for count in [0, 1, FEW, 10 * AHEAD] {
            let items: Vec<usize> = (0..count).collect();
            let all = |next: &mut dyn FnMut() -> Option<usize>| -> Vec<usize> {
                std::iter::from_fn(next).collect()
            };
            let doubled: Vec<usize> = (0..count).map(|n| 2 * n).collect();
            assert_eq!(read_ahead(&items, |n| 2 * n, all), doubled);
            assert_eq!(read_now(&items, |n| 2 * n, all), doubled);
        }
    }

    #[test]
    fn who_takes_reads_while_the_other_is_slow() {
        let items: Vec<usize> = (0..10 * AHEAD).collect();
        let taker = thread::current().id();
        let (read, others) = mpsc::channel();
        let others = Mutex::new(Some(others));
        let read = |n: &usize| {
            // What the other thread reads first lasts until this one has read something.
            match thread::current().id() == taker {
                true => drop(read.send(())),
                false => {
                    if let Some(read) = others.lock().unwrap().take() {
                        read.recv_timeout(Duration::from_secs(60)).unwrap();
                    }
                }
            }
            *n
        };
        let all = |next: &mut dyn FnMut() -> Option<usize>| -> Vec<usize> {
            std::iter::from_fn(next).collect()
        };
        assert_eq!(read_ahead(&items, read, all), items);
    }

    #[test]
    fn who_takes_no_more_ends_the_reading() {
        let items: Vec<usize> = (0..10 * AHEAD).collect();
        assert_eq!(read_ahead(&items, |n| *n, |next| next()), Some(0));
    }
}
