//! The bytes of a journal: header, entries, batches. `docs/formats/journal.md` draws them.
//!
//! ```text
//! file   | header | header | batch  | batch          | batch  | zeros set aside ...   |
//! block  0        1        2        3                5        6
//!
//! batch  | entry head, envelope | entry head, envelope | zeros to the end of the block |
//!          FIRST                                 LAST
//! ```
//! Everything begins on a block, so that no block that holds an acknowledged entry is ever written again: a torn or
//! failing write can spoil what is being written, never what was told.

use super::error::EntryFault;
use crate::folder::IDENTITY_LEN;
use crate::medium::Medium;
use proto::envelope::{self, HEADER_LEN};

/// Batches begin on multiples of this: the unit in which disks and the kernel's cache write.
pub(super) const BLOCK: usize = 4096;
/// Blocks in front of the first batch: the header, twice.
pub(super) const HEADER_BLOCKS: u64 = 2;
/// The layout drawn here.
pub(super) const FORMAT: u32 = 1;
/// Bytes in front of an entry's envelope.
pub(super) const ENTRY_HEAD_LEN: usize = 32;
/// Longest envelope of an entry. It bounds what a reader allocates at once.
pub(super) const ENVELOPE_MAX: usize = 1 << 20;
/// Longest journal there can be. It bounds what a reader holds.
pub(super) const FILE_MAX: u64 = 64 << 20;
/// The last number an entry may have: none gets there by counting.
const SEQUENCE_MAX: u64 = u64::MAX / 2;

const HEADER_MARK: [u8; 4] = *b"EKJ\n";
const HEADER_BYTES: usize = 40;
const ENTRY_MARK: [u8; 4] = *b"EKE1";

/// A reader that does not know the entry may not go by the others.
pub(super) const BINDING: u16 = 1;
/// Opens a batch; it lies at the start of a block.
pub(super) const FIRST: u16 = 2;
/// Closes a batch.
pub(super) const LAST: u16 = 4;
/// Remains lie in front of its batch: what was lost is not known.
pub(super) const AFTER_LOSS: u16 = 8;
/// What this release knows. An entry with another flag is one of an unknown kind.
const FLAGS_KNOWN: u16 = BINDING | FIRST | LAST | AFTER_LOSS;

pub(super) fn offset_of(block: u64) -> u64 {
    block * BLOCK as u64
}

/// What the file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Random, mixed into every checksum: an entry of another file that turns up in this one does not count.
    pub(super) identity: [u8; IDENTITY_LEN],
    /// The number that was free when the file was made.
    pub(super) next: u64,
    /// The block behind what was synced before the file had its name: nothing in front of it can be torn.
    pub(super) sealed_end: u64,
}

impl Header {
    pub(super) fn block(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK);
        bytes.extend_from_slice(&HEADER_MARK);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&self.identity);
        bytes.extend_from_slice(&self.next.to_le_bytes());
        bytes.extend_from_slice(&(self.sealed_end as u32).to_le_bytes());
        bytes.extend_from_slice(&crc(&[&bytes]).to_le_bytes());
        bytes.resize(BLOCK, 0);
        bytes
    }

    /// The header in `bytes`: `None` when they hold none, the format when it is not this release's.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Result<Header, u32>> {
        let (text, checksum) = bytes.split_last_chunk::<4>()?;
        if text[..4] != HEADER_MARK || crc(&[text]) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let format = u32_at(text, 4);
        if format != FORMAT {
            return Some(Err(format));
        }
        let mut identity = [0; IDENTITY_LEN];
        identity.copy_from_slice(&text[8..24]);
        let (next, sealed_end) = (u64_at(text, 24), u64::from(u32_at(text, 32)));
        let sane = sealed_end >= HEADER_BLOCKS && offset_of(sealed_end) <= FILE_MAX && next <= SEQUENCE_MAX;
        sane.then_some(Ok(Header { identity, next, sealed_end }))
    }

    /// Reads the first intact copy.
    pub(super) fn read<M: Medium>(medium: &M) -> Option<Result<Header, u32>> {
        (0..HEADER_BLOCKS).find_map(|block| {
            let mut bytes = [0; HEADER_BYTES];
            medium.read_at(offset_of(block), &mut bytes).ok()?;
            Header::parse(&bytes)
        })
    }
}

/// One entry as it lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) sequence: u64,
    pub(super) flags: u16,
    /// Blocks of remains in front of its batch.
    pub(super) lost: u32,
    pub(super) envelope: Vec<u8>,
}

impl Raw {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether it has flags of a later release.
    pub(super) fn has_foreign_flags(&self) -> bool {
        self.flags & !FLAGS_KNOWN != 0
    }

    pub(super) fn len(&self) -> usize {
        ENTRY_HEAD_LEN + self.envelope.len()
    }

    /// Appends the bytes it has at `offset` of the file with `identity`.
    fn write(&self, identity: &[u8; IDENTITY_LEN], offset: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&ENTRY_MARK);
        out.extend_from_slice(&(self.envelope.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.lost.to_le_bytes());
        out.extend_from_slice(&crc(&[&self.envelope]).to_le_bytes());
        let head = crc(&[identity, &offset.to_le_bytes(), &out[start..]]);
        out.extend_from_slice(&head.to_le_bytes());
        out.extend_from_slice(&self.envelope);
    }

    /// Reads the entry at `offset`, which ends before `end`.
    pub(super) fn read<M: Medium>(
        medium: &M,
        identity: &[u8; IDENTITY_LEN],
        offset: u64,
        end: u64,
    ) -> Result<Raw, EntryFault> {
        if offset + ENTRY_HEAD_LEN as u64 > end {
            return Err(EntryFault::Length);
        }
        let mut head = [0; ENTRY_HEAD_LEN];
        medium.read_at(offset, &mut head).map_err(|_| EntryFault::Unreadable)?;
        if head == [0; ENTRY_HEAD_LEN] {
            return Err(EntryFault::Empty);
        }
        if head[..4] != ENTRY_MARK {
            return Err(EntryFault::Mark);
        }
        if crc(&[identity, &offset.to_le_bytes(), &head[..28]]) != u32_at(&head, 28) {
            return Err(EntryFault::Checksum);
        }
        let len = u32_at(&head, 4) as usize;
        if !(HEADER_LEN..=ENVELOPE_MAX).contains(&len) || offset + ENTRY_HEAD_LEN as u64 + len as u64 > end {
            return Err(EntryFault::Length);
        }
        let sequence = u64_at(&head, 8);
        if sequence > SEQUENCE_MAX {
            return Err(EntryFault::Order);
        }
        let mut envelope = vec![0; len];
        medium.read_at(offset + ENTRY_HEAD_LEN as u64, &mut envelope).map_err(|_| EntryFault::Unreadable)?;
        if crc(&[&envelope]) != u32_at(&head, 24) {
            return Err(EntryFault::Checksum);
        }
        if envelope::header(&envelope).map_err(|_| EntryFault::Length)?.len + HEADER_LEN != len {
            return Err(EntryFault::Length);
        }
        let flags = u16::from_le_bytes([head[16], head[17]]);
        Ok(Raw { sequence, flags, lost: u32_at(&head, 20), envelope })
    }
}

/// The bytes of a batch at `block`, padded to whole blocks. Marks its first and last entry.
pub(super) fn batch(entries: &mut [Raw], identity: &[u8; IDENTITY_LEN], block: u64) -> Vec<u8> {
    for entry in entries.iter_mut() {
        entry.flags &= !(FIRST | LAST);
    }
    if let Some(first) = entries.first_mut() {
        first.flags |= FIRST;
    }
    if let Some(last) = entries.last_mut() {
        last.flags |= LAST;
    }
    let mut bytes = Vec::with_capacity(batch_len(entries));
    for entry in entries.iter() {
        let offset = offset_of(block) + bytes.len() as u64;
        entry.write(identity, offset, &mut bytes);
    }
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// Bytes of a batch of `entries`.
pub(super) fn batch_len(entries: &[Raw]) -> usize {
    entries.iter().map(Raw::len).sum::<usize>().next_multiple_of(BLOCK)
}

/// Reads the batch at `block`, all of it or nothing, and tells the block behind it.
pub(super) fn read_batch<M: Medium>(
    medium: &M,
    identity: &[u8; IDENTITY_LEN],
    block: u64,
    blocks: u64,
) -> Result<(Vec<Raw>, u64), EntryFault> {
    let end = offset_of(blocks);
    let mut offset = offset_of(block);
    let mut entries: Vec<Raw> = Vec::new();
    loop {
        let entry = Raw::read(medium, identity, offset, end)?;
        if entry.has(FIRST) != entries.is_empty()
            || entries.last().is_some_and(|before| before.sequence >= entry.sequence)
        {
            return Err(EntryFault::Order);
        }
        offset += entry.len() as u64;
        let last = entry.has(LAST);
        entries.push(entry);
        if last {
            return Ok((entries, offset.div_ceil(BLOCK as u64)));
        }
    }
}

fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in parts {
        crc.update(part);
    }
    crc.finalize()
}

/// The number at `at` of `bytes`, which the caller knows to be long enough.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
