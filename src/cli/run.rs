//! Stand-in for launch, attach and adopt.
use crate::state::StateDir;
use std::ffi::OsString;

#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    #[arg(long)]
    pub name: Option<String>,
    #[arg(last = true)]
    pub program: Vec<OsString>,
}

#[derive(Debug, Clone, clap::Args)]
pub struct AttachArgs {
    #[arg(long = "attach")]
    pub pid: i32,
    #[arg(long)]
    pub detach: bool,
    #[arg(long)]
    pub filter: bool,
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
pub struct AdoptArgs {
    pub job: String,
    #[arg(long)]
    pub wait: bool,
}

pub fn run(_: &StateDir, _: &RunArgs) -> u8 {
    125
}
pub fn attach(_: &StateDir, _: &AttachArgs) -> u8 {
    125
}
pub fn adopt(_: &StateDir, _: &AdoptArgs) -> u8 {
    125
}
