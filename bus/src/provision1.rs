//! `org.evenkeel.Provision1` at `/org/evenkeel/provision`: what this node is and which configuration it runs.
//!
//! | member | signature | |
//! |---|---|---|
//! | method `State` | `-> (sssssstsssss)` | one row |
//! | method `Roster` | `-> (stsssa(ssssb)ay)` | the roster chain's newest entry, a row for each member |
//! | method `ApplyRoster` | `ay -> s` | hands in entries; what came of it |

use crate::client::{CallError, Caller};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use zbus::{Type, fdo};

/// The interface's name.
pub const INTERFACE: &str = "org.evenkeel.Provision1";

/// The object that carries it.
pub const OBJECT: &str = "/org/evenkeel/provision";

/// What provisiond shows, sent through a `watch` channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProvisionState {
    /// The one row there is.
    pub row: StateRow,
    /// The roster chain; empty when none is kept.
    pub roster: RosterRow,
}

/// The newest entry of the roster chain, or why there is none in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct RosterRow {
    /// The cluster's id, hex; empty when no chain is kept.
    pub cluster_id: String,
    /// The entry's number.
    pub number: u64,
    /// Its hash, hex.
    pub hash: String,
    /// The trust domain.
    pub domain: String,
    /// Why a chain that is there is not used, empty when all is well.
    pub error: String,
    /// Who belongs.
    pub members: Vec<MemberRow>,
    /// The entry's bytes.
    pub entry: Vec<u8>,
}

/// Somebody of the roster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct MemberRow {
    /// The name.
    pub name: String,
    /// The member id, hex.
    pub id: String,
    /// The key now, hex.
    pub key: String,
    /// `member`, `witness`, `operator` or `viewer`.
    pub role: String,
    /// Whether its vote counts.
    pub votes: bool,
}

/// Calls that wait for provisiond: more clients than two at a time have no business there.
const CALLS: usize = 2;

/// A client hands in roster entries.
#[derive(Debug)]
pub struct ApplyRoster {
    /// One entry or several, one behind the other.
    pub entries: Vec<u8>,
    /// Takes what came of it, or why they were refused.
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// Where calls that change something go, and where provisiond takes them from.
pub fn calls() -> (mpsc::Sender<ApplyRoster>, mpsc::Receiver<ApplyRoster>) {
    mpsc::channel(CALLS)
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

/// The object provisiond's clients see; reads the watch channel, hands calls on, decides nothing.
pub(crate) struct Provision1 {
    pub(crate) state: watch::Receiver<ProvisionState>,
    pub(crate) apply: Option<mpsc::Sender<ApplyRoster>>,
}

#[zbus::interface(name = "org.evenkeel.Provision1", spawn = false)]
impl Provision1 {
    // One out argument that is a structure, not twelve arguments: the 1-tuple says so to the macro.
    fn state(&self) -> (StateRow,) {
        (self.state.borrow().row.clone(),)
    }

    fn roster(&self) -> (RosterRow,) {
        (self.state.borrow().roster.clone(),)
    }

    /// Waits for provisiond, which waits for the disk; the client's other calls wait behind it.
    async fn apply_roster(&self, entries: Vec<u8>) -> fdo::Result<String> {
        let failed = |text: &str| fdo::Error::Failed(text.to_owned());
        let apply = self.apply.as_ref().ok_or_else(|| failed("no roster is kept here"))?;
        let (answer, answered) = oneshot::channel();
        let ending = |_| failed("provisiond is ending; try again");
        apply
            .send(ApplyRoster { entries, answer })
            .await
            .map_err(|_| failed("provisiond is ending; try again"))?;
        answered.await.map_err(ending)?.map_err(fdo::Error::Failed)
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

    /// The roster chain.
    pub async fn roster(&self) -> Result<RosterRow, CallError> {
        let (row,): (RosterRow,) = self.0.call(OBJECT, INTERFACE, "Roster").await?;
        Ok(row)
    }

    /// Hands in roster entries; what came of it, in words.
    pub async fn apply_roster(&self, entries: &[u8]) -> Result<String, CallError> {
        self.0.call_with(OBJECT, INTERFACE, "ApplyRoster", &(entries,)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_the_documented_one() {
        assert_eq!(StateRow::SIGNATURE.to_string(), "(sssssstsssss)");
        assert_eq!(RosterRow::SIGNATURE.to_string(), "(stsssa(ssssb)ay)");
    }
}
