//! What every daemon does alike: [`log`] lines on standard error, which init keeps with their time, and
//! [`Readiness`], which init waits for.
//!
//! It holds no state of a daemon and starts nothing by itself.

pub mod log;
mod readiness;

pub use readiness::Readiness;
