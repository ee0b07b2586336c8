//! The initramfs's own files against the list that the image builder put first (`docs/formats/image.md`, "Own files").
//!
//! The kernel runs `/init` on what it could unpack of a damaged archive. A module that is not what it was must not get
//! into the kernel, and a root that is not what it was must not be started from: its damage would show later, and as
//! something else. This finds damage; it proves nothing against an attacker, which is the signature's work.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::host::Host;
use crate::{clock, sys};

/// The list.
const LIST: &str = "/boot/files.list";
/// Files in this folder are each skipped when they are damaged; damage to others holds the boot.
const MODULES: &str = "/boot/modules";
/// Bytes and files of a list; today's have 1 KiB and ten.
const LIST_MAX: u64 = 256 * 1024;
const FILES_MAX: usize = 1024;
/// For people: what is damaged in memory came so from the disk, or broke on its way.
const NEXT_STEP: &str = "restart; if that does not help, the slot has to be written anew";
/// Bytes read at a time.
const BLOCK: usize = 64 * 1024;

/// A file and what it must be.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    crc: u32,
    size: u64,
    /// Absolute.
    path: &'a str,
}

/// A list, and whether it is whole.
#[derive(Debug, PartialEq, Eq)]
struct List<'a> {
    entries: Vec<Entry<'a>>,
    /// What is wrong with the list itself; the entries are those that could be read.
    damage: Option<String>,
}

/// What is not as it was built.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    /// Modules, which are skipped.
    modules: Vec<PathBuf>,
    /// Everything else, in words for people.
    others: Vec<String>,
}

impl Damage {
    /// Whether `path` is a damaged module.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.modules.iter().any(|module| module == path)
    }

    /// Whether the boot may go on.
    ///
    /// # Errors
    /// The damaged files, what is wrong with each, and what to do.
    pub(crate) fn may_boot(&self) -> Result<(), String> {
        match self.others.is_empty() {
            true => Ok(()),
            false => Err(format!("{}; {NEXT_STEP}", self.others.join("; "))),
        }
    }
}

/// Reads every file of the list and compares. What differs is said. Without a list nothing is known.
pub(crate) fn verify(host: &mut Host) -> Damage {
    verify_below(host, Path::new("/"))
}

/// The same with `root` in place of `/`.
fn verify_below(host: &mut Host, root: &Path) -> Damage {
    let began = clock::now();
    let mut damage = Damage::default();
    let text = match read_list(&below(root, LIST)) {
        Ok(text) => text,
        Err(error) => {
            let why = sys::errno_text(&error);
            host.log.warn(format_args!("own files are not verified: {LIST}: {why}"));
            return damage;
        }
    };
    let list = parse(&text);
    damage.others.extend(list.damage.map(|why| format!("{LIST} {why}")));
    for entry in &list.entries {
        let Err(why) = check(&below(root, entry.path), entry) else { continue };
        let said = format!("{} {why}", entry.path);
        if Path::new(entry.path).starts_with(MODULES) {
            host.log.error(format_args!("{said}: it is not loaded"));
            damage.modules.push(entry.path.into());
        } else {
            damage.others.push(said);
        }
    }
    for said in &damage.others {
        host.log.error(format_args!("damaged: {said}"));
    }
    let (files, kib) = (list.entries.len(), list.entries.iter().map(|e| e.size).sum::<u64>() / 1024);
    let (bad, took) = (damage.modules.len() + damage.others.len(), clock::now().since(began).as_millis());
    host.log.info(format_args!("own files: {files} with {kib} KiB verified, {bad} damaged, {took} ms"));
    damage
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn read_list(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LIST_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a list: `CRC32 SIZE PATH` lines and a last line `CRC32 SIZE end` over all bytes before it.
fn parse(bytes: &[u8]) -> List<'_> {
    let mut list = List { entries: Vec::new(), damage: None };
    let mut at = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let before = bytes.get(..at).unwrap_or_default();
        at += line.len();
        let entry = match line_of(line) {
            Some(entry) => entry,
            None => {
                list.damage.get_or_insert_with(|| "has a line that cannot be read".to_owned());
                continue;
            }
        };
        if entry.path == "end" {
            let whole = entry.size == before.len() as u64 && entry.crc == crc32fast::hash(before);
            if !whole || at != bytes.len() {
                list.damage.get_or_insert_with(|| "is not what its last line says".to_owned());
            }
            return list;
        }
        if list.entries.len() == FILES_MAX {
            list.damage.get_or_insert_with(|| format!("has more than {FILES_MAX} files"));
            return list;
        }
        list.entries.push(entry);
    }
    list.damage.get_or_insert_with(|| "is cut short".to_owned());
    list
}

fn line_of(line: &[u8]) -> Option<Entry<'_>> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let mut words = text.splitn(3, ' ');
    let crc = words.next().filter(|word| word.len() == 8)?;
    let size = words.next()?.parse().ok()?;
    let path = words.next().filter(|path| path.starts_with('/') || *path == "end")?;
    Some(Entry { crc: u32::from_str_radix(crc, 16).ok()?, size, path })
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    Unreadable(String),
    Size { found: u64, expected: u64 },
    Content,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Wrong::Size { found, expected } => write!(f, "has {found} bytes in place of {expected}"),
            Wrong::Content => f.write_str("has other contents than it was built with"),
        }
    }
}

fn check(path: &Path, entry: &Entry<'_>) -> Result<(), Wrong> {
    let unreadable = |error: io::Error| Wrong::Unreadable(sys::errno_text(&error));
    let found = fs::metadata(path).map_err(unreadable)?.len();
    if found != entry.size {
        return Err(Wrong::Size { found, expected: entry.size });
    }
    let mut file = File::open(path).map_err(unreadable)?.take(entry.size);
    let mut sum = crc32fast::Hasher::new();
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(count) => sum.update(block.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    if sum.finalize() == entry.crc { Ok(()) } else { Err(Wrong::Content) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testdir::TestDir;
    use proptest::prelude::*;

    /// What the image's own golden test expects the builder to write.
    const GOLDEN: &[u8] = b"cbf43926 9 /init\n00000000 0 /boot/modules/a-b.ko\n2b8c0177 49 end\n";

    #[test]
    fn the_builders_list_is_read() {
        let list = parse(GOLDEN);
        let init = Entry { crc: 0xcbf4_3926, size: 9, path: "/init" };
        let module = Entry { crc: 0, size: 0, path: "/boot/modules/a-b.ko" };
        assert_eq!(list, List { entries: vec![init, module], damage: None });
    }

    #[test]
    fn a_damaged_list_is_noticed() {
        let behind = [GOLDEN, b"00000000 0 /more\n"].concat();
        let other = GOLDEN.to_ascii_uppercase();
        let many = b"00000000 0 /a\n".repeat(FILES_MAX + 1);
        for (bytes, entries, why) in [
            (&b""[..], 0, "is cut short"),
            (&GOLDEN[..30], 1, "has a line that cannot be read"),
            (&GOLDEN[..17], 1, "is cut short"),
            (&behind, 2, "is not what its last line says"),
            (b"cbf43926 9 /INIT\n00000000 0 /boot/modules/a-b.ko\n2b8c0177 49 end\n", 2, "last line says"),
            (b"cbf43926 9 /init\n2b8c0177 49 end\n", 1, "last line says"),
            (&other, 2, "has a line that cannot be read"),
            (b"cbf43926 9 init\n", 0, "has a line that cannot be read"),
            (&many, FILES_MAX, "has more than 1024 files"),
        ] {
            let list = parse(bytes);
            let damage = list.damage.unwrap_or_default();
            assert!(damage.contains(why), "{damage:?} is not {why:?}");
            assert_eq!(list.entries.len(), entries, "{why}");
        }
    }

    proptest! {
        #[test]
        fn no_changed_byte_goes_unnoticed(at in 0..GOLDEN.len(), flip in 1_u8..) {
            let mut bytes = GOLDEN.to_vec();
            bytes[at] ^= flip;
            // Hexadecimal digits may be written in two ways; that is no damage.
            prop_assume!(!bytes.eq_ignore_ascii_case(GOLDEN));
            prop_assert!(parse(&bytes).damage.is_some());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(parse(&bytes).damage.is_some());
        }
    }

    /// An initramfs of five files with its list.
    fn initramfs() -> TestDir {
        let dir = TestDir::new();
        fs::create_dir_all(dir.path().join("boot/modules")).unwrap();
        let mut list = String::new();
        for (path, bytes) in [
            ("/init", b"program".to_vec()),
            ("/boot/modules.list", b"/boot/modules/a.ko\n".to_vec()),
            ("/boot/modules/a.ko", b"module a".to_vec()),
            ("/boot/modules/b.ko", b"module b".to_vec()),
            ("/root.squashfs", vec![7; 3 * BLOCK + 1]),
        ] {
            fs::write(below(dir.path(), path), &bytes).unwrap();
            list += &format!("{:08x} {} {path}\n", crc32fast::hash(&bytes), bytes.len());
        }
        let end = format!("{:08x} {} end\n", crc32fast::hash(list.as_bytes()), list.len());
        fs::write(below(dir.path(), LIST), list + &end).unwrap();
        dir
    }

    fn verified(dir: &TestDir) -> (Damage, Vec<String>) {
        let mut host = Host::new();
        let damage = verify_below(&mut host, dir.path());
        (damage, host.log.ring.last(100).into_iter().map(|line| line.text).collect())
    }

    #[test]
    fn whole_files_boot() {
        let (damage, said) = verified(&initramfs());
        assert_eq!(damage.may_boot(), Ok(()));
        assert!(said[0].starts_with("own files: 5 with 192 KiB verified, 0 damaged"), "{said:?}");
        assert_eq!(said.len(), 1);
    }

    #[test]
    fn a_damaged_module_is_skipped_and_named() {
        let dir = initramfs();
        fs::write(dir.path().join("boot/modules/b.ko"), "module B").unwrap();
        let (damage, said) = verified(&dir);
        assert_eq!(damage.may_boot(), Ok(()));
        assert!(damage.has(Path::new("/boot/modules/b.ko")) && !damage.has(Path::new("/boot/modules/a.ko")));
        assert_eq!(said[0], "/boot/modules/b.ko has other contents than it was built with: it is not loaded");
    }

    #[test]
    fn a_damaged_root_or_list_holds_the_boot() {
        let dir = initramfs();
        let root = dir.path().join("root.squashfs");
        let mut bytes = fs::read(&root).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&root, &bytes).unwrap();
        let why = verified(&dir).0.may_boot().unwrap_err();
        assert_eq!(why, format!("/root.squashfs has other contents than it was built with; {NEXT_STEP}"));
        bytes.pop();
        fs::write(&root, &bytes).unwrap();
        fs::remove_file(dir.path().join("init")).unwrap();
        let why = verified(&dir).0.may_boot().unwrap_err();
        let expected = "/init cannot be read: No such file or directory; \
                        /root.squashfs has 196608 bytes in place of 196609";
        assert_eq!(why, format!("{expected}; {NEXT_STEP}"));

        let dir = initramfs();
        let list = below(dir.path(), LIST);
        let whole = fs::read(&list).unwrap();
        fs::write(&list, &whole[..whole.len() - 1]).unwrap();
        let why = verified(&dir).0.may_boot().unwrap_err();
        assert!(why.starts_with("/boot/files.list has a line"), "{why}");
    }

    #[test]
    fn a_missing_list_is_said_and_holds_nothing() {
        let dir = initramfs();
        fs::remove_file(below(dir.path(), LIST)).unwrap();
        let (damage, said) = verified(&dir);
        assert_eq!(damage.may_boot(), Ok(()));
        assert_eq!(said, ["own files are not verified: /boot/files.list: No such file or directory"]);
    }
}
