//! Decisions of the handoff protocol, written before they take effect.
//!
//! ```text
//! source: INTENT ─► COMMIT ─► DONE        target: PREPARED ─► OWN
//!            └────► ABORT                            └──────► ABORT
//! ```
//! One line of JSON each, appended and synced (fdatasync(2)) before [`Journal::write`]
//! returns. A torn last line, of a crash while writing, counts as not written. Only the
//! holder of the job's lock writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, MoveId, NodeId};

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Step {
    /// Source: a move has begun, nothing is decided.
    Intent,
    /// The move is off; the source's copy may run.
    Abort,
    /// Source: the target owns the job. The source's copy never runs again by itself.
    Commit,
    /// Source: the target has confirmed.
    Done,
    /// Target: the whole image is here; its copy may not run and may not be forgotten.
    Prepared,
    /// Target: this node owns the job.
    Own,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub step: Step,
    #[serde(rename = "move")]
    pub id: MoveId,
    /// The job's epoch before the move.
    pub epoch: Epoch,
    /// The other node: its id and name.
    pub peer: NodeId,
    pub peer_name: String,
}

/// The journal of one job.
#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// Opens the journal for writing, making it when missing (mode 0600).
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(Self)
    }

    /// Writes one record durably.
    ///
    /// # Errors
    /// When it cannot be written or synced; it counts as not written then.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.0.write_all(&line)?;
        self.0.sync_data()
    }
}

/// All records of a journal, oldest first; a missing journal has none.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let whole = text.rsplit_once('\n').map_or("", |(whole, _torn)| whole);
    Ok(whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The last record.
///
/// # Errors
/// When the journal cannot be read.
pub fn last(path: &Path) -> io::Result<Option<Record>> {
    Ok(read(path)?.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_counts_as_not_written() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("journal");
        assert_eq!(last(&path).unwrap(), None);
        let record = |step| Record {
            step,
            id: MoveId([1, 2, 3, 4]),
            epoch: Epoch(3),
            peer: NodeId([9; 32]),
            peer_name: "b".into(),
        };
        let mut journal = Journal::open(&path).unwrap();
        journal.write(&record(Step::Intent)).unwrap();
        journal.write(&record(Step::Commit)).unwrap();
        assert_eq!(last(&path).unwrap().unwrap().step, Step::Commit);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        assert_eq!(last(&path).unwrap().unwrap().step, Step::Intent);
    }
}
