//! Journals on files: what is written is read, damage is named, later releases' entries are kept.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use common::{BLOCK, CrashJournal, Dir, Fact, NEW, OLD, Vote, create, fact, facts, found, name, open, vote};
use std::path::Path;
use store::crash::CrashFolder;
use store::journal::{EntryFault, Journal, JournalError, Options, Tail, Unknown};

#[test]
fn what_was_appended_is_there_after_the_next_open() {
    let dir = Dir::new();
    assert!(Journal::open(&dir.path(), OLD).unwrap().is_none());
    let mut journal = Journal::create(&dir.path(), OLD).unwrap();
    assert_eq!(journal.append(&[fact("one")]).unwrap(), 1..2);
    assert_eq!(journal.append(&[fact("two"), fact("x".repeat(9000)), fact("four")]).unwrap(), 2..5);
    assert_eq!(journal.append(&[]).unwrap(), 5..5, "nothing is nothing");
    drop(journal);
    let (mut journal, content) = Journal::open(&dir.path(), OLD).unwrap().unwrap();
    let expected = vec![(1, "one".into()), (2, "two".into()), (3, "x".repeat(9000)), (4, "four".into())];
    assert_eq!(facts(&content), expected);
    assert_eq!((content.tail, content.abstains(0)), (Tail::Clean, false));
    assert_eq!(journal.append(&[fact("five")]).unwrap(), 5..6);
    assert_eq!(journal.usage().0, 7 * BLOCK as u64, "2 headers, 1, 3 and 1 blocks");
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1, "nothing is left beside it");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(dir.path()).unwrap());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn one_writer_at_a_time_also_across_a_compaction() {
    let dir = Dir::new();
    let mut journal = Journal::create(&dir.path(), OLD).unwrap();
    let in_use = || matches!(Journal::open(&dir.path(), OLD), Err(JournalError::InUse { .. }));
    assert!(in_use());
    journal.append(&[fact("one"), fact("two")]).unwrap();
    journal.compact(|e| e.sequence == 2, &[]).unwrap();
    assert!(in_use(), "the new file is locked before it has the name");
    let (seen, damage) = Journal::inspect(&dir.path(), OLD).unwrap().unwrap();
    assert_eq!((facts(&seen), damage), (vec![(2, "two".into())], vec![]), "looking is free");
    drop(journal);
    assert!(matches!(Journal::create(&dir.path(), OLD), Err(JournalError::Exists { .. })));
    assert_eq!(facts(&Journal::open(&dir.path(), OLD).unwrap().unwrap().1), [(2, "two".into())]);
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1);
}

#[test]
fn a_file_that_lost_its_name_is_not_written() {
    let dir = Dir::new();
    drop(Journal::create(&dir.path(), OLD).unwrap());
    // What an opener sees when a compaction renames between its open and its lock.
    let old = std::fs::File::open(dir.path()).unwrap();
    std::fs::rename(dir.path(), dir.0.join("gone")).unwrap();
    std::fs::hard_link(dir.0.join("gone"), dir.path()).unwrap();
    old.lock().unwrap();
    assert!(matches!(Journal::open(&dir.path(), OLD), Err(JournalError::InUse { .. })));
}

#[test]
fn bounds_are_kept_and_nothing_changes() {
    let dir = Dir::new();
    let small = Options { bytes_max: 4 * BLOCK as u64 + 17, ..OLD };
    let mut journal = Journal::create(&dir.path(), small).unwrap();
    let huge = fact("x".repeat((1 << 20) + 1));
    assert!(matches!(journal.append(&[huge]), Err(JournalError::TooLong { .. })));
    journal.append(&[fact("one")]).unwrap();
    let two = fact("x".repeat(5000));
    let refusal = journal.append(std::slice::from_ref(&two)).unwrap_err();
    assert!(matches!(refusal, JournalError::Full { needed, max, .. } if (needed, max) == (20480, 16384)));
    assert!(matches!(journal.compact(|_| true, &[two]), Err(JournalError::Full { .. })));
    journal.append(&[fact("two")]).unwrap();
    assert!(matches!(journal.append(&[fact("three")]), Err(JournalError::Full { .. })));
    assert_eq!(journal.compact(|e| e.sequence == 2, &[fact("three")]).unwrap(), 3..4, "room again");
    drop(journal);
    let (_, content) = Journal::open(&dir.path(), small).unwrap().unwrap();
    assert_eq!(facts(&content), [(2, "two".into()), (3, "three".into())]);
    std::fs::File::options().write(true).open(dir.path()).unwrap().set_len((64 << 20) + 1).unwrap();
    assert!(matches!(Journal::open(&dir.path(), small), Err(JournalError::Size { .. })));
}

/// Three batches of one block each: blocks 2, 3 and 4.
fn three() -> (CrashFolder, Vec<u8>) {
    let folder = CrashFolder::new(512);
    let mut journal = create(&folder);
    for text in ["one", "two", "three"] {
        journal.append(&[fact(text)]).unwrap();
    }
    let bytes = folder.bytes(name()).unwrap();
    (folder, bytes)
}

fn with(bytes: Vec<u8>) -> CrashFolder {
    let folder = CrashFolder::new(512);
    folder.set_bytes(name(), bytes);
    folder
}

#[test]
fn each_kind_of_damage_has_its_name() {
    let table = [
        (0, EntryFault::Mark),
        (4, EntryFault::Checksum),
        (8, EntryFault::Checksum),
        (16, EntryFault::Checksum),
        (24, EntryFault::Checksum),
        (31, EntryFault::Checksum),
        (32, EntryFault::Checksum),
        (42, EntryFault::Checksum),
    ];
    for (at, fault) in table {
        for bit in [1, 0x80] {
            // The last entry: reported, at each open until something is appended.
            let (_, mut bytes) = three();
            bytes[4 * BLOCK + at] ^= bit;
            let folder = with(bytes);
            for _ in 0..2 {
                let (_, content) = open(&folder).unwrap().unwrap();
                let tail = Tail::Damaged { offset: 4 * BLOCK as u64, len: BLOCK as u64, sequence: 3, fault };
                assert_eq!((content.tail, content.abstains(99)), (tail, true), "byte {at}");
                assert_eq!(facts(&content), [(1, "one".into()), (2, "two".into())]);
            }
            // One in the middle: an error that names it, and nothing is changed.
            let (_, mut bytes) = three();
            bytes[3 * BLOCK + at] ^= bit;
            let folder = with(bytes.clone());
            let refusal = open(&folder).unwrap_err();
            assert!(
                matches!(refusal, JournalError::Damaged { offset: 12288, sequence: 2, fault: f, behind: Some(3), .. } if f == fault),
                "byte {at}: {refusal:?}"
            );
            assert_eq!(folder.bytes(name()).unwrap(), bytes);
        }
    }
}

#[test]
fn an_entry_wiped_out_in_the_middle_is_damage_and_not_the_end() {
    let (_, mut bytes) = three();
    bytes[3 * BLOCK..4 * BLOCK].fill(0);
    let refusal = open(&with(bytes.clone())).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "journal facts is damaged at byte 12288, from entry 2 on (nothing written), and entry 3 lies behind; nothing \
         was cut: restore it or ask the other nodes"
    );
    let dir = Dir::new();
    std::fs::write(dir.path(), bytes).unwrap();
    assert!(matches!(Journal::open(&dir.path(), OLD), Err(JournalError::Damaged { .. })));
    let (content, damage) = Journal::inspect(&dir.path(), OLD).unwrap().unwrap();
    assert_eq!(facts(&content), [(1, "one".into()), (3, "three".into())], "what can be read is shown");
    assert_eq!((damage.len(), damage[0].sequence, damage[0].behind), (1, 2, Some(3)));
}

#[test]
fn a_loss_is_told_for_ever_and_no_number_is_given_twice() {
    let (_, mut bytes) = three();
    bytes[4 * BLOCK + 40] ^= 1;
    let folder = with(bytes.clone());
    let (mut journal, _) = open(&folder).unwrap().unwrap();
    assert!(matches!(journal.compact(|_| true, &[]), Err(JournalError::LossUntold { .. })));
    let numbers = journal.append(&[fact("four")]).unwrap();
    assert!(numbers.start > 3, "3 was given to the entry that is lost");
    let kept = folder.bytes(name()).unwrap();
    assert_eq!(kept[..5 * BLOCK], bytes[..5 * BLOCK], "remains are not written over");
    assert_eq!(journal.append(&[fact("five")]).unwrap().start, numbers.end);
    let (mut journal, content) = open(&folder).unwrap().unwrap();
    let expected =
        [(1, "one"), (2, "two"), (numbers.start, "four"), (numbers.end, "five")].map(|(n, t)| (n, t.into()));
    assert_eq!(facts(&content), expected);
    assert_eq!((content.tail, &content.losses), (Tail::Clean, &vec![numbers.start]));
    assert!(content.abstains(0) && content.abstains(2), "until a later entry says it is made good");
    assert!(!content.abstains(numbers.start) && !content.abstains(numbers.end));
    journal.compact(|_| true, &[]).unwrap();
    assert_eq!(open(&folder).unwrap().unwrap().1.losses, [numbers.start], "a compaction keeps it");
    // A compaction can tell of the loss as well as an append.
    let folder = with(bytes);
    let (mut journal, _) = open(&folder).unwrap().unwrap();
    let numbers = journal.compact(|_| true, &[fact("four"), fact("five")]).unwrap();
    let (_, content) = open(&folder).unwrap().unwrap();
    assert_eq!((content.tail, content.losses), (Tail::Clean, vec![numbers.start]));
    assert_eq!(content.entries.len(), 4);
}

#[test]
fn blocks_of_another_journal_are_no_entries() {
    let (_, old) = three();
    let folder = CrashFolder::new(512);
    create(&folder).append(&[fact("new")]).unwrap();
    create_another_identity_differs(&old, &folder);
    let mut bytes = folder.bytes(name()).unwrap();
    // The file system hands out a block that once held entry 2 of the other journal, at the same place.
    bytes[3 * BLOCK..4 * BLOCK].copy_from_slice(&old[3 * BLOCK..4 * BLOCK]);
    bytes[8] = 77;
    let other = store_header(&bytes);
    let (_, content) = open(&with(other)).unwrap().unwrap();
    assert_eq!(facts(&content), [], "with another identity not even its own entries count");
    let (_, mut bytes) = three();
    // An entry of this journal at a place that is not its own.
    let two = bytes[3 * BLOCK..4 * BLOCK].to_vec();
    bytes[5 * BLOCK..6 * BLOCK].copy_from_slice(&two);
    let (_, content) = open(&with(bytes)).unwrap().unwrap();
    assert_eq!(content.entries.len(), 3);
    assert!(matches!(content.tail, Tail::Damaged { fault: EntryFault::Checksum, .. }));
}

/// Both test folders draw the same first identity; a real one is random.
fn create_another_identity_differs(old: &[u8], folder: &CrashFolder) {
    assert_eq!(old[8..24], folder.bytes(name()).unwrap()[8..24]);
    let (one, two) = (Dir::new(), Dir::new());
    let identity = |dir: &Dir| {
        drop(Journal::create(&dir.path(), OLD).unwrap());
        std::fs::read(dir.path()).unwrap()[8..24].to_vec()
    };
    assert_ne!(identity(&one), identity(&two));
}

/// Makes the header's checksum, in both copies, fit what its first copy says.
fn store_header(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let crc = crc32fast::hash(&bytes[..36]);
    bytes[36..40].copy_from_slice(&crc.to_le_bytes());
    bytes.copy_within(..BLOCK, BLOCK);
    bytes
}

#[test]
fn one_header_is_enough_and_none_is_said() {
    let (_, bytes) = three();
    for copy in [0, 1] {
        let mut one = bytes.clone();
        one[copy * BLOCK + 9] ^= 1;
        assert_eq!(found(&with(one)).len(), 3);
    }
    let mut none = bytes.clone();
    none[9] ^= 1;
    none[BLOCK] ^= 1;
    assert!(matches!(open(&with(none)), Err(JournalError::Header { .. })));
    for len in [0, 1, 39, BLOCK - 1, BLOCK, 2 * BLOCK - 1] {
        assert!(
            matches!(open(&with(bytes[..len].to_vec())), Err(JournalError::Header { .. })),
            "{len} bytes"
        );
    }
    let mut later = bytes;
    later[4] = 2;
    let refusal = open(&with(store_header(&later))).unwrap_err();
    assert!(matches!(refusal, JournalError::Format { found: 2, known: 1, .. }));
}

#[test]
fn what_a_later_release_wrote_is_skipped_or_binding() {
    let folder = CrashFolder::new(512);
    let new = |folder: &CrashFolder| {
        Journal::open_in(folder.clone(), name(), Path::new("facts"), NEW).unwrap().unwrap()
    };
    create(&folder);
    let note = store::journal::Draft::skippable(&Vote { ballot: 8 });
    new(&folder).0.append(&[fact("one"), vote(7), note, fact("four")]).unwrap();
    let (mut journal, content) = open(&folder).unwrap().unwrap();
    assert_eq!(facts(&content), [(1, "one".into()), (4, "four".into())]);
    assert_eq!(content.unknown, [Unknown { sequence: 2, kind: 0xfff3, version: 1 }]);
    assert_eq!((content.skipped, content.abstains(99)), (1, true), "it abstains, whatever it has settled");
    // The older release compacts: it cannot drop what it does not know.
    journal.compact(|_| false, &[fact("five")]).unwrap();
    let (_, content) = open(&folder).unwrap().unwrap();
    assert_eq!((content.unknown.len(), content.skipped), (1, 0));
    let (_, content) = new(&folder);
    assert!(!content.abstains(0));
    let kept = &content.entries[0];
    assert_eq!((kept.sequence, kept.binding, kept.kind), (2, true, (0xfff3, 1)));
    assert_eq!(kept.decode::<Vote>().unwrap(), Vote { ballot: 7 });
    assert_eq!(kept.envelope(), proto::envelope::encode(&Vote { ballot: 7 }), "byte for byte");
    assert!(kept.decode::<Fact>().is_err());
    // Another version of a known kind is as unknown as another kind.
    let blind = Options { known: &[(0xfff2, 2)], ..OLD };
    let (_, content) = Journal::open_in(folder, name(), Path::new("facts"), blind).unwrap().unwrap();
    assert_eq!((content.entries.len(), content.unknown.len(), content.skipped), (0, 1, 1));
}

#[test]
fn an_entry_with_a_flag_of_a_later_release_is_unknown() {
    let (_, mut bytes) = three();
    let entry = &mut bytes[3 * BLOCK..];
    entry[17] |= 0x80;
    let head = [&[1; 16][..], &(3 * BLOCK as u64).to_le_bytes(), &entry[..28]].concat();
    let crc = crc32fast::hash(&head);
    entry[28..32].copy_from_slice(&crc.to_le_bytes());
    let (_, content) = open(&with(bytes)).unwrap().unwrap();
    assert_eq!((facts(&content).len(), content.skipped), (2, 1));
}

#[test]
fn numbers_go_on_after_everything_was_compacted_away() {
    let folder = CrashFolder::new(512);
    let mut journal = create(&folder);
    journal.append(&[fact("one"), fact("two")]).unwrap();
    journal.compact(|_| false, &[]).unwrap();
    assert_eq!(journal.append(&[fact("three")]).unwrap(), 3..4);
    let (mut journal, content) = open(&folder).unwrap().unwrap();
    assert_eq!(facts(&content), [(3, "three".into())]);
    journal.compact(|_| false, &[]).unwrap();
    let (journal, _) = open(&folder).unwrap().unwrap();
    assert_eq!(journal.next_sequence(), 4);
}

#[test]
fn damage_in_the_sealed_part_is_never_taken_for_a_cut() {
    let folder = CrashFolder::new(512);
    let mut journal: CrashJournal = create(&folder);
    journal.append(&[fact("one"), fact("x".repeat(4050)), fact("three")]).unwrap();
    journal.compact(|_| true, &[]).unwrap();
    let bytes = folder.bytes(name()).unwrap();
    let mut last = bytes.clone();
    last[4 * BLOCK + 33] ^= 1;
    let refusal = open(&with(last)).unwrap_err();
    assert!(matches!(refusal, JournalError::Damaged { sequence: 3, behind: None, .. }), "{refusal:?}");
    // Also when the file was cut short there.
    let refusal = open(&with(bytes[..4 * BLOCK].to_vec())).unwrap_err();
    assert!(matches!(refusal, JournalError::Damaged { sequence: 3, behind: None, .. }), "{refusal:?}");
    // A block that is lost takes no other with it.
    let mut first = bytes;
    first[2 * BLOCK] ^= 1;
    let dir = Dir::new();
    std::fs::write(dir.path(), first).unwrap();
    let (content, damage) = Journal::inspect(&dir.path(), OLD).unwrap().unwrap();
    let numbers: Vec<u64> = content.entries.iter().map(|e| e.sequence).collect();
    assert_eq!((numbers, damage.len()), (vec![2, 3], 1));
}

#[test]
fn leftovers_are_removed_and_a_file_of_odd_length_is_read() {
    let dir = Dir::new();
    Journal::create(&dir.path(), OLD).unwrap().append(&[fact("one")]).unwrap();
    std::fs::write(dir.0.join("facts.new"), [0xaa; 9000]).unwrap();
    let len = std::fs::metadata(dir.path()).unwrap().len();
    std::fs::File::options().write(true).open(dir.path()).unwrap().set_len(len + 100).unwrap();
    let (mut journal, content) = Journal::open(&dir.path(), OLD).unwrap().unwrap();
    assert_eq!((facts(&content).len(), content.tail), (1, Tail::Clean));
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1);
    for n in 0..20 {
        journal.append(&[fact(n.to_string())]).unwrap();
    }
    drop(journal);
    assert_eq!(Journal::open(&dir.path(), OLD).unwrap().unwrap().1.entries.len(), 21);
}
