//! What /proc tells, read by a second thread.
//!
//! Only the thread that traces a process may ask the process itself (ptrace(2)); anyone may read.
//! So while the tracer asks one process, or compares it with others, the next ones are read on
//! another CPU.

use std::sync::mpsc::sync_channel;
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
    read: impl Fn(&I) -> T + Send,
    take: impl FnOnce(&mut dyn FnMut() -> Option<T>) -> R,
) -> R {
    if items.len() < FEW {
        return read_now(items, read, take);
    }
    thread::scope(|scope| {
        let (send, receive) = sync_channel::<Vec<T>>(AHEAD / AT_ONCE);
        let numbers = numbers::copied();
        let (first, rest) = items.split_at(items.len().min(AT_ONCE));
        let reader = scope.spawn(move || {
            numbers.take();
            cpus::remember();
            for some in first.chunks(1).chain(rest.chunks(AT_ONCE)) {
                if send.send(some.iter().map(&read).collect()).is_err() {
                    break;
                }
            }
        });
        let taken = {
            let mut got = Vec::new().into_iter();
            let mut next = move || {
                got.next().or_else(|| {
                    got = receive.recv().ok()?.into_iter();
                    got.next()
                })
            };
            take(&mut next)
        };
        // Not left to the scope, which waits for the end of the closure only: whoever forks after this
        // must be alone, because what the other thread has locked would stay so in the child.
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        taken
    })
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
    fn who_takes_no_more_ends_the_reading() {
        let items: Vec<usize> = (0..10 * AHEAD).collect();
        assert_eq!(read_ahead(&items, |n| *n, |next| next()), Some(0));
    }
}
