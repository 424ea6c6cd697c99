//! `vosrun recover`: a person who knows that another node's copy is dead says so. A frozen copy
//! here is woken; a home agent ends.

use std::time::Duration;

use serde_json::json;

use super::error::Fail;
use super::out::{print, print_json};
use super::select::{find_job, question, unexpected};
use crate::control::{JobState, Reply, Request};
use crate::state::StateDir;

/// Journal and thaw take far less.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options of `vosrun recover`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Wakes a copy that is frozen by a move in doubt (IN-DOUBT or PREPARED in vosrun ps): if the \
copy on the other node is not really dead, the job runs twice. Of a job that is AWAY on the dead node nothing \
is left to wake: what waits for it here ends with exit code 13."
)]
pub struct RecoverArgs {
    /// Name, id prefix or PID@NODE; may be left out with one job
    job: Option<String>,
    /// The node whose copy you know can never run again: its host is off, or its copy was killed
    #[arg(long, value_name = "NODE")]
    dead: String,
}

/// Wakes the frozen copy held here, or ends the home agent of a job that has died elsewhere.
///
/// # Errors
/// When there is no frozen copy, or its supervisor refuses.
pub fn recover(state: &StateDir, args: &RecoverArgs, json: bool) -> anyhow::Result<u8> {
    let seen = find_job(state, args.job.as_deref())?;
    let status = seen.status()?;
    let name = &status.name;
    let away = status.state == JobState::Away && status.node == args.dead;
    if !away && !matches!(status.state, JobState::InDoubt | JobState::Prepared) {
        let word = super::ps::state_word(status.state);
        let why = format!(
            "{name} ({}) is {word} on {}: there is no frozen copy here to wake",
            seen.id, status.node
        );
        return Err(Fail::new(10, why).into());
    }
    let request = Request::Recover { dead: args.dead.clone() };
    match question(&seen, &request, PATIENCE)? {
        Reply::Ok => {
            let (result, text) = match away {
                true => ("lost", format!("is given up: it was lost with {}", args.dead)),
                false => ("running", "runs here again".into()),
            };
            match json {
                true => print_json(json!({ "result": result, "name": name, "id": seen.id.hex() }))?,
                false => print(&format!("{name} ({}) {text}\n", seen.id))?,
            }
            Ok(0)
        }
        Reply::Failed(f) => Err(Fail::new(f.exit, f.sentence).into()),
        Reply::Error(why) => Err(Fail::new(10, format!("{name} stays frozen: {why}")).into()),
        _ => Err(unexpected(&seen).into()),
    }
}
