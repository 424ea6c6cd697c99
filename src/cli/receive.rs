//! `vosrun __receive`: started by the node daemon for each incoming job.

use crate::state::StateDir;
use crate::supervisor::moves;

/// Becomes the supervisor of the job that comes over descriptor 3.
///
/// # Errors
/// See [`moves::receive`].
pub fn receive(state: &StateDir) -> anyhow::Result<u8> {
    moves::receive(state)
}
