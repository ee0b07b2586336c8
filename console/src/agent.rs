//! `keel agent`: serves commands on a virtio-serial port, for the lab.
//!
//! ```text
//! Away --port is writable: "ready"--> Present --line--> run, answer
//!   ^                                    |
//!   +---- host hung up, or does not read +
//! ```
//! A virtio port whose host side is closed reports a hang-up to every poll, for ever: waiting for it level-triggered
//! would spin. It is waited for edge-triggered: the kernel wakes the port's queue when the host opens or closes it.
//! The port stays open all the time; a half received line is forgotten when the host goes.
//!
//! There is no authorisation: whoever holds the host side of the machine holds the machine. The service that runs this is
//! part of the lab's overlay only.

mod port;
mod protocol;

use crate::command;
use crate::lines::{Item, Lines};
use crate::session::Session;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::{read, write};
use protocol::{Output, Request};
use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the host may leave an answer unread. Commands have a shorter limit of their own.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// No port has the name.
    #[error("{0}")]
    Port(#[from] port::PortError),
    /// The port cannot be opened or failed.
    #[error("port {device}: {what}")]
    Io { device: PathBuf, what: String },
}

/// Serves the port called `name` until it fails.
pub(crate) fn run(session: &Session, name: &str) -> Result<Infallible, AgentError> {
    let device = port::find(Path::new(port::CLASS), name)?;
    let failed = |e: io::Error| AgentError::Io { device: device.clone(), what: e.to_string() };
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC | nix::libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&device).map_err(failed)?;
    let mut agent = Agent::new(session, file.into(), WRITE_LIMIT).map_err(failed)?;
    loop {
        agent.turn(EpollTimeout::NONE).map_err(failed)?;
    }
}

/// What a turn met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing happened in time.
    Idle,
    /// The host is there.
    Present,
    /// The host is away.
    Away,
}

struct Agent<'a> {
    session: &'a Session,
    port: OwnedFd,
    epoll: Epoll,
    lines: Lines,
    present: bool,
    /// The last line sent was cut off in the middle.
    torn: bool,
    write_limit: Duration,
}

impl<'a> Agent<'a> {
    /// Serves `port`, which must not block.
    fn new(session: &'a Session, port: OwnedFd, write_limit: Duration) -> io::Result<Agent<'a>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&port, EpollEvent::new(interest, 0))?;
        let lines = Lines::new(protocol::REQUEST_MAX);
        Ok(Agent { session, port, epoll, lines, present: false, torn: false, write_limit })
    }

    /// Waits for the port and handles everything that came.
    fn turn(&mut self, timeout: EpollTimeout) -> io::Result<Turn> {
        let mut events = [EpollEvent::empty()];
        match self.epoll.wait(&mut events, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Turn::Idle),
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        let hung = events[0].events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if !hung && !self.present {
            self.present = true;
            if std::mem::take(&mut self.torn) {
                self.send("\n");
            }
            self.send(protocol::READY);
        }
        // What the host left before it went is still served: its answers are lost, its effects are wanted.
        if self.drain()? || hung {
            self.leave();
        }
        Ok(if self.present { Turn::Present } else { Turn::Away })
    }

    /// Reads until there is nothing more, as an edge demands; true when the host has closed its side.
    fn drain(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 1024];
        loop {
            match read(&self.port, &mut buffer) {
                Ok(0) => return Ok(true),
                Ok(n) => {
                    for item in self.lines.push(&buffer[..n]) {
                        self.serve(&item);
                    }
                }
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                // A pseudo terminal tells in this way that its other side is closed.
                Err(Errno::EIO | Errno::ECONNRESET) => return Ok(true),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn serve(&mut self, item: &Item) {
        let request = match item {
            Item::Line(line) => protocol::parse(line),
            Item::TooLong => Err("request longer than 4096 bytes"),
        };
        let answer = match request {
            Ok(Request::Hello) => protocol::READY.to_owned(),
            Ok(Request::Run { id, line }) => {
                let (output, code) = self.execute(&line);
                protocol::answer(&id, &output, code)
            }
            Err(text) => protocol::error(text),
        };
        self.send(&answer);
    }

    fn execute(&self, line: &str) -> (Vec<u8>, u8) {
        let mut output = Output::default();
        let (message, code) = match command::parse(&command::words(line)) {
            None => ("no command".to_owned(), crate::USAGE),
            Some(Err(mistake)) => (mistake, crate::USAGE),
            Some(Ok(command)) => match self.session.run(&command, None, &mut output) {
                Ok(()) => return (output.finish(), 0),
                Err(failure) => (failure.to_string(), crate::FAILED),
            },
        };
        writeln!(output, "{message}").expect("memory takes everything");
        (output.finish(), code)
    }

    /// Sends an answer; a host that does not take it in time counts as gone.
    fn send(&mut self, text: &str) {
        if !self.present {
            return;
        }
        if !self.try_send(text.as_bytes()) {
            self.torn = true;
            self.leave();
        }
    }

    fn try_send(&self, mut bytes: &[u8]) -> bool {
        let deadline = Instant::now() + self.write_limit;
        while !bytes.is_empty() {
            match write(&self.port, bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let timeout =
                        PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
                    let mut ports = [PollFd::new(self.port.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut ports, timeout) {
                        Ok(0) => return false,
                        Ok(_)
                            if ports[0]
                                .revents()
                                .is_some_and(|r| r.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)) =>
                        {
                            return false;
                        }
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(_) => return false,
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn leave(&mut self) {
        self.present = false;
        self.lines.clear();
    }
}

#[cfg(test)]
mod tests;
