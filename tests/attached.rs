//! Cells to come.
mod common;
fn main() -> std::process::ExitCode {
    common::runner::main(Vec::new())
}
