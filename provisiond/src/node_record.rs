//! What the node remembers of itself from boot to boot, on STATE.

use proto::record::{BOOT_ID_LEN, NodeRecord, VERSION_MAX};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use store::{Record, StoreError};
use tracing::{info, warn};

/// The record's name in the state directory.
const RECORD: &str = "node";
/// Bytes of the release file that are read.
const RELEASE_MAX: u64 = 4096;

/// The open record, locked for as long as the daemon runs.
#[derive(Debug)]
pub(crate) struct Remembered {
    record: Record<NodeRecord>,
}

/// Opens or makes the record.
///
/// # Errors
/// The inner error is damage that leaves nothing to go on from: starting to count anew would tell peers a boot they
/// have seen already. The outer one is STATE that cannot keep anything.
pub(crate) fn open(state: &Path) -> Result<Result<Remembered, StoreError>, StoreError> {
    let path = state.join(RECORD);
    match Record::open(&path) {
        Ok(Some(record)) => {
            if let Some(fault) = record.fault() {
                warn!("one slot of {} is damaged ({fault}), the other is used", path.display());
            }
            Ok(Ok(Remembered { record }))
        }
        Ok(None) => Ok(Ok(Remembered { record: Record::create(&path, NodeRecord::default())? })),
        Err(e @ (StoreError::Damaged { .. } | StoreError::Size { .. } | StoreError::Message { .. })) => {
            Ok(Err(e))
        }
        Err(e) => Err(e),
    }
}

impl Remembered {
    pub(crate) fn get(&self) -> &NodeRecord {
        self.record.get()
    }

    /// Counts this boot and notes what runs; durable when it returns. What is known already is not written again.
    pub(crate) fn note(
        &mut self,
        boot_id: &str,
        version: &str,
        config_digest: Option<[u8; 32]>,
    ) -> Result<(), StoreError> {
        let mut next = self.get().clone();
        let counted = next.boot(boot_id);
        next.version = version.to_owned();
        next.config_digest = config_digest.or(next.config_digest);
        if next != *self.get() {
            self.record.put(next)?;
        }
        if counted {
            info!("boot {} of this node, boot id {boot_id}", self.get().boot_count);
        }
        Ok(())
    }
}

/// The kernel's id of this boot; empty, with a line in the log about the cause, when there is none.
pub(crate) fn boot_id(path: &Path) -> String {
    match read_bounded(path, BOOT_ID_LEN as u64 + 2) {
        Ok(text) if (1..=BOOT_ID_LEN).contains(&text.trim().len()) => text.trim().to_owned(),
        Ok(text) => {
            warn!("{} holds no boot id but {:?}", path.display(), text.trim());
            String::new()
        }
        Err(e) => {
            warn!("cannot read {}: {e}", path.display());
            String::new()
        }
    }
}

/// Version of the running release: what its release file says, else this program's own.
pub(crate) fn version(path: &Path) -> String {
    let text = read_bounded(path, RELEASE_MAX).unwrap_or_default();
    let table: toml::Table = text.parse().unwrap_or_default();
    let version = table.get("version").and_then(|v| v.as_str()).unwrap_or(env!("CARGO_PKG_VERSION"));
    version.chars().filter(|c| !c.is_control()).take(VERSION_MAX / 4).collect()
}

fn read_bounded(path: &Path, max: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
