//! Readiness: one line on the descriptor that init left open and named in `NOTIFY_FD`; and what follows it, a line
//! every so often for a service with `watchdog_s`.

use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// The promise to say that this daemon is ready.
#[derive(Debug)]
pub struct Readiness(Option<File>);

impl Readiness {
    /// Finds the descriptor. Without the variable nobody waits and telling is free. To be called after
    /// [`log::start`](crate::log::start), so that a bad variable is heard of; it never ends the daemon.
    pub fn from_environment() -> Readiness {
        let Ok(number) = std::env::var("NOTIFY_FD") else { return Readiness(None) };
        let found = number.parse::<u32>().map_err(|error| error.to_string()).and_then(|fd| {
            // Through /proc, so that a number from the environment need not be believed to be an open descriptor.
            let path = format!("/proc/self/fd/{fd}");
            // An init that does not read must not stop this daemon.
            let options = OFlag::O_NONBLOCK.bits();
            OpenOptions::new().write(true).custom_flags(options).open(path).map_err(|error| error.to_string())
        });
        match found {
            Ok(file) => Readiness(Some(file)),
            Err(error) => {
                tracing::warn!(NOTIFY_FD = number, error, "readiness cannot be told");
                Readiness(None)
            }
        }
    }

    /// Says it. What is returned goes on talking, for a service with `watchdog_s`; others drop it.
    pub fn tell(mut self) -> Progress {
        if let Some(file) = &mut self.0
            && let Err(error) = file.write_all(b"READY=1\n")
        {
            tracing::warn!(%error, "readiness was not heard");
        }
        Progress(self.0)
    }
}

/// Between two signs of life. The services' `watchdog_s` allow ten times that and more.
pub const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(1);

/// Signs of life after readiness.
#[derive(Debug)]
pub struct Progress(Option<File>);

impl Progress {
    /// One sign of life: one byte, without waiting. To be given by what would hang when the daemon hangs. One that does
    /// not get through is not missed: then init has more than it can read.
    pub fn tell(&mut self) {
        if let Some(file) = &mut self.0 {
            let _ = file.write(b"\n");
        }
    }
}
