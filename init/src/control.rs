//! The control socket: packets in, packets out, nothing decided here.
//!
//! Every client is bounded in time and their number is bounded; a reply that a client does not take is dropped with
//! its client, so that nobody outside can make PID 1 wait or grow.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen, recv,
    send, socket,
};
use proto::control::{Reply, Request};
use proto::envelope::{self, HEADER_LEN, Message};
use proto::time::Time;

/// Connections at one time: a console, provisiond and a few tools.
const CLIENTS_MAX: usize = 16;
/// A client that says nothing for this long is closed.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The listening socket and its clients.
pub(crate) struct Server {
    listener: OwnedFd,
    clients: BTreeMap<u64, Client>,
    next: u64,
}

struct Client {
    socket: OwnedFd,
    /// When to close it.
    until: Time,
}

impl Server {
    /// Listens at `path`, for uid 0 only.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(crate) fn listen(path: &Path) -> io::Result<Server> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&listener, Backlog::new(16)?)?;
        Ok(Server { listener, clients: BTreeMap::new(), next: 0 })
    }

    /// The listening descriptor.
    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Every client's number and descriptor.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.clients.iter().map(|(id, c)| (*id, c.socket.as_fd()))
    }

    /// Takes a new client, if there is one, its uid is 0 and there is room.
    pub(crate) fn accept(&mut self, now: Time) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) else { return };
        let socket = crate::sys::owned(fd);
        let refusal = match getsockopt(&socket, PeerCredentials) {
            Ok(peer) if peer.uid() != 0 => Some("only uid 0 may talk to init".to_owned()),
            Ok(_) if self.clients.len() >= CLIENTS_MAX => {
                Some(format!("init serves {CLIENTS_MAX} clients at a time; try again in a few seconds"))
            }
            Ok(_) => None,
            Err(errno) => Some(format!("caller unknown: {}", errno.desc())),
        };
        if let Some(reason) = refusal {
            deliver(&socket, &Reply::Refused { reason });
            return;
        }
        self.clients.insert(self.next, Client { socket, until: now + SILENCE_MAX });
        self.next = self.next.wrapping_add(1);
    }

    /// The next request of client `id`. A packet that is none is answered here and ends the connection.
    pub(crate) fn receive(&mut self, now: Time, id: u64) -> Option<Request> {
        let client = self.clients.get_mut(&id)?;
        // One byte more than the longest request: a longer packet shows.
        let mut buffer = [0; HEADER_LEN + Request::MAX_LEN + 1];
        let count = match recv(client.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return None,
            Ok(0) | Err(_) => {
                self.clients.remove(&id);
                return None;
            }
            Ok(count) => count,
        };
        match envelope::decode::<Request>(buffer.get(..count).unwrap_or_default()) {
            Ok(request) => {
                client.until = now + SILENCE_MAX;
                Some(request)
            }
            Err(error) => {
                deliver(&client.socket, &Reply::Refused { reason: error.to_string() });
                self.clients.remove(&id);
                None
            }
        }
    }

    /// Sends the answer to client `id`; one that does not take it is closed.
    pub(crate) fn reply(&mut self, id: u64, reply: &Reply) {
        if self.clients.get(&id).is_some_and(|c| !deliver(&c.socket, reply)) {
            self.clients.remove(&id);
        }
    }

    /// Closes clients that were silent too long.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        self.clients.retain(|_, c| c.until > now);
    }

    /// When [`Server::handle_timeout`] is due next.
    pub(crate) fn next_wakeup(&self) -> Option<Time> {
        self.clients.values().map(|c| c.until).min()
    }
}

fn deliver(socket: &OwnedFd, reply: &Reply) -> bool {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(socket.as_raw_fd(), &envelope::encode(reply), flags).is_ok()
}
