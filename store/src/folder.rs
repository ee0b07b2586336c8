//! Names of files: what a journal asks of a directory, and how a whole file comes to its name.
//!
//! ```text
//! place:  NAME.new made and locked --write, sync--> whole --rename--> NAME --sync directory--> durable
//!              |                                      |                 |
//!              +-- cut: leftover, removed later       +-- cut: same     +-- cut: the file before or the new one
//! ```

use crate::medium::{FileMedium, Growing, Medium};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Mode of files: some hold the node's secret.
const FILE_MODE: u32 = 0o600;
/// Ending of the name under which a file is prepared.
const TEMPORARY: &str = ".new";
/// Where the kernel gives random bytes.
const RANDOM: &str = "/dev/urandom";

/// Bytes of a file's random identity.
pub const IDENTITY_LEN: usize = 16;

/// A directory, as far as files in it come, change their names and go.
pub trait Folder {
    /// What is in it.
    type File: Growing;

    /// Opens and locks the file `name`; `None` when there is none. Its name is durable then.
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it.
    fn open(&mut self, name: &OsStr) -> io::Result<Option<Self::File>>;

    /// Whether there is a file of that name.
    fn has(&mut self, name: &OsStr) -> io::Result<bool>;

    /// Opens and locks the empty file `name`, made now or emptied. Its name is not durable before [`Folder::sync`].
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it; it was not touched then.
    fn create(&mut self, name: &OsStr) -> io::Result<Self::File>;

    /// Gives `from` the name `to`, which loses the file it had, both in one step.
    fn rename(&mut self, from: &OsStr, to: &OsStr) -> io::Result<()>;

    /// Removes `name`; one that is not there is removed already.
    fn remove(&mut self, name: &OsStr) -> io::Result<()>;

    /// Returns once all names are durable.
    fn sync(&mut self) -> io::Result<()>;

    /// Random bytes that no other file of this kind was given.
    fn identity(&mut self) -> io::Result<[u8; IDENTITY_LEN]>;
}

/// Whether [`place`] may take the name of a file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// One that is there is an error.
    Never,
    /// The caller holds the one that is there open and is its only writer.
    Own,
}

/// Why a file did not come to its place.
#[derive(Debug)]
pub struct PlaceError {
    pub source: io::Error,
    /// Whether the name still has the file it had, for certain. Otherwise it has that one or the new one, whole.
    pub unchanged: bool,
}

/// The name under which `name` is prepared.
pub fn temporary(name: &OsStr) -> OsString {
    let mut temporary = name.to_owned();
    temporary.push(TEMPORARY);
    temporary
}

/// Makes `name` a file with `content`, all of it or, after a power cut, as it was before: it is prepared beside its
/// place, synced, renamed, and the directory synced. What an interrupted one left there is written over.
///
/// # Errors
/// `AlreadyExists` and `WouldBlock` (another process is at it) change nothing; of others see [`PlaceError`].
pub fn place<F: Folder>(
    folder: &mut F,
    name: &OsStr,
    content: &[u8],
    replace: Replace,
) -> Result<F::File, PlaceError> {
    let temporary = temporary(name);
    let unchanged = |source| PlaceError { source, unchanged: true };
    let mut file = folder.create(&temporary).map_err(unchanged)?;
    let free = match replace {
        Replace::Own => Ok(()),
        Replace::Never => folder.has(name).and_then(|there| match there {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => Ok(()),
        }),
    };
    let prepared = free
        .and_then(|()| file.grow(content.len() as u64))
        .and_then(|()| file.write_at(0, content))
        .and_then(|()| file.sync());
    if let Err(source) = prepared {
        // A full disk gets its space back; the error to tell is the first one.
        let _ = folder.remove(&temporary);
        return Err(unchanged(source));
    }
    folder
        .rename(&temporary, name)
        .and_then(|()| folder.sync())
        .map_err(|source| PlaceError { source, unchanged: false })?;
    Ok(file)
}

/// A directory of the file system.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory of `path`, and the name in it.
    ///
    /// # Errors
    /// `InvalidInput` for a path that ends in no name.
    pub fn of(path: &Path) -> io::Result<(Directory, &OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok((Directory { path: directory.to_owned() }, name))
    }

    /// Locks `file` and makes sure that `path` is still its name: who held the lock before may have renamed another
    /// file there, and this one would be written without a name.
    fn lock(file: &File, path: &Path) -> io::Result<()> {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        let (held, named) = (file.metadata()?, fs::metadata(path));
        match named {
            Ok(named) if (held.dev(), held.ino()) == (named.dev(), named.ino()) => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Folder for Directory {
    type File = FileMedium;

    fn open(&mut self, name: &OsStr) -> io::Result<Option<FileMedium>> {
        let path = self.path.join(name);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => {
                Self::lock(&file, &path)?;
                self.sync()?;
                Ok(Some(FileMedium::locked(file)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn has(&mut self, name: &OsStr) -> io::Result<bool> {
        match fs::symlink_metadata(self.path.join(name)) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn create(&mut self, name: &OsStr) -> io::Result<FileMedium> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        // What a power cut left there is emptied only after the lock says that nobody is at work on it.
        let file = options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(&path)?;
        Self::lock(&file, &path)?;
        file.set_len(0)?;
        Ok(FileMedium::locked(file))
    }

    fn rename(&mut self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &OsStr) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn identity(&mut self) -> io::Result<[u8; IDENTITY_LEN]> {
        let mut identity = [0; IDENTITY_LEN];
        File::open(RANDOM)?.read_exact(&mut identity)?;
        Ok(identity)
    }
}
