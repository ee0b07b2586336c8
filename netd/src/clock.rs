//! The one clock: `CLOCK_BOOTTIME`, which goes on while the machine sleeps. A node that slept knows it was away.

use nix::time::{ClockId, clock_gettime};
use proto::time::Time;
use std::time::Duration;

/// The time now.
pub(crate) fn now() -> Time {
    let t = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux has CLOCK_BOOTTIME");
    let seconds = u64::try_from(t.tv_sec()).expect("the boot does not lie in the future");
    let nanos = u64::try_from(t.tv_nsec()).expect("nanoseconds count from 0");
    Time::from_nanos(seconds * 1_000_000_000 + nanos)
}

/// What waits for `deadline` sleep for: nothing when it has passed.
pub(crate) fn until(deadline: Time) -> Duration {
    deadline.since(now())
}

/// Milliseconds of the clock at `span` before `now`: how the bus tells instants.
pub(crate) fn millis_ago(now: Time, span: Duration) -> u64 {
    Duration::from_nanos(now.as_nanos()).saturating_sub(span).as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_forward() {
        let before = now();
        assert!(now() >= before);
        assert_eq!(until(before), Duration::ZERO);
        assert!(until(now() + Duration::from_secs(60)) > Duration::from_secs(59));
    }

    #[test]
    fn instants_are_told_in_milliseconds() {
        let now = Time::from_nanos(5_000_000_000);
        assert_eq!(millis_ago(now, Duration::from_millis(1500)), 3500);
        assert_eq!(millis_ago(now, Duration::from_secs(6)), 0);
    }
}
