//! The command line: what was typed ─► one function per subcommand ─► an exit code.
//!
//! ```text
//! argv, VOSRUN_*, config.toml ─► Cli ─► run | attach | subcommand ─► Ok(exit code)
//!                                                               └──► Err ─► one line on stderr, exit code
//! ```
//!
//! Only this module prints errors and decides exit codes. Results go to stdout, progress
//! and errors to stderr. Each subcommand has a file of its own; what it prints is made by
//! a function from values to a string, which is what the unit tests look at.

mod background;
mod capabilities;
mod check;
mod children;
mod config;
mod demo;
mod doctor;
pub(crate) mod error;
mod explain;
mod human;
mod inspect;
mod migrate;
mod near;
pub mod node;
pub(crate) mod out;
mod pair;
mod progress;
mod ps;
mod raw;
mod receive;
mod recover;
pub mod run;
pub(crate) mod select;
mod table;
mod toy;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::state::StateDir;
use error::Fail;

/// Moves running Linux programs between machines, with their threads, memory, files and terminal.
#[derive(Debug, Parser)]
#[command(
    name = "vosrun",
    bin_name = "vosrun",
    version,
    override_usage = "vosrun [OPTIONS] -- PROGRAM [ARGS]...\n       vosrun [OPTIONS] --attach PID [--detach] [--filter]\n       vosrun [OPTIONS] COMMAND",
    after_help = "A job is named by its name, any unique prefix of its id, or PID@NODE; with one job it may be left out.\n\
Configuration: ~/.config/vosrun/config.toml, /etc/vosrun/config.toml (keys: state_dir, log), VOSRUN_STATE_DIR and VOSRUN_LOG, options; later ones win."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    launch: Launch,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Global {
    /// State folder of the local node [default: ~/.local/state/vosrun]
    #[arg(
        long,
        global = true,
        display_order = 900,
        value_name = "DIR",
        env = "VOSRUN_STATE_DIR",
        hide_env = true
    )]
    state_dir: Option<PathBuf>,
    /// Print one JSON document instead of a table
    #[arg(long, global = true, display_order = 901)]
    json: bool,
}

/// `-- PROGRAM` and `--attach PID`.
#[derive(Debug, Args)]
struct Launch {
    /// Name of the job [default: the program's]; if another job has it, a number is added
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Adopt the running process PID, and wait for it to end: signals sent to vosrun are passed on,
    /// ^C only ends the waiting, wherever the job is
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    attach: Option<i32>,
    /// With --attach: supervise in the background instead of waiting for the process to end
    #[arg(long, requires = "attach")]
    detach: bool,
    /// With --attach: put the seccomp filter in; it can never be taken out again
    #[arg(long, requires = "attach")]
    filter: bool,
    /// The program and its arguments
    #[arg(last = true, value_name = "PROGRAM", conflicts_with = "attach")]
    program: Vec<OsString>,
}

impl Launch {
    /// Is anything of a launch or an adoption on the command line?
    fn given(&self) -> bool {
        self.name.is_some() || self.attach.is_some() || !self.program.is_empty()
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node daemon, which receives jobs
    Node(node::NodeArgs),
    /// Print a one-time token with which another node joins
    Token,
    /// List the nodes of the community
    Nodes(node::NodesArgs),
    /// Move a job to another node
    Migrate(migrate::MigrateArgs),
    /// List the jobs of this node
    Ps(ps::PsArgs),
    /// Show everything known of one job
    Inspect(inspect::InspectArgs),
    /// Say whether a job can move, and what hinders it; moves nothing
    Check(check::CheckArgs),
    /// Try what this machine allows, and move a toy program to and fro
    Doctor(doctor::DoctorArgs),
    /// Explain a code such as VOS-MAPPING
    Explain(explain::ExplainArgs),
    /// List what moves and what does not, with the code of each refusal
    Capabilities(capabilities::CapabilitiesArgs),
    /// Take up a job whose supervisor has died
    Adopt(run::AdoptArgs),
    /// Say that the copy on a node is dead: wakes a frozen one here, or ends the wait for it
    Recover(recover::RecoverArgs),
    /// Show a program moving between two hosts on this machine
    Demo(demo::DemoArgs),
    #[command(name = "__receive", hide = true)]
    Receive,
    #[command(name = "__toy", hide = true)]
    Toy,
    #[command(name = "__demo-app", hide = true)]
    DemoApp,
    #[command(name = "__probe", hide = true)]
    Probe(doctor::ProbeArgs),
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return error::usage(&e, &Cli::command()),
    };
    let launching = cli.command.is_none();
    let json = cli.global.json && cli.launch.program.is_empty();
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(e) => error::report(&e, launching, json),
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<u8> {
    let Some(command) = cli.command else { return launch(cli.global, cli.launch) };
    if cli.launch.given() {
        return Err(Fail::usage(
            "--name, --attach, --detach, --filter and a program after -- go with no command",
        )
        .into());
    }
    // These touch neither configuration nor state folder.
    match command {
        Command::Explain(args) => return explain::explain(&args, cli.global.json),
        Command::Capabilities(args) => return capabilities::capabilities(&args, cli.global.json),
        Command::Toy => return toy::lines(),
        Command::DemoApp => return toy::animation(),
        Command::Probe(args) => return doctor::probe(&args),
        _ => {}
    }
    let json = cli.global.json;
    let state = open_state(cli.global, command.default_log())?;
    command.run(&state, json)
}

impl Command {
    /// What is logged on stderr when neither `VOSRUN_LOG` nor a configuration file says;
    /// None for a supervisor, which logs into its job's folder.
    fn default_log(&self) -> Option<&'static str> {
        match self {
            Self::Node(_) => Some("info"),
            Self::Adopt(_) | Self::Receive => None,
            _ => Some("warn"),
        }
    }

    fn run(self, state: &StateDir, json: bool) -> anyhow::Result<u8> {
        match self {
            Self::Node(args) => node::node(state, args),
            Self::Token => node::token(state, json),
            Self::Nodes(args) => node::nodes(state, &args),
            Self::Migrate(args) => migrate::migrate(state, &args, json),
            Self::Ps(args) => ps::ps(state, &args, json),
            Self::Inspect(args) => inspect::inspect(state, &args, json),
            Self::Check(args) => check::check(state, &args, json),
            Self::Doctor(args) => doctor::doctor(state, &args, json),
            Self::Adopt(args) => Ok(run::adopt(state, &args, json)),
            Self::Recover(args) => recover::recover(state, &args, json),
            Self::Demo(args) => demo::demo(&args, json),
            Self::Receive => receive::receive(state),
            Self::Explain(_)
            | Self::Capabilities(_)
            | Self::Toy
            | Self::DemoApp
            | Self::Probe(_) => Ok(0),
        }
    }
}

/// `vosrun -- PROGRAM` and `vosrun --attach PID`.
fn launch(global: Global, launch: Launch) -> anyhow::Result<u8> {
    let Launch { name, attach, detach, filter, program } = launch;
    let json = global.json;
    let state = || open_state(global, None);
    if let Some(pid) = attach {
        return Ok(run::attach(&state()?, &run::AttachArgs { pid, detach, filter, name }, json));
    }
    if program.is_empty() {
        let usage = Cli::command().render_usage();
        let why = format!("nothing to do\n{usage}\nTry: vosrun --help, or: vosrun demo");
        return Err(Fail::usage(why).into());
    }
    Ok(run::run(&state()?, &run::RunArgs { name, program }))
}

/// Reads the configuration, starts the log on stderr if that is wanted, opens the state folder.
fn open_state(global: Global, log: Option<&str>) -> anyhow::Result<StateDir> {
    let config = config::load()?;
    if let Some(default) = log {
        out::log_to_stderr(config.log.as_deref().unwrap_or(default))?;
    }
    let path = global.state_dir.or(config.state_dir).unwrap_or_else(StateDir::default_path);
    StateDir::open(&path)
        .with_context(|| format!("cannot open the state folder {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(words: &str) -> Cli {
        Cli::try_parse_from(words.split(' ')).unwrap()
    }

    #[test]
    fn words_after_the_dashes_belong_to_the_program() {
        let cli = parse("vosrun --name x -- ./a -v --json ps -- --name y");
        assert!(cli.command.is_none());
        assert!(!cli.global.json);
        assert_eq!(cli.launch.name.as_deref(), Some("x"));
        assert_eq!(cli.launch.program, ["./a", "-v", "--json", "ps", "--", "--name", "y"]);
        assert_eq!(parse("vosrun -- ps -w").launch.program, ["ps", "-w"]);
    }

    #[test]
    fn global_options_stand_before_and_after_the_command() {
        let cli = parse("vosrun --state-dir A ps --json");
        assert_eq!(cli.global.state_dir.as_deref(), Some(std::path::Path::new("A")));
        assert!(cli.global.json);
        assert!(matches!(cli.command, Some(Command::Ps(_))));
        let cli = parse("vosrun --state-dir A node --name a --listen 127.0.0.1:7701");
        assert!(matches!(cli.command, Some(Command::Node(_))));
        assert!(!cli.launch.given());
    }
}
