//! The few things a record or a journal asks of a disk, and files as one.

use crate::folder::{Directory, Folder, Replace, place};
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

/// Bytes that can be read and overwritten in place.
pub trait Medium {
    /// Its size in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from `offset`; fewer bytes than that are an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`, within its size. Not durable before [`Medium::sync`].
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns once everything written is durable, its size included.
    fn sync(&mut self) -> io::Result<()>;
}

/// A medium that can be made longer.
pub trait Growing: Medium {
    /// Makes it `len` bytes long and sets the disk's room aside, so that later writes there cannot find the disk full.
    /// New bytes read as zeros; after a power cut before the next sync they may be anything. Never shortens.
    ///
    /// # Errors
    /// `StorageFull` when there is no room: what was there before is as it was.
    fn grow(&mut self, len: u64) -> io::Result<()>;
}

/// Mode of directories made for records.
const DIR_MODE: u32 = 0o700;

/// A file, locked against a second writer for as long as it is open.
#[derive(Debug)]
pub struct FileMedium {
    file: File,
}

impl FileMedium {
    /// Takes `file`, which its opener has locked.
    pub(crate) fn locked(file: File) -> FileMedium {
        FileMedium { file }
    }

    /// Opens and locks `path`; `None` when there is no such file. Its name is durable then, also when its maker was
    /// killed before it had synced the directory; of its content see [`Medium::sync`].
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it; otherwise what the kernel says.
    pub fn open(path: &Path) -> io::Result<Option<FileMedium>> {
        let (mut directory, name) = Directory::of(path)?;
        directory.open(name)
    }

    /// Opens `path` for reading only, without a lock: whoever holds it may go on writing. Writing to it fails.
    pub fn open_read_only(path: &Path) -> io::Result<Option<FileMedium>> {
        match OpenOptions::new().read(true).open(path) {
            Ok(file) => Ok(Some(FileMedium { file })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes the file `path` with `content`, all of it or, after a power cut, nothing: see [`place`]. The medium is as
    /// long as `content`.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one; nothing was changed then. After any other error the file may be there whole.
    pub fn create(path: &Path, content: &[u8]) -> io::Result<FileMedium> {
        let (mut directory, name) = Directory::of(path)?;
        place(&mut directory, name, content, Replace::Never).map_err(|e| e.source)
    }
}

impl Medium for FileMedium {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        // After a failed write the kernel goes on showing the bytes that it could not write, and reports the failure
        // once only. Forgetting its copy, the next reader sees what the disk has.
        Ok(posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }
}

impl Growing for FileMedium {
    fn grow(&mut self, len: u64) -> io::Result<()> {
        let present = self.len()?;
        if len <= present {
            return Ok(());
        }
        let signed = |n: u64| i64::try_from(n).map_err(io::Error::other);
        match fallocate(&self.file, FallocateFlags::empty(), signed(present)?, signed(len - present)?) {
            // A file system that cannot set room aside: the writes to come will say so when it is full.
            Err(nix::errno::Errno::EOPNOTSUPP) => self.file.set_len(len),
            other => Ok(other?),
        }
    }
}

/// Makes `path` and what is missing above it (mode 0700), each durable in its parent before the next is made.
pub fn create_dir_durably(path: &Path) -> io::Result<()> {
    let mut directories: Vec<&Path> = Vec::new();
    for directory in path.ancestors().filter(|p| !p.as_os_str().is_empty()) {
        directories.push(directory);
        // The first one that is there is synced, too: its maker may have been killed before it had done so.
        if directory.is_dir() {
            break;
        }
    }
    for directory in directories.into_iter().rev() {
        match DirBuilder::new().mode(DIR_MODE).create(directory) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            other => other?,
        }
        // The root has no name and no parent.
        let Some(parent) = directory.parent() else { continue };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}
