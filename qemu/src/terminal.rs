//! A person's terminal on a node's console: raw, until Ctrl-] or the end of the lab.

use crate::error::LabError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Ctrl-]
const LEAVE: u8 = 0x1d;

/// The terminal as it was, put back when this goes.
struct Raw(Option<Termios>);

impl Raw {
    fn set() -> Result<Raw, LabError> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Raw(None));
        }
        let doing = "set the terminal to raw";
        let before = tcgetattr(&stdin).map_err(|e| LabError::io(doing)(e.into()))?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).map_err(|e| LabError::io(doing)(e.into()))?;
        Ok(Raw(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Connects standard input and output to the console at `socket`.
pub fn attach(node: &str, socket: &Path) -> Result<(), LabError> {
    let mut console =
        UnixStream::connect(socket).map_err(LabError::io(format!("connect to the console of {node}")))?;
    eprintln!("console of {node}; Ctrl-] leaves");
    let raw = Raw::set()?;
    let result = pump(&mut console);
    drop(raw);
    eprintln!();
    result.map_err(LabError::io(format!("use the console of {node}")))
}

/// The first Ctrl-] in what was typed ends the session; what stands before it is still passed on.
fn typed(bytes: &[u8]) -> (&[u8], bool) {
    match bytes.iter().position(|b| *b == LEAVE) {
        Some(at) => (&bytes[..at], true),
        None => (bytes, false),
    }
}

fn pump(console: &mut UnixStream) -> std::io::Result<()> {
    let stdin = std::io::stdin();
    let mut listening = true;
    let mut buffer = [0; 4096];
    loop {
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        let (key, output) = {
            let mut fds = vec![PollFd::new(console.as_fd(), PollFlags::POLLIN)];
            if listening {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
            // A person may think for as long as she likes; the lab's end closes the socket.
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            (fds.get(1).is_some_and(ready), ready(&fds[0]))
        };
        if output {
            match console.read(&mut buffer)? {
                0 => return Ok(()),
                n => {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&buffer[..n])?;
                    out.flush()?;
                }
            }
        }
        if key {
            // Unbuffered: what the library had read ahead would not wake the poll.
            let n = nix::unistd::read(&stdin, &mut buffer)?;
            let (keys, leave) = typed(&buffer[..n]);
            console.write_all(keys)?;
            if leave {
                return Ok(());
            }
            listening = n > 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_leaving_key_ends_a_session() {
        assert_eq!(typed(b"show\r"), (&b"show\r"[..], false));
        assert_eq!(typed(b"sh\x1dow"), (&b"sh"[..], true));
        assert_eq!(typed(b"\x03\x04\x1b"), (&b"\x03\x04\x1b"[..], false), "Ctrl-C and Ctrl-D are the node's");
    }
}
