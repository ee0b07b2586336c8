//! Reading netd's part of the configuration, and the checks that only netd needs.

use proto::cluster::NodeName;
use proto::envelope::{self, EnvelopeError, HEADER_LEN, Message};
use proto::part::NetdPart;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why the part cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartError {
    /// No file, or it cannot be read.
    #[error("cannot read {path}; provisiond writes it, see its log")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Not a part, or one of a later release.
    #[error("{path} is not a part this release reads")]
    Decode {
        path: PathBuf,
        #[source]
        source: EnvelopeError,
    },
    /// The node is missing in the cluster file.
    #[error("the cluster file has no node {node}; check the node's personality")]
    UnknownNode { node: NodeName },
    /// The key does not belong to the node.
    #[error("the roster has another key for node {node} than this node has; check the node's personality")]
    ForeignKey { node: NodeName },
}

/// Reads and checks the part.
pub(crate) fn load(path: &Path) -> Result<NetdPart, PartError> {
    let read_failed = |source| PartError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // One byte more than allowed is enough to be refused for its length.
    let limit = (HEADER_LEN + NetdPart::MAX_LEN + 1) as u64;
    File::open(path).map_err(read_failed)?.take(limit).read_to_end(&mut bytes).map_err(read_failed)?;
    let part: NetdPart =
        envelope::decode(&bytes).map_err(|source| PartError::Decode { path: path.to_owned(), source })?;
    if !part.cluster.nodes.contains_key(&part.node) {
        return Err(PartError::UnknownNode { node: part.node });
    }
    let key = peer::SecretKey::from_seed(part.key.0);
    if part.roster.key_of(&part.node) != Some(key.public()) {
        return Err(PartError::ForeignKey { node: part.node });
    }
    Ok(part)
}
