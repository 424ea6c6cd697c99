//! The seccomp filter of a job that has no namespaces.

use libc::sock_filter;

use super::table::TABLE;
use crate::syscalls::table::{self, Row};
use crate::tracer::filter;

/// Stops what [`TABLE`] says, besides what a launched job has stopped or refused if `filtered`.
#[must_use]
pub fn program(filtered: bool) -> Vec<sock_filter> {
    let none: &[Row] = &[];
    let base = if filtered { table::TABLE } else { none };
    let stops = TABLE.iter().map(|row| (row.nr as u32, row.when));
    filter::with_stops(filter::program(base), stops)
}
