//! Reads a journal from front to back and tells what lies where no entry can be read.
//!
//! ```text
//! a batch cannot be read at block p; behind it lies ...
//!   nothing but zeros, and p is zeros too    the end
//!   no entry                                 remains: an append that was cut, or acknowledged entries lost
//!   a batch that says "remains from p on"    a loss that is known: reading goes on there
//!   any other entry                          a hole: no power cut makes one, so nothing may be cut
//! p lies in the sealed part                  a hole, whatever lies behind
//! ```
//! It never tells a cut append from acknowledged entries that were lost at the very end: on the disk they look alike.

use super::error::EntryFault;
use super::layout::{AFTER_LOSS, BLOCK, FIRST, HEADER_BLOCKS, Header, Raw, offset_of, read_batch};
use crate::medium::Medium;

/// Acknowledged entries that are lost for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) block: u64,
    /// The number of the first one lost.
    pub(super) sequence: u64,
    pub(super) fault: EntryFault,
    /// The next entry that can be read.
    pub(super) behind: Option<u64>,
}

/// Bytes behind the last entry that are no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remains {
    pub(super) blocks: u64,
    pub(super) fault: EntryFault,
}

/// What a journal holds.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) entries: Vec<Raw>,
    pub(super) holes: Vec<Hole>,
    pub(super) remains: Option<Remains>,
    /// The block behind the last batch.
    pub(super) end: u64,
    /// The number the next entry has.
    pub(super) next: u64,
}

/// What lies behind a place that cannot be read.
enum Behind {
    Nothing,
    KnownLoss { entries: Vec<Raw>, end: u64 },
    Entry { block: u64, sequence: u64 },
}

/// Reads the `len` bytes of `medium` behind `header`.
pub(super) fn scan<M: Medium>(medium: &M, header: &Header, len: u64) -> Scan {
    let blocks = len / BLOCK as u64;
    let mut scan =
        Scan { entries: Vec::new(), holes: Vec::new(), remains: None, end: HEADER_BLOCKS, next: 1 };
    // Behind a hole, numbers are missing.
    let mut after_hole = false;
    while scan.end < blocks.max(header.sealed_end) {
        let sealed = scan.end < header.sealed_end;
        if !sealed {
            scan.next = scan.next.max(header.next);
        }
        let fault = match read_batch(medium, &header.identity, scan.end, blocks) {
            Ok((entries, end)) if follows(&entries, scan.next, sealed || after_hole) => {
                after_hole = false;
                scan.take(entries, end);
                continue;
            }
            Ok(_) => EntryFault::Order,
            Err(fault) => fault,
        };
        match behind(medium, header, scan.end, blocks, scan.next) {
            Behind::KnownLoss { entries, end } => scan.take(entries, end),
            Behind::Entry { block, sequence } => {
                let hole = Hole { block: scan.end, sequence: scan.next, fault, behind: Some(sequence) };
                scan.holes.push(hole);
                scan.end = block;
                after_hole = true;
            }
            Behind::Nothing if sealed => {
                scan.holes.push(Hole { block: scan.end, sequence: scan.next, fault, behind: None });
                break;
            }
            Behind::Nothing => {
                let used = (scan.end..blocks).rev().find(|block| !is_zero(medium, *block));
                scan.remains = used.map(|last| Remains { blocks: last + 1 - scan.end, fault });
                break;
            }
        }
    }
    scan.next = scan.next.max(header.next);
    scan
}

impl Scan {
    fn take(&mut self, entries: Vec<Raw>, end: u64) {
        self.next = entries.last().map_or(self.next, |last| last.sequence + 1);
        self.entries.extend(entries);
        self.end = end;
    }
}

/// Whether `entries` may come where `next` is expected. Where `gaps` may be, numbers only rise: a compaction keeps some.
fn follows(entries: &[Raw], next: u64, gaps: bool) -> bool {
    entries.iter().zip(next..).all(|(entry, number)| {
        if gaps { entry.sequence >= number } else { entry.sequence == number && !entry.has(AFTER_LOSS) }
    })
}

/// Looks for an entry behind `block`, where none can be read.
fn behind<M: Medium>(medium: &M, header: &Header, block: u64, blocks: u64, next: u64) -> Behind {
    for at in block + 1..blocks {
        let Ok(entry) = Raw::read(medium, &header.identity, offset_of(at), offset_of(blocks)) else {
            continue;
        };
        if !entry.has(FIRST) {
            continue;
        }
        let tells_of_this =
            entry.has(AFTER_LOSS) && u64::from(entry.lost) == at - block && block >= header.sealed_end;
        if !tells_of_this {
            return Behind::Entry { block: at, sequence: entry.sequence };
        }
        // One that is not whole was never acknowledged: it is part of the remains.
        if let Ok((entries, end)) = read_batch(medium, &header.identity, at, blocks)
            && entries[0].sequence >= next
        {
            return Behind::KnownLoss { entries, end };
        }
    }
    Behind::Nothing
}

fn is_zero<M: Medium>(medium: &M, block: u64) -> bool {
    let mut bytes = [0; BLOCK];
    medium.read_at(offset_of(block), &mut bytes).is_ok() && bytes == [0; BLOCK]
}
