//! The lab's network by the cluster file's names: which port answers for a VIP, how long it was out of reach.

use crate::cluster::NodePlan;
use crate::error::LabError;
use crate::events::Hub;
use crate::net::{
    Fabric, FabricConfig, FabricError, FabricHandle, HostConfig, Mac, NetEvent, PortConfig, VipReport,
};
use proto::cluster::{ClusterFile, NetworkName, Vip};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two echoes to a measured VIP: outages of a few hundred milliseconds are told to within this.
const REACH_INTERVAL: Duration = Duration::from_millis(10);

/// The running fabric with its names.
pub struct Wires {
    fabric: FabricHandle,
    ports: BTreeMap<Mac, String>,
    vips: BTreeMap<String, Vip>,
    /// The one network with a probing host: VIPs of others cannot be seen.
    probed: Option<NetworkName>,
    forwards: Mutex<Vec<String>>,
}

impl std::fmt::Debug for Wires {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wires").field("ports", &self.ports).finish_non_exhaustive()
    }
}

fn fabric_error(doing: &str) -> impl FnOnce(FabricError) -> LabError + '_ {
    move |error| LabError::Refused(format!("{doing}: {}", proto::text::one_line(&error)))
}

impl Wires {
    /// Starts switch and hosts with their sockets in `dir`; tells what the probing host sees to `hub`. With
    /// `measure` every VIP's reachability is measured, which costs the nodes an echo every 10 ms each.
    pub fn start(
        cluster: &ClusterFile,
        nodes: &[NodePlan],
        dir: &Path,
        measure: bool,
        hub: &Arc<Hub>,
    ) -> Result<Wires, LabError> {
        let mut ports = BTreeMap::new();
        let mut configs = Vec::new();
        for port in nodes.iter().flat_map(|n| &n.ports) {
            let (machine_path, switch_path) = sockets(dir, &port.id.node.0, &port.id.port.0);
            ports.insert(Mac(port.mac), port.id.to_string());
            configs.push(PortConfig {
                id: port.id.clone(),
                segment: port.network.clone(),
                switch_path,
                machine_path,
            });
        }
        let probed = busiest(cluster);
        let host = |make: fn(&NetworkName, &proto::cluster::Network) -> HostConfig| {
            let name = probed.as_ref()?;
            Some(make(name, cluster.networks.get(name)?))
        };
        let mut config = FabricConfig {
            ports: configs,
            probe: host(HostConfig::probe_on),
            timing: Default::default(),
            tcp: host(HostConfig::tcp_on),
            capture: Some(dir.join("capture.pcap")),
            seed: 1,
        };
        config.timing.reach_interval = REACH_INTERVAL;
        let fabric = Fabric::start(config).map_err(fabric_error("start the lab's network"))?;
        let vips: BTreeMap<String, Vip> =
            cluster.vips.iter().map(|(n, v)| (n.0.clone(), v.clone())).collect();
        let wires = Wires { fabric, ports, vips, probed, forwards: Mutex::default() };
        for vip in wires.vips.values().filter(|v| wires.sees(v)) {
            wires.fabric.watch(vip.address, measure).map_err(fabric_error("watch a VIP"))?;
        }
        wires.tell_events(hub)?;
        Ok(wires)
    }

    fn tell_events(&self, hub: &Arc<Hub>) -> Result<(), LabError> {
        let events = self.fabric.events().map_err(fabric_error("listen to the lab's network"))?;
        let hub = Arc::clone(hub);
        let ports = self.ports.clone();
        let names: BTreeMap<IpAddr, String> = self.vips.iter().map(|(n, v)| (v.address, n.clone())).collect();
        let tell = move || {
            let mut answered = std::collections::BTreeSet::new();
            for event in events {
                match &event {
                    NetEvent::VipAnswered { ip, .. } => drop(answered.insert(*ip)),
                    // Before a cluster has booted silence is no news.
                    NetEvent::VipSilent { ip, .. } if !answered.contains(ip) => continue,
                    _ => {}
                }
                let (subject, what) = describe(&event, &ports, &names);
                hub.tell(subject, what);
            }
        };
        std::thread::Builder::new()
            .name("vips".into())
            .spawn(tell)
            .map_err(LabError::io("start a thread"))?;
        Ok(())
    }

    /// Whether the probing host can see `vip`.
    pub fn sees(&self, vip: &Vip) -> bool {
        self.probed.as_ref() == Some(&vip.network)
    }

    /// VIPs in name order.
    pub fn vips(&self) -> impl Iterator<Item = (&str, &Vip)> {
        self.vips.iter().map(|(name, vip)| (name.as_str(), vip))
    }

    /// The address of a VIP given by name or as an address.
    pub fn address(&self, vip: &str) -> Result<IpAddr, LabError> {
        let by_name = self.vips.get(vip).map(|v| v.address);
        let by_address = || {
            let address: IpAddr = vip.parse().ok()?;
            self.vips.values().any(|v| v.address == address).then_some(address)
        };
        by_name.or_else(by_address).ok_or_else(|| {
            let names: Vec<&str> = self.vips.keys().map(String::as_str).collect();
            LabError::Refused(format!("no VIP {vip}; VIPs: {}", names.join(" ")))
        })
    }

    /// The port that answers for a VIP, `a1:p1`; a foreign station by its hardware address.
    pub fn holder(&self, vip: &str) -> Option<String> {
        let mac = self.fabric.holder(self.address(vip).ok()?).ok().flatten()?;
        Some(self.port_name(mac))
    }

    fn port_name(&self, mac: Mac) -> String {
        port_name(&self.ports, mac)
    }

    /// Starts a measurement.
    pub fn mark(&self, vip: &str) -> Result<(), LabError> {
        self.fabric.mark(self.address(vip)?).map_err(fabric_error("mark a measurement"))
    }

    /// What was seen of a VIP since its last mark.
    pub fn report(&self, vip: &str) -> Result<VipReport, LabError> {
        self.fabric.report(self.address(vip)?).map_err(fabric_error("report a measurement"))
    }

    /// The fabric itself, for faults the names do not cover.
    pub fn fabric(&self) -> &FabricHandle {
        &self.fabric
    }

    /// Carries TCP connections to `listen` on this host to `to`: `VIP:port`, the VIP by name or address.
    pub fn forward(&self, listen: SocketAddr, to: &str) -> Result<String, LabError> {
        let bad = || LabError::Refused(format!("{to:?} is not VIP:port, as in web-1:80 or [fd09::100]:80"));
        let (vip, port) = to.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        let address = self.address(vip.trim_start_matches('[').trim_end_matches(']'))?;
        let target = SocketAddr::new(address, port);
        let at = self.fabric.forward(listen, target).map_err(fabric_error("forward"))?;
        let text = format!("{at} -> {vip}:{port}");
        self.forwards.lock().unwrap_or_else(PoisonError::into_inner).push(text.clone());
        Ok(text)
    }

    /// The forwards made.
    pub fn forwards(&self) -> Vec<String> {
        self.forwards.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends switch, hosts and forwards.
    pub fn stop(&self) -> Result<(), LabError> {
        self.fabric.stop().map_err(fabric_error("end the lab's network"))
    }
}

/// A port's two socket paths: the machine's and the switch's.
pub fn sockets(dir: &Path, node: &str, port: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let dir = dir.join(node);
    (dir.join(format!("{port}.vm")), dir.join(format!("{port}.sw")))
}

/// The network with most VIPs: there the probing host stands.
fn busiest(cluster: &ClusterFile) -> Option<NetworkName> {
    let count = |name: &NetworkName| cluster.vips.values().filter(|v| v.network == *name).count();
    cluster.networks.keys().max_by_key(|name| count(name)).cloned()
}

fn port_name(ports: &BTreeMap<Mac, String>, mac: Mac) -> String {
    ports.get(&mac).cloned().unwrap_or_else(|| mac.to_string())
}

/// An event in people's words: what it is about, and what happened.
fn describe(
    event: &NetEvent,
    ports: &BTreeMap<Mac, String>,
    names: &BTreeMap<IpAddr, String>,
) -> (String, String) {
    let vip = |ip: &IpAddr| names.get(ip).map_or_else(|| ip.to_string(), |name| format!("{name} ({ip})"));
    match event {
        NetEvent::VipAnswered { ip, mac, .. } => (vip(ip), format!("answered by {}", port_name(ports, *mac))),
        NetEvent::VipMoved { ip, from, to, gap, .. } => (
            vip(ip),
            format!(
                "moved from {} to {} in {} ms",
                port_name(ports, *from),
                port_name(ports, *to),
                gap.as_millis()
            ),
        ),
        NetEvent::VipSilent { ip, .. } => (vip(ip), "nobody answers".into()),
        NetEvent::DoubleOwner { ip, macs, .. } => {
            let names: Vec<String> = macs.iter().map(|mac| port_name(ports, *mac)).collect();
            (vip(ip), format!("ANSWERED BY SEVERAL: {}", names.join(" ")))
        }
        NetEvent::CaptureStopped { reason, .. } => ("capture".into(), format!("stopped: {reason}")),
    }
}
