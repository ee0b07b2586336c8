//! Opens the records on STATE: what damage means is decided here once.

use proto::envelope::Message;
use std::path::Path;
use store::{Record, StoreError};
use tracing::warn;

/// Opens the record at `path`; `None` when there is none. A damaged slot beside a good one is said in the log.
///
/// # Errors
/// The inner error is a record that is there and cannot be used: the daemon goes on without it and says so, because a
/// new one in its place would be taken for a first boot. The outer one is STATE that cannot be used at all.
pub(crate) fn open<T: Message>(path: &Path) -> Result<Result<Option<Record<T>>, StoreError>, StoreError> {
    match Record::open(path) {
        Ok(record) => {
            if let Some(fault) = record.as_ref().and_then(Record::fault) {
                warn!("one slot of {} is damaged ({fault}), the other is used", path.display());
            }
            Ok(Ok(record))
        }
        Err(e @ (StoreError::Damaged { .. } | StoreError::Size { .. } | StoreError::Message { .. })) => {
            Ok(Err(e))
        }
        Err(e) => Err(e),
    }
}
