//! What a checked cluster file says. Names are resolved: a port names its network by id, a VIP its home port.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A name as the cluster file gives it: 1 to 32 of `a-z 0-9 -`, begins with a letter, does not end with `-`.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(name.to_owned())
            }
        }
    };
}

name_type!(/// A node's name, also its host name.
    NodeName);
name_type!(/// A failover pair's name.
    PairName);
name_type!(/// A failover group's name.
    GroupName);
name_type!(/// A network's name.
    NetworkName);
name_type!(/// A port's name, unique on its node.
    PortName);
name_type!(/// A virtual address's name, unique in the cluster.
    VipName);

/// A port of a node, written `a1:p1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortId {
    /// The node that has the port.
    pub node: NodeName,
    /// The port's name there.
    pub port: PortName,
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.port)
    }
}

/// A whole checked cluster file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// Layout of the file; this release knows 1.
    pub schema: u32,
    /// The cluster's name.
    pub cluster: String,
    /// Beat and lease lengths.
    pub timing: Timing,
    /// Networks by name.
    pub networks: BTreeMap<NetworkName, Network>,
    /// Nodes by name.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Virtual addresses by name.
    pub vips: BTreeMap<VipName, Vip>,
}

/// How often nodes tell their status and how long silence is borne.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Between two status messages of a node.
    pub beat: Duration,
    /// A node not heard for this long is down.
    pub lease: Duration,
}

impl Timing {
    /// Real hardware on a LAN.
    pub const LAN: Timing = Timing { beat: Duration::from_millis(20), lease: Duration::from_millis(150) };
    /// Emulated machines that share few cores.
    pub const LAB: Timing = Timing { beat: Duration::from_millis(250), lease: Duration::from_millis(3000) };
}

/// A layer 3 network that ports attach to. At least one of the two families is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// IPv4 prefix.
    pub v4: Option<Ipv4Net>,
    /// IPv6 prefix.
    pub v6: Option<Ipv6Net>,
    /// Default gateway, inside one of the prefixes.
    pub gateway: Option<IpAddr>,
}

impl Network {
    /// The network's prefix that holds `address`, if one does.
    pub fn prefix_of(&self, address: IpAddr) -> Option<IpNet> {
        match address {
            IpAddr::V4(a) => self.v4.filter(|n| n.contains(&a)).map(IpNet::V4),
            IpAddr::V6(a) => self.v6.filter(|n| n.contains(&a)).map(IpNet::V6),
        }
    }
}

/// An appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its failover pair, if it stands in one.
    pub pair: Option<PairName>,
    /// Its failover group.
    pub group: GroupName,
    /// Its ports by name.
    pub ports: BTreeMap<PortName, Port>,
}

/// A network port of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// How the kernel's interface is found.
    pub matcher: PortMatch,
    /// The network it is plugged into.
    pub network: NetworkName,
    /// Its own IPv4 address, in the network's prefix. Data ports need none.
    pub v4: Option<Ipv4Addr>,
    /// Its own IPv6 address, in the network's prefix. Data ports need none.
    pub v6: Option<Ipv6Addr>,
}

/// How a port finds its interface: never by the kernel's name, which follows probe order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortMatch {
    /// Bus path: PCI `bus:device.function`, domain 0.
    Pci { bus: u8, device: u8, function: u8 },
    /// Permanent hardware address.
    Mac([u8; 6]),
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortMatch::Pci { bus, device, function } => write!(f, "pci:{bus:02x}:{device:02x}.{function:x}"),
            PortMatch::Mac([a, b, c, d, e, g]) => {
                write!(f, "mac:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
        }
    }
}

/// A virtual address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// The group whose nodes may hold it.
    pub group: GroupName,
    /// The network it belongs to; only ports of that network may carry it.
    pub network: NetworkName,
    /// The address, inside the network's prefix.
    pub address: IpAddr,
    /// The port it starts on.
    pub home: PortId,
    /// What protects it from having two holders.
    pub guard: Guard,
    /// When it returns home.
    pub failback: Failback,
}

/// What protects a VIP from having two holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guard {
    /// Served only with a majority's lease.
    Strict,
    /// Served whenever a probe finds nobody else serving it.
    Available,
}

/// When a VIP returns to its home port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failback {
    /// It stays where it is.
    Never,
    /// Once the home port has been operative for this long without a break.
    After(Duration),
}

impl ClusterFile {
    /// Nodes of `group`, in name order.
    pub fn group_members<'a>(
        &'a self,
        group: &'a GroupName,
    ) -> impl Iterator<Item = (&'a NodeName, &'a Node)> {
        self.nodes.iter().filter(move |(_, node)| node.group == *group)
    }

    /// The node that stands in a pair with `node`, if any.
    pub fn partner(&self, node: &NodeName) -> Option<&NodeName> {
        let pair = self.nodes.get(node)?.pair.as_ref()?;
        self.nodes
            .iter()
            .find(|(name, other)| *name != node && other.pair.as_ref() == Some(pair))
            .map(|(n, _)| n)
    }

    /// The management address of `node`: its first port with an address of its own, in port name order.
    pub fn management_address(&self, node: &NodeName) -> Option<IpAddr> {
        let ports = &self.nodes.get(node)?.ports;
        ports.values().find_map(|p| p.v4.map(IpAddr::V4).or(p.v6.map(IpAddr::V6)))
    }
}
