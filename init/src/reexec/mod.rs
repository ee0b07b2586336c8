//! Re-execution: another program takes over as PID 1 while services run.
//!
//! ```text
//! asked --state in a memfd--> Checking --the program reads it and exits 0--> state anew, execve --> resumed
//!                                |                                                     |
//!                                +-- it fails, or CHECK_LIMIT: refused                 +-- execve fails: goes on
//! ```
//! What cannot be made again goes along: processes with their pidfds, listening sockets, the pipes with what is still
//! in them, the unfinished lines and the rings, memory kept for services, the control socket with its clients, the
//! watchdog, the log keeper. So does what was promised: the fence's addresses and deadline, the rules of a trial, a
//! watchdog that is not fed any more, a degraded boot. Instants stay what they are. Descriptors keep their numbers;
//! the state says what each one is.
//!
//! What can be made again does not: a child that loads modules for devices is left to itself, and the next program
//! looks at all devices anew, also at one whose module hung before. The recovery prompt, which is shown for 3 s at
//! most, refuses the hand-over: its keys are on their way to the program that shows it.
//!
//! The program is tried before it is trusted: a child runs it on a copy of the state, and only its word that it can
//! read all of it lets it become PID 1. Nothing has changed until then.

pub(crate) mod state;
mod takeover;

use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use crate::sys;
use state::State;

pub(crate) use takeover::{Check, resume};

/// How long the new program may take to read the state; who asked waits for 5 s.
const CHECK_LIMIT: Duration = Duration::from_secs(3);
/// The running program, also when its file is gone from the initramfs.
const SELF: &str = "/proc/self/exe";
/// The argument in front of the state's descriptor, for the check.
pub(crate) const CHECK_ARGUMENT: &str = "--check-state";
/// The argument in front of the state's descriptor, to take over.
pub(crate) const RESUME_ARGUMENT: &str = "--resume";
/// What a program says that has read the state: another one may exit with 0 without having looked.
pub(crate) const CHECK_PASSED: &str = "this init can take over\n";

/// The check's whole work: reads the state of descriptor `number` and says whether this program could go on from it.
///
/// # Errors
/// Why not.
pub(crate) fn check(number: &str) -> Result<(), String> {
    take(number).and_then(State::read).map(drop)
}

/// The descriptor an argument names.
///
/// # Errors
/// Why there is none.
pub(crate) fn take(number: &str) -> Result<OwnedFd, String> {
    let number: RawFd = number.parse().map_err(|_| format!("{number:?} is no descriptor's number"))?;
    sys::inherit(number).map_err(|e| format!("descriptor {number}: {}", sys::errno_text(&e)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_number_that_names_no_state_is_refused() {
        assert!(super::check("x").unwrap_err().contains("number"));
        assert!(super::check("99999").unwrap_err().contains("Bad file"));
    }
}
