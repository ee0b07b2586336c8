//! The decision pass over all VIPs, run whenever anything changed. Each step is one rule, in the order of what
//! must not wait: first what this node may no longer do, then what its VIPs need, then what it may begin.
//!
//! | step | rule |
//! |---|---|
//! | `learn` | who holds what, highest epochs, since when a VIP is unserved |
//! | `yield_to_better` | of two holders the lesser removes, the better one announces |
//! | `leave_lost_ports` | a held VIP leaves a port that went out: to an own port, else it is given up |
//! | `fail_back` | a held VIP goes home when its home has been operative for long enough |
//! | `refresh` | a held VIP is announced now and then |
//! | `advance` | takes under way: give up, wait, ask again, or finish |
//! | `start` | VIPs without holder that are placed on an own port: claim and ask |

use crate::event::{DropCause, Event, Hindrance, MoveCause, Rival};
use crate::io::{Mac, Operation, Outbox, Output};
use crate::peers::{ByRight, Peers, outranks};
use crate::placement::{Unheld, View, next_port_on, plan};
use crate::ports::Ports;
use crate::scope::Scope;
use crate::tempo::Tempo;
use crate::vips::{Dropped, Probe, Record, Role};
use core::time::Duration;
use proto::cluster::{Failback, PortId, PortName, VipName};
use proto::status::{Holding, Participation, PortState, Refusal, VipEpoch};
use proto::time::Time;
use std::collections::{BTreeMap, BTreeSet};

/// How long a port is no place for a VIP whose address its kernel refused. Long enough that a VIP that no
/// kernel takes does not wander through the group without end.
const REFUSAL_HOLD: Duration = Duration::from_secs(30);

/// How old the LAN's silence may be when a VIP is taken. Shorter than a probe, so that of two claimants that do
/// not hear each other the later one still asks when the earlier one already answers.
const PROBE_FRESH: Duration = Duration::from_millis(10);

/// What a decision may look at.
pub(crate) struct Context<'a> {
    pub(crate) now: Time,
    pub(crate) tempo: Tempo,
    pub(crate) scope: &'a Scope,
    pub(crate) ports: &'a Ports,
    pub(crate) peers: &'a Peers,
    pub(crate) incarnation: u64,
    pub(crate) participation: Participation,
    /// VIPs that live peers hold.
    pub(crate) held: ByRight<'a>,
    /// VIPs that live peers claim.
    pub(crate) claimed: ByRight<'a>,
}

/// All VIPs of the group.
#[derive(Debug, Default)]
pub(crate) struct Vips {
    pub(crate) records: BTreeMap<VipName, Record>,
    /// Own ports that are no place for a VIP, until when.
    refused: BTreeMap<(VipName, PortName), Time>,
    /// Removals the kernel refused, and when to ask again.
    stuck: BTreeMap<(VipName, PortName), Time>,
    /// Probes sent in this life.
    attempts: u32,
}

impl Vips {
    pub(crate) fn new(scope: &Scope, now: Time, tempo: Tempo) -> Vips {
        let record = |name: &VipName| (name.clone(), Record::new(name.clone(), now, tempo));
        Vips {
            records: scope.vips.keys().map(record).collect(),
            refused: BTreeMap::new(),
            stuck: BTreeMap::new(),
            attempts: 0,
        }
    }

    /// The decision pass.
    pub(crate) fn decide(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        self.refused.retain(|_, until| cx.now < *until);
        self.learn(cx);
        self.yield_to_better(cx, out);
        self.leave_lost_ports(cx, out);
        self.fail_back(cx, out);
        self.records.values_mut().for_each(|record| record.refresh(cx.now, out));
        self.advance(cx, out);
        self.start(cx, out);
    }

    fn learn(&mut self, cx: &Context<'_>) {
        for (_, peer) in cx.peers.alive() {
            for (vip, epoch) in &peer.said.epochs {
                if let Some(record) = self.records.get_mut(vip) {
                    record.top_epoch = record.top_epoch.max(*epoch);
                }
            }
        }
        for places in [&cx.held, &cx.claimed] {
            for (vip, list) in places {
                if let (Some(record), Some((_, best))) = (self.records.get_mut(*vip), list.first()) {
                    record.top_epoch = record.top_epoch.max(best.epoch);
                }
            }
        }
        for record in self.records.values_mut() {
            if record.holding().is_some() {
                continue;
            }
            match cx.held.get(&record.name).and_then(|list| list.first()) {
                Some((node, place)) => {
                    let holder = PortId { node: (*node).clone(), port: place.port.clone() };
                    record.served_by(cx.now, holder, cx.tempo);
                }
                None => {
                    let last = record.last.as_ref().and_then(|last| cx.peers.get(&last.node));
                    let silent_since = last.filter(|peer| !peer.alive).and_then(|peer| peer.heard);
                    record.unserved(cx.now, &cx.scope.me, silent_since);
                }
            }
        }
    }

    fn yield_to_better(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        for record in self.records.values_mut() {
            let Some((_, epoch)) = record.holding() else { continue };
            match cx.held.get(&record.name).and_then(|list| list.first()) {
                Some((node, place)) if outranks((place.epoch, node), (epoch, &cx.scope.me)) => {
                    let cause = DropCause::Outranked { by: (*node).clone(), epoch: place.epoch };
                    record.drop(cx.now, cause, out);
                }
                Some((node, _)) => record.defend(cx.now, cx.tempo, Rival::Node((*node).clone()), out),
                None => record.close_contest(out),
            }
        }
    }

    fn leave_lost_ports(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        let lost = |record: &Record| {
            let (port, _) = record.holding()?;
            let refused = self.refused.contains_key(&(record.name.clone(), port.clone()));
            (refused || !cx.ports.is_operative(port)).then(|| (record.name.clone(), port.clone(), refused))
        };
        let lost: Vec<_> = self.records.values().filter_map(lost).collect();
        if lost.is_empty() {
            return;
        }
        let mut view = self.view(cx);
        for (vip, from, refused) in lost {
            let reason = cx.ports.reason(&from);
            let to = next_port_on(&view, &vip, &cx.scope.me, &from);
            let Some(record) = self.records.get_mut(&vip) else { continue };
            match to {
                Some(to) => {
                    let cause = if refused { MoveCause::Refused } else { MoveCause::PortOut { reason } };
                    *view.ports.entry(to.clone()).or_default() += 1;
                    record.move_to(cx.now, cx.tempo, to, cause, out);
                }
                None => {
                    let cause = if refused { DropCause::Refused } else { DropCause::PortOut { reason } };
                    record.drop(cx.now, cause, out);
                }
            }
        }
    }

    fn fail_back(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        for record in self.records.values_mut() {
            let Some((port, _)) = record.holding() else { continue };
            let Some(vip) = cx.scope.vips.get(&record.name) else { continue };
            let Failback::After(delay) = vip.failback else { continue };
            let home = &vip.home;
            if home.node != cx.scope.me {
                if remote_home_ready(cx, &record.name, home, delay) {
                    record.drop(cx.now, DropCause::Failback { home: home.node.clone() }, out);
                }
            } else if home.port != *port {
                let since = cx.ports.operative_since(&home.port);
                let refused = self.refused.contains_key(&(record.name.clone(), home.port.clone()));
                if !refused && since.is_some_and(|since| cx.now - since >= delay) {
                    record.move_to(cx.now, cx.tempo, home.clone(), MoveCause::Failback, out);
                }
            }
        }
    }

    fn advance(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        for record in self.records.values_mut() {
            let Some(port) = record.port().cloned() else { continue };
            if record.holding().is_some() {
                continue;
            }
            let held = cx.held.contains_key(&record.name);
            let rival = cx.claimed.get(&record.name).and_then(|list| list.first());
            let outdone = rival.is_some_and(|(node, place)| match record.claim() {
                Some((_, epoch)) => outranks((place.epoch, node), (epoch, &cx.scope.me)),
                // Without a claim of our own any other comes first.
                None => true,
            });
            let refused = self.refused.contains_key(&(record.name.clone(), port.clone()));
            if held || outdone || refused || !cx.ports.is_operative(&port) {
                record.stand_back(cx.now);
                continue;
            }
            let late = record.deadline().is_some_and(|until| until <= cx.now);
            match &record.role {
                Role::Claiming { epoch, told, probe: Probe::Unanswered { at }, .. } => {
                    let known = match told {
                        Some(told) => cx.peers.unaware_of(cx.incarnation, told.sequence).next().is_none(),
                        None => cx.peers.alive().next().is_none(),
                    };
                    if !known && !late {
                        continue;
                    }
                    if cx.now - *at <= PROBE_FRESH {
                        let epoch = *epoch;
                        self.stuck.remove(&(record.name.clone(), port.clone()));
                        record.take(cx.now, cx.tempo, cx.scope.own(&port), epoch, false, out);
                    } else {
                        self.attempts = self.attempts.wrapping_add(1);
                        record.claim_and_ask(cx.now, cx.tempo, port, self.attempts, out);
                    }
                }
                Role::Claiming { probe: Probe::Asked { .. }, .. } if late => {
                    record.wait(cx.now, cx.tempo, cx.scope.rank, Hindrance::ProbeLost, out);
                }
                Role::Waiting { .. } if late => record.stand_back(cx.now),
                _ => {}
            }
        }
    }

    fn start(&mut self, cx: &Context<'_>, out: &mut Outbox) {
        if cx.participation != Participation::Ready {
            return;
        }
        let unheld = self.unheld(cx);
        if unheld.is_empty() {
            return;
        }
        for (vip, place) in plan(self.view(cx), &unheld) {
            let Some(record) = self.records.get_mut(&vip) else { continue };
            match place {
                Ok(port) => {
                    record.unplaceable = None;
                    if port.node == cx.scope.me {
                        self.attempts = self.attempts.wrapping_add(1);
                        record.claim_and_ask(cx.now, cx.tempo, port.port, self.attempts, out);
                    }
                }
                Err(why) => {
                    let reason = why.describe(cx.scope, &vip);
                    if record.unplaceable.as_ref() != Some(&reason) {
                        record.unplaceable = Some(reason.clone());
                        out.event(Event::VipUnplaceable { vip, reason });
                    }
                }
            }
        }
    }

    /// VIPs that nobody holds, claims or, as far as this node goes, is about to take.
    pub(crate) fn unheld<'a>(&'a self, cx: &Context<'_>) -> Vec<Unheld<'a>> {
        let free = self.records.values().filter(|record| {
            record.role == Role::Backup
                && !cx.held.contains_key(&record.name)
                && !cx.claimed.contains_key(&record.name)
        });
        free.map(|r| Unheld { vip: &r.name, left: r.last.as_ref().map(|last| &last.node) }).collect()
    }

    /// What placement looks at.
    pub(crate) fn view<'a>(&self, cx: &Context<'a>) -> View<'a> {
        let mut ports: BTreeMap<PortId, usize> = BTreeMap::new();
        let mut refused = BTreeSet::new();
        if matches!(cx.participation, Participation::Starting | Participation::Ready) {
            ports.extend(cx.ports.operative().map(|(port, _)| (cx.scope.own(port), 0)));
            refused.extend(self.refused.keys().map(|(vip, port)| (vip.clone(), cx.scope.own(port))));
        }
        for (name, peer) in cx.peers.alive().filter(|(_, peer)| peer.said.takes_part()) {
            let id = |port: &PortName| PortId { node: name.clone(), port: port.clone() };
            let operative = peer.said.ports.iter().filter(|(_, state)| state.is_operative());
            ports.extend(operative.map(|(port, _)| (id(port), 0)));
            refused.extend(peer.said.refused.iter().map(|(vip, port)| (vip.clone(), id(port))));
        }
        let mut count = |port: PortId| {
            if let Some(load) = ports.get_mut(&port) {
                *load += 1;
            }
        };
        for port in self.records.values().filter_map(Record::port) {
            count(cx.scope.own(port));
        }
        for (node, place) in cx.held.values().chain(cx.claimed.values()).flatten() {
            count(PortId { node: (*node).clone(), port: place.port.clone() });
        }
        View { scope: cx.scope, ports, refused }
    }

    /// A VIP that was on `port` before netd started: adopted when this node may hold it, else removed.
    pub(crate) fn adopt(&mut self, cx: &Context<'_>, vip: &VipName, port: &PortName, out: &mut Outbox) {
        let may = cx.participation == Participation::Starting
            && cx.scope.fits(vip, &cx.scope.me, port)
            && cx.ports.is_operative(port)
            && !cx.held.contains_key(vip);
        match self.records.get_mut(vip) {
            Some(record) if may && record.role == Role::Backup => {
                record.take(cx.now, cx.tempo, cx.scope.own(port), 0, true, out);
            }
            _ => self.remove_foreign(vip, port, out),
        }
    }

    /// The kernel's list of VIP addresses on own ports: what is missing is put back, what is too much removed.
    pub(crate) fn reconcile(
        &mut self,
        cx: &Context<'_>,
        list: &BTreeSet<(VipName, PortName)>,
        out: &mut Outbox,
    ) {
        for record in self.records.values_mut() {
            if let Some((port, _)) = record.holding()
                && !list.contains(&(record.name.clone(), port.clone()))
            {
                record.repair(cx.now, cx.tempo, out);
            }
        }
        for (vip, port) in list {
            let held = self.records.get(vip).and_then(Record::holding);
            if held.is_none_or(|(on, _)| on != port) {
                self.remove_foreign(vip, port, out);
            }
        }
    }

    fn remove_foreign(&mut self, vip: &VipName, port: &PortName, out: &mut Outbox) {
        out.push(Output::Remove { vip: vip.clone(), port: port.clone() });
        out.event(Event::AddressForeign { vip: vip.clone(), port: port.clone() });
    }

    /// The result of an Add or Remove.
    pub(crate) fn applied(
        &mut self,
        now: Time,
        tempo: Tempo,
        key: (VipName, PortName),
        operation: Operation,
        result: Result<(), String>,
        out: &mut Outbox,
    ) {
        match (operation, result) {
            (Operation::Add, Ok(())) => {
                if let Some(record) = self.records.get_mut(&key.0) {
                    record.applied(&key.1);
                }
            }
            (Operation::Remove, Ok(())) => {
                self.stuck.remove(&key);
            }
            (operation, Err(error)) => {
                let (vip, port) = key.clone();
                out.event(Event::AddressRefused { vip, port, operation, error });
                match operation {
                    Operation::Add => self.refused.insert(key, now + REFUSAL_HOLD),
                    Operation::Remove => self.stuck.insert(key, now + tempo.lease),
                };
            }
        }
    }

    /// Asks again for removals that the kernel refused.
    pub(crate) fn retry_removals(&mut self, now: Time, tempo: Tempo, out: &mut Outbox) {
        let records = &self.records;
        self.stuck.retain(|(vip, port), _| {
            records.get(vip).and_then(Record::holding).is_none_or(|(on, _)| on != port)
        });
        for ((vip, port), next) in &mut self.stuck {
            if *next <= now {
                *next = now + tempo.lease;
                out.push(Output::Remove { vip: vip.clone(), port: port.clone() });
            }
        }
    }

    /// Gives takes up whose grounds may be outdated.
    pub(crate) fn abandon_takes(&mut self, now: Time) {
        for record in self.records.values_mut().filter(|record| record.holding().is_none()) {
            record.stand_back(now);
        }
    }

    /// Removes everything this node holds, before anything is said; gives every take up.
    pub(crate) fn remove_all(&mut self, now: Time, out: &mut Outbox) -> Vec<Dropped> {
        let dropped = self.records.values_mut().filter_map(|record| {
            let dropped = record.remove(now, out);
            record.stand_back(now);
            dropped
        });
        dropped.collect()
    }

    /// The answer to a probe.
    pub(crate) fn probe_done(
        &mut self,
        cx: &Context<'_>,
        vip: &VipName,
        attempt: u32,
        answered: Option<Mac>,
        out: &mut Outbox,
    ) {
        if let Some(record) = self.records.get_mut(vip) {
            record.probe_done(cx.now, cx.tempo, cx.scope.rank, attempt, answered, out);
        }
    }

    /// A station's frame claims a VIP.
    pub(crate) fn conflict(&mut self, now: Time, tempo: Tempo, vip: &VipName, mac: Mac, out: &mut Outbox) {
        if let Some(record) = self.records.get_mut(vip) {
            record.defend(now, tempo, Rival::Mac(mac), out);
        }
    }

    /// The start quarantine is over: adopted VIPs become ordinary ones.
    pub(crate) fn confirm_all(&mut self) {
        self.records.values_mut().for_each(Record::confirm);
    }

    /// A status with all claims has left.
    pub(crate) fn claims_told(&mut self, now: Time, tempo: Tempo, sequence: u64) {
        self.records.values_mut().for_each(|record| record.claim_told(now, tempo, sequence));
    }

    /// Whether every peer's word may matter now, even one that repeats itself.
    pub(crate) fn unsettled(&self) -> bool {
        self.records.values().any(|record| match &record.role {
            Role::Backup => false,
            Role::Holding { contest, .. } => contest.open,
            Role::Claiming { .. } | Role::Waiting { .. } => true,
        })
    }

    /// When the next VIP or refusal needs attention if nothing is heard.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let takes = self.records.values().filter_map(Record::deadline);
        takes.chain(self.refused.values().copied()).min()
    }

    pub(crate) fn holds(&self) -> Vec<Holding> {
        self.list(Record::holding)
    }

    pub(crate) fn claims(&self) -> Vec<Holding> {
        self.list(Record::claim)
    }

    fn list<'a>(&'a self, of: fn(&'a Record) -> Option<(&'a PortName, u64)>) -> Vec<Holding> {
        let entry = |record: &'a Record| {
            let (port, epoch) = of(record)?;
            Some(Holding { vip: record.name.clone(), port: port.clone(), epoch })
        };
        self.records.values().filter_map(entry).collect()
    }

    /// Epochs that a holder or claimant should know and nobody who is heard tells.
    pub(crate) fn lost_epochs(&self, held: &ByRight<'_>) -> Vec<VipEpoch> {
        let lost = self.records.values().filter(|record| {
            let told = held.get(&record.name).and_then(|list| list.first()).map(|(_, place)| place.epoch);
            let own = record.holding().map(|(_, epoch)| epoch);
            record.top_epoch > told.max(own).unwrap_or(0)
        });
        lost.map(|record| VipEpoch { vip: record.name.clone(), epoch: record.top_epoch }).collect()
    }

    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        let all = self.refused.keys().map(|(vip, port)| Refusal { vip: vip.clone(), port: port.clone() });
        all.take(proto::status::VIPS_MAX).collect()
    }
}

/// Whether the home port of a VIP, on another node, is ready to get it back. The home must take part and hear
/// this node, else it would not learn that the VIP is free.
fn remote_home_ready(cx: &Context<'_>, vip: &VipName, home: &PortId, delay: Duration) -> bool {
    let Some(peer) = cx.peers.get(&home.node).filter(|peer| peer.alive) else { return false };
    let said = &peer.said;
    let Some(PortState::Operative { for_ms }) = said.ports.get(&home.port) else { return false };
    Duration::from_millis(*for_ms) >= delay
        && said.participation == Some(Participation::Ready)
        && said.seen_me.is_some()
        && !said.refused.contains(&(vip.clone(), home.port.clone()))
}
