//! The agent's lines. Pure.
//!
//! | who | line | meaning |
//! |---|---|---|
//! | agent | `ready` | it listens: at the start, after the host has come back, and in answer to an empty line |
//! | host | `run ID HEX` | run the command line whose bytes are HEX; ID is up to 32 letters, digits, `-`, `_` |
//! | agent | `out ID HEX` | bytes of the output, any number of times |
//! | agent | `done ID CODE` | the end: 0 done, 1 failed, 2 no such command |
//! | agent | `error - TEXT` | the host's line was not understood; nothing was done |

use crate::command::LINE_MAX;
use proto::text::{hex, unhex};
use std::io::{self, Write};

/// Bytes of the longest line a host may send.
pub(super) const REQUEST_MAX: usize = LINE_MAX;

/// Bytes of output that one command may have. The largest log there is takes a third of it.
pub(super) const OUTPUT_MAX: usize = 256 * 1024;

/// Bytes of output in one line.
const CHUNK: usize = 1024;

/// Characters of the longest id.
const ID_MAX: usize = 32;

/// A line of the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Are you there?
    Hello,
    /// Run a command line.
    Run { id: String, line: String },
}

/// Reads a line; the error is the text for `error -`.
pub(super) fn parse(line: &[u8]) -> Result<Request, &'static str> {
    let text = std::str::from_utf8(line).map_err(|_| "request is not text")?;
    let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        [] => Ok(Request::Hello),
        ["run", id, digits] => {
            if id.len() > ID_MAX || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err("id must have 1 to 32 letters, digits, - or _");
            }
            let bytes = unhex(digits).ok_or("command line is not hex")?;
            let line = String::from_utf8(bytes).map_err(|_| "command line is not text")?;
            Ok(Request::Run { id: (*id).to_owned(), line })
        }
        ["run", _] => Err("command line is missing"),
        _ => Err("expected: run ID HEX"),
    }
}

/// The agent's greeting.
pub(super) const READY: &str = "ready\n";

/// The answer to a line that was not understood.
pub(super) fn error(text: &str) -> String {
    format!("error - {text}\n")
}

/// The answer to a command.
pub(super) fn answer(id: &str, output: &[u8], code: u8) -> String {
    let mut text = String::with_capacity(output.len() * 2 + 64);
    for chunk in output.chunks(CHUNK) {
        text.push_str("out ");
        text.push_str(id);
        text.push(' ');
        text.push_str(&hex(chunk));
        text.push('\n');
    }
    text + &format!("done {id} {code}\n")
}

/// Keeps the first [`OUTPUT_MAX`] bytes and counts the rest.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    dropped: usize,
}

impl Output {
    /// What was kept, with a last line that says what was not.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.dropped > 0 {
            let note = format!("\n({} more bytes dropped)\n", self.dropped);
            self.bytes.extend_from_slice(note.as_bytes());
        }
        self.bytes
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kept = bytes.len().min(OUTPUT_MAX - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.dropped += bytes.len() - kept;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let run = |id: &str, line: &str| Ok(Request::Run { id: id.into(), line: line.into() });
        let long_id = format!("run {} 41", "x".repeat(33));
        let table: [(&[u8], Result<Request, &str>); 12] = [
            (b"run 1 73686f77", run("1", "show")),
            (b"run a-B_9 c3A4", run("a-B_9", "ä")),
            (b"", Ok(Request::Hello)),
            (b"  ", Ok(Request::Hello)),
            (b"run 1 7", Err("command line is not hex")),
            (b"run 1 7g", Err("command line is not hex")),
            (b"run 1 ff", Err("command line is not text")),
            (b"run 1", Err("command line is missing")),
            (b"run 1 41 41", Err("expected: run ID HEX")),
            (b"\xff\xff", Err("request is not text")),
            (b"run a/b 41", Err("id must have 1 to 32 letters, digits, - or _")),
            (long_id.as_bytes(), Err("id must have 1 to 32 letters, digits, - or _")),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line), expected, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn answers() {
        assert_eq!(answer("7", b"", 2), "done 7 2\n");
        assert_eq!(answer("7", b"web\n", 0), "out 7 7765620a\ndone 7 0\n");
        let text = answer("7", &vec![0xaf; CHUNK + 1], 1);
        let lines: Vec<usize> = text.lines().map(str::len).collect();
        assert_eq!(lines, ["out 7 ".len() + 2 * CHUNK, "out 7 af".len(), "done 7 1".len()]);
    }

    #[test]
    fn output_is_capped_and_says_so() {
        let mut output = Output::default();
        output.write_all(&vec![b'x'; OUTPUT_MAX - 1]).unwrap();
        output.write_all(b"abc").unwrap();
        let bytes = output.finish();
        assert!(bytes.ends_with(b"xa\n(2 more bytes dropped)\n"));
        let mut output = Output::default();
        output.write_all(b"abc").unwrap();
        assert_eq!(output.finish(), b"abc");
    }
}
