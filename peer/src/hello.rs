//! The greeting: the first message each side sends on a new session, and what makes a side refuse the other.
//!
//! The dialling side opens the session's only bidirectional stream, sends its Hello and ends its half; the other
//! answers with its own Hello or closes the session with a code and a text that names the reason.
//!
//! | protocol | since | Hello | messages |
//! |---|---|---|---|
//! | 1 | 0.1 | version 1: the cluster's name | as they are |
//! | 2 | 0.2 | version 2: the cluster's id and name | the cluster's id in front of each |
//!
//! TLS settles the protocol before the first Hello (ALPN): two nodes of releases that follow each other have one in common.

use proto::cluster::NodeName;
use proto::envelope::{EnvelopeError, HEADER_LEN, Message, decode, encode};
use proto::identity::ClusterId;
use serde::{Deserialize, Serialize};

/// What a session speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Of release 0.1.
    One,
    /// Every message carries the cluster's id.
    Two,
}

impl Protocol {
    /// All this release speaks, the one it likes best first.
    pub(crate) const ALL: [Protocol; 2] = [Protocol::Two, Protocol::One];

    /// Its name in TLS (RFC 7301).
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Protocol::One => b"evenkeel-peer",
            Protocol::Two => b"evenkeel-peer/2",
        }
    }

    /// The protocol called `name`.
    pub(crate) fn from_alpn(name: &[u8]) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|protocol| protocol.alpn() == name)
    }
}

/// The only number protocol 1 ever had in its Hello.
const PROTOCOL_1: u16 = 1;

/// Longest Hello on the wire, header included: read up to here and no further. The same for both layouts.
pub(crate) const MAX_HELLO_LEN: usize = HEADER_LEN + Hello1::MAX_LEN;

/// Longest cluster name in bytes, so that a Hello always fits its bound.
pub(crate) const MAX_CLUSTER_LEN: usize = 64;

/// The Hello of protocol 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello1 {
    pub(crate) cluster: String,
    pub(crate) node: NodeName,
    pub(crate) protocol_min: u16,
    pub(crate) protocol_max: u16,
}

impl Message for Hello1 {
    const KIND: u16 = proto::envelope::kind::HELLO;
    const VERSION: u16 = 1;
    /// Two names and two numbers; room for names of later releases.
    const MAX_LEN: usize = 256;
}

/// The Hello of protocol 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello2 {
    pub(crate) id: ClusterId,
    /// For people: the id decides.
    pub(crate) cluster: String,
    pub(crate) node: NodeName,
}

impl Message for Hello2 {
    const KIND: u16 = proto::envelope::kind::HELLO;
    const VERSION: u16 = 2;
    /// An id and two names.
    const MAX_LEN: usize = 256;
}

/// Who speaks for which cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) id: ClusterId,
    pub(crate) cluster: String,
    pub(crate) node: NodeName,
}

/// Why a greeting was refused. No session came to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The peer belongs to another cluster.
    #[error(
        "wrong cluster: node {node} is of \"{theirs}\", this node is of \"{ours}\"; check both cluster files"
    )]
    Cluster { node: NodeName, ours: String, theirs: String },
    /// The peer belongs to another cluster of the same name.
    #[error(
        "wrong cluster: node {node} is of cluster {theirs}, this node is of {ours}, both called \"{name}\"; enrol that node anew"
    )]
    ClusterId { node: NodeName, name: String, ours: ClusterId, theirs: ClusterId },
    /// The peer calls itself otherwise than its key does.
    #[error(
        "wrong name: the key of node {key_of} calls itself \"{claimed}\"; check that node's name and roster"
    )]
    Name { key_of: NodeName, claimed: NodeName },
    /// No protocol in common.
    #[error(
        "no common protocol: node {node} speaks {theirs_min} to {theirs_max}, this node {PROTOCOL_1} there; upgrade the older one"
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
            Refusal::Cluster { .. } | Refusal::ClusterId { .. } => 0x10,
            Refusal::Name { .. } => 0x11,
            Refusal::Protocol { .. } => 0x12,
            Refusal::Malformed { .. } => 0x13,
        }
    }
}

impl Hello {
    /// The greeting as `protocol` has it.
    pub(crate) fn encode(&self, protocol: Protocol) -> Vec<u8> {
        let Hello { id, cluster, node } = self.clone();
        match protocol {
            Protocol::One => {
                encode(&Hello1 { cluster, node, protocol_min: PROTOCOL_1, protocol_max: PROTOCOL_1 })
            }
            Protocol::Two => encode(&Hello2 { id, cluster, node }),
        }
    }

    /// Judges `bytes`, the greeting in `protocol` of the peer whose key belongs to `node`.
    pub(crate) fn judge(&self, protocol: Protocol, bytes: &[u8], node: &NodeName) -> Result<(), Refusal> {
        let malformed = |source| Refusal::Malformed { node: node.clone(), source };
        let (cluster, claimed) = match protocol {
            Protocol::One => {
                let theirs: Hello1 = decode(bytes).map_err(malformed)?;
                if !(theirs.protocol_min..=theirs.protocol_max).contains(&PROTOCOL_1) {
                    let (theirs_min, theirs_max) = (theirs.protocol_min, theirs.protocol_max);
                    return Err(Refusal::Protocol { node: node.clone(), theirs_min, theirs_max });
                }
                (theirs.cluster, theirs.node)
            }
            Protocol::Two => {
                let theirs: Hello2 = decode(bytes).map_err(malformed)?;
                if theirs.id != self.id && theirs.cluster == self.cluster {
                    let (node, name) = (node.clone(), theirs.cluster);
                    return Err(Refusal::ClusterId { node, name, ours: self.id, theirs: theirs.id });
                }
                // The id decides: the name may be changed while a session stands.
                let name = if theirs.id == self.id { self.cluster.clone() } else { theirs.cluster };
                (name, theirs.node)
            }
        };
        if cluster != self.cluster {
            return Err(Refusal::Cluster { node: node.clone(), ours: self.cluster.clone(), theirs: cluster });
        }
        if claimed != *node {
            return Err(Refusal::Name { key_of: node.clone(), claimed });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peer_core::id::named_cluster;
    use proptest::prelude::*;

    fn hello(cluster: &str, node: &str) -> Hello {
        Hello { id: named_cluster(cluster), cluster: cluster.to_owned(), node: node.into() }
    }

    #[test]
    fn each_breach_has_its_own_refusal() {
        let ours = hello("demo", "a1");
        for protocol in Protocol::ALL {
            let judge = |theirs: &Hello| ours.judge(protocol, &theirs.encode(protocol), &"a2".into());
            assert_eq!(judge(&hello("demo", "a2")), Ok(()));
            assert!(matches!(judge(&hello("prod", "a2")), Err(Refusal::Cluster { .. })));
            assert!(matches!(judge(&hello("demo", "a3")), Err(Refusal::Name { .. })));
            let noise = ours.judge(protocol, b"hello", &"a2".into());
            assert!(matches!(noise, Err(Refusal::Malformed { .. })));
            let other = if protocol == Protocol::One { Protocol::Two } else { Protocol::One };
            let other = ours.judge(protocol, &hello("demo", "a2").encode(other), &"a2".into());
            assert!(matches!(other, Err(Refusal::Malformed { .. })), "the other layout: {other:?}");
        }
        let namesake = Hello { id: named_cluster("other"), ..hello("demo", "a2") }.encode(Protocol::Two);
        assert!(matches!(ours.judge(Protocol::Two, &namesake, &"a2".into()), Err(Refusal::ClusterId { .. })));
        let renamed = Hello { id: ours.id, ..hello("later", "a2") }.encode(Protocol::Two);
        assert_eq!(ours.judge(Protocol::Two, &renamed, &"a2".into()), Ok(()));
        let range = |protocol_min, protocol_max| {
            let theirs = Hello1 { cluster: "demo".into(), node: "a2".into(), protocol_min, protocol_max };
            ours.judge(Protocol::One, &encode(&theirs), &"a2".into())
        };
        assert_eq!(range(1, 9), Ok(()));
        assert!(matches!(range(2, 9), Err(Refusal::Protocol { .. })));
    }

    #[test]
    fn longest_greeting_fits() {
        let longest = hello(&"c".repeat(MAX_CLUSTER_LEN), &"n".repeat(32));
        for protocol in Protocol::ALL {
            assert!(longest.encode(protocol).len() <= MAX_HELLO_LEN);
        }
    }

    #[test]
    fn wire_bytes_of_both_protocols() {
        let hello = Hello { id: ClusterId([7; 16]), ..hello("demo", "a1") };
        assert_eq!(hello.encode(Protocol::One), b"\x01\x03\x01\x00\x0a\x00\x00\x00\x04demo\x02a1\x01\x01");
        let two = [b"\x01\x03\x02\x00\x18\x00\x00\x00".as_slice(), &[7; 16], b"\x04demo\x02a1"].concat();
        assert_eq!(hello.encode(Protocol::Two), two);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic_and_none_pass(bytes in prop::collection::vec(any::<u8>(), 0..300), head in any::<bool>()) {
            let mut bytes = bytes;
            if head {
                bytes.splice(0..0, [1, 3, 2, 0, 30, 0, 0, 0]);
            }
            for protocol in Protocol::ALL {
                prop_assert!(hello("demo", "a1").judge(protocol, &bytes, &"a2".into()).is_err());
            }
        }
    }
}
