//! Every interval the core uses, derived from the cluster's two: beat and lease. In one place, so that their
//! order can be seen: change gap < beat < claim patience < lease.

use core::time::Duration;
use proto::cluster::Timing;

/// Shortest time in which a shell can be relied upon to answer a probe (three frames, 15 ms apart, and a wait).
const PROBE_PATIENCE_MIN: Duration = Duration::from_millis(500);
/// Length of a probe on the wire; retries of different nodes are set apart by more than this.
const PROBE_WINDOW: Duration = Duration::from_millis(60);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tempo {
    /// Between two status messages when nothing changes.
    pub(crate) beat: Duration,
    /// Silence after which a peer is down, and standstill after which a node distrusts itself.
    pub(crate) lease: Duration,
}

impl Tempo {
    pub(crate) fn new(timing: Timing) -> Tempo {
        // A zero beat would make every instant a wakeup.
        let beat = timing.beat.max(Duration::from_millis(1));
        Tempo { beat, lease: timing.lease.max(2 * beat) }
    }

    /// Between two status messages when much changes: a burst of changes costs at most twenty beats' worth.
    pub(crate) fn change_gap(self) -> Duration {
        self.beat / 20
    }

    /// How long a claimant waits for a peer that is alive but does not say that it knows of the claim.
    pub(crate) fn claim_patience(self) -> Duration {
        2 * self.beat
    }

    /// How long the result of a probe is waited for.
    pub(crate) fn probe_patience(self) -> Duration {
        (2 * self.beat).max(PROBE_PATIENCE_MIN)
    }

    /// Wait after the first hindered attempt to take a VIP; it doubles up to a lease.
    pub(crate) fn retry_first(self) -> Duration {
        self.beat
    }

    /// Added to a node's waits, so that two nodes that saw each other's probes do not meet again.
    pub(crate) fn retry_stagger(self, rank: usize) -> Duration {
        2 * PROBE_WINDOW * u32::try_from(rank).unwrap_or(u32::MAX).min(32)
    }

    /// Between two announcements against the same rival.
    pub(crate) fn conflict_gap(self) -> Duration {
        self.lease / 3
    }

    /// How long a node that stood still listens before it takes part again.
    pub(crate) fn late_quarantine(self) -> Duration {
        self.lease / 2
    }

    /// A gap between two calls that can no longer be ordinary scheduling: what was sent in it still waits in a
    /// queue.
    pub(crate) fn excusable_gap(self) -> Duration {
        2 * self.beat
    }
}
