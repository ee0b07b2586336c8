//! Readiness: one line on the descriptor that init left open and named in `NOTIFY_FD`.

use std::fs::{File, OpenOptions};
use std::io::Write;

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
            OpenOptions::new().write(true).open(path).map_err(|error| error.to_string())
        });
        match found {
            Ok(file) => Readiness(Some(file)),
            Err(error) => {
                tracing::warn!(NOTIFY_FD = number, error, "readiness cannot be told");
                Readiness(None)
            }
        }
    }

    /// Says it and closes the descriptor.
    pub fn tell(self) {
        if let Some(mut file) = self.0
            && let Err(error) = file.write_all(b"READY=1\n")
        {
            tracing::warn!(%error, "readiness was not heard");
        }
    }
}
