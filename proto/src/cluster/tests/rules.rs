//! The rules of the cluster file, each broken once in the demonstration cluster.

use super::*;

/// A node's port list cut down to one management port.
const ONLY_M: &str = r#"port = [ { name = "m", match = "pci:00:12.0", network = "mgmt", v4 = "10.8.0.11" } ]
was = ["#;

/// Each rule broken once: what is replaced by what, then the key path, the message's beginning and a part of the help
/// (empty: none).
#[test]
fn each_rule_has_its_own_refusal() {
    let table: &[(&str, &str, &str, &str, &str)] = &[
        // The file and its top level.
        ("schema = 1\n", "", "", r#"key "schema" is missing"#, "add schema = 1"),
        ("schema = 1", "schema = 2", "schema", "schema 2 is not known", "reads schema = 1"),
        ("schema = 1", "schema = -1", "schema", r#""-1" is not a number from 0"#, ""),
        (
            "schema = 1",
            r#"schema = "1""#,
            "schema",
            r#"expected a whole number, found the string "1""#,
            "quotes",
        ),
        ("cluster = \"demo\"\n", "", "", r#"key "cluster" is missing"#, "add cluster"),
        (r#"cluster = "demo""#, "cluster = 5", "cluster", "expected a string, found the number 5", "quotes"),
        (
            r#"cluster = "demo""#,
            r#"cluster = "Demo""#,
            "cluster",
            r#""Demo" is not a name"#,
            "first a letter",
        ),
        (r#"cluster = "demo""#, r#"cluster = "demo-""#, "cluster", r#""demo-" is not a name"#, "last not -"),
        (r#"cluster = "demo""#, r#"cluster = """#, "cluster", r#""" is not a name"#, "1 to 32"),
        (
            r#"cluster = "demo""#,
            "cluster = \"demo\"\nmtu = 9000",
            "mtu",
            r#"unknown key "mtu""#,
            "keys here are: schema",
        ),
        // Timing.
        (
            r#"{ preset = "lab" }"#,
            r#""lab""#,
            "timing",
            r#"expected a table, found the string "lab""#,
            "preset",
        ),
        (r#"{ preset = "lab" }"#, "{}", "timing", "timing says nothing", "preset"),
        (
            r#"{ preset = "lab" }"#,
            r#"{ preset = "wan" }"#,
            "timing.preset",
            r#"unknown preset "wan""#,
            "lan, lab",
        ),
        (
            r#"preset = "lab""#,
            r#"preset = "lab", beat_ms = 50"#,
            "timing.beat_ms",
            "a preset has its own",
            "explicit",
        ),
        (r#"preset = "lab""#, "beat_ms = 50", "timing", r#"key "lease_ms" is missing"#, "lease_ms = 300"),
        (r#"preset = "lab""#, "lease_ms = 300", "timing", r#"key "beat_ms" is missing"#, "beat_ms = 50"),
        (
            r#"preset = "lab""#,
            "beat_ms = 9, lease_ms = 300",
            "timing.beat_ms",
            "a beat of 9 ms, expected 10",
            "",
        ),
        (
            r#"preset = "lab""#,
            "beat_ms = 10001, lease_ms = 60000",
            "timing.beat_ms",
            "a beat of 10001 ms",
            "",
        ),
        (
            r#"preset = "lab""#,
            "beat_ms = 50, lease_ms = 149",
            "timing.lease_ms",
            "a lease of 149 ms is shorter",
            "150",
        ),
        (
            r#"preset = "lab""#,
            "beat_ms = 50, lease_ms = 60001",
            "timing.lease_ms",
            "a lease of 60001 ms, at most",
            "",
        ),
        // Networks.
        (
            r#"data = { v4 = "10.9.0.0/24", v6 = "fd09::/64" }"#,
            "data = {}",
            "networks.data",
            "network without a prefix",
            "v4",
        ),
        (
            r#"mgmt = { v4 = "10.8.0.0/24" }"#,
            "mgmt = 1",
            "networks.mgmt",
            "expected a table, found the number 1",
            "v4",
        ),
        ("mgmt = {", "Mgmt = {", "networks.Mgmt", r#""Mgmt" is not a name"#, "first a letter"),
        ("10.8.0.0/24", "10.8.0.0", "networks.mgmt.v4", r#""10.8.0.0" is not an IPv4 prefix"#, "10.9.0.0/24"),
        ("fd09::/64", "fd09::", "networks.data.v6", r#""fd09::" is not an IPv6 prefix"#, "fd09::/64"),
        (
            "10.8.0.0/24",
            "10.8.0.1/24",
            "networks.mgmt.v4",
            "10.8.0.1/24 has host bits set",
            "write 10.8.0.0/24",
        ),
        ("fd09::/64", "fd09::1/64", "networks.data.v6", "fd09::1/64 has host bits set", "write fd09::/64"),
        ("10.8.0.0/24", "10.8.0.11/32", "networks.mgmt.v4", "prefix length 32, expected 1 to 31", ""),
        ("fd09::/64", "fd09::/128", "networks.data.v6", "prefix length 128, expected 1 to 127", ""),
        (
            "10.8.0.0/24",
            "169.254.8.0/24",
            "networks.mgmt.v4",
            "169.254.8.0/24 is not a network of ordinary",
            "",
        ),
        ("fd09::/64", "fe80::/64", "networks.data.v6", "fe80::/64 is not a network of ordinary", ""),
        ("10.8.0.0/24", "10.8.0.0/7", "networks.mgmt.v4", "10.8.0.0/7 overlaps with network data", ""),
        (
            r#""10.8.0.0/24""#,
            r#""10.8.0.0/24", gateway = "x""#,
            "networks.mgmt.gateway",
            r#""x" is not an IP"#,
            "10.9.0.1",
        ),
        (
            r#""10.8.0.0/24""#,
            r#""10.8.0.0/24", gateway = "10.7.0.1""#,
            "networks.mgmt.gateway",
            "gateway 10.7.0.1 is outside",
            "",
        ),
        (
            r#""10.8.0.0/24""#,
            r#""10.8.0.0/24", gateway = "10.8.0.0""#,
            "networks.mgmt.gateway",
            "10.8.0.0 is the network's own",
            "",
        ),
        // Nodes.
        (r#"name = "a1""#, "", "node[0]", r#"key "name" is missing"#, "add name"),
        (r#"name = "b1""#, r#"name = "a1""#, "node[1].name", "a second node a1", ""),
        ("group = \"east\"\nport", "port", "node[0]", r#"key "group" is missing"#, "exactly one group"),
        (
            r#"group = "east""#,
            r#"group = ["east"]"#,
            "node[0].group",
            "a node is in exactly one group",
            "east",
        ),
        (
            r#"pair = "b""#,
            r#"pair = "a""#,
            "node[1].group",
            "pair a has a1 in group east already",
            "never share",
        ),
        (
            "name = \"b2\"\npair = \"b\"",
            "name = \"b2\"\npair = \"a\"",
            "node[3].pair",
            "a third node of pair a, which has a1, a2",
            "",
        ),
        ("port = [\n", "was = [\n", "node[0]", r#"key "port" is missing"#, "add port"),
        ("port = [\n", "port = []\nwas = [\n", "node[0]", "node a1 has no port", ""),
        (
            "port = [\n",
            "port = 1\nwas = [\n",
            "node[0].port",
            "expected a list, found the number 1",
            "port = [",
        ),
        (
            r#", v4 = "10.8.0.11""#,
            "",
            "node[0].name",
            "node a1 has no port with an address of its own",
            "10.8.0.11",
        ),
        ("port = [", ONLY_M, "node[0].name", "node a1 has no data port", "add one"),
        // Ports.
        (r#"name = "p1", "#, "", "node[0].port[0]", r#"key "name" is missing"#, "add name"),
        (r#"name = "p2""#, r#"name = "p1""#, "node[0].port[1].name", "a second port p1 on node a1", ""),
        ("pci:00:11.0", "pci:00:10.0", "node[0].port[1].match", "pci:00:10.0 is already port a1:p1", ""),
        (
            "pci:00:10.0",
            "pci:00:20.0",
            "node[0].port[0].match",
            r#""pci:00:20.0" does not name an interface"#,
            "pci:BUS",
        ),
        ("pci:00:10.0", "pci:00:10.8", "node[0].port[0].match", r#""pci:00:10.8" does not name"#, "pci:BUS"),
        (
            "pci:00:10.0",
            "mac:52:54:00:09:00",
            "node[0].port[0].match",
            r#""mac:52:54:00:09:00" does not"#,
            "mac:",
        ),
        (
            "pci:00:10.0",
            "mac:53:54:00:09:00:0a",
            "node[0].port[0].match",
            "mac:53:54:00:09:00:0a is not the address of one",
            "",
        ),
        ("pci:00:10.0", "eth0", "node[0].port[0].match", r#""eth0" does not name an interface"#, "pci:BUS"),
        (
            r#"network = "data" },"#,
            r#"network = "date" },"#,
            "node[0].port[0].network",
            r#"unknown network "date""#,
            "data, mgmt",
        ),
        (
            "10.8.0.11",
            "10.8.0.11/24",
            "node[0].port[2].v4",
            r#""10.8.0.11/24" is not an IPv4 address"#,
            "without prefix",
        ),
        (
            r#"v4 = "10.8.0.11""#,
            r#"v6 = "10.8.0.11""#,
            "node[0].port[2].v6",
            r#""10.8.0.11" is not an IPv6 address"#,
            "without prefix",
        ),
        ("10.8.0.12", "10.8.0.11", "node[1].port[2].v4", "10.8.0.11 is already the address of port a1:m", ""),
        (
            "10.8.0.11",
            "10.9.0.11",
            "node[0].port[2].v4",
            "10.9.0.11 is in network data, not in mgmt",
            "mgmt is 10.8.0.0/24",
        ),
        ("10.8.0.11", "10.8.0.0", "node[0].port[2].v4", "10.8.0.0 is the network's own address", ""),
        ("10.8.0.11", "10.8.0.255", "node[0].port[2].v4", "10.8.0.255 is the broadcast address", ""),
        // VIPs.
        (r#"name = "web-1""#, "", "vip[0]", r#"key "name" is missing"#, "add name"),
        (r#"name = "web-2""#, r#"name = "web-1""#, "vip[1].name", "a second VIP web-1", ""),
        (
            "group = \"east\"\nnetwork",
            "group = \"north\"\nnetwork",
            "vip[0].group",
            "group north has no members",
            "east, west",
        ),
        (
            "network = \"data\"\naddress",
            "network = \"dat\"\naddress",
            "vip[0].network",
            r#"unknown network "dat""#,
            "data, mgmt",
        ),
        (
            "network = \"data\"\naddress",
            "network = \"mgmt\"\naddress",
            "vip[0].home",
            "home a1:p1 is on network data, the VIP on mgmt",
            "",
        ),
        (
            "10.9.0.101",
            "10.9.0.101/24",
            "vip[0].address",
            r#""10.9.0.101/24" is not an IP address"#,
            "without prefix",
        ),
        ("10.9.0.102", "10.9.0.101", "vip[1].address", "10.9.0.101 is already the address of VIP web-1", ""),
        ("fd09::103", "fd09::", "vip[2].address", "fd09:: is the network's own address", ""),
        (r#"home = "a1:p1""#, "", "vip[0]", r#"key "home" is missing"#, "a1:p1"),
        (r#"home = "a1:p1""#, r#"home = "a1""#, "vip[0].home", r#""a1" does not name a port"#, "NODE:PORT"),
        (r#"home = "a1:p1""#, r#"home = "c1:p1""#, "vip[0].home", r#"unknown node "c1""#, "a1, b1, a2, b2"),
        (
            r#"home = "a1:p1""#,
            r#"home = "a2:p1""#,
            "vip[0].home",
            "home a2:p1 is in group west, the VIP in east",
            "",
        ),
        (
            r#"home = "a1:p1""#,
            "home = \"a1:p1\"\nguard = \"strict\"",
            "vip[0].guard",
            "not in this release",
            "",
        ),
        (
            r#"home = "a1:p1""#,
            "home = \"a1:p1\"\nguard = \"x\"",
            "vip[0].guard",
            r#"unknown guard "x""#,
            "available",
        ),
        (
            r#"home = "a1:p1""#,
            "home = \"a1:p1\"\nfailback = \"now\"",
            "vip[0].failback",
            r#"unknown failback "now""#,
            "never",
        ),
        (
            r#"home = "a1:p1""#,
            "home = \"a1:p1\"\nfailback = 5",
            "vip[0].failback",
            "expected \"never\" or a table",
            "never",
        ),
        (
            r#"home = "a1:p1""#,
            "home = \"a1:p1\"\nfailback = {}",
            "vip[0].failback",
            r#"key "after_s" is missing"#,
            "300",
        ),
        (
            r#"home = "a1:p1""#,
            "home = \"a1:p1\"\nfailback = { after_s = 0 }",
            "vip[0].failback.after_s",
            "0 seconds, expected 1",
            "",
        ),
        (
            r#"home = "a1:p1""#,
            "home = \"a1:p1\"\nrequires = [\"web\"]",
            "vip[0].requires",
            "not in this release",
            "",
        ),
        (
            r#"home = "a1:p1""#,
            "home = \"a1:p1\"\nrequires = 1",
            "vip[0].requires",
            "expected a list",
            "leave requires out",
        ),
    ];
    for (from, to, path, message, help) in table {
        let found = problems(&changed(from, to));
        let hit = found.iter().find(|p| p.path == *path && p.message.starts_with(message));
        let Some(problem) = hit else {
            panic!("{from:?} -> {to:?}: expected {path}: {message}, found\n{found}")
        };
        match &problem.help {
            None => assert!(help.is_empty(), "{from:?} -> {to:?} has no help\n{found}"),
            Some(text) => assert!(!help.is_empty() && text.contains(help), "{from:?} -> {to:?}: {text}"),
        }
    }

    // Bounds: one more than there may be, and a text that is too long to be read.
    let port = |n: usize| {
        format!(r#"{{ name = "x{n}", match = "pci:01:{:02x}.{}", network = "data" }},"#, n / 8, n % 8)
    };
    let ports: String = (0..PORTS_MAX + 1).map(port).collect();
    let networks: String =
        (0..NETWORKS_MAX + 1).map(|n| format!("n{n} = {{ v4 = \"10.10.{n}.0/24\" }}\n")).collect();
    let vip = |n: usize| {
        let (a, b) = (n / 200, n % 200 + 1);
        format!(
            "[[vip]]\nname=\"v{n}\"\ngroup=\"east\"\nnetwork=\"big\"\naddress=\"10.10.{a}.{b}\"\nhome=\"a1:p1\"\n"
        )
    };
    let crowd = (0..GROUP_VIPS_MAX + 1).map(vip).collect::<String>();
    let crowded = changed("[networks]\n", "[networks]\nbig = { v4 = \"10.10.0.0/16\" }\n")
        .replace(r#""pci:00:10.0", network = "data""#, r#""pci:00:10.0", network = "big""#);
    let table = [
        (changed("port = [\n", &format!("port = [ {ports}\n")), "node[0].port[16]", "20 ports, at most 16"),
        (
            changed("[networks]\n", &format!("[networks]\n{networks}")),
            "networks.n",
            "35 networks, at most 32",
        ),
        (format!("{crowded}{crowd}"), "vip[1027].group", "group east has more than 1024 VIPs"),
    ];
    for (text, path, message) in table {
        let found = problems(&text);
        let told = found.iter().any(|p| p.path.starts_with(path) && p.message.starts_with(message));
        assert!(told, "{path}: {message}\n{found}");
    }
    // Of the tables beyond a bound nothing is read: one refusal takes the place of those for what is missing in each.
    let total = |text: String| {
        let found = problems(&text);
        found.iter().count() + found.omitted()
    };
    for (empty, breaches, room) in [("[[node]]\n", 3, NODES_MAX - 4), ("[[vip]]\n", 5, VIPS_MAX - 6)] {
        assert_eq!(total(format!("{DEMO}{}", empty.repeat(room))), breaches * room, "{empty}");
        assert_eq!(total(format!("{DEMO}{}", empty.repeat(room + 9))), breaches * room + 1, "{empty}");
    }
    let long = problems(&format!("{DEMO}#{}", "x".repeat(CLUSTER_FILE_MAX)));
    assert!(long.to_string().ends_with("bytes, at most 262144 are read"), "{long}");
}

/// Nodes of one group in networks without a router between them.
#[test]
fn members_that_cannot_reach_each_other_are_named() {
    let apart = changed("[networks]\n", "[networks]\nfar = { v4 = \"10.7.0.0/24\" }\n")
        .replace(r#""mgmt", v4 = "10.8.0.12""#, r#""far", v4 = "10.7.0.12""#);
    let shown = problems(&apart).to_string();
    assert!(shown.contains("node[1].name: node a1 cannot reach b1 at 10.7.0.12 (network far)"), "{shown}");
    assert!(
        shown.contains("help: give both an address in one network, or networks with gateways"),
        "{shown}"
    );
    let routed = apart
        .replace(r#"far = { v4 = "10.7.0.0/24""#, r#"far = { v4 = "10.7.0.0/24", gateway = "10.7.0.1""#)
        .replace(r#"mgmt = { v4 = "10.8.0.0/24""#, r#"mgmt = { v4 = "10.8.0.0/24", gateway = "10.8.0.1""#);
    ClusterFile::parse("cluster.toml", &routed).unwrap();
    let taken = routed.replace("10.8.0.11", "10.8.0.1");
    assert!(problems(&taken).to_string().contains("10.8.0.1 is the gateway of network mgmt (10.8.0.0/24)"));
}

/// What a refusal leaves out is counted.
#[test]
fn only_the_first_problems_are_told() {
    let found = problems(&format!("{DEMO}{}", "[[vip]]\n".repeat(30)));
    assert_eq!((found.iter().count(), found.omitted()), (DIAGNOSTICS_MAX, 30 * 5 - DIAGNOSTICS_MAX));
    assert!(found.to_string().ends_with("\nand 130 more"));
}
