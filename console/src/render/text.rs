//! Text for a serial line: printable, clipped, aligned, never wider than asked.

/// Columns of the narrowest terminal we write for, less one for terminals that wrap in the last, and one more.
pub(crate) const COLUMNS: usize = 78;

/// `text` with every control character replaced: what came from a name, a log or a peer must not steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// At most `width` characters of `text`; a `~` at the end says that there was more.
pub(crate) fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut clipped: String = text.chars().take(width.saturating_sub(1)).collect();
    clipped.push('~');
    clipped
}

/// A length of time in at most two units: `0s`, `59s`, `3m12s`, `2h05m`, `4d03h`.
pub(crate) fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86400, s / 3600 % 24),
    }
}

/// Bytes in the largest unit that keeps three digits: `0 B`, `17 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut n = n;
    let mut unit = 0;
    while n >= 1024 && unit + 1 < UNITS.len() {
        n /= 1024;
        unit += 1;
    }
    format!("{n} {}", UNITS[unit])
}

/// Rows under a heading in aligned columns, two blanks apart. Columns that are empty in every row are left out.
/// The last column is not clipped unless `width` is given.
pub(crate) fn table<const N: usize>(
    heading: [&str; N],
    rows: &[[String; N]],
    width: Option<usize>,
) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
    let used: Vec<usize> = (0..N).filter(|&i| rows.iter().any(|row| !row[i].is_empty())).collect();
    let heading = heading.map(str::to_owned);
    let lines = || std::iter::once(&heading).chain(&rows);
    let widths: Vec<usize> =
        used.iter().map(|&i| lines().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in lines() {
        let cells: Vec<String> =
            used.iter().zip(&widths).map(|(&i, &width)| format!("{:<width$}", row[i])).collect();
        let line = cells.join("  ");
        let line = line.trim_end();
        out.push_str(&width.map_or_else(|| line.to_owned(), |width| clip(line, width)));
        out.push('\n');
    }
    out
}

/// `label` and then `items` joined by commas, broken at [`COLUMNS`] with a hanging indent. At most `lines` lines; the
/// last one says how many items are missing.
pub(crate) fn list(label: &str, items: &[String], lines: usize) -> String {
    let indent = label.chars().count() + 1;
    let mut out = vec![format!("{label} ")];
    let mut width = indent;
    for (shown, item) in items.iter().enumerate() {
        let last = shown + 1 == items.len();
        let item = clip(&format!("{}{}", printable(item), if last { "" } else { "," }), COLUMNS - indent);
        let len = item.chars().count();
        let left = items.len() - shown;
        // Room for the count of what does not fit, unless this is the last item.
        let tail = if out.len() == lines && !last { " 999 more".len() } else { 0 };
        if width > indent && width + 1 + len + tail > COLUMNS {
            if out.len() == lines {
                let line = out.last_mut().expect("there is a first line");
                line.push_str(&format!(" {left} more"));
                return out.join("\n") + "\n";
            }
            out.push(" ".repeat(indent));
            width = indent;
        }
        let line = out.last_mut().expect("there is a first line");
        if width > indent {
            line.push(' ');
            width += 1;
        }
        line.push_str(&item);
        width += len;
    }
    out.join("\n") + "\n"
}

/// `text` broken between words at [`COLUMNS`], the later lines indented. At most `lines` lines; the rest is cut.
pub(crate) fn paragraph(text: &str, lines: usize) -> String {
    let text = printable(text);
    let mut out: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let fits = |line: &&mut String| line.chars().count() + 1 + word.chars().count() <= COLUMNS;
        let first = out.is_empty();
        match out.last_mut().filter(fits) {
            Some(line) => *line += &format!(" {word}"),
            None if first => out.push(word.to_owned()),
            None => out.push(format!("  {word}")),
        }
    }
    out.iter().take(lines).map(|line| clip(line, COLUMNS) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_break_between_words() {
        let words = ["word"; 40].join(" ");
        let text = paragraph(&words, 3);
        assert_eq!(text.lines().map(|l| l.chars().count()).collect::<Vec<_>>(), [74, 76, 51]);
        assert_eq!(text.split_whitespace().count(), 40);
        assert_eq!(paragraph(&words, 1).lines().count(), 1);
        assert_eq!(paragraph("", 3), "");
        assert!(paragraph(&"x".repeat(500), 3).trim_end().chars().count() <= COLUMNS);
    }

    #[test]
    fn ages_and_sizes() {
        for (ms, expected) in [
            (0, "0s"),
            (59_999, "59s"),
            (60_000, "1m00s"),
            (192_000, "3m12s"),
            (7_500_000, "2h05m"),
            (86_400_000 * 4 + 3_600_000 * 3, "4d03h"),
        ] {
            assert_eq!(age(ms), expected);
        }
        for (n, expected) in [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (300 << 20, "300 MiB")] {
            assert_eq!(bytes(n), expected);
        }
        assert!(bytes(u64::MAX).ends_with(" TiB") && age(u64::MAX).contains('d'));
    }

    #[test]
    fn clipping_counts_characters() {
        for (text, width, expected) in
            [("abc", 3, "abc"), ("abcd", 3, "ab~"), ("äöüß", 3, "äö~"), ("", 0, "")]
        {
            assert_eq!(clip(text, width), expected);
        }
    }

    #[test]
    fn tables_align_and_drop_empty_columns() {
        let rows = [["a", "", "1"], ["long", "", "2\u{7}"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(["N", "EMPTY", "V"], &rows, None), "N     V\na     1\nlong  2?\n");
        assert_eq!(
            table(["N", "EMPTY", "V"], &rows, Some(5)),
            "N ~\n".replace("N ~", "N   ~") + "a   ~\nlong~\n"
        );
        assert_eq!(table::<2>(["A", "B"], &[], None), "\n", "nothing to show is the caller's to say");
    }

    #[test]
    fn lists_break_and_count_what_is_missing() {
        let items = |n: usize| (0..n).map(|i| format!("item-{i:03}")).collect::<Vec<_>>();
        assert_eq!(list("ports", &items(2), 1), "ports item-000, item-001\n");
        for n in 1..60 {
            let text = list("ports", &items(n), 2);
            assert!(text.lines().count() <= 2, "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
            let shown = text.matches("item-").count();
            let missing = text
                .trim_end()
                .strip_suffix(" more")
                .map_or(0, |t| t.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok()).expect("a number"));
            assert_eq!(shown + missing, n, "{text}");
        }
    }
}
