//! Small durable state that survives power cuts.
//!
//! | module | subject |
//! |---|---|
//! | [`record`] | [`Record`]: one message in two slots, replaced by overwriting the older one |
//! | [`journal`] | [`Journal`]: a history of messages, appended and numbered |
//! | [`medium`] | [`Medium`]: the few things they ask of a disk, and files as one |
//! | [`folder`] | [`folder::Folder`]: names of files, and how a whole file comes to its name |
//! | [`crash`] | [`crash::CrashDisk`]: disks whose power is cut on purpose, for tests |
//!
//! What is acknowledged is on disk: every call that changes something returns after `fdatasync`, or with an error.
//! `docs/formats/record.md` and `docs/formats/journal.md` draw the layouts byte by byte.
//!
//! **How daemons use it.** A core never calls it. It emits `Persist(token, record)` and holds back every send that
//! depends on it. The shell puts or appends, in the order of the outputs, and only after `Ok` feeds `Persisted(token)`
//! back. After an error it feeds nothing, says why and ends: the record or journal is poisoned, init starts the daemon
//! again, and the next open tells what is on the disk.
//!
//! ```text
//! core --Persist(7, fact)--> shell --append--> fdatasync --Ok--> Persisted(7) --> core --Send--> peers
//!                                                 |
//!                                                 +-- error --> the daemon ends; nothing was told
//! ```
//! The calls block for as long as the disk takes: a shell that has beats to send makes them on a thread of their own.

pub mod crash;
pub mod folder;
pub mod journal;
pub mod medium;
pub mod record;

pub use journal::{Journal, JournalError};
pub use medium::{FileMedium, Growing, Medium, create_dir_durably};
pub use record::{Record, StoreError};
