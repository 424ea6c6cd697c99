//! MOVEMENT: a frozen job becomes bytes, bytes become a job.

pub mod apart;
pub mod building;
pub mod capture;
pub mod cpus;
pub mod family;
pub mod files;
pub mod freeze;
pub mod gone;
pub mod image;
pub mod joining;
pub mod late;
pub mod message;
pub mod near;
pub mod newborn;
pub mod preflight;
pub mod raw;
mod reexec;
pub mod resource;
pub mod restore;
pub mod settle;
pub mod sharing;
pub mod skeleton;
pub mod stops;
pub mod terminals;
pub mod transport;
pub mod tree;
pub mod vdso;
