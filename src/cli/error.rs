//! Errors become one line on stderr and an exit code; nobody else prints them.

use std::io;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde_json::json;

use super::human::clean;
use super::near::nearest;
use super::out::{print_json, OutputClosed};

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
pub fn usage(error: &clap::Error, cli: &clap::Command) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that closed the pipe has seen what it wanted.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            let words: Vec<String> = std::env::args().skip(1).collect();
            eprintln!("vosrun: {}", usage_sentence(error, cli, &words));
            ExitCode::from(2)
        }
    }
}

fn usage_sentence(error: &clap::Error, cli: &clap::Command, words: &[String]) -> String {
    if let Some(word) = unknown_command(error, cli, words) {
        let near = nearest(
            &word,
            cli.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name()),
        );
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

/// The word that stands where a command or an option should, if that is what is wrong.
fn unknown_command(error: &clap::Error, cli: &clap::Command, words: &[String]) -> Option<String> {
    let (ErrorKind::UnknownArgument, Some(ContextValue::String(word))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    else {
        return None;
    };
    let before = words.iter().take_while(|w| *w != word);
    let in_command = before.into_iter().any(|w| cli.find_subcommand(w).is_some());
    (!word.starts_with('-') && !in_command).then(|| word.clone())
}

/// Prints an error and gives the exit code. `launching`: a program was to be run, so that
/// vosrun's own failure is 125 as in chroot(1). `json`: standard output is to have a document.
pub fn report(error: &anyhow::Error, launching: bool, json: bool) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    let exit = code(error, launching);
    say(exit, &sentence(error), json);
    ExitCode::from(exit)
}

/// A failure for people on stderr, with `json` also as a document on stdout.
pub fn say(exit: u8, sentence: &str, json: bool) {
    let lines: Vec<String> = sentence.lines().map(clean).collect();
    eprintln!("vosrun: {}", lines.join("\n"));
    if json {
        // Who does not read stdout has the exit code.
        let _ = print_json(json!({ "error": sentence, "exit": exit }));
    }
}

/// What was tried and why it failed, in one line; a cause that the text before it has told
/// already is left out.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        match told.is_empty() {
            true => cause,
            false if told.ends_with(&cause) => told,
            false => format!("{told}: {cause}"),
        }
    })
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

    #[test]
    fn a_cause_is_told_once() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let named = anyhow::Error::from(denied).context("/x/lock: permission denied");
        assert_eq!(sentence(&named.context("joining")), "joining: /x/lock: permission denied");
    }
}
