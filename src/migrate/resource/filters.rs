//! Seccomp filters of the program's own (seccomp(2), PR_SET_SECCOMP of prctl(2)).
//!
//! The kernel gives a filter out to privileged tracers only, so that those of a job are seen when
//! they are installed, and follow its threads: a new thread or process has its creator's, a program
//! that is executed its caller's. The count in `Seccomp_filters` of the status tells whether all have
//! been seen.
//!
//! At the target they come last, in their order, and what all threads of a process have comes to all
//! of them at once: filters that threads share must stay shared, for else SECCOMP_FILTER_FLAG_TSYNC
//! would fail later. From then on the calls that vosrun makes in the place of a thread are subject to
//! its filters: whether each lets all of them pass is computed beforehand ([`bpf`]).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_LOG, SECCOMP_RET_TRACE, SECCOMP_RET_USER_NOTIF};
use serde::{Deserialize, Serialize};

use super::{blocker, PartError, View};
use crate::control::Finding;
use crate::migrate::image::ProcessImage;
use crate::syscalls::translate::table::{Row, TABLE};
use crate::syscalls::translate::REMEDY;
use crate::tracer::bpf;
use crate::tracer::filter::AUDIT_ARCH_X86_64;
use crate::tracer::inject::{Arg, Program};

/// SECCOMP_RET_ACTION_FULL of linux/seccomp.h.
const ACTION: u32 = 0xffff_0000;
/// Most instructions of a program (BPF_MAXINSNS).
const MOST_INSTRUCTIONS: usize = 4096;
/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// The refusal of a thread whose filters have not all been seen. One that is just installing a filter
/// seems to be one until its call has returned: a move waits.
pub const UNSEEN: &str = "VOS-SECCOMP-UNSEEN";

/// Calls that are made in the place of a frozen thread, or by which the kernel lets it sleep on.
const MADE: &[i64] = &[
    libc::SYS_arch_prctl,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_getitimer,
    libc::SYS_getpid,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_gettid,
    libc::SYS_keyctl,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_pause,
    libc::SYS_personality,
    libc::SYS_prctl,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_semop,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_sigaltstack,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_waitid,
];

/// What the functions of the vdso are where the job's clocks are not the kernel's (vdso(7)).
const OF_VDSO: &[i64] = &[
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_getcpu,
    libc::SYS_gettimeofday,
    libc::SYS_time,
];

/// One filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Tells it from others with the same program.
    pub id: u64,
    /// SECCOMP_FILTER_FLAG_LOG and the like, as given to seccomp(2).
    pub flags: u64,
    /// Installed by prctl(2).
    pub by_prctl: bool,
    /// `struct sock_filter`s.
    pub program: Vec<u8>,
}

/// The filters of a thread, in the order in which they were installed.
pub type Chain = Vec<Arc<Filter>>;

/// Filters of a job's threads, by host tid. None of a thread that has none.
pub type Chains = BTreeMap<i32, Chain>;

/// What hinders a job with these filters from going where its calls are translated.
#[must_use]
pub fn untranslated(chains: &Chains) -> Option<Finding> {
    let cause = chains.values().flatten().find_map(|filter| filter.sees_translated())?;
    Some(blocker("VOS-TRANSLATE", "the job".to_owned(), &cause, REMEDY))
}

/// What hinders a thread with these filters from moving, besides `own` ones of vosrun.
#[must_use]
pub fn check(view: &View, own: u64, chain: &[Arc<Filter>]) -> Option<Finding> {
    let installed = view.number("Seccomp_filters:");
    if view.number("Seccomp:") == 0 && chain.is_empty() {
        return None;
    }
    let refuse_as = |code, cause: &str, remedy: &str| {
        Some(blocker(code, super::super::apart::who(view), cause, remedy))
    };
    let refuse = |cause: &str, remedy| refuse_as("VOS-SECCOMP", cause, remedy);
    if installed != own + chain.len() as u64 {
        return refuse_as(
            UNSEEN,
            "it has seccomp filters that vosrun has not seen, and that cannot be read out again",
            "start the program with vosrun, or with its sandbox switched off",
        );
    }
    let admin = view.hex("CapEff:") & (1 << 21) != 0;
    if !chain.is_empty() && view.number("NoNewPrivs:") == 0 && !admin {
        return refuse(
            "it could not install its seccomp filters again: it has neither no_new_privs nor CAP_SYS_ADMIN",
            "let it finish here",
        );
    }
    let cause = chain.iter().find_map(|filter| filter.hinders())?;
    refuse(&cause, "start it with its sandbox switched off, or let it finish")
}

impl Filter {
    /// Why a process with this filter cannot move, if so.
    fn hinders(&self) -> Option<String> {
        let code = bpf::program(&self.program);
        // RET with a constant, or with something computed.
        let asks = |op: &libc::sock_filter| {
            op.code & 7 == libc::BPF_RET as u16 && op.k & ACTION == SECCOMP_RET_USER_NOTIF
        };
        if self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 || code.iter().any(asks) {
            return Some("a seccomp filter of its own asks another process (a listener)".into());
        }
        let stopped = MADE.iter().find(|nr| !lets_pass(&code, **nr))?;
        Some(format!(
            "a seccomp filter of its own may not let {} pass, which a move needs",
            name_of(*stopped)
        ))
    }

    /// Why a process with this filter cannot be where calls are translated, if so: the kernel asks it
    /// once more when a call has been changed (seccomp(2), SECCOMP_RET_TRACE), and the program's
    /// functions of the vdso are calls there.
    #[must_use]
    pub fn sees_translated(&self) -> Option<String> {
        let code = bpf::program(&self.program);
        if let Some(nr) = OF_VDSO.iter().find(|nr| !lets_pass(&code, **nr)) {
            let name = name_of(*nr);
            return Some(format!(
                "a seccomp filter of its own may not let {name} pass, which vdso(7) has to ask there"
            ));
        }
        let row = TABLE.iter().find(|row| looks_at_changed(&code, row))?;
        Some(format!(
            "a seccomp filter of its own looks at an argument of {} that is another one there",
            name_of(row.nr)
        ))
    }
}

fn name_of(nr: i64) -> &'static str {
    crate::syscalls::table::find(nr as u64).map_or("a call", |row| row.name)
}

/// Does the program look at an argument that is changed when this call is translated?
fn looks_at_changed(code: &[libc::sock_filter], row: &Row) -> bool {
    let place = |arg: u8| ARGS + 8 * u32::from(arg);
    let changed: Vec<u32> = row.work.changes().into_iter().map(place).collect();
    if changed.is_empty() {
        return false;
    }
    let looks = |first: Option<(u32, u32)>| {
        let looked = Cell::new(false);
        let known = |at: u32| {
            looked.set(looked.get() || changed.contains(&(at & !7)));
            match at {
                NR => Some(row.nr as u32),
                ARCH => Some(AUDIT_ARCH_X86_64),
                _ => first.filter(|(place, _)| *place == at).map(|(_, value)| value),
            }
        };
        bpf::answers(code, known).is_none() || looked.get()
    };
    match row.when {
        // It is changed only then.
        Some(when) if when.mask == u32::MAX => {
            when.values.iter().any(|value| looks(Some((place(when.arg), *value))))
        }
        _ => looks(None),
    }
}

/// Does the program let this call pass, whatever its arguments and wherever it is made?
fn lets_pass(code: &[libc::sock_filter], nr: i64) -> bool {
    let known = |at| match at {
        NR => Some(nr as u32),
        ARCH => Some(AUDIT_ARCH_X86_64),
        _ => None,
    };
    let passes = |answer: &u32| {
        [SECCOMP_RET_ALLOW, SECCOMP_RET_LOG, SECCOMP_RET_TRACE].contains(&(answer & ACTION))
    };
    bpf::answers(code, known).is_some_and(|all| all.iter().all(passes))
}

/// How many filters all threads have in common.
fn common(chains: &[&[Filter]]) -> usize {
    let Some((first, others)) = chains.split_first() else { return 0 };
    let same =
        |chain: &&[Filter]| first.iter().zip(*chain).take_while(|(a, b)| a.id == b.id).count();
    others.iter().map(same).min().unwrap_or(first.len())
}

/// Can the threads of a frozen process get their filters again so that they share what they share?
///
/// # Errors
/// [`PartError::Refused`].
pub fn check_shared(threads: &[View], filters: &[Vec<Filter>]) -> Result<(), PartError> {
    let chains: Vec<&[Filter]> = filters.iter().map(Vec::as_slice).collect();
    let common = common(&chains);
    let mut seen = BTreeMap::new();
    for filter in chains.iter().flat_map(|chain| chain.iter().skip(common)) {
        *seen.entry(filter.id).or_insert(0) += 1;
    }
    let no_new_privs = |view: &View| view.number("NoNewPrivs:");
    let mixed =
        common > 0 && threads.windows(2).any(|p| no_new_privs(&p[0]) != no_new_privs(&p[1]));
    if mixed || seen.values().any(|threads| *threads > 1) {
        return Err(PartError::Refused(Box::new(blocker(
            "VOS-SECCOMP",
            format!("process {}", threads.first().map_or(0, |view| view.job_pid)),
            "some of its threads share seccomp filters that others have not",
            "let it finish here",
        ))));
    }
    Ok(())
}

/// The filters that each thread of a new process is to install, by its place; true: for all threads.
/// The first thread comes first.
pub fn missing(image: &ProcessImage) -> impl Iterator<Item = Vec<(bool, &Filter)>> + '_ {
    let chains: Vec<&[Filter]> = image.threads.iter().map(|t| &t.filters[..]).collect();
    let common = common(&chains);
    let several = image.threads.len() > 1;
    image.threads.iter().enumerate().map(move |(place, thread)| {
        let from = if place == 0 { 0 } else { common };
        let own = thread.filters.iter().enumerate().skip(from);
        own.map(|(n, filter)| (n < common && several, filter)).collect()
    })
}

impl Filter {
    /// Is it of a size that the kernel takes?
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.program.len().is_multiple_of(8) && self.program.len() / 8 <= MOST_INSTRUCTIONS
    }

    /// Puts the call into `program`, whose data is at `data`, that installs it; in all threads of
    /// the process if `all`.
    pub fn tell(&self, all: bool, data: u64, program: &mut Program) {
        const SET_MODE_FILTER: u64 = 1;
        let kept = libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        let code = program.data(&self.program);
        let mut prog = ((self.program.len() / 8) as u64).to_le_bytes().to_vec();
        prog.extend_from_slice(&(data + code.offset()).to_le_bytes());
        let at = Arg::Data(program.data(&prog));
        if self.by_prctl && !all {
            let args = [libc::PR_SET_SECCOMP as u64, u64::from(libc::SECCOMP_MODE_FILTER)];
            let args = [Arg::Num(args[0]), Arg::Num(args[1]), at];
            program.call(libc::SYS_prctl, "PR_SET_SECCOMP", &args);
            return;
        }
        let tsync = if all { libc::SECCOMP_FILTER_FLAG_TSYNC } else { 0 };
        let args = [Arg::Num(SET_MODE_FILTER), Arg::Num(self.flags & kept | tsync), at];
        program.call(libc::SYS_seccomp, "seccomp", &args);
    }
}

#[cfg(test)]
mod tests {
    use libc::{sock_filter, BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};

    use super::*;

    fn filter(code: &[(u32, u8, u8, u32)]) -> Filter {
        let one = |(code, jt, jf, k): &(u32, u8, u8, u32)| sock_filter {
            code: *code as u16,
            jt: *jt,
            jf: *jf,
            k: *k,
        };
        let code: Vec<sock_filter> = code.iter().map(one).collect();
        let program = crate::tracer::filter::bytes(&code);
        Filter { id: 1, flags: 0, by_prctl: false, program }
    }

    /// Answers one call with `action`, and lets all others pass.
    fn denies(nr: i64, action: u32) -> Filter {
        filter(&[
            (BPF_LD | BPF_W | BPF_ABS, 0, 0, NR),
            (BPF_JMP | BPF_JEQ | BPF_K, 0, 1, nr as u32),
            (BPF_RET | BPF_K, 0, 0, action),
            (BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
        ])
    }

    #[test]
    fn filters_that_stop_what_a_move_needs() {
        assert_eq!(denies(libc::SYS_mkdir, libc::SECCOMP_RET_ERRNO).hinders(), None);
        assert_eq!(denies(libc::SYS_mmap, SECCOMP_RET_LOG).hinders(), None);
        assert_eq!(denies(libc::SYS_mmap, SECCOMP_RET_TRACE | 5).hinders(), None);
        let text = denies(libc::SYS_mmap, libc::SECCOMP_RET_ERRNO).hinders().expect("hinders");
        assert!(text.contains(" mmap "), "{text}");
        assert!(denies(libc::SYS_mkdir, SECCOMP_RET_USER_NOTIF).hinders().is_some());
        let listener = Filter {
            flags: libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            ..denies(libc::SYS_mkdir, libc::SECCOMP_RET_ERRNO)
        };
        assert!(listener.hinders().is_some());
        let kills = filter(&[(BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS)]);
        assert!(kills.hinders().is_some());
        assert!(Filter { program: Vec::new(), ..kills }.hinders().is_some());
    }

    /// Answers one call with an error where the low word of an argument has a value.
    fn looks(nr: i64, arg: u32, value: u32) -> Filter {
        filter(&[
            (BPF_LD | BPF_W | BPF_ABS, 0, 0, NR),
            (BPF_JMP | BPF_JEQ | BPF_K, 0, 3, nr as u32),
            (BPF_LD | BPF_W | BPF_ABS, 0, 0, ARGS + 8 * arg),
            (BPF_JMP | BPF_JEQ | BPF_K, 0, 1, value),
            (BPF_RET | BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO),
            (BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
        ])
    }

    #[test]
    fn filters_that_see_what_is_translated() {
        let errno = libc::SECCOMP_RET_ERRNO;
        for harmless in [
            denies(libc::SYS_kill, errno),
            denies(libc::SYS_getpid, errno),
            looks(libc::SYS_kill, 1, 9),
            looks(libc::SYS_tgkill, 2, 9),
            looks(libc::SYS_socket, 0, 3),
            looks(libc::SYS_openat, 2, 1),
            looks(libc::SYS_recvmsg, 1, 1),
            looks(libc::SYS_fcntl, 1, libc::F_SETOWN as u32),
        ] {
            assert_eq!(harmless.sees_translated(), None);
        }
        for seeing in [
            looks(libc::SYS_kill, 0, 9),
            looks(libc::SYS_tgkill, 0, 9),
            looks(libc::SYS_openat, 1, 1),
            looks(libc::SYS_sendmsg, 1, 1),
            denies(libc::SYS_gettimeofday, errno),
        ] {
            assert!(seeing.sees_translated().is_some());
        }
        // An argument is changed with some commands only.
        let both = |command| {
            filter(&[
                (BPF_LD | BPF_W | BPF_ABS, 0, 0, NR),
                (BPF_JMP | BPF_JEQ | BPF_K, 0, 4, libc::SYS_fcntl as u32),
                (BPF_LD | BPF_W | BPF_ABS, 0, 0, ARGS + 8),
                (BPF_JMP | BPF_JEQ | BPF_K, 0, 2, command),
                (BPF_LD | BPF_W | BPF_ABS, 0, 0, ARGS + 16),
                (BPF_RET | BPF_K, 0, 0, errno),
                (BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
            ])
        };
        assert_eq!(both(libc::F_SETFL as u32).sees_translated(), None);
        assert!(both(libc::F_SETOWN as u32).sees_translated().is_some());
    }

    #[test]
    fn threads_have_filters_in_common_or_alone() {
        let of = |id| Filter { id, ..denies(libc::SYS_mkdir, libc::SECCOMP_RET_ERRNO) };
        let own = std::process::id() as i32;
        let check = |chains: &[&[u64]]| {
            let views: Vec<View> =
                chains.iter().map(|_| View::read_process(own).expect("view")).collect();
            let filters: Vec<Vec<Filter>> =
                chains.iter().map(|chain| chain.iter().map(|id| of(*id)).collect()).collect();
            check_shared(&views, &filters).is_ok()
        };
        assert!(check(&[&[1, 2], &[1, 2], &[1, 2]]));
        assert!(check(&[&[1], &[1, 2], &[1, 3]]));
        assert!(check(&[&[], &[1]]));
        assert!(!check(&[&[1], &[1, 2], &[1, 2]]));
        assert!(!check(&[&[], &[1], &[1]]));
    }

    #[test]
    fn calls_that_are_made_are_known() {
        for nr in MADE {
            assert!(crate::syscalls::table::find(*nr as u64).is_some(), "call {nr}");
        }
    }
}
