//! SHA-256 in the two shapes the builder needs: hex text of bytes or files, and derived GUIDs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use proto::text::hex;
use sha2::{Digest, Sha256};

/// Hex SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Hex SHA-256 of a file, read in pieces.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut piece)?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&piece[..n]);
    }
}

/// A 128-bit identity, kept in the byte order of its text form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// An identity derived from a name: the same in every build, so that images are reproducible.
    /// Marked as a UUID of version 8 (RFC 9562: own scheme).
    pub fn derived(name: &str) -> Self {
        let hash = Sha256::digest(format!("evenkeel:{name}").as_bytes());
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&hash[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// The byte order used on disk by GPT: the first three fields are little endian.
    pub fn to_disk(self) -> [u8; 16] {
        let b = self.0;
        [b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
    }

    /// The reverse of [`Guid::to_disk`] (which is its own inverse).
    pub fn from_disk(bytes: [u8; 16]) -> Self {
        Self(Self(bytes).to_disk())
    }
}

impl std::fmt::Display for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// A 32-bit FAT serial number derived from a name.
pub fn fat_serial(name: &str) -> u32 {
    let b = Guid::derived(&format!("fat {name}")).0;
    u32::from_be_bytes([b[0], b[1], b[2], b[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hash() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn disk_order_is_mixed_endian_and_its_own_inverse() {
        // C12A7328-F81F-11D2-BA4B-00A0C93EC93B is stored as 28 73 2a c1 1f f8 d2 11 ba 4b …
        let esp = Guid([
            0xc1, 0x2a, 0x73, 0x28, 0xf8, 0x1f, 0x11, 0xd2, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
        ]);
        assert_eq!(esp.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(&esp.to_disk()[..10], &[0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b]);
        assert_eq!(Guid::from_disk(esp.to_disk()), esp);
    }

    #[test]
    fn derived_guids_differ_by_name_and_never_by_time() {
        assert_eq!(Guid::derived("disk"), Guid::derived("disk"));
        assert_ne!(Guid::derived("SLOT-A"), Guid::derived("SLOT-B"));
        assert_eq!(Guid::derived("disk").0[6] >> 4, 8);
    }
}
