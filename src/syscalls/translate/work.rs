//! What is done at the entry of each call of the table.

use super::table::{self, Sign, Work};
use super::{
    clocks, ipc, messages, numbers, paths, ptys, signalfd, Entry, Making, Then, Translation,
};
use crate::migrate::resource::View;
use crate::tracer::raw;

/// Changes the call, or answers it. `None`: it is made, as changed.
pub(super) fn begin(it: &Translation, work: Work, call: &mut Making) -> Option<Entry> {
    match work {
        Work::Numbers { args, result } => {
            args.iter().for_each(|(arg, sign)| number(call, *arg, *sign));
            if result {
                call.then = Then::Number;
            }
            None
        }
        Work::Which { not } => {
            if !not.contains(&call.arg(0)) {
                number(call, 1, Sign::Plain);
            }
            None
        }
        Work::OwnProcess => own(call.caller.pid),
        Work::OwnThread => own(call.caller.tid),
        Work::Parent => parent(call.caller.pid),
        Work::Kill => kill(call),
        Work::Clone => clone(call),
        Work::WaitId => wait_id(call),
        Work::TimedWait => {
            call.then = Then::SigInfo(call.arg(1));
            None
        }
        Work::Fcntl => fcntl(call),
        Work::Ioctl => ioctl(call),
        Work::Prctl => prctl(call),
        Work::PeerCredentials => {
            if call.arg(1) as i32 == libc::SOL_SOCKET {
                call.then = Then::Word(call.arg(3));
            }
            None
        }
        Work::TimerCreate => clocks::create(call),
        Work::Names => names(it, call),
        Work::Uptime => {
            call.then = Then::Uptime(call.arg(0), clocks::uptime_ahead(it));
            None
        }
        Work::ReadClock => clocks::read(it, call),
        Work::NamedClock => clocks::named(call),
        Work::Sleep => clocks::sleep(it, call),
        Work::TimerfdSet => clocks::set_timer(it, call, true),
        Work::TimerSet => clocks::set_timer(it, call, false),
        Work::Futex => clocks::futex(it, call),
        Work::FutexTime { time, clock } => clocks::futex_time(it, call, time, clock),
        Work::Path { path, at } => paths::path(call, path, at),
        Work::Link { path, at } => paths::link(call, path, at),
        Work::IpcGet(kind) => ipc::get(call, kind),
        Work::IpcUse(kind) => ipc::using(call, kind),
        Work::IpcControl(kind) => ipc::control(call, kind),
        Work::QueueName { opens } => ipc::queue(call, opens),
        Work::Received { many } => messages::received(call, many),
        Work::Sent { many } => messages::sent(call, many),
        Work::SignalFd => {
            // Another number is a signalfd that gets other signals.
            if call.arg(0) as i32 == -1 {
                call.then = Then::SignalFd;
            }
            None
        }
        Work::Duplicate => duplicate(call),
        Work::ReadSignals => read_signals(call),
        Work::Refuse(errno) => Some(Entry::errno(errno)),
    }
}

fn number(call: &mut Making, arg: u8, sign: Sign) {
    let job = call.arg(arg) as i32;
    let host = match sign {
        Sign::Plain => numbers::to_host(job),
        Sign::Group => numbers::to_host_signed(job),
    };
    if host != job {
        call.set(arg, i64::from(host) as u64);
    }
}

fn own(host: i32) -> Option<Entry> {
    Some(Entry::Answer(numbers::to_job(host).into()))
}

/// The parent as /proc has it: ptrace(2) does not change that.
fn parent(pid: i32) -> Option<Entry> {
    let parent = View::read_process(pid).map_or(0, |view| view.number("PPid:") as i32);
    own(parent)
}

/// kill(2). All processes that may be signalled are those of the job; and pid 1 takes no signal
/// that it does not ask for.
fn kill(call: &mut Making) -> Option<Entry> {
    let (whom, signal) = (call.arg(0) as i32, call.arg(1) as i32);
    if whom == 1 {
        return Some(Entry::Answer(0));
    }
    if whom != -1 {
        number(call, 0, Sign::Group);
        return None;
    }
    let others = (call.caller.processes)().into_iter().filter(|pid| *pid != call.caller.pid);
    let mut answer = Entry::errno(libc::ESRCH);
    for pid in others {
        match raw::kill(pid, signal) {
            Ok(()) => answer = Entry::Answer(0),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                return Some(Entry::errno(libc::EINVAL));
            }
            Err(_) => {}
        }
    }
    Some(answer)
}

fn duplicate(call: &mut Making) -> Option<Entry> {
    if signalfd::is_one(call.caller.tid, call.arg(0) as i32) {
        call.then = Then::SignalFd;
    }
    None
}

fn read_signals(call: &mut Making) -> Option<Entry> {
    if !signalfd::is_one(call.caller.tid, call.arg(0) as i32) {
        return None;
    }
    let (at, len) = (call.arg(1), call.arg(2));
    let places = match call.regs.orig_rax as i64 {
        libc::SYS_read => Some(vec![(at, len)]),
        _ => signalfd::vector(call.caller.tid, at, len),
    };
    call.then = places.map_or(Then::Nothing, Then::Signals);
    None
}

/// Little-endian words of a structure.
fn words<const N: usize, const M: usize>(bytes: &[u8; M]) -> [u64; N] {
    let (all, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|n| all.get(n).map_or(0, |word| u64::from_le_bytes(*word)))
}

/// The new thread's number is written where the program says; see [`Then::Born`].
fn clone(call: &mut Making) -> Option<Entry> {
    let (mut flags, mut parent, mut child) = (0, 0, 0);
    match call.regs.orig_rax as i64 {
        libc::SYS_clone => (flags, parent, child) = (call.arg(0), call.arg(2), call.arg(3)),
        libc::SYS_clone3 => {
            // `struct clone_args` of clone(2): flags, pidfd, child_tid, parent_tid, …, set_tid,
            // set_tid_size.
            let at = call.arg(0);
            let [f, _, c, p, ..] = call.read::<64>(at).map(|b| words::<8, 64>(&b))?;
            (flags, parent, child) = (f, p, c);
            let wanted = (call.arg(1) >= 80).then(|| call.read::<16>(at + 64)).flatten();
            if wanted.is_some_and(|set| words::<2, 16>(&set)[1] != 0) {
                return Some(Entry::errno(libc::EPERM));
            }
        }
        _ => {}
    }
    let place = |flag: i32, at: u64| if flags & flag as u64 == 0 { 0 } else { at };
    call.then = Then::Born {
        parent: place(libc::CLONE_PARENT_SETTID, parent),
        child: place(libc::CLONE_CHILD_SETTID, child),
    };
    None
}

fn wait_id(call: &mut Making) -> Option<Entry> {
    if [libc::P_PID, libc::P_PGID].contains(&(call.arg(0) as u32)) {
        number(call, 1, Sign::Plain);
    }
    call.then = Then::Waited(call.arg(2));
    None
}

/// An argument that points to a number.
fn pointed(call: &mut Making, arg: u8, before: &[u8], at: u64) -> Option<Entry> {
    let job = i32::from_le_bytes(call.read::<4>(at)?);
    let content = [before, &numbers::to_host_signed(job).to_le_bytes()].concat();
    call.point(arg, &content).is_none().then(|| Entry::errno(libc::EFAULT))
}

fn fcntl(call: &mut Making) -> Option<Entry> {
    let at = call.arg(2);
    match call.arg(1) as i32 {
        libc::F_SETOWN => number(call, 2, Sign::Group),
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => return duplicate(call),
        libc::F_GETOWN => call.then = Then::Owner,
        // `struct f_owner_ex`: type, pid.
        table::F_SETOWN_EX => {
            let kind = call.read::<4>(at)?;
            return pointed(call, 2, &kind, at + 4);
        }
        table::F_GETOWN_EX => call.then = Then::Word(at + 4),
        libc::F_GETLK | libc::F_OFD_GETLK => call.then = Then::Lock(at),
        _ => {}
    }
    None
}

fn ioctl(call: &mut Making) -> Option<Entry> {
    let at = call.arg(2);
    match call.arg(1) & u64::from(u32::MAX) {
        libc::TIOCGPGRP | libc::TIOCGSID | table::FIOGETOWN | table::SIOCGPGRP => {
            call.then = Then::Word(at);
            None
        }
        table::TIOCGPTN => {
            let fd = call.arg(0) as i32;
            if let Some(number) = ptys::of_master(call.caller.tid, fd) {
                ptys::born(number, call.caller.processes);
            }
            call.then = Then::Pty(at);
            None
        }
        libc::TIOCSPGRP | table::FIOSETOWN | table::SIOCSPGRP => pointed(call, 2, &[], at),
        _ => None,
    }
}

fn prctl(call: &mut Making) -> Option<Entry> {
    match call.arg(0) {
        // -1 stands for everybody.
        table::PR_SET_PTRACER if call.arg(1) as i64 > 0 => number(call, 1, Sign::Plain),
        table::PR_SCHED_CORE => number(call, 2, Sign::Plain),
        table::PR_SET_DUMPABLE | table::PR_GET_DUMPABLE if numbers::only_seem_hidden() => {
            return dumpable(call);
        }
        _ => {}
    }
    None
}

/// PR_SET_DUMPABLE and PR_GET_DUMPABLE: memory of a process that is not dumpable could not be read and
/// written any more.
fn dumpable(call: &Making) -> Option<Entry> {
    let pid = call.caller.pid;
    match (call.arg(0), call.arg(1)) {
        (table::PR_SET_DUMPABLE, value @ (0 | 1)) => {
            numbers::hide(pid, value == 0);
            Some(Entry::Answer(0))
        }
        (table::PR_GET_DUMPABLE, _) if numbers::is_hidden(pid) => Some(Entry::Answer(0)),
        _ => None,
    }
}

/// uname(2): `struct new_utsname` has six names of 65 bytes, the second and the last are those of
/// the job's machine.
fn names(it: &Translation, call: &mut Making) -> Option<Entry> {
    const LEN: usize = 65;
    let field = |name: &str| {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(LEN, 0);
        bytes[LEN - 1] = 0;
        bytes
    };
    let at = call.arg(0);
    let mut all = vec![(at + LEN as u64, field(&it.nodename))];
    if !it.domainname.is_empty() {
        all.push((at + 5 * LEN as u64, field(&it.domainname)));
    }
    call.then = Then::Put(all);
    None
}
