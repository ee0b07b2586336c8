//! The one clock init reads: `CLOCK_BOOTTIME`, which nobody can set and which counts through suspends.

use nix::time::{ClockId, clock_gettime};
use proto::time::Time;
use std::time::Duration;

/// Now, since the kernel started.
pub(crate) fn now() -> Time {
    // The clock exists since Linux 2.6.39; its absence would mean a kernel this program cannot run on anyway.
    let t = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
    let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(t.tv_nsec()).unwrap_or(0);
    Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Milliseconds since the kernel started.
pub(crate) fn now_ms() -> u64 {
    now().as_nanos() / 1_000_000
}

/// `wait` as poll(2) takes it: whole milliseconds, upwards, because a wait cut short would be waited again at once;
/// at most a minute.
pub(crate) fn poll_ms(wait: Duration) -> u16 {
    u16::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u16::MAX)
}

/// Bits that differ from call to call: enough to spread restarts, not for secrets.
pub(crate) fn jitter() -> u16 {
    let n = now().as_nanos();
    ((n ^ (n >> 16)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}
