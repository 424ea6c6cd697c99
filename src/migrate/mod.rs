//! MOVEMENT: a frozen job becomes bytes, bytes become a job.

pub mod resource;
pub mod transport;
