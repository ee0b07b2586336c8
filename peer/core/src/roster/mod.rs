//! The roster chain: who belongs to the cluster, in numbered entries, each signed under the one before it.
//!
//! ```text
//!  entry 0                entry 1                entry 2
//! | salt               | hash of entry 0  <--- | hash of entry 1  <---     the cluster id is the hash of entry 0, cut
//! | whole content      | whole content        | whole content
//! | signed by its own  | signed by the admin  | signed by k of the n
//! | admin key          | key of entry 0       | recovery keys of entry 1
//! ```
//! Every entry says the whole content, so that the newest one is enough to know who belongs, and a newcomer needs no
//! history. What was taken out stays in it as a burned key: the rules need nothing that an entry does not say.
//!
//! [`RosterChain::apply`] judges an entry and gives the chain that holds it; the old one stays in force until its owner
//! has stored the new one ([`RosterChain::record`]). Nothing needs a clock: order is the number, validity is the chain.
//!
//! What this does not do: decide which of two entries with one number is right (a fork is reported with both hashes;
//! the majority's seal decides), store or send anything, say what a role may do.

mod chain;
mod draft;
mod entry;
mod rules;
#[cfg(test)]
mod tests;

pub use chain::{Applied, Change, KEPT_BYTES_MAX, LoadError, RosterChain, RosterRecord};
pub use draft::{Draft, DraftError};
pub use entry::{
    BURNED_MAX, Content, DOMAIN_MAX, ENTRY_MAX, Entry, MEMBER_VOTERS_MAX, MEMBERS_MAX, Member, Pin, Pool,
    RECOVERY_MAX, Recovery, Role, SIGNATURES_MAX, VOTERS_MAX,
};
pub use rules::Refused;
