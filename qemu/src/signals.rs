//! The signals that ask a program to end: Ctrl-C, the end of its terminal, `kill`.

use crate::error::LabError;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// From now on these signals are read from the descriptor instead of ending the process. Threads inherit this: call it
/// before the first one that stays. So do programs that are started without taking it back.
///
/// # Errors
/// The system refuses; the signals may be blocked then.
pub fn ending() -> Result<SignalFd, LabError> {
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().map_err(|e| LabError::io("block signals")(e.into()))?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
        .map_err(|e| LabError::io("listen for signals")(e.into()))
}
