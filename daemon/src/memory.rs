//! Memory that outlives this daemon: a sealed memfd that init keeps and passes to the next life.
//!
//! Its contents are the daemon's business; a life that died while it was writing leaves a torn state behind, so give
//! every part a checksum.

use crate::control::{Connection, InitError, PATIENCE, accepted};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proto::control::{MEMORY_MAX, Request};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Neither shorter nor longer: a mapping of it stays good whatever another holder does.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// What the former life left, found by the variable `STORE_FD`; `None` when there is nothing.
pub fn inherited() -> Option<File> {
    let number: u32 = std::env::var("STORE_FD").ok()?.parse().ok()?;
    // Through /proc, so that a number from the environment need not be believed to be an open descriptor.
    let file = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{number}")).ok()?;
    // In the first life /dev/null stands there: it has no seals.
    let seals = fcntl(file.as_fd(), FcntlArg::F_GET_SEALS).ok()?;
    SealFlag::from_bits_retain(seals).contains(SEALS).then_some(file)
}

/// New memory of `size` bytes, all zero, sealed as init wants it. At most [`MEMORY_MAX`] bytes are kept.
///
/// # Errors
/// The kernel's reason.
pub fn new(size: u64) -> io::Result<File> {
    if size > MEMORY_MAX {
        return Err(Errno::EFBIG.into());
    }
    let file = File::from(memfd_create("kept", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.set_len(size)?;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file)
}

/// Has init at `path` keep `memory`, instead of what it kept before.
///
/// # Errors
/// [`InitError`]; what was kept before stays.
pub fn keep(path: &Path, memory: &File) -> Result<(), InitError> {
    accepted(Connection::open(path, PATIENCE)?.ask_with(&Request::KeepMemory, memory.as_fd())?)
}
