//! What the node remembers of itself from boot to boot, on STATE.

use crate::records;
use proto::record::NodeRecord;
use std::path::Path;
use store::{Record, StoreError};
use tracing::info;

/// The record's name in the state directory.
const RECORD: &str = "node";

/// The open record, locked for as long as the daemon runs.
#[derive(Debug)]
pub(crate) struct Remembered {
    record: Record<NodeRecord>,
}

/// Opens or makes the record.
///
/// # Errors
/// As [`records::open`]. Damage leaves nothing to go on from: starting to count anew would tell peers a boot they have
/// seen already.
pub(crate) fn open(state: &Path) -> Result<Result<Remembered, StoreError>, StoreError> {
    let path = state.join(RECORD);
    let record = match records::open(&path)? {
        Ok(Some(record)) => record,
        Ok(None) => Record::create(&path, NodeRecord::default())?,
        Err(damage) => return Ok(Err(damage)),
    };
    Ok(Ok(Remembered { record }))
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
