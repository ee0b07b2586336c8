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
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen, send,
    socket,
};
use proto::control::{Reply, Request};
use proto::envelope::{self, HEADER_LEN, Message};
use proto::time::Time;

use crate::events::{Events, Source};
use crate::reexec::state;
use crate::sys;
use crate::sys::socket::Descriptors;

/// Connections at one time: a console, provisiond and a few tools.
const CLIENTS_MAX: usize = 16;
/// Connections beyond those for processes that must not be kept out by others.
const RESERVED: usize = 4;
/// A client that says nothing for this long is closed.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The listening socket and its clients. All go along when another program takes over: a service that feeds the fence
/// over its connection does not notice.
pub(crate) struct Server {
    listener: OwnedFd,
    clients: BTreeMap<u32, Client>,
    /// The next client's number.
    next: u32,
}

pub(crate) struct Client {
    socket: OwnedFd,
    /// The process that connected.
    pid: u32,
    /// When to close it.
    until: Time,
}

impl Client {
    /// One that another program has admitted.
    pub(crate) fn resume(socket: OwnedFd, saved: &state::Client) -> Client {
        Client { socket, pid: saved.pid, until: saved.until }
    }
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
        Ok(Server::resume(listener, BTreeMap::new(), 0))
    }

    /// A server on a socket that listens already, with the clients it has, by number; `next` was given to none yet.
    pub(crate) fn resume(listener: OwnedFd, clients: BTreeMap<u32, Client>, next: u32) -> Server {
        Server { listener, clients, next }
    }

    /// What another program needs to go on.
    pub(crate) fn save(&self) -> state::Control {
        let client = |(number, c): (&u32, &Client)| state::Client {
            number: *number,
            socket: c.socket.as_raw_fd(),
            pid: c.pid,
            until: c.until,
        };
        let clients = self.clients.iter().map(client).collect();
        state::Control { listener: self.listener.as_raw_fd(), next: self.next, clients }
    }

    /// What tells that [`Server::receive`] has something to do, for each client there is from the beginning.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.clients.iter().map(|(number, client)| (*number, client.socket.as_fd()))
    }

    /// The listening descriptor.
    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Takes a new client, if there is one, its uid is 0 and there is room. For a process that `reserved` names
    /// there is more room.
    pub(crate) fn accept(&mut self, now: Time, events: &Events, reserved: impl Fn(u32) -> bool) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) else { return };
        let socket = sys::owned(fd);
        let id = self.next;
        let admitted = match getsockopt(&socket, PeerCredentials) {
            Ok(peer) if peer.uid() != 0 => Err("only uid 0 may talk to init".to_owned()),
            Ok(peer) => {
                let pid = peer.pid().cast_unsigned();
                let room = if reserved(pid) { CLIENTS_MAX + RESERVED } else { CLIENTS_MAX };
                if self.clients.len() >= room {
                    Err(format!("init serves {CLIENTS_MAX} clients at a time; try again in a few seconds"))
                } else {
                    let added = events.add(&socket, Source::Client(id));
                    added
                        .map(|()| pid)
                        .map_err(|errno| format!("init cannot wait for requests: {}", errno.desc()))
                }
            }
            Err(errno) => Err(format!("caller unknown: {}", errno.desc())),
        };
        match admitted {
            Ok(pid) => {
                self.clients.insert(id, Client { socket, pid, until: now + SILENCE_MAX });
                self.next = self.next.wrapping_add(1);
            }
            Err(reason) => {
                deliver(&socket, &Reply::Refused { reason });
            }
        }
    }

    /// The process behind client `id`, as it was when it connected.
    pub(crate) fn pid(&self, id: u32) -> Option<u32> {
        self.clients.get(&id).map(|c| c.pid)
    }

    /// The next request of client `id`, with the descriptor of a [`Request::KeepMemory`]. A packet that is none, or
    /// has descriptors that nobody asked for, is answered here and ends the connection.
    pub(crate) fn receive(
        &mut self,
        now: Time,
        id: u32,
        events: &Events,
    ) -> Option<(Request, Option<OwnedFd>)> {
        let client = self.clients.get_mut(&id)?;
        // One byte more than the longest request: a longer packet shows.
        let mut buffer = [0; HEADER_LEN + Request::MAX_LEN + 1];
        let (count, descriptors) = match sys::socket::receive(client.socket.as_fd(), &mut buffer) {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return None;
            }
            Ok((0, _)) | Err(_) => {
                self.close(id, events);
                return None;
            }
            Ok(received) => received,
        };
        let reason = match envelope::decode::<Request>(buffer.get(..count).unwrap_or_default()) {
            Ok(request) => {
                client.until = now + SILENCE_MAX;
                match (&request, descriptors) {
                    (Request::KeepMemory, Descriptors::One(fd)) => return Some((request, Some(fd))),
                    (_, Descriptors::None) => return Some((request, None)),
                    _ => "one descriptor comes with KeepMemory, none with anything else".to_owned(),
                }
            }
            Err(error) => error.to_string(),
        };
        deliver(&client.socket, &Reply::Refused { reason });
        self.close(id, events);
        None
    }

    /// Sends the answer to client `id`; one that does not take it is closed.
    pub(crate) fn reply(&mut self, id: u32, reply: &Reply, events: &Events) {
        if self.clients.get(&id).is_some_and(|c| !deliver(&c.socket, reply)) {
            self.close(id, events);
        }
    }

    /// Closes clients that were silent too long; `patient` is one that may be.
    pub(crate) fn handle_timeout(&mut self, now: Time, events: &Events, patient: Option<u32>) {
        let silent =
            |(id, client): (&u32, &Client)| (client.until <= now && Some(*id) != patient).then_some(*id);
        while let Some(id) = self.clients.iter().find_map(silent) {
            self.close(id, events);
        }
    }

    /// When [`Server::handle_timeout`] is due next.
    pub(crate) fn next_wakeup(&self, patient: Option<u32>) -> Option<Time> {
        self.clients.iter().filter(|(id, _)| Some(**id) != patient).map(|(_, c)| c.until).min()
    }

    fn close(&mut self, id: u32, events: &Events) {
        if let Some(client) = self.clients.remove(&id) {
            events.remove(&client.socket);
        }
    }
}

fn deliver(socket: &OwnedFd, reply: &Reply) -> bool {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(socket.as_raw_fd(), &envelope::encode(reply), flags).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, connect, getsockname, recv, sendmsg};
    use std::io::IoSlice;
    use std::path::PathBuf;

    /// A server in a directory that goes with it.
    struct Place(PathBuf, Server, Events);

    impl Place {
        fn new(test: &str) -> Place {
            let directory =
                std::env::temp_dir().join(format!("evenkeel-control-{}-{test}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            let server = Server::listen(&directory.join("s")).unwrap();
            Place(directory, server, Events::new().unwrap())
        }

        fn client(&mut self, now: Time) -> OwnedFd {
            let s = self.connect();
            self.1.accept(now, &self.2, |_| false);
            s
        }

        fn connect(&self) -> OwnedFd {
            let s = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_NONBLOCK, None).unwrap();
            let address: UnixAddr = getsockname(self.1.listener.as_raw_fd()).unwrap();
            connect(s.as_raw_fd(), &address).unwrap();
            s
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    /// What the client finds in its socket: a reply, the end, or nothing yet.
    fn find(client: &OwnedFd) -> Option<Option<Reply>> {
        let mut buffer = vec![0; proto::control::PACKET_MAX];
        match recv(client.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => Some(None),
            Ok(n) => Some(Some(envelope::decode(&buffer[..n]).unwrap())),
            Err(_) => None,
        }
    }

    fn request(place: &mut Place, now: Time, id: u32) -> Option<Request> {
        place.1.receive(now, id, &place.2).map(|(request, _)| request)
    }

    fn say(client: &OwnedFd, bytes: &[u8]) {
        send(client.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    #[test]
    fn silence_closes_a_client_and_requests_keep_it() {
        let mut p = Place::new("silence");
        let client = p.client(at(0));
        assert_eq!(p.1.next_wakeup(None), Some(at(10)));
        say(&client, &envelope::encode(&Request::System));
        assert_eq!(request(&mut p, at(9), 0), Some(Request::System));
        p.1.handle_timeout(at(100), &p.2, Some(0));
        assert_eq!((p.1.clients.len(), p.1.next_wakeup(Some(0))), (1, None), "one that may be silent");
        p.1.handle_timeout(at(18), &p.2, None);
        assert_eq!((p.1.clients.len(), find(&client)), (1, None));
        p.1.handle_timeout(at(19), &p.2, None);
        assert_eq!((p.1.clients.len(), find(&client)), (0, Some(None)));
        assert_eq!(p.1.next_wakeup(None), None);
    }

    #[test]
    fn clients_are_bounded_in_number() {
        let mut p = Place::new("bound");
        let mut clients: Vec<_> = (0..CLIENTS_MAX).map(|_| p.client(at(0))).collect();
        let late = p.client(at(0));
        assert!(matches!(find(&late), Some(Some(Reply::Refused { .. }))));
        assert_eq!(find(&late), Some(None), "and closed");
        clients.pop();
        assert_eq!(request(&mut p, at(1), CLIENTS_MAX as u32 - 1), None);
        let next = p.client(at(1));
        assert_eq!((p.1.clients.len(), find(&next)), (CLIENTS_MAX, None), "a closed one makes room");
        let own = std::process::id();
        for _ in 0..=RESERVED {
            clients.push(p.connect());
            p.1.accept(at(1), &p.2, |pid| pid == own);
        }
        assert_eq!(p.1.clients.len(), CLIENTS_MAX + RESERVED);
        assert_eq!(p.1.pid(CLIENTS_MAX as u32), Some(own));
    }

    #[test]
    fn what_is_no_request_is_answered_and_ends_the_connection() {
        let mut p = Place::new("malformed");
        let longest = HEADER_LEN + Request::MAX_LEN;
        for (id, bytes) in
            [vec![0xff; 3], vec![0; longest], vec![0; longest + 1], vec![1; 64 * 1024]].iter().enumerate()
        {
            let client = p.client(at(0));
            say(&client, bytes);
            assert_eq!(request(&mut p, at(0), id as u32), None);
            assert!(matches!(find(&client), Some(Some(Reply::Refused { .. }))), "{} bytes", bytes.len());
            assert_eq!(find(&client), Some(None));
        }
        assert_eq!(request(&mut p, at(0), 99), None, "a client that never was");
    }

    #[test]
    fn descriptors_come_with_one_request_only() {
        let mut p = Place::new("descriptors");
        let cases = [
            (Request::KeepMemory, 0, true),
            (Request::KeepMemory, 1, true),
            (Request::KeepMemory, 2, false),
            (Request::KeepMemory, 200, false),
            (Request::System, 1, false),
        ];
        for (id, (message, count, taken)) in cases.iter().enumerate() {
            let client = p.client(at(0));
            let (mut reader, writer) = std::io::pipe().unwrap();
            let numbers = vec![writer.as_raw_fd(); *count];
            let rights = [ControlMessage::ScmRights(&numbers)];
            let control: &[_] = if *count > 0 { &rights } else { &[] };
            let bytes = envelope::encode(message);
            let part = [IoSlice::new(&bytes)];
            sendmsg::<()>(client.as_raw_fd(), &part, control, MsgFlags::empty(), None).unwrap();
            drop(writer);
            let received = p.1.receive(at(0), id as u32, &p.2);
            assert_eq!(received.is_some(), *taken, "{message:?} with {count}");
            if let Some((request, descriptor)) = received {
                assert_eq!((&request, descriptor.is_some()), (message, *count == 1));
            } else {
                assert!(matches!(find(&client), Some(Some(Reply::Refused { .. }))));
                assert_eq!(find(&client), Some(None), "and closed");
            }
            let left = std::io::Read::read(&mut reader, &mut [0; 1]).unwrap();
            assert_eq!(left, 0, "no copy of the descriptor is left");
        }
    }

    #[test]
    fn a_client_that_reads_nothing_is_dropped_not_waited_for() {
        let mut p = Place::new("deaf");
        let _client = p.client(at(0));
        let large = Reply::Refused { reason: "x".repeat(100 * 1024) };
        for _ in 0..100 {
            p.1.reply(0, &large, &p.2);
        }
        assert_eq!(p.1.clients.len(), 0);
    }
}
