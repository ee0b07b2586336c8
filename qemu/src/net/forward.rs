//! Ways from the host into the segment: TCP forwards (a listener on loopback, its connections relayed to a target)
//! and single HTTP requests. Lives in the fabric's thread; nothing here blocks.
//!
//! ```text
//! client ──TcpStream── Relay ──stream── TcpHost ──frames── switch ── machine
//!         shutdown  <── end ──            end ──> shutdown     each direction ends on its own
//!         reset     <── failed ──     reset ──> abort          a failure ends both
//! ```
//! Bytes are read only when there is room for them: the buffers are the kernel's and smoltcp's, none are here.

use super::error::FabricError;
use super::http::{self, HttpError, HttpResponse};
use super::tcp::{Received, StreamKey, StreamState, TcpError, TcpHost};
use core::net::SocketAddr;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::{setsockopt, sockopt};
use proto::time::{Duration, Time};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::SyncSender;

/// Most forwards at a time.
pub const FORWARDS_MAX: usize = 32;
/// Most HTTP requests at a time; the rest of the streams is for forwards.
pub const REQUESTS_MAX: usize = 16;
/// A client that has ended its direction waits this long for a silent target. It may be gone for good: a closed
/// and a half-closed connection look the same until something is sent.
pub const HALF_CLOSED_MAX: Duration = Duration::from_secs(60);
/// Connections taken from one listener in one turn, so that frames are not kept waiting.
const ACCEPTS_PER_TURN: usize = 8;

#[derive(Debug)]
struct Forward {
    listener: TcpListener,
    target: SocketAddr,
    /// Poll found connections on it.
    ready: bool,
}

#[derive(Debug)]
struct Relay {
    host: TcpStream,
    stream: StreamKey,
    /// The client has sent all it will.
    host_ended: bool,
    /// The target has sent all it will, and the client knows.
    target_ended: bool,
    /// Poll found something to read.
    readable: bool,
    /// The kernel's buffer towards the client is full.
    blocked: bool,
    /// When bytes last moved.
    moved: Time,
}

/// An HTTP request on its way.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) target: SocketAddr,
    pub(super) bytes: Vec<u8>,
    pub(super) sent: usize,
    pub(super) started: Time,
    pub(super) deadline: Time,
    pub(super) reply: SyncSender<Result<HttpResponse, TcpError>>,
}

#[derive(Debug)]
struct Exchange {
    request: Request,
    stream: StreamKey,
    received: Vec<u8>,
}

/// All forwards, relays and requests.
#[derive(Debug, Default)]
pub(super) struct Forwarder {
    forwards: Vec<Forward>,
    relays: Vec<Relay>,
    exchanges: Vec<Exchange>,
}

/// What poll is asked about; goes back to [`Forwarder::polled`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Interest {
    /// Listener at this position.
    Listener(usize),
    /// Relay at this position.
    Relay(usize),
}

impl Forwarder {
    /// Opens a listener; gives its address.
    pub(super) fn forward(
        &mut self,
        tcp: &TcpHost,
        listen: SocketAddr,
        target: SocketAddr,
    ) -> Result<SocketAddr, FabricError> {
        if !listen.ip().is_loopback() {
            return Err(FabricError::NotLoopback { address: listen });
        }
        if self.forwards.len() >= FORWARDS_MAX {
            return Err(FabricError::TooManyForwards { address: listen, max: FORWARDS_MAX });
        }
        tcp.check(target)?;
        let failed = |source| FabricError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        self.forwards.push(Forward { listener, target, ready: false });
        Ok(bound)
    }

    /// Starts an HTTP request; its result goes to its `reply`.
    pub(super) fn request(&mut self, now: Time, tcp: &mut TcpHost, request: Request) {
        let target = request.target;
        let stream = match self.exchanges.len() >= REQUESTS_MAX {
            true => Err(TcpError::TooMany { target }),
            false => tcp.open(now, target),
        };
        match stream {
            Ok(stream) => self.exchanges.push(Exchange { request, stream, received: Vec::new() }),
            // Who asked may have gone.
            Err(e) => drop(request.reply.try_send(Err(e))),
        }
    }

    /// The descriptors to poll now.
    pub(super) fn interests<'a>(
        &'a self,
        tcp: &mut TcpHost,
        out: &mut Vec<(Interest, BorrowedFd<'a>, PollFlags)>,
    ) {
        if tcp.len() < super::tcp::STREAMS_MAX {
            for (i, forward) in self.forwards.iter().enumerate() {
                out.push((Interest::Listener(i), forward.listener.as_fd(), PollFlags::POLLIN));
            }
        }
        for (i, relay) in self.relays.iter().enumerate() {
            let mut flags = PollFlags::empty();
            if !relay.host_ended && tcp.has_room(relay.stream) {
                flags |= PollFlags::POLLIN;
            }
            if relay.blocked {
                flags |= PollFlags::POLLOUT;
            }
            // An empty set would still report a hang-up, again and again.
            if !flags.is_empty() {
                out.push((Interest::Relay(i), relay.host.as_fd(), flags));
            }
        }
    }

    /// Poll found something; the next [`Forwarder::pump`] acts on it. Errors show when reading.
    pub(super) fn polled(&mut self, interest: Interest, found: PollFlags) {
        match interest {
            Interest::Listener(i) => self.forwards[i].ready = true,
            Interest::Relay(i) => {
                let relay = &mut self.relays[i];
                let broken = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
                relay.readable |= found.intersects(PollFlags::POLLIN | broken);
                relay.blocked &= !found.intersects(PollFlags::POLLOUT | broken);
            }
        }
    }

    /// Moves bytes and ends what has ended. Call it between two polls of the TCP host.
    pub(super) fn pump(&mut self, now: Time, tcp: &mut TcpHost) {
        for forward in &mut self.forwards {
            if std::mem::take(&mut forward.ready) {
                accept(now, forward, tcp, &mut self.relays);
            }
        }
        self.relays.retain_mut(|relay| {
            let lives = relay.pump(now, tcp);
            if !lives {
                tcp.remove(now, relay.stream);
            }
            lives
        });
        self.exchanges.retain_mut(|exchange| match exchange.pump(now, tcp) {
            None => true,
            Some(result) => {
                tcp.remove(now, exchange.stream);
                let _ = exchange.request.reply.try_send(result);
                false
            }
        });
    }

    /// When a request's or a half-closed relay's time is over, at the earliest.
    pub(super) fn next_wakeup(&self) -> Option<Time> {
        let half_closed = self.relays.iter().filter(|r| r.host_ended).map(|r| r.moved + HALF_CLOSED_MAX);
        self.exchanges.iter().map(|e| e.request.deadline).chain(half_closed).min()
    }
}

fn accept(now: Time, forward: &Forward, tcp: &mut TcpHost, relays: &mut Vec<Relay>) {
    for _ in 0..ACCEPTS_PER_TURN {
        if tcp.len() >= super::tcp::STREAMS_MAX {
            return; // they wait in the kernel's queue
        }
        let Ok((host, _)) = forward.listener.accept() else { return };
        if host.set_nonblocking(true).is_err() || host.set_nodelay(true).is_err() {
            continue;
        }
        match tcp.open(now, forward.target) {
            Ok(stream) => relays.push(Relay {
                host,
                stream,
                host_ended: false,
                target_ended: false,
                readable: true,
                blocked: false,
                moved: now,
            }),
            Err(_) => reset(&host),
        }
    }
}

/// Makes the coming close a reset, so that the client does not take a broken stream for a whole one.
fn reset(host: &TcpStream) {
    // Without it the client sees an ordinary end; there is no better way left then.
    let _ = setsockopt(host, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}

impl Relay {
    /// False when the relay has ended.
    fn pump(&mut self, now: Time, tcp: &mut TcpHost) -> bool {
        match tcp.state(now, self.stream) {
            StreamState::Connecting => return true,
            StreamState::Open | StreamState::Finished => {}
            StreamState::Failed(_) => {
                reset(&self.host);
                return false;
            }
        }
        if self.carry_out(now, tcp).is_err() || self.carry_in(now, tcp).is_err() {
            // The client is gone, and the target is told.
            tcp.abort(self.stream);
            reset(&self.host);
            return false;
        }
        if self.host_ended && now.since(self.moved) > HALF_CLOSED_MAX {
            tcp.abort(self.stream);
            reset(&self.host);
            return false;
        }
        !(self.host_ended && self.target_ended && tcp.state(now, self.stream) == StreamState::Finished)
    }

    fn carry_out(&mut self, now: Time, tcp: &mut TcpHost) -> io::Result<()> {
        while self.readable && !self.host_ended {
            let host = &mut self.host;
            let read = tcp.send_with(self.stream, |room| match host.read(room) {
                Ok(n) => (n, Ok(n)),
                Err(e) => (0, Err(e)),
            });
            match read {
                None => return Ok(()), // no room: poll is asked again when there is
                Some(Ok(0)) => {
                    (self.host_ended, self.moved) = (true, now);
                    tcp.finish(self.stream);
                }
                Some(Ok(_)) => self.moved = now,
                Some(Err(e)) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                Some(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Some(Err(e)) => return Err(e),
            }
        }
        Ok(())
    }

    fn carry_in(&mut self, now: Time, tcp: &mut TcpHost) -> io::Result<()> {
        while !self.blocked && !self.target_ended {
            let (host, mut wrote) = (&mut self.host, Ok(0));
            let received = tcp.receive(self.stream, |bytes| match host.write(bytes) {
                Ok(n) => n,
                Err(e) => {
                    wrote = Err(e);
                    0
                }
            });
            match wrote {
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.blocked = true,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
                Ok(_) => {}
            }
            match received {
                Received::Bytes(_) => self.moved = now,
                Received::Nothing => return Ok(()),
                Received::End => {
                    self.target_ended = true;
                    match self.host.shutdown(Shutdown::Write) {
                        Err(e) if e.kind() != ErrorKind::NotConnected => return Err(e),
                        Ok(()) | Err(_) => {}
                    }
                }
            }
        }
        Ok(())
    }
}

impl Exchange {
    /// The result, once there is one.
    fn pump(&mut self, now: Time, tcp: &mut TcpHost) -> Option<Result<HttpResponse, TcpError>> {
        let (request, received) = (&mut self.request, &mut self.received);
        let (target, waited) = (request.target, now.since(request.started).as_secs_f64());
        let state = tcp.state(now, self.stream);
        if let StreamState::Failed(e) = state {
            return Some(Err(e));
        }
        while request.sent < request.bytes.len() && state == StreamState::Open {
            let rest = &request.bytes[request.sent..];
            let sent = tcp.send_with(self.stream, |room| {
                let n = rest.len().min(room.len());
                room[..n].copy_from_slice(&rest[..n]);
                (n, n)
            });
            match sent {
                None | Some(0) => break,
                Some(n) => request.sent += n,
            }
        }
        let mut ended = false;
        while received.len() <= http::RESPONSE_MAX {
            let found = tcp.receive(self.stream, |bytes| {
                received.extend_from_slice(bytes);
                bytes.len()
            });
            match found {
                Received::Bytes(_) => {}
                Received::Nothing => break,
                Received::End => {
                    ended = true;
                    break;
                }
            }
        }
        let judged = match http::response(received, ended) {
            // Only an ended stream without a byte is no answer at all.
            Err(HttpError::NotHttp { .. }) if ended && received.is_empty() => Err(TcpError::Reset { target }),
            Err(source) => Err(TcpError::Http { target, source }),
            Ok(Some(response)) => Ok(response),
            Ok(None) if now < request.deadline => return None,
            Ok(None) if state == StreamState::Connecting => {
                Err(TcpError::NoConnection { target, seconds: waited })
            }
            Ok(None) => Err(TcpError::TooSlow { target, seconds: waited, received: received.len() }),
        };
        if judged.is_err() {
            tcp.abort(self.stream);
        }
        Some(judged)
    }
}

/// A deadline may not be further away than this: a caller waits for it.
pub(super) const REQUEST_DEADLINE_MAX: Duration = Duration::from_secs(300);
