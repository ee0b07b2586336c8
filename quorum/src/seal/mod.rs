//! The seal: a register that is written once. On disk.
//!
//! ```text
//!   Proposer                              Acceptors                                     on their disks
//!     round on disk, then Prepare(b)  -->   refuse ballots below b from now on            promised = b
//!                       Promise(vote)  <--
//!     a majority: Propose(b, value)    -->   vote, unless a higher ballot was promised      accepted = (b, value)
//!                          Voted(b)    <--
//!     a majority: decided, Decided(v)  -->   learn                                          decided = v
//! ```
//! Single-decree Paxos, one [`Acceptor`] and [`Proposer`] for each register. The acceptors of a register are fixed when it is
//! named; nothing that happens to the roster later changes them.
//!
//! # Why a decided value never changes
//! Decided means that a majority Q has voted for v by one ballot b, on disk. A ballot c above b needs promises of a majority,
//! which shares an acceptor X with Q. X voted for b before it promised c (else it had refused b) and tells its vote with the
//! promise. By induction every ballot between b and c has the value v, so the highest vote that c's proposer is told of is
//! for v, and it proposes that. This needs: an answer leaves only when what it tells is on disk; a ballot has one
//! value, so a round is on disk before it is used; votes count by distinct acceptor; a member whose record is
//! damaged does not vote.
//!
//! # Who missed it
//! An acceptor that knows the decision answers everything with it. A proposer that only learns asks until one does, or until a
//! majority shows votes of one ballot.
//!
//! What happens when two write at once: the lower ballot learns that it is behind and waits, longer each time and each
//! member differently; the other finishes meanwhile. Without a majority nothing is ever decided.

mod acceptor;
mod message;
mod proposer;

pub use acceptor::{Acceptor, Input as AcceptorInput, Output as AcceptorOutput, WAITING_MAX};
pub use message::{Accepted, Ballot, Body, Message, Record, Register, Round, VALUE_MAX, Value, ValueTooLong};
pub use proposer::{Input as ProposerInput, Output as ProposerOutput, Proposer};
