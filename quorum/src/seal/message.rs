//! What proposers and acceptors of a seal say to each other, what they keep on disk, and the bounds of it.

use core::fmt;
use proto::envelope::{Message as Enveloped, kind};
use proto::identity::MemberId;
use proto::status::bounded;
use serde::{Deserialize, Deserializer, Serialize};

/// Longest value in bytes: an outcome with the list of those it binds.
pub const VALUE_MAX: usize = 2048;

/// Which register: a hash of what it stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Register(pub [u8; 32]);

impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Register({})", proto::text::hex(&self.0))
    }
}

/// What is written into a register: to this crate just bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Value(Box<[u8]>);

/// A value longer than [`VALUE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value of {found} bytes, at most {VALUE_MAX} are allowed; seal its hash instead")]
pub struct ValueTooLong {
    /// Its length.
    pub found: usize,
}

impl Value {
    /// A value of these bytes.
    ///
    /// # Errors
    /// [`ValueTooLong`] above [`VALUE_MAX`] bytes.
    pub fn new(bytes: &[u8]) -> Result<Value, ValueTooLong> {
        if bytes.len() > VALUE_MAX {
            Err(ValueTooLong { found: bytes.len() })
        } else {
            Ok(Value(bytes.into()))
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({})", proto::text::hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Value, D::Error> {
        bounded::<_, u8, VALUE_MAX>(input).map(|bytes| Value(bytes.into()))
    }
}

/// An attempt to write. Higher rounds win; of one round the higher member id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Counted by its proposer on disk, so that none is used twice.
    pub round: u64,
    /// Its proposer.
    pub member: MemberId,
}

/// A value that an acceptor voted for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Accepted {
    /// By which ballot.
    pub ballot: Ballot,
    /// Which value.
    pub value: Value,
}

/// A message about one register.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Which register.
    pub register: Register,
    /// Who sends. The receiver compares it with the member the session belongs to.
    pub from: MemberId,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Body {
    /// Proposer: will you refuse ballots below this one, and what have you voted for?
    Prepare(Ballot),
    /// Acceptor: I refuse ballots below this one, and this is my vote so far.
    Promise {
        /// Which one.
        ballot: Ballot,
        /// The vote of the highest ballot so far.
        accepted: Option<Accepted>,
    },
    /// Proposer: vote for this.
    Propose(Accepted),
    /// Acceptor: I have voted for the value of this ballot.
    Voted(Ballot),
    /// Acceptor: your ballot is behind what I promised.
    Behind {
        /// The ballot that was asked for.
        asked: Ballot,
        /// The one that was promised.
        promised: Ballot,
    },
    /// Anybody: what do you know?
    Ask,
    /// Acceptor: nothing is decided that I know of; this is my vote.
    Undecided {
        /// The vote of the highest ballot so far.
        accepted: Option<Accepted>,
    },
    /// Anybody: this is decided.
    Decided(Value),
}

/// What an acceptor keeps on disk for one register. Binding: see `docs/formats/record.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Ballots below are refused.
    pub promised: Option<Ballot>,
    /// The vote of the highest ballot.
    pub accepted: Option<Accepted>,
    /// What is decided.
    pub decided: Option<Value>,
}

/// What a proposer keeps on disk for one register: the last round it used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Round(pub u64);

const BALLOT: usize = 10 + 32;
const VALUE: usize = 2 + VALUE_MAX;

impl Enveloped for Message {
    const KIND: u16 = kind::SEAL_MESSAGE;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = 64 + 1 + 2 * BALLOT + 1 + VALUE;
}

impl Enveloped for Record {
    const KIND: u16 = kind::SEAL_RECORD;
    const VERSION: u16 = 1;
    const MAX_LEN: usize = 3 + 2 * BALLOT + 2 * VALUE;
}

impl Enveloped for Round {
    const KIND: u16 = kind::SEAL_ROUND;
    const VERSION: u16 = 1;
    /// Twice today's: a record's file never grows.
    const MAX_LEN: usize = 20;
}
