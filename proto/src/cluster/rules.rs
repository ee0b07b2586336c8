//! What has to hold between the parts of a cluster file.
//!
//! Each function checks one kind of object and reports every breach. Values that `raw` found missing or malformed
//! are skipped: they have been reported once already, and one slip should not be told twice.

use super::diagnostic::{At, Sink, listed};
use super::raw::{GROUP_VIPS_MAX, RawFile, RawNetwork, RawNode, RawPort, RawVip};
use super::types::*;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Nodes a failover pair may have.
const PAIR_MAX: usize = 2;

/// Reports every breach of a rule.
pub(super) fn check(file: &RawFile, sink: &mut Sink<'_>) {
    let networks: Networks<'_> = file.networks.iter().map(|n| (&n.name.value, n)).collect();
    for network in &file.networks {
        check_network(network, sink);
    }
    check_overlaps(&file.networks, sink);
    let mut seen = Seen::default();
    for node in &file.nodes {
        check_node(node, &networks, &mut seen, sink);
    }
    check_pairs(&file.nodes, sink);
    check_reachability(&file.nodes, &networks, sink);
    check_data_ports(file, sink);
    check_group_sizes(&file.vips, sink);
    for vip in &file.vips {
        check_vip(vip, file, &networks, &mut seen, sink);
    }
}

type Networks<'f> = BTreeMap<&'f NetworkName, &'f RawNetwork>;

/// What may occur once in the cluster, and who has it.
#[derive(Default)]
struct Seen {
    nodes: BTreeSet<NodeName>,
    vips: BTreeSet<VipName>,
    macs: BTreeMap<PortMatch, String>,
    addresses: BTreeMap<IpAddr, String>,
}

impl Seen {
    fn claim_address(&mut self, address: &At<IpAddr>, owner: String, sink: &mut Sink<'_>) {
        match self.addresses.entry(address.value) {
            Entry::Vacant(free) => {
                free.insert(owner);
            }
            Entry::Occupied(taken) => {
                let message = format!("{} is already the address of {}", address.value, taken.get());
                sink.report(&address.place, message);
            }
        }
    }
}

fn check_network(network: &RawNetwork, sink: &mut Sink<'_>) {
    let name = &network.name.value;
    if let Some(At { value, place }) = &network.v4 {
        if !(1..=31).contains(&value.prefix_len()) {
            sink.report(place, format!("prefix length {}, expected 1 to 31", value.prefix_len()));
        } else if value.addr() != value.network() {
            sink.report_help(place, format!("{value} has host bits set"), format!("write {}", value.trunc()));
        } else if !is_unicast_v4(*value) {
            sink.report(place, format!("{value} is not a network of ordinary unicast addresses"));
        }
    }
    if let Some(At { value, place }) = &network.v6 {
        if !(1..=127).contains(&value.prefix_len()) {
            sink.report(place, format!("prefix length {}, expected 1 to 127", value.prefix_len()));
        } else if value.addr() != value.network() {
            sink.report_help(place, format!("{value} has host bits set"), format!("write {}", value.trunc()));
        } else if !is_unicast_v6(*value) {
            sink.report(place, format!("{value} is not a network of ordinary unicast addresses"));
        }
    }
    if let (Some(gateway), false) = (&network.gateway, network.broken) {
        match network.prefix_of(gateway.value) {
            None => {
                let message =
                    format!("gateway {} is outside network {name} ({})", gateway.value, network.prefixes());
                sink.report(&gateway.place, message);
            }
            Some(prefix) => report_reserved(gateway, prefix, sink),
        }
    }
}

/// A prefix that ports and VIPs can live in; link-local ones belong to the system.
fn is_unicast_v4(net: Ipv4Net) -> bool {
    let unusable = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"];
    !unusable.iter().any(|u| u.parse::<Ipv4Net>().is_ok_and(|u| overlap(IpNet::V4(u), IpNet::V4(net))))
}

fn is_unicast_v6(net: Ipv6Net) -> bool {
    let unusable = ["::/8", "fe80::/10", "ff00::/8"];
    !unusable.iter().any(|u| u.parse::<Ipv6Net>().is_ok_and(|u| overlap(IpNet::V6(u), IpNet::V6(net))))
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// One address must belong to one network: a port's network decides which VIPs it may carry.
fn check_overlaps(networks: &[RawNetwork], sink: &mut Sink<'_>) {
    let prefixes = |n: &RawNetwork| {
        let v4 = n.v4.as_ref().map(|p| (IpNet::V4(p.value), p.place.clone()));
        let v6 = n.v6.as_ref().map(|p| (IpNet::V6(p.value), p.place.clone()));
        [v4, v6].into_iter().flatten().collect::<Vec<_>>()
    };
    for (i, later) in networks.iter().enumerate() {
        for (prefix, place) in prefixes(later) {
            let hit =
                networks[..i].iter().find(|n| prefixes(n).iter().any(|(other, _)| overlap(prefix, *other)));
            if let Some(other) = hit {
                sink.report(&place, format!("{prefix} overlaps with network {}", other.name.value));
            }
        }
    }
}

impl RawNetwork {
    fn prefix_of(&self, address: IpAddr) -> Option<IpNet> {
        match address {
            IpAddr::V4(a) => self.v4.as_ref().filter(|n| n.value.contains(&a)).map(|n| IpNet::V4(n.value)),
            IpAddr::V6(a) => self.v6.as_ref().filter(|n| n.value.contains(&a)).map(|n| IpNet::V6(n.value)),
        }
    }

    fn prefixes(&self) -> String {
        let v4 = self.v4.as_ref().map(|n| n.value.to_string());
        let v6 = self.v6.as_ref().map(|n| n.value.to_string());
        listed([v4, v6].into_iter().flatten())
    }

    fn gateway(&self) -> Option<IpAddr> {
        self.gateway.as_ref().map(|g| g.value)
    }
}

impl RawPort {
    /// Its own addresses, IPv4 first.
    fn addresses(&self) -> impl Iterator<Item = At<IpAddr>> {
        let v4 = self.v4.as_ref().map(|a| At { value: IpAddr::V4(a.value), place: a.place.clone() });
        let v6 = self.v6.as_ref().map(|a| At { value: IpAddr::V6(a.value), place: a.place.clone() });
        [v4, v6].into_iter().flatten()
    }
}

fn check_node(node: &RawNode, networks: &Networks<'_>, seen: &mut Seen, sink: &mut Sink<'_>) {
    let label = node.name.as_ref().map_or("a node without a name".to_owned(), |n| n.value.to_string());
    if let Some(name) = &node.name
        && !seen.nodes.insert(name.value.clone())
    {
        sink.report(&name.place, format!("a second node {}", name.value));
    }
    if node.ports.is_empty() && !node.broken {
        sink.report(&node.place, format!("node {label} has no port"));
    }
    let (mut names, mut matches) = (BTreeSet::new(), BTreeMap::new());
    for port in &node.ports {
        let port_label = port.name.as_ref().map_or(label.clone(), |p| format!("{label}:{}", p.value));
        if let Some(name) = &port.name
            && !names.insert(&name.value)
        {
            sink.report(&name.place, format!("a second port {} on node {label}", name.value));
        }
        if let Some(matcher) = &port.matcher {
            let cluster_wide = matches!(matcher.value, PortMatch::Mac(_));
            let taken = if cluster_wide { &mut seen.macs } else { &mut matches };
            if let Some(other) = taken.insert(matcher.value.clone(), port_label.clone()) {
                sink.report(&matcher.place, format!("{} is already port {other}", matcher.value));
            }
        }
        check_port_network(port, &port_label, networks, seen, sink);
    }
}

fn check_port_network(
    port: &RawPort,
    label: &str,
    networks: &Networks<'_>,
    seen: &mut Seen,
    sink: &mut Sink<'_>,
) {
    let Some(named) = &port.network else { return };
    let Some(network) = networks.get(&named.value) else {
        report_unknown_network(named, networks, sink);
        return;
    };
    for address in port.addresses() {
        check_address(&address, "", network, networks, sink);
        seen.claim_address(&address, format!("port {label}"), sink);
    }
}

fn report_unknown_network(named: &At<NetworkName>, networks: &Networks<'_>, sink: &mut Sink<'_>) {
    if networks.is_empty() {
        return; // Told once, where the networks should be.
    }
    let help = format!("networks are: {}", listed(networks.keys()));
    sink.report_help(&named.place, format!("unknown network \"{}\"", named.value), help);
}

/// An address of a port or a VIP against the network it is said to be in.
fn check_address(
    address: &At<IpAddr>,
    what: &str,
    network: &RawNetwork,
    networks: &Networks<'_>,
    sink: &mut Sink<'_>,
) {
    if network.broken {
        return;
    }
    let name = &network.name.value;
    match network.prefix_of(address.value) {
        Some(prefix) if network.gateway() == Some(address.value) => {
            sink.report(
                &address.place,
                format!("{} is the gateway of network {name} ({prefix})", address.value),
            );
        }
        Some(prefix) => report_reserved(address, prefix, sink),
        None => {
            let other = networks.values().find(|n| n.prefix_of(address.value).is_some());
            let (message, help) = match other {
                Some(other) => (
                    format!("{what}{} is in network {}, not in {name}", address.value, other.name.value),
                    format!("network {name} is {}", network.prefixes()),
                ),
                None => (
                    format!("{what}{} is outside every network", address.value),
                    format!("network {name} is {}", network.prefixes()),
                ),
            };
            sink.report_help(&address.place, message, help);
        }
    }
}

/// The first address of a prefix names the network (or, in IPv6, any router), the last one of IPv4 all its hosts.
fn report_reserved(address: &At<IpAddr>, prefix: IpNet, sink: &mut Sink<'_>) {
    let hosts = prefix.max_prefix_len() - prefix.prefix_len();
    let reserved = match address.value {
        _ if hosts < 2 => None,
        a if a == prefix.network() => Some("the network's own address"),
        a if a.is_ipv4() && a == prefix.broadcast() => Some("the broadcast address"),
        _ => None,
    };
    if let Some(what) = reserved {
        sink.report(&address.place, format!("{} is {what} of {prefix}", address.value));
    }
}

fn check_pairs(nodes: &[RawNode], sink: &mut Sink<'_>) {
    let mut pairs: BTreeMap<&PairName, Vec<&RawNode>> = BTreeMap::new();
    for node in nodes {
        let Some(pair) = &node.pair else { continue };
        let mates = pairs.entry(&pair.value).or_default();
        if mates.len() == PAIR_MAX {
            let names = listed(mates.iter().filter_map(|m| m.name.as_ref()).map(|n| &n.value));
            sink.report(&pair.place, format!("a third node of pair {}, which has {names}", pair.value));
            continue;
        }
        let (Some(group), Some(mate)) = (&node.group, mates.first()) else {
            mates.push(node);
            continue;
        };
        if mate.group.as_ref().is_some_and(|g| g.value == group.value) {
            let other = mate.name.as_ref().map_or("another node".to_owned(), |n| n.value.to_string());
            let message = format!("pair {} has {other} in group {} already", pair.value, group.value);
            let help = "two nodes of a pair never share a group: put them into different ones";
            sink.report_help(&group.place, message, help);
        }
        mates.push(node);
    }
}

/// A node's first port with an address of its own, in port name order: where its peers look for it.
fn management_port(node: &RawNode) -> Option<(&RawPort, IpAddr)> {
    let mut ports: Vec<&RawPort> = node.ports.iter().collect();
    ports.sort_by_key(|p| p.name.as_ref().map(|n| &n.value));
    ports.into_iter().find_map(|p| Some((p, p.addresses().next()?.value)))
}

fn check_reachability(nodes: &[RawNode], networks: &Networks<'_>, sink: &mut Sink<'_>) {
    let gateway = |n: &NetworkName| networks.get(n).is_some_and(|n| n.gateway.is_some());
    for node in nodes.iter().filter(|n| !n.broken && !n.ports.is_empty()) {
        let Some(name) = &node.name else { continue };
        let Some((port, address)) = management_port(node) else {
            let message = format!("node {} has no port with an address of its own", name.value);
            sink.report_help(&name.place, message, r#"give its management port one, like v4 = "10.8.0.11""#);
            continue;
        };
        let Some(network) = &port.network else { continue };
        let group = node.group.as_ref().map(|g| &g.value);
        let mates = nodes
            .iter()
            .filter(|n| !n.broken && n.group.as_ref().map(|g| &g.value) == group && group.is_some());
        // Whoever has no address of that family at all is told by the rule above or reaches it over a gateway.
        let stranded = mates.filter(|n| n.name.is_some() && management_port(n).is_some()).find(|mate| {
            let own = |p: &&RawPort| p.addresses().any(|a| a.value.is_ipv4() == address.is_ipv4());
            let mut networks_of =
                mate.ports.iter().filter(own).filter_map(|p| p.network.as_ref()).map(|n| &n.value);
            !networks_of.any(|n| *n == network.value || gateway(n) && gateway(&network.value))
        });
        if let Some(mate) = stranded.and_then(|m| m.name.as_ref()) {
            let message = format!(
                "node {} cannot reach {} at {address} (network {})",
                mate.value, name.value, network.value
            );
            let help = "give both an address in one network, or networks with gateways";
            sink.report_help(&name.place, message, help);
        }
    }
}

/// A node that can carry no VIP has no business in a group: it needs a port beside the one it is managed by, or one
/// on a network that has VIPs of its group.
fn check_data_ports(file: &RawFile, sink: &mut Sink<'_>) {
    for node in file.nodes.iter().filter(|n| !n.broken && !n.ports.is_empty()) {
        let (Some(name), Some(group)) = (&node.name, &node.group) else { continue };
        let vips = file.vips.iter().filter(|v| v.group.as_ref().is_some_and(|g| g.value == group.value));
        let served: BTreeSet<_> = vips.filter_map(|v| v.network.as_ref()).map(|n| &n.value).collect();
        let carries = |p: &RawPort| p.network.as_ref().is_some_and(|n| served.contains(&n.value));
        if !node.ports.iter().any(|p| p.addresses().next().is_none() || carries(p)) {
            let message = format!("node {} has no data port", name.value);
            sink.report_help(
                &name.place,
                message,
                r#"add one, like { name = "p1", match = "pci:00:10.0", network = "data" }"#,
            );
        }
    }
}

fn check_group_sizes(vips: &[RawVip], sink: &mut Sink<'_>) {
    let mut counts: BTreeMap<&GroupName, usize> = BTreeMap::new();
    for group in vips.iter().filter_map(|v| v.group.as_ref()) {
        let count = counts.entry(&group.value).or_default();
        *count += 1;
        if *count == GROUP_VIPS_MAX + 1 {
            let message = format!("group {} has more than {GROUP_VIPS_MAX} VIPs", group.value);
            sink.report_help(&group.place, message, "spread them over more groups");
        }
    }
}

fn check_vip(vip: &RawVip, file: &RawFile, networks: &Networks<'_>, seen: &mut Seen, sink: &mut Sink<'_>) {
    let label = vip.name.as_ref().map_or("another VIP".to_owned(), |n| format!("VIP {}", n.value));
    if let Some(name) = &vip.name
        && !seen.vips.insert(name.value.clone())
    {
        sink.report(&name.place, format!("a second VIP {}", name.value));
    }
    if let Some(group) = &vip.group {
        let groups: BTreeSet<_> =
            file.nodes.iter().filter_map(|n| n.group.as_ref()).map(|g| &g.value).collect();
        if !groups.contains(&group.value) {
            let message = format!("group {} has no members", group.value);
            sink.report_help(&group.place, message, format!("groups are: {}", listed(groups)));
        }
    }
    let network = vip.network.as_ref().and_then(|named| {
        let network = networks.get(&named.value);
        if network.is_none() {
            report_unknown_network(named, networks, sink);
        }
        network
    });
    if let Some(address) = &vip.address {
        if let Some(network) = network {
            check_address(address, "VIP ", network, networks, sink);
        }
        seen.claim_address(address, label, sink);
    }
    check_home(vip, file, networks, sink);
}

fn check_home(vip: &RawVip, file: &RawFile, networks: &Networks<'_>, sink: &mut Sink<'_>) {
    let Some(At { value: home, place }) = &vip.home else { return };
    let found = file.nodes.iter().find(|n| n.name.as_ref().is_some_and(|n| n.value == home.node));
    let Some(node) = found else {
        if file.nodes.iter().any(|n| n.name.is_none()) {
            return; // It may be the one whose name could not be read.
        }
        let nodes = file.nodes.iter().filter_map(|n| n.name.as_ref()).map(|n| &n.value);
        let help = format!("nodes are: {}", listed(nodes));
        sink.report_help(place, format!("unknown node \"{}\"", home.node), help);
        return;
    };
    if let (Some(of_node), Some(of_vip)) = (&node.group, &vip.group)
        && of_node.value != of_vip.value
    {
        let message = format!("home {home} is in group {}, the VIP in {}", of_node.value, of_vip.value);
        sink.report(place, message);
    }
    let port = node.ports.iter().find(|p| p.name.as_ref().is_some_and(|n| n.value == home.port));
    match port {
        None if node.broken => {}
        None => {
            let ports = node.ports.iter().filter_map(|p| p.name.as_ref()).map(|n| &n.value);
            let help = format!("ports of {} are: {}", home.node, listed(ports));
            sink.report_help(place, format!("unknown port \"{home}\""), help);
        }
        Some(port) => {
            if let (Some(of_port), Some(of_vip)) = (&port.network, &vip.network)
                && of_port.value != of_vip.value
                && [of_port, of_vip].iter().all(|n| networks.contains_key(&n.value))
            {
                let message =
                    format!("home {home} is on network {}, the VIP on {}", of_port.value, of_vip.value);
                sink.report(place, message);
            }
        }
    }
}

/// The checked file. `None` only when a value is missing that has been reported.
pub(super) fn build(file: RawFile) -> Option<ClusterFile> {
    let network = |n: RawNetwork| {
        let network = Network {
            v4: n.v4.map(|p| p.value),
            v6: n.v6.map(|p| p.value),
            gateway: n.gateway.map(|g| g.value),
        };
        (n.name.value, network)
    };
    let port = |p: RawPort| {
        let (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>) = (p.v4.map(|a| a.value), p.v6.map(|a| a.value));
        Some((p.name?.value, Port { matcher: p.matcher?.value, network: p.network?.value, v4, v6 }))
    };
    let node = |n: RawNode| {
        let ports = n.ports.into_iter().map(port).collect::<Option<BTreeMap<_, _>>>()?;
        Some((n.name?.value, Node { pair: n.pair.map(|p| p.value), group: n.group?.value, ports }))
    };
    let vip = |v: RawVip| {
        let (group, network, home) = (v.group?.value, v.network?.value, v.home?.value);
        let address = v.address?.value;
        Some((v.name?.value, Vip { group, network, address, home, guard: v.guard, failback: v.failback }))
    };
    Some(ClusterFile {
        schema: 1,
        cluster: file.cluster?,
        timing: file.timing,
        networks: file.networks.into_iter().map(network).collect(),
        nodes: file.nodes.into_iter().map(node).collect::<Option<_>>()?,
        vips: file.vips.into_iter().map(vip).collect::<Option<_>>()?,
    })
}
