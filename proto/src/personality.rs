//! What makes a node itself: its name, its key, everybody's public keys and the cluster file.
//!
//! A virtual machine gets its personality as SMBIOS type 11 ("OEM strings"), one `evenkeel.KEY=value` string each; the
//! strings of others beside them are none of our business. [`oem_strings`] takes a structure apart as
//! `/sys/firmware/dmi/entries/11-*/raw` holds it:
//!
//! ```text
//! offset 0     1          2         4           length
//!        | 11 | length=5 | handle | count | ... | string 1 NUL | string 2 NUL | ... | NUL
//! ```
//! The same personality is also a record on STATE. The cluster file stays text here: who uses it parses it and shows its
//! problems with the lines they stand in.

use crate::cluster::{CLUSTER_FILE_MAX, NodeName, is_name};
use crate::envelope::{Message, kind};
use crate::part::KeySeed;
use crate::roster::{self, Roster, RosterError};
use serde::{Deserialize, Serialize};

/// SMBIOS structure type of OEM strings.
const OEM_STRINGS: u8 = 11;
/// Bytes of the fixed part of the structure's header; `length` may only say more.
const HEADER_LEN: usize = 4;
/// Bytes of one structure that are looked at: the longest strings of all four keys, and some of others.
pub const STRUCTURE_MAX: usize = CLUSTER_FILE_MAX + roster::MAX_TEXT_LEN + 64 * 1024;
/// What our strings begin with.
const PREFIX: &[u8] = b"evenkeel.";

/// What makes a node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personality {
    /// The node this is.
    pub node: NodeName,
    /// The seed of its key.
    pub key: KeySeed,
    /// Everybody's public keys.
    pub roster: Roster,
    /// The cluster file's text, not checked.
    pub cluster: String,
}

impl Message for Personality {
    const KIND: u16 = kind::PERSONALITY;
    const VERSION: u16 = 1;
    /// The longest cluster file, a full roster (at most 66 bytes an entry) and room for the short fields.
    const MAX_LEN: usize = CLUSTER_FILE_MAX + roster::MAX_ENTRIES * 66 + 1024;
}

/// One of the strings a personality is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `evenkeel.node`, the node's name.
    Node,
    /// `evenkeel.key`, its seed.
    Key,
    /// `evenkeel.roster`, everybody's public keys.
    Roster,
    /// `evenkeel.cluster`, the cluster file.
    Cluster,
}

impl Key {
    const ALL: [Key; 4] = [Key::Node, Key::Key, Key::Roster, Key::Cluster];

    fn name(self) -> &'static str {
        match self {
            Key::Node => "node",
            Key::Key => "key",
            Key::Roster => "roster",
            Key::Cluster => "cluster",
        }
    }

    /// Longest value in bytes.
    fn max(self) -> usize {
        match self {
            Key::Node => 32,
            Key::Key => 64,
            Key::Roster => roster::MAX_TEXT_LEN,
            Key::Cluster => CLUSTER_FILE_MAX,
        }
    }
}

impl core::fmt::Display for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "evenkeel.{}", self.name())
    }
}

/// Why there is no personality in the strings. The seed is never shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PersonalityError {
    /// A structure that is none of OEM strings or is cut short.
    #[error("SMBIOS structure of {len} bytes is not a whole one of type 11: {what}")]
    Structure { len: usize, what: &'static str },
    /// None of the four strings: nobody gave this machine a personality.
    #[error(
        "no personality in SMBIOS: give the machine the type 11 strings evenkeel.node, .key, .roster and .cluster"
    )]
    None,
    /// One of the four strings is missing while others are there.
    #[error("SMBIOS string {0} is missing")]
    Missing(Key),
    /// The same string twice.
    #[error("SMBIOS string {0} is given twice")]
    Duplicate(Key),
    /// Longer than its bound.
    #[error("SMBIOS string {key} has {len} bytes, at most {max} are read")]
    TooLong { key: Key, len: usize, max: usize },
    /// Not text.
    #[error("SMBIOS string {0} is not UTF-8 text")]
    NotText(Key),
    /// Not a node's name.
    #[error(
        "SMBIOS string evenkeel.node: expected 1 to 32 of a-z 0-9 -, beginning with a letter, not ending with -"
    )]
    Node,
    /// Not a seed.
    #[error("SMBIOS string evenkeel.key: expected 64 hexadecimal digits")]
    Key,
    /// A roster that breaks its rules.
    #[error("SMBIOS string evenkeel.roster is refused")]
    Roster(#[source] RosterError),
}

/// The strings of one type 11 structure, as raw bytes.
pub fn oem_strings(raw: &[u8]) -> Result<Vec<&[u8]>, PersonalityError> {
    let refuse = |what| Err(PersonalityError::Structure { len: raw.len(), what });
    let Some(header) = raw.first_chunk::<HEADER_LEN>() else {
        return refuse("shorter than a header");
    };
    if raw.len() > STRUCTURE_MAX {
        return refuse("too long");
    }
    if header[0] != OEM_STRINGS {
        return refuse("another type");
    }
    let Some(mut rest) = raw.get(usize::from(header[1]).max(HEADER_LEN)..) else {
        return refuse("its fixed part is cut short");
    };
    let mut strings = Vec::new();
    loop {
        let Some(end) = rest.iter().position(|b| *b == 0) else {
            return refuse("its strings do not end");
        };
        // An empty string is the end; a structure without strings has two NULs, and the first one says it already.
        if end == 0 {
            return Ok(strings);
        }
        strings.push(&rest[..end]);
        rest = &rest[end + 1..];
    }
}

impl Personality {
    /// The personality among `strings`, which may come from several structures.
    ///
    /// ```
    /// use proto::personality::Personality;
    /// let (key, roster) = (format!("evenkeel.key={}", "07".repeat(32)), format!("evenkeel.roster=a1:{}", "01".repeat(32)));
    /// let strings = ["evenkeel.node=a1", &key, &roster, "evenkeel.cluster=schema = 1", "vendor=x"];
    /// let personality = Personality::from_strings(strings.iter().map(|s| s.as_bytes())).unwrap();
    /// assert_eq!(personality.node, "a1".into());
    /// ```
    pub fn from_strings<'a>(
        strings: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Personality, PersonalityError> {
        let mut found = [None; Key::ALL.len()];
        for string in strings {
            let Some((key, value)) = split(string) else { continue };
            let place = &mut found[key as usize];
            if place.is_some() {
                return Err(PersonalityError::Duplicate(key));
            }
            *place = Some(text(key, value)?);
        }
        if found.iter().all(Option::is_none) {
            return Err(PersonalityError::None);
        }
        let value = |key: Key| found[key as usize].ok_or(PersonalityError::Missing(key));
        let (node, key, roster) = (value(Key::Node)?, value(Key::Key)?, value(Key::Roster)?);
        if !is_name(node) {
            return Err(PersonalityError::Node);
        }
        Ok(Personality {
            node: node.into(),
            key: KeySeed(roster::parse_hex(key).ok_or(PersonalityError::Key)?),
            roster: roster.parse().map_err(PersonalityError::Roster)?,
            cluster: value(Key::Cluster)?.to_owned(),
        })
    }
}

/// Which of our keys `string` gives, if any. Keys of later releases are stepped over.
fn split(string: &[u8]) -> Option<(Key, &[u8])> {
    let rest = string.strip_prefix(PREFIX)?;
    let equals = rest.iter().position(|b| *b == b'=')?;
    let (name, value) = (&rest[..equals], &rest[equals + 1..]);
    Key::ALL.into_iter().find(|k| k.name().as_bytes() == name).map(|k| (k, value))
}

fn text(key: Key, value: &[u8]) -> Result<&str, PersonalityError> {
    // What is read from a file often ends with a line end that nobody meant.
    let value = match key {
        Key::Cluster => value,
        Key::Node | Key::Key | Key::Roster => value.trim_ascii(),
    };
    if value.len() > key.max() {
        return Err(PersonalityError::TooLong { key, len: value.len(), max: key.max() });
    }
    core::str::from_utf8(value).map_err(|_| PersonalityError::NotText(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{decode, encode};
    use proptest::prelude::*;

    fn structure(strings: &[&str]) -> Vec<u8> {
        let mut raw = vec![11, 5, 0x00, 0x0e, strings.len() as u8];
        for string in strings {
            raw.extend_from_slice(string.as_bytes());
            raw.push(0);
        }
        if strings.is_empty() {
            raw.push(0);
        }
        raw.push(0);
        raw
    }

    fn strings() -> Vec<String> {
        vec![
            "vendor=Acme".into(),
            "evenkeel.node=a1".into(),
            format!("evenkeel.key={}\n", "0A".repeat(32)),
            "evenkeel.later=whatever".into(),
            format!("evenkeel.roster=a1:{},b1:{}", "01".repeat(32), "02".repeat(32)),
            "evenkeel.cluster=schema = 1\ncluster = \"demo\"\n".into(),
        ]
    }

    fn read(strings: &[String]) -> Result<Personality, PersonalityError> {
        let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
        let raw = structure(&strings);
        Personality::from_strings(oem_strings(&raw)?)
    }

    #[test]
    fn a_structure_gives_its_personality_and_the_record_keeps_it() {
        let personality = read(&strings()).unwrap();
        assert_eq!((personality.node.0.as_str(), personality.key.0), ("a1", [10; 32]));
        assert_eq!(personality.roster.len(), 2);
        assert_eq!(personality.cluster, "schema = 1\ncluster = \"demo\"\n");
        assert_eq!(decode(&encode(&personality)), Ok(personality));
        assert_eq!(oem_strings(&structure(&[])), Ok(vec![]));
    }

    #[test]
    fn each_breach_has_its_own_refusal() {
        let with = |prefix: &str, to: Option<String>| {
            let mut list = strings();
            let at = list.iter().position(|s| s.starts_with(prefix)).unwrap();
            match to {
                Some(to) => list[at] = to,
                None => drop(list.remove(at)),
            }
            read(&list).unwrap_err()
        };
        for key in Key::ALL {
            let prefix = format!("{key}=");
            assert_eq!(with(&prefix, None), PersonalityError::Missing(key));
            let second = strings().into_iter().find(|s| s.starts_with(&prefix)).unwrap();
            assert_eq!(with("vendor", Some(second)), PersonalityError::Duplicate(key));
            let long = format!("{prefix}{}", "a".repeat(key.max() + 1));
            let refusal = PersonalityError::TooLong { key, len: key.max() + 1, max: key.max() };
            assert_eq!(with(&prefix, Some(long)), refusal);
        }
        assert_eq!(with("evenkeel.node", Some("evenkeel.node=A1".into())), PersonalityError::Node);
        assert_eq!(with("evenkeel.node", Some("evenkeel.node=".into())), PersonalityError::Node);
        assert_eq!(with("evenkeel.key", Some("evenkeel.key=00".into())), PersonalityError::Key);
        let refusal = PersonalityError::Roster(RosterError::NoColon { entry: 1 });
        assert_eq!(with("evenkeel.roster", Some("evenkeel.roster=a1".into())), refusal);
        assert_eq!(read(&["vendor=Acme".into()]), Err(PersonalityError::None));
        assert_eq!(
            Personality::from_strings([&b"evenkeel.cluster=\xff"[..]]),
            Err(PersonalityError::NotText(Key::Cluster))
        );
    }

    #[test]
    fn no_refusal_shows_the_seed() {
        let seed = "0b".repeat(31);
        let list: Vec<String> = vec!["evenkeel.node=a1".into(), format!("evenkeel.key={seed}")];
        let error = read(&list).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("0b0b"), "{error:?}");
    }

    #[test]
    fn every_cut_of_a_structure_is_refused() {
        let list = strings();
        let whole = structure(&list.iter().map(String::as_str).collect::<Vec<_>>());
        for n in 0..whole.len() {
            assert!(
                matches!(oem_strings(&whole[..n]), Err(PersonalityError::Structure { .. })),
                "cut at {n}"
            );
        }
        let mut other = whole.clone();
        other[0] = 12;
        assert!(matches!(oem_strings(&other), Err(PersonalityError::Structure { what: "another type", .. })));
        assert!(matches!(oem_strings(&vec![11; STRUCTURE_MAX + 1]), Err(PersonalityError::Structure { .. })));
    }

    #[test]
    fn the_fullest_personality_fits_its_record() {
        let mut full = Roster::new();
        for n in 0..roster::MAX_ENTRIES {
            let mut key = [0xff; 32];
            key[..2].copy_from_slice(&(n as u16).to_le_bytes());
            full.insert(NodeName(format!("n{n:031}")), key).unwrap();
        }
        let cluster = "x".repeat(CLUSTER_FILE_MAX);
        let personality = Personality {
            node: "n".repeat(32).as_str().into(),
            key: KeySeed([1; 32]),
            roster: full,
            cluster,
        };
        assert_eq!(decode(&encode(&personality)), Ok(personality));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic(raw in prop::collection::vec(any::<u8>(), 0..200), head in any::<bool>()) {
            let mut raw = raw;
            if head {
                raw.splice(0..0, [11, 5, 0, 0, 1]);
            }
            if let Ok(strings) = oem_strings(&raw) {
                let _ = Personality::from_strings(strings);
            }
        }
    }
}
