//! Compiles the guest programs, once for each content.

use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::procs;

/// How a guest is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// PIE, glibc, shared: what cc makes by default.
    Plain,
    Static,
    StaticPie,
    /// Position-dependent, shared.
    NoPie,
    /// Position-dependent and static.
    StaticNoPie,
    /// Static, musl.
    Musl,
}

impl Flavour {
    /// The suffix of the executable and in cell names.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Static => "-static",
            Self::StaticPie => "-static-pie",
            Self::NoPie => "-nopie",
            Self::StaticNoPie => "-static-nopie",
            Self::Musl => "-musl",
        }
    }

    fn compiler(self) -> &'static str {
        match self {
            Self::Musl => "musl-gcc",
            _ => "cc",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Static | Self::Musl => &["-static"],
            Self::StaticPie => &["-static-pie"],
            Self::NoPie => &["-no-pie", "-fno-pie"],
            Self::StaticNoPie => &["-static", "-no-pie", "-fno-pie"],
        }
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests")
}

/// Is there a compiler for this flavour?
pub fn available(flavour: Flavour) -> bool {
    find_program(flavour.compiler()).is_some()
}

/// Looks a program up in the usual folders, which every user may read.
pub fn find_program(name: &str) -> Option<PathBuf> {
    ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
}

/// What guests may include, always in the same order.
fn headers() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(sources())?.collect::<Result<Vec<_>, _>>()?;
    let mut all: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    all.retain(|path| path.extension().is_some_and(|end| end == "h"));
    all.sort();
    Ok(all)
}

/// The executable of a guest, in a folder that every user can read.
///
/// It is compiled when this content was not compiled before.
pub fn guest(name: &str, flavour: Flavour) -> Result<PathBuf> {
    let source = sources().join(format!("{name}.c"));
    let mut hash = std::hash::DefaultHasher::new();
    fs::read(&source).with_context(|| format!("read {}", source.display()))?.hash(&mut hash);
    for header in headers()? {
        fs::read(&header)?.hash(&mut hash);
    }
    flavour.hash(&mut hash);
    let file = format!("{name}{}-{:016x}", flavour.suffix(), hash.finish());
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    fs::create_dir_all(&kept)?;
    let kept = kept.join(file);
    if !kept.exists() {
        compile(&source, flavour, &kept)?;
    }
    publish(&kept, &format!("{name}{}", flavour.suffix()))
}

fn compile(source: &Path, flavour: Flavour, to: &Path) -> Result<()> {
    let part = to.with_extension(format!("part{}", std::process::id()));
    let mut cc = Command::new(flavour.compiler());
    cc.args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]).args(flavour.options());
    cc.arg("-o").arg(&part).arg(source);
    procs::run(&mut cc, Duration::from_secs(120))?.good("cc")?;
    Ok(fs::rename(part, to)?)
}

/// Copies an executable to where every user can read it. Two workers may do so at once.
pub fn publish(from: &Path, name: &str) -> Result<PathBuf> {
    let dir = super::run_dir().join("bin");
    let to = dir.join(name);
    if !to.exists() {
        fs::create_dir_all(&dir)?;
        let part = dir.join(format!(".{name}.{}", std::process::id()));
        fs::copy(from, &part).with_context(|| format!("copy {}", from.display()))?;
        // Not over a copy of the other worker, which may be running already.
        match fs::hard_link(&part, &to) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
            _ => fs::remove_file(part)?,
        }
    }
    Ok(to)
}

/// The program under test: the one that cargo has built, or `VOSRUN_BIN`.
pub fn vosrun() -> Result<PathBuf> {
    let other = std::env::var_os("VOSRUN_BIN").map(PathBuf::from);
    publish(other.as_deref().unwrap_or(Path::new(env!("CARGO_BIN_EXE_vosrun"))), "vosrun")
}
