//! The manifest: what an image was made from, and the key that tells whether it is still that.
//!
//! TOML. A copy without the part sizes is in the image as `/etc/evenkeel/manifest`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest;

/// Counts changes of this file's own format.
const FORMAT: u32 = 1;
/// Refuses to read a manifest that cannot be ours.
const SIZE_MAX: u64 = 1 << 20;

/// One thing that went into the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// `package`, `stub`, `loader`, `certificate`, `program`, `root`, `overlay`, `file`, `tool`.
    pub kind: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
}

/// Name and size of one part of the finished image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub name: String,
    pub size: u64,
}

/// Options that shape the image, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    pub flavour: String,
    /// Driver name, or `none`.
    pub watchdog: String,
    pub watchdog_timeout_s: u16,
    pub cmdline: String,
    pub modules: Vec<String>,
    pub disk_size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub product: String,
    pub version: String,
    /// Digest over everything below except the container and the parts, and over the builder itself.
    pub key: String,
    /// `raw` or `qcow2`; not in the image's own copy, because the disk inside is the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    pub choices: Choices,
    pub input: Vec<Input>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub part: Vec<Part>,
}

/// The builder's own sources and the libraries it was built with: another compressor or another builder makes another
/// image from the same inputs.
const BUILDER: &[&str] = &[
    include_str!("../../proto/src/bgenv.rs"),
    include_str!("build.rs"),
    include_str!("checksums.rs"),
    include_str!("cpio.rs"),
    include_str!("deb.rs"),
    include_str!("digest.rs"),
    include_str!("disk.rs"),
    include_str!("gpt.rs"),
    include_str!("host.rs"),
    include_str!("manifest.rs"),
    include_str!("modules/index.rs"),
    include_str!("modules/lists.rs"),
    include_str!("modules/mod.rs"),
    include_str!("modules/modinfo.rs"),
    include_str!("modules/order.rs"),
    include_str!("qcow2.rs"),
    include_str!("secure_boot.rs"),
    include_str!("tree.rs"),
    include_str!("uki.rs"),
    include_str!("../../Cargo.lock"),
];

impl Manifest {
    pub fn new(choices: Choices, input: Vec<Input>) -> Self {
        let mut manifest = Self {
            format: FORMAT,
            product: crate::PRODUCT.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            key: String::new(),
            container: String::new(),
            choices,
            input,
            part: Vec::new(),
        };
        let builder = digest::sha256(BUILDER.concat().as_bytes());
        manifest.key = digest::sha256(format!("{builder}\n{}", manifest.text()).as_bytes());
        manifest
    }

    /// The manifest as it is written.
    pub fn text(&self) -> String {
        toml::to_string(self).expect("a manifest of strings and numbers is valid TOML")
    }

    /// The manifest of an image that was built before, if there is one that can be understood.
    pub fn read(path: &Path) -> Option<Self> {
        if fs::metadata(path).ok()?.len() > SIZE_MAX {
            return None;
        }
        toml::from_str(&fs::read_to_string(path).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices() -> Choices {
        Choices {
            flavour: "cloud".into(),
            watchdog: "i6300esb".into(),
            watchdog_timeout_s: 30,
            cmdline: "quiet".into(),
            modules: vec![],
            disk_size: 1 << 30,
        }
    }

    fn input(name: &str, sha256: &str) -> Input {
        Input { kind: "program".into(), name: name.into(), version: String::new(), sha256: sha256.into() }
    }

    #[test]
    fn the_key_depends_on_every_input_and_choice() {
        let base = Manifest::new(choices(), vec![input("init", "aa")]);
        assert_eq!(base.key, Manifest::new(choices(), vec![input("init", "aa")]).key);
        assert_ne!(base.key, Manifest::new(choices(), vec![input("init", "ab")]).key);
        let other = Choices { watchdog_timeout_s: 120, ..choices() };
        assert_ne!(base.key, Manifest::new(other, vec![input("init", "aa")]).key);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = crate::testdir::TestDir::new("manifest");
        let path = dir.path().join("m.toml");
        let mut manifest = Manifest::new(choices(), vec![input("init", "aa")]);
        manifest.part.push(Part { name: "uki".into(), size: 5 });
        fs::write(&path, manifest.text()).unwrap();
        assert_eq!(Manifest::read(&path), Some(manifest));
        fs::write(&path, "format = \"x\"").unwrap();
        assert_eq!(Manifest::read(&path), None);
    }

    /// A source file that shapes images must be in [`BUILDER`].
    #[test]
    fn the_builders_sources_are_all_counted() {
        // These describe, report, fetch, sign or copy; what they hand over is an input of its own.
        let others = [
            "error.rs",
            "inspect.rs",
            "lib.rs",
            "main.rs",
            "options.rs",
            "packages.rs",
            "release.rs",
            "testdir.rs",
            "write.rs",
        ];
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for dir in [src.clone(), src.join("modules")] {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                if path.is_dir() || others.contains(&name) {
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                assert!(BUILDER.contains(&text.as_str()), "{} is not in BUILDER", path.display());
            }
        }
    }
}
