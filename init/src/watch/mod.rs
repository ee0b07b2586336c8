//! The watchdog's rules: who must make progress, and what happens to the machine when nobody does.
//!
//! Pure: [`rules`]. [`shell`] carries out. The device is `watchdog`'s subject.

pub(crate) mod rules;
mod shell;
