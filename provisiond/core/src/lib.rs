//! provisiond's decisions, without its disks and sockets. Pure.
//!
//! | module | subject |
//! |---|---|
//! | [`slots`] | install into the slot that does not run, try it, commit it or return |
//! | [`version`] | the number of a release |
//!
//! Nothing here reads a clock, draws a random number, or opens a file or a socket.

pub mod slots;
pub mod version;
