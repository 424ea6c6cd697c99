//! Calls that run in a stopped program, while it gets signals of its own.

use vosrun::migrate::capture;
use vosrun::tracer::inject::{Arg, Program, Remote, Stub};
use vosrun::tracer::{raw, stop, Stop};

/// The codes of the SIGTRAPs that wait in a queue.
fn traps(pid: i32, shared: bool) -> Vec<i32> {
    let queued = raw::queued_signals(pid, shared).unwrap();
    assert!(queued.iter().all(|info| raw::number_of(info) == libc::SIGTRAP), "{queued:?}");
    queued.iter().map(|info| raw::code_of(info)).collect()
}

#[test]
fn a_trap_of_the_program_ends_no_batch() {
    let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = sleeper.id() as i32;
    raw::seize(pid).unwrap();
    raw::interrupt(pid).unwrap();
    // It may still be in execve, whose event uses the interruption up.
    while stop::wait(pid, true).unwrap().map(|w| w.stop) != Some(Stop::Interrupt) {
        raw::interrupt(pid).unwrap();
        raw::cont(pid, 0).unwrap();
    }
    let before = raw::regs(pid).unwrap();
    let insn = capture::syscall_insn_now(pid).unwrap();
    let mut remote = Remote::open(pid, false).unwrap();
    let stub = Stub::map(&mut remote, insn, None).unwrap();
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
        assert_eq!(traps(pid, true), [libc::SI_USER]);
        assert_eq!(traps(pid, false), [libc::SI_TKILL]);
    }
    remote.close().unwrap();
    let after = raw::regs(pid).unwrap();
    assert_eq!((after.rip, after.rax, after.orig_rax), (before.rip, before.rax, before.orig_rax));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}
