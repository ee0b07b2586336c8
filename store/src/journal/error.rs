//! Why a journal cannot be read or written.

use proto::envelope::EnvelopeError;
use std::io;
use std::path::PathBuf;

/// Why a journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk or the file system refused. After a failed append its entries are there at the next open or not; after
    /// a failed compaction the journal is as it was or the new one.
    #[error("journal {journal}: cannot {what}")]
    Io { journal: PathBuf, what: &'static str, source: io::Error },
    /// The disk has no room for more. Nothing was changed, and the journal can be used on.
    #[error("journal {journal}: no room on the disk to {what}; free some and try again")]
    NoSpace { journal: PathBuf, what: &'static str, source: io::Error },
    /// Another process has it open. Nothing was changed.
    #[error("journal {journal} is in use by another process; one writer at a time")]
    InUse { journal: PathBuf },
    /// There is one already. Nothing was changed.
    #[error("journal {journal} exists already")]
    Exists { journal: PathBuf },
    /// Longer than any journal. Nothing was changed.
    #[error("journal {journal} has {len} bytes, at most {max} are read: restore or remove it")]
    Size { journal: PathBuf, len: u64, max: u64 },
    /// Neither copy of the header is intact, so that no entry can be told from a foreign one. Nothing was changed.
    #[error("journal {journal} is damaged in both copies of its header: restore or remove it")]
    Header { journal: PathBuf },
    /// Laid out by a later release. Nothing was changed.
    #[error(
        "journal {journal} has format {found}, this release reads {known}; start the release that wrote it"
    )]
    Format { journal: PathBuf, found: u32, known: u32 },
    /// Acknowledged entries are lost and intact ones lie behind them, or they lie in the part that was synced before
    /// the file had its name: no power cut does that. Nothing was changed, and nothing is cut.
    #[error(
        "journal {journal} is damaged at byte {offset}, from entry {sequence} on ({fault}), and {}; nothing was cut: \
         restore it or ask the other nodes",
        .behind.map_or("more had been written there".to_owned(), |n| format!("entry {n} lies behind"))
    )]
    Damaged { journal: PathBuf, offset: u64, sequence: u64, fault: EntryFault, behind: Option<u64> },
    /// The entries do not fit any more. Nothing was changed.
    #[error("journal {journal} has room for {max} bytes, {needed} are needed: compact it")]
    Full { journal: PathBuf, needed: u64, max: u64 },
    /// The message is longer than an entry may be. Nothing was changed.
    #[error("journal {journal} takes entries of up to {max} bytes, this one has {len}")]
    TooLong { journal: PathBuf, len: usize, max: usize },
    /// The journal ends in remains, and a compaction that adds nothing would make them be forgotten. Nothing was
    /// changed.
    #[error("journal {journal} ends in a damaged entry; a compaction has to add the entry that tells of it")]
    LossUntold { journal: PathBuf },
    /// An earlier write failed: what is on the disk is not known. Nothing was changed by this one.
    #[error("journal {journal} is not written any more since a write to it failed; restart to read it anew")]
    Poisoned { journal: PathBuf },
}

/// What is wrong where an entry is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// Nothing was ever written there.
    #[error("nothing written")]
    Empty,
    /// It does not begin with the mark of an entry.
    #[error("no entry's mark")]
    Mark,
    /// Its bytes are not the ones that were written here, in this journal.
    #[error("checksum does not match")]
    Checksum,
    /// It announces more bytes than an entry may have or the file holds.
    #[error("length out of bounds")]
    Length,
    /// Its number does not follow the one before, or it does not belong where it stands in its batch.
    #[error("out of order")]
    Order,
    /// The disk cannot read it.
    #[error("unreadable")]
    Unreadable,
}

/// Why an entry is not the message the caller takes it for.
#[derive(Debug, thiserror::Error)]
#[error("entry {sequence} does not decode")]
pub struct EntryError {
    /// The entry's number.
    pub sequence: u64,
    pub source: EnvelopeError,
}
