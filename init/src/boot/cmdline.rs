//! The kernel command line, as far as init reads it. Pure.
//!
//! Words are separated by blanks; a double quote anywhere in a word keeps blanks until the next one, as the kernel
//! does it. What stands behind `--` belongs to init's arguments and is not looked at. Of a repeated key the last
//! one counts.

use std::collections::BTreeMap;

/// Keys and values of a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cmdline(BTreeMap<String, Option<String>>);

impl Cmdline {
    /// Reads the text of `/proc/cmdline`. Nothing is refused: a machine must not stay dark over a typing error.
    pub(crate) fn parse(text: &str) -> Cmdline {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for c in text.chars() {
            match c {
                '"' => quoted = !quoted,
                c if c.is_ascii_whitespace() && !quoted => words.push(String::new()),
                c => {
                    if let Some(word) = words.last_mut() {
                        word.push(c);
                    }
                }
            }
        }
        let mut values = BTreeMap::new();
        for word in words.into_iter().filter(|w| !w.is_empty()).take_while(|w| w != "--") {
            match word.split_once('=') {
                Some((key, value)) => values.insert(key.to_owned(), Some(value.to_owned())),
                None => values.insert(word, None),
            };
        }
        Cmdline(values)
    }

    /// Whether `key` is there, with or without a value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The value of `key`; `None` when it is absent or has no value.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_the_kernel_reads_them() {
        let c = Cmdline::parse("console=ttyS0 quiet a=\"x y\" \"b=p q\" c=1 c=2 d= -- rescue=1\n");
        let cases = [
            ("console", true, Some("ttyS0")),
            ("quiet", true, None),
            ("a", true, Some("x y")),
            ("b", true, Some("p q")),
            ("c", true, Some("2")),
            ("d", true, Some("")),
            ("rescue", false, None),
            ("--", false, None),
        ];
        for (key, has, value) in cases {
            assert_eq!((c.has(key), c.value(key)), (has, value), "{key}");
        }
    }

    #[test]
    fn odd_lines_do_no_harm() {
        assert_eq!(Cmdline::parse(""), Cmdline::default());
        assert_eq!(Cmdline::parse("  \n"), Cmdline::default());
        assert_eq!(Cmdline::parse("a=\"open end").value("a"), Some("open end"));
        assert_eq!(Cmdline::parse("=x").value(""), Some("x"));
    }
}
