//! `vosrun explain`: the text of a code.

use super::error::Fail;
use super::human::wrap;
use super::near::near;
use super::out::{print, print_json, Paint};
use super::table::table;
use crate::codes::{find, Code, CODES};
use serde_json::json;

/// Options of `vosrun explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// The code, with or without VOS-; without it all codes are listed
    code: Option<String>,
}

/// Explains a code or lists all.
///
/// # Errors
/// Exit code 2 for an unknown code.
pub fn explain(args: &ExplainArgs, as_json: bool) -> anyhow::Result<u8> {
    let codes: Vec<&Code> = match &args.code {
        None => CODES.iter().collect(),
        Some(word) => vec![lookup(word)?],
    };
    if as_json {
        let list: Vec<_> = codes
            .iter()
            .map(|c| json!({ "code": c.code, "title": c.title, "text": c.text }))
            .collect();
        print_json(json!({ "codes": list }))?;
    } else if let (Some(_), [code]) = (&args.code, codes.as_slice()) {
        let paint = Paint::stdout();
        print(&format!("{}: {}\n\n{}\n", paint.strong(code.code), code.title, wrapped(code.text)))?;
    } else {
        print(&list(&codes))?;
    }
    Ok(0)
}

/// Each paragraph broken into lines of at most 79 columns.
fn wrapped(text: &str) -> String {
    text.lines().map(|line| wrap(line, 79)).collect::<Vec<_>>().join("\n")
}

fn list(codes: &[&Code]) -> String {
    let rows: Vec<_> = codes.iter().map(|c| vec![c.code.to_owned(), c.title.to_owned()]).collect();
    table(&["CODE", "MEANS"], &rows)
}

fn lookup(word: &str) -> Result<&'static Code, Fail> {
    find(word).or_else(|| find(&format!("VOS-{word}"))).ok_or_else(|| {
        let near = near(word);
        let tail = if near.is_empty() {
            "vosrun explain lists them all".to_owned()
        } else {
            format!("near: {}", near.join(", "))
        };
        Fail::usage(format!("no code `{word}`; {tail}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_in_any_case_and_without_prefix() {
        for word in ["VOS-ABI-32", "vos-abi-32", "abi-32"] {
            assert_eq!(lookup(word).map(|c| c.code), Ok("VOS-ABI-32"), "{word}");
        }
        assert_eq!(
            lookup("VOS-TIMEOT").unwrap_err().message,
            "no code `VOS-TIMEOT`; near: VOS-TIMEOUT, VOS-TIMER"
        );
        assert_eq!(
            lookup("xyzzy-plugh").unwrap_err().message,
            "no code `xyzzy-plugh`; vosrun explain lists them all"
        );
    }

    #[test]
    fn the_list_has_every_code() {
        let all: Vec<&Code> = CODES.iter().collect();
        assert_eq!(list(&all).lines().count(), CODES.len() + 1);
    }
}
