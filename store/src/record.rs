//! One message in two slots, replaced by overwriting the older slot.
//!
//! ```text
//!          slot 0            slot 1
//! file  | sequence 7      | sequence 8      |      8 is the record; the next put writes 9 over 7
//!
//! put:  Current(n) --write other slot, sequence n+1--> Unsure --fdatasync--> Current(n+1)
//!                                                        |
//!                                                        +-- error or power cut: n or n+1, after the next open
//!
//! open: file --fdatasync--> both slots read --> Current
//! ```
//! The slot that holds the record is never touched by a put, so that a put that is cut anywhere leaves it whole. A put
//! that fails poisons the `Record`: after a failed `fdatasync` the kernel may forget what it could not write, and a
//! second try that succeeds would prove nothing. Opening syncs before it reads: a process that was killed between write
//! and sync has left a message that is to be seen but not yet on the disk, and nobody may build on that.
//!
//! It does not keep a history, and it does not know what the message means.

use crate::medium::{FileMedium, Medium};
use proto::envelope::{self, EnvelopeError, HEADER_LEN, Message};
use std::io;
use std::path::{Path, PathBuf};

/// What a written slot begins with: "Evenkeel record, layout 1".
const MAGIC: [u8; 4] = *b"EKR1";
/// Bytes in front of a slot's payload: magic, length, sequence, checksum.
const SLOT_HEADER_LEN: usize = 20;
/// Slots begin on multiples of this, so that no sector or page of a disk holds bytes of both.
const ALIGN: usize = 4096;
/// Slots of a record.
const SLOTS: usize = 2;
/// Bytes of a payload that are looked at even when this release's message is shorter: they may be of a later release.
const LENGTH_MAX: usize = 4 << 20;

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the file system refused. After a failed put the old or the new message is there at the next open.
    #[error("record {record}: cannot {what}")]
    Io { record: PathBuf, what: &'static str, source: io::Error },
    /// Another process has it open. Nothing was changed.
    #[error("record {record} is in use by another process; one writer at a time")]
    InUse { record: PathBuf },
    /// There is one already. Nothing was changed.
    #[error("record {record} exists already")]
    Exists { record: PathBuf },
    /// The file has not the size of a record. Nothing was changed.
    #[error(
        "record {record} has {len} bytes, expected twice a multiple of {ALIGN}; it is damaged: restore or remove it"
    )]
    Size { record: PathBuf, len: u64 },
    /// Neither slot holds an intact message. Nothing was changed.
    #[error("record {record} is damaged in both slots ({first}; {second}): restore or remove it")]
    Damaged { record: PathBuf, first: SlotFault, second: SlotFault },
    /// The newest intact slot holds a message this release cannot read. Nothing was changed.
    #[error("record {record} holds a message this release cannot read; start the release that wrote it")]
    Message { record: PathBuf, source: EnvelopeError },
    /// The message does not fit a slot of this file, which was made for shorter ones. Nothing was changed.
    #[error("record {record} has room for {room} bytes, the message has {len}")]
    NoRoom { record: PathBuf, len: usize, room: usize },
    /// An earlier put failed: what is on the disk is not known. Nothing was changed by this one.
    #[error("record {record} is not written any more since a write to it failed; restart to read it anew")]
    Poisoned { record: PathBuf },
}

/// What is wrong with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotFault {
    /// Nothing was ever written there.
    #[error("never written")]
    Empty,
    /// It does not begin with the mark of a record.
    #[error("no record's mark")]
    Magic,
    /// It announces more bytes than a slot or the message may have.
    #[error("length out of bounds")]
    Length,
    /// Its bytes are not the ones that were written.
    #[error("checksum does not match")]
    Checksum,
    /// It has the last sequence there is: no put could follow it, and none ever got there.
    #[error("sequence out of bounds")]
    Sequence,
    /// The disk cannot read it.
    #[error("unreadable")]
    Unreadable,
}

/// A message of type `T` on a medium `M`.
///
/// ```
/// use proto::record::NodeRecord;
/// use store::Record;
/// # let dir = std::env::temp_dir().join(format!("evenkeel-record-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("node");
/// let mut record = match Record::<NodeRecord>::open(&path)? {
///     Some(record) => record,
///     None => Record::create(&path, NodeRecord::default())?,
/// };
/// let mut node = record.get().clone();
/// node.boot("a boot id");
/// record.put(node)?; // On the disk when this returns.
/// drop(record);
/// assert_eq!(Record::<NodeRecord>::open(&path)?.unwrap().get().boot_count, 1);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Record<T: Message, M: Medium = FileMedium> {
    medium: M,
    /// Where it is, for messages only.
    name: PathBuf,
    slot_len: usize,
    value: T,
    sequence: u64,
    /// The slot that holds `value`.
    slot: usize,
    fault: Option<SlotFault>,
    poisoned: bool,
}

impl<T: Message> Record<T, FileMedium> {
    /// Opens the record at `path` and keeps others from writing it; `None` when there is no such file.
    ///
    /// What it returns is durable. A damaged slot beside an intact one is no error: see [`Record::fault`].
    pub fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        match FileMedium::open(path) {
            Ok(Some(medium)) => Record::load(medium, path).map(Some),
            Ok(None) => Ok(None),
            Err(source) => Err(file_error(path, "open it", source)),
        }
    }

    /// Makes the record at `path` with `value`, durable when this returns. Its directory must exist.
    pub fn create(path: &Path, value: T) -> Result<Self, StoreError> {
        let image = Record::<T, FileMedium>::image(&value);
        match FileMedium::create(path, &image) {
            Ok(medium) => Ok(Record::fresh(medium, path, image.len(), value)),
            Err(source) => Err(file_error(path, "create it", source)),
        }
    }
}

fn file_error(path: &Path, what: &'static str, source: io::Error) -> StoreError {
    let record = path.to_owned();
    match source.kind() {
        io::ErrorKind::WouldBlock => StoreError::InUse { record },
        io::ErrorKind::AlreadyExists => StoreError::Exists { record },
        _ => StoreError::Io { record, what, source },
    }
}

impl<T: Message, M: Medium> Record<T, M> {
    /// A whole medium with `value` in its first slot, long enough for the longest message of its type.
    pub fn image(value: &T) -> Vec<u8> {
        let slot_len = (SLOT_HEADER_LEN + HEADER_LEN + T::MAX_LEN).next_multiple_of(ALIGN);
        let mut image = sealed(&envelope::encode(value), 1);
        image.resize(SLOTS * slot_len, 0);
        image
    }

    fn fresh(medium: M, name: &Path, len: usize, value: T) -> Self {
        let name = name.to_owned();
        Record {
            medium,
            name,
            slot_len: len / SLOTS,
            value,
            sequence: 1,
            slot: 0,
            fault: None,
            poisoned: false,
        }
    }

    /// Reads the record on `medium`, which is synced first; `name` is what errors call it. Nothing else is written.
    pub fn load(mut medium: M, name: &Path) -> Result<Self, StoreError> {
        let record = || name.to_owned();
        let io = |what| move |source| StoreError::Io { record: record(), what, source };
        medium.sync().map_err(io("sync it before reading"))?;
        let len = medium.len().map_err(io("read its size"))?;
        let slot_len = usize::try_from(len).unwrap_or(usize::MAX) / SLOTS;
        if len == 0 || !len.is_multiple_of((SLOTS * ALIGN) as u64) {
            return Err(StoreError::Size { record: record(), len });
        }
        let read = |slot| read_slot::<T, M>(&medium, slot, slot_len);
        let (slot, sequence, payload, fault) = match (read(0), read(1)) {
            (Ok((old, _)), Ok((new, payload))) if new > old => (1, new, payload, None),
            (Ok((new, payload)), Ok(_)) => (0, new, payload, None),
            (Ok((sequence, payload)), Err(fault)) => (0, sequence, payload, Some(fault)),
            (Err(fault), Ok((sequence, payload))) => (1, sequence, payload, Some(fault)),
            (Err(first), Err(second)) => return Err(StoreError::Damaged { record: record(), first, second }),
        };
        // An intact message that cannot be read is no damage: the older slot would be a step back in time.
        let value =
            envelope::decode(&payload).map_err(|source| StoreError::Message { record: record(), source })?;
        let fault = fault.filter(|f| *f != SlotFault::Empty);
        Ok(Record { medium, name: record(), slot_len, value, sequence, slot, fault, poisoned: false })
    }

    /// The message.
    pub fn get(&self) -> &T {
        &self.value
    }

    /// Replaces the message; it is durable when this returns. After an error see [`StoreError`].
    pub fn put(&mut self, value: T) -> Result<(), StoreError> {
        let record = || self.name.clone();
        if self.poisoned {
            return Err(StoreError::Poisoned { record: record() });
        }
        let payload = envelope::encode(&value);
        let room = self.slot_len - SLOT_HEADER_LEN;
        if payload.len() > room {
            return Err(StoreError::NoRoom { record: record(), len: payload.len(), room });
        }
        let (slot, sequence) = (1 - self.slot, self.sequence + 1);
        let io = |what| move |source| StoreError::Io { record: record(), what, source };
        let written = self
            .medium
            .write_at((slot * self.slot_len) as u64, &sealed(&payload, sequence))
            .map_err(io("write it"))
            .and_then(|()| self.medium.sync().map_err(io("sync it")));
        if let Err(e) = written {
            self.poisoned = true;
            return Err(e);
        }
        (self.value, self.slot, self.sequence, self.fault) = (value, slot, sequence, None);
        Ok(())
    }

    /// How often it was written, its making included.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What was wrong with the other slot when the record was opened, until a put mends it. The message may then be the
    /// one before the last that was put: a put that was cut looks the same as damage to what it had written.
    pub fn fault(&self) -> Option<SlotFault> {
        self.fault
    }

    /// Gives the medium back.
    pub fn into_medium(self) -> M {
        self.medium
    }
}

/// A slot's bytes, without the padding behind them.
fn sealed(payload: &[u8], sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SLOT_HEADER_LEN + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&checksum(&bytes, payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(payload);
    crc.finalize()
}

/// Sequence and payload of a slot whose checksum holds.
fn read_slot<T: Message, M: Medium>(
    medium: &M,
    slot: usize,
    slot_len: usize,
) -> Result<(u64, Vec<u8>), SlotFault> {
    let offset = slot as u64 * slot_len as u64;
    let mut head = [0; SLOT_HEADER_LEN];
    medium.read_at(offset, &mut head).map_err(|_| SlotFault::Unreadable)?;
    if head == [0; SLOT_HEADER_LEN] {
        return Err(SlotFault::Empty);
    }
    let [m0, m1, m2, m3, l0, l1, l2, l3, sequence @ .., c0, c1, c2, c3] = head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(SlotFault::Magic);
    }
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    // A later release may allow longer messages: bounded by the slot, not by this release's idea of the message.
    if len > slot_len - SLOT_HEADER_LEN || len > LENGTH_MAX.max(HEADER_LEN + T::MAX_LEN) {
        return Err(SlotFault::Length);
    }
    let mut payload = vec![0; len];
    medium.read_at(offset + SLOT_HEADER_LEN as u64, &mut payload).map_err(|_| SlotFault::Unreadable)?;
    if checksum(&head[..SLOT_HEADER_LEN - 4], &payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(SlotFault::Checksum);
    }
    match u64::from_le_bytes(sequence) {
        u64::MAX => Err(SlotFault::Sequence),
        sequence => Ok((sequence, payload)),
    }
}
