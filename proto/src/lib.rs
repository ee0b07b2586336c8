//! The vocabulary every part of Evenkeel shares: ids, the cluster file, messages, records, errors.
//!
//! This crate does no I/O, reads no clock and draws no random numbers, so that every core can depend on it and
//! stay testable on any machine.
//!
//! | module | subject |
//! |---|---|
//! | [`bgenv`] | the boot loader's environment, byte by byte |
//! | [`boot`] | what PID 1 remembers from boot to boot |
//! | [`cluster`] | the cluster file: types, parser, rules |
//! | [`control`] | what the console and the daemons ask of init |
//! | [`envelope`] | the versioned frame around every message and record |
//! | [`identity`] | ids of members and clusters |
//! | [`part`] | what provisiond writes for each daemon |
//! | [`personality`] | what makes a node itself, and how SMBIOS carries it |
//! | [`record`] | what provisiond remembers from boot to boot |
//! | [`roster`] | the public key of every node |
//! | [`slot`] | the two slots of a node |
//! | [`status`] | what nodes of a group tell each other every beat |
//! | [`text`] | an error on one line, bytes in hexadecimal |
//! | [`time`] | the instant and duration cores are driven with |

pub mod bgenv;
pub mod boot;
pub mod cluster;
pub mod control;
pub mod envelope;
pub mod identity;
pub mod part;
pub mod personality;
pub mod record;
pub mod roster;
pub mod slot;
pub mod status;
pub mod text;
pub mod time;
