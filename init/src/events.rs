//! What the poll loop waits for: an epoll set with a token for each descriptor.
//!
//! A set that is kept costs nothing per turn, however many services there are. A descriptor must leave the set
//! before it is closed: a child between fork and exec holds a copy, and epoll would go on reporting it.

use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::service::ServiceId;

/// Events taken from the kernel in one turn; the others come with the next.
const EVENTS_MAX: usize = 64;

/// Where a readable descriptor leads. A source may be out of date by the time its turn comes: who handles it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The signal descriptor.
    Signals,
    /// The control socket.
    Listener,
    /// A client of the control socket.
    Client(u32),
    /// The process of a service has ended.
    Exit(ServiceId),
    /// A service has written something.
    Output(ServiceId),
    /// The exec of a service's program has succeeded or failed.
    Report(ServiceId),
    /// A service tells readiness.
    Notify(ServiceId),
    /// A power button.
    Button(u16),
    /// Standard input of the container mode.
    Starter,
    /// The kernel tells of devices, or the child that loads their modules.
    Devices,
    /// The descriptor Ctrl-Alt-Del is read from.
    CtrlAltDel,
    /// The child that records why a trial has failed.
    Recording,
    /// A console with the recovery prompt.
    Recovery(u16),
}

impl Source {
    /// Kind in the upper half, number in the lower one.
    fn token(self) -> u64 {
        let (kind, number): (u32, u32) = match self {
            Source::Signals => (0, 0),
            Source::Listener => (1, 0),
            Source::Client(number) => (2, number),
            Source::Exit(id) => (3, id.0.into()),
            Source::Output(id) => (4, id.0.into()),
            Source::Report(id) => (5, id.0.into()),
            Source::Notify(id) => (6, id.0.into()),
            Source::Button(number) => (7, number.into()),
            Source::Starter => (8, 0),
            Source::Devices => (9, 0),
            Source::CtrlAltDel => (10, 0),
            Source::Recording => (11, 0),
            Source::Recovery(number) => (12, number.into()),
        };
        u64::from(kind) << 32 | u64::from(number)
    }

    fn parse(token: u64) -> Option<Source> {
        let number = token as u32;
        let id = ServiceId(number as u16);
        Some(match (token >> 32) as u32 {
            0 => Source::Signals,
            1 => Source::Listener,
            2 => Source::Client(number),
            3 => Source::Exit(id),
            4 => Source::Output(id),
            5 => Source::Report(id),
            6 => Source::Notify(id),
            7 => Source::Button(number as u16),
            8 => Source::Starter,
            9 => Source::Devices,
            10 => Source::CtrlAltDel,
            11 => Source::Recording,
            12 => Source::Recovery(number as u16),
            _ => return None,
        })
    }
}

/// The set and the events of the last turn.
pub(crate) struct Events {
    epoll: Epoll,
    ready: [EpollEvent; EVENTS_MAX],
    count: usize,
}

impl Events {
    /// An empty set.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(crate) fn new() -> nix::Result<Events> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Events { epoll, ready: [EpollEvent::empty(); EVENTS_MAX], count: 0 })
    }

    /// Adds `fd`, to be reported as `source` while it can be read or is hung up.
    ///
    /// # Errors
    /// The kernel's reason; `EPERM` for a file that is always readable.
    pub(crate) fn add(&self, fd: impl AsFd, source: Source) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.token()))
    }

    /// Takes `fd` out. Must come before its end.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // Only a descriptor that is not in the set is refused.
        let _ = self.epoll.delete(fd);
    }

    /// Waits for events, at most `timeout_ms`. Returns their number; they stay until the next wait.
    pub(crate) fn wait(&mut self, timeout_ms: u16) -> usize {
        // EINTR: a signal that is not blocked, or a tracer. No other error can happen with this set and buffer.
        self.count = self.epoll.wait(&mut self.ready, EpollTimeout::from(timeout_ms)).unwrap_or(0);
        self.count
    }

    /// The event number `index` of the last wait.
    pub(crate) fn get(&self, index: usize) -> Option<Source> {
        self.ready.get(..self.count)?.get(index).and_then(|e| Source::parse(e.data()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{pipe, write};

    #[test]
    fn every_source_keeps_its_number() {
        for source in [
            Source::Signals,
            Source::Listener,
            Source::Client(u32::MAX),
            Source::Exit(ServiceId(127)),
            Source::Output(ServiceId(0)),
            Source::Report(ServiceId(u16::MAX)),
            Source::Notify(ServiceId(3)),
            Source::Button(1),
            Source::Starter,
            Source::Devices,
            Source::CtrlAltDel,
            Source::Recording,
            Source::Recovery(3),
        ] {
            assert_eq!(Source::parse(source.token()), Some(source));
        }
        assert_eq!(Source::parse(u64::MAX), None);
    }

    #[test]
    fn only_what_is_in_the_set_is_reported() {
        let mut events = Events::new().unwrap();
        let (reader, writer) = pipe().unwrap();
        events.add(&reader, Source::Button(7)).unwrap();
        assert_eq!((events.wait(0), events.get(0)), (0, None));
        write(&writer, b"x").unwrap();
        assert_eq!((events.wait(0), events.get(0), events.get(1)), (1, Some(Source::Button(7)), None));
        events.remove(&reader);
        assert_eq!(events.wait(0), 0);
    }
}
