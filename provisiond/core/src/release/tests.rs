//! Bundles for and against a node.

use super::*;
use crate::version::Version;
use proto::envelope::{HEADER_LEN, Message};
use proto::text::{hex, one_line};

const VERSION: Version = Version { major: 1, minor: 2, patch: 3 };
/// Three chunks, the last one short.
const SIZE: usize = 2 * CHUNK_LEN + 77;

/// What is changed, and what is said about it.
type Case<T> = (fn(&mut T), &'static str);

fn key() -> SecretKey {
    SecretKey::from_seed([7; 32])
}

fn boot_file(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn manifest(boot_file: &[u8]) -> Manifest {
    let mut manifest = Manifest::of(boot_file, "evenkeel", vec!["arm".into(), "x86_64".into()], VERSION);
    manifest.floor = Version { major: 1, minor: 1, patch: 0 };
    manifest.source = Version { major: 1, minor: 0, patch: 0 };
    manifest
}

fn bundle(manifest: &Manifest, boot_file: &[u8]) -> Vec<u8> {
    [&head(manifest, &key()).unwrap(), boot_file].concat()
}

/// Signs whatever it is given: a manifest that [`head`] would refuse, too.
fn signed(manifest: &Manifest, boot_file: &[u8]) -> Vec<u8> {
    let mut bytes = envelope::encode(manifest);
    let signature = key().sign(PURPOSE, &bytes);
    for part in [*key().public(), signature.r, signature.s] {
        bytes.extend(part);
    }
    [&bytes, boot_file].concat()
}

fn node() -> Node {
    let running = Version { major: 1, minor: 1, patch: 9 };
    Node { room: 1 << 20, ..Node::new(vec![[9; 32], *key().public()], "evenkeel", "x86_64", running) }
}

/// What a node makes of a bundle that comes in pieces of some length: what it got, and its verdict.
fn read(node: Node, bundle: &[u8], length: usize) -> (Vec<u8>, Result<crate::slots::Release, BundleError>) {
    let (mut verifier, mut written) = (Verifier::new(node), Vec::new());
    for piece in bundle.chunks(length) {
        let mut sink = |piece: Piece<'_>| match piece {
            Piece::Manifest(_) => assert_eq!(written, [], "the manifest comes first"),
            Piece::Chunk { offset, bytes } => {
                assert_eq!(offset, written.len() as u64, "in order");
                written.extend_from_slice(bytes);
            }
        };
        if let Err(refusal) = verifier.push(piece, &mut sink) {
            let mut none = |piece: Piece<'_>| panic!("{piece:?} after a refusal");
            assert_eq!(verifier.push(bundle, &mut none), Err(refusal.clone()), "refused for good");
            assert_eq!(verifier.finish(), Err(refusal.clone()));
            return (written, Err(refusal));
        }
    }
    (written, verifier.finish())
}

#[test]
fn a_good_bundle_is_read_in_pieces_of_any_length() {
    let boot_file = boot_file(SIZE);
    let manifest = manifest(&boot_file);
    let bundle = bundle(&manifest, &boot_file);
    for length in [3, 95, 96, 4096, CHUNK_LEN, bundle.len()] {
        let (written, verdict) = read(node(), &bundle, length);
        assert_eq!(verdict, Ok(manifest.release()), "{length}");
        assert!(written == boot_file, "{length}");
    }
}

/// These bytes are what release 1 writes; they are never edited, a change of layout raises the version.
#[test]
fn golden_bytes() {
    let boot_file = boot_file(300);
    let manifest = manifest(&boot_file);
    let golden = include_str!("../../testdata/release-1.hex").replace('\n', "");
    assert_eq!(hex(&head(&manifest, &key()).unwrap()), golden);
    let bytes = proto::text::unhex(&golden).unwrap();
    assert_eq!(read(node(), &[bytes, boot_file].concat(), 100).1, Ok(manifest.release()));
}

#[test]
fn every_cut_is_refused() {
    let small = boot_file(300);
    let whole = bundle(&manifest(&small), &small);
    let head_len = whole.len() - small.len();
    for found in 0..whole.len() {
        let (written, verdict) = read(node(), &whole[..found], 64);
        let expected = if found < HEADER_LEN {
            BundleError::Truncated { part: Part::Header, expected: HEADER_LEN, found }
        } else if found < head_len - 96 {
            BundleError::Truncated { part: Part::Manifest, expected: head_len - 96, found }
        } else if found < head_len {
            BundleError::Truncated { part: Part::Signature, expected: head_len, found }
        } else {
            BundleError::Cut { expected: 300, found: (found - head_len) as u64 }
        };
        assert_eq!((written, verdict), (vec![], Err(expected)), "{found}");
    }
    // In the middle of a large one: what was verified before is handed on, and nothing else.
    let large = boot_file(SIZE);
    let whole = bundle(&manifest(&large), &large);
    let head_len = whole.len() - SIZE;
    for found in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 2 * CHUNK_LEN, SIZE - 1] {
        let (written, verdict) = read(node(), &whole[..head_len + found], 10_000);
        assert!(written == large[..found / CHUNK_LEN * CHUNK_LEN]);
        assert_eq!(verdict, Err(BundleError::Cut { expected: SIZE as u64, found: found as u64 }));
    }
    let longer = [&whole[..], b"x"].concat();
    assert_eq!(read(node(), &longer, 10_000).1, Err(BundleError::Trailing { expected: SIZE as u64 }));
}

#[test]
fn every_flipped_bit_is_refused() {
    let small = boot_file(300);
    let whole = bundle(&manifest(&small), &small);
    let head_len = whole.len() - small.len();
    for bit in 0..whole.len() * 8 {
        let mut bundle = whole.clone();
        bundle[bit / 8] ^= 1 << (bit % 8);
        let (written, verdict) = read(node(), &bundle, whole.len());
        assert_eq!(written, [], "bit {bit}");
        let refusal = verdict.expect_err("refused");
        let fits = match bit / 8 {
            0 | 1 => matches!(refusal, BundleError::NotABundle { .. }),
            2 | 3 => matches!(refusal, BundleError::Layout { .. }),
            // Another length: too long, or the signature is looked for elsewhere.
            4..8 => matches!(
                refusal,
                BundleError::ManifestSize { .. } | BundleError::Truncated { .. } | BundleError::Key { .. }
            ),
            at if at < head_len - 96 => matches!(refusal, BundleError::Signature { .. }),
            at if at < head_len - 64 => matches!(refusal, BundleError::Key { .. }),
            at if at < head_len => matches!(refusal, BundleError::Signature { .. }),
            _ => matches!(refusal, BundleError::Chunk { index: 0, offset: 0, .. }),
        };
        assert!(fits, "bit {bit}: {refusal:?}");
    }
    let large = boot_file(SIZE);
    let mut whole = bundle(&manifest(&large), &large);
    let at = whole.len() - SIZE + CHUNK_LEN + 5;
    whole[at] ^= 1;
    let (written, verdict) = read(node(), &whole, 999);
    assert!(written == large[..CHUNK_LEN], "the chunk before it is good");
    assert!(
        matches!(verdict, Err(BundleError::Chunk { index: 1, offset, .. }) if offset == CHUNK_LEN as u64)
    );
}

#[test]
fn what_is_not_for_this_node_is_refused_before_its_boot_file() {
    let boot_file = boot_file(300);
    let bundle = bundle(&manifest(&boot_file), &boot_file);
    let v = |text: &str| text.parse::<Version>().unwrap();
    let span = Span { lowest: 2, highest: 3 };
    let cases: [Case<Node>; 10] = [
        (
            |n| n.keys = vec![[9; 32]],
            "the bundle is signed by key ea4a6c63, expected 09090909: get it from who",
        ),
        (|n| n.keys = vec![], "the bundle is signed by key ea4a6c63, expected none: this node knows no key"),
        (|n| n.product = "other".into(), "the bundle is for product evenkeel, this node is other: choose"),
        (|n| n.hardware = "x86".into(), "the bundle is for hardware arm or x86_64, this node is x86: choose"),
        (|n| n.running = VERSION, "release 1.2.3 is committed on this node already: nothing to do"),
        (
            |n| n.floor = Version { patch: 4, ..VERSION },
            "release 1.2.3 is older than 1.2.4, the oldest that this",
        ),
        (
            |n| n.running = Version::default(),
            "release 1.2.3 is installed from 1.0.0 or later, this node runs 0.0.0",
        ),
        (
            |n| n.protocol = Span { lowest: 2, highest: 3 },
            "release 1.2.3 speaks protocol 1 to 1, this node 2 to 3",
        ),
        (
            |n| n.features = Span { lowest: 2, highest: 3 },
            "release 1.2.3 runs at feature levels 1 to 1, this node at 2",
        ),
        (|n| n.room = 299, "the boot file has 300 bytes, the slot has room for 299: the release needs"),
    ];
    for (change, told) in cases {
        let mut node = node();
        change(&mut node);
        let (written, verdict) = read(node, &bundle, 50);
        let line = one_line(&verdict.expect_err(told));
        assert!(line.starts_with(told) && line.ends_with("; the running slot is untouched"), "{line}");
        assert_eq!(written, []);
    }
    // The edges.
    let edge = Node {
        floor: VERSION,
        room: 300,
        running: v("1.0.0"),
        protocol: Span { lowest: 0, ..span },
        ..node()
    };
    assert_eq!(read(edge, &bundle, 50).1.map(|release| release.version), Ok(VERSION));
}

#[test]
fn a_signed_manifest_that_breaks_a_rule_is_refused() {
    let small = boot_file(300);
    let chunk = manifest(&small).chunks[0];
    let cases: [Case<Manifest>; 11] = [
        (|m| m.product = "Evenkeel".into(), "name \"Evenkeel\", expected 1 to 32"),
        (|m| m.hardware = vec!["x".repeat(33)], "name \"xxx"),
        (|m| m.hardware = vec![], "0 kinds of hardware"),
        (|m| m.hardware.reverse(), "2 kinds of hardware, expected 1 to 16, rising"),
        (|m| m.floor = Version { major: 2, ..VERSION }, "floor version 2.2.3 above the release's own, 1.2.3"),
        (|m| m.source = Version { major: 2, ..VERSION }, "source version 2.2.3 above"),
        (|m| m.protocol.lowest = 2, "protocol 2 to 1: the lowest is above the highest"),
        (|m| m.features.lowest = 2, "features 2 to 1"),
        (|m| m.size = 301, "a boot file of 301 bytes in chunks of 300 bytes"),
        (|m| m.chunks.clear(), "a boot file of 300 bytes in chunks of 0 bytes"),
        (|m| m.chunks[0].size = CHUNK_MAX + 1, "chunk 0 of 1048577 bytes"),
    ];
    for (change, told) in cases {
        let mut manifest = manifest(&small);
        change(&mut manifest);
        assert_eq!(head(&manifest, &key()).unwrap_err(), manifest.check().unwrap_err(), "{told}");
        let line = one_line(&read(node(), &signed(&manifest, &small), 50).1.expect_err(told));
        assert!(line.contains(told), "{line}");
    }
    let mut empty = manifest(&small);
    (empty.size, empty.chunks) = (0, vec![]);
    assert_eq!(empty.check(), Err(Rule::Size { size: 0, sum: 0 }));
    // All chunks are good and the whole is not: the last one is not handed on.
    let mut other = manifest(&small);
    other.digest = [0; 32];
    let (written, verdict) = read(node(), &signed(&other, &small), 50);
    assert!(written.is_empty() && matches!(verdict, Err(BundleError::Whole { .. })), "{verdict:?}");
    // The fullest manifest there is fits, one chunk more does not.
    let mut full = manifest(&small);
    let most = Version { major: u32::MAX, minor: u32::MAX, patch: u32::MAX };
    full.product = "p".repeat(NAME_MAX);
    full.hardware = (0..HARDWARE_MAX).map(|n| format!("{n:032x}")).collect();
    (full.version, full.floor, full.source, full.state_schema) = (most, most, most, u32::MAX);
    (full.protocol, full.features) =
        (Span { lowest: u32::MAX, highest: u32::MAX }, Span { lowest: u32::MAX, highest: u32::MAX });
    full.chunks = vec![chunk; CHUNKS_MAX];
    full.size = 300 * CHUNKS_MAX as u64;
    assert_eq!(full.check(), Ok(()));
    assert!(envelope::encode(&full).len() <= HEADER_LEN + Manifest::MAX_LEN);
    full.chunks.push(chunk);
    assert_eq!(full.check(), Err(Rule::Chunks { found: CHUNKS_MAX + 1 }));
}

#[test]
fn a_manifest_that_is_no_manifest_is_refused() {
    let small = boot_file(300);
    let good = manifest(&small);
    let mut bytes = envelope::encode(&good);
    // One byte more than the manifest, said and signed.
    bytes.push(0);
    let len = (bytes.len() - HEADER_LEN) as u32;
    bytes[4..HEADER_LEN].copy_from_slice(&len.to_le_bytes());
    let signature = key().sign(PURPOSE, &bytes);
    let bundle = [&bytes[..], key().public(), &signature.r, &signature.s, &small].concat();
    assert_eq!(read(node(), &bundle, 50).1, Err(BundleError::Manifest));
    // Four gigabytes are not waited for.
    let mut huge = good_header();
    huge[4..].copy_from_slice(&u32::MAX.to_le_bytes());
    let refusal = BundleError::ManifestSize { max: Manifest::MAX_LEN, found: u32::MAX as usize };
    assert_eq!(read(node(), &huge, 8).1, Err(refusal));
    // A signature for something else.
    let bytes = envelope::encode(&good);
    let signature = key().sign("evenkeel roster signature 1", &bytes);
    let bundle = [&bytes[..], key().public(), &signature.r, &signature.s, &small].concat();
    assert!(matches!(read(node(), &bundle, 50).1, Err(BundleError::Signature { .. })));
}

fn good_header() -> Vec<u8> {
    [Manifest::KIND.to_le_bytes(), Manifest::VERSION.to_le_bytes(), [0, 0], [0, 0]].concat()
}
