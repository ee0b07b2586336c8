//! What a node remembers of its slots. It says what is meant, the loader's environments follow it: after a power cut
//! they are compared, and what was under way is finished or given up.

use crate::version::Version;
use core::fmt;
use proto::boot::BY_MAX;
use proto::envelope::{Message, kind};
use proto::slot::{Pair, Slot};
use proto::text::hex;
use serde::{Deserialize, Serialize};

/// SHA-256 of a boot file.
pub type Digest = [u8; 32];

/// Failed digests that are kept. Beyond it the oldest is forgotten: a record has a fixed size. Releases come by the
/// month, so these are years.
pub const FAILED_MAX: usize = 64;

/// The boot file of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    pub version: Version,
    /// The lowest version that may be installed once this one is committed.
    pub floor: Version,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, hex(&self.digest[..4]))
    }
}

/// Why a release is not tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The system in it was judged; at most [`BY_MAX`] bytes.
    Verdict(String),
    /// Its kernel panicked.
    Panic,
    /// Its PID 1 crashed.
    Crash,
    /// It was tried this often, and each time the trial ended without a word.
    Unconfirmed { trials: u8 },
    /// It was not healthy within this many seconds.
    Deadline { seconds: u64 },
}

impl Failure {
    /// A verdict, cut to what is kept.
    pub fn verdict(why: &str) -> Failure {
        let end = (0..=why.len().min(BY_MAX)).rev().find(|at| why.is_char_boundary(*at));
        Failure::Verdict(why[..end.unwrap_or(0)].to_owned())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Verdict(why) => f.write_str(why),
            Failure::Panic => f.write_str("its kernel panicked"),
            Failure::Crash => f.write_str("its init crashed"),
            Failure::Unconfirmed { trials } => write!(f, "{trials} trials ended without a word"),
            Failure::Deadline { seconds } => write!(f, "not healthy within {seconds} s"),
        }
    }
}

/// A release that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub release: Release,
    pub failure: Failure,
}

/// Where a slot stands. The module's head has the transitions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It holds nothing that may be started.
    #[default]
    Empty,
    /// Its bytes are being replaced.
    Writing { release: Release },
    /// Its bytes were read back and are those of the release.
    Verified { release: Release },
    /// The next boot is to be its trial. `boot` is the one that decided so.
    Armed { release: Release, attempt: u8, boot: u64 },
    /// Boot `boot` is or was its trial.
    Trying { release: Release, attempt: u8, boot: u64 },
    /// It has proven healthy; the loader is being told. `boot` as in `Trying`.
    Healthy { release: Release, attempt: u8, boot: u64 },
    /// It has proven healthy and the loader knows.
    Committed { release: Release },
    /// Its trial failed.
    Failed { release: Release, failure: Failure },
}

impl Stage {
    /// What the slot holds, or is to hold.
    pub fn release(&self) -> Option<&Release> {
        match self {
            Stage::Empty => None,
            Stage::Writing { release }
            | Stage::Verified { release }
            | Stage::Armed { release, .. }
            | Stage::Trying { release, .. }
            | Stage::Healthy { release, .. }
            | Stage::Committed { release }
            | Stage::Failed { release, .. } => Some(release),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Empty => f.write_str("empty"),
            Stage::Writing { release } => write!(f, "{release} is being written"),
            Stage::Verified { release } => write!(f, "{release} verified"),
            Stage::Armed { release, attempt, .. } => write!(f, "{release} armed for trial {attempt}"),
            Stage::Trying { release, attempt, .. } => write!(f, "{release} on trial {attempt}"),
            Stage::Healthy { release, .. } => write!(f, "{release} healthy, not committed yet"),
            Stage::Committed { release } => write!(f, "{release} committed"),
            Stage::Failed { release, failure } => write!(f, "{release} failed: {failure}"),
        }
    }
}

/// What is remembered of both slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// The slot that is started when nothing is tried. Its stage is `Committed`; the other's may be, too.
    pub committed: Slot,
    pub stages: Pair<Stage>,
    /// Releases that are not offered again, the oldest first.
    pub failed: Vec<Failed>,
    /// The highest floor of a release that was committed: nothing below it is installed.
    pub floor: Version,
    /// The loader's watchdog, in seconds: for environments that have to be made anew while neither can be read.
    pub watchdog_s: u16,
}

impl SlotRecord {
    /// A node that runs `release` from `slot` and knows of nothing else.
    pub fn adopted(slot: Slot, release: Release, watchdog_s: u16) -> SlotRecord {
        let mut stages = Pair::default();
        stages[slot] = Stage::Committed { release };
        SlotRecord { committed: slot, stages, failed: Vec::new(), floor: release.floor, watchdog_s }
    }

    /// The slot that the next release goes to: the one that is not committed.
    pub fn target(&self) -> Slot {
        self.committed.other()
    }

    /// The committed release.
    pub fn release(&self) -> Option<&Release> {
        self.stages[self.committed].release()
    }

    /// How the release with these bytes failed, if it did.
    pub fn failure(&self, digest: &Digest) -> Option<&Failure> {
        self.failed.iter().find(|failed| failed.release.digest == *digest).map(|failed| &failed.failure)
    }

    /// The target is the committed slot from now on.
    pub(super) fn commit(&mut self, release: Release) {
        self.committed = self.target();
        self.stages[self.committed] = Stage::Committed { release };
        self.floor = self.floor.max(release.floor);
    }

    /// The target's trial failed.
    pub(super) fn fail(&mut self, release: Release, failure: Failure) {
        self.failed.retain(|failed| failed.release.digest != release.digest);
        if self.failed.len() == FAILED_MAX {
            self.failed.remove(0);
        }
        self.failed.push(Failed { release, failure: failure.clone() });
        let target = self.target();
        self.stages[target] = Stage::Failed { release, failure };
    }
}

/// Longest encoding of a release and of a failure: digest, u64 and six u32 as varints; variant, length, text.
const VERSION_LEN: usize = 3 * 5;
const RELEASE_LEN: usize = 32 + 10 + 2 * VERSION_LEN;
const FAILURE_LEN: usize = 1 + 1 + BY_MAX;
const STAGE_LEN: usize = 1 + RELEASE_LEN + FAILURE_LEN;

impl Message for SlotRecord {
    const KIND: u16 = kind::SLOT_RECORD;
    const VERSION: u16 = 1;
    /// Twice the longest today: a record's file never grows, and a later layout has to fit into it.
    const MAX_LEN: usize =
        2 * (1 + 2 * STAGE_LEN + 1 + FAILED_MAX * (RELEASE_LEN + FAILURE_LEN) + VERSION_LEN + 3);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::envelope::{decode, encode};

    fn release(n: u8) -> Release {
        let version = Version { major: 1, minor: 2, patch: u32::from(n) };
        Release { digest: [n; 32], size: 300, version, floor: Version { major: 1, minor: 1, patch: 0 } }
    }

    /// These bytes are what release 1 writes; they are never edited, a change of layout raises the version.
    #[test]
    fn golden_bytes() {
        let mut record = SlotRecord::adopted(Slot::A, release(7), 30);
        record.fail(release(9), Failure::Unconfirmed { trials: 2 });
        record.stages.b = Stage::Armed { release: release(8), attempt: 1, boot: 300 };
        let bytes_of = |n: u8| [vec![n; 32], vec![0xac, 0x02, 1, 2, n, 1, 1, 0]].concat();
        let payload = [
            vec![0, 6],
            bytes_of(7),
            vec![3],
            bytes_of(8),
            vec![1, 0xac, 0x02, 1],
            bytes_of(9),
            vec![3, 2, 1, 1, 0, 30],
        ]
        .concat();
        let bytes = [vec![0x06, 0x04, 1, 0, payload.len() as u8, 0, 0, 0], payload].concat();
        assert_eq!(encode(&record), bytes);
        assert_eq!(decode(&bytes), Ok(record));
    }

    #[test]
    fn the_fullest_record_fits_and_a_digest_fails_once() {
        let mut record = SlotRecord::adopted(Slot::B, release(0), u16::MAX);
        record.floor = Version { major: u32::MAX, minor: u32::MAX, patch: u32::MAX };
        let full = Version { major: u32::MAX, minor: u32::MAX, patch: u32::MAX };
        for n in 0..=FAILED_MAX as u8 {
            let release = Release { digest: [n; 32], size: u64::MAX, version: full, floor: full };
            record.fail(release, Failure::verdict(&"é".repeat(BY_MAX)));
            record.fail(release, Failure::verdict(&format!("x{}", "é".repeat(BY_MAX))));
        }
        assert_eq!(record.failed.len(), FAILED_MAX);
        assert_eq!(record.failure(&[0; 32]), None, "the oldest is forgotten");
        let Some(Failure::Verdict(why)) = record.failure(&[1; 32]) else { panic!("the next is kept") };
        assert_eq!((why.len(), &why[..3]), (BY_MAX - 1, "xé"));
        let len = encode(&record).len();
        assert!(len <= 8 + SlotRecord::MAX_LEN / 2, "{len}");
    }
}
