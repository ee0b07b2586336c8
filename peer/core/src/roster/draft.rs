//! Making an entry: change what the newest says, sign.

use super::chain::RosterChain;
use super::entry::{Body, Content, Entry, Member, Pin, Role, SIGN_PURPOSE, Signed};
use super::rules::{Refused, burned_after};
use crate::id::member_id;
use crate::key::SecretKey;
use proto::cluster::NodeName;
use proto::identity::ClusterId;
use proto::roster::PublicKey;

/// Why a draft is not changed as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// Nobody is called that.
    #[error("nobody in the roster is called {name}; see \"show roster\"")]
    Unknown { name: NodeName },
    /// Somebody is called that.
    #[error("{name} is in the roster already; remove or rotate it")]
    Exists { name: NodeName },
}

/// An entry to be. Rules are judged when it is signed.
///
/// ```
/// use peer_core::key::SecretKey;
/// use peer_core::roster::{Draft, Recovery, Role, RosterChain};
/// let [admin, recovery, a1, b1] = [1, 2, 3, 4].map(|seed| SecretKey::from_seed([seed; 32]));
/// let mut first = Draft::first([9; 32], "demo.lan", *admin.public(), Recovery { threshold: 1, keys: vec![*recovery.public()] });
/// first.add("a1".into(), *a1.public(), Role::Member)?.vote(&"a1".into(), true)?;
/// let chain = RosterChain::found(first.sign(&[&admin])?)?;
///
/// let mut next = Draft::after(&chain);
/// next.add("b1".into(), *b1.public(), Role::Member)?;
/// let applied = chain.apply(next.sign(&[&admin])?)?;
/// assert_eq!(applied.change.added[0].name, "b1".into());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Draft {
    number: u64,
    cluster: ClusterId,
    previous: [u8; 32],
    before: Option<Content>,
    /// What it will say. Order and burned keys are set when it is signed.
    pub content: Content,
}

impl Draft {
    /// The first entry of a new cluster without members. `salt` is random: it tells clusters of one admin apart.
    pub fn first(salt: [u8; 32], domain: &str, admin: PublicKey, recovery: super::Recovery) -> Draft {
        let content = Content {
            domain: domain.to_owned(),
            admin,
            recovery,
            members: Vec::new(),
            voters: Vec::new(),
            pools: Vec::new(),
            burned: Vec::new(),
            pin: None,
        };
        Draft { number: 0, cluster: ClusterId([0; 16]), previous: salt, before: None, content }
    }

    /// The entry after the newest of `chain`, saying the same.
    pub fn after(chain: &RosterChain) -> Draft {
        let newest = chain.newest();
        Draft {
            number: newest.number() + 1,
            cluster: chain.cluster(),
            previous: *newest.hash(),
            before: Some(newest.content().clone()),
            content: newest.content().clone(),
        }
    }

    fn member(&mut self, name: &NodeName) -> Result<&mut Member, DraftError> {
        let unknown = || DraftError::Unknown { name: name.clone() };
        self.content.members.iter_mut().find(|m| m.name == *name).ok_or_else(unknown)
    }

    /// Takes somebody in.
    pub fn add(&mut self, name: NodeName, key: PublicKey, role: Role) -> Result<&mut Draft, DraftError> {
        if self.content.member(&name).is_some() {
            return Err(DraftError::Exists { name });
        }
        self.content.members.push(Member { name, id: member_id(&key), key, role });
        Ok(self)
    }

    /// Takes somebody out, and its vote.
    pub fn remove(&mut self, name: &NodeName) -> Result<&mut Draft, DraftError> {
        let id = self.member(name)?.id;
        self.content.members.retain(|m| m.id != id);
        self.content.voters.retain(|voter| *voter != id);
        Ok(self)
    }

    /// Gives somebody another key.
    pub fn rotate(&mut self, name: &NodeName, key: PublicKey) -> Result<&mut Draft, DraftError> {
        self.member(name)?.key = key;
        Ok(self)
    }

    /// Gives or takes a vote.
    pub fn vote(&mut self, name: &NodeName, votes: bool) -> Result<&mut Draft, DraftError> {
        let id = self.member(name)?.id;
        self.content.voters.retain(|voter| *voter != id);
        if votes {
            self.content.voters.push(id);
        }
        Ok(self)
    }

    /// Moves the cluster to another trust domain. The old one stays pinned until [`Draft::close_domain`].
    pub fn move_domain(&mut self, domain: &str) -> &mut Draft {
        let old = core::mem::replace(&mut self.content.domain, domain.to_owned());
        self.content.pin =
            Some(Pin { domain: old, number: self.number.saturating_sub(1), hash: self.previous });
        self
    }

    /// Ends the change of the trust domain.
    pub fn close_domain(&mut self) -> &mut Draft {
        self.content.pin = None;
        self
    }

    /// The entry, signed by `keys`.
    pub fn sign(&self, keys: &[&SecretKey]) -> Result<Entry, Refused> {
        let mut content = self.content.clone();
        content.members.sort_by(|a, b| a.name.cmp(&b.name));
        content.voters.sort();
        content.recovery.keys.sort();
        if let Some(before) = &self.before {
            content.burned = burned_after(before, &content);
        }
        let body = Body { number: self.number, cluster: self.cluster, previous: self.previous, content };
        let hash = Entry::hash_of(&body);
        let sign = |key: &&SecretKey| Signed { key: *key.public(), signature: key.sign(SIGN_PURPOSE, &hash) };
        let mut signatures: Vec<Signed> = keys.iter().map(sign).collect();
        signatures.sort_by_key(|signed| signed.key);
        Entry::assemble(body, signatures)
    }
}
