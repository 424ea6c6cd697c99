//! The command line.

pub mod node;
pub mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::state::StateDir;
use run::{AdoptArgs, AttachArgs, RunArgs};

#[derive(Debug, Parser)]
struct Cli {
    #[arg(long, env = "VOSRUN_STATE_DIR")]
    state_dir: Option<PathBuf>,
    #[arg(long)]
    name: Option<String>,
    #[arg(long)]
    attach: Option<i32>,
    #[arg(long)]
    detach: bool,
    #[arg(long)]
    filter: bool,
    #[command(subcommand)]
    command: Option<Command>,
    #[arg(last = true)]
    program: Vec<std::ffi::OsString>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Adopt(AdoptArgs),
    /// The control socket's answer to Status, as JSON lines.
    Status,
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let path = cli.state_dir.unwrap_or_else(StateDir::default_path);
    let state = match StateDir::open(&path) {
        Ok(state) => state,
        Err(e) => {
            eprintln!("vosrun: {}: {e}", path.display());
            return ExitCode::from(125);
        }
    };
    let name = cli.name;
    ExitCode::from(match (cli.command, cli.attach) {
        (Some(Command::Adopt(args)), _) => run::adopt(&state, &args),
        (Some(Command::Status), _) => status(&state),
        (None, Some(pid)) => {
            let args = AttachArgs { pid, detach: cli.detach, filter: cli.filter, name };
            run::attach(&state, &args)
        }
        (None, None) => run::run(&state, &RunArgs { name, program: cli.program }),
    })
}

fn status(state: &StateDir) -> u8 {
    for (_, dir) in state.jobs().unwrap_or_default() {
        let asked = crate::control::ask(&dir.socket(), &crate::control::Request::Status, |_| {});
        if let Ok(crate::control::Reply::Status(status)) = asked {
            println!("{}", serde_json::to_string(&status).unwrap_or_default());
        }
    }
    0
}
