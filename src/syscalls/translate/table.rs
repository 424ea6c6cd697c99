//! Which calls carry numbers, clocks or paths that have to be translated, and where.
//!
//! The calls here are stopped besides those of [`crate::syscalls::table`], and only where a job
//! has no namespaces. One that is called often is stopped only when one of its arguments says
//! that it matters: that costs the kernel a look at the argument for each such call.

use super::ipc;
use crate::migrate::resource::ipc::Kind;
use crate::tracer::filter::When;

/// What is done about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// These arguments (by index) are numbers; the result is one when `result`.
    Numbers {
        args: &'static [(u8, Sign)],
        result: bool,
    },
    /// The same, where the first argument tells whether the second is a number: not when it has
    /// one of these values.
    Which {
        not: &'static [u64],
    },
    /// getpid(2) and gettid(2): answered here.
    OwnProcess,
    OwnThread,
    /// getppid(2).
    Parent,
    /// kill(2), whose -1 means everybody.
    Kill,
    /// clone(2), fork(2), vfork(2), clone3(2).
    Clone,
    /// waitid(2).
    WaitId,
    /// rt_sigtimedwait(2): a siginfo is answered.
    TimedWait,
    Fcntl,
    Ioctl,
    Prctl,
    /// getsockopt(2) with SO_PEERCRED.
    PeerCredentials,
    /// timer_create(2): clock, and thread of SIGEV_THREAD_ID.
    TimerCreate,
    /// uname(2).
    Names,
    /// sysinfo(2): uptime.
    Uptime,
    /// clock_gettime(2).
    ReadClock,
    /// clock_getres(2), clock_settime(2): the clock may be that of a process.
    NamedClock,
    /// clock_nanosleep(2).
    Sleep,
    /// timerfd_settime(2) and timer_settime(2).
    TimerfdSet,
    TimerSet,
    /// futex(2) with a time on the monotonic clock; those that compare thread numbers are
    /// refused.
    Futex,
    /// futex_wait(2) and futex_waitv(2) of Linux 5.16 and 6.7: clock and time by these arguments.
    FutexTime {
        time: u8,
        clock: u8,
    },
    /// A path that may lead into /proc or /dev/pts, after a directory's descriptor in the argument before it
    /// when `at`.
    Path {
        path: u8,
        at: bool,
    },
    /// readlink(2) and readlinkat(2): what it answers too.
    Link {
        path: u8,
        at: bool,
    },
    /// recvmsg(2) and recvmmsg(2): who has sent is told with the messages.
    Received {
        many: bool,
    },
    /// sendmsg(2) and sendmmsg(2): who sends may be said with the messages.
    Sent {
        many: bool,
    },
    /// signalfd(2), which may make one.
    SignalFd,
    /// dup(2) and its relatives, of what may be a signalfd ([`super::signalfd`]).
    Duplicate,
    /// read(2), readv(2) and preadv2(2), of the same.
    ReadSignals,
    /// shmget(2), semget(2), msgget(2).
    IpcGet(Kind),
    /// A call whose first argument is an identifier of such an object.
    IpcUse(Kind),
    /// shmctl(2), semctl(2), msgctl(2).
    IpcControl(Kind),
    /// mq_open(2) and mq_unlink(2).
    QueueName {
        opens: bool,
    },
    /// Fails with this errno.
    Refuse(i32),
}

impl Work {
    /// The arguments (by index) that the kernel may see otherwise than the program gives them: numbers,
    /// and addresses of what has numbers, times or paths in it.
    #[must_use]
    pub fn changes(self) -> Vec<u8> {
        match self {
            Self::Numbers { args, .. } => args.iter().map(|(arg, _)| *arg).collect(),
            Self::Which { .. } | Self::WaitId | Self::Sent { .. } => vec![1],
            Self::Kill | Self::NamedClock | Self::ReadClock => vec![0],
            Self::IpcUse(_) | Self::QueueName { .. } => vec![0],
            Self::IpcGet(kind) => vec![0, ipc::place_of_flags(kind)],
            Self::IpcControl(kind) => vec![0, ipc::place_of_command(kind)],
            Self::Fcntl | Self::Ioctl | Self::TimerfdSet | Self::TimerSet => vec![2],
            Self::Prctl => vec![1, 2],
            Self::TimerCreate => vec![0, 1],
            Self::Sleep => vec![0, 2],
            Self::Futex => vec![3],
            Self::FutexTime { time, .. } => vec![time],
            Self::Path { path, .. } | Self::Link { path, .. } => vec![path],
            Self::OwnProcess
            | Self::OwnThread
            | Self::Parent
            | Self::Clone
            | Self::TimedWait
            | Self::PeerCredentials
            | Self::Names
            | Self::Uptime
            | Self::Received { .. }
            | Self::SignalFd
            | Self::Duplicate
            | Self::ReadSignals
            | Self::Refuse(_) => Vec::new(),
        }
    }
}

/// Whether a negative number stands for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    Plain,
    Group,
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub nr: i64,
    pub work: Work,
    /// It is stopped only then.
    pub when: Option<When>,
}

pub(super) const fn row(nr: i64, work: Work) -> Row {
    Row { nr, work, when: None }
}

const fn only(nr: i64, work: Work, arg: u8, mask: u32, values: &'static [u32]) -> Row {
    Row { nr, work, when: Some(When { arg, mask, values }) }
}

const fn numbers(nr: i64, args: &'static [(u8, Sign)], result: bool) -> Row {
    row(nr, Work::Numbers { args, result })
}

const FIRST: &[(u8, Sign)] = &[(0, Sign::Plain)];
const SECOND: &[(u8, Sign)] = &[(1, Sign::Plain)];
const BOTH: &[(u8, Sign)] = &[(0, Sign::Plain), (1, Sign::Plain)];

/// PRIO_USER and IOPRIO_WHO_USER: the number is a user's.
const PRIO_USER: &[u64] = &[libc::PRIO_USER as u64];
const IOPRIO_USER: &[u64] = &[3];

const FCNTL: &[u32] = &[
    libc::F_SETOWN as u32,
    libc::F_GETOWN as u32,
    F_SETOWN_EX as u32,
    F_GETOWN_EX as u32,
    libc::F_GETLK as u32,
    libc::F_OFD_GETLK as u32,
];
pub const F_SETOWN_EX: i32 = 15;
pub const F_GETOWN_EX: i32 = 16;

pub const FIOSETOWN: u64 = 0x8901;
pub const SIOCSPGRP: u64 = 0x8902;
pub const FIOGETOWN: u64 = 0x8903;
pub const SIOCGPGRP: u64 = 0x8904;
/// TIOCGPTN: the number of a pty, asked of its master.
pub const TIOCGPTN: u64 = 0x8004_5430;
const IOCTL: &[u32] = &[
    TIOCGPTN as u32,
    libc::TIOCGPGRP as u32,
    libc::TIOCSPGRP as u32,
    libc::TIOCGSID as u32,
    FIOSETOWN as u32,
    SIOCSPGRP as u32,
    FIOGETOWN as u32,
    SIOCGPGRP as u32,
];

pub const PR_SET_PTRACER: u64 = 0x5961_6d61;
pub const PR_SCHED_CORE: u64 = 62;
pub const PR_SET_DUMPABLE: u64 = libc::PR_SET_DUMPABLE as u64;
pub const PR_GET_DUMPABLE: u64 = libc::PR_GET_DUMPABLE as u64;
const PRCTL: &[u32] =
    &[PR_SET_PTRACER as u32, PR_SCHED_CORE as u32, PR_SET_DUMPABLE as u32, PR_GET_DUMPABLE as u32];

/// FUTEX_WAIT_BITSET without FUTEX_CLOCK_REALTIME, and what has to do with priority inheritance:
/// FUTEX_LOCK_PI, UNLOCK_PI, TRYLOCK_PI, WAIT_REQUEUE_PI, CMP_REQUEUE_PI, LOCK_PI2.
const FUTEX: &[u32] = &[9, 6, 7, 8, 11, 12, 13, 256 | 11, 256 | 12, 256 | 13];
/// All of a futex operation but FUTEX_PRIVATE_FLAG.
const FUTEX_OPERATION: u32 = 0x17f;

const SYS_FCHMODAT2: i64 = 452;
const SYS_FUTEX_WAIT: i64 = 455;

/// All of them, ascending.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    row(libc::SYS_open,              Work::Path { path: 0, at: false }),
    row(libc::SYS_stat,              Work::Path { path: 0, at: false }),
    row(libc::SYS_lstat,             Work::Path { path: 0, at: false }),
    only(libc::SYS_ioctl,            Work::Ioctl, 1, u32::MAX, IOCTL),
    row(libc::SYS_access,            Work::Path { path: 0, at: false }),
    row(libc::SYS_shmget,            Work::IpcGet(Kind::Memory)),
    row(libc::SYS_shmat,             Work::IpcUse(Kind::Memory)),
    row(libc::SYS_shmctl,            Work::IpcControl(Kind::Memory)),
    row(libc::SYS_getpid,            Work::OwnProcess),
    row(libc::SYS_sendmsg,           Work::Sent { many: false }),
    row(libc::SYS_recvmsg,           Work::Received { many: false }),
    only(libc::SYS_getsockopt,       Work::PeerCredentials, 2, u32::MAX, &[libc::SO_PEERCRED as u32]),
    row(libc::SYS_clone,             Work::Clone),
    row(libc::SYS_fork,              Work::Clone),
    row(libc::SYS_vfork,             Work::Clone),
    row(libc::SYS_execve,            Work::Path { path: 0, at: false }),
    numbers(libc::SYS_wait4,         &[(0, Sign::Group)], true),
    row(libc::SYS_kill,              Work::Kill),
    row(libc::SYS_uname,             Work::Names),
    row(libc::SYS_semget,            Work::IpcGet(Kind::Semaphores)),
    row(libc::SYS_semop,             Work::IpcUse(Kind::Semaphores)),
    row(libc::SYS_semctl,            Work::IpcControl(Kind::Semaphores)),
    row(libc::SYS_msgget,            Work::IpcGet(Kind::Queue)),
    row(libc::SYS_msgsnd,            Work::IpcUse(Kind::Queue)),
    row(libc::SYS_msgrcv,            Work::IpcUse(Kind::Queue)),
    row(libc::SYS_msgctl,            Work::IpcControl(Kind::Queue)),
    only(libc::SYS_fcntl,            Work::Fcntl, 1, u32::MAX, FCNTL),
    row(libc::SYS_chdir,             Work::Path { path: 0, at: false }),
    row(libc::SYS_readlink,          Work::Link { path: 0, at: false }),
    row(libc::SYS_chmod,             Work::Path { path: 0, at: false }),
    row(libc::SYS_chown,             Work::Path { path: 0, at: false }),
    row(libc::SYS_lchown,            Work::Path { path: 0, at: false }),
    row(libc::SYS_sysinfo,           Work::Uptime),
    only(libc::SYS_ptrace,           Work::Refuse(libc::EPERM), 0, u32::MAX, &[libc::PTRACE_ATTACH, libc::PTRACE_SEIZE]),
    numbers(libc::SYS_setpgid,       BOTH, false),
    row(libc::SYS_getppid,           Work::Parent),
    numbers(libc::SYS_getpgrp,       &[], true),
    numbers(libc::SYS_setsid,        &[], true),
    numbers(libc::SYS_getpgid,       FIRST, true),
    numbers(libc::SYS_getsid,        FIRST, true),
    row(libc::SYS_rt_sigtimedwait,   Work::TimedWait),
    numbers(libc::SYS_rt_sigqueueinfo, FIRST, false),
    row(libc::SYS_getpriority,       Work::Which { not: PRIO_USER }),
    row(libc::SYS_setpriority,       Work::Which { not: PRIO_USER }),
    numbers(libc::SYS_sched_setparam, FIRST, false),
    numbers(libc::SYS_sched_getparam, FIRST, false),
    numbers(libc::SYS_sched_setscheduler, FIRST, false),
    numbers(libc::SYS_sched_getscheduler, FIRST, false),
    numbers(libc::SYS_sched_rr_get_interval, FIRST, false),
    only(libc::SYS_prctl,            Work::Prctl, 0, u32::MAX, PRCTL),
    row(libc::SYS_sethostname,       Work::Refuse(libc::EPERM)),
    row(libc::SYS_setdomainname,     Work::Refuse(libc::EPERM)),
    row(libc::SYS_gettid,            Work::OwnThread),
    numbers(libc::SYS_tkill,         FIRST, false),
    only(libc::SYS_futex,            Work::Futex, 1, FUTEX_OPERATION, FUTEX),
    numbers(libc::SYS_sched_setaffinity, FIRST, false),
    numbers(libc::SYS_sched_getaffinity, FIRST, false),
    numbers(libc::SYS_set_tid_address, &[], true),
    row(libc::SYS_semtimedop,        Work::IpcUse(Kind::Semaphores)),
    row(libc::SYS_timer_create,      Work::TimerCreate),
    row(libc::SYS_timer_settime,     Work::TimerSet),
    row(libc::SYS_clock_settime,     Work::NamedClock),
    row(libc::SYS_clock_gettime,     Work::ReadClock),
    row(libc::SYS_clock_getres,      Work::NamedClock),
    row(libc::SYS_clock_nanosleep,   Work::Sleep),
    numbers(libc::SYS_tgkill,        BOTH, false),
    row(libc::SYS_mq_open,           Work::QueueName { opens: true }),
    row(libc::SYS_mq_unlink,         Work::QueueName { opens: false }),
    row(libc::SYS_waitid,            Work::WaitId),
    row(libc::SYS_ioprio_set,        Work::Which { not: IOPRIO_USER }),
    row(libc::SYS_ioprio_get,        Work::Which { not: IOPRIO_USER }),
    numbers(libc::SYS_migrate_pages, FIRST, false),
    row(libc::SYS_openat,            Work::Path { path: 1, at: true }),
    row(libc::SYS_fchownat,          Work::Path { path: 1, at: true }),
    row(libc::SYS_newfstatat,        Work::Path { path: 1, at: true }),
    row(libc::SYS_readlinkat,        Work::Link { path: 1, at: true }),
    row(libc::SYS_fchmodat,          Work::Path { path: 1, at: true }),
    row(libc::SYS_faccessat,         Work::Path { path: 1, at: true }),
    numbers(libc::SYS_get_robust_list, FIRST, false),
    numbers(libc::SYS_move_pages,    FIRST, false),
    row(libc::SYS_signalfd,          Work::SignalFd),
    row(libc::SYS_timerfd_settime,   Work::TimerfdSet),
    row(libc::SYS_signalfd4,         Work::SignalFd),
    numbers(libc::SYS_rt_tgsigqueueinfo, BOTH, false),
    numbers(libc::SYS_perf_event_open, SECOND, false),
    row(libc::SYS_recvmmsg,          Work::Received { many: true }),
    numbers(libc::SYS_prlimit64,     FIRST, false),
    row(libc::SYS_sendmmsg,          Work::Sent { many: true }),
    numbers(libc::SYS_process_vm_readv, FIRST, false),
    numbers(libc::SYS_process_vm_writev, FIRST, false),
    numbers(libc::SYS_kcmp,          BOTH, false),
    numbers(libc::SYS_sched_setattr, FIRST, false),
    numbers(libc::SYS_sched_getattr, FIRST, false),
    row(libc::SYS_statx,             Work::Path { path: 1, at: true }),
    numbers(libc::SYS_pidfd_open,    FIRST, false),
    row(libc::SYS_clone3,            Work::Clone),
    row(libc::SYS_openat2,           Work::Path { path: 1, at: true }),
    row(libc::SYS_faccessat2,        Work::Path { path: 1, at: true }),
    row(libc::SYS_futex_waitv,       Work::FutexTime { time: 3, clock: 4 }),
    row(SYS_FCHMODAT2,               Work::Path { path: 1, at: true }),
    row(SYS_FUTEX_WAIT,              Work::FutexTime { time: 4, clock: 5 }),
];

/// The row of a call.
#[must_use]
pub fn find(nr: u64) -> Option<&'static Row> {
    let nr = i64::try_from(nr).ok()?;
    let row = TABLE.binary_search_by_key(&nr, |row| row.nr).ok().map(|at| &TABLE[at]);
    row.or_else(|| super::signalfd::find(nr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscalls::table::{self, Policy};

    #[test]
    fn rows_ascend_and_no_call_is_stopped_for_both_tables() {
        assert!(TABLE.windows(2).all(|two| two[0].nr < two[1].nr));
        for row in TABLE {
            let other = table::find(row.nr as u64).map(|r| r.policy);
            let apart = match other {
                Some(Policy::Native) => true,
                // What is observed there is known here without.
                Some(Policy::Observe) => matches!(row.work, Work::IpcGet(_)),
                Some(Policy::ObserveIf(first)) => {
                    row.when.is_some_and(|when| when.arg == 0 && !when.values.contains(&first))
                }
                // What is noted of clocks that are not translated is left to the other table.
                Some(Policy::ObserveWith(_)) => row.nr == libc::SYS_timer_settime,
                _ => false,
            };
            assert!(apart, "call {}: {other:?}", row.nr);
        }
    }
}
