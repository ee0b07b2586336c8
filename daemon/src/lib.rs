//! What every daemon has to do with init: [`log`] lines on standard error, which init keeps with their time,
//! [`Readiness`], which init waits for, and over its control socket the [`fence`] and the [`memory`] it keeps.
//!
//! It holds no state of a daemon and starts nothing by itself.

mod control;
pub mod fence;
pub mod log;
pub mod memory;
mod readiness;

pub use control::InitError;
pub use readiness::{Progress, Readiness, SIGN_OF_LIFE_EVERY};
