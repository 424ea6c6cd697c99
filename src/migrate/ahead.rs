//! What /proc tells, read by a second thread.
//!
//! Only the thread that traces a process may ask the process itself (ptrace(2)); anyone may read.
//! So while the tracer asks one process, or compares it with others, the next ones are read on
//! another CPU.

use std::sync::mpsc::sync_channel;
use std::thread;

use crate::syscalls::translate::numbers;

/// How many are read ahead at most: each may have tables of many mappings.
const AHEAD: usize = 32;
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
        let (send, receive) = sync_channel(AHEAD);
        let numbers = numbers::copied();
        scope.spawn(move || {
            numbers.take();
            for item in items {
                if send.send(read(item)).is_err() {
                    break;
                }
            }
        });
        take(&mut move || receive.recv().ok())
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
