//! The test language: a cluster of machines on a network, and what can be done to it.
//!
//! ```no_run
//! # fn main() -> Result<(), lab::error::LabError> {
//! use std::time::Duration;
//! let mut progress = lab::progress::Terminal::default();
//! let prepared = lab::prepare::prepare(false, &mut progress)?;
//! let lab = lab::lab::Lab::start(lab::lab::LabSpec::demo("t1", &prepared)?)?;
//! lab.boot()?;
//! lab.wait_for_vips()?;
//! lab.mark("web-1")?;
//! lab.unplug("a1:p1")?;
//! lab.expect_within(Duration::from_secs(5), "web-1 on the other port", || lab.holder("web-1").as_deref() == Some("a1:p2"))?;
//! println!("{:?} without service", lab.outage("web-1")?);
//! # Ok(()) }
//! ```
//! Dropping a lab ends its machines, its network and, when it is a throw-away lab, its directory. Several labs may
//! run at once; each has names, sockets and addresses of its own.

use crate::accel::Accel;
use crate::agent::Answer;
use crate::cluster::{self, NodePlan};
use crate::control::{self, LabStatus, NodeStatus, VipStatus};
use crate::dir::LabDir;
use crate::disk::Disk;
use crate::error::LabError;
use crate::events::Hub;
use crate::files::{Files, nic_id};
use crate::machine::{Machine, Press, State, Status};
use crate::prepare::Prepared;
use crate::programs;
use crate::serial::Serial;
use crate::table::seconds;
use crate::variant::Variant;
use crate::wires::Wires;
use proto::cluster::ClusterFile;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A node that shows no prompt for this long does not hold up the next one's start.
pub const NODE_BOOT_LIMIT: Duration = Duration::from_secs(90);
/// From the last node's start to every VIP's first answer.
pub const VIPS_LIMIT: Duration = Duration::from_secs(120);
/// How often conditions are looked at when no event says that something changed.
const INTERVAL: Duration = Duration::from_millis(20);
/// A keel command on a busy node.
const KEEL_LIMIT: Duration = Duration::from_secs(30);
/// A node that is asked for its logs may be the one that failed.
const LOG_LIMIT: Duration = Duration::from_secs(5);

/// What a lab is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabSpec {
    /// Its name: names its directory and its machines' UUIDs.
    pub name: String,
    /// The directory labs live in.
    pub root: PathBuf,
    /// What errors call the cluster file.
    pub cluster_path: String,
    /// The cluster file's text.
    pub cluster: String,
    /// The disk image under every node's overlay.
    pub base: PathBuf,
    /// How instructions are executed.
    pub accel: Accel,
    /// Go on with the disks and keys of the last lab of this name.
    pub keep: bool,
    /// Remove the directory at the end.
    pub throw_away: bool,
    /// Nodes that start at the same time.
    pub starting_at_once: usize,
    /// Measure how long VIPs are out of reach.
    pub measure: bool,
    /// Nodes whose machines are not the usual ones.
    #[serde(default)]
    pub variants: BTreeMap<String, Variant>,
}

impl LabSpec {
    /// The demo cluster as a throw-away lab that measures: for tests.
    pub fn demo(name: &str, prepared: &Prepared) -> Result<LabSpec, LabError> {
        LabSpec::from_file(&demo_file(), prepared).map(|spec| LabSpec {
            name: name.to_owned(),
            throw_away: true,
            measure: true,
            ..spec
        })
    }

    /// The cluster of a file, as a lab that stays until the next one of its name.
    pub fn from_file(path: &Path, prepared: &Prepared) -> Result<LabSpec, LabError> {
        let cluster =
            std::fs::read_to_string(path).map_err(LabError::io(format!("read {}", path.display())))?;
        Ok(LabSpec {
            name: "demo".into(),
            root: crate::dir::default_root(),
            cluster_path: path.display().to_string(),
            cluster,
            base: prepared.base.clone(),
            accel: prepared.accel,
            keep: false,
            throw_away: false,
            starting_at_once: std::thread::available_parallelism().map_or(1, usize::from),
            measure: false,
            variants: BTreeMap::new(),
        })
    }
}

/// The demo cluster's file.
pub fn demo_file() -> PathBuf {
    programs::workspace().join("qemu/demo.toml")
}

/// A name for a throw-away lab that no other test of this process or another uses.
pub fn test_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    spec: LabSpec,
    path: PathBuf,
    hub: Arc<Hub>,
    nodes: Vec<NodePlan>,
    machines: BTreeMap<String, Machine>,
    wires: Wires,
    /// Given back last.
    dir: Mutex<Option<LabDir>>,
}

impl Lab {
    /// Takes the lab's directory, starts its network and makes its machines, switched off.
    ///
    /// # Errors
    /// A lab of this name runs already; the cluster file has errors or cannot be wired; a tool failed. Nothing is
    /// left running.
    pub fn start(spec: LabSpec) -> Result<Lab, LabError> {
        let file = cluster::parse(&spec.cluster_path, &spec.cluster)?;
        let nodes = cluster::wire(&file)?;
        let dir = LabDir::claim(&spec.root, &spec.name, spec.keep, spec.throw_away)?;
        let hub = Arc::new(Hub::default());
        let files = Files { spec: &spec, dir: &dir };
        files.base()?;
        files.firmware()?;
        files.personalities(&nodes)?;
        for node in &nodes {
            dir.node(&node.name)?; // the fabric's sockets go there
        }
        let wires = Wires::start(&file, &nodes, dir.path(), spec.measure, &hub)?;
        let mut machines = BTreeMap::new();
        for node in &nodes {
            let machine = Machine::new(files.machine(node)?, &dir.node(&node.name)?, Arc::clone(&hub))?;
            machines.insert(node.name.clone(), machine);
        }
        let path = dir.path().to_owned();
        Ok(Lab { spec, path, hub, nodes, machines, wires, dir: Mutex::new(Some(dir)) })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.path
    }

    /// What happens in it.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Its network.
    pub fn wires(&self) -> &Wires {
        &self.wires
    }

    /// Its nodes' wiring.
    pub fn nodes(&self) -> &[NodePlan] {
        &self.nodes
    }

    fn machine(&self, node: &str) -> Result<&Machine, LabError> {
        self.machines.get(node).ok_or_else(|| {
            let names: Vec<&str> = self.machines.keys().map(String::as_str).collect();
            LabError::Refused(format!("no node {node}; nodes: {}", names.join(" ")))
        })
    }

    /// Starts all nodes, no more at once than the spec says; returns when each has shown its prompt or has had
    /// [`NODE_BOOT_LIMIT`] to do so.
    pub fn boot(&self) -> Result<(), LabError> {
        let mut waiting: Vec<&NodePlan> = self.nodes.iter().rev().collect();
        let mut starting: Vec<(&str, Instant)> = Vec::new();
        while !waiting.is_empty() || !starting.is_empty() {
            while starting.len() < self.spec.starting_at_once.max(1) {
                let Some(node) = waiting.pop() else { break };
                self.power_on(&node.name)?;
                starting.push((&node.name, Instant::now()));
            }
            // Wakes up for the first that is done or late, to start the next in its place.
            let oldest = starting.iter().map(|(_, since)| *since).min().unwrap_or_else(Instant::now);
            let left = NODE_BOOT_LIMIT.saturating_sub(oldest.elapsed());
            let _ = self.hub.wait(left, INTERVAL, || {
                starting.iter().any(|(name, _)| self.has_prompt(name)).then_some(())
            });
            starting.retain(|(name, since)| {
                let took = since.elapsed();
                if self.has_prompt(name) {
                    self.hub.tell(*name, format!("prompt after {}", seconds(took)));
                    return false;
                }
                if took >= NODE_BOOT_LIMIT {
                    self.hub.tell(*name, format!("no prompt after {}", seconds(took)));
                    return false;
                }
                true
            });
        }
        Ok(())
    }

    /// Whether the node has shown its prompt since it was started last.
    pub fn has_prompt(&self, node: &str) -> bool {
        self.machine(node).is_ok_and(|m| m.serial.text_since(m.status().boot).contains(&format!("{node}> ")))
    }

    /// Waits until every VIP the probing host can see is answered for.
    ///
    /// # Errors
    /// The deadline, naming the silent VIPs and the nodes without a prompt.
    pub fn wait_for_vips(&self) -> Result<(), LabError> {
        let silent = || -> Vec<&str> {
            let seen = self.wires.vips().filter(|(_, vip)| self.wires.sees(vip));
            seen.filter(|(name, _)| self.wires.holder(name).is_none()).map(|(name, _)| name).collect()
        };
        let answered = self.hub.wait(VIPS_LIMIT, INTERVAL, || silent().is_empty().then_some(()));
        answered.ok_or_else(|| {
            let dark: Vec<&str> =
                self.machines.keys().map(String::as_str).filter(|n| !self.has_prompt(n)).collect();
            let nodes = match dark.is_empty() {
                true => "every node shows its prompt: see `show vips` there".to_owned(),
                false => format!("no prompt on {}; logs in {}", dark.join(" "), self.path.display()),
            };
            LabError::Deadline {
                what: format!("an answer from {}", silent().join(" ")),
                limit: VIPS_LIMIT,
                seen: nodes,
            }
        })
    }

    /// Switches a node on.
    pub fn power_on(&self, node: &str) -> Result<(), LabError> {
        self.machine(node)?.power_on()
    }

    /// Cuts a node's power.
    pub fn power_off(&self, node: &str) -> Result<(), LabError> {
        self.machine(node)?.power_off()
    }

    /// Stops a node's processor and clocks.
    pub fn freeze(&self, node: &str) -> Result<(), LabError> {
        self.machine(node)?.freeze()
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self, node: &str) -> Result<(), LabError> {
        self.machine(node)?.thaw()
    }

    /// Presses one of a node's buttons.
    pub fn press(&self, node: &str, press: Press) -> Result<(), LabError> {
        self.machine(node)?.press(press)
    }

    /// Puts a device into a node's free slot, if its variant has one.
    pub fn plug_in(&self, node: &str) -> Result<(), LabError> {
        self.machine(node)?.plug_in()
    }

    /// A node's disk, to be looked at and damaged while the node is off.
    pub fn disk(&self, node: &str) -> Result<Disk, LabError> {
        self.machine(node)?;
        Ok(Disk::at(&self.path.join(node).join("disk.qcow2")))
    }

    /// Pulls the cable of a port, `a1:p1`: the node sees its carrier go.
    pub fn unplug(&self, port: &str) -> Result<(), LabError> {
        self.link(port, false)
    }

    /// Plugs the cable of a port in again.
    pub fn plug(&self, port: &str) -> Result<(), LabError> {
        self.link(port, true)
    }

    fn link(&self, port: &str, up: bool) -> Result<(), LabError> {
        let plan = self.nodes.iter().flat_map(|n| &n.ports).find(|p| p.id.to_string() == port);
        let plan = plan.ok_or_else(|| {
            let ports: Vec<String> =
                self.nodes.iter().flat_map(|n| &n.ports).map(|p| p.id.to_string()).collect();
            LabError::Refused(format!("no port {port}; ports: {}", ports.join(" ")))
        })?;
        self.machine(&plan.id.node.0)?.link(&nic_id(&plan.id.port.0), up)
    }

    /// A node's serial line.
    pub fn serial(&self, node: &str) -> Result<&Arc<Serial>, LabError> {
        Ok(&self.machine(node)?.serial)
    }

    /// A node's second serial line.
    ///
    /// # Errors
    /// Its variant has none.
    pub fn second_serial(&self, node: &str) -> Result<&Arc<Serial>, LabError> {
        let second = self.machine(node)?.second_serial.as_ref();
        second.ok_or_else(|| LabError::Refused(format!("node {node} has one serial line only")))
    }

    /// Whether and since when a node runs.
    pub fn power(&self, node: &str) -> Result<Status, LabError> {
        Ok(self.machine(node)?.status())
    }

    /// The port that answers for a VIP, `a1:p1`.
    pub fn holder(&self, vip: &str) -> Option<String> {
        self.wires.holder(vip)
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// The deadline, with the last events.
    pub fn expect_within(
        &self,
        limit: Duration,
        what: &str,
        condition: impl Fn() -> bool,
    ) -> Result<Duration, LabError> {
        let since = Instant::now();
        self.hub.wait(limit, INTERVAL, || condition().then_some(since.elapsed())).ok_or_else(|| {
            let recent = self.hub.recent();
            let last: Vec<String> = recent.iter().rev().take(8).rev().map(ToString::to_string).collect();
            LabError::Deadline {
                what: what.to_owned(),
                limit,
                seen: format!("last events:\n{}", last.join("\n")),
            }
        })
    }

    /// Runs a keel command on a node; its output when it ended well.
    ///
    /// # Errors
    /// As [`Self::keel_within`], and when the command failed there.
    pub fn keel(&self, node: &str, line: &str) -> Result<String, LabError> {
        let answer = self.keel_within(node, line, KEEL_LIMIT)?;
        match answer.code {
            0 => Ok(answer.text),
            code => Err(LabError::Machine {
                node: node.to_owned(),
                what: format!("`keel {line}` failed with {code}: {}", answer.text.trim()),
            }),
        }
    }

    /// Runs a keel command on a node, whatever its exit code.
    pub fn keel_within(&self, node: &str, line: &str, limit: Duration) -> Result<Answer, LabError> {
        self.machine(node)?.agent.run(node, line, limit)
    }

    /// Sends a signal to a program on a node: `lab.signal("a1", "netd", "KILL")`.
    pub fn signal(&self, node: &str, program: &str, signal: &str) -> Result<String, LabError> {
        self.fault(node, &format!("signal {program} {signal}"))
    }

    /// Has `lab-fault` on a node do something: `lab.fault("a1", "panic")`. Its commands are in `qemu/demo/src/fault.rs`.
    ///
    /// # Errors
    /// The node is off or went off before it answered, or the fault was refused.
    pub fn fault(&self, node: &str, line: &str) -> Result<String, LabError> {
        let answer = self.machine(node)?.faults.run(node, line, KEEL_LIMIT)?;
        match answer.code {
            0 => Ok(answer.text),
            _ => Err(LabError::Machine { node: node.to_owned(), what: answer.text.trim().to_owned() }),
        }
    }

    /// Starts a measurement of a VIP.
    pub fn mark(&self, vip: &str) -> Result<(), LabError> {
        self.wires.mark(vip)
    }

    /// The longest time a VIP was out of reach since its mark, the one that lasts included.
    pub fn outage(&self, vip: &str) -> Result<Duration, LabError> {
        let reach = self.wires.report(vip)?.reach;
        reach.map(|r| r.longest.length).ok_or_else(|| {
            LabError::Refused(format!("the reachability of {vip} is not measured in this lab"))
        })
    }

    /// How often two stations answered for a VIP at the same time since its mark.
    pub fn double_owners(&self, vip: &str) -> Result<u64, LabError> {
        Ok(self.wires.report(vip)?.double_owners_seen)
    }

    /// Carries TCP connections to `listen` to `to`, `VIP:port`.
    pub fn forward(&self, listen: SocketAddr, to: &str) -> Result<String, LabError> {
        self.wires.forward(listen, to)
    }

    /// How everything is.
    pub fn status(&self) -> LabStatus {
        let holders: BTreeMap<&str, Option<String>> =
            self.wires.vips().map(|(name, _)| (name, self.wires.holder(name))).collect();
        let node = |plan: &NodePlan| {
            let status = self.machines.get(&plan.name).map(Machine::status);
            let unplugged = status.as_ref().map(|s| s.unplugged.clone()).unwrap_or_default();
            let port = |name: &str| match unplugged.contains(&nic_id(name)) {
                true => format!("{name}!"),
                false => name.to_owned(),
            };
            let prefix = format!("{}:", plan.name);
            let held = holders.iter().filter(|(_, h)| h.as_ref().is_some_and(|h| h.starts_with(&prefix)));
            NodeStatus {
                name: plan.name.clone(),
                pair: plan.pair.clone().unwrap_or_default(),
                group: plan.group.clone(),
                state: status.as_ref().map(|s| state_word(&s.state)).unwrap_or_default(),
                ports: plan.ports.iter().map(|p| port(&p.id.port.0)).collect(),
                vips: held.map(|(name, _)| (*name).to_owned()).collect(),
                console: self.path.join(&plan.name).join("con").display().to_string(),
                starts: status.as_ref().map(|s| s.starts).unwrap_or_default(),
                pid: status.and_then(|s| s.pid),
            }
        };
        LabStatus {
            name: self.spec.name.clone(),
            dir: self.path.display().to_string(),
            nodes: self.nodes.iter().map(node).collect(),
            vips: self
                .wires
                .vips()
                .map(|(name, vip)| VipStatus {
                    name: name.to_owned(),
                    address: vip.address.to_string(),
                    home: vip.home.to_string(),
                    holder: holders[name].clone().unwrap_or_default(),
                })
                .collect(),
            forwards: self.wires.forwards(),
            ..LabStatus::default()
        }
    }

    /// Copies console logs, QEMU's messages, the capture, and what running nodes say of themselves to `to`: for a
    /// failure that is looked at later.
    pub fn keep_logs(&self, to: &Path) -> Result<(), LabError> {
        let doing = || format!("keep logs in {}", to.display());
        std::fs::create_dir_all(to).map_err(LabError::io(doing()))?;
        for node in self.machines.keys() {
            for file in ["con.log", "qemu.log"] {
                let from = self.path.join(node).join(file);
                if from.exists() {
                    std::fs::copy(from, to.join(format!("{node}-{file}"))).map_err(LabError::io(doing()))?;
                }
            }
        }
        let capture = self.path.join("capture.pcap");
        if capture.exists() {
            std::fs::copy(capture, to.join("capture.pcap")).map_err(LabError::io(doing()))?;
        }
        for (node, machine) in self.machines.iter().filter(|(_, m)| m.status().state == State::On) {
            for (line, file) in [
                ("show state", "state"),
                ("show vips", "vips"),
                ("show services", "services"),
                ("show log -n 200", "init"),
                ("show log netd -n 200", "netd"),
            ] {
                let text = match machine.agent.run(node, line, LOG_LIMIT) {
                    Ok(answer) => answer.text,
                    Err(error) => error.chain(),
                };
                std::fs::write(to.join(format!("{node}-{file}.log")), text).map_err(LabError::io(doing()))?;
            }
        }
        let events: Vec<String> = self.hub.recent().iter().map(|e| format!("{e}\n")).collect();
        std::fs::write(to.join("events.log"), events.concat()).map_err(LabError::io(doing()))
    }

    /// Ends everything. A second call does nothing.
    pub fn stop(&self) {
        std::thread::scope(|scope| {
            for machine in self.machines.values() {
                scope.spawn(|| machine.stop());
            }
        });
        if let Err(error) = self.wires.stop() {
            self.hub.tell("lab", error.chain());
        }
        // The directory's control socket goes last: who waits for the end sees it go.
        let _ = std::fs::remove_file(control::socket(&self.path));
        drop(self.dir.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop();
    }
}

fn state_word(state: &State) -> String {
    match state {
        State::On => "on".into(),
        State::Frozen => "frozen".into(),
        State::Off { reason } => format!("off ({reason})"),
    }
}

/// Whether this cluster file can be run here; told before anything is built.
pub fn check(path: &Path) -> Result<ClusterFile, LabError> {
    let text = std::fs::read_to_string(path).map_err(LabError::io(format!("read {}", path.display())))?;
    let file = cluster::parse(&path.display().to_string(), &text)?;
    cluster::wire(&file)?;
    Ok(file)
}
