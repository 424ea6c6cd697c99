//! Rows of what no registry has: process trees, calls that sleep, registers, what surrounds a job.

use super::Area::{Attributes, Ipc, Processes, Signals, Surroundings, Time};
use super::{Capability, Support};

/// In the order of the table.
pub const ROWS: &[Capability] = &[
    Capability::moves(Processes, "threads", "threads, with their ids, names and thread-local data"),
    Capability::moves(Processes, "registers", "registers: general, x87, vector, mask"),
    Capability::moves(Processes, "fs-gs", "FS and GS bases"),
    Capability::moves(Processes, "children", "child processes: numbers, parents, exit statuses"),
    Capability::moves(Processes, "sessions", "sessions and process groups"),
    Capability::moves(Processes, "orphans", "processes whose parent or leader has ended: daemons")
        .attached(Support::Lost),
    Capability::moves(Processes, "zombies", "processes that have ended and wait to be reaped"),
    Capability::moves(Processes, "stopped", "stopped processes"),
    Capability::moves(Processes, "fork-storm", "forks, vforks and execs while the job moves"),
    Capability::moves(Processes, "exec", "programs executed since the start"),
    Capability::moves(Processes, "pids", "pids and thread ids, and signals sent by them"),
    Capability::moves(
        Processes,
        "clone-shared",
        "processes that share memory, descriptors, directory or handlers by clone(2)",
    ),
    Capability::refused(
        Processes,
        "clone-shared-apart",
        "memory or handlers that children share, but not with their parent",
        "VOS-SHARED-TASK",
    ),
    Capability::moves(
        Processes,
        "thread-files",
        "threads with a descriptor table of their own (unshare(2))",
    ),
    Capability::refused(
        Processes,
        "thread-files-epoll",
        "epoll, locks and signals when ready in the table of a single thread",
        "VOS-THREAD-FILES",
    ),
    Capability::refused(
        Processes,
        "namespaces",
        "processes or threads in a namespace of their own (unshare(2))",
        "VOS-NAMESPACE",
    ),
    Capability::refused(
        Processes,
        "leader-ended",
        "a first thread that has ended while others go on",
        "VOS-LEADER",
    ),
    Capability::refused(
        Processes,
        "untraced",
        "children that vosrun does not trace (CLONE_UNTRACED, other users')",
        "VOS-CHILDREN",
    ),
    Capability::new(
        Processes,
        "ptrace",
        "tracing other processes (strace, debuggers)",
        Support::Absent("EPERM"),
    )
    .attached(Support::Lost),
    Capability::refused(Processes, "abi-32", "32-bit programs", "VOS-ABI-32"),
    Capability::moves(
        Processes,
        "seccomp",
        "seccomp filters of the program's own that let pass what a move needs",
    )
    .attached(Support::Refused("VOS-SECCOMP-UNSEEN")),
    Capability::refused(
        Processes,
        "seccomp-narrow",
        "seccomp filters that stop calls which a move needs",
        "VOS-SECCOMP",
    )
    .attached(Support::Refused("VOS-SECCOMP-UNSEEN")),
    Capability::refused(
        Processes,
        "seccomp-listener",
        "seccomp filters that ask another process (SECCOMP_RET_USER_NOTIF)",
        "VOS-SECCOMP",
    )
    .attached(Support::Refused("VOS-SECCOMP-UNSEEN")),
    Capability::moves(Ipc, "sysv-sem", "System V semaphores"),
    Capability::moves(Ipc, "sysv-msg", "System V message queues"),
    Capability::refused(
        Ipc,
        "sysv-outside",
        "objects of System V IPC that processes outside of the job use",
        "VOS-SYSV",
    ),
    Capability::moves(Signals, "signal-mask", "signal masks"),
    Capability::moves(Signals, "traps", "SIGTRAP as the program's own signal"),
    Capability::moves(Time, "sleeping", "sleeping calls, with the time that is left"),
    Capability::moves(Time, "blocked", "calls that wait for something to come"),
    Capability::moves(Time, "futexes", "futexes: mutexes, condition variables, PI, shared"),
    Capability::moves(
        Time,
        "clocks",
        "CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from where they were",
    ),
    Capability::new(Time, "cpu-clocks", "CPU-time clocks", Support::Lost),
    Capability::refused(Attributes, "chroot", "a root directory of its own", "VOS-CHROOT"),
    Capability::moves(Surroundings, "terminal", "the terminal that it was started in: relayed"),
    Capability::moves(
        Surroundings,
        "streams",
        "standard streams and pipes to other programs: relayed",
    ),
    Capability::moves(
        Surroundings,
        "programs",
        "program and libraries that the target lacks or has otherwise: shipped",
    ),
    Capability::moves(Surroundings, "host-name", "the host name"),
    Capability::moves(Surroundings, "vdso", "the vdso, also on another kernel"),
    Capability::new(
        Surroundings,
        "translated",
        "a target that makes no namespaces: numbers, clocks and names translated call by call",
        Support::Warned("VOS-TRANSLATE"),
    ),
];
