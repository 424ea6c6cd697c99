//! TLS 1.3 with pinned keys: no authorities, no names, no dates.
//!
//! Each node has one self-signed certificate. Its public key is its identity
//! ([`NodeId`]); a peer is who it says when it proves, by the signature of the handshake
//! (RFC 8446, section 4.4.3), that it holds the key of a trusted identity. Sessions are
//! never resumed, so every connection asks the trusted set anew.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{ring, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, UnbufferedServerConnection};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

use super::Service;
use crate::ids::NodeId;
use crate::node::Identity;

/// Says whether a peer is trusted; asked in every handshake.
pub type Trusted = Arc<dyn Fn(NodeId) -> bool + Send + Sync>;

/// What a connection needs to know of this node and its peers. Cheap to clone.
#[derive(Clone)]
pub struct TlsConfig {
    id: NodeId,
    key: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    trusted: Trusted,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig").field("id", &self.id).finish_non_exhaustive()
    }
}

impl TlsConfig {
    /// Speaks as `identity` and believes whom `trusted` names.
    ///
    /// # Errors
    /// When the identity's key cannot be used.
    pub fn new(identity: &Identity, trusted: Trusted) -> Result<Self, Error> {
        let provider = provider();
        let key = provider.key_provider.load_private_key(identity.key().clone_key())?;
        let key = CertifiedKey::new(vec![identity.certificate().clone()], key);
        let provider = Arc::new(provider);
        Ok(Self { id: identity.id(), key: Arc::new(key), provider, trusted })
    }

    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Whether a peer is trusted now.
    #[must_use]
    pub fn trusts(&self, peer: NodeId) -> bool {
        (self.trusted)(peer)
    }

    /// The client's half of a session that accepts nobody but `peer`.
    pub(super) fn client(
        &self,
        peer: NodeId,
        service: Service,
    ) -> Result<(UnbufferedClientConnection, Arc<Verifier>), Error> {
        let verifier = self.verifier(Accept::Only(peer));
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(self.resolver());
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(service.to_string())
            .map_err(|e| Error::General(format!("server name {service}: {e}")))?;
        Ok((UnbufferedClientConnection::new(Arc::new(config), name)?, verifier))
    }

    /// The server's half of a session: with trusted peers, or, when `strangers`, with anyone
    /// who holds the key of the certificate that it shows.
    pub(super) fn server(
        &self,
        strangers: bool,
    ) -> Result<(UnbufferedServerConnection, Arc<Verifier>), Error> {
        let accept = if strangers { Accept::Anyone } else { Accept::Trusted(self.trusted.clone()) };
        let verifier = self.verifier(accept);
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(self.resolver());
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok((UnbufferedServerConnection::new(Arc::new(config))?, verifier))
    }

    fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(self.key.clone()))
    }

    fn verifier(&self, accept: Accept) -> Arc<Verifier> {
        Arc::new(Verifier { accept, seen: OnceLock::new(), provider: self.provider.clone() })
    }
}

/// The ring provider with the fastest cipher first.
fn provider() -> CryptoProvider {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let mut provider = ring::default_provider();
    provider.cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    provider
}

/// The identity behind a certificate: the blake3 hash of its SubjectPublicKeyInfo (DER).
///
/// # Errors
/// When it is not an X.509 certificate.
pub fn certificate_id(certificate: &CertificateDer<'_>) -> Result<NodeId, Error> {
    let spki = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    Ok(NodeId(*blake3::hash(spki.as_ref()).as_bytes()))
}

enum Accept {
    Only(NodeId),
    Trusted(Trusted),
    Anyone,
}

impl Accept {
    fn accepts(&self, id: NodeId) -> bool {
        match self {
            Self::Only(peer) => *peer == id,
            Self::Trusted(trusted) => trusted(id),
            Self::Anyone => true,
        }
    }
}

/// Judges the peer's key in one handshake and remembers whose it was.
pub(super) struct Verifier {
    accept: Accept,
    seen: OnceLock<NodeId>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// The identity that the peer has shown; proven only once the handshake is over.
    pub(super) fn seen(&self) -> Option<NodeId> {
        self.seen.get().copied()
    }

    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let id = certificate_id(certificate)?;
        let shown = *self.seen.get_or_init(|| id);
        if shown == id && self.accept.accepts(id) {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// What rustls asks of a verifier on either side in the same words.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity).map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity).map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}
