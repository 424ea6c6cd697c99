//! Errors become one line on stderr and an exit code; nobody else prints them.

use std::io;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::out::OutputClosed;

/// An error that knows its exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fail {
    pub exit: u8,
    pub message: String,
}

impl Fail {
    /// Usage error: 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: 2, message: message.into() }
    }

    /// Temporary failure, try again: 75 (EX_TEMPFAIL of sysexits.h).
    pub fn temporary(message: impl Into<String>) -> Self {
        Self { exit: 75, message: message.into() }
    }

    /// The exit code with a message.
    pub fn new(exit: u8, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

/// Prints what the parser has to say: help and version on stdout with 0, everything else
/// in one line on stderr with 2.
pub fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that closed the pipe has seen what it wanted.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("vosrun: {}", usage_sentence(error));
            ExitCode::from(2)
        }
    }
}

fn usage_sentence(error: &clap::Error) -> String {
    if let (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
    {
        let near = match error.get(ContextKind::SuggestedSubcommand) {
            Some(ContextValue::Strings(near)) => near.first().cloned(),
            Some(ContextValue::String(near)) => Some(near.clone()),
            _ => None,
        };
        let near = near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
        return format!("no command `{word}`{near}; a program is run with: vosrun -- {word}");
    }
    let text = error.to_string();
    let first: Vec<&str> = text
        .strip_prefix("error: ")
        .unwrap_or(&text)
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    format!("{}; see vosrun --help", first.join(" "))
}

/// Prints an error and gives the exit code. `launching`: a program was to be run, so that
/// vosrun's own failure is 125 as in chroot(1).
pub fn report(error: &anyhow::Error, launching: bool) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    eprintln!("vosrun: {error:#}");
    ExitCode::from(code(error, launching))
}

fn code(error: &anyhow::Error, launching: bool) -> u8 {
    if let Some(fail) = error.downcast_ref::<Fail>() {
        return fail.exit;
    }
    if launching {
        return 125;
    }
    let kind = error.chain().find_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::PermissionDenied) => 77,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn exit_codes() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(code(&Fail::usage("x").into(), true), 2);
        assert_eq!(code(&Fail::temporary("x").into(), false), 75);
        assert_eq!(code(&anyhow::Error::from(denied()).context("opening x"), false), 77);
        assert_eq!(code(&anyhow::Error::from(denied()), true), 125);
        let io = Err::<(), _>(Fail::usage("inner")).context("outer").unwrap_err();
        assert_eq!(code(&io, false), 2);
    }
}
