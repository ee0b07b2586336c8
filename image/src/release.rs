//! Makes the bundle of a release from a boot file: `docs/formats/release.md`. The same boot file, key and choices give the
//! same bytes.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use peer_core::key::SecretKey;
use proto::text::hex;
use provisiond_core::release::{self, BundleError, Manifest, Node, Rule, Verifier};
use provisiond_core::version::{NoVersion, Version};

use crate::error::InspectError;
use crate::{digest, inspect, uki};

/// Bytes of a key file that are looked at: 64 digits and a line's end.
const KEY_FILE_MAX: u64 = 66;

/// What a release is made from.
#[derive(Debug, Clone)]
pub struct ReleaseOptions {
    /// A boot file, or a disk image with one in slot A.
    pub from: PathBuf,
    /// Seed of the key that signs, 64 hexadecimal digits.
    pub key: PathBuf,
    pub out: PathBuf,
    /// The kinds of hardware that it is for; empty: what its kernel says.
    pub hardware: Vec<String>,
    /// The lowest version that a node may return to once it has committed this one.
    pub floor: Version,
    /// The lowest version that it may be installed from.
    pub source: Version,
}

/// A bundle that was made and read back.
#[derive(Debug)]
pub struct Bundle {
    pub manifest: Manifest,
    /// Public half of the key that signed it.
    pub key: String,
    /// Of the whole file.
    pub sha256: String,
}

/// Why no bundle was made. A file at the output path is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Image(#[from] InspectError),
    #[error("{} has no boot file in SLOT-A: build the image again", path.display())]
    NoBootFile { path: PathBuf },
    #[error("{} is no boot file ({detail}): give one, or an image of \"image build\"", path.display())]
    BootFile { path: PathBuf, detail: String },
    #[error("{} has {found} bytes, a boot file has at most {}", path.display(), release::SIZE_MAX)]
    TooLarge { path: PathBuf, found: u64 },
    #[error("{} is no key: expected 64 hexadecimal digits, the seed of an Ed25519 key", path.display())]
    Key { path: PathBuf },
    #[error("the boot file's version")]
    Version(#[from] NoVersion),
    #[error("no node would take this release: give another --hardware, --floor or --source")]
    Rule(#[source] Rule),
    #[error("the bundle that was made is refused; this is a fault of the builder")]
    Made(#[source] BundleError),
}

/// Makes a bundle and puts it at the output path, whole or not at all.
pub fn release(options: &ReleaseOptions) -> Result<Bundle, ReleaseError> {
    let boot_file = boot_file(&options.from)?;
    let words = Words::of(&options.from, &boot_file)?;
    let key = read_key(&options.key)?;
    let mut hardware = options.hardware.clone();
    if hardware.is_empty() {
        hardware.push(words.hardware());
    }
    hardware.sort();
    hardware.dedup();
    let mut manifest = Manifest::of(&boot_file, &words.product, hardware, words.version.parse()?);
    (manifest.floor, manifest.source) = (options.floor, options.source);
    let mut bundle = release::head(&manifest, &key).map_err(ReleaseError::Rule)?;
    bundle.extend_from_slice(&boot_file);
    read_back(&manifest, &key, &bundle).map_err(ReleaseError::Made)?;
    put(&options.out, &bundle)?;
    Ok(Bundle { manifest, key: hex(key.public()), sha256: digest::sha256(&bundle) })
}

/// What the boot file says of itself.
struct Words {
    product: String,
    version: String,
    kernel: String,
}

impl Words {
    fn of(path: &Path, boot_file: &[u8]) -> Result<Words, ReleaseError> {
        let no = |detail: String| ReleaseError::BootFile { path: path.to_owned(), detail };
        uki::sections(boot_file).map_err(no)?;
        let text = |name: &str| -> Result<String, ReleaseError> {
            let bytes = uki::section(boot_file, name).ok_or_else(|| no(format!("no section {name}")))?;
            Ok(String::from_utf8_lossy(bytes).trim_end_matches('\0').trim().to_owned())
        };
        let system = text(".osrel")?;
        let value = |key: &str| {
            let found = system.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.map(str::to_owned).ok_or_else(|| no(format!("its .osrel has no {key}")))
        };
        Ok(Words { product: value("ID")?, version: value("VERSION_ID")?, kernel: text(".uname")? })
    }

    /// Debian's kernel for virtual machines has drivers for nothing else.
    fn hardware(&self) -> String {
        let flavour = if self.kernel.contains("-cloud-") { "cloud" } else { "generic" };
        format!("x86_64-{flavour}")
    }
}

/// The bytes of a boot file, or those in slot A of a disk image.
fn boot_file(path: &Path) -> Result<Vec<u8>, ReleaseError> {
    let io = |source| ReleaseError::Io { doing: "read", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut magic = [0; 2];
    let bytes = if file.read_exact(&mut magic).is_ok() && magic == *b"MZ" {
        let found = file.metadata().map_err(io)?.len();
        if found > release::SIZE_MAX {
            return Err(ReleaseError::TooLarge { path: path.to_owned(), found });
        }
        fs::read(path).map_err(io)?
    } else {
        inspect::slot_file(path)?.ok_or_else(|| ReleaseError::NoBootFile { path: path.to_owned() })?
    };
    Ok(bytes)
}

fn read_key(path: &Path) -> Result<SecretKey, ReleaseError> {
    let io = |source| ReleaseError::Io { doing: "read the key", path: path.to_owned(), source };
    let mut text = Vec::new();
    File::open(path).map_err(io)?.take(KEY_FILE_MAX).read_to_end(&mut text).map_err(io)?;
    let seed = str::from_utf8(&text).ok().and_then(|text| proto::roster::parse_hex(text.trim()));
    seed.map(SecretKey::from_seed).ok_or_else(|| ReleaseError::Key { path: path.to_owned() })
}

/// The node that the release is for reads it.
fn read_back(manifest: &Manifest, key: &SecretKey, bundle: &[u8]) -> Result<(), BundleError> {
    let Some(hardware) = manifest.hardware.first() else { return Ok(()) };
    // A node of any later version: none installs what it runs.
    let running = Version { major: u32::MAX, minor: u32::MAX, patch: u32::MAX };
    let mut verifier = Verifier::new(Node::new(vec![*key.public()], &manifest.product, hardware, running));
    verifier.push(bundle, &mut |_| ())?;
    verifier.finish().map(drop)
}

fn put(out: &Path, bundle: &[u8]) -> Result<(), ReleaseError> {
    let io = |source| ReleaseError::Io { doing: "write", path: out.to_owned(), source };
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = out.with_file_name(name);
    let written = File::create_new(&temporary)
        .and_then(|mut file| file.write_all(bundle).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, out));
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        io(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;
    use proto::text::one_line;

    /// A boot file with the sections that matter here.
    fn boot_file(system: &str, kernel: &str) -> Vec<u8> {
        let parts = [(".osrel", system), (".uname", kernel)];
        uki::assemble(&uki::tests::stub(), &parts.map(|(name, text)| (name, text.as_bytes()))).unwrap()
    }

    fn options(dir: &TestDir, system: &str) -> ReleaseOptions {
        let at = |name: &str| dir.path().join(name);
        fs::write(at("linux.efi"), boot_file(system, "6.12.1-cloud-amd64")).unwrap();
        fs::write(at("release.key"), format!("{}\n", "07".repeat(32))).unwrap();
        ReleaseOptions {
            from: at("linux.efi"),
            key: at("release.key"),
            out: at("out.bundle"),
            hardware: vec![],
            floor: Version::default(),
            source: Version::default(),
        }
    }

    const SYSTEM: &str = "ID=evenkeel\nNAME=Evenkeel\nVERSION_ID=1.2.3\n";

    #[test]
    fn a_bundle_says_what_its_boot_file_says_and_is_the_same_every_time() {
        let dir = TestDir::new("release");
        let mut options = options(&dir, SYSTEM);
        let made = release(&options).unwrap();
        let manifest = &made.manifest;
        assert_eq!((manifest.product.as_str(), manifest.version.to_string()), ("evenkeel", "1.2.3".into()));
        assert_eq!(manifest.hardware, ["x86_64-cloud"]);
        let bytes = fs::read(&options.out).unwrap();
        assert!(bytes.ends_with(&fs::read(&options.from).unwrap()));
        options.out = dir.path().join("again.bundle");
        assert_eq!(release(&options).unwrap().sha256, made.sha256);
        assert!(fs::read(&options.out).unwrap() == bytes);
        options.hardware = vec!["b".into(), "a".into(), "b".into()];
        options.floor = "1.1.0".parse().unwrap();
        assert_eq!(release(&options).unwrap().manifest.hardware, ["a", "b"]);
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 4, "no temporary file is left behind");
    }

    #[test]
    fn what_cannot_become_a_release_leaves_the_output_as_it_was() {
        let dir = TestDir::new("release");
        let good = options(&dir, SYSTEM);
        fs::write(&good.out, "before").unwrap();
        let say = |options: &ReleaseOptions| one_line(&release(options).unwrap_err());
        let high = ReleaseOptions { floor: "1.2.4".parse().unwrap(), ..good.clone() };
        assert_eq!(
            say(&high),
            "no node would take this release: give another --hardware, --floor or --source: \
             floor version 1.2.4 above the release's own, 1.2.3"
        );
        for text in ["", "07", &"0g".repeat(32), &"07".repeat(33)] {
            fs::write(&good.key, text).unwrap();
            assert!(
                say(&good).ends_with("expected 64 hexadecimal digits, the seed of an Ed25519 key"),
                "{text}"
            );
        }
        for (system, told) in [
            ("ID=evenkeel\n", "its .osrel has no VERSION_ID"),
            (
                "ID=evenkeel\nVERSION_ID=1.2\n",
                "expected a version of three numbers like 1.20.3, found \"1.2\"",
            ),
        ] {
            let options = options(&dir, system);
            assert!(say(&options).contains(told), "{}", say(&options));
        }
        fs::write(&good.from, "MZ text").unwrap();
        assert!(say(&good).contains(" is no boot file ("), "{}", say(&good));
        fs::write(&good.from, "text").unwrap();
        assert!(say(&good).contains("is not an Evenkeel image"), "{}", say(&good));
        assert_eq!(fs::read_to_string(&good.out).unwrap(), "before");
    }
}
