//! What an entry must keep: alone ([`entry`]), and as the one after another ([`step`], [`signatures`]).

use super::entry::*;
use crate::id::member_id;
use crate::key::{is_usable, signed_by};
use proto::cluster::{NodeName, is_name};
use proto::envelope::EnvelopeError;
use proto::identity::{ClusterId, MemberId};
use proto::roster::PublicKey;
use proto::text::hex;
use std::collections::{BTreeMap, BTreeSet};

/// Why an entry is refused. The chain is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No entry, or one of another release's layout.
    #[error("not a roster entry of this release")]
    Bytes(#[source] EnvelopeError),
    /// What is signed does not decode.
    #[error("the roster entry's body does not decode")]
    Body,
    /// The same meaning in other bytes.
    #[error("the roster entry is not in its one allowed form")]
    Form,
    /// More of something than there may be.
    #[error("the roster entry has {count} {what}, at most {max} are allowed")]
    TooMany { what: &'static str, count: usize, max: usize },
    /// A list that does not rise, or says something twice.
    #[error("the roster entry's {what} are not rising, each one once")]
    Order { what: &'static str },
    /// A name that is none.
    #[error(
        "bad name in the roster entry, expected 1 to 32 of a-z 0-9 -, beginning with a letter, not ending with -"
    )]
    Name,
    /// A trust domain that is none.
    #[error("bad trust domain in the roster entry, expected 1 to {DOMAIN_MAX} of a-z 0-9 - .")]
    Domain,
    /// Bytes that are no key, or one under which a signature says nothing.
    #[error("the roster entry's key of {owner} is not a usable Ed25519 key")]
    Key { owner: String },
    /// One key twice, whatever for.
    #[error("the roster entry gives {first} and {second} the same key")]
    DuplicateKey { first: String, second: String },
    /// One id twice.
    #[error("the roster entry gives {first} and {second} the same member id")]
    DuplicateId { first: NodeName, second: NodeName },
    /// A key that was taken out before.
    #[error("the key of {owner} was taken out of the roster before and is never taken again; make a new key")]
    Burned { owner: String },
    /// The list of burned keys is not the one before and what this entry takes out.
    #[error("the roster entry's burned keys are not those before it and those it takes out")]
    BurnedList,
    /// Recovery that could not work or would need nobody.
    #[error("the roster entry wants {threshold} of {keys} recovery keys; expected 1 to all of them")]
    Threshold { threshold: u8, keys: usize },
    /// Nobody could decide anything.
    #[error("the roster entry has no voter; at least one has to stay")]
    NoVoter,
    /// A vote for nobody.
    #[error("the roster entry's voter {id} is not in it")]
    UnknownVoter { id: MemberId },
    /// A vote for somebody who may have none.
    #[error("{name} is {role} and cannot vote; only members and witnesses can")]
    VoterRole { name: NodeName, role: Role },
    /// Pools of minted instances have their place in the layout only.
    #[error(
        "the roster entry delegates an instance pool; this release knows none: raise the feature level first"
    )]
    Pools,
    /// The entry is of another cluster.
    #[error("the roster entry is of cluster {theirs}, this node is of {ours}")]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
    /// The chain has it.
    #[error("roster entry {number} is known already")]
    Known { number: u64 },
    /// It is older than what is kept: an old roster played again, and too old to be compared.
    #[error("roster entry {number} is old: this node is at {current}")]
    Old { number: u64, current: u64 },
    /// Entries between are missing.
    #[error("roster entry {number} does not follow {current}; fetch {} first", current + 1)]
    Gap { number: u64, current: u64 },
    /// Two good entries with one number. Who can sign has signed both.
    #[error(
        "the roster is forked at {number}: here {}, there {}; an admin key is used twice or stolen: compare \"show roster\" on all nodes",
        hex(ours),
        hex(theirs)
    )]
    Fork { number: u64, ours: [u8; 32], theirs: [u8; 32] },
    /// It follows something else, and is not signed by whom that would make a fork.
    #[error("the roster entry does not follow the one this node has")]
    Previous,
    /// Entry 0 says what only later ones can.
    #[error("the first roster entry says {what}, which only a later one can")]
    First { what: &'static str },
    /// A signature of somebody who may not sign.
    #[error(
        "the roster entry is signed by key {}, which is neither the admin's nor a recovery key",
        hex(key)
    )]
    Signer { key: PublicKey },
    /// A signature that is none.
    #[error("the roster entry's signature of key {} is wrong", hex(key))]
    Signature { key: PublicKey },
    /// Not the admin, and too few others.
    #[error("the roster entry is signed by {have} recovery keys; the admin key or {need} of them are needed")]
    Unsigned { have: usize, need: usize },
    /// The admin alone may not do this.
    #[error("the roster entry changes {what}: {need} recovery keys have to sign it, it has {have}")]
    RecoveryNeeded { what: &'static str, have: usize, need: usize },
    /// More than one voter at once.
    #[error("the roster entry changes {changed} votes; one per step")]
    Voters { changed: usize },
    /// Somebody new whose id is not its key's.
    #[error("new member {name} has id {found}, its first key makes it {expected}")]
    FirstKey { name: NodeName, expected: MemberId, found: MemberId },
    /// Somebody known under another name.
    #[error("member {from} cannot be renamed to {to}; remove it and add it with a new key")]
    Renamed { from: NodeName, to: NodeName },
    /// A machine made a person, or the other way round.
    #[error("{name} cannot change from {from} to {to}")]
    RoleChange { name: NodeName, from: Role, to: Role },
    /// The trust domain changes otherwise than by its rules.
    #[error("the roster entry's change of the trust domain is refused: {what}")]
    DomainChange { what: &'static str },
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), Refused> {
    if count <= max { Ok(()) } else { Err(Refused::TooMany { what, count, max }) }
}

fn rising<T: Ord>(what: &'static str, list: impl Iterator<Item = T>) -> Result<(), Refused> {
    if list.is_sorted_by(|a, b| a < b) { Ok(()) } else { Err(Refused::Order { what }) }
}

/// The rules an entry keeps alone.
pub(super) fn entry(body: &Body, signatures: &[Signed]) -> Result<(), Refused> {
    at_most("signatures", signatures.len(), SIGNATURES_MAX)?;
    rising("signatures", signatures.iter().map(|s| s.key))?;
    let content = &body.content;
    at_most("members", content.members.len(), MEMBERS_MAX)?;
    at_most("recovery keys", content.recovery.keys.len(), RECOVERY_MAX)?;
    at_most("voters", content.voters.len(), VOTERS_MAX)?;
    at_most("burned keys", content.burned.len(), BURNED_MAX)?;
    if !content.pools.is_empty() {
        return Err(Refused::Pools);
    }
    domain(&content.domain)?;
    content.pin.as_ref().map_or(Ok(()), |pin| domain(&pin.domain))?;
    if content.members.iter().any(|m| !is_name(&m.name.0)) {
        return Err(Refused::Name);
    }
    rising("members", content.members.iter().map(|m| &m.name))?;
    rising("recovery keys", content.recovery.keys.iter())?;
    rising("voters", content.voters.iter())?;
    rising("burned keys", content.burned.iter())?;
    let Recovery { threshold, keys } = &content.recovery;
    if !(1..=keys.len()).contains(&usize::from(*threshold)) {
        return Err(Refused::Threshold { threshold: *threshold, keys: keys.len() });
    }
    keys_once(content)?;
    voters(content)?;
    if body.number == 0 {
        let first = |what| Err(Refused::First { what });
        match () {
            () if body.cluster != ClusterId([0; 16]) => return first("a cluster id"),
            () if !content.burned.is_empty() => return first("burned keys"),
            () if content.pin.is_some() => return first("an old trust domain"),
            () => {}
        }
        content.members.iter().try_for_each(first_key)?;
    }
    Ok(())
}

fn domain(text: &str) -> Result<(), Refused> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if (1..=DOMAIN_MAX).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Refused::Domain)
    }
}

/// Keys are usable, in one hand, and not burned; ids belong to one member.
fn keys_once(content: &Content) -> Result<(), Refused> {
    let mut seen = BTreeMap::new();
    for (key, owner) in content.keys() {
        if !is_usable(key) {
            return Err(Refused::Key { owner: owner.to_string() });
        }
        if let Some(first) = seen.insert(key, owner) {
            return Err(Refused::DuplicateKey { first: first.to_string(), second: owner.to_string() });
        }
        if content.burned.binary_search(key).is_ok() {
            return Err(Refused::Burned { owner: owner.to_string() });
        }
    }
    let mut ids = BTreeMap::new();
    for member in &content.members {
        if let Some(first) = ids.insert(member.id, &member.name) {
            return Err(Refused::DuplicateId { first: first.clone(), second: member.name.clone() });
        }
    }
    Ok(())
}

fn voters(content: &Content) -> Result<(), Refused> {
    if content.voters.is_empty() {
        return Err(Refused::NoVoter);
    }
    let mut members = 0;
    for id in &content.voters {
        let member = content.member_by_id(id).ok_or(Refused::UnknownVoter { id: *id })?;
        match member.role {
            Role::Member => members += 1,
            Role::Witness => {}
            role @ (Role::Operator | Role::Viewer) => {
                return Err(Refused::VoterRole { name: member.name.clone(), role });
            }
        }
    }
    at_most("voters that are members", members, MEMBER_VOTERS_MAX)
}

fn first_key(member: &Member) -> Result<(), Refused> {
    let expected = member_id(&member.key);
    if member.id == expected {
        Ok(())
    } else {
        Err(Refused::FirstKey { name: member.name.clone(), expected, found: member.id })
    }
}

/// Who has signed an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) admin: bool,
    /// How many recovery keys.
    pub(super) recovery: usize,
}

/// Judges the signatures of `entry` under `content`, the content of the entry before it. All have to be good: a bad
/// one beside enough good ones is somebody's mistake, and nobody should get used to it.
pub(super) fn signatures(content: &Content, entry: &Entry) -> Result<Authority, Refused> {
    let mut authority = Authority { admin: false, recovery: 0 };
    for Signed { key, signature } in &entry.signatures {
        let recovery = content.recovery.keys.binary_search(key).is_ok();
        if !recovery && *key != content.admin {
            return Err(Refused::Signer { key: *key });
        }
        if !signed_by(key, SIGN_PURPOSE, entry.hash(), signature) {
            return Err(Refused::Signature { key: *key });
        }
        match recovery {
            true => authority.recovery += 1,
            false => authority.admin = true,
        }
    }
    let need = usize::from(content.recovery.threshold);
    if authority.admin || authority.recovery >= need {
        Ok(authority)
    } else {
        Err(Refused::Unsigned { have: authority.recovery, need })
    }
}

/// The burned keys of the entry that follows `old` and uses the keys of `new`.
pub(super) fn burned_after(old: &Content, new: &Content) -> Vec<PublicKey> {
    let kept: BTreeSet<_> = new.keys().map(|(key, _)| *key).collect();
    let out = old.keys().map(|(key, _)| *key).filter(|key| !kept.contains(key));
    let burned: BTreeSet<_> = old.burned.iter().copied().chain(out).collect();
    burned.into_iter().collect()
}

/// Judges the step from `old` to `new`.
pub(super) fn step(old: &Entry, new: &Entry, authority: Authority) -> Result<(), Refused> {
    let (before, after) = (old.content(), new.content());
    // Whoever's key burned earlier comes back is told so, rather than that a list is wrong.
    if let Some((_, owner)) = after.keys().find(|(key, _)| before.burned.binary_search(key).is_ok()) {
        return Err(Refused::Burned { owner: owner.to_string() });
    }
    if after.burned != burned_after(before, after) {
        return Err(Refused::BurnedList);
    }
    members(before, after)?;
    let votes = |content: &Content| content.voters.iter().copied().collect::<BTreeSet<_>>();
    let changed = votes(before).symmetric_difference(&votes(after)).count();
    if changed > 1 {
        return Err(Refused::Voters { changed });
    }
    let need = usize::from(before.recovery.threshold);
    let with_recovery = |what| match authority.recovery >= need {
        true => Ok(()),
        false => Err(Refused::RecoveryNeeded { what, have: authority.recovery, need }),
    };
    // Otherwise a stolen admin key could lock out the very keys that are there to take it back.
    if after.recovery != before.recovery {
        with_recovery("the recovery keys")?;
    }
    if after.domain != before.domain {
        with_recovery("the trust domain")?;
    }
    domain_change(old, new)
}

fn members(before: &Content, after: &Content) -> Result<(), Refused> {
    for member in &after.members {
        let Some(old) = before.member_by_id(&member.id) else {
            first_key(member)?;
            continue;
        };
        if old.name != member.name {
            return Err(Refused::Renamed { from: old.name.clone(), to: member.name.clone() });
        }
        if old.role.is_machine() != member.role.is_machine() {
            let name = member.name.clone();
            return Err(Refused::RoleChange { name, from: old.role, to: member.role });
        }
    }
    Ok(())
}

/// A change of the trust domain pins the entry before it; nothing else of the kind until the pin is taken out.
fn domain_change(old: &Entry, new: &Entry) -> Result<(), Refused> {
    let refuse = |what| Err(Refused::DomainChange { what });
    let (before, after) = (old.content(), new.content());
    let moved = after.domain != before.domain;
    match (&before.pin, &after.pin) {
        (Some(_), _) if moved => refuse("another change is still open; close it first"),
        (Some(open), Some(still)) if open != still => {
            refuse("it pins another entry than the open change does")
        }
        (None, Some(_)) if !moved => refuse("it pins an old domain but changes none"),
        (None, None) if moved => refuse("it does not pin the old domain"),
        (None, Some(pin)) => {
            let right = pin.domain == before.domain && pin.number == old.number() && pin.hash == *old.hash();
            if !right {
                return refuse("it pins another entry than the one before it");
            }
            // Both entries are trusted for a while: they must not disagree about who belongs.
            if after.members != before.members || after.voters != before.voters {
                return refuse("it changes members too; do that in a step of its own");
            }
            Ok(())
        }
        (None, None) | (Some(_), _) => Ok(()),
    }
}
