//! Landlock: a process gives up all paths but some.
//!
//! The `landlock` crate is not used: it opens paths and builds rules with allocations, and rules must be made in the
//! child here, because only there the paths mean what the service will see, and a lookup on a dead disk must not
//! stop PID 1. What remains are three system calls.
//! Source: Documentation/userspace-api/landlock.rst, include/uapi/linux/landlock.h.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::c_int;

use super::check;

/// Every right on files of Landlock's version 5 (Linux 6.10), which is the least this asks for: older ones let
/// files be truncated or devices be controlled. The same rights everywhere: a rule does not depend on the kernel.
const HANDLED: u64 = (1 << 16) - 1;
const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// What can be done to a file that is no directory.
const ON_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: c_int = 1;

/// What a path may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To execute and nothing else.
    Execute,
    /// To read, to list and to execute.
    Read,
    /// All, except to make device nodes.
    Write,
}

impl Access {
    fn rights(self) -> u64 {
        match self {
            Access::Execute => EXECUTE,
            Access::Read => EXECUTE | READ_FILE | READ_DIR,
            Access::Write => HANDLED & !(MAKE_CHAR | MAKE_BLOCK),
        }
    }
}

/// `struct landlock_ruleset_attr` of version 1: what version 5 has more is about the network.
#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

/// Rules that are not in force yet. All functions are async-signal-safe and allocate nothing.
pub(crate) struct Ruleset(OwnedFd);

impl Ruleset {
    /// No path is allowed.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` when its Landlock is older than version 5, `ENOSYS` and `EOPNOTSUPP` without any.
    pub(crate) fn new() -> io::Result<Ruleset> {
        let attr = RulesetAttr { handled_access_fs: HANDLED };
        // SAFETY: the kernel reads as many bytes as the structure has.
        let fd = unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size_of::<RulesetAttr>(), 0)
        };
        let fd = check(fd as c_int)?;
        // SAFETY: the kernel has just made this descriptor, close-on-exec, for us alone.
        Ok(Ruleset(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Allows `path` and all below it.
    ///
    /// # Errors
    /// The kernel's; `ENOENT` when there is no such path.
    pub(crate) fn allow(&self, path: &CStr, access: Access) -> io::Result<()> {
        // SAFETY: the path is NUL-terminated.
        let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })?;
        // SAFETY: just opened, nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an all-zero stat is valid; fstat fills it.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to one stat.
        check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) })?;
        let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let rights = if is_directory { access.rights() } else { access.rights() & ON_FILES };
        let attr = PathBeneathAttr { allowed_access: rights, parent_fd: fd.as_raw_fd() };
        // SAFETY: the kernel reads one packed structure; both descriptors are open.
        let r = unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, self.0.as_raw_fd(), PATH_BENEATH, &raw const attr, 0)
        };
        check(r as c_int).map(drop)
    }

    /// Puts the rules in force for this process and all it starts. Needs `no_new_privs`.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn restrict(&self) -> io::Result<()> {
        // SAFETY: integers only.
        let r = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) };
        check(r as c_int).map(drop)
    }
}
