//! demo
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
pub fn demo(_: &DemoArgs) -> anyhow::Result<u8> {
    Ok(0)
}
