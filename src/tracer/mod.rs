//! MECHANISM: a stop comes in, a resume goes out.
//!
//! ```text
//! launch / attach ─► wait4 ─► Stop ─► supervisor ─► resume
//!                                        │
//!                            regs, memory, inject: read and change a stopped thread
//! ```
//!
//! All of ptrace is used from one thread, the one that seized. `raw` holds every unsafe
//! block of this module.

pub mod attach;
pub mod bpf;
pub mod filter;
pub mod inject;
pub mod launch;
pub mod memory;
pub mod raw;
pub mod rseq;
pub mod stop;

pub use stop::{Exit, Stop, Wait};
