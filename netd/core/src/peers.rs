//! The group's other nodes: who is heard, and what each said last.
//!
//! ```text
//!   Unheard --status--> Alive --no status for a lease--> Down
//!                         ^                                |
//!                         +------------status--------------+
//! ```
//! A peer's words count only while it is alive. A broken session makes a peer suspect, for people to see; it
//! decides nothing. There is no gossip: each node judges each peer by what it hears itself.

use crate::event::Event;
use crate::scope::Scope;
use core::time::Duration;
use proto::cluster::{NodeName, PortName, VipName};
use proto::status::{Holding, Participation, PortState, Seen, Status};
use proto::time::Time;
use std::collections::{BTreeMap, BTreeSet};

/// All peers of the group, heard or not.
#[derive(Debug)]
pub(crate) struct Peers {
    peers: BTreeMap<NodeName, Peer>,
    lease: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Peer {
    /// Whether it was heard within the lease.
    pub(crate) alive: bool,
    /// Its session broke after it was heard last.
    pub(crate) suspect: bool,
    /// When it was heard last in this node's life, corrected for this node's own standstills.
    pub(crate) heard: Option<Time>,
    pub(crate) incarnation: u64,
    sequence: u64,
    /// What it said last; meaningless unless `alive`.
    pub(crate) said: Said,
}

/// The usable part of a status message: names are known and fit each other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) participation: Option<Participation>,
    pub(crate) ports: BTreeMap<PortName, PortState>,
    pub(crate) holds: BTreeMap<VipName, Place>,
    pub(crate) claims: BTreeMap<VipName, Place>,
    pub(crate) epochs: BTreeMap<VipName, u64>,
    pub(crate) refused: BTreeSet<(VipName, PortName)>,
    /// How far it has heard this node.
    pub(crate) seen_me: Option<(u64, u64)>,
}

/// A port of a known node, with the epoch by which it has a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) port: PortName,
    pub(crate) epoch: u64,
}

/// What a status message amounted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// From a node outside the group, or from this one: nothing was changed.
    Stranger,
    /// Older than what the peer said before: nothing was changed.
    Stale,
    /// `changed`: the peer says something else than before, beyond times and acknowledgements. `answer`: it
    /// waits to be heard. `ignored`: entries that were left out.
    News { changed: bool, answer: bool, ignored: u64 },
}

impl Peers {
    pub(crate) fn new(scope: &Scope, lease: Duration) -> Peers {
        Peers { peers: scope.peers.iter().map(|n| (n.clone(), Peer::default())).collect(), lease }
    }

    /// Takes a peer's status in.
    pub(crate) fn receive(
        &mut self,
        now: Time,
        status: &Status,
        scope: &Scope,
        own_incarnation: u64,
        events: &mut Vec<Event>,
    ) -> Received {
        let Some(peer) = self.peers.get_mut(&status.node) else { return Received::Stranger };
        let order = (status.incarnation, status.sequence);
        let same_life = status.incarnation == peer.incarnation;
        // A lower incarnation is a late message of an earlier life, or a node whose counter was lost. The second must
        // not be shut out for ever; the first costs a lease at most.
        let reborn = !same_life && !peer.alive;
        if peer.heard.is_some() && order <= (peer.incarnation, peer.sequence) && !reborn {
            return Received::Stale;
        }
        let (said, ignored) = Said::read(status, scope, own_incarnation);
        let up = !peer.alive || !same_life;
        let changed = up || !said.says_the_same(&peer.said);
        let answer = up || said.claims.iter().any(|(vip, place)| peer.said.claims.get(vip) != Some(place));
        if up {
            let silent_for = peer.heard.map(|heard| now - heard);
            let event =
                Event::PeerUp { node: status.node.clone(), incarnation: status.incarnation, silent_for };
            events.push(event);
        }
        *peer = Peer {
            alive: true,
            suspect: false,
            heard: Some(now),
            incarnation: status.incarnation,
            sequence: status.sequence,
            said,
        };
        Received::News { changed, answer, ignored }
    }

    /// The session with `node` broke.
    pub(crate) fn suspect(&mut self, node: &NodeName) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.suspect = true;
        }
    }

    /// Declares peers down that have been silent for a lease.
    pub(crate) fn tick(&mut self, now: Time, events: &mut Vec<Event>) {
        for (name, peer) in &mut self.peers {
            if let Some(heard) = peer.heard
                && peer.alive
                && now - heard >= self.lease
            {
                peer.alive = false;
                peer.suspect = false;
                peer.said = Said::default();
                events.push(Event::PeerDown { node: name.clone(), silent_for: now - heard });
            }
        }
    }

    /// This node did not run for `gap`: what peers sent meanwhile may still wait in a queue, so it is not held
    /// against them.
    pub(crate) fn excuse(&mut self, now: Time, gap: Duration) {
        for peer in self.peers.values_mut() {
            peer.heard = peer.heard.map(|heard| (heard + gap).min(now));
        }
    }

    /// When the next peer is down if it stays silent.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let alive = self.peers.values().filter(|p| p.alive);
        alive.filter_map(|p| p.heard).min().map(|heard| heard + self.lease)
    }

    /// Peers that are alive, in name order.
    pub(crate) fn alive(&self) -> impl Iterator<Item = (&NodeName, &Peer)> {
        self.peers.iter().filter(|(_, p)| p.alive)
    }

    /// All peers, in name order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&NodeName, &Peer)> {
        self.peers.iter()
    }

    /// One peer, alive or not.
    pub(crate) fn get(&self, node: &NodeName) -> Option<&Peer> {
        self.peers.get(node)
    }

    /// Whether every peer was heard in this life.
    pub(crate) fn all_heard(&self) -> bool {
        self.peers.values().all(|p| p.heard.is_some())
    }

    /// Live peers that do not say to have heard this node's status number `sequence`. One that said it leaves
    /// is not waited for.
    pub(crate) fn unaware_of(&self, incarnation: u64, sequence: u64) -> impl Iterator<Item = &NodeName> {
        let unaware = move |said: &Said| {
            said.participation != Some(Participation::Leaving)
                && said.seen_me.is_none_or(|(i, s)| i != incarnation || s < sequence)
        };
        self.alive().filter(move |(_, p)| unaware(&p.said)).map(|(name, _)| name)
    }

    /// How far each live peer was heard.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let seen = |(name, peer): (&NodeName, &Peer)| Seen {
            node: name.clone(),
            incarnation: peer.incarnation,
            sequence: peer.sequence,
        };
        self.alive().map(seen).collect()
    }

    /// VIPs that live peers hold.
    pub(crate) fn held(&self) -> ByRight<'_> {
        Self::by_right(self.alive().map(|(name, peer)| (name, &peer.said.holds)))
    }

    /// VIPs that live peers claim.
    pub(crate) fn claimed(&self) -> ByRight<'_> {
        Self::by_right(self.alive().map(|(name, peer)| (name, &peer.said.claims)))
    }

    fn by_right<'a>(
        peers: impl Iterator<Item = (&'a NodeName, &'a BTreeMap<VipName, Place>)>,
    ) -> ByRight<'a> {
        let mut all = ByRight::new();
        for (node, places) in peers {
            for (vip, place) in places {
                all.entry(vip).or_default().push((node, place));
            }
        }
        for list in all.values_mut() {
            list.sort_by(|(a, x), (b, y)| y.epoch.cmp(&x.epoch).then_with(|| a.cmp(b)));
        }
        all
    }
}

/// For each VIP the live peers that have it, best right first; no list is empty.
pub(crate) type ByRight<'a> = BTreeMap<&'a VipName, Vec<(&'a NodeName, &'a Place)>>;

/// Whether epoch and node `a` have a better right to a VIP than `b`: higher epoch, then lower name.
pub(crate) fn outranks(a: (u64, &NodeName), b: (u64, &NodeName)) -> bool {
    a.0 > b.0 || (a.0 == b.0 && a.1 < b.1)
}

impl Said {
    /// The usable part of `status`, and how many entries were not.
    fn read(status: &Status, scope: &Scope, own_incarnation: u64) -> (Said, u64) {
        let mut ignored = 0;
        let mut keep = |known: bool| {
            ignored += u64::from(!known);
            known
        };
        let has_port = |port: &PortName| {
            scope.file.nodes.get(&status.node).is_some_and(|node| node.ports.contains_key(port))
        };
        let ports: BTreeMap<_, _> = status
            .ports
            .iter()
            .filter(|r| keep(has_port(&r.port)))
            .map(|r| (r.port.clone(), r.state))
            .collect();
        let mut places = |list: &[Holding]| -> BTreeMap<VipName, Place> {
            let fitting = list.iter().filter(|h| keep(scope.fits(&h.vip, &status.node, &h.port)));
            fitting.map(|h| (h.vip.clone(), Place { port: h.port.clone(), epoch: h.epoch })).collect()
        };
        let holds = places(&status.holds);
        let claims = places(&status.claims);
        let epochs = status.epochs.iter().filter(|e| keep(scope.vips.contains_key(&e.vip)));
        let epochs = epochs.map(|e| (e.vip.clone(), e.epoch)).collect();
        let refused = status.refused.iter().filter(|r| keep(scope.fits(&r.vip, &status.node, &r.port)));
        let refused = refused.map(|r| (r.vip.clone(), r.port.clone())).collect();
        let seen_me = status.seen.iter().find(|s| s.node == scope.me);
        let seen_me =
            seen_me.filter(|s| s.incarnation == own_incarnation).map(|s| (s.incarnation, s.sequence));
        let participation = Some(status.participation);
        (Said { participation, ports, holds, claims, epochs, refused, seen_me }, ignored)
    }

    /// Whether nothing changed that a decision could depend on, apart from what grows with time by itself.
    fn says_the_same(&self, other: &Said) -> bool {
        self.participation == other.participation
            && self.holds == other.holds
            && self.claims == other.claims
            && self.epochs == other.epochs
            && self.refused == other.refused
            && self.ports.len() == other.ports.len()
            && self
                .ports
                .iter()
                .zip(&other.ports)
                .all(|((a, x), (b, y))| a == b && x.is_operative() == y.is_operative())
    }

    /// Whether the sender is one to take VIPs, now or when it has listened long enough.
    pub(crate) fn takes_part(&self) -> bool {
        matches!(self.participation, Some(Participation::Starting | Participation::Ready))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::cluster;
    use proto::status::{PortReport, Refusal, VipEpoch};

    const LEASE: Duration = Duration::from_millis(3000);

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn scope() -> Scope {
        let nodes = ["a1 east p1 b1", "a2 west p1", "c1 east p1 b1", "d1 east p1"];
        Scope::new(&cluster(&nodes, &["web a1:p1", "far a2:p1"]), &"a1".into()).unwrap()
    }

    fn status(node: &str, incarnation: u64, sequence: u64) -> Status {
        Status {
            node: node.into(),
            incarnation,
            sequence,
            participation: Participation::Ready,
            ports: vec![],
            holds: vec![],
            claims: vec![],
            epochs: vec![],
            refused: vec![],
            seen: vec![],
        }
    }

    fn holding(vip: &str, port: &str, epoch: u64) -> Holding {
        Holding { vip: vip.into(), port: port.into(), epoch }
    }

    struct Rig {
        scope: Scope,
        peers: Peers,
        events: Vec<Event>,
    }

    impl Rig {
        fn new() -> Rig {
            let scope = scope();
            Rig { peers: Peers::new(&scope, LEASE), scope, events: Vec::new() }
        }

        fn receive(&mut self, ms: u64, status: &Status) -> Received {
            self.peers.receive(at(ms), status, &self.scope, 1, &mut self.events)
        }

        fn tick(&mut self, ms: u64) -> bool {
            self.peers.tick(at(ms), &mut self.events);
            self.peers.get(&"c1".into()).unwrap().alive
        }
    }

    #[test]
    fn a_peer_is_down_after_a_lease_of_silence_and_not_before() {
        let mut rig = Rig::new();
        rig.receive(0, &status("c1", 1, 1));
        rig.receive(1000, &status("c1", 1, 2));
        assert_eq!(rig.peers.deadline(), Some(at(4000)));
        assert!(rig.tick(3999));
        assert!(!rig.tick(4000));
        rig.receive(5000, &status("c1", 1, 3));
        let names: Vec<_> = rig.events.iter().map(Event::name).collect();
        assert_eq!(names, ["peer-up", "peer-down", "peer-up"]);
    }

    #[test]
    fn old_and_repeated_messages_neither_speak_nor_keep_alive() {
        let mut rig = Rig::new();
        rig.receive(0, &status("c1", 5, 10));
        for (incarnation, sequence) in [(5, 10), (5, 9), (4, 99)] {
            assert_eq!(rig.receive(2000, &status("c1", incarnation, sequence)), Received::Stale);
        }
        assert!(!rig.tick(3000), "a repeated message does not renew the lease");
        assert_eq!(rig.receive(3001, &status("c1", 5, 10)), Received::Stale, "nor does it raise the dead");
    }

    #[test]
    fn a_lower_incarnation_is_believed_only_of_a_peer_that_was_down() {
        let mut rig = Rig::new();
        rig.receive(0, &status("c1", 5, 10));
        assert_eq!(rig.receive(100, &status("c1", 4, 1)), Received::Stale);
        rig.tick(3000);
        assert!(matches!(rig.receive(3100, &status("c1", 4, 1)), Received::News { changed: true, .. }));
    }

    #[test]
    fn strangers_and_misfits_are_told_apart() {
        let mut rig = Rig::new();
        assert_eq!(rig.receive(0, &status("a2", 1, 1)), Received::Stranger, "another group");
        assert_eq!(rig.receive(0, &status("a1", 1, 1)), Received::Stranger, "the node itself");
        assert_eq!(rig.receive(0, &status("zz", 1, 1)), Received::Stranger, "nobody");
        let mut odd = status("c1", 1, 1);
        odd.holds = vec![
            holding("web", "p1", 1),
            holding("far", "p1", 1),  // another group's VIP
            holding("none", "p1", 1), // no VIP
            holding("web", "p9", 1),  // no port
            holding("web", "b1", 1),  // another network's port
        ];
        odd.claims = vec![holding("far", "p1", 1)];
        odd.epochs = vec![VipEpoch { vip: "far".into(), epoch: 1 }];
        odd.refused = vec![Refusal { vip: "web".into(), port: "b1".into() }];
        odd.ports = vec![PortReport { port: "p9".into(), state: PortState::Operative { for_ms: 0 } }];
        assert_eq!(rig.receive(0, &odd), Received::News { changed: true, answer: true, ignored: 8 });
        let said = &rig.peers.get(&"c1".into()).unwrap().said;
        assert_eq!(said.holds.len(), 1);
        assert!(said.claims.is_empty() && said.epochs.is_empty() && said.refused.is_empty());
        assert!(said.ports.is_empty());
    }

    #[test]
    fn only_news_are_called_changes_and_only_new_claims_want_an_answer() {
        let mut rig = Rig::new();
        let mut s = status("c1", 1, 1);
        s.ports = vec![PortReport { port: "p1".into(), state: PortState::Operative { for_ms: 0 } }];
        assert_eq!(rig.receive(0, &s), Received::News { changed: true, answer: true, ignored: 0 });
        s.sequence = 2;
        s.ports[0].state = PortState::Operative { for_ms: 250 };
        assert_eq!(rig.receive(250, &s), Received::News { changed: false, answer: false, ignored: 0 });
        s.sequence = 3;
        s.claims = vec![holding("web", "p1", 1)];
        assert_eq!(rig.receive(500, &s), Received::News { changed: true, answer: true, ignored: 0 });
        s.sequence = 4;
        s.claims.clear();
        assert_eq!(rig.receive(750, &s), Received::News { changed: true, answer: false, ignored: 0 });
    }

    #[test]
    fn a_standstill_of_our_own_is_not_held_against_peers() {
        let mut rig = Rig::new();
        rig.receive(0, &status("c1", 1, 1));
        rig.peers.excuse(at(2900), Duration::from_millis(2800));
        assert!(rig.tick(3100));
        assert!(!rig.tick(5800));
    }

    #[test]
    fn right_is_higher_epoch_then_lower_name() {
        let mut rig = Rig::new();
        for (node, epoch) in [("d1", 7), ("c1", 7)] {
            let mut s = status(node, 1, 1);
            s.holds = vec![holding("web", "p1", epoch)];
            rig.receive(0, &s);
        }
        let names = |rig: &Rig| -> Vec<String> {
            rig.peers.held()[&VipName::from("web")].iter().map(|(n, _)| n.0.clone()).collect()
        };
        assert_eq!(names(&rig), ["c1", "d1"]);
        let mut s = status("d1", 1, 2);
        s.holds = vec![holding("web", "p1", 8)];
        rig.receive(0, &s);
        assert_eq!(names(&rig), ["d1", "c1"]);
    }

    #[test]
    fn who_has_not_seen_a_status_is_known_by_life_and_number() {
        let mut rig = Rig::new();
        let mut s = status("c1", 1, 1);
        for (seen, unaware) in [
            (vec![], true),
            (vec![Seen { node: "a1".into(), incarnation: 1, sequence: 4 }], true),
            (vec![Seen { node: "a1".into(), incarnation: 2, sequence: 5 }], true),
            (vec![Seen { node: "d1".into(), incarnation: 1, sequence: 9 }], true),
            (vec![Seen { node: "a1".into(), incarnation: 1, sequence: 5 }], false),
        ] {
            s.sequence += 1;
            s.seen = seen;
            rig.receive(0, &s);
            assert_eq!(rig.peers.unaware_of(1, 5).count() == 1, unaware, "{:?}", s.seen);
        }
    }
}
