//! A point where a test may hold a supervisor: `VOSRUN_TEST_PAUSE=<point>:<fifo>`.
//!
//! At that point the process writes its pid into the FIFO and waits for one byte of
//! `<fifo>.go`. Without the variable nothing happens.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

/// Waits here when a test asks for it.
pub fn reached(point: &str) {
    let Ok(spec) = std::env::var("VOSRUN_TEST_PAUSE") else { return };
    let Some((wanted, fifo)) = spec.split_once(':') else { return };
    if wanted != point {
        return;
    }
    let told = OpenOptions::new().write(true).open(fifo);
    let told = told.and_then(|mut f| writeln!(f, "{}", std::process::id()));
    let go = File::open(format!("{fifo}.go")).and_then(|mut f| f.read(&mut [0]));
    if let Err(e) = told.and(go.map(drop)) {
        tracing::warn!("VOSRUN_TEST_PAUSE={spec}: {e}");
    }
}
