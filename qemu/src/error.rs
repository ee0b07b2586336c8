//! What can go wrong between a wish and a running lab, each with the object, the expectation and the next step.

use std::io;
use std::time::Duration;

/// A lab operation failed. Unless the variant says otherwise the lab is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The operating system refused something.
    #[error("cannot {doing}")]
    Io {
        /// What was being done, with the object's name.
        doing: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program the lab needs ended with a failure.
    #[error("`{command}` failed ({status}){detail}")]
    Command {
        /// The command line, shortened to its essentials.
        command: String,
        /// Its exit status in words.
        status: String,
        /// Its last words, with a leading separator, or empty.
        detail: String,
    },
    /// Packages are missing and this user may not install them.
    #[error("packages are missing; run as root: {line}")]
    NeedsPackages {
        /// The one line that installs them.
        line: String,
    },
    /// A node's QEMU does not obey.
    #[error("node {node}: {what}")]
    Machine {
        /// The node.
        node: String,
        /// What was asked and what came.
        what: String,
    },
    /// Something did not happen in time. What had been started goes on.
    #[error("{what}: not within {} s{}", .limit.as_secs_f32(), if .seen.is_empty() { String::new() } else { format!(" ({})", .seen) })]
    Deadline {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
        /// What was seen instead, or empty.
        seen: String,
    },
    /// The request makes no sense here; the text says why and what would.
    #[error("{0}")]
    Refused(String),
}

impl LabError {
    /// Wraps an I/O error: `doing` completes "cannot …".
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
        let doing = doing.into();
        move |source| LabError::Io { doing, source }
    }

    /// The process exit code that tells this error from others: 3 for missing packages, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            LabError::NeedsPackages { .. } => 3,
            _ => 1,
        }
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        proto::text::one_line(self)
    }
}
