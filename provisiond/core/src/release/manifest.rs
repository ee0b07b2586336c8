//! The manifest: what a release is, for whom, and the chunks of its boot file.

use crate::slots::{Digest, Release};
use crate::version::Version;
use core::fmt;
use proto::envelope::{Message, kind};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of a chunk that this release makes; the last one of a file has the rest.
pub const CHUNK_LEN: usize = 256 * 1024;
/// Bytes of the longest chunk there may be: what a reader buffers.
pub const CHUNK_MAX: u32 = 1 << 20;
/// Most chunks. Content-defined ones of 16 KiB on average make 4000 of 64 MiB.
pub const CHUNKS_MAX: usize = 8192;
/// Bytes of the largest boot file: firmware reads it into memory.
pub const SIZE_MAX: u64 = 512 << 20;
/// Bytes of the longest name of a product or a hardware.
pub const NAME_MAX: usize = 32;
/// Most kinds of hardware that one release is for.
pub const HARDWARE_MAX: usize = 16;

/// Numbers from the lowest to the highest, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub lowest: u32,
    pub highest: u32,
}

impl Span {
    /// Whether the two have a number in common.
    pub fn meets(self, other: Span) -> bool {
        self.lowest <= other.highest && other.lowest <= self.highest
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.lowest, self.highest)
    }
}

/// A piece of the boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Bytes.
    pub size: u32,
    /// SHA-256.
    pub digest: Digest,
}

/// What a release is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub product: String,
    /// The kinds of hardware it is for, rising.
    pub hardware: Vec<String>,
    pub version: Version,
    /// The lowest version that a node may return to once it has committed this one.
    pub floor: Version,
    /// The lowest version that it may be installed from.
    pub source: Version,
    /// The messages between nodes that it speaks.
    pub protocol: Span,
    /// The feature levels that it can run at.
    pub features: Span,
    /// The layout of service data that it keeps.
    pub state_schema: u32,
    /// Bytes of the boot file.
    pub size: u64,
    /// SHA-256 of the boot file.
    pub digest: Digest,
    /// The boot file's pieces, in order.
    pub chunks: Vec<Chunk>,
}

/// What a manifest has to keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    #[error("name {found:?}, expected 1 to {NAME_MAX} of a-z 0-9 - _")]
    Name { found: String },
    #[error("{found} kinds of hardware, expected 1 to {HARDWARE_MAX}, rising")]
    Hardware { found: usize },
    #[error("{what} version {found} above the release's own, {version}")]
    Above { what: &'static str, found: Version, version: Version },
    #[error("{what} {found}: the lowest is above the highest")]
    Span { what: &'static str, found: Span },
    #[error("{found} chunks, at most {CHUNKS_MAX} are allowed")]
    Chunks { found: usize },
    #[error("chunk {index} of {found} bytes, expected 1 to {CHUNK_MAX}")]
    ChunkSize { index: usize, found: u32 },
    #[error("a boot file of {size} bytes in chunks of {sum} bytes, expected the same, 1 to {SIZE_MAX}")]
    Size { size: u64, sum: u64 },
}

impl Manifest {
    /// The manifest of a boot file, for nodes of any version and with this release's own ranges. Whoever makes a release
    /// sets what is to be different.
    pub fn of(boot_file: &[u8], product: &str, hardware: Vec<String>, version: Version) -> Manifest {
        let chunks = boot_file.chunks(CHUNK_LEN).map(|chunk| Chunk {
            size: u32::try_from(chunk.len()).expect("a chunk is short"),
            digest: Sha256::digest(chunk).into(),
        });
        Manifest {
            product: product.to_owned(),
            hardware,
            version,
            floor: Version::default(),
            source: Version::default(),
            protocol: super::PROTOCOL,
            features: super::FEATURES,
            state_schema: super::STATE_SCHEMA,
            size: boot_file.len() as u64,
            digest: Sha256::digest(boot_file).into(),
            chunks: chunks.collect(),
        }
    }

    /// What the slots know of it.
    pub fn release(&self) -> Release {
        Release { digest: self.digest, size: self.size, version: self.version, floor: self.floor }
    }

    /// Whether it keeps the rules.
    pub fn check(&self) -> Result<(), Rule> {
        let named = |name: &str| {
            let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
            (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(good)
        };
        if let Some(name) = [&self.product].into_iter().chain(&self.hardware).find(|name| !named(name)) {
            return Err(Rule::Name { found: name.chars().take(NAME_MAX).collect() });
        }
        let found = self.hardware.len();
        if !(1..=HARDWARE_MAX).contains(&found) || !self.hardware.is_sorted_by(|a, b| a < b) {
            return Err(Rule::Hardware { found });
        }
        for (what, found) in [("floor", self.floor), ("source", self.source)] {
            if found > self.version {
                return Err(Rule::Above { what, found, version: self.version });
            }
        }
        for (what, found) in [("protocol", self.protocol), ("features", self.features)] {
            if found.lowest > found.highest {
                return Err(Rule::Span { what, found });
            }
        }
        if self.chunks.len() > CHUNKS_MAX {
            return Err(Rule::Chunks { found: self.chunks.len() });
        }
        for (index, Chunk { size: found, .. }) in self.chunks.iter().enumerate() {
            if !(1..=CHUNK_MAX).contains(found) {
                return Err(Rule::ChunkSize { index, found: *found });
            }
        }
        let sum = self.chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
        if sum != self.size || !(1..=SIZE_MAX).contains(&sum) {
            return Err(Rule::Size { size: self.size, sum });
        }
        Ok(())
    }
}

impl Message for Manifest {
    const KIND: u16 = kind::RELEASE_MANIFEST;
    const VERSION: u16 = 1;
    /// Names with their lengths, three versions, five numbers, size and digest, chunks.
    const MAX_LEN: usize =
        (1 + HARDWARE_MAX) * (1 + NAME_MAX) + 1 + 3 * 15 + 5 * 5 + 10 + 32 + 3 + CHUNKS_MAX * (5 + 32);
}
