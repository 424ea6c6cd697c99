//! Relays with real pipes, terminals and programs, over a link that is cut, for jobs that
//! move.

mod direct;
mod joined;
mod listeners;
mod pipes;
mod terminal;
mod world;
