//! From a cluster file to wiring: which node gets which interfaces, with which hardware addresses, in which slots.

use crate::error::LabError;
use proto::cluster::{ClusterFile, NetworkName, PortId, PortMatch};
use std::fmt;

/// A PCI address on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciSlot {
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciSlot {
    /// As QEMU's `addr=` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.function {
            0 => write!(f, "0x{:02x}", self.device),
            function => write!(f, "0x{:02x}.{function}", self.device),
        }
    }
}

/// A port's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Whose and which.
    pub id: PortId,
    /// Its hardware address in this lab.
    pub mac: [u8; 6],
    /// Where the guest finds it.
    pub slot: PciSlot,
    /// The network its wire leads to.
    pub network: NetworkName,
}

/// A node's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// The node's name.
    pub name: String,
    /// Its failover pair, if it stands in one.
    pub pair: Option<String>,
    /// Its group.
    pub group: String,
    /// Its ports in name order.
    pub ports: Vec<PortPlan>,
}

/// The slots the lab uses itself: host bridge, watchdog, random numbers, disk, serial port, chipset.
const OWN_SLOTS: [u8; 6] = [0x00, 0x03, 0x04, 0x05, 0x06, 0x1f];
/// Ports found by hardware address take slots from here on.
const FREE_SLOTS: std::ops::Range<u8> = 0x18..0x1f;
/// Node and port numbers are one byte of the hardware address each.
const NODES_MAX: usize = 64;

/// Reads and checks a cluster file's text; `path` is what its errors call it.
///
/// # Errors
/// All of the file's diagnostics in one text, each with its line and caret.
pub fn parse(path: &str, text: &str) -> Result<ClusterFile, LabError> {
    ClusterFile::parse(path, text)
        .map_err(|diagnostics| LabError::Refused(format!("the cluster file has errors\n{diagnostics}")))
}

/// Plans every node's machine. The same file gives the same addresses every time.
pub fn wire(cluster: &ClusterFile) -> Result<Vec<NodePlan>, LabError> {
    if cluster.nodes.len() > NODES_MAX {
        return Err(LabError::Refused(format!(
            "the lab runs at most {NODES_MAX} nodes, the cluster file has {}",
            cluster.nodes.len()
        )));
    }
    let mut plans = Vec::new();
    for (number, (name, node)) in cluster.nodes.iter().enumerate() {
        let mut ports: Vec<PortPlan> = Vec::new();
        let mut free = FREE_SLOTS;
        for (index, (port, spec)) in node.ports.iter().enumerate() {
            let id = PortId { node: name.clone(), port: port.clone() };
            let (slot, mac) = match spec.matcher {
                PortMatch::Pci { bus: 0, device, function } if !OWN_SLOTS.contains(&device) => {
                    (PciSlot { device, function }, [0x52, 0x54, 0x00, 0x09, number as u8, index as u8])
                }
                PortMatch::Pci { .. } => {
                    return Err(LabError::Refused(format!(
                        "port {id} is matched by {}: the lab has free slots on bus 00 only, not one of 00 03 04 05 06 1f",
                        spec.matcher
                    )));
                }
                PortMatch::Mac(mac) => {
                    let device = free.next().ok_or_else(|| {
                        LabError::Refused(format!(
                            "port {id}: the lab has room for 7 ports matched by mac per node"
                        ))
                    })?;
                    (PciSlot { device, function: 0 }, mac)
                }
            };
            if let Some(other) = ports.iter().find(|p| p.slot == slot) {
                return Err(LabError::Refused(format!(
                    "ports {} and {id} both want PCI slot {slot}",
                    other.id
                )));
            }
            ports.push(PortPlan { id, mac, slot, network: spec.network.clone() });
        }
        plans.push(NodePlan {
            name: name.0.clone(),
            pair: node.pair.as_ref().map(|p| p.0.clone()),
            group: node.group.0.clone(),
            ports,
        });
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::cluster::{Network, Node, Port, PortName, Timing};

    fn cluster(matchers: &[PortMatch]) -> ClusterFile {
        let ports = matchers.iter().enumerate().map(|(i, matcher)| {
            let port = Port { matcher: matcher.clone(), network: "data".into(), v4: None, v6: None };
            (PortName(format!("p{i}")), port)
        });
        let node = Node { pair: None, group: "east".into(), ports: ports.collect() };
        ClusterFile {
            schema: 1,
            cluster: "t".into(),
            timing: Timing::LAB,
            networks: [("data".into(), Network { v4: None, v6: None, gateway: None })].into(),
            nodes: [("a1".into(), node.clone()), ("a2".into(), node)].into(),
            vips: [].into(),
        }
    }

    fn pci(device: u8, function: u8) -> PortMatch {
        PortMatch::Pci { bus: 0, device, function }
    }

    #[test]
    fn slots_follow_the_file_and_addresses_are_distinct() {
        let plans =
            wire(&cluster(&[pci(0x10, 0), pci(0x11, 1), PortMatch::Mac([2, 0, 0, 0, 0, 7])])).expect("valid");
        let slots: Vec<String> = plans[1].ports.iter().map(|p| p.slot.to_string()).collect();
        assert_eq!(slots, ["0x10", "0x11.1", "0x18"]);
        assert_eq!(plans[1].ports[1].mac, [0x52, 0x54, 0, 9, 1, 1]);
        assert_eq!(plans[1].ports[2].mac, [2, 0, 0, 0, 0, 7]);
        assert_ne!(plans[0].ports[0].mac, plans[1].ports[0].mac);
    }

    #[test]
    fn what_cannot_be_wired_is_named() {
        let cases: [(&[PortMatch], &str); 3] = [
            (&[pci(0x03, 0)], "a1:p0"),
            (&[PortMatch::Pci { bus: 1, device: 0x10, function: 0 }], "pci:01:10.0"),
            (&[pci(0x10, 0), pci(0x10, 0)], "both want"),
        ];
        for (matchers, part) in cases {
            let error = wire(&cluster(matchers)).expect_err("refused").to_string();
            assert!(error.contains(part), "{error} names {part}");
        }
    }
}
