//! The seal: a register that is written once. On disk.
//!
//! HEAD
mod acceptor;
mod message;
mod proposer;

pub use acceptor::{Acceptor, Input as AcceptorInput, Output as AcceptorOutput, WAITING_MAX};
pub use message::{Accepted, Ballot, Body, Message, Record, Register, Round, VALUE_MAX, Value, ValueTooLong};
pub use proposer::{Input as ProposerInput, Output as ProposerOutput, Proposer};
