//! The target's judgement of a job that is to come: what this machine, its user and its files are.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::message::{Hello, Verdict};
use super::preflight::{cpu_flags, kernel, warning};
use super::resource::creds::User;
use super::resource::fd;
use super::resource::fd::regular::{same_file, Sameness};
use super::resource::fd::unix::judge as judge_sockets;
use super::resource::memory::FileId;
use super::resource::{blocker, schedule};
use crate::boot;
use crate::control::Finding;

/// Is the file at `id.path` here the very same file as at the source, whose boot is `boot`?
/// It may have been written to meanwhile.
#[must_use]
pub fn is_same_file(id: &FileId, boot: &str) -> bool {
    let same = |here: FileId| (here.dev, here.ino) == (id.dev, id.ino);
    boot::is_this(boot) && FileId::of(&id.path).is_ok_and(same)
}

/// The target's judgement.
#[must_use]
pub fn judge(hello: &Hello) -> Verdict {
    let mut verdict = Verdict::default();
    judge_machine(hello, &mut verdict);
    judge_open(hello, &mut verdict);
    let same = |id: &FileId| is_same_file(id, &hello.boot_id);
    verdict.mapped = (0..).zip(&hello.mapped).filter(|(_, f)| !same(f)).map(|(i, _)| i).collect();
    for file in verdict.mapped.iter().filter(|i| hello.written.contains(i)) {
        verdict.findings.push(blocker(
            "VOS-FILE-LOCAL",
            format!("mapping of {}", hello.mapped[*file as usize].path),
            "it is mapped shared and writable, and the target does not see that file",
            "put the file on a file system that both nodes share",
        ));
    }
    let identical = hello.mapped.len() - verdict.mapped.len();
    verdict.ok.push(format!("{identical} mapped files identical"));
    if !verdict.mapped.is_empty() {
        verdict.ok.push(format!("{} to compare", verdict.mapped.len()));
    }
    verdict.findings.extend(judge_sockets(&hello.sockets, verdict.translated));
    for cwd in &hello.cwds {
        judge_directory(cwd, &mut verdict);
    }
    verdict
}

fn judge_directory(cwd: &str, verdict: &mut Verdict) {
    if !Path::new(cwd).is_dir() {
        verdict.findings.push(blocker(
            "VOS-FILE-LOCAL",
            format!("working directory {cwd}"),
            "the target has no such directory",
            "make the directory on the target, or let the program change to one that both have",
        ));
    } else if let Err(e) = nix::unistd::access(cwd, nix::unistd::AccessFlags::X_OK) {
        verdict.findings.push(blocker(
            "VOS-FILE-LOCAL",
            format!("working directory {cwd}: {}", e.desc()),
            "the user that the target's node runs as may not enter it",
            "let that user enter it, or let the program change to another directory",
        ));
    }
}

fn judge_machine(hello: &Hello, verdict: &mut Verdict) {
    let here: HashSet<String> = cpu_flags().into_iter().collect();
    let lacking: Vec<&str> =
        hello.cpu.iter().filter(|f| !here.contains(*f) && matters(f)).map(String::as_str).collect();
    if lacking.is_empty() {
        verdict.ok.push("cpu".into());
    } else {
        verdict.findings.push(blocker(
            "VOS-CPU",
            format!("cpu features {}", lacking.join(" ")),
            "the target's CPU lacks them, and the program may have chosen code that uses them",
            "move to a node with the same or a newer CPU",
        ));
    }
    let available = available_memory();
    let needed = hello.memory + (16 << 20);
    if available < needed {
        let object = format!("{} MiB needed, {} MiB available", needed >> 20, available >> 20);
        let cause = "the target lacks memory";
        let remedy = "free memory on the target, or choose another node";
        verdict.findings.push(blocker("VOS-MEMORY", object, cause, remedy));
    } else {
        verdict.ok.push("memory".into());
    }
    let largest = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    if largest.trim().parse::<i32>().is_ok_and(|max| hello.largest_tid >= max) {
        verdict.findings.push(blocker(
            "VOS-PID-TAKEN",
            format!("thread id {}", hello.largest_tid),
            "the target numbers its processes below that (kernel.pid_max)",
            "raise kernel.pid_max on the target",
        ));
    }
    judge_user(hello, verdict);
    verdict.findings.extend(schedule::judge(&hello.affinities));
    if kernel() != hello.kernel {
        verdict.findings.push(warning(
            "VOS-KERNEL",
            format!("kernel {} → {}", hello.kernel, kernel()),
            "the target runs another kernel: the vdso is reached by jumps",
            "nothing to do",
        ));
    } else {
        verdict.ok.push("kernel".into());
    }
}

fn judge_user(hello: &Hello, verdict: &mut Verdict) {
    let own = User::own();
    let user = hello.user.unwrap_or(own);
    if hello.user.is_none() && own.uid != 0 {
        verdict.findings.push(blocker(
            "VOS-CREDS",
            "user and group ids of the process".into(),
            "they are not all the same; an ordinary user at the target can give it only one",
            "run the target's node as root",
        ));
    } else if !user.is_givable() {
        verdict.ok.push(format!("uid {} as {}", user.uid, own.uid));
    }
    let refused = super::skeleton::try_namespaces(user).err();
    if refused.is_none() && !hello.translate {
        verdict.findings.extend(judge_relayed(hello.connections, hello.datagrams));
        return;
    }
    if !user.is_givable() {
        let why = refused.map_or_else(|| "not wanted".to_owned(), |e| e.to_string());
        verdict.findings.push(blocker(
            "VOS-USERNS",
            format!("namespaces for user {}: {why}", user.uid),
            "the target's node runs as another user and makes none",
            "allow user namespaces on the target (vosrun explain VOS-USERNS), or run its node as \
             the user of the job, or as root",
        ));
        return;
    }
    verdict.translated = true;
    let why = refused.map_or_else(|| "--translate".to_owned(), |e| e.to_string());
    verdict.findings.push(warning(
        "VOS-TRANSLATE",
        format!("no namespaces ({why})"),
        "the job's calls that carry process numbers, clocks, paths or the host name are stopped \
         and translated, some 10 µs each",
        "allow user namespaces on the target for full speed (vosrun explain VOS-TRANSLATE)",
    ));
    let for_root = |f: &&Finding| !f.object.starts_with("process ") || own.uid != 0;
    verdict.findings.extend(hello.untranslated.iter().filter(for_root).cloned());
}

/// Sockets are kept in network namespaces.
fn judge_relayed(connections: u32, datagrams: u32) -> Option<Finding> {
    let failed = |count, probe: fn() -> std::io::Result<()>| match count {
        0 => None,
        _ => probe().err(),
    };
    let tcp = failed(connections, fd::tcp::envelope::probe).map(|e| (connections, "TCP", e));
    let udp = || failed(datagrams, fd::udp::envelope::probe).map(|e| (datagrams, "UDP", e));
    tcp.or_else(udp).map(|(count, name, e)| {
        blocker(
            "VOS-NETNS",
            format!("{count} {name} {}: {e}", if count == 1 { "socket" } else { "sockets" }),
            "the target makes no network namespace, in which the old addresses are the job's",
            "allow them on the target (user.max_net_namespaces), or run its node as root",
        )
    })
}

/// Features that programs ask for; the kernel's own (synthetic flags, mitigations) do not count.
fn matters(flag: &str) -> bool {
    const USER: [&str; 30] = [
        "sse",
        "avx",
        "fma",
        "bmi",
        "popcnt",
        "lzcnt",
        "abm",
        "movbe",
        "aes",
        "pclmul",
        "vpclmul",
        "vaes",
        "sha",
        "gfni",
        "adx",
        "rdrand",
        "rdseed",
        "f16c",
        "xsave",
        "fsgsbase",
        "amx",
        "cx16",
        "ssse3",
        "rdpid",
        "rdtscp",
        "clflushopt",
        "clwb",
        "movdir",
        "erms",
        "fsrm",
    ];
    USER.iter().any(|prefix| flag.starts_with(prefix))
}

/// Memory that a new process can get, bytes: of the machine, and of RLIMIT_AS.
fn available_memory() -> u64 {
    use nix::sys::resource::{getrlimit, Resource};
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .and_then(|l| l.split_whitespace().next())
        .and_then(|w| w.parse().ok())
        .unwrap_or(u64::MAX >> 10);
    let limit = getrlimit(Resource::RLIMIT_AS).map_or(u64::MAX, |(soft, _)| soft);
    (kib << 10).min(limit)
}

fn judge_open(hello: &Hello, verdict: &mut Verdict) {
    for (index, named) in (0..).zip(&hello.open) {
        let answer = same_file(named);
        if matches!(answer, Ok(Sameness::NeedsHash)) {
            verdict.unsure.push(index);
            continue;
        }
        let Some(finding) = named.finding(&answer) else { continue };
        let path = String::from_utf8_lossy(&named.path).into_owned();
        let whole_file = named.file_type == libc::S_IFREG;
        let one_way = named.flags & libc::O_ACCMODE != libc::O_RDWR;
        if named.fd <= 2 && whole_file && one_way {
            verdict.relay.push((named.pid, named.fd));
            verdict.findings.push(warning(
                "VOS-FILE-LOCAL",
                format!("fd {} → {path}", named.fd),
                "the file is only at the source: it is read or written there, through a pipe",
                "nothing to do, unless the program seeks in it",
            ));
        } else {
            verdict.findings.push(finding);
        }
    }
}
