//! What the daemon tells init: the host name over the control socket, and that it is ready.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use proto::control::{PACKET_MAX, Reply, Request};
use proto::envelope::{self, EnvelopeError};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long init may take to answer. It answers within milliseconds; the daemon must not wait for it much longer,
/// because netd waits for the daemon.
const DEADLINE: Duration = Duration::from_secs(2);

/// Why init did not set the host name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("init's control socket fails")]
    Socket(#[source] Errno),
    #[error("init does not answer within {DEADLINE:?}")]
    Deadline,
    #[error("init closed the connection")]
    Closed,
    #[error("init answered in a form this program does not know; are both of one release?")]
    Form(#[source] EnvelopeError),
    #[error("init refused: {0}")]
    Refused(String),
    #[error("init answered something else than what was asked; are both of one release?")]
    Mismatch,
}

/// Has init set the kernel's host name.
pub(crate) fn set_hostname(path: &Path, name: &str) -> Result<(), InitError> {
    let until = Instant::now() + DEADLINE;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(InitError::Socket)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path).map_err(InitError::Socket)?)
        .map_err(InitError::Socket)?;
    let request = envelope::encode(&Request::SetHostname { name: name.to_owned() });
    send(socket.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL).map_err(InitError::Socket)?;
    let mut packet = vec![0; PACKET_MAX];
    let len = loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that the last fraction of a millisecond is not spun away.
        let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(InitError::Deadline),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(InitError::Socket(e)),
        }
        match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(0) => return Err(InitError::Closed),
            Ok(len) => break len,
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => return Err(InitError::Socket(e)),
        }
    };
    match envelope::decode::<Reply>(&packet[..len]).map_err(InitError::Form)? {
        Reply::Accepted => Ok(()),
        Reply::Refused { reason } => Err(InitError::Refused(reason)),
        // Answers to what was not asked.
        _ => Err(InitError::Mismatch),
    }
}
