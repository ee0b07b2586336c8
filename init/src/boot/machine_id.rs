//! The machine's id (machine-id(5)): 32 hexadecimal digits that no other machine has.
//!
//! It comes from the machine's own UUID (SMBIOS), so that instances made from one image and copied disks differ.
//! Machines without a usable one get a random one that is kept in the boot record; a copy of such a disk has to be
//! told so (`format-state`). It is no secret and no key.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The machine's UUID as the firmware tells it.
pub(crate) const PRODUCT_UUID: &str = "/sys/class/dmi/id/product_uuid";
/// Where the id is for everybody; `/etc/machine-id` of the read-only root leads here.
pub(crate) const FILE: &str = "/run/machine-id";

/// What makers of boards write when they have not given the machine a UUID.
const JUNK: [[u8; 16]; 2] = [
    [0x03, 0x00, 0x02, 0x00, 0x04, 0x00, 0x05, 0x00, 0x00, 0x06, 0x00, 0x07, 0x00, 0x08, 0x00, 0x09],
    [0x12, 0x34, 0x56, 0x78, 0x12, 0x34, 0x56, 0x78, 0x90, 0xab, 0xcd, 0xde, 0xef, 0xaa, 0xbb, 0xcc],
];

/// Reads a UUID in text form. `None` when it is none, or one that many machines have.
pub(crate) fn usable(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<&str> = text.trim().split('-').collect();
    if !groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12]) {
        return None;
    }
    let id: [u8; 16] = proto::text::unhex(&groups.concat())?.try_into().ok()?;
    let same = id.iter().all(|b| *b == id[0]);
    (!same && !JUNK.contains(&id)).then_some(id)
}

/// Publishes `id` at `path`.
///
/// # Errors
/// The kernel's.
pub(crate) fn publish(path: &Path, id: [u8; 16]) -> io::Result<String> {
    let text = proto::text::hex(&id);
    fs::write(path, format!("{text}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o444))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testdir::TestDir;

    #[test]
    fn a_uuid_counts_when_it_is_this_machines_own() {
        let own = "4c4c4544-0034-4a10-8051-b4c04f4b3132\n";
        assert_eq!(usable(own).map(|id| id[..3].to_vec()), Some(vec![0x4c, 0x4c, 0x45]));
        for text in [
            "",
            "Not Settable",
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
            "4c4c4544-0034-4a10-8051-b4c04f4b313",
            "4c4c4544-0034-4a10-8051-b4c04f4b313g",
            "4c4c45440034-4a10-8051-b4c04f4b3132-",
            "+c4c4544-0034-4a10-8051-b4c04f4b3132",
        ] {
            assert_eq!(usable(text), None, "{text}");
        }
    }

    #[test]
    fn it_is_published_for_everybody_and_writable_for_nobody() {
        let dir = TestDir::new();
        let path = dir.path().join("machine-id");
        assert_eq!(publish(&path, [0xab; 16]).unwrap(), "ab".repeat(16));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", "ab".repeat(16)));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    }
}
