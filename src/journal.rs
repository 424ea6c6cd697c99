//! Decisions of the handoff protocol, written before they take effect.
//!
//! ```text
//! source: INTENT ─► SEALED ─► COMMIT ─► DONE      target: PREPARED ─► OWN
//!            └─────────┴────► ABORT                          └──────► ABORT
//! ```
//! One line of JSON each, appended and synced (fdatasync(2)) before [`Journal::write`]
//! returns. A torn line, of a crash while writing, counts as not written. Only the holder of
//! the job's lock writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::boot;
use crate::ids::{Epoch, MoveId, NodeId};

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Step {
    /// Source: a move has begun, nothing is decided.
    Intent,
    /// The move is off; the source's copy may run.
    Abort,
    /// Source: the target is prepared, and the copy here dies with its supervisor, so that
    /// one that is gone was the frozen one and not one that had run on.
    Sealed,
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
    /// The boot of this machine in which it was written ([`boot_id`]).
    #[serde(default)]
    pub boot: String,
}

impl Record {
    /// Was it written before this machine's last restart?
    ///
    /// # Errors
    /// When that cannot be known: the kernel does not tell now, or did not tell then.
    pub fn is_of_earlier_boot(&self) -> io::Result<bool> {
        let now = boot::id()?;
        if self.boot.is_empty() {
            let why = format!("move {}: the journal does not say in which boot it began", self.id);
            return Err(io::Error::other(why));
        }
        Ok(self.boot != now)
    }
}

/// For [`Record::boot`]: this boot's id; empty when the kernel does not tell, for a record
/// must be written all the same.
#[must_use]
pub fn boot_id() -> String {
    boot::id().unwrap_or_default().to_owned()
}

/// The last record of one move.
#[must_use]
pub fn last_of(records: &[Record], id: MoveId) -> Option<&Record> {
    records.iter().rfind(|r| r.id == id)
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
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map(Self)
    }

    /// Writes one record durably.
    ///
    /// # Errors
    /// When it cannot be written or synced; it counts as not written then.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let before = self.0.metadata()?.len();
        let written = self.note(record).and_then(|()| self.0.sync_data());
        if written.is_err() {
            // What cannot be relied on must not be read either.
            let _ = self.0.set_len(before);
        }
        written
    }

    /// Writes one record that the death of this process leaves, but a crash of the machine
    /// may take.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&mut self, record: &Record) -> io::Result<()> {
        let mut line = if self.is_torn()? { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut line, record)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }

    /// The last line has no end.
    fn is_torn(&self) -> io::Result<bool> {
        let mut last = [b'\n'];
        if let Some(at) = self.0.metadata()?.len().checked_sub(1) {
            self.0.read_exact_at(&mut last, at)?;
        }
        Ok(last != [b'\n'])
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

    fn record(step: Step) -> Record {
        Record {
            step,
            id: MoveId([1, 2, 3, 4]),
            epoch: Epoch(3),
            peer: NodeId([9; 32]),
            peer_name: "b".into(),
            boot: boot_id(),
        }
    }

    #[test]
    fn a_record_of_an_unknown_boot_is_neither_of_this_one_nor_of_an_earlier_one() {
        let here = record(Step::Intent);
        assert!(!here.is_of_earlier_boot().unwrap());
        assert!(Record { boot: "another".into(), ..here.clone() }.is_of_earlier_boot().unwrap());
        assert!(Record { boot: String::new(), ..here }.is_of_earlier_boot().is_err());
    }

    #[test]
    fn a_torn_line_counts_as_not_written() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("journal");
        assert_eq!(last(&path).unwrap(), None);
        let mut journal = Journal::open(&path).unwrap();
        journal.write(&record(Step::Intent)).unwrap();
        journal.write(&record(Step::Commit)).unwrap();
        assert_eq!(last(&path).unwrap().unwrap().step, Step::Commit);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        assert_eq!(last(&path).unwrap().unwrap().step, Step::Intent);
        Journal::open(&path).unwrap().write(&record(Step::Abort)).unwrap();
        let steps: Vec<_> = read(&path).unwrap().into_iter().map(|r| r.step).collect();
        assert_eq!(steps, [Step::Intent, Step::Abort], "a torn line swallows the next one");
    }
}
