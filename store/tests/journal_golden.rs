//! A journal as each release wrote it. The files are kept for ever: every later release reads them.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use common::{BLOCK, create, fact, facts, name, open, vote};
use store::crash::CrashFolder;
use store::journal::{Tail, Unknown};

/// Release 1: two entries appended, compacted to the second, a binding one and a long one appended.
const RELEASE_1: &[u8] = include_bytes!("../testdata/journal-1.bin");

#[test]
fn release_1_is_read() {
    let folder = CrashFolder::new(512);
    folder.set_bytes(name(), RELEASE_1.to_vec());
    let (mut journal, content) = open(&folder).unwrap().unwrap();
    let expected = vec![(2, "two".to_owned()), (4, "x".repeat(4100)), (5, "five".into())];
    assert_eq!((facts(&content), content.tail), (expected, Tail::Clean));
    assert_eq!(content.unknown, [Unknown { sequence: 3, kind: 0xfff3, version: 1 }]);
    assert_eq!(journal.append(&[fact("six")]).unwrap(), 6..7);
}

#[test]
fn this_release_writes_the_same_bytes() {
    let folder = CrashFolder::new(512);
    let mut journal = create(&folder);
    journal.append(&[fact("one"), fact("two")]).unwrap();
    journal.compact(|e| e.sequence == 2, &[]).unwrap();
    journal.append(&[vote(7)]).unwrap();
    journal.append(&[fact("x".repeat(4100)), fact("five")]).unwrap();
    let bytes = folder.bytes(name()).unwrap();
    assert!(bytes == RELEASE_1, "a change of layout is a new format with a file of its own");
    // As docs/formats/journal.md draws them.
    let header = [
        b'E', b'K', b'J', b'\n', 1, 0, 0, 0, // mark, format
        2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
        2, // identity: the second that the test folder gave
        3, 0, 0, 0, 0, 0, 0, 0, // next number when it was made
        3, 0, 0, 0, // block behind the sealed part
        0x72, 0xb8, 0xd1, 0x80, // checksum: CRC-32 (IEEE) of the 36 bytes above
    ];
    assert_eq!(bytes[..40], header);
    assert_eq!(bytes[BLOCK..BLOCK + 40], header);
    let entry = [
        b'E', b'K', b'E', b'1', 9, 0, 0, 0, // mark, length of the envelope
        3, 0, 0, 0, 0, 0, 0, 0, // number
        7, 0, 0, 0, // flags: binding, first, last
        0, 0, 0, 0, // blocks of remains before it
        0xb0, 0x5a, 0x4a, 0x6a, // checksum of the envelope
        0xd8, 0xcb, 0xf5, 0xb8, // checksum of identity, offset in the file (u64) and the 28 bytes above
        0xf3, 0xff, 1, 0, 1, 0, 0, 0, 7, // envelope: kind, version, length, payload
    ];
    assert_eq!(bytes[3 * BLOCK..3 * BLOCK + entry.len()], entry);
    assert!(bytes[3 * BLOCK + entry.len()..4 * BLOCK].iter().all(|b| *b == 0));
}
