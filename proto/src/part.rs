//! The parts of the configuration: what provisiond writes for each daemon under `/run/evenkeel/parts/`.
//!
//! A part is one [`crate::envelope`] frame that fills its file exactly. It carries the node's secret, so the file has
//! mode 0600, and it is written beside its place and renamed into it, so that a reader sees all of it or nothing. A part
//! that is replaced is read anew by its daemon.
//!
//! | version | since | |
//! |---|---|---|
//! | 1 | 0.1 | |
//! | 2 | 0.2 | the cluster's id |

use crate::cluster::{ClusterFile, NodeName};
use crate::envelope::Message;
use crate::identity::ClusterId;
use crate::roster::Roster;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Where netd finds its part.
pub const NETD_PART_PATH: &str = "/run/evenkeel/parts/netd";

/// The seed of a node's Ed25519 key. Never shown: its `Debug` says only that it is there.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySeed(pub [u8; 32]);

impl fmt::Debug for KeySeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySeed(hidden)")
    }
}

/// What netd needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetdPart {
    /// The node this is.
    pub node: NodeName,
    /// The whole checked cluster file; it contains `node`.
    pub cluster: ClusterFile,
    /// The id of the cluster: of its roster chain, or of its name where there is none.
    pub cluster_id: ClusterId,
    /// The seed of this node's key; its public half stands in `roster` under `node`, unless the node was taken out.
    pub key: KeySeed,
    /// The public keys of the machines with which sessions are made.
    pub roster: Roster,
    /// Which boot of the node this is; rises with every boot. netd's lives are told apart by it without a wall clock.
    pub boot: u64,
}

impl Message for NetdPart {
    const KIND: u16 = crate::envelope::kind::NETD_PART;
    const VERSION: u16 = 2;
    /// A cluster file is text of some kilobytes; a mebibyte leaves room for thousands of VIPs.
    const MAX_LEN: usize = 1 << 20;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Timing;
    use crate::envelope::{decode, encode};
    use std::collections::BTreeMap;

    fn part() -> NetdPart {
        let mut roster = Roster::new();
        roster.insert("a1".into(), [3; 32]).unwrap();
        let cluster = ClusterFile {
            schema: 1,
            cluster: "demo".into(),
            timing: Timing::LAB,
            networks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            vips: BTreeMap::new(),
        };
        let (cluster_id, key) = (ClusterId([9; 16]), KeySeed([0xab; 32]));
        NetdPart { node: "a1".into(), cluster, cluster_id, key, roster, boot: 7 }
    }

    /// What release 0.2 writes.
    #[test]
    fn golden_bytes() {
        let cluster = postcard::to_allocvec(&part().cluster).unwrap();
        let mut bytes = vec![0x01, 0x01, 2, 0, 0, 0, 0, 0, 2, b'a', b'1'];
        bytes.extend(cluster);
        bytes.extend([9; 16]);
        bytes.extend([0xab; 32]);
        bytes.extend([1, 2, b'a', b'1']);
        bytes.extend([3; 32]);
        bytes.push(7);
        bytes[4] = (bytes.len() - 8) as u8;
        assert_eq!(encode(&part()), bytes);
        assert_eq!(decode::<NetdPart>(&bytes), Ok(part()));
        bytes[2] = 1;
        assert!(decode::<NetdPart>(&bytes).is_err(), "the layout of 0.1 is not guessed at");
    }

    #[test]
    fn hides_its_seed() {
        let part = part();
        let shown = format!("{part:?}");
        assert!(!shown.contains("171") && !shown.to_lowercase().contains("abab"), "{shown}");
    }
}
