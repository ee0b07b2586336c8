//! provisiond's decisions, without its disks and sockets. Pure.
//!
//! | module | subject |
//! |---|---|
//! | [`boot_entries`] | the firmware's entries for the loader and the rescue system |
//! | [`release`] | the bundle of a release: signed manifest, chunks, a verifier that streams |
//! | [`slots`] | install into the slot that does not run, try it, commit it or return |
//! | [`version`] | the number of a release |
//!
//! Nothing here reads a clock, draws a random number, or opens a file or a socket.

pub mod boot_entries;
pub mod release;
pub mod slots;
pub mod version;
