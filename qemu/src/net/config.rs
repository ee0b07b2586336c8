//! What the fabric is started with.

use super::mac::Mac;
use core::net::{Ipv4Addr, Ipv6Addr};
use ipnet::{Ipv4Net, Ipv6Net};
use proto::cluster::{Network, NetworkName, PortId};
use proto::time::Duration;
use std::path::PathBuf;

/// Everything the fabric needs to know.
#[derive(Clone, Debug)]
pub struct FabricConfig {
    /// One entry for each port of each machine.
    pub ports: Vec<PortConfig>,
    /// The probing host; without it nothing can be watched.
    pub probe: Option<HostConfig>,
    /// When it asks.
    pub timing: ProbeTiming,
    /// The host that speaks TCP; without it there are no forwards and no `http_get`.
    pub tcp: Option<HostConfig>,
    /// Where to write a capture of everything, if at all. The file is made anew.
    pub capture: Option<PathBuf>,
    /// Decides which frames percentages lose.
    pub seed: u64,
}

/// A port of a machine, as QEMU sees it: `-netdev dgram,local.path=MACHINE_PATH,remote.path=SWITCH_PATH`.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Its name.
    pub id: PortId,
    /// The network it is plugged into.
    pub segment: NetworkName,
    /// The socket the fabric makes and removes (`*.sw`); at most 107 bytes.
    pub switch_path: PathBuf,
    /// The socket the machine makes (`*.vm`); it may come and go.
    pub machine_path: PathBuf,
}

/// One of the lab's own hosts.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The segment it is on.
    pub segment: NetworkName,
    /// Its IPv4 address, and the prefix it lies in.
    pub v4: Option<Ipv4Net>,
    /// Its IPv6 address, and the prefix it lies in.
    pub v6: Option<Ipv6Net>,
}

impl HostConfig {
    /// The probing host's customary addresses in a network: `.250` and `::250`.
    pub fn probe_on(name: &NetworkName, network: &Network) -> HostConfig {
        HostConfig::numbered(name, network, 250, 0x250)
    }

    /// The TCP host's customary addresses in a network: `.251` and `::251`.
    pub fn tcp_on(name: &NetworkName, network: &Network) -> HostConfig {
        HostConfig::numbered(name, network, 251, 0x251)
    }

    /// Addresses at these offsets; a network too small for them gives none.
    fn numbered(name: &NetworkName, network: &Network, v4: u32, v6: u128) -> HostConfig {
        let in_v4 = |net: Ipv4Net| {
            let address = Ipv4Addr::from(u32::from(net.network()).checked_add(v4)?);
            let usable = net.contains(&address) && address != net.broadcast();
            usable.then(|| Ipv4Net::new(address, net.prefix_len()).ok()).flatten()
        };
        let in_v6 = |net: Ipv6Net| {
            let address = Ipv6Addr::from(u128::from(net.network()).checked_add(v6)?);
            net.contains(&address).then(|| Ipv6Net::new(address, net.prefix_len()).ok()).flatten()
        };
        HostConfig { segment: name.clone(), v4: network.v4.and_then(in_v4), v6: network.v6.and_then(in_v6) }
    }
}

/// How often the probing host asks, and what it makes of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeTiming {
    /// Between two owner questions for one VIP; at least 10 ms.
    pub owner_interval: Duration,
    /// Answers count as ownership up to here after the question. Shorter misses double owners on slow machines;
    /// longer makes more suspicions, each of which costs one more question.
    pub answer_window: Duration,
    /// Between two echoes to a measured VIP; at least 1 ms.
    pub reach_interval: Duration,
    /// Shorter outages are not listed: the scheduler's noise.
    pub outage_floor: Duration,
    /// Without an answer for this long a VIP is silent.
    pub silent_after: Duration,
}

impl Default for ProbeTiming {
    fn default() -> ProbeTiming {
        ProbeTiming {
            owner_interval: Duration::from_millis(100),
            answer_window: Duration::from_millis(250),
            reach_interval: Duration::from_millis(5),
            outage_floor: Duration::from_millis(20),
            silent_after: Duration::from_secs(1),
        }
    }
}

impl ProbeTiming {
    /// Intervals that leave the fabric time for frames.
    pub(super) fn bounded(self) -> ProbeTiming {
        ProbeTiming {
            owner_interval: self.owner_interval.max(Duration::from_millis(10)),
            reach_interval: self.reach_interval.max(Duration::from_millis(1)),
            ..self
        }
    }
}

/// The switch port of the probing host, for faults and counters.
pub fn probe_port() -> PortId {
    PortId { node: "lab".into(), port: "probe".into() }
}

/// The switch port of the TCP host.
pub fn tcp_port() -> PortId {
    PortId { node: "lab".into(), port: "tcp".into() }
}

/// Hardware address prefixes that belong to the probing host.
pub(super) const PROBE_PREFIXES: [[u8; 3]; 2] = [Mac::QUESTION_V4_PREFIX, Mac::QUESTION_V6_PREFIX];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customary_addresses_fit_the_network() {
        for (v4, v6, expected_v4, expected_v6) in [
            (Some("10.9.0.0/24"), Some("fd09::/64"), Some("10.9.0.250/24"), Some("fd09::250/64")),
            (Some("10.9.0.0/25"), None, None, None),
            (Some("10.9.0.0/16"), Some("fd09::/120"), Some("10.9.0.250/16"), None),
            (Some("255.255.255.248/29"), None, None, None),
        ] {
            let network = Network {
                v4: v4.map(|n| n.parse().unwrap()),
                v6: v6.map(|n| n.parse().unwrap()),
                gateway: None,
            };
            let host = HostConfig::probe_on(&"data".into(), &network);
            assert_eq!(host.v4, expected_v4.map(|n| n.parse().unwrap()));
            assert_eq!(host.v6, expected_v6.map(|n| n.parse().unwrap()));
        }
    }
}
