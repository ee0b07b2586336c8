//! Who belongs to a cluster: the decisions of `peer`, without its sockets. provisiond keeps what this crate judges and
//! needs no QUIC for it, so it is a crate of its own and its manifest holds the border.
//!
//! | module | subject |
//! |---|---|
//! | [`key`] | a node's key, signatures that say what they are for |
//! | [`id`] | ids of members and clusters |
//! | [`roster`] | the numbered, hash-chained, admin-signed list of who belongs |
//!
//! Nothing here reads a clock, draws a random number, or opens a file or a socket.

pub mod id;
pub mod key;
pub mod roster;
