//! From a personality and the roster chain to what the daemons are told. Pure: text and keys in, parts or reasons out.
//!
//! Who belongs is the chain's to say. The list of keys in the personality counts only where no chain is kept: in the lab,
//! and in clusters that have not been founded yet.

use crate::roster::Unusable;
use peer_core::id::named_cluster;
use peer_core::key::SecretKey;
use peer_core::roster::RosterChain;
use proto::cluster::{ClusterFile, Diagnostics, NodeName};
use proto::identity::ClusterId;
use proto::part::{KeySeed, NetdPart};
use proto::personality::Personality;
use proto::roster::{PublicKey, Roster};
use proto::text::{hex, one_line};
use sha2::{Digest, Sha256};

/// What diagnostics call the text from the personality.
const CLUSTER_FILE: &str = "cluster.toml";

/// A configuration that passed every rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// The node this is.
    pub(crate) node: NodeName,
    /// The checked cluster file; it contains `node`.
    pub(crate) cluster: ClusterFile,
    /// SHA-256 of the cluster file's text.
    pub(crate) digest: [u8; 32],
    /// Nodes of the cluster file without a key: nobody will hear them.
    pub(crate) without_key: Vec<NodeName>,
    key: KeySeed,
    cluster_id: ClusterId,
    roster: Roster,
}

impl Configuration {
    /// What netd is told in boot number `boot` of this node.
    pub(crate) fn netd(&self, boot: u64) -> NetdPart {
        let Configuration { node, cluster, cluster_id, key, roster, .. } = self.clone();
        NetdPart { node, cluster, cluster_id, key, roster, boot }
    }

    /// The same under `chain`, which does not know this node any more: what a running netd is told so that it gives up.
    pub(crate) fn removed_by(&self, chain: &RosterChain) -> Configuration {
        Configuration { roster: chain.machines(), cluster_id: chain.cluster(), ..self.clone() }
    }
}

/// Why a personality gives no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The cluster file breaks rules; every one is told.
    #[error("{0}")]
    Cluster(Diagnostics),
    /// The personality's node is none of the cluster's.
    #[error("{CLUSTER_FILE}: no node {node}, which this machine is said to be; nodes are: {nodes}")]
    NotANode { node: NodeName, nodes: String },
    /// The roster does not know this node: no peer could be trusted to know it either.
    #[error("the roster has no key for {node}, which this machine is; add {node}:{key}")]
    NotInRoster { node: NodeName, key: String },
    /// The roster that was kept cannot be used. The personality's list is no way around it.
    #[error("{0}")]
    Roster(String),
    /// The roster has another key: peers would refuse this node, and it would take their silence for their death.
    #[error("the roster's key for {node} is not the one of this machine's seed; expected {node}:{key}")]
    OtherKey { node: NodeName, key: String },
}

/// The public half of the personality's key.
pub(crate) fn public_key(personality: &Personality) -> PublicKey {
    *SecretKey::from_seed(personality.key.0).public()
}

/// Checks the personality under the chain that is kept, and makes the parts.
pub(crate) fn configure(
    personality: &Personality,
    chain: Result<Option<&RosterChain>, &Unusable>,
) -> Result<Configuration, ConfigError> {
    let Personality { node, key, roster: list, cluster: text } = personality;
    let cluster = ClusterFile::parse(CLUSTER_FILE, text).map_err(ConfigError::Cluster)?;
    if !cluster.nodes.contains_key(node) {
        let nodes: Vec<&str> = cluster.nodes.keys().map(|n| n.0.as_str()).collect();
        return Err(ConfigError::NotANode { node: node.clone(), nodes: nodes.join(", ") });
    }
    let own = public_key(personality);
    let chain = chain.map_err(|e| ConfigError::Roster(one_line(e)))?;
    let (cluster_id, roster) = match chain {
        Some(chain) => (chain.cluster(), chain.machines()),
        None => (named_cluster(&cluster.cluster), list.clone()),
    };
    match roster.key_of(node) {
        None => return Err(ConfigError::NotInRoster { node: node.clone(), key: hex(&own) }),
        Some(key) if *key != own => return Err(ConfigError::OtherKey { node: node.clone(), key: hex(&own) }),
        Some(_) => {}
    }
    let without_key = cluster.nodes.keys().filter(|n| roster.key_of(n).is_none()).cloned().collect();
    let digest = Sha256::digest(text.as_bytes()).into();
    let (node, key) = (node.clone(), key.clone());
    Ok(Configuration { node, cluster, digest, without_key, key, cluster_id, roster })
}

#[cfg(test)]
mod tests {
    use super::*;
    use peer_core::roster::{Draft, Recovery, Role};

    const DEMO: &str = include_str!("../../proto/testdata/demo.toml");

    fn personality() -> Personality {
        let mut roster = Roster::new();
        for (name, seed) in [("a1", 1), ("b1", 2), ("a2", 3), ("b2", 4)] {
            roster.insert(name.into(), *SecretKey::from_seed([seed; 32]).public()).unwrap();
        }
        Personality { node: "a1".into(), key: KeySeed([1; 32]), roster, cluster: DEMO.to_owned() }
    }

    fn configure(personality: &Personality) -> Result<Configuration, ConfigError> {
        super::configure(personality, Ok(None))
    }

    fn chain(members: &[(&str, u8)]) -> RosterChain {
        let [admin, recovery] = [200, 201].map(|seed| SecretKey::from_seed([seed; 32]));
        let recovery = Recovery { threshold: 1, keys: vec![*recovery.public()] };
        let mut draft = Draft::first([9; 32], "demo.lan", *admin.public(), recovery);
        for (name, seed) in members {
            draft.add((*name).into(), *SecretKey::from_seed([*seed; 32]).public(), Role::Member).unwrap();
            draft.vote(&(*name).into(), true).unwrap();
        }
        RosterChain::found(draft.sign(&[&admin]).unwrap()).unwrap()
    }

    #[test]
    fn the_chain_counts_where_there_is_one() {
        let unsigned = configure(&personality()).unwrap().netd(1);
        assert_eq!(unsigned.cluster_id, named_cluster("demo"));
        let kept = chain(&[("a1", 1), ("b1", 12)]);
        let part = super::configure(&personality(), Ok(Some(&kept))).unwrap().netd(1);
        assert_eq!((part.cluster_id, part.roster), (kept.cluster(), kept.machines()));
        let without = super::configure(&personality(), Ok(Some(&chain(&[("b1", 2)])))).unwrap_err();
        assert!(matches!(without, ConfigError::NotInRoster { .. }), "the list is no way around the chain");
        let another = super::configure(&personality(), Ok(Some(&chain(&[("a1", 2)])))).unwrap_err();
        assert!(matches!(another, ConfigError::OtherKey { .. }));
        let lost = Unusable::Older { mark: crate::roster::mark_of(&kept), found: 0 };
        let refused = super::configure(&personality(), Err(&lost)).unwrap_err();
        assert!(refused.to_string().starts_with("the roster on STATE is older than it was"), "{refused}");
    }

    #[test]
    fn a_good_personality_gives_netds_part() {
        let made = configure(&personality()).unwrap();
        let part = made.netd(7);
        assert_eq!((part.node.0.as_str(), part.cluster.vips.len(), part.boot), ("a1", 6, 7));
        assert_eq!((part.key, part.roster), (KeySeed([1; 32]), personality().roster));
        assert!(made.without_key.is_empty());
        let mut other = personality();
        other.cluster.push('\n');
        assert_ne!(configure(&other).unwrap().digest, made.digest, "the digest is the text's");
    }

    #[test]
    fn keys_of_others_may_be_missing_and_are_named() {
        let mut some = personality();
        some.roster = Roster::new();
        some.roster.insert("a1".into(), public_key(&some)).unwrap();
        let names: Vec<String> =
            configure(&some).unwrap().without_key.iter().map(|n| n.to_string()).collect();
        assert_eq!(names, ["a2", "b1", "b2"]);
    }

    #[test]
    fn each_breach_has_its_own_refusal() {
        let refused = |change: fn(&mut Personality)| {
            let mut changed = personality();
            change(&mut changed);
            configure(&changed).unwrap_err().to_string()
        };
        let text = refused(|p| p.cluster = p.cluster.replace("10.9.0.101", "10.7.0.101"));
        assert!(
            text.starts_with("cluster.toml:55:11: vip[0].address: VIP 10.7.0.101 is outside every network"),
            "{text}"
        );
        let text = refused(|p| p.node = "x9".into());
        assert_eq!(
            text,
            "cluster.toml: no node x9, which this machine is said to be; nodes are: a1, a2, b1, b2"
        );
        let key = hex(&public_key(&personality()));
        let text = refused(|p| p.roster = Roster::new());
        assert_eq!(text, format!("the roster has no key for a1, which this machine is; add a1:{key}"));
        let text = refused(|p| p.key = KeySeed([9; 32]));
        assert!(
            text.starts_with("the roster's key for a1 is not the one of this machine's seed; expected a1:"),
            "{text}"
        );
    }
}
