//! `org.evenkeel.Net1` at `/org/evenkeel/net`: what netd knows of ports, VIPs and peers.
//!
//! | member | signature | |
//! |---|---|---|
//! | method `Ports` | `-> a(ssssbsbs)` | this node's ports, in name order |
//! | method `Vips` | `-> a(ssssssttsss)` | every VIP of the cluster, in name order |
//! | method `Peers` | `-> a(sbts)` | the other nodes, in name order |
//! | signal `Changed` | `()` | one of the lists changed; ask again. Several changes may be told by one signal |
//!
//! Fields are only appended, under a new interface name (`Net2`), so that old clients keep working.
//! Instants are milliseconds of the node's `CLOCK_BOOTTIME`, not ages: an age would be wrong as soon as it is read.

use crate::client::{CallError, Caller, Changes};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use zbus::Type;

/// The interface's name.
pub const INTERFACE: &str = "org.evenkeel.Net1";

/// The object that carries it.
pub const OBJECT: &str = "/org/evenkeel/net";

/// What netd shows. netd sends it through a `watch` channel; each change the channel notifies becomes a `Changed`
/// signal, so update what changes with every beat ([`PeerRow::last_heard_ms`]) by `send_if_modified` with `false`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// This node's ports, in name order.
    pub ports: Vec<PortRow>,
    /// Every VIP of the cluster, in name order.
    pub vips: Vec<VipRow>,
    /// The other nodes, in name order.
    pub peers: Vec<PeerRow>,
}

/// A port of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct PortRow {
    /// Its name in the cluster file.
    pub name: String,
    /// The kernel's interface, empty while none matches.
    pub interface: String,
    /// The interface's hardware address, `52:54:00:09:00:0a`, or empty.
    pub mac: String,
    /// The network it is plugged into.
    pub network: String,
    /// Usable now.
    pub operative: bool,
    /// Why it is not operative, empty when it is.
    pub reason: String,
    /// The kernel reports a carrier.
    pub carrier: bool,
    /// Its own address with prefix length, or empty: data ports need none. Both families are joined by a blank.
    pub address: String,
}

/// A virtual address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct VipRow {
    /// Its name in the cluster file.
    pub name: String,
    /// The address, without prefix length.
    pub address: String,
    /// The group whose nodes may hold it.
    pub group: String,
    /// Its network.
    pub network: String,
    /// One word, chosen by netd: `active` here, `backup` (held by a peer), `down` (held by nobody), ...
    pub state: String,
    /// The port that holds it, `a1:p1`, or empty.
    pub holder: String,
    /// Counts the times it changed its holder.
    pub epoch: u64,
    /// Since when it is in `state`, in ms of `CLOCK_BOOTTIME`.
    pub since_ms: u64,
    /// The port it starts on, `a1:p1`.
    pub home: String,
    /// The port it would go to if its holder were lost now, `a1:p2`, or empty when there is none.
    pub next: String,
    /// What a technician should know, one short line, mostly empty.
    pub note: String,
}

/// Another node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct PeerRow {
    /// Its name.
    pub node: String,
    /// Heard within the lease.
    pub alive: bool,
    /// When it was last heard, in ms of `CLOCK_BOOTTIME`; 0 when it never was.
    pub last_heard_ms: u64,
    /// The management address it is known under, without prefix length.
    pub address: String,
}

/// The object netd's clients see; reads the watch channel, decides nothing.
pub(crate) struct Net1(pub(crate) watch::Receiver<NetState>);

// Calls are answered in order on the connection's own task (`spawn = false`): a client that floods calls and never
// reads the answers fills its own socket instead of netd's memory.
#[zbus::interface(name = "org.evenkeel.Net1", spawn = false)]
impl Net1 {
    fn ports(&self) -> Vec<PortRow> {
        self.0.borrow().ports.clone()
    }

    fn vips(&self) -> Vec<VipRow> {
        self.0.borrow().vips.clone()
    }

    fn peers(&self) -> Vec<PeerRow> {
        self.0.borrow().peers.clone()
    }

    #[zbus(signal)]
    pub(crate) async fn changed(emitter: &zbus::object_server::SignalEmitter<'_>) -> zbus::Result<()>;
}

/// Asks netd. Every call ends within the deadline given to [`Client::connect`].
#[derive(Debug)]
pub struct Client(Caller);

impl Client {
    /// Connects to netd's socket. `deadline` bounds the connecting and each call after it.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<Client, CallError> {
        Ok(Client(Caller::connect("netd", path, deadline).await?))
    }

    /// This node's ports.
    pub async fn ports(&self) -> Result<Vec<PortRow>, CallError> {
        self.0.call(OBJECT, INTERFACE, "Ports").await
    }

    /// Every VIP of the cluster.
    pub async fn vips(&self) -> Result<Vec<VipRow>, CallError> {
        self.0.call(OBJECT, INTERFACE, "Vips").await
    }

    /// The other nodes.
    pub async fn peers(&self) -> Result<Vec<PeerRow>, CallError> {
        self.0.call(OBJECT, INTERFACE, "Peers").await
    }

    /// Follows the `Changed` signal from now on. Read it or drop it: a subscriber that stops reading is cut off.
    pub async fn changes(&self) -> Result<Changes, CallError> {
        self.0.changes(OBJECT, INTERFACE, "Changed").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_the_documented_ones() {
        assert_eq!(PortRow::SIGNATURE.to_string(), "(ssssbsbs)");
        assert_eq!(VipRow::SIGNATURE.to_string(), "(ssssssttsss)");
        assert_eq!(PeerRow::SIGNATURE.to_string(), "(sbts)");
    }
}
