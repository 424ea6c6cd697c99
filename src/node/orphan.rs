//! What the daemon answers for a job that has no supervisor on this node.

use crate::ids::JobId;
use crate::state::StateDir;

/// The answer (a postcard header) to the first frame that a trusted peer sent for `job`,
/// whose supervisor is not there; None to close the connection without one.
#[must_use]
pub fn answer(_state: &StateDir, _job: JobId, _header: &[u8]) -> Option<Vec<u8>> {
    None
}
