//! Readiness: one line on the descriptor that init left open and named in `NOTIFY_FD`.

use crate::sys;
use std::fs::File;
use std::io::Write;

/// The promise to say that this daemon is ready.
#[derive(Debug)]
pub(crate) struct Readiness(Option<File>);

impl Readiness {
    /// Finds the descriptor. Without the variable nobody waits and telling is free. To be called first in the process,
    /// while the descriptor cannot be anything else.
    pub(crate) fn from_environment() -> Readiness {
        let Ok(number) = std::env::var("NOTIFY_FD") else { return Readiness(None) };
        let file = number.parse().map_err(|_| "not a number".to_owned());
        match file.and_then(|fd| sys::inherited(fd).map_err(|e| e.to_string())) {
            Ok(file) => Readiness(Some(file)),
            Err(error) => {
                tracing::warn!(NOTIFY_FD = number, error, "readiness cannot be told");
                Readiness(None)
            }
        }
    }

    /// Says it and closes the descriptor.
    pub(crate) fn tell(self) {
        if let Some(mut file) = self.0
            && let Err(error) = file.write_all(b"READY=1\n")
        {
            tracing::warn!(%error, "readiness was not heard");
        }
    }
}
