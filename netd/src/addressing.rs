//! What belongs onto the node's ports: own addresses, routes, VIPs and the rules that make their replies leave right.
//!
//! ```text
//! own address   10.8.0.11/24 on its port; default route by the network's gateway in the main table
//! each port     table 1000+ifindex: the network's prefixes by this port, and its gateway
//! each VIP      10.9.0.100/32 on its port, rule "from 10.9.0.100 lookup 1000+ifindex"
//! ```
//! A VIP's replies therefore leave by the port that holds it, whichever other port knows the same network. The rule
//! is there before the address, and gone after it.

use crate::netlink::{Address, Kernel, Link, NetlinkError, Purpose, Route, SourceRule, host_prefix};
use crate::ports::PortTable;
use crate::sysctl;
use ipnet::IpNet;
use proto::cluster::{ClusterFile, NodeName, PortName, VipName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kernel's main routing table.
const MAIN_TABLE: u32 = 254;

/// Port tables begin behind the kernel's own numbers (253 to 255).
const TABLE_BASE: u32 = 1000;

/// Metric of the first port's default route; the others follow.
const METRIC_BASE: u32 = 100;

/// The table of the port on interface `index`.
pub(crate) fn port_table(index: u32) -> u32 {
    TABLE_BASE.saturating_add(index)
}

/// What a port gets, from the cluster file alone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PortPlan {
    /// Own addresses with the network's prefix length.
    own: Vec<IpNet>,
    /// The network's prefixes.
    prefixes: Vec<IpNet>,
    gateway: Option<IpAddr>,
    metric: u32,
}

impl PortPlan {
    /// The routes once the port is interface `index`.
    fn routes(&self, index: u32) -> Vec<Route> {
        let table = port_table(index);
        let mut routes: Vec<Route> = self
            .prefixes
            .iter()
            .map(|to| Route { table, to: *to, gateway: None, index, metric: METRIC_BASE })
            .collect();
        if let Some(gateway) = self.gateway {
            let to = anywhere(gateway);
            let default = Route { table, to, gateway: Some(gateway), index, metric: METRIC_BASE };
            routes.push(default);
            // The node itself leaves by ports with an address of its own.
            if self.own.iter().any(|own| own.addr().is_ipv4() == gateway.is_ipv4()) {
                routes.push(Route { table: MAIN_TABLE, metric: self.metric, ..default });
            }
        }
        routes
    }
}

/// All addresses of the family.
fn anywhere(of: IpAddr) -> IpNet {
    let unspecified = match of {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new(unspecified, 0).expect("every family has length 0")
}

/// The node's share of the cluster file, and the kernel it is put into.
#[derive(Debug)]
pub(crate) struct Addressing {
    kernel: Kernel,
    plans: BTreeMap<PortName, PortPlan>,
    /// VIPs that this node's group may hold.
    vips: BTreeMap<VipName, IpAddr>,
}

/// What the kernel has now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// VIPs of the own group on own ports.
    pub(crate) vips: Vec<(VipName, PortName)>,
    /// Ports that lack an own address.
    pub(crate) incomplete: BTreeSet<PortName>,
    /// Addresses on own ports that the cluster file does not give this node.
    strays: Vec<Address>,
    /// Rules as the VIPs need them.
    rules: BTreeSet<SourceRule>,
}

impl Addressing {
    /// For a node that the cluster file has.
    pub(crate) fn new(kernel: Kernel, cluster: &ClusterFile, node: &NodeName) -> Addressing {
        Addressing { kernel, plans: plans(cluster, node), vips: vips(cluster, node) }
    }

    /// Address of a VIP of the own group.
    pub(crate) fn vip(&self, vip: &VipName) -> Option<IpAddr> {
        self.vips.get(vip).copied()
    }

    /// The own group's VIPs with `address`: one, by the cluster file's rules.
    pub(crate) fn vip_at(&self, address: IpAddr) -> Option<&VipName> {
        self.vips.iter().find(|(_, of)| **of == address).map(|(vip, _)| vip)
    }

    /// Addresses of all VIPs of the own group.
    pub(crate) fn vip_addresses(&self) -> BTreeSet<IpAddr> {
        self.vips.values().copied().collect()
    }

    /// Own addresses of a port.
    pub(crate) fn own(&self, port: &PortName) -> impl Iterator<Item = IpAddr> {
        self.plans.get(port).into_iter().flat_map(|plan| plan.own.iter().map(IpNet::addr))
    }

    /// Own addresses of a port, for people.
    pub(crate) fn own_text(&self, port: &PortName) -> String {
        let own = self.plans.get(port).map(|plan| plan.own.iter().map(IpNet::to_string).collect::<Vec<_>>());
        own.unwrap_or_default().join(" ")
    }

    /// Sets a port's interface up with switches, own addresses and routes. Safe to repeat; after an error a part of it
    /// may be done. `first`: the interface is new to this life and is set up even if somebody set it down.
    pub(crate) async fn set_up_port(
        &self,
        port: &PortName,
        link: &Link,
        first: bool,
    ) -> Result<(), NetlinkError> {
        sysctl::set_up_port(&link.name);
        if first && !link.up {
            self.kernel.set_up(link.index).await?;
        }
        let Some(plan) = self.plans.get(port) else { return Ok(()) };
        for own in &plan.own {
            self.kernel.add_address(link.index, own.addr(), own.prefix_len(), Purpose::Own).await?;
        }
        for route in plan.routes(link.index) {
            // One refused route (a family the kernel lacks) must not cost the others.
            if let Err(error) = self.kernel.put_route(route).await {
                tracing::warn!(%port, %error, "route not set");
            }
        }
        Ok(())
    }

    /// Puts a VIP onto `port`, which is interface `index`. After an error its rule may be there without the address.
    pub(crate) async fn add_vip(
        &self,
        address: IpAddr,
        port: &PortName,
        index: u32,
    ) -> Result<(), NetlinkError> {
        let table = port_table(index);
        self.kernel.add_rule(SourceRule { source: address, table }).await?;
        // The kernel flushes an interface's IPv4 routes in all tables when its last IPv4 address goes.
        let routes = self.plans.get(port).map(|plan| plan.routes(index)).unwrap_or_default();
        for route in routes {
            if route.table == table && route.to.addr().is_ipv4() == address.is_ipv4() {
                self.kernel.put_route(route).await?;
            }
        }
        self.kernel.add_address(index, address, host_prefix(address), Purpose::Vip).await
    }

    /// Takes a VIP off interface `index`. When the address is gone but its rule stays, that is logged and the next
    /// [`inspect`](Self::inspect) removes it: the rule alone serves nobody.
    pub(crate) async fn remove_vip(&self, address: IpAddr, index: u32) -> Result<(), NetlinkError> {
        let prefix_len = host_prefix(address);
        self.kernel.remove_address(Address { index, address, prefix_len }).await?;
        let rule = SourceRule { source: address, table: port_table(index) };
        if let Err(error) = self.kernel.remove_rule(rule).await {
            tracing::warn!(%error, "rule stays for now");
        }
        Ok(())
    }

    /// Lists what is on the ports and makes the rules fit to it.
    pub(crate) async fn inspect(&self, ports: &PortTable) -> Result<Found, NetlinkError> {
        let found = self.sort(&self.kernel.addresses().await?, ports);
        let present: BTreeSet<SourceRule> = self.kernel.rules().await?.into_iter().collect();
        for rule in present.difference(&found.rules) {
            tracing::info!(source = %rule.source, table = rule.table, "rule without its VIP removed");
            self.kernel.remove_rule(*rule).await?;
        }
        for rule in found.rules.difference(&present) {
            tracing::info!(source = %rule.source, table = rule.table, "rule of a VIP added");
            self.kernel.add_rule(*rule).await?;
        }
        Ok(found)
    }

    /// Takes addresses off own ports that an earlier configuration put there.
    pub(crate) async fn remove_strays(&self, found: &Found) -> Result<(), NetlinkError> {
        for stray in &found.strays {
            tracing::warn!(address = %stray.address, interface = stray.index, "address of nobody removed");
            self.kernel.remove_address(*stray).await?;
        }
        Ok(())
    }

    fn sort(&self, addresses: &[Address], ports: &PortTable) -> Found {
        let mut found = Found::default();
        let mut own = BTreeSet::new();
        for address in addresses {
            let Some(port) = ports.port_of(address.index) else { continue };
            let net = IpNet::new(address.address, address.prefix_len).ok();
            if self.plans.get(port).is_some_and(|plan| plan.own.iter().any(|own| Some(*own) == net)) {
                own.insert((port, address.address));
            } else if let Some(vip) = self.vip_at(address.address)
                && address.prefix_len == host_prefix(address.address)
            {
                found.vips.push((vip.clone(), port.clone()));
                found.rules.insert(SourceRule { source: address.address, table: port_table(address.index) });
            } else {
                found.strays.push(*address);
            }
        }
        for (port, _) in ports.found() {
            let Some(plan) = self.plans.get(port) else { continue };
            if plan.own.iter().any(|o| !own.contains(&(port, o.addr()))) {
                found.incomplete.insert(port.clone());
            }
        }
        found
    }
}

fn plans(cluster: &ClusterFile, node: &NodeName) -> BTreeMap<PortName, PortPlan> {
    let Some(node) = cluster.nodes.get(node) else { return BTreeMap::new() };
    let mut plans = BTreeMap::new();
    for (metric, (name, port)) in (METRIC_BASE..).zip(&node.ports) {
        let Some(network) = cluster.networks.get(&port.network) else { continue };
        let prefixes: Vec<IpNet> = network
            .v4
            .map(IpNet::V4)
            .into_iter()
            .chain(network.v6.map(IpNet::V6))
            .map(|n| n.trunc())
            .collect();
        let addresses = port.v4.map(IpAddr::V4).into_iter().chain(port.v6.map(IpAddr::V6));
        let own = addresses
            .filter_map(|address| IpNet::new(address, network.prefix_of(address)?.prefix_len()).ok())
            .collect();
        plans.insert(name.clone(), PortPlan { own, prefixes, gateway: network.gateway, metric });
    }
    plans
}

fn vips(cluster: &ClusterFile, node: &NodeName) -> BTreeMap<VipName, IpAddr> {
    let Some(node) = cluster.nodes.get(node) else { return BTreeMap::new() };
    let of_group = cluster.vips.iter().filter(|(_, vip)| vip.group == node.group);
    of_group.map(|(name, vip)| (name.clone(), vip.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use netd_core::Mac;

    const CLUSTER: &str = r#"
        schema = 1
        cluster = "demo"
        timing = { preset = "lab" }
        [networks]
        data = { v4 = "10.9.0.0/24", v6 = "fd09::/64", gateway = "10.9.0.1" }
        mgmt = { v4 = "10.8.0.0/24", gateway = "10.8.0.1" }
        [[node]]
        name = "a1"
        group = "east"
        port = [
          { name = "m", match = "mac:02:00:00:00:00:03", network = "mgmt", v4 = "10.8.0.11" },
          { name = "p1", match = "mac:02:00:00:00:00:01", network = "data" },
        ]
        [[node]]
        name = "a2"
        group = "west"
        port = [
          { name = "m", match = "mac:02:00:00:00:01:03", network = "mgmt", v4 = "10.8.0.12" },
          { name = "p1", match = "mac:02:00:00:00:01:01", network = "data" },
        ]
        [[vip]]
        name = "web"
        group = "east"
        network = "data"
        address = "10.9.0.100"
        home = "a1:p1"
        guard = "available"
        failback = "never"
        [[vip]]
        name = "west"
        group = "west"
        network = "data"
        address = "10.9.0.101"
        home = "a2:p1"
        guard = "available"
        failback = "never"
    "#;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn cluster() -> ClusterFile {
        ClusterFile::parse("cluster.toml", CLUSTER).unwrap()
    }

    #[test]
    fn routes_of_a_management_port_and_of_a_data_port() {
        let plans = plans(&cluster(), &"a1".into());
        let management = &plans[&PortName::from("m")];
        assert_eq!(management.own, [net("10.8.0.11/24")]);
        let gateway = Some(IpAddr::from([10, 8, 0, 1]));
        let route =
            |table, to: &str, gateway, index, metric| Route { table, to: net(to), gateway, index, metric };
        assert_eq!(
            management.routes(2),
            [
                route(1002, "10.8.0.0/24", None, 2, 100),
                route(1002, "0.0.0.0/0", gateway, 2, 100),
                route(254, "0.0.0.0/0", gateway, 2, 100),
            ]
        );
        let data = &plans[&PortName::from("p1")];
        let gateway = Some(IpAddr::from([10, 9, 0, 1]));
        assert_eq!(
            data.routes(3),
            [
                route(1003, "10.9.0.0/24", None, 3, 100),
                route(1003, "fd09::/64", None, 3, 100),
                route(1003, "0.0.0.0/0", gateway, 3, 100),
            ],
            "a port without an address of its own does not carry the node's own traffic"
        );
    }

    #[tokio::test]
    async fn addresses_are_sorted_by_whose_they_are() {
        let cluster = cluster();
        let (kernel, _changes) = Kernel::open().unwrap();
        let addressing = Addressing::new(kernel, &cluster, &"a1".into());
        let mut ports = PortTable::new(&cluster.nodes[&NodeName::from("a1")]);
        let link = |index, last| Link {
            index,
            name: format!("eth{index}"),
            mac: Some(Mac([2, 0, 0, 0, 0, last])),
            permanent: None,
            up: true,
            carrier: true,
        };
        ports.update(&[link(2, 3), link(3, 1), link(4, 99)]);
        let on = |index, text: &str| {
            let net = net(text);
            Address { index, address: net.addr(), prefix_len: net.prefix_len() }
        };
        let found = addressing.sort(
            &[
                on(1, "127.0.0.1/8"),
                on(4, "10.9.0.100/32"), // not a port of the node: none of netd's business
                on(2, "10.8.0.11/24"),
                on(3, "10.9.0.100/32"),
                on(3, "10.9.0.101/32"), // another group's VIP
                on(2, "10.8.0.12/24"),
            ],
            &ports,
        );
        assert_eq!(found.vips, [(VipName::from("web"), PortName::from("p1"))]);
        assert_eq!(found.strays, [on(3, "10.9.0.101/32"), on(2, "10.8.0.12/24")]);
        assert_eq!(found.rules, [SourceRule { source: [10, 9, 0, 100].into(), table: 1003 }].into());
        assert!(found.incomplete.is_empty());
        let missing = addressing.sort(&[on(2, "10.8.0.11/16")], &ports);
        assert_eq!(missing.incomplete, ["m".into()].into(), "another prefix length is another address");
    }
}
