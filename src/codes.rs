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
        code: "VOS-AFFINITY",
        title: "CPUs that the target does not have",
        text: "A warning: the program may run on certain CPUs only (sched_setaffinity(2)), and the target has not all of them, or may not give them (cpuset(7)). Its threads run there on those that it has; if that is none, on all.\nWay out: nothing to do, unless the program counts on its CPUs.",
    },
    Code {
        code: "VOS-AIO",
        title: "an AIO context of which not everything is known",
        text: "The program has made a context for asynchronous input and output (io_setup(2)). The kernel does not tell whether it works on requests of it: vosrun knows if it has seen all that were submitted, which it does in a program that it has started, as long as its supervisor lives. A child also has the rings of its parent's contexts in its memory, until it executes a program.\nWay out: start the program with vosrun, or let it destroy the context (io_destroy(2)).",
    },
    Code {
        code: "VOS-AIO-BUSY",
        title: "requests of an AIO context are under way",
        text: "The kernel works on requests that the program has submitted (io_submit(2)), and cannot hand them over. The move has waited for them for a second.\nWay out: try again when the program has less to read or write. Requests that wait for something to come (IOCB_CMD_POLL) end when it has come, or when the program cancels them.",
    },
    Code {
        code: "VOS-ASYNC",
        title: "signals to a process outside of the job",
        text: "A descriptor sends signals (O_ASYNC, F_SETOWN or F_SETSIG of fcntl(2)) to a process or group that is not of the job, or tells of changes in a directory that way (F_NOTIFY). At the target that number belongs to somebody else.\nWay out: let the program poll instead, or let it finish here.",
    },
    Code {
        code: "VOS-AUTH",
        title: "the other node did not prove who it is",
        text: "Nodes talk over TLS 1.3 and know each other by their keys. The key that answered is not the one this node knows under that name, or the other node does not know ours. Nothing was sent.\nWay out: join the nodes again: vosrun token on one, vosrun node --join TOKEN on the other. A node whose state folder was removed has a new key and must join again.",
    },
    Code {
        code: "VOS-BPF",
        title: "a BPF program or map",
        text: "BPF objects are loaded into this machine's kernel and work on it.\nWay out: let the program close them, or let it finish here.",
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
        title: "a child process is not traced",
        text: "A job moves with all its processes, but one of them has a child that vosrun does not trace: it would be left behind. This happens when the child could not be seized, for instance because it belongs to another user, is not dumpable (PR_SET_DUMPABLE) while vosrun is an ordinary user's, or has another tracer.\nWay out: wait until the child has ended (vosrun inspect JOB lists the others), end its tracer and attach again, or run vosrun as root.",
    },
    Code {
        code: "VOS-CHROOT",
        title: "a root directory of its own",
        text: "The process lives in a chroot(2) or container whose root directory is not that of its supervisor, so its paths mean other files than those vosrun would look for.\nWay out: run vosrun inside the same container or chroot.",
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
        code: "VOS-CREDS",
        title: "user ids that cannot be given",
        text: "The process, or one of its threads, runs as another user than its supervisor, or its user and group ids are not all the same. An ordinary user can give a process only its own ids.\nWay out: run vosrun and the nodes as root on both sides.",
    },
    Code {
        code: "VOS-CWD",
        title: "a working directory that is gone",
        text: "The working directory of the process has been removed. The target could not enter it.\nWay out: let the program change to a directory that exists.",
    },
    Code {
        code: "VOS-DEV",
        title: "a device of this machine",
        text: "The program has a device open whose state lives in the hardware or driver of this machine. Only null, zero, full, random, urandom and tty are the same everywhere.\nWay out: let the program close the device, or let it finish here.",
    },
    Code {
        code: "VOS-DEV-GPU",
        title: "a GPU or other accelerator",
        text: "The program has an accelerator open; its memory and queues live in the device and cannot be read.\nWay out: stop using the GPU, or let the program finish here.",
    },
    Code {
        code: "VOS-DISK-FULL",
        title: "no space left in a state folder",
        text: "The journal, or a file that had to be shipped, could not be written. A move that cannot be written down is not begun, or is given up before the commit.\nWay out: make room on the file system that holds the state folder named, or point --state-dir of that node to another one.",
    },
    Code {
        code: "VOS-EPOLL-ORPHAN",
        title: "an epoll entry without a descriptor",
        text: "An epoll instance watches an object to which the program has no descriptor any more, for example one that is in flight in a Unix socket (see epoll(7), questions and answers). It cannot be found to be watched again.\nWay out: let the program remove entries with EPOLL_CTL_DEL before it closes descriptors.",
    },
    Code {
        code: "VOS-EVENTFD",
        title: "an eventfd whose mode is unknown",
        text: "A warning: kernels before Linux 6.5 do not tell whether an eventfd was made with EFD_SEMAPHORE. It is restored without.\nWay out: nothing to do unless the program uses EFD_SEMAPHORE; else move it from a newer kernel.",
    },
    Code {
        code: "VOS-EXE",
        title: "an executable that is gone",
        text: "The file that the process was started from has been removed or replaced, so that it could not be told to the new process (/proc/PID/exe).\nWay out: start the program again from the new file.",
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
        code: "VOS-FANOTIFY",
        title: "a fanotify group",
        text: "fanotify(7) watches file systems of this machine.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-FENCED",
        title: "this node no longer owns the job",
        text: "A later owner of the job exists: its epoch is higher than the one this node knows. What this node holds is old and stays frozen so that the job cannot run twice.\nWay out: work with the job where it is now; vosrun ps on the other nodes shows it.",
    },
    Code {
        code: "VOS-FIFO",
        title: "a FIFO that others use",
        text: "A process outside of the job has the same FIFO open, or the FIFO has lost its name. After a move its two ends would be on two machines.\nWay out: run both ends in one job, or connect them by a pipe, which vosrun relays.",
    },
    Code {
        code: "VOS-FILE-BIG",
        title: "too much content that exists only here",
        text: "A file without a name, or a memfd, holds more than 1024 MiB. It would have to be sent while the program stands still.\nWay out: let the program close it, or keep the content in a named file that both nodes share.",
    },
    Code {
        code: "VOS-FILE-LOCAL",
        title: "a file that the target lacks",
        text: "A file is open that the target does not have, has with another content, or has apart from this one while the program writes to it.\nWay out: put the file on a file system that both nodes share, or copy it to the target.",
    },
    Code {
        code: "VOS-FILE-UNLINKED",
        title: "a file that lost its name",
        text: "The name by which a file or directory was opened is gone or leads to something else, while the file lives on under another name or on a detached mount. A copy would part from it.\nWay out: let the program close it, or move the file back to that name.",
    },
    Code {
        code: "VOS-HERE",
        title: "the job is already on that node",
        text: "The target is the node where the job runs now. Nothing was touched.\nWay out: name another node; vosrun nodes lists them.",
    },
    Code {
        code: "VOS-HUGETLB",
        title: "a memory file in huge pages",
        text: "A memfd was made with MFD_HUGETLB. Huge pages have to be reserved by the administrator of each machine.\nWay out: start the program without huge pages.",
    },
    Code {
        code: "VOS-IMAGE",
        title: "the job's image arrived damaged",
        text: "What the target received does not decode or its checksum is wrong: it was cut short or changed on the way, or one side has a fault. Nothing was built from it.\nWay out: try again. If it happens again, compare vosrun --version on both nodes and look into the log of the target's job.",
    },
    Code {
        code: "VOS-INOTIFY",
        title: "inotify watches whose paths are unknown",
        text: "The kernel shows the inode of an inotify(7) watch but not its path. vosrun notes the path when it starts the program; for an attached program, or when the watched file has been renamed since, it is not known.\nWay out: start the program under vosrun instead of attaching.",
    },
    Code {
        code: "VOS-INOTIFY-EVENTS",
        title: "unread file events",
        text: "An inotify instance holds events that the program has not read for a second. They cannot be put into a new instance.\nWay out: move again when the program has read them.",
    },
    Code {
        code: "VOS-IO-URING",
        title: "an io_uring",
        text: "The kernel may be working on requests in the program's rings, which cannot be stopped and read.\nWay out: start the program under vosrun, which answers ENOSYS to io_uring_setup so that programs do without.",
    },
    Code {
        code: "VOS-KCMP",
        title: "shared descriptors cannot be told",
        text: "A warning: kcmp(2) does not work on this machine, so that descriptors made by dup(2) cannot be told from those opened apart. After a move they will not share their offset.\nWay out: use a kernel with CONFIG_KCMP, and allow kcmp in the seccomp filter around vosrun.",
    },
    Code {
        code: "VOS-KERNEL",
        title: "the target's kernel lacks something the job needs",
        text: "The job holds a kind of state that the target's kernel cannot make: a feature too new for it, or one left out when it was built.\nWay out: move to a node with a kernel at least as new; vosrun doctor on the target shows what it has.",
    },
    Code {
        code: "VOS-KEYRING",
        title: "keys that stay on this machine",
        text: "A warning: the program has made keys or keyrings (add_key(2), keyctl(2)). The kernel keeps them, some from the program too, so they do not move: after the move a thread and a process have no keyring, and a session has that of the target's node.\nWay out: nothing to do if the program can do without its keys, or makes them anew; else let it finish here.",
    },
    Code {
        code: "VOS-LANDLOCK",
        title: "a Landlock ruleset",
        text: "A ruleset of landlock_create_ruleset(2) is open, which the kernel does not give out again.\nWay out: let the program close it; most do as soon as they have restricted themselves.",
    },
    Code {
        code: "VOS-LEADER",
        title: "the first thread has ended, others go on",
        text: "The thread with which the process began has called pthread_exit(3) or _exit(2) as a thread, and others of the process go on. The kernel keeps only the number of such a thread, and what is asked through it has gone with it.\nWay out: let the program finish here, or let its first thread wait for the others.",
    },
    Code {
        code: "VOS-LEASE",
        title: "a write lease on a file that others have open too",
        text: "The program holds a write lease (F_SETLEASE of fcntl(2)), which only somebody can have who has the file open alone, and which ends as soon as anybody else opens it. So its file is closed at the source and opened at the target after the decision. That cannot be done with a descriptor that several processes have or that is on its way in a socket, with a file that is mapped or has no name, and not where seccomp filters of the program may forbid to open it. Other leases move.\nWay out: let the program give the lease back, then move it.",
    },
    Code {
        code: "VOS-LEASE-BREAK",
        title: "a lease that is being broken",
        text: "Another program wants to use a file on which the program holds a lease, and the program has not given the lease back for a second, or that came during the move.\nWay out: move again when it has, or when the time of /proc/sys/fs/lease-break-time is over.",
    },
    Code {
        code: "VOS-LINK",
        title: "the connection between the nodes was cut",
        text: "It ended or stood still before the move was decided. The source gave the move up and let the job go on; the target throws its copy away.\nWay out: try again when the network is back; vosrun nodes shows who can be reached.",
    },
    Code {
        code: "VOS-LOCK",
        title: "a file lock that cannot come along",
        text: "Another program waits for a lock (fcntl(2), flock(2)) that the job holds: it would get it the moment the job leaves, and the job would go on without it. Or the file stays at home (a standard stream), or the lock is of a kind that vosrun does not know.\nWay out: let the program release the lock, or end the program that waits (/proc/locks names it), then move it.",
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
        code: "VOS-MEMFD-SEAL",
        title: "a sealed memfd with a writable mapping",
        text: "A memfd is sealed with F_SEAL_FUTURE_WRITE while a writable shared mapping of it exists. That mapping could not be made again.\nWay out: let the program unmap the writable mapping first.",
    },
    Code {
        code: "VOS-MEMORY",
        title: "the target has not enough memory",
        text: "The job's memory does not fit into what the target has free, or into the limits (RLIMIT_AS, RLIMIT_MEMLOCK, cgroup) it may give.\nWay out: free memory there, raise the limit named, or choose another node; vosrun nodes shows what each has free.",
    },
    Code {
        code: "VOS-MOUNT",
        title: "a mount in the making",
        text: "A descriptor of fsopen(2) or fspick(2) is open. It configures a file system of this machine.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-MQ-BUSY",
        title: "messages in a queue that is to tell of the next one",
        text: "A process has asked a POSIX message queue to tell it of the next message (mq_notify(3)), and messages wait in it already. They cannot be looked at without using the notification up. The move has waited for a second for the program to take them.\nWay out: let the program take all its messages when it is told of one, then move it.",
    },
    Code {
        code: "VOS-MQ-NOTIFY",
        title: "a notification of messages with an unknown value",
        text: "A process has asked a POSIX message queue to tell it of the next message (mq_notify(3)). The kernel does not show with which value: vosrun knows it of a program that it has started, as long as its supervisor lives. One that begins a thread (SIGEV_THREAD) goes through a netlink socket, which stays.\nWay out: start the program with vosrun, let it wait in mq_receive(3) or poll(2) instead, or move it when the notification has come.",
    },
    Code {
        code: "VOS-MQUEUE",
        title: "a POSIX message queue that stays here",
        text: "A process outside of the job has the queue open as well, or its messages may not be read by the job's user. After a move its two ends would be on two machines.\nWay out: run all that use the queue in one job, let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-NAMESPACE",
        title: "a namespace of its own",
        text: "A process or thread of the job is in another namespace (namespaces(7)) than the rest of the job: it has called unshare(2), setns(2) or clone(2) for a network, file system view, host name or users of its own, as containers and sandboxes do. Vosrun gives a job one set of namespaces at the target.\nWay out: start the program with its sandbox switched off, or run vosrun inside of the container.",
    },
    Code {
        code: "VOS-NETLINK",
        title: "a netlink socket",
        text: "The socket talks to this machine's kernel, about this machine.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-NETNS",
        title: "no network namespace at the target",
        text: "The job has TCP or UDP sockets, whose addresses are those of its home. At the target its sockets are in network namespaces in which these addresses are its own, and the target's kernel makes none, or (for UDP) no pair of veth links or no routing rules there.\nWay out: allow user and network namespaces there (sysctl user.max_net_namespaces, vosrun explain VOS-USERNS), run its node as root, or let the program close its sockets.",
    },
    Code {
        code: "VOS-NO-PEER",
        title: "no node of that name is known here",
        text: "A job moves only between nodes that have joined each other.\nWay out: vosrun nodes lists the known names; a new one joins with: vosrun node --join \"$(vosrun token)\".",
    },
    Code {
        code: "VOS-NSFD",
        title: "a namespace",
        text: "A descriptor stands for a namespace of this machine (namespaces(7)).\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-PERF",
        title: "a performance counter",
        text: "perf_event_open(2) counts events of this machine.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-PID-TAKEN",
        title: "a process number the job needs is taken at the target",
        text: "The job keeps its pids and tids. Where the target allows a pid namespace they are always free; here it does not, and another process has the number named.\nWay out: try again when that process has ended, or allow user namespaces at the target (vosrun doctor there says how).",
    },
    Code {
        code: "VOS-PIDFD",
        title: "a pidfd of a process outside of the job",
        text: "The descriptor stands for a process that is not of the job, and would stand for nobody at the target; or for a single thread (PIDFD_THREAD), and several processes have it or an epoll watches it. All others of the job's own processes and threads move, dead ones included.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-PIPE",
        title: "a pipe whose bytes cannot be copied",
        text: "The bytes in flight in a pipe could not be copied without taking them out: the limits of pipe(7) are used up, or packets (O_DIRECT) and plain bytes are mixed in it.\nWay out: move again when the pipe has been read, or raise fs.pipe-user-pages-soft.",
    },
    Code {
        code: "VOS-PREPARED",
        title: "a complete copy waits at the target, frozen",
        text: "The target has the whole job but not the source's decision. It neither runs nor forgets the copy, and asks the source until it gets an answer.\nWay out: bring the source or the connection back. Only if you know that the source's copy can never run: vosrun recover JOB --dead NODE at the target.",
    },
    Code {
        code: "VOS-PROC-FD",
        title: "a file of this kernel",
        text: "A file of proc, sysfs, cgroupfs or the like is open that tells of a process outside of the job, of one descriptor, mapping or thread, or that controls this machine. Files of the job's own processes move, and those that only tell of the machine.\nWay out: let the program close it; most programs open such files only while they read them.",
    },
    Code {
        code: "VOS-PROTO",
        title: "the two nodes run versions that do not understand each other",
        text: "Both sides name the version of their protocol before anything else; these two have none in common. Nothing was sent.\nWay out: install the same version of vosrun on both (vosrun --version) and start their nodes again.",
    },
    Code {
        code: "VOS-PTY",
        title: "a pty that cannot be made anew",
        text: "The program has the master of a terminal in a state that cannot be made anew: another program has a side of it open as well or is controlled by it, it has a line discipline of its own, or it answers no call any more.\nWay out: let the program close that terminal, or start all programs that use it in one job.",
    },
    Code {
        code: "VOS-PTY-BUSY",
        title: "a pty that is just being used",
        text: "A terminal that the program has made cannot move at this instant: nobody has opened its slave yet, a change of its state is not read (packet mode), or a session has just got it. A move waits a second for that to pass.\nWay out: move again when the program has gone on a little.",
    },
    Code {
        code: "VOS-SECCOMP",
        title: "seccomp filters of the program that cannot move",
        text: "The program has put seccomp filters on itself. They move if they let all calls pass that vosrun makes in the program's place during a move (memory, signals, prctl(2), clocks); if no other process is asked for answers (SECCOMP_RET_USER_NOTIF); if the program could install them again (no_new_privs or CAP_SYS_ADMIN); and if the threads of a process have them all in common, or each for itself.\nWay out: start the program with its sandbox switched off (many have an option like --no-sandbox), or let it finish.",
    },
    Code {
        code: "VOS-SECCOMP-UNSEEN",
        title: "seccomp filters that vosrun has not seen",
        text: "The program has put seccomp filters on itself, which the kernel does not give out again to everybody. Vosrun sees those that a program installs which it has started, as long as its supervisor lives.\nWay out: start the program with vosrun, or with its sandbox switched off (many have an option like --no-sandbox), or let it finish.",
    },
    Code {
        code: "VOS-SECRETMEM",
        title: "secret memory",
        text: "Memory of memfd_secret(2) cannot be read by anything but the program itself.\nWay out: configure the program to work without it.",
    },
    Code {
        code: "VOS-SHARED-MEMORY",
        title: "memory shared with a process outside of the job",
        text: "The job shares memory without a name (mmap(2) with MAP_SHARED and MAP_ANONYMOUS, a memfd, or a deleted file) with a process that does not belong to it. On two machines each would see only its own changes. An adopted program may have processes that it started as daemons before: nothing tells any more that they are its own.\nWay out: start the program with vosrun, so that all its processes belong to the job, or end the other process.",
    },
    Code {
        code: "VOS-SHARED-TASK",
        title: "processes that share something in a way that cannot be made anew",
        text: "Processes of the job share their memory, descriptor table, working directory, signal handlers or what semop(2) is to undo, which clone(2) allows without making them threads of one process. Only a child gets a share of what its parent has. These processes are no longer, or were never, parent and child: memory and handlers cannot go through a process that has others, nor two things of one kind through the same process.\nWay out: wait until one of them has ended or has executed another program.",
    },
    Code {
        code: "VOS-SOCKET",
        title: "a socket of another family",
        text: "The socket belongs to an address family that vosrun does not move.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-SUPERVISOR",
        title: "the job's supervisor went away",
        text: "The vosrun process that watches over the job ended or was killed. A job does not die with its supervisor: it goes on running where it is, but the few calls that the supervisor answers fail with ENOSYS and it cannot be moved.\nWay out: vosrun adopt JOB takes it up again; vosrun ps shows the jobs that wait for it as ORPHANED.",
    },
    Code {
        code: "VOS-SYSV",
        title: "System V shared memory, semaphores or queues",
        text: "Segments, semaphore sets and message queues move with a job that has them alone. This one is used by a process outside of the job too, which would be left without it; or what the job has of it cannot be asked: the sentence says which.\nWay out: run all that use it in one job, let the program give it up, or let it finish here."
    },
    Code {
        code: "VOS-TARGET",
        title: "the target could not rebuild the job",
        text: "The supervisor at the target failed or died before it was ready. The source gave the move up and let the job go on.\nWay out: the sentence names the step and the object; the rest stands in the target's log, STATE/jobs/ID/log. vosrun doctor on the target tries what a move needs.",
    },
    Code {
        code: "VOS-TCP",
        title: "a TCP socket that is neither connected nor listening",
        text: "TCP connections and listening sockets move: the home keeps the real socket and relays it. The program has a TCP socket that is not connected (yet), or whose connection is over; such sockets do not move. The move has waited for a second.\nWay out: let the program close the socket, or let it finish here.",
    },
    Code {
        code: "VOS-TCP-AWAY",
        title: "a TCP socket that was connected or listens away from home",
        text: "A connection that the program makes after a move is the node's where it runs, and so is a socket that listens since then; only the job's home keeps them for it.\nWay out: let the program close the socket, or let it finish on this node.",
    },
    Code {
        code: "VOS-TCP-BUSY",
        title: "a TCP connection in a state that passes",
        text: "The program is just making a connection (connect(2)), or has urgent data to read (MSG_OOB). The move has waited for a second.\nWay out: try again in a moment.",
    },
    Code {
        code: "VOS-TCP-OPTION",
        title: "a TCP socket with an option that cannot go along",
        text: "The connection uses something that depends on this machine, or on what is under way in its kernel: a filter (SO_ATTACH_FILTER), an interface (SO_BINDTODEVICE, a link-local address), queued errors and timestamps (IP_RECVERR, SO_TIMESTAMPING, SO_ZEROCOPY), kernel TLS (TCP_ULP), TCP_REPAIR, IP_MINTTL or SO_PEEK_OFF.\nWay out: let the program switch it off or close the connection, or let it finish here.",
    },
    Code {
        code: "VOS-THREAD-FILES",
        title: "a thread with descriptors of its own that cannot be moved",
        text: "A thread has left the descriptor table of its process (CLONE_FILES of unshare(2)). It moves with its table, but not what depends on the table itself: an epoll instance, a locked file or a descriptor that sends signals which only this thread has, record locks of the process (fcntl(2)), a table that several such threads or another process have too. Kernels before Linux 6.9 do not give out the descriptors of a thread at all.\nWay out: wait until the thread has ended.",
    },
    Code {
        code: "VOS-TIMEOUT",
        title: "the other side took too long",
        text: "Before the commit the source waits only so long for the target, because the job stands still meanwhile. It gave the move up and let the job go on.\nWay out: try again when the target or the network has less to do.",
    },
    Code {
        code: "VOS-TIMER",
        title: "a timer that the kernel does not tell all of",
        text: "A POSIX timer on CLOCK_THREAD_CPUTIME_ID in a program of several threads is not set. While it runs, vosrun finds out on which thread's CPU time it does; the kernel itself does not say so. Or a thread sleeps on a clock of CPU time (clock_nanosleep(2)), which begins anew at the target.\nWay out: let the program set the timer, or delete it; or move it when the sleep is over.",
    },
    Code {
        code: "VOS-TRANSLATE",
        title: "no namespaces at the target",
        text: "The target makes no user, pid and time namespaces, because it refuses them or because of --translate, so the job gets other process numbers, clocks and another host name there. Vosrun translates them at the calls that carry them, which stops each of those for some 10 µs: clock_gettime, getpid, open, stat, fork, wait, kill and others. As a blocker it names what cannot be translated: processes that share something by clone(2) have to have one program and the common signal at their end; a descriptor that only names a terminal (O_PATH) would name another one; a seccomp filter of the program's own that looks at a translated argument would see another one than the program gives; an open file of /proc that shows memory is opened anew when the process has its memory, which several processes could not share. A process that is not dumpable is so in its own eyes only (unless the target's node is root's): that is a warning.\nWay out: allow namespaces on the target (vosrun explain VOS-USERNS); or let the program close what is named.",
    },
    Code {
        code: "VOS-TREE",
        title: "a process tree that cannot be built anew",
        text: "Every process of a job gets its old number, parent, group and session at the target. Sessions are inherited or begun, and cannot be joined, so a process that came into its place in an unusual way cannot be put there again; nor can more than 5000 processes.\nWay out: the sentence names the process. Wait until it has ended, or end it.",
    },
    Code {
        code: "VOS-TTY",
        title: "a terminal that is not relayed",
        text: "The program has a terminal open besides its own and those that it has made. Only the terminal that the job was started in is relayed.\nWay out: start the program in one terminal, or without it.",
    },
    Code {
        code: "VOS-UDP",
        title: "a UDP socket",
        text: "UDP sockets move: the home keeps the real socket and relays its datagrams. The program has one that is bound to a multicast or broadcast address, which cannot be relayed.\nWay out: let the program bind it to any address, close it, or finish here.",
    },
    Code {
        code: "VOS-UDP-AWAY",
        title: "a UDP socket that got its address away from home",
        text: "A UDP socket that the program binds or sends from first after a move has an address of the node where it runs then; only the job's home keeps one for it.\nWay out: let the program close the socket, or let it finish on this node.",
    },
    Code {
        code: "VOS-UDP-OPTION",
        title: "an option of a UDP socket that cannot go along",
        text: "The program has set an option of a UDP socket that means something of this machine, or of what is under way: SO_ZEROCOPY, SO_TIMESTAMPING, SO_TXTIME, IP_MINTTL, UDP_CORK, UDP_ENCAP, SO_BINDTODEVICE, SO_PEEK_OFF, a filter, or a link-local address.\nWay out: let the program switch it off, or let it finish here.",
    },
    Code {
        code: "VOS-UNIX",
        title: "a Unix socket",
        text: "The program has a Unix socket with a filter (SO_ATTACH_FILTER), which cannot be carried.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-UNIX-BACKLOG",
        title: "a connection that is not accepted yet",
        text: "A connection waits to be accepted by a listening Unix socket of the program, and bytes or descriptors wait in it, or its other end is closed. The kernel shows nobody what is in it, so the move waits a second for the program to accept it.\nWay out: move again when the program has accepted it.",
    },
    Code {
        code: "VOS-UNIX-NAME",
        title: "the name of a Unix socket",
        text: "The program has a Unix socket bound to a file that has been replaced by another one, that cannot be told from others, or whose directory the target does not have; or to an abstract name that is taken in the target's network namespace, which two nodes on one machine may share.\nWay out: give the target the directory, or a network namespace of its own.",
    },
    Code {
        code: "VOS-UNIX-NETNS",
        title: "a Unix socket of another network namespace",
        text: "The socket was made in another network namespace than that of the job's supervisor, which cannot see who is at its other end.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-UNIX-PEER",
        title: "a Unix socket that leads out of the job",
        text: "A process outside of the job has the other end of the socket, or has the socket open as well. The two ends would be on two machines.\nWay out: run both programs in one job, or let the program close the connection.",
    },
    Code {
        code: "VOS-UNIX-QUEUE",
        title: "something in a Unix socket that cannot be carried",
        text: "Out-of-band data (MSG_OOB) or an error (SO_ERROR) waits in it, or bytes of a sender that is not known.\nWay out: move again when the program has read it.",
    },
    Code {
        code: "VOS-UNIX-RIGHTS",
        title: "a descriptor on its way in a Unix socket",
        text: "A descriptor was sent over a Unix socket (SCM_RIGHTS) and not received yet, and it is of a kind that cannot be carried that way.\nWay out: move again when the program has received it.",
    },
    Code {
        code: "VOS-UNKNOWN-FD",
        title: "a descriptor of unknown kind",
        text: "vosrun does not know this kind of kernel object and will not guess.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-UNREACHABLE",
        title: "the node does not answer",
        text: "It is known, but no connection to its address came about: it is down, its daemon is not running, or a firewall is in between. The job was not touched.\nWay out: start vosrun node there, check the address with vosrun nodes, then try again.",
    },
    Code {
        code: "VOS-USERFAULTFD",
        title: "a userfaultfd",
        text: "The program handles page faults of its memory itself (userfaultfd(2)).\nWay out: configure the program to work without it.",
    },
    Code {
        code: "VOS-USERNS",
        title: "the target allows no namespaces",
        text: "A job is rebuilt in user, pid and time namespaces so that its pids and clocks stay what they were. The target's kernel or its settings forbid them to its node's user. Without them a job can only have the user that the node runs as (see VOS-TRANSLATE), and this one has another.\nWay out: run the target's node as the job's user; or on the target: sudo sysctl user.max_user_namespaces=10000, and where present kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; or run its node as root. vosrun doctor there tries it.",
    },
    Code {
        code: "VOS-VDSO",
        title: "a signal in the middle of a function of the vdso",
        text: "A signal has interrupted a thread in code that the kernel gives to programs (vdso(7): clock_gettime and others), and its handler has not returned. The target has other code there, into which it could not return. The move waits up to a second for that, or longer on a busy machine.\nWay out: try again; or move it to a node with the same kernel and with namespaces.",
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

    fn is_code(word: &str) -> bool {
        let rest = word.strip_prefix("VOS-").unwrap_or_default();
        !rest.is_empty()
            && rest.chars().all(|c| c.is_ascii_uppercase() || "-0123456789".contains(c))
    }

    /// Every file under `src`.
    fn sources(dir: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => sources(&path, found),
                false => found.push(path),
            }
        }
    }

    #[test]
    fn every_code_that_the_sources_name_is_explained() {
        let mut files = Vec::new();
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for word in code.split('"').filter(|w| is_code(w)) {
                assert!(find(word).is_some(), "{}: {word}", file.display());
            }
        }
    }

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
