//! Small attributes of a process or thread: working directory, umask, personality, and what
//! prctl(2) knows.

use std::fs;

use serde::{Deserialize, Serialize};

use super::directory::{cwd, umask};
use super::{blocker, decode, encode, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Attributes;
use crate::capabilities::{Capability, Support};
use crate::control::Finding;
use crate::migrate::image::ProcessImage;
use crate::tracer::inject::{Arg, Program};
use crate::tracer::memory::read_record;

fn text(path: &str) -> Option<String> {
    read_record(path).ok().map(|t| t.trim().to_owned())
}

/// Values of the process that are files below `/proc/PID`.
pub struct Files;

/// `oom_score_adj` and `coredump_filter`, as their text.
#[derive(Serialize, Deserialize)]
struct FilesState {
    oom_score_adj: Option<String>,
    coredump_filter: Option<String>,
}

impl Part for Files {
    fn name(&self) -> &'static str {
        "proc files"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(
                    Attributes,
                    "oom-score",
                    "oom_score_adj, as far as the target grants it",
                ),
                Capability::moves(Attributes, "coredump-filter", "coredump_filter"),
            ]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }
    fn read(&self, view: &View) -> Result<Option<Vec<u8>>, PartError> {
        let state = FilesState {
            oom_score_adj: text(&format!("/proc/{}/oom_score_adj", view.pid)),
            coredump_filter: text(&format!("/proc/{}/coredump_filter", view.pid)),
        };
        encode(self.name(), &state).map(Some)
    }
    fn tell(&self, state: &[u8], to: &Told, _program: &mut Program) -> Result<(), PartError> {
        let state: FilesState = decode(self.name(), state)?;
        let hex = state.coredump_filter.map(|f| format!("0x{f}"));
        for (file, value) in [("oom_score_adj", state.oom_score_adj), ("coredump_filter", hex)] {
            let path = format!("/proc/{}/{file}", to.pid);
            let Some(value) = value else { continue };
            if text(&path).is_some_and(|now| now != value && format!("0x{now}") != value)
                && fs::write(&path, &value).is_err()
            {
                to.missed.add(format!("process {}: {file} {value} is not granted", to.job_pid));
            }
        }
        Ok(())
    }
}

/// umask(2), chdir(2), PR_SET_CHILD_SUBREAPER.
pub struct Process;

#[derive(Serialize, Deserialize)]
struct ProcessState {
    umask: u32,
    cwd: Vec<u8>,
    subreaper: i32,
}

impl Part for Process {
    fn name(&self) -> &'static str {
        "process attributes"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(Attributes, "directory", "working directory"),
                Capability::refused(
                    Attributes,
                    "directory-gone",
                    "a working directory that has been removed",
                    "VOS-CWD",
                ),
                Capability::moves(Attributes, "umask", "umask(2)"),
                Capability::moves(Attributes, "subreaper", "PR_SET_CHILD_SUBREAPER"),
            ]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }
    fn check(&self, view: &View) -> Vec<Finding> {
        let mut findings = Vec::new();
        let gone =
            cwd(view.pid, view.tid).is_ok_and(|p| p.to_string_lossy().ends_with(" (deleted)"));
        if gone {
            findings.push(blocker(
                "VOS-CWD",
                format!("process {}", view.job_pid),
                "its working directory has been removed",
                "let it change to a directory that exists",
            ));
        }
        let same_root = fs::metadata(format!("/proc/{}/task/{}/root/.", view.pid, view.tid))
            .and_then(|theirs| Ok((theirs, fs::metadata("/")?)))
            .is_ok_and(|(theirs, ours)| {
                use std::os::unix::fs::MetadataExt;
                (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino())
            });
        if !same_root {
            findings.push(blocker(
                "VOS-CHROOT",
                format!("process {}", view.job_pid),
                "its root directory is not that of the supervisor",
                "run vosrun inside the same container or chroot",
            ));
        }
        findings
    }
    fn ask(&self, view: &View, program: &mut Program) -> Result<Answer, PartError> {
        use std::os::unix::ffi::OsStrExt;
        let cwd = cwd(view.pid, view.tid).map_err(|source| PartError::Io {
            what: format!("working directory of process {}", view.pid),
            source,
        })?;
        let umask = umask(view)?;
        let at = program.data(&[0; 8]);
        let get = Arg::Num(libc::PR_GET_CHILD_SUBREAPER as u64);
        let reaper = program.call(libc::SYS_prctl, "PR_GET_CHILD_SUBREAPER", &[get, Arg::Data(at)]);
        let cwd = cwd.as_os_str().as_bytes().to_vec();
        Ok(Box::new(move |_, outcome| {
            outcome.get(reaper)?;
            encode(
                "process attributes",
                &ProcessState { umask, cwd, subreaper: outcome.int(at) as i32 },
            )
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let mut state: ProcessState = decode(self.name(), state)?;
        program.call(libc::SYS_umask, "umask", &[u64::from(state.umask).into()]);
        state.cwd.push(0);
        let cwd = Arg::Data(program.data(&state.cwd));
        program.call(libc::SYS_chdir, "chdir to the working directory", &[cwd]);
        if state.subreaper != 0 {
            let args = [libc::PR_SET_CHILD_SUBREAPER as u64, state.subreaper as u64];
            program.call(libc::SYS_prctl, "PR_SET_CHILD_SUBREAPER", &args.map(Arg::Num));
        }
        Ok(())
    }
}

/// What a change of credentials resets: personality(2), timer slack, PR_SET_DUMPABLE,
/// PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS.
pub struct AfterCreds;

#[derive(Serialize, Deserialize)]
struct AfterCredsState {
    personality: u64,
    timer_slack: u64,
    dumpable: u64,
    death_signal: i32,
    no_new_privs: bool,
}

/// May the process be looked into by its user (PR_GET_DUMPABLE)? It is made undumpable only
/// when nothing of it has to be read or written any more.
#[must_use]
pub fn is_dumpable(image: &ProcessImage) -> bool {
    let parts = image.threads.first().map(|t| &t.parts);
    let state = parts.and_then(|parts| parts.iter().find(|p| p.name == AfterCreds.name()));
    let state = state.and_then(|p| decode::<AfterCredsState>(AfterCreds.name(), &p.state).ok());
    // Only 0 and 1 can be set; 2 (set by the kernel) is as unreadable as 0 to others.
    state.is_none_or(|s| s.dumpable == 1)
}

impl Part for AfterCreds {
    fn name(&self) -> &'static str {
        "thread attributes"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::moves(Attributes, "personality", "personality(2)"),
                Capability::moves(Attributes, "timer-slack", "timer slack (PR_SET_TIMERSLACK)"),
                Capability::moves(Attributes, "no-new-privs", "PR_SET_NO_NEW_PRIVS"),
                Capability::moves(
                    Attributes,
                    "parent-death",
                    "parent-death signal (PR_SET_PDEATHSIG)",
                ),
                Capability::moves(Attributes, "dumpable", "PR_SET_DUMPABLE")
                    .attached_user(Support::Absent("EPERM")),
            ]
        }
    }

    fn scope(&self) -> Scope {
        Scope::Thread
    }
    fn ask(&self, view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let mut get =
            |option: i32, what| program.call(libc::SYS_prctl, what, &[(option as u64).into()]);
        let slack = get(libc::PR_GET_TIMERSLACK, "PR_GET_TIMERSLACK");
        let dumpable = get(libc::PR_GET_DUMPABLE, "PR_GET_DUMPABLE");
        let at = program.data(&[0; 8]);
        let death = (libc::PR_GET_PDEATHSIG as u64).into();
        let death = program.call(libc::SYS_prctl, "PR_GET_PDEATHSIG", &[death, Arg::Data(at)]);
        let personality =
            program.call(libc::SYS_personality, "personality", &[Arg::Num(0xffff_ffff)]);
        let no_new_privs = view.number("NoNewPrivs:") != 0;
        let opened = view.opened;
        Ok(Box::new(move |_, outcome| {
            outcome.get(death)?;
            encode(
                "thread attributes",
                &AfterCredsState {
                    personality: outcome.get(personality)?,
                    timer_slack: outcome.get(slack)?,
                    dumpable: if opened { 0 } else { outcome.get(dumpable)? },
                    death_signal: outcome.int(at) as i32,
                    no_new_privs,
                },
            )
        }))
    }
    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        let state: AfterCredsState = decode(self.name(), state)?;
        program.call(libc::SYS_personality, "personality", &[state.personality.into()]);
        let mut set = |option: i32, what, value: u64| {
            program.call(libc::SYS_prctl, what, &[(option as u64).into(), value.into()]);
        };
        set(libc::PR_SET_TIMERSLACK, "PR_SET_TIMERSLACK", state.timer_slack);
        // Open to us until it runs; see `is_dumpable`.
        set(libc::PR_SET_DUMPABLE, "PR_SET_DUMPABLE", 1);
        if state.death_signal != 0 {
            set(libc::PR_SET_PDEATHSIG, "PR_SET_PDEATHSIG", state.death_signal as u64);
        }
        if state.no_new_privs {
            set(libc::PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS", 1);
        }
        Ok(())
    }
}
