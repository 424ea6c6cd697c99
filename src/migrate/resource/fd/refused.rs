//! What does not move, each by its name. [`Special`] comes before the kinds that would take
//! such a file for a regular one, [`Rest`] takes whatever is left.

use super::{CaptureCx, FdError, FdKind, FdView};
use crate::capabilities::Area::Descriptors;
use crate::capabilities::{Capability, Support};

/// Start of the link, code, cause, remedy.
struct Rule(&'static str, &'static str, &'static str, &'static str);

const CLOSE: &str = "let the program close it, or let it finish here";
const CONFIGURE: &str = "configure the program to work without it";

const RULES: &[Rule] = &[
    Rule(
        "(unreachable)",
        "VOS-FILE-LOCAL",
        "the file lies outside of the visible file tree",
        CLOSE,
    ),
    Rule("/dmabuf:", "VOS-DEV-GPU", "it is memory of a graphics device", "stop using the GPU"),
    Rule("/secretmem", "VOS-SECRETMEM", "secret memory cannot be read from outside", CONFIGURE),
    Rule(
        "anon_inode:[fanotify]",
        "VOS-FANOTIFY",
        "fanotify watches file systems of this machine",
        CLOSE,
    ),
    Rule(
        "anon_inode:[io_uring]",
        "VOS-IO-URING",
        "the kernel may be working on requests in its rings",
        "start the program under vosrun, which makes it do without io_uring",
    ),
    Rule(
        "anon_inode:[landlock-ruleset]",
        "VOS-LANDLOCK",
        "a Landlock ruleset cannot be read out again",
        CLOSE,
    ),
    Rule("anon_inode:[fscontext]", "VOS-MOUNT", "it is a mount in the making", CLOSE),
    Rule("anon_inode:[iommufd]", "VOS-DEV", "it stands for devices of this machine", CLOSE),
    Rule("anon_inode:[perf_event]", "VOS-PERF", "it counts events of this machine", CLOSE),
    Rule(
        "anon_inode:[userfaultfd]",
        "VOS-USERFAULTFD",
        "the program handles page faults itself",
        CONFIGURE,
    ),
    Rule("anon_inode:[vfio", "VOS-DEV", "it stands for a device of this machine", CLOSE),
    Rule("anon_inode:bpf", "VOS-BPF", "BPF programs and maps belong to this kernel", CLOSE),
    Rule("anon_inode:btf", "VOS-BPF", "BPF programs and maps belong to this kernel", CLOSE),
    Rule(
        "anon_inode:seccomp notify",
        "VOS-SECCOMP",
        "it answers the system calls of another process",
        CLOSE,
    ),
    Rule("anon_inode:kvm", "VOS-DEV", "it is a virtual machine or a part of one", CLOSE),
    Rule(
        "anon_inode:sync_file",
        "VOS-DEV-GPU",
        "it is a fence of a graphics device",
        "stop using the GPU",
    ),
];

/// File systems that are windows into this kernel: proc, sysfs, debugfs, tracefs, cgroup,
/// cgroup2, securityfs, selinuxfs, bpf, configfs, efivarfs (linux/magic.h).
const KERNEL: [i64; 11] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x0027_e0eb,
    0x6367_7270,
    0x7363_6673,
    0xf97c_ff8c,
    0xcafe_4a11,
    0x6265_6570,
    0xde5e_81e4,
];
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Code, cause and remedy of what [`Special`] recognises.
fn special(view: &FdView) -> Option<(&'static str, &'static str, &'static str)> {
    if KERNEL.contains(&view.fs) {
        let cause = "it is a file of this kernel (proc, sysfs or the like)";
        return Some(("VOS-PROC-FD", cause, "let the program open it when it reads it"));
    }
    if view.link.split_once(":[").is_some_and(|(kind, _)| NAMESPACES.contains(&kind)) {
        return Some(("VOS-NSFD", "it stands for a namespace of this machine", CLOSE));
    }
    let rule = RULES.iter().find(|rule| view.link.starts_with(rule.0))?;
    // A file of that name on a disk is a file.
    let plain = rule.0.starts_with('/') && !view.says_deleted() && rule.0 != "/dmabuf:";
    (!plain).then_some((rule.1, rule.2, rule.3))
}

/// Files of kernel file systems, and objects of one kernel.
pub(super) struct Special;

impl FdKind for Special {
    fn name(&self) -> &'static str {
        "special"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[
                Capability::refused(
                    Descriptors,
                    "landlock",
                    "rulesets of Landlock",
                    "VOS-LANDLOCK",
                ),
                Capability::refused(
                    Descriptors,
                    "namespace-fd",
                    "descriptors of namespaces",
                    "VOS-NSFD",
                ),
                Capability::refused(Descriptors, "fanotify", "fanotify groups", "VOS-FANOTIFY"),
                Capability::new(Descriptors, "io-uring", "io_uring", Support::Absent("ENOSYS"))
                    .attached(Support::Refused("VOS-IO-URING")),
                Capability::refused(Descriptors, "perf", "performance counters", "VOS-PERF"),
                Capability::refused(Descriptors, "bpf", "BPF programs and maps", "VOS-BPF"),
                Capability::refused(Descriptors, "userfaultfd", "userfaultfd", "VOS-USERFAULTFD"),
                Capability::refused(
                    Descriptors,
                    "secretmem",
                    "memory of memfd_secret(2)",
                    "VOS-SECRETMEM",
                ),
                Capability::refused(
                    Descriptors,
                    "gpu",
                    "accelerators and their memory",
                    "VOS-DEV-GPU",
                ),
                Capability::refused(Descriptors, "kvm", "virtual machines, vfio", "VOS-DEV"),
            ]
        }
    }

    fn recognises(&self, view: &FdView) -> bool {
        special(view).is_some()
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let (code, cause, remedy) = special(view).ok_or(FdError::State("special"))?;
        Err(view.refuse(code, cause, remedy))
    }
}

/// What is not known.
pub(super) struct Rest;

impl FdKind for Rest {
    fn name(&self) -> &'static str {
        "other"
    }

    fn capabilities(&self) -> &'static [Capability] {
        const {
            &[Capability::refused(
                Descriptors,
                "unknown",
                "descriptors of a kind that vosrun does not know",
                "VOS-UNKNOWN-FD",
            )]
        }
    }

    fn recognises(&self, _view: &FdView) -> bool {
        true
    }

    fn capture(&self, view: &FdView, _cx: &dyn CaptureCx) -> Result<Vec<u8>, FdError> {
        let cause = "vosrun does not know this kind of descriptor";
        Err(view.refuse("VOS-UNKNOWN-FD", cause, CLOSE))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::find;
    use super::super::testing::{refusal, Here};
    use super::*;
    use crate::codes;

    #[test]
    fn objects_of_this_kernel() {
        let open = |path: &str| File::open(path).expect("open");
        assert_eq!(refusal(&open("/proc/self/ns/net")), "VOS-NSFD");
    }

    #[test]
    fn rules_by_name() {
        let code = |link: &str, mode, fs| {
            let view = FdView { link: link.into(), mode, fs, ..FdView::default() };
            let kind = find(&view).expect("kind");
            match kind.capture(&view, &Here::default()) {
                Err(FdError::Refused(finding)) => finding.code,
                other => format!("{other:?}"),
            }
        };
        for (link, want) in [
            ("anon_inode:[io_uring]", "VOS-IO-URING"),
            ("anon_inode:[userfaultfd]", "VOS-USERFAULTFD"),
            ("anon_inode:bpf-map", "VOS-BPF"),
            ("anon_inode:[perf_event]", "VOS-PERF"),
            ("anon_inode:[fanotify]", "VOS-FANOTIFY"),
            ("anon_inode:kvm-vcpu:0", "VOS-DEV"),
            ("anon_inode:[landlock-ruleset]", "VOS-LANDLOCK"),
            ("anon_inode:[fscontext]", "VOS-MOUNT"),
            ("anon_inode:seccomp notify", "VOS-SECCOMP"),
            ("anon_inode:[something new]", "VOS-UNKNOWN-FD"),
        ] {
            assert_eq!(code(link, 0o600, 0), want, "{link}");
        }
        let file = libc::S_IFREG | 0o600;
        assert_eq!(code("/secretmem (deleted)", file, 0x5345_434d), "VOS-SECRETMEM");
        assert_eq!(code("/sys/fs/cgroup/cgroup.procs", file, 0x6367_7270), "VOS-PROC-FD");
        assert!(special(&FdView { link: "/secretmem.txt".into(), ..FdView::default() }).is_none());
    }

    #[test]
    fn rules_have_explained_codes() {
        for rule in RULES {
            assert!(codes::find(rule.1).is_some(), "{}", rule.1);
        }
    }
}
