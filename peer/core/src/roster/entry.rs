//! One entry: what it says, its bytes, its hash. Drawn byte by byte in `docs/formats/roster.md`.

use super::rules::{self, Refused};
use crate::id::{cluster_id, hash};
use crate::key::Signature;
use core::fmt;
use proto::cluster::NodeName;
use proto::envelope::{self, HEADER_LEN, Message, kind};
use proto::identity::{ClusterId, MemberId};
use proto::roster::PublicKey;
use serde::{Deserialize, Serialize};

/// Most members, witnesses, operators and viewers together: as many as a list of keys may have.
pub const MEMBERS_MAX: usize = proto::roster::MAX_ENTRIES;
/// Most keys that are burned: every removal and rotation of years. Then the cluster has to be founded anew.
pub const BURNED_MAX: usize = 1024;
/// Most recovery keys: people who each keep one.
pub const RECOVERY_MAX: usize = 15;
/// Most signatures on one entry: all recovery keys and the admin's.
pub const SIGNATURES_MAX: usize = RECOVERY_MAX + 1;
/// Most voters that are members: with more, each step costs more answers than it gains safety.
pub const MEMBER_VOTERS_MAX: usize = 7;
/// Most voters, witnesses included.
pub const VOTERS_MAX: usize = 9;
/// Longest trust domain in bytes.
pub const DOMAIN_MAX: usize = 64;
/// Longest entry in bytes, header included: one message between peers has room for it.
pub const ENTRY_MAX: usize = 63 * 1024;

/// What an entry's hash is for.
const HASH_PURPOSE: &str = "evenkeel roster entry 1";
/// What a signature under an entry is for.
pub(super) const SIGN_PURPOSE: &str = "evenkeel roster signature 1";

/// What somebody of the roster is. Variants are only appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// An appliance.
    Member,
    /// A machine that votes and keeps no other data.
    Witness,
    /// A person or program that may change things.
    Operator,
    /// A person or program that may look.
    Viewer,
}

impl Role {
    /// Whether it is a machine of the cluster, with which machines keep sessions.
    pub fn is_machine(self) -> bool {
        match self {
            Role::Member | Role::Witness => true,
            Role::Operator | Role::Viewer => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Member => "member",
            Role::Witness => "witness",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
        })
    }
}

/// Somebody of the roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Unique, and fixed as long as the member is there.
    pub name: NodeName,
    /// Hash of its first key.
    pub id: MemberId,
    /// Its key now.
    pub key: PublicKey,
    /// What it is.
    pub role: Role,
}

/// The keys that can take the admin key's place: any `threshold` of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// k of k-of-n.
    pub threshold: u8,
    /// Rising.
    pub keys: Vec<PublicKey>,
}

/// Identities minted before any node was chosen for them. The place is kept; this release refuses entries with any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pool {
    /// `count` slot keys below the pool's own key.
    Minted { key: PublicKey, count: u32 },
}

/// The entry that stays trusted beside this one while a change of the trust domain is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The old trust domain.
    pub domain: String,
    /// Number of its last entry.
    pub number: u64,
    /// Hash of that entry.
    pub hash: [u8; 32],
}

/// All that an entry says about the cluster. All lists are rising: members by name, the others by their bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The trust domain, in the form of a DNS name.
    pub domain: String,
    /// The key that signs the next entry.
    pub admin: PublicKey,
    /// The keys that can do so instead.
    pub recovery: Recovery,
    /// Who belongs.
    pub members: Vec<Member>,
    /// Whose votes count.
    pub voters: Vec<MemberId>,
    /// Always empty in this release.
    pub pools: Vec<Pool>,
    /// Every key that was in an entry before and is none of this one's. None of them is ever taken again.
    pub burned: Vec<PublicKey>,
    /// The old trust domain, until its change is closed.
    pub pin: Option<Pin>,
}

impl Content {
    /// The member called `name`.
    pub fn member(&self, name: &NodeName) -> Option<&Member> {
        self.members.iter().find(|m| m.name == *name)
    }

    /// The member with `id`.
    pub fn member_by_id(&self, id: &MemberId) -> Option<&Member> {
        self.members.iter().find(|m| m.id == *id)
    }

    /// Every key in use, and whose it is.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&PublicKey, Owner<'_>)> {
        let admin = core::iter::once((&self.admin, Owner::Admin));
        let recovery = self.recovery.keys.iter().map(|key| (key, Owner::Recovery));
        admin.chain(recovery).chain(self.members.iter().map(|m| (&m.key, Owner::Member(&m.name))))
    }
}

/// Whose a key is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner<'a> {
    Admin,
    Recovery,
    Member(&'a NodeName),
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Admin => f.write_str("the admin"),
            Owner::Recovery => f.write_str("recovery"),
            Owner::Member(name) => name.fmt(f),
        }
    }
}

/// What is hashed and signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Body {
    pub(super) number: u64,
    /// Zeros in entry 0, which gives the id.
    pub(super) cluster: ClusterId,
    /// Hash of the entry before; in entry 0 the salt that tells clusters of one admin apart.
    pub(super) previous: [u8; 32],
    pub(super) content: Content,
}

/// A signature and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Signed {
    pub(super) key: PublicKey,
    pub(super) signature: Signature,
}

/// What goes over the wire and to the disk. The body is carried as the bytes that were hashed.
#[derive(Serialize, Deserialize)]
struct Wire {
    body: Vec<u8>,
    signatures: Vec<Signed>,
}

impl Message for Wire {
    const KIND: u16 = kind::ROSTER_ENTRY;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = ENTRY_MAX - HEADER_LEN;
}

/// An entry whose bytes are in order and whose content keeps the rules that one entry can keep alone. Whether it may
/// follow another one, and whether its signatures are good, only a chain can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(super) body: Body,
    pub(super) signatures: Vec<Signed>,
    hash: [u8; 32],
    bytes: Vec<u8>,
}

impl Entry {
    /// Reads the bytes of an entry. At most [`ENTRY_MAX`] are looked at.
    pub fn decode(bytes: &[u8]) -> Result<Entry, Refused> {
        let wire: Wire = envelope::decode(bytes).map_err(Refused::Bytes)?;
        let body: Body = postcard::from_bytes(&wire.body).map_err(|_| Refused::Body)?;
        let entry = Entry::assemble(body, wire.signatures)?;
        // One meaning, one form: otherwise the same content would have several hashes.
        if entry.bytes == bytes { Ok(entry) } else { Err(Refused::Form) }
    }

    pub(super) fn assemble(body: Body, signatures: Vec<Signed>) -> Result<Entry, Refused> {
        rules::entry(&body, &signatures)?;
        let encoded = postcard::to_allocvec(&body).expect("encoding into memory cannot fail");
        let hash = hash(HASH_PURPOSE, &encoded);
        let bytes = envelope::encode(&Wire { body: encoded, signatures: signatures.clone() });
        Ok(Entry { body, signatures, hash, bytes })
    }

    /// The hash of `body`: what is signed.
    pub(super) fn hash_of(body: &Body) -> [u8; 32] {
        hash(HASH_PURPOSE, &postcard::to_allocvec(body).expect("encoding into memory cannot fail"))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its hash, over the body alone: who else signs the same entry does not make another one.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Its number; the first has 0.
    pub fn number(&self) -> u64 {
        self.body.number
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> ClusterId {
        if self.body.number == 0 { cluster_id(&self.hash) } else { self.body.cluster }
    }

    /// What it says.
    pub fn content(&self) -> &Content {
        &self.body.content
    }
}
