//! A durable history: entries are appended, numbered and never changed.
//!
//! ```text
//! append:   Whole(n) --write behind the last batch--> Unsure --fdatasync--> Whole(n + entries)
//!                                                        |
//!                                                        +-- error: Poisoned; after the next open all of them or none
//!
//! open:     file --fdatasync--> read --+-- every entry, zeros behind       Tail::Clean
//!                                      +-- remains behind the last entry   Tail::Damaged: the caller does not vote
//!                                      +-- a hole, entries behind it       JournalError::Damaged: nothing is cut
//!
//! compact:  what is kept --> NAME.new --sync--> rename over NAME --sync directory--> the new one
//! ```
//! **Remains.** An append that a power cut interrupted and an acknowledged entry that the disk lost look alike. So remains
//! are always reported, at every open, until something is appended; that batch goes *behind* them and says so in its
//! header, in one write: the knowledge of the loss cannot be cut away. [`Content::losses`] keeps naming it.
//!
//! **Classes.** Each entry is *skippable* or *binding*, by a flag that a release can read which does not know the entry's
//! kind. An unknown skippable entry is skipped. An unknown binding one is reported, kept by compactions, and its reader
//! abstains. Binding kinds are written only after the feature level that knows them is raised.
//!
//! **Failure to persist.** A write or sync that fails poisons the journal: after a failed `fdatasync` the kernel may
//! forget what it could not write, and a second try that succeeds proves nothing. The daemon stops; what is on the disk is
//! known after the next open. A disk that is full is met before anything is written and does not poison.
//!
//! It does not know what an entry means, and holds no entry in memory. Reading keeps at most the file's bytes, 64 MiB.

mod error;
mod layout;
mod scan;

pub use error::{EntryError, EntryFault, JournalError};

use crate::folder::{Directory, Folder, Replace, place, temporary};
use crate::medium::{FileMedium, Growing, Medium};
use layout::{
    AFTER_LOSS, BINDING, BLOCK, ENTRY_HEAD_LEN, ENVELOPE_MAX, FILE_MAX, FORMAT, HEADER_BLOCKS, Header, Raw,
    batch, batch_len, offset_of,
};
use proto::envelope::{self, Message};
use scan::{Hole, Remains, Scan};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What the owner of a journal knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The kinds and versions this release reads: `(T::KIND, T::VERSION)`.
    pub known: &'static [(u16, u16)],
    /// The longest file in bytes; 64 MiB at most. An append that does not fit is refused: then it is time to compact.
    pub bytes_max: u64,
    /// Bytes set aside and zeroed at once, so that most appends change data only and no metadata of the file system.
    pub reserve: u64,
}

impl Options {
    /// A journal of at most 4 MiB (up to 1022 appends) that sets 256 KiB (64 appends) aside at a time.
    pub const fn new(known: &'static [(u16, u16)]) -> Options {
        Options { known, bytes_max: 4 << 20, reserve: 256 << 10 }
    }

    fn bound(&self) -> u64 {
        let bound = self.bytes_max.min(FILE_MAX);
        bound - bound % BLOCK as u64
    }

    fn knows(&self, raw: &Raw) -> bool {
        let header = envelope::header(&raw.envelope);
        !raw.has_foreign_flags() && header.is_ok_and(|h| self.known.contains(&(h.kind, h.version)))
    }
}

/// An entry that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    binding: bool,
    envelope: Vec<u8>,
}

impl Draft {
    /// One that a release that does not know it may skip: nothing promised depends on it.
    pub fn skippable<T: Message>(message: &T) -> Draft {
        Draft { binding: false, envelope: envelope::encode(message) }
    }

    /// One that makes a release that does not know it abstain: votes, ballots, outcomes.
    pub fn binding<T: Message>(message: &T) -> Draft {
        Draft { binding: true, envelope: envelope::encode(message) }
    }
}

/// An entry of a kind and version the caller knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number; it keeps it for ever.
    pub sequence: u64,
    /// Its class.
    pub binding: bool,
    /// Its message's kind and version.
    pub kind: (u16, u16),
    envelope: Vec<u8>,
}

impl Entry {
    /// The message in it.
    pub fn decode<T: Message>(&self) -> Result<T, EntryError> {
        envelope::decode(&self.envelope).map_err(|source| EntryError { sequence: self.sequence, source })
    }

    /// Its envelope, for who takes several kinds apart or hands it on.
    pub fn envelope(&self) -> &[u8] {
        &self.envelope
    }
}

impl From<&Raw> for Entry {
    fn from(raw: &Raw) -> Entry {
        let kind = envelope::header(&raw.envelope).map_or((0, 0), |h| (h.kind, h.version));
        Entry { sequence: raw.sequence, binding: raw.has(BINDING), kind, envelope: raw.envelope.clone() }
    }
}

/// A binding entry this release does not know. It is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    pub sequence: u64,
    pub kind: u16,
    pub version: u16,
}

/// How a journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Behind the last entry nothing was ever written.
    Clean,
    /// Behind the last entry lie `len` bytes at `offset` that are no entry: an append that was cut, or acknowledged
    /// entries from number `sequence` on that the disk lost.
    Damaged { offset: u64, len: u64, sequence: u64, fault: EntryFault },
}

/// Entries lost for certain, in a journal that can only be inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins in the file.
    pub offset: u64,
    /// The number of the first entry lost.
    pub sequence: u64,
    pub fault: EntryFault,
    /// The next entry that can be read.
    pub behind: Option<u64>,
}

/// What was read from a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The entries the caller knows, oldest first. Numbers rise; some are missing after compactions and losses.
    pub entries: Vec<Entry>,
    /// Binding entries it does not know.
    pub unknown: Vec<Unknown>,
    /// How many entries were skipped: unknown and skippable.
    pub skipped: usize,
    /// Numbers of entries that were appended behind remains: what was lost before each is not known.
    pub losses: Vec<u64>,
    /// How it ends.
    pub tail: Tail,
}

impl Content {
    /// Whether the reader must not vote: it does not know all that this node has said. `settled` is the number of its
    /// latest own entry that says what was lost has been learnt from a majority; 0 when there is none.
    pub fn abstains(&self, settled: u64) -> bool {
        self.tail != Tail::Clean || !self.unknown.is_empty() || self.losses.iter().any(|loss| *loss > settled)
    }

    fn of(scan: &Scan, options: &Options) -> Content {
        let mut content =
            Content { entries: vec![], unknown: vec![], skipped: 0, losses: vec![], tail: Tail::Clean };
        for raw in &scan.entries {
            if raw.has(AFTER_LOSS) {
                content.losses.push(raw.sequence);
            }
            let entry = Entry::from(raw);
            if options.knows(raw) {
                content.entries.push(entry);
            } else if raw.has(BINDING) {
                let (kind, version) = entry.kind;
                content.unknown.push(Unknown { sequence: raw.sequence, kind, version });
            } else {
                content.skipped += 1;
            }
        }
        if let Some(Remains { blocks, fault }) = scan.remains {
            content.tail = Tail::Damaged {
                offset: offset_of(scan.end),
                len: offset_of(blocks),
                sequence: scan.next,
                fault,
            };
        }
        content
    }
}

/// An open journal.
///
/// ```
/// use proto::{envelope::Message, record::NodeRecord};
/// use store::journal::{Draft, Journal, Options};
/// # let dir = std::env::temp_dir().join(format!("evenkeel-journal-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("facts");
/// let options = Options::new(&[(NodeRecord::KIND, NodeRecord::VERSION)]);
/// let mut journal = Journal::create(&path, options)?;
/// let facts = [NodeRecord::default(), NodeRecord { boot_count: 2, ..Default::default() }];
/// journal.append(&facts.each_ref().map(Draft::binding))?; // Both are on the disk when this returns.
/// drop(journal);
/// let (mut journal, content) = Journal::open(&path, options)?.expect("it was made above");
/// assert!(!content.abstains(0));
/// assert_eq!(content.entries[1].decode::<NodeRecord>()?, facts[1]);
/// journal.compact(|entry| entry.sequence == 2, &[])?; // What is kept keeps its number.
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Journal<F: Folder = Directory> {
    folder: F,
    name: OsString,
    /// Where it is, for messages only.
    path: PathBuf,
    options: Options,
    file: F::File,
    header: Header,
    /// Bytes that are set aside and known to be zeros behind `end` and the remains.
    len: u64,
    end: u64,
    remains: Option<Remains>,
    next: u64,
    poisoned: bool,
}

impl Journal<Directory> {
    /// Opens the journal at `path`, keeps others from writing it, and reads it; `None` when there is no such file.
    ///
    /// What it returns is durable. What an interrupted compaction left is removed. A damaged end is no error, see
    /// [`Content::tail`]; a hole is one, see [`JournalError::Damaged`] and [`Journal::inspect`].
    pub fn open(path: &Path, options: Options) -> Result<Option<(Self, Content)>, JournalError> {
        let (folder, name) = Directory::of(path).map_err(|e| file_error(path, "open it", e))?;
        Journal::open_in(folder, name, path, options)
    }

    /// Makes an empty journal at `path`, durable when this returns. Its directory must exist.
    pub fn create(path: &Path, options: Options) -> Result<Self, JournalError> {
        let (folder, name) = Directory::of(path).map_err(|e| file_error(path, "create it", e))?;
        Journal::create_in(folder, name, path, options)
    }

    /// Reads what can be read of the journal at `path`, and names the damage, without a lock and without a change: for
    /// diagnosis and for what other nodes ask. The last entries of one that is in use may look damaged. `None` when there
    /// is no such file.
    pub fn inspect(path: &Path, options: Options) -> Result<Option<(Content, Vec<Damage>)>, JournalError> {
        match FileMedium::open_read_only(path) {
            Ok(None) => Ok(None),
            Ok(Some(file)) => {
                let (_, _, scan) = read(&file, path)?;
                let damage = scan.holes.iter().map(|hole| hole.into()).collect();
                Ok(Some((Content::of(&scan, &options), damage)))
            }
            Err(e) => Err(file_error(path, "open it", e)),
        }
    }
}

impl<F: Folder> Journal<F> {
    /// [`Journal::open`] on any folder; `path` is what errors call it.
    pub fn open_in(
        mut folder: F,
        name: &OsStr,
        path: &Path,
        options: Options,
    ) -> Result<Option<(Self, Content)>, JournalError> {
        let io = |what| move |source| file_error(path, what, source);
        let Some(mut file) = folder.open(name).map_err(io("open it"))? else { return Ok(None) };
        let leftover = temporary(name);
        if folder.has(&leftover).map_err(io("look for leftovers beside it"))? {
            folder.remove(&leftover).map_err(io("remove what a compaction left"))?;
        }
        file.sync().map_err(io("sync it before reading"))?;
        let (header, len, scan) = read(&file, path)?;
        if let Some(hole) = scan.holes.first() {
            let Damage { offset, sequence, fault, behind } = hole.into();
            return Err(JournalError::Damaged { journal: path.to_owned(), offset, sequence, fault, behind });
        }
        let content = Content::of(&scan, &options);
        let journal = Journal {
            folder,
            name: name.to_owned(),
            path: path.to_owned(),
            options,
            file,
            header,
            len,
            end: scan.end,
            remains: scan.remains,
            next: scan.next,
            poisoned: false,
        };
        Ok(Some((journal, content)))
    }

    /// [`Journal::create`] in any folder; `path` is what errors call it.
    pub fn create_in(
        mut folder: F,
        name: &OsStr,
        path: &Path,
        options: Options,
    ) -> Result<Self, JournalError> {
        let identity = folder.identity().map_err(|e| file_error(path, "draw its identity", e))?;
        let header = Header { identity, next: 1, sealed_end: HEADER_BLOCKS };
        let image = image(&header, &[], &options);
        let file = place(&mut folder, name, &image, Replace::Never)
            .map_err(|e| file_error(path, "create it", e.source))?;
        Ok(Journal {
            folder,
            name: name.to_owned(),
            path: path.to_owned(),
            options,
            file,
            header,
            len: image.len() as u64,
            end: HEADER_BLOCKS,
            remains: None,
            next: 1,
            poisoned: false,
        })
    }

    /// The number the next entry gets.
    pub fn next_sequence(&self) -> u64 {
        self.first_sequence()
    }

    /// Bytes that entries take, and the most they may take.
    pub fn usage(&self) -> (u64, u64) {
        (offset_of(self.place()), self.options.bound())
    }

    /// Appends `drafts`, all of them or, after a power cut, none; they are durable when this returns. Tells their
    /// numbers. After an error see [`JournalError`].
    pub fn append(&mut self, drafts: &[Draft]) -> Result<Range<u64>, JournalError> {
        self.check(drafts)?;
        let numbers = self.numbers(drafts);
        if drafts.is_empty() {
            return Ok(numbers);
        }
        let mut entries = raw(drafts, numbers.start);
        if let (Some(remains), Some(first)) = (self.remains, entries.first_mut()) {
            first.flags |= AFTER_LOSS;
            first.lost = remains.blocks as u32;
        }
        let block = self.place();
        let needed = offset_of(block) + batch_len(&entries) as u64;
        self.reserve(needed)?;
        let bytes = batch(&mut entries, &self.header.identity, block);
        let written = self.file.write_at(offset_of(block), &bytes).and_then(|()| self.file.sync());
        self.poisoned_by(written, "append to it")?;
        (self.end, self.remains, self.next) = (needed / BLOCK as u64, None, numbers.end);
        Ok(numbers)
    }

    /// Puts a new file in place of this one, with the entries `keep` wants, under their numbers, and `more` behind them.
    /// Unknown binding entries are kept as they are, unknown skippable ones go. It is durable when this returns; a power
    /// cut leaves the journal as it was or the new one. Tells the numbers of `more`.
    ///
    /// A journal with a damaged end wants an entry in `more`: the loss would be forgotten otherwise. A loss is forgotten
    /// with the entry that [`Content::losses`] names: keep it until the loss has been made good.
    pub fn compact(
        &mut self,
        mut keep: impl FnMut(&Entry) -> bool,
        more: &[Draft],
    ) -> Result<Range<u64>, JournalError> {
        self.check(more)?;
        if self.remains.is_some() && more.is_empty() {
            return Err(JournalError::LossUntold { journal: self.path.clone() });
        }
        let (_, _, scan) = read(&self.file, &self.path)?;
        if let Some(hole) = scan.holes.first() {
            let Damage { offset, sequence, fault, behind } = hole.into();
            let journal = self.path.clone();
            return Err(JournalError::Damaged { journal, offset, sequence, fault, behind });
        }
        // What was whole when it was opened or appended, and cannot be read now, would be dropped.
        if (scan.end, scan.next, scan.remains.is_some()) != (self.end, self.next, self.remains.is_some()) {
            let source =
                io::Error::new(io::ErrorKind::InvalidData, "entries that were written are not read back");
            return Err(JournalError::Io { journal: self.path.clone(), what: "read it whole", source });
        }
        let numbers = self.numbers(more);
        let mut entries = scan.entries;
        entries.retain_mut(|raw| {
            raw.lost = 0;
            if self.options.knows(raw) { keep(&Entry::from(&*raw)) } else { raw.has(BINDING) }
        });
        let mut added = raw(more, numbers.start);
        if let (Some(_), Some(first)) = (self.remains, added.first_mut()) {
            first.flags |= AFTER_LOSS;
        }
        entries.append(&mut added);
        let batches = packed(entries);
        let sealed_end = HEADER_BLOCKS + batches.iter().map(|b| batch_len(b) / BLOCK).sum::<usize>() as u64;
        self.fits(offset_of(sealed_end))?;
        let identity = self.folder.identity().map_err(|e| file_error(&self.path, "draw its identity", e))?;
        let header = Header { identity, next: numbers.end, sealed_end };
        let image = image(&header, &batches, &self.options);
        match place(&mut self.folder, &self.name, &image, Replace::Own) {
            Ok(file) => {
                (self.file, self.header, self.len) = (file, header, image.len() as u64);
                (self.end, self.remains, self.next) = (sealed_end, None, numbers.end);
                Ok(numbers)
            }
            Err(e) => {
                self.poisoned = !e.unchanged;
                Err(file_error(&self.path, "compact it", e.source))
            }
        }
    }

    /// Gives the folder back.
    pub fn into_folder(self) -> F {
        self.folder
    }

    /// What is refused before anything is done.
    fn check(&self, drafts: &[Draft]) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned { journal: self.path.clone() });
        }
        match drafts.iter().map(|d| d.envelope.len()).find(|len| *len > ENVELOPE_MAX) {
            Some(len) => Err(JournalError::TooLong { journal: self.path.clone(), len, max: ENVELOPE_MAX }),
            None => Ok(()),
        }
    }

    /// The block the next batch goes to: remains are never written over.
    fn place(&self) -> u64 {
        self.end + self.remains.map_or(0, |r| r.blocks)
    }

    /// The next number that was never given, also when the remains were acknowledged entries.
    fn first_sequence(&self) -> u64 {
        self.next + self.remains.map_or(0, |r| offset_of(r.blocks) / ENTRY_HEAD_LEN as u64)
    }

    fn numbers(&self, drafts: &[Draft]) -> Range<u64> {
        let first = self.first_sequence();
        first..first + drafts.len() as u64
    }

    fn fits(&self, needed: u64) -> Result<(), JournalError> {
        match self.options.bound() {
            max if needed > max => Err(JournalError::Full { journal: self.path.clone(), needed, max }),
            _ => Ok(()),
        }
    }

    /// Sets zeroed room aside for a file of `needed` bytes, durable when this returns. Room that is only allocated reads
    /// as zeros as well, but each first write to it changes the file system's metadata, which costs a commit.
    fn reserve(&mut self, needed: u64) -> Result<(), JournalError> {
        self.fits(needed)?;
        if needed <= self.len {
            return Ok(());
        }
        let wanted = reserved(needed, &self.options);
        let grown = match self.file.grow(wanted) {
            // The last room of a full disk may do for this one.
            Err(e) if is_full(&e) => self.file.grow(needed).map(|()| needed),
            other => other.map(|()| wanted),
        };
        let len = match grown {
            Err(source) if is_full(&source) => {
                return Err(JournalError::NoSpace { journal: self.path.clone(), what: "append", source });
            }
            other => self.poisoned_by(other, "make it longer")?,
        };
        let zeros = vec![0; (len - self.len) as usize];
        let written = self.file.write_at(self.len, &zeros).and_then(|()| self.file.sync());
        self.poisoned_by(written, "make it longer")?;
        self.len = len;
        Ok(())
    }

    /// After a failed write it is not known what is on the disk.
    fn poisoned_by<T>(&mut self, result: io::Result<T>, what: &'static str) -> Result<T, JournalError> {
        result.map_err(|source| {
            self.poisoned = true;
            JournalError::Io { journal: self.path.clone(), what, source }
        })
    }
}

impl From<&Hole> for Damage {
    fn from(hole: &Hole) -> Damage {
        let Hole { block, sequence, fault, behind } = *hole;
        Damage { offset: offset_of(block), sequence, fault, behind }
    }
}

/// Header, length in whole blocks, and what lies behind the header.
fn read<M: Medium>(file: &M, path: &Path) -> Result<(Header, u64, Scan), JournalError> {
    let journal = || path.to_owned();
    let len = file.len().map_err(|e| file_error(path, "read its size", e))?;
    if len > FILE_MAX {
        return Err(JournalError::Size { journal: journal(), len, max: FILE_MAX });
    }
    let header = match Header::read(file) {
        // A file shorter than its headers never had its name: it is not written on, zeros would go over the header.
        Some(Ok(_)) if len < offset_of(HEADER_BLOCKS) => {
            return Err(JournalError::Header { journal: journal() });
        }
        Some(Ok(header)) => header,
        Some(Err(found)) => return Err(JournalError::Format { journal: journal(), found, known: FORMAT }),
        None => return Err(JournalError::Header { journal: journal() }),
    };
    let len = len - len % BLOCK as u64;
    Ok((header, len, scan::scan(file, &header, len)))
}

/// The bytes of a whole file with room set aside.
fn image(header: &Header, batches: &[Vec<Raw>], options: &Options) -> Vec<u8> {
    let mut image = header.block();
    image.extend(header.block());
    for entries in batches {
        let block = (image.len() / BLOCK) as u64;
        image.extend(batch(&mut entries.clone(), &header.identity, block));
    }
    let len = reserved(image.len() as u64, options);
    image.resize(len as usize, 0);
    image
}

/// The length of a file that needs `needed` bytes.
fn reserved(needed: u64, options: &Options) -> u64 {
    let chunk = options.reserve.clamp(BLOCK as u64, FILE_MAX).next_multiple_of(BLOCK as u64);
    needed.next_multiple_of(chunk).min(options.bound()).max(needed)
}

fn raw(drafts: &[Draft], first: u64) -> Vec<Raw> {
    let entry = |(draft, sequence): (&Draft, u64)| Raw {
        sequence,
        flags: if draft.binding { BINDING } else { 0 },
        lost: 0,
        envelope: draft.envelope.clone(),
    };
    drafts.iter().zip(first..).map(entry).collect()
}

/// `entries` in batches of one block where they fit: damage to a block then costs no other.
fn packed(entries: Vec<Raw>) -> Vec<Vec<Raw>> {
    let mut batches: Vec<Vec<Raw>> = Vec::new();
    let mut used = 0;
    for entry in entries {
        match batches.last_mut() {
            Some(batch) if used + entry.len() <= BLOCK => {
                used += entry.len();
                batch.push(entry);
            }
            _ => {
                used = entry.len();
                batches.push(vec![entry]);
            }
        }
    }
    batches
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn file_error(path: &Path, what: &'static str, source: io::Error) -> JournalError {
    let journal = path.to_owned();
    match source.kind() {
        io::ErrorKind::WouldBlock => JournalError::InUse { journal },
        io::ErrorKind::AlreadyExists => JournalError::Exists { journal },
        _ if is_full(&source) => JournalError::NoSpace { journal, what, source },
        _ => JournalError::Io { journal, what, source },
    }
}
