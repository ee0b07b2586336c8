//! TLS 1.3 with raw public keys on both sides. The provider is always passed, never taken from the process.

use crate::SecretKey;
use crate::clock::RunningClock;
use crate::hello::Protocol;
use crate::trusted::Trusted;
use proto::roster::PublicKey;
use quinn::crypto::rustls::HandshakeData;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use std::sync::Arc;

/// SubjectPublicKeyInfo of an Ed25519 key is this and the 32 bytes (RFC 8410).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// The key in a SubjectPublicKeyInfo, if that is exactly one Ed25519 key.
fn key_of_spki(spki: &[u8]) -> Option<&PublicKey> {
    spki.strip_prefix(&SPKI_HEAD)?.try_into().ok()
}

/// The peer's key in what quinn calls its identity.
pub(crate) fn key_of_peer(identity: Option<Box<dyn std::any::Any>>) -> Option<PublicKey> {
    let certificates = identity?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    match certificates.as_slice() {
        [only] => key_of_spki(only).copied(),
        _ => None,
    }
}

/// Which keys a handshake lets pass.
#[derive(Debug)]
enum Accept {
    /// Any node of the roster but this node itself.
    Roster(Arc<Trusted>, PublicKey),
    /// The node that was dialled.
    Only(PublicKey),
}

/// Judges the other side's raw key; the same for both directions.
#[derive(Debug)]
struct KeyVerifier {
    accept: Accept,
    provider: Arc<CryptoProvider>,
}

impl KeyVerifier {
    fn check(&self, spki: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        let key = key_of_spki(spki).filter(|_| more.is_empty()).ok_or(CertificateError::BadEncoding)?;
        let known = match &self.accept {
            Accept::Roster(trusted, own) => key != own && trusted.name_of(key).is_some(),
            Accept::Only(expected) => key == expected,
        };
        if known { Ok(()) } else { Err(CertificateError::UnknownIssuer.into()) }
    }

    fn check_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(
            message,
            &spki,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }
}

/// TLS 1.2 cannot be negotiated; should it be, it ends here.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        spki: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(spki, more).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, spki, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        spki: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(spki, more).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, spki, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A node's TLS side: makes the configurations its endpoint uses.
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
    clock: Arc<RunningClock>,
    /// Protocol names, the one liked best first.
    offers: Vec<Vec<u8>>,
}

impl Tls {
    /// Offers `protocols`, the one liked best first. What both sides offer is settled by TLS itself (ALPN), under the
    /// handshake's signatures: nobody between can talk them down to an older one.
    pub(crate) fn new(key: &SecretKey, protocols: &[Protocol]) -> Result<Tls, Error> {
        let signing = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key.pkcs8()))?;
        let spki = [SPKI_HEAD.as_slice(), key.public()].concat();
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signing));
        let offers = protocols.iter().map(|p| p.alpn().to_vec()).collect();
        Ok(Tls {
            provider: Arc::new(provider::default_provider()),
            certified,
            clock: Arc::new(RunningClock::new()),
            offers,
        })
    }

    fn verifier(&self, accept: Accept) -> Arc<KeyVerifier> {
        Arc::new(KeyVerifier { accept, provider: self.provider.clone() })
    }

    /// The accepting side: every node of the roster but the one with key `own`.
    pub(crate) fn server(&self, trusted: &Arc<Trusted>, own: &PublicKey) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.verifier(Accept::Roster(trusted.clone(), *own)))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = self.offers.clone();
        // No resumption: a key taken out of the roster must not come back on an old ticket.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// The dialling side: nobody but the owner of `expected`.
    pub(crate) fn client(&self, expected: &PublicKey) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(Accept::Only(*expected)))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                self.certified.clone(),
            )));
        config.alpn_protocols = self.offers.clone();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        Ok(config)
    }
}

/// The protocol a finished handshake settled on.
pub(crate) fn protocol_of(connection: &quinn::Connection) -> Option<Protocol> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    Protocol::from_alpn(&data.protocol?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spki_is_read_exactly() {
        let key = [7u8; 32];
        let spki = [SPKI_HEAD.as_slice(), &key].concat();
        assert_eq!(key_of_spki(&spki), Some(&key));
        assert_eq!(key_of_spki(&spki[..43]), None);
        assert_eq!(key_of_spki(&[spki.as_slice(), &[0]].concat()), None);
        let mut other = spki;
        other[8] = 0x6e; // X25519's identifier
        assert_eq!(key_of_spki(&other), None);
    }
}
