//! A frame whose plan was on its way for long: the job's clocks there are behind by as much.

use std::process::Stdio;

use anyhow::{ensure, Result};

use crate::common::gate::Gate;
use crate::common::hosts::Hosts;
use crate::common::job::{Job, Start};
use crate::common::runner::{Cell, Worker};
use crate::common::Who;
use crate::guest;

/// Guests that know at what time something has to happen.
const GUESTS: &[&str] = &["timerfd_phase", "timers_once", "itimers", "posix_timers"];

/// The cells of this file.
pub fn cells() -> Vec<Cell> {
    let each = |who: Who| GUESTS.iter().map(move |name| (who, *name));
    let all = [Who::Root, Who::User].into_iter().flat_map(each);
    let cell = |(who, name): (Who, &'static str)| {
        let run = move |_: &mut Worker| delayed(who, name);
        Cell::new(format!("delayed/{}/{name}", who.word()), run)
    };
    all.map(cell).collect()
}

fn delayed(who: Who, name: &'static str) -> Result<()> {
    ensure!(who == Who::User || crate::common::is_root(), "SKIP needs root");
    let mut gate = Gate::new("plan")?;
    let hosts = Hosts::start_with(who, 2, |index, command| {
        if index == 1 {
            let (name, value) = gate.variable();
            command.env(name, value);
        }
    })?;
    let mut job = Job::start(&hosts, Start::Launched, guest(name).program()?)?;
    job.await_ready()?;
    let mut migrate = hosts.vosrun(0);
    migrate.args(["migrate", &job.name, "--to", "b", "--json"]).stderr(Stdio::null());
    let migrate = migrate.stdout(Stdio::piped()).spawn()?;
    gate.reached()?;
    job.await_progress(10)?;
    gate.release()?;
    let done = migrate.wait_with_output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    job.at = 1;
    job.await_progress(10)?;
    job.finish().map(drop)
}
