//! Standard output, colours, the log.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use owo_colors::{OwoColorize, Style};
use serde_json::Value;

use super::error::Fail;

/// The reader of standard output has gone (EPIPE): end quietly, as a filter does.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub struct OutputClosed;

/// Writes text to standard output.
///
/// # Errors
/// [`OutputClosed`] when nobody reads any more, else what write(2) said.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        other => other.context("cannot write to standard output"),
    }
}

/// Prints a document with `"api": "vosrun/v1"` in front of its members.
///
/// # Errors
/// As [`print`].
pub fn print_json(document: Value) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(&versioned(document))?;
    text.push('\n');
    print(&text)
}

/// Prints a document in one line, for event streams.
///
/// # Errors
/// As [`print`].
pub fn print_json_line(document: Value) -> anyhow::Result<()> {
    print(&format!("{}\n", versioned(document)))
}

fn versioned(mut document: Value) -> Value {
    if let Value::Object(members) = &mut document {
        members.insert("api".into(), "vosrun/v1".into());
    }
    document
}

/// Paints text, or leaves it plain.
#[derive(Debug, Clone, Copy, Default)]
pub struct Paint {
    colours: bool,
}

impl Paint {
    /// For standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self { colours: wanted() && io::stdout().is_terminal() }
    }

    /// For standard error.
    #[must_use]
    pub fn stderr() -> Self {
        Self { colours: wanted() && io::stderr().is_terminal() }
    }

    fn with(self, text: &str, style: Style) -> String {
        if self.colours {
            text.style(style).to_string()
        } else {
            text.to_owned()
        }
    }

    pub fn good(self, text: &str) -> String {
        self.with(text, Style::new().green())
    }
    pub fn warn(self, text: &str) -> String {
        self.with(text, Style::new().yellow())
    }
    pub fn bad(self, text: &str) -> String {
        self.with(text, Style::new().red().bold())
    }
    pub fn strong(self, text: &str) -> String {
        self.with(text, Style::new().bold())
    }
    pub fn dim(self, text: &str) -> String {
        self.with(text, Style::new().dimmed())
    }
}

/// <https://no-color.org>: any non-empty value forbids colours.
fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Starts the log on stderr: `VOSRUN_LOG` (an `EnvFilter` directive such as `debug` or
/// `vosrun::tracer=trace`), else `default`.
///
/// # Errors
/// When the directive does not parse.
pub fn log_to_stderr(default: &str) -> anyhow::Result<()> {
    let directive = std::env::var("VOSRUN_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(&directive)
        .map_err(|e| Fail::usage(format!("VOSRUN_LOG or log = {directive:?}: {e}")))?;
    // A second start in one process (tests) keeps the first log.
    let _ = tracing_subscriber::fmt()
        // A log that cannot be written is no reason to panic.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(Paint::stderr().colours)
        .try_init();
    Ok(())
}
