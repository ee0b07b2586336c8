//! Records that provisiond keeps on STATE. `store` gives them their place on the disk; [`crate::personality`] is one more.

use crate::envelope::{Message, kind};
use crate::identity::ClusterId;
use serde::{Deserialize, Serialize};

/// What a node remembers of itself from boot to boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Boots so far, this one included.
    pub boot_count: u64,
    /// The kernel's id of the last boot that was counted.
    pub boot_id: String,
    /// The one before it; empty at the first boot.
    pub previous_boot_id: String,
    /// SHA-256 of the cluster file the node last ran with; `None` before the first good one.
    pub config_digest: Option<[u8; 32]>,
    /// Version of the release that wrote this.
    pub version: String,
}

/// Bytes of a boot id: a UUID in text form.
pub const BOOT_ID_LEN: usize = 36;
/// Bytes of a release's version that are kept.
pub const VERSION_MAX: usize = 64;

impl Message for NodeRecord {
    const KIND: u16 = kind::NODE_RECORD;
    const VERSION: u16 = 1;
    /// Twice the longest today: a record's file never grows, and a later layout has to fit into it.
    const MAX_LEN: usize = 2 * (10 + 2 * (1 + BOOT_ID_LEN) + 33 + 1 + VERSION_MAX);
}

impl NodeRecord {
    /// Notes that the node runs in boot `boot_id`. A reboot has happened when a different, non-empty id shows up: the
    /// daemon's own restart within one boot counts nothing. Tells whether a boot was counted.
    ///
    /// ```
    /// let mut record = proto::record::NodeRecord::default();
    /// assert!(record.boot("one") && !record.boot("one") && !record.boot(""));
    /// assert!(record.boot("two"));
    /// assert_eq!((record.boot_count, record.previous_boot_id.as_str()), (2, "one"));
    /// ```
    pub fn boot(&mut self, boot_id: &str) -> bool {
        if boot_id.is_empty() || boot_id == self.boot_id {
            return false;
        }
        self.previous_boot_id = core::mem::replace(&mut self.boot_id, boot_id.to_owned());
        self.boot_count = self.boot_count.saturating_add(1);
        true
    }
}

/// Which entry of the roster chain a node kept last: tells an old, lost or other chain from the one that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterMark {
    /// The cluster.
    pub cluster: ClusterId,
    /// The entry's number.
    pub number: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Message for RosterMark {
    const KIND: u16 = kind::ROSTER_MARK;
    const VERSION: u16 = 1;
    /// Twice today's, as of [`NodeRecord`].
    const MAX_LEN: usize = 2 * (16 + 10 + 32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{decode, encode};

    /// These bytes are what release 1 writes; they are never edited, a change of layout raises the version.
    #[test]
    fn golden_bytes() {
        let record = NodeRecord {
            boot_count: 300,
            boot_id: "b2".into(),
            previous_boot_id: "b1".into(),
            config_digest: Some([7; 32]),
            version: "0.1".into(),
        };
        let mut bytes = vec![0x01, 0x04, 1, 0, 45, 0, 0, 0, 0xac, 0x02, 2, b'b', b'2', 2, b'b', b'1', 1];
        bytes.extend([7; 32]);
        bytes.extend([3, b'0', b'.', b'1']);
        assert_eq!(encode(&record), bytes);
        assert_eq!(decode(&bytes), Ok(record));
    }

    #[test]
    fn golden_bytes_of_the_mark() {
        let mark = RosterMark { cluster: ClusterId([9; 16]), number: 300, hash: [7; 32] };
        let mut bytes = vec![0x05, 0x04, 1, 0, 50, 0, 0, 0];
        bytes.extend([9; 16]);
        bytes.extend([0xac, 0x02]);
        bytes.extend([7; 32]);
        assert_eq!(encode(&mark), bytes);
        assert_eq!(decode(&bytes), Ok(mark));
    }
}
