//! The way down, as a whole. Pure: the supervisor stops services in order, this bounds how long that may take.
//!
//! ```text
//! Stopping --all stopped, or STOP_LIMIT--> Killing --nobody left, or KILL_LIMIT--> Ended
//!    '------------------force------------------> Forced --everything killed---------^
//! ```

use std::time::Duration;

use proto::time::Time;

/// How long all services together may take to stop. Below the watchdog's default timeout and a person's patience.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long killed processes may take to vanish; one stuck in the kernel never does.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(2);

/// What the machine does at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Reboot,
    PowerOff,
    /// A restart that waits for nobody.
    ForcedReboot,
    /// None: back to the rescue prompt, and from there a restart or the services anew.
    Rescue,
}

/// What the shell must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing but wait.
    Wait,
    /// Kill every process there is. `late`: services were still running.
    KillAll { late: bool },
    /// Leave the loop and end the machine.
    Finish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Stopping { until: Time },
    Killing { until: Time },
    Forced,
    Ended,
}

/// A shutdown under way.
#[derive(Clone, Debug)]
pub(crate) struct Shutdown {
    end: End,
    phase: Phase,
}

impl Shutdown {
    /// Begins at `now`.
    pub(crate) fn new(now: Time, end: End) -> Shutdown {
        Shutdown { end, phase: Phase::Stopping { until: now + STOP_LIMIT } }
    }

    /// Waits for nobody any more, whatever was under way: everything is killed and the machine restarts.
    pub(crate) fn force(&mut self) {
        (self.end, self.phase) = (End::ForcedReboot, Phase::Forced);
    }

    /// How it will end.
    pub(crate) fn end(&self) -> End {
        self.end
    }

    /// Looks at the state of things; call after every event and when [`Shutdown::next_wakeup`] is due.
    pub(crate) fn step(&mut self, now: Time, services_stopped: bool, processes_left: bool) -> Step {
        match self.phase {
            Phase::Stopping { until } if services_stopped || until <= now => {
                self.phase = Phase::Killing { until: now + KILL_LIMIT };
                Step::KillAll { late: !services_stopped }
            }
            Phase::Killing { until } if !processes_left || until <= now => {
                self.phase = Phase::Ended;
                Step::Finish
            }
            Phase::Forced => {
                self.phase = Phase::Ended;
                Step::KillAll { late: true }
            }
            Phase::Ended => Step::Finish,
            Phase::Stopping { .. } | Phase::Killing { .. } => Step::Wait,
        }
    }

    /// When [`Shutdown::step`] is due although nothing happens.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        match self.phase {
            Phase::Stopping { until } | Phase::Killing { until } => Some(until),
            Phase::Forced => Some(Time::ZERO),
            Phase::Ended => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn an_orderly_shutdown_does_not_wait() {
        let mut s = Shutdown::new(at(0), End::Reboot);
        assert_eq!(s.step(at(1), false, true), Step::Wait);
        assert_eq!(s.step(at(2), true, true), Step::KillAll { late: false });
        assert_eq!(s.step(at(2), true, true), Step::Wait);
        assert_eq!(s.step(at(2), true, false), Step::Finish);
        assert_eq!((s.end(), s.next_wakeup()), (End::Reboot, None));
    }

    #[test]
    fn a_forced_restart_waits_for_nobody() {
        let mut stopping = Shutdown::new(at(0), End::PowerOff);
        let mut killing = stopping.clone();
        assert_eq!(killing.step(at(1), true, true), Step::KillAll { late: false });
        for s in [&mut stopping, &mut killing] {
            assert_eq!(s.step(at(1), false, true), Step::Wait);
            s.force();
            assert_eq!(s.next_wakeup(), Some(Time::ZERO));
            assert_eq!(s.step(at(1), false, true), Step::KillAll { late: true });
            assert_eq!(s.step(at(1), false, true), Step::Finish, "although processes are left");
            assert_eq!(s.end(), End::ForcedReboot);
        }
    }

    #[test]
    fn nobody_can_hold_it_up() {
        let mut s = Shutdown::new(at(0), End::PowerOff);
        assert_eq!(s.next_wakeup(), Some(at(20)));
        assert_eq!(s.step(at(19), false, true), Step::Wait);
        assert_eq!(s.step(at(20), false, true), Step::KillAll { late: true });
        assert_eq!(s.next_wakeup(), Some(at(22)));
        assert_eq!(s.step(at(22), false, true), Step::Finish);
    }
}
