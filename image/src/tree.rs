//! A file tree in memory: the root before it becomes a squashfs, an overlay before it is hashed.
//!
//! Later insertions replace earlier ones, so an overlay is simply read over the root. Of a host file only its
//! contents and its x bit count; owner, times and other bits of the builder's machine never reach the image.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backhand::compression::{CompressionOptions, Compressor, Zstd};
use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};

use crate::digest;
use crate::error::BuildError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Dir { mode: u16 },
    File { mode: u16, bytes: Vec<u8> },
    Link { target: PathBuf },
}

/// Paths without leading slash; a parent sorts before its children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<String, Node>);

/// Deepest folder of an overlay, so that a loop in the host's tree ends.
const DEPTH_MAX: usize = 32;
/// Largest file taken over: a squashfs that has to fit into memory has no place for more.
const FILE_MAX: u64 = 1 << 30;
/// Fast to unpack, and small; compressing takes about a second.
const ZSTD_LEVEL: u32 = 15;

impl Tree {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(crate) fn get(&self, path: &str) -> Option<&Node> {
        self.0.get(path.trim_start_matches('/'))
    }

    /// Adds a folder and its parents; one that is there keeps its mode.
    pub(crate) fn dir(&mut self, path: &str, mode: u16) -> Result<(), BuildError> {
        self.insert(path, Node::Dir { mode })
    }

    /// Adds or replaces a file.
    pub(crate) fn file(
        &mut self,
        path: &str,
        mode: u16,
        bytes: impl Into<Vec<u8>>,
    ) -> Result<(), BuildError> {
        self.insert(path, Node::File { mode, bytes: bytes.into() })
    }

    fn insert(&mut self, path: &str, node: Node) -> Result<(), BuildError> {
        let path = path.trim_start_matches('/');
        let bad = |detail: String| BuildError::BadTree { path: PathBuf::from(format!("/{path}")), detail };
        if path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(bad("it is no plain absolute path".into()));
        }
        for (at, _) in path.match_indices('/') {
            let parent = self.0.entry(path[..at].to_owned()).or_insert(Node::Dir { mode: 0o755 });
            if !matches!(parent, Node::Dir { .. }) {
                return Err(bad(format!("/{} is no folder", &path[..at])));
            }
        }
        let is_dir = |node: &Node| matches!(node, Node::Dir { .. });
        match (self.0.get(path), &node) {
            (Some(old), new) if is_dir(old) != is_dir(new) => {
                Err(bad("it is a folder in one tree and a file in another".into()))
            }
            (Some(old), _) if is_dir(old) => Ok(()),
            _ => {
                self.0.insert(path.to_owned(), node);
                Ok(())
            }
        }
    }

    /// Puts another tree over this one.
    pub(crate) fn overlay(&mut self, other: &Tree) -> Result<(), BuildError> {
        other.0.iter().try_for_each(|(path, node)| self.insert(path, node.clone()))
    }

    /// Reads a host folder over this tree.
    pub(crate) fn copy_from(&mut self, dir: &Path) -> Result<(), BuildError> {
        if !dir.is_dir() {
            return Err(BuildError::BadTree { path: dir.to_owned(), detail: "it is no folder".into() });
        }
        self.copy_level(dir, "", 0)
    }

    fn copy_level(&mut self, dir: &Path, prefix: &str, depth: usize) -> Result<(), BuildError> {
        let bad = |path: &Path, detail: &str| {
            Err(BuildError::BadTree { path: path.to_owned(), detail: detail.to_owned() })
        };
        if depth > DEPTH_MAX {
            return bad(dir, "it is nested too deeply");
        }
        for entry in fs::read_dir(dir).map_err(|e| BuildError::read(dir, e))? {
            let entry = entry.map_err(|e| BuildError::read(dir, e))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return bad(&path, "its name is not UTF-8");
            };
            if name == ".gitkeep" {
                continue; // holds an empty folder in the repository
            }
            let inside = format!("{prefix}{name}");
            let meta = fs::symlink_metadata(&path).map_err(|e| BuildError::read(&path, e))?;
            if meta.is_dir() {
                self.dir(&inside, 0o755)?;
                self.copy_level(&path, &format!("{inside}/"), depth + 1)?;
            } else if meta.is_file() {
                let mode = if meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
                self.file(&inside, mode, read_host(&path)?)?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).map_err(|e| BuildError::read(&path, e))?;
                self.insert(&inside, Node::Link { target })?;
            } else {
                return bad(&path, "it is neither file, folder nor symbolic link");
            }
        }
        Ok(())
    }

    /// Digest over every path, mode and content.
    pub(crate) fn digest(&self) -> String {
        let mut list = String::new();
        for (path, node) in &self.0 {
            let line = match node {
                Node::Dir { mode } => format!("d {mode:o} {path}\n"),
                Node::File { mode, bytes } => format!("f {mode:o} {} {path}\n", digest::sha256(bytes)),
                Node::Link { target } => format!("l {} {path}\n", target.display()),
            };
            list.push_str(&line);
        }
        digest::sha256(list.as_bytes())
    }

    /// The tree as a squashfs image (zstd), owned by root, every time `time`.
    pub(crate) fn squashfs(&self, time: u32) -> Result<Vec<u8>, BuildError> {
        let failed = |e: backhand::BackhandError| BuildError::BadTree {
            path: PathBuf::from("/"),
            detail: format!("squashfs: {e}"),
        };
        let mut writer = FilesystemWriter::default();
        writer.set_time(time);
        writer.set_only_root_id();
        writer.set_root_mode(0o755);
        let options = CompressionOptions::Zstd(Zstd { compression_level: ZSTD_LEVEL });
        writer.set_compressor(FilesystemCompressor::new(Compressor::Zstd, Some(options)).map_err(failed)?);
        for (path, node) in &self.0 {
            let header = |mode| NodeHeader::new(mode, 0, 0, time);
            match node {
                Node::Dir { mode } => writer.push_dir(path, header(*mode)),
                Node::File { mode, bytes } => writer.push_file(bytes.as_slice(), path, header(*mode)),
                Node::Link { target } => writer.push_symlink(target, path, header(0o777)),
            }
            .map_err(failed)?;
        }
        let mut out = std::io::Cursor::new(Vec::new());
        writer.write(&mut out).map_err(failed)?;
        Ok(out.into_inner())
    }
}

/// Reads a host file whole.
pub(crate) fn read_host(path: &Path) -> Result<Vec<u8>, BuildError> {
    let size = fs::metadata(path).map_err(|e| BuildError::read(path, e))?.len();
    if size > FILE_MAX {
        let detail = format!("its {} MiB are more than an image can hold", size >> 20);
        return Err(BuildError::BadTree { path: path.to_owned(), detail });
    }
    fs::read(path).map_err(|e| BuildError::read(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;
    use std::io::Read as _;

    fn mode_of(tree: &Tree, path: &str) -> u16 {
        match tree.get(path).unwrap() {
            Node::Dir { mode } | Node::File { mode, .. } => *mode,
            Node::Link { .. } => 0o777,
        }
    }

    #[test]
    fn overlays_replace_files_and_keep_the_x_bit_only() {
        let dir = TestDir::new("tree");
        fs::create_dir(dir.path().join("etc")).unwrap();
        for (name, mode) in [("run.sh", 0o700), ("text", 0o666)] {
            let path = dir.path().join("etc").join(name);
            fs::write(&path, b"new").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(dir.path().join("etc/.gitkeep"), b"").unwrap();
        std::os::unix::fs::symlink("/etc/text", dir.path().join("link")).unwrap();

        let mut tree = Tree::new();
        tree.file("/etc/text", 0o600, "old").unwrap();
        tree.copy_from(dir.path()).unwrap();
        assert_eq!(tree.get("/etc/text"), Some(&Node::File { mode: 0o644, bytes: b"new".to_vec() }));
        assert_eq!(mode_of(&tree, "etc/run.sh"), 0o755);
        assert_eq!(tree.get("link"), Some(&Node::Link { target: "/etc/text".into() }));
        assert_eq!(tree.get("etc/.gitkeep"), None);
    }

    #[test]
    fn impossible_trees_are_refused() {
        let mut tree = Tree::new();
        tree.file("/etc/a", 0o644, "x").unwrap();
        for (path, say) in [
            ("/etc/a/b", "/etc/a/b cannot be put into the image: /etc/a is no folder"),
            ("/etc", "/etc cannot be put into the image: it is a folder in one tree and a file in another"),
            ("/../x", "/../x cannot be put into the image: it is no plain absolute path"),
            ("/", "/ cannot be put into the image: it is no plain absolute path"),
        ] {
            assert_eq!(tree.file(path, 0o644, "y").unwrap_err().to_string(), say);
        }
        let error = tree.copy_from(Path::new("/nowhere/overlay")).unwrap_err().to_string();
        assert_eq!(error, "/nowhere/overlay cannot be put into the image: it is no folder");
    }

    #[test]
    fn the_digest_sees_paths_modes_and_contents() {
        let make = |path: &str, mode, text: &str| {
            let mut tree = Tree::new();
            tree.file(path, mode, text).unwrap();
            tree.digest()
        };
        let base = make("a", 0o644, "x");
        assert_eq!(base, make("a", 0o644, "x"));
        for other in [make("b", 0o644, "x"), make("a", 0o755, "x"), make("a", 0o644, "y")] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_squashfs_holds_the_tree_and_is_reproducible() {
        let mut tree = Tree::new();
        tree.dir("proc", 0o555).unwrap();
        tree.file("bin/keel", 0o755, vec![3u8; 300_000]).unwrap();
        tree.insert("sbin", Node::Link { target: "bin".into() }).unwrap();
        let image = tree.squashfs(1_700_000_000).unwrap();
        assert_eq!(image, tree.squashfs(1_700_000_000).unwrap());
        assert!(image.len() < 20_000, "it is compressed: {}", image.len());

        let reader = backhand::FilesystemReader::from_reader(std::io::Cursor::new(image)).unwrap();
        let mut seen = Vec::new();
        for node in reader.files() {
            assert_eq!((node.header.uid, node.header.gid), (0, 0));
            let mut size = 0;
            if let backhand::InnerNode::File(file) = &node.inner {
                let mut bytes = Vec::new();
                reader.file(file).reader().read_to_end(&mut bytes).unwrap();
                assert!(bytes.iter().all(|b| *b == 3));
                size = bytes.len();
            }
            seen.push((node.fullpath.display().to_string(), node.header.permissions, size));
        }
        let seen: Vec<_> = seen.iter().map(|(p, m, s)| (p.as_str(), *m, *s)).collect();
        assert_eq!(
            seen,
            [
                ("/", 0o755, 0),
                ("/bin", 0o755, 0),
                ("/bin/keel", 0o755, 300_000),
                ("/proc", 0o555, 0),
                ("/sbin", 0o777, 0)
            ]
        );
    }
}
