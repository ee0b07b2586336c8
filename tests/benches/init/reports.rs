//! Where the services of all subjects report: one datagram socket, the clock in it, the sender's number from the
//! kernel.
//!
//! `SCM_CREDENTIALS` (unix(7)) carries the sender's process number translated to the receiver's PID namespace, which
//! is what a killer outside needs and the service inside cannot know.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind,
    recvmsg, sendto, setsockopt, socket, sockopt,
};
use nix::time::{ClockId, clock_gettime};

/// The number under which the moment before the supervisor's exec is reported.
pub(crate) const EXEC: u64 = u64::MAX;
/// Clock and number.
const REPORT_LEN: usize = 16;

/// CLOCK_MONOTONIC in nanoseconds: the same clock in every namespace (time namespaces are not used).
pub(crate) fn now() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

/// One report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// When the sender read the clock, nanoseconds.
    pub(crate) at: i64,
    /// Which service, or [`EXEC`].
    pub(crate) number: u64,
    /// The sender's process number on this side.
    pub(crate) pid: i32,
}

/// The receiving end.
pub(crate) struct Reports(OwnedFd);

impl Reports {
    /// A socket at `path`, which must not exist.
    pub(crate) fn bind(path: &Path) -> io::Result<Reports> {
        let s = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&s, sockopt::PassCred, &true)?;
        bind(s.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Reports(s))
    }

    /// The next report, or `None` when none comes within `limit`.
    pub(crate) fn next(&self, limit: Duration) -> io::Result<Option<Report>> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, timeout)? == 0 {
            return Ok(None);
        }
        let mut bytes = [0; REPORT_LEN];
        let mut space = nix::cmsg_space!(UnixCredentials);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
        let length = message.bytes;
        let sender = message.cmsgs()?.find_map(|m| match m {
            ControlMessageOwned::ScmCredentials(who) => Some(who.pid()),
            _ => None,
        });
        let (Some(pid), REPORT_LEN) = (sender, length) else {
            return Err(io::Error::other(format!("a report of {length} bytes, or without its sender")));
        };
        let (at, number) = bytes.split_at(8);
        let word = |half: &[u8]| half.try_into().map(u64::from_ne_bytes).unwrap_or_default();
        Ok(Some(Report { at: word(at).cast_signed(), number: word(number), pid }))
    }
}

/// Reports this moment as [`EXEC`] to the socket at `path`.
pub(crate) fn report_exec(path: &Path) -> io::Result<()> {
    let s = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut bytes = [0; REPORT_LEN];
    let (at, number) = bytes.split_at_mut(8);
    at.copy_from_slice(&now().to_ne_bytes());
    number.copy_from_slice(&EXEC.to_ne_bytes());
    sendto(s.as_raw_fd(), &bytes, &UnixAddr::new(path)?, MsgFlags::empty())?;
    Ok(())
}
