//! Records on files and on a disk whose power is cut at every step.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use proto::envelope::Message;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use store::crash::CrashDisk;
use store::record::SlotFault;
use store::{FileMedium, Medium, Record, StoreError, create_dir_durably};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    text: String,
}

impl Message for Note {
    const KIND: u16 = 0xfff1;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = 6000;
}

/// The same message as a later release writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LaterNote {
    text: String,
}

impl Message for LaterNote {
    const KIND: u16 = Note::KIND;
    const VERSION: u16 = 2;
    const MAX_LEN: usize = 9000;
}

/// The same message with more room than its file was made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Longer {
    text: String,
}

impl Message for Longer {
    const KIND: u16 = Note::KIND;
    const VERSION: u16 = Note::VERSION;
    const MAX_LEN: usize = 9000;
}

fn note(text: impl Into<String>) -> Note {
    Note { text: text.into() }
}

/// A directory of one test's own, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("evenkeel-store-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("note")
    }

    fn with(note: Note) -> Dir {
        let dir = Dir::new();
        Record::create(&dir.path(), note).unwrap();
        dir
    }

    fn open(&self) -> Result<Option<Record<Note>>, StoreError> {
        Record::open(&self.path())
    }

    /// Changes the byte at `offset` of the file.
    fn damage(&self, offset: usize) {
        let mut bytes = std::fs::read(self.path()).unwrap();
        bytes[offset] ^= 0x40;
        std::fs::write(self.path(), bytes).unwrap();
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// 28 bytes in front of the text plus 6000 are two pages.
const SLOT: usize = 8192;

#[test]
fn a_put_is_there_after_the_next_open() {
    let dir = Dir::with(note("one"));
    assert_eq!(std::fs::metadata(dir.path()).unwrap().len(), 2 * SLOT as u64);
    for (n, text) in ["two", "three", "four"].iter().enumerate() {
        let mut record = dir.open().unwrap().unwrap();
        assert_eq!(record.sequence(), n as u64 + 1);
        record.put(note(*text)).unwrap();
        assert_eq!(record.get(), &note(*text));
        drop(record);
        assert_eq!(dir.open().unwrap().unwrap().get(), &note(*text));
    }
    assert_eq!(std::fs::metadata(dir.path()).unwrap().len(), 2 * SLOT as u64, "overwritten in place");
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn no_file_is_no_record_and_a_second_one_is_refused() {
    let dir = Dir::new();
    assert!(dir.open().unwrap().is_none());
    let kept = Record::create(&dir.path(), note("one")).unwrap();
    assert!(matches!(dir.open(), Err(StoreError::InUse { .. })), "one writer at a time");
    drop(kept);
    assert!(matches!(Record::create(&dir.path(), note("two")), Err(StoreError::Exists { .. })));
    assert_eq!(dir.open().unwrap().unwrap().get(), &note("one"));
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn what_a_cut_left_while_it_was_created_is_no_hindrance() {
    let dir = Dir::new();
    std::fs::write(dir.0.join("note.new"), vec![0xaa; 5 * SLOT]).unwrap();
    assert!(dir.open().unwrap().is_none());
    Record::create(&dir.path(), note("one")).unwrap();
    assert_eq!(dir.open().unwrap().unwrap().get(), &note("one"));
    let missing = Record::create(&dir.0.join("no/such/place"), note("one"));
    assert!(matches!(missing, Err(StoreError::Io { what: "create it", .. })));
}

#[test]
fn a_damaged_slot_leaves_the_other_one() {
    // The third message lies in slot 0, the second in slot 1.
    let fresh = || {
        let dir = Dir::with(note("one"));
        let mut record = dir.open().unwrap().unwrap();
        record.put(note("two")).unwrap();
        record.put(note("three")).unwrap();
        dir
    };
    let table = [
        (0, "two", SlotFault::Magic),
        (7, "two", SlotFault::Length),
        (9, "two", SlotFault::Checksum),
        (17, "two", SlotFault::Checksum),
        (30, "two", SlotFault::Checksum),
        (SLOT, "three", SlotFault::Magic),
        (SLOT + 30, "three", SlotFault::Checksum),
    ];
    for (offset, text, fault) in table {
        let dir = fresh();
        dir.damage(offset);
        let mut record = dir.open().unwrap().unwrap();
        assert_eq!((record.get().text.as_str(), record.fault()), (text, Some(fault)), "offset {offset}");
        record.put(note("four")).unwrap();
        assert_eq!(record.fault(), None, "mended by the next put");
        drop(record);
        assert_eq!(dir.open().unwrap().unwrap().get(), &note("four"), "offset {offset}");
    }
}

#[test]
fn damage_to_both_slots_is_said_and_never_taken_for_empty() {
    let dir = Dir::with(note("one"));
    dir.damage(30);
    let said = dir.open().unwrap_err().to_string();
    let expected = format!(
        "record {} is damaged in both slots (checksum does not match; never written): restore or remove it",
        dir.path().display()
    );
    assert_eq!(said, expected);
    std::fs::write(dir.path(), vec![0; 2 * SLOT]).unwrap();
    assert!(
        matches!(dir.open(), Err(StoreError::Damaged { first: SlotFault::Empty, .. })),
        "zeros are damage too"
    );
    for len in [0, 1, SLOT, 2 * SLOT + 1] {
        std::fs::write(dir.path(), vec![0; len]).unwrap();
        assert!(dir.open().is_err(), "{len} bytes");
    }
}

#[test]
fn a_later_releases_message_is_refused_and_kept() {
    let dir = Dir::with(note("one"));
    dir.open().unwrap().unwrap().put(note("two")).unwrap();
    // What the later release puts into slot 0 of the same file: version 2, sequence 3.
    let mut bytes = std::fs::read(dir.path()).unwrap();
    let slot = &mut bytes[..SLOT];
    slot[8] = 3;
    slot[22] = 2;
    let crc = crc32fast::hash(&[&slot[..16], &slot[20..20 + usize::from(slot[4])]].concat());
    slot[16..20].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(dir.path(), &bytes).unwrap();
    let refusal = dir.open().unwrap_err();
    assert!(matches!(refusal, StoreError::Message { .. }), "the older slot would be a step back in time");
    assert_eq!(std::fs::read(dir.path()).unwrap(), bytes, "it is kept");
    let later: Record<LaterNote, CrashDisk> =
        Record::load(CrashDisk::new(bytes.clone(), None), &dir.path()).unwrap();
    assert_eq!(later.get().text, "one", "and the release that wrote it reads it");
    bytes[8..16].fill(0xff);
    let crc = crc32fast::hash(&[&bytes[..16], &bytes[20..20 + usize::from(bytes[4])]].concat());
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(dir.path(), &bytes).unwrap();
    let record = dir.open().unwrap().unwrap();
    assert_eq!(
        (record.get(), record.fault()),
        (&note("two"), Some(SlotFault::Sequence)),
        "none could follow"
    );
}

#[test]
fn a_message_longer_than_the_file_was_made_for_is_refused() {
    let dir = Dir::with(note("one"));
    let mut image = Record::<Longer, FileMedium>::image(&Longer { text: "short".into() });
    image.drain(SLOT..2 * SLOT);
    image.truncate(2 * SLOT);
    std::fs::write(dir.path(), image).unwrap();
    let mut record: Record<Longer> = Record::open(&dir.path()).unwrap().unwrap();
    let long = Longer { text: "x".repeat(8900) };
    assert!(matches!(record.put(long), Err(StoreError::NoRoom { len: 8910, room: 8172, .. })));
    record.put(Longer { text: "still".into() }).unwrap();
    drop(record);
    let record: Record<Longer> = Record::open(&dir.path()).unwrap().unwrap();
    assert_eq!(record.get().text, "still", "a refusal is no failed write");
}

#[test]
fn golden_bytes() {
    let mut image = Record::<Note, FileMedium>::image(&note("hi"));
    assert_eq!(image.len(), 2 * SLOT);
    let head = [
        b'E', b'K', b'R', b'1', // mark
        11, 0, 0, 0, // length of the envelope
        1, 0, 0, 0, 0, 0, 0, 0, // sequence
        0x77, 0x27, 0x9d, 0x13, // checksum: CRC-32 (IEEE) of the 16 bytes above and the envelope
        0xf1, 0xff, 1, 0, 3, 0, 0, 0, // envelope: kind, version, length
        2, b'h', b'i',
    ];
    assert_eq!(image[..head.len()], head);
    assert!(image[head.len()..].iter().all(|b| *b == 0));
    let mut record: Record<Note, CrashDisk> =
        Record::load(CrashDisk::new(image.clone(), None), Path::new("note")).unwrap();
    assert_eq!(record.get(), &note("hi"));
    record.put(note("ho")).unwrap();
    let after = record.into_medium().survivors().remove(0);
    image[SLOT..SLOT + head.len()].copy_from_slice(&head);
    image[SLOT + 8] = 2;
    image[SLOT + 16..SLOT + 20].copy_from_slice(&after[SLOT + 16..SLOT + 20]);
    image[SLOT + 30] = b'o';
    assert_eq!(after, image, "only the other slot was written");
}

/// Cuts the power at every step of a put; whatever is found then must be the message before or the one after it, and
/// the one after it once the put was acknowledged.
fn cut_everywhere(start: &[u8], before: &Note, after: &Note) {
    let load = |image: Vec<u8>, fuel| {
        Record::<Note, CrashDisk>::load(CrashDisk::new(image, fuel), Path::new("note"))
    };
    let mut whole = load(start.to_vec(), None).unwrap();
    whole.put(after.clone()).unwrap();
    let steps = whole.into_medium().used();
    let mut seen = [0, 0];
    // The first step is the sync of the opening.
    for fuel in 1..=steps {
        let mut record = load(start.to_vec(), Some(fuel)).unwrap();
        let acknowledged = record.put(after.clone()).is_ok();
        assert_eq!(acknowledged, fuel == steps);
        if !acknowledged {
            assert!(matches!(record.put(after.clone()), Err(StoreError::Poisoned { .. })), "no second try");
        }
        let disk = record.into_medium();
        // The process dies and is started anew: what it finds then, the power cut after that must leave.
        let again = Record::<Note, _>::load(disk.clone().powered(), Path::new("note")).unwrap();
        let seen_again = again.get().clone();
        for image in again.into_medium().survivors() {
            assert_eq!(load(image, None).unwrap().get(), &seen_again, "killed after {fuel}");
        }
        for image in disk.survivors() {
            let found = load(image, None).unwrap_or_else(|e| panic!("cut after {fuel}: {e}"));
            assert!(
                found.get() == after || !acknowledged && found.get() == before,
                "cut after {fuel}: {found:?}"
            );
            seen[usize::from(found.get() == after)] += 1;
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "both outcomes occur: {seen:?}");
}

#[test]
fn power_cut_at_every_byte() {
    let first = note("before");
    let image = Record::<Note, FileMedium>::image(&first);
    cut_everywhere(&image, &first, &note("after"));
    // A long message over an older one of the same length: sectors of both mix.
    let mut record: Record<Note, CrashDisk> =
        Record::load(CrashDisk::new(image, None), Path::new("note")).unwrap();
    let long = |c: char| note(String::from(c).repeat(1400));
    for c in ['a', 'b', 'c'] {
        record.put(long(c)).unwrap();
    }
    let image = record.into_medium().survivors().remove(0);
    cut_everywhere(&image, &long('c'), &long('d'));
}

#[test]
fn a_cut_disk_loses_reorders_and_tears() {
    let mut disk = CrashDisk::new(vec![0; 2048], None);
    disk.write_at(0, &[1; 1024]).unwrap();
    let images = disk.survivors();
    assert!(images.contains(&vec![0; 2048]), "all lost");
    assert!(images.iter().any(|i| i[0] == 0 && i[512] == 1), "the second sector first");
    assert!(images.iter().any(|i| i[255] == 1 && i[256] == 0), "torn in the middle");
    disk.sync().unwrap();
    assert_eq!(disk.survivors().len(), 1);
    assert!(disk.write_at(2047, &[1, 1]).is_err(), "it never grows");
}

#[test]
fn directories_are_made_as_deep_as_needed() {
    let dir = Dir::new();
    let deep = dir.0.join("a/b/c");
    create_dir_durably(&deep).unwrap();
    create_dir_durably(&deep).unwrap();
    assert!(deep.is_dir());
    std::fs::write(dir.0.join("file"), "").unwrap();
    assert!(create_dir_durably(&dir.0.join("file/below")).is_err());
}
