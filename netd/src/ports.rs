//! Which interface each port of the node is. By bus path or hardware address, never by the kernel's name.

use crate::netlink::Link;
use netd_core::{Mac, PortStatus};
use proto::cluster::{Node, PortMatch, PortName};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Where the kernel lists PCI devices.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// The node's ports and the interfaces they were found on.
#[derive(Debug)]
pub(crate) struct PortTable {
    matchers: BTreeMap<PortName, PortMatch>,
    /// Names of all interfaces when the bus was last looked through; it is slow to read and changes with them only.
    known: BTreeSet<(u32, String)>,
    /// Names of the interfaces at each port's bus path.
    on_bus: BTreeMap<PortName, BTreeSet<String>>,
    links: BTreeMap<PortName, Link>,
}

impl PortTable {
    pub(crate) fn new(node: &Node) -> PortTable {
        PortTable {
            matchers: node.ports.iter().map(|(name, port)| (name.clone(), port.matcher.clone())).collect(),
            known: BTreeSet::new(),
            on_bus: BTreeMap::new(),
            links: BTreeMap::new(),
        }
    }

    /// Takes the full list in. True when a port changed in any way.
    pub(crate) fn update(&mut self, list: &[Link]) -> bool {
        let names: BTreeSet<(u32, String)> = list.iter().map(|l| (l.index, l.name.clone())).collect();
        if names != self.known {
            self.on_bus = self.look_through_bus();
            self.known = names;
        }
        let found: BTreeMap<PortName, Link> = self
            .matchers
            .iter()
            .filter_map(|(port, matcher)| Some((port.clone(), self.find(port, matcher, list)?.clone())))
            .collect();
        let changed = found != self.links;
        self.links = found;
        changed
    }

    fn find<'a>(&self, port: &PortName, matcher: &PortMatch, list: &'a [Link]) -> Option<&'a Link> {
        match matcher {
            PortMatch::Pci { .. } => {
                let names = self.on_bus.get(port)?;
                list.iter().find(|link| link.mac.is_some() && names.contains(&link.name))
            }
            PortMatch::Mac(mac) => {
                // Bridges, bonds and VLANs bear the address of a member: the permanent one tells them apart.
                let by = |of: fn(&Link) -> Option<Mac>| list.iter().find(move |l| of(l) == Some(Mac(*mac)));
                by(|l| l.permanent).or_else(|| by(|l| l.mac.filter(|_| l.permanent.is_none())))
            }
        }
    }

    fn look_through_bus(&self) -> BTreeMap<PortName, BTreeSet<String>> {
        self.matchers
            .iter()
            .filter_map(|(port, matcher)| match matcher {
                PortMatch::Pci { bus, device, function } => {
                    let address = format!("0000:{bus:02x}:{device:02x}.{function:x}");
                    Some((port.clone(), interfaces_of(&Path::new(PCI_DEVICES).join(address))))
                }
                PortMatch::Mac(_) => None,
            })
            .collect()
    }

    /// The port's interface.
    pub(crate) fn link(&self, port: &PortName) -> Option<&Link> {
        self.links.get(port)
    }

    /// The port that sits on interface `index`.
    pub(crate) fn port_of(&self, index: u32) -> Option<&PortName> {
        self.links.iter().find(|(_, link)| link.index == index).map(|(port, _)| port)
    }

    /// Ports that have an interface.
    pub(crate) fn found(&self) -> impl Iterator<Item = (&PortName, &Link)> {
        self.links.iter()
    }

    /// Whether `mac` is one of the node's own.
    pub(crate) fn is_own(&self, mac: Mac) -> bool {
        self.links.values().any(|link| link.mac == Some(mac))
    }

    /// The core's view of all ports.
    pub(crate) fn status(&self) -> Vec<PortStatus> {
        self.matchers
            .keys()
            .map(|port| {
                let link = self.links.get(port);
                PortStatus {
                    port: port.clone(),
                    present: link.is_some_and(|link| link.up),
                    carrier: link.is_some_and(|link| link.carrier),
                }
            })
            .collect()
    }
}

/// Names of the interfaces of a PCI device: its own, or those of the virtio device on it.
fn interfaces_of(device: &Path) -> BTreeSet<String> {
    let list = |path: &Path| -> Vec<String> {
        // No such device or no interface there: an empty list.
        let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    };
    let mut names: BTreeSet<String> = list(&device.join("net")).into_iter().collect();
    for child in list(device).into_iter().filter(|name| name.starts_with("virtio")) {
        names.extend(list(&device.join(child).join("net")));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::cluster::{GroupName, NetworkName, Port};
    use std::path::PathBuf;

    fn node(ports: &[(&str, PortMatch)]) -> Node {
        let port = |matcher: &PortMatch| Port {
            matcher: matcher.clone(),
            network: NetworkName::from("data"),
            v4: None,
            v6: None,
        };
        let ports = ports.iter().map(|(name, matcher)| (PortName::from(*name), port(matcher))).collect();
        Node { pair: None, group: GroupName::from("east"), ports }
    }

    fn link(index: u32, mac: u8, permanent: Option<u8>) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: Some(Mac([mac; 6])),
            permanent: permanent.map(|p| Mac([p; 6])),
            up: true,
            carrier: true,
        }
    }

    #[test]
    fn permanent_address_wins_over_a_borrowed_one() {
        let mut table =
            PortTable::new(&node(&[("p1", PortMatch::Mac([5; 6])), ("p2", PortMatch::Mac([6; 6]))]));
        // Interface 2 is a bond's member: it bears the bond's address now. Interface 3 has none of its own.
        let list = [link(1, 5, Some(4)), link(2, 9, Some(5)), link(3, 6, None)];
        assert!(table.update(&list));
        assert_eq!(table.link(&"p1".into()).map(|l| l.index), Some(2));
        assert_eq!(table.link(&"p2".into()).map(|l| l.index), Some(3));
        assert_eq!(table.port_of(2), Some(&"p1".into()));
        assert_eq!(table.port_of(1), None);
        assert!(table.is_own(Mac([9; 6])) && !table.is_own(Mac([4; 6])));
        assert!(!table.update(&list), "an unchanged list changes nothing");
    }

    #[test]
    fn status_lists_every_port() {
        let mut table =
            PortTable::new(&node(&[("p1", PortMatch::Mac([5; 6])), ("p2", PortMatch::Mac([6; 6]))]));
        table.update(&[Link { up: false, carrier: false, ..link(1, 5, None) }]);
        let status = |port: &str, present, carrier| PortStatus { port: port.into(), present, carrier };
        assert_eq!(table.status(), [status("p1", false, false), status("p2", false, false)]);
        assert!(table.update(&[Link { carrier: false, ..link(1, 5, None) }]));
        assert_eq!(table.status(), [status("p1", true, false), status("p2", false, false)]);
    }

    struct Tree(PathBuf);

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn interfaces_are_found_below_their_device() {
        let root = Tree(std::env::temp_dir().join(format!("netd-ports-{}", std::process::id())));
        for path in ["virtio/virtio3/net/eth0", "real/net/enp1s0", "disk/virtio1/block/vda"] {
            fs::create_dir_all(root.0.join(path)).unwrap();
        }
        let of = |device: &str| interfaces_of(&root.0.join(device)).into_iter().collect::<Vec<_>>();
        assert_eq!(of("virtio"), ["eth0"]);
        assert_eq!(of("real"), ["enp1s0"]);
        assert!(of("disk").is_empty() && of("nothing").is_empty());
    }
}
