//! The command line: where everything is. Defaults are the device's; tests give directories of their own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Directory of the records.
    pub(crate) state: PathBuf,
    /// Directory with the firmware's SMBIOS structures.
    pub(crate) smbios: PathBuf,
    /// The kernel's id of this boot.
    pub(crate) boot_id: PathBuf,
    /// Directory of the parts.
    pub(crate) parts: PathBuf,
    /// init's control socket.
    pub(crate) init: PathBuf,
    /// The socket to serve.
    pub(crate) bus: PathBuf,
    /// What release this is.
    pub(crate) release: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            state: "/state/evenkeel".into(),
            smbios: "/sys/firmware/dmi/entries".into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            parts: Path::new(proto::part::NETD_PART_PATH).parent().map(Path::to_owned).unwrap_or_default(),
            init: proto::control::SOCKET_PATH.into(),
            bus: bus::PROVISIOND_SOCKET.into(),
            release: "/etc/evenkeel/release".into(),
        }
    }
}

/// Why the command line is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OptionsError {
    #[error(
        "unknown option {0}; options are: --state --smbios --boot-id --parts --init --bus --release, each with a path"
    )]
    Unknown(String),
    #[error("option {0} needs a path")]
    Value(String),
}

/// Reads `--OPTION PATH` pairs.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, OptionsError> {
    let mut options = Options::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let name = argument.to_string_lossy().into_owned();
        let place = match name.as_str() {
            "--state" => &mut options.state,
            "--smbios" => &mut options.smbios,
            "--boot-id" => &mut options.boot_id,
            "--parts" => &mut options.parts,
            "--init" => &mut options.init,
            "--bus" => &mut options.bus,
            "--release" => &mut options.release,
            _ => return Err(OptionsError::Unknown(name)),
        };
        *place = arguments.next().ok_or(OptionsError::Value(name))?.into();
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_replace_the_defaults() {
        let read = |line: &str| parse(line.split_whitespace().map(OsString::from));
        assert_eq!(read(""), Ok(Options::default()));
        let found = read("--state /tmp/s --bus /tmp/b").unwrap();
        assert_eq!(found, Options { state: "/tmp/s".into(), bus: "/tmp/b".into(), ..Options::default() });
        assert_eq!(read("--stat /tmp"), Err(OptionsError::Unknown("--stat".into())));
        assert_eq!(read("--state"), Err(OptionsError::Value("--state".into())));
    }
}
