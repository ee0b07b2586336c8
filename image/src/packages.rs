//! The kernel package and the checker's: found and fetched by apt, kept in a download cache.
//!
//! ```text
//! cache/index.toml     which package, version, file and SHA-256 was chosen for each flavour, and for a package by name
//! cache/*.deb          the packages
//! ```
//! apt checks the archive's signature and the package's hash; we record the hash again, so that later (and
//! offline) builds use the same bytes without asking anyone. `refresh` asks apt for the current version.
//! Several builds may share a cache: files appear by rename.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest;
use crate::error::BuildError;
use crate::host::{self, APT_CACHE, APT_GET};
use crate::options::Flavour;

/// What the cache holds for one flavour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    pub package: String,
    pub version: String,
    /// File name inside the cache.
    pub file: String,
    pub sha256: String,
    pub size: u64,
}

/// `index.toml`: flavour, or name of a package that is the same for all, to package.
type Index = BTreeMap<String, Chosen>;

/// Where to look for the kernel, and whether apt may be asked.
#[derive(Debug, Clone, Copy)]
pub struct Cache<'a> {
    pub dir: &'a Path,
    pub offline: bool,
    pub refresh: bool,
}

/// Refuses to read an index that cannot be ours: a few lines per flavour.
const INDEX_MAX: u64 = 64 * 1024;

impl Cache<'_> {
    /// The kernel package of a flavour, fetched if it is not there. The bytes are checked when they are unpacked
    /// ([`Cache::read`]), not here: an unchanged image needs the name and hash only.
    pub fn choose(&self, flavour: Flavour) -> Result<Chosen, BuildError> {
        self.known_or(&flavour.to_string(), || {
            let meta = show(flavour.metapackage())?;
            kernel_dependency(&meta)
                .ok_or_else(|| BuildError::UnknownPackage { package: flavour.metapackage().into() })
        })
    }

    /// The package of this name, fetched if it is not there; see [`Cache::choose`].
    pub fn choose_package(&self, name: &str) -> Result<Chosen, BuildError> {
        self.known_or(name, || {
            let record = show(name)?;
            let version = field(&record, "Version");
            let version = version.ok_or_else(|| BuildError::UnknownPackage { package: name.to_owned() })?;
            Ok((name.to_owned(), version.to_owned()))
        })
    }

    /// What the index has for `key`, else the package and version that `find` names, fetched.
    fn known_or(
        &self,
        key: &str,
        find: impl FnOnce() -> Result<(String, String), BuildError>,
    ) -> Result<Chosen, BuildError> {
        let mut index = self.read_index()?;
        if let Some(known) = index.get(key).filter(|k| self.dir.join(&k.file).is_file()) {
            if self.offline || !self.refresh {
                return Ok(known.clone());
            }
        } else if self.offline {
            return Err(BuildError::NotCached { wanted: key.to_owned(), cache: self.dir.to_owned() });
        }
        let (package, version) = find()?;
        let chosen = self.fetch(package, version)?;
        index.insert(key.to_owned(), chosen.clone());
        self.write_index(&index)?;
        Ok(chosen)
    }

    /// The bytes of a chosen package, checked against the recorded hash.
    pub fn read(&self, chosen: &Chosen) -> Result<Vec<u8>, BuildError> {
        let path = self.dir.join(&chosen.file);
        let bytes = fs::read(&path).map_err(|e| BuildError::read(&path, e))?;
        let came = digest::sha256(&bytes);
        if came != chosen.sha256 {
            let detail = format!("SHA-256 {came} instead of {}", chosen.sha256);
            return Err(BuildError::DamagedPackage { path, detail });
        }
        Ok(bytes)
    }

    fn index_path(&self) -> PathBuf {
        self.dir.join("index.toml")
    }

    fn read_index(&self) -> Result<Index, BuildError> {
        let path = self.index_path();
        let damaged = |detail: String| BuildError::DamagedIndex { path: path.clone(), detail };
        match fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Index::new()),
            Err(e) => return Err(BuildError::read(&path, e)),
            Ok(meta) if meta.len() > INDEX_MAX => return Err(damaged(format!("{} bytes", meta.len()))),
            Ok(_) => {}
        }
        let text = fs::read_to_string(&path).map_err(|e| BuildError::read(&path, e))?;
        let index: Index = toml::from_str(&text).map_err(|e| damaged(e.message().to_owned()))?;
        // The file name is joined to the cache's path: it must stay inside.
        if let Some(bad) = index.values().find(|c| c.file.contains('/') || c.file.starts_with('.')) {
            return Err(damaged(format!("file name \"{}\"", bad.file)));
        }
        Ok(index)
    }

    fn write_index(&self, index: &Index) -> Result<(), BuildError> {
        let text = toml::to_string(index).expect("an index of plain strings is valid TOML");
        let path = self.index_path();
        let new = self.dir.join(format!(".index.{}", host::unique()));
        fs::write(&new, &text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|e| BuildError::io("write", &path, text.len() as u64, e))
    }

    fn fetch(&self, package: String, version: String) -> Result<Chosen, BuildError> {
        fs::create_dir_all(self.dir).map_err(|e| BuildError::io("create", self.dir, 0, e))?;
        let wanted = format!("{package}={version}");
        let record = show(&wanted)?;
        let size = field(&record, "Size").and_then(|s| s.parse().ok()).unwrap_or(0);

        // apt downloads into the working directory under a name of its own choice: give it an empty one.
        let scratch = Scratch::new(self.dir)?;
        let mut command = APT_GET.command();
        command.current_dir(&scratch.0).args(["-q", "-y"]);
        for option in [
            "APT::Sandbox::User=root", // the cache need not be readable by apt's own user
            "APT::Get::AllowUnauthenticated=false",
            "Acquire::Retries=2",
            "Acquire::http::Timeout=30",
            "Acquire::https::Timeout=30",
            "DPkg::Lock::Timeout=120",
        ] {
            command.args(["-o", option]);
        }
        command.args(["download", &wanted]);
        APT_GET.run(&mut command, &format!("download {wanted} (try \"apt-get update\")"), self.dir, size)?;

        let came = fs::read_dir(&scratch.0)
            .map_err(|e| BuildError::read(&scratch.0, e))?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "deb"));
        let Some(came) = came else {
            let detail = "it left no package behind".to_owned();
            return Err(BuildError::Tool { tool: "apt-get", doing: format!("download {wanted}"), detail });
        };
        let sha256 = digest::sha256_file(&came).map_err(|e| BuildError::read(&came, e))?;
        if field(&record, "SHA256").is_some_and(|signed| signed != sha256) {
            let detail = "its SHA-256 is not the one in apt's signed list".to_owned();
            return Err(BuildError::DamagedPackage { path: came, detail });
        }
        let file = came.file_name().and_then(|n| n.to_str()).unwrap_or("package.deb").to_owned();
        let path = self.dir.join(&file);
        fs::rename(&came, &path).map_err(|e| BuildError::io("write", &path, size, e))?;
        Ok(Chosen { package, version, file, sha256, size })
    }
}

/// A folder removed at the end, whatever happens.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Self, BuildError> {
        let path = parent.join(format!(".download.{}", host::unique()));
        let _ = fs::remove_dir_all(&path); // of a build with that process id that was killed
        fs::create_dir(&path).map_err(|e| BuildError::io("create", &path, 0, e))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// apt's record of a package.
fn show(package: &str) -> Result<String, BuildError> {
    let mut command = APT_CACHE.command();
    command.args(["show", "--no-all-versions", package]);
    let output = APT_CACHE.output(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || field(&text, "Package").is_none() {
        return Err(BuildError::UnknownPackage { package: package.to_owned() });
    }
    Ok(text)
}

/// The value of a one-line field of a control record.
fn field<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Name and version of the kernel in a metapackage's record: `Depends: linux-image-… (= 6.12…)`.
fn kernel_dependency(record: &str) -> Option<(String, String)> {
    field(record, "Depends")?.split(',').map(str::trim).find_map(|dependency| {
        let (name, rest) = dependency.split_once(' ')?;
        let version = rest.strip_prefix("(=")?.strip_suffix(')')?.trim();
        name.starts_with("linux-image-").then(|| (name.to_owned(), version.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    const META: &str = "Package: linux-image-6.12-cloud-amd64\nVersion: 6.12.117-1~deb12u1\n\
        Depends: linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)\nSHA256: ab2b\n";

    #[test]
    fn the_metapackage_names_the_kernel() {
        assert_eq!(
            kernel_dependency(META).unwrap(),
            ("linux-image-6.12.117+deb12-cloud-amd64".into(), "6.12.117-1~deb12u1".into())
        );
        assert_eq!(kernel_dependency("Package: x\nDepends: libc6 (>= 2.3), linux-base\n"), None);
        assert_eq!(field(META, "SHA256"), Some("ab2b"));
        assert_eq!(field(META, "SHA"), None);
    }

    fn chosen(bytes: &[u8]) -> Chosen {
        Chosen {
            package: "linux-image-1".into(),
            version: "1".into(),
            file: "linux-image-1.deb".into(),
            sha256: digest::sha256(bytes),
            size: bytes.len() as u64,
        }
    }

    #[test]
    fn a_recorded_choice_is_used_without_asking() {
        let dir = TestDir::new("cache");
        let cache = Cache { dir: dir.path(), offline: true, refresh: false };
        let error = cache.choose(Flavour::Cloud).unwrap_err().to_string();
        assert!(error.contains("has no package for cloud: build once without --offline"), "{error}");

        let chosen = chosen(b"deb");
        cache.write_index(&Index::from([("cloud".to_owned(), chosen.clone())])).unwrap();
        assert!(cache.choose(Flavour::Cloud).is_err(), "recorded, but the file is gone");
        fs::write(dir.path().join(&chosen.file), b"deb").unwrap();
        assert_eq!(cache.choose(Flavour::Cloud).unwrap(), chosen);
        // Not offline, yet a recorded choice asks nobody: apt would not know this package.
        let online = Cache { offline: false, ..cache };
        assert_eq!(online.choose(Flavour::Cloud).unwrap(), chosen);
        assert_eq!(cache.read(&chosen).unwrap(), b"deb");
    }

    #[test]
    fn changed_bytes_and_a_damaged_index_are_named() {
        let dir = TestDir::new("cache");
        let cache = Cache { dir: dir.path(), offline: true, refresh: false };
        let chosen = chosen(b"deb");
        fs::write(dir.path().join(&chosen.file), b"dex").unwrap();
        let error = cache.read(&chosen).unwrap_err().to_string();
        assert!(error.contains("linux-image-1.deb is damaged (SHA-256"), "{error}");
        assert!(error.ends_with("delete it and build again without --offline"), "{error}");

        fs::write(cache.index_path(), "cloud = 3").unwrap();
        let error = cache.choose(Flavour::Cloud).unwrap_err().to_string();
        assert!(error.contains("index.toml cannot be read"), "{error}");

        let outside = Chosen { file: "../x.deb".into(), ..chosen };
        cache.write_index(&Index::from([("cloud".to_owned(), outside)])).unwrap();
        assert!(cache.choose(Flavour::Cloud).unwrap_err().to_string().contains("file name \"../x.deb\""));
    }

    #[test]
    fn an_unknown_package_says_what_to_do() {
        let error = show("linux-image-evenkeel-none").unwrap_err().to_string();
        assert!(error.contains("run \"apt-get update\""), "{error}");
    }
}
