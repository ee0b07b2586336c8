//! Kernel switches of a port.

use std::fs;
use std::path::Path;

/// Where the kernel has them.
const ROOT: &str = "/proc/sys/net";

/// What every port of the cluster is set to: family, name, value.
const PORT_SWITCHES: [(&str, &str, &str); 9] = [
    // A VIP is answered for only by the port it sits on, with that port's hardware address.
    ("ipv4", "arp_ignore", "1"),
    // Questions carry a sender address that fits the asked one's subnet, where there is one.
    ("ipv4", "arp_announce", "1"),
    // Frames to a VIP come from anywhere and leave by the VIP's own table.
    ("ipv4", "rp_filter", "0"),
    // Removing one address of a subnet must not take others with it.
    ("ipv4", "promote_secondaries", "1"),
    // A port without carrier carries nothing.
    ("ipv4", "ignore_routes_with_linkdown", "1"),
    ("ipv6", "ignore_routes_with_linkdown", "1"),
    // Addresses and routes come from the cluster file only.
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "autoconf", "0"),
    // Off by a distribution's default, perhaps: ports need their link-local address.
    ("ipv6", "disable_ipv6", "0"),
];

/// Milliseconds between two questions for a neighbour. With the kernel's own second, nodes that start together and
/// ask too early would not hear each other for longer than a lease.
const NEIGHBOUR_RETRY_MS: &str = "100";

/// Sets all switches of the interface `name`. What cannot be set is logged: an appliance without IPv6 still serves
/// IPv4.
pub(crate) fn set_up_port(name: &str) {
    for (family, switch, value) in PORT_SWITCHES {
        // `rp_filter` is the larger of the interface's and the general one.
        let interfaces: &[&str] = if switch == "rp_filter" { &["all", name] } else { &[name] };
        for interface in interfaces {
            set(family, "conf", interface, switch, value);
        }
    }
    for family in ["ipv4", "ipv6"] {
        set(family, "neigh", name, "retrans_time_ms", NEIGHBOUR_RETRY_MS);
    }
}

fn set(family: &str, kind: &str, interface: &str, switch: &str, value: &str) {
    // Interface names cannot hold a `/` (the kernel's own rule), so the path stays below its directory.
    let path = Path::new(ROOT).join(family).join(kind).join(interface).join(switch);
    if let Err(error) = fs::write(path, value) {
        tracing::warn!(family, interface, switch, value, %error, "kernel switch not set");
    }
}
