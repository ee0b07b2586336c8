//! What the tests of journals share: a message, a directory, and reading back.

#![allow(dead_code, clippy::unwrap_used)] // Each test uses its part; helpers of tests are tests.

use proto::envelope::Message;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use store::crash::CrashFolder;
use store::journal::{Content, Draft, Journal, JournalError, Options};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fact {
    pub(crate) text: String,
}

impl Message for Fact {
    const KIND: u16 = 0xfff2;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = 2 << 20;
}

/// A kind of a later release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Vote {
    pub(crate) ballot: u64,
}

impl Message for Vote {
    const KIND: u16 = 0xfff3;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = 64;
}

pub(crate) const BLOCK: usize = 4096;
pub(crate) const NAME: &str = "facts";

/// A release that knows facts only, in a journal of up to 64 blocks that grows by two.
pub(crate) const OLD: Options =
    Options { known: &[(Fact::KIND, 1)], bytes_max: 64 * BLOCK as u64, reserve: 2 * BLOCK as u64 };
/// One that knows votes, too.
pub(crate) const NEW: Options = Options { known: &[(Fact::KIND, 1), (Vote::KIND, 1)], ..OLD };

pub(crate) fn fact(text: impl Into<String>) -> Draft {
    Draft::skippable(&Fact { text: text.into() })
}

pub(crate) fn vote(ballot: u64) -> Draft {
    Draft::binding(&Vote { ballot })
}

pub(crate) fn name() -> &'static OsStr {
    OsStr::new(NAME)
}

pub(crate) type CrashJournal = Journal<CrashFolder>;

pub(crate) fn create(folder: &CrashFolder) -> CrashJournal {
    Journal::create_in(folder.clone(), name(), Path::new(NAME), OLD).unwrap()
}

pub(crate) fn open(folder: &CrashFolder) -> Result<Option<(CrashJournal, Content)>, JournalError> {
    Journal::open_in(folder.clone(), name(), Path::new(NAME), OLD)
}

/// Numbers and texts of the facts in `content`.
pub(crate) fn facts(content: &Content) -> Vec<(u64, String)> {
    content.entries.iter().map(|e| (e.sequence, e.decode::<Fact>().unwrap().text)).collect()
}

/// The same, of what the folder holds now.
pub(crate) fn found(folder: &CrashFolder) -> Vec<(u64, String)> {
    facts(&open(folder).unwrap().unwrap().1)
}

/// A directory of one test's own, removed at its end.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("evenkeel-journal-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.join(NAME)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
