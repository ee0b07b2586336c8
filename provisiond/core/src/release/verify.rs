//! Reads a bundle as it comes, in pieces of any length, and hands on what is verified.
//!
//! ```text
//!   head: header -> manifest, signature --good, for this node--> body: chunk by chunk --all, and the whole--> done
//!     |                                                            |
//!     +------------------------ anything else ---------------------+--> refused, for good
//! ```

use super::manifest::{CHUNKS_MAX, Manifest, Rule, Span};
use super::{FEATURES, PROTOCOL, PURPOSE, SIGNATURE_LEN};
use crate::slots::Release;
use crate::version::Version;
use core::fmt;
use peer_core::key::{Signature, signed_by};
use proto::envelope::{self, HEADER_LEN, Message};
use proto::roster::PublicKey;
use proto::text::hex;
use sha2::{Digest as _, Sha256};

/// What a node says about itself, to be held against a bundle.
#[derive(Clone, Debug)]
pub struct Node {
    /// Keys whose releases it takes.
    pub keys: Vec<PublicKey>,
    pub product: String,
    pub hardware: String,
    /// The committed version.
    pub running: Version,
    /// The lowest version that it may return to.
    pub floor: Version,
    pub protocol: Span,
    pub features: Span,
    /// Bytes that a boot file may have to fit into its slot.
    pub room: u64,
}

impl Node {
    /// A node of this release, without a floor and with a slot of any size.
    pub fn new(keys: Vec<PublicKey>, product: &str, hardware: &str, running: Version) -> Node {
        Node {
            keys,
            product: product.to_owned(),
            hardware: hardware.to_owned(),
            running,
            floor: Version::default(),
            protocol: PROTOCOL,
            features: FEATURES,
            room: u64::MAX,
        }
    }
}

/// A part in front of the boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Header,
    Manifest,
    Signature,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Header => "header",
            Part::Manifest => "manifest",
            Part::Signature => "signature",
        })
    }
}

/// Why a bundle is not installed. In every case the running slot is untouched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error(
        "this is no release bundle: it begins with kind {found:#06x}, expected {expected:#06x}; choose a file made by \"image release\"; the running slot is untouched"
    )]
    NotABundle { expected: u16, found: u16 },
    #[error(
        "the bundle has layout {found}, this release reads {expected}: install a release between first; the running slot is untouched"
    )]
    Layout { expected: u16, found: u16 },
    #[error(
        "the bundle's manifest is said to have {found} bytes, at most {max} are allowed: the file is damaged, copy it again; the running slot is untouched"
    )]
    ManifestSize { max: usize, found: usize },
    #[error(
        "the bundle ends within its {part}, after {found} of {expected} bytes: copy it again; the running slot is untouched"
    )]
    Truncated { part: Part, expected: usize, found: usize },
    #[error(
        "the bundle is signed by key {found}, expected {expected}: get it from who makes this node's releases; the running slot is untouched"
    )]
    Key { expected: String, found: String },
    #[error(
        "the signature of key {key} does not fit the manifest: the file was damaged or changed, copy it again; the running slot is untouched"
    )]
    Signature { key: String },
    #[error(
        "the bundle's manifest is signed but does not decode: have it made again; the running slot is untouched"
    )]
    Manifest,
    #[error("the bundle's manifest breaks a rule: have it made again; the running slot is untouched")]
    Rule(#[source] Rule),
    #[error(
        "the bundle is for product {found}, this node is {expected}: choose another one; the running slot is untouched"
    )]
    Product { expected: String, found: String },
    #[error(
        "the bundle is for hardware {found}, this node is {expected}: choose another one; the running slot is untouched"
    )]
    Hardware { expected: String, found: String },
    #[error(
        "release {found} is committed on this node already: nothing to do; the running slot is untouched"
    )]
    Installed { found: Version },
    #[error(
        "release {found} is older than {expected}, the oldest that this node may return to: choose a later one; the running slot is untouched"
    )]
    Downgrade { expected: Version, found: Version },
    #[error(
        "release {version} is installed from {expected} or later, this node runs {found}: install {expected} first; the running slot is untouched"
    )]
    Source { version: Version, expected: Version, found: Version },
    #[error(
        "release {version} speaks protocol {found}, this node {expected}: install a release between first; the running slot is untouched"
    )]
    Protocol { version: Version, expected: Span, found: Span },
    #[error(
        "release {version} runs at feature levels {found}, this node at {expected}: install a release between first; the running slot is untouched"
    )]
    Features { version: Version, expected: Span, found: Span },
    #[error(
        "the boot file has {found} bytes, the slot has room for {expected}: the release needs a node with larger slots; the running slot is untouched"
    )]
    TooLarge { expected: u64, found: u64 },
    #[error(
        "the boot file's chunk {index} at byte {offset} has hash {found}, expected {expected}: copy the bundle again; the running slot is untouched"
    )]
    Chunk { index: usize, offset: u64, expected: String, found: String },
    #[error(
        "the boot file ends after {found} of {expected} bytes: copy the bundle again; the running slot is untouched"
    )]
    Cut { expected: u64, found: u64 },
    #[error(
        "the boot file has hash {found}, expected {expected}, though all its chunks are good: have the bundle made again; the running slot is untouched"
    )]
    Whole { expected: String, found: String },
    #[error(
        "the bundle goes on behind the boot file's {expected} bytes: copy it again; the running slot is untouched"
    )]
    Trailing { expected: u64 },
}

/// Something verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The release is for this node. It comes first, and once.
    Manifest(&'a Manifest),
    /// The next bytes of the boot file.
    Chunk { offset: u64, bytes: &'a [u8] },
}

impl<'a> Piece<'a> {
    /// Its bytes of the boot file; none of a manifest.
    pub fn boot_file(self) -> &'a [u8] {
        match self {
            Piece::Manifest(_) => &[],
            Piece::Chunk { bytes, .. } => bytes,
        }
    }
}

/// What is read.
#[derive(Debug)]
enum State {
    Head,
    Body { manifest: Box<Manifest>, index: usize, offset: u64, whole: Sha256 },
    Refused(BundleError),
}

/// Reads one bundle. It holds one chunk or the head, whichever is longer, and no more.
#[derive(Debug)]
pub struct Verifier {
    node: Node,
    state: State,
    /// What has come and is not verified yet.
    buffer: Vec<u8>,
}

impl Verifier {
    /// Reads a bundle for `node`.
    pub fn new(node: Node) -> Verifier {
        Verifier { node, state: State::Head, buffer: Vec::new() }
    }

    /// Takes the next bytes; what they complete goes to `sink`, in order.
    ///
    /// # Errors
    /// The bundle is refused. So is everything that follows.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Piece<'_>)) -> Result<(), BundleError> {
        loop {
            let wanted = match self.wanted() {
                Ok(wanted) => wanted,
                Err(refusal) => return self.refuse(refusal),
            };
            let take = bytes.len().min(wanted - self.buffer.len());
            let (now, later) = bytes.split_at(take);
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() < wanted {
                return Ok(());
            }
            if wanted == 0 {
                // Everything there is has been verified.
                let State::Body { manifest, .. } = &self.state else { return Ok(()) };
                let expected = manifest.size;
                return if bytes.is_empty() {
                    Ok(())
                } else {
                    self.refuse(BundleError::Trailing { expected })
                };
            }
            if let Err(refusal) = self.complete(sink) {
                return self.refuse(refusal);
            }
        }
    }

    /// The bundle has ended.
    ///
    /// # Errors
    /// It was refused, or it ended too early.
    pub fn finish(self) -> Result<Release, BundleError> {
        let found = self.buffer.len();
        match self.state {
            State::Refused(refusal) => Err(refusal),
            State::Body { manifest, index, .. } if index == manifest.chunks.len() => Ok(manifest.release()),
            State::Body { manifest, offset, .. } => {
                Err(BundleError::Cut { expected: manifest.size, found: offset + found as u64 })
            }
            State::Head => {
                let manifest_end = envelope::header(&self.buffer).map_or(HEADER_LEN, |h| HEADER_LEN + h.len);
                let (part, expected) = if found < HEADER_LEN {
                    (Part::Header, HEADER_LEN)
                } else if found < manifest_end {
                    (Part::Manifest, manifest_end)
                } else {
                    (Part::Signature, manifest_end + SIGNATURE_LEN)
                };
                Err(BundleError::Truncated { part, expected, found })
            }
        }
    }

    /// Bytes that the buffer is to have before it can be looked at; none when nothing is to come.
    fn wanted(&self) -> Result<usize, BundleError> {
        match &self.state {
            State::Refused(refusal) => Err(refusal.clone()),
            State::Body { manifest, index, .. } => {
                Ok(manifest.chunks.get(*index).map_or(0, |chunk| chunk.size as usize))
            }
            State::Head if self.buffer.len() < HEADER_LEN => Ok(HEADER_LEN),
            State::Head => self.head_len(),
        }
    }

    /// Bytes in front of the boot file, as the header says.
    fn head_len(&self) -> Result<usize, BundleError> {
        let header = envelope::header(&self.buffer).expect("the header is there");
        if header.kind != Manifest::KIND {
            return Err(BundleError::NotABundle { expected: Manifest::KIND, found: header.kind });
        }
        if header.version != Manifest::VERSION {
            return Err(BundleError::Layout { expected: Manifest::VERSION, found: header.version });
        }
        if header.len > Manifest::MAX_LEN {
            return Err(BundleError::ManifestSize { max: Manifest::MAX_LEN, found: header.len });
        }
        Ok(HEADER_LEN + header.len + SIGNATURE_LEN)
    }

    /// What was wanted is there.
    fn complete(&mut self, sink: &mut impl FnMut(Piece<'_>)) -> Result<(), BundleError> {
        match &mut self.state {
            State::Refused(refusal) => Err(refusal.clone()),
            State::Head if self.buffer.len() == HEADER_LEN => Ok(()),
            State::Head => {
                let manifest = signed_manifest(&self.buffer, &self.node.keys)?;
                suits(&manifest, &self.node)?;
                sink(Piece::Manifest(&manifest));
                self.buffer.clear();
                let manifest = Box::new(manifest);
                self.state = State::Body { manifest, index: 0, offset: 0, whole: Sha256::new() };
                Ok(())
            }
            State::Body { manifest, index, offset, whole } => {
                let expected = manifest.chunks[*index].digest;
                let found: [u8; 32] = Sha256::digest(&self.buffer).into();
                if found != expected {
                    let (index, offset) = (*index, *offset);
                    let (expected, found) = (hex(&expected), hex(&found));
                    return Err(BundleError::Chunk { index, offset, expected, found });
                }
                whole.update(&self.buffer);
                *index += 1;
                // The last piece goes out only when the whole is good, too: a slot is never complete otherwise.
                if *index == manifest.chunks.len() {
                    let found: [u8; 32] = whole.finalize_reset().into();
                    if found != manifest.digest {
                        let (expected, found) = (hex(&manifest.digest), hex(&found));
                        return Err(BundleError::Whole { expected, found });
                    }
                }
                sink(Piece::Chunk { offset: *offset, bytes: &self.buffer });
                *offset += self.buffer.len() as u64;
                self.buffer.clear();
                Ok(())
            }
        }
    }

    fn refuse(&mut self, refusal: BundleError) -> Result<(), BundleError> {
        self.buffer = Vec::new();
        self.state = State::Refused(refusal.clone());
        Err(refusal)
    }
}

/// The manifest of a whole head, if one of the keys signed it.
fn signed_manifest(head: &[u8], keys: &[PublicKey]) -> Result<Manifest, BundleError> {
    let (signed, signature) = head.split_at(head.len() - SIGNATURE_LEN);
    let mut parts = signature.as_chunks::<32>().0.iter().copied();
    let mut part = || parts.next().expect("a signature has three parts");
    let (key, signature) = (part(), Signature { r: part(), s: part() });
    if !keys.contains(&key) {
        let expected = match keys {
            [] => "none: this node knows no key".to_owned(),
            keys => keys.iter().map(|key| hex(&key[..4])).collect::<Vec<_>>().join(" or "),
        };
        return Err(BundleError::Key { expected, found: hex(&key[..4]) });
    }
    if !signed_by(&key, PURPOSE, signed, &signature) {
        return Err(BundleError::Signature { key: hex(&key[..4]) });
    }
    let manifest: Manifest = envelope::decode(signed).map_err(|_| BundleError::Manifest)?;
    manifest.check().map_err(BundleError::Rule)?;
    // One meaning has one form.
    if envelope::encode(&manifest) == signed { Ok(manifest) } else { Err(BundleError::Manifest) }
}

/// Whether the release is for this node.
fn suits(manifest: &Manifest, node: &Node) -> Result<(), BundleError> {
    let version = manifest.version;
    if manifest.product != node.product {
        let (expected, found) = (node.product.clone(), manifest.product.clone());
        return Err(BundleError::Product { expected, found });
    }
    if !manifest.hardware.contains(&node.hardware) {
        let (expected, found) = (node.hardware.clone(), manifest.hardware.join(" or "));
        return Err(BundleError::Hardware { expected, found });
    }
    if version == node.running {
        return Err(BundleError::Installed { found: version });
    }
    if version < node.floor {
        return Err(BundleError::Downgrade { expected: node.floor, found: version });
    }
    if node.running < manifest.source {
        return Err(BundleError::Source { version, expected: manifest.source, found: node.running });
    }
    if !manifest.protocol.meets(node.protocol) {
        let (expected, found) = (node.protocol, manifest.protocol);
        return Err(BundleError::Protocol { version, expected, found });
    }
    if !manifest.features.meets(node.features) {
        let (expected, found) = (node.features, manifest.features);
        return Err(BundleError::Features { version, expected, found });
    }
    if manifest.size > node.room {
        return Err(BundleError::TooLarge { expected: node.room, found: manifest.size });
    }
    Ok(())
}

// A reader buffers the head or one chunk.
const _: () = assert!(Manifest::MAX_LEN < super::CHUNK_MAX as usize && CHUNKS_MAX * 37 < Manifest::MAX_LEN);
