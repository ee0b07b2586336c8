//! The greeting: the first message each side sends on a new session, and what makes a side refuse the other.
//!
//! The dialling side opens the session's only bidirectional stream, sends its Hello and ends its half; the other
//! answers with its own Hello or closes the session with a code and a text that names the reason.

use proto::cluster::NodeName;
use proto::envelope::{EnvelopeError, HEADER_LEN, Message};
use serde::{Deserialize, Serialize};

/// Oldest protocol this release speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// Newest protocol this release speaks.
pub const PROTOCOL_MAX: u16 = 1;

/// Longest Hello on the wire, header included: read up to here and no further.
pub(crate) const MAX_HELLO_LEN: usize = HEADER_LEN + Hello::MAX_LEN;

/// Longest cluster name in bytes, so that a Hello always fits its bound.
pub(crate) const MAX_CLUSTER_LEN: usize = 64;

/// Who speaks, for which cluster, in which protocols.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) cluster: String,
    pub(crate) node: NodeName,
    pub(crate) protocol_min: u16,
    pub(crate) protocol_max: u16,
}

impl Message for Hello {
    const KIND: u16 = proto::envelope::kind::HELLO;
    const VERSION: u16 = 1;
    /// Two names and two numbers; room for names of later releases.
    const MAX_LEN: usize = 256;
}

/// Why a greeting was refused. No session came to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The peer belongs to another cluster.
    #[error(
        "wrong cluster: node {node} is of \"{theirs}\", this node is of \"{ours}\"; check both cluster files"
    )]
    Cluster { node: NodeName, ours: String, theirs: String },
    /// The peer calls itself otherwise than its key does.
    #[error(
        "wrong name: the key of node {key_of} calls itself \"{claimed}\"; check that node's name and roster"
    )]
    Name { key_of: NodeName, claimed: NodeName },
    /// No protocol in common.
    #[error(
        "no common protocol: node {node} speaks {theirs_min} to {theirs_max}, this node {PROTOCOL_MIN} to {PROTOCOL_MAX}; upgrade the older one"
    )]
    Protocol { node: NodeName, theirs_min: u16, theirs_max: u16 },
    /// Not a Hello.
    #[error("node {node} sent no valid greeting")]
    Malformed {
        node: NodeName,
        #[source]
        source: EnvelopeError,
    },
}

impl Refusal {
    /// The close code that tells the peer which refusal this is.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Refusal::Cluster { .. } => 0x10,
            Refusal::Name { .. } => 0x11,
            Refusal::Protocol { .. } => 0x12,
            Refusal::Malformed { .. } => 0x13,
        }
    }
}

impl Hello {
    /// This release's greeting.
    pub(crate) fn new(cluster: &str, node: NodeName) -> Hello {
        Hello { cluster: cluster.to_owned(), node, protocol_min: PROTOCOL_MIN, protocol_max: PROTOCOL_MAX }
    }

    /// Judges `bytes`, the greeting of the peer whose key belongs to `node`. Returns the protocol to speak.
    pub(crate) fn judge(&self, bytes: &[u8], node: &NodeName) -> Result<u16, Refusal> {
        let theirs: Hello = proto::envelope::decode(bytes)
            .map_err(|source| Refusal::Malformed { node: node.clone(), source })?;
        if theirs.cluster != self.cluster {
            return Err(Refusal::Cluster {
                node: node.clone(),
                ours: self.cluster.clone(),
                theirs: theirs.cluster,
            });
        }
        if theirs.node != *node {
            return Err(Refusal::Name { key_of: node.clone(), claimed: theirs.node });
        }
        let protocol = theirs.protocol_max.min(self.protocol_max);
        if protocol < theirs.protocol_min.max(self.protocol_min) {
            return Err(Refusal::Protocol {
                node: node.clone(),
                theirs_min: theirs.protocol_min,
                theirs_max: theirs.protocol_max,
            });
        }
        Ok(protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::envelope::encode;

    #[test]
    fn each_breach_has_its_own_refusal() {
        let ours = Hello::new("demo", "a1".into());
        let judge = |hello: &Hello| ours.judge(&encode(hello), &"a2".into());
        let good = Hello::new("demo", "a2".into());
        assert_eq!(judge(&good), Ok(PROTOCOL_MAX));
        assert!(matches!(
            judge(&Hello { cluster: "prod".into(), ..good.clone() }),
            Err(Refusal::Cluster { .. })
        ));
        assert!(matches!(judge(&Hello { node: "a3".into(), ..good.clone() }), Err(Refusal::Name { .. })));
        let newer = Hello { protocol_min: PROTOCOL_MAX + 1, protocol_max: 9, ..good.clone() };
        assert!(matches!(judge(&newer), Err(Refusal::Protocol { .. })));
        let both = Hello { protocol_max: 9, ..good.clone() };
        assert_eq!(judge(&both), Ok(PROTOCOL_MAX));
        assert!(matches!(ours.judge(b"hello", &"a2".into()), Err(Refusal::Malformed { .. })));
    }

    #[test]
    fn longest_greeting_fits() {
        let hello = Hello::new(&"c".repeat(MAX_CLUSTER_LEN), NodeName("n".repeat(32)));
        assert!(encode(&hello).len() <= MAX_HELLO_LEN);
    }

    #[test]
    fn wire_bytes_of_release_1() {
        let bytes = encode(&Hello::new("demo", "a1".into()));
        assert_eq!(bytes, b"\x01\x03\x01\x00\x0a\x00\x00\x00\x04demo\x02a1\x01\x01");
    }
}
