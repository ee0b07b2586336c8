//! Small durable state that survives power cuts.
//!
//! | module | subject |
//! |---|---|
//! | [`record`] | [`Record`]: one message in two slots, replaced by overwriting the older one |
//! | [`medium`] | [`Medium`]: the few things a record asks of a disk, and files as one |
//! | [`crash`] | [`crash::CrashDisk`]: a medium whose power is cut on purpose, for tests |
//!
//! What is acknowledged is on disk: every call that changes something returns after `fdatasync`, or with an error.
//! `docs/formats/record.md` draws the layout byte by byte.

pub mod crash;
pub mod medium;
pub mod record;

pub use medium::{FileMedium, Medium, create_dir_durably};
pub use record::{Record, StoreError};
