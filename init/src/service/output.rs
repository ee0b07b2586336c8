//! What services write: one pipe per service for its whole life, held by init at both ends.
//!
//! Because init keeps a write end too, the pipe never breaks: what a crashing service wrote last is still in it, and
//! its successor writes to the same one. Lines go to a ring in memory and, batched, to the log keeper.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read};

use super::spawn::nonblocking;
use crate::clock;
use crate::reexec::state::Output;
use crate::ring::{Ring, Splitter};

/// Bytes read from one service before others get their turn: a full pipe.
const DRAIN_MAX: usize = 64 * 1024;

/// The output of one service.
pub(crate) struct Capture {
    reader: OwnedFd,
    writer: OwnedFd,
    splitter: Splitter,
    pub(crate) ring: Ring,
}

impl Capture {
    /// A pipe and an empty ring.
    pub(crate) fn new() -> io::Result<Capture> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        nonblocking(&reader)?;
        Ok(Capture { reader, writer, splitter: Splitter::default(), ring: Ring::default() })
    }

    /// One that another program began.
    pub(crate) fn resume(reader: OwnedFd, writer: OwnedFd, saved: &Output) -> Capture {
        let (splitter, ring) = (Splitter::resume(&saved.open), Ring::resume(&saved.ring));
        Capture { reader, writer, splitter, ring }
    }

    /// What another program needs to go on.
    pub(crate) fn save(&self) -> Output {
        Output {
            reader: self.reader.as_raw_fd(),
            writer: self.writer.as_raw_fd(),
            open: self.splitter.open().to_vec(),
            ring: self.ring.content(),
        }
    }

    /// The end services write to.
    pub(crate) fn writer(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }

    /// The end to poll.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Takes what is in the pipe, [`DRAIN_MAX`] bytes at most, and calls `line` with the time and text of each new
    /// line. With `last`, the writer is gone and an unfinished line counts as one.
    pub(crate) fn drain(&mut self, last: bool, mut line: impl FnMut(u64, &str)) {
        let at_ms = clock::now_ms();
        let ring = &mut self.ring;
        let mut keep = |text: &str| {
            ring.push(at_ms, text);
            line(at_ms, text);
        };
        let mut buffer = [0; 4096];
        let mut taken = 0;
        while taken < DRAIN_MAX {
            match read(self.reader.as_fd(), &mut buffer) {
                Ok(n) if n > 0 => {
                    taken += n;
                    self.splitter.feed(buffer.get(..n).unwrap_or_default(), &mut keep);
                }
                Err(nix::errno::Errno::EINTR) => {}
                _ => break,
            }
        }
        if last {
            self.splitter.flush(&mut keep);
        }
    }
}
