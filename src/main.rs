//! Parse, run, exit code; the work is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vosrun::cli::main()
}
