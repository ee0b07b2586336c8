//! The kernel interfaces without a safe wrapper: fork and the child's way to exec, ioctls, module loading.
//!
//! The only folder of this crate with unsafe code. Functions here do one call each and decide nothing; their errors
//! are the kernel's, callers name the object.
#![allow(unsafe_code)]

#[cfg(test)]
pub(crate) mod allocations;
pub(crate) mod block;
pub(crate) mod child;
pub(crate) mod confine;
pub(crate) mod crash;
pub(crate) mod landlock;
pub(crate) mod memfd;
pub(crate) mod net;
pub(crate) mod netlink;
pub(crate) mod own_pages;
pub(crate) mod random;
pub(crate) mod socket;
pub(crate) mod watchdog;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Puts errno texts where a technician reads them: `No such file or directory`, without Rust's `(os error 2)`.
pub(crate) fn errno_text(error: &io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |e| nix::errno::Errno::from_raw(e).desc().to_owned())
}

/// A module's file into the kernel, without parameters.
pub(crate) fn finit_module(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor lives through the call and the parameter string is a NUL-terminated constant.
    let r = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    check(r as c_int).map(drop)
}

/// Orphans below this process become its children although it is not PID 1.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes an integer.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Points standard input, output and error at `fd`, so that nothing init or a library prints can block on a console.
pub(crate) fn replace_stdio(fd: BorrowedFd<'_>) -> io::Result<()> {
    for target in 0..3 {
        // SAFETY: both are descriptor numbers; the standard ones belong to nobody in particular.
        check(unsafe { libc::dup2(fd.as_raw_fd(), target) })?;
    }
    Ok(())
}

/// Bytes that the terminal `fd` has still to send.
pub(crate) fn output_pending(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Takes ownership of a descriptor that a call has just returned as a number.
pub(crate) fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass what accept(2) returned a moment ago; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes ownership of a descriptor that this program was started with, and keeps it from the next one.
pub(crate) fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers only; a number that is not open is refused.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and whoever started this program gave it for the caller to own.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the next program have `fd`, or keeps it from it.
pub(crate) fn pass_on(fd: RawFd, pass: bool) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, if pass { 0 } else { libc::FD_CLOEXEC }) }).map(drop)
}
