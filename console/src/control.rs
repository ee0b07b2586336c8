//! Asks init: one request, one reply, one packet each, within a deadline.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use proto::control::{PACKET_MAX, Reply, Request};
use proto::envelope;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Why init gave no answer. Whether a request that changes something was carried out is unknown after `Deadline`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The socket is not there, or the connection broke.
    #[error("init does not answer on {path}: {what}")]
    Unreachable { path: PathBuf, what: String },
    /// The deadline passed.
    #[error("init does not answer on {path}: no answer within {limit:?}")]
    Deadline { path: PathBuf, limit: Duration },
    /// Its answer does not decode.
    #[error("init answered in a form this program does not know; are both of one release?")]
    Form(#[source] envelope::EnvelopeError),
    /// It said no; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// It answered something else than what was asked.
    #[error("init answered something else than what was asked; are both of one release?")]
    Mismatch,
}

/// Sends `request` to the init that listens at `path` and waits for its answer for at most `limit`.
pub(crate) fn ask(path: &Path, request: &Request, limit: Duration) -> Result<Reply, ControlError> {
    let deadline = Instant::now() + limit;
    let broken = |what: String| ControlError::Unreachable { path: path.to_owned(), what };
    let failed = |e: Errno| broken(e.desc().to_lowercase());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(failed)?;
    let address = UnixAddr::new(path).map_err(failed)?;
    connect(fd.as_raw_fd(), &address).map_err(failed)?;
    send(fd.as_raw_fd(), &envelope::encode(request), MsgFlags::MSG_NOSIGNAL).map_err(failed)?;

    let mut packet = vec![0; PACKET_MAX];
    let len = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last fraction of a millisecond is not spun away.
        let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(ControlError::Deadline { path: path.to_owned(), limit }),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(failed(e)),
        }
        match recv(fd.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(0) => return Err(broken("it closed the connection".to_owned())),
            Ok(len) => break len,
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => return Err(failed(e)),
        }
    };
    match envelope::decode::<Reply>(&packet[..len]).map_err(ControlError::Form)? {
        Reply::Refused { reason } => Err(ControlError::Refused(reason)),
        reply => Ok(reply),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::Dir;
    use nix::sys::socket::{Backlog, accept4, bind, listen};
    use std::thread::JoinHandle;

    /// An init that answers each connection's one request, as many times as there are replies, and then ends.
    /// An empty reply hangs up; `None` never answers and keeps the connection until the client gives up.
    pub(crate) fn fake_init(path: &Path, replies: Vec<Option<Vec<u8>>>) -> JoinHandle<Vec<Request>> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&fd, Backlog::new(4).unwrap()).unwrap();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            let mut requests = Vec::new();
            for reply in replies {
                // A raw descriptor, closed by hand: adopting it would need unsafe code.
                let client = accept4(fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap();
                let mut packet = vec![0; 1024];
                let len = recv(client, &mut packet, MsgFlags::empty()).unwrap();
                requests.push(envelope::decode(&packet[..len]).unwrap());
                if let Some(bytes) = reply.as_ref().filter(|bytes| !bytes.is_empty()) {
                    send(client, bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
                }
                if reply.is_none() {
                    held.push(client);
                } else {
                    nix::unistd::close(client).unwrap();
                }
            }
            for client in held {
                // Ends when the client has given up.
                assert_eq!(recv(client, &mut [0; 16], MsgFlags::empty()), Ok(0));
                nix::unistd::close(client).unwrap();
            }
            requests
        })
    }

    const LIMIT: Duration = Duration::from_millis(300);

    #[test]
    fn answers_and_their_absence() {
        let dir = Dir::new();
        let path = dir.path("init.sock");
        let at = path.display().to_string();
        let ask = |request| ask(&path, &request, LIMIT).map_err(|e| e.to_string());
        assert_eq!(
            ask(Request::Services),
            Err(format!("init does not answer on {at}: no such file or directory"))
        );
        let refused = Reply::Refused { reason: "service x is not known".into() };
        let replies = vec![
            Some(envelope::encode(&Reply::Services(Vec::new()))),
            Some(envelope::encode(&refused)),
            Some(b"nonsense".to_vec()),
            Some(Vec::new()),
            None,
        ];
        let init = fake_init(&path, replies);
        assert_eq!(ask(Request::Services), Ok(Reply::Services(Vec::new())));
        assert_eq!(ask(Request::Restart { service: "x".into() }), Err("service x is not known".into()));
        assert!(ask(Request::System).unwrap_err().contains("are both of one release?"));
        assert_eq!(
            ask(Request::System),
            Err(format!("init does not answer on {at}: it closed the connection"))
        );
        assert_eq!(
            ask(Request::Reboot),
            Err(format!("init does not answer on {at}: no answer within 300ms"))
        );
        let seen = init.join().unwrap();
        assert_eq!(seen[1], Request::Restart { service: "x".into() });
        assert_eq!(ask(Request::Services), Err(format!("init does not answer on {at}: connection refused")));
    }
}
