//! Hashes and keyed hashes, each separated by what it is for: bytes hashed for one purpose never stand for another.

use hmac::{Hmac, KeyInit, Mac};
use proto::identity::{ClusterId, MemberId};
use proto::roster::PublicKey;
use sha2::{Digest, Sha256};

/// What a member id is the hash of, in front of the key.
const MEMBER: &str = "evenkeel member 1";
/// What a cluster without a roster chain is known by, in front of its name.
const NAMED_CLUSTER: &str = "evenkeel named cluster 1";

/// SHA-256 over the purpose's length in one byte, the purpose, and `bytes`.
pub(crate) fn hash(purpose: &str, bytes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([purpose.len() as u8]);
    hash.update(purpose.as_bytes());
    hash.update(bytes);
    hash.finalize().into()
}

/// HMAC-SHA-256 (RFC 2104) under `key`.
pub(crate) fn keyed_hash(key: &[u8], bytes: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length is taken");
    mac.update(bytes);
    mac
}

/// The id of the member whose first key is `key`. It stays when the key is rotated.
pub fn member_id(key: &PublicKey) -> MemberId {
    MemberId(hash(MEMBER, key))
}

/// The id of a cluster that has a name and a fixed list of keys but no roster chain: the lab's.
pub fn named_cluster(name: &str) -> ClusterId {
    cluster_id(&hash(NAMED_CLUSTER, name.as_bytes()))
}

/// The first half of a hash. Nobody gains by two first entries with one id: who can make both is admin of both.
pub(crate) fn cluster_id(hash: &[u8; 32]) -> ClusterId {
    let (half, _) = hash.split_first_chunk().expect("a hash has 32 bytes");
    ClusterId(*half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::text::hex;

    #[test]
    fn ids_of_release_1() {
        assert_eq!(
            hex(&member_id(&[7; 32]).0),
            hex(&Sha256::digest([b"\x11evenkeel member 1".as_slice(), &[7; 32]].concat()))
        );
        assert_eq!(named_cluster("demo").to_string().len(), 32);
        assert_ne!(named_cluster("demo"), named_cluster("prod"));
    }

    #[test]
    fn purposes_do_not_run_into_the_bytes() {
        assert_ne!(hash("ab", b"c"), hash("a", b"bc"));
    }

    #[test]
    fn keyed_hash_is_rfc_4231s() {
        // RFC 4231, test case 2.
        let tag = keyed_hash(b"Jefe", b"what do ya want for nothing?").finalize().into_bytes();
        assert_eq!(hex(&tag), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
