//! The kernel command line, as far as init reads it. Pure.
//!
//! Words are taken apart as the kernel does it (`next_arg` in its lib/cmdline.c, `parse_args` in kernel/params.c),
//! oddities included: a word must mean the same to both. Blanks end a word unless a double quote is open. The first
//! `=` ends the name, but one that leads the word belongs to it. Quotes stay what they are, except in front of the
//! word or the value, where they vanish together with one at the word's end. `-` and `_` are equal in names. What
//! stands behind `--` belongs to init's arguments and is not looked at. Of a repeated name the last one counts.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Characters of a bad value that are shown.
const SHOWN_MAX: usize = 40;

/// Names and values of a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cmdline(BTreeMap<String, Option<String>>);

impl Cmdline {
    /// Reads what `/proc/cmdline` holds. Nothing is refused: a machine must not stay dark over a typing error.
    pub(crate) fn parse(line: &[u8]) -> Cmdline {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // The line end is /proc's.
        let words = Words { rest: line.strip_suffix(b"\n").unwrap_or(line) };
        Cmdline(words.map(|(name, value)| (plain(&text(name)), value.map(text))).collect())
    }

    /// Whether `name` is there, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(&plain(name))
    }

    /// The value of `name`; `None` when it is absent or has no value.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(&plain(name))?.as_deref()
    }

    /// Whether `name` is `on` or `off`; `default` without either, then with what there is to say about it.
    pub(crate) fn switch(&self, name: &str, default: bool) -> (bool, Option<String>) {
        match self.value(name) {
            Some("on") => (true, None),
            Some("off") => (false, None),
            None if !self.has(name) => (default, None),
            other => {
                let shown: String = other.unwrap_or_default().chars().take(SHOWN_MAX).collect();
                let used = if default { "on" } else { "off" };
                (default, Some(format!("{name}={shown:?} is neither on nor off; using {used}")))
            }
        }
    }

    /// The number that `name` has, or `default` without one in `range`; then with what there is to say about it.
    pub(crate) fn number(
        &self,
        name: &str,
        range: &RangeInclusive<u32>,
        default: u32,
    ) -> (u32, Option<String>) {
        let value = self.value(name).unwrap_or_default();
        match value.parse().ok().filter(|n| range.contains(n)) {
            Some(number) => (number, None),
            None if !self.has(name) => (default, None),
            None => {
                let (from, to) = (range.start(), range.end());
                let shown: String = value.chars().take(SHOWN_MAX).collect();
                let why = format!("{name}={shown:?} is not a number from {from} to {to}; using {default}");
                (default, Some(why))
            }
        }
    }
}

/// How names are compared.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// What ends a word: the kernel's `isspace`, in whose Latin-1 0xa0 is one.
fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b || byte == 0xa0
}

/// The words up to `--`, each as name and value.
struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Words<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.rest.iter().position(|b| !is_blank(*b))?;
        let word = self.rest.get(start..)?;
        let (quoted, word) = word.strip_prefix(b"\"").map_or((false, word), |inner| (true, inner));
        let mut open = quoted;
        let ends = |byte: &u8| {
            open ^= *byte == b'"';
            !open && is_blank(*byte)
        };
        let (word, rest) = word.split_at(word.iter().position(ends).unwrap_or(word.len()));
        self.rest = rest;

        let equals = word.iter().skip(1).position(|b| *b == b'=').map(|i| i + 1);
        let value_quoted = equals.is_some_and(|i| word.get(i + 1) == Some(&b'"'));
        // One at the end goes with either, and only one.
        let word = word.strip_suffix(b"\"").filter(|_| quoted || value_quoted).unwrap_or(word);
        let found = match equals {
            None => (word, None),
            Some(at) => {
                let value = word.get(at + 1..).unwrap_or_default();
                (word.get(..at)?, Some(value.strip_prefix(b"\"").unwrap_or(value)))
            }
        };
        (found != (b"--", None)).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of each line was found with its own function.
    #[test]
    fn words_are_taken_apart_as_the_kernel_does_it() {
        type Word = (&'static str, Option<&'static str>);
        let cases: [(&[u8], &[Word]); 31] = [
            (b"", &[]),
            (b" \t\n", &[]),
            (b"a=1 quiet b= c\n", &[("a", Some("1")), ("quiet", None), ("b", Some("")), ("c", None)]),
            (b"  a\tb\x0bc\x0cd\re\nf  ", &["a", "b", "c", "d", "e", "f"].map(|n| (n, None))),
            (b"a\xa0b", &[("a", None), ("b", None)]),
            (b"a=\"x y\" b=1", &[("a", Some("x y")), ("b", Some("1"))]),
            (b"\"a=x y\" b=1", &[("a", Some("x y")), ("b", Some("1"))]),
            (b"a=x\" \"y b=1", &[("a", Some("x\" \"y")), ("b", Some("1"))]),
            (b"a=\"x\"y\" b", &[("a", Some("x\"y\" b"))]),
            (b"a=\"x y\"z b", &[("a", Some("x y\"z")), ("b", None)]),
            (b"=x =y=z ==", &[("=x", None), ("=y", Some("z")), ("=", Some(""))]),
            (b"\"a b\" c", &[("a b", None), ("c", None)]),
            (b"\"\" a", &[("", None), ("a", None)]),
            (b"a=\"\" b", &[("a", Some("")), ("b", None)]),
            (b"\"a=\"x\"\" b", &[("a", Some("x\"")), ("b", None)]),
            (b"a=\"open end\n", &[("a", Some("open end"))]),
            (b"\"open end", &[("open end", None)]),
            (b"a=x\" y", &[("a", Some("x\" y"))]),
            (b"a=\"b=c d\"", &[("a", Some("b=c d"))]),
            (b"a==b", &[("a", Some("=b"))]),
            (b"a=\"\"\"x\"", &[("a", Some("\"\"x"))]),
            (b"a=\"", &[("a", Some(""))]),
            // The kernel reads the byte in front of the word here.
            (b"\"", &[("", None)]),
            (b"-- b", &[]),
            (b"a -- b=1", &[("a", None)]),
            (b"a \"--\" b", &[("a", None)]),
            (b"a --=1 b", &[("a", None), ("--", Some("1")), ("b", None)]),
            (b"a --b c", &[("a", None), ("--b", None), ("c", None)]),
            (b"a=-- b", &[("a", Some("--")), ("b", None)]),
            (b"a=\"-- b\" c", &[("a", Some("-- b")), ("c", None)]),
            (b"a \"b --", &[("a", None), ("b --", None)]),
        ];
        for (line, expected) in cases {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let words: Vec<_> = Words { rest: line }.collect();
            let expected: Vec<_> =
                expected.iter().map(|(name, value)| (name.as_bytes(), value.map(str::as_bytes))).collect();
            assert_eq!(words, expected, "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn the_last_one_counts_and_names_are_equal_with_either_dash() {
        let c = Cmdline::parse(b"a-b_c=1 x a_b-c=2 d=1 d d-d x=\xff -- x=3\n");
        for (name, has, value) in [
            ("a-b-c", true, Some("2")),
            ("a_b_c", true, Some("2")),
            ("d", true, None),
            ("d_d", true, None),
            ("x", true, Some("\u{fffd}")),
            ("--", false, None),
            ("e", false, None),
        ] {
            assert_eq!((c.has(name), c.value(name)), (has, value), "{name}");
        }
        let values_keep_theirs = Cmdline::parse(b"evenkeel.slot=SLOT-B");
        assert_eq!(values_keep_theirs.value("evenkeel.slot"), Some("SLOT-B"));
    }

    #[test]
    fn a_switch_is_on_or_off() {
        let said = |what: &str| Some(format!("s={what:?} is neither on nor off; using on"));
        for (line, expected) in [
            ("", (true, None)),
            ("s=on", (true, None)),
            ("s=on s=off", (false, None)),
            ("s", (true, said(""))),
            ("s=no", (true, said("no"))),
        ] {
            assert_eq!(Cmdline::parse(line.as_bytes()).switch("s", true), expected, "{line}");
        }
    }

    #[test]
    fn a_number_out_of_range_is_said_and_the_default_used() {
        let said = |what: &str| Some(format!("n={what} is not a number from 4 to 60; using 30"));
        for (line, expected) in [
            ("", (30, None)),
            ("n=4", (4, None)),
            ("n=60 n=60", (60, None)),
            ("n=\"5\"", (5, None)),
            ("n=3", (30, said("\"3\""))),
            ("n=61", (30, said("\"61\""))),
            ("n", (30, said("\"\""))),
            ("n=9s", (30, said("\"9s\""))),
            ("n=-5", (30, said("\"-5\""))),
            ("n=99999999999999999999", (30, said("\"99999999999999999999\""))),
            ("n=5 n=x", (30, said("\"x\""))),
        ] {
            assert_eq!(Cmdline::parse(line.as_bytes()).number("n", &(4..=60), 30), expected, "{line}");
        }
    }
}
