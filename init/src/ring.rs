//! Lines from bytes, and the bounded memory they are kept in. Pure.
//!
//! Both take their memory once and never ask for more: what a dying service wrote last is kept on the way to its
//! successor, where PID 1 allocates nothing.

use std::borrow::Cow;
use std::collections::VecDeque;

use proto::control::{LOG_LINE_MAX, LogLine};

/// Bytes one ring keeps, [`HEAD_LEN`] for each line included: some 800 lines, and 128 rings (8 MiB) fit the smallest
/// machine. Pages that were never written to take no memory.
pub(crate) const RING_MAX: usize = 64 * 1024;
/// In front of each line: when it came (u64) and its length (u16).
const HEAD_LEN: usize = 10;

/// The last lines of one source.
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
}

impl Default for Ring {
    fn default() -> Ring {
        Ring { bytes: VecDeque::with_capacity(RING_MAX) }
    }
}

impl Ring {
    /// One with the content that [`Ring::content`] gave. What does not read as lines is left out.
    pub(crate) fn resume(content: &[u8]) -> Ring {
        let mut ring = Ring::default();
        let mut rest = content;
        while let Some((head, lines)) = rest.split_first_chunk::<HEAD_LEN>() {
            let (at_ms, length) = parse_head(*head);
            let Some((text, next)) = lines.split_at_checked(length) else { break };
            ring.push(at_ms, &String::from_utf8_lossy(text));
            rest = next;
        }
        ring
    }

    /// All lines as they are kept.
    pub(crate) fn content(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }

    /// Adds a line, cut to [`LOG_LINE_MAX`]; the oldest ones make room.
    pub(crate) fn push(&mut self, at_ms: u64, text: &str) {
        let text = cut(text, LOG_LINE_MAX);
        // LOG_LINE_MAX fits.
        let length = text.len() as u16;
        while self.bytes.len() + HEAD_LEN + text.len() > RING_MAX {
            let Some((_, oldest)) = self.head(0) else { return };
            self.bytes.drain(..HEAD_LEN + oldest);
        }
        self.bytes.extend(at_ms.to_le_bytes());
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    /// The last `count` lines, oldest first.
    pub(crate) fn last(&self, count: usize) -> Vec<LogLine> {
        let mut starts = VecDeque::new();
        let mut at = 0;
        while let Some((at_ms, length)) = self.head(at) {
            if starts.len() == count {
                starts.pop_front();
            }
            starts.push_back((at_ms, at + HEAD_LEN, length));
            at += HEAD_LEN + length;
        }
        let line = |(at_ms, from, length): (u64, usize, usize)| {
            let text: Vec<u8> = self.bytes.range(from..from + length).copied().collect();
            LogLine { at_ms, text: String::from_utf8_lossy(&text).into_owned() }
        };
        starts.into_iter().take(count).map(line).collect()
    }

    /// Time and length of the line whose head begins at byte `at`.
    fn head(&self, at: usize) -> Option<(u64, usize)> {
        let mut head = [0; HEAD_LEN];
        for (i, byte) in head.iter_mut().enumerate() {
            *byte = *self.bytes.get(at + i)?;
        }
        Some(parse_head(head))
    }
}

fn parse_head([a, b, c, d, e, f, g, h, l, m]: [u8; HEAD_LEN]) -> (u64, usize) {
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u16::from_le_bytes([l, m]).into())
}

/// Cuts a stream of bytes into lines of at most [`LOG_LINE_MAX`] bytes.
pub(crate) struct Splitter {
    open: Vec<u8>,
}

impl Default for Splitter {
    fn default() -> Splitter {
        Splitter { open: Vec::with_capacity(LOG_LINE_MAX) }
    }
}

impl Splitter {
    /// One that goes on in the middle of a line.
    pub(crate) fn resume(open: &[u8]) -> Splitter {
        let mut splitter = Splitter::default();
        splitter.open.extend(open.iter().take(LOG_LINE_MAX));
        splitter
    }

    /// The unfinished line.
    pub(crate) fn open(&self) -> &[u8] {
        &self.open
    }

    /// Takes bytes; calls `line` for every line they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (mut text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            while !text.is_empty() {
                if self.open.len() >= LOG_LINE_MAX {
                    self.take(&mut line);
                }
                let (fits, rest) = text.split_at(text.len().min(LOG_LINE_MAX - self.open.len()));
                self.open.extend_from_slice(fits);
                text = rest;
            }
            if ended {
                self.take(&mut line);
            }
        }
    }

    /// The unfinished line, when its writer is gone.
    pub(crate) fn flush(&mut self, mut line: impl FnMut(&str)) {
        if !self.open.is_empty() {
            self.take(&mut line);
        }
    }

    fn take(&mut self, line: &mut impl FnMut(&str)) {
        let bytes = self.open.strip_suffix(b"\r").unwrap_or(&self.open);
        match String::from_utf8_lossy(bytes) {
            Cow::Borrowed(text) => line(text),
            // Replacement characters are three bytes for one: the text is cut again so that the bound holds.
            Cow::Owned(text) => line(cut(&text, LOG_LINE_MAX)),
        }
        self.open.clear();
    }
}

/// The longest front of `text` that has at most `max` bytes and ends at a character's border.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// [`cut`] in place.
pub(crate) fn shorten(text: &mut String, max: usize) {
    let end = cut(text, max).len();
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        for chunk in chunks {
            splitter.feed(chunk, |l| lines.push(l.to_owned()));
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
    fn lines_and_their_beginnings_go_on_elsewhere() {
        let (mut first, mut lines) = (Splitter::default(), Vec::new());
        first.feed(b"one\ntw", |_| {});
        Splitter::resume(first.open()).feed(b"o\n", |l| lines.push(l.to_owned()));
        assert_eq!(lines, ["two"]);
        assert_eq!(Splitter::resume(&[b'x'; LOG_LINE_MAX + 1]).open().len(), LOG_LINE_MAX);

        let mut ring = Ring::default();
        (0..3).for_each(|i| ring.push(i, &"z".repeat(i as usize)));
        let content = ring.content();
        assert_eq!(Ring::resume(&content).last(9), ring.last(9));
        assert_eq!(Ring::resume(&content[..content.len() - 1]).last(9), ring.last(9)[..2]);
    }

    #[test]
    fn the_ring_forgets_the_oldest() {
        let mut ring = Ring::default();
        for i in 0..100 {
            ring.push(i, &"x".repeat(1024));
        }
        let kept = ring.last(1000);
        assert_eq!(
            (kept.len(), kept.first().map(|l| l.at_ms), kept.last().map(|l| l.at_ms)),
            (63, Some(37), Some(99))
        );
        assert!(kept.iter().all(|l| l.text.len() == 1024));
        assert_eq!(ring.last(2).iter().map(|l| l.at_ms).collect::<Vec<_>>(), [98, 99]);
        assert!(ring.last(0).is_empty());
        let capacity = ring.bytes.capacity();
        for i in 0..20_000 {
            ring.push(i, if i % 7 == 0 { "ä" } else { "" });
        }
        assert_eq!(ring.bytes.capacity(), capacity, "its memory never grows");
        ring.push(1, &"y".repeat(LOG_LINE_MAX + 1));
        assert_eq!(ring.last(1)[0].text.len(), LOG_LINE_MAX);
    }

    #[test]
    fn cutting_keeps_characters_whole() {
        assert_eq!((cut("aä", 2), cut("aä", 3), cut("", 1)), ("a", "aä", ""));
    }
}
