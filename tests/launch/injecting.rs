//! Calls that run in a stopped program, while it gets signals of its own.

use std::process::{Child, Command};

use vosrun::migrate::capture;
use vosrun::tracer::inject::{Arg, Program, Remote, Stub};
use vosrun::tracer::{raw, stop, Stop};

/// The signals that wait in a queue: number and si_code.
fn queued(pid: i32, shared: bool) -> Vec<(i32, i32)> {
    let queued = raw::queued_signals(pid, shared).unwrap();
    queued.iter().map(|info| (raw::number_of(info), raw::code_of(info))).collect()
}

/// `sleep`, seized and stopped, with a stub in it.
fn stopped() -> (Child, Remote, Stub) {
    let sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = sleeper.id() as i32;
    raw::seize(pid).unwrap();
    raw::interrupt(pid).unwrap();
    // It may still be in execve, whose event uses the interruption up.
    while stop::wait(pid, true).unwrap().map(|w| w.stop) != Some(Stop::Interrupt) {
        raw::interrupt(pid).unwrap();
        raw::cont(pid, 0).unwrap();
    }
    let insn = capture::syscall_insn_now(pid).unwrap();
    let mut remote = Remote::open(pid, false).unwrap();
    let stub = Stub::map(&mut remote, insn, None).unwrap();
    (sleeper, remote, stub)
}

#[test]
fn a_trap_of_the_program_ends_no_batch() {
    let (mut sleeper, mut remote, stub) = stopped();
    let pid = sleeper.id() as i32;
    let before = remote.regs;
    let (own, trap) = (Arg::Num(pid as u64), Arg::Num(libc::SIGTRAP as u64));
    // In the second turn SIGTRAPs are pending from the begin.
    for _turn in 0..2 {
        let mut program = Program::default();
        let calls = [
            program.call(libc::SYS_kill, "kill", &[own, trap]),
            program.call(libc::SYS_tgkill, "tgkill", &[own, own, trap]),
            // The last call: its signal comes together with the batch's end.
            program.call(libc::SYS_getpid, "getpid", &[]),
            program.call(libc::SYS_tgkill, "tgkill", &[own, own, trap]),
        ];
        let outcome = remote.run(&stub, program).unwrap();
        assert_eq!(calls.map(|row| outcome.raw(row)), [0, 0, i64::from(pid), 0]);
        assert_eq!(queued(pid, true), [(libc::SIGTRAP, libc::SI_USER)]);
        assert_eq!(queued(pid, false), [(libc::SIGTRAP, libc::SI_TKILL)]);
    }
    remote.close().unwrap();
    let after = raw::regs(pid).unwrap();
    assert_eq!((after.rip, after.rax, after.orig_rax), (before.rip, before.rax, before.orig_rax));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn a_fault_that_waits_keeps_its_address() {
    let (mut sleeper, mut remote, stub) = stopped();
    let pid = sleeper.id() as i32;
    let mut fault = [0; 128];
    fault[..4].copy_from_slice(&libc::SIGSEGV.to_ne_bytes());
    fault[8..12].copy_from_slice(&2i32.to_ne_bytes()); // SEGV_ACCERR
    fault[16..24].copy_from_slice(&0x1234_5000u64.to_ne_bytes());
    remote.queue(&stub, &fault, true).unwrap();
    let mut program = Program::default();
    let row = program.call(libc::SYS_getpid, "getpid", &[]);
    assert_eq!(remote.run(&stub, program).unwrap().raw(row), i64::from(pid));
    assert_eq!(raw::queued_signals(pid, false).unwrap(), [fault]);
    remote.keep();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}
