//! What a connection is for, said as the TLS server name (SNI).

use std::fmt;
use std::str::FromStr;

use crate::ids::{BadId, JobId};

/// The one a connection wants to talk to on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// The node daemon itself: `node.vosrun`.
    Node,
    /// A fresh receiver for a job that comes in: `new.vosrun`.
    New,
    /// The supervisor of a job: `<32 hex digits>.job.vosrun`.
    Job(JobId),
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node.vosrun"),
            Self::New => f.write_str("new.vosrun"),
            Self::Job(id) => write!(f, "{}.job.vosrun", id.hex()),
        }
    }
}

impl FromStr for Service {
    type Err = BadId;

    fn from_str(name: &str) -> Result<Self, BadId> {
        match name {
            "node.vosrun" => Ok(Self::Node),
            "new.vosrun" => Ok(Self::New),
            _ => name.strip_suffix(".job.vosrun").ok_or(BadId)?.parse().map(Self::Job),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for service in [Service::Node, Service::New, Service::Job(JobId([0xa5; 16]))] {
            assert_eq!(service.to_string().parse(), Ok(service));
        }
        for bad in ["", "vosrun", "x.job.vosrun", "job.vosrun", "node.vosrun.example"] {
            assert_eq!(bad.parse::<Service>(), Err(BadId));
        }
    }
}
