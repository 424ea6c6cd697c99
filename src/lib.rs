//! `vosrun` moves running Linux x86-64 programs between machines.
//!
//! The way of the data, top to bottom:
//!
//! ```text
//! cli ──► control ──► supervisor ──► tracer   stops come in, resumes go out
//!                        │    └────► syscalls what a stop means for the handle table
//!                        ├─────────► migrate  a frozen job becomes a JobImage, a JobImage becomes a job
//!                        └─────────► proxy    what stays behind and is relayed
//! node ───► incoming connections are handed to the supervisor of the job they name
//! ```
//!
//! The words used here (job, node, supervisor, home agent, binding …) are defined in
//! `docs/architecture.md`.

pub mod boot;
pub mod capabilities;
pub mod cli;
pub mod codes;
pub mod control;
mod errno;
pub mod ids;
pub mod journal;
pub mod migrate;
pub mod node;
pub mod proxy;
pub mod state;
pub mod supervisor;
pub mod syscalls;
pub mod tracer;
