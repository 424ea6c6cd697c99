//! The seccomp filter of a job that has no namespaces.

use std::collections::BTreeSet;

use libc::sock_filter;

use super::signalfd;
use super::table::TABLE;
use crate::syscalls::table::{self, Row};
use crate::tracer::filter;

/// Stops what [`TABLE`] says, besides what a launched job has stopped or refused if `filtered`, and
/// what is done with the signalfds that the process has.
#[must_use]
pub fn program(filtered: bool, signalfds: &BTreeSet<i32>) -> Vec<sock_filter> {
    let none: &[Row] = &[];
    let base = if filtered { table::TABLE } else { none };
    let stops = TABLE.iter().map(|row| (row.nr as u32, row.when));
    signalfd::stopped(filter::with_stops(filter::program(base), stops), signalfds)
}
