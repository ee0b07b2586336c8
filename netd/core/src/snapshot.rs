//! The core's state as rows for people: what `keel show` prints. Reading it changes nothing.

use crate::event::Hindrance;
use crate::io::Mac;
use core::time::Duration;
use proto::cluster::VipName;
use proto::cluster::{GroupName, NetworkName, NodeName, PortId};
use proto::status::{Participation, PortState};
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
    /// Where it would go if the port that holds it went out; where it should go, without a holder. `Err`: why nowhere.
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
    /// This node asks the LAN whether somebody answers for it.
    Probing,
    /// This node has claimed it and waits until these peers know.
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
