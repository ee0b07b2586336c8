//! Faults of ports, daemons and nodes: what becomes of the VIPs.

use crate::init::services_of;
use crate::world::{
    MOVE_LIMIT, Outcome, SETTLE_LIMIT, World, at_most, data_ports, figures, holder, neighbours, outage,
    settle, whole,
};
use lab::table::seconds;
use std::error::Error;
use std::time::Duration;

/// Repetitions of a fault.
pub(crate) const RUNS: usize = 5;

pub(crate) fn served_after_power_on(world: &World) -> Outcome {
    let lab = &world.lab;
    for (name, vip) in lab.wires().vips() {
        let (node, port) = holder(lab, name)?;
        let home = lab.nodes().iter().find(|n| n.name == vip.home.node.0).ok_or("a home that is no node")?;
        let at = lab.nodes().iter().find(|n| n.name == node).ok_or("a holder that is no node")?;
        if at.group != home.group || !data_ports(lab, &node).contains(&port) {
            return Err(format!("{name} is on {node}:{port}, outside group {}", home.group).into());
        }
    }
    Ok(format!("{} from power on to the last VIP's first answer", seconds(world.served_after)))
}

pub(crate) fn port_pulled(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "web-1";
    let mut outages = Vec::new();
    for _ in 0..RUNS {
        settle(world)?;
        let (node, port) = holder(lab, vip)?;
        let pulled = format!("{node}:{port}");
        world.mark()?;
        lab.unplug(&pulled)?;
        lab.expect_within(MOVE_LIMIT, "the VIP on another port", || {
            lab.holder(vip).is_some_and(|h| h != pulled)
        })?;
        let (after, _) = holder(lab, vip)?;
        if after != node {
            return Err(format!("{vip} went from {pulled} to {after}, though {node} has another port").into());
        }
        outages.push(outage(lab, vip)?);
    }
    let (median, text) = figures(outages);
    at_most(median, Duration::from_millis(300), text)
}

pub(crate) fn all_ports_of_a_node_pulled(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "web-1";
    let mut outages = Vec::new();
    for _ in 0..RUNS {
        settle(world)?;
        let (node, _) = holder(lab, vip)?;
        let (group, partner) = neighbours(lab, &node);
        world.mark()?;
        for port in data_ports(lab, &node) {
            lab.unplug(&format!("{node}:{port}"))?;
        }
        lab.expect_within(MOVE_LIMIT, "the VIP on another node", || {
            holder(lab, vip).is_ok_and(|(now, _)| now != node)
        })?;
        outages.push(outage(lab, vip)?);
        let (now, _) = holder(lab, vip)?;
        if !group.contains(&now) || Some(&now) == partner.as_ref() {
            return Err(format!("{vip} went from {node} to {now}, outside of its group").into());
        }
    }
    let (median, text) = figures(outages);
    at_most(median, Duration::from_millis(500), text)
}

pub(crate) fn netd_killed(world: &World) -> Outcome {
    let (median, text) = netd_ended(world, "KILL")?;
    at_most(median, Duration::from_secs(1), text)
}

/// The fence ends it before another node takes over: its addresses are gone, and then somebody has them.
pub(crate) fn netd_stopped(world: &World) -> Outcome {
    let (median, text) = netd_ended(world, "STOP")?;
    at_most(median, Duration::from_secs(3), text)
}

/// A holder's netd gets `signal`; median of the outages, and all of them.
fn netd_ended(world: &World, signal: &str) -> Result<(Duration, String), Box<dyn Error>> {
    let lab = &world.lab;
    let vip = "shop-1";
    let mut outages = Vec::new();
    for _ in 0..RUNS {
        settle(world)?;
        let (node, _) = holder(lab, vip)?;
        let netd = || services_of(lab, &node).map(|services| services.get("netd").cloned());
        let before = netd()?;
        world.mark()?;
        lab.signal(&node, "netd", signal)?;
        lab.expect_within(SETTLE_LIMIT, "another netd", || netd().is_ok_and(|now| now != before))?;
        lab.expect_within(SETTLE_LIMIT, "netd back", || whole(lab, &node))?;
        outages.push(outage(lab, vip)?);
    }
    Ok(figures(outages))
}

pub(crate) fn node_frozen_and_thawed(world: &World) -> Outcome {
    let lab = &world.lab;
    let vip = "web-2";
    let mut outages = Vec::new();
    for _ in 0..RUNS {
        let (node, _) = holder(lab, vip)?;
        world.mark()?;
        lab.freeze(&node)?;
        lab.expect_within(MOVE_LIMIT, "the VIP on another node", || {
            holder(lab, vip).is_ok_and(|(now, _)| now != node)
        })?;
        outages.push(outage(lab, vip)?);
        world.thaw(&node)?;
        settle(world)?;
    }
    let (median, text) = figures(outages);
    at_most(median, Duration::from_secs(5), text)
}
