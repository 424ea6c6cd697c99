//! A session of a job that has no namespaces here (see [`crate::syscalls::translate`]).

use std::collections::BTreeSet;
use std::io;

use nix::unistd::{getpgid, getsid, Pid};

use super::Session;
use crate::syscalls::translate::{self, numbers, Call, Caller, Entry};
use crate::syscalls::AtExit;
use crate::tracer::{raw, stop, Stop};

impl Session {
    /// A stopped thread is about to run here, whatever becomes of its supervisor; one whose calls
    /// are translated ends with it, because they would fail.
    ///
    /// # Errors
    /// `ESRCH` when the thread is gone.
    pub fn runs_here(&self, tid: i32) -> io::Result<()> {
        match self.translation {
            Some(_) => raw::bind_to_tracer(tid),
            None => raw::set_exitkill(tid, false),
        }
    }

    /// A thread at the entry of a call that may carry numbers: what is to be done when it
    /// returns.
    pub(super) fn translate(&self, tid: i32) -> io::Result<Option<Box<Call>>> {
        let Some(translation) = &self.translation else { return Ok(None) };
        let regs = raw::regs(tid)?;
        let pid = self.tasks.get(&tid).map_or(tid, |task| task.pid);
        let processes = || self.processes();
        let caller = Caller { tid, pid, processes: &processes };
        Ok(match translation.at_entry(caller, &regs)? {
            Entry::Watch(call) => Some(call),
            Entry::Native | Entry::Answer(_) => None,
        })
    }

    /// A new thread gets its number in the job.
    pub(super) fn number(&mut self, tid: i32) {
        if self.translation.is_none() {
            return;
        }
        numbers::born(tid);
        if numbers::are_many() {
            let pids = self.processes().into_iter().map(|pid| Some(Pid::from_raw(pid)));
            let used: BTreeSet<i32> = pids
                .flat_map(|pid| [getpgid(pid), getsid(pid)])
                .filter_map(|number| number.ok().map(Pid::as_raw))
                .collect();
            numbers::sweep(&used);
        }
    }

    /// A thread was made: its number goes where the call wants it, in the caller's memory now, in
    /// its own at its first stop.
    pub(super) fn note_birth(&mut self, creator: i32, new: i32) {
        let Some((parent, child)) = self.birth(creator) else { return };
        if let Err(e) = translate::write_number(creator, parent, new) {
            tracing::debug!("number of the new thread {new}: {e}");
        }
        self.births.insert(new, child);
    }

    /// Where the number is written of a thread that this one is about to make.
    fn birth(&self, creator: i32) -> Option<(u64, u64)> {
        match &self.tasks.get(&creator)?.at_exit {
            Some(AtExit::Translated(call)) => call.birth(),
            _ => None,
        }
    }

    /// A stop that may be the first of a new thread, of which its creator has to tell before it
    /// goes on.
    pub(super) fn first_stop(&mut self, tid: i32) -> io::Result<()> {
        let mut pause = stop::Backoff::default();
        while self.tasks.get(&tid).is_some_and(|task| !task.announced) {
            let creators: Vec<i32> =
                self.tasks.keys().copied().filter(|task| self.birth(*task).is_some()).collect();
            if creators.is_empty() {
                break;
            }
            for creator in creators {
                if let Ok(Some(wait)) = stop::wait(creator, false) {
                    // Who waits for a stop of it has not seen this one.
                    if !matches!(wait.stop, Stop::Exited(_)) {
                        let _ = raw::interrupt(creator);
                    }
                    self.take(wait)?;
                }
            }
            pause.rest();
        }
        self.settle_birth(tid);
        Ok(())
    }

    fn settle_birth(&mut self, tid: i32) {
        let Some(at) = self.births.remove(&tid) else { return };
        if let Err(e) = translate::write_number(tid, at, tid) {
            tracing::debug!("number of the new thread {tid}: {e}");
        }
    }

    /// All threads are stopped, new ones too.
    pub fn settle_births(&mut self) {
        let all: Vec<i32> = self.births.keys().copied().collect();
        all.into_iter().for_each(|tid| self.settle_birth(tid));
    }

    /// A thread gets this signal (0: none) from one that the job knows by another number.
    pub(super) fn tell_sender(&self, tid: i32, signal: i32) -> io::Result<()> {
        if signal == 0 || self.translation.is_none() {
            return Ok(());
        }
        match translate::deliver(tid) {
            // It is sent anew, by the supervisor.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }
}
