//! A node's secret key and what is derived from it.

use crate::id::{hash, keyed_hash};
use core::fmt;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use hmac::Mac;
use proto::roster::PublicKey;
use serde::{Deserialize, Serialize};

/// A node's Ed25519 key, from its 32-byte seed. `Debug` shows the public half only.
#[derive(Clone)]
pub struct SecretKey {
    seed: [u8; 32],
    public: PublicKey,
}

impl SecretKey {
    /// The key that `seed` stands for (RFC 8032: the seed is the private key).
    pub fn from_seed(seed: [u8; 32]) -> SecretKey {
        let public = SigningKey::from_bytes(&seed).verifying_key().to_bytes();
        SecretKey { seed, public }
    }

    /// The public half, as the roster lists it.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// PKCS#8 version 1 of the seed: the form the TLS library reads.
    pub fn pkcs8(&self) -> Vec<u8> {
        // SEQUENCE { INTEGER 0, SEQUENCE { OID 1.3.101.112 }, OCTET STRING { OCTET STRING seed } }
        const HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let mut der = HEAD.to_vec();
        der.extend_from_slice(&self.seed);
        der
    }

    /// 32 bytes that only this seed gives for `purpose`. The same after a restart, useless for finding the seed.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        keyed_hash(&self.seed, purpose.as_bytes()).finalize().into_bytes().into()
    }

    /// Signs `bytes` for `purpose`; nobody can take the signature for one of another purpose.
    pub fn sign(&self, purpose: &str, bytes: &[u8]) -> Signature {
        let signature = SigningKey::from_bytes(&self.seed).sign(&hash(purpose, bytes));
        Signature { r: *signature.r_bytes(), s: *signature.s_bytes() }
    }
}

/// An Ed25519 signature (RFC 8032): its 64 bytes as two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The first 32 bytes.
    pub r: [u8; 32],
    /// The last 32 bytes.
    pub s: [u8; 32],
}

/// Whether `key` signed `bytes` for `purpose`. Strict: one signature has one form, and keys under which a signature
/// says nothing (of small order) are not taken.
pub fn signed_by(key: &PublicKey, purpose: &str, bytes: &[u8], signature: &Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_components(signature.r, signature.s);
    VerifyingKey::from_bytes(key)
        .is_ok_and(|key| key.verify_strict(&hash(purpose, bytes), &signature).is_ok())
}

/// Whether `key` is a key at all: a point of the curve, and not of small order.
pub fn is_usable(key: &PublicKey) -> bool {
    VerifyingKey::from_bytes(key).is_ok_and(|key| !key.is_weak())
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        // Best effort: memory that is handed on should not hold the seed. `black_box` keeps the store alive.
        self.seed = [0; 32];
        core::hint::black_box(&self.seed);
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(public ")?;
        self.public.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_half_is_rfc_8032s() {
        // RFC 8032, section 7.1, test 1.
        let seed =
            proto::roster::parse_hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let public =
            proto::roster::parse_hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert_eq!(Some(*SecretKey::from_seed(seed.unwrap()).public()), public);
    }

    #[test]
    fn a_signature_is_for_its_key_its_purpose_and_its_bytes() {
        let key = SecretKey::from_seed([1; 32]);
        let signature = key.sign("a", b"text");
        assert!(signed_by(key.public(), "a", b"text", &signature));
        assert!(!signed_by(key.public(), "b", b"text", &signature));
        assert!(!signed_by(key.public(), "a", b"texT", &signature));
        assert!(!signed_by(SecretKey::from_seed([2; 32]).public(), "a", b"text", &signature));
        // The neutral element: under it everything would be signed by anybody.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert!(is_usable(key.public()) && !is_usable(&neutral));
        assert!(!signed_by(&neutral, "a", b"text", &Signature { r: neutral, s: [0; 32] }));
    }

    #[test]
    fn debug_hides_the_seed() {
        let shown = format!("{:?}", SecretKey::from_seed([0xab; 32]));
        assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
    }

    #[test]
    fn derived_bytes_depend_on_seed_and_purpose() {
        let key = SecretKey::from_seed([1; 32]);
        assert_eq!(key.derive("a"), SecretKey::from_seed([1; 32]).derive("a"));
        assert_ne!(key.derive("a"), key.derive("b"));
        assert_ne!(key.derive("a"), SecretKey::from_seed([2; 32]).derive("a"));
    }
}
