//! The number of a release: three parts, compared from the left.

use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// `1.20.3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

/// Text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a version of three numbers like 1.20.3, found {found:?}")]
pub struct NoVersion {
    /// The text's beginning.
    pub found: String,
}

/// Characters of a bad version that are repeated in the error.
const SHOWN_MAX: usize = 40;

impl FromStr for Version {
    type Err = NoVersion;

    /// ```
    /// use provisiond_core::version::Version;
    /// let version: Version = "1.20.3".parse().unwrap();
    /// assert!(version > Version { major: 1, minor: 3, patch: 99 });
    /// assert_eq!(version.to_string(), "1.20.3");
    /// assert!("1.02.3".parse::<Version>().is_err());
    /// ```
    fn from_str(text: &str) -> Result<Version, NoVersion> {
        let parts = text.split('.').map(|part| part.parse().ok()).collect::<Vec<Option<u32>>>();
        if let [Some(major), Some(minor), Some(patch)] = parts[..] {
            let version = Version { major, minor, patch };
            // One version has one text: no signs, no leading zeros.
            if version.to_string() == text {
                return Ok(version);
            }
        }
        Err(NoVersion { found: text.chars().take(SHOWN_MAX).collect() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_three_plain_numbers() {
        for text in
            ["", "1", "1.2", "1.2.3.4", "1.2.", "1.2.-3", "1.2.+3", "01.2.3", "1.2.4294967296", "1.2.3-rc"]
        {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
        let mut sorted = ["0.9.10", "0.10.0", "1.0.0", "0.9.9"].map(|v| v.parse::<Version>().unwrap());
        sorted.sort();
        assert_eq!(sorted.map(|v| v.to_string()), ["0.9.9", "0.9.10", "0.10.0", "1.0.0"]);
    }
}
