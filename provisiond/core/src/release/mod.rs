//! A release: one file with a signed manifest and the boot file it describes.
//!
//! ```text
//!            8            8 + n                 8 + n + 96
//!   | header | manifest   | key 32, R 32, S 32  | boot file ...
//!   '------- signed ------'                     '-- chunk --'-- chunk --'-- ...
//! ```
//! The manifest lists the boot file's chunks with their SHA-256. A node reads the bundle as a stream: nothing is looked
//! at before the signature holds, and no byte of the boot file is handed on before its chunk does. `docs/formats/release.md`
//! has the bytes.
//!
//! Chunks are of one size here. Their table has a size for each: content-defined ones fit as well, and come with BLAKE3
//! and a new version of the manifest when nodes get their releases from each other.
//!
//! Not here: whether the node wants the release now, where it is written, and what failed before
//! ([`crate::slots`]).

mod manifest;
#[cfg(test)]
mod tests;
mod verify;

pub use manifest::{
    CHUNK_LEN, CHUNK_MAX, CHUNKS_MAX, Chunk, HARDWARE_MAX, Manifest, NAME_MAX, Rule, SIZE_MAX, Span,
};
pub use verify::{BundleError, Node, Part, Piece, Verifier};

use peer_core::key::SecretKey;
use proto::envelope;

/// The messages between nodes that this release speaks.
pub const PROTOCOL: Span = Span { lowest: 1, highest: 1 };
/// The feature levels that this release can run at.
pub const FEATURES: Span = Span { lowest: 1, highest: 1 };
/// The layout of service data that this release keeps.
pub const STATE_SCHEMA: u32 = 1;

/// What the signature is for.
const PURPOSE: &str = "evenkeel release 1";
/// Bytes of the key and the signature behind the manifest.
const SIGNATURE_LEN: usize = 96;

/// What stands in front of the boot file: the manifest, signed. The same manifest and key give the same bytes.
///
/// # Errors
/// The manifest breaks a rule: no node would take it.
///
/// ```
/// use peer_core::key::SecretKey;
/// use provisiond_core::release::{Manifest, Node, Verifier, head};
/// use provisiond_core::version::Version;
///
/// let key = SecretKey::from_seed([7; 32]);
/// let boot_file = vec![0x4d; 5000];
/// let version = Version { major: 1, minor: 2, patch: 3 };
/// let manifest = Manifest::of(&boot_file, "evenkeel", vec!["x86_64".into()], version);
/// let bundle = [head(&manifest, &key).unwrap(), boot_file.clone()].concat();
///
/// let node = Node::new(vec![*key.public()], "evenkeel", "x86_64", Version::default());
/// let (mut verifier, mut written) = (Verifier::new(node), Vec::new());
/// for piece in bundle.chunks(1000) {
///     verifier.push(piece, &mut |verified| written.extend_from_slice(verified.boot_file())).unwrap();
/// }
/// assert_eq!(verifier.finish().unwrap().version, version);
/// assert_eq!(written, boot_file);
/// ```
pub fn head(manifest: &Manifest, key: &SecretKey) -> Result<Vec<u8>, Rule> {
    manifest.check()?;
    let mut bytes = envelope::encode(manifest);
    let signature = key.sign(PURPOSE, &bytes);
    bytes.extend_from_slice(key.public());
    bytes.extend_from_slice(&signature.r);
    bytes.extend_from_slice(&signature.s);
    Ok(bytes)
}
