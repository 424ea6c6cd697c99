//! Stand-in for launch, attach, adopt and receive.
use crate::state::StateDir;
use std::ffi::OsString;

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Name of the job [default: the program's file name]
    #[arg(long)]
    pub name: Option<String>,
    /// Adopt the running process PID
    #[arg(long, value_name = "PID")]
    pub attach: Option<i32>,
    /// With --attach: go to the background
    #[arg(long, requires = "attach")]
    pub detach: bool,
    /// With --attach: put the seccomp filter in; it can never be taken out again
    #[arg(long, requires = "attach")]
    pub filter: bool,
    /// The program and its arguments
    #[arg(last = true, value_name = "PROGRAM", conflicts_with = "attach")]
    pub program: Vec<OsString>,
}

impl RunArgs {
    /// Is there anything of a launch or an adoption?
    #[must_use]
    pub fn given(&self) -> bool {
        self.name.is_some() || self.attach.is_some() || !self.program.is_empty()
    }
}

#[derive(Debug, clap::Args)]
pub struct AdoptArgs {
    /// Name, id prefix or PID@NODE; may be left out with one job
    pub job: Option<String>,
}

pub fn run(_: &StateDir, _: RunArgs) -> anyhow::Result<u8> {
    anyhow::bail!("not on this branch")
}
pub fn attach(_: &StateDir, _: RunArgs) -> anyhow::Result<u8> {
    anyhow::bail!("not on this branch")
}
pub fn adopt(_: &StateDir, _: AdoptArgs) -> anyhow::Result<u8> {
    anyhow::bail!("not on this branch")
}
pub fn receive(_: &StateDir) -> anyhow::Result<u8> {
    anyhow::bail!("not on this branch")
}
