//! What must be true after every step, by name.
//!
//! - `in-bounds`: an address is only ever on a port of its VIP's group and network; and where netd acts, not on
//!   a port that has been without carrier for longer than netd needs to hear of it.
//! - `one-holder`: of one LAN segment at most one node answers for a VIP. Two may do so only in consequence of
//!   what no netd can prevent (a machine that stood still comes back, a LAN is joined), and no longer than two
//!   beats once both act and the nodes of the group hear each other both ways.

use crate::world::{World, ms};
use proto::cluster::{NodeName, PortId, VipName};
use proto::time::{Duration, Time};
use std::collections::BTreeMap;

/// From the pull of a cable to the removal of what is on the port: link event, handling.
const REACTION: Duration = ms(25);

#[derive(Default)]
pub(crate) struct Watch {
    /// VIPs with two holders, and since when both can know.
    doubled: BTreeMap<VipName, Option<Time>>,
    excused: Option<Time>,
}

impl Watch {
    /// From now on, and for two beats, two holders are nobody's fault.
    pub(crate) fn excuse(&mut self, now: Time) {
        self.excused = Some(now);
    }

    pub(crate) fn check(&mut self, world: &World) -> Result<(), String> {
        in_bounds(world)?;
        self.one_holder(world)
    }

    fn one_holder(&mut self, world: &World) -> Result<(), String> {
        let beat = world.file.timing.beat;
        for vip in world.file.vips.keys() {
            let Some(holders) = rivals(world, vip) else {
                match self.doubled.get_mut(vip) {
                    // Both still have it, on ports that do not meet just now.
                    Some(since) if having(world, vip) > 1 => *since = None,
                    _ => drop(self.doubled.remove(vip)),
                }
                continue;
            };
            let bound = if world.weather.loss_percent == 0 {
                2 * beat + 2 * world.weather.delay_max + ms(5)
            } else {
                // As long as it takes until one of several beats arrives.
                world.file.timing.lease + 2 * world.weather.delay_max
            };
            let acting = |p: &PortId| world.machines[&p.node].acts();
            let known = holders.iter().all(acting) && hear_each_other(world, vip);
            if !self.doubled.contains_key(vip) && !self.excused(world, &holders) {
                return Err(format!("one-holder: {vip} is answered for by {holders:?}"));
            }
            let since = self.doubled.entry(vip.clone()).or_default();
            *since = known.then(|| since.unwrap_or(world.now));
            if since.is_some_and(|since| world.now - since > bound) {
                return Err(format!(
                    "one-holder: {vip} is still answered for by {holders:?} after {bound:?}"
                ));
            }
        }
        Ok(())
    }

    /// Whether something that no netd can prevent made both answer.
    fn excused(&self, world: &World, holders: &[PortId]) -> bool {
        let recent = |at: Time| world.now - at <= 2 * world.file.timing.beat + 2 * world.weather.delay_max;
        let thawed = holders.iter().any(|p| world.machines[&p.node].thawed.is_some_and(recent));
        thawed || self.excused.is_some_and(recent)
    }
}

/// Machines whose kernels have the address of `vip`, on ports with or without carrier.
fn having(world: &World, vip: &VipName) -> usize {
    let has = |m: &&crate::world::Machine| m.addresses.iter().any(|(v, _)| v == vip);
    world.machines.values().filter(has).count()
}

/// The ports of different nodes in one segment that answer for `vip`, when there are several.
fn rivals(world: &World, vip: &VipName) -> Option<Vec<PortId>> {
    let answering = world.answering(vip);
    if answering.len() < 2 {
        return None;
    }
    let segment = |p: &PortId| world.segments.get(p).copied().unwrap_or(0);
    let rival = |a: &&PortId| answering.iter().any(|b| b.node != a.node && segment(a) == segment(b));
    let rivals: Vec<PortId> = answering.iter().filter(rival).cloned().collect();
    (!rivals.is_empty()).then_some(rivals)
}

/// Whether messages arrive between all nodes of the VIP's group, both ways.
fn hear_each_other(world: &World, vip: &VipName) -> bool {
    let group = &world.file.vips[vip].group;
    let member = |node: &NodeName| world.file.nodes[node].group == *group;
    !world.cut.iter().any(|(from, to)| member(from) && member(to))
}

fn in_bounds(world: &World) -> Result<(), String> {
    for (node, machine) in &world.machines {
        for (vip, port) in &machine.addresses {
            let facts = &world.file.vips[vip];
            let here = &world.file.nodes[node];
            if here.group != facts.group || here.ports[port].network != facts.network {
                return Err(format!("in-bounds: {vip} is on {node}:{port}"));
            }
            let pulled = machine.touched.get(port).copied().filter(|_| !machine.plugged[port]);
            let thawed = machine.thawed.unwrap_or(Time::ZERO);
            let blind = pulled.is_some_and(|at| world.now - at.max(thawed).max(machine.started) > REACTION);
            if machine.acts() && blind {
                return Err(format!("in-bounds: {vip} is on {node}:{port}, which has no carrier"));
            }
        }
    }
    Ok(())
}
