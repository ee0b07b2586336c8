//! The majority register: one primitive, two uses. A [`lease`] is kept in memory and expires; a [`seal`] is kept on
//! disk and never changes.
//!
//! ```text
//!               asks, with a ballot never used before                  answers, once for each ballot
//!   Holder   ------------------- Request ------------------>  Acceptor   (memory; a witness: disk)
//!            <-------------------- Vote --------------------
//!   Proposer ---------- Prepare, Propose, Ask, Decided ---->  Acceptor   (disk)
//!            <------ Promise, Voted, Behind, Decided ------
//! ```
//! In both a fixed list of voters answers, a majority of *different* voters decides, and two majorities share a
//! voter: what one of them was told the other cannot be told. Everything here is pure: time is an argument, what must
//! outlive the process is an output, and nothing is random.
//!
//! | module | subject |
//! |---|---|
//! | [`voters`] | the list of voters and what a majority of it is |
//! | [`lease`] | which node may answer for which keys, until when |
//! | [`seal`] | a value that is written once |
//!
//! The `rules` that the arguments in the module heads rest on are named one by one, and each can be broken in tests:
//! the models of this crate drive the very code that ships and must find the damage.

pub mod lease;
mod rules;
pub mod seal;
pub mod voters;

#[cfg(test)]
mod model;
