//! What the kernel left in pstore when it panicked: read, kept on STATE, cleared.
//!
//! efi-pstore keeps a panic as several files, each a piece of the kernel's log behind a line like `Panic#1 Part3`;
//! part 1 is the end of the log. Firmware has little room for them: what is kept elsewhere is removed at once.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::sys;

/// Where the kernel shows them.
pub(crate) const DIRECTORY: &str = "/sys/fs/pstore";
/// The file below init's directory on STATE with the text of the last panic.
const FILE: &str = "panic";
/// Files looked at; a panic makes some ten.
const FILES_MAX: usize = 128;
/// Bytes read of one; the kernel's are below 2 KiB compressed.
const PIECE_MAX: u64 = 64 << 10;
/// Bytes of a panic that are kept: the end of the log counts.
const TEXT_MAX: usize = 64 << 10;

/// One piece.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// Its first line without the part's number, like `Panic#1`; orders what belongs together.
    what: String,
    part: u32,
    text: String,
}

/// Reads a file's text. `None` for what is no piece of a panic or an oops.
fn piece(text: &str) -> Option<Piece> {
    let (head, rest) = text.split_once('\n')?;
    let (what, part) = head.trim().rsplit_once(" Part")?;
    let known = ["Panic#", "Oops#", "Emergency#"].iter().any(|k| what.starts_with(k));
    known.then_some(())?;
    Some(Piece { what: what.to_owned(), part: part.trim().parse().ok()?, text: rest.to_owned() })
}

/// The text of the last event, its pieces put together, and the line that says what happened. `None` without pieces.
fn assemble(mut pieces: Vec<Piece>) -> Option<(String, String)> {
    // An oops that became a panic is there twice; the panic is the later one and has the log up to its end.
    let rank = |p: &Piece| {
        let number = p.what.split_once('#').and_then(|(_, n)| n.parse::<u32>().ok());
        (p.what.starts_with("Panic"), number.unwrap_or(0))
    };
    let last = pieces.iter().map(rank).max()?;
    pieces.retain(|p| rank(p) == last);
    pieces.sort_by_key(|p| std::cmp::Reverse(p.part));
    let text: String = pieces.iter().map(|p| p.text.as_str()).collect();
    let from = text.len().saturating_sub(TEXT_MAX);
    let from = (from..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    let text = text[from..].to_owned();
    let marks = ["Kernel panic", "BUG:", "Oops:", "Unable to handle", "general protection"];
    let line = marks.iter().find_map(|mark| text.lines().find(|l| l.contains(mark)));
    let line = line.or(text.lines().rfind(|l| !l.trim().is_empty())).unwrap_or_default();
    // Without the level and the time in front: `<0>[   12.3] `.
    let line = line.rsplit_once("] ").filter(|(time, _)| time.len() < 24).map_or(line, |(_, said)| said);
    Some((line.trim().to_owned(), text))
}

/// Reads what is in `from` and writes the text of the last panic to `to`; the panic's line. `None` when there is
/// nothing. Blocks as long as firmware and disk do.
///
/// # Errors
/// Why it could not be kept; nothing was changed in `from`.
pub(crate) fn keep(from: &Path, to: &Path) -> Result<Option<String>, String> {
    let pieces = files(from).iter().filter_map(|path| piece(&read(path).ok()?)).collect();
    let Some((line, text)) = assemble(pieces) else { return Ok(None) };
    write(&to.join(FILE), &text).map_err(|e| format!("the panic cannot be kept: {}", sys::errno_text(&e)))?;
    Ok(Some(line))
}

/// Removes what is in `from`, read or not.
///
/// # Errors
/// The first file that could not be removed.
pub(crate) fn clear(from: &Path) -> Result<(), String> {
    let remove = |path: PathBuf| {
        fs::remove_file(&path).map_err(|e| format!("{}: {}", path.display(), sys::errno_text(&e)))
    };
    // All are tried, also behind one that stays.
    files(from).into_iter().map(remove).fold(Ok(()), Result::and)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().take(FILES_MAX);
    entries.map(|e| e.path()).collect()
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(PIECE_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testdir::TestDir;

    fn put(dir: &TestDir, name: &str, text: &str) {
        fs::write(dir.path().join(name), text).unwrap();
    }

    #[test]
    fn a_panic_is_put_together_kept_and_cleared() {
        let (from, to) = (TestDir::new(), TestDir::new());
        put(&from, "dmesg-efi_pstore-170101001001", "Oops#1 Part1\n<1>[    3.9] BUG: kernel NULL pointer\n");
        put(
            &from,
            "dmesg-efi_pstore-170102001001",
            "Panic#2 Part1\n<0>[    4.1] Kernel panic - not syncing: x\n",
        );
        put(&from, "dmesg-efi_pstore-170103001001", "Panic#2 Part2\n<1>[    3.9] BUG: kernel NULL pointer\n");
        put(&from, "dmesg-efi_pstore-170104001001.enc.z", "\u{1}\u{2}");
        put(&from, "console-ramoops-0", "hello\nworld Part1\n");
        let line = keep(from.path(), to.path()).unwrap();
        assert_eq!(line.as_deref(), Some("Kernel panic - not syncing: x"));
        let kept = fs::read_to_string(to.path().join("panic")).unwrap();
        assert_eq!(
            kept,
            "<1>[    3.9] BUG: kernel NULL pointer\n<0>[    4.1] Kernel panic - not syncing: x\n"
        );
        clear(from.path()).unwrap();
        assert_eq!(files(from.path()), Vec::<PathBuf>::new());
        assert_eq!(keep(from.path(), to.path()), Ok(None));
        assert!(to.path().join("panic").exists(), "the last one is kept until there is another");
    }

    #[test]
    fn what_cannot_be_kept_is_not_cleared_and_nothing_grows() {
        let (from, to) = (TestDir::new(), TestDir::new());
        put(&from, "a", &format!("Panic#1 Part1\n{}\nthe end\n", "x".repeat(100_000)));
        fs::create_dir(to.path().join("panic")).unwrap();
        let error = keep(from.path(), to.path()).unwrap_err();
        assert!(error.starts_with("the panic cannot be kept: "), "{error}");
        assert_eq!(files(from.path()).len(), 1);
        let text = "é".repeat(TEXT_MAX);
        let pieces = vec![Piece { what: "Panic#1".into(), part: 1, text: format!("{text}\n[ 1] end\n") }];
        let (line, kept) = assemble(pieces).unwrap();
        assert_eq!((line.as_str(), kept.len() <= TEXT_MAX), ("end", true));
        assert_eq!(keep(Path::new("/nowhere"), to.path()), Ok(None));
    }
}
