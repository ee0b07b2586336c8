//! `org.evenkeel.Provision1` at `/org/evenkeel/provision`: what this node is and which configuration it runs.
//!
//! | member | signature | |
//! |---|---|---|
//! | method `State` | `-> (sssssstsssss)` | one row |

use crate::client::{CallError, Caller};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use zbus::Type;

/// The interface's name.
pub const INTERFACE: &str = "org.evenkeel.Provision1";

/// The object that carries it.
pub const OBJECT: &str = "/org/evenkeel/provision";

/// What provisiond shows, sent through a `watch` channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProvisionState {
    /// The one row there is.
    pub row: StateRow,
}

/// What this node is. Fields not known yet are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct StateRow {
    /// The node's name.
    pub node: String,
    /// The cluster's name.
    pub cluster: String,
    /// The node's failover group.
    pub group: String,
    /// Its failover pair, empty when it stands in none.
    pub pair: String,
    /// Its Ed25519 public key, hex.
    pub public_key: String,
    /// Digest of the cluster file it runs, hex.
    pub config_digest: String,
    /// Boots of this node so far, this one included.
    pub boot_count: u64,
    /// The kernel's boot id of this boot.
    pub boot_id: String,
    /// The kernel's boot id of the boot before, empty at the first.
    pub previous_boot_id: String,
    /// Where the personality came from: `state` or `smbios`.
    pub personality_source: String,
    /// Version of the running release.
    pub version: String,
    /// Why the node cannot serve, empty when all is well.
    pub error: String,
}

/// The object provisiond's clients see; reads the watch channel, decides nothing.
pub(crate) struct Provision1(pub(crate) watch::Receiver<ProvisionState>);

#[zbus::interface(name = "org.evenkeel.Provision1", spawn = false)]
impl Provision1 {
    // One out argument that is a structure, not twelve arguments: the 1-tuple says so to the macro.
    fn state(&self) -> (StateRow,) {
        (self.0.borrow().row.clone(),)
    }
}

/// Asks provisiond. Every call ends within the deadline given to [`Client::connect`].
#[derive(Debug)]
pub struct Client(Caller);

impl Client {
    /// Connects to provisiond's socket. `deadline` bounds the connecting and each call after it.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<Client, CallError> {
        Ok(Client(Caller::connect("provisiond", path, deadline).await?))
    }

    /// What this node is.
    pub async fn state(&self) -> Result<StateRow, CallError> {
        let (row,): (StateRow,) = self.0.call(OBJECT, INTERFACE, "State").await?;
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_the_documented_one() {
        assert_eq!(StateRow::SIGNATURE.to_string(), "(sssssstsssss)");
    }
}
