//! Two slots, one of which runs: install into the other, try it once, commit it or return.
//!
//! ```text
//!          Install        bytes read back        Try            the loader starts it    checks good for the soak time
//!   Empty --------> Writing ----------> Verified ----> Armed -------------------> Trying ----------------> Healthy
//!     ^  bytes wrong, cut |               (any stage --Install--> Writing)  |          |                         |
//!     +-------------------+                                                 |          | verdict, panic, crash,  | confirmed
//!                               Armed again <--the first time-- came back --+----------+ deadline                v
//!                                                                    '--the second time--> Failed(why)      Committed
//! ```
//! The stages are those of the *target*, the slot that is not committed. When it becomes `Committed`, the other slot is
//! the target, still `Committed` itself: what the loader falls back to until something is installed over it.
//!
//! # Order of writes
//! Each is on the disk, and environments are read back, before the next begins:
//! ```text
//! install   both environments good (a bad one is made anew from the other) -> target in progress -> record Writing
//!           -> bytes -> read back, hash -> record Verified
//! try       read back, hash -> record Armed -> environment INSTALLED, revision + 1 -> restart
//! trial     record Trying (the loader has made the environment TESTING)
//! commit    record Healthy -> environment OK -> record Committed
//! fail      record Failed -> restart (the loader makes the environment FAILED, revision 0)
//! ```
//! The record says what is meant, the environments follow: whatever a power cut left is compared at the next start and
//! finished or given up. The committed slot is never written, its environment only when the loader would not start
//! it as it is. A digest that failed stays in the record and is not installed again.
//!
//! # A trial that came back
//! It failed when init recorded a failed trial, a panic or a crash for it. Without a word (power cut, hang) it is armed
//! once more, after its bytes were read back; when that trial ends without a word as well, it has failed.
//!
//! Not here: streaming the bytes ([`Step::WriteSlot`]), whether a release may be installed at all, and the loader: its
//! rules are in the model that the tests run against.

pub mod control;
mod environment;
mod io;
mod machine;
mod record;
mod start;

pub use control::{Environments, SlotControl};
pub use io::{Boot, Booted, Event, Found, Input, Outbox, Output, Refusal, Step, Token, Trouble};
pub use machine::{Policy, Slots};
pub use record::{Digest, FAILED_MAX, Failed, Failure, Release, SlotRecord, Stage};
