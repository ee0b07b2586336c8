//! The core's state as rows for people: what `keel show` prints. Reading it changes nothing.

use crate::decide::Context;
use crate::event::Hindrance;
use crate::failover::Failover;
use crate::io::Mac;
use crate::placement::{Unplaceable, View, plan, successor};
use crate::vips::{Probe, Record, Role};
use core::time::Duration;
use proto::cluster::{GroupName, NetworkName, NodeName, PortId, VipName};
use proto::status::{Participation, PortState};
use proto::time::Time;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// All rows at one instant. Durations reach back (or, where said, ahead) from that instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// This node.
    pub node: NodeName,
    /// Its group.
    pub group: GroupName,
    /// Which life of this netd it is.
    pub incarnation: u64,
    /// Whether it takes VIPs.
    pub participation: Participation,
    /// How much longer it only listens, when it does.
    pub ready_in: Option<Duration>,
    /// Ports of all nodes of the group, in name order.
    pub ports: Vec<PortRow>,
    /// VIPs of the group, in name order.
    pub vips: Vec<VipRow>,
    /// The group's other nodes, in name order.
    pub peers: Vec<PeerRow>,
    /// What was received and not used.
    pub ignored: Ignored,
}

/// One port of a node of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRow {
    /// Node and name.
    pub port: PortId,
    /// The network it is plugged into.
    pub network: NetworkName,
    /// What it is good for; `None`: its node is not heard.
    pub state: Option<PortState>,
    /// VIPs on it.
    pub vips: usize,
}

/// One VIP of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipRow {
    /// Its name.
    pub vip: VipName,
    /// Its address.
    pub address: IpAddr,
    /// Its network.
    pub network: NetworkName,
    /// Where it starts.
    pub home: PortId,
    /// How it stands, as far as this node knows.
    pub state: VipState,
    /// Who holds it, or claims it.
    pub holder: Option<PortId>,
    /// The holder's epoch; the highest known one without a holder.
    pub epoch: u64,
    /// How long it has been in this state.
    pub since: Duration,
    /// Where it would go if the port that holds it went out; where it should go, without a holder. `Err`: why
    /// nowhere.
    pub next: Result<PortId, String>,
    /// Stations other than the holder that claimed the address while this node held it.
    pub conflict: Option<Conflict>,
}

/// How a VIP stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VipState {
    /// This node or a peer that is heard holds it.
    Held,
    /// Nobody is heard to hold it, and this node is not the one to take it.
    Unheld,
    /// This node claims it and asks the LAN whether somebody answers for it.
    Probing,
    /// This node claims it, nobody on the LAN answers for it; these peers do not know of the claim yet.
    Claiming { unseen_by: Vec<NodeName> },
    /// This node should take it but waits; it tries again in `retry_in`.
    Waiting { cause: Hindrance, retry_in: Duration },
}

/// Another station's claim to a held VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The station of the last one.
    pub mac: Mac,
    /// How long ago it was.
    pub ago: Duration,
    /// How many there were in this life.
    pub times: u64,
}

/// One other node of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRow {
    /// Its name.
    pub node: NodeName,
    /// Whether it is heard.
    pub liveness: Liveness,
    /// How long ago it was heard last; `None`: never.
    pub heard: Option<Duration>,
    /// Its life; 0 when never heard.
    pub incarnation: u64,
    /// Whether it takes VIPs; `None` when it is not heard.
    pub participation: Option<Participation>,
    /// Whether it hears this node, by its own word.
    pub hears_us: bool,
}

/// Liveness of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Never heard in this life.
    Unheard,
    /// Heard within the lease.
    Alive,
    /// Heard within the lease, but its session broke since.
    Suspect,
    /// Not heard for a lease.
    Down,
}

/// Counts of what was received and not used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Status messages of nodes that are not in this group.
    pub strangers: u64,
    /// Status messages older than one heard before.
    pub stale: u64,
    /// Entries of status messages that name no VIP of the group, no port of the sender, or another network.
    pub entries: u64,
    /// Inputs of the own shell that name no own port or no VIP.
    pub inputs: u64,
}

impl Snapshot {
    pub(crate) fn of(core: &Failover, now: Time) -> Snapshot {
        let cx = core.context(now);
        let view = core.vips.view(&cx);
        // VIPs this node is busy with have their port; the others are placed as the decision pass would.
        let planned = plan(view.clone(), &core.vips.unheld(&cx));
        let rows = Rows { cx: &cx, view, planned };
        let vips: Vec<VipRow> = core.vips.records.values().filter_map(|record| rows.vip(record)).collect();
        Snapshot {
            node: core.scope.me.clone(),
            group: core.scope.group.clone(),
            incarnation: core.incarnation,
            participation: core.phase.participation(),
            ready_in: core.phase.deadline().map(|until| until - now),
            ports: rows.ports(&vips),
            vips,
            peers: rows.peers(),
            ignored: core.ignored,
        }
    }
}

/// What rows are made from.
struct Rows<'a> {
    cx: &'a Context<'a>,
    view: View<'a>,
    planned: BTreeMap<VipName, Result<PortId, Unplaceable>>,
}

impl Rows<'_> {
    fn vip(&self, record: &Record) -> Option<VipRow> {
        let Context { now, scope, .. } = *self.cx;
        let facts = scope.vips.get(&record.name)?;
        let own = record.port().map(|port| scope.own(port));
        let heard = |places: &crate::peers::ByRight<'_>| {
            let (node, place) = *places.get(&record.name)?.first()?;
            Some((PortId { node: node.clone(), port: place.port.clone() }, place.epoch))
        };
        let mut since = record.since;
        let (state, holder) = match &record.role {
            Role::Holding { epoch, .. } => (VipState::Held, own.clone().map(|port| (port, *epoch))),
            Role::Claiming { epoch, probe: Probe::Asked { .. }, .. } => {
                (VipState::Probing, own.clone().map(|port| (port, *epoch)))
            }
            Role::Claiming { epoch, told, probe: Probe::Unanswered { .. }, .. } => {
                let unseen_by = match told {
                    Some(told) => {
                        self.cx.peers.unaware_of(self.cx.incarnation, told.sequence).cloned().collect()
                    }
                    None => self.cx.peers.alive().map(|(name, _)| name.clone()).collect(),
                };
                (VipState::Claiming { unseen_by }, own.clone().map(|port| (port, *epoch)))
            }
            Role::Waiting { cause, until, .. } => {
                (VipState::Waiting { cause: *cause, retry_in: *until - now }, None)
            }
            Role::Backup => {
                let holder = heard(&self.cx.held);
                since = match &record.unserved {
                    Some((since, _)) => *since,
                    None => record.held_since,
                };
                match holder {
                    Some(holder) => (VipState::Held, Some(holder)),
                    None => (VipState::Unheld, heard(&self.cx.claimed)),
                }
            }
        };
        let next = match (&state, &holder) {
            (VipState::Held, Some((port, _))) => successor(&self.view, &record.name, port),
            (_, Some((port, _))) => Ok(port.clone()),
            (_, None) => match (own, self.planned.get(&record.name)) {
                (Some(port), _) => Ok(port),
                (None, Some(place)) => place.clone(),
                (None, None) => Err(Unplaceable::NoOperativePort),
            },
        };
        let epoch = holder.as_ref().map_or(record.top_epoch, |(_, epoch)| *epoch);
        let conflict = record.conflict.map(|c| Conflict { mac: c.mac, ago: now - c.at, times: c.times });
        Some(VipRow {
            vip: record.name.clone(),
            address: facts.address,
            network: facts.network.clone(),
            home: facts.home.clone(),
            state,
            holder: holder.map(|(port, _)| port),
            epoch,
            since: now - since,
            next: next.map_err(|why| why.describe(scope, &record.name)),
            conflict,
        })
    }

    fn ports(&self, vips: &[VipRow]) -> Vec<PortRow> {
        let Context { now, scope, .. } = *self.cx;
        let mut rows = Vec::new();
        for (node, facts) in scope.file.group_members(&scope.group) {
            for (port, port_facts) in &facts.ports {
                let id = PortId { node: node.clone(), port: port.clone() };
                let state = if *node == scope.me {
                    self.cx.ports.state(now, port)
                } else {
                    let peer = self.cx.peers.get(node).filter(|peer| peer.alive);
                    peer.and_then(|peer| peer.said.ports.get(port).copied())
                };
                let on_it = |row: &&VipRow| row.state == VipState::Held && row.holder.as_ref() == Some(&id);
                let vips = vips.iter().filter(on_it).count();
                rows.push(PortRow { port: id, network: port_facts.network.clone(), state, vips });
            }
        }
        rows
    }

    fn peers(&self) -> Vec<PeerRow> {
        let row = |(node, peer): (&NodeName, &crate::peers::Peer)| PeerRow {
            node: node.clone(),
            liveness: match (peer.heard, peer.alive, peer.suspect) {
                (None, ..) => Liveness::Unheard,
                (Some(_), false, _) => Liveness::Down,
                (Some(_), true, true) => Liveness::Suspect,
                (Some(_), true, false) => Liveness::Alive,
            },
            heard: peer.heard.map(|heard| self.cx.now - heard),
            incarnation: peer.incarnation,
            participation: peer.said.participation,
            hears_us: peer.said.seen_me.is_some(),
        };
        self.cx.peers.all().map(row).collect()
    }
}
