//! What of the cluster file concerns one node: its group, the group's nodes, ports and VIPs. Built once.

use proto::cluster::{ClusterFile, GroupName, NodeName, PortId, PortName, Vip, VipName};
use proto::status::{NODES_MAX, VIPS_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// The cluster file as seen from node `me`.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) file: ClusterFile,
    pub(crate) me: NodeName,
    pub(crate) group: GroupName,
    /// The group's other nodes. No more than a status message can name.
    pub(crate) peers: BTreeSet<NodeName>,
    /// The group's VIPs. No more than a status message can name.
    pub(crate) vips: BTreeMap<VipName, Vip>,
    /// Position of this node among the group's, by name.
    pub(crate) rank: usize,
}

impl Scope {
    /// `None` when the file has no node `me`.
    pub(crate) fn new(file: &ClusterFile, me: &NodeName) -> Option<Scope> {
        let group = file.nodes.get(me)?.group.clone();
        let members: Vec<&NodeName> = file.group_members(&group).map(|(name, _)| name).collect();
        let rank = members.iter().position(|name| *name == me)?;
        let peers = members.into_iter().filter(|name| *name != me).take(NODES_MAX).cloned().collect();
        let in_group = file.vips.iter().filter(|(_, vip)| vip.group == group);
        let vips = in_group.take(VIPS_MAX).map(|(name, vip)| (name.clone(), vip.clone())).collect();
        Some(Scope { file: file.clone(), me: me.clone(), group, peers, vips, rank })
    }

    /// Whether a VIP of this name, of this group, can sit on that port at all: the part of `in-bounds` that
    /// never changes.
    pub(crate) fn fits(&self, vip: &VipName, node: &NodeName, port: &PortName) -> bool {
        let Some(vip) = self.vips.get(vip) else { return false };
        let Some(node) = self.file.nodes.get(node) else { return false };
        node.group == vip.group && node.ports.get(port).is_some_and(|p| p.network == vip.network)
    }

    /// A port of this node, with the node's name.
    pub(crate) fn own(&self, port: &PortName) -> PortId {
        PortId { node: self.me.clone(), port: port.clone() }
    }
}
