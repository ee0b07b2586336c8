//! Firmware variables with the lab's own keys for Secure Boot: what a person does in a firmware's menu, done to the file.
//!
//! ```text
//! OVMF_VARS: volume header | store header | variables … | erased (ff)
//!
//! variable:  aa 55 3f 00 | attributes | count 8 | time 16 | key 4 | name size | data size | vendor 16 | name | data | to 4
//! data:      type X.509 16 | list size | 0 | entry size | owner 16 | certificate
//! ```
//! A firmware that finds PK switches Secure Boot on by itself.

use std::path::Path;

/// Names of the variables and their vendors, in the byte order of the disk.
const GLOBAL: [u8; 16] = guid("8be4df61", "93ca", "11d2", *b"\xaa\x0d\x00\xe0\x98\x03\x2b\x8c");
const DATABASE: [u8; 16] = guid("d719b2cb", "3d3a", "4596", *b"\xa3\xbc\xda\xd0\x0e\x67\x65\x6f");
const VARIABLES: [(&str, [u8; 16]); 3] = [("PK", GLOBAL), ("KEK", GLOBAL), ("db", DATABASE)];
/// The store whose variables have time and key.
const STORE: [u8; 16] = guid("aaf32c78", "947b", "439a", *b"\xa1\x80\x2e\x14\x4e\xc3\x77\x92");
const X509: [u8; 16] = guid("a5c059a1", "94e4", "4aa7", *b"\x87\xb5\xab\x15\x5c\x2b\xf0\x72");
/// Who enrolled them: the lab, by a number of its own.
const OWNER: [u8; 16] = *b"evenkeel lab key";
/// Kept, for boot services and the running system, changed only with a signature.
const ATTRIBUTES: u32 = 0x27;
const STORE_HEADER: usize = 28;
const VARIABLE_HEADER: usize = 60;

/// A GUID as firmware has it: three little-endian numbers, then bytes.
const fn guid(a: &str, b: &str, c: &str, d: [u8; 8]) -> [u8; 16] {
    const fn digit(c: u8) -> u8 {
        if c.is_ascii_digit() { c - b'0' } else { c - b'a' + 10 }
    }
    const fn byte(text: &str, at: usize) -> u8 {
        (digit(text.as_bytes()[2 * at]) << 4) | digit(text.as_bytes()[2 * at + 1])
    }
    [
        byte(a, 3),
        byte(a, 2),
        byte(a, 1),
        byte(a, 0),
        byte(b, 1),
        byte(b, 0),
        byte(c, 1),
        byte(c, 0),
        d[0],
        d[1],
        d[2],
        d[3],
        d[4],
        d[5],
        d[6],
        d[7],
    ]
}

/// Variables as they leave the factory, and the keys of `keys` in them.
pub(crate) fn enrolled(factory: &[u8], keys: &Path) -> Result<Vec<u8>, String> {
    let mut list = Vec::new();
    for (name, vendor) in VARIABLES {
        let path = keys.join(format!("{name}.cer"));
        let certificate = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        list.extend(variable(name, vendor, &signature_list(&certificate)));
    }
    let mut store = factory.to_vec();
    let (end, room) = free(&store).ok_or("no store of variables")?;
    if list.len() > room {
        return Err(format!("room for {room} bytes, the keys have {}", list.len()));
    }
    store[end..end + list.len()].copy_from_slice(&list);
    Ok(store)
}

fn signature_list(certificate: &[u8]) -> Vec<u8> {
    let entry = 16 + certificate.len();
    let number = |n: usize| (n as u32).to_le_bytes();
    [&X509[..], &number(28 + entry), &number(0), &number(entry), &OWNER, certificate].concat()
}

fn variable(name: &str, vendor: [u8; 16], data: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let mut bytes = vec![0xaa, 0x55, 0x3f, 0];
    bytes.extend(ATTRIBUTES.to_le_bytes());
    bytes.extend([0; 8]);
    // Any time: the next change has to be later.
    bytes.extend([0xe4, 0x07, 1, 1]);
    bytes.extend([0; 12 + 4]);
    bytes.extend((name.len() as u32).to_le_bytes());
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(vendor);
    debug_assert_eq!(bytes.len(), VARIABLE_HEADER);
    bytes.extend(name);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0xff);
    bytes
}

/// Where the next variable goes, and how many bytes are free there.
fn free(store: &[u8]) -> Option<(usize, usize)> {
    let long = |at: usize| Some(u32::from_le_bytes(store.get(at..at + 4)?.try_into().ok()?) as usize);
    let header = usize::from(u16::from_le_bytes(store.get(48..50)?.try_into().ok()?));
    if store.get(40..44)? != b"_FVH" || store.get(header..header + 16)? != STORE {
        return None;
    }
    let end = header.checked_add(long(header + 16)?)?.min(store.len());
    let mut at = header + STORE_HEADER;
    while store.get(at..at + 2)? == [0xaa, 0x55] {
        let size = VARIABLE_HEADER.checked_add(long(at + 36)?)?.checked_add(long(at + 40)?)?;
        at = at.checked_add(size)?.next_multiple_of(4);
    }
    Some((at, end.checked_sub(at)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::testing::TestDir;

    #[test]
    fn keys_are_put_behind_what_is_there() {
        let dir = TestDir::new("enrol");
        for (name, bytes) in [("PK", &b"pk"[..]), ("KEK", b"kek"), ("db", b"db!!!")] {
            std::fs::write(dir.path().join(format!("{name}.cer")), bytes).expect("written");
        }
        let factory =
            std::fs::read(crate::arguments::FIRMWARE_VARS).expect("install the Debian package ovmf");
        let (before, room) = free(&factory).expect("a store");
        let once = enrolled(&factory, dir.path()).expect("room");
        assert_eq!(once.len(), factory.len());
        let (after, less) = free(&once).expect("a store still");
        assert_eq!(before + room, after + less, "the store is as large as before");
        assert_eq!((&once[..before], &once[after..]), (&factory[..before], &factory[after..]));
        let first = &once[before..before + 116];
        assert_eq!(&first[..8], [0xaa, 0x55, 0x3f, 0, 0x27, 0, 0, 0]);
        assert_eq!(&first[36..44], [6, 0, 0, 0, 46, 0, 0, 0], "name and data");
        assert_eq!(&first[44..52], [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11]);
        assert_eq!(&first[60..66], b"P\0K\0\0\0");
        assert_eq!(&first[66..70], [0xa1, 0x59, 0xc0, 0xa5]);
        assert_eq!(&first[82..94], [46, 0, 0, 0, 0, 0, 0, 0, 18, 0, 0, 0]);
        assert_eq!(&first[110..112], b"pk");
        let twice = enrolled(&once, dir.path()).expect("room");
        assert_eq!(free(&twice).map(|(end, _)| end), Some(2 * after - before));

        std::fs::write(dir.path().join("db.cer"), vec![0; room]).expect("written");
        assert!(enrolled(&factory, dir.path()).expect_err("full").starts_with("room for "));
        assert_eq!(enrolled(b"no store", dir.path()).expect_err("none"), "no store of variables");
    }
}
