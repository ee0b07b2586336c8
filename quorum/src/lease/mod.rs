//! The lease: which node may answer for which keys, and until when. In memory; a witness keeps its votes on disk.
//!
//! A node has one lease, renewed by one [`Request`] each beat to every voter, and a list of keys that it covers. The list is
//! sent when it changes; a renewal without it is sixty bytes. A voter grants each key of the list that nobody else
//! has. Giving a key up is a list without it, taking one is a list with it, and a key keeps its holder for as long as
//! that one renews: nothing but the list changes whose it is.
//!
//! ```text
//!   holder's clock    s ---------------- margin | s + d - drift ................ + F     addresses certainly gone
//!                     | sent             drops it   fence's deadline
//!   a voter's clock      r ------------------------- r + d --------------------- + F     another may be granted it
//!                        | received (r after s)
//! ```
//!
//! # Why there are never two holders
//! Let N hold key K by requests that a majority Q of voters granted. The holder counts the *oldest sending* among the best
//! majority of its latest granted requests, so each voter of Q has received a request naming K at or after s.
//! 1. Each voter of Q keeps K for N until its own clock has run d + F since it received that request: it replaces no live
//!    lease, of another member or of another life; times only grow (the longer of request and configuration, never
//!    shorter than promised before); an older request, with a lower ballot, changes nothing.
//! 2. N drops K at s + d - drift - margin; the fence has removed its address by s + d - drift + F on N's clock. Clocks run
//!    within 1 part in 512 of each other over d + F, and drift is (d + F) / 512, so the address is gone in real time no
//!    later than any voter of Q may grant K again. A handler that runs late finds that out before it says anything.
//! 3. Another holder M needs a majority, which shares a voter X with Q. X grants K to M only after N's lease and its fence
//!    bound by (1), when N answers no more by (2), or because N's list, with a higher ballot, leaves K out. N sends
//!    such a list only when it does not answer for K any more, and from then on counts no vote for a request before the
//!    one that names K again.
//! 4. A voter that lost its memory is silent for the longest duration and fence there can be, by a ceiling that was on disk
//!    before anything of that length was granted. A witness writes a new grant before it tells it, and takes what it finds
//!    on its disk for just renewed.
//! 5. Every ballot is sent at one time only, so a vote tells which sending it answers; of one life ballots only rise, and
//!    a life is a higher incarnation. A give-up of an earlier life names it and its last ballot: a lease with a later one is
//!    another process's.
//!
//! # When voters change
//! Lists one step apart share a voter in every two majorities, so (3) holds between them. For lists further apart:
//! a voter that learns of version v answers requests that count by the version before for one ceiling more, then never
//! again; another ceiling later nobody relies on such an answer, and the voter *is settled*. **Version v + 1 may be sealed
//! only once a majority of v's voters are settled.** Then no majority of v - 1 can renew anything, since it shares a voter
//! with those; so whoever counts by v - 1 or less has lost its lease for ever before v + 1 exists. A restart does not
//! reopen a version: the roster is on disk before it is told here.
//!
//! # What it does not do
//! Removing an address and bounding its life is the shell's and PID 1's. A virtual machine that is paused stops its clocks
//! with it: (2) does not hold for it. Members are trusted to follow the protocol; only members are heard at all.

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
