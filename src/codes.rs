//! Stable codes of refusals and failures, each with the text of `vosrun explain CODE`.

/// One code.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    pub code: &'static str,
    /// One line: what it means.
    pub title: &'static str,
    /// Why it is so and what can be done.
    pub text: &'static str,
}

/// Every code the program can print, in alphabetical order.
pub const CODES: &[Code] = &[
    Code {
        code: "VOS-ABI-32",
        title: "a 32-bit program",
        text: "The process runs i386 or x32 code. It runs under vosrun as always, but vosrun moves x86-64 programs only.\nWay out: run the 64-bit build of the program.",
    },
    Code {
        code: "VOS-AUTH",
        title: "the other node did not prove who it is",
        text: "Nodes talk over TLS 1.3 and know each other by their keys. The key that answered is not the one this node knows under that name, or the other node does not know ours. Nothing was sent.\nWay out: join the nodes again: vosrun token on one, vosrun node --join TOKEN on the other. A node whose state folder was removed has a new key and must join again.",
    },
    Code {
        code: "VOS-BUSY",
        title: "another move of this job is in progress",
        text: "A job takes part in one move at a time. The first one goes on, the second one has touched nothing.\nWay out: wait for it (vosrun migrate --watch MOVE) or cancel it (vosrun migrate --cancel MOVE).",
    },
    Code {
        code: "VOS-CANCELLED",
        title: "the move was cancelled before it was decided",
        text: "Somebody ran vosrun migrate --cancel. The source wrote down the abort and let the job go on where it was; the target threw its copy away.\nWay out: none needed; start the move again when you want it.",
    },
    Code {
        code: "VOS-CHILDREN",
        title: "the job has more than one process",
        text: "This version moves single processes with any number of threads. Children, running or not yet waited for, would be left behind or lose their parent.\nWay out: wait until the children have ended (vosrun inspect JOB lists them), or run the part that is to move as a job of its own.",
    },
    Code {
        code: "VOS-COMMIT-SENT",
        title: "given away, not yet confirmed",
        text: "The source has written down that the target owns the job and cannot take it back, and the target has not confirmed yet: the connection or the target is gone. The job never runs at the source again, so it cannot run twice. The target resumes it by itself as soon as it hears from the source.\nWay out: bring the connection or the target back, then vosrun migrate --resolve MOVE. Only if you know that the target's copy can never run: vosrun recover JOB --dead NODE at the source.",
    },
    Code {
        code: "VOS-CPU",
        title: "the target's processor lacks a feature",
        text: "Programs ask the processor once, at their start, what it can do, and keep using it. An instruction that the target does not have would kill the program with SIGILL, or its saved registers do not fit there.\nWay out: choose a target whose processor has the feature named, or start the program so that it does not use it (glibc: GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,…).",
    },
    Code {
        code: "VOS-DISK-FULL",
        title: "no space left in a state folder",
        text: "The journal, or a file that had to be shipped, could not be written. A move that cannot be written down is not begun, or is given up before the commit.\nWay out: make room on the file system that holds the state folder named, or point --state-dir of that node to another one.",
    },
    Code {
        code: "VOS-EXEC-CHANGED",
        title: "the program replaced itself during the move",
        text: "The job called execve(2) while the move was being prepared, so what the target had got ready belongs to a program that is no more. The job was not touched.\nWay out: move it again; the new program is looked at afresh.",
    },
    Code {
        code: "VOS-EXITED",
        title: "the job ended during the move",
        text: "The program finished or was killed before the commit. There is nothing left to move; its exit status went to whoever waits for it, as without a move.\nWay out: none needed.",
    },
    Code {
        code: "VOS-FENCED",
        title: "this node no longer owns the job",
        text: "A later owner of the job exists: its epoch is higher than the one this node knows. What this node holds is old and stays frozen so that the job cannot run twice.\nWay out: work with the job where it is now; vosrun ps on the other nodes shows it.",
    },
    Code {
        code: "VOS-HERE",
        title: "the job is already on that node",
        text: "The target is the node where the job runs now. Nothing was touched.\nWay out: name another node; vosrun nodes lists them.",
    },
    Code {
        code: "VOS-IMAGE",
        title: "the job's image arrived damaged",
        text: "What the target received does not decode or its checksum is wrong: it was cut short or changed on the way, or one side has a fault. Nothing was built from it.\nWay out: try again. If it happens again, compare vosrun --version on both nodes and look into the log of the target's job.",
    },
    Code {
        code: "VOS-KERNEL",
        title: "the target's kernel lacks something the job needs",
        text: "The job holds a kind of state that the target's kernel cannot make: a feature too new for it, or one left out when it was built.\nWay out: move to a node with a kernel at least as new; vosrun doctor on the target shows what it has.",
    },
    Code {
        code: "VOS-LINK",
        title: "the connection between the nodes was cut",
        text: "It ended or stood still before the move was decided. The source gave the move up and let the job go on; the target throws its copy away.\nWay out: try again when the network is back; vosrun nodes shows who can be reached.",
    },
    Code {
        code: "VOS-LOST",
        title: "the job runs nowhere any more",
        text: "The host that held the only copy went down or the copy was killed. Nothing can bring the program's state back.\nWay out: start the program again.",
    },
    Code {
        code: "VOS-MAPPING",
        title: "a memory mapping that cannot move",
        text: "The mapping named belongs to a device, to hardware, or to memory that other processes outside the job write to. Its content is not the job's alone, so a copy elsewhere would not be the same thing.\nWay out: let the program close what the mapping belongs to, or let it finish here.",
    },
    Code {
        code: "VOS-MEMORY",
        title: "the target has not enough memory",
        text: "The job's memory does not fit into what the target has free, or into the limits (RLIMIT_AS, RLIMIT_MEMLOCK, cgroup) it may give.\nWay out: free memory there, raise the limit named, or choose another node; vosrun nodes shows what each has free.",
    },
    Code {
        code: "VOS-NO-PEER",
        title: "no node of that name is known here",
        text: "A job moves only between nodes that have joined each other.\nWay out: vosrun nodes lists the known names; a new one joins with: vosrun node --join \"$(vosrun token)\".",
    },
    Code {
        code: "VOS-PID-TAKEN",
        title: "a process number the job needs is taken at the target",
        text: "The job keeps its pids and tids. Where the target allows a pid namespace they are always free; here it does not, and another process has the number named.\nWay out: try again when that process has ended, or allow user namespaces at the target (vosrun doctor there says how).",
    },
    Code {
        code: "VOS-PREPARED",
        title: "a complete copy waits at the target, frozen",
        text: "The target has the whole job but not the source's decision. It neither runs nor forgets the copy, and asks the source until it gets an answer.\nWay out: bring the source or the connection back. Only if you know that the source's copy can never run: vosrun recover JOB --dead NODE at the target.",
    },
    Code {
        code: "VOS-PROTO",
        title: "the two nodes run versions that do not understand each other",
        text: "Both sides name the version of their protocol before anything else; these two have none in common. Nothing was sent.\nWay out: install the same version of vosrun on both (vosrun --version) and start their nodes again.",
    },
    Code {
        code: "VOS-SECCOMP",
        title: "the program has put a seccomp filter on itself",
        text: "A filter may forbid the very calls by which the job is rebuilt at the target, and only a privileged process may read it back or step around it.\nWay out: run the program without its sandbox (many have an option for that), or move it with CAP_SYS_ADMIN on both nodes.",
    },
    Code {
        code: "VOS-SUPERVISOR",
        title: "the job's supervisor went away",
        text: "The vosrun process that watches over the job ended or was killed. A job does not die with its supervisor: it goes on running where it is, but the few calls that the supervisor answers fail with ENOSYS and it cannot be moved.\nWay out: vosrun adopt JOB takes it up again; vosrun ps shows the jobs that wait for it as ORPHANED.",
    },
    Code {
        code: "VOS-SYSV",
        title: "System V shared memory, semaphores or queues",
        text: "The job is attached to IPC objects that processes outside the job can use too. They have no owner that could take them along.\nWay out: let the program detach them, or use memory-mapped files or POSIX shared memory instead.",
    },
    Code {
        code: "VOS-TARGET",
        title: "the target could not rebuild the job",
        text: "The supervisor at the target failed or died before it was ready. The source gave the move up and let the job go on.\nWay out: the sentence names the step and the object; the rest stands in the target's log, STATE/jobs/ID/log. vosrun doctor on the target tries what a move needs.",
    },
    Code {
        code: "VOS-TIMEOUT",
        title: "the other side took too long",
        text: "Before the commit the source waits only so long for the target, because the job stands still meanwhile. It gave the move up and let the job go on.\nWay out: try again when the target or the network has less to do.",
    },
    Code {
        code: "VOS-UNREACHABLE",
        title: "the node does not answer",
        text: "It is known, but no connection to its address came about: it is down, its daemon is not running, or a firewall is in between. The job was not touched.\nWay out: start vosrun node there, check the address with vosrun nodes, then try again.",
    },
    Code {
        code: "VOS-USERNS",
        title: "the target allows no namespaces",
        text: "Without root, a job is rebuilt in user, pid and time namespaces so that its pids and clocks stay what they were. The target's kernel or its settings forbid them to ordinary users.\nWay out: on the target: sudo sysctl user.max_user_namespaces=10000, and where present kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; or run its node as root. vosrun doctor there tries it.",
    },
    Code {
        code: "VOS-VFORK",
        title: "the job is between vfork and exec",
        text: "A parent is suspended in vfork(2) until its child calls execve or ends, and both use the same memory. This lasts an instant as a rule.\nWay out: try again; if it lasts, the child hangs before its exec (vosrun inspect JOB shows it).",
    },
];

/// Finds a code, in any letter case.
#[must_use]
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| c.code.eq_ignore_ascii_case(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_unique_and_complete() {
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
        for c in CODES {
            assert!(c.code.starts_with("VOS-"), "{}", c.code);
            assert!(c.text.contains("\nWay out: "), "{}", c.code);
            assert!(c.title.len() <= 70, "{}", c.code);
        }
    }

    #[test]
    fn found_in_any_case() {
        assert_eq!(find("vos-busy").map(|c| c.code), Some("VOS-BUSY"));
        assert!(find("VOS-").is_none());
    }
}
