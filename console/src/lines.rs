//! Cuts a byte stream into lines of bounded length. Pure.

/// What came out of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A line without its LF or CR LF.
    Line(Vec<u8>),
    /// A line longer than the bound; its bytes are gone.
    TooLong,
}

/// Collects bytes until a line is whole.
#[derive(Debug)]
pub(crate) struct Lines {
    max: usize,
    partial: Vec<u8>,
    /// The line under way is longer than `max` already.
    skipping: bool,
}

impl Lines {
    /// Lines of up to `max` bytes.
    pub(crate) fn new(max: usize) -> Lines {
        Lines { max, partial: Vec::new(), skipping: false }
    }

    /// Takes bytes in and gives the lines that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        for part in bytes.split_inclusive(|&b| b == b'\n') {
            let (text, whole) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            self.skipping |= self.partial.len() + text.len() > self.max;
            if self.skipping {
                self.partial.clear();
            } else {
                self.partial.extend_from_slice(text);
            }
            if whole {
                items.push(self.end());
            }
        }
        items
    }

    /// The line without an end, at the end of the stream; `None` when there is none.
    pub(crate) fn finish(&mut self) -> Option<Item> {
        (self.skipping || !self.partial.is_empty()).then(|| self.end())
    }

    /// Forgets the line under way: its sender is gone.
    pub(crate) fn clear(&mut self) {
        self.partial.clear();
        self.skipping = false;
    }

    fn end(&mut self) -> Item {
        if std::mem::take(&mut self.skipping) {
            return Item::TooLong;
        }
        let mut line = std::mem::take(&mut self.partial);
        if line.ends_with(b"\r") {
            line.pop();
        }
        Item::Line(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_lines() {
        let stream = b"one\ntwo\r\n\nfour is too long\n12345\nrest";
        let line = |text: &str| Item::Line(text.as_bytes().to_vec());
        let expected = [line("one"), line("two"), line(""), Item::TooLong, line("12345"), line("rest")];
        for cut in 1..=stream.len() {
            let mut lines = Lines::new(5);
            let mut items: Vec<Item> = stream.chunks(cut).flat_map(|part| lines.push(part)).collect();
            items.extend(lines.finish());
            assert_eq!(items, expected, "cut every {cut} bytes");
            assert_eq!(lines.finish(), None);
        }
    }

    #[test]
    fn an_endless_line_takes_no_memory_and_can_be_forgotten() {
        let mut lines = Lines::new(16);
        for _ in 0..1000 {
            assert_eq!(lines.push(&[b'x'; 100]), []);
            assert!(lines.partial.capacity() <= 64);
        }
        lines.clear();
        assert_eq!(lines.push(b"ok\n"), [Item::Line(b"ok".to_vec())]);
    }
}
