//! Where VIPs belong: pure functions of what a node knows of its group.
//!
//! Every node computes them for itself. Nodes that know the same come to the same answer, so that one of them
//! acts; nodes that know different things may both act, and the claim decides between them.
//!
//! **In bounds** ([`Reject`] names each rule): a port may carry a VIP when its node is in the VIP's group,
//! takes part, and is not the pair partner of the node the VIP left; when the port is on the VIP's network and
//! operative; and when its kernel did not lately refuse the address. The cluster file already keeps partners
//! out of one group; it is checked here all the same, because it is a promise.
//!
//! **A VIP whose port went out, on a live holder** ([`next_port_on`]): the holder's other port with the fewest
//! VIPs, then the lowest name. Only the holder computes this.
//!
//! **VIPs without a holder** ([`plan`]):
//! 1. each goes to its home port when that is in bounds;
//! 2. the others, in name order, each go to the node with the fewest VIPs on operative ports, there to the port
//!    with the fewest, then to the lowest name. What 1 and 2 placed before counts as a VIP.
//!
//! Nothing is moved for balance: a VIP with a live holder stays.

use crate::scope::Scope;
use core::fmt;
use proto::cluster::{Guard, NodeName, PortId, PortName, VipName};
use std::collections::{BTreeMap, BTreeSet};

/// What placement looks at.
#[derive(Clone, Debug)]
pub(crate) struct View<'a> {
    pub(crate) scope: &'a Scope,
    /// Operative ports of nodes that take part, with the number of VIPs held and claimed there.
    pub(crate) ports: BTreeMap<PortId, usize>,
    /// Ports whose kernel refused a VIP's address.
    pub(crate) refused: BTreeSet<(VipName, PortId)>,
}

/// A VIP without a holder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unheld<'a> {
    pub(crate) vip: &'a VipName,
    /// The node that held it last.
    pub(crate) left: Option<&'a NodeName>,
}

/// Why no port is in bounds for a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unplaceable {
    /// This release serves VIPs by probe only.
    StrictGuard,
    /// No port of the group on the VIP's network is operative on a node that takes part.
    NoOperativePort,
    /// There are some, but each is ruled out; one of them and why.
    AllRejected { port: PortId, why: Reject },
}

impl Unplaceable {
    /// For people.
    pub(crate) fn describe(&self, scope: &Scope, vip: &VipName) -> String {
        let network = scope.vips.get(vip).map_or("?", |v| v.network.0.as_str());
        match self {
            Unplaceable::StrictGuard => {
                "guard \"strict\" is not served by this release; use \"available\"".to_owned()
            }
            Unplaceable::NoOperativePort => {
                format!("no operative port on network {network} in group {}", scope.group)
            }
            Unplaceable::AllRejected { port, why } => {
                format!("every operative port on network {network} is ruled out; {port}: {why}")
            }
        }
    }
}

/// Why a port must not carry a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    /// Another group, or another network.
    Misfit,
    /// Not operative, or its node takes no part.
    Unusable,
    /// On the pair partner of the node the VIP left.
    Partner,
    /// The kernel there refused the address.
    Refused,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reject::Misfit => "other group or network",
            Reject::Unusable => "not operative",
            Reject::Partner => "partner of the node it left",
            Reject::Refused => "kernel refused the address",
        })
    }
}

impl View<'_> {
    /// Whether `port` may carry `vip`, which must keep off the node `barred`.
    fn in_bounds(&self, vip: &VipName, port: &PortId, barred: Option<&NodeName>) -> Result<(), Reject> {
        if !self.scope.fits(vip, &port.node, &port.port) {
            return Err(Reject::Misfit);
        }
        if !self.ports.contains_key(port) {
            return Err(Reject::Unusable);
        }
        if barred == Some(&port.node) {
            return Err(Reject::Partner);
        }
        if !self.refused.is_empty() && self.refused.contains(&(vip.clone(), port.clone())) {
            return Err(Reject::Refused);
        }
        Ok(())
    }

    /// VIPs on all operative ports of each node.
    fn node_loads(&self) -> BTreeMap<NodeName, usize> {
        let mut loads = BTreeMap::new();
        for (port, load) in &self.ports {
            *loads.entry(port.node.clone()).or_default() += load;
        }
        loads
    }

    fn add_load(&mut self, nodes: &mut BTreeMap<NodeName, usize>, port: &PortId) {
        *self.ports.entry(port.clone()).or_default() += 1;
        *nodes.entry(port.node.clone()).or_default() += 1;
    }

    /// The least loaded port in bounds, nodes before ports.
    fn least_loaded(
        &self,
        nodes: &BTreeMap<NodeName, usize>,
        vip: &VipName,
        barred: Option<&NodeName>,
    ) -> Option<PortId> {
        let fit = self.ports.iter().filter(|(port, _)| self.in_bounds(vip, port, barred).is_ok());
        let best = fit.min_by_key(|(port, load)| (nodes.get(&port.node), **load, *port));
        best.map(|(port, _)| port.clone())
    }

    fn why_nowhere(&self, vip: &VipName, barred: Option<&NodeName>) -> Unplaceable {
        let fitting = self.ports.keys().filter(|port| self.scope.fits(vip, &port.node, &port.port));
        let mut rejected = fitting.filter_map(|port| Some((port, self.in_bounds(vip, port, barred).err()?)));
        match rejected.next() {
            Some((port, why)) => Unplaceable::AllRejected { port: port.clone(), why },
            None => Unplaceable::NoOperativePort,
        }
    }
}

/// Places all VIPs that have no holder.
pub(crate) fn plan(
    mut view: View<'_>,
    unheld: &[Unheld<'_>],
) -> BTreeMap<VipName, Result<PortId, Unplaceable>> {
    let mut nodes = view.node_loads();
    let mut placed = BTreeMap::new();
    let mut rest: BTreeMap<&VipName, Option<&NodeName>> = BTreeMap::new();
    for Unheld { vip, left } in unheld {
        let Some(facts) = view.scope.vips.get(*vip) else { continue };
        let barred = left.and_then(|node| view.scope.file.partner(node));
        if facts.guard == Guard::Strict {
            placed.insert((*vip).clone(), Err(Unplaceable::StrictGuard));
        } else if view.in_bounds(vip, &facts.home, barred).is_ok() {
            view.add_load(&mut nodes, &facts.home);
            placed.insert((*vip).clone(), Ok(facts.home.clone()));
        } else {
            rest.insert(vip, barred);
        }
    }
    for (vip, barred) in rest {
        let place = view.least_loaded(&nodes, vip, barred);
        if let Some(port) = &place {
            view.add_load(&mut nodes, port);
        }
        placed.insert(vip.clone(), place.ok_or_else(|| view.why_nowhere(vip, barred)));
    }
    placed
}

/// Where the live holder `node` puts `vip` when it cannot stay on `from`.
pub(crate) fn next_port_on(
    view: &View<'_>,
    vip: &VipName,
    node: &NodeName,
    from: &PortName,
) -> Option<PortId> {
    let others = view.ports.iter().filter(|(port, _)| port.node == *node && port.port != *from);
    let fit = others.filter(|(port, _)| view.in_bounds(vip, port, None).is_ok());
    fit.min_by_key(|(port, load)| (**load, *port)).map(|(port, _)| port.clone())
}

/// Where `vip` would go if `holder` went out: what people are shown.
pub(crate) fn successor(view: &View<'_>, vip: &VipName, holder: &PortId) -> Result<PortId, Unplaceable> {
    if let Some(port) = next_port_on(view, vip, &holder.node, &holder.port) {
        return Ok(port);
    }
    let mut without = view.clone();
    without.ports.remove(holder);
    let unheld = [Unheld { vip, left: Some(&holder.node) }];
    plan(without, &unheld).remove(vip).unwrap_or(Err(Unplaceable::NoOperativePort))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, port_id};
    use proptest::prelude::*;
    use proto::cluster::ClusterFile;

    fn file() -> ClusterFile {
        cluster(
            &["a1 east p1 p2", "a2 west p1 p2", "b1 east p1 p2", "b2 west p1 p2", "c1 east p1 b1"],
            &["v1 a1:p1", "v2 a1:p2", "v3 b1:p1", "v4 c1:p1", "v5 c1:b1"],
        )
    }

    fn view<'a>(scope: &'a Scope, ports: &[(&str, usize)]) -> View<'a> {
        let ports = ports.iter().map(|(port, load)| (port_id(port), *load)).collect();
        View { scope, ports, refused: BTreeSet::new() }
    }

    fn place(ports: &[(&str, usize)], vips: &[&str], left: Option<&str>) -> Vec<String> {
        let scope = Scope::new(&file(), &"a1".into()).unwrap();
        let names: Vec<VipName> = vips.iter().map(|v| (*v).into()).collect();
        let left: Option<NodeName> = left.map(Into::into);
        let unheld: Vec<_> = names.iter().map(|vip| Unheld { vip, left: left.as_ref() }).collect();
        let places = plan(view(&scope, ports), &unheld);
        let text = |p: &Result<PortId, Unplaceable>| match p {
            Ok(port) => port.to_string(),
            Err(why) => format!("{why:?}"),
        };
        places.values().map(text).collect()
    }

    #[test]
    fn home_comes_first_even_when_loaded() {
        assert_eq!(place(&[("a1:p1", 9), ("b1:p1", 0)], &["v1"], None), ["a1:p1"]);
    }

    #[test]
    fn then_the_least_loaded_node_then_port_then_name() {
        let cases = [
            (&[("b1:p1", 2), ("c1:p1", 1)][..], "c1:p1"),
            (&[("b1:p1", 1), ("b1:p2", 1), ("c1:p1", 1)], "c1:p1"), // two VIPs on b1, one on c1
            (&[("b1:p1", 1), ("b1:p2", 0), ("c1:p1", 1)], "b1:p2"),
            (&[("b1:p2", 0), ("b1:p1", 0), ("c1:p1", 0)], "b1:p1"),
        ];
        for (ports, expected) in cases {
            assert_eq!(place(ports, &["v1"], None), [expected], "{ports:?}");
        }
    }

    #[test]
    fn a_dead_node_s_vips_are_spread() {
        let ports = [("b1:p1", 0), ("b1:p2", 0), ("c1:p1", 0)];
        assert_eq!(place(&ports, &["v1", "v2"], Some("a1")), ["b1:p1", "c1:p1"]);
    }

    #[test]
    fn never_outside_the_group_or_the_network() {
        assert_eq!(place(&[("a2:p1", 0), ("b2:p1", 0), ("c1:b1", 0)], &["v1"], None), ["NoOperativePort"]);
        assert_eq!(place(&[("c1:p1", 0), ("c1:b1", 5)], &["v5"], None), ["c1:b1"]);
    }

    #[test]
    fn never_on_the_partner_of_the_node_it_left() {
        // The file's rules forbid partners in one group; this file breaks them to see the second line of defence.
        let file = cluster(&["a1 east p1", "a2 east p1", "b1 east p1"], &["v1 a1:p1", "v2 a2:p1"]);
        let scope = Scope::new(&file, &"b1".into()).unwrap();
        let (v1, v2, a1) = ("v1".into(), "v2".into(), "a1".into());
        let left = [Unheld { vip: &v1, left: Some(&a1) }, Unheld { vip: &v2, left: Some(&a1) }];
        let places = plan(view(&scope, &[("a2:p1", 0), ("b1:p1", 7)]), &left);
        assert_eq!(places[&v1], Ok(port_id("b1:p1")));
        assert_eq!(places[&v2], Ok(port_id("b1:p1")), "not even when the partner is its home");
        let places = plan(view(&scope, &[("a2:p1", 0)]), &left);
        let expected = Unplaceable::AllRejected { port: port_id("a2:p1"), why: Reject::Partner };
        assert_eq!(places[&v1], Err(expected));
    }

    #[test]
    fn not_where_the_kernel_refused() {
        let scope = Scope::new(&file(), &"a1".into()).unwrap();
        let v1 = "v1".into();
        let mut view = view(&scope, &[("a1:p1", 0), ("c1:p1", 0)]);
        view.refused.insert(("v1".into(), port_id("a1:p1")));
        let places = plan(view, &[Unheld { vip: &v1, left: None }]);
        assert_eq!(places[&v1], Ok(port_id("c1:p1")));
    }

    #[test]
    fn strict_is_served_by_nobody() {
        let mut file = file();
        file.vips.get_mut(&"v1".into()).unwrap().guard = Guard::Strict;
        let scope = Scope::new(&file, &"a1".into()).unwrap();
        let v1 = "v1".into();
        let places = plan(view(&scope, &[("a1:p1", 0)]), &[Unheld { vip: &v1, left: None }]);
        assert_eq!(places[&v1], Err(Unplaceable::StrictGuard));
    }

    #[test]
    fn a_holder_prefers_its_own_other_port() {
        let scope = Scope::new(&file(), &"a1".into()).unwrap();
        let go = |ports: &[(&str, usize)]| {
            successor(&view(&scope, ports), &"v1".into(), &port_id("a1:p1")).map(|p| p.to_string())
        };
        assert_eq!(go(&[("a1:p1", 1), ("a1:p2", 9), ("c1:p1", 0)]), Ok("a1:p2".to_owned()));
        assert_eq!(go(&[("a1:p1", 1), ("b1:p2", 9), ("c1:p1", 0)]), Ok("c1:p1".to_owned()));
        assert_eq!(go(&[("a1:p1", 1)]), Err(Unplaceable::NoOperativePort));
    }

    type World = (ClusterFile, BTreeMap<PortId, usize>, Vec<(VipName, Option<NodeName>)>);

    /// A group of nodes with ports, some operative with a load, VIPs homed anywhere, each having left some
    /// node.
    fn worlds() -> impl Strategy<Value = World> {
        let node = (0..2u8, 1..4usize, prop::bool::ANY);
        let nodes = prop::collection::vec(node, 1..7);
        let loads = prop::collection::vec(prop::option::of(0..4usize), 32);
        let vips = prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..9);
        (nodes, loads, vips).prop_map(|(nodes, loads, vips)| {
            let groups = ["east", "west"];
            let line = |(at, (group, ports, back)): (usize, &(u8, usize, bool))| {
                let pair = char::from(b'a' + u8::try_from(at / 2).unwrap());
                let ports: Vec<String> = (1..=*ports).map(|p| format!("p{p}")).collect();
                let back = if *back { " b1" } else { "" };
                format!("{pair}{} {} {}{back}", at % 2 + 1, groups[usize::from(*group)], ports.join(" "))
            };
            let lines: Vec<String> = nodes.iter().enumerate().map(line).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let file = cluster(&lines, &[]);
            let all: Vec<PortId> = file
                .nodes
                .iter()
                .flat_map(|(n, node)| node.ports.keys().map(|p| PortId { node: n.clone(), port: p.clone() }))
                .collect();
            let homes: Vec<String> =
                vips.iter().enumerate().map(|(at, (home, _))| format!("v{at} {}", home.get(&all))).collect();
            let homes: Vec<&str> = homes.iter().map(String::as_str).collect();
            let file = cluster(&lines, &homes);
            let names: Vec<NodeName> = file.nodes.keys().cloned().collect();
            let left = |(at, (_, left)): (usize, &(_, prop::sample::Index))| {
                let left = left.index(names.len() + 1);
                (VipName(format!("v{at}")), names.get(left).cloned())
            };
            let left = vips.iter().enumerate().map(left).collect();
            let ports = all.into_iter().zip(loads).filter_map(|(p, load)| Some((p, load?))).collect();
            (file, ports, left)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        #[test]
        fn every_place_is_in_bounds_and_every_refusal_is_just((file, ports, unheld) in worlds()) {
            let me = file.nodes.keys().next().unwrap().clone();
            let scope = Scope::new(&file, &me).unwrap();
            let view = || View { scope: &scope, ports: ports.clone(), refused: BTreeSet::new() };
            let list: Vec<_> = unheld.iter().map(|(vip, left)| Unheld { vip, left: left.as_ref() }).collect();
            let places = plan(view(), &list);
            for (name, left) in &unheld {
                let Some(vip) = scope.vips.get(name) else {
                    prop_assert!(!places.contains_key(name), "a VIP of another group is not ours to place");
                    continue;
                };
                let partner = left.as_ref().and_then(|n| file.partner(n));
                let fits = |port: &PortId| {
                    file.nodes[&port.node].group == vip.group
                        && file.nodes[&port.node].ports[&port.port].network == vip.network
                        && partner != Some(&port.node)
                };
                match &places[name] {
                    Ok(port) => prop_assert!(ports.contains_key(port) && fits(port), "{name} on {port}"),
                    Err(_) => prop_assert!(!ports.keys().any(fits), "{name} could be placed"),
                }
                if ports.contains_key(&vip.home) && fits(&vip.home) {
                    prop_assert_eq!(places[name].as_ref(), Ok(&vip.home));
                }
            }
        }

        #[test]
        fn the_order_of_the_question_and_the_asker_do_not_matter((file, ports, mut unheld) in worlds()) {
            let ask = |me: &NodeName, unheld: &[(VipName, Option<NodeName>)]| {
                let scope = Scope::new(&file, me).unwrap();
                let view = View { scope: &scope, ports: ports.clone(), refused: BTreeSet::new() };
                let list: Vec<_> = unheld.iter().map(|(vip, left)| Unheld { vip, left: left.as_ref() }).collect();
                plan(view, &list)
            };
            let first = file.nodes.keys().next().unwrap();
            let group = &file.nodes[first].group;
            let expected = ask(first, &unheld);
            unheld.reverse();
            for (member, _) in file.group_members(group) {
                prop_assert_eq!(&ask(member, &unheld), &expected);
            }
        }

        #[test]
        fn the_load_is_even_when_homes_are_out(count in 1..12usize, nodes in 1..5usize) {
            let lines: Vec<String> =
                "abcdef".chars().take(nodes + 1).map(|letter| format!("{letter}1 east p1 p2")).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let vips: Vec<String> = (0..count).map(|v| format!("v{v:02} a1:p1")).collect();
            let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
            let file = cluster(&lines, &vips);
            let scope = Scope::new(&file, &"a1".into()).unwrap();
            let others = file.nodes.keys().filter(|n| n.0 != "a1");
            let ports = others.flat_map(|n| ["p1", "p2"].map(|p| (PortId { node: n.clone(), port: p.into() }, 0)));
            let view = View { scope: &scope, ports: ports.collect(), refused: BTreeSet::new() };
            let names: Vec<VipName> = file.vips.keys().cloned().collect();
            let list: Vec<_> = names.iter().map(|vip| Unheld { vip, left: None }).collect();
            let mut loads: BTreeMap<NodeName, usize> = BTreeMap::new();
            for place in plan(view, &list).into_values() {
                *loads.entry(place.unwrap().node).or_default() += 1;
            }
            let most = loads.values().max().unwrap();
            prop_assert_eq!(*most, count.div_ceil(nodes));
        }
    }
}
