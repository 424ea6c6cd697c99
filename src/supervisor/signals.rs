//! Signals sent to vosrun itself, and whether the job has them already.
//!
//! vosrun and a launched job are in one process group. A signal sent to the group (^C, a
//! shell's `kill %1`) reaches both; one sent to vosrun's pid must be passed on. The two look
//! the same to vosrun, and what the job did with its copy leaves no trace when it takes
//! signals by sigwait(3) or signalfd(2). So there is a *witness*: a traced child in the
//! same group that does nothing. It has got the signal exactly when the group has.
//!
//! ```text
//! signalfd: X from S ─► barrier ─► did the witness get X from S? ─ yes ─► the job has it
//!                                                                └ no ──► kill(job, X)
//! ```
//! kill(2) to a group holds tasklist_lock for reading from its first target to its last
//! (kill_something_info, and tty_io for the terminal's signals); setpgid(2) takes it for
//! writing. A setpgid that changes nothing is therefore a barrier: after it, every group
//! signal of which vosrun has read its copy is at the witness as well.
//!
//! Standard signals merge while they are pending: one sent to vosrun alone in the
//! microseconds in which vosrun has not yet read the same one sent to the group is one
//! signal, as it is for any process that is slow to take its signals.

use std::io;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{siginfo, SfdFlags, SignalFd};
use nix::unistd::{getpgrp, getpid, pause, setpgid, Pid};

use crate::tracer::{attach::AttachError, launch, raw, stop, Stop};

/// Value of the SIGCONT that [`super::wake`] sends: serve the control socket, but leave
/// the job stopped.
pub(super) const WAKE: u64 = 0x766f_7372;

/// si_code of kill(2), of sigqueue(3) and of the kernel's own signals (sigaction(2)).
const SI_USER: i32 = 0;
const SI_QUEUE: i32 = -1;
const SI_KERNEL: i32 = 0x80;

/// A signal that vosrun got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    pub signal: i32,
    code: i32,
    sender: i32,
    /// What came with sigqueue(3).
    value: u64,
}

/// Whom else a signal has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// vosrun's process group (or every process: kill(-1)).
    Group,
    /// vosrun alone.
    Alone,
}

impl Arrived {
    /// Sent by the kernel: the terminal's keys, hangup, window size.
    #[must_use]
    pub fn is_from_kernel(&self) -> bool {
        self.code == SI_KERNEL
    }

    /// Sent by [`super::wake`].
    #[must_use]
    pub fn is_wake(&self) -> bool {
        self.signal == libc::SIGCONT && self.code == SI_QUEUE && self.value == WAKE
    }

    /// Sends the same signal to `pid`, with its value if it has one.
    ///
    /// # Errors
    /// As kill(2).
    pub fn forward(&self, pid: i32) -> io::Result<()> {
        match self.code {
            SI_QUEUE => raw::queue(pid, self.signal, self.value as usize),
            _ => raw::kill(pid, self.signal),
        }
    }

    /// Of a SIGCHLD: the thread that it is about. A process may have sent it, and when there is no
    /// memory for more than the signal's number, it says nothing: 0.
    fn child(&self) -> i32 {
        if self.code > SI_USER {
            self.sender
        } else {
            0
        }
    }

    /// Real-time signals are queued; they never merge.
    fn is_realtime(&self) -> bool {
        self.signal >= libc::SIGRTMIN()
    }

    fn matches(&self, seen: &Seen) -> bool {
        (self.signal, self.code, self.sender) == (seen.signal, seen.code, seen.sender)
    }
}

impl From<siginfo> for Arrived {
    fn from(info: siginfo) -> Self {
        Self {
            signal: info.ssi_signo as i32,
            code: info.ssi_code,
            sender: info.ssi_pid as i32,
            value: info.ssi_ptr,
        }
    }
}

/// A signal that the witness got.
#[derive(Debug, Clone, Copy)]
struct Seen {
    signal: i32,
    code: i32,
    sender: i32,
    /// It was there before vosrun's own signals were read. Otherwise vosrun's copy may have
    /// been read while the witness's was pending, and this one stands for more than one.
    early: bool,
    /// A barrier lies between this and now, so that vosrun's copy can be read by now.
    settled: bool,
}

/// All signals of vosrun, blocked and read from a signalfd.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    inherited: SigSet,
    witness: Option<i32>,
    seen: Vec<Seen>,
    interrupted: bool,
    /// Whom SIGCHLD was about, of each that was read.
    children: Vec<i32>,
}

impl Signals {
    /// Blocks every signal; from now on they are read.
    ///
    /// # Errors
    /// When signalfd(2) fails.
    pub fn take_over() -> io::Result<Self> {
        let inherited = SigSet::thread_get_mask()?;
        let all = SigSet::all();
        all.thread_block()?;
        // Ignored signals are kept from a signalfd unless they are blocked; SIGPIPE is
        // ignored by Rust's runtime and would be again after an exec.
        raw::set_default(libc::SIGPIPE)?;
        let fd = SignalFd::with_flags(&all, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let (seen, children) = (Vec::new(), Vec::new());
        Ok(Self { fd, inherited, witness: None, seen, interrupted: false, children })
    }

    /// The mask that vosrun was started with.
    #[must_use]
    pub fn inherited_mask(&self) -> &SigSet {
        &self.inherited
    }

    /// The descriptor to poll.
    #[must_use]
    pub fn fd(&self) -> &SignalFd {
        &self.fd
    }

    /// Starts the witness.
    ///
    /// # Errors
    /// When it cannot be forked or seized.
    pub fn start_witness(&mut self) -> Result<(), AttachError> {
        let parent = getpid();
        self.witness = Some(launch::fork_seized(|| stand_by(parent))?);
        Ok(())
    }

    /// The witness's pid, while it lives.
    #[must_use]
    pub fn witness(&self) -> Option<i32> {
        self.witness
    }

    /// Ends the witness and waits for it.
    pub fn dismiss_witness(&mut self) {
        if let Some(pid) = self.witness.take() {
            let _ = raw::kill(pid, libc::SIGKILL);
            while !matches!(stop::wait(pid, true), Ok(Some(w)) if matches!(w.stop, Stop::Exited(_)))
            {
                if raw::kill(pid, 0).is_err() {
                    break;
                }
            }
        }
    }

    /// Signals that have come since the last call, without SIGCHLD and vosrun's own
    /// SIGPIPE.
    ///
    /// # Errors
    /// When the signalfd cannot be read or the witness cannot be waited for.
    pub fn read(&mut self) -> io::Result<Vec<Arrived>> {
        self.hear_witness()?;
        self.seen.iter_mut().for_each(|s| s.early = true);
        let mut all = Vec::new();
        while let Some(info) = self.fd.read_signal()? {
            all.push(Arrived::from(info));
        }
        self.interrupted |= all.iter().any(|a| a.signal == libc::SIGINT && a.is_from_kernel());
        let of_children = all.iter().filter(|a| a.signal == libc::SIGCHLD);
        self.children.extend(of_children.map(Arrived::child));
        let own = getpid().as_raw();
        all.retain(|a| a.signal != libc::SIGCHLD && (a.sender != own || a.code != SI_USER));
        Ok(all)
    }

    /// The threads that the SIGCHLDs read since the last call were about: 0 for one that does not
    /// say it.
    pub fn take_children(&mut self) -> impl Iterator<Item = i32> {
        std::mem::take(&mut self.children).into_iter()
    }

    /// Takes a stop of the witness: it goes on without the signal.
    pub fn witness_stopped(&mut self, pid: i32, stop: Stop) {
        match stop {
            Stop::Exited(_) => self.witness = None,
            Stop::Signal(signal) => {
                if let Ok(info) = raw::siginfo(pid) {
                    let word = |at: usize| i32::from_ne_bytes([0, 1, 2, 3].map(|i| info[at + i]));
                    // siginfo_t: si_signo, si_errno, si_code, padding, si_pid.
                    let (code, sender) = (word(8), word(16));
                    self.seen.push(Seen { signal, code, sender, early: false, settled: false });
                }
                let _ = raw::cont(pid, 0);
            }
            _ => drop(raw::cont(pid, 0)),
        }
    }

    /// Nothing seen by the witness is left to be matched.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.seen.is_empty()
    }

    /// Decides for each of `arrived`, which [`Signals::read`] has given, whom it reached.
    ///
    /// # Errors
    /// When the witness cannot be waited for.
    pub fn decide(&mut self, arrived: Vec<Arrived>) -> io::Result<Vec<(Arrived, Reach)>> {
        barrier();
        self.hear_witness()?;
        let decided = arrived.into_iter().map(|a| (a, self.reach(&a))).collect();
        // What was seen before an earlier barrier and has no counterpart by now was merged
        // with another signal at vosrun.
        self.seen.retain(|s| !s.settled);
        self.seen.iter_mut().for_each(|s| s.settled = true);
        Ok(decided)
    }

    /// A signal to the group that came while the same one, sent to vosrun alone, was pending: the
    /// witness has got it.
    #[must_use]
    pub fn merged_with(&self, alone: &Arrived) -> Option<Arrived> {
        let of_group = |s: &&Seen| s.signal == alone.signal && !alone.matches(s);
        let seen = self.seen.iter().find(of_group)?;
        Some(Arrived { signal: seen.signal, code: seen.code, sender: seen.sender, value: 0 })
    }

    fn reach(&mut self, arrived: &Arrived) -> Reach {
        if self.witness.is_none() {
            return if arrived.is_from_kernel() { Reach::Group } else { Reach::Alone };
        }
        match self.seen.iter().position(|s| arrived.matches(s)) {
            None => Reach::Alone,
            Some(at) => {
                if self.seen[at].early || arrived.is_realtime() {
                    self.seen.remove(at);
                }
                Reach::Group
            }
        }
    }

    /// Waits until nothing is pending at the witness. It blocks no signal, so each makes it
    /// stop without delay.
    fn hear_witness(&mut self) -> io::Result<()> {
        while let Some(pid) = self.witness {
            let pending = has_pending(pid);
            match stop::wait(pid, pending) {
                Ok(Some(wait)) => self.witness_stopped(pid, wait.stop),
                Ok(None) => break,
                Err(e) if e.raw_os_error() == Some(libc::ECHILD) => self.witness = None,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Stops vosrun itself by `signal`, as its shell expects of a stopped job, and returns
    /// when it is continued.
    ///
    /// # Errors
    /// When the signal cannot be raised.
    pub fn stop_self(signal: i32) -> io::Result<()> {
        if signal == libc::SIGSTOP {
            return raw::kill(getpid().as_raw(), signal);
        }
        Self::raise_default(signal)
    }

    /// Has the terminal's interrupt key been typed?
    #[must_use]
    pub fn was_interrupted(&mut self) -> bool {
        // The job may have died of it before it has come here, or before it was read here.
        barrier();
        if let Err(e) = self.read() {
            tracing::debug!("signals at the end: {e}");
        }
        self.interrupted
    }

    /// The default action of `signal` on vosrun itself; returns if that does not end it.
    ///
    /// # Errors
    /// When the signal cannot be raised.
    pub fn raise_default(signal: i32) -> io::Result<()> {
        raw::set_default(signal)?;
        let mut set = SigSet::empty();
        set.add(Signal::try_from(signal)?);
        raw::kill(getpid().as_raw(), signal)?;
        set.thread_unblock()?;
        Ok(set.thread_block()?)
    }
}

/// The witness: an idle process without descriptors that dies with its parent.
fn stand_by(parent: Pid) -> i32 {
    raw::close_from(0);
    let _ = prctl::set_name(c"vosrun-witness");
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = SigSet::empty().thread_set_mask();
    while nix::unistd::getppid() == parent {
        pause();
    }
    0
}

/// Waits for signals that are being sent to a group right now; see the module's text.
fn barrier() {
    match setpgid(Pid::from_raw(0), getpgrp()) {
        // A session leader is refused, but only after the lock was taken.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(e) => tracing::warn!("setpgid: {e}; signals may be passed on twice"),
    }
}

/// Has the process an undelivered signal (proc_pid_status(5), SigPnd and ShdPnd)?
fn has_pending(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let is_set = |line: &str| {
        let bits = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
        bits.is_some_and(|b| b.trim().bytes().any(|b| b != b'0'))
    };
    status.lines().any(is_set)
}
