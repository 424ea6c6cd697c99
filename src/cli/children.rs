//! Our own binary run as a child, with a time limit.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How often a condition is looked at while waiting.
const INTERVAL: Duration = Duration::from_millis(10);

/// The path of the running binary.
///
/// # Errors
/// When /proc is missing.
pub fn own_binary() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Asks `condition` until it has a value or `limit` is over.
pub fn wait_for<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let value = condition();
        if value.is_some() || Instant::now() >= deadline {
            return value;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// As [`wait_for`], but ^C ends the wait.
pub fn wait_patiently<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    wait_for(limit, || if super::raw::interrupted() { Some(None) } else { condition().map(Some) })
        .flatten()
}

/// Waits for the end of a child; None when it outlives the limit.
///
/// # Errors
/// As [`Child::try_wait`].
pub fn wait_end(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    wait_for(limit, || child.try_wait().transpose()).transpose()
}

/// Runs a command that prints little (below a pipe's 64 KiB) to its end.
///
/// # Errors
/// `TimedOut` when it outlives the limit, which also kills it.
pub fn output(command: &mut Command, limit: Duration) -> io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if wait_end(&mut child, limit)?.is_none() {
        end(&mut child);
        return Err(io::ErrorKind::TimedOut.into());
    }
    child.wait_with_output()
}

/// Kills a child and takes its exit status.
pub fn end(child: &mut Child) {
    // It may have ended by itself meanwhile.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_a_short_command() {
        let out = output(Command::new("echo").arg("x"), Duration::from_secs(10)).unwrap();
        assert_eq!(out.stdout, b"x\n");
    }

    #[test]
    fn a_hanging_command_is_ended() {
        let e = output(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    }
}
