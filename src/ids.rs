//! Identities that travel between nodes: jobs, nodes, moves, epochs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A job's community-wide identity: 128 random bits. It never changes; people see the
/// first 8 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub [u8; 16]);

impl JobId {
    /// A fresh random id.
    ///
    /// # Errors
    /// When the kernel's random source cannot be read.
    pub fn random() -> std::io::Result<Self> {
        random_bytes().map(Self)
    }

    /// All 32 hex digits; names the job's folder and its TLS service name.
    #[must_use]
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..4]))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({})", self.hex())
    }
}

impl FromStr for JobId {
    type Err = BadId;
    /// Reads the 32 hex digits of [`JobId::hex`].
    fn from_str(s: &str) -> Result<Self, BadId> {
        unhex(s).map(Self).ok_or(BadId)
    }
}

/// A node's identity: the blake3 hash of its TLS public key (SubjectPublicKeyInfo, DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 32]);

impl NodeId {
    /// All 64 hex digits.
    #[must_use]
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for NodeId {
    /// The short form shown in tables: `7f3a-90c1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", hex(&self.0[..2]), hex(&self.0[2..4]))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = BadId;
    /// Reads the 64 hex digits of [`NodeId::hex`].
    fn from_str(s: &str) -> Result<Self, BadId> {
        unhex(s).map(Self).ok_or(BadId)
    }
}

/// One move of one job; shown as `m-` and 8 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MoveId(pub [u8; 4]);

impl MoveId {
    /// A fresh random id.
    ///
    /// # Errors
    /// When the kernel's random source cannot be read.
    pub fn random() -> std::io::Result<Self> {
        random_bytes().map(Self)
    }
}

impl fmt::Display for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m-{}", hex(&self.0))
    }
}

impl fmt::Debug for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MoveId({self})")
    }
}

/// A job's epoch: grows by one at every change of owner (handoff protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after the next change of owner.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A string that is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: wrong length or not hexadecimal")]
pub struct BadId;

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads exactly `N` bytes of hexadecimal.
#[must_use]
pub fn unhex<const N: usize>(s: &str) -> Option<[u8; N]> {
    if s.len() != 2 * N || !s.is_ascii() {
        return None;
    }
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

/// `N` bytes from the kernel's random source (`/dev/urandom`, random(4)).
///
/// # Errors
/// When it cannot be read.
pub fn random_bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    use std::io::Read;
    let mut out = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip() {
        let id = JobId([0xab; 16]);
        assert_eq!(id.hex().parse::<JobId>(), Ok(id));
        assert_eq!(id.to_string(), "abababab");
        assert_eq!("xyz".parse::<JobId>(), Err(BadId));
        assert_eq!("é".repeat(16).parse::<JobId>(), Err(BadId));
    }
}
