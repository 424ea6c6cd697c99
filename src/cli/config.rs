//! Configuration files: `~/.config/vosrun/config.toml`, then `/etc/vosrun/config.toml`;
//! a key of the later one wins, environment and options win over both.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::Fail;

/// What a configuration file may say.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// State folder of the local node.
    pub state_dir: Option<PathBuf>,
    /// Log filter, as `VOSRUN_LOG`.
    pub log: Option<String>,
}

impl Config {
    fn overridden_by(self, later: Self) -> Self {
        Self { state_dir: later.state_dir.or(self.state_dir), log: later.log.or(self.log) }
    }
}

/// Reads both files; a missing one says nothing.
///
/// # Errors
/// Exit code 2 for a file that cannot be read or understood; the sentence names it.
pub fn load() -> Result<Config, Fail> {
    let mut config = Config::default();
    for path in [user_file(), Some("/etc/vosrun/config.toml".into())].into_iter().flatten() {
        config = config.overridden_by(read(&path)?);
    }
    Ok(config)
}

/// `$XDG_CONFIG_HOME/vosrun/config.toml`, else `~/.config/vosrun/config.toml`.
fn user_file() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    Some(base.join("vosrun/config.toml"))
}

fn read(path: &Path) -> Result<Config, Fail> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(|e| Fail::usage(format!("{}: {e}", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        // /etc may be closed to us; another person's home is.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(Config::default()),
        Err(e) => Err(Fail::usage(format!("cannot read {}: {e}", path.display()))),
    }
}

fn parse(text: &str) -> Result<Config, String> {
    toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |s| text[..s.start].matches('\n').count() + 1);
        format!("line {line}: {}", e.message().replace('\n', " "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_win_key_by_key() {
        let user = parse("state_dir = \"/a\"\nlog = \"debug\"").unwrap();
        let etc = parse("state_dir = \"/b\"").unwrap();
        let both = user.overridden_by(etc);
        assert_eq!(both.state_dir.as_deref(), Some(Path::new("/b")));
        assert_eq!(both.log.as_deref(), Some("debug"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let e = parse("log = \"info\"\ncolour = true\n").unwrap_err();
        assert!(e.starts_with("line 2: unknown field `colour`"), "{e}");
    }
}
