//! Asking the LAN whether somebody uses a VIP's address, before it is taken. A schedule only; its driver sends.
//!
//! ```text
//! start ── question ── 12 ms ── question ── 12 ms ── question ── 50 ms ── done: nobody
//!              └────────────────┴─ somebody uses it or asks too ─┴────────> done: that one
//! ```

use netd_core::Mac;
use proto::cluster::{PortName, VipName};
use proto::time::{Duration, Time};
use std::collections::BTreeMap;

/// Questions of one probe.
const QUESTIONS: u32 = 3;

/// Between two questions.
const GAP: Duration = Duration::from_millis(12);

/// After the last question. A station on the LAN answers within a millisecond, an emulated one within some tens.
const WAIT: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Probe {
    attempt: u32,
    asked: u32,
    due: Time,
}

/// What is to be done about a probe.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send one question.
    Ask { vip: VipName, port: PortName },
    /// Tell the core.
    Done { vip: VipName, port: PortName, attempt: u32, answered: Option<Mac> },
}

/// The probes under way: at most one for each VIP and port.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    probes: BTreeMap<(VipName, PortName), Probe>,
}

impl Prober {
    /// Begins. An earlier probe of the same VIP on the same port is forgotten: the core waits for the newest only.
    pub(crate) fn start(&mut self, now: Time, vip: VipName, port: PortName, attempt: u32) {
        self.probes.insert((vip, port), Probe { attempt, asked: 0, due: now });
    }

    /// A frame of another station used the address of `vip` on `port`, or asked for it. Ends the probe, if there is one.
    pub(crate) fn sighted(&mut self, vip: &VipName, port: &PortName, mac: Mac) -> Option<Step> {
        let key = (vip.clone(), port.clone());
        // Before its own first question a probe has not begun: what was seen then is old.
        let probe = self.probes.get(&key).filter(|probe| probe.asked > 0)?;
        let attempt = probe.attempt;
        self.probes.remove(&key);
        let (vip, port) = key;
        Some(Step::Done { vip, port, attempt, answered: Some(mac) })
    }

    /// Forgets a probe; it has no result.
    pub(crate) fn cancel(&mut self, vip: &VipName, port: &PortName) {
        self.probes.remove(&(vip.clone(), port.clone()));
    }

    /// When to call [`due`](Self::due) next.
    pub(crate) fn next(&self) -> Option<Time> {
        self.probes.values().map(|probe| probe.due).min()
    }

    /// What is to be done now.
    pub(crate) fn due(&mut self, now: Time) -> Vec<Step> {
        let mut steps = Vec::new();
        self.probes.retain(|(vip, port), probe| {
            if probe.due > now {
                return true;
            }
            let (vip, port) = (vip.clone(), port.clone());
            if probe.asked == QUESTIONS {
                steps.push(Step::Done { vip, port, attempt: probe.attempt, answered: None });
                return false;
            }
            probe.asked += 1;
            probe.due = now + if probe.asked == QUESTIONS { WAIT } else { GAP };
            steps.push(Step::Ask { vip, port });
            true
        });
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: Mac = Mac([2; 6]);

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    fn ask() -> Step {
        Step::Ask { vip: "web".into(), port: "p1".into() }
    }

    fn done(attempt: u32, answered: Option<Mac>) -> Step {
        Step::Done { vip: "web".into(), port: "p1".into(), attempt, answered }
    }

    fn run(prober: &mut Prober) -> Vec<(u64, Step)> {
        let mut steps = Vec::new();
        while let Some(next) = prober.next() {
            steps.extend(prober.due(next).into_iter().map(|step| (next.as_nanos() / 1_000_000, step)));
        }
        steps
    }

    #[test]
    fn three_questions_then_nobody() {
        let mut prober = Prober::default();
        prober.start(at(0), "web".into(), "p1".into(), 4);
        assert_eq!(run(&mut prober), [(0, ask()), (12, ask()), (24, ask()), (74, done(4, None))]);
    }

    #[test]
    fn answer_ends_it_at_once() {
        let mut prober = Prober::default();
        prober.start(at(0), "web".into(), "p1".into(), 4);
        assert_eq!(prober.sighted(&"web".into(), &"p1".into(), OTHER), None, "not asked yet");
        prober.due(at(0));
        assert_eq!(prober.sighted(&"web".into(), &"p2".into(), OTHER), None, "another port");
        assert_eq!(prober.sighted(&"web".into(), &"p1".into(), OTHER), Some(done(4, Some(OTHER))));
        assert_eq!(prober.sighted(&"web".into(), &"p1".into(), OTHER), None, "told once");
        assert_eq!(prober.next(), None);
    }

    #[test]
    fn cancelled_probe_has_no_result() {
        let mut prober = Prober::default();
        prober.start(at(0), "web".into(), "p1".into(), 4);
        prober.due(at(0));
        prober.cancel(&"web".into(), &"p1".into());
        assert_eq!(run(&mut prober), []);
    }

    #[test]
    fn newer_attempt_replaces_the_older() {
        let mut prober = Prober::default();
        prober.start(at(0), "web".into(), "p1".into(), 4);
        prober.due(at(0));
        prober.start(at(5), "web".into(), "p1".into(), 5);
        assert_eq!(run(&mut prober).last(), Some(&(79, done(5, None))));
    }
}
