//! What moves and what does not: a row for each kind of state that a program can hold.
//!
//! A module that captures a kind of object declares the rows of it ([`FdKind::capabilities`],
//! [`Part::capabilities`], `memory::CAPABILITIES`); `others` has what no registry has. `vosrun
//! capabilities` prints the rows, the table in `README.md` is made from them, and the tests compare
//! them with what the guests prove.
//!
//! [`FdKind::capabilities`]: crate::migrate::resource::fd::FdKind::capabilities
//! [`Part::capabilities`]: crate::migrate::resource::Part::capabilities

mod others;

use crate::migrate::resource::{fd, memory, PARTS};

/// What becomes of a kind of state when its job moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It moves.
    Moves,
    /// It moves, but not all of it everywhere; `check` warns with this code.
    Warned(&'static str),
    /// A job that holds it is refused with this code, by `check` and at the freeze.
    Refused(&'static str),
    /// The call that makes it fails with this errno under vosrun, or attaching to who holds it
    /// does, so that no job holds it.
    Absent(&'static str),
    /// The program has a new one, or none, after a move; `docs/limits.md` tells.
    Lost,
}

impl Support {
    /// The code of a refusal or warning.
    #[must_use]
    pub fn code(self) -> Option<&'static str> {
        match self {
            Self::Warned(code) | Self::Refused(code) => Some(code),
            Self::Moves | Self::Absent(_) | Self::Lost => None,
        }
    }

    /// The word for machines.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Moves => "moves",
            Self::Warned(_) => "warned",
            Self::Refused(_) => "refused",
            Self::Absent(_) => "absent",
            Self::Lost => "lost",
        }
    }
}

/// How a job came to be supervised, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    LaunchedUser,
    LaunchedRoot,
    AttachedUser,
    AttachedRoot,
}

/// All ways, with their words for machines.
pub const WAYS: [(Way, &str); 4] = [
    (Way::LaunchedUser, "launched_user"),
    (Way::LaunchedRoot, "launched_root"),
    (Way::AttachedUser, "attached_user"),
    (Way::AttachedRoot, "attached_root"),
];

/// What a row is about, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    Processes,
    Memory,
    Descriptors,
    Sockets,
    Ipc,
    Signals,
    Time,
    Attributes,
    Surroundings,
}

impl Area {
    /// For people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Processes => "Processes and threads",
            Self::Memory => "Memory",
            Self::Descriptors => "Descriptors",
            Self::Sockets => "Sockets",
            Self::Ipc => "System V and POSIX IPC",
            Self::Signals => "Signals",
            Self::Time => "Time",
            Self::Attributes => "Attributes",
            Self::Surroundings => "Surroundings",
        }
    }
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Capability {
    /// Stable name, for machines and tests.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    pub area: Area,
    /// By [`Way`].
    support: [Support; WAYS.len()],
}

impl Capability {
    /// A row that is the same in all ways.
    #[must_use]
    pub const fn new(area: Area, name: &'static str, what: &'static str, support: Support) -> Self {
        Self { name, what, area, support: [support; WAYS.len()] }
    }

    /// What moves.
    #[must_use]
    pub const fn moves(area: Area, name: &'static str, what: &'static str) -> Self {
        Self::new(area, name, what, Support::Moves)
    }

    /// What is refused with a code.
    #[must_use]
    pub const fn refused(
        area: Area,
        name: &'static str,
        what: &'static str,
        code: &'static str,
    ) -> Self {
        Self::new(area, name, what, Support::Refused(code))
    }

    /// Another answer for a job that vosrun has attached to.
    #[must_use]
    pub const fn attached(mut self, support: Support) -> Self {
        self.support[Way::AttachedUser as usize] = support;
        self.support[Way::AttachedRoot as usize] = support;
        self
    }

    /// Another answer for an ordinary user.
    #[must_use]
    pub const fn user(mut self, support: Support) -> Self {
        self.support[Way::LaunchedUser as usize] = support;
        self.support[Way::AttachedUser as usize] = support;
        self
    }

    /// Another answer for a job that an ordinary user has attached to.
    #[must_use]
    pub const fn attached_user(mut self, support: Support) -> Self {
        self.support[Way::AttachedUser as usize] = support;
        self
    }

    /// The answer in one way.
    #[must_use]
    pub fn support(&self, way: Way) -> Support {
        self.support[way as usize]
    }
}

/// Every row, in the order of areas; in an area as their modules stand in the registries.
#[must_use]
pub fn all() -> Vec<Capability> {
    let kinds = fd::KINDS.iter().flat_map(|kind| kind.capabilities());
    let parts = PARTS.iter().flat_map(|part| part.capabilities());
    let own = others::ROWS.iter().chain(memory::CAPABILITIES).chain(fd::CAPABILITIES);
    let mut all: Vec<Capability> = own.chain(kinds).chain(parts).copied().collect();
    all.sort_by_key(|row| row.area);
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::codes;

    #[test]
    fn names_are_unique_and_codes_explained() {
        let mut names = HashSet::new();
        for row in all() {
            assert!(names.insert(row.name), "{} is there twice", row.name);
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(row.name.chars().all(plain), "{}", row.name);
            for (way, word) in WAYS {
                if let Some(code) = row.support(way).code() {
                    assert!(codes::find(code).is_some(), "{} {word}: {code}", row.name);
                }
            }
        }
    }

    #[test]
    fn every_kind_and_part_declares_its_rows() {
        for kind in fd::KINDS.iter().filter(|kind| kind.name() != fd::PROVIDED) {
            assert!(!kind.capabilities().is_empty(), "descriptors of kind {}", kind.name());
        }
        for part in PARTS {
            assert!(!part.capabilities().is_empty(), "{}", part.name());
        }
    }
}
