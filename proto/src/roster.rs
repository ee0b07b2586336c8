//! The roster: which public key each node of the cluster speaks with. A key outside of it gets a refused handshake.
//!
//! Text form, one line, no spaces needed: `a1:<64 hex digits>,a2:<64 hex digits>`.

use crate::cluster::{NodeName, is_name};
use crate::text;
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::collections::BTreeMap;

/// Most entries a roster may have: a cluster is a handful of nodes, and every handshake walks the list.
pub const MAX_ENTRIES: usize = 256;

/// Longest text form in bytes that is looked at: [`MAX_ENTRIES`] of name, `:`, 64 digits, `,` and some spaces.
pub const MAX_TEXT_LEN: usize = MAX_ENTRIES * 104;

/// An Ed25519 public key, 32 bytes as in RFC 8032.
pub type PublicKey = [u8; 32];

/// Public keys by node name. Names and keys are both unique.
///
/// ```
/// use proto::roster::Roster;
/// let text = format!("a1:{},a2:{}", "01".repeat(32), "02".repeat(32));
/// let roster: Roster = text.parse().unwrap();
/// assert_eq!(roster.name_of(&[2; 32]), Some(&"a2".into()));
/// assert_eq!(roster.to_string(), text);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    entries: BTreeMap<NodeName, PublicKey>,
}

/// Why a roster is refused. A roster that was being built is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// The text is longer than any allowed roster.
    #[error("roster text of {len} bytes, at most {MAX_TEXT_LEN} are allowed")]
    TooLong { len: usize },
    /// More nodes than [`MAX_ENTRIES`].
    #[error("roster with more than {MAX_ENTRIES} nodes")]
    TooMany,
    /// An entry without `:`.
    #[error("roster entry {entry}: expected \"name:key\", found no \":\"")]
    NoColon { entry: usize },
    /// A name that breaks the cluster file's rule for names.
    #[error(
        "roster entry {entry}: bad node name, expected 1 to 32 of a-z 0-9 -, beginning with a letter, not ending with -"
    )]
    Name { entry: usize },
    /// A key that is not 64 hexadecimal digits.
    #[error("roster entry {entry} ({node}): bad key, expected 64 hexadecimal digits")]
    Key { entry: usize, node: NodeName },
    /// The same name twice.
    #[error("roster names node {node} twice")]
    DuplicateName { node: NodeName },
    /// The same key under two names: the nodes could not be told apart.
    #[error("roster gives nodes {first} and {second} the same key")]
    DuplicateKey { first: NodeName, second: NodeName },
}

impl Roster {
    /// An empty roster.
    pub fn new() -> Roster {
        Roster::default()
    }

    /// Adds a node. The name is taken as it is; only text is checked for the rule of names.
    pub fn insert(&mut self, node: NodeName, key: PublicKey) -> Result<(), RosterError> {
        if self.entries.contains_key(&node) {
            return Err(RosterError::DuplicateName { node });
        }
        if let Some(first) = self.name_of(&key) {
            return Err(RosterError::DuplicateKey { first: first.clone(), second: node });
        }
        if self.entries.len() == MAX_ENTRIES {
            return Err(RosterError::TooMany);
        }
        self.entries.insert(node, key);
        Ok(())
    }

    /// The key of `node`.
    pub fn key_of(&self, node: &NodeName) -> Option<&PublicKey> {
        self.entries.get(node)
    }

    /// The node that `key` belongs to, by comparison of the whole key.
    pub fn name_of(&self, key: &[u8]) -> Option<&NodeName> {
        self.entries.iter().find(|(_, k)| k.as_slice() == key).map(|(name, _)| name)
    }

    /// Nodes and keys, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, &PublicKey)> {
        self.entries.iter()
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl FromStr for Roster {
    type Err = RosterError;

    /// Reads the text form. Blanks around entries, names and keys are ignored; empty text is an empty roster.
    fn from_str(text: &str) -> Result<Roster, RosterError> {
        if text.len() > MAX_TEXT_LEN {
            return Err(RosterError::TooLong { len: text.len() });
        }
        let mut roster = Roster::new();
        if text.trim().is_empty() {
            return Ok(roster);
        }
        for (at, entry) in text.split(',').enumerate() {
            let number = at + 1;
            let (name, key) = entry.split_once(':').ok_or(RosterError::NoColon { entry: number })?;
            let name = name.trim();
            if !is_name(name) {
                return Err(RosterError::Name { entry: number });
            }
            let node = NodeName::from(name);
            match parse_hex(key.trim()) {
                Some(key) => roster.insert(node, key)?,
                None => return Err(RosterError::Key { entry: number, node }),
            }
        }
        Ok(roster)
    }
}

impl fmt::Display for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, key)) in self.entries.iter().enumerate() {
            write!(f, "{}{name}:{}", if at == 0 { "" } else { "," }, text::hex(key))?;
        }
        Ok(())
    }
}

impl Serialize for Roster {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.entries.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Roster {
    /// Holds decoded rosters to the same rules as text: a disk or a peer must not bring in two names for one key.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Roster, D::Error> {
        let entries = BTreeMap::<NodeName, PublicKey>::deserialize(deserializer)?;
        let mut roster = Roster::new();
        for (node, key) in entries {
            roster.insert(node, key).map_err(D::Error::custom)?;
        }
        Ok(roster)
    }
}

/// Reads 64 hexadecimal digits, either case: a public key or a seed.
pub fn parse_hex(digits: &str) -> Option<[u8; 32]> {
    text::unhex(digits)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    #[test]
    fn text_goes_around() {
        let text = format!("a1:{},b-2:{}", hex(1), hex(0xfe));
        let roster: Roster = text.parse().unwrap();
        assert_eq!(roster.len(), 2);
        assert_eq!(roster.key_of(&"b-2".into()), Some(&[0xfe; 32]));
        assert_eq!(roster.to_string(), text);
        let loose = format!("\n b-2 : {} ,\n a1:{}\n", hex(0xfe).to_uppercase(), hex(1));
        assert_eq!(loose.parse(), Ok(roster));
        assert_eq!(" \n".parse(), Ok(Roster::new()));
    }

    #[test]
    fn each_breach_has_its_own_refusal() {
        let a = hex(1);
        let table = [
            ("a1".to_owned(), RosterError::NoColon { entry: 1 }),
            (format!("a1:{a},"), RosterError::NoColon { entry: 2 }),
            (format!("A1:{a}"), RosterError::Name { entry: 1 }),
            (format!("a1-:{a}"), RosterError::Name { entry: 1 }),
            (format!(":{a}"), RosterError::Name { entry: 1 }),
            (format!("{}:{a}", "n".repeat(33)), RosterError::Name { entry: 1 }),
            (format!("a1:{}", &a[1..]), RosterError::Key { entry: 1, node: "a1".into() }),
            (format!("a1:{}", a.replace('1', "g")), RosterError::Key { entry: 1, node: "a1".into() }),
            (format!("a1:{}é", &a[2..]), RosterError::Key { entry: 1, node: "a1".into() }),
            (format!("a1:{a},a1:{}", hex(2)), RosterError::DuplicateName { node: "a1".into() }),
            (format!("a1:{a},a2:{a}"), RosterError::DuplicateKey { first: "a1".into(), second: "a2".into() }),
            (" ".repeat(MAX_TEXT_LEN + 1), RosterError::TooLong { len: MAX_TEXT_LEN + 1 }),
        ];
        for (text, refusal) in table {
            assert_eq!(text.parse::<Roster>(), Err(refusal), "{text}");
        }
    }

    #[test]
    fn entries_are_bounded() {
        let mut roster = Roster::new();
        for n in 0..MAX_ENTRIES as u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_le_bytes());
            roster.insert(NodeName(format!("n{n}")), key).unwrap();
        }
        assert_eq!(roster.insert("x".into(), [9; 32]), Err(RosterError::TooMany));
        assert_eq!(roster.to_string().parse(), Ok(roster));
    }

    #[test]
    fn decoding_keeps_the_rules() {
        let twice = BTreeMap::from([(NodeName::from("a1"), [1u8; 32]), (NodeName::from("a2"), [1u8; 32])]);
        let bytes = postcard::to_allocvec(&twice).unwrap();
        assert!(postcard::from_bytes::<Roster>(&bytes).is_err());
    }
}
