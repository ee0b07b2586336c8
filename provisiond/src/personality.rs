//! Where the node's personality comes from: the record on STATE, else the firmware's strings.
//!
//! ```text
//! record on STATE ---- there ----> it is used; strings that differ are named in the log
//!        |
//!        +-- none --> strings --- refused --> no personality, the daemon stays up and says why
//!                        |
//!                        +-- the configuration they give is good --> stored durably --> used
//! ```
//! Strings whose configuration is refused are not stored: a record would keep the mistake after the strings are mended.

use crate::config::{ConfigError, Configuration};
use crate::machine::read_bounded;
use crate::records;
use proto::personality::{Personality, PersonalityError, STRUCTURE_MAX, oem_strings};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use store::{Record, StoreError};
use tracing::{info, warn};

/// The record's name in the state directory.
const RECORD: &str = "personality";
/// Structures of type 11 that are looked at. Firmware has one or two.
const STRUCTURES_MAX: usize = 16;

/// Where a personality came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The record on STATE.
    State,
    /// The firmware's strings, at first boot.
    Smbios,
}

impl Source {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Source::State => "state",
            Source::Smbios => "smbios",
        }
    }
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) source: Source,
    pub(crate) personality: Personality,
    pub(crate) configuration: Result<Configuration, ConfigError>,
}

/// Why there is no personality. STATE is unchanged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The record is there and cannot be used. The strings are no way around it: they may be years old.
    #[error("no personality")]
    Record(#[source] StoreError),
    /// No record, and the firmware cannot be read.
    #[error("no personality on STATE, and {path} cannot be read")]
    Firmware { path: PathBuf, source: io::Error },
    /// No record, and the firmware's strings are none.
    #[error("no personality on STATE")]
    Strings(#[source] PersonalityError),
}

/// Finds the personality and the configuration that `configure` makes of it.
///
/// # Errors
/// The outer error is for what must end the daemon: STATE cannot keep the personality, or cannot be used at all.
pub(crate) fn load(
    state: &Path,
    smbios: &Path,
    configure: impl FnOnce(&Personality) -> Result<Configuration, ConfigError>,
) -> Result<Result<Found, LoadError>, StoreError> {
    let path = state.join(RECORD);
    match records::open::<Personality>(&path)? {
        Ok(Some(record)) => {
            let personality = record.get().clone();
            info!("personality of {} from STATE", personality.node);
            compare(&personality, smbios);
            let configuration = configure(&personality);
            Ok(Ok(Found { source: Source::State, personality, configuration }))
        }
        Ok(None) => first_boot(&path, smbios, configure),
        Err(damage) => Ok(Err(LoadError::Record(damage))),
    }
}

fn first_boot(
    path: &Path,
    smbios: &Path,
    configure: impl FnOnce(&Personality) -> Result<Configuration, ConfigError>,
) -> Result<Result<Found, LoadError>, StoreError> {
    let personality = match read_smbios(smbios) {
        Ok(personality) => personality,
        Err(e) => return Ok(Err(e)),
    };
    info!("personality of {} from SMBIOS", personality.node);
    let configuration = configure(&personality);
    if configuration.is_ok() {
        info!("storing the personality of {} on STATE", personality.node);
        Record::create(path, personality.clone())?;
        info!("stored the personality of {} on STATE", personality.node);
    } else {
        warn!("the personality is not stored on STATE: its configuration is refused");
    }
    Ok(Ok(Found { source: Source::Smbios, personality, configuration }))
}

/// Says in the log how the firmware's strings differ from the personality in use.
fn compare(used: &Personality, smbios: &Path) {
    match read_smbios(smbios) {
        Ok(other) => {
            let differences = [
                ("node", used.node != other.node),
                ("key", used.key != other.key),
                ("roster", used.roster != other.roster),
                ("cluster", used.cluster != other.cluster),
            ];
            let differ: Vec<&str> =
                differences.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
            if !differ.is_empty() {
                warn!("SMBIOS strings differ from STATE in {}: STATE is used", differ.join(", "));
            }
        }
        // A machine without strings of ours is no news: STATE has been the source since its first boot.
        Err(LoadError::Strings(PersonalityError::None) | LoadError::Firmware { .. }) => {}
        Err(e) => warn!("SMBIOS strings are not looked at: {}", proto::text::one_line(&e)),
    }
}

/// The personality in the firmware's strings below `directory`.
fn read_smbios(directory: &Path) -> Result<Personality, LoadError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| LoadError::Firmware { path, source }
    };
    let mut structures = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable(directory))? {
        let entry = entry.map_err(unreadable(directory))?;
        // The kernel names them TYPE-INSTANCE.
        if entry.file_name().to_string_lossy().starts_with("11-") {
            structures.push(entry.path().join("raw"));
        }
    }
    structures.sort();
    structures.truncate(STRUCTURES_MAX);
    // One byte more than is looked at: the parser then refuses it as too long.
    let raw = structures.iter().map(|path| read_bounded(path, STRUCTURE_MAX + 1).map_err(unreadable(path)));
    let raw = raw.collect::<Result<Vec<_>, _>>()?;
    let mut strings = Vec::new();
    for raw in &raw {
        strings.extend(oem_strings(raw).map_err(LoadError::Strings)?);
    }
    Personality::from_strings(strings).map_err(LoadError::Strings)
}
