//! The cluster, how it is set right again, and what can be asked of it.

use lab::error::LabError;
use lab::lab::Lab;
use lab::machine::State;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) type Outcome = Result<String, Box<dyn Error>>;

/// Undoing faults: hold-downs of ports grow to seconds when they are pulled often.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// A state that has lasted this long has settled: longer than the first hold-downs of a port.
pub(crate) const STEADY: Duration = Duration::from_millis(1500);
/// A move that takes longer than this did not happen.
pub(crate) const MOVE_LIMIT: Duration = Duration::from_secs(20);
/// A node's whole way from reset to its prompt, beside three others.
pub(crate) const REBOOT_LIMIT: Duration = Duration::from_secs(120);

/// The cluster, how it came up, and what was seen of it.
pub(crate) struct World {
    pub(crate) lab: Arc<Lab>,
    /// From power on to the last VIP's first answer.
    pub(crate) served_after: Duration,
    /// Since the scenario began.
    pub(crate) owners: RefCell<Owners>,
    /// A node was thawed and the cluster has not settled since: the node believes in its lease, so two may answer.
    pub(crate) thawed: Cell<bool>,
}

/// Answered owner questions for all VIPs.
#[derive(Default)]
pub(crate) struct Owners {
    pub(crate) samples: u64,
    /// Those that two stations answered.
    pub(crate) doubles: u64,
    /// Their VIPs.
    pub(crate) doubled: BTreeSet<String>,
    /// The same between a thaw and the cluster's settling: measured, not forbidden.
    pub(crate) doubles_after_thaw: u64,
}

impl World {
    /// A cluster whose last VIP answered `served_after` power on.
    pub(crate) fn new(lab: Arc<Lab>, served_after: Duration) -> World {
        World { lab, served_after, owners: RefCell::default(), thawed: Cell::new(false) }
    }

    /// Starts a measurement of every VIP; what the last one saw is counted.
    pub(crate) fn mark(&self) -> Result<(), LabError> {
        let mut owners = self.owners.borrow_mut();
        for (vip, _) in self.lab.wires().vips() {
            let report = self.lab.wires().report(vip)?;
            owners.samples += report.samples;
            match report.double_owners_seen {
                0 => {}
                seen if self.thawed.get() => owners.doubles_after_thaw += seen,
                seen => {
                    owners.doubles += seen;
                    owners.doubled.insert(vip.to_owned());
                }
            }
            self.lab.mark(vip)?;
        }
        Ok(())
    }

    pub(crate) fn thaw(&self, node: &str) -> Result<(), LabError> {
        self.mark()?;
        self.thawed.set(true);
        self.lab.thaw(node)
    }
}

/// An error with its causes, where it has them.
pub(crate) fn told(error: &(dyn Error + 'static)) -> String {
    error.downcast_ref::<LabError>().map_or_else(|| error.to_string(), LabError::chain)
}

/// Undoes every fault and waits until the cluster is whole: all nodes up with every port operative, every VIP served.
pub(crate) fn settle(world: &World) -> Result<(), Box<dyn Error>> {
    let lab = &world.lab;
    for node in lab.status().nodes {
        match lab.power(&node.name)?.state {
            State::Off { .. } => lab.power_on(&node.name)?,
            State::Frozen => world.thaw(&node.name)?,
            State::On => {}
        }
        for port in node.ports.iter().filter_map(|p| p.strip_suffix('!')) {
            lab.plug(&format!("{}:{port}", node.name))?;
        }
    }
    lab.wait_for_vips()?;
    // What a node tells of itself is a moment old: a state counts that has lasted.
    let since = Cell::new(None);
    lab.expect_within(SETTLE_LIMIT, "a whole cluster that agrees on its VIPs", || {
        if !lab.nodes().iter().all(|n| whole(lab, &n.name) && agrees(lab, &n.name, &n.group)) {
            since.set(None);
        } else if since.get().is_none() {
            since.set(Some(Instant::now()));
        }
        since.get().is_some_and(|since| since.elapsed() >= STEADY)
    })?;
    world.mark()?;
    world.thawed.set(false);
    Ok(())
}

/// All ports operative and all peers up, as the node itself says.
pub(crate) fn whole(lab: &Lab, node: &str) -> bool {
    let all = |command: &str, word: &str| {
        lab.keel(node, command).is_ok_and(|text| {
            let rows: Vec<&str> = text.lines().skip(1).collect();
            !rows.is_empty() && rows.iter().all(|row| row.split_whitespace().any(|cell| cell == word))
        })
    };
    lab.has_prompt(node) && all("show ports", "operative") && all("show peers", "up")
}

/// The node names the holder of each of its group's VIPs that answers to the probing host.
pub(crate) fn agrees(lab: &Lab, node: &str, group: &str) -> bool {
    lab.keel(node, "show vips").is_ok_and(|text| {
        lab.wires().vips().filter(|(_, vip)| vip.group.0 == group).all(|(name, _)| {
            let row = text
                .lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>())
                .find(|r| r.first() == Some(&name));
            row.is_some_and(|row| lab.holder(name).is_some_and(|holder| row.contains(&holder.as_str())))
        })
    })
}

pub(crate) fn holder(lab: &Lab, vip: &str) -> Result<(String, String), Box<dyn Error>> {
    let holder = lab.holder(vip).ok_or_else(|| format!("nobody answers for {vip}"))?;
    let (node, port) = holder.split_once(':').ok_or_else(|| format!("{vip} is answered for by {holder}"))?;
    Ok((node.to_owned(), port.to_owned()))
}

/// The other nodes of a node's group, and its partner.
pub(crate) fn neighbours(lab: &Lab, node: &str) -> (Vec<String>, Option<String>) {
    let me = lab.nodes().iter().find(|n| n.name == node).expect("a node of the lab");
    let others = || lab.nodes().iter().filter(|n| n.name != node);
    let group = others().filter(|n| n.group == me.group).map(|n| n.name.clone()).collect();
    let partner = others().find(|n| n.pair.is_some() && n.pair == me.pair).map(|n| n.name.clone());
    (group, partner)
}

/// Data ports of a node: those on the network that has VIPs.
pub(crate) fn data_ports(lab: &Lab, node: &str) -> Vec<String> {
    let node = lab.nodes().iter().find(|n| n.name == node).expect("a node of the lab");
    let networks: Vec<_> = lab.wires().vips().map(|(_, vip)| vip.network.clone()).collect();
    node.ports.iter().filter(|p| networks.contains(&p.network)).map(|p| p.id.port.0.clone()).collect()
}

/// Waits until the VIP is in reach again; how long it was not since its mark.
pub(crate) fn outage(lab: &Lab, vip: &str) -> Result<Duration, Box<dyn Error>> {
    lab.expect_within(MOVE_LIMIT, &format!("{vip} in reach again"), || {
        lab.wires()
            .report(vip)
            .is_ok_and(|r| r.reach.is_some_and(|reach| !reach.ongoing && reach.answered > 0))
    })?;
    Ok(lab.outage(vip)?)
}

/// Median and all figures.
pub(crate) fn figures(mut values: Vec<Duration>) -> (Duration, String) {
    values.sort();
    let median = values[values.len() / 2];
    let all: Vec<String> = values.iter().map(|v| v.as_millis().to_string()).collect();
    (median, format!("median {} ms without service ({})", median.as_millis(), all.join(" ")))
}

pub(crate) fn at_most(median: Duration, limit: Duration, text: String) -> Outcome {
    if median <= limit {
        Ok(text)
    } else {
        Err(format!("{text}; at most {} ms are allowed", limit.as_millis()).into())
    }
}
