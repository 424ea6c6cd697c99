//! The probes: each tries one thing for real, in a process of its own (`vosrun __probe NAME`)
//! that ends with it.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use nix::sched::{unshare, CloneFlags};
use nix::sys::resource::{getrlimit, Resource};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{getgid, getpid, getuid, Pid};

use crate::cli::children::{end, own_binary};
use crate::cli::out::print;
use crate::cli::raw;
use crate::tracer;

/// CLONE_NEWTIME of linux/sched.h (unshare(2) only).
const NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);
/// A pid that nothing in a fresh namespace has.
const EXACT_PID: i32 = 4321;
/// How far the probe sets the boot clock forward, seconds.
const CLOCK_AHEAD: i64 = 1_000_000;

/// How much depends on a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing can be moved without it.
    Always,
    /// Some programs or ways need it.
    Sometimes,
}

/// One thing to try.
#[derive(Debug)]
pub struct Probe {
    pub name: &'static str,
    pub title: &'static str,
    pub need: Need,
    pub remedy: &'static str,
    /// A note (may be empty), or why it does not work.
    run: fn() -> Result<String, String>,
}

const NAMESPACES: &str = "sudo sysctl user.max_user_namespaces=10000; where present also kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; or run the node as root";
const CONTAINER: &str = "in a container: allow the call in its seccomp profile (docker: --security-opt seccomp=unconfined)";

/// Every probe, in the order of the report.
pub const PROBES: &[Probe] = &[
    Probe {
        name: "ptrace",
        title: "ptrace own children",
        need: Need::Always,
        remedy: CONTAINER,
        run: ptrace_child,
    },
    Probe {
        name: "seccomp",
        title: "seccomp filter",
        need: Need::Always,
        remedy: CONTAINER,
        run: seccomp,
    },
    Probe {
        name: "userns",
        title: "user namespace",
        need: Need::Sometimes,
        remedy: NAMESPACES,
        run: user_namespace,
    },
    Probe {
        name: "set-tid",
        title: "exact pids",
        need: Need::Sometimes,
        remedy: NAMESPACES,
        run: exact_pid,
    },
    Probe {
        name: "proc",
        title: "own /proc",
        need: Need::Sometimes,
        remedy: "in a container: unmask /proc (docker: --security-opt systempaths=unconfined)",
        run: own_proc,
    },
    Probe {
        name: "timens",
        title: "time namespace",
        need: Need::Sometimes,
        remedy: "a kernel with CONFIG_TIME_NS; without it clocks jump at a move",
        run: time_namespace,
    },
    Probe {
        name: "pidfd",
        title: "pidfd_getfd",
        need: Need::Always,
        remedy: "a kernel of at least 5.6; in a container allow the call in its seccomp profile",
        run: pidfd,
    },
    Probe {
        name: "kcmp",
        title: "kcmp",
        need: Need::Always,
        remedy: "a kernel with CONFIG_KCMP; in a container allow the call in its seccomp profile",
        run: kcmp,
    },
    Probe {
        name: "ptmx",
        title: "pseudo-terminals",
        need: Need::Sometimes,
        remedy: "mount devpts: programs in a terminal cannot move here",
        run: ptmx,
    },
    Probe {
        name: "uffd",
        title: "userfaultfd",
        need: Need::Sometimes,
        remedy:
            "a kernel of at least 6.7 with CONFIG_USERFAULTFD; not needed by stop-and-copy moves",
        run: userfaultfd,
    },
    Probe {
        name: "pagemap",
        title: "PAGEMAP_SCAN",
        need: Need::Sometimes,
        remedy: "a kernel of at least 6.7; not needed by stop-and-copy moves",
        run: pagemap_scan,
    },
    Probe {
        name: "limits",
        title: "limits",
        need: Need::Sometimes,
        remedy: "raise it: ulimit -Hn 65536 as root, or nofile in /etc/security/limits.conf",
        run: limits,
    },
    Probe {
        name: "caps",
        title: "capabilities",
        need: Need::Sometimes,
        remedy: "none needed",
        run: capabilities,
    },
    Probe {
        name: "attach",
        title: "attach to other processes",
        need: Need::Sometimes,
        remedy: "start the program with `vosrun --`, or: sudo sysctl kernel.yama.ptrace_scope=0",
        run: attach,
    },
];

/// Options of the hidden command that runs one probe.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    name: String,
    /// For `seize`: the process to seize
    pid: Option<i32>,
}

/// Runs one probe and prints `ok NOTE` or `no REASON`.
///
/// # Errors
/// When the probe is unknown or the output cannot be written.
pub fn probe(args: &ProbeArgs) -> anyhow::Result<u8> {
    let end = match (args.name.as_str(), args.pid) {
        // Helpers of the probes below.
        ("sleep", _) => return Ok(io::copy(&mut io::stdin(), &mut io::sink()).map(|_| 0)?),
        ("seize", Some(pid)) => tracer::raw::seize(pid).map(|()| String::new()).map_err(reason),
        (name, _) => match PROBES.iter().find(|p| p.name == name) {
            Some(probe) => (probe.run)(),
            None => anyhow::bail!("no probe {name}"),
        },
    };
    print(&match end {
        Ok(note) => format!("ok {note}\n"),
        Err(why) => format!("no {why}\n"),
    })?;
    Ok(0)
}

fn reason(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// A child that sleeps until it is ended.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Result<Self, String> {
        let mut command = Command::new(own_binary().map_err(reason)?);
        command.args(["__probe", "sleep"]).stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().map(Self).map_err(reason)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn ptrace_child() -> Result<String, String> {
    let child = Sleeper::start()?;
    tracer::raw::seize(child.pid()).map_err(|e| format!("PTRACE_SEIZE: {e}"))?;
    tracer::raw::interrupt(child.pid()).map_err(|e| format!("PTRACE_INTERRUPT: {e}"))?;
    match tracer::stop::wait(child.pid(), true).map_err(reason)?.map(|w| w.stop) {
        // Exec: its own start was still under way, and that stop uses up the interrupt.
        Some(tracer::Stop::Interrupt | tracer::Stop::Exec(_)) => {}
        other => return Err(format!("stopped by {other:?}, not by PTRACE_INTERRUPT")),
    }
    tracer::raw::regs(child.pid()).map_err(|e| format!("PTRACE_GETREGS: {e}"))?;
    Ok(String::new())
}

/// Sibling seizes sibling: what Yama forbids by its scope 1 (Documentation/admin-guide/LSM/Yama.rst).
fn attach() -> Result<String, String> {
    let sleeper = Sleeper::start()?;
    let mut command = Command::new(own_binary().map_err(reason)?);
    command.args(["__probe", "seize", &sleeper.pid().to_string()]);
    let out = command.output().map_err(reason)?;
    let said = String::from_utf8_lossy(&out.stdout);
    match said.trim().strip_prefix("no ") {
        None => Ok(String::new()),
        Some(why) => {
            let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
            let scope = scope.map(|s| format!("; kernel.yama.ptrace_scope is {}", s.trim()));
            Err(format!("{why}{}", scope.unwrap_or_default()))
        }
    }
}

fn seccomp() -> Result<String, String> {
    raw::trace_getpgid().map_err(reason)?;
    match nix::unistd::getpgid(None) {
        Err(Errno::ENOSYS) => Ok(String::new()),
        other => Err(format!("a RET_TRACE call without tracer gave {other:?}, not ENOSYS")),
    }
}

/// New namespaces with the user mapped to itself (user_namespaces(7)).
fn enter(flags: CloneFlags) -> Result<(), String> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | flags).map_err(|e| format!("unshare: {e}"))?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        fs::write(format!("/proc/self/{file}"), text).map_err(|e| format!("{file}: {e}"))?;
    }
    Ok(())
}

fn user_namespace() -> Result<String, String> {
    enter(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)?;
    nix::unistd::sethostname("vosrun").map_err(|e| format!("sethostname: {e}"))?;
    Ok(String::new())
}

/// Runs `check` in a child with this pid; its error is what came out.
fn in_child(
    pid: i32,
    check: impl FnOnce() -> Result<(), (u8, &'static str)>,
) -> Result<(), String> {
    let child = raw::fork_with_pid(pid).map_err(|e| format!("clone3 with set_tid {pid}: {e}"))?;
    if child == 0 {
        let code = match check() {
            Ok(()) => 0,
            Err((errno, what)) => {
                eprintln!("{what}: {}", Errno::from_raw(i32::from(errno)));
                i32::from(errno.max(1))
            }
        };
        std::process::exit(code);
    }
    match waitpid(Pid::from_raw(child), None) {
        Ok(WaitStatus::Exited(_, 0)) => Ok(()),
        Ok(WaitStatus::Exited(_, errno)) => Err(Errno::from_raw(errno).to_string()),
        other => Err(format!("the child ended with {other:?}")),
    }
}

fn errno(what: &'static str) -> impl FnOnce(Errno) -> (u8, &'static str) {
    move |e| (u8::try_from(e as i32).unwrap_or(u8::MAX), what)
}

fn exact_pid() -> Result<String, String> {
    enter(CloneFlags::CLONE_NEWPID)?;
    in_child(1, || {
        let inner = in_child(EXACT_PID, || {
            if getpid().as_raw() == EXACT_PID {
                Ok(())
            } else {
                Err((Errno::EINVAL as u8, "getpid"))
            }
        });
        inner.map_err(|_| (Errno::EPERM as u8, "clone3 with set_tid"))
    })?;
    Ok(String::new())
}

fn own_proc() -> Result<String, String> {
    enter(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
    in_child(1, || {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(errno("mount /"))?;
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)
            .map_err(errno("mount /proc"))
    })?;
    Ok(String::new())
}

fn time_namespace() -> Result<String, String> {
    let boot_clock = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    enter(CloneFlags::CLONE_NEWPID | NEWTIME)?;
    let offset = format!("boottime {CLOCK_AHEAD} 0");
    fs::write("/proc/self/timens_offsets", offset).map_err(|e| format!("timens_offsets: {e}"))?;
    let before = boot_clock().map_err(reason)?.tv_sec();
    in_child(1, || match boot_clock() {
        Ok(now) if now.tv_sec() - before >= CLOCK_AHEAD => Ok(()),
        _ => Err((Errno::EINVAL as u8, "the boot clock")),
    })?;
    Ok(String::new())
}

fn pidfd() -> Result<String, String> {
    let child = Sleeper::start()?;
    let pidfd = tracer::raw::pidfd_open(child.pid()).map_err(|e| format!("pidfd_open: {e}"))?;
    tracer::raw::pidfd_getfd(&pidfd, 0).map_err(reason)?;
    Ok(String::new())
}

fn kcmp() -> Result<String, String> {
    let me = getpid().as_raw();
    let file = fs::File::open("/dev/null").map_err(reason)?;
    let (copy, other) =
        (file.try_clone().map_err(reason)?, fs::File::open("/dev/null").map_err(reason)?);
    let same =
        |f: &fs::File| tracer::raw::same_description(me, file.as_raw_fd(), me, f.as_raw_fd());
    match (same(&copy).map_err(reason)?, same(&other).map_err(reason)?) {
        (true, false) => Ok(String::new()),
        other => Err(format!("wrong answers {other:?}")),
    }
}

fn ptmx() -> Result<String, String> {
    let pty = nix::pty::openpty(None, None).map_err(reason)?;
    nix::unistd::write(&pty.slave, b"x").map_err(reason)?;
    let mut buf = [0];
    nix::unistd::read(&pty.master, &mut buf).map_err(reason)?;
    Ok(String::new())
}

fn userfaultfd() -> Result<String, String> {
    raw::userfaultfd_wp_async().map(|_| String::new()).map_err(reason)
}

fn pagemap_scan() -> Result<String, String> {
    match raw::scan_own_page() {
        Ok(n) if n > 0 => Ok(String::new()),
        Ok(_) => Err("it did not find a page that is there".into()),
        Err(e) => Err(reason(e)),
    }
}

fn limits() -> Result<String, String> {
    /// Below this a job with many descriptors cannot be rebuilt beside our own.
    const ENOUGH: u64 = 4096;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(reason)?;
    let text = format!("open files {soft} of {hard}");
    if hard < ENOUGH {
        Err(text)
    } else {
        Ok(text)
    }
}

/// The capabilities that make something faster or wider, of those in effect.
fn capabilities() -> Result<String, String> {
    const WANTED: [(u32, &str); 5] = [
        (19, "SYS_PTRACE"),
        (21, "SYS_ADMIN"),
        (24, "SYS_RESOURCE"),
        (12, "NET_ADMIN"),
        (40, "CHECKPOINT_RESTORE"),
    ];
    let status = procfs::process::Process::myself().and_then(|p| p.status()).map_err(reason)?;
    let held: Vec<&str> = WANTED
        .iter()
        .filter(|(bit, _)| status.capeff >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    Ok(match held.len() {
        0 => "none, none needed".into(),
        n if n == WANTED.len() => "all that help".into(),
        _ => held.join(" "),
    })
}
