//! Files of one block on STATE that are overwritten in place: their space is taken once, so that a full disk cannot
//! keep anything from being written, and one sector of a disk is written whole or not at all.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of the file: one block of the file system, one page of the kernel.
const BLOCK: usize = 4096;
/// Bytes that a disk writes whole, and all of the file that is used.
pub(crate) const SECTOR: usize = 512;

/// Opens the file for reading and for writes that return when they are on the disk; makes it when it is not there.
/// Its block is taken and written then.
///
/// # Errors
/// The kernel's. A file that was being made may be there; it holds nothing.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_DSYNC);
    let file = options.open(path)?;
    if file.metadata()?.len() < BLOCK as u64 {
        // Written and not only allocated: turning an unwritten block into a written one is a change of the file system.
        file.write_all_at(&[0; BLOCK], 0)?;
        file.sync_all()?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
    }
    Ok(file)
}

/// The sector that is used.
///
/// # Errors
/// The kernel's, or that the file is shorter.
pub(crate) fn read(file: &File) -> io::Result<[u8; SECTOR]> {
    let mut sector = [0; SECTOR];
    file.read_exact_at(&mut sector, 0)?;
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testdir::TestDir;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_block_is_taken_once_and_kept() {
        let dir = TestDir::new();
        let path = dir.path().join("block");
        let file = open(&path).unwrap();
        assert_eq!(read(&file).unwrap(), [0; SECTOR]);
        file.write_all_at(b"mine", 0).unwrap();
        let taken = file.metadata().unwrap();
        assert_eq!((taken.len(), taken.mode() & 0o777), (4096, 0o600));
        let again = open(&path).unwrap();
        assert_eq!(read(&again).unwrap()[..4], *b"mine");
        assert_eq!(again.metadata().unwrap().ino(), taken.ino());
    }
}
