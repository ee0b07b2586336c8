//! The kernel's raw interface: what is prepared in a child between fork and exec, waiting for a child with a
//! deadline.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid, setsid};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Lets the child inherit `fds` under the numbers they have here. The parent's copies close with `command`.
fn keep_open(fds: &[OwnedFd]) -> io::Result<()> {
    for fd in fds {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    Ok(())
}

/// The child is killed when the *thread* that spawns it ends, for whatever reason: spawn from one that lives as
/// long as the child should. It inherits `fds` under their numbers and starts with no signal blocked.
pub(crate) fn bind_to_thread(command: &mut Command, fds: Vec<OwnedFd>) {
    let parent = Pid::this();
    // SAFETY: runs in the forked child before exec; makes only system calls, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            SigSet::empty().thread_set_mask()?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above: then nobody would ever send the signal.
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            keep_open(&fds)
        });
    }
}

/// The child leads a session of its own, so that the terminal's signals do not reach it, and starts with no signal
/// blocked.
pub(crate) fn own_session(command: &mut Command) {
    // SAFETY: as above.
    unsafe {
        command.pre_exec(|| {
            SigSet::empty().thread_set_mask()?;
            setsid()?;
            Ok(())
        });
    }
}

/// The child leads a process group of its own (so that it can be ended with all its children) and starts with no
/// signal blocked.
pub(crate) fn own_group(command: &mut Command) {
    command.process_group(0);
    // SAFETY: as above.
    unsafe {
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
}

/// What a wait for a child ended with.
#[derive(Debug)]
pub(crate) enum Waited {
    /// The child ended and is reaped.
    Ended(std::process::ExitStatus),
    /// It still runs at the deadline.
    Late,
    /// It still runs; the other descriptor has something to read.
    Other,
}

/// Waits for `child` to end, at most `limit`, or until `other` is readable.
pub(crate) fn wait_child(
    child: &mut Child,
    limit: Duration,
    other: Option<BorrowedFd<'_>>,
) -> io::Result<Waited> {
    if let Some(status) = child.try_wait()? {
        return Ok(Waited::Ended(status));
    }
    let pid = i32::try_from(child.id()).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: pidfd_open takes two integers; the child is not reaped yet, so the number is its own.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let number = i32::try_from(number).ok().filter(|n| *n >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a descriptor the kernel has just made for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(number) };
    let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    fds.extend(other.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return Ok(Waited::Late),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(child.try_wait()?.map_or(Waited::Other, Waited::Ended)),
            Err(errno) => return Err(errno.into()),
        }
    }
}
