//! The cluster file as written: every value has the right shape by itself, nothing is compared with anything else.
//!
//! What is missing or malformed is reported here and stands as `None`, so that `rules` can go on with the rest and
//! one reading tells as much as possible.

use super::diagnostic::{At, Place, Sink, quoted};
use super::reader::{Node, TableReader, array, entries, integer, string, wrong_type};
use super::types::*;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use ipnet::{Ipv4Net, Ipv6Net};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Layouts of the file this release reads.
const SCHEMA: u64 = 1;
/// Nodes of a cluster: the full mesh of status messages is sized for it.
pub const NODES_MAX: usize = 64;
/// Ports of one node; each is a term of every beat.
pub const PORTS_MAX: usize = 16;
/// Virtual addresses of a cluster.
pub const VIPS_MAX: usize = 4096;
/// Virtual addresses of one group: the last node left must be able to tell all of them in one status message.
pub const GROUP_VIPS_MAX: usize = 1024;
/// Networks of a cluster: no more than ports of one node could use twice over.
pub const NETWORKS_MAX: usize = 32;
/// Characters of a name.
const NAME_MAX: usize = 32;
/// Explicit beat lengths, milliseconds. Below it a busy machine's scheduler decides, above it nobody would wait.
const BEAT_MS: core::ops::RangeInclusive<u64> = 10..=10_000;
/// Longest explicit lease, milliseconds.
const LEASE_MS_MAX: u64 = 60_000;
/// A lease must outlive two lost beats.
const BEATS_PER_LEASE: u64 = 3;
/// Seconds a returned home port may be watched before its VIP goes back.
const FAILBACK_S: core::ops::RangeInclusive<u64> = 1..=86_400;

const TIMING_HELP: &str = r#"write { preset = "lan" }, { preset = "lab" } or { preset = "explicit", beat_ms = 50, lease_ms = 300 }"#;
const FAILBACK_HELP: &str = r#"write "never" or { after_s = 300 }"#;
const MATCH_HELP: &str = "write pci:BUS:DEVICE.FUNCTION like pci:00:10.0, or mac:52:54:00:09:00:0a";

pub(super) struct RawFile {
    pub(super) cluster: Option<String>,
    pub(super) timing: Timing,
    pub(super) networks: Vec<RawNetwork>,
    pub(super) nodes: Vec<RawNode>,
    pub(super) vips: Vec<RawVip>,
}

pub(super) struct RawNetwork {
    pub(super) name: At<NetworkName>,
    pub(super) v4: Option<At<Ipv4Net>>,
    pub(super) v6: Option<At<Ipv6Net>>,
    pub(super) gateway: Option<At<IpAddr>>,
    /// Part of it was unreadable: addresses cannot be judged against it.
    pub(super) broken: bool,
}

pub(super) struct RawNode {
    pub(super) place: Place,
    pub(super) name: Option<At<NodeName>>,
    pub(super) pair: Option<At<PairName>>,
    pub(super) group: Option<At<GroupName>>,
    pub(super) ports: Vec<RawPort>,
    /// A port of it was unreadable: its set of ports cannot be judged.
    pub(super) broken: bool,
}

pub(super) struct RawPort {
    pub(super) name: Option<At<PortName>>,
    pub(super) matcher: Option<At<PortMatch>>,
    pub(super) network: Option<At<NetworkName>>,
    pub(super) v4: Option<At<Ipv4Addr>>,
    pub(super) v6: Option<At<Ipv6Addr>>,
}

pub(super) struct RawVip {
    pub(super) name: Option<At<VipName>>,
    pub(super) group: Option<At<GroupName>>,
    pub(super) network: Option<At<NetworkName>>,
    pub(super) address: Option<At<IpAddr>>,
    pub(super) home: Option<At<PortId>>,
    pub(super) guard: Guard,
    pub(super) failback: Failback,
}

/// Reads the whole tree. `None` when nothing beyond the reported problems is worth looking at.
pub(super) fn read(root: &Spanned<DeTable<'_>>, sink: &mut Sink<'_>) -> Option<RawFile> {
    let keys = &["schema", "cluster", "timing", "networks", "node", "vip"];
    // Another schema has other keys: its number is checked before they are called unknown.
    let everything = &mut Sink::new("", "");
    let top = TableReader::new(root.get_ref(), Place::file(), keys, everything);
    let schema = integer(&top.require("schema", "schema = 1", sink)?, sink)?;
    if schema.value != SCHEMA {
        let message = format!("schema {} is not known to this release", schema.value);
        sink.report_help(&schema.place, message, format!("this release reads schema = {SCHEMA}"));
        return None;
    }
    let top = TableReader::new(root.get_ref(), Place::file(), keys, sink);
    let cluster = top.require("cluster", r#"cluster = "NAME""#, sink);
    let cluster = cluster.and_then(|n| name::<String>(&n, sink)).map(|n| n.value);
    let timing = top.get("timing").and_then(|n| read_timing(&n, sink)).unwrap_or(Timing::LAN);
    let example = r#"[networks] with data = { v4 = "10.9.0.0/24" }"#;
    let networks =
        top.require("networks", example, sink).map(|n| read_networks(&n, sink)).unwrap_or_default();
    let nodes = top.require("node", "a [[node]] table for each appliance", sink);
    let nodes =
        nodes.map(|n| array(&n, NODES_MAX, "nodes", "write a [[node]] table for each appliance", sink));
    let nodes = nodes.unwrap_or_default().iter().filter_map(|n| read_node(n, sink)).collect();
    let vips = top.get("vip");
    let vips = vips.map(|n| array(&n, VIPS_MAX, "VIPs", "write a [[vip]] table for each address", sink));
    let vips = vips.unwrap_or_default().iter().filter_map(|n| read_vip(n, sink)).collect();
    Some(RawFile { cluster, timing, networks, nodes, vips })
}

fn read_timing(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<Timing> {
    if !matches!(node.value, DeValue::Table(_)) {
        wrong_type(&node.place, "a table", node.value, TIMING_HELP.to_owned(), sink);
        return None;
    }
    let table = TableReader::of(node, &["preset", "beat_ms", "lease_ms"], sink)?;
    let (beat, lease) = (table.get("beat_ms"), table.get("lease_ms"));
    let preset = match table.get("preset") {
        Some(preset) => Some(string(&preset, TIMING_HELP, sink)?),
        None => None,
    };
    let fixed = match preset.as_ref().map(|p| p.value.as_str()) {
        Some("lan") => Timing::LAN,
        Some("lab") => Timing::LAB,
        Some("explicit") => return explicit_timing(&table, beat, lease, sink),
        None if beat.is_some() || lease.is_some() => return explicit_timing(&table, beat, lease, sink),
        None => {
            sink.report_help(&table.place, "timing says nothing", TIMING_HELP);
            return None;
        }
        Some(other) => {
            let place = preset.as_ref().map_or(&table.place, |p| &p.place);
            sink.report_help(
                place,
                format!("unknown preset {}", quoted(other)),
                "presets are: lan, lab, explicit",
            );
            return None;
        }
    };
    for own in [beat, lease].into_iter().flatten() {
        sink.report_help(
            &own.place,
            "a preset has its own lengths",
            r#"take it out, or write preset = "explicit""#,
        );
    }
    Some(fixed)
}

fn explicit_timing(
    table: &TableReader<'_, '_>,
    beat: Option<Node<'_, '_>>,
    lease: Option<Node<'_, '_>>,
    sink: &mut Sink<'_>,
) -> Option<Timing> {
    let missing =
        [("beat_ms", beat.is_none(), "beat_ms = 50"), ("lease_ms", lease.is_none(), "lease_ms = 300")];
    for (key, _, example) in missing.iter().filter(|(_, missing, _)| *missing) {
        sink.report_help(&table.place, format!("key {key:?} is missing"), format!("add {example}"));
    }
    let (beat, lease) = (integer(&beat?, sink)?, integer(&lease?, sink)?);
    if !BEAT_MS.contains(&beat.value) {
        let message =
            format!("a beat of {} ms, expected {} to {}", beat.value, BEAT_MS.start(), BEAT_MS.end());
        sink.report(&beat.place, message);
        return None;
    }
    if lease.value < BEATS_PER_LEASE * beat.value {
        let message =
            format!("a lease of {} ms is shorter than three beats of {} ms", lease.value, beat.value);
        sink.report_help(&lease.place, message, format!("write at least {}", BEATS_PER_LEASE * beat.value));
        return None;
    }
    if lease.value > LEASE_MS_MAX {
        sink.report(
            &lease.place,
            format!("a lease of {} ms, at most {LEASE_MS_MAX} are supported", lease.value),
        );
        return None;
    }
    Some(Timing { beat: Duration::from_millis(beat.value), lease: Duration::from_millis(lease.value) })
}

fn read_networks(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Vec<RawNetwork> {
    let found = entries(node, r#"write [networks] with lines like data = { v4 = "10.9.0.0/24" }"#, sink);
    if found.is_empty() && matches!(node.value, DeValue::Table(_)) {
        sink.report_help(&node.place, "no network", r#"add one like data = { v4 = "10.9.0.0/24" }"#);
    }
    if let Some((extra, _)) = found.get(NETWORKS_MAX) {
        let message = format!("{} networks, at most {NETWORKS_MAX} are supported", found.len());
        sink.report(&extra.place, message);
    }
    found.into_iter().take(NETWORKS_MAX).filter_map(|(name, node)| read_network(name, &node, sink)).collect()
}

fn read_network(key: At<String>, node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<RawNetwork> {
    let name = checked_name::<NetworkName>(key, sink)?;
    let mut network = RawNetwork { name, v4: None, v6: None, gateway: None, broken: true };
    let Some(table) = TableReader::of(node, &["v4", "v6", "gateway"], sink) else {
        return Some(network);
    };
    let fields = [table.get("v4").is_some(), table.get("v6").is_some(), table.get("gateway").is_some()];
    network.v4 =
        table.get("v4").and_then(|n| parsed(&n, "an IPv4 prefix", "write it like 10.9.0.0/24", sink));
    network.v6 = table.get("v6").and_then(|n| parsed(&n, "an IPv6 prefix", "write it like fd09::/64", sink));
    network.gateway =
        table.get("gateway").and_then(|n| parsed(&n, "an IP address", "write it like 10.9.0.1", sink));
    let read = [network.v4.is_some(), network.v6.is_some(), network.gateway.is_some()];
    if !fields[0] && !fields[1] {
        sink.report_help(
            &table.place,
            "network without a prefix",
            r#"add v4 = "10.9.0.0/24" or v6 = "fd09::/64""#,
        );
    } else {
        network.broken = fields != read;
    }
    Some(network)
}

fn read_node(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<RawNode> {
    let table = TableReader::of(node, &["name", "pair", "group", "port"], sink)?;
    let own = table.require("name", r#"name = "a1""#, sink).and_then(|n| name(&n, sink));
    let pair = table.get("pair").and_then(|n| name(&n, sink));
    let group = table.require("group", r#"group = "east": each node is in exactly one group"#, sink);
    let group = group.and_then(|n| group_name(&n, sink));
    let example = r#"port = [ { name = "p1", match = "pci:00:10.0", network = "data" } ]"#;
    let found = table.require("port", example, sink);
    let unread = found.is_none();
    let found = found.map(|n| array(&n, PORTS_MAX, "ports", example, sink)).unwrap_or_default();
    let ports: Vec<RawPort> = found.iter().filter_map(|n| read_port(n, sink)).collect();
    let whole = |p: &RawPort| p.name.is_some() && p.matcher.is_some() && p.network.is_some();
    let broken = unread || ports.len() < found.len() || !ports.iter().all(whole);
    Some(RawNode { place: table.place, name: own, pair, group, ports, broken })
}

/// A list of groups is a likely guess: it gets the rule as its answer, not only the expected type.
fn group_name(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<At<GroupName>> {
    if let DeValue::Array(_) = node.value {
        sink.report_help(&node.place, "a node is in exactly one group", r#"write group = "east""#);
        return None;
    }
    name(node, sink)
}

fn read_port(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<RawPort> {
    let table = TableReader::of(node, &["name", "match", "network", "v4", "v6"], sink)?;
    Some(RawPort {
        name: table.require("name", r#"name = "p1""#, sink).and_then(|n| name(&n, sink)),
        matcher: table.require("match", r#"match = "pci:00:10.0""#, sink).and_then(|n| read_match(&n, sink)),
        network: table.require("network", r#"network = "data""#, sink).and_then(|n| name(&n, sink)),
        v4: table
            .get("v4")
            .and_then(|n| parsed(&n, "an IPv4 address", "write it like 10.8.0.11, without prefix", sink)),
        v6: table
            .get("v6")
            .and_then(|n| parsed(&n, "an IPv6 address", "write it like fd08::11, without prefix", sink)),
    })
}

fn read_match(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<At<PortMatch>> {
    let text = string(node, MATCH_HELP, sink)?;
    let parsed = match text.value.split_once(':') {
        Some(("pci", path)) => parse_pci(path),
        Some(("mac", address)) => parse_mac(address),
        _ => None,
    };
    let Some(value) = parsed else {
        sink.report_help(
            &text.place,
            format!("{} does not name an interface", quoted(&text.value)),
            MATCH_HELP,
        );
        return None;
    };
    if let PortMatch::Mac(mac) = value
        && (mac[0] & 1 == 1 || mac == [0; 6])
    {
        sink.report(&text.place, format!("{value} is not the address of one interface"));
        return None;
    }
    Some(At { value, place: text.place })
}

/// `BUS:DEVICE.FUNCTION` in hex, as `lspci` prints it.
fn parse_pci(path: &str) -> Option<PortMatch> {
    let (bus, rest) = path.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let (bus, device, function) = (hex(bus, 2)?, hex(device, 2)?, hex(function, 1)?);
    (device <= 0x1f && function <= 7).then_some(PortMatch::Pci { bus, device, function })
}

fn parse_mac(address: &str) -> Option<PortMatch> {
    let mut mac = [0; 6];
    let mut parts = address.split(':');
    for byte in &mut mac {
        *byte = hex(parts.next()?, 2)?;
    }
    parts.next().is_none().then_some(PortMatch::Mac(mac))
}

fn hex(digits: &str, len: usize) -> Option<u8> {
    let fits = digits.len() == len && digits.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

fn read_vip(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<RawVip> {
    let keys = &["name", "group", "network", "address", "home", "guard", "failback", "requires"];
    let table = TableReader::of(node, keys, sink)?;
    if let Some(requires) = table.get("requires") {
        read_requires(&requires, sink);
    }
    let address = table.require("address", r#"address = "10.9.0.100""#, sink);
    Some(RawVip {
        name: table.require("name", r#"name = "web""#, sink).and_then(|n| name(&n, sink)),
        group: table.require("group", r#"group = "east""#, sink).and_then(|n| name(&n, sink)),
        network: table.require("network", r#"network = "data""#, sink).and_then(|n| name(&n, sink)),
        address: address
            .and_then(|n| parsed(&n, "an IP address", "write it like 10.9.0.100, without prefix", sink)),
        home: table.require("home", r#"home = "a1:p1""#, sink).and_then(|n| read_home(&n, sink)),
        guard: table.get("guard").and_then(|n| read_guard(&n, sink)).unwrap_or(Guard::Available),
        failback: table.get("failback").and_then(|n| read_failback(&n, sink)).unwrap_or(Failback::Never),
    })
}

fn read_home(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<At<PortId>> {
    let help = "write NODE:PORT like a1:p1";
    let text = string(node, help, sink)?;
    match text.value.split_once(':') {
        Some((node, port)) if is_name(node) && is_name(port) => {
            Some(At { value: PortId { node: node.into(), port: port.into() }, place: text.place })
        }
        _ => {
            sink.report_help(&text.place, format!("{} does not name a port", quoted(&text.value)), help);
            None
        }
    }
}

fn read_guard(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<Guard> {
    let text = string(node, r#"write guard = "available""#, sink)?;
    match text.value.as_str() {
        "available" => return Some(Guard::Available),
        "strict" => sink.report(&text.place, r#"not in this release; use guard = "available""#),
        other => {
            sink.report_help(
                &text.place,
                format!("unknown guard {}", quoted(other)),
                r#"write guard = "available""#,
            );
        }
    }
    None
}

fn read_failback(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<Failback> {
    match node.value {
        DeValue::String(s) if s == "never" => Some(Failback::Never),
        DeValue::String(other) => {
            sink.report_help(&node.place, format!("unknown failback {}", quoted(other)), FAILBACK_HELP);
            None
        }
        DeValue::Table(_) => {
            let table = TableReader::of(node, &["after_s"], sink)?;
            let seconds = integer(&table.require("after_s", "after_s = 300", sink)?, sink)?;
            if FAILBACK_S.contains(&seconds.value) {
                return Some(Failback::After(Duration::from_secs(seconds.value)));
            }
            let (least, most) = (FAILBACK_S.start(), FAILBACK_S.end());
            sink.report(&seconds.place, format!("{} seconds, expected {least} to {most}", seconds.value));
            None
        }
        other => {
            wrong_type(&node.place, "\"never\" or a table", other, FAILBACK_HELP.to_owned(), sink);
            None
        }
    }
}

fn read_requires(node: &Node<'_, '_>, sink: &mut Sink<'_>) {
    match node.value {
        DeValue::Array(services) if services.is_empty() => {}
        DeValue::Array(_) => sink.report(&node.place, "not in this release; leave requires out"),
        other => wrong_type(&node.place, "a list", other, "leave requires out".to_owned(), sink),
    }
}

/// `node` as a name of any kind.
fn name<T: for<'a> From<&'a str>>(node: &Node<'_, '_>, sink: &mut Sink<'_>) -> Option<At<T>> {
    checked_name(string(node, "names are written in quotes", sink)?, sink)
}

fn checked_name<T: for<'a> From<&'a str>>(text: At<String>, sink: &mut Sink<'_>) -> Option<At<T>> {
    if is_name(&text.value) {
        return Some(At { value: text.value.as_str().into(), place: text.place });
    }
    let help = "1 to 32 of a-z, 0-9 and -, first a letter, last not -";
    sink.report_help(&text.place, format!("{} is not a name", quoted(&text.value)), help);
    None
}

/// Whether `text` is a name: 1 to 32 of `a-z 0-9 -`, begins with a letter, does not end with `-`.
pub fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=NAME_MAX).contains(&text.len())
        && text.bytes().all(inner)
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
}

/// `node` as a string that parses as `T`.
fn parsed<T: core::str::FromStr>(
    node: &Node<'_, '_>,
    expected: &str,
    help: &str,
    sink: &mut Sink<'_>,
) -> Option<At<T>> {
    let text = string(node, help, sink)?;
    match text.value.parse() {
        Ok(value) => Some(At { value, place: text.place }),
        Err(_) => {
            sink.report_help(&text.place, format!("{} is not {expected}", quoted(&text.value)), help);
            None
        }
    }
}
