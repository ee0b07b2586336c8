//! The admin's folder: the keys that sign the roster, and every entry they have signed. It belongs to a person, not to a node.
//!
//! ```text
//! FOLDER/admin.key           seed of the key that signs the next entry, hex, mode 0600
//! FOLDER/recovery-N.key      seeds of the recovery keys: each is to be moved to a place of its own
//! FOLDER/entry-N             the entries, hex, from 0 without a gap
//! ```
//! An entry's file is linked into its name when it is whole and on the disk, and no file is ever replaced: two commands at
//! once cannot sign two entries of one number, which would fork the roster.
//!
//! It does not know what the cluster's members have; they judge what is handed in to them.

use peer_core::key::SecretKey;
use peer_core::roster::{Change, Draft, DraftError, ENTRY_MAX, Entry, Recovery, Refused, Role, RosterChain};
use proto::cluster::{NodeName, is_name};
use proto::roster::PublicKey;
use proto::text::{hex, unhex};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Members of a new cluster that vote; more get their votes one by one.
const VOTERS: usize = peer_core::roster::MEMBER_VOTERS_MAX;

/// Why a folder is not made or read, or an entry not signed. Nothing was signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FounderError {
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is there already; name a folder that is not")]
    Exists { path: PathBuf },
    #[error("{path} is no {what}: expected {expected}")]
    Form { path: PathBuf, what: &'static str, expected: &'static str },
    #[error("{path} is not the admin's key any more; use the folder whose key the newest entry names")]
    OtherAdmin { path: PathBuf },
    #[error("{path} is refused: {source}")]
    Entry { path: PathBuf, source: Refused },
    #[error("cannot sign: {0}")]
    Refused(#[from] Refused),
    #[error("cannot sign: {0}")]
    Draft(#[from] DraftError),
    #[error("bad name \"{0}\", expected 1 to 32 of a-z 0-9 -, beginning with a letter, not ending with -")]
    Name(String),
    #[error(
        "bad key of {name}, expected 64 hexadecimal digits, found {len} characters; see \"keel show state\" there"
    )]
    Key { name: String, len: usize },
    #[error("expected NAME:KEY, found \"{0}\"")]
    NoColon(String),
    #[error("expected recovery keys as K/N, 1 to N of at most 15, found \"{0}\"")]
    Recovery(String),
    #[error("entry {number} was signed meanwhile; look at it, then try again")]
    Raced { number: u64 },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FounderError {
    let path = path.to_owned();
    move |source| FounderError::Io { what, path, source }
}

/// A name and a key as they were typed.
pub(crate) fn member(name: &str, key: &str) -> Result<(NodeName, PublicKey), FounderError> {
    if !is_name(name) {
        return Err(FounderError::Name(name.chars().filter(|c| !c.is_control()).take(40).collect()));
    }
    let bytes = unhex(key).and_then(|bytes| PublicKey::try_from(bytes).ok());
    let key = bytes.ok_or(FounderError::Key { name: name.to_owned(), len: key.chars().count() })?;
    Ok((name.into(), key))
}

/// A folder that was read.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    entries: Vec<Entry>,
    chain: RosterChain,
}

impl Folder {
    /// Makes the folder with new keys and the first entry, in which up to seven of `members` vote.
    pub(crate) fn found(
        path: &Path,
        domain: &str,
        recovery: &str,
        members: &[String],
    ) -> Result<Folder, FounderError> {
        let bad = || FounderError::Recovery(recovery.chars().filter(|c| !c.is_control()).take(40).collect());
        let (threshold, count) = recovery.split_once('/').ok_or_else(bad)?;
        let number = |text: &str| text.parse::<u8>().map_err(|_| bad());
        let (threshold, count) = (number(threshold)?, number(count)?);
        if !(1..=15).contains(&count) || !(1..=count).contains(&threshold) {
            return Err(bad());
        }
        let seed = random()?;
        let admin = SecretKey::from_seed(seed);
        let mut recoveries = Vec::new();
        for _ in 0..count {
            recoveries.push(random()?);
        }
        let keys = recoveries.iter().map(|seed| *SecretKey::from_seed(*seed).public()).collect();
        let mut draft = Draft::first(random()?, domain, *admin.public(), Recovery { threshold, keys });
        for (at, text) in members.iter().enumerate() {
            let pair = text.split_once(':').ok_or_else(|| FounderError::NoColon(text.clone()))?;
            let (name, key) = member(pair.0, pair.1)?;
            draft.add(name.clone(), key, Role::Member)?.vote(&name, at < VOTERS)?;
        }
        let chain = RosterChain::found(draft.sign(&[&admin])?)?;
        // All is good: only now something is made.
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(FounderError::Exists { path: path.to_owned() });
            }
            made => made.map_err(failed("make", path))?,
        }
        write(&path.join("admin.key"), &hex(&seed))?;
        for (at, seed) in recoveries.iter().enumerate() {
            write(&path.join(format!("recovery-{}.key", at + 1)), &hex(seed))?;
        }
        let folder = Folder { path: path.to_owned(), entries: vec![chain.newest().clone()], chain };
        folder.put(folder.chain.newest())?;
        Ok(folder)
    }

    /// Reads the entries of a folder and judges each.
    pub(crate) fn open(path: &Path) -> Result<Folder, FounderError> {
        let first = read_entry(&path.join("entry-0"))?;
        let mut entries = vec![first.clone()];
        let refused = |number: u64| {
            let path = path.join(format!("entry-{number}"));
            move |source| FounderError::Entry { path, source }
        };
        let mut chain = RosterChain::found(first).map_err(refused(0))?;
        loop {
            let number = chain.newest().number() + 1;
            let file = path.join(format!("entry-{number}"));
            if !file.exists() {
                return Ok(Folder { path: path.to_owned(), entries, chain });
            }
            let entry = read_entry(&file)?;
            entries.push(entry.clone());
            chain = chain.apply(entry).map_err(refused(number))?.chain;
        }
    }

    /// Changes what the newest entry says, signs it and keeps it. Durable when this returns.
    pub(crate) fn step(
        &mut self,
        change: impl FnOnce(&mut Draft) -> Result<&mut Draft, DraftError>,
    ) -> Result<Change, FounderError> {
        let path = self.path.join("admin.key");
        let expected = "64 hexadecimal digits";
        let seed = unhex(read(&path, 65)?.trim()).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let seed = seed.ok_or(FounderError::Form { path: path.clone(), what: "key", expected })?;
        let admin = SecretKey::from_seed(seed);
        if *admin.public() != self.chain.newest().content().admin {
            return Err(FounderError::OtherAdmin { path });
        }
        let mut draft = Draft::after(&self.chain);
        change(&mut draft)?;
        let entry = draft.sign(&[&admin])?;
        // Judged as every member will: what they would refuse is not kept.
        let applied = self.chain.apply(entry.clone())?;
        self.put(&entry)?;
        self.entries.push(entry);
        self.chain = applied.chain;
        Ok(applied.change)
    }

    pub(crate) fn chain(&self) -> &RosterChain {
        &self.chain
    }

    /// All entries, one behind the other: what a member that has none of them is handed.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.entries.iter().flat_map(|entry| entry.bytes().to_vec()).collect()
    }

    fn put(&self, entry: &Entry) -> Result<(), FounderError> {
        let number = entry.number();
        let path = self.path.join(format!("entry-{number}"));
        let new = self.path.join(format!("entry-{number}.{}.new", std::process::id()));
        let text = hex(entry.bytes());
        let made = write(&new, &text).and_then(|()| match fs::hard_link(&new, &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(FounderError::Raced { number }),
            linked => linked.map_err(failed("make", &path)),
        });
        // A name that stays is in nobody's way.
        let _ = fs::remove_file(&new);
        made?;
        let folder = File::open(&self.path).and_then(|folder| folder.sync_all());
        folder.map_err(failed("sync", &self.path))
    }
}

fn read_entry(path: &Path) -> Result<Entry, FounderError> {
    let form =
        || FounderError::Form { path: path.to_owned(), what: "roster entry", expected: "hexadecimal digits" };
    let bytes = unhex(read(path, 2 * ENTRY_MAX + 1)?.trim()).ok_or_else(form)?;
    Entry::decode(&bytes).map_err(|source| FounderError::Entry { path: path.to_owned(), source })
}

/// The first `max` bytes of a text file.
fn read(path: &Path, max: usize) -> Result<String, FounderError> {
    let mut text = String::new();
    let file = File::open(path).map_err(failed("read", path))?;
    file.take(max as u64).read_to_string(&mut text).map_err(failed("read", path))?;
    Ok(text)
}

/// Makes a file that only its owner can read, on the disk when this returns.
fn write(path: &Path, text: &str) -> Result<(), FounderError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("make", path))?;
    writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(failed("write", path))
}

fn random() -> Result<[u8; 32], FounderError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).map_err(failed("read", path))?;
    Ok(bytes)
}

/// What is handed in: the hex text itself, a file with such text, or a whole folder.
pub(crate) fn entries(argument: &str) -> Result<Vec<u8>, FounderError> {
    let path = Path::new(argument);
    if let Some(bytes) = unhex(argument).filter(|bytes| !bytes.is_empty()) {
        return Ok(bytes);
    }
    if path.is_dir() {
        return Ok(Folder::open(path)?.bytes());
    }
    let expected = "hexadecimal digits, as \"keel roster show --entry\" prints them";
    let form = || FounderError::Form { path: path.to_owned(), what: "roster entry", expected };
    unhex(read(path, 2 * ENTRY_MAX + 1)?.trim()).ok_or_else(form)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dir;
    use std::os::unix::fs::PermissionsExt;

    fn public(seed: u8) -> String {
        hex(SecretKey::from_seed([seed; 32]).public())
    }

    fn founded(dir: &Dir) -> Folder {
        let members = [format!("a1:{}", public(1)), format!("b1:{}", public(2))];
        Folder::found(&dir.path("admin"), "demo.lan", "2/3", &members).unwrap()
    }

    #[test]
    fn a_folder_is_founded_changed_and_read_again() {
        let dir = Dir::new();
        let mut folder = founded(&dir);
        let content = folder.chain().newest().content().clone();
        assert_eq!(
            (content.recovery.threshold, content.recovery.keys.len(), content.voters.len()),
            (2, 3, 2)
        );
        for name in ["admin.key", "recovery-1.key", "recovery-3.key", "entry-0"] {
            let mode = fs::metadata(dir.path("admin").join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let (name, key) = member("a2", &public(3)).unwrap();
        let change = folder.step(|d| d.add(name, key, Role::Member)).unwrap();
        assert_eq!((change.number, change.added.len()), (1, 1));
        folder.step(|d| d.rotate(&"b1".into(), *SecretKey::from_seed([12; 32]).public())).unwrap();
        folder.step(|d| d.remove(&"a2".into())).unwrap();
        let again = Folder::open(&dir.path("admin")).unwrap();
        assert_eq!((again.chain(), again.bytes()), (folder.chain(), folder.bytes()));
        assert_eq!(entries(dir.path("admin").to_str().unwrap()).unwrap(), folder.bytes());
        let newest = folder.chain().newest();
        assert_eq!(entries(&hex(newest.bytes())).unwrap(), newest.bytes());
        assert_eq!(entries(dir.path("admin/entry-3").to_str().unwrap()).unwrap(), newest.bytes());
        let left = fs::read_dir(dir.path("admin")).unwrap().count();
        assert_eq!(left, 8, "four keys and four entries");
    }

    #[test]
    fn two_at_once_do_not_fork() {
        let dir = Dir::new();
        let (mut one, mut two) = (founded(&dir), Folder::open(&dir.path("admin")).unwrap());
        let add = |name: &'static str, seed: u8| {
            let (name, key) = member(name, &public(seed)).unwrap();
            move |d: &mut Draft| d.add(name, key, Role::Member).map(|_| ())
        };
        let (first, second) = (add("a2", 3), add("b2", 4));
        one.step(|d| first(d).map(|()| d)).unwrap();
        let raced = two.step(|d| second(d).map(|()| d)).unwrap_err();
        assert!(matches!(raced, FounderError::Raced { number: 1 }), "{raced}");
        assert_eq!(Folder::open(&dir.path("admin")).unwrap().chain(), one.chain());
    }

    #[test]
    fn each_breach_has_its_own_refusal_and_signs_nothing() {
        let dir = Dir::new();
        let found = |recovery: &str, members: &[String]| {
            Folder::found(&dir.path("new"), "demo.lan", recovery, members).unwrap_err().to_string()
        };
        let a1 = [format!("a1:{}", public(1))];
        assert_eq!(found("3/2", &a1), "expected recovery keys as K/N, 1 to N of at most 15, found \"3/2\"");
        assert_eq!(found("1/1", &["a1".into()]), "expected NAME:KEY, found \"a1\"");
        assert!(found("1/1", &["a1:00".into()]).starts_with("bad key of a1, expected 64 hexadecimal digits"));
        assert!(found("1/1", &[format!("A1:{}", public(1))]).starts_with("bad name \"A1\""));
        assert!(found("1/1", &[]).contains("no voter"));
        assert!(!dir.path("new").exists(), "a mistake leaves nothing");
        let mut folder = founded(&dir);
        let again = Folder::found(&dir.path("admin"), "demo.lan", "1/1", &a1).unwrap_err();
        assert!(again.to_string().ends_with("is there already; name a folder that is not"), "{again}");
        let unknown = folder.step(|d| d.remove(&"x9".into())).unwrap_err();
        assert!(
            unknown.to_string().starts_with("cannot sign: nobody in the roster is called x9"),
            "{unknown}"
        );
        let domain = folder.step(|d| Ok(d.move_domain("other.lan"))).unwrap_err();
        assert!(domain.to_string().contains("2 recovery keys have to sign it, it has 0"), "{domain}");
        fs::write(dir.path("admin/admin.key"), hex(&[5; 32])).unwrap();
        let other = folder.step(|d| d.remove(&"b1".into())).unwrap_err();
        assert!(matches!(other, FounderError::OtherAdmin { .. }), "{other}");
        assert!(!dir.path("admin/entry-1").exists());
        fs::write(dir.path("admin/entry-1"), "00").unwrap();
        let broken = Folder::open(&dir.path("admin")).unwrap_err();
        assert!(broken.to_string().contains("entry-1 is refused"), "{broken}");
    }
}
