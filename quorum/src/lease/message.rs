//! What holders and acceptors say to each other, and the bounds of it.

use core::fmt;
use proto::envelope::{Message, kind};
use proto::identity::MemberId;
use proto::status::bounded;
use proto::time::Duration;
use serde::{Deserialize, Deserializer, Serialize};

/// Longest key in bytes: an address of 16 and a network's name of 32, with room.
pub const KEY_MAX: usize = 56;
/// Keys one node may ask for: all VIPs of its group may have to live on it.
pub const KEYS_MAX: usize = 1024;

/// What a lease covers: to this crate just bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Key(Box<[u8]>);

/// A key longer than [`KEY_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key of {found} bytes, at most {KEY_MAX} are allowed")]
pub struct KeyTooLong {
    /// Its length.
    pub found: usize,
}

impl Key {
    /// A key of these bytes.
    ///
    /// # Errors
    /// [`KeyTooLong`] above [`KEY_MAX`] bytes.
    pub fn new(bytes: &[u8]) -> Result<Key, KeyTooLong> {
        if bytes.len() > KEY_MAX { Err(KeyTooLong { found: bytes.len() }) } else { Ok(Key(bytes.into())) }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", proto::text::hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Key, D::Error> {
        bounded::<_, u8, KEY_MAX>(input).map(|bytes| Key(bytes.into()))
    }
}

/// A node asks a voter for its lease, each beat.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Request {
    /// Who asks. The receiver compares it with the member the session belongs to.
    pub member: MemberId,
    /// Which life of its daemon.
    pub incarnation: u64,
    /// Rises with each request of one life; never sent twice with different contents or at different times.
    pub ballot: u64,
    /// Version of the list of voters that the sender counts by.
    pub voters: u64,
    /// How long the sender will rely on it, counted from the sending.
    pub duration: Duration,
    /// By how much its addresses may outlive that.
    pub fence: Duration,
    /// Number of the list of keys; it rises when the list changes.
    pub list: u64,
    /// The list, until the voter has it.
    pub keys: Option<Keys>,
}

/// The keys a node asks for. A key that is missing has been given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Keys {
    /// What it asks for or has.
    #[serde(deserialize_with = "bounded::<_, _, KEYS_MAX>")]
    pub wanted: Vec<Key>,
    /// What it lately gave up in favour of somebody.
    #[serde(deserialize_with = "bounded::<_, _, KEYS_MAX>")]
    pub handed: Vec<Handed>,
}

/// A key given up in favour of a successor: the drop and the grant are one step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Handed {
    /// Which key.
    pub key: Key,
    /// To whom.
    pub to: MemberId,
}

/// A voter answers a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vote {
    /// Who answers. The receiver compares it with the member the session belongs to.
    pub voter: MemberId,
    /// Whom it answers.
    pub member: MemberId,
    /// Which life of it.
    pub incarnation: u64,
    /// Which request.
    pub ballot: u64,
    /// Version of the list of voters that the voter knows.
    pub voters: u64,
    /// The answer.
    pub answer: Answer,
}

/// What a voter answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// The lease is granted or renewed, with all keys of the list but these.
    Granted {
        /// Number of the list that was granted.
        list: u64,
        /// Keys that are somebody else's for now.
        #[serde(deserialize_with = "bounded::<_, _, KEYS_MAX>")]
        refused: Vec<Refused>,
    },
    /// The voter does not have the list; nothing was granted.
    ListNeeded,
    /// Nothing was granted.
    Denied(Denial),
    /// The lease of the earlier life is given up, or there was none.
    GivenUp,
}

/// A key that is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Refused {
    /// Which key.
    pub key: Key,
    /// Whose it is: granted to, or reserved for.
    pub holder: MemberId,
    /// When it is free unless its holder renews.
    pub free_in: Duration,
}

/// Why a voter grants nothing.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error,
)]
pub enum Denial {
    /// It started without its memory and waits for everything it may have granted to end.
    #[error("the voter started anew and is silent for {} ms more", left.as_millis())]
    Silent {
        /// How long still.
        left: Duration,
    },
    /// The request counts by a list of voters that is too old.
    #[error("the list of voters is older than version {oldest}; fetch the roster")]
    OldVoters {
        /// The oldest version that is answered.
        oldest: u64,
    },
    /// Duration and fence together are more than the voter has promised itself on disk.
    #[error("duration and fence together are above the voter's ceiling of {} ms", ceiling.as_millis())]
    TooLong {
        /// The longest there can be.
        ceiling: Duration,
    },
    /// A later life of the member has asked.
    #[error("a later life of this member, {known}, holds the lease")]
    OldLife {
        /// Its incarnation.
        known: u64,
    },
    /// The voter keeps as many leases as it can.
    #[error("the voter keeps as many leases as it can")]
    Full,
}

/// A node gives up the lease of an earlier life of itself, whose addresses are gone or its own by now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GiveUp {
    /// Who, as in [`Request::member`].
    pub member: MemberId,
    /// Which life's.
    pub incarnation: u64,
    /// The last ballot that life used. A lease with a later one is not the one that is given up.
    pub ballot: u64,
}

const ID: usize = 32;
const NUMBER: usize = 10;
const DURATION: usize = 15;
const KEY: usize = 1 + KEY_MAX;

impl Message for Request {
    const KIND: u16 = kind::LEASE_REQUEST;
    const VERSION: u16 = 1;
    /// Full lists. A settled node's request has none and takes about 60 bytes.
    const MAX_LEN: usize =
        ID + 4 * NUMBER + 2 * DURATION + 1 + 2 * 2 + KEYS_MAX * KEY + KEYS_MAX * (KEY + ID);
}

impl Message for Vote {
    const KIND: u16 = kind::LEASE_VOTE;
    const VERSION: u16 = 1;
    /// Every key refused. In a settled cluster none is.
    const MAX_LEN: usize = 2 * ID + 3 * NUMBER + 1 + NUMBER + 2 + KEYS_MAX * (KEY + ID + DURATION);
}

impl Message for GiveUp {
    const KIND: u16 = kind::LEASE_GIVE_UP;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = ID + 2 * NUMBER;
}
