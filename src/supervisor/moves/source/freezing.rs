//! The job stands still, and goes on again when it stays.

use anyhow::{Context, Result};

use super::super::{Mover, Side};
use super::outcome::{fd_stopped, own, part_stopped, stopped, Laps, Step1};
use crate::migrate::family;
use crate::migrate::freeze::{self, FreezeError, FrozenJob};
use crate::migrate::resource::creds::User;
use crate::migrate::resource::fd::pty::{self, queues::Taken};
use crate::migrate::resource::ipc::Id;
use crate::migrate::resource::View;
use crate::migrate::shares::Sharing;
use crate::migrate::skeleton::{own_clocks, Plan};
use crate::migrate::terminals;
use crate::proxy::{AwayState, StreamId};
use crate::supervisor::session::Session;
use crate::supervisor::End;

/// The frozen job and what must be undone if it does not go.
pub(in crate::supervisor::moves) struct Frozen {
    pub(in crate::supervisor::moves) job: FrozenJob,
    /// Away halves that were frozen.
    pub(super) states: Vec<AwayState>,
    /// Home halves were made for this move.
    pub(super) new_home: bool,
    /// Some more were made, these streams.
    pub(super) begun: Vec<StreamId>,
    /// Objects of System V IPC that nobody else uses, in this node's namespace.
    pub(super) ipc: Vec<Id>,
    /// POSIX message queues, likewise: their names.
    pub(super) queues: Vec<Vec<u8>>,
    /// Ptys of the job whose unread bytes were taken.
    pub(super) ptys: Vec<Taken>,
}

impl Mover {
    /// Node name and domain name as the job sees them: those of its home (uname(2)).
    pub(super) fn names(&self) -> Result<(String, String)> {
        if let Some(names) = &self.sup.job.meta.names {
            return Ok(names.clone());
        }
        let u = nix::sys::utsname::uname().context("uname")?;
        let domain = std::fs::read_to_string("/proc/sys/kernel/domainname").unwrap_or_default();
        let domain = if domain.trim() == "(none)" { "" } else { domain.trim() };
        Ok((u.nodename().to_string_lossy().into_owned(), domain.to_owned()))
    }

    /// The frame as the running job is now. One that has closed itself is frozen for it.
    pub(super) fn plan(&mut self, laps: &mut Laps) -> Step1<Plan> {
        match self.plan_once() {
            Err(_) if self.was_closed()? => {
                laps.freeze();
                self.plan_once()
            }
            plan => plan,
        }
    }

    fn plan_once(&self) -> Step1<Plan> {
        let root = self.sup.session.root;
        let view = View::read_process(root).map_err(own)?;
        let pids = self.pids();
        let sharing = Sharing::of(&self.settled(&pids));
        let members = family::members(&pids, &sharing).map_err(part_stopped)?;
        let (nodename, domainname) = self.names().map_err(own)?;
        let files = self.files(&pids).map_err(own)?;
        let terminals = terminals::of(&files, root).map_err(fd_stopped)?;
        let ptys = pty::has_any(&files.views.objects);
        let clocks = job_clocks(&self.sup.session).map_err(own)?;
        let user = User::of(&view).map_err(own)?.unwrap_or_else(User::own);
        let (bequests, programs) = Default::default();
        Ok(Plan {
            members,
            nodename,
            domainname,
            clocks,
            terminals,
            ptys,
            user,
            bequests,
            programs,
        })
    }

    /// Stops every thread.
    pub(in crate::supervisor::moves) fn freeze(&mut self) -> Step1<Frozen> {
        let session = &mut self.sup.session;
        let frozen = freeze::freeze(session);
        session.settle_births();
        let frozen = frozen.map_err(|failed| {
            let ways = session.ways_on(&failed.threads, &failed.scheduler_now);
            session.go_on_all(&ways);
            let e = failed.error;
            let code = match e {
                FreezeError::Exited(_) => "VOS-EXITED",
                FreezeError::LeaderGone(_) => "VOS-LEADER",
                FreezeError::Vfork(_) => "VOS-VFORK",
                _ => "VOS-SUPERVISOR",
            };
            stopped(11, code, e.to_string())
        });
        self.sup.end = self.sup.end.or(self.sup.session.ended.map(End::Exited));
        self.frozen = frozen.is_ok();
        let mut job = frozen?;
        // What a launched job makes is seen.
        let keys = self.sup.job.meta.attached || self.sup.session.handles.has_keys();
        job.processes.iter_mut().for_each(|process| process.keys = keys);
        let mut frozen = Frozen {
            job,
            states: Vec::new(),
            new_home: false,
            begun: Vec::new(),
            ipc: Vec::new(),
            queues: Vec::new(),
            ptys: Vec::new(),
        };
        if let Err(e) = self.open_up(&mut frozen.job) {
            self.thaw(&frozen);
            return Err(own(format!("{e:#}")));
        }
        Ok(frozen)
    }

    /// Ends a freeze that was only for looking.
    pub(super) fn thaw_early(&mut self) {
        if let Some(frozen) = self.early_freeze.take() {
            self.thaw(&frozen);
        }
    }

    /// The job goes on here as if nothing had happened.
    pub(in crate::supervisor::moves) fn thaw(&mut self, frozen: &Frozen) {
        let away = |state: &&AwayState| !frozen.new_home && !frozen.begun.contains(&state.stream);
        for state in frozen.states.iter().filter(away) {
            let put_back = self.relay(Side::Away, |relays, out| relays.unfreeze(state, out));
            if let Some(Err(e)) = put_back {
                tracing::error!("{e}");
            }
        }
        for pty in &frozen.ptys {
            if let Err(e) = pty.put_back() {
                tracing::error!("unread bytes of a pty are lost: {e}");
            }
        }
        if frozen.new_home {
            self.home = None;
        }
        // One that could not be frozen gave no state.
        self.relay(Side::Away, |relays, out| relays.thaw(out));
        for stream in &frozen.begun {
            self.streams.retain(|_, known| known != stream);
            if let Some(home) = &mut self.home {
                home.remove(*stream);
            }
        }
        for thread in frozen.job.threads() {
            if let Err(e) = self.sup.session.runs_here(thread.tid) {
                tracing::debug!("thread {}: {e}", thread.tid);
            }
        }
        let ways = self.sup.session.ways_on(frozen.job.threads(), &frozen.job.scheduler_now);
        // Nothing of it is looked into from here on.
        if let Err(e) = self.close_up(&frozen.job) {
            tracing::error!("{e:#}");
        }
        self.sup.session.go_on_all(&ways);
        self.take_held();
    }
}

/// The job's clocks now.
pub(super) fn job_clocks(session: &Session) -> std::io::Result<crate::migrate::image::Clocks> {
    use crate::migrate::skeleton::offsets;
    let mut now = own_clocks()?;
    let ahead = match &session.translation {
        Some(translation) => (translation.ahead.monotonic, translation.ahead.boottime),
        None => {
            let (own, theirs) = (offsets("self")?, offsets(&session.root.to_string())?);
            (theirs.0 - own.0, theirs.1 - own.1)
        }
    };
    now.monotonic += ahead.0;
    now.boottime += ahead.1;
    Ok(now)
}
