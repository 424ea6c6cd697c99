//! A program under vosrun behaves as without it. Drives the real binary.

mod adoption;
mod freezing;
mod injecting;
mod programs;
mod signals;
mod support;
mod terminal;
