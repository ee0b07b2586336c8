//! The node's own ports: which of them can carry VIPs, and why the others cannot.
//!
//! ```text
//!            carrier, first time in this life
//!        +--------------------------------------------+
//!        |                                            v
//!       Out --carrier again--> Held --hold-down--> Operative
//!        ^                      |                     |
//!        +----carrier lost------+-----carrier lost----+     each loss doubles the next hold-down
//! ```
//! The hold-down is what keeps a flapping port from taking VIPs along: 500 ms after a single loss, twice as
//! long for each further loss within 30 s, at most 30 s. A port that comes up for the first time needs none, so
//! that a booting node serves at once.

use crate::event::Event;
use crate::io::PortStatus;
use core::time::Duration;
use proto::cluster::{NetworkName, Node, PortName};
use proto::status::{PORTS_MAX, PortReason, PortReport, PortState};
use proto::time::Time;
use std::collections::BTreeMap;

/// How long a port must keep its carrier after a single loss.
const HOLD_DOWN_FIRST: Duration = Duration::from_millis(500);
/// Longest hold-down; also how long a loss is remembered.
const HOLD_DOWN_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Ports {
    ports: BTreeMap<PortName, Port>,
    /// Whether the kernel's list was given at least once.
    known: bool,
}

#[derive(Debug)]
struct Port {
    network: NetworkName,
    link: Link,
    /// Losses of carrier in a row, each within `HOLD_DOWN_MAX` of the one before.
    losses: u32,
    lost: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
enum Link {
    /// Missing or without carrier.
    Out {
        reason: PortReason,
        since: Time,
    },
    /// Carrier is back; operative at `until` if it stays. `since` is when the port went out.
    Held {
        since: Time,
        until: Time,
    },
    Operative {
        since: Time,
    },
}

impl Ports {
    /// All ports of `node`, missing until the kernel's list says otherwise.
    pub(crate) fn new(node: &Node, now: Time) -> Ports {
        let port = |network: &NetworkName| Port {
            network: network.clone(),
            link: Link::Out { reason: PortReason::Missing, since: now },
            losses: 0,
            lost: None,
        };
        let ports = node.ports.iter().take(PORTS_MAX).map(|(name, p)| (name.clone(), port(&p.network)));
        Ports { ports: ports.collect(), known: false }
    }

    /// Whether the kernel's list was given at least once.
    pub(crate) fn known(&self) -> bool {
        self.known
    }

    /// Takes the kernel's full list in. Returns how many of its entries are not ports of this node.
    pub(crate) fn update(&mut self, now: Time, list: &[PortStatus], events: &mut Vec<Event>) -> u64 {
        self.known = true;
        for (name, port) in &mut self.ports {
            // Of two entries for one port the last one counts; the shell has no reason to give two.
            let seen = list.iter().rev().find(|s| s.port == *name);
            let lack = match seen {
                Some(s) if s.present && s.carrier => None,
                Some(s) if s.present => Some(PortReason::Carrier),
                _ => Some(PortReason::Missing),
            };
            events.extend(port.observe(now, name, lack));
        }
        list.iter().filter(|s| !self.ports.contains_key(&s.port)).count() as u64
    }

    /// Ends the hold-downs that are over.
    pub(crate) fn tick(&mut self, now: Time, events: &mut Vec<Event>) {
        for (name, port) in &mut self.ports {
            if let Link::Held { since, until } = port.link
                && until <= now
            {
                port.link = Link::Operative { since: now };
                events.push(Event::PortUp { port: name.clone(), out_for: now - since });
            }
        }
    }

    /// When the next hold-down ends.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let ends = self.ports.values().filter_map(|p| match p.link {
            Link::Held { until, .. } => Some(until),
            Link::Out { .. } | Link::Operative { .. } => None,
        });
        ends.min()
    }

    /// What `port` is good for; `None`: not a port of this node.
    pub(crate) fn state(&self, now: Time, port: &PortName) -> Option<PortState> {
        self.ports.get(port).map(|p| p.state(now))
    }

    /// Whether `port` can carry VIPs.
    pub(crate) fn is_operative(&self, port: &PortName) -> bool {
        self.ports.get(port).is_some_and(|p| matches!(p.link, Link::Operative { .. }))
    }

    /// Why `port` cannot carry VIPs, for a port that cannot.
    pub(crate) fn reason(&self, port: &PortName) -> PortReason {
        match self.ports.get(port).map(|p| p.link) {
            Some(Link::Out { reason, .. }) => reason,
            Some(Link::Held { .. } | Link::Operative { .. }) => PortReason::Flapping,
            None => PortReason::Missing,
        }
    }

    /// Since when `port` has been operative.
    pub(crate) fn operative_since(&self, port: &PortName) -> Option<Time> {
        match self.ports.get(port)?.link {
            Link::Operative { since } => Some(since),
            Link::Out { .. } | Link::Held { .. } => None,
        }
    }

    /// All ports as peers are told of them.
    pub(crate) fn reports(&self, now: Time) -> Vec<PortReport> {
        let report =
            |(name, port): (&PortName, &Port)| PortReport { port: name.clone(), state: port.state(now) };
        self.ports.iter().map(report).collect()
    }

    /// Names and networks of the operative ports.
    pub(crate) fn operative(&self) -> impl Iterator<Item = (&PortName, &NetworkName)> {
        let usable = self.ports.iter().filter(|(_, p)| matches!(p.link, Link::Operative { .. }));
        usable.map(|(name, port)| (name, &port.network))
    }
}

impl Port {
    /// `lack`: what the port is missing to be usable.
    fn observe(&mut self, now: Time, name: &PortName, lack: Option<PortReason>) -> Option<Event> {
        match (self.link, lack) {
            (Link::Out { since, .. }, Some(reason)) => {
                self.link = Link::Out { reason, since };
                None
            }
            (Link::Out { since, .. }, None) if self.losses == 0 => {
                self.link = Link::Operative { since: now };
                Some(Event::PortUp { port: name.clone(), out_for: now - since })
            }
            (Link::Out { since, .. }, None) => {
                self.link = Link::Held { since, until: now + self.hold_down() };
                None
            }
            (Link::Held { since, .. }, Some(reason)) => {
                self.count_loss(now);
                self.link = Link::Out { reason, since };
                None
            }
            (Link::Operative { since }, Some(reason)) => {
                self.count_loss(now);
                self.link = Link::Out { reason, since: now };
                Some(Event::PortDown {
                    port: name.clone(),
                    reason,
                    operative_for: now - since,
                    hold_down: self.hold_down(),
                })
            }
            (Link::Held { .. } | Link::Operative { .. }, None) => None,
        }
    }

    fn count_loss(&mut self, now: Time) {
        let in_a_row = self.lost.is_some_and(|lost| now - lost <= HOLD_DOWN_MAX);
        self.losses = if in_a_row { self.losses.saturating_add(1) } else { 1 };
        self.lost = Some(now);
    }

    fn hold_down(&self) -> Duration {
        // 500 ms doubled six times is past the longest.
        let doublings = self.losses.saturating_sub(1).min(6);
        (HOLD_DOWN_FIRST * 2u32.pow(doublings)).min(HOLD_DOWN_MAX)
    }

    fn state(&self, now: Time) -> PortState {
        match self.link {
            Link::Out { reason, .. } => PortState::Out(reason),
            Link::Held { .. } => PortState::Out(PortReason::Flapping),
            Link::Operative { since } => {
                PortState::Operative { for_ms: u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cluster;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn p1() -> PortName {
        "p1".into()
    }

    /// One node with port p1 that has not been seen yet.
    fn ports() -> Ports {
        Ports::new(&cluster(&["a1 east p1"], &[]).nodes[&"a1".into()], at(0))
    }

    fn carrier(ports: &mut Ports, ms: u64, carrier: bool) -> Vec<&'static str> {
        let mut events = Vec::new();
        ports.tick(at(ms), &mut events);
        ports.update(at(ms), &[PortStatus { port: p1(), present: true, carrier }], &mut events);
        events.iter().map(Event::name).collect()
    }

    fn tick(ports: &mut Ports, ms: u64) -> bool {
        ports.tick(at(ms), &mut Vec::new());
        ports.is_operative(&p1())
    }

    #[test]
    fn each_lack_has_its_reason() {
        let cases = [
            (vec![], PortState::Out(PortReason::Missing)),
            (vec![(false, true)], PortState::Out(PortReason::Missing)),
            (vec![(true, false)], PortState::Out(PortReason::Carrier)),
            (vec![(true, true)], PortState::Operative { for_ms: 0 }),
        ];
        for (list, expected) in cases {
            let mut ports = ports();
            let list: Vec<_> = list
                .into_iter()
                .map(|(present, carrier)| PortStatus { port: p1(), present, carrier })
                .collect();
            ports.update(at(5), &list, &mut Vec::new());
            assert_eq!(ports.state(at(5), &p1()), Some(expected), "{list:?}");
        }
    }

    #[test]
    fn the_first_carrier_needs_no_hold_down() {
        let mut ports = ports();
        assert_eq!(carrier(&mut ports, 10, false), [""; 0]);
        assert_eq!(carrier(&mut ports, 20, true), ["port-up"]);
        assert_eq!(ports.state(at(50), &p1()), Some(PortState::Operative { for_ms: 30 }));
    }

    #[test]
    fn after_a_loss_carrier_must_last() {
        let mut ports = ports();
        carrier(&mut ports, 0, true);
        assert_eq!(carrier(&mut ports, 1000, false), ["port-down"]);
        assert_eq!(carrier(&mut ports, 5000, true), [""; 0]);
        assert_eq!(ports.state(at(5001), &p1()), Some(PortState::Out(PortReason::Flapping)));
        assert_eq!(ports.deadline(), Some(at(5500)));
        assert!(!tick(&mut ports, 5499));
        assert!(tick(&mut ports, 5500));
    }

    #[test]
    fn the_hold_down_doubles_up_to_thirty_seconds_and_is_forgotten() {
        let mut ports = ports();
        carrier(&mut ports, 0, true);
        let mut now = 1000;
        for expected in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            carrier(&mut ports, now, false);
            carrier(&mut ports, now + 50, true);
            assert_eq!(ports.deadline(), Some(at(now + 50 + expected)));
            now += 100;
        }
        assert!(tick(&mut ports, now + 30_000));
        now += 31_000;
        carrier(&mut ports, now, false);
        carrier(&mut ports, now + 50, true);
        assert_eq!(ports.deadline(), Some(at(now + 550)), "the row of losses is over");
    }

    #[test]
    fn strangers_are_counted_and_change_nothing() {
        let mut ports = ports();
        let mut events = Vec::new();
        let list = [PortStatus { port: "eth9".into(), present: true, carrier: true }];
        assert_eq!(ports.update(at(0), &list, &mut events), 1);
        assert!(events.is_empty());
        assert!(!ports.is_operative(&"eth9".into()));
    }
}
