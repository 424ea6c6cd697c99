//! Capture and restore, one module per kind of kernel object.

pub mod fd;
