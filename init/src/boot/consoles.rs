//! The machine's consoles as PID 1 uses them before and beside services: opened without waiting, read without noise,
//! given back as they were.
//!
//! ```text
//! open (no wait, not ours) --> input flushed --> modes set --> read, show --> modes restored, output flushed, closed
//! ```
//! * *No wait*: `O_NONBLOCK` opens a line without its carrier; nothing is written that the line does not take in time.
//! * *No noise*: a break and bytes with framing or parity errors are dropped by the kernel (termios(3): `IGNBRK`, and
//!   `IGNPAR` with `INPCK`), so that a cable pulled out or the wrong speed types nothing.
//! * *As they were*: a serial driver waits on its last close for output nobody takes (`closing_wait`, 30 s); what is
//!   left by then is dropped.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::termios::{
    ControlFlags, FlushArg, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios,
    tcflush, tcgetattr, tcsetattr,
};
use nix::unistd::{read, write};

use crate::{clock, sys};

/// Consoles served.
pub(crate) const CONSOLES_MAX: usize = 4;

/// How a console is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Whole lines, shown while they are typed.
    Lines,
    /// Each key at once, shown to nobody.
    Keys,
}

/// One of the machine's consoles.
pub(crate) struct Console {
    name: String,
    fd: OwnedFd,
    /// Its modes before; `None` for what has none.
    before: Option<Termios>,
}

impl Console {
    /// Opens `path`, to be called `name`. What was typed before is forgotten.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open(path: &Path, name: &str, reading: Reading) -> io::Result<Console> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        let console = Console { name: name.to_owned(), before: tcgetattr(&file).ok(), fd: file.into() };
        let _ = tcflush(&console.fd, FlushArg::TCIFLUSH);
        if let Some(before) = &console.before {
            // Not after output has drained: that would wait for it.
            tcsetattr(&console.fd, SetArg::TCSANOW, &modes(before, reading))?;
        }
        Ok(console)
    }

    /// Its name below `/dev`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// To wait for what is typed.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What was typed, as much as `buffer` takes; empty when there is nothing.
    ///
    /// # Errors
    /// It is gone: nothing will ever be typed there again.
    pub(crate) fn read<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        match read(&self.fd, buffer) {
            Ok(0) => Err(Errno::EIO),
            Ok(count) => Ok(buffer.get(..count).unwrap_or_default()),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(&[]),
            Err(errno) => Err(errno),
        }
    }

    /// Whether it has still to send what was written.
    pub(crate) fn is_busy(&self) -> bool {
        sys::output_pending(self.fd()).is_ok_and(|bytes| bytes > 0)
    }

    /// Writes what the console takes within `limit`; the rest is dropped.
    pub(crate) fn show(&self, text: &str, limit: Duration) {
        let _rest = self.offer(text.as_bytes(), limit);
    }

    /// Writes what the console takes within `limit`; what is left then. Nothing is left for one that is gone.
    pub(crate) fn offer<'a>(&self, text: &'a [u8], limit: Duration) -> &'a [u8] {
        let until = clock::now() + limit;
        let mut rest = text;
        while !rest.is_empty() {
            match write(&self.fd, rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::EAGAIN) => {
                    let left = until.since(clock::now());
                    let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
                    if left.is_zero() || poll(&mut fds, clock::poll_ms(left)).unwrap_or(0) == 0 {
                        return rest;
                    }
                }
                Err(_) => return &[],
            }
        }
        rest
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // A console that is gone needs neither.
        if let Some(before) = &self.before {
            let _ = tcsetattr(&self.fd, SetArg::TCSANOW, before);
        }
        if self.is_busy() {
            let _ = tcflush(&self.fd, FlushArg::TCOFLUSH);
        }
    }
}

fn modes(before: &Termios, reading: Reading) -> Termios {
    let mut modes = before.clone();
    // No XON/XOFF: noise must not freeze the console.
    modes.input_flags = InputFlags::IGNBRK | InputFlags::IGNPAR | InputFlags::INPCK | InputFlags::ICRNL;
    modes.output_flags = OutputFlags::OPOST | OutputFlags::ONLCR;
    modes.control_flags |= ControlFlags::CREAD | ControlFlags::CLOCAL;
    modes.local_flags = match reading {
        Reading::Lines => {
            LocalFlags::ICANON
                | LocalFlags::IEXTEN
                | LocalFlags::ECHO
                | LocalFlags::ECHOE
                | LocalFlags::ECHOK
                | LocalFlags::ECHOCTL
                | LocalFlags::ECHOKE
        }
        Reading::Keys => LocalFlags::empty(),
    };
    if reading == Reading::Keys {
        modes.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        modes.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    }
    modes
}

/// The consoles that the kernel's messages go to, those that can be opened.
pub(crate) fn all(reading: Reading) -> Vec<Console> {
    open(reading, |_| true)
}

/// The serial ones of them.
pub(crate) fn serial(reading: Reading) -> Vec<Console> {
    open(reading, is_serial)
}

fn open(reading: Reading, wanted: impl Fn(&str) -> bool) -> Vec<Console> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let names = active.split_ascii_whitespace().filter(|name| wanted(name)).take(CONSOLES_MAX);
    names.filter_map(|name| Console::open(&Path::new("/dev").join(name), name, reading).ok()).collect()
}

/// Whether a console is a line and no screen: `ttyS0`, `ttyAMA0`, `hvc0`, but not `tty0`.
fn is_serial(name: &str) -> bool {
    !name.strip_prefix("tty").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use nix::pty::{OpenptyResult, openpty};
    use std::os::fd::AsRawFd;

    /// A terminal, and the other end of its line.
    pub(crate) struct Line {
        pub(crate) far: OwnedFd,
        /// Keeps the terminal there while nobody has it open.
        pub(crate) near: OwnedFd,
    }

    /// Waits until the far end of the line of `fd` is gone: children of other tests hold copies for a moment.
    pub(crate) fn wait_for_hangup(fd: BorrowedFd<'_>) {
        assert_eq!(poll(&mut [PollFd::new(fd, PollFlags::empty())], 30_000u16), Ok(1), "it does not hang up");
    }

    impl Line {
        pub(crate) fn new() -> Line {
            let OpenptyResult { master, slave } = openpty(None, None).unwrap();
            Line { far: master, near: slave }
        }

        pub(crate) fn open(&self, name: &str, reading: Reading) -> Console {
            let path = format!("/proc/self/fd/{}", self.near.as_raw_fd());
            Console::open(Path::new(&path), name, reading).unwrap()
        }

        pub(crate) fn type_keys(&self, keys: &str) {
            write(&self.far, keys.as_bytes()).unwrap();
        }

        /// What was shown until now, and later until `text` is in it.
        pub(crate) fn shown_until(&self, text: &str) -> String {
            let mut shown = String::new();
            let until = clock::now() + Duration::from_secs(30);
            while !shown.contains(text) {
                let mut fds = [PollFd::new(self.far.as_fd(), PollFlags::POLLIN)];
                assert!(poll(&mut fds, 1000u16).is_ok() && clock::now() < until, "{text:?} not in {shown:?}");
                if fds[0].any() == Some(true) {
                    let mut buffer = [0; 512];
                    let count = read(&self.far, &mut buffer).unwrap();
                    shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
                }
            }
            shown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Line, wait_for_hangup};
    use super::*;

    fn typed(console: &Console, text: &str) -> Vec<u8> {
        let mut fds = [PollFd::new(console.fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, 10_000u16), Ok(1), "{text:?} is not read");
        console.read(&mut [0; 64]).unwrap().to_vec()
    }

    #[test]
    fn keys_are_read_at_once_and_what_was_typed_before_is_forgotten() {
        let line = Line::new();
        let before = tcgetattr(&line.near).unwrap();
        line.type_keys("rrr\n");
        let console = line.open("ttyT0", Reading::Keys);
        assert_eq!(console.read(&mut [0; 8]), Ok(&[][..]));
        line.type_keys("r");
        assert_eq!(typed(&console, "r"), b"r");
        let modes = tcgetattr(&line.near).unwrap();
        let dropped = InputFlags::IGNBRK | InputFlags::IGNPAR | InputFlags::INPCK;
        assert!(modes.input_flags.contains(dropped), "noise is dropped: {:?}", modes.input_flags);
        assert!(!modes.input_flags.intersects(InputFlags::IXON | InputFlags::BRKINT | InputFlags::PARMRK));
        console.show("one\ntwo\n", Duration::from_secs(5));
        let shown = line.shown_until("two\r\n");
        // What was typed before may have been shown before.
        let shown = shown.strip_prefix("rrr\r\n").unwrap_or(&shown);
        assert_eq!(shown, "one\r\ntwo\r\n", "keys are not shown");
        drop(console);
        assert_eq!(tcgetattr(&line.near).unwrap(), before, "given back as it was");
    }

    #[test]
    fn lines_are_shown_while_they_are_typed() {
        let line = Line::new();
        let console = line.open("ttyT0", Reading::Lines);
        line.type_keys("ab");
        line.shown_until("ab");
        assert_eq!(console.read(&mut [0; 8]), Ok(&[][..]), "the line is not ended");
        line.type_keys("\rc");
        assert_eq!(typed(&console, "ab"), b"ab\n");
    }

    #[test]
    fn a_console_nobody_reads_costs_its_limit_and_one_that_is_gone_nothing() {
        let line = Line::new();
        let console = line.open("ttyT0", Reading::Keys);
        let began = clock::now();
        console.show(&"x".repeat(1 << 20), Duration::from_millis(50));
        let took = clock::now().since(began);
        assert!(took >= Duration::from_millis(50) && took < Duration::from_secs(20), "{took:?}");
        drop(line);
        wait_for_hangup(console.fd());
        assert!(console.read(&mut [0; 8]).is_err());
        console.show("x", Duration::from_secs(30));
    }

    #[test]
    fn a_screen_is_no_line() {
        for (name, serial) in
            [("ttyS0", true), ("hvc0", true), ("ttyAMA1", true), ("tty0", false), ("tty", false)]
        {
            assert_eq!(is_serial(name), serial, "{name}");
        }
    }
}
