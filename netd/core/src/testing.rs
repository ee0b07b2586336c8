//! Cluster files for tests, in a line per node and VIP. Shared with the simulation.

use core::time::Duration;
use proto::cluster::{ClusterFile, Failback, Guard, Network, Node, Port, PortId, PortMatch, Timing, Vip};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// Builds a cluster with the networks `data` and `back`, in lab timing.
///
/// A node is `name group port...`; its pair is the first letter of its name, a port whose name begins with `b`
/// is on `back`. A VIP is `name node:port [failback seconds]`; its group is its home's, its network is its home
/// port's.
#[allow(dead_code)] // each test program uses its part
pub(crate) fn cluster(nodes: &[&str], vips: &[&str]) -> ClusterFile {
    let network = |third: u8| Network {
        v4: Some(format!("10.{third}.0.0/16").parse().unwrap()),
        v6: None,
        gateway: None,
    };
    let mut file = ClusterFile {
        schema: 1,
        cluster: "test".into(),
        timing: Timing::LAB,
        networks: [("data".into(), network(9)), ("back".into(), network(8))].into(),
        nodes: BTreeMap::new(),
        vips: BTreeMap::new(),
    };
    for line in nodes {
        let words: Vec<&str> = line.split(' ').collect();
        let port = |(at, name): (usize, &&str)| {
            let network = if name.starts_with('b') { "back" } else { "data" };
            let matcher = PortMatch::Pci { bus: 0, device: u8::try_from(at).unwrap(), function: 0 };
            ((*name).into(), Port { matcher, network: network.into(), v4: None, v6: None })
        };
        let node = Node {
            pair: Some(words[0][..1].into()),
            group: words[1].into(),
            ports: words[2..].iter().enumerate().map(port).collect(),
        };
        file.nodes.insert(words[0].into(), node);
    }
    for (at, line) in vips.iter().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let home = port_id(words[1]);
        let node = &file.nodes[&home.node];
        let after = words.get(2).map(|s| Failback::After(Duration::from_secs(s.parse().unwrap())));
        let vip = Vip {
            group: node.group.clone(),
            network: node.ports[&home.port].network.clone(),
            address: IpAddr::V4(Ipv4Addr::new(10, 9, 1, u8::try_from(at).unwrap())),
            home,
            guard: Guard::Available,
            failback: after.unwrap_or(Failback::Never),
        };
        file.vips.insert(words[0].into(), vip);
    }
    file
}

/// Reads `node:port`.
#[allow(dead_code)]
pub(crate) fn port_id(text: &str) -> PortId {
    let (node, port) = text.split_once(':').unwrap();
    PortId { node: node.into(), port: port.into() }
}
