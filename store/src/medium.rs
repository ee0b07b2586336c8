//! The few things a record asks of a disk, and files as one.

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

/// A fixed number of bytes that can be read and overwritten in place. It never grows.
pub trait Medium {
    /// Its size in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` from `offset`; fewer bytes than that are an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`. Not durable before [`Medium::sync`].
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns once everything written is durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// Mode of record files: some hold the node's secret.
const FILE_MODE: u32 = 0o600;
/// Mode of directories made for records.
const DIR_MODE: u32 = 0o700;
/// Ending of the name under which a file is prepared.
const TEMPORARY: &str = "new";

/// A file, locked against a second writer for as long as it is open.
#[derive(Debug)]
pub struct FileMedium {
    file: File,
}

impl FileMedium {
    /// Opens and locks `path`; `None` when there is no such file. Its name is durable then, also when its maker was
    /// killed before it had synced the directory; of its content see [`Medium::sync`].
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it; otherwise what the kernel says.
    pub fn open(path: &Path) -> io::Result<Option<FileMedium>> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => {
                lock(&file)?;
                sync_dir_of(path)?;
                Ok(Some(FileMedium { file }))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes the file `path` with `content`, all of it or, after a power cut, nothing: it is prepared beside its place,
    /// synced, renamed, and the directory synced. The medium is as long as `content`.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one; nothing was changed then. After any other error the file may be there whole.
    pub fn create(path: &Path, content: &[u8]) -> io::Result<FileMedium> {
        let temporary = path.with_extension(TEMPORARY);
        let mut options = OpenOptions::new();
        // What a power cut left there is written over only after the lock says that nobody is at work on it.
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(&temporary)?;
        lock(&file)?;
        if fs::symlink_metadata(path).is_ok() {
            // Nobody else may want the prepared file: who made the other one has renamed it away.
            let _ = fs::remove_file(&temporary);
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let prepared =
            file.set_len(0).and_then(|()| file.write_all_at(content, 0)).and_then(|()| file.sync_all());
        if let Err(e) = prepared {
            // A full disk gets its space back; the error to tell is the first one.
            let _ = fs::remove_file(&temporary);
            return Err(e);
        }
        fs::rename(&temporary, path)?;
        sync_dir_of(path)?;
        Ok(FileMedium { file })
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

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        TryLockError::Error(e) => e,
    })
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
        sync_dir_of(directory)?;
    }
    Ok(())
}

/// Makes the name of `path` durable in its directory.
fn sync_dir_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}
