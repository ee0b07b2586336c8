//! The list of keys that handshakes and sessions are judged by, shared and replaced while they run.

use crate::registry::lock;
use proto::cluster::NodeName;
use proto::roster::{PublicKey, Roster};
use std::sync::Mutex;

/// The roster in force. Every question is answered under the list of that instant.
#[derive(Debug)]
pub(crate) struct Trusted(Mutex<Roster>);

impl Trusted {
    pub(crate) fn new(roster: Roster) -> Trusted {
        Trusted(Mutex::new(roster))
    }

    /// Puts another list in force.
    pub(crate) fn replace(&self, roster: Roster) {
        *lock(&self.0) = roster;
    }

    /// Whose `key` is, by comparison of the whole key.
    pub(crate) fn name_of(&self, key: &[u8]) -> Option<NodeName> {
        lock(&self.0).name_of(key).cloned()
    }

    /// The key of `node`.
    pub(crate) fn key_of(&self, node: &NodeName) -> Option<PublicKey> {
        lock(&self.0).key_of(node).copied()
    }

    /// Whether `key` is the one of `node`.
    pub(crate) fn holds(&self, node: &NodeName, key: &PublicKey) -> bool {
        self.key_of(node).is_some_and(|known| known == *key)
    }
}
