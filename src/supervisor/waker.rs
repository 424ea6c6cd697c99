//! Wakes a vosrun that has stopped with its job, when the job is to go on without it.
//!
//! A shell that continues a stopped job continues the whole process group. But who knows the job's
//! pid only can send SIGCONT or SIGKILL to it alone, and a stopped vosrun takes no wait status: the
//! job would stay where it is, or be a zombie. The kernel tells nobody but a process's parent and
//! tracer that it is continued, and vosrun is both, so a helper has to look from time to time.

use std::io;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid, setsid, Pid};

use super::signals::WAKE;
use crate::migrate::resource::View;
use crate::tracer::raw;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// The helper; it ends with this value, and with vosrun.
#[derive(Debug)]
pub struct Waker(i32);

impl Waker {
    /// Looks after process `job` while this process is stopped.
    ///
    /// # Errors
    /// When the helper cannot be forked.
    pub fn start(job: i32) -> io::Result<Self> {
        let vosrun = getpid();
        Ok(match raw::fork()? {
            Some(pid) => Self(pid),
            None => raw::exit_now(look(vosrun, job)),
        })
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        let _ = raw::kill(self.0, libc::SIGKILL);
        let _ = raw::wait4(self.0, libc::__WALL);
    }
}

/// The helper's life. What it sees has to last for two looks: a shell continues the job and vosrun
/// one after the other.
fn look(vosrun: Pid, job: i32) -> i32 {
    raw::close_from(0);
    let _ = prctl::set_name(c"vosrun-waker");
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    // Signals to vosrun's group are none of its business.
    let _ = setsid();
    let mut before = false;
    while getppid() == vosrun {
        let now = is_stopped(vosrun.as_raw()) && goes_on(job);
        if before && now {
            // Tried again at the next look.
            let _ = raw::queue(vosrun.as_raw(), libc::SIGCONT, WAKE as usize);
        }
        before = now;
        std::thread::sleep(PAUSE);
    }
    0
}

fn is_stopped(pid: i32) -> bool {
    View::read_process(pid).is_ok_and(|view| view.field("State:").starts_with('T'))
}

/// Has the job been continued or killed? A SIGCONT stays pending until its tracer lets it go on.
fn goes_on(job: i32) -> bool {
    const CONT: u64 = 1 << (libc::SIGCONT - 1);
    View::read_process(job).map_or(true, |view| {
        let pending = view.hex("ShdPnd:") | view.hex("SigPnd:");
        pending & CONT != 0 || view.field("State:").starts_with(['Z', 'X'])
    })
}
