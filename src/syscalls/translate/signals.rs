//! Numbers in what comes with a signal (siginfo of sigaction(2)).

use std::io;

use super::numbers;
use crate::tracer::raw::{self, code_of, number_of};

/// Where `si_pid` is in a siginfo.
pub(super) const PID: u64 = 16;

/// Has the kernel written a number there? What rt_sigqueueinfo(2) sends is the sender's own, who
/// knows the job's numbers.
fn has_number(info: &[u8]) -> bool {
    let of_child = number_of(info) == libc::SIGCHLD
        && (libc::CLD_EXITED..=libc::CLD_CONTINUED).contains(&code_of(info));
    of_child || [libc::SI_USER, libc::SI_TKILL, libc::SI_MESGQ].contains(&code_of(info))
}

fn change(info: &mut [u8], number: impl FnOnce(i32) -> i32) {
    let at = PID as usize..PID as usize + 4;
    if !has_number(info) {
        return;
    }
    if let Some(place) = info.get_mut(at) {
        let now = place.iter().rev().fold(0, |n, byte| n << 8 | i32::from(*byte));
        place.copy_from_slice(&number(now).to_le_bytes());
    }
}

/// What is read of a signalfd (`struct signalfd_siginfo`), with the sender at `sender`, as the job
/// shall see it.
pub(super) fn of_signalfd_to_job(read: &mut [u8], sender: usize) {
    let mut info = [0; 128];
    let own = PID as usize..PID as usize + 4;
    let Some(place) = read.get(sender..sender + 4) else { return };
    info[own.clone()].copy_from_slice(place);
    // Signal, errno and code come first in both, all of them whole words.
    info[..12].copy_from_slice(&read[..12]);
    to_job(&mut info);
    read[sender..sender + 4].copy_from_slice(&info[own]);
}

/// A siginfo as the job shall see it.
pub fn to_job(info: &mut [u8]) {
    change(info, |host| match host {
        GONE.. => host - GONE,
        _ => numbers::to_job(host),
    });
}

/// A siginfo of the job's as the kernel would have it here. A sender who is gone has no number here:
/// it is told by one that no process has.
pub fn to_host(info: &mut [u8]) {
    change(info, |job| match numbers::to_host(job) {
        numbers::NOBODY => job.saturating_add(GONE),
        host => host,
    });
}

/// Above every `kernel.pid_max`: senders who are gone, by their number in the job.
const GONE: i32 = 1 << 30;

/// The signal that a thread is about to get tells of the job's numbers.
///
/// # Errors
/// `ESRCH` when the thread is gone.
pub fn deliver(tid: i32) -> io::Result<()> {
    let mut info = raw::siginfo(tid)?;
    let before = info;
    to_job(&mut info);
    if info == before {
        return Ok(());
    }
    raw::set_siginfo(tid, &info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::image::Clocks;

    fn info(signal: i32, code: i32, pid: i32) -> Vec<u8> {
        let mut info = vec![0; 128];
        info[..4].copy_from_slice(&signal.to_le_bytes());
        info[8..12].copy_from_slice(&code.to_le_bytes());
        info[16..20].copy_from_slice(&pid.to_le_bytes());
        info
    }

    #[test]
    fn what_a_signalfd_tells_has_its_sender_elsewhere() {
        numbers::begin(Clocks::default());
        numbers::bind(10, 5000);
        for (code, seen) in [(libc::SI_USER, 10_i32), (libc::SI_QUEUE, 5000)] {
            let mut read = [0; 128];
            read[..4].copy_from_slice(&libc::SIGUSR1.to_le_bytes());
            read[8..12].copy_from_slice(&code.to_le_bytes());
            read[12..16].copy_from_slice(&5000_i32.to_le_bytes());
            of_signalfd_to_job(&mut read, 12);
            assert_eq!(read[12..16], seen.to_le_bytes(), "{code}");
        }
        numbers::end();
    }

    #[test]
    fn a_sender_who_is_gone_keeps_its_number() {
        numbers::begin(Clocks::default());
        let mut it = info(libc::SIGCHLD, libc::CLD_EXITED, 77);
        to_host(&mut it);
        assert_ne!(it, info(libc::SIGCHLD, libc::CLD_EXITED, 77));
        to_job(&mut it);
        assert_eq!(it, info(libc::SIGCHLD, libc::CLD_EXITED, 77));
        let mut nobody = info(libc::SIGUSR1, libc::SI_USER, 0);
        to_host(&mut nobody);
        assert_eq!(nobody, info(libc::SIGUSR1, libc::SI_USER, 0));
        numbers::end();
    }

    #[test]
    fn only_numbers_of_the_kernel_are_changed() {
        numbers::begin(Clocks::default());
        numbers::bind(10, 5000);
        let cases = [
            (libc::SIGUSR1, libc::SI_USER, 10),
            (libc::SIGUSR1, libc::SI_TKILL, 10),
            (libc::SIGCHLD, libc::CLD_EXITED, 10),
            (libc::SIGUSR1, libc::SI_QUEUE, 5000),
            (libc::SIGALRM, libc::SI_TIMER, 5000),
            (libc::SIGSEGV, 1, 5000),
        ];
        for (signal, code, seen) in cases {
            let mut it = info(signal, code, 5000);
            to_job(&mut it);
            assert_eq!(it, info(signal, code, seen), "{signal} {code}");
            to_host(&mut it);
            assert_eq!(it, info(signal, code, 5000), "{signal} {code}");
        }
        numbers::end();
    }
}
