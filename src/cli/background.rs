//! Supervisors that nobody's shell waits for, and who watches one.
//!
//! ```text
//! vosrun ─fork─► session of its own ─fork─► supervisor
//!    ▲  ◄──────── it has begun, or why not ────┤
//!    └  ◄──────── the job's exit code ─────────┘
//! ```
//! `vosrun --attach PID` that waits only watches: signals sent to it are passed on, the
//! terminal's keys are its own. So ^C ends the watching, wherever the job is.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{getpgid, getpgrp, setsid, Pid};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::human::clean;
use super::out::{print, print_json};
use super::run::{failure, let_go_of_stdio, supervise, Failure, FAILED, LOST};
use crate::ids::JobId;
use crate::supervisor::signals::{Arrived, Reach, Signals};
use crate::supervisor::Supervisor;
use crate::tracer::raw;

/// What a supervisor in the background says first.
#[derive(Debug, Serialize, Deserialize)]
enum Begun {
    Failed { exit: u8, sentence: String },
    Supervises { supervisor: i32, process: i32, job: Named },
}

/// The job that a supervisor in the background has.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Named {
    name: String,
    id: JobId,
}

impl Named {
    /// Prints name and id.
    pub(super) fn announce(&self, json: bool) -> anyhow::Result<()> {
        match json {
            true => print_json(json!({ "name": self.name, "id": self.id.hex() })),
            false => print(&format!("{} {}\n", clean(&self.name), self.id)),
        }
    }
}

/// Runs `begin` and then supervises in the background. Prints the job's name and id when that
/// has begun, and gives vosrun's exit code.
pub(super) fn detach(
    begin: impl FnOnce() -> Result<Supervisor, Failure>,
    json: bool,
) -> Result<u8, Failure> {
    let (begun, _end) = start(begin)?;
    if let Begun::Supervises { job, .. } = heard(begun)? {
        job.announce(json)?;
    }
    Ok(0)
}

/// As [`detach`], but waits for the job and gives its exit code. `announce` gets the job.
pub(super) fn watch(
    begin: impl FnOnce() -> Result<Supervisor, Failure>,
    announce: impl FnOnce(&Named) -> anyhow::Result<()>,
) -> Result<u8, Failure> {
    let mut signals = Signals::take_over().context("blocking signals")?;
    let (begun, end) = start(begin)?;
    signals.start_witness()?;
    let watched = heard(begun).and_then(|begun| {
        let Begun::Supervises { supervisor, process, job } = begun else { return Ok(FAILED) };
        announce(&job)?;
        Ok(Watch { signals: &mut signals, supervisor, process, name: job.name, end }.run()?)
    });
    signals.dismiss_witness();
    watched
}

/// The supervisor began, or did not: its sentence is the failure's.
fn heard(mut begun: PipeReader) -> Result<Begun, Failure> {
    let mut bytes = Vec::new();
    begun.read_to_end(&mut bytes).context("waiting for the supervisor in the background")?;
    match postcard::from_bytes(&bytes) {
        Ok(Begun::Failed { exit, sentence }) => Err(failure(exit, sentence)),
        Ok(begun) => Ok(begun),
        Err(_) => Err(failure(FAILED, "the supervisor in the background has died")),
    }
}

/// Starts the supervisor in a session of its own. Gives what it says first, and where its exit
/// code comes.
fn start(
    begin: impl FnOnce() -> Result<Supervisor, Failure>,
) -> Result<(PipeReader, PipeReader), Failure> {
    let forked = || -> io::Result<_> {
        let (begun, say) = io::pipe()?;
        let (end, code) = io::pipe()?;
        if let Some(pid) = raw::fork()? {
            let _ = raw::wait4(pid, 0);
            return Ok((begun, end));
        }
        setsid()?;
        // Not a session leader, so that no terminal it opens becomes its own.
        if raw::fork()?.is_some() {
            raw::exit_now(0);
        }
        drop((begun, end));
        raw::exit_now(serve(begin, say, code).into())
    };
    Ok(forked().context("going to the background")?)
}

/// The supervisor's life.
fn serve(
    begin: impl FnOnce() -> Result<Supervisor, Failure>,
    say: PipeWriter,
    mut code: PipeWriter,
) -> u8 {
    let mut say = Some(say);
    let supervised = begin().and_then(|supervisor| {
        tell(
            &mut say,
            &Begun::Supervises {
                supervisor: std::process::id() as i32,
                process: supervisor.session.root,
                job: Named { name: supervisor.job.meta.name.clone(), id: supervisor.job.id },
            },
        );
        let_go_of_stdio().context("/dev/null")?;
        let _ = std::env::set_current_dir("/");
        supervise(supervisor)
    });
    let exit = supervised.unwrap_or_else(|Failure { exit, sentence }| {
        tracing::error!("{sentence}");
        tell(&mut say, &Begun::Failed { exit, sentence });
        exit
    });
    // Who watches may be gone.
    let _ = code.write_all(&[exit]);
    exit
}

/// The first word, once. The process in the foreground may have been killed.
fn tell(say: &mut Option<PipeWriter>, begun: &Begun) {
    if let (Some(mut say), Ok(bytes)) = (say.take(), postcard::to_stdvec(begun)) {
        let _ = say.write_all(&bytes);
    }
}

/// Watches a supervisor in the background.
struct Watch<'s> {
    signals: &'s mut Signals,
    supervisor: i32,
    /// The adopted process, or what stands in for it.
    process: i32,
    name: String,
    end: PipeReader,
}

impl Watch<'_> {
    /// Waits for the job's end. Gives vosrun's exit code.
    fn run(mut self) -> anyhow::Result<u8> {
        loop {
            if let Some(signal) = self.take_signals()? {
                eprintln!("vosrun: {} goes on in the background", self.name);
                return Ok(128 + signal as u8);
            }
            let mut wait = [
                PollFd::new(self.signals.fd().as_fd(), PollFlags::POLLIN),
                PollFd::new(self.end.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut wait, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                other => drop(other.context("poll")?),
            }
            if wait[1].any().unwrap_or(false) {
                return self.ended();
            }
        }
    }

    fn ended(mut self) -> anyhow::Result<u8> {
        let mut code = [FAILED];
        if self.end.read(&mut code).context("the supervisor's last word")? == 0 {
            eprintln!(
                "vosrun: the supervisor of {0} has died; vosrun adopt {0} takes it up again",
                self.name
            );
        } else if code[0] == LOST {
            eprintln!("vosrun: {} was lost with the node that it ran on (VOS-LOST)", self.name);
        }
        Ok(code[0])
    }

    /// Takes vosrun's own signals. Gives the one that ends the watching.
    fn take_signals(&mut self) -> anyhow::Result<Option<i32>> {
        let mut leave = None;
        let mut arrived = self.signals.read().context("signalfd")?;
        while !(arrived.is_empty() && self.signals.is_settled()) {
            for (signal, reach) in self.signals.decide(arrived).context("wait4")? {
                leave = leave.or(self.obey(signal, reach)?);
            }
            arrived = self.signals.read().context("signalfd")?;
        }
        Ok(leave)
    }

    fn obey(&self, arrived: Arrived, reach: Reach) -> anyhow::Result<Option<i32>> {
        let group = getpgid(Some(Pid::from_raw(self.process)));
        if reach == Reach::Group && group.is_ok_and(|group| group == getpgrp()) {
            // The job has it.
            return Ok(None);
        }
        if !arrived.is_from_kernel() {
            if let Err(e) = arrived.forward(self.supervisor) {
                tracing::warn!("signal {} for {}: {e}", arrived.signal, self.name);
            }
            return Ok(None);
        }
        match arrived.signal {
            libc::SIGINT | libc::SIGQUIT | libc::SIGHUP => Ok(Some(arrived.signal)),
            libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => {
                Signals::stop_self(arrived.signal).context("stopping")?;
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}
