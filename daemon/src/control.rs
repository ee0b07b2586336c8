//! A connection to init's control socket (`proto::control`), for what must not go through a runtime.
//!
//! Every call is bounded, by [`PATIENCE`] unless the caller says otherwise: init answers within a turn of its loop, or
//! it is not there any more.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use proto::control::{PACKET_MAX, Reply, Request};
use proto::envelope::{self, EnvelopeError};
use std::cell::Cell;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// Why init did not do it.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The socket cannot be reached, init has closed the connection, or, with `EAGAIN`, it takes no more for now. Whether
    /// it did what was asked is unknown; everything here is safe to ask again.
    #[error("init cannot be asked: {}", .0.desc())]
    Connection(Errno),
    /// It may do what was asked later, before all that is asked later over the same connection.
    #[error("init does not answer in time")]
    Late,
    /// Nothing has changed.
    #[error("init refuses: {0}")]
    Refused(String),
    /// An answer that is none, or to another question: init is of another release.
    #[error("init's answer is not understood")]
    Answer(#[source] Option<EnvelopeError>),
}

impl From<Errno> for InitError {
    fn from(errno: Errno) -> InitError {
        InitError::Connection(errno)
    }
}

/// One connection. It may be used on after an answer that did not come in time: requests are served in their order, and
/// what comes late is told from what was asked last.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// Answers that did not come in time and are still to come.
    owed: Cell<u32>,
}

impl Connection {
    /// Connects; this and each call after it may take as long as `patience`.
    pub(crate) fn open(path: &Path, patience: Duration) -> Result<Connection, InitError> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        // 0 would mean without end.
        let patience = TimeVal::microseconds(i64::try_from(patience.as_micros()).unwrap_or(i64::MAX).max(1));
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        setsockopt(&socket, sockopt::SendTimeout, &patience)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Connection { socket, owed: Cell::new(0) })
    }

    /// Asks and waits for the answer.
    pub(crate) fn ask(&self, request: &Request) -> Result<Reply, InitError> {
        send(self.socket.as_raw_fd(), &envelope::encode(request), MsgFlags::MSG_NOSIGNAL)?;
        self.answer()
    }

    /// The same with a descriptor.
    pub(crate) fn ask_with(&self, request: &Request, fd: BorrowedFd<'_>) -> Result<Reply, InitError> {
        let bytes = envelope::encode(request);
        let numbers = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let part = [IoSlice::new(&bytes)];
        sendmsg::<()>(self.socket.as_raw_fd(), &part, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        self.answer()
    }

    /// Sends what has no answer, without waiting for room.
    pub(crate) fn say(&self, request: &Request) -> Result<(), InitError> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(self.socket.as_raw_fd(), &envelope::encode(request), flags)?;
        Ok(())
    }

    fn answer(&self) -> Result<Reply, InitError> {
        // Counted until it is there: the next answer is not taken for this one.
        self.owed.set(self.owed.get() + 1);
        let mut buffer = vec![0; PACKET_MAX];
        loop {
            let count = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(InitError::Late),
                Ok(0) => return Err(InitError::Connection(Errno::ECONNRESET)),
                result => result?,
            };
            self.owed.set(self.owed.get() - 1);
            if self.owed.get() > 0 {
                continue;
            }
            return match envelope::decode(buffer.get(..count).unwrap_or_default()) {
                Ok(Reply::Refused { reason }) => Err(InitError::Refused(reason)),
                Ok(reply) => Ok(reply),
                Err(error) => Err(InitError::Answer(Some(error))),
            };
        }
    }
}

/// An answer that says no more than yes.
pub(crate) fn accepted(reply: Reply) -> Result<(), InitError> {
    match reply {
        Reply::Accepted => Ok(()),
        _ => Err(InitError::Answer(None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, accept, bind, listen};
    use std::sync::mpsc;

    /// An init that answers the first request only when it is told to, with a refusal, and the next ones at once.
    fn late_init(path: &Path, go: mpsc::Receiver<()>) -> std::thread::JoinHandle<()> {
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        std::thread::spawn(move || {
            let client = accept(listener.as_raw_fd()).unwrap();
            let mut buffer = [0; 1024];
            for reply in [Reply::Refused { reason: "late".into() }, Reply::Accepted] {
                assert_ne!(recv(client, &mut buffer, MsgFlags::empty()), Ok(0));
                if reply != Reply::Accepted {
                    go.recv().unwrap();
                }
                send(client, &envelope::encode(&reply), MsgFlags::MSG_NOSIGNAL).unwrap();
            }
            nix::unistd::close(client).unwrap();
        })
    }

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_one() {
        let path = std::env::temp_dir().join(format!("evenkeel-daemon-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let (tell, go) = mpsc::channel();
        let init = late_init(&path, go);
        let connection = Connection::open(&path, Duration::from_millis(20)).unwrap();
        let late = connection.ask(&Request::FenceState);
        assert!(matches!(late, Err(InitError::Late)), "{late:?}");
        setsockopt(&connection.socket, sockopt::ReceiveTimeout, &TimeVal::seconds(30)).unwrap();
        tell.send(()).unwrap();
        let reply = connection.ask(&Request::FenceAdopt { until_ns: 1 });
        assert!(matches!(reply, Ok(Reply::Accepted)), "{reply:?}");
        init.join().unwrap();
        let gone = connection.ask(&Request::FenceState);
        assert!(matches!(gone, Err(InitError::Connection(_))), "{gone:?}");
        std::fs::remove_file(path).unwrap();
    }
}
