//! The chain a node keeps: the entry in force and those before it that fit the bound.

use super::entry::{Content, ENTRY_MAX, Entry, Member};
use super::rules::{self, Refused};
use proto::cluster::NodeName;
use proto::envelope::{Message, kind};
use proto::identity::{ClusterId, MemberId};
use proto::roster::{PublicKey, Roster};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes of entries that are kept beside the newest, for members that were away: some hundred steps of a usual cluster.
pub const KEPT_BYTES_MAX: usize = 192 * 1024;
/// Most entries that are kept.
const KEPT_MAX: usize = 1024;

/// What a node stores: its entries, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterRecord {
    cluster: ClusterId,
    entries: Vec<Vec<u8>>,
}

impl Message for RosterRecord {
    const KIND: u16 = kind::ROSTER_CHAIN;
    const VERSION: u16 = 1;
    /// The newest entry, the kept ones, a length of three bytes for each, and the id.
    const MAX_LEN: usize = ENTRY_MAX + KEPT_BYTES_MAX + 3 * (KEPT_MAX + 2) + 16;
}

/// Why a stored chain cannot be used. It was verified before it was stored: this is damage, or a mistake of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// No entry in it.
    #[error("the stored roster has no entry; restore it from another member")]
    Empty,
    /// An entry breaks a rule.
    #[error("the stored roster is damaged at entry {at} of it; restore it from another member")]
    Entry {
        at: usize,
        #[source]
        source: Refused,
    },
}

/// What an entry changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The entry's number.
    pub number: u64,
    /// Who is new.
    pub added: Vec<Member>,
    /// Who is gone.
    pub removed: Vec<Member>,
    /// Who has another key, with the old one.
    pub rotated: Vec<(NodeName, PublicKey)>,
    /// Whose vote counts from now on.
    pub vote_given: Option<MemberId>,
    /// Whose vote does not any more.
    pub vote_taken: Option<MemberId>,
    /// Whether another admin key signs the next entry.
    pub admin: bool,
}

/// A judged entry: the chain that has it, and what it changes.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Store its [`RosterChain::record`] before it is used.
    pub chain: RosterChain,
    /// What is different then.
    pub change: Change,
}

/// A verified chain: consecutive entries, the newest in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterChain {
    cluster: ClusterId,
    /// Never empty.
    entries: VecDeque<Arc<Entry>>,
}

impl RosterChain {
    /// The chain that begins with `entry`, which must be number 0, signed by its own admin key. Its hash becomes the
    /// cluster's id, so who knows the id knows the right beginning.
    pub fn found(entry: Entry) -> Result<RosterChain, Refused> {
        if entry.number() != 0 {
            return Err(Refused::Gap { number: entry.number(), current: 0 });
        }
        first_signed(&entry)?;
        Ok(RosterChain { cluster: entry.cluster(), entries: VecDeque::from([Arc::new(entry)]) })
    }

    /// The chain of a node that joins `cluster` and was given its newest `entry` by a member that proved itself. The
    /// signatures of an entry after the first cannot be judged without the one before: the giver is trusted for it.
    pub fn join(cluster: ClusterId, entry: Entry) -> Result<RosterChain, Refused> {
        if entry.cluster() != cluster {
            return Err(Refused::OtherCluster { ours: cluster, theirs: entry.cluster() });
        }
        if entry.number() == 0 {
            first_signed(&entry)?;
        }
        Ok(RosterChain { cluster, entries: VecDeque::from([Arc::new(entry)]) })
    }

    /// The stored chain. Every entry is judged again under the one before it.
    pub fn load(record: &RosterRecord) -> Result<RosterChain, LoadError> {
        let mut entries = record.entries.iter().enumerate().map(|(at, bytes)| (at, Entry::decode(bytes)));
        let failed = |at| move |source| LoadError::Entry { at, source };
        let (at, first) = entries.next().ok_or(LoadError::Empty)?;
        let first = first.map_err(failed(at))?;
        let mut chain = RosterChain::join(record.cluster, first).map_err(failed(at))?;
        for (at, entry) in entries {
            chain = entry.and_then(|entry| chain.apply(entry)).map_err(failed(at))?.chain;
        }
        Ok(chain)
    }

    /// What is to be stored before the chain is used.
    pub fn record(&self) -> RosterRecord {
        let entries = self.entries.iter().map(|entry| entry.bytes().to_vec()).collect();
        RosterRecord { cluster: self.cluster, entries }
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The entry in force.
    pub fn newest(&self) -> &Entry {
        self.entries.back().expect("a chain has an entry")
    }

    /// Entry `number`, if it is still kept: what a member that was away is given.
    pub fn entry(&self, number: u64) -> Option<&Entry> {
        let oldest = self.entries.front().expect("a chain has an entry").number();
        let at = usize::try_from(number.checked_sub(oldest)?).ok()?;
        self.entries.get(at).map(Arc::as_ref)
    }

    /// The keys with which sessions between machines are made.
    pub fn machines(&self) -> Roster {
        let mut roster = Roster::new();
        for member in self.newest().content().members.iter().filter(|m| m.role.is_machine()) {
            roster
                .insert(member.name.clone(), member.key)
                .expect("a checked entry has no name or key twice, and no more than a roster may have");
        }
        roster
    }

    /// Judges `entry` as the next one. This chain stays as it is; the one returned is to be stored, then used.
    ///
    /// # Errors
    /// [`Refused::Fork`] only for an entry that whoever may sign has signed: anybody can make up the others.
    pub fn apply(&self, entry: Entry) -> Result<Applied, Refused> {
        let current = self.newest().number();
        let number = entry.number();
        if entry.cluster() != self.cluster {
            return Err(Refused::OtherCluster { ours: self.cluster, theirs: entry.cluster() });
        }
        if number <= current {
            return Err(self.older(&entry));
        }
        if number - 1 != current {
            return Err(Refused::Gap { number, current });
        }
        self.follows(self.newest(), &entry)?;
        let change = change(self.newest().content(), &entry);
        let mut entries = self.entries.clone();
        entries.push_back(Arc::new(entry));
        let kept = |entries: &VecDeque<Arc<Entry>>| {
            entries.iter().rev().skip(1).map(|entry| entry.bytes().len()).sum::<usize>()
        };
        while entries.len() > KEPT_MAX || kept(&entries) > KEPT_BYTES_MAX {
            entries.pop_front();
        }
        Ok(Applied { chain: RosterChain { cluster: self.cluster, entries }, change })
    }

    /// Whether `entry` may follow `before`, which is one of ours.
    fn follows(&self, before: &Entry, entry: &Entry) -> Result<(), Refused> {
        let authority = rules::signatures(before.content(), entry)?;
        if entry.body.previous != *before.hash() {
            // Signed by whom we trust, for another entry than ours: there are two of that number.
            return Err(Refused::Fork {
                number: before.number(),
                ours: *before.hash(),
                theirs: entry.body.previous,
            });
        }
        rules::step(before, entry, authority)
    }

    /// Why an entry with a number we have is refused.
    fn older(&self, entry: &Entry) -> Refused {
        let (number, current) = (entry.number(), self.newest().number());
        match self.entry(number) {
            None => Refused::Old { number, current },
            Some(ours) if ours.hash() == entry.hash() => Refused::Known { number },
            Some(ours) => match number.checked_sub(1).and_then(|before| self.entry(before)) {
                // The one before is not kept: nobody can say whether this one was ever good.
                None => Refused::Old { number, current },
                Some(before) => match self.follows(before, entry) {
                    Ok(()) => Refused::Fork { number, ours: *ours.hash(), theirs: *entry.hash() },
                    Err(refused) => refused,
                },
            },
        }
    }
}

fn first_signed(entry: &Entry) -> Result<(), Refused> {
    let authority = rules::signatures(entry.content(), entry)?;
    match authority.admin {
        true => Ok(()),
        false => Err(Refused::Unsigned { have: authority.recovery, need: usize::MAX }),
    }
}

fn change(before: &Content, entry: &Entry) -> Change {
    let after = entry.content();
    let missing = |here: &Content, there: &Content| {
        here.members.iter().filter(|m| there.member_by_id(&m.id).is_none()).cloned().collect()
    };
    let rotated = |m: &Member| {
        let old = before.member_by_id(&m.id).filter(|old| old.key != m.key)?;
        Some((m.name.clone(), old.key))
    };
    let vote =
        |here: &Content, there: &Content| here.voters.iter().find(|id| !there.voters.contains(id)).copied();
    Change {
        number: entry.number(),
        added: missing(after, before),
        removed: missing(before, after),
        rotated: after.members.iter().filter_map(rotated).collect(),
        vote_given: vote(after, before),
        vote_taken: vote(before, after),
        admin: after.admin != before.admin,
    }
}
