//! Lines from bytes, and the bounded memory they are kept in. Pure.

use std::collections::VecDeque;

use proto::control::{LOG_LINE_MAX, LogLine};

/// Bytes of text one ring keeps: some 800 lines, and 64 rings (4 MiB) fit the smallest machine.
pub(crate) const RING_MAX: usize = 64 * 1024;
/// Lines one ring keeps, so that a flood of empty lines is bounded too.
const RING_LINES_MAX: usize = 2048;

/// The last lines of one source.
#[derive(Default)]
pub(crate) struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
}

impl Ring {
    /// Adds a line; the oldest ones make room.
    pub(crate) fn push(&mut self, line: LogLine) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.bytes > RING_MAX || self.lines.len() > RING_LINES_MAX {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes -= oldest.text.len();
        }
    }

    /// The last `count` lines, oldest first.
    pub(crate) fn last(&self, count: usize) -> Vec<LogLine> {
        self.lines.iter().skip(self.lines.len().saturating_sub(count)).cloned().collect()
    }
}

/// Cuts a stream of bytes into lines of at most [`LOG_LINE_MAX`] bytes.
#[derive(Default)]
pub(crate) struct Splitter {
    open: Vec<u8>,
}

impl Splitter {
    /// Takes bytes; calls `line` for every line they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            for byte in text {
                if self.open.len() >= LOG_LINE_MAX {
                    line(self.take());
                }
                self.open.push(*byte);
            }
            if ended {
                line(self.take());
            }
        }
    }

    /// The unfinished line, when its writer is gone.
    pub(crate) fn flush(&mut self, mut line: impl FnMut(String)) {
        if !self.open.is_empty() {
            line(self.take());
        }
    }

    /// Replacement characters are three bytes for one: the text is cut again so that the bound holds.
    fn take(&mut self) -> String {
        let bytes = std::mem::take(&mut self.open);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(&bytes);
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        cut(&mut text, LOG_LINE_MAX);
        text
    }
}

/// Shortens `text` to at most `max` bytes, at a character's border.
pub(crate) fn cut(text: &mut String, max: usize) {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        for chunk in chunks {
            splitter.feed(chunk, |l| lines.push(l));
        }
        splitter.flush(|l| lines.push(format!("{l}<open>")));
        lines
    }

    #[test]
    fn chunks_become_lines() {
        assert_eq!(lines_of(&[b"on", b"e\ntwo\r\n\nthr", b"ee"]), ["one", "two", "", "three<open>"]);
        assert_eq!(lines_of(&[b"\xff\xfe\n"]), ["\u{fffd}\u{fffd}"]);
        assert!(lines_of(&[b""]).is_empty());
    }

    #[test]
    fn a_long_line_is_split_at_its_bound() {
        let lines = lines_of(&[&[b'x'; LOG_LINE_MAX + 1], b"y\n"]);
        assert_eq!((lines[0].len(), lines[1].as_str()), (LOG_LINE_MAX, "xy"));
        let exact = lines_of(&[&[b'x'; LOG_LINE_MAX], b"\n"]);
        assert_eq!(exact.len(), 1, "a line that just fits is one line");
        assert!(
            lines_of(&[&[0xff; LOG_LINE_MAX + 1]]).iter().all(|l| l.len() <= LOG_LINE_MAX + "<open>".len())
        );
    }

    #[test]
    fn the_ring_forgets_the_oldest() {
        let mut ring = Ring::default();
        for i in 0..100 {
            ring.push(LogLine { at_ms: i, text: "x".repeat(1024) });
        }
        let kept = ring.last(1000);
        assert_eq!(
            (kept.len(), kept.first().map(|l| l.at_ms), kept.last().map(|l| l.at_ms)),
            (64, Some(36), Some(99))
        );
        assert_eq!(ring.last(2).iter().map(|l| l.at_ms).collect::<Vec<_>>(), [98, 99]);
        for i in 0..5000 {
            ring.push(LogLine { at_ms: i, text: String::new() });
        }
        assert_eq!(ring.last(10_000).len(), RING_LINES_MAX);
    }

    #[test]
    fn cutting_keeps_characters_whole() {
        let mut text = "aä".to_owned();
        cut(&mut text, 2);
        assert_eq!(text, "a");
    }
}
