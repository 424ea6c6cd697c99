//! Numbers of processes that come with messages of Unix sockets (SCM_CREDENTIALS of unix(7)).
//!
//! The kernel tells a receiver the sender's number, and takes from a sender nobody's but its own,
//! unless it is privileged. Both are among the control messages (cmsg(3)) of sendmsg(2) and
//! recvmsg(2), also of the calls for many messages.

use std::io;

use super::{numbers, write_number, Entry, Making, Then};
use crate::tracer::inject::{read_exact, word, write_all};

/// Bytes of `struct msghdr`; from one to the next in a vector of `struct mmsghdr`, and where the length
/// of a message is in one.
const HEADER: usize = 56;
const STRIDE: usize = 64;
const LENGTH: u64 = 56;
/// Most messages of one call (UIO_MAXIOV).
const MOST_MESSAGES: u64 = 1024;
/// Most bytes of control messages that are looked at: more than a socket takes
/// (net.core.optmem_max).
const MOST_CONTROL: u64 = 1 << 18;
/// Bytes of `struct cmsghdr`.
const CONTROL_HEADER: usize = 16;

/// Control messages of a `struct msghdr`: address and bytes. `None`: there are none, or more than the
/// kernel takes.
fn control_of(header: &[u8]) -> Option<(u64, usize)> {
    let (at, len) = (word(header, 32), word(header, 40));
    let some = at != 0 && (CONTROL_HEADER as u64..=MOST_CONTROL).contains(&len);
    some.then_some((at, len as usize))
}

/// Where the numbers of senders are in control messages.
fn places(control: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(header) = control.get(at..at + CONTROL_HEADER) {
        let kind = [&libc::SOL_SOCKET.to_le_bytes()[..], &libc::SCM_CREDENTIALS.to_le_bytes()];
        let number = at + CONTROL_HEADER;
        let len = usize::try_from(word(header, 0)).unwrap_or(usize::MAX);
        if len < CONTROL_HEADER || len > control.len() - at {
            break;
        }
        if header[8..] == kind.concat() && len >= CONTROL_HEADER + 4 {
            found.push(number);
        }
        at += len.next_multiple_of(8);
    }
    found
}

/// recvmsg(2) and recvmmsg(2).
pub(super) fn received(call: &mut Making, many: bool) -> Option<Entry> {
    let at = call.arg(1);
    let count = if many { call.arg(2).min(MOST_MESSAGES) } else { 1 };
    // What cannot be read the kernel refuses itself.
    let asks = |n: u64| {
        let header = call.read::<HEADER>(at.wrapping_add(n * STRIDE as u64));
        header.is_some_and(|header| control_of(&header).is_some())
    };
    if (0..count).any(asks) {
        call.then = Then::Received { at, many };
    }
    None
}

/// Gives the numbers that came with `count` messages the job's meaning.
pub(super) fn answer(tid: i32, at: u64, count: u64) -> io::Result<()> {
    for n in 0..count {
        let mut header = [0; HEADER];
        read_exact(tid, at.wrapping_add(n * STRIDE as u64), &mut header)?;
        let Some((at, len)) = control_of(&header) else { continue };
        let mut control = vec![0; len];
        read_exact(tid, at, &mut control)?;
        for place in places(&control) {
            let host = number_at(&control, place);
            write_number(tid, at.wrapping_add(place as u64), host)?;
        }
    }
    Ok(())
}

fn number_at(control: &[u8], place: usize) -> i32 {
    let bytes = control.get(place..place + 4).and_then(|four| four.try_into().ok());
    bytes.map_or(0, i32::from_le_bytes)
}

/// sendmsg(2) and sendmmsg(2).
pub(super) fn sent(call: &mut Making, many: bool) -> Option<Entry> {
    let at = call.arg(1);
    let stride = if many { STRIDE } else { HEADER };
    let count = if many { call.arg(2).min(MOST_MESSAGES) } else { 1 };
    let mut headers = call.bytes(at, count as usize * stride)?;
    let mut changed = false;
    for header in headers.chunks_exact_mut(stride) {
        let Some(control) = to_host(call, header) else { continue };
        let Some(at) = call.place(&control) else { return Some(Entry::errno(libc::ENOBUFS)) };
        header[32..40].copy_from_slice(&at.to_le_bytes());
        changed = true;
    }
    if !changed {
        return None;
    }
    let Some(from) = call.place(&headers) else { return Some(Entry::errno(libc::ENOBUFS)) };
    call.set(1, from);
    if many {
        call.then = Then::Lengths { from, to: at };
    }
    None
}

/// Control messages with the kernel's numbers. `None`: they have no other ones.
fn to_host(call: &Making, header: &[u8]) -> Option<Vec<u8>> {
    let (at, len) = control_of(header)?;
    let before = call.bytes(at, len)?;
    let mut control = before.clone();
    for place in places(&before) {
        let host = numbers::to_host(number_at(&before, place));
        control[place..place + 4].copy_from_slice(&host.to_le_bytes());
    }
    (control != before).then_some(control)
}

/// Tells the program how much of each of `count` messages was sent.
pub(super) fn tell_lengths(tid: i32, from: u64, to: u64, count: u64) -> io::Result<()> {
    for n in 0..count {
        let at = n * STRIDE as u64 + LENGTH;
        let mut length = [0; 4];
        read_exact(tid, from + at, &mut length)?;
        write_all(tid, to.wrapping_add(at), &length)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let len = (CONTROL_HEADER + data.len()) as u64;
        let mut all = [&len.to_le_bytes()[..], &level.to_le_bytes(), &kind.to_le_bytes()].concat();
        all.extend_from_slice(data);
        all.resize(all.len().next_multiple_of(8), 0);
        all
    }

    #[test]
    fn numbers_are_found_among_other_things() {
        let rights = message(libc::SOL_SOCKET, libc::SCM_RIGHTS, &[1; 12]);
        let sender = message(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &[7; 12]);
        let other = message(libc::IPPROTO_IP, libc::SCM_CREDENTIALS, &[7; 12]);
        let all = [rights.clone(), sender.clone(), other, sender.clone()].concat();
        assert_eq!(places(&all), [rights.len() + 16, all.len() - sender.len() + 16]);
        assert_eq!(number_at(&all, rights.len() + 16), 0x0707_0707);
    }

    #[test]
    fn damaged_control_messages_have_no_end_without_sense() {
        let sender = message(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &[7; 12]);
        for len in [0, 15, 19, 1000, u64::MAX] {
            let mut broken = sender.clone();
            broken[..8].copy_from_slice(&len.to_le_bytes());
            assert_eq!(places(&broken), [0; 0], "{len}");
        }
        for len in 0..sender.len() - 4 {
            assert_eq!(places(&sender[..len]), [0; 0], "{len}");
        }
        assert_eq!(places(&[sender.clone(), vec![0; 16]].concat()), [16]);
    }
}
