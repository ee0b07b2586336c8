//! The lease: which node may answer for which keys, and until when. In memory; a witness keeps its votes on disk.
//!
//! HEAD
mod acceptor;
mod holder;
mod message;

pub use acceptor::{
    Acceptor, GRANTS_MAX, Input as AcceptorInput, Keeping, LEASES_MAX, LIVES_MAX, Memory,
    Output as AcceptorOutput, Record, Setup, Start,
};
pub use holder::{Asking, Cause, Holder, Input as HolderInput, OldLife, Output as HolderOutput, Row};
pub use message::{
    Answer, Denial, GiveUp, Handed, KEY_MAX, KEYS_MAX, Key, KeyTooLong, Keys, Refused, Request, Vote,
};

use proto::time::Duration;

/// How long a lease lasts and by how much its addresses may outlive it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Times {
    /// From the sending of the request.
    pub duration: Duration,
    /// The bound of the fence: time from the deadline until the addresses are certainly gone.
    pub fence: Duration,
}

/// The longest that duration and fence together may be, as every voter recorded it on disk before it granted a lease of
/// that length. A voter that lost its memory is silent for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ceiling(pub Duration);

/// Clocks of two nodes may differ by one part in so many: two crystals at 100 ppm, slewed by NTP at 500 ppm each the
/// other way, make 1,200 ppm; this is 1,950.
const DRIFT_PART: u32 = 512;
