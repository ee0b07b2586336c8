//! Reading netd's part of the configuration, at the start and whenever it is replaced, and the checks that only netd needs.
//!
//! provisiond renames a new file into the part's place. That is found out by looking at the place: one `stat`, four times
//! a second.

use proto::cluster::NodeName;
use proto::envelope::{self, EnvelopeError, HEADER_LEN, Message};
use proto::part::NetdPart;
use proto::roster::Roster;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
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
    #[error(
        "the roster has no key or another one for node {node} than this node has; see \"keel show roster\", or check the node's personality"
    )]
    ForeignKey { node: NodeName },
}

/// What tells one file in the part's place from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    inode: u64,
    changed: (i64, i64),
    len: u64,
}

impl Mark {
    fn of(file: &Metadata) -> Mark {
        Mark { inode: file.ino(), changed: (file.ctime(), file.ctime_nsec()), len: file.len() }
    }
}

/// What a look at the part's place found.
#[derive(Debug)]
pub(crate) enum News {
    /// Another list of keys, and nothing else is different. This node's key is in it.
    Roster(Roster),
    /// Another list of keys, without this node's.
    Removed,
    /// More is different than a running netd can take over.
    Other,
}

/// The place where provisiond puts the part.
#[derive(Debug)]
pub(crate) struct PartFile {
    path: PathBuf,
    seen: Option<Mark>,
}

impl PartFile {
    /// Reads and checks the part at `path`.
    pub(crate) fn open(path: &Path) -> Result<(PartFile, NetdPart), PartError> {
        let mut file = PartFile { path: path.to_owned(), seen: None };
        let part = file.read()?;
        if !part.cluster.nodes.contains_key(&part.node) {
            return Err(PartError::UnknownNode { node: part.node });
        }
        if !is_in(&part) {
            return Err(PartError::ForeignKey { node: part.node });
        }
        Ok((file, part))
    }

    /// Whether another part than `current` is there now. One that cannot be read is told once and `current` stays in force,
    /// and so it does when there is no file: provisiond may be late, netd need not be.
    pub(crate) fn look(&mut self, current: &NetdPart) -> Result<Option<News>, PartError> {
        match fs::metadata(&self.path) {
            Ok(file) if self.seen != Some(Mark::of(&file)) => {}
            Ok(_) | Err(_) => return Ok(None),
        }
        let part = self.read()?;
        if part == *current {
            return Ok(None);
        }
        let rest = NetdPart { roster: current.roster.clone(), ..part.clone() };
        Ok(Some(match () {
            () if rest != *current => News::Other,
            () if is_in(&part) => News::Roster(part.roster),
            () => News::Removed,
        }))
    }

    fn read(&mut self) -> Result<NetdPart, PartError> {
        let path = || self.path.clone();
        let failed = |source| PartError::Read { path: path(), source };
        let mut bytes = Vec::new();
        // One byte more than allowed is enough to be refused for its length.
        let limit = (HEADER_LEN + NetdPart::MAX_LEN + 1) as u64;
        let file = File::open(&self.path).map_err(failed)?;
        // Of the file that is read, whatever lies in its place by now.
        let mark = Mark::of(&file.metadata().map_err(failed)?);
        file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
        let part = envelope::decode(&bytes).map_err(|source| PartError::Decode { path: path(), source });
        self.seen = Some(mark);
        part
    }
}

/// Whether the part's roster has this node under its own key.
fn is_in(part: &NetdPart) -> bool {
    let key = peer::SecretKey::from_seed(part.key.0);
    part.roster.key_of(&part.node) == Some(key.public())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::cluster::ClusterFile;
    use proto::identity::ClusterId;
    use proto::part::KeySeed;

    /// A part's place, removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new(test: &str) -> Place {
            let path = std::env::temp_dir().join(format!("evenkeel-part-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Place(path)
        }

        fn part(&self) -> PathBuf {
            self.0.join("netd")
        }

        /// As provisiond does it.
        fn put(&self, bytes: &[u8]) {
            fs::write(self.0.join("new"), bytes).unwrap();
            fs::rename(self.0.join("new"), self.part()).unwrap();
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn roster(seeds: &[(&str, u8)]) -> Roster {
        let mut roster = Roster::new();
        for (name, seed) in seeds {
            roster.insert((*name).into(), *peer::SecretKey::from_seed([*seed; 32]).public()).unwrap();
        }
        roster
    }

    fn part() -> NetdPart {
        let text = include_str!("../../proto/testdata/demo.toml");
        let cluster = ClusterFile::parse("demo.toml", text).unwrap();
        let (cluster_id, key) = (ClusterId([9; 16]), KeySeed([1; 32]));
        NetdPart {
            node: "a1".into(),
            cluster,
            cluster_id,
            key,
            roster: roster(&[("a1", 1), ("b1", 2)]),
            boot: 1,
        }
    }

    #[test]
    fn what_replaces_the_part_is_found_once() {
        let (place, first) = (Place::new("news"), part());
        place.put(&envelope::encode(&first));
        let (mut file, read) = PartFile::open(&place.part()).unwrap();
        assert_eq!(read, first);
        assert!(file.look(&first).unwrap().is_none());
        place.put(&envelope::encode(&first));
        assert!(file.look(&first).unwrap().is_none(), "the same once more is no news");

        let alone = NetdPart { roster: roster(&[("a1", 1)]), ..first.clone() };
        place.put(&envelope::encode(&alone));
        assert!(matches!(file.look(&first).unwrap(), Some(News::Roster(found)) if found == alone.roster));
        assert!(file.look(&alone).unwrap().is_none());

        for roster in [roster(&[("b1", 2)]), roster(&[("a1", 9), ("b1", 2)])] {
            place.put(&envelope::encode(&NetdPart { roster, ..first.clone() }));
            assert!(matches!(file.look(&alone).unwrap(), Some(News::Removed)));
        }
        for other in [
            NetdPart { cluster_id: ClusterId([8; 16]), ..first.clone() },
            NetdPart { key: KeySeed([2; 32]), ..first.clone() },
            NetdPart { boot: 2, roster: Roster::new(), ..first.clone() },
        ] {
            place.put(&envelope::encode(&other));
            assert!(matches!(file.look(&alone).unwrap(), Some(News::Other)));
        }
        place.put(b"noise");
        assert!(matches!(file.look(&alone), Err(PartError::Decode { .. })));
        assert!(file.look(&alone).unwrap().is_none(), "told once");
        fs::remove_file(place.part()).unwrap();
        assert!(file.look(&alone).unwrap().is_none());
    }

    #[test]
    fn a_part_that_is_not_this_nodes_is_refused() {
        let place = Place::new("refused");
        assert!(matches!(PartFile::open(&place.part()), Err(PartError::Read { .. })));
        place.put(&envelope::encode(&NetdPart { node: "x9".into(), ..part() }));
        assert!(matches!(PartFile::open(&place.part()), Err(PartError::UnknownNode { .. })));
        place.put(&envelope::encode(&NetdPart { key: KeySeed([7; 32]), ..part() }));
        assert!(matches!(PartFile::open(&place.part()), Err(PartError::ForeignKey { .. })));
    }
}
