//! Stand-in for the node commands.
use crate::state::StateDir;

#[derive(Debug, Clone, clap::Args)]
pub struct NodeArgs {
    #[arg(long)]
    pub name: Option<String>,
    #[arg(long)]
    pub listen: Option<String>,
    #[arg(long)]
    pub join: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
pub struct NodesArgs {
    #[arg(long)]
    pub json: bool,
}

pub fn node(_: &StateDir, _: NodeArgs) -> anyhow::Result<u8> {
    anyhow::bail!("not on this branch")
}
pub fn token(_: &StateDir) -> anyhow::Result<u8> {
    anyhow::bail!("not on this branch")
}
pub fn nodes(_: &StateDir, _: &NodesArgs) -> anyhow::Result<u8> {
    anyhow::bail!("not on this branch")
}
