//! What the core tells people and tests. The names are stable: logs and the console are searched for them.

use crate::io::{Mac, Operation};
use core::fmt;
use core::time::Duration;
use proto::cluster::{NodeName, PortName, VipName};
use proto::status::PortReason;

/// Something worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An own port can carry VIPs.
    PortUp { port: PortName, out_for: Duration },
    /// An own port cannot carry VIPs any more. `hold_down` is how long it must keep its carrier before it
    /// counts again.
    PortDown { port: PortName, reason: PortReason, operative_for: Duration, hold_down: Duration },
    /// A peer is heard for the first time, again, or in a new life.
    PeerUp { node: NodeName, incarnation: u64, silent_for: Option<Duration> },
    /// A peer was not heard for a lease.
    PeerDown { node: NodeName, silent_for: Duration },
    /// This node has taken a VIP.
    VipTaken { vip: VipName, port: PortName, epoch: u64, cause: TakeCause, unserved_for: Duration },
    /// This node has given a VIP up.
    VipDropped { vip: VipName, port: PortName, epoch: u64, cause: DropCause, held_for: Duration },
    /// This node has moved a VIP from one of its ports to another.
    VipMoved { vip: VipName, from: PortName, to: PortName, epoch: u64, cause: MoveCause, held_for: Duration },
    /// Somebody else claims an address that this node holds and keeps; told at most three times a lease.
    VipConflict { vip: VipName, port: PortName, with: Rival },
    /// This node would take a VIP but must wait.
    VipWaiting { vip: VipName, port: PortName, cause: Hindrance, retry_in: Duration },
    /// A VIP has no holder and no port that may carry it.
    VipUnplaceable { vip: VipName, reason: String },
    /// A held address was not on its port and was added again.
    AddressRepaired { vip: VipName, port: PortName },
    /// An address that this node does not hold was on its port and was removed.
    AddressForeign { vip: VipName, port: PortName },
    /// The kernel refused to add or remove an address.
    AddressRefused { vip: VipName, port: PortName, operation: Operation, error: String },
    /// This process stood still for longer than a lease and has given all its VIPs up.
    NodeLate { late_for: Duration, dropped: usize },
    /// This node takes VIPs from now on.
    NodeReady { after: Duration },
}

/// Why a VIP was free to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakeCause {
    /// Nobody has been heard to hold it in this node's life.
    NeverHeld,
    /// It was on this node's port when netd started.
    Leftover,
    /// Its holder fell silent.
    HolderDown { node: NodeName },
    /// Its holder gave it up.
    HolderDropped { node: NodeName },
    /// This node itself gave it up earlier.
    OwnDrop,
}

/// Why a VIP was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DropCause {
    /// Its port went out and the node has no other operative one on the network.
    PortOut { reason: PortReason },
    /// Another node holds it by better right.
    Outranked { by: NodeName, epoch: u64 },
    /// Its home port on another node is ready for it.
    Failback { home: NodeName },
    /// The kernel refused the address.
    Refused,
    /// This process stood still for longer than a lease.
    Late,
    /// The daemon stops.
    Leaving,
}

/// Why a VIP moved between two ports of its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveCause {
    /// The port it was on went out.
    PortOut { reason: PortReason },
    /// The kernel refused the address on the port it was on.
    Refused,
    /// Its home port is ready for it.
    Failback,
}

/// Who else claims a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rival {
    /// A peer that says it holds it, by lesser right.
    Node(NodeName),
    /// A station on the LAN.
    Mac(Mac),
}

/// What keeps this node from taking a VIP that it should take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// Its holder is silent, but somebody answers for the address.
    ProbeAnswered { mac: Mac },
    /// The probe's result did not come.
    ProbeLost,
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hindrance::ProbeAnswered { mac } => write!(f, "probe answered by {mac}"),
            Hindrance::ProbeLost => f.write_str("probe without result"),
        }
    }
}

impl Event {
    /// The event's stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Event::PortUp { .. } => "port-up",
            Event::PortDown { .. } => "port-down",
            Event::PeerUp { .. } => "peer-up",
            Event::PeerDown { .. } => "peer-down",
            Event::VipTaken { .. } => "vip-taken",
            Event::VipDropped { .. } => "vip-dropped",
            Event::VipMoved { .. } => "vip-moved",
            Event::VipConflict { .. } => "vip-conflict",
            Event::VipWaiting { .. } => "vip-waiting",
            Event::VipUnplaceable { .. } => "vip-unplaceable",
            Event::AddressRepaired { .. } => "address-repaired",
            Event::AddressForeign { .. } => "address-foreign",
            Event::AddressRefused { .. } => "address-refused",
            Event::NodeLate { .. } => "node-late",
            Event::NodeReady { .. } => "node-ready",
        }
    }
}
