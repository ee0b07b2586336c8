//! When to tell the LAN where a VIP is. A schedule only; its driver sends the frames.
//!
//! ```text
//! start ── 0 ms ── 50 ms ── 200 ms ── 1 s ── every 45 s ──┐
//!             (moved or dropped: the old plan is gone)     └─ until stopped
//! ```
//! A node that takes a thousand VIPs at once paces itself: [`BURST`] announcements, then [`PAUSE`].

use proto::cluster::{PortName, VipName};
use proto::time::{Duration, Time};
use std::collections::{BTreeMap, BTreeSet};

/// After the beginning. The first ones are repeated because any may be lost just after a link came up.
const STEPS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(1000)];

/// Later on: for stations that slept or switches that forgot.
const REPEAT: Duration = Duration::from_secs(45);

/// Announcements in one go. A thousand VIPs are all told once within a quarter of a second.
pub(crate) const BURST: usize = 8;

/// Between two bursts.
pub(crate) const PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug)]
struct Plan {
    port: PortName,
    began: Time,
    /// How many have been sent.
    sent: usize,
    due: Time,
}

/// The plans of all VIPs held here.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    plans: BTreeMap<VipName, Plan>,
    /// The plans by the time they are due.
    queue: BTreeSet<(Time, VipName)>,
    /// No burst before this.
    paused_until: Time,
}

impl Announcer {
    /// Begins to announce `vip` on `port`, in place of any earlier plan for it.
    pub(crate) fn start(&mut self, now: Time, vip: &VipName, port: &PortName) {
        self.stop(vip);
        self.queue.insert((now, vip.clone()));
        self.plans.insert(vip.clone(), Plan { port: port.clone(), began: now, sent: 0, due: now });
    }

    /// Announces `vip` no more.
    pub(crate) fn stop(&mut self, vip: &VipName) {
        if let Some(plan) = self.plans.remove(vip) {
            self.queue.remove(&(plan.due, vip.clone()));
        }
    }

    /// When to call [`due`](Self::due) next.
    pub(crate) fn next(&self) -> Option<Time> {
        self.queue.first().map(|(due, _)| (*due).max(self.paused_until))
    }

    /// What is to be sent now: at most [`BURST`] announcements.
    pub(crate) fn due(&mut self, now: Time) -> Vec<(VipName, PortName)> {
        let mut burst = Vec::new();
        if now < self.paused_until {
            return burst;
        }
        while burst.len() < BURST && self.queue.first().is_some_and(|(due, _)| *due <= now) {
            let (_, vip) = self.queue.pop_first().expect("it was there a line ago");
            let plan = self.plans.get_mut(&vip).expect("every queued VIP has its plan");
            plan.sent += 1;
            // Late ones are not caught up with: the next counts from now at the earliest.
            plan.due = match STEPS.get(plan.sent) {
                Some(step) => (plan.began + *step).max(now + PAUSE),
                None => now + REPEAT,
            };
            self.queue.insert((plan.due, vip.clone()));
            burst.push((vip, plan.port.clone()));
        }
        if burst.len() == BURST {
            self.paused_until = now + PAUSE;
        }
        burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    /// Runs until `end` and returns when (in ms) each VIP was announced where.
    fn run(announcer: &mut Announcer, end: Time) -> Vec<(u64, String, String)> {
        let mut told = Vec::new();
        while let Some(next) = announcer.next().filter(|next| *next <= end) {
            for (vip, port) in announcer.due(next) {
                told.push((next.as_nanos() / 1_000_000, vip.0, port.0));
            }
        }
        told
    }

    fn times(told: &[(u64, String, String)]) -> Vec<u64> {
        told.iter().map(|(at, ..)| *at).collect()
    }

    #[test]
    fn announces_often_at_first_then_seldom() {
        let mut announcer = Announcer::default();
        announcer.start(at(10), &"web".into(), &"p1".into());
        let told = run(&mut announcer, at(100_000));
        assert_eq!(times(&told), [10, 60, 210, 1010, 46_010, 91_010]);
        announcer.stop(&"web".into());
        assert_eq!(announcer.next(), None);
    }

    #[test]
    fn move_begins_anew_and_forgets_the_old_port() {
        let mut announcer = Announcer::default();
        announcer.start(at(0), &"web".into(), &"p1".into());
        assert_eq!(times(&run(&mut announcer, at(100))), [0, 50]);
        announcer.start(at(100), &"web".into(), &"p2".into());
        let told = run(&mut announcer, at(2000));
        assert_eq!(times(&told), [100, 150, 300, 1100]);
        assert!(told.iter().all(|(_, _, port)| port == "p2"));
    }

    #[test]
    fn thousand_vips_are_paced_and_all_told_soon() {
        let mut announcer = Announcer::default();
        for n in 0..1000 {
            announcer.start(at(0), &VipName(format!("v{n}")), &"p1".into());
        }
        let told = run(&mut announcer, at(5000));
        assert_eq!(told.len(), 4 * 1000);
        let first: BTreeMap<_, _> = told.iter().rev().map(|(at, vip, _)| (vip, *at)).collect();
        assert_eq!(first.len(), 1000);
        assert!(first.values().max() <= Some(&1000), "{:?}", first.values().max());
        for window in told.chunks(BURST).collect::<Vec<_>>().windows(2) {
            assert!(window[0].iter().all(|(t, ..)| window[1][0].0 >= *t));
        }
        let busiest = told.chunk_by(|a, b| a.0 == b.0).map(<[_]>::len).max();
        assert!(busiest <= Some(BURST), "{busiest:?}");
    }

    #[test]
    fn late_driver_does_not_catch_up_in_one_go() {
        let mut announcer = Announcer::default();
        announcer.start(at(0), &"web".into(), &"p1".into());
        assert_eq!(announcer.due(at(900)).len(), 1);
        assert_eq!(announcer.due(at(900)).len(), 0);
        assert_eq!(announcer.next(), Some(at(902)));
    }
}
