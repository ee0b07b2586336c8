//! Kernel switches of a port.

use std::fs;
use std::io;
use std::path::PathBuf;

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

/// Sets all switches of the interface `name`. What cannot be set is logged: an appliance without IPv6 still serves
/// IPv4.
pub(crate) fn set_up_port(name: &str) {
    for (family, switch, value) in PORT_SWITCHES {
        // `rp_filter` is the larger of the interface's and the general one.
        let interfaces: &[&str] = if switch == "rp_filter" { &["all", name] } else { &[name] };
        for interface in interfaces {
            if let Err(error) = set(family, interface, switch, value) {
                tracing::warn!(interface, switch, value, %error, "kernel switch not set");
            }
        }
    }
}

fn set(family: &str, interface: &str, switch: &str, value: &str) -> io::Result<()> {
    // Interface names cannot hold a `/` (the kernel's own rule), so the path stays below its directory.
    let path = PathBuf::from(ROOT).join(family).join("conf").join(interface).join(switch);
    fs::write(path, value)
}
