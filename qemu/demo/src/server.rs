//! Accepting and answering, with a bound on everything.
//!
//! [`WORKERS`] threads accept from one socket; each serves one client at a time, so that there are never more connections
//! than threads. Clients beyond that wait in the kernel's queue, for at most as long as the others may take.

use crate::http::{self, About, REQUEST_MAX, Request};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Clients served at a time.
pub(crate) const WORKERS: usize = 8;

/// From accept to the whole request, and from there to the whole answer.
pub(crate) const CLIENT_LIMIT: Duration = Duration::from_secs(5);

/// After the answer: what is still read and thrown away, so that a reset does not overtake the answer.
const LINGER_LIMIT: Duration = Duration::from_millis(250);

/// Bytes of a node's name that are shown.
const NAME_MAX: usize = 64;

/// Where the kernel tells about this node.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) hostname: PathBuf,
    pub(crate) uptime: PathBuf,
}

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel { hostname: "/proc/sys/kernel/hostname".into(), uptime: "/proc/uptime".into() }
    }
}

impl Kernel {
    /// The node's name now: it is set while services run.
    fn node(&self) -> String {
        let name: String =
            read(&self.hostname).trim().chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
        if name.is_empty() { "(none)".to_owned() } else { name }
    }

    /// Since the node started; zero when the kernel does not say.
    fn uptime(&self) -> Duration {
        let text = read(&self.uptime);
        let seconds = text.split(['.', ' ']).next().and_then(|s| s.parse().ok());
        Duration::from_secs(seconds.unwrap_or(0))
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Serves `listener` for ever on [`WORKERS`] threads; returns when a thread cannot be started or accepting fails.
pub(crate) fn serve(listener: &TcpListener, kernel: &Kernel) -> io::Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|n| {
                let name = format!("worker {n}");
                std::thread::Builder::new().name(name).spawn_scoped(scope, || work(listener, kernel))
            })
            .collect::<io::Result<_>>()?;
        for worker in workers {
            worker.join().map_err(|_| io::Error::other("a worker panicked"))??;
        }
        Ok(())
    })
}

fn work(listener: &TcpListener, kernel: &Kernel) -> io::Result<()> {
    loop {
        match listener.accept() {
            // A client that fails is its own affair.
            Ok((stream, _)) => drop(attend(stream, kernel, CLIENT_LIMIT)),
            Err(e) if passing(&e) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Whether accepting failed because of the client in question, not of the socket.
fn passing(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        Interrupted | ConnectionAborted | ConnectionReset | TimedOut | HostUnreachable | NetworkUnreachable
    )
}

/// Serves one client from its first byte to its last.
pub(crate) fn attend(mut stream: TcpStream, kernel: &Kernel, limit: Duration) -> io::Result<()> {
    let (local, peer) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
    let request = read_request(&mut stream, Instant::now() + limit)?;
    let about = About { node: kernel.node(), local, peer, uptime: kernel.uptime() };
    // One write of less than a KiB into an empty buffer: this limit is for a peer without a window.
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(http::answer(request, &about).as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    // Closing with unread bytes resets the connection, and the reset may overtake the answer.
    let deadline = Instant::now() + LINGER_LIMIT;
    let mut rest = [0; 1024];
    while read_before(&mut stream, &mut rest, deadline).is_ok_and(|n| n > 0) {}
    Ok(())
}

/// Reads a request's head, at most [`REQUEST_MAX`] bytes, until `deadline`.
fn read_request(stream: &mut TcpStream, deadline: Instant) -> io::Result<Request> {
    let mut bytes = [0; REQUEST_MAX];
    let mut have = 0;
    loop {
        match http::parse(&bytes[..have]) {
            Request::Partial => {}
            request => return Ok(request),
        }
        match read_before(stream, &mut bytes[have..], deadline)? {
            0 if have == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            0 => return Ok(Request::Malformed),
            n => have += n,
        }
    }
}

/// Reads once, but not beyond `deadline`: a client that sends a byte a second gets no more time than others.
fn read_before(stream: &mut TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    stream.read(buffer)
}

#[cfg(test)]
mod tests;
