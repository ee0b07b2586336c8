//! Hands netd its part: a file that is there whole or not at all, readable by root only.

use proto::envelope;
use proto::part::NetdPart;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a part could not be written. An older part is still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot write netd's part {path}")]
pub(crate) struct PartError {
    path: PathBuf,
    source: io::Error,
}

/// Writes netd's part into `directory`, which is made when missing.
pub(crate) fn write_netd(directory: &Path, part: &NetdPart) -> Result<(), PartError> {
    let path = directory.join("netd");
    replace(directory, &path, &envelope::encode(part)).map_err(|source| PartError { path, source })
}

/// Written beside its place and renamed. Parts live in memory: nothing to sync.
fn replace(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Made anew with its mode: at no instant can others read the seed in it.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}
