//! Node keys of one lab: made from the system's randomness for this lab alone, never shipped, never shared.

use crate::cluster::NodePlan;
use crate::error::LabError;
use ed25519_dalek::SigningKey;
use proto::text::{hex, unhex};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;

/// Seeds by node name.
#[derive(Clone, PartialEq, Eq)]
pub struct LabKeys(BTreeMap<String, [u8; 32]>);

impl std::fmt::Debug for LabKeys {
    /// Names only: a seed has no business in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl LabKeys {
    /// A seed for every node: the `known` one where there is one, else a fresh one from `/dev/urandom`.
    pub fn generate(
        nodes: &[NodePlan],
        known: impl Fn(&str) -> Option<[u8; 32]>,
    ) -> Result<LabKeys, LabError> {
        let mut source = std::fs::File::open("/dev/urandom").map_err(LabError::io("open /dev/urandom"))?;
        let mut keys = BTreeMap::new();
        for node in nodes {
            let mut seed = [0; 32];
            match known(&node.name) {
                Some(kept) => seed = kept,
                None => source.read_exact(&mut seed).map_err(LabError::io("read /dev/urandom"))?,
            }
            keys.insert(node.name.clone(), seed);
        }
        Ok(LabKeys(keys))
    }

    /// `name:public key` pairs joined by `,` in name order: the value of `evenkeel.roster=`.
    pub fn roster(&self) -> String {
        let mut text = String::new();
        for (name, seed) in &self.0 {
            let public = SigningKey::from_bytes(seed).verifying_key();
            let separator = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{separator}{name}:{}", hex(public.as_bytes()));
        }
        text
    }

    /// The SMBIOS type 11 strings that make the machine this node, or `None` for a node without a key.
    pub fn personality(&self, node: &str, cluster: &str) -> Option<[String; 4]> {
        let seed = self.0.get(node)?;
        Some([
            format!("evenkeel.node={node}"),
            format!("evenkeel.key={}", hex(seed)),
            format!("evenkeel.roster={}", self.roster()),
            format!("evenkeel.cluster={cluster}"),
        ])
    }
}

/// The seed in a personality's `evenkeel.key=` string; `None` when it is none.
pub fn seed_of(string: &str) -> Option<[u8; 32]> {
    unhex(string.strip_prefix("evenkeel.key=")?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str) -> NodePlan {
        NodePlan { name: name.into(), pair: None, group: "east".into(), ports: Vec::new() }
    }

    #[test]
    fn every_node_has_a_key_of_its_own_and_the_roster_names_it() {
        let keys = LabKeys::generate(&[plan("b1"), plan("a1")], |_| None).expect("the system has randomness");
        let roster = keys.roster();
        let names: Vec<&str> = roster.split(',').filter_map(|pair| pair.split(':').next()).collect();
        assert_eq!(names, ["a1", "b1"]);
        let [node, key, told, cluster] = keys.personality("a1", "schema = 1\n").expect("a1 has a key");
        assert_eq!(node, "evenkeel.node=a1");
        assert_eq!(told, format!("evenkeel.roster={roster}"));
        assert_eq!(cluster, "evenkeel.cluster=schema = 1\n");
        let seed = seed_of(&key).expect("a seed");
        let public = hex(SigningKey::from_bytes(&seed).verifying_key().as_bytes());
        assert!(roster.contains(&format!("a1:{public}")), "the roster's key belongs to the seed");
        assert_ne!(keys.0["a1"], keys.0["b1"]);
        assert_eq!(keys.personality("zz", ""), None);
        let again =
            LabKeys::generate(&[plan("a1")], |name| (name == "a1").then_some(seed)).expect("generated");
        assert_eq!(again.0["a1"], seed, "a known seed is kept");
        assert!(!format!("{keys:?}").contains(&key["evenkeel.key=".len()..]), "seeds stay out of logs");
    }
}
