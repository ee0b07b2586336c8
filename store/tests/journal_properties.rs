//! Random histories with power cuts in them, and bytes nobody wrote.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use common::{BLOCK, create, fact, facts, name, open};
use proptest::prelude::*;
use store::crash::CrashFolder;
use store::journal::{Content, Draft, EntryFault, JournalError, Tail};

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u16>),
    Compact { keep: u8, more: Vec<u16> },
    Reopen,
}

/// A step, and the power cut that comes within it: after how many steps of the disk, and what survives.
type Cut = Option<(u8, u64)>;

fn step() -> impl Strategy<Value = (Step, Cut)> {
    let sizes = || prop::collection::vec(prop_oneof![0..64u16, 3900..4200u16, 0..9000u16], 0..4);
    let step = prop_oneof![
        4 => sizes().prop_map(Step::Append),
        2 => (any::<u8>(), sizes()).prop_map(|(keep, more)| Step::Compact { keep, more }),
        1 => Just(Step::Reopen),
    ];
    (step, prop::option::of((0..60u8, any::<u64>())))
}

fn drafts(sizes: &[u16]) -> Vec<Draft> {
    sizes.iter().map(|size| fact("x".repeat(usize::from(*size)))).collect()
}

fn kept(keep: u8, sequence: u64) -> bool {
    keep >> (sequence % 8) & 1 == 1
}

/// Numbers and lengths of the entries.
fn shape(content: &Content) -> Vec<(u64, usize)> {
    facts(content).into_iter().map(|(sequence, text)| (sequence, text.len())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_is_there(steps in prop::collection::vec(step(), 1..30), wide in any::<bool>()) {
        let mut folder = CrashFolder::new(if wide { BLOCK } else { 512 });
        let mut journal = create(&folder);
        let mut model: Vec<(u64, usize)> = vec![];
        let mut given = 0;
        for (step, cut) in steps {
            if let Some((after, _)) = cut {
                folder.cut_after(usize::from(after));
            }
            let mut next = model.clone();
            let result = match &step {
                Step::Append(sizes) => {
                    let first = journal.next_sequence();
                    next.extend((first..).zip(sizes.iter().map(|s| usize::from(*s))));
                    journal.append(&drafts(sizes))
                }
                Step::Compact { keep, more } => {
                    let first = journal.next_sequence();
                    next.retain(|(sequence, _)| kept(*keep, *sequence));
                    next.extend((first..).zip(more.iter().map(|s| usize::from(*s))));
                    journal.compact(|e| kept(*keep, e.sequence), &drafts(more))
                }
                Step::Reopen => {
                    let first = journal.next_sequence();
                    Ok(first..first)
                }
            };
            let acknowledged = match result {
                Ok(numbers) => {
                    prop_assert!(numbers.start > given || numbers.is_empty(), "{numbers:?} after {given}");
                    given = given.max(numbers.end - 1);
                    true
                }
                // Refused before anything was done.
                Err(JournalError::Full { .. } | JournalError::LossUntold { .. }) => {
                    next = model.clone();
                    true
                }
                Err(_) => false,
            };
            if cut.is_none() && !matches!(step, Step::Reopen) {
                prop_assert!(acknowledged);
                model = next;
                continue;
            }
            drop(journal);
            folder = match cut {
                Some((_, seed)) => folder.survivor(seed),
                None => folder.fork(),
            };
            let (reopened, content) = open(&folder).unwrap().unwrap();
            let found = shape(&content);
            prop_assert!(found == next || !acknowledged && found == model, "{step:?}: {found:?}, not {next:?}");
            prop_assert!(content.tail == Tail::Clean || !acknowledged || reopened.usage().0 > 0);
            // A batch that nobody was told of may be there: its numbers are given.
            given = given.max(found.last().map_or(0, |last| last.0));
            (journal, model) = (reopened, found);
        }
    }
}

/// A journal with a compacted part, batches, and remains within.
fn rich() -> Vec<u8> {
    let folder = CrashFolder::new(512);
    let mut journal = create(&folder);
    journal.append(&drafts(&[10, 20])).unwrap();
    journal.compact(|_| true, &[]).unwrap();
    journal.append(&drafts(&[5000, 7])).unwrap();
    journal.append(&drafts(&[1])).unwrap();
    let mut bytes = folder.bytes(name()).unwrap();
    bytes[5 * BLOCK + 33] ^= 1;
    folder.set_bytes(name(), bytes);
    let (mut journal, content) = open(&folder).unwrap().unwrap();
    assert_ne!(content.tail, Tail::Clean);
    journal.append(&drafts(&[2, 3])).unwrap();
    folder.bytes(name()).unwrap()
}

/// Reads `bytes` as a journal and, if that is one, writes on: nothing may panic, nothing that was read may go.
fn read(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let folder = CrashFolder::new(512);
    folder.set_bytes(name(), bytes);
    let Ok(Some((mut journal, content))) = open(&folder) else { return Ok(()) };
    if let Ok(numbers) = journal.append(&drafts(&[4])) {
        let (_, again) = open(&folder).unwrap().unwrap();
        let mut expected = shape(&content);
        expected.push((numbers.start, 4));
        prop_assert_eq!(shape(&again), expected);
        prop_assert_eq!(again.tail, Tail::Clean);
    }
    Ok(())
}

/// The checksum of `bytes[..36]`, or of an entry's head, made to fit.
fn mend(bytes: &mut [u8], offset: usize) {
    let (from, len) = if offset < 2 * BLOCK { (offset, 36) } else { (offset, 28) };
    let mut all = vec![];
    if offset >= 2 * BLOCK {
        all.extend_from_slice(&bytes[8..24]);
        all.extend_from_slice(&(offset as u64).to_le_bytes());
    }
    all.extend_from_slice(&bytes[from..from + len]);
    let crc = crc32fast::hash(&all);
    bytes[from + len..from + len + 4].copy_from_slice(&crc.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        read(bytes.clone())?;
        // Behind a good header.
        let mut journal = rich();
        let at = (2 * BLOCK).min(journal.len());
        journal.truncate(at);
        journal.extend(bytes);
        read(journal)?;
    }

    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((0..8usize, prop_oneof![0..48usize, 0..BLOCK], any::<u8>(), any::<bool>()), 1..6),
        cut in prop::option::of(0..9 * BLOCK),
    ) {
        let mut bytes = rich();
        for (block, at, value, mended) in changes {
            let at = block * BLOCK + at;
            if at < bytes.len() {
                bytes[at] = value;
                if mended {
                    mend(&mut bytes, block * BLOCK);
                }
            }
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        read(bytes)?;
    }
}

#[test]
fn lengths_that_lie_are_refused_before_anything_is_allocated() {
    let folder = CrashFolder::new(512);
    create(&folder).append(&drafts(&[3])).unwrap();
    for len in [0u32, 7, 8, 5 * BLOCK as u32, 1 << 20, (1 << 20) + 1, u32::MAX] {
        let mut bytes = folder.bytes(name()).unwrap();
        bytes[2 * BLOCK + 4..2 * BLOCK + 8].copy_from_slice(&len.to_le_bytes());
        mend(&mut bytes, 2 * BLOCK);
        let folder = CrashFolder::new(512);
        folder.set_bytes(name(), bytes);
        let (_, content) = open(&folder).unwrap().unwrap();
        let expected = if len == 8 { EntryFault::Checksum } else { EntryFault::Length };
        assert!(
            matches!(content.tail, Tail::Damaged { fault, .. } if fault == expected),
            "{len}: {content:?}"
        );
    }
}
