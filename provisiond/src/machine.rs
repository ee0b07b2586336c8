//! What the running system says of itself: boot, release, and files of its that are read up to a bound.

use proto::record::{BOOT_ID_LEN, VERSION_MAX};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use tracing::warn;

/// Bytes of the release file that are read.
const RELEASE_MAX: usize = 4096;

/// The kernel's id of this boot; empty, with a line in the log about the cause, when there is none.
pub(crate) fn boot_id(path: &Path) -> String {
    // The line end, and one byte more that tells a longer text.
    match read_text(path, BOOT_ID_LEN + 2) {
        Ok(text) if (1..=BOOT_ID_LEN).contains(&text.trim().len()) => text.trim().to_owned(),
        Ok(text) => {
            warn!("{} holds no boot id but {:?}", path.display(), text.trim());
            String::new()
        }
        Err(e) => {
            warn!("cannot read {}: {e}", path.display());
            String::new()
        }
    }
}

/// Version of the running release: what its release file says, else this program's own.
pub(crate) fn version(path: &Path) -> String {
    let text = read_text(path, RELEASE_MAX).unwrap_or_default();
    let table: toml::Table = text.parse().unwrap_or_default();
    let version = table.get("version").and_then(|v| v.as_str()).unwrap_or(env!("CARGO_PKG_VERSION"));
    // A character has at most four bytes.
    version.chars().filter(|c| !c.is_control()).take(VERSION_MAX / 4).collect()
}

/// The first `max` bytes of a file.
pub(crate) fn read_bounded(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_text(path: &Path, max: usize) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read_bounded(path, max)?).into_owned())
}
