//! The control socket: who may ask init for what, and what it answers.

mod serve;
pub(crate) mod socket;
