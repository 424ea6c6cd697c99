//! Signal actions and pending signals (signal(7)).

use super::{decode, encode, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Signals;
use crate::capabilities::Capability;
use crate::migrate::image::{ProcessImage, ThreadImage};
use crate::syscalls::translate::{numbers, signal_to_host, signal_to_job};
use crate::tracer::inject::{comes_with_trap, sigbit, Arg, Program};
use crate::tracer::raw::{self, number_of as number};

/// `struct kernel_sigaction` of x86-64: handler, flags, restorer, mask.
const ACTION_LEN: usize = 32;
const SIGNALS: i32 = 64;

/// sigaction(2) of all 64 signals, shared by the threads.
pub struct Actions;

impl Part for Actions {
    fn name(&self) -> &'static str {
        "sigactions"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const { &[Capability::moves(Signals, "signal-actions", "signal actions")] }
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }
    fn ask(&self, _view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let rows: Vec<_> = (1..=SIGNALS)
            .map(|signal| {
                let at = program.data(&[0; ACTION_LEN]);
                let args = [Arg::Num(signal as u64), Arg::Num(0), Arg::Data(at), Arg::Num(8)];
                (program.call(libc::SYS_rt_sigaction, "rt_sigaction", &args), at)
            })
            .collect();
        Ok(Box::new(move |_, outcome| {
            let mut state = Vec::with_capacity(SIGNALS as usize * ACTION_LEN);
            for (row, at) in rows {
                outcome.get(row)?;
                state.extend_from_slice(outcome.data(at));
            }
            Ok(state)
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        if state.len() != SIGNALS as usize * ACTION_LEN {
            return Err(PartError::State("sigactions"));
        }
        for (signal, action) in (1..=SIGNALS).zip(state.chunks(ACTION_LEN)) {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                let at = program.data(action);
                let args = [Arg::Num(signal as u64), Arg::Data(at), Arg::Num(0), Arg::Num(8)];
                program.call(libc::SYS_rt_sigaction, "rt_sigaction", &args);
            }
        }
        Ok(())
    }
}

/// Signals queued for a thread, and with the first thread those of the process, each with its
/// siginfo (PTRACE_PEEKSIGINFO). They are queued again by the thread itself, which is the
/// only one that may give any si_code (rt_sigqueueinfo(2)).
pub struct Pending;

#[derive(serde::Serialize, serde::Deserialize)]
struct Queued {
    own: Vec<Vec<u8>>,
    process: Vec<Vec<u8>>,
}

/// The siginfos of all signals of an image that its first thread had pending.
pub(crate) fn captured(image: &ProcessImage) -> Vec<Vec<u8>> {
    image.threads.first().map(queued).unwrap_or_default()
}

fn queued(thread: &ThreadImage) -> Vec<Vec<u8>> {
    let pending = thread.parts.iter().find(|p| p.name == Pending.name());
    let queued = pending.and_then(|p| decode::<Queued>(Pending.name(), &p.state).ok());
    queued.map(|q| q.own.into_iter().chain(q.process).collect()).unwrap_or_default()
}

/// Takes the signals that `is_gone` tells out of what an image has of a thread.
pub(super) fn without(
    thread: &mut ThreadImage,
    is_gone: impl Fn(&[u8]) -> bool,
) -> Result<(), PartError> {
    let pending = thread.parts.iter_mut().find(|p| p.name == Pending.name());
    let Some(pending) = pending else { return Ok(()) };
    let mut queued: Queued = decode(Pending.name(), &pending.state)?;
    queued.own.retain(|info| !is_gone(info));
    queued.process.retain(|info| !is_gone(info));
    pending.state = encode(Pending.name(), &queued)?;
    Ok(())
}

/// Takes one entry like `info` out of `known`; false when there is none.
pub(crate) fn forget(known: &mut Vec<Vec<u8>>, info: &raw::SigInfo) -> bool {
    let at = known.iter().position(|k| k.as_slice() == info);
    at.map(|at| known.swap_remove(at)).is_some()
}

/// Is the signal of a timer of the process? POSIX timers say so; what comes from the kernel with
/// the signal of an interval timer is of one (it_real_fn, kernel/time/itimer.c).
pub(crate) fn is_of_timer(info: &raw::SigInfo) -> bool {
    const SI_KERNEL: i32 = 0x80;
    let of_interval = [libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF].contains(&number(info));
    match raw::code_of(info) {
        libc::SI_TIMER => true,
        SI_KERNEL => of_interval,
        _ => false,
    }
}

/// Has a timer expired since the signals were asked for that `image` has of the thread? Then it
/// is in neither state: its signal was not there yet, and its time is not there any more.
///
/// # Errors
/// When the thread is gone.
pub(crate) fn timer_has_expired_since(view: &View, image: &ThreadImage) -> Result<bool, PartError> {
    let mut known = queued(image);
    let mut now = in_queue(view, false)?;
    if view.pid == view.tid {
        now.extend(in_queue(view, true)?);
    }
    Ok(now.iter().any(|info| !forget(&mut known, info) && is_of_timer(info)))
}

pub(super) fn in_queue(view: &View, shared: bool) -> Result<Vec<raw::SigInfo>, PartError> {
    raw::queued_signals(view.tid, shared).map_err(|source| PartError::Io {
        what: format!("signals queued for thread {}", view.tid),
        source,
    })
}

/// Is SIGTRAP ignored, or will the thread have a signal pending that [`comes_with_trap`]? Then
/// no trap may end the calls that tell it so.
pub(crate) fn traps_matter(image: &ProcessImage, thread: &ThreadImage) -> bool {
    let at = (libc::SIGTRAP as usize - 1) * ACTION_LEN;
    let actions = image.parts.iter().find(|p| p.name == Actions.name());
    let handler = actions.and_then(|p| p.state.get(at..at + 8));
    let ignored = (libc::SIG_IGN as u64).to_le_bytes();
    handler == Some(&ignored[..]) || queued(thread).iter().any(|info| comes_with_trap(info))
}

impl Part for Pending {
    fn name(&self) -> &'static str {
        "pending"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::moves(
                Signals,
                "signals-pending",
                "pending signals, in their order, with their values",
            )]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn ask(&self, view: &View, _program: &mut Program) -> Result<Answer, PartError> {
        let queued = |shared| in_queue(view, shared).map(|all| with_bare(view, shared, all));
        let process = if view.pid == view.tid { queued(true)? } else { Vec::new() };
        let state = encode(self.name(), &Queued { own: queued(false)?, process })?;
        Ok(Box::new(move |_, _| Ok(state)))
    }
    fn tell(&self, state: &[u8], to: &Told, program: &mut Program) -> Result<(), PartError> {
        let queued: Queued = decode(self.name(), state)?;
        if queued.own.iter().chain(&queued.process).any(|info| info.len() != 128) {
            return Err(PartError::State(self.name()));
        }
        let (pid, tid) = match numbers::are_own() {
            true => (to.pid, to.tid),
            false => (to.job_pid, to.job_tid),
        };
        let (pid, tid) = (Arg::Num(pid as u64), Arg::Num(tid as u64));
        let mut queued = queued;
        for info in queued.process.iter_mut().chain(&mut queued.own) {
            signal_to_host(info);
        }
        for info in queued.process {
            let at = Arg::Data(program.data(&info));
            let args = [pid, Arg::Num(number(&info) as u64), at];
            program.call(libc::SYS_rt_sigqueueinfo, "rt_sigqueueinfo", &args);
        }
        for info in queued.own {
            let at = Arg::Data(program.data(&info));
            let args = [pid, tid, Arg::Num(number(&info) as u64), at];
            program.call(libc::SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo", &args);
        }
        Ok(())
    }
}

/// Adds signals that are pending without a queue entry (the kernel drops the siginfo when
/// RLIMIT_SIGPENDING is reached, send_signal in kernel/signal.c).
fn with_bare(view: &View, shared: bool, queued: Vec<raw::SigInfo>) -> Vec<Vec<u8>> {
    let mask = view.hex(if shared { "ShdPnd:" } else { "SigPnd:" });
    let mut all: Vec<Vec<u8>> = queued.iter().map(|info| info.to_vec()).collect();
    for signal in 1..=SIGNALS {
        let known = all.iter().any(|info| number(info) == signal);
        if mask & sigbit(signal) != 0 && !known && signal != libc::SIGKILL {
            let mut info = vec![0u8; 128];
            info[..4].copy_from_slice(&signal.to_le_bytes());
            all.push(info);
        }
    }
    all.retain(|info| number(info) != libc::SIGKILL);
    all.iter_mut().for_each(|info| signal_to_job(info));
    all
}
