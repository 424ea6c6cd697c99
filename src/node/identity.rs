//! Who this node is: a key pair made at first start, and a name.
//!
//! The key is the identity; the certificate only carries it through TLS and is made again
//! when it is missing. Both are made under the folder's lock, so that two processes that
//! start at one moment end with one identity.

use std::path::Path;

use anyhow::{ensure, Context};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::store::{self, StoreError};
use crate::ids::NodeId;
use crate::migrate::transport::certificate_id;
use crate::state::StateDir;

/// Longest name of a node, bytes.
const MAX_NAME: usize = 63;

/// This node's key pair, with its certificate.
#[derive(Debug)]
pub struct Identity {
    id: NodeId,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads the identity of a state folder, or makes it at first use.
    ///
    /// # Errors
    /// When the files cannot be read or written, or are not a key and its certificate.
    pub fn load_or_create(state: &StateDir) -> anyhow::Result<Self> {
        let (key, cert) = (state.node().join("key"), state.node().join("cert"));
        if let (Some(key), Some(cert)) = (store::read(&key)?, store::read(&cert)?) {
            return Self::from_der(key, cert);
        }
        let _lock = store::lock(state)?;
        let pair = load_or_make_key(&key)?;
        let certificate = match store::read(&cert)? {
            Some(der) => der,
            None => make_certificate(&pair, &cert)?,
        };
        Self::from_der(pair.serialize_der(), certificate)
    }

    fn from_der(key: Vec<u8>, certificate: Vec<u8>) -> anyhow::Result<Self> {
        let certificate = CertificateDer::from(certificate);
        let id = certificate_id(&certificate).context("reading this node's certificate")?;
        Ok(Self { id, certificate, key: PrivatePkcs8KeyDer::from(key).into() })
    }

    /// The hash of the public key.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The self-signed certificate (X.509, DER).
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The private key (PKCS #8, DER).
    #[must_use]
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }
}

fn load_or_make_key(path: &Path) -> anyhow::Result<KeyPair> {
    if let Some(der) = store::read(path)? {
        return KeyPair::try_from(der).with_context(|| format!("reading {}", path.display()));
    }
    let pair = KeyPair::generate().context("making this node's key")?;
    store::write(path, pair.serialized_der())?;
    Ok(pair)
}

fn make_certificate(pair: &KeyPair, path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut params = CertificateParams::new(vec!["node.vosrun".to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    let id = NodeId(*blake3::hash(&pair.subject_public_key_info()).as_bytes());
    params.distinguished_name.push(DnType::CommonName, format!("vosrun {id}"));
    let der = params.self_signed(pair).context("making this node's certificate")?.der().to_vec();
    store::write(path, &der)?;
    Ok(der)
}

/// The node's name: the one given to `vosrun node --name`, else the host name.
///
/// # Errors
/// When the file exists but cannot be read.
pub fn name(state: &StateDir) -> Result<String, StoreError> {
    let stored = store::read(&state.node().join("name"))?;
    Ok(stored
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| is_name(name))
        .unwrap_or_else(host_name))
}

/// Gives the node its name.
///
/// # Errors
/// When it is not a name ([`is_name`]) or cannot be written.
pub fn set_name(state: &StateDir, name: &str) -> anyhow::Result<()> {
    sound_name(name)?;
    Ok(store::write(&state.node().join("name"), format!("{name}\n").as_bytes())?)
}

/// Says why a text cannot be a node's name.
///
/// # Errors
/// When it is none ([`is_name`]).
pub fn sound_name(name: &str) -> anyhow::Result<()> {
    ensure!(
        is_name(name),
        "{name:?} cannot be a node's name: up to {MAX_NAME} letters, digits, dots, dashes and underscores can"
    );
    Ok(())
}

/// Whether a text may be a node's name: what is safe in tables, paths and commands.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    starts_well && text.len() <= MAX_NAME && text.chars().all(allowed)
}

/// The host name (gethostname(2)) with what a name may not hold left out.
fn host_name() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let mut name: String =
        host.to_string_lossy().chars().filter(|c| is_name(&format!("x{c}"))).collect();
    name.truncate(MAX_NAME);
    Some(name).filter(|name| is_name(name)).unwrap_or_else(|| "node".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn state() -> (tempfile::TempDir, StateDir) {
        let tmp = tempfile::tempdir().unwrap();
        let state = StateDir::open(tmp.path()).unwrap();
        (tmp, state)
    }

    #[test]
    fn many_at_once_get_one_identity() {
        let (_tmp, state) = state();
        let ids: Vec<NodeId> = std::thread::scope(|scope| {
            let load = || Identity::load_or_create(&state).unwrap().id();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        for file in ["key", "cert"] {
            let mode = std::fs::metadata(state.node().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_lost_certificate_changes_nothing() {
        let (_tmp, state) = state();
        let id = Identity::load_or_create(&state).unwrap().id();
        std::fs::remove_file(state.node().join("cert")).unwrap();
        assert_eq!(Identity::load_or_create(&state).unwrap().id(), id);
    }

    #[test]
    fn names() {
        let (_tmp, state) = state();
        assert!(is_name(&name(&state).unwrap()));
        set_name(&state, "gpu-lab2").unwrap();
        assert_eq!(name(&state).unwrap(), "gpu-lab2");
        for bad in ["", "-x", "a b", "a/b", "\u{1b}[2J", &"x".repeat(64)] {
            assert!(set_name(&state, bad).is_err(), "{bad:?}");
        }
    }
}
