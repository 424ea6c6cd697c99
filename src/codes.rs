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
        code: "VOS-ASYNC",
        title: "signal-driven input and output",
        text: "A descriptor is set to send signals (O_ASYNC, F_SETOWN or F_SETSIG of fcntl(2)). Who gets them cannot be carried over yet.\nWay out: let the program poll instead, or let it finish here.",
    },
    Code {
        code: "VOS-BPF",
        title: "a BPF program or map",
        text: "BPF objects are loaded into this machine's kernel and work on it.\nWay out: let the program close them, or let it finish here.",
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
        code: "VOS-FANOTIFY",
        title: "a fanotify group",
        text: "fanotify(7) watches file systems of this machine.\nWay out: let the program close it, or let it finish here.",
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
        code: "VOS-HUGETLB",
        title: "a memory file in huge pages",
        text: "A memfd was made with MFD_HUGETLB. Huge pages have to be reserved by the administrator of each machine.\nWay out: start the program without huge pages.",
    },
    Code {
        code: "VOS-INOTIFY",
        title: "inotify watches whose paths are unknown",
        text: "The kernel shows the inode of an inotify(7) watch but not its path. vosrun notes the path when it starts the program; for an attached program, or when the watched file has been renamed since, it is not known.\nWay out: start the program under vosrun instead of attaching.",
    },
    Code {
        code: "VOS-INOTIFY-EVENTS",
        title: "unread file events",
        text: "An inotify instance holds events that the program has not read. They cannot be put into a new instance.\nWay out: move again when the program has read them.",
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
        code: "VOS-LOCK",
        title: "a file lock or lease",
        text: "The program holds a lock (fcntl(2), flock(2)) or a lease on a file. If it were given up for the move, another program could take it.\nWay out: let the program release the lock, then move it.",
    },
    Code {
        code: "VOS-MEMFD-SEAL",
        title: "a sealed memfd with a writable mapping",
        text: "A memfd is sealed with F_SEAL_FUTURE_WRITE while a writable shared mapping of it exists. That mapping could not be made again.\nWay out: let the program unmap the writable mapping first.",
    },
    Code {
        code: "VOS-MQUEUE",
        title: "a POSIX message queue",
        text: "The queue belongs to the IPC namespace of this machine, and other programs may use it.\nWay out: let the program close the queue, or let it finish here.",
    },
    Code {
        code: "VOS-NETLINK",
        title: "a netlink socket",
        text: "The socket talks to this machine's kernel, about this machine.\nWay out: let the program close it, or let it finish here.",
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
        code: "VOS-PIDFD",
        title: "a pidfd",
        text: "The descriptor stands for a process of this machine.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-PIPE",
        title: "a pipe whose bytes cannot be copied",
        text: "The bytes in flight in a pipe could not be copied without taking them out: the limits of pipe(7) are used up, or packets (O_DIRECT) and plain bytes are mixed in it.\nWay out: move again when the pipe has been read, or raise fs.pipe-user-pages-soft.",
    },
    Code {
        code: "VOS-PROC-FD",
        title: "a file of this kernel",
        text: "A file of proc, sysfs, cgroupfs or the like is open. It shows or controls this machine, and what has been read of it may be half a record.\nWay out: let the program close it; most programs open such files only while they read them.",
    },
    Code {
        code: "VOS-SECRETMEM",
        title: "secret memory",
        text: "Memory of memfd_secret(2) cannot be read by anything but the program itself.\nWay out: configure the program to work without it.",
    },
    Code {
        code: "VOS-SOCKET",
        title: "a socket of another family",
        text: "The socket belongs to an address family that vosrun does not move.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-TCP",
        title: "a TCP socket",
        text: "The program has a TCP connection or a listening socket that cannot be moved or relayed.\nWay out: let the program close the connection, or let it finish here.",
    },
    Code {
        code: "VOS-TTY",
        title: "a terminal that is not relayed",
        text: "The program has a terminal open besides its own, or a pty master. Only the terminal that the job was started in is relayed.\nWay out: start the program in one terminal, or without it.",
    },
    Code {
        code: "VOS-UDP",
        title: "a UDP socket",
        text: "The program has a UDP socket that cannot be moved or relayed.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-UNIX",
        title: "a Unix socket",
        text: "The program has a Unix socket that cannot be moved or relayed.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-UNKNOWN-FD",
        title: "a descriptor of unknown kind",
        text: "vosrun does not know this kind of kernel object and will not guess.\nWay out: let the program close it, or let it finish here.",
    },
    Code {
        code: "VOS-USERFAULTFD",
        title: "a userfaultfd",
        text: "The program handles page faults of its memory itself (userfaultfd(2)).\nWay out: configure the program to work without it.",
    },
];

/// Finds a code, in any letter case.
#[must_use]
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| c.code.eq_ignore_ascii_case(code))
}
