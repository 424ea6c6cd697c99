//! Which boot of which machine this is: it tells whether numbers that a kernel gave out
//! (devices, inodes, processes) still mean what they meant, and on the same machine.

use std::io;
use std::sync::OnceLock;

/// Where the kernel tells it (random(4)).
const SOURCE: &str = "/proc/sys/kernel/random/boot_id";

/// The id of this boot; never empty.
///
/// # Errors
/// When the kernel does not tell.
pub fn id() -> io::Result<&'static str> {
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let told = std::fs::read_to_string(SOURCE).and_then(|text| parse(&text));
    let id = told.map_err(|e| io::Error::new(e.kind(), format!("{SOURCE}: {e}")))?;
    Ok(ID.get_or_init(|| id))
}

/// Is `noted` the id of this boot? Not when either of the two is unknown: an empty id, which
/// stands for one that the kernel did not tell, is no boot's.
#[must_use]
pub fn is_this(noted: &str) -> bool {
    is_same(id().ok(), noted)
}

fn is_same(here: Option<&str>, noted: &str) -> bool {
    !noted.is_empty() && here == Some(noted)
}

fn parse(text: &str) -> io::Result<String> {
    match text.trim() {
        "" => Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty")),
        id => Ok(id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_boot_is_itself_and_no_other() {
        let here = id().unwrap();
        assert!(!here.is_empty());
        assert!(is_this(here));
        assert!(!is_this("another"));
    }

    #[test]
    fn what_is_unknown_is_no_boot() {
        assert!(parse(" \n").is_err());
        assert_eq!(parse("d3b07384\n").unwrap(), "d3b07384");
        assert!(!is_this(""));
        assert!(!is_same(None, ""));
        assert!(!is_same(None, "d3b07384"));
        assert!(!is_same(Some(""), ""));
    }
}
