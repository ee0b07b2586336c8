//! Drives the parts: one call per input, one decision pass behind each.

use crate::io::{Input, Outbox};
use crate::snapshot::{Ignored, Snapshot};
use proto::cluster::{ClusterFile, NodeName};
use proto::status::Participation;
use proto::time::Time;

/// The node is not in the cluster file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownNode(pub NodeName);

impl core::fmt::Display for UnknownNode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the cluster file has no node {:?}; check the node's personality", self.0.0)
    }
}

impl core::error::Error for UnknownNode {}

/// A node's part in its failover group.
#[derive(Debug)]
pub struct Failover {
    file: ClusterFile,
    me: NodeName,
    incarnation: u64,
    last: Time,
}

impl Failover {
    /// A core for node `me` that starts to listen at `now`.
    ///
    /// `incarnation` must be higher than in every earlier life of this node's netd: peers ignore a lower one for a
    /// lease.
    pub fn new(
        config: &ClusterFile,
        me: NodeName,
        incarnation: u64,
        now: Time,
    ) -> Result<Failover, UnknownNode> {
        if !config.nodes.contains_key(&me) {
            return Err(UnknownNode(me));
        }
        Ok(Failover { file: config.clone(), me, incarnation, last: now })
    }

    /// Takes one input in; puts what is to be done into `out`.
    pub fn handle(&mut self, now: Time, _input: Input, out: &mut Outbox) {
        self.handle_timeout(now, out);
    }

    /// To be called when [`next_wakeup`](Self::next_wakeup) has come; harmless at any other time.
    pub fn handle_timeout(&mut self, now: Time, _out: &mut Outbox) {
        self.last = now;
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, to be asked again after every call.
    pub fn next_wakeup(&self) -> Option<Time> {
        Some(self.last + self.file.timing.beat)
    }

    /// The state as rows.
    pub fn snapshot(&self, _now: Time) -> Snapshot {
        Snapshot {
            node: self.me.clone(),
            group: self.file.nodes[&self.me].group.clone(),
            incarnation: self.incarnation,
            participation: Participation::Starting,
            ready_in: None,
            ports: Vec::new(),
            vips: Vec::new(),
            peers: Vec::new(),
            ignored: Ignored::default(),
        }
    }
}
