//! A job in the background of its shell: `bg`, output that goes on, `fg` and ^C, wherever it is.

use std::fs;

use anyhow::{ensure, Result};

use super::common::hosts::Hosts;
use super::common::job::{needs, Start};
use super::common::pty::Terminal;
use super::shell::{leave, shell};

/// Prints numbers, and says good-bye at ^C.
const TICKING: &str = "$| = 1;
$SIG{INT} = sub { print \"bye\\n\"; exit 7 };
for (my $i = 0; ; $i++) { print \"tick $i.\\n\"; select(undef, undef, undef, 0.02) }
";

/// The next numbers, each one more than the one before.
fn ticks(tty: &mut Terminal, last: &mut u64) -> Result<()> {
    for _ in 0..5 {
        tty.expect("tick ")?;
        // The terminal's modes are the shell's meanwhile: it may add a carriage return of its own.
        let now: u64 = tty.expect(".\r")?.parse()?;
        ensure!(now == *last + 1, "tick {now} after {last}");
        *last = now;
    }
    Ok(())
}

/// The last number that was shown whole, else `before`.
fn last_tick(shown: &str, before: u64) -> u64 {
    let ticks = shown.rsplit("tick ").find_map(|t| t.split_once(".\r")?.0.parse().ok());
    ticks.unwrap_or(before)
}

/// ^Z, `bg`, `fg` before and after moves, moves in the background, and ^C at the end.
pub fn background(hosts: &Hosts, _: Start) -> Result<()> {
    needs("perl")?;
    let (mut job, mut tty) = shell(hosts)?;
    fs::write(job.dir.join("ticking.pl"), TICKING)?;
    tty.type_in("$V -- perl ticking.pl\r")?;
    tty.expect("tick 0.\r")?;
    let mut last = 0;
    for to in [None, Some(1), Some(2), Some(0)] {
        if let Some(to) = to {
            job.migrate(to)?;
        }
        ticks(&mut tty, &mut last)?;
        // What was printed before the key must not be looked at any more.
        tty.type_in("\x1a")?;
        last = last_tick(&tty.expect("Stopped")?, last);
        tty.type_in("bg\r")?;
        ticks(&mut tty, &mut last)?;
        if let Some(to) = to {
            // Moved on in the background, and back.
            job.migrate((to + 1) % 3)?;
            ticks(&mut tty, &mut last)?;
            job.migrate(to)?;
            ticks(&mut tty, &mut last)?;
        }
        tty.type_in("fg\r")?;
        // The shell says what it brings to the foreground.
        last = last_tick(&tty.expect("-- perl ticking.pl\r")?, last);
        ticks(&mut tty, &mut last)?;
    }
    tty.type_in("\x03")?;
    tty.expect("bye\r")?;
    leave(job, tty, 7)
}
