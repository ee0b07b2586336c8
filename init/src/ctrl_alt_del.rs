//! What a person at the keyboard wants with Ctrl-Alt-Del: once a restart in order, seven times within two seconds one
//! that waits for nobody. Pure.
//!
//! ```text
//! Nothing --press--> InOrder --PRESSES presses within WITHIN--> AtOnce
//! ```
//! The kernel sends SIGINT to PID 1 for each; two that come before the first was read are one. A person who insists
//! presses again.

use std::time::Duration;

use proto::time::Time;

/// Presses that force a restart, as many as with systemd (`CtrlAltDelBurstAction=` in systemd-system.conf(5)).
pub(crate) const PRESSES: usize = 7;
/// The time they must fall into.
pub(crate) const WITHIN: Duration = Duration::from_secs(2);

/// What was asked for; the later one in this order is the stronger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asked {
    #[default]
    Nothing,
    /// Stop the services and restart.
    InOrder,
    /// Restart now.
    AtOnce,
}

/// The last presses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presses {
    /// Those that can still count, the oldest first.
    times: [Option<Time>; PRESSES],
}

impl Presses {
    /// One more, at `now`. Returns what is asked for with it.
    pub(crate) fn pressed(&mut self, now: Time) -> Asked {
        self.times.rotate_left(1);
        if let Some(last) = self.times.last_mut() {
            *last = Some(now);
        }
        match self.times.first().copied().flatten() {
            Some(first) if now.since(first) <= WITHIN => Asked::AtOnce,
            _ => Asked::InOrder,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_within_two_seconds_force_a_restart() {
        let every = |ms: u64, count: u64| (0..count).map(|n| n * ms).collect::<Vec<_>>();
        // When it was pressed, in milliseconds; the first press that forces.
        let cases = [
            (vec![0], None),
            (every(100, 6), None),
            (every(100, 9), Some(7)),
            // Six intervals: 1998 ms are in time, 2004 are not.
            (every(333, 30), Some(7)),
            (every(334, 30), None),
            (vec![0; 7], Some(7)),
            // What came long before does not count, and does not hinder.
            ([vec![0, 100, 200], (0..7).map(|n| 60_000 + n * 200).collect()].concat(), Some(10)),
            ([every(100, 6), vec![2001]].concat(), None),
            // The window moves: the first has left it, seven others are in it.
            ([every(100, 6), vec![2001, 2050]].concat(), Some(8)),
            ([every(100, 6), vec![2000]].concat(), Some(7)),
        ];
        for (times, forces) in cases {
            let mut presses = Presses::default();
            let asked: Vec<_> =
                times.iter().map(|ms| presses.pressed(Time::ZERO + Duration::from_millis(*ms))).collect();
            let first = asked.iter().position(|a| *a == Asked::AtOnce).map(|i| i + 1);
            assert_eq!(first, forces, "{times:?}");
            assert!(asked.iter().all(|a| *a >= Asked::InOrder), "every press asks for something");
        }
    }
}
